"""A statement, from text to result."""

from __future__ import annotations

import collections
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from streamcore.errors import StreamcoreError
from streamcore.sql.sessions import Session, sessions
from streamcore.sql.syntax import UNKNOWN, Syntax
from streamcore.sql.tables import tables_of, topics_named

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import duckdb

    from streamcore import Store
    from streamcore.sql.dataset import TopicDataset

_BOUND_MAX = 32  # statements that a session keeps bound


@dataclass(slots=True)
class QueryMetrics:
    """What one query read: pass an empty one to `query`, which fills it.

    `topics` are those the query names; `segments_total` counts their segments and `segments_opened` those that were
    read; `columns` are the columns read, as `topic.column`; `rows` and `bytes_exported` went from the log to the
    engine (a `count(*)` counts rows without exporting any). `bytes_verified` were passed over to check batches that
    this process had not read before.
    """

    topics: tuple[str, ...] = ()
    segments_total: int = 0
    segments_opened: int = 0
    columns: tuple[str, ...] = ()
    bytes_exported: int = 0
    rows: int = 0
    bytes_verified: int = 0


def query(
    store: Store,
    sql: str,
    metrics: QueryMetrics | None = None,
    params: Sequence[object] | Mapping[str, object] | None = None,
) -> pa.Table:
    """Run one SQL statement in which each topic of `store` is a table, and return its result.

    `metrics` is filled with what the query read. `params` are bound to `?` or `$name` in the text. Times without a
    zone are UTC. Besides DuckDB's own functions there is `text(blob)`: the UTF-8 text of a key or value, null where it
    is not UTF-8. What the statement creates lives only as long as the statement. Errors are DuckDB's, and those of the
    log (`CorruptionError` ...) where reading it fails. Needs the package `duckdb`.
    """
    import duckdb

    try:
        return _run(store, sql, metrics, params, whole_values=False)
    except duckdb.BinderException:
        # Raised before anything runs. Should it be because a field was not found in the syntax tree, this helps.
        return _run(store, sql, metrics, params, whole_values=True)


def _run(
    store: Store,
    sql: str,
    metrics: QueryMetrics | None,
    params: Sequence[object] | Mapping[str, object] | None,
    *,
    whole_values: bool,
) -> pa.Table:
    with sessions.opened(sql) as session:
        topics = topics_named(store, sql)
        typed = any(topic.schema is not None for topic in topics)
        syntax = sessions.syntax_of(session, sql) if typed and not whole_values else UNKNOWN
        datasets = tables_of(session, topics, syntax.fields)
        with _errors_of_the_log(datasets):
            if params is None:
                table = _answer(session, sql, syntax)
            else:
                relation = session.connection.sql(sql, params=params)
                table = pa.table({}) if relation is None else relation.to_arrow_table()
        if metrics is not None:
            _measure(datasets, metrics)
        return table


@contextlib.contextmanager
def _errors_of_the_log(datasets: Iterable[TopicDataset]) -> Iterator[None]:
    """Raises what reading the log raised, of which DuckDB passes on no more than the text."""
    import duckdb

    try:
        yield
    except duckdb.InvalidInputException as error:
        for dataset in datasets:
            for scan in (*dataset.reads.scans, *dataset.reads.counting):
                try:
                    collections.deque(scan.batches(), 0)
                except StreamcoreError as found:
                    raise found from error
        raise


def _answer(session: Session, sql: str, syntax: Syntax) -> pa.Table:
    """Run a statement, or bind it once and run it again and again while the tables look the same."""
    if sql not in session.bound:
        asked = session.connection.sql(sql)
        if asked is None:
            return pa.table({})
        if len(session.bound) >= _BOUND_MAX:
            session.bound.clear()
        session.bound[sql] = (_directly(session.connection, asked, syntax.direct), list(asked.columns))
    relation, names = session.bound[sql]
    return relation.to_arrow_table().rename_columns(names)


def _directly(
    connection: duckdb.DuckDBPyConnection, asked: duckdb.DuckDBPyRelation, direct: str | None
) -> duckdb.DuckDBPyRelation:
    """The statement that names fields as columns, if that means the same as what was asked for."""
    import duckdb

    if direct is None:
        return asked
    try:
        rewritten = connection.sql(direct)
    except duckdb.Error:
        return asked
    return rewritten if rewritten is not None and rewritten.types == asked.types else asked


def _measure(datasets: Iterable[TopicDataset], metrics: QueryMetrics) -> None:
    """Fill `metrics` with what the datasets of a query have read."""
    topics: list[str] = []
    columns: set[str] = set()
    metrics.segments_total = metrics.segments_opened = 0
    metrics.bytes_exported = metrics.bytes_verified = metrics.rows = 0
    for dataset in datasets:
        name, reads = dataset.snapshot.topic.name, dataset.reads
        topics.append(name)
        columns.update(f"{name}.{column}" for column in reads.columns)
        metrics.segments_total += len(dataset.snapshot.segments)
        for scan, rows in reads.counts:
            metrics.segments_opened += scan.metrics.segments_opened
            metrics.bytes_verified += scan.metrics.bytes_verified
            metrics.rows += rows
        for scan in reads.scans:
            metrics.segments_opened += scan.metrics.segments_opened
            metrics.bytes_exported += scan.metrics.bytes_exported
            metrics.bytes_verified += scan.metrics.bytes_verified
            metrics.rows += scan.metrics.rows
    metrics.topics = tuple(topics)
    metrics.columns = tuple(sorted(columns))
