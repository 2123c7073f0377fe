"""Producers: what is sent is in the log, in order, once; what is not is told; memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc
from streamcore import _core, producer_ids

WaitUntil = Callable[..., None]
FOREVER_MS = 3_600_000
UTC = dt.UTC


def records_of(topic: sc.Topic, partition: int | None = None) -> list[tuple[Any, ...]]:
    return [(r.key, r.value, r.headers) for r in topic.scan(partition)]


def values_of(topic: sc.Topic, partition: int | None = None) -> list[Any]:
    return [record.value for record in topic.scan(partition)]


class Deliveries:
    """Collects what on_delivery is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Exception | None, sc.Delivery]] = []

    def __call__(self, error: Exception | None, delivery: sc.Delivery) -> None:
        self.told.append((error, delivery))

    @property
    def offsets(self) -> list[int | None]:
        return [delivery.offset for _, delivery in self.told]


class FailingTopic:
    """Makes a topic's appends by the producer's thread fail; they go through Python because the topic is compressed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: list[Exception] = []
        self.calls = 0
        self.sequences: list[tuple[int, int]] = []
        original = sc.Topic.append_sealed

        def append_sealed(topic: sc.Topic, batch: _core.SealedBatch, producer: Any) -> tuple[int, int, int]:
            self.calls += 1
            if producer is not None:
                self.sequences.append((producer[2], batch.count))
            if self.errors:
                raise self.errors.pop(0)
            return original(topic, batch, producer)

        monkeypatch.setattr(sc.Topic, "append_sealed", append_sealed)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> FailingTopic:
    return FailingTopic(monkeypatch)


@pytest.fixture
def slow_topic(store: sc.Store) -> sc.Topic:
    """A topic whose batches the producer's thread appends through Python."""
    return store.create_topic("slow", compression="lz4")


def full_disk() -> sc.StorageError:
    return sc.StorageError(errno.ENOSPC, "cannot reserve disk space for an append", "/somewhere")


# ---- what is sent is what is scanned ----------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_keys_values_timestamps_headers_and_nulls_come_back_as_they_were_sent(
    store: sc.Store, compression: str
) -> None:
    topic = store.create_topic("t", compression=compression)
    moment = dt.datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
    sent: list[dict[str, Any]] = [
        {"value": b"plain"},
        {"value": None, "key": b"tombstone"},
        {"value": b"", "key": b""},
        {"value": b"timed", "timestamp": 5},
        {"value": b"before", "timestamp": -7},
        {"value": b"aware", "timestamp": moment},
        {"value": b"headers", "headers": {"a": b"1", "b": None}},
        {"value": bytearray(b"array"), "key": memoryview(b"view")},
        {"value": b"pairs", "headers": [("ä", bytearray(b"x")), ("ä", memoryview(b"y"))]},
        {"value": b"no headers", "headers": {}},
        {"value": b"last", "key": b"k"},
    ]
    with store.producer() as producer:
        for record in sent:
            producer.send("t", **record)
    found = list(topic.scan())
    assert [r.value for r in found] == [None if s["value"] is None else bytes(s["value"]) for s in sent]
    assert [r.key for r in found] == [None if s.get("key") is None else bytes(s["key"]) for s in sent]
    assert [r.timestamp_ms for r in found[3:6]] == [5, -7, int(moment.timestamp() * 1000)]
    assert found[6].headers == (("a", b"1"), ("b", None))
    assert found[8].headers == (("ä", b"x"), ("ä", b"y"))
    assert {r.headers for r in found if r.offset not in (6, 8)} == {()}
    assert store.verify() == []


