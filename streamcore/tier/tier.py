"""A store's tier: where it is, whose it is, and what is in it."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcore.errors import StreamcoreError, TierError
from streamcore.tier import address, backup, checks, documents, kept, tables
from streamcore.tier.cache import Cache
from streamcore.tier.checks import Collected, Progress
from streamcore.tier.documents import Content
from streamcore.tier.groups import RowGroups
from streamcore.tier.log import TierLog
from streamcore.tier.manifest import Entry, check_epoch
from streamcore.tier.objects import Objects
from streamcore.tier.status import TierStatus, status_of

if TYPE_CHECKING:
    from pyiceberg.table import StaticTable

    from streamcore.catalog import Catalog
    from streamcore.scan import Bound
    from streamcore.store import Problem, Store
    from streamcore.tier.iceberg.files import TierIO
    from streamcore.topic import Topic

FOLDER = "tier"  # below the store's
CACHE_BYTES = 1 << 30
_log = logging.getLogger("streamcore.tier")


class Tier:
    """The tier of an open store; made by `Store.tier`. Any thread may use it.

    options: what `streamcore.tier.address.connect` takes, and of ours `cache_bytes`, the bound of the cache on the
    local disk (default 1 GiB; 0: none).
    """

    def __init__(self, store: Store, settings: kept.Settings, options: Mapping[str, Any]) -> None:
        self.url = settings.url
        self.store_id = settings.store_id
        self.epoch = settings.epoch
        self._store = store
        given = {**settings.options, **options}
        self.cache = self._made_cache(store.path / FOLDER / "cache", given.pop("cache_bytes", CACHE_BYTES))
        self._options = given
        self._lock = threading.Lock()
        self._objects: Objects | None = None
        self._groups: RowGroups | None = None
        self._ended = False
        self._iceberg_files: TierIO | None = None
        self._logs: dict[str, TierLog] = {}
        self._with_objects: frozenset[str] | None = None
        self.backed_up = ""  # the name of the catalog's copy, as far as this process knows
        self.backed_up_s = -1e9
        self.last_error: str | None = None
        self.last_pass_ms: int | None = None
        self._claimed = False

    def _made_cache(self, folder: Path, max_bytes: Any) -> Cache | None:
        if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 0:
            raise ValueError(f"cache_bytes is {max_bytes!r}; 0 or more is allowed")
        return None if max_bytes == 0 or self._store.mode == "r" else Cache(folder, max_bytes)

    def __repr__(self) -> str:
        return f"<Tier {self.url!r} of {str(self._store.path)!r}>"

    # ---- what users ask of it ----

    def status(self) -> TierStatus:
        """What it holds and how far it is behind, as far as this machine knows: the tier itself is not asked."""
        return status_of(self._store, self)

    def verify(self, *, read: bool = True, progress: Progress | None = None) -> list[Problem]:
        """Compares each object with its manifest: all of its bytes, or without `read` its size. Empty when all is well.

        progress(done, total) in bytes. Raises TierError.
        """
        return checks.verify(self._store, self, read=read, progress=progress)

    def gc(self, *, grace_s: float = checks.GRACE_S, dry_run: bool = False) -> Collected:
        """Removes objects that nothing names and that are older than `grace_s` seconds, by the clock of the tier.

        They are left by processes that died while they offloaded, and by deleted topics. Raises TierError, FencedError.
        """
        if not isinstance(grace_s, (int, float)) or grace_s < 0:
            raise ValueError(f"grace_s is {grace_s!r}; 0 or more seconds are allowed")
        return checks.gc(self, grace_s=float(grace_s), dry=dry_run)

    def back_up(self) -> bool:
        """Puts a copy of the catalog there, for `restore`; False when it is there. The background work does so, too."""
        return backup.back_up(self._store, self)

    def prefetch(
        self, topic: str, partition: int | None = None, start: Bound = "earliest", end: Bound = "latest"
    ) -> int:
        """Fetches what is in the tier alone of a topic into the cache on the disk: the number of row groups.

        start, end: as for `Topic.scan`. What does not fit into `cache_bytes` goes again. Raises TierError.
        """
        if self.cache is None:
            raise ValueError("the tier has no cache: the store is open for reading, or cache_bytes is 0")
        return self._store.topic(topic).scan(partition, start, end).prefetch()

    def iceberg(self, topic: str) -> StaticTable:
        """A topic's Iceberg table as it is now, for pyiceberg: `store.tier.iceberg("clicks").scan().to_arrow()`.

        It is read with the tier's own credentials, from wherever the tier is. Raises ValueError where the topic has no
        `tier_iceberg`, TierError where the table is not made yet, ImportError.
        """
        found = self._store.topic(topic)
        return tables.opened(found, self, self.log(found.id, found.folder, found.name))

    # ---- for modules of this package ----

    @property
    def catalog(self) -> Catalog:
        """The store's."""
        return self._store.catalog

    def tiered(self) -> list[tuple[Topic, TierLog]]:
        """The topics that have something here, or may get something."""
        return [(topic, log) for topic in self._store.topics() if (log := topic.cold) is not None]

    @property
    def address(self) -> str:
        """The url as other programs know it: without escapes of a folder, of Azure with its account."""
        parts = urllib.parse.urlsplit(self.url)
        account = self._options.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        if parts.scheme == "file":
            return f"file://{urllib.parse.unquote(parts.path)}"
        if parts.scheme == "az" and account:
            return f"abfss://{parts.netloc}@{account}.dfs.core.windows.net{parts.path}"
        return self.url

    @property
    def iceberg_files(self) -> TierIO:
        """The files of Iceberg tables."""
        objects = self.objects
        with self._lock:
            if self._iceberg_files is None:
                from streamcore.tier.iceberg.files import TierIO

                self._iceberg_files = TierIO(objects, self.address)
            return self._iceberg_files

    @property
    def objects(self) -> Objects:
        """The objects, connected at first use."""
        with self._lock:
            if self._objects is None:
                if self._ended and self._store.closed:
                    raise StreamcoreError("the store is closed")
                self._objects = address.connect(self.url, self._options)
            return self._objects

    @property
    def groups(self) -> RowGroups:
        """What fetches row groups."""
        objects = self.objects
        with self._lock:
            if self._groups is None:
                self._groups = RowGroups(objects, self.cache)
            return self._groups

    def log(self, topic_id: str, folder: str, name: str) -> TierLog:
        """What the tier holds of a topic."""
        with self._lock:
            found = self._logs.get(topic_id)
            if found is None:
                found = self._logs[topic_id] = TierLog(self, self._store.catalog, topic_id, folder, name)
            return found

    def has(self, topic_id: str) -> bool:
        """Whether it holds, or held, something of a topic that is not tiered now, as far as the catalog knows."""
        with self._lock:
            if self._with_objects is None:
                self._with_objects = kept.topics_with_copies(self._store.catalog)
            return topic_id in self._with_objects

    @property
    def uploads(self) -> Path:
        """The folder for files that are about to be uploaded."""
        return self._store.path / FOLDER / "uploads"

    def claim(self, *, again: bool = False) -> None:
        """Makes sure, once or again, that the tier is this store's. Raises TierError, FencedError."""
        if self._claimed and not again:
            return
        url = self.objects.url_of(documents.STORE_PATH)

        def claimed(found: Content | None) -> Content | None:
            if found is None:
                return {"store": self.store_id, "epoch": self.epoch, "catalog": None}
            self.check_owner(found, url)
            return None if found["epoch"] == self.epoch else {**found, "epoch": self.epoch}

        documents.change(self.objects, documents.STORE_PATH, claimed)
        self._claimed = True

    def check_owner(self, found: Content, url: str) -> None:
        """Raises TierError where another store has the tier, FencedError where one that was restored from it has."""
        if found.get("store") != self.store_id:
            raise TierError(f"the tier belongs to the store {found.get('store')}: take another address or prefix", url)
        check_epoch(int(found.get("epoch", 0)), self.epoch, url)

    def knows(self, folder: str) -> bool:
        """Whether the catalog has a copy of the manifest of a partition, whose folder in the tier this is."""
        _, topic_folder, partition = folder.split("/")
        topic_id = topic_folder.rpartition("-")[2]
        return kept.version(self._store.catalog, topic_id, int(partition)) > 0

    def requests(self) -> dict[str, int]:
        """What this process asked of it so far, by name; empty when it asked nothing."""
        with self._lock:
            return {} if self._objects is None else self._objects.counters.read()

    def note_pass(self, error: Exception | None) -> None:
        """Remembers how the background work on the tier went."""
        self.last_error = None if error is None else str(error)
        self.last_pass_ms = time.time_ns() // 1_000_000

    def forget(self, entry: Entry) -> None:
        """Drops what the cache has of an object that is deleted."""
        if self.cache is not None:
            self.cache.forget(entry.digest)

    def give_up(self) -> None:
        """Has what fails from now on fail at once; called by the store before it waits for its background work."""
        with self._lock:
            objects = self._objects
        if objects is not None:
            objects.close()

    def close(self) -> None:
        """Ends what is fetched; called by the store."""
        with self._lock:
            self._ended = True
            objects, groups = self._objects, self._groups
            self._objects = self._groups = self._iceberg_files = None
        if objects is not None:
            objects.close()
        if groups is not None:
            groups.close()


def new_settings(url: str, options: Mapping[str, Any]) -> kept.Settings:
    """Settings of a store that had no tier: an id that nobody else has."""
    return kept.Settings(address.check_address(url), address.check_kept(options), secrets.token_hex(8), 1)
