"""The paths that data takes through streamcore, each timed once, in a process of its own: what `bench.compare` runs.

It uses nothing of the package but its public interface, so that an older version can be asked the same. The answer is a
JSON object on one line: seconds of each path.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import streamcore as sc
from bench import rows

RECORDS = 1_000_000
BATCH = 1_000
SINGLE = 200_000
DURABLE = 300
QUERIES = 60


class Clock:
    """Seconds of each path, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def append(store: sc.Store, clock: Clock) -> None:
    """Lists, Arrow arrays, rows of a typed topic."""
    values = rows.values(RECORDS, 100)
    topic = store.create_topic("lists")
    with clock("append lists"):
        for first in range(0, RECORDS, BATCH):
            topic.append(values[first : first + BATCH])
    array = rows.array(RECORDS, 100)
    topic = store.create_topic("arrow")
    with clock("append Arrow"):
        for _ in range(4):
            for first in range(0, RECORDS, 50_000):
                topic.append(array.slice(first, 50_000))
    typed = rows.typed_table(RECORDS)
    topic = store.create_topic("typed", schema=rows.TYPED_SCHEMA)
    with clock("append typed"):
        for first in range(0, RECORDS, 50_000):
            topic.append(typed.slice(first, 50_000))


def append_durably(store: sc.Store, clock: Clock) -> None:
    topic = store.create_topic("durable", durability="disk")
    values = rows.values(10, 1024)
    with clock("append durably"):
        for _ in range(DURABLE):
            topic.append(values)


def read(store: sc.Store, clock: Clock) -> None:
    """Behind `append`, whose topics it reads."""
    for name in ("lists", "arrow", "typed"):
        with clock(f"first scan of {name}, verified"):
            count = sum(batch.num_rows for batch in store.topic(name).scan().batches())
        assert count in (RECORDS, 4 * RECORDS), count
    with clock("scan again, 40 times"):
        for _ in range(40):
            sum(batch.num_rows for batch in store.topic("arrow").scan().batches())
    with clock("iterate records"):
        assert sum(1 for _ in store.topic("lists").scan()) == RECORDS


def send(store: sc.Store, clock: Clock) -> None:
    store.create_topic("sent", partitions=4)
    values = rows.values(SINGLE, 100)
    with store.producer() as producer, clock("send one a call"):
        for number, value in enumerate(values):
            producer.send("sent", value, key=b"%d" % (number % 1000))
        producer.flush()


def consume(store: sc.Store, clock: Clock) -> None:
    """Behind `send`, whose topic it reads."""
    with store.consumer("sent", group="g", start="earliest") as consumer, clock("poll and commit"):
        count = 0
        while count < SINGLE:
            count += len(consumer.poll(0, 500))
            consumer.commit()


def transact(store: sc.Store, clock: Clock) -> None:
    topic = store.create_topic("moved")
    values = rows.values(10, 100)
    with clock("transactions"):
        for _ in range(400):
            with store.transaction("mover") as transaction:
                transaction.append(topic.name, values)


def query(store: sc.Store, clock: Clock) -> None:
    store.sql('select count(*), max("offset") from typed')
    with clock("SQL aggregate"):
        for _ in range(QUERIES):
            store.sql("select avg(value.magnitude), count(*) from typed where value.depth > 10")


def rewrite(store: sc.Store, clock: Clock) -> None:
    topic = store.create_topic("table", cleanup="compact", segment_bytes=4 << 20)
    values = rows.values(100_000, 100)
    for first in range(0, len(values), BATCH):
        topic.append(values[first : first + BATCH], keys=[b"%d" % (n % 5_000) for n in range(first, first + BATCH)])
    with clock("compact"):
        topic.compact()


def reopen(folder: Path, clock: Clock) -> None:
    with clock("open and close, 60 times"):
        for _ in range(60):
            with sc.open(folder) as store:
                len(store.topic("lists").partitions)


PATHS: list[Callable[[sc.Store, Clock], None]] = [append, append_durably, read, send, consume, transact, query, rewrite]


def main() -> None:
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="streamcore-bench-") as name:
        folder = Path(name) / "store"
        with sc.open(folder) as store:
            for path in PATHS:
                path(store, clock)
        reopen(folder, clock)
    json.dump(clock.seconds, sys.stdout)


if __name__ == "__main__":
    main()
