"""Several processes on one store: appends interleave whole, and everybody sees what the others did."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc

ANSWER_S = 60.0
Wait = Callable[..., None]
Picture = Callable[[Path], dict[str, tuple[int, bytes]]]


# ---- processes that do what they are told -----------------------------------------------------------------------


class Held:
    """What a process has open."""

    store: sc.Store
    made: Any = None


def serve(link: Connection) -> None:
    """Calls each function that comes in and sends back what it returns or raises."""
    held = Held()
    while True:
        try:
            function, arguments = link.recv()
        except EOFError:
            return
        try:
            link.send((True, function(held, *arguments)))
        except BaseException as error:
            link.send((False, error))


class Peer:
    """Another process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Starts a call there."""
        self.link.send((function, arguments))

    def finish(self) -> Any:
        """What the call there returned; raises what it raised."""
        assert self.link.poll(ANSWER_S), "the other process does not answer"
        good, result = self.link.recv()
        if not good:
            raise result
        return result

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A call there, from begin to finish."""
        self.begin(function, *arguments)
        return self.finish()

    def kill(self) -> None:
        """As kill -9 does."""
        os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join(20)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.link.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()


@pytest.fixture(scope="module")
def pool() -> Iterator[list[Peer]]:
    """Three processes, used by one test after the other."""
    peers = [Peer() for _ in range(3)]
    yield peers
    for peer in peers:
        peer.stop()


@pytest.fixture
def peers(pool: list[Peer]) -> Iterator[list[Peer]]:
    yield pool
    for number, peer in enumerate(pool):
        if not peer.process.is_alive():
            pool[number] = Peer()
        else:
            peer.call(close)


# ---- what they can be told --------------------------------------------------------------------------------------


def open_store(held: Held, path: str, mode: Any = "rw") -> None:
    close(held)
    held.store = sc.open(path, mode=mode)


def close(held: Held) -> None:
    held.made = None
    if hasattr(held, "store"):
        held.store.close()
        del held.store


def create(held: Held, name: str, *arguments: Any, **settings: Any) -> str:
    return held.store.create_topic(name, *arguments, **settings).id


def names(held: Held) -> list[str]:
    return [topic.name for topic in held.store.topics()]


def append(held: Held, name: str, values: Any, keys: Any = None, partition: int | None = None) -> list[sc.Span]:
    return held.store.topic(name).append(values, keys=keys, partition=partition)


def wait_for_files(*paths: str) -> None:
    end = time.monotonic() + ANSWER_S
    while not all(Path(path).exists() for path in paths):
        assert time.monotonic() < end
        time.sleep(0.001)


def append_many(held: Held, name: str, writer: int, calls: int, per_call: int, form: str, go: str) -> int:
    """Appends calls of which each record names its writer, call and place."""
    topic = held.store.topic(name)
    wait_for_files(go)
    for call in range(calls):
        values: Any = [b"%d %d %d" % (writer, call, i) for i in range(per_call)]
        if form == "arrow":
            topic.append(pa.array(values), keys=pa.array(values))
        elif form == "table":
            topic.append_table(pa.table({"value": values}))
        elif form == "durable":
            topic.append(values, durability="disk")
        else:
            topic.append(values)
    return calls


def values(held: Held, name: str, **bounds: Any) -> list[Any]:
    return [record.value for record in held.store.topic(name).scan(**bounds)]


def count(held: Held, name: str) -> int:
    return held.store.topic(name).scan().count()


def hold(held: Held, name: str) -> None:
    """Keeps a handle of a topic that was used."""
    held.made = held.store.topic(name)
    held.made.scan().count()


def held_ends(held: Held) -> list[int]:
    return [partition.end_offset for partition in held.made.partitions]


def held_append(held: Held, values: Any, partition: int | None = None) -> list[sc.Span]:
    return held.made.append(values, partition=partition)


def held_config(held: Held) -> sc.TopicConfig:
    held.made.scan()
    return held.made.config


def held_values(held: Held) -> list[Any]:
    return [record.value for record in held.made.scan()]


