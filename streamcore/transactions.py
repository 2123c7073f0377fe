"""Transactions: appends to any topics, and consumer offsets, all of them or none (KIP-98).

A transactional id has a row in the catalog: producer id, epoch, whether a transaction is open. What happens, and in
which order, so that a crash at any point leaves all or nothing:

1. Begin: the epoch is counted up, in the catalog. From then on the one before is fenced: it can claim no partition and
   decide nothing. What it had open is aborted, by markers that keep its epoch out of the partitions that it claimed.
2. Append: partitions are claimed in the catalog before the first record goes there. Batches carry id and epoch.
3. Commit: with durability "disk" the records are flushed. Then the decision is written to the catalog, together with
   the consumer offsets: the moment of truth. Then a marker goes to each partition, and committed readers see all.
4. The decision is kept until its markers are durable, so that a loss of power cannot undo them without a trace.

Recovery (`Coordinator.recover`, when a store is opened, and `finish_transactions` at any time): what was decided gets
its markers; what was not is aborted when its time is over or the machine has gone down since; an open transaction in a
partition that the catalog knows nothing of is aborted.

Only decisions of "disk" transactions, new producer ids and their rows are written durably to the catalog. The rest need
only survive processes: after a loss of power no process is left to be fenced, and every transactional id gets a new
producer id, so an epoch that was lost is never used twice.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

from streamcore import _core, producer_ids
from streamcore.catalog import IS_COUNT, IS_PARTITION, IS_TIME, Catalog
from streamcore.config import check_durability
from streamcore.errors import FencedError, StreamcoreError, TopicNotFoundError, TransactionError
from streamcore.producer_ids import take_producer_id

if TYPE_CHECKING:
    from streamcore.append import Producer
    from streamcore.appender import Span, Target
    from streamcore.store import Store
    from streamcore.topic import Topic

_EPOCH_MAX = (1 << 15) - 2  # one more, with which the last one is fenced, is an epoch as well
_TIMEOUT_MS_MAX = 1 << 50
_ID_LENGTH_MAX = 249
_SETTLED_AT_ONCE = 64
_SEQUENCE_MAX = (1 << 31) - 1
_log = logging.getLogger("streamcore")

_TABLES = f"""
{producer_ids.TABLE};
create table if not exists transaction_boot (boot text not null);
create table if not exists transactional_ids (
  name text primary key,
  producer_id integer not null,
  epoch integer not null,
  open integer not null,
  timeout_ms integer not null,
  started_ms integer not null,
  boot text not null
) without rowid;
create table if not exists transaction_partitions (
  name text not null,
  topic_id text not null,
  partition integer not null,
  primary key (name, topic_id, partition)
) without rowid;
create table if not exists transaction_decisions (
  producer_id integer not null,
  epoch integer not null,
  name text not null,
  partitions text not null,
  primary key (producer_id, epoch)
) without rowid;
"""
_IS_EPOCH = f"between 0 and {_EPOCH_MAX + 1}"
_IS_PLACE = (
    "json_type(value, '$[0]') = 'text' and json_type(value, '$[1]') = 'integer' and json_array_length(value) = 2"
)
_SENSE = {
    **producer_ids.SENSE,
    "transactional_ids": f"producer_id > 0 and producer_id {IS_COUNT} and epoch {_IS_EPOCH} and open in (0, 1) "
    f"and timeout_ms {IS_COUNT} and started_ms {IS_TIME}",
    "transaction_partitions": f"partition {IS_PARTITION}",
    "transaction_decisions": f"producer_id > 0 and producer_id {IS_COUNT} and epoch {_IS_EPOCH} "
    "and json_type(partitions) = 'array' "
    f"and not exists (select 1 from json_each(partitions) where type <> 'array' or not ({_IS_PLACE}))",
}

Place = tuple[str, int]  # id of a topic, partition
Offsets = Mapping[Place, tuple[int, str]]  # the next offset to read, and metadata


class OffsetsToCommit(NamedTuple):
    """Consumer offsets that go with a transaction. `member` is whatever the group needs to recognise its member by."""

    group: str
    member: Any
    offsets: Offsets


class OffsetSource(Protocol):
    """What `Transaction.commit_offsets` needs of a consumer."""

    def offsets_to_commit(self) -> OffsetsToCommit:
        """The consumer's positions now."""

    def apply_offsets(self, connection: sqlite3.Connection, commit: OffsetsToCommit) -> None:
        """Writes them to the catalog: called inside the catalog's transaction that holds the decision.

        Raises to refuse (GroupError, FencedError of a member that was replaced): then the transaction is aborted.
        """


