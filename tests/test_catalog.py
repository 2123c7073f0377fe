"""The catalog: what it keeps, that changes are whole, and that readers of it never write."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import streamcore as sc
from streamcore.catalog import CATALOG_NAME, Catalog, TopicRow, topic_folder
from streamcore.config import TopicConfig

Picture = Callable[[Path], dict[str, tuple[int, bytes]]]


def id_of(name: str) -> str:
    return f"{zlib.crc32(name.encode()):016x}"


def row(name: str = "clicks", **changes: object) -> TopicRow:
    plain = TopicRow(
        id=id_of(name),
        name=name,
        folder=topic_folder(name, id_of(name)),
        partitions=2,
        config=dataclasses.asdict(TopicConfig()),
        generation=1,
        mixed=False,
        schemas={1: b"as it is"},
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path, writable=True)


def test_a_topic_comes_back_as_it_was_recorded(catalog: Catalog, tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int64())]).serialize().to_pybytes()
    wanted = [row("a"), row("b", mixed=True, schemas={1: schema, 2: schema + b"x"}, partitions=9, generation=4)]
    for one in wanted:
        catalog.add_topic(one)
    assert catalog.topics() == wanted
    assert catalog.topic("b") == wanted[1]
    assert catalog.topic_by_id(id_of("a")) == wanted[0]
    assert catalog.topic("c") is None
    assert catalog.topic_by_id("b") is None
    reader = Catalog(tmp_path, writable=False)
    assert reader.topics() == wanted
    catalog.close()
    assert reader.topics() == wanted
    assert Catalog(tmp_path, writable=True).topics() == wanted


def test_a_topic_that_is_deleted_while_it_is_looked_up_is_there_or_not(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Catalog(tmp_path, writable=True)
    real = Catalog._with_schemas

    def delete_first(self: Catalog, connection: sqlite3.Connection, found: tuple[object, ...]) -> TopicRow:
        other.remove_topic(str(found[0]))
        return real(self, connection, found)

    monkeypatch.setattr(Catalog, "_with_schemas", delete_first)
    looks: list[Callable[[Catalog], object]] = [
        lambda found: found.topics(), lambda found: found.topic("a"), lambda found: found.topic_by_id(id_of("a")),
    ]  # fmt: skip
    for looking in (catalog, Catalog(tmp_path, writable=False)):
        for look in looks:
            other.add_topic(row("a"))
            assert look(looking) in ([row("a")], row("a"))
            assert look(looking) in ([], None)


def test_a_name_is_taken_once(catalog: Catalog) -> None:
    catalog.add_topic(row())
    with pytest.raises(sc.TopicExistsError, match="'clicks' exists already"):
        catalog.add_topic(row(id="other", folder="other"))
    assert catalog.topics() == [row()]


def test_a_change_counts_only_on_top_of_the_generation_it_was_made_from(catalog: Catalog) -> None:
    catalog.add_topic(row())
    first = row(partitions=5, generation=2)
    assert catalog.change_topic(first)
    assert not catalog.change_topic(row(partitions=7, generation=2))
    assert catalog.topic("clicks") == first
    assert catalog.change_topic(row(partitions=7, generation=3, schemas={1: b"as it is", 2: b"wider"}))
    found = catalog.topic("clicks")
    assert found is not None
    assert (found.partitions, found.schemas) == (7, {1: b"as it is", 2: b"wider"})


def test_a_removed_topic_is_gone_with_its_schemas(catalog: Catalog) -> None:
    catalog.add_topic(row())
    assert catalog.remove_topic(id_of("clicks"))
    assert not catalog.remove_topic(id_of("clicks"))
    assert not catalog.change_topic(row(generation=2))
    assert catalog.topics() == []
    again = row(schemas={1: b"typed"})
    catalog.add_topic(again)
    assert catalog.topic("clicks") == again


def test_a_catalog_opened_for_reading_refuses_changes(catalog: Catalog, tmp_path: Path) -> None:
    catalog.add_topic(row())
    reader = Catalog(tmp_path, writable=False)
    for change in (
        lambda: reader.add_topic(row("b")),
        lambda: reader.change_topic(row(generation=2)),
        lambda: reader.remove_topic(id_of("clicks")),
        lambda: reader.set_setting("a", "b"),
    ):
        with pytest.raises(sc.StoreReadOnlyError):
            change()
    assert reader.topics() == [row()]


def test_closing_twice_is_fine_and_a_closed_catalog_is_an_error(catalog: Catalog) -> None:
    catalog.close()
    catalog.close()
    with pytest.raises(sc.StreamcoreError):
        catalog.topics()


@pytest.mark.parametrize("with_shm", [True, False])
def test_what_a_killed_writer_left_in_the_log_is_read_and_not_touched(
    catalog: Catalog, tmp_path: Path, with_shm: bool, picture: Picture
) -> None:
    for number in range(20):
        catalog.add_topic(row(f"t{number:02}"))
    left = tmp_path / "left"  # the files as they are while the writer still has them: what SIGKILL leaves
    left.mkdir()
    for ending in ("", "-wal", "-shm") if with_shm else ("", "-wal"):
        shutil.copy(tmp_path / (CATALOG_NAME + ending), left)
    assert (left / (CATALOG_NAME + "-wal")).stat().st_size > 0
    before = picture(left)
    reader = Catalog(left, writable=False)
    assert len(reader.topics()) == 20
    assert reader.check() == []
    assert picture(left) == before
    assert len(Catalog(left, writable=True).topics()) == 20


def test_a_reader_always_finds_a_whole_catalog_while_writers_come_and_go(tmp_path: Path) -> None:
    Catalog(tmp_path, writable=True).close()
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(60):
                writer = Catalog(tmp_path, writable=True)
                writer.add_topic(row(f"t{number:02}"))
                writer.close()
        except BaseException as error:
            failures.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    reader = Catalog(tmp_path, writable=False)
    while not stop.is_set():
        found = len(reader.topics())
        assert found >= seen
        seen = found
    thread.join()
    assert failures == []
    assert len(reader.topics()) == 60


def test_threads_change_one_catalog_without_losing_a_change(catalog: Catalog) -> None:
    catalog.add_topic(row())
    failures: list[BaseException] = []

    def grow() -> None:
        try:
            for _ in range(20):
                while True:
                    old = catalog.topic("clicks")
                    assert old is not None
                    if catalog.change_topic(
                        dataclasses.replace(old, partitions=old.partitions + 1, generation=old.generation + 1)
                    ):
                        break
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=grow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = catalog.topic("clicks")
    assert found is not None
    assert (found.partitions, found.generation) == (82, 81)


def test_damaged_settings_are_corruption_that_names_the_topic_and_the_file(catalog: Catalog, tmp_path: Path) -> None:
    catalog.add_topic(row())
    catalog.close()
    with sqlite3.connect(tmp_path / CATALOG_NAME) as connection:
        connection.execute("update topics set config = '{broken'")
    connection.close()
    with pytest.raises(sc.CorruptionError, match="'clicks'") as info:
        Catalog(tmp_path, writable=False).topics()
    assert info.value.path == str(tmp_path / CATALOG_NAME)


def test_damage_in_the_middle_of_the_file_is_found_by_check(catalog: Catalog, tmp_path: Path) -> None:
    for number in range(200):
        catalog.add_topic(row(f"t{number}"))
    assert catalog.check() == []
    catalog.close()
    path = tmp_path / CATALOG_NAME
    data = bytearray(path.read_bytes())
    for at in range(3 * 4096, len(data) - 4096, 4096):
        data[at : at + 64] = b"\xff" * 64
    path.write_bytes(data)
    try:
        problems = Catalog(tmp_path, writable=False).check()
    except sc.CorruptionError:
        return
    assert problems


def test_settings_unknown_to_this_version_are_an_error_and_no_guess(store_path: Path) -> None:
    with sc.open(store_path) as store:
        store.create_topic("clicks")
    with sqlite3.connect(store_path / CATALOG_NAME) as connection:
        connection.execute("""update topics set config = json_set(config, '$.sharding', 'new')""")
    connection.close()
    with sc.open(store_path, mode="r") as store:
        with pytest.raises((sc.StoreFormatError, sc.CorruptionError), match="sharding"):
            store.topic("clicks")


def test_a_topic_whose_creation_failed_leaves_nothing(store: sc.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: TopicRow, make_folder: Callable[[], None]) -> None:
        make_folder()
        raise sc.StorageError(28, "no space", "catalog.sqlite")

    with monkeypatch.context() as patch:
        patch.setattr(store.catalog, "add_topic", fail)
        with pytest.raises(sc.StorageError):
            store.create_topic("clicks")
    assert list((store.path / "topics").iterdir()) == []
    store.create_topic("clicks").append([b"v"])
    assert store.topic("clicks").scan().count() == 1


def test_a_reader_does_not_wait_for_a_log_that_a_crash_left_with_a_header_alone(tmp_path: Path) -> None:
    """SQLite, reading without writing, takes that for a log that somebody is about to recover, and gives up at last."""
    left = tmp_path / "left"
    (left / "topics").mkdir(parents=True)
    with sc.open(tmp_path / "store") as store:
        store.set_setting("key", "value")
    with sc.open(tmp_path / "store") as store:
        shutil.copyfile(store.catalog.path, left / CATALOG_NAME)
        store.set_setting("key", "lost")
        for ending in ("-wal", "-shm"):
            shutil.copyfile(f"{store.catalog.path}{ending}", left / f"{CATALOG_NAME}{ending}")
    os.truncate(left / f"{CATALOG_NAME}-wal", 32)
    with sc.open(left, "r") as store:
        assert store.get_setting("key") == "value"
