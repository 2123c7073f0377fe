"""A store made anew from its tier: the machine that had it is gone.

The catalog comes from its copy: topics, settings, schemas, groups and their offsets, transactional ids. Each partition
of a tiered topic begins, here, where the tier ends, with what was known there of its producers; what is before it is
read from the tier. So this takes the time of some requests, not of the data. Who restores counts the epoch of the tier
up: the store that it was made from, should it live on somewhere, can change nothing there any more.

The catalog takes its place last, when all the rest is durable. Until then the folder is no store: who dies in between
leaves nothing that could be taken for one, and appended to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from streamcore import _core, producer_ids, transactions
from streamcore import schema as schemas
from streamcore.catalog import CATALOG_NAME, Catalog, TopicRow
from streamcore.config import TopicConfig
from streamcore.errors import CorruptionError, StorageError, TierError
from streamcore.files import sync_folder
from streamcore.store import Store
from streamcore.tier import address, backup, documents, kept, producers
from streamcore.tier.documents import Content
from streamcore.tier.manifest import MANIFEST, Manifest
from streamcore.tier.objects import Objects
from streamcore.topic_handle import add_schema, native_settings

_MAKING = ".restoring"  # below the folder of the topics: the catalog, until all else is there
_log = logging.getLogger("streamcore.tier")


class Restored(NamedTuple):
    """A topic that is back: its records in the tier; partitions; whether it is tiered, for others come back empty."""

    topic: str
    partitions: int
    records: int
    size_bytes: int
    tiered: bool


Progress = Callable[[int, int], None]


def restore(
    url: str, path: str | os.PathLike[str], tier_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None, *, without_producers: bool = False,
) -> list[Restored]:  # fmt: skip
    """Makes a store anew in a folder that is empty or not there, and returns its topics.

    What was not in the tier yet is not back: records that were not offloaded, and changes of the catalog since its last
    copy. Committed offsets behind the end of what is back are set to that end. What is known of idempotent producers is
    back as of the end of the records; without_producers: leaves it out, where it is damaged. progress(done, total) in
    partitions. Raises StorageError, TierError, CorruptionError.
    """
    restored = _made(url, Path(path), tier_options, progress, take_over=True, with_producers=not without_producers)
    with Store(path, maintenance=False, tier_options=tier_options):
        pass  # which brings back groups that are ahead of what is back, and ends transactions
    return restored


def open_tier(url: str, tier_options: Mapping[str, Any] | None = None) -> Store:
    """Opens what a tier holds for reading, without the store that it is of, which may go on: as it is at this moment.

    A folder for temporary files holds some kilobytes of each partition, and goes when the store is closed.
    Raises TierError, CorruptionError.
    """
    folder = Path(tempfile.mkdtemp(prefix="streamcore-tier-"))
    try:
        _made(url, folder / "store", tier_options, None, take_over=False, with_producers=False)
        store = Store(folder / "store", "r", maintenance=False, tier_options=tier_options)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    store.call_when_closed(lambda: shutil.rmtree(folder, ignore_errors=True))
    return store


def _made(
    url: str, path: Path, tier_options: Mapping[str, Any] | None, progress: Progress | None,
    *, take_over: bool, with_producers: bool,
) -> list[Restored]:  # fmt: skip
    with contextlib.suppress(FileNotFoundError):
        if any(path.iterdir()):
            raise StorageError(0, f"{path} is not empty: a store is restored into a folder of its own", str(path))
    options = {name: value for name, value in (tier_options or {}).items() if name != "cache_bytes"}
    objects = address.connect(url, options)
    try:
        content = _owner(objects, take_over=take_over)
        data = _catalog_of(objects, content)
        making = path / "topics" / _MAKING
        missing = [folder for folder in (making, *making.absolute().parents) if not folder.exists()]
        making.mkdir(parents=True)
        for folder in missing:
            sync_folder(folder.parent)
        (making / CATALOG_NAME).write_bytes(data)
        catalog = Catalog(making, True)
        try:
            done = _begun(objects, path, catalog, content, progress, take_over, with_producers)
        finally:
            catalog.close()
        _finish(path, making)
        return done
    finally:
        objects.close()


def _finish(path: Path, making: Path) -> None:
    """Has the folder be a store, durably."""
    if (left := sorted(one.name for one in making.iterdir())) != [CATALOG_NAME]:
        raise StorageError(0, f"the catalog was not closed: there are {left}", str(making))
    with (making / CATALOG_NAME).open("rb+") as file:
        os.fsync(file.fileno())
    sync_folder(path / "topics")
    (making / CATALOG_NAME).rename(path / CATALOG_NAME)
    making.rmdir()
    for folder in (path, path / "topics"):
        sync_folder(folder)


def _owner(objects: Objects, *, take_over: bool) -> Content:
    """What the tier says of the store that it is of; its epoch is counted up where that is to end."""

    def taken(content: Content | None) -> Content | None:
        if content is None:
            raise TierError("there is no tier of a store here", objects.url)
        return {**content, "epoch": int(content["epoch"]) + 1} if take_over else None

    found = documents.change(objects, documents.STORE_PATH, taken)
    assert found is not None
    return found.content


def _catalog_of(objects: Objects, content: Content) -> bytes:
    about = content.get("catalog")
    if not about:
        raise TierError("the tier has no copy of the catalog", objects.url)
    path = f"{backup.FOLDER}/{about['name']}"
    data, _ = objects.get(path)
    if f"{xxhash.xxh3_128_hexdigest(data)}.sqlite" != about["name"]:
        raise CorruptionError("the copy of the catalog is not what was put there", objects.url_of(path))
    return data


def _begun(
    objects: Objects, path: Path, catalog: Catalog, content: Content, progress: Progress | None, take_over: bool,
    with_producers: bool,
) -> list[Restored]:  # fmt: skip
    """Has each partition begin where the tier ends."""
    epoch = int(content["epoch"])
    found = kept.settings(catalog)
    settings = kept.Settings(objects.url, {} if found is None else found.options, str(content["store"]), epoch)
    kept.keep_settings(catalog, settings)
    rows = catalog.topics()
    total, done = sum(row.partitions for row in rows), 0
    restored = []
    greatest_id = 0
    for row in rows:
        (path / "topics" / row.folder).mkdir(exist_ok=True)
        copies = []
        for partition in range(row.partitions):
            copy = _copy_of(objects, row, partition, epoch if take_over else None)
            if copy is not None:
                kept.keep_copy(catalog, copy, durable=False)
                copies.append(copy)
            done += 1
            if progress is not None:
                progress(done, total)
        known = {copy.manifest.partition: copy.manifest for copy in copies if with_producers}
        said = {number: _producers_of(objects, row, manifest) for number, manifest in known.items()}
        greatest_id = max([greatest_id, *(_core.look_at_producers(data)[2] for data in said.values() if data)])
        _begin_topic(path / "topics" / row.folder, row, copies, said)
        entries = [entry for copy in copies for entry in copy.manifest.entries]
        sizes = sum(entry.rows for entry in entries), sum(entry.size for entry in entries)
        restored.append(Restored(row.name, row.partitions, *sizes, tiered=bool(copies)))
    if take_over:
        producer_ids.skip_to(catalog, greatest_id + 1)  # ids that the copy does not know of yet may be in the tier
        transactions.forget_machine(catalog)
    return restored


def _copy_of(objects: Objects, row: TopicRow, partition: int, epoch: int | None) -> kept.Copy | None:
    """The manifest of a partition, from now on of this epoch; None: there is none."""
    path = f"topics/{row.folder}/{partition:010d}/{MANIFEST}"
    url = objects.url_of(path)

    def taken(content: Content | None) -> Content | None:
        if content is None or epoch is None:
            return None
        manifest = Manifest.of(content, url)
        return dataclasses.replace(manifest, epoch=epoch, version=manifest.version + 1).as_content()

    document = documents.change(objects, path, taken)
    if document is None:
        return None
    manifest = Manifest.of(document.content, url)
    if (manifest.topic_id, manifest.partition) != (row.id, partition):
        raise CorruptionError(f"the manifest is of partition {manifest.partition} of {manifest.topic_id}", url)
    return kept.Copy(document, manifest, 0)


def _producers_of(objects: Objects, row: TopicRow, manifest: Manifest) -> bytes:
    """What is known of a partition's producers. From now on the manifest is this store's: no other replaces it."""
    if manifest.producers is None:
        if manifest.entries:
            _log.warning("%s/%d: nothing is known of its producers: batches that are sent again are taken again",
                         row.name, manifest.partition)  # fmt: skip
        return b""
    if not manifest.producers.name:
        return b""
    path = f"topics/{row.folder}/{manifest.partition:010d}/{manifest.producers.name}"
    return producers.load(objects, path, manifest.producers)


def _begin_topic(folder: Path, row: TopicRow, copies: list[kept.Copy], producers_of: Mapping[int, bytes]) -> None:
    versions = {number: schemas.version_of_message(number, message or b"") for number, message in row.schemas.items()}
    config = TopicConfig.stored(row.config, row.name)
    core = _core.Topic(bytes(folder), True, native_settings(config, row))
    try:
        for version in versions.values():
            add_schema(core, version)
        for copy in copies:
            if copy.manifest.end_offset > 0:
                number = copy.manifest.partition
                _core.begin(core, number, copy.manifest.end_offset, max(versions), producers_of.get(number, b""))
    finally:
        core.close()
