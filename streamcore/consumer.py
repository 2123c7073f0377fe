"""Consumers: reading on, alone or as a member of a group.

A consumer has a position in each partition that it reads: the offset of the next record that it hands out. All ways of
reading take from one *fetch*, a scan of a piece of one topic's partitions, and move the positions: to behind the last
record that was handed out, and at the end of the fetch to its end, which may lie behind transaction markers and offsets
that compaction left without a record.

What a rebalance asks for is done by the consumer when it is asked for records next, in the caller's thread.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import logging
import math
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import pyarrow as pa

from streamcore import _core, groups
from streamcore.assignment import Key
from streamcore.columns import microseconds
from streamcore.errors import (
    FencedError,
    GroupError,
    OffsetOutOfRangeError,
    StoreReadOnlyError,
    StreamcoreError,
    TopicNotFoundError,
)
from streamcore.groups import CommittedOffset, Place, TopicPartition
from streamcore.membership import Membership
from streamcore.schema import RECORD_COLUMNS
from streamcore.transactions import OffsetsToCommit

if TYPE_CHECKING:
    from streamcore.dead_letters import Handler, Processed
    from streamcore.store import Store
    from streamcore.topic import Topic

Start = datetime.datetime | Literal["earliest", "latest"]
Isolation = Literal["committed", "uncommitted"]
Callback = Callable[["Consumer", list[TopicPartition]], None]

_FETCH_OFFSETS = 16384  # of a partition at a time, so that the others get their turn
_FETCH_OFFSETS_ASYNC = 1024  # and the event loop
_AUTO_COMMIT_MS = 5000  # as Apache Kafka's auto.commit.interval.ms
_MEMBER_TIMEOUT_MS_MIN = 50
_READER_WAIT_MS = 500.0  # nobody signals to a store that was opened for reading that there are new partitions
_log = logging.getLogger("streamcore.consumer")


@dataclasses.dataclass(frozen=True, slots=True)
class ConsumerMetrics:
    """What a consumer has done so far.

    offset_resets: how often a position lay outside the log, because records were deleted, and was set by `start`.
    """

    records: int = 0
    commits: int = 0
    rebalances: int = 0
    offset_resets: int = 0


class _Fetch:
    """A scan of [start, end) of some partitions of a topic, from which records are taken."""

    __slots__ = ("legs", "records", "stopped", "topic_id")

    def __init__(self, topic_id: str, legs: dict[int, tuple[int, int]], records: _core.Records) -> None:
        self.topic_id = topic_id
        self.legs = legs  # in the order in which they are read
        self.records = records
        self.stopped = False

    def stop(self) -> None:
        """No more records come from it, from this moment on, in any thread."""
        self.stopped = True
        self.records.stop()

    def positions(self, *, ended: bool) -> dict[Key, int]:
        """Where the partitions stand that it has reached."""
        found: dict[Key, int] = {}
        place = None if ended else self.records.place()
        if not ended and place is None:
            return found
        for partition, (_, end) in self.legs.items():
            if place is not None and partition == place[0]:
                found[self.topic_id, partition] = place[1]
                break
            found[self.topic_id, partition] = end
        return found


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
        _check_arguments(group, start, isolation, auto_commit, member_timeout_ms, instance_id, auto_commit_interval_ms)
        if group is not None and store.mode == "r":
            raise StoreReadOnlyError("the store was opened with mode 'r': a group cannot be joined, leave it out")
        self._store = store
        self._subscription = groups.subscription_of(topics)
        groups.check_topics(store, self._subscription)
        self.group = group
        self._start = start
        self._isolation = isolation
        self._auto_commit = auto_commit
        self._commit_interval_s = auto_commit_interval_ms / 1000
        self._commit_at_s = time.monotonic() + self._commit_interval_s
        self._callbacks = {"assigned": on_assigned, "revoked": on_revoked, "lost": on_lost}
        self._lock = threading.RLock()
        self._local = _core.Signal()
        self._consuming = store.consuming
        self._topics: dict[str, Topic] = {}
        self._positions: dict[Key, int] = {}
        self._ends: dict[Key, int] = {}  # end offsets as they were when there was nothing to read
        self._paused: set[Key] = set()
        self._order: collections.deque[str] = collections.deque()
        self._active: dict[str, list[int]] = {}
        self._fetch: _Fetch | None = None
        self._before_poll: dict[Key, int] | None = None
        self._stream: weakref.ref[_core.RecordStream] | None = None  # weak, as it keeps this consumer
        self._counts = collections.Counter[str]()
        self._topics_seen: int | None = None
        self._membership: Membership | None = None
        self.closed = False
        if group is None:
            self._refresh_topics()
        else:
            self._join(group, member_timeout_ms, instance_id)
        self._consuming.add(self)

    def _join(self, group: str, timeout_ms: int, instance_id: str | None) -> None:
        notify = weakref.WeakMethod(self._notify)

        def tell() -> None:
            found = notify()
            if found is not None:
                found()

        self._membership = Membership(self._store, group, self._subscription, timeout_ms, instance_id, tell)
        self._membership.join()
        self._consuming.heart.add(self._membership)
        self._plan_commit()

    def __repr__(self) -> str:
        named = ", ".join(self._subscription)
        return f"<Consumer of {named}{'' if self.group is None else f' in group {self.group!r}'}>"

    # ---- reading ----

    def poll(self, timeout_ms: float | None = 500, max_records: int = 500) -> list[_core.Record]:
        """The next records, at most `max_records`; waits for the first one, and returns [] when the time is over.

        timeout_ms: 0 does not wait, None waits for ever. The records of a partition come in their order.
        """
        _check_count("max_records", max_records)
        deadline_s = _deadline(timeout_ms)
        while True:
            with self._lock:
                seen = self._local.count()
                self._ready()
                found = self._take(max_records)
                if found:
                    return found
                waits = self._waits()
            left_ms = _left_ms(deadline_s)
            if left_ms == 0:
                return []
            self._wait(waits, seen, left_ms)

    def poll_arrow(self, timeout_ms: float | None = 500, max_bytes: int = 16 << 20) -> pa.Table:
        """The next records of one topic as a table, about `max_bytes` at most; no rows when the time is over.

        Columns: partition, offset, timestamp, key, value, headers; with several topics also `topic`. Buffers of batches
        that are not compressed are the mapped files. A batch that alone is larger than `max_bytes` is cut between rows.
        """
        _check_count("max_bytes", max_bytes)
        deadline_s = _deadline(timeout_ms)
        while True:
            with self._lock:
                seen = self._local.count()
                self._ready()
                found = self._take_arrow(max_bytes)
                if found is not None:
                    return found
                waits = self._waits()
            left_ms = _left_ms(deadline_s)
            if left_ms == 0:
                return self._empty_table()
            self._wait(waits, seen, left_ms)

    async def poll_async(self, timeout_ms: float | None = 500, max_records: int = 500) -> list[_core.Record]:
        """As `poll`, in an event loop: no thread waits for it alone."""
        _check_count("max_records", max_records)
        deadline_s = _deadline(timeout_ms)
        await asyncio.sleep(0)  # a consumer that always finds something leaves room for others
        while True:
            with self._lock:
                seen = self._local.count()
                self._ready()
                found = self._take(max_records)
                if found:
                    return found
                waits = self._waits()
            left_ms = _left_ms(deadline_s)
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
                records = self._advance(ended, _FETCH_OFFSETS)
                if records is not None:
                    return records
                waits = self._waits()
            self._wait(waits, seen, None)

    async def next_records_async(self, ended: _core.Records | None) -> _core.Records | None:
        """The same in an event loop; for `async for`."""
        await asyncio.sleep(0)
        while True:
            with self._lock:
                seen = self._local.count()
                if self.closed:
                    return None
                records = self._advance(ended, _FETCH_OFFSETS_ASYNC)
                if records is not None:
                    return records
                waits = self._waits()
            await self._wait_async(waits, seen, None)

    def _advance(self, ended: _core.Records | None, offsets: int) -> _core.Records | None:
        fetch = self._fetch
        if fetch is not None and fetch.records is ended:
            self._settle(ended=not fetch.stopped)
        self._before_poll = None
        self._ready()
        if self._fetch is None:
            self._fetch = self._next_fetch(offsets)
        return None if self._fetch is None else self._fetch.records

    def _take(self, count: int) -> list[_core.Record]:
        found: list[_core.Record] = []
        before = None
        while len(found) < count:
            if self._fetch is None:
                self._fetch = self._next_fetch(_FETCH_OFFSETS)
            fetch = self._fetch
            if fetch is None:
                break
            if before is None and self._auto_commit:
                self._settle()
                before = dict(self._positions)
            wanted = count - len(found)
            try:
                records = fetch.records.take(wanted)
            except BaseException:
                self._drop_fetch()
                if found:
                    break
                raise
            found += records
            if fetch.records.failure is not None:  # behind these records: it is raised by the next poll
                self._drop_fetch()
                break
            if len(records) < wanted:
                self._settle(ended=not fetch.stopped)
        if found:
            self._before_poll = before
            self._counts["records"] += len(found)
        return found

    def _next_fetch(self, offsets: int) -> _Fetch | None:
        """The next piece of the next topic that has something."""
        for _ in range(len(self._order)):
            topic_id = self._order[0]
            self._order.rotate(-1)
            legs = self._legs(topic_id, offsets)
            if not legs:
                continue
            topic = self._topics[topic_id]
            try:
                scan = topic.scan(
                    start={partition: leg[0] for partition, leg in legs.items()},
                    end={partition: leg[1] for partition, leg in legs.items()},
                    isolation=self._isolation,
                )
                # without bounds on time a scan iterates by the core's own iterator
                return _Fetch(topic_id, legs, cast(_core.Records, iter(scan)))
            except OffsetOutOfRangeError:  # records were deleted just now
                self._order.rotate(1)
        return None

    def _legs(self, topic_id: str, offsets: int) -> dict[int, tuple[int, int]]:
        """What can be read of a topic now: {partition: (position, end)}, in the order of partitions."""
        topic = self._topics[topic_id]
        legs = {}
        try:
            bounds = topic.bounds(self._active[topic_id], self._isolation)
        except TopicNotFoundError:
            if topic.name in self._subscription:
                raise
            self._forget_topic(topic_id)
            return {}
        for partition, (start, readable, end) in bounds.items():
            key = (topic_id, partition)
            position = self._positions[key]
            if not start <= position <= end:
                position = self._reset_position(topic, partition, position, start, end)
            self._ends[key] = end
            if position < readable:
                legs[partition] = (position, min(readable, position + offsets))
        return legs

    def _reset_position(self, topic: Topic, partition: int, position: int, start: int, end: int) -> int:
        to: Place = "earliest" if isinstance(self._start, datetime.datetime) else self._start
        self._counts["offset_resets"] += 1
        found = self._positions[topic.id, partition] = start if to == "earliest" else end
        _log.warning(
            "the position %d in partition %d of %s lies outside the log, which has offsets %d to %d: going on at %d",
            position, partition, topic.name, start, end, found,
        )  # fmt: skip
        return found

    def _settle(self, *, ended: bool = False) -> None:
        """Brings the positions up to what was handed out. `ended`: the fetch is used up."""
        fetch = self._fetch
        if fetch is None:
            return
        for key, position in fetch.positions(ended=ended).items():
            if key in self._positions:
                self._positions[key] = position
        if ended or fetch.stopped:
            self._fetch = None

    def _drop_fetch(self) -> None:
        fetch = self._fetch
        if fetch is not None:
            fetch.stop()
            self._settle()

    def _take_arrow(self, max_bytes: int) -> pa.Table | None:
        self._drop_fetch()
        self._before_poll = dict(self._positions) if self._auto_commit else None
        for _ in range(len(self._order)):
            topic_id = self._order[0]
            self._order.rotate(-1)
            while legs := self._legs(topic_id, sys.maxsize):
                topic = self._topics[topic_id]
                try:
                    batches, place = _read_batches(topic, legs, self._isolation, max_bytes)
                except OffsetOutOfRangeError:
                    continue
                for partition, (_, end) in legs.items():
                    if place is not None and place[0] == partition:
                        self._positions[topic_id, partition] = place[1]
                        break
                    self._positions[topic_id, partition] = end
                if batches:
                    return self._table(topic, batches)
        return None

    def _table(self, topic: Topic, batches: list[pa.RecordBatch]) -> pa.Table:
        table = pa.Table.from_batches(batches)
        self._counts["records"] += table.num_rows
        return table if not self._is_plural() else _with_topic(table, topic.name)

    def _empty_table(self) -> pa.Table:
        with self._lock:
            topic = next(iter(self._topics.values()), None)
        if topic is None:
            return pa.table({})
        schema = topic.scan(partition=0, start="latest", columns=["partition", *RECORD_COLUMNS]).schema
        table = pa.Table.from_batches([], schema)
        return table if not self._is_plural() else _with_topic(table, topic.name)

    def _is_plural(self) -> bool:
        return len(self._subscription) > 1 or groups.is_pattern(self._subscription[0])

    # ---- waiting ----

    def _waits(self) -> list[tuple[_core.Topic, dict[int, int]]]:
        """What to wait for: growth of the logs behind the ends that were just seen."""
        ends = self._ends
        return [
            (self._topics[topic_id].native(), {partition: ends[topic_id, partition] for partition in partitions})
            for topic_id, partitions in self._active.items()
            if partitions
        ]

    def _wait(self, waits: list[tuple[_core.Topic, dict[int, int]]], seen: int, timeout_ms: float | None) -> None:
        watches = [(self._local, seen)]
        if self._membership is None:
            watches.append((self._consuming.signal, self._topics_seen or 0))
            if self._store.mode == "r":
                timeout_ms = _READER_WAIT_MS if timeout_ms is None else min(timeout_ms, _READER_WAIT_MS)
        given = [(core, list(ends), list(ends.values())) for core, ends in waits]
        try:
            _core.wait_many(given, watches, timeout_ms)
        except (StreamcoreError, TopicNotFoundError):
            with self._lock:  # closed or deleted: what follows knows what to say
                self._check_open()

    async def _wait_async(
        self, waits: list[tuple[_core.Topic, dict[int, int]]], seen: int, timeout_ms: float | None
    ) -> None:
        if self._membership is None and (self._store.mode == "r" or len(waits) == 0 or self._is_plural()):
            timeout_ms = _READER_WAIT_MS if timeout_ms is None else min(timeout_ms, _READER_WAIT_MS)
        await self._consuming.waker.wait(waits, self._local, seen, None if timeout_ms is None else timeout_ms / 1000)

    def _notify(self) -> None:
        """The group changed, a commit is due, or somebody closes: ends waits and the fetch. Called by other threads."""
        fetch = self._fetch
        if fetch is not None:
            fetch.stop()
        self._wake()

    def _wake(self) -> None:
        self._local.set()
        self._consuming.waker.nudge()

    # ---- topics and membership ----

    def _check_open(self) -> None:
        if self.closed:
            raise StreamcoreError("the consumer is closed")
        self._store.check_open()

    def _ready(self) -> None:
        """Does what must be done before records are handed out. What was handed out before counts as processed."""
        self._check_open()
        member = self._membership
        if member is None:
            if self._topics_seen != self._consuming.signal.count() or self._store.mode == "r":
                self._refresh_topics()
            return
        if member.lost or member.stale:
            self._rebalance(member)
        if self._auto_commit and time.monotonic() >= self._commit_at_s:
            self._commit_quietly(member)

    def _refresh_topics(self) -> None:
        """Without a group: all partitions of all topics that are asked for."""
        first = self._topics_seen is None
        self._topics_seen = self._consuming.signal.count()
        patterns = [wanted for wanted in self._subscription if groups.is_pattern(wanted)]
        if patterns:
            known = {topic.name: topic for topic in self._store.topics()}
            found = [known[name] for name in groups.matching(patterns, known)]
        else:
            found = []
        found += [self._store.topic(name) for name in self._subscription if name not in patterns]
        new: list[Key] = []
        for topic in found:
            self._topics[topic.id] = topic
            new += [
                (topic.id, partition)
                for partition in range(topic.partition_count)
                if (topic.id, partition) not in self._positions
            ]
        for topic_id, partition in new:
            start: Place = self._start if first else "earliest"
            self._positions[topic_id, partition] = groups.resolve_place(
                self._topics[topic_id], partition, start, "start", self._isolation
            )
        if new:
            self._plan_reading()
            self._call_back("assigned", new)

    def _forget_topic(self, topic_id: str) -> None:
        for key in [key for key in self._positions if key[0] == topic_id]:
            del self._positions[key]
        del self._topics[topic_id]
        self._plan_reading()

    def _plan_reading(self) -> None:
        """The fetch goes, as what it reads may not be ours any more."""
        self._drop_fetch()
        self._active = {}
        for topic_id, partition in sorted(self._positions, key=lambda key: (self._topics[key[0]].name, *key)):
            active = self._active.setdefault(topic_id, [])
            if (topic_id, partition) not in self._paused:
                active.append(partition)
        self._order = collections.deque(topic_id for topic_id, partitions in self._active.items() if partitions)
        self._ends = {key: self._ends.get(key, 0) for key in self._positions}

    def _rebalance(self, member: Membership) -> None:
        share = None if member.lost else member.share()
        if share is None:
            self._lose(member)
            share = member.share()
            if share is None:
                return  # lost again at once; the next call sees to it
        lost = self._positions.keys() - share.kept
        if lost:
            self._revoke(member, lost, share.lost)
        elif share.lost:
            member.give_up()
        adopted = share.kept - self._positions.keys()  # from the static member that this one replaced
        if share.ready or adopted:
            self._assign(member, adopted)

    def _lose(self, member: Membership) -> None:
        """The group has forgotten this member: what it read may be read by another one by now."""
        _log.warning("a member of group %s was taken for dead: it joins anew", self.group)
        lost = list(self._positions)
        self._drop_fetch()
        self._positions.clear()
        self._before_poll = None
        self._plan_reading()
        if member.is_replaced():
            raise FencedError(f"another member with the instance id {member.instance!r} is in group {self.group!r}")
        member.join()
        if lost:
            self._call_back("lost", lost)

    def _revoke(self, member: Membership, lost: Iterable[Key], owned: set[Key]) -> None:
        lost = sorted(lost)
        self._drop_fetch()
        self._counts["rebalances"] += 1
        try:
            if self._auto_commit:
                self._commit_quietly(member, owned)
            self._call_back("revoked", lost)
        finally:
            for key in lost:
                self._positions.pop(key, None)
                self._paused.discard(key)
            self._plan_reading()
            member.give_up()

    def _assign(self, member: Membership, adopted: set[Key]) -> None:
        taken, offsets = member.take()
        taken.update(dict.fromkeys(adopted, False))
        if not taken:
            return
        self._counts["rebalances"] += 1
        self._drop_fetch()
        for key, added in taken.items():
            topic = self._topics.get(key[0]) or self._store.topic_with_id(key[0])
            if topic is None:  # deleted just now: the next rebalance takes it away
                continue
            self._topics[key[0]] = topic
            topic.check_partition(key[1])  # which looks again, if it is news to this handle
            if key in offsets:
                self._positions[key] = int(offsets[key])
            else:
                self._positions[key] = groups.resolve_place(
                    topic, key[1], "earliest" if added else self._start, "start", self._isolation
                )
        self._plan_reading()
        self._call_back("assigned", list(taken))

    def _call_back(self, event: str, keys: list[Key]) -> None:
        callback = self._callbacks[event]
        if callback is not None:
            callback(self, self._named(keys))

    def _named(self, keys: Iterable[Key]) -> list[TopicPartition]:
        return sorted(
            TopicPartition(self._topics[topic_id].name if topic_id in self._topics else topic_id, partition)
            for topic_id, partition in keys
        )

    # ---- commits ----

    def commit(self, offsets: Mapping[tuple[str, int], Any] | None = None, metadata: str = "") -> None:
        """Stores how far the group has come: by default the positions, behind all records handed out so far.

        offsets: {(topic, partition): the offset of the next record to read, or (offset, metadata)}. metadata: a text
        that is kept with each. In a store with durability "disk" it is on the drive when this returns.

        Raises FencedError when a partition was given to another member meanwhile, ValueError for an offset beyond the
        end, GroupError without a group.
        """
        with self._lock:
            member = self._member("commit")
            self._assigned()
            given = self._positions_to_commit(metadata) if offsets is None else self._checked_offsets(offsets, metadata)
            self._write(member, given)

    async def commit_async(self, offsets: Mapping[tuple[str, int], Any] | None = None, metadata: str = "") -> None:
        """As `commit`, in a thread of the event loop's pool."""
        if offsets is None:
            with self._lock:
                self._settle()
                offsets = {key: self._positions[self._key(*key)] for key in self._named(self._positions)}
        await asyncio.to_thread(self.commit, offsets, metadata)

    def offsets_to_commit(self) -> OffsetsToCommit:
        """What a transaction commits for this consumer: the group, who asks, {(topic id, partition): (offset, text)}.

        Raises FencedError when the member was replaced, GroupError without a group.
        """
        with self._lock:
            member = self._member("commit")
            self._assigned()
            return OffsetsToCommit(member.group, member.token, self._positions_to_commit(""))

    def apply_offsets(self, connection: sqlite3.Connection, commit: OffsetsToCommit) -> None:
        """Writes what `offsets_to_commit` gave within a transaction of the catalog. Raises FencedError to refuse."""
        groups.apply_offsets(connection, commit.group, commit.member, commit.offsets)
        self._counts["commits"] += 1

    def _positions_to_commit(self, metadata: str) -> dict[Key, tuple[int, str]]:
        self._settle()
        return {key: (position, metadata) for key, position in self._positions.items()}

    def _checked_offsets(self, offsets: Mapping[tuple[str, int], Any], metadata: str) -> dict[Key, tuple[int, str]]:
        if not isinstance(offsets, Mapping):
            raise TypeError(f"offsets is {type(offsets).__name__}; a mapping {{(topic, partition): offset}} is needed")
        found = {}
        for (name, partition), given in offsets.items():
            offset, text = given if isinstance(given, tuple) else (given, metadata)
            if not isinstance(offset, (int, np.integer)) or isinstance(offset, bool):
                raise TypeError(f"the offset of ({name!r}, {partition}) is {offset!r}; an int is needed")
            if not isinstance(text, str):
                raise TypeError(f"the metadata of ({name!r}, {partition}) is {text!r}; a str is needed")
            topic = self._topic(name, partition)
            start, _, end = topic.bounds([partition])[partition]
            if not 0 <= offset <= end:
                where = f"partition {partition} of {name!r} has offsets {start} to {end}"
                raise ValueError(f"offset {offset} cannot be committed: {where}")
            found[topic.id, partition] = (int(offset), text)
        return found

    def _topic(self, name: Any, partition: Any) -> Topic:
        topic = next((topic for topic in self._topics.values() if topic.name == name), None)
        if topic is None:
            topic = self._store.topic(name)
        topic.check_partition(partition)
        return topic

    def _write(self, member: Membership, offsets: dict[Key, tuple[int, str]]) -> None:
        token = member.token
        with self._store.catalog.changing(durable=self._store.durability == "disk") as connection:
            groups.apply_offsets(connection, member.group, token, offsets)
        self._counts["commits"] += 1

    def _commit_quietly(self, member: Membership, keys: set[Key] | None = None) -> None:
        """An automatic commit of what was handed out: all of it was processed, as the next records are asked for."""
        offsets = self._positions_to_commit("")
        if keys is not None:
            offsets = {key: offset for key, offset in offsets.items() if key in keys}
        try:
            self._write(member, offsets)
        except FencedError as error:
            _log.warning("an automatic commit came too late: %s", error)
        self._plan_commit()

    def _plan_commit(self) -> None:
        self._commit_at_s = time.monotonic() + self._commit_interval_s
        if self._auto_commit and self._membership is not None:
            self._membership.commit_at_s = self._commit_at_s
            if self._commit_interval_s < 1:
                self._consuming.heart.nudge()

    def _processed(self) -> dict[Key, int]:
        """Positions up to which everything is known to be processed: not what was handed out last."""
        if self._before_poll is not None:
            return {key: position for key, position in self._before_poll.items() if key in self._positions}
        self._settle()
        found = dict(self._positions)
        place = None if self._fetch is None else self._fetch.records.place()
        if place is not None and self._fetch is not None:
            key = (self._fetch.topic_id, place[0])
            if key in found:
                found[key] = place[1] - 1
        return found

    def _member(self, what: str) -> Membership:
        if self._membership is None:
            raise GroupError(
                f"a consumer without a group cannot {what}: give one, as in store.consumer(..., group=...)"
            )
        return self._membership

    # ---- positions ----

    def _assigned(self) -> None:
        """The first assignment comes with the first call that needs one."""
        self._check_open()
        member = self._membership
        if member is not None and not self._positions and (member.stale or member.lost):
            self._rebalance(member)

    def _key(self, topic: str, partition: int) -> Key:
        self._assigned()
        for topic_id, known in self._topics.items():
            if known.name == topic and (topic_id, partition) in self._positions:
                return topic_id, partition
        assigned = ", ".join(f"({name!r}, {number})" for name, number in self._named(self._positions)[:20]) or "none"
        raise ValueError(
            f"partition {partition!r} of topic {topic!r} is not read by this consumer; it reads {assigned}"
        )

    @property
    def assignment(self) -> list[TopicPartition]:
        """The partitions that this consumer reads."""
        with self._lock:
            self._assigned()
            return self._named(self._positions)

    @property
    def member_id(self) -> str | None:
        """The id of this consumer in its group, as `Group.members` shows it; another one after it was lost."""
        return None if self._membership is None else self._membership.id

    @property
    def metrics(self) -> ConsumerMetrics:
        """What this consumer has done so far; `records` leaves out those of an iteration."""
        return ConsumerMetrics(
            **{field.name: self._counts[field.name] for field in dataclasses.fields(ConsumerMetrics)}
        )

    def position(self, topic: str, partition: int) -> int:
        """The offset of the next record that is handed out. ValueError for a partition that is not assigned."""
        with self._lock:
            key = self._key(topic, partition)
            self._settle()
            return self._positions[key]

    def seek(self, topic: str, partition: int, to: Place) -> None:
        """Goes on at an offset, an aware datetime (the first record not older), "earliest" or "latest".

        Raises OffsetOutOfRangeError for an offset outside the log, ValueError for a partition that is not assigned.
        """
        with self._lock:
            key = self._key(topic, partition)
            position = groups.resolve_place(self._topics[key[0]], partition, to, "to", self._isolation)
            self._drop_fetch()
            self._positions[key] = position
            if self._before_poll is not None:
                self._before_poll[key] = position
            self._wake()

    def committed(self, topic: str, partition: int) -> CommittedOffset | None:
        """The offset that the group has committed, with its metadata; None when there is none."""
        with self._lock:
            self._check_open()
            member = self._member("have committed offsets")
            found = self._topic(topic, partition)
            with self._store.catalog.reading() as connection:
                return groups.committed(connection, member.group).get((found.id, partition))

    def lag(self) -> dict[TopicPartition, int]:
        """How many offsets lie between the position and the end, for each assigned partition."""
        with self._lock:
            self._assigned()
            self._settle()
            found = {}
            for topic_id in {topic_id for topic_id, _ in self._positions}:
                topic = self._topics[topic_id]
                partitions = [partition for other, partition in self._positions if other == topic_id]
                for partition, (_, readable, _) in topic.bounds(partitions, self._isolation).items():
                    found[TopicPartition(topic.name, partition)] = max(
                        0, readable - self._positions[topic_id, partition]
                    )
            return dict(sorted(found.items()))

    def pause(self, topic: str | None = None, partition: int | None = None) -> None:
        """Hands out no more records of a partition, of a topic or of all, and keeps them assigned."""
        with self._lock:
            self._paused |= self._chosen(topic, partition)
            self._plan_reading()

    def resume(self, topic: str | None = None, partition: int | None = None) -> None:
        """Takes `pause` back."""
        with self._lock:
            self._paused -= self._chosen(topic, partition)
            self._plan_reading()
            self._wake()

    @property
    def paused(self) -> list[TopicPartition]:
        """The assigned partitions that are paused."""
        with self._lock:
            return self._named(self._paused)

    def _chosen(self, topic: str | None, partition: int | None) -> set[Key]:
        if topic is None and partition is not None:
            raise TypeError("partition is given and topic is not")
        if topic is not None and partition is not None:
            return {self._key(topic, partition)}
        self._assigned()
        if topic is None:
            return set(self._positions)
        found = {key for key in self._positions if self._topics[key[0]].name == topic}
        if not found:
            raise ValueError(f"no partition of topic {topic!r} is read by this consumer")
        return found

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
            member = self._membership
            try:
                self._drop_or_keep(failed=failed)
                if member is not None:
                    self._leave(member, failed=failed)
            finally:
                self.closed = True
                self._drop_fetch()
                self._wake()

    def _drop_or_keep(self, *, failed: bool) -> None:
        if not failed:
            self._drop_fetch()

    def _leave(self, member: Membership, *, failed: bool) -> None:
        self._consuming.heart.remove(member)
        if self._store.closed or member.lost:
            return
        if self._auto_commit:
            offsets = self._processed() if failed else self._positions
            try:
                self._write(member, {key: (offset, "") for key, offset in offsets.items()})
            except FencedError as error:
                _log.warning("the last automatic commit came too late: %s", error)
        if self._positions:
            self._call_back("revoked", list(self._positions))
        if member.instance is None:
            member.leave()

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
        if not self.closed and self._membership is not None:
            self._consuming.heart.abandon(self._membership)


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


