"""JSON lines: pyarrow's threaded reader on each block; where a block is refused, halving finds the lines at fault."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from streamcore.ingest.conversion import key_bytes, one_array, text_of
from streamcore.ingest.model import BadRow, Block, IngestOptions, Rows, missing_field
from streamcore.ingest.source import split_lines
from streamcore.ingest.times import unit_needed
from streamcore.ingest.types import parse_type
from streamcore.ingest.values import Clock, Misfits, StructMaker, too_large, without

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARSE_BYTES = 1 << 20
_INFER_BYTES = 1 << 20  # looked at where not all of the sample is of one type


class JsonReader:
    """Reads blocks of JSON lines: for a plain topic each line is a value, for a typed one a struct of its fields.

    A line that is no JSON object, whose fields are not of the topic's types or unknown to it, or without a readable
    time where a timestamp is asked for, is bad. Empty lines are nothing.
    """

    max_record_bytes = 1 << 30

    def __init__(self, path: str, options: IngestOptions, sample: Block) -> None:
        self._path = path
        self._options = options
        self._clock = Clock(path, options.timestamp_format)
        self._structs: StructMaker | None = None
        assert isinstance(sample.data, bytes)
        self._seen = _inferred(sample.data)
        for name in (options.key, options.timestamp, options.value):
            if name is not None and name.split(".")[0] not in self._seen.names:
                raise missing_field(name, self._seen.names, path)

    def schema(self, sample: Block) -> pa.Schema:
        """The fields with types that fit all of the sample; the timestamp field becomes a time."""
        given = {name: parse_type(kind) for name, kind in self._options.columns}
        fields = []
        for column in self._seen:
            kind = given.get(column.name) or _settled(column.type)
            is_text = pa.types.is_string(kind) and column.name == self._options.timestamp
            if column.name not in given and (is_text or pa.types.is_timestamp(kind)):
                kind = _time_type(sample, column.name)
            fields.append(pa.field(column.name, kind))
        return pa.schema(fields)

    def use_schema(self, schema: pa.Schema) -> None:
        """Make structs of this schema; fields that a line lacks are null."""
        timestamp = self._options.timestamp
        self._structs = StructMaker(self._path, schema, {} if timestamp is None else {timestamp: self._clock})
        if self._seen.names:
            self._structs.check(self._seen.names)

    def read(self, block: Block) -> Rows:
        """The block's rows."""
        assert isinstance(block.data, bytes)
        texts = split_lines(block.data)
        schema = self._read_schema()
        unknown = "error" if self._structs is not None else "ignore"
        try:
            table = _parse(block.data, schema, unknown)
            whole = table.num_rows == len(texts)
        except pa.ArrowInvalid:
            whole = False
        bad: list[BadRow] = []
        lines: Sequence[int] = range(block.first_line, block.first_line + len(texts))
        if not whole:
            table, places, bad = self._salvaged(texts, schema, unknown, block)
            lines = [block.first_line + place for place in places]
            texts = texts.take(pa.array(places, pa.int64()))
        return self._rows(table, texts, lines, bad)

    def _rows(self, table: pa.Table, texts: pa.Array, lines: Sequence[int], bad: list[BadRow]) -> Rows:
        options = self._options
        columns = {name: one_array(table[name]) for name in table.column_names}
        misfits = Misfits()
        if self._structs is not None:
            values = self._structs.make(columns, misfits)
        else:
            values = texts if options.value is None else key_bytes(_at(columns, options.value))
        times = None
        if options.timestamp is not None:
            times = self._clock.read(_at(columns, options.timestamp))
            misfits.add("no timestamp", times.is_null())
        keys = None if options.key is None else key_bytes(_at(columns, options.key))
        if self._structs is None:
            too_large(values, keys, self.max_record_bytes, misfits)
        return without(Rows(values, keys, times, bad), misfits, self._path, lines, texts)

    def _read_schema(self) -> pa.Schema:
        """What the parser is told: the topic's fields with times as text, or the fields wanted from a plain line."""
        if self._structs is not None:
            return self._structs.text_schema()
        named = (self._options.key, self._options.timestamp, self._options.value)
        wanted = {name.split(".")[0] for name in named if name}
        fields = [column.with_type(_settled(column.type)) for column in self._seen if column.name in wanted]
        return pa.schema(
            [column.with_type(pa.string()) if pa.types.is_timestamp(column.type) else column for column in fields]
        )

    def _salvaged(
        self, texts: pa.Array, schema: pa.Schema, unknown: str, block: Block
    ) -> tuple[pa.Table, list[int], list[BadRow]]:
        """The lines that parse, where they are, and the others, by halving the parts that are refused."""
        bad: list[BadRow] = []
        tables, places = [schema.empty_table()], list[int]()
        filled = pc.indices_nonzero(pc.match_substring_regex(texts, r"\S"))
        parts = [filled]
        while parts:
            part = parts.pop()
            if len(part) == 0:
                continue
            lines = texts.take(part)
            message = "not one JSON object"
            try:
                table = _parse(_joined(lines), schema, unknown)
            except pa.ArrowInvalid as error:
                message = _reason(error)
            else:
                if table.num_rows == len(part):
                    tables.append(table)
                    places += part.to_pylist()
                    continue
            if len(part) == 1:
                line = block.first_line + part[0].as_py()
                bad.append(BadRow(self._path, line, message, lines[0].as_py()))
            else:
                half = len(part) // 2
                parts += [part.slice(half), part.slice(0, half)]
        return pa.concat_tables(tables), places, bad


