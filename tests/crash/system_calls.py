"""The file calls of a process, recorded, made to fail, or its last: the Python side of system_calls.c."""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import shutil
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).with_suffix(".c")
_EVENT = struct.Struct("=IIQqqQ")


def build_library(folder: Path) -> Path:
    """Compiles the library into a folder; skips the test where there is no compiler, or no Linux."""
    if not sys.platform.startswith("linux"):
        pytest.skip("calls are caught on Linux only")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler")
    made = folder / "system_calls.so"
    options = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run([compiler, *options, "-o", str(made), str(SOURCE), "-ldl", "-lpthread"], check=True)
    return made


def environment(library: Path, root: Path, **asked: object) -> dict[str, str]:
    """What a process needs to have its calls below `root` seen.

    asked: `trace`, `log` and `boot_id` (paths), `rule` (a Rule), as in system_calls.c.
    """
    asked["root"] = root
    given = {f"SYSTEM_CALLS_{name.upper()}": str(value) for name, value in asked.items()}
    return {**os.environ, "LD_PRELOAD": str(library), **given}


def other_boot_id(folder: Path) -> Path:
    """A file for `boot_id`: processes that see it have started under another kernel than those that do not."""
    path = folder / "boot_id"
    path.write_text(f"{uuid.uuid4()}\n")
    return path


class Rule(NamedTuple):
    """What the `number`-th call of `name` ("any": of any) on a path that contains `path` does instead.

    action: "fail" (with the errno `value`), "short" (`value` bytes less), "skip", "kill-before" or "kill-after"; with
    `sticky` all calls behind it do so, too.
    """

    name: str
    path: str = ""
    number: int = 1
    action: str = "fail"
    value: int = errno.EIO
    sticky: bool = False

    def __str__(self) -> str:
        how = "sticky" if self.sticky else "once"
        return f"{self.name}:{self.path or '*'}:{self.number}:{self.action}:{self.value}:{how}"


class SystemCalls:
    """The library in this process, which was started with it preloaded."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.system_calls_seen.restype = ctypes.c_long
        self._library.system_calls_fired.restype = ctypes.c_long

    def root(self, path: str | os.PathLike[str] | None) -> None:
        """From now on calls below this folder count; None: no calls do."""
        self._library.system_calls_root(b"" if path is None else os.fsencode(path))

    def trace(self, path: str | os.PathLike[str] | None) -> None:
        """Records into a new file, which is not below the root; None: records no more."""
        self._library.system_calls_trace(None if path is None else os.fsencode(path))

    def log(self, path: str | os.PathLike[str] | None) -> None:
        """A line for each call into a file, which is not below the root; None: no more."""
        self._library.system_calls_log(None if path is None else os.fsencode(path))

    def note(self, text: str) -> None:
        """Puts a note into the trace."""
        data = text.encode()
        self._library.system_calls_note(data, ctypes.c_size_t(len(data)))

    def arm(self, rule: Rule) -> None:
        """Has a rule hold from now on, and no other one."""
        failed = self._library.system_calls_arm(
            rule.name.encode(),
            rule.path.encode(),
            ctypes.c_long(rule.number),
            rule.action.encode(),
            rule.value,
            int(rule.sticky),
        )
        assert failed == 0, f"there is no action {rule.action!r}"

    def disarm(self) -> None:
        """Has no rule hold."""
        self._library.system_calls_disarm()

    def seen(self) -> int:
        """How many calls the rule was about since it was armed."""
        return int(self._library.system_calls_seen())

    def fired(self) -> int:
        """How many calls did what the rule says."""
        return int(self._library.system_calls_fired())


class Kind(enum.IntEnum):
    """What an event of a trace is."""

    WRITE = 1
    STORE = 2
    TRUNCATE = 3
    ALLOCATE = 4
    ZERO = 5
    SYNC = 6
    SYNC_DATA = 7
    SYNC_FOLDER = 8
    CREATE = 9
    RENAME = 10
    UNLINK = 11
    MKDIR = 12
    RMDIR = 13
    NOTE = 14


class Event(NamedTuple):
    """One change of a file, after it was made.

    kind: what. inode: of the file, where it was opened. path: below the root; of a file as it was opened. position,
    size: bytes; of TRUNCATE `size` is the file's. data: what was written, a note's text, or the new path of RENAME.
    """

    kind: Kind
    inode: int
    path: str
    position: int
    size: int
    data: bytes


def read_trace(path: Path) -> Iterator[Event]:
    """The events of a trace, in their order; one that was cut by the end of its process is left out."""
    data = path.read_bytes()
    at = 0
    while at + _EVENT.size <= len(data):
        kind, path_size, inode, position, size, data_size = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        if at + path_size + data_size > len(data):
            return
        name = os.fsdecode(data[at : at + path_size])
        at += path_size
        yield Event(Kind(kind), inode, name, position, size, data[at : at + data_size])
        at += data_size
