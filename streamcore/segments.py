"""Partitions and segment files as they are at one moment, while others append, delete and rewrite."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

from streamcore.errors import CorruptionError, StorageError
from streamcore.topic_handle import STALE_RETRIES, TopicHandle


@dataclasses.dataclass(frozen=True, slots=True)
class Partition:
    """A partition at one moment. `durable_offset`: everything below it survives a loss of power.

    `local_start_offset`: where what is here begins; what is before it, from `start_offset` on, is in the tier.

    `stable_offset`: every transaction with records below it is committed or aborted (the last stable offset of KIP-98).
    """

    index: int
    start_offset: int
    end_offset: int
    durable_offset: int
    size_bytes: int
    stable_offset: int
    segment_count: int
    local_start_offset: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A segment file at one moment. Times are milliseconds since 1970, None when it has no records."""

    partition: int
    base_offset: int
    end_offset: int
    path: str
    size_bytes: int
    sealed: bool
    min_timestamp_ms: int | None
    max_timestamp_ms: int | None
    count: int


def partition_of(handle: TopicHandle, number: int) -> Partition:
    """A partition with its offsets and sizes."""
    found = handle.call(partial(handle.open().describe, number, True))
    return Partition(number, handle.start(number, found[0]), *found[1:], local_start_offset=found[0])


def segments_of(handle: TopicHandle, partition: int) -> list[Segment]:
    """All segments of a partition, by offset; listed anew when some were removed meanwhile."""
    core = handle.open()
    for attempt in itertools.count():
        found: list[Segment] = []
        start = _start_of(handle, partition)
        try:
            while (one := handle.call(partial(core.segment, partition, len(found)))) is not None:
                found.append(Segment(partition, *one))
        except (StorageError, CorruptionError):
            moved = _start_of(handle, partition) > start or _lost_segments(handle, found, partition)
            if attempt == STALE_RETRIES or not moved:
                raise
            continue
        if attempt == STALE_RETRIES or not _lost_segments(handle, found, partition):
            return found
    raise AssertionError


def _lost_segments(handle: TopicHandle, found: list[Segment], partition: int) -> bool:
    """Whether segments were removed while they were listed."""
    gaps = any(before.end_offset != behind.base_offset for before, behind in itertools.pairwise(found))
    return gaps or (len(found) > 1 and found[1].base_offset <= _start_of(handle, partition))


def _start_of(handle: TopicHandle, partition: int) -> int:
    return int(handle.call(lambda: handle.open().describe(partition, False))[0])
