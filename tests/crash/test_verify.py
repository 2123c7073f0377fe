"""verify and digests: every planted problem is reported, a sound store has none, and progress goes to its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

import streamcore as sc

from .logs import TOPIC, Log, make_log
from .segments import flip, frames, overwrite

Picture = Callable[[Path], dict[str, tuple[int, bytes]]]


@pytest.fixture
def log(store_path: Path) -> Log:
    """A log of many segments; a second topic with two partitions beside it."""
    log = make_log(store_path, 150, rows=5, value_bytes=500, segment_bytes=64 << 10)
    with sc.open(store_path) as store:
        other = store.create_topic("other", partitions=2)
        for partition in range(2):
            for n in range(20):
                other.append([b"%d" % n] * 50, partition=partition)
    return log


def other_paths(log: Log) -> list[Path]:
    """The segment of each partition of the other topic."""
    return sorted(log.store_path.glob("topics/other-*/*/*.arrows"))


def plant(log: Log) -> list[tuple[str, int | None, int | None]]:
    """Damages seven places of three logs in different ways; returns where."""
    planted = []
    for number, how in ((0, "body"), (2, "header"), (3, "opening"), (4, "zeros")):
        path = log.paths[number]
        frame = frames(path)[number + 1]
        if how == "zeros":
            overwrite(path, frame.position, bytes(frame.size))
        else:
            places = {"body": frame.end - 50, "header": frame.header_position + 30, "opening": frame.position + 2}
            flip(path, places[how])
        planted.append((str(path), frame.base_offset, frame.position))
    for path in other_paths(log):
        frame = frames(path)[7]
        flip(path, frame.body_position + 3)
        planted.append((str(path), frame.base_offset, frame.position))
    missing = log.paths[6]
    batches = frames(log.paths[5])
    missing.unlink()
    planted.append((str(log.paths[5]), batches[-1].end_offset, batches[-1].end))
    return planted


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_verify_reports_every_planted_problem_with_file_offset_and_position(mode: str, log: Log) -> None:
    planted = plant(log)
    assert sorted(log.problems(mode)) == sorted(planted)
    with sc.open(log.store_path, mode) as store:
        for problem in store.verify():
            assert isinstance(problem.message, str)
            assert len(problem.message) > 10


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_verify_finds_damage_that_came_after_the_bytes_were_read_and_checked(mode: str, log: Log) -> None:
    with sc.open(log.store_path, mode) as store:
        assert store.verify() == []
        assert store.topic(TOPIC).scan().to_arrow().num_rows == len(log.values)
        path = log.paths[1]
        frame = frames(path)[3]
        flip(path, frame.end - 50)
        (found,) = store.verify()
        assert (found.path, found.offset, found.position) == (str(path), frame.base_offset, frame.position)
        flip(path, frame.end - 50)
        assert store.verify() == []


def test_verify_of_a_store_for_reading_writes_nothing(log: Log, picture: Picture) -> None:
    plant(log)
    before = picture(log.store_path)
    assert len(log.problems("r")) == 7
    assert picture(log.store_path) == before


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_the_progress_of_verify_rises_to_its_total(mode: str, damaged: bool, log: Log) -> None:
    if damaged:
        plant(log)
    seen: list[tuple[int, int]] = []
    with sc.open(log.store_path, mode) as store:
        store.verify(lambda done, total: seen.append((done, total)))
    assert len({total for _, total in seen}) == 1
    done = [done for done, _ in seen]
    assert done == sorted(done)
    assert done[-1] == seen[0][1] > 400_000


def test_the_progress_of_verify_of_an_empty_store_ends_too(store_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with sc.open(store_path) as store:
        store.create_topic("empty")
        assert store.verify(lambda done, total: seen.append((done, total))) == []
    assert all(done == total == 0 for done, total in seen)


def test_digests_are_those_of_the_written_bytes_and_stay_the_same(log: Log) -> None:
    taken = []
    for mode in ("rw", "r", "rw"):
        with sc.open(log.store_path, mode) as store:
            taken.append(list(store.digests()))
    assert taken[0] == taken[1] == taken[2]
    assert [digest.path for digest in taken[0]] == [str(path) for path in [*log.paths, *other_paths(log)]]
    for digest in taken[0]:
        data = Path(digest.path).read_bytes()[: digest.size_bytes]
        assert digest.xxh3_128 == xxhash.xxh3_128_hexdigest(data)
        assert digest.size_bytes == frames(Path(digest.path))[-1].end


def test_digests_of_a_log_do_not_depend_on_sealing_nor_on_what_is_preallocated(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic(TOPIC, segment_bytes=64 << 10)
        topic.append([bytes(5000)] * 10)
        (live,) = store.digests()
        topic.append([bytes(5000)] * 10)
        topic.flush()
        sealed, active = store.digests()
        assert sealed == live
    with sc.open(store_path, "r") as store:
        assert list(store.digests()) == [sealed, active]


def test_digests_show_a_change_of_any_byte(log: Log) -> None:
    with sc.open(log.store_path, "r") as store:
        before = {digest.path: digest.xxh3_128 for digest in store.digests()}
    flip(log.paths[2], 5000)
    with sc.open(log.store_path, "r") as store:
        after = {digest.path: digest.xxh3_128 for digest in store.digests()}
    assert [path for path in before if before[path] != after[path]] == [str(log.paths[2])]


def test_control_a_problem_that_is_not_reported_is_caught(log: Log) -> None:
    planted = plant(log)
    path, frame = log.frames()[20]
    flip(path, frame.end - 50)
    with pytest.raises(AssertionError):
        assert sorted(log.problems()) == sorted(planted)
