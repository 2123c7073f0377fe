"""How fast is a first scan, which verifies every checksum, against the memory bandwidth of one core?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamcore as sc
from bench.contest import Contest, Stopwatch
from bench.raw_limits import RawLimits
from bench.sizes import Sizes
from bench.test_scan_arrow import filled_store


def test_scan_verified(contest: Callable[..., Contest], raw: RawLimits, folder: Path, size: Sizes) -> None:
    question = contest("scan with checksums verified (100 B)", unit="bytes/s")
    store, _ = filled_store(folder / "store", size.batches)
    store.close()
    segment = max((folder / "store").rglob("*.arrows"), key=lambda path: path.stat().st_size)

    def streamcore(_: Path, watch: Stopwatch) -> float:
        reader = sc.open(folder / "store", mode="r")
        with watch:
            scan = reader.topic("clicks").scan()
            table = scan.to_arrow()
        verified = scan.metrics.bytes_verified
        del table
        reader.close()
        assert verified >= 100 * size.batches, "nothing was verified"
        return float(verified)

    def raw_read(figure: str) -> Callable[[Path, Stopwatch], float]:
        def run(_: Path, watch: Stopwatch) -> float:
            found = raw.run("read", file=segment)
            seconds = found["bytes"] / found[figure] / 1e9
            watch.measured_elsewhere(seconds, seconds)
            return float(found["bytes"])

        return run

    def memory(_: Path, watch: Stopwatch) -> float:
        bytes_read = 256e6
        seconds = bytes_read / raw.run("memory", bytes=int(bytes_read))["sum_gb_s"] / 1e9
        watch.measured_elsewhere(seconds, seconds)
        return bytes_read

    question.enter("streamcore, first scan", streamcore)
    question.enter("raw CRC32C over a fresh mapping", raw_read("crc_first_gb_s"))
    question.enter("raw CRC32C over a mapping in use", raw_read("crc_gb_s"))
    question.enter("raw sum over a mapping in use", raw_read("sum_gb_s"))
    question.enter("memory bandwidth, sum", memory)
    question.run(size.rounds)
    question.faster(
        "≥ 0.5 × memory bandwidth of one core (sum of a buffer)", "streamcore, first scan", "memory bandwidth, sum", 0.5
    )
    question.note(
        "A first scan takes the page faults of a fresh mapping; the memory bandwidth is measured without them."
    )
