"""What an open store keeps for its consumers: the signal that groups raise, and the two threads that serve them."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from streamcore import _core
from streamcore.errors import StorageError, StreamcoreError
from streamcore.membership import Heart
from streamcore.waiting import Waker

if TYPE_CHECKING:
    from streamcore.consumer import Consumer
    from streamcore.store import Store

SIGNAL_NAME = "signal"


class Consuming:
    """The consumers of a store that this process has open, and what they share."""

    def __init__(self, store: Store) -> None:
        self.signal = open_signal(store.path, store.mode == "rw")
        self.heart = Heart(store, self.signal)
        self.waker = Waker()
        self._consumers: weakref.WeakSet[Consumer] = weakref.WeakSet()
        self._lock = threading.Lock()

    def add(self, consumer: Consumer) -> None:
        """Has a consumer closed with the store."""
        with self._lock:
            self._consumers.add(consumer)

    def close(self) -> list[BaseException]:
        """Closes the consumers and ends the threads; returns what went wrong."""
        with self._lock:
            consumers = list(self._consumers)
        failures: list[BaseException] = []
        for consumer in consumers:
            try:
                consumer.close()
            except (StreamcoreError, OSError) as error:
                failures.append(error)
        self.heart.stop()
        self.waker.stop()
        return failures


def open_signal(path: Path, writable: bool) -> _core.Signal:
    """The signal of the store in a folder; a reader of a store that has none gets one that nobody raises."""
    file = os.fsencode(path / SIGNAL_NAME)
    try:
        return _core.Signal(file, writable)
    except StorageError:
        if writable:
            raise
        return _core.Signal()


def raise_signal(path: Path) -> None:
    """Tells the consumers of all processes that topics changed, if there ever were consumers."""
    if (path / SIGNAL_NAME).exists():
        _core.Signal(os.fsencode(path / SIGNAL_NAME), True).set()
