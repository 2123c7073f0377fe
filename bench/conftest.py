"""Fixtures: a folder on the measured drive, the raw program, the real broker, and contests that save themselves."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import rows, sizes
from bench.contest import Contest
from bench.peers.kafka_broker import Broker
from bench.raw_limits import RawLimits, compile_raw, write_input

RESULTS = Path(__file__).with_name("results")
LOAD = os.getloadavg()[0]  # of the minute before: what else ran on this machine
NOT_MEASURED: list[dict[str, str]] = []  # benchmarks of this run that failed or were skipped, for the report


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "benchmark_json", "unknown") is None:
        RESULTS.mkdir(exist_ok=True)
        config.option.benchmark_json = RESULTS / "latest.json"


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: object, output_json: dict[str, Any]) -> None:
    output_json["streamcore"] = {
        "size": sizes.chosen().name,
        "rows": rows.source(),
        "not_measured": NOT_MEASURED,
        "load": LOAD,
    }
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.passed:
        return
    why = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else report.longreprtext.strip()
    NOT_MEASURED.append({"name": report.nodeid, "outcome": report.outcome, "why": why.splitlines()[-1] if why else ""})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The goals, met or missed, under pytest-benchmark's own table."""
    path = getattr(config.option, "benchmark_json", None)
    if path is None or not Path(path).exists():
        return
    terminalreporter.section("goals")
    for entry in json.loads(Path(path).read_text())["benchmarks"]:
        for goal in entry["extra_info"].get("goals", []):
            mark = "met   " if goal["met"] else "later " if goal["later"] else "MISSED"
            figures = f"{goal['measured']:.3g} (goal {goal['sense']} {goal['needed']:g} {goal['unit']})"
            terminalreporter.write_line(f"{mark} {entry['extra_info']['question']}: {goal['what']}: {figures}")


@pytest.fixture(scope="session")
def size() -> sizes.Sizes:
    return sizes.chosen()


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    parent = os.environ.get("BENCH_DIR")
    folder = Path(tempfile.mkdtemp(prefix="streamcore-bench-", dir=parent))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(session_folder: Path) -> Iterator[Path]:
    """An empty folder for one test, removed after it."""
    folder = Path(tempfile.mkdtemp(dir=session_folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def raw(session_folder: Path) -> RawLimits:
    """The raw program; where it cannot be compiled, what needs it is skipped with the reason."""
    try:
        return compile_raw(session_folder)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def raw_input(session_folder: Path) -> Path:
    return write_input(session_folder / "raw-input", 32 << 20)


@pytest.fixture(scope="session")
def kafka(session_folder: Path) -> Iterator[Broker | str]:
    """The real broker, or why there is none."""
    why = Broker.missing()
    if why:
        yield why
        return
    broker = Broker(session_folder / "kafka")
    try:
        broker.start()
    except (RuntimeError, OSError) as error:
        yield f"the broker does not start: {error}"
        return
    yield broker
    broker.stop()


@pytest.fixture
def contest(benchmark: Any, folder: Path) -> Iterator[Callable[..., Contest]]:
    """Makes the contest of a test; it is saved when the test ends."""
    made: list[Contest] = []

    def make(question: str, unit: str = "records/s") -> Contest:
        made.append(Contest(benchmark, folder, question, unit))
        return made[-1]

    yield make
    for contest in made:
        contest.save()
