"""What a consumer reads next, topic by topic, and how that moves its positions.

All ways of reading take from one *fetch*, a scan of a piece of one topic's partitions. The positions follow when they
are asked for: to behind the last record that was handed out, and at the end of the fetch to its end, which may lie
behind transaction markers and offsets that compaction left without a record.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import functools
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa

from streamcore import _core, groups
from streamcore.assignment import Key
from streamcore.consumer_config import ConsumerConfig, Isolation
from streamcore.errors import OffsetOutOfRangeError, StreamcoreError, TopicNotFoundError
from streamcore.groups import Place
from streamcore.positions import Positions
from streamcore.schema import RECORD_COLUMNS

if TYPE_CHECKING:
    from concurrent.futures import Future

    from streamcore.topic import Topic

Legs = dict[int, tuple[int, int]]  # {partition: (position, end)}, in the order in which they are read

_FETCH_OFFSETS = 16384  # of a partition at a time, so that the others get their turn
_FETCH_OFFSETS_ASYNC = 1024  # and the event loop
_log = logging.getLogger("streamcore.consumer")


class _Fetch:
    """A scan of [start, end) of some partitions of a topic, from which records are taken."""

    __slots__ = ("legs", "records", "stopped", "topic_id")

    def __init__(self, topic_id: str, legs: Legs, records: _core.Records) -> None:
        self.topic_id = topic_id
        self.legs = legs
        self.records = records
        self.stopped = False

    def stop(self) -> None:
        """No more records come from it, from this moment on, in any thread."""
        self.stopped = True
        self.records.stop()

    def positions(self, *, ended: bool) -> dict[Key, int]:
        """Where the partitions stand that it has reached."""
        place = None if ended else self.records.place()
        return {} if not ended and place is None else _positions_at(self.topic_id, self.legs, place)


class Fetcher:
    """The fetches of a consumer, one at a time; used under the consumer's lock, but for `interrupt`.

    records: how many `take` and `take_arrow` gave. offset_resets: how often a position lay outside the log.
    """

    def __init__(self, positions: Positions, subscription: list[str], config: ConsumerConfig) -> None:
        self.records = 0
        self.offset_resets = 0
        self._positions = positions
        self._subscription = subscription
        self._config = config
        self._fetch: _Fetch | None = None
        self._before_poll: dict[Key, int] | None = None
        self._active: dict[str, list[int]] = {}
        self._order: collections.deque[str] = collections.deque()
        self._fetched: dict[Key, int] = {}  # up to where it was asked of the tier
        self._ends: dict[Key, int] = {}  # end offsets as they were when there was nothing to read

    # ---- records ----

    def take(self, count: int) -> list[_core.Record]:
        """The next records, `count` at most; of as many fetches as it takes."""
        found: list[_core.Record] = []
        before = None
        while len(found) < count:
            if self._fetch is None:
                self._fetch = self._next_fetch(_FETCH_OFFSETS)
            fetch = self._fetch
            if fetch is None:
                break
            if before is None and self._config.auto_commit:
                self.settle()
                before = dict(self._positions.offsets)
            wanted = count - len(found)
            try:
                records = fetch.records.take(wanted)
            except OffsetOutOfRangeError:  # deleted just now: planning the next one sees to it
                self.drop()
                continue
            except TopicNotFoundError as error:
                self._forget(fetch.topic_id, error)
                continue
            except BaseException:
                self.drop()
                if found:
                    break
                raise
            found += records
            if fetch.records.failure is not None:  # behind these records: it is raised by the next poll
                self.drop()
                break
            if len(records) < wanted:
                self.settle(ended=not fetch.stopped)
        if found:
            self._before_poll = before
            self.records += len(found)
        return found

    def take_arrow(self, max_bytes: int) -> pa.Table | None:
        """The next records of one topic as a table of about `max_bytes` at most; None when there are none."""
        self.drop()
        self._before_poll = dict(self._positions.offsets) if self._config.auto_commit else None
        for _ in range(len(self._order)):
            topic_id = self._order[0]
            self._order.rotate(-1)
            while legs := self._legs(topic_id, sys.maxsize):
                topic = self._positions.topics[topic_id]
                try:
                    batches, place = _read_batches(topic, legs, self._config.isolation, max_bytes)
                except OffsetOutOfRangeError:  # deleted just now
                    continue
                except TopicNotFoundError as error:
                    self._forget(topic_id, error)
                    return self.take_arrow(max_bytes)
                self._positions.offsets.update(_positions_at(topic_id, legs, place))
                if batches:
                    table = pa.Table.from_batches(batches)
                    self.records += table.num_rows
                    return _with_topic(table, topic) if groups.is_plural(self._subscription) else table
        return None

    def finish(self, ended: _core.Records | None) -> None:
        """For iteration: what `ended` gave is processed, and all of it was handed out if it is of this fetch."""
        fetch = self._fetch
        if fetch is not None and fetch.records is ended:
            self.settle(ended=not fetch.stopped)
        self._before_poll = None

    def next_records(self, *, in_loop: bool) -> _core.Records | None:
        """For iteration: where the next records come from; None when there are none. `in_loop`: an event loop."""
        if self._fetch is None:
            self._fetch = self._next_fetch(_FETCH_OFFSETS_ASYNC if in_loop else _FETCH_OFFSETS)
        return None if self._fetch is None else self._fetch.records

    # ---- positions ----

    def settle(self, *, ended: bool = False) -> None:
        """Brings the positions up to what was handed out. `ended`: the fetch is used up."""
        fetch = self._fetch
        if fetch is None:
            return
        offsets = self._positions.offsets
        for key, position in fetch.positions(ended=ended).items():
            if key in offsets:
                offsets[key] = position
        if ended or fetch.stopped:
            self._fetch = None

    def drop(self) -> None:
        """Ends the fetch where it is."""
        fetch = self._fetch
        if fetch is not None:
            fetch.stop()
            self.settle()

    def interrupt(self) -> None:
        """Has the fetch give no more records. Called by other threads, without the lock."""
        fetch = self._fetch
        if fetch is not None:
            fetch.stop()

    def seek(self, key: Key, position: int) -> None:
        """Goes on elsewhere in a partition; what lies before is processed."""
        self.drop()
        self._fetched.pop(key, None)
        self._positions.offsets[key] = position
        if self._before_poll is not None:
            self._before_poll[key] = position

    def processed(self) -> dict[Key, int]:
        """Positions up to which everything is known to be processed: not what was handed out last."""
        offsets = self._positions.offsets
        if self._before_poll is not None:
            return {key: position for key, position in self._before_poll.items() if key in offsets}
        self.settle()
        found = dict(offsets)
        place = None if self._fetch is None else self._fetch.records.place()
        if place is not None and self._fetch is not None:
            key = (self._fetch.topic_id, place[0])
            if key in found:
                found[key] = place[1] - 1
        return found

    def lose_all(self) -> None:
        """Nothing is assigned any more, and what was handed out last is another member's to process."""
        self.drop()
        self._positions.offsets.clear()
        self._before_poll = None
        self.replan()

    # ---- what is in the tier alone ----

    def to_fetch(self, *, in_loop: bool) -> Callable[[], None] | None:
        """What an event loop has a thread do before `take` and `next_records`, which would wait for the tier otherwise.

        None: there is nothing to wait for.
        """
        if self._fetch is not None:
            return None
        wanted: list[tuple[Topic, int, int, int]] = []
        for topic_id, partitions in self._active.items():
            topic = self._positions.topics[topic_id]
            for partition in partitions if topic.cold is not None else ():
                key = (topic_id, partition)
                position, local = self._positions.offsets[key], topic.local_start(partition)
                if position < local and position >= self._fetched.get(key, 0):
                    end = min(local, position + (_FETCH_OFFSETS_ASYNC if in_loop else _FETCH_OFFSETS))
                    self._fetched[key] = end
                    wanted.append((topic, partition, position, end))
        return functools.partial(_fetch, wanted, self._config.isolation) if wanted else None

    # ---- what is read when ----

    def replan(self) -> None:
        """What is assigned or paused has changed. The fetch goes, as what it reads may not be ours any more."""
        self.drop()
        self._active = self._positions.active()
        self._order = collections.deque(topic_id for topic_id, partitions in self._active.items() if partitions)
        self._ends = {key: self._ends.get(key, 0) for key in self._positions.offsets}

    def waits(self) -> list[tuple[_core.Topic, dict[int, int]]]:
        """What to wait for: growth of the logs behind the ends that were just seen."""
        ends, topics = self._ends, self._positions.topics
        return [
            (topics[topic_id].native(), {partition: ends[topic_id, partition] for partition in partitions})
            for topic_id, partitions in self._active.items()
            if partitions
        ]

    def _next_fetch(self, offsets: int) -> _Fetch | None:
        """The next piece of the next topic that has something."""
        for _ in range(len(self._order)):
            topic_id = self._order[0]
            self._order.rotate(-1)
            legs = self._legs(topic_id, offsets)
            if not legs:
                continue
            topic = self._positions.topics[topic_id]
            try:
                scan = topic.scan(
                    start={partition: leg[0] for partition, leg in legs.items()},
                    end={partition: leg[1] for partition, leg in legs.items()},
                    isolation=self._config.isolation,
                )
                # without bounds on time a scan iterates by the core's own iterator
                return _Fetch(topic_id, legs, cast(_core.Records, iter(scan)))
            except OffsetOutOfRangeError:  # records were deleted just now
                self._order.rotate(1)
            except TopicNotFoundError as error:
                self._forget(topic_id, error)
                return self._next_fetch(offsets)
        return None

    def _legs(self, topic_id: str, offsets: int) -> Legs:
        """What can be read of a topic now, in the order of partitions."""
        topic = self._positions.topics[topic_id]
        legs = {}
        try:
            bounds = topic.bounds(self._active[topic_id], self._config.isolation)
        except TopicNotFoundError as error:
            self._forget(topic_id, error)
            return {}
        for partition, (start, readable, end) in bounds.items():
            key = (topic_id, partition)
            position = self._positions.offsets[key]
            if not start <= position <= end:
                position = self._reset_position(topic, partition, position, start, end)
            self._ends[key] = end
            if position < readable:
                legs[partition] = (position, min(readable, position + offsets))
        return legs

    def _forget(self, topic_id: str, error: TopicNotFoundError) -> None:
        """Passes over a topic that is no more and that only a pattern matched; raises the error for another one."""
        if self._positions.topics[topic_id].name in self._subscription:
            raise error
        self.drop()
        self._positions.forget_topic(topic_id)
        self.replan()

    def _reset_position(self, topic: Topic, partition: int, position: int, start: int, end: int) -> int:
        to: Place = "earliest" if isinstance(self._config.start, datetime.datetime) else self._config.start
        self.offset_resets += 1
        found = self._positions.offsets[topic.id, partition] = start if to == "earliest" else end
        _log.warning(
            "the position %d in partition %d of %s lies outside the log, which has offsets %d to %d: going on at %d",
            position, partition, topic.name, start, end, found,
        )  # fmt: skip
        return found


