"""Everything that can be done to a store, and what must be there afterwards, however far it came.

An operation says what it begins and what it has done, as facts; `check_facts` compares a store with them. A fact that
was begun and not done holds whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

import streamcore as sc
from streamcore import groups
from streamcore.cli import main as command_line
from streamcore.transactions import finish_transactions, now_ms

Durability = Literal["os", "disk"]
PLAIN, WIDE, TYPED, PACKED, TABLE, SOURCE, OUT = "plain", "wide", "typed", "packed", "table", "source", "out"
GROUP, SOURCE_RECORDS = "readers", 40
SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])
_SEGMENT_BYTES = 64 << 10


def make_template(path: Path) -> None:
    """A store with topics of each kind, sealed segments, a group, and a transaction that has ended."""
    with sc.open(path, maintenance=False) as store:
        store.create_topic(PLAIN, segment_bytes=_SEGMENT_BYTES).append([b"plain %d" % n for n in range(20)])
        store.create_topic(WIDE, partitions=4).append([b"wide %d" % n for n in range(20)], keys=_keys(20))
        store.create_topic(TYPED, schema=SCHEMA).append_table(typed_rows("typed", 5))
        store.create_topic(PACKED, compression="zstd").append([b"packed %d" % n for n in range(50)])
        table = store.create_topic(TABLE, segment_bytes=_SEGMENT_BYTES, cleanup="compact", min_compaction_lag_ms=0)
        for version in range(3):
            for n in range(12):
                table.append([b"table %d %d" % (version, n)], keys=[b"%d" % n])
            table.roll()
        source = store.create_topic(SOURCE, partitions=2)
        source.append([b"source %d" % n for n in range(SOURCE_RECORDS)], keys=_keys(SOURCE_RECORDS))
        store.create_topic(OUT)
        with store.transaction("earlier") as transaction:
            transaction.append(OUT, [b"earlier"])
        with store.consumer(SOURCE, group=GROUP, instance_id="one") as consumer:
            consumer.poll(0, 1)
            consumer.commit()
    (path / "lines").write_bytes(b"".join(b"line %d\n" % n for n in range(10)))


def _keys(count: int) -> list[bytes]:
    return [b"key %d" % (n % 7) for n in range(count)]


def typed_rows(word: str, count: int) -> pa.Table:
    """Rows that are like no others."""
    return pa.table({"number": pa.array(range(count), pa.int64()), "text": [f"{word} {n}" for n in range(count)]})


# ---- facts -----------------------------------------------------------------------------------------------------------


class Facts:
    """What was begun and what was done, in one run of operations, whose records say `mark`.

    `tell` is called with each, so that others know when this process dies; `take` is how they do.
    """

    def __init__(self, mark: str = "", tell: Callable[[str, int, list[Any]], None] | None = None) -> None:
        self.mark = mark
        self.begun: list[list[Any]] = []
        self.done: set[int] = set()
        self._taken: dict[int, int] = {}
        self._tell = tell or (lambda word, number, what: None)

    def texts(self, word: str, count: int) -> list[str]:
        """Values that no other call appends."""
        return [f"{self.mark} {word} {n}" for n in range(count)]

    def take(self, word: str, number: int, what: list[Any]) -> None:
        """Takes over what another process has told, in the order of the processes' deaths."""
        if word == "BEGUN":
            self._taken[number] = len(self.begun)
            self.begun.append(what)
        else:
            self.done.add(self._taken[number])

    def next_process(self) -> None:
        """What is taken from now on is another process's."""
        self._taken = {}

    @contextlib.contextmanager
    def claim(self, kind: str, *what: Any) -> Iterator[None]:
        """What the body does, if it does not raise."""
        number = len(self.begun)
        self.begun.append([kind, *what])
        self._tell("BEGUN", number, [kind, *what])
        yield
        self.done.add(number)
        self._tell("DONE", number, [])

    def all(self) -> Iterator[tuple[bool, str, list[Any]]]:
        """Each fact: whether it was done, its kind, what it is about."""
        for number, (kind, *what) in enumerate(self.begun):
            yield number in self.done, kind, what


class Broken(AssertionError):
    """A promise was broken."""


