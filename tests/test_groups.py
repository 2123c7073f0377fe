"""Consumer groups: who reads what, commits and their fencing, heartbeats, offsets, resets."""

from __future__ import annotations

import copy
import datetime
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc
from streamcore import groups
from streamcore.assignment import assign

Wait = Callable[..., None]
LONG_MS = 20_000
SHORT_MS = 1_000  # a heartbeat may be as late as two thirds of it, on a machine that is busy with other things


def threads() -> int:
    """The number of threads, but for the one that does background work."""
    return sum(thread.name != "streamcore-maintenance" for thread in threading.enumerate())


def settle(*consumers: sc.Consumer, rounds: int = 200) -> None:
    """Lets consumers that share a thread hand over partitions until nothing moves."""
    group = consumers[0].store.group(consumers[0].group or "")
    for _ in range(rounds):
        for consumer in consumers:
            consumer.pause()
            consumer.poll(0)
            consumer.resume()
        if group.state == "stable":
            return
        time.sleep(0.005)
    raise AssertionError(f"group is {group.state}: {group.members()}")


# ---- assignment ----


def test_assignments_are_even_and_move_no_more_than_they_must() -> None:
    partitions = {"a": 7, "b": 5}
    topics = set(partitions)
    current = assign({"m1": topics}, partitions, {})
    for members in (["m1", "m2"], ["m1", "m2", "m3"], ["m1", "m3"], ["m1", "m3", "m4", "m5", "m6"], ["m6"]):
        found = assign(dict.fromkeys(members, topics), partitions, current)
        loads = Counter(found.values())
        assert set(found) == {(topic, p) for topic, count in partitions.items() for p in range(count)}
        assert max(loads.values()) - min(loads[member] for member in members) <= 1
        kept = Counter(current[key] for key in found if current[key] in members)
        floor, more = divmod(12, len(members))
        room = [floor + 1] * more + [floor] * (len(members) - more)
        least = sum(max(0, held - most) for held, most in zip(sorted(kept.values(), reverse=True), room, strict=False))
        assert sum(current[key] != found[key] for key in found if current[key] in members) == least
        current = found


def test_members_get_only_topics_that_they_asked_for() -> None:
    wanted = {"m1": {"a"}, "m2": {"a", "b"}, "m3": {"b", "c"}, "m4": {"none"}}
    found = assign(wanted, {"a": 6, "b": 3, "c": 1}, {("a", 0): "m3", ("a", 9): "m1", ("b", 1): "gone"})
    assert set(found) == {("a", p) for p in range(6)} | {("b", p) for p in range(3)} | {("c", 0)}
    assert all(topic in wanted[member] for (topic, _), member in found.items())
    assert sorted(Counter(found.values()).values()) == [3, 3, 4]
    assert assign(wanted, {"a": 6, "b": 3, "c": 1}, found) == found
    assert assign({}, {"a": 6}, {}) == {}


# ---- sharing ----


def test_members_share_partitions_and_what_a_member_has_read_is_not_read_again(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=4)
    topic.append([b"x"] * 400, keys=[b"%d" % n for n in range(400)])
    first = store.consumer("clicks", group="g")
    seen = Counter((record.partition, record.offset) for record in first.poll(0, 100))
    first.commit()
    second = store.consumer("clicks", group="g")
    settle(first, second)
    assert len(first.assignment) == len(second.assignment) == 2
    assert set(first.assignment) | set(second.assignment) == {("clicks", p) for p in range(4)}
    for consumer in (first, second):
        while records := consumer.poll(0):
            seen.update((record.partition, record.offset) for record in records)
    first.close()
    second.commit()
    settle(second)
    while records := second.poll(0):
        seen.update((record.partition, record.offset) for record in records)
    assert len(seen) == 400
    again = [place for place, count in seen.items() if count > 1]
    assert all(partition in {p for _, p in first_of(again)} for partition, _ in again)


def first_of(places: list[tuple[int, int]]) -> list[tuple[str, int]]:
    return [("clicks", partition) for partition, _ in places]


