"""How soon does another process see an append, busy-waiting and blocking?"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamcore as sc
from bench import rows
from bench.contest import Contest
from bench.raw_limits import RawLimits
from bench.sizes import Sizes

GAP_S = 0.0005  # between appends, so that the watcher surely waits again


def test_visible_in_another_process(contest: Callable[..., Contest], raw: RawLimits, folder: Path, size: Sizes) -> None:
    question = contest("append to visible in another process", unit="")
    found: dict[str, list[float]] = {"spin": [], "block": []}
    early: list[float] = []

    def measure() -> None:
        for turn in range(2):
            for way in ("spin", "block"):
                found[way] += latencies_us(
                    folder / f"{way}-{turn}", way, size.wakes // 2, question if way == "spin" else None
                )
        early.extend(latencies_us(folder / "early", "block", size.wakes // 10, None, first_before=False))
        limits = raw.run("wake", rounds=size.wakes)
        question.fact("block, when the reader opened before the first append: p50", statistics.median(early), "µs")
        report(question, found, limits)

    question.once(measure)


def report(question: Contest, found: dict[str, list[float]], limits: dict[str, Any]) -> None:
    for way, values in found.items():
        question.fact(f"{way}: p50", statistics.median(values), "µs")
        question.fact(f"{way}: p99", sorted(values)[len(values) * 99 // 100], "µs")
    question.fact("raw: one word to a spinning process, p50", limits["spin"]["p50_us"], "µs")
    question.fact("raw: one word to a process that waits on a futex, p50", limits["futex"]["p50_us"], "µs")
    question.at_most("p50 ≤ 10 µs busy-waiting", statistics.median(found["spin"]), 10, "µs")
    question.at_most("p50 ≤ 50 µs blocking", statistics.median(found["block"]), 50, "µs")
    question.note("From before the append call in one process to after the check in the other, both in Python.")


def latencies_us(place: Path, way: str, count: int, question: Contest | None, first_before: bool = True) -> list[float]:
    """Appends one record at a time and asks the watcher when it saw each.

    `first_before`: one record is appended before the watcher opens the store.
    """
    values = rows.values(count, 100)
    with sc.open(place) as store:
        topic = store.create_topic("clicks")
        if first_before:
            topic.append([b"first"])
        command = [sys.executable, "-m", "bench.watcher", str(place), way, str(count)]
        root = Path(__file__).parents[1]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as watcher:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "ready\n"
            sent = append_slowly(topic, values)
            seen = json.loads(watcher.stdout.readline())
    assert len(seen) == count
    if question is not None:
        call_us = [(done - start) / 1000 for start, done in sent]
        question.fact("append call of one record: p50", statistics.median(call_us), "µs")
    return [(there - start) / 1000 for (start, _), there in zip(sent, seen, strict=True)]


def append_slowly(topic: Any, values: list[bytes]) -> list[tuple[int, int]]:
    sent = []
    for value in values:
        time.sleep(GAP_S)
        start = time.monotonic_ns()
        topic.append([value])
        sent.append((start, time.monotonic_ns()))
    return sent
