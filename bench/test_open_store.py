"""How long does opening a store with 10,000 segments take, and is the work only put off?"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import streamcore as sc
from bench import rows
from bench.contest import Contest
from bench.sizes import Sizes

PARTITIONS = 10
SEGMENT_BYTES = 64 << 10
OPEN_SCRIPT = """
import sys, time, streamcore as sc
with sc.open(sys.argv[1]) as warm: pass
start = time.perf_counter()
store = sc.open(sys.argv[1])
times = [time.perf_counter() - start]
topic = store.topic("clicks")
topic.append([b"one more"], partition=0)
times.append(time.perf_counter() - start)
first = next(iter(topic.scan(partition=1, limit=1)))
times.append(time.perf_counter() - start)
ends = [partition.end_offset for partition in topic.partitions]
times.append(time.perf_counter() - start)
store.close()
print(*times)
"""
STEPS = ("open", "open and append", "... and read a record of another partition", "... and describe every partition")


def test_open_store(contest: Callable[..., Contest], folder: Path, size: Sizes) -> None:
    question = contest(f"open a store with {size.segments:,} segments", unit="")

    def measure() -> None:
        segments = make_segments(folder / "store", size.segments)
        question.fact("segments", segments, "")
        medians = [statistics.median(column) for column in zip(*open_often(folder / "store", size.rounds), strict=True)]
        for name, value in zip(STEPS, medians, strict=True):
            question.fact(name, value, "ms")
        question.fact("listing the folders with os.scandir", 1000 * listing_seconds(folder / "store"), "ms")
        question.at_most("open ≤ 50 ms", medians[0], 50, "ms")
        question.at_most("open and append ≤ 50 ms", medians[1], 50, "ms")
        question.at_most("open, append and read ≤ 50 ms", medians[2], 50, "ms")

    question.once(measure)
    question.note("Opening alone may put work off, so the first append and the first read are in the goal as well.")


def open_often(path: Path, rounds: int) -> list[list[float]]:
    """For each of `rounds` new processes the ms from before opening to after each step."""
    times = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", OPEN_SCRIPT, str(path)], capture_output=True, text=True, check=True
        )
        times.append([1000 * float(number) for number in done.stdout.split()])
    return times


def make_segments(path: Path, wanted: int) -> int:
    """Appends until there are that many segments: each append fills one."""
    values = rows.values(SEGMENT_BYTES // 1024, 1024)
    with sc.open(path) as store:
        topic = store.create_topic("clicks", partitions=PARTITIONS, segment_bytes=SEGMENT_BYTES)
        for number in range(wanted):
            topic.append(values, partition=number % PARTITIONS)
        return len(topic.segments())


def listing_seconds(path: Path) -> float:
    start = time.perf_counter()
    for parent, _, _ in os.walk(path):
        with os.scandir(parent) as entries:
            for entry in entries:
                entry.stat()
    return time.perf_counter() - start
