"""Records that say which they are, so that whoever reads a log can tell whether it is right.

A lane is what one writer appends to one partition: records numbered from 0, without a gap. The value follows from
writer and number, byte by byte. So a log is right when each lane in it is an unbroken run of numbers with these bytes,
up to at least the number that was acknowledged when the reading began. Acknowledgements lie in a file for each lane.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

import streamcore as sc

SCHEMA = pa.schema([("writer", pa.int32()), ("number", pa.int64()), ("payload", pa.binary())])
_POOL = random.Random(1).randbytes(1 << 16)
_SIZE_MAX = 300
_ACK = struct.Struct("<3q")
_MIXED = 0x5EED
_UNDECIDED_S = 60.0
_REPEATED_MAX = 2000  # records that members read before they commit


class WrongLogError(AssertionError):
    """A log is not what was written."""


class Acknowledged(NamedTuple):
    """The latest record of a lane that its writer was told of."""

    number: int
    offset: int


def payload_of(writer: int, number: int) -> bytes:
    """The bytes of a record behind its number: 0 to 299 of them."""
    place = (writer * 7919 + number * 131) % (len(_POOL) - _SIZE_MAX)
    return _POOL[place : place + (writer + number * 37) % _SIZE_MAX]


def value_of(writer: int, number: int) -> bytes:
    """The value of a record of a plain topic."""
    return b"%d %d %b" % (writer, number, payload_of(writer, number))


def checked(value: bytes | dict[str, Any]) -> tuple[int, int]:
    """Writer and number of a value. WrongLogError when a byte of it is not what was written."""
    if isinstance(value, dict):
        writer, number = int(value["writer"]), int(value["number"])
        is_right = value["payload"] == payload_of(writer, number)
    else:
        words = value.split(b" ", 2)
        writer, number = int(words[0]), int(words[1])
        is_right = value == value_of(writer, number)
    if not is_right:
        raise WrongLogError(f"wrong bytes in record {number} of writer {writer}: {value!r:.200}")
    return writer, number


def table_of(writer: int, numbers: Iterable[int]) -> pa.Table:
    """Records of a typed topic."""
    numbers = list(numbers)
    columns = [[writer] * len(numbers), numbers, [payload_of(writer, number) for number in numbers]]
    return pa.Table.from_arrays(
        [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


class Acknowledgements:
    """What the writers were told, in a folder: any process reads it, and it outlives a killed one."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._files: dict[tuple[str, int, int], int] = {}

    def _path(self, topic: str, partition: int, writer: int) -> Path:
        return self._folder / f"{topic}.{partition}.{writer}"

    def write(self, topic: str, partition: int, writer: int, number: int, offset: int) -> None:
        """Notes that a record is at an offset, and with it all before it."""
        lane = topic, partition, writer
        if lane not in self._files:
            self._files[lane] = os.open(self._path(*lane), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.pwrite(self._files[lane], _ACK.pack(number, offset, number ^ offset ^ _MIXED), 0)

    def read(self, topic: str, partition: int) -> dict[int, Acknowledged]:
        """The latest acknowledgement of each writer to a partition."""
        found: dict[int, Acknowledged] = {}
        for path in self._folder.glob(f"{topic}.{partition}.*"):
            end = time.monotonic() + 10
            while time.monotonic() < end:  # a reader may meet a write
                data = path.read_bytes()
                if len(data) == _ACK.size:
                    number, offset, mixed = _ACK.unpack(data)
                    if mixed == number ^ offset ^ _MIXED:
                        found[int(path.suffix[1:])] = Acknowledged(number, offset)
                        break
        return found


def wait_until_stable(topic: sc.Topic, partition: int, offset: int) -> None:
    """Waits until each transaction that began below an offset is decided."""
    end = time.monotonic() + _UNDECIDED_S
    while topic.bounds([partition], "committed")[partition][1] < offset:
        if time.monotonic() > end:
            raise WrongLogError(f"{topic.name}/{partition} has a transaction that is never decided")
        time.sleep(0.005)


class Lane:
    """What one writer appends to one partition, as the writer sees it. `next` is the number of its next record."""

    def __init__(self, topic: sc.Topic, partition: int, writer: int, acks: Acknowledgements) -> None:
        self.topic, self.partition, self.writer, self.acks = topic, partition, writer, acks
        told = acks.read(topic.name, partition).get(writer)
        self.next = 0 if told is None else told.number + 1
        self._position: int | None = None

    def catch_up(self, isolation: str = "uncommitted") -> None:
        """Finds its latest record in the log, also one that it was not told of. Committed: waits for what is open."""
        start, _, seen = self.topic.bounds([self.partition], "uncommitted")[self.partition]
        if isolation == "committed":
            wait_until_stable(self.topic, self.partition, seen)
        start = max(start, self._position or 0)
        try:
            numbers = _numbers(self.topic, self.partition, start, isolation)
        except sc.OffsetOutOfRangeError:  # deleted meanwhile
            numbers = _numbers(self.topic, self.partition, "earliest", isolation)
        mine = [number for writer, number in numbers if writer == self.writer]
        self.next = max([self.next, *(number + 1 for number in mine)])
        self._position = seen

    def take(self, count: int) -> range:
        """The numbers of its next records."""
        taken = range(self.next, self.next + count)
        self.next += count
        return taken

    def acknowledge(self, end_offset: int) -> None:
        """Notes that all that was taken is in the log, the last of it before this offset."""
        self.acks.write(self.topic.name, self.partition, self.writer, self.next - 1, end_offset - 1)


def _numbers(topic: sc.Topic, partition: int, start: Any, isolation: Any) -> list[tuple[int, int]]:
    columns = ["value"] if topic.schema is None else ["value.writer", "value.number"]
    table = topic.scan(partition, start=start, columns=columns, isolation=isolation).to_arrow()
    if topic.schema is None:
        return [checked(value) for value in table.column(0).to_pylist() if value is not None]
    return list(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))


