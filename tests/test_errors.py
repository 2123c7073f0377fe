"""Errors: what they are, what they carry, and that a refused call leaves no trace. Forks and closed stores too."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


# ---- what errors are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (sc.StreamcoreError, Exception),
        (sc.StorageError, OSError),
        (sc.CorruptionError, sc.StreamcoreError),
        (sc.TopicExistsError, sc.StreamcoreError),
        (sc.TopicNotFoundError, LookupError),
        (sc.OffsetOutOfRangeError, IndexError),
        (sc.RecordTooLargeError, sc.StreamcoreError),
        (sc.StoreReadOnlyError, sc.StreamcoreError),
        (sc.StoreFormatError, sc.StreamcoreError),
        (sc.FencedError, sc.StreamcoreError),
        (sc.GroupError, sc.StreamcoreError),
        (sc.TransactionError, sc.StreamcoreError),
    ],
)
def test_every_error_is_a_streamcore_error_and_what_the_contract_says(
    error: type[Exception], also: type[Exception]
) -> None:
    assert issubclass(error, sc.StreamcoreError)
    assert issubclass(error, also)
    assert error.__name__ in sc.__all__
    assert error.__module__ == "streamcore.errors"
    assert error.__doc__


ERRORS: list[tuple[sc.StreamcoreError, tuple[str, ...]]] = [
    (sc.StreamcoreError("the store is closed"), ()),
    (sc.StorageError(errno.ENOSPC, "cannot append", "/a/file"), ("errno", "filename", "path", "strerror")),
    (sc.StorageError(0, "the catalog cannot be used", None), ("errno", "filename", "path")),
    (sc.CorruptionError("a bad batch", "/a/file", 5, 1024), ("path", "offset", "position", "message")),
    (sc.CorruptionError("a bad catalog"), ("path", "offset", "position", "message")),
    (sc.TopicNotFoundError("there is no topic 'x'"), ()),
    (sc.OffsetOutOfRangeError("start is offset 9", 2, 7), ("earliest", "latest")),
    (sc.RecordTooLargeError("a record of 9 bytes"), ()),
    (sc.StoreFormatError("format 99"), ("path",)),
]


@pytest.mark.parametrize(("error", "attributes"), ERRORS, ids=lambda value: type(value).__name__)
def test_errors_travel_between_processes_with_all_they_carry(
    error: sc.StreamcoreError, attributes: tuple[str, ...]
) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        for name in attributes:
            assert getattr(again, name) == getattr(error, name)


def test_a_storage_error_reads_like_an_os_error() -> None:
    error = sc.StorageError(errno.ENOSPC, "cannot reserve disk space for an append", "/data/x.arrows")
    assert error.errno == errno.ENOSPC
    assert error.filename == error.path == "/data/x.arrows"
    assert "cannot reserve disk space for an append: No space left on device" in str(error)
    assert "/data/x.arrows" in str(error)


def test_a_corruption_error_names_file_offset_and_position() -> None:
    assert str(sc.CorruptionError("bad batch", "/f", 5, 9)) == "bad batch (file /f, offset 5, position 9)"
    assert str(sc.CorruptionError("bad batch")) == "bad batch"


def test_errors_can_be_caught_as_the_builtin_kind(topic: sc.Topic, store: sc.Store, tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        topic.scan(start=1)
    with pytest.raises(LookupError):
        store.topic("x")
    with pytest.raises(FileNotFoundError if False else OSError):
        sc.open(tmp_path / "absent", mode="r")
    for error in (IndexError, LookupError, OSError, sc.StreamcoreError):
        assert not issubclass(TypeError, error)


# ---- refused calls leave no trace -------------------------------------------------------------------------------


def refused_calls(store: sc.Store) -> Iterator[Callable[[], Any]]:
    plain, typed = store.topic("plain"), store.topic("typed")
    yield lambda: plain.append([b"ok", "text"], keys=[b"a", b"b"])
    yield lambda: plain.append([b"ok", b"x" * 200], keys=[b"a", b"b"])
    yield lambda: plain.append([b"ok"], keys=[b"a", b"b"])
    yield lambda: plain.append([b"ok"], timestamps=[1, 2])
    yield lambda: plain.append([b"ok"], headers=[None, None])
    yield lambda: plain.append([b"ok"], partition=9)
    yield lambda: plain.append([b"ok"], durability="soon")  # type: ignore[arg-type]
    yield lambda: plain.append_table(pa.table({"value": [b"ok", b"x"], "partition": [0, 99]}))
    yield lambda: plain.append_table(pa.table({"value": [b"ok", b"x" * 200], "key": [b"a", b"b"]}))
    yield lambda: plain.append_table(pa.table({"wrong": [b"ok"]}))
    yield lambda: typed.append([{"n": 1}, {"n": "text"}], keys=[b"a", b"b"])
    yield lambda: typed.append([{"n": 1}, {"m": 1}], keys=[b"a", b"b"])
    yield lambda: typed.append_table(pa.table({"n": [1.5]}))
    yield lambda: typed.append_table(pa.table({"n": [1, 2], "s": ["a", "x" * 200], "partition": [0, 1]}))
    yield lambda: store.create_topic("bad/name")
    yield lambda: store.create_topic("plain")
    yield lambda: store.create_topic("new", segment_bytes=1)
    yield lambda: store.create_topic("new", schema=pa.schema([("x", pa.list_view(pa.int8()))]))
    yield lambda: store.topic("missing")
    yield lambda: store.delete_topic("missing")
    yield lambda: plain.alter(colour="red")
    yield lambda: plain.alter(schema=pa.schema([("x", pa.int8())]))
    yield lambda: typed.alter(schema=pa.schema([("n", pa.int8())]))
    yield lambda: plain.add_partitions(1)
    yield lambda: plain.scan(start=1)
    yield lambda: plain.scan(9)


def test_refused_calls_change_nothing(store: sc.Store, picture: Callable[[Path], dict[str, tuple[int, bytes]]]) -> None:
    store.create_topic("plain", partitions=3, max_record_bytes=100)
    store.create_topic("typed", 3, schema=pa.schema([("n", pa.int64()), ("s", pa.string())]), max_record_bytes=100)
    for topic in store.topics():
        assert [p.end_offset for p in topic.partitions] == [0, 0, 0]
    before = picture(store.path)
    count = 0
    for call in refused_calls(store):
        with pytest.raises((sc.StreamcoreError, TypeError, ValueError)) as info:
            call()
        assert len(str(info.value)) > 10
        for topic in store.topics():
            assert [p.end_offset for p in topic.partitions] == [0, 0, 0]
        count += 1
    assert count > 20
    after = picture(store.path)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}


# ---- permissions ------------------------------------------------------------------------------------------------


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)


def without_rights(work: Callable[[], None]) -> None:
    """Runs it in a child that is not root, for which permissions bind."""
    if os.getuid() != 0:
        work()
        return
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork to give up root's rights")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            work()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def lock_up(folder: Path) -> None:
    """Nobody may write below it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)


