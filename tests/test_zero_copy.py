"""Zero copy: the buffers that a scan hands out are the mapped files, and stay valid whatever happens to the store."""

from __future__ import annotations

import contextlib
import gc
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import streamcore as sc

MAPS = Path("/proc/self/maps")
linux = pytest.mark.skipif(not MAPS.exists(), reason="needs /proc/self/maps")


def mapped_ranges(folder: Path) -> list[tuple[int, int]]:
    """Where segment files of a store are mapped."""
    found = []
    for line in MAPS.read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(.*)", line)
        if match and match[3].startswith(str(folder)) and ".arrows" in match[3]:
            found.append((int(match[1], 16), int(match[2], 16)))
    return found


def buffers_of(array: pa.Array) -> list[pa.Buffer]:
    return [buffer for buffer in array.buffers() if buffer is not None and buffer.size > 0]


def is_mapped(buffer: pa.Buffer, ranges: list[tuple[int, int]]) -> bool:
    return any(low <= buffer.address and buffer.address + buffer.size <= high for low, high in ranges)


def check_mapped(table: pa.Table, folder: Path) -> None:
    """All buffers; but the validity of a column inside structs is merged, so it is new."""
    ranges = mapped_ranges(folder)
    for name in table.column_names:
        for chunk in table[name].chunks:
            kept = chunk.buffers()[1 if "." in name else 0 :]
            for buffer in [buffer for buffer in kept if buffer is not None and buffer.size > 0]:
                assert is_mapped(buffer, ranges), f"a buffer of {name} is not in a mapped file"


@linux
@pytest.mark.parametrize("mode", ["rw", "r"])
@pytest.mark.parametrize("sealed", [False, True])
def test_the_buffers_of_a_table_are_the_mapped_files(store_path: Path, mode: Any, sealed: bool) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks", partitions=2, segment_bytes=1 << 16)
        for number in range(100 if sealed else 3):
            topic.append([b"x" * 1000, None], keys=[b"k", None], partition=number % 2)
        topic.append([b"y"], headers=[{"h": b"z"}])
    with sc.open(store_path, mode=mode) as store:
        topic = store.topic("clicks")
        for scan in (topic.scan(), topic.scan(0, start=3), topic.scan(limit=5), topic.scan(columns=["value", "key"])):
            table = scan.to_arrow()
            assert table.num_rows > 0
            check_mapped(table, store_path)
        for batch in topic.scan().batches():
            check_mapped(pa.Table.from_batches([batch]), store_path)


@linux
def test_the_buffers_of_typed_columns_are_the_mapped_files(store: sc.Store) -> None:
    schema = pa.schema(
        [("n", pa.int64()), ("s", pa.string()), ("deep", pa.struct([("x", pa.list_(pa.float32()))])), ("b", pa.bool_())]
    )
    topic = store.create_topic("typed", schema=schema)
    topic.append([{"n": 1, "s": "one", "deep": {"x": [1.5]}, "b": True}, {"n": None}] * 50)
    check_mapped(topic.scan().to_arrow(), store.path)
    check_mapped(topic.scan(columns=["value.n", "value.s", "value.deep.x"]).to_arrow(), store.path)


@linux
def test_a_polars_frame_shares_the_numbers_of_the_file(store: sc.Store) -> None:
    pytest.importorskip("polars")
    topic = store.create_topic("typed", schema=pa.schema([("n", pa.int64())]))
    topic.append_table(pa.table({"n": np.arange(10_000)}))
    frame = topic.scan(columns=["offset", "value.n"]).to_polars()
    ranges = mapped_ranges(store.path)
    for name in frame.columns:
        buffer = frame[name].to_arrow().buffers()[1]
        assert is_mapped(buffer, ranges)


@linux
def test_every_buffer_is_aligned_to_64_bytes(store: sc.Store) -> None:
    topic = store.create_topic(
        "typed", schema=pa.schema([("n", pa.int8()), ("s", pa.string()), ("v", pa.string_view())])
    )
    for count in (1, 3, 100):
        topic.append(
            [{"n": 1, "s": "ab", "v": "a long string that is not inlined"}, None] * count, keys=[b"k", None] * count
        )
    for batch in topic.scan().batches():
        for column in batch.columns:
            for buffer in buffers_of(column):
                if is_mapped(buffer, mapped_ranges(store.path)):
                    assert buffer.address % 64 == 0


def make(store: sc.Store) -> tuple[sc.Topic, dict[str, Any]]:
    """A topic, and everything that points into its files."""
    topic = store.create_topic("clicks", segment_bytes=1 << 16)
    for number in range(200):
        topic.append([b"%03d" % number + b"x" * 997], keys=[b"k%d" % number], timestamps=number)
    return topic, {
        "table": topic.scan().to_arrow(),
        "batches": pa.Table.from_batches(list(topic.scan().batches())),
        "slice": topic.scan(start=50, end=150).to_arrow(),
        "by time": pa.RecordBatchReader.from_stream(topic.scan().narrow(timestamps_ms=(20, 30))).read_all(),
    }


