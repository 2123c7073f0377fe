"""Scans: the right records for every bound, as records, Arrow, frames and counts, reading only what is needed."""

from __future__ import annotations

import copy
import datetime as dt
import gc
import itertools
import pickle
import random
import threading
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import streamcore as sc

UTC = dt.UTC
SMALL_SEGMENT = 1 << 16


def at(milliseconds: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=UTC) + dt.timedelta(milliseconds=milliseconds)


def offsets_of(scan: sc.Scan) -> list[tuple[int, int]]:
    return [(record.partition, record.offset) for record in scan]


def check_all_faces_agree(scan: sc.Scan, wanted: list[sc.Record]) -> None:
    """Every way to read a scan gives the same records."""
    assert list(scan) == wanted
    table = scan.to_arrow()
    assert table["offset"].to_pylist() == [r.offset for r in wanted]
    assert table["timestamp"].cast(pa.int64()).to_pylist() == [r.timestamp_ms for r in wanted]
    assert table["key"].to_pylist() == [r.key for r in wanted]
    assert table["value"].to_pylist() == [r.value for r in wanted]
    assert scan.count() == len(wanted)
    assert sum(batch.num_rows for batch in scan.batches()) == len(wanted)
    assert scan.to_reader().read_all().num_rows == len(wanted)
    assert pa.RecordBatchReader.from_stream(scan).read_all().equals(table)


@pytest.fixture
def many(store: sc.Store) -> tuple[sc.Topic, list[sc.Record]]:
    """Three partitions of several segments, times out of order; and all records."""
    chance = random.Random(5)
    topic = store.create_topic("many", partitions=3, segment_bytes=SMALL_SEGMENT)
    number = 0
    for _ in range(60):
        count = chance.randint(1, 20)
        times = [number * 10 + chance.randint(-300, 300) for number in range(number, number + count)]
        values = [b"%05d" % n + b"x" * chance.randint(0, 500) for n in range(number, number + count)]
        keys = [None if n % 4 == 0 else b"k%d" % n for n in range(number, number + count)]
        topic.append(values, keys=keys, timestamps=times, partition=chance.randrange(3))
        number += count
    topic.append([b"with headers"], timestamps=1, headers=[{"h": b"1"}], partition=1)
    assert all(len([s for s in topic.segments() if s.partition == p]) >= 2 for p in range(3))
    return topic, list(topic.scan())


# ---- bounds by offset -------------------------------------------------------------------------------------------


def test_a_scan_without_bounds_gives_everything_partition_by_partition(
    many: tuple[sc.Topic, list[sc.Record]],
) -> None:
    topic, records = many
    ends = [p.end_offset for p in topic.partitions]
    assert [(r.partition, r.offset) for r in records] == [(p, o) for p in range(3) for o in range(ends[p])]
    check_all_faces_agree(topic.scan(), records)