def expect(holds: object, *why: object) -> None:
    """Raises Broken unless it holds."""
    if not holds:
        raise Broken(" ".join(map(str, why)))


def texts_of(topic: sc.Topic, isolation: Literal["committed", "uncommitted"] = "committed") -> list[list[str]]:
    """The values of each partition, as text."""
    found: list[list[str]] = [[] for _ in range(topic.partition_count)]
    for record in topic.scan(isolation=isolation):
        value = record.value
        text = value["text"] if isinstance(value, dict) else value
        found[record.partition].append(text.decode() if isinstance(text, bytes) else str(text))
    return found


def check_facts(path: Path, facts: Facts) -> None:
    """Opens the store and compares; what is in doubt is all there or not at all."""
    with sc.open(path, maintenance=False) as store:
        finish_transactions(store, now_ms() + 10**9)
        expect(store.verify() == [], store.verify())
        topics = {topic.name: topic for topic in store.topics()}
        _check_topics(topics, facts)
        _check_records(topics, facts)
        _check_table(topics[TABLE])
        _check_group(store, facts)
        _check_starts(topics, facts)
        check_goes_on(store)


def _check_topics(topics: dict[str, sc.Topic], facts: Facts) -> None:
    deleted = {what[0] for _, kind, what in facts.all() if kind == "delete"}
    for done, kind, what in facts.all():
        if kind == "create" and what[0] not in deleted:
            expect(what[0] in topics or not done, what[0], "was made and is not there")
        elif kind == "delete":
            expect(what[0] not in topics or not done, what[0], "was deleted and is there")
    retention = _possible(facts, "alter", PLAIN, None)
    expect(topics[PLAIN].config.retention_ms in retention, "retention_ms is", topics[PLAIN].config.retention_ms)
    partitions = _possible(facts, "widen", WIDE, 4)
    expect(topics[WIDE].partition_count in partitions, "there are", topics[WIDE].partition_count, "of", partitions)


def _possible(facts: Facts, kind: str, about: str, first: Any) -> set[Any]:
    """What may hold of something that was changed again and again: the last that was done, or one behind it."""
    found = {first}
    for done, of, what in facts.all():
        if of == kind and what[0] == about:
            found = {what[1]} if done else found | {what[1]}
    return found


def _check_records(topics: dict[str, sc.Topic], facts: Facts) -> None:
    """`append` facts are whole per partition, `transaction` facts over all of them, `aborted` ones are not there."""
    found = {name: texts_of(topic) for name, topic in topics.items()}
    counts = Counter((name, text) for name, parts in found.items() for texts in parts for text in texts)
    for done, kind, what in facts.all():
        if kind not in ("append", "sent", "transaction", "aborted"):
            continue
        name, texts = what
        seen = [counts[name, text] for text in texts]
        expect(max(seen) <= 1, "records of", kind, name, "are there twice")
        if done:
            expect(set(seen) == {kind != "aborted"}, "records of", kind, name, "are not as acknowledged:", seen)
        elif kind == "append":
            for part in found.get(name, []):
                here = [text for text in texts if text in set(part)]
                expect([text for text in part if text in set(texts)] == here, "the order in", name, "is another one")
            whole = name != WIDE
            expect(not whole or len(set(seen)) == 1, "an append to", name, "is there in part:", seen)
        elif kind == "transaction":
            expect(len(set(seen)) == 1, "a transaction is there in part:", seen)
    seen_in: dict[str, dict[str, bool]] = {}
    for done, kind, what in facts.all():
        if kind == "transaction" and not done:
            seen_in.setdefault(what[1][0], {})[what[0]] = counts[what[0], what[1][0]] == 1
    for text, places in seen_in.items():
        expect(len(set(places.values())) == 1, "the transaction of", text, "is seen in a part of its topics:", places)


def _check_table(table: sc.Topic) -> None:
    rows = table.table(columns=["key", "value"])
    latest = dict(zip(rows["key"].to_pylist(), rows["value"].to_pylist(), strict=True))
    expect(latest == {b"%d" % n: b"table 2 %d" % n for n in range(12)}, "the table is", latest)


