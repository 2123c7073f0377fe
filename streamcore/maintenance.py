"""Background work of a store: one loop, run by whichever process holds the store's maintenance lock.

Every process that appends or consumes runs a thread that tries for the lock, and does the work while it has it. The
lock is the kernel's (`flock` on the file `maintenance.lock`), so it goes with its holder at once, whatever ends that
process, and needs no clock. What was done is kept in the catalog, where every process can see it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from streamcore.catalog import IS_COUNT, IS_TIME
from streamcore.errors import StorageError, StreamcoreError, TopicNotFoundError
from streamcore.files import open_file

if TYPE_CHECKING:
    from streamcore.catalog import Catalog
    from streamcore.rewriting import Rewritten
    from streamcore.store import Store
    from streamcore.topic import Topic

_Done = TypeVar("_Done")
LOCK_NAME = "maintenance.lock"
BYTES_PER_SECOND = 64 << 20  # read by what rewrites segments
MIN_DIRTY_RATIO = 0.5  # of a compacted log: as min.cleanable.dirty.ratio of Apache Kafka
_log = logging.getLogger("streamcore.maintenance")

_TABLES = """
create table if not exists maintenance (
  task text primary key,
  runs integer not null,
  errors integer not null,
  last_started_ms integer not null,
  last_seconds real not null,
  last_error text,
  last_done text not null,
  process integer not null
) without rowid
"""
_SENSE = {
    "maintenance": f"runs {IS_COUNT} and errors {IS_COUNT} and last_started_ms {IS_TIME} "
    "and json_type(last_done) = 'object'"
}

Stop = Callable[[], bool]


class Task(NamedTuple):
    """One kind of work. `run(store, stop)` returns what it did, by name; it ends early when `stop()` is true."""

    name: str
    run: Callable[[Store, Stop], Mapping[str, int]]


class Run(NamedTuple):
    """One task done once. `done` counts what it did; `error` says what stopped it, None when nothing did."""

    task: str
    seconds: float
    done: dict[str, int]
    error: str | None


class TaskStats(NamedTuple):
    """A task over the life of the store; times are milliseconds since 1970, `process` is who ran it last."""

    task: str
    runs: int
    errors: int
    last_started_ms: int
    last_seconds: float
    last_error: str | None
    last_done: dict[str, int]
    process: int


class Maintenance:
    """The background work of one open store. Made by the store; a thread runs it once somebody called `start`.

    interval_s: between two passes of the thread; None: there is no thread, and only `run` works.
    """

    def __init__(self, store: Store, tasks: Sequence[Task], interval_s: float | None) -> None:
        self._store = weakref.ref(store)
        self._tasks = tuple(tasks)
        self._interval_s = interval_s
        self._catalog = store.catalog
        self._path = str(store.path / LOCK_NAME)
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._working = threading.Lock()  # one pass at a time in this process

    def start(self) -> None:
        """Has a thread do the work from now on, every interval, while this process holds the lock."""
        if self._thread is not None or self._interval_s is None:
            return
        with self._condition:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._loop, name="streamcore-maintenance", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and a pass that runs, at the next place where it can stop."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join()

    def run(self, names: Sequence[str] | None = None, stop: Stop | None = None) -> list[Run] | None:
        """One pass now, in this thread; None when another process is at it. `names` chooses tasks."""
        chosen = self._chosen(names)
        with self._working, self._holding() as held:
            if not held:
                return None
            return self._pass(chosen, stop or (lambda: self._stopping))

    def _chosen(self, names: Sequence[str] | None) -> list[Task]:
        known = {task.name: task for task in self._tasks}
        for name in names or ():
            if name not in known:
                raise ValueError(f"there is no task {name!r} of maintenance; there are {', '.join(known)}")
        return list(self._tasks) if names is None else [known[name] for name in names]

    def _pass(self, tasks: Sequence[Task], stop: Stop) -> list[Run]:
        runs = []
        for task in tasks:
            store = self._store()
            if store is None or store.closed or stop():
                break
            runs.append(_run_task(store, task, stop))
            _record(self._catalog, runs[-1])
        return runs

    # ---- the thread ----

    def _loop(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopping, self._interval_s)
                if self._stopping:
                    return
            try:
                _release_memory(self.run() or ())
            except StreamcoreError as error:
                _log.warning("maintenance could not run: %s", error)
            if self._store() is None:
                return

    # ---- the lock ----

    @contextlib.contextmanager
    def _holding(self) -> Iterator[bool]:
        try:
            descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StorageError(error.errno or 0, "the lock of maintenance cannot be opened", self._path) from None
        _held.add(descriptor)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                raise StorageError(error.errno or 0, "the lock of maintenance cannot be taken", self._path) from None
            yield True
        finally:
            _held.discard(descriptor)
            with contextlib.suppress(OSError):  # closing gives it up, too, but for a child that is just being forked
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


_held: set[int] = set()


def _give_up_locks() -> None:
    """A forked child must not keep its parent's lock alive."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_give_up_locks)


