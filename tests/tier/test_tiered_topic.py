"""A topic whose old segments are in a tier: it reads as if they were here, and nothing is lost on the way there."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import decimal
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc
from streamcore.tier import address, keeping, kept, offload
from streamcore.tier.objects import Objects, Retries, Transient

SEGMENT_BYTES = 64 << 10
Open = Callable[..., sc.Store]


def fill(topic: sc.Topic, count: int = 2000, size: int = 100) -> None:
    """Some segments of records with keys, headers, tombstones and times out of order."""
    for first in range(0, count, 100):
        numbers = range(first, min(first + 100, count))
        topic.append(
            [None if n % 50 == 7 else b"%d " % n + bytes([n % 256]) * (n % size) for n in numbers],
            keys=[None if n % 3 == 0 else b"key %d" % (n % 40) for n in numbers],
            timestamps=[1_700_000_000_000 + n * 1000 - (n % 7) * 5000 for n in numbers],
            headers=[{"n": b"%d" % n, "empty": None} if n % 4 == 0 else None for n in numbers],
            partition=(first // 100) % topic.partition_count,
        )
    topic.roll()


def move(topic: sc.Topic) -> None:
    """All sealed segments go to the tier, and from here."""
    assert topic.store.tier is not None
    assert topic.cold is not None
    topic.offload()
    before = topic.config
    topic.alter(local_retention_bytes=1)
    keeping.apply_local_retention(topic, topic.store.tier, topic.cold)
    topic.alter(local_retention_bytes=before.local_retention_bytes)


def objects_of(store: sc.Store) -> Objects:
    """The tier's objects."""
    assert store.tier is not None
    return store.tier.objects


def parquet_files(tier_path: Path) -> list[Path]:
    """The objects with records."""
    return sorted(tier_path.rglob("*.parquet"))


def whole(scan: sc.Scan) -> pa.Table:
    """A scan in one piece, so that it can be compared."""
    return scan.to_arrow().combine_chunks()


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_records_in_the_tier_are_those_that_were_here(store: sc.Store, compression: Any) -> None:
    topic = store.create_topic("clicks", partitions=2, tier=True, segment_bytes=SEGMENT_BYTES, compression=compression)
    fill(topic)
    arrow, records = whole(topic.scan()), list(topic.scan())
    move(topic)
    fill(topic, 150)
    for part in topic.partitions:
        assert part.start_offset == 0
        assert part.local_start_offset > 0
    ends = {0: 1000, 1: 1000}
    assert whole(topic.scan(end=ends)).equals(arrow)
    assert list(topic.scan(end=ends)) == records
    assert topic.scan(end=ends).count() == 2000
    assert topic.scan().count() == 2150
    assert [record.offset for record in topic.scan(0)] == list(range(topic.partitions[0].end_offset))


@pytest.mark.parametrize(("start", "end"), [(0, 1), (5, 5), (17, 403), (399, 1150), (990, 1010), (1001, 1100)])
def test_bounds_columns_and_limits_are_as_they_were_here(store: sc.Store, start: int, end: int) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic, 1000)
    fill(topic, 200)
    moments = [datetime.datetime.fromtimestamp(1_700_000_000 + n, datetime.UTC) for n in (start, end)]
    names = ["timestamp", "partition", "headers"]

    def read() -> list[Any]:
        return [
            whole(topic.scan(0, start, end)),
            whole(topic.scan(0, start, end, columns=names)),
            whole(topic.scan(0, start, end, limit=37)),
            list(topic.scan(0, start, end, limit=37)),
            topic.scan(0, start, end).count(),
            topic.scan(0, start, end, limit=37).count(),
            whole(topic.scan(0, moments[0], moments[1])),
            whole(topic.scan(0, moments[0], moments[1], columns=["key"])),
            topic.scan(0, moments[0], moments[1]).count(),
        ]

    before = read()
    move(topic)
    assert read() == before


def test_aborted_records_and_markers_are_left_out_and_open_transactions_wait(store: sc.Store) -> None:
    topic = store.create_topic("clicks", tier=True)
    topic.append([b"a"])
    with store.transaction("t") as transaction:
        transaction.append("clicks", [b"b", b"c"])
    with pytest.raises(KeyError), store.transaction("t") as transaction:
        transaction.append("clicks", [b"gone"])
        raise KeyError
    topic.append([b"d"])
    topic.roll()
    pending = store.transaction("open")
    pending.append("clicks", [b"e"])
    topic.append([b"f"])
    topic.roll()
    records = list(topic.scan())
    assert [one.end_offset for one in topic.offload()] == [7]  # the open transaction's segment waits
    pending.commit()
    topic.roll()
    move(topic)
    assert topic.partitions[0].local_start_offset == topic.partitions[0].end_offset
    found = list(topic.scan())
    assert found[: len(records)] == records
    assert [record.value for record in found] == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert [record.offset for record in found] == [0, 1, 2, 6, 7, 8]
    assert found == list(topic.scan(isolation="uncommitted"))


