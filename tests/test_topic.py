"""A topic: what it tells about itself, its partitions and segments, changing it, and waiting for records."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc

Wait = Callable[..., None]
SMALL_SEGMENT = 1 << 16


# ---- what it tells ----------------------------------------------------------------------------------------------


def test_a_new_topic_tells_its_name_settings_and_empty_partitions(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=3, retention_ms=10)
    assert topic.name == "clicks"
    assert topic.schema is None
    assert topic.config == sc.TopicConfig(retention_ms=10)
    assert topic.partitions == tuple(sc.Partition(i, 0, 0, 0, 0, 0, 0) for i in range(3))
    assert topic.segments() == []
    assert topic.scan().count() == 0
    assert topic.scan().to_arrow().num_rows == 0
    assert repr(topic) == "<Topic 'clicks', 3 partitions, plain>"


def test_a_typed_topic_tells_its_schema(store: sc.Store) -> None:
    schema = pa.schema([("magnitude", pa.float64()), pa.field("place", pa.string(), nullable=False)])
    topic = store.create_topic("quakes", schema=schema)
    assert topic.schema == schema
    assert "typed: magnitude, place" in repr(topic)


def test_the_same_topic_is_one_object_per_store(store: sc.Store) -> None:
    topic = store.create_topic("clicks")
    assert store.topic("clicks") is topic
    assert store.topics() == [topic]


def test_settings_are_read_only(topic: sc.Topic) -> None:
    for name, value in (("name", "x"), ("id", "x"), ("schema", None), ("config", None), ("partitions", ())):
        with pytest.raises(AttributeError):
            setattr(topic, name, value)
    with pytest.raises(AttributeError):
        topic.config.retention_ms = 5  # type: ignore[misc]


def test_partitions_are_a_snapshot_of_offsets_and_bytes(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2)
    before = topic.partitions
    topic.append([b"x" * 1000] * 10, partition=1)
    after = topic.partitions
    assert before == (sc.Partition(0, 0, 0, 0, 0, 0, 0), sc.Partition(1, 0, 0, 0, 0, 0, 0))
    assert after[0] == before[0]
    assert (after[1].index, after[1].start_offset, after[1].end_offset) == (1, 0, 10)
    assert 0 <= after[1].durable_offset <= 10
    assert 10_000 < after[1].size_bytes < 15_000


def test_the_size_of_a_partition_leaves_preallocated_space_out(store: sc.Store) -> None:
    topic = store.create_topic("clicks", segment_bytes=SMALL_SEGMENT)
    for _ in range(100):
        topic.append([b"x" * 5000])
    topic.flush()
    [partition] = topic.partitions
    segments = topic.segments()
    assert abs(partition.size_bytes - sum(segment.size_bytes for segment in segments)) <= 4096 * len(segments)
    assert 500_000 < partition.size_bytes < 650_000


def test_segments_describe_the_files_in_order(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2, segment_bytes=SMALL_SEGMENT)
    for number in range(40):
        topic.append([b"x" * 5000] * 2, partition=0, timestamps=[number * 10 + 5, number * 10])
    topic.append([b"x"], partition=1, timestamps=77)
    segments = topic.segments()
    assert [s.partition for s in segments] == sorted(s.partition for s in segments)
    first = [s for s in segments if s.partition == 0]
    assert len(first) > 3
    assert first[0].base_offset == 0
    assert all(a.end_offset == b.base_offset for a, b in itertools.pairwise(first))
    assert first[-1].end_offset == 80
    assert [s.sealed for s in first] == [True] * (len(first) - 1) + [False]
    for segment in segments:
        assert segment.count == segment.end_offset - segment.base_offset
        assert Path(segment.path).name == f"{segment.base_offset:020}.arrows"
        assert segment.size_bytes <= SMALL_SEGMENT
        times = topic.scan(segment.partition, segment.base_offset, segment.end_offset).to_arrow()["timestamp"]
        stamps = times.cast(pa.int64()).to_pylist()
        assert (segment.min_timestamp_ms, segment.max_timestamp_ms) == (min(stamps), max(stamps))
    assert segments[-1].count == 1
    assert (segments[-1].min_timestamp_ms, segments[-1].max_timestamp_ms) == (77, 77)


# ---- rolling ----------------------------------------------------------------------------------------------------


def test_a_segment_rolls_before_it_would_grow_past_segment_bytes(store: sc.Store) -> None:
    topic = store.create_topic("clicks", segment_bytes=SMALL_SEGMENT)
    for number in range(200):
        topic.append([b"%03d" % number + b"x" * 1000])
    segments = topic.segments()
    assert len(segments) > 3
    assert all(Path(s.path).stat().st_size <= SMALL_SEGMENT for s in segments[:-1])
    assert all(s.size_bytes > SMALL_SEGMENT * 0.9 for s in segments[:-1])
    assert [r.value[:3] for r in topic.scan()] == [b"%03d" % number for number in range(200)]


def test_an_append_larger_than_segment_bytes_gets_a_segment_of_its_own(store: sc.Store) -> None:
    topic = store.create_topic("clicks", segment_bytes=SMALL_SEGMENT)
    topic.append([b"small"])
    topic.append([b"x" * 300_000])
    topic.append([b"small"])
    assert [s.count for s in topic.segments()] == [1, 1, 1]
    assert [len(r.value) for r in topic.scan()] == [5, 300_000, 5]


def test_a_segment_older_than_segment_ms_rolls_at_the_next_append(store: sc.Store, wait_until: Wait) -> None:
    topic = store.create_topic("clicks", segment_ms=30)

    def rolled() -> bool:
        topic.append([b"x"])
        return len(topic.segments()) >= 3

    wait_until(rolled)
    segments = topic.segments()
    assert all(s.sealed for s in segments[:-1])
    assert topic.scan().count() == sum(s.count for s in segments)


def test_a_sealed_segment_ends_with_the_end_marker_and_never_changes(store: sc.Store) -> None:
    topic = store.create_topic("clicks", segment_bytes=SMALL_SEGMENT)
    while len(topic.segments()) < 3:
        topic.append([b"x" * 9000])
    topic.flush()
    sealed = [Path(s.path) for s in topic.segments()[:-1]]
    before = [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in sealed]
    for path, (data, _, _) in zip(sealed, before, strict=True):
        assert data.rstrip(b"\0").endswith(b"\xff\xff\xff\xff"), path
    for _ in range(20):
        topic.append([b"x" * 9000])
    topic.flush()
    store.verify()
    assert [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in sealed] == before


def test_records_stay_where_they_are_when_a_store_is_opened_again_and_again(store_path: Path) -> None:
    for number in range(12):
        with sc.open(store_path) as store:
            topic = store.topic("clicks") if number else store.create_topic("clicks", segment_bytes=SMALL_SEGMENT)
            assert topic.partitions[0].end_offset == 3 * number
            topic.append([b"%d" % number + b"x" * 5000] * 3)
    with sc.open(store_path, mode="r") as store:
        topic = store.topic("clicks")
        values = [r.value.rstrip(b"x") for r in topic.scan()]
        assert values == [b"%d" % number for number in range(12) for _ in range(3)]
        assert [r.offset for r in topic.scan()] == list(range(36))


# ---- durability -------------------------------------------------------------------------------------------------


def test_an_append_with_durability_disk_is_durable_when_it_returns(store: sc.Store) -> None:
    topic = store.create_topic("clicks")
    topic.append([b"x"] * 5, durability="disk")
    assert topic.partitions[0].durable_offset == 5
    topic.append_table(pa.table({"value": [b"y"]}), durability="disk")
    assert topic.partitions[0].durable_offset == 6


@pytest.mark.parametrize("where", ["store", "topic"])
def test_durability_of_the_store_and_of_the_topic_hold_for_appends_that_say_nothing(
    store_path: Path, where: str
) -> None:
    with sc.open(store_path, durability="disk" if where == "store" else "os") as store:
        topic = store.create_topic("clicks", durability="disk" if where == "topic" else None)
        other = store.create_topic("other", durability="os")
        topic.append([b"x"])
        assert topic.partitions[0].durable_offset == 1
        other.append([b"x"])
        assert other.partitions[0].durable_offset == 0
        topic.append([b"x"], durability="os")
        assert topic.partitions[0].durable_offset == 1


def test_an_append_with_durability_os_is_flushed_in_the_background(store: sc.Store, wait_until: Wait) -> None:
    topic = store.create_topic("clicks", partitions=2)
    for _ in range(3):  # the flusher goes to sleep in between and is woken again
        topic.append([b"x"], partition=0)
        topic.append_table(pa.table({"value": [b"y"], "partition": [1]}))
        began = time.monotonic()
        wait_until(lambda: all(p.durable_offset == p.end_offset for p in topic.partitions))
        assert time.monotonic() - began < 3, "within a second is promised; the rest is patience with a busy machine"


@pytest.mark.parametrize("goes_on", [False, True])
def test_an_interrupt_while_the_flushing_thread_starts_harms_neither_later_flushes_nor_closing(
    goes_on: bool, store_path: Path, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    with sc.open(store_path) as store:
        topic = store.create_topic("clicks")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(threading.Thread, "start", interrupted)
            topic.append([b"x"])
        if goes_on:
            topic.append([b"y"])
            wait_until(lambda: topic.partitions[0].durable_offset == 2)
    with sc.open(store_path, mode="r") as store:
        assert store.topic("clicks").scan().count() == 1 + goes_on


def test_flush_makes_what_was_appended_durable(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=3, segment_bytes=SMALL_SEGMENT)
    for number in range(60):
        topic.append([b"x" * 5000], partition=number % 2)
    topic.flush()
    assert [(p.end_offset, p.durable_offset) for p in topic.partitions] == [(30, 30), (30, 30), (0, 0)]


# ---- changing ---------------------------------------------------------------------------------------------------


def test_altered_settings_hold_from_the_next_append_on(store: sc.Store) -> None:
    topic = store.create_topic("clicks", segment_bytes=1 << 20)
    topic.append([b"x" * 60_000])
    topic.alter(segment_bytes=SMALL_SEGMENT, max_record_bytes=70_000)
    topic.append([b"x" * 60_000])
    assert len(topic.segments()) == 2
    with pytest.raises(sc.RecordTooLargeError):
        topic.append([b"x" * 70_001])
    topic.alter(max_record_bytes=80_000)
    topic.append([b"x" * 70_001])
    assert topic.config == sc.TopicConfig(segment_bytes=SMALL_SEGMENT, max_record_bytes=80_000)
    with sc.open(store.path, mode="r") as again:
        assert again.topic("clicks").config == topic.config
    assert topic.scan().count() == 3


def test_altering_durability_and_timestamp_type_holds_at_once(store: sc.Store) -> None:
    topic = store.create_topic("clicks")
    topic.alter(durability="disk", timestamp_type="append")
    topic.append([b"x"], timestamps=5)
    assert topic.partitions[0].durable_offset == 1
    [record] = topic.scan()
    assert abs(record.timestamp_ms - time.time() * 1000) < 60_000
    topic.alter(durability=None, timestamp_type="create")
    topic.append([b"x"], timestamps=5)
    assert [r.timestamp_ms for r in topic.scan(start=1)] == [5]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"segment_bytes": 1}, ValueError),
        ({"retention_ms": "1"}, TypeError),
        ({"partitions": 3}, TypeError),
        ({"name": "x"}, TypeError),
        ({"schema": pa.schema([("a", pa.int8())])}, ValueError),
        ({"schema": 3}, (TypeError, ValueError)),
    ],
)
def test_a_refused_alter_changes_nothing(topic: sc.Topic, settings: dict[str, Any], error: Any) -> None:
    before = topic.config
    with pytest.raises(error):
        topic.alter(retention_bytes=5, **settings)
    assert topic.config == before
    topic.append([b"x"])
    assert topic.scan().count() == 1


def test_added_partitions_are_there_at_once_and_old_records_stay(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2)
    topic.append([b"a"], partition=1)
    topic.add_partitions(5)
    assert [p.end_offset for p in topic.partitions] == [0, 1, 0, 0, 0]
    topic.append([b"b"], partition=4)
    assert [(r.partition, r.value) for r in topic.scan()] == [(1, b"a"), (4, b"b")]
    with sc.open(store.path) as again:
        assert [p.end_offset for p in again.topic("clicks").partitions] == [0, 1, 0, 0, 1]


def test_partitions_are_never_taken_away(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=3)
    for total, error in ((3, ValueError), (1, ValueError), (0, ValueError), (100_001, ValueError), ("5", TypeError)):
        with pytest.raises(error):
            topic.add_partitions(total)  # type: ignore[arg-type]
    assert len(topic.partitions) == 3


def test_two_stores_in_one_process_see_each_others_changes(store: sc.Store) -> None:
    mine = store.create_topic("clicks")
    with sc.open(store.path) as other_store:
        other = other_store.topic("clicks")
        other.append([b"1"])
        mine.append([b"2"])
        mine.add_partitions(3)
        other.append([b"3"], partition=2)
        other.alter(retention_ms=9)
        assert len(other.partitions) == 3
        mine.append([b"4"])
        assert mine.config.retention_ms == 9
        assert [r.value for r in mine.scan()] == [r.value for r in other.scan()]
        assert mine.scan().count() == 4


@pytest.mark.parametrize("used", [True, False])
def test_what_another_handle_altered_holds_for_the_next_append(store: sc.Store, used: bool) -> None:
    mine = store.create_topic("clicks")
    if used:
        mine.append([b"x"])
    first = mine.partitions[0].end_offset
    with sc.open(store.path) as other_store:
        other = other_store.topic("clicks")
        other.alter(durability="disk")
        mine.append([b"x"])
        assert mine.partitions[0].durable_offset == first + 1
        other.alter(timestamp_type="append")
        mine.append([b"x"], timestamps=5)
        assert next(iter(mine.scan(start=first + 1))).timestamp_ms > 5
        other.alter(timestamp_type="create")
        mine.append([b"x"], timestamps=5)
        assert next(iter(mine.scan(start=first + 2))).timestamp_ms == 5
        before = mine.partitions[0].size_bytes
        other.alter(compression="zstd")
        mine.append([b"x" * 100_000])
        assert mine.partitions[0].size_bytes - before < 10_000
        other.alter(max_record_bytes=10)
        with pytest.raises(sc.RecordTooLargeError):
            mine.append([b"x" * 11])
        assert mine.config.max_record_bytes == 10


def test_a_schema_that_another_handle_widened_holds_for_the_next_append(store: sc.Store) -> None:
    narrow, wide = pa.schema([("a", pa.int64())]), pa.schema([("a", pa.int64()), ("b", pa.string())])
    mine = store.create_topic("typed", schema=narrow)
    mine.append([{"a": 1}])
    with sc.open(store.path) as other_store:
        other_store.topic("typed").alter(schema=wide)
        mine.append_table(pa.table({"a": [2]}))
        other_store.topic("typed").append([{"a": 3, "b": "x"}])
        mine.append([{"a": 4, "b": "y"}])
    assert mine.schema == wide
    assert [r.value for r in mine.scan()] == [
        {"a": 1, "b": None}, {"a": 2, "b": None}, {"a": 3, "b": "x"}, {"a": 4, "b": "y"},
    ]  # fmt: skip


@pytest.mark.parametrize("known", ["nothing", "empty", "some"])
def test_a_handle_knows_the_segments_that_others_made_when_it_rolls_itself(store: sc.Store, known: str) -> None:
    mine = store.create_topic("clicks", segment_bytes=SMALL_SEGMENT)
    with sc.open(store.path) as other_store:
        other = other_store.topic("clicks")
        if known == "some":
            mine.append([b"mine" * 5000])
        if known != "nothing":
            assert mine.scan().count() == len(mine.segments())
        for _ in range(3):
            for _ in range(5):
                other.append([b"other" * 6000], timestamps=1)
            for _ in range(3):
                mine.append([b"mine" * 15_000], timestamps=1000)
            total = mine.partitions[0].end_offset
            mine.flush()
            assert mine.partitions[0].durable_offset == total
            for topic in (mine, other):
                assert topic.scan().count() == total
                assert topic.scan().to_arrow()["offset"].to_pylist() == list(range(total))
                assert sum(segment.count for segment in topic.segments()) == total
                assert topic.scan().narrow(timestamps_ms=(1, 2)).count() % 5 == 0


# ---- waiting ----------------------------------------------------------------------------------------------------


def test_wait_returns_at_once_when_there_is_more_already(topic: sc.Topic) -> None:
    topic.append([b"x"])
    began = time.monotonic()
    assert topic.wait({0: 0}) is True
    assert topic.wait({0: -1}, 0) is True
    assert time.monotonic() - began < 1


def test_wait_is_woken_by_an_append_to_any_of_its_partitions(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=3)
    results: list[tuple[bool, float]] = []
    ready = threading.Event()

    def wait() -> None:
        ready.set()
        results.append((topic.wait({0: 0, 2: 0}), time.monotonic()))

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    topic.append([b"x"], partition=1)
    time.sleep(0.05)
    assert results == []
    topic.append([b"x"], partition=2)
    appended = time.monotonic()
    thread.join(10)
    [(woken, at)] = results
    assert woken
    assert at - appended < 1


def test_wait_gives_up_when_its_time_is_over_and_uses_no_processor(topic: sc.Topic) -> None:
    began, used = time.monotonic(), time.thread_time()
    assert topic.wait({0: 0}, timeout_ms=150) is False
    assert 0.14 < time.monotonic() - began < 5
    assert time.thread_time() - used < 0.05
    assert topic.wait({0: 0}, timeout_ms=0) is False


def test_wait_lets_other_threads_run(topic: sc.Topic) -> None:
    thread = threading.Thread(target=lambda: topic.wait({0: 0}, 10_000))
    thread.start()
    assert sum(range(1000)) == 499_500
    topic.append([b"x"])
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("how", ["close", "delete"])
def test_wait_ends_with_an_error_when_the_store_is_closed_or_the_topic_deleted(store_path: Path, how: str) -> None:
    store = sc.open(store_path)
    topic = store.create_topic("clicks")
    topic.append([b"x"])
    errors: list[BaseException] = []
    ready = threading.Event()

    def wait() -> None:
        ready.set()
        try:
            topic.wait({0: 1})
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    time.sleep(0.05)
    if how == "close":
        store.close()
    else:
        store.delete_topic("clicks")
    thread.join(10)
    assert not thread.is_alive()
    [error] = errors
    assert type(error) is (sc.StreamcoreError if how == "close" else sc.TopicNotFoundError)
    store.close()


@pytest.mark.parametrize(
    ("offsets", "error"),
    [({}, ValueError), ({1: 0}, ValueError), ({-1: 0}, ValueError), ({"0": 0}, TypeError), ({0: "x"}, TypeError),
     ({0: None}, TypeError), ({0: 1 << 70}, (ValueError, OverflowError)), (None, TypeError), ([0], TypeError)],
)  # fmt: skip
def test_wait_refuses_what_is_no_offset_of_a_partition(topic: sc.Topic, offsets: Any, error: Any) -> None:
    with pytest.raises(error):
        topic.wait(offsets, 1)


def test_wait_refuses_what_is_no_time(topic: sc.Topic) -> None:
    with pytest.raises(TypeError):
        topic.wait({0: 0}, "soon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout_ms is nan"):
        topic.wait({0: 0}, float("nan"))
    assert topic.wait({0: 0}, -5) is False
    topic.append([b"x"])
    assert topic.wait({0: 0}, 1e300) is True
