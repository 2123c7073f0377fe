"""How many bytes on disk does a record take, in bulk and sent one at a time, before and after consolidation?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamcore as sc
from bench import rows
from bench.contest import Contest, allocated_bytes
from bench.sizes import Sizes

BULK = {100_000: "100,000 per call", 1_000: "1,000 per call"}
ALONE = "one per call, consolidated"


def test_disk_size(contest: Callable[..., Contest], folder: Path, size: Sizes) -> None:
    question = contest("bytes on disk (100 B values)", unit="")

    def measure() -> None:
        for batch, name in BULK.items():
            count = size.records // batch * batch
            fill(folder / str(batch), count, batch)
            check(question, folder / str(batch), count, name)
        alone = size.records // 4
        fill(folder / "alone", alone, 1)
        question.fact(
            "bytes per record, one per call, not consolidated", bytes_per_record(folder / "alone", alone), "B"
        )
        with sc.open(folder / "alone") as store:
            topic = store.topic("clicks")
            topic.roll()
            topic.consolidate()
            assert topic.scan().count() == alone
        check(question, folder / "alone", alone, ALONE)

    question.once(measure)
    question.note("Everything in the store's directory, catalog and indexes as well, after the store was closed.")


def fill(path: Path, count: int, batch: int) -> None:
    values = rows.values(count, 100)
    with sc.open(path) as store:
        topic = store.create_topic("clicks")
        for first in range(0, count, batch):
            topic.append(values[first : first + batch])


def check(question: Contest, path: Path, count: int, name: str) -> None:
    taken = bytes_per_record(path, count)
    question.fact(f"bytes per record, {name}", taken, "B")
    question.at_most(f"≤ 1.1 × payload + 24 B per record, {name}", taken / (1.1 * 100 + 24), 1, "of the allowance")


def bytes_per_record(path: Path, count: int) -> float:
    return allocated_bytes(path) / count
