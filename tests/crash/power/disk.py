"""A drive under a file system, and the states in which a loss of power may leave it.

The model knows less order than any file system keeps, and is told what happened event by event:

- Each sector of 512 bytes of a file has, after the crash, any of the contents that it had since the file was last
  synced, whatever other sectors have. Where bytes were being stored, it may be a mixture, cut at 8 bytes.
- A file has any of the sizes since then. What was cut off, punched or reserved belongs to the size: a sector shows what
  it held before its file was cut only while the cut has not happened.
- Names change in the order in which they were changed: in one order for all folders, as the journals of ext4 and XFS
  keep it, or in one for each folder, or for each name. A folder's sync makes its names last; a file's sync does not
  make its own name last. A renaming has happened or not.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from ..system_calls import Event, Kind

SECTOR = 512
WORD = 8
PAGE_SECTORS = 8
_ZEROS = bytes(SECTOR)


class Version(NamedTuple):
    """A sector from event `at` on. `cut`: whatever it held before is gone once its file's size is that of `at`."""

    at: int
    data: bytes
    cut: bool = False
    torn: bool = True


class File:
    """An inode: what of it is on the drive for sure, and what may be."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.durable = bytearray()
        self.current = bytearray()
        self.pending: dict[int, list[Version]] = {}
        self.sizes: list[tuple[int, int]] = [(-1, 0)]  # since the last sync: (event, size); the first one is durable
        self.used = 0  # all behind it is zero, in every version
        self._clean: tuple[int, bytes, int] | None = None

    @property
    def unsettled(self) -> bool:
        """Whether it has more than one state."""
        return bool(self.pending) or len(self.sizes) > 1

    def write(self, at: int, position: int, data: bytes, *, grows: bool, torn: bool = True) -> None:
        """Bytes that were written, or stored through a mapping (then the file does not grow)."""
        end = position + len(data)
        if grows:
            self.resize(at, max(end, len(self.current)))
        else:
            data = data[: max(0, len(self.current) - position)]
            end = position + len(data)
        if not data:
            return
        self.used = max(self.used, position + len(data.rstrip(b"\0")))
        for sector in self._changed(position, data):
            self._put(at, sector, position, data, torn)
        self.current[position:end] = data

    def _changed(self, position: int, data: bytes) -> list[int]:
        """The sectors that the bytes change."""
        new = np.frombuffer(data, np.uint8)
        old = np.frombuffer(self.current, np.uint8, len(data), position)
        places = np.flatnonzero(new != old)
        if len(places) == 0:
            return []
        sectors: list[int] = np.unique((places + position) // SECTOR).tolist()
        return sectors

    def _put(self, at: int, sector: int, position: int, data: bytes, torn: bool) -> None:
        start = sector * SECTOR
        made = bytearray(self.current[start : start + SECTOR].ljust(SECTOR, b"\0"))
        low, high = max(start, position), min(start + SECTOR, position + len(data))
        made[low - start : high - start] = data[low - position : high - position]
        self._versions(sector).append(Version(at, bytes(made), torn=torn))

    def _versions(self, sector: int) -> list[Version]:
        found = self.pending.get(sector)
        if found is None:
            durable = bytes(self.durable[sector * SECTOR : sector * SECTOR + SECTOR].ljust(SECTOR, b"\0"))
            found = self.pending[sector] = [Version(-1, durable)]
        return found

    def resize(self, at: int, size: int) -> None:
        """A longer file has zeros behind its old end; a shorter one loses what is behind the new one."""
        if size == len(self.current):
            return
        if size < len(self.current):
            self._wipe(at, size, len(self.current))
            del self.current[size:]
        else:
            self.current.extend(bytes(size - len(self.current)))
        self.sizes.append((at, size))

    def zero(self, at: int, position: int, size: int) -> None:
        """A range that reads as zeros from now on."""
        self.resize(at, max(position + size, len(self.current)))
        self._wipe(at, position, position + size)
        self.current[position : position + size] = bytes(size)
        if self.sizes[-1][0] != at:
            self.sizes.append((at, len(self.current)))  # it is in the file system's journal, as a size is

    def _wipe(self, at: int, start: int, end: int) -> None:
        end = min(end, (self.used + SECTOR - 1) // SECTOR * SECTOR)
        if start >= end:
            return
        for sector in self._changed(start, bytes(min(end, len(self.current)) - start)):
            if start <= sector * SECTOR:
                self._versions(sector).append(Version(at, _ZEROS, cut=True, torn=False))
            else:
                self._put(at, sector, start, bytes(end - start), torn=False)

    def sync(self) -> None:
        """What the file is now is on the drive."""
        grown = len(self.current) - len(self.durable)
        if grown > 0:
            self.durable.extend(bytes(grown))
        for sector in self.pending:
            start = sector * SECTOR
            self.durable[start : start + SECTOR] = self.current[start : start + SECTOR]
        del self.durable[len(self.current) :]
        self.pending.clear()
        self.sizes = [(-1, len(self.current))]
        self._clean = None

    def settled(self) -> tuple[int, bytes, int]:
        """Size, content up to the zeros at its end and its digest, where there is one state."""
        if self._clean is None:
            content = bytes(self.durable[: self.used]).rstrip(b"\0")
            self._clean = (len(self.durable), content, xxhash.xxh3_64_intdigest(content))
        return self._clean


class Choice(NamedTuple):
    """How the state of a file is drawn."""

    size: Callable[[File], int]  # an index into its sizes
    version: Callable[[File, int, list[Version]], int]  # of a sector: an index into the versions that it may have
    torn: float = 0.0


class Image(NamedTuple):
    """A file after the crash: its size, and its content up to the zeros at its end."""

    path: str
    size: int
    content: bytes


class State(NamedTuple):
    """The drive after the crash."""

    folders: list[str]
    files: list[Image]
    digest: int
    style: str

    def write(self, target: Path) -> None:
        """Makes it, in an empty folder that is there."""
        for folder in self.folders:
            (target / folder).mkdir()
        for path, size, content in self.files:
            with (target / path).open("wb", buffering=0) as file:
                if content:
                    file.write(content)
                if size != len(content):
                    file.truncate(size)


@dataclasses.dataclass
class _Change:
    """A change of names that may be lost: it moves a node from one place to another; None: from or to nowhere."""

    at: int
    source: tuple[int, str] | None
    target: tuple[int, str] | None
    node: int
    places: tuple[tuple[int, str], ...]


_FOLDERS_FROM = 1 << 62  # nodes from here on are folders: they have numbers of their own


class Names:
    """All folders: node numbers by name, as they are on the drive for sure, and the changes that may be."""

    def __init__(self) -> None:
        self._next = itertools.count(_FOLDERS_FROM + 1)
        self.root = _FOLDERS_FROM
        self.current: dict[int, dict[str, int]] = {self.root: {}}
        self.durable: dict[int, dict[str, int]] = {self.root: {}}
        self.pending: list[_Change] = []
        self.synced_at = -1  # the last change that some folder's sync made durable

    def _place(self, path: str) -> tuple[int, str]:
        folder = self.root
        *parents, name = path.split("/")
        for parent in parents:
            folder = self.current[folder][parent]
        return folder, name

    def node(self, path: str) -> int:
        """Who has a name now."""
        if not path:
            return self.root
        folder, name = self._place(path)
        return self.current[folder][name]

    def add(self, at: int, path: str, inode: int | None) -> None:
        """A new file, or a folder (no inode)."""
        place = self._place(path)
        node = next(self._next) if inode is None else inode
        if inode is None:
            self.current[node] = {}
        self._change(_Change(at, None, place, node, (place,)))

    def remove(self, at: int, path: str) -> None:
        """A name goes."""
        place = self._place(path)
        self._change(_Change(at, place, None, self.node(path), (place,)))

    def move(self, at: int, path: str, other: str) -> None:
        """A name is replaced by another, which may have been somebody's."""
        source, target = self._place(path), self._place(other)
        self._change(_Change(at, source, target, self.node(path), (source, target)))

    def _change(self, change: _Change) -> None:
        _apply(self.current, change)
        self.pending.append(change)

    def sync(self, path: str) -> None:
        """The names in a folder are on the drive."""
        folder = self.node(path)
        kept = []
        for change in self.pending:
            if any(place[0] == folder for place in change.places):
                _apply(self.durable, change)
                self.synced_at = change.at
            else:
                kept.append(change)
        self.pending = kept

    def grown(self, kept: Callable[[list[_Change]], list[_Change]]) -> Iterator[tuple[str, int]]:
        """The tree with some changes made: (path, node), folders before what is in them."""
        changes = kept(self.pending)
        tree = self.durable
        if changes:
            tree = {folder: dict(names) for folder, names in tree.items()}
            for change in changes:
                _apply(tree, change)
        return self._walk(tree, self.root, "")

    def _walk(self, tree: dict[int, dict[str, int]], folder: int, prefix: str) -> Iterator[tuple[str, int]]:
        for name, node in tree.get(folder, {}).items():
            yield prefix + name, node
            if node >= _FOLDERS_FROM:
                yield from self._walk(tree, node, f"{prefix}{name}/")


