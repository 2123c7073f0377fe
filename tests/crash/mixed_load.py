"""What the processes of the soak do, all at once on one store: write, read, copy, delete, rewrite.

| topic | who writes | kept |
|---|---|---|
| plain | lists of bytes, by partition | by time |
| ledger | lists of bytes, one durable call to all partitions: the journal | by size |
| typed | Arrow tables, zstd | by time |
| events | the native producer | by size |
| orders, table | transactions; table is compacted | by size; by time, and of each key the latest |
| copies | members of a group, in transactions with their offsets, each event once | by size |
| noted | members of a group, each event at least once | by size |
| short-... | made and deleted all the time | |

Each function runs in a child until it is told to stop, or killed. Says BEGUN before each piece of work.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import mmap
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import streamcore as sc

from .at_once import rewind
from .forkserver import Channel
from .lanes import SCHEMA, Acknowledgements, Follower, Lane, WrongLogError, check_partition, checked, table_of, value_of
from .ledger import partition_of

PLAIN, LEDGER, TYPED, EVENTS, ORDERS, TABLE = "plain", "ledger", "typed", "events", "orders", "table"
COPIES, NOTED, SHORT = "copies", "noted", "short"
TOPICS = (PLAIN, LEDGER, TYPED, EVENTS, ORDERS, TABLE, COPIES, NOTED)
EXACT, AUDIT = "exact", "audit"
MEMBER_TIMEOUT_MS = 700
RETENTION_MS = 6_000
RETENTION_BYTES = 3 << 17
TABLE_RETENTION_MS = 60_000  # of a key there is a new record every second or two
SEGMENT_BYTES = 1 << 16
LAG_MAX = 800  # records of a partition, far less than what is kept of it
KEYS = 64
_DENSE = {PLAIN: True, LEDGER: True, TYPED: True, EVENTS: True, ORDERS: False, COPIES: False}
_RETAINED_PART = 3  # batches of few records are up to so many times larger before they are consolidated
_PAUSE_S = 0.1


def make_store(store_path: Path) -> None:
    """The topics and groups."""
    by_time: dict[str, Any] = {"retention_ms": RETENTION_MS, "segment_bytes": SEGMENT_BYTES}
    by_size: dict[str, Any] = {"retention_bytes": RETENTION_BYTES, "segment_bytes": SEGMENT_BYTES}
    with sc.open(store_path, maintenance=False) as store:
        store.create_topic(PLAIN, partitions=2, **by_time)
        store.create_topic(TYPED, partitions=2, schema=SCHEMA, compression="zstd", **by_time)
        store.create_topic(LEDGER, partitions=8, durability="disk", **by_size)
        store.create_topic(EVENTS, partitions=4, **by_size)
        store.create_topic(ORDERS, partitions=2, **by_size)
        store.create_topic(
            TABLE, partitions=2, cleanup="compact,delete", retention_ms=TABLE_RETENTION_MS, segment_bytes=1 << 16,
            delete_retention_ms=2000,
        )  # fmt: skip
        store.create_topic(COPIES, partitions=4, **by_size)
        store.create_topic(NOTED, partitions=4, compression="lz4", **by_size)
        for group in (EXACT, AUDIT):
            store.group(group, create=True)


class Worker:
    """A child at work: its rounds, at a bounded rate, and the bug that a control gives it."""

    def __init__(self, channel: Channel, seed: int, bug: str | None) -> None:
        self.channel = channel
        self.chance = random.Random(seed)
        self.bug = bug
        self._hoard: list[Any] = []

    def rounds(self, pause_s: float = _PAUSE_S) -> Iterator[int]:
        """Numbers, until the parent says stop; a pause behind each."""
        n = 0
        while not self.channel.is_told_to_stop():
            self.channel.send("BEGUN")
            yield n
            n += 1
            self._leak()
            time.sleep(self.chance.uniform(0.5, 1.5) * pause_s)

    def _leak(self) -> None:
        if self.bug == "keeps descriptors":
            self._hoard += [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
        elif self.bug == "keeps memory":
            self._hoard.append(os.urandom(1 << 20))
        elif self.bug == "keeps mappings":  # side by side with others of the same rights they would be one
            for access in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE) * 20:
                self._hoard.append(mmap.mmap(-1, 4096, prot=access))


def opened(store_path: str, slot: int) -> sc.Store:
    """The store, with all partitions. Background work goes from one killed process to the next: those in slot 0 are
    measured, and would grow once when it comes to them."""
    store = sc.open(store_path, maintenance=slot > 0)
    for topic in store.topics():
        with contextlib.suppress(sc.TopicNotFoundError):
            assert topic.partitions
    return store


# ---- writers ------------------------------------------------------------------------------------------------------


def write_lists(channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None) -> None:
    """Lists to a partition of `plain`, and in one durable call to all partitions of `ledger`, through the journal."""
    worker, told = Worker(channel, seed, bug), Acknowledgements(acks)
    with opened(store_path, writer) as store:
        plain = [Lane(store.topic(PLAIN), p, writer, told) for p in range(2)]
        ledger = [Lane(store.topic(LEDGER), p, writer, told) for p in range(8)]
        keys = {partition_of(b"key %d" % n, 8): b"key %d" % n for n in range(100)}
        for lane in (*plain, *ledger):
            lane.catch_up()
        for n in worker.rounds():
            lane = plain[n % 2]
            numbers = lane.take(worker.chance.randint(1, 40))
            values = [value_of(writer, number) for number in numbers]
            if n == 20 and bug == "writes a wrong byte":
                values[-1] = values[-1][:-1] + b"?"
            if n == 20 and bug == "skips a record":
                del values[0]
            headers = [{"number": b"%d" % number} for number in numbers][: len(values)]
            (span,) = lane.topic.append(values, headers=headers, partition=lane.partition)
            if n == 20 and bug == "acknowledges too much":
                lane.take(1)
                span = sc.Span(span.partition, span.first_offset, span.end_offset + 1)
            lane.acknowledge(span.end_offset)
            if n % 3 == 0:
                _append_to_all(ledger, writer, keys, worker.chance)


def _append_to_all(ledger: list[Lane], writer: int, keys: dict[int, bytes], chance: random.Random) -> None:
    """One call to all partitions."""
    chosen = [(lane.partition, number) for lane in ledger for number in lane.take(chance.randint(1, 6))]
    spans = ledger[0].topic.append([value_of(writer, n) for _, n in chosen], keys=[keys[p] for p, _ in chosen])
    for span in spans:
        ledger[span.partition].acknowledge(span.end_offset)


def write_tables(channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None) -> None:
    """Arrow tables to `typed`."""
    worker, told = Worker(channel, seed, bug), Acknowledgements(acks)
    with opened(store_path, writer) as store:
        lanes = [Lane(store.topic(TYPED), p, writer, told) for p in range(2)]
        for lane in lanes:
            lane.catch_up()
        for n in worker.rounds():
            lane = lanes[n % 2]
            table = table_of(writer, lane.take(worker.chance.randint(1, 120)))
            (span,) = lane.topic.append_table(table, partition=lane.partition)
            lane.acknowledge(span.end_offset)


def send_records(channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None) -> None:
    """Records one at a time to `events`, through an idempotent producer; waits for groups that are far behind."""
    worker, told = Worker(channel, seed, bug), Acknowledgements(acks)
    failures: list[Exception] = []
    with opened(store_path, writer) as store:
        lanes = [Lane(store.topic(EVENTS), p, writer, told) for p in range(4)]
        delivered: dict[int, tuple[int, int]] = {}

        def note(number: int, error: Exception | None, delivery: sc.Delivery) -> None:
            if error is not None:
                failures.append(error)
            elif delivery.offset is not None:
                delivered[delivery.partition] = number, delivery.offset

        producer = store.producer(linger_ms=3, durability="disk" if writer % 2 else None)
        for lane in lanes:
            lane.catch_up()
        for n in worker.rounds():
            if n % 5 == 0 and lag(store) > LAG_MAX:
                continue
            for lane in lanes:
                for number in lane.take(worker.chance.randint(0, 12)):
                    noted = functools.partial(note, number)
                    producer.send(EVENTS, value_of(writer, number), partition=lane.partition, on_delivery=noted)
            if n % 2:
                producer.flush()
            for partition, (number, offset) in dict(delivered).items():
                told.write(EVENTS, partition, writer, number, offset)
            if failures:
                raise failures[0]
        producer.close()


def lag(store: sc.Store) -> int:
    """How many records of a partition of `events` a group has not committed yet, at most."""
    topic = store.topic(EVENTS)
    ends = {p: bounds[2] for p, bounds in topic.bounds(range(4)).items()}
    return max(
        end - int(committed.get((EVENTS, partition), 0))
        for committed in (store.group(group).offsets() for group in (EXACT, AUDIT))
        for partition, end in ends.items()
    )


def key_of(writer: int, number: int) -> bytes:
    """The key of a record of `table`."""
    return b"%d:%d" % (writer, number * 7919 % KEYS)


def of_key(writer: int, number: int) -> bytes | None:
    """Its value; None: a tombstone."""
    return None if number % 97 == 0 else value_of(writer, number)


def write_transactions(
    channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None
) -> None:
    """To `orders` and the compacted `table`, in transactions, one in ten is aborted. Ends when it is fenced."""
    worker, told = Worker(channel, seed, bug), Acknowledgements(acks)
    with opened(store_path, writer) as store:
        orders = [Lane(store.topic(ORDERS), p, writer, told) for p in range(2)]
        rows = Lane(store.topic(TABLE), writer % 2, writer, told)
        try:
            for _ in worker.rounds():
                with store.transaction(f"orders-{writer}", timeout_ms=5000) as transaction:
                    _write_transaction(transaction, orders, rows, worker.chance)
        except sc.FencedError:  # somebody has its place
            channel.send("FENCED")


def _write_transaction(transaction: Any, orders: list[Lane], rows: Lane, chance: random.Random) -> None:
    writer = rows.writer
    lanes = [*orders, rows]
    for lane in lanes:  # only now: whoever had the id before is fenced
        lane.catch_up("committed")
    before = [lane.next for lane in lanes]
    ends = []
    for lane in orders:
        values = [value_of(writer, number) for number in lane.take(chance.randint(1, 10))]
        (span,) = transaction.append(ORDERS, values, partition=lane.partition)
        ends.append(span.end_offset)
    numbers = list(rows.take(chance.randint(1, 20)))
    keys, values = [key_of(writer, n) for n in numbers], [of_key(writer, n) for n in numbers]
    (span,) = transaction.append(TABLE, values, keys=keys, partition=rows.partition)
    ends.append(span.end_offset)
    if chance.random() < 0.1:
        transaction.abort()
        for lane, number in zip(lanes, before, strict=True):
            lane.next = number
        return
    transaction.commit()
    for lane, end in zip(lanes, ends, strict=True):
        lane.acknowledge(end)


# ---- members of groups --------------------------------------------------------------------------------------------


def _by_partition(records: list[sc.Record]) -> dict[int, list[sc.Record]]:
    found: dict[int, list[sc.Record]] = {}
    for record in records:
        found.setdefault(record.partition, []).append(record)
    return found


def copy_exactly_once(
    channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None
) -> None:
    """Copies `events` to `copies`, in transactions with the offsets."""
    worker = Worker(channel, seed, bug)
    with opened(store_path, writer) as store:
        with store.transaction(f"exact-{writer}"):
            pass  # ends what a killed one has left open, for which readers would wait otherwise
        member = store.consumer(EVENTS, group=EXACT, member_timeout_ms=MEMBER_TIMEOUT_MS)
        for _ in worker.rounds(0.03):
            records = member.poll(100, worker.chance.choice([20, 100, 400]))
            if not records:
                continue
            try:
                with store.transaction(f"exact-{writer}", timeout_ms=5000) as transaction:
                    for partition, some in _by_partition(records).items():
                        transaction.append(COPIES, [record.value for record in some], partition=partition)
                    transaction.commit_offsets(member)
            except sc.FencedError:  # its partitions were given to others: nothing of it counts
                channel.send("FENCED")
                rewind(member)
        _assert_no_resets(member)
        member.close()


def copy_at_least_once(
    channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None
) -> None:
    """Notes `events` in `noted`, then commits."""
    worker = Worker(channel, seed, bug)
    with opened(store_path, writer) as store:
        noted = store.topic(NOTED)
        member = store.consumer(EVENTS, group=AUDIT, member_timeout_ms=MEMBER_TIMEOUT_MS)
        for _ in worker.rounds(0.03):
            records = member.poll(100, worker.chance.choice([20, 100, 400]))
            for partition, some in _by_partition(records).items():
                noted.append([record.value for record in some], partition=partition)
            if bug == "goes back" and records and records[0].offset > 0:
                member.commit({(EVENTS, records[0].partition): 0})
                continue
            if records:
                try:
                    member.commit()
                except sc.FencedError:  # others read them again, which is allowed
                    channel.send("FENCED")
        _assert_no_resets(member)
        member.close()


def _assert_no_resets(member: sc.Consumer) -> None:
    if member.metrics.offset_resets:
        raise WrongLogError("a group fell behind retention: nothing can be said of what it wrote")


# ---- readers ------------------------------------------------------------------------------------------------------


def scan(channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None) -> None:
    """Reads one partition after another, whole, and checks it and what was deleted of it; the table now and then."""
    worker, checker = Worker(channel, seed, bug), None
    with opened(store_path, writer) as store:
        checker = Checker(store, Acknowledgements(acks))
        for _ in worker.rounds(0.3):
            try:
                checker.check_some(worker.chance)
            except sc.OffsetOutOfRangeError:
                channel.send("DELETED")  # while it read


class Checker:
    """Checks of whole partitions, and of what is gone since the last time."""

    def __init__(self, store: sc.Store, acks: Acknowledgements) -> None:
        self._store = store
        self._acks = acks
        self._before: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._noted = {p: (0, Follower(repeats=True)) for p in range(4)}

    def check_some(self, chance: random.Random) -> None:
        """One topic."""
        name = chance.choice([*_DENSE, TABLE, NOTED])
        self.check(name, chance.randrange(len(self._store.topic(name).partitions)))

    def check_all(self) -> None:
        """All of it."""
        for name in (*_DENSE, TABLE, NOTED):
            for partition in range(len(self._store.topic(name).partitions)):
                self.check(name, partition)

    def check(self, name: str, partition: int) -> None:
        topic = self._store.topic(name)
        if name == TABLE:
            self._check_table(topic, partition)
        elif name == NOTED:
            self._check_noted(topic, partition)
        else:
            offsets, times = check_partition(topic, partition, self._acks, dense=_DENSE[name])
            self._check_deleted(topic, partition)
            self._before[name, partition] = offsets, times

    def _check_deleted(self, topic: sc.Topic, partition: int) -> None:
        """What is gone since the last time was to go: it is older than retention keeps, or there is enough left."""
        part = topic.partitions[partition]
        offsets, times = self._before.get((topic.name, partition), ((), ()))
        gone = [time_ms for offset, time_ms in zip(offsets, times, strict=True) if offset < part.start_offset]
        if not gone:
            return
        if topic.config.retention_ms is not None:
            age_ms = time.time() * 1000 - max(gone)
            if age_ms < topic.config.retention_ms:
                raise WrongLogError(f"{topic.name}/{partition}: records of {age_ms:.0f} ms ago are gone")
        elif part.size_bytes < RETENTION_BYTES // _RETAINED_PART:
            raise WrongLogError(f"{topic.name}/{partition}: only {part.size_bytes} bytes are left")

    def _check_noted(self, topic: sc.Topic, partition: int) -> None:
        position, follower = self._noted[partition]
        start, end, _ = topic.bounds([partition])[partition]
        if start > position:
            follower.forget()
        for value in (
            topic.scan(partition, start=max(start, position), end=end, columns=["value"]).to_arrow()[0].to_pylist()
        ):
            follower.follow(f"{NOTED}/{partition}", value)
        self._noted[partition] = end, follower

    def _check_table(self, topic: sc.Topic, partition: int) -> None:
        """The latest of each key, as it follows from how far each writer has come."""
        told = self._acks.read(TABLE, partition)
        table = topic.table(partition, columns=["key", "value"])
        found = dict(zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True))
        if len(found) != table.num_rows:
            raise WrongLogError("a key is twice in the table")
        for writer, last in told.items():
            own = {key: value for key, value in found.items() if key.startswith(b"%d:" % writer)}
            newest = max([-1, *(checked(value)[1] for value in own.values())])
            possible = [
                n for n in (newest, newest + 1) if n >= last.number and (n == newest or of_key(writer, n) is None)
            ]
            if not any(own == _model(writer, n) for n in possible):
                raise WrongLogError(f"the table is not what writer {writer} wrote up to {last.number}, or {newest}")


def _model(writer: int, newest: int) -> dict[bytes, bytes]:
    """The table of one writer behind a record."""
    found: dict[bytes, bytes | None] = {}
    for number in range(newest, max(-1, newest - KEYS), -1):
        found.setdefault(key_of(writer, number), of_key(writer, number))
    return {key: value for key, value in found.items() if value is not None}


_RUNS = """
select partition, value.writer as writer, min(value.number) as first, max(value.number) as last, count(*) as records,
       sum(value.number)::bigint as total
