"""What the machine lost with its power, and what was damaged since: the log is cut there, or says what is wrong.

[power/test_states.py](power/test_states.py) loses power in every way; here single batches are spoilt by hand.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
from pathlib import Path

import pytest

import streamcore as sc

from .forkserver import Channel, ForkServer
from .logs import TOPIC as TOPIC_OF_LOGS
from .logs import Log, make_log, pretend_power_loss
from .segments import Frame, flip, only_segment, overwrite
from .writers import TOPIC


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
