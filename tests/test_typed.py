"""Typed topics: every type comes back, checks name what does not fit, schemas grow, and columns are read alone."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import streamcore as sc

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import strategies as st  # noqa: E402  # needs hypothesis

D = decimal.Decimal
DAY = dt.date(2026, 1, 2)
MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5)
AWARE = MOMENT.replace(tzinfo=dt.UTC)
LONG = "a string that is too long to be inlined in a view"

TYPES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "null": (pa.null(), [None, None]),
    "bool": (pa.bool_(), [True, False]),
    **{f"int{n}": (getattr(pa, f"int{n}")(), [-(1 << (n - 1)), (1 << (n - 1)) - 1]) for n in (8, 16, 32, 64)},
    **{f"uint{n}": (getattr(pa, f"uint{n}")(), [0, (1 << n) - 1]) for n in (8, 16, 32, 64)},
    "float16": (pa.float16(), [np.float16(1.5), np.float16(-65504)]),
    "float32": (pa.float32(), [1.5, float("-inf")]),
    "float64": (pa.float64(), [1e300, -0.0]),
    "decimal32": (pa.decimal32(9, 2), [D("1234567.89"), D("-0.01")]),
    "decimal64": (pa.decimal64(18, 3), [D("-123456789012345.678"), D("0.000")]),
    "decimal128": (pa.decimal128(38, 10), [D("1234567890123456789012345678.0123456789"), D("-1.0000000000")]),
    "decimal256": (pa.decimal256(76, 20), [D("1" * 56 + "." + "2" * 20), D("-1").scaleb(-20)]),
    "decimal negative scale": (pa.decimal128(10, -2), [D("12300"), D("-100")]),
    "date32": (pa.date32(), [DAY, dt.date(1, 1, 1)]),
    "date64": (pa.date64(), [DAY, dt.date(1969, 12, 31)]),
    "time32 s": (pa.time32("s"), [dt.time(1, 2, 3), dt.time(23, 59, 59)]),
    "time32 ms": (pa.time32("ms"), [dt.time(1, 2, 3, 4000), dt.time(0)]),
    "time64 us": (pa.time64("us"), [dt.time(1, 2, 3, 4), dt.time(0)]),
    "time64 ns": (pa.time64("ns"), [dt.time(1, 2, 3, 4), dt.time(0)]),
    "timestamp s": (pa.timestamp("s"), [MOMENT, dt.datetime(1969, 1, 1)]),
    "timestamp ms UTC": (pa.timestamp("ms", "UTC"), [AWARE, AWARE]),
    "timestamp us zone": (pa.timestamp("us", "Europe/Berlin"), [AWARE, AWARE]),
    "timestamp ns": (pa.timestamp("ns"), [MOMENT, MOMENT]),
    "duration s": (pa.duration("s"), [dt.timedelta(seconds=5), dt.timedelta(days=-1)]),
    "duration ms": (pa.duration("ms"), [dt.timedelta(milliseconds=5), dt.timedelta(0)]),
    "duration us": (pa.duration("us"), [dt.timedelta(microseconds=5), dt.timedelta(0)]),
    "duration ns": (pa.duration("ns"), [dt.timedelta(microseconds=5), dt.timedelta(0)]),
    "interval": (pa.month_day_nano_interval(), [pa.MonthDayNano([1, -2, 3]), pa.MonthDayNano([0, 0, 0])]),
    "string": (pa.string(), ["ü€", ""]),
    "large_string": (pa.large_string(), [LONG, ""]),
    "string_view": (pa.string_view(), [LONG, "short"]),
    "binary": (pa.binary(), [b"\0\xff", b""]),
    "large_binary": (pa.large_binary(), [b"x" * 100, b""]),
    "binary_view": (pa.binary_view(), [b"x" * 100, b"short"]),
    "fixed_size_binary": (pa.binary(5), [b"abcde", b"\0" * 5]),
    "fixed_size_binary 0": (pa.binary(0), [b"", b""]),
    "list": (pa.list_(pa.int32()), [[1, None, 3], []]),
    "large_list": (pa.large_list(pa.string()), [["a", None], []]),
    "fixed_size_list": (pa.list_(pa.float32(), 2), [[1.0, None], [3.0, 4.0]]),
    "struct": (pa.struct([("a", pa.int8()), ("b", pa.string())]), [{"a": 1, "b": None}, {"a": None, "b": LONG}]),
    "empty struct": (pa.struct([]), [{}, {}]),
    "map": (pa.map_(pa.string(), pa.int64()), [[("a", 1), ("b", None)], []]),
    "list of struct": (
        pa.list_(pa.struct([("k", pa.string()), ("v", pa.list_(pa.bool_()))])),
        [[{"k": "x", "v": [True, None]}, None, {"k": None, "v": None}], []],
    ),
    "list of list": (pa.list_(pa.list_(pa.string_view())), [[[LONG, None], None, []], []]),
    "fixed list of struct": (
        pa.list_(pa.struct([("x", pa.int16())]), 2),
        [[{"x": 1}, None], [{"x": None}, {"x": 4}]],
    ),
    "fixed list of fixed list": (pa.list_(pa.list_(pa.int8(), 2), 2), [[[1, 2], [3, None]], [None, [5, 6]]]),
    "map of lists": (pa.map_(pa.int32(), pa.list_(pa.decimal128(5, 1))), [[(1, [D("1.5")])], [(2, None)]]),
    "struct of null": (pa.struct([("n", pa.null()), ("x", pa.int8())]), [{"n": None, "x": 1}, {"n": None, "x": None}]),
}


def column_of(name: str, shape: str) -> pa.Array:
    kind, (first, second) = TYPES[name]
    values = [first, None, second, first, second, None, first, first, None, second, second]
    array = pa.array(values, kind)
    if shape == "sliced":
        return array.slice(3, 7)
    if shape == "no nulls":
        return pa.array([first, second, second], kind)
    if shape == "all null":
        return pa.array([None] * 9, kind)
    if shape == "empty then full":
        return pa.chunked_array([array.slice(0, 0), array, array.slice(2, 5)])
    return array


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_every_type_comes_back(make_topic: Callable[..., sc.Topic], name: str, compression: str) -> None:
    kind, _ = TYPES[name]
    schema = pa.schema([("before", pa.int32()), ("x", kind), ("after", pa.string())])
    topic = make_topic(schema=schema, compression=compression)
    assert topic.schema == schema
    wanted = []
    for shape in ("whole", "sliced", "no nulls", "all null", "empty then full"):
        column = column_of(name, shape)
        count = len(column)
        topic.append_table(
            pa.table({"x": column, "before": pa.array(range(count), pa.int32()), "after": ["y"] * count})
        )
        wanted += column.to_pylist()
    table = topic.scan().to_arrow()
    table.validate(full=True)
    values = table["value"]
    assert values.type == pa.struct(list(schema))
    assert values.combine_chunks().field("x").to_pylist() == wanted
    projected = topic.scan(columns=["value.x"]).to_arrow()
    projected.validate(full=True)
    assert projected["value.x"].type == kind
    assert projected["value.x"].to_pylist() == wanted
    assert projected["value.x"].null_count == sum(value is None for value in wanted)
    middle = topic.scan(start=5, end=12, columns=["value.x"]).to_arrow()
    middle.validate(full=True)
    assert middle["value.x"].to_pylist() == wanted[5:12]
    assert [r.value["x"] for r in topic.scan()] == wanted


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_every_type_comes_back_beside_null_structs(
    make_topic: Callable[..., sc.Topic], name: str, compression: str
) -> None:
    kind, _ = TYPES[name]
    topic = make_topic(schema=pa.schema([("x", kind)]), compression=compression)
    column = column_of(name, "whole")
    mask = np.array([i % 3 == 1 for i in range(len(column))])
    structs = pa.StructArray.from_arrays([column], ["x"], mask=pa.array(mask))
    topic.append(structs)
    topic.append(structs.slice(2, 6))
    topic.append_table(pa.table({"value": structs}))
    wanted = [None if null else {"x": value} for value, null in zip(column.to_pylist(), mask, strict=True)]
    wanted = wanted + wanted[2:8] + wanted
    table = topic.scan().to_arrow()
    table.validate(full=True)
    assert table["value"].to_pylist() == wanted
    assert [r.value for r in topic.scan()] == wanted
    projected = topic.scan(columns=["value.x", "value"]).to_arrow()
    projected.validate(full=True)
    inner = [None if value is None else value["x"] for value in wanted]
    assert projected["value.x"].to_pylist() == inner
    assert projected["value.x"].null_count == sum(value is None for value in inner)
    assert topic.scan(start=4, end=9, columns=["value.x"]).to_arrow()["value.x"].to_pylist() == inner[4:9]


@pytest.mark.parametrize("name", [name for name in TYPES if name not in ("interval",)])
def test_every_type_may_come_as_dicts(make_topic: Callable[..., sc.Topic], name: str) -> None:
    kind, (first, second) = TYPES[name]
    topic = make_topic(schema=pa.schema([("x", kind), ("n", pa.int64())]))
    topic.append([{"x": first, "n": 1}, None, {"n": 2}, {"x": second}, {"x": None, "n": None}, {}])
    wanted = pa.array([first, None, second, None, None], kind).to_pylist()
    found = [r.value for r in topic.scan()]
    assert found[1] is None
    assert [value["x"] for value in found if value is not None] == wanted
    assert [value["n"] for value in found if value is not None] == [1, 2, None, None, None]


def test_all_types_side_by_side(store: sc.Store) -> None:
    schema = pa.schema([(name.replace(" ", "_"), kind) for name, (kind, _) in TYPES.items()])
    topic = store.create_topic("typed", schema=schema)
    columns = {name.replace(" ", "_"): column_of(name, "whole") for name in TYPES}
    for _ in range(3):
        topic.append_table(pa.table(columns))
    found = topic.scan().to_arrow()["value"].combine_chunks()
    for name, column in columns.items():
        assert found.field(name).to_pylist() == column.to_pylist() * 3
    with sc.open(store.path, mode="r") as again:
        assert again.topic("typed").schema == schema
        assert again.topic("typed").scan().to_arrow()["value"].combine_chunks().equals(found)


def test_metadata_of_schema_and_fields_is_kept(store: sc.Store) -> None:
    schema = pa.schema(
        [pa.field("x", pa.int8(), nullable=False, metadata={"unit": "m"}), pa.field("y", pa.string())],
        metadata={"source": "here"},
    )
    topic = store.create_topic("typed", schema=schema)
    with sc.open(store.path) as again:
        for one in (topic.schema, again.topic("typed").schema):
            assert one is not None
            assert one.field("x").metadata == {b"unit": b"m"}
            assert not one.field("x").nullable
            assert one.equals(schema, check_metadata=False)


def test_anything_with_an_arrow_schema_is_a_schema(store: sc.Store) -> None:
    pl = pytest.importorskip("polars")

    class Carrier:
        def __arrow_c_schema__(self) -> Any:
            return pa.schema([("x", pa.int64())]).__arrow_c_schema__()

    assert store.create_topic("a", schema=Carrier()).schema == pa.schema([("x", pa.int64())])
    frame = pl.DataFrame({"x": [1], "s": ["a"]})
    topic = store.create_topic("b", schema=frame.to_arrow().schema)
    topic.append_table(frame)
    topic.append(frame.to_struct("value"))
    assert [r.value for r in topic.scan()] == [{"x": 1, "s": "a"}] * 2
    nanoarrow = pytest.importorskip("nanoarrow")
    topic = store.create_topic("c", schema=nanoarrow.struct({"x": nanoarrow.int32()}))
    assert topic.schema == pa.schema([("x", pa.int32())])


# ---- forms of input ---------------------------------------------------------------------------------------------

QUAKES = pa.schema([("magnitude", pa.float64()), ("place", pa.string()), pa.field("id", pa.int64(), nullable=False)])
ROWS = [{"magnitude": 1.5, "place": "x", "id": 1}, {"magnitude": None, "place": None, "id": 2}]


@pytest.fixture
def quakes(make_topic: Callable[..., sc.Topic]) -> sc.Topic:
    return make_topic(schema=QUAKES, partitions=2)


def test_dicts_structs_tables_and_frames_are_taken(quakes: sc.Topic) -> None:
    pl = pytest.importorskip("polars")
    pd = pytest.importorskip("pandas")
    table = pa.Table.from_pylist(ROWS, schema=QUAKES)
    quakes.append(ROWS, partition=0)
    quakes.append(tuple(ROWS), partition=0)
    quakes.append(table.to_struct_array(), partition=0)
    quakes.append(table.to_struct_array().combine_chunks(), partition=0)
    quakes.append_table(table, partition=0)
    quakes.append_table(table.to_batches()[0], partition=0)
    quakes.append_table(pa.table({"value": table.to_struct_array()}), partition=0)
    quakes.append_table(pl.from_arrow(table), partition=0)
    quakes.append_table(pd.DataFrame({"magnitude": [1.5, None], "place": ["x", None], "id": [1, 2]}), partition=0)
    quakes.append_table(table.select(["id", "place", "magnitude"]), partition=0)
    found = [r.value for r in quakes.scan()]
    expected = [{**row, "magnitude": row["magnitude"]} for row in ROWS]
    assert found[:16] == expected * 8
    assert found[18:] == expected
    assert [(v["place"], v["id"]) for v in found[16:18]] == [("x", 1), (None, 2)]


def test_keys_times_headers_and_partitions_go_along(quakes: sc.Topic) -> None:
    quakes.append(ROWS, keys=[b"k", None], timestamps=[5, 6], headers=[{"h": b"x"}, None], partition=1)
    table = pa.Table.from_pylist(ROWS, schema=QUAKES)
    for name, column in {
        "key": pa.array(["k", None]), "timestamp": pa.array([5, 6]), "partition": pa.array([1, 1]),
        "headers": pa.array([[("h", b"x")], None], pa.map_(pa.string(), pa.binary())),
    }.items():  # fmt: skip
        table = table.append_column(name, column)
    quakes.append_table(table)
    found = [(r.partition, r.key, r.timestamp_ms, r.headers, r.value) for r in quakes.scan()]
    assert found == [(1, b"k", 5, (("h", b"x"),), ROWS[0]), (1, None, 6, (), ROWS[1])] * 2


def test_keyed_records_of_a_typed_topic_are_spread_like_those_of_a_plain_one(store: sc.Store) -> None:
    plain = store.create_topic("plain", partitions=5)
    typed = store.create_topic("typed", partitions=5, schema=pa.schema([("n", pa.int64())]))
    keys = [b"key%d" % n for n in range(100)]
    plain.append([b"%d" % n for n in range(100)], keys=keys)
    typed.append([{"n": n} for n in range(100)], keys=keys)
    assert [(r.partition, r.offset, r.key, int(r.value)) for r in plain.scan()] == [
        (r.partition, r.offset, r.key, r.value["n"]) for r in typed.scan()
    ]


def test_fields_named_like_the_columns_of_a_record_belong_to_the_value(store: sc.Store) -> None:
    schema = pa.schema(
        [("key", pa.int64()), ("value", pa.string()), ("timestamp", pa.float64()), ("offset", pa.int8())]
    )
    topic = store.create_topic("typed", schema=schema)
    rows = [{"key": 1, "value": "v", "timestamp": 0.5, "offset": 7}]
    topic.append(rows)
    topic.append_table(pa.Table.from_pylist(rows, schema=schema))
    topic.append(pa.Table.from_pylist(rows, schema=schema).to_struct_array())
    assert [r.value for r in topic.scan()] == rows * 3
    table = topic.scan(columns=["offset", "value.offset", "value.value", "key", "value.key"]).to_arrow()
    assert table.to_pylist()[1] == {"offset": 1, "value.offset": 7, "value.value": "v", "key": None, "value.key": 1}


def test_field_names_may_have_dots_and_odd_characters(store: sc.Store) -> None:
    schema = pa.schema(
        [("a.b", pa.int8()), ("a", pa.struct([("b", pa.int16()), ("b.c", pa.int32())])), ("ü /", pa.bool_())]
    )
    topic = store.create_topic("typed", schema=schema)
    row = {"a.b": 1, "a": {"b": 2, "b.c": 3}, "ü /": True}
    topic.append([row])
    assert [r.value for r in topic.scan()] == [row]
    assert topic.scan(columns=["value.ü /", "value.a.b"]).to_arrow().to_pylist()[0]["value.ü /"] is True
    assert topic.scan(columns=["value.a"]).to_arrow()["value.a"].to_pylist() == [{"b": 2, "b.c": 3}]


@pytest.mark.parametrize("index", [pa.int8(), pa.uint32(), pa.int64()], ids=["int8", "uint32", "int64"])
def test_dictionary_arrays_are_decoded(store: sc.Store, index: pa.DataType) -> None:
    schema = pa.schema([("s", pa.dictionary(index, pa.string())), ("n", pa.int32()), ("l", pa.list_(pa.string())),
                        ("t", pa.struct([("x", pa.string())])), ("v", pa.string_view())])  # fmt: skip
    topic = store.create_topic("typed", schema=schema)
    assert topic.schema is not None
    assert topic.schema.field("s").type == pa.string()
    words = ["a", None, "b", "a"]
    encoded = pa.array(words).dictionary_encode().cast(pa.dictionary(index, pa.string()))
    numbers = pa.array([5, 6, None, 5], pa.int32()).dictionary_encode()
    lists = pa.ListArray.from_arrays([0, 2, 2, 3, 4], encoded)
    structs = pa.StructArray.from_arrays([encoded], ["x"])
    table = pa.table({"s": encoded, "n": numbers, "l": lists, "t": structs, "v": encoded})
    topic.append_table(table)
    topic.append_table(table.slice(1, 2))
    found = [r.value for r in topic.scan()]
    wanted = [
        {"s": "a", "n": 5, "l": ["a", None], "t": {"x": "a"}, "v": "a"},
        {"s": None, "n": 6, "l": [], "t": {"x": None}, "v": None},
        {"s": "b", "n": None, "l": ["b"], "t": {"x": "b"}, "v": "b"},
        {"s": "a", "n": 5, "l": ["a"], "t": {"x": "a"}, "v": "a"},
    ]
    assert found == wanted + wanted[1:3]


def dictionaries_of(kind: pa.DataType, values: list[Any]) -> pa.Array:
    """A dictionary array of the values, with a null behind them."""
    indices = pa.array([*range(len(values)), None], pa.int8())
    return pa.DictionaryArray.from_arrays(indices, pa.array(values, kind))


INSIDE: dict[str, Callable[[pa.Array], pa.Array]] = {
    "alone": lambda encoded: encoded,
    "struct": lambda encoded: pa.StructArray.from_arrays([encoded], ["x"], mask=pa.array([False, True, False])),
    "list": lambda encoded: pa.ListArray.from_arrays(pa.array([0, 2, None, 3]), encoded),
    "large list": lambda encoded: pa.LargeListArray.from_arrays(pa.array([0, None, 2, 3]), encoded),
    "fixed list": lambda encoded: pa.FixedSizeListArray.from_arrays(encoded, 1, mask=pa.array([True, False, False])),
    "map": lambda encoded: pa.MapArray.from_arrays(pa.array([0, None, 1, 3]), pa.array(["a", "b", "c"]), encoded),
    "map key": lambda encoded: pa.MapArray.from_arrays(pa.array([0, 1, None, 2]), encoded[:2], pa.array([1, None])),
    "struct of list": lambda encoded: pa.StructArray.from_arrays([INSIDE["list"](encoded)], ["l"]),
}
ENCODED: dict[str, tuple[pa.DataType, list[Any]]] = {
    "string": (pa.string(), ["a", LONG]), "string_view": (pa.string_view(), [LONG, "a"]),
    "binary_view": (pa.binary_view(), [b"x" * 20, b""]), "decimal": (pa.decimal128(5, 2), [D("1.50"), D("-2.00")]),
    "list": (pa.list_(pa.int8()), [[1, None], []]), "struct": (pa.struct([("y", pa.string_view())]), [{"y": LONG}, {}]),
}  # fmt: skip


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("name", ENCODED)
def test_dictionary_arrays_of_any_type_are_decoded_wherever_they_are(
    make_topic: Callable[..., sc.Topic], name: str, inside: str
) -> None:
    kind, values = ENCODED[name]
    array = INSIDE[inside](dictionaries_of(kind, values))
    other = INSIDE[inside](dictionaries_of(kind, values[::-1]))
    topic = make_topic(schema=pa.schema([("x", array.type)]))
    wanted: list[Any] = []
    for given in (array, array[1:], array[:0], pa.chunked_array([array, other, array[1:2]])):
        topic.append_table(pa.table({"x": given}))
        wanted += given.to_pylist()
    topic.append(pa.StructArray.from_arrays([array], ["x"], mask=pa.array([i == 1 for i in range(len(array))])))
    found = [r.value if r.value is None else r.value["x"] for r in topic.scan()]
    assert found == wanted + [None if i == 1 else value for i, value in enumerate(array.to_pylist())]


@pytest.mark.parametrize("kind", [pa.string(), pa.struct([("x", pa.string())]), pa.list_(pa.string(), 2)], ids=str)
def test_a_dictionary_without_values_is_no_harm_below_nulls(
    make_topic: Callable[..., sc.Topic], kind: pa.DataType
) -> None:
    def encoded(one: pa.DataType) -> pa.DataType:
        if pa.types.is_struct(one):
            return pa.struct([(field.name, encoded(field.type)) for field in one])
        return pa.list_(encoded(one.value_type), 2) if pa.types.is_nested(one) else pa.dictionary(pa.int8(), one)

    topic = make_topic(schema=pa.schema([("x", kind)]))
    topic.append_table(pa.table({"x": pa.array([None, None], encoded(kind))}))
    topic.append_table(pa.table({"x": pa.nulls(2, encoded(kind))}))
    assert [r.value["x"] for r in topic.scan()] == [None] * 4


LAYOUTS = [
    (pa.string(), [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]),
    (pa.string_view(), [pa.string(), pa.large_string()]),
    (pa.large_binary(), [pa.binary(), pa.binary_view()]),
    (pa.list_(pa.string()), [pa.large_list(pa.string()), pa.list_(pa.large_string())]),
    (pa.struct([("s", pa.string())]), [pa.struct([("s", pa.large_string())])]),
    (pa.map_(pa.string(), pa.binary()), [pa.map_(pa.large_string(), pa.large_binary())]),
]
LAYOUT_CASES = [(stored, given) for stored, others in LAYOUTS for given in others]


@pytest.mark.parametrize(("stored", "given"), LAYOUT_CASES, ids=[f"{a} from {b}" for a, b in LAYOUT_CASES])
def test_other_layouts_of_the_same_type_are_taken(
    make_topic: Callable[..., sc.Topic], stored: pa.DataType, given: pa.DataType
) -> None:
    topic = make_topic(schema=pa.schema([("x", stored)]))
    if pa.types.is_map(stored):
        values: list[Any] = [[("a", b"b")], None]
    elif pa.types.is_nested(stored):
        values = [["a", LONG], None] if not pa.types.is_struct(stored) else [{"s": "a"}, None]
    else:
        values = ["a", None, LONG] if "string" in str(stored) else [b"a", None, b"x" * 50]
    if pa.types.is_dictionary(given):
        array = pa.array(values, pa.string()).dictionary_encode().cast(given)
    else:
        array = pa.array(values, given)
    topic.append_table(pa.table({"x": array}))
    assert [r.value["x"] for r in topic.scan()] == values


def test_nullable_fields_may_be_left_out(quakes: sc.Topic) -> None:
    quakes.append([{"id": 1}], partition=0)
    quakes.append_table(pa.table({"id": [2]}), partition=0)
    quakes.append(pa.array([{"id": 3}]), partition=0)
    quakes.append_table(pa.table({"id": [4], "place": pa.nulls(1)}), partition=0)
    assert [r.value for r in quakes.scan()] == [{"magnitude": None, "place": None, "id": i} for i in (1, 2, 3, 4)]


REQUIRED: dict[str, tuple[pa.DataType, Any, Any]] = {
    "list": (pa.list_(pa.field("item", pa.int8(), nullable=False)), [1, 2], [1, None]),
    "struct": (pa.struct([pa.field("s", pa.string(), nullable=False)]), {"s": "a"}, {"s": None}),
    "fixed": (pa.list_(pa.field("item", pa.int8(), nullable=False), 2), [1, 2], [None, 2]),
    "map": (pa.map_(pa.string(), pa.field("value", pa.int8(), nullable=False)), [("a", 1)], [("a", None)]),
    "deep": (
        pa.list_(pa.struct([pa.field("l", pa.list_(pa.field("i", pa.int8(), nullable=False)))])),
        [None, {"l": None}, {"l": [1]}],
        [{"l": [1, None]}],
    ),
}


def relaxed(kind: pa.DataType) -> pa.DataType:
    """The same type with everything nullable."""
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, relaxed(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([(kind.field(i).name, relaxed(kind.field(i).type)) for i in range(kind.num_fields)])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(relaxed(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(pa.field(kind.value_field.name, relaxed(kind.value_type)))
    return kind


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("form", ["dicts", "array"])
def test_a_null_where_a_nested_field_must_not_be_null_is_refused(store: sc.Store, name: str, form: str) -> None:
    kind, good, bad = REQUIRED[name]
    topic = store.create_topic("typed", schema=pa.schema([("x", kind)]))

    def append(values: list[Any]) -> None:
        if form == "dicts":
            topic.append([{"x": value} for value in values])
        else:
            topic.append_table(pa.table({"x": pa.array(values, relaxed(kind))}))

    append([good, None, good])
    with pytest.raises((ValueError, TypeError), match=r"x\b.*null"):
        append([good, bad, None])
    assert topic.partitions[0].end_offset == 3
    assert [r.value["x"] for r in topic.scan()] == [good, None, good]


def test_tombstones_are_null_structs_also_where_a_field_is_not_nullable(quakes: sc.Topic) -> None:
    quakes.append([None, ROWS[0], None], keys=[b"a", b"a", b"a"], partition=0)
    quakes.append(pa.array([None, ROWS[0]], pa.struct(list(QUAKES))), partition=0)
    quakes.append(pa.nulls(2), partition=0)
    quakes.append([None] * 2, partition=0)
    values = [r.value for r in quakes.scan()]
    assert values == [None, ROWS[0], None, None, ROWS[0], None, None, None, None]
    table = quakes.scan(columns=["value.id", "value.magnitude"]).to_arrow()
    assert table["value.id"].to_pylist() == [None, 1, None, None, 1, None, None, None, None]
    assert table["value.id"].null_count == 7
    table.validate(full=True)


# ---- what does not fit ------------------------------------------------------------------------------------------

NO_FIT: dict[str, tuple[Any, Any, str]] = {
    "str for float": ([{"magnitude": "big", "id": 1}], TypeError, r"values\[0\]\['magnitude'\] is str 'big'.*double"),
    "second row": ([ROWS[0], {"magnitude": 1.0, "id": "x"}], TypeError, r"values\[1\]\['id'\] is str 'x'.*int64"),
    "int for str": ([{"place": 5, "id": 1}], TypeError, r"values\[0\]\['place'\] is int 5.*string"),
    "too large": ([{"id": 1 << 63}], (TypeError, ValueError), r"values\[0\]\['id'\]"),
    "unknown": ([{"id": 1, "colour": 2}], ValueError, r"values\[0\] has 'colour'.*magnitude, place, id"),
    "missing": ([{"magnitude": 1.0}], ValueError, r"values\[0\] has no 'id'"),
    "null": ([{"id": None}], ValueError, r"values\[0\] has no 'id'"),
    "bytes": ([b"x"], TypeError, r"values\[0\] is bytes; a dict"),
    "list": ([[1]], TypeError, r"values\[0\] is list; a dict"),
    "one dict": (ROWS[0], TypeError, "values is dict"),
    "str": ("abc", TypeError, "values is str"),
    "none": (None, TypeError, "values is NoneType"),
    "int": (5, TypeError, "values is int"),
    "arrow type": (
        pa.array([{"magnitude": 1, "id": 1}]),
        TypeError,
        "'magnitude' is int64; the topic's schema has double",
    ),
    "arrow width": (pa.array([{"id": 1}], pa.struct([("id", pa.int32())])), TypeError, "'id' is int32;.*int64"),
    "arrow unknown": (pa.array([{"id": 1, "colour": 2}]), ValueError, "'colour' is not in.*magnitude, place, id"),
    "arrow missing": (pa.array([{"magnitude": 1.0}]), ValueError, "'id'.*missing"),
    "arrow null": (pa.array([{"id": None}], pa.struct([("id", pa.int64())])), ValueError, "'id' has 1 nulls"),
    "no struct": (pa.array([1, 2]), TypeError, "values are int64; a struct array"),
    "numpy": (np.arange(2), TypeError, "values are int64; a struct array"),
}


@pytest.mark.parametrize("name", NO_FIT)
def test_values_that_do_not_fit_are_refused_with_the_column_and_both_types(quakes: sc.Topic, name: str) -> None:
    values, error, message = NO_FIT[name]
    with pytest.raises(error, match=message):
        quakes.append(values)
    if isinstance(values, pa.Array) and pa.types.is_struct(values.type):
        with pytest.raises(error, match=message):
            quakes.append_table(pa.table({"value": values}))
        columns = {values.type.field(i).name: values.field(i) for i in range(values.type.num_fields)}
        with pytest.raises(error, match=message):
            quakes.append_table(pa.table(columns))
    assert [p.end_offset for p in quakes.partitions] == [0, 0]


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        (pa.timestamp("ms"), pa.timestamp("us")), (pa.timestamp("ms", "UTC"), pa.timestamp("ms")),
        (pa.float32(), pa.float64()), (pa.int32(), pa.uint32()), (pa.decimal128(5, 2), pa.decimal128(6, 2)),
        (pa.date32(), pa.date64()), (pa.binary(3), pa.binary(4)), (pa.binary(), pa.string()),
        (pa.list_(pa.int8()), pa.list_(pa.int16())), (pa.struct([("a", pa.int8())]), pa.struct([("b", pa.int8())])),
        (pa.struct([("a", pa.int8())]), pa.struct([("a", pa.int8()), ("b", pa.int8())])), (pa.bool_(), pa.int8()),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3)),
        (pa.map_(pa.string(), pa.int8()), pa.map_(pa.string(), pa.int16())),
        (pa.duration("s"), pa.int64()),
    ],
    ids=str,
)  # fmt: skip
def test_no_type_is_converted_into_another(
    make_topic: Callable[..., sc.Topic], stored: pa.DataType, given: pa.DataType
) -> None:
    topic = make_topic(schema=pa.schema([("x", stored)]))
    with pytest.raises(TypeError, match="'x' is ") as info:
        topic.append_table(pa.table({"x": pa.nulls(3, given)}))
    assert str(given) in str(info.value)
    assert str(stored) in str(info.value)
    assert topic.partitions[0].end_offset == 0


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (pa.field("", pa.int8()), "without a name"),
        (pa.field("x", pa.dense_union([pa.field("a", pa.int8())])), "'x' has the type dense_union"),
        (pa.field("x", pa.run_end_encoded(pa.int32(), pa.int8())), "'x' has the type run_end"),
        (pa.field("x", pa.list_view(pa.int8())), "'x' has the type list_view"),
        (pa.field("x", pa.struct([("a", pa.int8()), ("a", pa.int8())])), "more than one field named 'a'"),
        (pa.field("x", pa.list_(pa.sparse_union([pa.field("a", pa.int8())]))), "'x.item' has the type sparse_union"),
        (pa.field("x", pa.uuid()), "extension type"),
    ],
)
def test_fields_that_cannot_be_stored_are_refused_by_name(store: sc.Store, field: pa.Field, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.create_topic("typed", schema=pa.schema([field]))
    assert store.topics() == []
    assert list((store.path / "topics").iterdir()) == []


def nested(depth: int, wrap: Any) -> pa.DataType:
    kind = pa.int8()
    for _ in range(depth):
        kind = wrap(kind)
    return kind


@pytest.mark.parametrize("wrap", [pa.list_, lambda kind: pa.struct([("s", kind)])], ids=["list", "struct"])
def test_nesting_is_bounded(store: sc.Store, wrap: Any) -> None:
    topic = store.create_topic("deep", schema=pa.schema([("x", nested(31, wrap))]))
    value: Any = 5
    for _ in range(31):
        value = [value] if wrap is pa.list_ else {"s": value}
    topic.append([{"x": value}])
    assert [r.value["x"] for r in topic.scan()] == [value]
    with pytest.raises(ValueError, match="deeper than 32"):
        store.create_topic("deeper", schema=pa.schema([("x", nested(32, wrap))]))


def test_many_fields_are_fine_and_too_many_are_refused_with_nothing_made(store: sc.Store) -> None:
    schema = pa.schema([(f"f{n}", pa.int32()) for n in range(1000)])
    topic = store.create_topic("wide", schema=schema)
    topic.append([{"f7": 1, "f999": 2}])
    [record] = topic.scan()
    assert (record.value["f7"], record.value["f999"], record.value["f0"]) == (1, 2, None)
    wider = pa.schema([(f"f{n}", pa.int32()) for n in range(5000)])
    with pytest.raises(ValueError, match="4096 fields"):
        store.create_topic("wider", schema=wider)
    assert store.topics() == [topic]
    assert len(list((store.path / "topics").iterdir())) == 1
    with pytest.raises(ValueError, match="4096 fields"):
        topic.alter(schema=wider)
    topic.append([{"f7": 2}])
    assert [r.value["f7"] for r in topic.scan()] == [1, 2]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary(), pa.string_view(), pa.list_(pa.binary())], ids=str)
@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_a_nested_value_above_max_record_bytes_is_refused_whole(
    store: sc.Store, kind: pa.DataType, compression: str, partitions: int
) -> None:
    topic = store.create_topic(
        "typed", partitions, schema=pa.schema([("x", kind)]), max_record_bytes=100, compression=compression
    )

    def values(size: int) -> list[Any]:
        long: Any = "x" * size if pa.types.is_string(kind) or kind == pa.string_view() else b"x" * size
        return [{"x": [long] if pa.types.is_list(kind) else long}] * 5 + [{"x": None}] * 15

    keys = [b"k%d" % n for n in range(20)]
    topic.append(values(100), keys=keys)
    before = topic.partitions
    with pytest.raises(sc.RecordTooLargeError, match=r"101 bytes is above max_record_bytes \(100\)"):
        topic.append(values(101), keys=keys)
    assert [p.end_offset for p in topic.partitions] == [p.end_offset for p in before]


# ---- evolution --------------------------------------------------------------------------------------------------


def test_a_schema_grows_by_nullable_fields_and_old_records_have_nulls(store: sc.Store) -> None:
    topic = store.create_topic("typed", schema=pa.schema([("a", pa.int64())]))
    topic.append([{"a": 1}, None])
    deep = pa.struct([("x", pa.list_(pa.string()))])
    second = pa.schema([("new", deep), ("a", pa.int64()), ("b", pa.string())])
    topic.alter(schema=second)
    assert topic.schema == second
    assert [r.value for r in topic.scan()] == [{"new": None, "a": 1, "b": None}, None]
    topic.append([{"a": 2, "b": "x", "new": {"x": ["y"]}}, {"b": "z"}])
    topic.alter(schema=pa.schema([*second, pa.field("c", pa.float16())]))
    topic.append([{"c": np.float16(0.5)}])
    wanted = [
        {"new": None, "a": 1, "b": None, "c": None}, None, {"new": {"x": ["y"]}, "a": 2, "b": "x", "c": None},
        {"new": None, "a": None, "b": "z", "c": None}, {"new": None, "a": None, "b": None, "c": 0.5},
    ]  # fmt: skip
    for opened in (store, sc.open(store.path, mode="r")):
        found = opened.topic("typed")
        assert [r.value for r in found.scan()] == wanted
        table = found.scan().to_arrow()
        table.validate(full=True)
        assert table["value"].to_pylist() == wanted
        assert table.schema == found.scan().schema
        columns = found.scan(columns=["value.b", "offset", "value.new.x", "value.c", "value.a"]).to_arrow()
        columns.validate(full=True)
        assert columns["value.b"].to_pylist() == [None, None, "x", "z", None]
        assert columns["value.new.x"].to_pylist() == [None, None, ["y"], None, None]
        assert columns["value.a"].to_pylist() == [1, None, 2, None, None]
        assert found.scan(start=1, end=4).to_arrow()["value"].to_pylist() == wanted[1:4]
        assert found.scan(limit=3).to_arrow()["value"].to_pylist() == wanted[:3]
        assert found.scan().narrow(timestamps_ms=(0, None)).to_arrow()["value"].to_pylist() == wanted
        assert [len(b.column(0)) for b in found.scan(columns=["value.c"]).batches()] == [2, 2, 1]
    assert len(topic.segments()) == 3
    assert store.verify() == []


def test_a_grown_schema_works_with_compression_and_several_partitions(store: sc.Store) -> None:
    topic = store.create_topic("typed", 3, schema=pa.schema([("a", pa.int64())]), compression="lz4")
    topic.append([{"a": n} for n in range(30)], keys=[b"%d" % n for n in range(30)])
    topic.alter(schema=pa.schema([("a", pa.int64()), ("b", pa.string())]), compression="none")
    topic.append([{"a": n, "b": "x"} for n in range(30)], keys=[b"%d" % n for n in range(30)])
    for p in range(3):
        values = [r.value for r in topic.scan(p)]
        half = len(values) // 2
        assert [v["a"] for v in values[:half]] == [v["a"] for v in values[half:]]
        assert {v["b"] for v in values[:half]} == {None}
        assert {v["b"] for v in values[half:]} == {"x"}
        assert topic.scan(p, columns=["value.b"]).to_arrow()["value.b"].null_count == half


def test_the_same_schema_is_no_change(store: sc.Store) -> None:
    schema = pa.schema([("a", pa.int64())])
    topic = store.create_topic("typed", schema=schema)
    topic.append([{"a": 1}])
    topic.alter(schema=schema)
    topic.append([{"a": 2}])
    assert len(topic.segments()) == 1


def test_a_schema_may_grow_before_anything_is_appended(store: sc.Store) -> None:
    topic = store.create_topic("typed", schema=pa.schema([("a", pa.int64())]))
    topic.alter(schema=pa.schema([("a", pa.int64()), ("b", pa.int64())]))
    topic.append([{"b": 1}])
    topic.alter(schema=pa.schema([("a", pa.int64()), ("b", pa.int64()), ("c", pa.int64())]))
    topic.append([{"c": 1}])
    assert [r.value for r in topic.scan()] == [{"a": None, "b": 1, "c": None}, {"a": None, "b": None, "c": 1}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([("b", pa.string())], "'a' is missing"),
        ([("a", pa.int32()), ("b", pa.string())], "'a' would change from int64 to int32"),
        ([("a", pa.int64()), ("b", pa.large_string())], "'b' would change from string to large_string"),
        ([pa.field("a", pa.int64(), nullable=False), ("b", pa.string())], "'a' would become not nullable"),
        ([("a", pa.int64()), ("b", pa.string()), pa.field("c", pa.int8(), nullable=False)], "'c' is not nullable"),
        ([("A", pa.int64()), ("b", pa.string())], "'a' is missing"),
        ([], "at least one field"),
    ],
)
def test_other_changes_of_a_schema_are_refused_with_the_difference(
    store: sc.Store, fields: list[Any], message: str
) -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
    topic = store.create_topic("typed", schema=schema)
    topic.append([{"a": 1}])
    with pytest.raises(ValueError, match=message):
        topic.alter(schema=pa.schema(fields))
    assert topic.schema == schema
    topic.append([{"a": 2}])
    assert [r.value["a"] for r in topic.scan()] == [1, 2]


def test_a_field_inside_a_struct_may_not_be_added(store: sc.Store) -> None:
    topic = store.create_topic("typed", schema=pa.schema([("s", pa.struct([("a", pa.int8())]))]))
    with pytest.raises(ValueError, match="'s' would change"):
        topic.alter(schema=pa.schema([("s", pa.struct([("a", pa.int8()), ("b", pa.int8())]))]))


# ---- projection -------------------------------------------------------------------------------------------------


def test_a_path_through_null_structs_is_null_where_any_of_them_is(store: sc.Store) -> None:
    inner = pa.struct([("x", pa.int32()), ("s", pa.string()), ("n", pa.null()), ("l", pa.list_(pa.int8()))])
    topic = store.create_topic("typed", schema=pa.schema([("a", pa.struct([("b", inner)])), ("m", pa.int8())]))
    full = {"a": {"b": {"x": 1, "s": "one", "n": None, "l": [1]}}, "m": 1}
    rows: list[Any] = [
        full, None, {"a": None, "m": 2}, {"a": {"b": None}, "m": 3}, {"a": {"b": {"x": None, "s": None}}}, full,
        *[full] * 70, None, full,
    ]  # fmt: skip
    topic.append(rows)
    topic.append([full] * 9)
    rows = rows + [full] * 9

    def path(row: Any, *names: str) -> Any:
        for name in names:
            row = None if row is None else row.get(name)
        return row

    paths = ["a.b.x", "a.b.s", "a.b.n", "a.b.l", "a.b", "a", "m"]
    table = topic.scan(columns=[f"value.{p}" for p in paths]).to_arrow()
    table.validate(full=True)
    for p in paths:
        wanted = [path(row, *p.split(".")) for row in rows]
        if p in ("a.b.x", "a.b.s", "a.b.n", "a.b.l", "m"):
            assert table[f"value.{p}"].to_pylist() == wanted
        assert table[f"value.{p}"].null_count == sum(value is None for value in wanted)
        part = topic.scan(start=1, end=9, columns=[f"value.{p}"]).to_arrow()[f"value.{p}"]
        assert part.null_count == sum(value is None for value in wanted[1:9])
        assert pc.count(part, mode="only_valid").as_py() == sum(value is not None for value in wanted[1:9])


@pytest.mark.parametrize("column", ["value.zzz", "value.a.zzz", "value.m.x", "value.", "value..m", "values.m", "a"])
def test_an_unknown_path_is_refused_with_what_there_is(store: sc.Store, column: str) -> None:
    schema = pa.schema([("a", pa.struct([("x", pa.int8())])), ("m", pa.int8())])
    topic = store.create_topic("typed", schema=schema)
    with pytest.raises(ValueError, match="there is no column .*value.a, value.m"):
        topic.scan(columns=[column])


def test_a_projection_of_one_column_reads_that_column_alone(store: sc.Store) -> None:
    topic = store.create_topic("typed", schema=pa.schema([("n", pa.int64()), ("text", pa.string())]))
    topic.append_table(pa.table({"n": np.arange(10_000), "text": ["x" * 100] * 10_000}))
    scan = topic.scan(columns=["value.n"])
    assert scan.to_arrow()["value.n"].to_pylist() == list(range(10_000))
    assert scan.metrics.bytes_exported <= 8 * 10_000 + 2 * 1250


def test_typed_columns_go_to_polars_pandas_and_duckdb(store: sc.Store) -> None:
    pytest.importorskip("polars")
    pytest.importorskip("pandas")
    duckdb = pytest.importorskip("duckdb")
    topic = store.create_topic("typed", schema=QUAKES)
    topic.append([{"magnitude": n / 10, "place": f"p{n % 3}", "id": n} for n in range(100)] + [None])
    scan = topic.scan(columns=["value.magnitude", "value.place"])
    assert scan.to_polars()["value.magnitude"].sum() == pytest.approx(495)
    assert scan.to_pandas()["value.magnitude"].sum() == pytest.approx(495)
    assert duckdb.sql(
        'select "value.place", count(*) from scan where "value.magnitude" > 5 group by 1 order by 1'
    ).fetchall()
    whole = topic.scan()
    assert duckdb.sql("select sum(value.id) from whole").fetchall() == [(4950,)]
    assert len(whole.to_pandas()) == 101
    assert whole.to_polars().height == 101


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_slices_of_maps_of_fixed_lists_are_taken(store: sc.Store, compression: str) -> None:
    """Arrow's own cast of such a slice to lists ends the process."""
    kind = pa.list_(pa.map_(pa.string(), pa.list_(pa.null(), 2)), 2)
    topic = store.create_topic("maps", partitions=2, schema=pa.schema([("m", kind)]), compression=compression)
    rows: list[Any] = [[None, [("k", [None, None])]]] * 4 + [None, [[], [("a", None), ("b", [None, None])]]]
    for start in range(len(rows)):
        topic.append_table(pa.table({"m": pa.array(rows, kind).slice(start, 2)}), partition=0)
    wanted = [row for start in range(len(rows)) for row in rows[start : start + 2]]
    assert [record.value for record in topic.scan()] == [{"m": row} for row in wanted]


