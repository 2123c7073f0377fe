"""Disks that are full or read-only, and limits of the process: a clear error, nothing lost, and it goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc
from streamcore.transactions import finish_transactions, now_ms

from .forkserver import Channel, ForkServer
from .logs import TOPIC, values_of
from .mounts import Mount

Picture = Callable[[Path], dict[str, tuple[int, bytes]]]


def check_is_full(error: OSError) -> None:
    """The error says that there is no room."""
    assert error.errno == errno.ENOSPC, error


@contextlib.contextmanager
def full(mount: Mount, left: int = 0) -> Iterator[None]:
    """Fills the file system but for some bytes; makes room again at the end."""
    ballast = mount.path / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size >= 512:
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                check_is_full(error)
            size //= 2
        file.truncate(max(0, file.tell() - left))
        os.fsync(file.fileno())
    yield
    ballast.unlink()


def append_until_full(topic: sc.Topic, values: list[bytes], **settings: Any) -> sc.StorageError:
    """Appends until it fails; what was acknowledged goes into `values`."""
    chance = random.Random(1)
    for _ in range(10_000):
        batch = [chance.randbytes(chance.randrange(4000)) for _ in range(20)]
        try:
            topic.append(batch, **settings)
        except sc.StorageError as error:
            return error
        values += batch
    raise AssertionError("the disk is never full")


def check(store_path: Path, values: list[bytes], mode: str = "rw") -> None:
    """All that was acknowledged is there, and nothing else."""
    with sc.open(store_path, mode) as store:
        assert values_of(store.topic(TOPIC)) == values
        assert store.verify() == []


# ---- full -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["os", "disk"])
@pytest.mark.parametrize("segment_bytes", [64 << 10, 1 << 30])
def test_an_append_on_a_full_disk_fails_and_harms_nothing_and_works_when_there_is_room(
    segment_bytes: int, durability: str, mount: Mount
) -> None:
    store_path = mount.path / "store"
    values: list[bytes] = []
    with sc.open(store_path, durability=durability) as store:
        topic = store.create_topic(TOPIC, segment_bytes=segment_bytes)
        topic.append([b"first"])
        values.append(b"first")
        with full(mount, left=1 << 20):
            for _ in range(3):
                error = append_until_full(topic, values)
                check_is_full(error)
                assert "No space left" in str(error)
                assert error.filename is not None
                assert values_of(topic) == values
                check(store_path, values, "r")
            topic.flush()
            assert values_of(topic) == values
        assert len(values) > 20
        topic.append([b"there is room"])
        values.append(b"there is room")
        assert values_of(topic) == values
    check(store_path, values)
    with sc.open(store_path) as store:
        store.topic(TOPIC).append([b"and again"])
    check(store_path, [*values, b"and again"])


def test_an_append_too_large_for_the_disk_fails_whole_and_a_smaller_one_works(mount: Mount) -> None:
    store_path = mount.path / "store"
    with sc.open(store_path) as store:
        topic = store.create_topic(TOPIC)
        topic.append([b"before"])
        for _ in range(3):
            with pytest.raises(sc.StorageError) as raised:
                topic.append_table(pa.table({"value": pa.array([bytes(200)] * 150_000, pa.binary())}))
            assert raised.value.errno == errno.ENOSPC
        topic.append([b"after"])
        assert values_of(topic) == [b"before", b"after"]
    check(store_path, [b"before", b"after"])


@pytest.mark.parametrize("durability", ["os", "disk"])
def test_a_disk_that_fills_in_a_transaction_aborts_it_and_the_next_one_is_whole(durability: Any, mount: Mount) -> None:
    store_path = mount.path / "store"
    with sc.open(store_path) as store:
        topics = [store.create_topic(name) for name in ("a", "b")]
        with store.transaction("etl", durability=durability) as transaction:
            for topic in topics:
                transaction.append(topic, [b"kept"])
        with full(mount, left=1 << 20):
            with pytest.raises(sc.StorageError) as caught:
                with store.transaction("etl", durability=durability) as transaction:
                    for number in range(10_000):
                        transaction.append(topics[number % 2], [bytes(40_000)])
            check_is_full(caught.value)
            assert transaction.state in ("open", "aborted", "failed")
            assert [topic.scan().count() for topic in topics] == [1, 1]
        finish_transactions(store, now_ms() + 10**9)
        with store.transaction("etl", durability=durability) as transaction:
            for topic in topics:
                transaction.append(topic, [b"behind"])
    with sc.open(store_path) as store:
        for name in ("a", "b"):
            topic = store.topic(name)
            assert values_of(topic) == [b"kept", b"behind"]
            assert topic.partitions[0].stable_offset == topic.partitions[0].end_offset
        assert store.verify() == []


@pytest.mark.parametrize("left", [0, 64 << 10, 256 << 10])
def test_a_store_on_a_full_disk_is_read_and_opened_for_writing_or_refused(left: int, mount: Mount) -> None:
    store_path = mount.path / "store"
    values: list[bytes] = []
    with full(mount, left=1 << 20):
        with sc.open(store_path) as store:
            append_until_full(store.create_topic(TOPIC, segment_bytes=64 << 10), values)
        with full_again(mount, left):
            check(store_path, values, "r")
            try:
                with sc.open(store_path) as store:
                    assert values_of(store.topic(TOPIC)) == values
                    store.topic(TOPIC).append([b"perhaps"])
                    values.append(b"perhaps")
            except sc.StorageError as error:
                check_is_full(error)
            check(store_path, values, "r")
    check(store_path, values)


@contextlib.contextmanager
def full_again(mount: Mount, left: int = 0) -> Iterator[None]:
    """Fills what closing gave back."""
    ballast = mount.path / "ballast"
    moved = ballast.rename(mount.path / "ballast-1")
    with full(mount, left):
        yield
    moved.rename(ballast)


def test_making_and_altering_topics_on_a_full_disk_fails_and_leaves_them_as_they_were(mount: Mount) -> None:
    store_path = mount.path / "store"
    with sc.open(store_path) as store:
        topic = store.create_topic(TOPIC)
        topic.append([b"value"])
        made = []
        with full(mount):
            for n in range(2000):
                try:
                    store.create_topic(f"t{n}", partitions=3).append([b"x"], partition=0)
                except sc.StorageError as error:
                    check_is_full(error)
                    break
                made.append(f"t{n}")
            else:
                raise AssertionError("the disk is never full")
            for n in range(2000):
                try:
                    topic.alter(retention_ms=n + 1)
                except sc.StorageError as error:
                    check_is_full(error)
                    assert topic.config.retention_ms == (n or None)
                    break
            assert values_of(topic) == [b"value"]
        topic.alter(retention_ms=77)
        topic.append([b"more"])
        assert {topic.name for topic in store.topics()} >= {TOPIC, *made}
        store.create_topic("after").append([b"x"])
    with sc.open(store_path) as store:
        assert store.topic(TOPIC).config.retention_ms == 77
        assert values_of(store.topic(TOPIC)) == [b"value", b"more"]
        for name in made:
            assert values_of(store.topic(name)) == [b"x"]
        assert store.verify() == []


def test_a_new_store_on_a_full_disk_is_an_error(mount: Mount) -> None:
    with full(mount):
        with pytest.raises(sc.StorageError) as raised:
            for n in range(1000):
                sc.open(mount.path / f"store-{n}").close()
        assert raised.value.errno == errno.ENOSPC
    with sc.open(mount.path / "store") as store:
        store.create_topic(TOPIC).append([b"value"])
    check(mount.path / "store", [b"value"])


def test_deleting_a_topic_on_a_full_disk_works_or_leaves_it_whole(mount: Mount) -> None:
    store_path = mount.path / "store"
    values: list[bytes] = []
    with sc.open(store_path) as store:
        topic = store.create_topic(TOPIC)
        with full(mount, left=1 << 20):
            append_until_full(topic, values)
            with full_again(mount):
                try:
                    store.delete_topic(TOPIC)
                except sc.StorageError as error:
                    check_is_full(error)
                    assert values_of(topic) == values
                    check(store_path, values, "r")
        if store.topics():
            store.delete_topic(TOPIC)
        store.create_topic(TOPIC).append([bytes(100_000)])
    check(store_path, [bytes(100_000)])


def test_control_the_disk_is_full_and_a_lost_record_is_caught(mount: Mount) -> None:
    with full(mount), pytest.raises(OSError, match="No space left"):
        (mount.path / "file").write_bytes(bytes(8192))
    with sc.open(mount.path / "store") as store:
        store.create_topic(TOPIC).append([b"value"])
    with pytest.raises(AssertionError):
        check(mount.path / "store", [b"value", b"lost"])


# ---- read-only --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_by", ["close", "kill"])
def test_a_store_on_a_read_only_file_system_is_read_in_full_and_refused_for_writing(
    left_by: str, mount: Mount, children: ForkServer, picture: Picture
) -> None:
    store_path = mount.path / "store"
    child = children.start(write_and_wait, store_path=str(store_path))
    child.read_until(lambda: child.said("WRITTEN"))
    if left_by == "close":
        assert child.stop() == 0, child.failure()
    else:
        child.kill()
    values = [b"%d" % n for n in range(500)]
    mount.make_read_only()
    before = picture(store_path)
    with sc.open(store_path, "r") as store:
        topic = store.topic(TOPIC)
        assert values_of(topic) == values
        assert [record.value for record in topic.scan(start=100, end=120)] == values[100:120]
        assert topic.scan().count() == len(values)
        assert topic.partitions[0].end_offset == len(values)
        assert topic.segments()[-1].end_offset == len(values)
        assert [topic.name for topic in store.topics()] == [TOPIC, "other"]
        assert store.verify() == []
        assert len(list(store.digests())) == len(topic.segments())
        with pytest.raises(sc.StoreReadOnlyError):
            topic.append([b"x"])
    with pytest.raises(sc.StorageError) as raised:
        with sc.open(store_path) as store:
            store.topic(TOPIC).append([b"x"])
    assert raised.value.errno == errno.EROFS
    assert str(store_path) in str(raised.value)
    assert picture(store_path) == before


def write_and_wait(channel: Channel, store_path: str) -> None:
    """Writes over several segments, says so, and waits until it is told to close, or killed."""
    with sc.open(store_path) as store:
        topic = store.create_topic(TOPIC, segment_bytes=64 << 10)
        store.create_topic("other", partitions=2)
        for n in range(500):
            topic.append([b"%d" % n])
        channel.send("WRITTEN")
        channel.wait_to_be_told()


# ---- limits of the process -------------------------------------------------------------------------------------


def append_beyond_the_file_size(channel: Channel, store_path: str, limit: int) -> None:
    """Appends until the limit of a file's size, raises it, and goes on; says how many records it appended."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    values: list[bytes] = []
    with sc.open(store_path) as store:
        topic = store.create_topic(TOPIC)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        error = append_until_full(topic, values)
        assert error.errno == errno.EFBIG, error
        assert values_of(topic) == values
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        topic.append([b"there is room"])
        channel.send("APPENDED", len(values) + 1)


