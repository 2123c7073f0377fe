"""Compaction: of each key the latest record is kept; and what is latest, also where nothing was compacted.

As Apache Kafka's log cleaner: a pass reads the keys of what was not compacted yet into a map of limited size, then
rewrites every segment up to where the map was full without the records that have a later one in it; more keys take more
passes. How far a partition is clean is kept in the catalog, as a hint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamcore import _core
from streamcore.catalog import IS_COUNT, IS_PARTITION
from streamcore.errors import OffsetOutOfRangeError, StreamcoreError
from streamcore.rewriting import BATCH_BYTES, Pace, Rewritten, arrow_of, rewrite_arrow
from streamcore.schema import RECORD_COLUMNS

if TYPE_CHECKING:
    from streamcore.catalog import Catalog
    from streamcore.segments import Segment
    from streamcore.topic import Topic

MEMORY_BYTES = 128 << 20
_MEMORY_BYTES_MIN = 1536  # the smallest map: 64 entries
_RETRIES = 100
_Result = TypeVar("_Result")
_log = logging.getLogger("streamcore.compaction")

_TABLES = """
create table if not exists compaction (
  topic_id text not null references topics (id) on delete cascade,
  partition integer not null,
  clean_offset integer not null,
  oldest_tombstone_ms integer,
  primary key (topic_id, partition)
) without rowid
"""

_SENSE = {
    "compaction": f"partition {IS_PARTITION} and clean_offset {IS_COUNT} "
    f"and coalesce(oldest_tombstone_ms between -{1 << 62} and {1 << 62}, true)"
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How much memory the map of keys takes, from which part of bytes not compacted on it runs, and the time."""

    memory_bytes: int = MEMORY_BYTES
    min_dirty_ratio: float = 0.0
    now_ms: int | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes < _MEMORY_BYTES_MIN:
            raise ValueError(f"memory_bytes is {self.memory_bytes}; {_MEMORY_BYTES_MIN} or more is allowed")
        if not 0 <= self.min_dirty_ratio <= 1:
            raise ValueError(f"min_dirty_ratio is {self.min_dirty_ratio!r}; 0 to 1 is allowed")


# ---- how far a partition is clean ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Clean:
    """Below `offset` each key has one record; the oldest tombstone among those has this time."""

    offset: int = 0
    oldest_tombstone_ms: int | None = None


def _read_clean(catalog: Catalog, topic_id: str, partition: int) -> _Clean:
    catalog.ensure_tables(_TABLES, _SENSE)
    with catalog.reading() as connection:
        row = connection.execute(
            "select clean_offset, oldest_tombstone_ms from compaction where topic_id = ? and partition = ?",
            (topic_id, partition),
        ).fetchone()
    return _Clean() if row is None else _Clean(*row)


def _keep_clean(catalog: Catalog, topic_id: str, partition: int, clean: _Clean) -> None:
    with catalog.changing(durable=False) as connection:
        connection.execute(
            "insert or replace into compaction values (?, ?, ?, ?)",
            (topic_id, partition, clean.offset, clean.oldest_tombstone_ms),
        )


# ---- compaction ------------------------------------------------------------------------------------------------


def compact(topic: Topic, catalog: Catalog, pace: Pace, partition: int | None, options: Options) -> list[Rewritten]:
    """Compacts partitions; one where another process or thread rewrites segments is left to it."""
    done: list[Rewritten] = []
    for number in range(topic.partition_count) if partition is None else [partition]:
        with contextlib.suppress(_core.RewriteConflict):
            _Compaction(topic, catalog, pace, number, options).run(done)
        if pace.stopped():
            break
    return done


