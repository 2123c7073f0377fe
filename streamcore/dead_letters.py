"""Processing records one by one, with retries, and a topic for those that cannot be processed.

A record whose handler fails is tried again after a pause, then goes to the dead-letter topic with what went wrong in
its headers, and its partition moves on. Heartbeats go on during the pause.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from streamcore import _core
from streamcore.config import check_topic_name
from streamcore.errors import FencedError, StreamcoreError, TopicExistsError, TopicNotFoundError
from streamcore.groups import matching

if TYPE_CHECKING:
    from streamcore.consumer import Consumer
    from streamcore.store import Store
    from streamcore.topic import Topic
    from streamcore.transactions import Transaction

Handler = Callable[[_core.Record], object]

ERROR, MESSAGE = "dead-letter.error", "dead-letter.message"
TOPIC, PARTITION, OFFSET = "dead-letter.topic", "dead-letter.partition", "dead-letter.offset"
TIMESTAMP, ATTEMPTS, GROUP = "dead-letter.timestamp", "dead-letter.attempts", "dead-letter.group"
HEADERS = (ERROR, MESSAGE, TOPIC, PARTITION, OFFSET, TIMESTAMP, ATTEMPTS, GROUP)

_MESSAGE_MAX = 4096
_COMMIT_INTERVAL_S = 1.0
_log = logging.getLogger("streamcore.consumer")


@dataclasses.dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts: a random part ("full jitter") of `first_ms`, and of `factor` times more each time.

    max_ms: the longest. See "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    first_ms: float = 100.0
    factor: float = 2.0
    max_ms: float = 10_000.0

    def __post_init__(self) -> None:
        if self.first_ms < 0 or self.factor < 1 or self.max_ms < 0:
            raise ValueError(f"{self} is no backoff: first_ms and max_ms are 0 or more, factor is 1 or more")

    def pause_ms(self, attempt: int) -> float:
        """The pause after an attempt, counted from 1."""
        longest = self.max_ms if attempt > 1000 else min(self.max_ms, self.first_ms * self.factor ** (attempt - 1))
        return random.uniform(0, longest)


@dataclasses.dataclass(slots=True)
class Processed:
    """What `Consumer.process` did: records whose handler returned, records sent to the dead-letter topic, retries."""

    records: int = 0
    dead: int = 0
    retries: int = 0


def process(
    consumer: Consumer,
    handler: Handler,
    *,
    retries: int = 3,
    backoff: Backoff | None = None,
    dead_letter: str | None = None,
    transactional_id: str | None = None,
    max_records: int = 500,
    timeout_ms: float | None = None,
    stop: Callable[[], bool] | None = None,
) -> Processed:
    """Calls `handler(record)` for each record and commits what is done; returns what was done when it ends.

    A handler that raises is called again, `retries` times at most, after pauses as `backoff` says. Then the record goes
    to the topic `dead_letter`, which is made when absent with as many partitions as the record's topic, with headers
    that say what happened; without one the last exception is raised, and the record is handed out again. Records of one
    partition are handled in their order. timeout_ms: ends when nothing came for so long; None: goes on until the
    consumer is closed or `stop()` is true.

    Raises ValueError for a dead-letter topic that the consumer reads itself, that is typed, or that is compacted.

    At least once: what was handled behind the last commit is handled again after a crash. With `transactional_id` the
    dead letters and the commits are one transaction (`Store.transaction`), so each record is dead-lettered once.
    """
    if not callable(handler):
        raise TypeError(f"handler is {type(handler).__name__}; something callable with a record is needed")
    if not isinstance(retries, int) or isinstance(retries, bool):
        raise TypeError(f"retries is {retries!r}; an int is needed")
    if retries < 0:
        raise ValueError(f"retries is {retries}; 0 or more is allowed")
    if transactional_id is not None and consumer.group is None:
        raise ValueError("transactional_id needs a consumer with a group")
    if dead_letter is not None:
        _check_dead_letter(consumer, dead_letter)
    run = _Run(consumer, handler, retries, backoff or Backoff(), dead_letter, transactional_id, stop or (lambda: False))
    return run.until_idle(max_records, timeout_ms)


def _check_dead_letter(consumer: Consumer, name: str) -> None:
    """Raises ValueError for a topic that cannot keep dead letters: before there is one that needs it."""
    check_topic_name(name)
    if matching(consumer.subscription, {name: None}):
        raise ValueError(f"dead_letter is {name!r}, which this consumer reads: its records would come back for ever")
    try:
        topic = consumer.store.topic(name)
    except TopicNotFoundError:
        return
    if topic.schema is not None:
        raise ValueError(f"dead_letter is {name!r}, a typed topic; a plain one is needed, or none: then it is made")
    if topic.config.compacts:
        raise ValueError(f"dead_letter is {name!r}, of which compaction would drop all but the latest of each key")


class _Run:
    def __init__(
        self,
        consumer: Consumer,
        handler: Handler,
        retries: int,
        backoff: Backoff,
        dead_letter: str | None,
        transactional_id: str | None,
        stop: Callable[[], bool],
    ) -> None:
        self._consumer = consumer
        self._handler = handler
        self._retries = retries
        self._backoff = backoff
        self._dead_letter = dead_letter
        self._transactional_id = transactional_id
        self._stop = stop
        self._done = Processed()
        self._committed_at_s = time.monotonic()
        self._uncommitted = False
        self._sleeper = threading.Event()

    def until_idle(self, max_records: int, timeout_ms: float | None) -> Processed:
        """Runs until nothing comes for `timeout_ms`, the consumer is closed, or `stop()`."""
        piece_ms = 200.0 if timeout_ms is None else min(timeout_ms, 200.0)
        heard_s = time.monotonic()
        while not self._stop() and not self._consumer.closed:
            try:
                records = self._consumer.poll(piece_ms, max_records)
            except StreamcoreError:
                if self._consumer.closed:  # by another thread
                    break
                raise
            if records:
                heard_s = time.monotonic()
                self._handle_all(records)
            elif timeout_ms is not None and (time.monotonic() - heard_s) * 1000 >= timeout_ms:
                break
            self._commit_now_and_then(idle=not records)
        self._commit_now_and_then(idle=True)
        return self._done

    def _handle_all(self, records: list[_core.Record]) -> None:
        """All of what a poll gave; what is not handled because of an error is handed out again."""
        handled = 0
        try:
            with self._transaction() as transaction:
                try:
                    for record in records:
                        self._handle(record, transaction)
                        handled += 1
                        self._uncommitted = True
                        if self._stop():
                            break
                finally:
                    self._hand_out_again(records[handled:])
                if transaction is not None:
                    transaction.commit_offsets(self._consumer)
                    self._uncommitted = False
        except BaseException:
            if self._transactional_id is not None:  # none of it is done
                self._uncommitted = False
                self._hand_out_again(records)
            else:
                with contextlib.suppress(StreamcoreError, OSError):
                    self._commit_now_and_then(idle=True)
            raise

    def _hand_out_again(self, records: list[_core.Record]) -> None:
        first: dict[tuple[str, int], int] = {}
        for record in records:
            first.setdefault((record.topic or "", record.partition), record.offset)
        for (topic, partition), offset in first.items():
            with contextlib.suppress(ValueError, StreamcoreError):  # not ours any more, or deleted
                self._consumer.seek(topic, partition, offset)

    def _handle(self, record: _core.Record, transaction: Transaction | None) -> None:
        attempt = 1
        while True:
            try:
                self._handler(record)
                self._done.records += 1
                return
            except Exception as error:
                if attempt <= self._retries and not self._stop():
                    where = (record.topic, record.partition, record.offset)
                    _log.debug("attempt %d of %s:%d:%d failed: %r", attempt, *where, error)
                    self._done.retries += 1
                    self._sleeper.wait(self._backoff.pause_ms(attempt) / 1000)
                    attempt += 1
                    continue
                if self._dead_letter is None or attempt <= self._retries:
                    raise
                self._bury(record, error, attempt, transaction)
                return

    def _bury(self, record: _core.Record, error: Exception, attempts: int, transaction: Transaction | None) -> None:
        assert self._dead_letter is not None
        topic = dead_letter_topic(self._consumer.store, self._dead_letter, record)
        headers = [*record.headers, *_describe(record, error, attempts, self._consumer.group)]
        value = record.value if isinstance(record.value, bytes) or record.value is None else _as_json(record.value)
        partition = record.partition if record.partition < topic.partition_count else None
        append = topic.append if transaction is None else partial(transaction.append, topic)
        append([value], keys=[record.key], timestamps=record.timestamp_ms, headers=[headers], partition=partition)
        self._done.dead += 1
        _log.warning(
            "record %s:%d:%d could not be processed in %d attempts and went to %s: %r",
            record.topic, record.partition, record.offset, attempts, self._dead_letter, error,
        )  # fmt: skip

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Transaction | None]:
        if self._transactional_id is None:
            yield None
            return
        with self._consumer.store.transaction(self._transactional_id) as transaction:
            yield transaction

    def _commit_now_and_then(self, *, idle: bool) -> None:
        now_s = time.monotonic()
        due = idle or now_s - self._committed_at_s >= _COMMIT_INTERVAL_S
        if not due or not self._uncommitted or self._consumer.group is None or self._consumer.closed:
            return
        try:
            self._consumer.commit()
        except FencedError as error:  # others handle it again: at least once
            _log.warning("a commit came too late: %s", error)
        self._committed_at_s = now_s
        self._uncommitted = False


def dead_letter_topic(store: Store, name: str, record: _core.Record) -> Topic:
    """The topic of that name; made, with as many partitions as the record's topic has, when there is none."""
    try:
        return store.topic(name)
    except TopicNotFoundError:
        partitions = store.topic(record.topic).partition_count if record.topic else 1
    with contextlib.suppress(TopicExistsError):  # another process was first
        store.create_topic(name, partitions=partitions)
        _log.info("made the dead-letter topic %s with %d partitions", name, partitions)
    return store.topic(name)


