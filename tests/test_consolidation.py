"""Small batches become large ones: the same records at the same offsets, in fewer bytes, for every kind of topic."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc
from streamcore import _core

SMALL = 64 << 10
TYPED = pa.schema(
    [("name", pa.string()), ("note", pa.string_view()), ("parts", pa.list_(pa.int16())), ("n", pa.int64())]
)


def typed_value(i: int) -> dict[str, Any] | None:
    if i % 11 == 7:
        return None
    return {"name": f"n{i}" * (i % 5), "note": "long enough for a view " * (i % 3), "parts": [i % 7] * (i % 4), "n": i}


def append_one(topic: sc.Topic, i: int, kind: str) -> None:
    value: Any = typed_value(i) if kind == "typed" else None if i % 11 == 7 else b"value %d " % i * 3
    headers = [[("trace", b"%d" % i), ("none", None)]] if kind == "headers" and i % 3 else None
    topic.append([value], keys=[None if i % 5 == 4 else b"key %d" % i], timestamps=1000 + i, headers=headers)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "headers": {},
    "typed": {"schema": TYPED},
    "zstd": {"compression": "zstd"},
    "lz4 typed": {"schema": TYPED, "compression": "lz4"},
}


def make(make_topic: Callable[..., sc.Topic], kind: str, count: int = 410, **settings: Any) -> sc.Topic:
    topic = make_topic(**{"segment_bytes": SMALL, **KINDS[kind], **settings})
    for i in range(count):
        append_one(topic, i, "typed" if "typed" in kind else kind)
    topic.roll()
    return topic


def batches(topic: sc.Topic) -> int:
    return sum(1 for _ in topic.scan().batches())


def problems(topic: sc.Topic) -> list[Any]:
    return [found for p in range(topic.partition_count) for found in topic.verify_partition(p, None)]


@pytest.mark.parametrize("kind", KINDS)
def test_records_stay_as_they_are_in_fewer_batches_and_bytes(make_topic: Callable[..., sc.Topic], kind: str) -> None:
    topic = make(make_topic, kind)
    records, table, size = list(topic.scan()), topic.scan().to_arrow(), topic.partitions[0].size_bytes
    segments = topic.rewritable(0)
    done = topic.consolidate()
    assert [(one.base_offset, one.end_offset) for one in done] == [(s.base_offset, s.end_offset) for s in segments]
    assert sum(one.batches_before for one in done) == 410
    assert batches(topic) == sum(one.batches_after for one in done) == len(done)
    assert [one.records_after for one in done] == [s.count for s in segments]
    assert topic.partitions[0].size_bytes < size / 2
    assert list(topic.scan()) == records
    assert topic.scan().to_arrow().equals(table)
    assert topic.scan().count() == 410
    assert [(s.base_offset, s.min_timestamp_ms, s.max_timestamp_ms) for s in topic.rewritable(0)] == [
        (s.base_offset, s.min_timestamp_ms, s.max_timestamp_ms) for s in segments
    ]
    assert problems(topic) == []
    assert topic.consolidate() == []


@pytest.mark.parametrize("kind", KINDS)
def test_any_range_is_read_after_it(make_topic: Callable[..., sc.Topic], kind: str) -> None:
    topic = make(make_topic, kind, 150)
    records = list(topic.scan())
    topic.consolidate()
    for start in range(0, 150, 13):
        for end in range(start, 151, 29):
            assert list(topic.scan(start=start, end=end)) == records[start:end]
            assert topic.scan(start=start, end=end).count() == end - start
    assert list(topic.scan(start=20, limit=7)) == records[20:27]


def test_a_topic_that_was_altered_to_compress_is_compressed(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, "plain", 2000, segment_bytes=1 << 20)
    records = list(topic.scan())
    topic.consolidate()
    size = topic.partitions[0].size_bytes
    topic.alter(compression="zstd")
    assert len(topic.consolidate()) == len(topic.rewritable(0))
    assert topic.partitions[0].size_bytes < size / 3
    assert list(topic.scan()) == records
    assert topic.consolidate() == []


def test_records_keep_whose_time_they_have(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic()
    for kind in ("create", "append", "create"):
        topic.alter(timestamp_type=kind)
        for i in range(20):
            topic.append([b"%d" % i], timestamps=i)
    topic.roll()
    records = list(topic.scan())
    [done] = topic.consolidate()
    assert done.batches_after == 3
    assert list(topic.scan()) == records


def test_large_batches_and_the_active_segment_are_left_alone(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic()
    topic.append([b"v" * 1000] * 5000)
    topic.roll()
    for _ in range(50):
        topic.append([b"one"])
    assert topic.consolidate() == []


def test_time_retention_goes_by_the_old_files_time(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, "plain")
    paths = [Path(segment.path) for segment in topic.rewritable(0)]
    for path in paths:
        os.utime(path, (1_000_000, 1_000_000))
    assert topic.consolidate()
    assert [path.stat().st_mtime for path in paths] == [1_000_000] * len(paths)


def test_it_stops_when_it_is_told_to_and_leaves_whole_segments(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, "plain", 1000)
    records = list(topic.scan())
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 6

    done = topic.consolidate(stop=stop)
    assert 0 < len(done) < len(topic.rewritable(0))
    assert list(topic.scan()) == records
    assert not list(Path(topic.segments()[0].path).parent.glob("*.new"))
    assert topic.consolidate(stop=lambda: True) == []


def test_the_limit_on_reading_is_kept(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, "plain", 400)
    size = sum(segment.size_bytes for segment in topic.rewritable(0))
    began = time.monotonic()
    done = topic.consolidate(bytes_per_second=size * 4)
    assert len(done) == len(topic.rewritable(0))
    assert time.monotonic() - began >= 0.2  # the bound is from below: it may take longer, never less
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="bytes_per_second"):
            topic.consolidate(bytes_per_second=wrong)


def test_readers_do_not_rewrite(store_path: Path) -> None:
    with sc.open(store_path, maintenance=False) as store:
        store.create_topic("a")
        with sc.open(store_path, "r") as reader, pytest.raises(sc.StoreReadOnlyError):
            reader.topic("a").consolidate()


def test_a_damaged_segment_is_reported_and_kept(store_path: Path) -> None:
    with sc.open(store_path, maintenance=False) as store:
        topic = store.create_topic("a")
        for i in range(50):
            topic.append([b"value %d" % i * 20])
        topic.roll()
    [path, _] = sorted(store_path.glob("topics/*/0/*.arrows"))
    data = bytearray(path.read_bytes())
    data[data.index(b"value 30")] ^= 1
    path.write_bytes(data)
    with sc.open(store_path, maintenance=False) as store:
        with pytest.raises(sc.CorruptionError) as caught:
            store.topic("a").consolidate()
        assert caught.value.offset == 30
    assert path.read_bytes() == data


def test_a_partition_that_another_rewrites_is_left_to_it(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, "plain")
    rewrite = topic.open_rewrite(topic.segments()[0])
    assert rewrite is not None
    assert topic.consolidate() == []
    rewrite.close()
    assert topic.consolidate()
    with pytest.raises(ValueError, match="closed"):
        rewrite.next()
    with pytest.raises(_core.RewriteConflict):
        first = topic.open_rewrite(topic.segments()[0])
        topic.open_rewrite(topic.segments()[0])
    del first


READER = """
import sys
import streamcore as sc

