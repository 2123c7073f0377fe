"""What the children do that are killed in transactions: they copy a topic into two others, exactly once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import streamcore as sc
from streamcore.catalog import Catalog
from streamcore.transactions import Coordinator, OffsetsToCommit

from .forkserver import Channel

SOURCE, LEFT, RIGHT = "source", "left", "right"
_OFFSETS = (
    "create table if not exists copied "
    "(topic_id text, partition integer, next integer, primary key (topic_id, partition))"
)


def make_store(store_path: Path, records: int) -> None:
    """The source has two partitions; each record's value is like no other."""
    with sc.open(store_path) as store:
        source = store.create_topic(SOURCE, partitions=2)
        store.create_topic(LEFT, partitions=3, segment_bytes=1 << 16)
        store.create_topic(RIGHT, segment_bytes=1 << 16)
        for partition in range(2):
            source.append([b"%d.%d" % (partition, i) for i in range(records // 2)], partition=partition)


class Copied:
    """How far the source is copied: a consumer's offsets, kept in the catalog."""

    def __init__(self, store: sc.Store) -> None:
        self._store = store
        self.positions: dict[tuple[str, int], int] = {}
        store.catalog.ensure_tables(_OFFSETS)
        self.read()

    def read(self) -> dict[tuple[str, int], int]:
        """What is committed."""
        with self._store.catalog.reading() as connection:
            rows = connection.execute("select * from copied").fetchall()
        self.positions = {(topic_id, partition): offset for topic_id, partition, offset in rows}
        return dict(self.positions)

    def offsets_to_commit(self) -> OffsetsToCommit:
        return OffsetsToCommit("copy", None, {place: (offset, "") for place, offset in self.positions.items()})

    def apply_offsets(self, connection: sqlite3.Connection, commit: OffsetsToCommit) -> None:
        for (topic_id, partition), (offset, _) in commit.offsets.items():
            connection.execute("insert or replace into copied values (?, ?, ?)", (topic_id, partition, offset))


def copy_some(store: sc.Store, chance: random.Random, rows_max: int, durability: Any, name: str) -> int:
    """One transaction; the number of records that it copied, 0 at the end of the source."""
    source, copied = store.topic(SOURCE), Copied(store)
    count = 0
    with store.transaction(name, durability=durability) as transaction:
        copied.read()  # only now: whoever had the id before is fenced
        for partition in range(2):
            place = source.id, partition
            start = copied.positions.get(place, 0)
            values = [r.value for r in source.scan(partition, start=start, limit=chance.randint(1, rows_max))]
            if values:
                transaction.append(LEFT, values, keys=values)
                transaction.append(RIGHT, values)
            copied.positions[place] = start + len(values)
            count += len(values)
        transaction.commit_offsets(copied)
        if chance.random() < 0.1:
            transaction.abort()
            return 1
    return count


def copy_until_killed(
    channel: Channel, *, store_path: str, seed: int, durability: str, rows_max: int, fenced_is_fine: bool = False
) -> None:
    """Copies all, says what it does, and leaves when there is no more."""
    chance = random.Random(seed)
    with sc.open(store_path) as store:
        count = 1
        while count:
            channel.send("BEGUN")
            try:
                count = copy_some(store, chance, rows_max, durability, "copy")
            except sc.FencedError:
                assert fenced_is_fine
            channel.send("DONE", count)


# ---- deaths at certain points ------------------------------------------------------------------------------------


class Points:
    """Counts the points that are passed, and dies at one of them."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.passed = 0

    def reach(self) -> None:
        self.passed += 1
        if self.passed == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: type, name: str) -> None:
        """Makes the beginning and the end of a method points."""
        real = getattr(owner, name)

        def method(*arguments: Any, **settings: Any) -> Any:
            self.reach()
            result = real(*arguments, **settings)
            self.reach()
            return result

        setattr(owner, name, method)

    def around_changes(self) -> None:
        """Makes the moments before and after each change of the catalog points."""
        real = Catalog.changing

        @contextlib.contextmanager
        def changing(*arguments: Any, **settings: Any) -> Iterator[sqlite3.Connection]:
            with real(*arguments, **settings) as connection:
                yield connection
                self.reach()
            self.reach()

        Catalog.changing = changing  # type: ignore[method-assign]


def copy_and_die(channel: Channel, *, store_path: str, point: int, durability: str, bug: str | None = None) -> None:
    """Two transactions; dies at the given point of them."""
    if bug is not None:
        BUGS[bug]()
    with sc.open(store_path) as store:
        points = Points(point)
        points.around_changes()
        for name in ("append_by", "end_transaction", "flush_partition"):
            points.around(sc.Topic, name)
        for _ in range(2):
            copy_some(store, random.Random(1), 40, durability, "copy")
        channel.send("PASSED", points.passed)


# ---- controls ----------------------------------------------------------------------------------------------------


def mark_before_deciding() -> None:
    """The markers first: a death before the decision leaves some of them."""
    real = Coordinator.decide

    def decide(
        self: Coordinator, name: str, producer_id: int, epoch: int, places: Any, *rest: Any, **more: Any
    ) -> None:
        self.mark_committed(name, producer_id, epoch, places)
        real(self, name, producer_id, epoch, places, *rest, **more)

    Coordinator.decide = decide  # type: ignore[method-assign]


def decide_without_a_record() -> None:
    """The offsets are committed, but nobody else learns that the records are."""
    real = Coordinator.decide

    def decide(
        self: Coordinator, name: str, producer_id: int, epoch: int, places: Any, *rest: Any, **more: Any
    ) -> None:
        real(self, name, producer_id, epoch, set(), *rest, **more)

    Coordinator.decide = decide  # type: ignore[method-assign]


def commit_offsets_apart() -> None:
    """The offsets in a change of the catalog of their own."""
    real = Coordinator.decide

    def decide(
        self: Coordinator, name: str, producer_id: int, epoch: int, places: Any, offsets: Any, **more: Any
    ) -> None:
        real(self, name, producer_id, epoch, places, [], **more)
        with self._store.catalog.changing() as connection:
            for source, given in offsets:
                source.apply_offsets(connection, given)

    Coordinator.decide = decide  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    "markers before the decision": mark_before_deciding,
    "a decision without a record": decide_without_a_record,
    "offsets apart": commit_offsets_apart,
}
