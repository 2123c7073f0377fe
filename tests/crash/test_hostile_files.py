"""Anything in the place of a store's files: an error that says so, or the right records; no crash, no hang, no write
outside of the store, and memory within a bound."""

from __future__ import annotations

import collections
import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc

from .forkserver import Channel, ForkServer
from .hostile import KINDS, TOPIC, bound_memory, make_store, use, values_of

if not sys.platform.startswith("linux"):
    pytest.skip("other systems have other kinds of files", allow_module_level=True)

# Of a topic with the folder {topic}: which file, and whether all records must be there whatever happens to it.
TARGETS: dict[str, tuple[str, bool]] = {
    "catalog": ("catalog.sqlite", True),
    "journal": ("journal", False),  # which holds what may be nowhere else
    "journal-state": ("journal-state", True),
    "signal": ("signal", True),
    "maintenance.lock": ("maintenance.lock", True),
    "topics": ("topics", True),
    "topic": ("topics/{topic}", False),
    "state": ("topics/{topic}/state", True),
    "partition": ("topics/{topic}/0", False),
    "first segment": ("topics/{topic}/0/{first}.arrows", True),
    "last segment": ("topics/{topic}/0/{last}.arrows", False),
    "first index": ("topics/{topic}/0/{first}.index", True),
    "last index": ("topics/{topic}/0/{last}.index", True),
    "producers": ("topics/{topic}/0/.producers", True),
    "aborted": ("topics/{topic}/0/{last}.aborted", True),
}
SKIPPED = {"first segment": {"nothing"}}  # a log may begin anywhere: so does one without its first segment
HINTS = {"signal", "maintenance.lock", "first index", "last index", "producers", "aborted", "journal-state"}
KINDS_OF_HINTS = {"a pipe", "a folder", "a dangling link", "a link to the same", "random bytes", "huge"}


def kinds_of(target: str) -> list[str]:
    """What is put in its place: for files that are made from others a part of it, unless all is asked for."""
    some = target in HINTS and "STREAMCORE_HOSTILE_ALL" not in os.environ
    return [kind for kind in KINDS if kind not in SKIPPED.get(target, ()) and (not some or kind in KINDS_OF_HINTS)]


def place_of(store_path: Path, target: str) -> Path:
    """The file of a target, which some stores do not have."""
    (topic,) = (store_path / "topics").glob(f"{TOPIC}-*")
    segments = sorted(path.stem for path in (topic / "0").glob("*.arrows"))
    return store_path / TARGETS[target][0].format(topic=topic.name, first=segments[0], last=segments[-1])


