"""The interface that a log of records has here, so that one question can be put to all of them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

LOGS = {
    "streamcore": ("streamcore_log", "StreamcoreLog"),
    "LMDB": ("lmdb_log", "LmdbLog"),
    "SQLite": ("sqlite_log", "SqliteLog"),
    "RocksDB": ("rocksdb_log", "RocksLog"),
    "RocksDB without its log": ("rocksdb_log", "RocksLogWithoutWal"),
}


class RecordLog(Protocol):
    """An append-only log of values, which survives a crash of the process, not of the machine, unless it says so."""

    def __init__(self, folder: Path, capacity: int) -> None:
        """Makes an empty log for at most `capacity` records, and all that can be made before the clock runs."""

    def append(self, first: int, values: list[bytes]) -> None:
        """Appends the records first, first + 1, ... in one transaction."""

    def touch_all(self) -> int:
        """Iterates over all records as Python objects, takes the length of each key and value; returns the count."""

    def close(self) -> None: ...


def record_logs() -> tuple[dict[str, type[RecordLog]], dict[str, str]]:
    """The logs that are installed here by name, and why the others are not."""
    found: dict[str, type[RecordLog]] = {}
    absent: dict[str, str] = {}
    for name, (module, class_name) in LOGS.items():
        try:
            found[name] = getattr(importlib.import_module(f"bench.peers.{module}"), class_name)
        except ModuleNotFoundError as error:
            if name == "streamcore":
                raise
            absent[name] = str(error)
    return found, absent
