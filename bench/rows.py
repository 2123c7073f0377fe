"""Values made from real rows, the lines of web_access.log and the readings of earthquakes.csv, never from one record.

Where ../shared is absent (a fresh clone), a generator with a fixed seed makes rows of the same shape and irregularity.
"""

from __future__ import annotations

import csv
import datetime as dt
import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

SHARED = Path(__file__).resolve().parents[2] / "shared"
LOG_FILE = SHARED / "data" / "web_access.log"
QUAKE_FILE = SHARED / "data" / "earthquakes.csv"
SEED = 20150517

TYPED_SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("ms", tz="UTC")),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("depth", pa.float64()),
        ("magnitude", pa.float64()),
        ("magnitude_type", pa.string()),
        ("stations", pa.int32()),
        ("gap", pa.int32()),
        ("rms", pa.float32()),
        ("event", pa.string()),
    ]
)


def source() -> str:
    """Which rows this run uses, for the report."""
    return "real rows of ../shared/data" if LOG_FILE.exists() and QUAKE_FILE.exists() else "generated rows"


@lru_cache(maxsize=1)
def log_lines() -> list[bytes]:
    """The lines of the access log, or generated ones."""
    if LOG_FILE.exists():
        return LOG_FILE.read_bytes().splitlines()
    return [_made_log_line(random.Random(SEED + number)) for number in range(10_000)]


@lru_cache(maxsize=1)
def quake_rows() -> list[dict[str, str]]:
    """The readings of the earthquake catalogue as text fields, or generated ones."""
    if QUAKE_FILE.exists():
        with QUAKE_FILE.open(newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.DictReader(file))
    return [_made_quake(random.Random(SEED + number)) for number in range(38_000)]


def values(count: int, size: int, skip: int = 0) -> list[bytes]:
    """`count` values of exactly `size` bytes, cut out of the rows one after another, without the first `skip`.

    The rows lie end to end, and each pass over them starts one byte later, so that values do not come back soon.
    """
    return list(islice(_cut(size, skip), count))


def array(count: int, size: int, skip: int = 0) -> pa.BinaryArray:
    """The same values as one Arrow binary array."""
    return pa.array(values(count, size, skip), pa.binary())


def typed_table(count: int) -> pa.Table:
    """`count` rows of the earthquake catalogue in ten typed columns, with nulls where fields are empty."""
    whole = _typed_once()
    copies = -(-count // whole.num_rows)
    return pa.concat_tables([whole] * copies).slice(0, count).combine_chunks()


def _cut(size: int, skip: int) -> Iterator[bytes]:
    text = b"\n".join(log_lines()) + b"\n" + b"\n".join(",".join(row.values()).encode() for row in quake_rows())
    text += text[:size]  # so that a value may begin at any byte of the rows
    span = len(text) - size
    per_pass = span // size
    for number in islice(_endless(), skip, None):
        start = (number % per_pass) * size + (number // per_pass) % size
        yield text[start % span : start % span + size]


def _endless() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


@lru_cache(maxsize=1)
def _typed_once() -> pa.Table:
    rows = quake_rows()
    names = ["Latitude", "Longitude", "Depth", "Magnitude"]
    columns: list[Any] = [pa.array([_time(row["DateTime"]) for row in rows], TYPED_SCHEMA.field("time").type)]
    columns += [pa.array([_number(row[name]) for row in rows], pa.float64()) for name in names]
    columns.append(pa.array([row["MagType"] or None for row in rows], pa.string()))
    columns += [pa.array([_whole(row[name]) for row in rows], pa.int32()) for name in ("NbStations", "Gap")]
    columns.append(pa.array([_number(row["RMS"]) for row in rows], pa.float32()))
    columns.append(pa.array([row["EventID"] for row in rows], pa.string()))
    return pa.Table.from_arrays(columns, schema=TYPED_SCHEMA)


def _time(text: str) -> dt.datetime:
    moment = (
        dt.datetime.strptime(text, "%Y/%m/%d %H:%M:%S.%f")
        if "." in text
        else dt.datetime.strptime(text, "%Y/%m/%d %H:%M:%S")
    )
    return moment.replace(tzinfo=dt.UTC)


def _number(text: str) -> float | None:
    return float(text) if text else None


def _whole(text: str) -> int | None:
    return int(float(text)) if text else None


PATHS = [
    "/",
    "/blog/tags/puppet?flav=rss20",
    "/images/web/2009/banner.png",
    "/style2.css",
    "/presentations/logstash-1/file.html",
]
AGENTS = [
    "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/24.0",
    "Tiny Tiny RSS/1.11",
    "Googlebot/2.1 (+http://google.com/bot.html)",
    "-",
]


def _made_log_line(chance: random.Random) -> bytes:
    address = ".".join(str(chance.randrange(256)) for _ in range(4))
    second = chance.randrange(86_400)
    when = f"{chance.randrange(17, 21)}/May/2015:{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02} +0000"
    status, size = chance.choice([200, 200, 200, 304, 404]), chance.randrange(60_000)
    path = chance.choice(PATHS) + format(chance.randrange(4096), "x")
    return f'{address} - - [{when}] "GET {path} HTTP/1.1" {status} {size} "-" "{chance.choice(AGENTS)}"'.encode()


def _made_quake(chance: random.Random) -> dict[str, str]:
    moment = dt.datetime(2016, 1, 1) + dt.timedelta(seconds=chance.random() * 3e7)
    return {
        "DateTime": f"{moment:%Y/%m/%d %H:%M:%S}.{chance.randrange(100):02}",
        "Latitude": f"{chance.uniform(-60, 70):.4f}",
        "Longitude": f"{chance.uniform(-180, 180):.4f}",
        "Depth": f"{chance.expovariate(0.05):.2f}",
        "Magnitude": f"{2.5 + chance.expovariate(1.8):.2f}",
        "MagType": chance.choice(["Md", "ML", "Mw", "mb"]),
        "NbStations": chance.choice(["", str(chance.randrange(1, 200))]),
        "Gap": str(chance.randrange(360)),
        "Distance": str(chance.randrange(300)),
        "RMS": f"{chance.random():.2f}",
        "Source": "nc",
        "EventID": str(chance.randrange(70_000_000, 79_999_999)),
    }
