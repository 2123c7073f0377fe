"""Files into topics: every row once, bad rows by line, whatever interrupts it."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamcore as sc
from streamcore.ingest import IngestError, IngestOptions, IngestReport, ingest
from streamcore.ingest.conversion import convert_text, text_of
from streamcore.ingest.model import format_of, named_group
from streamcore.ingest.source import LineSource, split_lines
from streamcore.ingest.times import detect_format, parse_times
from streamcore.ingest.types import parse_schema, parse_type

UTC = dt.UTC


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sc.Store]:
    with sc.open(tmp_path / "store") as opened:
        yield opened


def written(folder: Path, name: str, content: bytes | str) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def values(topic: sc.Topic, column: str = "value") -> list[Any]:
    """A column of all records, partition by partition."""
    return topic.scan(columns=[column]).to_arrow().column(0).to_pylist()


def lines_of_bad(report: IngestReport) -> list[int]:
    return [bad.line for bad in report.bad]


# Lines


def test_each_line_is_a_record(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.log", b"one\ntwo\r\n\n\xff\xfe\nlast without an end")
    report = ingest(store, "t", path)
    assert values(store.topic("t")) == [b"one", b"two", b"", b"\xff\xfe", b"last without an end"]
    assert (report.rows, report.bad_count, report.format, report.status) == (5, 0, "lines", "ingested")


def test_a_path_may_be_any_that_python_takes(store: sc.Store, tmp_path: Path) -> None:
    assert ingest(store, "t", tmp_path / written(tmp_path, "a.log", b"one\n")).rows == 1
    with pytest.raises(TypeError):
        ingest(store, "t", 5)  # type: ignore[arg-type]


def test_key_and_timestamp_are_found_by_regular_expressions(store: sc.Store, tmp_path: Path) -> None:
    text = '10.0.0.1 - - [17/May/2015:10:05:03 +0200] "GET / HTTP/1.1" 200\n-\n'
    options = IngestOptions(key_regex=r"^(\S+)", timestamp_regex=r"\[([^\]]+)\]")
    report = ingest(store, "t", written(tmp_path, "a.log", text), options)
    [record] = store.topic("t").scan()
    assert record.key == b"10.0.0.1"
    assert record.timestamp == dt.datetime(2015, 5, 17, 8, 5, 3, tzinfo=UTC)
    assert [(bad.line, bad.message, bad.text) for bad in report.bad] == [(2, "no timestamp", b"-")]


def test_key_and_timestamp_are_words_by_number(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.log", "2026-01-01T00:00:00.5Z ada /\n2026-01-01T00:00:01Z bob /cart\n\n")
    report = ingest(store, "t", path, IngestOptions(timestamp="1", key="2"))
    assert values(store.topic("t"), "key") == [b"ada", b"bob"]
    assert values(store.topic("t"), "timestamp")[0] == dt.datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
    assert lines_of_bad(report) == [3]


def test_lines_without_a_timestamp_field_get_the_time_of_the_ingest(store: sc.Store, tmp_path: Path) -> None:
    before = dt.datetime.now(UTC) - dt.timedelta(milliseconds=1)
    ingest(store, "t", written(tmp_path, "a.log", "one\n"))
    assert before <= values(store.topic("t"), "timestamp")[0] <= dt.datetime.now(UTC)


def test_a_line_larger_than_the_topic_takes_is_bad_and_the_others_are_kept(store: sc.Store, tmp_path: Path) -> None:
    store.create_topic("t", max_record_bytes=100)
    report = ingest(store, "t", written(tmp_path, "a.log", b"small\n" + b"x" * 1000 + b"\nalso small\n"))
    assert values(store.topic("t")) == [b"small", b"also small"]
    assert lines_of_bad(report) == [2]


def test_compressed_files_are_read_as_what_they_hold(store: sc.Store, tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"id,name\n1,ada\n2,bob\n"))
    report = ingest(store, "t", str(path), IngestOptions(typed=True))
    assert report.format == "csv"
    assert values(store.topic("t")) == [{"id": 1, "name": "ada"}, {"id": 2, "name": "bob"}]
    assert ingest(store, "t", str(path), IngestOptions(typed=True)).status == "unchanged"


def test_lines_cannot_be_typed(store: sc.Store, tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="no columns"):
        ingest(store, "t", written(tmp_path, "a.log", "x\n"), IngestOptions(typed=True))
    assert store.topics() == []


def test_blocks_end_where_lines_end_and_hold_everything(tmp_path: Path) -> None:
    content = b"".join(b"%d %s\n" % (n, b"x" * (n % 97)) for n in range(5000)) + b"no end"
    source = LineSource(written(tmp_path, "a", content), 1000)
    blocks = list(source.blocks())
    assert b"".join(bytes(block.data) for block in blocks if isinstance(block.data, bytes)) == content
    assert all(block.data.endswith(b"\n") for block in blocks[:-1] if isinstance(block.data, bytes))
    assert [block.first_line for block in blocks] == [1 + content.count(b"\n", 0, block.start) for block in blocks]
    source.close()


def test_lines_are_split_as_python_splits_them() -> None:
    for data in (b"", b"\n", b"a", b"a\n", b"a\r\nb\n\nc", b"\r\n\r\n", b"a\rb\n"):
        expected = data.replace(b"\r\n", b"\n").split(b"\n")
        expected = expected[:-1] if data.endswith(b"\n") or not data else expected
        assert split_lines(data).to_pylist() == expected, data


# CSV

SHOP = """id,name,when,price
1,lamp,2026-01-01 10:00:00,9.5
2,"desk, large",2026-01-01 10:00:01.25,120
3,,2026-01-01 10:00:02,
"""


def test_csv_goes_into_a_typed_topic_with_the_types_it_shows(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "shop.csv", SHOP)
    report = ingest(store, "shop", path, IngestOptions(typed=True, key="id", timestamp="when"))
    assert report.schema is not None
    assert {field.name: str(field.type) for field in report.schema} == {
        "id": "int64",
        "name": "string",
        "when": "timestamp[ms, tz=UTC]",
        "price": "double",
    }
    records = list(store.topic("shop").scan())
    assert [record.key for record in records] == [b"1", b"2", b"3"]
    moment = dt.datetime(2026, 1, 1, 10, 0, 1, 250_000, tzinfo=UTC)
    assert records[1].timestamp == moment
    assert records[1].value == {"id": 2, "name": "desk, large", "when": moment, "price": 120.0}
    assert records[2].value["name"] is None
    assert records[2].value["price"] is None


def test_csv_goes_into_a_plain_topic_line_by_line(store: sc.Store, tmp_path: Path) -> None:
    ingest(store, "shop", written(tmp_path, "shop.csv", SHOP), IngestOptions(key="name", timestamp="when"))
    assert values(store.topic("shop")) == [line.encode() for line in SHOP.splitlines()[1:]]
    assert values(store.topic("shop"), "key") == [b"lamp", b"desk, large", None]


def test_one_field_of_csv_can_be_the_value(store: sc.Store, tmp_path: Path) -> None:
    ingest(store, "shop", written(tmp_path, "shop.csv", SHOP), IngestOptions(key="id", value="name"))
    assert values(store.topic("shop")) == [b"lamp", b"desk, large", None]


BAD = b"""id,name,when,x
1,a,2026-01-01T00:00:00,1.5

