"""Writers that are killed at any moment: what was acknowledged is there, what was in flight is whole or absent."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pytest

import streamcore as sc

from .forkserver import Child, ForkServer
from .ledger import Ledger
from .segments import (
    as_any_arrow_reader,
    change_body,
    forget_notes,
    frames,
    is_torn,
    only_segment,
    overwrite,
    segment_paths,
)
from .writers import (
    PATHS,
    TOPIC,
    append_call,
    append_once,
    append_until_killed,
    change_topics_until_killed,
    die_while_copying,
    die_with_a_child,
    numbered_table,
    table_of,
)

Figures = collections.Counter[str]
Picture = Callable[[Path], dict[str, tuple[int, bytes]]]

KILLS = int(os.environ.get("STREAMCORE_KILLS", "240"))
_MATRIX = [(name, durability) for name in PATHS for durability in ("os", "disk")]
_EACH = -(-KILLS * 7 // 10 // len(_MATRIX))
_TOPIC_KILLS = -(-KILLS // 10)
_CROWD_KILLS = -(-KILLS // 20)
_ROUNDS_PER_STORE = 5
assert _EACH * len(_MATRIX) + _TOPIC_KILLS + 4 * _CROWD_KILLS >= KILLS


def kill_somewhere(child: Child, chance: random.Random) -> None:
    """Kills a child at a random moment: after a random time, in the middle of a call, or at a certain byte."""
    how = chance.random()
    if how < 0.2:
        child.drain_for(chance.uniform(0, 0.04))
    elif how < 0.9:
        lines = chance.randint(1, 9)
        child.read_until(lambda: len(child.said("BEGUN")) >= lines)
        spin_for(chance.uniform(0, 1.2) * max(50e-6, float(child.said("BEGUN")[-1][-1])))
    else:
        size = chance.randint(1, 400)
        child.read_until(lambda: child.bytes_read >= size)
    child.kill()
    assert child.is_killed(), f"the child ended before it was killed, status {child.status}: {child.failure()}"


def spin_for(duration_s: float) -> None:
    """Waits some microseconds, more exactly than sleep does."""
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end:
        pass


def folder_of(store_path: Path) -> str | None:
    """The topic's folder; None when the kill came before the topic was made."""
    try:
        with sc.open(store_path, "r") as store:
            return store.topic(TOPIC).folder
    except (sc.TopicNotFoundError, sc.StoreFormatError, sc.StorageError):
        return None


def check_after_kill(ledger: Ledger, store_path: Path, figures: Figures, picture: Picture) -> None:
    """Looks with other eyes first, then reads, then repairs, then appends."""
    folder = folder_of(store_path)
    if folder is not None:
        before = picture(store_path)
        note_torn(store_path, folder, ledger, figures)
        outcome = ledger.check_store(store_path, "r")
        assert picture(store_path) == before, "reading has written"
        figures["in flight, found whole"] += outcome.whole
        figures["in flight, absent"] += outcome.absent
        ledger.check_store(store_path, "rw")
    with sc.open(store_path) as store:
        ledger.append(ledger.path.make_topic(store), 0)
    ledger.check_store(store_path, "rw")


