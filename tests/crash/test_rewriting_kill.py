"""Processes that are killed while they delete, compact and consolidate lose nothing, and leave no mix behind."""

from __future__ import annotations

import collections
import random
from pathlib import Path

import pytest

import streamcore as sc

from .forkserver import Child, ForkServer
from .rewriters import TOPIC, keys_of, rewrite_until_killed, value_of

SEED = 5


class Expected:
    """What the log may hold, from what the children said."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.keys: dict[int, int] = {}  # of all offsets that were acknowledged, or appended just before a death
        self.calls = 0
        self.starts = {0}

    def take(self, child: Child) -> None:
        """What a child that is dead now said."""
        appending, done = child.said("APPENDING"), child.said("APPENDED")
        for call, end in appending:
            for i, key in enumerate(keys_of(self.seed, int(call))):
                self.keys[int(end) + i] = key
            self.calls = int(call) + 1
        deleted = [int(words[0]) for words in child.said("DELETED")]
        begun = [int(words[0]) for words in child.said("DELETING")]
        if deleted:
            self.starts = {max(deleted)}
        if len(begun) > len(deleted):
            self.starts = self.starts | {max(begun[-1], *self.starts)}
        self.acknowledged = max([int(end) for _, end in done], default=getattr(self, "acknowledged", 0))

    def check(self, topic: sc.Topic) -> None:
        """Every record is what it should be, and none is missing that is the latest of its key."""
        part = topic.partitions[0]
        assert part.start_offset in self.starts
        self.starts = {part.start_offset}
        assert part.end_offset >= self.acknowledged
        for offset in [offset for offset in self.keys if offset >= part.end_offset]:
            del self.keys[offset]  # of a call that was not acknowledged
        found = {record.offset: record for record in topic.scan()}
        for offset, record in found.items():
            key = self.keys[offset]
            assert (record.key, record.value) == (b"%d" % key, value_of(offset, key))
        newest = {key: offset for offset, key in sorted(self.keys.items()) if offset >= part.start_offset}
        for key, offset in newest.items():
            assert offset in found, f"the latest record of key {key} is missing"
        table = topic.table(columns=["offset", "key"])
        rows = zip(table["key"].to_pylist(), table["offset"].to_pylist(), strict=True)
        assert {int(key): offset for key, offset in rows} == newest
        assert topic.scan().count() == len(found)


def run(children: ForkServer, path: Path, expected: Expected, kills: int, figures: collections.Counter[str]) -> None:
    chance = random.Random(SEED)
    for _ in range(kills):
        child = children.start(
            rewrite_until_killed, store_path=str(path), seed=expected.seed, first_call=expected.calls
        )
        child.read_until(lambda child=child: child.lines)
        child.drain_for(chance.choice([0.02, 0.1, 0.3]) * chance.random() * 2)
        child.kill()
        assert child.is_killed(), child.failure()
        expected.take(child)
        doing = [line[0] for line in child.lines if line[0] in ("DOING", "DONE", "DELETING", "DELETED")]
        figures["killed while they rewrote or deleted"] += bool(doing) and doing[-1] in ("DOING", "DELETING")
        figures["killed between appends and rewriting"] += 1
        with sc.open(path) as store:
            assert store.verify() == []
            expected.check(store.topic(TOPIC))


def test_a_log_survives_kills_while_it_is_rewritten(
    children: ForkServer, tmp_path: Path, figures: collections.Counter[str]
) -> None:
    for seed in range(2):
        path = tmp_path / f"store-{seed}"
        run(children, path, Expected(seed), 30, figures)
        assert not list(path.glob("topics/*/*/*.tmp"))


@pytest.mark.slow
def test_a_log_survives_hundreds_of_kills_while_it_is_rewritten(
    children: ForkServer, tmp_path: Path, figures: collections.Counter[str]
) -> None:
    for seed in range(10, 16):
        run(children, tmp_path / f"store-{seed}", Expected(seed), 50, figures)


@pytest.mark.parametrize("bug", ["deletes files", "drops the newest"])
def test_a_broken_promise_is_noticed(children: ForkServer, tmp_path: Path, bug: str) -> None:
    path = tmp_path / "store"
    expected = Expected(3)
    child = children.start(rewrite_until_killed, store_path=str(path), seed=3, first_call=0, bug=bug)
    child.read_until(lambda: child.said("BROKEN"))
    child.wait()
    assert child.is_killed(), child.failure()
    expected.take(child)
    with sc.open(path) as store, pytest.raises((AssertionError, sc.CorruptionError)):
        assert store.verify() == []
        expected.check(store.topic(TOPIC))
