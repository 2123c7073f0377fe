"""What does the machine itself allow? The limits that the other questions refer to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.contest import Contest
from bench.raw_limits import RawLimits
from bench.sizes import Sizes


def test_raw_limits(
    contest: Callable[..., Contest], raw: RawLimits, raw_input: Path, folder: Path, size: Sizes
) -> None:
    question = contest("raw limits of this machine", unit="")

    def measure() -> None:
        for name, value in raw.run("memory").items():
            question.fact(f"memory, {name.removesuffix('_gb_s').replace('_', ' ')}", value, "GB/s")
        for name, figures in raw.run("wake").items():
            question.fact(f"one word to another process, {name}, p50", figures["p50_us"], "µs")
        for batch in (4 << 10, 128 << 10):
            for way in ("pwrite", "mmap", "populate"):
                found = raw.append(raw_input, batch, 256 << 20, way=way)
                question.fact(f"append {batch >> 10} KiB, {way}", found["gb_s"], "GB/s")
            for space in ("fallocated", "written"):
                found = raw.append(
                    raw_input, batch, batch * size.durable_appends, way="pwrite", sync="fdatasync", space=space
                )
                question.fact(f"append {batch >> 10} KiB and fdatasync, {space} space, p50", found["p50_us"], "µs")
        spread = raw.run("spread", dir=folder)
        for name in ("one_by_one", "threads", "syncfs", "shared_file", "one_file"):
            question.fact(
                f"4 KiB to each of 100 files, durable: {name.replace('_', ' ')}", spread[name]["p50_us"] / 1000, "ms"
            )

    question.once(measure)