def test_a_record_without_a_timestamp_has_the_time_of_its_send_to_the_millisecond(
    store: sc.Store, topic: sc.Topic
) -> None:
    bounds = []
    with store.producer(linger_ms=FOREVER_MS) as producer:
        for _ in range(50):
            before = time.time_ns() // 1_000_000
            producer.send("clicks", b"x")
            bounds.append((before, time.time_ns() // 1_000_000))
    for record, (low, high) in zip(topic.scan(), bounds, strict=True):
        assert low - 1 <= record.timestamp_ms <= high  # it may be 0.1 ms old


def test_a_topic_with_append_time_takes_the_time_of_the_append(store: sc.Store) -> None:
    topic = store.create_topic("t", timestamp_type="append")
    before = time.time_ns() // 1_000_000
    with store.producer() as producer:
        producer.send("t", b"x", timestamp=5)
        producer.send("t", b"y")
    assert all(record.timestamp_ms >= before for record in topic.scan())


def test_typed_topics_take_dicts_as_they_were_at_the_send_and_wrong_ones_are_errors_at_once(store: sc.Store) -> None:
    topic = store.create_topic("t", schema=pa.schema([("n", pa.int64()), ("s", pa.string())]))
    with store.producer() as producer:
        value = {"n": 1, "s": "a"}
        producer.send("t", value, key=b"k", headers={"h": b"1"}, timestamp=9)
        value["n"] = 2
        producer.send("t", value)
        producer.send("t", None, key=b"k")
        with pytest.raises(TypeError, match="int64"):
            producer.send("t", {"n": "text"})
        with pytest.raises(ValueError, match="not in the topic's schema"):
            producer.send("t", {"other": 1})
        with pytest.raises(TypeError, match="dict"):
            producer.send("t", b"bytes")
        producer.flush()
        topic.alter(schema=pa.schema([("n", pa.int64()), ("s", pa.string()), ("more", pa.bool_())]))
        producer.send("t", {"n": 3, "more": True})
    assert records_of(topic)[0] == (b"k", {"n": 1, "s": "a", "more": None}, (("h", b"1"),))
    assert [r.value for r in topic.scan()][1:] == [
        {"n": 2, "s": "a", "more": None},
        None,
        {"n": 3, "s": None, "more": True},
    ]


def test_keyed_records_go_where_an_append_puts_them(store: sc.Store) -> None:
    sent, appended = (store.create_topic(name, partitions=5) for name in ("sent", "appended"))
    keys = [b"key-%d" % n for n in range(300)]
    appended.append(keys, keys=keys)
    with store.producer() as producer:
        for key in keys:
            producer.send("sent", key, key)
    for partition in range(5):
        assert values_of(sent, partition) == values_of(appended, partition)


def test_records_without_a_key_stay_in_a_partition_until_its_batch_is_sealed_and_then_use_all(store: sc.Store) -> None:
    topic = store.create_topic("t", partitions=3)
    with store.producer(linger_ms=FOREVER_MS) as producer:
        for _ in range(6):
            for n in range(10):
                producer.send("t", b"%d" % n)
            producer.flush()
    assert [p.end_offset for p in topic.partitions] == [20, 20, 20]
    assert all(values_of(topic, p) == [b"%d" % (n % 10) for n in range(20)] for p in range(3))


def test_a_chosen_partition_is_used_and_a_new_one_is_known_at_once(store_path: Path, store: sc.Store) -> None:
    topic = store.create_topic("t", partitions=2)
    with store.producer() as producer, sc.open(store_path) as other:
        producer.send("t", b"one", partition=1)
        with pytest.raises(ValueError, match="partitions 0 to 1"):
            producer.send("t", b"x", partition=2)
        other.topic("t").add_partitions(4)
        producer.send("t", b"three", partition=3)
        producer.flush()
        assert values_of(topic, 1) == [b"one"]
        assert values_of(topic, 3) == [b"three"]


# ---- sealing ----------------------------------------------------------------------------------------------------


def test_a_batch_is_sealed_by_its_bytes(store: sc.Store, topic: sc.Topic, wait_until: WaitUntil) -> None:
    with store.producer(linger_ms=FOREVER_MS, batch_bytes=1000) as producer:
        for _ in range(10):
            producer.send("clicks", bytes(300))
        wait_until(lambda: topic.partitions[0].end_offset == 9)  # three in each: the tenth waits
        assert producer.unfinished() == 1
    assert topic.partitions[0].end_offset == 10


def test_a_batch_is_sealed_by_its_age(store: sc.Store, topic: sc.Topic, wait_until: WaitUntil) -> None:
    with store.producer(linger_ms=1) as producer:
        for n in range(3):
            producer.send("clicks", b"x")
            wait_until(lambda n=n: topic.partitions[0].end_offset == n + 1)


def test_a_batch_is_sealed_by_a_flush_and_without_one_it_lingers(store: sc.Store, topic: sc.Topic) -> None:
    with store.producer(linger_ms=FOREVER_MS) as producer:
        producer.send("clicks", b"x")
        assert topic.partitions[0].end_offset == 0
        assert producer.unfinished() == 1
        producer.flush()
        assert topic.partitions[0].end_offset == 1
        producer.flush()


def test_records_above_batch_bytes_are_batches_of_their_own(store: sc.Store, topic: sc.Topic) -> None:
    sizes = [10, 5000, 20, 30_000, 0]
    with store.producer(batch_bytes=100) as producer:
        for size in sizes:
            producer.send("clicks", bytes(size))
    assert [len(value) for value in values_of(topic)] == sizes


# ---- on_delivery ------------------------------------------------------------------------------------------------


def test_on_delivery_is_called_once_for_each_record_in_order_with_its_place(store: sc.Store) -> None:
    topic = store.create_topic("t", partitions=3)
    deliveries = Deliveries()
    with store.producer(batch_bytes=500) as producer:
        for n in range(500):
            producer.send("t", b"%d" % n, key=b"%d" % (n % 17), on_delivery=deliveries if n % 2 else None)
        producer.flush()
        assert len(deliveries.told) == 250
    assert all(error is None for error, _ in deliveries.told)
    for partition in range(3):
        offsets = [d.offset for _, d in deliveries.told if d.partition == partition]
        assert offsets == sorted(offsets)
        values = values_of(topic, partition)
        assert [int(values[offset]) % 2 for offset in offsets if offset is not None] == [1] * len(offsets)
    assert {d.topic for _, d in deliveries.told} == {"t"}


def test_an_on_delivery_may_send_and_neither_flushes_nor_closes(store: sc.Store, topic: sc.Topic) -> None:
    raised: list[str] = []
    with store.producer() as producer:

        def again(error: Exception | None, delivery: sc.Delivery) -> None:
            producer.send("clicks", b"second")
            for call in (producer.flush, producer.close):
                try:
                    call()
                except sc.StreamcoreError as failure:
                    raised.append(str(failure))

        producer.send("clicks", b"first", on_delivery=again)
        producer.flush()
    assert values_of(topic) == [b"first", b"second"]
    assert len(raised) == 2
    assert "wait for itself" in raised[0]


def test_an_on_delivery_that_raises_is_heard_of_and_the_others_are_called(store: sc.Store, topic: sc.Topic) -> None:
    deliveries = Deliveries()

    def bad(error: Exception | None, delivery: sc.Delivery) -> None:
        raise KeyError("mine")

    producer = store.producer(linger_ms=FOREVER_MS)
    producer.send("clicks", b"1", on_delivery=bad)
    producer.send("clicks", b"2", on_delivery=deliveries)
    with pytest.raises(sc.ProducerError, match="on_delivery raised") as raised:
        producer.flush()
    assert isinstance(raised.value.__cause__, KeyError)
    assert raised.value.lost == ()
    assert deliveries.offsets == [1]
    producer.close()


# ---- errors at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("clicks", "text"), TypeError, "value is str.*encode"),
        (("clicks", 5), TypeError, "value is int"),
        (("clicks", b"x", "key"), TypeError, "key is str"),
        (("clicks", b"x", None, "now"), TypeError, "timestamp is str"),
        (("clicks", b"x", None, True), TypeError, "timestamp is a bool"),
        (("clicks", b"x", None, 1 << 63), ValueError, "64 bits"),
        (("clicks", b"x", None, dt.datetime(2024, 1, 1)), ValueError, "no time zone"),
        (("clicks", b"x", None, None, [1]), TypeError, "headers has 1"),
        (("clicks", b"x", None, None, {1: b"x"}), TypeError, "headers has"),
        (("clicks", b"x", None, None, {"a": "x"}), TypeError, "headers has"),
        (("clicks", b"x", None, None, 5), TypeError, "int"),
        (("clicks", b"x", None, None, None, "0"), TypeError, "partition is '0'"),
        (("clicks", b"x", None, None, None, True), TypeError, "partition is True"),
        (("clicks", b"x", None, None, None, 1), ValueError, "partitions 0 to 0"),
        (("clicks", b"x", None, None, None, -1), ValueError, "partition is -1"),
        (("clicks", b"x", None, None, None, 1 << 40), ValueError, "partition is"),
        (("clicks", b"x", None, None, None, None, 5), TypeError, "on_delivery is int"),
        (("click", b"x"), sc.TopicNotFoundError, "did you mean 'clicks'"),
        ((5, b"x"), TypeError, "topic's name is a str, not int"),
        (([], b"x"), TypeError, "topic's name is a str, not list"),
        (("a b", b"x"), ValueError, "no name for a topic"),
        (("clicks", bytes(2001)), sc.RecordTooLargeError, "2001 bytes is above max_record_bytes"),
        (("clicks", b"x", bytes(2001)), sc.RecordTooLargeError, "max_record_bytes"),
        (("clicks", b"x", None, None, {"a": bytes(2001)}), sc.RecordTooLargeError, "max_record_bytes"),
    ],
)
def test_what_cannot_be_sent_is_an_error_at_once_and_changes_nothing(
    store: sc.Store, arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    topic = store.create_topic("clicks", max_record_bytes=2000)
    with store.producer() as producer:
        producer.send("clicks", b"before")
        with pytest.raises(error, match=text):
            producer.send(*arguments)
        producer.send("clicks", b"after")
    assert values_of(topic) == [b"before", b"after"]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"linger_ms": -1}, ValueError),
        ({"linger_ms": 1.5}, TypeError),
        ({"batch_bytes": 0}, ValueError),
        ({"batch_bytes": (1 << 30) + 1}, ValueError),
        ({"buffer_bytes": 1000}, ValueError),
        ({"buffer_bytes": 1 << 19}, ValueError),  # below batch_bytes
        ({"max_block_ms": None}, TypeError),
        ({"delivery_timeout_ms": -5}, ValueError),
        ({"durability": "tape"}, ValueError),
        ({"transactional_id": 5}, TypeError),
        ({"transaction_timeout_ms": 0}, ValueError),
    ],
)
def test_wrong_settings_are_errors_that_name_them(
    store: sc.Store, settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(settings))):
        store.producer(**settings)


