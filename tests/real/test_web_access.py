"""A web server's access log: ingested as lines keyed by client address, queried with SQL.

What is expected is worked out from the file with plain Python.
"""

from __future__ import annotations

import collections
import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import streamcore as sc
from streamcore.ingest import IngestOptions, ingest

pytest.importorskip("duckdb")

from streamcore.sql import QueryMetrics, query  # needs duckdb

LINE = re.compile(r'^(\S+) \S+ \S+ \[([^\]]+)\] "(\S+) (\S+)[^"]*" (\d{3}) (\d+|-)')
MATCH = (
    r"regexp_extract(decode(value), '^(\S+) \S+ \S+ \[([^\]]+)\] \"(\S+) (\S+)[^\"]*\" (\d{3}) (\d+|-)',"
    " ['client', 'time', 'method', 'page', 'status', 'bytes'])"
)
OPTIONS = IngestOptions(key_regex=r"^(\S+)", timestamp_regex=r"\[([^\]]+)\]", partitions=4, block_bytes=1 << 17)


@dataclass(frozen=True)
class Request:
    client: str
    moment: dt.datetime
    page: str
    status: int
    size: int


@pytest.fixture(scope="module")
def lines(data: Path) -> list[bytes]:
    return (data / "web_access.log").read_bytes().splitlines()


@pytest.fixture(scope="module")
def requests(lines: list[bytes]) -> list[Request]:
    found = []
    for line in lines:
        match = LINE.match(line.decode())
        assert match is not None, line
        client, time, _, page, status, size = match.groups()
        moment = dt.datetime.strptime(time, "%d/%b/%Y:%H:%M:%S %z")
        found.append(Request(client, moment, page, int(status), 0 if size == "-" else int(size)))
    return found


@pytest.fixture(scope="module")
def access(store: sc.Store, data: Path) -> sc.Topic:
    report = ingest(store, "access", str(data / "web_access.log"), OPTIONS)
    assert (report.rows, report.bad_count) == (10_000, 0)
    return store.topic("access")


def test_every_line_is_there_once_under_its_client(
    access: sc.Topic, requests: list[Request], lines: list[bytes]
) -> None:
    found = access.scan(columns=["partition", "timestamp", "key", "value"]).to_arrow().to_pylist()
    expected = collections.Counter(
        (request.client.encode(), request.moment, line) for request, line in zip(requests, lines, strict=True)
    )
    assert collections.Counter((row["key"], row["timestamp"], row["value"]) for row in found) == expected
    homes = collections.defaultdict(set)
    for row in found:
        homes[row["key"]].add(row["partition"])
    assert all(len(partitions) == 1 for partitions in homes.values())
    assert len({row["partition"] for row in found}) == 4


def test_lines_of_one_client_keep_their_order(access: sc.Topic, lines: list[bytes]) -> None:
    busiest = collections.Counter(line.split()[0] for line in lines).most_common(1)[0][0]
    expected = [line for line in lines if line.split()[0] == busiest]
    found = [record.value for record in access.scan() if record.key == busiest]
    assert found == expected


def test_the_same_file_again_adds_nothing(store: sc.Store, access: sc.Topic, data: Path) -> None:
    again = ingest(store, "access", str(data / "web_access.log"), OPTIONS)
    assert (again.status, again.rows) == ("unchanged", 0)
    assert access.scan().count() == 10_000


def test_requests_per_status_and_hour(store: sc.Store, access: sc.Topic, requests: list[Request]) -> None:
    expected = collections.Counter((request.status, request.moment.replace(minute=0, second=0)) for request in requests)
    sql = f"""select ({MATCH}).status::int as status, date_trunc('hour', "timestamp") as hour, count(*) as n
              from access group by all order by all"""
    found = query(store, sql).to_pylist()
    assert {(row["status"], row["hour"]): row["n"] for row in found} == dict(expected)


def test_top_ten_pages(store: sc.Store, access: sc.Topic, requests: list[Request]) -> None:
    counted = collections.Counter(request.page for request in requests)
    expected = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:10]
    sql = f"select ({MATCH}).page as page, count(*) as n from access group by 1 order by n desc, page limit 10"
    assert [(row["page"], row["n"]) for row in query(store, sql).to_pylist()] == expected


def test_bytes_sent_to_the_top_clients(store: sc.Store, access: sc.Topic, requests: list[Request]) -> None:
    sent: dict[str, int] = collections.defaultdict(int)
    for request in requests:
        sent[request.client] += request.size
    expected = sorted(sent.items(), key=lambda item: (-item[1], item[0]))[:10]
    sql = f"""select text(key) as client, sum(coalesce(try_cast(({MATCH}).bytes as bigint), 0))::bigint as sent
              from access group by 1 order by 2 desc, 1 limit 10"""
    assert [(row["client"], row["sent"]) for row in query(store, sql).to_pylist()] == expected


def test_a_scan_bounded_by_time_reads_those_rows_alone(
    store: sc.Store, access: sc.Topic, requests: list[Request]
) -> None:
    start = dt.datetime(2015, 5, 18, 12, 5, tzinfo=dt.UTC)
    end = start + dt.timedelta(hours=3)
    expected = sorted(request.client for request in requests if start <= request.moment < end)
    metrics = QueryMetrics()
    sql = f"""select text(key) as client from access
              where "timestamp" >= '{start}' and "timestamp" < '{end}' order by 1"""
    assert [row["client"] for row in query(store, sql, metrics).to_pylist()] == expected
    assert metrics.columns == ("access.key",)
    assert metrics.rows < 10_000 // 2  # batches whose times are all outside are passed over
    assert access.scan(start=start, end=end).count() == len(expected)