def note_torn(store_path: Path, folder: str, ledger: Ledger, figures: Figures) -> None:
    """Counts half-written appends, which show that kills hit where it matters."""
    for partition in range(ledger.path.partitions):
        paths = segment_paths(store_path, folder, partition)
        figures["half-written appends left behind"] += bool(paths) and is_torn(paths[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("path_name", "durability"), _MATRIX)
def test_a_killed_writer_loses_nothing_acknowledged_and_leaves_no_half_append(
    path_name: str, durability: str, tmp_path: Path, children: ForkServer, figures: Figures, picture: Picture
) -> None:
    chance = random.Random(f"{path_name} {durability}")
    for kill in range(_EACH):
        if kill % _ROUNDS_PER_STORE == 0:
            shutil.rmtree(tmp_path / "store", ignore_errors=True)
            store_path = tmp_path / "store"
            ledger = Ledger(path_name)
        child = children.start(
            append_until_killed, store_path=str(store_path), path_name=path_name, durability=durability, writer=0,
            first_call=ledger.next_call(0), seed=kill,
        )  # fmt: skip
        kill_somewhere(child, chance)
        ledger.take(0, child)
        figures["kills"] += 1
        check_after_kill(ledger, store_path, figures, picture)
    shutil.rmtree(store_path)  # much data


# ---- in the middle of a copy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("others_open", [False, True], ids=["alone", "with another process"])
@pytest.mark.parametrize(("chunks", "broken_chunk"), [(0, 0), (1, 0), (2, 1), (4, 2), (4, 3)])
@pytest.mark.parametrize("pages", [0, 1, 6])
def test_a_writer_that_dies_in_the_middle_of_storing_leaves_no_part_of_its_append(
    chunks: int,
    broken_chunk: int,
    pages: int,
    others_open: bool,
    tmp_path: Path,
    children: ForkServer,
    figures: Figures,
) -> None:
    store_path = tmp_path / "store"
    with sc.open(store_path) as other:
        topic = other.create_topic(TOPIC)
        topic.append([b"before"])
        if not others_open:
            other.close()
        child = children.start(
            die_while_copying, store_path=str(store_path), chunks=chunks, broken_chunk=broken_chunk, pages=pages
        )
        child.wait()
        assert (len(child.said("DONE")), os.WTERMSIG(child.status or 0)) == (1, signal.SIGBUS), child.failure()
        stored = is_torn(only_segment(store_path))
        assert stored or (chunks, pages) == (0, 0) or chunks == 1, "it stored nothing: this test tests nothing"
        figures["writers that died in the middle of storing"] += stored
        expected = [b"before", *(value.as_py() for value in numbered_table(1).column("value"))]
        assert as_any_arrow_reader([only_segment(store_path)]).column("value").to_pylist() == expected  # type: ignore[union-attr]
        for mode in ("r", "rw"):
            with sc.open(store_path, mode) as store:
                assert [record.value for record in store.topic(TOPIC).scan()] == expected
                assert store.verify() == []
        with contextlib.nullcontext(other) if others_open else sc.open(store_path) as store:
            store.topic(TOPIC).append([b"after"])
            assert [record.value for record in store.topic(TOPIC).scan()] == [*expected, b"after"]
            assert store.verify() == []
    assert not is_torn(only_segment(store_path))


# ---- locks -----------------------------------------------------------------------------------------------------


def test_a_child_forked_by_a_dead_writer_does_not_keep_its_locks(tmp_path: Path, children: ForkServer) -> None:
    store_path, lifeline = tmp_path / "store", tmp_path / "lifeline"
    lifeline.touch()
    with sc.open(store_path) as store:
        store.create_topic(TOPIC)
    dead = children.start(die_with_a_child, store_path=str(store_path), lifeline=str(lifeline))
    dead.wait()
    assert os.WTERMSIG(dead.status or 0) == signal.SIGBUS, dead.failure()
    ((left,),) = dead.said("CHILD")
    try:
        next_one = children.start(append_once, store_path=str(store_path), value="by the next")
        next_one.read_until(lambda: next_one.said("DONE"), deadline_s=10)
        os.kill(int(left), 0)  # it lives
    finally:
        lifeline.unlink()
    assert next_one.wait() == 0, next_one.failure()
    with sc.open(store_path, "r") as store:
        assert [record.value for record in store.topic(TOPIC).scan()] == [b"by the dead", b"by the next"]


def test_a_closed_store_holds_no_lock_although_its_scans_and_topics_live_on(tmp_path: Path) -> None:
    with sc.open(tmp_path / "store") as store:
        topic = store.create_topic(TOPIC)
        topic.append([b"value"])
        scan = topic.scan()
        records = iter(scan)
        next(records)
    for state in (tmp_path / "store").glob("topics/*/state"):
        with state.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 0)
    assert (topic.name, scan.schema.names[0]) == (TOPIC, "offset")


# ---- several writers -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["os", "disk"])
@pytest.mark.parametrize("path_name", ["rolls", "large values"])
def test_others_go_on_when_one_of_several_writers_of_a_partition_is_killed(
    path_name: str, durability: str, tmp_path: Path, children: ForkServer, figures: Figures
) -> None:
    chance = random.Random(f"{path_name} {durability}")
    store_path, ledger = tmp_path / "store", Ledger(path_name)
    with sc.open(store_path) as store:
        ledger.path.make_topic(store)

    def start(writer: int) -> Child:
        return children.start(
            append_until_killed, store_path=str(store_path), path_name=path_name, durability=durability, writer=writer,
            first_call=ledger.next_call(writer), seed=writer,
        )  # fmt: skip

    running = {writer: start(writer) for writer in range(1, 4)}
    for kill in range(_CROWD_KILLS):
        writer = chance.choice(sorted(running))
        victim = running.pop(writer)
        kill_somewhere(victim, chance)
        ledger.take(writer, victim)
        figures["kills"] += 1
        for other in running.values():
            done = len(other.said("DONE"))
            other.read_until(lambda other=other, done=done: len(other.said("DONE")) >= done + 3)
        check_live_files(store_path)
        running[4 + kill] = start(4 + kill)
    for writer, child in running.items():
        assert child.stop() == 0, child.failure()
        ledger.take(writer, child)
    outcome = ledger.check_store(store_path)
    figures["in flight, found whole"] += outcome.whole
    figures["in flight, absent"] += outcome.absent
    with sc.open(store_path) as store:
        ledger.append(store.topic(TOPIC), 0)
    ledger.check_store(store_path)
    shutil.rmtree(store_path)  # much data