def test_a_store_for_reading_has_no_producer(store_path: Path, store: sc.Store) -> None:
    with sc.open(store_path, "r") as reader, pytest.raises(sc.StoreReadOnlyError):
        reader.producer()


def test_a_record_that_never_fits_into_the_buffer_is_too_large(store: sc.Store, topic: sc.Topic) -> None:
    with store.producer(batch_bytes=1000, buffer_bytes=100_000) as producer:
        with pytest.raises(sc.RecordTooLargeError, match="buffer_bytes"):
            producer.send("clicks", bytes(100_000))
        producer.send("clicks", bytes(70_000))
    assert [len(v) for v in values_of(topic)] == [70_000]


# ---- topics that change -----------------------------------------------------------------------------------------


def test_settings_that_change_while_records_wait_are_followed(store: sc.Store, store_path: Path) -> None:
    topic = store.create_topic("t")
    with store.producer(linger_ms=FOREVER_MS) as producer, sc.open(store_path) as other:
        producer.send("t", b"1")
        other.topic("t").alter(compression="zstd")
        producer.flush()
        producer.send("t", b"2")
        other.topic("t").alter(max_record_bytes=10)
        producer.flush()
        with pytest.raises(sc.RecordTooLargeError):
            producer.send("t", bytes(11))
        topic.alter(compression="none", max_record_bytes=100)
        producer.send("t", bytes(11))
    assert values_of(topic) == [b"1", b"2", bytes(11)]
    assert store.verify() == []


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("transactional_id", [None, "t"])
def test_a_compacted_topic_takes_no_record_without_a_key(
    store: sc.Store, compression: Any, transactional_id: str | None
) -> None:
    topic = store.create_topic("table", partitions=2, cleanup="compact", compression=compression)
    with store.producer(transactional_id=transactional_id) as producer:
        if transactional_id is not None:
            producer.begin_transaction()
        producer.send("table", b"1", key=b"a")
        for more in ({}, {"partition": 1}, {"headers": {"h": b""}}, {"block": False}):
            with pytest.raises(ValueError, match="a record has no key; topic 'table' is compacted"):
                producer.send("table", b"lost", **more)
        with pytest.raises(ValueError, match="has no key"):
            producer.send("table", None)
        producer.send("table", b"2", key=b"")
        if transactional_id is not None:
            producer.commit_transaction()
    assert sorted((record.key, record.value) for record in topic.scan()) == [(b"", b"2"), (b"a", b"1")]


