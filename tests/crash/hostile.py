"""A real store to be hostile to, what may be put in the place of its files, and a use of all that a store does.

A use says of each step what came of it: a value, or an error of streamcore. Anything else is a fault of ours.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

import streamcore as sc

MEMORY_BYTES = 6 << 30
TOPIC, TYPED = "clicks", "quakes"
PARTITIONS = 2
Values = dict[str, list[Any]]  # of each partition, by name


def make_store(path: Path) -> Values:
    """A closed store with segments, groups, transactions and what else there is; returns its records."""
    with sc.open(path, maintenance=False) as store:
        topic = store.create_topic(TOPIC, PARTITIONS, segment_bytes=64 << 10)
        for n in range(60):
            keys = [b"%d" % key for key in range(n % 7 + 1)]
            topic.append([b"%d of %d " % (n, len(keys)) + bytes(700)] * len(keys), keys=keys)
        typed = store.create_topic(TYPED, schema=pa.schema([("n", pa.int64()), ("s", pa.string())]))
        typed.append([{"n": n, "s": str(n)} for n in range(20)])
        with store.consumer(TOPIC, group="g") as consumer:
            consumer.poll(0)
            consumer.commit()
        with store.transaction("etl") as transaction:
            transaction.append(topic, [b"kept"] * 2, partition=0)
        with contextlib.suppress(KeyError), store.transaction("etl") as transaction:
            transaction.append(topic, [b"aborted"], partition=0)
            raise KeyError
        topic.append([b"last"] * 8, keys=[b"%d" % key for key in range(8)], durability="disk")
        store.maintain()
        store.set_setting("a", "b")
        return values_of(store)


def values_of(store: sc.Store) -> Values:
    """What a reader gets from each partition."""
    found: Values = {f"{TOPIC} {n}": column(store.topic(TOPIC), n) for n in range(PARTITIONS)}
    found[f"{TYPED} 0"] = column(store.topic(TYPED), 0)
    return found


def column(topic: sc.Topic, partition: int) -> list[Any]:
    """The values of a partition, committed ones."""
    return topic.scan(partition=partition, isolation="committed").to_arrow()["value"].to_pylist()


# ---- what may stand in the place of a file -----------------------------------------------------------------------


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _socket(path: Path) -> None:
    _remove(path)
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def _link_away(path: Path) -> None:
    """What was there lies elsewhere, as somebody may have moved it to a larger disk."""
    away = path.with_name(path.name + ".elsewhere")
    path.rename(away)
    path.symlink_to(away)


def _grow(path: Path) -> None:
    """To as many bytes as the file system allows, without one of them."""
    for bits in (63, 50, 44, 43, 42):
        with contextlib.suppress(OSError):
            os.truncate(path, (1 << bits) - 4096)
            return


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _write(content: Callable[[int], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content(path.stat().st_size)) if _is_file(path) else None


KINDS: dict[str, Callable[[Path], object]] = {
    "nothing": _remove,
    "a pipe": lambda path: (_remove(path), os.mkfifo(path)),
    "a socket": _socket,
    "a folder": lambda path: (_remove(path), path.mkdir()),
    "a device": lambda path: (_remove(path), path.symlink_to("/dev/zero")),
    "a dangling link": lambda path: (_remove(path), path.symlink_to("nowhere")),
    "a link to itself": lambda path: (_remove(path), path.symlink_to(path.name)),
    "a link to the same": _link_away,
    "no bytes": _write(lambda size: b""),
    "random bytes": _write(lambda size: random.Random(size).randbytes(max(64, min(size, 1 << 20)))),
    "text": _write(lambda size: b"hello world\n" * 500),
    "ones": _write(lambda size: b"\xff" * min(size, 1 << 20)),
    "half": _write(lambda size: b"x" * (size // 2)),
    "huge": lambda path: _grow(path) if _is_file(path) else None,
    "no rights": lambda path: path.chmod(0),
}


# ---- using all of it ----------------------------------------------------------------------------------------------


def _reads(store: sc.Store) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "topics", lambda: [topic.name for topic in store.topics()]
    for n in range(PARTITIONS):
        yield f"{TOPIC} {n}", lambda n=n: column(store.topic(TOPIC), n)  # type: ignore[misc]
    yield f"{TYPED} 0", lambda: column(store.topic(TYPED), 0)
    yield "records", lambda: len(list(store.topic(TOPIC).scan()))
    yield "partitions", lambda: [partition.end_offset for partition in store.topic(TOPIC).partitions]
    yield "segments", lambda: len(store.topic(TOPIC).segments())
    yield "verify", lambda: len(store.verify())
    yield "stats", lambda: bool(store.stats())
    yield "digests", lambda: len(list(store.digests()))
    yield "groups", lambda: [len(group.members()) for group in store.groups()]
    yield "lag", lambda: sum(store.group("g").lag().values())
    yield "setting", lambda: store.get_setting("a")
    yield "consume", lambda: _consume(store)


def _consume(store: sc.Store) -> int:
    with store.consumer(TOPIC) as consumer:
        return len(consumer.poll(0))


def _writes(store: sc.Store) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "append", lambda: store.topic(TOPIC).append([b"z"] * 4, keys=[b"1", b"2", b"3", b"4"]) and None
    yield "append to disk", lambda: store.topic(TOPIC).append([b"z"] * 2, keys=[b"1", b"4"], durability="disk") and None
    yield "append typed", lambda: store.topic(TYPED).append([{"n": 1, "s": "x"}]) and None
    yield "transaction", lambda: _transact(store)
    yield "commit", lambda: _commit(store)
    yield "maintain", lambda: [run.error for run in store.maintain() or []] and None
    yield "flush", store.flush
    yield "create", lambda: store.create_topic("new").name
    yield "delete", lambda: store.delete_topic("new")


def _transact(store: sc.Store) -> None:
    with store.transaction("etl") as transaction:
        transaction.append(store.topic(TOPIC), [b"t"], partition=1)


def _commit(store: sc.Store) -> None:
    with store.consumer(TOPIC, group="g") as consumer:
        consumer.poll(0)
        consumer.commit()


class Use:
    """What came of each step: values by step, and how streamcore complained."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.errors: dict[str, str] = {}

    def step(self, name: str, work: Callable[[], Any]) -> bool:
        """Does it; an exception that is none of streamcore's goes on."""
        try:
            self.values[name] = work()
        except sc.StreamcoreError as error:
            self.errors[name] = f"{type(error).__name__}: {error}"
        return name in self.values

    def check_values(self, wanted: Values, *, whole: bool) -> None:
        """Nothing wrong came out: the records that there are, or, unless it must be whole, the first of them."""
        for name, values in wanted.items():
            found = self.values.get(name)
            if found is None:
                assert name in self.errors or "open" in self.errors, f"nothing was said of {name}"
            elif whole:
                assert found == values, f"{name} has {len(found)} records, not {len(values)}, and nobody said so"
            else:
                assert found == values[: len(found)], f"{name} has wrong records"


def use(path: Path, mode: str) -> Use:
    """Opens the store and does everything that there is to do."""
    found = Use()
    opened: list[sc.Store] = []
    if not found.step("open", lambda: opened.append(sc.open(path, mode, maintenance=False))):  # type: ignore[arg-type]
        return found
    for name, work in _reads(opened[0]):
        found.step(name, work)
    if mode == "rw":
        for name, work in _writes(opened[0]):
            found.step(name, work)
    found.step("close", opened[0].close)
    return found


def bound_memory() -> None:
    """A process that wants more than this has gone astray."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


# ---- the catalog --------------------------------------------------------------------------------------------------


def change_catalog(store_path: Path, *statements: str) -> None:
    """Runs statements in the catalog of a closed store; constraints of its tables do not bind."""
    with contextlib.closing(sqlite3.connect(store_path / "catalog.sqlite", isolation_level=None)) as connection:
        connection.execute("pragma writable_schema = on")
        connection.execute("update sqlite_schema set sql = replace(sql, ' not null', '') where type = 'table'")
        connection.execute("pragma writable_schema = reset")
        for statement in statements:
            connection.execute(statement)
