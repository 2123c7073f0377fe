"""The other process of the visibility benchmark: `python -m bench.watcher STORE WAY COUNT`.

It prints when it saw each append, as a JSON list of CLOCK_MONOTONIC times in ns. WAY is `spin` (asks
again and again) or `block` (topic.wait).
"""

from __future__ import annotations

import json
import sys
import time

import streamcore as sc

DEADLINE_NS = 120 * 10**9


def watch(path: str, way: str, count: int) -> list[int]:
    seen: list[int] = []
    timeout_ms = 1_000 if way == "block" else 0
    with sc.open(path, mode="r") as store:
        topic = store.topic("clicks")
        known = topic.partitions[0].end_offset
        print("ready", flush=True)
        deadline = time.monotonic_ns() + DEADLINE_NS
        while len(seen) < count and time.monotonic_ns() < deadline:
            if topic.wait({0: known + len(seen)}, timeout_ms=timeout_ms):
                seen.append(time.monotonic_ns())
    return seen


if __name__ == "__main__":
    print(json.dumps(watch(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
