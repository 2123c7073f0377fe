"""The numbers by which table formats know a column, whatever it is called: the same in all files of a topic.

partition, offset, timestamp, key, value and headers have 1 to 6, what is in headers 7 to 9. The fields of a typed
topic's values follow from 10 on, in the order in which the versions of its schema brought them, each before what is
nested in it. A schema only ever gains fields at its top, so that no number changes or is given twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import pyarrow as pa

from streamcore import schema as schemas

FIELD_ID = b"PARQUET:field_id"
_OURS = {name: number for number, name in enumerate(("partition", *schemas.RECORD_COLUMNS), 1)}
_IN_HEADERS = 7
_FIRST_OF_USER = 10


def numbered(columns: pa.Schema, versions: Mapping[int, schemas.SchemaVersion]) -> pa.Schema:
    """The columns of a file with their numbers, in Arrow's metadata of fields, where Parquet takes them from.

    versions: all of the topic, so that each field has the number that it has in every other version.
    """
    of_user = _of_user(versions)
    found = []
    for field in columns:
        if field.name == "value" and pa.types.is_struct(field.type):
            inside = [of_user[field.type.field(number).name] for number in range(field.type.num_fields)]
            field = field.with_type(pa.struct(inside))
        elif field.name == "headers":
            field = field.with_type(_inside(field.type, itertools.count(_IN_HEADERS)))
        found.append(_with_id(field, _OURS[field.name]))
    return pa.schema(found, metadata=columns.metadata)


def id_of(field: pa.Field) -> int:
    """The number that `numbered` has given a field."""
    return int(field.metadata[FIELD_ID])


def _of_user(versions: Mapping[int, schemas.SchemaVersion]) -> dict[str, pa.Field]:
    ids = itertools.count(_FIRST_OF_USER)
    found: dict[str, pa.Field] = {}
    for number in sorted(versions):
        for field in versions[number].user or ():
            if field.name not in found:
                found[field.name] = _numbered_field(field, ids)
    return found


def _numbered_field(field: pa.Field, ids: Iterator[int]) -> pa.Field:
    number = next(ids)
    return _with_id(field.with_type(_inside(field.type, ids)), number)


def _inside(kind: pa.DataType, ids: Iterator[int]) -> pa.DataType:
    """A type whose inner fields have numbers."""
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([_numbered_field(kind.field(number), ids) for number in range(kind.num_fields)])
    if types.is_map(kind):
        key, item = _numbered_field(kind.key_field, ids), _numbered_field(kind.item_field, ids)
        return pa.map_(key, item, keys_sorted=kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(_numbered_field(kind.value_field, ids), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(_numbered_field(kind.value_field, ids))
    return pa.list_(_numbered_field(kind.value_field, ids)) if types.is_list(kind) else kind


def _with_id(field: pa.Field, number: int) -> pa.Field:
    return field.with_metadata({**(field.metadata or {}), FIELD_ID: str(number).encode()})
