"""Transactions: all or nothing over topics, partitions and consumer offsets; fencing, recovery, isolation."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc
from streamcore import transactions
from streamcore.transactions import Coordinator, OffsetsToCommit, finish_transactions

LATER_MS = 10**9


def values_of(topic: sc.Topic, **settings: Any) -> list[bytes | None]:
    """What readers see, which is the same by whichever way they read."""
    records = [record.value for record in topic.scan(**settings)]
    assert topic.scan(**settings).to_arrow()["value"].to_pylist() == records
    assert [v for batch in topic.scan(**settings).batches() for v in batch["value"].to_pylist()] == records
    assert topic.scan(**settings).count() == len(records)
    return records


class Positions:
    """A consumer as far as transactions need one; keeps its offsets in a table of its own."""

    def __init__(self, store: sc.Store, group: str = "etl", refusal: Exception | None = None) -> None:
        self.store = store
        self.group = group
        self.refusal = refusal
        self.positions: dict[tuple[str, int], int] = {}
        store.catalog.ensure_tables(
            "create table if not exists positions (grp text, topic_id text, partition integer, next integer, "
            "primary key (grp, topic_id, partition))"
        )

    def offsets_to_commit(self) -> OffsetsToCommit:
        return OffsetsToCommit(self.group, "member 1", {place: (at, "") for place, at in self.positions.items()})

    def apply_offsets(self, connection: sqlite3.Connection, commit: OffsetsToCommit) -> None:
        for (topic_id, partition), (offset, _) in commit.offsets.items():
            connection.execute(
                "insert or replace into positions values (?, ?, ?, ?)", (commit.group, topic_id, partition, offset)
            )
        if self.refusal is not None:
            raise self.refusal

    def committed(self) -> dict[tuple[str, int], int]:
        with self.store.catalog.reading() as connection:
            rows = connection.execute("select topic_id, partition, next from positions where grp = ?", (self.group,))
            return {(topic_id, partition): offset for topic_id, partition, offset in rows.fetchall()}


@pytest.fixture
def pair(store: sc.Store) -> tuple[sc.Topic, sc.Topic]:
    """Two topics, the first with two partitions."""
    return store.create_topic("a", partitions=2), store.create_topic("b")


# ---- all or nothing ----------------------------------------------------------------------------------------------


def test_all_of_a_transaction_becomes_visible_at_its_commit(store: sc.Store, pair: tuple[sc.Topic, sc.Topic]) -> None:
    a, b = pair
    a.append([b"before"], partition=0)
    with store.transaction("etl") as transaction:
        assert transaction.append("a", [b"1", b"2"], partition=0) == [sc.Span(0, 1, 3)]
        assert transaction.append(a, [b"3"], partition=1) == [sc.Span(1, 0, 1)]
        transaction.append_table("b", pa.table({"value": [b"4", b"5"], "key": [b"k", None]}))
        assert (values_of(a), values_of(b)) == ([b"before"], [])
        assert values_of(a, isolation="uncommitted") == [b"before", b"1", b"2", b"3"]
        assert transaction.state == "open"
    assert transaction.state == "committed"
    assert values_of(a) == [b"before", b"1", b"2", b"3"]
    assert [(record.key, record.value) for record in b.scan()] == [(b"k", b"4"), (None, b"5")]
    assert [(p.end_offset, p.stable_offset) for p in a.partitions] == [(4, 4), (2, 2)]
    assert store.verify() == []


def test_an_exception_aborts_and_is_not_hidden(store: sc.Store, pair: tuple[sc.Topic, sc.Topic]) -> None:
    a, b = pair
    with pytest.raises(KeyError, match="mine"):
        with store.transaction("etl") as transaction:
            transaction.append("a", [b"1"] * 5, keys=[b"%d" % i for i in range(5)])
            transaction.append("b", [b"2"])
            raise KeyError("mine")
    assert transaction.state == "aborted"
    a.append([b"after"], partition=0)
    assert (values_of(a), values_of(b)) == ([b"after"], [])
    assert len(values_of(a, isolation="uncommitted")) == 6


def test_commit_and_abort_can_be_called_and_only_once(store: sc.Store, topic: sc.Topic) -> None:
    first = store.transaction("etl")
    first.append(topic, [b"1"])
    first.commit()
    second = store.transaction("etl")
    second.append(topic, [b"2"])
    second.abort()
    second.abort()
    assert values_of(topic) == [b"1"]
    for call in (first.commit, first.abort, lambda: first.append(topic, [b"x"]), second.commit):
        with pytest.raises(sc.TransactionError, match="already: begin a new one"):
            call()
    with pytest.raises(sc.TransactionError), first:
        pass
    with store.transaction("etl") as third:
        third.append(topic, [b"3"])
        third.commit()
    assert values_of(topic) == [b"1", b"3"]


def test_a_transaction_may_hold_nothing(store: sc.Store, topic: sc.Topic) -> None:
    for commit in (True, False):
        transaction = store.transaction("etl")
        transaction.append(topic, [])
        transaction.commit() if commit else transaction.abort()
    assert topic.partitions[0].end_offset == 0


def test_transactions_with_different_ids_do_not_hinder_each_other(store: sc.Store, topic: sc.Topic) -> None:
    one, two = store.transaction("one"), store.transaction("two")
    one.append(topic, [b"1"])
    two.append(topic, [b"2"])
    one.append(topic, [b"3"])
    topic.append([b"plain"])
    two.commit()
    assert values_of(topic) == []  # the first one is still open, and began before
    one.abort()
    assert values_of(topic) == [b"2", b"plain"]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_typed_and_compressed_topics_and_segments_that_roll(store: sc.Store, compression: str) -> None:
    schema = pa.schema([("n", pa.int64()), ("text", pa.string())])
    topic = store.create_topic("t", 2, schema=schema, compression=compression, segment_bytes=1 << 16)
    wanted: list[int] = []
    for number in range(30):
        transaction = store.transaction("etl")
        rows = [{"n": number * 1000 + i, "text": f"{i}" * 30} for i in range(200)]
        transaction.append(topic, rows, partition=0)
        if number % 3 == 0:
            transaction.abort()
        else:
            transaction.commit()
            wanted += [row["n"] for row in rows]
    assert len(topic.segments()) > 1
    assert topic.scan(columns=["value.n"]).to_arrow()["value.n"].to_pylist() == wanted
    assert [record.value["n"] for record in topic.scan()] == wanted
    assert topic.scan().count() == len(wanted)


def test_one_transaction_spans_segments_and_readers_of_the_file_alone(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("t", segment_bytes=1 << 16)
        kept, dropped = store.transaction("kept"), store.transaction("dropped")
        for number in range(200):
            kept.append(topic, [b"k%d" % number + bytes(500)])
            dropped.append(topic, [b"d%d" % number + bytes(500)])
        dropped.abort()
        kept.commit()
    hints = list((store_path / "topics").rglob("*.aborted"))
    with sc.open(store_path, "r") as reader:
        topic = reader.topic("t")
        assert len(topic.segments()) > 3
        assert [(record.value or b"").rstrip(b"\0") for record in topic.scan()] == [b"k%d" % i for i in range(200)]
        assert topic.scan().count() == 200
    for hint in hints:
        hint.unlink()
    with sc.open(store_path) as store:
        assert store.topic("t").scan().count() == 200
        assert store.topic("t").scan(isolation="uncommitted").count() == 400


def test_what_a_segment_says_of_its_size_holds_the_last_marker(store_path: Path, tmp_path: Path) -> None:
    """A backup copies that much of a live segment (docs/durability.md)."""
    with sc.open(store_path) as store:
        topic = store.create_topic("t")
        with store.transaction("etl") as transaction:
            transaction.append(topic, [b"1"])
        [segment] = topic.segments()
        data = Path(segment.path).read_bytes()[: segment.size_bytes]
    Path(segment.path).write_bytes(data)
    with sc.open(store_path) as store:
        assert values_of(store.topic("t")) == [b"1"]
        assert store.topic("t").partitions[0].stable_offset == 2


# ---- isolation ----------------------------------------------------------------------------------------------------


def test_a_committed_scan_ends_at_the_last_stable_offset(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"0", b"1"])
    transaction = store.transaction("etl")
    transaction.append(topic, [b"2", b"3"])
    topic.append([b"4"])
    assert (
        values_of(topic)
        == values_of(topic, end=2)
        == values_of(topic, end=4)
        == values_of(topic, end=5)
        == [b"0", b"1"]
    )
    assert values_of(topic, start=3) == values_of(topic, start="latest") == values_of(topic, start=3, end=4) == []
    assert values_of(topic, start="latest", end=3) == []
    assert values_of(topic, start=1, isolation="uncommitted") == [b"1", b"2", b"3", b"4"]
    with pytest.raises(sc.OffsetOutOfRangeError) as caught:
        topic.scan(start=6)
    assert caught.value.latest == 5
    with pytest.raises(ValueError, match="isolation is 'dirty'"):
        topic.scan(isolation="dirty")  # type: ignore[arg-type]
    assert topic.wait({0: 2}, 0) is False
    assert topic.wait({0: 2}, 0, isolation="uncommitted") is True
    scan = topic.scan()
    transaction.commit()
    assert values_of(topic) == [b"0", b"1", b"2", b"3", b"4"]
    assert scan.count() == 2  # fixed when it was made
    assert topic.wait({0: 2}, 0) is True


def test_a_waiter_for_committed_records_wakes_at_the_marker(store: sc.Store, topic: sc.Topic) -> None:
    transaction = store.transaction("etl")
    transaction.append(topic, [b"1"])
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(topic.wait({0: 0}, 20_000)))
    thread.start()
    transaction.commit()
    thread.join(20)
    assert woken == [True]


def test_sql_reads_what_is_committed(store: sc.Store, pair: tuple[sc.Topic, sc.Topic]) -> None:
    pytest.importorskip("duckdb")
    a, _ = pair
    a.append([b"0"], partition=1)
    with store.transaction("x") as transaction:
        transaction.append(a, [b"1", b"2"], partition=0)
    with contextlib.suppress(KeyError), store.transaction("x") as transaction:
        transaction.append(a, [b"no"], partition=0)
        raise KeyError
    left = store.transaction("x")
    left.append(a, [b"open"], partition=0)
    a.append([b"hidden"], partition=0)
    assert store.sql("select count(*) from a").to_pydict() == {"count_star()": [3]}
    assert store.sql('select value from a order by partition, "offset"')["value"].to_pylist() == [b"1", b"2", b"0"]
    assert store.sql('select value from a where partition = 0 and "offset" > 0')["value"].to_pylist() == [b"2"]
    left.commit()
    assert store.sql("select count(*) as n from a where partition = 0")["n"].to_pylist() == [4]


def test_a_scan_of_committed_records_copies_nothing(store: sc.Store, topic: sc.Topic) -> None:
    for number in range(6):
        transaction = store.transaction("etl")
        transaction.append(topic, [b"%d" % number] * 1000)
        transaction.commit() if number % 2 else transaction.abort()
    committed, all_of_it = topic.scan(), topic.scan(isolation="uncommitted")
    table, whole = committed.to_arrow(), all_of_it.to_arrow()
    assert (table.num_rows, whole.num_rows) == (3000, 6000)
    addresses = {chunk.buffers()[2].address for chunk in whole["value"].chunks}
    assert {chunk.buffers()[2].address for chunk in table["value"].chunks} < addresses
    assert committed.metrics.batches == 3


# ---- fencing ------------------------------------------------------------------------------------------------------


def test_a_newer_transaction_with_the_same_id_fences_the_older_at_every_call(
    store: sc.Store, pair: tuple[sc.Topic, sc.Topic]
) -> None:
    a, b = pair
    zombies = [store.transaction("etl") for _ in range(1)]
    old = zombies[0]
    old.append(a, [b"old"], partition=0)
    with store.transaction("etl") as new:
        calls: list[Callable[[], Any]] = [
            lambda: old.append(a, [b"zombie"], partition=0),
            lambda: old.append(a, [b"zombie"], partition=1),  # where it never was
            lambda: old.append_table(b, pa.table({"value": [b"zombie"]})),
            lambda: old.commit_offsets(Positions(store)),
            old.commit,
            old.abort,
        ]
        for call in calls:
            with pytest.raises(sc.FencedError):
                call()
        assert old.state == "fenced"
        new.append(a, [b"new"], partition=0)
    assert (values_of(a), values_of(b)) == ([b"new"], [])


@pytest.mark.parametrize("first", ["claimed", "elsewhere", "commit", "abort"])
def test_the_first_call_of_a_zombie_is_fenced_already(store_path: Path, first: str) -> None:
    with sc.open(store_path) as store, sc.open(store_path) as other:
        a = store.create_topic("a", partitions=2)
        old = store.transaction("etl")
        old.append("a", [b"old"], partition=0)
        with other.transaction("etl") as new:
            new.append("a", [b"new"], partition=0)
            calls: dict[str, Callable[[], Any]] = {
                "claimed": lambda: old.append("a", [b"zombie"], partition=0),
                "elsewhere": lambda: old.append("a", [b"zombie"], partition=1),
                "commit": old.commit,
                "abort": old.abort,
            }
            with pytest.raises(sc.FencedError):
                calls[first]()
        assert values_of(a) == [b"new"]
        assert a.partitions[1].end_offset == 0


def test_a_zombie_in_a_with_block_raises_at_its_end(store: sc.Store, topic: sc.Topic) -> None:
    with pytest.raises(sc.FencedError):
        with store.transaction("etl") as old:
            old.append(topic, [b"old"])
            store.transaction("etl").abort()
    assert values_of(topic) == []


def test_a_zombie_cannot_append_where_the_transaction_before_was(store: sc.Store, topic: sc.Topic) -> None:
    """The second transaction has the partition claimed from the beginning, and appended nothing yet."""
    with store.transaction("etl") as transaction:
        transaction.append(topic, [b"1"])
    old = store.transaction("etl")
    new = store.transaction("etl")
    with pytest.raises(sc.FencedError):
        old.append(topic, [b"zombie"])
    new.append(topic, [b"2"])
    new.commit()
    assert values_of(topic) == [b"1", b"2"]


def test_epochs_that_are_used_up_give_a_new_producer_id(store: sc.Store, topic: sc.Topic) -> None:
    with store.transaction("etl") as transaction:
        transaction.append(topic, [b"1"])
    with store.catalog.changing() as connection:
        connection.execute("update transactional_ids set epoch = ?", ((1 << 15) - 4,))
    seen = []
    for number in range(6):
        old = store.transaction("etl")
        old.append(topic, [b"zombie"])
        with store.transaction("etl") as transaction:
            transaction.append(topic, [b"%d" % number])
        with pytest.raises(sc.FencedError):
            old.append(topic, [b"zombie"])
        seen.append((transaction.producer_id, transaction.epoch))
    assert len({producer_id for producer_id, _ in seen}) == 2
    assert all(epoch < 1 << 15 for _, epoch in seen)
    assert values_of(topic) == [b"1", b"0", b"1", b"2", b"3", b"4", b"5"]


# ---- time-outs ----------------------------------------------------------------------------------------------------


def test_a_transaction_ends_when_its_time_is_over(store: sc.Store, topic: sc.Topic) -> None:
    left = store.transaction("etl", timeout_ms=1000)
    left.append(topic, [b"1"])
    topic.append([b"2"])
    now = transactions.now_ms()
    assert finish_transactions(store, now) == 0
    assert values_of(topic) == []
    assert finish_transactions(store, now + 2000) == 1
    assert values_of(topic) == [b"2"]
    assert finish_transactions(store, now + 4000) == 0
    for call in (lambda: left.append(topic, [b"late"]), left.commit, left.abort):
        with pytest.raises(sc.FencedError):
            call()
    with store.transaction("etl") as transaction:
        transaction.append(topic, [b"3"])
    assert values_of(topic) == [b"2", b"3"]


def test_a_clock_that_goes_back_does_not_keep_a_transaction_open_for_ever(store: sc.Store, topic: sc.Topic) -> None:
    store.transaction("etl", timeout_ms=1000).append(topic, [b"1"])
    past = transactions.now_ms() - LATER_MS
    assert finish_transactions(store, past) == 0
    assert finish_transactions(store, past + 1001) == 1


# ---- offsets ------------------------------------------------------------------------------------------------------


def test_offsets_are_committed_with_the_records_or_not_at_all(store: sc.Store, topic: sc.Topic) -> None:
    consumer = Positions(store)
    consumer.positions = {(topic.id, 0): 7}
    with contextlib.suppress(KeyError), store.transaction("etl") as transaction:
        transaction.append(topic, [b"1"])
        transaction.commit_offsets(consumer)
        raise KeyError
    assert consumer.committed() == {}
    with store.transaction("etl") as transaction:
        transaction.append(topic, [b"2"])
        transaction.commit_offsets(consumer)
        consumer.positions = {(topic.id, 0): 9}  # the positions are those of the call
        assert consumer.committed() == {}
    assert consumer.committed() == {(topic.id, 0): 7}
    with store.transaction("etl") as transaction:
        transaction.commit_offsets(consumer)
        consumer.positions = {(topic.id, 0): 11}
        transaction.commit_offsets(consumer)  # the last call counts
    assert consumer.committed() == {(topic.id, 0): 11}
    assert values_of(topic) == [b"2"]


def test_offsets_of_a_transaction_that_was_fenced_before_its_commit_are_not_stored(
    store: sc.Store, topic: sc.Topic
) -> None:
    consumer = Positions(store)
    consumer.positions = {(topic.id, 0): 7}
    old = store.transaction("etl")
    old.append(topic, [b"1"])
    old.commit_offsets(consumer)
    with store.transaction("etl") as new:
        with pytest.raises(sc.FencedError):
            old.commit()
        new.append(topic, [b"2"])
    assert (consumer.committed(), values_of(topic)) == ({}, [b"2"])


@pytest.mark.parametrize("refusal", [sc.GroupError("not a member"), sc.FencedError("generation 3 is over")])
def test_a_group_that_refuses_the_offsets_aborts_the_transaction(
    store: sc.Store, topic: sc.Topic, refusal: Exception
) -> None:
    consumer = Positions(store, refusal=refusal)
    consumer.positions = {(topic.id, 0): 7}
    transaction = store.transaction("etl")
    transaction.append(topic, [b"1"])
    transaction.commit_offsets(consumer)
    with pytest.raises(type(refusal), match=str(refusal)):
        transaction.commit()
    assert transaction.state == "failed"
    assert (consumer.committed(), values_of(topic)) == ({}, [])
    assert topic.partitions[0].stable_offset == topic.partitions[0].end_offset


# ---- failures -----------------------------------------------------------------------------------------------------


def test_an_append_that_fails_in_the_middle_aborts_all_of_it(store: sc.Store) -> None:
    topic = store.create_topic("t", partitions=3, max_record_bytes=100)
    transaction = store.transaction("etl")
    transaction.append(topic, [b"1"], partition=1)
    table = pa.table({"value": [b"2", b"x" * 101]})
    with pytest.raises(sc.RecordTooLargeError):
        transaction.append_table(topic, table, partition=0)
    assert transaction.state == "failed"
    with pytest.raises(sc.TransactionError, match="aborted when an append failed"):
        transaction.append(topic, [b"3"], partition=1)
    with pytest.raises(sc.TransactionError, match="aborted when an append failed"):
        transaction.commit()
    transaction.abort()
    with pytest.raises(sc.TransactionError), store.transaction("etl") as swallowing:
        with contextlib.suppress(sc.RecordTooLargeError):
            swallowing.append_table(topic, table, partition=0)
    assert values_of(topic) == []
    assert all(p.stable_offset == p.end_offset for p in topic.partitions)


def test_arguments_that_are_wrong_do_not_end_a_transaction(store: sc.Store, topic: sc.Topic, tmp_path: Path) -> None:
    table = store.create_topic("table", partitions=4, cleanup="compact")
    half = [b"a", b"b", b"c", b"d", None]
    with store.transaction("etl") as transaction:
        transaction.append(topic, [b"1"])
        wrong: list[tuple[type[Exception], Callable[[], Any]]] = [
            (TypeError, lambda: transaction.append(topic, ["text", 3])),
            (ValueError, lambda: transaction.append(topic, [b"1"], partition=1)),
            (ValueError, lambda: transaction.append(topic, [b"1"], keys=[b"1", b"2"])),
            (sc.TopicNotFoundError, lambda: transaction.append("nowhere", [b"1"])),
            (TypeError, lambda: transaction.append_table(topic, "no table")),
            (TypeError, lambda: transaction.commit_offsets("no consumer")),  # type: ignore[arg-type]
            (ValueError, lambda: transaction.append(table, [b"no key"])),
            (ValueError, lambda: transaction.append(table, half, keys=half)),
            (ValueError, lambda: transaction.append_table(table, pa.table({"value": [b"no key"]}))),
            (ValueError, lambda: transaction.append_table(table, pa.table({"value": half, "key": half}))),
        ]
        for kind, call in wrong:
            with pytest.raises(kind):
                call()
        with sc.open(tmp_path / "other") as other:
            with pytest.raises(ValueError, match="of another store"):
                transaction.append(other.create_topic("t"), [b"1"])
        transaction.append(topic, [b"2"])
        transaction.append(table, [b"kept"], keys=[b"key"])
    assert values_of(topic) == [b"1", b"2"]
    assert [record.value for record in table.scan(isolation="uncommitted")] == [b"kept"]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"transactional_id": ""}, ValueError), ({"transactional_id": "x" * 250}, ValueError),
        ({"transactional_id": b"x"}, TypeError), ({"transactional_id": "x", "timeout_ms": 0}, ValueError),
        ({"transactional_id": "x", "timeout_ms": 1.5}, TypeError),
        ({"transactional_id": "x", "durability": "ram"}, ValueError),
    ],
)  # fmt: skip
def test_bad_settings_of_a_transaction_are_refused(store: sc.Store, arguments: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        store.transaction(**arguments)


def test_a_store_for_reading_has_no_transactions(store_path: Path) -> None:
    with sc.open(store_path) as store:
        store.create_topic("t")
    with sc.open(store_path, "r") as store:
        with pytest.raises(sc.StoreReadOnlyError):
            store.transaction("etl")


def test_a_closed_store_ends_its_transactions_with_an_error(store_path: Path) -> None:
    store = sc.open(store_path)
    topic = store.create_topic("t")
    transaction = store.transaction("etl")
    transaction.append(topic, [b"1"])
    store.close()
    for call in (transaction.commit, transaction.abort, lambda: transaction.append(topic, [b"2"])):
        with pytest.raises(sc.StreamcoreError, match="closed"):
            call()


def test_closing_a_store_aborts_what_it_has_left_open(store_path: Path) -> None:
    with sc.open(store_path) as other:
        topic = other.create_topic("t")
        with sc.open(store_path) as store:
            left, taken = store.transaction("left"), store.transaction("taken")
            left.append("t", [b"1"])
            taken.append("t", [b"2"])
            newer = other.transaction("taken")
            newer.append(topic, [b"3"])
        topic.append([b"4"])
        newer.commit()
        assert values_of(topic) == [b"3", b"4"]


@pytest.mark.parametrize("durability", ["os", "disk"])
@pytest.mark.parametrize("commit", [True, False])
def test_a_topic_that_is_deleted_in_the_middle_does_not_stop_the_others(
    store: sc.Store, commit: bool, durability: Any
) -> None:
    kept, gone = store.create_topic("kept"), store.create_topic("gone")
    transaction = store.transaction("etl", durability=durability)
    transaction.append(kept, [b"1"])
    transaction.append(gone, [b"1"])
    store.delete_topic("gone")
    transaction.commit() if commit else transaction.abort()
    assert values_of(kept) == ([b"1"] if commit else [])


def test_a_full_disk_aborts_and_a_marker_that_finds_no_room_is_written_later(
    store: sc.Store, pair: tuple[sc.Topic, sc.Topic], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    real = sc.Topic.end_transaction

    def full(self: sc.Topic, *arguments: Any, **settings: Any) -> Any:
        if self.name == "b":
            raise sc.StorageError(errno.ENOSPC, "cannot reserve disk space for an append", "b")
        return real(self, *arguments, **settings)

    transaction = store.transaction("etl")
    transaction.append(a, [b"1"], partition=0)
    transaction.append(b, [b"1"])
    monkeypatch.setattr(sc.Topic, "end_transaction", full)
    transaction.commit()  # it is decided
    assert (values_of(a), values_of(b)) == ([b"1"], [])
    monkeypatch.undo()
    assert finish_transactions(store) == 1
    assert (values_of(a), values_of(b)) == ([b"1"], [b"1"])
    assert finish_transactions(store) == 0


# ---- what the dead leave ------------------------------------------------------------------------------------------


def die(store_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends in the middle of a transaction over both topics: open, or decided without all its markers."""
    store = sc.open(store_path)
    a, b = store.topic("a"), store.topic("b")
    transaction = store.transaction("etl", durability="disk" if how == "decided" else "os")
    transaction.append(a, [b"1", b"2"], partition=0)
    transaction.append(a, [b"3"], partition=1)
    transaction.append(b, [b"4"])
    if how == "decided":
        with monkeypatch.context() as patch:
            patch.setattr(Coordinator, "_mark", lambda *_, **__: (_ for _ in ()).throw(sc.StreamcoreError("killed")))
            transaction.commit()
    monkeypatch.setattr(Coordinator, "abort_all", lambda self: None)
    store.close()


