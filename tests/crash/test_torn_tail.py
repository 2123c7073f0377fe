"""The last batch is torn, as by a crash: the log is cut back to the last whole append, and goes on from there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import streamcore as sc

from .logs import TOPIC, Log, make_log, values_of
from .segments import Frame, overwrite, schema_size
from .writers import COPIED_ROWS, numbered_table

Picture = Callable[[Path], dict[str, tuple[int, bytes]]]

PLACES: dict[str, Callable[[Frame], int]] = {
    "before its opening": lambda frame: frame.position,
    "inside its opening": lambda frame: frame.position + 4,
    "behind its opening": lambda frame: frame.position + 8,
    "inside its metadata": lambda frame: frame.position + 8 + frame.metadata_size // 2,
    "before its header": lambda frame: frame.header_position,
    "inside its header": lambda frame: frame.header_position + 61,
    "behind its header": lambda frame: frame.body_position,
    "inside its body": lambda frame: (frame.body_position + frame.end) // 2,
    "one byte before its end": lambda frame: frame.end - 1,
}


@pytest.fixture
def log(store_path: Path) -> Log:
    """Six appends in one segment."""
    return make_log(store_path, 6)


@pytest.mark.parametrize("place", PLACES)
def test_a_file_cut_inside_its_last_batch_ends_with_the_batch_before(place: str, log: Log, picture: Picture) -> None:
    path, last = log.frames()[-1]
    os.truncate(path, PLACES[place](last))
    before = picture(log.store_path)
    assert log.read("r") == log.values[: last.base_offset]
    assert picture(log.store_path) == before, "reading has written"
    log.check_sound(log.values[: last.base_offset])


@pytest.mark.parametrize("fill", ["zeros", "garbage"])
@pytest.mark.parametrize("place", PLACES)
def test_a_last_batch_that_is_partly_not_written_is_cut(place: str, fill: str, log: Log) -> None:
    path, last = log.frames()[-1]
    size = last.end - PLACES[place](last)
    overwrite(path, PLACES[place](last), bytes(size) if fill == "zeros" else random.Random(place).randbytes(size))
    if place == "one byte before its end" and fill == "zeros":
        return  # it was a zero before
    log.check_sound(log.values[: last.base_offset])


@pytest.mark.parametrize("size", [1, 8, 64, 5000])
def test_garbage_behind_the_end_of_the_log_is_cut(size: int, log: Log) -> None:
    path, last = log.frames()[-1]
    overwrite(path, last.end, random.Random(size).randbytes(size))
    log.check_sound(log.values)


def test_a_stale_copy_of_a_batch_behind_the_end_is_cut(log: Log) -> None:
    path, last = log.frames()[-1]
    first = log.frames()[0][1]
    overwrite(path, last.end, path.read_bytes()[first.position : first.end])
    log.check_sound(log.values)


@pytest.mark.parametrize("what", ["opening", "metadata", "header", "first bytes of the body", "all but the opening"])
def test_a_last_batch_of_which_a_part_never_reached_the_file_is_cut(what: str, log: Log) -> None:
    path, last = log.frames()[-1]
    start, end = {
        "opening": (last.position, last.position + 8),
        "metadata": (last.position + 8, last.header_position),
        "header": (last.header_position, last.body_position),
        "first bytes of the body": (last.body_position, last.body_position + 64),
        "all but the opening": (last.position + 8, last.end),
    }[what]
    overwrite(path, start, bytes(end - start))
    log.check_sound(log.values[: last.base_offset])


@pytest.mark.parametrize("torn", range(3))
@pytest.mark.parametrize("place", ["before its opening", "inside its header", "inside its body"])
def test_of_an_append_of_several_batches_all_go_when_one_is_torn_and_none_follow(
    torn: int, place: str, store_path: Path
) -> None:
    log = make_log(store_path, 3)
    with sc.open(store_path) as store:
        store.topic(TOPIC).append_table(numbered_table(3))
    path, frame = log.frames()[3 + torn]
    assert frame.record_count == COPIED_ROWS
    os.truncate(path, PLACES[place](frame))
    log.check_sound(log.values)


@pytest.mark.parametrize("left", [0, 1, 100, "schema - 1", "schema"])
def test_a_segment_without_a_batch_is_as_good_as_none(left: int | str, store_path: Path) -> None:
    log = make_log(store_path, 1)
    size = schema_size(log.path.read_bytes())
    os.truncate(log.path, {"schema - 1": size - 1, "schema": size}.get(str(left), left))  # type: ignore[arg-type]
    log.check_sound([])


def test_a_torn_tail_is_cut_also_where_the_segment_before_it_is_sealed(store_path: Path) -> None:
    log = make_log(store_path, 40, value_bytes=2000, segment_bytes=64 << 10)
    assert len(log.paths) > 3
    path, last = log.frames()[-1]
    os.truncate(path, last.body_position)
    log.check_sound(log.values[: last.base_offset])


def test_control_a_log_that_is_cut_too_far_is_caught(log: Log) -> None:
    (path, frame), (_, last) = log.frames()[-2:]
    os.truncate(path, frame.body_position)
    with pytest.raises(AssertionError):
        log.check_sound(log.values[: last.base_offset])


def test_control_a_log_that_keeps_its_torn_batch_is_caught(log: Log) -> None:
    last = log.frames()[-1][1]
    with sc.open(log.store_path) as store:
        assert values_of(store.topic(TOPIC)) == log.values
    with pytest.raises(AssertionError):
        log.check_sound(log.values[: last.base_offset])
