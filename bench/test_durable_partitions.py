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
CALLS = 5  # of each kind a round, in turn; the raw sync is measured as often


def test_durable_partitions(contest: Callable[..., Contest], raw: RawLimits, folder: Path, size: Sizes) -> None:
    question = contest("one durable batch to each of 100 partitions", unit="")

    def measure() -> None:
        with sc.open(folder / "store") as store:
            topic = store.create_topic("clicks", partitions=PARTITIONS, durability="disk")
            table, values = table_for_all(), rows.values(RECORDS, 100)
            one_call, many_calls, raw_one = [], [], []
            with ThreadPoolExecutor(PARTITIONS) as pool:
                for _ in range(size.rounds + 1):  # the first one makes the files
                    spread = raw.run("spread", dir=folder, files=PARTITIONS, rounds=CALLS)
                    raw_one.append(spread["one_file"]["p50_us"])
                    taken = [
                        (timed_us(topic.append_table, table), timed_us(append_from_threads, topic, values, pool))
                        for _ in range(CALLS)
                    ]
                    one_call.append(statistics.median(one for one, _ in taken))
                    many_calls.append(statistics.median(many for _, many in taken))
        report(question, one_call[1:], many_calls[1:], raw_one[1:], spread)

    question.once(measure)


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


def report(
    question: Contest, one_call: list[float], many_calls: list[float], raw_one: list[float], spread: dict[str, Any]
) -> None:
    question.fact("one raw fdatasync of 4 KiB", statistics.median(raw_one), "µs")
    question.fact("one call for 100 partitions", statistics.median(one_call), "µs")
    question.fact("100 calls from as many threads", statistics.median(many_calls), "µs")
    for name in ("one_by_one", "threads", "syncfs", "shared_file", "journal"):
        question.fact(f"raw, {name.replace('_', ' ')}", spread[name]["p50_us"], "µs")
    for what, ours in (("one call", one_call), ("100 threads", many_calls)):
        ratios = [mine / theirs for mine, theirs in zip(ours, raw_one, strict=True)]
        question.at_most(f"{what} ≤ 5 × one raw fdatasync", statistics.median(ratios), 5)
    question.note(
        "Raw, journal: the same bytes in one piece into a file whose space was written before, and one fdatasync."
    )
