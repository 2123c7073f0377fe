"""Pipelines that are killed in their transactions: every record is copied once, to both topics or to neither."""

from __future__ import annotations

import collections
import os
import random
import shutil
from pathlib import Path

import pytest

import streamcore as sc
from streamcore.transactions import finish_transactions, now_ms

from .forkserver import ForkServer
from .pipelines import BUGS, LEFT, RIGHT, SOURCE, Copied, copy_and_die, copy_until_killed, make_store
from .test_kill import spin_for

KILLS = int(os.environ.get("STREAMCORE_TRANSACTION_KILLS", "120"))
_LATER_MS = 10**9
_POINTS_MAX = 200


def check_copies(store_path: Path, *, whole: bool = False) -> int:
    """Both copies hold exactly what lies below the committed offsets; returns how much that is."""
    with sc.open(store_path) as store:
        finish_transactions(store, now_ms() + _LATER_MS)
        source, positions = store.topic(SOURCE), Copied(store).positions
        wanted: list[bytes | None] = []
        for partition in range(2):
            end = positions.get((source.id, partition), 0)
            wanted += source.scan(partition, end=end).to_arrow()["value"].to_pylist()
        for name in (LEFT, RIGHT):
            topic = store.topic(name)
            found = topic.scan().to_arrow()["value"].to_pylist()
            assert sorted(found) == sorted(wanted), f"{name} is no exact copy"
            assert topic.scan().count() == len(wanted)
            assert all(p.stable_offset == p.end_offset for p in topic.partitions)
        if whole:
            assert len(wanted) == source.scan().count()
        assert store.verify() == []
        return len(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["os", "disk"])
def test_a_killed_pipeline_copies_each_record_exactly_once(
    durability: str, tmp_path: Path, children: ForkServer, figures: collections.Counter[str]
) -> None:
    chance = random.Random(durability)
    records, kills, round_number = 60_000, 0, 0
    while kills < KILLS // 2:
        store_path = tmp_path / f"store {round_number}"
        make_store(store_path, records)
        round_number += 1
        while kills < KILLS // 2:
            child = children.start(
                copy_until_killed, store_path=str(store_path), seed=kills, durability=durability, rows_max=900
            )
            lines = chance.randint(1, 6)
            try:
                child.read_until(lambda child=child, lines=lines: len(child.said("BEGUN")) >= lines)
            except AssertionError:
                assert child.status == 0, child.failure()
                break
            spin_for(chance.uniform(0, 0.01))
            child.kill()
            if not child.is_killed():
                assert child.status == 0, child.failure()
                break
            kills += 1
            figures["kills in transactions"] += 1
            if chance.random() < 0.5:  # else the next child finds it as it is
                check_copies(store_path)
        child = children.start(
            copy_until_killed, store_path=str(store_path), seed=0, durability=durability, rows_max=5000
        )
        assert child.wait() == 0, child.failure()
        assert check_copies(store_path, whole=True) == records
        shutil.rmtree(store_path)


def test_pipelines_with_one_id_that_fence_each_other_copy_each_record_exactly_once(
    tmp_path: Path, children: ForkServer, figures: collections.Counter[str]
) -> None:
    store_path, chance = tmp_path / "store", random.Random(3)
    make_store(store_path, 4000)
    running = []
    for number in range(12):
        running.append(
            children.start(
                copy_until_killed, store_path=str(store_path), seed=number, durability="os", rows_max=60,
                fenced_is_fine=True,
            )
        )  # fmt: skip
        running[-1].read_until(lambda: running[-1].said("BEGUN"))
        if len(running) == 3:
            victim = running.pop(chance.randrange(3))
            victim.drain_for(chance.uniform(0, 0.03))
            victim.kill()
            figures["kills in transactions"] += victim.is_killed()
            assert victim.is_killed() or victim.status == 0, victim.failure()
    for child in running:
        assert child.wait() == 0, child.failure()
    assert check_copies(store_path, whole=True) == 4000


def die_at_each_point(
    tmp_path: Path, children: ForkServer, figures: collections.Counter[str], durability: str, bug: str | None
) -> int:
    for point in range(1, _POINTS_MAX):
        store_path = tmp_path / f"store {point}"
        make_store(store_path, 400)
        child = children.start(copy_and_die, store_path=str(store_path), point=point, durability=durability, bug=bug)
        child.wait()
        if not child.is_killed():
            assert child.status == 0, child.failure()
            assert check_copies(store_path) > 0
            return point
        figures["kills in transactions"] += 1
        check_copies(store_path)
        child = children.start(copy_until_killed, store_path=str(store_path), seed=0, durability="os", rows_max=300)
        assert child.wait() == 0, child.failure()
        assert check_copies(store_path, whole=True) == 400
        shutil.rmtree(store_path)
    raise AssertionError("the child has more points than this")


@pytest.mark.parametrize("durability", ["os", "disk"])
def test_a_death_at_any_step_of_a_transaction_leaves_all_of_it_or_nothing(
    durability: str, tmp_path: Path, children: ForkServer, figures: collections.Counter[str]
) -> None:
    assert die_at_each_point(tmp_path, children, figures, durability, None) > 40


@pytest.mark.parametrize("bug", BUGS)
def test_the_deaths_find_a_pipeline_with(
    bug: str, tmp_path: Path, children: ForkServer, figures: collections.Counter[str]
) -> None:
    with pytest.raises(AssertionError, match="is no exact copy"):
        die_at_each_point(tmp_path, children, figures, "os", bug)
