"""Consumers: positions, polls, iteration, Arrow, asyncio, alone and in a group with one member."""

from __future__ import annotations

import asyncio
import datetime
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc

Wait = Callable[..., None]
Make = Callable[..., sc.Topic]
LONG_MS = 20_000


def threads() -> int:
    """The number of threads, but for the one that does background work."""
    return sum(thread.name != "streamcore-maintenance" for thread in threading.enumerate())


def fill(topic: sc.Topic, count: int, partition: int | None = None, first: int = 0) -> list[bytes]:
    values = [b"%d" % number for number in range(first, first + count)]
    if partition is not None or topic.partition_count == 1:
        topic.append(values, partition=partition)
    else:
        topic.append(values, keys=values)
    return values


def drain(consumer: sc.Consumer, max_records: int = 500) -> list[sc.Record]:
    found: list[sc.Record] = []
    while records := consumer.poll(0, max_records):
        found += records
    return found


# ---- polling ----


def test_polls_hand_out_every_record_once_and_in_order_of_each_partition(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=4)
    values = fill(topic, 1000)
    with store.consumer("clicks") as consumer:
        records = drain(consumer, 7)
        assert sorted(int(record.value) for record in records) == list(range(len(values)))
        for partition in range(4):
            offsets = [record.offset for record in records if record.partition == partition]
            assert offsets == list(range(len(offsets)))
        assert {record.topic for record in records} == {"clicks"}
        assert set(consumer.lag().values()) == {0}
        fill(topic, 5)
        assert len(drain(consumer)) == 5


def test_a_poll_without_records_ends_by_time_and_one_with_records_at_once(store: sc.Store, topic: sc.Topic) -> None:
    with store.consumer("clicks") as consumer:
        assert consumer.poll(0) == []
        start = time.monotonic()
        assert consumer.poll(30) == []
        assert time.monotonic() - start >= 0.03
        timer = threading.Timer(0.05, topic.append, [[b"late"]])
        timer.start()
        assert [record.value for record in consumer.poll(LONG_MS)] == [b"late"]
        timer.join()


def test_no_partition_starves_another(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=3)
    for partition in range(3):
        topic.append([b"x"] * 50_000, partition=partition)
    with store.consumer("clicks") as consumer:
        early = [record.partition for _ in range(120) for record in consumer.poll(0)]
        assert set(early) == {0, 1, 2}


def test_several_topics_come_with_their_names(store: sc.Store) -> None:
    for name in ("a", "b", "c"):
        fill(store.create_topic(name), 3)
    with store.consumer(["a", "b"]) as consumer:
        assert sorted((record.topic, record.offset) for record in drain(consumer)) == [
            (name, offset) for name in "ab" for offset in range(3)
        ]
        assert consumer.assignment == [("a", 0), ("b", 0)]


@pytest.mark.parametrize("wanted", ["log-*", __import__("re").compile("log-.")])
def test_topics_that_match_later_are_picked_up(store: sc.Store, wanted: str) -> None:
    store.create_topic("other")
    with store.consumer(wanted) as consumer:
        assert consumer.poll(0) == []
        assert consumer.poll_arrow(0).num_rows == 0
        fill(store.create_topic("log-a"), 2)
        assert len(drain(consumer)) == 2
        fill(store.create_topic("log-b"), 3)
        assert [record.topic for record in consumer.poll(LONG_MS)] == ["log-b"] * 3


def test_a_waiting_poll_picks_up_partitions_that_are_added(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=1)
    with store.consumer("clicks", start="latest") as consumer:
        consumer.poll(0)
        found: list[sc.Record] = []
        thread = threading.Thread(target=lambda: found.extend(consumer.poll(LONG_MS)))
        thread.start()
        topic.add_partitions(2)
        topic.append([b"new"], partition=1)
        thread.join()
        assert [(record.partition, record.value) for record in found] == [(1, b"new")]


def test_readers_of_a_store_opened_for_reading_follow_too(store: sc.Store, topic: sc.Topic) -> None:
    with sc.open(store.path, mode="r") as reading, reading.consumer("clicks") as consumer:
        assert consumer.poll(0) == []
        fill(topic, 2)
        assert len(consumer.poll(LONG_MS)) == 2
        with pytest.raises(sc.StoreReadOnlyError):
            reading.consumer("clicks", group="g")
        assert reading.groups() == []


# ---- iteration ----


