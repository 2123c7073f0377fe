"""The checker: what a killed writer was told, against what is in the log."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pyarrow as pa

import streamcore as sc

from .forkserver import Child
from .segments import as_any_arrow_reader, segment_paths
from .writers import PATHS, TOPIC, append_call, table_of

_CHECKED = ("timestamp", "key", "value", "headers")


@dataclasses.dataclass(frozen=True)
class Part:
    """The records of one call that go to one partition."""

    writer: int
    call: int
    partition: int


@dataclasses.dataclass
class Outcome:
    """What became of the calls in flight."""

    whole: int = 0
    absent: int = 0


class Ledger:
    """What a topic must hold: every acknowledged append, and of the ones in flight at a kill all or nothing."""

    def __init__(self, path_name: str) -> None:
        self.path = PATHS[path_name]
        self._settled: dict[int, dict[tuple[int, int], Part]] = {p: {} for p in range(self.path.partitions)}
        self._in_flight: list[tuple[int, int]] = []
        self.calls: dict[int, int] = {}

    def next_call(self, writer: int) -> int:
        """A call number that this writer has not used."""
        return self.calls.get(writer, 0)

    def take(self, writer: int, child: Child) -> None:
        """Writes down what a child said until it ended."""
        begun = [int(words[0]) for words in child.said("BEGUN")]
        done = child.said("DONE")
        for words in done:
            spans = [sc.Span(*map(int, word.split(":"))) for word in words[1:]]
            self.acknowledge(writer, int(words[0]), spans)
        finished = {int(words[0]) for words in done}
        self._in_flight += [(writer, call) for call in begun if call not in finished]
        if begun:
            self.calls[writer] = max(begun) + 1

    def acknowledge(self, writer: int, call: int, spans: list[sc.Span]) -> None:
        """Writes down where an append says that its records went."""
        for span in spans:
            part = Part(writer, call, span.partition)
            expected = expected_rows(self.path.name, part).num_rows
            assert span.end_offset - span.first_offset == expected, f"{part} went to {span}, but has {expected} records"
            self._settle(part, span.first_offset, span.end_offset)
        parts = [Part(writer, call, p) for p in range(self.path.partitions)]
        present = {part.partition for part in parts if expected_rows(self.path.name, part).num_rows}
        assert {span.partition for span in spans} == present
        self.calls[writer] = max(self.calls.get(writer, 0), call + 1)

    def _settle(self, part: Part, first: int, end: int) -> None:
        settled = self._settled[part.partition]
        assert (first, end) not in settled, f"two appends at offset {first}: {part} and {settled[first, end]}"
        settled[first, end] = part

    # ---- checks ----

    def check_rows(self, found: dict[int, pa.Table]) -> Outcome:
        """Checks the rows of all partitions: columns offset, timestamp, key, value, headers."""
        outcome = Outcome()
        for partition, rows in found.items():
            waiting = [Part(writer, call, partition) for writer, call in self._in_flight]
            self._check_partition(partition, rows, waiting, outcome)
        self._in_flight = []
        self._check_order()
        return outcome

    def _check_partition(self, partition: int, rows: pa.Table, waiting: list[Part], outcome: Outcome) -> None:
        offsets = rows.column("offset").to_numpy()
        assert offsets.tolist() == list(range(len(offsets))), f"the offsets of partition {partition} have a gap"
        at = 0
        for (first, end), part in sorted(self._settled[partition].items()):
            self._check_gap(rows, partition, at, first, waiting, outcome)
            found = rows.slice(first, end - first)
            what = f"acknowledged {part} at {first}..{end}"
            assert found.num_rows == end - first, f"{what} is lost; the log ends at {len(offsets)}"
            assert same_rows(found, expected_rows(self.path.name, part)), f"{what} is not what was appended"
            at = end
        self._check_gap(rows, partition, at, len(offsets), waiting, outcome)
        outcome.absent += sum(expected_rows(self.path.name, part).num_rows > 0 for part in waiting)

    def _check_gap(
        self, rows: pa.Table, partition: int, first: int, end: int, waiting: list[Part], outcome: Outcome
    ) -> None:
        """What nobody was told of must be whole appends that were in flight."""
        assert first <= end, f"two acknowledged appends of partition {partition} overlap at offset {end}"
        while first < end:
            for part in waiting:
                expected = expected_rows(self.path.name, part)
                if 0 < expected.num_rows <= end - first and same_rows(rows.slice(first, expected.num_rows), expected):
                    break
            else:
                raise AssertionError(f"partition {partition} has at {first}..{end} what is no whole append in flight")
            waiting.remove(part)
            self._settle(part, first, first + expected.num_rows)
            first += expected.num_rows
            outcome.whole += 1

    def _check_order(self) -> None:
        for settled in self._settled.values():
            last: dict[int, int] = {}
            for _, part in sorted(settled.items()):
                assert part.call > last.get(part.writer, -1), f"{part} is out of its writer's order"
                last[part.writer] = part.call

    def check_store(self, store_path: Path, mode: str = "rw") -> Outcome:
        """Opens the store, checks rows, checksums and that any Arrow reader sees the same."""
        with sc.open(store_path, mode) as store:
            topic = store.topic(TOPIC)
            found = {p: topic.scan(partition=p).to_arrow() for p in range(self.path.partitions)}
            outcome = self.check_rows(found)
            assert store.verify() == []
            self.check_files(store_path, topic.folder, found)
        return outcome

    def check_files(self, store_path: Path, folder: str, found: dict[int, pa.Table]) -> None:
        """Checks that pyarrow alone reads the very same rows from the files."""
        for partition, rows in found.items():
            seen = as_any_arrow_reader(segment_paths(store_path, folder, partition))
            assert (0 if seen is None else seen.num_rows) == rows.num_rows, "another Arrow reader sees other records"
            assert seen is None or same_rows(seen, rows)

    def append(self, topic: sc.Topic, writer: int) -> None:
        """Appends a call here and now, and writes it down."""
        call = self.next_call(writer)
        spans = append_call(topic, self.path, table_of(self.path.name, writer, call))
        self.acknowledge(writer, call, spans)


def same_rows(found: pa.Table, expected: pa.Table) -> bool:
    """Whether two tables have the same records, offsets left out."""
    return all(found.column(name).equals(expected.column(name)) for name in _CHECKED)


@functools.lru_cache(maxsize=2048)
def expected_rows(path_name: str, part: Part) -> pa.Table:
    """The records of a call that belong into a partition."""
    path = PATHS[path_name]
    table = table_of(path_name, part.writer, part.call)
    if path.partitions == 1:
        return table
    keys = table.column("key").to_pylist()
    return table.filter(pa.array([partition_of(key, path.partitions) == part.partition for key in keys]))


@functools.lru_cache(maxsize=1024)
def partition_of(key: bytes, partitions: int) -> int:
    """Where Apache Kafka's default partitioner puts a key: murmur2 with seed 0x9747b28c, made positive."""
    mixed = (0x9747B28C ^ len(key)) & 0xFFFFFFFF
    whole = len(key) // 4 * 4
    for start in range(0, whole, 4):
        word = int.from_bytes(key[start : start + 4], "little") * 0x5BD1E995 & 0xFFFFFFFF
        word = (word ^ word >> 24) * 0x5BD1E995 & 0xFFFFFFFF
        mixed = (mixed * 0x5BD1E995 & 0xFFFFFFFF) ^ word
    if len(key) > whole:
        mixed = (mixed ^ int.from_bytes(key[whole:], "little")) * 0x5BD1E995 & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 13) * 0x5BD1E995 & 0xFFFFFFFF
    return ((mixed ^ mixed >> 15) & 0x7FFFFFFF) % partitions
