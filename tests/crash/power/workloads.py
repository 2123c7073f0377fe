"""What is done to a store while it is recorded, with notes of what was begun and what was acknowledged.

A session is a process that opens the store, does some of what its workload does, and closes it or just ends. A note is
a JSON object: {"n": number, "begin": what, ...} and, when the call has returned, {"n": number, "end": what, ...}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa

import streamcore as sc
from streamcore import _core, flusher
from streamcore import append as append_module

from .records import SCHEMA, Shape, columns_of, row_of, table_of

JOURNAL_AREA = 64 << 10
_SEGMENT_BYTES = 64 << 10
Note = Callable[[str], None]


@contextlib.contextmanager
def made_small() -> Iterator[None]:
    """In this process: a journal of 64 KiB, a background that flushes after 20 ms and notes it after 50."""
    small = functools.partial(_core.Journal, area=JOURNAL_AREA)
    with (
        mock.patch.object(_core, "Journal", small),
        mock.patch.object(flusher, "FLUSH_INTERVAL_S", 0.02),
        mock.patch.object(flusher, "NOTE_AFTER_S", 0.05),
    ):
        yield


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is done how often, to topics of one shape."""

    name: str
    weights: dict[str, float]
    shape: Shape = dataclasses.field(default_factory=Shape)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    topics: int = 2
    partitions: int = 2
    rows: int = 8
    sessions: int = 3
    steps: int = 25
    disk: float = 0.3  # how many appends and transactions are durable at once
    tables: float = 0.5  # how many appends go to all partitions, as a table
    real_journal: bool = False
    bug: str = ""  # "appends in halves": what is noted as one append of a partition is two


_APPENDS = {"append": 10.0, "flush": 0.7, "pause": 0.4}
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("append", _APPENDS),
        Workload("append with headers and keys", _APPENDS, Shape(300, keyed=True, headers=True), topics=1),
        Workload("append typed", _APPENDS, Shape(typed=True), topics=1),
        Workload("append zstd", _APPENDS, Shape(400, keyed=True), {"compression": "zstd"}, topics=1),
        Workload("roll", {**_APPENDS, "roll": 0.8}, Shape(1800), topics=1, partitions=1, rows=9, disk=0.15, steps=45),
        Workload("producer", {"send": 8, "append": 2, "flush": 1, "pause": 0.5, "roll": 0.4}, Shape(200, keyed=True)),
        Workload("journal", {"append": 10, "pause": 0.3, "flush": 0.2, "roll": 0.3}, topics=3, partitions=4, disk=0.9,
                 tables=0.8, rows=12, steps=40),
        Workload("the first journal", {"append": 10}, topics=1, partitions=3, disk=1.0, tables=1.0, steps=5, sessions=1,
                 real_journal=True),
        Workload("transactions", {"transaction": 10, "append": 3, "flush": 0.4, "roll": 0.3, "pause": 0.3}, disk=0.6),
        Workload("transactions of a producer", {"sent transaction": 8, "append": 3, "flush": 0.4, "roll": 0.3},
                 disk=0.6, steps=18),
        Workload("copying", {"copy": 8, "append": 5, "commit offsets": 2, "flush": 0.3}, disk=0.6, steps=20),
        Workload("deletion", {"append": 9, "delete records": 2, "retain": 1.5, "roll": 2.5, "flush": 0.5,
                              "transaction": 1}, Shape(600), {"retention_bytes": 100_000}, topics=1, rows=12, steps=40),
        Workload("compaction", {"append": 8, "roll": 3, "compact": 2.5, "transaction": 2, "flush": 0.4,
                                "delete records": 0.3},
                 Shape(300, keyed=True, tombstones=True), {"cleanup": "compact"}, topics=1, steps=40),
        Workload("consolidation", {"append": 10, "roll": 3, "consolidate": 2.5, "transaction": 1.5, "send": 1},
                 Shape(300, keyed=True), {"compression": "none"}, topics=1, steps=40, rows=3),
        Workload("consolidation zstd", {"append": 10, "roll": 3, "consolidate": 2.5, "transaction": 1},
                 Shape(300, keyed=True, headers=True), {"compression": "zstd"}, topics=1, steps=30, rows=3),
        Workload("catalog", {"create": 3, "alter": 2, "widen": 2, "delete": 2, "setting": 3, "commit offsets": 3,
                             "append": 4, "transaction": 1, "flush": 0.3}, topics=1, steps=30, sessions=4),
        Workload("creation", {"create": 4, "append": 4, "transaction": 2}, topics=1, steps=5, sessions=4),
        Workload("everything", {"append": 8, "send": 3, "transaction": 4, "sent transaction": 1, "copy": 2, "roll": 2,
                                "flush": 0.5, "delete records": 1, "retain": 0.5, "consolidate": 1, "create": 0.6,
                                "alter": 0.5, "widen": 0.4, "delete": 0.5, "setting": 0.5, "commit offsets": 1,
                                "pause": 0.3}, Shape(400, keyed=True), topics=2, steps=40),
    )
}  # fmt: skip
WORKLOADS["appends in halves"] = Workload(
    "appends in halves", {"append": 1.0}, topics=1, partitions=1, sessions=1, disk=0.0, bug="appends in halves"
)
SOUND = [workload for workload in WORKLOADS if not WORKLOADS[workload].bug]


