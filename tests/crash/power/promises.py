"""Opens a store after a loss of power and holds it against the ledger: what was promised is there, nothing else."""

from __future__ import annotations

import contextlib
import copy
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

import streamcore as sc

from .ledger import Facts, Ledger, Log, Part, Transaction
from .records import Row, Shape, row_of, rows_of, table_of

_COLUMNS = ["partition", "offset", "timestamp", "key", "value", "headers"]
MARKERS_MAX = 3  # one for each transactional id of the workloads
_NEW_CALL = 1 << 20  # of what is appended after the crash
_OFFSETS = "select group_name, name, partition, position from group_offsets join topics on topics.id = topic_id"


class Found(NamedTuple):
    """A partition as it is read."""

    start: int
    end: int
    stable: int
    offsets: list[int]
    rows: list[Row]
    committed: set[int]


Logs = dict[tuple[str, int], Found]


def check_state(ledger: Ledger, shape: Shape, store_path: Path, chance: random.Random) -> None:
    """A reader, then a writer find what was promised; the store goes on, and is found again as it was left."""
    checked = Checker(ledger, shape)
    with _no_complaints():
        if chance.random() < 0.3:
            checked.check_reader(store_path)
        with sc.open(store_path, maintenance=False) as store:
            found = checked.check(store, writable=True)
            draw = chance.random()
            if draw < 0.4:
                return
            more = _go_on(store, shape, chance)
        if draw < 0.7:
            with sc.open(store_path, "rw" if chance.random() < 0.7 else "r", maintenance=False) as store:
                _check_again(store, found, more)


@contextlib.contextmanager
def _no_complaints() -> Iterator[None]:
    """What is logged as a warning or worse is a failure."""
    told: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "goes back from" not in record.getMessage():  # a group that was ahead of its log
                told.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logger = logging.getLogger("streamcore")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert not told, f"it complains: {told}"


# ---- what is there ------------------------------------------------------------------------------------------------


def facts_of(store: sc.Store) -> tuple[Any, ...]:
    """What the catalog says, as `Facts.seen`."""
    topics = {topic.name: (topic.partition_count, topic.config.retention_ms) for topic in store.topics()}
    with store.catalog.reading() as connection:
        settings = dict(connection.execute("select key, value from settings").fetchall())
        offsets = {}
        if connection.execute("select 1 from sqlite_schema where name = 'group_offsets'").fetchone():
            for group, topic, partition, position in connection.execute(_OFFSETS).fetchall():
                offsets[group, topic, partition] = position
    return topics, settings, offsets


def read_logs(topic: sc.Topic) -> Logs:
    """All partitions of a topic."""
    bounds = topic.bounds(range(topic.partition_count))
    offsets: dict[int, list[int]] = {partition: [] for partition in bounds}
    rows: dict[int, list[Row]] = {partition: [] for partition in bounds}
    committed: dict[int, set[int]] = {partition: set() for partition in bounds}
    table = topic.scan(columns=_COLUMNS, isolation="uncommitted").to_arrow()
    for partition, offset, row in zip(*_columns(table, "partition", "offset"), rows_of(table), strict=True):
        offsets[partition].append(offset)
        rows[partition].append(row)
    table = topic.scan(columns=["partition", "offset"]).to_arrow()
    for partition, offset in zip(*_columns(table, "partition", "offset"), strict=True):
        committed[partition].add(offset)
    return {
        (topic.name, partition): Found(start, end, stable, offsets[partition], rows[partition], committed[partition])
        for partition, (start, stable, end) in bounds.items()
    }


def _columns(table: pa.Table, *names: str) -> Iterator[list[int]]:
    return (table.column(name).to_pylist() for name in names)


def _may_be_gone(log: Log, part: Part) -> bool:
    """Records of transactions that are not committed go when their segment is rewritten."""
    return log.rewritten and part.transaction is not None and part.transaction.state not in ("committed", "torn")


