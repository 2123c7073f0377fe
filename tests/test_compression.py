"""Compressed topics: the same records, in less space, also where the setting changed on the way."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import streamcore as sc

CODECS = ["lz4", "zstd"]


def fill(topic: sc.Topic, calls: int = 30) -> None:
    """The same records for every topic: keys, nulls, headers, times out of order, several batches."""
    chance = random.Random(9)
    number = 0
    for call in range(calls):
        count = chance.randint(1, 30)
        rows = range(number, number + count)
        values = [None if n % 7 == 0 else b"value %d " % n * (n % 50) for n in rows]
        keys = [None if n % 5 == 0 else b"key %d" % (n % 9) for n in rows]
        headers = [{"n": b"%d" % n} if n % 4 == 0 else None for n in rows] if call % 3 == 0 else None
        topic.append(
            values,
            keys=keys,
            timestamps=[n * 10 + chance.randint(-200, 200) for n in rows],
            headers=headers,
            partition=call % len(topic.partitions),
        )
        number += count


@pytest.mark.parametrize("codec", CODECS)
def test_a_compressed_topic_gives_what_a_plain_one_gives(store: sc.Store, codec: str) -> None:
    plain = store.create_topic("plain", partitions=2, segment_bytes=1 << 16)
    packed = store.create_topic("packed", partitions=2, segment_bytes=1 << 16, compression=codec)
    fill(plain)
    fill(packed)
    assert list(packed.scan()) == list(plain.scan())
    for bounds in (
        {}, {"start": {0: 20, 1: 3}}, {"end": {1: 40}}, {"limit": 55}, {"partition": 1, "start": 5, "end": 77},
        {"columns": ["value", "partition"]}, {"columns": ["headers", "offset"]}, {"columns": ["key"], "limit": 10},
    ):  # fmt: skip
        assert packed.scan(**bounds).to_arrow().equals(plain.scan(**bounds).to_arrow())
        assert packed.scan(**bounds).count() == plain.scan(**bounds).count()
        assert list(packed.scan(**bounds)) == list(plain.scan(**bounds))
    narrowed = [t.scan().narrow(timestamps_ms=(500, 2500)) for t in (packed, plain)]
    assert narrowed[0].to_arrow().equals(narrowed[1].to_arrow())
    assert narrowed[0].to_arrow().num_rows > 0
    assert list(narrowed[0]) == list(narrowed[1])
    assert narrowed[0].count() == narrowed[1].count()
    assert store.verify() == []


@pytest.mark.parametrize("codec", CODECS)
def test_compression_saves_space(store: sc.Store, codec: str) -> None:
    values = [b"the same words again and again %d" % (n % 10) for n in range(10_000)]
    sizes = {}
    for setting in ("none", codec):
        topic = store.create_topic(setting, compression=setting)
        topic.append(values)
        sizes[setting] = topic.partitions[0].size_bytes
        assert [r.value for r in topic.scan()] == values
    assert sizes[codec] < sizes["none"] / 2


@pytest.mark.parametrize("codec", CODECS)
def test_what_cannot_be_compressed_is_kept_whole(store: sc.Store, codec: str) -> None:
    topic = store.create_topic("packed", compression=codec)
    noise = [random.Random(n).randbytes(5000) for n in range(20)]
    topic.append(noise)
    topic.append([b""])
    topic.append([None])
    assert [r.value for r in topic.scan()] == [*noise, b"", None]


@pytest.mark.parametrize("form", ["list", "arrow", "table"])
def test_the_setting_may_change_while_records_are_there(store: sc.Store, form: str) -> None:
    topic = store.create_topic("clicks", segment_bytes=1 << 16)
    wanted = []
    for turn, codec in enumerate(["none", "lz4", "none", "zstd", "lz4", "none"]):
        if turn:
            topic.alter(compression=codec)
        values = [b"%s %d " % (codec.encode(), n) * 20 for n in range(50)]
        given: Any = values if form == "list" else pa.array(values)
        if form == "table":
            topic.append_table(pa.table({"value": given}))
        else:
            topic.append(given, timestamps=turn)
        wanted += values
    assert [r.value for r in topic.scan()] == wanted
    assert topic.scan(columns=["value"]).to_arrow()["value"].to_pylist() == wanted
    assert topic.scan(start=60, end=190).to_arrow()["value"].to_pylist() == wanted[60:190]
    with sc.open(store.path, mode="r") as again:
        assert [r.value for r in again.topic("clicks").scan()] == wanted
        assert again.verify() == []


def test_a_large_append_becomes_several_compressed_batches(store: sc.Store) -> None:
    topic = store.create_topic("packed", compression="lz4")
    numbers = np.arange(150_000)
    assert topic.append(pa.array([b"%d" % n for n in numbers])) == [sc.Span(0, 0, 150_000)]
    table = topic.scan(columns=["offset", "value"]).to_arrow()
    assert table["offset"].to_pylist() == numbers.tolist()
    assert table["value"].to_pylist() == [b"%d" % n for n in numbers]
    assert len(list(topic.scan().batches())) >= 3


def test_keyed_records_of_a_compressed_topic_go_where_those_of_a_plain_one_go(store: sc.Store) -> None:
    plain = store.create_topic("plain", partitions=5)
    packed = store.create_topic("packed", partitions=5, compression="zstd")
    keys = [None if n % 9 == 0 else b"k%d" % n for n in range(500)]
    for topic in (plain, packed):
        topic.append([b"%d" % n for n in range(500)], keys=keys, timestamps=list(range(500)))
    assert [(r.partition, r.offset, r.key, r.value) for r in plain.scan() if r.key] == [
        (r.partition, r.offset, r.key, r.value) for r in packed.scan() if r.key
    ] or sorted((r.partition, r.key, r.value) for r in plain.scan() if r.key) == sorted(
        (r.partition, r.key, r.value) for r in packed.scan() if r.key
    )


def test_writers_in_threads_conflict_and_repeat_without_loss_or_duplicates(store: sc.Store) -> None:
    topic = store.create_topic("packed", compression="lz4")
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for call in range(40):
                [span] = topic.append([b"%d %d" % (number, call)] * 5)
                assert span.end_offset - span.first_offset == 5
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    records = list(topic.scan())
    assert [r.offset for r in records] == list(range(800))
    for start in range(0, 800, 5):
        assert len({r.value for r in records[start : start + 5]}) == 1
    for number in range(4):
        calls = [int(r.value.split()[1]) for r in records if r.value.startswith(b"%d " % number)]
        assert calls == [call for call in range(40) for _ in range(5)]


def test_tables_of_compressed_batches_stay_valid_after_close_and_delete(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("packed", compression="zstd")
        topic.append([b"abc"] * 100)
        table = topic.scan().to_arrow()
        store.delete_topic("packed")
    assert table["value"].to_pylist() == [b"abc"] * 100


def test_a_flipped_bit_in_a_compressed_batch_is_corruption(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("packed", compression="lz4")
        for number in range(5):
            topic.append([random.Random(number).randbytes(200)] * 10, durability="disk")
        [segment] = topic.segments()
    path = Path(segment.path)
    data = bytearray(path.read_bytes())
    data[segment.size_bytes // 2] ^= 1
    path.write_bytes(data)
    with sc.open(store_path, mode="r") as store:
        for read in (list, lambda scan: scan.to_arrow(), lambda scan: scan.to_polars()):
            with pytest.raises(sc.CorruptionError) as info:
                read(store.topic("packed").scan())
            assert info.value.path == str(path)
            assert info.value.offset is not None
            assert info.value.offset % 10 == 0


def test_log_append_time_and_durability_hold_for_compressed_topics(store: sc.Store) -> None:
    topic = store.create_topic("packed", compression="lz4", timestamp_type="append")
    topic.append([b"x"], timestamps=[5], durability="disk")
    assert topic.partitions[0].durable_offset == 1
    [record] = topic.scan()
    assert record.timestamp_ms > 1_600_000_000_000
