"""Objects are read ahead, and what comes first is given first: whatever is the matter with those behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc
from streamcore.segments import Segment
from streamcore.tier.groups import Piece, ahead
from streamcore.tier.parquet import Footer

from .test_tiered_topic import SEGMENT_BYTES, fill, move, objects_of, parquet_files

COUNT = 8000
WAIT_S = 20.0


@pytest.fixture
def topic(store: sc.Store) -> sc.Topic:
    """Some objects with a row group each, and nothing of them here."""
    made = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
    fill(made, COUNT)
    move(made)
    assert len(objects_in(made)) > 8
    return made


def objects_in(topic: sc.Topic) -> list[Segment]:
    """What the tier has of partition 0."""
    assert topic.cold is not None
    return topic.cold.extents(0, topic.bounds([0])[0][2])


def watch(topic: sc.Topic, monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """before(N): called before a request for a part of object N."""
    objects = objects_of(topic.store)
    names = [Path(segment.path).name for segment in objects_in(topic)]
    get_ranges = objects.get_ranges

    def watched(path: str, ranges: Any) -> Any:
        before(names.index(Path(path).name))
        return get_ranges(path, ranges)

    monkeypatch.setattr(objects, "get_ranges", watched)


def test_the_next_objects_records_are_fetched_while_those_of_one_are_used(
    topic: sc.Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [0] * 20

    def count(number: int) -> None:
        asked[number] += 1

    watch(topic, monkeypatch, count)
    batches = topic.scan().batches()
    for number in range(6):
        next(batches)
        until = time.monotonic() + 1
        while asked[number + 1] < 2 and time.monotonic() < until:  # its footer, and its records
            time.sleep(0.001)
        if asked[number + 1] == 2:
            break
    else:
        raise AssertionError("nothing was fetched that was not asked for")
    assert sum(asked[number + 6 :]) == 0  # nor all of it
    assert sum(batch.num_rows for batch in batches) < COUNT


def test_records_do_not_wait_for_an_object_behind_them(topic: sc.Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hold(number: int) -> None:
        if number == 1:
            assert release.wait(WAIT_S)

    watch(topic, monkeypatch, hold)
    batches = topic.scan().batches()
    first = next(batches)
    assert not release.is_set()
    release.set()
    assert first.num_rows + sum(batch.num_rows for batch in batches) == COUNT


def test_who_has_several_objects_fetched_sleeps_while_their_footers_come(
    topic: sc.Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_s = 0.5

    def hold(number: int) -> None:
        if number == 1:
            time.sleep(slow_s)

    watch(topic, monkeypatch, hold)
    begins, cpu_s = time.monotonic(), time.thread_time()
    futures = topic.scan(0, 0, objects_in(topic)[1].end_offset).begin()
    assert time.monotonic() - begins > slow_s / 2
    assert time.thread_time() - cpu_s < slow_s / 2
    assert sum(future.result().num_rows for future in futures) > 0


def test_who_waits_for_a_footer_goes_on_when_closing_cancels_it() -> None:
    footer: Future[Footer] = Future()
    asked = threading.Event()

    def pieces() -> Iterator[Piece | Future[Footer]]:
        while not footer.done():
            asked.set()
            yield footer
        raise sc.TierError("closed", "")

    ended: list[str] = []

    def read() -> None:
        try:
            list(ahead(pieces(), lambda piece: Future()))
        except sc.TierError as error:
            ended.append(error.message)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert asked.wait(WAIT_S)
    assert footer.cancel()  # as a pool does that is shut down, with what has not begun
    reader.join(WAIT_S)
    assert ended == ["closed"]


def test_a_scan_of_the_tier_says_that_its_store_is_closed(store: sc.Store, topic: sc.Topic) -> None:
    batches = topic.scan().batches()
    next(batches)
    store.close()
    with pytest.raises(sc.StreamcoreError, match="the store (is|was) closed"):
        list(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("streamcore-tier")]


def test_closing_the_store_ends_a_read_that_has_not_begun(
    store: sc.Store, topic: sc.Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, release = threading.Semaphore(0), threading.Event()

    def hold(number: int) -> None:
        inside.release()
        assert release.wait(WAIT_S)

    watch(topic, monkeypatch, hold)
    said: list[str] = []

    def read(start: int) -> None:
        try:
            list(topic.scan(0, start).batches())
        except Exception as error:
            said.append(repr(error))

    readers = [threading.Thread(target=read, args=(start,)) for start in range(0, COUNT, COUNT // 4)]
    for reader in readers:
        reader.start()
    for _ in readers:
        assert inside.acquire(timeout=WAIT_S)
    closing = threading.Thread(target=store.close)
    closing.start()
    release.set()
    for thread in (*readers, closing):
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert all("closed" in one for one in said)


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_all_records_before_an_object_that_is_gone_come_before_the_error(
    topic: sc.Topic, tier_path: Path, missing: int
) -> None:
    segment = objects_in(topic)[missing]
    parquet_files(tier_path)[missing].unlink()
    found: list[int] = []
    with pytest.raises(sc.TierError, match=f"offsets {segment.base_offset} to {segment.end_offset} are lost"):
        found.extend(record.offset for record in topic.scan())
    assert found == list(range(segment.base_offset))
