"""`catalog.sqlite`: topics, their settings and schemas, and other small state of a store.

Every change is a transaction of its own with synchronous=FULL. A store that is opened for reading never writes here:
the file is then read as it is, or, while a writer has it open, through SQLite's own protocol.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import mmap
import os
import re
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from streamcore.config import PARTITIONS_MAX, check_topic_name
from streamcore.errors import (
    CorruptionError,
    StorageError,
    StoreFormatError,
    StoreReadOnlyError,
    StreamcoreError,
    TopicExistsError,
)

CATALOG_NAME = "catalog.sqlite"
IS_PARTITION = f"between 0 and {PARTITIONS_MAX - 1}"  # in the `sense` of tables
IS_COUNT = f"between 0 and {1 << 62}"
IS_TIME = f"between -{1 << 47} and {1 << 47}"  # milliseconds: years that a date can have
CATALOG_FORMAT = 1
_BUSY_TIMEOUT_S = 30.0
_READ_ATTEMPTS = 10
_FOLDER_NAME_MAX = 200
_GENERATION_MAX = (1 << 32) - 1
_TOPIC_ID = re.compile(r"[0-9a-f]{16}")
_TOPIC_FOLDER = re.compile(r".+-[0-9a-f]{16}")
_TOPIC_COLUMNS = "id, name, folder, partitions, config, generation, mixed"

_opening = threading.RLock()  # while SQLite has the "-shm" file open for reading only, nobody opens it for writing


def _renew_opening() -> None:
    global _opening
    _opening = threading.RLock()


os.register_at_fork(after_in_child=_renew_opening)

_SHM_BYTES = 32 << 10
_OPENING_BYTES = 128 << 10  # more than SQLite needs to open a catalog
_TYPES = {"text": "'text'", "integer": "'integer'", "real": "'real', 'integer'", "blob": "'blob'"}
_LOG_HEADER_BYTES = 32
_ERRNO_OF_CODE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}

_DELETIONS = "create table if not exists deletions (folder text primary key) without rowid"
_SETTLED = (
    "select ? <= (select count(*) from topics) "
    "and not exists (select 1 from sqlite_schema where name = 'deletions' and type = 'table')"
)
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


_STATEMENTS = "select name, sql from sqlite_schema where type = 'table' and name not like 'sqlite_%'"
_COLUMNS = """
select s.name, c.name, lower(c.type), c."notnull", c.pk from sqlite_schema s, pragma_table_info(s.name) c
where s.type = 'table' and s.name not like 'sqlite_%' order by s.rowid, c.cid
"""


_Columns = list[tuple[str, str, int, int]]  # name, type, required, and place in the key


def _without_required(columns: _Columns) -> list[tuple[str, str, int]]:
    return [(name, kind, key) for name, kind, _, key in columns]


def _misfits(columns: _Columns) -> str:
    """What is true of a row with a value of another type than its column."""
    return " or ".join(
        f"typeof({name}) not in ({_TYPES[kind]}" + (")" if required or key else ", 'null')")
        for name, kind, required, key in columns
    )


@functools.cache
def _made_by(statements: str) -> tuple[dict[str, str], dict[str, _Columns]]:
    """By table, how SQLite writes the statement down, and its columns."""
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        model.executescript(statements)
        return dict(model.execute(_STATEMENTS).fetchall()), _columns_of(model)


def _columns_of(connection: sqlite3.Connection) -> dict[str, _Columns]:
    found: dict[str, _Columns] = {}
    for table, *column in connection.execute(_COLUMNS):
        found.setdefault(table, []).append(tuple(column))
    return found


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


def topic_folder(name: str, topic_id: str) -> str:
    """The name of a topic's folder: its own by its id, and readable by its name."""
    return f"{name[:_FOLDER_NAME_MAX]}-{topic_id}"


def _is_plain(folder: Any) -> bool:
    """Whether it names something right below a folder."""
    return isinstance(folder, str) and "/" not in folder and "\0" not in folder and folder.strip(".") != ""


