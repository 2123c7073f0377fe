"""A segment that somebody cuts while it is mapped: an error of ours, and never the end of the process."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc

from .forkserver import Channel, ForkServer
from .logs import FIRST_TIME_MS, TOPIC, Log, make_log
from .segments import only_segment

_MOMENT = datetime.fromtimestamp(FIRST_TIME_MS // 1000 + 20, UTC)
READS: dict[str, Callable[[sc.Store, sc.Topic], Any]] = {
    "records": lambda store, topic: [record.value for record in topic.scan()],
    "records unchecked": lambda store, topic: [record.value for record in topic.scan(verify=False)],
    "one record": lambda store, topic: next(iter(topic.scan(start=5000, end=5001))),
    "to_arrow": lambda store, topic: topic.scan().to_arrow().validate(full=True),
    "to_arrow unchecked": lambda store, topic: topic.scan(verify=False).to_arrow(),
    "batches": lambda store, topic: [batch.num_rows for batch in topic.scan(columns=["value"]).batches()],
    "from a time": lambda store, topic: topic.scan(start=_MOMENT).to_arrow(),
    "count": lambda store, topic: topic.scan().count(),
    "count from a time": lambda store, topic: topic.scan(start=_MOMENT).count(),
    "limit": lambda store, topic: list(topic.scan(start=8000, limit=2)),
    "segments": lambda store, topic: topic.segments(),
    "partitions": lambda store, topic: topic.partitions,
    "digests": lambda store, topic: list(store.digests()),
    "verify": lambda store, topic: store.verify(),
}


@pytest.fixture
def log(store_path: Path) -> Log:
    """Thirty appends of 300 records in one segment of about a megabyte."""
    return make_log(store_path, 30, rows=300, value_bytes=80)


def read_while_it_is_cut(channel: Channel, store_path: str, mode: str, size: int, first: str) -> None:
    """Reads, so that the segment is mapped, has it cut, and reads in each way; says what came of it."""
    path = only_segment(Path(store_path))
    data = path.read_bytes()
    for name, read in READS.items():
        with contextlib.suppress(sc.StreamcoreError), sc.open(store_path, mode) as store:
            topic = store.topic(TOPIC)
            READS[first](store, topic)
            os.truncate(path, size)
            channel.send("READING", name)
            try:
                found = read(store, topic)
                channel.send("RESULT", "problems" if name == "verify" and found else "nothing")
            except sc.StreamcoreError as error:
                channel.send("RESULT", type(error).__name__)
        path.write_bytes(data)


# Without a writer a reader looks for the end of the log each time, and takes the cut for a torn tail: fewer records.
# With a writer the end is known, so what is missing is an error to all that look at records.
_OUTCOMES_OF_A_READER = {"nothing", "OffsetOutOfRangeError", "StorageError", "CorruptionError", "StoreFormatError"}
_OUTCOMES = {"StorageError", "CorruptionError", "StoreFormatError"}
_LOOK_AT_NO_RECORD = {"segments", "partitions", "digests", "count"}


@pytest.mark.parametrize("first", ["partitions", "records"])
@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("size", [0, 4096, 300_001])
def test_reading_a_segment_that_was_cut_while_mapped_is_an_error_and_not_a_signal(
    size: int, mode: str, first: str, log: Log, children: ForkServer
) -> None:
    child = children.start(read_while_it_is_cut, store_path=str(log.store_path), mode=mode, size=size, first=first)
    assert child.wait() == 0, f"status {child.status} at {child.said('READING')[-1]}: {child.failure()}"
    names = [" ".join(words) for words in child.said("READING")]
    assert names == list(READS)
    results = dict(zip(names, (result for (result,) in child.said("RESULT")), strict=True))
    for name, result in results.items():
        if name == "verify":
            assert result == ("problems" if mode == "rw" else result)
        elif mode == "r":
            assert result in _OUTCOMES_OF_A_READER, name
        else:
            assert result in _OUTCOMES or (result == "nothing" and name in _LOOK_AT_NO_RECORD), (name, result)


def read_on_while_it_is_cut(channel: Channel, store_path: str, mode: str, size: int, verify: bool) -> None:
    """Cuts the segment in the middle of an iteration, and iterates on."""
    with sc.open(store_path, mode) as store:
        topic = store.topic(TOPIC)
        records = iter(topic.scan(verify=verify))
        seen = [next(records).value for _ in range(10)]
        os.truncate(only_segment(Path(store_path)), size)
        try:
            seen += [record.value for record in records]
            channel.send("RESULT", "nothing", len(seen))
        except sc.StreamcoreError as error:
            channel.send("RESULT", type(error).__name__, len(seen))


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("size", [0, 4096, 300_001])
def test_iterating_on_over_a_segment_that_was_cut_is_an_error_and_not_a_signal(
    size: int, verify: bool, mode: str, log: Log, children: ForkServer
) -> None:
    child = children.start(read_on_while_it_is_cut, store_path=str(log.store_path), mode=mode, size=size, verify=verify)
    assert child.wait() == 0, f"status {child.status}: {child.failure()}"
    ((result, _),) = child.said("RESULT")
    assert result in ("StorageError", "CorruptionError")


def append_while_it_is_cut(channel: Channel, store_path: str, size: int, rows: int) -> None:
    """Cuts the active segment under a writer, who then appends, flushes and closes."""
    store = sc.open(store_path)
    topic = store.topic(TOPIC)
    topic.append([b"before the cut"])
    os.truncate(only_segment(Path(store_path)), size)
    for action in (lambda: topic.append([b"behind the cut"] * rows), topic.flush, store.close):
        try:
            action()
            channel.send("RESULT", "nothing")
        except sc.StreamcoreError as error:
            channel.send("RESULT", type(error).__name__)


@pytest.mark.parametrize("rows", [1, 20_000])
@pytest.mark.parametrize("size", [0, 4096, 300_001])
def test_appending_to_a_segment_that_was_cut_while_mapped_is_not_a_signal(
    size: int, rows: int, log: Log, children: ForkServer
) -> None:
    child = children.start(append_while_it_is_cut, store_path=str(log.store_path), size=size, rows=rows)
    assert child.wait() == 0, f"status {child.status}: {child.failure()}"


def read_a_mapping_of_its_own(channel: Channel, path: str) -> None:
    """What Python's own mmap does in this case."""
    with Path(path).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    os.truncate(path, 0)
    channel.send("READING")
    channel.send("READ", mapped[5000])


def test_control_without_care_the_cut_ends_the_process(log: Log, children: ForkServer) -> None:
    child = children.start(read_a_mapping_of_its_own, path=str(log.path))
    status = child.wait()
    assert child.said("READING")
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGBUS
