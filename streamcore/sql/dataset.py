"""A topic as DuckDB reads it: columns and bounds in, batches of the log out."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds

from streamcore.sql.pruning import RUNS_MAX, Bounds, Condition, around, both, bounds_of, certain, fragments_of, runs_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamcore import Scan, Segment, Topic

_COUNT_ROWS = 1 << 17  # rows in a batch made for count(*)
_PIECE_ROWS = 1 << 14  # rows that are filtered at once


class Snapshot:
    """A topic up to its last stable offsets at one moment, and what is certain of the rows of each segment."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.ends = {partition.index: partition.stable_offset for partition in topic.partitions}

    @functools.cached_property
    def segments(self) -> list[Segment]:
        """The segments with rows before the ends, by partition and offset. Read after the ends, so none is missing."""
        held = (s for s in self.topic.extents() if s.count and s.base_offset < self.ends.get(s.partition, 0))
        return sorted(held, key=lambda segment: (segment.partition, segment.base_offset))

    @functools.cached_property
    def fragments(self) -> list[ds.Fragment]:
        """The segments as fragments, in the same order, for Arrow's simplifier."""
        return fragments_of(certain(bounds_of(segment)) for segment in self.segments)


class _Part(NamedTuple):
    """One scan, and the condition that its rows still have to be tested for, if any."""

    scan: Scan
    bounds: Bounds | None
    condition: Condition | None


@dataclass(slots=True)
class _Reads:
    """What a dataset was asked for."""

    scans: list[Scan] = field(default_factory=list)
    counting: list[Scan] = field(default_factory=list)
    counts: list[tuple[Scan, int]] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)


