"""Results on stdout: tables for people, JSON, CSV, Arrow and Parquet for programs; notes and progress on stderr.

Keys and values are bytes. Where they are UTF-8 they print as text. Where not, text has `\\xNN` for each byte that does
not fit, and JSON has `{"base64": "..."}` in place of the string. JSON has null for NaN and infinities, which it lacks.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import decimal
import json
import math
import re
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa
    from rich.console import Console

TABLE_ROWS_MAX = 500
_PIPE_WIDTH = 1 << 16
_CHUNK_ROWS = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def note(message: str) -> None:
    """A line about what happens, on stderr."""
    click.echo(message, err=True)


def console(*, stderr: bool = False) -> Console:
    """A rich console: as wide as the terminal, or, in a pipe, as wide as the text needs."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


@contextlib.contextmanager
def progress(description: str, *, unit: str = "bytes") -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr while the block runs, if that is a terminal: call what is given with done and total."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def emit(table: pa.Table, form: str | None, *, title: str | None = None, rows_max: int = TABLE_ROWS_MAX) -> None:
    """Print a table in one of the forms of `--output`; `rows_max` limits what `table` shows."""
    table = table.rename_columns(_distinct(table.column_names))
    if form in (None, "table"):
        _emit_table(table, title, rows_max)
    elif form == "json":
        click.echo(json.dumps(list(plain_rows(table)), indent=2, ensure_ascii=False))
    elif form == "jsonl":
        for row in plain_rows(table):
            click.echo(json.dumps(row, ensure_ascii=False))
    elif form == "csv":
        import pyarrow.csv as pacsv

        sys.stdout.flush()
        pacsv.write_csv(_flat(table), sys.stdout.buffer)
    else:
        _emit_binary(table, form or "arrow")


def emit_records(rows: Sequence[dict[str, Any]], form: str | None, *, title: str | None = None) -> None:
    """Print a list of dicts with the same keys, as `emit` does."""
    import pyarrow as pa

    emit(pa.Table.from_pylist(list(rows)), form, title=title)


def _emit_table(table: pa.Table, title: str | None, rows_max: int) -> None:
    import pyarrow as pa
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.schema:
        kind = column.type
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        shown.add_column(Text(column.name), justify="right" if number else "left", overflow="ellipsis", no_wrap=True)
    for row in _rows(table.slice(0, rows_max)):
        shown.add_row(*(Text(cell(value), style="dim" if value is None else "") for value in row.values()))
    if title is not None:
        console().print(Text(title, style="bold"))
    console().print(shown)
    if table.num_rows > rows_max:
        note(f"{table.num_rows:,} rows, of which {rows_max:,} are shown; --output jsonl, csv ... print all of them")


def _emit_binary(table: pa.Table, form: str) -> None:
    if sys.stdout.isatty():
        raise click.UsageError(f"{form} is binary and this is a terminal: send it to a file with '> FILE'")
    import pyarrow as pa

    sys.stdout.flush()
    if form == "arrow":
        with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as stream:
            stream.write_table(table)
    else:
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        sys.stdout.buffer.write(sink.getvalue())
    sys.stdout.buffer.flush()


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in _micros(table).to_batches(max_chunksize=_CHUNK_ROWS):
        yield from batch.to_pylist()


def plain_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows as dicts of what JSON knows."""
    for row in _rows(table):
        yield {name: plain(value) for name, value in row.items()}


def plain(value: Any) -> Any:
    """A value as JSON knows it; see the top of this module."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dt.datetime):
        return moment(value)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dt.timedelta | decimal.Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def cell(value: Any) -> str:
    """A value in one line of text."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return text(value)
    if isinstance(value, str):
        return _visible(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, dt.datetime):
        return moment(value, between=" ")
    if isinstance(value, dict | list):
        return _visible(json.dumps(plain(value), ensure_ascii=False))
    return str(value)


def text(data: bytes) -> str:
    """Bytes as one line of text: UTF-8, with `\\xNN` for what is not, and for what would move the cursor."""
    return _visible(data.decode("utf-8", "backslashreplace"))


def moment(value: dt.datetime, between: str = "T") -> str:
    """A time as ISO 8601, with `Z` for UTC."""
    digits = "microseconds" if value.microsecond % 1000 else "milliseconds"
    written = value.isoformat(between, digits)
    return written.removesuffix("+00:00") + "Z" if written.endswith("+00:00") else written


def _visible(value: str) -> str:
    return _CONTROL.sub(lambda found: _NAMED.get(found[0], f"\\x{ord(found[0]):02x}"), value)


def _distinct(names: list[str]) -> list[str]:
    """Names with a number added to those that were there before."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        distinct.append(f"{name}_{seen[name]}" if seen[name] else name)
    return distinct


def _micros(table: pa.Table) -> pa.Table:
    """Nanoseconds cut to the microseconds that Python's datetime has."""
    import pyarrow as pa

    for place, column in enumerate(table.schema):
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            cut = table.column(place).cast(pa.timestamp("us", column.type.tz), safe=False)
            table = table.set_column(place, column.name, cut)
    return table


def _flat(table: pa.Table) -> pa.Table:
    """A table that CSV can hold: structs side by side, lists as JSON, bytes as text."""
    import pyarrow as pa

    while any(pa.types.is_struct(column.type) for column in table.schema):
        table = table.flatten()
    for place, column in enumerate(table.schema):
        kind = column.type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            table = table.set_column(place, column.name, _texts(table.column(place)))
    return table


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    if not pa.types.is_nested(column.type):
        with contextlib.suppress(pa.ArrowInvalid):
            return column.cast(pa.string())
    texts = [None if value is None else _csv_text(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _csv_text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else cell(value)


def size(count: float) -> str:
    """Bytes for people: 512 B, 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
