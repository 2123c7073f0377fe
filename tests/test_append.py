"""Appends: everything that can be handed over comes back as it was, goes where it should, and is whole or not there."""

from __future__ import annotations

import datetime as dt
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import streamcore as sc

VALUES: list[bytes | None] = [b"", b"a", None, b"\0\xff", b"x" * 40, None, b"last"]
TEXTS: list[str | None] = ["", "a", None, "ü€", "x" * 40, None, "last"]
TEXTS_AS_BYTES = [None if text is None else text.encode() for text in TEXTS]
UTC = dt.UTC


@pytest.fixture
def topic(make_topic: Callable[..., sc.Topic]) -> sc.Topic:
    """A plain topic with one partition."""
    return make_topic()


def values_of(topic: sc.Topic, **bounds: Any) -> list[Any]:
    return [record.value for record in topic.scan(**bounds)]


def keys_of(topic: sc.Topic) -> list[Any]:
    return [record.key for record in topic.scan()]


def ends_of(topic: sc.Topic) -> list[int]:
    return [partition.end_offset for partition in topic.partitions]


# ---- values and keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_and_tuples_of_bytes_and_none(topic: sc.Topic, kind: Callable[[Any], Any]) -> None:
    assert topic.append(kind(VALUES), keys=kind(reversed(VALUES))) == [sc.Span(0, 0, 7)]
    assert values_of(topic) == VALUES
    assert keys_of(topic) == VALUES[::-1]
    assert topic.scan().to_arrow()["value"].to_pylist() == VALUES


class Bytes(bytes):
    pass


def test_bytes_like_objects_are_taken(topic: sc.Topic) -> None:
    given = [
        bytearray(b"array"), memoryview(b"view"), memoryview(b"0123456789")[2:5], np.frombuffer(b"numpy", np.uint8),
        Bytes(b"sub"), memoryview(np.arange(2, dtype="<i4")), pa.py_buffer(b"arrow"), bytearray(), memoryview(b""),
        memoryview(b"abcd")[::2],
    ]  # fmt: skip
    wanted = [b"array", b"view", b"234", b"numpy", b"sub", b"\0\0\0\0\1\0\0\0", b"arrow", b"", b"", b"ac"]
    topic.append(given, keys=given)
    assert values_of(topic) == wanted
    assert keys_of(topic) == wanted


def test_a_bytearray_may_be_changed_after_the_append(topic: sc.Topic) -> None:
    data = bytearray(b"before")
    topic.append([data])
    data[:] = b"behind"
    assert values_of(topic) == [b"before"]


def test_bytes_like_objects_are_taken_with_headers_too(topic: sc.Topic) -> None:
    topic.append([bytearray(b"a"), memoryview(b"b"), Bytes(b"c"), None], headers=[None, {"h": b"x"}, None, None])
    assert values_of(topic) == [b"a", b"b", b"c", None]


ARROW_KINDS = {
    "binary": (pa.binary(), VALUES),
    "large_binary": (pa.large_binary(), VALUES),
    "binary_view": (pa.binary_view(), VALUES),
    "string": (pa.string(), TEXTS),
    "large_string": (pa.large_string(), TEXTS),
    "string_view": (pa.string_view(), TEXTS),
    "fixed": (pa.binary(3), [b"abc", None, b"def", None, b"\0\0\0", b"xyz", b"123"]),
    "null": (pa.null(), [None] * 7),
    "dictionary": (pa.dictionary(pa.int8(), pa.binary()), VALUES),
    "dictionary of strings": (pa.dictionary(pa.int32(), pa.string()), TEXTS),
}


def wanted_of(values: list[Any]) -> list[bytes | None]:
    return [value.encode() if isinstance(value, str) else value for value in values]


@pytest.mark.parametrize("name", ARROW_KINDS)
@pytest.mark.parametrize("shape", ["whole", "sliced", "chunked", "empty chunks"])
def test_arrow_arrays_of_every_binary_and_string_kind(topic: sc.Topic, name: str, shape: str) -> None:
    kind, values = ARROW_KINDS[name]
    array: Any = pa.array(values, kind)
    if shape == "sliced":
        array, values = array[2:6], values[2:6]
    elif shape == "chunked":
        array, values = pa.chunked_array([array[:1], array[1:4], array[3:]]), values[:4] + values[3:]
    elif shape == "empty chunks":
        array = pa.chunked_array([array[:0], array, array[:0]])
    [span] = topic.append(array, keys=array)
    assert span == sc.Span(0, 0, len(values))
    topic.append_table(pa.table({"value": array, "key": array}))
    assert values_of(topic) == wanted_of(values) * 2
    assert keys_of(topic) == wanted_of(values) * 2
    assert topic.scan(columns=["value"]).to_arrow()["value"].to_pylist() == wanted_of(values) * 2


def test_chunked_arrays_without_chunks_are_empty(topic: sc.Topic) -> None:
    assert topic.append(pa.chunked_array([], pa.binary())) == []
    assert topic.append_table(pa.table({"value": pa.chunked_array([], pa.binary())})) == []


def test_numpy_arrays_of_bytes(topic: sc.Topic) -> None:
    array = np.array([b"a", b"bcd", b"", b"ef"], dtype="S3")
    topic.append(array, keys=array[::-1])
    topic.append(array[::2])
    topic.append(array[:0])
    assert values_of(topic) == [b"a", b"bcd", b"", b"ef", b"a", b""]
    assert keys_of(topic)[:4] == [b"ef", b"", b"bcd", b"a"]


