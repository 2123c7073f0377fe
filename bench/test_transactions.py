"""How many transactions and offset commits a second, durable and not, against Kafka's?"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import streamcore as sc
from bench import rows
from bench.contest import Contest, Stopwatch
from bench.peers.kafka_broker import Broker
from bench.peers.kafka_clients import DEADLINE_S, committer, transactional_producer
from bench.raw_limits import RawLimits
from bench.sizes import Sizes

RECORDS = 10  # of 100 B to each partition in a transaction
SYNCS = "raw fdatasync of 4 KiB"
NAMES = (f"bench-{number}" for number in itertools.count())
Durability = Literal["os", "disk"]
KINDS: dict[Durability, str] = {"os": "not durable", "disk": "durable"}


def test_transactions(
    contest: Callable[..., Contest], raw: RawLimits, folder: Path, size: Sizes, kafka: Broker | str
) -> None:
    question = contest("transactions of 10 records to each partition", unit="transactions/s")
    count = size.durable_appends
    for partitions in (1, 4):
        for durability, kind in KINDS.items():
            question.enter(f"{kind}, {over(partitions)}", transactor(count, partitions, durability))
        if not isinstance(kafka, str):
            question.enter(f"confluent-kafka, {over(partitions)}", kafka_transactor(kafka, count, partitions))
    question.enter("not durable, 1 partition and a consumer's offsets", transactor(count, 1, "os", consume=True))
    if isinstance(kafka, str):
        question.absent("confluent-kafka", kafka)
    question.enter(SYNCS, syncs(raw, folder, count))
    question.run(min(size.rounds, 5))
    for partitions in (1, 4):
        report(question, over(partitions))
    question.note("Kafka's acks=all of one broker is not a sync: it is to be compared with what is not durable.")


def test_offset_commits(
    contest: Callable[..., Contest], raw: RawLimits, folder: Path, size: Sizes, kafka: Broker | str
) -> None:
    question = contest("commits of a consumer's offsets, one after another", unit="commits/s")
    count = size.durable_appends
    for durability, kind in KINDS.items():
        question.enter(f"{kind}, 1 partition", own_committer(count, durability))
    if isinstance(kafka, str):
        question.absent("confluent-kafka", kafka)
    else:
        question.enter("confluent-kafka, 1 partition", kafka_committer(kafka, count))
    question.enter(SYNCS, syncs(raw, folder, count))
    question.run(min(size.rounds, 5))
    report(question, "1 partition")
    question.note("Each commit is one call that returns when the offset is stored.")


def over(partitions: int) -> str:
    return f"{partitions} partition{'s' * (partitions > 1)}"


def report(question: Contest, over_partitions: str) -> None:
    """Ratios of this run; and how many syncs a durable one takes as long as."""
    peer = f"confluent-kafka, {over_partitions}"
    for kind in KINDS.values():
        ours = f"{kind}, {over_partitions}"
        if peer in question.samples:
            question.fact(f"{ours}, against confluent-kafka", statistics.median(question.ratios(ours, peer)), "×")
        question.fact(f"{ours}: time of one", 1e6 / question.median(ours), "µs")
    question.note("The raw syncs are 20 in a row: with other work on the drive their ratios say little.")
    durable = statistics.median(question.ratios(SYNCS, f"durable, {over_partitions}"))
    question.fact(f"durable, {over_partitions}: time of one", durable, "raw fdatasyncs")


def transactor(
    count: int, partitions: int, durability: Durability, *, consume: bool = False
) -> Callable[[Path, Stopwatch], float]:
    values = rows.values(RECORDS, 100)

    def run(folder: Path, watch: Stopwatch) -> float:
        with sc.open(folder / "store", durability=durability) as store:
            source = store.create_topic("source")
            topic = store.create_topic("clicks", partitions=partitions)
            source.append(rows.values(count + 1, 100))
            with store.consumer("source", group="etl") as consumer:

                def transact() -> None:
                    with store.transaction("bench") as transaction:
                        for partition in range(partitions):
                            transaction.append(topic, values, partition=partition)
                        if consume:
                            consumer.poll(timeout_ms=1_000, max_records=1)
                            transaction.commit_offsets(consumer)

                transact()
                with watch:
                    for _ in range(count):
                        transact()
            assert topic.scan().count() == (count + 1) * partitions * RECORDS
        return count

    return run


def kafka_transactor(kafka: Broker, count: int, partitions: int) -> Callable[[Path, Stopwatch], float]:
    values = rows.values(RECORDS, 100)

    def run(_: Path, watch: Stopwatch) -> float:
        name = next(NAMES)
        kafka.create_topic(name, partitions)
        producer = transactional_producer(kafka.address, name)

        def transact() -> None:
            producer.begin_transaction()
            for partition in range(partitions):
                for value in values:
                    producer.produce(name, value, partition=partition)
            producer.commit_transaction(DEADLINE_S)

        transact()
        broker_cpu_s = kafka.cpu_seconds()
        with watch:
            for _turn in range(count):
                transact()
        watch.add_cpu(kafka.cpu_seconds() - broker_cpu_s)
        kafka.delete_topic(name)
        return count

    return run


def own_committer(count: int, durability: Durability) -> Callable[[Path, Stopwatch], float]:
    def run(folder: Path, watch: Stopwatch) -> float:
        with sc.open(folder / "store", durability=durability) as store:
            store.create_topic("clicks").append(rows.values(count + 1, 100))
            with store.consumer("clicks", group="bench") as consumer:
                consumer.poll(max_records=1)
                with watch:
                    for offset in range(1, count + 1):
                        consumer.commit({("clicks", 0): offset})
            assert list(store.group("bench").offsets().values()) == [count]
        return count

    return run


def kafka_committer(kafka: Broker, count: int) -> Callable[[Path, Stopwatch], float]:
    def run(_: Path, watch: Stopwatch) -> float:
        name = next(NAMES)
        kafka.create_topic(name)
        kafka.produce(name, rows.values(count + 1, 100))
        commit, close = committer(kafka.address, name, name)
        commit(0)
        broker_cpu_s = kafka.cpu_seconds()
        with watch:
            for offset in range(1, count + 1):
                commit(offset)
        watch.add_cpu(kafka.cpu_seconds() - broker_cpu_s)
        close()
        kafka.delete_topic(name)
        return count

    return run


def syncs(raw: RawLimits, folder: Path, count: int) -> Callable[[Path, Stopwatch], float]:
    """As many syncs as there are transactions, at the median's pace."""

    def run(_: Path, watch: Stopwatch) -> float:
        took_us = raw.run("spread", dir=folder, files=1, rounds=20)["one_file"]["p50_us"]
        watch.measured_elsewhere(count * took_us / 1e6, 0.0)
        return count

    return run
