"""Producer ids: a number that no other producer of the store has, ever (KIP-98)."""

from __future__ import annotations

import sqlite3

from streamcore.catalog import IS_COUNT, Catalog

TABLE = "create table if not exists producer_ids (next integer not null)"
SENSE = {"producer_ids": f"next > 0 and next {IS_COUNT}"}


def take_producer_id(connection: sqlite3.Connection) -> int:
    """A new id, from 1 on, inside a transaction of the catalog. It must be a durable one, and the table be there."""
    row = connection.execute("select next from producer_ids").fetchone()
    if row is None:
        connection.execute("insert into producer_ids values (2)")
        return 1
    connection.execute("update producer_ids set next = next + 1")
    return int(row[0])


def next_producer_id(catalog: Catalog) -> int:
    """A new id. Durable: after a loss of power no id is given again that a batch in a log may have."""
    catalog.ensure_tables(TABLE, SENSE)
    with catalog.changing() as connection:
        return take_producer_id(connection)


def skip_to(catalog: Catalog, first: int) -> None:
    """Has new ids begin at `first` at least: lower ones may have been given since this catalog was copied."""
    catalog.ensure_tables(TABLE, SENSE)
    with catalog.changing() as connection:
        connection.execute("insert into producer_ids select 1 where not exists (select 1 from producer_ids)")
        connection.execute("update producer_ids set next = max(next, ?)", (first,))
