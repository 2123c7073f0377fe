"""process(): retries, dead letters, order, what is committed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pyarrow as pa
import pytest

import streamcore as sc
from streamcore import dead_letters

Wait = Callable[..., None]
QUICK = sc.Backoff(first_ms=0.1, max_ms=1)
ENDS_MS = 50


def refuse(*bad: bytes) -> tuple[Callable[[sc.Record], None], list[bytes]]:
    """A handler that raises for some values, and what it was called with."""
    calls: list[bytes] = []

    def handle(record: sc.Record) -> None:
        calls.append(record.value)
        if record.value in bad:
            raise ValueError(f"cannot read {record.value!r}")

    return handle, calls


def test_a_record_that_fails_is_retried_then_buried_with_its_story_and_the_rest_goes_on(store: sc.Store) -> None:
    topic = store.create_topic("jobs", partitions=3)
    topic.append([b"a", b"bad", b"c"], keys=[b"1", b"2", b"3"], headers=[None, {"trace": b"7"}, None], timestamps=5,
                 partition=2)  # fmt: skip
    handle, calls = refuse(b"bad")
    with store.consumer("jobs", group="work") as consumer:
        done = consumer.process(handle, retries=2, backoff=QUICK, dead_letter="jobs-dead", timeout_ms=ENDS_MS)
    assert done == sc.Processed(records=2, dead=1, retries=2)
    assert calls == [b"a", b"bad", b"bad", b"bad", b"c"]
    dead = store.topic("jobs-dead")
    assert dead.partition_count == 3
    (record,) = dead.scan()
    assert (record.partition, record.key, record.value, record.timestamp_ms) == (2, b"2", b"bad", 5)
    assert record.headers[0] == ("trace", b"7")
    assert dead_letters.is_dead_letter(record)
    assert dead_letters.described(record) == {
        "error": "ValueError",
        "message": "cannot read b'bad'",
        "topic": "jobs",
        "partition": "2",
        "offset": "1",
        "timestamp": "5",
        "attempts": "3",
        "group": "work",
    }
    assert store.group("work").offsets()["jobs", 2] == 3  # type: ignore[index]


def test_a_handler_that_recovers_is_not_buried(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"a"])
    attempts = 0

    def handle(record: sc.Record) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise OSError("busy")

    with store.consumer("clicks", group="g") as consumer:
        assert consumer.process(handle, backoff=QUICK, dead_letter="dead", timeout_ms=ENDS_MS).retries == 2
    assert [found.name for found in store.topics()] == ["clicks"]


def test_without_a_dead_letter_topic_the_error_comes_out_and_the_record_again(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"a", b"bad", b"c"])
    handle, _ = refuse(b"bad")
    with store.consumer("clicks", group="g") as consumer:
        for _ in range(2):
            with pytest.raises(ValueError, match="cannot read b'bad'"):
                consumer.process(handle, retries=1, backoff=QUICK, timeout_ms=ENDS_MS)
            assert store.group("g").offsets() == {("clicks", 0): 1}
        assert consumer.poll(0)[0].value == b"bad"


@pytest.mark.parametrize("transactional_id", [None, "t"])
def test_a_handler_that_raises_commits_nothing_of_its_record_and_it_comes_again(
    store: sc.Store, topic: sc.Topic, transactional_id: str | None
) -> None:
    topic.append([b"a", b"bad", b"c"])
    handle, _ = refuse(b"bad")
    with store.consumer("clicks", group="g") as consumer:
        for _ in range(2):
            with pytest.raises(ValueError, match="cannot read b'bad'"):
                consumer.process(handle, retries=0, transactional_id=transactional_id, timeout_ms=ENDS_MS)
        done = 0 if transactional_id else 1  # with a transaction what a poll gave is done whole or not at all
        assert store.group("g").offsets() == ({("clicks", 0): 1} if done else {})
        assert [record.value for record in consumer.poll(0)] == [b"a", b"bad", b"c"][done:]


@pytest.mark.parametrize("transactional_id", [None, "t"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a b", "'a b' .* is no name for a topic"),
        ("clicks", "'clicks', which this consumer reads"),
        ("clicks-dead", "'clicks-dead', which this consumer reads"),
        ("typed", "'typed', a typed topic"),
        ("table", "'table', of which compaction would drop"),
    ],
)
def test_a_topic_that_cannot_keep_dead_letters_is_refused_before_anything_is_handled(
    store: sc.Store, topic: sc.Topic, name: str, text: str, transactional_id: str | None
) -> None:
    store.create_topic("typed", schema=pa.schema([("n", pa.int64())]))
    store.create_topic("table", cleanup="compact,delete")
    topic.append([b"bad"])
    handle, _ = refuse(b"bad")
    wanted = "clicks*" if name == "clicks-dead" else "clicks"
    with store.consumer(wanted, group="g", start="earliest") as consumer:
        with pytest.raises(ValueError, match=text):
            consumer.process(handle, retries=0, dead_letter=name, transactional_id=transactional_id)
        assert [record.value for record in consumer.poll(0)] == [b"bad"]
        assert store.group("g").offsets() == {}
    assert [found.name for found in store.topics()] == ["clicks", "table", "typed"]


def test_heartbeats_go_on_during_pauses(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"bad"])
    handle, _ = refuse(b"bad")
    with store.consumer("clicks", group="g", member_timeout_ms=1000) as consumer:
        consumer.poll(0, 1)
        consumer.seek("clicks", 0, 0)
        member = consumer.member_id

        def slow(record: sc.Record) -> None:
            time.sleep(1.2)
            handle(record)

        consumer.process(slow, retries=1, backoff=QUICK, dead_letter="dead", timeout_ms=ENDS_MS)
        assert consumer.member_id == member
    assert store.topic("dead").scan().count() == 1


def test_pauses_grow_and_are_jittered_within_their_bounds() -> None:
    backoff = sc.Backoff(first_ms=10, factor=2, max_ms=100)
    for attempt, longest in [(1, 10), (2, 20), (4, 80), (5, 100), (5000, 100)]:
        pauses = [backoff.pause_ms(attempt) for _ in range(200)]
        assert 0 <= min(pauses) < longest / 4
        assert longest * 3 / 4 < max(pauses) <= longest
    with pytest.raises(ValueError, match="factor"):
        sc.Backoff(factor=0.5)


def test_it_ends_when_told_or_closed_and_commits_what_it_did(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"x"] * 10)
    handled: list[int] = []
    consumer = store.consumer("clicks", group="g")
    done = consumer.process(lambda record: handled.append(record.offset), stop=lambda: len(handled) >= 4)
    assert done.records == 4
    assert store.group("g").offsets() == {("clicks", 0): 4}
    thread = threading.Thread(target=lambda: consumer.process(lambda record: handled.append(record.offset)))
    thread.start()
    deadline = time.monotonic() + 20
    while len(handled) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    consumer.close()
    thread.join(20)
    assert not thread.is_alive()
    assert handled == list(range(10))


def test_records_of_a_typed_topic_are_buried_as_json(store: sc.Store) -> None:
    store.create_topic("typed", schema=pa.schema([("n", pa.int64()), ("s", pa.string())])).append([{"n": 1, "s": "ü"}])

    def handle(record: sc.Record) -> None:
        raise RuntimeError

    with store.consumer("typed") as consumer:
        consumer.process(handle, retries=0, dead_letter="dead", timeout_ms=ENDS_MS)
    (record,) = store.topic("dead").scan()
    assert record.value == '{"n": 1, "s": "ü"}'.encode()
    with pytest.raises(ValueError, match="typed"):
        dead_letters.replay(store, record)


def test_dead_letters_are_replayed_to_where_they_came_from(store: sc.Store) -> None:
    topic = store.create_topic("jobs", partitions=2)
    topic.append([b"bad"], keys=[b"k"], headers=[{"trace": b"7"}], timestamps=9, partition=1)
    handle, _ = refuse(b"bad")
    with store.consumer("jobs") as consumer:
        consumer.process(handle, retries=0, dead_letter="dead", timeout_ms=ENDS_MS)
    (dead,) = store.topic("dead").scan()
    assert dead_letters.replay(store, dead) == "jobs"
    original, again = topic.scan()
    assert (again.partition, again.key, again.value, again.headers) == (1, b"k", b"bad", (("trace", b"7"),))
    assert again.timestamp_ms == original.timestamp_ms
    other = store.create_topic("other")
    dead_letters.replay(store, dead, to="other")
    assert other.scan().count() == 1
    with pytest.raises(ValueError, match="no dead letter"):
        dead_letters.replay(store, original)


def test_wrong_arguments_are_named(store: sc.Store, topic: sc.Topic) -> None:
    with store.consumer("clicks") as consumer:
        for arguments, error, text in [
            ({"handler": 5}, TypeError, "handler is int"),
            ({"handler": print, "retries": -1}, ValueError, "retries is -1"),
            ({"handler": print, "retries": 1.0}, TypeError, "retries is 1.0"),
            ({"handler": print, "transactional_id": "t"}, ValueError, "needs a consumer with a group"),
        ]:
            with pytest.raises(error, match=text):
                consumer.process(**arguments)  # type: ignore[arg-type]


def test_with_a_transaction_dead_letters_and_commits_are_one(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"a", b"bad", b"c"])
    handle, _ = refuse(b"bad")
    with store.consumer("clicks", group="g") as consumer:
        consumer.process(handle, retries=0, dead_letter="dead", transactional_id="t", timeout_ms=ENDS_MS)
    assert [record.value for record in store.topic("dead").scan()] == [b"bad"]
    assert store.group("g").offsets() == {("clicks", 0): 3}