def _check_group(store: sc.Store, facts: Facts) -> None:
    possible = _possible(facts, "commit", GROUP, 1)
    least, most = min(possible), max(possible)
    with groups.reading(store.catalog) as connection:
        total = 0 if connection is None else sum(map(int, groups.committed(connection, GROUP).values()))
    expect(least <= total <= most, "the group has committed", total, "records, between", least, "and", most)


def _check_starts(topics: dict[str, sc.Topic], facts: Facts) -> None:
    found = topics[PLAIN].partitions[0].start_offset
    expect(found in _possible(facts, "start", PLAIN, 0), PLAIN, "begins at", found)


def check_goes_on(store: sc.Store) -> None:
    """What was done before is in nobody's way, when the transactions are finished that found no room for their ends."""
    finish_transactions(store, now_ms() + 10**9)
    mark = os.urandom(4).hex()
    for name in (PLAIN, WIDE, OUT):
        store.topic(name).append([f"on {mark}".encode()], partition=0, durability="disk")
        expect(f"on {mark}" in texts_of(store.topic(name))[0], "an append to", name, "is not seen")
    store.create_topic(f"on-{mark}").append([b"x"])
    with store.transaction("on") as transaction:
        transaction.append(OUT, [f"both {mark}".encode()])
        transaction.append(WIDE, [f"both {mark}".encode()], partition=1)
    expect(f"both {mark}" in texts_of(store.topic(OUT))[0], "a transaction is not seen")


# ---- operations ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Operation:
    """A name, and what it does. `opens`: it opens the store itself; else it is handed one that is open."""

    name: str
    run: Callable[[Any, Facts], None]
    opens: bool = False


def _append(topic: sc.Topic, word: str, count: int, facts: Facts, **how: Any) -> None:
    texts = facts.texts(word, count)
    with facts.claim("append", topic.name, texts):
        topic.append([text.encode() for text in texts], **how)


def open_and_read(path: Path, facts: Facts) -> None:
    with sc.open(path, maintenance=False) as store:
        expect(len(texts_of(store.topic(PLAIN))[0]) >= 13, "records are missing")
        _append(store.topic(PLAIN), "opened", 3, facts)


def open_for_reading(path: Path, facts: Facts) -> None:
    with sc.open(path, "r") as store:
        expect(len(texts_of(store.topic(PLAIN))[0]) >= 13, "records are missing")
        expect(store.topic(WIDE).scan().count() >= 20, "records are missing")
        expect(len(store.topic(TABLE).segments()) > 2, "segments are missing")


def make_a_store(path: Path, facts: Facts) -> None:
    with sc.open(path / "another", maintenance=False) as store:
        store.create_topic(f"first{facts.mark}").append([b"x"])


def create_topic(store: sc.Store, facts: Facts) -> None:
    with facts.claim("create", f"made{facts.mark}"):
        store.create_topic(f"made{facts.mark}", partitions=3)
    with facts.claim("create", f"made-typed{facts.mark}"):
        store.create_topic(f"made-typed{facts.mark}", schema=SCHEMA).append_table(typed_rows("made", 3))


def alter_topics(store: sc.Store, facts: Facts) -> None:
    plain, wide = store.topic(PLAIN), store.topic(WIDE)
    retention_ms = (plain.config.retention_ms or 10**12) + 1
    with facts.claim("alter", PLAIN, retention_ms):
        plain.alter(retention_ms=retention_ms)
    _append(plain, "altered", 3, facts)
    partitions = wide.partition_count + 1
    with facts.claim("widen", WIDE, partitions):
        wide.add_partitions(partitions)
    wide.append([b"x"], partition=partitions - 1)


def delete_topic(store: sc.Store, facts: Facts) -> None:
    name = f"doomed{facts.mark}"
    with facts.claim("create", name):
        store.create_topic(name, partitions=2).append([b"x"])
    with facts.claim("delete", name):
        store.delete_topic(name)


def append_small(store: sc.Store, facts: Facts) -> None:
    for number in range(5):
        _append(store.topic(PLAIN), f"small {number}", 3, facts)
    _append(store.topic(WIDE), "small keys", 20, facts, keys=_keys(20))
    _append(store.topic(PACKED), "small packed", 20, facts)


