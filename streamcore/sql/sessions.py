"""Connections to DuckDB: one in-memory database per process, and in it an empty one for each query that runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamcore.errors import StreamcoreError
from streamcore.sql.syntax import Syntax, read_syntax

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

    from streamcore.sql.dataset import TopicDataset

_DUCKDB_MIN = 2
_IDLE_MAX = 4  # sessions that are kept
_SYNTAX_MAX = 256  # statements whose syntax is kept


@dataclass(slots=True)
class Session:
    """A connection to a database of its own, and the tables in it.

    Making a table takes DuckDB longer than a small query does. So tables stay, and are pointed at other topics: see
    `_tables`.
    """

    connection: duckdb.DuckDBPyConnection
    name: str
    tables: dict[str, TopicDataset] = field(default_factory=dict)
    bound: dict[str, tuple[duckdb.DuckDBPyRelation, list[str]]] = field(default_factory=dict)  # to these tables


class Sessions:
    """The DuckDB of this process, and sessions in it that wait to be used again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._root: duckdb.DuckDBPyConnection | None = None
        self._idle: list[Session] = []
        self._syntax: dict[str, Syntax] = {}

    def start_anew(self) -> None:
        """Leave the DuckDB of this process's parent alone: its threads do not exist here, to be waited for or ended."""
        import ctypes

        for held in (self._root, *(session.connection for session in self._idle)):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))  # never destroyed, not even at exit
        self._lock, self._root, self._idle = threading.Lock(), None, []

    @contextlib.contextmanager
    def opened(self, sql: str) -> Iterator[Session]:
        """A session of one's own. It is used again only after a SELECT, which leaves nothing behind."""
        session = self._take()
        clean = False
        try:
            statements = session.connection.extract_statements(sql)
            selects = len(statements) == 1 and statements[0].type.name == "SELECT"
            yield session
            clean = selects
        finally:
            self._give_back(session, clean=clean)

    def syntax_of(self, session: Session, sql: str) -> Syntax:
        """What a statement says about fields of values; statements of late are remembered."""
        found = self._syntax.get(sql)
        if found is None:
            found = read_syntax(session.connection, sql)
            with self._lock:
                if len(self._syntax) >= _SYNTAX_MAX:
                    self._syntax.clear()
                self._syntax[sql] = found
        return found

    def _take(self) -> Session:
        import duckdb

        if int(duckdb.__version__.partition(".")[0]) < _DUCKDB_MIN:  # older ones misread slices of nested structs
            raise StreamcoreError(f"SQL needs DuckDB {_DUCKDB_MIN} or later, and this is {duckdb.__version__}")
        with self._lock:
            if self._root is None:
                self._root = duckdb.connect(":memory:")
            if self._idle:
                return self._idle.pop()
            session = Session(self._root.cursor(), f"streamcore_{next(self._numbers)}")
        session.connection.execute(
            f"attach ':memory:' as {session.name}; use {session.name}; set TimeZone = 'UTC';"
            "set python_enable_replacements = false; create macro text(bytes) as try(decode(bytes))"
        )
        return session

    def _give_back(self, session: Session, *, clean: bool) -> None:
        for table in session.tables.values():
            table.release()
        with self._lock:
            if clean and len(self._idle) < _IDLE_MAX:
                self._idle.append(session)
                return
        with contextlib.suppress(Exception):  # closing forgets a database that cannot be detached
            session.connection.execute(f"use memory; detach {session.name}")
        session.connection.close()


sessions = Sessions()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=sessions.start_anew)
