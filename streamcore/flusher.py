"""The background flush of a store: what was appended is on the drive soon."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable

from streamcore import _core
from streamcore.errors import StreamcoreError, TopicNotFoundError
from streamcore.topic_handle import TopicHandle

FLUSH_INTERVAL_S = 0.5
NOTE_AFTER_S = 10.0
_log = logging.getLogger("streamcore")


class Flusher:
    """One thread per store, started by the first append; idle without appends.

    What was appended is flushed within a second. When nothing more comes for a while, the log itself notes that it is
    durable: later damage is then told from an append that was in flight.
    """

    def __init__(self, journal: _core.Journal | None) -> None:
        self._journal = journal
        self._topics: set[TopicHandle] = set()
        self._resting: weakref.WeakKeyDictionary[TopicHandle, float] = weakref.WeakKeyDictionary()  # since when
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def add(self, topic: TopicHandle) -> None:
        with self._condition:
            self._topics.add(topic)
            alive = self._thread is not None and self._thread.is_alive()  # ^C may have come while it was started
            if not alive and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="streamcore-flush", daemon=True)
                self._thread.start()
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(
                    lambda: self._topics or self._stopping, NOTE_AFTER_S if self._resting else None
                )
                if self._topics and not self._stopping:
                    self._condition.wait_for(lambda: self._stopping, FLUSH_INTERVAL_S)
                if self._stopping:
                    return
                topics, self._topics = self._topics, set()
            self._call(topics, TopicHandle.flush_appended)
            self._checkpoint()
            self._resting.update(dict.fromkeys(topics, time.monotonic()))
            self._note()
            del topics  # keeps no store alive that everybody else forgot

    def _checkpoint(self) -> None:
        try:
            if self._journal is not None:
                self._journal.checkpoint()
        except StreamcoreError as error:
            _log.warning("the checkpoint of the journal failed: %s", error)

    def _note(self) -> None:
        long_ago = time.monotonic() - NOTE_AFTER_S
        topics = {topic for topic, since in self._resting.items() if since <= long_ago}
        for topic in topics:
            del self._resting[topic]
        self._call(topics, TopicHandle.note_durable)

    @staticmethod
    def _call(topics: set[TopicHandle], function: Callable[[TopicHandle], None]) -> None:
        for topic in topics:
            try:
                function(topic)
            except TopicNotFoundError:
                continue
            except StreamcoreError as error:
                # the partition is poisoned by now: the next append raises this to the caller
                _log.warning("the background flush of %s failed: %s", topic.name, error)

    def stop(self) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join()
