"""Of each key the latest record stays; what is latest is known before and after, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import streamcore as sc
from streamcore.retention import apply_retention

SMALL = 64 << 10
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
TYPED = pa.schema([("n", pa.int64()), ("text", pa.string())])
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "headers": {},
    "typed": {"schema": TYPED},
    "zstd": {"compression": "zstd"},
    "lz4 typed": {"schema": TYPED, "compression": "lz4"},
}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def put(topic: sc.Topic, key: str, value: int | None, at: int | None = None, partition: int | None = None) -> None:
    made: Any = value
    if value is not None:
        made = {"n": value, "text": "t" * (value % 9)} if topic.schema is not None else b"%d" % value
    headers = [[("n", b"1")]] if topic.config.max_record_bytes == 77 << 20 else None
    topic.append([made], keys=[key.encode()], timestamps=at, headers=headers, partition=partition)


def plain_value(value: Any) -> int:
    return value["n"] if isinstance(value, dict) else int(value)


def contents(topic: sc.Topic) -> dict[str, int]:
    table = topic.table()
    return {
        key.decode(): plain_value(value)
        for key, value in zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True)
    }


def make(make_topic: Callable[..., sc.Topic], kind: str = "plain", **settings: Any) -> sc.Topic:
    extra = {"max_record_bytes": 77 << 20} if kind == "headers" else {}  # which `put` takes for "with headers"
    return make_topic(**{"cleanup": "compact", "segment_bytes": SMALL, **KINDS[kind], **extra, **settings})


def survivors(records: list[sc.Record], active_from: int) -> list[sc.Record]:
    """The rule, in plain Python: below `active_from` only records without a later one of their key stay."""
    last = {record.key: record.offset for record in records if record.offset < active_from}
    return [r for r in records if r.offset >= active_from or r.key is None or last[r.key] == r.offset]


# ---- the rule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_latest_record_of_each_key_stays_with_its_offset(make_topic: Callable[..., sc.Topic], kind: str) -> None:
    topic = make(make_topic, kind)
    for i in range(900):
        put(topic, f"key {i * i % 61}", None if i % 13 == 5 else i)
    topic.roll()
    for i in range(30):
        put(topic, f"key {i}", 5000 + i)
    records, before = list(topic.scan()), contents(topic)
    active_from = topic.segments()[-1].base_offset
    done = topic.compact()
    assert done
    wanted = survivors(records, active_from)
    assert list(topic.scan()) == wanted
    assert topic.scan().count() == len(wanted)
    assert contents(topic) == before
    assert topic.partitions[0].end_offset == 930
    assert sum(one.records_before - one.records_after for one in done) == 930 - len(wanted)
    assert topic.verify_partition(0, None) == []
    for start in range(0, 930, 41):
        for end in range(start, 931, 97):
            some = [r for r in wanted if start <= r.offset < end]
            assert list(topic.scan(start=start, end=end)) == some
            assert topic.scan(start=start, end=end).count() == len(some)
    assert topic.compact() == []


def test_many_keys_take_several_passes_and_give_the_same(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic)
    for i in range(3000):
        put(topic, f"key {i * 7919 % 1000}", i)
    topic.roll()
    records = list(topic.scan())
    topic.compact(memory_bytes=1536)  # 48 keys at a time
    assert list(topic.scan()) == survivors(records, 3000)


def test_a_second_run_reads_only_what_is_new(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic)
    for _ in range(3):
        for i in range(500):
            put(topic, f"key {i}", i)
        topic.roll()
        records = list(topic.scan())
        topic.compact()
        assert list(topic.scan()) == survivors(records, records[-1].offset + 1)
    assert topic.compact() == []


def test_partitions_that_are_hardly_dirty_are_left_alone_when_that_is_wanted(
    make_topic: Callable[..., sc.Topic],
) -> None:
    topic = make(make_topic)
    for i in range(500):
        put(topic, f"key {i}", i)
    topic.roll()
    topic.compact()
    put(topic, "key 0", 1)
    topic.roll()
    assert topic.compact(min_dirty_ratio=0.5) == []
    assert len(topic.compact()) == 1
    for wrong in (-0.1, 2):
        with pytest.raises(ValueError, match="min_dirty_ratio"):
            topic.compact(min_dirty_ratio=wrong)
    with pytest.raises(ValueError, match="memory_bytes"):
        topic.compact(memory_bytes=10)


def test_tombstones_stay_as_long_as_is_set_and_nothing_comes_back(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, delete_retention_ms=HOUR_MS)
    now = now_ms()
    for i in range(20):
        put(topic, f"key {i}", i, now)
    for i in range(0, 20, 2):
        put(topic, f"key {i}", None, now)
    topic.roll()
    topic.compact(now_ms=now + HOUR_MS)
    assert topic.scan().count() == 20
    assert [r.key for r in topic.scan() if r.value is None] == [b"key %d" % i for i in range(0, 20, 2)]
    assert topic.compact(now_ms=now + HOUR_MS) == []
    topic.compact(now_ms=now + HOUR_MS + 1)
    assert [r.value for r in topic.scan()] == [b"%d" % i for i in range(1, 20, 2)]
    assert sorted(contents(topic).values()) == list(range(1, 20, 2))
    assert topic.compact(now_ms=now + DAY_MS) == []


def test_a_tombstone_outlives_what_it_deletes_over_several_passes(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, delete_retention_ms=0)
    for i in range(200):
        put(topic, f"key {i}", i, 1)
    for i in range(200):
        put(topic, f"key {i}", None, 1)
    topic.roll()
    topic.compact(memory_bytes=1536)
    assert list(topic.scan()) == []
    assert contents(topic) == {}


def test_a_wrong_note_of_how_far_it_is_clean_brings_nothing_back(store: sc.Store) -> None:
    """As in a copy of a store whose catalog is newer than its segments."""
    topic = store.create_topic("a", cleanup="compact", segment_bytes=SMALL, delete_retention_ms=1000)
    now = now_ms()
    for value in (1, None):
        for i in range(100):
            put(topic, f"key {i}", value, now)
    topic.roll()
    topic.compact(stop=lambda: True)
    with store.catalog.changing() as connection:
        connection.execute("create table if not exists compaction (topic_id, partition, clean_offset, oldest)")
        connection.execute("insert into compaction values (?, 0, 200, ?)", (topic.id, now))
    topic.compact(now_ms=now + 2000)
    assert contents(topic) == {}
    assert list(topic.scan()) == []


def test_young_segments_wait(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, min_compaction_lag_ms=HOUR_MS)
    now = now_ms()
    for age in (3 * HOUR_MS, 2 * HOUR_MS, 0):
        put(topic, "key", age, now - age)
        topic.roll()
    topic.compact(now_ms=now)
    assert [plain_value(r.value) for r in topic.scan()] == [2 * HOUR_MS, 0]
    topic.compact(now_ms=now + 2 * HOUR_MS)
    assert [plain_value(r.value) for r in topic.scan()] == [0]


def test_the_active_segment_is_not_touched(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic)
    for i in range(50):
        put(topic, "key", i)
    assert topic.compact() == []
    assert topic.scan().count() == 50


def test_records_without_a_key_are_refused_and_older_ones_stay(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, cleanup="delete")
    topic.append([b"no key", b"a"], keys=[None, b"k"])
    with pytest.raises(ValueError, match="only 'compact'"):
        topic.compact()
    topic.alter(cleanup="compact")
    put(topic, "k", 1)
    for values, keys in (([b"x"], None), ([b"x", b"y"], [b"k", None])):
        with pytest.raises(ValueError, match="has no key"):
            topic.append(values, keys=keys)
        with pytest.raises(ValueError, match="has no key"):
            topic.append(values, keys=keys, headers=[None] * len(values))
        with pytest.raises(ValueError, match="has no key"):
            topic.append_table(pa.table({"value": values, **({"key": keys} if keys else {})}))
    topic.roll()
    topic.compact()
    assert [(r.key, r.value) for r in topic.scan()] == [(None, b"no key"), (b"k", b"1")]
    assert contents(topic) == {"k": 1}


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_one_record_without_a_key_refuses_the_whole_append_to_all_partitions(
    make_topic: Callable[..., sc.Topic], compression: str
) -> None:
    topic = make_topic(4, cleanup="compact", compression=compression)
    keys = [b"a", b"b", b"c", b"d", None]
    for append in (
        lambda: topic.append(keys, keys=keys),
        lambda: topic.append(keys, keys=keys, headers=[None] * 5),
        lambda: topic.append_table(pa.table({"value": keys, "key": keys})),
    ):
        with pytest.raises(ValueError, match="has no key"):
            append()
        assert topic.scan().count() == 0


def test_keys_may_be_empty_or_share_beginnings(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic)
    for _ in range(2):
        for key in ("", "a", "ab", "abcdefgh", "abcdefghi", "a" * 300):
            put(topic, key, len(key))
    topic.roll()
    topic.compact()
    assert [r.offset for r in topic.scan()] == list(range(6, 12))


def test_compaction_and_retention_together(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, cleanup="compact,delete", retention_ms=HOUR_MS)
    now = now_ms()
    for at in (now - 2 * HOUR_MS, now):
        for i in range(20):
            put(topic, f"key {i % 10} {at}", i, at)
        topic.roll()
    topic.compact()
    assert topic.scan().count() == 20
    assert apply_retention(topic, now + 1).segments == 1
    assert [r.timestamp_ms for r in topic.scan()] == [now] * 10


def test_it_stops_when_it_is_told_to(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic)
    for i in range(2000):
        put(topic, f"key {i % 9}", i)
    topic.roll()
    records, before = list(topic.scan()), contents(topic)
    for most in range(0, 60, 5):
        asked = iter(range(most))
        topic.compact(stop=lambda asked=asked: next(asked, None) is None)
        assert contents(topic) == before
    topic.compact()
    assert list(topic.scan()) == survivors(records, 2000)


# ---- what is latest --------------------------------------------------------------------------------------------


def test_the_latest_record_of_a_key_is_found_in_any_segment(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, partitions=3)
    for i in range(1500):
        put(topic, f"key {i % 700}", None if i % 50 == 49 else i)
    model = {f"key {i % 700}": None if i % 50 == 49 else i for i in range(1500)}
    for compacted in (False, True):
        for key, value in list(model.items())[::37]:
            found = topic.latest(key.encode())
            assert (None if found is None else plain_value(found.value)) == value
        assert topic.latest(b"nobody") is None
        assert contents(topic) == {key: value for key, value in model.items() if value is not None}
        if not compacted:
            topic.roll()
            topic.compact()


def test_tables_have_the_columns_that_are_asked_for(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make(make_topic, "typed")
    for i in range(10):
        put(topic, f"key {i % 4}", i)
    assert topic.table(columns=["value.n", "partition"]).to_pydict() == {
        "value.n": [6, 7, 8, 9],
        "partition": [0, 0, 0, 0],
    }
    assert topic.table().schema == topic.scan().schema
    assert make(make_topic).table().num_rows == 0
    with pytest.raises(ValueError, match="no column"):
        topic.table(columns=["nothing"])


def test_a_topic_without_compaction_has_a_table_too(make_topic: Callable[..., sc.Topic]) -> None:
    topic = make_topic()
    topic.append([b"a", b"b", b"c", b"d"], keys=[b"x", None, b"x", b"y"])
    assert topic.table(columns=["key", "value"]).to_pydict() == {"key": [b"x", b"y"], "value": [b"c", b"d"]}


# ---- transactions ----------------------------------------------------------------------------------------------


def committed_and_all(topic: sc.Topic) -> tuple[list[sc.Record], list[sc.Record]]:
    return list(topic.scan()), list(topic.scan(isolation="uncommitted"))


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_aborted_records_leave_and_never_count_as_the_latest(store: sc.Store, compression: str) -> None:
    topic = store.create_topic("a", cleanup="compact", segment_bytes=SMALL, compression=compression)
    model: dict[bytes, bytes] = {}
    for i in range(60):
        keys = [b"key %d" % (i * j % 17) for j in range(1, 4)]
        values = [b"%d.%d" % (i, j) for j in range(3)]
        transaction = store.transaction(f"etl {i % 2}")
        for key, value in zip(keys, values, strict=True):
            transaction.append(topic, [value], keys=[key])
        if i % 3 == 0:
            transaction.abort()
        else:
            transaction.commit()
            model.update(zip(keys, values, strict=True))
        if i % 20 == 19:
            topic.roll()
    records, before = list(topic.scan()), topic.table()
    assert dict(zip(before["key"].to_pylist(), before["value"].to_pylist(), strict=True)) == model
    assert topic.compact()
    assert list(topic.scan()) == survivors(records, topic.segments()[-1].base_offset)
    committed, everything = committed_and_all(topic)
    assert committed == everything
    assert topic.table().equals(before)
    assert all(topic.latest(key).value == value for key, value in model.items())  # type: ignore[union-attr]
    assert store.verify() == []
    with store.transaction("etl 0") as again:
        again.append(topic, [b"on"], keys=[b"key 0"])
    assert topic.latest(b"key 0").value == b"on"  # type: ignore[union-attr]


def test_nothing_behind_the_first_open_transaction_is_compacted(store: sc.Store) -> None:
    topic = store.create_topic("a", cleanup="compact", segment_bytes=SMALL)
    for value in range(3):
        put(topic, "key", value)
    topic.roll()
    transaction = store.transaction("etl")
    transaction.append(topic, [b"open"], keys=[b"key"])
    topic.roll()
    for value in range(3, 6):
        put(topic, "key", value)
    topic.roll()
    topic.compact()
    assert [r.offset for r in topic.scan(isolation="uncommitted")] == [2, 3, 4, 5, 6]
    assert contents(topic) == {"key": 2}
    transaction.abort()
    topic.roll()
    topic.compact()
    assert [r.offset for r in topic.scan(isolation="uncommitted")] == [6]
    assert contents(topic) == {"key": 5}


def test_consolidation_shows_committed_readers_the_same(store: sc.Store) -> None:
    topic = store.create_topic("a", segment_bytes=SMALL)
    for i in range(150):
        transaction = store.transaction(f"etl {i % 3}")
        transaction.append(topic, [b"%d" % i])
        topic.append([b"plain %d" % i])
        transaction.append(topic, [b"%d again" % i])
        transaction.abort() if i % 4 == 1 else transaction.commit()
    topic.roll()
    before = list(topic.scan())
    done = topic.consolidate()
    aborted = 2 * len(range(1, 150, 4))
    removed = sum(one.records_before - one.records_after for one in done)
    assert aborted - 10 <= removed <= aborted  # a last segment of few batches is not worth it
    committed, everything = committed_and_all(topic)
    assert (committed, len(everything)) == (before, len(before) + aborted - removed)
    assert topic.scan().count() == len(before)
    assert store.verify() == []


# ---- others ----------------------------------------------------------------------------------------------------

READER = """
import sys
import streamcore as sc

