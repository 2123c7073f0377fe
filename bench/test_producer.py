"""How fast are records sent one a call, against confluent-kafka's produce with the real broker, LMDB and SQLite?"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

import streamcore as sc
from bench import rows
from bench.contest import Contest, Stopwatch
from bench.peers.kafka_broker import Broker
from bench.peers.record_log import record_logs
from bench.sizes import Sizes

SINGLE_PUTS_MAX = 100_000
REPEATS = 4  # what Kafka sends once takes a tenth of the time


@pytest.mark.parametrize("keyed", [False, True], ids=["no key", "keyed"])
@pytest.mark.parametrize("value_bytes", [100, 1024])
def test_send_one_a_call(
    contest: Callable[..., Contest], size: Sizes, kafka: Broker | str, value_bytes: int, keyed: bool
) -> None:
    kind = "keyed" if keyed else "no key"
    question = contest(f"producer.send, one record a call ({value_bytes} B, {kind})")
    values = rows.values(size.kafka_records if value_bytes == 100 else size.kafka_records // 4, value_bytes)
    keys = [b"%016d" % (number * 7919 % 10_007) for number in range(len(values))] if keyed else None
    question.enter("streamcore", sender(values, keys))
    question.enter("streamcore, with on_delivery", sender(values, keys, told=True))
    if not keyed:
        for name, put in single_putters(values[:SINGLE_PUTS_MAX]).items():
            question.enter(name, put)
    if isinstance(kafka, str):
        question.absent("confluent-kafka produce", kafka)
    else:
        question.enter("confluent-kafka produce", producer_of(kafka, values, keys))
    question.run(min(size.rounds, 3))
    question.faster("≥ 10 × confluent-kafka's produce", "streamcore", "confluent-kafka produce", 10)
    for name in question.samples:
        question.fact(f"CPU of a record, {name}", cpu_ns(question, name), "ns")
    question.note("CPU includes that of the broker. On a machine whose cores are taken it says more than the time.")
    question.note("The clock stops when the flush returns: everything is in the log, or acknowledged by the broker.")
    question.note(
        "streamcore has its default settings, idempotent; confluent-kafka has 20 ms of linger, 1 MiB, acks=1."
    )
    question.note("LMDB and SQLite make a transaction of each record, not synced.")


def cpu_ns(question: Contest, name: str) -> float:
    return statistics.median(sample.cpu_s / sample.amount * 1e9 for sample in question.samples[name])


def sender(values: list[bytes], keys: list[bytes] | None, told: bool = False) -> Callable[[Path, Stopwatch], float]:
    heard = 0

    def hear(error: Exception | None, delivery: sc.Delivery) -> None:
        nonlocal heard
        heard += 1

    def send_all(producer: sc.Producer) -> None:
        if told:
            for value in values:
                producer.send("clicks", value, on_delivery=hear)
        elif keys is None:
            for value in values:
                producer.send("clicks", value)
        else:
            for value, key in zip(values, keys, strict=True):
                producer.send("clicks", value, key)

    def run(folder: Path, watch: Stopwatch) -> float:
        with sc.open(folder / "store") as store:
            topic = store.create_topic("clicks")
            producer = store.producer()
            with watch:
                for _ in range(REPEATS):
                    send_all(producer)
                producer.flush()
            assert topic.partitions[0].end_offset == REPEATS * len(values)
            producer.close()
        return REPEATS * len(values)

    return run


def single_putters(values: list[bytes]) -> dict[str, Callable[[Path, Stopwatch], float]]:
    """LMDB and SQLite where they are installed, one record a transaction."""

    def putter(log_type: type) -> Callable[[Path, Stopwatch], float]:
        def run(folder: Path, watch: Stopwatch) -> float:
            log = log_type(folder, len(values))
            with watch:
                for number, value in enumerate(values):
                    log.append(number, [value])
            log.close()
            return len(values)

        return run

    logs, _ = record_logs()
    return {f"{name}, single puts": putter(logs[name]) for name in ("LMDB", "SQLite") if name in logs}


def producer_of(kafka: Broker, values: list[bytes], keys: list[bytes] | None) -> Callable[[Path, Stopwatch], float]:
    def run(_: Path, watch: Stopwatch) -> float:
        kafka.create_topic("send")
        broker_cpu_s = kafka.cpu_seconds()
        with watch:
            kafka.produce("send", values, keys)
        watch.add_cpu(kafka.cpu_seconds() - broker_cpu_s)
        kafka.delete_topic("send")
        return len(values)

    return run