def test_polars_series_and_frames(topic: sc.Topic) -> None:
    pl = pytest.importorskip("polars")
    topic.append(pl.Series(VALUES, dtype=pl.Binary), keys=pl.Series(TEXTS))
    topic.append_table(pl.DataFrame({"value": VALUES, "key": TEXTS}))
    topic.append(pl.Series(["a", "b", "a"], dtype=pl.Categorical))
    assert values_of(topic) == [*VALUES, *VALUES, b"a", b"b", b"a"]
    assert keys_of(topic) == [*TEXTS_AS_BYTES, *TEXTS_AS_BYTES, None, None, None]


def test_pandas_columns_and_frames(topic: sc.Topic) -> None:
    pd = pytest.importorskip("pandas")
    objects = pd.Series(VALUES, dtype=object)
    texts = pd.Series(TEXTS, dtype="str")
    topic.append(objects, keys=texts)
    topic.append(texts, keys=objects)
    topic.append(pd.Series(pd.array(VALUES, dtype=pd.ArrowDtype(pa.binary()))))
    topic.append_table(pd.DataFrame({"value": objects, "key": texts}))
    assert values_of(topic) == [*VALUES, *TEXTS_AS_BYTES, *VALUES, *VALUES]
    assert keys_of(topic) == [*TEXTS_AS_BYTES, *VALUES, *[None] * 7, *TEXTS_AS_BYTES]


def test_anything_with_the_arrow_capsules(topic: sc.Topic) -> None:
    class Array:
        def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
            return pa.array(VALUES, pa.binary()).__arrow_c_array__(requested_schema)

    class Stream:
        def __init__(self, source: Any) -> None:
            self.source = source

        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            return self.source.__arrow_c_stream__(requested_schema)

    class Struct:
        def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
            return pa.record_batch({"value": pa.array(VALUES, pa.binary())}).__arrow_c_array__(requested_schema)

    table = pa.table({"value": pa.array(VALUES, pa.binary())})
    topic.append(Array())
    topic.append(Stream(table["value"]))
    topic.append_table(Stream(table))
    topic.append_table(Struct())
    topic.append_table(table.to_batches()[0])
    topic.append_table(pa.RecordBatchReader.from_batches(table.schema, table.to_batches()))
    assert values_of(topic) == VALUES * 6


def test_a_scan_can_be_appended_to_another_topic(store: sc.Store, topic: sc.Topic) -> None:
    topic.append([b"a", None], keys=[b"k", None], timestamps=[1, 2], headers=[{"h": b"x"}, None])
    copy = store.create_topic("copy")
    copy.append_table(topic.scan(columns=["timestamp", "key", "value", "headers"]))
    assert list(copy.scan()) == list(topic.scan())


def test_arrays_with_gaps_in_their_offsets_come_back_whole(topic: sc.Topic) -> None:
    data = pa.py_buffer(b"..abc...defg..")
    offsets = pa.py_buffer(np.array([2, 5, 5, 8, 12], np.int32).tobytes())
    validity = pa.py_buffer(bytes([0b1011]))
    array = pa.Array.from_buffers(pa.binary(), 4, [validity, offsets, data])
    topic.append(array)
    topic.append(array.slice(1, 2))
    assert values_of(topic) == [b"abc", b"", None, b"defg", b"", None]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 1000])
@pytest.mark.parametrize("start", [0, 1, 7, 8, 13])
def test_null_bits_of_slices_are_moved_to_the_front(topic: sc.Topic, count: int, start: int) -> None:
    values = [None if i % 3 == 0 or i % 7 == 2 else b"%d" % i for i in range(count + start + 5)]
    array = pa.array(values, pa.binary()).slice(start, count)
    topic.append(array, keys=array)
    assert values_of(topic) == values[start : start + count]
    assert topic.scan().to_arrow()["key"].to_pylist() == values[start : start + count]


def test_many_records_in_one_call_become_several_batches_in_order(topic: sc.Topic) -> None:
    count = 200_001
    values = [b"%d" % number for number in range(count)]
    assert topic.append(values) == [sc.Span(0, 0, count)]
    assert topic.append(pa.array(values)) == [sc.Span(0, count, 2 * count)]
    assert topic.append_table(pa.table({"value": values})) == [sc.Span(0, 2 * count, 3 * count)]
    table = topic.scan().to_arrow()
    assert table["offset"].to_numpy().tolist() == list(range(3 * count))
    assert table["value"].to_pylist() == values * 3
    assert all(batch.num_rows <= 1 << 16 for batch in topic.scan().batches())


def test_a_few_large_values_become_several_batches(topic: sc.Topic) -> None:
    values = [bytes([number]) * (5 << 20) for number in range(8)]
    topic.append(values)
    topic.append(pa.array(values, pa.large_binary()))
    assert values_of(topic) == values * 2
    assert len(list(topic.scan().batches())) >= 4


def test_empty_appends_do_nothing(topic: sc.Topic) -> None:
    empty = pa.array([], pa.binary())
    assert topic.append([]) == []
    assert topic.append((), keys=()) == []
    assert topic.append([], timestamps=[], headers=[]) == []
    assert topic.append(empty, keys=empty) == []
    assert topic.append_table(pa.table({"value": empty})) == []
    assert topic.append_table(pa.table({"value": empty, "partition": pa.array([], pa.int32())})) == []
    assert ends_of(topic) == [0]
    assert topic.segments() == []


