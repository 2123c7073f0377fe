"""What the workloads append: records that say which they are, so that a log can be checked against what was noted."""

from __future__ import annotations

import functools
import random
from typing import Any, NamedTuple

import pyarrow as pa

_NOISE = random.Random(1).randbytes(1 << 16)
_FIRST_TIME_MS = 1_700_000_000_000
KEYS = 12
SCHEMA = pa.schema([("tag", pa.string()), ("number", pa.int64()), ("parts", pa.list_(pa.int16()))])


class Shape(NamedTuple):
    """Of the records of a topic: values of up to so many bytes; keys, headers and tombstones or not; typed or not."""

    value_bytes: int = 120
    keyed: bool = False
    headers: bool = False
    tombstones: bool = False
    typed: bool = False


class Row(NamedTuple):
    """A record as it is appended and found."""

    time_ms: int
    key: bytes | None
    value: Any
    headers: Any


@functools.lru_cache(maxsize=1 << 17)
def row_of(call: int, row: int, shape: Shape) -> Row:
    """The record of a call. Each is like no other, tombstones aside."""
    mixed = (call * 7919 + row * 104_729) & 0x7FFF
    key = b"key %d" % ((call * 13 + row * 7) % KEYS) if shape.keyed else None
    headers = [("trace", b"%d" % mixed), ("none", None)][: 1 + mixed % 2] if shape.headers else None
    return Row(_FIRST_TIME_MS + call, key, _value(call, row, mixed, shape), headers)


def _value(call: int, row: int, mixed: int, shape: Shape) -> Any:
    if shape.tombstones and (call * 5 + row * 3) % 11 == 0:
        return None
    if shape.typed:
        return {"tag": f"{call}.{row}", "number": call << 32 | row, "parts": [row] * (row % 4)}
    size = (mixed * 31 + call) % (shape.value_bytes + 1)
    return b"%d.%d " % (call, row) + _NOISE[mixed : mixed + size]


def columns_of(rows: list[Row]) -> dict[str, Any]:
    """The arguments of `Topic.append`."""
    made: dict[str, Any] = {"values": [row.value for row in rows], "timestamps": [row.time_ms for row in rows]}
    if any(row.key is not None for row in rows):
        made["keys"] = [row.key for row in rows]
    if any(row.headers for row in rows):
        made["headers"] = [row.headers for row in rows]
    return made


def table_of(rows: list[Row], partitions: list[int], shape: Shape) -> pa.Table:
    """The argument of `Topic.append_table`."""
    columns: dict[str, Any] = {"partition": pa.array(partitions, pa.int32())}
    columns["timestamp"] = pa.array([row.time_ms for row in rows], pa.timestamp("ms", tz="UTC"))
    if shape.keyed:
        columns["key"] = pa.array([row.key for row in rows], pa.binary())
    if shape.headers:
        kind = pa.list_(pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.binary())]))
        pairs = [[{"key": name, "value": value} for name, value in row.headers] for row in rows]
        columns["headers"] = pa.array(pairs, kind)
    if shape.typed:
        for field in SCHEMA:
            columns[field.name] = pa.array([row.value[field.name] for row in rows], field.type)
    else:
        columns["value"] = pa.array([row.value for row in rows], pa.binary())
    return pa.table(columns)


def rows_of(table: pa.Table) -> list[Row]:
    """The records that a scan found."""
    times = table.column("timestamp").cast(pa.int64()).to_pylist()
    keys, values, headers = (table.column(name).to_pylist() for name in ("key", "value", "headers"))
    pairs = [None if not found else [(pair["key"], pair["value"]) for pair in found] for found in headers]
    return [Row(*row) for row in zip(times, keys, values, pairs, strict=True)]
