"""`streamcore bench`: rates of this machine."""

from __future__ import annotations

import shutil
import tempfile
import time
from typing import TYPE_CHECKING, Any

import click

from streamcore.cli.settings import output_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from streamcore import Store, Topic

_CALL_ROWS = 1000
_BLOCK_ROWS = 65_536
_FREE_BYTES_MIN = 2 << 30
_APPENDED_BYTES_MAX = 512 << 20


@click.command(name="bench")
@click.option("--seconds", type=click.FloatRange(0.2, 300), default=7.0, show_default=True, help="About how long.")
@click.option("--value-bytes", type=click.IntRange(1, 1 << 20), default=100, show_default=True, help="Size of a value.")
@click.option("--dir", "directory", type=click.Path(exists=True, file_okay=False), help="On this drive. [$TMPDIR]")
@output_option
@click.pass_context
def command(ctx: click.Context, seconds: float, value_bytes: int, directory: str | None) -> None:
    """Measure appends, scans and queries on this machine, in a temporary store.

    Each row is the best of the rounds that fit into its share of the time. Values are cut from a clickstream, not
    constant bytes. It shows what this machine does now; for comparisons with other systems see docs/benchmarks.md.

    \b
    Examples:
      streamcore bench
      streamcore bench --value-bytes 1024 --dir . --output json
    """
    import streamcore
    from streamcore.cli.output import emit_records, progress

    root = tempfile.mkdtemp(prefix="streamcore-bench-", dir=directory)
    rows: list[dict[str, Any]] = []
    try:
        if shutil.disk_usage(root).free < _FREE_BYTES_MIN:
            raise click.ClickException(f"the drive of {root} has less than 2 GiB free: choose another with --dir")
        with streamcore.open(root) as store, progress("bench", unit="steps") as advance:
            for row in _Bench(store, value_bytes, seconds).rows():
                rows.append(row)
                advance(len(rows), _STEPS)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if ctx.obj.form in (None, "table"):
        rows = [{name: _readable(value) for name, value in row.items()} for row in rows]
    emit_records(rows, ctx.obj.form, title=f"values of {value_bytes} bytes")


def _readable(value: Any) -> Any:
    return f"{value:,}" if isinstance(value, int) else value


_STEPS = 7


class _Bench:
    """The measurements, each within its share of the time."""

    def __init__(self, store: Store, value_bytes: int, seconds: float) -> None:
        from streamcore.demo import clickstream

        self._store = store
        self._bytes = value_bytes
        self._share = seconds / _STEPS
        self._values = _values(clickstream(_BLOCK_ROWS), value_bytes)
        self._lists = [
            self._values.slice(start, _CALL_ROWS).to_pylist()
            for start in range(0, _BLOCK_ROWS - _CALL_ROWS, _CALL_ROWS)
        ]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Measure, one row after another."""
        listed = self._store.create_topic("lists")
        yield self._appended(f"append list[bytes], {_CALL_ROWS:,} a call", lambda: self._append_lists(listed))
        arrow = self._store.create_topic("arrow")
        yield self._appended(f"append Arrow, {_BLOCK_ROWS:,} a call", lambda: self._append_arrow(arrow))
        yield self._measured("scan as Arrow and hash every value", lambda: self._scan(arrow))
        yield self._measured("iterate records", lambda: sum(1 for _ in arrow.scan(limit=100_000)))
        yield self._measured("verify every byte", self._verify)
        yield self._durable()
        yield from self._queried(arrow)

    def _append_lists(self, topic: Topic) -> int:
        for values in self._lists:
            topic.append(values)
        return len(self._lists) * _CALL_ROWS

    def _append_arrow(self, topic: Topic) -> int:
        topic.append(self._values)
        return _BLOCK_ROWS

    def _scan(self, topic: Topic) -> int:
        import xxhash

        rows, state = 0, xxhash.xxh3_64()
        for batch in topic.scan(columns=["value"]).batches():
            state.update(batch.column(0).buffers()[2])
            rows += batch.num_rows
        return rows

    def _verify(self) -> int:
        records = sum(part.end_offset for each in self._store.topics() for part in each.partitions)
        self._store.verify()
        return records

    def _durable(self) -> dict[str, Any]:
        topic = self._store.create_topic("durable", durability="disk")
        value = self._values.slice(0, 1)

        def one() -> int:
            topic.append(value)
            return 1

        return self._measured("append one record, durable on the drive", one)

    def _queried(self, topic: Topic) -> Iterator[dict[str, Any]]:
        try:
            import duckdb  # noqa: F401  # only asks whether it is there
        except ImportError:
            return
        from streamcore.sql import query

        rows = topic.scan().count()

        def aggregate() -> int:
            query(self._store, "select count(*), sum(octet_length(value)) from arrow")
            return rows

        yield self._measured("sql: sum of value lengths", aggregate)

    def _appended(self, name: str, act: Callable[[], int]) -> dict[str, Any]:
        return self._measured(name, act, limit=_APPENDED_BYTES_MAX // self._bytes)

    def _measured(self, name: str, act: Callable[[], int], limit: int | None = None) -> dict[str, Any]:
        """Repeat an act within its share of time, and within `limit` records; its best rate."""
        end = time.perf_counter() + self._share
        best, total = 0.0, 0
        act()
        while True:
            began = time.perf_counter()
            done = act()
            now = time.perf_counter()
            best, total = max(best, done / (now - began)), total + done
            if now >= end or (limit is not None and total >= limit):
                return _row(name, best, self._bytes)


def _row(name: str, rate: float, value_bytes: int) -> dict[str, Any]:
    return {
        "what": name,
        "records_per_second": round(rate),
        "MB_per_second": round(rate * value_bytes / 1e6, 1),
        "us_per_record": float(f"{1e6 / rate:.3g}"),
    }


def _values(stream: pa.Table, size: int) -> pa.Array:
    """Values of this size, of the stream's rows as text."""
    import pyarrow as pa

    lines = [" ".join(map(str, row.values())).encode() for row in stream.to_pylist()]
    text = b"\n".join(lines)
    doubled = text * (2 + size // len(text))
    step = len(text) // len(lines)
    return pa.array([doubled[place * step : place * step + size] for place in range(len(lines))], pa.binary())
