"""How long do `import streamcore` and `streamcore --help` take?"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.contest import Contest
from bench.sizes import Sizes


def test_start_time(contest: Callable[..., Contest], size: Sizes) -> None:
    question = contest("start: import and command line", unit="")
    program = Path(sys.executable).with_name("streamcore")
    commands = {"nothing": [sys.executable, "-c", "pass"], "import": [sys.executable, "-c", "import streamcore"]}
    commands["pyarrow"] = [sys.executable, "-c", "import pyarrow"]
    commands["help"] = [str(program), "--help"] if program.exists() else [sys.executable, "-m", "streamcore", "--help"]

    def measure() -> None:
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(size.starts):
            for name, command in commands.items():
                times[name].append(process_ms(command))
        report(question, {name: statistics.median(values) for name, values in times.items()})

    question.once(measure)


def report(question: Contest, median: dict[str, float]) -> None:
    question.fact("python -c pass", median["nothing"], "ms")
    question.fact("python -c 'import streamcore'", median["import"], "ms")
    question.fact("python -c 'import pyarrow'", median["pyarrow"], "ms")
    question.at_most(
        "import streamcore ≤ 60 ms (process, less an empty one)", median["import"] - median["nothing"], 60, "ms"
    )
    question.at_most("streamcore --help ≤ 150 ms (the whole process)", median["help"], 150, "ms")


def process_ms(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - start)
