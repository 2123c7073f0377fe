"""Other Arrow readers open our segment files, sealed or still written, and never see half a batch."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc

TYPED = pa.schema(
    [
        ("n", pa.int64()),
        ("s", pa.string()),
        ("f", pa.float32()),
        ("d", pa.decimal128(10, 2)),
        ("t", pa.timestamp("us", "UTC")),
        ("l", pa.list_(pa.struct([("x", pa.int8()), ("y", pa.string())]))),
    ]
)


def plain(topic: sc.Topic) -> None:
    topic.append([b"a", None, b"", b"\0\xff" * 30], keys=[b"k", b"l", None, b""], timestamps=[3, 1, 2, -5])
    topic.append([b"only values"] * 100)
    topic.append([None] * 3)
    topic.append([b"h", b"i"], headers=[{"a": b"1", "b": None}, None])
    topic.append([b"x" * 3000] * 20, keys=[b"y"] * 20)


def typed(topic: sc.Topic) -> None:
    topic.append([{"n": n, "s": "word" * n, "f": n / 4} for n in range(20)] + [None, {}])
    topic.append([{"d": Decimal("1.50"), "l": [{"x": 1, "y": "z"}, None], "t": 5}, {"l": []}], keys=[b"k", None])
    topic.append([None] * 4)


MAKERS: dict[str, tuple[Callable[[sc.Topic], None], dict[str, Any]]] = {
    "plain": (plain, {}),
    "typed": (typed, {"schema": TYPED}),
    "lz4": (plain, {"compression": "lz4"}),
    "zstd typed": (typed, {"schema": TYPED, "compression": "zstd"}),
    "tombstones": (lambda topic: topic.append([None] * 10, keys=[b"%d" % n for n in range(10)]), {}),
}


@pytest.fixture(params=[(name, state) for name in MAKERS for state in ("live", "sealed", "closed")],
                ids=lambda case: " ".join(case))  # fmt: skip
def case(request: pytest.FixtureRequest, store_path: Path) -> Iterator[tuple[Path, pa.Table]]:
    """A segment file and what is in it."""
    name, state = request.param
    fill, settings = MAKERS[name]
    with sc.open(store_path) as store:
        topic = store.create_topic("clicks", segment_bytes=1 << 20, **settings)
        fill(topic)
        wanted = topic.scan().to_arrow()
        if state == "sealed":
            topic.alter(segment_bytes=1 << 16)
            count = len(topic.segments())
            while len(topic.segments()) == count:
                fill(topic)
            if topic.segments()[0].end_offset > wanted.num_rows:
                wanted = topic.scan(end=topic.segments()[0].end_offset).to_arrow()
            topic.flush()
            assert topic.segments()[0].sealed
        path = Path(topic.segments()[0].path)
        if state == "live":
            assert path.stat().st_size > topic.segments()[0].size_bytes
        if state != "closed":
            yield path, wanted
            return
    yield path, wanted


def same(found: pa.Table, wanted: pa.Table) -> None:
    assert found.schema.equals(wanted.schema, check_metadata=False)
    assert found.to_pylist() == wanted.to_pylist()


def test_pyarrow_reads_a_segment_as_a_stream(case: tuple[Path, pa.Table]) -> None:
    path, wanted = case
    with path.open("rb") as file:
        found = pa.ipc.open_stream(file).read_all()
    found.validate(full=True)
    same(found, wanted)


def test_pyarrow_reads_a_segment_from_a_memory_map(case: tuple[Path, pa.Table]) -> None:
    path, wanted = case
    with pa.memory_map(str(path)) as source:
        found = pa.ipc.open_stream(source).read_all()
        found.validate(full=True)
        same(found, wanted)


def test_the_schema_says_whose_file_it_is(case: tuple[Path, pa.Table]) -> None:
    path, _ = case
    with path.open("rb") as file:
        metadata = pa.ipc.open_stream(file).schema.metadata
    assert metadata[b"streamcore.format"] == b"1"
    assert int(metadata[b"streamcore.partition"]) == 0
    assert int(metadata[b"streamcore.schema_version"]) == 1
    assert path.parent.parent.name == f"clicks-{metadata[b'streamcore.topic'].decode()}"


def test_polars_reads_a_segment(case: tuple[Path, pa.Table]) -> None:
    pl = pytest.importorskip("polars")
    path, wanted = case
    frame = pl.read_ipc_stream(path)
    assert frame.columns == wanted.column_names
    assert frame["offset"].to_list() == wanted["offset"].to_pylist()
    assert frame["key"].to_list() == wanted["key"].to_pylist()
    assert frame["headers"].to_list() == wanted["headers"].to_pylist()
    if pa.types.is_binary(wanted.schema.field("value").type):
        assert frame["value"].to_list() == wanted["value"].to_pylist()
    else:
        fields = frame["value"].struct.unnest()
        for name in TYPED.names:
            assert fields[name].to_list() == [None if v is None else v[name] for v in wanted["value"].to_pylist()]


def test_nanoarrow_reads_a_segment(case: tuple[Path, pa.Table]) -> None:
    nanoarrow = pytest.importorskip("nanoarrow")
    path, wanted = case
    with path.open("rb") as file:
        stream = nanoarrow.ArrayStream.from_readable(file)
        try:
            array = stream.read_all()
        except Exception as error:
            if "ompress" in str(error):
                pytest.skip(f"this nanoarrow does not read compressed buffers: {error}")
            raise
    assert len(array) == wanted.num_rows
    assert array.child(0).to_pylist() == wanted["offset"].to_pylist()
    assert array.child(2).to_pylist() == wanted["key"].to_pylist()
    if wanted.schema.field("value").type == pa.binary():
        assert array.child(3).to_pylist() == wanted["value"].to_pylist()
    else:
        numbers = [None if v is None else v["n"] for v in wanted["value"].to_pylist()]
        found = zip(array.child(3).child(0).to_pylist(), numbers, strict=True)
        assert all(one == number for one, number in found if number is not None)


def test_duckdb_queries_a_segment_through_an_arrow_reader(case: tuple[Path, pa.Table]) -> None:
    duckdb = pytest.importorskip("duckdb")
    path, wanted = case
    with path.open("rb") as file:
        segment = pa.ipc.open_stream(file)  # noqa: F841  # DuckDB finds it by its name
        found = duckdb.sql('select count(*), min("offset"), max("offset"), count(key), count(value) from segment')
        assert found.fetchall() == [
            (wanted.num_rows, 0, wanted.num_rows - 1, wanted.num_rows - wanted["key"].null_count,
             wanted.num_rows - wanted["value"].null_count)
        ]  # fmt: skip


def test_pandas_gets_a_segment_through_pyarrow(case: tuple[Path, pa.Table]) -> None:
    pytest.importorskip("pandas")
    path, wanted = case
    with path.open("rb") as file:
        frame = pa.ipc.open_stream(file).read_pandas()
    assert frame["offset"].tolist() == wanted["offset"].to_pylist()
    assert list(frame.columns) == wanted.column_names


def test_every_buffer_of_a_file_lies_on_a_64_byte_boundary(case: tuple[Path, pa.Table]) -> None:
    path, wanted = case
    with pa.memory_map(str(path)) as source:
        base = source.read_buffer(0).address
        for batch in pa.ipc.open_stream(source):
            for column in batch.columns:
                for buffer in column.buffers():
                    inside = buffer is not None and base <= buffer.address < base + path.stat().st_size
                    assert not inside or buffer.size == 0 or (buffer.address - base) % 64 == 0
    assert wanted.num_rows > 0


def test_a_segment_of_a_grown_schema_carries_its_own(store: sc.Store) -> None:
    topic = store.create_topic("typed", schema=pa.schema([("a", pa.int64())]))
    topic.append([{"a": 1}])
    topic.alter(schema=pa.schema([("a", pa.int64()), ("b", pa.string())]))
    topic.append([{"a": 2, "b": "x"}])
    tables = []
    for segment in topic.segments():
        with Path(segment.path).open("rb") as file:
            tables.append(pa.ipc.open_stream(file).read_all())
    assert [t["value"].to_pylist() for t in tables] == [[{"a": 1}], [{"a": 2, "b": "x"}]]
    assert [t.schema.metadata[b"streamcore.schema_version"] for t in tables] == [b"1", b"2"]


def test_an_empty_segment_is_an_empty_stream(store: sc.Store) -> None:
    topic = store.create_topic("clicks")
    topic.append([b"x"])
    [segment] = topic.segments()
    data = Path(segment.path).read_bytes()
    stream = pa.ipc.open_stream(pa.py_buffer(data))
    first = stream.read_next_batch()
    assert first.num_rows == 1
    with pytest.raises(StopIteration):
        stream.read_next_batch()


# ---- a live file ------------------------------------------------------------------------------------------------


def write_on(path: str, records: int, per_call: int, links: Connection) -> None:
    """Appends so many records while the parent reads; tells when it begins and when it is done."""
    with sc.open(path) as store:
        topic = store.topic("clicks")
        values = [b"record %d" % n for n in range(per_call)]
        arrow = pa.array(values)
        links.send("ready")
        for call in range(records // per_call):
            topic.append(values if call % 2 else arrow, keys=values if call % 3 == 0 else None)
        links.send("done")
        links.recv()


def whole_batches(source: Any, per_call: int) -> int:
    """The number of records in a stream, whose batches must be whole calls with offsets that go on."""
    count = 0
    for batch in pa.ipc.open_stream(source):
        offsets = batch.column(0)
        if batch.num_rows == 0:  # it filled the file before that grew
            continue
        assert batch.num_rows % per_call == 0
        assert offsets[0].as_py() == count
        assert offsets[-1].as_py() == count + batch.num_rows - 1
        assert batch.column(3)[-1].as_py() == b"record %d" % (per_call - 1)
        count += batch.num_rows
    return count


def read_while_growing(path: str, per_call: int, mapped: bool, is_over: Callable[[], bool]) -> list[int]:
    """Opens the file again and again; the numbers of records that each look found."""
    counts: list[int] = []
    while not is_over():
        with pa.memory_map(path) if mapped else pa.OSFile(path) as source:
            counts.append(whole_batches(source, per_call))
    return counts


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
def test_a_reader_of_a_live_file_sees_whole_batches_and_never_fewer_than_before(store_path: Path, mapped: bool) -> None:
    records, per_call = 1_000_000, 250
    with sc.open(store_path) as store:
        store.create_topic("clicks").append([b"record %d" % (per_call - 1)] * per_call)
        path = store.topic("clicks").segments()[0].path
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    writer = context.Process(target=write_on, args=(str(store_path), records, per_call, other), daemon=True)
    writer.start()
    try:
        assert mine.poll(60)
        assert mine.recv() == "ready"
        end = time.monotonic() + 60
        counts = read_while_growing(path, per_call, mapped, lambda: mine.poll() or time.monotonic() > end)
        assert mine.recv() == "done"
        assert counts == sorted(counts)
        assert len(set(counts)) >= 2
        with pa.OSFile(path) as source:
            assert whole_batches(source, per_call) == records + per_call
        mine.send("close")
        writer.join(20)
        assert writer.exitcode == 0
    finally:
        writer.kill()