class _Row(NamedTuple):
    name: str
    producer_id: int
    epoch: int
    open: int
    timeout_ms: int
    started_ms: int
    boot: str


class _Decision(NamedTuple):
    producer_id: int
    epoch: int
    name: str
    places: list[Place]


class _Known:
    """What this process remembers of a transactional id between two transactions, so that it need not write it anew."""

    def __init__(self, epoch: int, claimed: set[Place], used: set[Place]) -> None:
        self.epoch = epoch
        self.claimed = claimed
        self.used = used


def _boot_id() -> str:
    """Of the running kernel; where there is none, of this process: then all others count as gone."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process {os.getpid()} {secrets.token_hex(8)}"


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


# ---- the coordinator -------------------------------------------------------------------------------------------


class Coordinator:
    """The transactions of a store, in its catalog; made by `Store.coordinator`. Any thread may use it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._boot = _boot_id()
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._begun: weakref.WeakSet[Transaction] = weakref.WeakSet()
        self._marked: dict[tuple[int, int], list[tuple[Place, int]]] = {}  # decisions of ours: their markers
        store.catalog.ensure_tables(_TABLES.strip().rstrip(";"), _SENSE)

    # ---- beginning ----

    def begin(self, name: str, timeout_ms: int) -> tuple[int, int, set[Place]]:
        """Fences whoever had the id; returns producer id, epoch and the places that are claimed already."""
        while True:
            old = self._row(name)
            if not self._is_last_ours(name, old):
                self._finish_others(name)
            if old is not None and old.open:
                return self._take_over(old, timeout_ms)
            begun = self._begin_idle(name, old, timeout_ms)
            if begun is not None:
                return begun

    def _row(self, name: str) -> _Row | None:
        with self._store.catalog.reading() as connection:
            row = connection.execute("select * from transactional_ids where name = ?", (name,)).fetchone()
        return None if row is None else _Row(*row)

    def _is_last_ours(self, name: str, row: _Row | None) -> bool:
        """Whether the last transaction with the id was one of this process, which has written its markers."""
        with self._lock:
            known = self._known.get(name)
        return row is not None and known is not None and known.epoch == row.epoch and not row.open

    def _finish_others(self, name: str) -> None:
        with self._store.catalog.reading() as connection:
            decided = connection.execute("select * from transaction_decisions where name = ?", (name,)).fetchall()
        for found in decided:
            if found[:2] not in self._marked:
                self._finish_decision(_decision_of(found))

    def _begin_idle(self, name: str, old: _Row | None, timeout_ms: int) -> tuple[int, int, set[Place]] | None:
        """None: somebody was faster."""
        fresh = old is None or old.boot != self._boot or old.epoch >= _EPOCH_MAX
        with self._lock:
            known = self._known.get(name)
        if fresh or known is None or old is None or known.epoch != old.epoch:
            known = None
        kept: set[Place] = set() if known is None else known.used
        settled = self._settled()
        with self._store.catalog.changing(durable=fresh) as connection:
            found = connection.execute(
                "select producer_id, epoch, open from transactional_ids where name = ?", (name,)
            ).fetchone()
            if found != (None if old is None else (old.producer_id, old.epoch, 0)):
                return None
            producer_id = take_producer_id(connection) if fresh or old is None else old.producer_id
            epoch = 0 if fresh or old is None else old.epoch + 1
            if known is None or known.claimed != kept:
                connection.execute("delete from transaction_partitions where name = ?", (name,))
                _claim(connection, name, kept)
            self._write_row(connection, _Row(name, producer_id, epoch, 1, timeout_ms, now_ms(), self._boot))
            _delete_decisions(connection, settled)
        self._forget_marked(settled)
        return producer_id, epoch, set(kept)

    def _take_over(self, old: _Row, timeout_ms: int) -> tuple[int, int, set[Place]]:
        """Of an id with an open transaction. Should we die in between, the next one does this again."""
        same_boot = old.boot == self._boot
        with self._store.catalog.changing(durable=not same_boot or old.epoch >= _EPOCH_MAX) as connection:
            row = _Row(*connection.execute("select * from transactional_ids where name = ?", (old.name,)).fetchone())
            places = connection.execute(
                "select topic_id, partition from transaction_partitions where name = ?", (old.name,)
            ).fetchall()
            fence = min(row.epoch + 1, _EPOCH_MAX + 1)
            started = row._replace(epoch=fence, open=1, timeout_ms=timeout_ms, started_ms=now_ms())
            self._write_row(connection, started)
        if row.open:
            self._mark(places, row.producer_id, fence, commit=False, fence=True)
        else:  # it was decided meanwhile
            self._finish_others(old.name)
        if same_boot and fence <= _EPOCH_MAX:
            return row.producer_id, fence, set(places)
        with self._store.catalog.changing() as connection:  # a new producer id, as after every loss of power
            self._check(connection, old.name, row.producer_id, fence)
            producer_id = take_producer_id(connection)
            connection.execute("delete from transaction_partitions where name = ?", (old.name,))
            self._write_row(connection, started._replace(producer_id=producer_id, epoch=0, boot=self._boot))
        return producer_id, 0, set()

    @staticmethod
    def _write_row(connection: sqlite3.Connection, row: _Row) -> None:
        connection.execute("insert or replace into transactional_ids values (?, ?, ?, ?, ?, ?, ?)", row)

    # ---- while it is open ----

    @staticmethod
    def _check(connection: sqlite3.Connection, name: str, producer_id: int, epoch: int) -> None:
        """Raises FencedError unless this very transaction is open."""
        found = connection.execute(
            "select producer_id, epoch, open, timeout_ms from transactional_ids where name = ?", (name,)
        ).fetchone()
        if found is None or found[:3] != (producer_id, epoch, 1):
            raise FencedError(
                f"the transaction {name!r} of epoch {epoch} is over: a newer one with this id has taken its place, "
                f"or its timeout has passed"
            )

    def check(self, name: str, producer_id: int, epoch: int) -> None:
        """Raises FencedError unless this very transaction is open."""
        with self._store.catalog.reading() as connection:
            self._check(connection, name, producer_id, epoch)

    def claim(self, name: str, producer_id: int, epoch: int, places: Iterable[Place]) -> None:
        """Notes, before the first record goes there, which partitions must have a marker. Raises FencedError."""
        with self._store.catalog.changing(durable=False) as connection:
            self._check(connection, name, producer_id, epoch)
            _claim(connection, name, places)

    # ---- ending ----

    def decide(
        self,
        name: str,
        producer_id: int,
        epoch: int,
        places: set[Place],
        offsets: list[tuple[OffsetSource, OffsetsToCommit]],
        *,
        durable: bool,
    ) -> None:
        """Commits, in the catalog. Raises FencedError or what `apply_offsets` raises: then nothing is decided."""
        with self._store.catalog.changing(durable=durable) as connection:
            self._check(connection, name, producer_id, epoch)
            for source, given in offsets:
                source.apply_offsets(connection, given)
            connection.execute("update transactional_ids set open = 0 where name = ?", (name,))
            if places:
                connection.execute(
                    "insert into transaction_decisions values (?, ?, ?, ?)",
                    (producer_id, epoch, name, json.dumps(sorted(places))),
                )

    def mark_committed(self, name: str, producer_id: int, epoch: int, places: set[Place]) -> bool:
        """Writes the markers of what was decided. False: some could not be written now, and will be by `finish`."""
        try:
            markers = self._mark(sorted(places), producer_id, epoch, commit=True)
        except (StreamcoreError, OSError) as error:
            _log.warning("transaction %r is committed, but cannot be seen everywhere yet: %s", name, error)
            return False
        if places:
            with self._lock:
                self._marked[(producer_id, epoch)] = markers
        return True

    def abort(self, name: str, producer_id: int, epoch: int, places: set[Place]) -> None:
        """Writes the markers, then notes that it is over. Raises FencedError."""
        self.check(name, producer_id, epoch)
        self._mark(sorted(places), producer_id, epoch, commit=False)
        with self._store.catalog.changing(durable=False) as connection:
            self._check(connection, name, producer_id, epoch)
            connection.execute("update transactional_ids set open = 0 where name = ?", (name,))

    def flush(self, places: Iterable[Place]) -> None:
        """Returns when all that was appended there is on the drive. Deleted topics have nothing to flush."""
        targets = []
        for topic_id, partition in places:
            topic = self._store.topic_by_id(topic_id)
            with contextlib.suppress(TopicNotFoundError):
                if topic is not None:
                    targets.append(topic.durable_target(partition))
        try:
            _core.wait_durable(targets)  # one sync for all of them
        except TopicNotFoundError:  # one was deleted meanwhile
            for target in targets:
                with contextlib.suppress(TopicNotFoundError):
                    _core.wait_durable([target])

    def remember(self, name: str, epoch: int, claimed: set[Place], used: set[Place]) -> None:
        """The next transaction with the id claims at its beginning what this one used: one write less."""
        with self._lock:
            self._known[name] = _Known(epoch, claimed, used)

    def _mark(
        self, places: Iterable[Place], producer_id: int, epoch: int, *, commit: bool, fence: bool = False
    ) -> list[tuple[Place, int]]:
        """Writes a marker to each place where the transaction is open; a deleted topic needs none.

        Raises the first error when all other places have theirs.
        """
        written = []
        failure: StreamcoreError | OSError | None = None
        for topic_id, partition in places:
            try:
                topic = self._store.topic_by_id(topic_id)
                if topic is not None:
                    offset = topic.end_transaction(partition, producer_id, epoch, commit=commit, fence=fence)
                    if offset is not None:
                        written.append(((topic_id, partition), offset))
            except TopicNotFoundError:
                continue
            except (StreamcoreError, OSError) as error:  # the others need not wait for this one
                failure = failure or error
        if failure is not None:
            raise failure
        return written

    # ---- decisions that need no remembering any more ----

    def _settled(self) -> list[tuple[int, int]]:
        """Our oldest decisions, a few of those whose markers are all durable."""
        with self._lock:
            oldest = list(itertools.islice(self._marked.items(), _SETTLED_AT_ONCE))
        durable = itertools.takewhile(lambda found: all(self._is_durable(*marker) for marker in found[1]), oldest)
        return [key for key, _ in durable]

    def _is_durable(self, place: Place, offset: int) -> bool:
        try:
            topic = self._store.topic_by_id(place[0])
            return topic is None or topic.durable_offset(place[1]) > offset
        except TopicNotFoundError:
            return True

    def _forget_marked(self, settled: list[tuple[int, int]]) -> None:
        with self._lock:
            for key in settled:
                self._marked.pop(key, None)

    def note_begun(self, transaction: Transaction) -> None:
        """Remembers it, so that the store's end is its end."""
        self._begun.add(transaction)

    def abort_all(self) -> None:
        """Called before the store is closed: what it has left open is aborted, and hinders no reader any more."""
        for transaction in list(self._begun):
            if transaction.state != "open":
                continue
            row = self._row(transaction.transactional_id)
            if row is not None and row.open and row[1:3] == (transaction.producer_id, transaction.epoch):
                self._expire(row)

    def settle_all(self) -> None:
        """Called when all topics were flushed and closed: all our decisions are done with."""
        with self._lock:
            marked = list(self._marked)
            self._marked.clear()
        if marked:
            with self._store.catalog.changing(durable=False) as connection:
                _delete_decisions(connection, marked)

    # ---- recovery ----

    def recover(self) -> int:
        """What is left by processes and machines that are gone; called when a store is opened for writing."""
        with self._store.catalog.reading() as connection:
            row = connection.execute("select boot from transaction_boot").fetchone()
        rebooted = row is None or row[0] != self._boot
        count = self.finish(now_ms(), everything=rebooted)
        if rebooted:
            with self._store.catalog.changing() as connection:
                connection.execute("delete from transaction_boot")
                connection.execute("insert into transaction_boot values (?)", (self._boot,))
        return count

    def finish(self, now: int, *, everything: bool) -> int:
        """Finishes what was decided, aborts what has timed out, with `everything` also what the catalog knows not.

        Returns the number of transactions that were ended.
        """
        with self._store.catalog.reading() as connection:
            rows = [_Row(*row) for row in connection.execute("select * from transactional_ids where open").fetchall()]
            decided = connection.execute("select * from transaction_decisions").fetchall()
        count = 0
        for found in decided:
            if found[:2] not in self._marked:
                self._finish_decision(_decision_of(found))
                count += 1
        for row in rows:
            if row.boot != self._boot or now - row.started_ms >= row.timeout_ms:
                count += self._expire(row)
            elif row.started_ms - now > row.timeout_ms:  # the clock went back: count from now
                with self._store.catalog.changing(durable=False) as connection:
                    connection.execute(
                        "update transactional_ids set started_ms = ? where name = ? and epoch = ? and open",
                        (now, row.name, row.epoch),
                    )
        return count + (self._end_unknown() if everything else 0)

    def _finish_decision(self, decision: _Decision) -> None:
        """Of a process that may be gone: nobody knows which of its markers are durable."""
        self._mark(decision.places, decision.producer_id, decision.epoch, commit=True)
        self.flush(decision.places)
        with self._store.catalog.changing(durable=False) as connection:
            _delete_decisions(connection, [decision[:2]])

    def _expire(self, row: _Row) -> int:
        """Aborts an open transaction and keeps its owner, should it live, out of its partitions."""
        fence = min(row.epoch + 1, _EPOCH_MAX + 1)
        with self._store.catalog.changing(durable=False) as connection:
            changed = connection.execute(
                "update transactional_ids set epoch = ? where name = ? and producer_id = ? and epoch = ? and open",
                (fence, row.name, row.producer_id, row.epoch),
            ).rowcount
            places = connection.execute(
                "select topic_id, partition from transaction_partitions where name = ?", (row.name,)
            ).fetchall()
        if not changed:
            return 0
        self._mark(places, row.producer_id, fence, commit=False, fence=True)
        with self._store.catalog.changing(durable=False) as connection:
            connection.execute(
                "update transactional_ids set open = 0 where name = ? and producer_id = ? and epoch = ?",
                (row.name, row.producer_id, fence),
            )
        return 1

    def _end_unknown(self) -> int:
        """Open transactions in the logs of which the catalog knows nothing, or only a newer epoch."""
        count = 0
        for topic in self._store.topics():
            try:
                for partition in topic.unstable_partitions():
                    still_open = topic.open_transactions(partition)
                    for producer_id, epoch, _ in still_open:
                        count += self._end_one_unknown(topic, partition, producer_id, epoch)
                    if not still_open:  # its records were deleted, and with them what named its producer
                        nobody = producer_ids.next_producer_id(self._store.catalog)
                        topic.end_transaction(partition, nobody, 0, commit=False, fence=True)
                        count += 1
            except TopicNotFoundError:
                continue
        return count

    def _end_one_unknown(self, topic: Topic, partition: int, producer_id: int, epoch: int) -> int:
        with self._store.catalog.reading() as connection:
            known = connection.execute(
                "select 1 from transactional_ids where producer_id = ? and epoch = ? and open union all "
                "select 1 from transaction_decisions where producer_id = ? and epoch = ?",
                (producer_id, epoch, producer_id, epoch),
            ).fetchone()
        if known is not None:
            return 0
        return int(topic.end_transaction(partition, producer_id, epoch, commit=False) is not None)


