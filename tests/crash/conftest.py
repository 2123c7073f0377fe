"""Children to kill, file systems to fill, and the figures of the run."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import pytest

from .controls import TABLE
from .forkserver import ForkServer, fork_server
from .mounts import Mount

FIGURES: collections.Counter[str] = collections.Counter()


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """Forks children that have imported everything."""
    with fork_server() as running:
        yield running


@pytest.fixture
def children(server: ForkServer) -> Iterator[ForkServer]:
    """As `server`; no child outlives the test."""
    yield server
    server.kill_all()


@pytest.fixture
def figures() -> collections.Counter[str]:
    """Counts of what happened, which the run's summary shows."""
    return FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many processes were killed and in what state they left their logs, and what caught which bug."""
    for line in TABLE:
        terminalreporter.write_line(line)
    if FIGURES:
        shown = ", ".join(f"{name}: {count}" for name, count in sorted(FIGURES.items()))
        terminalreporter.write_line(f"crash tests: {shown}")


@pytest.fixture(params=["tmpfs", "ext4"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mount]:
    """A file system of 8 MiB in memory, and one of 16 MiB in a file."""
    made = Mount(tmp_path / "mounted", request.param, 8 if request.param == "tmpfs" else 16)
    try:
        yield made
    finally:
        made.unmount()
