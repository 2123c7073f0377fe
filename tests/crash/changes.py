"""What the children do on a disk that loses power: every kind of change, noted on the disk before and behind it.

Each role is a thread with topics of its own. A note is a line of JSON: [number, role, what, arguments] before a change
and [number, result] when it was acknowledged; `promises` says what follows from them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import streamcore as sc

from .forkserver import Channel
from .writers import PATHS, append_call, table_of

DISK_PATHS = ("lists", "tables with keys over 4 partitions", "typed", "rolls", "lists with headers")
MORE_DISK_PATHS = ("tables", "zstd", "keys over 4 partitions", "rolls of tables")
MANY_PATHS = ("keys over 4 partitions", "tables with keys over 4 partitions")  # all of it goes through the journal
OS_PATHS = ("lists", "rolls", "rolls of tables")
PRODUCED, SOURCE, LEFT, RIGHT, TABLE, KEPT = "produced", "source", "left", "right", "table", "kept"
READERS, COPIERS, COPY = "readers", "copiers", "copy"
KEYS = 30
LONG_MS = 10**12
_SEGMENT_BYTES = 64 << 10
_BOOT_ID = b"/proc/sys/kernel/random/boot_id"
_CLONE_NEWNS, _MS_REC_PRIVATE, _MS_BIND = 0x20000, 0x44000, 0x1000


def be_of_another_boot(folder: Path, boot: int) -> None:
    """From now on this process, which must have one thread, sees another boot id, made of `boot`."""
    libc = ctypes.CDLL(None, use_errno=True)
    given = folder / f"boot-id-{os.getpid()}"
    given.write_text(f"{uuid.UUID(int=boot)}\n")
    for result in (
        libc.unshare(_CLONE_NEWNS),
        libc.mount(None, b"/", None, _MS_REC_PRIVATE, None),
        libc.mount(os.fsencode(given), _BOOT_ID, None, _MS_BIND, None),
    ):
        if result != 0:
            raise OSError(ctypes.get_errno(), "cannot hide the boot id")
    given.unlink()


class Notes:
    """The notes of one process, on the disk's mark."""

    def __init__(self, mark: str) -> None:
        self._mark = os.open(mark, os.O_WRONLY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._count = 0

    @contextlib.contextmanager
    def change(self, role: str, what: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Around a change; the result is put into what it gives."""
        with self._lock:
            self._count += 1
            number = f"{os.getpid()}.{self._count}"
        self._write([number, role, what, arguments])
        result: dict[str, Any] = {}
        yield result
        self._write([number, result])

    def _write(self, note: list[Any]) -> None:
        data = json.dumps(note).encode()
        assert os.write(self._mark, data) == len(data)


class Work:
    """What a role works with: its store, its notes, and what decides what it does."""

    def __init__(self, store: sc.Store, notes: Notes, role: str, seed: str, calls: int) -> None:
        self.store = store
        self.role = role
        self.chance = random.Random(f"{seed} {role}")
        self.calls = calls
        self._notes = notes

    def change(self, what: str, **arguments: Any) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Around a change."""
        return self._notes.change(self.role, what, **arguments)

    def topic(self, name: str, **settings: Any) -> sc.Topic:
        """The role's topic, made when it is not there."""
        with contextlib.suppress(sc.TopicNotFoundError):
            return self.store.topic(name)
        with self.change("make", name=name):
            return self.store.create_topic(name, **settings)


def topic_of(role: str, path_name: str) -> str:
    """The topic of a role's path."""
    return f"{role}-{path_name}".replace(" ", "-")


READ = topic_of("append_more_durably", "keys over 4 partitions")
READ_OF_SYSTEM = topic_of("append_to_the_system", "lists")


# ---- roles ---------------------------------------------------------------------------------------------------------


def append_in_all_ways(work: Work, path_names: tuple[str, ...], durability: Any, first: int) -> None:
    """Appends call after call, in all ways; with "os" it flushes now and then."""
    from .writers import TYPED_SCHEMA

    topics = {}
    for name in path_names:
        path = PATHS[name]
        schema = TYPED_SCHEMA if path.typed else None
        settings = {"partitions": path.partitions, "schema": schema, "durability": durability, **dict(path.settings)}
        topics[name] = work.topic(topic_of(work.role, name), **settings)
    calls = dict.fromkeys(path_names, first)
    for _ in range(work.calls):
        name = work.chance.choice(path_names)
        with work.change("append", path=name, call=calls[name]):
            append_call(topics[name], PATHS[name], table_of(name, 0, calls[name]))
        calls[name] += 1
        if durability == "os" and work.chance.random() < 0.1:
            flushed = work.chance.choice([None, *path_names])
            with work.change("flush", path=flushed):
                (work.store if flushed is None else topics[flushed]).flush()
        if durability == "os":
            time.sleep(work.chance.random() * 0.05)  # so that what is flushed in the background is part of it


def append_durably(work: Work, round_number: int) -> None:
    append_in_all_ways(work, DISK_PATHS, "disk", round_number * 1000)


def append_more_durably(work: Work, round_number: int) -> None:
    append_in_all_ways(work, MORE_DISK_PATHS, "disk", round_number * 1000)


def append_over_partitions(work: Work, round_number: int) -> None:
    append_in_all_ways(work, MANY_PATHS, "disk", round_number * 1000)


def append_to_the_system(work: Work, round_number: int) -> None:
    append_in_all_ways(work, OS_PATHS, "os", round_number * 1000)


def produced_value(number: int) -> bytes:
    """The value of a record that is produced."""
    return b"%d " % number * (1 + number % 40)


def produce(work: Work, round_number: int) -> None:
    """Sends records to two partitions, and flushes. Record n goes to partition n mod 2."""
    work.topic(PRODUCED, partitions=2, segment_bytes=_SEGMENT_BYTES)
    number = round_number * 100_000
    with work.store.producer(linger_ms=work.chance.choice([0, 2])) as producer:
        for _ in range(work.calls):
            count = work.chance.randint(1, 60)
            with work.change("produce", first=number, count=count):
                for n in range(number, number + count):
                    producer.send(PRODUCED, produced_value(n), partition=n % 2)
                producer.flush()
            number += count


def positions(member: sc.Consumer) -> dict[str, int]:
    """Where a member is, by topic and partition; without the partitions where it is at the beginning."""
    places = {f"{name}/{partition}": member.position(name, partition) for name, partition in member.assignment}
    return {place: position for place, position in places.items() if position}


def copied_value(number: int, row: int) -> bytes:
    """The value of a record of a transaction."""
    return b"%d.%d" % (number, row)


def copy(work: Work, round_number: int) -> None:
    """Reads a topic, and writes as many records to two others, in transactions with its offsets."""
    work.topic(SOURCE, partitions=2)
    work.topic(LEFT, partitions=3, segment_bytes=_SEGMENT_BYTES)
    work.topic(RIGHT, segment_bytes=_SEGMENT_BYTES)
    source = work.store.topic(SOURCE)
    with work.store.consumer(SOURCE, group=COPIERS, start="earliest") as member:
        for number in range(round_number * 1000, round_number * 1000 + work.calls):
            source.append([b"%d" % n for n in range(12)], keys=[b"%d" % n for n in range(12)])
            taken = len(member.poll(500, work.chance.randint(1, 20)))
            count = work.chance.randint(1, 30)
            aborted = work.chance.random() < 0.2
            at = positions(member)
            with work.change("copy", number=number, taken=taken, count=count, aborted=aborted, at=at):
                values = [copied_value(number, row) for row in range(count)]
                with work.store.transaction(COPY, durability="disk") as transaction:
                    transaction.append(LEFT, values, keys=values)
                    transaction.append(RIGHT, values)
                    transaction.commit_offsets(member)
                    if aborted:
                        transaction.abort()
            if aborted:
                for name, partition in member.assignment:
                    committed = member.committed(name, partition)
                    member.seek(name, partition, "earliest" if committed is None else int(committed))


def read_and_commit(work: Work, round_number: int) -> None:
    """Reads what another role appends just now, and commits how far it is."""
    while not {READ, READ_OF_SYSTEM} <= {topic.name for topic in work.store.topics()}:
        time.sleep(0.01)
    with work.store.consumer([READ, READ_OF_SYSTEM], group=READERS, start="earliest") as member:
        for _ in range(work.calls):
            if not member.poll(20, work.chance.choice([5, 1000])):
                continue
            at = positions(member)
            with work.change("commit", at=at):
                member.commit()


def change_topics(work: Work, round_number: int) -> None:
    """Makes, alters, widens, fills and deletes topics, and keeps settings."""
    known: dict[str, int] = {}
    for number in range(round_number * 1000, round_number * 1000 + work.calls):
        what = work.chance.choice(["create", "create", "alter", "widen", "fill", "fill", "set", "delete"])
        what = what if known or what == "set" else "create"
        name = f"changed-{number}" if what == "create" else work.chance.choice(sorted(known) or [""])
        if what == "set":
            with work.change("set", key=f"key {number % 3}", value=str(number)):
                work.store.set_setting(f"key {number % 3}", str(number))
        elif what == "create":
            known[name] = work.chance.randint(1, 3)
            with work.change("create", name=name, partitions=known[name]):
                work.store.create_topic(name, partitions=known[name], retention_ms=LONG_MS)
        elif what == "alter":
            with work.change("alter", name=name, retention_ms=LONG_MS + number):
                work.store.topic(name).alter(retention_ms=LONG_MS + number)
        elif what == "widen":
            known[name] += 1
            with work.change("widen", name=name, partitions=known[name]):
                work.store.topic(name).add_partitions(known[name])
        elif what == "fill":
            partition = work.chance.randrange(known[name])
            with work.change("fill", name=name, partition=partition, value=str(number)):
                work.store.topic(name).append([b"%d" % number], partition=partition)
        else:
            del known[name]
            with work.change("delete", name=name):
                work.store.delete_topic(name)


def table_value(offset: int, key: int) -> bytes:
    """The value of a record of the table: it says what it is."""
    return b"%d %d " % (offset, key) * (1 + offset % 300)


def rewrite(work: Work, round_number: int) -> None:
    """Appends to a table, and rolls, compacts and consolidates it, and deletes its oldest records."""
    topic = work.topic(TABLE, segment_bytes=_SEGMENT_BYTES, cleanup="compact")
    for _ in range(work.calls):
        end = topic.partitions[0].end_offset
        keys = [work.chance.randrange(KEYS) for _ in range(work.chance.randint(1, 30))]
        with work.change("append", end=end, keys=keys):
            values = [table_value(end + i, key) for i, key in enumerate(keys)]
            topic.append(values, keys=[b"%d" % key for key in keys])
        what = work.chance.choice(["", "", "roll", "compact", "consolidate", "delete"])
        if what == "delete":
            part = topic.partitions[0]
            before = min(part.start_offset + work.chance.randint(0, 60), part.end_offset)
            with work.change("delete", before=before):
                topic.delete_records(before)
        elif what:
            with work.change(what):
                getattr(topic, what)()


def kept_value(offset: int) -> bytes:
    """The value of a record that retention may remove."""
    return b"%d " % offset * 400


def retain(work: Work, round_number: int) -> None:
    """Appends, and removes the oldest segments by their size."""
    topic = work.topic(KEPT, segment_bytes=_SEGMENT_BYTES, retention_bytes=3 * _SEGMENT_BYTES)
    for _ in range(work.calls):
        end = topic.partitions[0].end_offset
        count = work.chance.randint(1, 30)
        with work.change("append", end=end, count=count):
            topic.append([kept_value(end + i) for i in range(count)])
        if work.chance.random() < 0.3:
            with work.change("retain") as done:
                work.store.maintain(["retention"])
                done["start"] = topic.partitions[0].start_offset


ROLES: dict[str, Callable[[Work, int], None]] = {
    function.__name__: function
    for function in (
        append_durably,
        append_more_durably,
        append_over_partitions,
        append_to_the_system,
        produce,
        copy,
        read_and_commit,
        change_topics,
        rewrite,
        retain,
    )
}


# ---- children ------------------------------------------------------------------------------------------------------


def make_changes(
    channel: Channel, folder: str, store_path: str, mark: str, roles: list[str], seed: str, calls: int, rounds: int
) -> None:
    """Plays roles at once, in so many rounds of so many calls, each in a store opened anew; says DONE and waits.

    The last store is not closed. folder: for a file for a moment.
    """
    be_of_another_boot(Path(folder), 1)
    notes = Notes(mark)
    for round_number in range(rounds):
        store = sc.open(store_path, durability="disk", maintenance=False)
        failures: list[BaseException] = []
        works = [Work(store, notes, role, f"{seed} {round_number}", calls) for role in roles]
        threads = [threading.Thread(target=_play, args=(work, round_number, failures)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for failure in failures:
            raise failure
        if round_number + 1 < rounds:
            with notes.change("*", "close", pid=os.getpid(), roles=roles):
                store.close()
    channel.send("DONE")
    channel.wait_to_be_told()


def _play(work: Work, round_number: int, failures: list[BaseException]) -> None:
    try:
        ROLES[work.role](work, round_number)
    except BaseException as failure:
        failures.append(failure)


def recover(channel: Channel, folder: str, store_path: str) -> None:
    """Opens a store after a loss of power, reads all of it and closes it: all that recovery does. Says DONE."""
    be_of_another_boot(Path(folder), 2)
    with sc.open(store_path, durability="disk", maintenance=False) as store:
        store.verify()
    channel.send("DONE")


def sync_now_and_then(channel: Channel, folder: str, seed: int) -> None:
    """Has the kernel write everything at random moments, as it does by itself only after seconds."""
    chance = random.Random(seed)
    libc = ctypes.CDLL(None)
    descriptor = os.open(folder, os.O_RDONLY)
    while not channel.is_told_to_stop():
        libc.syncfs(descriptor)
        time.sleep(chance.random() * 0.2)
