"""The soak: everything that a store can do, at once, for a long time, with kills; it stays right, and flat.

    python -m tests.crash.soak --seconds 3600 --out folder

At work are the roles of `mixed_load`. Of each one process lives from the beginning to the end; the others are killed
at random and started anew, some are suspended and come back as zombies. `figures.json` in the folder has what was
measured; a store that is found wrong stays there.

A soak in which something grows goes on once for as long again, and that is what counts: a leak goes on, too, while what
was filled or fell together by chance does not. The second half, which is judged, is then all of the added time.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import streamcore as sc

from . import mixed_load
from .flatness import Figures, Growth, downsampled
from .forkserver import Child, ForkServer, fork_server
from .lanes import Acknowledgements
from .mixed_load import AUDIT, COPIES, EVENTS, EXACT, MEMBER_TIMEOUT_MS, NOTED, ROLES, WRITERS, Checker

SUSPENDED_S = 2 * MEMBER_TIMEOUT_MS / 1000
DRAIN_S = 120.0
_KILLED = {"exact": 2}  # one of each other role
_POINTS_KEPT = 60
_WORD_S = 0.3
_WARM_S = 150.0
_SAMPLES_MIN = 24
Key = tuple[str, int]


class Plan(NamedTuple):
    """How a soak goes. bugs: what the process of a role in slot 0, which is never killed, does wrong."""

    seconds: float
    folder: Path
    seed: int = 1
    kills_per_s: float = 1.5
    roles: tuple[str, ...] = tuple(ROLES)
    bugs: dict[str, str] = {}  # noqa: RUF012

    @property
    def sample_s(self) -> float:
        """How often figures are taken."""
        return min(1.0, self.seconds / 50)

    @property
    def floors_times(self) -> float:
        """By how much the floors of `flatness` are raised: a short run is not over when caches are full."""
        return max(1.0, _WARM_S / self.seconds)


class Report(NamedTuple):
    """What came of it."""

    seconds: float
    counts: dict[str, int]
    growths: list[Growth]
    figures: Figures

    @property
    def growing(self) -> list[Growth]:
        """What is not flat."""
        return [growth for growth in self.growths if not growth.is_flat]

    def as_json(self) -> str:
        """Counts, growths and the points, downsampled."""
        points = {
            name: [[round(t, 1), round(v)] for t, v in downsampled(points, _POINTS_KEPT)]
            for name, points in self.figures.points.items()
        }
        growths = [{**g._asdict(), "flat": g.is_flat} for g in self.growths]
        return json.dumps({"seconds": round(self.seconds), "counts": self.counts, "growths": growths, "points": points})


class Crew:
    """The processes at work. Slot 0 of each role is never killed; whoever is killed is started anew."""

    def __init__(self, server: ForkServer, plan: Plan, store: sc.Store, acks: Path) -> None:
        self._server = server
        self._plan = plan
        self._store = store
        self._acks = acks
        self._chance = random.Random(plan.seed)
        self._started = 0
        self.at_work: dict[Key, Child] = {}
        self._suspended: dict[Child, float] = {}  # and when they go on
        self._zombies: list[Child] = []  # others have their place
        self.counts: collections.Counter[str] = collections.Counter()

    def start(self, key: Key) -> None:
        """One more process."""
        self._started += 1
        bug = self._plan.bugs.get(key[0]) if key[1] == 0 else None
        self.at_work[key] = self._server.start(
            ROLES[key[0]], store_path=str(self._store.path), acks=str(self._acks), writer=key[1],
            seed=self._plan.seed + self._started, bug=bug,
        )  # fmt: skip

    def start_all(self) -> None:
        """One of each role that lives, and some that are killed."""
        for role in self._plan.roles:
            for slot in range(1 + _KILLED.get(role, 1)):
                self.start((role, slot))

    def keep(self) -> list[tuple[str, int]]:
        """Name and process id of those that live from the beginning to the end."""
        return [(role, child.pid) for (role, slot), child in self.at_work.items() if slot == 0]

    def read_all(self) -> None:
        """Hears what they say. Raises AssertionError with what one of them found wrong."""
        for child in [*self.at_work.values(), *self._zombies]:
            child.read(0)
            self._count(child)
        for (role, slot), child in list(self.at_work.items()):
            if child.at_end:
                status = child.wait()
                is_fenced = role == "transactions" and status == 0
                assert is_fenced, f"{role} {slot} ended by itself, status {status}"
                self._fenced_by_zombie((role, slot))

    def _fenced_by_zombie(self, key: Key) -> None:
        """A zombie went on with a transaction of its own before it was fenced: the place is its own again."""
        self.counts["fenced by a zombie"] += 1
        awake = [child for child in self._zombies if not child.at_end and child not in self._suspended]
        if awake:
            self._zombies.remove(awake[-1])
            self.at_work[key] = awake[-1]
        else:
            self.start(key)

    def _count(self, child: Child) -> None:
        for line in child.lines:
            assert line[0] != "FAILED", json.loads(" ".join(line[1:]))
            if line[0] == "DONE":
                self.counts[" ".join(line[1:3])] += int(line[3])
            else:
                self.counts[line[0].lower()] += 1
        child.lines.clear()

    # ---- kills ----

    def kill_one(self) -> None:
        """Kills one, half of the time in the middle of something, and starts it anew."""
        key = self._chance.choice([key for key in self.at_work if key[1] > 0])
        child = self.at_work[key]
        if child not in self._suspended and self._chance.random() < 0.5:
            self._wait_for_word(child)
            end = time.monotonic() + self._chance.uniform(0, 0.006)
            while time.monotonic() < end:
                pass
        child.kill()
        self._suspended.pop(child, None)
        self._count(child)
        assert child.is_killed() or child.status == 0, f"{key} ended with status {child.status}"
        self.counts["kills"] += 1
        self.counts[f"kills of {key[0]}"] += 1
        self.start(key)

    def _wait_for_word(self, child: Child) -> None:
        end = time.monotonic() + _WORD_S
        before = child.bytes_read
        while child.bytes_read == before and time.monotonic() < end:
            child.read(0.01)

    def suspend_one(self) -> None:
        """Holds one up for longer than members may be silent. Of a transactional writer, another takes the place."""
        key = self._chance.choice([key for key in self.at_work if key[1] > 0])
        child = self.at_work[key]
        if child in self._suspended:
            return
        os.kill(child.pid, signal.SIGSTOP)
        self.counts["suspensions"] += 1
        self._suspended[child] = time.monotonic() + SUSPENDED_S
        if key[0] == "transactions":
            self._zombies.append(child)
            self.start(key)

    def resume(self, *, everybody: bool = False) -> None:
        """Lets those go on whose time it is. A zombie must end by itself: it finds that it was fenced."""
        for child, until in list(self._suspended.items()):
            if everybody or time.monotonic() >= until:
                os.kill(child.pid, signal.SIGCONT)
                del self._suspended[child]
        for child in list(self._zombies):
            child.read(0)
            self._count(child)
            if child.at_end:
                assert child.wait() == 0, "a zombie failed"
                self.counts["zombies fenced"] += 1
                self._zombies.remove(child)

    def stop(self, roles: Iterable[str]) -> None:
        """Ends those of some roles in an orderly way."""
        self.resume(everybody=True)
        chosen = [key for key in self.at_work if key[0] in roles]
        children = [self.at_work.pop(key) for key in chosen]
        if "transactions" in roles:
            children += self._zombies
            self._zombies = []
        for child in children:
            child.tell()
        for child in children:
            child.wait()
            self._count(child)
            assert child.status == 0, f"a child ended with status {child.status}"


class Offsets:
    """Committed offsets, which never go back."""

    def __init__(self, store: sc.Store) -> None:
        self._groups = [store.group(name) for name in (EXACT, AUDIT)]
        self._before: dict[tuple[str, Any], int] = {}

    def check(self) -> None:
        """Compares them with those of the last time."""
        for group in self._groups:
            for place, offset in group.offsets().items():
                before = self._before.get((group.name, place), 0)
                assert offset >= before, f"{group.name} went back from {before} to {offset} in {place}"
                self._before[group.name, place] = int(offset)


class Soak:
    """One run. progress(seconds that are over, counts) is called about once a second."""

    def __init__(self, plan: Plan, progress: Callable[[float, dict[str, int]], None] | None = None) -> None:
        self._plan = plan
        self._progress = progress
        self._store_path = plan.folder / "store"
        self._acks = plan.folder / "acknowledged"
        self.figures = Figures()

    def run(self, server: ForkServer) -> Report:
        """All of it. AssertionError when something is found wrong; what grows is in the report."""
        self._acks.mkdir(parents=True)
        mixed_load.make_store(self._store_path)
        begin = time.monotonic()
        with sc.open(self._store_path, maintenance=False) as store:
            crew = Crew(server, self._plan, store, self._acks)
            crew.start_all()
            rolled = self._work(crew, store)
            self._settle(crew, store)
            crew.counts["segments rolled, at least"] = rolled
            seconds = time.monotonic() - begin
            self._check_end(store, crew.counts)
        with sc.open(self._store_path, "r") as store:
            assert store.verify() == []
        return Report(seconds, dict(crew.counts), self._growths(), self.figures)

    def _work(self, crew: Crew, store: sc.Store) -> int:
        """Kills, suspends, watches; the number of segments that were seen."""
        chance = random.Random(self._plan.seed)
        begin = time.monotonic()
        end = begin + self._plan.seconds
        kill_at = suspend_at = begin + 1
        sample_at = begin
        offsets = Offsets(store)
        seen: dict[tuple[str, int], set[str]] = collections.defaultdict(set)
        rolled = 0
        samples = 0
        while True:
            now = time.monotonic()
            if now >= end and samples >= _SAMPLES_MIN:  # where the machine is busy: longer
                if crew.counts["prolonged"] or all(growth.is_flat for growth in self._growths()):
                    return rolled
                crew.counts["prolonged"] += 1
                end = now + (now - begin)
            crew.read_all()
            crew.resume()
            if now >= kill_at:
                crew.kill_one()
                kill_at = now + chance.expovariate(self._plan.kills_per_s)
            if now >= suspend_at:
                crew.suspend_one()
                suspend_at = now + chance.uniform(2, 6)
            if now >= sample_at:
                sample_at = now + self._plan.sample_s
                samples += 1
                offsets.check()
                rolled += _new_segments(self._store_path, seen)
                self._sample(crew, now - begin)
            time.sleep(0.02)

    def _growths(self) -> list[Growth]:
        return list(self.figures.growths(self._plan.floors_times))

    def _sample(self, crew: Crew, time_s: float) -> None:
        for who, pid in crew.keep():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                self.figures.note_process(time_s, who, pid)
        self.figures.note_process(time_s, "the observer", os.getpid())
        self.figures.note_store(time_s, self._store_path)
        if self._progress is not None:
            self._progress(time_s, crew.counts)

    def _settle(self, crew: Crew, store: sc.Store) -> None:
        """Ends the writers, lets the groups come to the end, then ends the rest."""
        crew.stop(WRITERS)
        end = time.monotonic() + DRAIN_S
        pipelines = {EXACT, AUDIT} <= set(self._plan.roles)
        while pipelines and (mixed_load.lag(store) > 0 or not _all_is_decided(store)):
            assert time.monotonic() < end, (
                f"the groups do not come to the end: {mixed_load.lag(store)} records are left"
            )
            crew.read_all()
            time.sleep(0.05)
        crew.stop(self._plan.roles)

    def _check_end(self, store: sc.Store, counts: collections.Counter[str]) -> None:
        """Each log is right, the copies are complete, and every byte is as it was written."""
        Checker(store, Acknowledgements(self._acks)).check_all()
        for role, name in (("exact", COPIES), ("audit", NOTED)):
            for partition in range(4) if {role, "producer"} <= set(self._plan.roles) else ():
                wanted, found = (_latest(store.topic(of), partition) for of in (EVENTS, name))
                assert wanted == found, f"{name}/{partition} ends with {found}, not {wanted}"
        assert store.verify() == []
        counts["records written"] = sum(part.end_offset for topic in store.topics() for part in topic.partitions)
        counts["records deleted"] = sum(part.start_offset for topic in store.topics() for part in topic.partitions)
        counts["rebalances"] = sum(store.group(name).generation for name in (EXACT, AUDIT))
        for task in store.stats().maintenance:
            assert task.errors == 0, f"{task.task} failed: {task.last_error}"
            counts[f"runs of {task.task}"] = task.runs


def _all_is_decided(store: sc.Store) -> bool:
    return all(part.stable_offset == part.end_offset for topic in store.topics() for part in topic.partitions)


def _latest(topic: sc.Topic, partition: int) -> dict[int, int]:
    """The highest number of each writer that is in the log, 0 when retention has all of it."""
    found: dict[int, int] = {}
    for value in topic.scan(partition, columns=["value"]).to_arrow()[0].to_pylist():
        writer, number = mixed_load.checked(value)
        found[writer] = max(found.get(writer, 0), number)
    return found


def _new_segments(store_path: Path, seen: dict[Any, set[str]]) -> int:
    """How many segments of the topics that stay are there that were not there before."""
    count = 0
    for name in mixed_load.TOPICS:
        for folder in (store_path / "topics").glob(f"{name}-*/[0-9]"):
            names = {path.name for path in folder.iterdir() if path.suffix == ".arrows"}
            count += len(names - seen[name, folder.name])
            seen[name, folder.name] = names
    return count


# ---- the program --------------------------------------------------------------------------------------------------


def _table(report: Report) -> Any:
    from rich.table import Table

    table = Table("figure", "median", "growth over the whole", "allowed", "")
    for growth in report.growths:
        cells = [f"{number:,.0f}" for number in (growth.median, growth.grown, growth.allowed)]
        table.add_row(growth.name, *cells, "" if growth.is_flat else "GROWS")
    return table


def main() -> int:
    """A soak from the command line; 1 when something grows."""
    from rich.console import Console
    from rich.progress import Progress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--out", type=Path, required=True, help="a folder; it must not exist")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills-per-second", type=float, default=1.5)
    given = parser.parse_args()
    plan = Plan(given.seconds, given.out, given.seed, given.kills_per_second)
    console = Console()
    with Progress(console=console) as progress, fork_server() as server:
        task = progress.add_task("soak", total=given.seconds)

        def show(seconds: float, counts: dict[str, int]) -> None:
            total = max(seconds, given.seconds)
            progress.update(task, completed=seconds, total=total, description=f"soak, {counts.get('kills', 0)} kills")

        soak = Soak(plan, show)
        try:
            report = soak.run(server)
        except BaseException:
            (given.out / "figures.json").write_text(json.dumps(soak.figures.points))  # the store stays there, too
            raise
    (given.out / "figures.json").write_text(report.as_json() + "\n")
    shutil.rmtree(given.out / "store")
    shutil.rmtree(given.out / "acknowledged")
    console.print(_table(report))
    for name, count in sorted(report.counts.items()):
        console.print(f"{name}: {count:,}")
    return 1 if report.growing else 0


if __name__ == "__main__":
    sys.exit(main())
