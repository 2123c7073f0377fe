"""Retention: whole segments go when all of their records are too old, or when a partition is too large.

The rules are those of Apache Kafka's `log.retention`: a segment is as old as its greatest record timestamp; segments go
oldest first, and the first that must stay keeps all behind it; size counts the segments of one partition, and never
takes it below the limit. One rule is ours: a timestamp more than a day ahead of the clock is no reason to keep a
segment. Such a segment is as old as its file, and the log says so once. In the tier, its object is as old as that file
was (streamcore/tier/keeping.py).
"""

from __future__ import annotations

import dataclasses
import logging
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from streamcore.errors import OffsetOutOfRangeError

if TYPE_CHECKING:
    from streamcore.segments import Segment
    from streamcore.topic import Topic

FUTURE_MS_MAX = 24 * 3600 * 1000
_log = logging.getLogger("streamcore.retention")
_warned: weakref.WeakKeyDictionary[Topic, set[tuple[int, int]]] = weakref.WeakKeyDictionary()


class Sized(Protocol):
    """Some records of a partition: behind which offset they end, and their bytes."""

    @property
    def end_offset(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...


class Removed(NamedTuple):
    """What a deletion did to a partition: its records begin at `start_offset` now; files that went, and their bytes."""

    partition: int
    start_offset: int
    segments: int
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class RetentionReport:
    """What retention removed, by partition, and how many segments have records of a far future."""

    removed: tuple[Removed, ...] = ()
    from_the_future: int = 0

    @property
    def segments(self) -> int:
        """The number of segments that were removed."""
        return sum(one.segments for one in self.removed)

    @property
    def size_bytes(self) -> int:
        """The bytes of the files that were removed."""
        return sum(one.size_bytes for one in self.removed)


def apply_retention(topic: Topic, now_ms: int | None = None) -> RetentionReport:
    """Removes what `retention_ms` and `retention_bytes` no longer keep; nothing where `cleanup` is "compact".

    now_ms: milliseconds since 1970, default the clock. An active segment that is too old is sealed first, so that it
    can go as well. Raises StoreReadOnlyError, StorageError.
    """
    config = topic.config
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    if topic.cold is not None and topic.store.tier is not None:
        from streamcore.tier import keeping

        return keeping.apply_retention(topic, topic.store.tier, topic.cold, now)
    if not config.deletes or (config.retention_ms is None and config.retention_bytes is None):
        return RetentionReport()
    removed, future = [], 0
    for partition in range(topic.partition_count):
        held = topic.segments(partition)
        future += sum(is_from_the_future(topic, partition, one.base_offset, one.max_timestamp_ms, now) for one in held)
        before = max(
            _end_of_expired(topic, held, config.retention_ms, now),
            end_of_surplus(held, config.retention_bytes),
        )
        if before < 0:
            continue
        if held[-1].end_offset <= before and not held[-1].sealed:
            topic.roll(partition)
        try:
            [done] = topic.delete_records(before, partition)
        except OffsetOutOfRangeError:
            continue  # the log was cut meanwhile, by a recovery
        if done.segments:
            removed.append(done)
            _log.info(
                "%s/%d: retention removed %d segments, %d bytes; the log begins at offset %d",
                topic.name, partition, done.segments, done.size_bytes, done.start_offset,
            )  # fmt: skip
    return RetentionReport(tuple(removed), future)


def _end_of_expired(topic: Topic, held: list[Segment], retention_ms: int | None, now: int) -> int:
    """The offset behind the oldest segments that are too old; -1: none is."""
    end = -1
    for segment in held:
        if retention_ms is None or segment.end_offset == segment.base_offset:
            break
        if time_of(topic, segment, now) >= now - retention_ms:
            break
        end = segment.end_offset
    return end


def end_of_surplus(held: Sequence[Sized], retention_bytes: int | None) -> int:
    """The offset behind the oldest segments without which there are still `retention_bytes`; -1: none."""
    end = -1
    surplus = 0 if retention_bytes is None else sum(segment.size_bytes for segment in held) - retention_bytes
    for segment in held[:-1]:
        surplus -= segment.size_bytes
        if retention_bytes is None or surplus < 0:
            break
        end = segment.end_offset
    return end


def is_from_the_future(topic: Topic, partition: int, base_offset: int, newest_ms: int | None, now: int) -> bool:
    """Whether a segment's greatest timestamp says nothing of worth: it is too far ahead of the clock."""
    if newest_ms is None or newest_ms <= now + FUTURE_MS_MAX:
        return False
    known = _warned.setdefault(topic, set())
    if (partition, base_offset) not in known:
        known.add((partition, base_offset))
        _log.warning(
            "%s/%d: the segment at offset %d has a record that is dated %d ms ahead of the clock; "
            "retention goes by the age of its file",
            topic.name, partition, base_offset, newest_ms - now,
        )  # fmt: skip
    return True


def time_of(topic: Topic, segment: Segment, now: int) -> int:
    """How new a segment is: its greatest timestamp, or the time of its file where that says nothing of worth."""
    newest_ms = segment.max_timestamp_ms
    if newest_ms is not None and not is_from_the_future(topic, segment.partition, segment.base_offset, newest_ms, now):
        return newest_ms
    return file_time_ms(segment, now)


def file_time_ms(segment: Segment, now: int) -> int:
    """When a segment's file was changed last, in milliseconds since 1970; now, where it is gone."""
    try:
        return Path(segment.path).stat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return now
