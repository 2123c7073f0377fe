"""A segment as a Parquet file, and back without loss.

Columns are those of a scan: partition, offset, timestamp, key, value (of a typed topic a struct) and headers. A row
group holds whole batches, some 8 MiB of them, so that one range of the file has all that a reader of one place needs.
Offsets and times are delta encoded, which makes a read of them small; pages carry checksums, and the page index
and statistics tell any engine which of them it needs (Parquet format 2.10).
"""

from __future__ import annotations

import bisect
import functools
import inspect
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamcore import schema as schemas
from streamcore.errors import CorruptionError
from streamcore.tier.field_ids import numbered
from streamcore.tier.objects import Buffer

ROW_GROUP_BYTES = 8 << 20
ROW_GROUP_ROWS = 1 << 20
COMPRESSION_LEVEL = 3
FORMAT = "1"
TAIL_BYTES = 8  # the size of the footer and the magic
_TIMES = ("TIMESTAMP", "DATE", "TIME")  # Parquet's names
_PARTITION = pa.field("partition", pa.int32(), nullable=False)
# What is decoded is taken and given back in large pieces by several threads. This one keeps little of it, and does not
# take it anew from the kernel each time; None: this pyarrow does not have it.
POOL = pa.jemalloc_memory_pool() if "jemalloc" in pa.supported_memory_backends() else None
_OPENED_WITH = {"pre_buffer": False, "page_checksum_verification": True}
if "arrow_extensions_enabled" in inspect.signature(pq.ParquetReader.open).parameters:
    _OPENED_WITH["arrow_extensions_enabled"] = True


class Written(NamedTuple):
    """What is in a file: rows, first and last offset, least and greatest time in ms; its footer and what is behind."""

    rows: int
    first_offset: int
    last_offset: int
    min_timestamp_ms: int
    max_timestamp_ms: int
    footer: bytes


class RowGroup(NamedTuple):
    """A row group: which offsets and times (ms) are in it, inclusive, and how many rows."""

    number: int
    rows: int
    first_offset: int
    last_offset: int
    min_timestamp_ms: int
    max_timestamp_ms: int


# ---- what can be kept ------------------------------------------------------------------------------------------------


def check_types(schema: pa.Schema | None) -> None:
    """Raises ValueError for a field of a typed topic that Parquet would not give back as it was."""
    for field in schema or ():
        _check_type(field.type, field.name)


def _check_type(kind: pa.DataType, path: str) -> None:
    types = pa.types
    if types.is_interval(kind) or types.is_date64(kind) or (types.is_struct(kind) and kind.num_fields == 0):
        raise ValueError(f"field {path!r} is {kind}, which Parquet cannot keep without loss: it cannot be tiered")
    if types.is_map(kind):
        _check_type(kind.key_type, f"{path}.key")
        _check_type(kind.item_type, f"{path}.value")
    elif types.is_nested(kind):
        for number in range(kind.num_fields):
            _check_type(kind.field(number).type, f"{path}.{kind.field(number).name}")


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_segment(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, file: Path, about: Mapping[str, str], *, key_filter: bool,
    microseconds: bool = False,
) -> Written | None:  # fmt: skip
    """Writes batches of `file_schema` to a file; None, and no file that matters, when they have no rows.

    about: what the footer says of the segment, by name. key_filter: a Bloom filter on the keys. microseconds: of all
    times, the only ones that Iceberg has; pyarrow.ArrowInvalid for a time that they cannot say.
    """
    value = schema.field("value")
    told = {f"streamcore.{name}": text for name, text in about.items()}
    rows, first, last = 0, 0, 0
    low, high = 1 << 63, -(1 << 63)
    with pq.ParquetWriter(file, schema.with_metadata(told), **_writing(schema, key_filter, microseconds)) as writer:
        for group in _groups(batches):
            table = pa.Table.from_batches([_with_required(batch, value) for batch in group], schema)
            stamps = table.column("timestamp").cast(pa.int64())
            ends = pa.compute.min_max(stamps).as_py()
            low, high = min(low, ends["min"]), max(high, ends["max"])
            first = table.column("offset")[0].as_py() if rows == 0 else first
            last = table.column("offset")[-1].as_py()
            rows += table.num_rows
            writer.write_table(table, row_group_size=table.num_rows)
    if rows == 0:
        return None
    return Written(rows, first, last, low, high, _footer_of(file))


