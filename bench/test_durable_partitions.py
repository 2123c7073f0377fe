"""What does one durable batch to each of 100 partitions at once cost, against one raw fdatasync?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
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
THREADS = 16


def test_durable_partitions(contest: Callable[..., Contest], raw: RawLimits, folder: Path, size: Sizes) -> None:
    question = contest("one durable batch to each of 100 partitions", unit="")

    def measure() -> None:
        with sc.open(folder / "store") as store:
            topic = store.create_topic("clicks", partitions=PARTITIONS, durability="disk")
            one_call, many_calls, raw_one = [], [], []
            for _ in range(size.rounds + 1):
                spread = raw.run("spread", dir=folder, files=PARTITIONS, rounds=5)
                raw_one.append(spread["one_file"]["p50_us"])
                one_call.append(timed_us(lambda: append_everywhere(topic)))
                many_calls.append(timed_us(lambda: append_from_threads(topic)))
        report(question, one_call[1:], many_calls[1:], raw_one[1:], spread)

    question.once(measure)


def append_everywhere(topic: Any) -> None:
    """One call of append_table with a partition column."""
    count = PARTITIONS * RECORDS
    partition = pa.array([number // RECORDS for number in range(count)], pa.int32())
    topic.append_table(pa.table({"value": rows.array(count, 100), "partition": partition}))


def append_from_threads(topic: Any) -> None:
    values = rows.values(RECORDS, 100)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda number: topic.append(values, partition=number), range(PARTITIONS)))


def timed_us(work: Callable[[], None]) -> float:
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1000


def report(
    question: Contest, one_call: list[float], many_calls: list[float], raw_one: list[float], spread: dict[str, Any]
) -> None:
    question.fact("one raw fdatasync of 4 KiB", statistics.median(raw_one), "µs")
    question.fact("one call for 100 partitions", statistics.median(one_call), "µs")
    question.fact(f"100 calls from {THREADS} threads", statistics.median(many_calls), "µs")
    for name in ("one_by_one", "threads", "syncfs", "shared_file"):
        question.fact(f"raw, {name.replace('_', ' ')}", spread[name]["p50_us"], "µs")
    ratios = [ours / theirs for ours, theirs in zip(one_call, raw_one, strict=True)]
    later = "belongs to the shared journal, a later issue"
    question.at_most("≤ 5 × one raw fdatasync", statistics.median(ratios), 5, later=later)
