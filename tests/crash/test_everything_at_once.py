"""Producers, groups, transactions, compaction and consolidation at once, over real requests, killed all the time."""

from __future__ import annotations

import collections
import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc

from . import at_once
from .at_once import AUDIT, AUDITED, CLIENTS, EXACT, MEMBERS, PARTITIONS, PRODUCERS, REQUESTS, SUMMARIES
from .forkserver import Child, ForkServer

Figures = collections.Counter[str]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "web_access.log"
RECORDS = int(os.environ.get("STREAMCORE_AT_ONCE_RECORDS", "100000"))
KILLS = int(os.environ.get("STREAMCORE_AT_ONCE_KILLS", "100"))
SEED = int(os.environ.get("STREAMCORE_AT_ONCE_SEED", "1"))
DEADLINE_S = 240.0
_WORDS = {"exact": ["POLL", "BEGUN", "DONE"], "audit": ["POLL", "BEGUN", "DONE"], "rewriter": ["BEGUN"],
          "producer": ["SENDING"]}  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """The lines of the web server's log."""
    if not DATA.is_file():
        pytest.skip(f"the real input is not there: {DATA}")
    return at_once.lines_of(str(DATA))


class Crowd:
    """The processes at work, by role and slot; whoever is killed is started anew."""

    def __init__(self, server: ForkServer, store: sc.Store, records: int, bugs: dict[str, str]) -> None:
        self._server = server
        self.store = store
        self._records = records
        self.bugs = bugs
        self._seed = 0
        self.at_work: dict[tuple[str, int], Child] = {}
        self.suspended: dict[tuple[str, int], float] = {}  # and when they go on
        self.counts: Figures = collections.Counter()

    def start(self, role: str, slot: int = 0) -> Child:
        """One more process."""
        self._seed += 1
        common: dict[str, Any] = {"store_path": str(self.store.path), "durability": self.store.durability}
        if role == "producer":
            common |= {"data": str(DATA), "slot": slot, "count": self._records}
        else:
            common |= {"seed": self._seed, "bug": self.bugs.get(role)} | ({} if role == "rewriter" else {"slot": slot})
        function: Callable[..., None] = {
            "producer": at_once.produce, "exact": at_once.write_exactly_once, "audit": at_once.write_at_least_once,
            "rewriter": at_once.rewrite,
        }[role]  # fmt: skip
        child = self._server.start(function, **common)
        self.at_work[role, slot] = child
        return child

    def start_all(self) -> None:
        for slot in range(PRODUCERS):
            self.start("producer", slot)
        for slot in range(MEMBERS):
            self.start("exact", slot)
            self.start("audit", slot)
        self.start("rewriter")

    def drain(self) -> None:
        """Reads what they say: one that is not heard waits."""
        for child in self.at_work.values():
            child.read(0)
            assert child.failure() == "", child.failure()

    def suspend_one(self, chance: random.Random) -> None:
        """Holds a member up for longer than its timeout: it goes on as a zombie, whose partitions others have."""
        key = chance.choice([key for key in self.at_work if key[0] in (EXACT, AUDIT)])
        if key not in self.suspended:
            self.read_until_next(key, "BEGUN")
            os.kill(self.at_work[key].pid, signal.SIGSTOP)
            self.suspended[key] = time.monotonic() + 2 * at_once.MEMBER_TIMEOUT_MS / 1000

    def resume(self, *, everybody: bool = False) -> None:
        """Lets those go on whose time it is."""
        for key, until in list(self.suspended.items()):
            if everybody or time.monotonic() >= until:
                os.kill(self.at_work[key].pid, signal.SIGCONT)
                del self.suspended[key]

    def read_until_next(self, key: tuple[str, int], word: str) -> None:
        """Waits until it says a word once more, half a second at most."""
        child = self.at_work[key]
        before = len(child.said(word))
        end = time.monotonic() + 0.5
        while len(child.said(word)) == before and time.monotonic() < end:
            self.drain()
            child.read(0.005)

    def kill_one(self, chance: random.Random) -> str | None:
        """Kills one in the middle of something and starts it anew; None when a producer was done by itself."""
        role, slot = chance.choice([*sorted(self.at_work), ("rewriter", 0)])
        child = self.at_work[role, slot]
        word = chance.choice(_WORDS[role])
        self.read_until_next((role, slot), word)
        end = time.monotonic() + chance.uniform(0, 0.004)
        while time.monotonic() < end:
            pass
        child.kill()
        self.suspended.pop((role, slot), None)
        self.count(role, child)
        if not child.is_killed():
            assert child.status == 0, child.failure()
            assert role == "producer"
            del self.at_work[role, slot]
            return None
        self.start(role, slot)
        return f"{role} killed at {word}"

    def count(self, role: str, child: Child) -> None:
        for line in child.lines:
            self.counts[f"{role} {line[0]}"] += 1

    def wait_until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < deadline, (self.left(EXACT), self.left(AUDIT), self.store.group(EXACT).members())
            self.drain()
            time.sleep(0.02)

    def producers_are_done(self) -> bool:
        for key, child in [(key, child) for key, child in self.at_work.items() if key[0] == "producer"]:
            if child.said("SENT") and self._is_over(child):
                assert child.wait() == 0, child.failure()
                self.count("producer", child)
                del self.at_work[key]
        return not any(role == "producer" for role, _ in self.at_work)

    @staticmethod
    def _is_over(child: Child) -> bool:
        child.read(0)
        return child.at_end

    def left(self, group: str) -> int:
        """How many requests the group has not committed yet."""
        topic = self.store.topic(REQUESTS)
        committed = self.store.group(group).offsets()
        return sum(
            topic.scan(partition, start=int(committed.get((REQUESTS, partition), 0))).count()
            for partition in range(PARTITIONS)
        )

    def stop(self) -> None:
        """Ends them in an orderly way."""
        for child in self.at_work.values():
            child.tell()
        for (role, _), child in self.at_work.items():
            assert child.wait() == 0, child.failure()
            self.count(role, child)


