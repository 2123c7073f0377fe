"""The machine loses power: whatever of the unsynced sectors, sizes and names is lost, what was promised is there.

Workloads run in recorded processes. At moments of their recordings a model of the drive gives states in which it may be
found; each is opened and checked, and the store goes on. STREAMCORE_POWER_LOSSES: how many states;
STREAMCORE_POWER_SEED: of other recordings and states; STREAMCORE_POWER_LIVES: how often the power is lost before a
store is checked, for one recording after the other.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import json
import multiprocessing.util
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..system_calls import Event, Kind
from .disk import Disk, all_of_it
from .simulation import Outcome, Simulator, Trace
from .workloads import SOUND

STATES = int(os.environ.get("STREAMCORE_POWER_LOSSES", "10500"))
SEED = os.environ.get("STREAMCORE_POWER_SEED", "0")
_PROCESSES = 2
_POINTS = 100  # of a recording, of three states each
_LIVES = [int(lives) for lives in os.environ.get("STREAMCORE_POWER_LIVES", "1,2,1,3").split(",")]  # of recordings
_EQUAL = 1.15  # points too many, for states that turn out to be equal to others


@functools.cache
def _simulator(kept: Path) -> Simulator:
    made = Simulator(kept)
    multiprocessing.util.Finalize(made, made.close, exitpriority=1)  # atexit is not for these processes
    return made


def lose_power(workload: str, number: int, points: int, kept: str) -> Outcome:
    """Records a workload and checks states of it, in a process that does so again and again.

    number: of the recording; in some the power was lost before, at some moment, and the workload went on then.
    """
    simulator = _simulator(Path(kept))
    seed = f"{SEED}.{number}"
    trace = simulator.record(workload, seed)
    for _ in range(_LIVES[number % len(_LIVES)] - 1):
        trace = simulator.record_another_life(trace, seed)
    return simulator.check(trace, points, seed)


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """One in this process."""
    with Simulator(tmp_path) as made:
        yield made


def test_after_a_power_loss_every_promise_holds(tmp_path: Path, figures: collections.Counter[str]) -> None:
    jobs = max(1, round(STATES / (3 * _POINTS)))
    points = max(1, int(STATES / jobs / 3 * _EQUAL))
    spawn = multiprocessing.get_context("spawn")
    states = collections.Counter[str]()
    with concurrent.futures.ProcessPoolExecutor(_PROCESSES, spawn) as pool:
        running = [
            pool.submit(lose_power, SOUND[job % len(SOUND)], job // len(SOUND), points, str(tmp_path))
            for job in range(jobs)
        ]
        for done in concurrent.futures.as_completed(running):
            outcome = done.result()
            assert not outcome.broken, "\n\n".join(map(str, outcome.broken))
            states += outcome.states
            figures["power losses: equal states passed over"] += outcome.equal
            figures["power losses: recorded events"] += outcome.events
            figures["power losses: moments"] += outcome.points
    assert states.total() > 0.9 * STATES
    figures["power losses: states"] += states.total()
    for doing, count in states.items():
        figures[f"power losses: states while {doing}"] += count


def test_a_drive_that_lost_nothing_has_the_files_as_they_are(simulator: Simulator) -> None:
    """The model's own check: all that was recorded, and none of it lost, is what the file system shows."""
    trace, files = simulator.record_and_keep("everything", "1")
    disk = Disk()
    for event in trace.events:
        disk.take(event)
    disk.settle()
    state = disk.lose_power(random.Random(1), all_of_it)
    assert {file.path: (file.size, file.content) for file in state.files} == files


def test_the_name_of_a_new_store_is_durable_before_it_is_open(simulator: Simulator) -> None:
    trace = simulator.record("creation", "1")
    opened = next(number for number, event in enumerate(trace.events) if b'"end": "open"' in event.data)
    synced = [event.path for event in trace.events[:opened] if event.kind is Kind.SYNC_FOLDER]
    assert "" in synced


# ---- controls -----------------------------------------------------------------------------------------------------


