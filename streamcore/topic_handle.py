"""The handle on a topic: its row of the catalog, its native topic, and how both follow what other processes change.

A row has a generation, and so has the `state` file of the topic's folder. Who changes a topic changes the row first,
then publishes its generation there; each call into the core compares it with the handle's. A handle that is behind
reads the row again, tells the native topic, and repeats the call: no append or read goes by settings, partitions or
schemas that another process has replaced.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pyarrow as pa

from streamcore import _core
from streamcore import schema as schemas
from streamcore.catalog import TopicRow
from streamcore.config import TopicConfig
from streamcore.errors import (
    CorruptionError,
    StorageError,
    StoreFormatError,
    StoreReadOnlyError,
    TopicNotFoundError,
)
from streamcore.files import check_folder, open_file

if TYPE_CHECKING:
    from streamcore.store import Store
    from streamcore.tier.log import TierLog

_Result = TypeVar("_Result")
Durability = Literal["os", "disk"]
STALE_RETRIES = 100
_SCHEMA_READ_BYTES = 4 << 20


class TopicHandle:
    """What a process has open of a topic. Any thread may use it; its attributes are for others to read.

    row, config, versions (schemas by number), version_number (the newest): as the catalog had them last.
    takes_rows: rows of bytes go to the core as they are, without Arrow. log_append_time: records get the log's time.
    unflushed: something was appended, and the store's flusher knows of it.
    """

    def __init__(self, store: Store, row: TopicRow) -> None:
        self.store = store
        self.row = row
        self.config = TopicConfig.stored(row.config, row.name)
        self.versions: dict[int, schemas.SchemaVersion] = {}
        self.version_number = 1
        self.unflushed = False
        self._core: _core.Topic | None = None
        self._seen: Any = None
        self._take_schemas(row)
        self._derive()

    @property
    def id(self) -> str:
        """The topic's identity."""
        return self.row.id

    @property
    def name(self) -> str:
        """The topic's name."""
        return self.row.name

    @property
    def version(self) -> schemas.SchemaVersion:
        """The newest schema, by which appends go."""
        return self.versions[self.version_number]

    # ---- calls into the core ----

    def open(self) -> _core.Topic:
        """The native topic; the first call opens its files."""
        core = self._core
        if core is not None:
            if self.store.closed:
                self.store.check_open()
            return core
        self.store.check_open()  # before the lock: a forked child must not wait for a thread of its parent
        with self.store.lock:
            self.store.check_open()
            if self._core is None:
                self._core = self._new_core()
                self.refresh()  # for what was changed while we did not have it open
            return self._core

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Calls into the core; when another process changed the topic, takes the change and repeats."""
        for _ in range(STALE_RETRIES):
            try:
                result = function()
                if self._core is not None and self._core.found_unflushed():
                    self.store.note_unflushed(self)
                return result
            except _core.StaleTopic:
                self.refresh()
            except (StoreFormatError, TopicNotFoundError) as error:
                if not self.refresh():
                    raise self.explained(error) from None
        raise self._restless()

    def describe(self, partition: int) -> tuple[int, int, int, int, int, int]:
        """What the core knows of a partition, with the start of the log where the tier has some of it."""
        found = self.call(lambda: self.open().describe(partition, False))
        return (self.start(partition, found[0]), *found[1:])

    def start(self, partition: int, local_start: int) -> int:
        """Where the log of a partition begins, of which what is from `local_start` on is here."""
        cold = self.cold
        return local_start if cold is None else cold.start(partition, local_start)

    @property
    def cold(self) -> TierLog | None:
        """What the store's tier holds of the topic; None when it has none and gets none."""
        tier = self.store.tier
        if tier is None or not (self.config.tier or tier.has(self.id)):
            return None
        return tier.log(self.id, self.row.folder, self.name)

    def check_writable(self) -> None:
        """Raises StreamcoreError where the store is closed, StoreReadOnlyError where it is open for reading."""
        self.store.check_open()
        if self.store.mode == "r":
            raise StoreReadOnlyError("the store was opened with mode 'r'")

    def check_partition(self, partition: Any) -> None:
        """Raises TypeError and ValueError for what is no partition; one that is news to this handle is one."""
        if not isinstance(partition, (int, np.integer)) or isinstance(partition, bool):
            raise TypeError(f"partition is {partition!r}; an int is needed")
        if not 0 <= partition < self.row.partitions:
            self.refresh_if_stale()
        if not 0 <= partition < self.row.partitions:
            raise ValueError(
                f"partition is {partition}; topic {self.name!r} has partitions 0 to {self.row.partitions - 1}"
            )

    def is_durable(self, durability: Durability | None) -> bool:
        """Whether an append returns when the drive has it; None: as the topic says, or the store."""
        return self._durable if durability is None else durability == "disk"

    def _new_core(self) -> _core.Topic:
        path = self.store.path / "topics" / self.row.folder
        folder = bytes(path)
        try:
            _check_folder(path, self.name)
            core = _core.Topic(folder, self.store.mode == "rw", self._native_settings())
        except StorageError:
            if self.store.catalog.topic_by_id(self.row.id) is None:
                raise self._deleted() from None
            raise
        if self.store.journal is not None:
            core.use_journal(self.store.journal)
        else:
            core.read_journal(bytes(self.store.path))
        for version in self.versions.values():
            add_schema(core, version)
        return core

    def _native_settings(self) -> tuple[int, int, int, int, int, int]:
        return native_settings(self.config, self.row)

    # ---- changes ----

    def change(self, changed: Callable[[TopicRow], TopicRow]) -> None:
        """Replaces the row by what `changed` makes of it, for all processes; anew when another one was faster."""
        self.open()  # through which the change is told to others
        for _ in range(STALE_RETRIES):
            row = changed(self.row)
            if self.store.catalog.change_topic(row):
                self._take(row, publish=True)
                return
            self.refresh()
        raise self._restless()

    def refresh_if_stale(self) -> None:
        """Follows what others changed, before the arguments of a call are looked at."""
        if self.store.mode == "r":  # nobody tells a reader when there is no writer
            signature = self.store.catalog.signature()
            if signature != self._seen:
                self.refresh()
                self._seen = signature
        elif self._core is not None and (
            self._core.published_generation() != self.row.generation or self._core.is_deleted()
        ):
            self.refresh()

    def refresh(self) -> bool:
        """Reads the catalog again; True when something changed. Raises TopicNotFoundError for a deleted topic."""
        self.store.check_open()
        row = self.store.catalog.topic_by_id(self.row.id)
        if row is None:
            self.store.forget(self.row.id)
            raise self._deleted()
        if row.generation == self.row.generation:
            if (
                self._core is not None
                and self._core.published_generation() != row.generation
                and self.store.mode == "rw"
            ):
                self._core.alter(self._native_settings(), True)  # the process that changed it died before it said so
                return True
            return False
        self._take(row, publish=False)
        return True

    def take_row(self, row: TopicRow) -> None:
        """Takes what the catalog says of the topic, if that is news."""
        if row.generation > self.row.generation:
            self._take(row, publish=False)

    def _take(self, row: TopicRow, *, publish: bool) -> None:
        with self.store.lock:
            known = set(self.versions)
            self.config = TopicConfig.stored(row.config, row.name)
            self.row = row
            self._take_schemas(row)
            if self.config.tier and self.store.tier is None:
                self.store.look_for_tier()
            if self._core is not None:
                for number in sorted(set(self.versions) - known):
                    add_schema(self._core, self.versions[number])
                self._core.alter(self._native_settings(), publish)
            self._derive()

    def _take_schemas(self, row: TopicRow) -> None:
        for number, message in row.schemas.items():
            if number not in self.versions:
                try:
                    self.versions[number] = schemas.version_of_message(number, message or b"")
                except ValueError as error:
                    damaged = f"schema {number} of topic {row.name!r} is damaged ({error})"
                    raise CorruptionError(damaged, str(self.store.catalog.path)) from None
        self.version_number = max(self.versions)

    def _derive(self) -> None:
        self.takes_rows = self.version.user is None and self.config.compression == "none"
        self._durable = (self.config.durability or self.store.durability) == "disk"
        self.log_append_time = self.config.timestamp_type == "append"

    # ---- flushing and closing: called by the store ----

    def note_appended(self) -> None:
        """Has what was appended flushed in the background within a second."""
        if not self.unflushed:
            self.store.note_unflushed(self)

    def flush_appended(self) -> None:
        """Makes durable what this handle appended."""
        self.unflushed = False
        if self._core is not None:
            self._core.flush()

    def note_durable(self) -> None:
        """Notes in the logs, when they are durable, that they are."""
        if self._core is not None:
            self._core.note_durable()

    def mark_unflushed(self, unflushed: bool = True) -> None:
        """Remembers that there is something to flush, and somebody who will."""
        self.unflushed = unflushed

    def close(self, *, deleted: bool = False) -> None:
        """Closes the native topic; later calls raise."""
        core = self._core
        if core is None:
            return
        if deleted:
            core.mark_deleted()
        core.close()

    # ---- errors ----

    def explained(self, error: Exception) -> Exception:
        """An error of the core with what only the topic knows: its name, and what a foreign file is."""
        if isinstance(error, TopicNotFoundError):
            return self._deleted()
        if isinstance(error, StoreFormatError) and error.path is not None and not error.position:
            difference = self._difference(error.path)
            if difference is None:
                damaged = "the segment does not begin with the Arrow schema that it must have"
                return CorruptionError(damaged, error.path, error.offset, 0)
            return StoreFormatError(f"{difference} (file {error.path})", error.path)
        return error

    def _deleted(self) -> TopicNotFoundError:
        return TopicNotFoundError(f"topic {self.name!r} was deleted")

    def _restless(self) -> StoreFormatError:
        return StoreFormatError(f"topic {self.name!r} is changed by others all the time")

    def _difference(self, path: str) -> str | None:
        """Why a segment file is none of this topic; None when it is damaged, or no segment at all."""
        try:
            with os.fdopen(open_file(path), "rb") as file:
                found = schemas.read_segment_metadata(file.read(_SCHEMA_READ_BYTES))
        except OSError as error:
            return f"a segment cannot be read: {error}"
        if "streamcore.format" not in found:
            return None
        if found["streamcore.format"] != str(schemas.FORMAT_VERSION):
            ours = schemas.FORMAT_VERSION
            return (
                f"the segment has format {found['streamcore.format']}; this version of streamcore reads format {ours}"
            )
        if found.get("streamcore.topic") != self.id:
            return f"the segment belongs to the topic with the id {found.get('streamcore.topic')}, not to {self.id}"
        partition, version = found.get("streamcore.partition"), found.get("streamcore.schema_version")
        if partition == f"{int(Path(path).parent.name):010d}" and version in {str(number) for number in self.versions}:
            return None
        return f"the segment is of partition {partition} and schema version {version}, which do not fit its place"


def native_settings(config: TopicConfig, row: TopicRow) -> tuple[int, int, int, int, int, int]:
    """What the core goes by."""
    return (
        config.segment_bytes,
        config.segment_ms or 0,
        config.max_record_bytes,
        row.generation,
        row.partitions,
        config.producer_expiry_ms,
    )


def _check_folder(path: Path, topic: str) -> None:
    """Where there is none a reader would find no records; a link leads out of the store."""
    try:
        check_folder(path)
    except OSError as error:
        state = "missing" if error.errno == errno.ENOENT else "no folder of the store"
        raise StorageError(error.errno or 0, f"the folder of topic {topic!r} is {state}", str(path)) from None


def add_schema(core: _core.Topic, version: schemas.SchemaVersion) -> None:
    """Tells a native topic of a schema version."""
    whole = pa.schema(list(version.file))
    core.add_schema(whole.__arrow_c_schema__(), version.message, version.partition_digits_at, version.number)
