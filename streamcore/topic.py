"""A topic: appends, scans, settings, partitions. What users see; the rest is in the handle and in the appender."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import pyarrow as pa

from streamcore import _core, compaction, consolidation
from streamcore import schema as schemas
from streamcore.append import Producer
from streamcore.appender import Appender, Span, Writer
from streamcore.catalog import TopicRow
from streamcore.config import TopicConfig, TopicSettings, check_partitions
from streamcore.errors import OffsetOutOfRangeError
from streamcore.retention import Removed
from streamcore.rewriting import Pace, Rewritten, Stop
from streamcore.scan import Bound, Scan, plan_legs
from streamcore.segments import Partition, Segment, partition_of, segments_of
from streamcore.topic_handle import Durability, TopicHandle

if TYPE_CHECKING:
    from streamcore.store import Store
    from streamcore.tier.log import TierLog
    from streamcore.tier.offload import Offloaded

DeletionBound = int | datetime.datetime | Literal["latest"]
Before = DeletionBound | Mapping[int, DeletionBound]
SendPlan = tuple[int, int, int, int, bool, bool, bool, bool]  # see SendBuffer.add_topic
_WAIT_MS_MAX = 1 << 40  # 34 years


class Topic:
    """A topic of a store; made by `Store.create_topic` and `Store.topic`. Any thread may use it."""

    def __init__(self, store: Store, row: TopicRow) -> None:
        self._store = store
        self._handle = TopicHandle(store, row)
        self._appender = Appender(self._handle)

    # ---- what it is ----

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._handle.row.name

    @property
    def store(self) -> Store:
        """The store that it is of."""
        return self._store

    @property
    def id(self) -> str:
        """The topic's identity: another topic of the same name, made later, has another one."""
        return self._handle.row.id

    @property
    def schema(self) -> pa.Schema | None:
        """The Arrow schema of a typed topic's values; None for a plain topic."""
        return self._handle.version.user

    @property
    def config(self) -> TopicConfig:
        """The topic's settings."""
        return self._handle.config

    @property
    def folder(self) -> str:
        """The name of the topic's folder below `topics/` of the store."""
        return self._handle.row.folder

    @property
    def partition_count(self) -> int:
        """The number of partitions."""
        return self._handle.row.partitions

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """All partitions with their offsets and sizes, as they are now."""
        self._handle.refresh_if_stale()
        return tuple(partition_of(self._handle, number) for number in range(self._handle.row.partitions))

    @property
    def row(self) -> TopicRow:
        """What the catalog says of it; for modules of this package."""
        return self._handle.row

    @property
    def cold(self) -> TierLog | None:
        """What the store's tier holds of it; None when it has none; for modules of this package."""
        return self._handle.cold

    def counters(self) -> dict[str, Any]:
        """What this process did with the topic since it opened the store, by name; for `Store.stats`."""
        return self._handle.open().counters()

    def __repr__(self) -> str:
        kind = "plain" if self.schema is None else f"typed: {', '.join(self.schema.names)}"
        return f"<Topic {self.name!r}, {self._handle.row.partitions} partitions, {kind}>"

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
        return self._appender.append(values, keys, timestamps, headers, partition, durability)

    def append_table(
        self, table: Any, partition: int | None = None, durability: Durability | None = None
    ) -> list[Span]:
        """Appends a table: anything with `__arrow_c_stream__` or `__arrow_c_array__`.

        Columns: `value` (of a typed topic instead: the schema's columns), and, if present, `key`, `timestamp`,
        `headers` and `partition`. All of it that goes to one partition is appended together or not at all.
        """
        return self._appender.append_table(table, partition, durability)

    def append_by(self, writer: Writer, values: Any, keys: Any, timestamps: Any, headers: Any,
                  partition: int | None) -> list[Span]:  # fmt: skip
        """`append` in a writer's name; called by transactions."""
        return self._appender.append_columns(values, keys, timestamps, headers, partition, "os", writer)

    def append_table_by(self, writer: Writer, table: Any, partition: int | None) -> list[Span]:
        """`append_table` in a writer's name; called by transactions."""
        return self._appender.append_table(table, partition, "os", writer)

    def check_partition(self, partition: Any) -> int:
        """The number of a partition. Raises TypeError and ValueError for what is none."""
        self._handle.check_partition(partition)
        return int(partition)

    def bounds(
        self, partitions: Iterable[int], isolation: Literal["committed", "uncommitted"] = "committed"
    ) -> dict[int, tuple[int, int, int]]:
        """Of each partition the start offset, the offset up to which it can be read now, and the end offset."""
        committed = _is_committed(isolation)

        def run() -> dict[int, tuple[int, int, int]]:
            core = self._handle.open()
            found = {}
            for partition in partitions:
                start, end, _, _, stable, _ = core.describe(partition, False)
                found[partition] = (self._handle.start(partition, start), stable if committed else end, end)
            return found

        return self._handle.call(run)

    def local_start(self, partition: int) -> int:
        """Where what is here of a partition begins; what is before it is in the tier."""
        return self._handle.call(lambda: self._handle.open().describe(partition, False))[0]

    # ---- what producers need ----

    def send_plan(self, durability: Durability | None) -> tuple[_core.Topic, SendPlan]:
        """The native topic, and how a producer's batches are appended to it: see SendBuffer.add_topic."""
        self._handle.refresh_if_stale()
        core = self._handle.open()
        with self._store.lock:
            return core, (
                self._handle.row.partitions,
                self._handle.version_number,
                self._handle.row.generation,
                self._handle.config.max_record_bytes,
                self._handle.takes_rows,
                self._handle.log_append_time,
                self._handle.is_durable(durability),
                self._handle.config.compacts,
            )

    def append_sealed(self, batch: _core.SealedBatch, producer: Producer | None) -> tuple[int, int, int]:
        """Appends what a producer has collected for a partition, not durably: (partition, first offset, end offset)."""
        return self._appender.append_sealed(batch, producer)

    def note_appended(self) -> None:
        """Has what a producer appended flushed in the background within a second."""
        self._handle.note_appended()

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
        self._handle.refresh_if_stale()
        for bound in (start, end):
            for number in bound if isinstance(bound, Mapping) else ():
                self._handle.check_partition(number)
        if partition is not None:
            self._handle.check_partition(partition)
        core = self._handle.open()
        legs = plan_legs(
            partition,
            start,
            end,
            self._handle.row.partitions,
            self._handle.describe,
            committed=committed,
        )
        return Scan(
            self,
            core,
            self._handle.versions,
            self._handle.version_number,
            self._handle.row.mixed,
            legs,
            columns,
            limit,
            verify,
            committed,
            self._handle.cold,
        )

    def segments(self, partition: int | None = None) -> list[Segment]:
        """All segment files, by partition and offset, with their time ranges; or those of one partition.

        The first one may begin with records that are deleted: they go with the rest of it.
        """
        self._handle.refresh_if_stale()
        if partition is not None:
            self._handle.check_partition(partition)
        wanted = range(self._handle.row.partitions) if partition is None else [partition]
        return [segment for number in wanted for segment in segments_of(self._handle, number)]

    # ---- the tier ----

    def extents(self, partition: int | None = None) -> list[Segment]:
        """All that there is, once: what is in the tier alone, each object as a segment, then the segments here."""
        cold = self._handle.cold
        if cold is None:
            return self.segments(partition)
        found = []
        for number in range(self._handle.row.partitions) if partition is None else [partition]:
            local = self.local_start(number)
            found += cold.extents(number, local)
            here = (one for one in self.segments(number) if one.end_offset > local)
            found += [dataclasses.replace(one, base_offset=max(one.base_offset, local)) for one in here]
        return found

    def offload(self, stop: Stop | None = None) -> list[Offloaded]:
        """Puts sealed segments into the store's tier that it does not have yet, up to the last stable offset.

        The store does this by itself every 30 s. stop() is asked between segments, and ends it when it is true. What
        is here goes later, by local retention. Raises ValueError where the topic is not tiered, TierError, FencedError
        when another store was restored from the tier meanwhile, StoreReadOnlyError.
        """
        self._handle.check_writable()
        self._handle.refresh_if_stale()
        if not self._handle.config.tier or self._store.tier is None or self._handle.cold is None:
            raise ValueError(f"topic {self.name!r} is not tiered: alter(tier=True) has its segments go to the tier")
        from streamcore.tier import offload

        return offload.offload(self, self._store.tier, self._handle.cold, stop)

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
        self._handle.check_writable()
        if partition is not None:
            self._handle.check_partition(partition)
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
        self._handle.check_writable()
        self._handle.refresh_if_stale()
        if partition is not None:
            self._handle.check_partition(partition)
        if not self._handle.config.compacts:
            raise ValueError(
                f"topic {self.name!r} has cleanup={self._handle.config.cleanup!r}; only 'compact' is compacted"
            )
        options = compaction.Options(memory_bytes, min_dirty_ratio, now_ms)
        return compaction.compact(self, self._store.catalog, Pace(bytes_per_second, stop), partition, options)

    def latest(self, key: Any, partition: int | None = None) -> _core.Record | None:
        """The latest record of a key; None when there is none, or it is a tombstone.

        key: bytes-like. partition: default the one that keys like this go to. It reads backwards, segment by segment,
        until it finds the key, whether or not the topic was compacted.
        """
        self._handle.refresh_if_stale()
        data = bytes(memoryview(key))
        if partition is not None:
            self._handle.check_partition(partition)
        number = _core.partition_of_key(data, self._handle.row.partitions) if partition is None else partition
        return compaction.latest(self, data, number)

    def table(self, partition: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """The latest record of each key, by partition and offset; keys whose latest record is a tombstone are left out.

        columns: as for `scan`. Records without a key are left out. Right whether or not the topic was compacted.
        """
        self._handle.refresh_if_stale()
        if partition is not None:
            self._handle.check_partition(partition)
        return compaction.table(self, range(self._handle.row.partitions) if partition is None else [partition], columns)

    def rewrites(self, partition: int) -> int:
        """Another number whenever a segment of the partition was replaced, by whichever process."""
        return self._handle.call(lambda: self._handle.open().rewrites(partition))

    def rewritable(self, partition: int) -> list[Segment]:
        """The segments that are sealed, with others behind them; called by what rewrites them."""
        return self.segments(partition)[:-1]

    def open_rewrite(self, segment: Segment) -> _core.Rewrite | None:
        """Begins to replace a segment; None when it is gone or not fit yet."""
        core = self._handle.open()
        try:
            return self._handle.call(lambda: _core.Rewrite(core, segment.partition, segment.base_offset))
        except OffsetOutOfRangeError:
            return None

    @property
    def versions(self) -> Mapping[int, schemas.SchemaVersion]:
        """The schema versions by number, which batches name."""
        return self._handle.versions

    # ---- deletion ----

    def delete_records(self, before: Before, partition: int | None = None) -> list[Removed]:
        """Deletes the records below an offset, durably, and returns what was removed of each partition.

        before: an offset (of `partition`, which may be left out where there is one); "latest": all of them; an aware
        datetime: those before the first record that is as new; or a mapping {partition: any of these}. The log begins
        there from now on, also for scans that were made before: they raise OffsetOutOfRangeError where they need what
        is gone. Files go when all of their records are deleted. An offset below the start deletes nothing.

        Raises OffsetOutOfRangeError for an offset behind the end of the log, StoreReadOnlyError, StorageError.
        """
        self._handle.check_writable()
        self._handle.refresh_if_stale()
        if partition is not None:
            self._handle.check_partition(partition)
        if isinstance(before, Mapping):
            for number in before:
                self._handle.check_partition(number)
            bounds = {number: before[number] for number in before if partition in (None, number)}
        elif partition is None and self._handle.row.partitions > 1 and isinstance(before, (int, np.integer)):
            raise ValueError(
                f"before is an offset; topic {self.name!r} has {self._handle.row.partitions} partitions: name one"
            )
        else:
            bounds = dict.fromkeys(range(self._handle.row.partitions) if partition is None else [partition], before)
        wanted = {number: self._deletion_offset(number, bound) for number, bound in bounds.items()}
        return [self._delete_before(number, offset) for number, offset in wanted.items()]

    def _delete_before(self, partition: int, offset: int) -> Removed:
        cold = self._handle.cold
        if cold is None:
            return Removed(partition, *self.delete_local(partition, offset))
        from streamcore.tier import keeping

        end = self.bounds([partition])[partition][2]
        if offset > end:  # which the core would say behind the tier had deleted
            raise OffsetOutOfRangeError(f"offset {offset} is behind the end of partition {partition}", 0, end)
        assert self._store.tier is not None
        return keeping.delete_before(self, self._store.tier, cold, partition, offset)

    def delete_local(self, partition: int, before: int) -> tuple[int, int, int]:
        """Deletes what is here of a partition below an offset: the start of what is left here, files and bytes."""
        core = self._handle.open()
        return self._handle.call(partial(_core.delete_before, core, partition, before))

    def producers(self, partition: int, offset: int, known_offset: int, known: bytes) -> bytes:
        """What is known of the producers of all records below an offset, where a segment ends: `_core.producers`."""
        core = self._handle.open()
        return self._handle.call(partial(_core.producers, core, partition, offset, known_offset, known))

    def _deletion_offset(self, partition: int, bound: Any) -> int:
        if isinstance(bound, (int, np.integer)) and not isinstance(bound, bool):
            return max(0, int(bound))
        end = self._handle.call(lambda: self._handle.open().describe(partition, False))[1]
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
        self._handle.check_writable()
        self._handle.refresh_if_stale()
        if partition is not None:
            self._handle.check_partition(partition)
        core = self._handle.open()
        for number in range(self._handle.row.partitions) if partition is None else [partition]:
            self._handle.call(partial(_core.roll, core, number))

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
            self._handle.check_partition(partition)
            if not isinstance(offset, (int, np.integer)) or isinstance(offset, bool):
                raise TypeError(f"offsets[{partition}] is {offset!r}; an int is needed")
        if not offsets:
            raise ValueError("offsets is empty; a partition to wait for is needed")
        if timeout_ms is not None and not isinstance(timeout_ms, (int, float)):
            raise TypeError(f"timeout_ms is {timeout_ms!r}; a number or None is needed")
        if timeout_ms is not None and math.isnan(timeout_ms):
            raise ValueError("timeout_ms is nan; a number or None is needed")
        limit = -1 if timeout_ms is None else int(min(max(0, timeout_ms), _WAIT_MS_MAX))
        return self._handle.call(
            lambda: self._handle.open().wait(list(offsets), list(offsets.values()), limit, committed)
        )

    # ---- settings ----

    def alter(self, schema: Any = None, **settings: Unpack[TopicSettings]) -> None:
        """Changes settings, or gives a typed topic a wider schema: one with more nullable fields.

        Both hold from the next append on, in every process.
        """
        self._handle.check_writable()

        def changed(row: TopicRow) -> TopicRow:
            config = self.config.changed(settings)
            versions = self._widened(schema, row)
            self._store.check_tiered(config, self.schema if schema is None else schemas.checked_user_schema(schema))
            return dataclasses.replace(
                row,
                config=dataclasses.asdict(config),
                generation=row.generation + 1,
                mixed=row.mixed or config.compression != self.config.compression or len(versions) > len(row.schemas),
                schemas=versions,
            )

        self._handle.change(changed)

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
        number = self._handle.version_number + 1
        return {**row.schemas, number: schemas.make_version(row.id, number, new).message}

    def add_partitions(self, total: int) -> None:
        """Grows the topic to `total` partitions. Keys are spread anew from then on, as in Apache Kafka."""
        self._handle.check_writable()
        check_partitions(total)

        def changed(row: TopicRow) -> TopicRow:
            if total <= row.partitions:
                raise ValueError(f"topic {self.name!r} has {row.partitions} partitions already; give more, not {total}")
            return dataclasses.replace(row, partitions=total, generation=row.generation + 1)

        self._handle.change(changed)
        self._store.topics_changed()

    def flush(self) -> None:
        """Returns when everything appended so far, by anyone, is on the drive."""
        self._handle.check_writable()
        core = self._handle.open()
        for partition in range(self._handle.row.partitions):
            self._handle.call(partial(core.flush, partition))

    # ---- transactions: called by their coordinator ----

    def end_transaction(
        self, partition: int, producer_id: int, epoch: int, *, commit: bool, fence: bool = False
    ) -> int | None:
        """Writes the marker that ends a producer's transaction here; its offset, None when nothing was open.

        fence: an abort marker is written even so, and keeps lower epochs of the producer out.
        """
        core = self._handle.open()
        offset = self._handle.call(lambda: core.append_marker(partition, producer_id, epoch, commit, fence))
        if offset is not None:
            self._handle.note_appended()
        return offset

    def open_transactions(self, partition: int) -> list[tuple[int, int, int]]:
        """The open transactions of a partition: (producer id, epoch, first offset) each."""
        return self._handle.call(lambda: self._handle.open().open_transactions(partition))

    def flush_partition(self, partition: int) -> None:
        """Returns when everything appended to the partition so far is on the drive."""
        self._handle.call(lambda: self._handle.open().flush(partition))

    def durable_target(self, partition: int) -> tuple[_core.Topic, int, int]:
        """What `_core.wait_durable` takes to wait for all that the partition holds now."""
        core = self._handle.open()
        return core, partition, self._handle.call(lambda: core.describe(partition, False))[1]

    def durable_offset(self, partition: int) -> int:
        """Everything below it survives a loss of power."""
        return self._handle.call(lambda: self._handle.open().describe(partition, False))[2]

    def unstable_partitions(self) -> list[int]:
        """The partitions with a transaction that is not decided."""
        self._handle.refresh_if_stale()
        core = self._handle.open()
        found = []
        for partition in range(self._handle.row.partitions):
            described = self._handle.call(partial(core.describe, partition, False))
            if described[4] < described[1]:
                found.append(partition)
        return found

    # ---- the handle: what the store and what waits for several topics need of it ----

    def open(self) -> None:
        """Opens the topic's files, which is otherwise done at first use."""
        self._handle.open()

    def native(self) -> _core.Topic:
        """The core's object, opened: what waits for several topics needs it."""
        return self._handle.open()

    def explained(self, error: Exception) -> Exception:
        """An error of the core with what only the topic knows: its name, and what a foreign file is."""
        return self._handle.explained(error)

    def take_row(self, row: TopicRow) -> None:
        """Takes what the catalog says of this topic, if that is news; called by the store."""
        self._handle.take_row(row)

    def flush_appended(self) -> None:
        """Makes durable what this handle appended; called by the store."""
        self._handle.flush_appended()

    def close_core(self, *, deleted: bool = False) -> None:
        """Closes the native topic; later calls raise. Called by the store."""
        self._handle.close(deleted=deleted)

    def verify_partition(self, partition: int, progress: Callable[[int], None] | None) -> list[Any]:
        """What is wrong with one partition: (path, offset, position, message) each."""
        return self._handle.call(lambda: self._handle.open().verify(partition, progress))


def _is_committed(isolation: Any) -> bool:
    if isolation not in ("committed", "uncommitted"):
        raise ValueError(f"isolation is {isolation!r}; 'committed' or 'uncommitted' is allowed")
    return bool(isolation == "committed")