def _time_type(sample: Block, name: str) -> pa.DataType:
    """A timestamp as fine as the sample's times, which are looked for in its text: some lines may not parse."""
    assert isinstance(sample.data, bytes)
    pattern = rf'"{re.escape(name)}"\s*:\s*"(?P<time>[^"]*)"'
    found = text_of(pc.extract_regex(split_lines(sample.data), pattern).field(0))
    return pa.timestamp(unit_needed(found), tz="UTC")


def _parse(data: bytes, schema: pa.Schema, unknown: str) -> pa.Table:
    """Parse lines into exactly these fields; other fields are ignored or an error."""
    size = _PARSE_BYTES if len(data) > _PARSE_BYTES else len(data) + 1
    options = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unknown)
    try:
        table = pajson.read_json(pa.BufferReader(data), pajson.ReadOptions(block_size=size), options)
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        table = pajson.read_json(pa.BufferReader(data), pajson.ReadOptions(block_size=len(data) + 1), options)
    return table


def _inferred(data: bytes) -> pa.Schema:
    """The fields of lines and their types, as wide as needed; lines that do not parse count for nothing."""
    if not data.strip():
        return pa.schema([])
    try:
        return pajson.read_json(pa.BufferReader(data), pajson.ReadOptions(block_size=len(data) + 1)).schema
    except pa.ArrowInvalid:
        texts = split_lines(data[:_INFER_BYTES])
    found = pa.schema([])
    parts = [texts.filter(pc.match_substring_regex(texts, r"\S"))]
    while parts:
        part = parts.pop()
        try:
            schema = pajson.read_json(pa.BufferReader(_joined(part))).schema
            found = pa.unify_schemas([found, schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            if len(part) > 1:
                half = len(part) // 2
                parts += [part.slice(half), part.slice(0, half)]
    return found


def _settled(kind: pa.DataType) -> pa.DataType:
    """An inferred type without nulls-only parts, which become strings."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([child.with_type(_settled(child.type)) for child in kind])
    if pa.types.is_list(kind):
        return pa.list_(_settled(kind.value_type))
    return kind


def _joined(lines: pa.Array) -> bytes:
    return b"\n".join(lines.to_pylist()) + b"\n"


def _at(columns: dict[str, pa.Array], path: str) -> pa.Array:
    """A field by its path, such as `user.id`."""
    first, *rest = path.split(".")
    return pc.struct_field(columns[first], rest) if rest else columns[first]


def _reason(error: pa.ArrowInvalid) -> str:
    """What the parser says, without its place in a piece of a block that nobody knows."""
    message = re.sub(r"( in row \d+|^JSON parse error: )", "", str(error))
    return message.strip().rstrip(".") or "not JSON"
