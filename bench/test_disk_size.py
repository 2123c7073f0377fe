"""How many bytes on disk does a record take, in bulk and sent one at a time?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamcore as sc
from bench import rows
from bench.contest import Contest, allocated_bytes
from bench.sizes import Sizes

BATCHES = {100_000: "100,000 per call", 1_000: "1,000 per call", 1: "one per call, not consolidated"}


def test_disk_size(contest: Callable[..., Contest], folder: Path, size: Sizes) -> None:
    question = contest("bytes on disk (100 B values)", unit="")

    def measure() -> None:
        for batch, name in BATCHES.items():
            count = size.records if batch > 1 else 5_000
            taken = bytes_on_disk(folder / str(batch), count, min(batch, count))
            allowed = 1.1 * 100 * count + 24 * count
            question.fact(f"bytes per record, {name}", taken / count, "B")
            later = None if batch > 1 else "consolidation in the background is a later issue"
            question.at_most(
                f"≤ 1.1 × payload + 24 B per record, {name}", taken / allowed, 1, "of the allowance", later
            )

    question.once(measure)
    question.note("Everything in the store's directory, catalog and indexes as well, after the store was closed.")


def bytes_on_disk(path: Path, count: int, batch: int) -> int:
    values = rows.values(count, 100)
    with sc.open(path) as store:
        topic = store.create_topic("clicks")
        for first in range(0, count, batch):
            topic.append(values[first : first + batch])
    return allocated_bytes(path)
