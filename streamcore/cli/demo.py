"""`streamcore demo`: a tour of the log in a store that is thrown away."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from streamcore import Span, Store, Topic

_ROWS = 50_000

_TOP_PAGES = """\
select value.page as page, count(*) as views, count(distinct text(key)) as visitors,
       round(avg(value.duration_ms), 1) as avg_ms
from clicks where value.status = 200
group by page order by views desc limit 8"""

_MORNING = """\
select date_trunc('hour', timestamp) as hour, count(*) as views
from clicks where timestamp >= '2026-03-02 06:00' and timestamp < '2026-03-02 09:00'
group by hour order by hour"""


@click.command(name="demo")
@click.option("--rows", type=click.IntRange(1000), default=_ROWS, show_default=True, help="Page views in the stream.")
@click.option("--keep", metavar="DIR", help="Make the store there, and keep it to play with.")
def command(rows: int, keep: str | None) -> None:
    """A tour: make a clickstream, ingest it, follow it, scan it as Arrow, query it with SQL, verify it.

    Every step is shown as the Python that does it, and what comes out. It takes a few seconds and leaves nothing
    behind, unless --keep names a directory for the store.

    \b
    Examples:
      streamcore demo
      streamcore demo --keep ./clicks && streamcore --store ./clicks sql 'select count(*) from clicks'
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streamcore-demo-") as scratch:
        path = Path(keep) if keep else Path(scratch, "shop")
        tour = _Tour(path, Path(scratch, "clicks.jsonl"), rows)
        tour.run()
        tour.close()
    click.echo(f"\nThat took {time.monotonic() - began:.1f} s. Next: streamcore --help")
    if keep:
        click.echo(f"The store is in {keep}: streamcore --store {keep} tail clicks")


