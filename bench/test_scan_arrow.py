"""How fast is a cached log a table, against pyarrow's mapped IPC file of the same rows, and a Kafka consumer?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

import streamcore as sc
from bench import rows
from bench.contest import Contest, Stopwatch
from bench.peers import arrow_ipc
from bench.peers.kafka_broker import Broker
from bench.sizes import Sizes

BATCH_ROWS = 64 << 10
REPEATS = 20  # opening takes microseconds a batch


def test_open_as_table(contest: Callable[..., Contest], folder: Path, size: Sizes) -> None:
    question = contest("scan to Arrow, cached, checksums verified before (100 B)")
    store, topic = filled_store(folder / "store", size.batches)
    table = topic.scan().to_arrow()
    arrow_ipc.write_file(folder / "file.arrow", table)
    assert arrow_ipc.open_mapped(folder / "file.arrow").equals(table)
    readers: dict[str, Callable[[], pa.Table]] = {
        "streamcore": lambda: topic.scan().to_arrow(),
        "pyarrow mapped file": lambda: arrow_ipc.open_mapped(folder / "file.arrow"),
    }
    for name, read in readers.items():
        question.enter(name, opener(read, table.num_rows))
        question.enter(f"{name}, every value's length read", toucher(read))
    question.run(size.rounds)
    question.faster("≥ 0.9 × pyarrow opening a mapped IPC file", "streamcore", "pyarrow mapped file", 0.9)
    touched = ("streamcore, every value's length read", "pyarrow mapped file, every value's length read")
    question.faster("≥ 0.9 × the same, every value's length read", *touched, 0.9)
    question.note(f"{table.num_rows:,} rows in {table.column(0).num_chunks} batches; opening alone reads no row.")
    store.close()


def test_scan_against_kafka(contest: Callable[..., Contest], folder: Path, size: Sizes, kafka: Broker | str) -> None:
    question = contest("scan to Arrow against a Kafka consumer (100 B)")
    values = rows.values(size.kafka_records, 100)
    store = sc.open(folder / "store")
    topic = store.create_topic("clicks")
    for first in range(0, len(values), 1_000):
        topic.append(values[first : first + 1_000])
    question.enter("streamcore, every value's length read", toucher(lambda: topic.scan().to_arrow()))
    if isinstance(kafka, str):
        question.absent("confluent-kafka", kafka)
        question.run(size.rounds)
    else:
        enter_kafka(question, kafka, values)
        question.run(min(size.rounds, 3))
        kafka.delete_topic("scan")
        question.fact("memory of the broker", kafka.rss_mb(), "MB")
        question.faster(
            "≥ 150 × confluent-kafka's consume", "streamcore, every value's length read", "confluent-kafka consume", 150
        )
    question.note("The log was written 1,000 records a call; Kafka's batches are bounded by 20 ms of linger and 1 MiB.")
    store.close()


def enter_kafka(question: Contest, kafka: Broker, values: list[bytes]) -> None:
    kafka.create_topic("scan")
    kafka.produce("scan", values)

    def consume(_: Path, watch: Stopwatch) -> float:
        with watch:
            pass
        cpu_before = Stopwatch()
        with cpu_before:
            count, seconds, broker_cpu_s = kafka.consume("scan", len(values))
        watch.measured_elsewhere(seconds, cpu_before.cpu_s + broker_cpu_s)
        return count

    def produce(_: Path, watch: Stopwatch) -> float:
        kafka.create_topic("produce")
        broker_cpu_s = kafka.cpu_seconds()
        with watch:
            kafka.produce("produce", values)
        watch.add_cpu(kafka.cpu_seconds() - broker_cpu_s)
        kafka.delete_topic("produce")
        return len(values)

    question.enter("confluent-kafka consume", consume)
    question.enter("confluent-kafka produce", produce)


def filled_store(path: Path, batches: int) -> tuple[sc.Store, sc.Topic]:
    store = sc.open(path)
    topic = store.create_topic("clicks")
    for number in range(batches):
        topic.append(rows.array(BATCH_ROWS, 100, skip=number * BATCH_ROWS))
    return store, topic


def opener(read: Callable[[], pa.Table], row_count: int) -> Callable[[Path, Stopwatch], float]:
    def run(folder: Path, watch: Stopwatch) -> float:
        with watch:
            for _ in range(REPEATS):
                table = read()
        assert table.num_rows == row_count
        return REPEATS * row_count

    return run


def toucher(read: Callable[[], pa.Table]) -> Callable[[Path, Stopwatch], float]:
    def run(_: Path, watch: Stopwatch) -> float:
        with watch:
            table = read()
            total = pc.sum(pc.binary_length(table.column("value"))).as_py()
        assert total >= table.num_rows
        return float(table.num_rows)

    return run
