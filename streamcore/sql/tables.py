"""Topics as tables: which ones a statement names, and the view that arranges a topic's columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamcore.sql.dataset import Snapshot, TopicDataset

if TYPE_CHECKING:
    import duckdb

    from streamcore import Store, Topic
    from streamcore.sql.sessions import Session


def topics_named(store: Store, sql: str) -> list[Topic]:
    """The topics whose names are in the statement: more than it reads, perhaps. All of them if there is none.

    DuckDB's names ignore case, so two topics that differ in nothing else cannot be tables at once.
    """
    text = sql.casefold()
    topics = store.topics()
    named = [topic for topic in topics if topic.name.casefold() in text] or topics
    found: dict[str, Topic] = {}
    for topic in named:
        other = found.setdefault(topic.name.casefold(), topic)
        if other is not topic:
            raise ValueError(f"the names of topics {other.name!r} and {topic.name!r} differ only in case, for SQL not")
    return named


def fields_used(topic: Topic, fields: frozenset[str] | None) -> tuple[str, ...] | None:
    """The fields of a typed topic that a statement reads, None for the whole value."""
    if topic.schema is None or fields is None:
        return None
    return tuple(name for name in topic.schema.names if name.casefold() in fields) or None


def tables_of(session: Session, topics: list[Topic], fields: frozenset[str] | None) -> list[TopicDataset]:
    """Make these topics, and no others, the tables of a session; tables that look the same are used again."""
    wanted = {topic.name: TopicDataset(Snapshot(topic), fields_used(topic, fields)) for topic in topics}
    for name in list(session.tables):
        if name not in wanted or not session.tables[name].looks_like(wanted[name]):
            session.connection.execute(f"drop view {_quoted(name)}")
            session.bound.clear()
            del session.tables[name]
    for name, table in wanted.items():
        if name in session.tables:
            session.tables[name].read_from(table.snapshot)
        else:
            _create_table(session.connection, name, table)
            session.bound.clear()
            session.tables[name] = table
    return [session.tables[name] for name in wanted]


def _create_table(connection: duckdb.DuckDBPyConnection, name: str, table: TopicDataset) -> None:
    """Make a dataset a table: a view that arranges its columns.

    Key, value and fields go through a struct that is made in one projection and taken apart in the next. That costs
    nothing that can be measured and DuckDB pushes no filter through it, which is what is wanted: see the top.
    """
    value, outer, fields = "value", "value", ""
    if table.fields is not None:
        members = ", ".join(f"{_quoted(field)} := {_quoted('value.' + field)}" for field in table.fields)
        value = f"struct_pack({members})"
        fields = "".join(f", {_quoted('value.' + field)}" for field in table.fields)
    elif table.typed is None:
        value, outer = "struct_pack(whole := value)", "struct_extract(value, 'whole')"
    inner = f'partition, "offset", "timestamp", struct_pack(whole := key) as key, {value} as value, headers{fields}'
    outer = (
        f"""partition, "offset", "timestamp", struct_extract(key, 'whole') as key, {outer} as value, headers{fields}"""
    )
    connection.from_arrow(table).project(inner).project(outer).create_view(name)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
