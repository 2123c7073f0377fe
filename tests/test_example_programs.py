"""The programs in docs/examples run as they stand there, on what they make and on the real data where that is."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import streamcore as sc

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
DATA = ROOT.parent / "shared" / "data"
TIMEOUT_S = 120


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def inputs(name: str) -> list[object]:
    """Without an argument, and with the real file where it is there."""
    missing = pytest.mark.skipif(not (DATA / name).exists(), reason=f"../shared/data/{name} is not here")
    return [pytest.param((), id="made"), pytest.param((DATA / name,), id="real", marks=missing)]


def test_a_job_queue_loses_no_job_when_a_worker_is_killed() -> None:
    last = run("job_queue.py").splitlines()[-1]
    assert re.match(r"5,000 jobs, 5,000 of them done, [\d,]+ done again", last)


@pytest.mark.parametrize("arguments", inputs("web_access.log"))
def test_a_converter_that_dies_again_and_again_writes_each_line_once(arguments: tuple[object, ...]) -> None:
    first, second = run("exactly_once_etl.py", *arguments).splitlines()
    found = re.match(r"([\d,]+) lines; the converter died 5 times and left ([\d,]+) rows that nobody sees", first)
    assert found is not None
    assert found[2] != "0"
    assert second == f"each line is there once and only once: {found[1]} rows"


def test_a_changelog_reads_as_a_table_before_and_after_compaction() -> None:
    before, after, smaller, latest = run("changelog_table.py").splitlines()
    [accounts] = re.findall(r"([\d,]+) open accounts", before)
    assert f"{accounts} open accounts" in after
    assert int(smaller.split()[0]) >= 5
    assert latest.startswith("account ")


@pytest.mark.parametrize("arguments", inputs("earthquakes.csv"))
def test_training_data_is_replayed_by_time(arguments: tuple[object, ...]) -> None:
    lines = run("replay_training.py", *arguments).splitlines()
    assert [line.split()[2].rstrip(",") for line in lines] == ["January", "February", "March", "April"]
    assert all(0.1 < float(line.split()[-4]) < 1 for line in lines)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def connect(port: int, service: subprocess.Popen[bytes]) -> http.client.HTTPResponse:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", "/events")
            return connection.getresponse()
        except ConnectionRefusedError:
            assert service.poll() is None
            assert time.monotonic() < deadline


def test_a_web_service_streams_records_as_another_process_appends_them(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    port = free_port()
    service = subprocess.Popen([sys.executable, str(EXAMPLES / "live_web.py"), str(tmp_path / "store"), str(port)])
    try:
        stream = connect(port, service)
        assert stream.readline().startswith(b": you see")
        assert stream.readline() == b"\n"
        with sc.open(tmp_path / "store") as store:
            for page in (b"/home", b"/cart"):
                store.topic("clicks").append([page])
                event = stream.readline()
                assert json.loads(event.removeprefix(b"data: "))["value"] == page.decode()
                assert stream.readline() == b"\n"
    finally:
        service.kill()
        service.wait()
