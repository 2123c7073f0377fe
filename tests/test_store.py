"""A store: opening, topics in it, what it refuses, and that reading writes nothing."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash

import streamcore as sc

DEADLINE_S = 20

Picture = Callable[[Path], dict[str, tuple[int, bytes]]]


# ---- opening ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_path", [str, Path, lambda path: type("P", (), {"__fspath__": lambda _: str(path)})()])
def test_open_makes_the_directory_and_its_parents(tmp_path: Path, as_path: Callable[[Path], Any]) -> None:
    path = tmp_path / "a" / "b"
    with sc.open(as_path(path)) as store:
        assert store.path == path
        assert (store.mode, store.durability, store.closed) == ("rw", "os", False)
        assert store.topics() == []
    assert path.is_dir()


def test_open_again_finds_topics_settings_schema_and_records(store_path: Path) -> None:
    schema = pa.schema([("n", pa.int32()), pa.field("name", pa.string(), nullable=False)])
    with sc.open(store_path, durability="disk") as store:
        store.create_topic("plain", partitions=3, retention_ms=5, compression="zstd", durability="os")
        typed = store.create_topic("typed", schema=schema)
        typed.append([{"n": 1, "name": "x"}])
        store.topic("plain").append([b"v"], partition=2)
        ids = {topic.name: topic.id for topic in store.topics()}
    with sc.open(str(store_path)) as store:
        assert [topic.name for topic in store.topics()] == ["plain", "typed"]
        assert {topic.name: topic.id for topic in store.topics()} == ids
        plain = store.topic("plain")
        assert (plain.config.retention_ms, plain.config.compression, plain.config.durability) == (5, "zstd", "os")
        assert plain.schema is None
        assert store.topic("typed").schema == schema
        assert [(r.partition, r.value) for r in plain.scan()] == [(2, b"v")]
        assert [r.value for r in store.topic("typed").scan()] == [{"n": 1, "name": "x"}]


def test_open_for_reading_where_nothing_is_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(sc.StorageError) as info:
        sc.open(tmp_path / "absent", mode="r")
    assert info.value.errno == errno.ENOENT
    assert info.value.path == str(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_open_for_reading_a_directory_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sc.StoreFormatError, match=r"is not a store.*catalog\.sqlite"):
        sc.open(tmp_path, mode="r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_open_refuses_a_path_that_is_a_file(tmp_path: Path, mode: Any, below: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    with pytest.raises(sc.StorageError) as info:
        sc.open(path / below if below else path, mode=mode)
    assert info.value.errno in (errno.ENOTDIR, errno.ENOENT)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("path", [None, 3, b"bytes", ["x"]])
def test_open_refuses_what_is_no_path(path: Any) -> None:
    with pytest.raises(TypeError, match="path is"):
        sc.open(path)


@pytest.mark.parametrize("path", ["", "a\0b", Path("a\0b")])
def test_open_refuses_a_path_that_names_no_directory(
    path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the path of a directory is needed"):
        sc.open(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["w", "a", "", None, "R", 1])
def test_open_refuses_other_modes(tmp_path: Path, mode: Any) -> None:
    with pytest.raises(ValueError, match="mode is .*'r' or 'rw' is allowed"):
        sc.open(tmp_path, mode=mode)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("durability", ["fsync", "", None, 1, ["os"]])
def test_open_refuses_other_durabilities(tmp_path: Path, durability: Any) -> None:
    with pytest.raises(ValueError, match="durability is .*'os' or 'disk' is allowed"):
        sc.open(tmp_path / "new", durability=durability)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_format_is_refused(store_path: Path) -> None:
    sc.open(store_path).close()
    with sqlite3.connect(store_path / "catalog.sqlite") as connection:
        connection.execute("update meta set value = '99' where key = 'format'")
    connection.close()
    for mode in ("r", "rw"):
        with pytest.raises(sc.StoreFormatError, match="format 99.*reads format 1"):
            sc.open(store_path, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_catalog_that_is_garbage_is_corruption_that_names_the_file(store_path: Path, mode: Any) -> None:
    sc.open(store_path).close()
    catalog = store_path / "catalog.sqlite"
    catalog.write_bytes(b"not a database at all " * 500)
    with pytest.raises(sc.CorruptionError) as info:
        sc.open(store_path, mode=mode)
    assert info.value.path == str(catalog)


def test_topics_without_a_catalog_are_not_taken_for_an_empty_store(store_path: Path) -> None:
    with sc.open(store_path) as store:
        store.create_topic("clicks").append([b"v"])
    (store_path / "catalog.sqlite").unlink()
    for mode in ("r", "rw"):
        with pytest.raises(sc.StoreFormatError, match=r"catalog\.sqlite"):
            sc.open(store_path, mode=mode)  # type: ignore[arg-type]


def test_a_relative_path_keeps_its_meaning_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with sc.open("store") as store:
        store.create_topic("clicks").append([b"before"])
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.topic("clicks").append([b"after"])
        store.create_topic("later").append([b"x"])
        store.delete_topic("later")
        assert [r.value for r in store.topic("clicks").scan()] == [b"before", b"after"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_open_works_for_a_path_with_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "with space ? # % ü \udcff"
    for mode in ("rw", "r"):
        with sc.open(path, mode=mode) as store:  # type: ignore[arg-type]
            if mode == "rw":
                store.create_topic("clicks").append([b"v"])
            assert store.topic("clicks").scan().count() == 1


# ---- closing ----------------------------------------------------------------------------------------------------


def uses_of(store: sc.Store, topic: sc.Topic, scan: sc.Scan) -> dict[str, Callable[[], Any]]:
    return {
        "create": lambda: store.create_topic("more"),
        "topic": lambda: store.topic("clicks"),
        "topics": store.topics,
        "delete": lambda: store.delete_topic("clicks"),
        "verify": store.verify,
        "digests": lambda: list(store.digests()),
        "sql": lambda: store.sql("select 1"),
        "get_setting": lambda: store.get_setting("a"),
        "set_setting": lambda: store.set_setting("a", "b"),
        "flush": store.flush,
        "enter": store.__enter__,
        "append": lambda: topic.append([b"x"]),
        "append headers": lambda: topic.append([b"x"], headers=[{"a": b"b"}]),
        "append_table": lambda: topic.append_table(pa.table({"value": [b"x"]})),
        "append nothing": lambda: topic.append([]),
        "scan": topic.scan,
        "partitions": lambda: topic.partitions,
        "segments": topic.segments,
        "alter": lambda: topic.alter(retention_ms=1),
        "add_partitions": lambda: topic.add_partitions(4),
        "topic flush": topic.flush,
        "wait": lambda: topic.wait({0: 1}, 10),
        "old scan": scan.to_arrow,
        "old scan count": scan.count,
        "old scan records": lambda: list(scan),
        "old scan batches": lambda: list(scan.batches()),
    }


USES = [
    "create", "topic", "topics", "delete", "verify", "digests", "sql", "get_setting", "set_setting", "flush",
    "enter", "append", "append headers", "append_table", "append nothing", "scan", "partitions", "segments", "alter",
    "add_partitions", "topic flush", "wait", "old scan", "old scan count", "old scan records", "old scan batches",
]  # fmt: skip


@pytest.mark.parametrize("opened_before", [True, False], ids=["used", "unused"])
def test_a_closed_store_says_so_at_every_use(store_path: Path, opened_before: bool) -> None:
    with sc.open(store_path) as store:
        store.create_topic("clicks").append([b"v"])
    store = sc.open(store_path)
    topic = store.topic("clicks")
    with sc.open(store_path) as other:
        scan = topic.scan() if opened_before else other.topic("clicks").scan()
    store.close()
    assert store.closed
    uses = uses_of(store, topic, scan)
    assert list(uses) == USES
    for name, use in uses.items():
        with pytest.raises(sc.StreamcoreError, match="closed"):
            use()
            pytest.fail(f"{name} works on a closed store")
    with sc.open(store_path, mode="r") as again:
        assert again.topic("clicks").scan().count() == 1


def test_closing_twice_and_from_threads_is_fine(store_path: Path) -> None:
    store = sc.open(store_path)
    store.create_topic("clicks").append([b"v"])
    failures: list[BaseException] = []

    def close() -> None:
        try:
            store.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    assert failures == []
    assert repr(store).endswith(", closed>")


def test_of_two_threads_that_close_none_returns_before_all_is_flushed(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sc.open(store_path)
    topic = store.create_topic("clicks")
    topic.append([b"v"])
    began, go_on = threading.Event(), threading.Event()
    close_core = sc.Topic.close_core

    def slow(self: sc.Topic) -> None:
        began.set()
        assert go_on.wait(DEADLINE_S)
        close_core(self)

    monkeypatch.setattr(sc.Topic, "close_core", slow)
    first, second = threading.Thread(target=store.close), threading.Thread(target=store.close)
    first.start()
    assert began.wait(DEADLINE_S)
    second.start()
    second.join(0.1)  # time to go wrong
    assert second.is_alive()
    with pytest.raises(sc.StreamcoreError, match="closed"):
        topic.append([b"w"])
    go_on.set()
    for thread in (first, second):
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_with_block_closes_and_passes_its_exception_on(store_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        with sc.open(store_path) as store:
            store.create_topic("clicks").append([b"v"])
            raise KeyError("mine")
    assert store.closed


def test_a_forgotten_store_is_closed_when_its_appends_are_flushed(
    store_path: Path, wait_until: Callable[..., None]
) -> None:
    store = sc.open(store_path)
    store.create_topic("clicks").append([b"v"])
    forgotten = weakref.ref(store)
    del store

    def is_gone() -> bool:
        gc.collect()
        return forgotten() is None

    wait_until(is_gone)
    with sc.open(store_path) as store:
        assert store.topic("clicks").scan().count() == 1


def held_of(folder: Path) -> tuple[int, int]:
    """Open descriptors and mappings of files in a folder."""
    gc.collect()
    open_files = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            open_files += str(descriptor.readlink()).startswith(str(folder))
    mapped = sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())
    return open_files, mapped


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_opening_and_closing_leaves_no_descriptor_and_no_mapping(store_path: Path) -> None:
    with sc.open(store_path) as store:
        store.create_topic("clicks", partitions=3)
    del store
    assert held_of(store_path) == (0, 0)
    for _ in range(5):
        with sc.open(store_path) as store:
            topic = store.topic("clicks")
            for partition in range(3):
                topic.append([b"v"], partition=partition)
            assert topic.scan().count() > 0
            list(topic.scan())
            topic.scan().to_arrow()
            assert held_of(store_path) > (0, 0)
        with sc.open(store_path, mode="r") as store:
            store.topic("clicks").scan().to_arrow()
            list(store.topic("clicks").scan())
        del topic, store
        assert held_of(store_path) == (0, 0)


def test_closing_ends_the_thread_that_flushes(store_path: Path) -> None:
    with sc.open(store_path) as store:
        before = set(threading.enumerate())
        store.create_topic("clicks").append([b"v"])
        started = [thread for thread in set(threading.enumerate()) - before if thread.name == "streamcore-flush"]
        assert len(started) == 1
    assert not started[0].is_alive()


# ---- topics -----------------------------------------------------------------------------------------------------


def test_topics_are_listed_by_name(store: sc.Store) -> None:
    for name in ["b", "a.c", "Z", "a-b", "_x", "10", "9"]:
        store.create_topic(name)
    assert [topic.name for topic in store.topics()] == sorted(["b", "a.c", "Z", "a-b", "_x", "10", "9"])


def test_a_topic_is_made_once(store: sc.Store) -> None:
    store.create_topic("clicks").append([b"v"])
    with pytest.raises(sc.TopicExistsError, match="'clicks' exists"):
        store.create_topic("clicks", partitions=3)
    assert len(store.topic("clicks").partitions) == 1
    assert len(list((store.path / "topics").iterdir())) == 1


def test_an_unknown_topic_is_named_with_close_names(store: sc.Store) -> None:
    with pytest.raises(sc.TopicNotFoundError, match="'clicks'; there are none"):
        store.topic("clicks")
    store.create_topic("clicks")
    store.create_topic("orders")
    with pytest.raises(sc.TopicNotFoundError, match="'click'; did you mean 'clicks'"):
        store.topic("click")
    with pytest.raises(sc.TopicNotFoundError, match="'zzz'; there are 'clicks', 'orders'"):
        store.delete_topic("zzz")
    with pytest.raises(LookupError):
        store.topic("nothing")


NAMES_GOOD = ["a", "A.b_c-9", "...", "a" * 249, "-", "_", "CON", "x.arrows", "..a"]
NAMES_BAD = [
    "",
    ".",
    "..",
    "a/b",
    "../a",
    "/",
    "a\0b",
    "\0",
    "a b",
    "a\n",
    "ü",
    "a" * 250,
    "a" * 300,
    "a\\b",
    "a:b",
    "*",
]


@pytest.mark.parametrize("name", NAMES_GOOD)
def test_names_that_kafka_allows_are_allowed(store: sc.Store, name: str) -> None:
    topic = store.create_topic(name)
    topic.append([b"v"])
    assert store.topic(name).scan().count() == 1
    store.delete_topic(name)
    assert list((store.path / "topics").iterdir()) == []


@pytest.mark.parametrize("name", NAMES_BAD)
def test_other_names_are_refused_and_make_nothing(store: sc.Store, name: str, picture: Picture) -> None:
    before = picture(store.path)
    for use in (store.create_topic, store.topic, store.delete_topic):
        with pytest.raises(ValueError, match="1 to 249 of a-z A-Z 0-9"):
            use(name)
    assert picture(store.path) == before


@pytest.mark.parametrize("name", [None, 1, b"clicks", ["clicks"]])
def test_names_are_str(store: sc.Store, name: Any) -> None:
    for use in (store.create_topic, store.topic, store.delete_topic):
        with pytest.raises(TypeError, match="name is a str"):
            use(name)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"partitions": 0}, ValueError, "partitions is 0; 1 to 100000"),
        ({"partitions": -1}, ValueError, "partitions is -1"),
        ({"partitions": 100_001}, ValueError, "1 to 100000 is allowed"),
        ({"partitions": 1.0}, TypeError, "partitions is 1.0"),
        ({"partitions": True}, TypeError, "partitions is True"),
        ({"partitions": None}, TypeError, "partitions is None"),
        ({"retention_ms": 0}, ValueError, "retention_ms is 0"),
        ({"retention_ms": -1}, ValueError, "retention_ms is -1"),
        ({"retention_ms": "1"}, TypeError, "retention_ms is '1'; an int or None is needed"),
        ({"retention_bytes": 1.5}, TypeError, "retention_bytes is 1.5"),
        ({"segment_ms": 0}, ValueError, "segment_ms is 0"),
        ({"segment_bytes": 1}, ValueError, "segment_bytes is 1; 65536 to"),
        ({"segment_bytes": None}, TypeError, "segment_bytes is None"),
        ({"segment_bytes": 1 << 50}, ValueError, "segment_bytes is"),
        ({"max_record_bytes": 0}, ValueError, "max_record_bytes is 0"),
        ({"max_record_bytes": 1 << 31}, ValueError, "max_record_bytes is 2147483648"),
        ({"cleanup": "keep"}, ValueError, "cleanup is 'keep'; 'delete' or 'compact' or"),
        ({"compression": "gzip"}, ValueError, "compression is 'gzip'; 'none' or 'lz4' or 'zstd'"),
        ({"compression": None}, ValueError, "compression is None"),
        ({"timestamp_type": "now"}, ValueError, "timestamp_type is 'now'; 'create' or 'append'"),
        ({"durability": "ram"}, ValueError, "durability is 'ram'; 'os' or 'disk'"),
        ({"colour": "red"}, TypeError, "'colour' is no setting.*retention_ms"),
        ({"schema": 5}, TypeError, "schema is int; an Arrow schema is needed"),
        ({"schema": pa.schema([])}, ValueError, "at least one field"),
    ],
)
def test_settings_out_of_bounds_are_refused_with_what_is_allowed(
    store: sc.Store, settings: dict[str, Any], error: type[Exception], message: str, picture: Picture
) -> None:
    before = picture(store.path)
    with pytest.raises(error, match=message):
        store.create_topic("clicks", **settings)
    assert picture(store.path) == before
    assert store.topics() == []


def test_all_settings_are_kept(store: sc.Store) -> None:
    wanted = {
        "retention_ms": 1000, "retention_bytes": 1 << 20, "cleanup": "compact,delete", "compression": "lz4",
        "timestamp_type": "append", "segment_bytes": 1 << 20, "segment_ms": 500, "max_record_bytes": 1 << 10,
        "durability": "disk",
    }  # fmt: skip
    topic = store.create_topic("clicks", **wanted)
    assert topic.config == sc.TopicConfig(**wanted)  # type: ignore[arg-type]
    with sc.open(store.path) as again:
        assert again.topic("clicks").config == topic.config
    defaults = store.create_topic("defaults").config
    assert defaults == sc.TopicConfig(None, None, "delete", "none", "create", 1 << 30, None, 64 << 20, None)


def test_deleting_a_topic_removes_its_files_and_its_name(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=3)
    topic.append([b"a"], partition=1)
    store.create_topic("orders")
    store.delete_topic("clicks")
    assert [t.name for t in store.topics()] == ["orders"]
    assert [p.name.split("-")[0] for p in (store.path / "topics").iterdir()] == ["orders"]
    with pytest.raises(sc.TopicNotFoundError, match="'clicks'"):
        store.topic("clicks")
    with pytest.raises(sc.TopicNotFoundError):
        store.delete_topic("clicks")


def test_a_handle_of_a_deleted_topic_says_that_it_was_deleted(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2)
    unused = store.create_topic("unused")
    topic.append([b"a"])
    scan = topic.scan()
    store.delete_topic("clicks")
    store.delete_topic("unused")
    for use in (
        lambda: topic.append([b"b"]), lambda: topic.append([b"b"], headers=[{"a": b"b"}]), topic.scan,
        lambda: topic.partitions, topic.segments, topic.flush, lambda: topic.alter(retention_ms=1),
        lambda: topic.add_partitions(5), lambda: topic.wait({0: 1}, 10), lambda: unused.append([b"b"]),
        lambda: unused.partitions, lambda: unused.scan(), scan.to_arrow, lambda: list(scan),
    ):  # fmt: skip
        with pytest.raises(sc.TopicNotFoundError, match="deleted"):
            use()


def test_what_is_open_of_topics_that_others_delete_is_let_go(store: sc.Store) -> None:
    kept = store.create_topic("kept")
    with sc.open(store.path, maintenance=False) as other:
        for n in range(12):
            name = f"short-{n}"
            other.create_topic(name).append([b"x"])
            topic = weakref.ref(store.topic(name))
            assert [record.value for record in store.topic(name).scan()] == [b"x"]
            if n % 2:
                reader = iter(store.topic(name).scan())
                other.delete_topic(name)
                assert [topic.name for topic in store.topics()] == ["kept"]
                assert [record.value for record in reader] == [b"x"]  # who reads it keeps it
                del reader
            else:
                other.delete_topic(name)
                with pytest.raises(sc.TopicNotFoundError):
                    store.topic_by_id(topic().id).append([b"y"])  # type: ignore[union-attr]
            gc.collect()
            assert topic() is None
    assert store.topic("kept") is kept


def test_a_topic_made_anew_shares_nothing_with_the_deleted_one(store: sc.Store) -> None:
    first = store.create_topic("clicks", retention_ms=7)
    first.append([b"old"])
    store.delete_topic("clicks")
    second = store.create_topic("clicks")
    assert second.id != first.id
    assert second.config.retention_ms is None
    assert second.append([b"new"]) == [sc.Span(0, 0, 1)]
    assert [r.value for r in second.scan()] == [b"new"]
    with pytest.raises(sc.TopicNotFoundError):
        first.append([b"x"])


def test_many_topics_and_partitions_cost_little_space(store: sc.Store) -> None:
    for number in range(20):
        store.create_topic(f"t{number}", partitions=1000)
    used = sum(p.stat().st_blocks * 512 for p in store.path.rglob("*"))
    assert used < 8 << 20


# ---- flush, verify, digests -------------------------------------------------------------------------------------


def test_flush_makes_all_appends_durable(store: sc.Store) -> None:
    topics = [store.create_topic(name, partitions=2) for name in ("a", "b")]
    for topic in topics:
        topic.append([b"x"] * 10, partition=0)
        topic.append([b"x"] * 10, partition=1)
    store.flush()
    for topic in topics:
        assert [(p.end_offset, p.durable_offset) for p in topic.partitions] == [(10, 10)] * 2


def test_verify_finds_nothing_in_a_sound_store_and_reports_progress(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2, segment_bytes=1 << 16)
    for number in range(200):
        topic.append([b"x" * 1000], partition=number % 2)
    seen: list[tuple[int, int]] = []
    assert store.verify(lambda done, total: seen.append((done, total))) == []
    assert seen
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(done <= total for done, total in seen)
    assert seen[-1][0] >= 0.9 * seen[-1][1]


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_verify_names_file_offset_and_position_of_a_flipped_bit(store_path: Path, mode: Any) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks")
        for number in range(10):
            topic.append([b"record %d" % number])
        [segment] = topic.segments()
    path = Path(segment.path)
    data = bytearray(path.read_bytes())
    at = data.index(b"record 4")
    data[at] ^= 1
    path.write_bytes(data)
    with sc.open(store_path, mode=mode) as store:
        [problem] = store.verify()
    assert problem.path == str(path)
    assert problem.offset == 4
    assert problem.position is not None
    assert problem.position <= at < problem.position + 1000
    assert problem.message


def test_an_error_in_the_progress_function_stops_verify(store: sc.Store) -> None:
    store.create_topic("clicks").append([b"x" * 100_000])

    def stop(done: int, total: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        store.verify(stop)
    assert store.verify() == []


def test_digests_change_with_the_records_and_only_then(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks")
        topic.append([b"a"])
        first = list(store.digests())
        assert list(store.digests()) == first
    with sc.open(store_path) as store:
        assert list(store.digests()) == first
        store.topic("clicks").append([b"b"])
        [changed] = store.digests()
    assert changed.path == first[0].path
    assert changed.xxh3_128 != first[0].xxh3_128
    assert changed.size_bytes > first[0].size_bytes
    assert len(changed.xxh3_128) == 32


def test_a_digest_of_a_file_that_is_gone_is_a_storage_error_and_of_a_cut_one_that_of_the_rest(store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks", segment_bytes=1 << 16)
        for _ in range(4):
            topic.append([b"x" * 40_000])
    with sc.open(store_path, mode="r") as store:
        first, second, *_ = store.topic("clicks").segments()
        os.truncate(first.path, 1000)
        digests = store.digests()
        assert next(digests) == (first.path, 1000, xxhash.xxh3_128_hexdigest(Path(first.path).read_bytes()))
        Path(second.path).unlink()
        with pytest.raises(sc.StorageError, match="a segment cannot be read") as info:
            next(digests)
        assert info.value.path == second.path


# ---- mode "r" ---------------------------------------------------------------------------------------------------


def read_everything(store: sc.Store) -> int:
    total = 0
    for topic in store.topics():
        assert topic.config
        total += len(topic.partitions)
        topic.segments()
        topic.scan().to_arrow()
        list(topic.scan())
        total += topic.scan().count()
        topic.wait({0: 1 << 40}, 1)
    store.verify()
    list(store.digests())
    return total


def fill(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2, segment_bytes=1 << 16)
    for number in range(150):
        topic.append([b"x" * 1000], keys=[b"k"], partition=number % 2)
    packed = store.create_topic("packed", compression="zstd", schema=pa.schema([("n", pa.int64())]))
    packed.append([{"n": 1}, None])
    store.create_topic("empty")


def test_reading_a_closed_store_writes_nothing(store_path: Path, picture: Picture) -> None:
    with sc.open(store_path) as store:
        fill(store)
    before = picture(store_path)
    with sc.open(store_path, mode="r") as store:
        assert read_everything(store) == 4 + 152
    assert picture(store_path) == before


def test_reading_while_a_writer_has_it_open_writes_nothing(store_path: Path, picture: Picture) -> None:
    with sc.open(store_path) as writer:
        fill(writer)
        writer.flush()
        before = picture(store_path)
        with sc.open(store_path, mode="r") as store:
            assert read_everything(store) == 4 + 152
        after = picture(store_path)
    assert after.keys() == before.keys()
    # SQLite shares the writer's "-shm" mapping within a process; test_processes.py has the reader in another one
    assert {name for name in after if after[name] != before[name]} <= {"catalog.sqlite-shm"}


@pytest.mark.parametrize("used", [True, False])
def test_every_write_through_a_store_opened_for_reading_is_refused(
    store_path: Path, picture: Picture, used: bool
) -> None:
    with sc.open(store_path) as store:
        fill(store)
    before = picture(store_path)
    with sc.open(store_path, mode="r") as store:
        topic = store.topic("clicks")
        if used:
            topic.scan().count()
        for use in (
            lambda: store.create_topic("more"), lambda: store.delete_topic("clicks"), store.flush,
            lambda: topic.append([b"x"]), lambda: topic.append([]), lambda: topic.append([b"x"], headers=[{"a": b""}]),
            lambda: topic.append([b"x"], durability="disk"), lambda: topic.append_table(pa.table({"value": [b"x"]})),
            lambda: store.topic("packed").append([{"n": 1}]), lambda: topic.alter(retention_ms=1),
            lambda: topic.add_partitions(4), topic.flush, lambda: store.set_setting("a", "b"),
        ):  # fmt: skip
            with pytest.raises(sc.StoreReadOnlyError, match="mode 'r'|for reading"):
                use()
        assert topic.scan().count() == 150
    assert picture(store_path) == before


def test_settings_of_applications_are_kept(store_path: Path) -> None:
    with sc.open(store_path) as store:
        assert store.get_setting("colour") is None
        assert store.get_setting("colour", "blue") == "blue"
        store.set_setting("colour", "red")
        store.set_setting("gone", "x")
        store.set_setting("gone", None)
    with sc.open(store_path, mode="r") as store:
        assert store.get_setting("colour") == "red"
        assert store.get_setting("gone") is None


def test_settings_of_applications_and_queries_are_text(store: sc.Store, picture: Picture) -> None:
    before = picture(store.path)
    wrong: list[Callable[[Any], Any]] = [
        store.get_setting, lambda key: store.set_setting(key, "x"), lambda value: store.set_setting("key", value),
        store.sql,
    ]  # fmt: skip
    for use in wrong:
        for value in (5, b"bytes", ["text"]):
            with pytest.raises(TypeError, match="a str is needed"):
                use(value)
    with pytest.raises(TypeError, match="key is NoneType; a str is needed"):
        store.set_setting(None, "x")  # type: ignore[arg-type]
    assert picture(store.path) == before
