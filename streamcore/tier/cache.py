"""Pieces of objects on the local disk: bounded, checked, and shared by the processes that have the store open.

A file holds what one read fetched of one row group. It is written beside and renamed, so readers see whole ones; each
ends with the XXH3-128 digest of what is before it. Those that were not used for longest go first. All of it may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import xxhash

from streamcore.tier.objects import Buffer

_PLACE = struct.Struct("<QQ")  # where a piece begins in its object, and how long it is
_COUNT = struct.Struct("<I")
_DIGEST_BYTES = 16
_KEPT_PART = 0.9  # of the size, when it is exceeded
_TOUCH_S = 60.0  # a file's time of use is that exact
_TEMPORARY = ".tmp~"


class Cache:
    """A folder of at most about `max_bytes`. Failures of the disk are misses."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._size: int | None = None  # as far as this process knows
        self._made = 0
        self.hits = 0
        self.misses = 0

    @property
    def size_bytes(self) -> int:
        """What is in it now."""
        return sum(size for _, size, _ in self._files())

    def get(self, object_name: str, piece: str) -> dict[int, Buffer] | None:
        """What was kept of an object under this name, by where each piece begins in it; None when it is not there."""
        path = self._path(object_name, piece)
        try:
            data = path.read_bytes()
            pieces = _unpacked(data)
            if pieces is None:
                path.unlink()
            elif time.time() - path.stat().st_mtime > _TOUCH_S:
                os.utime(path)
        except OSError:
            pieces = None
        with self._lock:
            self.hits += pieces is not None
            self.misses += pieces is None
        return pieces

    def put(self, object_name: str, piece: str, pieces: Mapping[int, Buffer]) -> None:
        """Keeps pieces of an object."""
        path = self._path(object_name, piece)
        data = _packed(pieces)
        size = sum(map(len, data))
        if size > self._max_bytes:
            return
        with self._lock:
            self._made += 1
            beside = path.with_name(f"{path.name}{_TEMPORARY}{os.getpid()}-{self._made}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("xb") as file:
                file.writelines(data)
            beside.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            return
        self._grow(size)

    def forget(self, object_name: str) -> None:
        """Drops what is kept of an object."""
        with contextlib.suppress(OSError):
            for path in (self._folder / object_name).iterdir():
                path.unlink(missing_ok=True)
            (self._folder / object_name).rmdir()

    def _path(self, object_name: str, piece: str) -> Path:
        return self._folder / object_name / piece

    def _grow(self, size: int) -> None:
        with self._lock:
            if self._size is None:
                self._size = self.size_bytes
            else:
                self._size += size
            if self._size > self._max_bytes:
                self._size = self._shrink()

    def _shrink(self) -> int:
        """Drops the files that were not used for longest; the bytes that are left."""
        files = sorted(self._files())
        left = sum(size for _, size, _ in files)
        for _, size, path in files:
            if left <= self._max_bytes * _KEPT_PART:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                left -= size
            with contextlib.suppress(OSError):  # when it was the last one
                path.parent.rmdir()
        return left

    def _files(self) -> Sequence[tuple[float, int, Path]]:
        found = []
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found


def _packed(pieces: Mapping[int, Buffer]) -> list[Buffer]:
    head = [_COUNT.pack(len(pieces)), *(_PLACE.pack(start, len(data)) for start, data in pieces.items())]
    parts: list[Buffer] = [b"".join(head), *pieces.values()]
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return [*parts, digest.digest()]


def _unpacked(data: bytes) -> dict[int, Buffer] | None:
    """The pieces; None when the bytes are not those that were written."""
    whole = memoryview(data)
    content, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
    if len(content) < _COUNT.size or xxhash.xxh3_128_digest(content) != digest:
        return None
    (count,) = _COUNT.unpack_from(content)
    at = _COUNT.size + count * _PLACE.size
    pieces: dict[int, Buffer] = {}
    for number in range(count):
        start, size = _PLACE.unpack_from(content, _COUNT.size + number * _PLACE.size)
        pieces[start] = content[at : at + size]
        at += size
    return pieces
