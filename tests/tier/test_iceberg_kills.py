"""A process may die at each step of what an Iceberg table takes: others read it at every moment, and the next round
ends what was begun.

As in test_tier_kills: each run of an action is killed before or behind its n-th step. What is left is looked at as
another program sees it, from the address of the table alone; then the action is done again, and the table is right.
"""

from __future__ import annotations

import collections
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash.forkserver import Channel, ForkServer

import streamcore as sc
from streamcore.tier import keeping, tables

from .test_tier_kills import children as children  # a fixture
from .test_tier_kills import die_at

pytest.importorskip("pyiceberg", reason="the extra [iceberg] is not installed")

from pyiceberg.table import StaticTable

from streamcore.tier.iceberg import table as iceberg_table

PARTITIONS, SEGMENTS, EACH = 2, 3, 40
NEVER = 1 << 30


# ---- what is done ----------------------------------------------------------------------------------------------------


def _opened(path: str) -> sc.Store:
    return sc.open(Path(path) / "store", maintenance=False)


def do_offload(path: str) -> None:
    """Segments go there, and the table names them."""
    with _opened(path) as store:
        store.topic("clicks").offload()


def do_retention(path: str) -> None:
    """The older part goes everywhere."""
    with _opened(path) as store:
        topic = store.topic("clicks")
        topic.alter(retention_bytes=1)
        assert store.tier is not None
        assert topic.cold is not None
        keeping.apply_retention(topic, store.tier, topic.cold)
        tables.follow(topic, store.tier, topic.cold)


def do_gc(path: str) -> None:
    """What nothing names goes."""
    with _opened(path) as store:
        assert store.tier is not None
        for number in range(3):
            folder = f"{store.topic('clicks').cold.folder}/{tables.METADATA_FOLDER}"  # type: ignore[union-attr]
            store.tier.objects.put(f"{folder}/left-m{number}.avro", b"left over")
        store.tier.gc(grace_s=0)


def do_drop(path: str) -> None:
    """The topic has no table any more."""
    with _opened(path) as store:
        store.topic("clicks").alter(tier_iceberg=False)
        store.maintain(["tier"])


ACTIONS: dict[str, Callable[[str], None]] = {
    "the first offload": do_offload,
    "a later offload": do_offload,
    "retention": do_retention,
    "gc": do_gc,
    "drop": do_drop,
}


# ---- in the child ----------------------------------------------------------------------------------------------------


def act(channel: Channel, path: str, action: str, number: int, behind: bool, bug: str | None = None) -> None:
    """Does something, and dies before or behind its n-th step. Says END when there are not so many."""
    if bug is not None:
        BUGS[bug]()
    die_at(number, behind)
    ACTIONS[action](path)
    channel.send("END")


def hint_first() -> None:
    """The hint says a version that is about to be made."""
    commit = iceberg_table.Table.commit

    def committed(self: Any, base: Any, made: Any) -> Any:
        self.point_to(1 if base is None else base.number + 1, base)
        again = None if base is None else base._replace(hint=self._hint())
        return commit(self, again, made)

    iceberg_table.Table.commit = committed  # type: ignore[method-assign]


def hint_believed() -> None:
    """A version that is newer than the hint is not looked for."""

    def current(self: Any) -> Any:
        hint = self._hint()
        number = 0 if hint is None else int(hint[0])
        return iceberg_table.Current(number, hint, self._parsed(self._version(number), number)) if number else None

    iceberg_table.Table.current = current  # type: ignore[method-assign]


def objects_first() -> None:
    """Objects go, and the table follows then."""
    follow = tables.follow
    apply_retention = keeping.apply_retention

    def applied(*arguments: Any) -> Any:
        tables.follow = lambda *_: True
        report = apply_retention(*arguments)
        tables.follow = follow
        return report

    keeping.apply_retention = applied


BUGS = {"hint first": hint_first, "hint believed": hint_believed, "objects first": objects_first}


# ---- in the parent ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of some sealed segments."""
    path = tmp_path_factory.mktemp("template") / "made"
    with sc.open(path / "store", maintenance=False) as store:
        topic = store.create_topic("clicks", partitions=PARTITIONS)
        for number in range(SEGMENTS):
            for partition in range(PARTITIONS):
                first = number * EACH
                topic.append([b"%d/%d" % (partition, n) for n in range(first, first + EACH)], partition=partition)
            topic.roll()
    return path


