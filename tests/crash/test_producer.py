"""Producers whose process is killed, whose disk is full, or that share a topic with other processes."""

from __future__ import annotations

import collections
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc

from .forkserver import Channel, ForkServer
from .mounts import Mount
from .test_full_disk import full

Figures = collections.Counter[str]
TOPIC = "sent"
PARTITIONS = 3
KILLS = int(os.environ.get("STREAMCORE_PRODUCER_KILLS", "40"))
_ROUNDS_PER_STORE = 5


def send_until_killed(
    channel: Channel,
    store_path: str,
    durability: str,
    sender: str,
    seed: int,
    early: bool = False,
    count: int = 1 << 30,
) -> None:
    """Sends numbered records; says ACK with partition, offset and value of each batch's records when they are told.

    early: a bug: says so before the record is sent.
    """
    chance = random.Random(seed)
    waiting: list[str] = []
    with sc.open(store_path) as store:
        producer = store.producer(
            linger_ms=chance.choice([0, 1, 5]), batch_bytes=chance.choice([200, 2000]), durability=durability
        )

        def told(value: str) -> Any:
            def tell(error: Exception | None, delivery: sc.Delivery) -> None:
                assert error is None
                waiting.append(f"{delivery.partition}:{delivery.offset}:{value}")
                if len(waiting) >= 10:
                    channel.send("ACK", *waiting)
                    waiting.clear()

            return tell

        for n in range(count):
            if channel.is_told_to_stop():
                break
            value = f"{sender}-{n}"
            if early and n % 10 == 9:
                channel.send("ACK", f"0:{n}:{value}")
            producer.send(TOPIC, value.encode(), key=b"%d" % (n % 7), on_delivery=None if early else told(value))
            if early and n == 99:
                channel.wait_to_be_told()
        producer.flush()
        channel.send("ACK", *waiting)


def check_acknowledged(store_path: Path, acknowledged: list[tuple[int, int, str]]) -> int:
    """Acknowledged records are where they were said to be; each sender's are in order, once. Returns their number."""
    with sc.open(store_path) as store:
        topic = store.topic(TOPIC)
        assert store.verify() == []
        at = {(r.partition, r.offset): r.value.decode() for p in range(PARTITIONS) for r in topic.scan(p)}
        for partition, offset, value in acknowledged:
            assert at.get((partition, offset)) == value, (partition, offset, value)
        last: dict[tuple[int, str], int] = {}
        for (partition, _), value in at.items():
            sender, n = value.split("-")
            assert int(n) > last.get((partition, sender), -1), "out of order, or twice"
            last[partition, sender] = int(n)
        topic.append([b"after%d-0" % len(at)], partition=0)
    return len(at)