def use_all_kinds(channel: Channel, folder: str, target: str) -> None:
    """Puts each kind in the place of one file of a fresh copy, and uses the copy in both modes."""
    bound_memory()
    wanted = None
    for kind in kinds_of(target):
        for mode in ("r", "rw"):
            copy = Path(folder) / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(Path(folder) / "store", copy)
            if wanted is None:
                with sc.open(copy, "r") as store:
                    wanted = values_of(store)
            place = place_of(copy, target)
            if not place.exists():
                place.write_bytes(b"")
            channel.send("AT", kind, mode)
            KINDS[kind](place)
            found = use(copy, mode)
            found.check_values(wanted, whole=TARGETS[target][1])
            if "link" in kind and mode == "rw" and target in ("catalog", "topics", "topic", "partition", "state"):
                assert found.errors, "a link was followed"
            channel.send("DONE", "errors" if found.errors else "none")
    channel.send("END")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a store that nobody has open."""
    made = tmp_path_factory.mktemp("hostile")
    make_store(made / "store")
    return made


@pytest.mark.parametrize("target", TARGETS)
def test_anything_in_the_place_of_a_file_is_an_error_or_harmless(
    target: str, folder: Path, children: ForkServer, figures: collections.Counter[str]
) -> None:
    child = children.start(use_all_kinds, folder=str(folder), target=target)
    child.read_until(lambda: child.said("END") or child.at_end, deadline_s=120)
    where = child.said("AT")[-1:]
    assert child.wait() == 0, f"{target} as {where}: status {child.status}: {child.failure()}"
    outcomes = [outcome for (outcome,) in child.said("DONE")]
    assert len(outcomes) == 2 * len(kinds_of(target))
    figures["hostile files"] += len(outcomes)
    if target in ("catalog", "topic", "first segment"):
        assert "errors" in outcomes


def use_untouched(channel: Channel, folder: str) -> None:
    """The control: nothing is wrong, and nothing is said to be."""
    bound_memory()
    for mode in ("r", "rw"):
        copy = Path(folder) / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(Path(folder) / "store", copy)
        found = use(copy, mode)
        channel.send("ERRORS", len(found.errors), *found.errors.values())
        with sc.open(Path(folder) / "store", "r") as store:
            found.check_values(values_of(store), whole=True)


def test_control_an_untouched_store_is_used_without_an_error(folder: Path, children: ForkServer) -> None:
    child = children.start(use_untouched, folder=str(folder))
    assert child.wait() == 0, child.failure()
    assert [words[0] for words in child.said("ERRORS")] == ["0", "0"], child.said("ERRORS")


def use_with_a_hidden_record(channel: Channel, folder: str) -> None:
    """The control: a store that lacks a record is not taken for right."""
    found = use(Path(folder) / "store", "r")
    with sc.open(Path(folder) / "store", "r") as store:
        wanted = values_of(store)
    found.values[f"{TOPIC} 0"].pop(3)
    for whole in (True, False):
        try:
            found.check_values(wanted, whole=whole)
            channel.send("MISSED")
        except AssertionError:
            channel.send("CAUGHT")


def test_control_a_wrong_record_is_caught(folder: Path, children: ForkServer) -> None:
    child = children.start(use_with_a_hidden_record, folder=str(folder))
    assert child.wait() == 0, child.failure()
    assert len(child.said("CAUGHT")) == 2


# ---- links --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    make_store(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("target", ["topics", "topic", "partition", "last segment", "state", "journal", "catalog"])
def test_nothing_is_written_through_a_link(
    target: str, store_path: Path, tmp_path: Path, picture: Callable[[Path], Any]
) -> None:
    place, away = place_of(store_path, target), tmp_path / "away"
    if place.exists():
        place.rename(away)
    else:
        away.write_bytes(bytes(4096))
    place.symlink_to(away)
    (tmp_path / "kept").mkdir()
    kept = tmp_path / "kept" / "away"
    away.rename(kept)
    place.unlink()
    place.symlink_to(kept)
    before = picture(tmp_path / "kept")
    found = use(store_path, "rw")
    assert any("symbolic link" in error or "Not a directory" in error for error in found.errors.values()), found.errors
    assert picture(tmp_path / "kept") == before


def test_a_store_may_be_reached_through_links(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store_path)
    with sc.open(tmp_path / "link") as linked, sc.open(store_path) as direct:
        wanted = direct.topic(TOPIC).scan().count() + 2
        linked.topic(TOPIC).append([b"1"])
        direct.topic(TOPIC).append([b"2"])
        assert linked.topic(TOPIC).scan().count() == direct.topic(TOPIC).scan().count() == wanted


def test_a_catalog_with_a_second_name_is_read_and_not_written(store_path: Path, tmp_path: Path) -> None:
    os.link(store_path / "catalog.sqlite", tmp_path / "second")
    with pytest.raises(sc.StorageError, match=r"2 names \(hard links\)") as raised:
        sc.open(store_path)
    assert raised.value.errno == errno.EMLINK
    with sc.open(store_path, "r") as store:
        assert store.topic(TOPIC).scan().count() > 0
    (tmp_path / "second").unlink()
    sc.open(store_path).close()


# ---- names --------------------------------------------------------------------------------------------------------

ODD_NAMES = [
    "0.arrows", "-1.arrows", "00000000000000000001.ARROWS", "0000000000000000000a.arrows",
    "99999999999999999999.arrows",
    "00000000000000000000.arrows.new", "00000000000000000000.arrows.tmp", "00000000000000000000.arrows~", "\n", "%s%n",
    "00000000000000000007.arrows\n", " 00000000000000000007.arrows", "9223372036854775808.arrows", ".arrows", "x" * 255,
]  # fmt: skip


def test_files_with_odd_names_are_passed_over(store_path: Path) -> None:
    with sc.open(store_path, "r") as store:
        wanted = values_of(store)
    for name in ODD_NAMES:
        place = place_of(store_path, "partition") / name
        if not place.exists():
            place.write_bytes(b"not ours")
        (store_path / name).write_bytes(b"not ours")
        (store_path / "topics" / name).mkdir(exist_ok=True)
    for mode in ("r", "rw"):
        found = use(store_path, mode)
        assert not found.errors
        found.check_values(wanted, whole=True)
    assert (store_path / "x").exists() or (store_path / ("x" * 255)).read_bytes() == b"not ours"


@pytest.mark.parametrize("change", [-1, 1, 1 << 40])
def test_a_segment_with_the_name_of_another_offset_is_an_error(change: int, store_path: Path) -> None:
    last = place_of(store_path, "last segment")
    last.rename(last.with_name(f"{int(last.stem) + change:020}.arrows"))
    for mode in ("r", "rw"):
        found = use(store_path, mode)
        assert f"{TOPIC} 0" in found.errors, found.values.keys()


@pytest.mark.parametrize("name", [".deleted-x", ".hidden", "..x", "-", "a.b-c_d", "x" * 249])
def test_a_topic_of_any_name_outlives_the_next_opening(name: str, tmp_path: Path) -> None:
    with sc.open(tmp_path / "store") as store:
        store.create_topic(name, partitions=2).append([b"1", b"2"], keys=[b"a", b"c"], durability="disk")
    for _ in range(2):
        with sc.open(tmp_path / "store") as store:
            assert store.topic(name).scan().count() == 2
            assert store.verify() == []


def test_a_file_larger_than_any_segment_is_damage_and_not_read_through(store_path: Path) -> None:
    last = place_of(store_path, "last segment")
    try:
        os.truncate(last, (1 << 43) - 4096)
    except OSError:
        pytest.skip("the file system knows no files of 8 TiB")
    for mode in ("r", "rw"):
        with sc.open(store_path, mode) as store, pytest.raises(sc.StreamcoreError, match="larger than a segment"):
            store.topic(TOPIC).scan(partition=0).to_arrow()
