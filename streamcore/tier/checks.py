"""Whether the tier has what its manifests say, and what it has that nobody needs."""

from __future__ import annotations

import collections
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from streamcore.errors import CorruptionError, StreamcoreError, TierError
from streamcore.tier import backup, documents, keeping, producers, tables
from streamcore.tier.manifest import MANIFEST, Entry, Manifest
from streamcore.tier.objects import Info, ObjectMissingError

if TYPE_CHECKING:
    from streamcore.store import Problem, Store
    from streamcore.tier.log import TierLog
    from streamcore.tier.tier import Tier

GRACE_S = 24 * 3600.0
_PARTITION_FOLDER = re.compile(r"topics/(?P<folder>[^/]+)/(?P<partition>\d{10})/(?P<name>[^/]+)")
_log = logging.getLogger("streamcore.tier")
Progress = Callable[[int, int], None]


class Collected(NamedTuple):
    """What `gc` removed, or would: objects that nothing names, and their bytes."""

    objects: int
    size_bytes: int
    paths: tuple[str, ...]


# ---- verify ----------------------------------------------------------------------------------------------------------


def verify(store: Store, tier: Tier, *, read: bool, progress: Progress | None) -> list[Problem]:
    """Looks at each object that a manifest names: its size, or, with `read`, all of its bytes; then at Iceberg tables.

    Raises TierError.
    """
    from streamcore.store import Problem

    problems: list[Problem] = []
    named: list[tuple[TierLog, int, Entry]] = []
    for topic in store.topics():
        log = topic.cold
        for partition in range(topic.partition_count) if log is not None else ():
            assert log is not None
            try:
                copy = log.fresh(partition)
            except CorruptionError as error:
                problems.append(Problem(error.path or tier.url, error.offset, error.position, error.message))
                continue
            if copy is not None:
                named += [(log, partition, entry) for entry in copy.manifest.entries]
                problems += _of_producers(tier, log, partition, copy.manifest, read)
    total, done = sum(entry.size for _, _, entry in named), 0
    for log, partition, entry in named:
        said = keeping.problem_of(tier, log, partition, entry) if read else _size_problem(tier, log, partition, entry)
        if said is not None:
            url = tier.objects.url_of(log.path_of(partition, entry.name))
            problems.append(Problem(url, entry.base_offset, None, said))
        done += entry.size
        if progress is not None:
            progress(done, total)
    for topic, log in tier.tiered():
        if topic.config.tier_iceberg:
            url = tier.objects.url_of(f"{log.folder}/{tables.FOLDER}")
            problems += [Problem(url, None, None, said) for said in tables.problems(topic, tier, log)]
    return problems


def _of_producers(tier: Tier, log: TierLog, partition: int, manifest: Manifest, read: bool) -> list[Problem]:
    from streamcore.store import Problem

    if manifest.producers is None:
        return []
    path = log.path_of(partition, manifest.producers.name)
    said = producers.problem_of(tier.objects, path, manifest.producers, read=read)
    return [] if said is None else [Problem(tier.objects.url_of(path), manifest.producers.offset, None, said)]


def _size_problem(tier: Tier, log: TierLog, partition: int, entry: Entry) -> str | None:
    if not entry.name:
        return None
    try:
        found = tier.objects.head(log.path_of(partition, entry.name))
    except ObjectMissingError:
        return f"the object {entry.name} is gone"
    return None if found.size == entry.size else f"the object {entry.name} has {found.size} bytes, not {entry.size}"


# ---- gc --------------------------------------------------------------------------------------------------------------


def gc(tier: Tier, *, grace_s: float, dry: bool) -> Collected:
    """Removes objects that nothing names and that are older than `grace_s`, by the clock of who keeps them.

    They are what a process leaves that dies between an object and its manifest, and what is left of deleted topics. The
    list is made first and manifests are read then: what one names by now stays. No name is used twice, so what is
    removed here is never named later. Iceberg tables follow first, and are made anew where they are damaged; where that
    fails, the topic's objects stay.
    Raises TierError, FencedError.
    """
    tier.claim(again=True)
    left_alone = {
        log.folder
        for topic, log in tier.tiered()
        if not (tables.is_up_to_date(topic, tier) if dry else tables.follow(topic, tier, log, look=True))
    }
    if left_alone:
        _log.warning("gc leaves %s alone: their Iceberg tables may name what is gone", ", ".join(sorted(left_alone)))
    found = list(tier.objects.listed("topics")) + list(tier.objects.listed(backup.FOLDER))
    before_ms = _now_ms(tier) - int(grace_s * 1000)
    removed = []
    for info in _unnamed(tier, [info for info in found if _topic_of(info.path) not in left_alone]):
        if info.modified_ms <= before_ms:
            removed.append(info)
            if not dry:
                tier.objects.delete(info.path)
    if not dry:
        tier.objects.sweep(grace_s)
    if removed:
        _log.info("gc: %d objects that nothing named, %d bytes", len(removed), sum(info.size for info in removed))
    return Collected(len(removed), sum(info.size for info in removed), tuple(info.path for info in removed))


