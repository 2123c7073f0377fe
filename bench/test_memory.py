"""Does memory stay constant, and do rates, while a log grows to 10 GB (BENCH_SIZE=full; less otherwise)?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from bench import rows
from bench.contest import Contest
from bench.peers import arrow_ipc
from bench.sizes import Sizes

BATCH_ROWS = 64 << 10
DISTINCT = 4


def test_memory_and_rates_while_a_log_grows(contest: Callable[..., Contest], folder: Path, size: Sizes) -> None:
    arrays = [rows.array(BATCH_ROWS, 100, skip=number * BATCH_ROWS) for number in range(DISTINCT)]
    question = contest(f"memory and rates while a log grows to {size.memory_gb:g} GB", unit="")

    def measure() -> None:
        source = folder / "input.arrow"
        arrow_ipc.write_file(source, pa.table({"value": pa.chunked_array(arrays)}))
        command = [sys.executable, "-m", "bench.memory_probe", str(folder / "store"), str(size.memory_gb), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=1200)
        assert done.returncode == 0, done.stderr
        report(question, json.loads(done.stdout))

    question.once(measure)


def report(question: Contest, found: dict[str, list[float]]) -> None:
    memory = question.curve("memory", "Memory without file pages while a log grows", "log size, GB", "MB", "")
    rates = question.curve("log_size", "Rates against the size of the log", "log size, GB", "records/s", "y")
    for place, size_gb in enumerate(found["gb"]):
        memory.add("after appending", size_gb, found["append_mb"][place])
        memory.add("after scanning", size_gb, found["scan_mb"][place])
        rates.add("append Arrow batches", size_gb, found["append"][place])
        rates.add("scan the whole log", size_gb, found["scan"][place])
    most = max(found["append_mb"] + found["scan_mb"])
    question.fact("with the process just started", found["start_mb"][0], "MB")
    question.fact("most", most, "MB")
    question.fact("last append rate ÷ first", found["append"][-1] / found["append"][0], "×")
    question.at_most("RSS without mapped file pages ≤ 100 MB", most, 100, "MB")
    question.note(
        "A process of its own: Python, pyarrow and streamcore; the batches that it appends are mapped from a file."
    )