def _decision_of(found: tuple[int, int, str, str]) -> _Decision:
    producer_id, epoch, name, places = found
    return _Decision(producer_id, epoch, name, [(topic_id, partition) for topic_id, partition in json.loads(places)])


def _claim(connection: sqlite3.Connection, name: str, places: Iterable[Place]) -> None:
    connection.executemany(
        "insert or ignore into transaction_partitions values (?, ?, ?)", [(name, *place) for place in places]
    )


def _delete_decisions(connection: sqlite3.Connection, keys: Iterable[tuple[int, int]]) -> None:
    connection.executemany("delete from transaction_decisions where producer_id = ? and epoch = ?", list(keys))


def forget_machine(catalog: Catalog) -> None:
    """Has the next who opens a copied catalog take the machine for another one, as it is, or for one that went down.

    The epochs in a copy may be older than those in the logs: each transactional id gets a new producer id.
    """
    if catalog.has_table("transactional_ids"):
        with catalog.changing() as connection:
            connection.execute("delete from transaction_boot")
            connection.execute("update transactional_ids set boot = ''")


def finish_transactions(store: Store, now: int | None = None, *, everything: bool = True) -> int:
    """Ends transactions that nobody else ends: decided ones without markers, and those whose time is over.

    now: milliseconds since 1970, default the clock. everything: also looks into each partition for open transactions
    that the catalog knows nothing of. Returns how many were ended. For a maintenance loop: every few seconds without
    `everything`, now and then with it.
    """
    return store.coordinator.finish(now_ms() if now is None else now, everything=everything)