# ---- what must hold -----------------------------------------------------------------------------------------------


def check_requests(store: sc.Store, lines: list[bytes], records: int) -> None:
    """Each request was produced once."""
    found = store.topic(REQUESTS).scan(columns=["value"]).to_arrow()["value"].to_pylist()
    assert sorted(found) == sorted(at_once.request(lines, number) for number in range(records))


def check_exactly_once(store: sc.Store, lines: list[bytes], records: int) -> None:
    """Each request has one summary, and only one."""
    topic = store.topic(SUMMARIES)
    found = topic.scan(columns=["value"]).to_arrow()["value"].to_pylist()
    assert topic.scan().count() == len(found)
    ids = collections.Counter(map(at_once.id_of, found))
    twice = sorted(number for number, times in ids.items() if times > 1)
    assert not twice, f"{len(twice)} requests are there more than once, {twice[:5]} for example"
    missing = sorted(set(range(records)) - ids.keys())
    assert not missing, f"{len(missing)} requests are missing, {missing[:5]} for example"
    assert sorted(found) == sorted(at_once.summary(at_once.request(lines, number))[1] for number in range(records))


def check_at_least_once(store: sc.Store, records: int) -> int:
    """Each request was noted; returns how many were more than once."""
    topic = store.topic(AUDITED)
    missing = sorted(set(range(records)) - at_once.ids_in(topic, "committed"))
    assert not missing, f"{len(missing)} requests were never noted, {missing[:5]} for example"
    return topic.scan().count() - records


def check_table(store: sc.Store) -> int:
    """The table is what a dict would be that follows the requests; how many clients it has."""
    model: dict[bytes, bytes | None] = {}
    for record in store.topic(REQUESTS).scan():
        client, text = at_once.summary(record.value)
        model[client] = at_once.of_client(text)
    wanted = {client: text for client, text in model.items() if text is not None}
    clients = store.topic(CLIENTS)
    table = clients.table(columns=["key", "value"])
    assert table.num_rows == len(set(table["key"].to_pylist()))
    found = dict(zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True))
    assert found == wanted, "the table is not what the requests say"
    for client in list(model)[:50]:
        latest = clients.latest(client)
        assert (None if latest is None else latest.value) == model[client]
    return len(wanted)


def all_is_decided(store: sc.Store) -> bool:
    """Whether no transaction is open, as one of a killed member is until the next one begins with the same id."""
    return all(part.stable_offset == part.end_offset for topic in store.topics() for part in topic.partitions)


