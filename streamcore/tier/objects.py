"""What the tier asks of a place for objects: whole objects, ranges of them, and changes that nobody else's are lost by.

Two kinds do it: a folder (`folder`), and whatever obstore speaks to (`remote`). Each call is tried again, with growing
pauses of random length, for as long as its deadline allows and the failure is one that may pass.
"""

from __future__ import annotations

import abc
import bisect
import dataclasses
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from streamcore.errors import TierError

_Result = TypeVar("_Result")
Buffer = bytes | bytearray | memoryview
NEAR_BYTES = 64 << 10  # ranges that are nearer to each other are one request
PIECE_BYTES = 8 << 20  # of a stream: what comes within the time-out of a request on a slow line


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, none of them empty; those that overlap or are near to each other are one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1] + NEAR_BYTES and start < end:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif start < end:
            joined.append((start, end))
    return joined


class ObjectMissingError(TierError):
    """There is no object of this name."""


class ConflictError(TierError):
    """Somebody else made or changed the object first."""


class Transient(Exception):
    """A failure that may pass; raised by what `Objects` calls, and never seen outside."""


class Info(NamedTuple):
    """An object. tag: what changes with it (an ETag); modified_ms: by the clock of who keeps it, since 1970."""

    path: str
    size: int
    tag: str
    modified_ms: int


@dataclasses.dataclass(frozen=True)
class Retries:
    """How long a call is tried, in seconds, and the bounds of the pauses: any length up to them ("full jitter")."""

    deadline_s: float = 60.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0

    def pause_s(self, attempt: int) -> float:
        """Before attempt + 2."""
        return random.uniform(0, min(self.longest_pause_s, self.first_pause_s * 2 ** min(attempt, 30)))