def held_columns(held: Held) -> list[str]:
    held.made.scan()
    return held.made.schema.names


def held_wait(held: Held, offset: int, timeout_ms: float) -> tuple[bool, int, float]:
    began = time.monotonic()
    woken = held.made.wait({0: offset}, timeout_ms)
    return woken, held.made.partitions[0].end_offset, time.monotonic() - began


def append_halves(held: Held, name: str, calls: int, per_call: int, *seen: str) -> int:
    """Appends so many calls; makes the second half when the files are there by which others say what they have seen."""
    topic = held.store.topic(name)
    for call in range(calls):
        if call == calls // 2:
            wait_for_files(*seen)
        topic.append([b"0 %d %d" % (call, i) for i in range(per_call)])
    return calls


def watch(held: Held, name: str, until: int, per_call: int, seen: str) -> tuple[int, int]:
    """Scans again and again until so many records are there: never half a call, never fewer than before.

    Makes a file when it has seen some, and counts the looks that found more than the one before.
    """
    topic = held.store.topic(name)
    last = looks = 0
    end = time.monotonic() + ANSWER_S
    while last < until:
        assert time.monotonic() < end
        table = topic.scan(columns=["offset", "value"]).to_arrow()
        assert table.num_rows % per_call == 0
        assert table.num_rows >= last
        if table.num_rows > last:
            assert table["offset"][-1].as_py() == table.num_rows - 1
            assert table["value"].null_count == 0
            assert topic.scan(start=last, end=table.num_rows).count() == table.num_rows - last
            looks += 1
            Path(seen).touch()
        last = table.num_rows
    return last, looks


def alter(held: Held, name: str, **settings: Any) -> None:
    held.store.topic(name).alter(**settings)


def alter_segment(held: Held, name: str, retention_ms: int) -> None:
    held.store.topic(name).alter(retention_ms=retention_ms)


def alter_schema(held: Held, name: str, schema: bytes) -> None:
    held.store.topic(name).alter(schema=pa.ipc.read_schema(pa.py_buffer(schema)))


def add_partitions(held: Held, name: str, total: int) -> None:
    held.store.topic(name).add_partitions(total)


def delete(held: Held, name: str) -> None:
    held.store.delete_topic(name)


def race_to_create(held: Held, name: str, go: str) -> str | None:
    wait_for_files(go)
    try:
        return held.store.create_topic(name).id
    except sc.TopicExistsError:
        return None


def race_to_open(held: Held, path: str, go: str) -> int:
    wait_for_files(go)
    with sc.open(path) as store:
        return len(store.topics())


def read_all(held: Held, path: str) -> int:
    total = 0
    with sc.open(path, mode="r") as store:
        for topic in store.topics():
            total += len(list(topic.scan()))
            topic.scan().to_arrow()
            topic.segments()
            topic.wait({0: 1 << 40}, 1)
            assert all(partition.end_offset >= 0 for partition in topic.partitions)
        assert store.verify() == []
        assert list(store.digests())
    return total


def fail_in_some_way(held: Held, name: str) -> None:
    held.store.topic(name).scan(start=99)


def ask_for_nothing(held: Held, path: str) -> None:
    sc.open(path, mode="r")


# ---- appends ----------------------------------------------------------------------------------------------------


def check_interleaved(topic: sc.Topic, writers: int, calls: int, per_call: int) -> None:
    """Every call lies side by side, the calls of a writer in order, and none is missing or there twice."""
    records = topic.scan(columns=["offset", "value"]).to_arrow()
    assert records["offset"].to_pylist() == list(range(writers * calls * per_call))
    found = records["value"].to_pylist()
    progress = [0] * writers
    for start in range(0, len(found), per_call):
        writer, call, _ = map(int, found[start].split())
        assert found[start : start + per_call] == [b"%d %d %d" % (writer, call, i) for i in range(per_call)]
        assert call == progress[writer]
        progress[writer] += 1
    assert progress == [calls] * writers


