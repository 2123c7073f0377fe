"""`streamcore produce`: lines from stdin, as they come."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from streamcore.cli.settings import Settings, pass_settings, store_option, topic_argument

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from streamcore import Topic
    from streamcore.ingest.model import Reader

_READ_BYTES = 1 << 20


@click.command(name="produce")
@topic_argument
@click.option("--key-separator", metavar="TEXT", help="What is before this text in a line is the key.")
@click.option("--key", metavar="TEXT", help="The same key for all records.")
@click.option("--header", "headers", metavar="NAME=VALUE", multiple=True, help="A header for all records.")
@click.option("--partition", type=click.IntRange(0), help="The partition; without it keys decide.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="At most N records in one append.")
@click.option("--durability", type=click.Choice(["os", "disk"]), help="When an append counts as done.")
@store_option
@pass_settings
def command(settings: Settings, /, topic: str, **given: Any) -> None:
    """Append each line from stdin to a topic; for a typed topic a line is a JSON object with its columns.

    Lines are appended as they arrive: from a terminal or a slow pipe one by one and at once, from a fast pipe in large
    batches. Lines that do not fit (no separator, no JSON) are reported and left out, and the exit status is then 1.

    \b
    Examples:
      echo 'hello' | streamcore produce greetings
      tail -F app.log | streamcore produce app --header host=web-1
      printf 'ada:/home\\nbob:/cart\\n' | streamcore produce clicks --key-separator :
      echo '{"magnitude": 4.2, "place": "Ridgecrest"}' | streamcore produce quakes
    """
    from streamcore.cli.output import note

    if given["key"] is not None and given["key_separator"] is not None:
        raise click.UsageError("--key and --key-separator exclude each other")
    if given["key_separator"] == "":
        raise click.UsageError("--key-separator cannot be empty")
    headers = _headers(given["headers"])
    with settings.open() as store:
        target = _Target(store.topic(topic), headers, given)
        if sys.stdin.isatty():
            note(f"each line is a record of {topic}; ^D ends")
        for data in _lines():
            target.append(data)
    note(f"appended {target.appended:,} record{'s' * (target.appended != 1)} to {topic}")
    if target.bad:
        note(f"error: {target.bad:,} line{'s were' if target.bad > 1 else ' was'} left out")
        sys.exit(1)


def _headers(given: tuple[str, ...]) -> list[tuple[str, bytes]]:
    headers = []
    for header in given:
        name, equals, value = header.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{header!r} is not NAME=VALUE", param_hint="--header")
        headers.append((name, value.encode()))
    return headers


def _lines() -> Iterator[bytes]:
    """Whole lines from stdin: whatever has arrived, without waiting for more."""
    rest = b""
    while data := os.read(sys.stdin.fileno(), _READ_BYTES):
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        else:
            rest += data
    if rest:
        yield rest


class _Target:
    """The topic, and how lines become its records."""

    def __init__(self, topic: Topic, headers: list[tuple[str, bytes]], given: dict[str, Any]) -> None:
        self.appended = 0
        self.bad = 0
        self._topic = topic
        self._headers = headers
        self._given = given
        self._line = 1
        self._reader = None if topic.schema is None else _json_reader(topic)

    def append(self, data: bytes) -> None:
        """Append the records of some lines."""
        from streamcore.ingest.source import split_lines

        if self._reader is not None:
            values, keys = self._typed(self._reader, data), None
        else:
            values, keys = self._keyed(split_lines(data))
        self._line += data.count(b"\n")
        size = self._given["batch"] or max(1, len(values))
        for start in range(0, len(values), size):
            self._append(values.slice(start, size), None if keys is None else keys.slice(start, size))

    def _append(self, values: pa.Array, keys: pa.Array | None) -> None:
        import pyarrow as pa

        if self._given["key"] is not None:
            keys = pa.repeat(pa.scalar(self._given["key"].encode(), pa.binary()), len(values))
        self._topic.append(
            values,
            keys=keys,
            headers=[self._headers] * len(values) if self._headers else None,
            partition=self._given["partition"],
            durability=self._given["durability"],
        )
        self.appended += len(values)

    def _keyed(self, lines: pa.Array) -> tuple[pa.Array, pa.Array | None]:
        """Lines taken apart at the separator; those without one are reported."""
        import pyarrow.compute as pc

        if self._given["key_separator"] is None:
            return lines, None
        separator = self._given["key_separator"].encode()
        found = pc.match_substring(lines, separator)
        for place in pc.indices_nonzero(pc.invert(found)).to_pylist():
            self._report(self._line + place, f"no separator {self._given['key_separator']!r} in it")
        parts = pc.split_pattern(lines.filter(found), separator, max_splits=1)
        return pc.list_element(parts, 1), pc.list_element(parts, 0)

    def _typed(self, reader: Reader, data: bytes) -> pa.Array:
        """JSON objects as structs of the topic's schema; other lines are reported."""
        from streamcore.ingest.model import Block

        rows = reader.read(Block(0, len(data), self._line, data))
        for bad in rows.bad:
            self._report(bad.line, bad.message)
        return rows.values

    def _report(self, line: int, message: str) -> None:
        from streamcore.cli.output import note

        self.bad += 1
        note(f"line {line}: {message}")


def _json_reader(topic: Topic) -> Reader:
    from streamcore.ingest.json_lines import JsonReader
    from streamcore.ingest.model import Block, IngestOptions

    reader = JsonReader("stdin", IngestOptions(typed=True), Block(0, 0, 1, b""))
    assert topic.schema is not None
    reader.use_schema(topic.schema)
    return reader
