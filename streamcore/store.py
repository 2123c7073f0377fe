"""A store: a directory with a catalog and topics."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import difflib
import logging
import os
import re
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, Unpack

import pyarrow as pa
import xxhash

from streamcore import _core
from streamcore import schema as schemas
from streamcore.catalog import Catalog, TopicRow, topic_folder
from streamcore.config import TopicConfig, TopicSettings, check_durability, check_partitions, check_topic_name
from streamcore.errors import (
    CorruptionError,
    GroupError,
    StorageError,
    StoreFormatError,
    StoreReadOnlyError,
    StreamcoreError,
    TopicNotFoundError,
)
from streamcore.files import open_file
from streamcore.flusher import Flusher
from streamcore.folders import (
    DELETED_PREFIX,
    Mode,
    make_topic_folder,
    prepare_folder,
    remove_folder,
    remove_topic_folder,
)
from streamcore.maintenance import TASKS, Maintenance, Run
from streamcore.topic import Topic
from streamcore.topic_handle import TopicHandle

if TYPE_CHECKING:
    from streamcore.consumer import Consumer
    from streamcore.consumer_config import Isolation, Start
    from streamcore.consuming import Consuming
    from streamcore.groups import Group
    from streamcore.producer import Producer
    from streamcore.rebalancing import Callback
    from streamcore.stats import StoreStats
    from streamcore.tier.tier import Tier
    from streamcore.transactions import Coordinator, Transaction

MAINTENANCE_INTERVAL_S = 30.0
_DIGEST_CHUNK = 4 << 20
_DAMAGED_JOURNAL = "journal.damaged"

_log = logging.getLogger("streamcore")
_log.addHandler(logging.NullHandler())  # quiet, unless the program wants to hear


class Problem(NamedTuple):
    """Something wrong in a store: in which file, from which record offset, at which byte."""

    path: str
    offset: int | None
    position: int | None
    message: str


class Digest(NamedTuple):
    """The XXH3-128 digest (hex) of a segment's written bytes."""

    path: str
    size_bytes: int
    xxh3_128: str


def open(
    path: str | os.PathLike[str],
    mode: Mode = "rw",
    durability: Literal["os", "disk"] = "os",
    *,
    maintenance: bool = True,
    tier: str | None = None,
    tier_options: Mapping[str, Any] | None = None,
) -> Store:
    """Opens the store in a directory; with mode "rw" makes it when absent. Mode "r" never writes a byte.

    durability: of appends that say nothing else, on topics that say nothing else: "os" survives any crash of the
    process and is flushed in the background within a second, "disk" returns when the drive has it.
    maintenance: whether a thread of this process takes part in the background work, every 30 s, once the store is
    appended to or consumed from; `Store.maintain` does it in any case.
    tier: where old segments are kept of topics that are tiered: "s3://bucket/prefix", or gs, az, file or memory; it is
    kept in the catalog. tier_options: what it takes to get there, of this process alone; see `Store.set_tier`.

    Raises StorageError (no such directory, no permission, not a directory) and StoreFormatError.
    """
    return Store(path, mode, durability, maintenance=maintenance, tier=tier, tier_options=tier_options)


