"""A table as it is in the tier: its newest version, and how another one takes its place."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.exceptions import ValidationError
from pyiceberg.manifest import ManifestEntry, ManifestFile, read_manifest_list
from pyiceberg.table import StaticTable
from pyiceberg.table.metadata import TableMetadataUtil, TableMetadataV2
from pyiceberg.table.snapshots import Snapshot

from streamcore.errors import CorruptionError, StreamcoreError, TierError
from streamcore.tier.iceberg.files import Output, Size, TierIO
from streamcore.tier.objects import ConflictError, ObjectMissingError
from streamcore.tier.tables import FOLDER, HINT, METADATA_FOLDER

VERSIONS_MAX = 20  # whose metadata files are kept
AT_ONCE = 8  # requests
_ATTEMPTS = 100
UNREADABLE = (ObjectMissingError, CorruptionError)  # what a table is that has to be made anew
_VERSION = re.compile(r"v(\d{1,18})\.metadata\.json")
_log = logging.getLogger("streamcore.tier")


@contextlib.contextmanager
def _decoding(location: str) -> Iterator[None]:
    """Damaged Avro makes pyiceberg raise anything."""
    try:
        yield
    except StreamcoreError:
        raise
    except Exception as error:
        raise CorruptionError(f"it cannot be read: {type(error).__name__}: {error}", location) from None


class Current(NamedTuple):
    """The newest version of a table: its number, the hint's text and tag (None: there is none), and what it says; None:
    that cannot be read, and it has to be made anew."""

    number: int
    hint: tuple[str, str] | None
    metadata: TableMetadataV2 | None

    @property
    def snapshot(self) -> Snapshot | None:
        return None if self.metadata is None else self.metadata.current_snapshot()


class Held(NamedTuple):
    """A manifest with its data files that are not deleted, by their addresses."""

    manifest: ManifestFile
    files: Mapping[str, Size]


class Table:
    """The Iceberg table of a topic, whose folder in the tier is `topics/<name>-<id>`."""

    def __init__(self, files: TierIO, folder: str) -> None:
        self._files = files
        self._objects = files.objects
        self._topic = folder
        self._place = re.compile(re.escape(files.location_of(folder)) + r"/(\d{10})/[^/]+\.parquet")
        self.folder = f"{folder}/{METADATA_FOLDER}"
        self.location = files.location_of(f"{folder}/{FOLDER}")

    def location_of(self, partition: int, name: str) -> str:
        """The address of an object of a partition."""
        return self._files.location_of(f"{self._topic}/{partition:010d}/{name}")

    def location_of_file(self, name: str) -> str:
        """The address of a file of the metadata."""
        return self._files.location_of(f"{self.folder}/{name}")

    def path_of(self, location: str) -> str:
        """The path of an object in the tier."""
        return self._files.path_of(location)

    def partition_of(self, location: str) -> int:
        """The partition of an object. Raises CorruptionError for what is none of the topic's."""
        found = self._place.fullmatch(location)
        if found is None:
            raise CorruptionError(f"the Iceberg table names {location!r}", self.location)
        return int(found[1])

    def write(self, output: Output, lists: Mapping[str, Size] | None = None) -> None:
        """Puts a file of the metadata that is never changed. lists: the data files of a manifest."""
        self._files.write(self._files.path_of(output.location), output.data)
        if lists is not None:
            self._files.note_listed(output.location, lists)

    def path_of_version(self, number: int) -> str:
        """Where a version of the table is."""
        return f"{self.folder}/v{number}.metadata.json"

    def current(self) -> Current | None:
        """The table as it is now; None: there is none. Raises TierError."""
        hint = self._hint()
        number = int(hint[0]) if hint is not None and re.fullmatch(r"\d{1,18}", hint[0]) else 0
        data = self._version(number) if number else None
        while data is not None and (newer := self._version(number + 1)) is not None:  # somebody died before the hint
            number, data = number + 1, newer
        if data is None:
            number = max([number, *self._numbers()])
            data = self._version(number) if number else None
        if number == 0:
            return None
        return Current(number, hint, None if data is None else self._parsed(data, number))

    def _hint(self) -> tuple[str, str] | None:
        try:
            data, tag = self._objects.get(f"{self.folder}/{HINT}")
        except ObjectMissingError:
            return None
        return data.decode("ascii", "replace").strip(), tag

    def _version(self, number: int) -> bytes | None:
        try:
            return self._objects.get(self.path_of_version(number))[0]
        except ObjectMissingError:
            return None

    def _numbers(self) -> list[int]:
        names = (info.path.rpartition("/")[2] for info in self._objects.listed(self.folder))
        return [int(found[1]) for name in names if (found := _VERSION.fullmatch(name))]

    def _parsed(self, data: bytes, number: int) -> TableMetadataV2 | None:
        try:
            found = TableMetadataUtil.parse_raw(data.decode())
        except (ValueError, ValidationError) as error:
            _log.warning("%s is not what was put there: %s", self._objects.url_of(self.path_of_version(number)), error)
            return None
        if isinstance(found, TableMetadataV2) and found.location == self.location:
            return found
        return None  # the tier was copied to another address

    def manifests(self, snapshot: Snapshot) -> list[ManifestFile]:
        """The manifests of a snapshot. Raises one of UNREADABLE, TierError."""
        with _decoding(snapshot.manifest_list):
            return list(read_manifest_list(self._files.new_input(snapshot.manifest_list)))

    def entries(self, manifest: ManifestFile) -> list[ManifestEntry]:
        """The data files of a manifest that are not deleted. Raises one of UNREADABLE, TierError."""
        with _decoding(manifest.manifest_path):
            return manifest.fetch_manifest_entry(self._files, discard_deleted=True)

    def held(self, current: Current) -> list[Held]:
        """The manifests of the current snapshot, each with its data files. Raises one of UNREADABLE, TierError."""
        if current.snapshot is None:
            return []
        with ThreadPoolExecutor(AT_ONCE, "streamcore-iceberg") as pool:
            return list(pool.map(self._held, self.manifests(current.snapshot)))

    def _held(self, manifest: ManifestFile) -> Held:
        found = self._files.listed(manifest.manifest_path)
        if found is None:
            files = [entry.data_file for entry in self.entries(manifest)]
            found = {file.file_path: Size(file.record_count, file.file_size_in_bytes) for file in files}
            for location in found:
                self.partition_of(location)
            self._files.note_listed(manifest.manifest_path, found)
        return Held(manifest, found)

    def objects_of(self, current: Current) -> dict[str, int]:
        """The paths of the objects that are in the table, and their rows. Raises one of UNREADABLE."""
        if current.metadata is None:
            raise CorruptionError(
                "it is not what was put there", self._objects.url_of(self.path_of_version(current.number))
            )
        return {
            self._files.path_of(location): size.rows
            for held in self.held(current)
            for location, size in held.files.items()
        }

    def reachable(self, current: Current) -> set[str]:
        """The paths of all files of the metadata that somebody needs who has this version, or the one before it."""
        found = {f"{self.folder}/{HINT}"}
        found |= {self.path_of_version(current.number - back) for back in range(-1, VERSIONS_MAX)}
        if current.metadata is None:
            return found
        with ThreadPoolExecutor(AT_ONCE, "streamcore-iceberg") as pool:
            for snapshot, manifests in zip(
                current.metadata.snapshots, pool.map(self.manifests, current.metadata.snapshots), strict=True
            ):
                found.add(self._files.path_of(snapshot.manifest_list))
                found |= {self._files.path_of(manifest.manifest_path) for manifest in manifests}
        return found

    def opened(self) -> StaticTable:
        """The table as it is now, for pyiceberg. Raises TierError where there is none."""
        current = self.current()
        if current is None or current.metadata is None:
            raise TierError("there is no Iceberg table here", self.location)
        where = self._files.location_of(self.path_of_version(current.number))
        return StaticTable(("streamcore", self._topic.rpartition("/")[2].rpartition("-")[0]),
                           current.metadata, where, self._files, NoopCatalog("streamcore"))  # fmt: skip

    # ---- changing it ----

    def commit(self, base: Current | None, made: TableMetadataV2) -> Current:
        """Makes a version the newest one. Raises ConflictError where somebody else has changed the table since."""
        number = 1 if base is None else base.number + 1
        data = made.model_dump_json().encode()
        path = self.path_of_version(number)
        try:
            self._objects.create(path, data)
        except ConflictError:
            if self._version(number) != data:  # or it is ours, and the answer was lost
                raise
        try:
            hint = self.point_to(number, base)
        except ConflictError:
            self._objects.delete(path)
            raise
        return Current(number, hint, made)

    def point_to(self, number: int, base: Current | None) -> tuple[str, str]:
        """Has the hint say a version, unless it says a newer one by now.

        Raises ConflictError for one that slept: others have made so many versions that this number was theirs, and
        deleted; or the table was dropped.
        """
        path, data = f"{self.folder}/{HINT}", str(number).encode()
        known = None if base is None else base.hint
        for _ in range(_ATTEMPTS):
            said = int(known[0]) if known is not None and known[0].isdecimal() else 0
            if said >= number + VERSIONS_MAX:
                raise ConflictError(
                    f"version {number} is of long ago, {said} is the newest", self._objects.url_of(path)
                )
            if known is not None and said >= number:
                return known
            try:
                tag = self._objects.create(path, data) if known is None else self._objects.replace(path, data, known[1])
                return data.decode(), tag
            except ConflictError:
                before, known = known, self._hint()
                if known is None and before is not None:
                    raise ConflictError("the table was dropped", self.location) from None
        raise TierError("the hint is changed by others all the time", self._objects.url_of(path))

    def tidy(self, base: Current | None, made: Current) -> None:
        """Deletes the files of the metadata that only versions before this one need. What is left goes with `gc`."""
        if base is None or base.metadata is None or made.metadata is None:
            return
        kept = {snapshot.snapshot_id for snapshot in made.metadata.snapshots}
        gone = [snapshot for snapshot in base.metadata.snapshots if snapshot.snapshot_id not in kept]
        paths = {self._files.path_of(snapshot.manifest_list) for snapshot in gone}
        if gone:
            # Snapshots follow each other, and no manifest comes back that one of them had left out: what the oldest of
            # those that stay does not have, none of them has.
            held = {one.manifest_path for one in self.manifests(made.metadata.snapshots[0])} if kept else set()
            with ThreadPoolExecutor(AT_ONCE, "streamcore-iceberg") as pool:
                found = {one.manifest_path for some in pool.map(self.manifests, gone) for one in some}
            paths |= {self._files.path_of(location) for location in found - held}
        still = {entry.metadata_file for entry in made.metadata.metadata_log}
        old = [entry.metadata_file for entry in base.metadata.metadata_log if entry.metadata_file not in still]
        for path in (*sorted(paths), *map(self._files.path_of, old)):
            self._objects.delete(path)
