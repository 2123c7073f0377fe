"""Training data replayed by time: features of yesterday to learn from, of today to test on, the same rows at every run.

python replay_training.py [EARTHQUAKES_CSV]        without a file, some quakes are made
"""

from __future__ import annotations

import datetime as dt
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

import streamcore as sc

START = dt.datetime(2016, 1, 1, tzinfo=dt.UTC)
QUAKE = pa.schema([("depth", pa.float64()), ("magnitude", pa.float64()), ("stations", pa.float64())])
Examples = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def made_quakes(count: int) -> pa.Table:
    """Quakes of half a year, felt by the more stations the stronger they are."""
    chance = np.random.default_rng(5)
    magnitude = chance.gamma(4, 0.5, count)
    stations = np.maximum(3, 12 * magnitude + chance.normal(0, 5, count))
    times = np.sort(chance.integers(0, 180 * 86_400_000, count)) + int(START.timestamp() * 1000)
    return pa.table({"timestamp": pa.array(times, pa.timestamp("ms", "UTC")), "depth": chance.gamma(2, 5, count),
                     "magnitude": magnitude, "stations": stations})  # fmt: skip


def read_quakes(path: Path) -> pa.Table:
    """The columns that we learn from, of a catalogue as the data center gives it out."""
    convert = pacsv.ConvertOptions(timestamp_parsers=["%Y/%m/%d %H:%M:%S"], column_types={"NbStations": pa.float64()})
    table = pacsv.read_csv(path, convert_options=convert)
    seconds = pc.utf8_slice_codeunits(table.column("DateTime").cast(pa.string()), 0, 19)
    times = pc.strptime(seconds, format="%Y/%m/%d %H:%M:%S", unit="ms").cast(pa.timestamp("ms", "UTC"))
    return pa.table({"timestamp": times, "depth": table.column("Depth"), "magnitude": table.column("Magnitude"),
                     "stations": table.column("NbStations")})  # fmt: skip


def examples(quakes: sc.Topic, start: dt.datetime, end: dt.datetime) -> Iterator[Examples]:
    """Features and targets of the quakes of a time, a batch at a time, however long the log is."""
    columns = ["value.depth", "value.stations", "value.magnitude"]
    for batch in quakes.scan(start=start, end=end, columns=columns).batches():
        rows = np.column_stack([column.to_numpy(zero_copy_only=False) for column in batch.columns])
        rows = rows[~np.isnan(rows).any(axis=1)]
        yield np.column_stack([rows[:, :2], np.ones(len(rows))]), rows[:, 2]


def fit(batches: Iterator[Examples]) -> npt.NDArray[np.float64]:
    """Least squares over a stream: sums of products are all that is kept."""
    products, targets = np.zeros((3, 3)), np.zeros(3)
    for features, target in batches:
        products += features.T @ features
        targets += features.T @ target
    return np.linalg.solve(products, targets)


def main(path: str, table: pa.Table) -> None:
    """Learns from each month, tests on the next one, and does it again to the same result."""
    with sc.open(path) as store:
        quakes = store.create_topic("quakes", schema=QUAKE)
        quakes.append_table(table)
        months = [dt.datetime(2016, month, 1, tzinfo=dt.UTC) for month in range(1, 7)]
        for start, middle, end in zip(months, months[1:], months[2:], strict=False):
            weights = fit(examples(quakes, start, middle))
            errors = [features @ weights - target for features, target in examples(quakes, middle, end)]
            again = fit(examples(quakes, start, middle))
            assert np.array_equal(weights, again)
            error = np.abs(np.concatenate(errors)).mean() if errors else float("nan")
            print(f"learnt from {start:%B}, tested on {middle:%B}: mean error {error:.2f} of a magnitude")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder, read_quakes(Path(sys.argv[1])) if len(sys.argv) > 1 else made_quakes(50_000))
