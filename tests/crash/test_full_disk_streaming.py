"""Disks that fill while offsets are committed, in transactions with offsets, and while logs are rewritten."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc
from streamcore import groups

from .at_once import rewind
from .logs import TOPIC, values_of
from .mounts import Mount
from .test_full_disk import check_is_full, full

GROUP, OUT, TABLE = "readers", "out", "table"
DEADLINE_S = 30.0
_LONG_MS = 600_000


def committed(store_path: Path) -> dict[int, int]:
    """What the group has committed, as another handle sees it."""
    with sc.open(store_path, "r") as store, groups.reading(store.catalog) as connection:
        found = {} if connection is None else groups.committed(connection, GROUP)
    return {partition: int(offset) for (_, partition), offset in found.items()}


def commit_until_full(consumer: sc.Consumer) -> int:
    """Reads records one by one and commits behind each, until it fails; the offset that was acknowledged last."""
    acknowledged = 0
    while True:
        (record,) = consumer.poll(0, 1)
        try:
            consumer.commit(metadata="x" * 3000)
        except sc.StorageError as error:
            check_is_full(error)
            return acknowledged
        acknowledged = record.offset + 1


@pytest.mark.parametrize("durability", ["os", "disk"])
def test_a_commit_of_offsets_on_a_full_disk_fails_and_the_last_one_stands(durability: Any, mount: Mount) -> None:
    store_path = mount.path / "store"
    with sc.open(store_path, durability=durability) as store:
        store.create_topic(TOPIC).append([b"%d" % n for n in range(20_000)])
        with store.consumer(TOPIC, group=GROUP, member_timeout_ms=_LONG_MS) as consumer:
            consumer.poll(0, 1)
            consumer.commit()
            with full(mount):
                acknowledged = commit_until_full(consumer) or 1
                assert committed(store_path) == {0: acknowledged}
                for _ in range(3):
                    with pytest.raises(sc.StorageError) as raised:
                        consumer.commit(metadata="y" * 3000)
                    check_is_full(raised.value)
                assert committed(store_path) == {0: acknowledged}
                position = consumer.position(TOPIC, 0)
                assert consumer.poll(0, 1)[0].value == b"%d" % position  # reading goes on
            consumer.commit()
            assert committed(store_path) == {0: position + 1}
    assert committed(store_path) == {0: position + 1}
    with sc.open(store_path) as store:
        assert store.verify() == []


def test_a_member_whose_heartbeats_find_no_room_loses_no_record(mount: Mount) -> None:
    store_path = mount.path / "store"
    values = [b"%d" % n for n in range(200)]
    seen: list[bytes | None] = []
    with sc.open(store_path) as store:
        store.create_topic(TOPIC).append(values)
        with store.consumer(TOPIC, group=GROUP, member_timeout_ms=500) as consumer:
            seen += [record.value for record in consumer.poll(0, 50)]
            consumer.commit()
            with full(mount):
                (member,) = store.group(GROUP).members()
                end = time.monotonic() + DEADLINE_S
                while member.seen_ms <= 2 * member.timeout_ms:
                    assert time.monotonic() < end, "heartbeats find room"
                    with contextlib.suppress(sc.StorageError):
                        consumer.commit(metadata="x" * 3000)  # takes the room that there is
                    (member,) = store.group(GROUP).members()
                seen += [record.value for record in consumer.poll(0, 50)]
            end = time.monotonic() + DEADLINE_S
            while committed(store_path) != {0: len(values)}:
                assert time.monotonic() < end
                seen += [record.value for record in consumer.poll(0, 50)]
                with contextlib.suppress(sc.FencedError):  # it was taken for dead, and joins anew
                    consumer.commit()
    assert set(seen) == set(values)


@pytest.mark.parametrize("durability", ["os", "disk"])
def test_offsets_and_records_of_a_transaction_that_finds_no_room_are_both_given_up(
    durability: Any, mount: Mount
) -> None:
    store_path = mount.path / "store"
    values = [b"%d " % n + bytes(900) for n in range(2000)]
    with sc.open(store_path) as store:
        out = store.create_topic(OUT, segment_bytes=256 << 10)
        store.create_topic(TOPIC, segment_bytes=256 << 10).append(values)
        with store.consumer(TOPIC, group=GROUP, member_timeout_ms=_LONG_MS) as consumer:
            copy_some(store, consumer, durability)
            with full(mount, left=1 << 20):
                for _ in range(3):
                    copied = copy_until_full(store, consumer, durability)
                    assert values_of(out) == values[:copied]
                    assert committed(store_path) == {0: copied}
                    rewind(consumer)
            while copy_some(store, consumer, durability):
                pass
            assert committed(store_path) == {0: len(values)}
    with sc.open(store_path) as store:
        assert values_of(store.topic(OUT)) == values
        (part,) = store.topic(OUT).partitions
        assert part.stable_offset == part.end_offset
        assert store.verify() == []


def copy_some(store: sc.Store, consumer: sc.Consumer, durability: Any) -> int:
    """One transaction; how many records it copied."""
    records = consumer.poll(0, 20)
    if records:
        with store.transaction("copy", durability=durability) as transaction:
            transaction.append(OUT, [record.value for record in records])
            transaction.commit_offsets(consumer)
    return len(records)


def copy_until_full(store: sc.Store, consumer: sc.Consumer, durability: Any) -> int:
    """Copies until it fails; up to which offset it has."""
    while True:
        before = consumer.position(TOPIC, 0)
        try:
            assert copy_some(store, consumer, durability) > 0, "the disk is never full"
        except sc.StorageError as error:
            check_is_full(error)
            return before


# ---- rewriting ------------------------------------------------------------------------------------------------------


def make_table(store: sc.Store) -> dict[bytes, bytes]:
    """A compacted topic of many segments, in which each key has two records; what its table must be."""
    table = store.create_topic(TABLE, segment_bytes=64 << 10, cleanup="compact")
    model = {}
    for version in range(2):
        for start in range(0, 600, 20):
            keys = [b"%d" % n for n in range(start, start + 20)]
            values = [b"%d " % version + key * 200 for key in keys]
            table.append(values, keys=keys)
            model.update(zip(keys, values, strict=True))
    table.roll()
    return model


def check_table(topic: sc.Topic, model: dict[bytes, bytes]) -> None:
    """The table is the model, whatever was rewritten, and the folder has nothing that is half done."""
    table = topic.table(columns=["key", "value"])
    assert dict(zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True)) == model
    latest = {record.key: record.value for record in topic.scan()}
    assert latest == model
    assert topic.store.verify() == []
    left = [path.name for path in topic.store.path.glob("topics/*/*/*") if path.suffix in (".new", ".tmp")]
    assert left == []


@pytest.mark.parametrize("task", ["compact", "consolidate"])
@pytest.mark.parametrize("left", [0, 96 << 10])
def test_rewriting_on_a_full_disk_fails_or_needs_no_room_and_is_done_later(task: str, left: int, mount: Mount) -> None:
    with sc.open(mount.path / "store") as store:
        model = make_table(store)
        topic = store.topic(TABLE)
        records = topic.scan().count()
        failed = 0
        with full(mount, left=left):
            for _ in range(3):
                try:
                    getattr(topic, task)()
                except sc.StorageError as error:
                    check_is_full(error)
                    failed += 1
                check_table(topic, model)
        assert failed > 0 or task == "consolidate" or left > 0
        getattr(topic, task)()
        check_table(topic, model)
        assert (topic.scan().count() < records) == (task == "compact")
    with sc.open(mount.path / "store") as store:
        check_table(store.topic(TABLE), model)


def test_control_a_table_that_lost_a_segment_and_a_commit_that_was_not_made_are_caught(mount: Mount) -> None:
    with sc.open(mount.path / "store") as store:
        model = make_table(store)
        topic = store.topic(TABLE)
        check_table(topic, model)
        segment = topic.rewritable(0)[-1]
        emptied = topic.open_rewrite(segment)
        assert emptied is not None
        emptied.commit()
        emptied.close()
        with pytest.raises(AssertionError):
            check_table(topic, model)
        with store.consumer(TABLE, group=GROUP) as consumer:
            consumer.poll(0, 10)
            assert committed(mount.path / "store") != {0: consumer.position(TABLE, 0)}