def test_iteration_waits_for_new_records_and_ends_when_another_thread_closes(store: sc.Store, topic: sc.Topic) -> None:
    fill(topic, 3)
    consumer = store.consumer("clicks")
    found: list[bytes] = []

    def read() -> None:
        found.extend(record.value for record in consumer)

    thread = threading.Thread(target=read)
    thread.start()
    fill(topic, 2, first=3)
    deadline = time.monotonic() + 20
    while len(found) < 5 and time.monotonic() < deadline and consumer.position("clicks", 0) < 5:
        time.sleep(0.005)
    consumer.close()
    thread.join(20)
    assert found == [b"0", b"1", b"2", b"3", b"4"]
    with pytest.raises(sc.StreamcoreError, match="closed"):
        consumer.poll(0)


def test_the_position_during_an_iteration_is_behind_the_record_in_hand(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2)
    fill(topic, 100, 0)
    fill(topic, 100, 1)
    with store.consumer("clicks", group="g") as consumer:
        for number, record in enumerate(consumer):
            assert consumer.position("clicks", record.partition) == record.offset + 1
            if number == 120:
                consumer.commit()
                break
        assert store.group("g").offsets() == {("clicks", 0): 100, ("clicks", 1): 21}
        rest = drain(consumer)
        assert len(rest) == 79


def test_seeking_pausing_and_polling_within_an_iteration_take_effect_at_the_next_record(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2)
    fill(topic, 50, 0)
    fill(topic, 50, 1)
    with store.consumer("clicks") as consumer:
        seen = []
        for record in consumer:
            seen.append((record.partition, record.offset))
            if len(seen) == 10:
                consumer.seek("clicks", 0, 5)
            elif len(seen) == 20:
                consumer.pause("clicks", 0)
            elif len(seen) == 25:
                seen += [(other.partition, other.offset) for other in consumer.poll(0, 5)]
            elif len(seen) == 70:
                break
        assert seen[:20] == [(0, n) for n in (*range(10), *range(5, 15))]
        assert seen[20:] == [(1, n) for n in range(50)]
        assert consumer.paused == [("clicks", 0)]
        consumer.resume()
        assert [record.offset for record in drain(consumer)] == list(range(15, 50))