def _apply(tree: dict[int, dict[str, int]], change: _Change) -> None:
    if change.source is not None:
        names = tree.setdefault(change.source[0], {})
        if names.get(change.source[1]) == change.node:
            del names[change.source[1]]
    if change.target is not None:
        tree.setdefault(change.target[0], {})[change.target[1]] = change.node


# ---- the orders in which names may change -------------------------------------------------------------------------


def _one_order(chance: random.Random, synced_at: int, changes: list[_Change]) -> list[_Change]:
    """Of all folders: what lies before a change that is durable has happened."""
    least = sum(change.at <= synced_at for change in changes)
    return changes[: chance.randint(least, len(changes))]


def _orders_of_folders(chance: random.Random, changes: list[_Change]) -> list[_Change]:
    return _prefixes(chance, changes, lambda place: place[0])


def _orders_of_names(chance: random.Random, changes: list[_Change]) -> list[_Change]:
    return _prefixes(chance, changes, lambda place: place)


def _prefixes(chance: random.Random, changes: list[_Change], key: Callable[[tuple[int, str]], object]) -> list[_Change]:
    """Some first changes of each group: those that have a key in common are one."""
    group: dict[object, object] = {}

    def find(member: object) -> object:
        while (parent := group.setdefault(member, member)) != member:
            member = parent
        return member

    for change in changes:
        for place in change.places[1:]:
            group[find(key(place))] = find(key(change.places[0]))
    members: dict[object, list[_Change]] = {}
    for change in changes:
        members.setdefault(find(key(change.places[0])), []).append(change)
    bias = chance.choice([0.0, 0.5, 1.0, 0.5])
    kept = []
    for of_group in members.values():
        draw = chance.random()
        count = chance.randint(0, len(of_group))
        if draw < bias * 0.6:
            count = len(of_group)
        elif draw > 0.4 + bias * 0.6:
            count = 0
        kept += of_group[:count]
    return sorted(kept, key=lambda change: change.at)