def test_a_partition_is_read_on_by_its_owner_until_it_gives_it_up(store: sc.Store, wait_until: Wait) -> None:
    store.create_topic("clicks", partitions=2).append([b"x"] * 10, partition=1)
    first = store.consumer("clicks", group="g")
    assert len(first.assignment) == 2
    first.pause()
    second = store.consumer("clicks", group="g")
    assert second.poll(0) == []
    assert second.assignment == []
    assert {member.id: member.awaiting for member in store.group("g").members()} == {
        first.member_id: (),
        second.member_id: (("clicks", 1),),
    }
    assert store.group("g").state == "rebalancing"
    wait_until(lambda: first.poll(0) == [] and first.assignment == [("clicks", 0)])
    assert [record.offset for record in second.poll(LONG_MS)] == list(range(10))
    assert store.group("g").state == "stable"


def test_callbacks_say_what_comes_and_what_goes_before_others_have_it(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2)
    topic.append([b"x"] * 10, partition=0)
    topic.append([b"x"] * 10, partition=1)
    events: list[tuple[str, list[sc.TopicPartition]]] = []

    def revoked(consumer: sc.Consumer, partitions: list[sc.TopicPartition]) -> None:
        events.append(("revoked", partitions))
        consumer.commit()

    first = store.consumer(
        "clicks",
        group="g",
        on_assigned=lambda consumer, partitions: events.append(("assigned", partitions)),
        on_revoked=revoked,
    )
    assert len(first.poll(0, 15)) == 15
    second = store.consumer("clicks", group="g")
    settle(first, second)
    assert events == [("assigned", [("clicks", 0), ("clicks", 1)]), ("revoked", [("clicks", 1)])]
    assert [record.offset for record in second.poll(LONG_MS)] == list(range(5, 10))
    first.close()
    assert events[2:] == [("revoked", [("clicks", 0)])]


def test_a_rebalance_interrupts_a_long_iteration(store: sc.Store, wait_until: Wait) -> None:
    store.create_topic("clicks", partitions=2).append_table(_table(10_000))
    first = store.consumer("clicks", group="g")
    records = iter(first)
    next(records)
    second = store.consumer("clicks", group="g")

    def given_up() -> bool:
        next(records)  # one record at a time, far from the end of what was fetched
        return bool(second.assignment) or bool(second.poll(0, 1))

    wait_until(given_up)
    assert sum(first.lag().values()) > 5000 - 20


def _table(rows: int) -> Any:
    import pyarrow as pa

    return pa.table({"value": [b"x"] * rows, "partition": [0] * (rows - 10) + [1] * 10})


def test_new_partitions_and_topics_are_picked_up_by_a_group(store: sc.Store, wait_until: Wait) -> None:
    topic = store.create_topic("log-a", partitions=1)
    with store.consumer("log-*", group="g", start="latest", member_timeout_ms=SHORT_MS) as consumer:
        assert consumer.assignment == [("log-a", 0)]
        topic.append([b"in time"], partition=0)
        assert consumer.poll(LONG_MS)[0].value == b"in time"
        topic.add_partitions(3)
        topic.append([b"new"], partition=2)
        assert [record.value for record in consumer.poll(LONG_MS)] == [b"new"]
        store.create_topic("log-b")
        wait_until(lambda: consumer.poll(0) == [] and ("log-b", 0) in consumer.assignment)
        store.delete_topic("log-a")
        wait_until(lambda: consumer.poll(0) == [] and consumer.assignment == [("log-b", 0)])


# ---- commits ----


def test_commits_are_where_the_next_member_goes_on(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"x"] * 20)
    with store.consumer("clicks", group="g") as consumer:
        consumer.poll(0, 5)
        assert consumer.committed("clicks", 0) is None
        consumer.commit(metadata="five")
        found = consumer.committed("clicks", 0)
        assert found == 5
        assert found is not None
        assert found.metadata == "five"
        assert abs(found.timestamp - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=5)
        for copied in (copy.copy(found), pickle.loads(pickle.dumps(found))):
            assert (copied, copied.metadata) == (5, "five")
        consumer.poll(0, 5)
    with store.consumer("clicks", group="g") as consumer:
        assert [record.offset for record in consumer.poll(0)] == list(range(5, 20))
        consumer.commit({("clicks", 0): 7})
        consumer.commit({("clicks", 0): (8, "eight")})
    assert store.group("g").offsets() == {("clicks", 0): 8}
    assert store.group("g").lag() == {("clicks", 0): 12}


