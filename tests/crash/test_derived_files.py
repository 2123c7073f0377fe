"""Files that are made from others: whatever happens to them, no record is lost, hidden or doubled."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import streamcore as sc

from .logs import FIRST_TIME_MS, TOPIC, Log, make_log, values_of

_APPENDS = 120
_ROWS = 5

Damage = Callable[[Path], object]
DAMAGE: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "zeros of a mebibyte": lambda path: path.write_bytes(bytes(1 << 20)),
    "garbage": lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size + 11)),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "first 10 bytes": lambda path: path.write_bytes(path.read_bytes()[:10]),
    "twice": lambda path: path.write_bytes(path.read_bytes() * 2),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.fixture
def log(store_path: Path) -> Log:
    """A log of several segments, flushed now and then, so that there are index files with entries."""

    def flush_sometimes(topic: sc.Topic, n: int) -> None:
        if n % 7 == 0:
            topic.flush()

    log = make_log(store_path, _APPENDS, rows=_ROWS, value_bytes=900, segment_bytes=256 << 10, between=flush_sometimes)
    assert len(log.paths) >= 3
    assert len(index_paths(log)) == len(log.paths)
    return log


def index_paths(log: Log) -> list[Path]:
    """The index files."""
    return sorted(log.path_of_partition.glob("*.index"))


def check_all_reads(log: Log, mode: str) -> None:
    """Every way that an index could mislead: by offset, by time, by count, by description, by check."""
    chance = random.Random(2)
    with sc.open(log.store_path, mode) as store:
        topic = store.topic(TOPIC)
        for _ in range(5):
            start = chance.randrange(len(log.values))
            assert values_of(topic, start=start) == log.values[start:]
        for _ in range(5):
            first, last = sorted(chance.sample(range(_APPENDS), 2))
            found = values_of(topic, start=moment(first), end=moment(last))
            assert found == log.values[first * _ROWS : last * _ROWS]
        assert topic.scan().count() == len(log.values)
        assert values_of(topic) == log.values
        segments = topic.segments()
        assert [segment.end_offset for segment in segments][-1] == len(log.values)
        assert sum(segment.count for segment in segments) == len(log.values)
        for segment in segments:
            first, last = segment.base_offset // _ROWS, (segment.end_offset - 1) // _ROWS
            times = (segment.min_timestamp_ms, segment.max_timestamp_ms)
            assert times == (FIRST_TIME_MS + 1000 * first, FIRST_TIME_MS + 1000 * last)
        assert store.verify() == []


def moment(append: int) -> datetime:
    """The time of an append."""
    return datetime.fromtimestamp(FIRST_TIME_MS // 1000 + append, UTC)


def check_after_damage(log: Log) -> None:
    """Nothing is lost for a reader, then for a writer, who can go on."""
    check_all_reads(log, "r")
    check_all_reads(log, "rw")
    log.check_sound(log.values)


# ---- the index --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["all", "first", "last"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_is_lost_with_a_damaged_index(damage: str, which: str, log: Log) -> None:
    paths = index_paths(log)
    for path in {"all": paths, "first": paths[:1], "last": paths[-1:]}[which]:
        DAMAGE[damage](path)
    check_after_damage(log)


def test_nothing_is_lost_with_any_flipped_byte_of_an_index(log: Log) -> None:
    chance = random.Random(5)
    for path in index_paths(log):
        data = path.read_bytes()
        for position in chance.sample(range(len(data)), 25):
            changed = bytes([data[position] ^ chance.randrange(1, 256)])
            path.write_bytes(data[:position] + changed + data[position + 1 :])
            check_all_reads(log, "r")
        path.write_bytes(data)
    check_after_damage(log)


def test_nothing_is_lost_with_the_index_of_another_segment(log: Log) -> None:
    paths = index_paths(log)
    shutil.copy(paths[0], paths[1])
    check_after_damage(log)


def test_nothing_is_lost_with_the_index_of_another_log(log: Log, tmp_path: Path) -> None:
    settings = {"rows": _ROWS, "value_bytes": 900, "segment_bytes": 256 << 10}
    other = make_log(tmp_path / "other", _APPENDS, first_time_ms=FIRST_TIME_MS + 10**9, **settings)
    assert [path.name for path in other.paths] == [path.name for path in log.paths]
    for path in index_paths(other):
        shutil.copy(path, log.path_of_partition / path.name)
    check_after_damage(log)


# ---- the state --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name not in ("a folder", "a dangling link")])
def test_nothing_is_lost_with_a_damaged_state_file(damage: str, log: Log) -> None:
    DAMAGE[damage](log.topic_path / "state")
    check_after_damage(log)


def test_nothing_is_lost_with_the_state_of_another_topic(log: Log, tmp_path: Path) -> None:
    other = make_log(tmp_path / "other", 2)
    shutil.copy(other.topic_path / "state", log.topic_path / "state")
    check_after_damage(log)


def test_nothing_is_lost_without_any_file_that_is_made_from_others(log: Log) -> None:
    for path in [*index_paths(log), log.topic_path / "state"]:
        path.unlink()
    check_after_damage(log)


def test_an_index_that_cannot_be_written_harms_nothing(log: Log) -> None:
    for path in index_paths(log):
        path.unlink()
        path.mkdir()
        (path / "in the way").touch()
    check_after_damage(log)


# ---- control ----------------------------------------------------------------------------------------------------


def test_control_a_hidden_record_is_caught(log: Log) -> None:
    log.values.insert(300, b"which is not there")
    for mode in ("r", "rw"):
        with pytest.raises(AssertionError):
            check_all_reads(log, mode)
