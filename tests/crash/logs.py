"""Logs to damage, and what must still be true of them afterwards."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path

import streamcore as sc

from .segments import Frame, forget_notes, frames, segment_paths

TOPIC = "damaged"
FIRST_TIME_MS = 1_700_000_000_000


@dataclasses.dataclass
class Log:
    """A closed store with one topic of one partition, and the values of its records in order."""

    store_path: Path
    folder: str
    values: list[bytes]
    ends: list[int]

    @property
    def paths(self) -> list[Path]:
        """The segment files, oldest first."""
        return segment_paths(self.store_path, self.folder)

    @property
    def path(self) -> Path:
        """The only segment file."""
        (path,) = self.paths
        return path

    @property
    def path_of_partition(self) -> Path:
        """The partition's folder."""
        return self.topic_path / "0"

    @property
    def topic_path(self) -> Path:
        """The topic's folder."""
        return self.store_path / "topics" / self.folder

    def frames(self) -> list[tuple[Path, Frame]]:
        """All batches of all segments."""
        return [(path, frame) for path in self.paths for frame in frames(path)]

    def read(self, mode: str = "rw", **bounds: object) -> list[bytes]:
        """The values of a scan in a store opened for it."""
        with sc.open(self.store_path, mode) as store:
            return values_of(store.topic(TOPIC), **bounds)

    def problems(self, mode: str = "r") -> list[tuple[str, int | None, int | None]]:
        """(file, offset, position) of what verify finds."""
        with sc.open(self.store_path, mode) as store:
            return [(problem.path, problem.offset, problem.position) for problem in store.verify()]

    def check_sound(self, values: list[bytes]) -> None:
        """These values are there, for a reader, then for a writer, who can go on."""
        assert self.read("r") == values
        with sc.open(self.store_path) as store:
            topic = store.topic(TOPIC)
            assert values_of(topic) == values
            assert topic.scan().count() == len(values)
            assert store.verify() == []
            topic.append([b"one more"])
            assert values_of(topic) == [*values, b"one more"]
        assert self.read("r") == [*values, b"one more"]
        assert self.problems() == []
        self.values = [*values, b"one more"]


def values_of(topic: sc.Topic, **bounds: object) -> list[bytes]:
    """The values of a scan."""
    return topic.scan(**bounds).to_arrow().column("value").to_pylist()


def make_log(
    store_path: Path,
    appends: int,
    rows: int = 3,
    value_bytes: int = 40,
    first_time_ms: int = FIRST_TIME_MS,
    between: Callable[[sc.Topic, int], None] | None = None,
    noted: bool = False,
    **settings: object,
) -> Log:
    """Appends so many times; `between(topic, n)` is called behind each append. Times rise by a second per append.

    Without `noted` the log does not say that it was durable when it was closed, as after the end of a process.
    """
    chance = random.Random(f"{appends} {rows} {value_bytes}")
    values: list[bytes] = []
    ends: list[int] = []
    with sc.open(store_path) as store:
        topic = store.create_topic(TOPIC, **settings)
        for n in range(appends):
            made = [b"%d.%d " % (n, row) + chance.randbytes(value_bytes) for row in range(rows)]
            topic.append(made, timestamps=first_time_ms + 1000 * n)
            values += made
            ends.append(len(values))
            if between is not None:
                between(topic, n)
        folder = topic.folder
    log = Log(store_path, folder, values, ends)
    if not noted:
        forget_notes(log.paths[-1])
    return log


def pretend_power_loss(topic_path: Path) -> None:
    """Puts another kernel's boot id into a topic's state file: the machine went down since."""
    boot_id = bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    state = topic_path / "state"
    data = state.read_bytes()
    assert boot_id in data
    state.write_bytes(data.replace(boot_id, os.urandom(16)))
