"""`streamcore produce` and `streamcore tail`: lines in, records out."""

from __future__ import annotations

import base64
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc

DEADLINE_S = 30


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "streamcore", "--store", str(path), *arguments]


def produce(path: Path, data: bytes, *arguments: str, status: int = 0) -> str:
    """What `streamcore produce` says about these lines."""
    done = subprocess.run(command(path, "produce", *arguments), input=data, capture_output=True, check=False)
    assert done.returncode == status, done.stderr
    assert done.stdout == b""
    return done.stderr.decode()


def tail(path: Path, *arguments: str) -> bytes:
    return subprocess.run(command(path, "tail", *arguments), capture_output=True, check=True).stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with the topics `plain` (two partitions) and `typed`."""
    folder = tmp_path / "store"
    with sc.open(folder) as store:
        store.create_topic("plain", partitions=2)
        store.create_topic("typed", schema=pa.schema([pa.field("n", pa.int64(), nullable=False), ("s", pa.string())]))
    return folder


def records(path: Path, topic: str) -> list[Any]:
    with sc.open(path, mode="r") as store:
        return list(store.topic(topic).scan())


# produce


def test_each_line_becomes_a_record(path: Path) -> None:
    assert produce(path, b"one\ntwo\r\n\n\xff\nlast", "plain") == "appended 5 records to plain\n"
    assert [record.value for record in records(path, "plain")] == [b"one", b"two", b"", b"\xff", b"last"]


def test_keys_headers_and_partition_are_given_on_the_command_line(path: Path) -> None:
    produce(path, b"a:1\nb:2:3\n", "plain", "--key-separator", ":", "--header", "host=web-1", "--partition", "1")
    found = [(record.partition, record.key, record.value, record.headers) for record in records(path, "plain")]
    assert found == [(1, b"a", b"1", (("host", b"web-1"),)), (1, b"b", b"2:3", (("host", b"web-1"),))]
    produce(path, b"x\n", "plain", "--key", "same")
    assert b"same" in {record.key for record in records(path, "plain")}


def test_lines_without_the_separator_are_reported_and_the_others_kept(path: Path) -> None:
    said = produce(path, b"a:1\nnone\nb:2\n", "plain", "--key-separator", ":", status=1)
    assert "line 2: no separator ':' in it" in said
    assert "error: 1 line was left out" in said
    assert sorted(record.key for record in records(path, "plain")) == [b"a", b"b"]


def test_json_objects_become_values_of_a_typed_topic(path: Path) -> None:
    lines = b'{"n": 1, "s": "x"}\n{"s": "no n"}\nnonsense\n{"n": "text"}\n{"n": 2, "other": 1}\n{"n": 3}\n'
    said = produce(path, lines, "typed", status=1)
    for number in (2, 3, 4, 5):
        assert f"line {number}: " in said
    assert [record.value for record in records(path, "typed")] == [{"n": 1, "s": "x"}, {"n": 3, "s": None}]


def test_many_lines_arrive_complete_and_in_order(path: Path) -> None:
    lines = [b"line %d %s" % (number, b"x" * (number % 100)) for number in range(50_000)]
    produce(path, b"\n".join(lines), "plain", "--partition", "0", "--batch", "1000")
    assert [record.value for record in records(path, "plain")] == lines


def wait_for(condition: Any) -> None:
    """Wait until a condition holds, or fail at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_line_from_a_slow_pipe_is_there_at_once(path: Path) -> None:
    process = subprocess.Popen(command(path, "produce", "plain"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"first\nhalf")
    process.stdin.flush()
    wait_for(lambda: [record.value for record in records(path, "plain")] == [b"first"])
    process.stdin.write(b" a line\n")
    process.stdin.flush()
    wait_for(lambda: {record.value for record in records(path, "plain")} == {b"first", b"half a line"})
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


def test_a_terminal_appends_line_by_line(path: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(command(path, "produce", "plain"), stdin=slave, stderr=subprocess.PIPE)
    os.close(slave)
    os.write(master, b"typed\n")
    wait_for(lambda: [record.value for record in records(path, "plain")] == [b"typed"])
    os.write(master, b"\x04")
    _, said = process.communicate(timeout=DEADLINE_S)
    os.close(master)
    assert b"^D ends" in said
    assert process.returncode == 0


# tail


def test_the_last_records_of_all_partitions_are_shown_in_order_of_time(path: Path) -> None:
    with sc.open(path) as store:
        topic = store.topic("plain")
        for number in range(30):
            topic.append([b"v%d" % number], keys=[b"k"], timestamps=[number * 1000], partition=number % 2)
    text = tail(path, "plain").decode().splitlines()
    assert [line.split()[-1] for line in text] == [f"v{number}" for number in range(20, 30)]
    assert text[0] == "1970-01-01 00:00:20.000Z 0:10 k v20"
    assert [line.split()[-1] for line in tail(path, "plain", "-n", "2").decode().splitlines()] == ["v28", "v29"]
    assert tail(path, "plain", "-n", "0") == b""


def test_a_place_to_start_from_is_an_offset_a_time_or_an_end(path: Path) -> None:
    with sc.open(path) as store:
        store.topic("plain").append(
            [b"v%d" % number for number in range(10)], timestamps=[n * 1000 for n in range(10)], partition=1
        )

    def values(*arguments: str) -> list[str]:
        return tail(path, "plain", "--format", "value", *arguments).decode().split()

    assert values("--from", "earliest") == [f"v{number}" for number in range(10)]
    assert values("--from", "latest") == []
    assert values("--from", "7") == ["v7", "v8", "v9"]
    assert values("--from", "7", "-n", "1") == ["v7"]
    assert values("--partition", "1", "--from", "8") == ["v8", "v9"]
    assert values("--partition", "0", "--from", "earliest") == []
    assert values("--from", "1970-01-01T00:00:08") == ["v8", "v9"]
    assert values("--from", "1970-01-01T01:00:08+01:00", "-n", "1") == ["v8"]


def test_formats_show_text_where_it_is_text_and_bytes_where_not(path: Path) -> None:
    with sc.open(path) as store:
        topic = store.topic("plain")
        topic.append(
            ["café\x1b[31m".encode(), b"\xff\x00", None],
            keys=[b"\xfe", None, b"k"],
            headers=[None, {"h": b"\xff"}, None],
            timestamps=[0, 1, 2],
            partition=0,
        )
        store.topic("typed").append([{"n": 1, "s": "x"}, None], timestamps=[0, 1])
    assert tail(path, "plain").decode().splitlines() == [
        "1970-01-01 00:00:00.000Z 0:0 \\xfe café\\x1b[31m",
        "1970-01-01 00:00:00.001Z 0:1 - \\xff\\x00 h=\\xff",
        "1970-01-01 00:00:00.002Z 0:2 k null",
    ]
    rows = [json.loads(line) for line in tail(path, "plain", "--format", "jsonl").splitlines()]
    assert rows[0] == {
        "partition": 0,
        "offset": 0,
        "timestamp": "1970-01-01T00:00:00.000Z",
        "key": {"base64": base64.b64encode(b"\xfe").decode()},
        "value": "café\x1b[31m",
        "headers": [],
    }
    assert rows[1]["headers"] == [{"key": "h", "value": {"base64": base64.b64encode(b"\xff").decode()}}]
    assert rows[2]["value"] is None
    assert tail(path, "plain", "--format", "value") == "café\x1b[31m\n".encode() + b"\xff\x00\n\n"
    assert [json.loads(line) for line in tail(path, "typed", "--format", "value").splitlines()] == [
        {"n": 1, "s": "x"},
        None,
    ]
    assert json.loads(tail(path, "typed", "-n", "1", "--format", "json"))["value"] is None


def test_the_global_output_chooses_a_format_or_is_refused(path: Path) -> None:
    produce(path, b"x\n", "plain")
    words = [sys.executable, "-m", "streamcore", "--store", str(path), "--output"]
    for output, form in (("table", "text"), ("json", "json"), ("jsonl", "jsonl")):
        done = subprocess.run([*words, output, "tail", "plain"], capture_output=True, check=True)
        assert done.stdout == tail(path, "plain", "--format", form)
    done = subprocess.run([*words, "jsonl", "tail", "plain", "--format", "value"], capture_output=True, check=True)
    assert done.stdout == b"x\n"
    done = subprocess.run([*words, "parquet", "tail", "plain"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"for parquet use streamcore sql" in done.stderr


def test_a_topic_without_records_prints_nothing(path: Path) -> None:
    for form in ("text", "json", "jsonl", "value"):
        assert tail(path, "plain", "--format", form) == b""
        assert tail(path, "plain", "--from", "earliest", "--format", form) == b""


@pytest.fixture
def follower(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command(path, "tail", "plain", "-f", "--format", "value"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    yield process
    process.kill()
    process.communicate()


def read_lines(process: subprocess.Popen[bytes], count: int) -> list[bytes]:
    """That many lines of a process's output, or failure at the deadline."""
    assert process.stdout is not None
    data, end = b"", time.monotonic() + DEADLINE_S
    while data.count(b"\n") < count:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"waited in vain, got {data!r}"
        data += os.read(process.stdout.fileno(), 65536)
    return data.splitlines()


def test_following_shows_new_records_as_they_come_and_ends_quietly(
    path: Path, follower: subprocess.Popen[bytes]
) -> None:
    with sc.open(path) as store:
        topic = store.topic("plain")
        topic.append([b"first"], partition=0)
        assert read_lines(follower, 1) == [b"first"]
        topic.append([b"second", b"third"], partition=1)
        assert read_lines(follower, 2) == [b"second", b"third"]
        topic.add_partitions(3)
        topic.append([b"in a new partition"], partition=2)
        assert read_lines(follower, 1) == [b"in a new partition"]
    follower.send_signal(signal.SIGINT)
    assert follower.wait(timeout=DEADLINE_S) == 130
    assert follower.stderr is not None
    assert follower.stderr.read() == b""


def test_following_an_idle_topic_takes_no_time_of_the_processor(path: Path, follower: subprocess.Popen[bytes]) -> None:
    with sc.open(path) as store:
        store.topic("plain").append([b"ready"], partition=0)
        assert read_lines(follower, 1) == [b"ready"]

        def used() -> float:
            fields = Path(f"/proc/{follower.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        if not Path("/proc/self/stat").exists():
            pytest.skip("needs /proc")
        before, began = used(), time.monotonic()
        follower_quiet = select.select([follower.stdout], [], [], 2.0)[0]
        assert not follower_quiet
        assert used() - before < 0.5 * (time.monotonic() - began)