# ---- the drive ----------------------------------------------------------------------------------------------------


class Disk:
    """All files and names below a folder, event by event."""

    def __init__(self) -> None:
        self.names = Names()
        self.files: dict[int, File] = {}
        self.at = -1

    def take(self, event: Event) -> None:
        """The next event. What is written to a file without a name here counts for nothing."""
        self.at += 1
        kind, at = event.kind, self.at
        if kind is Kind.CREATE:
            self.files[event.inode] = File(event.inode)
            self.names.add(at, event.path, event.inode)
        elif kind is Kind.MKDIR:
            self.names.add(at, event.path, None)
        elif kind is Kind.RENAME:
            self.names.move(at, event.path, event.data.decode())
        elif kind in (Kind.UNLINK, Kind.RMDIR):
            self.names.remove(at, event.path)
        elif kind is Kind.SYNC_FOLDER:
            self.names.sync(event.path)
        elif event.inode in self.files:
            self._change(self.files[event.inode], event)

    def _change(self, file: File, event: Event) -> None:
        kind, at = event.kind, self.at
        if kind is Kind.WRITE:
            file.write(at, event.position, event.data, grows=True)
        elif kind is Kind.STORE:
            file.write(at, event.position, event.data, grows=False)
        elif kind is Kind.TRUNCATE:
            file.resize(at, event.size)
        elif kind is Kind.ALLOCATE:
            file.resize(at, max(len(file.current), event.position + event.size))
        elif kind is Kind.ZERO:
            file.zero(at, event.position, event.size)
        elif kind in (Kind.SYNC, Kind.SYNC_DATA):
            file.sync()

    @classmethod
    def of_folder(cls, root: Path) -> Disk:
        """Files that are there when a recording begins: all of it is on the drive."""
        disk = cls()
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if path.is_dir():
                disk.names.add(-1, name, None)
                continue
            inode = path.stat().st_ino
            disk.names.add(-1, name, inode)
            disk.files[inode] = file = File(inode)
            file.write(-1, 0, path.read_bytes(), grows=True)
        disk.settle()
        return disk

    def settle(self) -> None:
        """All of it is on the drive."""
        for file in self.files.values():
            file.sync()
        for change in self.names.pending:
            _apply(self.names.durable, change)
        self.names.pending.clear()

    # ---- states ----

    def lose_power(self, chance: random.Random, style: Style | None = None) -> State:
        """One of the states in which the drive may be now; drawn in a style of those below."""
        style = chance.choice(_STYLES) if style is None else style
        choice = style(self, chance)
        names, order = self._order_of_names(chance, style)
        folders, files = [], []
        digest = xxhash.xxh3_64()
        for path, node in self.names.grown(order):
            digest.update(path.encode())
            if node >= _FOLDERS_FROM:
                folders.append(path)
                continue
            file = self.files[node]
            size, content, own = self._draw(file, choice, chance) if file.unsettled else file.settled()
            files.append(Image(path, size, content))
            digest.update(b"%d %d" % (size, own))
        return State(folders, files, digest.intdigest(), f"{style.__name__}, {names}")

    def _order_of_names(
        self, chance: random.Random, style: Style
    ) -> tuple[str, Callable[[list[_Change]], list[_Change]]]:
        if style is nothing_more:
            return "none", lambda changes: []
        draw = chance.random()
        if draw < 0.35:
            return "all", lambda changes: changes
        if draw < 0.6:
            return "in one order", lambda changes: _one_order(chance, self.names.synced_at, changes)
        if draw < 0.85:
            return "in an order for each folder", lambda changes: _orders_of_folders(chance, changes)
        if draw < 0.95:
            return "in an order for each name", lambda changes: _orders_of_names(chance, changes)
        return "none", lambda changes: []

    @staticmethod
    def _draw(file: File, choice: Choice, chance: random.Random) -> tuple[int, bytes, int]:
        at, size = file.sizes[choice.size(file)]
        made = file.durable[: file.used].ljust(file.used, b"\0")
        if len(made) > len(file.durable):
            made[len(file.durable) :] = bytes(len(made) - len(file.durable))
        for sector, versions in file.pending.items():
            start = sector * SECTOR
            if start >= size:
                continue
            possible = _possible(versions, at)
            number = choice.version(file, sector, possible) if len(possible) > 1 else 0
            data = possible[number].data
            if choice.torn and number + 1 < len(possible) and chance.random() < choice.torn:
                data = _tear(data, possible[number + 1].data, chance)
            made[start : start + SECTOR] = data
        del made[size:]
        content = bytes(made).rstrip(b"\0")
        return size, content, xxhash.xxh3_64_intdigest(content)


