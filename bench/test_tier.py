"""What does it cost to put segments into a tier and to read them back, and how large are they there?

Against versitygw, a real S3 server on this machine; without ../shared against a folder. Both sides use obstore.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc
from bench import rows
from bench.contest import Contest, Stopwatch
from bench.sizes import Sizes
from bench.tier_probe import WORK, move
from streamcore.tier.address import connect
from tests.tier.fault_proxy import FaultProxy

VERSITYGW = rows.SHARED / "peers" / "s3" / "versitygw.sh"
BUCKET = "streamcore-bench"
ROUNDS = 5
SEGMENT_BYTES = 16 << 20
TRIP_S = 0.02
_PORT = 17973


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    """An address, and the options to get there."""
    folder = tmp_path_factory.mktemp("objects")
    if not VERSITYGW.exists():
        yield f"file://{folder}", {}
        return
    subprocess.run(["bash", VERSITYGW, "start", folder, str(_PORT)], check=True, capture_output=True)
    (folder / "data" / BUCKET).mkdir()
    try:
        yield f"s3://{BUCKET}/bench", {
            "endpoint": f"http://127.0.0.1:{_PORT}", "region": "us-east-1",
            "access_key_id": "streamcore", "secret_access_key": "streamcore-secret", "cache_bytes": 0,
        }  # fmt: skip
    finally:
        subprocess.run(["bash", VERSITYGW, "stop", folder], check=False)


@contextlib.contextmanager
def filled(path: Path, place: tuple[str, dict[str, Any]], records: int, name: str, typed: bool) -> Iterator[sc.Topic]:
    """A topic of real rows, 1,000 an append, all of it sealed and nothing in the tier."""
    url, options = place
    with sc.open(path, maintenance=False, tier=f"{url}/{name}", tier_options=options) as store:
        settings: dict[str, Any] = {"tier": True, "segment_bytes": SEGMENT_BYTES}
        topic = store.create_topic("rows", schema=rows.TYPED_SCHEMA if typed else None, **settings)
        values = rows.log_lines()
        table = rows.typed_table(min(records, 38_000)) if typed else None
        for first in range(0, records, 1000):
            times = [time_of(n) for n in range(first, first + 1000)]
            if table is not None:
                topic.append_table(table.slice(first % 37_000, 1000))
            else:
                some = [values[n % len(values)] for n in range(first, first + 1000)]
                topic.append(some, keys=[line.split(b" ", 1)[0] for line in some], timestamps=times)
        topic.roll()
        topic.consolidate()
        yield topic


def time_of(number: int) -> int:
    return 1_431_000_000_000 + 837 * number + number * number % 701


@pytest.mark.parametrize("typed", [False, True], ids=["web log", "earthquakes"])
def test_tier(contest: Callable[..., Contest], folder: Path, size: Sizes, place: Any, typed: bool) -> None:
    name = "earthquakes" if typed else "web log"
    question = contest(f"tier: {name}", unit="bytes of segments/s")
    records = max(20_000, size.records // 1000 * 1000)
    url, options = place
    raw = connect(f"{url}/raw-{name.replace(' ', '-')}", {k: v for k, v in options.items() if k != "cache_bytes"})
    with filled(folder / "kept", place, records, f"kept-{typed}", typed) as topic:
        segments = [Path(one.path) for one in topic.segments() if one.sealed]
        local = sum(one.size_bytes for one in topic.segments())
        done = topic.offload()
        stored = sum(one.object_bytes for one in done)
        move(topic)
        objects = [raw_path.path for raw_path in done]
        counters = topic.store.tier.objects.counters  # type: ignore[union-attr]
        before = counters.read()["got"]
        topic.scan(columns=["timestamp"]).to_arrow()
        question.fact("bytes fetched for the timestamps, of those of the objects",
                      (counters.read()["got"] - before) / stored, "×")  # fmt: skip
        question.fact("bytes of objects, of those of segments", stored / local, "×")
        prefix = f"{url}/kept-{typed}/"

        def get(_: Path, watch: Stopwatch) -> float:
            reader = topic.store.tier.objects  # type: ignore[union-attr]
            with watch:
                for path in objects:
                    for _piece in reader.stream(path.removeprefix(prefix)):
                        pass
            return local

        def get_segments(_: Path, watch: Stopwatch) -> float:
            with watch:
                for path in copies.iterdir():
                    for _piece in raw.stream(path.name):
                        pass
            return local

        def scan(_: Path, watch: Stopwatch) -> float:
            with sc.open(folder / "kept", "r", tier_options=options) as store, watch:
                for _batch in store.topic("rows").scan().batches():
                    pass
            return local

        copies = folder / "copies"

        def put(_: Path, watch: Stopwatch) -> float:
            with watch:
                for path in copies.iterdir():
                    raw.put_file(path.name, path)
            return local

        def offload(path: Path, watch: Stopwatch) -> float:
            with filled(path / "store", place, records, f"round-{time.monotonic_ns()}", typed) as made, watch:
                made.offload()
            return local

        copies.mkdir()
        with filled(folder / "again", place, records, f"again-{typed}", typed) as made:
            for one in made.segments():
                if one.sealed:
                    shutil.copy(one.path, copies)
        for path in copies.iterdir():
            raw.put_file(path.name, path)
        question.enter("raw put of the segments", put)
        question.enter("offload", offload)
        question.enter("raw get of the objects", get)
        question.enter("raw get of the segments", get_segments)
        question.enter("cold scan", scan)
        question.run(ROUNDS)
    del segments
    question.faster("offload against a raw put of the segments", "offload", "raw put of the segments", 0.7)
    question.faster("cold scan against a raw get of the objects", "cold scan", "raw get of the objects", 0.7)
    question.faster("cold scan against a raw get of the segments", "cold scan", "raw get of the segments", 0.7)
    question.note("Rates count the bytes of the segments, also for a get of the objects, which are smaller.")


def test_memory_of_the_tier(contest: Callable[..., Contest], folder: Path, size: Sizes, place: Any) -> None:
    question = contest("tier: memory", unit="")
    _, options = place

    def measure() -> None:
        for gigabytes in (size.memory_gb / 4, size.memory_gb):
            path = folder / f"store-{gigabytes}"
            records = int(gigabytes * 1e9 / 250) // 1000 * 1000
            with filled(path, place, records, f"memory-{time.monotonic_ns()}", typed=False) as topic:
                local = sum(one.size_bytes for one in topic.segments()) / 1e9
            for what in WORK:
                command = [sys.executable, "-m", "bench.tier_probe", what, str(path), json.dumps(options)]
                done = subprocess.run(
                    command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=1200
                )
                assert done.returncode == 0, done.stderr
                question.at_most(f"{what}, {local:.2f} GB of segments: memory ≤ 200 MB", float(done.stdout), 200, "MB")
            shutil.rmtree(path)

    question.once(measure)
    question.note("Anonymous memory of a process of its own that does one thing, Python and pyarrow included.")


def first_of_scan(topic: sc.Topic, offset: int) -> sc.Record:
    return next(iter(topic.scan(0, offset)))


def first_at_time(topic: sc.Topic, offset: int) -> sc.Record:
    return next(iter(topic.scan(0, datetime.datetime.fromtimestamp(time_of(offset) / 1000, datetime.UTC))))


def first_of_consumer(topic: sc.Topic, offset: int) -> sc.Record:
    with topic.store.consumer(topic.name) as consumer:
        consumer.seek(topic.name, 0, offset)
        return consumer.poll(10_000, 1)[0]


def test_first_record(contest: Callable[..., Contest], folder: Path, place: Any) -> None:
    url, options = place
    if "endpoint" not in options:
        pytest.skip("needs a server to be away from")
    question = contest("tier: first record", unit="")

    def measure() -> None:
        with FaultProxy(options["endpoint"]) as proxy:
            there = {**options, "endpoint": proxy.endpoint}
            with filled(folder / "first", (url, there), 200_000, "first", typed=False) as topic:
                topic.offload()
                move(topic)
            for what, first in {
                "a scan from an offset": first_of_scan,
                "a scan from a time": first_at_time,
                "a consumer behind a seek": first_of_consumer,
            }.items():
                seconds: dict[float, list[float]] = {0.0: [], TRIP_S: []}
                for number in range(20):
                    proxy.latency_s = TRIP_S * (number % 2)
                    with sc.open(folder / "first", "r", tier_options=there) as store:
                        topic = store.topic("rows")
                        begins = time.perf_counter()
                        first(topic, 7_777 + number * 9_000)
                        seconds[proxy.latency_s].append(time.perf_counter() - begins)
                near, far = (statistics.median(some) for some in seconds.values())
                question.at_most(f"{what}: ≤ 3 round trips", (far - near) / TRIP_S, 3, "round trips")
                question.fact(f"{what}, 20 ms a trip", far * 1000, "ms")

    question.once(measure)
    question.note("By a store just opened. Round trips: what 20 ms more for each request add to the time, over 20 ms.")


def test_appends_while_offloading(contest: Callable[..., Contest], folder: Path, size: Sizes, place: Any) -> None:
    question = contest("appends while offloading")
    count = max(100_000, size.records // 1000 * 1000)
    values = rows.values(1000, 100)

    def append(path: Path, watch: Stopwatch) -> float:
        with sc.open(path / "store", maintenance=False) as store:
            topic = store.create_topic("clicks")
            with watch:
                for _ in range(count // 1000):
                    topic.append(values)
        return count

    def beside(path: Path, watch: Stopwatch, where: tuple[str, dict[str, Any]]) -> float:
        with filled(path / "old", where, count, f"beside-{time.monotonic_ns()}", typed=False) as topic:
            stop = threading.Event()
            thread = threading.Thread(target=topic.offload, args=(stop.is_set,))
            thread.start()
            result = append(path, watch)
            assert thread.is_alive(), "the offload ended before the appends"
            stop.set()
            thread.join()
        return result

    def beside_folder(path: Path, watch: Stopwatch) -> float:
        return beside(path, watch, (f"file://{path}/objects", {}))

    question.enter("alone", append)
    question.enter("beside an offload to a folder", beside_folder)
    question.enter("beside an offload to a server on this machine", lambda *given: beside(*given, place))
    question.run(ROUNDS)
    for where in ("a folder", "a server on this machine"):
        question.faster(f"appends beside an offload to {where}, against alone", f"beside an offload to {where}",
                        "alone", 0.9)  # fmt: skip
    question.note("A server on this machine takes its share of two cores, which a bucket elsewhere does not.")
