"""`streamcore ingest`: files into a topic."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamcore.cli.settings import FORMS, Settings, complete_topic, pass_settings, store_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamcore import Store
    from streamcore.ingest import BadRow, IngestOptions, IngestReport

_SHOWN_MAX = 20
_TEXT_MAX = 120
_RATE_SECONDS_MIN = 0.5  # in less, most of the time is start-up


@click.command(name="ingest")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(allow_dash=True))
@click.option("--topic", required=True, shell_complete=complete_topic, help="The topic; it is made if it is not there.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["lines", "csv", "jsonl", "parquet", "arrow"]),
    help="What the files hold; by their names without it (lines, if those say nothing).",
)
@click.option("--typed", is_flag=True, help="Into a typed topic: each column of the file becomes one of the topic.")
@click.option("--key", metavar="FIELD", help="The field that becomes the key; in lines the number of a word, from 1.")
@click.option("--key-regex", metavar="REGEX", help="In lines: the key is this expression's first group.")
@click.option("--timestamp", metavar="FIELD", help="The field that becomes the timestamp. Without it: now.")
@click.option("--timestamp-regex", metavar="REGEX", help="In lines: the timestamp is this expression's first group.")
@click.option(
    "--timestamp-format",
    metavar="FORMAT",
    help="Its strptime format, with %f for fractions, or s, ms, us, ns since 1970. Common ones are recognised.",
)
@click.option("--value", metavar="FIELD", help="The field that becomes the value. Without it: the whole line.")
@click.option("--column", "columns", metavar="NAME:TYPE", multiple=True, help="A column's type, instead of a guess.")
@click.option("--delimiter", metavar="CHAR", help="Between the fields of CSV. [comma; tab for .tsv]")
@click.option("--no-header", is_flag=True, help="The CSV has no line of column names; they are f0, f1 ...")
@click.option("--newlines-in-values", is_flag=True, help="Quoted CSV fields may hold newlines (slower).")
@click.option("--null", "nulls", metavar="TEXT", multiple=True, help="CSV fields with this text are null, too.")
@click.option("--partitions", type=click.IntRange(1), default=1, help="Partitions of a topic that is made. [1]")
@click.option("--infer-rows", type=click.IntRange(1), metavar="N", help="Guess types from about N rows. [64 MiB]")
@click.option("--on-error", type=click.Choice(["report", "stop"]), default="report", show_default=True,
              help="Leave bad rows out and report them, or stop before the first block that has one.")  # fmt: skip
@click.option("--bad-rows", type=click.Path(dir_okay=False), metavar="PATH", help="Write the bad rows there.")
@click.option("--force", is_flag=True, help="Ingest from the start, whatever was ingested before.")
@store_option
@pass_settings
def command(settings: Settings, /, files: tuple[str, ...], topic: str, **given: Any) -> None:
    """Load files into a topic, at the speed at which they can be parsed.

    Plain topics take each line, or JSON or CSV row, as a value of bytes, with a field of it as key and another one as
    timestamp. With --typed the columns of CSV, JSON lines, Parquet and Arrow files become columns of the topic; types
    are guessed from the file and shown. Files may be compressed (.gz, .zst, .bz2, .lz4); - is stdin.

    Running it again is safe: a file that is in the topic already is left alone, what was appended to it since is added,
    an interrupted run is continued without loss or repetition, and a file that has otherwise changed is refused
    (--force takes it from the start again). Bad rows are reported with their line numbers and left out, the good ones
    are kept, and the exit status is 1.

    \b
    Examples:
      streamcore ingest access.log --topic access --key-regex '^(\\S+)' --timestamp-regex '\\[(.*?)\\]'
      streamcore ingest quakes.csv --topic quakes --typed --timestamp DateTime --key Source
      streamcore ingest events/*.jsonl.gz --topic events --key user.id --timestamp at --partitions 8
      streamcore ingest trips.parquet --topic trips --typed --column 'fare:decimal(10,2)'
      journalctl -o short-iso | streamcore ingest - --topic journal --timestamp 1
    """
    from streamcore.cli.output import emit_records, note, progress
    from streamcore.ingest import ingest

    options = _options(given)
    if files.count("-") > 1:
        raise click.UsageError("stdin (-) can be read once")
    _check_before_a_store_is_made(files, topic)
    reports = []
    with settings.open(create=True) as store, _keeper(given["bad_rows"]) as keep:
        for path in files:
            known = _has_topic(store, topic)
            with progress(f"ingest {path}", unit="bytes") as advance:
                report = ingest(store, topic, path, options, advance, keep)
            if report.schema is not None and not known:
                _show_schema(report)
            _show_bad(report)
            if settings.form in (None, "table"):
                click.echo(_sentence(report))
            reports.append(report)
    if settings.form in FORMS[1:]:
        emit_records([_described(report) for report in reports], settings.form)
    bad = sum(report.bad_count for report in reports)
    if bad:
        note(f"error: {bad:,} bad row{'s were' if bad > 1 else ' was'} left out")
        sys.exit(1)


def _options(given: dict[str, Any]) -> IngestOptions:
    """The command line's options as those of the ingest."""
    from streamcore.ingest import IngestOptions

    columns = []
    for column in given["columns"]:
        name, colon, kind = column.partition(":")
        if not colon:
            raise click.BadParameter(f"{column!r} is not NAME:TYPE", param_hint="--column")
        columns.append((name, kind))
    if given["key"] and given["key_regex"]:
        raise click.UsageError("--key and --key-regex exclude each other")
    if given["timestamp"] and given["timestamp_regex"]:
        raise click.UsageError("--timestamp and --timestamp-regex exclude each other")
    return IngestOptions(
        format=given["form"],
        key=given["key"],
        key_regex=given["key_regex"],
        timestamp=given["timestamp"],
        timestamp_regex=given["timestamp_regex"],
        timestamp_format=given["timestamp_format"],
        value=given["value"],
        typed=given["typed"],
        columns=tuple(columns),
        delimiter=given["delimiter"],
        header=not given["no_header"],
        newlines_in_values=given["newlines_in_values"],
        null_values=("", *given["nulls"]),
        infer_rows=given["infer_rows"],
        partitions=given["partitions"],
        force=given["force"],
        stop_on_error=given["on_error"] == "stop",
    )


def _check_before_a_store_is_made(files: tuple[str, ...], topic: str) -> None:
    """A typing error in a path or name makes no store, and keeps nothing of the files before it."""
    from streamcore.config import check_topic_name

    check_topic_name(topic)
    for path in files:
        if path != "-":
            Path(path).stat()


def _has_topic(store: Store, name: str) -> bool:
    return any(topic.name == name for topic in store.topics())


@contextlib.contextmanager
def _keeper(path: str | None) -> Iterator[Callable[[BadRow], None] | None]:
    """Something that writes bad rows to a file, as they were; None without a file."""
    if path is None:
        yield None
        return
    with Path(path).open("wb") as file:

        def keep(bad: BadRow) -> None:
            file.write(bad.text + b"\n")

        yield keep


def _show_schema(report: IngestReport) -> None:
    from streamcore.cli.output import note

    assert report.schema is not None
    width = max(len(name) for name in report.schema.names)
    note(f"created typed topic {report.topic} from {report.path}:")
    for column in report.schema:
        note(f"  {column.name:<{width}}  {column.type}")


def _show_bad(report: IngestReport) -> None:
    from streamcore.cli.output import note, text

    for bad in report.bad[:_SHOWN_MAX]:
        shown = text(bad.text)
        note(f"{bad}: {shown[:_TEXT_MAX]}{'...' if len(shown) > _TEXT_MAX else ''}")
    if report.bad_count > _SHOWN_MAX:
        note(f"... and {report.bad_count - _SHOWN_MAX:,} more bad rows in {report.path}")


def _sentence(report: IngestReport) -> str:
    from streamcore.cli.output import size

    if report.status == "unchanged":
        return f"{report.topic}: {report.path} is there already, nothing to do (--force ingests it again)"
    verb = {"resumed": "the rest, ", "extended": "what is new, "}.get(report.status, "")
    amount = f"{verb}{report.rows:,} records from {report.path}"
    if report.format in ("parquet", "arrow") or report.seconds < _RATE_SECONDS_MIN:
        return f"{report.topic}: {amount} in {report.seconds:.2f} s"
    rate = size(report.bytes / max(report.seconds, 1e-6))
    return f"{report.topic}: {amount} ({size(report.bytes)}) in {report.seconds:.2f} s, {rate}/s"


def _described(report: IngestReport) -> dict[str, Any]:
    return {
        "file": report.path,
        "topic": report.topic,
        "format": report.format,
        "status": report.status,
        "records": report.rows,
        "bad_rows": report.bad_count,
        "seconds": round(report.seconds, 3),
    }