from typed group by all
"""
_SIZES = (
    'select count(*) as records, count(distinct (partition, "offset")) as places, min(octet_length(value)) from plain'
)


def ask(channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None) -> None:
    """SQL over `typed` and `plain`: whether lanes are unbroken follows from sums."""
    worker = Worker(channel, seed, bug)
    with opened(store_path, writer) as store:
        for n in worker.rounds(0.5):
            try:
                if n % 3 == 0:
                    (row,) = store.sql(_SIZES).to_pylist()
                    if row["records"] != row["places"]:
                        raise WrongLogError(f"SQL sees a record twice: {row}")
                    continue
                for row in store.sql(_RUNS).to_pylist():
                    count = row["last"] - row["first"] + 1
                    if row["records"] != count or row["total"] != (row["first"] + row["last"]) * count // 2:
                        raise WrongLogError(f"SQL sees a broken lane: {row}")
            except sc.OffsetOutOfRangeError:
                channel.send("DELETED")


class Tail:
    """What a consumer hands out, followed; begins anew where the consumer had to."""

    def __init__(self, consumer: sc.Consumer) -> None:
        self.consumer = consumer
        self._follower = Follower()
        self._resets = 0

    def follow(self, records: list[sc.Record]) -> None:
        """Checks the next records; those of `table` one by one, for some may be compacted."""
        if self.consumer.metrics.offset_resets != self._resets:
            self._resets = self.consumer.metrics.offset_resets
            self._follower.forget()
        for record in records:
            if record.topic == TABLE:
                if record.value is not None:
                    checked(record.value)
            else:
                self._follower.follow((record.topic, record.partition), record.value)


def tail(channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None) -> None:
    """A consumer that blocks for what is new in all topics that stay."""
    worker = Worker(channel, seed, bug)
    with opened(store_path, writer) as store:
        tail = Tail(store.consumer([PLAIN, TYPED, EVENTS, ORDERS, TABLE, COPIES, LEDGER], start="latest"))
        for _ in worker.rounds(0.02):
            tail.follow(tail.consumer.poll(200, 1000))


def tail_async(channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None) -> None:
    """Consumers in an event loop: one for topics that come and go, others for one each, closed and made anew."""
    worker = Worker(channel, seed, bug)

    async def read(store: sc.Store, topics: Any, rounds: int) -> None:
        async with store.consumer(topics, start="latest") as consumer:
            tail = Tail(consumer)
            for _ in range(rounds):
                tail.follow(await consumer.poll_async(100, 500))

    async def main(store: sc.Store) -> None:
        while not channel.is_told_to_stop():
            channel.send("BEGUN")
            waits = [read(store, re.compile(f"{SHORT}-.*"), 20), read(store, [PLAIN, f"{SHORT}-*"], 20)]
            waits += [read(store, name, worker.chance.randint(1, 20)) for name in (EVENTS, ORDERS, COPIES)]
            await asyncio.gather(*waits)
            worker._leak()

    with opened(store_path, writer) as store:
        asyncio.run(main(store))


# ---- what changes the store ---------------------------------------------------------------------------------------


def churn(channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None) -> None:
    """Makes topics, fills, reads and deletes them."""
    worker = Worker(channel, seed, bug)
    with opened(store_path, writer) as store:
        prefix = f"{SHORT}-{writer}-"
        for topic in store.topics():
            if topic.name.startswith(prefix):
                store.delete_topic(topic.name)
        alive: list[str] = []
        for n in worker.rounds(0.3):
            name = f"{prefix}{os.getpid()}-{n}"
            topic = store.create_topic(name, partitions=2, segment_bytes=1 << 16)
            follower = Follower()
            for first in range(0, 60, 20):
                topic.append([value_of(writer, i) for i in range(first, first + 20)], partition=n % 2)
            for record in topic.scan():
                follower.follow(name, record.value)
            if follower.records != 60:
                raise WrongLogError(f"{name} has {follower.records} records, not 60")
            alive.append(name)
            if len(alive) > 2:
                store.delete_topic(alive.pop(0))


def maintain(channel: Channel, store_path: str, acks: str, writer: int, seed: int, bug: str | None = None) -> None:
    """Does the background work all the time; some of it also without the lock for it. Says what failed."""
    worker = Worker(channel, seed, bug)
    with opened(store_path, writer) as store:
        for _ in worker.rounds(0.2):
            for run in store.maintain() or ():
                if run.error is not None:
                    raise WrongLogError(f"maintenance failed: {run}")
                for what, count in run.done.items():
                    if count:
                        channel.send("DONE", run.task, what, count)
            if bug == "deletes early":
                store.topic(PLAIN).delete_records("latest")
            if writer % 2:
                table = store.topic(TABLE)
                if worker.chance.random() < 0.1:
                    table.roll()
                for task in (table.compact, store.topic(PLAIN).consolidate):
                    with contextlib.suppress(sc.OffsetOutOfRangeError):
                        task()


ROLES: dict[str, Callable[..., None]] = {
    "lists": write_lists, "tables": write_tables, "producer": send_records, "transactions": write_transactions,
    "exact": copy_exactly_once, "audit": copy_at_least_once,
    "scan": scan, "sql": ask, "tail": tail, "asyncio": tail_async,
    "churn": churn, "maintenance": maintain,
}  # fmt: skip
WRITERS = ("lists", "tables", "producer", "transactions", "churn")
