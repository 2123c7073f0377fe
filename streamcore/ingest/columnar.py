"""Parquet and Arrow files: batches as they are, cast to the topic's types where they differ."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from streamcore.columns import check_sound
from streamcore.ingest.conversion import isolated, key_bytes, one_array
from streamcore.ingest.model import Block, IngestError, IngestOptions, Rows, missing_field
from streamcore.ingest.source import STDIN
from streamcore.ingest.values import Clock, Misfits, StructMaker, not_of_type, too_large, without

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BLOCK_ROWS = 1 << 16
_SCANNED = {"partition", "offset", "timestamp", "key", "value", "headers"}
_HASHED_BYTES = 16 << 20


class ColumnarSource:
    """A Parquet or Arrow file as tables of about 65,536 rows; `position` counts rows, `digest` is of the whole file."""

    def __init__(self, path: str, form: str) -> None:
        self.path = path
        self.position = 0
        self.size: int | None = None
        self._digest: str | None = None
        self._form = form
        self._file: Any = None
        self.schema, self._batches = self._open()

    @property
    def digest(self) -> str:
        """The XXH3-128 of the file."""
        if self._digest is None:
            state = xxhash.xxh3_128()
            if self.path != STDIN:
                with Path(self.path).open("rb") as file:
                    while data := file.read(_HASHED_BYTES):
                        state.update(data)
            self._digest = state.hexdigest()
        return self._digest

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def skip(self, position: int, digest: str, *, unterminated: bool) -> None:
        """Pass over the rows that an earlier run ingested, checking that the file is the same."""
        del unterminated
        if digest != self.digest:
            raise IngestError(
                f"{self.path} has changed since it was ingested: use --force to ingest it again from the start"
            )
        while self.position < position:
            batch = next(self._batches)
            if self.position + len(batch) > position:
                kept = batch.slice(position - self.position)
                self._batches = _chain(kept, self._batches)
                self.position = position
            else:
                self.position += len(batch)

    def blocks(self, first_end: int | None = None) -> Iterator[Block]:
        """The rest of the file. `first_end` is the row before which the first block ends, if that is decided."""
        want = _BLOCK_ROWS if first_end is None else first_end - self.position
        held: list[pa.RecordBatch] = []
        rows = 0
        for batch in self._batches:
            held.append(batch)
            rows += len(batch)
            while rows >= want > 0:
                table = pa.Table.from_batches(held, self.schema)
                yield self._block(table.slice(0, want))
                held = table.slice(want).to_batches()
                rows -= want
                want = _BLOCK_ROWS
        if rows:
            yield self._block(pa.Table.from_batches(held, self.schema))

    def _block(self, table: pa.Table) -> Block:
        start = self.position
        self.position += len(table)
        return Block(start, self.position, start + 1, table, self.digest)

    def _open(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        if self._form == "parquet":
            import pyarrow.parquet as pq

            if self.path == STDIN:
                raise IngestError("Parquet cannot be read from stdin: it is read from its end")
            self._file = pq.ParquetFile(self.path)
            self.size = self._file.metadata.num_rows
            return self._file.schema_arrow, self._file.iter_batches(batch_size=_BLOCK_ROWS)
        if self.path == STDIN:
            stream = pa.ipc.open_stream(sys.stdin.buffer)
            return stream.schema, _sound(self.path, stream)
        self._file = pa.memory_map(self.path)
        try:
            reader = pa.ipc.open_file(self._file)
        except pa.ArrowInvalid:
            self._file.seek(0)
            stream = pa.ipc.open_stream(self._file)
            return stream.schema, _sound(self.path, stream)
        numbers = range(reader.num_record_batches)
        return reader.schema, _sound(self.path, (reader.get_batch(number) for number in numbers))


def _sound(path: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Arrow reads what a file says of its arrays without checking it."""
    for batch in batches:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                check_sound(column, f"column {name!r}")
            except ValueError as error:
                raise IngestError(f"{path}: {error}") from None
        yield batch


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