class Follower:
    """Whether lanes go on as they should, record by record.

    repeats: whether records may come again, as where they are written at least once. Then a log may begin with such
    ones, behind which it goes on where it had been: gaps are none until that must be over.
    """

    def __init__(self, *, repeats: bool = False) -> None:
        self._latest: dict[Any, int] = {}
        self._repeats = repeats
        self._blind = _REPEATED_MAX if repeats else 0
        self.records = 0

    def follow(self, place: Any, value: bytes | dict[str, Any]) -> None:
        """One more record of a place, a partition say. WrongLogError when it is not the one that comes next."""
        writer, number = checked(value)
        latest = self._latest.get((place, writer))
        is_next = latest is None or number == latest + 1 or self._blind > 0 or (self._repeats and number <= latest)
        self._blind = max(0, self._blind - 1)
        if not is_next:
            raise WrongLogError(f"{place}: record {number} of writer {writer} comes behind {latest}")
        self._latest[place, writer] = number if latest is None else max(latest, number)
        self.records += 1

    def forget(self) -> None:
        """Begins anew, as where records were deleted before they were read."""
        self._latest.clear()
        self._blind = _REPEATED_MAX if self._repeats else 0

    @property
    def latest(self) -> dict[Any, int]:
        """The highest number of each (place, writer)."""
        return dict(self._latest)


def check_partition(topic: sc.Topic, partition: int, acks: Acknowledgements, *, dense: bool) -> tuple[Any, Any]:
    """Reads a partition whole, and compares it with what was acknowledged; (offsets, timestamps in ms).

    dense: whether each offset has a record, as without transactions. OffsetOutOfRangeError when records were deleted
    while it read.
    """
    told = acks.read(topic.name, partition)
    wait_until_stable(topic, partition, max([0, *(last.offset + 1 for last in told.values())]))
    plain = topic.schema is None
    columns = ["value"] if plain else ["value.writer", "value.number", "value.payload"]
    table = topic.scan(partition, columns=["offset", "timestamp", *columns]).to_arrow()
    offsets = table["offset"].to_numpy()
    if plain:
        values: Sequence[Any] = table["value"].to_pylist()
    else:
        values = [
            dict(zip(("writer", "number", "payload"), row, strict=True))
            for row in zip(*(table[column].to_pylist() for column in columns), strict=True)
        ]
    where = f"{topic.name}/{partition}"
    follower = Follower()
    for value in values:
        follower.follow(where, value)
    steps = np.diff(offsets)
    if len(offsets) and ((dense and (steps != 1).any()) or (steps <= 0).any()):
        raise WrongLogError(f"the offsets of {where} are not in a row")
    start = topic.bounds([partition])[partition][0]
    for writer, last in told.items():
        if last.offset < start:
            continue  # retention has it
        place = int(np.searchsorted(offsets, last.offset))
        if place == len(offsets) or offsets[place] != last.offset or checked(values[place]) != (writer, last.number):
            raise WrongLogError(
                f"{where}: the acknowledged record {last.number} of writer {writer} at {last.offset} is lost"
            )
    return offsets, table["timestamp"].cast(pa.int64()).to_numpy()
