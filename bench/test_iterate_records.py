"""How fast does a program read records as Python objects, touching key and value, against LMDB's cursor?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import rows
from bench.contest import Contest, Stopwatch
from bench.peers.record_log import record_logs
from bench.sizes import Sizes
from bench.test_append_lists import BATCH


@pytest.mark.parametrize("value_bytes", [100, 1024])
def test_iterate_records(contest: Callable[..., Contest], folder: Path, size: Sizes, value_bytes: int) -> None:
    question = contest(f"iterate records as Python objects ({value_bytes} B)")
    count = size.records if value_bytes == 100 else size.records // 3
    values = rows.values(count, value_bytes)
    logs = {}
    for place, (name, log_type) in enumerate(record_logs()[0].items()):
        (folder / str(place)).mkdir()
        logs[name] = log_type(folder / str(place), count)
        for first in range(0, count, BATCH):
            logs[name].append(first, values[first : first + BATCH])

    def reader(name: str) -> Callable[[Path, Stopwatch], float]:
        def run(_: Path, watch: Stopwatch) -> float:
            with watch:
                seen = logs[name].touch_all()
            assert seen == count
            return seen

        return run

    for name in logs:
        question.enter(name, reader(name))
    question.run(size.rounds)
    question.faster("≥ 2 × LMDB's cursor", "streamcore", "LMDB", 2)
    for log in logs.values():
        log.close()