def test_a_segment_of_which_nothing_was_committed_takes_no_object(store: sc.Store, tier_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True)
    with pytest.raises(KeyError), store.transaction("t") as transaction:
        transaction.append("clicks", [b"gone"])
        raise KeyError
    topic.roll()
    topic.append([b"kept"])
    topic.roll()
    move(topic)
    assert len(parquet_files(tier_path)) == 1
    assert [record.value for record in topic.scan()] == [b"kept"]


KINDS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "int8": (pa.int8(), [1, None, -128]),
    "uint64": (pa.uint64(), [1, None, 2**64 - 1]),
    "float16": (pa.float16(), [1.5, None, -2.0]),
    "double": (pa.float64(), [1.5, None, float("inf")]),
    "bool": (pa.bool_(), [True, None, False]),
    "date": (pa.date32(), [datetime.date(2026, 1, 1), None, datetime.date(1, 1, 1)]),
    "time s": (pa.time32("s"), [datetime.time(1, 2, 3), None, datetime.time(0)]),
    "time ns": (pa.time64("ns"), [datetime.time(1, 2, 3, 4), None, datetime.time(0)]),
    "timestamp s": (pa.timestamp("s"), [datetime.datetime(2026, 1, 1), None, datetime.datetime(1969, 1, 1)]),
    "timestamp ns": (pa.timestamp("ns", "Europe/Paris"), [1, None, -5]),
    "duration": (pa.duration("s"), [datetime.timedelta(seconds=5), None, datetime.timedelta(0)]),
    "string": (pa.string(), ["a", None, "ü" * 40]),
    "large string": (pa.large_string(), ["a", None, ""]),
    "string view": (pa.string_view(), ["a", None, "more than twelve bytes"]),
    "binary view": (pa.binary_view(), [b"a", None, b"more than twelve bytes"]),
    "fixed": (pa.binary(3), [b"abc", None, b"\0\1\2"]),
    "decimal": (pa.decimal128(30, 5), [decimal.Decimal("1.25"), None, decimal.Decimal("-3")]),
    "decimal 256": (pa.decimal256(60, 5), [decimal.Decimal("1.25"), None, decimal.Decimal("-3")]),
    "null": (pa.null(), [None, None, None]),
    "list": (pa.list_(pa.int32()), [[1, None], None, []]),
    "large list": (pa.large_list(pa.string()), [["a", None], None, []]),
    "fixed list": (pa.list_(pa.int8(), 2), [[1, None], None, [3, 4]]),
    "map": (pa.map_(pa.string(), pa.list_(pa.struct([("a", pa.int8())]))), [[("k", [{"a": 1}])], None, []]),
    "struct": (pa.struct([("x", pa.int32()), ("a.b", pa.list_(pa.string()))]), [{"x": 1, "a.b": ["q"]}, None, {}]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_typed_values_of_every_type_come_back_as_they_were(store: sc.Store, kind: str) -> None:
    type_, values = KINDS[kind]
    topic = store.create_topic("typed", schema=pa.schema([("f", type_), ("other", pa.int64())]), tier=True)
    column = pa.array(values, pa.int64()).cast(type_) if kind == "timestamp ns" else pa.array(values, type_)
    topic.append_table(pa.table({"f": column, "other": [1, 2, 3]}))
    topic.append([None])  # a tombstone
    topic.roll()
    names = ["value.f", "offset"]
    before, some = whole(topic.scan()), whole(topic.scan(columns=names))
    move(topic)
    found, found_some = whole(topic.scan()), whole(topic.scan(columns=names))
    assert found.schema.equals(before.schema)
    assert found.equals(before)
    assert found_some.schema.equals(some.schema)
    assert found_some.equals(some)


def test_values_that_are_null_come_back_where_their_fields_are_required(store: sc.Store) -> None:
    def required(name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, nullable=False)

    kinds = {"n": pa.int64(), "b": pa.bool_(), "t": pa.string(), "v": pa.string_view(), "l": pa.list_(pa.int32())}
    inner = pa.struct([required("x", pa.large_string()), ("y", pa.int8())])
    fields = [*(required(name, kind) for name, kind in kinds.items()), required("in", inner), ("may", inner)]
    topic = store.create_topic("typed", schema=pa.schema(fields), tier=True)
    values: list[Any] = [
        {"n": n, "b": n % 2 == 0, "t": str(n), "v": "v" * n, "l": [n] * (n % 4), "in": {"x": "in", "y": None},
         "may": None if n % 5 == 0 else {"x": str(n), "y": n}} if n % 3 else None
        for n in range(100)
    ]  # fmt: skip
    topic.append(values)
    topic.append([None] * 5)
    topic.roll()
    move(topic)
    assert topic.partitions[0].local_start_offset == 105
    assert [record.value for record in topic.scan()] == values + [None] * 5


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (pa.month_day_nano_interval(), "'f' is month_day_nano_interval"),
        (pa.date64(), "'f' is date64"),
        (pa.list_(pa.struct([])), "without loss"),
    ],
)
def test_types_that_parquet_would_change_are_refused_before_anything_is_made(
    store: sc.Store, kind: pa.DataType, said: str
) -> None:
    schema = pa.schema([("f", kind)])
    with pytest.raises(ValueError, match=said):
        store.create_topic("typed", schema=schema, tier=True)
    topic = store.create_topic("typed", schema=schema)
    with pytest.raises(ValueError, match=said):
        topic.alter(tier=True)


