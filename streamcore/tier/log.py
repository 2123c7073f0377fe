"""A topic's records in the tier, read in order as a scan wants them."""

from __future__ import annotations

import bisect
import collections
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamcore import schema as schemas
from streamcore.errors import CorruptionError, OffsetOutOfRangeError, TierError
from streamcore.segments import Segment
from streamcore.tier import documents, kept
from streamcore.tier.groups import Piece, RowGroups, ahead, wait_for
from streamcore.tier.manifest import MANIFEST, Entry, Manifest
from streamcore.tier.objects import ObjectMissingError, Objects
from streamcore.tier.parquet import Footer, RowGroup, restored, times_ms

if TYPE_CHECKING:
    from streamcore.catalog import Catalog
    from streamcore.scan import Leg, Projection
    from streamcore.tier.tier import Tier

_FOOTERS_AHEAD = 2
_LOOK_S = 0.2  # how old what we know of a manifest may be before the catalog is asked whether there is a newer one
_log = logging.getLogger("streamcore.tier")


class TierLog:
    """What the tier holds of one topic. Any thread may use it."""

    def __init__(self, tier: Tier, catalog: Catalog, topic_id: str, folder: str, name: str) -> None:
        self.folder = f"topics/{folder}"
        self.topic_id = topic_id
        self._name = name
        self._tier = tier
        self._catalog = catalog
        self._lock = threading.Lock()
        self._known: dict[int, kept.Copy] = {}
        self._looked: dict[int, float] = {}
        self.published = 0  # the generation of the topic's settings that the tier was told of

    @property
    def _objects(self) -> Objects:
        """Connected when they are needed: what is here is read wherever the tier is."""
        return self._tier.objects

    @property
    def _groups(self) -> RowGroups:
        return self._tier.groups

    # ---- manifests ----

    def path_of(self, partition: int, name: str) -> str:
        """The path of an object."""
        return f"{self.folder}/{partition:010d}/{name}"

    def manifest_url(self, partition: int) -> str:
        """The address of a manifest."""
        return f"{self._tier.url}/{self.path_of(partition, MANIFEST)}"

    def copy(self, partition: int) -> kept.Copy | None:
        """The manifest as far as this machine knows it: a fifth of a second behind other processes, at most."""
        with self._lock:
            known = self._known.get(partition)
            if time.monotonic() - self._looked.get(partition, -_LOOK_S) < _LOOK_S:
                return known
        if known is None or kept.version(self._catalog, self.topic_id, partition) > known.manifest.version:
            known = self._take(partition, kept.copy(self._catalog, self.topic_id, partition))
        with self._lock:
            self._looked[partition] = time.monotonic()
        return known

    def fresh(self, partition: int) -> kept.Copy | None:
        """The manifest as the tier has it now; None: there is none. One that somebody deleted is put back.

        Raises TierError, CorruptionError, FencedError.
        """
        found = documents.load(self._objects, self.path_of(partition, MANIFEST))
        if found is None:
            known = self._known.get(partition) or kept.copy(self._catalog, self.topic_id, partition)
            return None if known is None else self._put_back(partition, known)
        return self.note(partition, found, durable=False)

    def _put_back(self, partition: int, known: kept.Copy) -> kept.Copy | None:
        """From the copy in the catalog: what is here goes only behind that, so it misses nothing that is not here."""
        path = self.path_of(partition, MANIFEST)
        topic = documents.load(self._objects, f"{self.folder}/topic.json")
        if topic is None or topic.content.get("deleted"):
            return None
        if not self._catalog.writable:
            raise TierError("the manifest is gone", self._objects.url_of(path))
        self._tier.claim(again=True)
        document = documents.change(
            self._objects, path, lambda content: dict(known.document.content) if content is None else None
        )
        assert document is not None
        _log.warning("%s/%d: the manifest was gone, and was put back from its copy", self._name, partition)
        return self.note(partition, document, durable=True)

    def note(self, partition: int, document: documents.Document, *, durable: bool) -> kept.Copy:
        """Takes what the tier has, and keeps a copy in the catalog where that can be written."""
        url = self.manifest_url(partition)
        manifest = Manifest.of(document.content, url)
        if (manifest.topic_id, manifest.partition) != (self.topic_id, partition):
            raise CorruptionError(f"the manifest is of partition {manifest.partition} of {manifest.topic_id}", url)
        known = self._known.get(partition)
        made = kept.Copy(document, manifest, 0 if known is None else known.verified_offset)
        if self._catalog.writable:
            kept.keep_copy(self._catalog, made, durable=durable)
        return self._take(partition, made) or made

    def note_verified(self, partition: int, offset: int) -> None:
        """The objects below an offset are what was put there."""
        known = self._known[partition]
        made = known._replace(verified_offset=max(offset, known.verified_offset))
        kept.keep_copy(self._catalog, made, durable=True)
        with self._lock:
            self._known[partition] = made

    def _take(self, partition: int, found: kept.Copy | None) -> kept.Copy | None:
        with self._lock:
            known = self._known.get(partition)
            if found is not None and (known is None or found.manifest.version >= known.manifest.version):
                self._known[partition] = found
            return self._known.get(partition)

    def start(self, partition: int, local_start: int) -> int:
        """Where the log begins, of which this machine has what is from `local_start` on."""
        known = self.copy(partition)
        if (known is None or known.manifest.end_offset < local_start) and local_start > 0:
            with self._lock:  # others may have deleted just now what they had kept in the tier before
                self._looked.pop(partition, None)
            known = self.copy(partition)
            if known is None or known.manifest.end_offset < local_start:
                known = self._asked(partition)
        if known is None or known.manifest.end_offset < local_start:
            return local_start
        return known.manifest.start_offset

    def _asked(self, partition: int) -> kept.Copy | None:
        try:
            return self.fresh(partition)
        except TierError as error:
            _log.warning("%s/%d: what the tier holds is not known: %s", self._name, partition, error)
            return None

    def extents(self, partition: int, local_start: int) -> list[Segment]:
        """The objects, as far as their records are not here, as segments."""
        if self.start(partition, local_start) >= local_start:
            return []
        known = self.copy(partition)
        assert known is not None
        return [
            Segment(
                partition,
                entry.base_offset,
                min(entry.end_offset, local_start),
                f"{self._tier.url}/{self.path_of(partition, entry.name)}",
                entry.size,
                True,
                entry.min_timestamp_ms,
                entry.max_timestamp_ms,
                entry.rows,
            )
            for entry in known.manifest.entries
            if entry.name and entry.base_offset < local_start
        ]

    # ---- reading ----

    def batches(self, wanted: Leg, projection: Projection) -> Iterator[pa.RecordBatch]:
        """The records, in order. Raises OffsetOutOfRangeError for what was deleted, TierError, CorruptionError."""
        position, missing = wanted.start, ""
        while position < wanted.end:
            try:
                for batch, behind in self._read(wanted.part(position, wanted.end), projection):
                    yield batch
                    position = behind
                position = wanted.end
            except ObjectMissingError as error:  # deleted by retention just now, or by somebody else
                if error.url == missing:
                    raise self._lost(wanted, error) from None
                missing = error.url
                self.fresh(wanted.partition)

    def _lost(self, wanted: Leg, error: ObjectMissingError) -> TierError:
        known = self.copy(wanted.partition)
        for entry in () if known is None else known.manifest.entries:
            if entry.name and error.url.endswith(f"/{entry.name}"):
                start, end = max(entry.base_offset, wanted.start), min(entry.end_offset, wanted.end)
                return TierError(f"offsets {start} to {end} are lost: {error.message}", error.url)
        return error

    def count(self, wanted: Leg) -> int:
        """How many records there are, without reading them where nothing but offsets bounds them."""
        total, position = 0, wanted.start
        while position < wanted.end:
            entry = self._entry_at(wanted.partition, position)
            if position <= entry.base_offset and entry.end_offset <= wanted.end:
                total += entry.rows
            else:
                total += self._count_in(entry, wanted)
            position = entry.end_offset
        return total

    def _count_in(self, entry: Entry, wanted: Leg) -> int:
        total = 0
        for piece, group in self._pieces(entry, wanted, ("offset",)):
            if wanted.start <= group.first_offset and group.last_offset < wanted.end:
                total += group.rows
            else:
                offsets = self._groups.begin(piece).result().column("offset").to_numpy()
                first, end = np.searchsorted(offsets, (wanted.start, wanted.end))
                total += int(end - first)
        return total

    def begin(self, wanted: Leg, projection: Projection) -> list[Future[pa.Table]]:
        """Has the row groups of what is wanted fetched into memory, and returns what comes of each."""
        begun = []
        for planned in self._all_pieces(wanted, projection):
            if isinstance(planned, Piece):
                begun.append(self._groups.begin(planned))
            else:
                wait_for(planned)
        return begun

    def prefetch(self, wanted: Leg, projection: Projection) -> int:
        """Fetches all row groups of what is wanted into the cache; how many."""
        return sum(1 for _ in ahead(self._all_pieces(wanted, projection), self._groups.begin))

    def _all_pieces(self, wanted: Leg, projection: Projection) -> Iterator[Piece | Future[Footer]]:
        """In their order. The footers of the next objects are fetched while one is read; that of the next one comes
        instead of a piece, again and again, until it is there."""
        entries = self._entries(wanted)
        coming: collections.deque[tuple[Entry | None, Future[Footer] | None]] = collections.deque()
        entry, footer = next(entries, None), None
        while entry is not None:
            while footer is not None and not footer.done():
                yield footer
            pieces = self._pieces(entry, wanted, _columns(projection, entry.schema_version, wanted))
            for number, (piece, _) in enumerate(pieces):
                yield piece
                while number == 0 and len(coming) < _FOOTERS_AHEAD and (behind := next(entries, None)) is not None:
                    coming.append((behind, self._begin_footer(behind, wanted)))
            entry, footer = coming.popleft() if coming else (next(entries, None), None)

    def _entries(self, wanted: Leg) -> Iterator[Entry]:
        position = wanted.start
        while position < wanted.end:
            entry = self._entry_at(wanted.partition, position)
            yield entry
            position = entry.end_offset

    def _begin_footer(self, entry: Entry, wanted: Leg) -> Future[Footer] | None:
        if not _may_have(entry, wanted):
            return None
        return self._groups.begin_footer(entry, self.path_of(wanted.partition, entry.name))

    def _entry_at(self, partition: int, position: int) -> Entry:
        known = self.copy(partition)
        if known is None or not known.manifest.start_offset <= position < known.manifest.end_offset:
            known = self.fresh(partition)
        manifest = None if known is None else known.manifest
        if manifest is None or not manifest.start_offset <= position < manifest.end_offset:
            first, end = (0, 0) if manifest is None else (manifest.start_offset, manifest.end_offset)
            said = f"offset {position} is not in the tier; partition {partition} has offsets {first} to {end} there"
            raise OffsetOutOfRangeError(said, first, end)
        number = bisect.bisect_right(manifest.entries, position, key=lambda entry: entry.base_offset) - 1
        return manifest.entries[number]

    def _pieces(self, entry: Entry, wanted: Leg, columns: tuple[str, ...]) -> list[tuple[Piece, RowGroup]]:
        if not _may_have(entry, wanted):
            return []
        path = self.path_of(wanted.partition, entry.name)
        groups = self._groups.footer(entry, path).groups_between(wanted.start, wanted.end, wanted.low, wanted.high)
        return [(Piece(entry, path, group.number, columns), group) for group in groups]

    def _read(self, wanted: Leg, projection: Projection) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Batches, and the offset behind each."""
        for piece, table in ahead(self._all_pieces(wanted, projection), self._groups.begin):
            version = piece.entry.schema_version
            batch = _projected(table, projection, version, wanted.partition)
            kept_rows = _rows(table, wanted)
            behind = min(table.column("offset")[-1].as_py() + 1, wanted.end)
            if kept_rows is not None:
                batch = batch.slice(*kept_rows) if isinstance(kept_rows, tuple) else batch.filter(kept_rows)
            if batch.num_rows:
                yield projection.widen(batch, projection.native(version)[1]), behind


def _may_have(entry: Entry, wanted: Leg) -> bool:
    """Whether records of an object may be wanted, as far as their times say."""
    return bool(entry.name) and entry.max_timestamp_ms >= wanted.low and entry.min_timestamp_ms <= wanted.high


def _columns(projection: Projection, version: int, wanted: Leg) -> tuple[str, ...]:
    """The columns of a file that are needed for those of a scan."""
    found = {"offset"} | ({"timestamp"} if wanted.by_time else set())
    for place in projection.native(version)[1]:
        path = _path(projection, version, projection.names[place])
        if path != ["partition"]:  # which is known
            found.add(path[0] if any("." in name for name in path) else ".".join(path))
    return tuple(sorted(found))


def _path(projection: Projection, version: int, name: str) -> list[str]:
    """The names from a column of a file down to what a scan calls so."""
    if name in schemas.RECORD_COLUMNS or name == "partition":
        return [name]
    of = projection.version(version)
    resolved = schemas.resolve_column(name, of)
    assert resolved is not None
    kind, path = of.value_type, ["value"]
    for number in resolved[1]:
        path.append(kind.field(number).name)
        kind = kind.field(number).type
    return path


def _projected(table: pa.Table, projection: Projection, version: int, partition: int) -> pa.RecordBatch:
    """The columns that this schema version has of those of a scan."""
    _, places, own = projection.native(version)
    arrays = []
    for place, field in zip(places, own, strict=True):
        first, *inside = _path(projection, version, projection.names[place])
        if first == "partition":
            arrays.append(pa.array(np.full(table.num_rows, partition, np.int32)))
            continue
        array = table.column(first)
        for name in inside:
            array = pc.struct_field(array, [array.type.get_field_index(name)])
        arrays.append(restored(array, field.type))
    if not arrays:  # a batch that still knows its number of rows
        return pa.RecordBatch.from_arrays([restored(table.column("offset"), pa.int64())], ["offset"]).select([])
    return pa.RecordBatch.from_arrays(arrays, schema=own)


def _rows(table: pa.Table, wanted: Leg) -> tuple[int, int] | pa.Array | None:
    """The rows that are wanted: all (None), a slice, or a mask."""
    offsets = table.column("offset").to_numpy()
    first, end = (int(place) for place in np.searchsorted(offsets, (wanted.start, wanted.end)))
    if not wanted.by_time:
        return None if (first, end) == (0, len(offsets)) else (first, end - first)
    stamps = times_ms(table)
    mask = (stamps >= wanted.low) & (stamps <= wanted.high)
    mask[:first] = False
    mask[end:] = False
    return pa.array(mask)
