"""The manifest of a partition: which objects hold its records, and where they begin and end.

The objects follow each other without a gap: where one ends, the next begins. Offsets below `start_offset` are deleted,
also where they stand in the first object. Who writes carries an epoch, which a restored store counts up: from then on
the store that it was made from can change nothing any more.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

from streamcore.errors import CorruptionError, FencedError
from streamcore.tier.documents import Content

MANIFEST = "manifest.json"  # in a partition's folder
_NAME = re.compile(r"\d{20}-[0-9a-f]{32}-[0-9a-f]{8}\.(?P<kind>parquet|producers)")
_OFFSET_MAX = (1 << 63) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A segment in the tier: the offsets [base, end), of which there are `rows`; times in ms since 1970.

    name: of its object, empty when it has no rows. size, digest (XXH3-128, hex): of the object. footer_bytes,
    footer_digest: of its end, which has no checksum of its own. segment_bytes, segment_ms: of the segment file that it
    was made from, and when that was changed last; 0 where a version wrote it that did not say so.
    """

    base_offset: int
    end_offset: int
    name: str
    size: int
    digest: str
    rows: int
    min_timestamp_ms: int
    max_timestamp_ms: int
    schema_version: int
    footer_bytes: int
    footer_digest: str
    segment_bytes: int
    segment_ms: int = 0

    def check(self) -> None:
        """Raises ValueError for what nobody has written."""
        for field in dataclasses.fields(self):
            kind = str if field.type == "str" else int
            if type(getattr(self, field.name)) is not kind:
                raise ValueError(f"{field.name} is {getattr(self, field.name)!r}")
        if not 0 <= self.base_offset <= self.end_offset <= _OFFSET_MAX:
            raise ValueError(f"an object has the offsets {self.base_offset} to {self.end_offset}")
        if not 0 <= self.rows <= self.end_offset - self.base_offset or min(self.size, self.segment_bytes) < 0:
            raise ValueError(f"the object at {self.base_offset} has {self.rows} rows in {self.size} bytes")
        if bool(self.name) != (self.rows > 0) or (self.name and not _is_name(self.name, "parquet")):
            raise ValueError(f"an object is named {self.name!r}")
        if self.name and not 0 < self.footer_bytes <= self.size:
            raise ValueError(f"the object {self.name} has a footer of {self.footer_bytes} of {self.size} bytes")


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of the producers of all records below `offset`: an object, without a name when there are none."""

    offset: int
    name: str
    size: int
    digest: str

    def check(self) -> None:
        """Raises ValueError for what nobody has written."""
        kinds = [type(getattr(self, field.name)) for field in dataclasses.fields(self)]
        if kinds != [int, str, int, str] or not 0 <= self.offset <= _OFFSET_MAX or self.size < 0:
            raise ValueError(f"producers are {self!r}")
        if bool(self.name) != (self.size > 0) or (self.name and not _is_name(self.name, "producers")):
            raise ValueError(f"an object is named {self.name!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """What the tier holds of a partition, of `version` (counted up by each change).

    producers: None where a version wrote it that did not keep them.
    """

    topic_id: str
    partition: int
    epoch: int
    version: int
    start_offset: int
    entries: tuple[Entry, ...]
    producers: Snapshot | None = None

    @property
    def end_offset(self) -> int:
        """Where the next object begins."""
        return self.entries[-1].end_offset if self.entries else self.start_offset

    @property
    def size_bytes(self) -> int:
        """The bytes of all objects."""
        return sum(entry.size for entry in self.entries)

    @property
    def names(self) -> list[str]:
        """Of all objects."""
        known = [] if self.producers is None else [self.producers.name]
        return [name for name in known + [entry.name for entry in self.entries] if name]

    def with_entry(self, entry: Entry, producers: Snapshot) -> Manifest:
        """One more object behind the others, and what is known of producers where it ends."""
        assert entry.base_offset == self.end_offset
        assert entry.end_offset == producers.offset
        entries = (*self.entries, entry)
        return dataclasses.replace(self, version=self.version + 1, entries=entries, producers=producers)

    def with_start(self, offset: int) -> tuple[Manifest, tuple[Entry, ...]]:
        """Begins at an offset; and the entries that go."""
        gone = tuple(itertools.takewhile(lambda entry: entry.end_offset <= offset, self.entries))
        kept = self.entries[len(gone) :]
        return dataclasses.replace(self, version=self.version + 1, start_offset=offset, entries=kept), gone

    def as_content(self) -> Content:
        """The document."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, content: Content, url: str) -> Manifest:
        """What a document says. Raises CorruptionError for what nobody has written."""
        try:
            numbers = {name: _number(content, name) for name in ("partition", "epoch", "version", "start_offset")}
            entries = tuple(_entry(one) for one in content["entries"])
            producers = _snapshot(content.get("producers"))
            found = cls(_text(content, "topic_id"), **numbers, entries=entries, producers=producers)
            found._check()
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"the manifest makes no sense: {error}", url) from None
        return found

    def _check(self) -> None:
        for before, behind in itertools.pairwise(self.entries):
            if before.end_offset != behind.base_offset:
                raise ValueError(f"offset {before.end_offset} is followed by {behind.base_offset}")
        if self.entries and not self.entries[0].base_offset <= self.start_offset <= self.entries[0].end_offset:
            raise ValueError(f"it begins at {self.start_offset}, its first object at {self.entries[0].base_offset}")
        if self.producers is not None and self.producers.offset > self.end_offset:
            raise ValueError(f"it ends at {self.end_offset}, and knows of producers up to {self.producers.offset}")


def check_epoch(found: int, own: int, url: str) -> None:
    """Raises FencedError when another store has been made from this tier since."""
    if found > own:
        raise FencedError(
            f"the tier belongs to a store that was restored from it since (epoch {found}, this one has {own}): {url}"
        )


def _entry(content: Any) -> Entry:
    entry = Entry(**content)
    entry.check()
    return entry


def _snapshot(content: Any) -> Snapshot | None:
    if content is None:
        return None
    snapshot = Snapshot(**content)
    snapshot.check()
    return snapshot


def _is_name(name: str, kind: str) -> bool:
    found = _NAME.fullmatch(name)
    return found is not None and found["kind"] == kind


def _number(content: Content, name: str) -> int:
    value = content[name]
    if type(value) is not int or not 0 <= value <= _OFFSET_MAX:
        raise ValueError(f"{name} is {value!r}")
    return value


def _text(content: Content, name: str) -> str:
    if not isinstance(content[name], str):
        raise ValueError(f"{name} is {content[name]!r}")
    return str(content[name])
