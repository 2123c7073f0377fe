"""CSV: pyarrow's threaded reader on each block, and a slower look at a block only where something in it is wrong."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from streamcore.ingest.conversion import convert_text, key_bytes, one_array, text_of
from streamcore.ingest.model import BadRow, Block, IngestError, IngestOptions, Rows, missing_field
from streamcore.ingest.source import split_lines
from streamcore.ingest.times import unit_needed
from streamcore.ingest.types import parse_type
from streamcore.ingest.values import Clock, Misfits, StructMaker, not_of_type, too_large, without

if TYPE_CHECKING:
    from collections.abc import Mapping

_PARSE_BYTES = 1 << 20


class CsvReader:
    """Reads blocks of CSV: for a plain topic each line is a value, for a typed one a struct of its columns.

    A row with too few or too many fields, with a value that does not fit its column, or without a readable time where
    a timestamp is asked for, is bad. An empty field is null; so are the texts of `null_values`.
    """

    max_record_bytes = 1 << 30

    def __init__(self, path: str, options: IngestOptions, sample: Block) -> None:
        if options.newlines_in_values and not options.typed and options.value is None:
            raise IngestError("CSV with newlines in values has no lines to keep: use --typed or --value")
        self._path = path
        self._options = options
        self._delimiter = options.delimiter or ("\t" if ".tsv" in path.lower() else ",")
        self._names = self._column_names(sample)
        self._clock = Clock(path, options.timestamp_format)
        self._structs: StructMaker | None = None
        for name in (options.key, options.timestamp, options.value, *dict(options.columns)):
            if name is not None and name not in self._names:
                raise missing_field(name, self._names, path)

    def schema(self, sample: Block) -> pa.Schema:
        """The columns with types that fit all of the sample; the timestamp field becomes a time."""
        data = self._body(sample)
        given = {name: parse_type(kind) for name, kind in self._options.columns}
        table = self._parse(data, self._convert(dict.fromkeys(given, pa.binary()), None), [], threads=True)
        fields = []
        for column in table.schema:
            kind = pa.string() if pa.types.is_null(column.type) else column.type
            if column.name == self._options.timestamp and (pa.types.is_string(kind) or pa.types.is_timestamp(kind)):
                kind = pa.timestamp("ms", tz="UTC")
            if column.name in given:
                kind = given[column.name]
            elif pa.types.is_timestamp(kind):
                text = self._parse(data, self._convert({column.name: pa.string()}, [column.name]), [], threads=True)
                kind = pa.timestamp(unit_needed(one_array(text.column(0))), tz=kind.tz)
            fields.append(pa.field(column.name, kind))
        return pa.schema(fields)

    def use_schema(self, schema: pa.Schema) -> None:
        """Make structs of this schema; columns that the file lacks are null."""
        timestamp = self._options.timestamp
        self._structs = StructMaker(self._path, schema, {} if timestamp is None else {timestamp: self._clock})
        self._structs.check(self._names)

    def read(self, block: Block) -> Rows:
        """The block's rows."""
        data = self._body(block)
        wanted = self._wanted()
        skipped: list[pacsv.InvalidRow] = []
        misfits = Misfits()
        try:
            table = self._parse(data, self._convert(wanted, list(wanted)), skipped, threads=True)
            columns = {name: one_array(table[name]) for name in wanted}
        except pa.ArrowInvalid:
            skipped.clear()
            raw = self._convert(dict.fromkeys(wanted, pa.binary()), list(wanted))
            columns = _fitted(self._parse(data, raw, skipped, threads=True), wanted, misfits)
        places = self._good_places(data, wanted) if skipped else None
        rows = self._rows(columns, data, places, misfits)
        if places is None and not misfits:
            return rows
        return self._without_bad(rows, misfits, block, data, places)

    def _wanted(self) -> dict[str, pa.DataType]:
        """The columns to read, and the types to let the CSV reader give them; times are read as text."""
        if self._structs is not None:
            return {column.name: column.type for column in self._structs.text_schema(self._names)}
        options = self._options
        wanted: dict[str, pa.DataType] = {}
        for name, kind in ((options.timestamp, pa.string()), (options.value, pa.binary()), (options.key, pa.binary())):
            if name is not None:
                wanted.setdefault(name, kind)
        return wanted or {self._names[0]: pa.binary()}

    def _rows(
        self, columns: dict[str, pa.Array], data: bytes, places: dict[int, BadRow | None] | None, misfits: Misfits
    ) -> Rows:
        """Values, keys and timestamps; what is wrong with a time is added to `misfits`."""
        options = self._options
        if self._structs is not None:
            values = self._structs.make(columns, misfits)
        elif options.value is not None:
            values = columns[options.value].cast(pa.binary())
        else:
            values = self._line_values(data, places)
        times = None
        if options.timestamp is not None:
            times = self._clock.read(columns[options.timestamp])
            misfits.add("no timestamp", times.is_null())
        keys = None if options.key is None else key_bytes(columns[options.key])
        if self._structs is None:
            too_large(values, keys, self.max_record_bytes, misfits)
        return Rows(values, keys, times)

    def _line_values(self, data: bytes, places: dict[int, BadRow | None] | None) -> pa.Array:
        """The lines of the rows; `places` has the good and the bad ones where there are bad ones."""
        texts = split_lines(data)
        if places is not None:
            good = [line for line, bad in places.items() if bad is None]
            return texts.take(pa.array(good, pa.int64()))
        return texts.filter(pc.greater(pc.binary_length(texts), 0)) if _has_blank(data) else texts

    def _without_bad(
        self, rows: Rows, misfits: Misfits, block: Block, data: bytes, places: dict[int, BadRow | None] | None
    ) -> Rows:
        """The rows without the bad ones, with those of a wrong shape and those that do not fit listed."""
        first = block.first_line + (1 if block.start == 0 and self._options.header else 0)
        if places is None:
            places = dict.fromkeys(self._row_lines(data))
        good = [line for line, bad in places.items() if bad is None]
        for line, bad in places.items():
            if bad is not None:
                rows.bad.append(replace(bad, line=first + line))
        texts = split_lines(data).take(pa.array(good, pa.int64()))
        return without(rows, misfits, self._path, [first + line for line in good], texts)

    def _good_places(self, data: bytes, wanted: Mapping[str, pa.DataType]) -> dict[int, BadRow | None]:
        """For the line, from 0, of each row: nothing, or what is wrong with its number of fields.

        The threaded reader does not count rows, so the block is read again by one thread.
        """
        skipped: list[pacsv.InvalidRow] = []
        self._parse(data, self._convert(dict.fromkeys(wanted, pa.binary()), list(wanted)), skipped, threads=False)
        lines = self._row_lines(data)
        places: dict[int, BadRow | None] = dict.fromkeys(lines)
        for row in skipped:
            line = lines[(row.number or 1) - 1]
            message = f"{row.actual_columns} fields where there should be {row.expected_columns}"
            places[line] = BadRow(self._path, line, message, row.text.encode())
        return places

    def _row_lines(self, data: bytes) -> list[int]:
        """The line, from 0, on which each row of `data` starts: empty lines are no rows."""
        if not self._options.newlines_in_values:
            lengths = pc.binary_length(split_lines(data))
            found: list[int] = pc.indices_nonzero(pc.greater(lengths, 0)).to_pylist()
            return found
        reader = csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""), delimiter=self._delimiter)
        starts, start = [], 0
        for row in reader:
            if row:
                starts.append(start)
            start = reader.line_num
        return starts

    def _convert(self, types: Mapping[str, pa.DataType], include: list[str] | None) -> pacsv.ConvertOptions:
        return pacsv.ConvertOptions(
            column_types=dict(types),
            include_columns=include,
            null_values=list(self._options.null_values),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )

    def _parse(
        self, data: bytes, convert: pacsv.ConvertOptions, skipped: list[pacsv.InvalidRow], *, threads: bool
    ) -> pa.Table:
        def skip(row: pacsv.InvalidRow) -> str:
            skipped.append(row)
            return "skip"

        size = _PARSE_BYTES if threads and len(data) > _PARSE_BYTES else len(data) + 1
        return pacsv.read_csv(
            pa.BufferReader(data or b"\n"),
            read_options=pacsv.ReadOptions(column_names=self._names, use_threads=threads, block_size=size),
            parse_options=pacsv.ParseOptions(
                delimiter=self._delimiter,
                newlines_in_values=self._options.newlines_in_values,
                invalid_row_handler=skip,
            ),
            convert_options=convert,
        )

    def _column_names(self, sample: Block) -> list[str]:
        assert isinstance(sample.data, bytes)
        text = sample.data[: _header_end(sample.data)].decode("utf-8-sig", "replace")
        first = next(csv.reader([text], delimiter=self._delimiter), [])
        if not first:
            raise IngestError(f"{self._path} is empty: no columns can be told")
        names = first if self._options.header else [f"f{number}" for number in range(len(first))]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise IngestError(f"{self._path} has columns of the same name: {', '.join(sorted(twice))}")
        return names

    def _body(self, block: Block) -> bytes:
        """The block's bytes without a byte order mark and without the header."""
        assert isinstance(block.data, bytes)
        if block.start != 0:
            return block.data
        data = block.data.removeprefix(b"\xef\xbb\xbf")
        return data[_header_end(data) :] if self._options.header else data


def _header_end(data: bytes) -> int:
    return data.find(b"\n") + 1 or len(data)


def _has_blank(data: bytes) -> bool:
    return data.startswith((b"\n", b"\r\n")) or b"\n\n" in data or b"\n\r\n" in data


def _fitted(raw: pa.Table, wanted: Mapping[str, pa.DataType], misfits: Misfits) -> dict[str, pa.Array]:
    """A table of bytes converted column by column; null, and in `misfits`, where a value does not fit its column."""
    columns: dict[str, pa.Array] = {}
    for name, kind in wanted.items():
        given = one_array(raw[name])
        made = given if pa.types.is_binary(kind) else convert_text(text_of(given), kind)
        columns[name] = made
        misfits.add(not_of_type(name, kind), pc.and_(given.is_valid(), made.is_null()))
    return columns
