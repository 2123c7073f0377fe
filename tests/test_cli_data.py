"""`streamcore ingest`, `sql`, `verify`, `demo` and `bench`: what they print and how they end."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shell import Captured, Shell

import streamcore as sc
from streamcore.cli import main


@pytest.fixture
def shell(tmp_path: Path, capsys: Captured) -> Shell:
    return Shell(tmp_path / "store", capsys)


def spawn(path: Path, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A command line as a process of its own."""
    words = [sys.executable, "-m", "streamcore", "--store", str(path), *arguments]
    return subprocess.run(words, input=data, capture_output=True, check=False)


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


SHOP = "id,name,at\n1,lamp,2026-01-01 10:00:00\n2,desk,2026-01-01 11:00:00\n"

# ingest


def test_a_file_is_ingested_and_what_was_done_is_said(shell: Shell, tmp_path: Path) -> None:
    path = written(tmp_path, "a.log", "10.0.0.1 one\n10.0.0.2 two\n")
    said = shell("ingest", path, "--topic", "access", "--key-regex", r"^(\S+)", "--partitions", "3")
    assert said.startswith(f"access: 2 records from {path} (25 B)") or "2 records" in said
    with sc.open(shell.path, mode="r") as store:
        assert sorted(record.key or b"" for record in store.topic("access").scan()) == [b"10.0.0.1", b"10.0.0.2"]
        assert len(store.topic("access").partitions) == 3
    again = shell("ingest", path, "--topic", "access", "--key-regex", r"^(\S+)")
    assert "is there already, nothing to do (--force ingests it again)" in again


def test_the_schema_of_a_new_typed_topic_is_shown(shell: Shell, tmp_path: Path) -> None:
    shell("ingest", written(tmp_path, "shop.csv", SHOP), "--topic", "shop", "--typed", "--timestamp", "at")
    lines = [line.split(maxsplit=1) for line in shell.err.splitlines()]
    assert ["id", "int64"] in lines
    assert ["name", "string"] in lines
    assert ["at", "timestamp[ms, tz=UTC]"] in lines


def test_bad_rows_are_reported_by_line_kept_in_a_file_and_end_with_1(shell: Shell, tmp_path: Path) -> None:
    path = written(tmp_path, "bad.csv", "id,name\n1,a\nonly one\n2,b\n3,c,d\n")
    bad = tmp_path / "bad-rows.txt"
    said = shell("ingest", path, "--topic", "t", "--typed", "--bad-rows", str(bad), status=1)
    assert "2 records" in said
    assert f"{path}:3: 1 fields where there should be 2: only one" in shell.err
    assert f"{path}:5: 3 fields where there should be 2: 3,c,d" in shell.err
    assert "error: 2 bad rows were left out" in shell.err
    assert bad.read_text() == "only one\n3,c,d\n"


def test_of_many_bad_rows_a_few_are_shown_and_all_are_counted(shell: Shell, tmp_path: Path) -> None:
    path = written(tmp_path, "bad.csv", "id,name\n" + "x\n" * 500 + "1,a\n")
    shell("ingest", path, "--topic", "t", status=1)
    assert shell.err.count("fields where there should be") == 20
    assert "... and 480 more bad rows" in shell.err
    assert "error: 500 bad rows were left out" in shell.err


def test_stopping_on_an_error_keeps_nothing_of_the_block(shell: Shell, tmp_path: Path) -> None:
    path = written(tmp_path, "bad.csv", "id,name\n1,a\nx\n")
    shell("ingest", path, "--topic", "t", "--on-error", "stop", status=1)
    assert shell.err.startswith(f"error: {path}:3: 1 fields")
    with sc.open(shell.path) as store:
        assert store.topics() == []


def test_several_files_and_stdin_go_into_one_topic(tmp_path: Path) -> None:
    first, second = written(tmp_path, "a.log", "a\n"), written(tmp_path, "b.log", "b\n")
    done = spawn(tmp_path / "store", "ingest", first, "-", second, "--topic", "t", data=b"from stdin\nand more\n")
    assert done.returncode == 0, done.stderr
    with sc.open(tmp_path / "store", mode="r") as store:
        assert [r.value for r in store.topic("t").scan()] == [b"a", b"from stdin", b"and more", b"b"]


def test_a_typing_error_in_a_path_or_name_makes_no_store(shell: Shell, tmp_path: Path) -> None:
    there = written(tmp_path, "a.log", "a\n")
    shell("ingest", there, "no-such-file", "--topic", "t", status=1)
    assert shell.err == "error: no-such-file: No such file or directory\n"
    shell("ingest", there, "--topic", "a/b", status=1)
    assert "'a/b'" in shell.err
    assert not shell.path.exists()


def test_a_report_for_programs_is_json(shell: Shell, tmp_path: Path) -> None:
    path = written(tmp_path, "shop.csv", SHOP)
    [report] = json.loads(shell("--output", "json", "ingest", path, "--topic", "shop", "--typed"))
    assert {name: report[name] for name in ("topic", "format", "status", "records", "bad_rows")} == {
        "topic": "shop",
        "format": "csv",
        "status": "ingested",
        "records": 2,
        "bad_rows": 0,
    }


