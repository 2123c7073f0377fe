"""A process may die at each step of what the tier does: every acknowledged record is readable, once, at every moment.

A step is a call that changes something: an object, a document, a copy in the catalog, a folder. Each run of an action
is killed before or behind its n-th step, until it comes to its end; then the store is opened and checked, the action is
done again, and the store is checked again. Each time another one is made from a copy of the tier, which must know who
sent what is in it.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash.forkserver import Channel, ForkServer, fork_server

import streamcore as sc
from streamcore import _core, producer_ids, transactions
from streamcore.tier import keeping, kept, offload, restore
from streamcore.tier.folder import FolderObjects
from streamcore.tier.producers import Snapshots
from streamcore.topic import Topic

from .senders import Sender, check_known

PARTITIONS, SEGMENTS, EACH = 4, 3, 40
TARGET = 70  # records below it are what retention and deletion remove
_STEPS: list[tuple[Any, str]] = [
    (_core, "begin"),
    (FolderObjects, "_put"),
    (FolderObjects, "_put_file"),
    (FolderObjects, "_replace"),
    (FolderObjects, "_delete"),
    (kept, "keep_copy"),
    (kept, "keep_settings"),
    (kept, "keep_table"),
    (kept, "forget_table"),
    (producer_ids, "skip_to"),
    (restore, "_finish"),
    (Topic, "delete_local"),
    (transactions, "forget_machine"),
]


# ---- what is done ----------------------------------------------------------------------------------------------------


def _opened(path: str) -> sc.Store:
    return sc.open(Path(path) / "store", maintenance=False)


def _parts(store: sc.Store) -> tuple[Any, Any, Any]:
    topic = store.topic("clicks")
    return topic, store.tier, topic.cold


def do_offload(path: str) -> None:
    """All sealed segments, and the catalog."""
    with _opened(path) as store:
        store.topic("clicks").offload()
        assert store.tier is not None
        store.tier.back_up()


def do_local_retention(path: str) -> None:
    """Everything goes that the tier has."""
    with _opened(path) as store:
        store.topic("clicks").alter(local_retention_bytes=1)
        keeping.apply_local_retention(*_parts(store))


def do_retention(path: str) -> None:
    """The older part goes everywhere."""
    with _opened(path) as store:
        store.topic("clicks").alter(retention_bytes=1)
        keeping.apply_retention(*_parts(store))


def do_deletion(path: str) -> None:
    """The records below TARGET go."""
    with _opened(path) as store:
        store.topic("clicks").delete_records(dict.fromkeys(range(PARTITIONS), TARGET))


def do_gc(path: str) -> None:
    """Objects that nothing names go."""
    with _opened(path) as store:
        assert store.tier is not None
        for number in range(4):
            name = f"{store.topic('clicks').cold.folder}/0000000000/{0:020d}-{'0' * 32}-{number:08x}.parquet"  # type: ignore[union-attr]
            store.tier.objects.put(name, b"left over")
        store.tier.gc(grace_s=0)


def do_restore(path: str) -> None:
    """A store from the tier alone."""
    shutil.rmtree(Path(path) / "again", ignore_errors=True)
    sc.restore(f"file://{path}/tier", Path(path) / "again")


ACTIONS: dict[str, Callable[[str], None]] = {
    "offload": do_offload,
    "local retention": do_local_retention,
    "retention": do_retention,
    "deletion": do_deletion,
    "gc": do_gc,
    "restore": do_restore,
}


# ---- in the child ----------------------------------------------------------------------------------------------------


def act(channel: Channel, path: str, action: str, number: int, behind: bool, bug: str | None = None) -> None:
    """Does something, and dies before or behind its n-th step. Says END when there are not so many."""
    if bug is not None:
        _put_in_bug(bug)
    die_at(number, behind)
    ACTIONS[action](path)
    channel.send("END")


def die_at(number: int, behind: bool) -> None:
    """Has this process die before or behind the n-th step from now on."""
    count = 0

    def step(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **how: Any) -> Any:
            nonlocal count
            count += 1
            dies = count == number
            if dies and not behind:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **how)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for owner, name in _STEPS:
        setattr(owner, name, step(getattr(owner, name)))


def _put_in_bug(bug: str) -> None:
    if bug == "manifest first":
        waiting: list[Any] = []
        put, note = offload.put, offload._note
        offload.put = lambda *arguments: waiting.append(arguments)

        def noted(*arguments: Any) -> Any:
            result = note(*arguments)
            for each in waiting:
                put(*each)
            waiting.clear()
            return result

        offload._note = noted
    elif bug == "producers last":
        late: list[Any] = []
        put_objects, note_them = FolderObjects._put, offload._note

        def put_late(self: FolderObjects, path: str, data: bytes) -> str:
            if path.endswith(".producers"):
                late.append((self, path, data))
                return put_objects(self, path, bytes(len(data)))
            return put_objects(self, path, data)

        def note_then_put(*arguments: Any) -> Any:
            result = note_them(*arguments)
            for each in late:
                put_objects(*each)
            late.clear()
            return result

        FolderObjects._put = put_late  # type: ignore[method-assign]
        offload._note = note_then_put
    elif bug == "producers of the segment before":
        put_snapshot = Snapshots.put

        def put_old(self: Snapshots, offset: int, manifest: Any) -> Any:
            made = put_snapshot(self, offset, manifest)
            return made if manifest is None else manifest.producers.__class__(offset, *_but_offset(manifest.producers))

        Snapshots.put = put_old  # type: ignore[method-assign]
    elif bug == "catalog first":
        begun = restore._begun

        def begun_late(objects: Any, path: Path, *arguments: Any) -> Any:
            shutil.copy(path / "topics" / restore._MAKING / restore.CATALOG_NAME, path / restore.CATALOG_NAME)
            return begun(objects, path, *arguments)

        restore._begun = begun_late
    else:
        assert bug == "objects first"
        raise_start = keeping.raise_start

        def raised(tier: Any, log: Any, partition: int, offset: int) -> Any:
            for entry in log.fresh(partition).manifest.entries:
                if entry.end_offset <= offset:
                    tier.objects.delete(log.path_of(partition, entry.name))
            return raise_start(tier, log, partition, offset)

        keeping.raise_start = raised


def _but_offset(snapshot: Any) -> tuple[str, int, str]:
    return snapshot.name, snapshot.size, snapshot.digest


# ---- in the parent ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def children() -> Iterator[ForkServer]:
    """Forks children."""
    with fork_server() as running:
        yield running


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of some sealed segments."""
    path = tmp_path_factory.mktemp("template") / "made"
    with sc.open(path / "store", maintenance=False) as store:
        topic = store.create_topic("clicks", partitions=PARTITIONS)
        for number in range(SEGMENTS):
            for partition in range(PARTITIONS):
                first = number * EACH
                values = [b"%d/%d" % (partition, n) for n in range(first, first + EACH)]
                Sender(1 + partition).send(topic, first, values, partition)
            topic.roll()
    return path


