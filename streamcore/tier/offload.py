"""Sealed segments go to the tier: first the object, then what is known of producers where it ends, then the manifest
that names both, then the copy in the catalog.

Each step may be the last one of a process. Each upload has a name of its own: an object that no manifest names will
never be named by one, so that `gc` may remove it whenever it wants. Of two who offload at once, one changes the
manifest, and the other one's object stays without a name. What goes: the records up to the last stable offset, as a
committed reader sees them. So no transaction is half there, and aborted ones and markers are left out.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import xxhash

from streamcore.errors import TierError
from streamcore.retention import file_time_ms
from streamcore.tier import backup, documents, parquet, tables
from streamcore.tier.documents import Content, Document
from streamcore.tier.kept import Copy
from streamcore.tier.log import TierLog
from streamcore.tier.manifest import MANIFEST, Entry, Manifest, Snapshot, check_epoch
from streamcore.tier.producers import Snapshots

if TYPE_CHECKING:
    from streamcore.segments import Segment
    from streamcore.tier.tier import Tier
    from streamcore.topic import Topic

Stop = Callable[[], bool]
_LEFT_BEHIND_S = 3600.0
_PIECE_BYTES = 4 << 20
_log = logging.getLogger("streamcore.tier")


class Offloaded(NamedTuple):
    """A segment that the tier has now: its offsets, records and bytes; the bytes of the object, and its address."""

    partition: int
    base_offset: int
    end_offset: int
    rows: int
    segment_bytes: int
    object_bytes: int
    path: str


class _Overtaken(Exception):
    """Somebody else has put these records into the tier."""


def offload(topic: Topic, tier: Tier, log: TierLog, stop: Stop | None = None) -> list[Offloaded]:
    """Puts the sealed segments of a topic into the tier that it does not have yet. Raises TierError, FencedError."""
    done: list[Offloaded] = []
    for partition in range(topic.partition_count):
        if stop is not None and stop():
            break
        if pending(topic, log, partition):
            tier.claim()
            if publish_topic(topic, tier, log):
                backup.back_up(topic.store, tier)  # so that the copy of the catalog knows each topic that has objects
            done += _offload_partition(topic, tier, log, partition, stop)
    tables.follow(topic, tier, log)
    return done


def pending(topic: Topic, log: TierLog, partition: int) -> list[Segment]:
    """The segments that can go and did not, as far as this machine knows."""
    known = log.copy(partition)
    end = 0 if known is None else known.manifest.end_offset
    stable = topic.bounds([partition])[partition][1]
    return [
        segment
        for segment in topic.segments(partition)
        if segment.sealed and end < segment.end_offset <= stable and segment.base_offset < segment.end_offset
    ]


def _offload_partition(topic: Topic, tier: Tier, log: TierLog, partition: int, stop: Stop | None) -> list[Offloaded]:
    done = []
    snapshots = Snapshots(topic, tier, log, partition)
    known = log.fresh(partition)
    if known is not None:
        check_epoch(known.manifest.epoch, tier.epoch, log.manifest_url(partition))
    for segment in pending(topic, log, partition):
        if stop is not None and stop():
            break
        if known is not None and segment.end_offset <= known.manifest.end_offset:
            continue
        start = _start_of(topic, segment, known)
        with temporary(tier.uploads, topic, segment) as file:
            entry = write_object(topic, segment, start, segment.end_offset, file)
            if entry.name:
                put(tier, log, partition, entry, file)
        producers = snapshots.put(entry.end_offset, None if known is None else known.manifest)
        try:
            known, replaced = _note(topic, tier, log, partition, entry, producers, known)
        except _Overtaken:
            known = log.fresh(partition)
            continue
        snapshots.forget(replaced)
        path = tier.objects.url_of(log.path_of(partition, entry.name)) if entry.name else ""
        done.append(Offloaded(partition, start, entry.end_offset, entry.rows, segment.size_bytes, entry.size, path))
        _log.info("%s/%d: offsets %d to %d are in the tier: %d records, %d of %d bytes", topic.name, partition,
                  start, entry.end_offset, entry.rows, entry.size, segment.size_bytes)  # fmt: skip
    return done


def _start_of(topic: Topic, segment: Segment, known: Copy | None) -> int:
    """The first offset that goes. Raises TierError where the tier has none between its end and the segment."""
    start = max(segment.base_offset, topic.local_start(segment.partition))
    if known is None:
        return start
    end = known.manifest.end_offset
    if start > end:
        raise TierError(
            f"offsets {end} to {start} of {topic.name}/{segment.partition} are neither here nor in the tier: "
            f"delete_records({start}) gives up what the tier has before them",
            known.manifest.topic_id,
        )
    return end


# ---- objects ---------------------------------------------------------------------------------------------------------


def write_object(topic: Topic, segment: Segment, start: int, end: int, file: Path) -> Entry:
    """Writes what goes of a segment as Parquet, and says what it is; without a name when nothing goes."""
    version = topic.versions[max(topic.versions)]
    schema = parquet.file_schema(topic.versions, version.number)
    scan = topic.scan(segment.partition, start, end, columns=schema.names)
    about = {
        "topic": topic.id,
        "partition": str(segment.partition),
        "base_offset": str(start),
        "end_offset": str(end),
        "schema_version": str(version.number),
    }

    def write(microseconds: bool) -> parquet.Written | None:
        key_filter = topic.config.tier_key_filter
        return parquet.write_segment(scan.batches(), schema, file, about, key_filter=key_filter,
                                     microseconds=microseconds)  # fmt: skip

    try:
        written = write(topic.config.tier_iceberg)
    except pa.ArrowInvalid:  # a time is too far away for microseconds: most readers of tables take milliseconds as well
        written = write(False)
    segment_ms = file_time_ms(segment, time.time_ns() // 1_000_000)
    entry = Entry(start, end, "", 0, "", 0, 0, 0, version.number, 0, "", segment.size_bytes, segment_ms)
    if written is None:
        return entry
    digest = digest_of(file)
    return dataclasses.replace(
        entry,
        name=f"{start:020d}-{digest}-{secrets.token_hex(4)}.parquet",
        size=file.stat().st_size,
        digest=digest,
        rows=written.rows,
        min_timestamp_ms=written.min_timestamp_ms,
        max_timestamp_ms=written.max_timestamp_ms,
        footer_bytes=len(written.footer),
        footer_digest=xxhash.xxh3_128_hexdigest(written.footer),
    )


def digest_of(file: Path) -> str:
    """The XXH3-128 digest of a file, as hex."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as source:
        while piece := source.read(_PIECE_BYTES):
            digest.update(piece)
    return str(digest.hexdigest())


