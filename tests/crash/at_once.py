"""What the children do that are killed while everything is at work at once: produce, copy, audit, rewrite.

Requests of a web server go into a topic, each with an id of its own. One group writes a summary of each request to a
topic, and the latest one of each client to a table, in transactions with its offsets. Another group notes each request
in a topic and commits then. Meanwhile the logs are compacted and consolidated.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

import streamcore as sc

from .forkserver import Channel

Durability = Literal["os", "disk"]
REQUESTS, SUMMARIES, CLIENTS, AUDITED = "requests", "summaries", "clients", "audited"
EXACT, AUDIT = "exact", "audit"
PRODUCERS, MEMBERS, PARTITIONS = 2, 3, 6
MEMBER_TIMEOUT_MS = 700
_CHUNK, _PAUSE_S = 250, 0.03
_LINE = re.compile(rb'^(\S+) .*?" (\d{3}) (\d+|-)')
_TOMBSTONES = 97  # one client in so many requests is forgotten


def make_store(store_path: Path, durability: Durability) -> None:
    """The topics, of small segments."""
    with sc.open(store_path) as store:
        store.create_topic(REQUESTS, partitions=PARTITIONS, segment_bytes=1 << 20, durability=durability)
        store.create_topic(SUMMARIES, partitions=3, segment_bytes=1 << 18, durability=durability)
        store.create_topic(AUDITED, partitions=2, segment_bytes=1 << 20, durability=durability)
        store.create_topic(CLIENTS, partitions=2, segment_bytes=1 << 16, cleanup="compact", durability=durability)


def lines_of(data: str) -> list[bytes]:
    """The lines of the server's log."""
    return Path(data).read_bytes().splitlines()


def request(lines: list[bytes], number: int) -> bytes:
    """The value of a request: its id and its line."""
    return b"%d %s" % (number, lines[number % len(lines)])


def id_of(value: bytes | None) -> int:
    """The id that a value begins with."""
    assert value is not None
    return int(value[: value.index(b" ")])


def summary(value: bytes) -> tuple[bytes, bytes]:
    """The client of a request, and what is written of it."""
    number, _, line = value.partition(b" ")
    found = _LINE.match(line)
    assert found is not None, line
    client, status, size = found.groups()
    return client, b"%s %s %s %s" % (number, client, status, size)


def of_client(written: bytes) -> bytes | None:
    """What the table says of a client after a request; None: it is forgotten."""
    return None if id_of(written) % _TOMBSTONES == 0 else written


def ids_in(topic: sc.Topic, isolation: str) -> set[int]:
    """The ids of all records."""
    column = topic.scan(columns=["value"], isolation=isolation).to_arrow()["value"]  # type: ignore[arg-type]
    words = pc.extract_regex(column.cast(pa.string()), r"^(?P<id>\d+) ")
    return set(pc.struct_field(words, "id").cast(pa.int64()).to_pylist())


# ---- producers ----------------------------------------------------------------------------------------------------


def produce(channel: Channel, store_path: str, durability: Durability, data: str, slot: int, count: int) -> None:
    """Sends every second request that is not in the log yet; in slot 1 in transactions. Says SENDING and SENT."""
    lines = lines_of(data)
    isolation = "committed" if slot else "uncommitted"
    with sc.open(store_path, durability=durability) as store:
        producer = store.producer(linger_ms=2, transactional_id="producer" if slot else None)
        if slot:
            producer.begin_transaction()  # which ends what a killed one has left open
        missing = sorted(set(range(slot, count, PRODUCERS)) - ids_in(store.topic(REQUESTS), isolation))
        for start in range(0, len(missing), _CHUNK):
            channel.send("SENDING", start)
            for number in missing[start : start + _CHUNK]:
                value = request(lines, number)
                producer.send(REQUESTS, value, key=value.split(b" ", 2)[1])
            if slot:
                producer.commit_transaction()
                producer.begin_transaction()
            else:
                producer.flush()
            channel.send("SENT", start)
            time.sleep(_PAUSE_S)  # so that all of it happens at the same time
        producer.close()


# ---- members ------------------------------------------------------------------------------------------------------


