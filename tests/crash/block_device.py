"""A disk that notes all writes and flushes, and what is left of it without power: the Python side of block_device.c."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import enum
import errno
import fcntl
import gc
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).with_suffix(".c")
SECTOR = 512  # what a disk writes whole: the loop device says so, and file systems are made for it
DEADLINE_S = 20.0
_ENTRY = struct.Struct("<IIQQ")
_BASE, _LOG = "base.image", "log"
_COPY_BYTES, _HOLE_BYTES = 1 << 20, 1 << 16


class FileSystem(NamedTuple):
    """A kind of file system: how large, how it is made, and what is said when it is mounted."""

    name: str
    size_mib: int
    make: tuple[str, ...]
    options: str = ""


FILE_SYSTEMS = {
    system.name: system
    for system in (
        # 4096: the block size that all but the smallest ext4 have
        FileSystem("ext4", 96, ("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-J", "size=8")),
        FileSystem("xfs", 320, ("mkfs.xfs", "-q", "-f"), "nouuid"),  # several states of one at once
        FileSystem("btrfs", 256, ("mkfs.btrfs", "-q", "-f")),
    )
}


class Kind(enum.IntEnum):
    """What an entry of the disk's log is."""

    WRITE = 1
    FLUSH = 2
    MARK = 3


class Entry(NamedTuple):
    """What the disk was told: `data` at `position`, a flush, or a note."""

    kind: Kind
    position: int
    data: memoryview


def build_program(folder: Path) -> Path:
    """Compiles the disk into a folder; skips the test where it cannot work."""
    if not sys.platform.startswith("linux"):
        pytest.skip("FUSE and loop devices are Linux's")
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not os.access(device, os.R_OK | os.W_OK):
            pytest.skip(f"there is no {device}")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler")
    made = folder / "block_device"
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(made), str(SOURCE)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "linux/fuse.h" in built.stderr and built.returncode != 0:
        pytest.skip("there is no linux/fuse.h")
    assert built.returncode == 0, built.stderr
    return made


def make_base(system: FileSystem, path: Path) -> None:
    """A new file system in a sparse file; skips the test where there is no program for it."""
    if shutil.which(system.make[0]) is None:
        pytest.skip(f"there is no {system.make[0]}")
    full = path.with_suffix(".full")
    with full.open("wb") as file:
        file.truncate(system.size_mib << 20)
    subprocess.run([*system.make, str(full)], check=True, capture_output=True)
    subprocess.run(["cp", "--sparse=always", str(full), str(path)], check=True)
    full.unlink()


