"""What the children do that are killed: the ways to write, and what each call of each writer appends."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import mmap
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import streamcore as sc

from .forkserver import DEADLINE_S, Channel

TOPIC = "written"
BATCH_ROWS_MAX = 1 << 16
TIMESTAMP = pa.timestamp("ms", tz="UTC")
HEADERS = pa.list_(pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.binary())]))
TYPED_SCHEMA = pa.schema(
    [
        ("tag", pa.string()),
        ("number", pa.int64()),
        ("ratio", pa.float64()),
        ("flag", pa.bool_()),
        ("parts", pa.list_(pa.int16())),
    ]
)
_NOISE = random.Random(1).randbytes(1 << 16)
_FIRST_TIME_MS = 1_700_000_000_000


@dataclasses.dataclass(frozen=True)
class WritePath:
    """One way to write: the topic's settings, and the shape of its calls."""

    name: str
    rows: tuple[int, int]
    value_bytes: tuple[int, int] = (0, 200)
    partitions: int = 1
    as_table: bool = False
    keyed: bool = False
    with_headers: bool = False
    typed: bool = False
    settings: tuple[tuple[str, Any], ...] = ()

    def make_topic(self, store: sc.Store) -> sc.Topic:
        """The topic, made when it is not there."""
        with contextlib.suppress(sc.TopicNotFoundError):
            return store.topic(TOPIC)
        schema = TYPED_SCHEMA if self.typed else None
        with contextlib.suppress(sc.TopicExistsError):
            return store.create_topic(TOPIC, partitions=self.partitions, schema=schema, **dict(self.settings))
        return store.topic(TOPIC)


_SMALL_SEGMENTS = (("segment_bytes", 64 << 10),)
PATHS = {
    path.name: path
    for path in (
        WritePath("lists", (1, 40)),
        WritePath("lists with headers", (1, 40), with_headers=True),
        WritePath("tables", (1, 300), as_table=True),
        WritePath("many batches", (BATCH_ROWS_MAX + 1, 2 * BATCH_ROWS_MAX + 9), as_table=True),
        WritePath("many batches in lists", (BATCH_ROWS_MAX + 1, BATCH_ROWS_MAX + 20)),
        WritePath("large values", (1, 6), value_bytes=(1 << 18, 3 << 19)),
        WritePath("keys over 4 partitions", (1, 60), partitions=4, keyed=True),
        WritePath("tables with keys over 4 partitions", (1, 300), partitions=4, keyed=True, as_table=True),
        WritePath("zstd", (1, 300), as_table=True, settings=(("compression", "zstd"),)),
        WritePath("typed", (1, 200), as_table=True, typed=True),
        WritePath("rolls", (1, 40), value_bytes=(0, 1200), settings=_SMALL_SEGMENTS),
        WritePath("rolls of tables", (1, 400), as_table=True, keyed=True, partitions=4, settings=_SMALL_SEGMENTS),
    )
}


# ---- what a call appends -----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=512)
def table_of(path_name: str, writer: int, call: int) -> pa.Table:
    """The records of a call: columns timestamp, key, value, headers. Each record is like no other."""
    path = PATHS[path_name]
    chance = random.Random(f"{path_name} {writer} {call}")
    rows = chance.randint(*path.rows)
    times = pa.array(_FIRST_TIME_MS + call * 1000 + np.arange(rows) % 997, pa.int64()).view(TIMESTAMP)
    if rows > BATCH_ROWS_MAX:
        key, value = pa.nulls(rows, pa.binary()), _numbered_values(writer, call, rows)
    else:
        key, value = _keys(path, chance, rows), _values(path, chance, writer, call, rows)
    headers = _headers(chance, rows) if path.with_headers else pa.nulls(rows, HEADERS)
    return pa.table({"timestamp": times, "key": key, "value": value, "headers": headers})


def _numbered_values(writer: int, call: int, rows: int) -> pa.Array:
    numbers = np.empty((rows, 3), np.uint32)
    numbers[:, 0], numbers[:, 1], numbers[:, 2] = writer, call, np.arange(rows)
    ends = np.arange(rows + 1, dtype=np.int32) * 12
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(numbers.tobytes())]
    return pa.Array.from_buffers(pa.binary(), rows, buffers)


def _keys(path: WritePath, chance: random.Random, rows: int) -> pa.Array:
    keys = [b"key %d" % chance.randrange(64) for _ in range(rows)]
    return pa.array(keys if path.keyed else [None if chance.random() < 0.3 else key for key in keys], pa.binary())


