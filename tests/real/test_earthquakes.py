"""A seismic network's catalogue: ingested into a typed topic with the event's time as timestamp, queried with SQL.

What is expected is worked out from the file with plain Python.
"""

from __future__ import annotations

import collections
import csv
import datetime as dt
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import streamcore as sc
from streamcore.ingest import IngestOptions, ingest

pytest.importorskip("duckdb")

from streamcore.sql import QueryMetrics, query  # needs duckdb

OPTIONS = IngestOptions(typed=True, timestamp="DateTime", key="Source", partitions=2, block_bytes=1 << 17)
NUMBERS = ("Latitude", "Longitude", "Depth", "Magnitude", "RMS")
COUNTS = ("NbStations", "Gap", "Distance", "EventID")


def read(row: dict[str, str]) -> dict[str, Any]:
    """A row of the file as Python values."""
    made: dict[str, Any] = {name: text or None for name, text in row.items()}
    moment = dt.datetime.strptime(row["DateTime"], "%Y/%m/%d %H:%M:%S.%f")
    made["DateTime"] = moment.replace(tzinfo=dt.UTC)
    made |= {name: float(row[name]) if row[name] else None for name in NUMBERS}
    made |= {name: int(row[name]) if row[name] else None for name in COUNTS}
    return made


@pytest.fixture(scope="module")
def events(data: Path) -> list[dict[str, Any]]:
    with (data / "earthquakes.csv").open(newline="") as file:
        return [read(row) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def quakes(store: sc.Store, data: Path) -> sc.Topic:
    report = ingest(store, "quakes", str(data / "earthquakes.csv"), OPTIONS)
    assert (report.rows, report.bad_count) == (38_094, 0)
    return store.topic("quakes")


def test_the_schema_is_what_the_columns_hold(quakes: sc.Topic) -> None:
    assert quakes.schema is not None
    kinds = {field.name: field.type for field in quakes.schema}
    assert kinds["DateTime"] == pa.timestamp("ms", tz="UTC")
    assert all(kinds[name] == pa.float64() for name in NUMBERS)
    assert all(kinds[name] == pa.int64() for name in COUNTS)
    assert kinds["MagType"] == kinds["Source"] == pa.string()


def test_every_event_is_there_once_with_every_field(quakes: sc.Topic, events: list[dict[str, Any]]) -> None:
    found = quakes.scan(columns=["timestamp", "key", "value"]).to_arrow().to_pylist()
    assert all(row["timestamp"] == row["value"]["DateTime"] for row in found)
    assert all(row["key"] == row["value"]["Source"].encode() for row in found)

    def countable(values: list[dict[str, Any]]) -> collections.Counter[tuple[Any, ...]]:
        return collections.Counter(tuple(value.values()) for value in values)

    assert countable([row["value"] for row in found]) == countable(events)


def test_earthquakes_by_magnitude_class_and_network(
    store: sc.Store, quakes: sc.Topic, events: list[dict[str, Any]]
) -> None:
    expected = collections.Counter((math.floor(event["Magnitude"]), event["Source"]) for event in events)
    sql = """select floor(value.Magnitude)::int as class, value.Source as network, count(*) as n
             from quakes group by all order by all"""
    metrics = QueryMetrics()
    found = query(store, sql, metrics).to_pylist()
    assert {(row["class"], row["network"]): row["n"] for row in found} == dict(expected)
    assert metrics.columns == ("quakes.value.Magnitude", "quakes.value.Source")


def test_the_largest(store: sc.Store, quakes: sc.Topic, events: list[dict[str, Any]]) -> None:
    expected = sorted(events, key=lambda event: (-event["Magnitude"], event["DateTime"], event["EventID"]))[:10]
    sql = "select value from quakes order by value.Magnitude desc, value.DateTime, value.EventID limit 10"
    assert [row["value"] for row in query(store, sql).to_pylist()] == expected


def test_means_with_nulls_left_out(store: sc.Store, quakes: sc.Topic, events: list[dict[str, Any]]) -> None:
    gaps = [event["Gap"] for event in events if event["Gap"] is not None]
    [found] = query(store, "select count(value.Gap) as n, avg(value.Gap) as mean from quakes").to_pylist()
    assert found["n"] == len(gaps) < len(events)
    assert found["mean"] == pytest.approx(sum(gaps) / len(gaps))


def test_a_scan_bounded_by_time_reads_those_rows_alone(
    store: sc.Store, quakes: sc.Topic, events: list[dict[str, Any]]
) -> None:
    start, end = dt.datetime(2016, 4, 14, tzinfo=dt.UTC), dt.datetime(2016, 4, 17, 12, 30, tzinfo=dt.UTC)
    inside = [event for event in events if start <= event["DateTime"] < end]
    sql = f"""select count(*) as n, max(value.Magnitude) as largest from quakes
              where "timestamp" >= '{start}' and "timestamp" < '{end}'"""
    metrics = QueryMetrics()
    assert query(store, sql, metrics).to_pylist() == [
        {"n": len(inside), "largest": max(event["Magnitude"] for event in inside)}
    ]
    assert metrics.columns == ("quakes.value.Magnitude",)
    assert metrics.rows < 38_094 // 4  # batches whose times are all outside are passed over
    assert quakes.scan(start=start, end=end).count() == len(inside)
