"""Background work runs in one process at a time, is seen by all, and stops when it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
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

    maintenance = Maintenance(store, [Task("tick", run)], 0.01)
    maintenance.start()
    maintenance.start()
    for _ in range(3):
        assert worked.acquire(timeout=WAIT_S)
    maintenance.stop()
    assert "streamcore-maintenance" not in [thread.name for thread in threading.enumerate()]


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
