"""Scans: bounded reads of a topic, as records, as Arrow, or as a count."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamcore import _core, schema
from streamcore.columns import microseconds
from streamcore.errors import OffsetOutOfRangeError

if TYPE_CHECKING:
    from concurrent.futures import Future

    import pandas as pd
    import polars as pl

    from streamcore.tier.log import TierLog
    from streamcore.topic import Topic

SimpleBound = int | datetime.datetime | Literal["earliest", "latest"]
Bound = SimpleBound | Mapping[int, SimpleBound]
Describe = Callable[[int], tuple[int, int, int, int, int, int]]

_LOW = -(1 << 63)
_HIGH = (1 << 63) - 1
_DECODED_ROWS = 1024  # at once: objects take many times the room of what they are made of


@dataclasses.dataclass(frozen=True)
class Leg:
    """Offsets [start, end) of a partition, of which those with low <= timestamp in ms <= high are wanted."""

    partition: int
    start: int
    end: int
    low: int = _LOW
    high: int = _HIGH

    @property
    def by_time(self) -> bool:
        """Whether times bound it."""
        return self.low != _LOW or self.high != _HIGH

    def part(self, start: int, end: int) -> Leg:
        """Some of its offsets."""
        return dataclasses.replace(self, start=start, end=end)


@dataclasses.dataclass(frozen=True)
class ScanMetrics:
    """What a scan has read so far: segments, batches, rows, bytes of the columns handed out, bytes checked."""

    segments_opened: int = 0
    batches: int = 0
    rows: int = 0
    bytes_exported: int = 0
    bytes_verified: int = 0


# ---- bounds ----------------------------------------------------------------------------------------------------


def plan_legs(
    partition: int | None, start: Bound, end: Bound, partitions: int, describe: Describe, *, committed: bool
) -> list[Leg]:
    """Resolves bounds to offsets and times of each partition that is wanted.

    committed: no further than the last stable offset, which "latest" then means.
    """
    wanted = range(partitions) if partition is None else [partition]
    for bound in (start, end):
        if isinstance(bound, Mapping):
            wanted = [p for p in wanted if p in bound]
    return [_plan_leg(p, _bound_of(start, p), _bound_of(end, p), describe(p), committed=committed) for p in wanted]


def _bound_of(bound: Bound, partition: int) -> SimpleBound:
    return bound[partition] if isinstance(bound, Mapping) else bound


def _plan_leg(
    partition: int, start: SimpleBound, end: SimpleBound, known: tuple[int, int, int, int, int, int], *, committed: bool
) -> Leg:
    earliest, latest = known[0], known[1]
    stable = known[4] if committed else latest
    low, high = _LOW, _HIGH
    first, last = earliest, latest
    if isinstance(start, datetime.datetime):
        low = _ceil_ms(start, "start")
    else:
        first = _offset(start, "start", partition, earliest, stable if isinstance(start, str) else latest)
    if isinstance(end, datetime.datetime):
        high = _ceil_ms(end, "end") - 1
    else:
        last = _offset(end, "end", partition, earliest, latest)
    if isinstance(start, datetime.datetime) and isinstance(end, datetime.datetime):
        if start > end:
            raise ValueError(f"start ({start}) is after end ({end})")
    elif first > last:
        raise ValueError(f"start ({first}) is behind end ({last}) in partition {partition}")
    last = min(last, stable)  # what is behind the last stable offset is not decided yet
    return Leg(partition, min(first, last), last, low, high)


def _ceil_ms(moment: datetime.datetime, name: str) -> int:
    return -(-microseconds(moment, name) // 1000)


def _offset(bound: Any, name: str, partition: int, earliest: int, latest: int) -> int:
    if isinstance(bound, str):
        if bound == "earliest":
            return earliest
        if bound == "latest":
            return latest
        raise ValueError(f"{name} is {bound!r}; an offset, an aware datetime, 'earliest' or 'latest' is allowed")
    if not isinstance(bound, (int, np.integer)) or isinstance(bound, bool):
        raise TypeError(
            f"{name} is {type(bound).__name__}; an offset, an aware datetime, 'earliest' or 'latest' is needed"
        )
    if not earliest <= bound <= latest:
        raise OffsetOutOfRangeError(
            f"{name} is offset {bound}; partition {partition} has offsets {earliest} to {latest}", earliest, latest
        )
    return int(bound)


def _groups(legs: list[Leg]) -> list[list[Leg]]:
    """Legs that follow each other with the same time bounds are read by one scan of the core."""
    groups: list[list[Leg]] = []
    for leg in legs:
        if groups and (groups[-1][-1].low, groups[-1][-1].high) == (leg.low, leg.high):
            groups[-1].append(leg)
        else:
            groups.append([leg])
    return groups


# ---- columns ---------------------------------------------------------------------------------------------------


class Projection:
    """The output columns, and how each schema version provides them."""

    def __init__(self, names: list[str] | None, versions: dict[int, schema.SchemaVersion], current: int) -> None:
        if names is not None and not isinstance(names, (list, tuple)):
            raise TypeError(f"columns is {type(names).__name__}; a list of names is needed")
        self.names = list(schema.RECORD_COLUMNS) if names is None else list(names)
        self._versions = versions
        newest = versions[current]
        fields = []
        for name in self.names:
            if not isinstance(name, str):
                raise TypeError(f"columns has {name!r}; names are needed")
            found = schema.resolve_column(name, newest)
            if found is None:
                raise ValueError(f"there is no column {name!r}; there are {', '.join(schema.known_columns(newest))}")
            fields.append(found[2])
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"columns names one twice: {', '.join(self.names)}")
        self.schema = pa.schema(fields)
        self._native: dict[int, tuple[_core.Columns, list[int], pa.Schema]] = {}

    def version(self, number: int) -> schema.SchemaVersion:
        """A version of the topic's schema."""
        return self._versions[number]

    def native(self, version: int) -> tuple[_core.Columns, list[int], pa.Schema]:
        """For batches of one version: the core's columns, the places of those in the output, and their schema."""
        if version not in self._native:
            columns, places, fields = [], [], []
            for place, name in enumerate(self.names):
                found = schema.resolve_column(name, self._versions[version])
                if found is not None:
                    columns.append((found[0], found[1]))
                    places.append(place)
                    fields.append(found[2])
            self._native[version] = (_core.Columns(columns), places, pa.schema(fields))
        return self._native[version]

    def widen(self, batch: pa.RecordBatch, places: list[int]) -> pa.RecordBatch:
        """Fills what an older version lacks with nulls."""
        if batch.schema.equals(self.schema):
            return batch
        arrays = []
        for place, field in enumerate(self.schema):
            if place not in places:
                arrays.append(pa.nulls(batch.num_rows, field.type))
            else:
                arrays.append(_widen_array(batch.column(places.index(place)), field.type))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _widen_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    names = [array.type.field(i).name for i in range(array.type.num_fields)]
    parts = dict(zip(names, array.flatten(), strict=True))
    fields = [kind.field(i) for i in range(kind.num_fields)]
    arrays = [parts[f.name] if f.name in parts else pa.nulls(len(array), f.type) for f in fields]
    mask = pc.is_null(array) if array.null_count else None
    return pa.StructArray.from_arrays(arrays, fields=fields, mask=mask)


