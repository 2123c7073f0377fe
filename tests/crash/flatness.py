"""What must not grow while a store is at work: of its processes and of its files, and whether it does.

A figure is flat when the slope of its second half, over the whole length, is less than a twentieth of its median, or
less than a floor for its kind. The slope is Theil and Sen's, the median of those between all pairs of points, of up to
a hundred medians: what goes up and down, as a log under retention does, has none.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PART_MAX = 0.05
FLOORS = {
    "anonymous": 4 << 20, "descriptors": 8, "mappings": 40, "threads": 3,
    "bytes": 4 << 20, "files": 60, "catalog": 256 << 10, "wal": 2 << 20, "journal": 1 << 20,
}  # fmt: skip
_POINTS_MIN, _POINTS_MAX = 8, 100


class Growth(NamedTuple):
    """How much a figure would grow from the beginning to the end, and how much it may."""

    name: str
    median: float
    grown: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """Whether it stays as it is; becoming less is no fault."""
        return self.grown <= self.allowed


class Figures:
    """Points in time of many figures, 16 bytes each: who watches must not grow either. Names are `kind of who`."""

    def __init__(self) -> None:
        self._points: dict[str, array.array[float]] = {}

    @property
    def points(self) -> dict[str, list[tuple[float, float]]]:
        """(seconds, value) of each figure."""
        return {name: list(zip(flat[::2], flat[1::2], strict=True)) for name, flat in self._points.items()}

    def note(self, time_s: float, kind: str, who: str, value: float) -> None:
        self._points.setdefault(f"{kind} of {who}", array.array("d")).extend((time_s, value))

    def note_process(self, time_s: float, who: str, pid: int) -> None:
        """Memory of its own, descriptors, mappings and threads of a process."""
        for kind, value in process_figures(pid).items():
            self.note(time_s, kind, who, value)

    def note_store(self, time_s: float, path: Path) -> None:
        """What a store takes on the drive."""
        for kind, value in store_figures(path).items():
            self.note(time_s, kind, "the store", value)

    def growths(self, floors_times: float = 1.0) -> Iterator[Growth]:
        """Of each figure with enough points in its second half."""
        for name, points in self.points.items():
            duration = points[-1][0] - points[0][0]
            late = [point for point in points if point[0] >= points[0][0] + duration / 2]
            if len(late) >= _POINTS_MIN:
                median = statistics.median(value for _, value in late)
                allowed = max(PART_MAX * median, floors_times * FLOORS[name.split(" of ")[0]])
                yield Growth(name, median, slope(downsampled(late, _POINTS_MAX)) * duration, allowed)


def process_figures(pid: int) -> dict[str, int]:
    """Bytes of anonymous memory, descriptors, mappings, threads."""
    folder = Path(f"/proc/{pid}")
    sizes = dict(line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "anonymous": int(sizes["Anonymous"].split()[0]) << 10,
        "descriptors": sum(1 for _ in (folder / "fd").iterdir()),
        "mappings": (folder / "maps").read_bytes().count(b"\n"),
        "threads": int(status["Threads"]),
    }


def store_figures(path: Path) -> dict[str, int]:
    """Bytes on the drive and files of a store; of these the catalog, its write-ahead log and the journal."""
    found = {"bytes": 0, "files": 0, "catalog": 0, "wal": 0, "journal": 0}
    named = {"catalog.sqlite": "catalog", "catalog.sqlite-wal": "wal", "journal": "journal"}
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                status = Path(folder, name).stat()
                found["bytes"] += status.st_blocks * 512
                found["files"] += 1
                if name in named:
                    found[named[name]] = status.st_size
    return found


def slope(points: list[tuple[float, float]]) -> float:
    """Theil and Sen's: the median of the slopes between all pairs, per second."""
    slopes = [
        (points[j][1] - points[i][1]) / (points[j][0] - points[i][0])
        for i in range(len(points))
        for j in range(i + 1, len(points))
        if points[j][0] > points[i][0]
    ]
    return statistics.median(slopes) if slopes else 0.0


def downsampled(points: list[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """At most so many points: medians of neighbours."""
    if len(points) <= count:
        return points
    bounds = [len(points) * i // count for i in range(count + 1)]
    parts = [points[first:end] for first, end in itertools.pairwise(bounds)]
    return [(statistics.median(t for t, _ in part), statistics.median(v for _, v in part)) for part in parts]
