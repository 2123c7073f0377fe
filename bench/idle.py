"""Consumers that wait in one event loop, in a process of their own: `python -m bench.idle STORE KIND COUNT SECONDS`.

KIND: `none` (a loop without consumers), `alone` (without a group), `groups` (each the only member of its group). Prints
a JSON object: CPU seconds and wall seconds of the wait, threads, memory, and how long it took to start and to wake all.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time

import streamcore as sc
from bench.contest import cpu_seconds, status_mb

TOPIC = "events"


async def waited(consumer: sc.Consumer) -> None:
    async for _ in consumer:
        return


async def measure(store: sc.Store, kind: str, count: int, seconds: float) -> dict[str, float]:
    topic = store.topic(TOPIC)
    topic.append([b"first"])
    before_mb = status_mb("VmRSS") or 0.0
    start = time.perf_counter()
    consumers = [
        store.consumer(TOPIC, group=f"browser-{number}" if kind == "groups" else None, start="latest")
        for number in range(0 if kind == "none" else count)
    ]
    tasks = [asyncio.create_task(waited(consumer)) for consumer in consumers]
    await asyncio.sleep(0.5)
    started_s = time.perf_counter() - start - 0.5
    cpu, start = cpu_seconds(), time.perf_counter()
    await asyncio.sleep(seconds)
    cpu_s, wall_s = cpu_seconds() - cpu, time.perf_counter() - start
    found = {
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "threads": float(threading.active_count()),
        "started_s": started_s,
        "memory_mb": (status_mb("VmRSS") or 0.0) - before_mb,
    }
    start = time.perf_counter()
    topic.append([b"news"])
    await asyncio.gather(*tasks)
    found["woken_ms"] = 1000 * (time.perf_counter() - start)
    for consumer in consumers:
        consumer.close()
    return found


if __name__ == "__main__":
    with sc.open(sys.argv[1]) as opened:
        print(json.dumps(asyncio.run(measure(opened, sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))))
