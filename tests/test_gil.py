"""The GIL is released around the work of the core: other threads run meanwhile."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import streamcore as sc
from streamcore import _core

Look = Callable[[Callable[[], Any]], bool]
MEBIBYTE = 1 << 20

pytestmark = pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no GIL")


@pytest.fixture
def others_run() -> Iterator[Look]:
    """others_run(work): whether another thread ran Python code before work() was done.

    The interpreter takes the GIL from nobody while the test lasts, so another thread runs only where it is released.
    """
    steps, going, interval = 0, True, sys.getswitchinterval()

    def step() -> None:
        nonlocal steps
        while going:
            steps += 1
            time.sleep(0.0001)

    def look(work: Callable[[], Any]) -> bool:
        before = steps
        work()
        return steps > before

    thread = threading.Thread(target=step)
    thread.start()
    sys.setswitchinterval(1000)
    try:
        yield look
    finally:
        going = False
        sys.setswitchinterval(interval)
        thread.join()


@pytest.mark.parametrize("what", ["append", "durable append", "flush", "verify", "checksum"])
def test_other_threads_run_while_the_core_works(
    topic: sc.Topic, what: str, others_run: Look, wait_until: Callable[..., None]
) -> None:
    values = [b"x" * MEBIBYTE] * 32
    topic.append(values)

    def flush() -> None:
        topic.append([b"x"])
        topic.flush()

    work: dict[str, Callable[[], Any]] = {
        "append": lambda: topic.append(values),
        "durable append": lambda: topic.append([b"x"], durability="disk"),
        "flush": flush,
        "verify": lambda: topic.verify_partition(0, None),
        "checksum": lambda: _core.crc32c(values[0] * 32),
    }
    wait_until(lambda: others_run(work[what]))


def test_control_no_other_thread_runs_while_the_gil_is_held(others_run: Look) -> None:
    held = [bytes(10)] * 1_000_000
    assert not any(others_run(lambda: (sorted(range(500_000)), _core.ByteColumn(held, "values"))) for _ in range(10))
