"""A process of the tier benchmark that does one thing: `python -m bench.tier_probe WHAT STORE OPTIONS`.

WHAT: `offload`, `move` (what is in the tier goes from here, after a read of all of it), `scan`, `records`, `consume`.
OPTIONS: the tier's, as JSON. Output: the most anonymous memory that the process held, in MB.
"""

from __future__ import annotations

import collections
import json
import sys
import threading
from collections.abc import Callable, Iterable

import streamcore as sc
from bench.memory_probe import anonymous_mb
from streamcore.tier import keeping

_EVERY_S = 0.01


def move(topic: sc.Topic) -> None:
    """What is in the tier goes from here."""
    assert topic.store.tier is not None
    assert topic.cold is not None
    topic.alter(local_retention_bytes=1)
    keeping.apply_local_retention(topic, topic.store.tier, topic.cold)


def consume(topic: sc.Topic) -> None:
    with topic.store.consumer(topic.name) as consumer:
        while consumer.poll_arrow(timeout_ms=0).num_rows:
            pass


def _exhaust(items: Iterable[object]) -> None:
    collections.deque(items, maxlen=0)


WORK: dict[str, Callable[[sc.Topic], object]] = {
    "offload": lambda topic: topic.offload(),
    "move": move,
    "scan": lambda topic: _exhaust(topic.scan().batches()),
    "records": lambda topic: _exhaust(topic.scan()),
    "consume": consume,
}


def peak_mb(work: Callable[[], object]) -> float:
    """The most anonymous memory while something is done, looked at every 10 ms."""
    found = [anonymous_mb()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_EVERY_S):
            found.append(anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(found)


if __name__ == "__main__":
    with sc.open(sys.argv[2], maintenance=False, tier_options=json.loads(sys.argv[3])) as store:
        [name] = [topic.name for topic in store.topics()]
        print(peak_mb(lambda: WORK[sys.argv[1]](store.topic(name))))