def test_wrong_commits_are_refused_and_change_nothing(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"x"] * 3)
    with store.consumer("clicks", group="g") as consumer:
        consumer.commit({("clicks", 0): 2})
        for offsets, error, text in [
            ({("clicks", 0): 4}, ValueError, "offset 4 .* 0 to 3"),
            ({("clicks", 0): -1}, ValueError, "offset -1"),
            ({("clicks", 0): "1"}, TypeError, "'1'"),
            ({("clicks", 1): 1}, ValueError, "partition is 1"),
            ({("clcks", 0): 1}, sc.TopicNotFoundError, "clcks"),
            ([("clicks", 0)], TypeError, "mapping"),
            ({("clicks", 0): (1, 5)}, TypeError, "metadata"),
        ]:
            with pytest.raises(error, match=text):
                consumer.commit(offsets)  # type: ignore[arg-type]
        store.create_topic("other")
        with pytest.raises(sc.FencedError, match="'other'"):
            consumer.commit({("other", 0): 0})
        assert store.group("g").offsets() == {("clicks", 0): 2}


def test_commits_of_a_partition_that_was_given_away_are_fenced(store: sc.Store) -> None:
    store.create_topic("clicks", partitions=2).append([b"x"] * 10, partition=1)
    first = store.consumer("clicks", group="g")
    first.poll(0)
    group, token, offsets = first.offsets_to_commit()
    second = store.consumer("clicks", group="g")
    settle(first, second)
    second.seek("clicks", 1, 9)
    second.commit()

    def late() -> None:
        with store.catalog.changing() as connection:
            groups.apply_offsets(connection, group, token, offsets)

    with pytest.raises(sc.FencedError, match="partition 1 of topic 'clicks'"):
        late()
    second.close()
    settle(first)
    assert ("clicks", 1) in first.assignment  # it has the partition again, and the old token is still fenced
    with pytest.raises(sc.FencedError):
        late()
    assert store.group("g").offsets()["clicks", 1] == 9  # type: ignore[index]
    first.commit()


def test_automatic_commits_wait_until_records_are_shown_to_be_processed(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"x"] * 30)
    group = store.group("g", create=True)

    def consumer() -> sc.Consumer:
        return store.consumer("clicks", group="g", auto_commit=True, auto_commit_interval_ms=1)

    with consumer() as polling:
        polling.poll(0, 5)
        assert group.offsets() in ({}, {("clicks", 0): 0})
        time.sleep(0.002)
        polling.poll(0, 5)
        assert group.offsets() == {("clicks", 0): 5}
    assert group.offsets() == {("clicks", 0): 10}
    with pytest.raises(RuntimeError), consumer() as failing:
        failing.poll(0, 5)
        raise RuntimeError
    assert group.offsets() == {("clicks", 0): 10}
    with pytest.raises(RuntimeError), consumer() as failing:
        for record in failing:
            if record.offset == 14:
                raise RuntimeError
    assert group.offsets() == {("clicks", 0): 14}
    with consumer() as done:
        for record in done:
            if record.offset == 20:
                break
    assert group.offsets() == {("clicks", 0): 21}
    with consumer() as arrow:
        assert arrow.poll_arrow(0).num_rows == 9
        arrow.poll_arrow(0)
    assert group.offsets() == {("clicks", 0): 30}


def test_automatic_commits_come_during_a_slow_iteration(store: sc.Store, topic: sc.Topic, wait_until: Wait) -> None:
    topic.append([b"x"] * 10_000)
    with store.consumer("clicks", group="g", auto_commit=True, auto_commit_interval_ms=20) as consumer:
        records = iter(consumer)

        def committed() -> bool:
            record = next(records)
            found = consumer.committed("clicks", 0)
            assert found is None or found <= record.offset
            return found is not None and found > 0

        wait_until(committed)


# ---- life and death ----


def test_a_slow_handler_keeps_its_membership(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"x"])
    with store.consumer("clicks", group="g", member_timeout_ms=SHORT_MS) as consumer:
        consumer.poll(0)
        member = consumer.member_id
        time.sleep(2 * SHORT_MS / 1000)
        consumer.poll(0)
        consumer.commit()
        assert consumer.member_id == member


def test_a_member_taken_for_dead_is_fenced_and_joins_anew(store: sc.Store, wait_until: Wait) -> None:
    topic = store.create_topic("clicks", partitions=2)
    topic.append([b"x"] * 10, partition=0)
    lost: list[sc.TopicPartition] = []
    consumer = store.consumer("clicks", group="g", on_lost=lambda _, partitions: lost.extend(partitions))
    assert len(consumer.poll(0)) == 10
    old = consumer.member_id
    with store.catalog.changing() as connection:
        groups.leave(connection, "g", old or "")
    with pytest.raises(sc.FencedError, match="is not in group 'g' any more"):
        consumer.commit()
    store.consuming.signal.set()
    wait_until(lambda: consumer.poll(0) != [] or consumer.member_id != old)
    assert lost == [("clicks", 0), ("clicks", 1)]
    consumer.commit()