def test_threads_share_an_iteration_and_polls(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=4)
    fill(topic, 20_000)
    consumer = store.consumer("clicks")
    taken: list[list[tuple[int, int]]] = [[], [], [], []]

    def iterate(mine: list[tuple[int, int]]) -> None:
        for record in consumer:
            mine.append((record.partition, record.offset))

    def poll(mine: list[tuple[int, int]]) -> None:
        try:
            while True:
                mine.extend((record.partition, record.offset) for record in consumer.poll(None, 50))
        except sc.StreamcoreError:
            pass

    threads = [
        threading.Thread(target=function, args=(mine,))
        for function, mine in zip((iterate, poll, iterate, poll), taken, strict=True)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while sum(map(len, taken)) < 20_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    consumer.close()
    for thread in threads:
        thread.join(20)
    everything = [place for mine in taken for place in mine]
    assert len(everything) == len(set(everything)) == 20_000


# ---- Arrow ----


def test_tables_are_the_mapped_files_and_hold_everything_once(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2)
    for first in range(0, 4000, 100):
        fill(topic, 100, first // 100 % 2, first)
    with store.consumer("clicks") as consumer:
        tables = []
        while (table := consumer.poll_arrow(0, max_bytes=10_000)).num_rows:
            assert table.nbytes <= 20_000
            tables.append(table)
        assert len(tables) > 5
        whole = pa.concat_tables(tables)
        assert sorted(map(int, whole["value"].to_pylist())) == list(range(4000))
        assert whole.schema.names == ["partition", "offset", "timestamp", "key", "value", "headers"]
        assert table.schema == whole.schema
        before = pa.total_allocated_bytes()
        consumer.seek("clicks", 0, "earliest")
        kept = consumer.poll_arrow(0)
        assert pa.total_allocated_bytes() - before < kept["value"].nbytes / 10


def test_a_batch_larger_than_the_bound_is_cut(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"x" * 1000] * 100)
    with store.consumer("clicks") as consumer:
        assert 1 <= consumer.poll_arrow(0, max_bytes=10_000).num_rows <= 10
        assert consumer.poll_arrow(0, max_bytes=1).num_rows == 1
        position = consumer.position("clicks", 0)
        assert [record.offset for record in consumer.poll(0, 2)] == [position, position + 1]
        table = consumer.poll_arrow(0)
        assert table["offset"].to_pylist() == list(range(position + 2, 100))


def test_tables_of_several_topics_name_theirs(store: sc.Store) -> None:
    fill(store.create_topic("a"), 2)
    fill(store.create_topic("b"), 3)
    with store.consumer(["a", "b"]) as consumer:
        tables = [consumer.poll_arrow(0), consumer.poll_arrow(0)]
        assert [set(table["topic"].to_pylist()) for table in tables] == [{"a"}, {"b"}]
        assert consumer.poll_arrow(0).schema == tables[0].schema


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_typed_and_compressed_topics_are_read_the_same_ways(store: sc.Store, compression: str) -> None:
    topic = store.create_topic("typed", schema=pa.schema([("n", pa.int64())]), compression=compression)
    topic.append([{"n": number} for number in range(100)])
    with store.consumer("typed") as consumer:
        assert [record.value["n"] for record in consumer.poll(0, 10)] == list(range(10))
        assert [record.value["n"] for _, record in zip(range(10), consumer, strict=False)] == list(range(10, 20))
        assert consumer.position("typed", 0) == 20
        assert [value["n"] for value in consumer.poll_arrow(0)["value"].to_pylist()] == list(range(20, 100))


# ---- asyncio ----


def test_async_iteration_and_polls_wait_without_a_thread_each(store: sc.Store, topic: sc.Topic) -> None:
    async def first_of(consumer: sc.Consumer) -> bytes:
        async for record in consumer:
            return bytes(record.value)
        raise AssertionError

    async def poll(consumer: sc.Consumer) -> bytes:
        return bytes((await consumer.poll_async(None))[0].value)

    async def run() -> None:
        before = threads()
        consumers = [store.consumer("clicks", start="latest") for _ in range(40)]
        waiting = [asyncio.create_task((first_of, poll)[n % 2](consumer)) for n, consumer in enumerate(consumers)]
        assert await consumers[0].poll_async(20) == []
        assert threads() <= before + 1
        topic.append([b"go"])
        assert await asyncio.wait_for(asyncio.gather(*waiting), 20) == [b"go"] * 40

    asyncio.run(run())


def test_async_consumers_commit_and_are_context_managers(store: sc.Store, topic: sc.Topic) -> None:
    fill(topic, 10)

    async def run() -> None:
        async with store.consumer("clicks", group="g") as consumer:
            async for record in consumer:
                if record.offset == 4:
                    await consumer.commit_async()
                    break
            await consumer.commit_async({("clicks", 0): (6, "by hand")})
        assert consumer.closed

    asyncio.run(run())
    (offset,) = store.group("g").offsets().values()
    assert (offset, offset.metadata) == (6, "by hand")


def test_a_cancelled_async_poll_loses_nothing(store: sc.Store, topic: sc.Topic) -> None:
    async def run() -> None:
        consumer = store.consumer("clicks")
        task = asyncio.create_task(consumer.poll_async(None))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        fill(topic, 3)
        assert len(await consumer.poll_async(LONG_MS)) == 3

    asyncio.run(run())


def test_an_async_consumer_that_always_finds_records_leaves_room_for_others(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"x"] * 50_000)

    async def run() -> int:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        consumer = store.consumer("clicks")
        async for record in consumer:
            if record.offset == 49_999:
                break
        task.cancel()
        return turns

    assert asyncio.run(run()) > 20


def test_a_thousand_consumers_idle_in_one_event_loop_and_all_wake(store: sc.Store) -> None:
    topics = [store.create_topic(f"t{number}", partitions=2) for number in range(10)]

    async def first_of(consumer: sc.Consumer) -> str:
        async for record in consumer:
            return record.topic or ""
        raise AssertionError

    async def run() -> None:
        before = threads()
        consumers = [store.consumer(f"t{number % 10}", start="latest") for number in range(1000)]
        waiting = [asyncio.create_task(first_of(consumer)) for consumer in consumers]
        await asyncio.sleep(0.2)
        assert threads() <= before + 1
        for topic in topics:
            topic.append([b"go"], partition=1)
        found = await asyncio.wait_for(asyncio.gather(*waiting), 30)
        assert found == [f"t{number % 10}" for number in range(1000)]

    asyncio.run(run())


# ---- positions ----


def test_seeks_by_offset_time_and_name(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"a", b"b", b"c"], timestamps=[1000, 2000, 3000])
    with store.consumer("clicks") as consumer:
        for to, offset in [
            ("latest", 3),
            ("earliest", 0),
            (2, 2),
            (3, 3),
            (datetime.datetime.fromtimestamp(1.5, datetime.UTC), 1),
            (datetime.datetime.fromtimestamp(99, datetime.UTC), 3),
        ]:
            consumer.seek("clicks", 0, to)  # type: ignore[arg-type]
            assert consumer.position("clicks", 0) == offset
            assert [record.offset for record in consumer.poll(0)] == list(range(offset, 3))


