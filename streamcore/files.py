"""Files of a store, opened here as `csrc/os.c` opens them: never through a link, and nothing but files."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_file(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor. Raises OSError: ELOOP for a symbolic link, EINVAL for a pipe, a socket or a device.

    Following a link would read from, or write to, what is no part of the store; a pipe could keep one waiting for ever.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(number, os.strerror(number), str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_folder(path: Path) -> None:
    """Raises OSError unless there is a folder by itself: ENOENT, ELOOP for a symbolic link, ENOTDIR."""
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode):
        number = errno.ELOOP if stat.S_ISLNK(mode) else errno.ENOTDIR
        raise OSError(number, os.strerror(number), str(path))


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on the drive."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
