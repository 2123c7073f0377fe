"""Whatever is done in whatever order: each record is readable once, at every moment, by everybody, as a model says."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import streamcore as sc
from streamcore import producer_ids
from streamcore.tier import keeping, restore

from .senders import Sender

EXAMPLES = int(os.environ.get("STREAMCORE_TIER_EXAMPLES", "25"))


class TieredTopic(RuleBasedStateMachine):
    """A topic in a store with a tier, a reader beside it, and what must be in the log: {offset: value}."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="streamcore-model-"))
        self.store: sc.Store | None = None
        self.reader: sc.Store | None = None

    @initialize()
    def begin(self) -> None:
        self.path = self.folder / "store"
        self.store = sc.open(self.path, maintenance=False, tier=f"file://{self.folder}/tier")
        self.topic = self.store.create_topic("clicks", tier=True)
        self.log: dict[int, bytes] = {}
        self.gone: dict[int, bytes] = {}
        self.next = self.sealed = self.start = self.restores = 0
        self.begin_to_send()
        self.reader = sc.open(self.path, "r")

    def teardown(self) -> None:
        for store in (self.store, self.reader):
            if store is not None:
                store.close()
        shutil.rmtree(self.folder)

    @rule(count=st.integers(1, 30))
    def append(self, count: int) -> None:
        values = [b"%d" % (self.next + n) for n in range(count)]
        self.topic.append(values)
        self.log.update(zip(range(self.next, self.next + count), values, strict=True))
        self.next += count

    def begin_to_send(self) -> None:
        """With a new id, and the last five appends: (sequence, offset, count) each."""
        self.sender = Sender(producer_ids.next_producer_id(self.topic.store.catalog))
        self.sent: list[tuple[int, int, int]] = []
        self.sequence = 0

    @rule(count=st.integers(1, 9))
    def send(self, count: int) -> None:
        values = [b"%d" % (self.next + n) for n in range(count)]
        assert self.sender.send(self.topic, self.sequence, values) == (self.next, self.next + count)
        self.sent = [*self.sent[-4:], (self.sequence, self.next, count)]
        self.log.update(zip(range(self.next, self.next + count), values, strict=True))
        self.next += count
        self.sequence += count

    @rule(count=st.integers(1, 5))
    def abort(self, count: int) -> None:
        transaction = self.topic.store.transaction("t")
        transaction.append("clicks", [b"aborted"] * count)
        transaction.abort()
        self.next += count + 1

    @rule()
    def roll(self) -> None:
        self.topic.roll()
        self.sealed = self.next

    @rule()
    def offload(self) -> None:
        self.topic.offload()

    @rule()
    def let_go(self) -> None:
        self.topic.alter(local_retention_bytes=1)
        keeping.apply_local_retention(*self.parts())
        self.topic.alter(local_retention_bytes=None)

    @rule(part=st.floats(0, 1))
    def delete(self, part: float) -> None:
        before = int(part * self.next)
        self.topic.delete_records(before)
        self.begin_at(max(self.start, before))

    @rule(megabytes=st.sampled_from([1, 3000]))
    def retain(self, megabytes: int) -> None:
        self.topic.alter(retention_bytes=megabytes)
        keeping.apply_retention(*self.parts())
        self.topic.alter(retention_bytes=None)
        self.begin_at(self.topic.partitions[0].start_offset)

    def begin_at(self, offset: int) -> None:
        assert self.start <= offset <= self.next
        self.start = offset
        self.gone |= {number: value for number, value in self.log.items() if number < offset}
        self.log = {number: value for number, value in self.log.items() if number >= offset}

    @rule()
    def collect(self) -> None:
        assert self.topic.store.tier is not None
        self.topic.store.tier.gc(grace_s=0)

    @rule()
    def consolidate(self) -> None:
        self.topic.consolidate()

    @rule()
    def reopen(self) -> None:
        assert self.store is not None
        self.store.close()
        self.store = sc.open(self.path, maintenance=False)
        self.topic = self.store.topic("clicks")

    @rule()
    def lose_the_machine(self) -> None:
        assert self.store is not None
        assert self.reader is not None
        self.topic.roll()
        self.topic.offload()
        if self.topic.cold is None or self.topic.cold.fresh(0) is None:
            return  # nothing was ever there
        assert self.store.tier is not None
        self.store.tier.back_up()
        self.store.close()
        self.reader.close()
        self.restores += 1
        self.path = self.folder / f"store-{self.restores}"
        sc.restore(f"file://{self.folder}/tier", self.path)
        self.store = sc.open(self.path, maintenance=False)
        self.topic = self.store.topic("clicks")
        self.reader = sc.open(self.path, "r")
        for sequence, first, count in self.sent:
            if first >= self.start:  # what is in the log is not taken a second time
                assert self.sender.send(self.topic, sequence, [b"sent again"] * count) == (first, first + count)
        self.begin_to_send()

    def parts(self) -> Any:
        return self.topic, self.topic.store.tier, self.topic.cold

    @invariant()
    def everybody_reads_what_the_model_says(self) -> None:
        if self.store is None or self.reader is None:
            return
        wanted = sorted(self.log.items())
        topic = self.topic
        assert read(topic) == wanted
        assert topic.scan(columns=["offset"]).to_arrow().column(0).to_pylist() == sorted(self.log)
        assert topic.scan().count() == len(wanted)
        [part] = topic.partitions
        assert (part.start_offset, part.end_offset) == (self.start, self.next)
        self.check_reader(wanted)

    def check_reader(self, wanted: list[tuple[int, bytes]]) -> None:
        """Another process may see for a fifth of a second what was deleted, and nothing else that is wrong.

        Or it learns of the deletion in the middle of a scan that was to begin with what is deleted.
        """
        assert self.reader is not None
        end = time.monotonic() + 10
        while (found := read_beside(self.reader.topic("clicks"), self.start)) != wanted:
            if found is not None:
                kept = len(found) - len(wanted)
                assert found[kept:] == wanted
                assert all(self.gone[offset] == value for offset, value in found[:kept])
            assert time.monotonic() < end
            time.sleep(0.02)


def read(topic: sc.Topic) -> list[tuple[int, bytes]]:
    """All of it."""
    return [(record.offset, record.value) for record in topic.scan()]


def read_beside(topic: sc.Topic, start: int) -> list[tuple[int, bytes]] | None:
    """All of it; None where what the scan begins with is deleted."""
    try:
        return read(topic)
    except sc.OffsetOutOfRangeError as error:
        if error.earliest != start:
            raise
        return None


def test_a_tiered_topic_is_what_a_model_says() -> None:
    run_state_machine_as_test(
        TieredTopic, settings=settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None)
    )


def test_the_model_finds_a_restored_store_that_knows_no_producers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "_producers_of", lambda objects, row, manifest: b"")
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(
            TieredTopic,
            settings=settings(max_examples=300, stateful_step_count=30, derandomize=True, phases=[Phase.generate]),
        )


def test_the_model_finds_local_data_that_goes_before_the_tier_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_verified_end", lambda topic, tier, log, partition, wanted: wanted)
    with pytest.raises((AssertionError, BaseExceptionGroup, sc.StreamcoreError)):
        run_state_machine_as_test(
            TieredTopic,
            settings=settings(max_examples=300, stateful_step_count=30, derandomize=True, phases=[Phase.generate]),
        )
