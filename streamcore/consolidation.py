"""Consolidation: sealed segments of many small batches are rewritten into batches of about 1 MiB.

Offsets, records and their times stay as they are; what the headers said of producers is kept in a batch of its own
(docs/decisions/0008-rewriting-segments.md). A record that was sent alone takes some 800 bytes of frame before, and next
to nothing after.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING

from streamcore import _core
from streamcore.rewriting import BATCH_BYTES, BATCH_ROWS, Pace, Rewritten, rewrite_arrow

if TYPE_CHECKING:
    from streamcore.segments import Segment
    from streamcore.topic import Topic

WORTH_BATCHES = 4  # times as many batches as there must be: then rewriting pays
_settled: weakref.WeakKeyDictionary[Topic, set[tuple[int, int, int, str]]] = weakref.WeakKeyDictionary()
_log = logging.getLogger("streamcore.consolidation")


def consolidate(topic: Topic, pace: Pace, partition: int | None = None) -> list[Rewritten]:
    """Rewrites the sealed segments where that pays; ends early when `pace` says so.

    A partition where another process or thread rewrites segments is left to it.
    """
    done: list[Rewritten] = []
    wanted = range(topic.partition_count) if partition is None else [partition]
    for number in wanted:
        try:
            for segment in topic.rewritable(number):
                if pace.stopped():
                    return done
                one = _consolidate_segment(topic, segment, pace)
                if one is not None:
                    done.append(one)
        except _core.RewriteConflict as error:
            _log.debug("%s: %s", topic.name, error)
    return done


def _consolidate_segment(topic: Topic, segment: Segment, pace: Pace) -> Rewritten | None:
    codec = topic.config.compression
    settled = _settled.setdefault(topic, set())  # a sealed segment stays as it is until somebody rewrites it
    known = (segment.partition, segment.base_offset, segment.size_bytes, codec)
    if known in settled:
        return None
    rewrite = topic.open_rewrite(segment)
    if rewrite is None:
        return None
    try:
        plain, batches, size, rows, _, compressed, with_headers = rewrite.look()
        if not _is_worth(batches, size, rows) and (codec == "none" or compressed == batches):
            settled.add(known)
            return None
        if plain and codec == "none" and not compressed and not with_headers:
            whole = rewrite.plain(BATCH_BYTES, pace.passed)
        else:
            whole = rewrite_arrow(rewrite, topic.versions, codec, None, segment.end_offset, pace)
        if not whole:
            return None
        replaced, *counts = rewrite.commit()
    finally:
        rewrite.close()
    if not replaced:
        return None
    _log.info(
        "%s/%d: the segment at offset %d had %d batches and %d bytes, and has %d and %d",
        topic.name, segment.partition, segment.base_offset, counts[2], counts[0], counts[3], counts[1],
    )  # fmt: skip
    return Rewritten(segment.partition, segment.base_offset, segment.end_offset, *counts)


def _is_worth(batches: int, size: int, rows: int) -> bool:
    needed = max(-(-size // BATCH_BYTES), -(-rows // BATCH_ROWS), 1)
    return batches > WORTH_BATCHES * needed