2,b
3,c,never,2
x,d,2026-01-01T00:00:01,3
4,\xff,2026-01-01T00:00:02,zz
5,e,,4
6,f,2026-01-01T00:00:05,
7,g,2026-01-01T00:00:06,1,2
99999999999999999999,h,2026-01-01T00:00:07,1
8,i,2026-01-01T00:00:08,nan
"""


def test_bad_rows_of_csv_are_named_by_line_and_reason_and_the_good_ones_kept(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "bad.csv", BAD)
    kinds = (("id", "int64"), ("name", "string"), ("x", "double"))
    report = ingest(store, "t", path, IngestOptions(typed=True, timestamp="when", columns=kinds))
    assert [(bad.line, bad.message) for bad in report.bad] == [
        (4, "2 fields where there should be 4"),
        (5, "column 'when' is not a timestamp[ms, tz=UTC]"),
        (6, "column 'id' is not an int64"),
        (7, "column 'name' is not a string"),
        (8, "no timestamp"),
        (10, "5 fields where there should be 4"),
        (11, "column 'id' is not an int64"),
    ]
    assert report.bad[3].text == b"4,\xff,2026-01-01T00:00:02,zz"
    assert [value["id"] for value in values(store.topic("t"))] == [1, 6, 8]
    assert report.rows == 3


def test_bad_rows_of_csv_are_left_out_of_a_plain_topic(store: sc.Store, tmp_path: Path) -> None:
    report = ingest(store, "t", written(tmp_path, "bad.csv", BAD), IngestOptions(key="id", timestamp="when"))
    assert lines_of_bad(report) == [4, 5, 8, 10]
    assert values(store.topic("t"), "key") == [b"1", b"x", b"4", b"6", b"99999999999999999999", b"8"]
    assert values(store.topic("t"))[2] == b"4,\xff,2026-01-01T00:00:02,zz"


def test_line_numbers_of_bad_rows_go_on_from_block_to_block(store: sc.Store, tmp_path: Path) -> None:
    rows = [f"{n},x" if n % 100 else f"{n}" for n in range(1, 2001)]
    path = written(tmp_path, "a.csv", "id,name\n" + "\n".join(rows) + "\n")
    report = ingest(store, "t", path, IngestOptions(typed=True, block_bytes=700))
    assert lines_of_bad(report) == [n + 1 for n in range(100, 2001, 100)]
    assert report.rows == 1980


def test_stopping_on_an_error_appends_nothing_of_its_block(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "bad.csv", BAD)
    with pytest.raises(IngestError, match=r"bad\.csv:4: 2 fields"):
        ingest(store, "t", path, IngestOptions(key="id", stop_on_error=True))
    assert store.topics() == []


def test_quoted_fields_may_hold_newlines_when_asked_to(store: sc.Store, tmp_path: Path) -> None:
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(["id", "text"])
    expected = [(n, f'line "{n}"\nand\n\nmore, {n}') for n in range(300)]
    writer.writerows(expected)
    path = written(tmp_path, "a.csv", sink.getvalue() + "oops\n")
    report = ingest(store, "t", path, IngestOptions(typed=True, newlines_in_values=True, block_bytes=1000))
    assert [(value["id"], value["text"]) for value in values(store.topic("t"))] == expected
    assert lines_of_bad(report) == [1 + 300 * 4 + 1]


def test_csv_dialects(store: sc.Store, tmp_path: Path) -> None:
    ingest(store, "tabs", written(tmp_path, "a.tsv", "a\tb\n1\tx,y\n"), IngestOptions(typed=True))
    assert values(store.topic("tabs")) == [{"a": 1, "b": "x,y"}]
    ingest(
        store, "bare", written(tmp_path, "b.csv", "1;x\n2;y\n"), IngestOptions(typed=True, delimiter=";", header=False)
    )
    assert values(store.topic("bare")) == [{"f0": 1, "f1": "x"}, {"f0": 2, "f1": "y"}]
    ingest(store, "marked", written(tmp_path, "c.csv", b"\xef\xbb\xbfa,b\n1,NA\n"), IngestOptions(typed=True))
    assert values(store.topic("marked")) == [{"a": 1, "b": "NA"}]
    options = IngestOptions(typed=True, null_values=("", "NA"))
    ingest(store, "nulls", written(tmp_path, "d.csv", 'a,b\n1,NA\n2,""\n'), options)
    assert values(store.topic("nulls")) == [{"a": 1, "b": None}, {"a": 2, "b": ""}]


def test_a_type_widens_to_fit_the_whole_file(store: sc.Store, tmp_path: Path) -> None:
    rows = "".join(f"{n}\n" for n in range(200_000))
    report = ingest(store, "t", written(tmp_path, "a.csv", f"n\n{rows}0.5\n"), IngestOptions(typed=True))
    assert report.schema is not None
    assert report.schema.field("n").type == pa.float64()
    assert report.bad_count == 0


def test_what_does_not_fit_the_types_inferred_from_fewer_rows_is_bad(store: sc.Store, tmp_path: Path) -> None:
    rows = "".join(f"{n}\n" for n in range(5000))
    path = written(tmp_path, "a.csv", f"n\n{rows}0.5\n7\n")
    report = ingest(store, "t", path, IngestOptions(typed=True, infer_rows=10))
    assert [(bad.line, bad.message) for bad in report.bad] == [(5002, "column 'n' is not an int64")]
    assert report.rows == 5001


def test_a_column_type_can_be_named(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "zip,fare\n00123,1.10\n")
    ingest(store, "t", path, IngestOptions(typed=True, columns=(("zip", "string"), ("fare", "decimal(8,2)"))))
    assert [str(value) for value in values(store.topic("t"))[0].values()] == ["00123", "1.10"]


@pytest.mark.parametrize("field", ["key", "timestamp", "value"])
def test_a_field_that_the_file_lacks_is_named_with_a_suggestion(store: sc.Store, tmp_path: Path, field: str) -> None:
    with pytest.raises(
        IngestError, match=r"no field 'pricee'; did you mean 'price'\? \(fields: id, name, when, price\)"
    ):
        ingest(store, "t", written(tmp_path, "shop.csv", SHOP), IngestOptions(**{field: "pricee"}))


def test_columns_that_a_typed_topic_does_not_have_are_refused(store: sc.Store, tmp_path: Path) -> None:
    store.create_topic("t", schema=pa.schema([("id", pa.int64()), ("more", pa.string())]))
    with pytest.raises(IngestError, match="columns that the topic does not have: name"):
        ingest(store, "t", written(tmp_path, "a.csv", "id,name\n1,x\n"))
    ingest(store, "t", written(tmp_path, "b.csv", "id\n1\n"))
    assert values(store.topic("t")) == [{"id": 1, "more": None}]


def test_a_plain_topic_refuses_typed_values(store: sc.Store, tmp_path: Path) -> None:
    store.create_topic("t")
    with pytest.raises(IngestError, match="'t' is plain"):
        ingest(store, "t", written(tmp_path, "shop.csv", SHOP), IngestOptions(typed=True))


def test_random_csv_reads_as_python_reads_it(store: sc.Store, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["id", "text", "number"])
    expected = []
    for n in range(3000):
        text = "".join(random.choice(list("ab,\" é'"), size=random.integers(0, 12)))
        number = None if random.random() < 0.2 else float(np.round(random.normal(), 3))
        expected.append({"id": n, "text": text or None, "number": number})
        writer.writerow([n, text, "" if number is None else number])
    path = written(tmp_path, "a.csv", sink.getvalue())
    report = ingest(store, "t", path, IngestOptions(typed=True, block_bytes=5000))
    assert report.bad_count == 0
    assert [{**value, "text": value["text"] or None} for value in values(store.topic("t"))] == expected


# JSON lines

EVENTS = b"""{"id": 1, "user": {"id": "u1"}, "at": "2026-01-01T00:00:00Z", "tags": ["a"]}