def test_a_member_without_heartbeats_is_forgotten_after_its_timeout(store: sc.Store, wait_until: Wait) -> None:
    store.create_topic("clicks", partitions=2)
    with store.catalog.changing(durable=False) as connection:
        connection.execute("select 1")
    living = store.consumer("clicks", group="g", member_timeout_ms=SHORT_MS)
    with store.catalog.changing() as connection:
        groups.join(connection, "g", "dead", ["clicks"], SHORT_MS)
    store.consuming.signal.set()
    wait_until(lambda: living.poll(0) == [] and len(living.assignment) == 1)
    wait_until(lambda: living.poll(0) == [] and len(living.assignment) == 2)
    assert [member.id for member in store.group("g").members()] == [living.member_id]


def test_the_wall_clock_may_jump(store: sc.Store, topic: sc.Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    topic.append([b"x"] * 3)
    real = time.time_ns
    with store.consumer("clicks", group="g", member_timeout_ms=SHORT_MS) as consumer:
        consumer.poll(0, 1)
        for hours in (-5, 5, -1000):
            monkeypatch.setattr(time, "time_ns", lambda hours=hours: real() + hours * 3600 * 10**9)
            time.sleep(1.2 * SHORT_MS / 1000)
            member = consumer.member_id
            consumer.poll(0, 1)
            consumer.commit()
            assert consumer.member_id == member
    assert store.group("g").members() == []


def test_members_of_an_earlier_boot_are_dead_and_clocks_ahead_keep_nobody_alive() -> None:
    now = groups.monotonic_ms()
    boot = groups.boot_id()
    assert not groups.is_dead(now, 100, boot, now)
    assert not groups.is_dead(now - 100, 100, boot, now)
    assert groups.is_dead(now - 101, 100, boot, now)
    assert groups.is_dead(now + 101, 100, boot, now)
    assert groups.is_dead(now, 100, "0" * 32, now)


def test_a_static_member_comes_back_without_a_rebalance(store: sc.Store) -> None:
    store.create_topic("clicks", partitions=4)
    first = store.consumer("clicks", group="g", instance_id="one")
    second = store.consumer("clicks", group="g", instance_id="two")
    settle(first, second)
    assignment, generation = first.assignment, store.group("g").generation
    first.close()
    assert len(store.group("g").members()) == 2
    back = store.consumer("clicks", group="g", instance_id="one")
    assert back.assignment == assignment
    assert store.group("g").generation == generation
    twin = store.consumer("clicks", group="g", instance_id="one")
    assert twin.assignment == assignment
    with pytest.raises(sc.FencedError):
        back.commit()
    store.consuming.signal.set()
    deadline = time.monotonic() + 20
    with pytest.raises(sc.FencedError, match="'one'"):
        while time.monotonic() < deadline:
            back.poll(10)


def test_a_consumer_that_is_dropped_leaves_its_group(store: sc.Store, topic: sc.Topic, wait_until: Wait) -> None:
    consumer = store.consumer("clicks", group="g")
    assert consumer.assignment
    del consumer
    wait_until(lambda: store.group("g").members() == [])


def test_one_thread_beats_for_all_members_of_a_store(store: sc.Store, wait_until: Wait) -> None:
    store.create_topic("clicks", partitions=20)
    before = threads()
    consumers = [store.consumer("clicks", group=f"g{number % 4}", member_timeout_ms=3000) for number in range(40)]
    assert threads() == before + 1
    joined_ms = groups.monotonic_ms()

    def last_beats() -> dict[str | None, int]:
        now_ms = groups.monotonic_ms()
        return {member.id: now_ms - member.seen_ms for group in store.groups() for member in group.members()}

    wait_until(lambda: min(last_beats().values()) > joined_ms)
    assert set(last_beats()) == {consumer.member_id for consumer in consumers}


# ---- groups as users see them ----


def test_groups_are_listed_and_unknown_ones_named(store: sc.Store, topic: sc.Topic) -> None:
    assert store.groups() == []
    with pytest.raises(sc.GroupError, match="there are none"):
        store.group("billing")
    with store.consumer("clicks", group="billing") as consumer:
        assert [group.name for group in store.groups()] == ["billing"]
        with pytest.raises(sc.GroupError, match="did you mean 'billing'"):
            store.group("biling")
        (member,) = store.group("billing").members()
        assert (member.id, member.topics) == (consumer.member_id, ("clicks",))
    group = store.group("billing")
    assert group.state == "empty"
    group.delete()
    for call in (group.offsets, group.members, group.lag, group.delete, lambda: group.reset("clicks", "latest")):
        with pytest.raises(sc.GroupError, match="no group 'billing'"):
            call()


def test_resets_by_offset_time_name_and_shift(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2)
    for partition in (0, 1):
        topic.append([b"x"] * 10, timestamps=[1000 * n for n in range(10)], partition=partition)
    group = store.group("g", create=True)
    both = [("clicks", 0), ("clicks", 1)]
    assert group.reset("clicks", "latest") == dict.fromkeys(both, 10)
    assert group.reset("clicks", shift=-3) == dict.fromkeys(both, 7)
    assert group.reset("clicks", shift=100) == dict.fromkeys(both, 10)
    assert group.reset("clicks", datetime.datetime.fromtimestamp(4.5, datetime.UTC)) == dict.fromkeys(both, 5)
    assert group.reset("clicks", 2, partition=1) == {("clicks", 1): 2}
    assert group.offsets() == {("clicks", 0): 5, ("clicks", 1): 2}
    assert group.lag() == {("clicks", 0): 5, ("clicks", 1): 8}
    assert group.reset("clicks", "earliest") == dict.fromkeys(both, 0)
    with pytest.raises(sc.OffsetOutOfRangeError, match="offset 11"):
        group.reset("clicks", 11)
    for arguments in ({}, {"to": "latest", "shift": 1}):
        with pytest.raises(ValueError, match="either"):
            group.reset("clicks", **arguments)  # type: ignore[arg-type]
    with pytest.raises(sc.TopicNotFoundError):
        group.reset("clcks", "latest")


def test_resets_and_deletes_are_refused_while_members_live(store: sc.Store, topic: sc.Topic) -> None:
    with store.consumer("clicks", group="g"):
        group = store.group("g")
        for call in (lambda: group.reset("clicks", "latest"), group.delete):
            with pytest.raises(sc.GroupError, match="while it has members"):
                call()
    group.reset("clicks", "latest")
    group.delete()


def test_a_dead_member_does_not_keep_a_group_from_being_reset(store: sc.Store, topic: sc.Topic) -> None:
    group = store.group("g", create=True)
    with store.catalog.changing() as connection:
        groups.join(connection, "g", "dead", ["clicks"], 50)
        connection.execute("update group_members set beat_ms = beat_ms - 1000")
    group.reset("clicks", "latest")
    assert group.members() == []


def test_offsets_expire_but_never_while_members_live(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"x"] * 5)
    store.group("by-reset", create=True).reset("clicks", "latest")
    with store.consumer("clicks", group="left") as consumer:
        consumer.poll(0)
        consumer.commit()
    living = store.consumer("clicks", group="living")
    living.poll(0)
    living.commit()
    assert groups.expire_offsets(store.catalog) == 0
    time.sleep(0.005)
    assert groups.expire_offsets(store.catalog, 1) == 2
    assert [group.name for group in store.groups()] == ["living"]
    store.set_setting(groups.OFFSETS_RETENTION_SETTING, "1")
    living.close()
    time.sleep(0.005)
    assert groups.expire_offsets(store.catalog) == 1


def test_offsets_go_with_their_topic(store: sc.Store, topic: sc.Topic) -> None:
    store.group("g", create=True).reset("clicks", "latest")
    store.delete_topic("clicks")
    store.create_topic("clicks")
    assert store.group("g").offsets() == {}


def test_groups_survive_closing_and_are_seen_by_readers(store_path: Path) -> None:
    with sc.open(store_path) as store:
        store.create_topic("clicks").append([b"x"] * 5)
        with store.consumer("clicks", group="g") as consumer:
            consumer.poll(0, 2)
            consumer.commit()
    with sc.open(store_path, mode="r") as reading:
        assert reading.group("g").offsets() == {("clicks", 0): 2}
        with pytest.raises(sc.StoreReadOnlyError):
            reading.group("g").reset("clicks", "latest")
    with sc.open(store_path) as store, store.consumer("clicks", group="g") as consumer:
        assert [record.offset for record in consumer.poll(0)] == [2, 3, 4]