def _run_task(store: Store, task: Task, stop: Stop) -> Run:
    began = time.monotonic()
    try:
        done, failure = dict(task.run(store, stop)), None
    except (StreamcoreError, OSError) as error:
        done, failure = {}, f"{type(error).__name__}: {error}"
        _log.warning("maintenance: %s failed: %s", task.name, error)
    seconds = time.monotonic() - began
    if any(done.values()):
        counts = ", ".join(f"{name} {count}" for name, count in done.items() if count)
        _log.info("maintenance: %s in %.2f s: %s", task.name, seconds, counts)
    return Run(task.name, seconds, done, failure)


def _release_memory(runs: Sequence[Run]) -> None:
    """What Arrow's allocator keeps behind a rewriting, for a next one that may be another process's: some 10 MiB."""
    if any(run.done.get("bytes_after") for run in runs):
        import pyarrow as pa

        pa.default_memory_pool().release_unused()


# ---- what was done ---------------------------------------------------------------------------------------------


def _record(catalog: Catalog, run: Run) -> None:
    catalog.ensure_tables(_TABLES, _SENSE)
    with catalog.changing(durable=False) as connection:
        connection.execute(
            "insert into maintenance values (?, 1, ?, ?, ?, ?, ?, ?) on conflict (task) do update set "
            "runs = runs + 1, errors = errors + excluded.errors, last_started_ms = excluded.last_started_ms, "
            "last_seconds = excluded.last_seconds, last_error = coalesce(excluded.last_error, last_error), "
            "last_done = excluded.last_done, process = excluded.process",
            (
                run.task,
                int(run.error is not None),
                time.time_ns() // 1_000_000 - int(run.seconds * 1000),
                run.seconds,
                run.error,
                json.dumps(run.done),
                os.getpid(),
            ),
        )


def task_stats(catalog: Catalog) -> list[TaskStats]:
    """What maintenance did over the life of the store, by any process."""
    catalog.check_tables(_TABLES, _SENSE)
    with catalog.reading() as connection:
        if not connection.execute("select 1 from sqlite_schema where name = 'maintenance'").fetchone():
            return []
        rows = connection.execute("select * from maintenance order by task").fetchall()
    return [
        TaskStats(task, count, errors, started, seconds, error, json.loads(done), process)
        for task, count, errors, started, seconds, error, done, process in rows
    ]


# ---- the tasks -------------------------------------------------------------------------------------------------


def _end_transactions(store: Store, stop: Stop) -> dict[str, int]:
    from streamcore.transactions import finish_transactions

    return {"ended": finish_transactions(store, everything=False)}


def _expire_groups(store: Store, stop: Stop) -> dict[str, int]:
    from streamcore.groups import expire_offsets

    return {"expired": expire_offsets(store.catalog)}


def _retain(store: Store, stop: Stop) -> dict[str, int]:
    from streamcore.retention import apply_retention

    reports = _of_topics(store, stop, apply_retention)
    return {
        "segments": sum(report.segments for report in reports),
        "bytes": sum(report.size_bytes for report in reports),
        "segments_from_the_future": sum(report.from_the_future for report in reports),
    }


def _compact(store: Store, stop: Stop) -> dict[str, int]:
    def compact(topic: Topic) -> list[Rewritten]:
        if not topic.config.compacts:
            return []
        return topic.compact(None, BYTES_PER_SECOND, stop, min_dirty_ratio=MIN_DIRTY_RATIO)

    return _rewritten(_of_topics(store, stop, compact))


def _consolidate(store: Store, stop: Stop) -> dict[str, int]:
    return _rewritten(_of_topics(store, stop, lambda topic: topic.consolidate(None, BYTES_PER_SECOND, stop)))


def _tier(store: Store, stop: Stop) -> dict[str, int]:
    if store.tier is None:
        return {}
    from streamcore.tier import upkeep

    return upkeep.keep(store, store.tier, stop)


def _of_topics(store: Store, stop: Stop, work: Callable[[Topic], _Done]) -> list[_Done]:
    """Topic by topic, until it is time to stop. One that was deleted meanwhile has nothing left to do.

    One where it fails does not keep it from the others: the first failure is raised when all had their turn.
    """
    done, failures = [], []
    for topic in store.topics():
        if stop():
            break
        try:
            done.append(work(topic))
        except TopicNotFoundError:
            continue
        except (StreamcoreError, OSError) as error:
            _log.warning("maintenance of topic %s: %s", topic.name, error)
            failures.append(error)
    if failures:
        raise failures[0]
    return done


def _rewritten(done: Sequence[Sequence[Rewritten]]) -> dict[str, int]:
    every = [one for some in done for one in some]
    return {
        "segments": len(every),
        "bytes_before": sum(one.bytes_before for one in every),
        "bytes_after": sum(one.bytes_after for one in every),
        "records_dropped": sum(one.records_before - one.records_after for one in every),
    }


TASKS = (
    Task("transactions", _end_transactions),
    Task("groups", _expire_groups),
    Task("retention", _retain),
    Task("compaction", _compact),
    Task("consolidation", _consolidate),
    Task("tier", _tier),
)
