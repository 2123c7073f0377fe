"""A log that was closed, or that rests, says itself that it is durable: damage at its end is then no torn tail."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import streamcore as sc
import streamcore.flusher

from .logs import TOPIC, Log, make_log, pretend_power_loss, values_of
from .segments import all_frames, flip, forget_notes, overwrite

_KINDS = ("value", "header", "zeros")


def damage_last(log: Log, kind: str) -> int:
    """Damages the last batch with records; returns its offset."""
    path, frame = log.frames()[-1]
    if kind == "value":
        flip(path, frame.body_position + 200)
    elif kind == "header":
        flip(path, frame.header_position + 30)
    else:
        overwrite(path, frame.position, bytes(frame.size))
    return frame.base_offset


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("power_lost", [False, True], ids=["machine stayed up", "power lost"])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_damage_to_the_last_batch_of_a_closed_log_is_corruption(
    kind: str, power_lost: bool, mode: str, store_path: Path
) -> None:
    log = make_log(store_path, 5, noted=True)
    offset = damage_last(log, kind)
    if power_lost:
        pretend_power_loss(log.topic_path)
    with pytest.raises(sc.CorruptionError) as raised:
        log.read(mode)
    assert (raised.value.path, raised.value.offset) == (str(log.path), offset)
    assert log.problems(mode) == [(str(log.path), offset, log.frames()[-1][1].position)] or kind != "value"
    assert log.problems(mode) != []
    with sc.open(store_path, mode) as store:
        assert store.topic(TOPIC).partitions[0].end_offset == len(log.values)
        assert values_of(store.topic(TOPIC), end=offset) == log.values[:offset]


@pytest.mark.parametrize("kind", _KINDS)
def test_control_without_the_note_the_same_damage_is_a_torn_end(kind: str, store_path: Path) -> None:
    log = make_log(store_path, 5, noted=True)
    forget_notes(log.path)
    offset = damage_last(log, kind)
    assert log.read("rw") == log.values[:offset]


def test_a_log_is_durable_to_its_end_after_it_was_closed_and_opened(store_path: Path) -> None:
    make_log(store_path, 5, noted=True)
    for mode in ("r", "rw"):
        with sc.open(store_path, mode) as store:
            partition = store.topic(TOPIC).partitions[0]
            assert partition.durable_offset == partition.end_offset == 15


def test_opening_and_closing_a_log_does_not_make_it_grow(store_path: Path) -> None:
    log = make_log(store_path, 5, noted=True)
    before = log.path.read_bytes()
    for _ in range(3):
        with sc.open(store_path) as store:
            assert values_of(store.topic(TOPIC)) == log.values
    assert log.path.read_bytes() == before


def wait_for_notes(path: Path, count: int) -> None:
    """Waits until the file has so many batches without records."""
    end = time.monotonic() + 20
    while sum(frame.record_count == 0 for frame in all_frames(path)) < count:
        assert time.monotonic() < end, "the log was not noted durable"
        time.sleep(0.02)


@pytest.mark.parametrize("durability", ["os", "disk"])
def test_a_log_that_rests_is_noted_durable_once(
    durability: str, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamcore.flusher, "NOTE_AFTER_S", 0.2)
    with sc.open(store_path, durability=durability) as store:
        topic = store.create_topic(TOPIC)
        topic.append([b"one"])
        path = Path(topic.segments()[0].path)
        wait_for_notes(path, 1)
        assert [frame.durable_offset for frame in all_frames(path)][-1] == 1
        time.sleep(1)
        assert len(all_frames(path)) == 2
        topic.append([b"two"])
        wait_for_notes(path, 2)
        assert values_of(topic) == [b"one", b"two"]
        assert store.verify() == []
    assert len(all_frames(path)) == 4


def test_what_a_killed_process_left_is_flushed_soon_after_somebody_looks(store_path: Path) -> None:
    log = make_log(store_path, 5)  # without its note it is as a killed process leaves it
    with sc.open(store_path) as store:
        topic = store.topic(TOPIC)
        assert values_of(topic) == log.values
        end = time.monotonic() + 20
        while topic.partitions[0].durable_offset < 15:
            assert time.monotonic() < end, "nobody flushed what was found"
            time.sleep(0.02)