def _place(template: Path, path: Path, action: str) -> None:
    """A copy, whose tier is beside it."""
    shutil.copytree(template, path)
    with sc.open(path / "store", maintenance=False, tier=f"file://{path}/tier") as store:
        topic = store.topic("clicks")
        topic.alter(tier=True, tier_iceberg=True)
        if action != "the first offload":
            topic.offload()
        if action == "a later offload":
            topic.append([b"0/%d" % n for n in range(SEGMENTS * EACH, SEGMENTS * EACH + EACH)], partition=0)
            topic.roll(0)


def rows_outside(path: Path) -> list[tuple[int, int]] | None:
    """Partition and offset of all rows that another program finds; None: it finds no table."""
    places = list((path / "tier" / "topics").glob(f"*/{tables.METADATA_FOLDER}/{tables.HINT}"))
    if not places:
        return None
    try:
        found = StaticTable.from_metadata(places[0].parent.parent.as_uri()).scan().to_arrow()
    except OSError as error:
        raise AssertionError(f"another program cannot read the table: {error}") from None
    return sorted(zip(found.column("partition").to_pylist(), found.column("offset").to_pylist(), strict=True))


def check_outside(path: Path, action: str) -> None:
    """Another program reads each row once, of before or of afterwards."""
    found = rows_outside(path)
    if found is None:
        assert action in ("the first offload", "drop"), "the table is gone"
        return
    assert len(found) == len(set(found)), "a row is there twice"
    for partition in range(PARTITIONS):
        offsets = [offset for of, offset in found if of == partition]
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets))) if offsets else True
        assert not offsets or offsets[0] == 0 or action == "retention"


def check_store(path: Path, action: str) -> None:
    """The table is what the manifests say, the hint says its newest version, and nothing is left over."""
    with sc.open(path / "store", maintenance=False) as store:
        assert store.tier is not None
        topic = store.topic("clicks")
        [status] = store.tier.status().tables or [None]
        if action == "drop":
            assert status is None
            assert rows_outside(path) is None
            return
        assert status is not None
        assert status.error is None
        assert status.partitions_behind == 0
        assert store.tier.verify() == []
        store.tier.gc(grace_s=0)
        wanted = [(record.partition, record.offset) for record in topic.scan()]
        assert rows_outside(path) == sorted(wanted)
        [folder] = (path / "tier" / "topics").glob(f"*/{tables.METADATA_FOLDER}")
        versions = [int(name.name.split(".")[0][1:]) for name in folder.glob("v*.metadata.json")]
        assert int((folder / tables.HINT).read_text()) == max(versions)
        assert store.tier.gc(grace_s=0).objects == 0


def kill_at_each_step(
    children: ForkServer, template: Path, folder: Path, action: str, bug: str | None = None
) -> Iterator[int]:
    """Kills at each step; the number of kills so far, each time that what a kill left was found to be right."""

    def run(path: Path, number: int, behind: bool) -> bool:
        child = children.start(act, path=str(path), action=action, number=number, behind=behind, bug=bug)
        child.wait()
        assert child.is_killed() or child.said("END"), child.failure()
        return child.is_killed()

    killed = 0
    for number in range(1, 1000):
        for behind in (False, True):
            path = folder / f"{number}-{behind}"
            _place(template, path, action)
            if not run(path, number, behind):
                shutil.rmtree(path)
                return
            check_outside(path, action)
            assert not run(path, NEVER, False)
            check_store(path, action)
            killed += 1
            yield killed
            shutil.rmtree(path)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_kill_at_any_step_leaves_a_table_that_others_can_read_and_the_next_round_ends(
    action: str, children: ForkServer, template: Path, tmp_path: Path
) -> None:
    kills = collections.deque(kill_at_each_step(children, template, tmp_path, action), maxlen=1)
    least = {"the first offload": 50, "a later offload": 20, "retention": 30, "gc": 8, "drop": 12}
    found = kills.pop()
    print(f"{action}: {found} kills")
    assert found >= least[action]


@pytest.mark.parametrize(
    ("action", "bug"),
    [("a later offload", "hint first"), ("a later offload", "hint believed"), ("retention", "objects first")],
)
def test_the_checks_above_find_steps_in_the_wrong_order(
    action: str, bug: str, children: ForkServer, template: Path, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError):
        collections.deque(kill_at_each_step(children, template, tmp_path, action, bug), maxlen=0)