def _values(path: WritePath, chance: random.Random, writer: int, call: int, rows: int) -> pa.Array:
    tags = [f"{writer}.{call}.{row}/{rows} " for row in range(rows)]
    if path.typed:
        made = [_typed_value(chance, call, row, tag) for row, tag in enumerate(tags)]
        return pa.array(made, pa.struct(list(TYPED_SCHEMA)))
    values = []
    for tag in tags:
        start, size = chance.randrange(1 << 15), chance.randint(*path.value_bytes)
        if size < 1 << 15:
            values.append(tag.encode() + _NOISE[start : start + size])
            continue
        values.append((tag.encode() + _NOISE[start:] + _NOISE * (size >> 16))[: len(tag) + size])
    return pa.array(values, pa.binary())


def _typed_value(chance: random.Random, call: int, row: int, tag: str) -> dict[str, Any]:
    return {
        "tag": tag,
        "number": call << 32 | row,
        "ratio": chance.random(),
        "flag": row % 2 == 0,
        "parts": [row] * (row % 4),
    }


def _headers(chance: random.Random, rows: int) -> pa.Array:
    pairs = [{"key": "trace", "value": chance.randbytes(8)}, {"key": "none", "value": None}]
    return pa.array([pairs[: chance.randint(1, 2)] for _ in range(rows)], HEADERS)


def append_call(topic: sc.Topic, path: WritePath, records: pa.Table, durability: Any = None) -> list[sc.Span]:
    """Appends the records of a call in the path's way."""
    if path.as_table:
        keep = ["timestamp", "value", *(["key"] if path.rows[1] <= BATCH_ROWS_MAX else [])]
        return topic.append_table(records.select(keep), durability=durability)
    columns = {name: records.column(name).to_pylist() for name in ("key", "value")}
    times = records.column("timestamp").combine_chunks().view(pa.int64()).to_numpy()
    headers = None
    if path.with_headers:
        headers = [[(pair["key"], pair["value"]) for pair in pairs] for pairs in records.column("headers").to_pylist()]
    keys = columns["key"] if path.rows[1] <= BATCH_ROWS_MAX else None
    return topic.append(columns["value"], keys=keys, timestamps=times, headers=headers, durability=durability)


# ---- children ----------------------------------------------------------------------------------------------------


def append_until_killed(
    channel: Channel,
    store_path: str,
    path_name: str,
    durability: str,
    writer: int,
    first_call: int,
    seed: int,
    calls: int = 1 << 30,
    bug: str | None = None,
) -> None:
    """Appends call after call. Says BEGUN, with the seconds that the call before took, then DONE, with the spans.

    Now and then it flushes, or closes the store and opens it again. `bug` makes the log break its promise:
    "acknowledges early" says DONE before it appends, "appends in halves" makes two appends of one; each then waits for
    the end in the middle.
    """
    path = PATHS[path_name]
    chance = random.Random(seed)
    store = sc.open(store_path, durability=durability)
    topic = path.make_topic(store)
    took_s = 0.0
    for call in range(first_call, first_call + calls):
        if channel.is_told_to_stop():
            break
        records = table_of(path_name, writer, call)
        channel.send("BEGUN", call, took_s)
        if bug is not None:
            _break_the_promise(channel, topic, path, records, call, bug)
        began = time.perf_counter()
        spans = append_call(topic, path, records)
        took_s = time.perf_counter() - began
        channel.send("DONE", call, *(":".join(map(str, span)) for span in spans))
        what = chance.random()
        if what < 0.04:
            store.flush()
        elif what < 0.08:
            store.close()
            store = sc.open(store_path, durability=durability)
            topic = store.topic(TOPIC)
    store.close()


