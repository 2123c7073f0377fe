"""What the tests share: a store in a temporary folder, waiting with a deadline, and a picture of a folder's bytes."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc

# A process that a test starts in the repository imports what is installed, not the source without its extension.
os.environ["PYTHONSAFEPATH"] = "1"

with contextlib.suppress(ImportError):
    import hypothesis

    hypothesis.settings.register_profile(
        "streamcore",
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[
            hypothesis.HealthCheck.too_slow,
            hypothesis.HealthCheck.function_scoped_fixture,
            hypothesis.HealthCheck.data_too_large,
        ],
    )
    hypothesis.settings.load_profile("streamcore")

DEADLINE_S = 20.0


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where a test's store is; nothing is there yet."""
    return tmp_path / "store"


@pytest.fixture
def store(store_path: Path) -> Iterator[sc.Store]:
    """An empty store, open for reading and writing. Nothing is done in its background at a time of its own."""
    with sc.open(store_path, maintenance=False) as opened:
        yield opened


@pytest.fixture
def topic(store: sc.Store) -> sc.Topic:
    """A plain topic with one partition."""
    return store.create_topic("clicks")


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sc.Store]:
    """One store for tests that need no more than a topic: opening a store takes several waits for the drive."""
    with sc.open(tmp_path_factory.mktemp("shared") / "store", maintenance=False) as opened:
        yield opened


@pytest.fixture
def make_topic(shared_store: sc.Store) -> Callable[..., sc.Topic]:
    """make_topic(partitions, schema, **settings): a topic with a name of its own in the shared store."""

    def make(*arguments: Any, **settings: Any) -> sc.Topic:
        return shared_store.create_topic(f"topic-{uuid.uuid4().hex}", *arguments, **settings)

    return make


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """wait_until(condition): returns as soon as it holds, and fails the test when it does not in time."""

    def wait(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, "the condition did not come true in time"
            time.sleep(0.005)

    return wait


@pytest.fixture
def picture() -> Callable[[Path], dict[str, tuple[int, bytes]]]:
    """picture(folder): each file and folder below it with its time of change and its bytes."""

    def take(folder: Path) -> dict[str, tuple[int, bytes]]:
        found = {".": (folder.stat().st_mtime_ns, b"")}
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            found[name] = (path.stat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes())
        return found

    return take
