"""How confluent-kafka is set where a reply counts, not the rate: latency, groups, transactions and commits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

DEADLINE_S = 30.0
CONSUME_AT_ONCE = 10_000


def prompt_producer(address: str, **settings: object) -> Any:
    """Sends each record at once, and the leader answers when it has it."""
    from confluent_kafka import Producer

    prompt = {"bootstrap.servers": address, "linger.ms": 0, "acks": 1, "socket.nagle.disable": True}
    return Producer({**prompt, **settings})


def produce_and_wait(producer: Any, topic: str, value: bytes) -> None:
    """A synchronous produce: returns when the broker has answered."""
    producer.produce(topic, value)
    if producer.flush(DEADLINE_S):
        raise RuntimeError(f"Kafka gave no answer in {DEADLINE_S} s")


def transactional_producer(address: str, name: str) -> Any:
    from confluent_kafka import Producer

    settings = {"bootstrap.servers": address, "linger.ms": 0, "transactional.id": name, "socket.nagle.disable": True}
    producer = Producer(settings)
    producer.init_transactions(DEADLINE_S)
    return producer


def prompt_reader(address: str, topic: str) -> Any:
    """A consumer without a group's work, at the end of the only partition; records reach it at once."""
    from confluent_kafka import Consumer, TopicPartition

    settings = {
        "bootstrap.servers": address,
        "group.id": "bench",
        "enable.auto.commit": False,
        "fetch.min.bytes": 1,
        "fetch.wait.max.ms": 500,
        "socket.nagle.disable": True,
    }
    consumer = Consumer(settings)
    _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)
    consumer.assign([TopicPartition(topic, 0, end)])
    return consumer


class KafkaMember:
    """A member of a group that has joined, with nothing read: settings for throughput, as in `Broker.consume`."""

    def __init__(self, address: str, topic: str, group: str) -> None:
        from confluent_kafka import Consumer

        self._topic = topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": group,
                "auto.offset.reset": "latest",
                "enable.auto.commit": False,
                "heartbeat.interval.ms": 100,  # a member hears with a heartbeat that another one has joined
                "check.crcs": False,
                "fetch.wait.max.ms": 10,
                "fetch.message.max.bytes": 16 << 20,
                "queued.max.messages.kbytes": 500_000,
                "queued.min.messages": 10_000_000,
                "fetch.queue.backoff.ms": 1,
            }
        )
        self._consumer.subscribe([topic])

    def settle(self, share: int) -> bool:
        """Works for the group for a moment; True when the member has its share of partitions."""
        self._consumer.consume(1, timeout=0.05)
        return len(self._consumer.assignment()) == share

    def read_once(self) -> int:
        """Reads what its partitions hold, from their start; returns the records."""
        from confluent_kafka import TopicPartition

        mine = self._consumer.assignment()
        wanted = sum(self._consumer.get_watermark_offsets(one, timeout=30)[1] for one in mine)
        self._consumer.assign([TopicPartition(self._topic, one.partition, 0) for one in mine])
        seen = 0
        deadline = time.monotonic() + DEADLINE_S
        while seen < wanted:
            for message in self._consumer.consume(min(CONSUME_AT_ONCE, wanted - seen), timeout=1):
                if message.error():
                    raise RuntimeError(str(message.error()))
                len(message.value() or b"")
                seen += 1
            if time.monotonic() > deadline:
                raise RuntimeError(f"Kafka gave {seen} of {wanted} records in {DEADLINE_S} s")
        return seen

    def close(self) -> None:
        self._consumer.close()


def committer(address: str, topic: str, group: str) -> tuple[Callable[[int], None], Callable[[], None]]:
    """(Commits an offset of the first partition and waits for the answer, closes it.)"""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": address, "group.id": group, "enable.auto.commit": False})
    consumer.subscribe([topic])
    deadline = time.monotonic() + DEADLINE_S
    while not consumer.assignment():
        consumer.poll(0.1)
        if time.monotonic() > deadline:
            raise RuntimeError(f"the group did not form in {DEADLINE_S} s")

    def commit(offset: int) -> None:
        consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)

    return commit, consumer.close
