"""Read, convert, write, each line once and only once, although the process dies in the middle again and again.

python exactly_once_etl.py [ACCESS_LOG]        a log in combined format; without one, some lines are made
"""

from __future__ import annotations

import datetime as dt
import multiprocessing as mp
import os
import random
import re
import sys
import tempfile
from pathlib import Path

import pyarrow as pa

import streamcore as sc

LINE = re.compile(r'(\S+) \S+ \S+ \[([^]]+)\] "(\S+) (\S+)[^"]*" (\d{3}) (\d+|-)')
VISIT = pa.schema([("line", pa.int64()), ("client", pa.string()), ("method", pa.string()), ("page", pa.string()),
                   ("status", pa.int16()), ("bytes", pa.int64())])  # fmt: skip
DIED = 17


def made_lines(count: int) -> list[bytes]:
    """Lines as a web server writes them."""
    chance = random.Random(1)
    return [
        f"10.0.0.{chance.randrange(200)} - - [17/May/2015:10:{n // 60 % 60:02}:{n % 60:02} +0000] "
        f'"GET /page/{chance.randrange(50)} HTTP/1.1" {chance.choice([200, 200, 200, 304, 404])} {n}'.encode()
        for n in range(count)
    ]


def visit(number: int, line: bytes) -> tuple[dict[str, object], dt.datetime]:
    """A line as a row, and when it was."""
    found = LINE.match(line.decode("utf-8", "replace"))
    if found is None:
        raise ValueError(f"line {number} is not in combined format: {line!r}")
    client, when, method, page, status, size = found.groups()
    row = {"line": number, "client": client, "method": method, "page": page, "status": int(status),
           "bytes": None if size == "-" else int(size)}  # fmt: skip
    return row, dt.datetime.strptime(when, "%d/%b/%Y:%H:%M:%S %z")


def convert(path: str, die_after: int) -> None:
    """Converts what is left, a few hundred lines a transaction; dies in the one of that number, if it gets there."""
    with sc.open(path) as store, store.consumer("lines", group="etl", member_timeout_ms=500) as consumer:
        for number in range(1 << 60):
            records = consumer.poll(timeout_ms=1_000, max_records=300)
            if not records and not any(consumer.lag().values()):
                return
            with store.transaction("etl") as transaction:
                rows = [visit(record.offset, record.value) for record in records]
                if rows:
                    transaction.append("visits", [row for row, _ in rows], timestamps=[when for _, when in rows])
                if number == die_after:
                    os._exit(DIED)  # the rows are in the log by now, and nobody who reads committed data sees them
                transaction.commit_offsets(consumer)


def main(path: str, lines: list[bytes]) -> None:
    """Runs the converter, and runs it again each time that it dies; then compares."""
    with sc.open(path) as store:
        store.create_topic("lines", partitions=1).append(lines)
        visits = store.create_topic("visits", schema=VISIT)
        context, deaths = mp.get_context("spawn"), 0
        while True:
            process = context.Process(target=convert, args=(path, random.randrange(3) if deaths < 5 else -1))
            process.start()
            process.join()
            if process.exitcode != DIED:
                break
            deaths += 1
        written = visits.scan(columns=["value.line"]).to_arrow().column(0).to_pylist()
        wasted = visits.scan(isolation="uncommitted").count() - len(written)
        once = sorted(written) == list(range(len(lines)))
        print(f"{len(lines):,} lines; the converter died {deaths} times and left {wasted:,} rows that nobody sees")
        print(f"each line is there {'once and only once' if once else 'NOT once'}: {len(written):,} rows")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        log = Path(sys.argv[1]).read_bytes().splitlines() if len(sys.argv) > 1 else made_lines(5_000)
        main(folder, log)
