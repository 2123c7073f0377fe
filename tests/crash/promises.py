"""What must hold of a store when the power failed at some moment of `changes`."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

import streamcore as sc

from . import changes
from .block_device import FILE_SYSTEMS, HOWS, CannotMountError, Platter, found_after, recording_of
from .changes import COPIERS, COPY, KEPT, LEFT, PRODUCED, READ, READERS, RIGHT, SOURCE, TABLE
from .forkserver import DEADLINE_S, Channel
from .ledger import Part, expected_rows, same_rows
from .writers import PATHS, append_call, table_of

Figures = collections.Counter[str]
APPENDERS = {
    "append_durably": changes.DISK_PATHS,
    "append_more_durably": changes.MORE_DISK_PATHS,
    "append_over_partitions": changes.MANY_PATHS,
    "append_to_the_system": changes.OS_PATHS,
}


@dataclasses.dataclass
class Change:
    """A change that was begun, and its result when it was acknowledged."""

    what: str
    arguments: dict[str, Any]
    result: dict[str, Any] | None = None

    @property
    def done(self) -> bool:
        return self.result is not None

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


class Story:
    """The changes that were begun and acknowledged up to a moment, by role, in their order."""

    def __init__(self) -> None:
        self.roles: dict[str, list[Change]] = {role: [] for role in changes.ROLES}
        self._open: dict[str, list[Change]] = {}

    def take(self, note: str) -> None:
        """The next note."""
        number, *rest = json.loads(note)
        if len(rest) == 1:
            for change in self._open.pop(number):
                change.result = rest[0]
            return
        role, what, arguments = rest
        roles = arguments["roles"] if role == "*" else [role]
        self._open[number] = [Change(what, arguments) for _ in roles]
        for name, change in zip(roles, self._open[number], strict=True):
            self.roles[name].append(change)

    def of(self, role: str, *whats: str) -> list[Change]:
        """The changes of a role, of some kinds."""
        return [change for change in self.roles[role] if change.what in whats]

    def made(self, role: str) -> dict[str, bool]:
        """The topics that a role has begun to make, and whether it was told that they are there."""
        return {change["name"]: change.done for change in self.of(role, "make")}


class Check:
    """Holds a store against a story."""

    def __init__(self, store: sc.Store, story: Story, figures: Figures) -> None:
        self.store = store
        self.story = story
        self.figures = figures
        self.topics = {topic.name: topic for topic in store.topics()}

    def everything(self) -> None:
        """All promises. Raises AssertionError."""
        for role in changes.ROLES:
            for name, acknowledged in self.story.made(role).items():
                assert name in self.topics or not acknowledged, f"the topic {name} is lost"
        for role, path_names in APPENDERS.items():
            for path_name in path_names:
                if changes.topic_of(role, path_name) in self.topics:
                    self.appended(role, path_name)
        for check, name in ((self.produced, PRODUCED), (self.table, TABLE), (self.kept, KEPT)):
            if name in self.topics:
                check(self.topics[name])
        if RIGHT in self.topics and self.store.mode == "rw":  # who opens it for writing finishes what was decided
            self.copied(self.topics[RIGHT])
        self.committed()
        self.changed_topics()
        assert self.store.verify() == []

    # ---- appends ----

    def appended(self, role: str, path_name: str) -> None:
        """Each partition is a prefix of whole calls, with all that was acknowledged as durable."""
        topic = self.topics[changes.topic_of(role, path_name)]
        durable, begun = 0, []
        for change in self.story.of(role, "append", "flush", "close"):
            if change.what == "append" and change["path"] == path_name:
                begun.append(change)
                if change.done and role != "append_to_the_system":
                    durable = len(begun)
            elif change.what != "append" and change.done and change.arguments.get("path") in (None, path_name):
                durable = sum(call.done for call in begun)
        calls = tuple(change["call"] for change in begun)
        for partition in range(PATHS[path_name].partitions):
            rows, ends = expected_calls(path_name, calls, partition)
            found = topic.scan(partition).to_arrow()
            where = f"partition {partition} of {topic.name}"
            lost = f"{where} lost what was durable: {found.num_rows} of {ends[durable]}"
            assert found.num_rows >= ends[durable], lost
            assert found.num_rows in ends, f"{where} ends at {found.num_rows}, within an append"
            assert same_rows(found, rows.slice(0, found.num_rows)), f"{where} is no prefix"
            assert found.column("offset").to_pylist() == list(range(found.num_rows)), f"{where} has a gap"
            acknowledged = ends[sum(change.done for change in begun)]
            if role == "append_to_the_system" and found.num_rows < acknowledged:
                self.figures['partitions of "os" that lost records with it'] += 1

    def produced(self, topic: sc.Topic) -> None:
        """Each partition is a prefix of what was sent, with all that was flushed."""
        sends = self.story.of("produce", "produce")
        for partition in range(2):
            numbers = [n for c in sends for n in range(c["first"], c["first"] + c["count"]) if n % 2 == partition]
            durable = sum(
                n % 2 == partition for c in sends if c.done for n in range(c["first"], c["first"] + c["count"])
            )
            found = values_of(topic, partition)
            assert len(found) >= durable, f"produced records are lost: {len(found)} of {durable}"
            assert found == [changes.produced_value(n) for n in numbers[: len(found)]], "this is not what was produced"

    # ---- transactions and groups ----

    def copied(self, right: sc.Topic) -> None:
        """Of each transaction all or nothing is seen, in both topics and in the offsets."""
        left = self.topics.get(LEFT)
        assert left is not None
        found = [values_of(right, 0)]
        found.append(sorted(itertools.chain.from_iterable(values_of(left, partition) for partition in range(3))))
        last: dict[str, int] = {}
        wanted = []
        for change in self.story.of("copy", "copy"):
            values = [changes.copied_value(change["number"], row) for row in range(change["count"])]
            seen = values[0] in found[0]
            assert seen or change["aborted"] or not change.done, f"the transaction {change['number']} is lost"
            assert not (seen and change["aborted"]), f"the aborted transaction {change['number']} is seen"
            if seen:
                wanted += values
                last |= change["at"]
        assert found[0] == wanted, "a transaction is seen in part"
        assert found[1] == sorted(wanted), "a transaction is seen in one topic, or in part"
        self.is_at(COPIERS, [last])
        for topic in (left, right):
            assert all(part.stable_offset == part.end_offset for part in topic.partitions), "a transaction is open"

    def committed(self) -> None:
        """The group is where it was told to be, or behind that."""
        commits = self.story.of("read_and_commit", "commit")
        allowed: list[dict[str, int]] = [{}]
        for change in commits:
            now = allowed[-1] | change["at"]
            allowed = [now] if change.done else [*allowed, now]
        if commits:
            self.is_at(READERS, allowed)

    def is_at(self, group: str, allowed: list[dict[str, int]]) -> None:
        """A group is where one of some commits has put it, but not ahead of its log: it would pass over new records."""
        names = [found.name for found in self.store.groups()]
        offsets = self.store.group(group).offsets() if group in names else {}
        found = {f"{name}/{partition}": int(offset) for (name, partition), offset in offsets.items() if offset}
        ends = {
            f"{name}/{part.index}": part.end_offset for name, topic in self.topics.items() for part in topic.partitions
        }
        inside = [{place: min(at[place], ends[place]) for place in at if ends[place]} for at in allowed]
        allowed = inside if self.store.mode == "rw" else allowed + inside  # who opens it for writing brings groups back
        assert found in allowed, f"the group {group} is at {found}, not at one of {allowed}"

    # ---- topics ----

    def changed_topics(self) -> None:
        """Topics, their settings and partitions, and the settings of applications, are as they were acknowledged."""
        states = [Topics()]
        for change in self.story.roles["change_topics"]:
            if change.what == "close":
                continue
            states = ([] if change.done else states) + [states[-1].after(change)]
        found = Topics(
            {
                name: (topic.config.retention_ms, len(topic.partitions), self.filled(topic))
                for name, topic in self.topics.items()
                if name.startswith("changed-")
            },
            {
                key: value
                for key in map("key {}".format, range(3))
                if (value := self.store.get_setting(key)) is not None
            },
        )
        assert found in states, f"the topics are {found}, not one of {states}"

    @staticmethod
    def filled(topic: sc.Topic) -> tuple[tuple[int, bytes], ...]:
        """The values of all partitions."""
        return tuple((part.index, value) for part in topic.partitions for value in values_of(topic, part.index))

    # ---- what is removed and rewritten ----

    def table(self, topic: sc.Topic) -> None:
        """Every record is what it should be, none is missing that is the latest of its key, none is back."""
        part = topic.partitions[0]
        keys: dict[int, int] = {}
        durable, deleted, maybe_deleted = 0, 0, 0
        for change in self.story.of("rewrite", "append", "delete"):
            if change.what == "delete":
                maybe_deleted = max(maybe_deleted, change["before"])
                deleted = max(deleted, change["before"]) if change.done else deleted
                continue
            keys |= {change["end"] + i: key for i, key in enumerate(change["keys"])}
            durable = max(keys) + 1 if change.done else durable
        assert part.start_offset in (deleted, maybe_deleted), f"the log begins at {part.start_offset}, not {deleted}"
        assert part.end_offset >= durable, f"the table lost records: {part.end_offset} of {durable}"
        keys = {offset: key for offset, key in keys.items() if offset < part.end_offset}
        found = {record.offset: (record.key, record.value) for record in topic.scan()}
        for offset, record in found.items():
            key = keys[offset]
            assert record == (b"%d" % key, changes.table_value(offset, key)), f"offset {offset} has another record"
        newest = {key: offset for offset, key in sorted(keys.items()) if offset >= part.start_offset}
        missing = sorted(offset for offset in newest.values() if offset not in found)
        assert not missing, f"latest records are missing: {missing}"
        assert topic.scan().count() == len(found)

    def kept(self, topic: sc.Topic) -> None:
        """What is left is whole and has no gap; what was removed stays removed."""
        part = topic.partitions[0]
        durable = max((c["end"] + c["count"] for c in self.story.of("retain", "append") if c.done), default=0)
        start = max((c.result["start"] for c in self.story.of("retain", "retain") if c.result is not None), default=0)
        assert part.end_offset >= durable, f"kept records are lost: {part.end_offset} of {durable}"
        assert part.start_offset >= start, (
            f"removed records are back: the log begins at {part.start_offset}, not {start}"
        )
        found = [(record.offset, record.value) for record in topic.scan()]
        assert found == [(n, changes.kept_value(n)) for n in range(part.start_offset, part.end_offset)], "a gap"

    # ---- and it goes on ----

    def goes_on(self, chance: random.Random) -> None:
        """Appends, transactions, groups and rewriting work as ever."""
        for role, path_names in APPENDERS.items():
            name = chance.choice(path_names)
            if changes.topic_of(role, name) in self.topics:
                self.append_once_more(self.topics[changes.topic_of(role, name)], name)
        if RIGHT in self.topics:
            with self.store.transaction(COPY, durability="disk") as transaction:
                transaction.append(LEFT, [b"on", b"and on"])
                transaction.append(RIGHT, [b"on"])
            assert values_of(self.topics[RIGHT], 0)[-1] == b"on"
        for group, name in ((COPIERS, SOURCE), (READERS, READ)):
            if name in self.topics:
                self.read_once_more(self.topics[name], group)
        if TABLE in self.topics:
            getattr(self.topics[TABLE], chance.choice(["compact", "consolidate", "roll"]))()
            self.table(self.topics[TABLE])
        self.store.create_topic("after-the-loss").append([b"more"])

    def append_once_more(self, topic: sc.Topic, path_name: str) -> None:
        """An append goes to the ends of the partitions."""
        ends = [part.end_offset for part in topic.partitions]
        spans = append_call(topic, PATHS[path_name], table_of(path_name, 9, 9))
        assert all(span.first_offset == ends[span.partition] for span in spans)
        assert topic.scan().count() == sum(ends) + sum(span.end_offset - span.first_offset for span in spans)

    def read_once_more(self, topic: sc.Topic, group: str) -> None:
        """A group reads what is appended now."""
        [span] = topic.append([b"more", b"and more"], partition=1)
        with self.store.consumer(topic.name, group=group, start="earliest") as member:
            seen: set[int] = set()
            deadline = time.monotonic() + DEADLINE_S
            while (topic.name, 1) not in member.assignment or member.position(topic.name, 1) < span.end_offset:
                assert time.monotonic() < deadline, f"the group {group} does not read"
                seen |= {record.offset for record in member.poll(100) if record.partition == 1}
            member.commit()
        assert {span.first_offset, span.first_offset + 1} <= seen, f"the group {group} passed over records"


@dataclasses.dataclass(frozen=True)
class Topics:
    """The topics of `change_topics` (retention, number of partitions, records), and the settings."""

    topics: dict[str, tuple[int | None, int, tuple[tuple[int, bytes], ...]]] = dataclasses.field(default_factory=dict)
    settings: dict[str, str] = dataclasses.field(default_factory=dict)

    def after(self, change: Change) -> Topics:
        """As they are when a change was made."""
        topics, settings = dict(self.topics), dict(self.settings)
        if change.what == "set":
            settings[change["key"]] = change["value"]
            return Topics(topics, settings)
        name = change["name"]
        retention_ms, partitions, filled = topics.pop(
            name, (changes.LONG_MS, change.arguments.get("partitions", 0), ())
        )
        if change.what == "alter":
            retention_ms = change["retention_ms"]
        elif change.what == "widen":
            partitions = change["partitions"]
        elif change.what == "fill":
            added = (change["partition"], change["value"].encode())
            filled = tuple(sorted([*filled, added], key=lambda pair: pair[0]))
        if change.what != "delete":
            topics[name] = (retention_ms, partitions, filled)
        return Topics(topics, settings)


def values_of(topic: sc.Topic, partition: int) -> list[bytes]:
    """The values that a committed reader sees."""
    return topic.scan(partition, columns=["value"]).to_arrow().column("value").to_pylist()


@functools.lru_cache(maxsize=512)
def expected_calls(path_name: str, calls: tuple[int, ...], partition: int) -> tuple[pa.Table, list[int]]:
    """The records of calls in one partition, and where the log may end: before the first call, behind each."""
    if not calls:
        return expected_rows(path_name, Part(0, 0, partition)).slice(0, 0), [0]
    tables = [expected_rows(path_name, Part(0, call, partition)) for call in calls]
    ends = [0, *itertools.accumulate(table.num_rows for table in tables)]
    return pa.concat_tables(tables).combine_chunks(), ends


# ---- the checking process ------------------------------------------------------------------------------------------


def check_store(store_path: Path, story: Story, chance: random.Random, figures: Figures) -> None:
    """A reader, then a writer find all that was promised, and it goes on."""
    if not (store_path / "catalog.sqlite").exists():
        assert not any(change.done for made in story.roles.values() for change in made), "the store is gone"
        return
    if chance.random() < 0.1:
        with sc.open(store_path, "r") as store:
            Check(store, story, figures).everything()
    with sc.open(store_path, durability="disk", maintenance=False) as store:
        check = Check(store, story, figures)
        check.everything()
        if chance.random() < 0.5:
            check.goes_on(chance)
            assert store.verify() == []


def check_losses(
    channel: Channel,
    kind: str,
    folder: str,
    states: int,
    seed: str,
    part: int,
    parts: int,
    before: list[str] | None = None,
    drop_flushes: bool = False,
) -> None:
    """Checks its part of the states that losses of power leave; says WRONG and FIGURE, and CHECKED at the end.

    before: notes from before the recording. drop_flushes: a disk that does not care for flushes.
    """
    recording = recording_of(FILE_SYSTEMS[kind], Path(folder))
    if drop_flushes:
        recording = recording.without_flushes()
    place = Path(folder) / f"part-{part}"
    place.mkdir(exist_ok=True)
    losses = recording.choose(states, random.Random(f"{kind} {seed}"), ["prefix"] if drop_flushes else HOWS)
    waiting = iter([*recording.notes(), (len(recording.entries), "")])
    story, (at, note) = Story(), next(waiting)
    for earlier in before or []:
        story.take(earlier)
    figures: Figures = collections.Counter()
    gc.freeze()  # what there is now is not looked at again each time when a store is closed
    with Platter(recording, place) as platter:
        for loss in losses[part::parts]:
            while at < loss.at:
                story.take(note)
                at, note = next(waiting)
            try:
                with found_after(platter, loss, place / "found") as path:
                    check_store(path / "store", story, random.Random(loss.seed), figures)
            except (AssertionError, sc.StreamcoreError) as error:
                channel.send("WRONG", f"{loss}: {type(error).__name__}: {error}".replace("\n", " "))
            except CannotMountError as error:
                figures[f"unmountable ({loss.how} of the writes): {error}"] += 1
            figures["states"] += 1
    for name, count in figures.items():
        channel.send("FIGURE", count, name)
    channel.send("CHECKED")
