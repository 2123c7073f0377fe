"""A catalog made to mislead: rows that make no sense, tables of somebody else, a log of another, a lock that is held.
Every case is an error that names the catalog, and leads nowhere outside of the store."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc
from streamcore import catalog as catalogs

from .forkserver import Channel, ForkServer
from .hostile import TOPIC, bound_memory, change_catalog, make_store, use, values_of

VALUES: dict[str, Any] = {
    "null": None,
    "a negative number": -1,
    "a huge number": (1 << 63) - 1,
    "text": "zz",
    "bytes": b"\0\xff",
    "text that is not UTF-8": "cast(x'c3288080ff' as text)",
    "JSON": '{"a": [1]}',
    "a float": 1.5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a store that nobody has open."""
    made = tmp_path_factory.mktemp("hostile")
    make_store(made / "store")
    return made


@pytest.fixture
def store_path(folder: Path, tmp_path: Path) -> Path:
    """A copy to be hostile to."""
    shutil.copytree(folder / "store", tmp_path / "store")
    return tmp_path / "store"


def columns(path: Path) -> list[tuple[str, str]]:
    """(table, column) of the whole catalog."""
    with contextlib.closing(sqlite3.connect(path / "catalog.sqlite")) as connection:
        tables = [row[0] for row in connection.execute("select name from sqlite_schema where type = 'table'")]
        return [(table, row[1]) for table in tables for row in connection.execute(f"pragma table_info({table})")]


# ---- values -------------------------------------------------------------------------------------------------------