@dataclasses.dataclass
class Memory:
    """What a session leaves to the next one of its trace."""

    number: int = 0
    call: int = 0
    topic: int = 0
    topics: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


class Session:
    """One process's doings with the store."""

    def __init__(self, workload: Workload, store_path: Path, seed: str, note: Note, memory: Memory) -> None:
        self.workload = workload
        self.path = store_path
        self.chance = random.Random(seed)
        self.memory = memory
        self._note = note
        self._do: dict[str, Callable[[], None]] = {
            "append": self.append,
            "flush": lambda: self._noted("flush", self.store.flush),
            "pause": lambda: time.sleep(self.chance.choice([0.03, 0.09])),
            "roll": self.roll,
            "send": self.send,
            "transaction": self.transaction,
            "sent transaction": self.sent_transaction,
            "copy": self.copy,
            "commit offsets": self.commit_offsets,
            "delete records": self.delete_records,
            "retain": self.retain,
            "compact": lambda: self._rewrite("compact"),
            "consolidate": lambda: self._rewrite("consolidate"),
            "create": self.create,
            "alter": self.alter,
            "widen": self.widen,
            "delete": self.delete,
            "setting": self.setting,
        }

    # ---- notes ----

    def _begin(self, what: str, **facts: Any) -> int:
        self.memory.number += 1
        self._note(json.dumps({"n": self.memory.number, "begin": what, **facts}))
        return self.memory.number

    def _end(self, number: int, what: str, **facts: Any) -> None:
        self._note(json.dumps({"n": number, "end": what, **facts}))

    def _noted(self, what: str, run: Callable[[], object], **facts: Any) -> None:
        number = self._begin(what, **facts)
        run()
        self._end(number, what)

    # ---- a session ----

    def run(self) -> None:
        """All of it; returns when the process is to end, whether or not the store was closed."""
        chance, workload = self.chance, self.workload
        number = self._begin("open")
        durability: Any = "disk" if chance.random() < 0.3 else "os"
        self.durable = durability == "disk"
        self.store = sc.open(self.path, durability=durability, maintenance=False)
        self._end(number, "open")
        while len(self.memory.topics) < workload.topics:
            self.create()
        names = list(workload.weights)
        for _ in range(chance.randint(workload.steps * 2 // 3, workload.steps)):
            [what] = chance.choices(names, [workload.weights[name] for name in names])
            self._do[what]()
        if chance.random() < 0.65:
            self._noted("close", self.store.close)
        self._begin("ended")  # what was stored through mappings is in the trace before it

    def _topic(self) -> tuple[str, sc.Topic, int]:
        name = self.chance.choice(sorted(self.memory.topics))
        return name, self.store.topic(name), self.memory.topics[name]["partitions"]

    def _is_durable(self) -> bool:
        return self.chance.random() < self.workload.disk

    # ---- records ----

    def _parts(self, partitions: int, *, whole: bool) -> list[list[int]]:
        chosen = range(partitions) if whole else [self.chance.randrange(partitions)]
        parts = []
        for partition in chosen:
            self.memory.call += 1
            parts.append([partition, self.memory.call, self.chance.randint(1, self.workload.rows)])
        return parts

    def _append_parts(self, parts: list[list[int]], append: Callable[..., Any], append_table: Callable[..., Any],
                      **more: Any) -> list[Any]:  # fmt: skip
        shape = self.workload.shape
        if len(parts) == 1 and self.chance.random() < 0.7:
            [[partition, call, count]] = parts
            rows = [row_of(call, row, shape) for row in range(count)]
            if self.workload.bug == "appends in halves" and count > 1:
                first = append(**columns_of(rows[:1]), partition=partition, **more)
                second = append(**columns_of(rows[1:]), partition=partition, **more)
                return [[partition, first[0].first_offset, second[0].end_offset]]
            return list(append(**columns_of(rows), partition=partition, **more))
        rows = [row_of(call, row, shape) for _, call, count in parts for row in range(count)]
        partitions = [partition for partition, _, count in parts for _ in range(count)]
        table = table_of(rows, partitions, shape)
        if len(parts) > 1:
            return list(append_table(table, **more))
        return list(append_table(table.drop_columns("partition"), partition=partitions[0], **more))

    def append(self) -> None:
        name, topic, partitions = self._topic()
        parts = self._parts(partitions, whole=self.chance.random() < self.workload.tables)
        durable = self._is_durable()
        number = self._begin("append", topic=name, parts=parts, durable=durable)
        spans = self._append_parts(parts, topic.append, topic.append_table, durability="disk" if durable else "os")
        self._end(number, "append", spans=spans)

    @staticmethod
    def _ends(topic: sc.Topic) -> list[list[int]]:
        return [[partition.index, partition.end_offset] for partition in topic.partitions]

    def send(self) -> None:
        name, topic, partitions = self._topic()
        durable = self._is_durable()
        shape = self.workload.shape
        with self.store.producer(
            linger_ms=self.chance.choice([0, 5]), durability="disk" if durable else "os"
        ) as sender:
            for _ in range(self.chance.randint(1, 3)):
                parts = []
                for _ in range(self.chance.randint(1, 2 * self.workload.rows)):
                    self.memory.call += 1
                    parts.append([self.chance.randrange(partitions), self.memory.call, 1])
                number = self._begin("send", topic=name, parts=parts, durable=durable)

                def told(call: int, error: Exception | None, at: Any, number: int = number) -> None:
                    assert error is None
                    self._note(json.dumps({"n": number, "delivered": [at.partition, call, at.offset]}))

                asked = self.chance.random() < 0.5
                for partition, call, _ in parts:
                    row = row_of(call, 0, shape)
                    callback = functools.partial(told, call) if asked else None
                    sender.send(name, row.value, row.key, row.time_ms, row.headers, partition, callback)
                sender.flush()
                self._end(number, "send", ends=[] if asked else self._ends(topic))

    # ---- transactions ----

    def transaction(self, offsets: Any = None) -> None:
        durable = self._is_durable()
        name = self.chance.choice(["left", "right"])
        number = self._begin("transaction", durable=durable)
        transaction = self.store.transaction(f"id {name}", durability="disk" if durable else "os")
        self._end(number, "transaction")
        for _ in range(self.chance.randint(1, 3)):
            topic, _, partitions = self._topic()
            parts = self._parts(partitions, whole=self.chance.random() < 0.5)
            append = self._begin("append", topic=topic, parts=parts, durable=False, transaction=number)
            spans = self._append_parts(
                parts, functools.partial(transaction.append, topic), functools.partial(transaction.append_table, topic)
            )
            self._end(append, "append", spans=spans)
        if offsets is not None:
            transaction.commit_offsets(offsets[0])
        if self.chance.random() < 0.25:
            self._noted("abort", transaction.abort, transaction=number)
        elif self.chance.random() < 0.95 or offsets is not None:
            given = None if offsets is None else offsets[1]
            self._noted("commit", transaction.commit, transaction=number, durable=durable, offsets=given)

    def sent_transaction(self) -> None:
        durable = self._is_durable()
        shape = self.workload.shape
        with self.store.producer(
            linger_ms=1, transactional_id="id sent", durability="disk" if durable else "os"
        ) as sender:
            number = self._begin("transaction", durable=durable)
            sender.begin_transaction()
            self._end(number, "transaction")
            name, topic, partitions = self._topic()
            for _ in range(self.chance.randint(1, 2)):
                parts = []
                for _ in range(self.chance.randint(1, self.workload.rows)):
                    self.memory.call += 1
                    parts.append([self.chance.randrange(partitions), self.memory.call, 1])
                sent = self._begin("send", topic=name, parts=parts, durable=False, transaction=number)
                for partition, call, _ in parts:
                    row = row_of(call, 0, shape)
                    sender.send(name, row.value, row.key, row.time_ms, row.headers, partition)
                sender.flush()
                self._end(sent, "send", ends=self._ends(topic))
            if self.chance.random() < 0.25:
                self._noted("abort", sender.abort_transaction, transaction=number)
            else:
                commit = sender.commit_transaction
                self._noted("commit", commit, transaction=number, durable=durable, offsets=None)

    def copy(self) -> None:
        """Reads a topic as a member of a group, and writes with the offsets in one transaction."""
        name, _, partitions = self._topic()
        with self._member(name) as member:
            member.poll(timeout_ms=0, max_records=self.chance.randint(1, 20))
            member.poll(timeout_ms=0, max_records=self.chance.randint(1, 20))
            keys = {(topic, partition) for topic, partition in member.assignment}
            given = member.offsets_to_commit()
            assert len(keys) == partitions == len(given.offsets)
            offsets = sorted([partition, offset] for (_, partition), (offset, _) in given.offsets.items())
            self.transaction(offsets=(member, {"group": "readers", "topic": name, "offsets": offsets}))

    @contextlib.contextmanager
    def _member(self, topic: str) -> Iterator[sc.Consumer]:
        """A member alone. What it commits may have been lost and lie behind the log's end, or below its start."""
        with self.store.consumer(topic, group="readers", start="earliest") as member:
            yield member

    def commit_offsets(self) -> None:
        name, topic, _ = self._topic()
        with self._member(name) as member:
            for partition in member.assignment:
                assert partition.topic == name
            ends = {p.index: p for p in topic.partitions}
            offsets = sorted([p, self.chance.randint(0, ends[p].end_offset)] for p in ends)
            self._noted(
                "commit offsets",
                lambda: member.commit({(name, p): offset for p, offset in offsets}),
                durable=self.durable, group="readers", topic=name, offsets=offsets,
            )  # fmt: skip

    # ---- what goes and what is rewritten ----

    def roll(self) -> None:
        name, topic, _ = self._topic()
        self._noted("roll", topic.roll, topic=name)

    def delete_records(self) -> None:
        name, topic, partitions = self._topic()
        partition = self.chance.randrange(partitions)
        known = topic.partitions[partition]
        low, high = known.start_offset, known.end_offset
        before = high if self.chance.random() < 0.15 else self.chance.randint(low, low + (high - low) // 2)
        number = self._begin("delete records", topic=name, bounds=[[partition, before]])
        topic.delete_records(before, partition)
        self._end(number, "delete records")

    def retain(self) -> None:
        name, topic, _ = self._topic()
        bounds = []
        for partition in topic.partitions:
            segments = topic.segments(partition.index)
            bounds.append([partition.index, segments[-1].end_offset if segments else 0])
        number = self._begin("retain", topic=name, bounds=bounds)
        self.store.maintain(["retention"])
        starts = [[p.index, p.start_offset] for p in topic.partitions]
        self._end(number, "retain", starts=starts)

    def _rewrite(self, how: str) -> None:
        name, topic, _ = self._topic()
        self._noted(how, getattr(topic, how), topic=name)

    # ---- the catalog ----

    def create(self) -> None:
        self.memory.topic += 1
        workload = self.workload
        again = [name for name in "abcd" if name not in self.memory.topics]
        name = self.chance.choice(again) if again else f"topic {self.memory.topic}".replace(" ", "-")
        partitions = workload.partitions if len(self.memory.topics) < workload.topics else self.chance.randint(1, 2)
        settings = {"segment_bytes": _SEGMENT_BYTES, "retention_ms": (1 << 50) + self.memory.topic, **workload.settings}
        number = self._begin("create", topic=name, partitions=partitions, retention_ms=settings["retention_ms"])
        schema = SCHEMA if workload.shape.typed else None
        self.store.create_topic(name, partitions=partitions, schema=schema, **settings)
        self.memory.topics[name] = {"partitions": partitions}
        self._end(number, "create")

    def alter(self) -> None:
        name, topic, _ = self._topic()
        self.memory.topic += 1
        retention_ms = (1 << 50) + self.memory.topic
        run = functools.partial(topic.alter, retention_ms=retention_ms)
        self._noted("alter", run, topic=name, retention_ms=retention_ms)

    def widen(self) -> None:
        name, topic, partitions = self._topic()
        if partitions < 4:
            run = functools.partial(topic.add_partitions, partitions + 1)
            self._noted("widen", run, topic=name, partitions=partitions + 1)
            self.memory.topics[name]["partitions"] = partitions + 1

    def delete(self) -> None:
        name = self.chance.choice(sorted(self.memory.topics))
        if len(self.memory.topics) > 1:
            del self.memory.topics[name]
            self._noted("delete", lambda: self.store.delete_topic(name), topic=name)

    def setting(self) -> None:
        key, value = self.chance.choice("xyz"), f"{self.memory.number}"
        self._noted("setting", lambda: self.store.set_setting(key, value), key=key, value=value)


def run_session(workload: str, store_path: Path, seed: str, note: Note, memory: Memory) -> None:
    """One session, in a process of its own that ends behind it."""
    pa.set_cpu_count(1)
    append_module.BATCH_ROWS = random.Random(seed).choice([5, 1 << 16])  # an append of a table is several batches
    with contextlib.nullcontext() if WORKLOADS[workload].real_journal else made_small():
        Session(WORKLOADS[workload], store_path, seed, note, memory).run()
