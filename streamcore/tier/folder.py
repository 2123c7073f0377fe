"""Objects in a folder: files that are synced, renamed into place, and replaced under a lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from streamcore.errors import TierError
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
        with self._translated("get", path), self._path(path).open("rb") as file:
            return file.read(), _tag_of(os.fstat(file.fileno()))

    def _get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        with self._translated("get", path), self._path(path).open("rb") as file:
            found = [os.pread(file.fileno(), end - start, start) for start, end in ranges]
            if any(len(data) < end - start for (start, end), data in zip(ranges, found, strict=True)):
                size = os.fstat(file.fileno()).st_size
                raise TierError(f"the object has {size} bytes, and ends within what was asked for", self.url_of(path))
            return list(found)

    def _stream(self, path: str) -> Iterator[Buffer]:
        with self._translated("get", path):
            file = self._path(path).open("rb")

        def pieces() -> Iterator[Buffer]:
            with file, self._translated("get", path):
                while piece := file.read(_PIECE_BYTES):
                    yield piece

        return pieces()

    def _head(self, path: str) -> Info:
        with self._translated("head", path):
            found = self._path(path).stat()
            return Info(path, found.st_size, _tag_of(found), found.st_mtime_ns // 1_000_000)

    def _list(self, prefix: str) -> list[Info]:
        found = []
        with self._translated("list", prefix):
            for folder, _, names in os.walk(self._root / prefix):
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
        with self._translated("delete", path), contextlib.suppress(FileNotFoundError):
            self._path(path).unlink()

    # ---- files ----

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
                os.fsync(file.fileno())
                status = os.fstat(file.fileno())
            beside.rename(target)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        for folder in {target.parent, *(made.parent for made in new_folders)}:
            _sync_folder(folder)
        return _tag_of(status)

    @contextlib.contextmanager
    def _translated(self, what: str, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise ObjectMissingError("there is no such object", self.url_of(path)) from None
        except OSError as error:
            if error.errno in _MAY_PASS:
                raise Transient(error.strerror) from None
            raise self._failed(what, path, error.strerror or str(error)) from None


def _tag_of(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