def test_objects_of_older_schemas_are_widened(store: sc.Store) -> None:
    topic = store.create_topic("typed", schema=pa.schema([("a", pa.int64())]), tier=True)
    topic.append([{"a": 1}])
    topic.roll()
    move(topic)
    topic.alter(schema=pa.schema([("a", pa.int64()), ("b", pa.string())]))
    topic.append([{"a": 2, "b": "x"}])
    assert [record.value for record in topic.scan()] == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    assert whole(topic.scan(columns=["value.b"])).column(0).to_pylist() == [None, "x"]
    assert whole(topic.scan(0, 0, 1, columns=["value.b"])).column(0).to_pylist() == [None]


def test_consumers_cross_from_the_tier_to_what_is_here(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2, tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    fill(topic, 300)
    wanted = sorted((record.partition, record.offset) for record in topic.scan())
    assert len(wanted) == 2300

    def places(records: Any) -> list[tuple[int, int]]:
        return sorted((record.partition, record.offset) for record in records)

    with store.consumer("clicks") as consumer:
        found: list[sc.Record] = []
        while records := consumer.poll(0, 333):
            found += records
        assert places(found) == wanted
        consumer.seek("clicks", 1, 5)
        assert consumer.poll(0, 1)[0].offset == 5
    with store.consumer("clicks") as consumer:
        rows: list[tuple[int, int]] = []
        while len(table := consumer.poll_arrow(0, max_bytes=20_000)):
            rows += zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True)
        assert sorted(rows) == wanted
    with store.consumer("clicks") as consumer:
        assert places(record for _, record in zip(wanted, consumer, strict=False)) == wanted


def test_an_event_loop_goes_on_while_a_consumer_waits_for_the_tier(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    objects = objects_of(store)
    inside, release = threading.Event(), threading.Event()
    get_ranges = objects.get_ranges

    def slow(*arguments: Any) -> Any:
        inside.set()
        assert release.wait(20)
        return get_ranges(*arguments)

    monkeypatch.setattr(objects, "get_ranges", slow)

    async def read() -> tuple[int, int]:
        with store.consumer("clicks") as consumer:
            reading = asyncio.create_task(consumer.poll_async(20_000, 500))
            while not inside.is_set():
                await asyncio.sleep(0.001)
            turns = 0
            for _ in range(50):  # the loop turns while the tier does not answer
                await asyncio.sleep(0)
                turns += not reading.done()
            release.set()
            count = len(await reading)
            async for _ in consumer:
                count += 1
                if count == 2000:
                    return count, turns
        raise AssertionError

    assert asyncio.run(read()) == (2000, 50)


def test_behind_a_seek_back_an_event_loop_has_a_thread_fetch_again(store: sc.Store) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)

    async def read() -> None:
        with store.consumer("clicks") as consumer:
            assert len(await consumer.poll_async(20_000, 100)) == 100
            consumer.seek("clicks", 0, "earliest")
            assert consumer._fetcher.to_fetch(in_loop=False) is not None
            assert (await consumer.poll_async(20_000, 1))[0].offset == 0

    asyncio.run(read())


def test_a_group_goes_on_in_the_tier_where_it_has_committed(store: sc.Store) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    with store.consumer("clicks", group="billing") as consumer:
        assert len(consumer.poll(0, 123)) == 123
        consumer.commit()
    move(topic)
    with store.consumer("clicks", group="billing") as consumer:
        assert consumer.poll(0, 1)[0].offset == 123
        assert consumer.metrics.offset_resets == 0


