"""What a store's catalog keeps of its tier: where it is, whose it is, and copies of manifests, which are hints.

A copy may be older than the manifest, never newer: a reader that finds less than it looks for asks the tier itself.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from streamcore.catalog import IS_COUNT, IS_PARTITION, Catalog
from streamcore.errors import CorruptionError
from streamcore.tier.documents import Document
from streamcore.tier.manifest import Manifest

_TABLES = """
create table if not exists tier (
  place integer primary key,
  url text not null,
  options text not null,
  store_id text not null,
  epoch integer not null
) without rowid;
create table if not exists tier_manifests (
  topic_id text not null,
  partition integer not null,
  version integer not null,
  verified_offset integer not null,
  tag text not null,
  content text not null,
  primary key (topic_id, partition)
) without rowid
"""
_ICEBERG_TABLES = """
create table if not exists tier_iceberg (
  topic_id text primary key,
  version integer not null,
  schema_version integer not null,
  partitions text not null,
  followed_ms integer,
  error text
) without rowid
"""
_ICEBERG_SENSE = {
    "tier_iceberg": f"version {IS_COUNT} and schema_version {IS_COUNT} and json_type(partitions) = 'object'",
}
_SENSE = {
    "tier": f"place = 1 and json_type(options) = 'object' and epoch {IS_COUNT}",
    "tier_manifests": f"partition {IS_PARTITION} and version {IS_COUNT} and verified_offset {IS_COUNT} "
    "and json_type(content) = 'object'",
}


class Settings(NamedTuple):
    """Where the tier is, with options that are no secret; the store's id there and its epoch."""

    url: str
    options: dict[str, Any]
    store_id: str
    epoch: int


class Copy(NamedTuple):
    """A manifest as it was read or written last; objects below `verified_offset` were read back and compared."""

    document: Document
    manifest: Manifest
    verified_offset: int


class Table(NamedTuple):
    """An Iceberg table: its version, 0 before there is one; what it follows, of each partition the version of the
    manifest and where that begins and ends; when it followed last; why it could not since."""

    version: int
    schema_version: int
    partitions: dict[int, tuple[int, int, int]]
    followed_ms: int | None
    error: str | None


def settings(catalog: Catalog) -> Settings | None:
    """Where the store's tier is; None: it has none."""
    if not _has_tables(catalog):
        return None
    with catalog.reading() as connection:
        row = connection.execute("select url, options, store_id, epoch from tier").fetchone()
    return None if row is None else Settings(row[0], json.loads(row[1]), row[2], row[3])


def keep_settings(catalog: Catalog, kept: Settings | None) -> None:
    """Keeps where the tier is, durably; None: there is none any more."""
    catalog.ensure_tables(_TABLES, _SENSE)
    has_tables = catalog.has_table("tier_iceberg")
    with catalog.changing() as connection:
        before = connection.execute("select url from tier").fetchone()
        connection.execute("delete from tier")
        if kept is None or (before is not None and before[0] != kept.url):
            connection.execute("delete from tier_manifests")
            if has_tables:
                connection.execute("delete from tier_iceberg")
        if kept is not None:
            row = (kept.url, json.dumps(kept.options), kept.store_id, kept.epoch)
            connection.execute("insert into tier values (1, ?, ?, ?, ?)", row)


def version(catalog: Catalog, topic_id: str, partition: int) -> int:
    """The version of the copy of a manifest; 0: there is none."""
    if not _has_tables(catalog):
        return 0
    with catalog.reading() as connection:
        row = connection.execute(
            "select version from tier_manifests where topic_id = ? and partition = ?", (topic_id, partition)
        ).fetchone()
    return 0 if row is None else int(row[0])


def versions(catalog: Catalog, topic_id: str) -> dict[int, int]:
    """The versions of the copies of a topic's manifests, by partition."""
    if not _has_tables(catalog):
        return {}
    with catalog.reading() as connection:
        return dict(
            connection.execute(
                "select partition, version from tier_manifests where topic_id = ? order by partition", (topic_id,)
            ).fetchall()
        )


def copy(catalog: Catalog, topic_id: str, partition: int) -> Copy | None:
    """The copy of a manifest. Raises CorruptionError."""
    if not _has_tables(catalog):
        return None
    with catalog.reading() as connection:
        row = connection.execute(
            "select verified_offset, tag, content from tier_manifests where topic_id = ? and partition = ?",
            (topic_id, partition),
        ).fetchone()
    if row is None:
        return None
    content = json.loads(row[2])
    manifest = Manifest.of(content, str(catalog.path))
    if (manifest.topic_id, manifest.partition) != (topic_id, partition):
        raise CorruptionError(
            f"the manifest of {manifest.topic_id}/{manifest.partition} is kept for {topic_id}/{partition}",
            str(catalog.path),
        )
    return Copy(Document(content, row[1]), manifest, row[0])