# ---- any schema, any data ---------------------------------------------------------------------------------------

LEAVES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.null(), st.none()),
    (pa.bool_(), st.booleans()),
    *((getattr(pa, f"int{n}")(), st.integers(-(1 << (n - 1)), (1 << (n - 1)) - 1)) for n in (8, 16, 32, 64)),
    *((getattr(pa, f"uint{n}")(), st.integers(0, (1 << n) - 1)) for n in (8, 16, 32, 64)),
    (pa.float16(), st.floats(width=16, allow_nan=False)),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.float64(), st.floats(allow_nan=False)),
    *(
        (make(digits, 2), st.integers(-(10**digits) + 1, 10**digits - 1).map(lambda n: D(n).scaleb(-2, CONTEXT)))
        for make, digits in ((pa.decimal32, 9), (pa.decimal64, 18), (pa.decimal128, 38), (pa.decimal256, 76))
    ),
    (pa.date32(), st.dates()),
    (pa.date64(), st.dates()),
    (pa.time32("s"), st.times().map(lambda t: t.replace(microsecond=0))),
    (pa.time32("ms"), st.times().map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000))),
    *((pa.time64(unit), st.times()) for unit in ("us", "ns")),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("us", "UTC"), st.datetimes().map(lambda t: t.replace(tzinfo=dt.UTC))),
    *((pa.timestamp(unit), st.integers(-(10**9), 10**9)) for unit in ("s", "ms", "ns")),
    (pa.duration("us"), st.timedeltas(dt.timedelta(-100_000), dt.timedelta(100_000))),
    *((pa.duration(unit), st.integers(-(10**9), 10**9)) for unit in ("s", "ms", "ns")),
    (pa.month_day_nano_interval(), st.tuples(*[st.integers(-(10**9), 10**9)] * 3).map(pa.MonthDayNano)),
    *(
        (kind, st.text(st.characters(codec="utf-8"), max_size=30))
        for kind in (pa.string(), pa.large_string(), pa.string_view())
    ),
    *((kind, st.binary(max_size=30)) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.dictionary(pa.int8(), pa.string()), st.text(st.characters(codec="utf-8"), max_size=30)),
    (pa.dictionary(pa.uint16(), pa.int64()), st.integers(-(1 << 63), (1 << 63) - 1)),
]
CONTEXT = decimal.Context(prec=100)


