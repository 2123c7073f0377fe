"""A contest: streamcore, its peers and the raw limit run in turn, round after round; goals are ratios between them.

Every contestant gets an empty folder and a stopwatch, and answers how many units it did. A goal is the median of the
ratios of the rounds, so that a noisy minute hits both sides of it. What was found goes into pytest-benchmark's JSON
under `extra_info`.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from bench import host_memory

Contestant = Callable[[Path, "Stopwatch"], float]


class Stopwatch:
    """Measures what happens inside `with watch:`, wall time and CPU of the whole process; several times add up."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_s = 0.0
        self.elsewhere = False
        self._started = (0.0, 0.0)

    def __enter__(self) -> Self:
        self._started = (cpu_seconds(), time.perf_counter())
        return self

    def __exit__(self, *exception: object) -> None:
        end = time.perf_counter()
        cpu, start = self._started
        self.seconds += end - start
        self.cpu_s += cpu_seconds() - cpu

    def measured_elsewhere(self, seconds: float, cpu_s: float) -> None:
        """For a contestant in a process of its own, which measured itself."""
        self.seconds, self.cpu_s, self.elsewhere = seconds, cpu_s, True

    def add_cpu(self, cpu_s: float) -> None:
        """CPU seconds that a server of the contestant used meanwhile."""
        self.cpu_s += cpu_s


@dataclass
class Sample:
    """What one contestant did in one round."""

    amount: float
    seconds: float
    cpu_s: float
    grown_rss_mb: float | None  # peak, less what the process held before
    disk_bytes: int

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


@dataclass
class Goal:
    """One goal and what was measured. `sense` is ">=" or "<="."""

    what: str
    measured: float
    needed: float
    sense: str
    unit: str = "×"
    low: float | None = None
    high: float | None = None
    later: str | None = None  # why the goal is not due yet

    @property
    def met(self) -> bool:
        return self.measured >= self.needed if self.sense == ">=" else self.measured <= self.needed


@dataclass
class Curve:
    """Series of (x, y) points for one plot."""

    name: str
    title: str
    x: str
    y: str
    logarithmic: str = "x"
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, name: str, x: float, y: float) -> None:
        self.series.setdefault(name, []).append((x, y))


class Contest:
    """One question: who enters, what was measured, which goals there are."""

    def __init__(self, benchmark: Any, folder: Path, question: str, unit: str = "records/s") -> None:
        self.question = question
        self.unit = unit
        self.samples: dict[str, list[Sample]] = {}
        self._benchmark = benchmark
        self._folder = folder
        self._memory_bytes = 0
        self._contestants: dict[str, Contestant] = {}
        self._goals: list[Goal] = []
        self._facts: list[tuple[str, float, str]] = []
        self._notes: list[str] = []
        self._curves: list[Curve] = []

    def enter(self, name: str, contestant: Contestant) -> None:
        self._contestants[name] = contestant

    def absent(self, name: str, why: str) -> None:
        """A peer that could not be started; the report says why."""
        self.note(f"{name} is absent: {why}")

    def run(self, rounds: int, memory_bytes: int = 0) -> None:
        """One round to warm up, then `rounds` that count; the order of the contestants turns from round to round.

        Before each contestant `memory_bytes` are taken from the host of a virtual machine (see host_memory).
        """
        self._memory_bytes = memory_bytes
        turn = iter(range(rounds + 1))
        self._benchmark.pedantic(lambda: self._round(next(turn)), rounds=rounds, iterations=1, warmup_rounds=1)

    def once(self, measure: Callable[[], None]) -> None:
        """For a question that is not a race: `measure` adds facts, goals and curves itself."""
        self._benchmark.pedantic(measure, rounds=1, iterations=1, warmup_rounds=0)

    def median(self, name: str) -> float:
        return statistics.median(sample.rate for sample in self.samples[name])

    def ratios(self, name: str, than: str) -> list[float]:
        pairs = zip(self.samples[name], self.samples[than], strict=True)
        return [ours.rate / theirs.rate for ours, theirs in pairs]

    def faster(self, what: str, name: str, than: str, factor: float) -> None:
        """Goal: `name` does at least `factor` times as many units a second as `than`."""
        if than not in self.samples:
            return
        ratios = self.ratios(name, than)
        self._goals.append(Goal(what, statistics.median(ratios), factor, ">=", low=min(ratios), high=max(ratios)))

    def at_most(self, what: str, measured: float, limit: float, unit: str = "×", later: str | None = None) -> None:
        self._goals.append(Goal(what, measured, limit, "<=", unit, later=later))

    def at_least(self, what: str, measured: float, limit: float, unit: str = "×") -> None:
        self._goals.append(Goal(what, measured, limit, ">=", unit))

    def fact(self, name: str, value: float, unit: str) -> None:
        self._facts.append((name, value, unit))

    def note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def curve(self, name: str, title: str, x: str, y: str, logarithmic: str = "x") -> Curve:
        curve = Curve(name, title, x, y, logarithmic)
        self._curves.append(curve)
        return curve

    def save(self) -> None:
        """Puts what was found where pytest-benchmark stores it."""
        self._benchmark.extra_info.update(
            question=self.question,
            unit=self.unit,
            contestants=[_summary(name, samples) for name, samples in self.samples.items()],
            goals=[{**asdict(goal), "met": goal.met} for goal in self._goals],
            facts=[{"name": name, "value": value, "unit": unit} for name, value, unit in self._facts],
            notes=self._notes,
            curves=[asdict(curve) for curve in self._curves],
        )
        self._contestants.clear()  # and with them the input that they hold

    def _round(self, number: int) -> None:
        names = list(self._contestants)
        start = number % len(names)
        for name in names[start:] + names[:start]:
            sample = run_one(self._contestants[name], self._folder, self._memory_bytes)
            if number > 0:
                self.samples.setdefault(name, []).append(sample)


def run_one(contestant: Contestant, parent: Path, memory_bytes: int = 0) -> Sample:
    """Runs one contestant in a folder of its own, which is removed afterwards."""
    folder = parent / "contestant"
    folder.mkdir()
    watch = Stopwatch()
    if memory_bytes:
        host_memory.take(memory_bytes)
    gc.collect()
    gc.disable()
    reset_peak_rss()
    before = status_mb("VmRSS")
    try:
        amount = contestant(folder, watch)
        peak = status_mb("VmHWM")
        grown = None if watch.elsewhere or peak is None or before is None else peak - before
        return Sample(amount, watch.seconds, watch.cpu_s, grown, allocated_bytes(folder))
    finally:
        gc.enable()
        shutil.rmtree(folder, ignore_errors=True)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def allocated_bytes(folder: Path) -> int:
    """Bytes that the files below `folder` take on the drive."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            status = Path(parent, name).lstat()
            total += status.st_blocks * 512
    return total


def status_mb(field_name: str) -> float | None:
    """A line of /proc/self/status in MB; None where there is no such thing."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(field_name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def reset_peak_rss() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _summary(name: str, samples: list[Sample]) -> dict[str, Any]:
    def median(values: list[float]) -> float:
        return statistics.median(values) if values else 0.0

    return {
        "name": name,
        "rate": median([sample.rate for sample in samples]),
        "seconds": [sample.seconds for sample in samples],
        "amount": median([sample.amount for sample in samples]),
        "cpu_s": median([sample.cpu_s for sample in samples]),
        "grown_rss_mb": median([sample.grown_rss_mb for sample in samples if sample.grown_rss_mb]) or None,
        "disk_bytes": median([float(sample.disk_bytes) for sample in samples]),
    }
