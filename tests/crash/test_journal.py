"""Durable appends to many partitions share a journal: what it has alone comes back after a loss of power."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

import streamcore as sc

from .forkserver import Channel, ForkServer
from .logs import pretend_power_loss

PARTITIONS = 8
TOPICS = ("clicks", ".views")  # names may begin with a dot
CALLS = 12


def values_of(call: int) -> list[bytes]:
    """What a call appends: each value is like no other."""
    return [b"%d.%d" % (call, row) for row in range(5 * PARTITIONS)]


def append_to_all(topic: sc.Topic, call: int, **options: object) -> None:
    """Five records to each partition in one call."""
    values = values_of(call)
    keys = [b"key %d" % (row % 64) for row in range(len(values))]
    topic.append(values, keys=keys, **options)  # type: ignore[arg-type]


def append_and_wait(channel: Channel, store_path: str) -> None:
    """One durable call to each topic, says SYNCED and waits; more of them, says DONE and waits for its end."""
    store = sc.open(store_path, durability="disk")
    topics = [store.create_topic(name, partitions=PARTITIONS) for name in TOPICS]
    for call in range(CALLS):
        for topic in topics:
            append_to_all(topic, call)
        if call == 0:
            channel.send("SYNCED")
            channel.wait_to_be_told()
    channel.send("DONE")
    channel.wait_to_be_told()


def segments_of(store_path: Path) -> dict[Path, bytes]:
    """The bytes of all segments."""
    return {path: path.read_bytes() for path in store_path.rglob("*.arrows")}


@pytest.fixture
def crashed(tmp_path: Path, children: ForkServer) -> Path:
    """A store after a loss of power: the segments as their own syncs left them, one call each, and the journal."""
    path = tmp_path / "store"
    child = children.start(append_and_wait, store_path=str(path))
    child.read_until(lambda: child.said("SYNCED"))
    synced = segments_of(path)
    child.tell()
    child.read_until(lambda: child.said("DONE"))
    child.kill()
    for segment, data in synced.items():
        segment.write_bytes(data)
    for folder in (path / "topics").iterdir():
        pretend_power_loss(folder)
    return path


def found_in(store_path: Path, mode: str) -> list[set[bytes]]:
    """The values of each topic."""
    with sc.open(store_path, mode) as store:  # type: ignore[arg-type]
        assert store.verify() == []
        return [{record.value for record in store.topic(name).scan()} for name in TOPICS]


ALL_VALUES = {value for call in range(CALLS) for value in values_of(call)}


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_all_that_was_acknowledged_is_there_after_a_loss_of_power(mode: str, crashed: Path) -> None:
    assert found_in(crashed, mode) == [ALL_VALUES] * 2
    assert found_in(crashed, "rw") == [ALL_VALUES] * 2
    assert found_in(crashed, "r") == [ALL_VALUES] * 2


def test_a_copy_of_the_store_has_it_too(crashed: Path, tmp_path: Path) -> None:
    shutil.copytree(crashed, tmp_path / "copy")
    assert found_in(tmp_path / "copy", "rw") == [ALL_VALUES] * 2


def test_control_without_the_journal_it_is_lost(crashed: Path) -> None:
    (crashed / "journal").unlink()
    assert found_in(crashed, "rw") == [set(values_of(0))] * 2


def test_a_reader_goes_on_when_a_writer_comes(crashed: Path) -> None:
    with sc.open(crashed, "r") as reader:
        topic = reader.topic("clicks")
        assert {record.value for record in topic.scan()} == ALL_VALUES
        with sc.open(crashed, durability="disk") as writer:
            append_to_all(writer.topic("clicks"), CALLS)
            assert {record.value for record in topic.scan()} == ALL_VALUES | set(values_of(CALLS))
        assert {record.value for record in topic.scan()} == ALL_VALUES | set(values_of(CALLS))


def test_a_journal_that_is_damaged_is_reported(crashed: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = crashed / "journal"
    data = bytearray(journal.read_bytes())
    assert data[8192:8200] == b"SCJREC01"
    data[8192 + 600] ^= 1  # an entry of the first record, which later ones know to be synced
    journal.write_bytes(data)
    with caplog.at_level(logging.ERROR, "streamcore"), sc.open(crashed) as store:
        assert "the journal is damaged" in caplog.text
        [problem] = store.verify()
        assert problem.path == str(crashed / "journal.damaged")
        for name in TOPICS:
            assert {record.value for record in store.topic(name).scan()} >= set(values_of(0))
        append_to_all(store.topic("clicks"), CALLS, durability="disk")
    (crashed / "journal.damaged").unlink()
    with sc.open(crashed) as store:
        assert store.verify() == []


def test_one_call_to_many_partitions_is_durable_in_all_of_them(tmp_path: Path) -> None:
    with sc.open(tmp_path / "store") as store:
        topic = store.create_topic("clicks", partitions=PARTITIONS)
        for call in range(4):
            append_to_all(topic, call, durability="disk")
            assert all(p.durable_offset == p.end_offset > 0 for p in topic.partitions)
        assert (tmp_path / "store" / "journal").exists()
        append_to_all(topic, 4)
        store.flush()
        assert all(p.durable_offset == p.end_offset for p in topic.partitions)


def test_a_topic_is_deleted_while_the_journal_has_records_of_it(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with sc.open(path, durability="disk") as store:
        topics = [store.create_topic(name, partitions=PARTITIONS) for name in TOPICS]
        for call in range(3):
            for topic in topics:
                append_to_all(topic, call)
        store.delete_topic("clicks")
        append_to_all(topics[1], 3)
        again = store.create_topic("clicks", partitions=PARTITIONS)
        append_to_all(again, 0)
    with sc.open(path, "r") as store:
        assert {record.value for record in store.topic("clicks").scan()} == set(values_of(0))
        assert {record.value for record in store.topic(TOPICS[1]).scan()} == {v for c in range(4) for v in values_of(c)}
        assert store.verify() == []