def write_exactly_once(
    channel: Channel, store_path: str, durability: Durability, slot: int, seed: int, bug: str | None = None
) -> None:
    """Summaries and the table of clients, in transactions with the offsets. Says POLL, BEGUN and DONE.

    bug "offsets apart": commits the offsets behind the transaction, and dies in between the third time.
    """
    chance = random.Random(f"{seed} {slot}")
    done = 0
    with sc.open(store_path, durability=durability) as store:
        with store.transaction(f"exact-{slot}"):
            pass  # ends what a killed one has left open, for which readers would wait otherwise
        member = store.consumer(REQUESTS, group=EXACT, start="earliest", member_timeout_ms=MEMBER_TIMEOUT_MS)
        while not channel.is_told_to_stop():
            channel.send("POLL")
            records = member.poll(50, chance.choice([20, 200, 600]))
            if not records:
                continue
            written = [summary(record.value) for record in records]
            channel.send("BEGUN", len(records))
            try:
                with store.transaction(f"exact-{slot}") as transaction:
                    keys = [client for client, _ in written]
                    transaction.append(SUMMARIES, [text for _, text in written], keys=keys)
                    transaction.append(CLIENTS, [of_client(text) for _, text in written], keys=keys)
                    if bug is None:
                        transaction.commit_offsets(member)
                done += 1
                if bug is not None:
                    if done == 3:
                        os.kill(os.getpid(), signal.SIGKILL)
                    member.commit()
            except sc.FencedError:  # its partitions were given to others: nothing of it counts
                channel.send("FENCED")
                rewind(member)
                continue
            channel.send("DONE", len(records))
        member.close()


def rewind(member: sc.Consumer) -> None:
    """Goes back to what is committed, in the partitions that it still reads."""
    for topic, partition in member.assignment:
        committed = member.committed(topic, partition)
        member.seek(topic, partition, "earliest" if committed is None else int(committed))


def write_at_least_once(
    channel: Channel, store_path: str, durability: Durability, slot: int, seed: int, bug: str | None = None
) -> None:
    """Notes what it reads, then commits; the member in slot 1 by automatic commits. Says POLL, BEGUN and DONE.

    bug "commits first": and dies before it notes anything the third time.
    """
    chance = random.Random(f"{seed} {slot}")
    auto = slot == 1 and bug is None
    done = 0
    with sc.open(store_path, durability=durability) as store:
        audited = store.topic(AUDITED)
        member = store.consumer(
            REQUESTS, group=AUDIT, start="earliest", member_timeout_ms=MEMBER_TIMEOUT_MS, auto_commit=auto,
            auto_commit_interval_ms=100,
        )  # fmt: skip
        while not channel.is_told_to_stop():
            channel.send("POLL")
            records = member.poll(50, chance.choice([20, 200, 600]))
            if not records:
                continue
            channel.send("BEGUN", len(records))
            done += 1
            if bug is not None:
                member.commit()
                if done == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
            audited.append([record.value for record in records], keys=[record.key for record in records])
            if not auto and bug is None:
                try:
                    member.commit()
                except sc.FencedError:  # others read them again, which is allowed
                    channel.send("FENCED")
                    continue
            channel.send("DONE", len(records))
        member.close()


# ---- rewriting ----------------------------------------------------------------------------------------------------


def rewrite(channel: Channel, store_path: str, durability: Durability, seed: int, bug: str | None = None) -> None:
    """Compacts the table, and consolidates it and the others. Says BEGUN and DONE with what it does.

    bug "drops the newest": replaces the sealed segments of the table by empty ones, once.
    """
    chance = random.Random(seed)
    with sc.open(store_path, durability=durability) as store:
        clients = store.topic(CLIENTS)
        while not channel.is_told_to_stop():
            task = chance.choice(["compact", "compact", "consolidate", "roll"])
            name = CLIENTS if task == "compact" else chance.choice([CLIENTS, CLIENTS, REQUESTS, SUMMARIES])
            channel.send("BEGUN", task)
            if bug is not None:
                clients.roll()
                for segment in clients.rewritable(0):
                    emptied = clients.open_rewrite(segment)
                    assert emptied is not None
                    emptied.commit()
                    emptied.close()
                channel.send("BROKEN")
                return
            if task == "compact":
                clients.compact(memory_bytes=chance.choice([4096, 1 << 20]))
            else:
                getattr(store.topic(name), task)()
            channel.send("DONE", task)
            time.sleep(0.01)  # it leaves the processor to the others