class TopicDataset(ds.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """A topic as a pyarrow dataset: what DuckDB needs to know of one, its `schema` and its `scanner`.

    `fields` offers these fields of a typed value as columns `value.<field>` in place of `value`.
    """

    def __init__(self, snapshot: Snapshot, fields: tuple[str, ...] | None) -> None:
        # The base class, made for datasets that are implemented in C++, has nothing to initialise here.
        self.fields = fields
        self.typed = snapshot.topic.schema
        self.read_from(snapshot)

    def looks_like(self, other: TopicDataset) -> bool:
        """Whether a table over this dataset can be one over the other."""
        same = (
            self.typed == other.typed if self.typed is None or other.typed is None else self.typed.equals(other.typed)
        )
        return same and self.fields == other.fields

    def read_from(self, snapshot: Snapshot) -> None:
        """Read this topic from now on, whose columns are those of the one before."""
        self._snapshot: Snapshot | None = snapshot
        self.reads = _Reads()

    def release(self) -> None:
        """Read no topic any more."""
        self._snapshot = None
        self.reads = _Reads()

    @property
    def snapshot(self) -> Snapshot:
        """The topic that is read."""
        assert self._snapshot is not None
        return self._snapshot

    @functools.cached_property
    def _exported(self) -> pa.Schema:
        values = ["value"] if self.fields is None else [f"value.{name}" for name in self.fields]
        columns = ["partition", "offset", "timestamp", "key", *values, "headers"]
        return self.snapshot.topic.scan(columns=columns).schema

    @functools.cached_property
    def _schema(self) -> pa.Schema:
        return pa.schema([column.with_type(engine_type(column.type)) for column in self._exported])

    @property
    def schema(self) -> pa.Schema:
        """The columns, with view types as the plain types of the same values: DuckDB pushes no filter past them."""
        return self._schema

    def scanner(
        self, columns: list[str] | None = None, filter: ds.Expression | None = None, **_: object
    ) -> _Stream:  # the name `filter` is pyarrow's
        """The rows where `filter` is true, with these columns: an object with a `to_reader()`."""
        wanted = list(self._schema.names) if columns is None else list(columns)
        parts, scanned = self._plan(wanted, filter)
        self.reads.columns.update(scanned)
        if wanted == ["partition"] and all(part.condition is None for part in parts):
            counted = self._counted(parts)
            if counted is not None:
                return _Stream(counted)
        self.reads.scans.extend(part.scan for part in parts)
        if len(parts) == 1 and parts[0].condition is None and not self._converted(wanted):
            return _Stream(parts[0].scan)
        schema = pa.schema([self._schema.field(name) for name in wanted])
        return _Stream(pa.RecordBatchReader.from_batches(schema, self._batches(parts, schema)))

    def _plan(self, wanted: list[str], filter_: ds.Expression | None) -> tuple[list[_Part], list[str]]:
        """The scans that hold every row where the filter is true, and the columns they read."""
        if filter_ is None:
            return [_Part(self._scan(wanted), None, None)], wanted
        condition = Condition(filter_, self._schema)
        segments, fragments = self.snapshot.segments, self.snapshot.fragments
        runs = runs_of([segments[number] for number in condition.possible(fragments)])
        if not runs:
            return [], []
        whole = functools.reduce(around, runs)
        offsets = condition.smallest("offset", whole.offsets)
        times = condition.smallest("timestamp", whole.times_ms)
        narrowed = [
            (run, Bounds(run.partitions, both(run.offsets, offsets), both(run.times_ms, times))) for run in runs
        ]
        kept = [(run, bounds, condition.decided(bounds)) for run, bounds in narrowed if not bounds.empty()]
        scanned = list(wanted)
        if not all(decided for *_, decided in kept):
            scanned += [name for name in condition.columns() if name not in wanted]
        scan = self._scan(scanned)
        return [
            _Part(_narrowed(scan, run, bounds), bounds, None if decided else condition) for run, bounds, decided in kept
        ], scanned

    def _scan(self, columns: list[str]) -> Scan:
        return self.snapshot.topic.scan(end=dict(self.snapshot.ends), columns=columns)

    def _converted(self, wanted: list[str]) -> bool:
        return any(self._schema.field(name).type != self._exported.field(name).type for name in wanted)

    def _batches(self, parts: list[_Part], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for part in parts:
            reader = self._declared(part.scan)
            if part.condition is None or part.bounds is None:
                for batch in reader:
                    yield batch if batch.schema.names == schema.names else batch.select(schema.names)
                continue
            for piece in _pieces(reader):
                left = part.condition.kept(piece, part.bounds)
                yield from left.select(schema.names).to_batches()

    def _declared(self, scan: Scan) -> pa.RecordBatchReader:
        """What a scan reads, in the types that this dataset declares."""
        names = scan.schema.names
        if not self._converted(names):
            return scan.to_reader()
        schema = pa.schema([self._schema.field(name) for name in names])
        return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in scan.batches()))

    def _counted(self, parts: list[_Part]) -> pa.RecordBatchReader | None:
        """Rows with nothing but their partition, for `count(*)`: counted, not read. None if that would not pay."""
        scans: list[tuple[int, Scan]] = []
        for part in parts:
            low, high = part.bounds.partitions if part.bounds is not None else (0, len(self.snapshot.ends))
            if high - low > RUNS_MAX:
                return None
            scans += [(index, part.scan.narrow(partitions=[index])) for index in range(low, high)]
        schema = pa.schema([self._schema.field("partition")])
        return pa.RecordBatchReader.from_batches(schema, self._constants(scans, schema))

    def _constants(self, scans: list[tuple[int, Scan]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for index, scan in scans:
            self.reads.counting.append(scan)
            rows = scan.count()
            self.reads.counts.append((scan, rows))
            block = pa.repeat(pa.scalar(index, pa.int32()), min(rows, _COUNT_ROWS))
            for start in range(0, rows, _COUNT_ROWS):
                yield pa.record_batch([block.slice(0, min(_COUNT_ROWS, rows - start))], schema=schema)


def _pieces(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Batches put together, without copying, to tables of a size for which a decision is worth its time."""
    held: list[pa.RecordBatch] = []
    for batch in reader:
        held.append(batch)
        if sum(len(each) for each in held) >= _PIECE_ROWS:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _narrowed(scan: Scan, run: Bounds, bounds: Bounds) -> Scan:
    """The rows within `bounds`, knowing that those within its partitions and offsets are all within `run`'s times."""
    times = None if bounds.times_ms == run.times_ms else bounds.times_ms
    return scan.narrow(partitions=range(*bounds.partitions), offsets=bounds.offsets, timestamps_ms=times)


class _Stream:
    """What DuckDB takes from a scanner: something whose `to_reader()` exports a C stream, here of C code alone."""

    def __init__(self, source: Scan | pa.RecordBatchReader) -> None:
        self._source = source

    def to_reader(self) -> Scan | pa.RecordBatchReader:
        """The rows, as anything with `__arrow_c_stream__`."""
        return self._source


def engine_type(kind: pa.DataType) -> pa.DataType:
    """`kind` with string, binary and list views, at any depth, replaced by the plain types of the same values."""
    if pa.types.is_string_view(kind):
        return pa.large_utf8()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([child.with_type(engine_type(child.type)) for child in kind])
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(kind.value_field.with_type(engine_type(kind.value_type)))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_field.with_type(engine_type(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(engine_type(kind.value_type)), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(engine_type(kind.key_type), engine_type(kind.item_type))
    return kind
