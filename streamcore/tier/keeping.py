"""What stays where, and for how long: here by local retention, and altogether by retention.

Local data goes only when the tier has it: when the manifest names the object, and the object was read back and is what
was put there. An object that is not is put there again, under another name, from the segment that is still here.

Records are deleted from the manifest first, then from the topic's Iceberg table, if it has one, then as objects, then
here. So no reader is ever led to what is gone.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from streamcore.errors import CorruptionError, OffsetOutOfRangeError, TierError
from streamcore.retention import Removed, RetentionReport, end_of_surplus, is_from_the_future, time_of
from streamcore.tier import offload, tables
from streamcore.tier.log import TierLog
from streamcore.tier.manifest import Entry, Manifest, check_epoch
from streamcore.tier.objects import ObjectMissingError

if TYPE_CHECKING:
    from streamcore.segments import Segment
    from streamcore.tier.offload import Stop
    from streamcore.tier.tier import Tier
    from streamcore.topic import Topic

_log = logging.getLogger("streamcore.tier")


class _Held(NamedTuple):
    """Some records, here or in the tier: behind which offset they end, how new and how large they are.

    time_ms: their greatest timestamp; None: there are none. from_the_future: that is too far ahead of the clock, and
    time_ms that of the segment's file.
    """

    end_offset: int
    time_ms: int | None
    size_bytes: int
    from_the_future: bool


class _Going(NamedTuple):
    """What goes of a partition: the records below an offset, and objects that its manifest names no more."""

    partition: int
    offset: int
    entries: tuple[Entry, ...]


# ---- altogether ------------------------------------------------------------------------------------------------------


def apply_retention(topic: Topic, tier: Tier, log: TierLog, now_ms: int | None = None) -> RetentionReport:
    """Removes what `retention_ms` and `retention_bytes` no longer keep, wherever it is. Raises TierError."""
    config = topic.config
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    going: list[_Going] = []
    future = 0
    if config.retention_ms is None and config.retention_bytes is None:
        return RetentionReport()
    try:
        for partition in range(topic.partition_count):
            segments = topic.segments(partition)
            held = _held(topic, log, partition, segments, now)
            future += sum(one.from_the_future for one in held)
            before = _end_of_what_goes(held, config.retention_ms, config.retention_bytes, now)
            before = max(before, _end_of_gap(topic, log, partition))
            if before > _known_start(topic, log, partition):
                if segments and segments[-1].end_offset <= before and not segments[-1].sealed:
                    topic.roll(partition)
                going.append(_Going(partition, before, _raised_or_not_reached(topic, tier, log, partition, before)))
    finally:  # what manifests name no more goes also when one of them could not be changed
        removed = _delete_rest(topic, tier, log, going)
    return RetentionReport(tuple(removed), future)


def _end_of_gap(topic: Topic, log: TierLog, partition: int) -> int:
    """Where what is here begins, when retention has gone past the end of the tier while that did not answer; -1."""
    known, local = log.copy(partition), topic.local_start(partition)
    return local if known is not None and known.manifest.end_offset < local else -1


def _known_start(topic: Topic, log: TierLog, partition: int) -> int:
    """Where the log begins; where the tier does, if it has older records, for it could not be reached once."""
    start = topic.bounds([partition])[partition][0]
    known = log.copy(partition)
    return start if known is None else min(start, known.manifest.start_offset)


def _held(topic: Topic, log: TierLog, partition: int, segments: list[Segment], now: int) -> list[_Held]:
    """All that there is of a partition, by offset. What is at both places counts once."""
    known = log.copy(partition)
    entries = () if known is None else known.manifest.entries
    end = entries[-1].end_offset if entries else 0
    here = [segment for segment in segments if segment.end_offset > max(end, segment.base_offset)]
    return [_held_there(topic, partition, entry, now) for entry in entries] + _held_here(topic, here, now)


def _held_there(topic: Topic, partition: int, entry: Entry, now: int) -> _Held:
    if not entry.rows:
        return _Held(entry.end_offset, None, entry.segment_bytes, False)
    newest = entry.max_timestamp_ms
    future = is_from_the_future(topic, partition, entry.base_offset, newest, now)
    return _Held(entry.end_offset, entry.segment_ms or newest if future else newest, entry.segment_bytes, future)


def _held_here(topic: Topic, segments: list[Segment], now: int) -> list[_Held]:
    held = []
    for one in segments:
        newest = one.max_timestamp_ms
        future = is_from_the_future(topic, one.partition, one.base_offset, newest, now)
        time_ms = None if newest is None else time_of(topic, one, now)
        held.append(_Held(one.end_offset, time_ms, one.size_bytes, future))
    return held


def _end_of_what_goes(held: list[_Held], retention_ms: int | None, retention_bytes: int | None, now: int) -> int:
    """The offset behind the oldest records that are too old, or without which there is still enough; -1: none."""
    end = -1
    if retention_ms is not None:
        for one in itertools.takewhile(lambda one: _is_older(one, now - retention_ms), held):
            end = one.end_offset
    return max(end, end_of_surplus(held, retention_bytes))


def _is_older(one: _Held, moment_ms: int) -> bool:
    return one.time_ms is None or one.time_ms < moment_ms


def delete_before(topic: Topic, tier: Tier, log: TierLog, partition: int, offset: int) -> Removed:
    """Deletes the records below an offset, wherever they are: in the manifest, then objects, then here."""
    going = _Going(partition, offset, raise_start(tier, log, partition, offset))
    [removed] = _delete_rest(topic, tier, log, [going])
    return removed


def _raised_or_not_reached(topic: Topic, tier: Tier, log: TierLog, partition: int, offset: int) -> tuple[Entry, ...]:
    """As `raise_start`; while the tier cannot be reached records go here alone, for that must not fill the disk."""
    try:
        return raise_start(tier, log, partition, offset)
    except TierError as error:
        if not error.transient:
            raise
        _log.warning("%s/%d: what retention removes goes here alone for now: %s", topic.name, partition, error)
        return ()


def _delete_rest(topic: Topic, tier: Tier, log: TierLog, going: list[_Going]) -> list[Removed]:
    """What follows when manifests name some objects no more: these go when no table names them either."""
    count = sum(len(one.entries) for one in going)
    objects_go = tables.follow(topic, tier, log) if count else True
    if not objects_go:
        _log.warning("%s: %d objects stay until gc, for the Iceberg table may name them", topic.name, count)
    removed = []
    for partition, offset, entries in going:
        freed = 0
        for entry in entries if objects_go else ():
            if entry.name:
                tier.objects.delete(log.path_of(partition, entry.name))
                tier.forget(entry)
                freed += entry.size
        _, segments, size = topic.delete_local(partition, offset)
        start = topic.bounds([partition])[partition][0]
        removed.append(Removed(partition, start, segments + len(entries), size + freed))
    return removed


def raise_start(tier: Tier, log: TierLog, partition: int, offset: int) -> tuple[Entry, ...]:
    """Has the tier begin at an offset; the entries that it names no more. Nothing happens where it has nothing."""
    known = log.fresh(partition)
    gone: tuple[Entry, ...] = ()
    if known is None or known.manifest.start_offset >= offset:
        return gone
    tier.claim()

    def raised(found: Manifest | None) -> Manifest | None:
        nonlocal gone
        assert found is not None
        if found.start_offset >= offset:
            return None
        changed, gone = found.with_start(offset)
        return changed

    offload.change_manifest(tier, log, partition, raised, known)
    return gone


# ---- here ------------------------------------------------------------------------------------------------------------


def apply_local_retention(
    topic: Topic, tier: Tier, log: TierLog, now_ms: int | None = None, stop: Stop | None = None
) -> RetentionReport:
    """Removes what the tier has and local retention no longer keeps here. Raises TierError, FencedError."""
    config = topic.config
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    removed: list[Removed] = []
    if not config.tier or (config.local_retention_ms is None and config.local_retention_bytes is None):
        return RetentionReport()
    for partition in range(topic.partition_count):
        if stop is not None and stop():
            break
        segments = topic.segments(partition)
        held = _held_here(topic, segments, now)
        wanted = _end_of_what_goes(held, config.local_retention_ms, config.local_retention_bytes, now)
        before = min(wanted, _verified_end(topic, tier, log, partition, wanted))
        if before > topic.local_start(partition):
            try:
                start, count, size = topic.delete_local(partition, before)
            except OffsetOutOfRangeError:
                continue  # the log was cut meanwhile, by a recovery
            removed.append(Removed(partition, start, count, size))
            _log.info("%s/%d: %d segments of %d bytes went, which the tier has", topic.name, partition, count, size)
    return RetentionReport(tuple(removed))


def _verified_end(topic: Topic, tier: Tier, log: TierLog, partition: int, wanted: int) -> int:
    """The offset up to which the tier has what was put there, once what was not read back yet has been."""
    if wanted < 0:
        return -1
    known = log.fresh(partition)
    if known is None:
        return -1
    check_epoch(known.manifest.epoch, tier.epoch, log.manifest_url(partition))
    end = max(known.verified_offset, known.manifest.start_offset)
    for entry in known.manifest.entries:
        if entry.end_offset <= end:
            continue
        if entry.base_offset >= wanted:
            break
        problem = problem_of(tier, log, partition, entry)
        if problem is not None:
            _log.warning("%s/%d: %s: it is put there again", topic.name, partition, problem)
            put_again(topic, tier, log, partition, entry)
            break  # what was put there now is read the next time
        end = entry.end_offset
    log.note_verified(partition, end)
    return end


def problem_of(tier: Tier, log: TierLog, partition: int, entry: Entry) -> str | None:
    """What is wrong with an object, by reading it; None when it is what was put there. Raises TierError."""
    if not entry.name:
        return None
    path = log.path_of(partition, entry.name)
    digest = xxhash.xxh3_128()
    size = 0
    try:
        for piece in tier.objects.stream(path):
            digest.update(piece)
            size += len(piece)
    except ObjectMissingError:
        return f"the object {entry.name} is gone"
    if size != entry.size:
        return f"the object {entry.name} has {size} bytes, not {entry.size}"
    return None if digest.hexdigest() == entry.digest else f"the object {entry.name} is not what was put there"


def put_again(topic: Topic, tier: Tier, log: TierLog, partition: int, entry: Entry) -> None:
    """Puts the records of an object there again, from what is here. Raises CorruptionError where they are not here."""
    path = log.path_of(partition, entry.name)
    found = [one for one in topic.segments(partition) if one.base_offset <= entry.base_offset < one.end_offset]
    if not found or found[0].end_offset < entry.end_offset or entry.base_offset < topic.local_start(partition):
        raise CorruptionError("the object is damaged, and its records are not here", tier.objects.url_of(path))
    with offload.temporary(tier.uploads, topic, found[0]) as file:
        made = offload.write_object(topic, found[0], entry.base_offset, entry.end_offset, file)
        offload.put(tier, log, partition, made, file)

    def replaced(manifest: Manifest | None) -> Manifest:
        assert manifest is not None
        entries = tuple(made if one == entry else one for one in manifest.entries)
        return dataclasses.replace(manifest, version=manifest.version + 1, entries=entries)

    offload.change_manifest(tier, log, partition, replaced, log.copy(partition))
