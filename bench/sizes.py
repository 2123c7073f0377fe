"""How much each benchmark does.

BENCH_SIZE=quick takes a minute or two, standard three to ten, full goes to 10 GB and 10,000 partitions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    name: str
    rounds: int
    batches: int  # of 64 Ki rows of 100 B: 6.5 MB each
    records: int  # in lists
    kafka_records: int
    typed_rows: int
    log_gb: float  # the longest log of the curves
    memory_gb: float
    partitions: tuple[int, ...]
    segments: int
    durable_appends: int
    wakes: int
    starts: int


QUICK = Sizes("quick", 3, 16, 200_000, 100_000, 500_000, 0.5, 0.5, (1, 10, 100), 500, 100, 300, 5)
STANDARD = Sizes("standard", 5, 32, 300_000, 500_000, 2_000_000, 2.0, 2.0, (1, 10, 100, 1_000), 10_000, 400, 2_000, 11)
FULL = Sizes(
    "full", 7, 64, 1_000_000, 2_000_000, 5_000_000, 10.0, 10.0, (1, 10, 100, 1_000, 10_000), 10_000, 1_000, 5_000, 21
)
BY_NAME = {sizes.name: sizes for sizes in (QUICK, STANDARD, FULL)}


def chosen() -> Sizes:
    """The sizes that BENCH_SIZE names; a wrong name is a ValueError."""
    name = os.environ.get("BENCH_SIZE", "standard")
    if name not in BY_NAME:
        raise ValueError(f"BENCH_SIZE is {name!r}; allowed: {', '.join(BY_NAME)}")
    return BY_NAME[name]
