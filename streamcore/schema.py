"""Schemas of topics: what a file of a topic looks like, which user schemas are taken, and how they may evolve.

A file has the columns offset, timestamp, key, value and headers. A plain topic's value is binary; a typed topic's is a
struct of the user's fields (docs/format.md).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pyarrow as pa

from streamcore import _core

FORMAT_VERSION = 1
DEPTH_MAX = 32
_MESSAGE_ALIGNMENT = 64
_METADATA_PREFIX = b"streamcore."

TIMESTAMP = pa.timestamp("ms", tz="UTC")
HEADERS = pa.list_(pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.binary())]))
RECORD_COLUMNS = ("offset", "timestamp", "key", "value", "headers")


# Types of one column of values each, by their Arrow ids.
WITHOUT_TEXT = frozenset(
    kind.id
    for kind in (
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us"), pa.duration("us")),
        *(pa.binary(1), pa.binary(), pa.large_binary()),
    )
)
TEXT = frozenset((pa.string().id, pa.large_string().id))


@dataclasses.dataclass(frozen=True)
class SchemaVersion:
    """One version of a topic's schema: `user` is None for a plain topic; `file` is that of the segment files."""

    number: int
    user: pa.Schema | None
    file: pa.Schema
    message: bytes
    partition_digits_at: int

    @property
    def value_type(self) -> pa.DataType:
        """The type of the value column."""
        return self.file.field("value").type

    @functools.cached_property
    def is_flat(self) -> bool:
        """Whether it has numbers, times, strings and bytes alone: nothing nested, no dictionaries, no views."""
        return self.user is not None and all(field.type.id in WITHOUT_TEXT | TEXT for field in self.user)


def make_version(topic_id: str, number: int, user: pa.Schema | None) -> SchemaVersion:
    """The schema of a topic's files. `user` was checked by `checked_user_schema`.

    Raises ValueError when it has too many fields: before anything of a topic is made that could not be used.
    """
    value = pa.binary() if user is None else pa.struct(list(user))
    fields = [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp", TIMESTAMP, nullable=False),
        pa.field("key", pa.binary()),
        pa.field("value", value),
        pa.field("headers", HEADERS),
    ]
    file = pa.schema(fields)
    own = {} if user is None else user.metadata or {}
    message, digits_at = _segment_message(file, own, topic_id, number)
    _core.check_schema(file.__arrow_c_schema__(), message, digits_at)
    return SchemaVersion(number, user, file, message, digits_at)


def version_of_message(number: int, message: bytes) -> SchemaVersion:
    """The version whose segments begin with this message, as the catalog keeps it: byte by byte, for the files of a
    topic are recognised by it, and another version of Arrow may lay the same schema out differently.

    Raises ValueError when it is not one.
    """
    try:
        whole = pa.ipc.read_schema(pa.py_buffer(message))
    except (pa.ArrowException, OSError, TypeError) as error:
        raise ValueError(str(error)) from None
    metadata = dict(whole.metadata or {})
    digits = metadata.get(b"streamcore.partition", b"")
    if whole.names != list(RECORD_COLUMNS) or len(digits) != 10 or message.count(digits) != 1:
        raise ValueError("it is not the schema of a topic's files")
    value = whole.field("value").type
    user = None
    if pa.types.is_struct(value):
        own = {key: text for key, text in metadata.items() if not key.startswith(_METADATA_PREFIX)}
        user = pa.schema([value.field(i) for i in range(value.num_fields)], metadata=own or None)
    return SchemaVersion(number, user, whole.remove_metadata(), message, message.index(digits))


