"""SQL over a topic as a user reaches it, and the same query over a table in memory."""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa


def over_store(store: Any, text: str) -> pa.Table:
    """`store.sql(text)` or `streamcore.sql.query(store, text)`, whichever this version has."""
    if hasattr(store, "sql"):
        result = store.sql(text)
    else:
        import streamcore.sql

        result = streamcore.sql.query(store, text)
    return result if isinstance(result, pa.Table) else pa.table(result)


class TableInMemory:
    """A table registered in a DuckDB connection that is at hand: what a query over it costs at least."""

    def __init__(self, name: str, table: pa.Table) -> None:
        self._connection = duckdb.connect()
        self._connection.register(name, table)

    def query(self, text: str) -> pa.Table:
        answer: pa.Table = self._connection.sql(text).to_arrow_table()
        return answer

    def close(self) -> None:
        self._connection.close()


def over_table(name: str, table: pa.Table, text: str) -> pa.Table:
    """The query over a table in memory, connection and all."""
    in_memory = TableInMemory(name, table)
    answer = in_memory.query(text)
    in_memory.close()
    return answer
