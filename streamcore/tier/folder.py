"""Objects in a folder: files that are synced, renamed into place, and replaced under a lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from streamcore.files import sync_folder
from streamcore.tier.objects import (
    Buffer,
    ConflictError,
    Info,
    ObjectMissingError,
    Objects,
    Retries,
    Transient,
)

_LOCK_NAME = ".lock"
_TEMPORARY = ".tmp~"
_PIECE_BYTES = 4 << 20
_MAY_PASS = {errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE}


class FolderObjects(Objects):
    """Objects below a folder, which is made when the first one is put. A tag is the file's number, size and time."""

    def __init__(self, url: str, retries: Retries) -> None:
        super().__init__(url, retries)
        self._root = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
        self._made = 0

    def _put(self, path: str, data: Buffer) -> str:
        with self._translated("put", path):
            return self._written(path, [data])

    def _put_file(self, path: str, file: Path) -> str:
        with self._translated("put", path), file.open("rb") as source:
            return self._written(path, iter(lambda: source.read(_PIECE_BYTES), b""))

    def _replace(self, path: str, data: Buffer, tag: str | None) -> str:
        with self._translated("replace", path):
            self._root.mkdir(parents=True, exist_ok=True)
            with (self._root / _LOCK_NAME).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    found = _tag_of(self._path(path).stat())
                except FileNotFoundError:
                    found = None
                if found != tag:
                    is_there = "is not there" if found is None else "is there already" if tag is None else "has changed"
                    raise ConflictError(f"the object {is_there}", self.url_of(path))
                return self._written(path, [data])

    def _get(self, path: str) -> tuple[bytes, str]:
        with self._opened(path) as file:
            return file.read(), _tag_of(os.fstat(file.fileno()))

    def _get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        with self._opened(path) as file:
            return [os.pread(file.fileno(), end - start, start) for start, end in ranges]

    def _get_piece(self, path: str, start: int, end: int, tag: str) -> Buffer:
        with self._opened(path) as file:
            if _tag_of(os.fstat(file.fileno())) != tag:
                raise ConflictError("the object has changed", self.url_of(path))
            return os.pread(file.fileno(), end - start, start)

    def _head(self, path: str) -> Info:
        with self._translated("head", path):
            found = self._path(path).stat()
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError
            return Info(path, found.st_size, _tag_of(found), found.st_mtime_ns // 1_000_000)

    def _list(self, prefix: str) -> list[Info]:
        found = []
        with self._translated("list", prefix):
            for folder, _, names in os.walk(self._root / prefix, onerror=_unless_gone):
                for name in names:
                    path = Path(folder, name)
                    if _TEMPORARY in name or path == self._root / _LOCK_NAME:
                        continue
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        status = path.stat()
                        relative = path.relative_to(self._root).as_posix()
                        found.append(Info(relative, status.st_size, _tag_of(status), status.st_mtime_ns // 1_000_000))
        return found

    def _delete(self, path: str) -> None:
        with contextlib.suppress(ObjectMissingError), self._translated("delete", path):
            self._path(path).unlink()

    def _sweep(self, grace_s: float) -> int:
        before, swept = time.time() - grace_s, 0
        with self._translated("sweep", ""):
            for path in self._root.rglob(f"*{_TEMPORARY}*"):
                with contextlib.suppress(FileNotFoundError):  # it was renamed, or swept by another
                    if path.stat().st_mtime < before:
                        path.unlink()
                        swept += 1
        return swept

    # ---- files ----

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[BinaryIO]:
        with self._translated("get", path), self._path(path).open("rb") as file:
            yield file

    def _path(self, path: str) -> Path:
        assert not path.startswith("/")
        assert ".." not in path.split("/")
        return self._root / path

    def _written(self, path: str, pieces: Sequence[Buffer] | Iterator[Buffer]) -> str:
        """Writes beside, syncs, renames, and syncs the folders that are new: what is said to be there stays there."""
        target = self._path(path)
        new_folders = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        self._made += 1
        beside = target.with_name(f"{target.name}{_TEMPORARY}{os.getpid()}-{threading.get_ident()}-{self._made}")
        try:
            with beside.open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                _date(file.fileno(), target)
                os.fsync(file.fileno())
                status = os.fstat(file.fileno())
            beside.rename(target)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        for folder in {target.parent, *(made.parent for made in new_folders)}:
            sync_folder(folder)
        return _tag_of(status)

    @contextlib.contextmanager
    def _translated(self, what: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            gone = isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
            if gone and what in ("get", "head", "delete"):
                raise ObjectMissingError("there is no such object", self.url_of(path)) from None
            if error.errno in _MAY_PASS:
                raise Transient(error.strerror) from None
            raise self._failed(what, path, error.strerror or str(error)) from None


def _tag_of(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def _date(descriptor: int, replaced: Path) -> None:
    """Gives a new file a time that no file of its name had. A kernel's own may go in steps of milliseconds, in which a
    file is replaced twice, and the number of the first one is given to the third."""
    now_ns = time.time_ns()
    with contextlib.suppress(FileNotFoundError):
        now_ns = max(now_ns, replaced.stat().st_mtime_ns + 1)
    os.utime(descriptor, ns=(now_ns, now_ns))


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
