"""A tiered topic is an Iceberg table: other programs read from the bucket alone just what its manifests name."""

from __future__ import annotations

import builtins
import collections
import contextlib
import dataclasses
import datetime
import decimal
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamcore as sc
from streamcore.tier import keeping, offload, tables
from streamcore.tier.folder import FolderObjects
from streamcore.tier.manifest import Manifest
from streamcore.tier.objects import Transient

from .fault_proxy import Fault, FaultProxy
from .servers import Place
from .test_tiered_servers import KINDS
from .test_tiered_topic import SEGMENT_BYTES, fill, move, objects_of, parquet_files

pytest.importorskip("pyiceberg", reason="the extra [iceberg] is not installed")
polars = pytest.importorskip("polars")

from pyiceberg.table import StaticTable  # noqa: E402

from streamcore.tier.iceberg import following  # noqa: E402
from streamcore.tier.iceberg import table as iceberg_table  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Iceberg scan planning with the polars_iceberg plugin")
COLUMNS = ["partition", "offset", "timestamp", "key", "value", "headers"]


@pytest.fixture
def tier_path(tmp_path: Path) -> Path:
    """The folder that is the tier; other programs find what has a space in its name."""
    return tmp_path / "the tier"


@pytest.fixture
def store(store_path: Path, tier_path: Path) -> Iterator[sc.Store]:
    """A store with a tier in a folder, whose background work is done by hand."""
    with sc.open(store_path, maintenance=False, tier=tier_path.as_uri(), tier_options={"deadline_s": 0.2}) as opened:
        yield opened


def make(store: sc.Store, name: str = "clicks", **settings: Any) -> sc.Topic:
    """A topic with an Iceberg table."""
    return store.create_topic(name, **{"tier": True, "tier_iceberg": True, "segment_bytes": SEGMENT_BYTES, **settings})


def status_of(topic: sc.Topic) -> sc.TableStatus:
    """What this machine knows of a table."""
    assert topic.store.tier is not None
    [found] = [one for one in topic.store.tier.status().tables if one.topic == topic.name]
    return found


def opened(topic: sc.Topic) -> StaticTable:
    """The table as another program finds it: from its address alone."""
    return StaticTable.from_metadata(status_of(topic).location)


def names_in(table: StaticTable) -> list[str]:
    """The objects that a table names."""
    return sorted(Path(task.file.file_path).name for task in table.scan().plan_files())


def named(topic: sc.Topic) -> list[str]:
    """The objects that manifests name."""
    assert topic.cold is not None
    copies = [topic.cold.fresh(number) for number in range(topic.partition_count)]
    return sorted(entry.name for copy in copies if copy for entry in copy.manifest.entries if entry.name)


def in_order(table: pa.Table) -> list[dict[str, Any]]:
    """Rows by partition and offset."""
    rows: list[dict[str, Any]] = table.sort_by([(name, "ascending") for name in COLUMNS[:2]]).to_pylist()
    return rows


def without_null_lists(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """pyiceberg reads a list of structs that is null as an empty one (0.12)."""
    return [{**row, "headers": row["headers"] or []} for row in rows]


def check_rows(topic: sc.Topic) -> None:
    """pyiceberg and Polars read what a scan does; all of it has to be in the tier."""
    wanted = topic.scan(columns=COLUMNS).to_arrow()
    place = status_of(topic).location
    assert in_order(polars.scan_iceberg(place).collect().to_arrow()) == wanted.to_pylist()
    found = in_order(opened(topic).scan().to_arrow())
    assert without_null_lists(found) == without_null_lists(wanted.to_pylist())


def metadata_of(topic: sc.Topic, tier_path: Path) -> list[str]:
    """The names of the files of the metadata."""
    assert topic.cold is not None
    return sorted(path.name for path in (tier_path / topic.cold.folder / tables.METADATA_FOLDER).glob("*"))


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_other_programs_read_the_rows_of_a_plain_topic(store: sc.Store, tier_path: Path) -> None:
    topic = make(store, partitions=3)
    fill(topic)
    objects = len(parquet_files(tier_path))
    topic.offload()
    check_rows(topic)
    assert len(names_in(opened(topic))) == len(parquet_files(tier_path)) > objects
    assert all(file.parent.parent.name == topic.folder for file in parquet_files(tier_path))  # there is no second copy
    table = opened(topic)
    assert [field.name for field in table.schema().fields] == COLUMNS
    assert [field.field_id for field in table.schema().fields] == [1, 2, 3, 4, 5, 6]


SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        *(pa.field(f"u{bits}", kind) for bits, kind in ((8, pa.uint8()), (16, pa.uint16()), (32, pa.uint32()))),
        ("small", pa.int8()),
        ("yes", pa.bool_()),
        ("half", pa.float32()),
        ("double", pa.float64()),
        ("price", pa.decimal128(20, 4)),
        ("day", pa.date32()),
        ("clock", pa.time64("us")),
        ("s", pa.timestamp("s")),
        ("ms", pa.timestamp("ms", "UTC")),
        ("us", pa.timestamp("us")),
        ("text", pa.large_string()),
        ("raw", pa.binary(4)),
        ("a.b", pa.string()),
        pa.field("user", pa.struct([("name", pa.string()), ("ids", pa.list_(pa.int32()))]), metadata={"of": "us"}),
        ("tags", pa.map_(pa.string(), pa.int16())),
        ("lists", pa.list_(pa.list_(pa.string()))),
    ]
)


def row_of(number: int) -> dict[str, Any] | None:
    """A value of SCHEMA: some fields are null, as is a value now and then."""
    moment = datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=number)
    some = {
        "number": number,
        "u8": number % 256,
        "u16": 65_000 + number % 100,
        "u32": 4_000_000_000 + number,
        "small": -(number % 100),
        "yes": number % 2 == 0,
        "half": number / 2,
        "double": number / 3,
        "price": decimal.Decimal(number) / 4,
        "day": moment.date(),
        "clock": moment.time(),
        "s": moment,
        "ms": moment.replace(tzinfo=datetime.UTC),
        "us": moment,
        "text": "ä" * (number % 40),
        "raw": b"%04d" % (number % 10_000),
        "a.b": str(number),
        "user": {"name": None if number % 3 else "x", "ids": [number, None]},
        "tags": [("one", number % 10)],
        "lists": [["a", None], []],
    }
    if number % 11 == 0:
        return None
    names = list(some)
    return {name: some[name] if name == "number" or number % 7 != names.index(name) % 7 else None for name in some}


