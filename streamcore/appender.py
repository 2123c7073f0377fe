"""The ways of an append: rows of bytes straight into the core, all else as Arrow arrays, split by partition.

The short way is for lists of bytes into a plain topic without compression: the core encodes them as they are, and
chooses the partitions. Everything else becomes an `ArrayAppend` first. Both ways are repeated by the handle when
another process changed the topic meanwhile.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa

from streamcore import _core, columns
from streamcore.append import ArrayAppend, Producer, Split, append_arrays, append_split, keyless
from streamcore.config import check_durability

if TYPE_CHECKING:
    from streamcore.store import Store
    from streamcore.topic_handle import Durability, TopicHandle


class Span(NamedTuple):
    """Where records went: offsets `first_offset` up to, but not including, `end_offset` of a partition."""

    partition: int
    first_offset: int
    end_offset: int


class Target(Protocol):
    """What a writer wants to know of the topic that it appends to."""

    @property
    def store(self) -> Store:
        """The store that it is of."""

    @property
    def id(self) -> str:
        """Its identity."""

    @property
    def name(self) -> str:
        """Its name."""


class Writer(Protocol):
    """Who appends, when the log is to know it: sees each append before and after."""

    def claim(self, topic: Target, partitions: list[int]) -> None:
        """Called once per call, before its first append, with all the partitions that it will append to."""

    def producer(self, topic: Target, partition: int) -> Producer:
        """What to write into the headers of the next append there."""

    def appended(self, topic: Target, partition: int, count: int) -> None:
        """Called after each append."""


class Appender:
    """Appends to a topic through its handle; keeps whose turn it is to get records without a key."""

    def __init__(self, handle: TopicHandle) -> None:
        self._handle = handle
        self._turn = itertools.count()

    def append(
        self, values: Any, keys: Any, timestamps: Any, headers: Any, partition: int | None,
        durability: Durability | None,
    ) -> list[Span]:  # fmt: skip
        """`Topic.append`. The short way is written out here: each call of a function more is felt by single records."""
        handle = self._handle
        if (
            not handle.takes_rows
            or headers is not None
            or type(values) not in (list, tuple)
            or (keys is not None and type(keys) not in (list, tuple))
        ):
            return self.append_columns(values, keys, timestamps, headers, partition, durability)
        if partition is not None:
            handle.check_partition(partition)
        count = len(values)
        if keys is not None and len(keys) != count:
            raise ValueError(f"{len(keys)} keys for {count} values")
        times, now = (None, None) if timestamps is None else columns.times_of(timestamps, count)
        if durability is not None:
            check_durability(durability)
        byte_values = _core.ByteColumn(values, "values")
        byte_keys = None if keys is None else _core.ByteColumn(keys, "keys")
        if count == 0:
            handle.check_writable()
            return []

        def run() -> list[tuple[int, int, int]] | None:
            if not handle.takes_rows:
                return None  # another process changed the topic meanwhile
            if handle.config.compacts and (keys is None or any(key is None for key in keys)):
                raise ValueError(keyless(self._handle.name))
            own = handle.log_append_time
            moment = time.time_ns() // 1_000_000 if own or now is None else now
            partitions = handle.row.partitions
            return handle.open().append_rows(
                partition, byte_values, byte_keys, None if own else times, moment, None, handle.version_number,
                partitions, next(self._turn) % partitions, own, self._handle.is_durable(durability),
            )  # fmt: skip

        spans = handle.call(run)
        if spans is None:
            return self.append_columns(values, keys, timestamps, None, partition, durability)
        if not handle.unflushed:
            handle.note_appended()
        return [Span(*span) for span in spans]

    def append_columns(
        self, values: Any, keys: Any, timestamps: Any, headers: Any, partition: int | None,
        durability: Durability | None, writer: Writer | None = None,
    ) -> list[Span]:  # fmt: skip
        """`Topic.append` by way of Arrow arrays; in a writer's name if there is one."""
        self._handle.refresh_if_stale()
        given = ArrayAppend.of_columns(values, keys, timestamps, headers, self._handle.version)
        return self._append_all(given, partition, durability, writer)

    def append_table(
        self, table: Any, partition: int | None, durability: Durability | None, writer: Writer | None = None
    ) -> list[Span]:
        """`Topic.append_table`; in a writer's name if there is one."""
        given = table if isinstance(table, pa.Table) else _table_of(table)
        self._handle.refresh_if_stale()
        return self._append_all(ArrayAppend.of_table(given, self._handle.version), partition, durability, writer)

    def append_sealed(self, batch: _core.SealedBatch, producer: Producer | None) -> tuple[int, int, int]:
        """`Topic.append_sealed`."""
        handle = self._handle

        def run() -> tuple[int, int, int]:
            core = handle.open()
            if handle.takes_rows:
                now = time.time_ns() // 1_000_000
                return batch.append_to(core, handle.version_number, handle.log_append_time, now, producer)
            given = ArrayAppend.of_batch(batch, handle.version)
            return append_arrays(core, batch.partition, given, handle.config, False, producer)

        return handle.call(run)

    def _append_all(
        self, given: ArrayAppend, partition: int | None, durability: Durability | None, writer: Writer | None
    ) -> list[Span]:
        handle = self._handle
        if partition is not None:
            handle.check_partition(partition)
        if durability is not None:
            check_durability(durability)
        if given.count == 0:
            handle.check_writable()
            return []
        self._check_keys(given)  # all of it before the first part is appended
        is_direct = handle.config.compression == "none" and (partition is not None or handle.row.partitions == 1)
        if not is_direct or writer is not None:
            given.check_sound()
        if not is_direct:
            given.check_sizes(handle.config.max_record_bytes)
        split = given.split(partition, handle.row.partitions, next(self._turn))
        targets = [split] if isinstance(split, int) else split.partitions.tolist()
        for target in targets:
            handle.check_partition(target)
        if writer is not None:
            writer.claim(handle, targets)
        if isinstance(split, int):
            spans = [self._append_part(split, given, self._handle.is_durable(durability), writer)]
        else:
            spans = self._append_parts(given, split, writer)
        handle.note_appended()
        if not isinstance(split, int) and self._handle.is_durable(durability):
            self._wait_durable(spans)
        return spans

    def _append_part(self, target: int, part: ArrayAppend, durable: bool, writer: Writer | None) -> Span:
        handle = self._handle
        producer = None if writer is None else writer.producer(handle, target)

        def run() -> tuple[int, int, int]:
            core = handle.open()
            self._check_keys(part)
            return append_arrays(core, target, part, handle.config, durable, producer)

        try:
            span = handle.call(run)
        except ValueError:
            part.check_sound()  # which can name the column
            raise
        if writer is not None:
            writer.appended(handle, target, part.count)
        return Span(*span)

    def _append_parts(self, given: ArrayAppend, split: Split, writer: Writer | None) -> list[Span]:
        handle = self._handle
        if writer is None and len(given.chunks) == 1 and handle.config.compression == "none":

            def run() -> list[tuple[int, int, int]]:
                core = handle.open()
                self._check_keys(given)
                return append_split(core, given, split, handle.config)

            return [Span(*span) for span in handle.call(run)]
        return [self._append_part(target, part, False, writer) for target, part in given.parts(split)]

    def _wait_durable(self, spans: list[Span]) -> None:
        """Returns when all of them are on the drive: one sync for all partitions."""
        core = self._handle.open()
        self._handle.call(lambda: _core.wait_durable([(core, span.partition, span.end_offset) for span in spans]))

    def _check_keys(self, given: ArrayAppend) -> None:
        if self._handle.config.compacts and any(chunk[1] is None or chunk[1].null_count for chunk in given.chunks):
            raise ValueError(keyless(self._handle.name))


def _table_of(table: Any) -> pa.Table:
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    try:
        if hasattr(table, "__arrow_c_stream__"):
            return pa.RecordBatchReader.from_stream(table).read_all()
        if hasattr(table, "__arrow_c_array__"):
            return pa.Table.from_batches([pa.record_batch(table)])
    except pa.ArrowInvalid as error:
        raise TypeError(f"table is {type(table).__name__}, which is no table: {error}") from error
    raise TypeError(
        f"table is {type(table).__name__}; something with __arrow_c_stream__ or __arrow_c_array__ is needed"
    )
