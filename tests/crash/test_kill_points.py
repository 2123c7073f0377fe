"""Processes that are killed before or after any of their file calls, SQLite's included: nothing acknowledged is lost.

A kill point is a call's name, the kind of file that it is about, and whether the process ends before or after it. The
operations are those of operations.py, in processes in front of whose libc stands system_calls.c. Several processes die
one after the other over the same store, in a third of the cases beside others that go on.

STREAMCORE_POINT_KILLS: how many kills (the default takes about a minute).
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import streamcore as sc

from .forkserver import Channel, Child, ForkServer, fork_server
from .operations import OPERATIONS, Broken, Facts, check_facts, make_template
from .system_calls import Rule, SystemCalls, build_library, environment

Figures = collections.Counter[str]
Point = tuple[str, str]
KILLS = int(os.environ.get("STREAMCORE_POINT_KILLS", "400"))
_SEED = int(os.environ.get("STREAMCORE_SEED", "1"))
_STORES = 6
_KILLS_PER_STORE = 8
_COMPANIONS = 2
_WRITES = [name for name in OPERATIONS if name not in ("opening it for reading", "consuming", "verifying", "looking")]
_BESIDE_OTHERS = ["small appends", "durable appends", "large appends", "flushing", "producing"]
_MARKS = itertools.count(1)


def kind_of(path: str) -> str:
    """What a path below a store is, without names and numbers."""
    if path == "" or path == "topics":
        return path or "store folder"
    name = path.rsplit("/", 1)[-1]
    if re.fullmatch(r"\d+", name):
        return "partition folder"
    if path.count("/") == 1 and path.startswith("topics/"):
        return "topic folder"
    return re.sub(r"^\d{20}", "*", name)


# ---- in the child ----------------------------------------------------------------------------------------------------


def work(
    channel: Channel, store_path: str, names: list[str], mark: str, durability: Literal["os", "disk"],
    log: str | None = None, rule: list[Any] | None = None, bug: str | None = None,
) -> None:  # fmt: skip
    """Does some operations, and tells what it begins and has done, until a rule ends it.

    `bug` "acknowledges early": it tells that it has done what it begins.
    """

    def tell(word: str, number: int, what: list[Any]) -> None:
        channel.send(word, number, json.dumps(what))
        if bug == "acknowledges early" and word == "BEGUN":
            channel.send("DONE", number, "[]")

    path = Path(store_path)
    calls = SystemCalls()
    if log is not None:
        Path(log).touch()
        calls.log(log)
    if rule is not None:
        calls.arm(Rule(*rule))
    calls.root(path)
    facts = Facts(mark, tell)
    try:
        for name in names:
            operation = OPERATIONS[name]
            if operation.opens:
                operation.run(path, facts)
                continue
            with sc.open(path, durability=durability, maintenance=False) as store:
                operation.run(store, facts)
    except sc.FencedError:  # another process runs the same transactions, or reads in the same group
        channel.send("FENCED")


# ---- in the parent ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Forks children in front of whose calls the library stands."""
    folder = tmp_path_factory.mktemp("library")
    library = build_library(folder)
    with fork_server(environment(library, folder / "nothing")) as running:
        yield running


@pytest.fixture(scope="module")
def workplace() -> Iterator[Path]:
    """A folder in memory: hundreds of stores are made and thrown away in it."""
    shm = Path("/dev/shm")
    folder = (shm if os.access(shm, os.W_OK) else Path("/tmp")) / f"streamcore-kills-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def template(workplace: Path) -> Path:
    path = workplace / "template"
    make_template(path)
    return path


def points_in(log: Path) -> list[Point]:
    """The calls of a process, as names and kinds of files."""
    points = []
    for line in log.read_text().splitlines():
        name, _, path = line.partition(" ")
        points.append((name, kind_of(path)))
    return points


@pytest.fixture(scope="module")
def points(caught: ForkServer, template: Path, workplace: Path) -> dict[str, dict[Point, list[int]]]:
    """Of each operation: which of its calls are of which kind."""
    found: dict[str, dict[Point, list[int]]] = {}
    for name in OPERATIONS:
        path, log = workplace / "clean", workplace / "clean.log"
        shutil.copytree(template, path)
        child = caught.start(work, store_path=str(path), names=[name], mark="clean", durability="os", log=str(log))
        assert child.wait() == 0, child.failure()
        found[name] = collections.defaultdict(list)
        for number, point in enumerate(points_in(log), 1):
            found[name][point].append(number)
        shutil.rmtree(path)
        log.unlink()
    return found