def test_other_programs_read_the_rows_of_a_typed_topic_with_nulls(store: sc.Store) -> None:
    topic = make(store, schema=SCHEMA, partitions=2)
    for first in (0, 500):
        topic.append([row_of(n) for n in range(first, first + 500)], keys=[b"%d" % n for n in range(500)])
        topic.roll()
    topic.offload()
    check_rows(topic)


def test_times_are_in_microseconds_in_the_objects_and_come_back_as_they_were(store: sc.Store) -> None:
    kinds = {
        "s": pa.timestamp("s"),
        "ms": pa.timestamp("ms", "UTC"),
        "list": pa.list_(pa.timestamp("s")),
        "map": pa.map_(pa.string(), pa.timestamp("ms")),
        "in": pa.struct([("ms", pa.timestamp("ms")), ("list", pa.list_(pa.struct([("s", pa.timestamp("s"))])))]),
    }
    topic = make(store, schema=pa.schema(list(kinds.items())))
    moment = datetime.datetime(1960, 1, 2, 3, 4, 5)
    value = {
        "s": moment,
        "ms": moment.replace(microsecond=123_000, tzinfo=datetime.UTC),
        "list": [moment, None],
        "map": [("a", moment)],
        "in": {"ms": moment, "list": [{"s": moment}, None]},
    }
    topic.append([value, None, dict.fromkeys(kinds)] * 100, timestamps=[n - 150 for n in range(300)])
    topic.roll()
    before = topic.scan().to_arrow().combine_chunks()
    a_part = topic.scan(start=moment.replace(year=1969, tzinfo=datetime.UTC), end=before["timestamp"][200].as_py())
    times = a_part.to_arrow()
    move(topic)
    assert topic.partitions[0].local_start_offset == 300
    assert topic.scan().to_arrow().combine_chunks().equals(before)
    assert a_part.to_arrow().equals(times)
    [path] = parquet_files(Path(store.tier.address.removeprefix("file://")))  # type: ignore[union-attr]
    said = str(pq.read_metadata(path).schema)
    assert said.count("timeUnit=") == said.count("timeUnit=microseconds") > 5
    check_rows(topic)


def test_times_that_microseconds_cannot_say_stay_milliseconds(store: sc.Store) -> None:
    topic = make(store)
    topic.append([b"far", b"near"], timestamps=[1 << 60, 0])
    topic.roll()
    move(topic)
    assert topic.scan(columns=["timestamp"]).to_arrow().column(0).cast(pa.int64()).to_pylist() == [1 << 60, 0]
    assert status_of(topic).error is None
    assert names_in(opened(topic)) == named(topic)
    assert opened(topic).scan(selected_fields=("value",)).to_arrow().column(0).to_pylist() == [b"far", b"near"]


def test_lists_of_a_fixed_size_are_read_by_pyiceberg(store: sc.Store) -> None:
    topic = make(store, schema=pa.schema([("v", pa.list_(pa.float32(), 3))]))
    topic.append([{"v": [1, 2, 3]}, {"v": None}, None])
    topic.roll()
    topic.offload()
    found = opened(topic).scan().to_arrow().column("value").to_pylist()
    assert found == [{"v": [1.0, 2.0, 3.0]}, {"v": None}, None]


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_itself_opens_the_table_wherever_the_tier_is(
    kind: str, make_place: Callable[[str], Place], store_path: Path
) -> None:
    place = make_place(kind)
    with sc.open(store_path, maintenance=False, tier=place.url, tier_options=place.options) as store:
        topic = make(store, partitions=2)
        for _ in range(3):
            fill(topic, 400)
            topic.offload()
        assert store.tier is not None
        wanted = topic.scan(columns=COLUMNS).to_arrow()
        found = in_order(store.tier.iceberg("clicks").scan().to_arrow())
        assert without_null_lists(found) == without_null_lists(wanted.to_pylist())
        some = store.tier.iceberg("clicks").scan(row_filter="offset < 10", selected_fields=("offset",)).to_arrow()
        assert sorted(some.column("offset").to_pylist()) == sorted([*range(10)] * 2)
        remove_old(topic)
        assert names_in(store.tier.iceberg("clicks")) == named(topic)
        assert store.tier.verify() == []
        assert store.tier.gc(grace_s=0).objects == 0
        store.delete_topic("clicks")


def test_an_archive_that_is_only_read_has_the_table_as_well(store: sc.Store, tier_path: Path) -> None:
    topic = make(store)
    fill(topic, 400)
    topic.offload()
    assert store.tier is not None
    store.tier.back_up()
    with sc.open_tier(tier_path.as_uri()) as archive:
        assert archive.tier is not None
        assert archive.tier.iceberg("clicks").scan().count() == 400


