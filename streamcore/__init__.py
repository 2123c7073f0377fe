"""streamcore: an embedded, columnar, crash-safe event log whose files are Arrow streams.

>>> import streamcore as sc
>>> store = sc.open("data/shop")
>>> clicks = store.create_topic("clicks", partitions=4)
>>> clicks.append([b"a", b"b"], keys=[b"k1", b"k2"])
>>> clicks.scan().to_arrow()

The names below are loaded when first used (PEP 562): importing the package costs no import of pyarrow or NumPy.
"""

import importlib
from typing import TYPE_CHECKING, Any

from streamcore.errors import (
    BufferFullError,
    CorruptionError,
    FencedError,
    GroupError,
    Lost,
    OffsetOutOfRangeError,
    ProducerError,
    RecordTooLargeError,
    SequenceError,
    StorageError,
    StoreFormatError,
    StoreReadOnlyError,
    StreamcoreError,
    TierError,
    TopicExistsError,
    TopicNotFoundError,
    TransactionError,
)

if TYPE_CHECKING:
    from streamcore._core import Record
    from streamcore.appender import Span
    from streamcore.config import TopicConfig
    from streamcore.consumer import Consumer, ConsumerMetrics
    from streamcore.dead_letters import Backoff, Processed
    from streamcore.groups import CommittedOffset, Group, Member, TopicPartition
    from streamcore.producer import Delivery, Producer
    from streamcore.retention import Removed, RetentionReport
    from streamcore.rewriting import Rewritten
    from streamcore.scan import Scan, ScanMetrics
    from streamcore.segments import Partition, Segment
    from streamcore.store import Digest, Problem, Store, open
    from streamcore.tier.checks import Collected
    from streamcore.tier.offload import Offloaded
    from streamcore.tier.restore import Restored, open_tier, restore
    from streamcore.tier.status import PartitionStatus, TierStatus
    from streamcore.tier.tables import TableStatus
    from streamcore.tier.tier import Tier
    from streamcore.topic import Topic
    from streamcore.transactions import Transaction

__version__ = "0.1.0"

_HOMES = {
    "Backoff": "dead_letters",
    "CommittedOffset": "groups",
    "Consumer": "consumer",
    "ConsumerMetrics": "consumer",
    "Delivery": "producer",
    "Group": "groups",
    "Member": "groups",
    "Processed": "dead_letters",
    "TopicPartition": "groups",
    "Digest": "store",
    "Partition": "segments",
    "Problem": "store",
    "Producer": "producer",
    "Record": "_core",
    "Removed": "retention",
    "RetentionReport": "retention",
    "Rewritten": "rewriting",
    "Scan": "scan",
    "ScanMetrics": "scan",
    "Segment": "segments",
    "Span": "appender",
    "Store": "store",
    "Topic": "topic",
    "TopicConfig": "config",
    "Transaction": "transactions",
    "open": "store",
    "Collected": "tier.checks",
    "Offloaded": "tier.offload",
    "PartitionStatus": "tier.status",
    "Restored": "tier.restore",
    "TableStatus": "tier.tables",
    "Tier": "tier.tier",
    "TierStatus": "tier.status",
    "open_tier": "tier.restore",
    "restore": "tier.restore",
}

__all__ = [
    "Backoff",
    "BufferFullError",
    "Collected",
    "CommittedOffset",
    "Consumer",
    "ConsumerMetrics",
    "CorruptionError",
    "Delivery",
    "Digest",
    "FencedError",
    "Group",
    "GroupError",
    "Lost",
    "Member",
    "Offloaded",
    "OffsetOutOfRangeError",
    "Partition",
    "PartitionStatus",
    "Problem",
    "Processed",
    "Producer",
    "ProducerError",
    "Record",
    "RecordTooLargeError",
    "Removed",
    "Restored",
    "RetentionReport",
    "Rewritten",
    "Scan",
    "ScanMetrics",
    "Segment",
    "SequenceError",
    "Span",
    "StorageError",
    "Store",
    "StoreFormatError",
    "StoreReadOnlyError",
    "StreamcoreError",
    "TableStatus",
    "Tier",
    "TierError",
    "TierStatus",
    "Topic",
    "TopicConfig",
    "TopicExistsError",
    "TopicNotFoundError",
    "TopicPartition",
    "Transaction",
    "TransactionError",
    "__version__",
    "open",
    "open_tier",
    "restore",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'streamcore' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"streamcore.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
