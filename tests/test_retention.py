"""Records go by offset, age and size; what is left is whole, and everybody sees the same beginning."""

from __future__ import annotations

import datetime
import errno
import itertools
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamcore as sc
from streamcore.retention import FUTURE_MS_MAX, apply_retention
from streamcore.topic_handle import TopicHandle

DAY_MS = 24 * 3600 * 1000
NOW = 1_700_000_000_000
SMALL = 64 << 10


def moment(ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC)


def fill(topic: sc.Topic, calls: int, first_ms: int = NOW, step_ms: int = 1000, partition: int = 0) -> None:
    """Calls of ten records of 1000 bytes; those of one call have one time."""
    for call in range(calls):
        topic.append([b"%d" % call * 500] * 10, timestamps=first_ms + call * step_ms, partition=partition)


def offsets(topic: sc.Topic, partition: int = 0) -> list[int]:
    return topic.scan(partition=partition, columns=["offset"]).to_arrow().column(0).to_pylist()


def files(topic: sc.Topic, partition: int = 0) -> list[str]:
    return [segment.path for segment in topic.segments(partition)]


# ---- delete_records --------------------------------------------------------------------------------------------


def test_records_below_an_offset_are_gone_and_their_files_with_them(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(segment_bytes=SMALL)
    fill(topic, 40)
    before = files(topic)
    [removed] = topic.delete_records(250)
    assert removed.start_offset == 250
    assert removed.segments == len(before) - len(files(topic)) > 0
    assert removed.size_bytes > removed.segments * 40_000
    assert [Path(path).exists() for path in before] == [path in files(topic) for path in before]
    assert offsets(topic) == list(range(250, 400))
    assert topic.partitions[0].start_offset == 250
    assert topic.scan().count() == 150
    for bound in (0, 249):
        with pytest.raises(sc.OffsetOutOfRangeError) as caught:
            topic.scan(start=bound)
        assert (caught.value.earliest, caught.value.latest) == (250, 400)


def test_deleting_again_or_less_deletes_nothing(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(segment_bytes=SMALL)
    fill(topic, 40)
    topic.delete_records(250)
    for bound in (250, 3, 0):
        assert topic.delete_records(bound) == [sc.Removed(0, 250, 0, 0)]


def test_all_partitions_may_be_emptied_and_go_on_where_they_were(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(partitions=3, segment_bytes=SMALL)
    fill(topic, 20, partition=0)
    fill(topic, 5, partition=2)
    removed = topic.delete_records("latest")
    assert [one.start_offset for one in removed] == [200, 0, 50]
    assert topic.scan().count() == 0
    [span] = topic.append([b"next"], partition=2)
    assert span.first_offset == 50
    assert [record.value for record in topic.scan()] == [b"next"]


def test_a_mapping_chooses_partitions(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(partitions=3, segment_bytes=SMALL)
    for partition in range(3):
        fill(topic, 10, partition=partition)
    topic.delete_records({0: 30, 2: "latest"})
    assert [found.start_offset for found in topic.partitions] == [30, 0, 100]


def test_a_time_deletes_what_lies_before_the_first_record_as_new(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(segment_bytes=SMALL)
    fill(topic, 40)
    topic.delete_records(moment(NOW + 7000))
    assert offsets(topic)[0] == 70
    topic.delete_records(moment(NOW + 7500))
    assert offsets(topic)[0] == 80
    topic.delete_records(moment(NOW + 100_000))
    assert offsets(topic) == []


@pytest.mark.parametrize(
    ("before", "partition", "kind"),
    [
        (401, None, sc.OffsetOutOfRangeError),
        ("earliest", None, TypeError),
        (1.5, None, TypeError),
        (True, None, TypeError),
        (5, 7, ValueError),
        ({9: 5}, None, ValueError),
        (datetime.datetime(2026, 1, 1), None, ValueError),
    ],
)
def test_what_cannot_be_deleted_is_refused(
    make_topic: Callable[..., sc.Topic], before: Any, partition: int | None, kind: type[Exception]
) -> None:
    topic = make_topic()
    fill(topic, 40)
    with pytest.raises(kind):
        topic.delete_records(before, partition)
    assert topic.scan().count() == 400


def test_an_offset_of_many_partitions_needs_one(make_topic: Callable[..., sc.Topic]) -> None:
    with pytest.raises(ValueError, match="name one"):
        make_topic(partitions=2).delete_records(5)


def test_a_reader_deletes_nothing(store_path: Path) -> None:
    with sc.open(store_path, maintenance=False) as store:
        fill(store.create_topic("a"), 3)
        with sc.open(store_path, "r") as reader, pytest.raises(sc.StoreReadOnlyError):
            reader.topic("a").delete_records("latest")


def test_what_a_reader_has_mapped_stays_readable(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(segment_bytes=SMALL)
    fill(topic, 40)
    table = topic.scan().to_arrow()
    wanted = [b"%d" % call * 500 for call in range(40) for _ in range(10)]
    topic.delete_records("latest")
    assert table.column("value").to_pylist() == wanted


def test_a_scan_that_was_made_before_says_where_the_log_begins(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(segment_bytes=SMALL)
    fill(topic, 40)
    scan = topic.scan()
    records = iter(scan)
    next(records)
    topic.delete_records(350)
    with pytest.raises(sc.OffsetOutOfRangeError) as caught:
        list(records)
    assert (caught.value.earliest, caught.value.latest) == (350, 400)
    with pytest.raises(sc.OffsetOutOfRangeError):
        scan.to_arrow()


def test_the_start_is_kept_by_reopening_and_seen_by_readers(store_path: Path) -> None:
    with sc.open(store_path, maintenance=False) as store:
        topic = store.create_topic("a", segment_bytes=SMALL)
        fill(topic, 40)
        with sc.open(store_path, "r") as reader:
            seen = reader.topic("a")
            assert offsets(seen) == list(range(400))
            topic.delete_records(123)
            assert offsets(seen) == list(range(123, 400))
            assert store.verify() == []
    with sc.open(store_path, "r") as reader:
        assert offsets(reader.topic("a")) == list(range(123, 400))
    with sc.open(store_path, maintenance=False) as store:
        assert offsets(store.topic("a")) == list(range(123, 400))
        assert store.verify() == []


def _delete_in_steps(store_path: str, steps: list[int]) -> None:
    with sc.open(store_path, maintenance=False) as store:
        for step in steps:
            store.topic("a").delete_records(step)


def test_readers_see_whole_logs_while_another_process_deletes(store_path: Path) -> None:
    with sc.open(store_path, maintenance=False) as store:
        topic = store.create_topic("a", segment_bytes=SMALL)
        fill(topic, 100)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_delete_in_steps, args=(str(store_path), list(range(0, 990, 21))))
        process.start()
        whole = 0
        while process.is_alive() or whole == 0:
            try:
                found = offsets(topic)
            except sc.OffsetOutOfRangeError:
                continue  # it was gone before we came to it
            assert found == list(range(found[0], 1000))
            held = topic.segments()
            assert all(one.end_offset == behind.base_offset for one, behind in itertools.pairwise(held))
            whole += 1
        process.join()
        assert process.exitcode == 0
        assert offsets(topic)[0] == 987
        assert whole > 0


# ---- time and size ---------------------------------------------------------------------------------------------


def test_a_log_that_is_emptied_while_its_segments_are_listed_is_listed_anew(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = store.create_topic("clicks", retention_ms=1)
    topic.append([b"x"] * 10, timestamps=1)
    real = TopicHandle.call
    missing = []

    def call(self: TopicHandle, function: Callable[[], Any]) -> Any:
        if getattr(function, "args", ()) == (0, 0) and not missing:  # the first segment, whose file is gone by then
            missing.append(topic.segments)
            topic.delete_records("latest")
            raise sc.StorageError(errno.ENOENT, "cannot open a segment", "00000000000000000000.arrows")
        return real(self, function)

    monkeypatch.setattr(TopicHandle, "call", call)
    assert apply_retention(topic).removed == ()
    assert missing
    assert [segment.base_offset for segment in topic.segments()] == [10]


def test_segments_whose_newest_record_is_too_old_go(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(segment_bytes=SMALL, retention_ms=10_000)
    fill(topic, 40)
    held = topic.segments()
    report = apply_retention(topic, NOW + 30_000)
    wanted = [segment for segment in held if segment.max_timestamp_ms < NOW + 20_000]
    assert report.segments == len(wanted) > 0
    assert topic.segments() == held[len(wanted) :]
    assert topic.partitions[0].start_offset == wanted[-1].end_offset
    assert apply_retention(topic, NOW + 30_000) == sc.RetentionReport()


def test_an_active_segment_that_is_too_old_is_sealed_and_goes(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(retention_ms=10_000)
    fill(topic, 4)
    assert apply_retention(topic, NOW + 13_000).segments == 0
    report = apply_retention(topic, NOW + 13_001)
    assert (report.segments, offsets(topic)) == (1, [])
    assert apply_retention(topic, NOW + DAY_MS) == sc.RetentionReport()
    assert topic.append([b"on"])[0].first_offset == 40


def test_a_young_segment_keeps_the_older_ones_behind_it(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(retention_ms=10_000)
    for times in (NOW, NOW + 100_000, NOW):
        fill(topic, 1, times)
        topic.roll()
    assert apply_retention(topic, NOW + 50_000).segments == 1
    assert offsets(topic) == list(range(10, 30))


def test_the_oldest_segments_go_until_what_is_left_is_just_enough(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(segment_bytes=SMALL, retention_bytes=300_000)
    fill(topic, 60)
    sizes = [segment.size_bytes for segment in topic.segments()]
    apply_retention(topic, NOW)
    left = [segment.size_bytes for segment in topic.segments()]
    assert sum(left) >= 300_000 > sum(left[1:])
    assert left == sizes[-len(left) :]
    assert len(left) < len(sizes)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 50), st.integers(1, 5)),  # at a time, so many records
        st.tuples(st.just("roll")),
        st.tuples(st.just("delete"), st.floats(0, 1)),  # up to a share of what there is
        st.tuples(st.just("retain"), st.integers(1, 30), st.integers(0, 80)),  # keeping so long, at a time
        st.tuples(st.just("reopen")),
    ),
    max_size=30,
)


@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_retention_and_deletion_do_what_a_list_of_lists_would(steps: list[tuple[Any, ...]]) -> None:
    """The model: segments as lists of (offset, time), the last of them active; one that loses all is active no more."""
    model: list[list[tuple[int, int]]] = [[]]
    start = end = 0
    with tempfile.TemporaryDirectory() as folder:
        store = sc.open(folder, maintenance=False)
        topic = store.create_topic("t")
        for name, *given_ in steps:
            if name == "append":
                when, count = given_
                topic.append([b"x"] * count, timestamps=NOW + when * 1000)
                model[-1] += [(end + i, when) for i in range(count)]
                end += count
            elif name == "roll" and model[-1]:
                topic.roll(0)
                model.append([])
            elif name == "delete":
                start = max(start, start + int(given_[0] * (end - start)))
                topic.delete_records(start, 0)
                if model[-1] and start == end:
                    model.append([])
            elif name == "retain":
                keep, now = given_
                topic.alter(retention_ms=keep * 1000)
                apply_retention(topic, NOW + now * 1000)
                for segment in model:
                    left = [row for row in segment if row[0] >= start]
                    if segment and segment[-1][0] < start:
                        continue
                    if not left or max(when for _, when in segment) >= now - keep:
                        break
                    start = segment[-1][0] + 1
                if model[-1] and start == end:
                    model.append([])
            elif name == "reopen":
                store.close()
                store = sc.open(folder, maintenance=False)
                topic = store.topic("t")
            wanted = [row for segment in model for row in segment if row[0] >= start]
            assert [(r.offset, (r.timestamp_ms - NOW) // 1000) for r in topic.scan()] == wanted
            assert (topic.partitions[0].start_offset, topic.partitions[0].end_offset) == (start, end)
        store.close()


def test_size_never_takes_the_active_segment(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(retention_bytes=1)
    fill(topic, 4)
    assert apply_retention(topic, NOW) == sc.RetentionReport()
    assert topic.scan().count() == 40


def test_compacted_topics_keep_their_records(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(segment_bytes=SMALL, cleanup="compact", retention_ms=1, retention_bytes=1)
    for i in range(40):
        topic.append([b"v" * 5000], keys=[b"%d" % i], timestamps=NOW)
    assert apply_retention(topic, NOW + DAY_MS) == sc.RetentionReport()
    topic.alter(cleanup="compact,delete")
    assert apply_retention(topic, NOW + DAY_MS).segments > 1


def test_a_record_of_the_future_keeps_its_segment_only_as_long_as_its_file_is_young(
    make_topic: Callable[..., sc.Topic], caplog: pytest.LogCaptureFixture
) -> None:
    topic = make_topic(retention_ms=10_000)
    topic.append([b"from the future"], timestamps=NOW + FUTURE_MS_MAX + 1_000_000)
    topic.roll()
    fill(topic, 1, NOW + 9_000)
    [first, _] = files(topic)
    os.utime(first, (NOW / 1000, NOW / 1000))
    with caplog.at_level(logging.INFO, "streamcore.retention"):
        assert apply_retention(topic, NOW + 5_000) == sc.RetentionReport((), 1)
        apply_retention(topic, NOW + 6_000)
        [warning] = [entry for entry in caplog.records if entry.levelno == logging.WARNING]
        assert "ahead of the clock" in warning.getMessage()
        report = apply_retention(topic, NOW + 10_001)
    assert (report.segments, report.from_the_future) == (1, 1)
    assert offsets(topic) == list(range(1, 11))
    assert any("removed 1 segments" in entry.getMessage() for entry in caplog.records)


def test_a_record_that_is_a_little_ahead_counts_as_it_is_dated(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic(retention_ms=10_000)
    topic.append([b"ahead"], timestamps=NOW + FUTURE_MS_MAX)
    topic.roll()
    os.utime(files(topic)[0], (NOW / 1000, NOW / 1000))
    assert apply_retention(topic, NOW + 20_000).segments == 0


def test_settings_are_checked(make_topic: Callable[..., sc.Topic]) -> None:
    for name in ("delete_retention_ms", "min_compaction_lag_ms"):
        with pytest.raises(ValueError, match=name):
            make_topic(**{name: -1})
        with pytest.raises(TypeError, match=name):
            make_topic(**{name: None})
    config = make_topic(delete_retention_ms=0, min_compaction_lag_ms=5).config
    assert (config.delete_retention_ms, config.min_compaction_lag_ms) == (0, 5)