with sc.open(sys.argv[1], sys.argv[2]) as store:
    topic = store.topic("a")
    print("ready", flush=True)
    while True:
        wanted = {b"key %d" % i: b"%d" % (2970 + i) for i in range(30)}
        table = topic.table()
        assert dict(zip(table["key"].to_pylist(), table["value"].to_pylist())) == wanted
        offsets = [record.offset for record in topic.scan()]
        assert offsets == sorted(set(offsets)) and offsets[-30:] == list(range(2970, 3000))
        assert topic.latest(b"key 7").offset == 2977
        if topic.scan().count() == 30:
            print("done", flush=True)
            break
"""


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_other_processes_see_the_same_table_all_the_time(store_path: Path, mode: str) -> None:
    with sc.open(store_path, maintenance=False) as store:
        topic = store.create_topic("a", segment_bytes=SMALL, cleanup="compact")
        for i in range(3000):
            put(topic, f"key {i % 30}", i)
        topic.roll()
        command = [sys.executable, "-c", READER, str(store_path), mode]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            topic.compact(memory_bytes=1536)
            assert reader.stdout.readline() == "done\n"
        assert reader.returncode == 0
        assert store.verify() == []


# ---- against a model -------------------------------------------------------------------------------------------


VALUES = st.one_of(st.none(), st.integers(0, 99))


class Model(RuleBasedStateMachine):
    """A topic and a plain list of its records, with every operation that removes or rewrites them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder: Any = None
        self.other: sc.Store | None = None

    @initialize(
        cleanup=st.sampled_from(["compact", "compact,delete"]),
        compression=st.sampled_from(["none", "none", "zstd"]),
        typed=st.booleans(),
    )
    def begin(self, cleanup: str, compression: str, typed: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self.folder.name) / "store")
        self.store = sc.open(self.path, maintenance=False)
        self.topic = self.store.create_topic(
            "a",
            schema=TYPED if typed else None,
            cleanup=cleanup,
            compression=compression,
            segment_bytes=SMALL,
            delete_retention_ms=1000,
        )
        self.records: list[tuple[int, str, int | None, int]] = []  # offset, key, value, time
        self.end = self.start = 0
        self.now = 1_000_000

    @rule(
        items=st.lists(st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 99))), min_size=1, max_size=9)
    )
    def append(self, items: list[tuple[int, int | None]]) -> None:
        for number, value in items:
            put(self.topic, f"key {number}", value, self.now)
            self.records.append((self.end, f"key {number}", value, self.now))
            self.end += 1
        self.now += 100

    @rule()
    def roll(self) -> None:
        self.topic.roll()

    @rule(memory_bytes=st.sampled_from([1536, 1 << 20]))
    def compact(self, memory_bytes: int) -> None:
        segments = self.topic.segments()
        sealed = segments[-1].base_offset if segments else 0
        self.topic.compact(memory_bytes=memory_bytes, now_ms=self.now)
        last = {key: offset for offset, key, _, _ in self.records if offset < sealed}
        self.records = [
            (offset, key, value, at)
            for offset, key, value, at in self.records
            if offset >= sealed or (last[key] == offset and not (value is None and at < self.now - 1000))
        ]

    @rule()
    def go_on_through_another_handle(self) -> None:
        """As another process would: the two know nothing of each other but what the files say."""
        if self.other is None:
            self.other = sc.open(self.path, maintenance=False)
        self.store, self.other = self.other, self.store
        self.topic = self.store.topic("a")

    @rule()
    def consolidate(self) -> None:
        self.topic.consolidate()

    @rule(share=st.floats(0, 1))
    def delete_records(self, share: float) -> None:
        before = self.start + int((self.end - self.start) * share)
        self.topic.delete_records(before)
        self.start = max(self.start, before)

    @precondition(lambda self: self.end > 0)
    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = sc.open(self.path, maintenance=False)
        self.topic = self.store.topic("a")

    @invariant()
    def is_the_same(self) -> None:
        if self.folder is None:
            return
        wanted = [record for record in self.records if record[0] >= self.start]
        found = [
            (r.offset, r.key.decode(), None if r.value is None else plain_value(r.value), r.timestamp_ms)
            for r in self.topic.scan()
        ]
        assert found == wanted
        assert self.topic.scan().count() == len(wanted)
        assert (self.topic.partitions[0].start_offset, self.topic.partitions[0].end_offset) == (self.start, self.end)
        values: dict[str, int | None] = {key: value for _, key, value, _ in wanted}
        assert contents(self.topic) == {key: value for key, value in values.items() if value is not None}

    def teardown(self) -> None:
        if self.folder is not None:
            assert self.store.verify() == []
            if self.other is not None:
                self.topic = self.other.topic("a")
                self.is_the_same()
                self.other.close()
            with sc.open(self.path, "r") as reader:
                self.topic = reader.topic("a")
                self.is_the_same()
            self.store.close()
            self.folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = hypothesis.settings(max_examples=30, stateful_step_count=25)