class _Compaction:
    """One partition being compacted."""

    def __init__(self, topic: Topic, catalog: Catalog, pace: Pace, partition: int, options: Options) -> None:
        self._topic = topic
        self._catalog = catalog
        self._pace = pace
        self._partition = partition
        self._options = options
        now = time.time_ns() // 1_000_000 if options.now_ms is None else options.now_ms
        self._now = now
        self._tombstones_before = now - topic.config.delete_retention_ms

    def run(self, done: list[Rewritten]) -> None:
        segments = self._segments()
        if not segments:
            return
        first, limit = segments[0].base_offset, segments[-1].end_offset
        clean = _read_clean(self._catalog, self._topic.id, self._partition)
        start = min(max(clean.offset, first), limit)
        dirty = sum(segment.size_bytes for segment in segments if segment.end_offset > start)
        total = sum(segment.size_bytes for segment in segments)
        oldest = clean.oldest_tombstone_ms
        has_spent = oldest is not None and oldest < self._tombstones_before
        if (dirty == 0 or dirty < self._options.min_dirty_ratio * total) and not has_spent:
            return
        if has_spent:  # a tombstone goes with the pass that reads its key: then no older record is left for sure
            start = first
        keys = _core.KeyMap(self._options.memory_bytes, os.urandom(16))
        while True:
            keys.clear()
            end = self._collect(segments, keys, start, limit)
            if end is None:
                return
            below = [segment for segment in segments if segment.base_offset < end]
            whole, tombstone = self._clean(below, keys, (start, end), done)
            if not whole:
                return
            _keep_clean(self._catalog, self._topic.id, self._partition, _Clean(end, tombstone))
            start = end
            if start >= limit:
                return

    def _segments(self) -> list[Segment]:
        """Those that may be compacted: sealed, old enough, and without open transactions."""
        young = self._now - self._topic.config.min_compaction_lag_ms
        found = []
        for segment in self._topic.rewritable(self._partition):
            is_young = segment.max_timestamp_ms is not None and segment.max_timestamp_ms > young
            if is_young and self._topic.config.min_compaction_lag_ms > 0:
                break
            found.append(segment)
        return found

    @contextlib.contextmanager
    def _rewriting(self, segment: Segment) -> Iterator[_core.Rewrite | None]:
        rewrite = self._topic.open_rewrite(segment)
        try:
            yield rewrite
        finally:
            if rewrite is not None:
                rewrite.close()

    def _collect(self, segments: list[Segment], keys: _core.KeyMap, start: int, limit: int) -> int | None:
        """Reads keys until the map is full: the offset up to which it has all; None when it was stopped."""
        for segment in segments:
            if segment.end_offset <= start:
                continue
            with self._rewriting(segment) as rewrite:
                if rewrite is None:  # deleted meanwhile, or open transactions begin in it
                    if self._is_gone(segment):
                        continue
                    return segment.base_offset if segment.base_offset > start else None
                if self._is_compressed(rewrite):
                    full_at = self._collect_arrow(rewrite, keys, start, limit)
                else:
                    full_at = rewrite.collect(keys, start, limit)
            if full_at >= 0:
                return full_at
            if self._pace.passed(segment.size_bytes):
                return None
        return limit

    def _is_gone(self, segment: Segment) -> bool:
        return self._topic.partitions[self._partition].local_start_offset >= segment.end_offset

    @staticmethod
    def _is_compressed(rewrite: _core.Rewrite) -> bool:
        return rewrite.look()[5] > 0

    def _collect_arrow(self, rewrite: _core.Rewrite, keys: _core.KeyMap, start: int, limit: int) -> int:
        rewrite.rewind()
        while (batch := rewrite.next()) is not None:
            if batch.record_count == 0:
                continue
            made = arrow_of(rewrite, batch, self._topic.versions)
            full_at = keys.put(made.column(2), made.column(0).to_numpy(), start, limit)
            if full_at >= 0:
                return full_at
        return -1

    def _clean(
        self, segments: list[Segment], keys: _core.KeyMap, collected: tuple[int, int], done: list[Rewritten]
    ) -> tuple[bool, int | None]:
        """Rewrites by the keys of `collected` offsets: (False: it was stopped, the oldest tombstone left in ms)."""
        oldest: int | None = None
        for segment in segments:
            if self._pace.stopped():
                return False, None
            with self._rewriting(segment) as rewrite:
                if rewrite is None:
                    if self._is_gone(segment):
                        continue
                    return False, None
                whole, tombstone = self._clean_segment(rewrite, segment, keys, collected, done)
            if not whole:
                return False, None
            oldest = tombstone if oldest is None else oldest if tombstone is None else min(oldest, tombstone)
        return True, oldest

    def _clean_segment(
        self,
        rewrite: _core.Rewrite,
        segment: Segment,
        keys: _core.KeyMap,
        collected: tuple[int, int],
        done: list[Rewritten],
    ) -> tuple[bool, int | None]:
        plain, _, _, _, aborted, compressed, with_headers = rewrite.look()
        codec = self._topic.config.compression
        marks = _ArrowMarks(keys, self._tombstones_before, collected)
        if compressed:
            dropped, oldest = marks.look(rewrite, self._topic, aborted)
        else:
            dropped, oldest = rewrite.mark(keys, self._tombstones_before, *collected)
        if self._pace.passed(segment.size_bytes):
            return False, None
        if dropped == 0:
            return True, oldest
        if plain and codec == "none" and not compressed and not with_headers:
            whole = rewrite.plain(BATCH_BYTES, self._pace.passed)
        else:
            keep = marks.keep if compressed else _kept_by(rewrite)
            whole = rewrite_arrow(rewrite, self._topic.versions, codec, keep, segment.end_offset, self._pace)
        if not whole:
            return False, None
        replaced, *counts = rewrite.commit()
        if replaced:
            done.append(Rewritten(segment.partition, segment.base_offset, segment.end_offset, *counts))
            _log.info(
                "%s/%d: compaction dropped %d of %d records from the segment at offset %d",
                self._topic.name, segment.partition, counts[4] - counts[5], counts[4], segment.base_offset,
            )  # fmt: skip
        return True, oldest


def _kept_by(rewrite: _core.Rewrite) -> Any:
    def keep(batch: _core.Batch, made: pa.RecordBatch) -> Any:
        out = np.empty(batch.record_count, np.uint8)
        rewrite.kept(out)
        return out.view(bool)

    return keep


