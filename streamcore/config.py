"""The settings of a topic: names as in the API contract, checked, kept as JSON in the catalog."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from streamcore.errors import StoreFormatError

DURABILITIES = ("os", "disk")
_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_SEGMENT_BYTES_MIN = 64 << 10
_SEGMENT_BYTES_MAX = 1 << 40
PARTITIONS_MAX = 100_000
_RECORD_BYTES_MAX = (1 << 31) - (1 << 20)
_PRODUCER_EXPIRY_MS = 7 * 24 * 60 * 60 * 1000


@dataclasses.dataclass(frozen=True)
class TopicConfig:
    """Settings of a topic.

    retention_ms, retention_bytes (of each partition): None keeps for ever. cleanup: "delete", "compact" or
    "compact,delete". delete_retention_ms: how long compaction keeps tombstones. min_compaction_lag_ms: how long it
    leaves records alone. compression: "none", "lz4" or "zstd". timestamp_type: "create" (the producer's time) or
    "append" (the log's). segment_bytes: a segment is rolled before it would grow past this. segment_ms: or when it is
    this old; None: never. max_record_bytes: of a key or value. durability: "os", "disk" or None (the store's).
    tier: sealed segments are kept in the store's tier as well, where they stay as `retention_ms` and `retention_bytes`
    say. local_retention_ms, local_retention_bytes (of each partition): how long, and how much, of what the tier has
    stays here, too; None: all of it. tier_key_filter: objects in the tier get a Bloom filter on the keys.
    tier_iceberg: they are an Apache Iceberg table as well, whose metadata is beside them (needs `streamcore[iceberg]`).
    producer_expiry_ms: a partition forgets an idempotent producer that is idle this long (as Apache Kafka's
    transactional.id.expiration.ms).
    """

    retention_ms: int | None = None
    retention_bytes: int | None = None
    cleanup: str = "delete"
    compression: str = "none"
    timestamp_type: str = "create"
    segment_bytes: int = 1 << 30
    segment_ms: int | None = None
    max_record_bytes: int = 64 << 20
    durability: str | None = None
    producer_expiry_ms: int = _PRODUCER_EXPIRY_MS
    delete_retention_ms: int = 86_400_000
    min_compaction_lag_ms: int = 0
    tier: bool = False
    local_retention_ms: int | None = None
    local_retention_bytes: int | None = None
    tier_key_filter: bool = False
    tier_iceberg: bool = False

    def __post_init__(self) -> None:
        for name in ("retention_ms", "retention_bytes", "segment_ms", "local_retention_ms", "local_retention_bytes"):
            _check_int(name, getattr(self, name), 1, (1 << 62), optional=True)
        for name in ("delete_retention_ms", "min_compaction_lag_ms"):
            _check_int(name, getattr(self, name), 0, (1 << 62))
        _check_int("segment_bytes", self.segment_bytes, _SEGMENT_BYTES_MIN, _SEGMENT_BYTES_MAX)
        _check_int("producer_expiry_ms", self.producer_expiry_ms, 1, 1 << 62)
        _check_int("max_record_bytes", self.max_record_bytes, 1, _RECORD_BYTES_MAX)
        _check_choice("cleanup", self.cleanup, ("delete", "compact", "compact,delete"))
        _check_choice("compression", self.compression, ("none", "lz4", "zstd"))
        _check_choice("timestamp_type", self.timestamp_type, ("create", "append"))
        if self.durability is not None:
            check_durability(self.durability)
        self._check_tier()

    def _check_tier(self) -> None:
        for name in ("tier", "tier_key_filter", "tier_iceberg"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; True or False is needed")
        if self.tier and self.compacts:
            raise ValueError(f"cleanup is {self.cleanup!r}; a topic with tier=True cannot be compacted (as in KIP-405)")
        for name in ("local_retention_ms", "local_retention_bytes"):
            if getattr(self, name) is not None and not self.tier:
                raise ValueError(f"{name} is {getattr(self, name)}, which needs tier=True: what goes must be elsewhere")
        if self.tier_iceberg and not self.tier:
            raise ValueError("tier_iceberg is True, which needs tier=True: the table is made of what is in the tier")

    @property
    def deletes(self) -> bool:
        """Whether retention by time and size applies."""
        return self.cleanup != "compact"

    @property
    def compacts(self) -> bool:
        """Whether only the latest record of each key is kept."""
        return self.cleanup != "delete"

    @classmethod
    def stored(cls, settings: dict[str, Any], topic: str) -> TopicConfig:
        """The settings that the catalog has of a topic. Raises StoreFormatError for what this version does not know."""
        try:
            return cls(**settings)
        except (TypeError, ValueError) as error:
            raise StoreFormatError(f"this version does not know a setting of topic {topic!r}: {error}") from None

    def changed(self, settings: Mapping[str, Any]) -> TopicConfig:
        """A copy with some settings replaced; TypeError for a name that is no setting."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in settings:
            if name not in known:
                raise TypeError(f"{name!r} is no setting of a topic; there are {', '.join(known)}")
        return dataclasses.replace(self, **settings)


class TopicSettings(TypedDict, total=False):
    """The fields of TopicConfig as keyword arguments: what `create_topic` and `alter` take."""

    retention_ms: int | None
    retention_bytes: int | None
    cleanup: Literal["delete", "compact", "compact,delete"]
    compression: Literal["none", "lz4", "zstd"]
    timestamp_type: Literal["create", "append"]
    segment_bytes: int
    segment_ms: int | None
    max_record_bytes: int
    durability: Literal["os", "disk"] | None
    producer_expiry_ms: int
    delete_retention_ms: int
    min_compaction_lag_ms: int
    tier: bool
    local_retention_ms: int | None
    local_retention_bytes: int | None
    tier_key_filter: bool
    tier_iceberg: bool


def check_durability(durability: Any) -> str:
    """ "os" or "disk"."""
    _check_choice("durability", durability, DURABILITIES)
    return str(durability)


def check_topic_name(name: Any) -> str:
    """1 to 249 of a-z A-Z 0-9 . _ - and neither "." nor ".." (the rule of Apache Kafka)."""
    if not isinstance(name, str):
        raise TypeError(f"a topic's name is a str, not {type(name).__name__}")
    if not _NAME.fullmatch(name) or name in (".", ".."):
        shown = repr(name if len(name) <= 80 else name[:77] + "...")
        raise ValueError(
            f"{shown} ({len(name)} characters) is no name for a topic: 1 to 249 of a-z A-Z 0-9 . _ - are allowed"
        )
    return name


def check_partitions(partitions: Any) -> int:
    """1 to 100,000."""
    _check_int("partitions", partitions, 1, PARTITIONS_MAX)
    return int(partitions)


def _check_int(name: str, value: Any, low: int, high: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; an int {'or None ' if optional else ''}is needed")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; {low} to {high} is allowed")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; {' or '.join(map(repr, choices))} is allowed")
