"""How a store gets a tier, and which topics may use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from streamcore.config import TopicConfig
from streamcore.tier import address, kept, parquet, tables
from streamcore.tier.tier import Tier, new_settings

if TYPE_CHECKING:
    from streamcore.store import Store


def opened(store: Store, options: Mapping[str, Any]) -> Tier | None:
    """The tier that the catalog names."""
    found = kept.settings(store.catalog)
    return None if found is None else Tier(store, found, options)


def take(store: Store, url: str) -> None:
    """Keeps the address that a store was opened with. Raises ValueError where it has another one."""
    found = kept.settings(store.catalog)
    wanted = address.check_address(url)
    if found is not None and found.url != wanted:
        raise ValueError(f"the store's tier is {found.url}, not {wanted}: `set_tier` changes it")
    if found is None:
        kept.keep_settings(store.catalog, new_settings(wanted, {}))
        store.look_for_tier()


def change(store: Store, url: str | None, options: Mapping[str, Any]) -> None:
    """Keeps another address, or none. Raises ValueError while topics have records at the present one alone."""
    found = kept.settings(store.catalog)
    if url is None and options:
        raise ValueError("options are given for no tier")
    wanted = None if url is None else new_settings(url, options)
    if found is not None and (wanted is None or wanted.url != found.url):
        tiered = [topic.name for topic in store.topics() if topic.config.tier]
        if tiered:
            raise ValueError(
                f"the tier at {found.url} is used by {', '.join(tiered)}: alter these with tier=False first"
            )
        needing = [topic.name for topic in store.topics() if _needs_tier(topic)]
        if needing:
            raise ValueError(f"the tier at {found.url} alone has records of {', '.join(needing)}")
    if wanted is not None and found is not None and wanted.url == found.url:
        wanted = wanted._replace(store_id=found.store_id, epoch=found.epoch)
    kept.keep_settings(store.catalog, wanted)


def _needs_tier(topic: Any) -> bool:
    return any(part.start_offset < part.local_start_offset for part in topic.partitions)


def check_topic(store: Store, config: TopicConfig, schema: pa.Schema | None) -> None:
    """Raises ValueError for a topic that cannot be tiered, because of its types or because there is no tier."""
    if store.tier is None:
        store.look_for_tier()
    if store.tier is None:
        raise ValueError('tier is True, and the store has no tier: store.set_tier("s3://bucket/prefix") gives it one')
    parquet.check_types(schema)
    if config.tier_key_filter:
        parquet.check_key_filter()
    if config.tier_iceberg:
        tables.check_types(schema)