class _Tour:
    """The steps, in one store."""

    def __init__(self, path: Path, source: Path, rows: int) -> None:
        import streamcore
        from streamcore.cli.output import console

        self._console: Console = console()
        self._path = path
        self._source = source
        self._rows = rows
        self._step = 0
        self._store: Store = streamcore.open(path)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def run(self) -> None:
        """All steps."""
        self._topic()
        self._ingest()
        self._append()
        self._scan()
        self._sql()
        self._verify()

    def _topic(self) -> None:
        import pyarrow as pa

        from streamcore.demo import clickstream

        stream = clickstream(self._rows)
        _write_jsonl(stream, self._source)
        self._show(
            "A store is a directory, a topic is a log in it. This one is typed: its values are columns.",
            """\
            import pyarrow as pa, streamcore as sc
            store = sc.open("shop")
            clicks = store.create_topic("clicks", partitions=4, schema=pa.schema([
                ("at", pa.timestamp("ms", "UTC")), ("visitor", pa.string()), ("page", pa.string()), ...]))""",
        )
        schema = pa.schema([field.with_nullable(True) for field in stream.schema])
        self._store.create_topic("clicks", partitions=4, schema=schema)
        size = self._source.stat().st_size
        self._say(f"made the topic, and a day of page views to put into it: clicks.jsonl, {size / 1e6:.1f} MB")

    def _ingest(self) -> None:
        from streamcore.ingest import IngestOptions, ingest

        self._show(
            "Files go in at the speed of their parser: keys decide the partition, a field is the event's time.",
            """\
            options = IngestOptions(key="visitor", timestamp="at", block_bytes=1 << 18)
            ingest(store, "clicks", "clicks.jsonl", options)
            $ streamcore ingest clicks.jsonl --topic clicks --key visitor --timestamp at""",
        )
        options = IngestOptions(key="visitor", timestamp="at", block_bytes=1 << 18)
        report = ingest(self._store, "clicks", str(self._source), options)
        rate = report.rows / max(report.seconds, 1e-6)
        self._say(f"{report.rows:,} records in {report.seconds:.2f} s, {rate / 1e6:.2f} million a second")
        again = ingest(self._store, "clicks", str(self._source), options)
        self._say(f"once more: {again.rows} records, as all of them are there ({again.status})")

    def _append(self) -> None:
        self._show(
            "Programs append. One call to one partition is atomic, and readers see it at once.",
            """\
            [span] = clicks.append([{"page": "/", "visitor": "you", "status": 200}], keys=[b"you"])""",
        )
        clicks = self._store.topic("clicks")
        [span] = clicks.append([{"page": "/", "visitor": "you", "status": 200}], keys=[b"you"])
        self._say(str(span))
        self._tail(clicks, span)

    def _tail(self, clicks: Topic, span: Span) -> None:
        self._show(
            "Records come back by offset, with key, time, value and headers.",
            """\
            for record in clicks.scan(partition=span.partition, start=span.end_offset - 3): print(record)
            $ streamcore tail clicks -n 3""",
        )
        for record in clicks.scan(partition=span.partition, start=span.end_offset - 3):
            key = (record.key or b"").decode()
            value = record.value if isinstance(record.value, dict) else {}
            self._say(f"{record.timestamp:%H:%M:%S} {record.partition}:{record.offset} {key} {value.get('page')}")

    def _scan(self) -> None:
        self._show(
            "The log file is Arrow: a scan gives tables whose buffers are the mapped file, nothing is decoded.",
            """\
            table = clicks.scan(columns=["timestamp", "value.page", "value.duration_ms"]).to_arrow()""",
        )
        clicks = self._store.topic("clicks")
        began = time.perf_counter()
        table = clicks.scan(columns=["timestamp", "value.page", "value.duration_ms"]).to_arrow()
        micros = (time.perf_counter() - began) * 1e6
        size = f"{table.num_rows:,} rows, {table.num_columns} columns, {table.nbytes / 1e6:.1f} MB"
        self._say(f"{size} in {micros:,.0f} µs")

    def _sql(self) -> None:
        try:
            import duckdb  # noqa: F401  # only asks whether it is there
        except ImportError:
            self._say("(SQL needs duckdb: pip install 'streamcore[sql]')")
            return
        from streamcore.sql import QueryMetrics, query

        self._show("SQL reads the same files, and only the columns that a query names.", _TOP_PAGES, language="sql")
        metrics = QueryMetrics()
        self._table(query(self._store, _TOP_PAGES, metrics))
        self._say(f"read {', '.join(name.removeprefix('clicks.') for name in metrics.columns)} and no other column")
        self._show("Bounds on time and offset decide what is read at all.", _MORNING, language="sql")
        metrics = QueryMetrics()
        self._table(query(self._store, _MORNING, metrics))
        self._say(f"read {metrics.rows:,} of {self._rows + 1:,} records")

    def _verify(self) -> None:
        self._show("Every batch carries checksums.", "store.verify()\n$ streamcore verify")
        problems = self._store.verify()
        self._say("no problems" if not problems else f"problems: {problems}")

    def _show(self, what: str, code: str, language: str = "python") -> None:
        import textwrap

        from rich.padding import Padding
        from rich.syntax import Syntax
        from rich.text import Text

        self._step += 1
        self._console.print()
        self._console.print(Text.assemble((f"{self._step}. ", "bold cyan"), (what, "bold")))
        text = textwrap.dedent(code)
        if self._console.is_terminal:
            self._console.print(Padding(Syntax(text, language, background_color="default"), (0, 0, 0, 3), expand=False))
        else:
            self._console.print(textwrap.indent(text, "   "), markup=False)

    def _say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(f"   → {text}", style="green"))

    def _table(self, table: pa.Table) -> None:
        from rich import box
        from rich.padding import Padding
        from rich.table import Table

        from streamcore.cli.output import cell

        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, name in enumerate(table.column_names):
            shown.add_column(name, justify="left" if place == 0 else "right")
        for row in table.to_pylist():
            shown.add_row(*(cell(value) for value in row.values()))
        self._console.print(Padding(shown, (0, 0, 0, 3), expand=False))


def _write_jsonl(stream: pa.Table, path: Path) -> None:
    """The stream as a web server would log it."""
    rows: list[dict[str, Any]] = stream.to_pylist()
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            row["at"] = row["at"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
            file.write(json.dumps({name: value for name, value in row.items() if value is not None}) + "\n")
