"""`streamcore topic`: create, list, describe, alter, delete."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamcore.cli.amounts import DURATION, SIZE, unset
from streamcore.cli.settings import Settings, output_option, pass_settings, store_option, topic_argument
from streamcore.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from streamcore import Partition, Segment, Topic

_Command = TypeVar("_Command", bound="Callable[..., Any]")

_OPTIONS = (
    click.option("--durability", type=click.Choice(["os", "disk", "none"]),
                 help="When an append returns: the page cache has it (os), or the drive (disk)."),
    click.option("--producer-expiry-ms", type=DURATION, metavar="DURATION",
                 help="Forget an idempotent producer that is idle this long. [7d]"),
    click.option("--max-record-bytes", type=SIZE, metavar="SIZE", help="The largest record that is taken. [64MiB]"),
    click.option("--segment-ms", type=DURATION, metavar="DURATION", help="Start a new file at this age. [none]"),
    click.option("--segment-bytes", type=SIZE, metavar="SIZE", help="Start a new file at this size. [1GiB]"),
    click.option("--timestamp-type", type=click.Choice(["create", "append"]),
                 help="Keep the producer's timestamps, or set the append's. [create]"),
    click.option("--compression", type=click.Choice(["none", "lz4", "zstd"]), help="How the log is compressed. [none]"),
    click.option("--min-compaction-lag-ms", type=DURATION, metavar="DURATION",
                 help="Compaction leaves records alone for this long. [0]"),
    click.option("--delete-retention-ms", type=DURATION, metavar="DURATION",
                 help="Compaction keeps tombstones for this long. [1d]"),
    click.option("--cleanup", type=click.Choice(["delete", "compact", "compact,delete"]),
                 help="Delete old segments, keep the last value of each key, or both. [delete]"),
    click.option("--tier-iceberg/--no-tier-iceberg", default=None,
                 help="Objects in the tier are an Apache Iceberg table as well. [no]"),
    click.option("--tier-key-filter/--no-tier-key-filter", default=None,
                 help="Objects in the tier get a Bloom filter on the keys. [no]"),
    click.option("--local-retention-bytes", type=SIZE, metavar="SIZE",
                 help="Of what the tier has, keep this much here per partition. [none: all]"),
    click.option("--local-retention-ms", type=DURATION, metavar="DURATION",
                 help="Of what the tier has, keep this long here. [none: for ever]"),
    click.option("--tier/--no-tier", default=None, help="Sealed segments go to the store's tier as well. [no]"),
    click.option("--retention-bytes", type=SIZE, metavar="SIZE", help="Keep this much per partition. [none: all]"),
    click.option("--retention-ms", type=DURATION, metavar="DURATION", help="Keep records this long. [none: for ever]"),
    click.option("--schema", metavar="SCHEMA", help="Typed values: 'name:type,...', or a file that has a schema."),
)  # fmt: skip


def _settings_options(command: _Command) -> _Command:
    """All the settings of a topic as options."""
    for option in _OPTIONS:
        command = option(command)
    return command


@click.group(name="topic")
def command() -> None:
    """Create, list, describe, alter and delete topics.

    \b
    Examples:
      streamcore topic create clicks --partitions 4 --retention-ms 7d
      streamcore topic create quakes --schema 'time:timestamp,magnitude:double,place:string'
      streamcore topic list
      streamcore topic describe clicks
    """


@command.command()
@topic_argument
@click.option("--partitions", type=click.IntRange(1), default=1, show_default=True, help="How many partitions.")
@_settings_options
@store_option
@pass_settings
def create(settings: Settings, /, topic: str, partitions: int, schema: str | None, **options: Any) -> None:
    """Make a topic; the store is made as well if it is not there.

    Without --schema it is plain and holds keys and values of bytes. With --schema it is typed: values are columns. The
    schema is written as 'name:type,...' or taken from a Parquet, Arrow or JSON file. Types: int64, double, string,
    bool, date, timestamp, decimal(10,2), binary, list<int64>, struct<a:int64,b:string> ...; 'name:type!' may not be
    null.

    \b
    Examples:
      streamcore topic create clicks --partitions 4 --retention-ms 7d --retention-bytes 10GB
      streamcore topic create prices --schema 'symbol:string!,price:decimal(12,4),at:timestamp'
      streamcore topic create trips --schema trips.parquet --compression zstd
    """
    read = None if schema is None else read_schema(schema)
    with settings.open(create=True) as store:
        made = store.create_topic(topic, partitions=partitions, schema=read, **unset(options))
        kind = "plain" if made.schema is None else f"typed, {len(made.schema)} columns"
        click.echo(f"created topic {topic} ({partitions} partition{'s' * (partitions != 1)}, {kind})")


@command.command(name="list")
@output_option
@store_option
@pass_settings
def list_topics(settings: Settings) -> None:
    """List the topics of the store.

    `records` are those that a reader sees: not what was aborted, is not committed yet, or was compacted away.

    \b
    Examples:
      streamcore topic list
      streamcore topic list --output json
    """
    from streamcore.cli.output import emit_records, note, size

    with settings.open("r") as store:
        rows = [_summary(topic) for topic in store.topics()]
    if settings.form in (None, "table"):
        if not rows:
            note("no topics yet: streamcore topic create NAME")
            return
        for row in rows:
            row["bytes"] = size(row["bytes"])
    emit_records(rows, settings.form)


def _committed_count(topic: Topic, part: Partition) -> int:
    """How many records a committed scan of a partition finds; of a damaged one, how many offsets it has.

    Where the files hold a record for each offset there is no marker, and so nothing that was aborted: the scan, which
    looks at the header of each batch, is needed only where they do not.
    """
    offsets = part.end_offset - part.start_offset
    try:
        files = topic.segments(part.index)
        whole = bool(files) and files[0].base_offset == part.start_offset and sum(f.count for f in files) == offsets
        return offsets if whole and part.stable_offset == part.end_offset else topic.scan(part.index).count()
    except CorruptionError:
        return offsets


def _summary(topic: Topic) -> dict[str, Any]:
    parts = topic.partitions
    return {
        "topic": topic.name,
        "kind": "plain" if topic.schema is None else "typed",
        "partitions": len(parts),
        "records": sum(_committed_count(topic, part) for part in parts),
        "bytes": sum(part.size_bytes for part in parts),
        "cleanup": topic.config.cleanup,
        "compression": topic.config.compression,
    }


@command.command()
@topic_argument
@click.option("--segments", is_flag=True, help="List the segment files as well.")
@output_option
@store_option
@pass_settings
def describe(settings: Settings, topic: str, segments: bool) -> None:
    """Show a topic's settings, partitions, schema and, with --segments, files.

    In a partition, `start` is the first offset that is still there, `end` the offset that the next record gets, and
    `durable` the offset below which all records are on the drive. `records` are those that a reader sees: fewer than
    offsets where transactions were aborted or are not committed, and where compaction was at work.

    \b
    Examples:
      streamcore topic describe clicks --segments
      streamcore topic describe clicks --output json | jq .settings
    """
    with settings.open("r") as store:
        described = _description(store.topic(topic))
    if settings.form == "json":
        click.echo(json.dumps(described, indent=2))
        return
    _show(described, settings.form, segments=segments)


def _description(topic: Topic) -> dict[str, Any]:
    files = topic.segments()
    parts = []
    for part in topic.partitions:
        parts.append(
            {
                "partition": part.index,
                "start": part.start_offset,
                "end": part.end_offset,
                "durable": part.durable_offset,
                "records": _committed_count(topic, part),
                "bytes": part.size_bytes,
                "segments": sum(file.partition == part.index for file in files),
            }
        )
    schema = None
    if topic.schema is not None:
        schema = [{"column": f.name, "type": str(f.type), "nullable": f.nullable} for f in topic.schema]
    return {
        "topic": topic.name,
        "id": topic.id if isinstance(topic.id, int) else str(topic.id),
        "settings": dataclasses.asdict(topic.config),
        "schema": schema,
        "partitions": parts,
        "segments": [_segment(file) for file in files],
    }


def _segment(file: Segment) -> dict[str, Any]:
    return {
        "partition": file.partition,
        "base": file.base_offset,
        "end": file.end_offset,
        "records": file.count,
        "bytes": file.size_bytes,
        "sealed": file.sealed,
        "first_ms": file.min_timestamp_ms,
        "last_ms": file.max_timestamp_ms,
        "path": str(file.path),
    }


def _show(described: dict[str, Any], form: str | None, *, segments: bool) -> None:
    from streamcore.cli.output import emit_records

    if form not in (None, "table"):
        emit_records(described["segments" if segments else "partitions"], form)
        return
    settings = [
        {"setting": name, "value": "none" if value is None else str(value)}
        for name, value in described["settings"].items()
    ]
    emit_records(settings, form, title=f"topic {described['topic']}, id {described['id']}")
    emit_records(described["partitions"], form, title="partitions")
    if described["schema"] is not None:
        emit_records(described["schema"], form, title="schema of the value")
    if segments and described["segments"]:
        emit_records(described["segments"], form, title="segments")


@command.command()
@topic_argument
@click.option("--partitions", type=click.IntRange(1), help="Add partitions, up to this many in all.")
@_settings_options
@store_option
@pass_settings
def alter(settings: Settings, /, topic: str, partitions: int | None, schema: str | None, **options: Any) -> None:
    """Change settings of a topic, add partitions, or add columns to a typed one.

    Settings that are not named stay as they are; `none` unsets one. A schema may only gain nullable columns. More
    partitions send keys elsewhere from then on.

    \b
    Examples:
      streamcore topic alter clicks --retention-ms 30d --retention-bytes none
      streamcore topic alter clicks --partitions 8
      streamcore topic alter prices --schema 'symbol:string!,price:decimal(12,4),at:timestamp,venue:string'
    """
    changes = unset(options)
    if not changes and schema is None and partitions is None:
        raise click.UsageError("nothing to change: name at least one setting (see --help)")
    read = None if schema is None else read_schema(schema)
    with settings.open() as store:
        altered = store.topic(topic)
        if changes or read is not None:
            altered.alter(schema=read, **changes)
        if partitions is not None:
            altered.add_partitions(partitions)
    click.echo(f"altered topic {topic}")


@command.command()
@topic_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
@pass_settings
def delete(settings: Settings, topic: str, yes: bool) -> None:
    """Delete a topic and all its records. Asks first; where nobody can answer, --yes is needed.

    \b
    Examples:
      streamcore topic delete clicks
      streamcore topic delete clicks --yes
    """
    with settings.open() as store:
        found = _summary(store.topic(topic))
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError(f"deleting topic {topic!r} needs --yes where there is no terminal to ask on")
            click.confirm(f"Delete topic {topic} with {found['records']:,} records?", abort=True, err=True)
        store.delete_topic(topic)
    click.echo(f"deleted topic {topic} ({found['records']:,} records)")


def read_schema(text: str) -> pa.Schema:
    """A schema as users give it: `name:type,...`, or a Parquet, Arrow or JSON file ({"name": "type"})."""
    from streamcore.ingest.types import parse_schema

    if not Path(text).exists():
        if ":" not in text:
            raise click.BadParameter(f"{text!r} is neither a file nor 'name:type,...'", param_hint="--schema")
        return parse_schema(text)
    return _schema_of(text)


def _schema_of(path: str) -> pa.Schema:
    """The schema that a file has or describes."""
    from streamcore.ingest.model import format_of
    from streamcore.ingest.types import parse_schema

    kind = format_of(path)
    if kind == "parquet":
        import pyarrow.parquet as pq

        return pq.read_schema(path)
    if kind == "arrow":
        from streamcore.ingest.columnar import ColumnarSource

        source = ColumnarSource(path, "arrow")
        source.close()
        return source.schema
    content = Path(path).read_text(encoding="utf-8")
    if kind == "jsonl":
        content = ",".join(f"{name}:{kind}" for name, kind in json.loads(content).items())
    return parse_schema(content.replace("\n", ","))