def _describe(record: _core.Record, error: Exception, attempts: int, group: str | None) -> list[tuple[str, bytes]]:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    found = {
        ERROR: name,
        MESSAGE: str(error)[:_MESSAGE_MAX],
        TOPIC: record.topic or "",
        PARTITION: str(record.partition),
        OFFSET: str(record.offset),
        TIMESTAMP: str(record.timestamp_ms),
        ATTEMPTS: str(attempts),
        GROUP: group or "",
    }
    return [(key, text.encode("utf-8", "backslashreplace")) for key, text in found.items()]


def _as_json(value: Any) -> bytes:
    """A typed value: a dead-letter topic is plain, so that it takes records of any topic."""
    import json

    return json.dumps(value, default=str, ensure_ascii=False).encode()


def is_dead_letter(record: _core.Record) -> bool:
    """Whether a record was sent here by `process`."""
    return any(key == ERROR for key, _ in record.headers)


def described(record: _core.Record) -> dict[str, str]:
    """What a dead letter's headers say, by name without the prefix."""
    found = {key: (value or b"").decode("utf-8", "backslashreplace") for key, value in record.headers if key in HEADERS}
    return {key.removeprefix("dead-letter."): text for key, text in found.items()}


def replay(store: Store, record: _core.Record, to: str | None = None) -> str:
    """Appends a dead letter to the topic that it came from, or to `to`, without what `process` added; its name.

    A record of a typed topic cannot go back by itself: its value here is JSON.
    """
    origin = described(record)
    name = to or origin.get("topic", "")
    if not name:
        raise ValueError(f"record {record.partition}:{record.offset} is no dead letter: say where it shall go")
    topic = store.topic(name)
    if topic.schema is not None:
        raise ValueError(f"topic {name!r} is typed, and a dead letter holds bytes: it cannot be replayed there")
    headers = [(key, value) for key, value in record.headers if key not in HEADERS]
    partition = int(origin["partition"]) if to is None and origin.get("partition", "").isdigit() else None
    if partition is not None and partition >= topic.partition_count:
        partition = None
    topic.append(
        [record.value],
        keys=[record.key],
        timestamps=record.timestamp_ms,
        headers=[headers or None],
        partition=partition,
    )
    return name