{"id": 2, "user": {"id": "u2"}, "at": "2026-01-01T00:00:00.123456Z"}
nonsense
{"id": "three", "at": "2026-01-01T00:00:03Z"}
{"id": 4} {"id": 5}
{"id": 6, "at": "2026-01-01T00:00:06Z", "tags": []}
{"id": 7}"""


def test_json_lines_go_into_a_plain_topic_as_they_are(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", EVENTS)
    report = ingest(store, "t", path, IngestOptions(key="user.id", timestamp="at"))
    assert values(store.topic("t")) == [EVENTS.splitlines()[place] for place in (0, 2, 4, 6)]
    assert values(store.topic("t"), "key") == [b"u1", b"u2", None, None]
    assert [(bad.line, bad.message) for bad in report.bad] == [
        (4, "Invalid value"),
        (6, "not one JSON object"),
        (8, "no timestamp"),
    ]


def test_json_lines_go_into_a_typed_topic_field_by_field(store: sc.Store, tmp_path: Path) -> None:
    report = ingest(store, "t", written(tmp_path, "a.jsonl", EVENTS), IngestOptions(typed=True, timestamp="at"))
    assert report.schema is not None
    assert str(report.schema.field("at").type) == "timestamp[us, tz=UTC]"
    found = values(store.topic("t"))
    assert [value["id"] for value in found] == [1, 2, 6]
    assert [value["user"] for value in found] == [{"id": "u1"}, {"id": "u2"}, None]
    assert [value["tags"] for value in found] == [["a"], None, []]
    assert found[1]["at"] == dt.datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)
    assert lines_of_bad(report) == [4, 5, 6, 8]


def test_a_json_field_that_the_topic_does_not_know_makes_a_bad_row_not_a_loss(store: sc.Store, tmp_path: Path) -> None:
    rows = "".join(f'{{"id": {n}}}\n' for n in range(1000))
    path = written(tmp_path, "a.jsonl", rows + '{"id": 1, "new": true}\n')
    report = ingest(store, "t", path, IngestOptions(typed=True, infer_rows=4))
    assert lines_of_bad(report) == [1001]
    assert "unexpected field" in report.bad[0].message.lower()


def test_json_numbers_widen(store: sc.Store, tmp_path: Path) -> None:
    ingest(store, "t", written(tmp_path, "a.jsonl", '{"n": 1}\n{"n": 2.5}\n{"n": null}\n'), IngestOptions(typed=True))
    assert values(store.topic("t")) == [{"n": 1.0}, {"n": 2.5}, {"n": None}]


def test_many_json_lines_come_back_in_order(store: sc.Store, tmp_path: Path) -> None:
    rows = [json.dumps({"id": n, "text": "x" * (n % 50)}) for n in range(20_000)]
    path = written(tmp_path, "a.jsonl", "\n".join(rows))
    report = ingest(store, "t", path, IngestOptions(block_bytes=50_000))
    assert report.rows == 20_000
    assert values(store.topic("t")) == [row.encode() for row in rows]


# Parquet and Arrow


def table() -> pa.Table:
    count = 150_000
    moments = np.arange(count) * 1000 + 1_767_225_600_000
    return pa.table(
        {
            "id": np.arange(count),
            "name": pa.array([f"n{n % 7}" for n in range(count)]).dictionary_encode(),
            "at": pa.array(moments, pa.timestamp("ms", "UTC")),
        }
    )


def write_arrow(data: pa.Table, path: Path, *, stream: bool) -> str:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, data.schema) as writer:
        writer.write_table(data, max_chunksize=1000)
    return str(path)


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_columnar_files_go_into_a_typed_topic(store: sc.Store, tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        path = str(tmp_path / "t.parquet")
        pq.write_table(table(), path)
    else:
        path = write_arrow(table(), tmp_path / "t.arrow", stream=kind == "stream")
    options = IngestOptions(typed=True, timestamp="at", key="id")
    report = ingest(store, "t", path, options)
    assert report.rows == 150_000
    found = store.topic("t").scan(columns=["timestamp", "key", "value.id", "value.name", "value.at"]).to_arrow()
    assert found["value.id"].to_pylist() == list(range(150_000))
    assert found["value.name"][8].as_py() == "n1"
    assert found["timestamp"].equals(found["value.at"])
    assert found["key"][149_999].as_py() == b"149999"
    assert ingest(store, "t", path, options).status == "unchanged"


def test_an_exported_topic_comes_back_as_it_was(store: sc.Store, tmp_path: Path) -> None:
    plain = store.create_topic("plain")
    plain.append([b"a", None, b"\xff"], keys=[b"k", None, b"l"], timestamps=[1000, 2000, 3000])
    typed = store.create_topic("typed", schema=pa.schema([("n", pa.int64())]))
    typed.append([{"n": 1}, {"n": None}], keys=[b"x", b"y"], timestamps=[1000, 2000])
    for topic, options in ((plain, IngestOptions()), (typed, IngestOptions(typed=True))):
        path = str(tmp_path / f"{topic.name}.parquet")
        pq.write_table(topic.scan().to_arrow(), path)
        ingest(store, f"{topic.name}-copy", path, options)
        copy = store.topic(f"{topic.name}-copy")
        columns = ["timestamp", "key", "value"]
        assert copy.scan(columns=columns).to_arrow().to_pylist() == topic.scan(columns=columns).to_arrow().to_pylist()
        assert copy.schema == topic.schema


def test_a_columnar_file_without_a_value_column_says_what_to_do(store: sc.Store, tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    pq.write_table(table(), path)
    with pytest.raises(IngestError, match="--value, or keep all columns with --typed"):
        ingest(store, "t", path)
    ingest(store, "t", path, IngestOptions(value="name", key="id"))
    assert values(store.topic("t"))[8] == b"n1"


# Twice, and after interruptions


def row_file(folder: Path, form: str, count: int) -> str:
    """A file of rows with the columns id, name and at."""
    path = folder / f"{count}.{form}"
    rows = [(n, f"n{n % 7}", f"2026-01-01 {n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}") for n in range(count)]
    if form == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(("id", "name", "at"), row, strict=True))) + "\n" for row in rows))
    elif form in ("csv", "log"):
        path.write_text("id,name,at\n" * (form == "csv") + "".join(f"{n},{name},{at}\n" for n, name, at in rows))
    else:
        data = pa.Table.from_pylist([{"id": n, "name": name, "at": at} for n, name, at in rows])
        if form == "parquet":
            pq.write_table(data, path)
        else:
            write_arrow(data.combine_chunks(), path, stream=False)
    return str(path)


@pytest.mark.parametrize(
    ("form", "typed"),
    [("log", False), *((form, typed) for form in ("csv", "jsonl", "parquet", "arrow") for typed in (False, True))],
)
def test_python_has_no_work_for_each_row(form: str, typed: bool, store: sc.Store, tmp_path: Path) -> None:
    options = IngestOptions(
        key="name" if form != "log" else None,
        key_regex=r"^\d+,(\w+)" if form == "log" else None,
        timestamp="at" if form != "log" else None,
        timestamp_regex=r",([^,]+)$" if form == "log" else None,
        value="name" if form in ("parquet", "arrow") and not typed else None,
        typed=typed,
    )

    def calls(count: int) -> int:
        """Calls of functions, Python's and C's, while a file of one block is ingested."""
        path, seen = row_file(tmp_path, form, count), 0

        def see(*_: Any) -> None:
            nonlocal seen
            seen += 1

        sys.setprofile(see)
        try:
            report = ingest(store, f"t{count}", path, options)
        finally:
            sys.setprofile(None)
        assert (report.rows, report.bad_count) == (count, 0)
        return seen

    calls(10)  # imports what is imported at first use
    few, many = calls(100), calls(20_000)
    assert many < 1.2 * few + 100


def test_a_file_that_is_in_the_topic_is_not_ingested_again(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.log", "one\ntwo\n")
    ingest(store, "t", path)
    again = ingest(store, "t", path)
    assert (again.status, again.rows) == ("unchanged", 0)
    assert values(store.topic("t")) == [b"one", b"two"]
    ingest(store, "other", path)
    assert values(store.topic("other")) == [b"one", b"two"]


def test_a_topic_of_the_same_name_made_anew_is_empty_and_takes_the_file(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.log", "one\n")
    ingest(store, "t", path)
    store.delete_topic("t")
    ingest(store, "t", path)
    assert values(store.topic("t")) == [b"one"]


def test_what_was_appended_to_a_file_is_added(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "id,x\n1,a\n")
    ingest(store, "t", path, IngestOptions(typed=True))
    with Path(path).open("a") as file:
        file.write("2,b\nbad\n")
    report = ingest(store, "t", path, IngestOptions(typed=True))
    assert (report.status, report.rows, lines_of_bad(report)) == ("extended", 1, [4])
    assert values(store.topic("t")) == [{"id": 1, "x": "a"}, {"id": 2, "x": "b"}]


def test_a_last_line_without_an_end_is_a_record_and_must_not_grow(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.log", "one\ntwo")
    ingest(store, "t", path)
    with Path(path).open("a") as file:
        file.write("\nthree\n")
    assert ingest(store, "t", path).rows == 1
    assert values(store.topic("t")) == [b"one", b"two", b"three"]
    Path(path).write_text("one\ntwo\nthree\nfo")
    ingest(store, "t", path)
    Path(path).write_text("one\ntwo\nthree\nfour\n")
    with pytest.raises(IngestError, match=r"line 4 .* was not complete"):
        ingest(store, "t", path)


@pytest.mark.parametrize("content", ["ONE\ntwo\n", "one\n", "ONE\ntwo\nthree\n"])
def test_a_file_that_changed_is_refused_until_forced(store: sc.Store, tmp_path: Path, content: str) -> None:
    path = written(tmp_path, "a.log", "one\ntwo\n")
    ingest(store, "t", path)
    written(tmp_path, "a.log", content)
    with pytest.raises(IngestError, match="--force"):
        ingest(store, "t", path)
    assert values(store.topic("t")) == [b"one", b"two"]
    ingest(store, "t", path, IngestOptions(force=True))
    assert values(store.topic("t")) == [b"one", b"two", *content.encode().splitlines()]


def test_a_changed_columnar_file_is_refused(store: sc.Store, tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"value": ["a", "b"]}), path)
    ingest(store, "t", path)
    pq.write_table(pa.table({"value": ["a", "b", "c"]}), path)
    with pytest.raises(IngestError, match="has changed"):
        ingest(store, "t", path)


def test_other_options_than_before_are_refused(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.log", "one 1\n")
    ingest(store, "t", path, IngestOptions(key="1"))
    with pytest.raises(IngestError, match="with other options"):
        ingest(store, "t", path, IngestOptions(key="2"))


class InterruptedIngestError(Exception):
    pass


class FailingTopic:
    """A topic whose n-th append fails: before anything is appended, or after everything is."""

    def __init__(self, topic: sc.Topic, fail_at: int, *, after: bool) -> None:
        self._topic = topic
        self._left = fail_at
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._topic, name)

    def append_table(self, data: pa.Table, partition: int | None = None) -> Any:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise InterruptedIngestError
        spans = self._topic.append_table(data, partition=partition)
        if self._left == 0:
            raise InterruptedIngestError
        return spans


class FailingStore:
    """A store that hands out a topic which is interrupted."""

    def __init__(self, store: sc.Store, fail_at: int, *, after: bool) -> None:
        self._store = store
        self._fail_at = fail_at
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def topic(self, name: str) -> Any:
        return FailingTopic(self._store.topic(name), self._fail_at, after=self._after)


def interrupt(store: sc.Store, path: str, options: IngestOptions, fail_at: int, *, after: bool) -> None:
    failing: Any = FailingStore(store, fail_at, after=after)
    with pytest.raises(InterruptedIngestError):
        ingest(failing, "t", path, options)


def as_sets(topic: sc.Topic) -> list[tuple[bytes | None, Any]]:
    found = topic.scan(columns=["key", "value"]).to_arrow().to_pylist()
    return sorted((row["key"], str(row["value"])) for row in found)


NUMBERED = "".join(f"k{n % 11} {n}\n" for n in range(3000))


@pytest.mark.parametrize("after", [False, True], ids=["before the append", "after the append"])
@pytest.mark.parametrize("key", [None, "1"], ids=["without keys", "with keys"])
@pytest.mark.parametrize("fail_at", [1, 2, 5])
def test_an_interrupted_ingest_goes_on_without_loss_or_repetition(
    store: sc.Store, tmp_path: Path, fail_at: int, key: str | None, after: bool
) -> None:
    path = written(tmp_path, "a.log", NUMBERED)
    options = IngestOptions(key=key, block_bytes=4000)
    topic = store.create_topic("t", partitions=3)
    interrupt(store, path, options, fail_at, after=after)
    report = ingest(store, "t", path, options)
    assert report.status == "resumed"
    assert sorted(values(topic)) == sorted(NUMBERED.encode().splitlines())
    assert ingest(store, "t", path, options).status == "unchanged"


def test_a_block_that_reached_some_partitions_alone_is_completed(store: sc.Store, tmp_path: Path) -> None:
    """As after a crash between the atomic appends of one block to several partitions."""
    path = written(tmp_path, "a.log", NUMBERED)
    options = IngestOptions(key="1", block_bytes=8000)
    topic = store.create_topic("t", partitions=3)
    interrupt(store, path, options, 2, after=False)
    first = topic.scan().count()
    block = NUMBERED[: NUMBERED.rindex("\n", 0, 16000) + 1].splitlines()[first:]
    noted = json.loads(store.get_setting(f"ingest:{topic.id}:{Path(path).resolve()}") or "{}")
    rows = [line for line in block if topic_partition(topic, line.split()[0]) == 1]
    topic.append(
        [row.encode() for row in rows[: len(rows)]],
        keys=[row.split()[0].encode() for row in rows],
        timestamps=[noted["now_ms"]] * len(rows),
        partition=1,
    )
    ingest(store, "t", path, options)
    missing = set(NUMBERED.encode().splitlines()) - set(values(topic))
    assert not missing
    doubled = len(values(topic)) - 3000
    assert doubled == 0


def topic_partition(topic: sc.Topic, key: str) -> int:
    """Where the records with this key are."""
    found = topic.scan(columns=["partition", "key"]).to_arrow().to_pylist()
    return next(row["partition"] for row in found if row["key"] == key.encode())


def test_records_of_other_writers_do_not_hide_an_interrupted_block(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.log", NUMBERED)
    options = IngestOptions(key="1", block_bytes=4000)
    topic = store.create_topic("t", partitions=2)
    interrupt(store, path, options, 3, after=True)
    others = [b"other %d" % n for n in range(50)]
    topic.append(others, keys=[b"k%d" % (n % 11) for n in range(50)])
    ingest(store, "t", path, options)
    assert sorted(values(topic)) == sorted([*NUMBERED.encode().splitlines(), *others])


def test_a_typed_interrupted_ingest_recognises_rows_with_nan_and_null(store: sc.Store, tmp_path: Path) -> None:
    rows = "".join(f"{n % 5},{'nan' if n % 3 else ''},t{n}\n" for n in range(2000))
    path = written(tmp_path, "a.csv", "id,x,text\n" + rows)
    schema = pa.schema([("id", pa.int64()), ("x", pa.float64()), ("text", pa.string())])
    topic = store.create_topic("t", partitions=2, schema=schema)
    options = IngestOptions(key="id", block_bytes=4000)
    interrupt(store, path, options, 2, after=True)
    ingest(store, "t", path, options)
    assert sorted(value["text"] for value in values(topic)) == sorted(f"t{n}" for n in range(2000))


def test_identical_blocks_are_not_taken_for_one_another(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.log", "2026-01-01T00:00:00Z same\n" * 1000)
    options = IngestOptions(timestamp="1", key="2", block_bytes=2600)
    topic = store.create_topic("t")
    interrupt(store, path, options, 4, after=True)
    ingest(store, "t", path, options)
    assert topic.scan().count() == 1000


def test_an_interrupted_columnar_ingest_goes_on(store: sc.Store, tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    pq.write_table(table(), path)
    topic = store.create_topic("t", schema=parse_schema("id:int64,name:string,at:timestamp"))
    options = IngestOptions(timestamp="at")
    interrupt(store, path, options, 2, after=True)
    report = ingest(store, "t", path, options)
    assert report.status == "resumed"
    assert topic.scan(columns=["value.id"]).to_arrow()["value.id"].to_pylist() == list(range(150_000))


def test_two_ingests_of_one_file_at_once_are_noticed(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.log", NUMBERED)
    options = IngestOptions(block_bytes=4000)
    topic = store.create_topic("t")
    key = f"ingest:{topic.id}:{Path(path).resolve()}"
    with pytest.raises(IngestError, match="by another process"):
        ingest(store, "t", path, options, progress=lambda done, total: store.set_setting(key, "{}"))


INGEST = """
import sys
import streamcore as sc
from streamcore.ingest import IngestOptions, ingest
with sc.open(sys.argv[1]) as store:
    ingest(store, "t", sys.argv[2], IngestOptions(key="1", partitions=3, block_bytes=20_000))