@st.composite
def kinds(draw: Any, depth: int = 3) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    """A type and what may be in a column of it, nulls included."""
    choice = draw(st.integers(0, 6)) if depth else 0
    if choice <= 2:
        kind, values = draw(st.sampled_from(LEAVES))
        return kind, st.none() | values
    if choice == 3:
        inner = [draw(kinds(depth=depth - 1)) for _ in range(draw(st.integers(1, 3)))]
        rows = st.fixed_dictionaries({f"f{i}": values for i, (_, values) in enumerate(inner)})
        return pa.struct([(f"f{i}", kind) for i, (kind, _) in enumerate(inner)]), st.none() | rows
    kind, values = draw(kinds(depth=depth - 1))
    if choice == 4:
        make = draw(st.sampled_from([pa.list_, pa.large_list]))
        return make(kind), st.none() | st.lists(values, max_size=4)
    if choice == 5:
        size = draw(st.integers(1, 3))
        return pa.list_(kind, size), st.none() | st.lists(values, min_size=size, max_size=size)
    keys = st.text(st.characters(codec="utf-8"), max_size=5)
    return pa.map_(pa.string(), kind), st.none() | st.lists(st.tuples(keys, values), max_size=3)


@st.composite
def columns_of(draw: Any, kind: pa.DataType, values: st.SearchStrategy[Any], rows: int) -> pa.ChunkedArray:
    """A column of so many rows, cut out of larger arrays and in chunks."""
    chunks, left = [], rows
    while left:
        size = draw(st.integers(1, left))
        before, behind = draw(st.integers(0, 9)), draw(st.integers(0, 2))
        total = before + size + behind
        some = draw(st.lists(values, min_size=1, max_size=12))
        array = pa.array([some[(i * 7) % len(some)] for i in range(total)], kind)
        chunks.append(array.slice(before, size))
        left -= size
    return pa.chunked_array(chunks, kind)