def test_column_types_and_dialects_are_given_on_the_command_line(shell: Shell, tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "007;1,5\n")
    words = ["--format", "csv", "--delimiter", ";", "--no-header", "--typed", "--column", "f0:string"]
    shell("ingest", path, "--topic", "t", *words)
    with sc.open(shell.path, mode="r") as store:
        assert [record.value for record in store.topic("t").scan()] == [{"f0": "007", "f1": "1,5"}]


# sql


@pytest.fixture
def shop(shell: Shell, tmp_path: Path) -> Shell:
    pytest.importorskip("duckdb")
    shell("ingest", written(tmp_path, "shop.csv", SHOP), "--topic", "shop", "--typed", "--timestamp", "at")
    with sc.open(shell.path) as store:
        store.create_topic("raw").append([b"caf\xc3\xa9", b"\xff", None], keys=[b"k", None, None], timestamps=[0, 1, 2])
    return shell


QUERY = 'select value.id as id, value.name as name, "timestamp" as at from shop order by id'


def test_results_are_printed_in_each_form(shop: Shell, tmp_path: Path) -> None:
    rows = [
        {"id": 1, "name": "lamp", "at": "2026-01-01T10:00:00.000Z"},
        {"id": 2, "name": "desk", "at": "2026-01-01T11:00:00.000Z"},
    ]
    assert json.loads(shop("sql", QUERY, "--output", "json")) == rows
    assert [json.loads(line) for line in shop("--output", "jsonl", "sql", QUERY).splitlines()] == rows
    assert [row["name"] for row in csv.DictReader(io.StringIO(shop("sql", QUERY, "-o", "csv")))] == ["lamp", "desk"]
    table = shop("sql", QUERY)
    assert next(line.split() for line in table.splitlines() if line.strip()) == ["id", "name", "at"]
    assert "2026-01-01 10:00:00.000Z" in table
    expected = [{"id": row["id"], "name": row["name"]} for row in rows]
    arrow = pa.ipc.open_stream(spawn(shop.path, "sql", QUERY, "-o", "arrow").stdout).read_all()
    assert arrow.select(["id", "name"]).to_pylist() == expected
    parquet = pq.read_table(pa.BufferReader(spawn(shop.path, "sql", QUERY, "-o", "parquet").stdout))
    assert parquet.select(["id", "name"]).to_pylist() == expected


def test_bytes_print_as_text_where_they_are_text(shop: Shell) -> None:
    sql = 'select key, value from raw order by "offset"'
    assert json.loads(shop("sql", sql, "-o", "json")) == [
        {"key": "k", "value": "café"},
        {"key": None, "value": {"base64": "/w=="}},
        {"key": None, "value": None},
    ]
    lines = [line.split() for line in shop("sql", sql).splitlines() if line.strip()][2:]
    assert lines == [["k", "café"], ["null", "\\xff"], ["null", "null"]]
    assert shop("sql", sql, "-o", "csv").splitlines()[1:] == ['"k","café"', ',"\\xff"', ","]


def test_nested_values_print_as_json_and_columns_of_one_name_are_told_apart(shop: Shell) -> None:
    sql = "select {'a': [1, 2]} as s, 1.5::decimal(4,2) as d, 'nan'::double as n, 1 as x, 2 as x"
    assert json.loads(shop("sql", sql, "-o", "json")) == [
        {"s": {"a": [1, 2]}, "d": "1.50", "n": None, "x": 1, "x_1": 2}
    ]
    assert '{"a": [1, 2]}' in shop("sql", sql)
    assert shop("sql", sql, "-o", "csv").splitlines() == ['"s.a","d","n","x","x_1"', '"[1, 2]",1.50,nan,1,2']


def test_what_was_read_is_told_when_asked(shop: Shell) -> None:
    shop("sql", "select sum(value.id) from shop", "--stats")
    assert "read 1 of 1 segments, 2 rows, 16 B; columns: shop.value.id" in shop.err
    sql = "select count(*) from shop where \"timestamp\" < '2020-01-01'"
    shop("sql", sql, "--stats")
    assert "read 0 of 1 segments, 0 rows, 0 B" in shop.err


def test_a_statement_is_read_from_stdin(shop: Shell) -> None:
    assert json.loads(spawn(shop.path, "sql", "-", "-o", "json", data=b"select 1 as one").stdout) == [{"one": 1}]


def test_long_tables_are_cut_and_it_is_said(shop: Shell) -> None:
    table = shop("sql", "select * from range(100) t(n)", "--rows", "5")
    assert [line.strip() for line in table.splitlines() if line.strip()][2:] == ["0", "1", "2", "3", "4"]
    assert "100 rows, of which 5 are shown" in shop.err
    assert shop("sql", "select * from range(1000) t(n)", "-o", "csv").count("\n") == 1001


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("selec 1", 'Parser Error: syntax error at or near "selec" (in LINE 1: selec 1)'),
        ("select * from shopp", "Table with name shopp does not exist! (topics: raw, shop)"),
        ("select value.price from shop", 'Could not find key "price" in struct'),
    ],
)
def test_errors_of_sql_are_one_line(shop: Shell, sql: str, message: str) -> None:
    assert shop("sql", sql, status=1) == ""
    assert message in shop.err
    assert shop.err.count("\n") == 1