# ---- the scan --------------------------------------------------------------------------------------------------


class Scan:
    """A bounded read of a topic; made by `Topic.scan`. It can be read again and again, always with the same result.

    It is iterable (Record objects), and any Arrow consumer takes it (`__arrow_c_stream__`).
    """

    def __init__(
        self,
        topic: Topic,
        core: _core.Topic,
        versions: dict[int, schema.SchemaVersion],
        current: int,
        mixed: bool,
        legs: list[Leg],
        columns: list[str] | None,
        limit: int | None,
        verify: bool,
        committed: bool = True,
        cold: TierLog | None = None,
    ) -> None:
        self._cold = cold
        self._topic = topic
        self._core = core
        self._versions = dict(versions)
        self._current = current
        self._mixed = mixed
        self._legs = legs
        self._columns = columns
        self._limit = limit
        self._verify = verify
        self._committed = committed
        self._made_projection = None if columns is None else Projection(columns, self._versions, current)
        self._opened: list[_core.Scan] = []

    @property
    def _projection(self) -> Projection:
        """Made when needed: who iterates over plain records needs none."""
        if self._made_projection is None:
            self._made_projection = Projection(self._columns, self._versions, self._current)
        return self._made_projection

    @property
    def schema(self) -> pa.Schema:
        """The schema of the Arrow output."""
        return self._projection.schema

    @property
    def metrics(self) -> ScanMetrics:
        """What was read through this object so far."""
        totals = [sum(parts) for parts in zip(*(scan.counters() for scan in self._opened), strict=True)]
        return ScanMetrics(*totals)

    def __repr__(self) -> str:
        parts = ", ".join(f"{leg.partition}: {leg.start}..{leg.end}" for leg in self._legs[:8])
        more = ", …" if len(self._legs) > 8 else ""
        return f"<Scan of {self._topic.name!r}, {{{parts}{more}}}>"

    @property
    def ranges(self) -> list[tuple[int, int, int]]:
        """What it reads: (partition, first offset, end offset) each, of which times may leave some out."""
        return [(leg.partition, leg.start, leg.end) for leg in self._legs]

    def narrow(
        self,
        partitions: Any = None,
        offsets: tuple[int | None, int | None] | None = None,
        timestamps_ms: tuple[int | None, int | None] | None = None,
    ) -> Scan:
        """A scan of those records of this one that also lie in the given bounds (low inclusive, high exclusive)."""
        kept = None if partitions is None else set(partitions)
        low, high = offsets or (None, None)
        after, before = timestamps_ms or (None, None)
        legs = []
        for leg in self._legs:
            if kept is not None and leg.partition not in kept:
                continue
            start = leg.start if low is None else max(leg.start, low)
            end = leg.end if high is None else min(leg.end, high)
            legs.append(
                Leg(
                    leg.partition,
                    start,
                    max(start, end),
                    leg.low if after is None else max(leg.low, after),
                    leg.high if before is None else min(leg.high, before - 1),
                )
            )
        return self._like(legs, self._columns)

    def _like(self, legs: list[Leg], columns: list[str] | None) -> Scan:
        return Scan(
            self._topic,
            self._core,
            self._versions,
            self._current,
            self._mixed,
            legs,
            columns,
            self._limit,
            self._verify,
            self._committed,
            self._cold,
        )

    # ---- Arrow ----

    def to_arrow(self) -> pa.Table:
        """All of it as a table. Buffers of batches that are not compressed are the mapped files."""
        try:
            return self.to_reader().read_all()
        except (pa.ArrowException, OSError):
            for _ in self.batches():  # raises the precise error
                pass
            raise

    def to_reader(self) -> pa.RecordBatchReader:
        """All of it, batch by batch as it is read."""
        if self._is_direct():
            return pa.RecordBatchReader.from_stream(_Stream(self._direct_stream()))
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """The Arrow PyCapsule interface."""
        if self._is_direct() and requested_schema is None:
            return self._direct_stream()
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Record batches, at most as many records as in a stored batch each; of the tier, as in a row group."""
        left = self._limit
        found = self._local_batches() if self._cold is None else self._all_batches(self._cold)
        for made in found if left != 0 else ():
            if left is not None:
                made = made.slice(0, left)
                left -= made.num_rows
            if made.num_rows:
                yield made
            if left == 0:
                return

    def _local_batches(self) -> Iterator[pa.RecordBatch]:
        for group in _groups(self._legs):
            scan = self._open(group, -1 if self._limit is None else self._limit)
            while (batch := scan.next_batch()) is not None:
                yield self._import(scan, batch, group[0])

    def _all_batches(self, cold: TierLog) -> Iterator[pa.RecordBatch]:
        """What is in the tier alone, then what is here; in turn, should that go there meanwhile."""
        for leg in self._legs:
            position = leg.start
            while position < leg.end:
                local = self._local_start(leg.partition)
                if position < local:
                    end = min(local, leg.end)
                    yield from cold.batches(leg.part(position, end), self._projection)
                    position = end
                    continue
                try:
                    for batch, behind in self._of_leg(leg, position):
                        yield batch
                        position = behind
                    position = leg.end
                except OffsetOutOfRangeError:
                    if self._local_start(leg.partition) <= position:
                        raise

    def _of_leg(self, leg: Leg, position: int) -> Iterator[tuple[pa.RecordBatch, int]]:
        """What is here of a partition, and the offset behind each batch."""
        part = leg.part(position, leg.end)
        scan = self._open([part], -1 if self._limit is None else self._limit)
        while (batch := scan.next_batch()) is not None:
            behind = min(batch.last_offset + 1, leg.end)
            yield self._import(scan, batch, part), behind

    def _local_start(self, partition: int) -> int:
        return self._topic.local_start(partition)

    def to_polars(self) -> pl.DataFrame:
        """All of it as a Polars data frame."""
        import polars as pl

        frame = pl.from_arrow(self.to_arrow())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def to_pandas(self) -> pd.DataFrame:
        """All of it as a pandas data frame."""
        return self.to_arrow().to_pandas()

    def _is_direct(self) -> bool:
        """Whether the core's own stream can serve it: nothing to filter, to decompress or to fill in."""
        if self._cold is not None or self._mixed or any(leg.by_time for leg in self._legs):
            return False
        return len(_groups(self._legs)) <= 1

    def _direct_stream(self) -> Any:
        scan = self._open(self._legs, -1 if self._limit is None else self._limit)
        columns, _, own = self._projection.native(self._current)
        return scan.export_stream(columns, own.__arrow_c_schema__(), self._current)

    def _open(self, legs: list[Leg], limit: int) -> _core.Scan:
        low, high = (legs[0].low, legs[0].high) if legs else (_LOW, _HIGH)
        ranges = [(leg.partition, leg.start, leg.end) for leg in legs]
        scan = _core.Scan(self._core, ranges, low, high, limit, self._verify, self._committed)
        scan.explain = self._topic.explained
        scan.topic_name = self._topic.name
        self._opened.append(scan)
        return scan

    def _import(self, scan: _core.Scan, batch: _core.Batch, leg: Leg) -> pa.RecordBatch:
        version = batch.schema_version
        columns, places, own = self._projection.native(version)
        if batch.codec:
            made = self._decompress(batch, places)
        else:
            made = pa.RecordBatch._import_from_c_capsule(own.__arrow_c_schema__(), scan.export_batch(columns))
        if not batch.dense:
            made = self._filter(scan, batch, leg, made)
        return self._projection.widen(made, places)

    def _decompress(self, batch: _core.Batch, places: list[int]) -> pa.RecordBatch:
        version = self._versions[batch.schema_version]
        whole = pa.ipc.read_record_batch(pa.py_buffer(batch.message), version.file)
        whole = whole.slice(batch.first_row, batch.row_count)
        arrays, fields = [], []
        for place in places:
            found = schema.resolve_column(self._projection.names[place], version)
            assert found is not None
            number, path, field = found
            arrays.append(_column_of(whole, number, path, batch.partition))
            fields.append(field)
        if not arrays:
            return whole.select([])  # which still knows its number of rows
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def _filter(self, scan: _core.Scan, batch: _core.Batch, leg: Leg, made: pa.RecordBatch) -> pa.RecordBatch:
        """Only the rows whose time is wanted."""
        if batch.codec:
            whole = pa.ipc.read_record_batch(pa.py_buffer(batch.message), self._versions[batch.schema_version].file)
            times = whole.column("timestamp").slice(batch.first_row, batch.row_count)
        else:
            field = pa.schema([pa.field("timestamp", schema.TIMESTAMP)])
            only = scan.export_batch(_core.Columns([(1, [])]))
            times = pa.RecordBatch._import_from_c_capsule(field.__arrow_c_schema__(), only).column(0)
        stamps = times.view(pa.int64()).to_numpy()
        return made.filter(pa.array((stamps >= leg.low) & (stamps <= leg.high)))

    def prefetch(self) -> int:
        """Fetches what is in the tier alone into the cache on the disk: the number of row groups."""
        return sum(cold.prefetch(leg, self._projection) for cold, leg in self._cold_legs())

    def begin(self) -> list[Future[pa.Table]]:
        """Has what is in the tier alone fetched into memory, of which there must be little."""
        return [future for cold, leg in self._cold_legs() for future in cold.begin(leg, self._projection)]

    def _cold_legs(self) -> Iterator[tuple[TierLog, Leg]]:
        for leg in self._legs:
            end = leg.start if self._cold is None else min(leg.end, self._local_start(leg.partition))
            if self._cold is not None and leg.start < end:
                yield self._cold, leg.part(leg.start, end)

    # ---- counts and records ----

    def count(self) -> int:
        """The number of records, from batch headers alone where no time bounds it."""
        if any(leg.by_time for leg in self._legs):
            return sum(batch.num_rows for batch in self._like(self._legs, ["timestamp"]).batches())
        total = self._open(self._legs, -1).count() if self._cold is None else self._count_all(self._cold)
        return total if self._limit is None else min(total, self._limit)

    def _count_all(self, cold: TierLog) -> int:
        """Of what is in the tier and of what is here."""
        total = 0
        for leg in self._legs:
            local = self._local_start(leg.partition)
            if leg.start < min(local, leg.end):
                total += cold.count(leg.part(leg.start, min(local, leg.end)))
            if local < leg.end:
                here = [leg.part(max(leg.start, local), leg.end)]
                try:
                    total += self._open(here, -1).count()
                except OffsetOutOfRangeError:  # it went to the tier meanwhile
                    if self._local_start(leg.partition) <= here[0].start:
                        raise
                    return self._count_all(cold)
        return total

    def __iter__(self) -> Iterator[_core.Record]:
        """Record objects. The `columns` of the scan do not apply to them."""
        if self._cold is not None:
            return self._records_of_all(self._cold)
        groups = _groups(self._legs)
        if len(groups) == 1:
            return self._records(groups[0], -1 if self._limit is None else self._limit)
        return self._records_of(groups)

    def _records_of_all(self, cold: TierLog) -> Iterator[_core.Record]:
        whole = self if self._columns is None else self._like(self._legs, None)
        decoded = (record for leg in whole._legs for record in whole._records_of_leg(cold, leg))
        return _core.records_of(decoded, -1 if self._limit is None else self._limit)

    def _records_of_leg(self, cold: TierLog, leg: Leg) -> Iterator[_core.Record]:
        """As `_all_batches`."""
        position = leg.start
        while position < leg.end:
            local = self._local_start(leg.partition)
            if position < local:
                part = leg.part(position, min(local, leg.end))
                for batch in cold.batches(part, self._projection):
                    yield from _decode(batch, leg.partition, self._topic.name)
                position = part.end
                continue
            try:
                for record in self._records([leg.part(position, leg.end)], -1):
                    yield record
                    position = record.offset + 1
                position = leg.end
            except OffsetOutOfRangeError:
                if self._local_start(leg.partition) <= position:
                    raise

    def _records_of(self, groups: list[list[Leg]]) -> Iterator[_core.Record]:
        left = self._limit
        for group in groups:
            for record in self._records(group, -1 if left is None else left):
                yield record
                if left is not None:
                    left -= 1

    def _records(self, legs: list[Leg], limit: int) -> Iterator[_core.Record]:
        whole = self if self._columns is None else self._like(self._legs, None)
        scan = self._open(legs, limit)
        name = self._topic.name
        return scan.records(lambda batch: _decode(whole._import(scan, batch, legs[0]), batch.partition, name), limit)


class _Stream:
    """Carries a stream capsule to pyarrow."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._capsule


def _column_of(batch: pa.RecordBatch, number: int, path: list[int], partition: int) -> pa.Array:
    if number == schema.PARTITION_COLUMN:
        return pa.array(np.full(batch.num_rows, partition, np.int32))
    array = batch.column(number)
    for child in path:
        array = pc.struct_field(array, [child])
    return array


def _decode(batch: pa.RecordBatch, partition: int, topic: str) -> Iterator[_core.Record]:
    """Records of a batch that is typed, compressed, has headers or comes from the tier."""
    for first in range(0, batch.num_rows, _DECODED_ROWS):
        piece = batch.slice(first, _DECODED_ROWS)
        offsets, times, keys, values, headers = (piece.column(i) for i in range(len(schema.RECORD_COLUMNS)))
        stamps = times.view(pa.int64()).to_pylist()
        rows = zip(offsets.to_pylist(), stamps, keys.to_pylist(), values.to_pylist(), headers.to_pylist(), strict=True)
        for offset, timestamp, key, value, pairs in rows:
            named = () if not pairs else tuple((pair["key"], pair["value"]) for pair in pairs)
            yield _core.Record(partition, offset, timestamp, key, value, named, topic)
