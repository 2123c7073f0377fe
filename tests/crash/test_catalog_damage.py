"""A catalog that is missing, damaged or from another version: an error that names it; records are not touched."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

import streamcore as sc

from .logs import TOPIC, Log, make_log, values_of

Picture = Callable[[Path], dict[str, tuple[int, bytes]]]


@pytest.fixture
def log(store_path: Path) -> Log:
    """A closed store with one topic."""
    return make_log(store_path, 3)


def catalog_path(log: Log) -> Path:
    """The catalog's file."""
    return log.store_path / "catalog.sqlite"


def refuse(log: Log, picture: Picture, *errors: type[Exception]) -> list[str]:
    """Both modes refuse the store, name the catalog and change no segment; returns the messages."""
    before = picture(log.store_path / "topics")
    messages = []
    for mode in ("r", "rw"):
        with pytest.raises(errors, match=r"catalog\.sqlite") as raised:
            log.read(mode)
        messages.append(str(raised.value))
        assert str(log.store_path) in messages[-1]
    assert picture(log.store_path / "topics") == before
    return messages


def test_a_store_whose_catalog_is_missing_is_not_taken_for_an_empty_one(log: Log, picture: Picture) -> None:
    saved = catalog_path(log).read_bytes()
    catalog_path(log).unlink()
    refuse(log, picture, sc.StoreFormatError)
    catalog_path(log).write_bytes(saved)
    log.check_sound(log.values)


def test_a_store_whose_catalog_is_empty_is_not_taken_for_an_empty_one(log: Log, picture: Picture) -> None:
    saved = catalog_path(log).read_bytes()
    catalog_path(log).write_bytes(b"")
    refuse(log, picture, sc.StoreFormatError, sc.CorruptionError)
    catalog_path(log).write_bytes(saved)
    log.check_sound(log.values)


@pytest.mark.parametrize("size", [1, 100, 4096, 6000])
def test_a_catalog_that_was_cut_short_is_an_error(size: int, log: Log, picture: Picture) -> None:
    saved = catalog_path(log).read_bytes()
    catalog_path(log).write_bytes(saved[:size])
    refuse(log, picture, sc.StoreFormatError, sc.CorruptionError, sc.StorageError)
    catalog_path(log).write_bytes(saved)
    log.check_sound(log.values)


@pytest.mark.parametrize("content", ["garbage", "zeros", "text"])
def test_a_catalog_that_is_no_database_is_corruption(content: str, log: Log, picture: Picture) -> None:
    size = catalog_path(log).stat().st_size
    fill = {"garbage": random.Random(1).randbytes(size), "zeros": bytes(size), "text": b"catalog " * 2000}[content]
    catalog_path(log).write_bytes(fill)
    refuse(log, picture, sc.CorruptionError, sc.StoreFormatError)
    assert catalog_path(log).read_bytes() == fill


@pytest.mark.parametrize("version", ["2", "1000", "", "one"])
def test_a_catalog_of_another_format_is_refused_with_both_versions(version: str, log: Log, picture: Picture) -> None:
    connection = sqlite3.connect(catalog_path(log))
    with connection:
        connection.execute("update meta set value = ? where key = 'format'", (version,))
    connection.close()
    for message in refuse(log, picture, sc.StoreFormatError):
        assert f"format {version}" in message
        assert "format 1" in message


def test_another_applications_database_is_refused_and_not_changed(log: Log, picture: Picture) -> None:
    catalog_path(log).unlink()
    connection = sqlite3.connect(catalog_path(log))
    with connection:
        connection.execute("create table accounts (name text)")
    connection.close()
    content = catalog_path(log).read_bytes()
    refuse(log, picture, sc.StoreFormatError, sc.CorruptionError, sc.StorageError)
    assert catalog_path(log).read_bytes() == content


@pytest.mark.parametrize("damage", ["not json", "[]", "no folder", "missing schema", "schema is garbage"])
def test_a_topic_whose_row_is_damaged_is_an_error_and_others_stay_usable(damage: str, log: Log) -> None:
    with sc.open(log.store_path) as store:
        store.create_topic("other").append([b"value"])
    ours = "topic_id in (select id from topics where name = 'damaged')"
    statement, value = {
        "not json": ("update topics set config = ? where name = 'damaged'", "{half"),
        "[]": ("update topics set config = ? where name = 'damaged'", "[]"),
        "no folder": ("update topics set folder = ? where name = 'damaged'", "nowhere"),
        "missing schema": (f"delete from schemas where ? and {ours}", 1),
        "schema is garbage": (f"update schemas set schema = ? where {ours}", b"garbage"),
    }[damage]
    connection = sqlite3.connect(catalog_path(log))
    with connection:
        connection.execute(statement, (value,))
    connection.close()
    for mode in ("r", "rw"):
        with pytest.raises(sc.StreamcoreError):
            log.read(mode)
        with sc.open(log.store_path, mode) as store:
            assert values_of(store.topic("other")) == [b"value"]


def test_a_topic_whose_folder_is_missing_is_an_error(log: Log) -> None:
    moved = log.topic_path.rename(log.store_path / "moved")
    for mode in ("r", "rw"):
        with pytest.raises(sc.StreamcoreError):
            log.read(mode)
    moved.rename(log.topic_path)
    log.check_sound(log.values)


def test_flipped_bytes_of_a_catalog_never_change_a_record(log: Log) -> None:
    chance = random.Random(4)
    saved = catalog_path(log).read_bytes()
    failed = 0
    for _ in range(150):
        position = chance.randrange(len(saved))
        flipped = bytes([saved[position] ^ chance.randrange(1, 256)])
        catalog_path(log).write_bytes(saved[:position] + flipped + saved[position + 1 :])
        try:
            assert log.read("r") == log.values
        except sc.StreamcoreError:
            failed += 1
    assert 0 < failed < 150
    catalog_path(log).write_bytes(saved)
    log.check_sound(log.values)


def test_control_a_sound_store_is_not_refused(log: Log, picture: Picture) -> None:
    with pytest.raises(pytest.fail.Exception):
        refuse(log, picture, sc.StreamcoreError)
    with sc.open(log.store_path) as store:
        assert [topic.name for topic in store.topics()] == [TOPIC]