@hypothesis.settings(max_examples=120)
@hypothesis.given(data=st.data())
def test_any_schema_and_data_come_back(store: sc.Store, data: st.DataObject) -> None:
    fields = data.draw(st.lists(kinds(), min_size=1, max_size=3))
    schema = pa.schema([(f"c{i}", kind) for i, (kind, _) in enumerate(fields)])
    compression = data.draw(st.sampled_from(["none", "none", "lz4"]))
    topic = store.create_topic(f"t{uuid.uuid4().hex}", schema=schema, compression=compression)
    wanted: list[Any] = []
    for _ in range(data.draw(st.integers(1, 3))):
        rows = data.draw(st.integers(1, 40))
        columns = {f"c{i}": data.draw(columns_of(kind, values, rows)) for i, (kind, values) in enumerate(fields)}
        table = pa.table(columns)
        if data.draw(st.booleans()):
            mask = pa.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
            whole = [column.combine_chunks() for column in table.columns]
            structs = pa.StructArray.from_arrays(whole, fields=list(schema), mask=mask)
            topic.append(structs.slice(rows // 3))
            wanted += structs.slice(rows // 3).to_pylist()
        else:
            topic.append_table(table)
            wanted += table.to_pylist()
    low = data.draw(st.integers(0, len(wanted)))
    high = data.draw(st.integers(low, len(wanted)))
    for start, end in ((0, len(wanted)), (low, high)):
        found = topic.scan(start=start, end=end).to_arrow()
        found.validate(full=True)
        assert found["value"].to_pylist() == wanted[start:end]
        alone = topic.scan(start=start, end=end, columns=[f"value.{name}" for name in schema.names]).to_arrow()
        alone.validate(full=True)
        for name in schema.names:
            column = [None if row is None else row[name] for row in wanted[start:end]]
            assert alone[f"value.{name}"].to_pylist() == column
            assert alone[f"value.{name}"].null_count == column.count(None)
    with Path(topic.segments()[0].path).open("rb") as file:
        foreign = pa.ipc.open_stream(file).read_all()
    foreign.validate(full=True)
    assert foreign["value"].to_pylist() == wanted
    store.delete_topic(topic.name)
