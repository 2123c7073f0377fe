"""What does one durable batch to each of 100 partitions at once cost, against one raw fdatasync?"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

import streamcore as sc
from bench import rows
from bench.contest import Contest
from bench.raw_limits import RawLimits
from bench.sizes import Sizes

PARTITIONS = 100
RECORDS = 24  # per partition, about 4 KiB
BLOCK = bytes(4096)
CALLS = 20  # of each kind a round


def test_durable_partitions(contest: Callable[..., Contest], raw: RawLimits, folder: Path, size: Sizes) -> None:
    question = contest("one durable batch to each of 100 partitions", unit="")

    def measure() -> None:
        with (
            sc.open(folder / "store") as store,
            raw_file(folder / "raw", size.rounds) as sync_raw,
            ThreadPoolExecutor(PARTITIONS) as pool,
        ):
            topic = store.create_topic("clicks", partitions=PARTITIONS, durability="disk")
            table, values = table_for_all(), rows.values(RECORDS, 100)
            found: dict[str, list[float]] = {"raw": [], "one call": [], "threads": []}
            for _ in range(size.rounds + 1):  # the first one makes the files
                taken = [(timed_us(sync_raw), timed_us(topic.append_table, table)) for _ in range(CALLS)]
                found["raw"].append(statistics.median(one for one, _ in taken))
                found["one call"].append(statistics.median(one for _, one in taken))
                threads = [timed_us(append_from_threads, topic, values, pool) for _ in range(CALLS // 4)]
                found["threads"].append(statistics.median(threads))
        spread = raw.run("spread", dir=folder, files=PARTITIONS, rounds=15)
        report(question, {name: figures[1:] for name, figures in found.items()}, spread)

    question.once(measure)


@contextlib.contextmanager
def raw_file(path: Path, rounds: int) -> Iterator[Callable[[], None]]:
    """A write of 4 KiB into reserved space and one fdatasync, again and again."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, len(BLOCK) * CALLS * (rounds + 1))
    os.fsync(descriptor)
    places = itertools.count(0, len(BLOCK))

    def write_and_sync() -> None:
        os.pwrite(descriptor, BLOCK, next(places))
        os.fdatasync(descriptor)

    try:
        yield write_and_sync
    finally:
        os.close(descriptor)


def table_for_all() -> pa.Table:
    """The records of each partition, one partition after another."""
    count = PARTITIONS * RECORDS
    partition = pa.array([number // RECORDS for number in range(count)], pa.int32())
    return pa.table({"value": rows.array(count, 100), "partition": partition})


def append_from_threads(topic: Any, values: list[bytes], pool: ThreadPoolExecutor) -> None:
    """A call of append for each partition, each from a thread of its own."""
    list(pool.map(lambda number: topic.append(values, partition=number), range(PARTITIONS)))


def timed_us(work: Callable[..., None], *arguments: Any) -> float:
    start = time.perf_counter_ns()
    work(*arguments)
    return (time.perf_counter_ns() - start) / 1000


def report(question: Contest, found: dict[str, list[float]], spread: dict[str, Any]) -> None:
    question.fact("one raw fdatasync of 4 KiB", statistics.median(found["raw"]), "µs")
    question.fact("one call for 100 partitions", statistics.median(found["one call"]), "µs")
    question.fact("100 calls from as many threads", statistics.median(found["threads"]), "µs")
    for name in ("one_by_one", "threads", "syncfs", "shared_file", "journal"):
        question.fact(f"raw, {name.replace('_', ' ')}", spread[name]["p50_us"], "µs")
    for what, name in (("one call", "one call"), ("100 threads", "threads")):
        ratios = [ours / theirs for ours, theirs in zip(found[name], found["raw"], strict=True)]
        question.at_most(f"{what} ≤ 5 × one raw fdatasync", statistics.median(ratios), 5)
    question.note(
        "Raw, journal: the same bytes in one piece into a file whose space was written before, and one fdatasync."
    )
