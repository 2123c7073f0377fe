"""Producers against a simple model: whatever is sent, flushed, changed and closed, both tell the same."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import strategies as st  # noqa: E402  # needs hypothesis
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule  # noqa: E402

NAMES = st.sampled_from(["plain", "lz4", "typed"])
BYTES = st.none() | st.binary(max_size=12) | st.integers(100, 6000).map(lambda size: bytes([size % 256]) * size)
KEYS = st.none() | st.binary(max_size=3)
HEADERS = st.none() | st.lists(st.tuples(st.text("ab", max_size=2), st.none() | st.binary(max_size=3)), max_size=2)
SCHEMA = pa.schema([("n", pa.int64()), ("b", pa.binary())])
PRODUCERS = 2


@dataclasses.dataclass
class Sent:
    """A record, and where it went if it has an on_delivery."""

    topic: str
    record: tuple[Any, ...]
    partition: int | None
    heard: list[sc.Delivery] | None


class ProducerMachine(RuleBasedStateMachine):
    """Two producers that send to the same topics."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="streamcore-producer-model-"))
        self.store = sc.open(self.folder / "store")
        self.topics = {
            "plain": self.store.create_topic("plain", partitions=3, segment_bytes=1 << 16),
            "lz4": self.store.create_topic("lz4", partitions=2, compression="lz4"),
            "typed": self.store.create_topic("typed", partitions=2, schema=SCHEMA),
        }
        self.sent: list[list[Sent]] = [[] for _ in range(PRODUCERS)]
        self.producers: list[sc.Producer | None] = [None] * PRODUCERS
        self.limit = 0

    def teardown(self) -> None:
        for which in range(PRODUCERS):
            self.close(which)
        self.check_log()
        self.store.close()
        with sc.open(self.folder / "store", mode="r") as store:
            assert store.verify() == []
        shutil.rmtree(self.folder)

    def producer(self, which: int) -> sc.Producer:
        found = self.producers[which]
        if found is None:
            found = self.producers[which] = self.store.producer(
                linger_ms=[0, 3_600_000][which], batch_bytes=[4000, 300][which], buffer_bytes=1 << 16
            )
        return found

    @rule(
        which=st.integers(0, PRODUCERS - 1),
        name=NAMES,
        rows=st.lists(st.tuples(KEYS, BYTES, HEADERS), min_size=1, max_size=12),
        partition=st.none() | st.integers(0, 1),
        time=st.integers(-1000, 1000),
        told=st.booleans(),
    )
    def send(
        self, which: int, name: str, rows: list[tuple[Any, ...]], partition: int | None, time: int, told: bool
    ) -> None:
        for n, (key, data, headers) in enumerate(rows):
            value = None if data is None else {"n": n, "b": data} if name == "typed" else data
            heard: list[sc.Delivery] = []
            self.producer(which).send(name, value, key, time, headers, partition, self.hear(heard) if told else None)
            record = (time, key, value, tuple(headers or ()))
            self.sent[which].append(Sent(name, record, partition, heard if told else None))

    @staticmethod
    def hear(heard: list[sc.Delivery]) -> Callable[[Exception | None, sc.Delivery], None]:
        def told(error: Exception | None, delivery: sc.Delivery) -> None:
            assert error is None
            heard.append(delivery)

        return told

    @rule(which=st.integers(0, PRODUCERS - 1))
    def flush(self, which: int) -> None:
        self.producer(which).flush()
        for one in self.sent[which]:
            assert one.heard is None or len(one.heard) == 1, "on_delivery is called once, before the flush returns"

    @rule(which=st.integers(0, PRODUCERS - 1))
    def close(self, which: int) -> None:
        producer = self.producers[which]
        if producer is not None:
            producer.close()
            self.producers[which] = None

    @rule(more=st.integers(1, 2))
    def add_partitions(self, more: int) -> None:
        topic = self.topics["plain"]
        if topic.partition_count < 8:
            topic.add_partitions(topic.partition_count + more)

    @rule(name=st.sampled_from(["plain", "lz4"]), compression=st.sampled_from(["none", "lz4", "zstd"]))
    def alter(self, name: str, compression: str) -> None:
        self.topics[name].alter(compression=compression)

    @invariant()
    def memory_is_bounded(self) -> None:
        for producer in self.producers:
            assert producer is None or producer.memory() <= 1 << 16

    @rule()
    def check_flushed_log(self) -> None:
        for which in range(PRODUCERS):
            self.flush(which)
        self.check_log()

    def check_log(self) -> None:
        """Each producer's records are in the log once, in the order of each partition, where they were told to be."""
        for name, topic in self.topics.items():
            records = [(r.partition, r.offset, (r.timestamp_ms, r.key, r.value, r.headers)) for r in topic.scan()]
            at = {(partition, offset): record for partition, offset, record in records}
            ours = [one for sent in self.sent for one in sent if one.topic == name]
            assert len(records) == len(ours)
            assert sorted(map(repr, at.values())) == sorted(repr(one.record) for one in ours)
            for sent in self.sent:
                last: dict[int, int] = {}
                for one in sent:
                    for delivery in one.heard or () if one.topic == name else ():
                        assert delivery.offset is not None
                        assert delivery.topic == name
                        assert at[delivery.partition, delivery.offset] == one.record
                        assert one.partition in (None, delivery.partition)
                        assert delivery.offset > last.get(delivery.partition, -1)
                        last[delivery.partition] = delivery.offset


ProducerMachine.TestCase.settings = hypothesis.settings(max_examples=40, stateful_step_count=25)
TestProducers = ProducerMachine.TestCase