@pytest.fixture
def left(store_path: Path) -> Path:
    with sc.open(store_path) as store:
        store.create_topic("a", partitions=2)
        store.create_topic("b")
    return store_path


def all_values(store: sc.Store) -> tuple[list[Any], list[Any]]:
    return values_of(store.topic("a")), values_of(store.topic("b"))


def test_what_was_decided_is_finished_by_who_opens_the_store_next(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die(left, "decided", monkeypatch)
    with sc.open(left, "r") as reader:
        assert all_values(reader) == ([], [])
    with sc.open(left) as store:
        assert all_values(store) == ([b"1", b"2", b"3"], [b"4"])
        with store.catalog.reading() as connection:
            assert connection.execute("select count(*) from transaction_decisions").fetchone() == (0,)


def test_what_was_decided_is_finished_by_the_next_transaction_with_the_id(
    left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sc.open(left) as store:
        die(left, "decided", monkeypatch)
        with store.transaction("etl") as transaction:
            transaction.append("a", [b"5"], partition=0)
        assert sorted(all_values(store)[0]) == [b"1", b"2", b"3", b"5"]


def test_what_was_open_is_aborted_by_the_next_transaction_with_the_id(
    left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die(left, "open", monkeypatch)
    with sc.open(left) as store:
        assert [p.stable_offset for p in store.topic("a").partitions] == [0, 0]
        with store.transaction("etl") as transaction:
            transaction.append("a", [b"5"], partition=0)
        assert all_values(store) == ([b"5"], [])
        assert all(p.stable_offset == p.end_offset for t in store.topics() for p in t.partitions)


def test_what_was_open_when_the_machine_went_down_is_aborted_at_the_next_open(
    left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die(left, "open", monkeypatch)
    monkeypatch.setattr(transactions, "_boot_id", lambda: "another boot")
    with sc.open(left) as store:
        assert all(p.stable_offset == p.end_offset for t in store.topics() for p in t.partitions)
        assert all_values(store) == ([], [])
        with store.transaction("etl") as transaction:
            transaction.append("b", [b"5"])
        assert transaction.producer_id == 2  # epochs may have been lost with the power
    with sc.open(left) as store:
        assert all_values(store) == ([], [b"5"])


@pytest.mark.parametrize("how", ["open", "decided"])
def test_a_power_loss_that_took_the_catalogs_last_changes_leaves_nothing_open(
    left: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sc.open(left) as store, store.transaction("etl") as transaction:
        transaction.append("b", [b"0"])
    saved = (left / "catalog.sqlite").read_bytes()
    die(left, how, monkeypatch)
    (left / "catalog.sqlite").write_bytes(saved)
    for name in ("catalog.sqlite-wal", "catalog.sqlite-shm"):
        (left / name).unlink(missing_ok=True)
    monkeypatch.setattr(transactions, "_boot_id", lambda: "another boot")
    with sc.open(left) as store:
        assert all_values(store) == ([], [b"0"])
        assert all(p.stable_offset == p.end_offset for t in store.topics() for p in t.partitions)
        for number in range(3):
            with store.transaction("etl") as transaction:
                transaction.append("b", [b"%d" % number])
                transaction.append("a", [b"%d" % number], partition=0)
        assert all_values(store) == ([b"0", b"1", b"2"], [b"0", b"0", b"1", b"2"])


@pytest.mark.parametrize("behind", [0, 3])
def test_a_transaction_of_which_all_records_were_deleted_hides_nothing_after_a_power_loss(
    left: Path, behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sc.open(left, maintenance=False) as store, store.transaction("etl") as transaction:
        transaction.append("b", [b"0"])
    saved = (left / "catalog.sqlite").read_bytes()
    die(left, "open", monkeypatch)
    with sc.open(left, maintenance=False) as store:
        topic = store.topic("b")
        topic.delete_records(topic.partitions[0].end_offset, 0)  # and the segment with it
        for _ in range(behind):
            topic.append([b"behind"])
    (left / "catalog.sqlite").write_bytes(saved)
    for name in ("catalog.sqlite-wal", "catalog.sqlite-shm"):
        (left / name).unlink(missing_ok=True)
    monkeypatch.setattr(transactions, "_boot_id", lambda: "another boot")
    with sc.open(left, maintenance=False) as store:
        store.topic("b").append([b"1"])
        assert values_of(store.topic("b")) == [b"behind"] * behind + [b"1"]
    with sc.open(left, maintenance=False) as store:
        assert values_of(store.topic("b")) == [b"behind"] * behind + [b"1"]


def test_an_interruption_behind_the_decision_leaves_it_committed(
    store: sc.Store, topic: sc.Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sc.Topic, "end_transaction", interrupted)
        with pytest.raises(KeyboardInterrupt), store.transaction("etl") as transaction:
            transaction.append(topic, [b"1"])
    assert transaction.state == "committed"
    with store.transaction("etl") as transaction:
        transaction.append(topic, [b"2"])
    assert values_of(topic) == [b"1", b"2"]


def test_a_decision_is_kept_until_its_markers_are_durable(store: sc.Store, topic: sc.Topic) -> None:
    def decisions() -> int:
        with store.catalog.reading() as connection:
            return int(connection.execute("select count(*) from transaction_decisions").fetchone()[0])

    for count in range(1, 40):
        with store.transaction("etl") as transaction:
            transaction.append(topic, [b"1"])
        forgotten = count - decisions()
        assert topic.partitions[0].durable_offset >= 2 * forgotten  # a record and a marker of each
    store.flush()
    store.transaction("etl").abort()
    assert decisions() == 0


# ---- the model ----------------------------------------------------------------------------------------------------

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import strategies as st  # noqa: E402  # needs hypothesis
from hypothesis.stateful import (  # noqa: E402
    RuleBasedStateMachine,
    invariant,
    rule,
)

IDS = st.sampled_from(["one", "two", "three"])
PLACES = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 1))


class TransactionMachine(RuleBasedStateMachine):
    """Two handles of one store, transactions of three ids through both, against lists of what each partition holds."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="streamcore-transactions-"))
        self.stores = [sc.open(self.folder / "store"), sc.open(self.folder / "store")]
        for name in ("a", "b"):
            self.stores[0].create_topic(name, partitions=2, segment_bytes=1 << 16)
        self.logs: dict[tuple[str, int], list[tuple[int, bytes, Any]]] = {
            (name, partition): [] for name in ("a", "b") for partition in range(2)
        }  # offset, value, the transaction or None
        self.outcomes: dict[int, str] = {}
        self.live: dict[str, tuple[int, sc.Transaction]] = {}
        self.zombies: list[sc.Transaction] = []
        self.number = 0

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.folder)

    def value(self, size: int) -> bytes:
        self.number += 1
        return b"%d " % self.number + bytes(size)

    @rule(name=IDS, which=st.integers(0, 1))
    def begin(self, name: str, which: int) -> None:
        if name in self.live:
            number, old = self.live.pop(name)
            self.outcomes[number] = "aborted"
            self.zombies = [*self.zombies[-3:], old]
        self.number += 1
        self.live[name] = self.number, self.stores[which].transaction(name)
        self.outcomes[self.number] = "open"

    @rule(name=IDS, place=PLACES, count=st.integers(1, 4), size=st.sampled_from([0, 10, 9000]))
    def append(self, name: str, place: tuple[str, int], count: int, size: int) -> None:
        if name not in self.live:
            return
        number, transaction = self.live[name]
        values = [self.value(size) for _ in range(count)]
        [span] = transaction.append(place[0], values, partition=place[1])
        self.logs[place] += [(span.first_offset + i, value, number) for i, value in enumerate(values)]

    @rule(place=PLACES, which=st.integers(0, 1))
    def append_plainly(self, place: tuple[str, int], which: int) -> None:
        value = self.value(5)
        [span] = self.stores[which].topic(place[0]).append([value], partition=place[1])
        self.logs[place].append((span.first_offset, value, None))

    @rule(name=IDS, commit=st.booleans())
    def end(self, name: str, commit: bool) -> None:
        if name not in self.live:
            return
        number, transaction = self.live.pop(name)
        transaction.commit() if commit else transaction.abort()
        self.outcomes[number] = "committed" if commit else "aborted"

    @rule(place=PLACES, call=st.integers(0, 2))
    def zombies_are_fenced(self, place: tuple[str, int], call: int) -> None:
        for zombie in self.zombies:
            with pytest.raises((sc.FencedError, sc.StreamcoreError)):
                if call == 0:
                    zombie.append(place[0], [b"zombie"], partition=place[1])
                elif call == 1:
                    zombie.commit()
                else:
                    zombie.abort()

    @rule()
    def time_out(self) -> None:
        ended = finish_transactions(self.stores[0], transactions.now_ms() + LATER_MS)
        assert ended >= len(self.live)
        for number, transaction in self.live.values():
            self.outcomes[number] = "aborted"
            self.zombies = [*self.zombies[-3:], transaction]
        self.live.clear()

    @rule(which=st.integers(0, 1), hints=st.sampled_from(["", "*.aborted", ".producers", "*.index"]))
    def open_anew(self, which: int, hints: str) -> None:
        for name, (number, transaction) in list(self.live.items()):
            if transaction._store is self.stores[which]:
                del self.live[name]
                self.outcomes[number] = "aborted"
        self.zombies = []
        self.stores[which].close()
        if hints:
            for hint in (self.folder / "store").rglob(hints):
                hint.unlink()
        self.stores[which] = sc.open(self.folder / "store")
        finish_transactions(self.stores[which], transactions.now_ms() + LATER_MS)
        for number, transaction in self.live.values():
            self.outcomes[number] = "aborted"
            self.zombies.append(transaction)
        self.live.clear()

    @invariant()
    def readers_see_what_the_model_says(self) -> None:
        store = self.stores[self.number % 2]
        for (name, partition), log in self.logs.items():
            topic = store.topic(name)
            unstable = [offset for offset, _, number in log if number and self.outcomes[number] == "open"]
            found = topic.partitions[partition]
            assert found.stable_offset == (min(unstable) if unstable else found.end_offset)
            wanted = [
                (offset, value)
                for offset, value, number in log
                if offset < found.stable_offset and (number is None or self.outcomes[number] == "committed")
            ]
            assert [(r.offset, r.value) for r in topic.scan(partition)] == wanted
            table = topic.scan(partition, columns=["offset", "value"]).to_arrow()
            assert list(zip(table["offset"].to_pylist(), table["value"].to_pylist(), strict=True)) == wanted
            assert topic.scan(partition).count() == len(wanted)
            everything = [(offset, value) for offset, value, _ in log]
            assert [(r.offset, r.value) for r in topic.scan(partition, isolation="uncommitted")] == everything


TestTransactionsAgainstAModel = TransactionMachine.TestCase
TestTransactionsAgainstAModel.settings = hypothesis.settings(max_examples=25, stateful_step_count=40)


def _abort_without_markers(patch: pytest.MonkeyPatch) -> None:
    real = Coordinator._mark
    patch.setattr(Coordinator, "_mark", lambda *a, commit, **more: real(*a, commit=commit, **more) if commit else [])


def _commit_what_is_aborted(patch: pytest.MonkeyPatch) -> None:
    real = Coordinator._mark
    patch.setattr(Coordinator, "_mark", lambda *a, commit, **more: real(*a, commit=True, **more))


def _claim_for_anybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Coordinator, "_check", staticmethod(lambda *_: None))


def _read_uncommitted(patch: pytest.MonkeyPatch) -> None:
    real = sc.Topic.scan
    patch.setattr(sc.Topic, "scan", lambda self, *a, **more: real(self, *a, **(more | {"isolation": "uncommitted"})))


def run_of_every_kind() -> None:
    """A fixed run of the machine, in which each of the bugs shows: random ones may miss it."""
    machine = TransactionMachine()
    try:
        for commit in (True, False):
            machine.begin("one", 0)
            machine.append("one", ("a", 0), 2, 10)
            machine.readers_see_what_the_model_says()
            machine.end("one", commit)
            machine.append_plainly(("a", 0), 1)
            machine.readers_see_what_the_model_says()
        for which in (0, 1):
            machine.begin("one", which)
        for call in (1, 0, 2):  # a commit first: an append would be refused by the partitions as well
            machine.zombies_are_fenced(("a", 0), call)
            machine.readers_see_what_the_model_says()
    finally:
        machine.teardown()


def test_a_run_of_every_kind_agrees_with_the_model() -> None:
    run_of_every_kind()


@pytest.mark.parametrize(
    "bug", [_abort_without_markers, _commit_what_is_aborted, _claim_for_anybody, _read_uncommitted]
)
def test_the_model_notices(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the machine over a store with a bug must fail."""
    bug(monkeypatch)
    with pytest.raises((AssertionError, sc.StreamcoreError, ValueError, pytest.fail.Exception)):
        run_of_every_kind()


@hypothesis.settings(max_examples=15)
@hypothesis.given(data=st.data())
def test_python_arrow_and_sql_agree_on_what_is_committed(data: st.DataObject) -> None:
    duckdb = pytest.importorskip("duckdb")
    assert duckdb
    with tempfile.TemporaryDirectory() as folder, sc.open(folder) as store:
        topic = store.create_topic("t", partitions=2, segment_bytes=1 << 16)
        steps = data.draw(
            st.lists(st.tuples(st.sampled_from("ca.o"), st.integers(0, 1), st.integers(1, 5)), max_size=12)
        )
        for number, (what, partition, count) in enumerate(steps):
            values = [b"%d.%d" % (number, i) + bytes(3000) for i in range(count)]
            if what == ".":
                topic.append(values, partition=partition)
                continue
            transaction = store.transaction(f"{what}{number if what == 'o' else ''}")
            transaction.append(topic, values, partition=partition)
            if what != "o":
                transaction.commit() if what == "c" else transaction.abort()
        rows = [(r.partition, r.offset, r.value) for r in topic.scan()]
        table = topic.scan(columns=["partition", "offset", "value"]).to_arrow()
        found = store.sql('select partition, "offset", value from t order by partition, "offset"')
        for other in (table, found):
            assert [tuple(row.values()) for row in other.to_pylist()] == rows
        assert store.sql("select count(*) as n from t")["n"].to_pylist() == [len(rows)]
        assert store.sql('select count(*) as n from t where "offset" >= 3')["n"].to_pylist() == [
            sum(offset >= 3 for _, offset, _ in rows)
        ]