def check(held: dict[str, Any]) -> None:
    wanted = [b"%03d" % number for number in range(200)]
    for name, low, high in (("table", 0, 200), ("batches", 0, 200), ("slice", 50, 150), ("by time", 20, 30)):
        table = held[name]
        assert [value[:3] for value in table["value"].to_pylist()] == wanted[low:high]
        assert table["offset"].to_pylist() == list(range(low, high))
        assert table["key"].to_pylist() == [b"k%d" % number for number in range(low, high)]
        table.validate(full=True)


def test_tables_stay_valid_when_the_store_is_closed_and_collected(store_path: Path) -> None:
    store = sc.open(store_path)
    _, held = make(store)
    store.close()
    del store, _
    gc.collect()
    check(held)


def test_tables_stay_valid_when_the_topic_is_deleted(store: sc.Store) -> None:
    _, held = make(store)
    store.delete_topic("clicks")
    gc.collect()
    assert list((store.path / "topics").iterdir()) == []
    check(held)


def test_tables_stay_valid_when_the_files_are_unlinked_or_replaced(store_path: Path, tmp_path: Path) -> None:
    store = sc.open(store_path)
    topic, held = make(store)
    for number, segment in enumerate(topic.segments()):
        path = Path(segment.path)
        if number % 2:
            path.unlink()
        else:
            (tmp_path / "other").write_bytes(b"\xff" * 100)
            (tmp_path / "other").rename(path)
    check(held)
    with contextlib.suppress(sc.StreamcoreError):  # it misses its files
        store.close()
    check(held)


def test_tables_do_not_change_while_appends_and_rolls_go_on(store: sc.Store) -> None:
    topic, held = make(store)
    for number in range(300):
        topic.append([b"zzz" + b"y" * 2000], timestamps=number)
        if number % 100 == 0:
            topic.flush()
            check(held)
    check(held)
    assert topic.scan().count() == 500


def test_a_stream_that_is_half_read_outlives_its_scan_and_topic(store_path: Path) -> None:
    store = sc.open(store_path)
    topic, _ = make(store)
    reader = topic.scan().to_reader()
    first = reader.read_next_batch()
    del topic
    gc.collect()
    assert first.num_rows + sum(batch.num_rows for batch in reader) == 200
    reader = store.topic("clicks").scan().to_reader()
    first = reader.read_next_batch()
    store.close()
    del store
    gc.collect()
    assert first.column(3)[0].as_py()[:3] == b"000"
    with pytest.raises((pa.ArrowException, OSError, sc.StreamcoreError), match="closed"):
        reader.read_all()


def test_children_of_a_batch_may_be_kept_alone(store: sc.Store) -> None:
    topic = store.create_topic("typed", schema=pa.schema([("s", pa.struct([("x", pa.list_(pa.int64()))]))]))
    topic.append([{"s": {"x": [1, 2, 3]}}, {"s": None}, None])
    batch = next(iter(topic.scan().batches()))
    child = pa.compute.struct_field(batch.column(3), [0, 0])
    del batch
    store.delete_topic("typed")
    gc.collect()
    assert child.to_pylist()[0] == [1, 2, 3]


@linux
def test_mappings_go_when_nothing_points_into_them(store_path: Path) -> None:
    store = sc.open(store_path)
    topic, held = make(store)
    assert mapped_ranges(store_path)
    store.close()
    del store, topic
    gc.collect()
    assert mapped_ranges(store_path)
    held.clear()
    gc.collect()
    assert mapped_ranges(store_path) == []


def test_what_a_scan_hands_out_is_read_only(topic: sc.Topic) -> None:
    topic.append([b"abc"])
    table = topic.scan().to_arrow()
    for buffer in buffers_of(table["value"].chunk(0)):
        assert not buffer.is_mutable
    assert not table["offset"].chunk(0).to_numpy().flags.writeable


@pytest.mark.parametrize("mode", ["rw", "r"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_scan_of_a_topic_that_was_deleted_says_so_and_speaks_of_no_damage(
    store_path: Path, mode: Any, begun: bool
) -> None:
    with sc.open(store_path) as owner, sc.open(store_path, mode) as store:
        owner.create_topic("clicks", segment_bytes=1 << 16)
        for _ in range(100):
            owner.topic("clicks").append([b"x" * 3000])
        scan = store.topic("clicks").scan()
        records, batches = iter(scan), scan.batches()
        if begun:
            next(records)
            next(batches)
        owner.delete_topic("clicks")
        for read in (scan.to_arrow, scan.count, lambda: list(records), lambda: list(batches), scan.to_pandas):
            with pytest.raises(sc.TopicNotFoundError, match="deleted"):
                read()