def file_schema(versions: Mapping[int, schemas.SchemaVersion], number: int) -> pa.Schema:
    """The columns of a file of a version, with their numbers: the partition, then those of a segment."""
    return numbered(pa.schema([_PARTITION, *versions[number].file]), versions)


def _writing(schema: pa.Schema, key_filter: bool, microseconds: bool) -> dict[str, Any]:
    leaves, ordered = _leaves(schema)
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": COMPRESSION_LEVEL,
        "use_dictionary": [leaf for leaf in leaves if leaf not in ordered],
        "column_encoding": dict.fromkeys(ordered, "DELTA_BINARY_PACKED"),
        "write_page_index": True,
        "write_page_checksum": True,
        "store_schema": True,
        "coerce_timestamps": "us" if microseconds else None,
    }
    if key_filter:
        check_key_filter()
        options["bloom_filter_options"] = {"key": {"ndv": ROW_GROUP_BYTES // 64, "fpp": 0.01}}
    return options


def check_key_filter() -> None:
    """Raises ValueError where this version of pyarrow writes no Bloom filters."""
    if "bloom_filter_options" not in inspect.signature(pq.ParquetWriter.__init__).parameters:
        raise ValueError(f"tier_key_filter needs a newer pyarrow than {pa.__version__}, which writes no Bloom filters")


@functools.lru_cache(maxsize=256)
def _leaves(schema: pa.Schema) -> tuple[list[str], list[str]]:
    """The paths of the columns that Parquet makes of a schema; those of offsets and times, which mostly rise."""
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    found = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    columns = [found.column(number) for number in range(len(found))]
    times = [column.path for column in columns if column.logical_type.type in _TIMES]
    return [column.path for column in columns], ["offset", *times]


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Whole batches, put together to row groups."""
    held: list[pa.RecordBatch] = []
    size = rows = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        of_batch = batch.nbytes
        if held and (size + of_batch > ROW_GROUP_BYTES or rows + batch.num_rows > ROW_GROUP_ROWS):
            yield held
            held, size, rows = [], 0, 0
        held.append(batch)
        size += of_batch
        rows += batch.num_rows
    if held:
        yield held


def _with_required(batch: pa.RecordBatch, value: pa.Field) -> pa.RecordBatch:
    """A batch whose required fields have no nulls of their own below a value that is null, as Parquet wants it."""
    if not pa.types.is_struct(value.type):
        return batch
    arrays = [
        _required(one, value) if name == "value" else one
        for name, one in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def _required(array: pa.Array, field: pa.Field) -> pa.Array:
    kind, types = array.type, pa.types
    if types.is_struct(kind) and array.null_count and not all(one.nullable for one in kind):
        fields = [_required(array.field(number), one) for number, one in enumerate(kind)]
        mask = array.is_null() if field.nullable else None
        return pa.StructArray.from_arrays(fields, fields=list(kind), mask=mask)
    # Parquet refuses the others: what it makes of a list of a fixed size it could not read again.
    is_list = types.is_list(kind) or types.is_large_list(kind)
    if field.nullable or not array.null_count or (types.is_nested(kind) and not is_list):
        return array
    own = array.buffers()[1:2] if is_list else array.buffers()[1:]
    inside = [array.values] if is_list else None
    return pa.Array.from_buffers(kind, len(array), [None, *own], 0, array.offset, inside)


def _footer_of(file: Path) -> bytes:
    with file.open("rb") as source:
        source.seek(-TAIL_BYTES, io.SEEK_END)
        size = int.from_bytes(source.read(4), "little") + TAIL_BYTES
        source.seek(-size, io.SEEK_END)
        return source.read()


# ---- reading ---------------------------------------------------------------------------------------------------------


class Footer:
    """What is known of a file from its end."""

    def __init__(self, data: Buffer, url: str) -> None:
        """data: the last `footer_bytes` of the file. Raises CorruptionError."""
        self._url = url
        try:
            self.metadata = pq.read_metadata(pa.BufferReader(pa.py_buffer(data)))
            self.schema = self.metadata.schema.to_arrow_schema()
        except (pa.ArrowException, OSError) as error:
            raise CorruptionError(f"the end of the object is no Parquet footer: {error}", url) from None
        names = [self.metadata.schema.column(number).path for number in range(self.metadata.num_columns)]
        self._offset, self._timestamp = names.index("offset"), names.index("timestamp")
        self._names = names
        self._per_ms = _per_ms(self.schema.field("timestamp").type)
        self.groups = [self._group(number) for number in range(self.metadata.num_row_groups)]
        self._last_offsets = [group.last_offset for group in self.groups]

    def _group(self, number: int) -> RowGroup:
        group = self.metadata.row_group(number)
        offsets, times = group.column(self._offset).statistics, group.column(self._timestamp).statistics
        low, high = (int(moment.timestamp() * 1000) if hasattr(moment, "timestamp") else moment // self._per_ms
                     for moment in (times.min_raw, times.max_raw))  # fmt: skip
        return RowGroup(number, group.num_rows, offsets.min, offsets.max, low, high)

    def groups_between(self, start: int, end: int, low: int, high: int) -> list[RowGroup]:
        """The row groups with offsets in [start, end) and times in [low, high]."""
        first = bisect.bisect_left(self._last_offsets, start)
        found = []
        for group in self.groups[first:]:
            if group.first_offset >= end:
                break
            if group.max_timestamp_ms >= low and group.min_timestamp_ms <= high:
                found.append(group)
        return found

    def ranges(self, group: int, columns: Sequence[str]) -> list[tuple[int, int]]:
        """The bytes [start, end) of some columns of a row group, each column's in one piece."""
        found = []
        metadata = self.metadata.row_group(group)
        for number in self._numbers(columns):
            chunk = metadata.column(number)
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
                start = min(start, chunk.dictionary_page_offset)
            found.append((start, start + chunk.total_compressed_size))
        return found

    def _numbers(self, columns: Sequence[str]) -> list[int]:
        return [
            number
            for number, name in enumerate(self._names)
            if any(name == column or name.startswith(column + ".") for column in columns)
        ]

    def read(self, group: int, columns: Sequence[str], pieces: Mapping[int, Buffer]) -> pa.Table:
        """Columns of a row group, from what `ranges` named, by where each begins. Raises CorruptionError."""
        try:
            reader = pq.ParquetReader(POOL)
            reader.open(_Pieces(pieces), metadata=self.metadata, **_OPENED_WITH)
            return reader.read_row_group(group, column_indices=self._numbers(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise CorruptionError(
                f"row group {group} cannot be read: {error}", self._url, self.groups[group].first_offset
            ) from None


class _Pieces(io.RawIOBase):
    """A file of which some ranges are there."""

    def __init__(self, pieces: Mapping[int, Buffer]) -> None:
        self._starts = sorted(pieces)
        self._pieces = pieces
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END)
        last = self._starts[-1] + len(self._pieces[self._starts[-1]]) if self._starts else 0
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: last}[whence]
        return self._at

    def read(self, size: int = -1) -> Buffer:
        number = bisect.bisect_right(self._starts, self._at) - 1
        if number < 0:
            raise OSError(f"byte {self._at} was not fetched")
        start = self._starts[number]
        found = memoryview(self._pieces[start])[self._at - start :]
        found = found if size < 0 else found[:size]
        if size > len(found):
            raise OSError(f"byte {self._at + len(found)} was not fetched")
        self._at += len(found)
        return found


def restored(array: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """An array as it was before Parquet, which knows no seconds."""
    if isinstance(array, pa.ChunkedArray):  # a row group is one chunk, unless its bytes are more than 2 GiB
        array = array.chunk(0) if array.num_chunks == 1 else pa.concat_arrays(array.chunks)
    if pa.types.is_null(kind):  # pyarrow gives a field of a struct a bitmap, which these must not have
        return pa.nulls(len(array))
    return array if array.type == kind else array.cast(kind)


def times_ms(table: pa.Table | pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The timestamps in ms since 1970."""
    column = table.column("timestamp")
    found: np.ndarray[Any, np.dtype[np.int64]] = column.cast(pa.int64()).to_numpy()
    per_ms = _per_ms(column.type)
    return found if per_ms == 1 else found // per_ms


def _per_ms(kind: pa.TimestampType) -> int:
    return {"ms": 1, "us": 1000}[kind.unit]
