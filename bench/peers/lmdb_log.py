"""LMDB in its best mode for appends: a writable map, no sync, putmulti with append, keys made beforehand."""

from __future__ import annotations

from pathlib import Path

import lmdb


class LmdbLog:
    def __init__(self, folder: Path, capacity: int, map_bytes: int = 16 << 30) -> None:
        self._env = lmdb.open(
            str(folder), map_size=map_bytes, writemap=True, map_async=True, sync=False, metasync=False, readahead=True
        )
        self._keys = [number.to_bytes(8, "big") for number in range(capacity)]

    def append(self, first: int, values: list[bytes]) -> None:
        with self._env.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(zip(self._keys[first : first + len(values)], values, strict=True), append=True)

    def touch_all(self) -> int:
        count = bytes_seen = 0
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            for key, value in cursor:
                bytes_seen += len(key) + len(value)
                count += 1
        assert bytes_seen > count
        return count

    def close(self) -> None:
        self._env.close()