def _place(template: Path, path: Path, offloaded: bool) -> None:
    """A copy, whose tier is beside it."""
    shutil.copytree(template, path)
    with sc.open(path / "store", maintenance=False, tier=f"file://{path}/tier") as store:
        topic = store.topic("clicks")
        topic.alter(tier=True)
        if offloaded:
            topic.offload()
            assert store.tier is not None
            store.tier.back_up()


def check(store_path: Path, lowest: int = 0) -> None:
    """All records are there, each once and in order, from some offset on that is not above `lowest`."""
    with sc.open(store_path, maintenance=False) as store:
        topic = store.topic("clicks")
        for partition in range(PARTITIONS):
            part = topic.partitions[partition]
            records = list(topic.scan(partition))
            assert part.start_offset <= lowest, f"the log begins at {part.start_offset}"
            wanted = list(range(part.start_offset, SEGMENTS * EACH))
            assert [record.offset for record in records] == wanted
            assert [record.value for record in records] == [b"%d/%d" % (partition, n) for n in wanted]
        assert store.tier is not None
        assert store.tier.verify() == []


def check_producers(path: Path) -> None:
    """A store that is made from a copy of the tier takes nothing again that is in it, and the next one of each."""
    about = path / "tier" / "store.json"
    if not about.exists() or json.loads(about.read_text())["catalog"] is None:
        return  # a first offload has just begun
    with tempfile.TemporaryDirectory(dir=path) as name:
        folder = Path(name)
        shutil.copytree(path / "tier", folder / "tier")
        sc.restore(f"file://{folder}/tier", folder / "store")
        with sc.open(folder / "store", maintenance=False) as store:
            for partition in range(PARTITIONS):
                check_known(store.topic("clicks"), partition, Sender(1 + partition), EACH, SEGMENTS + 1)


def check_restored(path: Path) -> None:
    """A restore that died left a whole store, or none: and then nobody can take it for one."""
    try:
        sc.open(path, maintenance=False).close()
    except sc.StoreFormatError:
        return
    check(path)
    with sc.open(path, maintenance=False) as store:
        for partition in range(PARTITIONS):
            check_known(store.topic("clicks"), partition, Sender(1 + partition), EACH, SEGMENTS + 1)


_LOWEST = {"retention": (SEGMENTS - 1) * EACH, "deletion": TARGET}


def kill_at_each_step(
    children: ForkServer, template: Path, folder: Path, action: str, bug: str | None = None
) -> Iterator[int]:
    """Kills at each step; the number of kills so far, each time that what a kill left was found to be right."""
    lowest = _LOWEST.get(action, 0)
    killed = 0
    for number in range(1, 1000):
        for behind in (False, True):
            path = folder / f"{number}-{behind}"
            _place(template, path, offloaded=action != "offload")
            child = children.start(act, path=str(path), action=action, number=number, behind=behind, bug=bug)
            child.wait()
            if not child.is_killed():
                assert child.said("END"), child.failure()
                shutil.rmtree(path)
                return
            if action == "restore" and (path / "again" / "topics").exists():
                check_restored(path / "again")
            check(path / "store", lowest)
            check_producers(path)
            ACTIONS[action](str(path))
            check(path / "again" if action == "restore" else path / "store", lowest)
            killed += 1
            yield killed
            shutil.rmtree(path)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_kill_at_any_step_loses_and_doubles_nothing(
    action: str, children: ForkServer, template: Path, tmp_path: Path
) -> None:
    kills = collections.deque(kill_at_each_step(children, template, tmp_path, action), maxlen=1)
    least = {"offload": 60, "local retention": 14, "retention": 20, "deletion": 20, "gc": 10, "restore": 30}
    found = kills.pop()
    print(f"{action}: {found} kills")
    assert found >= least[action]


@pytest.mark.parametrize(
    ("action", "bug"),
    [
        ("offload", "manifest first"),
        ("offload", "producers last"),
        ("offload", "producers of the segment before"),
        ("retention", "objects first"),
        ("restore", "catalog first"),
    ],
)
def test_the_checks_above_find_steps_in_the_wrong_order(
    action: str, bug: str, children: ForkServer, template: Path, tmp_path: Path
) -> None:
    with pytest.raises((AssertionError, sc.StreamcoreError)):
        collections.deque(kill_at_each_step(children, template, tmp_path, action, bug), maxlen=0)