def acknowledged_of(lines: list[list[str]]) -> list[tuple[int, int, str]]:
    parts = [word.split(":") for line in lines for word in line if word]
    return [(int(partition), int(offset), value) for partition, offset, value in parts]


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["os", "disk"])
def test_what_a_killed_producer_was_told_is_in_the_log(
    durability: str, tmp_path: Path, children: ForkServer, figures: Figures
) -> None:
    chance = random.Random(durability)
    acknowledged: list[tuple[int, int, str]] = []
    for kill in range(KILLS // 2):
        store_path = tmp_path / f"store-{kill // _ROUNDS_PER_STORE}"
        if kill % _ROUNDS_PER_STORE == 0:
            acknowledged = []
            with sc.open(store_path) as store:
                store.create_topic(TOPIC, partitions=PARTITIONS)
        child = children.start(
            send_until_killed, store_path=str(store_path), durability=durability, sender=f"s{kill}", seed=kill
        )
        wanted = chance.randint(0, 12)
        child.read_until(lambda child=child, wanted=wanted: len(child.said("ACK")) >= wanted)
        child.drain_for(chance.uniform(0, 0.01))
        child.kill()
        assert child.is_killed(), child.failure()
        acknowledged += acknowledged_of(child.said("ACK"))
        figures["kills of producers"] += 1
        check_acknowledged(store_path, acknowledged)
    assert acknowledged


def test_control_an_acknowledgement_before_the_append_is_caught(tmp_path: Path, children: ForkServer) -> None:
    store_path = tmp_path / "store"
    with sc.open(store_path) as store:
        store.create_topic(TOPIC, partitions=PARTITIONS)
    child = children.start(
        send_until_killed, store_path=str(store_path), durability="os", sender="s", seed=1, early=True
    )
    child.read_until(lambda: len(child.said("ACK")) >= 10)
    child.kill()
    with pytest.raises(AssertionError):
        check_acknowledged(store_path, acknowledged_of(child.said("ACK")))


def test_producers_of_several_processes_share_a_topic_and_each_keeps_its_order(
    tmp_path: Path, children: ForkServer
) -> None:
    store_path = tmp_path / "store"
    with sc.open(store_path) as store:
        store.create_topic(TOPIC, partitions=PARTITIONS)
    running = [
        children.start(
            send_until_killed, store_path=str(store_path), durability="os", sender=f"p{n}", seed=n, count=3000
        )
        for n in range(3)
    ]
    for child in running:
        assert child.wait() == 0, child.failure()
    acknowledged = [one for child in running for one in acknowledged_of(child.said("ACK"))]
    assert len(acknowledged) == 9000
    assert check_acknowledged(store_path, acknowledged) == 9000


# ---- a full disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["os", "disk"])
def test_a_disk_that_is_full_for_a_while_delays_records_and_loses_none(durability: str, mount: Mount) -> None:
    sent = 0
    told: list[tuple[Exception | None, sc.Delivery]] = []
    with sc.open(mount.path / "store", durability=durability) as store:
        topic = store.create_topic(TOPIC)
        producer = store.producer(linger_ms=1, batch_bytes=20_000, buffer_bytes=300_000)
        with full(mount, left=1 << 20):
            stuck = False
            while not stuck:
                try:
                    producer.send(
                        TOPIC, b"%8d" % sent + bytes(1500), on_delivery=lambda *a: told.append(a), block=False
                    )
                    sent += 1
                    assert sent < 20_000, "the disk is never full"
                except sc.BufferFullError:
                    stuck = is_stuck(producer)
            assert len(told) < sent
            assert all(error is None for error, _ in told)
        producer.close()
        assert [int(record.value[:8]) for record in topic.scan()] == list(range(sent))
        assert [(error, delivery.offset) for error, delivery in told] == [(None, n) for n in range(sent)]
        assert store.verify() == []


def is_stuck(producer: sc.Producer) -> bool:
    """Whether it is the disk that is full, and not only the buffer: no batch comes through for a while."""
    try:
        producer.flush(timeout_ms=1000)
    except TimeoutError:
        return True
    return False


def test_a_disk_that_stays_full_gives_up_in_time_and_says_what_was_lost(mount: Mount) -> None:
    with sc.open(mount.path / "store") as store:
        topic = store.create_topic(TOPIC)
        with full(mount, left=1 << 20):
            producer = store.producer(delivery_timeout_ms=100)
            with pytest.raises(sc.ProducerError) as raised:
                for n in range(6000):
                    producer.send(TOPIC, b"%8d" % n + bytes(1500))
                producer.flush()
            assert isinstance(raised.value.__cause__, sc.StorageError)
            assert raised.value.__cause__.errno == errno.ENOSPC
            assert [(name, partition) for name, partition, _ in raised.value.lost] == [(TOPIC, 0)]
            lost = raised.value.lost[0].records
            try:
                producer.close()
            except sc.ProducerError as error:
                lost += sum(one.records for one in error.lost)
        found = [int(record.value[:8]) for record in topic.scan()]
        assert lost > 0
        assert found == sorted(set(found))
        with store.producer() as producer:
            producer.send(TOPIC, b"%8d" % 9999)
        assert topic.scan().count() == len(found) + 1
        assert store.verify() == []
