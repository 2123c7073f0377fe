"""How fast are Arrow batches appended, against a raw loop of the same bytes and against pyarrow's IPC stream writer?"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pytest

import streamcore as sc
from bench import rows
from bench.contest import Contest, Stopwatch
from bench.peers import arrow_ipc
from bench.raw_limits import RawLimits
from bench.sizes import Sizes

SCHEMA = pa.schema([pa.field("value", pa.binary())])
DISTINCT = 8  # batches that are appended in turn: together more than the caches hold
RAW_WAYS: dict[str, dict[str, object]] = {
    "raw loop, populated mapping": {"way": "populate", "window": 16 << 20, "copy": "fused"},
    "raw loop, plain mapping": {"way": "mmap", "copy": "blocks"},
    "raw loop, pwrite": {"way": "pwrite"},
}


@pytest.mark.parametrize(("value_bytes", "batch_rows"), [(100, 64 << 10), (1024, 8 << 10)])
def test_append_arrow_batches(
    contest: Callable[..., Contest], raw: RawLimits, folder: Path, size: Sizes, value_bytes: int, batch_rows: int
) -> None:
    question = contest(f"append Arrow batches ({value_bytes} B, {batch_rows:,} rows)")
    arrays = [rows.array(batch_rows, value_bytes, skip=number * batch_rows) for number in range(DISTINCT)]
    data, batch_bytes = write_buffers(folder / "input", arrays)

    def streamcore(place: Path, watch: Stopwatch) -> float:
        store = sc.open(place / "store")
        topic = store.create_topic("clicks")
        with watch:
            for values in islice(cycle(arrays), size.batches):
                topic.append(values)
        store.close()
        return size.batches * batch_rows

    def raw_loop(way: dict[str, object]) -> Callable[[Path, Stopwatch], float]:
        def run(place: Path, watch: Stopwatch) -> float:
            found = raw.append(data, batch_bytes, size.batches * batch_bytes, **way)
            watch.measured_elsewhere(found["seconds"], found["cpu_s"])
            return size.batches * batch_rows

        return run

    def pyarrow_value(place: Path, watch: Stopwatch) -> float:
        batches = [pa.RecordBatch.from_arrays([values], schema=SCHEMA) for values in arrays]
        with watch:
            return arrow_ipc.write_stream(place / "file", SCHEMA, islice(cycle(batches), size.batches))

    def pyarrow_record(place: Path, watch: Stopwatch) -> float:
        batches = [with_offsets(values) for values in arrays]
        with watch:
            return arrow_ipc.write_stream(place / "file", batches[0].schema, islice(cycle(batches), size.batches))

    question.enter("streamcore", streamcore)
    for name, way in RAW_WAYS.items():
        question.enter(name, raw_loop(way))
    question.enter("pyarrow stream, value alone", pyarrow_value)
    question.enter("pyarrow stream, with offset and time", pyarrow_record)
    question.run(size.rounds, memory_bytes=2 * size.batches * batch_bytes)
    question.faster(
        "≥ 0.8 × raw loop (memcpy + CRC32C, populated mapping)", "streamcore", "raw loop, populated mapping", 0.8
    )
    question.faster("≥ 2 × pyarrow's IPC stream writer", "streamcore", "pyarrow stream, value alone", 2)
    for name in ("raw loop, populated mapping", "raw loop, pwrite"):
        ratios = question.ratios(name, "pyarrow stream, value alone")
        question.fact(f"{name} ÷ pyarrow's stream writer, which checks nothing", statistics.median(ratios), "×")
    question.note(
        "The raw loop and pyarrow write the value column alone (104 B a row), streamcore offset and timestamp as well."
    )


def write_buffers(path: Path, arrays: list[pa.BinaryArray]) -> tuple[Path, int]:
    """The offsets and bytes of each array in a file, for the raw loop: (file, bytes of one batch)."""
    parts = [b"".join(buffer.to_pybytes() for buffer in values.buffers() if buffer is not None) for values in arrays]
    assert len({len(part) for part in parts}) == 1
    path.write_bytes(b"".join(parts))
    return path, len(parts[0])


def with_offsets(values: pa.BinaryArray) -> pa.RecordBatch:
    offsets = pa.array(range(len(values)), pa.int64())
    times = pa.array([1_431_857_103_000] * len(values), pa.timestamp("ms", tz="UTC"))
    return pa.RecordBatch.from_arrays([offsets, times, values], names=["offset", "timestamp", "value"])
