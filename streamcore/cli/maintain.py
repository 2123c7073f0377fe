"""`streamcore maintain`: background work of a store, in a process of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import click

from streamcore.cli.settings import INTERRUPTED, Settings, output_option, pass_settings, store_option

if TYPE_CHECKING:
    from streamcore.maintenance import Run


@click.command(name="maintain")
@click.option("--loop", is_flag=True, help="Go on, a pass every --interval seconds, until ^C.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=30.0, show_default=True,
              help="Seconds between two passes of --loop.")  # fmt: skip
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Only this task; may be given again.")
@output_option
@store_option
@pass_settings
def command(settings: Settings, loop: bool, interval: float, tasks: tuple[str, ...]) -> None:
    """Do the background work of a store now: end transactions that ran out of time, expire members and offsets of
    groups, delete by retention, compact, and merge small batches.

    Programs that have the store open do this by themselves, one of them at a time. Use this command for a store that
    nobody has open for long, or to have the work done in a process of its own. While another process is at it, nothing
    is done, and the command says so and ends with status 1; with --loop it waits for its turn.

    \b
    Examples:
      streamcore maintain
      streamcore maintain --task retention --task compaction --output json
      timeout 1 streamcore maintain --loop --interval 0.5 || true
    """
    from streamcore.cli.output import emit_records, note

    with settings.open() as store:
        chosen = list(tasks) or None
        try:
            while True:
                runs = store.maintain(chosen)
                if runs is not None:
                    emit_records([_row(run) for run in runs], settings.form)
                if not loop:
                    break
                threading.Event().wait(interval)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None
    if runs is None:
        note("another process does the background work of this store now")
        raise click.exceptions.Exit(1)
    if any(run.error for run in runs):
        raise click.exceptions.Exit(1)


def _row(run: Run) -> dict[str, object]:
    return {
        "task": run.task,
        "seconds": round(run.seconds, 3),
        "done": ", ".join(f"{name} {count:,}" for name, count in run.done.items() if count),
        "error": run.error,
    }