def put(tier: Tier, log: TierLog, partition: int, entry: Entry, file: Path) -> None:
    path = log.path_of(partition, entry.name)
    tier.objects.put_file(path, file)
    found = tier.objects.head(path)
    if found.size != entry.size:
        raise TierError(f"the object has {found.size} bytes, of {entry.size} that were put", tier.objects.url_of(path))


@contextlib.contextmanager
def temporary(folder: Path, topic: Topic, segment: Segment) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():  # by a process that died
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LEFT_BEHIND_S:
                left.unlink()
    path = folder / f"{topic.id}-{segment.partition}-{segment.base_offset}-{secrets.token_hex(8)}.parquet"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


# ---- documents -------------------------------------------------------------------------------------------------------


def _note(
    topic: Topic, tier: Tier, log: TierLog, partition: int, entry: Entry, producers: Snapshot, known: Copy | None
) -> tuple[Copy, Snapshot | None]:
    """Adds an object to the manifest, if that ends where the object begins; and what was known of producers before."""
    replaced: Snapshot | None = None

    def added(manifest: Manifest | None) -> Manifest:
        nonlocal replaced
        found = manifest or Manifest(topic.id, partition, tier.epoch, 0, entry.base_offset, ())
        if found.end_offset != entry.base_offset:
            raise _Overtaken
        replaced = found.producers
        return found.with_entry(entry, producers)

    return change_manifest(tier, log, partition, added, known), replaced


def change_manifest(
    tier: Tier, log: TierLog, partition: int, change: Callable[[Manifest | None], Manifest | None], known: Copy | None
) -> Copy:
    """Replaces a manifest by what `change` makes of it (None: no change), in this store's epoch.

    Keeps a copy of it, durably: what is here may go only behind that. Raises FencedError, TierError.
    """
    url = log.manifest_url(partition)

    def changed(content: Content | None) -> Content | None:
        found = None if content is None else Manifest.of(content, url)
        if found is not None:
            check_epoch(found.epoch, tier.epoch, url)
        made = change(found)
        return None if made is None else dataclasses.replace(made, epoch=tier.epoch).as_content()

    path = log.path_of(partition, MANIFEST)
    document = documents.change(tier.objects, path, changed, None if known is None else known.document)
    assert document is not None
    return log.note(partition, document, durable=True)


def publish_topic(topic: Topic, tier: Tier, log: TierLog) -> bool:
    """Tells the tier what the topic is, so that its objects can be read without the catalog; False: it knows."""
    row = topic.row
    if log.published == row.generation:
        return False
    about = {
        "topic_id": row.id,
        "name": row.name,
        "folder": row.folder,
        "partitions": row.partitions,
        "config": row.config,
        "generation": row.generation,
        "schemas": {str(number): base64.b64encode(message or b"").decode() for number, message in row.schemas.items()},
        "deleted": False,
    }

    def told(content: Content | None) -> Content | None:
        return None if content is not None and content.get("generation", 0) >= row.generation else about

    found: Document | None = documents.change(tier.objects, f"{log.folder}/topic.json", told)
    assert found is not None
    log.published = row.generation
    return True
