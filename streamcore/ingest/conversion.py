"""Columns of text to columns of a type; null marks what does not fit. Whole columns first, halves where one fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Callable

# What a value of a type looks like. It keeps the values that cannot fit, which may be many, away from the halving.
_SHAPES = {
    "int": r"^[+-]?[0-9]+$",
    "float": r"^(?i:[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf(inity)?))$",
    "date": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
}
_TRUE = pa.array(["1", "true", "True", "TRUE"])
_FALSE = pa.array(["0", "false", "False", "FALSE"])


def convert_text(text: pa.Array, kind: pa.DataType) -> pa.Array:
    """`text`, an array of strings, as `kind`; null where the text is null or is not of that type."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return text.cast(kind)
    if pa.types.is_boolean(kind):
        truth = pc.is_in(text, value_set=_TRUE)
        known = pc.or_(truth, pc.is_in(text, value_set=_FALSE))
        return pc.if_else(known, truth, pa.scalar(None, pa.bool_()))
    trimmed = pc.utf8_trim_whitespace(text)
    shape = _shape(kind)
    if shape is not None:
        fits = pc.match_substring_regex(trimmed, shape)
        trimmed = pc.if_else(fits, trimmed, pa.scalar(None, trimmed.type))
    return isolated(lambda part: part.cast(kind), trimmed, kind)


def _shape(kind: pa.DataType) -> str | None:
    if pa.types.is_integer(kind):
        return _SHAPES["int"]
    if pa.types.is_floating(kind):
        return _SHAPES["float"]
    if pa.types.is_date(kind):
        return _SHAPES["date"]
    return None


def text_of(raw: pa.Array) -> pa.Array:
    """Binary values as strings; null where they are not UTF-8."""
    return isolated(lambda part: part.cast(pa.string()), raw, pa.string())


def isolated(convert: Callable[[pa.Array], pa.Array], values: pa.Array, kind: pa.DataType) -> pa.Array:
    """`convert(values)`, null for each value that it refuses, found by halving where a whole part is refused."""
    pieces: list[pa.Array] = []
    parts = [values]
    while parts:
        part = parts.pop()
        try:
            pieces.append(convert(part))
        except pa.ArrowInvalid:
            if len(part) == 1:
                pieces.append(pa.nulls(1, kind))
            else:
                half = len(part) // 2
                parts += [part.slice(half), part.slice(0, half)]
    return pa.concat_arrays(pieces) if len(pieces) != 1 else pieces[0]


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array, copied only if it is in several pieces."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def key_bytes(column: pa.Array) -> pa.Array:
    """A column as record keys: binary as it is, anything else as the UTF-8 of its text."""
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.binary())
    if pa.types.is_nested(kind) or pa.types.is_null(kind):
        raise pa.ArrowTypeError(f"a field of type {kind} cannot be a key")
    return column.cast(pa.string()).cast(pa.binary())