# ---- a transaction ---------------------------------------------------------------------------------------------


class _Writer:
    """Puts producer id, epoch and sequences into the headers of a transaction's batches."""

    def __init__(
        self, store: Store, coordinator: Coordinator, name: str, producer_id: int, epoch: int, claimed: set[Place]
    ) -> None:
        self._store = store
        self._coordinator = coordinator
        self._name = name
        self.producer_id = producer_id
        self.epoch = epoch
        self.claimed = claimed
        self.sequences: dict[Place, int] = {}  # the next one, of places that have records
        self.appending = False  # since it was last set to False

    def claim(self, topic: Target, partitions: list[int]) -> None:
        """Makes sure that the partitions will have a marker."""
        if topic.store is not self._store:
            raise ValueError(f"topic {topic.name!r} is of another store object than the transaction")
        new = {(topic.id, partition) for partition in partitions} - self.claimed
        if new:
            self._coordinator.claim(self._name, self.producer_id, self.epoch, new)
            self.claimed |= new
        self.appending = True

    def producer(self, topic: Target, partition: int) -> Producer:
        """For the headers of the next append."""
        return self.producer_id, self.epoch, self.sequences.get((topic.id, partition), 0), True

    def appended(self, topic: Target, partition: int, count: int) -> None:
        """Counts the sequence on."""
        place = topic.id, partition
        self.sequences[place] = (self.sequences.get(place, 0) + count) & _SEQUENCE_MAX


