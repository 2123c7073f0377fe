"""Appends of Arrow data: split by partition, compressed where the topic says so, handed to the core in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamcore import _core, columns
from streamcore.config import TopicConfig
from streamcore.errors import RecordTooLargeError
from streamcore.schema import HEADERS, TIMESTAMP, SchemaVersion

BATCH_ROWS = 1 << 16
BATCH_BYTES = 1 << 20
_SMALL_CHUNK_ROWS = 4096
_CONFLICT_RETRIES = 1000
_EXTRA_COLUMNS = ("key", "timestamp", "headers", "partition")

Producer = tuple[int, int, int, bool]  # id, epoch, sequence of the first record, whether in a transaction
Chunk = tuple[int, pa.Array | None, pa.Array, pa.Array | None, columns.Times | None]


class Split(NamedTuple):
    """Rows order[bounds[i]] up to order[bounds[i + 1]] go to partitions[i]; without an order, rows of these numbers."""

    partitions: Any
    order: Any
    bounds: Any


def keyless(topic: str) -> str:
    """What to say of a record without a key where one is needed."""
    return f"a record has no key; topic {topic!r} is compacted, and keeps the latest record of each key"


class ArrayAppend:
    """Records as chunks of Arrow arrays: (rows, key, value, headers, times)."""

    def __init__(
        self,
        chunks: list[Chunk],
        version: SchemaVersion,
        timestamp: int | None,
        targets: Any = None,
        made_ms: int | None = None,
        unchecked: pa.Table | pa.Array | None = None,
    ) -> None:
        self.chunks = chunks
        self._unchecked = unchecked
        self.version = version
        self.made_ms = time.time_ns() // 1_000_000 if made_ms is None else made_ms  # one for all partitions
        self.timestamp = self.made_ms if timestamp is None else timestamp
        self.targets = targets
        self.count = sum(chunk[0] for chunk in chunks)

    @classmethod
    def of_columns(cls, values: Any, keys: Any, timestamps: Any, headers: Any, version: SchemaVersion) -> ArrayAppend:
        """From the arguments of `Topic.append`."""
        values, keys = _sized(values, "values"), _sized(keys, "keys")
        value = _value_array(values, version)
        count = len(value)
        key = None if keys is None else columns.binary_array(keys, "keys")
        if keys is not None and len(keys) != count:
            raise ValueError(f"{len(keys)} keys for {count} values")
        times, timestamp = (None, None) if timestamps is None else columns.times_of(timestamps, count)
        made = columns.headers_array(headers, count)
        unchecked = value if version.is_flat else None
        timestamp = timestamp if times is None else None
        return cls([(count, _unless_null(key), value, made, times)], version, timestamp, unchecked=unchecked)

    @classmethod
    def of_batch(cls, batch: _core.SealedBatch, version: SchemaVersion) -> ArrayAppend:
        """From what a producer has collected."""
        found = batch.columns()
        key, value = _column_of(found["key"]), _column_of(found["value"])
        objects = batch.objects()
        if objects is not None:
            assert version.user is not None
            value = columns.struct_of_array(pa.concat_arrays(objects), version.user)
        times = np.frombuffer(found["timestamps"], np.int64)
        value = pa.nulls(batch.count, version.value_type) if value is None else value
        return cls([(batch.count, key, value, _headers_of(found), times)], version, None)

    @classmethod
    def of_table(cls, table: pa.Table, version: SchemaVersion) -> ArrayAppend:
        """From the argument of `Topic.append_table`."""
        extras = _extra_columns(table, version)
        rows = table.num_rows
        try:
            table.validate()
        except pa.ArrowInvalid as error:
            raise ValueError(f"the table is not sound: {error}") from None
        unchecked = table
        if not _goes_as_it_is(table, extras, version):
            _check_columns(table)
            unchecked = None
        targets = _targets_of(table) if "partition" in extras else None
        table = pa.table([columns.plain_chunks(column) for column in table.columns], names=table.column_names)
        if table.num_columns and rows and rows / max(1, _chunk_count(table)) < _SMALL_CHUNK_ROWS:
            table = table.combine_chunks()
        chunks = [
            _chunk_of(batch, extras, version) for batch in table.to_batches(max_chunksize=BATCH_ROWS) if batch.num_rows
        ]
        return cls(chunks, version, None, targets, unchecked=unchecked)

    def check_sound(self) -> None:
        """Raises ValueError for a column that is not sound. The core looks at what it encodes; Arrow at nothing."""
        if self._unchecked is not None:
            unchecked, self._unchecked = self._unchecked, None
            if isinstance(unchecked, pa.Table):
                _check_columns(unchecked)
            else:
                columns.check_sound(unchecked, "values")

    def check_sizes(self, max_record_bytes: int) -> None:
        """Raises RecordTooLargeError. The core checks only what it encodes: a part at a time, perhaps too late."""
        for _, *arrays, _ in self.chunks:
            longest = max(_longest(array) for array in arrays)
            if longest > max_record_bytes:
                raise RecordTooLargeError(f"a value of {longest} bytes is above max_record_bytes ({max_record_bytes})")

    def drop_times(self) -> None:
        """Uses the log's time instead of the given ones."""
        self.chunks = [(rows, key, value, headers, None) for rows, key, value, headers, _ in self.chunks]
        self.timestamp = self.made_ms

    def split(self, partition: int | None, partitions: int, turn: int) -> int | Split:
        """The partition that all of it goes to, or which rows go to which partitions, in their order."""
        without_key = turn % partitions
        if partition is not None:
            return int(partition)
        keyed = any(chunk[1] is not None for chunk in self.chunks)
        if self.targets is None and (partitions == 1 or not keyed):
            return without_key
        targets = self.targets if self.targets is not None else self._targets_by_key(partitions, without_key)
        is_sorted = bool((targets[1:] >= targets[:-1]).all())
        order = None if is_sorted else np.argsort(targets, kind="stable")
        ordered = targets if order is None else targets[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
        present = ordered[starts].astype(np.int64)
        if len(present) == 1:
            return int(present[0])
        if present[0] < 0 or present[-1] >= partitions:
            wrong = present[0] if present[0] < 0 else present[-1]
            raise ValueError(f"the partition column has {wrong}; the topic has partitions 0 to {partitions - 1}")
        return Split(present, order, np.append(starts, self.count).astype(np.int64))

    def parts(self, split: Split) -> Iterator[tuple[int, ArrayAppend]]:
        """The part of each partition."""
        order = np.arange(self.count) if split.order is None else split.order
        for i, target in enumerate(split.partitions):
            yield int(target), self._take(order[split.bounds[i] : split.bounds[i + 1]])

    def _targets_by_key(self, partitions: int, without_key: int) -> Any:
        targets = np.full(self.count, without_key, np.int32)
        start = 0
        for rows, key, *_ in self.chunks:
            if key is not None:
                _core.partitions_of_keys(key, targets[start : start + rows], partitions, without_key)
            start += rows
        return targets

    def _take(self, rows: Any) -> ArrayAppend:
        """Some rows, in ascending order, chunk by chunk."""
        chunks: list[Chunk] = []
        start = 0
        for count, key, value, headers, times in self.chunks:
            low, high = np.searchsorted(rows, [start, start + count])
            picked = pa.array(rows[low:high] - start)
            if len(picked):
                chunks.append(
                    (
                        len(picked),
                        None if key is None else key.take(picked),
                        columns.take(value, picked),
                        None if headers is None else headers.take(picked),
                        None if times is None else times[rows[low:high] - start],
                    )
                )
            start += count
        return ArrayAppend(chunks, self.version, self.timestamp, made_ms=self.made_ms)


def _column_of(buffers: Any, kind: Any = None) -> pa.Array | None:
    """A binary column of (count, nulls, validity, ends, data)."""
    if buffers is None:
        return None
    count, nulls, *parts = buffers
    made = [None if part is None else pa.py_buffer(part) for part in parts]
    return pa.Array.from_buffers(kind or pa.binary(), count, made, nulls)


def _headers_of(found: dict[str, Any]) -> pa.Array | None:
    if found["headers"] is None:
        return None
    count, nulls, validity, ends, _ = found["headers"]
    entry = HEADERS.value_type
    pairs = [_column_of(found["header_key"], pa.string()), _column_of(found["header_value"])]
    entries = pa.StructArray.from_arrays(pairs, fields=[entry.field(0), entry.field(1)])
    made = [None if validity is None else pa.py_buffer(validity), pa.py_buffer(ends)]
    return pa.Array.from_buffers(HEADERS, count, made, nulls, children=[entries])


def _longest(array: pa.Array | None) -> int:
    """The bytes of the longest string or binary value, nested ones included."""
    if array is None or len(array) == 0:
        return 0
    kind = array.type
    if pa.types.is_nested(kind):
        if pa.types.is_map(kind):  # which Arrow cannot flatten
            array = columns.map_as_list(array)
        parts = array.flatten() if pa.types.is_struct(kind) else [array.flatten()]
        return max((_longest(part) for part in parts), default=0)
    if pa.types.is_binary_view(kind) or pa.types.is_string_view(kind):
        array = array.cast(pa.large_binary() if pa.types.is_binary_view(kind) else pa.large_string())
    elif not (pa.types.is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_binary(kind)
              or pa.types.is_large_string(kind)):  # fmt: skip
        return 0
    return pc.max(pc.binary_length(array)).as_py() or 0


def _unless_null(array: pa.Array | None) -> pa.Array | None:
    return None if array is None or array.null_count == len(array) else array


def _sized(given: Any, name: str) -> Any:
    """What has a length: what comes through Arrow's interfaces need not."""
    return given if given is None or hasattr(given, "__len__") else columns.arrow_array(given, name)


def _value_array(values: Any, version: SchemaVersion) -> pa.Array:
    if version.user is None:
        array = columns.binary_array(values, "values")
        return pa.nulls(len(values), pa.binary()) if array is None else array
    if isinstance(values, (list, tuple)):
        return columns.struct_of_dicts(values, version.user)
    whole = version.value_type if version.is_flat else None
    return columns.struct_of_array(columns.arrow_array(values, "values", whole), version.user)


def _chunk_count(table: pa.Table) -> int:
    return max(int(table.column(i).num_chunks) for i in range(table.num_columns))


def _extra_columns(table: pa.Table, version: SchemaVersion) -> set[str]:
    """Which of key, timestamp, headers and partition the table has; a typed schema's own columns come first."""
    names = table.column_names
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the table has more than one column {name!r}")
    whole = "value" in names and (version.user is None or "value" not in version.user.names)
    own = set() if version.user is None or whole else set(version.user.names)
    extras = {name for name in _EXTRA_COLUMNS if name in names and name not in own}
    if version.user is None and "value" not in names:
        raise ValueError(f"the table has no column 'value', only {', '.join(names) or 'none'}")
    if version.user is None or whole:
        for name in names:
            if name != "value" and name not in extras:
                allowed = "value, key, timestamp, headers and partition"
                raise ValueError(f"the table has a column {name!r}; {allowed} are allowed")
    return extras


def _check_columns(table: pa.Table) -> None:
    for name, column in zip(table.column_names, table.columns, strict=True):
        for chunk in column.chunks:
            columns.check_sound(chunk, f"column {name!r}")


def _goes_as_it_is(table: pa.Table, extras: set[str], version: SchemaVersion) -> bool:
    """Whether nobody but the core reads the values on their way into a log that is not compressed, when not split."""
    if extras or version.user is None or table.num_columns != len(version.user) or table.schema != version.user:
        return False
    return version.is_flat and _chunk_count(table) == 1


def _targets_of(table: pa.Table) -> Any:
    column = table.column("partition")
    if not pa.types.is_integer(column.type):
        raise TypeError(f"the partition column is {column.type}; integers are needed")
    if column.null_count:
        raise ValueError("the partition column has nulls")
    return column.cast(pa.int64()).to_numpy()


def _chunk_of(batch: pa.RecordBatch, extras: set[str], version: SchemaVersion) -> Chunk:
    rows = batch.num_rows
    key = _unless_null(columns.binary_array(batch.column("key"), "key")) if "key" in extras else None
    times = columns.arrow_times(batch.column("timestamp")) if "timestamp" in extras else None
    headers = columns.headers_array(batch.column("headers"), rows) if "headers" in extras else None
    names = [name for name in batch.schema.names if name not in extras]
    if version.user is None:
        value = columns.binary_array(batch.column("value"), "value")
        value = pa.nulls(rows, pa.binary()) if value is None else value
    elif names == ["value"] and "value" not in version.user.names:
        value = columns.struct_of_array(batch.column("value"), version.user)
    else:
        value = columns.struct_of_columns({name: batch.column(name) for name in names}, version.user, rows)
    return rows, key, value, headers, times


# ---- handing over ----------------------------------------------------------------------------------------------


def append_arrays(
    core: _core.Topic,
    partition: int,
    given: ArrayAppend,
    config: TopicConfig,
    durable: bool,
    producer: Producer | None = None,
) -> tuple[int, int, int]:
    """Appends to one partition; returns (partition, first offset, end offset)."""
    own_time = config.timestamp_type == "append"
    if own_time:
        given.drop_times()
    current = given.version.number
    size = sum(_size(chunk) for chunk in given.chunks)
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES * given.count // max(1, size)))
    if config.compression == "none":
        return core.append_arrays(partition, given.chunks, given.timestamp, rows, current, own_time, durable, producer)
    given.check_sound()
    for _ in range(_CONFLICT_RETRIES):
        base = core.describe(partition, False)[1]
        messages = compressed_messages(given, rows, base, config)
        try:
            return core.append_messages(partition, messages, base, current, own_time, durable, producer)
        except _core.OffsetConflict:
            continue  # another writer was faster: the offsets in the batches must be others
    raise TimeoutError(f"partition {partition} is appended to by others all the time")


def append_split(
    core: _core.Topic, given: ArrayAppend, split: Split, config: TopicConfig
) -> list[tuple[int, int, int]]:
    """Appends to many partitions, what is one chunk and not compressed: sorted once, each takes its rows of it."""
    own_time = config.timestamp_type == "append"
    if own_time:
        given.drop_times()
    count, key, value, headers, times = given.chunks[0]
    if split.order is not None:
        picked = pa.array(split.order)
        key = None if key is None else key.take(picked)
        value = columns.take(value, picked)
        headers = None if headers is None else headers.take(picked)
        times = None if times is None else times[split.order]
    chunk = (count, key, value, headers, times)
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES * count // max(1, _size(chunk))))
    return core.append_sorted(
        split.partitions, split.bounds, chunk, given.timestamp, rows, given.version.number, own_time
    )


def _size(chunk: Chunk) -> int:
    return sum(0 if part is None else part.nbytes for part in chunk[1:])


def compressed_messages(
    given: ArrayAppend, rows: int, base: int, config: TopicConfig
) -> list[tuple[Any, int, int, int, bool]]:
    """The chunks as compressed Arrow IPC messages: (message, rows, first time, last time, has headers)."""
    options = pa.ipc.IpcWriteOptions(compression=config.compression)
    messages = []
    for count, key, value, headers, times in given.chunks:
        for start in range(0, count, rows):
            length = min(rows, count - start)
            stamps = np.full(length, given.timestamp, np.int64) if times is None else times[start : start + length]
            batch = pa.RecordBatch.from_arrays(
                [
                    pa.array(np.arange(base, base + length)),
                    pa.array(stamps).view(TIMESTAMP),
                    _slice(key, start, length, pa.binary()),
                    _slice(value, start, length, given.version.value_type),
                    _slice(headers, start, length, HEADERS),
                ],
                schema=given.version.file,
            )
            low, high = int(stamps.min()), int(stamps.max())
            messages.append((message_of(batch, options), length, low, high, headers is not None))
            base += length
    return messages


def _slice(array: pa.Array | None, start: int, length: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(length, kind) if array is None else array.slice(start, length)


def message_of(batch: pa.RecordBatch, options: pa.ipc.IpcWriteOptions) -> memoryview:
    """The record batch message alone, out of a stream that begins with the schema message."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
        end = sink.tell()
    stream = memoryview(sink.getvalue()).cast("B")
    return stream[8 + int.from_bytes(stream[4:8], "little") : end]
