"""Types by name, as users write them: `int64`, `string`, `timestamp`, `decimal(10,2)`, `list<int32>`."""

from __future__ import annotations

import re

import pyarrow as pa

_ALIASES: dict[str, pa.DataType] = {
    "str": pa.string(),
    "text": pa.string(),
    "varchar": pa.string(),
    "int": pa.int64(),
    "integer": pa.int64(),
    "bigint": pa.int64(),
    "float": pa.float64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "bytes": pa.binary(),
    "blob": pa.binary(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("ms", tz="UTC"),
    "datetime": pa.timestamp("ms", tz="UTC"),
}


def parse_type(name: str) -> pa.DataType:
    """The Arrow type of this name: pyarrow's own names, common other ones, and parameters where a type has some."""
    plain = name.strip()
    known = _ALIASES.get(plain.lower())
    if known is not None:
        return known
    if match := re.fullmatch(r"timestamp\[(s|ms|us|ns)(?:, *(?:tz=)?([\w/+:-]+))?\]", plain, re.IGNORECASE):
        return pa.timestamp(match[1], tz=match[2])
    if match := re.fullmatch(r"decimal(?:128)?\((\d+)(?:, *(\d+))?\)", plain, re.IGNORECASE):
        return pa.decimal128(int(match[1]), int(match[2] or 0))
    if match := re.fullmatch(r"(?:list<(.+)>|(.+)\[\])", plain, re.IGNORECASE):
        return pa.list_(parse_type(match[1] or match[2]))
    if match := re.fullmatch(r"(?:struct)?<(.+)>", plain, re.IGNORECASE):
        return pa.struct(list(parse_schema(match[1])))
    try:
        return pa.type_for_alias(plain.lower())
    except ValueError:
        raise ValueError(
            f"{name!r} is not a type: use names such as int64, double, string, bool, date, timestamp, decimal(10,2),"
            " list<int64>"
        ) from None


def parse_schema(text: str) -> pa.Schema:
    """A schema written as `name:type,name:type`; `name:type!` is a field that may not be null."""
    fields = []
    for part in _split(text):
        name, colon, kind = part.partition(":")
        if not colon or not name.strip():
            raise ValueError(f"{part.strip()!r} is not name:type")
        kind = kind.strip()
        fields.append(pa.field(name.strip(), parse_type(kind.removesuffix("!")), nullable=not kind.endswith("!")))
    if not fields:
        raise ValueError("a schema needs at least one name:type")
    return pa.schema(fields)


def _split(text: str) -> list[str]:
    """The parts between commas that are not within brackets."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "(<[") - (character in ")>]")
        if character == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()]
