"""streamcore with the same interface as its peers."""

from __future__ import annotations

from pathlib import Path

import streamcore as sc


class StreamcoreLog:
    def __init__(self, folder: Path, capacity: int) -> None:
        self._store = sc.open(folder / "store")
        self._topic = self._store.create_topic("clicks")

    def append(self, first: int, values: list[bytes]) -> None:
        self._topic.append(values)

    def touch_all(self) -> int:
        count = bytes_seen = 0
        for record in self._topic.scan():
            key, value = record.key, record.value
            bytes_seen += (key is None) + len(value)
            count += 1
        assert bytes_seen > count
        return count

    def close(self) -> None:
        self._store.close()
