"""SQLite in its best mode for appends: WAL, synchronous off, executemany in one transaction, rowid as the key."""

from __future__ import annotations

import sqlite3
from pathlib import Path


class SqliteLog:
    def __init__(self, folder: Path, capacity: int) -> None:
        self._connection = sqlite3.connect(folder / "log.sqlite", isolation_level=None)
        self._connection.execute("pragma page_size = 16384")
        self._connection.execute("pragma journal_mode = wal")
        self._connection.execute("pragma synchronous = off")
        self._connection.execute("pragma cache_size = -65536")
        self._connection.execute("pragma mmap_size = 4294967296")
        self._connection.execute("create table log (position integer primary key, value blob)")

    def append(self, first: int, values: list[bytes]) -> None:
        self._connection.execute("begin")
        self._connection.executemany("insert into log values (?, ?)", enumerate(values, first))
        self._connection.execute("commit")

    def touch_all(self) -> int:
        count = bytes_seen = 0
        for position, value in self._connection.execute("select position, value from log order by position"):
            bytes_seen += (position is not None) + len(value)
            count += 1
        assert bytes_seen > count
        return count

    def close(self) -> None:
        self._connection.close()