def test_objects_of_before_columns_had_numbers_are_read_by_their_names(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamcore.tier import parquet

    topic = make(store, schema=SCHEMA)
    with monkeypatch.context() as patched:
        patched.setattr(parquet, "numbered", lambda columns, versions: columns)
        topic.append([row_of(n) for n in range(200)])
        topic.roll()
        with monkeypatch.context() as unlisted:
            unlisted.setattr(tables, "follow", lambda *_: True)
            topic.offload()
    topic.append([row_of(n) for n in range(200, 400)])
    topic.roll()
    topic.offload()
    check_rows(topic)


def test_numbers_that_a_users_schema_brings_along_are_not_taken_for_those_of_the_table(store: sc.Store) -> None:
    own = pa.schema([pa.field("a", pa.int32(), metadata={"PARQUET:field_id": "3"}), pa.field("b", pa.string())])
    topic = make(store, schema=own)
    topic.append([{"a": 1, "b": "x"}])
    topic.roll()
    topic.offload()
    check_rows(topic)


def test_duckdb_reads_the_table(store: sc.Store) -> None:
    import duckdb

    with duckdb.connect() as connection:
        try:
            connection.execute("load iceberg")
        except duckdb.Error as error:
            pytest.skip(f"DuckDB has its iceberg extension from the network: {str(error).splitlines()[0]}")
        topic = make(store, partitions=2)
        fill(topic)
        topic.offload()
        place = status_of(topic).location
        query = f"select count(*), max(\"offset\") from iceberg_scan('{place}')"
        assert connection.execute(query).fetchall() == [(2000, 999)]


# ---- snapshots -------------------------------------------------------------------------------------------------------


def test_each_round_of_offload_is_a_snapshot_that_can_be_read_later(store: sc.Store) -> None:
    topic = make(store, partitions=2)
    ends = []
    for _ in range(3):
        fill(topic, 600)
        topic.offload()
        ends.append(topic.scan().count())
    assert topic.offload() == []
    table = opened(topic)
    assert len(table.metadata.snapshots) == status_of(topic).version == 3
    assert [snapshot.summary["operation"].value for snapshot in table.metadata.snapshots] == ["append"] * 3  # type: ignore[index]
    for snapshot, end in zip(table.metadata.snapshots, ends, strict=True):
        assert table.scan(snapshot_id=snapshot.snapshot_id).count() == end
        assert snapshot.summary is not None
        assert snapshot.summary["total-records"] == str(end)
        assert json.loads(snapshot.summary["streamcore.offsets"]) == {str(p): [0, end // 2] for p in range(2)}
    first = table.metadata.snapshots[0].snapshot_id
    place = status_of(topic).location
    assert polars.scan_iceberg(place, snapshot_id=first).select(polars.len()).collect().item() == ends[0]


def test_new_fields_are_null_in_what_is_older(store: sc.Store) -> None:
    topic = make(store, schema=pa.schema([("a", pa.int32()), ("c", pa.struct([("x", pa.string())]))]))
    topic.append([{"a": 1, "c": {"x": "one"}}])
    topic.roll()
    topic.offload()
    wider = pa.schema([("b", pa.list_(pa.int64())), ("a", pa.int32()), ("c", topic.schema.field("c").type)])  # type: ignore[union-attr]
    topic.alter(schema=wider)
    topic.append([{"a": 2, "b": [7], "c": None}])
    topic.roll()
    topic.offload()
    check_rows(topic)
    table = opened(topic)
    assert [schema.schema_id for schema in table.metadata.schemas] == [1, 2]
    first, second = (schema.as_struct() for schema in table.metadata.schemas)
    kept = {field.name: field for field in first.field(5).field_type.fields}
    assert [field.name for field in second.field(5).field_type.fields] == ["b", "a", "c"]
    assert all(kept.get(field.name) in (None, field) for field in second.field(5).field_type.fields)
    old, new = table.metadata.snapshots
    assert (old.schema_id, new.schema_id) == (1, 2)
    assert table.scan(snapshot_id=old.snapshot_id).to_arrow().column("value").to_pylist() == [
        {"a": 1, "c": {"x": "one"}}
    ]


def test_a_schema_that_is_wider_is_in_the_table_before_anything_of_it_is(store: sc.Store) -> None:
    topic = make(store, schema=pa.schema([("a", pa.int32())]))
    topic.append([{"a": 1}])
    topic.roll()
    topic.offload()
    topic.alter(schema=pa.schema([("a", pa.int32()), ("b", pa.int32())]))
    topic.offload()
    assert opened(topic).scan().to_arrow().column("value").to_pylist() == [{"a": 1, "b": None}]
    assert len(opened(topic).metadata.snapshots) == 1


@pytest.mark.parametrize(
    ("row_filter", "count"),
    [
        ("partition = 1", 4),
        ("offset >= 300 and offset < 320", 2),
        ("timestamp < '2023-11-14T22:15:30+00:00'", 2),
        ("value.number = 111", 1),
        ("value.text = 'no such text'", 0),
        ("value.number is null", 0),
    ],
)
def test_a_query_opens_only_the_objects_that_it_needs(store: sc.Store, row_filter: str, count: int) -> None:
    topic = make(store, partitions=2, schema=pa.schema([("number", pa.int64()), ("text", pa.string())]))
    for number in range(8):
        topic.append(
            [
                {"number": n, "text": f"a long text that begins alike {n}"}
                for n in range(number * 100, number * 100 + 100)
            ],
            timestamps=[1_700_000_000_000 + n * 1000 for n in range(number * 100, number * 100 + 100)],
            partition=number % 2,
        )
        topic.roll(number % 2)
    topic.offload()
    scan = opened(topic).scan(row_filter=row_filter)
    assert len(list(scan.plan_files())) == count
    assert scan.to_arrow().num_rows == (0 if count == 0 else scan.to_arrow().num_rows)


def test_bounds_are_never_narrower_than_what_is_in_a_column(store: sc.Store) -> None:
    texts = ["", "a" * 40, "z" * 40, "\U0010ffff" * 20, "ä"]
    topic = make(store, schema=pa.schema([("text", pa.string()), ("raw", pa.binary()), ("x", pa.float64())]))
    topic.append([{"text": one, "raw": b"\xff" * 40, "x": float("nan")} for one in texts] + [None])
    topic.roll()
    topic.offload()
    table = opened(topic)
    for one in texts:
        assert table.scan(row_filter=f"value.text = '{one}'").to_arrow().num_rows == 1
    assert table.scan(row_filter="value.x is nan").to_arrow().num_rows == len(texts)
    assert table.scan(row_filter="value.text is null").to_arrow().num_rows == 1


# ---- retention -------------------------------------------------------------------------------------------------------


def look_at_deletions(topic: sc.Topic, patched: pytest.MonkeyPatch) -> list[str]:
    """Has each deletion of an object look at the table first, which must not name it. Returns what was deleted."""
    delete = FolderObjects._delete
    seen: list[str] = []

    def looked(self: FolderObjects, path: str) -> None:
        if path.endswith(".parquet"):
            seen.append(Path(path).name)
            assert seen[-1] not in names_in(opened(topic)), "the table names what is deleted"
        delete(self, path)

    patched.setattr(FolderObjects, "_delete", looked)
    return seen


def remove_old(topic: sc.Topic) -> None:
    """Retention removes the older half."""
    topic.alter(retention_bytes=sum(one.size_bytes for one in topic.extents(0)) // 2)
    assert topic.store.tier is not None
    assert topic.cold is not None
    keeping.apply_retention(topic, topic.store.tier, topic.cold)


def test_retention_takes_objects_out_of_the_table_before_they_go(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make(store, partitions=2)
    for _ in range(4):
        fill(topic, 600)
        topic.offload()
    before = names_in(opened(topic))
    with monkeypatch.context() as patched:
        seen = look_at_deletions(topic, patched)
        remove_old(topic)
    assert 0 < len(seen) < len(before)
    assert names_in(opened(topic)) == named(topic) == sorted(set(before) - set(seen))
    move(topic)
    remove_old(topic)
    topic.delete_records({0: topic.partitions[0].end_offset})
    table = opened(topic)
    last = table.metadata.current_snapshot()
    assert last is not None
    assert last.summary is not None
    assert last.summary["operation"].value == "delete"  # type: ignore[union-attr]
    assert table.scan().to_arrow().num_rows == int(last.summary["total-records"])
    for snapshot in table.metadata.snapshots:  # each one that is there can be read
        table.scan(snapshot_id=snapshot.snapshot_id).to_arrow()


def test_retention_of_many_partitions_is_one_version(store: sc.Store) -> None:
    topic = make(store, partitions=4)
    for _ in range(3):
        fill(topic, 1200)
        topic.offload()
    before, objects = status_of(topic).version, len(named(topic))
    remove_old(topic)
    assert status_of(topic).version == before + 1
    assert names_in(opened(topic)) == named(topic)
    assert len(named(topic)) <= objects - 4


def test_a_control_that_deletes_objects_first_is_seen(store: sc.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = make(store)
    for _ in range(4):
        fill(topic, 600)
        topic.offload()
    look_at_deletions(topic, monkeypatch)
    monkeypatch.setattr(tables, "follow", lambda *_: True)
    with pytest.raises(AssertionError, match="names what is deleted"):
        remove_old(topic)


def test_an_object_that_was_put_there_again_takes_the_place_of_the_other(store: sc.Store, tier_path: Path) -> None:
    topic = make(store, local_retention_bytes=1)
    fill(topic)
    topic.offload()
    old = parquet_files(tier_path)[0]
    old.write_bytes(old.read_bytes()[:-1])
    store.maintain(["tier"])
    assert old.name not in names_in(opened(topic))
    assert names_in(opened(topic)) == named(topic)
    assert len(opened(topic).metadata.snapshots) == 1  # the older ones need what is damaged
    store.maintain(["tier"])
    check_rows(topic)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def break_tables(patched: pytest.MonkeyPatch) -> None:
    """Nothing of the metadata of tables can be put."""
    for name in ("_put", "_replace"):
        whole = getattr(FolderObjects, name)

        def broken(self: FolderObjects, path: str, *rest: Any, whole: Any = whole) -> Any:
            if f"/{tables.METADATA_FOLDER}/" in path:
                raise Transient("no answer")
            return whole(self, path, *rest)

        patched.setattr(FolderObjects, name, broken)


def test_a_table_that_cannot_follow_holds_nothing_up_and_is_caught_up_later(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch, tier_path: Path
) -> None:
    topic = make(store)
    fill(topic)
    topic.offload()
    before = names_in(opened(topic))
    with monkeypatch.context() as patched:
        break_tables(patched)
        fill(topic)
        assert sum(one.rows for one in topic.offload()) == 2000
        move(topic)
        remove_old(topic)
        assert topic.partitions[0].start_offset > 0
        assert set(before) <= {path.name for path in parquet_files(tier_path)}  # for the table names them
        assert "no answer" in str(status_of(topic).error)
        assert status_of(topic).partitions_behind == 1
        assert store.tier is not None
        assert store.tier.gc(grace_s=0).objects == 0
        [run] = store.maintain(["tier"])
        assert run.error is None  # offload, local retention and copies of the catalog go on
    assert opened(topic).scan().to_arrow().num_rows == 2000  # of before
    store.maintain(["tier"])
    assert (status_of(topic).error, status_of(topic).partitions_behind) == (None, 0)
    assert names_in(opened(topic)) == named(topic)
    assert store.tier.gc(grace_s=0).objects > 0
    assert names_in(opened(topic)) == named(topic) == [path.name for path in parquet_files(tier_path)]


def test_a_control_that_deletes_although_the_table_did_not_follow_is_seen(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make(store)
    for _ in range(2):
        fill(topic)
        topic.offload()
    follow = tables.follow
    monkeypatch.setattr(tables, "follow", lambda *of: follow(*of) or True)
    break_tables(monkeypatch)
    remove_old(topic)
    with pytest.raises(OSError):
        opened(topic).scan().to_arrow()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "the hint is gone": lambda folder: (folder / tables.HINT).unlink(),
    "the hint is nonsense": lambda folder: (folder / tables.HINT).write_text("newest"),
    "the hint is old": lambda folder: (folder / tables.HINT).write_text("1"),  # type: ignore[dict-item, return-value]
    "the hint is of a version that is not there": lambda folder: (folder / tables.HINT).write_text("77"),  # type: ignore[dict-item, return-value]
    "the newest version is gone": lambda folder: (folder / "v3.metadata.json").unlink(),
    "the newest version is cut": lambda folder: (folder / "v3.metadata.json").write_text("{"),  # type: ignore[dict-item, return-value]
    "lists are gone": lambda folder: collections.deque((path.unlink() for path in folder.glob("snap-*")), 0),  # type: ignore[dict-item, return-value]
    "manifests are gone": lambda folder: collections.deque((path.unlink() for path in folder.glob("*-m0.avro")), 0),  # type: ignore[dict-item, return-value]
    "manifests are cut": lambda folder: collections.deque(
        (path.write_bytes(path.read_bytes()[:-7]) for path in folder.glob("*-m0.avro")), 0
    ),  # type: ignore[dict-item, return-value]
    "all of it is gone": lambda folder: shutil.rmtree(folder),
}


@contextlib.contextmanager
def damaged(damage: str, store: sc.Store, tier_path: Path) -> Iterator[sc.Store]:
    """The store anew, behind three rounds of offload and a damage to the table that came of them."""
    topic = make(store, partitions=2)
    for _ in range(3):
        fill(topic, 400)
        topic.offload()
    folder = tier_path / "topics" / topic.folder / tables.METADATA_FOLDER
    store.close()
    DAMAGES[damage](folder)
    with sc.open(store.path, maintenance=False) as again:
        yield again


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_table_is_made_anew_from_the_manifests_whatever_happened_to_it(
    damage: str, store: sc.Store, tier_path: Path
) -> None:
    with damaged(damage, store, tier_path) as again:
        topic = again.topic("clicks")
        fill(topic, 400)
        topic.offload()
        assert status_of(topic).error is None
        check_rows(topic)
        assert again.tier is not None
        assert again.tier.verify() == []
        again.tier.gc(grace_s=0)
        check_rows(topic)


@pytest.mark.parametrize("damage", DAMAGES)
def test_gc_makes_a_damaged_table_anew_although_nothing_changed(damage: str, store: sc.Store, tier_path: Path) -> None:
    with damaged(damage, store, tier_path) as again:
        topic = again.topic("clicks")
        assert again.tier is not None
        again.tier.verify()
        assert again.tier.gc(grace_s=0, dry_run=True).objects >= 0
        again.tier.gc(grace_s=0)
        assert again.tier.verify() == []
        check_rows(topic)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_that_are_wrong_are_survived(seed: int, store: sc.Store, store_path: Path, tier_path: Path) -> None:
    topic = make(store)
    for _ in range(2):
        fill(topic, 300)
        topic.offload()
    folder = tier_path / "topics" / topic.folder / tables.METADATA_FOLDER
    files = sorted(folder.glob("*"))
    random = Random(seed)
    store.close()
    for _ in range(12):
        path = random.choice([path for path in files if path.exists()])
        whole = bytearray(path.read_bytes())
        if not whole:
            continue
        for _ in range(random.choice([1, 3, 50])):
            whole[random.randrange(len(whole))] = random.randrange(256)
        path.write_bytes(whole)
        with sc.open(store_path, maintenance=False) as again:
            assert again.tier is not None
            again.tier.verify()
            again.tier.gc(grace_s=0)
            assert again.tier.verify() == []
            fill(again.topic("clicks"), 300)
            again.topic("clicks").offload()
            assert status_of(again.topic("clicks")).error is None
            assert names_in(again.tier.iceberg("clicks")) == named(again.topic("clicks"))


def test_verify_says_where_a_table_names_something_else(store: sc.Store, tier_path: Path) -> None:
    topic = make(store)
    fill(topic)
    topic.offload()
    assert store.tier is not None
    assert store.tier.verify() == []
    folder = tier_path / "topics" / topic.folder / tables.METADATA_FOLDER
    shutil.copytree(folder, tier_path / "old")
    old = named(topic)
    fill(topic, 500)
    topic.offload()
    [new] = set(named(topic)) - set(old)
    shutil.rmtree(folder)
    shutil.copytree(tier_path / "old", folder)
    [problem] = store.tier.verify()
    assert problem.message.endswith(new)
    assert "does not name" in problem.message


# ---- at once ---------------------------------------------------------------------------------------------------------


def once_before_commit(patched: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Has something happen when a version of a table is about to be made, by whomever first."""
    commit = iceberg_table.Table.commit
    waiting = [meanwhile]

    def committed(self: iceberg_table.Table, *arguments: Any) -> Any:
        if waiting:
            waiting.pop()()
        return commit(self, *arguments)

    patched.setattr(iceberg_table.Table, "commit", committed)


def two_at_once(store: sc.Store, store_path: Path, patched: pytest.MonkeyPatch) -> sc.Topic:
    """One puts partition 0 there; before its table follows, the other one puts partition 1 there and has it follow."""
    topic = make(store, partitions=2)
    fill(topic, 200)
    topic.offload()
    topic.append([b"%d" % n for n in range(100)], partition=0)
    topic.roll(0)
    with sc.open(store_path, maintenance=False) as other:

        def meanwhile() -> None:
            other.topic("clicks").append([b"%d" % n for n in range(100)], partition=1)
            other.topic("clicks").roll(1)
            other.topic("clicks").offload()

        once_before_commit(patched, meanwhile)
        topic.offload()
    return topic


def test_two_at_once_leave_a_table_that_names_each_object_once(
    store: sc.Store, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = two_at_once(store, store_path, monkeypatch)
    assert names_in(opened(topic)) == named(topic)
    check_rows(topic)
    assert store.tier is not None
    assert store.tier.verify() == []


@pytest.mark.parametrize("kind", ["folder", "versitygw_in_turn"])
def test_many_at_once_leave_a_table_that_names_each_object_once(
    kind: str, make_place: Callable[[str], Place], store_path: Path
) -> None:
    place, rounds = make_place(kind), 8
    with contextlib.ExitStack() as stack:
        stores = [
            stack.enter_context(sc.open(store_path, maintenance=False, tier=place.url, tier_options=place.options))
            for _ in range(3)
        ]
        make(stores[0], partitions=3)

        def run(number: int) -> None:
            topic = stores[number].topic("clicks")
            for count in range(rounds):
                topic.append([b"%d" % n for n in range(50)], partition=number)
                topic.roll(number)
                topic.offload()
                if count == rounds // 2:
                    topic.delete_records({number: 100})

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(run, range(3)))
        topic, tier = stores[0].topic("clicks"), stores[0].tier
        assert tier is not None
        assert status_of(topic) == status_of(topic)._replace(error=None, partitions_behind=0)
        found = tier.iceberg("clicks")
        assert names_in(found) == named(topic)
        assert found.scan().count() == 3 * (rounds * 50 - 100)
        assert tier.verify() == []
        assert all(info.path.endswith(("avro", "json", "text", "parquet")) for info in tier.objects.listed("topics"))


def test_a_control_that_puts_versions_over_each_other_loses_objects(
    store: sc.Store, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderObjects, "create", FolderObjects.put)
    topic = two_at_once(store, store_path, monkeypatch)
    assert names_in(opened(topic)) != named(topic)
    assert store.tier is not None
    assert store.tier.verify() != []


def sleep_long(store: sc.Store, patched: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """One is about to make a version while others, who know nothing of what it has to tell, make so many that its
    number was theirs, and is deleted. What the table names in the end, and what it should."""
    topic = make(store, partitions=2)
    assert store.tier is not None
    assert topic.cold is not None
    with patched.context() as unlisted:
        unlisted.setattr(tables, "follow", lambda *_: True)
        for _ in range(following.VERSIONS_MAX + 5):
            fill(topic, 200)
            topic.offload()
    source = tables._source_of(topic, store.tier, topic.cold, None)
    table = tables._table_of(store.tier, topic.cold)
    first, second = (source.manifests(True)[number] for number in range(2))
    following.follow(table, dataclasses.replace(source, manifests=lambda _: {1: first_of(second, 1)}))

    def meanwhile() -> None:
        for count in range(2, len(second.entries) + 1):
            known = {1: first_of(second, count)}
            following.follow(table, dataclasses.replace(source, manifests=lambda _, known=known: known))

    once_before_commit(patched, meanwhile)
    following.follow(table, dataclasses.replace(source, manifests=lambda _: {0: first}))
    return names_in(opened(topic)), named(topic)


def first_of(manifest: Manifest, count: int) -> Manifest:
    """A manifest as it was when it had fewer objects."""
    return dataclasses.replace(manifest, entries=manifest.entries[:count])


def test_who_slept_while_others_made_many_versions_loses_nothing(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, wanted = sleep_long(store, monkeypatch)
    assert found == wanted


def test_a_control_that_takes_a_number_of_long_ago_for_its_own_loses_objects(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iceberg_table, "VERSIONS_MAX", 1 << 40)
    found, wanted = sleep_long(store, monkeypatch)
    assert found != wanted


def test_who_reads_manifests_before_the_table_would_bring_back_what_is_deleted(
    store: sc.Store, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make(store)
    for _ in range(2):
        fill(topic, 600)
        topic.offload()
    fill(topic, 600)

    def run(patched: pytest.MonkeyPatch, before: bool) -> None:
        """Retention of another process comes between this one's reads, in one order or the other."""
        with sc.open(store_path, maintenance=False) as other:
            waiting = [lambda: remove_old(other.topic("clicks"))]
            made, current = following._Next.made, iceberg_table.Table.current
            source_of = tables._source_of

            def then(result: Any) -> Any:
                if waiting:
                    waiting.pop()()
                return result

            if before:  # the bug: manifests, retention, table

                def early(*arguments: Any) -> Any:
                    source = source_of(*arguments)
                    read = source.manifests(True)
                    then(None)
                    object.__setattr__(source, "manifests", lambda every: read)
                    return source

                patched.setattr(tables, "_source_of", early)
            else:
                patched.setattr(iceberg_table.Table, "current", lambda self: then(current(self)))
                patched.setattr(following._Next, "made", lambda self: then(made(self)))
            topic.offload()

    with monkeypatch.context() as patched:
        run(patched, before=False)
    assert names_in(opened(topic)) == named(topic)
    fill(topic, 600)
    with monkeypatch.context() as patched:
        run(patched, before=True)
    assert names_in(opened(topic)) != named(topic)  # the control


def test_a_store_that_was_restored_elsewhere_has_the_table_and_the_old_one_has_not(
    store: sc.Store, tmp_path: Path, tier_path: Path
) -> None:
    topic = make(store)
    fill(topic)
    topic.offload()
    fill(topic, 300)
    assert store.tier is not None
    store.tier.back_up()
    sc.restore(tier_path.as_uri(), tmp_path / "again")
    with sc.open(tmp_path / "again", maintenance=False) as again:
        fill(again.topic("clicks"), 500)
        again.topic("clicks").offload()
        assert names_in(opened(again.topic("clicks"))) == named(again.topic("clicks"))
        with pytest.raises(sc.FencedError):
            topic.offload()
        assert topic.cold is not None
        topic.alter(tier_iceberg=False)
        assert not tables.follow(topic, store.tier, topic.cold)  # nor can it drop what is not its own
        with pytest.raises(sc.FencedError):
            store.delete_topic("clicks")
        again.topic("clicks").roll()
        again.topic("clicks").offload()
        check_rows(again.topic("clicks"))


def test_a_tier_that_was_copied_elsewhere_has_a_table_of_its_own(
    store: sc.Store, tmp_path: Path, tier_path: Path
) -> None:
    topic = make(store)
    fill(topic)
    topic.offload()
    assert store.tier is not None
    store.tier.back_up()
    store.close()
    shutil.move(tier_path, tmp_path / "moved")
    sc.restore((tmp_path / "moved").as_uri(), tmp_path / "again")
    with sc.open(tmp_path / "again", maintenance=False) as again:
        again.maintain(["tier"])
        assert status_of(again.topic("clicks")).location == f"file://{tmp_path}/moved/topics/{topic.folder}/iceberg"
        check_rows(again.topic("clicks"))


# ---- what is left ----------------------------------------------------------------------------------------------------


def test_metadata_does_not_grow_without_end(store: sc.Store, tier_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "SNAPSHOTS_MAX", 5)
    monkeypatch.setattr(following, "VERSIONS_MAX", 4)
    monkeypatch.setattr(following, "_SMALL_MAX", 3)
    topic = make(store)
    counts = []
    for number in range(30):
        topic.append([b"%d" % number] * 10)
        topic.roll()
        topic.offload()
        counts.append(len(metadata_of(topic, tier_path)))
    kinds = collections.Counter(name.rpartition(".")[2] for name in metadata_of(topic, tier_path))
    assert kinds == {"json": 4, "text": 1, "avro": kinds["avro"]}
    assert len([name for name in metadata_of(topic, tier_path) if name.startswith("snap-")]) == 5
    assert max(counts[10:]) <= 1 + 4 + 5 + 3 + 5  # the hint, versions, lists, manifests now, and those of before
    assert store.tier is not None
    assert store.tier.gc(grace_s=0).objects == 0  # nothing was left behind
    for snapshot in opened(topic).metadata.snapshots:
        opened(topic).scan(snapshot_id=snapshot.snapshot_id).to_arrow()
    check_rows(topic)


def test_gc_removes_what_failed_commits_left_and_nothing_that_is_in_use(store: sc.Store, tier_path: Path) -> None:
    topic = make(store)
    for _ in range(3):
        fill(topic, 300)
        topic.offload()
    assert topic.cold is not None
    folder = f"{topic.cold.folder}/{tables.METADATA_FOLDER}"
    for name in ("snap-1-1-a.avro", "b-m0.avro"):
        objects_of(store).put(f"{folder}/{name}", b"left over")
    before = metadata_of(topic, tier_path)
    assert store.tier is not None
    assert store.tier.gc().objects == 0  # they are young
    assert {Path(path).name for path in store.tier.gc(grace_s=0).paths} == {"snap-1-1-a.avro", "b-m0.avro"}
    assert set(before) - set(metadata_of(topic, tier_path)) == {"snap-1-1-a.avro", "b-m0.avro"}
    check_rows(topic)


def test_a_control_that_does_not_know_what_is_in_use_breaks_the_table(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make(store)
    fill(topic, 300)
    topic.offload()
    monkeypatch.setattr(tables, "needed", lambda *_: set())
    assert store.tier is not None
    store.tier.gc(grace_s=0)
    with pytest.raises(OSError):
        opened(topic)


def test_a_deleted_topic_leaves_nothing_of_its_table(store: sc.Store, tier_path: Path) -> None:
    topic = make(store)
    fill(topic)
    topic.offload()
    store.delete_topic("clicks")
    assert [path for path in (tier_path / "topics").rglob("*") if path.is_file()] == []
    assert store.tier is not None
    assert store.tier.status().tables == ()


def test_gc_removes_the_table_of_a_topic_that_is_no_more(store: sc.Store, tier_path: Path) -> None:
    topic = make(store)
    fill(topic)
    topic.offload()
    kept = tier_path / "kept"
    shutil.copytree(tier_path / "topics" / topic.folder / "iceberg", kept)
    store.delete_topic("clicks")
    shutil.copytree(kept, tier_path / "topics" / topic.folder / "iceberg", dirs_exist_ok=True)
    shutil.rmtree(kept)
    assert store.tier is not None
    assert store.tier.gc(grace_s=0).objects > 0
    assert [path for path in (tier_path / "topics").rglob("*") if path.is_file()] == []


# ---- settings --------------------------------------------------------------------------------------------------------


def test_a_table_is_made_of_what_is_there_already_and_dropped_when_it_is_not_wanted(
    store: sc.Store, tier_path: Path
) -> None:
    topic = make(store, tier_iceberg=False, partitions=2)
    fill(topic)
    topic.offload()
    assert store.tier is not None
    with pytest.raises(ValueError, match="has no Iceberg table"):
        store.tier.iceberg("clicks")
    topic.alter(tier_iceberg=True)
    with pytest.raises(sc.TierError, match="no Iceberg table here"):
        store.tier.iceberg("clicks")
    assert status_of(topic).version == 0
    store.maintain(["tier"])
    check_rows(topic)
    objects = parquet_files(tier_path)
    topic.alter(tier=False, tier_iceberg=False)
    store.maintain(["tier"])
    assert metadata_of(topic, tier_path) == []
    assert parquet_files(tier_path) == objects
    topic.alter(tier=True, tier_iceberg=True)
    store.maintain(["tier"])
    check_rows(topic)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (pa.uint64(), "uint64"),
        (pa.float16(), "halffloat"),
        (pa.timestamp("ns"), r"timestamp\[ns\]"),
        (pa.timestamp("ms", "Europe/Berlin"), r"timestamp\[ms, tz=Europe/Berlin\]"),
        (pa.time32("ms"), r"time32\[ms\]"),
        (pa.duration("s"), r"duration\[s\]"),
        (pa.decimal256(50, 2), r"decimal256\(50, 2\)"),
        (pa.list_(pa.struct([("inner", pa.uint64())])), "uint64"),
    ],
)
def test_types_that_iceberg_does_not_have_are_refused_before_anything_is_made(
    store: sc.Store, kind: pa.DataType, said: str
) -> None:
    schema = pa.schema([("fine", pa.int32()), ("other", kind)])
    path = "other.item.inner" if pa.types.is_list(kind) else "other"
    wanted = f"field '{path}' is {said}, which Iceberg has no type for"
    with pytest.raises(ValueError, match=wanted):
        make(store, schema=schema)
    assert store.topics() == []
    plain = make(store, schema=schema, tier_iceberg=False)
    with pytest.raises(ValueError, match=wanted):
        plain.alter(tier_iceberg=True)
    narrow = make(store, "narrow", schema=pa.schema([("fine", pa.int32())]))
    with pytest.raises(ValueError, match=wanted):
        narrow.alter(schema=schema)


def test_settings_that_make_no_sense_are_refused(store: sc.Store) -> None:
    with pytest.raises(ValueError, match="tier_iceberg is True, which needs tier=True"):
        store.create_topic("clicks", tier_iceberg=True)
    with pytest.raises(TypeError, match="tier_iceberg is 'yes'; True or False is needed"):
        make(store, tier_iceberg="yes")
    topic = make(store)
    with pytest.raises(ValueError, match="needs tier=True"):
        topic.alter(tier=False)
    same = pa.schema([("a.b", pa.int32()), ("a", pa.struct([("b", pa.int32())]))])
    with pytest.raises(ValueError, match="cannot be that of an Iceberg table"):
        make(store, "names", schema=same)


def test_without_pyiceberg_it_is_said_how_to_get_it_and_nothing_else_fails(
    store: sc.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make(store)
    fill(topic)
    import_ = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "pyiceberg":
            raise ModuleNotFoundError("No module named 'pyiceberg'")
        return import_(name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", missing)
        with pytest.raises(ImportError, match=r"pip install 'streamcore\[iceberg\]'"):
            make(store, "other")
        with pytest.raises(ImportError, match=r"pip install 'streamcore\[iceberg\]'"):
            assert store.tier is not None
            store.tier.iceberg("clicks")
        assert sum(one.rows for one in topic.offload()) == 2000
        assert "pip install 'streamcore[iceberg]'" in str(status_of(topic).error)
        assert topic.scan().count() == 2000
    topic.offload()
    assert status_of(topic).error is None
    check_rows(topic)


def test_the_status_says_how_far_the_table_is(store: sc.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = make(store, partitions=2)
    make(store, "other", tier_iceberg=False)
    assert store.tier is not None
    assert [one.topic for one in store.tier.status().tables] == ["clicks"]
    assert {one.iceberg_end_offset for one in store.tier.status().partitions} == {None}
    fill(topic)
    topic.offload()
    found = store.tier.status()
    ends = {(one.topic, one.partition): one.iceberg_end_offset for one in found.partitions}
    assert ends == {("clicks", 0): 1000, ("clicks", 1): 1000, ("other", 0): None}
    assert store.stats().as_dict()["tier"]["tables"][0]["version"] == 1
    fill(topic, 400)
    with monkeypatch.context() as patched:
        patched.setattr(tables, "follow", lambda *_: False)
        topic.offload()
    assert status_of(topic).partitions_behind == 2
    families = {family.name: family for family in metrics_of(store)}
    [behind] = families["streamcore_tier_iceberg_partitions_behind"].samples
    assert (behind.labels, behind.value) == ({"topic": "clicks"}, 2)
    assert families["streamcore_tier_iceberg_failing"].samples[0].value == 0


def metrics_of(store: sc.Store) -> list[Any]:
    """What Prometheus gets."""
    collector = pytest.importorskip("streamcore.prometheus")
    return list(collector.StoreCollector(store).collect())


@pytest.mark.parametrize(
    ("url", "options", "wanted"),
    [
        ("file:///a%20b/c", {}, "file:///a b/c"),
        ("s3://bucket/prefix", {"region": "eu-central-1"}, "s3://bucket/prefix"),
        ("az://events/shop", {"account_name": "ours"}, "abfss://events@ours.dfs.core.windows.net/shop"),
        ("az://events/shop", {}, "az://events/shop"),
    ],
)
def test_a_table_has_the_address_that_other_programs_know(
    tmp_path: Path, url: str, options: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with sc.open(tmp_path / "store", maintenance=False, tier=url, tier_options=options) as store:
        topic = make(store)
        assert status_of(topic).location == f"{wanted}/topics/{topic.folder}/iceberg"


# ---- over a real server ----------------------------------------------------------------------------------------------


def s3_of(place: Place) -> tuple[dict[str, str], dict[str, str]]:
    """What pyiceberg and Polars want to know of a server."""
    options = {name: str(value) for name, value in place.options.items()}
    polars_names = {"endpoint": "aws_endpoint_url", "access_key_id": "aws_access_key_id",
                    "secret_access_key": "aws_secret_access_key", "region": "aws_region"}  # fmt: skip
    iceberg_names = {"endpoint": "s3.endpoint", "access_key_id": "s3.access-key-id",
                     "secret_access_key": "s3.secret-access-key", "region": "s3.region"}  # fmt: skip
    return (
        {iceberg_names[name]: value for name, value in options.items() if name in iceberg_names},
        {polars_names[name]: value for name, value in options.items() if name in polars_names}
        | {"aws_allow_http": "true"},
    )


def check_bucket(topic: sc.Topic, place: Place) -> None:
    """Other programs read from the bucket what a scan does."""
    wanted = topic.scan(columns=COLUMNS).to_arrow()
    of_iceberg, of_polars = s3_of(place)
    table = StaticTable.from_metadata(status_of(topic).location, of_iceberg)
    found = in_order(table.scan().to_arrow())
    assert without_null_lists(found) == without_null_lists(wanted.to_pylist())
    whole = polars.scan_iceberg(table, storage_options=of_polars).collect().to_arrow()
    assert in_order(whole) == wanted.to_pylist()


def test_a_table_in_a_bucket_is_read_from_there(
    versitygw: object, make_place: Callable[[str], Place], store_path: Path
) -> None:
    place = make_place("versitygw")
    with sc.open(store_path, maintenance=False, tier=place.url, tier_options=place.options) as store:
        topic = make(store, partitions=2)
        for _ in range(2):
            fill(topic, 1000)
            topic.offload()
        check_bucket(topic, place)
        topic.delete_records({0: 600, 1: 600})
        assert store.tier is not None
        assert store.tier.iceberg("clicks").scan().count() == len(named(topic)) * 500 == 1000
        assert store.tier.gc(grace_s=0).objects == 0
        store.delete_topic("clicks")
        assert list(store.tier.objects.listed("topics")) == []


FAULTS = {
    "slow down": lambda: Fault.status(503, "SlowDown", path="iceberg", times=3),
    "answers of puts are lost": lambda: Fault.cut_after(method="PUT", path="iceberg", times=2),
    "the answer of a version's put is lost": lambda: Fault.cut_after(method="PUT", path=r"metadata\.json"),
    "the answer of the hint's put is lost": lambda: Fault.cut_after(method="PUT", path="version-hint"),
    "partial bodies": lambda: Fault.partial(40, method="GET", path="iceberg", times=2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass_are_not_seen_in_the_table(
    fault: str, proxy: FaultProxy, faulty: Place, versitygw: Any, store_path: Path
) -> None:
    direct = Place(faulty.url, {**faulty.options, "endpoint": versitygw.endpoint})
    with sc.open(store_path, maintenance=False, tier=faulty.url, tier_options=faulty.options) as store:
        topic = make(store)
        fill(topic, 600)
        topic.offload()
        one = FAULTS[fault]()
        proxy.add(one)
        fill(topic, 600)
        topic.offload()
        proxy.clear()
        assert one.done > 0
        assert status_of(topic) == status_of(topic)._replace(error=None, partitions_behind=0, version=2)
        check_bucket(topic, direct)
        assert offload.pending(topic, topic.cold, 0) == []  # type: ignore[arg-type]
