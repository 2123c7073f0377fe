"""The other process of the latency benchmark: `python -m bench.receiver WAY PLACE COUNT`.

PLACE is a store's folder, or the broker's address. Each value begins with the CLOCK_MONOTONIC time in ns at which its
sender took it in hand; printed is, as a JSON list, how many µs later each record was there as an object in Python.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Literal

import streamcore as sc
from bench.peers.kafka_clients import prompt_reader

TOPIC = "latency"
DEADLINE_NS = 120 * 10**9
NOW = time.monotonic_ns


def receive(way: str, place: str, count: int) -> list[float]:
    if way.startswith("kafka"):
        return kafka_latencies(place, count, timeout_s=0.0 if way == "kafka-busy" else 1.0)
    mode: Literal["r", "rw"] = "r" if way == "busy-reader" else "rw"
    with sc.open(place, mode=mode) as store, store.consumer(TOPIC, start="latest") as consumer:
        consumer.poll(timeout_ms=0)
        print("ready", flush=True)
        if way == "iterate":
            return iterated(consumer, count)
        return polled(consumer, count, timeout_ms=1_000 if way == "block" else 0)


def polled(consumer: sc.Consumer, count: int, timeout_ms: int) -> list[float]:
    def next_values() -> list[bytes]:
        return [record.value for record in consumer.poll(timeout_ms)]

    return collected(next_values, count)


def iterated(consumer: sc.Consumer, count: int) -> list[float]:
    found: list[float] = []
    for record in consumer:
        found.append(age_us(record.value))
        if len(found) == count:
            break
    return found


def kafka_latencies(address: str, count: int, timeout_s: float) -> list[float]:
    consumer = prompt_reader(address, TOPIC)
    consumer.poll(1.0)
    print("ready", flush=True)

    def next_values() -> list[bytes]:
        message = consumer.poll(timeout_s)
        if message is None:
            return []
        if message.error():
            raise RuntimeError(str(message.error()))
        return [message.value()]

    try:
        return collected(next_values, count)
    finally:
        consumer.close()


def collected(next_values: Callable[[], list[bytes]], count: int) -> list[float]:
    found: list[float] = []
    deadline = NOW() + DEADLINE_NS
    while len(found) < count:
        for value in next_values():
            found.append(age_us(value))
        if NOW() > deadline:
            raise RuntimeError(f"{len(found)} of {count} records came in time")
    return found


def age_us(value: bytes) -> float:
    return (NOW() - int.from_bytes(value[:8], "little")) / 1000


if __name__ == "__main__":
    print(json.dumps(receive(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
