"""`catalog.sqlite`: topics, their settings and schemas, and other small state of a store.

Every change is a transaction of its own with synchronous=FULL. A store that is opened for reading never writes here:
the file is then read as it is, or, while a writer has it open, through SQLite's own protocol.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamcore.errors import (
    CorruptionError,
    StorageError,
    StoreFormatError,
    StoreReadOnlyError,
    StreamcoreError,
    TopicExistsError,
)

CATALOG_NAME = "catalog.sqlite"
CATALOG_FORMAT = 1
_BUSY_TIMEOUT_S = 30.0
_READ_ATTEMPTS = 10
_TOPIC_COLUMNS = "id, name, folder, partitions, config, generation, mixed"

_opening = threading.RLock()  # while SQLite has the "-shm" file open for reading only, nobody opens it for writing


def _renew_opening() -> None:
    global _opening
    _opening = threading.RLock()


os.register_at_fork(after_in_child=_renew_opening)

_SHM_BYTES = 32 << 10
_ERRNO_OF_CODE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}

_TABLES = """
create table meta (key text primary key, value text not null) without rowid;
create table topics (
  id text primary key,
  name text not null unique,
  folder text not null unique,
  partitions integer not null,
  config text not null,
  generation integer not null,
  mixed integer not null
) without rowid;
create table schemas (
  topic_id text not null references topics (id) on delete cascade,
  version integer not null,
  schema blob,
  primary key (topic_id, version)
) without rowid;
create table settings (key text primary key, value text not null) without rowid;
"""


@dataclasses.dataclass(frozen=True)
class TopicRow:
    """What the catalog knows of a topic. `schemas` maps a version to the message that begins its segments.

    `mixed`: its batches may differ in schema or compression, so a scan looks at each.
    """

    id: str
    name: str
    folder: str
    partitions: int
    config: dict[str, Any]
    generation: int
    mixed: bool
    schemas: dict[int, bytes | None]


def _enter_wal_mode(connection: sqlite3.Connection) -> None:
    """SQLite does not wait for others here, whatever the timeout: several processes may make a store at once."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class Catalog:
    """The catalog of one store. Used by one process; threads exclude each other."""

    def __init__(self, store_path: Path, writable: bool) -> None:
        self.path = store_path / CATALOG_NAME
        self._writable = writable
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._durable = True
        self._ensured: set[str] = set()
        if writable:
            with _opening:
                self._connection = self._open_writable()
        with self.reading() as connection:
            self._check_format(connection)

    # ---- connections ----

    def _open_writable(self) -> sqlite3.Connection:
        with self._translated():
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._check_ours(connection)
                _enter_wal_mode(connection)
            except BaseException:
                connection.close()
                raise
            connection.execute("pragma synchronous = full")
            connection.execute("pragma foreign_keys = on")
            connection.execute("begin immediate")
            try:
                if not connection.execute("select 1 from sqlite_schema where name = 'meta'").fetchone():
                    for statement in _TABLES.split(";\n"):
                        connection.execute(statement)
                    connection.execute("insert into meta values ('format', ?)", (str(CATALOG_FORMAT),))
                connection.execute("commit")
            except BaseException:
                connection.execute("rollback")
                connection.close()
                raise
            return connection

    def _check_ours(self, connection: sqlite3.Connection) -> None:
        """An empty file becomes a catalog, but not where there are topics; and nothing of somebody else's does."""
        topics = any(self.path.parent.glob("topics/*"))  # looked for first: others make the catalog before a topic
        tables = {name for (name,) in connection.execute("select name from sqlite_schema where type = 'table'")}
        if tables and "meta" not in tables:
            raise StoreFormatError(f"{self.path} is a database, but no catalog of streamcore", str(self.path))
        if topics and not tables:
            lost = f"{self.path} is empty, but there are topics: restore that file from a backup"
            raise StoreFormatError(lost, str(self.path))

    def signature(self) -> tuple[int, ...]:
        """Changes when the catalog does: sizes and times of its files."""
        found = []
        for ending in ("", "-wal"):
            try:
                stat = self.path.with_name(self.path.name + ending).stat()
                found += [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            except FileNotFoundError:
                found += [0, 0, 0]
        return tuple(found)

    def _open_read_only(self) -> sqlite3.Connection:
        for attempt in range(_READ_ATTEMPTS):
            connection = None
            try:
                connection = self._connect_read_only()
                connection.execute("select count(*) from sqlite_schema").fetchone()
                break
            except (sqlite3.OperationalError, FileNotFoundError):  # the last writer left in between
                if connection is not None:
                    connection.close()
                if attempt == _READ_ATTEMPTS - 1:
                    raise
        assert connection is not None
        return connection

    def _connect_read_only(self) -> sqlite3.Connection:
        """Without writing a byte: SQLite would write to the `-shm` file of a log that holds changes, or make one."""
        log = self.path.with_name(self.path.name + "-wal")
        if not log.exists() or log.stat().st_size == 0:
            return self._connect(self.path, "mode=ro&immutable=1")
        if self.path.with_name(self.path.name + "-shm").exists():
            return self._connect(self.path, "mode=ro&readonly_shm=1")
        memory = sqlite3.connect(":memory:")
        with tempfile.TemporaryDirectory() as folder:
            for file in (self.path, log):
                shutil.copyfile(file, Path(folder) / file.name)
            with contextlib.closing(self._connect(Path(folder) / self.path.name, "mode=rw")) as copied:
                copied.backup(memory)
        return memory

    @staticmethod
    def _connect(path: Path, options: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=_BUSY_TIMEOUT_S)

    def ensure_tables(self, statements: str) -> None:
        """Makes the tables of one concept (`create table if not exists …;`) if it can write, once per open store."""
        if self._writable and statements not in self._ensured:
            with self.changing() as connection:
                for statement in statements.split(";\n"):
                    connection.execute(statement)
            self._ensured.add(statements)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries: of a store opened for reading, of what the catalog is now."""
        with self._lock, self._translated():
            if self._connection is not None:
                yield self._connection
                return
            if self._writable:
                raise sqlite3.ProgrammingError("the catalog is closed")
            with _opening, contextlib.closing(self._open_read_only()) as connection:
                yield connection

    @contextlib.contextmanager
    def changing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction, undone by an exception. Not durable, it survives a crash of the process, not of power."""
        if not self._writable:
            raise StoreReadOnlyError("the store was opened with mode 'r'")
        with self.reading() as connection:
            if durable != self._durable:
                connection.execute(f"pragma synchronous = {'full' if durable else 'normal'}")
                self._durable = durable
            connection.execute("begin immediate")
            try:
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.OperationalError as error:
            raise StorageError(
                self._errno_of(error), f"the catalog cannot be used ({error})", str(self.path)
            ) from error
        except sqlite3.DatabaseError as error:
            raise CorruptionError(f"the catalog is damaged ({error})", str(self.path)) from error
        except StreamcoreError:
            raise
        except OSError as error:
            raise StorageError(error.errno or 0, "the catalog cannot be used", str(self.path)) from error

    def _errno_of(self, error: sqlite3.OperationalError) -> int:
        """What the operating system says, which SQLite keeps to itself; 0 when that is nothing."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_IOERR:  # also when there is no room for the "-shm" file
            disk = os.statvfs(self.path.parent)
            return errno.ENOSPC if disk.f_bavail * disk.f_frsize < _SHM_BYTES else errno.EIO
        if code in _ERRNO_OF_CODE:
            return _ERRNO_OF_CODE[code]
        try:
            os.close(os.open(self.path, os.O_RDWR if self._writable else os.O_RDONLY))
        except OSError as found:
            return found.errno or 0
        return 0

    def _check_format(self, connection: sqlite3.Connection) -> None:
        row = None
        if connection.execute("select 1 from sqlite_schema where name = 'meta'").fetchone():
            row = connection.execute("select value from meta where key = 'format'").fetchone()
        if row is None or row[0] != str(CATALOG_FORMAT):
            found = "no format" if row is None else f"format {row[0]}"
            raise StoreFormatError(f"{self.path} has {found}; this version of streamcore reads format {CATALOG_FORMAT}")

    def close(self) -> None:
        """Closes the connection; safe to call twice."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # ---- topics ----

    def topics(self) -> list[TopicRow]:
        """All topics, by name."""
        with self.reading() as connection:
            rows = connection.execute(f"select {_TOPIC_COLUMNS} from topics order by name").fetchall()
            return [self._with_schemas(connection, row) for row in rows]

    def topic(self, name: str) -> TopicRow | None:
        """The topic of this name."""
        return self._one_topic("name", name)

    def topic_by_id(self, topic_id: str) -> TopicRow | None:
        """The topic of this id."""
        return self._one_topic("id", topic_id)

    def _one_topic(self, column: str, value: str) -> TopicRow | None:
        with self.reading() as connection:
            row = connection.execute(
                f"select id, name, folder, partitions, config, generation, mixed from topics where {column} = ?",
                (value,),
            ).fetchone()
            return None if row is None else self._with_schemas(connection, row)

    def _with_schemas(self, connection: sqlite3.Connection, row: tuple[Any, ...]) -> TopicRow:
        schemas = dict(
            connection.execute("select version, schema from schemas where topic_id = ?", (row[0],)).fetchall()
        )
        try:
            config = json.loads(row[4])
        except ValueError as error:
            raise CorruptionError(f"the settings of topic {row[1]!r} are damaged", str(self.path)) from error
        if not schemas:
            raise CorruptionError(f"the schema of topic {row[1]!r} is missing", str(self.path))
        return TopicRow(row[0], row[1], row[2], row[3], config, row[5], bool(row[6]), schemas)

    def add_topic(self, row: TopicRow) -> None:
        """Records a new topic. Raises TopicExistsError."""
        try:
            with self.changing() as connection:
                connection.execute(
                    "insert into topics values (?, ?, ?, ?, ?, ?, ?)",
                    (row.id, row.name, row.folder, row.partitions, json.dumps(row.config), row.generation, row.mixed),
                )
                for version, schema in row.schemas.items():
                    connection.execute("insert into schemas values (?, ?, ?)", (row.id, version, schema))
        except sqlite3.IntegrityError:
            raise TopicExistsError(f"topic {row.name!r} exists already") from None

    def change_topic(self, row: TopicRow) -> bool:
        """Replaces a topic's settings if its generation is still the one before `row`'s; adds new schemas."""
        with self.changing() as connection:
            changed = connection.execute(
                "update topics set partitions = ?, config = ?, generation = ?, mixed = ? "
                "where id = ? and generation = ?",
                (row.partitions, json.dumps(row.config), row.generation, row.mixed, row.id, row.generation - 1),
            ).rowcount
            if changed == 0:
                return False
            for version, schema in row.schemas.items():
                connection.execute("insert or ignore into schemas values (?, ?, ?)", (row.id, version, schema))
            return True

    def remove_topic(self, topic_id: str) -> bool:
        """Forgets a topic; False when it was gone already."""
        with self.changing() as connection:
            return connection.execute("delete from topics where id = ?", (topic_id,)).rowcount > 0

    # ---- other state ----

    def setting(self, key: str) -> str | None:
        """A string kept for a key."""
        with self.reading() as connection:
            row = connection.execute("select value from settings where key = ?", (key,)).fetchone()
            return None if row is None else row[0]

    def set_setting(self, key: str, value: str | None) -> None:
        """Keeps a string for a key; None removes it."""
        with self.changing() as connection:
            if value is None:
                connection.execute("delete from settings where key = ?", (key,))
            else:
                connection.execute("insert or replace into settings values (?, ?)", (key, value))

    def check(self) -> list[str]:
        """What SQLite's own integrity check finds."""
        with self.reading() as connection:
            return [row[0] for row in connection.execute("pragma integrity_check").fetchall() if row[0] != "ok"]
