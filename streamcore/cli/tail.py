"""`streamcore tail`: the last records of a topic, and the next ones."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from streamcore.cli.amounts import position
from streamcore.cli.settings import INTERRUPTED, Settings, pass_settings, store_option, topic_argument

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator

    import pyarrow as pa

    from streamcore import Topic

_COLUMNS = ["partition", "offset", "timestamp", "key", "value", "headers"]
_WAKE_MS = 500  # how often ^C and new partitions are looked for; records wake at once
_CHUNK_ROWS = 1024
_FORMATS = ("text", "json", "jsonl", "value")


@click.command(name="tail")
@topic_argument
@click.option("-n", "--lines", "count", type=click.IntRange(0), metavar="N",
              help="How many records: the last N, or the first N with --from. [10; all with --from]")  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Go on with the records that are appended, until ^C.")
@click.option("--from", "start", metavar="WHERE", help="Start at earliest, latest, an offset or a time (ISO 8601).")
@click.option("--partition", type=click.IntRange(0), help="Only this partition.")
@click.option("--group", metavar="NAME", help="Go on where this consumer group is, and commit what was printed.")
@click.option("--format", "form", type=click.Choice(_FORMATS),
              help="text (default) and value are for people and pipes, json and jsonl have everything.")  # fmt: skip
@store_option
@pass_settings
def command(
    settings: Settings,
    topic: str,
    count: int | None,
    follow: bool,
    start: str | None,
    partition: int | None,
    group: str | None,
    form: str | None,
) -> None:
    """Print records of a topic: the last ones, those from a place on, and with -f those to come.

    A line of text is: time, partition:offset, key, value. Records of several partitions are printed in order of time
    as far as they are there together; with --from in order of partition and offset. Bytes that are not UTF-8 print as
    \\xNN; in JSON as {"base64": ...}. `--format value` prints the values alone, as they are, one to a line.

    With --group the command is a member of a consumer group: it prints what the group has not read yet and commits it
    when it is printed. Several of them, and other programs with that group, share the partitions. --from says where a
    group that is new begins.

    \b
    Examples:
      streamcore tail clicks
      streamcore tail clicks -f --format jsonl | jq .value
      streamcore tail clicks --from 2026-01-01T12:00 -n 100
      streamcore tail clicks --partition 0 --from 4711 -n 1 --format value
      streamcore tail clicks --group billing -f --format jsonl
    """
    if group is not None:
        if partition is not None:
            raise click.UsageError("--group reads the partitions that the group gives it: leave --partition out")
        _tail_group(settings, topic, group, count, follow, start, form or _form_of(settings.form))
        return
    with settings.open("r") as store:
        tailed = _Tail(store.topic(topic), partition, form or _form_of(settings.form))
        if start is None:
            tailed.last(10 if count is None else count)
        else:
            tailed.since(position(start), count)
        if follow:
            try:
                tailed.follow()
            except KeyboardInterrupt:  # how one ends it; click would print a line
                raise click.exceptions.Exit(INTERRUPTED) from None


def _tail_group(
    settings: Settings, topic: str, group: str, count: int | None, follow: bool, start: str | None, form: str
) -> None:
    """Print as a member of a group: what is printed is committed, and what is not is not."""
    from streamcore.cli.output import note

    begin: Any = position(start or "earliest")
    if isinstance(begin, int):
        raise click.UsageError("with --group, --from is earliest, latest or a time; groups reset sets offsets")
    with settings.open() as store, store.consumer(topic, group=group, start=begin) as consumer:
        if not consumer.assignment and not follow:
            note(f"other members of group {group} read all partitions of {topic}: with -f this one waits for its share")
        printer = _Tail(store.topic(topic), None, form)
        left = sys.maxsize if count is None else count
        try:
            while left > 0:
                table = consumer.poll_arrow(_WAKE_MS if follow else 0)
                if table.num_rows == 0 and not follow:
                    return
                table = table.slice(0, left)
                left -= table.num_rows
                printer.show(table)
                sys.stdout.flush()
                ends = zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True)
                if table.num_rows:
                    consumer.commit({(topic, number): offset + 1 for number, offset in ends})
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None


def _form_of(output: str | None) -> str:
    """The format that the global `--output` means here."""
    if output is None or output == "table":
        return "text"
    if output not in _FORMATS:
        raise click.UsageError(f"tail prints {', '.join(_FORMATS)} (--format): for {output} use streamcore sql")
    return output


class _Tail:
    """A place in each partition of a topic, and a way of printing what comes behind it."""

    def __init__(self, topic: Topic, partition: int | None, form: str) -> None:
        self._topic = topic
        self._only = partition
        self._form = form
        self._next: dict[int, int] = {}
        if partition is not None and partition >= len(topic.partitions):
            raise click.ClickException(
                f"topic {topic.name} has no partition {partition}: it has {len(topic.partitions)}, numbered from 0"
            )

    def last(self, count: int) -> None:
        """Print the last `count` records."""
        starts, ends = self._bounds()
        near = {index: max(start, ends[index] - count) for index, start in starts.items()}
        table = self._read(near, ends)
        self._next = ends
        self._print(table.slice(max(0, table.num_rows - count)))

    def since(self, start: int | dt.datetime | str, count: int | None) -> None:
        """Print the records from a place on, `count` of them if that is not None."""
        starts, ends = self._bounds()
        begin: dict[int, Any] = dict.fromkeys(starts, start)
        if isinstance(start, int) and len(starts) > 1:  # an offset that some of several partitions do not have
            begin = {index: min(max(start, low), ends[index]) for index, low in starts.items()}
        for index, place in begin.items():
            scan = self._topic.scan(partition=index, start=place, end=ends[index], columns=_COLUMNS, limit=count)
            for batch in scan.batches():
                self._print(batch)
                count = None if count is None else count - batch.num_rows
            if count is not None and count <= 0:
                break
        self._next = ends

    def follow(self) -> None:
        """Print what is appended, as it is appended, until interrupted."""
        while True:
            sys.stdout.flush()
            self._topic.wait(self._next, timeout_ms=_WAKE_MS)
            starts, ends = self._bounds()
            begin = {index: max(self._next.get(index, low), low) for index, low in starts.items()}
            if any(begin[index] < end for index, end in ends.items()):
                self._print(self._read(begin, ends))
            self._next = ends

    def show(self, records: pa.Table) -> None:
        """Print records that somebody else has read."""
        self._print(records)

    def _bounds(self) -> tuple[dict[int, int], dict[int, int]]:
        """Where the partitions begin and end now."""
        parts = [part for part in self._topic.partitions if self._only is None or part.index == self._only]
        return {part.index: part.start_offset for part in parts}, {part.index: part.stable_offset for part in parts}

    def _read(self, starts: dict[int, int], ends: dict[int, int]) -> pa.Table:
        """The records between, in order of time."""
        import pyarrow as pa

        parts = [
            self._topic.scan(partition=index, start=start, end=ends[index], columns=_COLUMNS).to_arrow()
            for index, start in starts.items()
            if start < ends[index]
        ]
        if not parts:
            return self._topic.scan(start="latest", columns=_COLUMNS).to_arrow()
        if len(parts) == 1:
            return parts[0]
        order = [("timestamp", "ascending"), ("partition", "ascending"), ("offset", "ascending")]
        return pa.concat_tables(parts).sort_by(order)

    def _print(self, records: pa.Table | pa.RecordBatch) -> None:
        import pyarrow as pa

        table = pa.Table.from_batches([records]) if isinstance(records, pa.RecordBatch) else records
        if self._form == "value" and self._topic.schema is None:
            _print_values(table)
            return
        line = _LINES[self._form]
        for chunk in table.to_batches(max_chunksize=_CHUNK_ROWS):
            click.echo("\n".join(line(row) for row in chunk.to_pylist()))


def _print_values(table: pa.Table) -> None:
    """The values as they are, each with an end of line; a null is an empty line."""
    import pyarrow as pa
    import pyarrow.compute as pc

    sys.stdout.flush()
    for batch in table.select(["value"]).to_batches():
        values = pc.fill_null(batch.column(0), b"")
        ended = pc.binary_join_element_wise(values, pa.scalar(b"\n", pa.binary()), b"")
        for value in _pieces(ended):
            sys.stdout.buffer.write(value)
    sys.stdout.buffer.flush()


def _pieces(values: pa.Array) -> Iterator[bytes]:
    """The bytes of an array, joined."""
    import pyarrow as pa

    offsets = pa.Array.from_buffers(pa.int32(), len(values) + 1, [None, values.buffers()[1]], offset=values.offset)
    low, high = offsets[0].as_py(), offsets[-1].as_py()
    if high > low:
        yield memoryview(values.buffers()[2])[low:high].tobytes()


def _text_line(row: dict[str, Any]) -> str:
    from streamcore.cli.output import cell, moment

    place = click.style(f"{moment(row['timestamp'], ' ')} {row['partition']}:{row['offset']}", dim=True)
    key = click.style(cell(row["key"]) if row["key"] is not None else "-", fg="cyan")
    value = cell(row["value"]) if row["value"] is not None else click.style("null", dim=True)
    headers = "" if not row["headers"] else " " + click.style(_headers(row["headers"]), dim=True)
    return f"{place} {key} {value}{headers}"


def _headers(headers: list[dict[str, Any]]) -> str:
    from streamcore.cli.output import cell

    return " ".join(f"{cell(header['key'])}={cell(header['value'])}" for header in headers)


def _described(row: dict[str, Any]) -> dict[str, Any]:
    from streamcore.cli.output import plain

    headers = [{"key": header["key"], "value": header["value"]} for header in row["headers"] or ()]
    described: dict[str, Any] = plain({**row, "headers": headers})
    return described


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(_described(row), ensure_ascii=False, indent=2)


def _jsonl_line(row: dict[str, Any]) -> str:
    return json.dumps(_described(row), ensure_ascii=False)


def _value_line(row: dict[str, Any]) -> str:
    from streamcore.cli.output import plain

    return json.dumps(plain(row["value"]), ensure_ascii=False)


_LINES = {"text": _text_line, "json": _json_line, "jsonl": _jsonl_line, "value": _value_line}
