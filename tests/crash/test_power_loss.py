"""The machine loses power: at the level of files, every sector that was not synced may be new or old, every name too.

A writer appends and flushes, then appends more; the folder as it was flushed and the folder as it is then are mixed in
thousands of ways, the boot id is another one, and the log must be a prefix that holds all that was flushed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import random
import shutil
import sqlite3
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest

import streamcore as sc

from .forkserver import Channel, ForkServer
from .ledger import Part, expected_rows, same_rows
from .logs import TOPIC as TOPIC_OF_LOGS
from .logs import Log, make_log, pretend_power_loss
from .segments import Frame, flip, frames, only_segment, overwrite
from .writers import PATHS, TOPIC, WritePath, append_call, table_of

STATES = int(os.environ.get("STREAMCORE_POWER_LOSSES", "400"))
SECTOR = 512
Figures = collections.Counter[str]


class Shape(NamedTuple):
    """How many calls come before the flush and after it, and how many percent of the states are of this path."""

    before: int
    after: int
    share: int


_SHAPES = {
    "lists": Shape(6, 12, 25),
    "rolls": Shape(8, 24, 25),
    "tables": Shape(2, 6, 10),
    "zstd": Shape(2, 6, 10),
    "typed": Shape(2, 6, 10),
    "rolls of tables": Shape(3, 6, 15),
    "many batches": Shape(0, 2, 5),
}


def write_flush_write(channel: Channel, store_path: str, path_name: str, before: int, after: int) -> None:
    """Appends, flushes, says FLUSHED and waits; appends more, says WRITTEN and waits for its end."""
    store = sc.open(store_path)
    path = PATHS[path_name]
    topic = path.make_topic(store)
    for call in range(before):
        append_call(topic, path, table_of(path_name, 0, call))
    store.flush()
    channel.send("FLUSHED")
    channel.wait_to_be_told()
    for call in range(before, before + after):
        append_call(topic, path, table_of(path_name, 0, call))
    channel.send("WRITTEN")
    channel.wait_to_be_told()


@dataclasses.dataclass
class Disk:
    """A store as it was flushed, as it was when the power went, and what was appended."""

    path: WritePath
    folder: str
    flushed: dict[str, bytes]
    written: dict[str, bytes]
    rows: dict[int, pa.Table]
    flushed_rows: dict[int, int]
    ends: dict[int, set[int]]

    def lose_power(self, target: Path, chance: random.Random) -> None:
        """Makes one of the states in which the drive may be found."""
        shutil.rmtree(target, ignore_errors=True)
        keep = chance.choice([0.0, 0.02, 0.1, 0.5, 0.9, 0.98, 1.0])
        for name, new in self.written.items():
            old = self.flushed.get(name)
            content = new
            if name.startswith("topics") and not name.endswith("state"):
                mixed = mix(old, new, keep, chance)
                if mixed is None:
                    continue
                content = mixed
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (target / "topics" / self.folder).mkdir(parents=True, exist_ok=True)


def mix(old: bytes | None, new: bytes, keep: float, chance: random.Random) -> bytes | None:
    """A file of which each sector is new with a probability, else old; None: its name was never written."""
    if old is None and chance.random() > max(keep, 0.3):
        return None
    if old == new:
        return new
    size = len(new)
    if chance.random() < 0.2:  # its new size was not written
        smallest = 0 if old is None else min(len(old), size)
        size = chance.choice([smallest, chance.randrange(smallest, size + 1) // SECTOR * SECTOR, size])
        size = max(size, smallest)
    old = (old or b"").ljust(size, b"\0")
    made = bytearray(new[:size])
    if chance.random() < 0.1:  # everything up to somewhere, and nothing behind it
        start = chance.randrange(size + 1) // SECTOR * SECTOR
        made[start:] = old[start:size]
        return bytes(made)
    for at in range(0, size, SECTOR):
        if chance.random() >= keep:
            made[at : at + SECTOR] = old[at : min(at + SECTOR, size)]
    return bytes(made)


def files_of(store_path: Path) -> dict[str, bytes]:
    """All files of a store."""
    return {str(path.relative_to(store_path)): path.read_bytes() for path in store_path.rglob("*") if path.is_file()}


def make_disk(path_name: str, store_path: Path, children: ForkServer) -> Disk:
    """Runs the writer, and takes both pictures."""
    before, after, _ = _SHAPES[path_name]
    child = children.start(
        write_flush_write, store_path=str(store_path), path_name=path_name, before=before, after=after
    )
    child.read_until(lambda: child.said("FLUSHED"))
    flushed = files_of(store_path)
    with sc.open(store_path, "r") as store:
        flushed_rows = {p.index: p.end_offset for p in store.topic(TOPIC).partitions}
    child.tell()
    child.read_until(lambda: child.said("WRITTEN"))
    child.kill()
    written = files_of(store_path)
    with sc.open(store_path, "r") as store:
        topic = store.topic(TOPIC)
        rows = {p.index: topic.scan(partition=p.index).to_arrow() for p in topic.partitions}
        assert any(rows[p].num_rows > flushed_rows[p] for p in rows), "nothing is left to lose"
        path = PATHS[path_name]
        ends = {p: ends_of_appends(path_name, before + after, p) for p in rows}
        return Disk(path, topic.folder, flushed, written, rows, flushed_rows, ends)


def ends_of_appends(path_name: str, calls: int, partition: int) -> set[int]:
    """Where a log may end: before the first append, or behind any."""
    sizes = [expected_rows(path_name, Part(0, call, partition)).num_rows for call in range(calls)]
    return {0, *itertools.accumulate(sizes)}


def check_prefix(disk: Disk, store_path: Path, mode: str) -> int:
    """Each partition is a prefix of whole appends with all that was flushed; returns how many records are lost."""
    lost = 0
    with sc.open(store_path, mode) as store:
        topic = store.topic(TOPIC)
        for partition, rows in disk.rows.items():
            found = topic.scan(partition=partition).to_arrow()
            assert found.num_rows >= disk.flushed_rows[partition], "what was flushed is lost"
            assert same_rows(found, rows.slice(0, found.num_rows)), "this is no prefix"
            assert found.num_rows in disk.ends[partition], "this is no whole append"
            assert found.column("offset").equals(rows.column("offset").slice(0, found.num_rows))
            lost += rows.num_rows - found.num_rows
        assert store.verify() == []
    return lost


def check_state(disk: Disk, store_path: Path) -> int:
    """A reader, then a writer see the same prefix, and the log goes on; returns how many records are lost."""
    if (store_path / "topics" / disk.folder / "state").exists():
        pretend_power_loss(store_path / "topics" / disk.folder)
    lost = check_prefix(disk, store_path, "r")
    assert check_prefix(disk, store_path, "rw") == lost
    with sc.open(store_path) as store:
        topic = store.topic(TOPIC)
        ends = [partition.end_offset for partition in topic.partitions]
        spans = append_call(topic, disk.path, table_of(disk.path.name, 9, 9))
        assert all(span.first_offset == ends[span.partition] for span in spans)
        assert topic.scan().to_arrow().num_rows == sum(ends) + sum(s.end_offset - s.first_offset for s in spans)
        assert store.verify() == []
    return lost


@pytest.mark.parametrize("path_name", _SHAPES)
def test_after_a_power_loss_the_log_is_a_prefix_with_all_that_was_flushed(
    path_name: str, tmp_path: Path, children: ForkServer, figures: Figures
) -> None:
    disk = make_disk(path_name, tmp_path / "store", children)
    chance = random.Random(path_name)
    states = STATES * _SHAPES[path_name].share // 100
    losses = collections.Counter[bool]()
    for _ in range(states):
        disk.lose_power(tmp_path / "after", chance)
        losses[check_state(disk, tmp_path / "after") > 0] += 1
    assert losses[True] > 0
    assert losses[False] > 0
    figures["power losses"] += states
    figures["power losses that lost records"] += losses[True]


def test_control_a_drive_that_loses_what_was_flushed_is_caught(tmp_path: Path, children: ForkServer) -> None:
    disk = make_disk("lists", tmp_path / "store", children)
    after = tmp_path / "after"
    frame = frames(only_segment(tmp_path / "store"))[2]
    caught = 0
    for seed in range(10):
        disk.lose_power(after, random.Random(seed))
        overwrite(only_segment(after), frame.position, bytes(frame.size))
        try:
            check_state(disk, after)
        except (AssertionError, sc.CorruptionError):
            caught += 1
    assert caught == 10


def test_control_half_an_append_is_caught(tmp_path: Path, children: ForkServer) -> None:
    disk = make_disk("tables", tmp_path / "store", children)
    disk.lose_power(tmp_path / "after", random.Random(1))
    disk.ends[0] -= {check_prefix(disk, tmp_path / "after", "r"), disk.rows[0].num_rows}
    disk.ends[0] = {end + 1 for end in disk.ends[0]}
    with pytest.raises(AssertionError, match="no whole append"):
        check_state(disk, tmp_path / "after")


# ---- what was lost, and what was damaged --------------------------------------------------------------------------


@pytest.fixture
def flushed_once(store_path: Path) -> Log:
    """Thirty appends, of which the first ten were flushed: the headers of the later ones say so."""
    return make_log(store_path, 30, between=lambda topic, n: topic.flush() if n == 9 else None)


@pytest.mark.parametrize("how", ["zeros", "garbage", "flip"])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_gap_in_what_was_never_flushed_ends_the_log_after_a_power_loss(
    how: str, mode: str, flushed_once: Log
) -> None:
    log = flushed_once
    path, frame = log.frames()[20]
    damage(path, frame, how)
    pretend_power_loss(log.topic_path)
    assert log.read(mode) == log.values[: frame.base_offset]
    log.check_sound(log.values[: frame.base_offset])


@pytest.mark.parametrize("how", ["zeros", "garbage", "flip"])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_the_same_gap_is_corruption_when_the_machine_stayed_up(how: str, mode: str, flushed_once: Log) -> None:
    log = flushed_once
    path, frame = log.frames()[20]
    damage(path, frame, how)
    with pytest.raises(sc.CorruptionError) as raised:
        log.read(mode)
    assert (raised.value.path, raised.value.offset, raised.value.position) == (
        str(path),
        frame.base_offset,
        frame.position,
    )
    assert log.read(mode, start=frame.end_offset) == log.values[frame.end_offset :]


@pytest.mark.parametrize("how", ["zeros", "garbage", "flip"])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_gap_in_what_was_flushed_is_corruption_also_after_a_power_loss(
    how: str, mode: str, flushed_once: Log
) -> None:
    log = flushed_once
    path, frame = log.frames()[5]
    damage(path, frame, how)
    pretend_power_loss(log.topic_path)
    with pytest.raises(sc.CorruptionError) as raised:
        log.read(mode)
    assert (raised.value.path, raised.value.offset, raised.value.position) == (
        str(path),
        frame.base_offset,
        frame.position,
    )
    assert log.read(mode, start=frame.end_offset) == log.values[frame.end_offset :]
    assert log.problems(mode) == [(str(path), frame.base_offset, frame.position)]


def test_a_session_that_never_used_a_log_does_not_hide_the_power_loss_from_the_next(flushed_once: Log) -> None:
    log = flushed_once
    path, frame = log.frames()[20]
    damage(path, frame, "zeros")
    pretend_power_loss(log.topic_path)
    with sc.open(log.store_path) as store:
        store.topic(TOPIC_OF_LOGS).open()
    log.check_sound(log.values[: frame.base_offset])


def test_a_log_that_was_cut_after_a_power_loss_is_not_cut_again(flushed_once: Log) -> None:
    log = flushed_once
    path, frame = log.frames()[20]
    damage(path, frame, "zeros")
    pretend_power_loss(log.topic_path)
    log.check_sound(log.values[: frame.base_offset])
    path, frame = log.frames()[15]
    flip(path, frame.body_position)
    with pytest.raises(sc.CorruptionError):
        log.read("rw")
    assert log.read("rw", start=frame.end_offset) == log.values[frame.end_offset :]


def damage(path: Path, frame: Frame, how: str) -> None:
    """Damages a batch."""
    if how == "flip":
        flip(path, frame.body_position)
    else:
        overwrite(path, frame.position, bytes(frame.size) if how == "zeros" else random.Random(1).randbytes(frame.size))


# ---- what was read, and lost with the power ------------------------------------------------------------------------


def read_and_commit(channel: Channel, store_path: str) -> None:
    """Appends ten records and flushes, then ten more; a group reads all of them and commits, says READ and waits."""
    store = sc.open(store_path, maintenance=False)
    topic = store.create_topic(TOPIC)
    topic.append([b"kept"] * 10, durability="disk")
    channel.send("FLUSHED")
    channel.wait_to_be_told()
    topic.append([b"lost"] * 10, durability="os")
    with store.consumer(TOPIC, group="readers") as member:
        assert len(member.poll()) == 20
        member.commit()
    channel.send("READ")
    channel.wait_to_be_told()


def test_a_group_does_not_pass_over_what_comes_in_place_of_records_that_it_read_and_that_were_lost(
    tmp_path: Path, children: ForkServer
) -> None:
    child = children.start(read_and_commit, store_path=str(tmp_path / "store"))
    child.read_until(lambda: child.said("FLUSHED"))
    flushed = only_segment(tmp_path / "store").read_bytes()
    child.tell()
    child.read_until(lambda: child.said("READ"))
    child.kill()
    only_segment(tmp_path / "store").write_bytes(flushed)
    [folder] = (tmp_path / "store" / "topics").iterdir()
    pretend_power_loss(folder)
    with contextlib.closing(sqlite3.connect(tmp_path / "store" / "catalog.sqlite")) as catalog:
        catalog.execute("update group_boot set boot = 'another'")
        catalog.commit()
    with sc.open(tmp_path / "store", maintenance=False) as store:
        assert int(store.group("readers").offsets()[TOPIC, 0]) == 10
        store.topic(TOPIC).append([b"new"] * 15)
        with store.consumer(TOPIC, group="readers") as member:
            assert [record.offset for record in member.poll()] == list(range(10, 25))
