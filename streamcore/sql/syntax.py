"""What a statement says about fields of values, from DuckDB's own syntax tree."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import duckdb


class Syntax(NamedTuple):
    """What a statement says about fields of values.

    `fields` are those it names, None where it may use whole values. `direct` is the statement with fields named as the
    columns `value.<field>` in place of parts of a struct, which saves DuckDB making the struct; None where names could
    mean something else then.
    """

    fields: frozenset[str] | None
    direct: str | None


UNKNOWN = Syntax(None, None)
_TABLE_KINDS = {"BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EMPTY", "EXPRESSION_LIST"}


@dataclass(slots=True)
class _Usage:
    """What is found in a syntax tree."""

    fields: set[str] | None = field(default_factory=set)  # None: whole values
    rows: set[str] = field(default_factory=set)  # names that, used as a column, mean a whole row
    plain: bool = True  # only topics, subqueries and joins of them, and nothing else that is called value

    def everything(self) -> None:
        """Whole values are used, or something is in the statement that is not understood."""
        self.fields = None

    def field_used(self, name: str) -> None:
        """`value.<name>` is used."""
        if self.fields is not None:
            self.fields.add(name.casefold())


def read_syntax(connection: duckdb.DuckDBPyConnection, sql: str) -> Syntax:
    """Find the fields that `sql` names. Only a single SELECT has a syntax tree; anything else may use everything."""
    rows = connection.execute("select json_serialize_sql(?::varchar)", [sql]).fetchall()
    tree = json.loads(rows[0][0])
    if tree.get("error") or len(tree.get("statements", ())) != 1:
        return UNKNOWN
    usage = _Usage()
    references: list[list[str]] = []
    _walk(tree["statements"], usage, references)
    for names in references:
        _column_used(names, usage)
    if usage.fields is None:
        return UNKNOWN
    direct = None
    if usage.plain and usage.fields:
        _name_directly(tree["statements"])
        direct = connection.execute("select json_deserialize_sql(?::json)", [json.dumps(tree)]).fetchall()[0][0]
    return Syntax(frozenset(usage.fields), direct)


def _name_directly(node: Any) -> None:
    """Turn `value.f` into the column `value.f`, except in WHERE and ON: filters on it would go into the scan."""
    if isinstance(node, list):
        for child in node:
            _name_directly(child)
        return
    if not isinstance(node, dict):
        return
    if node.get("class") == "COLUMN_REF":
        names = node["column_names"]
        place = next((at for at, name in enumerate(names[:-1]) if name.casefold() == "value"), None)
        if place is not None:
            node["alias"] = node["alias"] or names[-1]
            node["column_names"] = [*names[:place], f"{names[place]}.{names[place + 1]}", *names[place + 2 :]]
        return
    for name, child in node.items():
        if name not in ("where_clause", "condition") and isinstance(child, dict | list):
            _name_directly(child)


def _walk(node: Any, usage: _Usage, references: list[list[str]]) -> None:
    """Collect tables and column references below `node`, and give up on fields where whole rows may be meant."""
    if isinstance(node, list):
        for child in node:
            _walk(child, usage, references)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("type")
    if kind == "LAMBDA" or "value" in (str(node.get("alias")).casefold(), str(node.get("key")).casefold()):
        usage.plain = False
    if "class" in node:
        if node["class"] == "COLUMN_REF":
            references.append([name.casefold() for name in node["column_names"]])
        elif kind in ("STAR", "POSITIONAL_REFERENCE"):
            usage.everything()
        elif kind in ("STRUCT_EXTRACT", "ARRAY_EXTRACT") and (name := _subscript(node["children"])) is not None:
            usage.field_used(name)
            return
    elif "query_location" in node and "alias" in node:
        _table_used(node, usage)
    elif kind == "ORDER_MODIFIER":
        _walk([order for order in node.get("orders", ()) if not _orders_by_all(order)], usage, references)
        return
    for child in node.values():
        if isinstance(child, dict | list):
            _walk(child, usage, references)


def _orders_by_all(order: dict[str, Any]) -> bool:
    """Whether this is the star of ORDER BY ALL, which means what is selected already."""
    by = order.get("expression") or {}
    return by.get("type") == "STAR" and bool(by.get("columns")) and by.get("expr") is None


def _subscript(children: list[Any]) -> str | None:
    """The field in `value['field']` or `(value).field`, None when it is something else."""
    if len(children) != 2 or children[0].get("class") != "COLUMN_REF" or children[1].get("class") != "CONSTANT":
        return None
    names, literal = children[0]["column_names"], children[1].get("literal") or {}
    if names[-1].casefold() != "value" or "value" in (name.casefold() for name in names[:-1]):
        return None
    return literal.get("text") if literal.get("kind") == "STRING" else None


def _table_used(node: dict[str, Any], usage: _Usage) -> None:
    """Note what a FROM clause names, and give up where it hides names or joins on columns that nobody wrote."""
    kind = node.get("type")
    hides = kind not in _TABLE_KINDS
    usage.plain &= kind in ("BASE_TABLE", "SUBQUERY", "JOIN") and node.get("table_name") != "value"
    if kind == "BASE_TABLE":
        usage.rows.update(name.casefold() for name in (node["table_name"], node["alias"]) if name)
    elif kind == "TABLE_FUNCTION":
        hides = node["function"].get("function_name") in ("query", "query_table")
    joined_on = (name.casefold() for name in node.get("using_columns", ()))
    renamed = node.get("column_name_alias")
    if hides or node.get("ref_type") == "NATURAL" or "value" in joined_on or renamed:
        usage.everything()


def _column_used(names: list[str], usage: _Usage) -> None:
    """Note the fields in a reference such as `q.value.magnitude`; a bare `value`, or a whole row, uses all fields."""
    for place, name in enumerate(names):
        if name == "value":
            if place == len(names) - 1:
                usage.everything()
            else:
                usage.field_used(names[place + 1])
    if names[-1] in usage.rows:
        usage.everything()