def append_durable(store: sc.Store, facts: Facts) -> None:
    for number in range(2):
        _append(store.topic(PLAIN), f"durable {number}", 3, facts, durability="disk")
    for number in range(3):
        _append(store.topic(WIDE), f"durable keys {number}", 20, facts, keys=_keys(20), durability="disk")


def append_large(store: sc.Store, facts: Facts) -> None:
    texts = [text.ljust(500, "x") for text in facts.texts("large", 400)]
    with facts.claim("append", PLAIN, texts):
        store.topic(PLAIN).append_table(pa.table({"value": pa.array([text.encode() for text in texts], pa.binary())}))
    rows = typed_rows(f"{facts.mark} large", 50)
    with facts.claim("append", TYPED, rows["text"].to_pylist()):
        store.topic(TYPED).append_table(rows)


def flush(store: sc.Store, facts: Facts) -> None:
    _append(store.topic(PLAIN), "flushed", 3, facts)
    _append(store.topic(WIDE), "flushed keys", 20, facts, keys=_keys(20))
    store.topic(PLAIN).flush()
    store.flush()


def roll(store: sc.Store, facts: Facts) -> None:
    store.topic(PLAIN).roll()
    _append(store.topic(PLAIN), "rolled", 3, facts)


def close(path: Path, facts: Facts) -> None:
    store = sc.open(path, maintenance=False)
    try:
        _append(store.topic(PLAIN), "closed", 3, facts)
        _append(store.topic(WIDE), "closed keys", 20, facts, keys=_keys(20), durability="disk")
    finally:
        store.close()


def produce(store: sc.Store, facts: Facts) -> None:
    for durability in ("os", "disk"):
        with store.producer(linger_ms=1, durability=durability, delivery_timeout_ms=150) as producer:
            texts = facts.texts(f"sent {durability}", 30)
            with facts.claim("sent", WIDE, texts):
                for n, text in enumerate(texts):
                    producer.send(WIDE, text.encode(), key=b"%d" % (n % 5))
                producer.flush()


def transact(store: sc.Store, facts: Facts) -> None:
    for durability in ("os", "disk"):
        texts = facts.texts(f"transacted {durability}", 4)
        with store.consumer(SOURCE, group=GROUP, instance_id="one") as consumer:
            consumer.poll(0, 3)
            total = sum(consumer.position(SOURCE, partition) for partition in range(2))
            with (
                facts.claim("transaction", OUT, texts),
                facts.claim("transaction", WIDE, texts),
                facts.claim("commit", GROUP, total),
                store.transaction("pipe", durability=durability) as transaction,
            ):
                transaction.append(OUT, [text.encode() for text in texts])
                transaction.append(WIDE, [text.encode() for text in texts], keys=_keys(4))
                transaction.commit_offsets(consumer)


def abort(store: sc.Store, facts: Facts) -> None:
    texts = facts.texts("aborted", 4)
    with facts.claim("aborted", OUT, texts), facts.claim("aborted", WIDE, texts):
        transaction = store.transaction("pipe")
        transaction.append(OUT, [text.encode() for text in texts])
        transaction.append(WIDE, [text.encode() for text in texts], keys=_keys(4))
        transaction.abort()


def produce_transactions(store: sc.Store, facts: Facts) -> None:
    texts = facts.texts("sent whole", 10)
    with store.producer(transactional_id="sender", linger_ms=1, delivery_timeout_ms=150) as producer:
        producer.begin_transaction()
        with facts.claim("transaction", OUT, texts), facts.claim("transaction", WIDE, texts):
            for n, text in enumerate(texts):
                producer.send(OUT, text.encode())
                producer.send(WIDE, text.encode(), key=b"%d" % n)
            producer.commit_transaction()


def consume(store: sc.Store, facts: Facts) -> None:
    with store.consumer([SOURCE, PLAIN]) as consumer:
        seen: list[Any] = []
        while len(seen) < SOURCE_RECORDS + 20:
            records = consumer.poll(2000, 25)
            expect(records, "records are missing behind", len(seen))
            seen += records
    with store.consumer(SOURCE) as consumer:
        expect(consumer.poll_arrow(2000).num_rows > 0, "there is no table")


