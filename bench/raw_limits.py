"""Compiles bench/raw.c and runs it: what the machine allows. `python -m bench.raw_limits` prints the write paths."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench import host_memory, rows

SOURCE = Path(__file__).with_name("raw.c")
MACHINE_FLAGS = {"x86_64": ["-msse4.2"], "aarch64": ["-march=armv8-a+crc"]}


class RawLimits:
    """The compiled program, and a folder on the disk that is measured."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program = program
        self.folder = folder

    def run(self, command: str, **options: object) -> dict[str, Any]:
        """One command of raw.c; the file that it appends to is removed afterwards."""
        arguments = [f"{name}={value}" for name, value in options.items()]
        done = subprocess.run(
            [self.program, command, *arguments], capture_output=True, check=True, text=True, timeout=600
        )
        return dict(json.loads(done.stdout))

    def append(self, data: Path, batch: int, total: int, **options: object) -> dict[str, Any]:
        """`total` bytes appended in batches taken from the file `data` again and again."""
        target = self.folder / "raw-append"
        host_memory.take(total + total // 4)
        try:
            return self.run("append", file=target, input=data, batch=batch, total=total, **options)
        finally:
            target.unlink(missing_ok=True)


def compile_raw(folder: Path) -> RawLimits:
    """Builds the program into `folder`, for the CRC32C instruction of this machine; RuntimeError says why not."""
    program = folder / "raw"
    flags = MACHINE_FLAGS.get(platform.machine())
    if flags is None:
        raise RuntimeError(f"bench/raw.c knows no CRC32C instruction for {platform.machine()}")
    command = [os.environ.get("CC", "cc"), "-O3", "-std=c11", *flags, "-pthread", "-o", str(program), str(SOURCE)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"bench/raw.c does not compile: {getattr(error, 'stderr', error)}") from error
    return RawLimits(program, folder)


def write_input(path: Path, size: int) -> Path:
    """A file of real rows, for raw.c to take its batches from."""
    path.write_bytes(b"".join(rows.values(size // 100, 100)))
    return path


STREAM_WAYS: list[dict[str, Any]] = [
    {"way": "pwrite"},
    {"way": "mmap"},
    {"way": "populate", "window": 256 << 10},
    {"way": "populate", "window": 1 << 20},
    {"way": "populate", "window": 16 << 20},
]
DURABLE_WAYS: list[dict[str, Any]] = [
    {"way": "pwrite", "sync": "fdatasync", "space": "growing"},
    {"way": "pwrite", "sync": "fdatasync"},
    {"way": "pwrite", "sync": "dsync"},
    {"way": "mmap", "sync": "fdatasync"},
    {"way": "mmap", "sync": "msync"},
    {"way": "populate", "window": 1 << 20, "sync": "msync"},
    {"way": "populate", "window": 64 << 10, "sync": "fdatasync"},
    {"way": "populate", "window": 1 << 20, "sync": "fdatasync"},
    {"way": "pwrite", "window": 1 << 20, "sync": "fdatasync"},
    {"way": "pwrite", "window": 1 << 20, "sync": "dsync"},
    {"way": "pwrite", "sync": "fdatasync", "space": "written"},
]
FIGURES = ["gb_s", "mean_us", "p50_us", "p99_us", "p999_us", "worst_us"]


def measure_ways(
    raw: RawLimits, data: Path, batch: int, total: int, ways: list[dict[str, Any]], rounds: int
) -> list[dict[str, float]]:
    """Medians over `rounds` of every way, the ways interleaved."""
    found: list[list[dict[str, Any]]] = [[] for _ in ways]
    for _ in range(rounds):
        for place, way in enumerate(ways):
            found[place].append(raw.append(data, batch, total, **way))
    return [{figure: statistics.median(run[figure] for run in runs) for figure in FIGURES} for runs in found]


def print_table(title: str, ways: list[dict[str, Any]], medians: list[dict[str, float]]) -> None:
    print(f"\n{title}\n\n| way | GB/s | mean µs | p50 | p99 | p99.9 | worst |\n|---|---|---|---|---|---|---|")
    for way, figures in zip(ways, medians, strict=True):
        name = ", ".join(
            f"{key}={value}" if key != "window" else f"{value >> 10} KiB ahead" for key, value in way.items()
        )
        print(
            f"| {name} | {figures['gb_s']:.2f} | " + " | ".join(f"{figures[name]:.1f}" for name in FIGURES[1:]) + " |"
        )


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="streamcore-bench-", dir=os.environ.get("BENCH_DIR")) as name:
        raw = compile_raw(Path(name))
        data = write_input(Path(name) / "input", 32 << 20)
        for batch in (4 << 10, 128 << 10):
            medians = measure_ways(raw, data, batch, 512 << 20, STREAM_WAYS, 5)
            print_table(f"{batch >> 10} KiB appends, 512 MiB, no sync, medians of 5", STREAM_WAYS, medians)
            medians = measure_ways(raw, data, batch, 1000 * batch, DURABLE_WAYS, 5)
            print_table(f"{batch >> 10} KiB appends, 1,000, each durable, medians of 5", DURABLE_WAYS, medians)
        for command in ("memory", "wake"):
            print(f"\n{command}: {json.dumps(raw.run(command))}")
        print(f"\nspread: {json.dumps(raw.run('spread', dir=name))}")


if __name__ == "__main__":
    main()
