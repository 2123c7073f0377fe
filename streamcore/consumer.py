"""Consumers: reading on, alone or as a member of a group.

A consumer has a position in each partition that it reads (`positions.py`), which is moved by what is fetched
(`fetcher.py`). Which partitions these are is up to `rebalancing.py`, and what it commits for its group to `commits.py`.
Here is what callers see: one lock around all of it, ways to ask for records, and waiting for more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from streamcore import _core, groups
from streamcore.assignment import Key
from streamcore.consumer_config import ConsumerConfig, Isolation, Start, check_count
from streamcore.errors import GroupError, StoreReadOnlyError, StreamcoreError, TopicNotFoundError
from streamcore.fetcher import Fetcher, empty_table
from streamcore.groups import CommittedOffset, Place, TopicPartition
from streamcore.positions import Positions
from streamcore.rebalancing import Callback, FullAssignment, GroupAssignment, Listener
from streamcore.transactions import OffsetsToCommit

if TYPE_CHECKING:
    from streamcore.dead_letters import Handler, Processed
    from streamcore.store import Store

Waits = list[tuple[_core.Topic, dict[int, int]]]  # see Fetcher.waits


@dataclasses.dataclass(frozen=True, slots=True)
class ConsumerMetrics:
    """What a consumer has done so far.

    offset_resets: how often a position lay outside the log, because records were deleted, and was set by `start`.
    """

    records: int = 0
    commits: int = 0
    rebalances: int = 0
    offset_resets: int = 0


class Consumer:
    """Reads topics on from a position; made by `Store.consumer`.

    Any thread may use it. It is iterable (`for` and `async for` block for new records), a context manager (`with` and
    `async with`), and closed with the store.
    """

    def __init__(
        self,
        store: Store,
        topics: Any,
        *,
        group: str | None,
        start: Start,
        isolation: Isolation,
        auto_commit: bool,
        member_timeout_ms: int,
        instance_id: str | None,
        auto_commit_interval_ms: int,
        on_assigned: Callback | None,
        on_revoked: Callback | None,
        on_lost: Callback | None,
    ) -> None:
        self.closed = True
        config = ConsumerConfig(
            group, start, isolation, auto_commit, member_timeout_ms, instance_id, auto_commit_interval_ms
        )
        if group is not None and store.mode == "r":
            raise StoreReadOnlyError("the store was opened with mode 'r': a group cannot be joined, leave it out")
        self._store = store
        self._subscription = groups.subscription_of(topics)
        groups.check_topics(store, self._subscription)
        self.group = group
        self._isolation = isolation
        self._lock = threading.RLock()
        self._local = _core.Signal()
        self._consuming = store.consuming
        self._positions = Positions()
        self._fetcher = Fetcher(self._positions, self._subscription, config)
        self._stream: weakref.ref[_core.RecordStream] | None = None  # weak, as it keeps this consumer
        self._group: GroupAssignment | None = None
        self._assignment: FullAssignment | GroupAssignment
        listener = Listener(self, self._positions, on_assigned, on_revoked, on_lost)
        parts = (store, self._subscription, config, self._positions, self._fetcher, listener)
        self.closed = False
        if group is None:
            self._assignment = FullAssignment(*parts)
            self._assignment.update()
        else:
            self._assignment = self._group = GroupAssignment(*parts, _weakly(self))
            self._group.join()
        self._consuming.add(self)

    def __repr__(self) -> str:
        named = ", ".join(self._subscription)
        return f"<Consumer of {named}{'' if self.group is None else f' in group {self.group!r}'}>"

    # ---- reading ----

    def poll(self, timeout_ms: float | None = 500, max_records: int = 500) -> list[_core.Record]:
        """The next records, at most `max_records`; waits for the first one, and returns [] when the time is over.

        timeout_ms: 0 does not wait, None waits for ever. The records of a partition come in their order.
        """
        check_count("max_records", max_records)
        deadline_s = _deadline(timeout_ms)
        while True:
            with self._lock:
                seen = self._local.count()
                self._update()
                found = self._fetcher.take(max_records)
                if found:
                    return found
                waits = self._fetcher.waits()
            left_ms = _left_ms(deadline_s)
            if left_ms == 0:
                return []
            self._wait(waits, seen, left_ms)

    def poll_arrow(self, timeout_ms: float | None = 500, max_bytes: int = 16 << 20) -> pa.Table:
        """The next records of one topic as a table, about `max_bytes` at most; no rows when the time is over.

        Columns: partition, offset, timestamp, key, value, headers; with several topics also `topic`. Buffers of batches
        that are not compressed are the mapped files. A batch that alone is larger than `max_bytes` is cut between rows.
        """
        check_count("max_bytes", max_bytes)
        deadline_s = _deadline(timeout_ms)
        while True:
            with self._lock:
                seen = self._local.count()
                self._update()
                found = self._fetcher.take_arrow(max_bytes)
                if found is not None:
                    return found
                waits = self._fetcher.waits()
            left_ms = _left_ms(deadline_s)
            if left_ms == 0:
                break
            self._wait(waits, seen, left_ms)
        with self._lock:
            topic = next(iter(self._positions.topics.values()), None)
        return empty_table(topic, self._subscription)

    async def poll_async(self, timeout_ms: float | None = 500, max_records: int = 500) -> list[_core.Record]:
        """As `poll`, in an event loop: no thread waits for it alone."""
        check_count("max_records", max_records)
        deadline_s = _deadline(timeout_ms)
        await asyncio.sleep(0)  # a consumer that always finds something leaves room for others
        while True:
            with self._lock:
                seen = self._local.count()
                self._update()
                cold = self._fetcher.to_fetch(in_loop=False)
                found = [] if cold is not None else self._fetcher.take(max_records)
                if found:
                    return found
                waits = self._fetcher.waits()
            left_ms = _left_ms(deadline_s)
            if cold is not None:
                await asyncio.to_thread(cold)
                continue
            if left_ms == 0:
                return []
            await self._wait_async(waits, seen, left_ms)

    def __iter__(self) -> _core.RecordStream:
        """Record objects, for ever: waits for new ones, and ends when another thread closes the consumer."""
        with self._lock:  # iterations that go on at the same time share one stream
            stream = None if self._stream is None else self._stream()
            if stream is None:
                stream = _core.RecordStream(self._next_records)
                self._stream = weakref.ref(stream)
            return stream

    def __aiter__(self) -> _AsyncRecords:
        """The same in an event loop; no thread waits for it alone."""
        return _AsyncRecords(self, iter(self))

    def _next_records(self, ended: _core.Records | None) -> _core.Records | None:
        """For iteration: where the next records come from, when there are some; None when the consumer is closed."""
        while True:
            with self._lock:
                seen = self._local.count()
                if self.closed:
                    return None
                self._begin_advance(ended)
                records = self._fetcher.next_records(in_loop=False)
                if records is not None:
                    return records
                waits = self._fetcher.waits()
            self._wait(waits, seen, None)

    async def next_records_async(self, ended: _core.Records | None) -> _core.Records | None:
        """The same in an event loop; for `async for`."""
        await asyncio.sleep(0)
        while True:
            with self._lock:
                seen = self._local.count()
                if self.closed:
                    return None
                self._begin_advance(ended)
                cold = self._fetcher.to_fetch(in_loop=True)
                records = None if cold is not None else self._fetcher.next_records(in_loop=True)
                if records is not None:
                    return records
                waits = self._fetcher.waits()
            if cold is not None:
                await asyncio.to_thread(cold)
            else:
                await self._wait_async(waits, seen, None)

    def _begin_advance(self, ended: _core.Records | None) -> None:
        self._fetcher.finish(ended)
        self._update()

    def _update(self) -> None:
        """Does what must be done before records are handed out. What was handed out before counts as processed."""
        self._check_open()
        self._assignment.update()

    def _check_open(self) -> None:
        if self.closed:
            raise StreamcoreError("the consumer is closed")
        self._store.check_open()

    # ---- waiting ----

    def _wait(self, waits: Waits, seen: int, timeout_ms: float | None) -> None:
        watches = [(self._local, seen), *self._assignment.watches()]
        given = [(core, list(ends), list(ends.values())) for core, ends in waits]
        try:
            _core.wait_many(given, watches, self._assignment.patience_ms(timeout_ms, watching=True))
        except (StreamcoreError, TopicNotFoundError):
            with self._lock:  # closed or deleted: what follows knows what to say
                self._check_open()

    async def _wait_async(self, waits: Waits, seen: int, timeout_ms: float | None) -> None:
        watching = len(waits) > 0 and not groups.is_plural(self._subscription)
        timeout_ms = self._assignment.patience_ms(timeout_ms, watching=watching)
        await self._consuming.waker.wait(waits, self._local, seen, None if timeout_ms is None else timeout_ms / 1000)

    def _notify(self) -> None:
        """The group changed, a commit is due, or somebody closes: ends waits and the fetch. Called by other threads."""
        self._fetcher.interrupt()
        self._wake()

    def _wake(self) -> None:
        self._local.set()
        self._consuming.waker.nudge()

    # ---- commits ----

    def commit(self, offsets: Mapping[tuple[str, int], Any] | None = None, metadata: str = "") -> None:
        """Stores how far the group has come: by default the positions, behind all records handed out so far.

        offsets: {(topic, partition): the offset of the next record to read, or (offset, metadata)}. metadata: a text
        that is kept with each. In a store with durability "disk" it is on the drive when this returns.

        Raises FencedError when a partition was given to another member meanwhile, ValueError for an offset beyond the
        end, GroupError without a group.
        """
        with self._lock:
            commits = self._in_group("commit").commits
            self._begin()
            commits.write(commits.current(metadata) if offsets is None else commits.checked(offsets, metadata))

    async def commit_async(self, offsets: Mapping[tuple[str, int], Any] | None = None, metadata: str = "") -> None:
        """As `commit`, in a thread of the event loop's pool."""
        if offsets is None:
            with self._lock:
                self._fetcher.settle()
                given = self._positions.offsets
                offsets = {key: given[self._key(*key)] for key in self._positions.named(given)}
        await asyncio.to_thread(self.commit, offsets, metadata)

    def offsets_to_commit(self) -> OffsetsToCommit:
        """What a transaction commits for this consumer: the group, who asks, {(topic id, partition): (offset, text)}.

        Raises FencedError when the member was replaced, GroupError without a group.
        """
        with self._lock:
            group = self._in_group("commit")
            self._begin()
            return group.commits.to_commit()

    def apply_offsets(self, connection: sqlite3.Connection, commit: OffsetsToCommit) -> None:
        """Writes what `offsets_to_commit` gave within a transaction of the catalog. Raises FencedError to refuse."""
        self._in_group("commit").commits.apply(connection, commit)

    def _in_group(self, what: str) -> GroupAssignment:
        if self._group is None:
            raise GroupError(
                f"a consumer without a group cannot {what}: give one, as in store.consumer(..., group=...)"
            )
        return self._group

    # ---- positions ----

    def _begin(self) -> None:
        self._check_open()
        self._assignment.begin()

    def _key(self, topic: str, partition: int) -> Key:
        self._begin()
        return self._positions.key_of(topic, partition)

    @property
    def assignment(self) -> list[TopicPartition]:
        """The partitions that this consumer reads."""
        with self._lock:
            self._begin()
            return self._positions.named(self._positions.offsets)

    @property
    def member_id(self) -> str | None:
        """The id of this consumer in its group, as `Group.members` shows it; another one after it was lost."""
        return None if self._group is None else self._group.member_id

    @property
    def metrics(self) -> ConsumerMetrics:
        """What this consumer has done so far; `records` leaves out those of an iteration."""
        group, fetcher = self._group, self._fetcher
        commits, rebalances = (0, 0) if group is None else (group.commits.count, group.rebalances)
        return ConsumerMetrics(fetcher.records, commits, rebalances, fetcher.offset_resets)

    def position(self, topic: str, partition: int) -> int:
        """The offset of the next record that is handed out. ValueError for a partition that is not assigned."""
        with self._lock:
            key = self._key(topic, partition)
            self._fetcher.settle()
            return self._positions.offsets[key]

    def seek(self, topic: str, partition: int, to: Place) -> None:
        """Goes on at an offset, an aware datetime (the first record not older), "earliest" or "latest".

        Raises OffsetOutOfRangeError for an offset outside the log, ValueError for a partition that is not assigned.
        """
        with self._lock:
            key = self._key(topic, partition)
            found = self._positions.topics[key[0]]
            self._fetcher.seek(key, groups.resolve_place(found, partition, to, "to", self._isolation))
            self._wake()

    def committed(self, topic: str, partition: int) -> CommittedOffset | None:
        """The offset that the group has committed, with its metadata; None when there is none."""
        with self._lock:
            self._check_open()
            return self._in_group("have committed offsets").commits.committed(topic, partition)

    def lag(self) -> dict[TopicPartition, int]:
        """How many offsets lie between the position and the end, for each assigned partition."""
        with self._lock:
            self._begin()
            self._fetcher.settle()
            return self._positions.lag(self._isolation)

    def pause(self, topic: str | None = None, partition: int | None = None) -> None:
        """Hands out no more records of a partition, of a topic or of all, and keeps them assigned."""
        with self._lock:
            self._positions.paused |= self._chosen(topic, partition)
            self._fetcher.replan()

    def resume(self, topic: str | None = None, partition: int | None = None) -> None:
        """Takes `pause` back."""
        with self._lock:
            self._positions.paused -= self._chosen(topic, partition)
            self._fetcher.replan()
            self._wake()

    @property
    def paused(self) -> list[TopicPartition]:
        """The assigned partitions that are paused."""
        with self._lock:
            return self._positions.named(self._positions.paused)

    def _chosen(self, topic: str | None, partition: int | None) -> set[Key]:
        if topic is None and partition is not None:
            raise TypeError("partition is given and topic is not")
        self._begin()
        return self._positions.chosen(topic, partition)

    # ---- processing ----

    def process(self, handler: Handler, **settings: Any) -> Processed:
        """Calls `handler(record)` for each record, with retries, and sends those that fail to a dead-letter topic.

        The settings are those of `streamcore.dead_letters.process`.
        """
        from streamcore.dead_letters import process

        return process(self, handler, **settings)

    @property
    def store(self) -> Store:
        """The store that it reads."""
        return self._store

    @property
    def subscription(self) -> list[str]:
        """What it was asked to read: names, globs, and compiled patterns as "/…/"."""
        return list(self._subscription)

    # ---- the end ----

    def close(self) -> None:
        """Leaves the group, whose other members take over, and ends waits. Safe to call twice, from any thread.

        With `auto_commit` commits the positions first; but while an exception is on its way (in an `except` or
        `finally` block), what was handed out last counts as not processed. A static member (`instance_id`) stays in
        the group until its timeout.
        """
        self._close(failed=sys.exc_info()[0] is not None)

    def _close(self, *, failed: bool) -> None:
        with self._lock:
            if self.closed:
                return
            try:
                if not failed:
                    self._fetcher.drop()
                if self._group is not None:
                    self._group.leave(failed=failed)
            finally:
                self.closed = True
                self._fetcher.drop()
                self._wake()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close(failed=error is not None)

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close, failed=error is not None)

    def __del__(self) -> None:
        if not self.closed and self._group is not None:
            self._group.abandon()


