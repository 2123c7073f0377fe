"""The machine loses power under a real file system: ext4 and XFS on a disk that keeps what it was told to flush.

Of the writes since the last flush some are there and some are not, down to sectors of 512 bytes. The file system replays its
own journal, the store opens under another boot id, and every promise is checked.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import changes
from .block_device import FILE_SYSTEMS, Disk, build_program, memory_folder, recording_of, remove_folder
from .forkserver import Child, ForkServer
from .promises import check_losses

STATES = int(os.environ.get("STREAMCORE_REAL_POWER_LOSSES", "150"))  # of each file system and load
SEED = os.environ.get("STREAMCORE_REAL_POWER_LOSS_SEED", "1")
CALLS, WORKERS = 20, 2
DEADLINE_S = 60.0 + STATES
LOADS = {  # what two processes do at once
    "appends": [["append_durably", "append_to_the_system"], ["append_more_durably", "read_and_commit", "produce"]],
    "changes": [["change_topics", "retain"], ["copy", "rewrite"]],
}
Figures = collections.Counter[str]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    made = memory_folder()
    try:
        yield made
    finally:
        remove_folder(made)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk's program."""
    return build_program(tmp_path_factory.mktemp("disk"))


def record(disk: Disk, children: ForkServer, load: str, folder: Path) -> None:
    """Has the disk note what it is told while two processes change everything at once."""
    with disk:
        given = {"folder": str(folder), "store_path": str(disk.path / "store"), "mark": str(disk.mark)}
        at_work = [
            children.start(changes.make_changes, **given, roles=roles, seed=SEED, calls=CALLS, rounds=2)
            for roles in LOADS[load]
        ]
        syncing = children.start(changes.sync_now_and_then, folder=str(disk.path), seed=1)
        for child in at_work:
            child.read_until(lambda child=child: child.said("DONE"))
        syncing.stop()
        for child in at_work:
            child.kill()


def check(kind: str, folder: Path, children: ForkServer, figures: Figures, **options: object) -> list[str]:
    """Checks so many losses of power of what was recorded; returns what was wrong."""
    given = {"kind": kind, "folder": str(folder), "states": STATES, "seed": SEED, "parts": WORKERS, **options}
    workers = [children.start(check_losses, part=part, **given) for part in range(WORKERS)]
    wrong = []
    for worker in workers:
        worker.read_until(lambda worker=worker: worker.said("CHECKED"), DEADLINE_S)
        assert worker.wait() == 0, worker.failure()
        wrong += [" ".join(words) for words in worker.said("WRONG")]
        for count, *name in worker.said("FIGURE"):
            figures[" ".join(name)] += int(count)
    return wrong


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_all_that_was_acknowledged_is_there_after_a_power_loss(
    kind: str, load: str, program: Path, folder: Path, children: ForkServer, figures: Figures
) -> None:
    record(Disk(program, FILE_SYSTEMS[kind], folder), children, load, folder)
    wrong = check(kind, folder, children, figures)
    assert not wrong, "\n".join(wrong[:10])
