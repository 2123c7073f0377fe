"""Background work runs in one process at a time, is seen by all, and stops when it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import streamcore as sc
from streamcore.maintenance import LOCK_NAME, Maintenance, Task, task_stats

WAIT_S = 20
HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sc.Store]:
    with sc.open(tmp_path / "store") as store:
        yield store


def counting(done: list[str], name: str = "count") -> Task:
    def run(store: sc.Store, stop: Callable[[], bool]) -> dict[str, int]:
        done.append(name)
        return {"things": 2}

    return Task(name, run)


def failing() -> Task:
    def run(store: sc.Store, stop: Callable[[], bool]) -> dict[str, int]:
        raise sc.GroupError("nobody is here")

    return Task("fail", run)


def test_a_pass_runs_each_task_and_the_catalog_says_what_was_done(store: sc.Store) -> None:
    done: list[str] = []
    maintenance = Maintenance(store, [counting(done), counting(done, "other")], 3600)
    runs = maintenance.run()
    assert runs is not None
    assert [(run.task, run.done, run.error) for run in runs] == [
        ("count", {"things": 2}, None),
        ("other", {"things": 2}, None),
    ]
    maintenance.run(["other"])
    assert done == ["count", "other", "other"]
    assert [(found.task, found.runs, found.errors) for found in task_stats(store.catalog)] == [
        ("count", 1, 0),
        ("other", 2, 0),
    ]
    assert task_stats(store.catalog)[0].process == os.getpid()


def test_a_task_that_fails_is_counted_and_the_next_one_runs(store: sc.Store) -> None:
    done: list[str] = []
    runs = Maintenance(store, [failing(), counting(done)], 3600).run()
    assert runs is not None
    assert [run.error for run in runs] == ["GroupError: nobody is here", None]
    [_, failed] = task_stats(store.catalog)
    assert (failed.task, failed.errors, failed.last_error) == ("fail", 1, "GroupError: nobody is here")
    assert done == ["count"]


def test_an_unknown_task_is_an_error_that_names_the_known_ones(store: sc.Store) -> None:
    with pytest.raises(ValueError, match=r"no task 'sweep' of maintenance; there are count"):
        Maintenance(store, [counting([])], 3600).run(["sweep"])


def test_one_process_at_a_time_does_the_work_and_a_killed_one_gives_it_up(store: sc.Store) -> None:
    done: list[str] = []
    maintenance = Maintenance(store, [counting(done)], 3600)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.path / LOCK_NAME)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert maintenance.run() is None
        assert done == []
    finally:
        other.kill()
        other.communicate()
    assert maintenance.run() is not None
    assert done == ["count"]


def test_the_thread_works_every_interval_until_it_is_stopped(store: sc.Store) -> None:
    worked = threading.Semaphore(0)

    def run(store: sc.Store, stop: Callable[[], bool]) -> dict[str, int]:
        worked.release()
        return {}

    before = threading.active_count()
    maintenance = Maintenance(store, [Task("tick", run)], 0.01)
    maintenance.start()
    maintenance.start()
    assert threading.active_count() == before + 1
    for _ in range(3):
        assert worked.acquire(timeout=WAIT_S)
    maintenance.stop()
    assert threading.active_count() == before


def test_stopping_ends_a_task_that_asks_and_those_behind_it(store: sc.Store) -> None:
    begun, ended, later = threading.Event(), threading.Event(), []

    def run(store: sc.Store, stop: Callable[[], bool]) -> dict[str, int]:
        begun.set()
        while not stop():
            ended.wait(0.001)
        ended.set()
        return {}

    maintenance = Maintenance(store, [Task("long", run), counting(later)], 0.01)
    maintenance.start()
    assert begun.wait(WAIT_S)
    maintenance.stop()
    assert ended.is_set()
    assert later == []


def test_a_forked_child_does_not_hold_the_lock_of_its_parent(store: sc.Store) -> None:
    pid = 0

    def fork(store: sc.Store, stop: Callable[[], bool]) -> dict[str, int]:
        nonlocal pid
        pid = os.fork()
        if pid == 0:
            os.read(reading, 1)
            os._exit(0)
        return {}

    reading, writing = os.pipe()
    maintenance = Maintenance(store, [Task("fork", fork)], 3600)
    try:
        assert maintenance.run() is not None
        assert Maintenance(store, [counting([])], 3600).run() is not None
    finally:
        os.write(writing, b".")
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


# ---- the tasks -------------------------------------------------------------------------------------------------


def done_by(store: sc.Store, task: str) -> dict[str, int]:
    runs = store.maintain([task])
    assert runs is not None
    [run] = runs
    assert run.error is None
    return run.done


def test_maintenance_applies_retention(store: sc.Store) -> None:
    topic = store.create_topic("short", retention_ms=1000, segment_bytes=64 << 10)
    topic.append([b"x" * 1000] * 200, timestamps=1000)
    topic.append([b"now"])
    assert done_by(store, "retention")["segments"] >= 1
    assert [record.value for record in topic.scan()] == [b"now"]


def test_maintenance_compacts(store: sc.Store) -> None:
    topic = store.create_topic("table", cleanup="compact", segment_bytes=64 << 10)
    for number in range(300):
        topic.append([b"%d" % number + b"." * 1000], keys=[b"key"])
    done = done_by(store, "compaction")
    assert done["records_dropped"] > 200
    assert done["bytes_after"] < done["bytes_before"] / 10
    latest = topic.latest(b"key")
    assert latest is not None
    assert latest.offset == 299
    assert done_by(store, "compaction")["segments"] == 0


def test_maintenance_merges_small_batches_once(store: sc.Store) -> None:
    topic = store.create_topic("small", segment_bytes=64 << 10)
    for number in range(300):
        topic.append([b"%d" % number])
    before = [(record.offset, record.timestamp_ms, record.value) for record in topic.scan()]
    done = done_by(store, "consolidation")
    assert done["segments"] >= 1
    assert done["records_dropped"] == 0
    assert done["bytes_after"] < done["bytes_before"] / 4
    assert [(record.offset, record.timestamp_ms, record.value) for record in topic.scan()] == before
    assert done_by(store, "consolidation")["segments"] == 0


def test_maintenance_ends_a_transaction_that_ran_out_of_time(store: sc.Store) -> None:
    topic = store.create_topic("t")
    transaction = store.transaction("slow", timeout_ms=1)
    transaction.append(topic, [b"never seen"])
    deadline = time.monotonic() + WAIT_S
    while done_by(store, "transactions")["ended"] == 0:
        assert time.monotonic() < deadline
    assert topic.partitions[0].stable_offset == topic.partitions[0].end_offset
    assert topic.scan().count() == 0
    with pytest.raises(sc.FencedError):
        transaction.append(topic, [b"too late"])


def test_a_topic_that_is_damaged_keeps_maintenance_from_no_other(store: sc.Store) -> None:
    topics = [store.create_topic(name, segment_bytes=64 << 10) for name in ("a", "b")]
    for topic in topics:
        for number in range(300):
            topic.append([b"%d" % number])
        topic.flush()
    damaged = Path(topics[0].segments()[0].path)
    with damaged.open("r+b") as file:
        file.seek(20_000)
        file.write(b"\xff" * 100)
    runs = store.maintain(["consolidation"])
    assert runs is not None
    assert runs[0].error is not None
    assert "CorruptionError" in runs[0].error
    assert topics[1].segments()[0].size_bytes < 30_000


def test_the_store_maintains_itself_once_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamcore.store.MAINTENANCE_INTERVAL_S", 0.02)
    with sc.open(tmp_path / "store") as store:
        topic = store.create_topic("short", retention_ms=1000, segment_bytes=64 << 10)
        topic.append([b"x" * 1000] * 200, timestamps=1000)
        deadline = time.monotonic() + WAIT_S
        while topic.partitions[0].start_offset == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_store_opened_without_maintenance_has_no_thread_for_it(tmp_path: Path) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "streamcore-maintenance"]

    before = len(threads())
    with sc.open(tmp_path / "store", maintenance=False) as store:
        store.create_topic("views").append([b"x"])
        assert len(threads()) == before
        assert [run.error for run in store.maintain() or []] == [None] * 6
    with sc.open(tmp_path / "store") as store:
        store.topic("views").append([b"x"])
        assert len(threads()) == before + 1


def test_a_store_that_is_only_read_does_no_maintenance(store: sc.Store) -> None:
    with sc.open(store.path, mode="r") as reader, pytest.raises(sc.StoreReadOnlyError):
        reader.maintain()
