"""The library that stands in front of a process's file calls sees them in order, and has them fail as it is told."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import streamcore as sc

from .system_calls import Kind, Rule, build_library, environment, other_boot_id, read_trace

APPEND = """
import sys
import streamcore as sc
with sc.open(sys.argv[1]) as store:
    topic = store.create_topic("t")
    print(topic.append([b"some value"] * 10, durability="disk")[0].first_offset)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built."""
    return build_library(tmp_path_factory.mktemp("library"))


def run(library: Path, store_path: Path, **asked: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", APPEND, str(store_path)],
        env=environment(library, store_path, **asked),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_trace_has_every_change_in_order(library: Path, tmp_path: Path, store_path: Path) -> None:
    """Replayed without a loss it gives the files as they are."""
    done = run(library, store_path, trace=tmp_path / "trace")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    names: dict[str, int] = {}
    contents: dict[int, bytearray] = {}
    for event in read_trace(tmp_path / "trace"):
        content = contents.setdefault(event.inode, bytearray())
        end = event.position + event.size
        if event.kind is Kind.CREATE:
            names[event.path] = event.inode
            contents[event.inode] = bytearray()
        elif event.kind in (Kind.WRITE, Kind.STORE):
            content.extend(bytes(max(0, end - len(content))))
            content[event.position : end] = event.data
        elif event.kind is Kind.ALLOCATE:
            content.extend(bytes(max(0, end - len(content))))
        elif event.kind is Kind.ZERO:
            content[event.position : end] = bytes(min(len(content), end) - event.position)
        elif event.kind is Kind.TRUNCATE:
            content.extend(bytes(max(0, event.size - len(content))))
            del content[event.size :]
        elif event.kind is Kind.RENAME:
            names[event.data.decode()] = names.pop(event.path)
        elif event.kind is Kind.UNLINK:
            del names[event.path]
    found = {str(p.relative_to(store_path)): p.read_bytes() for p in store_path.rglob("*") if p.is_file()}
    assert {name: bytes(contents[inode]) for name, inode in names.items()} == found


def test_what_was_acknowledged_as_durable_was_synced_before(library: Path, tmp_path: Path, store_path: Path) -> None:
    run(library, store_path, trace=tmp_path / "trace")
    events = list(read_trace(tmp_path / "trace"))
    stored = [at for at, event in enumerate(events) if b"some value" in event.data]
    assert stored
    assert any(event.kind in (Kind.SYNC, Kind.SYNC_DATA) for event in events[stored[0] :])


def test_a_call_fails_as_the_rule_says(library: Path, store_path: Path) -> None:
    done = run(library, store_path, rule=Rule("allocate", ".arrows", value=errno.ENOSPC, sticky=True))
    assert done.returncode == 1
    assert "StorageError" in done.stderr
    assert "No space left" in done.stderr
    with sc.open(store_path) as store:
        assert store.topic("t").scan().count() == 0


@pytest.mark.parametrize("action", ["kill-before", "kill-after"])
def test_a_call_is_the_last_one(library: Path, store_path: Path, action: str) -> None:
    done = run(library, store_path, rule=Rule("rename", ".arrows.tmp", action=action))
    assert done.returncode == -signal.SIGKILL
    assert len(list(store_path.rglob("*.arrows"))) == (action == "kill-after")


def test_a_log_names_the_calls(library: Path, tmp_path: Path, store_path: Path) -> None:
    run(library, store_path, log=tmp_path / "log")
    calls = (tmp_path / "log").read_text().splitlines()
    assert "write catalog.sqlite-wal" in calls
    assert any(call.startswith("sync_data topics/") for call in calls)


def test_the_boot_id_is_another_one(library: Path, tmp_path: Path, store_path: Path) -> None:
    real = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    run(library, store_path, boot_id=other_boot_id(tmp_path))
    [state] = store_path.rglob("topics/*/state")
    assert bytes.fromhex(real.replace("-", "")) not in state.read_bytes()
    with sc.open(store_path) as store:
        store.topic("t").append([b"x"])
        assert bytes.fromhex(real.replace("-", "")) in state.read_bytes()