def without(kinds: tuple[Kind, ...], matches: Callable[[str], bool]) -> Callable[[list[Event]], list[Event]]:
    """The recording of a program that forgot to make some calls."""
    return lambda events: [event for event in events if not (event.kind in kinds and matches(event.path))]


_SYNCS = (Kind.SYNC, Kind.SYNC_DATA)
_FORGOTTEN = {
    "segments are not synced": ("append", without(_SYNCS, lambda path: path.endswith(".arrows"))),
    "the journal is not synced": ("journal", without(_SYNCS, lambda path: path.endswith("/journal"))),
    "the catalog is not synced": ("catalog", without(_SYNCS, lambda path: "catalog.sqlite" in path)),
    "rewritten segments are not synced": ("consolidation", without(_SYNCS, lambda path: path.endswith(".new"))),
    "new segments have no durable name": (
        "append", without((Kind.SYNC_FOLDER,), lambda path: path.count("/") == 3)
    ),
    "new partitions have no durable name": (
        "append", without((Kind.SYNC_FOLDER,), lambda path: path.count("/") == 2)
    ),
    "new topics have no durable name": ("creation", without((Kind.SYNC_FOLDER,), lambda path: path == "store/topics")),
    "new stores have no durable name": ("creation", without((Kind.SYNC_FOLDER,), lambda path: path == "")),
}  # fmt: skip


def told_early(events: list[Event], what: str) -> list[Event]:
    """The recording of a program that says that a call is done, and then makes it durable."""
    made: list[Event] = []
    synced = 0
    for event in events:
        note = json.loads(event.data) if event.kind is Kind.NOTE else {}
        if "begin" in note:
            synced = 0
        if event.kind in _SYNCS and synced == 0:
            synced = len(made)
        if note.get("end") == what and synced:
            made.insert(synced, event)
        else:
            made.append(event)
    return made


@pytest.mark.parametrize("bug", _FORGOTTEN)
def test_control_a_forgotten_sync_is_caught(bug: str, simulator: Simulator) -> None:
    workload, edit = _FORGOTTEN[bug]
    trace = simulator.record(workload, "control")
    events = edit(trace.events)
    assert len(events) < len(trace.events)
    assert is_caught(simulator, Trace(workload, events))


def test_control_an_acknowledgement_before_the_sync_is_caught(simulator: Simulator) -> None:
    trace = simulator.record("append", "control")
    assert is_caught(simulator, Trace("append", told_early(trace.events, "append")))


def test_control_an_append_in_halves_is_caught(simulator: Simulator) -> None:
    found = simulator.check(simulator.record("appends in halves", "control"), 60, "1", give_up_after=1).broken
    assert found
    assert "within call" in found[0].what or "lacks offset" in found[0].what or "is not whole" in found[0].what


def test_control_another_value_is_caught(simulator: Simulator) -> None:
    """The checker believes that a call has appended other records."""
    assert "is Row" in caught_with(simulator, lambda note: note["parts"][0].__setitem__(1, note["parts"][0][1] + 5000))


def test_control_another_order_is_caught(simulator: Simulator) -> None:
    """The checker believes that a call has appended its records one place further on."""

    def move(note: dict[str, list[list[int]]]) -> None:
        note["spans"] = [[partition, first + 1, end + 1] for partition, first, end in note["spans"]]

    assert caught_with(simulator, move, "end")


def caught_with(simulator: Simulator, change: Callable[[dict[str, list[list[int]]]], None], kind: str = "begin") -> str:
    """What is wrong with a state when one note of an append says something else."""
    trace = simulator.record("append", "control")
    events = list(trace.events)
    for number, event in enumerate(events):
        note = json.loads(event.data) if event.kind is Kind.NOTE else {}
        if note.get(kind) == "append" and note["n"] > 10:
            change(note)
            events[number] = event._replace(data=json.dumps(note).encode())
            break
    found = simulator.check(Trace("append", events), 60, "1", give_up_after=1).broken
    assert found
    return found[0].what


def is_caught(simulator: Simulator, trace: Trace) -> bool:
    """Whether a state breaks a promise."""
    return bool(simulator.check(trace, 120, "1", give_up_after=1).broken)
