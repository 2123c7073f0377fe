"""What readers of all formats share: timestamp fields, struct values, and leaving out the rows that do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from streamcore.ingest.model import BadRow, IngestError, Rows
from streamcore.ingest.times import detect_format, parse_times

if TYPE_CHECKING:
    from collections.abc import Sequence


class Clock:
    """A timestamp field: its format is given, or found in the first values."""

    def __init__(self, path: str, form: str | None) -> None:
        self._path = path
        self._form = form

    def read(self, column: pa.Array, unit: str = "ms") -> pa.Array:
        """The column as timestamps in UTC, null where a value is missing or no time."""
        if self._form is None:
            self._form = detect_format(column)
        if self._form is None:
            example = column.drop_null()
            shown = example[0].as_py() if len(example) else None
            raise IngestError(f"{self._path}: no known form of time in {shown!r}: give a --timestamp-format")
        return parse_times(column, self._form, unit)


class Misfits(dict[str, pa.Array]):
    """Why rows do not fit: for each reason, which ones. A row is reported for its first reason."""

    def add(self, reason: str, wrong: pa.Array) -> None:
        """Note the rows where `wrong` is true, if there are any."""
        if pc.any(wrong).as_py():
            self[reason] = wrong


def too_large(values: pa.Array, keys: pa.Array | None, limit: int, misfits: Misfits) -> None:
    """Note plain records that the topic would refuse, which would take the whole block with them."""
    if len(values) == 0:
        return
    sizes = pc.fill_null(pc.binary_length(values), 0)
    if keys is not None:
        sizes = pc.add(sizes, pc.fill_null(pc.binary_length(keys), 0))
    if pc.max(sizes).as_py() > limit:
        misfits.add(f"larger than the topic's max_record_bytes, {limit}", pc.greater(sizes, limit))


def not_of_type(name: str, kind: pa.DataType) -> str:
    """The reason that a value of this column is not of its type."""
    shown = str(kind)
    return f"column {name!r} is not {'an' if shown[0] in 'aeiou' else 'a'} {shown}"


def without(rows: Rows, misfits: Misfits, path: str, lines: Sequence[int], texts: pa.Array) -> Rows:
    """`rows` without those that do not fit, which are listed with their line numbers and texts."""
    fits: pa.Array | None = None
    for reason, wrong in misfits.items():
        wrong = pc.fill_null(wrong, fill_value=False)
        fresh = wrong if fits is None else pc.and_(wrong, fits)
        places = pc.indices_nonzero(fresh)
        for place, text in zip(places.to_pylist(), texts.take(places).to_pylist(), strict=True):
            rows.bad.append(BadRow(path, lines[place], reason, text or b""))
        fits = pc.invert(wrong) if fits is None else pc.and_not(fits, wrong)
    if fits is None:
        return rows
    return Rows(
        rows.values.filter(fits),
        None if rows.keys is None else rows.keys.filter(fits),
        None if rows.timestamps is None else rows.timestamps.filter(fits),
        sorted(rows.bad, key=lambda bad: bad.line),
    )


class StructMaker:
    """Makes the values of a typed topic from columns, with times parsed from text."""

    def __init__(self, path: str, schema: pa.Schema, clocks: dict[str, Clock]) -> None:
        self.schema = schema
        self._path = path
        self._clocks = clocks

    def check(self, names: Sequence[str]) -> None:
        """Refuse a file whose columns are not those of the topic; nullable ones may be absent."""
        extra = [name for name in names if name not in self.schema.names]
        if extra:
            raise IngestError(
                f"{self._path} has columns that the topic does not have: {', '.join(extra)}"
                " (streamcore topic alter --schema adds columns)"
            )
        absent = [column.name for column in self.schema if column.name not in names and not column.nullable]
        if absent:
            raise IngestError(f"{self._path} lacks columns that the topic demands: {', '.join(absent)}")

    def text_schema(self, names: Sequence[str] | None = None) -> pa.Schema:
        """What to read: the schema's columns (those in `names`), with times as text."""
        columns = [column.with_nullable(True) for column in self.schema if names is None or column.name in names]
        return pa.schema(
            [column.with_type(pa.string()) if pa.types.is_timestamp(column.type) else column for column in columns]
        )

    def make(self, columns: dict[str, pa.Array], misfits: Misfits) -> pa.Array:
        """The structs. Times in `columns` are replaced by what they are read as; what is no time goes to `misfits`."""
        length = len(next(iter(columns.values()))) if columns else 0
        arrays = []
        for column in self.schema:
            given = columns.get(column.name)
            if given is None or given.null_count == length:
                given = pa.nulls(length, column.type)
            elif pa.types.is_timestamp(column.type) and not pa.types.is_timestamp(given.type):
                made = self._clock(column.name).read(given, column.type.unit).cast(column.type)
                misfits.add(not_of_type(column.name, column.type), pc.and_(given.is_valid(), made.is_null()))
                given = made
            if not column.nullable and given.null_count:
                misfits.add(f"column {column.name!r} is null", given.is_null())
            columns[column.name] = given
            arrays.append(given)
        return pa.StructArray.from_arrays(arrays, fields=list(self.schema))

    def _clock(self, name: str) -> Clock:
        return self._clocks.setdefault(name, Clock(self._path, None))