def _fetch(wanted: list[tuple[Topic, int, int, int]], isolation: Isolation) -> None:
    """Waits for the tier. What fails is told to who asks for the records."""
    import concurrent.futures

    futures: list[Future[pa.Table]] = []
    for topic, partition, start, end in wanted:
        with contextlib.suppress(StreamcoreError, OSError):
            futures += topic.scan(partition, start, end, isolation=isolation).begin()
    concurrent.futures.wait(futures)


def empty_table(topic: Topic | None, subscription: list[str]) -> pa.Table:
    """What `take_arrow` would give of a topic, without a row."""
    if topic is None:
        return pa.table({})
    schema = topic.scan(partition=0, start="latest", columns=["partition", *RECORD_COLUMNS]).schema
    table = pa.Table.from_batches([], schema)
    return _with_topic(table, topic) if groups.is_plural(subscription) else table


def _positions_at(topic_id: str, legs: Legs, place: tuple[int, int] | None) -> dict[Key, int]:
    """Where the partitions stand that were reached at (partition, offset); None: behind all of the legs."""
    found: dict[Key, int] = {}
    for partition, (_, end) in legs.items():
        if place is not None and partition == place[0]:
            found[topic_id, partition] = place[1]
            break
        found[topic_id, partition] = end
    return found


def _read_batches(
    topic: Topic, legs: Legs, isolation: Isolation, max_bytes: int
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


def _with_topic(table: pa.Table, topic: Topic) -> pa.Table:
    indices = pa.array(np.zeros(table.num_rows, np.int8))
    return table.add_column(0, "topic", pa.DictionaryArray.from_arrays(indices, pa.array([topic.name])))
