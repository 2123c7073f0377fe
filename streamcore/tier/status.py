"""What a tier holds, and how far it is behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from streamcore.tier import kept, offload, tables
from streamcore.tier.tables import TableStatus

if TYPE_CHECKING:
    from streamcore.store import Store
    from streamcore.tier.log import TierLog
    from streamcore.tier.tier import Tier
    from streamcore.topic import Topic


class PartitionStatus(NamedTuple):
    """A partition of a tiered topic. The tier has the offsets [start, end); this machine those from `local_start` on.

    objects, records, object_bytes: in the tier; segment_bytes: what the objects were made from. pending_segments,
    pending_bytes: could go and did not yet. iceberg_end_offset: where the Iceberg table ends; None: there is none.
    """

    topic: str
    partition: int
    start_offset: int
    end_offset: int
    local_start_offset: int
    log_end_offset: int
    objects: int
    records: int
    object_bytes: int
    segment_bytes: int
    pending_segments: int
    pending_bytes: int
    iceberg_end_offset: int | None = None


class TierStatus(NamedTuple):
    """A tier as far as this machine knows it: nothing is asked of the tier itself.

    requests: what this process asked of it, by name; `got` and `put` are bytes. last_pass_ms: when this process did the
    background work last; last_error: what failed then. tables: those of topics with `tier_iceberg`.
    """

    url: str
    store_id: str
    epoch: int
    partitions: tuple[PartitionStatus, ...]
    requests: dict[str, int]
    cache_bytes: int
    cache_hits: int
    cache_misses: int
    last_pass_ms: int | None
    last_error: str | None
    tables: tuple[TableStatus, ...] = ()

    @property
    def object_bytes(self) -> int:
        """The bytes of all objects."""
        return sum(one.object_bytes for one in self.partitions)

    @property
    def pending_bytes(self) -> int:
        """The bytes of segments that could go and did not yet."""
        return sum(one.pending_bytes for one in self.partitions)


def status_of(store: Store, tier: Tier) -> TierStatus:
    """Looks at all topics."""
    logs = [(topic, topic.cold) for topic in store.topics()]
    partitions, found = [], []
    for topic, log in logs:
        if log is None:
            continue
        table = kept.table(tier.catalog, topic.id) if topic.config.tier_iceberg else None
        partitions += [_partition(topic, log, number, table) for number in range(topic.partition_count)]
        if topic.config.tier_iceberg:
            found.append(tables.status(topic, tier, log, table))
    cache = tier.cache
    size, hits, misses = (0, 0, 0) if cache is None else (cache.size_bytes, cache.hits, cache.misses)
    return TierStatus(
        tier.url, tier.store_id, tier.epoch, tuple(partitions), tier.requests(), size, hits, misses,
        tier.last_pass_ms, tier.last_error, tuple(found),
    )  # fmt: skip


def _partition(topic: Topic, log: TierLog, number: int, table: kept.Table | None) -> PartitionStatus:
    part = topic.partitions[number]
    known = log.copy(number)
    entries = () if known is None else known.manifest.entries
    start, end = (part.start_offset, part.start_offset) if known is None else (
        known.manifest.start_offset, known.manifest.end_offset)  # fmt: skip
    waiting = offload.pending(topic, log, number) if topic.config.tier else []
    return PartitionStatus(
        topic.name, number, start, end, part.local_start_offset, part.end_offset,
        objects=sum(bool(entry.name) for entry in entries),
        records=sum(entry.rows for entry in entries),
        object_bytes=sum(entry.size for entry in entries),
        segment_bytes=sum(entry.segment_bytes for entry in entries),
        pending_segments=len(waiting),
        pending_bytes=sum(segment.size_bytes for segment in waiting),
        iceberg_end_offset=table.partitions[number][2] if table is not None and number in table.partitions else None,
    )  # fmt: skip
