"""The memory benchmark's process: `python -m bench.memory_probe STORE GB INPUT` appends, scans, says what it held.

INPUT is an Arrow IPC file with the batches to append; it is mapped, so that the input is no memory of this process.
Output: one JSON object with lists of points: log size in GB, anonymous memory in MB, rates in records/s.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

import streamcore as sc
from bench import host_memory
from bench.contest import status_mb

POINTS = 10


def probe(path: Path, log_gb: float, source: pa.NativeFile) -> dict[str, list[float]]:
    arrays = pa.ipc.open_file(source).read_all().column("value").chunks
    found: dict[str, list[float]] = {"gb": [], "append": [], "scan": [], "append_mb": [], "scan_mb": []}
    found["start_mb"] = [anonymous_mb()]
    with sc.open(path) as store:
        topic = store.create_topic("clicks")
        for point in range(1, POINTS + 1):
            host_memory.take(int(1.2e9 * log_gb / POINTS))
            rate = append_until(topic, arrays, log_gb * 1e9 * point / POINTS)
            found["append"].append(rate)
            found["append_mb"].append(anonymous_mb())
            found["gb"].append(topic.partitions[0].size_bytes / 1e9)
            found["scan"].append(scan_all(topic))
            found["scan_mb"].append(anonymous_mb())
    return found


def append_until(topic: sc.Topic, arrays: Sequence[pa.BinaryArray], size_bytes: float) -> float:
    appended = calls = 0
    start = time.perf_counter()
    while topic.partitions[0].size_bytes < size_bytes:
        array = arrays[calls % len(arrays)]
        topic.append(array)
        appended += len(array)
        calls += 1
    return appended / (time.perf_counter() - start)


def scan_all(topic: sc.Topic) -> float:
    """Reads the whole log batch by batch, after a scan that verified the checksums of what is new."""
    for _ in topic.scan().batches():
        pass
    count, start = 0, time.perf_counter()
    for batch in topic.scan().batches():
        count += batch.num_rows
    assert count == topic.partitions[0].end_offset
    return count / (time.perf_counter() - start)


def anonymous_mb() -> float:
    """Memory without mapped file pages."""
    return status_mb("RssAnon") or 0.0


if __name__ == "__main__":
    with pa.memory_map(sys.argv[3]) as file:
        print(json.dumps(probe(Path(sys.argv[1]), float(sys.argv[2]), file)))
