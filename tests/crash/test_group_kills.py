"""Members of a group that are killed at any moment: every record is seen at least once, and commits tell the truth."""

from __future__ import annotations

import collections
import os
import random
import time
from pathlib import Path

import pytest

import streamcore as sc
from streamcore import groups

from .forkserver import Child, ForkServer
from .members import GROUP, TOPIC, read_and_commit, stay_until_killed

Figures = collections.Counter[str]
KILLS = int(os.environ.get("STREAMCORE_GROUP_KILLS", "72"))
PARTITIONS, MEMBERS = 6, 3
DEADLINE_S = 60.0


class Crowd:
    """Some members at work, each with a file of what it has seen."""

    def __init__(self, server: ForkServer, store: sc.Store, folder: Path) -> None:
        self._server = server
        self.store = store
        self._folder = folder
        self._started = 0
        self.members: list[Child] = []

    def add(self, *, early: bool = False, die_at: int = 0) -> Child:
        self._started += 1
        results = str(self._folder / f"seen-{self._started}")
        child = self._server.start(
            read_and_commit, store_path=str(self.store.path), results=results, early=early, die_at=die_at
        )
        self.members.append(child)
        return child

    def seen(self) -> dict[int, set[int]]:
        """The offsets that some member has noted, by partition. A line that a kill cut short counts not."""
        found: dict[int, set[int]] = {partition: set() for partition in range(PARTITIONS)}
        for path in self._folder.glob("seen-*"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                partition, offset = line.split()
                found[int(partition)].add(int(offset))
        return found

    def committed(self) -> dict[int, int]:
        with groups.reading(self.store.catalog) as connection:
            found = {} if connection is None else groups.committed(connection, GROUP)
        return {partition: int(offset) for (_, partition), offset in found.items()}

    def missing(self) -> dict[int, set[int]]:
        """What is committed and was never seen."""
        committed = self.committed()  # first: members go on meanwhile
        seen = self.seen()
        gaps = {partition: set(range(end)) - seen[partition] for partition, end in committed.items()}
        return {partition: gap for partition, gap in gaps.items() if gap}

    def drain(self) -> None:
        for child in self.members:
            child.read(0)

    def finish(self) -> None:
        """Waits until all is committed, and stops the members."""
        topic = self.store.topic(TOPIC)
        ends = {partition: bounds[2] for partition, bounds in topic.bounds(range(PARTITIONS)).items()}
        deadline = time.monotonic() + DEADLINE_S
        while self.committed() != ends:
            assert time.monotonic() < deadline, f"{self.committed()} of {ends}, {self.store.group(GROUP).members()}"
            self.drain()
            time.sleep(0.01)
        for child in self.members:
            child.stop()
            assert child.status == 0, child.failure()


@pytest.fixture
def store(tmp_path: Path) -> sc.Store:
    store = sc.open(tmp_path / "store")
    store.create_topic(TOPIC, partitions=PARTITIONS)
    return store


def append_some(store: sc.Store, chance: random.Random) -> None:
    topic = store.topic(TOPIC)
    for partition in range(PARTITIONS):
        topic.append([b"x"] * chance.randint(1, 30), partition=partition)


@pytest.mark.slow
def test_after_many_kills_every_record_was_seen_and_no_commit_ran_ahead(
    store: sc.Store, tmp_path: Path, children: ForkServer, figures: Figures
) -> None:
    chance = random.Random(11)
    crowd = Crowd(children, store, tmp_path)
    for _ in range(MEMBERS):
        crowd.add()
    for kill in range(KILLS):
        append_some(store, chance)
        child = chance.choice(crowd.members)
        word = chance.choice(["JOIN", "POLL", "COMMIT"])
        if word == "JOIN":  # one that comes in dies in the middle of it
            child = crowd.add()
        before = len(child.said(word))
        end = time.monotonic() + chance.choice([0.05, 0.2, 0.5])
        while len(child.said(word)) == before and time.monotonic() < end:
            crowd.drain()
        time.sleep(chance.uniform(0, 0.03 if word == "JOIN" else 0.002))
        child.kill()
        assert child.is_killed(), child.failure()
        figures[f"members killed at {word}"] += 1
        crowd.members.remove(child)
        if len(crowd.members) < MEMBERS:
            crowd.add()
        assert crowd.missing() == {}, f"after kill {kill}"
    crowd.finish()
    assert crowd.missing() == {}
    ends = store.topic(TOPIC).bounds(range(PARTITIONS))
    assert crowd.seen() == {partition: set(range(bounds[2])) for partition, bounds in ends.items()}
    assert store.verify() == []
    store.close()


@pytest.mark.parametrize("early", [False, True])
def test_the_check_above_notices_members_that_commit_too_early(
    store: sc.Store, tmp_path: Path, children: ForkServer, early: bool
) -> None:
    append_some(store, random.Random(1))
    crowd = Crowd(children, store, tmp_path)
    child = crowd.add(early=early, die_at=1)
    child.wait()
    assert child.is_killed()
    assert bool(crowd.missing()) == early
    store.close()


def has(child: Child) -> set[int]:
    child.read(0)
    return {int(word) for word in child.said("HAS")[-1]} if child.said("HAS") else set()


def test_what_a_killed_member_had_goes_to_the_others_and_nobody_else_moves(
    store: sc.Store, children: ForkServer
) -> None:
    crowd = [children.start(stay_until_killed, store_path=str(store.path), instance=None) for _ in range(3)]
    everything = set(range(PARTITIONS))
    deadline = time.monotonic() + DEADLINE_S

    def shared(members: list[Child], each: int) -> bool:
        parts = [has(child) for child in members]
        return all(len(part) == each for part in parts) and set().union(*parts) == everything

    while not shared(crowd, 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kept = [has(child) for child in crowd[1:]]
    crowd[0].kill()
    while not shared(crowd[1:], 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert all(old <= has(child) for old, child in zip(kept, crowd[1:], strict=True))
    for child in crowd[1:]:
        child.stop()
    assert store.group(GROUP).members() == []
    store.close()


def test_a_static_member_that_was_killed_comes_back_to_its_partitions(store: sc.Store, children: ForkServer) -> None:
    start = [children.start(stay_until_killed, store_path=str(store.path), instance=name) for name in ("one", "two")]
    deadline = time.monotonic() + DEADLINE_S
    while not all(len(has(child)) == 3 for child in start):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    had = has(start[0])
    start[0].kill()
    back = children.start(stay_until_killed, store_path=str(store.path), instance="one")
    while has(back) != had:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for child in (back, start[1]):
        child.stop()
    store.close()