@pytest.mark.parametrize("form", ["list", "arrow", "table", "durable", "lz4"])
def test_appends_of_several_processes_to_one_partition_interleave_whole(
    peers: list[Peer], store_path: Path, tmp_path: Path, form: str
) -> None:
    calls, per_call = (30 if form in ("durable", "lz4") else 150), 7
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks", segment_bytes=1 << 16, compression="lz4" if form == "lz4" else "none")
        for writer, peer in enumerate(peers):
            peer.call(open_store, str(store_path))
            peer.begin(append_many, "clicks", writer, calls, per_call, form, str(tmp_path / "go"))
        (tmp_path / "go").touch()
        for peer in peers:
            assert peer.finish() == calls
        check_interleaved(topic, len(peers), calls, per_call)
        assert len(topic.segments()) > 1 or form in ("durable", "lz4")
        assert store.verify() == []
    for peer in peers:
        assert peer.call(count, "clicks") == len(peers) * calls * per_call


def test_a_reader_in_another_process_sees_appends_as_they_come(
    peers: list[Peer], store_path: Path, tmp_path: Path
) -> None:
    writer, reader, rw_reader = peers
    with sc.open(store_path) as store:
        store.create_topic("clicks", segment_bytes=1 << 17)
    writer.call(open_store, str(store_path))
    reader.call(open_store, str(store_path), "r")
    rw_reader.call(open_store, str(store_path))
    assert reader.call(count, "clicks") == 0
    seen = [str(tmp_path / "reader saw some"), str(tmp_path / "other saw some")]
    for peer, path in zip((reader, rw_reader), seen, strict=True):
        peer.begin(watch, "clicks", 300 * 11, 11, path)
    assert writer.call(append_halves, "clicks", 300, 11, *seen) == 300
    for peer in (reader, rw_reader):
        count_seen, looks = peer.finish()
        assert count_seen == 3300
        assert looks >= 2


def test_what_was_appended_is_visible_elsewhere_when_the_append_returns(peers: list[Peer], store_path: Path) -> None:
    writer, reader, other = peers
    writer.call(open_store, str(store_path))
    writer.call(create, "clicks")
    reader.call(open_store, str(store_path), "r")
    other.call(open_store, str(store_path))
    for number in range(20):
        assert writer.call(append, "clicks", [b"%d" % number]) == [sc.Span(0, 2 * number, 2 * number + 1)]
        assert reader.call(count, "clicks") == 2 * number + 1
        assert other.call(append, "clicks", [b"other"]) == [sc.Span(0, 2 * number + 1, 2 * number + 2)]
        assert writer.call(count, "clicks") == 2 * number + 2
    assert reader.call(values, "clicks") == writer.call(values, "clicks") == other.call(values, "clicks")


def test_a_reader_that_came_first_sees_a_writer_that_comes_later(peers: list[Peer], store_path: Path) -> None:
    writer, reader, _ = peers
    with sc.open(store_path) as store:
        store.create_topic("clicks").append([b"first"])
    reader.call(open_store, str(store_path), "r")
    reader.call(hold, "clicks")
    for number in range(5):
        writer.call(open_store, str(store_path))
        writer.call(append, "clicks", [b"%d" % number])
        assert reader.call(held_ends) == [2 + number]
        writer.call(close)
        assert reader.call(held_values) == [b"first", *(b"%d" % n for n in range(number + 1))]


def test_a_reader_waits_for_the_append_of_another_process(peers: list[Peer], store_path: Path) -> None:
    writer, reader, other = peers
    writer.call(open_store, str(store_path))
    writer.call(create, "clicks")
    for mode, peer in (("r", reader), ("rw", other)):
        peer.call(open_store, str(store_path), mode)
        peer.call(hold, "clicks")
    for round_number in range(3):
        for peer in (reader, other):
            peer.begin(held_wait, round_number, 20_000)
        time.sleep(0.1)
        assert not reader.link.poll()
        assert not other.link.poll()
        writer.call(append, "clicks", [b"x"])
        for peer in (reader, other):
            woken, end, took = peer.finish()
            assert woken
            assert end == round_number + 1
            assert took < 5
    assert reader.call(held_wait, 3, 100)[0] is False