class _ArrowMarks:
    """Which rows of compressed batches stay: the rule of `sc_rewrite_mark`."""

    def __init__(self, keys: _core.KeyMap, tombstones_before: int, collected: tuple[int, int]) -> None:
        self._keys = keys
        self._before = tombstones_before
        self._start, self._end = collected

    def keep(self, batch: _core.Batch, made: pa.RecordBatch) -> Any:
        """True for each row that stays."""
        return self._split(made)[0]

    def look(self, rewrite: _core.Rewrite, topic: Topic, aborted: int) -> tuple[int, int | None]:
        """How many rows do not stay, and the time of the oldest tombstone that does."""
        dropped = aborted
        oldest: int | None = None
        rewrite.rewind()
        while (batch := rewrite.next()) is not None:
            if batch.record_count == 0:
                continue
            kept, tombstones, times = self._split(arrow_of(rewrite, batch, topic.versions))
            dropped += len(kept) - int(kept.sum())
            left = times[kept & tombstones]
            if len(left):
                oldest = int(left.min()) if oldest is None else min(oldest, int(left.min()))
        return dropped, oldest

    def _split(self, made: pa.RecordBatch) -> tuple[Any, Any, Any]:
        offsets, times = made.column(0).to_numpy(), made.column(1).view(pa.int64()).to_numpy()
        latest = np.empty(len(offsets), np.int64)
        self._keys.latest(made.column(2), latest)
        keyed = np.asarray(pc.is_valid(made.column(2)))
        tombstones = keyed & np.asarray(pc.is_null(made.column(3)))
        spent = tombstones & (times < self._before) & (offsets >= self._start) & (offsets < self._end)
        return ~((latest > offsets) | spent), tombstones, times


# ---- what is latest --------------------------------------------------------------------------------------------


def _at_one_moment(topic: Topic, partition: int, read: Callable[[], _Result]) -> _Result:
    """Reads again when records were deleted or segments replaced meanwhile.

    Who reads up to an offset may miss a record that compaction drops because of one behind that offset.
    """
    for _ in range(_RETRIES):
        rewrites = topic.rewrites(partition)
        try:
            found = read()
        except OffsetOutOfRangeError:
            continue
        if topic.rewrites(partition) == rewrites:
            return found
    raise StreamcoreError(f"{topic.name}/{partition} was rewritten again and again while it was read")


def latest(topic: Topic, key: bytes, partition: int) -> _core.Record | None:
    """The latest record of a key in a partition; None when there is none, or it is a tombstone."""
    return _at_one_moment(topic, partition, lambda: _latest(topic, key, partition))


def _latest(topic: Topic, key: bytes, partition: int) -> _core.Record | None:
    whole = topic.scan(partition)
    [(_, start, end)] = whole.ranges
    wanted = pa.scalar(key, pa.binary())
    for segment in reversed(topic.extents(partition)):
        low, high = max(start, segment.base_offset), min(end, segment.end_offset)
        if low >= high:
            continue
        found = None
        for batch in topic.scan(partition, low, high, columns=["offset", "key"]).batches():
            matches = batch.column(0).filter(pc.fill_null(pc.equal(batch.column(1), wanted), False))
            if len(matches):
                found = matches[-1].as_py()
        if found is not None:
            record = next(iter(topic.scan(partition, found, found + 1)), None)  # None: it is dropped by now
            return None if record is None or record.value is None else record
    return None


def table(topic: Topic, partitions: Iterable[int], columns: list[str] | None) -> pa.Table:
    """The latest record of each key of some partitions."""
    names = list(RECORD_COLUMNS) if columns is None else columns
    empty = topic.scan(columns=names, limit=0).to_arrow()
    parts = []
    for partition in partitions:
        keys = _Latest(topic, partition)
        parts += _at_one_moment(topic, partition, partial(keys.read, names))
    return pa.Table.from_batches(parts, schema=empty.schema)


class _Latest:
    """The offsets of the latest record of each key of a partition, up to `end`."""

    def __init__(self, topic: Topic, partition: int) -> None:
        self._topic = topic
        self._partition = partition
        self._keys = _core.KeyMap(0, os.urandom(16))
        self._end = 0

    def read(self, names: list[str]) -> list[pa.RecordBatch]:
        """The latest records. Called again, it reads only new keys: what was dropped meanwhile has a later record."""
        topic, partition = self._topic, self._partition
        [(_, start, end)] = topic.scan(partition).ranges
        first = max(start, self._end)
        for batch in topic.scan(partition, first, end, columns=["offset", "key"]).batches():
            self._keys.put(batch.column(1), batch.column(0).to_numpy(), first, end)
        self._end = end
        extra = [name for name in ("offset", "key", "value") if name not in names]
        found = []
        for batch in topic.scan(partition, start, end, columns=[*names, *extra]).batches():
            newest = np.empty(batch.num_rows, np.int64)
            self._keys.latest(batch.column("key"), newest)
            wanted = (newest == batch.column("offset").to_numpy()) & np.asarray(pc.is_valid(batch.column("value")))
            kept = batch.select(names).filter(pa.array(wanted))
            if kept.num_rows:
                found.append(kept)
        return found