def test_seeks_outside_name_the_bounds(store: sc.Store, topic: sc.Topic) -> None:
    fill(topic, 3)
    with store.consumer("clicks") as consumer:
        for wrong in (-1, 4):
            with pytest.raises(sc.OffsetOutOfRangeError, match=f"offset {wrong}; partition 0 .* 0 to 3") as caught:
                consumer.seek("clicks", 0, wrong)
            assert (caught.value.earliest, caught.value.latest) == (0, 3)
        with pytest.raises(ValueError, match="is not read by this consumer"):
            consumer.seek("clicks", 1, 0)
        with pytest.raises(ValueError, match="'earliest' or 'latest'"):
            consumer.seek("clicks", 0, "newest")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="float"):
            consumer.seek("clicks", 0, 1.5)  # type: ignore[arg-type]
        assert consumer.position("clicks", 0) == 0


def test_consumers_start_where_they_are_told(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"old", b"new"], timestamps=[1000, 5000])
    time_of_new = datetime.datetime.fromtimestamp(3, datetime.UTC)
    for start, offset in [("earliest", 0), ("latest", 2), (time_of_new, 1)]:
        for group in (None, f"group-{offset}"):
            with store.consumer("clicks", group=group, start=start) as consumer:  # type: ignore[arg-type]
                assert consumer.position("clicks", 0) == offset


@pytest.mark.parametrize(("start", "found"), [("earliest", [4, 5, 6, 7, 8, 9]), ("latest", [])])
def test_a_position_whose_records_were_deleted_is_reset_by_start_and_counted(
    store: sc.Store, topic: sc.Topic, caplog: pytest.LogCaptureFixture, start: Any, found: list[int]
) -> None:
    fill(topic, 10)
    with store.consumer("clicks", group="g", start=start) as consumer:
        consumer.seek("clicks", 0, 2)
        consumer.commit()
        topic.delete_records(before=4)
        assert [record.offset for record in consumer.poll(0)] == found
        assert consumer.metrics.offset_resets == 1
        assert "lies outside the log" in caplog.text
        with pytest.raises(sc.OffsetOutOfRangeError, match="offset 3"):
            consumer.seek("clicks", 0, 3)
    assert store.group("g").offsets() == {("clicks", 0): 2}
    with store.consumer("clicks", group="g", start=start) as consumer:
        assert consumer.poll_arrow(0).num_rows == len(found)


def test_markers_aborted_records_and_compacted_offsets_are_stepped_over(store: sc.Store) -> None:
    topic = store.create_topic("clicks", cleanup="compact")
    topic.append([b"old"] * 5, keys=[b"k"] * 5)
    with pytest.raises(RuntimeError), store.transaction("t") as transaction:
        transaction.append("clicks", [b"aborted"] * 3, keys=[b"k"] * 3)
        raise RuntimeError
    with store.transaction("t") as transaction:
        transaction.append("clicks", [b"committed"], keys=[b"k"])
    with store.consumer("clicks", group="g") as consumer, store.consumer("clicks") as arrow:
        assert [record.value for record in drain(consumer)] == [b"old"] * 5 + [b"committed"]
        end = topic.partitions[0].end_offset
        assert consumer.position("clicks", 0) == end == 11
        consumer.commit()
        assert arrow.poll_arrow(0).num_rows == 6
        assert arrow.position("clicks", 0) == end
        assert set(store.group("g").lag().values()) == {0}
        dirty = store.consumer("clicks", isolation="uncommitted")
        assert len(drain(dirty)) == 9
        with store.transaction("t") as transaction:
            transaction.append("clicks", [b"open"], keys=[b"k"])
            assert consumer.poll(20) == []
            assert consumer.position("clicks", 0) == end
            assert [record.value for record in dirty.poll(LONG_MS)] == [b"open"]
        assert [record.value for record in consumer.poll(LONG_MS)] == [b"open"]


# ---- wrong arguments, ends ----