def test_a_topic_that_becomes_compacted_keeps_what_was_sent_before_and_takes_no_more_without_a_key(
    store: sc.Store, store_path: Path
) -> None:
    topic = store.create_topic("t")
    with store.producer(linger_ms=FOREVER_MS) as producer, sc.open(store_path) as other:
        producer.send("t", b"before")
        other.topic("t").alter(cleanup="compact")
        with pytest.raises(ValueError, match="has no key"):  # although a batch is open for it
            producer.send("t", b"after")
        producer.send("t", b"keyed", key=b"k")
        other.topic("t").alter(cleanup="delete")
        producer.send("t", b"free again")
    assert values_of(topic) == [b"before", b"keyed", b"free again"]


def test_a_deleted_topic_is_unknown_and_one_made_anew_is_found(store: sc.Store) -> None:
    store.create_topic("t")
    deliveries = Deliveries()
    with store.producer(linger_ms=FOREVER_MS) as producer:
        producer.send("t", b"1")
        producer.flush()
        producer.send("t", b"lost", on_delivery=deliveries)
        store.delete_topic("t")
        producer.flush()
        ((error, delivery),) = deliveries.told
        assert isinstance(error, sc.TopicNotFoundError)
        assert delivery == ("t", 0, None)
        with pytest.raises(sc.TopicNotFoundError):
            producer.send("t", b"x")
        again = store.create_topic("t")
        producer.send("t", b"2")
    assert values_of(again) == [b"2"]


# ---- memory -----------------------------------------------------------------------------------------------------


def test_the_buffer_is_bounded_and_a_caller_who_does_not_wait_is_told(
    store: sc.Store, slow_topic: sc.Topic, failing: FailingTopic
) -> None:
    failing.errors = [full_disk() for _ in range(10_000)]
    with store.producer(linger_ms=0, batch_bytes=10_000, buffer_bytes=200_000) as producer:
        sent = 0
        with pytest.raises(sc.BufferFullError, match="buffer_bytes"):
            while True:
                producer.send("slow", b"%9d" % sent + bytes(991), block=False)
                sent += 1
        assert 50 < sent < 200
        assert producer.memory() <= 200_000
        failing.errors.clear()
    assert [int(value[:9]) for value in values_of(slow_topic)] == list(range(sent))


def test_a_caller_who_waits_goes_on_when_there_is_room_or_fails_in_time(
    store: sc.Store, slow_topic: sc.Topic, failing: FailingTopic
) -> None:
    failing.errors = [full_disk() for _ in range(10_000)]
    with store.producer(linger_ms=0, batch_bytes=10_000, buffer_bytes=100_000, max_block_ms=300) as producer:
        sent = 0
        with pytest.raises(sc.BufferFullError, match="300 ms"):
            while True:
                producer.send("slow", bytes(1000))
                sent += 1
        threading.Timer(0.05, failing.errors.clear).start()
        deadline = time.monotonic() + 20
        while True:
            try:
                producer.send("slow", bytes(1000))
                break
            except sc.BufferFullError:
                assert time.monotonic() < deadline
    assert len(values_of(slow_topic)) == sent + 1


def test_memory_stays_within_buffer_bytes_whatever_is_sent(store: sc.Store) -> None:
    limit = 300_000
    for name in ("a", "b"):
        store.create_topic(name, partitions=7)
    chance = random.Random(3)
    most = 0
    with store.producer(linger_ms=FOREVER_MS, batch_bytes=50_000, buffer_bytes=limit) as producer:
        for n in range(20_000):
            size = chance.choice([0, 10, 100, 1000, 20_000] if n % 50 == 0 else [0, 10, 100])
            producer.send(
                chance.choice("ab"),
                bytes(size),
                key=b"%d" % n if n % 3 else None,
                headers={"h": b"x" * (n % 9)} if n % 5 == 0 else None,
                on_delivery=(lambda e, d: None) if n % 4 == 0 else None,
            )
            most = max(most, producer.memory())
            assert most <= limit
    assert most > limit // 2
    assert sum(topic.scan().count() for topic in store.topics()) == 20_000


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps what was freed")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_no_object_is_kept_per_record(store: sc.Store, topic: sc.Topic) -> None:
    """A quarter of a million records of 4 bytes wait: as Arrow columns they take 16 bytes each, as objects 200."""
    count = 250_000
    with store.producer(linger_ms=FOREVER_MS, batch_bytes=1 << 30, buffer_bytes=1 << 30) as producer:
        producer.send("clicks", b"0000")
        before = rss_bytes()
        for n in range(count):
            producer.send("clicks", b"%04d" % (n % 10_000))
        grown = rss_bytes() - before
        assert grown < 64 * count
    assert topic.partitions[0].end_offset == count + 1


def test_control_objects_kept_per_record_are_seen() -> None:
    before = rss_bytes()
    kept = [(b"%06d" % n, {"n": n}) for n in range(250_000)]
    assert rss_bytes() - before > 64 * len(kept)


# ---- failures ---------------------------------------------------------------------------------------------------


def test_a_failure_that_may_pass_is_tried_again_in_order_with_the_same_sequence(
    store: sc.Store, slow_topic: sc.Topic, failing: FailingTopic
) -> None:
    failing.errors = [full_disk(), sc.StorageError(errno.EMFILE, "no descriptors"), MemoryError()]
    deliveries = Deliveries()
    with store.producer(linger_ms=0) as producer:
        for n in range(20):
            producer.send("slow", b"%d" % n, on_delivery=deliveries)
            time.sleep(0.001)  # several batches
        producer.flush()
        assert deliveries.offsets == list(range(20))
    assert values_of(slow_topic) == [b"%d" % n for n in range(20)]
    assert [sequence for sequence, _ in failing.sequences[:4]] == [0] * 4
    after = failing.sequences[3:]
    assert [sequence for sequence, _ in after] == [sum(count for _, count in after[:i]) for i in range(len(after))]


