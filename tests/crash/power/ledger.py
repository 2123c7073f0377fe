"""What a trace's notes have promised up to some moment: the logs, the transactions and the catalog, as they may be."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

Offsets = dict[tuple[str, str, int], int]  # group, topic, partition
Starts = dict[tuple[str, int], int]  # topic, partition


@dataclasses.dataclass(eq=False)
class Part:
    """The records of one call in one partition; `first` is known when the call has returned."""

    call: int
    count: int
    transaction: Transaction | None
    first: int | None = None

    @property
    def end(self) -> int:
        """The offset behind it."""
        assert self.first is not None
        return self.first + self.count


@dataclasses.dataclass(eq=False)
class Transaction:
    """`state`: open, committing, committed, aborting, aborted, or torn: a loss of power left a part of it, which only a
    transaction that was not durable allows. `change`: of the catalog, by which it is decided."""

    number: int
    durable: bool
    state: str = "open"
    parts: list[tuple[Log, Part]] = dataclasses.field(default_factory=list)
    change: int | None = None


@dataclasses.dataclass(eq=False)
class Log:
    """A partition: what lies where, what is on its way, in order, and what must be there."""

    placed: list[Part] = dataclasses.field(default_factory=list)
    coming: list[Part] = dataclasses.field(default_factory=list)
    durable_end: int = 0
    start: int = 0
    start_max: int = 0
    rewritten: bool = False
    compacted: bool = False

    @property
    def known_end(self) -> int:
        """Behind the last record that is known."""
        return self.placed[-1].end if self.placed else 0

    def settle(self, present: Callable[[Part], int | None], start: int) -> None:
        """What was found is there to stay."""
        for part in self.placed + self.coming:
            part.first = present(part)
        self.placed = sorted(
            (part for part in self.placed + self.coming if part.first is not None), key=lambda part: part.first or 0
        )
        self.coming = []
        self.durable_end = self.known_end
        self.start = self.start_max = start

    def place(self, part: Part, first: int) -> None:
        """A part's offsets are known."""
        part.first = first
        self.placed.append(part)
        if len(self.placed) > 1 and self.placed[-2].end > first:
            self.placed.sort(key=lambda known: known.first or 0)


@dataclasses.dataclass
class TopicFacts:
    """A topic as the catalog has it. `life` tells topics of one name apart."""

    life: int
    partitions: int
    retention_ms: int


@dataclasses.dataclass
class Facts:
    """What the catalog holds."""

    topics: dict[str, TopicFacts] = dataclasses.field(default_factory=dict)
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    offsets: Offsets = dataclasses.field(default_factory=dict)

    def seen(self) -> tuple[Any, ...]:
        """As it is found in a store."""
        topics = {name: (facts.partitions, facts.retention_ms) for name, facts in self.topics.items()}
        return topics, self.settings, self.offsets


