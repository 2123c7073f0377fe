"""What a store holds and what was done with it: figures to look at, and for Prometheus to collect."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from streamcore.maintenance import TaskStats, task_stats

if TYPE_CHECKING:
    from streamcore.groups import Group
    from streamcore.store import Store
    from streamcore.tier.status import TierStatus
    from streamcore.topic import Topic


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """How often what happened: `counts[i]` values below `bounds[i]` and not below the bound before it.

    The last bound is infinite. total: of all values, where that is known, else None.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float | None = None

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """A bound below which that share of the values lies, at least; None without values."""
        wanted, seen = share * self.count, 0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class TopicStats:
    """A topic now, and what this process did with it since it opened the store.

    records, bytes, segments: in the log, over all partitions. unflushed: records that a loss of power would take.
    undecided: records behind the last stable offset, of open transactions or behind them. end_offsets: the sum of all
    partitions' end offsets, which only grows. appends and the rest: by this
    process; bytes of what was appended are bytes in the log, flush_seconds those of each sync.
    """

    topic: str
    partitions: int
    records: int
    bytes: int
    segments: int
    unflushed: int
    undecided: int
    end_offsets: int
    appends: int
    appended_records: int
    appended_bytes: int
    scanned_batches: int
    scanned_records: int
    scanned_bytes: int
    verified_bytes: int
    records_of_append: Histogram
    flush_seconds: Histogram


@dataclasses.dataclass(frozen=True, slots=True)
class GroupStats:
    """A consumer group now. lag: records between its committed offsets and the ends of its topics."""

    group: str
    generation: int
    members: int
    lag: int


@dataclasses.dataclass(frozen=True, slots=True)
class StoreStats:
    """A store at one moment: `taken_ms` since 1970."""

    path: str
    taken_ms: int
    topics: tuple[TopicStats, ...]
    groups: tuple[GroupStats, ...]
    maintenance: tuple[TaskStats, ...]
    tier: TierStatus | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts, lists and numbers."""
        found = dataclasses.asdict(self)
        found["maintenance"] = [task._asdict() for task in self.maintenance]
        if self.tier is not None:
            found["tier"] = {**self.tier._asdict(), "partitions": [one._asdict() for one in self.tier.partitions],
                             "tables": [one._asdict() for one in self.tier.tables]}  # fmt: skip
        return found


def stats_of(store: Store) -> StoreStats:
    """Looks at a store; costs a look at each partition, and reads no records."""
    return StoreStats(
        path=str(store.path),
        taken_ms=time.time_ns() // 1_000_000,
        topics=tuple(_topic_stats(topic) for topic in store.topics()),
        groups=tuple(_group_stats(group) for group in store.groups()),
        maintenance=tuple(task_stats(store.catalog)),
        tier=None if store.tier is None else store.tier.status(),
    )


def _topic_stats(topic: Topic) -> TopicStats:
    parts = topic.partitions
    counts = topic.counters()
    return TopicStats(
        topic=topic.name,
        partitions=len(parts),
        records=sum(part.end_offset - part.start_offset for part in parts),
        bytes=sum(part.size_bytes for part in parts),
        segments=sum(part.segment_count for part in parts),
        unflushed=sum(part.end_offset - part.durable_offset for part in parts),
        undecided=sum(part.end_offset - part.stable_offset for part in parts),
        end_offsets=sum(part.end_offset for part in parts),
        appends=counts["appends"],
        appended_records=counts["records"],
        appended_bytes=counts["bytes"],
        scanned_batches=counts["scanned_batches"],
        scanned_records=counts["scanned_rows"],
        scanned_bytes=counts["scanned_bytes"],
        verified_bytes=counts["verified_bytes"],
        records_of_append=_histogram(counts["append_records"], 1, counts["records"]),
        flush_seconds=_histogram(counts["sync_us"], 1e-6, counts["sync_ns"] * 1e-9),
    )


def _histogram(counts: list[int], unit: float, total: float) -> Histogram:
    """Bucket i of the core counts the values below 2^i units."""
    bounds = (*(unit * 2**i for i in range(len(counts) - 1)), float("inf"))
    return Histogram(bounds, tuple(counts), total)


def _group_stats(group: Group) -> GroupStats:
    return GroupStats(group.name, group.generation, len(group.members()), sum(group.lag().values()))