class _AsyncRecords:
    """`async for`: a record at a time, without a thread."""

    __slots__ = ("_consumer", "_stream")

    def __init__(self, consumer: Consumer, stream: _core.RecordStream) -> None:
        self._consumer = consumer
        self._stream = stream

    def __aiter__(self) -> _AsyncRecords:
        return self

    async def __anext__(self) -> _core.Record:
        while True:
            record = self._stream.take()
            if record is not None:
                return record
            records = await self._consumer.next_records_async(self._stream.records)
            if records is None:
                raise StopAsyncIteration
            self._stream.records = records


def _weakly(consumer: Consumer) -> Callable[[], None]:
    """Notifies a consumer without keeping it: the thread that tells it must not."""
    notify = weakref.WeakMethod(consumer._notify)

    def tell() -> None:
        found = notify()
        if found is not None:
            found()

    return tell


def _deadline(timeout_ms: Any) -> float:
    if timeout_ms is None:
        return math.inf
    if not isinstance(timeout_ms, (int, float)) or isinstance(timeout_ms, bool):
        raise TypeError(f"timeout_ms is {timeout_ms!r}; a number or None is needed")
    if timeout_ms < 0:
        raise ValueError(f"timeout_ms is {timeout_ms}; 0 or more, or None, is allowed")
    return time.monotonic() + timeout_ms / 1000 if timeout_ms else 0.0


def _left_ms(deadline_s: float) -> float | None:
    return None if deadline_s == math.inf else max(0.0, (deadline_s - time.monotonic()) * 1000)