def test_sql_with_and_without_filters_sees_each_record_once(store: sc.Store) -> None:
    pytest.importorskip("duckdb")
    topic = store.create_topic("clicks", partitions=2, tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    fill(topic, 400)
    queries = [
        'select partition, count(*), min("offset"), max("offset"), sum("offset") from clicks group by all order by all',
        'select count(*), sum("offset") from clicks where "offset" between 150 and 1050',
        "select count(*), min(timestamp) from clicks where timestamp >= '2023-11-14 22:20:00+00' and partition = 1",
        'select text(key), count(*) from clicks where "offset" < 990 group by all order by all',
    ]
    before = [store.sql(query).to_pylist() for query in queries]
    move(topic)
    assert topic.partitions[0].local_start_offset > 0
    assert [store.sql(query).to_pylist() for query in queries] == before
    topic.delete_records({0: 321, 1: 321})  # the first object of each is kept for its end
    assert store.sql('select min("offset"), count(*) from clicks').to_pylist() == [
        {'min("offset")': 321, "count_star()": 2400 - 2 * 321}
    ]


def test_the_latest_of_a_key_and_places_by_time_are_found_in_the_tier(store: sc.Store) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    topic.append([b"old", b"only"], keys=[b"a", b"b"], timestamps=[1_000, 2_000])
    fill(topic)
    topic.append([b"new"], keys=[b"a"])
    keys = [b"a", b"b", b"key 1", b"nobody"]
    moment = datetime.datetime.fromtimestamp(1_700_000_900, datetime.UTC)

    def read() -> list[Any]:
        with store.consumer("clicks") as consumer:
            consumer.poll(0, 1)
            consumer.seek("clicks", 0, moment)
            position = consumer.position("clicks", 0)
        return [[topic.latest(key) for key in keys], topic.table().combine_chunks(), position]

    before = read()
    assert before[0][1].value == b"only"
    move(topic)
    assert topic.partitions[0].local_start_offset > 1000
    assert read() == before


def test_a_scan_goes_on_when_what_it_reads_goes_to_the_tier(store: sc.Store) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    values = [record.value for record in topic.scan()]
    scan, batches, records = topic.scan(), topic.scan().batches(), iter(topic.scan())
    first_batch, first_record = next(batches), next(records)
    move(topic)
    assert whole(scan)["value"].to_pylist() == values
    assert [v for batch in (first_batch, *batches) for v in batch.column("value").to_pylist()] == values
    assert [record.value for record in (first_record, *records)] == values


def test_another_process_that_only_reads_sees_all_of_it(store: sc.Store, store_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    with sc.open(store_path, "r") as reader:
        assert reader.topic("clicks").scan().count() == 2000
        move(topic)
        assert reader.topic("clicks").partitions[0].start_offset == 0
        assert [record.offset for record in reader.topic("clicks").scan()] == list(range(2000))


# ---- deleting --------------------------------------------------------------------------------------------------------


def test_retention_removes_from_the_tier_what_is_too_old_or_too_much(store: sc.Store, tier_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    count = len(parquet_files(tier_path))
    assert count > 2
    newest = 1_700_000_000_000 + 1999 * 1000
    topic.alter(retention_ms=600_000)
    report = sc.retention.apply_retention(topic, newest)  # type: ignore[attr-defined]
    start = topic.partitions[0].start_offset
    assert 0 < start < 1400
    assert report.segments > 0
    assert 0 < len(parquet_files(tier_path)) < count
    assert [record.offset for record in topic.scan()] == list(range(start, 2000))
    with pytest.raises(sc.OffsetOutOfRangeError) as raised:
        topic.scan(0, start - 1)
    assert (raised.value.earliest, raised.value.latest) == (start, 2000)
    topic.alter(retention_ms=None, retention_bytes=1)
    sc.retention.apply_retention(topic)  # type: ignore[attr-defined]
    assert topic.partitions[0].start_offset > start
    assert len(list(topic.scan())) == 2000 - topic.partitions[0].start_offset


def test_a_timestamp_from_the_future_keeps_nothing_in_the_tier_nor_here(
    store: sc.Store, tier_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hour_ms, now = 3600 * 1000, time.time_ns() // 1_000_000
    topic = store.create_topic("clicks", tier=True, retention_ms=10 * hour_ms, local_retention_ms=5 * hour_ms)
    for number, (hours, ahead) in enumerate(((20, 500), (6, 500), (6, 20), (1, 500))):
        topic.append([b"%d" % number], timestamps=[now + ahead * hour_ms])
        topic.roll()
        moment = (now - hours * hour_ms) / 1000
        os.utime(topic.segments(0)[number].path, (moment, moment))
    topic.offload()
    assert topic.cold is not None
    assert store.tier is not None
    keeping.apply_local_retention(topic, store.tier, topic.cold, now)
    assert [part.local_start_offset for part in topic.partitions] == [2]  # 20 hours are no day: these count
    report = sc.retention.apply_retention(topic, now)  # type: ignore[attr-defined]
    assert report.from_the_future == 3
    assert [record.value for record in topic.scan()] == [b"1", b"2", b"3"]
    assert len(parquet_files(tier_path)) == 3
    assert sum("ahead of the clock" in record.message for record in caplog.records) == 3


def test_an_object_of_a_version_that_knew_no_file_times_is_as_old_as_its_records(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    day_ms, now = 24 * 3600 * 1000, time.time_ns() // 1_000_000
    topic = store.create_topic("clicks", tier=True, retention_ms=day_ms)
    monkeypatch.setattr(offload, "file_time_ms", lambda segment, now: 0)
    topic.append([b"old"], timestamps=[now - 2 * day_ms])
    topic.roll()
    topic.append([b"ahead"], timestamps=[now + 9 * day_ms])
    topic.roll()
    topic.offload()
    sc.retention.apply_retention(topic, now)  # type: ignore[attr-defined]
    assert [record.value for record in topic.scan()] == [b"ahead"]


def test_deleted_records_are_gone_at_both_places_and_for_scans_made_before(store: sc.Store) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    fill(topic, 100)
    scan = topic.scan()
    [removed] = topic.delete_records(1500)
    assert removed.start_offset == topic.partitions[0].start_offset == 1500
    assert [record.offset for record in topic.scan()] == list(range(1500, 2100))
    with pytest.raises(sc.OffsetOutOfRangeError):
        scan.to_arrow()
    topic.delete_records("latest")
    assert list(topic.scan()) == []
    with pytest.raises(sc.OffsetOutOfRangeError):
        topic.delete_records(2101)
    topic.append([b"more"])
    topic.roll()
    move(topic)
    assert [record.offset for record in topic.scan()] == [2100]


def test_a_deleted_topic_leaves_nothing_in_the_tier(store: sc.Store, tier_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True)
    fill(topic, 200)
    move(topic)
    assert parquet_files(tier_path)
    store.delete_topic("clicks")
    assert [path for path in (tier_path / "topics").rglob("*") if path.is_file()] == []
    again = store.create_topic("clicks", tier=True)
    assert list(again.scan()) == []
    assert kept.topics_with_copies(store.catalog) == frozenset()


# ---- local data goes only when the tier has it -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["gone", "shorter", "other bytes"])
def test_local_data_stays_until_the_tier_has_what_was_put_there(store: sc.Store, tier_path: Path, damage: str) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES, local_retention_bytes=1)
    fill(topic)
    records = list(topic.scan())
    topic.offload()
    path = parquet_files(tier_path)[1]
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "shorter" else data[:100] + b"?" + data[101:])
    assert store.tier is not None
    assert topic.cold is not None
    keeping.apply_local_retention(topic, store.tier, topic.cold)
    first = topic.cold.copy(0)
    assert first is not None
    assert topic.partitions[0].local_start_offset == first.manifest.entries[1].base_offset  # only what is sound went
    keeping.apply_local_retention(topic, store.tier, topic.cold)  # it was put there again meanwhile
    assert topic.partitions[0].local_start_offset > 1000
    assert list(topic.scan()) == records
    assert store.tier.verify() == []


def test_a_control_that_does_not_read_objects_back_would_lose_records(
    store: sc.Store, tier_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    topic.offload()
    parquet_files(tier_path)[1].unlink()
    monkeypatch.setattr(keeping, "problem_of", lambda *_: None)
    move(topic)
    with pytest.raises(sc.TierError, match="are lost"):
        list(topic.scan())


def test_while_the_tier_cannot_be_reached_appends_and_local_reads_go_on(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES, local_retention_bytes=1)
    fill(topic)
    assert store.tier is not None
    objects = objects_of(store)

    def fail(*_: Any) -> Any:
        raise sc.TierError("it does not answer", "file://nowhere", transient=True)

    for name in ("put", "put_file", "create", "replace", "get", "get_ranges", "stream", "head", "listed", "delete"):
        monkeypatch.setattr(objects, name, fail)
    [run] = store.maintain(["tier"]) or []
    assert "does not answer" in str(run.error)
    status = store.tier.status()
    assert "does not answer" in str(status.last_error)
    assert status.pending_bytes > 0
    topic.append([b"more"])
    assert topic.partitions[0].local_start_offset == 0  # kept, beyond what local retention says
    assert topic.scan().count() == 2001
    topic.alter(retention_bytes=1)  # which bounds what is here
    sc.retention.apply_retention(topic)  # type: ignore[attr-defined]
    assert topic.partitions[0].start_offset > 1000
    monkeypatch.undo()
    [run] = store.maintain(["tier"]) or []
    assert run.error is None
    assert topic.scan().count() == 2001 - topic.partitions[0].start_offset


def test_what_is_here_is_read_where_nobody_knows_how_to_get_to_the_tier(
    store: sc.Store, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    fill(topic, 100)
    local = topic.partitions[0].local_start_offset
    store.close()

    def nowhere(*_: Any) -> Any:
        raise ImportError("a tier at s3:// needs obstore")

    monkeypatch.setattr(address, "connect", nowhere)
    with sc.open(store_path, maintenance=False) as again:
        topic = again.topic("clicks")
        assert topic.partitions[0].start_offset == 0
        assert [record.offset for record in topic.scan(start=local)] == list(range(local, 2100))
        topic.append([b"more"])
        with again.consumer("clicks", start="latest") as consumer:
            topic.append([b"still more"])
            assert [record.value for record in consumer.poll(5000)] == [b"still more"]
        with pytest.raises(ImportError, match="obstore"):
            list(topic.scan())


def test_closing_does_not_wait_for_a_tier_that_does_not_answer(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    objects = objects_of(store)
    failed = threading.Event()

    def fail(*_: Any) -> Any:
        failed.set()
        raise Transient("it does not answer")

    monkeypatch.setattr(objects, "_get", fail)
    monkeypatch.setattr(objects, "_retries", Retries(10**6, 10**6, 10**6))

    def maintain() -> None:
        with contextlib.suppress(sc.StreamcoreError):  # the store is closed before it can note what it did
            store.maintain(["tier"])

    thread = threading.Thread(target=maintain)
    thread.start()
    assert failed.wait(20)
    store.close()  # for which the thread's pause of days would be in the way
    thread.join(20)
    assert not thread.is_alive()


def test_retention_goes_on_here_while_the_tier_has_older_records_and_does_not_answer(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    fill(topic)
    objects = objects_of(store)

    def fail(*_: Any) -> Any:
        raise sc.TierError("it does not answer", "file://nowhere", transient=True)

    for name in ("get", "replace", "delete"):
        monkeypatch.setattr(objects, name, fail)
    topic.alter(retention_bytes=1)
    sc.retention.apply_retention(topic)  # type: ignore[attr-defined]
    start = topic.partitions[0].start_offset
    assert start > 2000
    monkeypatch.undo()
    sc.retention.apply_retention(topic)  # type: ignore[attr-defined]
    topic.offload()
    assert topic.partitions[0].start_offset == start
    assert [record.offset for record in topic.scan()] == list(range(start, 4000))


# ---- several at once -------------------------------------------------------------------------------------------------


def test_two_who_offload_at_once_put_each_record_there_once(store_path: Path, store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2, tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic, 4000)
    done: list[sc.Offloaded] = []

    def run(opened: sc.Store) -> None:
        done.extend(opened.topic("clicks").offload())

    with sc.open(store_path, maintenance=False) as second:
        threads = [threading.Thread(target=run, args=(one,)) for one in (store, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    records = list(topic.scan())
    move(topic)
    assert sum(one.rows for one in done) == 4000
    assert list(topic.scan()) == records
    assert store.tier is not None
    assert store.tier.verify() == []


def test_who_was_overtaken_while_it_slept_changes_nothing(store: sc.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    put = offload.put

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(offload, "put", put)
        topic.offload()  # while the first one has its object ready
        put(*arguments)

    monkeypatch.setattr(offload, "put", overtaken)
    assert topic.offload() == []
    assert topic.cold is not None
    copy = topic.cold.fresh(0)
    assert copy is not None
    assert sum(entry.rows for entry in copy.manifest.entries) == copy.manifest.end_offset
    assert store.tier is not None
    assert store.tier.gc(grace_s=0).objects == 1  # the object of the one that came too late
    move(topic)
    assert topic.scan().count() == 2000


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_what_was_read_once_is_not_asked_for_again_and_damage_in_the_cache_is(
    store: sc.Store, store_path: Path
) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    records = list(topic.scan())
    store.close()
    with sc.open(store_path, maintenance=False) as again:
        assert list(again.topic("clicks").scan()) == records
        assert objects_of(again).counters.read()["got"] == 0
    for path in (store_path / "tier" / "cache").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] + b"?" + data[len(data) // 2 + 1 :])
    with sc.open(store_path, maintenance=False) as again:
        assert list(again.topic("clicks").scan()) == records
        assert objects_of(again).counters.read()["got"] > 0


def test_the_cache_stays_below_its_size(store_path: Path, tier_path: Path) -> None:
    options = {"cache_bytes": 30_000}
    with sc.open(store_path, maintenance=False, tier=f"file://{tier_path}", tier_options=options) as store:
        topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
        fill(topic, 4000)
        move(topic)
        assert topic.scan().count() == len(list(topic.scan())) == 4000
        assert store.tier is not None
        assert 0 < store.tier.status().cache_bytes <= 30_000


def test_a_read_of_times_fetches_a_small_part_of_the_objects(store: sc.Store, tier_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=1 << 20)
    for first in range(0, 8000, 1000):
        topic.append([os.urandom(100) for _ in range(1000)], timestamps=[first * 1000 + 997 * n for n in range(1000)])
    topic.roll()
    move(topic)
    before = objects_of(store).counters.read()["got"]
    assert len(whole(topic.scan(columns=["timestamp"]))) == 8000
    sizes = sum(path.stat().st_size for path in parquet_files(tier_path))
    assert objects_of(store).counters.read()["got"] - before < sizes // 20


def test_prefetch_brings_what_is_in_the_tier_alone_into_the_cache(store: sc.Store) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    assert store.tier is not None
    assert store.tier.prefetch("clicks") > 0
    got = objects_of(store).counters.read()["got"]
    assert len(list(topic.scan())) == 2000
    assert objects_of(store).counters.read()["got"] == got


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/x", "keys and tokens come from"),
        ("s3://bucket/x?token=1", "keys and tokens come from"),
        ("ftp://host/x", "'ftp://host/x' is no address of a tier"),
        ("s3:///x", "names no bucket"),
        ("file://host/x", "names no folder"),
        ("bucket", "is no address"),
    ],
)
def test_what_is_no_address_is_refused(tmp_path: Path, url: str, said: str) -> None:
    with sc.open(tmp_path / "other") as other:
        with pytest.raises(ValueError, match=said):
            other.set_tier(url)
        assert other.tier is None


def test_secrets_are_not_kept(tmp_path: Path) -> None:
    with sc.open(tmp_path / "other") as other:
        with pytest.raises(ValueError, match="'secret_access_key' is not kept"):
            other.set_tier("s3://bucket/x", secret_access_key="hidden")
        other.set_tier("s3://bucket/x", region="eu-central-1")
    assert b"hidden" not in (tmp_path / "other" / "catalog.sqlite").read_bytes()


def test_a_topic_needs_a_tier_and_a_tier_that_is_needed_stays(tmp_path: Path, store: sc.Store) -> None:
    with sc.open(tmp_path / "other") as other:
        with pytest.raises(ValueError, match="the store has no tier"):
            other.create_topic("clicks", tier=True)
        with pytest.raises(ValueError, match="is not tiered"):
            other.create_topic("plain").offload()
    with pytest.raises(ValueError, match="cannot be compacted"):
        store.create_topic("table", tier=True, cleanup="compact")
    with pytest.raises(ValueError, match="needs tier=True"):
        store.create_topic("table", local_retention_ms=1)
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    with pytest.raises(ValueError, match="is used by clicks"):
        store.set_tier(None)
    topic.alter(tier=False)
    assert topic.scan().count() == 2000
    with pytest.raises(ValueError, match="alone has records of clicks"):
        store.set_tier("memory://elsewhere")


def test_a_tier_is_one_stores_alone(tmp_path: Path, store: sc.Store, tier_path: Path) -> None:
    fill(store.create_topic("clicks", tier=True), 100)
    store.topic("clicks").offload()
    with sc.open(tmp_path / "other", tier=f"file://{tier_path}") as other:
        fill(other.create_topic("clicks", tier=True), 100)
        with pytest.raises(sc.TierError, match="belongs to the store"):
            other.topic("clicks").offload()


def test_the_background_work_offloads_and_keeps_local_retention(store: sc.Store) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES, local_retention_bytes=1)
    fill(topic)
    done = {run.task: run for run in store.maintain() or []}["tier"]
    assert done.error is None
    assert done.done["objects"] > 1
    assert done.done["local_segments"] > 1
    assert topic.scan().count() == 2000
    assert store.stats().tier is not None


# ---- open to others --------------------------------------------------------------------------------------------------


def test_duckdb_and_polars_read_the_objects_as_they_are(store: sc.Store, tier_path: Path) -> None:
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    topic = store.create_topic("clicks", partitions=2, tier=True, segment_bytes=SEGMENT_BYTES, tier_key_filter=True)
    fill(topic)
    move(topic)
    files = f"{tier_path}/topics/*/*/*.parquet"
    question = 'select partition, count(*), sum("offset"), count(key), min(timestamp) from {} group by all order by all'
    wanted = [tuple(row.values()) for row in store.sql(question.format("clicks")).to_pylist()]
    assert duckdb.sql(question.format(f"'{files}'")).fetchall() == wanted
    frame = polars.scan_parquet(files).filter(polars.col("offset") >= 500).collect()
    assert len(frame) == 1000
    assert set(frame["value"].to_list()) == {record.value for record in topic.scan(start=500)}


# ---- another store from the tier -------------------------------------------------------------------------------------


def test_a_store_is_made_anew_from_its_tier(store: sc.Store, tmp_path: Path, tier_path: Path) -> None:
    topic = store.create_topic("clicks", partitions=2, tier=True, segment_bytes=SEGMENT_BYTES, retention_ms=10**12)
    typed = store.create_topic("typed", schema=pa.schema([("a", pa.int64())]), tier=True)
    store.create_topic("here").append([b"lost with the machine"])
    fill(topic)
    typed.append([{"a": 1}])
    typed.roll()
    with store.consumer("clicks", group="billing") as consumer:
        consumer.poll(0, 700)
        consumer.commit()
    store.set_setting("mode", "fast")
    topic.offload()
    typed.offload()
    records = list(topic.scan())
    topic.append([b"not there yet"], partition=0)
    with store.consumer("clicks", group="audit") as consumer:
        while consumer.poll(0):
            pass
        consumer.commit()
    assert store.tier is not None
    assert store.tier.back_up()
    assert not store.tier.back_up()
    committed = store.group("billing").offsets()

    found = {one.topic: one for one in sc.restore(f"file://{tier_path}", tmp_path / "again")}
    assert (found["clicks"].records, found["typed"].records, found["here"].tiered) == (2000, 1, False)
    with sc.open(tmp_path / "again", maintenance=False) as again:
        assert list(again.topic("clicks").scan()) == records
        assert again.topic("clicks").config == topic.config
        assert [record.value for record in again.topic("typed").scan()] == [{"a": 1}]
        assert again.group("billing").offsets() == committed
        assert set(again.group("audit").offsets().values()) == {1000}  # as far as there is something
        assert again.get_setting("mode") == "fast"
        assert again.verify() == []
        [span] = again.topic("clicks").append([b"new"], partition=0)
        assert span.first_offset == 1000
        again.topic("clicks").roll()
        move(again.topic("clicks"))
        assert [record.value for record in again.topic("clicks").scan(0, 1000)] == [b"new"]
    topic.roll()
    store.set_setting("mode", "slow")
    for run in (topic.offload, store.tier.back_up, store.tier.gc, lambda: topic.delete_records(5, 0)):
        with pytest.raises(sc.FencedError, match="restored from it since"):
            run()


def test_what_a_tier_holds_is_read_without_the_store(store: sc.Store, tier_path: Path, tmp_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    topic.offload()
    with sc.open_tier(f"file://{tier_path}") as reader:
        folder = reader.path
        assert list(reader.topic("clicks").scan()) == list(topic.scan())
        with pytest.raises(sc.StoreReadOnlyError):
            reader.topic("clicks").append([b"x"])
    assert not folder.exists()
    topic.append([b"x"])
    topic.roll()
    topic.offload()  # nobody was fenced
    with pytest.raises(sc.TierError, match="no tier of a store"):
        sc.open_tier(f"file://{tmp_path}/nothing")
    with pytest.raises(sc.StorageError, match="is not empty"):
        sc.restore(f"file://{tier_path}", tier_path)


# ---- what is left over -----------------------------------------------------------------------------------------------


def test_gc_removes_what_nothing_names_once_it_is_old(store: sc.Store, tier_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    assert store.tier is not None
    named = parquet_files(tier_path)
    orphan = named[0].with_name(f"{0:020d}-{'0' * 32}-{'0' * 8}.parquet")
    orphan.write_bytes(b"left over")
    assert store.tier.gc().objects == 0  # it may be on its way into a manifest
    assert store.tier.gc(grace_s=0, dry_run=True).objects == 1
    assert orphan.exists()
    old = time.time() - 2 * 86400
    os.utime(orphan, (old, old))
    assert [Path(path).name for path in store.tier.gc().paths] == [orphan.name]
    assert parquet_files(tier_path) == named
    assert topic.scan().count() == 2000


def test_a_manifest_that_somebody_deleted_is_put_back_and_no_object_is_lost(
    store: sc.Store, tier_path: Path, store_path: Path
) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    named = parquet_files(tier_path)
    next(tier_path.rglob("manifest.json")).unlink()
    with sc.open(store_path, "r") as reader, pytest.raises(sc.TierError, match="the manifest is gone"):
        assert reader.tier is not None
        reader.tier.verify()
    fill(topic, 100)
    topic.offload()
    assert store.tier is not None
    assert store.tier.gc(grace_s=0).objects == 0
    assert set(named) < set(parquet_files(tier_path))
    move(topic)
    assert [record.offset for record in topic.scan()] == list(range(2100))
    next(tier_path.rglob("manifest.json")).unlink()
    assert store.tier.gc(grace_s=0).objects == 0  # also when it is the first to look
    assert store.tier.verify() == []


def test_verify_names_each_object_that_is_not_what_was_put_there(store: sc.Store, tier_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    topic.offload()
    assert store.tier is not None
    assert store.tier.verify() == []
    first, second, *_ = parquet_files(tier_path)
    data = first.read_bytes()
    first.write_bytes(data[:50] + b"?" + data[51:])
    second.unlink()
    assert [problem.offset for problem in store.tier.verify()] == [0, int(second.name[:20])]
    assert [problem.offset for problem in store.tier.verify(read=False)] == [int(second.name[:20])]


def test_a_damaged_object_is_an_error_that_names_it(store: sc.Store, tier_path: Path, store_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(topic)
    move(topic)
    path = parquet_files(tier_path)[0]
    data = path.read_bytes()
    middle = len(data) // 3
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(sc.CorruptionError, match="row group") as raised:
        list(topic.scan())
    assert path.name in str(raised.value.path)
    manifest = next(tier_path.rglob("manifest.json"))
    manifest.write_text(manifest.read_text().replace('"rows":', '"rows":-'))
    assert topic.cold is not None
    with pytest.raises(sc.CorruptionError, match="makes no sense"):
        topic.cold.fresh(0)


def test_a_store_that_is_there_is_given_a_tier_when_it_is_opened(store_path: Path, tier_path: Path) -> None:
    with sc.open(store_path, maintenance=False) as store:
        store.create_topic("clicks").append([b"x"])
        assert store.tier is None
    for mode in ("rw", "r"):
        tier = tier_path.as_uri() if mode == "rw" else None
        with sc.open(store_path, mode, maintenance=False, tier=tier) as store:  # type: ignore[arg-type]
            assert store.tier is not None
            assert store.tier.url == tier_path.as_uri()