def _possible(versions: list[Version], at: int) -> list[Version]:
    """What a sector may hold in a file whose size is that of event `at`."""
    first, end = 0, len(versions)
    for number, version in enumerate(versions):
        if version.cut and version.at <= at:
            first = number
        elif version.cut:
            end = min(end, number)
    return versions[first:end] if end > first else versions[first : first + 1]


def _tear(old: bytes, new: bytes, chance: random.Random) -> bytes:
    """Words of both: those that are stored together reach the drive together or not."""
    if chance.random() < 0.5:
        cut = chance.randrange(1, SECTOR // WORD) * WORD
        return new[:cut] + old[cut:] if chance.random() < 0.7 else old[:cut] + new[cut:]
    words = [chance.random() < 0.5 for _ in range(SECTOR // WORD)]
    return b"".join((new if taken else old)[number * WORD : number * WORD + WORD] for number, taken in enumerate(words))


Style = Callable[[Disk, random.Random], Choice]

# ---- how states are drawn -----------------------------------------------------------------------------------------


def _first_size(file: File) -> int:
    return 0


def _last_size(file: File) -> int:
    return len(file.sizes) - 1


def _oldest(file: File, sector: int, versions: list[Version]) -> int:
    return 0


def _newest(file: File, sector: int, versions: list[Version]) -> int:
    return len(versions) - 1


def _some_size(chance: random.Random) -> Callable[[File], int]:
    """Mostly the newest: without it nothing of what is behind counts."""
    return lambda file: len(file.sizes) - 1 if chance.random() < 0.8 else chance.randrange(len(file.sizes))


def nothing_more(disk: Disk, chance: random.Random) -> Choice:
    """Than what was synced."""
    return Choice(_first_size, _oldest)


def all_of_it(disk: Disk, chance: random.Random) -> Choice:
    return Choice(_last_size, _newest)


def some_sectors(disk: Disk, chance: random.Random) -> Choice:
    """Each sector is the newest with one probability, else any."""
    keep = chance.choice([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
    torn = chance.choice([0.0, 0.0, 0.1, 0.5])

    def version(file: File, sector: int, versions: list[Version]) -> int:
        return len(versions) - 1 if chance.random() < keep else chance.randrange(len(versions) - 1)

    return Choice(_some_size(chance), version, torn)


def some_pages(disk: Disk, chance: random.Random) -> Choice:
    """The sectors of a page share their fate."""
    keep = chance.choice([0.1, 0.5, 0.9])
    kept: dict[tuple[int, int], float] = {}

    def version(file: File, sector: int, versions: list[Version]) -> int:
        page = (file.inode, sector // PAGE_SECTORS)
        draw = kept.setdefault(page, 1.0 if chance.random() < keep else chance.choice([0.0, chance.random()]))
        return int(draw * (len(versions) - 1) + 0.5)

    return Choice(_some_size(chance), version)


def up_to_a_moment(disk: Disk, chance: random.Random) -> Choice:
    """All that was done before it, and nothing behind it but a little."""
    oldest = min((file.sizes[1][0] for file in disk.files.values() if len(file.sizes) > 1), default=disk.at)
    for file in disk.files.values():
        oldest = min([oldest, *(versions[1].at for versions in file.pending.values() if len(versions) > 1)])
    moment = chance.randint(min(oldest, disk.at), disk.at)
    more = chance.choice([0.0, 0.0, 0.05])

    def size(file: File) -> int:
        return max(number for number, (at, _) in enumerate(file.sizes) if at <= moment or number == 0)

    def version(file: File, sector: int, versions: list[Version]) -> int:
        if chance.random() < more:
            return chance.randrange(len(versions))
        return max((number for number, known in enumerate(versions) if known.at <= moment), default=0)

    return Choice(size, version, chance.choice([0.0, 0.1]))


def each_file_by_itself(disk: Disk, chance: random.Random) -> Choice:
    """One is as it was synced, another has all, the next a part."""
    fates: dict[int, float] = {}

    def fate(file: File) -> float:
        return fates.setdefault(file.inode, chance.choice([0.0, 0.0, 1.0, 1.0, 0.5, 0.9]))

    def size(file: File) -> int:
        return 0 if fate(file) == 0.0 else len(file.sizes) - 1

    def version(file: File, sector: int, versions: list[Version]) -> int:
        return len(versions) - 1 if chance.random() < fate(file) else 0

    return Choice(size, version)


def one_file_lost(disk: Disk, chance: random.Random) -> Choice:
    return _one_file(disk, chance, lost=True)


def one_file_kept(disk: Disk, chance: random.Random) -> Choice:
    return _one_file(disk, chance, lost=False)


def _one_file(disk: Disk, chance: random.Random, *, lost: bool) -> Choice:
    unsettled = [file.inode for file in disk.files.values() if file.unsettled]
    chosen = chance.choice(unsettled) if unsettled else -1

    def size(file: File) -> int:
        return 0 if (file.inode == chosen) == lost else len(file.sizes) - 1

    def version(file: File, sector: int, versions: list[Version]) -> int:
        return 0 if (file.inode == chosen) == lost else len(versions) - 1

    return Choice(size, version)


def one_sector_lost(disk: Disk, chance: random.Random) -> Choice:
    return _one_sector(disk, chance, lost=True)


def one_sector_kept(disk: Disk, chance: random.Random) -> Choice:
    return _one_sector(disk, chance, lost=False)


def _one_sector(disk: Disk, chance: random.Random, *, lost: bool) -> Choice:
    unsettled = [file for file in disk.files.values() if file.pending]
    file = chance.choice(unsettled) if unsettled else None
    chosen = (-1, -1) if file is None else (file.inode, chance.choice(list(file.pending)))

    def version(file: File, sector: int, versions: list[Version]) -> int:
        if ((file.inode, sector) == chosen) == lost:
            return chance.randrange(len(versions) - 1) if lost else 0
        return len(versions) - 1

    return Choice(_last_size, version)


def the_end_without_the_middle(disk: Disk, chance: random.Random) -> Choice:
    """What was written last came first."""
    share = chance.random()
    ranks: dict[int, list[int]] = {}

    def version(file: File, sector: int, versions: list[Version]) -> int:
        sectors = ranks.setdefault(file.inode, sorted(file.pending))
        return len(versions) - 1 if sector >= sectors[int(share * (len(sectors) - 1))] else 0

    return Choice(_last_size, version)


_STYLES: tuple[Style, ...] = (
    nothing_more,
    all_of_it,
    some_sectors, some_sectors, some_sectors, some_sectors,
    some_pages, some_pages,
    up_to_a_moment, up_to_a_moment,
    each_file_by_itself, each_file_by_itself,
    one_file_lost, one_file_kept,
    one_sector_lost, one_sector_lost, one_sector_kept,
    the_end_without_the_middle, the_end_without_the_middle,
)  # fmt: skip