@pytest.mark.parametrize("reading", ["table", "latest"])
def test_no_key_is_missed_by_who_reads_while_another_compacts(
    reading: str, store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two scans of a reader a newer record of the key comes, and the one that it would find is dropped."""
    with sc.open(store.path, maintenance=False) as writer:
        real = sc.Topic.scan
        fatal, scans = 1, 0
        interfered = True
        while interfered:
            name = f"{reading}-{fatal}"
            other = writer.create_topic(name, cleanup="compact")
            other.append([b"old", b"else"], keys=[b"key", b"another"])
            other.roll()
            scans, interfered = 0, False

            def scan(self: sc.Topic, *arguments: Any, **bounds: Any) -> sc.Scan:
                nonlocal scans, interfered
                scans += self.store is store
                if scans == fatal and not interfered:  # noqa: B023
                    interfered = True
                    other.append([b"new"], keys=[b"key"])  # noqa: B023
                    other.roll()  # noqa: B023
                    assert other.compact()  # noqa: B023
                return real(self, *arguments, **bounds)

            monkeypatch.setattr(sc.Topic, "scan", scan)
            topic = store.topic(name)
            if reading == "table":
                found = {row["key"]: row["value"] for row in topic.table(columns=["key", "value"]).to_pylist()}
                assert found[b"another"] == b"else"
                assert found[b"key"] in (b"old", b"new")
            else:
                latest = topic.latest(b"key")
                assert latest is not None
                assert latest.value in (b"old", b"new")
            monkeypatch.setattr(sc.Topic, "scan", real)
            fatal += 1
        assert fatal > 3