def check_rest(store: sc.Store) -> None:
    """Nothing is left open, and every byte is as it was written."""
    assert all_is_decided(store)
    assert store.verify() == []


# ---- the whole of it ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["os", "disk"])
def test_everything_at_once_under_kills_loses_nothing_and_writes_once_what_is_to_be_written_once(
    durability: at_once.Durability, lines: list[bytes], tmp_path: Path, children: ForkServer, figures: Figures
) -> None:
    at_once.make_store(tmp_path / "store", durability)
    chance = random.Random(SEED)
    with sc.open(tmp_path / "store", durability=durability) as store:
        crowd = Crowd(children, store, RECORDS, {})
        crowd.start_all()
        kills = 0
        while kills < KILLS:
            crowd.resume()
            if chance.random() < 0.15:
                crowd.suspend_one(chance)
                figures["at once: members held up beyond their timeout"] += 1
            what = crowd.kill_one(chance)
            if what is not None:
                figures[f"at once: {what}"] += 1
                kills += 1
        crowd.resume(everybody=True)
        crowd.wait_until(crowd.producers_are_done)
        for group in (EXACT, AUDIT):
            crowd.wait_until(lambda group=group: crowd.left(group) == 0)
        crowd.wait_until(lambda: all_is_decided(store))
        crowd.stop()
        store.topic(CLIENTS).roll()
        store.topic(CLIENTS).compact()
        check_requests(store, lines, RECORDS)
        check_exactly_once(store, lines, RECORDS)
        figures["at once: noted more than once"] += check_at_least_once(store, RECORDS)
        figures["at once: clients in the table"] += check_table(store)
        figures["at once: records"] += RECORDS
        figures["at once: generations of both groups"] += sum(store.group(g).generation for g in (EXACT, AUDIT))
        figures.update({f"at once: {name}": count for name, count in crowd.counts.items()})
        assert crowd.counts["exact DONE"] > 100
        assert store.group(EXACT).generation > 10
        check_rest(store)
    with sc.open(tmp_path / "store", "r") as store:
        check_exactly_once(store, lines, RECORDS)
        check_table(store)


def run_with(children: ForkServer, path: Path, bugs: dict[str, str]) -> sc.Store:
    """A small run of one process of each role; those with a bug die of it and are started anew without."""
    at_once.make_store(path, "os")
    store = sc.open(path)
    crowd = Crowd(children, store, 3000, bugs)
    for role in ("producer", "exact", "audit"):
        for slot in range(PRODUCERS if role == "producer" else 1):
            crowd.start(role, slot)
    for role in set(bugs) & {"exact", "audit"}:
        child = crowd.at_work[role, 0]
        child.wait()
        assert child.is_killed(), child.failure()
    crowd.bugs = {role: bug for role, bug in bugs.items() if role == "rewriter"}
    for role in set(bugs) & {"exact", "audit"}:
        crowd.start(role)
    crowd.wait_until(crowd.producers_are_done)
    for group in (EXACT, AUDIT):
        crowd.wait_until(lambda group=group: crowd.left(group) == 0)
    crowd.wait_until(lambda: all_is_decided(store))
    crowd.stop()
    if "rewriter" in bugs:
        child = crowd.start("rewriter")
        assert child.wait() == 0, child.failure()
    return store


def failures(checks: Iterable[Callable[[], object]]) -> list[str]:
    """What the checks say that fail."""
    found = []
    for check in checks:
        try:
            check()
        except AssertionError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize(
    ("bugs", "said"),
    [
        ({}, []),
        ({"exact": "offsets apart"}, ["more than once"]),
        ({"audit": "commits first"}, ["never noted"]),
        ({"rewriter": "drops the newest"}, ["not what the requests say"]),
    ],
)
def test_the_checks_above_notice(
    bugs: dict[str, str], said: list[str], lines: list[bytes], tmp_path: Path, children: ForkServer
) -> None:
    with run_with(children, tmp_path / "store", bugs) as store:
        check_requests(store, lines, 3000)
        found = failures(
            [
                lambda: check_exactly_once(store, lines, 3000),
                lambda: check_at_least_once(store, 3000),
                lambda: check_table(store),
            ]
        )
        assert len(found) == len(said), found
        assert all(words in text for words, text in zip(said, found, strict=True)), found
        check_rest(store)
