"""`streamcore verify`: every checksum of a store."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from streamcore.cli.settings import FORMS, Settings, output_option, pass_settings, store_option

if TYPE_CHECKING:
    from streamcore import Problem, Store


@click.command(name="verify")
@click.option("--digests", is_flag=True, help="Print the XXH3-128 of each segment file as the result.")
@output_option
@store_option
@pass_settings
def command(settings: Settings, digests: bool) -> None:
    """Read a whole store and check every batch: checksums, headers, offsets. Nothing is written.

    Prints what is wrong, with file, offset and position in the file, and ends with status 1 if anything is. With
    --digests the result is the digest of each file, to compare copies of a store, and what is wrong goes to stderr.

    \b
    Examples:
      streamcore verify && echo sound
      streamcore verify --output json
      streamcore verify --digests --output csv > digests.csv
    """
    from streamcore.cli.output import emit_records, note, progress, size

    with settings.open("r") as store:
        checked = 0
        began = time.monotonic()
        with progress("verify") as advance:

            def count(done: int, total: int) -> None:
                nonlocal checked
                checked = done
                advance(done, total)

            problems = store.verify(progress=count)
        seconds = time.monotonic() - began
        if digests:
            for problem in problems:
                note(_sentence(problem))
            emit_records(_digests(store), settings.form)
    if not digests and (settings.form in FORMS[1:] or problems):
        emit_records([_row(problem) for problem in problems], settings.form)
    if problems:
        note(f"error: {len(problems)} problem{'s' * (len(problems) != 1)} in {settings.path}")
        sys.exit(1)
    rate = size(checked / max(seconds, 1e-6))
    note(f"{settings.path} is sound: {size(checked)} checked in {seconds:.2f} s, {rate}/s")


def _digests(store: Store) -> list[dict[str, Any]]:
    from streamcore.cli.output import progress

    total = sum(segment.size_bytes for topic in store.topics() for segment in topic.segments())
    rows: list[dict[str, Any]] = []
    done = 0
    with progress("digests") as advance:
        for path, count, digest in store.digests():
            rows.append({"path": path, "bytes": count, "xxh3_128": digest})
            done += count
            advance(done, total)
    return rows


def _sentence(problem: Problem) -> str:
    return f"{problem.path}: {problem.message} (offset {problem.offset}, position {problem.position})"


def _row(problem: Problem) -> dict[str, Any]:
    return {
        "path": str(problem.path),
        "offset": problem.offset,
        "position": problem.position,
        "message": problem.message,
    }