def use_with_each_value(channel: Channel, folder: str, part: int, parts: int) -> None:
    """Puts each value into each column of each table, and uses the store; what comes out is right, or an error."""
    bound_memory()
    source = Path(folder) / "store"
    with sc.open(source, "r") as store:
        wanted = values_of(store)
    cases = [(*where, kind) for where in columns(source) for kind in VALUES]
    if "STREAMCORE_HOSTILE_ALL" not in os.environ:
        cases = random.Random(7).sample(cases, len(cases) // 3)
    copy = Path(folder) / f"copy-{part}"
    shutil.copytree(source, copy)
    saved = (copy / "catalog.sqlite").read_bytes()
    for table, column, kind in cases[part::parts]:
        (copy / "catalog.sqlite").write_bytes(saved)
        value = VALUES[kind] if "UTF-8" in kind else as_sql(VALUES[kind])
        try:
            change_catalog(copy, f"update or replace {table} set {column} = {value}")
        except sqlite3.IntegrityError:
            continue  # a key
        channel.send("AT", table, column, *kind.split())
        found = use(copy, "r")
        found.check_values(wanted, whole=True)
        channel.send("DONE", "errors" if found.errors else "none")
    channel.send("END")


def as_sql(value: Any) -> str:
    """A literal."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    return f"'{value}'" if isinstance(value, str) else str(value)


@pytest.mark.parametrize("part", range(2))
def test_a_value_that_makes_no_sense_is_an_error_in_whatever_column(
    part: int, folder: Path, children: ForkServer, figures: collections.Counter[str]
) -> None:
    child = children.start(use_with_each_value, folder=str(folder), part=part, parts=2)
    child.read_until(lambda: child.said("END") or child.at_end, deadline_s=180)
    assert child.wait() == 0, f"{child.said('AT')[-1:]}: status {child.status}: {child.failure()}"
    outcomes = [outcome for (outcome,) in child.said("DONE")]
    figures["hostile rows"] += len(outcomes)
    assert "errors" in outcomes


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("group_members", 'subscription = \'["/(/", "x"]\''),
        ("group_partitions", "partition = 99999"),
        ("group_offsets", "partition = 50000"),
        ("group_offsets", "position = 1 << 61"),
        ("consumer_groups", "generation = -1"),
        ("transactional_ids", "epoch = 40000"),
        ("transactional_ids", "producer_id = -7"),
        ("transactional_ids", "boot = 'elsewhere', open = 1"),
        ("producer_ids", "next = (1 << 62) + (1 << 62) - 1 + (1 << 62)"),
        ("transaction_partitions", "partition = 1 << 40"),
        ("maintenance", "last_done = '[]'"),
        ("topics", "partitions = 100001"),
        ("topics", "generation = 1 << 32"),
    ],
)
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_number_out_of_range_does_not_reach_the_core(table: str, change: str, mode: str, store_path: Path) -> None:
    with sc.open(store_path, "r") as store:
        wanted = values_of(store)
    change_catalog(store_path, f"update or replace {table} set {change}")
    use(store_path, mode).check_values(wanted, whole=True)


# ---- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside of the store, with something to lose."""
    made = tmp_path / "victim"
    (made / "0").mkdir(parents=True)
    (made / "0" / "letter.txt").write_text("dear")
    return made


@pytest.mark.parametrize(
    "leads",
    ["../../victim", "{victim}", "../topics/../../victim", "..", ".", "", "a/b", "\0", "x\0y", "{other}", "{other}/"],
)
def test_the_folder_of_a_topic_leads_nowhere_else(
    leads: str, store_path: Path, victim: Path, picture: Callable[[Path], Any]
) -> None:
    (other,) = (path.name for path in (store_path / "topics").glob("quakes-*"))
    name = leads.format(victim=victim, other=other).encode().hex()
    with contextlib.closing(sqlite3.connect(store_path / "catalog.sqlite")) as connection:
        connection.execute("delete from topics where name = 'quakes'")
        connection.execute(f"update topics set folder = cast(x'{name}' as text)")
        connection.commit()
    before, outside = picture(victim), picture(store_path / "topics")
    for mode in ("r", "rw"):
        with sc.open(store_path, mode) as store:  # type: ignore[arg-type]
            for call in (
                lambda: store.topic(TOPIC),
                lambda: store.topics(),
                lambda: store.delete_topic(TOPIC),
                lambda: store.verify(),
            ):
                with pytest.raises((sc.CorruptionError, sc.StoreReadOnlyError)):
                    call()
    assert picture(victim) == before
    assert picture(store_path / "topics") == outside


def test_two_topics_do_not_share_a_folder(store_path: Path) -> None:
    change_catalog(
        store_path,
        "create table copied as select * from topics",
        "pragma writable_schema = on",
        "update sqlite_schema set sql = replace(sql, ' unique', '') where name = 'topics'",
    )
    (mine,) = (path.name for path in (store_path / "topics").glob(f"{TOPIC}-*"))
    with contextlib.closing(sqlite3.connect(store_path / "catalog.sqlite")) as connection:
        with contextlib.suppress(sqlite3.DatabaseError):
            connection.execute("update topics set folder = ?", (mine,))
            connection.commit()
    with pytest.raises(sc.CorruptionError):
        with sc.open(store_path) as store:
            store.topic("quakes").append([{"n": 1}])


# ---- tables -------------------------------------------------------------------------------------------------------

TABLES = {
    "no table of topics": ["drop table topics"],
    "no table of schemas": ["drop table schemas"],
    "no table of settings": ["drop table settings"],
    "no table of offsets": ["drop table group_offsets"],
    "a table with a column less": ["alter table topics drop column mixed"],
    "a column of another name": ["alter table group_offsets rename column position to place"],
    "a view for a table": ["alter table topics rename to t", "create view topics as select * from t"],
    "a table of other columns": ["drop table meta", "create table meta (a)"],
    "a trigger": ["create trigger t before insert on settings begin select raise(abort, 'no'); end"],
    "a view that does not end": [
        "drop table settings",
        "create view settings as with recursive r (key, value) as (select 1, 1 union all select key, value from r "
        "where key < 0) select * from r",
    ],
}


@pytest.mark.parametrize("damage", TABLES)
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_catalog_with_other_tables_is_an_error_where_it_matters(damage: str, mode: str, store_path: Path) -> None:
    with sc.open(store_path, "r") as store:
        wanted = values_of(store)
    with contextlib.closing(sqlite3.connect(store_path / "catalog.sqlite", isolation_level=None)) as connection:
        for statement in TABLES[damage]:
            connection.execute(statement)
    found = use(store_path, mode)
    found.check_values(wanted, whole=True)


def test_what_others_add_to_the_catalog_does_no_harm(store_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(store_path / "catalog.sqlite")) as connection:
        connection.execute("create table notes (text)")
        connection.commit()
    for mode in ("r", "rw"):
        assert not use(store_path, mode).errors


def test_every_page_of_a_catalog_overwritten_in_turn_is_an_error_or_harmless(
    store_path: Path, figures: collections.Counter[str]
) -> None:
    path = store_path / "catalog.sqlite"
    with sc.open(store_path, "r") as store:
        wanted = values_of(store)
    saved = path.read_bytes()
    failed = 0
    for page in range(len(saved) // 4096):
        for fill in (b"\0", b"\xff"):
            path.write_bytes(saved[: page * 4096] + fill * 4096 + saved[(page + 1) * 4096 :])
            found = use(store_path, "r")
            found.check_values(wanted, whole=True)
            failed += bool(found.errors)
            figures["hostile pages"] += 1
    assert failed > 5
    for at in range(100):  # the header of the file
        path.write_bytes(saved[:at] + bytes([saved[at] ^ 0xFF]) + saved[at + 1 :])
        with contextlib.suppress(sc.StreamcoreError), sc.open(store_path, "r") as store:
            assert values_of(store) == wanted
    path.write_bytes(saved)
    assert not use(store_path, "rw").errors


# ---- its log ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("shm", ["none", "of another", "random"])
@pytest.mark.parametrize("log", ["of another", "random"])
def test_a_log_of_another_catalog_is_not_taken_for_its_own(
    log: str, shm: str, mode: str, store_path: Path, tmp_path: Path
) -> None:
    with sc.open(store_path, "r") as store:
        wanted = values_of(store)
    with sc.open(tmp_path / "other") as other:
        other.create_topic("stranger")
        other.set_setting("a", "wrong")
        for ending in ("-wal", "-shm"):
            shutil.copy(tmp_path / "other" / f"catalog.sqlite{ending}", tmp_path)
    wal, index = (tmp_path / f"catalog.sqlite{ending}" for ending in ("-wal", "-shm"))
    shutil.copy(wal, store_path) if log == "of another" else (store_path / wal.name).write_bytes(b"\x37\x7f" * 5000)
    if shm != "none":
        (store_path / index.name).write_bytes(index.read_bytes() if shm == "of another" else b"\x5a" * 32768)
    started = time.monotonic()
    found = use(store_path, mode)
    assert time.monotonic() - started < 100, "it waits for something that nobody holds"
    for name, values in wanted.items():
        assert found.values.get(name) in (None, values)
    if found.errors.get("open") is None and "topics" in found.values:
        assert "stranger" not in found.values["topics"] or found.errors


# ---- others who hold it -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Somebody has the catalog for himself."""
    with contextlib.closing(sqlite3.connect(path / "catalog.sqlite", isolation_level=None)) as connection:
        connection.execute("pragma locking_mode = exclusive")
        connection.execute("begin exclusive")
        connection.execute("insert into settings values ('held', 'yes')")
        yield
        connection.execute("rollback")


def hold(channel: Channel, path: str) -> None:
    """As a process of its own."""
    with held(Path(path)):
        channel.send("HELD")
        channel.wait_to_be_told()


def test_a_catalog_that_another_process_holds_is_waited_for_and_then_an_error(
    store_path: Path, children: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogs, "_BUSY_TIMEOUT_S", 0.3)
    child = children.start(hold, path=str(store_path))
    child.read_until(lambda: child.said("HELD"))
    with pytest.raises(sc.StorageError, match=r"locked.*catalog\.sqlite"):
        sc.open(store_path)
    with sc.open(store_path, "r") as store:  # what is not committed is not there
        assert store.get_setting("held") is None
    child.stop()
    sc.open(store_path).close()


def test_an_open_store_says_so_while_another_process_holds_the_catalog(
    store_path: Path, children: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogs, "_BUSY_TIMEOUT_S", 0.3)

    with sc.open(store_path) as store:
        topic = store.topic(TOPIC)
        count = topic.scan().count()
        with contextlib.closing(sqlite3.connect(store_path / "catalog.sqlite", isolation_level=None)) as other:
            other.execute("begin immediate")
            with pytest.raises(sc.StorageError, match="locked"):
                store.set_setting("a", "c")
            with pytest.raises(sc.StorageError, match="locked"):
                store.create_topic("new")
            topic.append([b"1"])  # which needs no catalog
            assert topic.scan().count() == count + 1
            other.execute("rollback")
        store.create_topic("new")


def test_an_error_of_the_catalog_does_not_give_up_its_locks(store_path: Path, children: ForkServer) -> None:
    with sc.open(store_path) as store:
        store.set_setting("a", "1")
        with contextlib.suppress(sc.StreamcoreError), store.catalog.reading() as connection:
            connection.execute("select * from nowhere")
        store.catalog._errno_of(sqlite3.OperationalError("unknown"))
        child = children.start(try_exclusive, path=str(store_path))
        assert child.wait() == 0, child.failure()
        assert child.said("LOCKED") == [[]]
        store.set_setting("a", "2")
    with sc.open(store_path, "r") as store:
        assert store.get_setting("a") == "2"


def try_exclusive(channel: Channel, path: str) -> None:
    """Whoever could have the file for himself would remove the log that others write to."""
    connection = sqlite3.connect(Path(path) / "catalog.sqlite", isolation_level=None, timeout=0)
    try:
        connection.execute("pragma journal_mode = delete")
        channel.send("FREE")
    except sqlite3.OperationalError:
        channel.send("LOCKED")


# ---- a newer version ----------------------------------------------------------------------------------------------


def test_nothing_is_written_to_a_store_of_a_newer_format(store_path: Path, picture: Callable[[Path], Any]) -> None:
    left = store_path / "topics" / ".deleted~something"
    left.mkdir()
    with contextlib.closing(sqlite3.connect(store_path / "catalog.sqlite")) as connection:
        connection.execute("update meta set value = '2' where key = 'format'")
        connection.commit()
        connection.execute("pragma journal_mode = delete")
    before = picture(store_path)
    for mode in ("r", "rw"):
        with pytest.raises(sc.StoreFormatError, match="format 2; this version of streamcore reads format 1"):
            sc.open(store_path, mode)  # type: ignore[arg-type]
    assert {name: data for name, (_, data) in picture(store_path).items()} == {
        name: data for name, (_, data) in before.items()
    }


def test_control_the_rows_of_a_sound_catalog_pass(store_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(store_path / "catalog.sqlite")) as connection:
        assert json.loads(connection.execute("select config from topics").fetchone()[0])
    for mode in ("r", "rw"):
        assert not use(store_path, mode).errors
