"""How do rates change with the batch size, the number of partitions and the number of threads?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import streamcore as sc
from bench import rows
from bench.contest import Contest, Stopwatch, allocated_bytes, run_one
from bench.peers.record_log import RecordLog, record_logs
from bench.sizes import Sizes

BATCH_SIZES = (1, 10, 100, 1_000, 10_000, 100_000)
TABLE_ROWS = 64 << 10
TAKEN = 128 << 20  # bytes of memory taken from the host before the clock runs


def test_rate_against_batch_size(contest: Callable[..., Contest], folder: Path, size: Sizes) -> None:
    question = contest("rates against the batch size (100 B)", unit="")
    values = rows.values(max(size.records, 100_000), 100)
    logs, _ = record_logs()
    shown = [name for name in ("streamcore", "LMDB", "SQLite") if name in logs]

    def measure() -> None:
        curve = question.curve("batch_size", "Append rate against batch size", "records per call", "records/s", "xy")
        scans = question.curve("batch_size_scan", "Scan rate of the log it left", "records per call", "records/s", "xy")
        for batch in BATCH_SIZES:
            count = min(len(values), max(5_000, batch * 2_000)) // batch * batch
            for name in shown:
                curve.add(name, batch, run_one(appender(logs[name], values[:count], batch), folder, TAKEN).rate)
            scans.add("streamcore", batch, run_one(scanner(values[:count], batch), folder, TAKEN).rate)

    question.once(measure)


def appender(log_type: type[RecordLog], values: list[bytes], batch: int) -> Callable[[Path, Stopwatch], float]:
    batches = [values[first : first + batch] for first in range(0, len(values), batch)]

    def run(folder: Path, watch: Stopwatch) -> float:
        log = log_type(folder, len(values))
        first = 0
        with watch:
            for one in batches:
                log.append(first, one)
                first += len(one)
        log.close()
        return first

    return run


def scanner(values: list[bytes], batch: int) -> Callable[[Path, Stopwatch], float]:
    """Scans twice, so that checksums are verified before the clock runs, and reads every value's length."""

    def run(folder: Path, watch: Stopwatch) -> float:
        with sc.open(folder / "store") as store:
            topic = store.create_topic("clicks")
            for first in range(0, len(values), batch):
                topic.append(values[first : first + batch])
            topic.scan().to_arrow()
            with watch:
                table = topic.scan().to_arrow()
                pc.sum(pc.binary_length(table.column("value")))
            return float(table.num_rows)

    return run


def test_rate_against_partitions(contest: Callable[..., Contest], folder: Path, size: Sizes) -> None:
    question = contest("rates against the number of partitions (100 B)", unit="")

    def measure() -> None:
        curve = question.curve("partitions", "Rates against the number of partitions", "partitions", "records/s", "xy")
        for partitions in size.partitions:
            grow_partitions(question, curve.add, folder / str(partitions), partitions)

    question.once(measure)
    question.note(f"A table of {TABLE_ROWS:,} rows is spread by a partition column, four times; then all is scanned.")


def grow_partitions(question: Contest, add: Callable[[str, float, float], None], path: Path, partitions: int) -> None:
    value = rows.array(TABLE_ROWS, 100)
    partition = pa.array([row * partitions // TABLE_ROWS for row in range(TABLE_ROWS)], pa.int32())
    table = pa.table({"value": value, "partition": partition})
    with sc.open(path) as store:
        start = time.perf_counter()
        topic = store.create_topic("clicks", partitions=partitions)
        question.fact(f"making {partitions:,} partitions", 1000 * (time.perf_counter() - start), "ms")
        topic.append_table(table)
        start = time.perf_counter()
        for _ in range(4):
            topic.append_table(table)
        add("append one table over all", partitions, 4 * TABLE_ROWS / (time.perf_counter() - start))
        topic.scan().to_arrow()
        start = time.perf_counter()
        found = topic.scan().to_arrow()
        pc.sum(pc.binary_length(found.column("value")))
        add("scan all", partitions, found.num_rows / (time.perf_counter() - start))
        question.fact(f"on disk with {partitions:,} partitions in use", allocated_bytes(path) / 1e6, "MB")


def test_two_threads(contest: Callable[..., Contest], size: Sizes) -> None:
    question = contest("two threads on two partitions against one")
    array = rows.array(TABLE_ROWS, 100)
    lists = [rows.values(1_000, 100, skip=1_000 * number) for number in range(20)]
    for kind, work in (
        ("Arrow batches", arrow_work(array, size.batches)),
        ("lists", list_work(lists, size.records // 2_000)),
    ):
        for threads in (1, 2):
            question.enter(f"{kind}, {threads} thread{'s' * (threads > 1)}", threaded(work, threads))
    question.run(size.rounds, memory_bytes=4 * size.batches * array.nbytes)
    question.faster(
        "Arrow batches: two threads ≥ 1.7 × one", "Arrow batches, 2 threads", "Arrow batches, 1 thread", 1.7
    )
    question.faster("lists of bytes: two threads ≥ 1.7 × one", "lists, 2 threads", "lists, 1 thread", 1.7)
    question.note(
        "Lists hold the GIL while their objects are looked at; that part cannot overlap in a Python with a GIL."
    )


def arrow_work(array: pa.BinaryArray, batches: int) -> Callable[[Any, int], int]:
    def work(topic: Any, partition: int) -> int:
        for _ in range(batches):
            topic.append(array, partition=partition)
        return batches * len(array)

    return work


def list_work(lists: list[list[bytes]], turns: int) -> Callable[[Any, int], int]:
    def work(topic: Any, partition: int) -> int:
        for turn in range(turns):
            topic.append(lists[turn % len(lists)], partition=partition)
        return turns * len(lists[0])

    return work


def threaded(work: Callable[[Any, int], int], count: int) -> Callable[[Path, Stopwatch], float]:
    def run(folder: Path, watch: Stopwatch) -> float:
        done = [0] * count

        def thread(number: int) -> None:
            done[number] = work(topic, number)

        with sc.open(folder / "store") as store:
            topic = store.create_topic("clicks", partitions=2)
            threads = [threading.Thread(target=thread, args=(number,)) for number in range(count)]
            with watch:
                for one in threads:
                    one.start()
                for one in threads:
                    one.join()
        return sum(done)

    return run
