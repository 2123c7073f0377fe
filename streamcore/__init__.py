"""streamcore: an embedded, columnar, crash-safe event log whose files are Arrow streams.

>>> import streamcore as sc
>>> store = sc.open("data/shop")
>>> clicks = store.create_topic("clicks", partitions=4)
>>> clicks.append([b"a", b"b"], keys=[b"k1", b"k2"])
>>> clicks.scan().to_arrow()
"""

from streamcore._core import Record
from streamcore.config import TopicConfig
from streamcore.errors import (
    CorruptionError,
    FencedError,
    GroupError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    StorageError,
    StoreFormatError,
    StoreReadOnlyError,
    StreamcoreError,
    TopicExistsError,
    TopicNotFoundError,
    TransactionError,
)
from streamcore.scan import Scan, ScanMetrics
from streamcore.store import Digest, Problem, Store, open
from streamcore.topic import Partition, Segment, Span, Topic

__version__ = "0.1.0"

__all__ = [
    "CorruptionError",
    "Digest",
    "FencedError",
    "GroupError",
    "OffsetOutOfRangeError",
    "Partition",
    "Problem",
    "Record",
    "RecordTooLargeError",
    "Scan",
    "ScanMetrics",
    "Segment",
    "Span",
    "StorageError",
    "Store",
    "StoreFormatError",
    "StoreReadOnlyError",
    "StreamcoreError",
    "Topic",
    "TopicConfig",
    "TopicExistsError",
    "TopicNotFoundError",
    "TransactionError",
    "__version__",
    "open",
]