def test_every_range_of_offsets_gives_its_records(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    topic, records = many
    mine = [r for r in records if r.partition == 1]
    chance = random.Random(1)
    edges = sorted({0, 1, len(mine) - 1, len(mine)} | {chance.randrange(len(mine)) for _ in range(5)})
    for start, end in itertools.combinations_with_replacement(edges, 2):
        check_all_faces_agree(topic.scan(1, start, end), mine[start:end])


def test_earliest_and_latest_are_bounds(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    topic, records = many
    mine = [r for r in records if r.partition == 2]
    assert list(topic.scan(2, "earliest", "latest")) == mine
    assert list(topic.scan(2, "latest", "latest")) == []
    assert list(topic.scan(2, "earliest", "earliest")) == []
    assert list(topic.scan(2, 3, "latest")) == mine[3:]
    assert list(topic.scan(2, start=np.int64(3), end=np.int32(5))) == mine[3:5]  # type: ignore[arg-type]


def test_a_mapping_chooses_partitions_and_their_bounds(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    topic, records = many
    of = [[r for r in records if r.partition == p] for p in range(3)]
    check_all_faces_agree(topic.scan(start={2: 5, 0: "earliest"}), of[0] + of[2][5:])
    check_all_faces_agree(topic.scan(end={1: 4}), of[1][:4])
    check_all_faces_agree(topic.scan(start={0: 1, 1: 2}, end={1: 9, 2: 3}), of[1][2:9])
    check_all_faces_agree(topic.scan(start={0: 3, 2: "latest"}, end={0: "latest", 2: "latest"}), of[0][3:])
    check_all_faces_agree(topic.scan(partition=1, start={0: 3, 1: 4}), of[1][4:])
    check_all_faces_agree(topic.scan(partition=2, start={0: 3}), [])
    check_all_faces_agree(topic.scan(start={}), [])


def test_a_mapping_may_mix_offsets_and_times(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    topic, records = many
    wanted = [
        r for r in records if (r.partition == 0 and r.timestamp_ms >= 900) or (r.partition == 1 and r.offset >= 7)
    ]
    check_all_faces_agree(topic.scan(start={0: at(900), 1: 7}), wanted)
    wanted = [r for r in wanted if r.partition == 1 or r.timestamp_ms < 2000]
    check_all_faces_agree(topic.scan(start={0: at(900), 1: 7}, end={0: at(2000), 1: "latest"}), wanted)
    check_all_faces_agree(topic.scan(start={0: at(900), 1: 7}, limit=20), [
        r for r in records if (r.partition == 0 and r.timestamp_ms >= 900) or (r.partition == 1 and r.offset >= 7)
    ][:20])  # fmt: skip


@pytest.mark.parametrize("offset", [-1, 11, 1 << 40, 1 << 70, -(1 << 70)])
@pytest.mark.parametrize("which", ["start", "end"])
def test_an_offset_outside_the_log_is_an_error_that_tells_the_log(topic: sc.Topic, offset: int, which: str) -> None:
    topic.append([b"x"] * 10)
    for bound in (offset, {0: offset}):
        with pytest.raises(sc.OffsetOutOfRangeError, match=f"{which} is offset {offset}; .*offsets 0 to 10") as info:
            topic.scan(**{which: bound})  # type: ignore[arg-type]
        assert (info.value.earliest, info.value.latest) == (0, 10)
        assert isinstance(info.value, IndexError)
    assert topic.scan(start=10).count() == 0


def test_an_empty_topic_has_the_one_bound_zero(topic: sc.Topic) -> None:
    assert topic.scan(start=0, end=0).count() == 0
    with pytest.raises(sc.OffsetOutOfRangeError, match="0 to 0"):
        topic.scan(start=1)


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ({"start": 5, "end": 3}, ValueError, r"start \(5\) is behind end \(3\)"),
        ({"start": "latest", "end": "earliest"}, ValueError, "behind"),
        ({"start": at(5), "end": at(3)}, ValueError, "after end"),
        ({"start": "oldest"}, ValueError, "start is 'oldest'; an offset, an aware datetime, 'earliest' or"),
        ({"end": "newest"}, ValueError, "end is 'newest'"),
        ({"start": None}, TypeError, "start is NoneType"),
        ({"start": 1.0}, TypeError, "start is float"),
        ({"end": True}, TypeError, "end is bool"),
        ({"start": b"earliest"}, TypeError, "start is bytes"),
        ({"start": [1]}, TypeError, "start is list"),
        ({"start": np.array([1, 2])}, TypeError, "start is ndarray"),
        ({"start": dt.datetime(2026, 1, 1)}, ValueError, "time zone"),
        ({"end": dt.datetime(2026, 1, 1)}, ValueError, "time zone"),
        ({"start": {0: dt.datetime(2026, 1, 1)}}, ValueError, "time zone"),
        ({"start": dt.date(2026, 1, 1)}, TypeError, "start is date"),
        ({"start": {9: 0}}, ValueError, "partition is 9"),
        ({"end": {-1: 0}}, ValueError, "partition is -1"),
        ({"start": {"0": 0}}, TypeError, "partition is '0'"),
        ({"partition": 7}, ValueError, "partition is 7.*0 to 0"),
        ({"limit": -1}, ValueError, "limit is -1"),
        ({"limit": 1.0}, TypeError, "limit is 1.0"),
        ({"limit": "5"}, TypeError, "limit is '5'"),
        ({"limit": True}, TypeError, "limit is True"),
        ({"isolation": "dirty"}, ValueError, "isolation is 'dirty'"),
        ({"columns": ["colour"]}, ValueError, "no column 'colour'; there are partition, offset, timestamp, key"),
        ({"columns": ["value.x"]}, ValueError, "no column 'value.x'"),
        ({"columns": ["value", "value"]}, ValueError, "one twice"),
        ({"columns": [3]}, TypeError, "columns has 3"),
        ({"columns": "value"}, TypeError, "columns"),
        ({"columns": 5}, TypeError, "columns"),
    ],
)
def test_bad_arguments_of_a_scan_are_refused(
    topic: sc.Topic, bounds: dict[str, Any], error: type[Exception], message: str
) -> None:
    topic.append([b"x"] * 10)
    with pytest.raises(error, match=message):
        topic.scan(**bounds)


# ---- bounds by time ---------------------------------------------------------------------------------------------


def test_every_range_of_times_gives_exactly_its_records_also_out_of_order(
    many: tuple[sc.Topic, list[sc.Record]],
) -> None:
    topic, records = many
    stamps = sorted(r.timestamp_ms for r in records)
    edges = [stamps[0] - 5, stamps[0], stamps[len(stamps) // 3], stamps[len(stamps) // 2], stamps[-1], stamps[-1] + 1]
    for low, high in itertools.combinations_with_replacement(edges, 2):
        wanted = [r for r in records if low <= r.timestamp_ms < high]
        check_all_faces_agree(topic.scan(start=at(low), end=at(high)), wanted)
    check_all_faces_agree(
        topic.scan(0, start=at(edges[2])), [r for r in records if r.partition == 0 and r.timestamp_ms >= edges[2]]
    )
    check_all_faces_agree(topic.scan(end=at(edges[3])), [r for r in records if r.timestamp_ms < edges[3]])


def test_times_and_offsets_bound_together(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    topic, records = many
    mine = [r for r in records if r.partition == 1]
    middle = mine[len(mine) // 2].timestamp_ms
    check_all_faces_agree(topic.scan(1, 10, at(middle)), [r for r in mine[10:] if r.timestamp_ms < middle])
    check_all_faces_agree(topic.scan(1, at(middle), 100), [r for r in mine[:100] if r.timestamp_ms >= middle])


def test_a_limit_counts_the_records_that_the_times_let_through(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    topic, records = many
    low = records[len(records) // 2].timestamp_ms
    wanted = [r for r in records if r.timestamp_ms >= low]
    for limit in (0, 1, 7, len(wanted) - 1, len(wanted), len(wanted) + 1):
        check_all_faces_agree(topic.scan(start=at(low), limit=limit), wanted[:limit])


def test_times_before_and_after_the_log_are_fine(topic: sc.Topic) -> None:
    topic.append([b"a", b"b"], timestamps=[10, 20])
    far = dt.datetime(9999, 12, 31, tzinfo=UTC)
    long_ago = dt.datetime(1, 1, 1, tzinfo=UTC)
    assert topic.scan(start=long_ago, end=far).count() == 2
    assert topic.scan(start=far).count() == 0
    assert topic.scan(end=long_ago).count() == 0
    assert topic.scan(start=far, end=far).count() == 0


def test_bounds_finer_than_a_millisecond_are_exact(topic: sc.Topic) -> None:
    topic.append([b"a", b"b", b"c"], timestamps=[9, 10, 11])
    after_ten = at(10) + dt.timedelta(microseconds=1)
    assert [r.timestamp_ms for r in topic.scan(start=after_ten)] == [11]
    assert [r.timestamp_ms for r in topic.scan(end=after_ten)] == [9, 10]
    paris = dt.timezone(dt.timedelta(hours=1))
    assert [r.timestamp_ms for r in topic.scan(start=at(10).astimezone(paris))] == [10, 11]


# ---- columns, limit, empty --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [["value"], ["partition", "offset"], ["headers", "key"], ["timestamp", "partition", "value", "offset"], []],
)
@pytest.mark.parametrize("bounds", [{}, {"start": at(-5000)}], ids=["all", "by time"])
def test_columns_choose_and_order_the_output(
    many: tuple[sc.Topic, list[sc.Record]], columns: list[str], bounds: dict[str, Any]
) -> None:
    topic, records = many
    scan = topic.scan(columns=columns, **bounds)
    table = scan.to_arrow()
    assert table.schema == scan.schema
    assert table.column_names == columns
    whole = topic.scan(columns=["partition", "offset", "timestamp", "key", "value", "headers"]).to_arrow()
    assert table.num_rows == len(records)
    for name in columns:
        assert table[name].to_pylist() == whole[name].to_pylist()
    assert list(scan) == records


def test_the_schema_of_a_plain_topic(topic: sc.Topic) -> None:
    schema = topic.scan().schema
    assert schema.names == ["offset", "timestamp", "key", "value", "headers"]
    assert schema.field("offset") == pa.field("offset", pa.int64(), nullable=False)
    assert schema.field("timestamp") == pa.field("timestamp", pa.timestamp("ms", "UTC"), nullable=False)
    assert schema.field("key") == pa.field("key", pa.binary())
    assert schema.field("value") == pa.field("value", pa.binary())
    assert topic.scan().to_arrow().schema == schema
    assert topic.scan(columns=["partition"]).schema.field("partition") == pa.field(
        "partition", pa.int32(), nullable=False
    )


@pytest.mark.parametrize("limit", [0, 1, 5, 19, 20, 21, 10_000])
def test_limit_cuts_after_that_many_records(many: tuple[sc.Topic, list[sc.Record]], limit: int) -> None:
    topic, records = many
    check_all_faces_agree(topic.scan(limit=limit), records[:limit])
    check_all_faces_agree(topic.scan(start={1: 3, 2: 1}, limit=limit), [
        r for r in records if (r.partition == 1 and r.offset >= 3) or (r.partition == 2 and r.offset >= 1)
    ][:limit])  # fmt: skip


def test_a_scan_of_nothing_has_the_schema_and_no_rows(topic: sc.Topic) -> None:
    for scan in (topic.scan(), topic.scan(columns=["value", "partition"])):
        check = scan.to_arrow()
        assert check.num_rows == 0
        assert check.schema == scan.schema
        assert list(scan.batches()) == []
        assert list(scan) == []
        assert scan.count() == 0
        assert scan.to_reader().schema == scan.schema


# ---- the same again, and while things change --------------------------------------------------------------------


def test_a_scan_is_fixed_when_it_is_made(topic: sc.Topic) -> None:
    topic.append([b"a"] * 3)
    scan, later = topic.scan(), topic.scan(start="latest")
    topic.append([b"b"] * 3)
    assert scan.count() == 3
    assert scan.to_arrow()["value"].to_pylist() == [b"a"] * 3
    assert [r.value for r in scan] == [b"a"] * 3
    assert list(later) == []


def test_a_scan_can_be_read_again_and_again(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    topic, records = many
    scan = topic.scan()
    for _ in range(3):
        check_all_faces_agree(scan, records)
    first, second = iter(scan), iter(scan)
    assert [next(first) for _ in range(5)] == [next(second) for _ in range(5)] == records[:5]


def test_a_half_read_scan_can_be_dropped(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    topic, _ = many
    for read in (iter, lambda s: iter(s.batches()), lambda s: iter(s.to_reader())):
        iterator = read(topic.scan())
        next(iterator)
        del iterator
    gc.collect()
    assert topic.scan().count() > 0


def test_two_threads_read_one_scan(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    topic, records = many
    scan = topic.scan()
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(list(scan) == records)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_narrow_intersects_with_what_the_scan_has(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    topic, records = many
    scan = topic.scan(start={0: 2, 1: 3, 2: 4})
    base = [r for r in records if r.offset >= 2 + r.partition]
    check_all_faces_agree(scan.narrow(), base)
    check_all_faces_agree(scan.narrow(partitions=[1]), [r for r in base if r.partition == 1])
    check_all_faces_agree(scan.narrow(offsets=(3, 6)), [r for r in base if 3 <= r.offset < 6])
    check_all_faces_agree(scan.narrow(offsets=(None, 1)), [])
    check_all_faces_agree(scan.narrow(timestamps_ms=(500, None)), [r for r in base if r.timestamp_ms >= 500])
    check_all_faces_agree(
        scan.narrow(partitions={0, 2}, offsets=(5, None), timestamps_ms=(-100, 900)),
        [r for r in base if r.partition != 1 and r.offset >= 5 and -100 <= r.timestamp_ms < 900],
    )
    narrowed = (
        scan.narrow(timestamps_ms=(100, None)).narrow(timestamps_ms=(None, 2000)).narrow(timestamps_ms=(50, 1500))
    )
    check_all_faces_agree(narrowed, [r for r in base if 100 <= r.timestamp_ms < 1500])


def test_narrow_bounds_may_lie_far_outside(topic: sc.Topic) -> None:
    topic.append([b"x"] * 5, timestamps=[1, 2, 3, 4, 5])
    assert topic.scan().narrow(offsets=(-(1 << 62), 1 << 62)).count() == 5
    assert topic.scan().narrow(offsets=(1 << 62, None)).count() == 0
    assert topic.scan().narrow(offsets=(None, -(1 << 62))).count() == 0
    assert topic.scan().narrow(timestamps_ms=(-(1 << 63), (1 << 63) - 1)).count() == 5
    assert topic.scan().narrow(timestamps_ms=((1 << 63) - 1, None)).count() == 0
    assert topic.scan().narrow(timestamps_ms=(3, 2)).count() == 0


# ---- other consumers --------------------------------------------------------------------------------------------


def test_polars_and_pandas_get_the_same_records(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    pl = pytest.importorskip("polars")
    pytest.importorskip("pandas")
    topic, records = many
    frame = topic.scan().to_polars()
    assert isinstance(frame, pl.DataFrame)
    assert frame["value"].to_list() == [r.value for r in records]
    assert pl.DataFrame(topic.scan(columns=["key"]))["key"].to_list() == [r.key for r in records]
    pandas = topic.scan().to_pandas()
    assert pandas["offset"].tolist() == [r.offset for r in records]
    assert str(pandas["timestamp"].dtype).endswith("UTC]")


def test_duckdb_queries_a_scan_object(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    duckdb = pytest.importorskip("duckdb")
    topic, records = many
    scan = topic.scan(columns=["partition", "offset", "value"])  # noqa: F841  # DuckDB finds it by its name
    found = duckdb.sql(
        'select partition, count(*), max("offset"), sum(octet_length(value)) from scan group by 1 order by 1'
    )
    assert found.fetchall() == [
        (p, sum(r.partition == p for r in records), max(r.offset for r in records if r.partition == p),
         sum(len(r.value) for r in records if r.partition == p))
        for p in range(3)
    ]  # fmt: skip


def test_nanoarrow_reads_the_stream(many: tuple[sc.Topic, list[sc.Record]]) -> None:
    nanoarrow = pytest.importorskip("nanoarrow")
    topic, records = many
    array = nanoarrow.Array(topic.scan(columns=["offset", "value"]))
    assert len(array) == len(records)
    assert [row["value"] for row in array.to_pylist()] == [r.value for r in records]


def test_a_consumer_may_ask_for_another_schema(topic: sc.Topic) -> None:
    topic.append([b"abc", None])
    wanted = pa.schema([("value", pa.large_binary())])
    reader = pa.RecordBatchReader.from_stream(topic.scan(columns=["value"]), schema=wanted)
    assert reader.schema == wanted
    assert reader.read_all()["value"].to_pylist() == [b"abc", None]


# ---- what is read -----------------------------------------------------------------------------------------------


def test_metrics_tell_what_a_scan_has_read(store_path: Path) -> None:
    with sc.open(store_path, durability="disk") as store:  # an open checks what was not known to be durable
        topic = store.create_topic("clicks")
        for _ in range(10):
            topic.append([b"x" * 1000] * 10)
        size = topic.partitions[0].size_bytes
    with sc.open(store_path, mode="r") as store:
        scan = store.topic("clicks").scan()
        assert scan.metrics == sc.ScanMetrics(0, 0, 0, 0, 0)
        scan.to_arrow()
        first = scan.metrics
        assert (first.segments_opened, first.batches, first.rows) == (1, 10, 100)
        assert 100_000 < first.bytes_exported < size
        assert 0 < first.bytes_verified <= size
        scan.to_arrow()
        assert scan.metrics.rows == 200


@pytest.mark.parametrize("read", ["to_arrow", "records", "batches", "by time"])
def test_each_batch_is_checked_once_per_process(store_path: Path, read: str) -> None:
    with sc.open(store_path, durability="disk") as store:  # an open checks what was not known to be durable
        topic = store.create_topic("clicks", segment_bytes=SMALL_SEGMENT)
        for _ in range(20):
            topic.append([b"x" * 1000] * 10)

    def verified(topic: sc.Topic, **arguments: Any) -> int:
        scan = topic.scan(**arguments)
        if read == "records":
            list(scan)
        elif read == "batches":
            list(scan.batches())
        else:
            (scan.narrow(timestamps_ms=(1, None)) if read == "by time" else scan).to_arrow()
        return scan.metrics.bytes_verified

    with sc.open(store_path, mode="r") as store:
        topic = store.topic("clicks")
        scan = topic.scan(verify=False)
        list(scan)
        assert scan.metrics.bytes_verified == 0
        scan = topic.scan(end=100)
        scan.to_arrow()
        half = scan.metrics.bytes_verified
        assert half > 90_000
        scan = topic.scan()
        scan.to_arrow()
        assert scan.metrics.bytes_verified < 1.1 * half  # the other half, or what the open has not checked of it
        assert verified(topic) == 0
        assert topic.scan().count() == 200


def test_a_projection_hands_out_only_its_columns(topic: sc.Topic) -> None:
    topic.append([b"x" * 10_000] * 100)
    scan = topic.scan(columns=["offset"])
    scan.to_arrow()
    assert scan.metrics.bytes_exported == 800
    scan = topic.scan(columns=["partition"])
    scan.to_arrow()
    assert scan.metrics.bytes_exported <= 400


def test_count_touches_no_values(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks", partitions=2, segment_bytes=SMALL_SEGMENT)
        for number in range(100):
            topic.append([b"x" * 3000] * 2, partition=number % 2)
    with sc.open(store_path, mode="r") as store:
        scan = store.topic("clicks").scan()
        assert scan.count() == 200
        assert scan.metrics.bytes_exported == 0
        assert scan.metrics.bytes_verified == 0


def test_segments_are_opened_only_when_they_are_read(store: sc.Store) -> None:
    topic = store.create_topic("clicks", segment_bytes=SMALL_SEGMENT)
    for number in range(200):
        topic.append([b"x" * 5000], timestamps=number * 1000)
    segments = topic.segments()
    assert len(segments) > 10

    def opened(scan: sc.Scan) -> int:
        scan.to_arrow()
        return scan.metrics.segments_opened

    assert topic.scan().metrics.segments_opened == 0
    assert opened(topic.scan()) == len(segments)
    assert opened(topic.scan(start=150, end=151)) == 1
    assert opened(topic.scan(limit=1)) == 1
    assert opened(topic.scan(start="latest")) == 0
    middle = segments[len(segments) // 2]
    assert opened(topic.scan(start=middle.base_offset, end=middle.end_offset)) == 1
    assert opened(topic.scan(start=middle.base_offset - 1, end=middle.end_offset + 1)) == 3
    by_time = topic.scan(start=at(150_000), end=at(151_000))
    assert by_time.to_arrow()["offset"].to_pylist() == [150]
    assert by_time.metrics.segments_opened <= 2
    iterator = iter(scan := topic.scan())
    next(iterator)
    assert scan.metrics.segments_opened == 1


@pytest.mark.parametrize("with_index", [True, False])
def test_a_seek_reads_a_few_batches_of_many(store_path: Path, with_index: bool) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks")
        for number in range(5000):
            topic.append([b"%d" % number])
    if not with_index:
        for path in store_path.rglob("*.index"):
            path.unlink()
    with sc.open(store_path, mode="r") as store:
        topic = store.topic("clicks")
        for offset in (4999, 0, 2500, 1, 2499):
            scan = topic.scan(start=offset, end=offset + 1)
            assert [r.value for r in scan] == [b"%d" % offset]
            assert scan.metrics.batches == 1
            assert scan.metrics.rows == 1


def test_a_damaged_or_foreign_index_is_a_hint_and_no_more(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks", segment_bytes=SMALL_SEGMENT)
        for number in range(300):
            topic.append([b"%d" % number + b"x" * 1000], timestamps=number)
        wanted = list(topic.scan())
    chance = random.Random(3)
    indexes = sorted(store_path.rglob("*.index"))
    assert indexes
    for path in indexes:
        data = bytearray(path.read_bytes())
        for _ in range(5):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
    with sc.open(store_path) as store:
        topic = store.topic("clicks")
        for start in range(0, 300, 37):
            assert list(topic.scan(start=start)) == wanted[start:]
        assert list(topic.scan(start=at(100), end=at(200))) == wanted[100:200]
        assert topic.scan().count() == 300


# ---- corruption -------------------------------------------------------------------------------------------------


def flip(path: Path, what: bytes) -> int:
    data = bytearray(path.read_bytes())
    where = data.index(what)
    data[where] ^= 0x10
    path.write_bytes(data)
    return where


def test_a_flipped_bit_is_an_error_with_its_place_and_the_rest_stays_readable(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks")
        for number in range(10):
            topic.append([b"call %d" % number] * 3)
        topic.flush()
        [segment] = topic.segments()
    where = flip(Path(segment.path), b"call 5")
    with sc.open(store_path, mode="r") as store:
        topic = store.topic("clicks")
        for read in (lambda s: s.to_arrow(), list, lambda s: list(s.batches())):
            with pytest.raises(sc.CorruptionError) as info:
                read(topic.scan())
            assert info.value.path == segment.path
            assert info.value.offset == 15
            assert info.value.position is not None
            assert info.value.position <= where
            assert str(15) in str(info.value)
        assert topic.scan(end=15).count() == 15
        assert [r.value for r in topic.scan(start=18)] == [b"call %d" % n for n in range(6, 10) for _ in range(3)]
        assert [r.value for r in topic.scan(end=15)] == [b"call %d" % n for n in range(5) for _ in range(3)]


def test_records_before_the_damage_are_handed_out_first(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks")
        for number in range(10):
            topic.append([b"call %d" % number], durability="disk")
        [segment] = topic.segments()
    flip(Path(segment.path), b"call 7")
    with sc.open(store_path, mode="r") as store:
        iterator = iter(store.topic("clicks").scan())
        assert [next(iterator).value for _ in range(7)] == [b"call %d" % n for n in range(7)]
        with pytest.raises(sc.CorruptionError):
            next(iterator)


# ---- records ----------------------------------------------------------------------------------------------------


def test_a_record_has_its_fields_and_a_time_in_utc(topic: sc.Topic) -> None:
    topic.append([b"v"], keys=[b"k"], timestamps=1_767_323_045_678, headers=[{"h": b"x", "n": None}])
    [record] = topic.scan()
    assert (record.partition, record.offset, record.key, record.value) == (0, 0, b"k", b"v")
    assert record.timestamp_ms == 1_767_323_045_678
    assert record.timestamp == dt.datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)
    assert record.timestamp.tzinfo is not None
    assert record.headers == (("h", b"x"), ("n", None))


def test_records_are_values(topic: sc.Topic) -> None:
    topic.append([b"v", b"w"], keys=[b"k", None], timestamps=5, headers=[{"h": b"x"}, None])
    first, second = topic.scan()
    again = next(iter(topic.scan()))
    assert first == again
    assert first is not again
    assert hash(first) == hash(again)
    assert first != second
    assert first != (0, 0, 5, b"k", b"v", (("h", b"x"),))
    assert first != "record"
    assert {first, again, second} == {first, second}
    for record in (first, second):
        assert pickle.loads(pickle.dumps(record)) == record
        assert copy.copy(record) == copy.deepcopy(record) == record
    assert sc.Record(0, 0, 5, b"k", b"v", (("h", b"x"),)) == first
    assert sc.Record(0, 1, 5, None, b"w") == second
    with pytest.raises(TypeError):
        first < second  # noqa: B015


def test_records_cannot_be_changed(topic: sc.Topic) -> None:
    topic.append([b"v"])
    [record] = topic.scan()
    for name in ("partition", "offset", "timestamp", "timestamp_ms", "key", "value", "headers", "other"):
        with pytest.raises(AttributeError):
            setattr(record, name, 1)


def test_records_that_are_kept_stay_as_they_are_while_the_scan_goes_on(topic: sc.Topic) -> None:
    count = 2000
    topic.append([b"%d" % i * (i % 50) for i in range(count)], keys=[b"k%d" % i for i in range(count)], timestamps=7)
    wanted = [sc.Record(0, i, 7, b"k%d" % i, b"%d" % i * (i % 50)) for i in range(count)]
    kept = [record for record in topic.scan() if record.offset % 7 < 2]
    assert kept == [record for record in wanted if record.offset % 7 < 2]
    values = [record.value for record in topic.scan()]
    assert values == [record.value for record in wanted]
    assert list(topic.scan()) == wanted
    records = iter(topic.scan())
    assert [next(records).offset for _ in range(5)] == [0, 1, 2, 3, 4]
    first, second, third = next(records), next(records), next(records)
    assert (first, second, third) == (wanted[5], wanted[6], wanted[7])


def test_the_garbage_collector_does_not_walk_records_of_bytes(topic: sc.Topic) -> None:
    topic.append([b"a", b"b"])
    assert [gc.is_tracked(record) for record in topic.scan()] == [False, False]


def test_a_cycle_through_a_record_is_collected() -> None:
    gone = []
    value: dict[str, object] = {}
    holder = type("Holder", (), {})()
    weakref.finalize(holder, gone.append, True)
    value["self"] = sc.Record(0, 0, 0, None, value)
    value["holder"] = holder
    del value, holder
    gc.collect()
    assert gone == [True]


def test_fields_of_records_are_members_which_the_interpreter_reads_fast() -> None:
    for name in ("partition", "offset", "timestamp_ms", "key", "value", "headers"):
        assert type(vars(sc.Record)[name]) is types.MemberDescriptorType


def test_the_repr_of_a_record_shows_what_there_is(topic: sc.Topic) -> None:
    topic.append([b"v", None], keys=[b"k", None], timestamps=5, headers=[{"h": b"x"}, None])
    first, second = topic.scan()
    assert repr(first) == (
        "Record(partition=0, offset=0, timestamp='1970-01-01T00:00:00.005000+00:00', key=b'k', value=b'v', "
        "headers=(('h', b'x'),))"
    )
    assert repr(second) == (
        "Record(partition=0, offset=1, timestamp='1970-01-01T00:00:00.005000+00:00', key=None, value=None)"
    )


def test_a_time_that_no_datetime_can_show_is_still_a_number(topic: sc.Topic) -> None:
    topic.append([b"v"], timestamps=(1 << 63) - 1)
    [record] = topic.scan()
    assert record.timestamp_ms == (1 << 63) - 1
    with pytest.raises((OverflowError, ValueError)):
        _ = record.timestamp
    assert "9223372036854775807" in repr(record)


def test_records_stay_when_the_store_is_gone(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks")
        topic.append([b"v" * 100] * 10, keys=[b"k"] * 10)
        records = list(topic.scan())
        store.delete_topic("clicks")
    gc.collect()
    assert [(r.key, r.value) for r in records] == [(b"k", b"v" * 100)] * 10