class Store:
    """An open store. Any thread may use it; a forked child must open its own. A context manager."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: Mode = "rw",
        durability: Literal["os", "disk"] = "os",
        *,
        maintenance: bool = True,
        tier: str | None = None,
        tier_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.closed = True
        if mode not in ("r", "rw"):
            raise ValueError(f"mode is {mode!r}; 'r' or 'rw' is allowed")
        if isinstance(path, bytes) or not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path is {type(path).__name__}; str or os.PathLike is needed")
        if not os.fspath(path) or "\0" in os.fspath(path):  # an empty one would be the working directory
            raise ValueError(f"path is {os.fspath(path)!r}; the path of a directory is needed")
        self.path = Path(path).absolute()  # the working directory may change
        self.mode: Mode = mode
        self.durability = check_durability(durability)
        self.lock = threading.RLock()
        self._closing = threading.RLock()
        self._pid = os.getpid()
        self._topics: dict[str, Topic] = {}
        self._forgotten: weakref.WeakSet[Topic] = weakref.WeakSet()
        prepare_folder(self.path, mode)
        self.catalog = Catalog(self.path, mode == "rw")
        if mode == "rw":
            self._remove_what_was_left()
        self.journal = self._open_journal() if mode == "rw" else None
        self._flusher = Flusher(self.journal)
        self._coordinator: Coordinator | None = None
        self._consuming: Consuming | None = None
        self._maintenance = Maintenance(self, TASKS, MAINTENANCE_INTERVAL_S if maintenance else None)
        self._producers: set[Producer] = set()
        self._tier: Tier | None = None
        self._tier_options = dict(tier_options or {})
        self._knows_tier = mode == "rw" and "tier" not in self.catalog.tables  # saves asking for it
        self._when_closed: list[Callable[[], None]] = []
        self.closed = False
        _open_stores.add(self)
        if tier is not None:
            self._take_tier(tier)
        if mode == "rw":
            self._finish_what_was_left()

    def _open_journal(self) -> _core.Journal:
        """Before any topic is opened: what was durable in the journal alone comes into the segments."""
        try:
            journal = _core.Journal(bytes(self.path))
        except BaseException:
            self.catalog.close()
            raise
        damage = journal.damage()
        if damage is not None:
            _log.error("%s (file %s, position %d)", damage[1], self.path / _DAMAGED_JOURNAL, damage[0])
        return journal

    # ---- topics ----

    def create_topic(
        self, name: str, partitions: int = 1, schema: Any = None, **settings: Unpack[TopicSettings]
    ) -> Topic:
        """Makes a topic. With `schema` (anything with `__arrow_c_schema__`) it is typed.

        settings: retention_ms, retention_bytes, cleanup, delete_retention_ms, min_compaction_lag_ms, compression,
        timestamp_type, segment_bytes, segment_ms, max_record_bytes, durability, tier, local_retention_ms,
        local_retention_bytes, tier_key_filter, tier_iceberg: see TopicConfig.
        Raises TopicExistsError, ValueError, TypeError.
        """
        self._check_writable()
        check_topic_name(name)
        check_partitions(partitions)
        config = TopicConfig().changed(settings)
        user = None if schema is None else schemas.checked_user_schema(schema)
        self.check_tiered(config, user)
        topic_id = uuid.uuid4().hex[:16]
        row = TopicRow(
            id=topic_id,
            name=name,
            folder=topic_folder(name, topic_id),
            partitions=partitions,
            config=dataclasses.asdict(config),
            generation=1,
            mixed=config.compression != "none",
            schemas={1: schemas.make_version(topic_id, 1, user).message},
        )
        topic = Topic(self, row)
        try:
            self.catalog.add_topic(row, partial(make_topic_folder, self.path, row.folder))
        except BaseException:
            with contextlib.suppress(OSError):
                (self.path / "topics" / row.folder).rmdir()
            raise
        with self.lock:
            self._topics[row.id] = topic
        topic.open()  # makes its state file: readers that come before the first append wait on it
        self.topics_changed()
        return topic

    def topic(self, name: str) -> Topic:
        """The topic of this name. Raises TopicNotFoundError, which suggests close names."""
        self.check_open()
        row = self.catalog.topic(check_topic_name(name))
        if row is None:
            raise TopicNotFoundError(self._missing(name))
        return self._topic_of(row)

    def topic_with_id(self, topic_id: str) -> Topic | None:
        """The topic with this id; None when there is none any more."""
        self.check_open()
        row = self.catalog.topic_by_id(topic_id)
        return None if row is None else self._topic_of(row)

    def _topic_of(self, row: TopicRow) -> Topic:
        with self.lock:
            known = self._topics.get(row.id)
            if known is None:
                known = self._topics[row.id] = Topic(self, row)
            known.take_row(row)
            return known

    def _missing(self, name: str) -> str:
        names = [row.name for row in self.catalog.topics()]
        close = difflib.get_close_matches(name, names, 3)
        if close:
            return f"there is no topic {name!r}; did you mean {' or '.join(map(repr, close))}?"
        return f"there is no topic {name!r}; there are {', '.join(map(repr, names[:20])) or 'none'}"

    def topics(self) -> list[Topic]:
        """All topics, by name."""
        self.check_open()
        with self.lock:
            known = set(self._topics)  # before the catalog is read: one that is made meanwhile is not deleted
        rows = self.catalog.topics()
        for topic_id in known - {row.id for row in rows}:
            self.forget(topic_id)
        return [self._topic_of(row) for row in rows]

    def forget(self, topic_id: str) -> None:
        """Keeps a topic no longer that was deleted, by whomever: it stays open while somebody reads it."""
        with self.lock:
            topic = self._topics.pop(topic_id, None)
            if topic is not None:
                self._forgotten.add(topic)

    def delete_topic(self, name: str) -> None:
        """Deletes a topic and its records, in the tier first; readers keep what they have mapped.

        Raises TopicNotFoundError, and TierError where the tier cannot be reached: nothing is deleted then.
        """
        self._check_writable()
        topic = self.topic(name)
        topic.open()
        if topic.cold is not None and self.tier is not None:
            from streamcore.tier import checks

            checks.delete_topic(self.tier, topic.cold)
        if not self.catalog.remove_topic(topic.id):
            raise TopicNotFoundError(self._missing(name))
        topic.close_core(deleted=True)
        self.forget(topic.id)
        if self.tier is not None:
            from streamcore.tier import kept

            kept.forget_copies(self.catalog, topic.id)
        remove_topic_folder(self.path, topic.folder)
        self.catalog.end_deletion(topic.folder)
        self.topics_changed()

    # ---- consumers and groups ----

    def consumer(
        self,
        topics: str | re.Pattern[str] | Sequence[str | re.Pattern[str]],
        group: str | None = None,
        start: Start = "earliest",
        isolation: Isolation = "committed",
        auto_commit: bool = False,
        member_timeout_ms: int = 10_000,
        *,
        instance_id: str | None = None,
        auto_commit_interval_ms: int = 5_000,
        on_assigned: Callback | None = None,
        on_revoked: Callback | None = None,
        on_lost: Callback | None = None,
    ) -> Consumer:
        """A consumer of one or several topics, alone or as a member of a group, whose members share the partitions.

        topics: names, globs (`"clicks-*"`) or compiled patterns; topics that match later are picked up. group: its
        members read each record once between them, and go on where the group has committed. start: where to begin when
        nothing is committed, or, without a group, anyhow: "earliest", "latest" or an aware datetime; also when a
        position lies outside the log because records were deleted. isolation: "committed" passes over open and aborted
        transactions.
        auto_commit: every `auto_commit_interval_ms`, commit what the next request for records shows to be processed.
        member_timeout_ms: how long a member may give no sign of life; a thread gives it, however slow the caller is.
        instance_id: a static member (KIP-345): closing and coming back within the timeout causes no rebalance.
        on_assigned, on_revoked (before partitions are given up: commit there), on_lost (they are another's already):
        called with the consumer and a list of TopicPartition, in the thread that asks for records.

        Raises TopicNotFoundError, GroupError, StoreReadOnlyError, ValueError, TypeError.
        """
        from streamcore.consumer import Consumer

        self.check_open()
        if self.mode == "rw":
            self._maintenance.start()
        return Consumer(
            self,
            topics,
            group=group,
            start=start,
            isolation=isolation,
            auto_commit=auto_commit,
            member_timeout_ms=member_timeout_ms,
            instance_id=instance_id,
            auto_commit_interval_ms=auto_commit_interval_ms,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
            on_lost=on_lost,
        )

    def groups(self) -> list[Group]:
        """All consumer groups, by name."""
        from streamcore.groups import Group, group_names

        self.check_open()
        return [Group(self, name) for name in group_names(self.catalog)]

    def group(self, name: str, *, create: bool = False) -> Group:
        """The consumer group of this name; with `create` it is made when absent. Raises GroupError, with close
        names."""
        from streamcore import groups

        groups.check_group_name(name)
        if create:
            self._check_writable()
            groups.make_group(self.catalog, name)
        self.check_open()
        names = groups.group_names(self.catalog)
        if name not in names:
            raise GroupError(groups.missing(name, names))
        return groups.Group(self, name)

    @property
    def consuming(self) -> Consuming:
        """What the consumers of this store share; for modules of this package."""
        from streamcore.consuming import Consuming

        with self.lock:
            self.check_open()
            if self._consuming is None:
                self._consuming = Consuming(self)
            return self._consuming

    def topics_changed(self) -> None:
        """Tells the consumers of all processes that there are other topics or partitions."""
        from streamcore.consuming import raise_signal

        raise_signal(self.path)

    # ---- producers ----

    def producer(
        self,
        linger_ms: int = 5,
        batch_bytes: int = 1 << 20,
        buffer_bytes: int = 64 << 20,
        idempotent: bool = True,
        durability: Literal["os", "disk"] | None = None,
        transactional_id: str | None = None,
        max_block_ms: int = 60_000,
        delivery_timeout_ms: int = 120_000,
        transaction_timeout_ms: int = 60_000,
    ) -> Producer:
        """Makes a producer, which sends records one at a time: see Producer. Closing the store closes it.

        linger_ms: a batch is appended when it is this old; 0: as soon as the thread is free. batch_bytes: or this
        large, its records counted with 24 bytes each. buffer_bytes: memory for records that are not in the log yet;
        when it is in use, `send` waits, max_block_ms at most. idempotent: batches carry a producer id and sequences
        (KIP-98). durability: "os" or "disk"; None leaves it to the topic. delivery_timeout_ms: how long a batch is
        tried again that fails for a reason that may pass, from its first record on. transactional_id: records are sent
        in transactions, from begin_transaction to commit_transaction or abort_transaction; who begins one with the same
        id ends this producer's. transaction_timeout_ms: one that has not ended by then is aborted.
        """
        from streamcore.producer import Producer

        self._check_writable()
        made = Producer(
            self,
            linger_ms=linger_ms,
            batch_bytes=batch_bytes,
            buffer_bytes=buffer_bytes,
            idempotent=idempotent,
            durability=durability,
            transactional_id=transactional_id,
            max_block_ms=max_block_ms,
            delivery_timeout_ms=delivery_timeout_ms,
            transaction_timeout_ms=transaction_timeout_ms,
        )
        with self.lock:
            self.check_open()
            self._producers.add(made)
        return made

    def forget_producer(self, producer: Producer) -> None:
        """Called by a producer that was closed."""
        with self.lock:
            self._producers.discard(producer)

    # ---- checks ----

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Problem]:
        """Reads every byte of every topic and returns all problems; empty when the store is sound.

        progress(done bytes, total bytes) is called now and then.
        """
        self.check_open()
        problems = [Problem(str(self.catalog.path), None, None, message) for message in self.catalog.check()]
        damaged = self.path / _DAMAGED_JOURNAL
        if damaged.exists():
            lost = "the journal was found damaged: durable appends may be missing at the ends of logs"
            problems.append(Problem(str(damaged), None, None, lost))
        topics = self.topics()
        total = 0
        for topic in topics:
            try:
                total += sum(partition.size_bytes for partition in topic.partitions)
            except StreamcoreError:
                _log.debug("the size of %s is not known", topic.name, exc_info=True)
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            if progress is not None:
                progress(min(done, total), total)

        for topic in topics:
            problems += self._verify_topic(topic, count)
        if progress is not None:
            progress(total, total)  # what lies behind the last batch of a segment is no batch's
        return problems

    def _verify_topic(self, topic: Topic, count: Callable[[int], None]) -> list[Problem]:
        problems = []
        for partition in range(topic.partition_count):
            try:
                problems += [Problem(*found) for found in topic.verify_partition(partition, count)]
            except (CorruptionError, StorageError, StoreFormatError) as error:
                problems.append(
                    Problem(
                        getattr(error, "path", None) or str(self.path / "topics" / topic.folder),
                        getattr(error, "offset", None),
                        getattr(error, "position", None),
                        str(error),
                    )
                )
        return problems

    def digests(self) -> Iterator[Digest]:
        """The digest of each segment file, over what is written of it (not its preallocated end).

        A file that was cut short has the size and the digest of what is left. Raises StorageError where a file cannot
        be read.
        """
        self.check_open()
        for topic in self.topics():
            for segment in topic.segments():
                yield _digest_of(segment.path, segment.size_bytes)

    # ---- queries and settings ----

    def sql(self, query: str) -> pa.Table:
        """Answers a query in DuckDB's SQL, in which each topic is a table (needs the extra `sql`)."""
        self.check_open()
        _check_text(query, "query")
        from streamcore.sql import query as run

        return run(self, query)

    def get_setting(self, key: str, default: str | None = None) -> str | None:
        """A string that an application keeps in the store's catalog."""
        self.check_open()
        _check_text(key, "key")
        found = self.catalog.setting(key)
        return default if found is None else found

    def set_setting(self, key: str, value: str | None) -> None:
        """Keeps a string in the store's catalog, durably; None removes it."""
        self._check_writable()
        _check_text(key, "key")
        if value is not None:
            _check_text(value, "value")
        self.catalog.set_setting(key, value)

    # ---- transactions ----

    def transaction(
        self, transactional_id: str, timeout_ms: int = 60_000, durability: Literal["os", "disk"] | None = None
    ) -> Transaction:
        """Begins a transaction: appends to any topics, and consumer offsets, all of them or none. A context manager.

        It commits at the normal end of a with block and aborts when an exception leaves it. transactional_id: 1 to 249
        characters; a new transaction with the same id ends the one before it, which raises FencedError from then on.
        timeout_ms: a transaction that has not ended by then is aborted. durability: "disk": when `commit` returns, all
        of it survives a loss of power; default: the store's. See KIP-98.
        """
        self._check_writable()
        from streamcore.transactions import Transaction

        return Transaction(self, self.coordinator, transactional_id, timeout_ms, durability or self.durability)

    @property
    def coordinator(self) -> Coordinator:
        """Who keeps the transactions of this store in its catalog."""
        from streamcore.transactions import Coordinator

        with self.lock:
            if self._coordinator is None:
                self._coordinator = Coordinator(self)
            return self._coordinator

    def topic_by_id(self, topic_id: str) -> Topic | None:
        """The topic with this identity, None when it was deleted."""
        self.check_open()
        with self.lock:
            known = self._topics.get(topic_id)
        if known is not None:
            return known
        row = self.catalog.topic_by_id(topic_id)
        return None if row is None else self._topic_of(row)

    def _remove_what_was_left(self) -> None:
        """By processes that died while they made or deleted a topic."""
        topics = self.path / "topics"
        with contextlib.suppress(OSError, StorageError):  # the next one does it
            names = os.listdir(topics)  # noqa: PTH208  # quicker, and each open does it
            deleted = [name for name in names if name.startswith(DELETED_PREFIX)]
            for name in deleted:
                remove_folder(topics / name)
            if self.catalog.is_settled(len(names) - len(deleted)):
                return
            for folder in self.catalog.deletions():
                remove_topic_folder(self.path, folder)
                self.catalog.end_deletion(folder)
            self.catalog.remove_strangers(topics)

    def _finish_what_was_left(self) -> None:
        """Groups that are ahead of their logs go back; transactions are finished or, those of the dead, aborted."""
        tables = self.catalog.tables  # what others make from then on is of this start of the machine
        if "group_boot" in tables:
            from streamcore import groups

            try:
                groups.recover_offsets(self)  # before markers of transactions lengthen the logs
            except StreamcoreError as error:
                _log.warning("groups in %s could not be held against their logs: %s", self.path, error)
        if "transaction_boot" in tables:
            try:
                self.coordinator.recover()
            except StreamcoreError as error:  # a damaged partition must not keep a store from being opened
                _log.warning("transactions in %s could not be finished: %s", self.path, error)

    # ---- the tier ----

    @property
    def tier(self) -> Tier | None:
        """Where old segments of tiered topics are kept; None when the store has no tier."""
        if not self._knows_tier:
            self._open_tier()
        return self._tier

    def set_tier(self, url: str | None, **options: Any) -> None:
        """Keeps in the catalog where old segments of tiered topics go: "s3://bucket/prefix", or gs, az, file or memory.

        options: `endpoint`, `region` and others that are no secret; keys and tokens come from the environment, or from
        `tier_options` of `open`. None: no tier any more, which no topic may need.
        Raises ValueError, TypeError, StoreReadOnlyError.
        """
        self._check_writable()
        from streamcore.tier import settings

        settings.change(self, url, options)
        self.look_for_tier()

    def check_tiered(self, config: TopicConfig, schema: pa.Schema | None) -> None:
        """Raises ValueError for a topic that cannot be tiered."""
        if config.tier:
            from streamcore.tier import settings

            settings.check_topic(self, config, schema)

    def look_for_tier(self) -> None:
        """Looks in the catalog again, at the next use."""
        with self.lock:
            known, self._tier = self._tier, None
            self._knows_tier = False
        if known is not None:
            known.close()

    def _open_tier(self) -> None:
        with self.lock:
            if not self._knows_tier:
                if self.catalog.has_table("tier"):
                    from streamcore.tier import settings

                    self._tier = settings.opened(self, self._tier_options)
                self._knows_tier = True

    def _take_tier(self, url: str) -> None:
        from streamcore.tier import settings

        try:
            settings.take(self, url)
        except BaseException:
            self.close()
            raise

    # ---- background work ----

    def stats(self) -> StoreStats:
        """What the store holds, what this process did with it, groups and their lag, background work."""
        from streamcore.stats import stats_of

        self.check_open()
        return stats_of(self)

    def maintain(self, tasks: Sequence[str] | None = None, stop: Callable[[], bool] | None = None) -> list[Run] | None:
        """Does the background work now, in this thread; None when another process or thread is at it.

        A store that is appended to or consumed from does this by itself every 30 s, in one process at a time, unless
        it was opened with `maintenance=False`. tasks: some of "transactions", "groups", "retention", "compaction",
        "consolidation" and "tier"; None: all, in this order.
        stop() is asked now and then, and ends it when it is true. What fails is in the result, and does not stop the
        others.
        """
        self._check_writable()
        return self._maintenance.run(tasks, stop)

    # ---- flushing and closing ----

    def flush(self) -> None:
        """Returns when everything that this store appended is on the drive."""
        self._check_writable()
        with self.lock:
            topics = list(self._topics.values())
        for topic in topics:
            topic.flush_appended()

    def note_unflushed(self, handle: TopicHandle) -> None:
        """Has a topic flushed in the background within a second; called by appends."""
        handle.mark_unflushed()
        try:
            self._flusher.add(handle)
            self._maintenance.start()
        except BaseException:  # ^C, or no more threads: the next append asks again
            handle.mark_unflushed(False)
            raise

    def check_open(self) -> None:
        """Raises StreamcoreError when the store is closed, or was opened by the parent of this process."""
        if os.getpid() != self._pid:
            raise StreamcoreError("this store was opened before a fork: open it again in the child process")
        if self.closed:
            raise StreamcoreError("the store is closed")

    def _check_writable(self) -> None:
        self.check_open()
        if self.mode == "r":
            raise StoreReadOnlyError("the store was opened with mode 'r'")

    def close(self) -> None:
        """Flushes and closes. Scans and tables made before stay valid.

        It may be called twice and from several threads: each call returns when all is flushed and closed.
        """
        if os.getpid() != self._pid:  # before the locks, which other threads of the parent may have held at the fork
            self.closed = True
            return
        with self._closing:
            self._close()

    def _close(self) -> None:
        if self._tier is not None:
            self._tier.give_up()  # or the background work would try for as long as a deadline allows
        self._maintenance.stop()
        failures: list[BaseException] = []
        self._close_producers(failures)
        consuming = self._consuming
        if consuming is not None and not self.closed:
            failures += consuming.close()  # while what consumers need is open
        self._abort_transactions()
        with self.lock:
            if self.closed:
                return
            self.closed = True
            topics = [*self._topics.values(), *self._forgotten]
        _open_stores.discard(self)
        self._flusher.stop()
        for topic in topics:
            try:
                topic.close_core()
            except (StreamcoreError, OSError) as error:
                failures.append(error)
        if self._coordinator is not None and not failures:
            self._coordinator.settle_all()
        if self._tier is not None:
            self._tier.close()
        if self.journal is not None:
            try:
                self.journal.close()
            except (StreamcoreError, OSError) as error:
                failures.append(error)
        self.catalog.close()
        for function in self._when_closed:
            function()
        if failures:
            raise failures[0]

    def call_when_closed(self, function: Callable[[], None]) -> None:
        """Has a function called behind the end of `close`; for modules of this package."""
        self._when_closed.append(function)

    def _abort_transactions(self) -> None:
        if self._coordinator is None or self.closed:
            return
        try:
            self._coordinator.abort_all()
        except (StreamcoreError, OSError) as error:  # they end when their time is over
            _log.warning("transactions in %s could not be aborted: %s", self.path, error)

    def _close_producers(self, failures: list[BaseException]) -> None:
        with self.lock:
            producers = list(self._producers)
        if any(producer.is_worker() for producer in producers):
            raise StreamcoreError("close was called from an on_delivery: the producer's thread would wait for itself")
        for producer in producers:
            try:
                producer.close()
            except (StreamcoreError, OSError) as error:
                failures.append(error)

    def __enter__(self) -> Self:
        self.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self.closed:
            try:
                self.close()
            except (StreamcoreError, OSError):
                _log.warning("closing %s failed", self.path, exc_info=True)

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.mode
        return f"<Store {str(self.path)!r}, {state}>"


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__}; a str is needed")


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for store in list(_open_stores):
        with contextlib.suppress(StreamcoreError, OSError):
            store.close()


def _digest_of(path: str, size_bytes: int) -> Digest:
    digest = xxhash.xxh3_128()
    left = size_bytes
    try:
        with os.fdopen(open_file(path), "rb") as file:
            while left > 0 and (chunk := file.read(min(left, _DIGEST_CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
    except OSError as error:
        raise StorageError(error.errno or 0, "a segment cannot be read", path) from None
    return Digest(path, size_bytes - left, digest.hexdigest())