with sc.open(sys.argv[1], sys.argv[2]) as store:
    topic = store.topic("a")
    print("ready", flush=True)
    while True:
        values = topic.scan().to_arrow().column("value").to_pylist()
        assert values == [b"value %d" % i for i in range(len(values))], values[:10]
        assert len(values) >= 3000
        assert [r.offset for r in topic.scan(start=17, end=2900)] == list(range(17, 2900))
        assert topic.scan().count() >= 3000
        if max(s.count for s in topic.segments()) and sum(1 for _ in topic.scan(end=2000).batches()) < 100:
            print("done", flush=True)
            break
"""


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_other_processes_read_the_same_before_meanwhile_and_after(store_path: Path, mode: str) -> None:
    with sc.open(store_path, maintenance=False) as store:
        topic = store.create_topic("a", segment_bytes=SMALL)
        for i in range(3000):
            topic.append([b"value %d" % i])
        topic.roll()
        command = [sys.executable, "-c", READER, str(store_path), mode]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            for number in range(3000, 3100):
                topic.append([b"value %d" % number])
            topic.consolidate()
            assert reader.stdout.readline() == "done\n"
        assert reader.returncode == 0
        assert store.verify() == []


def test_foreign_readers_read_rewritten_segments(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, "typed")
    values = topic.scan(end=topic.segments()[0].end_offset).to_arrow().column("value").to_pylist()
    topic.consolidate()
    with pa.ipc.open_stream(pa.memory_map(topic.segments()[0].path)) as stream:
        assert stream.read_all().column("value").to_pylist() == values