@needs_fork
def test_a_store_in_a_read_only_folder_is_read_and_not_written(
    shared_folder: Path, picture: Callable[[Path], dict[str, tuple[int, bytes]]]
) -> None:
    path = shared_folder / "store"
    with sc.open(path) as store:
        store.create_topic("clicks", 2, segment_bytes=1 << 16).append([b"x" * 1000] * 100)
        store.create_topic("empty")
    lock_up(path)
    before = picture(path)

    def read() -> None:
        with sc.open(path, mode="r") as store:
            topic = store.topic("clicks")
            assert topic.scan().count() == 100
            assert len(list(topic.scan())) == 100
            assert topic.scan().to_arrow().num_rows == 100
            assert store.topic("empty").scan().count() == 0
            assert store.verify() == []

    without_rights(read)
    assert picture(path) == before


@needs_fork
def test_no_permission_is_a_storage_error_that_names_the_path(shared_folder: Path) -> None:
    path = shared_folder / "store"
    with sc.open(path) as store:
        store.create_topic("clicks").append([b"x"])
    lock_up(path)

    def write() -> None:
        with pytest.raises(sc.StorageError) as info:
            sc.open(path)
        assert info.value.path is not None
        assert info.value.path.startswith(str(path))
        with pytest.raises(sc.StorageError) as info:
            sc.open(shared_folder / "another")
        assert info.value.errno in (errno.EACCES, errno.EPERM)

    without_rights(write)
    (path / "catalog.sqlite").chmod(0o000)

    def read() -> None:
        with pytest.raises(sc.StorageError) as info:
            sc.open(path, mode="r")
        assert info.value.path is not None

    without_rights(read)