def test_a_record_of_nothing_but_nulls(topic: sc.Topic) -> None:
    topic.append([None])
    topic.append([None] * 3, keys=[None] * 3, headers=[None] * 3)
    topic.append(pa.nulls(2), keys=pa.nulls(2))
    assert [(r.key, r.value, r.headers) for r in topic.scan()] == [(None, None, ())] * 6


# ---- timestamps -------------------------------------------------------------------------------------------------

MOMENTS = [dt.datetime(2026, 1, 2, 3, 4, 5, 678_999, UTC), dt.datetime(1969, 12, 31, 23, 59, 59, 999_500, UTC)]
STAMPS = [1_767_323_045_678, -1]
PARIS = dt.timezone(dt.timedelta(hours=1))


def as_arrow(unit: str, tz: str | None = "UTC") -> pa.Array:
    return pa.array(STAMPS, pa.timestamp("ms", tz)).cast(pa.timestamp(unit, tz))


TIME_FORMS: dict[str, Callable[[], Any]] = {
    "ints": lambda: list(STAMPS),
    "tuple": lambda: tuple(STAMPS),
    "datetimes": lambda: list(MOMENTS),
    "mixed": lambda: [MOMENTS[0], STAMPS[1]],
    "another zone": lambda: [moment.astimezone(PARIS) for moment in MOMENTS],
    "int64": lambda: np.array(STAMPS),
    "int32": lambda: np.array([5, -1], np.int32),
    "numpy ints": lambda: [np.int64(stamp) for stamp in STAMPS],
    "strided": lambda: np.repeat(np.array(STAMPS), 2)[::2],
    "big-endian": lambda: np.array(STAMPS).astype(">i8"),
    "datetime64 ms": lambda: np.array(STAMPS, "datetime64[ms]"),
    "datetime64 ns": lambda: np.array(STAMPS, "datetime64[ms]").astype("datetime64[ns]"),
    "arrow int64": lambda: pa.array(STAMPS),
    "arrow int32": lambda: pa.array([5, -1], pa.int32()),
    "arrow ms": lambda: as_arrow("ms"),
    "arrow us": lambda: as_arrow("us"),
    "arrow ns": lambda: as_arrow("ns"),
    "arrow zone": lambda: as_arrow("ms", "America/New_York"),
    "arrow chunked": lambda: pa.chunked_array([as_arrow("ms")[:1], as_arrow("ms")[1:]]),
    "arrow sliced": lambda: pa.concat_arrays([as_arrow("us"), as_arrow("us")])[2:],
}


NO_COLUMNS = ("ints", "tuple", "datetimes", "mixed", "another zone", "numpy ints", "big-endian")


@pytest.mark.parametrize(
    ("form", "path"),
    [(f, p) for f in TIME_FORMS for p in ("rows", "arrays", "table") if p != "table" or f not in NO_COLUMNS],
)
def test_timestamps_in_every_form(topic: sc.Topic, form: str, path: str) -> None:
    times = TIME_FORMS[form]()
    if path == "table":
        topic.append_table(pa.table({"value": [b"a", b"b"], "timestamp": pa_column(times)}))
    else:
        topic.append([b"a", b"b"] if path == "rows" else pa.array([b"a", b"b"]), timestamps=times)
    wanted = [5, -1] if "int32" in form else STAMPS
    assert [record.timestamp_ms for record in topic.scan()] == wanted
    assert topic.scan().to_arrow()["timestamp"].cast(pa.int64()).to_pylist() == wanted


def pa_column(times: Any) -> Any:
    column = pa.array(times) if isinstance(times, np.ndarray) else times
    return (
        column.cast(pa.timestamp("ns", "UTC")) if pa.types.is_timestamp(column.type) and not column.type.tz else column
    )


@pytest.mark.parametrize("time_of_all", [STAMPS[0], MOMENTS[0], np.int64(STAMPS[0]), MOMENTS[0].astimezone(PARIS)])
def test_one_timestamp_for_all(topic: sc.Topic, time_of_all: Any) -> None:
    topic.append([b"a", b"b"], timestamps=time_of_all)
    topic.append(pa.array([b"a", b"b"]), timestamps=time_of_all)
    assert [record.timestamp_ms for record in topic.scan()] == [STAMPS[0]] * 4


def test_pandas_and_polars_times(topic: sc.Topic) -> None:
    pd = pytest.importorskip("pandas")
    pl = pytest.importorskip("polars")
    stamps = pd.Series(pd.to_datetime(STAMPS, unit="ms", utc=True))
    topic.append([b"a", b"b"], timestamps=stamps)
    topic.append([b"a", b"b"], timestamps=list(stamps))
    topic.append([b"a", b"b"], timestamps=pl.Series(STAMPS).cast(pl.Datetime("ms", "UTC")))
    topic.append_table(pd.DataFrame({"value": [b"a", b"b"], "timestamp": stamps}))
    assert [record.timestamp_ms for record in topic.scan()] == STAMPS * 4


def test_times_below_the_millisecond_are_rounded_down(topic: sc.Topic) -> None:
    microseconds = [1_500, 1_999, -1, -1_000, -1_001]
    wanted = [1, 1, -1, -1, -2]
    topic.append(
        [b"x"] * 5,
        timestamps=[dt.datetime(1970, 1, 1, tzinfo=UTC) + dt.timedelta(microseconds=m) for m in microseconds],
    )
    topic.append([b"x"] * 5, timestamps=np.array(microseconds, "datetime64[us]"))
    topic.append([b"x"] * 5, timestamps=pa.array(microseconds, pa.timestamp("us", "UTC")))
    topic.append_table(pa.table({"value": [b"x"] * 5, "timestamp": pa.array(microseconds, pa.timestamp("us", "UTC"))}))
    stamps = [record.timestamp_ms for record in topic.scan()]
    assert [stamps[i : i + 5] for i in range(0, 20, 5)] == [wanted] * 4