class Checker:
    """The checks of one state."""

    def __init__(self, ledger: Ledger, shape: Shape) -> None:
        self._ledger = ledger
        self._shape = shape

    def settle(self, store_path: Path) -> Ledger:
        """A ledger of what is there now, for who goes on with the store. The store is changed."""
        ledger = copy.deepcopy(self._ledger)
        with sc.open(store_path, maintenance=False) as store:
            logs = self.check(store, writable=True)
            seen = facts_of(store)
        number = max(number for number, facts in enumerate(ledger.facts) if self._fits(facts, seen, logs))
        for key, offset in ledger.facts[number].offsets.items():
            if seen[2][key] != offset:
                ledger.brought_back.setdefault(key, set()).update((offset, seen[2][key]))
        self._settle_transactions(ledger, logs, number)

        def present(at: tuple[str, int], part: Part) -> int | None:
            found = logs[at]
            if part.first is None:
                return self._find(part, found)
            deleted = part.end <= found.start
            return part.first if deleted or (found.offsets and part.first <= found.offsets[-1]) else None

        ledger.settle(number, present, {place: found.start for place, found in logs.items()})
        return ledger

    def _settle_transactions(self, ledger: Ledger, logs: Logs, number: int) -> None:
        """What is seen is committed for good, unless a part of it was lost with the power; the rest is not."""
        facts = ledger.facts[number]
        for transaction in ledger.transactions.values():
            shown, hidden = [], False
            for (name, life, partition), log in ledger.logs.items():
                if name not in facts.topics or facts.topics[name].life != life:
                    continue
                for owner, part in transaction.parts:
                    if owner is log:
                        found = logs[name, partition]
                        first = self._find(part, found) if part.first is None else part.first
                        shown.append(first is not None and (first in found.committed or first < found.start))
                        hidden |= first is not None and first in found.offsets and not shown[-1]
            decided = transaction.state in ("committed", "committing", "torn")
            if decided and any(shown):
                transaction.state = "committed" if all(shown) else "torn"
            elif hidden or not (decided and self._is_compacted(ledger, transaction)):
                transaction.state = "aborted"
            transaction.change = 0

    @staticmethod
    def _is_compacted(ledger: Ledger, transaction: Transaction) -> bool:
        return any(log.compacted for log, _ in transaction.parts)

    def check_reader(self, store_path: Path) -> None:
        """Of what no writer has repaired yet."""
        try:
            store = sc.open(store_path, "r")
        except sc.StreamcoreError:
            if self._ledger.opened:
                raise
            return
        with store:
            self.check(store, writable=False)

    def check(self, store: sc.Store, *, writable: bool) -> Logs:
        """All of it; returns the logs."""
        ledger = self._ledger
        seen = facts_of(store)
        logs: Logs = {}
        for name in seen[0]:
            logs.update(read_logs(store.topic(name)))
        fitting = [
            number
            for number in range(ledger.durable_facts, len(ledger.facts))
            if self._fits(ledger.facts[number], seen, logs if writable else {})
        ]
        expected = [ledger.facts[number].seen() for number in range(ledger.durable_facts, len(ledger.facts))]
        assert fitting, f"the catalog holds {seen}, which is none of {expected}"
        facts = ledger.facts[fitting[-1]]
        for (name, partition), found in logs.items():
            log = ledger.logs.get((name, facts.topics[name].life, partition), Log())
            self._check_log(f"{name}/{partition}", log, found, writable=writable)
            assert not writable or found.stable >= found.end, f"{name}/{partition}: committed readers wait"
        self._check_transactions(facts, logs, fitting, writable=writable)
        if writable:
            problems = store.verify()
            assert problems == [], f"verify finds {problems}"
        return logs

    def _fits(self, facts: Facts, seen: tuple[Any, ...], logs: Logs) -> bool:
        """Whether the catalog may hold that. Who opens it for writing brings groups back to where their logs end."""
        topics, settings, offsets = facts.seen()
        if (topics, settings) != seen[:2] or offsets.keys() != seen[2].keys():
            return False
        for key, offset in offsets.items():
            found = seen[2][key]
            known = self._ledger.brought_back.get(key, set())
            if found == offset or {found, offset} <= known:
                continue
            log = logs.get(key[1:])
            if log is None or found > min(offset, log.end) or (log.offsets and found <= log.offsets[-1]):
                return False
        return all(key[1:] not in logs or offset <= logs[key[1:]].end for key, offset in seen[2].items())

    # ---- a log ----

    def _check_log(self, where: str, log: Log, found: Found, *, writable: bool) -> None:
        assert found.end >= log.durable_end, f"{where} ends at {found.end}: durable up to {log.durable_end}"
        nothing = log.durable_end == 0 and found.start == found.end  # was durable: a segment's name may be all there is
        assert nothing or log.start <= found.start <= max(log.start, log.start_max), (
            f"{where} begins at {found.start}: deleted up to {log.start}, perhaps {log.start_max}"
        )
        rows = dict(zip(found.offsets, found.rows, strict=True))
        assert list(rows) == sorted(rows), f"{where}: the offsets are out of order"
        assert len(rows) == len(found.offsets), f"{where}: an offset comes twice"
        newest: dict[bytes | None, int] = {}
        if log.compacted:
            for offset, row in rows.items():
                newest[row.key] = offset
        last = found.offsets[-1] if found.offsets else -1
        for part in log.placed:
            assert part.first is not None
            if part.first > last:
                self._check_lost(where, log, part, found, writable=writable)
            elif part.end > found.start:
                self._check_part(where, log, part, found, rows, newest)
        self._check_coming(where, log, found, rows)
        assert not rows, f"{where} has at {next(iter(rows))} what nobody appended: {next(iter(rows.values()))}"

    def _is_compacted_away(self, log: Log, part: Part, found: Found) -> bool:
        """Whether tombstones explain that its records are gone, and those are gone as well."""
        keys = {row.key for row in found.rows}
        first = part.first or 0
        rows = [row_of(part.call, number, self._shape) for number in range(part.count)]
        return log.compacted and all(
            row.key not in keys and self._is_deleted(log, row.key, first + number) for number, row in enumerate(rows)
        )

    def _check_lost(self, where: str, log: Log, part: Part, found: Found, *, writable: bool) -> None:
        """A part that no record is behind: it may be lost if nobody was told that it is durable."""
        assert part.first is not None
        if part.end <= found.start or _may_be_gone(log, part) or self._is_compacted_away(log, part, found):
            return
        what = f"{where}: call {part.call} at {part.first}..{part.end}"
        assert part.first >= log.durable_end, f"{what} is lost, and was durable"
        markers = MARKERS_MAX if writable else 0  # which recovery has put where the log was cut
        assert part.first >= found.end - markers, f"{what} is lost, and the log ends at {found.end}"

    def _check_part(
        self, where: str, log: Log, part: Part, found: Found, rows: dict[int, Row], newest: dict[bytes | None, int]
    ) -> None:
        """Takes the rows of a part out of those that were found: a part of which something is behind it."""
        assert part.first is not None
        assert part.end <= found.end, f"{where} ends at {found.end}, within call {part.call} at {part.first}"
        for number in range(max(0, found.start - part.first), part.count):
            offset = part.first + number
            expected = row_of(part.call, number, self._shape)
            row = rows.pop(offset, None)
            if row is None:
                superseded = log.compacted and (
                    newest.get(expected.key, -1) > offset
                    or (expected.key not in newest and self._is_deleted(log, expected.key, offset))
                )
                assert superseded or _may_be_gone(log, part), f"{where}: call {part.call} lacks offset {offset}"
            else:
                assert row == expected, f"{where}: offset {offset} is {row}, not {expected}"

    def _is_deleted(self, log: Log, key: bytes | None, offset: int) -> bool:
        """Whether a tombstone of the key lies there or later: both it and what it deletes may be gone."""
        for part in log.placed:
            for number in range(part.count):
                row = row_of(part.call, number, self._shape)
                if row.key == key and row.value is None and (part.first or 0) + number >= offset:
                    return True
        return False

    def _check_coming(self, where: str, log: Log, found: Found, rows: dict[int, Row]) -> None:
        """What was on its way is there whole or not at all, and in order."""
        missing = None
        for part in log.coming:
            if not rows:
                return
            offset = next(iter(rows))
            if rows[offset] != row_of(part.call, 0, self._shape):
                missing = part
                continue
            assert missing is None, f"{where}: call {part.call} is there, {missing.call} before it is not"
            assert offset >= log.known_end, f"{where}: call {part.call} at {offset} is before what was there"
            part_rows = [rows.pop(offset + number, None) for number in range(part.count)]
            expected = [row_of(part.call, number, self._shape) for number in range(part.count)]
            assert part_rows == expected, f"{where}: call {part.call} at {offset} is not whole"

    # ---- transactions ----

    def _check_transactions(self, facts: Facts, logs: Logs, fitting: list[int], *, writable: bool) -> None:
        places = {}
        for (name, partition), found in logs.items():
            log = self._ledger.logs.get((name, facts.topics[name].life, partition))
            if log is not None:
                places[log] = (f"{name}/{partition}", found)
        for transaction in self._ledger.transactions.values():
            shown = self._shown(transaction, places)
            if shown:
                self._check_transaction(transaction, shown, fitting, writable=writable)
        if writable:
            for log, (where, found) in places.items():
                for part in log.placed:
                    if part.transaction is None and part.first is not None and part.end <= found.end:
                        offsets = set(found.offsets).intersection(range(part.first, part.end))
                        assert offsets <= found.committed, f"{where}: call {part.call} is hidden"

    def _shown(self, transaction: Transaction, places: dict[Log, tuple[str, Found]]) -> list[bool]:
        """Of each part that was not deleted: whether committed readers see it. A part is seen as a whole."""
        shown = []
        for log, part in transaction.parts:
            if log not in places:
                continue
            where, found = places[log]
            first = part.first
            if first is None:
                first = self._find(part, found)
            if first is None:
                shown.append(False)
                continue
            if first < found.start:
                continue
            offsets = set(range(first, first + part.count))
            there = offsets.intersection(found.offsets)
            seen = offsets & found.committed
            decided = transaction.state in ("committed", "committing", "torn")
            if decided and log.compacted and there != offsets and there == seen:
                continue  # others of their keys came later
            assert not seen or seen == offsets, f"{where}: transaction {transaction.number} is seen in part: {seen}"
            shown.append(bool(seen))
        return shown

    def _find(self, part: Part, found: Found) -> int | None:
        expected = row_of(part.call, 0, self._shape)
        for offset, row in zip(reversed(found.offsets), reversed(found.rows), strict=True):
            if row == expected:
                return offset
        return None

    def _check_transaction(
        self, transaction: Transaction, shown: list[bool], fitting: list[int], *, writable: bool
    ) -> None:
        what = f"transaction {transaction.number} ({transaction.state})"
        if transaction.state == "torn":
            return
        if transaction.state not in ("committing", "committed"):
            assert not any(shown), f"{what} is seen"
        elif transaction.durable and writable:
            assert all(shown) or not any(shown), f"{what} is seen in some partitions: {shown}"
            assert all(shown) or transaction.state != "committed", f"{what} is lost"
            assert transaction.change is not None
            if any(shown):
                assert fitting[-1] >= transaction.change, f"{what} is seen, its offsets are not committed"
            else:
                assert fitting[0] < transaction.change, f"{what} is not seen, its offsets are committed"