def test_a_killed_writer_holds_no_lock_and_loses_nothing_acknowledged(
    peers: list[Peer], store_path: Path, tmp_path: Path
) -> None:
    victim, writer, reader = peers
    with sc.open(store_path) as store:
        store.create_topic("clicks", segment_bytes=1 << 17)
    for peer, mode in ((victim, "rw"), (writer, "rw"), (reader, "r")):
        peer.call(open_store, str(store_path), mode)
    before = victim.call(append, "clicks", [b"acknowledged"] * 3)
    (tmp_path / "go").touch()
    victim.begin(append_many, "clicks", 7, 1_000_000, 5, "list", str(tmp_path / "go"))
    writer.begin(append_many, "clicks", 8, 100, 5, "list", str(tmp_path / "go"))
    writer.finish()
    victim.kill()
    [span] = writer.call(append, "clicks", [b"after"])
    found = reader.call(values, "clicks")
    assert before == [sc.Span(0, 0, 3)]
    assert found[:3] == [b"acknowledged"] * 3
    assert found[span.first_offset :] == [b"after"]
    calls = found[3 : span.first_offset]
    assert len(calls) % 5 == 0
    for start in range(0, len(calls), 5):
        assert [value.rsplit(b" ", 1)[0] for value in calls[start : start + 5]] == [calls[start].rsplit(b" ", 1)[0]] * 5
    assert len([value for value in calls if value.startswith(b"8 ")]) == 500


# ---- the catalog ------------------------------------------------------------------------------------------------


def test_topics_made_and_deleted_elsewhere_are_seen(peers: list[Peer], store_path: Path) -> None:
    writer, reader, other = peers
    writer.call(open_store, str(store_path))
    reader.call(open_store, str(store_path), "r")
    other.call(open_store, str(store_path))
    made = writer.call(create, "clicks")
    assert reader.call(names) == other.call(names) == ["clicks"]
    with pytest.raises(sc.TopicExistsError):
        other.call(create, "clicks")
    other.call(delete, "clicks")
    assert writer.call(names) == reader.call(names) == []
    assert other.call(create, "clicks") != made
    writer.call(append, "clicks", [b"in the new one"])
    assert reader.call(values, "clicks") == [b"in the new one"]


def test_one_of_several_processes_makes_a_topic(peers: list[Peer], store_path: Path, tmp_path: Path) -> None:
    for peer in peers:
        peer.call(open_store, str(store_path))
    for number in range(5):
        go = tmp_path / f"go{number}"
        for peer in peers:
            peer.begin(race_to_create, f"t{number}", str(go))
        go.touch()
        made = [peer.finish() for peer in peers]
        assert len([one for one in made if one is not None]) == 1
    with sc.open(store_path, mode="r") as store:
        assert [topic.name for topic in store.topics()] == [f"t{number}" for number in range(5)]
    assert len(list((store_path / "topics").iterdir())) == 5


def test_several_processes_make_a_store_at_once(peers: list[Peer], tmp_path: Path) -> None:
    for number in range(5):
        go = tmp_path / f"go{number}"
        for peer in peers:
            peer.begin(race_to_open, str(tmp_path / f"store{number}"), str(go))
        go.touch()
        assert [peer.finish() for peer in peers] == [0, 0, 0]


@pytest.mark.parametrize("state", ["writer stays", "writer leaves"])
def test_altered_settings_are_seen_elsewhere(peers: list[Peer], store_path: Path, state: str) -> None:
    writer, reader, other = peers
    writer.call(open_store, str(store_path))
    writer.call(create, "clicks")
    writer.call(append, "clicks", [b"x"])
    reader.call(open_store, str(store_path), "r")
    other.call(open_store, str(store_path))
    reader.call(hold, "clicks")
    other.call(hold, "clicks")
    writer.call(alter_segment, "clicks", 777)
    if state == "writer leaves":
        writer.call(close)
    assert other.call(held_append, [b"y"]) == [sc.Span(0, 1, 2)]
    assert other.call(held_config).retention_ms == 777
    assert reader.call(held_config).retention_ms == 777
    if state == "writer leaves":
        other.call(close)
        writer.call(open_store, str(store_path))
        writer.call(alter_segment, "clicks", 888)
        writer.call(close)
        assert reader.call(held_config).retention_ms == 888


