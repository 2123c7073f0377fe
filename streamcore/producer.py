"""Producers: `send` puts a record into native memory; one thread per producer appends, batch by batch."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from streamcore import _core, columns
from streamcore.config import check_durability
from streamcore.errors import (
    BufferFullError,
    Lost,
    ProducerError,
    StorageError,
    StreamcoreError,
    TransactionError,
)
from streamcore.producer_ids import next_producer_id

if TYPE_CHECKING:
    from streamcore.store import Store
    from streamcore.topic import SendPlan, Topic
    from streamcore.transactions import OffsetSource, Transaction

Durability = Literal["os", "disk"]
OnDelivery = Callable[[Exception | None, "Delivery"], object]

BATCH_BYTES_MAX = 1 << 30
BUFFER_BYTES_MIN = 64 << 10
_LINGER_MS_MAX = 24 * 3600 * 1000
_BLOCK_MS_MAX = 1 << 40
_RETRY_FIRST_MS = 50
_RETRY_LAST_MS = 1000
_OBJECT_BYTES = 512  # of an Arrow array, beside its buffers
# Of the system, and over when somebody makes room or closes files. EIO is none: what was written then is unknown.
_TRANSIENT = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)

_log = logging.getLogger("streamcore")


class Delivery(NamedTuple):
    """Where a record is. `offset` is None when it was given up."""

    topic: str
    partition: int
    offset: int | None


_new_delivery = tuple.__new__  # half the time of Delivery(...): there is one for each on_delivery


class Producer(_core.SendBuffer):
    """Sends records one at a time; made by `Store.producer`. Any thread may use it.

    A context manager, also with `async with`.

    Records lie in memory until their batch is sealed, by linger_ms, batch_bytes or flush, and appended by the
    producer's own thread, partition by partition in the order in which they were sent. Leaving the `with` block
    closes it: what was sent is appended, also when the block ends by an exception.

    What fails for a reason that may pass (a full disk, no free descriptors) is tried again for delivery_timeout_ms.
    What is given up is told to `on_delivery`; records that have none are told by a ProducerError from the next send,
    flush or close.
    """

    def __init__(
        self,
        store: Store,
        *,
        linger_ms: int,
        batch_bytes: int,
        buffer_bytes: int,
        idempotent: bool,
        durability: Durability | None,
        transactional_id: str | None,
        max_block_ms: int,
        delivery_timeout_ms: int,
        transaction_timeout_ms: int,
    ) -> None:
        _check("linger_ms", linger_ms, 0, _LINGER_MS_MAX)
        _check("batch_bytes", batch_bytes, 1, BATCH_BYTES_MAX)
        _check("buffer_bytes", buffer_bytes, max(BUFFER_BYTES_MIN, batch_bytes), 1 << 50)
        _check("max_block_ms", max_block_ms, 0, _BLOCK_MS_MAX)
        _check("delivery_timeout_ms", delivery_timeout_ms, 0, _BLOCK_MS_MAX)
        if durability is not None:
            check_durability(durability)
        if transactional_id is not None and not isinstance(transactional_id, str):
            raise TypeError(f"transactional_id is {transactional_id!r}; a str or None is needed")
        _check("transaction_timeout_ms", transaction_timeout_ms, 1, _BLOCK_MS_MAX)
        self.make(linger_ms, batch_bytes, buffer_bytes, max_block_ms)
        self.hold(transactional_id is not None)
        self.closed = False
        self._store = store
        self._durability: Durability | None = durability
        self._idempotent = bool(idempotent) and transactional_id is None  # a transaction brings its own id
        self._transactional_id = transactional_id
        self._transaction_timeout_ms = transaction_timeout_ms
        self._transaction: Transaction | None = None
        self._spoiled: BaseException | None = None  # why the transaction cannot be committed
        self._delivery_timeout_ns = delivery_timeout_ms * 1_000_000
        self._pid = os.getpid()
        self._lock = threading.Lock()  # topics and the thread's start
        self._closing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failure_lock = threading.Lock()
        self._lost: dict[tuple[str, int], int] = {}
        self._cause: BaseException | None = None
        self._room: collections.deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = collections.deque()
        self._ended = False

    # ---- what it is ----

    @property
    def producer_id(self) -> int | None:
        """The number that batches carry; None before the first send, and when it is not idempotent."""
        return self.producer_number() or None

    def __repr__(self) -> str:
        return f"<Producer of {str(self._store.path)!r}, {'closed' if self.closed else 'open'}>"

    # ---- sending ----

    async def send_async(
        self,
        topic: str,
        value: Any,
        key: Any = None,
        timestamp: Any = None,
        headers: Any = None,
        partition: int | None = None,
    ) -> Delivery:
        """Sends a record and returns where it is when it is in the log: on the drive, if the durability says so.

        Arguments and errors are those of `send`; an append that was given up raises here. When buffer_bytes are in
        use, it waits for room without holding up the event loop. Thousands may wait at once; none has a thread. Who
        is cancelled while the record is in the producer's memory has sent it nevertheless.
        """
        waiter = _Waiter(asyncio.get_running_loop())
        deadline = time.monotonic() + self.max_block_ms / 1000
        while True:
            try:
                self.send(topic, value, key, timestamp, headers, partition, waiter, block=False)
                break
            except BufferFullError:
                if self.is_worker() or time.monotonic() >= deadline:
                    raise
            room: asyncio.Future[None] = waiter.loop.create_future()
            self._room.append((waiter.loop, room))
            self.ask_room()
            try:  # once more: room made before we asked is not told
                self.send(topic, value, key, timestamp, headers, partition, waiter, block=False)
                break
            except BufferFullError:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(room, max(0.0, deadline - time.monotonic()))
        return await waiter.future

    def flush(self, timeout_ms: float | None = None) -> None:
        """Returns when everything sent before is in the log (on the drive if so asked) and its on_delivery was called.

        Raises ProducerError for records that were lost; TimeoutError when `timeout_ms` is over: nothing is lost by
        that.
        """
        if timeout_ms is not None and (not isinstance(timeout_ms, (int, float)) or isinstance(timeout_ms, bool)):
            raise TypeError(f"timeout_ms is {timeout_ms!r}; a number or None is needed")
        self._check_ours()
        if self.closed:
            raise StreamcoreError("the producer is closed")
        self._check_not_worker("flush")
        if not self._await(self.begin_flush(), timeout_ms):
            left = self.unfinished()
            raise TimeoutError(f"{left} batches are not appended after {timeout_ms} ms; they stay in the producer")
        self.raise_failures()

    def close(self) -> None:
        """Flushes, and ends the producer's thread; safe to call twice and from several threads.

        A transaction that is open is aborted. Waits for batches that are tried again, up to their delivery_timeout_ms.
        Raises ProducerError for records that were lost; the producer is closed nevertheless.
        """
        if os.getpid() != self._pid:  # before the locks, which threads of the parent may have held at the fork
            self.closed = True
            return
        if not self.closed:
            self._check_not_worker("close")
        with self._closing:  # a second caller waits for the first
            if not self._ended:
                with self._lock:
                    self.closed = True
                    thread = self._thread
                self.stop()
                if thread is not None:
                    thread.join()
                self._abort_at_close()
                self._ended = True
                self._store.forget_producer(self)
        self.raise_failures()

    def _abort_at_close(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None and transaction.state == "open":
            try:
                transaction.abort()
            except (StreamcoreError, OSError) as error:  # it is aborted when its time is over
                _log.warning("the transaction %r could not be aborted: %s", self._transactional_id, error)

    def _await(self, number: int, timeout_ms: float | None) -> bool:
        """Waits in pieces, so that a thread that died does not let us wait for ever."""
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while True:
            piece = 500.0 if deadline is None else min(500.0, max(0.0, (deadline - time.monotonic()) * 1000))
            if self.await_flush(number, int(piece)):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if self._thread is None or not self._thread.is_alive():
                raise StreamcoreError("the producer's thread has ended")

    def __enter__(self) -> Self:
        self._check_ours()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    # ---- transactions ----

    def begin_transaction(self) -> None:
        """Begins a transaction with the producer's transactional_id, which ends one that another producer has open.

        What is sent from now on is hidden from committed readers until commit_transaction (KIP-98).
        """
        self._check_transactional()
        if self._transaction is not None:
            raise TransactionError(f"the transaction {self._transactional_id!r} is open: commit or abort it first")
        assert self._transactional_id is not None
        self._spoiled = None
        self._transaction = self._store.transaction(
            self._transactional_id, self._transaction_timeout_ms, self._durability
        )
        self.hold(False)

    def commit_transaction(self) -> None:
        """Flushes, and makes all that was sent since begin_transaction visible.

        When it raises, nothing is committed: ProducerError or TransactionError for records that could not be appended,
        FencedError when another producer has taken the id, and what `Transaction.commit` raises.
        """
        transaction = self._open_transaction()
        self.hold(True)
        try:
            self.flush()
            if self._spoiled is not None:
                raise TransactionError("records of the transaction could not be appended") from self._spoiled
            transaction.commit()
        except BaseException:
            if transaction.state == "open":
                self._abort(transaction)
            raise
        finally:
            self._transaction = None

    def abort_transaction(self) -> None:
        """Gives up all that was sent since begin_transaction: committed readers never see any of it."""
        transaction = self._open_transaction()
        self.hold(True)
        try:
            self._abort(transaction)
        finally:
            self._transaction = None

    def commit_offsets(self, consumer: OffsetSource) -> None:
        """Commits a consumer's positions with the open transaction: see `Transaction.commit_offsets`."""
        self._open_transaction().commit_offsets(consumer)

    def _abort(self, transaction: Transaction) -> None:
        """Waits for what is on its way, so that nothing comes behind the marker; what failed matters no more."""
        self._await(self.begin_flush(), None)
        with contextlib.suppress(ProducerError):
            self.raise_failures()
        transaction.abort()

    def _check_transactional(self) -> None:
        self._check_ours()
        if self.closed:
            raise StreamcoreError("the producer is closed")
        self._check_not_worker("a transaction's beginning or end")
        if self._transactional_id is None:
            raise TransactionError("the producer has no transactional_id")

    def _open_transaction(self) -> Transaction:
        self._check_transactional()
        if self._transaction is None:
            raise TransactionError("no transaction is open: call begin_transaction first")
        return self._transaction

    # ---- topics ----

    def raise_held(self) -> None:
        """Why nothing can be sent now."""
        raise TransactionError("no transaction is open: call begin_transaction first")

    def find_topic(self, name: Any) -> _core.SendTopic:
        """Looks a name up in the store. Called at its first send; starts the thread."""
        self._check_ours()
        topic = self._store.topic(name)
        with self._lock:
            if self.closed:
                raise StreamcoreError("the producer is closed")
            known = self.known_topic(topic.name)  # another thread may have been faster: two lanes would break the order
            if known is not None:
                return known
            if self._idempotent and self.producer_id is None:
                self.identify(next_producer_id(self._store.catalog), 0)
            core, plan = self._plan_of(topic)
            found = self.add_topic(topic.name, topic, None if topic.schema is None else _Converter(topic), core, plan)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="streamcore-producer", daemon=True)
                self._thread.start()
            return found

    def plan_topic(self, topic: _core.SendTopic) -> None:
        """Takes over what another handle or process changed of a topic."""
        try:
            _, plan = self._plan_of(topic.topic)
        except LookupError:
            self.forget_topic(topic.name)
            return
        self.replan(topic, plan)

    def _plan_of(self, topic: Topic) -> tuple[_core.Topic, SendPlan]:
        """Of a transaction every batch is appended through it, and made durable by its commit."""
        core, plan = topic.send_plan(self._durability)
        if self._transactional_id is None:
            return core, plan
        partitions, version, generation, record_bytes, _, append_time, _, needs_key = plan
        return core, (partitions, version, generation, record_bytes, False, append_time, False, needs_key)

    def is_worker(self) -> bool:
        """Whether the caller is the producer's own thread, in an on_delivery."""
        return threading.current_thread() is self._thread

    def _check_not_worker(self, what: str) -> None:
        if self.is_worker():
            raise StreamcoreError(f"{what} was called from an on_delivery: the producer's thread would wait for itself")

    def _check_ours(self) -> None:
        if os.getpid() != self._pid:
            raise StreamcoreError("this producer was made before a fork: make another in the child process")

    # ---- the producer's thread ----

    def _run(self) -> None:
        while True:
            try:
                batch = self.work()
                if batch is False:
                    break
                if batch is not None:
                    self._attend(batch)
                else:
                    self._wake_for_room()
                self._note_appended()
            except Exception as error:
                _log.exception("the producer's thread goes on after an error that it did not expect")
                self._remember(error)
        self._note_appended()
        self._wake_for_room()

    def _attend(self, batch: _core.SealedBatch) -> None:
        """Sees to a batch that was appended, that failed, or that the native code does not append."""
        entry = batch.topic
        error: Exception | None = None
        if batch.is_unheard():
            try:
                _, first, end = self._append(entry.topic, batch)
            except Exception as failure:
                error = failure
            else:
                batch.appended(first, end)
                self._plan_again(entry)
                if entry.durable:
                    batch.retry(0)  # which syncs what is in the log already
                    return
        else:
            error = batch.error()
        if error is not None and self._is_tried_again(batch, error):
            batch.retry(min(_RETRY_LAST_MS, _RETRY_FIRST_MS << min(10, batch.attempts - 1)))
            return
        try:
            self._tell(entry.name, batch, error)
        finally:
            batch.finish()

    def _append(self, topic: Topic, batch: _core.SealedBatch) -> tuple[int, int, int]:
        transaction = self._transaction
        if transaction is not None:
            return transaction.append_sealed(topic, batch)
        if self._transactional_id is not None:  # another thread sent while this one ended the transaction
            raise TransactionError("the transaction ended before the record was appended")
        return topic.append_sealed(batch, batch.producer)

    def _plan_again(self, entry: _core.SendTopic) -> None:
        """So that the next batch goes the short way again; if that is not known now, it will be tried with that one."""
        try:
            self.plan_topic(entry)
        except (StreamcoreError, OSError):
            _log.debug("the settings of %s are not known now", entry.name, exc_info=True)

    def _is_tried_again(self, batch: _core.SealedBatch, error: Exception) -> bool:
        if batch.is_poisoned() or not (
            isinstance(error, MemoryError) or (isinstance(error, StorageError) and error.errno in _TRANSIENT)
        ):
            return False
        if time.monotonic_ns() - batch.opened_ns >= self._delivery_timeout_ns:
            return False
        if batch.attempts == 1:
            _log.warning("%d records for %s are tried again: %s", batch.count, batch.topic.name, error)
        return True

    def _tell(self, name: str, batch: _core.SealedBatch, error: Exception | None) -> None:
        """Calls who wants to know, in the order of the records; what nobody hears of is remembered."""
        partition, first = batch.partition, batch.first_offset
        if error is not None:
            self._spoiled = error
        if error is not None and batch.count > batch.tag_count:
            self._remember(error, (name, partition), batch.count - batch.tag_count)
        waiters: dict[asyncio.AbstractEventLoop, list[tuple[_Waiter, Delivery]]] = {}
        for row, tag in batch.take_tags():
            delivery = _new_delivery(Delivery, (name, partition, first + row if error is None else None))
            if type(tag) is _Waiter:
                waiters.setdefault(tag.loop, []).append((tag, delivery))
                continue
            try:
                tag(error, delivery)
            except Exception as failure:
                _log.exception("an on_delivery raised")
                self._remember(failure)
        for loop, told in waiters.items():
            try:
                loop.call_soon_threadsafe(_resolve, told, error)
            except RuntimeError:  # the loop is closed
                if error is not None:
                    self._remember(error, (name, partition), len(told))

    def _note_appended(self) -> None:
        for entry in self.known_topics():
            if entry.take_appended():
                entry.topic.note_appended()

    def _wake_for_room(self) -> None:
        for _ in range(len(self._room)):
            loop, future = self._room.popleft()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_set_done, future)

    # ---- failures ----

    def _remember(self, error: BaseException, where: tuple[str, int] | None = None, count: int = 0) -> None:
        with self._failure_lock:
            if self._cause is None:
                self._cause = error
            if where is not None:
                self._lost[where] = self._lost.get(where, 0) + count
            self.note_failure(True)

    def raise_failures(self) -> None:
        """Raises ProducerError for what was lost, or went wrong in an on_delivery, since the last time."""
        with self._failure_lock:
            cause, lost = self._cause, self._lost
            self._cause, self._lost = None, {}
            self.note_failure(False)
        if cause is None:
            return
        gone = tuple(Lost(*where, count) for where, count in sorted(lost.items()))
        shown = ", ".join(f"{one.records} of {one.topic!r} partition {one.partition}" for one in gone[:10])
        more = f" and {len(gone) - 10} more partitions" if len(gone) > 10 else ""
        what = f"records sent earlier were lost ({shown}{more})" if gone else "an on_delivery raised"
        raise ProducerError(f"{what}: {cause}", gone) from cause


class _Waiter:
    """Who awaits one record: stands where an on_delivery does."""

    __slots__ = ("future", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[Delivery] = loop.create_future()

    def __call__(self, error: Exception | None, delivery: Delivery) -> None:
        raise AssertionError("waiters are told together")


class _Converter:
    """Makes Arrow of one value of a typed topic: at the send, so that errors come there, and later changes do not."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic

    def __call__(self, value: Any) -> tuple[Any, int]:
        schema = self._topic.schema
        assert schema is not None
        array = columns.struct_of_dicts([value], schema)
        return array, array.nbytes + _OBJECT_BYTES


def _resolve(told: list[tuple[_Waiter, Delivery]], error: Exception | None) -> None:
    for waiter, delivery in told:
        if waiter.future.done():  # cancelled
            continue
        if error is None:
            waiter.future.set_result(delivery)
        else:
            waiter.future.set_exception(error)


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _check(name: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; an int is needed")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; {low} to {high} is allowed")