def test_one_partition_that_is_tried_again_holds_up_no_other(
    store: sc.Store, slow_topic: sc.Topic, failing: FailingTopic, wait_until: WaitUntil
) -> None:
    topic = store.create_topic("quick")
    failing.errors = [full_disk() for _ in range(10_000)]
    with store.producer(linger_ms=0) as producer:
        producer.send("slow", b"held up")
        wait_until(lambda: failing.calls > 1)
        producer.send("slow", b"behind it")
        for n in range(5):
            producer.send("quick", b"%d" % n)
            wait_until(lambda n=n: topic.partitions[0].end_offset == n + 1)
        with pytest.raises(TimeoutError, match="stay in the producer"):
            producer.flush(timeout_ms=50)
        failing.errors.clear()
    assert values_of(slow_topic) == [b"held up", b"behind it"]


def test_what_is_given_up_is_told_to_its_on_delivery_and_the_rest_raised_once(
    store: sc.Store, slow_topic: sc.Topic, failing: FailingTopic
) -> None:
    failing.errors = [full_disk()]
    deliveries = Deliveries()
    with store.producer(linger_ms=FOREVER_MS, delivery_timeout_ms=0) as producer:
        producer.send("slow", b"1")
        producer.send("slow", b"2", on_delivery=deliveries)
        producer.send("slow", b"3")
        with pytest.raises(sc.ProducerError, match="2 of 'slow' partition 0.*No space left") as raised:
            producer.flush()
        assert raised.value.lost == (("slow", 0, 2),)
        assert raised.value.lost[0].records == 2
        assert isinstance(raised.value.__cause__, sc.StorageError)
        ((error, delivery),) = deliveries.told
        assert isinstance(error, sc.StorageError)
        assert delivery == ("slow", 0, None)
        producer.flush()
        producer.send("slow", b"4")
    assert values_of(slow_topic) == [b"4"]
    assert [sequence for sequence, _ in failing.sequences] == [0, 0]  # what is not in the log used up no sequence


def test_a_failure_without_on_delivery_is_raised_by_the_next_send_which_takes_nothing(
    store: sc.Store, slow_topic: sc.Topic, failing: FailingTopic, wait_until: WaitUntil
) -> None:
    failing.errors = [sc.StorageError(errno.EIO, "broken")]
    with store.producer(linger_ms=0) as producer:
        producer.send("slow", b"lost")
        wait_until(lambda: producer.unfinished() == 0)
        with pytest.raises(sc.ProducerError):
            producer.send("slow", b"not taken")
        producer.send("slow", b"taken")
    assert values_of(slow_topic) == [b"taken"]


def test_a_failure_is_raised_by_close_and_by_the_close_of_the_store(store_path: Path, failing: FailingTopic) -> None:
    for close_store in (False, True):
        store = sc.open(store_path)
        store.create_topic(f"t{close_store}", compression="lz4")
        failing.errors = [sc.StorageError(errno.EIO, "broken")]
        producer = store.producer(linger_ms=FOREVER_MS)
        producer.send(f"t{close_store}", b"lost")
        with pytest.raises(sc.ProducerError):
            store.close() if close_store else producer.close()
        assert producer.closed
        store.close()
        producer.close()


def test_an_error_that_nobody_expected_reaches_the_sender(
    store: sc.Store, slow_topic: sc.Topic, failing: FailingTopic
) -> None:
    failing.errors = [ZeroDivisionError("a bug")]
    producer = store.producer()
    producer.send("slow", b"lost")
    with pytest.raises(sc.ProducerError, match="a bug"):
        producer.flush()
    producer.send("slow", b"goes on")
    producer.close()
    assert values_of(slow_topic) == [b"goes on"]


def test_control_a_record_that_is_lost_without_a_word_is_caught(
    store: sc.Store, slow_topic: sc.Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sc.Topic, "append_sealed", lambda topic, batch, producer: (batch.partition, 0, batch.count))
    deliveries = Deliveries()
    with store.producer() as producer:
        producer.send("slow", b"x", on_delivery=deliveries)
    assert deliveries.offsets == [0]
    with pytest.raises(AssertionError):
        assert values_of(slow_topic) == [b"x"]


# ---- durability -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["producer", "topic", "store"])
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_on_delivery_comes_when_the_drive_has_it_if_so_asked(store_path: Path, how: str, compression: str) -> None:
    seen = []
    with sc.open(store_path, durability="disk" if how == "store" else "os") as store:
        topic = store.create_topic(
            "t", partitions=3, compression=compression, durability="disk" if how == "topic" else None
        )

        def look(error: Exception | None, delivery: sc.Delivery) -> None:
            assert delivery.offset is not None
            seen.append(topic.partitions[delivery.partition].durable_offset > delivery.offset)

        with store.producer(durability="disk" if how == "producer" else None, batch_bytes=200) as producer:
            for n in range(60):
                producer.send("t", b"%d" % n, key=b"%d" % n, on_delivery=look)
            producer.flush()
            assert seen == [True] * 60
            assert all(p.durable_offset == p.end_offset for p in topic.partitions)


def test_what_is_appended_is_flushed_in_the_background(store: sc.Store, topic: sc.Topic, wait_until: WaitUntil) -> None:
    with store.producer() as producer:
        producer.send("clicks", b"x")
        wait_until(lambda: topic.partitions[0].durable_offset == 1)


# ---- idempotence ------------------------------------------------------------------------------------------------


