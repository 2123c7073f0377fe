"""`streamcore groups`: list, describe, reset, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from streamcore.cli.amounts import position
from streamcore.cli.settings import (
    DEFAULT_STORE,
    Settings,
    complete_topic,
    output_option,
    pass_settings,
    store_option,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from streamcore import Group


def _complete_group(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The groups of the store that begin like this, for shells."""
    import os

    from click.shell_completion import CompletionItem

    del param
    path = ctx.find_root().params.get("path") or os.environ.get("STREAMCORE_STORE") or DEFAULT_STORE
    try:
        with Settings(path).open("r") as store:
            return [CompletionItem(group.name) for group in store.groups() if group.name.startswith(incomplete)]
    except Exception:
        return []  # a completion has nowhere to complain to


_group_argument = click.argument("group", shell_complete=_complete_group)


@click.group(name="groups")
def command() -> None:
    """List, describe, reset and delete consumer groups.

    A group is a name under which programs share the work of reading topics: each partition is read by one member, and
    the group remembers how far it has come (its committed offsets).

    \b
    Examples:
      streamcore groups list
      streamcore groups describe billing
      streamcore groups reset billing clicks --to 2026-01-01T12:00
    """


@command.command(name="list")
@output_option
@store_option
@pass_settings
def list_groups(settings: Settings) -> None:
    """List the groups of the store: how many members, what they read, how far behind they are.

    `lag` is how many records lie between what is committed and the end.

    \b
    Examples:
      streamcore groups list
      streamcore groups list --output jsonl
    """
    from streamcore.cli.output import emit_records, note

    with settings.open("r") as store:
        rows = [_summary(group) for group in store.groups()]
    if settings.form in (None, "table"):
        if not rows:
            note("no groups yet: streamcore tail TOPIC --group NAME, or store.consumer(TOPIC, group=NAME)")
            return
        for row in rows:
            row["topics"] = ", ".join(row["topics"])
    emit_records(rows, settings.form)


def _summary(group: Group) -> dict[str, Any]:
    members, lag = group.members(), group.lag()
    topics = {key.topic for key in lag} | {topic for member in members for topic in member.topics}
    return {
        "group": group.name,
        "state": group.state,
        "members": len(members),
        "topics": sorted(topics),
        "lag": sum(lag.values()),
    }


@command.command()
@_group_argument
@click.option("--members", is_flag=True, help="List the members instead of the partitions.")
@output_option
@store_option
@pass_settings
def describe(settings: Settings, group: str, members: bool) -> None:
    """Show a group: each partition's committed offset, end, lag and reader; with --members, the members.

    `committed` is the offset of the next record to read, `end` the one that the next record gets.

    \b
    Examples:
      streamcore groups describe billing
      streamcore groups describe billing --members
    """
    from streamcore.cli.output import emit_records, note

    with settings.open("r") as store:
        found = store.group(group)
        rows = _members(found) if members else _partitions(found)
        title = f"{group}: {found.state}, generation {found.generation}" if settings.form in (None, "table") else None
        if not rows:
            note(f"group {group} has no members" if members else f"group {group} has no offsets and no members")
            return
        emit_records(rows, settings.form, title=title)


def _members(group: Group) -> list[dict[str, Any]]:
    return [
        {
            "member": member.id,
            "instance": member.instance_id,
            "pid": member.pid,
            "topics": ", ".join(member.topics),
            "partitions": ", ".join(f"{topic}:{partition}" for topic, partition in member.partitions),
            "awaiting": ", ".join(f"{topic}:{partition}" for topic, partition in member.awaiting),
            "seen_ms": member.seen_ms,
        }
        for member in group.members()
    ]


def _partitions(group: Group) -> list[dict[str, Any]]:
    offsets, lag = group.offsets(), group.lag()
    readers = {key: member.id for member in group.members() for key in member.partitions}
    return [
        {
            "topic": key.topic,
            "partition": key.partition,
            "committed": None if key not in offsets else int(offsets[key]),
            "end": None if key not in offsets else int(offsets[key]) + lag[key],
            "lag": lag.get(key),
            "member": readers.get(key),
            "metadata": offsets[key].metadata if key in offsets else None,
        }
        for key in sorted(offsets.keys() | readers.keys())
    ]


@command.command()
@_group_argument
@click.argument("topic", shell_complete=complete_topic)
@click.option("--to", "place", metavar="WHERE", help="earliest, latest, an offset or a time (ISO 8601).")
@click.option("--shift", type=int, metavar="N", help="Instead of --to: N records ahead, or back when negative.")
@click.option("--partition", type=click.IntRange(0), help="Only this partition.")
@click.option("--create", is_flag=True, help="Make the group when there is none.")
@output_option
@store_option
@pass_settings
def reset(
    settings: Settings,
    group: str,
    topic: str,
    place: str | None,
    shift: int | None,
    partition: int | None,
    create: bool,
) -> None:
    """Set where a group goes on in a topic. Its members must be closed.

    A time means the first record that is not older. --shift stops at the ends of the log.

    \b
    Examples:
      streamcore groups reset billing clicks --to earliest
      streamcore groups reset billing clicks --to 2026-01-01T12:00
      streamcore groups reset billing clicks --shift -100 --partition 3
    """
    from streamcore.cli.output import emit_records

    if (place is None) == (shift is None):
        raise click.UsageError("say where to with either --to or --shift")
    to: Any = None if place is None else position(place)
    with settings.open() as store:
        offsets = store.group(group, create=create).reset(topic, to, partition, shift=shift)
    rows = [{"topic": key.topic, "partition": key.partition, "committed": offset} for key, offset in offsets.items()]
    emit_records(rows, settings.form)


@command.command()
@_group_argument
@store_option
@pass_settings
def delete(settings: Settings, group: str) -> None:
    """Forget a group and its committed offsets. Its members must be closed.

    \b
    Examples:
      streamcore groups delete billing
    """
    with settings.open() as store:
        store.group(group).delete()
    click.echo(f"deleted group {group}")