class Counters:
    """What was asked of a place for objects in this process. Threads may count at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("gets", "puts", "lists", "deletes", "retries", "failures", "got", "put"), 0)

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def read(self) -> dict[str, int]:
        """By name; `got` and `put` are bytes."""
        with self._lock:
            return dict(self._counts)


class Objects(abc.ABC):
    """A place for objects below one address. Paths are relative to it. Any thread may use it.

    Errors: ObjectMissingError, ConflictError, and TierError for everything else.
    """

    def __init__(self, url: str, retries: Retries) -> None:
        self.url = url
        self.counters = Counters()
        self._retries = retries
        self._closed = threading.Event()

    # ---- calls ----

    def put(self, path: str, data: Buffer) -> str:
        """Puts an object, whatever was there; its tag."""
        self.counters.add(puts=1, put=len(data))
        return self._tried("put", path, lambda: self._put(path, data))

    def put_file(self, path: str, file: Path) -> str:
        """Puts a file, in parts when it is large; its tag."""
        self.counters.add(puts=1, put=file.stat().st_size)
        return self._tried("put", path, lambda: self._put_file(path, file))

    def create(self, path: str, data: Buffer) -> str:
        """Puts an object that is not there yet; its tag. ConflictError: it is there, perhaps by an answer that was
        lost."""
        self.counters.add(puts=1, put=len(data))
        return self._tried("create", path, lambda: self._replace(path, data, None))

    def replace(self, path: str, data: Buffer, tag: str) -> str:
        """Puts an object in the place of the one with this tag; its tag. ConflictError: it has another one by now."""
        self.counters.add(puts=1, put=len(data))
        return self._tried("replace", path, lambda: self._replace(path, data, tag))

    def get(self, path: str) -> tuple[bytes, str]:
        """An object and its tag."""
        self.counters.add(gets=1)
        found = self._tried("get", path, lambda: self._get(path))
        self.counters.add(got=len(found[0]))
        return found

    def get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        """The bytes [start, end) of an object, each; ranges that nearly touch are fetched together."""
        asked = _joined(ranges)
        self.counters.add(gets=len(asked))

        def run() -> list[Buffer]:
            found = self._get_ranges(path, asked)
            for (start, end), data in zip(asked, found, strict=True):
                if len(data) != end - start:
                    self._explain_short(path, end, f"{len(data)} bytes came of {end - start}")
            return found

        found = [memoryview(data) for data in self._tried("get", path, run)] if asked else []
        self.counters.add(got=sum(len(data) for data in found))
        parts: list[Buffer] = []
        for start, end in ranges:
            if start == end:
                parts.append(b"")
                continue
            number = bisect.bisect_right(asked, (start, sys.maxsize)) - 1
            begins = asked[number][0]
            parts.append(found[number][start - begins : end - begins])
        return parts

    def _explain_short(self, path: str, end: int, why: str) -> None:
        size = self._head(path).size
        if size < end:
            raise self._failed("get", path, f"it has {size} bytes, and {end} were asked for")
        raise Transient(why)

    def stream(self, path: str) -> Iterator[Buffer]:
        """An object piece by piece, the next one fetched while this one is used; each piece is tried as a call of its
        own. ConflictError: somebody changed the object meanwhile."""
        info = self.head(path)
        starts = range(0, info.size, PIECE_BYTES)

        def piece(start: int) -> Buffer:
            end = min(start + PIECE_BYTES, info.size)
            self.counters.add(gets=1)
            return self._tried("get", path, lambda: self._whole_piece(path, start, end, info.tag))

        with ThreadPoolExecutor(1, "streamcore-stream") as ahead:
            waiting = ahead.submit(piece, 0) if starts else None
            try:
                for start in starts:
                    assert waiting is not None
                    data = waiting.result()
                    waiting = ahead.submit(piece, start + PIECE_BYTES) if start + PIECE_BYTES < info.size else None
                    self.counters.add(got=len(data))
                    yield data
            finally:
                ahead.shutdown(wait=False, cancel_futures=True)

    def _whole_piece(self, path: str, start: int, end: int, tag: str) -> Buffer:
        data = self._get_piece(path, start, end, tag)
        if len(data) != end - start:
            raise Transient(f"{len(data)} bytes came of {end - start}")
        return data

    def head(self, path: str) -> Info:
        """What is known of an object."""
        self.counters.add(gets=1)
        return self._tried("head", path, lambda: self._head(path))

    def listed(self, prefix: str) -> Iterator[Info]:
        """All objects below a folder, in no order. Their tags are not for `replace`: Google wants more than a listing
        has."""
        self.counters.add(lists=1)
        return iter(self._tried("list", prefix, lambda: self._list(prefix)))

    def delete(self, path: str) -> None:
        """Deletes an object; nothing happens when it is gone already."""
        self.counters.add(deletes=1)
        self._tried("delete", path, lambda: self._delete(path))

    def sweep(self, grace_s: float) -> int:
        """Removes what is left of puts that ended within and began longer ago than this; how many. Of buckets, whose
        uploads in parts have rules of their own there, nothing."""
        return self._tried("sweep", "", lambda: self._sweep(grace_s))

    def close(self) -> None:
        """Ends pauses between attempts: calls that fail fail at once from now on."""
        self._closed.set()

    def url_of(self, path: str) -> str:
        """The address of an object."""
        return f"{self.url.rstrip('/')}/{path}"

    # ---- attempts ----

    def _tried(self, what: str, path: str, function: Callable[[], _Result]) -> _Result:
        ends = time.monotonic() + self._retries.deadline_s
        attempt = 0
        while True:
            try:
                return function()
            except Transient as error:
                pause_s = self._retries.pause_s(attempt)
                if time.monotonic() + pause_s > ends or self._closed.wait(pause_s):
                    self.counters.add(failures=1)
                    raise self._failed(what, path, f"{error}; tried {attempt + 1} times", transient=True) from None
                attempt += 1
                self.counters.add(retries=1)

    def _failed(self, what: str, path: str, why: str, *, transient: bool = False) -> TierError:
        return TierError(f"cannot {what} an object: {why}", self.url_of(path), transient=transient)

    # ---- what a kind of place does; raises Transient for what may pass ----

    @abc.abstractmethod
    def _put(self, path: str, data: Buffer) -> str: ...

    @abc.abstractmethod
    def _put_file(self, path: str, file: Path) -> str: ...

    @abc.abstractmethod
    def _replace(self, path: str, data: Buffer, tag: str | None) -> str: ...

    @abc.abstractmethod
    def _get(self, path: str) -> tuple[bytes, str]: ...

    @abc.abstractmethod
    def _get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]: ...

    @abc.abstractmethod
    def _get_piece(self, path: str, start: int, end: int, tag: str) -> Buffer:
        """Bytes of the object with this tag; ConflictError when it has another one."""

    @abc.abstractmethod
    def _head(self, path: str) -> Info: ...

    @abc.abstractmethod
    def _list(self, prefix: str) -> list[Info]: ...

    @abc.abstractmethod
    def _delete(self, path: str) -> None: ...

    @abc.abstractmethod
    def _sweep(self, grace_s: float) -> int: ...