@needs_fork
def test_a_topic_folder_that_cannot_be_written_is_a_storage_error_at_the_append(shared_folder: Path) -> None:
    path = shared_folder / "store"
    with sc.open(path) as store:
        store.create_topic("clicks")
    for one in [path, *path.rglob("*")]:
        one.chmod(0o777 if one.is_dir() else 0o666)
    folder = next((path / "topics").iterdir())
    folder.chmod(0o555)

    def write() -> None:
        store = sc.open(path)
        with pytest.raises(sc.StorageError) as info:
            store.topic("clicks").append([b"x"])
        assert info.value.errno in (errno.EACCES, errno.EPERM)
        assert info.value.path is not None
        assert info.value.path.startswith(str(folder))
        store.close()

    without_rights(write)


# ---- forks ------------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], None], deadline_s: float = 20) -> None:
    """Runs it in a forked child; fails when the child raises, crashes or hangs."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the forked child hangs")


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_use_after_a_fork_is_an_error_that_names_the_fork(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"x"] * 10)
    scan, iterator = topic.scan(), iter(topic.scan())
    batches = topic.scan().batches()
    next(iterator)
    next(batches)

    def use() -> None:
        for call in (
            lambda: topic.append([b"y"]), lambda: topic.append([b"y"], durability="disk"), lambda: topic.append([]),
            lambda: topic.append_table(pa.table({"value": [b"y"]})), topic.scan, lambda: topic.partitions,
            topic.segments, topic.flush, lambda: topic.wait({0: 100}, 10), lambda: topic.alter(retention_ms=1),
            lambda: topic.add_partitions(3), store.topics, lambda: store.topic("clicks"), store.flush, store.verify,
            lambda: list(store.digests()), lambda: store.sql("select 1"), lambda: store.get_setting("a"),
            lambda: store.set_setting("a", "b"),
            lambda: store.create_topic("more"), lambda: store.delete_topic("clicks"), store.__enter__,
            scan.to_arrow, scan.count, lambda: list(scan), lambda: list(scan.batches()),
        ):  # fmt: skip
            with pytest.raises(sc.StreamcoreError, match="fork"):
                call()
        store.close()

    in_child(use)
    topic.append([b"z"])
    assert topic.scan().count() == 11
    assert store.verify() == []


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_tables_made_before_a_fork_are_readable_in_the_child(topic: sc.Topic) -> None:
    topic.append([b"x" * 100] * 1000)
    table = topic.scan().to_arrow()

    def use() -> None:
        assert table["value"].to_pylist() == [b"x" * 100] * 1000

    in_child(use)


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_opens_the_store_anew_and_does_not_hold_the_locks_of_its_parent(store_path: Path) -> None:
    store = sc.open(store_path)
    topic = store.create_topic("clicks")
    topic.append([b"parent"])

    def use() -> None:
        with sc.open(store_path) as mine:
            mine.topic("clicks").append([b"child"])
            assert mine.topic("clicks").scan().count() == 2

    in_child(use)
    topic.append([b"parent again"])
    assert [r.value for r in topic.scan()] == [b"parent", b"child", b"parent again"]
    store.close()


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_while_other_threads_append_leaves_both_sides_whole(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2)
    stop = threading.Event()
    acknowledged = [0, 0]

    def append(partition: int) -> None:
        while not stop.is_set():
            topic.append([b"x" * 50] * 3, partition=partition)
            acknowledged[partition] += 3

    threads = [threading.Thread(target=append, args=(p,)) for p in range(2)]
    for thread in threads:
        thread.start()
    path = store.path

    def use() -> None:
        with pytest.raises(sc.StreamcoreError, match="fork"):
            topic.append([b"y"])
        with sc.open(path, mode="r") as mine:
            assert mine.topic("clicks").scan().count() % 3 == 0

    try:
        for _ in range(5):
            in_child(use)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [p.end_offset for p in topic.partitions] == acknowledged


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_ends_normally_does_not_close_the_store_of_its_parent(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"x"])
    child = os.fork()
    if child == 0:
        store.close()
        del store, topic
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    topic.append([b"y"])
    topic.flush()
    assert topic.partitions[0].durable_offset == 2
