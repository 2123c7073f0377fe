"""What does durability="disk" cost one appender, and how far do 64 share a sync?"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamcore as sc
from bench import rows
from bench.contest import Contest
from bench.raw_limits import RawLimits
from bench.sizes import Sizes

RECORDS = 24  # of 100 B: with their frame about 4 KiB, what the raw sync writes
APPENDERS = 64
SECTOR_BYTES = 512  # the unit of /proc/diskstats, whatever the drive has


def test_durable_append(
    contest: Callable[..., Contest], raw: RawLimits, raw_input: Path, folder: Path, size: Sizes
) -> None:
    question = contest("durable appends of about 4 KiB", unit="")
    found: dict[str, list[float]] = {name: [] for name in ("raw", "written", "one", "rate one", "rate all")}

    def measure() -> None:
        with sc.open(folder / "store") as store:
            topic = store.create_topic("clicks", durability="disk")
            for _ in range(size.rounds):
                one_round(topic, raw, raw_input, size.durable_appends, found)
        check_device(question, folder)
        report(question, found)

    question.once(measure)


def one_round(topic: Any, raw: RawLimits, data: Path, count: int, found: dict[str, list[float]]) -> None:
    for name, space in (("raw", "fallocated"), ("written", "written")):
        figures = raw.append(data, 4 << 10, count * (4 << 10), way="pwrite", sync="fdatasync", space=space)
        found[name].append(figures["mean_us"])
    appends_us, seconds = append_from(topic, 1, count)
    found["one"].append(statistics.mean(appends_us))
    found["rate one"].append(count / seconds)
    _, seconds = append_from(topic, APPENDERS, count // 4)
    found["rate all"].append(APPENDERS * (count // 4) / seconds)


def append_from(topic: Any, appenders: int, each: int) -> tuple[list[float], float]:
    """`appenders` threads append to one partition, `each` times: (µs of every append, seconds of all together)."""
    values = rows.values(RECORDS, 100)
    before = topic.partitions[0].end_offset
    latencies: list[list[float]] = [[] for _ in range(appenders)]
    barrier = threading.Barrier(appenders + 1)

    def appender(mine: list[float]) -> None:
        barrier.wait()
        for _ in range(each):
            start = time.perf_counter_ns()
            topic.append(values)
            mine.append((time.perf_counter_ns() - start) / 1000)

    threads = [threading.Thread(target=appender, args=(mine,)) for mine in latencies]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    partition = topic.partitions[0]
    assert partition.durable_offset == partition.end_offset == before + appenders * each * RECORDS
    return [latency for mine in latencies for latency in mine], seconds


def check_device(question: Contest, folder: Path) -> None:
    """Asks the drive whether durable appends reach it at all: a sync that returns early would win every race."""
    appends = 20
    with sc.open(folder / "counted") as store:
        topic = store.create_topic("clicks", durability="disk")
        append_from(topic, 1, appends)
        before = sectors_written()
        append_from(topic, 1, appends)
        after = sectors_written()
    if before is None or after is None:
        question.note("The drive's counters cannot be read here: that durable appends reach it was not checked.")
        return
    written = (after - before) * SECTOR_BYTES
    question.fact("written to the drives per durable append, by all processes", written / appends, "B")
    assert written >= appends * RECORDS * 100, "durable appends came back before the drive had them"


def sectors_written() -> int | None:
    """Sectors written to all drives since boot; None where /proc/diskstats is missing or empty."""
    try:
        lines = Path("/proc/diskstats").read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[9]) for line in lines) if lines else None


def report(question: Contest, found: dict[str, list[float]]) -> None:
    median = {name: statistics.median(values) for name, values in found.items()}
    question.fact("raw pwrite + fdatasync of 4 KiB, preallocated space, mean", median["raw"], "µs")
    question.fact("raw pwrite + fdatasync of 4 KiB, space written before, mean", median["written"], "µs")
    question.fact("one appender, mean", median["one"], "µs")
    question.fact("one appender", median["rate one"], "appends/s")
    question.fact(f"{APPENDERS} appenders", median["rate all"], "appends/s")
    ratios = [ours / theirs for ours, theirs in zip(found["one"], found["raw"], strict=True)]
    question.at_most("one appender ≤ 1.3 × one raw fdatasync", statistics.median(ratios), 1.3)
    gains = [every / one for every, one in zip(found["rate all"], found["rate one"], strict=True)]
    question.at_least(f"{APPENDERS} appenders ≥ 20 × the rate of one", statistics.median(gains), 20)
    question.note("Threads of one Python process, one partition, one list of 24 records of 100 B per append.")
