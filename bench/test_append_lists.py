"""How fast are lists of bytes appended, against LMDB, SQLite and RocksDB in their best batched modes?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import rows
from bench.contest import Contest, Stopwatch
from bench.peers.record_log import RecordLog, record_logs
from bench.raw_limits import RawLimits
from bench.sizes import Sizes

BATCH = 1_000


@pytest.mark.parametrize("value_bytes", [100, 1024])
def test_append_lists(
    contest: Callable[..., Contest], raw: RawLimits, raw_input: Path, size: Sizes, value_bytes: int
) -> None:
    question = contest(f"append list[bytes] ({value_bytes} B, {BATCH:,} per call)")
    count = size.records if value_bytes == 100 else size.records // 3
    values = rows.values(count, value_bytes)
    batches = [values[start : start + BATCH] for start in range(0, count, BATCH)]
    logs, absent = record_logs()
    for name, log in logs.items():
        question.enter(name, appender(log, batches))
    question.enter("raw loop, pwrite", raw_loop(raw, raw_input, BATCH * value_bytes, count * value_bytes))
    for name, why in absent.items():
        question.absent(name, why)
    question.run(size.rounds, memory_bytes=3 * count * value_bytes)
    question.faster("≥ 5 × LMDB", "streamcore", "LMDB", 5)
    question.faster("≥ 40 × SQLite", "streamcore", "SQLite", 40)
    question.note("Keys of LMDB and RocksDB are made before the clock runs.")
    question.note("streamcore stores a timestamp beside each value, the others do not.")
    question.note("RocksDB without its log loses what a crash of the process finds in memory; the others do not.")


def raw_loop(raw: RawLimits, data: Path, batch_bytes: int, total: int) -> Callable[[Path, Stopwatch], float]:
    """The bytes of the values alone, checksummed and written, in calls of the same size: the limit without Python."""

    def run(_: Path, watch: Stopwatch) -> float:
        found = raw.append(data, batch_bytes, total, way="pwrite")
        watch.measured_elsewhere(found["seconds"], found["cpu_s"])
        return float(found["appends"] * BATCH)

    return run


def appender(log_type: type[RecordLog], batches: list[list[bytes]]) -> Callable[[Path, Stopwatch], float]:
    def run(folder: Path, watch: Stopwatch) -> float:
        log = log_type(folder, len(batches) * BATCH)
        first = 0
        with watch:
            for batch in batches:
                log.append(first, batch)
                first += len(batch)
        log.close()
        return first

    return run
