"""What Arrow's types are in Iceberg, and which of them it does not have."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pyiceberg import types
from pyiceberg.schema import Schema

from streamcore import schema as schemas
from streamcore.tier import parquet
from streamcore.tier.field_ids import id_of

_SIMPLE: dict[Any, types.PrimitiveType] = {
    pa.bool_(): types.BooleanType(),
    **dict.fromkeys((pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16()), types.IntegerType()),
    **dict.fromkeys((pa.int64(), pa.uint32()), types.LongType()),
    pa.float32(): types.FloatType(),
    pa.float64(): types.DoubleType(),
    pa.date32(): types.DateType(),
    pa.time64("us"): types.TimeType(),
    **dict.fromkeys((pa.string(), pa.large_string(), pa.string_view()), types.StringType()),
    **dict.fromkeys((pa.binary(), pa.large_binary(), pa.binary_view()), types.BinaryType()),
    **dict.fromkeys((pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us")), types.TimestampType()),
}
_UTC = ("UTC", "+00:00", "Etc/UTC", "Z")


def table_schema(columns: pa.Schema, number: int) -> Schema:
    """The Iceberg schema of `parquet.file_schema`. Raises ValueError for a type that Iceberg does not have."""
    fields = [_nested(field, field.name) for field in columns]
    try:
        return Schema(*fields, schema_id=number)
    except ValueError as error:  # names with dots in them may be those of others
        raise ValueError(f"the schema cannot be that of an Iceberg table: {error}") from None


def check_types(user: pa.Schema | None) -> None:
    """Raises ValueError for a field of a typed topic whose type or name Iceberg does not have."""
    versions = {1: schemas.make_version("0" * 16, 1, user)}
    table_schema(parquet.file_schema(versions, 1), 1)


def _nested(field: pa.Field, path: str) -> types.NestedField:
    return types.NestedField(id_of(field), field.name, _type(field.type, path), required=not field.nullable)


def _type(kind: pa.DataType, path: str) -> types.IcebergType:
    is_ = pa.types
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if is_.is_timestamp(kind) and kind.unit != "ns" and kind.tz in _UTC:
        return types.TimestamptzType()
    if is_.is_decimal128(kind) and kind.scale >= 0:
        return types.DecimalType(kind.precision, kind.scale)
    if is_.is_fixed_size_binary(kind):
        return types.FixedType(kind.byte_width)
    if is_.is_struct(kind):
        inside = (kind.field(number) for number in range(kind.num_fields))
        return types.StructType(*(_nested(field, f"{path}.{field.name}") for field in inside))
    if is_.is_map(kind):
        key, item = kind.key_field, kind.item_field
        return types.MapType(
            id_of(key), _type(key.type, f"{path}.key"), id_of(item), _type(item.type, f"{path}.value"),
            value_required=not item.nullable,
        )  # fmt: skip
    if is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        item = kind.value_field
        return types.ListType(id_of(item), _type(item.type, f"{path}.item"), element_required=not item.nullable)
    raise ValueError(
        f"field {path.removeprefix('value.')!r} is {kind}, which Iceberg has no type for: "
        "tier_iceberg needs a schema without it"
    )