def check_live_files(store_path: Path) -> None:
    """What any Arrow reader sees of a log under way are whole appends."""
    folder = folder_of(store_path)
    assert folder is not None
    seen = as_any_arrow_reader(segment_paths(store_path, folder))
    assert seen is not None
    starts = pc.binary_slice(seen.column("value"), 0, 40).to_pylist()
    check_whole_appends([start.split(b" ", 1)[0].decode() for start in starts])


def check_whole_appends(tags: list[str]) -> None:
    """Tags are writer.call.row/rows: the rows of a call come together, each once, in order."""
    at = 0
    while at < len(tags):
        name, rows = tags[at].split("/")
        call = name.rsplit(".", 1)[0]
        whole = [f"{call}.{row}/{rows}" for row in range(int(rows))]
        assert tags[at : at + int(rows)] == whole, f"{tags[at]} is not whole"
        at += int(rows)


# ---- topics ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Known:
    """What a topic must be. Counts in ranges, for a change may have been in flight."""

    partitions: set[int]
    retention_ms: set[int | None]
    records: set[int]


@pytest.mark.slow
def test_a_kill_leaves_each_topic_made_altered_widened_or_deleted_or_as_it_was(
    tmp_path: Path, children: ForkServer, figures: Figures
) -> None:
    chance = random.Random(7)
    store_path = tmp_path / "store"
    with sc.open(store_path):
        pass
    known: dict[str, Known] = {}
    first = 0
    for kill in range(_TOPIC_KILLS):
        child = children.start(change_topics_until_killed, store_path=str(store_path), first=first, seed=kill)
        kill_somewhere(child, chance)
        figures["kills"] += 1
        first += len(child.said("BEGUN")) + 1
        maybe = take_changes(known, child)
        check_topics(store_path, known, maybe)
    figures["folders of topics left behind"] += len(list((store_path / "topics").iterdir())) - len(known)


def take_changes(known: dict[str, Known], child: Child) -> set[str]:
    """Applies what the child said; returns the topics that may or may not be there."""
    done = [words[:3] for words in child.said("DONE")]
    begun = [words[:3] for words in child.said("BEGUN")]
    for change, name, amount in done:
        if change == "make":
            known[name] = Known({int(amount)}, {None}, {0})
        elif change == "delete":
            del known[name]
        elif change == "alter":
            known[name].retention_ms = {int(amount)}
        elif change == "widen":
            known[name].partitions = {int(amount)}
        else:
            known[name].records = {count + int(amount) for count in known[name].records}
    if len(begun) == len(done):
        return set()
    ((change, name, amount),) = begun[len(done) :]
    if change == "make":
        known[name] = Known({int(amount)}, {None}, {0})
    elif change == "alter":
        known[name].retention_ms |= {int(amount)}
    elif change == "widen":
        known[name].partitions |= {int(amount)}
    elif change == "append":
        known[name].records |= {count + more for count in known[name].records for more in range(int(amount) + 1)}
    return {name} if change in ("make", "delete") else set()


def check_topics(store_path: Path, known: dict[str, Known], maybe: set[str]) -> None:
    """Each topic is as it must be and can be used; `known` is narrowed to what was found."""
    with sc.open(store_path) as store:
        found = {topic.name: topic for topic in store.topics()}
        assert set(known) - maybe <= set(found) <= set(known)
        for name in maybe - set(found):
            del known[name]
            assert name not in {topic.name for topic in store.topics()}
        for name, topic in found.items():
            expected = known[name]
            assert len(topic.partitions) in expected.partitions
            assert topic.config.retention_ms in expected.retention_ms
            assert topic.scan().count() in expected.records
            topic.append([b"after the kill"], partition=len(topic.partitions) - 1)
            assert [record.value for record in topic.scan()].count(b"after the kill") >= 1
            known[name] = Known({len(topic.partitions)}, {topic.config.retention_ms}, {topic.scan().count()})
        assert store.verify() == []


def test_what_a_process_left_that_died_while_it_deleted_a_topic_is_cleared_by_the_next_writer(tmp_path: Path) -> None:
    with sc.open(tmp_path / "store") as store:
        folder = store.create_topic(TOPIC).folder
        store.topic(TOPIC).append([b"value"])
    left = tmp_path / "store" / "topics" / f".deleted~{folder}"
    shutil.copytree(left.with_name(folder), left)
    with sc.open(tmp_path / "store", "r"):
        assert left.exists()
    with sc.open(tmp_path / "store") as store:
        assert not left.exists()
        assert [record.value for record in store.topic(TOPIC).scan()] == [b"value"]