@pytest.mark.parametrize("limit", [300_000, 1 << 20])
def test_a_limit_of_the_file_size_is_an_error_and_harms_nothing(
    limit: int, store_path: Path, children: ForkServer
) -> None:
    child = children.start(append_beyond_the_file_size, store_path=str(store_path), limit=limit)
    assert child.wait() == 0, child.failure()
    ((count,),) = child.said("APPENDED")
    with sc.open(store_path) as store:
        values = values_of(store.topic(TOPIC))
        assert store.verify() == []
    assert len(values) == int(count)
    assert values[-1] == b"there is room"


def use_without_descriptors(channel: Channel, store_path: str) -> None:
    """Uses a store at every number of free descriptors, from none to enough."""
    with sc.open(store_path) as store:
        store.create_topic(TOPIC, segment_bytes=64 << 10).append([b"first"])
    count, failed = 1, 0
    numbers: set[int] = set()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    used = next_descriptor()
    for free in range(24):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + free, hard))
        try:
            with sc.open(store_path) as store:
                topic = store.topic(TOPIC)
                topic.append([bytes(9000)])
                count += 1
                assert topic.scan().count() == count
                assert topic.scan().to_arrow().num_rows == count
                assert len(topic.segments()) > 0
        except sc.StorageError as error:
            failed += 1
            numbers.add(error.errno or 0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        with sc.open(store_path) as store:
            found = store.topic(TOPIC).scan().count()
            assert found == count, (free, found, count)
            assert store.verify() == []
    assert numbers <= {errno.EMFILE, 0}, numbers  # 0: SQLite does not say
    channel.send("FAILED_AND_COUNT", failed, count)


def test_without_free_descriptors_everything_fails_cleanly_or_works(store_path: Path, children: ForkServer) -> None:
    child = children.start(use_without_descriptors, store_path=str(store_path))
    assert child.wait() == 0, child.failure()
    ((failed, count),) = child.said("FAILED_AND_COUNT")
    assert int(failed) > 0
    assert int(count) > 1


def append_without_descriptors(channel: Channel, store_path: str) -> None:
    """Appends through one handle while descriptors are short, and again when they are not."""
    with sc.open(store_path) as store:
        topic = store.create_topic(TOPIC, segment_bytes=64 << 10)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        values: list[bytes] = []
        failed = 0
        for n in range(40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor() + n % 4, hard))
            try:
                topic.append([bytes(30_000), b"%d" % n], durability="disk")
                values += [bytes(30_000), b"%d" % n]
            except sc.StorageError as error:
                failed += 1
                assert error.errno == errno.EMFILE, error  # noqa: PT017
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            found = values_of(topic)
            assert found[: len(values)] == values
            values = found  # an append that could not be synced is there, but was not acknowledged
            topic.append([b"after"], durability="disk")
            values.append(b"after")
        assert store.verify() == []
    channel.send("FAILED", failed)


def next_descriptor() -> int:
    """One more than the highest that is open."""
    return max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1


def test_an_append_that_failed_for_want_of_a_descriptor_can_be_repeated(store_path: Path, children: ForkServer) -> None:
    child = children.start(append_without_descriptors, store_path=str(store_path))
    assert child.wait() == 0, child.failure()
    ((failed,),) = child.said("FAILED")
    assert int(failed) > 0
