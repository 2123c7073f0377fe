"""A member of a group, in a thread or as a process: `python -m bench.member WAY PLACE TOPIC GROUP`.

PLACE is a store's folder, or the broker's address. A member joins at the end of the log and is asked to settle until
all have their shares of the partitions; then it reads those from their start to their end. The process takes a line
for each call: `settle SHARE`, `read` or `close`, and answers with a line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow.compute as pc

import streamcore as sc
from bench.contest import cpu_seconds
from bench.peers.kafka_clients import KafkaMember

REPEATS = 10  # a group of streamcore reads the log in milliseconds
DEADLINE_S = 60.0


class Reading(NamedTuple):
    """What a member read, when (CLOCK_MONOTONIC, seconds), and the CPU seconds of its process."""

    records: int
    start_s: float
    end_s: float
    cpu_s: float


class Member(Protocol):
    def settle(self, share: int) -> bool:
        """Works for the group for a moment; True when the member has its share of partitions."""

    def read_all(self) -> Reading:
        """Reads its partitions from start to end."""

    def close(self) -> None: ...


class StreamcoreMember:
    """WAY is poll, iterate or arrow."""

    def __init__(self, store: sc.Store, topic: str, group: str, way: str) -> None:
        self._topic = store.topic(topic)
        self._consumer = store.consumer(topic, group=group, start="latest")
        self._read = {"poll": self._poll, "iterate": self._iterate, "arrow": self._poll_arrow}[way]

    def settle(self, share: int) -> bool:
        self._consumer.poll(timeout_ms=10)
        return len(self._consumer.assignment) == share

    def read_all(self) -> Reading:
        return timed(self._read_all)

    def _read_all(self) -> int:
        mine = [one.partition for one in self._consumer.assignment]
        partitions = self._topic.partitions
        seen = 0
        for _ in range(REPEATS):
            for number in mine:
                self._consumer.seek(self._topic.name, number, 0)
            seen += self._read(sum(partitions[number].end_offset for number in mine))
        return seen

    def _poll(self, wanted: int) -> int:
        seen = 0
        while seen < wanted:
            for record in self._consumer.poll(timeout_ms=1_000):
                len(record.value)
                seen += 1
        return seen

    def _iterate(self, wanted: int) -> int:
        seen = 0
        for record in self._consumer:
            len(record.value)
            seen += 1
            if seen == wanted:
                break
        return seen

    def _poll_arrow(self, wanted: int) -> int:
        seen = 0
        while seen < wanted:
            table = self._consumer.poll_arrow(timeout_ms=1_000)
            pc.sum(pc.binary_length(table.column("value")))
            seen += table.num_rows
        return seen

    def close(self) -> None:
        self._consumer.close()


class RemoteMember:
    """A member in a process of its own."""

    def __init__(self, way: str, place: str, topic: str, group: str) -> None:
        command = [sys.executable, "-m", "bench.member", way, place, topic, group]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)

    def settle(self, share: int) -> bool:
        return bool(self._ask(f"settle {share}"))

    def read_all(self) -> Reading:
        return Reading(*self._ask("read"))

    def close(self) -> None:
        with self._process:
            self._ask("close")

    def _ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class KafkaReader(KafkaMember):
    """A member of a group at the broker."""

    def read_all(self) -> Reading:
        return timed(self.read_once)


def timed(read: Callable[[], int]) -> Reading:
    cpu, start = cpu_seconds(), time.monotonic()
    records = read()
    return Reading(records, start, time.monotonic(), cpu_seconds() - cpu)


def settle_all(members: list[Any], share: int) -> None:
    """Until every member has its share; TimeoutError when the group does not come to rest."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        settled = [member.settle(share) for member in members]  # each of them, for each has to work for the group
        if all(settled):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"the group did not come to rest in {DEADLINE_S} s")


def main(way: str, place: str, topic: str, group: str) -> None:
    store = None if way == "kafka" else sc.open(place)
    member: Member = KafkaReader(place, topic, group) if store is None else StreamcoreMember(store, topic, group, way)
    for line in sys.stdin:
        match line.split():
            case ["settle", share]:
                print(json.dumps(member.settle(int(share))), flush=True)
            case ["read"]:
                print(json.dumps(member.read_all()), flush=True)
            case ["close"]:
                break
    member.close()
    if store is not None:
        store.close()
    print("null", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5])
