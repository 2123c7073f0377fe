"""`streamcore sql`: queries over topics."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from streamcore.cli.settings import Settings, output_option, pass_settings, store_option

if TYPE_CHECKING:
    from streamcore import Store
    from streamcore.sql import QueryMetrics


@click.command(name="sql")
@click.argument("statement", metavar="SQL")
@click.option("--stats", is_flag=True, help="Say on stderr what was read: segments, columns, rows, bytes.")
@click.option("--rows", type=click.IntRange(1), default=500, show_default=True, help="Rows that a table shows at most.")
@output_option
@store_option
@pass_settings
def command(settings: Settings, statement: str, stats: bool, rows: int) -> None:
    """Run one SQL statement (DuckDB's SQL) in which each topic is a table; - reads it from stdin.

    A table has the columns partition, offset, timestamp, key, value and headers. `offset` and names with - or . in
    them need double quotes. Keys and values are bytes: text(key) gives their text. A typed topic's value is a struct:
    value.magnitude is a column of it. Only the columns that a query uses are read, and conditions on partition, offset
    and timestamp decide which segments are opened at all; --stats shows it, and how much was passed over to verify
    checksums, which are of whole batches. Times are UTC.

    \b
    Examples:
      streamcore sql 'select text(key) as who, count(*) from clicks group by all order by 2 desc limit 10'
      streamcore sql "select * from quakes where timestamp >= '2016-02-01' and value.magnitude > 6" --stats
      streamcore sql 'select partition, max("offset") from "web-access" group by 1' --output csv
      streamcore sql "select text(value)->>'$.page' as page, count(*) from clicks group by 1" -o json
      streamcore sql 'select * from clicks' -o parquet > clicks.parquet
    """
    from streamcore.cli.output import emit, note

    try:
        import duckdb
    except ImportError:
        raise click.ClickException("sql needs the package duckdb: pip install 'streamcore[sql]'") from None
    from streamcore.sql import QueryMetrics, query

    text = sys.stdin.read() if statement == "-" else statement
    metrics = QueryMetrics()
    with settings.open("r") as store:
        began = time.monotonic()
        try:
            table = query(store, text, metrics)
        except duckdb.Error as error:
            raise click.ClickException(_explained(error, store)) from error
        seconds = time.monotonic() - began
        if table.num_columns:
            emit(table, settings.form, rows_max=rows)
    if stats:
        note(_described(metrics, seconds))


def _explained(error: Exception, store: Store) -> str:
    """The error's first line, with the tables that there are where one is missing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    if message.startswith("Catalog Error: Table"):
        names = [topic.name for topic in store.topics()]
        return f"{message} (topics: {', '.join(names) or 'none'})"
    at = next((line for line in lines if line.startswith("LINE ")), None)
    return f"{message} (in {at})" if at is not None else message


def _described(metrics: QueryMetrics, seconds: float) -> str:
    from streamcore.cli.output import size

    checked = f"checksums over {size(metrics.bytes_verified)}; " if metrics.bytes_verified else ""
    return (
        f"read {metrics.segments_opened} of {metrics.segments_total} segments, {metrics.rows:,} rows, "
        f"{size(metrics.bytes_exported)}; columns: {', '.join(metrics.columns) or 'none'}; "
        f"{checked}{seconds * 1000:.1f} ms"
    )