def memory_folder() -> Path:
    """A new folder in memory, where there is some."""
    return Path(tempfile.mkdtemp(prefix="streamcore-disk-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def remove_folder(folder: Path) -> None:
    """Removes what `memory_folder` made, and unmounts what is still mounted there."""
    mounts = Path("/proc/self/mounts").read_text().split("\n")
    for where in reversed([line.split(" ")[1] for line in mounts if f"{folder}/" in line]):
        _LIBC.umount2(os.fsencode(where), _MNT_DETACH)
    shutil.rmtree(folder)


# ---- mounting ------------------------------------------------------------------------------------------------------


class CannotMountError(Exception):
    """The file system does not come back: nothing about the store is learnt from it."""


_LIBC = ctypes.CDLL(None, use_errno=True)
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4
_LOOP_CONFIG = struct.Struct("=II5Q4I128x32x16x64x")  # struct loop_config of linux/loop.h
_MS_NOSUID, _MS_NODEV, _MS_NOATIME, _MNT_DETACH = 2, 4, 1024, 2
_PUNCH_HOLE_KEEP_SIZE = 3


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


@contextlib.contextmanager
def looped(path: Path) -> Iterator[Path]:
    """A loop device over a file, by calls: programs would take longer than all else. It goes when nobody uses it."""
    with path.open("r+b") as file, Path("/dev/loop-control").open("r+b", buffering=0) as control:
        config = _LOOP_CONFIG.pack(file.fileno(), SECTOR, 0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            device = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
            with contextlib.ExitStack() as stack:
                opened = stack.enter_context(device.open("r+b", buffering=0))
                try:
                    fcntl.ioctl(opened, _LOOP_CONFIGURE, config)
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        pytest.skip(f"loop devices do not work here: {error}")
                    assert time.monotonic() < deadline, "no loop device is free"
                    continue  # another process was faster
                stack.pop_all()
            break
    with opened:
        yield device


@contextlib.contextmanager
def mounted(system: FileSystem, device: Path, folder: Path) -> Iterator[Path]:
    """The file system of a device, mounted at a folder. It must be left unused: nothing open, nothing mapped."""
    folder.mkdir(exist_ok=True)
    where = os.fsencode(folder)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    try:
        made = _LIBC.mount(os.fsencode(device), where, system.name.encode(), flags, system.options.encode())
        _check(made, f"mount {system.name}")
    except OSError as error:
        raise CannotMountError(str(error)) from error
    try:
        yield folder
    except BaseException:
        if _LIBC.umount2(where, 0) != 0:  # what failed has tables that point into mapped files
            _check(_LIBC.umount2(where, _MNT_DETACH), "umount")
        raise
    if _LIBC.umount2(where, 0) != 0:
        gc.collect()  # what a closed store had mapped goes with it
        if _LIBC.umount2(where, 0) != 0:
            _check(_LIBC.umount2(where, _MNT_DETACH), "umount")
            raise AssertionError(f"{folder} was left in use")


class Disk:
    """A disk with a file system on it, a new one or that of an image. A context manager; then `recording_of` reads it.

    path: where the file system is mounted. mark: a file; each write to it is a note in the disk's log.
    """

    def __init__(self, program: Path, system: FileSystem, folder: Path, image: Path | None = None) -> None:
        self.system = system
        self.base = folder / _BASE
        self.path = folder / "mounted"
        self._log = folder / _LOG
        self._image = folder / "disk.image"
        self._fuse = folder / "fuse"
        self.mark = self._fuse / "mark"
        self._program = program
        self._stack = contextlib.ExitStack()
        if image is None:
            make_base(system, self.base)
        else:
            image.rename(self.base)

    def __enter__(self) -> Disk:
        subprocess.run(["cp", "--sparse=always", str(self.base), str(self._image)], check=True)
        self._fuse.mkdir()
        with self._stack:
            self._stack.enter_context(self._served())
            device = self._stack.enter_context(looped(self._fuse / "disk"))
            self._stack.enter_context(mounted(self.system, device, self.path))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.__exit__(*exception)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def _served(self) -> Iterator[None]:
        command = [str(self._program), str(self._fuse), str(self._image), str(self._log)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            if process.stdout.readline() != "ready\n":
                pytest.skip(f"FUSE does not work here: {process.stderr.read().strip()}")
            yield
        finally:
            subprocess.run(["umount", "-l", str(self._fuse)], check=False, capture_output=True)
            try:
                process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
            process.stderr.close()
            self._image.unlink(missing_ok=True)

    def note(self, text: str) -> None:
        """Puts a note into the disk's log."""
        self.mark.write_text(text)


def recording_of(system: FileSystem, folder: Path) -> Recording:
    """What the disk that was made in a folder was told; when it is unmounted."""
    return Recording(system, folder / _BASE, read_log(folder / _LOG))


def read_log(path: Path) -> list[Entry]:
    """All entries of a disk's log."""
    data = memoryview(path.read_bytes())
    entries = []
    at = 0
    while at < len(data):
        kind, size, position, _ = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        entries.append(Entry(Kind(kind), position, data[at : at + size]))
        at += size
    return entries


# ---- what is left when the power fails ----------------------------------------------------------------------------


class Run(NamedTuple):
    """Bytes that are on the disk."""

    position: int
    data: memoryview


@dataclasses.dataclass(frozen=True)
class Loss:
    """The power fails when the disk was told the entries before `at`.

    how: what becomes of the writes since the last flush. "none": no one is there; "all": each one is; "prefix": those
    up to one of them; "writes": some of them; "sectors": of each some sectors of 512 bytes; "torn": the sectors of each
    up to one of them. The chance that something is there is `keep`. seed: decides the rest.
    """

    at: int
    how: str
    keep: float
    seed: int


HOWS = ("none", "all", "prefix", "writes", "sectors", "torn")


class Recording:
    """What a disk was told, from a new file system on, and the states that a loss of power may leave it in."""

    def __init__(self, system: FileSystem, base: Path, entries: Sequence[Entry]) -> None:
        self.system = system
        self.base = base
        self.entries = entries
        self.flushes = [i for i, entry in enumerate(entries) if entry.kind == Kind.FLUSH]

    def notes(self) -> list[tuple[int, str]]:
        """Each note, and the number of its entry."""
        return [(i, bytes(e.data).decode()) for i, e in enumerate(self.entries) if e.kind == Kind.MARK]

    def without_flushes(self) -> Recording:
        """What it would have been told, had the flushes not come through."""
        return Recording(self.system, self.base, [entry for entry in self.entries if entry.kind != Kind.FLUSH])

    def choose(self, count: int, chance: random.Random, hows: Sequence[str] = HOWS) -> list[Loss]:
        """Losses of power from the first note to the last, by time; without notes at any time.

        Half of them come just before a flush, or at the end, the more often the more writes are in the balance then.
        """
        notes = [i for i, _ in self.notes()] or [0, len(self.entries)]
        first, end = notes[0], notes[-1]
        flushes = [*(i for i in self.flushes if first <= i < end), end]
        weights = [1 + len(self.unflushed(i)[1]) for i in flushes]
        losses = []
        for _ in range(count):
            before_flush = chance.random() < 0.5
            at = chance.choices(flushes, weights)[0] if before_flush else chance.randint(first, end)
            keep = chance.choice([0.02, 0.1, 0.5, 0.9, 0.98])
            losses.append(Loss(at, chance.choice(list(hows)), keep, chance.getrandbits(32)))
        return sorted(losses, key=lambda loss: loss.at)

    def unflushed(self, at: int) -> tuple[int, list[Entry]]:
        """The entry behind the last flush before `at`, and the writes from there on."""
        first = at
        while first > 0 and self.entries[first - 1].kind != Kind.FLUSH:
            first -= 1
        return first, [entry for entry in self.entries[first:at] if entry.kind == Kind.WRITE]

    def survivors(self, loss: Loss) -> tuple[int, list[Run]]:
        """What is there: everything before an entry, and some runs of bytes behind it."""
        chance = random.Random(loss.seed)
        first, writes = self.unflushed(loss.at)
        if loss.how == "none":
            return first, []
        if loss.how == "prefix":
            writes = writes[: chance.randint(0, len(writes))]
        elif loss.how == "writes":
            writes = [write for write in writes if chance.random() < loss.keep]
        runs = [Run(write.position, write.data) for write in writes]
        if loss.how == "sectors":
            runs = [sector for run in runs for sector in _sectors(run) if chance.random() < loss.keep]
        elif loss.how == "torn":
            runs = [Run(r.position, r.data[: chance.randint(0, len(r.data) // SECTOR) * SECTOR]) for r in runs]
        return first, runs


def _sectors(run: Run) -> Iterator[Run]:
    for at in range(0, len(run.data), SECTOR):
        yield Run(run.position + at, run.data[at : at + SECTOR])


class Platter:
    """The images of a recording's losses, made one after the other in a folder. They must ascend. A context manager."""

    def __init__(self, recording: Recording, folder: Path) -> None:
        self.recording = recording
        self._image = folder / "lost.image"
        self._durable = folder / "durable.image"
        self._done = 0
        subprocess.run(["cp", "--sparse=always", str(recording.base), str(self._durable)], check=True)
        self._file = os.open(self._durable, os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> Platter:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)
        self._durable.unlink()
        self._image.unlink(missing_ok=True)

    def _write(self, entry: Entry) -> None:
        """Makes a hole where there are zeros: what is copied for each loss stays small."""
        size = len(entry.data)
        if size < _HOLE_BYTES or entry.data != memoryview(bytes(size)):
            os.pwrite(self._file, entry.data, entry.position)
        else:
            where = ctypes.c_long(entry.position), ctypes.c_long(size)
            _check(_LIBC.fallocate(self._file, _PUNCH_HOLE_KEEP_SIZE, *where), "fallocate")

    def image_of(self, loss: Loss) -> Path:
        """The disk as it is found after a loss; good until the next call."""
        first, runs = self.recording.survivors(loss)
        assert first >= self._done, "losses must ascend"
        for entry in self.recording.entries[self._done : first]:
            if entry.kind == Kind.WRITE:
                self._write(entry)
        self._done = first
        self._image.unlink(missing_ok=True)
        with self._image.open("wb") as image:
            _copy_data(self._file, image.fileno())
            for run in runs:
                os.pwrite(image.fileno(), run.data, run.position)
        return self._image


def _copy_data(source: int, target: int) -> None:
    """Copies a sparse file; holes stay holes."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # no data behind here
            return
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            data = os.pread(source, min(_COPY_BYTES, end - at), at)
            os.pwrite(target, data, at)
            at += len(data)


@contextlib.contextmanager
def found_after(platter: Platter, loss: Loss, folder: Path) -> Iterator[Path]:
    """The file system as it is found after a loss of power, mounted: it has replayed its own journal."""
    with looped(platter.image_of(loss)) as device:
        with mounted(platter.recording.system, device, folder) as path:
            yield path