def test_what_a_process_left_that_died_between_catalog_and_folder_of_a_topic_is_cleared_by_the_next_writer(
    tmp_path: Path,
) -> None:
    topics = tmp_path / "store" / "topics"
    with sc.open(tmp_path / "store") as store:
        kept = store.create_topic("kept")
        kept.append([b"value"])
        deleted = store.create_topic("deleted")
        deleted.append([b"value"])
        assert store.catalog.remove_topic(deleted.id)  # and no more of the deletion
        (topics / "made-0123456789abcdef").mkdir()  # and no more of the making
        foreign = topics / "foreign-0123456789abcdef" / "0"
        foreign.mkdir(parents=True)
    with sc.open(tmp_path / "store", "r"):
        assert (topics / deleted.folder).exists()
    for _ in range(2):
        with sc.open(tmp_path / "store") as store:
            assert sorted(folder.name for folder in topics.iterdir()) == sorted([kept.folder, foreign.parent.name])
            assert [record.value for record in store.topic("kept").scan()] == [b"value"]
            assert store.catalog.deletions() == []


# ---- controls: the checker finds what a broken log would do ----------------------------------------------------


@pytest.mark.parametrize(
    ("bug", "path_name", "complaint"),
    [
        ("acknowledges early", "lists", "is lost"),
        ("appends in halves", "tables", "no whole append in flight"),
        ("appends in halves", "many batches", "no whole append in flight"),
    ],
)
def test_control_a_writer_that_breaks_the_promise_is_caught(
    bug: str, path_name: str, complaint: str, tmp_path: Path, children: ForkServer
) -> None:
    ledger = Ledger(path_name)
    child = children.start(
        append_until_killed, store_path=str(tmp_path / "store"), path_name=path_name, durability="os", writer=0,
        first_call=3, seed=0, bug=bug,
    )  # fmt: skip
    child.read_until(lambda: child.said("MIDDLE"))
    child.kill()
    ledger.take(0, child)
    with pytest.raises(AssertionError, match=complaint):
        ledger.check_store(tmp_path / "store")


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Ledger]:
    """A closed store with five acknowledged calls, and their ledger."""
    ledger = Ledger("lists")
    with sc.open(tmp_path / "store") as store:
        topic = ledger.path.make_topic(store)
        for _ in range(5):
            ledger.append(topic, 0)
    ledger.check_store(tmp_path / "store")
    return tmp_path / "store", ledger


def test_control_an_acknowledged_append_that_is_missing_at_the_end_is_caught(written: tuple[Path, Ledger]) -> None:
    store_path, ledger = written
    path = only_segment(store_path)
    forget_notes(path)
    last = frames(path)[-1]
    overwrite(path, last.position, bytes(last.size))
    with pytest.raises(AssertionError, match="is lost"):
        ledger.check_store(store_path)


def test_control_a_changed_record_that_no_checksum_shows_is_caught(written: tuple[Path, Ledger]) -> None:
    store_path, ledger = written
    path = only_segment(store_path)
    frame = frames(path)[2]
    at = path.read_bytes().index(b"0.2.1/", frame.position)
    change_body(path, frame, at, b"9")
    with sc.open(store_path) as store:
        assert store.verify() == []
    with pytest.raises(AssertionError, match="is not what was appended"):
        ledger.check_store(store_path)


def test_control_an_append_that_nobody_began_is_caught(written: tuple[Path, Ledger]) -> None:
    store_path, ledger = written
    with sc.open(store_path) as store:
        store.topic(TOPIC).append([b"a stranger's"])
    with pytest.raises(AssertionError, match="no whole append in flight"):
        ledger.check_store(store_path)


def test_control_an_append_that_is_there_twice_is_caught(written: tuple[Path, Ledger]) -> None:
    store_path, ledger = written
    with sc.open(store_path) as store:
        append_call(store.topic(TOPIC), ledger.path, table_of("lists", 0, 4))
    with pytest.raises(AssertionError, match="no whole append in flight"):
        ledger.check_store(store_path)


def test_control_calls_in_another_order_than_their_writer_made_them_are_caught(tmp_path: Path) -> None:
    ledger = Ledger("lists")
    with sc.open(tmp_path / "store") as store:
        topic = ledger.path.make_topic(store)
        for call in (1, 0):
            ledger.acknowledge(0, call, append_call(topic, ledger.path, table_of("lists", 0, call)))
    with pytest.raises(AssertionError, match="out of its writer's order"):
        ledger.check_store(tmp_path / "store")


def test_control_half_an_append_in_a_live_file_is_caught() -> None:
    check_whole_appends(["1.0.0/2", "1.0.1/2", "2.0.0/1"])
    with pytest.raises(AssertionError, match="is not whole"):
        check_whole_appends(["1.0.0/2", "2.0.0/1"])
    with pytest.raises(AssertionError, match="is not whole"):
        check_whole_appends(["1.0.0/3", "1.0.1/3"])
