"""Row groups of objects, fetched by ranges: through a cache on the disk, several at once, ahead of who reads them."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import pyarrow as pa
import xxhash

from streamcore.errors import CorruptionError, StreamcoreError
from streamcore.tier.cache import Cache
from streamcore.tier.manifest import Entry
from streamcore.tier.objects import Objects
from streamcore.tier.parquet import POOL, Footer

_Made = TypeVar("_Made")
AT_ONCE = 2  # are fetched and decoded
_BEGUN = 3  # so that there is one to do while the others are waited for
_FOOTERS_MAX = 256
_MEMORY_BYTES = 16 << 20  # of row groups that were read and may be read again
_GUESSED_BYTES = 8 << 20  # of one that is not there yet
_RELEASED_EVERY = 4  # row groups: taking memory anew costs time
_FOOTER = "footer"


class Piece(NamedTuple):
    """Columns of a row group of an object."""

    entry: Entry
    path: str
    number: int
    columns: tuple[str, ...]

    @property
    def key(self) -> tuple[str, int, tuple[str, ...]]:
        """What tells it from others."""
        return self.entry.name, self.number, self.columns


class RowGroups:
    """Fetches row groups, and keeps some of them in memory. Any thread may use it."""

    def __init__(self, objects: Objects, cache: Cache | None) -> None:
        self._objects = objects
        self._cache = cache
        self._lock = threading.Lock()
        self._reads = itertools.count(1)
        self._pool: ThreadPoolExecutor | None = None
        self._footers: collections.OrderedDict[str, Footer] = collections.OrderedDict()
        self._held: collections.OrderedDict[tuple[str, int, tuple[str, ...]], Future[pa.Table]] = (
            collections.OrderedDict()
        )

    def footer(self, entry: Entry, path: str) -> Footer:
        """The footer of an object: one request, once."""
        with self._lock:
            found = self._footers.get(entry.name)
            if found is not None:
                self._footers.move_to_end(entry.name)
                return found
        start, url = entry.size - entry.footer_bytes, self._objects.url_of(path)

        def checked(found: dict[int, memoryview]) -> Footer:
            if xxhash.xxh3_128_hexdigest(found[start]) != entry.footer_digest:
                raise CorruptionError("the end of the object is not what was put there", url)
            return Footer(found[start], url)

        made = self._made(entry, path, _FOOTER, [(start, entry.size)], checked)
        with self._lock:
            self._footers[entry.name] = made
            if len(self._footers) > _FOOTERS_MAX:
                self._footers.popitem(last=False)
        return made

    def begin_footer(self, entry: Entry, path: str) -> Future[Footer]:
        """Has the footer of an object fetched. Its result may raise TierError, CorruptionError."""
        with self._lock:
            found = self._footers.get(entry.name)
            if found is None:
                return self._workers().submit(self.footer, entry, path)
        known: Future[Footer] = Future()
        known.set_result(found)
        return known

    def begin(self, piece: Piece) -> Future[pa.Table]:
        """Has a row group fetched, or what was fetched before. Its result may raise TierError, CorruptionError."""
        with self._lock:
            found = self._held.get(piece.key)
            if found is not None and not (found.done() and (found.cancelled() or found.exception() is not None)):
                self._held.move_to_end(piece.key)
                return found
            future = self._workers().submit(self._read, piece)
            self._held[piece.key] = future
            self._drop_old()
        return future

    def close(self) -> None:
        """Fetches nothing any more."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._held.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _workers(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(AT_ONCE, "streamcore-tier")
        return self._pool

    def _drop_old(self) -> None:
        size = 0
        for key in reversed(list(self._held)):
            future = self._held[key]
            done = future.done() and not future.cancelled() and future.exception() is None
            size += future.result().nbytes if done else _GUESSED_BYTES
            if size > _MEMORY_BYTES and len(self._held) > AT_ONCE and future.done():
                del self._held[key]

    def _read(self, piece: Piece) -> pa.Table:
        footer = self.footer(piece.entry, piece.path)
        ranges = footer.ranges(piece.number, piece.columns)
        read = functools.partial(footer.read, piece.number, piece.columns)
        try:
            return self._made(piece.entry, piece.path, _name_of(piece), ranges, read)
        finally:  # of this thread: what decoding took and gave back stays with it otherwise, some 50 MB
            if POOL is None and next(self._reads) % _RELEASED_EVERY == 0:
                pa.default_memory_pool().release_unused()

    def _made(
        self,
        entry: Entry,
        path: str,
        name: str,
        ranges: Sequence[tuple[int, int]],
        make: Callable[[dict[int, memoryview]], _Made],
    ) -> _Made:
        """What `make` makes of some ranges of an object, from the cache or fetched. What it refuses is not kept."""
        known = None if self._cache is None else self._cache.get(entry.digest, name)
        if known is not None and all(start in known for start, _ in ranges):
            return make({start: memoryview(data) for start, data in known.items()})
        data = self._objects.get_ranges(path, ranges)
        found = {start: memoryview(piece) for (start, _), piece in zip(ranges, data, strict=True)}
        made = make(found)
        if self._cache is not None:
            self._cache.put(entry.digest, name, found)
        return made


def _name_of(piece: Piece) -> str:
    """A file name for some columns of a row group."""
    return f"{piece.number}-{xxhash.xxh3_64_hexdigest(chr(0).join(piece.columns).encode())}"


def wait_for(planned: Future[Footer]) -> None:
    """Until it is there, or never will be: whoever asks for it then is told why."""
    with contextlib.suppress(CancelledError):
        planned.exception()


def ahead(
    pieces: Iterable[Piece | Future[Footer]], begin: Callable[[Piece], Future[pa.Table]], depth: int = _BEGUN
) -> Iterator[tuple[Piece, pa.Table]]:
    """Pieces in their order, of which `depth` are fetched at once.

    pieces: with what must be known before the next one can be named; it is waited for when there is nothing else to
    do. What was begun comes before an error of that.
    """
    running: collections.deque[tuple[Piece, Future[pa.Table]]] = collections.deque()
    waiting = iter(pieces)
    failure: Exception | None = None

    def fill(*, wait: bool) -> None:
        nonlocal failure
        try:
            while len(running) < depth and (planned := next(waiting, None)) is not None:
                if isinstance(planned, Piece):
                    running.append((planned, begin(planned)))
                elif running or not wait:
                    return
                else:
                    wait_for(planned)
        except Exception as error:
            failure = error

    while True:
        fill(wait=True)
        if not running:
            break
        piece, future = running.popleft()
        try:
            table = future.result()
        except CancelledError:
            raise StreamcoreError("the store was closed, or given another tier, while this was read") from None
        fill(wait=False)
        yield piece, table
    if failure is not None:
        raise failure
