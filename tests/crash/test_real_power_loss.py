"""The machine loses power under a real file system: ext4 and XFS on a disk that keeps what it was told to flush.

Of the writes since the last flush some are there and some are not, down to sectors of 512 bytes. The file system
replays its own journal, the store opens under another boot id, and every promise is checked.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from . import changes
from .block_device import (
    FILE_SYSTEMS,
    CannotMountError,
    Disk,
    Kind,
    Loss,
    Platter,
    Recording,
    build_program,
    found_after,
    memory_folder,
    recording_of,
    remove_folder,
)
from .forkserver import ForkServer, fork_server
from .promises import check_losses
from .system_calls import Rule, build_library, environment

STATES = int(os.environ.get("STREAMCORE_REAL_POWER_LOSSES", "100"))  # of each file system and load
SEED = os.environ.get("STREAMCORE_REAL_POWER_LOSS_SEED", "1")
KINDS = os.environ.get("STREAMCORE_REAL_POWER_LOSS_KINDS", "ext4 xfs").split()  # btrfs is known, too
WORKERS = 2
DEADLINE_S = 60.0 + 2 * STATES
LOADS = {  # what two processes do at once
    "appends": [["append_durably", "append_to_the_system"], ["append_more_durably", "read_and_commit", "produce"]],
    "changes": [["change_topics", "retain"], ["copy", "rewrite"]],
}
Figures = collections.Counter[str]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk's program."""
    return build_program(tmp_path_factory.mktemp("disk"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    made = memory_folder()
    try:
        yield made
    finally:
        remove_folder(made)


class Recorded(NamedTuple):
    """A disk on which a store was at work: the kind of its file system, and the folder of its recording."""

    kind: str
    folder: Path


@pytest.fixture(scope="module", params=[f"{kind} {load}" for kind in KINDS for load in LOADS])
def recorded(request: pytest.FixtureRequest, program: Path, server: ForkServer) -> Iterator[Recorded]:
    """What a disk was told while two processes changed everything at once."""
    kind, load = request.param.split(" ")
    made = memory_folder()
    try:
        record(Disk(program, FILE_SYSTEMS[kind], made), server, LOADS[load], made)
        yield Recorded(kind, made)
    finally:
        server.kill_all()
        remove_folder(made)


def record(
    disk: Disk,
    server: ForkServer,
    roles: list[list[str]],
    folder: Path,
    calls: int = 20,
    rounds: int = 2,
    syncing: bool = True,
) -> None:
    """Has the disk note what it is told while processes play roles. syncing: the kernel writes all out now and then."""
    with disk, contextlib.ExitStack() as stack:
        stack.callback(server.kill_all)  # before it is unmounted
        given = {"folder": str(folder), "store_path": str(disk.path / "store"), "mark": str(disk.mark)}
        at_work = [
            server.start(changes.make_changes, **given, roles=played, seed=SEED, calls=calls, rounds=rounds)
            for played in roles
        ]
        syncer = server.start(changes.sync_now_and_then, folder=str(disk.path), seed=1) if syncing else None
        for child in at_work:
            child.read_until(lambda child=child: child.said("DONE"), DEADLINE_S)
        if syncer is not None:
            syncer.stop()


def check(
    kind: str, folder: Path, server: ForkServer, figures: Figures, what: str, states: int, **options: object
) -> list[str]:
    """Checks so many losses of power of what was recorded; returns what was wrong."""
    given = {"kind": kind, "folder": str(folder), "states": states, "seed": SEED, "parts": WORKERS, **options}
    workers = [server.start(check_losses, part=part, **given) for part in range(WORKERS)]
    wrong = []
    for worker in workers:
        worker.read_until(lambda worker=worker: worker.said("CHECKED"), DEADLINE_S)
        assert worker.wait() == 0, worker.failure()
        wrong += [" ".join(words) for words in worker.said("WRONG")]
        for count, *name in worker.said("FIGURE"):
            figures[f"{what} on {kind}: {' '.join(name)}"] += int(count)
            assert name[0] != "unmountable" or int(count) < states // WORKERS, "file systems do not come back"
    return wrong


def test_all_that_was_acknowledged_is_there_after_a_power_loss(
    recorded: Recorded, children: ForkServer, figures: Figures
) -> None:
    wrong = check(recorded.kind, recorded.folder, children, figures, "real power losses", STATES)
    assert not wrong, "\n".join(wrong[:10])


def test_all_of_it_is_there_after_a_second_power_loss_during_recovery(
    recorded: Recorded, program: Path, folder: Path, children: ForkServer, figures: Figures
) -> None:
    first = recording_of(FILE_SYSTEMS[recorded.kind], recorded.folder)
    for number, loss in enumerate(first.choose(max(2, STATES // 50), random.Random(SEED))):
        place = folder / str(number)
        place.mkdir()
        try:
            record_recovery(first, loss, place, program, children)
        except CannotMountError as error:
            figures[f"{recorded.kind} that did not come back: {error}"] += 1
            continue
        before = [note for at, note in first.notes() if at < loss.at]
        what = "second power losses, during recovery"
        wrong = check(recorded.kind, place, children, figures, what, STATES // 10 + 2, before=before)
        assert not wrong, "\n".join([f"after {loss}:", *wrong[:10]])
        remove_folder(place)


def record_recovery(first: Recording, loss: Loss, folder: Path, program: Path, server: ForkServer) -> None:
    """What the disk is told when the machine starts again: the file system's recovery, and the store's."""
    with Platter(first, folder) as platter:
        disk = Disk(program, first.system, folder, image=platter.image_of(loss))
    with disk:
        if (disk.path / "store" / "catalog.sqlite").exists():
            child = server.start(changes.recover, folder=str(folder), store_path=str(disk.path / "store"))
            assert child.wait() == 0, child.failure()


# ---- the disk itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_system_syncs_is_written_and_flushed_before_the_sync_returns(
    kind: str, program: Path, folder: Path, figures: Figures
) -> None:
    """And, as a figure: whether names come back whose folder was not synced, when the file or a later one was."""
    disk = Disk(program, FILE_SYSTEMS[kind], folder)
    with disk:
        for number in range(40):
            with (disk.path / f"new-{number}").open("wb") as file:
                file.write(content_of(number))
                file.flush()
                os.fdatasync(file.fileno())
            disk.note(f"new {number}")
            (disk.path / f"new-{number}").rename(disk.path / f"renamed-{number}")
            disk.note(f"renamed {number}")
            if number % 2:
                (disk.path / f"renamed-{number}").unlink()
                disk.note(f"removed {number}")
    recording = recording_of(FILE_SYSTEMS[kind], folder)
    for at, note in recording.notes():
        if note.startswith("new"):
            first, _ = recording.unflushed(at)
            data = content_of(int(note.split()[1]))
            written = [i for i, e in enumerate(recording.entries) if e.kind == Kind.WRITE and data in bytes(e.data)]
            assert written, f"{note} was not written"
            assert written[0] < first, f"{note} was not flushed"
    with Platter(recording, folder) as platter:
        for loss in recording.choose(STATES // 2, random.Random(SEED)):
            notes = [note.split() for at, note in recording.notes() if at < loss.at]
            with found_after(platter, loss, folder / "found") as path:
                count_names(path, notes, figures, kind)


def content_of(number: int) -> bytes:
    """What is written into a file: like no other, and one block."""
    return random.Random(number).randbytes(4096)


def count_names(path: Path, notes: list[list[str]], figures: Figures, kind: str) -> None:
    """Counts what came back of each change: all but the last file were synced, or a later file was."""
    last = max((int(number) for what, number in notes if what == "new"), default=-1)
    done = {(what, int(number)) for what, number in notes}
    for what, number in sorted(done):
        names = {name: (path / f"{name}-{number}").exists() for name in ("new", "renamed")}
        for name in [name for name, there in names.items() if there]:
            assert (path / f"{name}-{number}").read_bytes() == content_of(number), (
                "a file that was synced has other bytes"
            )
        if what == "new" and ("removed", number) not in done and (number % 2 == 0 or number < last):
            figures[f"{kind}, new names of synced files: {'there' if any(names.values()) else 'lost'}"] += 1
        elif what == "renamed" and number < last and number % 2 == 0:
            figures[f"{kind}, renames before a sync of another file: {'there' if names['renamed'] else 'lost'}"] += 1
        elif what == "removed" and number < last:
            figures[
                f"{kind}, removals before a sync of another file: {'lost' if any(names.values()) else 'there'}"
            ] += 1


# ---- controls ------------------------------------------------------------------------------------------------------


def test_control_a_disk_that_drops_flushes_is_caught(
    recorded: Recorded, children: ForkServer, figures: Figures
) -> None:
    wrong = check(recorded.kind, recorded.folder, children, figures, "dropped flushes", 8, drop_flushes=True)
    assert len(wrong) >= 6, f"{len(wrong)} of 8 were noticed"
    figures["dropped flushes that were noticed"] += len(wrong)


@pytest.mark.parametrize(
    ("unsynced", "roles"),
    [
        (".arrows", [["append_durably", "rewrite"]]),
        ("journal", [["append_over_partitions"]]),
        ("catalog", [["change_topics", "copy"]]),
    ],
)
def test_control_a_store_that_does_not_sync_is_caught(
    unsynced: str,
    roles: list[list[str]],
    program: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    children: ForkServer,
    figures: Figures,
) -> None:
    disk = Disk(program, FILE_SYSTEMS["ext4"], folder)
    rule = Rule("sync_data", unsynced, action="skip", sticky=True)
    for name, value in environment(build_library(folder), disk.path, rule=rule).items():
        monkeypatch.setenv(name, value)
    with fork_server() as lying:
        monkeypatch.undo()
        record(disk, lying, roles, folder, calls=60, rounds=1, syncing=False)
    what = f"stores that do not sync {unsynced}"
    wrong = check("ext4", folder, children, figures, what, 24)
    assert wrong, "nothing was noticed"
    figures[f"{what}: noticed"] += len(wrong)