def _read_batches(
    topic: Topic, legs: dict[int, tuple[int, int]], isolation: Isolation, max_bytes: int
) -> tuple[list[pa.RecordBatch], tuple[int, int] | None]:
    """Batches of about `max_bytes`, and (partition, offset) behind the last row; None: all of the legs was read."""
    scan = topic.scan(
        start={partition: leg[0] for partition, leg in legs.items()},
        end={partition: leg[1] for partition, leg in legs.items()},
        columns=["partition", *RECORD_COLUMNS],
        isolation=isolation,
    )
    found: list[pa.RecordBatch] = []
    left = max_bytes
    full = False
    try:
        for batch in scan.to_reader():
            size = batch.nbytes
            if size > left:
                full = True
                if not found:
                    found.append(batch.slice(0, max(1, batch.num_rows * max_bytes // size)))
                break
            found.append(batch)
            left -= size
    except (pa.ArrowException, OSError):
        if not found:
            for _ in scan.batches():  # raises the precise error
                pass
            raise
        full = True
    if not full:
        return found, None
    last = found[-1]
    return found, (last.column(0)[-1].as_py(), last.column(1)[-1].as_py() + 1)


def _with_topic(table: pa.Table, name: str) -> pa.Table:
    indices = pa.array(np.zeros(table.num_rows, np.int8))
    return table.add_column(0, "topic", pa.DictionaryArray.from_arrays(indices, pa.array([name])))


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


def _check_count(name: str, count: Any) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name} is {count!r}; an int is needed")
    if count < 1:
        raise ValueError(f"{name} is {count}; 1 or more is allowed")


def _check_arguments(
    group: Any,
    start: Any,
    isolation: Any,
    auto_commit: Any,
    member_timeout_ms: Any,
    instance_id: Any,
    auto_commit_interval_ms: Any,
) -> None:
    if group is not None:
        groups.check_group_name(group)
    if isinstance(start, datetime.datetime):
        microseconds(start, "start")
    elif start not in ("earliest", "latest"):
        raise ValueError(f"start is {start!r}; 'earliest', 'latest' or an aware datetime is allowed")
    if isolation not in ("committed", "uncommitted"):
        raise ValueError(f"isolation is {isolation!r}; 'committed' or 'uncommitted' is allowed")
    if not isinstance(auto_commit, bool):
        raise TypeError(f"auto_commit is {auto_commit!r}; a bool is needed")
    if group is None and (auto_commit or instance_id is not None):
        raise ValueError("auto_commit and instance_id need a group")
    if instance_id is not None and (
        not isinstance(instance_id, str) or not instance_id.isprintable() or not instance_id
    ):
        raise ValueError(f"instance_id is {instance_id!r}; a str of printable characters is needed")
    _check_count("member_timeout_ms", member_timeout_ms)
    _check_count("auto_commit_interval_ms", auto_commit_interval_ms)
    if member_timeout_ms < _MEMBER_TIMEOUT_MS_MIN:
        raise ValueError(f"member_timeout_ms is {member_timeout_ms}; {_MEMBER_TIMEOUT_MS_MIN} or more is allowed")
