"""`streamcore dlq`: dead letters, listed, shown and replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from streamcore.cli.settings import Settings, complete_topic, output_option, pass_settings, store_option, topic_argument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamcore import Record, Topic

_SCANNED_MAX = 1000  # records of a topic that are looked at to say whether it holds dead letters


@click.group(name="dlq")
def command() -> None:
    """List, show and replay dead letters: records that a handler could not process.

    `consumer.process(handler, dead_letter=TOPIC)` sends a record there when its handler failed each time; headers say
    where it came from and why.

    \b
    Examples:
      streamcore dlq list
      streamcore dlq show clicks-dead
      streamcore dlq replay clicks-dead --offset 0:17
    """


@command.command(name="list")
@output_option
@store_option
@pass_settings
def list_topics(settings: Settings) -> None:
    """List the topics that hold dead letters, with how many, from where, and the last error.

    A topic counts as one when a dead letter is among its last 1,000 records of a partition.

    \b
    Examples:
      streamcore dlq list
      streamcore dlq list --output json
    """
    from streamcore.cli.output import emit_records, note

    with settings.open("r") as store:
        rows = [row for topic in store.topics() if topic.schema is None and (row := _summary(topic)) is not None]
    if not rows and settings.form in (None, "table"):
        note("no dead letters: consumer.process(handler, dead_letter=TOPIC) sends records there that fail")
        return
    emit_records(rows, settings.form)


def _summary(topic: Topic) -> dict[str, Any] | None:
    from streamcore.dead_letters import described, is_dead_letter

    bounds = topic.bounds(range(topic.partition_count))
    near = {partition: max(start, end - _SCANNED_MAX) for partition, (start, _, end) in bounds.items()}
    found = [record for record in topic.scan(start=near) if is_dead_letter(record)]
    if not found:
        return None
    last = max(found, key=lambda record: record.timestamp_ms)
    return {
        "topic": topic.name,
        "records": topic.scan().count(),
        "from": ", ".join(sorted({described(record).get("topic", "") for record in found})),
        "last_error": described(last).get("error"),
        "last_message": described(last).get("message"),
    }


@command.command()
@topic_argument
@click.option("-n", "--lines", "count", type=click.IntRange(0), metavar="N", help="The first N of them. [all]")
@click.option("--error", metavar="NAME", help="Only those with this error, as `list` shows it.")
@output_option
@store_option
@pass_settings
def show(settings: Settings, topic: str, count: int | None, error: str | None) -> None:
    """Show dead letters: where each came from, how often it was tried, what went wrong, its key and value.

    \b
    Examples:
      streamcore dlq show clicks-dead
      streamcore dlq show clicks-dead --error ValueError -n 10 --output json
    """
    from streamcore.cli.output import emit_records, note

    with settings.open("r") as store:
        rows = [_row(record) for record in _letters(store.topic(topic), error)][:count]
    if not rows and settings.form in (None, "table"):
        note(f"no dead letters in {topic}")
        return
    emit_records(rows, settings.form)


def _letters(topic: Topic, error: str | None) -> Iterator[Record]:
    from streamcore.dead_letters import described, is_dead_letter

    for record in topic.scan():
        if is_dead_letter(record) and (error is None or described(record).get("error") == error):
            yield record


def _row(record: Record) -> dict[str, Any]:
    from streamcore.dead_letters import described

    found = described(record)
    return {
        "place": f"{record.partition}:{record.offset}",
        "from": f"{found.get('topic')}:{found.get('partition')}:{found.get('offset')}",
        "attempts": int(found.get("attempts", "0")),
        "error": found.get("error"),
        "message": found.get("message"),
        "key": record.key,
        "value": record.value,
    }


@command.command()
@topic_argument
@click.option("--offset", "places", multiple=True, metavar="PARTITION:OFFSET",
              help="Only this one, as `show` names its place.")  # fmt: skip
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--error", metavar="NAME", help="Only those with this error.")
@click.option("--to", metavar="TOPIC", shell_complete=complete_topic, help="Append them there. [where each came from]")
@store_option
@pass_settings
def replay(
    settings: Settings, topic: str, places: tuple[str, ...], every: bool, error: str | None, to: str | None
) -> None:
    """Append dead letters again to the topics that they came from, with their keys, values, headers and times.

    They stay in the dead-letter topic as well: nothing in a log is taken back.

    \b
    Examples:
      streamcore dlq replay clicks-dead --all
      streamcore dlq replay clicks-dead --offset 0:17 --offset 2:4
      streamcore dlq replay clicks-dead --error ValueError --to clicks-retry
    """
    from streamcore.dead_letters import replay as append_again

    if not (places or every or error):
        raise click.UsageError("say which: --offset PARTITION:OFFSET, --error NAME or --all")
    with settings.open() as store:
        found = store.topic(topic)
        letters = [
            record for record in _letters(found, error) if not places or f"{record.partition}:{record.offset}" in places
        ]
        missing = set(places) - {f"{record.partition}:{record.offset}" for record in letters}
        if missing:
            raise click.ClickException(f"there is no dead letter at {', '.join(sorted(missing))} of {topic}")
        for record in letters:
            append_again(store, record, to)
    click.echo(f"replayed {len(letters)} record{'s' * (len(letters) != 1)} of {topic}")