def test_without_timestamps_the_time_is_now(topic: sc.Topic) -> None:
    before = time.time_ns() // 1_000_000
    topic.append([b"a"])
    topic.append(pa.array([b"a"]))
    topic.append([b"a"], headers=[{"h": b""}])
    topic.append_table(pa.table({"value": [b"a"]}))
    after = time.time_ns() // 1_000_000
    assert all(before <= record.timestamp_ms <= after for record in topic.scan())


def test_the_extremes_of_64_bits_come_back(topic: sc.Topic) -> None:
    extremes = [-(1 << 63), (1 << 63) - 1, 0]
    topic.append([b"x"] * 3, timestamps=extremes)
    assert [record.timestamp_ms for record in topic.scan()] == extremes
    assert topic.scan().to_arrow()["timestamp"].cast(pa.int64()).to_pylist() == extremes


def test_timestamp_type_append_ignores_the_given_times(store: sc.Store) -> None:
    topic = store.create_topic("log", timestamp_type="append")
    before = time.time_ns() // 1_000_000
    topic.append([b"a"], timestamps=5)
    topic.append(pa.array([b"a"]), timestamps=[5])
    topic.append_table(pa.table({"value": [b"a"], "timestamp": pa.array([5])}))
    assert all(record.timestamp_ms >= before for record in topic.scan())


NAIVE = dt.datetime(2026, 1, 1)
BAD_TIMES: dict[str, tuple[Any, type[Exception], str]] = {
    "naive": (NAIVE, ValueError, "time zone"),
    "naive in list": ([MOMENTS[0], NAIVE], ValueError, r"timestamps\[1\].*time zone"),
    "naive arrow": (pa.array([NAIVE, NAIVE]), ValueError, "time zone"),
    "naive pandas": ("pandas", ValueError, "time zone"),
    "float": (5.0, TypeError, "timestamps"),
    "floats": ([5.0, 6.0], TypeError, r"timestamps\[0\] is float"),
    "numpy floats": (np.array([5.0, 6.0]), TypeError, "float64"),
    "str": ("2026-01-01", TypeError, "timestamps"),
    "strs": (["2026-01-01", "2026-01-01"], TypeError, r"timestamps\[0\] is str"),
    "bools": ([True, False], TypeError, r"timestamps\[0\] is"),
    "bool": (True, TypeError, "bool"),
    "none": ([None, 5], TypeError, r"timestamps\[0\] is None"),
    "null": (pa.array([None, 5]), ValueError, "null"),
    "nat": (np.array(["NaT", "2026-01-01"], "datetime64[ms]"), ValueError, "NaT"),
    "too long": ([1, 2, 3], ValueError, "3 timestamps for 2"),
    "too short": (np.array([1]), ValueError, "1 timestamps for 2"),
    "empty": ([], ValueError, "0 timestamps for 2"),
    "too large": ([1 << 63, 0], ValueError, "64 bits"),
    "too small": (-(1 << 63) - 1, ValueError, "64 bits"),
    "unsigned too large": (np.array([1 << 63, 0], np.uint64), ValueError, "timestamps"),
    "arrow unsigned too large": (pa.array([1 << 63, 0], pa.uint64()), ValueError, "9223372036854775808"),
    "two dimensions": (np.zeros((2, 2), np.int64), ValueError, "dimensions"),
    "date": (dt.date(2026, 1, 1), TypeError, "timestamps"),
    "arrow date": (pa.array([dt.date(2026, 1, 1)] * 2), TypeError, "date32"),
    "arrow string": (pa.array(["a", "b"]), TypeError, "string"),
    "bytes": (b"ab", TypeError, "timestamps"),
    "dict": ({0: 1, 1: 2}, TypeError, "timestamps"),
    "set": ({1, 2}, TypeError, "timestamps"),
}


@pytest.mark.parametrize("name", BAD_TIMES)
def test_what_is_no_time_is_refused_and_nothing_is_written(topic: sc.Topic, name: str) -> None:
    times, error, message = BAD_TIMES[name]
    if isinstance(times, str) and times == "pandas":
        times = pytest.importorskip("pandas").Series([NAIVE, NAIVE])
    for values in ([b"a", b"b"], pa.array([b"a", b"b"])):
        with pytest.raises(error, match=message):
            topic.append(values, timestamps=times)
    if isinstance(times, pa.Array):
        with pytest.raises(error, match=message):
            topic.append_table(pa.table({"value": [b"a"] * len(times), "timestamp": times}))
    assert ends_of(topic) == [0]


# ---- headers ----------------------------------------------------------------------------------------------------

HEADERS_TYPE = pa.list_(pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.binary())]))