def test_wrong_arguments_are_named(store: sc.Store, topic: sc.Topic) -> None:
    for arguments, error, text in [
        ({"topics": "clcks"}, sc.TopicNotFoundError, "did you mean 'clicks'"),
        ({"topics": []}, ValueError, "empty"),
        ({"topics": 5}, TypeError, "int"),
        ({"topics": "clicks", "start": "newest"}, ValueError, "'newest'"),
        ({"topics": "clicks", "start": datetime.datetime(2026, 1, 1)}, ValueError, "start"),
        ({"topics": "clicks", "isolation": "dirty"}, ValueError, "'dirty'"),
        ({"topics": "clicks", "auto_commit": True}, ValueError, "need a group"),
        ({"topics": "clicks", "group": ""}, ValueError, "no name for a group"),
        ({"topics": "clicks", "group": "g", "member_timeout_ms": 1}, ValueError, "member_timeout_ms is 1"),
    ]:
        with pytest.raises(error, match=text):
            store.consumer(**arguments)  # type: ignore[arg-type]
    with store.consumer("clicks") as consumer:
        for call, kind in [
            (lambda: consumer.poll(-1), ValueError),
            (lambda: consumer.poll("1"), TypeError),  # type: ignore[arg-type]
            (lambda: consumer.poll(0, 0), ValueError),
            (lambda: consumer.poll_arrow(0, 1.5), TypeError),  # type: ignore[arg-type]
            (lambda: consumer.commit(), sc.GroupError),
            (lambda: consumer.committed("clicks", 0), sc.GroupError),
            (lambda: consumer.offsets_to_commit(), sc.GroupError),
            (lambda: consumer.pause("clicks", 3), ValueError),
        ]:
            with pytest.raises(kind):
                call()


def test_a_deleted_topic_ends_a_waiting_consumer_with_an_error(store: sc.Store, topic: sc.Topic) -> None:
    with store.consumer("clicks") as consumer:
        consumer.poll(0)
        timer = threading.Timer(0.05, store.delete_topic, ["clicks"])
        timer.start()
        with pytest.raises(sc.TopicNotFoundError, match="clicks"):
            consumer.poll(LONG_MS)
        timer.join()


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize("arrow", [False, True])
def test_a_pattern_passes_over_topics_that_are_deleted_at_any_moment(
    group: str | None, arrow: bool, store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps of a consumer, from looking the topic up to reading its records."""
    steps = 0
    fatal = 1
    other = sc.open(store.path, maintenance=False)
    doomed: list[str] = []

    def step(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def method(*arguments: Any, **settings: Any) -> Any:
            nonlocal steps
            result = real(*arguments, **settings)
            steps += 1
            if steps == fatal and doomed:
                other.delete_topic(doomed.pop())
            return result

        monkeypatch.setattr(owner, name, method)

    store.create_topic("short-kept").append([b"kept"])
    for owner, name in (
        (type(store), "topics"),
        (type(store), "topic_with_id"),
        (sc.Topic, "bounds"),
        (sc.Topic, "scan"),
    ):
        step(owner, name)
    died = 0
    while died == fatal - 1:  # until it lives through all of them
        doomed.append("short-doomed")
        other.create_topic("short-doomed").append([b"doomed"])
        if group is not None and fatal > 1:
            store.group(group).delete()
        steps = 0
        with store.consumer("short-*", group=group, member_timeout_ms=60_000) as consumer:
            found: list[bytes] = []
            end = time.monotonic() + LONG_MS / 1000
            while b"kept" not in found and time.monotonic() < end:
                records = consumer.poll_arrow(100) if arrow else consumer.poll(100)
                found += records["value"].to_pylist() if arrow else [record.value for record in records]
        assert sorted(found) in ([b"kept"], [b"doomed", b"kept"])
        died += not doomed
        if doomed:
            other.delete_topic(doomed.pop())
        fatal += 1
    assert died > 3
    other.close()


def test_closing_the_store_closes_its_consumers_and_ends_their_waits(store_path: Path) -> None:
    store = sc.open(store_path)
    store.create_topic("clicks")
    consumers = [store.consumer("clicks", group=group) for group in (None, "g")]
    errors: list[BaseException] = []

    def wait(consumer: sc.Consumer) -> None:
        try:
            consumer.poll(None)
        except sc.StreamcoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait, args=(consumer,)) for consumer in consumers]
    for thread in threads:
        thread.start()
    store.close()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 2
    assert all(consumer.closed for consumer in consumers)
    with sc.open(store_path, mode="r") as again:
        assert again.group("g").members() == []


def test_records_behind_damage_are_not_skipped(store: sc.Store, topic: sc.Topic) -> None:
    fill(topic, 10)
    fill(topic, 10, first=10)
    segment = topic.segments()[0].path
    with sc.open(store.path, mode="r") as other:
        with Path(segment).open("r+b") as file:
            data = file.read()
            file.seek(data.rindex(b"1213") + 1)
            file.write(b"\xff")
        with other.consumer("clicks") as consumer:
            assert len(consumer.poll(0, 15)) == 10
            for _ in range(2):
                with pytest.raises(sc.CorruptionError):
                    consumer.poll(0)
            with pytest.raises(sc.CorruptionError):
                next(iter(consumer))
            with pytest.raises(sc.CorruptionError):
                consumer.poll_arrow(0)
            assert consumer.position("clicks", 0) == 10
