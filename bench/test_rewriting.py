"""How fast are consolidation and compaction against a copy in memory, and what do they change for disk and scans?"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

import streamcore as sc
from bench import rows
from bench.contest import Contest, Stopwatch, allocated_bytes
from bench.raw_limits import RawLimits
from bench.sizes import Sizes
from streamcore.rewriting import Rewritten

VALUE_BYTES = 100
BATCH_ROWS = 64 << 10
COPY = "memcpy of the same bytes"
Rewrite = Callable[[sc.Topic], list[Rewritten]]


def test_consolidation(contest: Callable[..., Contest], raw: RawLimits, folder: Path, size: Sizes) -> None:
    question = contest("consolidation of records sent one at a time (100 B)", unit="bytes/s")
    with sc.open(folder / "store") as store:
        topic = store.create_topic("clicks")
        for value in rows.values(size.records // 4, VALUE_BYTES):
            topic.append([value])
        topic.roll()
    rewriting = Rewriting(folder / "store", "clicks", lambda topic: topic.consolidate())
    question.enter("consolidate", rewriting.run)
    question.enter(COPY, copier(raw, rewriting))
    question.run(min(size.rounds, 5))
    rewriting.report(question, "consolidate")
    question.note("The bytes are those of the segments before, each of a batch per record; syncs are included.")


def test_compaction(contest: Callable[..., Contest], raw: RawLimits, folder: Path, size: Sizes) -> None:
    question = contest("compaction (100 B, keys of 12 B)", unit="bytes/s")
    rewritings = {}
    for kept in (10, 2):
        fill_keyed(folder / f"one-in-{kept}", size.batches, kept)
        name = f"compact, one record in {kept} is kept"
        rewritings[name] = Rewriting(folder / f"one-in-{kept}", "table", lambda topic: topic.compact())
        question.enter(name, rewritings[name].run)
    question.enter(COPY, copier(raw, next(iter(rewritings.values()))))
    question.run(min(size.rounds, 5))
    for name, rewriting in rewritings.items():
        rewriting.report(question, name)
    question.note("The bytes are those of the segments before; keys come in no order; syncs are included.")


def fill_keyed(path: Path, batches: int, records_of_a_key: int) -> None:
    keys = max(batches * BATCH_ROWS // records_of_a_key, 1)
    with sc.open(path) as store:
        topic = store.create_topic("table", cleanup="compact")
        for number in range(batches):
            first = number * BATCH_ROWS
            key = pa.array([b"user%08d" % (row * 7_919_003 % keys) for row in range(first, first + BATCH_ROWS)])
            topic.append(rows.array(BATCH_ROWS, VALUE_BYTES, skip=first), keys=key)
        topic.roll()


class Rewriting:
    """One way of rewriting a topic, measured on a copy of its store in each round."""

    def __init__(self, source: Path, topic: str, rewrite: Rewrite) -> None:
        self._source = source
        self._topic = topic
        self._rewrite = rewrite
        self.bytes_before = 0
        self._records: tuple[int, int] = (0, 0)
        self._bytes: tuple[int, int] = (0, 0)
        self._scans: dict[str, tuple[list[float], list[float]]] = {}

    def run(self, folder: Path, watch: Stopwatch) -> float:
        shutil.copytree(self._source, folder / "store")
        with sc.open(folder / "store") as store:
            topic = store.topic(self._topic)
            before = scan_rates(topic)
            with watch:
                done = self._rewrite(topic)
            assert done, "nothing was rewritten"
            after = scan_rates(topic)
            records = topic.scan().count()
        for name in before:
            rates = self._scans.setdefault(name, ([], []))
            rates[0].append(before[name])
            rates[1].append(after[name])
        self.bytes_before = sum(one.bytes_before for one in done)
        self._records = sum(one.records_before for one in done), records
        self._bytes = allocated_bytes(self._source), allocated_bytes(folder / "store")
        return float(self.bytes_before)

    def report(self, question: Contest, name: str) -> None:
        seconds = statistics.median(sample.seconds for sample in question.samples[name])
        question.fact(f"{name}: records read", self._records[0] / seconds, "records/s")
        question.fact(f"{name}: of the rate of memcpy", statistics.median(question.ratios(name, COPY)), "×")
        for when, records, size in zip(("before", "after"), self._records, self._bytes, strict=True):
            question.fact(f"{name}: disk {when}, of {records:,} records", size / records, "bytes/record")
        for way, rates in self._scans.items():
            for when, found in zip(("before", "after"), rates, strict=True):
                question.fact(f"{name}: {way} {when}", statistics.median(found), "records/s")


def scan_rates(topic: sc.Topic) -> dict[str, float]:
    """Of a log whose checksums are verified: the second of two scans counts."""

    def as_table() -> int:
        table = topic.scan().to_arrow()
        pc.sum(pc.binary_length(table.column("value")))
        return int(table.num_rows)

    def as_objects() -> int:
        return sum(1 for record in topic.scan() if record.value is not None)

    def rate(scan: Callable[[], int]) -> float:
        scan()
        start = time.perf_counter()
        return scan() / (time.perf_counter() - start)

    return {"scan to Arrow": rate(as_table), "iteration": rate(as_objects)}


def copier(raw: RawLimits, rewriting: Rewriting) -> Callable[[Path, Stopwatch], float]:
    """In a process of its own, as many bytes as the rewriting has read."""

    def run(_: Path, watch: Stopwatch) -> float:
        count = rewriting.bytes_before >> 20 << 20
        seconds = count / raw.run("memory", bytes=count)["copy_gb_s"] / 1e9
        watch.measured_elsewhere(seconds, seconds)
        return float(count)

    return run