def test_headers_of_every_form(topic: sc.Topic) -> None:
    given = [None, {"a": b"1", "b": None}, [("a", b"1"), ("a", b"2")], [], {}, (("ü", b""),), [["x", bytearray(b"y")]]]
    wanted = [
        (), (("a", b"1"), ("b", None)), (("a", b"1"), ("a", b"2")), (), (), (("ü", b""),), (("x", b"y"),),
    ]  # fmt: skip
    topic.append([b"v"] * 7, headers=given)
    array = pa.array([[{"key": k, "value": v} for k, v in one] or None for one in wanted], HEADERS_TYPE)
    topic.append([b"v"] * 7, headers=array)
    topic.append([b"v"] * 3, headers=array[1:4])
    topic.append_table(pa.table({"value": [b"v"] * 7, "headers": array}))
    topic.append([b"v"] * 7, headers=tuple(given))
    assert [r.headers for r in topic.scan()] == [*wanted, *wanted, *wanted[1:4], *wanted, *wanted]


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_list(pa.struct([("key", pa.large_string()), ("value", pa.large_binary())])),
        pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())])),
        pa.map_(pa.string(), pa.binary()),
    ],
    ids=["large", "strings", "map"],
)
def test_headers_of_other_arrow_layouts(topic: sc.Topic, kind: pa.DataType) -> None:
    if pa.types.is_map(kind):
        array = pa.array([[("a", b"1")], None], kind)
    else:
        text = pa.types.is_string(kind.value_type.field("value").type)
        array = pa.array([[{"key": "a", "value": "1" if text else b"1"}], None], kind)
    topic.append([b"v", b"w"], headers=array)
    assert [r.headers for r in topic.scan()] == [(("a", b"1"),), ()]


def test_headers_of_some_batches_only(topic: sc.Topic) -> None:
    topic.append([b"a"])
    topic.append([b"b"], headers=[{"h": b"1"}])
    topic.append([b"c"], headers=[None])
    assert [(r.value, r.headers) for r in topic.scan()] == [(b"a", ()), (b"b", (("h", b"1"),)), (b"c", ())]
    column = topic.scan().to_arrow()["headers"]
    assert column.type == HEADERS_TYPE
    assert column.to_pylist() == [None, [{"key": "h", "value": b"1"}], None]


ANY_HEADERS_TYPE = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))

BAD_HEADERS: dict[str, tuple[Any, type[Exception]]] = {
    "too many": ([None] * 3, ValueError),
    "too few": ([None], ValueError),
    "str value": ([{"a": "1"}, None], TypeError),
    "bytes key": ([{b"a": b"1"}, None], TypeError),
    "no pair": ([["a"], None], TypeError),
    "three": ([[("a", b"1", 2)], None], TypeError),
    "int": ([5, None], TypeError),
    "int for all": (5, TypeError),
    "one dict": ({"a": b"1", "b": b"2"}, TypeError),
    "string": ("ab", TypeError),
    "null key": (pa.array([[{"key": None, "value": b"1"}], None], ANY_HEADERS_TYPE), (TypeError, ValueError)),
    "arrow ints": (pa.array([1, 2]), TypeError),
    "surrogate": ([{"\udcff": b"1"}, None], (TypeError, ValueError)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_what_are_no_headers_is_refused_and_nothing_is_written(topic: sc.Topic, name: str) -> None:
    headers, error = BAD_HEADERS[name]
    with pytest.raises(error):
        topic.append([b"a", b"b"], headers=headers)
    assert ends_of(topic) == [0]


# ---- where records go -------------------------------------------------------------------------------------------

# org.apache.kafka.common.utils.UtilsTest.testMurmur2
KAFKA_MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def murmur2(data: bytes) -> int:
    """Kafka's Utils.murmur2, written out anew from its definition."""
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


@pytest.mark.parametrize("partitions", [1, 2, 3, 7, 16, 1000])
@pytest.mark.parametrize("form", ["list", "arrow", "table", "compressed"])
def test_keyed_records_go_where_kafka_would_put_them(
    make_topic: Callable[..., sc.Topic], partitions: int, form: str
) -> None:
    topic = make_topic(partitions, compression="lz4" if form == "compressed" else "none")
    keys = [*KAFKA_MURMUR2, b"", *(b"k" * n for n in range(1, 9)), b"\xff" * 5]
    hashes = [KAFKA_MURMUR2.get(key, murmur2(key)) for key in keys]
    assert all(murmur2(key) == value & 0xFFFFFFFF for key, value in KAFKA_MURMUR2.items())
    if form == "table":
        spans = topic.append_table(pa.table({"key": keys, "value": keys}))
    else:
        spans = topic.append(keys, keys=pa.array(keys) if form == "arrow" else keys)
    wanted: dict[int, list[bytes]] = {}
    for key, value in zip(keys, hashes, strict=True):
        wanted.setdefault((value & 0x7FFFFFFF) % partitions, []).append(key)
    assert {p: values_of(topic, partition=p) for p in wanted} == wanted
    assert spans == [sc.Span(p, 0, len(wanted[p])) for p in sorted(wanted)]


def test_records_of_one_key_stay_in_order(store: sc.Store) -> None:
    topic = store.create_topic("keyed", partitions=5)
    for start in range(0, 300, 50):
        numbers = range(start, start + 50)
        topic.append([b"%d" % n for n in numbers], keys=[b"key%d" % (n % 11) for n in numbers])
    for partition in range(5):
        seen: dict[bytes, int] = {}
        for record in topic.scan(partition):
            assert record.key is not None
            assert seen.get(record.key, -1) < int(record.value)
            seen[record.key] = int(record.value)


def test_records_without_a_key_stick_to_one_partition_per_call_and_take_turns(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=3)
    used = [topic.append([b"x"] * 10) for _ in range(6)]
    assert all(len(spans) == 1 for spans in used)
    assert sorted(spans[0].partition for spans in used) == [0, 0, 1, 1, 2, 2]
    used = [topic.append(pa.array([b"x"] * 10)) for _ in range(6)]
    assert sorted(spans[0].partition for spans in used) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("form", ["list", "arrow"])
def test_keyed_and_unkeyed_records_in_one_call(store: sc.Store, form: str) -> None:
    topic = store.create_topic("clicks", partitions=7)
    keys = [b"foobar", None, b"abc", None, b"foobar", None]
    values = [b"%d" % i for i in range(6)]
    topic.append(values, keys=keys if form == "list" else pa.array(keys, pa.binary()))
    by_value = {r.value: r for r in topic.scan()}
    assert [by_value[v].key for v in values] == keys
    assert by_value[b"0"].partition == by_value[b"4"].partition == (-790332482 & 0x7FFFFFFF) % 7
    assert by_value[b"2"].partition == 479470107 % 7
    assert len({by_value[v].partition for v in (b"1", b"3", b"5")}) == 1


def test_a_given_partition_wins_over_the_key(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=4)
    assert topic.append([b"a"] * 3, keys=[b"x", b"y", b"z"], partition=3) == [sc.Span(3, 0, 3)]
    assert topic.append([b"a"], partition=np.int64(2)) == [sc.Span(2, 0, 1)]  # type: ignore[arg-type]
    assert topic.append_table(pa.table({"value": [b"a"], "key": [b"x"]}), partition=3) == [sc.Span(3, 3, 4)]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_partition_column_of_a_table_sends_each_row_to_its_place(store: sc.Store, compression: str) -> None:
    topic = store.create_topic("clicks", partitions=4, compression=compression)
    rows = 1000
    partitions = [n * 7 % 3 for n in range(rows)]
    table = pa.table(
        {
            "value": [b"%d" % n for n in range(rows)],
            "key": [None if n % 5 == 0 else b"k%d" % n for n in range(rows)],
            "timestamp": pa.array(range(rows), pa.int64()),
            "headers": pa.array(
                [[{"key": "n", "value": b"%d" % n}] if n % 2 else None for n in range(rows)], HEADERS_TYPE
            ),
            "partition": pa.array(partitions, pa.int16()),
        }
    )
    table = pa.concat_tables([table[:300], table[300:301], table[301:]])
    spans = topic.append_table(table)
    assert [(s.partition, s.end_offset) for s in spans] == [(p, partitions.count(p)) for p in range(3)]
    found = sorted(topic.scan(), key=lambda r: r.timestamp_ms)
    assert [r.partition for r in found] == partitions
    assert [r.value for r in found] == [b"%d" % n for n in range(rows)]
    assert [r.key for r in found] == table["key"].to_pylist()
    assert [bool(r.headers) for r in found] == [bool(n % 2) for n in range(rows)]
    for p in range(3):
        assert [r.timestamp_ms for r in topic.scan(p)] == [n for n in range(rows) if partitions[n] == p]


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (pa.array([0, 4]), ValueError, "4.*0 to 3"),
        (pa.array([0, -1]), ValueError, "-1.*0 to 3"),
        (pa.array([9, 9]), ValueError, "9.*0 to 3"),
        (pa.array([0, None]), ValueError, "null"),
        (pa.array([0.0, 1.0]), TypeError, "double"),
        (pa.array(["0", "1"]), TypeError, "string"),
        (pa.array([0, (1 << 64) - 1], pa.uint64()), ValueError, "18446744073709551615"),
    ],
)
def test_a_bad_partition_column_is_refused_whole(
    store: sc.Store, column: pa.Array, error: type[Exception], message: str
) -> None:
    topic = store.create_topic("clicks", partitions=4)
    with pytest.raises(error, match=message):
        topic.append_table(pa.table({"value": [b"a", b"b"], "partition": column}))
    assert ends_of(topic) == [0] * 4


