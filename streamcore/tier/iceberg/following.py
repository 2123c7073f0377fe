"""The version of a table that follows the manifests: which objects came and went, and what is forgotten."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pyiceberg.manifest import (
    DataFile,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    write_manifest,
    write_manifest_list,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table.metadata import TableMetadataV2
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER

from streamcore import schema as schemas
from streamcore.errors import CorruptionError, TierError
from streamcore.tier import parquet
from streamcore.tier.iceberg.data_file import columns_of, data_file
from streamcore.tier.iceberg.files import Output, Size
from streamcore.tier.iceberg.table import AT_ONCE, UNREADABLE, VERSIONS_MAX, Current, Held, Table
from streamcore.tier.iceberg.types import table_schema
from streamcore.tier.manifest import Entry, Manifest, check_epoch
from streamcore.tier.objects import ConflictError, ObjectMissingError

SNAPSHOTS_MAX = 100  # older ones are forgotten
_FULL_FILES = 1000  # a manifest of so many is not merged with others any more
_SMALL_MAX = 16  # manifests that are not full, before they are merged
_ATTEMPTS = 100
_EPOCH = "streamcore.epoch"
_log = logging.getLogger("streamcore.tier")


@dataclasses.dataclass(frozen=True)
class Source:
    """What a table follows: a topic, by its id, in the epoch of its store.

    versions: of its schema. manifests(every): as the tier has them now, of all partitions or of those that changed, by
    their numbers. footer(entry, path): of an object.
    """

    topic_id: str
    epoch: int
    versions: Mapping[int, schemas.SchemaVersion]
    manifests: Callable[[bool], Mapping[int, Manifest]]
    footer: Callable[[Entry, str], parquet.Footer]


class Followed(NamedTuple):
    """What a table is now: its version, and what it follows; objects that came and that went."""

    version: int
    manifests: Mapping[int, Manifest]
    added: int
    removed: int


def follow(table: Table, source: Source) -> Followed:
    """Has a table name just what the manifests do, with the schemas of the topic.

    Raises TierError, FencedError, and ValueError for a type that Iceberg does not have.
    """
    for _ in range(_ATTEMPTS):
        base = table.current()
        if base is not None and base.metadata is not None:
            check_epoch(int(base.metadata.properties.get(_EPOCH, 0)), source.epoch, table.location)
        with contextlib.suppress(ConflictError):
            return _Next(table, base, source).made()
    raise ConflictError("the Iceberg table is changed by others all the time", table.location)


class _Next:
    """The version of a table that follows another one."""

    def __init__(self, table: Table, base: Current | None, source: Source) -> None:
        self._table = table
        self._source = source
        self._held: list[Held] = []
        if base is not None and base.metadata is not None:
            try:
                self._held = table.held(base)
            except UNREADABLE as error:
                base = _unreadable(table, base, str(error))
        self._base = base
        self._before = None if base is None else base.metadata
        number = max(source.versions)
        self._schema = table_schema(parquet.file_schema(source.versions, number), number)
        self._snapshot_id = secrets.randbelow((1 << 63) - 1) + 1
        self._uuid = uuid.uuid4()
        self._written = 0

    def made(self) -> Followed:
        """Reads the manifests, and makes the version, if it is another one. Raises ConflictError."""
        manifests = self._source.manifests(self._before is None)
        for partition, manifest in manifests.items():
            check_epoch(manifest.epoch, self._source.epoch, f"{self._table.location}, partition {partition}")
        wanted = {
            self._table.location_of(partition, entry.name): (partition, entry)
            for partition, manifest in manifests.items()
            for entry in manifest.entries
            if entry.name
        }
        held = {location: size for one in self._held for location, size in one.files.items()}
        if any(held.get(place, size) != size for place, size in _sizes_of(wanted)):
            return self._anew("it has other numbers of rows than its objects")
        if self._base is None and not wanted:
            return Followed(0, manifests, 0, 0)  # there is nothing of the topic, or nothing any more
        added = {place: wanted[place] for place in wanted if place not in held}
        removed = {place for place in held.keys() - wanted.keys() if self._table.partition_of(place) in manifests}
        if not added and not removed and self._before is not None and self._is_told(self._before):
            assert self._base is not None
            self._table.point_to(self._base.number, self._base)
            return Followed(self._base.number, manifests, 0, 0)
        snapshot = self._snapshot(added, removed, manifests) if added or removed else None
        metadata = self._metadata(snapshot, bool(removed))
        current = self._table.commit(self._base, metadata)
        try:
            self._table.tidy(self._base, current)
        except (TierError, CorruptionError) as error:
            _log.warning("old metadata of the Iceberg table stays until gc: %s", error)
        return Followed(current.number, manifests, len(added), len(removed))

    def _anew(self, why: str) -> Followed:
        assert self._base is not None
        return _Next(self._table, _unreadable(self._table, self._base, why), self._source).made()

    def _is_told(self, before: TableMetadataV2) -> bool:
        """Whether the table is of this schema and epoch."""
        is_of_epoch = before.properties.get(_EPOCH) == str(self._source.epoch)
        return before.current_schema_id == self._schema.schema_id and is_of_epoch

    # ---- files ----

    def _snapshot(
        self, added: Mapping[str, tuple[int, Entry]], removed: set[str], manifests: Mapping[int, Manifest]
    ) -> Snapshot:
        """Writes the manifests that are new, and the list of all of them."""
        files = self._data_files(added)
        kept: list[Held] = []
        merged: list[Held] = []
        rewritten: list[Held] = []
        for one in self._held:
            if not removed.isdisjoint(one.files):
                rewritten.append(one)
            elif one.files:
                (kept if len(one.files) >= _FULL_FILES else merged).append(one)
        if len(merged) < _SMALL_MAX:
            kept, merged = kept + merged, []
        new = [self._manifest(self._table.entries(one.manifest), removed) for one in rewritten]
        together = [entry for one in merged for entry in self._table.entries(one.manifest)]
        together += [self._entry(file) for file in files]
        new += [self._manifest(together[at : at + _FULL_FILES], removed) for at in range(0, len(together), _FULL_FILES)]
        before = None if self._before is None else self._before.current_snapshot()
        parent = None if before is None else before.snapshot_id
        sequence = 1 if self._before is None else self._before.last_sequence_number + 1
        output = Output(self._table.location_of_file(f"snap-{self._snapshot_id}-1-{self._uuid}.avro"))
        with write_manifest_list(2, output, self._snapshot_id, parent, sequence, "deflate") as writer:
            writer.add_manifests([*reversed(new), *(one.manifest for one in kept)])
        self._table.write(output)
        return Snapshot.model_validate(
            {
                "snapshot-id": self._snapshot_id,
                "parent-snapshot-id": parent,
                "sequence-number": sequence,
                "timestamp-ms": self._now_ms(),
                "manifest-list": output.location,
                "summary": self._summary(files, removed, manifests),
                "schema-id": self._schema.schema_id,
            }
        )

    def _data_files(self, added: Mapping[str, tuple[int, Entry]]) -> list[DataFile]:
        columns = columns_of(self._schema)

        def made(place: str) -> DataFile:
            partition, entry = added[place]
            footer = None
            try:
                footer = self._source.footer(entry, self._table.path_of(place))
            except (ObjectMissingError, CorruptionError) as error:  # which its readers are to find
                _log.warning("an object of the Iceberg table has no statistics: %s", error)
            return data_file(place, partition, entry, footer, columns)

        with ThreadPoolExecutor(AT_ONCE, "streamcore-iceberg") as pool:
            return list(pool.map(made, added))

    def _entry(self, file: DataFile) -> ManifestEntry:
        return ManifestEntry.from_args(
            status=ManifestEntryStatus.ADDED, snapshot_id=self._snapshot_id, sequence_number=None,
            file_sequence_number=None, data_file=file,
        )  # fmt: skip

    def _manifest(self, entries: Sequence[ManifestEntry], removed: set[str]) -> ManifestFile:
        """Writes a manifest: what is new in it, what was there, and what is deleted by this snapshot."""
        output = Output(self._table.location_of_file(f"{self._uuid}-m{self._written}.avro"))
        self._written += 1
        spec = UNPARTITIONED_PARTITION_SPEC
        with write_manifest(2, spec, self._schema, output, self._snapshot_id, "deflate") as writer:
            for entry in entries:
                if entry.sequence_number is None:
                    writer.add(entry)
                elif entry.data_file.file_path in removed:
                    writer.delete(entry)
                else:
                    writer.existing(entry)
        files = [entry.data_file for entry in entries if entry.data_file.file_path not in removed]
        self._table.write(output, {file.file_path: _size_of(file) for file in files})
        return writer.to_manifest_file()

    # ---- what it says ----

    def _summary(self, files: list[DataFile], removed: set[str], manifests: Mapping[int, Manifest]) -> dict[str, str]:
        operation = Operation.APPEND if not removed else Operation.OVERWRITE if files else Operation.DELETE
        sizes = {location: size for one in self._held for location, size in one.files.items()}
        came = [_size_of(file) for file in files]
        went = [sizes[location] for location in removed]
        there = list(sizes.values())
        counts = {
            "added-data-files": len(came),
            "added-records": _rows_of(came),
            "added-files-size": _bytes_of(came),
            "deleted-data-files": len(went),
            "deleted-records": _rows_of(went),
            "removed-files-size": _bytes_of(went),
        }
        counts = {name: count for name, count in counts.items() if count} | {
            "total-data-files": len(there) + len(came) - len(went),
            "total-records": _rows_of(there) + _rows_of(came) - _rows_of(went),
            "total-files-size": _bytes_of(there) + _bytes_of(came) - _bytes_of(went),
            **dict.fromkeys(("total-delete-files", "total-position-deletes", "total-equality-deletes"), 0),
        }
        changed = {self._table.partition_of(location) for location in (*(file.file_path for file in files), *removed)}
        offsets = {number: [manifests[number].start_offset, manifests[number].end_offset] for number in sorted(changed)}
        told = {name: str(count) for name, count in counts.items()}
        return {"operation": operation.value, "streamcore.offsets": json.dumps(offsets), **told}

    def _now_ms(self) -> int:
        now = time.time_ns() // 1_000_000
        return now if self._before is None else max(now, self._before.last_updated_ms)

    def _metadata(self, snapshot: Snapshot | None, only_this: bool) -> TableMetadataV2:
        """only_this: files went, without which no older snapshot can be read."""
        before = self._before
        known = {} if before is None else {schema.schema_id: schema for schema in before.schemas}
        for number in self._source.versions:
            if number not in known:
                known[number] = table_schema(parquet.file_schema(self._source.versions, number), number)
        snapshots = [] if before is None or only_this else list(before.snapshots)
        log = [] if before is None else [(one.snapshot_id, one.timestamp_ms) for one in before.snapshot_log]
        current = None if before is None else before.current_snapshot_id
        if snapshot is not None:
            snapshots.append(snapshot)
            log.append((snapshot.snapshot_id, snapshot.timestamp_ms))
            current = snapshot.snapshot_id
        snapshots = snapshots[-SNAPSHOTS_MAX:]
        kept = {one.snapshot_id for one in snapshots}
        return TableMetadataV2.model_validate(
            {
                "format-version": 2,
                "table-uuid": uuid.uuid4() if before is None else before.table_uuid,
                "location": self._table.location,
                "last-sequence-number": (0 if before is None else before.last_sequence_number) + (snapshot is not None),
                "last-updated-ms": self._now_ms(),
                "last-column-id": max(schema.highest_field_id for schema in known.values()),
                "schemas": [known[number] for number in sorted(known)],
                "current-schema-id": self._schema.schema_id,
                "partition-specs": [UNPARTITIONED_PARTITION_SPEC],
                "default-spec-id": UNPARTITIONED_PARTITION_SPEC.spec_id,
                "last-partition-id": 999,
                "sort-orders": [UNSORTED_SORT_ORDER],
                "default-sort-order-id": UNSORTED_SORT_ORDER.order_id,
                "properties": self._properties(),
                "current-snapshot-id": current,
                "refs": {} if current is None else {"main": {"snapshot-id": current, "type": "branch"}},
                "snapshots": snapshots,
                "snapshot-log": [{"snapshot-id": of, "timestamp-ms": when} for of, when in log if of in kept],
                "metadata-log": self._log_of_versions(),
            }
        )

    def _log_of_versions(self) -> list[dict[str, Any]]:
        if self._base is None or self._before is None:
            return []
        place = self._table.location_of_file(f"v{self._base.number}.metadata.json")
        log = [(one.metadata_file, one.timestamp_ms) for one in self._before.metadata_log]
        log = [*log, (place, self._before.last_updated_ms)][1 - VERSIONS_MAX :]
        return [{"metadata-file": file, "timestamp-ms": when} for file, when in log]

    def _properties(self) -> dict[str, str]:
        return {
            "schema.name-mapping.default": self._schema.name_mapping.model_dump_json(),  # for files without numbers
            "write.metadata.previous-versions-max": str(VERSIONS_MAX),
            "gc.enabled": "false",  # the objects are streamcore's: nobody else is to delete them
            "streamcore.topic": self._source.topic_id,
            _EPOCH: str(self._source.epoch),
        }


def _unreadable(table: Table, base: Current, why: str) -> Current:
    """A version with which nothing can be done but to make another one."""
    _log.warning("the Iceberg table at %s is made anew: %s", table.location, why)
    return base._replace(metadata=None)


def _sizes_of(wanted: Mapping[str, tuple[int, Entry]]) -> Iterable[tuple[str, Size]]:
    return ((place, Size(entry.rows, entry.size)) for place, (_, entry) in wanted.items())


def _size_of(file: DataFile) -> Size:
    return Size(file.record_count, file.file_size_in_bytes)


def _rows_of(sizes: Iterable[Size]) -> int:
    return sum(size.rows for size in sizes)


def _bytes_of(sizes: Iterable[Size]) -> int:
    return sum(size.size_bytes for size in sizes)
