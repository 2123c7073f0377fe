"""Stores that are opened twice, moved, taken away or copied while in use, and command lines over hostile ones."""

from __future__ import annotations

import collections
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import streamcore as sc
from streamcore.cli import main

from .forkserver import Channel, ForkServer
from .hostile import KINDS, TOPIC, make_store
from .logs import pretend_power_loss
from .mounts import run

# ---- two stores on one folder -------------------------------------------------------------------------------------


def spellings(path: Path, tmp_path: Path) -> list[Path]:
    """Ways to one folder."""
    (tmp_path / "link").symlink_to(path)
    return [path, path / ".", path.parent / "x" / ".." / path.name, tmp_path / "link", Path(os.path.relpath(path))]


def test_stores_of_one_folder_in_one_process_see_and_wait_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    path = tmp_path / "store"
    sc.open(path).close()
    stores = [sc.open(one, maintenance=False) for one in spellings(path, tmp_path)]
    stores[0].create_topic("t")

    def append(store: sc.Store, n: int) -> None:
        for i in range(50):
            store.topic("t").append([b"%d %d" % (n, i)] * 2, durability="disk" if i % 10 == 0 else None)

    threads = [threading.Thread(target=append, args=(store, n)) for n, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        values = [record.value for record in store.topic("t").scan()]
        assert len(values) == 100 * len(stores)
        for n in range(len(stores)):
            assert [value for value in values if value.startswith(b"%d " % n)] == [
                b"%d %d" % (n, i) for i in range(50) for _ in range(2)
            ]
        store.close()
    with sc.open(path) as store:
        assert store.topic("t").scan().count() == 100 * len(stores)
        assert store.verify() == []


def append_through(channel: Channel, path: str, count: int) -> None:
    """Appends, one record a call."""
    with sc.open(path) as store:
        for n in range(count):
            store.topic("t").append([b"child %d" % n])
    channel.send("END")


def test_a_bind_mount_of_a_store_is_that_store(tmp_path: Path, children: ForkServer) -> None:
    path, bound = tmp_path / "store", tmp_path / "bound"
    sc.open(path).close()
    bound.mkdir()
    run("mount", "--bind", str(path), str(bound))
    try:
        with sc.open(path) as store:
            topic = store.create_topic("t")
            child = children.start(append_through, path=str(bound), count=100)
            for n in range(100):
                topic.append([b"parent %d" % n])
            assert child.wait() == 0, child.failure()
            values = [record.value for record in topic.scan()]
            for who in (b"parent", b"child"):
                assert [value for value in values if value.startswith(who)] == [b"%b %d" % (who, n) for n in range(100)]
    finally:
        subprocess.run(["umount", "-l", str(bound)], check=True)


# ---- a store that goes away ----------------------------------------------------------------------------------------


def use_what_is_left(store: sc.Store, topic: sc.Topic) -> list[str]:
    """Everything that one does with it; only errors of streamcore come out."""
    said = []
    for work in (
        lambda: topic.append([b"x"]),
        lambda: topic.append([b"x" * (1 << 20)]),
        lambda: topic.append([b"x"], durability="disk"),
        lambda: topic.scan().to_arrow(),
        lambda: store.create_topic("more"),
        lambda: store.topic("t"),
        lambda: store.set_setting("a", "b"),
        store.flush,
        topic.roll,
        lambda: topic.append([b"y"]),
        store.verify,
        store.close,
    ):
        try:
            work()
        except sc.StreamcoreError as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize("fate", ["deleted", "moved", "replaced by nothing", "replaced by another store"])
def test_a_store_that_goes_away_while_it_is_open_gives_errors_and_touches_nothing_else(
    fate: str, tmp_path: Path
) -> None:
    path, other = tmp_path / "store", tmp_path / "other"
    with sc.open(other) as made:
        made.create_topic("t").append([b"theirs"])
    store = sc.open(path, maintenance=False)
    topic = store.create_topic("t")
    topic.append([b"mine"] * 10)
    topic.flush()
    if fate == "deleted":
        shutil.rmtree(path)
    else:
        path.rename(tmp_path / "moved")
    if fate == "replaced by nothing":
        path.mkdir()
    if fate == "replaced by another store":
        shutil.copytree(other, path)
    assert use_what_is_left(store, topic)
    if fate == "replaced by another store":
        with sc.open(path) as theirs:
            assert [record.value for record in theirs.topic("t").scan()] == [b"theirs"]
            assert theirs.verify() == []
    if fate.startswith(("moved", "replaced")):
        with sc.open(tmp_path / "moved") as mine:
            assert [record.value for record in mine.topic("t").scan()][:10] == [b"mine"] * 10


# ---- copies ---------------------------------------------------------------------------------------------------------


def append_until_told(channel: Channel, path: str) -> None:
    """Appends numbers in order to both partitions, until the parent has seen enough."""
    with sc.open(path) as store:
        topic = store.create_topic("t", partitions=2, segment_bytes=64 << 10)
        n = 0
        while not channel.is_told_to_stop():
            topic.append([b"%d" % n + bytes(300)], partition=n % 2)
            n += 1
            if n % 50 == 0:
                topic.flush()
                channel.send("AT", n)


@pytest.mark.parametrize("boot", ["same", "another"])
def test_a_store_that_was_copied_while_it_was_written_has_no_wrong_record(
    boot: str, tmp_path: Path, children: ForkServer, figures: collections.Counter[str]
) -> None:
    path = tmp_path / "store"
    child = children.start(append_until_told, path=str(path))
    child.read_until(lambda: child.said("AT"))
    for number in range(5):
        seen = len(child.said("AT"))
        child.read_until(lambda seen=seen: len(child.said("AT")) > seen)  # type: ignore[misc]
        copy = tmp_path / f"copy {number}"
        done = subprocess.run(["cp", "-r", str(path), str(copy)], check=False, capture_output=True)
        if done.returncode != 0:
            figures["copies that cp could not finish"] += 1
        if boot == "another":
            for topic in (copy / "topics").iterdir():
                pretend_power_loss(topic)
        figures[f"copies: {check_copy(copy)}"] += 1
    assert child.stop() == 0, child.failure()
    assert check_copy(path) == "whole"


def check_copy(copy: Path) -> str:
    """What it is worth: "whole", or "error" where it says so. Fails for a record that is wrong."""
    outcome = "whole"
    for mode in ("r", "rw"):
        try:
            with sc.open(copy, mode, maintenance=False) as store:  # type: ignore[arg-type]
                for partition in range(2):
                    for n, record in enumerate(store.topic("t").scan(partition=partition)):
                        assert record.value == b"%d" % (2 * n + partition) + bytes(300)
                if mode == "rw":
                    store.topic("t").append([b"goes on"], partition=0)
        except sc.StreamcoreError as error:
            said = str(error)
            if str(copy) not in said:
                raise AssertionError(f"it does not say which file: {said}") from error
            outcome = "error"
    return outcome


def test_control_a_wrong_record_in_a_copy_is_caught(tmp_path: Path) -> None:
    with sc.open(tmp_path / "store") as store:
        store.create_topic("t", partitions=2).append([b"7" + bytes(300)], partition=0)
    with pytest.raises(AssertionError):
        check_copy(tmp_path / "store")


# ---- the command line ------------------------------------------------------------------------------------------------

COMMANDS = [
    ("topic", "list"), ("topic", "describe", TOPIC), ("tail", TOPIC), ("stats",), ("verify",), ("groups", "list"),
    ("sql", f"select count(*) from {TOPIC}"), ("maintain",), ("topic", "create", "more"),
    ("topic", "delete", TOPIC, "--yes"),
]  # fmt: skip
DAMAGE = {
    "catalog is text": ("catalog.sqlite", "text"),
    "catalog is a pipe": ("catalog.sqlite", "a pipe"),
    "catalog is gone": ("catalog.sqlite", "nothing"),
    "catalog is a link": ("catalog.sqlite", "a link to the same"),
    "topics are a link": ("topics", "a link to the same"),
    "journal is a folder": ("journal", "a folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_command_line_over_a_hostile_store_says_one_line_and_fails(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "store")
    name, kind = DAMAGE[damage]
    place = tmp_path / "store" / name
    if not place.exists():
        place.touch()
    KINDS[kind](place)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main(["--store", str(tmp_path / "store"), *command])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if name == "journal" and not said:
            continue  # a command that only reads, and needs none
        assert ended.value.code == 1, f"{command}: {said}"
        lines = said.strip().splitlines()
        assert lines[-1].startswith("error: "), said
        assert len(lines) == 1, said


def test_control_the_same_commands_work_over_a_sound_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_store(tmp_path / "store")
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main(["--store", str(tmp_path / "store"), *command])
        assert not ended.value.code, f"{command}: {capsys.readouterr().err}"


if not sys.platform.startswith("linux"):
    pytest.skip("other systems have other kinds of files", allow_module_level=True)