def test_added_partitions_are_seen_elsewhere(peers: list[Peer], store_path: Path) -> None:
    writer, reader, other = peers
    writer.call(open_store, str(store_path))
    writer.call(create, "clicks", 2)
    reader.call(open_store, str(store_path), "r")
    other.call(open_store, str(store_path))
    reader.call(hold, "clicks")
    other.call(hold, "clicks")
    writer.call(add_partitions, "clicks", 4)
    assert other.call(held_append, [b"x"], 3) == [sc.Span(3, 0, 1)]
    assert reader.call(held_ends) == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="0 to 3"):
        other.call(held_append, [b"x"], 4)
    writer.call(add_partitions, "clicks", 5)
    writer.call(append, "clicks", [b"y"], None, 4)
    assert reader.call(held_ends) == other.call(held_ends) == [0, 0, 0, 1, 1]
    other.call(close)
    writer.call(add_partitions, "clicks", 6)
    writer.call(close)
    assert reader.call(held_ends) == [0, 0, 0, 1, 1, 0]


def test_a_schema_that_grew_is_seen_elsewhere(peers: list[Peer], store_path: Path) -> None:
    writer, reader, other = peers
    narrow, wide = pa.schema([("a", pa.int64())]), pa.schema([("a", pa.int64()), ("b", pa.string())])
    with sc.open(store_path) as store:
        store.create_topic("typed", schema=narrow).append([{"a": 1}])
    writer.call(open_store, str(store_path))
    reader.call(open_store, str(store_path), "r")
    other.call(open_store, str(store_path))
    reader.call(hold, "typed")
    other.call(hold, "typed")
    writer.call(alter_schema, "typed", wide.serialize().to_pybytes())
    writer.call(append, "typed", [{"a": 2, "b": "x"}])
    assert reader.call(held_values) == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    assert reader.call(held_columns) == ["a", "b"]
    other.call(held_append, [{"a": 3, "b": "y"}])
    assert reader.call(held_values)[-1] == {"a": 3, "b": "y"}


@pytest.mark.parametrize("used", [True, False])
def test_a_topic_deleted_elsewhere_is_gone_for_handles_that_others_hold(
    peers: list[Peer], store_path: Path, used: bool
) -> None:
    writer, reader, other = peers
    with sc.open(store_path) as store:
        store.create_topic("clicks").append([b"x"] * 10)
    for peer, mode in ((writer, "rw"), (reader, "r"), (other, "rw")):
        peer.call(open_store, str(store_path), mode)
    for peer in (reader, other):
        peer.call(hold, "clicks")
    if used:
        other.call(held_append, [b"y"])
    writer.call(delete, "clicks")
    for peer in (reader, other):
        with pytest.raises(sc.TopicNotFoundError, match="deleted"):
            peer.call(held_ends)
        with pytest.raises(sc.TopicNotFoundError, match="deleted"):
            peer.call(held_values)
    with pytest.raises(sc.TopicNotFoundError, match="deleted"):
        other.call(held_append, [b"z"])
    for peer in peers:
        with pytest.raises(sc.TopicNotFoundError, match="'clicks'"):
            peer.call(append, "clicks", [b"z"])
    writer.call(close)
    with pytest.raises(sc.TopicNotFoundError, match="deleted"):
        reader.call(held_ends)


