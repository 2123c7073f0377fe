"""`streamcore tier`: set, status, offload, verify, gc, prefetch, restore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamcore.cli.amounts import DURATION
from streamcore.cli.settings import Settings, output_option, pass_settings, store_option, topic_argument

if TYPE_CHECKING:
    from streamcore import Store
    from streamcore.tier.status import PartitionStatus
    from streamcore.tier.tables import TableStatus
    from streamcore.tier.tier import Tier


@click.group(name="tier")
def command() -> None:
    """Keep old segments in an object store: where it is, what is there, and a store made anew from it.

    Sealed segments of topics with --tier go there as Parquet files, which any engine reads; readers of the topic find
    them as if they were here. Keys and tokens come from the environment (AWS_ACCESS_KEY_ID, ...), never from the store.

    \b
    Examples:
      streamcore topic alter clicks --tier --local-retention-ms 7d
      streamcore tier status
      streamcore tier offload clicks --roll
      streamcore tier restore "file://$PWD/archive" --store ./shop-again
    """


def _tier_of(store: Store) -> Tier:
    if store.tier is None:
        raise click.ClickException("the store has no tier: streamcore tier set s3://bucket/prefix")
    return store.tier


def _options(given: tuple[str, ...]) -> dict[str, Any]:
    """name=value pairs: numbers and true or false as such."""
    found: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--option is {pair!r}; NAME=VALUE is needed")
        values = {"true": True, "false": False}
        found[name] = values[text] if text in values else float(text) if name.endswith("_s") else text
    return found


_option_option = click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE",
    help="What it takes to get there: endpoint, region, allow_http, deadline_s, ...; may be given again.",
)  # fmt: skip


@command.command(name="set")
@click.argument("url", required=False)
@click.option("--none", "remove", is_flag=True, help="The store has no tier any more.")
@_option_option
@store_option
@pass_settings
def set_tier(settings: Settings, url: str | None, remove: bool, options: tuple[str, ...]) -> None:
    """Keep in the store where old segments go: s3://BUCKET/PREFIX, or gs, az or file.

    \b
    Examples:
      streamcore tier set s3://events/shop --option region=eu-central-1
      streamcore tier set s3://events/shop --option endpoint=http://127.0.0.1:9000
      streamcore tier set file:///mnt/archive/shop
    """
    if (url is None) != remove:
        raise click.UsageError("give an address, or --none")
    with settings.open() as store:
        store.set_tier(url, **_options(options))
    click.echo("the store has no tier" if url is None else f"the tier is {url}")


@command.command()
@output_option
@store_option
@pass_settings
def status(settings: Settings) -> None:
    """Show, for each partition of a tiered topic, what is there, what is here, and what waits.

    `tier_start` to `tier_end` are the offsets in the tier, `here_from` to `end` those on this machine; the topic's
    Iceberg table, if it has one, ends at `iceberg_end`.

    \b
    Examples:
      streamcore tier status
      streamcore tier status --output json
    """
    from streamcore.cli.output import emit_records, note, size

    with settings.open("r") as store:
        found = _tier_of(store).status()
    rows = [_row(one) for one in found.partitions]
    if settings.form in (None, "table"):
        note(f"{found.url}, epoch {found.epoch}: {size(found.object_bytes)} there, {size(found.pending_bytes)} waiting")
        for table in found.tables:
            note(_said_of(table))
        if not rows:
            note("no topic is tiered yet: streamcore topic alter TOPIC --tier")
            return
        for row in rows:
            row["object_bytes"], row["waiting_bytes"] = size(row["object_bytes"]), size(row["waiting_bytes"])
    emit_records(rows, settings.form)


def _said_of(table: TableStatus) -> str:
    state = f"version {table.version}" if table.version else "not made yet"
    if table.partitions_behind:
        state += f", {table.partitions_behind} partitions behind"
    return f"Iceberg table {table.location}: {state}" + (f": {table.error}" if table.error else "")


def _row(one: PartitionStatus) -> dict[str, Any]:
    return {
        "topic": one.topic,
        "partition": one.partition,
        "tier_start": one.start_offset,
        "tier_end": one.end_offset,
        "here_from": one.local_start_offset,
        "end": one.log_end_offset,
        "objects": one.objects,
        "records": one.records,
        "object_bytes": one.object_bytes,
        "waiting": one.pending_segments,
        "waiting_bytes": one.pending_bytes,
        "iceberg_end": one.iceberg_end_offset,
    }


@command.command()
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@click.option("--roll", is_flag=True, help="Seal the active segments first, so that everything goes.")
@output_option
@store_option
@pass_settings
def offload(settings: Settings, topics: tuple[str, ...], roll: bool) -> None:
    """Put sealed segments there now; of all tiered topics, or of some. Ends with a copy of the catalog.

    \b
    Examples:
      streamcore tier offload
      streamcore tier offload clicks --roll
    """
    from streamcore.cli.output import emit_records, note, progress, size

    with settings.open() as store:
        tier = _tier_of(store)
        chosen = [store.topic(name) for name in topics] or [topic for topic in store.topics() if topic.config.tier]
        done = []
        with progress("offload", unit="topics") as advance:
            for number, topic in enumerate(chosen):
                if roll:
                    topic.roll()
                done += [{"topic": topic.name, **one._asdict()} for one in topic.offload()]
                advance(number + 1, len(chosen))
        tier.back_up()
    if done or settings.form not in (None, "table"):
        emit_records(done, settings.form)
    before, after = (sum(one[name] for one in done) for name in ("segment_bytes", "object_bytes"))
    note(f"{len(done)} segments of {size(before)} are there, in {size(after)}")


@command.command()
@click.option("--sizes", is_flag=True, help="Compare sizes alone, without reading the objects.")
@output_option
@store_option
@pass_settings
def verify(settings: Settings, sizes: bool) -> None:
    """Read every object that a manifest names, and compare it with what was put there. Status 1 if one is wrong.

    \b
    Examples:
      streamcore tier verify && echo sound
      streamcore tier verify --sizes --output json
    """
    from streamcore.cli.output import emit_records, note, progress

    with settings.open("r") as store:
        tier = _tier_of(store)
        with progress("verify") as advance:
            problems = tier.verify(read=not sizes, progress=advance)
    if problems or settings.form not in (None, "table"):
        emit_records([problem._asdict() for problem in problems], settings.form)
    if problems:
        note(f"error: {len(problems)} problem{'s' * (len(problems) != 1)} in {tier.url}")
        raise click.exceptions.Exit(1)
    note(f"{tier.url} is sound")


@command.command()
@click.option("--grace", type=DURATION, default="1d", show_default=True, metavar="DURATION",
              help="Leave objects alone that are younger, by the clock of the tier.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@output_option
@store_option
@pass_settings
def gc(settings: Settings, grace: int, dry_run: bool) -> None:
    """Remove objects that nothing names: left by processes that died, and by deleted topics.

    \b
    Examples:
      streamcore tier gc --dry-run
      streamcore tier gc --grace 7d
    """
    from streamcore.cli.output import emit_records, note, size

    with settings.open() as store:
        found = _tier_of(store).gc(grace_s=grace / 1000, dry_run=dry_run)
    if found.paths or settings.form not in (None, "table"):
        emit_records([{"path": path} for path in found.paths], settings.form)
    note(f"{found.objects} objects of {size(found.size_bytes)} {'would go' if dry_run else 'are gone'}")


@command.command()
@topic_argument
@click.option("--partition", type=click.IntRange(0), help="Only this partition.")
@click.option("--from", "start", default="earliest", show_default=True, metavar="PLACE", help="Where to begin.")
@click.option("--to", "end", default="latest", show_default=True, metavar="PLACE", help="Where to end.")
@store_option
@pass_settings
def prefetch(settings: Settings, topic: str, partition: int | None, start: str, end: str) -> None:
    """Fetch what is in the tier alone into the cache on this disk, before it is needed.

    PLACE is an offset, a time, earliest or latest.

    \b
    Examples:
      streamcore tier prefetch clicks
      streamcore tier prefetch clicks --from 2026-01-01 --to 2026-02-01
    """
    from streamcore.cli.amounts import position
    from streamcore.cli.output import note

    places: list[Any] = [position(start), position(end)]
    with settings.open() as store:
        count = _tier_of(store).prefetch(topic, partition, *places)
    note(f"{count} row groups are in the cache")


@command.command()
@click.argument("url")
@_option_option
@click.option(
    "--without-producers", is_flag=True, help="Leave out what is known of idempotent producers, where it is damaged."
)
@output_option
@store_option
@pass_settings
def restore(settings: Settings, url: str, options: tuple[str, ...], without_producers: bool) -> None:
    """Make a store anew from its tier, in a folder that is empty or not there (--store).

    Topics, settings, schemas, groups and their offsets come from the copy of the catalog; records are read from the
    tier where they are. The store that the tier was of can change nothing there any more.

    \b
    Examples:
      streamcore tier restore "file://$PWD/archive" --store ./shop-again
    """
    from streamcore.cli.output import emit_records, note, progress
    from streamcore.tier.restore import restore as run

    with progress("restore", unit="partitions") as advance:
        given = _options(options) or None
        found = run(url, Path(settings.path), given, advance, without_producers=without_producers)
    emit_records([one._asdict() for one in found], settings.form)
    empty = [one.topic for one in found if not one.tiered]
    if empty:
        note(f"without records, for they were not tiered: {', '.join(empty)}")
    note(f"{settings.path} is back, with {sum(one.records for one in found):,} records in {url}")
