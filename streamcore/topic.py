"""A topic: appends, scans, settings, partitions."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar, Unpack

import numpy as np
import pyarrow as pa

from streamcore import _core, columns, compaction, consolidation
from streamcore import schema as schemas
from streamcore.append import ArrayAppend, Producer, Split, append_arrays, append_split, keyless
from streamcore.catalog import TopicRow
from streamcore.config import TopicConfig, TopicSettings, check_durability, check_partitions
from streamcore.errors import (
    CorruptionError,
    OffsetOutOfRangeError,
    StorageError,
    StoreFormatError,
    StoreReadOnlyError,
    TopicNotFoundError,
)
from streamcore.retention import Removed
from streamcore.rewriting import Pace, Rewritten, Stop
from streamcore.scan import Bound, Scan, plan_legs

if TYPE_CHECKING:
    from streamcore.store import Store

_Result = TypeVar("_Result")
Durability = Literal["os", "disk"]
DeletionBound = int | datetime.datetime | Literal["latest"]
Before = DeletionBound | Mapping[int, DeletionBound]
SendPlan = tuple[int, int, int, int, bool, bool, bool, bool]  # see SendBuffer.add_topic
_STALE_RETRIES = 100
_WAIT_MS_MAX = 1 << 40  # 34 years
_SCHEMA_READ_BYTES = 4 << 20


class Span(NamedTuple):
    """Where records went: offsets `first_offset` up to, but not including, `end_offset` of a partition."""

    partition: int
    first_offset: int
    end_offset: int


class Writer(Protocol):
    """Who appends, when the log is to know it: sees each append before and after."""

    def claim(self, topic: Topic, partitions: list[int]) -> None:
        """Called once per call, before its first append, with all the partitions that it will append to."""

    def producer(self, topic: Topic, partition: int) -> Producer:
        """What to write into the headers of the next append there."""

    def appended(self, topic: Topic, partition: int, count: int) -> None:
        """Called after each append."""


@dataclasses.dataclass(frozen=True, slots=True)
class Partition:
    """A partition at one moment. `durable_offset`: everything below it survives a loss of power.

    `stable_offset`: every transaction with records below it is committed or aborted (the last stable offset of KIP-98).
    """

    index: int
    start_offset: int
    end_offset: int
    durable_offset: int
    size_bytes: int
    stable_offset: int
    segment_count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A segment file at one moment. Times are milliseconds since 1970, None when it has no records."""

    partition: int
    base_offset: int
    end_offset: int
    path: str
    size_bytes: int
    sealed: bool
    min_timestamp_ms: int | None
    max_timestamp_ms: int | None
    count: int


