"""An object of a topic as a data file of a table, with what its footer says of its columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyiceberg import types
from pyiceberg.conversions import to_bytes
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.schema import Schema
from pyiceberg.typedef import Record
from pyiceberg.utils.truncate import truncate_upper_bound_binary_string, truncate_upper_bound_text_string

from streamcore.tier import parquet
from streamcore.tier.manifest import Entry

_BOUND_SIZE = 16  # characters or bytes of the bounds of a column, as Iceberg's own writers keep
_Columns = Mapping[tuple[str, ...], types.NestedField]


def columns_of(schema: Schema) -> dict[tuple[str, ...], types.NestedField]:
    """The columns of a table that hold one value for each row, by their names from the top down."""

    def inside(fields: Sequence[types.NestedField], path: tuple[str, ...]) -> Iterator[Any]:
        for field in fields:
            if isinstance(field.field_type, types.StructType):
                yield from inside(field.field_type.fields, (*path, field.name))
            elif isinstance(field.field_type, types.PrimitiveType):
                yield (*path, field.name), field

    return dict(inside(schema.fields, ()))


def data_file(
    location: str, partition: int, entry: Entry, footer: parquet.Footer | None, columns: _Columns
) -> DataFile:
    """An object as Iceberg sees it, with sizes, counts and bounds of its columns, of which some come from its footer.

    columns: of the table, from `columns_of`.
    """
    found = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=location,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=entry.rows,
        file_size_in_bytes=entry.size,
        split_offsets=None if footer is None else _begins_of(footer),
        **(_known(partition, entry, columns) if footer is None else _statistics(footer, columns)),
    )
    found.spec_id = UNPARTITIONED_PARTITION_SPEC.spec_id
    return found


def _known(partition: int, entry: Entry, columns: _Columns) -> dict[str, Any]:
    """What the manifest knows of an object."""
    ends = {
        "partition": (partition, partition),
        "offset": (entry.base_offset, entry.end_offset - 1),
        "timestamp": (entry.min_timestamp_ms * 1000, entry.max_timestamp_ms * 1000),
    }
    lower, upper = {}, {}
    for name, (low, high) in ends.items():
        field = columns[(name,)]
        kind: Any = field.field_type
        if _fitting(low) is not None and _fitting(high) is not None:
            lower[field.field_id], upper[field.field_id] = to_bytes(kind, low), to_bytes(kind, high)
    return {"lower_bounds": lower, "upper_bounds": upper}


def _begins_of(footer: parquet.Footer) -> list[int]:
    firsts = [footer.metadata.row_group(number).column(0) for number in range(footer.metadata.num_row_groups)]
    return [
        min(first.data_page_offset, first.dictionary_page_offset) if first.has_dictionary_page
        else first.data_page_offset
        for first in firsts
    ]  # fmt: skip


def _statistics(footer: parquet.Footer, columns: _Columns) -> dict[str, Any]:
    names = ("column_sizes", "value_counts", "null_value_counts", "lower_bounds", "upper_bounds")
    found: dict[str, dict[int, Any]] = {name: {} for name in names}
    metadata = footer.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    paths = [path for field in footer.schema for path in _paths_of(field.type, (field.name,))]
    assert len(paths) == metadata.num_columns
    for number, path in enumerate(paths):
        field = columns.get(path) if path is not None else None
        if field is None:
            continue
        chunks = [group.column(number) for group in groups]
        found["column_sizes"][field.field_id] = sum(chunk.total_compressed_size for chunk in chunks)
        found["value_counts"][field.field_id] = sum(chunk.num_values for chunk in chunks)
        told = [chunk.statistics for chunk in chunks if chunk.is_stats_set]
        if len(told) < len(chunks) or not all(one.has_null_count for one in told):
            continue
        found["null_value_counts"][field.field_id] = sum(one.null_count for one in told)
        _take_bounds(found, field, [one for one in told if one.num_values], metadata.schema.column(number))
    return found


def _paths_of(kind: pa.DataType, path: tuple[str, ...] | None) -> Iterator[tuple[str, ...] | None]:
    """The Parquet columns of an Arrow type in their order; None: one that may hold several values for a row."""
    if pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            field = kind.field(number)
            yield from _paths_of(field.type, None if path is None else (*path, field.name))
    elif pa.types.is_map(kind):
        yield from _paths_of(kind.key_type, None)
        yield from _paths_of(kind.item_type, None)
    elif pa.types.is_nested(kind):
        yield from _paths_of(kind.value_type, None)
    else:
        yield path


def _take_bounds(found: dict[str, dict[int, Any]], field: types.NestedField, told: list[Any], column: Any) -> None:
    if not told or not all(one.has_min_max for one in told):
        return
    ends = [(_value(one, "min", field, column), _value(one, "max", field, column)) for one in told]
    if any(low is None or high is None for low, high in ends):
        return
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if isinstance(high, str):
        low, high = low[:_BOUND_SIZE], truncate_upper_bound_text_string(high, _BOUND_SIZE)
    elif isinstance(high, bytes) and isinstance(field.field_type, types.BinaryType):
        low, high = low[:_BOUND_SIZE], truncate_upper_bound_binary_string(high, _BOUND_SIZE)
    kind: Any = field.field_type
    found["lower_bounds"][field.field_id] = to_bytes(kind, low)
    if high is not None:  # otherwise nothing short is as great
        found["upper_bounds"][field.field_id] = to_bytes(kind, high)


_EXACT = (
    *(types.BooleanType, types.IntegerType, types.LongType, types.FloatType, types.DoubleType),
    *(types.StringType, types.BinaryType, types.FixedType, types.DateType),
)
_MICROSECONDS = {"milliseconds": 1000, "microseconds": 1}


def _value(statistics: Any, end: str, field: types.NestedField, column: Any) -> Any:
    """The least or greatest value of a column, as `to_bytes` takes it; None where none is told."""
    if isinstance(field.field_type, (types.TimestampType, types.TimestamptzType)):
        unit = json.loads(column.logical_type.to_json()).get("timeUnit")
        raw = getattr(statistics, f"{end}_raw")
        return _fitting(raw * _MICROSECONDS[unit]) if isinstance(raw, int) and unit in _MICROSECONDS else None
    return getattr(statistics, end) if isinstance(field.field_type, _EXACT) else None


def _fitting(number: int) -> int | None:
    """A number of 64 bits; None: it is none."""
    return number if -(1 << 63) <= number < 1 << 63 else None
