"""Records workloads, loses power at chosen moments, and checks the states: some work for one process."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import pickle
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..system_calls import Event, Kind, build_library
from .disk import Disk, State
from .ledger import Ledger
from .promises import Checker, check_state
from .recording import Recorder
from .workloads import WORKLOADS, Memory, made_small

_STATES_PER_POINT = 3
_NEXT_LIFE = 1 << 16  # numbers that an earlier life of the store has not used
_WEIGHTS = {
    Kind.SYNC: 6, Kind.SYNC_DATA: 4, Kind.SYNC_FOLDER: 6, Kind.RENAME: 8, Kind.UNLINK: 6, Kind.RMDIR: 6, Kind.MKDIR: 4,
    Kind.CREATE: 4, Kind.NOTE: 3, Kind.TRUNCATE: 4, Kind.ALLOCATE: 2, Kind.ZERO: 4, Kind.WRITE: 2, Kind.STORE: 1,
}  # fmt: skip

Edit = Callable[[list[Event]], list[Event]]


class Broken(NamedTuple):
    """A state that breaks a promise: where it was drawn, and what is wrong. `trace`: the recording, kept."""

    workload: str
    trace: str
    point: int
    seed: int
    style: str
    doing: str
    what: str

    def __str__(self) -> str:
        folder = "tests" if __package__.startswith("crash") else "."  # as pickles name what is in them
        again = f"PYTHONPATH={folder} python -m {__package__} {self.trace} {self.point} {self.seed}"
        return f"{self.workload}, while {self.doing}, {self.style}: {self.what}\nagain: {again}"


@dataclasses.dataclass
class Outcome:
    """What was tried."""

    states: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # by what was being done
    points: int = 0
    events: int = 0
    equal: int = 0
    seconds: float = 0.0
    broken: list[Broken] = dataclasses.field(default_factory=list)


class Trace(NamedTuple):
    """A recording of a workload. `origin`: what was on the drive, and had been promised, when it began."""

    workload: str
    events: list[Event]
    origin: tuple[Disk, Ledger] | None = None

    def begin(self) -> tuple[Disk, Ledger]:
        """The drive and the promises before the first event."""
        return (Disk(), Ledger()) if self.origin is None else copy.deepcopy(self.origin)

    def save(self, folder: Path) -> Path:
        """Into a file of its own."""
        with tempfile.NamedTemporaryFile(prefix="trace-", suffix=".pickle", dir=folder, delete=False) as file:
            pickle.dump(self, file)
        return Path(file.name)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """What was saved."""
        loaded = pickle.loads(path.read_bytes())
        assert isinstance(loaded, cls)
        return loaded


def choose_points(events: Sequence[Event], ledger: Ledger, count: int, chance: random.Random) -> list[int]:
    """Numbers of events behind which the power goes, in their order. `ledger`: of before them; it is used up.

    What a store does has equal shares, however many events it takes: of those, moments beside syncs and changed names
    are the likeliest.
    """
    doing = _doing(events, ledger)
    places: dict[str, list[int]] = {}
    for number, what in enumerate(doing):
        places.setdefault(what, []).append(number)
    chosen: set[int] = set()
    for _ in range(count * 4):
        if len(chosen) >= min(count, len(events)):
            break
        numbers = places[chance.choice(list(places))]
        weights = [_WEIGHTS[events[number].kind] + _weight_behind(events, number) for number in numbers]
        chosen.update(chance.choices(numbers, weights, k=3))
    return sorted(chance.sample(sorted(chosen), min(count, len(chosen))))


def _weight_behind(events: Sequence[Event], number: int) -> int:
    return _WEIGHTS[events[number + 1].kind] if number + 1 < len(events) else 3


def _doing(events: Sequence[Event], ledger: Ledger) -> list[str]:
    doing = []
    for event in events:
        if event.kind is Kind.NOTE:
            ledger.take(event.data)
        doing.append(ledger.doing)
    return doing


def memory_of(ledger: Ledger) -> Memory:
    """What a session must know to go on."""
    topics = {name: {"partitions": facts.partitions} for name, facts in ledger.facts[-1].topics.items()}
    first = ledger.losses * _NEXT_LIFE
    return Memory(number=first, call=first, topic=first, topics=topics)


class Simulator:
    """Loses power again and again in one process. A context manager."""

    def __init__(self, kept: Path | None = None) -> None:
        memory = Path("/dev/shm")  # the states are many, and none is to be written to a drive
        self._folder = Path(tempfile.mkdtemp(prefix="streamcore-power-", dir=memory if memory.is_dir() else None))
        self._kept = kept
        self._library = build_library(self._folder)
        self._recorders: dict[int, Recorder] = {}
        self._patches = contextlib.ExitStack()
        self._patches.enter_context(made_small())

    def record(self, workload: str, seed: str) -> Trace:
        """Runs a workload."""
        return self.record_and_keep(workload, seed)[0]

    def record_and_keep(self, workload: str, seed: str) -> tuple[Trace, dict[str, tuple[int, bytes]]]:
        """Runs a workload; also returns the size, and the content up to the zeros at its end, of each file."""
        root = self._folder / "recorded"
        root.mkdir()
        try:
            events = self._recorder(1).run(workload, seed, root, Memory())
            files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            return Trace(workload, events), {name: (len(d), d.rstrip(b"\0")) for name, d in files.items()}
        finally:
            shutil.rmtree(root)

    def record_another_life(self, trace: Trace, seed: str) -> Trace:
        """Loses power once in a recording, and runs the workload again on what is left."""
        [(_, _, state, ledger)] = self.states(trace, 1, seed, 1)
        root = self._folder / "recorded"
        root.mkdir()
        try:
            state.write(root)
            settled = Checker(ledger, WORKLOADS[trace.workload].shape).settle(root / "store")
            shutil.rmtree(root)
            root.mkdir()
            state.write(root)
            origin = Disk.of_folder(root), settled
            events = self._recorder(2 if trace.origin is None else 3).run(
                trace.workload, f"{seed} again", root, memory_of(settled)
            )
            return Trace(trace.workload, events, origin)
        finally:
            shutil.rmtree(root)

    def _recorder(self, boot: int) -> Recorder:
        """Whose sessions run on a machine that was started so often."""
        if boot not in self._recorders:
            folder = self._folder / f"boot-{boot}"
            folder.mkdir()
            self._recorders[boot] = Recorder(self._library, folder)
        return self._recorders[boot]

    def states(
        self, trace: Trace, points: int, seed: str, per_point: int = _STATES_PER_POINT
    ) -> Iterator[tuple[int, int, State, Ledger]]:
        """Draws states: point, seed, state, and what was promised then."""
        chance = random.Random(seed)
        disk, ledger = trace.begin()
        at = 0
        for point in choose_points(trace.events, trace.begin()[1], points, chance):
            for event in trace.events[at : point + 1]:
                disk.take(event)
                if event.kind is Kind.NOTE:
                    ledger.take(event.data)
            at = point + 1
            for _ in range(per_point):
                of_state = chance.randrange(1 << 32)
                yield point, of_state, disk.lose_power(random.Random(of_state)), ledger

    def check(self, trace: Trace, points: int, seed: str, *, give_up_after: int = 3) -> Outcome:
        """Draws and checks states of a recording."""
        outcome = Outcome(points=points, events=len(trace.events))
        began = time.process_time()
        seen: set[tuple[int, int]] = set()
        for point, of_state, state, ledger in self.states(trace, points, seed):
            if (state.digest, ledger.notes) in seen:
                outcome.equal += 1
                continue
            seen.add((state.digest, ledger.notes))
            outcome.states[ledger.doing] += 1
            what = self.check_one(trace, state, ledger, of_state)
            if what is None:
                continue
            saved = trace.save(self._kept) if self._kept is not None and not outcome.broken else None
            path = outcome.broken[0].trace if outcome.broken else str(saved)
            outcome.broken.append(Broken(trace.workload, path, point, of_state, state.style, ledger.doing, what))
            if len(outcome.broken) >= give_up_after:
                break
        outcome.seconds = time.process_time() - began
        return outcome

    def check_one(self, trace: Trace, state: State, ledger: Ledger, seed: int) -> str | None:
        """What is wrong with a state."""
        root = self._folder / "lost"
        root.mkdir()
        try:
            state.write(root)
            check_state(ledger, WORKLOADS[trace.workload].shape, root / "store", random.Random(seed))
        except Exception:
            return traceback.format_exc()
        finally:
            shutil.rmtree(root)
        return None

    def repeat(self, trace: Trace, point: int, seed: int) -> str | None:
        """What is wrong with the state of a seed."""
        disk, ledger = trace.begin()
        for event in trace.events[: point + 1]:
            disk.take(event)
            if event.kind is Kind.NOTE:
                ledger.take(event.data)
        return self.check_one(trace, disk.lose_power(random.Random(seed)), ledger, seed)

    def close(self) -> None:
        """Ends the recorder and removes the folder."""
        self._patches.close()
        for recorder in self._recorders.values():
            recorder.close()
        shutil.rmtree(self._folder)

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