class Topic:
    """A topic of a store; made by `Store.create_topic` and `Store.topic`. Any thread may use it."""

    def __init__(self, store: Store, row: TopicRow) -> None:
        self._store = store
        self._row = row
        self._config = TopicConfig.stored(row.config, row.name)
        self._versions: dict[int, schemas.SchemaVersion] = {}
        self._current = 1
        self._take_schemas(row)
        self._core: _core.Topic | None = None
        self._round = itertools.count()
        self._unflushed = False
        self._seen: Any = None
        self._plan_fast_path()

    # ---- what it is ----

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._row.name

    @property
    def store(self) -> Store:
        """The store that it is of."""
        return self._store

    @property
    def id(self) -> str:
        """The topic's identity: another topic of the same name, made later, has another one."""
        return self._row.id

    @property
    def schema(self) -> pa.Schema | None:
        """The Arrow schema of a typed topic's values; None for a plain topic."""
        return self._versions[self._current].user

    @property
    def config(self) -> TopicConfig:
        """The topic's settings."""
        return self._config

    @property
    def folder(self) -> str:
        """The name of the topic's folder below `topics/` of the store."""
        return self._row.folder

    @property
    def partition_count(self) -> int:
        """The number of partitions."""
        return self._row.partitions

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """All partitions with their offsets and sizes, as they are now."""
        self._refresh_if_stale()
        core = self._open_core()
        return tuple(Partition(p, *self._call(partial(core.describe, p, True))) for p in range(self._row.partitions))

    def counters(self) -> dict[str, Any]:
        """What this process did with the topic since it opened the store, by name; for `Store.stats`."""
        return self._open_core().counters()

    def __repr__(self) -> str:
        kind = "plain" if self.schema is None else f"typed: {', '.join(self.schema.names)}"
        return f"<Topic {self.name!r}, {self._row.partitions} partitions, {kind}>"

    # ---- append ----

    def append(
        self,
        values: Any,
        keys: Any = None,
        timestamps: Any = None,
        headers: Any = None,
        partition: int | None = None,
        durability: Durability | None = None,
    ) -> list[Span]:
        """Appends records, and returns where they went. One call to one partition is atomic.

        values: list or tuple of bytes-like or None (a tombstone); or an Arrow array (or anything that carries one) of
        binary or strings of any kind; or a NumPy `S` array. Of a typed topic: dicts, or a struct array. keys: likewise,
        of bytes, as many as values. timestamps: one for all or one for each: aware datetime, int milliseconds, or an
        array of them; default now. headers: for each record None, a dict or (str, bytes or None) pairs.
        partition: default by key (murmur2, as Apache Kafka does), and one partition in turn for records without a key.
        durability: "os" returns when the operating system has the data, "disk" when the drive has it.

        Raises TypeError or ValueError for what cannot be stored, RecordTooLargeError, StorageError, StoreReadOnlyError.
        """
        if (
            self._fast
            and headers is None
            and type(values) in (list, tuple)
            and (keys is None or type(keys) in (list, tuple))
        ):
            return self._append_rows(values, keys, timestamps, partition, durability)
        return self._append_columns(values, keys, timestamps, headers, partition, durability)

    def append_table(
        self, table: Any, partition: int | None = None, durability: Durability | None = None
    ) -> list[Span]:
        """Appends a table: anything with `__arrow_c_stream__` or `__arrow_c_array__`.

        Columns: `value` (of a typed topic instead: the schema's columns), and, if present, `key`, `timestamp`,
        `headers` and `partition`. All of it that goes to one partition is appended together or not at all.
        """
        given = table if isinstance(table, pa.Table) else _table_of(table)
        self._refresh_if_stale()
        return self._append_all(ArrayAppend.of_table(given, self._versions[self._current]), partition, durability)

    def _append_rows(
        self, values: Any, keys: Any, timestamps: Any, partition: int | None, durability: Durability | None
    ) -> list[Span]:
        if partition is not None:
            self._check_partition(partition)
        count = len(values)
        if keys is not None and len(keys) != count:
            raise ValueError(f"{len(keys)} keys for {count} values")
        times, now = (None, None) if timestamps is None else columns.times_of(timestamps, count)
        if durability is not None:
            check_durability(durability)
        byte_values = _core.ByteColumn(values, "values")
        byte_keys = None if keys is None else _core.ByteColumn(keys, "keys")
        if count == 0:
            self._writable()
            return []

        def run() -> list[tuple[int, int, int]] | None:
            if not self._fast:
                return None  # another process changed the topic meanwhile
            if self._config.compacts and (keys is None or any(key is None for key in keys)):
                raise ValueError(keyless(self.name))
            own = self._log_append_time
            moment = time.time_ns() // 1_000_000 if own or now is None else now
            return self._open_core().append_rows(
                partition, byte_values, byte_keys, None if own else times, moment, None, self._current,
                self._row.partitions, next(self._round) % self._row.partitions, own, self._is_durable(durability),
            )  # fmt: skip

        spans = self._call(run)
        if spans is None:
            return self._append_columns(values, keys, timestamps, None, partition, durability)
        if not self._unflushed:
            self._store.note_unflushed(self)
        return [Span(*span) for span in spans]

    def _is_durable(self, durability: Durability | None) -> bool:
        return self._durable if durability is None else durability == "disk"

    def _append_columns(
        self,
        values: Any,
        keys: Any,
        timestamps: Any,
        headers: Any,
        partition: int | None,
        durability: Durability | None,
    ) -> list[Span]:
        self._refresh_if_stale()
        given = ArrayAppend.of_columns(values, keys, timestamps, headers, self._versions[self._current])
        return self._append_all(given, partition, durability)

    def append_by(self, writer: Writer, values: Any, keys: Any, timestamps: Any, headers: Any,
                  partition: int | None) -> list[Span]:  # fmt: skip
        """`append` in a writer's name; called by transactions."""
        self._refresh_if_stale()
        given = ArrayAppend.of_columns(values, keys, timestamps, headers, self._versions[self._current])
        return self._append_all(given, partition, "os", writer)

    def append_table_by(self, writer: Writer, table: Any, partition: int | None) -> list[Span]:
        """`append_table` in a writer's name; called by transactions."""
        given = table if isinstance(table, pa.Table) else _table_of(table)
        self._refresh_if_stale()
        return self._append_all(ArrayAppend.of_table(given, self._versions[self._current]), partition, "os", writer)

    def _append_all(
        self, given: ArrayAppend, partition: int | None, durability: Durability | None, writer: Writer | None = None
    ) -> list[Span]:
        if partition is not None:
            self._check_partition(partition)
        if durability is not None:
            check_durability(durability)
        if given.count == 0:
            self._writable()
            return []
        self._check_keys(given)  # all of it before the first part is appended
        if self._config.compression != "none" or (partition is None and self._row.partitions > 1):
            given.check_sizes(self._config.max_record_bytes)
        split = given.split(partition, self._row.partitions, next(self._round))
        targets = [split] if isinstance(split, int) else split.partitions.tolist()
        for target in targets:
            self._check_partition(target)
        if writer is not None:
            writer.claim(self, targets)
        if isinstance(split, int):
            spans = [self._append_part(split, given, self._is_durable(durability), writer)]
        else:
            spans = self._append_parts(given, split, writer)
        if not self._unflushed:
            self._store.note_unflushed(self)
        if not isinstance(split, int) and self._is_durable(durability):
            self._wait_durable(spans)
        return spans

    def _append_part(self, target: int, part: ArrayAppend, durable: bool, writer: Writer | None) -> Span:
        producer = None if writer is None else writer.producer(self, target)

        def run() -> tuple[int, int, int]:
            core = self._open_core()
            self._check_keys(part)
            return append_arrays(core, target, part, self._config, durable, producer)

        span = self._call(run)
        if writer is not None:
            writer.appended(self, target, part.count)
        return Span(*span)

    def _append_parts(self, given: ArrayAppend, split: Split, writer: Writer | None) -> list[Span]:
        if writer is None and len(given.chunks) == 1 and self._config.compression == "none":

            def run() -> list[tuple[int, int, int]]:
                core = self._open_core()
                self._check_keys(given)
                return append_split(core, given, split, self._config)

            return [Span(*span) for span in self._call(run)]
        return [self._append_part(target, part, False, writer) for target, part in given.parts(split)]

    def _wait_durable(self, spans: list[Span]) -> None:
        """Returns when all of them are on the drive: one sync for all partitions."""
        core = self._open_core()
        self._call(lambda: _core.wait_durable([(core, span.partition, span.end_offset) for span in spans]))

    def _check_keys(self, given: ArrayAppend) -> None:
        if self._config.compacts and any(chunk[1] is None or chunk[1].null_count for chunk in given.chunks):
            raise ValueError(keyless(self.name))

    def check_partition(self, partition: Any) -> int:
        """The number of a partition. Raises TypeError and ValueError for what is none."""
        self._check_partition(partition)
        return int(partition)

    def bounds(
        self, partitions: Iterable[int], isolation: Literal["committed", "uncommitted"] = "committed"
    ) -> dict[int, tuple[int, int, int]]:
        """Of each partition the start offset, the offset up to which it can be read now, and the end offset."""
        committed = _is_committed(isolation)

        def run() -> dict[int, tuple[int, int, int]]:
            core = self._open_core()
            found = {}
            for partition in partitions:
                start, end, _, _, stable, _ = core.describe(partition, False)
                found[partition] = (start, stable if committed else end, end)
            return found

        return self._call(run)

    # ---- what producers need ----

    def send_plan(self, durability: Durability | None) -> tuple[_core.Topic, SendPlan]:
        """The native topic, and how a producer's batches are appended to it: see SendBuffer.add_topic."""
        self._refresh_if_stale()
        core = self._open_core()
        with self._store.lock:
            return core, (
                self._row.partitions,
                self._current,
                self._row.generation,
                self._config.max_record_bytes,
                self._fast,
                self._log_append_time,
                self._is_durable(durability),
                self._config.compacts,
            )

    def append_sealed(self, batch: _core.SealedBatch, producer: Producer | None) -> tuple[int, int, int]:
        """Appends what a producer has collected for a partition, not durably: (partition, first offset, end offset)."""

        def run() -> tuple[int, int, int]:
            core = self._open_core()
            if self._fast:
                now = time.time_ns() // 1_000_000
                return batch.append_to(core, self._current, self._log_append_time, now, producer)
            given = ArrayAppend.of_batch(batch, self._versions[self._current])
            return append_arrays(core, batch.partition, given, self._config, False, producer)

        return self._call(run)

    def note_appended(self) -> None:
        """Has what a producer appended flushed in the background within a second."""
        if not self._unflushed:
            self._store.note_unflushed(self)

    def _check_partition(self, partition: Any) -> None:
        if not isinstance(partition, (int, np.integer)) or isinstance(partition, bool):
            raise TypeError(f"partition is {partition!r}; an int is needed")
        if not 0 <= partition < self._row.partitions:
            self._refresh_if_stale()
        if not 0 <= partition < self._row.partitions:
            raise ValueError(
                f"partition is {partition}; topic {self.name!r} has partitions 0 to {self._row.partitions - 1}"
            )

    # ---- scan ----

    def scan(
        self,
        partition: int | None = None,
        start: Bound = "earliest",
        end: Bound = "latest",
        columns: list[str] | None = None,
        limit: int | None = None,
        isolation: Literal["committed", "uncommitted"] = "committed",
        verify: bool = True,
    ) -> Scan:
        """A bounded read, fixed when it is made: partition by partition, in the order of offsets.

        start, end (exclusive): an offset, an aware datetime, "earliest", "latest", or a mapping {partition: any of
        these}, which also chooses the partitions. Datetimes choose the records with start <= timestamp < end, wherever
        they lie. columns: names of the record's columns, `partition`, or paths into a typed value (`value.magnitude`).
        limit: records at most. isolation: "committed" ends at the last stable offset, which is "latest" then, and
        passes over aborted transactions; "uncommitted" sees all. verify: check each batch's checksum the first time
        that this process reads it.

        Raises OffsetOutOfRangeError for an offset outside the log.
        """
        committed = _is_committed(isolation)
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
            raise TypeError(f"limit is {limit!r}; an int or None is needed")
        if limit is not None and limit < 0:
            raise ValueError(f"limit is {limit}; 0 or more is allowed")
        self._refresh_if_stale()
        for bound in (start, end):
            for number in bound if isinstance(bound, Mapping) else ():
                self._check_partition(number)
        if partition is not None:
            self._check_partition(partition)
        core = self._open_core()
        legs = plan_legs(
            partition,
            start,
            end,
            self._row.partitions,
            lambda p: self._call(lambda: core.describe(p, False)),
            committed=committed,
        )
        return Scan(self, core, self._versions, self._current, self._row.mixed, legs, columns, limit, verify, committed)

    def segments(self, partition: int | None = None) -> list[Segment]:
        """All segment files, by partition and offset, with their time ranges; or those of one partition.

        The first one may begin with records that are deleted: they go with the rest of it.
        """
        self._refresh_if_stale()
        if partition is not None:
            self._check_partition(partition)
        wanted = range(self._row.partitions) if partition is None else [partition]
        return [segment for number in wanted for segment in self._segments_of(number)]

    def _segments_of(self, partition: int) -> list[Segment]:
        core = self._open_core()
        for attempt in itertools.count():
            found: list[Segment] = []
            try:
                while (one := self._call(partial(core.segment, partition, len(found)))) is not None:
                    found.append(Segment(partition, *one))
            except (StorageError, CorruptionError):
                if attempt == _STALE_RETRIES or not self._lost_segments(found, partition):
                    raise
                continue
            if attempt == _STALE_RETRIES or not self._lost_segments(found, partition):
                return found
        raise AssertionError

    def _lost_segments(self, found: list[Segment], partition: int) -> bool:
        """Whether segments were removed while they were listed."""
        gaps = any(before.end_offset != behind.base_offset for before, behind in itertools.pairwise(found))
        start = self._call(lambda: self._open_core().describe(partition, False))[0]
        return gaps or (len(found) > 1 and found[1].base_offset <= start)

    # ---- rewriting ----

    def consolidate(
        self, partition: int | None = None, bytes_per_second: float | None = None, stop: Stop | None = None
    ) -> list[Rewritten]:
        """Rewrites sealed segments of many small batches into batches of about 1 MiB, and returns which.

        Records, offsets and times stay; with `compression` the batches are compressed. bytes_per_second limits how fast
        segments are read. stop() is asked now and then, and ends it when it is true. A crash leaves each segment as it
        was or as it becomes; readers keep what they have mapped. Raises StoreReadOnlyError, StorageError,
        CorruptionError: damaged segments are not rewritten.
        """
        self._writable()
        if partition is not None:
            self._check_partition(partition)
        return consolidation.consolidate(self, Pace(bytes_per_second, stop), partition)

    def compact(
        self,
        partition: int | None = None,
        bytes_per_second: float | None = None,
        stop: Stop | None = None,
        memory_bytes: int = compaction.MEMORY_BYTES,
        min_dirty_ratio: float = 0.0,
        now_ms: int | None = None,
    ) -> list[Rewritten]:
        """Drops the records of sealed segments whose key has a later one, and returns which segments were rewritten.

        The rules are those of Apache Kafka's log cleaner: order and offsets stay; the active segment is not touched,
        nor what is younger than `min_compaction_lag_ms`, nor what lies behind the first open transaction; tombstones go
        after `delete_retention_ms`. memory_bytes: of the map of keys, 24 bytes for each entry, of which three in four
        are used, and half as much again while it grows; more keys take more passes. min_dirty_ratio: leaves partitions
        alone whose bytes that were not compacted yet are a smaller part.
        Raises ValueError where `cleanup` has no "compact", StoreReadOnlyError, StorageError, CorruptionError.
        """
        self._writable()
        self._refresh_if_stale()
        if partition is not None:
            self._check_partition(partition)
        if not self._config.compacts:
            raise ValueError(f"topic {self.name!r} has cleanup={self._config.cleanup!r}; only 'compact' is compacted")
        options = compaction.Options(memory_bytes, min_dirty_ratio, now_ms)
        return compaction.compact(self, self._store.catalog, Pace(bytes_per_second, stop), partition, options)

    def latest(self, key: Any, partition: int | None = None) -> _core.Record | None:
        """The latest record of a key; None when there is none, or it is a tombstone.

        key: bytes-like. partition: default the one that keys like this go to. It reads backwards, segment by segment,
        until it finds the key, whether or not the topic was compacted.
        """
        self._refresh_if_stale()
        data = bytes(memoryview(key))
        if partition is not None:
            self._check_partition(partition)
        number = _core.partition_of_key(data, self._row.partitions) if partition is None else partition
        return compaction.latest(self, data, number)

    def table(self, partition: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """The latest record of each key, by partition and offset; keys whose latest record is a tombstone are left out.

        columns: as for `scan`. Records without a key are left out. Right whether or not the topic was compacted.
        """
        self._refresh_if_stale()
        if partition is not None:
            self._check_partition(partition)
        return compaction.table(self, range(self._row.partitions) if partition is None else [partition], columns)

    def rewritable(self, partition: int) -> list[Segment]:
        """The segments that are sealed, with others behind them; called by what rewrites them."""
        return self.segments(partition)[:-1]

    def open_rewrite(self, segment: Segment) -> _core.Rewrite | None:
        """Begins to replace a segment; None when it is gone or not fit yet."""
        core = self._open_core()
        try:
            return self._call(lambda: _core.Rewrite(core, segment.partition, segment.base_offset))
        except OffsetOutOfRangeError:
            return None

    @property
    def versions(self) -> Mapping[int, schemas.SchemaVersion]:
        """The schema versions by number, which batches name."""
        return self._versions

    # ---- deletion ----

    def delete_records(self, before: Before, partition: int | None = None) -> list[Removed]:
        """Deletes the records below an offset, durably, and returns what was removed of each partition.

        before: an offset (of `partition`, which may be left out where there is one); "latest": all of them; an aware
        datetime: those before the first record that is as new; or a mapping {partition: any of these}. The log begins
        there from now on, also for scans that were made before: they raise OffsetOutOfRangeError where they need what
        is gone. Files go when all of their records are deleted. An offset below the start deletes nothing.

        Raises OffsetOutOfRangeError for an offset behind the end of the log, StoreReadOnlyError, StorageError.
        """
        self._writable()
        self._refresh_if_stale()
        if partition is not None:
            self._check_partition(partition)
        if isinstance(before, Mapping):
            for number in before:
                self._check_partition(number)
            bounds = {number: before[number] for number in before if partition in (None, number)}
        elif partition is None and self._row.partitions > 1 and isinstance(before, (int, np.integer)):
            raise ValueError(
                f"before is an offset; topic {self.name!r} has {self._row.partitions} partitions: name one"
            )
        else:
            bounds = dict.fromkeys(range(self._row.partitions) if partition is None else [partition], before)
        core = self._open_core()
        wanted = {number: self._deletion_offset(number, bound) for number, bound in bounds.items()}
        removed = []
        for number, offset in wanted.items():
            run = partial(_core.delete_before, core, number, offset)
            removed.append(Removed(number, *self._call(run)))
        return removed

    def _deletion_offset(self, partition: int, bound: Any) -> int:
        if isinstance(bound, (int, np.integer)) and not isinstance(bound, bool):
            return max(0, int(bound))
        end = self._call(lambda: self._open_core().describe(partition, False))[1]
        if isinstance(bound, datetime.datetime):
            newer = self.scan(partition, bound, end, columns=["offset"], isolation="uncommitted")
            first = next(newer.batches(), None)
            return end if first is None else int(first.column(0)[0].as_py())
        if bound == "latest":
            return end
        raise TypeError(f"before is {bound!r}; an offset, an aware datetime or 'latest' is needed")

    def roll(self, partition: int | None = None) -> None:
        """Seals the active segment of a partition, or of each: the next append begins a new file.

        Sealed segments are what retention removes and compaction rewrites.
        """
        self._writable()
        self._refresh_if_stale()
        if partition is not None:
            self._check_partition(partition)
        core = self._open_core()
        for number in range(self._row.partitions) if partition is None else [partition]:
            self._call(partial(_core.roll, core, number))

    def wait(
        self,
        offsets: Mapping[int, int],
        timeout_ms: float | None = None,
        isolation: Literal["committed", "uncommitted"] = "committed",
    ) -> bool:
        """Waits, using no CPU, until some partition has records to read at or behind the offset given for it.

        offsets: {partition: end offset that is known}. isolation: "committed" waits for the last stable offset,
        "uncommitted" for the end offset. Returns False when `timeout_ms` is over.
        """
        committed = _is_committed(isolation)
        if not isinstance(offsets, Mapping):
            raise TypeError(f"offsets is {type(offsets).__name__}; a mapping {{partition: offset}} is needed")
        for partition, offset in offsets.items():
            self._check_partition(partition)
            if not isinstance(offset, (int, np.integer)) or isinstance(offset, bool):
                raise TypeError(f"offsets[{partition}] is {offset!r}; an int is needed")
        if not offsets:
            raise ValueError("offsets is empty; a partition to wait for is needed")
        if timeout_ms is not None and not isinstance(timeout_ms, (int, float)):
            raise TypeError(f"timeout_ms is {timeout_ms!r}; a number or None is needed")
        if timeout_ms is not None and math.isnan(timeout_ms):
            raise ValueError("timeout_ms is nan; a number or None is needed")
        limit = -1 if timeout_ms is None else int(min(max(0, timeout_ms), _WAIT_MS_MAX))
        return self._call(lambda: self._open_core().wait(list(offsets), list(offsets.values()), limit, committed))

    # ---- settings ----

    def alter(self, schema: Any = None, **settings: Unpack[TopicSettings]) -> None:
        """Changes settings, or gives a typed topic a wider schema: one with more nullable fields.

        Both hold from the next append on, in every process.
        """
        self._writable()
        self._open_core()  # through which the change is told to others
        for _ in range(_STALE_RETRIES):
            row = self._row
            config = self._config.changed(settings)
            changed = dataclasses.replace(
                row,
                config=dataclasses.asdict(config),
                generation=row.generation + 1,
                mixed=row.mixed or config.compression != self._config.compression,
                schemas=self._widened(schema, row),
            )
            if len(changed.schemas) > len(row.schemas):
                changed = dataclasses.replace(changed, mixed=True)
            if self._store.catalog.change_topic(changed):
                self._take(changed, publish=True)
                return
            self._refresh()
        raise StoreFormatError(f"topic {self.name!r} is changed by others all the time")

    def _widened(self, wider: Any, row: TopicRow) -> dict[int, bytes | None]:
        if wider is None:
            return row.schemas
        old = self.schema
        if old is None:
            raise ValueError(f"topic {self.name!r} is plain: it has no schema to alter")
        new = schemas.checked_user_schema(wider)
        schemas.check_evolution(old, new)
        if new.equals(old, check_metadata=True):
            return row.schemas
        number = self._current + 1
        return {**row.schemas, number: schemas.make_version(row.id, number, new).message}

    def add_partitions(self, total: int) -> None:
        """Grows the topic to `total` partitions. Keys are spread anew from then on, as in Apache Kafka."""
        self._writable()
        check_partitions(total)
        self._open_core()
        for _ in range(_STALE_RETRIES):
            if total <= self._row.partitions:
                raise ValueError(
                    f"topic {self.name!r} has {self._row.partitions} partitions already; give more, not {total}"
                )
            changed = dataclasses.replace(self._row, partitions=total, generation=self._row.generation + 1)
            if self._store.catalog.change_topic(changed):
                self._take(changed, publish=True)
                self._store.topics_changed()
                return
            self._refresh()

    def flush(self) -> None:
        """Returns when everything appended so far, by anyone, is on the drive."""
        self._writable()
        core = self._open_core()
        for partition in range(self._row.partitions):
            self._call(partial(core.flush, partition))

    # ---- transactions: called by their coordinator ----

    def end_transaction(
        self, partition: int, producer_id: int, epoch: int, *, commit: bool, fence: bool = False
    ) -> int | None:
        """Writes the marker that ends a producer's transaction here; its offset, None when nothing was open.

        fence: an abort marker is written even so, and keeps lower epochs of the producer out.
        """
        core = self._open_core()
        offset = self._call(lambda: core.append_marker(partition, producer_id, epoch, commit, fence))
        if offset is not None and not self._unflushed:
            self._store.note_unflushed(self)
        return offset

    def open_transactions(self, partition: int) -> list[tuple[int, int, int]]:
        """The open transactions of a partition: (producer id, epoch, first offset) each."""
        return self._call(lambda: self._open_core().open_transactions(partition))

    def flush_partition(self, partition: int) -> None:
        """Returns when everything appended to the partition so far is on the drive."""
        self._call(lambda: self._open_core().flush(partition))

    def durable_target(self, partition: int) -> tuple[_core.Topic, int, int]:
        """What `_core.wait_durable` takes to wait for all that the partition holds now."""
        core = self._open_core()
        return core, partition, self._call(lambda: core.describe(partition, False))[1]

    def durable_offset(self, partition: int) -> int:
        """Everything below it survives a loss of power."""
        return self._call(lambda: self._open_core().describe(partition, False))[2]

    def unstable_partitions(self) -> list[int]:
        """The partitions with a transaction that is not decided."""
        self._refresh_if_stale()
        core = self._open_core()
        found = []
        for partition in range(self._row.partitions):
            described = self._call(partial(core.describe, partition, False))
            if described[4] < described[1]:
                found.append(partition)
        return found

    def _writable(self) -> None:
        self._store.check_open()
        if self._store.mode == "r":
            raise StoreReadOnlyError("the store was opened with mode 'r'")

    # ---- the core's object, and what other processes change ----

    def flush_appended(self) -> None:
        """Makes durable what this handle appended; called by the store's flusher."""
        self._unflushed = False
        if self._core is not None:
            self._core.flush()

    def note_durable(self) -> None:
        """Notes in the logs, when they are durable, that they are; called by the store's flusher."""
        if self._core is not None:
            self._core.note_durable()

    def mark_unflushed(self, unflushed: bool = True) -> None:
        """Remembers that there is something to flush, and somebody who will."""
        self._unflushed = unflushed

    def close_core(self, *, deleted: bool = False) -> None:
        """Closes the native topic; later calls raise. Called by the store."""
        core = self._core
        if core is None:
            return
        if deleted:
            core.mark_deleted()
        core.close()

    def verify_partition(self, partition: int, progress: Callable[[int], None] | None) -> list[Any]:
        """What is wrong with one partition: (path, offset, position, message) each."""
        return self._call(lambda: self._open_core().verify(partition, progress))

    def open(self) -> None:
        """Opens the topic's files, which is otherwise done at first use."""
        self._open_core()

    def native(self) -> _core.Topic:
        """The core's object, opened: what waits for several topics needs it."""
        return self._open_core()

    def _open_core(self) -> _core.Topic:
        core = self._core
        if core is not None:
            if self._store.closed:
                self._store.check_open()
            return core
        self._store.check_open()  # before the lock: a forked child must not wait for a thread of its parent
        with self._store.lock:
            self._store.check_open()
            if self._core is None:
                self._core = self._new_core()
                self._refresh()  # for what was changed while we did not have it open
            return self._core

    def _new_core(self) -> _core.Topic:
        path = self._store.path / "topics" / self._row.folder
        folder = bytes(path)
        try:
            if not path.is_dir():  # without this a reader would find no records
                raise StorageError(errno.ENOENT, f"the folder of topic {self.name!r} is missing", str(path))
            core = _core.Topic(folder, self._store.mode == "rw", self._native_settings())
        except StorageError:
            if self._store.catalog.topic_by_id(self._row.id) is None:
                raise TopicNotFoundError(f"topic {self.name!r} was deleted") from None
            raise
        if self._store.journal is not None:
            core.use_journal(self._store.journal)
        else:
            core.read_journal(bytes(self._store.path))
        for version in self._versions.values():
            self._add_schema(core, version)
        return core

    @staticmethod
    def _add_schema(core: _core.Topic, version: schemas.SchemaVersion) -> None:
        whole = pa.schema(list(version.file))
        core.add_schema(whole.__arrow_c_schema__(), version.message, version.partition_digits_at, version.number)

    def _native_settings(self) -> tuple[int, int, int, int, int, int]:
        config = self._config
        return (
            config.segment_bytes,
            config.segment_ms or 0,
            config.max_record_bytes,
            self._row.generation,
            self._row.partitions,
            config.producer_expiry_ms,
        )

    def _call(self, function: Callable[[], _Result]) -> _Result:
        """Calls into the core; when another process changed the topic, takes the change and repeats."""
        for _ in range(_STALE_RETRIES):
            try:
                result = function()
                if self._core is not None and self._core.found_unflushed():
                    self._store.note_unflushed(self)
                return result
            except _core.StaleTopic:
                self._refresh()
            except (StoreFormatError, TopicNotFoundError) as error:
                if not self._refresh():
                    raise self.explained(error) from None
        raise StoreFormatError(f"topic {self.name!r} is changed by others all the time")

    def explained(self, error: Exception) -> Exception:
        """An error of the core with what only the topic knows: its name, and what a foreign file is."""
        if isinstance(error, TopicNotFoundError):
            return TopicNotFoundError(f"topic {self.name!r} was deleted")
        if isinstance(error, StoreFormatError) and error.path is not None and not error.position:
            difference = self._difference(error.path)
            if difference is None:
                damaged = "the segment does not begin with the Arrow schema that it must have"
                return CorruptionError(damaged, error.path, error.offset, 0)
            return StoreFormatError(f"{difference} (file {error.path})", error.path)
        return error

    def _difference(self, path: str) -> str | None:
        """Why a segment file is none of this topic; None when it is damaged, or no segment at all."""
        try:
            with Path(path).open("rb") as file:
                found = schemas.read_segment_metadata(file.read(_SCHEMA_READ_BYTES))
        except OSError as error:
            return f"a segment cannot be read: {error}"
        if "streamcore.format" not in found:
            return None
        if found["streamcore.format"] != str(schemas.FORMAT_VERSION):
            ours = schemas.FORMAT_VERSION
            return (
                f"the segment has format {found['streamcore.format']}; this version of streamcore reads format {ours}"
            )
        if found.get("streamcore.topic") != self.id:
            return f"the segment belongs to the topic with the id {found.get('streamcore.topic')}, not to {self.id}"
        partition, version = found.get("streamcore.partition"), found.get("streamcore.schema_version")
        if partition == f"{int(Path(path).parent.name):010d}" and version in {str(number) for number in self._versions}:
            return None
        return f"the segment is of partition {partition} and schema version {version}, which do not fit its place"

    def _refresh_if_stale(self) -> None:
        if self._store.mode == "r":  # nobody tells a reader when there is no writer
            signature = self._store.catalog.signature()
            if signature != self._seen:
                self._refresh()
                self._seen = signature
        elif self._core is not None and (
            self._core.published_generation() != self._row.generation or self._core.is_deleted()
        ):
            self._refresh()

    def take_row(self, row: TopicRow) -> None:
        """Takes what the catalog says of this topic, if that is news; called by the store."""
        if row.generation > self._row.generation:
            self._take(row, publish=False)

    def _refresh(self) -> bool:
        """Reads the catalog again; True when something changed."""
        self._store.check_open()
        row = self._store.catalog.topic_by_id(self._row.id)
        if row is None:
            raise TopicNotFoundError(f"topic {self.name!r} was deleted")
        if row.generation == self._row.generation:
            if (
                self._core is not None
                and self._core.published_generation() != row.generation
                and self._store.mode == "rw"
            ):
                self._core.alter(self._native_settings(), True)  # the process that changed it died before it said so
                return True
            return False
        self._take(row, publish=False)
        return True

    def _take(self, row: TopicRow, *, publish: bool) -> None:
        with self._store.lock:
            known = set(self._versions)
            self._config = TopicConfig.stored(row.config, row.name)
            self._row = row
            self._take_schemas(row)
            if self._core is not None:
                for number in sorted(set(self._versions) - known):
                    self._add_schema(self._core, self._versions[number])
                self._core.alter(self._native_settings(), publish)
            self._plan_fast_path()

    def _take_schemas(self, row: TopicRow) -> None:
        for number, message in row.schemas.items():
            if number not in self._versions:
                try:
                    self._versions[number] = schemas.version_of_message(number, message or b"")
                except ValueError as error:
                    damaged = f"schema {number} of topic {row.name!r} is damaged ({error})"
                    raise CorruptionError(damaged, str(self._store.catalog.path)) from None
        self._current = max(self._versions)

    def _plan_fast_path(self) -> None:
        self._fast = self.schema is None and self._config.compression == "none"
        self._durable = (self._config.durability or self._store.durability) == "disk"
        self._log_append_time = self._config.timestamp_type == "append"


def _is_committed(isolation: Any) -> bool:
    if isolation not in ("committed", "uncommitted"):
        raise ValueError(f"isolation is {isolation!r}; 'committed' or 'uncommitted' is allowed")
    return bool(isolation == "committed")


def _table_of(table: Any) -> pa.Table:
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    try:
        if hasattr(table, "__arrow_c_stream__"):
            return pa.RecordBatchReader.from_stream(table).read_all()
        if hasattr(table, "__arrow_c_array__"):
            return pa.Table.from_batches([pa.record_batch(table)])
    except pa.ArrowInvalid as error:
        raise TypeError(f"table is {type(table).__name__}, which is no table: {error}") from error
    raise TypeError(
        f"table is {type(table).__name__}; something with __arrow_c_stream__ or __arrow_c_array__ is needed"
    )