class Transaction:
    """Appends and consumer offsets that become visible together, or never; made by `Store.transaction`.

    It begins when it is made. Appends go to the logs at once and are hidden from committed readers until `commit`. One
    thread at a time. After an append that failed it is aborted, and every call raises TransactionError; after a newer
    transaction with the same id has begun, or the timeout has passed, every call raises FencedError.
    """

    def __init__(
        self, store: Store, coordinator: Coordinator, transactional_id: str, timeout_ms: int, durability: str
    ) -> None:
        if not isinstance(transactional_id, str):
            raise TypeError(f"transactional_id is {type(transactional_id).__name__}; a str is needed")
        if not 1 <= len(transactional_id) <= _ID_LENGTH_MAX:
            raise ValueError(
                f"transactional_id has {len(transactional_id)} characters; 1 to {_ID_LENGTH_MAX} are allowed"
            )
        if not isinstance(timeout_ms, int) or isinstance(timeout_ms, bool):
            raise TypeError(f"timeout_ms is {timeout_ms!r}; an int is needed")
        if not 1 <= timeout_ms <= _TIMEOUT_MS_MAX:
            raise ValueError(f"timeout_ms is {timeout_ms}; 1 to {_TIMEOUT_MS_MAX} is allowed")
        self._durable = check_durability(durability) == "disk"
        self._store = store
        self._coordinator = coordinator
        self._id = transactional_id
        self._state: Literal["open", "committed", "aborted", "failed", "fenced"] = "open"
        self._offsets: list[tuple[OffsetSource, OffsetsToCommit]] = []
        self._writer = _Writer(store, coordinator, transactional_id, *coordinator.begin(transactional_id, timeout_ms))
        coordinator.note_begun(self)

    @property
    def transactional_id(self) -> str:
        """The id by which a newer transaction fences this one."""
        return self._id

    @property
    def producer_id(self) -> int:
        """In the headers of its batches."""
        return self._writer.producer_id

    @property
    def epoch(self) -> int:
        """In the headers of its batches; counts the transactions of the producer id."""
        return self._writer.epoch

    @property
    def state(self) -> str:
        """ "open", "committed", "aborted", "failed" (aborted after a failed append) or "fenced"."""
        return self._state

    def __repr__(self) -> str:
        return f"<Transaction {self._id!r}, epoch {self.epoch}, {self._state}>"

    # ---- what it holds ----

    def append(
        self,
        topic: str | Topic,
        values: Any,
        keys: Any = None,
        timestamps: Any = None,
        headers: Any = None,
        partition: int | None = None,
    ) -> list[Span]:
        """Appends records as `Topic.append` does. Raises FencedError, TransactionError, and what that raises."""
        self._check_open()
        target = self._topic(topic)
        return self._guarded(lambda: target.append_by(self._writer, values, keys, timestamps, headers, partition))

    def append_table(self, topic: str | Topic, table: Any, partition: int | None = None) -> list[Span]:
        """Appends a table as `Topic.append_table` does. Raises FencedError, TransactionError, and what that raises."""
        self._check_open()
        target = self._topic(topic)
        return self._guarded(lambda: target.append_table_by(self._writer, table, partition))

    def append_sealed(self, topic: Topic, batch: _core.SealedBatch) -> tuple[int, int, int]:
        """Appends what a producer has collected for a partition; called by its thread, which decides on retries."""
        self._check_open()
        self._writer.claim(topic, [batch.partition])
        placed = topic.append_sealed(batch, self._writer.producer(topic, batch.partition))
        self._writer.appended(topic, batch.partition, batch.count)
        return placed

    def commit_offsets(self, consumer: OffsetSource) -> None:
        """Commits the consumer's positions of now with the transaction, in place of the consumer's own commit."""
        self._check_open()
        if not hasattr(consumer, "offsets_to_commit") or not hasattr(consumer, "apply_offsets"):
            raise TypeError(f"consumer is {type(consumer).__name__}; a consumer with a group is needed")
        given = consumer.offsets_to_commit()
        self._offsets = [(source, kept) for source, kept in self._offsets if source is not consumer]
        self._offsets.append((consumer, given))

    def _topic(self, topic: str | Topic) -> Topic:
        return self._store.topic(topic) if isinstance(topic, str) else topic

    def _guarded(self, append: Callable[[], list[Span]]) -> list[Span]:
        """An append that failed in the middle spoils the transaction; one that never began does not."""
        self._writer.appending = False
        try:
            return append()
        except FencedError:
            self._state = "fenced"
            raise
        except BaseException:
            if self._writer.appending:
                self._fail()
            raise

    def _fail(self) -> None:
        try:
            self._end(commit=False)
        except (StreamcoreError, OSError) as error:  # it is aborted when its time is over
            _log.warning("transaction %r could not be aborted after an append that failed: %s", self._id, error)
        if self._state != "fenced":
            self._state = "failed"

    # ---- ending ----

    def commit(self) -> None:
        """Makes all of it visible. When it raises, nothing is committed.

        Raises FencedError, TransactionError, StorageError, and GroupError when the group refuses the offsets.
        """
        self._check_open()
        try:
            if self._durable:
                self._coordinator.flush(self._writer.sequences)
            self._end(commit=True)
        except FencedError:
            if not self._is_ours():
                self._state = "fenced"
                raise
            self._fail()  # the group has fenced the consumer, not us
            raise
        except BaseException:
            if self._state == "open":
                self._fail()
            raise

    def abort(self) -> None:
        """Gives it up: committed readers never see any of it. Nothing happens when it was aborted already."""
        if self._state in ("aborted", "failed"):
            return
        self._check_open()
        self._end(commit=False)

    def _end(self, *, commit: bool) -> None:
        writer, coordinator = self._writer, self._coordinator
        mine = self._id, writer.producer_id, writer.epoch
        places = set(writer.sequences)
        try:
            if commit:
                coordinator.decide(*mine, places, self._offsets, durable=self._durable)
                self._state = "committed"
            else:  # also where an append failed, and may have been made
                coordinator.abort(*mine, writer.claimed)
                self._state = "aborted"
        except FencedError:
            if not self._is_ours():
                self._state = "fenced"
            raise
        if not commit or coordinator.mark_committed(*mine, places):
            coordinator.remember(self._id, writer.epoch, writer.claimed, places)

    def _is_ours(self) -> bool:
        try:
            self._coordinator.check(self._id, self._writer.producer_id, self._writer.epoch)
        except FencedError:
            return False
        return True

    def _check_open(self) -> None:
        self._store.check_open()
        if self._state == "fenced":
            raise FencedError(f"the transaction {self._id!r} of epoch {self.epoch} is over: a newer one has its place")
        if self._state == "failed":
            raise TransactionError(f"the transaction {self._id!r} was aborted when an append failed: begin a new one")
        if self._state != "open":
            raise TransactionError(f"the transaction {self._id!r} is {self._state} already: begin a new one")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._state != "open":
            if kind is None and self._state in ("failed", "fenced"):
                self._check_open()
            return
        if kind is None:
            self.commit()
            return
        try:
            self.abort()
        except (StreamcoreError, OSError) as failure:  # the caller's exception says more; its time will be over
            _log.warning("transaction %r could not be aborted: %s", self._id, failure)
