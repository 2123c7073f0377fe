"""The background work on the tier: offload, local retention, Iceberg tables, a backup of the catalog."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from streamcore.errors import StreamcoreError, TopicNotFoundError
from streamcore.tier import backup, keeping, offload, tables

if TYPE_CHECKING:
    from streamcore.store import Store
    from streamcore.tier.offload import Stop
    from streamcore.tier.tier import Tier

_log = logging.getLogger("streamcore.tier")


def keep(store: Store, tier: Tier, stop: Stop) -> dict[str, int]:
    """One pass over all tiered topics; what was done, by name. The first failure is raised when all had their turn."""
    done = dict.fromkeys(("objects", "segment_bytes", "object_bytes", "local_segments", "local_bytes"), 0)
    failures: list[StreamcoreError] = []
    for topic in store.topics():
        log = topic.cold
        if stop() or log is None:
            continue
        if not topic.config.tier:
            tables.follow(topic, tier, log)  # which is to be dropped
            continue
        try:
            for one in offload.offload(topic, tier, log, stop):
                done["objects"] += 1
                done["segment_bytes"] += one.segment_bytes
                done["object_bytes"] += one.object_bytes
            report = keeping.apply_local_retention(topic, tier, log, stop=stop)
            done["local_segments"] += report.segments
            done["local_bytes"] += report.size_bytes
            tables.follow(topic, tier, log)  # objects that were put there again
        except TopicNotFoundError:
            continue
        except StreamcoreError as error:
            _log.warning("%s: the tier: %s", topic.name, error)
            failures.append(error)
    if not failures and not stop():
        backup.back_up(store, tier, at_most_every_s=backup.INTERVAL_S)
    tier.note_pass(failures[0] if failures else None)
    if failures:
        raise failures[0]
    return done