class Ledger:
    """Takes notes one by one. At any moment it says what a store may hold after a loss of power then."""

    def __init__(self) -> None:
        self.logs: dict[tuple[str, int, int], Log] = {}  # topic, its life, partition
        self.transactions: dict[int, Transaction] = {}
        self.facts: list[Facts] = [Facts()]
        self.durable_facts = 0  # this one or a later one is in the catalog
        self.opened = False
        self.notes = 0
        self.brought_back: dict[tuple[str, str, int], set[int]] = {}  # group, topic, partition: before and after
        self.losses = 0  # how often the power was lost, and the store used again
        self.doing = "nothing"
        self._begun: dict[int, dict[str, Any]] = {}
        self._appended: set[Log] = set()  # in this session
        self._lives = 0

    def take(self, text: bytes) -> None:
        """The next note."""
        self.notes += 1
        note = json.loads(text)
        number = note["n"]
        if "begin" in note:
            self.doing = note["begin"]
            self._begun[number] = note
            getattr(self, "_begin_" + note["begin"].replace(" ", "_"), self._nothing)(note)
        elif "delivered" in note:
            self._deliver(self._begun[number], *note["delivered"])
        else:
            self.doing = "nothing"
            begun = self._begun.pop(number)
            getattr(self, "_end_" + note["end"].replace(" ", "_"), self._nothing)(begun, note)

    def _nothing(self, *notes: dict[str, Any]) -> None:
        pass

    def settle(self, number: int, present: Callable[[tuple[str, int], Part], int | None], starts: Starts) -> None:
        """After the loss of power what was found is what there is, and it is on the drive.

        number: of the facts that the catalog has. present(topic and partition, part): where the records of a part were
        found; None: they were not. starts: of the logs.
        """
        self.losses += 1
        facts = self.facts[number]
        self.facts, self.durable_facts = [facts], 0
        self._begun.clear()
        self._appended.clear()
        self.doing = "nothing"
        kept = {}
        for (topic, life, partition), log in self.logs.items():
            if topic in facts.topics and facts.topics[topic].life == life:
                kept[topic, life, partition] = log
                log.settle(functools.partial(present, (topic, partition)), starts[topic, partition])
        self.logs = kept

    # ---- sessions ----

    def _end_open(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        self.opened = True

    def _begin_ended(self, note: dict[str, Any]) -> None:
        self.doing = "nothing"
        self._begun.clear()
        self._appended.clear()

    def _end_close(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        self._end_flush(begun, note)
        self.durable_facts = len(self.facts) - 1
        for transaction in self.transactions.values():
            if transaction.state == "open":
                transaction.state = "aborted"
            if transaction.state == "committed":
                transaction.durable = all(
                    part.first is not None and log.durable_end >= part.end for log, part in transaction.parts
                )

    def _end_flush(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        """What was appended through this store, and with it all that lies before."""
        for log in self._appended:
            log.durable_end = max(log.durable_end, log.known_end)

    # ---- records ----

    def _logs_of(self, topic: str) -> list[Log]:
        facts = self.facts[-1].topics[topic]
        return [self._log(topic, facts.life, partition) for partition in range(facts.partitions)]

    def _log(self, topic: str, life: int, partition: int) -> Log:
        return self.logs.setdefault((topic, life, partition), Log())

    def _begin_append(self, note: dict[str, Any]) -> None:
        transaction = self.transactions.get(note.get("transaction", 0))
        logs = self._logs_of(note["topic"])
        note["parts of"] = parts = {}
        for partition, call, count in note["parts"]:
            part = Part(call, count, transaction)
            logs[partition].coming.append(part)
            self._appended.add(logs[partition])
            parts[call] = (logs[partition], part)
            if transaction is not None:
                transaction.parts.append((logs[partition], part))

    _begin_send = _begin_append

    def _end_append(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        logs = self._logs_of(begun["topic"])
        known = {partition: call for partition, call, _ in begun["parts"]}
        for partition, first, end in note["spans"]:
            log, part = begun["parts of"][known[partition]]
            assert log is logs[partition]
            assert end - first == part.count
            self._deliver(begun, partition, part.call, first)

    def _deliver(self, begun: dict[str, Any], partition: int, call: int, first: int) -> None:
        log, part = begun["parts of"][call]
        log.coming.remove(part)
        log.place(part, first)
        if begun["durable"]:
            log.durable_end = max(log.durable_end, part.end)

    def _end_send(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        """Where nobody was told of single records, they are the last ones of their partitions."""
        for partition, end in note["ends"]:
            log = self._logs_of(begun["topic"])[partition]
            untold = [part for known, part in begun["parts of"].values() if known is log and part.first is None]
            for number, part in enumerate(untold):
                self._deliver(begun, partition, part.call, end - len(untold) + number)

    # ---- transactions ----

    def _begin_transaction(self, note: dict[str, Any]) -> None:
        self.transactions[note["n"]] = Transaction(note["n"], note["durable"])

    def _begin_commit(self, note: dict[str, Any]) -> None:
        transaction = self.transactions[note["transaction"]]
        transaction.state = "committing"
        facts = self._change()
        transaction.change = len(self.facts) - 1
        if note["offsets"] is not None:
            self._put_offsets(facts, note["offsets"])

    def _end_commit(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        transaction = self.transactions[begun["transaction"]]
        transaction.state = "committed"
        if transaction.durable:
            self.durable_facts = len(self.facts) - 1
            for log, _ in transaction.parts:
                log.durable_end = max(log.durable_end, log.known_end)

    def _begin_abort(self, note: dict[str, Any]) -> None:
        self.transactions[note["transaction"]].state = "aborting"

    def _end_abort(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        self.transactions[begun["transaction"]].state = "aborted"

    # ---- what goes and what is rewritten ----

    def _begin_delete_records(self, note: dict[str, Any]) -> None:
        logs = self._logs_of(note["topic"])
        for partition, before in note["bounds"]:
            logs[partition].start_max = max(logs[partition].start_max, before)

    _begin_retain = _begin_delete_records

    def _end_delete_records(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        logs = self._logs_of(begun["topic"])
        for partition, before in begun["bounds"]:
            self._deleted(logs[partition], before)

    def _end_retain(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        logs = self._logs_of(begun["topic"])
        for partition, start in note["starts"]:
            if start > logs[partition].start:
                self._deleted(logs[partition], start)
            logs[partition].start_max = logs[partition].start

    def _deleted(self, log: Log, start: int) -> None:
        if start > log.start:
            log.start = start
            log.durable_end = max(log.durable_end, log.known_end)

    def _end_roll(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        for log in self._logs_of(begun["topic"]):
            log.durable_end = max(log.durable_end, log.known_end)

    def _begin_compact(self, note: dict[str, Any]) -> None:
        for log in self._logs_of(note["topic"]):
            log.rewritten = log.compacted = True

    def _begin_consolidate(self, note: dict[str, Any]) -> None:
        for log in self._logs_of(note["topic"]):
            log.rewritten = True

    # ---- the catalog ----

    def _change(self) -> Facts:
        self.facts.append(copy.deepcopy(self.facts[-1]))
        return self.facts[-1]

    def _durable_change(self, *notes: dict[str, Any]) -> None:
        self.durable_facts = len(self.facts) - 1

    def _begin_create(self, note: dict[str, Any]) -> None:
        self._lives += 1
        self._change().topics[note["topic"]] = TopicFacts(self._lives, note["partitions"], note["retention_ms"])

    def _begin_alter(self, note: dict[str, Any]) -> None:
        self._change().topics[note["topic"]].retention_ms = note["retention_ms"]

    def _begin_widen(self, note: dict[str, Any]) -> None:
        self._change().topics[note["topic"]].partitions = note["partitions"]

    def _begin_delete(self, note: dict[str, Any]) -> None:
        facts = self._change()
        del facts.topics[note["topic"]]
        facts.offsets = {key: offset for key, offset in facts.offsets.items() if key[1] != note["topic"]}

    def _begin_setting(self, note: dict[str, Any]) -> None:
        self._change().settings[note["key"]] = note["value"]

    _end_create = _end_alter = _end_widen = _end_delete = _end_setting = _durable_change

    def _begin_commit_offsets(self, note: dict[str, Any]) -> None:
        self._put_offsets(self._change(), note)

    def _end_commit_offsets(self, begun: dict[str, Any], note: dict[str, Any]) -> None:
        if begun["durable"]:
            self._durable_change()

    @staticmethod
    def _put_offsets(facts: Facts, given: dict[str, Any]) -> None:
        for partition, offset in given["offsets"]:
            facts.offsets[given["group"], given["topic"], partition] = offset