def test_a_table_stays_readable_while_another_process_deletes_the_topic(peers: list[Peer], store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks", segment_bytes=1 << 16)
        topic.append([b"x" * 1000] * 200)
        table, records = topic.scan().to_arrow(), iter(topic.scan())
        next(records)
        peers[0].call(open_store, str(store_path))
        peers[0].call(delete, "clicks")
        assert table["value"].to_pylist() == [b"x" * 1000] * 200
        with pytest.raises(sc.StreamcoreError):
            for _ in records:
                pass
            topic.append([b"y"])


def test_appends_while_another_process_alters_are_neither_lost_nor_doubled(peers: list[Peer], store_path: Path) -> None:
    writer, changer, _ = peers
    with sc.open(store_path) as store:
        store.create_topic("clicks", partitions=8)
    for peer in (writer, changer):
        peer.call(open_store, str(store_path))
    writer.begin(append_keyed, "clicks", 1000, 64, 5)
    number = 0
    while not writer.link.poll():
        number += 1
        changer.call(alter_segment, "clicks", number)
    count_written, changes_seen = writer.finish()
    assert changes_seen >= 5
    with sc.open(store_path, mode="r") as store:
        found = sorted(int(r.value) for r in store.topic("clicks").scan())
        assert found == list(range(count_written))


def append_keyed(held: Held, name: str, calls: int, per_call: int, changes: int) -> tuple[int, int]:
    """Appends so many calls, and more until it has met so many changes of the topic; how many records, and changes."""
    topic = held.store.topic(name)
    call, met, known = 0, 0, topic.config.retention_ms
    end = time.monotonic() + ANSWER_S
    while call < calls or met < changes:
        assert time.monotonic() < end
        rows = range(call * per_call, (call + 1) * per_call)
        topic.append([b"%d" % n for n in rows], keys=[b"k%d" % n for n in rows])
        met += topic.config.retention_ms != known
        known = topic.config.retention_ms
        call += 1
    return call * per_call, met


# ---- mode "r" ---------------------------------------------------------------------------------------------------


def fill(store: sc.Store) -> int:
    topic = store.create_topic("clicks", partitions=2, segment_bytes=1 << 16)
    for number in range(100):
        topic.append([b"x" * 1000], keys=[b"k"], partition=number % 2)
    packed = store.create_topic("packed", compression="zstd", schema=pa.schema([("n", pa.int64())]))
    packed.append([{"n": 1}, None])
    store.create_topic("empty")
    store.flush()
    return 102


def test_a_reader_in_another_process_writes_nothing_while_a_writer_is_there(
    peers: list[Peer], store_path: Path, picture: Picture
) -> None:
    with sc.open(store_path) as store:
        wanted = fill(store)
        before = picture(store_path)
        assert peers[0].call(read_all, str(store_path)) == wanted
        assert picture(store_path) == before
        store.topic("clicks").append([b"more"])
        assert peers[0].call(read_all, str(store_path)) == wanted + 1


def test_a_reader_of_what_a_killed_writer_left_writes_nothing(
    peers: list[Peer], store_path: Path, picture: Picture
) -> None:
    with sc.open(store_path) as store:
        wanted = fill(store)
    victim, reader, _ = peers
    victim.call(open_store, str(store_path))
    victim.call(create, "more")
    victim.call(append, "more", [b"x"] * 5)
    victim.call(append, "clicks", [b"x"], None, 0)
    victim.kill()
    before = picture(store_path)
    assert reader.call(read_all, str(store_path)) == wanted + 6
    assert picture(store_path) == before
    with sc.open(store_path) as store:
        assert store.topic("clicks").append([b"y"], partition=0) == [sc.Span(0, 51, 52)]
        assert store.topic("more").scan().count() == 5


# ---- errors -----------------------------------------------------------------------------------------------------


def test_errors_come_back_from_another_process_as_they_are(peers: list[Peer], store_path: Path, tmp_path: Path) -> None:
    peer = peers[0]
    peer.call(open_store, str(store_path))
    peer.call(create, "clicks")
    with pytest.raises(sc.OffsetOutOfRangeError) as info:
        peer.call(fail_in_some_way, "clicks")
    assert (info.value.earliest, info.value.latest) == (0, 0)
    with pytest.raises(sc.StorageError) as storage:
        peer.call(ask_for_nothing, str(tmp_path / "absent"))
    assert storage.value.path == str(tmp_path / "absent")