def _wrong_in(row: TopicRow) -> str | None:
    """What no streamcore has written. The folder above all: it must not lead out of the store, nor be another's."""
    if not isinstance(row.id, str) or not _TOPIC_ID.fullmatch(row.id):
        return f"its id is {row.id!r}"
    try:
        check_topic_name(row.name)
    except (TypeError, ValueError) as error:
        return str(error)
    if row.folder != topic_folder(row.name, row.id):
        return f"its folder is {row.folder!r}, not {topic_folder(row.name, row.id)!r}"
    if not isinstance(row.partitions, int) or not 1 <= row.partitions <= PARTITIONS_MAX:
        return f"it has {row.partitions!r} partitions"
    if not isinstance(row.config, dict):
        return "its settings are no settings"
    if not isinstance(row.generation, int) or not 1 <= row.generation <= _GENERATION_MAX:
        return f"its generation is {row.generation!r}"
    for version, schema in row.schemas.items():
        if not isinstance(version, int) or not 1 <= version <= _GENERATION_MAX or not isinstance(schema, bytes):
            return f"its schema {version!r} is no schema"
    return None


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


class _Ended:
    """Commits, or rolls back behind any exception, that of the commit included: SQLite then keeps some transactions
    open, and has ended others by itself."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._roll_back()
            return
        try:
            self._connection.execute("commit")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # what was wrong first is what is told
                self._connection.execute("rollback")


class _Translated:
    """Errors of SQLite in the block are raised as those of streamcore."""

    __slots__ = ("_catalog",)

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None and (translated := self._catalog.translated(error)) is not None:
            raise translated from error


class Catalog:
    """The catalog of one store. Used by one process; threads exclude each other."""

    def __init__(self, store_path: Path, writable: bool) -> None:
        self.path = store_path / CATALOG_NAME
        self._writable = writable
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._durable = True
        self._checked: set[str] = set()
        self.tables: frozenset[str] = frozenset()  # that were there when it was opened for writing
        self._unusable_log: tuple[int, ...] | None = None
        if writable:
            with _opening:
                self._connection = self._open_writable()
        else:
            with self.reading() as connection:
                self._check_format(connection)

    @property
    def writable(self) -> bool:
        """Whether the store was opened for writing."""
        return self._writable

    # ---- connections ----

    def _check_files(self) -> None:
        """At a pipe SQLite would wait. With a link or a second name there would be two logs of one catalog."""
        for ending in ("", "-wal", "-shm", "-journal"):
            path = f"{self.path}{ending}"
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(found.st_mode):
                raise StorageError(errno.ELOOP, "a file of a store cannot be a symbolic link", path)
            if not stat.S_ISREG(found.st_mode):
                number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
                raise StorageError(number, "the catalog is no file", path)
            if self._writable and not ending and found.st_nlink > 1:
                names = f"the catalog has {found.st_nlink} names (hard links), and would change in all of these places"
                raise StorageError(errno.EMLINK, names, path)

    def _open_writable(self) -> sqlite3.Connection:
        with _Translated(self):
            self._check_files()
            disk = os.statvfs(self.path.parent)
            small_blocks = disk.f_frsize < mmap.PAGESIZE and not disk.f_flag & os.ST_RDONLY
            if small_blocks and disk.f_bavail * disk.f_frsize < _OPENING_BYTES:
                raise StorageError(errno.ENOSPC, "there is no room for opening the catalog", str(self.path))
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self.tables = self._tables_of_ours(connection)
                _enter_wal_mode(connection)
                connection.execute("pragma synchronous = full")
                connection.execute("pragma foreign_keys = on")
                if small_blocks:
                    self._reserve_shm(connection)
                if not self.tables:
                    self._make_tables(connection)
            except BaseException:
                connection.close()
                raise
            return connection

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        """Where another process did not make them just now."""
        connection.execute("begin immediate")
        with _Ended(connection):
            if not connection.execute("select 1 from sqlite_schema where name = 'meta'").fetchone():
                for statement in _TABLES.split(";\n"):
                    connection.execute(statement)
                connection.execute("insert into meta values ('format', ?)", (str(CATALOG_FORMAT),))
        self._check_format(connection)

    def _reserve_shm(self, connection: sqlite3.Connection) -> None:
        """Reserves all blocks of the mapped `-shm` file, of which SQLite reserves one in each page by writing a byte.

        Where blocks are smaller than pages the first store into another one needs room, and a full disk would then be
        the end of the process (SIGBUS). Through SQLite's own descriptor: closing another one would drop its locks.
        """
        connection.execute("select 1 from sqlite_schema").fetchone()
        path = self.path.with_name(self.path.name + "-shm")
        with contextlib.suppress(FileNotFoundError):  # no Linux
            for link in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    if link.readlink() == path:
                        os.posix_fallocate(int(link.name), 0, os.fstat(int(link.name)).st_size)

    def _tables_of_ours(self, connection: sqlite3.Connection) -> frozenset[str]:
        """None when it is empty. It becomes a catalog then, but not where there are topics; and nothing of somebody
        else's does."""
        topics = False  # looked for first: others make the catalog before a topic
        with contextlib.suppress(FileNotFoundError, PermissionError), os.scandir(self.path.parent / "topics") as found:
            topics = any(True for _ in found)
        tables = {name for (name,) in connection.execute("select name from sqlite_schema where type = 'table'")}
        if tables and "meta" not in tables:
            raise StoreFormatError(f"{self.path} is a database, but no catalog of streamcore", str(self.path))
        if topics and not tables:
            lost = f"{self.path} is empty, but there are topics: restore that file from a backup"
            raise StoreFormatError(lost, str(self.path))
        if tables:
            self._check_format(connection)  # before anything is written: it may be of a newer version
        return frozenset(tables)

    def signature(self) -> tuple[int, ...]:
        """Changes when the catalog does: sizes and times of its files."""
        found = []
        for ending in ("", "-wal"):
            try:
                file = self.path.with_name(self.path.name + ending).lstat()
                found += [file.st_size, file.st_mtime_ns, file.st_ino]
            except FileNotFoundError:
                found += [0, 0, 0]
        return tuple(found)

    def _open_read_only(self) -> sqlite3.Connection:
        for attempt in range(_READ_ATTEMPTS):
            connection = None
            try:
                self._check_files()
                connection = self._connect_read_only()
                connection.execute("select count(*) from sqlite_schema").fetchone()
                break
            except (sqlite3.OperationalError, FileNotFoundError) as error:  # the last writer left in between
                if connection is not None:
                    connection.close()
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code == sqlite3.SQLITE_PROTOCOL:
                    self._unusable_log = self.signature()
                elif attempt == _READ_ATTEMPTS - 1 or code == sqlite3.SQLITE_BUSY:  # SQLite has waited for that
                    raise
        else:
            raise StorageError(errno.EBUSY, "the catalog is changed by others all the time", str(self.path))
        return connection

    def _connect_read_only(self) -> sqlite3.Connection:
        """Without writing a byte: SQLite would write to the `-shm` file of a log that holds changes, or make one.

        Where the `-shm` file does not fit the log, which it does while somebody has the catalog open, it is no help.
        """
        log = self.path.with_name(self.path.name + "-wal")
        log_bytes = log.stat().st_size if log.exists() else 0
        if log_bytes == 0:
            return self._connect(self.path, "mode=ro&immutable=1")
        if log_bytes <= _LOG_HEADER_BYTES:
            return self._copied_at_rest()
        if self.path.with_name(self.path.name + "-shm").exists() and self.signature() != self._unusable_log:
            return self._connect(self.path, "mode=ro&readonly_shm=1")
        memory = sqlite3.connect(":memory:")
        with tempfile.TemporaryDirectory() as folder:
            for file in (self.path, log):
                shutil.copyfile(file, Path(folder) / file.name)
            with contextlib.closing(self._connect(Path(folder) / self.path.name, "mode=rw")) as copied:
                copied.backup(memory)
        return memory

    def _copied_at_rest(self) -> sqlite3.Connection:
        """Of a log with a header alone. SQLite takes that for one that is being recovered, and waits for its end; so it
        is, or a crash came behind its first write. Raises OperationalError when somebody writes meanwhile."""
        before = self.signature()
        memory = sqlite3.connect(":memory:")
        try:
            with contextlib.closing(self._connect(self.path, "mode=ro&immutable=1")) as found:
                found.backup(memory)
        except sqlite3.DatabaseError:
            if self.signature() == before:
                raise
        if self.signature() != before:
            memory.close()
            raise sqlite3.OperationalError("the catalog is being written to")
        return memory

    @staticmethod
    def _connect(path: Path, options: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=_BUSY_TIMEOUT_S)

    def ensure_tables(self, statements: str, sense: Mapping[str, str] = MappingProxyType({})) -> None:
        """Makes the tables of one concept (`create table if not exists …;`) if it can write, once per open store.

        Raises CorruptionError as `check_tables`.
        """
        self.check_tables(statements, sense)
        if self._writable and statements not in self._checked:
            with self.changing() as connection:
                for statement in statements.split(";\n"):
                    connection.execute(statement)
            self.check_tables(statements, sense)

    def has_table(self, name: str) -> bool:
        """Whether a table was made."""
        with self.reading() as connection:
            return bool(connection.execute("select 1 from sqlite_schema where name = ?", (name,)).fetchone())

    def check_tables(self, statements: str, sense: Mapping[str, str]) -> None:
        """Looks at what is there of the tables of one concept, once per open store.

        sense: by table, what SQL says is true of each of its rows. Raises CorruptionError for a table that is not made
        by the statements, and for a row whose values are of other types than its columns, or make no sense: SQLite
        takes any value in any column, and what comes out of them goes into the core.
        """
        if statements in self._checked:
            return
        written, wanted = _made_by(statements)
        with self.reading() as connection:
            found = {table: sql for table, sql in connection.execute(_STATEMENTS).fetchall() if table in wanted}
            if not found.items() <= written.items():  # of another version, or of somebody else
                self._check_columns(connection, {table: wanted[table] for table in found})
            self._check_rows(connection, {table: wanted[table] for table in found}, sense)
        if len(found) == len(wanted):
            self._checked.add(statements)

    def _check_columns(self, connection: sqlite3.Connection, wanted: Mapping[str, _Columns]) -> None:
        found = _columns_of(connection)
        for table, columns in wanted.items():
            if _without_required(found.get(table, [])) != _without_required(columns):
                raise CorruptionError(f"the catalog's table {table} is not the one of streamcore", str(self.path))

    def _check_rows(
        self, connection: sqlite3.Connection, tables: Mapping[str, _Columns], sense: Mapping[str, str]
    ) -> None:
        questions = [
            f"select '{table}' where exists (select 1 from {table} where {_misfits(columns)}"
            + (f" or ({sense[table]}) is not true)" if table in sense else ")")
            for table, columns in tables.items()
        ]
        wrong = connection.execute(" union all ".join(questions)).fetchone() if questions else None
        if wrong is not None:
            raise CorruptionError(
                f"the catalog's table {wrong[0]} has a row that no streamcore has written", str(self.path)
            )

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries: of a store opened for reading, of what the catalog is now."""
        with self._lock, _Translated(self):
            if self._connection is not None:
                yield self._connection
                return
            if self._writable:
                raise StreamcoreError("the store is closed")
            with _opening, contextlib.closing(self._open_read_only()) as connection:
                yield connection

    @contextlib.contextmanager
    def at_one_moment(self) -> Iterator[sqlite3.Connection]:
        """As `reading`, for several queries: what others change meanwhile is in none of them."""
        with self.reading() as connection:
            if connection.in_transaction:
                yield connection
                return
            connection.execute("begin")
            try:
                yield connection
            finally:
                connection.rollback()  # nothing was changed

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
            with _Ended(connection):
                yield connection

    def translated(self, error: BaseException) -> StreamcoreError | None:
        """The error of streamcore for one of SQLite or of the system; None for any other."""
        if isinstance(error, sqlite3.IntegrityError | StreamcoreError):
            return None
        if isinstance(error, sqlite3.OperationalError):
            # no such table or column; text that is not UTF-8, which has no code
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF == sqlite3.SQLITE_ERROR:
                return CorruptionError(f"the catalog is damaged ({error})", str(self.path))
            return StorageError(self._errno_of(error), f"the catalog cannot be used ({error})", str(self.path))
        if isinstance(error, sqlite3.DatabaseError):
            return CorruptionError(f"the catalog is damaged ({error})", str(self.path))
        if isinstance(error, OSError):
            return StorageError(error.errno or 0, "the catalog cannot be used", str(self.path))
        return None

    def _errno_of(self, error: sqlite3.OperationalError) -> int:
        """What the operating system says, which SQLite keeps to itself; 0 when that is nothing."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_IOERR:  # also when there is no room for the "-shm" file
            try:
                disk = os.statvfs(self.path.parent)
            except OSError:
                return errno.EIO
            return errno.ENOSPC if disk.f_bavail * disk.f_frsize < _SHM_BYTES else errno.EIO
        if code in _ERRNO_OF_CODE:
            return _ERRNO_OF_CODE[code]
        if os.access(self.path, os.R_OK | (os.W_OK if self._writable else 0)):
            return 0
        with contextlib.suppress(OSError):
            if self._writable and os.statvfs(self.path.parent).f_flag & os.ST_RDONLY:
                return errno.EROFS
        if os.path.lexists(self.path):
            return errno.EACCES  # opening it to learn more would drop SQLite's locks when closed
        return self._errno_of_missing()

    def _errno_of_missing(self) -> int:
        """Why there is no catalog: what its folder says, else that it could not be made or was never there."""
        try:
            os.close(os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            return error.errno or errno.EIO
        return errno.EIO if self._writable else errno.ENOENT

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
        with self.at_one_moment() as connection:
            rows = connection.execute(f"select {_TOPIC_COLUMNS} from topics order by name").fetchall()
            return [self._with_schemas(connection, row) for row in rows]

    def topic(self, name: str) -> TopicRow | None:
        """The topic of this name."""
        return self._one_topic("name", name)

    def topic_by_id(self, topic_id: str) -> TopicRow | None:
        """The topic of this id."""
        return self._one_topic("id", topic_id)

    def _one_topic(self, column: str, value: str) -> TopicRow | None:
        with self.at_one_moment() as connection:
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
        except (TypeError, ValueError, RecursionError) as error:
            raise CorruptionError(f"the settings of topic {row[1]!r} are damaged", str(self.path)) from error
        if not schemas:
            raise CorruptionError(f"the schema of topic {row[1]!r} is missing", str(self.path))
        found = TopicRow(row[0], row[1], row[2], row[3], config, row[5], bool(row[6]), schemas)
        wrong = _wrong_in(found)
        if wrong:
            raise CorruptionError(f"the catalog has a damaged topic {str(row[1])[:250]!r}: {wrong}", str(self.path))
        return found

    def add_topic(self, row: TopicRow, make_folder: Callable[[], None] = lambda: None) -> None:
        """Records a new topic, whose folder is made in the same transaction. Raises TopicExistsError."""
        try:
            with self.changing() as connection:
                connection.execute(
                    "insert into topics values (?, ?, ?, ?, ?, ?, ?)",
                    (row.id, row.name, row.folder, row.partitions, json.dumps(row.config), row.generation, row.mixed),
                )
                for version, schema in row.schemas.items():
                    connection.execute("insert into schemas values (?, ?, ?)", (row.id, version, schema))
                make_folder()
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
        """Forgets a topic, but for its folder, until `end_deletion`; False when it was gone already."""
        self.ensure_tables(_DELETIONS)
        with self.changing() as connection:
            connection.execute("insert or ignore into deletions select folder from topics where id = ?", (topic_id,))
            return connection.execute("delete from topics where id = ?", (topic_id,)).rowcount > 0

    def deletions(self) -> list[str]:
        """The folders of topics whose deletion has not ended."""
        with self.at_one_moment() as connection:
            if not connection.execute("select 1 from sqlite_schema where name = 'deletions'").fetchone():
                return []
            return [folder for (folder,) in connection.execute("select folder from deletions") if _is_plain(folder)]

    def end_deletion(self, folder: str) -> None:
        """The folder of a deleted topic is gone."""
        with self.changing(durable=False) as connection:
            connection.execute("delete from deletions where folder = ?", (folder,))

    def is_settled(self, folders: int) -> bool:
        """Whether there are no more folders than topics, and no deletion was ever begun here."""
        with self.reading() as connection:
            return bool(connection.execute(_SETTLED, (folders,)).fetchone()[0])

    def remove_strangers(self, topics_path: Path) -> None:
        """Removes empty folders that are of no topic, and named like one's: who made them died before they were."""
        names = {path.name for path in topics_path.iterdir() if _TOPIC_FOLDER.fullmatch(path.name)}
        with self.reading() as connection:
            known = {folder for (folder,) in connection.execute("select folder from topics")}
        if names <= known:
            return
        with self.changing(durable=False) as connection:  # so nobody makes one now
            for name in names - {folder for (folder,) in connection.execute("select folder from topics")}:
                with contextlib.suppress(OSError):  # one with files may be of a catalog that was put back
                    (topics_path / name).rmdir()

    def copy_to(self, path: Path) -> None:
        """Writes what the catalog says at one moment into a new database, without the space it does not use."""
        with self.reading() as connection:
            connection.execute("vacuum into ?", (str(path),))

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