"""


def records_in(path: Path) -> int:
    """How many records are in the topic, 0 while there is none."""
    try:
        with sc.open(path, mode="r") as store:
            return store.topic("t").scan().count()
    except sc.StreamcoreError:
        return 0


def test_a_killed_ingest_goes_on_without_loss_or_repetition(tmp_path: Path) -> None:
    """SIGKILL at places spread over the file; the process may also get to its end before it is killed."""
    lines = [f"k{n % 101} line {n}" for n in range(60_000)]
    file, path = written(tmp_path, "a.log", "\n".join(lines)), tmp_path / "store"
    words = [sys.executable, "-c", INGEST, str(path), file]
    killed = 0
    for target in range(4_000, 60_000, 9_000):
        process = subprocess.Popen(words)
        while process.poll() is None and records_in(path) < target:
            pass
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed > 3
    subprocess.run(words, check=True)
    with sc.open(path, mode="r") as store:
        found = sorted(values(store.topic("t")))
        assert store.verify() == []
    assert found == sorted(line.encode() for line in lines)


# Times, types, conversions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2016/01/01 00:30:04.91", dt.datetime(2016, 1, 1, 0, 30, 4, 910_000, tzinfo=UTC)),
        ("2016-01-01", dt.datetime(2016, 1, 1, tzinfo=UTC)),
        ("2016-01-01T10:00:00Z", dt.datetime(2016, 1, 1, 10, tzinfo=UTC)),
        ("2016-01-01 10:00:00+0230", dt.datetime(2016, 1, 1, 7, 30, tzinfo=UTC)),
        ("2016-01-01T10:00:00.123456789", dt.datetime(2016, 1, 1, 10, 0, 0, 123_456, tzinfo=UTC)),
        ("17/May/2015:10:05:03 -0100", dt.datetime(2015, 5, 17, 11, 5, 3, tzinfo=UTC)),
        ("Sun, 17 May 2015 10:05:03 +0000", dt.datetime(2015, 5, 17, 10, 5, 3, tzinfo=UTC)),
        ("1463479503", dt.datetime(2016, 5, 17, 10, 5, 3, tzinfo=UTC)),
        ("1463479503.5", dt.datetime(2016, 5, 17, 10, 5, 3, 500_000, tzinfo=UTC)),
        ("1463479503123", dt.datetime(2016, 5, 17, 10, 5, 3, 123_000, tzinfo=UTC)),
        ("20150517100503", dt.datetime(2015, 5, 17, 10, 5, 3, tzinfo=UTC)),
    ],
)
def test_common_forms_of_time_are_recognised(text: str, expected: dt.datetime) -> None:
    column = pa.array([text, None, "no time at all"])
    form = detect_format(column.slice(0, 2))
    assert form is not None
    assert parse_times(column, form, "us").to_pylist() == [expected, None, None]


def test_a_given_form_of_time_knows_fractions_and_zones() -> None:
    column = pa.array(["17.05.2015 10:05:03.25 +0200", "17.05.2015 10:05:03 +0200"])
    expected = dt.datetime(2015, 5, 17, 8, 5, 3, 250_000, tzinfo=UTC)
    assert parse_times(column, "%d.%m.%Y %H:%M:%S.%f %z", "ms").to_pylist() == [expected, None]


def test_an_unknown_form_of_time_asks_for_a_format(store: sc.Store, tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "at\n05/17/2015 10h\n")
    with pytest.raises(IngestError, match=r"'05/17/2015 10h': give a --timestamp-format"):
        ingest(store, "t", path, IngestOptions(timestamp="at"))
    ingest(store, "t", path, IngestOptions(timestamp="at", timestamp_format="%m/%d/%Y %Hh"))
    assert values(store.topic("t"), "timestamp") == [dt.datetime(2015, 5, 17, 10, tzinfo=UTC)]


def test_text_converts_value_by_value() -> None:
    text = pa.array(["1", " 7 ", "x", None, "99999999999999999999", "1.5"])
    assert convert_text(text, pa.int64()).to_pylist() == [1, 7, None, None, None, None]
    assert convert_text(text, pa.string()).to_pylist() == text.to_pylist()
    assert convert_text(pa.array(["true", "0", "maybe"]), pa.bool_()).to_pylist() == [True, False, None]
    assert convert_text(pa.array(["2026-02-29", "2024-02-29"]), pa.date32()).to_pylist() == [None, dt.date(2024, 2, 29)]
    assert text_of(pa.array([b"a", b"\xff", None, b"c"])).to_pylist() == ["a", None, None, "c"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("int", pa.int64()),
        ("timestamp[us]", pa.timestamp("us")),
        ("timestamp[ms, UTC]", pa.timestamp("ms", "UTC")),
        ("decimal(10,2)", pa.decimal128(10, 2)),
        ("list<struct<a:int32,b:string>>", pa.list_(pa.struct([("a", pa.int32()), ("b", pa.string())]))),
        ("large_string", pa.large_string()),
    ],
)
def test_types_are_known_by_name(name: str, kind: pa.DataType) -> None:
    assert parse_type(name) == kind


def test_a_schema_is_written_as_names_and_types() -> None:
    parsed = parse_schema("id:int64!, price : decimal(10,2), tags:list<string>")
    assert parsed.names == ["id", "price", "tags"]
    assert [field.nullable for field in parsed] == [False, True, True]
    with pytest.raises(ValueError, match="'quaternion' is not a type"):
        parse_schema("a:quaternion")
    with pytest.raises(ValueError, match="not name:type"):
        parse_schema("a")


def test_names_of_files_say_their_format() -> None:
    names = ["x.csv", "x.tsv.gz", "x.jsonl.zst", "dir.csv/x", "x.parquet", "x.arrows", "access.log", "x.log.1"]
    assert [format_of(name) for name in names] == ["csv", "csv", "jsonl", "lines", "parquet", "arrow", "lines", "lines"]


def test_the_first_group_of_an_expression_is_the_field() -> None:
    assert named_group(r"^(\S+)", "key") == r"^(?P<key>\S+)"
    assert named_group(r"\S+", "key") == r"(?P<key>\S+)"
    assert named_group(r"(?:a)[(](b)", "key") == r"(?:a)[(](?P<key>b)"
    assert named_group(r"(?P<own>x)", "key") == r"(?P<own>x)"
    with pytest.raises(ValueError, match="not a regular expression"):
        named_group("(", "key")