def _segment_message(file: pa.Schema, own: dict[bytes, bytes], topic_id: str, number: int) -> tuple[bytes, int]:
    """The schema message at the start of each segment, padded so that the batches behind it are aligned.

    The ten digits of the partition are the only bytes in which the partitions of a topic differ.
    """
    for attempt in range(1000):
        digits = f"{7_741_990_523 + attempt:010d}".encode()
        metadata = {
            **{key: text for key, text in own.items() if not key.startswith(_METADATA_PREFIX)},
            b"streamcore.format": str(FORMAT_VERSION).encode(),
            b"streamcore.topic": topic_id.encode(),
            b"streamcore.partition": digits,
            b"streamcore.schema_version": str(number).encode(),
        }
        message = file.with_metadata(metadata).serialize().to_pybytes()
        if message.count(digits) == 1:
            break
    size = -(-len(message) // _MESSAGE_ALIGNMENT) * _MESSAGE_ALIGNMENT
    length = size - 8
    padded = message[:4] + length.to_bytes(4, "little") + message[8:] + bytes(size - len(message))
    return padded, padded.index(digits)


def read_segment_metadata(data: bytes) -> dict[str, str]:
    """The streamcore metadata of the schema message that begins a segment file; empty when it is not one of ours."""
    try:
        schema = pa.ipc.open_stream(pa.py_buffer(data)).schema
    except (pa.ArrowException, OSError, ValueError):
        return {}
    metadata: dict[bytes, bytes] = schema.metadata or {}
    return {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in metadata.items()
        if key.startswith(b"streamcore.")
    }


# ---- user schemas ----------------------------------------------------------------------------------------------


def checked_user_schema(schema: Any) -> pa.Schema:
    """The schema of a typed topic from anything with `__arrow_c_schema__`; dictionary types become their values' type.

    Raises TypeError for what is no schema and ValueError for a field that cannot be stored.
    """
    if not isinstance(schema, pa.Schema):
        if not hasattr(schema, "__arrow_c_schema__"):
            raise TypeError(
                f"schema is {type(schema).__name__}; an Arrow schema is needed (anything with __arrow_c_schema__)"
            )
        schema = pa.schema(schema)
    if len(schema) == 0:
        raise ValueError("a typed topic's schema has at least one field")
    return pa.schema([_checked_field(field, field.name, 1) for field in _distinct(list(schema), "the schema")])


def _distinct(fields: list[pa.Field], where: str) -> list[pa.Field]:
    names = [field.name for field in fields]
    for name in names:
        if not name:
            raise ValueError(f"{where} has a field without a name")
        if names.count(name) > 1:
            raise ValueError(f"{where} has more than one field named {name!r}")
    return fields


def _checked_field(field: pa.Field, path: str, depth: int) -> pa.Field:
    return pa.field(
        field.name, _checked_type(field.type, path, depth), nullable=field.nullable, metadata=field.metadata
    )


def _checked_type(kind: pa.DataType, path: str, depth: int) -> pa.DataType:
    types = pa.types
    if depth > DEPTH_MAX:
        raise ValueError(f"field {path!r} nests deeper than {DEPTH_MAX} levels")
    if types.is_dictionary(kind):
        return _checked_type(kind.value_type, path, depth)
    if isinstance(kind, pa.BaseExtensionType):
        raise ValueError(f"field {path!r} has the extension type {kind}; store its storage type {kind.storage_type}")
    if types.is_struct(kind):
        fields = _distinct([kind.field(i) for i in range(kind.num_fields)], f"field {path!r}")
        return pa.struct([_checked_field(child, f"{path}.{child.name}", depth + 1) for child in fields])
    if types.is_map(kind):
        key = _checked_type(kind.key_type, f"{path}.key", depth + 2)
        item = _checked_field(kind.item_field, f"{path}.value", depth + 2)
        return pa.map_(key, item, keys_sorted=kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(_checked_field(kind.value_field, f"{path}.item", depth + 1), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(_checked_field(kind.value_field, f"{path}.item", depth + 1))
    if types.is_list(kind):
        return pa.list_(_checked_field(kind.value_field, f"{path}.item", depth + 1))
    if types.is_nested(kind) or types.is_run_end_encoded(kind):
        raise ValueError(f"field {path!r} has the type {kind}, which a topic cannot store")
    return kind


_RULE = "a schema may only gain nullable fields"


def check_evolution(old: pa.Schema, new: pa.Schema) -> None:
    """Allows new nullable fields and nothing else; ValueError names the difference."""
    for field in old:
        if field.name not in new.names:
            raise ValueError(f"the field {field.name!r} is missing: {_RULE}")
        other = new.field(field.name)
        if other.type != field.type:
            raise ValueError(f"the field {field.name!r} would change from {field.type} to {other.type}: {_RULE}")
        if other.nullable != field.nullable:
            state = "nullable" if other.nullable else "not nullable"
            raise ValueError(f"the field {field.name!r} would become {state}: {_RULE}")
    for field in new:
        if field.name not in old.names and not field.nullable:
            raise ValueError(f"the new field {field.name!r} is not nullable: records before it have no value for it")


# ---- columns of a scan -----------------------------------------------------------------------------------------

PARTITION_COLUMN = -1


def resolve_column(name: str, version: SchemaVersion) -> tuple[int, list[int], pa.Field] | None:
    """(column number, path of child numbers, output field) of a column name in one version; None when it has none."""
    if name == "partition":
        return PARTITION_COLUMN, [], pa.field("partition", pa.int32(), nullable=False)
    if name in RECORD_COLUMNS:
        return RECORD_COLUMNS.index(name), [], version.file.field(name)
    if not name.startswith("value."):
        return None
    if name == "value.":
        return None
    kind, path, nullable = version.value_type, [], True
    rest = name.removeprefix("value.")
    while rest:
        if not pa.types.is_struct(kind):
            return None
        found = _child_named(kind, rest)
        if found is None:
            return None
        index, child, rest = found
        path.append(index)
        kind = child.type
    return RECORD_COLUMNS.index("value"), path, pa.field(name, kind, nullable=nullable)


def _child_named(kind: pa.StructType, rest: str) -> tuple[int, pa.Field, str] | None:
    """The child that `rest` begins with. Field names may contain dots: the longest that fits wins."""
    best: tuple[int, pa.Field, str] | None = None
    for index in range(kind.num_fields):
        child = kind.field(index)
        fits = rest == child.name or rest.startswith(child.name + ".")
        if fits and (best is None or len(child.name) > len(best[1].name)):
            best = (index, child, rest[len(child.name) + 1 :])
    return best


def known_columns(version: SchemaVersion) -> list[str]:
    """The names that a scan's `columns` may have, without those inside nested structs."""
    names = ["partition", *RECORD_COLUMNS]
    return names if version.user is None else [*names, *(f"value.{name}" for name in version.user.names)]