class ColumnarReader:
    """Reads tables: for a plain topic one column is the value, for a typed one all columns are.

    A file that holds an exported topic (its columns are those of a scan) gives back value, key and timestamp.
    """

    max_record_bytes = 1 << 30

    def __init__(self, path: str, options: IngestOptions, schema: pa.Schema) -> None:
        self._path = path
        self._file_schema = schema
        self._structs: StructMaker | None = None
        names = schema.names
        self._exported = "value" in names and set(names) <= _SCANNED
        usual = options.value is None and (self._exported or not options.typed)
        self._key = options.key or ("key" if usual and "key" in names else None)
        self._timestamp = options.timestamp or ("timestamp" if usual and "timestamp" in names else None)
        self._value = options.value or "value"
        self._clock = Clock(path, options.timestamp_format)
        for name in (self._key, self._timestamp, options.value):
            if name is not None and name not in names:
                raise missing_field(name, names, path)

    def schema(self, sample: Block) -> pa.Schema:
        """The file's schema, with dictionaries decoded."""
        del sample
        return pa.schema([column.with_type(_decoded(column.type)) for column in self._value_fields()])

    def use_schema(self, schema: pa.Schema) -> None:
        """Make structs of this schema; columns that the file lacks are null."""
        clocks = {} if self._timestamp is None else {self._timestamp: self._clock}
        self._structs = StructMaker(self._path, schema, clocks)
        self._structs.check([column.name for column in self._value_fields()])

    def read(self, block: Block) -> Rows:
        """The block's rows."""
        assert isinstance(block.data, pa.Table)
        table, misfits = block.data, Misfits()
        if self._structs is None:
            values = self._plain_values(table)
        else:
            values = self._structs.make(self._columns(table, misfits), misfits)
        times = None
        if self._timestamp is not None:
            times = self._clock.read(one_array(table[self._timestamp]))
            misfits.add("no timestamp", times.is_null())
        keys = None if self._key is None else key_bytes(one_array(table[self._key]))
        if self._structs is None:
            too_large(values, keys, self.max_record_bytes, misfits)
        if not misfits:
            return Rows(values, keys, times)
        numbers = range(block.first_line, block.first_line + len(table))
        texts = pa.array([repr(row).encode() for row in table.to_pylist()], pa.binary())
        return without(Rows(values, keys, times), misfits, self._path, numbers, texts)

    def _plain_values(self, table: pa.Table) -> pa.Array:
        if self._value not in table.column_names:
            raise IngestError(
                f"{self._path} has no column 'value' (columns: {', '.join(table.column_names)}): say which one is the"
                " value with --value, or keep all columns with --typed"
            )
        values = one_array(table[self._value])
        if pa.types.is_nested(values.type):
            raise IngestError(f"column {self._value!r} of {self._path} is of type {values.type}: use --typed")
        return key_bytes(values)

    def _value_fields(self) -> list[pa.Field]:
        """The fields of a typed value: the file's columns, or those within `value` in an exported topic."""
        value = self._file_schema.field("value").type if self._exported else None
        return list(value if value is not None and pa.types.is_struct(value) else self._file_schema)

    def _columns(self, table: pa.Table, misfits: Misfits) -> dict[str, pa.Array]:
        """The table's columns in the types of the topic."""
        assert self._structs is not None
        columns = {}
        if self._exported and pa.types.is_struct(table.schema.field("value").type):
            struct = one_array(table["value"])
            table = pa.table(struct.flatten(), names=[column.name for column in self._value_fields()])
        for name in table.column_names:
            kind, given = self._structs.schema.field(name).type, one_array(table[name])
            if given.type == kind:
                columns[name] = given
                continue
            columns[name] = _cast(given, kind)
            misfits.add(not_of_type(name, kind), pc.and_(given.is_valid(), columns[name].is_null()))
        return columns


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    return isolated(lambda part: part.cast(kind), values, kind)


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