def _break_the_promise(
    channel: Channel, topic: sc.Topic, path: WritePath, records: pa.Table, call: int, bug: str
) -> None:
    if bug == "acknowledges early":
        end = topic.partitions[0].end_offset
        channel.send("DONE", call, f"0:{end}:{end + records.num_rows}")
    elif bug == "appends in halves":
        append_call(topic, path, records.slice(0, records.num_rows // 2))
    else:
        raise ValueError(bug)
    channel.send("MIDDLE")
    channel.wait_to_be_told()


def change_topics_until_killed(channel: Channel, store_path: str, first: int, seed: int) -> None:
    """Makes, alters, widens, fills and deletes topics. Says BEGUN before and DONE after each change."""
    chance = random.Random(seed)
    store = sc.open(store_path)
    known = {topic.name: topic for topic in store.topics()}
    took_s = 0.0
    for number in range(first, 1 << 30):
        change = chance.choice(["make", "make", "alter", "widen", "append", "append", "delete"]) if known else "make"
        name = f"topic-{number}" if change == "make" else chance.choice(sorted(known))
        partitions = chance.randint(1, 3) if change == "make" else len(known[name].partitions)
        amount = {"alter": number + 1, "widen": partitions + 1, "delete": 0}.get(change, partitions)
        channel.send("BEGUN", change, name, amount, took_s)
        began = time.perf_counter()
        _change_topic(store, known, change, name, amount)
        took_s = time.perf_counter() - began
        channel.send("DONE", change, name, amount)


def _change_topic(store: sc.Store, known: dict[str, sc.Topic], change: str, name: str, amount: int) -> None:
    if change == "make":
        known[name] = store.create_topic(name, partitions=amount)
    elif change == "alter":
        known[name].alter(retention_ms=amount)
    elif change == "widen":
        known[name].add_partitions(amount)
    elif change == "append":
        for partition in range(amount):
            known[name].append([b"some value"], partition=partition)
    else:
        store.delete_topic(name)
        del known[name]


# ---- death in the middle of a copy -------------------------------------------------------------------------------

COPIED_ROWS = 5000


def numbered_table(chunks: int, broken_chunk: int = -1, pages: int = 0, folder: str = "") -> pa.Table:
    """A table of some chunks, each of which becomes a batch of its append.

    The values of one chunk may lie in a mapped file that is cut to so many pages: who copies them dies there.
    """
    arrays = []
    for chunk in range(chunks):
        numbers = np.arange(chunk * COPIED_ROWS, (chunk + 1) * COPIED_ROWS, dtype=np.int64).tobytes()
        data = _broken_copy(numbers, Path(folder), pages) if chunk == broken_chunk else pa.py_buffer(numbers)
        ends = pa.py_buffer((np.arange(COPIED_ROWS + 1, dtype=np.int32) * 8).tobytes())
        arrays.append(pa.Array.from_buffers(pa.binary(), COPIED_ROWS, [None, ends, data], null_count=0))
    return pa.table({"value": pa.chunked_array(arrays)})


def small_array(pages: int, folder: str) -> pa.Array:
    """Eight values of a page each in a mapped file that is cut to so many pages."""
    data = _broken_copy(_NOISE[: 8 * mmap.PAGESIZE], Path(folder), pages)
    ends = pa.py_buffer((np.arange(9, dtype=np.int32) * mmap.PAGESIZE).tobytes())
    return pa.Array.from_buffers(pa.binary(), 8, [None, ends, data], null_count=0)


def _broken_copy(data: bytes, folder: Path, pages: int) -> pa.Buffer:
    path = folder / f"source-{os.getpid()}"
    path.write_bytes(data)
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        os.ftruncate(file.fileno(), pages * mmap.PAGESIZE)
    return pa.py_buffer(mapped)


def die_while_copying(channel: Channel, store_path: str, chunks: int, broken_chunk: int, pages: int) -> None:
    """Appends a good table and says DONE, then what ends in the middle of the copy: one small batch with 0 chunks."""
    store = sc.open(store_path)
    topic = store.topic(TOPIC)
    topic.append_table(numbered_table(1))
    folder = str(Path(store_path).parent)
    if chunks == 0:
        array = small_array(pages, folder)
        channel.send("DONE")
        topic.append(array)
    else:
        table = numbered_table(chunks, broken_chunk, pages, folder)
        channel.send("DONE")
        topic.append_table(table)


def die_with_a_child(channel: Channel, store_path: str, lifeline: str) -> None:
    """Dies while it holds the partition's lock, and leaves a forked child that lives as long as a file is there."""
    store = sc.open(store_path)
    topic = store.topic(TOPIC)
    topic.append([b"by the dead"])
    child = os.fork()
    if child == 0:
        channel.close()
        end = time.monotonic() + DEADLINE_S
        while Path(lifeline).exists() and time.monotonic() < end:
            time.sleep(0.01)
        os._exit(0)
    channel.send("CHILD", child)
    topic.append(small_array(2, str(Path(store_path).parent)))


def append_once(channel: Channel, store_path: str, value: str) -> None:
    """Appends one record, says DONE, and closes."""
    with sc.open(store_path) as store:
        store.topic(TOPIC).append([value.encode()])
        channel.send("DONE")
