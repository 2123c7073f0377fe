"""`streamcore stats`: what a store holds and what goes on in it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from streamcore.cli.settings import FORMS, INTERRUPTED, Settings, output_option, pass_settings, store_option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from streamcore import Store
    from streamcore.stats import StoreStats


@click.command(name="stats")
@click.option("--watch", is_flag=True, help="Show it again and again, with rates, until ^C.")
@click.option("--interval", type=click.FloatRange(min=0.05), default=1.0, show_default=True,
              help="Seconds between two looks of --watch.")  # fmt: skip
@output_option
@store_option
@pass_settings
def command(settings: Settings, watch: bool, interval: float) -> None:
    """Show topics, consumer groups and background work: records, bytes, segments, lag, runs and errors.

    Nothing is written, and other processes may go on meanwhile. `unflushed` are records that a loss of power would
    take, `undecided` those of open transactions or behind them; the lag of a group is what it has not committed yet.
    With --watch rates are counted from one look to the next.

    \b
    Examples:
      streamcore stats
      streamcore stats --output json
      timeout 1 streamcore stats --watch --interval 0.2 || true
    """
    with settings.open("r") as store:
        if watch:
            try:
                _watch(store, interval)
            except KeyboardInterrupt:
                raise click.exceptions.Exit(INTERRUPTED) from None
        elif settings.form in (None, "table"):
            from streamcore.cli.output import console

            console().print(_shown(store.stats(), None))
        else:
            _emit(store.stats(), settings.form)


def _emit(stats: StoreStats, form: str | None) -> None:
    """JSON has all of it; a table of a program has the topics."""
    from streamcore.cli.output import emit_records

    if form in ("json", "jsonl"):
        import json

        click.echo(json.dumps(stats.as_dict(), indent=2 if form == "json" else None).replace("Infinity", "null"))
        return
    assert form in FORMS
    emit_records([_row(stats, i, None) for i in range(len(stats.topics))], form)


def _watch(store: Store, interval: float) -> None:
    from rich.live import Live

    from streamcore.cli.output import console

    last = store.stats()
    with Live(_shown(last, None), console=console(), auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            now = store.stats()
            live.update(_shown(now, last), refresh=True)
            last = now


def _row(stats: StoreStats, i: int, last: StoreStats | None) -> dict[str, Any]:
    topic = stats.topics[i]
    row = {
        "topic": topic.topic,
        "partitions": topic.partitions,
        "records": topic.records,
        "bytes": topic.bytes,
        "segments": topic.segments,
        "unflushed": topic.unflushed,
        "undecided": topic.undecided,
    }
    if last is not None:
        before = {other.topic: other.end_offsets for other in last.topics}.get(topic.topic, topic.end_offsets)
        seconds = max(1e-3, (stats.taken_ms - last.taken_ms) / 1000)
        row["records/s"] = round((topic.end_offsets - before) / seconds)
    return row


def _shown(stats: StoreStats, last: StoreStats | None) -> RenderableType:
    from rich.console import Group

    from streamcore.cli.output import size

    topics = [_row(stats, i, last) | {"bytes": size(topic.bytes)} for i, topic in enumerate(stats.topics)]
    groups = [
        {"group": group.group, "generation": group.generation, "members": group.members, "lag": group.lag}
        for group in stats.groups
    ]
    tasks = [
        {
            "task": task.task,
            "runs": task.runs,
            "errors": task.errors,
            "last": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(task.last_started_ms / 1000)),
            "seconds": round(task.last_seconds, 3),
            "did": ", ".join(f"{name} {count}" for name, count in task.last_done.items() if count),
        }
        for task in stats.maintenance
    ]
    parts = [_table(rows, title) for rows, title in ((topics, "topics"), (groups, "groups"), (tasks, "maintenance"))]
    return Group(*(part for part in parts if part is not None))


def _table(rows: list[dict[str, Any]], title: str) -> RenderableType | None:
    from rich import box
    from rich.table import Table

    if not rows:
        return None
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name, value in rows[0].items():
        shown.add_column(name, justify="right" if isinstance(value, int | float) else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    return shown