# ---- and goes on --------------------------------------------------------------------------------------------------


class More(NamedTuple):
    """What was appended after the crash: rows by place and offset, and the settings that were made."""

    rows: dict[tuple[str, int], dict[int, Row]]
    setting: str
    rewritten: bool


def _go_on(store: sc.Store, shape: Shape, chance: random.Random) -> More:
    """Appends in each way to each partition."""
    added: dict[tuple[str, int], dict[int, Row]] = {}
    topics = store.topics()
    call = _NEW_CALL

    def rows_for(topic: sc.Topic, count: int) -> tuple[list[Row], list[int]]:
        nonlocal call
        made, places = [], []
        for partition in range(topic.partition_count):
            call += 1
            made += [row_of(call, number, shape) for number in range(count)]
            places += [partition] * count
        return made, places

    def note(topic: sc.Topic, rows: list[Row], places: list[int], spans: list[sc.Span]) -> None:
        for span in spans:
            own = [row for row, place in zip(rows, places, strict=True) if place == span.partition]
            assert span.end_offset - span.first_offset == len(own)
            added.setdefault((topic.name, span.partition), {}).update(enumerate(own, span.first_offset))

    for topic in topics:
        rows, places = rows_for(topic, 2)
        note(topic, rows, places, topic.append_table(table_of(rows, places, shape), durability="disk"))
    if topics and chance.random() < 0.5:
        transaction = store.transaction("id left", durability=chance.choice(["os", "disk"]))
        for topic in topics:
            rows, places = rows_for(topic, 1)
            note(topic, rows, places, transaction.append_table(topic, table_of(rows, places, shape)))
        transaction.commit()
    if topics and not shape.typed and chance.random() < 0.3:
        topic = chance.choice(topics)
        call += 1
        row = row_of(call, 0, shape)
        told: list[sc.Delivery] = []
        with store.producer(linger_ms=0) as producer:
            producer.send(topic.name, row.value, row.key, row.time_ms, row.headers, 0, lambda e, at: told.append(at))
        [at] = told
        added.setdefault((topic.name, 0), {}).update(enumerate([row], at.offset or 0))
    rewritten = bool(topics) and chance.random() < 0.15
    if rewritten:
        for topic in topics:
            topic.roll()
            topic.consolidate()
    setting = f"{chance.random()}"
    store.set_setting("after", setting)
    return More(added, setting, rewritten)


def _check_again(store: sc.Store, found: Logs, more: More) -> None:
    assert store.get_setting("after") == more.setting, "a setting that was made after the crash is lost"
    again: Logs = {}
    for name in {name for name, _ in found}:
        again.update(read_logs(store.topic(name)))
    for (name, partition), before in found.items():
        where = f"{name}/{partition}, opened again,"
        now = again[name, partition]
        added = more.rows.get((name, partition), {})
        expected = dict(zip(before.offsets, before.rows, strict=True))
        if more.rewritten:  # records of aborted transactions may go
            expected = {offset: row for offset, row in expected.items() if offset in before.committed}
        seen = dict(zip(now.offsets, now.rows, strict=True))
        assert now.start == before.start, f"{where} begins at {now.start}"
        assert not set(added).intersection(expected), f"{where} has new records at old offsets"
        for offset, row in {**expected, **added}.items():
            assert seen.pop(offset, None) == row, f"{where} has another record at {offset}, or none"
        left = {offset for offset in seen if offset not in before.offsets}
        assert not left, f"{where} has records at {left} that nobody appended"
        assert now.committed == before.committed | set(added), f"{where} shows other records"
    assert store.verify() == [], "verify finds problems when the store is opened again"
