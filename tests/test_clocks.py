"""Wall clocks that are set back or ahead: nothing is lost by it, and nothing stays for ever."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest

import streamcore as sc
from streamcore import groups
from streamcore.retention import apply_retention
from streamcore.transactions import finish_transactions

DAY_S = 24 * 3600


class Clock:
    """The wall clock of this process."""

    def __init__(self) -> None:
        self._real = time.time_ns
        self.ahead_s = 0.0

    def __call__(self) -> int:
        return self._real() + int(self.ahead_s * 1e9)

    def now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self() / 1e9, datetime.UTC)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "time_ns", made)
    return made


def values_of(topic: sc.Topic, **bounds: Any) -> list[bytes | None]:
    return [record.value for record in topic.scan(**bounds)]


def test_records_keep_their_order_and_are_found_by_their_own_time(
    store: sc.Store, topic: sc.Topic, clock: Clock
) -> None:
    noted = []
    for n, ahead_s in enumerate([0, -DAY_S, DAY_S, -3600]):
        clock.ahead_s = ahead_s
        noted.append(clock.now() - datetime.timedelta(seconds=60))
        topic.append([b"%d" % n])
    assert values_of(topic) == [b"0", b"1", b"2", b"3"]
    for moment, wanted in zip(noted, (b"02", b"0123", b"2", b"023"), strict=True):
        assert values_of(topic, start=moment) == [wanted[i : i + 1] for i in range(len(wanted))]
    with store.consumer("clicks") as consumer:
        consumer.seek("clicks", 0, noted[2])
        assert [record.value for record in consumer.poll(0)] == [b"2", b"3"]  # the first one not older, and all behind


def test_retention_keeps_all_while_the_clock_is_behind_and_goes_on_when_it_is_right(
    store: sc.Store, clock: Clock
) -> None:
    topic = store.create_topic("t", retention_ms=3600 * 1000)
    for n in range(3):
        topic.append([b"%d" % n])
        topic.roll()
    clock.ahead_s = -400 * DAY_S
    report = apply_retention(topic)
    assert (report.segments, report.from_the_future) == (0, 3)
    assert topic.scan().count() == 3
    topic.append([b"written in the past"])
    clock.ahead_s = 1800
    assert apply_retention(topic).segments == 0
    clock.ahead_s = 2 * 3600
    topic.append([b"new"])
    assert apply_retention(topic).segments == 3  # the fourth has the new record
    assert values_of(topic) == [b"written in the past", b"new"]


@pytest.mark.parametrize("ahead_s", [-DAY_S, -1.0])
def test_a_transaction_goes_on_while_the_clock_goes_back_and_ends_by_its_timeout(
    store: sc.Store, topic: sc.Topic, clock: Clock, ahead_s: float
) -> None:
    with store.transaction("etl", timeout_ms=60_000) as transaction:
        transaction.append(topic, [b"1"])
        clock.ahead_s = ahead_s
        assert finish_transactions(store) == 0
        transaction.append(topic, [b"2"])
    left = store.transaction("etl", timeout_ms=60_000)
    left.append(topic, [b"gone"])
    clock.ahead_s -= DAY_S
    assert finish_transactions(store) == 0  # which counts from now
    clock.ahead_s += 61
    assert finish_transactions(store) == 1
    with pytest.raises(sc.FencedError, match="timeout has passed"):
        left.commit()
    with store.transaction("etl") as transaction:
        transaction.append(topic, [b"3"])
    assert values_of(topic) == [b"1", b"2", b"3"]


def test_a_clock_set_ahead_ends_an_open_transaction_with_an_error_and_loses_nothing_else(
    store: sc.Store, topic: sc.Topic, clock: Clock
) -> None:
    topic.append([b"x"] * 4)
    out = store.create_topic("out")
    with store.consumer("clicks", group="g", start="earliest") as consumer:
        with pytest.raises(sc.FencedError, match="its timeout has passed"):
            with store.transaction("etl", timeout_ms=1000) as transaction:
                transaction.append(out, [record.value for record in consumer.poll(0)])
                transaction.commit_offsets(consumer)
                clock.ahead_s = DAY_S
                assert finish_transactions(store) == 1
        assert (values_of(out), store.group("g").offsets()) == ([], {})
        consumer.seek("clicks", 0, "earliest")
        with store.transaction("etl", timeout_ms=1000) as transaction:
            transaction.append(out, [record.value for record in consumer.poll(0)])
            transaction.commit_offsets(consumer)
    assert (values_of(out), store.group("g").offsets()) == ([b"x"] * 4, {("clicks", 0): 4})


def test_offsets_do_not_expire_because_the_clock_went_back(store: sc.Store, topic: sc.Topic, clock: Clock) -> None:
    topic.append([b"x"])
    with store.consumer("clicks", group="g") as consumer:
        consumer.poll(0)
        consumer.commit()
    for ahead_s in (-30 * DAY_S, 0, DAY_S):
        clock.ahead_s = ahead_s
        assert groups.expire_offsets(store.catalog, 2 * DAY_S * 1000) == 0
        assert store.group("g").offsets() == {("clicks", 0): 1}
    clock.ahead_s = 3 * DAY_S
    assert groups.expire_offsets(store.catalog, 2 * DAY_S * 1000) == 1


def test_compaction_keeps_tombstones_and_the_latest_by_offset_whatever_the_clock_says(
    store: sc.Store, clock: Clock
) -> None:
    topic = store.create_topic("t", cleanup="compact", delete_retention_ms=3600 * 1000)
    for n, ahead_s in enumerate([0, -DAY_S, -2 * DAY_S]):
        clock.ahead_s = ahead_s
        topic.append([b"%d" % n, None if n else b"x"], keys=[b"kept", b"deleted"])
    topic.roll()
    clock.ahead_s = -10 * DAY_S
    topic.compact()
    assert [(record.key, record.value) for record in topic.scan()] == [(b"kept", b"2"), (b"deleted", None)]
    assert topic.table()["key"].to_pylist() == [b"kept"]