def keep_copy(catalog: Catalog, kept: Copy, *, durable: bool) -> None:
    """Keeps a copy, unless there is a newer one. A restored store begins anew: its epoch is higher."""
    catalog.ensure_tables(_TABLES, _SENSE)
    manifest = kept.manifest
    with catalog.changing(durable=durable) as connection:
        connection.execute(
            "insert into tier_manifests values (?, ?, ?, ?, ?, ?) on conflict (topic_id, partition) do update set "
            "version = excluded.version, tag = excluded.tag, content = excluded.content, "
            "verified_offset = max(verified_offset, excluded.verified_offset) "
            "where excluded.version >= version",
            (
                *(manifest.topic_id, manifest.partition, manifest.version, kept.verified_offset),
                *(kept.document.tag, json.dumps(kept.document.content)),
            ),
        )


def topics_with_copies(catalog: Catalog) -> frozenset[str]:
    """The ids of topics of which there are manifests."""
    if not _has_tables(catalog):
        return frozenset()
    with catalog.reading() as connection:
        return frozenset(row[0] for row in connection.execute("select distinct topic_id from tier_manifests"))


def forget_copies(catalog: Catalog, topic_id: str) -> None:
    """The topic has no tier any more."""
    if _has_tables(catalog):
        with catalog.changing() as connection:
            connection.execute("delete from tier_manifests where topic_id = ?", (topic_id,))
    forget_table(catalog, topic_id)


# ---- Iceberg tables --------------------------------------------------------------------------------------------------


def table(catalog: Catalog, topic_id: str) -> Table | None:
    """What is known of a topic's Iceberg table; None: nothing."""
    if not _has_iceberg(catalog):
        return None
    with catalog.reading() as connection:
        return _table_in(connection, topic_id)


def _table_in(connection: sqlite3.Connection, topic_id: str) -> Table | None:
    row = connection.execute(
        "select version, schema_version, partitions, followed_ms, error from tier_iceberg where topic_id = ?",
        (topic_id,),
    ).fetchone()
    if row is None:
        return None
    version, schema_version, partitions, followed_ms, error = row
    of = {int(number): (known[0], known[1], known[2]) for number, known in json.loads(partitions).items()}
    return Table(version, schema_version, of, followed_ms, error)


def keep_table(
    catalog: Catalog, topic_id: str, version: int, schema_version: int, manifests: Mapping[int, Manifest]
) -> None:
    """A table has followed some manifests. What another process has it follow since stays so."""
    catalog.ensure_tables(_ICEBERG_TABLES, _ICEBERG_SENSE)
    with catalog.changing() as connection:
        before = _table_in(connection, topic_id) or Table(0, 0, {}, None, None)
        of = dict(before.partitions)
        for number, manifest in manifests.items():
            followed = (manifest.version, manifest.start_offset, manifest.end_offset)
            of[number] = max(of.get(number, (0, 0, 0)), followed)
        made = Table(version, max(schema_version, before.schema_version), of, _now_ms(), None)
        _keep_in(connection, topic_id, made)


def keep_table_failure(catalog: Catalog, topic_id: str, error: str) -> None:
    """A table could not follow."""
    catalog.ensure_tables(_ICEBERG_TABLES, _ICEBERG_SENSE)
    with catalog.changing() as connection:
        before = _table_in(connection, topic_id) or Table(0, 0, {}, None, None)
        _keep_in(connection, topic_id, before._replace(error=error))


def _keep_in(connection: sqlite3.Connection, topic_id: str, made: Table) -> None:
    partitions = json.dumps({str(number): followed for number, followed in sorted(made.partitions.items())})
    row = (topic_id, made.version, made.schema_version, partitions, made.followed_ms, made.error)
    connection.execute("insert or replace into tier_iceberg values (?, ?, ?, ?, ?, ?)", row)


def forget_table(catalog: Catalog, topic_id: str) -> None:
    """The topic has no Iceberg table any more."""
    if _has_iceberg(catalog):
        with catalog.changing() as connection:
            connection.execute("delete from tier_iceberg where topic_id = ?", (topic_id,))


def _has_iceberg(catalog: Catalog) -> bool:
    catalog.check_tables(_ICEBERG_TABLES, _ICEBERG_SENSE)
    return catalog.has_table("tier_iceberg")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _has_tables(catalog: Catalog) -> bool:
    catalog.check_tables(_TABLES, _SENSE)
    return catalog.has_table("tier_manifests")
