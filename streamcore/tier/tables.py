"""Apache Iceberg tables of tiered topics: when they follow the manifests, and what happens where that fails.

Nothing waits for a table, and nothing fails with it: what could not be done is kept in the catalog with the reason,
and the next round does it. Only objects that retention removes stay where they are until no table names them.
pyiceberg is imported when a table has to change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from streamcore.tier import kept

if TYPE_CHECKING:
    from pyiceberg.table import StaticTable

    from streamcore.tier.iceberg.following import Source
    from streamcore.tier.iceberg.table import Table
    from streamcore.tier.log import TierLog
    from streamcore.tier.manifest import Manifest
    from streamcore.tier.objects import Objects
    from streamcore.tier.tier import Tier
    from streamcore.topic import Topic

FOLDER = "iceberg"  # below the topic's: the location of the table
METADATA_FOLDER = f"{FOLDER}/metadata"
HINT = "version-hint.text"  # there: what leads to the table
_LOOKS = 3
_log = logging.getLogger("streamcore.tier")


class TableStatus(NamedTuple):
    """The Iceberg table of a topic. location: what readers open; version: of its metadata, 0: it is not made yet.

    partitions_behind: how many have something in the tier that the table does not name yet, or the other way round.
    followed_ms: when it followed last, since 1970; error: why it does not since, None: all is well.
    """

    topic: str
    location: str
    version: int
    partitions_behind: int
    followed_ms: int | None
    error: str | None


def follow(topic: Topic, tier: Tier, log: TierLog, *, look: bool = False) -> bool:
    """Has a topic's table name what its manifests do, or drops it where the topic has none any more; True: it is so.

    look: also at a table that has followed, as far as this machine knows: it may be damaged. A failure is logged and
    kept for `TierStatus`.
    """
    known = kept.table(tier.catalog, topic.id)
    if is_up_to_date(topic, tier) and not (look and known is not None and topic.config.tier_iceberg):
        return True
    if not tier.catalog.writable:
        return False
    try:
        if topic.config.tier_iceberg:
            tier.claim()
            _follow(topic, tier, log, None if look else known)
        else:
            tier.claim(again=True)  # or it is another store's
            drop(tier.objects, log.folder)
            kept.forget_table(tier.catalog, topic.id)
    except Exception as error:  # of whatever kind: what is in the tier must not depend on it
        _log.warning("%s: the Iceberg table: %s", topic.name, error)
        kept.keep_table_failure(tier.catalog, topic.id, f"{type(error).__name__}: {error}")
        return False
    return True


def is_up_to_date(topic: Topic, tier: Tier) -> bool:
    """Whether a topic's table names what its manifests do, or there is none where none is wanted, as far as this
    machine knows."""
    known, versions = kept.table(tier.catalog, topic.id), kept.versions(tier.catalog, topic.id)
    if not topic.config.tier_iceberg:
        return known is None
    if known is None or known.version == 0:
        return not versions
    return known.schema_version >= max(topic.versions) and not _changed(versions, known)


def _changed(versions: Mapping[int, int], known: kept.Table | None) -> list[int]:
    """The partitions whose manifests the table does not follow."""
    followed = {} if known is None else known.partitions
    return [number for number, version in versions.items() if number not in followed or followed[number][0] < version]


def _follow(topic: Topic, tier: Tier, log: TierLog, known: kept.Table | None) -> None:
    iceberg_table = _table_of(tier, log)
    from streamcore.tier.iceberg import following

    found = following.follow(iceberg_table, _source_of(topic, tier, log, known))
    if found.version:
        kept.keep_table(tier.catalog, topic.id, found.version, max(topic.versions), found.manifests)
    if found.added or found.removed:
        _log.info("%s: version %d of the Iceberg table: %d objects came, %d went", topic.name, found.version,
                  found.added, found.removed)  # fmt: skip


def _source_of(topic: Topic, tier: Tier, log: TierLog, known: kept.Table | None) -> Source:
    from streamcore.tier.iceberg.following import Source

    def manifests(every: bool) -> dict[int, Manifest]:
        changed = _changed(kept.versions(tier.catalog, topic.id), known)
        found = {number: log.fresh(number) for number in (range(topic.partition_count) if every else changed)}
        return {number: copy.manifest for number, copy in found.items() if copy is not None}

    return Source(topic.id, tier.epoch, dict(topic.versions), manifests, tier.groups.footer)


def _table_of(tier: Tier, log: TierLog) -> Table:
    check_pyiceberg()
    from streamcore.tier.iceberg.table import Table

    return Table(tier.iceberg_files, log.folder)


def drop(objects: Objects, topic_folder: str) -> None:
    """Deletes the metadata of a table, first what leads to it; the objects stay. Raises TierError."""
    folder = f"{topic_folder}/{METADATA_FOLDER}"
    objects.delete(f"{folder}/{HINT}")
    for info in list(objects.listed(folder)):
        objects.delete(info.path)


def opened(topic: Topic, tier: Tier, log: TierLog) -> StaticTable:
    """The table as it is now. Raises ValueError where the topic has none, TierError where it is not made yet."""
    if not topic.config.tier_iceberg:
        raise ValueError(f"topic {topic.name!r} has no Iceberg table: alter(tier_iceberg=True) makes one")
    return _table_of(tier, log).opened()


def needed(tier: Tier, log: TierLog) -> set[str]:
    """The paths of all files of the metadata that are in use; all that are there for a table that is not made yet."""
    table = _table_of(tier, log)
    current = table.current()
    return set() if current is None else table.reachable(current)


def problems(topic: Topic, tier: Tier, log: TierLog) -> list[str]:
    """What is wrong with a table that has followed: it names other objects than manifests do. Raises TierError."""
    table = _table_of(tier, log)
    from streamcore.tier.iceberg.table import UNREADABLE

    for _ in range(_LOOKS):
        current = table.current()
        try:
            rows: dict[str, int] = {} if current is None else table.objects_of(current)
        except UNREADABLE as error:
            again = table.current()
            if (again and again.number) != (current and current.number):
                continue
            return [f"the Iceberg table cannot be read, until gc makes it anew: {error}"]
        copies = {number: log.fresh(number) for number in range(topic.partition_count)}
        manifests = {number: copy.manifest for number, copy in copies.items() if copy is not None}
        versions = {number: manifest.version for number, manifest in manifests.items()}
        if _changed(versions, kept.table(tier.catalog, topic.id)):
            return []  # it is about to follow
        again = table.current()
        if (again and again.number) == (current and current.number):
            return list(_differences(rows, manifests, log))
    return []  # it follows all the time


def _differences(rows: Mapping[str, int], manifests: Mapping[int, Manifest], log: TierLog) -> Iterator[str]:
    wanted = {
        log.path_of(number, entry.name): entry.rows
        for number, manifest in manifests.items()
        for entry in manifest.entries
        if entry.name
    }
    for path in sorted(wanted.keys() | rows.keys()):
        if path not in rows:
            yield f"the Iceberg table does not name {path}"
        elif path not in wanted:
            yield f"the Iceberg table names {path}, which no manifest does"
        elif rows[path] != wanted[path]:
            yield f"the Iceberg table says {rows[path]} rows of {path}, which has {wanted[path]}"


def status(topic: Topic, tier: Tier, log: TierLog, known: kept.Table | None) -> TableStatus:
    """As far as this machine knows."""
    behind = _changed(kept.versions(tier.catalog, topic.id), known)
    version, when, error = (0, None, None) if known is None else (known.version, known.followed_ms, known.error)
    return TableStatus(topic.name, f"{tier.address}/{log.folder}/{FOLDER}", version, len(behind), when, error)


# ---- which topics may have one ---------------------------------------------------------------------------------------


def check_pyiceberg() -> None:
    """Raises ImportError where pyiceberg is not installed."""
    try:
        import pyiceberg.table  # noqa: F401
    except ImportError as error:
        raise ImportError(f"tier_iceberg needs pyiceberg: pip install 'streamcore[iceberg]' ({error})") from None


def check_types(schema: pa.Schema | None) -> None:
    """Raises ValueError for a field of a typed topic whose type Iceberg does not have, ImportError."""
    check_pyiceberg()
    from streamcore.tier.iceberg import types

    types.check_types(schema)