@pytest.mark.parametrize(
    ("partition", "error"),
    [
        *((partition, ValueError) for partition in (-1, 3, 1 << 40)),
        *((partition, TypeError) for partition in ("0", 0.0, True, [0])),
    ],
)
def test_an_unknown_partition_is_refused_with_the_range_that_there_is(
    store: sc.Store, partition: Any, error: type[Exception]
) -> None:
    topic = store.create_topic("clicks", partitions=3)
    for use in (
        lambda: topic.append([b"x"], partition=partition),
        lambda: topic.append([b"x"], headers=[{"a": b""}], partition=partition),
        lambda: topic.append_table(pa.table({"value": [b"x"]}), partition=partition),
        lambda: topic.append([], partition=partition),
        lambda: topic.scan(partition),
    ):
        with pytest.raises(error, match="partition is .*(0 to 2|int is needed)"):
            use()
    assert ends_of(topic) == [0] * 3


# ---- what is refused --------------------------------------------------------------------------------------------

BAD_VALUES: dict[str, tuple[Any, type[Exception], str]] = {
    "str in list": ([b"a", "b"], TypeError, r"values\[1\] is str.*encode"),
    "int in list": ([1], TypeError, r"values\[0\] is int; bytes"),
    "list in list": ([[b"a"]], TypeError, r"values\[0\] is list"),
    "float nan": ([float("nan")], TypeError, r"values\[0\] is float"),
    "bytes": (b"abc", TypeError, "values is bytes"),
    "bytearray": (bytearray(b"abc"), TypeError, "values is bytearray"),
    "str": ("abc", TypeError, "values is str"),
    "none": (None, TypeError, "values is NoneType"),
    "int": (5, TypeError, "values is int"),
    "set": ({b"a"}, TypeError, "values is set"),
    "dict": ({b"a": b"b"}, TypeError, "values is dict"),
    "generator": ((b"a" for _ in range(2)), TypeError, "values is generator"),
    "arrow ints": (pa.array([1, 2]), TypeError, "int64; binary or string"),
    "arrow list": (pa.array([[b"a"]]), TypeError, "binary or string"),
    "arrow struct": (pa.array([{"a": b"a"}]), TypeError, "binary or string"),
    "numpy ints": (np.arange(3), TypeError, "int64"),
    "numpy text": (np.array(["a", "b"]), TypeError, "<U1"),
    "numpy 2d": (np.array([[b"a"], [b"b"]]), ValueError, "2 dimensions"),
    "table": (pa.table({"value": [b"a"]}), TypeError, "values"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
@pytest.mark.parametrize("with_headers", [False, True])
def test_what_are_no_values_is_refused_and_nothing_is_written(topic: sc.Topic, name: str, with_headers: bool) -> None:
    values, error, message = BAD_VALUES[name]
    count = len(values) if hasattr(values, "__len__") else 1
    headers = [{"h": b"x"}] * count if with_headers else None
    with pytest.raises(error, match=message.replace(".*encode", "") if with_headers else message):
        topic.append(values, headers=headers)
    if name not in ("none", "generator"):
        with pytest.raises((error, ValueError), match=message.replace("values", "keys").replace(".*encode", "")):
            topic.append([b"v"] * count if count else [], keys=values, headers=headers)
    assert ends_of(topic) == [0]
    assert topic.segments() == []


@pytest.mark.parametrize("keys", [[b"a"], [b"a"] * 3, [], pa.array([b"a"]), pa.nulls(1)])
def test_keys_of_another_number_than_values_are_refused(topic: sc.Topic, keys: Any) -> None:
    for values in ([b"a", b"b"], pa.array([b"a", b"b"])):
        with pytest.raises(ValueError, match=f"{len(keys)} keys for 2 values"):
            topic.append(values, keys=keys)
    assert ends_of(topic) == [0]


@pytest.mark.parametrize("durability", ["ram", "", 1, True, ["os"]])
def test_an_unknown_durability_is_refused(topic: sc.Topic, durability: Any) -> None:
    for use in (
        lambda: topic.append([b"x"], durability=durability),
        lambda: topic.append([b"x"], headers=[{"h": b""}], durability=durability),
        lambda: topic.append_table(pa.table({"value": [b"x"]}), durability=durability),
    ):
        with pytest.raises(ValueError, match="durability is .*'os' or 'disk'"):
            use()
    assert ends_of(topic) == [0]


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (pa.table({"key": [b"a"]}), ValueError, "no column 'value', only key"),
        (pa.table({"value": [b"a"], "colour": [b"a"]}), ValueError, "'colour'.*are allowed"),
        (pa.table({"value": [1]}), TypeError, "value is an Arrow array of int64"),
        (pa.table({"value": [b"a"], "key": [1]}), TypeError, "key is an Arrow array of int64"),
        (pa.table({"value": [b"a"], "headers": [1]}), TypeError, "headers are int64"),
        (pa.table([[b"a"], [b"b"]], names=["value", "value"]), ValueError, "more than one column 'value'"),
        (pa.table({}), ValueError, "no column 'value', only none"),
        (pa.array([b"a"]), TypeError, "table is BinaryArray"),
        ([b"a"], TypeError, "table is list"),
        ({"value": [b"a"]}, TypeError, "table is dict"),
        (None, TypeError, "table is NoneType"),
        ("x", TypeError, "table is str"),
    ],
)
def test_what_is_no_table_of_records_is_refused(
    topic: sc.Topic, table: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        topic.append_table(table)
    assert ends_of(topic) == [0]


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("what", ["value", "key"])
@pytest.mark.parametrize("form", ["list", "arrow", "large", "view", "table"])
def test_a_record_above_max_record_bytes_is_refused_with_its_whole_call(
    make_topic: Callable[..., sc.Topic], compression: str, what: str, form: str
) -> None:
    topic = make_topic(partitions=3, max_record_bytes=100, compression=compression)
    kinds = {"large": pa.large_binary(), "view": pa.binary_view()}
    long = [b"x"] * 20 + [b"x" * 101] + [b"x"] * 20

    def append(items: list[bytes]) -> None:
        column: Any = items if form == "list" else pa.array(items, kinds.get(form, pa.binary()))
        others = [b"k%d" % n for n in range(len(items))]
        values, keys = (column, others) if what == "value" else (others, column)
        if form == "table":
            topic.append_table(pa.table({"value": values, "key": keys}))
        else:
            topic.append(values, keys=keys)

    append([b"x" * 100, b"y"])
    before = ends_of(topic)
    with pytest.raises(sc.RecordTooLargeError, match=r"101 bytes is above max_record_bytes \(100\)"):
        append(long)
    assert ends_of(topic) == before
    append([b"x" * 100])


def test_a_failed_append_leaves_the_topic_usable(topic: sc.Topic) -> None:
    topic.append([b"a"])
    for _ in range(3):
        with pytest.raises(TypeError):
            topic.append([b"b", 5])
    topic.append([b"c"])
    assert values_of(topic) == [b"a", b"c"]


def test_spans_tell_where_records_went(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2)
    assert topic.append([b"a"] * 3, partition=1) == [sc.Span(partition=1, first_offset=0, end_offset=3)]
    [span] = topic.append([b"b"] * 2, partition=1)
    assert span == (1, 3, 5)
    assert [r.value for r in topic.scan(1, span.first_offset, span.end_offset)] == [b"b"] * 2


# ---- threads ----------------------------------------------------------------------------------------------------


def run_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def check_whole_calls(topic: sc.Topic, writers: int, calls: int, per_call: int) -> None:
    """Each call's records lie side by side in their order, and the calls of one writer in theirs."""
    records = topic.scan(columns=["value"]).to_arrow()["value"].to_pylist()
    assert len(records) == writers * calls * per_call
    progress = [0] * writers
    for start in range(0, len(records), per_call):
        writer, call, _ = map(int, records[start].split())
        assert progress[writer] == call
        progress[writer] += 1
        assert records[start : start + per_call] == [b"%d %d %d" % (writer, call, i) for i in range(per_call)]
    assert progress == [calls] * writers


@pytest.mark.parametrize("form", ["list", "arrow", "compressed"])
def test_appends_of_eight_threads_stay_whole_and_in_order(store: sc.Store, form: str) -> None:
    topic = store.create_topic("clicks", segment_bytes=1 << 16, compression="lz4" if form == "compressed" else "none")

    def write(writer: int) -> None:
        for call in range(30):
            values: Any = [b"%d %d %d" % (writer, call, i) for i in range(7)]
            [span] = topic.append(pa.array(values) if form == "arrow" else values)
            assert span.end_offset - span.first_offset == 7
            found = topic.scan(0, span.first_offset, span.end_offset).to_arrow()["value"].to_pylist()
            assert found == values

    run_threads(8, write)
    check_whole_calls(topic, 8, 30, 7)


def test_durable_appends_of_threads_share_syncs_and_are_all_durable(store: sc.Store) -> None:
    topic = store.create_topic("clicks", segment_bytes=1 << 16)

    def write(writer: int) -> None:
        for call in range(10):
            [span] = topic.append([b"%d %d %d" % (writer, call, i) for i in range(7)], durability="disk")
            assert topic.partitions[0].durable_offset >= span.end_offset

    run_threads(8, write)
    check_whole_calls(topic, 8, 10, 7)


def test_scans_while_threads_append_see_whole_calls_only(store: sc.Store) -> None:
    topic = store.create_topic("clicks", segment_bytes=1 << 17)
    done = threading.Event()
    counts: list[int] = []

    def work(number: int) -> None:
        if number < 4:
            for call in range(200):
                topic.append([b"%d %d %d" % (number, call, i) for i in range(5)])
            if number == 0:
                done.set()
            return
        last = 0
        while not done.is_set():
            scan = topic.scan(columns=["offset"])
            table = scan.to_arrow()
            assert table.num_rows % 5 == 0
            assert table.num_rows >= last
            assert scan.count() == table.num_rows
            last = table.num_rows
            if number == 5:
                records = list(topic.scan(start=max(0, last - 50)))
                assert [r.offset for r in records] == list(range(max(0, last - 50), max(0, last - 50) + len(records)))
        counts.append(last)

    run_threads(7, work)
    assert topic.scan().count() == 4000
    check_whole_calls(topic, 4, 200, 5)


@pytest.mark.parametrize("closers", [1, 2])
def test_closing_while_threads_append_and_scan_loses_nothing_acknowledged(store_path: Any, closers: int) -> None:
    store = sc.open(store_path)
    topic = store.create_topic("clicks", partitions=2, segment_bytes=1 << 16)
    acknowledged = [0, 0]
    told: list[str] = []
    going = threading.Barrier(4 + closers)

    def work(number: int) -> None:
        going.wait()
        try:
            if number < 2:
                while True:
                    topic.append([b"x" * 100] * 3, partition=number)
                    acknowledged[number] += 3
            elif number < 4:
                while True:
                    table = topic.scan().to_arrow()
                    assert table["value"].null_count == 0
            else:
                time.sleep(0.15)
                store.close()
        except sc.StreamcoreError as error:
            told.append(str(error))

    run_threads(4 + closers, work)
    assert len(told) == 4
    assert all("closed" in text for text in told)
    with sc.open(store_path) as again:
        assert [p.end_offset for p in again.topic("clicks").partitions] == acknowledged
        assert again.verify() == []
    assert min(acknowledged) > 0


# ---- what becomes of the objects -----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(sys, "getrefcount"), reason="needs reference counts")
def test_no_reference_to_a_value_is_kept_or_lost(topic: sc.Topic) -> None:
    values = [b"value %d" % i for i in range(100)]
    mixed: list[Any] = [*values, None, bytearray(b"other"), *values, memoryview(b"more"), b"", values[0]]
    before = [sys.getrefcount(value) for value in values]
    topic.append(values)
    topic.append(tuple(values), keys=values)
    topic.append(mixed)
    for wrong in ("text", 5, object()):
        with pytest.raises(TypeError, match=r"values\[100\] is"):
            topic.append([*values, wrong, *values])
    with pytest.raises(TypeError, match=r"keys\[1\] is int"):
        topic.append(values, keys=[*values[:1], 5, *values[:98]])
    assert [sys.getrefcount(value) for value in values] == before
    wanted = [*values, *values, *[None if value is None else bytes(value) for value in mixed]]
    assert [record.value for record in topic.scan()] == wanted


def test_values_that_another_thread_takes_out_of_the_list_are_appended(topic: sc.Topic) -> None:
    count, rounds = 5000, 30
    done = threading.Event()
    shared: list[bytes] = []

    def change() -> None:
        while not done.is_set():
            shared[:] = [b"%d" % i * 20 for i in range(count)]
            shared.clear()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(rounds):
            topic.append(shared)
    finally:
        done.set()
        thread.join()
    for record in topic.scan():
        number = record.value[: len(record.value) // 20]
        assert record.value == number * 20