def headers_of(topic: sc.Topic, store_path: Path) -> list[tuple[int, int, int, int]]:
    """(producer id, epoch, sequence, records) of each batch with records, from the files."""
    import struct

    found = []
    for segment in topic.segments():
        data = Path(segment.path).read_bytes()
        position = 8 + int.from_bytes(data[4:8], "little")
        while position + 8 <= len(data) and data[position : position + 4] == b"\xff\xff\xff\xff":
            metadata = int.from_bytes(data[position + 4 : position + 8], "little")
            if metadata == 0:
                break
            header = data[position + 8 + metadata :][:128]
            found.append(header)
            position += struct.unpack_from("<q", header, OFFSETS["total_size"])[0]
    return [
        (
            struct.unpack_from("<q", h, OFFSETS["producer_id"])[0],
            struct.unpack_from("<h", h, OFFSETS["producer_epoch"])[0],
            struct.unpack_from("<i", h, OFFSETS["base_sequence"])[0],
            struct.unpack_from("<i", h, OFFSETS["record_count"])[0],
        )
        for h in found
        if struct.unpack_from("<i", h, OFFSETS["record_count"])[0]
    ]


OFFSETS = {"total_size": 16, "record_count": 40, "producer_id": 72, "producer_epoch": 80, "base_sequence": 84}


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_batches_carry_the_producers_id_and_sequences_without_a_gap(
    store: sc.Store, store_path: Path, compression: str
) -> None:
    topic = store.create_topic("t", compression=compression)
    with store.producer(linger_ms=FOREVER_MS) as producer:
        for count in (3, 1, 5):
            for _ in range(count):
                producer.send("t", b"x")
            producer.flush()
        number = producer.producer_id
    assert number is not None
    assert headers_of(topic, store_path) == [(number, 0, 0, 3), (number, 0, 3, 1), (number, 0, 4, 5)]


def test_a_producer_that_is_not_idempotent_has_no_id(store: sc.Store, store_path: Path, topic: sc.Topic) -> None:
    with store.producer(idempotent=False) as producer:
        producer.send("clicks", b"x")
        producer.flush()
        assert producer.producer_id is None
    assert headers_of(topic, store_path) == [(-1, -1, -1, 1)]


def test_every_producer_has_another_id_in_every_handle(store_path: Path, store: sc.Store, topic: sc.Topic) -> None:
    found = []
    with sc.open(store_path) as other:
        for opened in (store, other, store):
            with opened.producer() as producer:
                assert producer.producer_id is None
                producer.send("clicks", b"x")
                found.append(producer.producer_id)
    assert found == [1, 2, 3]
    assert producer_ids.next_producer_id(store.catalog) == 4


