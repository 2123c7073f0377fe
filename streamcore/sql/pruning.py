"""What a filter leaves to read: asked of Arrow's simplifier, as a pyarrow `Expression` has no public structure."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamcore import Segment

RUNS_MAX = 256  # scans that one table is read with at most
_ANY_TIME = (-(1 << 62), 1 << 62)
_BOUNDED = pa.schema([("partition", pa.int32()), ("offset", pa.int64()), ("timestamp", pa.timestamp("ms", tz="UTC"))])
_NO_FORMAT = ds.IpcFileFormat()
_NO_FILES = pafs.LocalFileSystem()


class Bounds(NamedTuple):
    """What is certain about some rows: each bound is a low, inclusive, and a high, exclusive."""

    partitions: tuple[int, int]
    offsets: tuple[int, int]
    times_ms: tuple[int, int]

    def empty(self) -> bool:
        """Whether no row can be within."""
        return any(low >= high for low, high in self)


def bounds_of(segment: Segment) -> Bounds:
    low, high = segment.min_timestamp_ms, segment.max_timestamp_ms
    times = _ANY_TIME if low is None or high is None else (low, high + 1)
    return Bounds((segment.partition, segment.partition + 1), (segment.base_offset, segment.end_offset), times)


def certain(bounds: Bounds) -> ds.Expression:
    """The bounds as an expression that is true of every row within."""
    return (
        _within("partition", bounds.partitions)
        & _within("offset", bounds.offsets)
        & _within("timestamp", bounds.times_ms)
    )


def _within(column: str, bounds: tuple[int, int]) -> ds.Expression:
    """`column` from the low bound, inclusive, to the high bound, exclusive."""
    kind = _BOUNDED.field(column).type
    low, high = bounds
    if low + 1 == high:  # of what lies between two numbers the simplifier knows nothing
        return ds.field(column) == pa.scalar(low, kind)
    return (ds.field(column) >= pa.scalar(low, kind)) & (ds.field(column) < pa.scalar(high, kind))


def fragments_of(certain: Iterable[ds.Expression]) -> list[ds.Fragment]:
    """Fragments that are never opened, numbered from 0: only what is certain about the rows of each is of use."""
    return [
        _NO_FORMAT.make_fragment(str(number), _NO_FILES, partition_expression=known)
        for number, known in enumerate(certain)
    ]


class Condition:
    """A filter on a table with this schema, and what follows from it about offsets, times and segments.

    Everything here is Arrow's simplifier asked whether the filter can be true of rows of which something is certain.
    A no is a proof; a yes may only mean that the simplifier does not see it.
    """

    def __init__(self, expression: ds.Expression, schema: pa.Schema) -> None:
        self.expression = expression
        self._schema = schema
        self._text = str(expression)

    def possible(self, fragments: list[ds.Fragment], *, negated: bool = False) -> list[int]:
        """The numbers of the fragments in which the condition, or its negation, can be true."""
        asked = ~self.expression if negated else self.expression
        dataset = ds.FileSystemDataset(fragments, self._schema, _NO_FORMAT, _NO_FILES)
        return sorted(int(fragment.path) for fragment in dataset.get_fragments(filter=asked))

    def decided(self, bounds: Bounds) -> bool:
        """Whether the condition is certainly true of every row within these bounds."""
        return not self.possible(fragments_of([certain(bounds)]), negated=True)

    def smallest(self, column: str, bounds: tuple[int, int]) -> tuple[int, int]:
        """The smallest range within `bounds` outside of which the condition cannot be true, by bisection."""
        if column not in self._text:  # saves the time; were it wrong, only this narrowing would be missed
            return bounds
        start, end = bounds
        low, high = start, end
        while low < high:  # the longest beginning in which it cannot be true
            middle = (low + high + 1) // 2
            low, high = (low, middle - 1) if self._possible_within(column, start, middle) else (middle, high)
        start = low
        high = end
        while low < high:  # the longest ending
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._possible_within(column, middle, end) else (low, middle)
        return start, low

    def kept(self, rows: pa.Table, bounds: Bounds) -> pa.Table:
        """The rows, known to be within these bounds, for which the condition is true: all or none, if that is plain."""
        seen = {name: _range(rows[name]) for name in ("offset", "timestamp") if name in rows.column_names and len(rows)}
        narrower = Bounds(
            bounds.partitions,
            both(bounds.offsets, seen.get("offset", bounds.offsets)),
            both(bounds.times_ms, seen.get("timestamp", bounds.times_ms)),
        )
        if not self.possible(fragments_of([certain(narrower)])):
            return rows.slice(0, 0)
        return rows if self.decided(narrower) else rows.filter(self.expression)

    def columns(self) -> list[str]:
        """The columns that the condition is about: those its text names, if with them it can be evaluated, or all."""
        named = [name for name in self._schema.names if name in self._text]
        known = pa.schema([self._schema.field(name) for name in named])
        try:
            ds.Scanner.from_batches([], schema=known, filter=self.expression)
        except (pa.ArrowInvalid, TypeError):
            return list(self._schema.names)
        return named

    def _possible_within(self, column: str, low: int, high: int) -> bool:
        return bool(self.possible(fragments_of([_within(column, (low, high))])))


def _range(column: pa.ChunkedArray) -> tuple[int, int]:
    """The smallest value of a column, and one more than the largest."""
    ends = pc.min_max(column.cast(pa.int64()))
    return ends["min"].as_py(), ends["max"].as_py() + 1


def runs_of(segments: list[Segment]) -> list[Bounds]:
    """Adjoining segments of a partition joined, so that one scan reads them; fewer, wider ones where there are many."""
    runs: list[Bounds] = []
    for segment in segments:
        found = bounds_of(segment)
        if runs and runs[-1].partitions == found.partitions and runs[-1].offsets[1] == found.offsets[0]:
            found = around(runs.pop(), found)
        runs.append(found)
    if len(runs) > RUNS_MAX:
        grouped = itertools.groupby(runs, key=lambda run: run.partitions)
        runs = [functools.reduce(around, group) for _, group in grouped]
    if len(runs) > RUNS_MAX:
        runs = [functools.reduce(around, runs)]
    return runs


def around(one: Bounds, other: Bounds) -> Bounds:
    """The smallest bounds that hold both."""
    return Bounds(*((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(one, other, strict=True)))


def both(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one[0], other[0]), min(one[1], other[1])
