"""A store against a simple model of it: whatever is done in whatever order, both tell the same."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import strategies as st  # noqa: E402  # needs hypothesis
from hypothesis.stateful import (  # noqa: E402
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

NAMES = st.sampled_from(["a", "b", "c"])
BYTES = st.none() | st.binary(max_size=12) | st.integers(100, 20_000).map(lambda size: bytes([size % 256]) * size)
TIMES = st.integers(-1000, 1000)
SCHEMAS = [
    pa.schema([("n", pa.int64()), ("s", pa.string())]),
    pa.schema([("n", pa.int64()), ("s", pa.string()), ("l", pa.list_(pa.int8()))]),
    pa.schema(
        [("x", pa.struct([("y", pa.bool_())])), ("n", pa.int64()), ("s", pa.string()), ("l", pa.list_(pa.int8()))]
    ),
]
ROWS = st.none() | st.fixed_dictionaries(
    {},
    optional={"n": st.none() | st.integers(-(1 << 63), (1 << 63) - 1), "s": st.none() | st.text("aü€", max_size=8)},
)
HEADERS = st.none() | st.lists(st.tuples(st.text("ab", max_size=2), st.none() | st.binary(max_size=3)), max_size=2)


@dataclasses.dataclass
class Model:
    """What a topic should be: per partition its records as (timestamp, key, value, headers)."""

    partitions: list[list[tuple[int, bytes | None, Any, tuple[Any, ...]]]]
    schema: int | None
    compression: str


def murmur2(data: bytes) -> int:
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    for i in range(len(data) // 4):
        k = int.from_bytes(data[4 * i : 4 * i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    rest = data[len(data) // 4 * 4 :]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def moment(milliseconds: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=milliseconds)


class StoreMachine(RuleBasedStateMachine):
    """Two handles of one store, one of which may be opened anew or only read."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="streamcore-model-"))
        self.stores = [sc.open(self.folder / "store"), sc.open(self.folder / "store")]
        self.models: dict[str, Model] = {}

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        with sc.open(self.folder / "store", mode="r") as store:
            assert store.verify() == []
        shutil.rmtree(self.folder)

    # ---- topics ----

    @initialize(schema=st.none() | st.just(0), compression=st.sampled_from(["none", "lz4"]))
    def first_topic(self, schema: int | None, compression: str) -> None:
        self.create("a", 2, schema, compression, 0)

    @rule(
        name=NAMES,
        partitions=st.integers(1, 3),
        schema=st.none() | st.just(0),
        compression=st.sampled_from(["none", "none", "lz4", "zstd"]),
        which=st.integers(0, 1),
    )
    def create(self, name: str, partitions: int, schema: int | None, compression: str, which: int) -> None:
        settings: dict[str, Any] = {"compression": compression, "segment_bytes": 1 << 16}
        if schema is not None:
            settings["schema"] = SCHEMAS[schema]
        if name in self.models:
            with pytest.raises(sc.TopicExistsError):
                self.stores[which].create_topic(name, partitions, **settings)
            return
        self.stores[which].create_topic(name, partitions, **settings)
        self.models[name] = Model([[] for _ in range(partitions)], schema, compression)

    @rule(name=NAMES, which=st.integers(0, 1))
    def delete(self, name: str, which: int) -> None:
        if self.models.pop(name, None) is None:
            with pytest.raises(sc.TopicNotFoundError):
                self.stores[which].delete_topic(name)
        else:
            self.stores[which].delete_topic(name)

    @rule(name=NAMES, more=st.integers(1, 2), which=st.integers(0, 1))
    def add_partitions(self, name: str, more: int, which: int) -> None:
        model = self.models.get(name)
        if model is not None and len(model.partitions) < 5:
            self.stores[which].topic(name).add_partitions(len(model.partitions) + more)
            model.partitions += [[] for _ in range(more)]

    @rule(name=NAMES, which=st.integers(0, 1), compression=st.sampled_from(["none", "lz4", "zstd"]))
    def alter_compression(self, name: str, which: int, compression: str) -> None:
        if name in self.models:
            self.stores[which].topic(name).alter(compression=compression)
            self.models[name].compression = compression

    @rule(name=NAMES, which=st.integers(0, 1))
    def widen(self, name: str, which: int) -> None:
        model = self.models.get(name)
        if model is not None and model.schema is not None and model.schema + 1 < len(SCHEMAS):
            model.schema += 1
            self.stores[which].topic(name).alter(schema=SCHEMAS[model.schema])

    # ---- appends ----

    def expected(self, model: Model, value: Any) -> Any:
        if model.schema is None or value is None:
            return value
        return {field.name: value.get(field.name) for field in SCHEMAS[model.schema]}

    @rule(
        name=NAMES,
        which=st.integers(0, 1),
        data=st.data(),
        form=st.sampled_from(["list", "arrow", "table"]),
        with_headers=st.booleans(),
    )
    def append(self, name: str, which: int, data: st.DataObject, form: str, with_headers: bool) -> None:
        model = self.models.get(name)
        if model is None:
            with pytest.raises(sc.TopicNotFoundError):
                self.stores[which].topic(name)
            return
        values = data.draw(st.lists(BYTES if model.schema is None else ROWS, min_size=1, max_size=9))
        count = len(values)
        keys = data.draw(st.none() | st.lists(st.none() | st.binary(max_size=5), min_size=count, max_size=count))
        times = data.draw(st.lists(TIMES, min_size=count, max_size=count))
        headers = data.draw(st.lists(HEADERS, min_size=count, max_size=count)) if with_headers else None
        where = data.draw(st.integers(0, len(model.partitions) - 1))
        by_key = keys is not None and None not in keys and data.draw(st.booleans())
        targets = [(murmur2(key) & 0x7FFFFFFF) % len(model.partitions) if by_key else where for key in keys or values]
        topic = self.stores[which].topic(name)
        self.hand_over(topic, model, form, values, keys, times, headers, None if by_key else where)
        for i, target in enumerate(targets):
            pairs = tuple(headers[i] or ()) if headers else ()
            record = (times[i], keys[i] if keys else None, values[i], pairs)
            model.partitions[target].append(record)

    def hand_over(
        self,
        topic: sc.Topic,
        model: Model,
        form: str,
        values: Any,
        keys: Any,
        times: Any,
        headers: Any,
        where: int | None,
    ) -> None:
        kind = pa.binary() if model.schema is None else pa.struct(list(SCHEMAS[model.schema]))
        if form == "list":
            topic.append(values, keys=keys, timestamps=times, headers=headers, partition=where)
        elif form == "arrow" or headers is not None:
            arrow_keys = None if keys is None else pa.array(keys, pa.binary())
            topic.append(pa.array(values, kind), arrow_keys, pa.array(times, pa.int64()), headers, where)
        else:
            columns = {"value": pa.array(values, kind), "timestamp": pa.array(times, pa.timestamp("ms", "UTC"))}
            if keys is not None:
                columns["key"] = pa.array(keys, pa.large_binary())
            if where is not None:
                columns["partition"] = pa.array([where] * len(values))
            topic.append_table(pa.table(columns))

    @rule(name=NAMES, which=st.integers(0, 1), bad=st.sampled_from(["type", "keys", "partition", "naive"]))
    def refused_append(self, name: str, which: int, bad: str) -> None:
        if name not in self.models:
            return
        topic = self.stores[which].topic(name)
        good = [b"x"] if self.models[name].schema is None else [{"n": 1}]
        with pytest.raises((TypeError, ValueError)):
            if bad == "type":
                topic.append([*good, 5])
            elif bad == "keys":
                topic.append(good, keys=[b"a", b"b"])
            elif bad == "partition":
                topic.append(good, partition=99)
            else:
                topic.append(good, timestamps=dt.datetime(2026, 1, 1))

    # ---- scans ----

    def wanted(self, model: Model, starts: list[int], ends: list[int]) -> list[tuple[Any, ...]]:
        return [
            (p, offset, time, key, self.expected(model, value), headers)
            for p, records in enumerate(model.partitions)
            for offset, (time, key, value, headers) in enumerate(records)
            if starts[p] <= offset < ends[p]
        ]

    @rule(name=NAMES, which=st.integers(0, 1), data=st.data())
    def scan(self, name: str, which: int, data: st.DataObject) -> None:
        model = self.models.get(name)
        if model is None:
            return
        sizes = [len(records) for records in model.partitions]
        starts = [data.draw(st.integers(0, size)) for size in sizes]
        ends = [data.draw(st.integers(start, size)) for start, size in zip(starts, sizes, strict=True)]
        limit = data.draw(st.none() | st.integers(0, 12))
        wanted = self.wanted(model, starts, ends)[: len(sizes) * 1000 if limit is None else limit]
        topic = self.stores[which].topic(name)
        scan = topic.scan(start=dict(enumerate(starts)), end=dict(enumerate(ends)), limit=limit)
        found = [(r.partition, r.offset, r.timestamp_ms, r.key, r.value, r.headers) for r in scan]
        assert found == wanted
        assert scan.count() == len(wanted)
        assert scan.to_arrow()["value"].to_pylist() == [record[4] for record in wanted]

    @rule(name=NAMES, which=st.integers(0, 1), low=TIMES, high=TIMES, limit=st.none() | st.integers(0, 12))
    def scan_by_time(self, name: str, which: int, low: int, high: int, limit: int | None) -> None:
        model = self.models.get(name)
        if model is None or low > high:
            return
        sizes = [len(records) for records in model.partitions]
        wanted = [r for r in self.wanted(model, [0] * len(sizes), sizes) if low <= r[2] < high]
        wanted = wanted if limit is None else wanted[:limit]
        scan = self.stores[which].topic(name).scan(start=moment(low), end=moment(high), limit=limit)
        assert [(r.partition, r.offset, r.timestamp_ms, r.key, r.value, r.headers) for r in scan] == wanted
        table = scan.to_arrow()
        assert table["offset"].to_pylist() == [r[1] for r in wanted]
        assert table["key"].to_pylist() == [r[3] for r in wanted]
        assert scan.count() == len(wanted)

    @rule(name=NAMES, which=st.integers(0, 1))
    def project(self, name: str, which: int) -> None:
        model = self.models.get(name)
        if model is None or model.schema is None:
            return
        sizes = [len(records) for records in model.partitions]
        wanted = self.wanted(model, [0] * len(sizes), sizes)
        columns = ["value.s", "partition", *(["value.x.y"] if model.schema == 2 else [])]
        table = self.stores[which].topic(name).scan(columns=columns).to_arrow()
        assert table["partition"].to_pylist() == [r[0] for r in wanted]
        assert table["value.s"].to_pylist() == [None if r[4] is None else r[4]["s"] for r in wanted]
        if model.schema == 2:
            assert table["value.x.y"].null_count == len(wanted)

    # ---- the store ----

    @rule(which=st.integers(0, 1))
    def open_anew(self, which: int) -> None:
        self.stores[which].close()
        self.stores[which] = sc.open(self.folder / "store")

    @rule(which=st.integers(0, 1))
    def flush(self, which: int) -> None:
        self.stores[which].flush()

    @precondition(lambda self: self.models)
    @rule()
    def read_only(self) -> None:
        with sc.open(self.folder / "store", mode="r") as store:
            for name, model in self.models.items():
                topic = store.topic(name)
                assert [p.end_offset for p in topic.partitions] == [len(records) for records in model.partitions]
                assert topic.scan().count() == sum(map(len, model.partitions))

    @invariant()
    def both_know_the_topics_and_their_ends(self) -> None:
        for store in self.stores:
            assert [topic.name for topic in store.topics()] == sorted(self.models)
            for name, model in self.models.items():
                topic = store.topic(name)
                assert [p.end_offset for p in topic.partitions] == [len(records) for records in model.partitions]
                assert topic.config.compression == model.compression
                assert topic.schema == (None if model.schema is None else SCHEMAS[model.schema])


StoreMachine.TestCase.settings = hypothesis.settings(max_examples=25, stateful_step_count=25)
test_a_store_behaves_like_its_model = StoreMachine.TestCase