def test_binary_results_are_not_sent_to_a_terminal(shop: Shell) -> None:
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "streamcore", "--store", str(shop.path), "sql", "select 1", "-o", "parquet"]
    process = subprocess.Popen(words, stdout=slave, stderr=subprocess.PIPE)
    os.close(slave)
    _, said = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 2
    assert b"> FILE" in said


def on_terminal(words: list[str], **settings: str) -> bytes:
    """What a command writes to a terminal, its stderr included."""
    master, slave = pty.openpty()
    process = subprocess.Popen(words, stdout=slave, stderr=slave, env=os.environ | {"TERM": "xterm"} | settings)
    os.close(slave)
    pieces: list[bytes] = []
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    process.wait(timeout=60)
    os.close(master)
    return b"".join(pieces)


def test_a_terminal_gets_colour_unless_it_is_unwanted(shop: Shell) -> None:
    words = [sys.executable, "-m", "streamcore", "--store", str(shop.path), "sql", "select null as n"]
    colour = b"\x1b[2m"
    assert colour in on_terminal(words)
    assert b"\x1b[3" not in on_terminal(words, NO_COLOR="1")
    tail = [*words[:5], "tail", "raw"]
    assert colour in on_terminal(tail)
    assert b"\x1b" not in on_terminal(tail, NO_COLOR="1")


def test_long_work_shows_a_progress_bar_on_a_terminal(shop: Shell) -> None:
    words = [sys.executable, "-m", "streamcore", "--store", str(shop.path), "verify"]
    assert b"verify" in on_terminal(words).split(b"is sound")[0]
    assert b"digests" in on_terminal([*words, "--digests"])


# verify


def test_a_sound_store_verifies(shop: Shell) -> None:
    assert shop("verify") == ""
    assert "is sound" in shop.err
    assert json.loads(shop("verify", "-o", "json")) == []


def test_a_changed_byte_is_found_and_ends_with_1(shop: Shell) -> None:
    with sc.open(shop.path) as store:
        store.topic("raw").append([b"behind it"])  # damage at the very end would be a torn tail
        [segment] = store.topic("raw").segments()
    path = Path(segment.path)
    content = bytearray(path.read_bytes())
    place = content.index(b"caf\xc3\xa9")
    content[place] ^= 0x20
    path.write_bytes(content)
    [problem] = json.loads(shop("verify", "-o", "json", status=1))
    assert problem["path"] == segment.path
    assert problem["offset"] == 0
    assert 0 < problem["position"] <= place
    assert problem["message"]
    assert "error: 1 problem" in shop.err
    assert path.name in shop("verify", status=1)
    rows = json.loads(shop("verify", "--digests", "-o", "json", status=1))
    assert segment.path in {row["path"] for row in rows}
    assert f"{segment.path}: {problem['message']} (offset 0, position {problem['position']})\n" in shop.err
    assert "error: 1 problem" in shop.err


def test_digests_of_copies_are_equal(shop: Shell, tmp_path: Path) -> None:
    shutil.copytree(shop.path, tmp_path / "copy")

    def digests(path: Path) -> dict[str, str]:
        rows = json.loads(shop("verify", "--digests", "-o", "json", "--store", str(path)))
        assert "is sound" in shop.err
        return {str(Path(row["path"]).relative_to(path)): row["xxh3_128"] for row in rows}

    taken = digests(shop.path)
    assert len(taken) == 2
    assert all(name.endswith(".arrows") and len(digest) == 32 for name, digest in taken.items())
    assert digests(tmp_path / "copy") == taken


# demo and bench


def test_the_demo_runs_in_a_few_seconds_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    began = time.monotonic()
    words = [sys.executable, "-m", "streamcore", "demo", "--rows", "5000"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"TMPDIR": str(scratch)}
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    for step in ("create_topic", "5,000 records in", "unchanged", "append(", "Span(", "to_arrow()", "no problems"):
        assert step in done.stdout
    assert "/product/lamp" in done.stdout
    assert "Traceback" not in done.stderr
    assert list(scratch.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


def test_the_demo_can_leave_its_store_behind(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--rows", "2000", "--keep", str(tmp_path / "kept")])
    assert not ended.value.code
    with sc.open(tmp_path / "kept", mode="r") as store:
        assert store.topic("clicks").scan().count() == 2001


def test_the_benchmark_prints_rates(shell: Shell) -> None:
    rows: list[dict[str, Any]] = json.loads(shell("bench", "--seconds", "0.3", "--output", "json"))
    assert len(rows) >= 6
    assert all(row["records_per_second"] > 0 for row in rows)