class Victims:
    """Processes that work on one store, of which some are killed; and what they have told."""

    def __init__(self, caught: ForkServer, template: Path, path: Path, chance: random.Random) -> None:
        shutil.copytree(template, path)
        self.path = path
        self.facts = Facts()
        self._caught = caught
        self._chance = chance
        self._durability = chance.choice(["os", "disk"])

    def start(self, names: list[str], rule: Rule | None = None, bug: str | None = None) -> Child:
        log = None if rule is None else str(self.path.with_suffix(".log"))
        return self._caught.start(
            work, store_path=str(self.path), names=names, mark=f"-{next(_MARKS)}", durability=self._durability, log=log,
            rule=None if rule is None else list(rule), bug=bug,
        )  # fmt: skip

    def take(self, child: Child) -> None:
        """What a process that has ended has told."""
        self.facts.next_process()
        for line in child.lines:
            if line[0] in ("BEGUN", "DONE"):
                self.facts.take(line[0], int(line[1]), json.loads(" ".join(line[2:])))

    def kill(self, names: list[str], rule: Rule, figures: Figures, bug: str | None = None) -> bool:
        """A process that the rule ends; False when it came to its own end before."""
        child = self.start(names, rule, bug)
        status = child.wait()
        self.take(child)
        log = self.path.with_suffix(".log")
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed or status == 0, f"{names} {rule}: status {status}: {child.failure()}"
        if killed:
            name, kind = points_in(log)[-1]
            figures[f"killed at {name} {kind}"] += 1
            figures["kills at file calls"] += 1
        log.unlink()
        return killed

    def check(self) -> None:
        check_facts(self.path, self.facts)
        shutil.rmtree(self.path)


def choose(points: dict[Point, list[int]], chance: random.Random) -> Rule:
    """A call, each kind with the same chance, before or after."""
    point = chance.choice(sorted(points))
    return Rule("any", "", chance.choice(points[point]), chance.choice(["kill-before", "kill-after"]))


@pytest.mark.parametrize("part", range(_STORES))
def test_a_process_that_is_killed_at_any_file_call_loses_nothing(
    part: int, caught: ForkServer, template: Path, workplace: Path, figures: Figures,
    points: dict[str, dict[Point, list[int]]],
) -> None:  # fmt: skip
    chance = random.Random(f"{_SEED} {part}")
    killed = 0
    for number in itertools.count():
        if killed >= KILLS // _STORES:
            break
        victims = Victims(caught, template, workplace / f"store-{part}-{number}", chance)
        crowded = number % 3 == 2
        companions = [victims.start(chance.sample(_BESIDE_OTHERS, 3)) for _ in range(_COMPANIONS * crowded)]
        story: list[Any] = [victims.path.name]
        try:
            for _ in range(_KILLS_PER_STORE):
                name = chance.choice(_BESIDE_OTHERS if crowded else _WRITES)
                rule = choose(points[name], chance)
                story.append((name, str(rule)))
                killed += victims.kill([name], rule, figures)
            for child in companions:
                assert child.wait() == 0, child.failure()
                victims.take(child)
            figures["writers that went on beside kills"] += len(companions)
            victims.check()
        except (AssertionError, sc.StreamcoreError) as error:
            raise AssertionError(f"after {story}: {type(error).__name__}: {error}") from error


def test_control_what_was_told_too_early_is_missed(
    caught: ForkServer, template: Path, workplace: Path, points: dict[str, dict[Point, list[int]]]
) -> None:
    chance, figures = random.Random(1), collections.Counter[str]()
    caught_it = 0
    for number in range(6):
        victims = Victims(caught, template, workplace / f"control-{number}", chance)
        numbers = points["small appends"][("allocate", "*.arrows")]
        rule = Rule("any", "", numbers[number % len(numbers)], "kill-before")
        assert victims.kill(["small appends"], rule, figures, bug="acknowledges early")
        try:
            victims.check()
        except Broken:
            caught_it += 1
    assert caught_it > 0