def _now_ms(tier: Tier) -> int:
    """The time by the clock of who keeps the objects: ours may be wrong."""
    path = f"clock-{secrets.token_hex(8)}"
    tier.objects.put(path, b"")
    try:
        return tier.objects.head(path).modified_ms
    finally:
        tier.objects.delete(path)


def _unnamed(tier: Tier, found: Iterable[Info]) -> Iterator[Info]:
    by_folder: dict[str, list[Info]] = collections.defaultdict(list)
    for info in found:
        by_folder[info.path.rpartition("/")[0]].append(info)
    deleted = {folder for folder in by_folder if _is_deleted_topic(tier, folder)}
    for folder, infos in sorted(by_folder.items()):
        if _topic_of(folder) in deleted:
            yield from infos
        elif folder == backup.FOLDER:
            yield from _unnamed_catalogs(tier, infos)
        elif _PARTITION_FOLDER.fullmatch(f"{folder}/x"):
            yield from _unnamed_of_partition(tier, folder, infos)
        elif folder == f"{_topic_of(folder)}/{tables.METADATA_FOLDER}":
            yield from _unnamed_of_table(tier, folder, infos)


def _topic_of(path: str) -> str:
    """The folder of the topic that something is of, or is itself: topics/<name>-<id>."""
    return "/".join(path.split("/")[:2])


def _is_deleted_topic(tier: Tier, folder: str) -> bool:
    if folder.count("/") != 1 or not folder.startswith("topics/"):
        return False
    document = documents.load(tier.objects, f"{folder}/topic.json")
    return document is not None and document.content.get("deleted") is True


def _unnamed_catalogs(tier: Tier, infos: list[Info]) -> Iterator[Info]:
    document = documents.load(tier.objects, documents.STORE_PATH)
    about = None if document is None else document.content.get("catalog")
    named = f"{backup.FOLDER}/{about['name']}" if about else None
    return (info for info in infos if info.path != named)


def _unnamed_of_partition(tier: Tier, folder: str, infos: list[Info]) -> Iterator[Info]:
    path = f"{folder}/{MANIFEST}"
    try:
        document = documents.load(tier.objects, path)
        if document is None and tier.knows(folder):
            raise TierError("the manifest is gone", tier.objects.url_of(path))
        manifest = None if document is None else Manifest.of(document.content, tier.objects.url_of(path))
    except StreamcoreError as error:  # nothing can be said of its objects
        _log.warning("gc leaves %s alone: %s", folder, error)
        return
    named = {path} if manifest is None else {path, *(f"{folder}/{name}" for name in manifest.names)}
    yield from (info for info in infos if info.path not in named)


def _unnamed_of_table(tier: Tier, folder: str, infos: list[Info]) -> Iterator[Info]:
    """Metadata that no version of an Iceberg table in use names: of commits that failed, and of tables that are no
    more."""
    logs = [log for topic, log in tier.tiered() if log.folder == _topic_of(folder) and topic.config.tier_iceberg]
    try:
        needed = {path for log in logs for path in tables.needed(tier, log)}
    except (StreamcoreError, ImportError, ValueError) as error:  # nothing can be said of them
        _log.warning("gc leaves %s alone: %s", folder, error)
        return
    yield from (info for info in infos if info.path not in needed)


# ---- deleted topics --------------------------------------------------------------------------------------------------


def delete_topic(tier: Tier, log: TierLog) -> None:
    """Has the tier forget a topic: first it says so, then its objects go. What is left by a crash goes with `gc`."""
    path = f"{log.folder}/topic.json"
    if documents.load(tier.objects, path) is None:
        return
    tier.claim(again=True)

    def deleted(content: documents.Content | None) -> documents.Content | None:
        return None if content is None or content.get("deleted") else {**content, "deleted": True}

    documents.change(tier.objects, path, deleted)
    tables.drop(tier.objects, log.folder)
    for info in tier.objects.listed(log.folder):
        if info.path != path:
            tier.objects.delete(info.path)
    tier.objects.delete(path)