def commit(store: sc.Store, facts: Facts) -> None:
    with store.consumer(SOURCE, group=GROUP, instance_id="one") as consumer:
        for _ in range(2):
            consumer.poll(0, 5)
            total = sum(consumer.position(SOURCE, partition) for partition in range(2))
            with facts.claim("commit", GROUP, total):
                consumer.commit()
    store.groups()
    store.group(GROUP).members()


def process(store: sc.Store, facts: Facts) -> None:
    def handle(record: sc.Record) -> None:
        if record.offset % 4 == 3:
            raise ValueError("not this one")

    for transactional_id in (None, "dead"):
        with store.consumer(SOURCE, group=GROUP, instance_id="one") as consumer:
            with facts.claim("commit", GROUP, SOURCE_RECORDS):
                consumer.process(handle, retries=0, dead_letter="dead", transactional_id=transactional_id, timeout_ms=0)


def delete_records(store: sc.Store, facts: Facts) -> None:
    with facts.claim("start", PLAIN, 7):
        store.topic(PLAIN).delete_records(7)


def compact(store: sc.Store, facts: Facts) -> None:
    store.topic(TABLE).compact()


def consolidate(store: sc.Store, facts: Facts) -> None:
    store.topic(TABLE).consolidate()


def maintain(store: sc.Store, facts: Facts) -> None:
    for run in store.maintain() or []:
        if run.error is not None:
            raise sc.StorageError(0, f"in the result: {run.error}", str(store.path))


def verify(store: sc.Store, facts: Facts) -> None:
    problems = store.verify()
    if problems:  # what a failing call hides is a problem, too: it must be none of the bytes
        text = problems[0].message
        expect("checksum" not in text and "missing" not in text and "damage" not in text, problems)
        raise sc.StorageError(0, f"in the result: {text}", problems[0].path)
    list(store.digests())


def look(store: sc.Store, facts: Facts) -> None:
    store.stats()
    table = store.topic(TABLE)
    expect(len(table.segments()) > 2, "segments are missing")
    found = table.latest(b"3")
    expect(found is not None and found.value == b"table 2 3", "the latest is", found)
    expect(table.table().num_rows == 12, "the table has another size")
    expect(store.topic(TYPED).scan(columns=["value"]).to_arrow().num_rows >= 5, "rows are missing")
    expect(len(texts_of(store.topic(PACKED))[0]) >= 50, "records are missing")


def run_commands(path: Path, facts: Facts) -> None:
    for arguments in (
        ["ingest", str(path / "lines"), "--topic", "ingested"],
        ["topic", "list"],
        ["topic", "describe", WIDE],
        ["tail", PLAIN, "-n", "3"],
        ["groups", "describe", GROUP],
        ["stats"],
        ["maintain"],
        ["verify"],
    ):
        _command(path, arguments)


def _command(path: Path, arguments: list[str]) -> None:
    """One command; its one line of error as an exception."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command_line(["--store", str(path), "--output", "json", *arguments])
        except SystemExit as ended:
            status = ended.code or 0
    if status:
        err.seek(0)
        text = err.read()
        expect("Traceback" not in text and "sqlite3" not in text, arguments, "says", text)
        expect("STREAMCORE_TRACEBACK" not in text, arguments, "does not know what happened:", text)
        raise sc.StorageError(0, f"{arguments[0]} said: {text[-300:]}", str(path))


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("opening a store", open_and_read, opens=True),
        Operation("opening it for reading", open_for_reading, opens=True),
        Operation("making a store", make_a_store, opens=True),
        Operation("making topics", create_topic),
        Operation("altering topics", alter_topics),
        Operation("deleting a topic", delete_topic),
        Operation("small appends", append_small),
        Operation("durable appends", append_durable),
        Operation("large appends", append_large),
        Operation("flushing", flush),
        Operation("rolling", roll),
        Operation("closing", close, opens=True),
        Operation("producing", produce),
        Operation("transactions", transact),
        Operation("an aborted transaction", abort),
        Operation("producing in transactions", produce_transactions),
        Operation("consuming", consume),
        Operation("committing", commit),
        Operation("processing", process),
        Operation("deleting records", delete_records),
        Operation("compaction", compact),
        Operation("consolidation", consolidate),
        Operation("maintenance", maintain),
        Operation("verifying", verify),
        Operation("looking", look),
        Operation("the command line", run_commands, opens=True),
    )
}
