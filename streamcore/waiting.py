"""One thread per store that waits for all its consumers in event loops.

A consumer that has nothing to read registers what it waits for, and a future. The thread sleeps on the logs of all of
them at once and wakes each future's loop when there is something: a thousand idle consumers cost one sleeping thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence

from streamcore import _core
from streamcore.errors import StreamcoreError

Waits = Sequence[tuple[_core.Topic, dict[int, int]]]  # topic: {partition: end offset that is known}
_log = logging.getLogger("streamcore.groups")


class _Registration:
    __slots__ = ("future", "loop", "seen", "signal", "waits")

    def __init__(self, waits: Waits, signal: _core.Signal, seen: int, loop: asyncio.AbstractEventLoop) -> None:
        self.waits = waits
        self.signal = signal
        self.seen = seen
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def is_over(self, ends: dict[_core.Topic, dict[int, int]]) -> bool:
        """Whether what is waited for is there."""
        if self.signal.count() != self.seen:
            return True
        return any(ends[core].get(p, 0) > known for core, parts in self.waits for p, known in parts.items())


class Waker:
    """The thread; begins with the first registration."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bell = _core.Signal()
        self._waiting: set[_Registration] = set()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def nudge(self) -> None:
        """Has the thread look at the signals of those who wait."""
        self._bell.set()

    async def wait(self, waits: Waits, signal: _core.Signal, seen: int, timeout_s: float | None) -> None:
        """Returns when a log has grown, the signal was set (and `nudge` called), or the time is over."""
        registration = _Registration(waits, signal, seen, asyncio.get_running_loop())
        with self._lock:
            if self._stopping:
                return
            self._waiting.add(registration)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="streamcore-wait", daemon=True)
                self._thread.start()
        self._bell.set()
        try:
            if timeout_s is None:
                await registration.future
            else:
                await asyncio.wait((registration.future,), timeout=timeout_s)
        finally:
            with self._lock:
                self._waiting.discard(registration)
            registration.future.cancel()

    def stop(self) -> None:
        """Wakes everybody and ends the thread."""
        with self._lock:
            self._stopping = True
            thread = self._thread
        self._bell.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            seen = self._bell.count()
            with self._lock:
                waiting, stopping = list(self._waiting), self._stopping
            over = waiting if stopping else self._over(waiting)
            if over:
                with self._lock:
                    self._waiting.difference_update(over)
                _wake(over)
            if stopping:
                return
            if over:
                continue
            self._sleep(waiting, seen)

    def _over(self, waiting: list[_Registration]) -> list[_Registration]:
        ends: dict[_core.Topic, dict[int, int]] = {}
        for registration in waiting:
            for core, parts in registration.waits:
                ends.setdefault(core, {}).update(dict.fromkeys(parts, 0))
        failed = set()
        for core, parts in ends.items():
            try:
                for partition in parts:
                    parts[partition] = core.describe(partition, False)[1]
            except (StreamcoreError, OSError, ValueError):  # closed or deleted: who waits finds out what it is
                failed.add(core)
        return [
            registration
            for registration in waiting
            if registration.is_over(ends) or any(core in failed for core, _ in registration.waits)
        ]

    def _sleep(self, waiting: list[_Registration], seen: int) -> None:
        least: dict[_core.Topic, dict[int, int]] = {}
        for registration in waiting:
            for core, parts in registration.waits:
                known = least.setdefault(core, {})
                for partition, offset in parts.items():
                    if offset < known.get(partition, offset + 1):
                        known[partition] = offset
        waits = [(core, list(parts), list(parts.values())) for core, parts in least.items()]
        try:
            _core.wait_many(waits, [(self._bell, seen)], None)
        except (StreamcoreError, OSError, ValueError) as error:
            _log.debug("a wait ended: %s", error)


def _wake(over: list[_Registration]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for registration in over:
        by_loop.setdefault(registration.loop, []).append(registration.future)
    for loop, futures in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures)
        except RuntimeError:  # the loop was closed
            _log.debug("a consumer's event loop is closed")


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