def test_a_batch_that_was_stored_before_its_attempt_failed_is_recognised_when_it_is_tried_again(
    store: sc.Store, slow_topic: sc.Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, attempts = sc.Topic.append_sealed, 0

    def append_sealed(topic: sc.Topic, batch: _core.SealedBatch, producer: Any) -> tuple[int, int, int]:
        nonlocal attempts
        attempts += 1
        placed = original(topic, batch, producer)
        if attempts % 3:
            raise full_disk()
        return placed

    monkeypatch.setattr(sc.Topic, "append_sealed", append_sealed)
    deliveries = Deliveries()
    with store.producer(linger_ms=FOREVER_MS) as producer:
        for n in range(6):
            producer.send("slow", b"%d" % n, on_delivery=deliveries)
            if n % 2:
                producer.flush()
    assert attempts == 9
    assert deliveries.offsets == list(range(6))
    assert values_of(slow_topic) == [b"%d" % n for n in range(6)]
    attempts = 0
    with store.producer(idempotent=False) as producer:  # control: without an id nobody can tell
        producer.send("slow", b"more")
    assert values_of(slow_topic)[6:] == [b"more"] * 3


# ---- transactions -----------------------------------------------------------------------------------------------


def test_a_transactional_producer_shows_all_of_a_transaction_or_nothing(store: sc.Store) -> None:
    topics = [store.create_topic("a", partitions=3), store.create_topic("b", compression="lz4")]
    with store.producer(transactional_id="etl", batch_bytes=200) as producer:
        for round_ in range(4):
            producer.begin_transaction()
            for n in range(50):
                producer.send("ab"[n % 2], b"%d %d" % (round_, n), key=b"%d" % n)
            producer.flush()
            assert sum(topic.scan(isolation="uncommitted").count() for topic in topics) >= 50
            assert sum(topic.scan().count() for topic in topics) == 50 * (round_ // 2 + round_ % 2)
            if round_ % 2:
                producer.abort_transaction()
            else:
                producer.commit_transaction()
    found = sorted(value for topic in topics for value in values_of(topic))
    assert found == sorted(b"%d %d" % (round_, n) for round_ in (0, 2) for n in range(50))
    assert store.verify() == []


def test_sends_outside_a_transaction_and_wrong_orders_are_errors(store: sc.Store, topic: sc.Topic) -> None:
    with store.producer(transactional_id="etl") as producer:
        for call in (
            lambda: producer.send("clicks", b"x"),
            producer.commit_transaction,
            producer.abort_transaction,
            lambda: producer.commit_offsets(None),  # type: ignore[arg-type]
        ):
            with pytest.raises(sc.TransactionError, match="begin_transaction"):
                call()
        producer.begin_transaction()
        with pytest.raises(sc.TransactionError, match="is open"):
            producer.begin_transaction()
        producer.send("clicks", b"1")
        producer.commit_transaction()
        with pytest.raises(sc.TransactionError, match="begin_transaction"):
            producer.send("clicks", b"2")
    with store.producer() as producer, pytest.raises(sc.TransactionError, match="no transactional_id"):
        producer.begin_transaction()
    assert values_of(topic) == [b"1"]


def test_closing_aborts_an_open_transaction(store: sc.Store, topic: sc.Topic) -> None:
    producer = store.producer(transactional_id="etl")
    producer.begin_transaction()
    producer.send("clicks", b"x")
    producer.close()
    assert values_of(topic) == []
    topic.append([b"after"])
    assert values_of(topic) == [b"after"]


def test_a_producer_whose_transactional_id_was_taken_is_fenced_and_commits_nothing(
    store_path: Path, store: sc.Store, topic: sc.Topic
) -> None:
    with sc.open(store_path) as other:
        zombie, successor = (opened.producer(transactional_id="etl") for opened in (store, other))
        zombie.begin_transaction()
        zombie.send("clicks", b"zombie")
        zombie.flush()
        successor.begin_transaction()
        successor.send("clicks", b"successor")
        zombie.send("clicks", b"zombie again")
        with pytest.raises((sc.FencedError, sc.ProducerError)):
            zombie.commit_transaction()
        successor.commit_transaction()
        with contextlib.suppress(sc.StreamcoreError):
            zombie.close()
        successor.close()
    assert values_of(topic) == [b"successor"]


def test_a_transaction_of_which_a_record_was_lost_cannot_be_committed(
    store: sc.Store, topic: sc.Topic, failing: FailingTopic
) -> None:
    for told in (None, Deliveries()):
        with store.producer(transactional_id="etl", delivery_timeout_ms=0) as producer:
            producer.begin_transaction()
            producer.send("clicks", b"1")
            producer.flush()
            failing.errors = [full_disk()]
            producer.send("clicks", b"lost", on_delivery=told)
            with pytest.raises(sc.TransactionError if told else sc.ProducerError):
                producer.commit_transaction()
            producer.begin_transaction()
            producer.send("clicks", b"2", on_delivery=told)
            producer.commit_transaction()
    assert values_of(topic) == [b"2", b"2"]


# ---- threads, closing, forks ------------------------------------------------------------------------------------


def test_threads_share_a_producer_and_each_ones_records_keep_their_order(store: sc.Store) -> None:
    topic = store.create_topic("t", partitions=4)
    threads, each = 8, 3000
    deliveries = Deliveries()
    with store.producer(batch_bytes=2000, buffer_bytes=100_000) as producer:

        def send(number: int) -> None:
            for n in range(each):
                producer.send("t", b"%d %d" % (number, n), key=b"%d" % number, on_delivery=deliveries)

        running = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        producer.flush()
        assert len(deliveries.told) == threads * each
    seen: dict[int, int] = {}
    for record in topic.scan():
        number, n = map(int, record.value.split())
        assert n == seen.get(number, -1) + 1
        seen[number] = n
    assert seen == dict.fromkeys(range(threads), each - 1)


def test_close_flushes_and_ends_the_thread_and_a_closed_producer_says_so(store: sc.Store, topic: sc.Topic) -> None:
    producer = store.producer(linger_ms=FOREVER_MS)
    producer.send("clicks", b"x")
    thread = next(t for t in threading.enumerate() if t.name == "streamcore-producer")
    producer.close()
    assert values_of(topic) == [b"x"]
    assert not thread.is_alive()
    producer.close()
    for call in (lambda: producer.send("clicks", b"y"), producer.flush, lambda: producer.send("other", b"y")):
        with pytest.raises(sc.StreamcoreError):
            call()
    with pytest.raises(sc.StreamcoreError, match="closed"):
        producer.send("clicks", b"y")
    assert values_of(topic) == [b"x"]


def test_a_producer_that_sent_nothing_has_no_thread(store: sc.Store) -> None:
    before = threading.active_count()
    with store.producer() as producer:
        producer.flush()
        assert threading.active_count() == before
    with pytest.raises(sc.StreamcoreError, match="closed"):
        producer.flush()


def test_an_exception_in_the_block_still_appends_what_was_sent(store: sc.Store, topic: sc.Topic) -> None:
    with pytest.raises(KeyError), store.producer(linger_ms=FOREVER_MS) as producer:
        producer.send("clicks", b"x")
        raise KeyError
    assert values_of(topic) == [b"x"]


def test_a_process_that_ends_without_closing_appends_what_it_sent(store_path: Path) -> None:
    program = f"""
import streamcore as sc
store = sc.open({str(store_path)!r})
store.create_topic("t")
producer = store.producer(linger_ms=3_600_000)
for n in range(1000):
    producer.send("t", b"%d" % n)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    with sc.open(store_path) as store:
        assert values_of(store.topic("t")) == [b"%d" % n for n in range(1000)]


def test_closing_the_store_closes_its_producers_first(store_path: Path) -> None:
    deliveries = Deliveries()
    store = sc.open(store_path)
    store.create_topic("t")
    producers = [store.producer(linger_ms=FOREVER_MS) for _ in range(3)]
    for producer in producers:
        producer.send("t", b"x", on_delivery=deliveries)
    store.close()
    assert sorted(deliveries.offsets) == [0, 1, 2]  # type: ignore[type-var]
    assert all(producer.closed for producer in producers)
    with sc.open(store_path) as again:
        assert len(values_of(again.topic("t"))) == 3


def test_threads_that_close_while_others_send_lose_nothing_that_was_taken(store: sc.Store) -> None:
    topic = store.create_topic("t", partitions=2)
    for _ in range(20):
        producer = store.producer(linger_ms=1, batch_bytes=300)
        taken: list[bytes] = []
        before = topic.scan().count()

        def send(number: int, producer: sc.Producer = producer, taken: list[bytes] = taken) -> None:
            n = 0
            while True:
                value = b"%d-%d" % (number, n)
                try:
                    producer.send("t", value)
                except sc.StreamcoreError as error:
                    assert "closed" in str(error)  # noqa: PT017
                    return
                taken.append(value)
                n += 1

        senders = [threading.Thread(target=send, args=(number,)) for number in range(3)]
        for thread in senders:
            thread.start()
        while len(taken) < 50:
            pass
        closers = [threading.Thread(target=producer.close) for _ in range(2)]
        for thread in closers:
            thread.start()
        for thread in [*senders, *closers]:
            thread.join()
        assert topic.scan().count() - before == len(taken)


def test_a_producer_of_the_parent_is_refused_in_a_forked_child_and_harms_nothing(
    store: sc.Store, topic: sc.Topic
) -> None:
    producer = store.producer(linger_ms=FOREVER_MS)
    producer.send("clicks", b"1")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = []
        for call in (lambda: producer.send("clicks", b"child"), producer.flush, lambda: producer.send("x", b"y")):
            try:
                call()
                said.append("nothing")
            except sc.StreamcoreError as error:
                said.append("fork" if "fork" in str(error) else str(error))
        producer.close()
        store.close()
        os.write(write, ",".join(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        assert answer.read() == b"fork,fork,fork"
    assert os.waitpid(child, 0)[1] == 0
    producer.send("clicks", b"2")
    producer.close()
    assert values_of(topic) == [b"1", b"2"]


# ---- asyncio ----------------------------------------------------------------------------------------------------


def test_an_awaited_send_returns_where_the_record_is(store: sc.Store, topic: sc.Topic) -> None:
    async def main() -> None:
        async with store.producer(linger_ms=0) as producer:
            for n in range(3):
                assert await producer.send_async("clicks", b"%d" % n) == ("clicks", 0, n)
            with pytest.raises(TypeError, match="value is str"):
                await producer.send_async("clicks", "text")

    asyncio.run(main())
    assert values_of(topic) == [b"0", b"1", b"2"]


def test_thousands_of_awaited_sends_are_in_flight_without_threads_and_within_the_buffer(store: sc.Store) -> None:
    topic = store.create_topic("t", partitions=3)
    count = 5000

    async def main() -> list[sc.Delivery]:
        async with store.producer(batch_bytes=10_000, buffer_bytes=200_000) as producer:
            threads = set(threading.enumerate())
            sending = [asyncio.ensure_future(producer.send_async("t", b"%d" % n)) for n in range(count)]
            await asyncio.sleep(0)
            began = sorted(thread.name for thread in set(threading.enumerate()) - threads)
            assert set(began) <= {"streamcore-producer", "streamcore-flush", "streamcore-maintenance"}
            assert len(began) == len(set(began))
            assert producer.memory() <= 200_000
            return await asyncio.gather(*sending)

    found = asyncio.run(main())
    at = {(r.partition, r.offset): r.value for p in range(3) for r in topic.scan(p)}
    assert {at[d.partition, d.offset] for d in found if d.offset is not None} == {b"%d" % n for n in range(count)}


def test_a_failed_append_raises_where_it_is_awaited_and_only_there(
    store: sc.Store, slow_topic: sc.Topic, failing: FailingTopic
) -> None:
    failing.errors = [sc.StorageError(errno.EIO, "broken")]

    async def main() -> None:
        async with store.producer(linger_ms=50) as producer:
            sending = [asyncio.ensure_future(producer.send_async("slow", b"x")) for _ in range(3)]
            answers = await asyncio.gather(*sending, return_exceptions=True)
            assert {type(answer) for answer in answers} == {sc.StorageError}
            producer.flush()

    asyncio.run(main())


def test_a_cancelled_await_harms_nothing_and_its_record_is_sent(store: sc.Store, topic: sc.Topic) -> None:
    async def main() -> None:
        async with store.producer(linger_ms=20) as producer:
            sending = [asyncio.ensure_future(producer.send_async("clicks", b"%d" % n)) for n in range(10)]
            await asyncio.sleep(0)
            for task in sending[::2]:
                task.cancel()
            found = await asyncio.gather(*sending, return_exceptions=True)
            assert [d.offset for d in found if isinstance(d, sc.Delivery)] == [1, 3, 5, 7, 9]

    asyncio.run(main())
    assert values_of(topic) == [b"%d" % n for n in range(10)]


def test_an_await_that_waits_for_room_does_not_hold_up_the_loop_and_ends_in_time(
    store: sc.Store, slow_topic: sc.Topic, failing: FailingTopic
) -> None:
    failing.errors = [full_disk() for _ in range(10_000)]

    async def main() -> None:
        producer = store.producer(linger_ms=0, batch_bytes=10_000, buffer_bytes=70_000, max_block_ms=400)
        sending = [asyncio.ensure_future(producer.send_async("slow", bytes(1000))) for _ in range(200)]
        answers = asyncio.gather(*sending, return_exceptions=True)
        turns = 0
        while not any(task.done() for task in sending):
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 3
        failing.errors.clear()
        found = await answers
        full = [one for one in found if isinstance(one, sc.BufferFullError)]
        there = [one for one in found if isinstance(one, sc.Delivery)]
        assert full
        assert there
        assert len(full) + len(there) == 200
        await asyncio.get_running_loop().run_in_executor(None, producer.close)
        assert len(values_of(slow_topic)) == len(there)

    asyncio.run(main())


def test_a_loop_that_is_closed_before_the_answer_harms_nothing(store: sc.Store, topic: sc.Topic) -> None:
    producer = store.producer(linger_ms=FOREVER_MS)

    async def main() -> None:
        task = asyncio.ensure_future(producer.send_async("clicks", b"x"))
        await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(main())
    producer.close()
    assert values_of(topic) == [b"x"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "streamcore-producer":
            thread.join(10)
            assert not thread.is_alive()
