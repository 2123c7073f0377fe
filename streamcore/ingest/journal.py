"""How much of which file is in which topic: kept in the store, so that a second run goes on instead of repeating.

For each topic and file the store's settings hold one `Progress`. It is written *before* each block is appended, and
says: everything before `position` is in the topic, on the drive; the block up to `pending` may be; when that block
began, the partitions ended at `ends`. Appends to one partition are atomic, so after an interruption each partition has
its part of that block whole or not at all, and `already_appended` finds out which by comparing the block's rows with
what was appended after `ends`. The rest is appended then. Rows that other writers append in between change nothing,
unless they are identical to the block's rows, in order, key, timestamp and value: those cannot be told apart.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamcore.ingest.conversion import one_array
from streamcore.ingest.model import IngestError, IngestOptions, Rows

if TYPE_CHECKING:
    from streamcore import Store, Topic

_FORMAT = 1
_FOREIGN_ROWS_MAX = 1 << 20  # rows of other writers that are looked through for an interrupted block


@dataclass(slots=True)
class Progress:
    """How far a file is ingested. Positions are bytes, or rows in Parquet and Arrow files."""

    position: int = 0
    digest: str = ""
    rows: int = 0
    complete: bool = False
    unterminated: bool = False
    pending: int | None = None
    now_ms: int = 0  # the timestamp of the pending block's rows, where the file has none
    ends: dict[int, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The progress of one file into one topic."""

    def __init__(self, store: Store, topic: Topic, path: str) -> None:
        self._store = store
        self._path = path
        self._key = f"ingest:{topic.id}:{os.path.realpath(path)}"
        self._written: str | None = None

    def load(self, options: IngestOptions) -> Progress | None:
        """What an earlier run noted, None if there was none; other options than then are refused."""
        text = self._store.get_setting(self._key)
        self._written = text
        if text is None:
            return None
        held = json.loads(text)
        if held.pop("format", None) != _FORMAT:
            raise IngestError(f"the progress noted for {self._path} is of another version of streamcore")
        held["ends"] = {int(index): end for index, end in held["ends"].items()}
        progress = Progress(**held)
        if progress.options != _plain(options.meaning()):
            raise IngestError(
                f"{self._path} was ingested into this topic with other options: use the same ones, or --force to ingest"
                " it again from the start"
            )
        return progress

    def forget(self) -> None:
        """Forget what earlier runs noted."""
        self._store.set_setting(self._key, None)
        self._written = None

    def save(self, progress: Progress) -> None:
        """Note the progress, unless another run noted something since this one did."""
        if self._store.get_setting(self._key) != self._written:
            raise IngestError(f"{self._path} is being ingested into this topic by another process")
        text = json.dumps({"format": _FORMAT, **asdict(progress)})
        self._store.set_setting(self._key, text)
        self._written = text


def new_progress(options: IngestOptions) -> Progress:
    """The progress of a file of which nothing is ingested."""
    return Progress(options=_plain(options.meaning()))


def _plain(meaning: dict[str, Any]) -> dict[str, Any]:
    """Options as they come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(meaning))
    return plain


def ends_of(topic: Topic) -> dict[int, int]:
    """Where the topic's partitions end now."""
    return {partition.index: partition.end_offset for partition in topic.partitions}


def already_appended(topic: Topic, rows: Rows, ends: dict[int, int]) -> pa.Array | None:
    """Which of a block's rows are in the topic after these ends; None if none are. `ends` move behind what is found."""
    block = _as_table(rows, topic)
    found: pa.Array | None = None
    for partition in topic.partitions:
        start = max(ends.get(partition.index, 0), partition.start_offset)
        if partition.end_offset <= start:
            continue
        scan = topic.scan(
            partition=partition.index,
            start=start,
            columns=block.column_names,
            limit=len(block) + _FOREIGN_ROWS_MAX,
            isolation="uncommitted",  # somebody's open transaction hides ours from others
        )
        here, rows_to_its_end = _part_in(block, scan.to_arrow())
        if here is not None:
            ends[partition.index] = start + rows_to_its_end
            found = here if found is None else pc.or_(found, here)
    return found


def _as_table(rows: Rows, topic: Topic) -> pa.Table:
    """A block's rows as they read back from the topic, timestamps only where the topic keeps those it is given."""
    columns = {"value": rows.values, "key": pa.nulls(len(rows.values), pa.binary()) if rows.keys is None else rows.keys}
    if topic.config.timestamp_type == "create" and rows.timestamps is not None:
        columns["timestamp"] = rows.timestamps
    return pa.table(columns)


def _part_in(block: pa.Table, log: pa.Table) -> tuple[pa.Array | None, int]:
    """The block's rows that belong into this partition, if they are in this piece of its log, in order and together.

    Also how many rows of the log it takes to come behind them.
    Rows with one key go into one partition. So if the block's part is here, it is all rows whose keys are seen here.
    """
    seen = one_array(log["key"]).unique()
    candidates = pc.is_in(one_array(block["key"]), value_set=seen)  # null is in seen where a null key is
    part = block.filter(candidates)
    if part.num_rows == 0 or part.num_rows > log.num_rows:
        return None, 0
    part, log = _comparable(part), _comparable(log.select(block.column_names))
    for place in _starts(part, log):
        if log.slice(place, part.num_rows).combine_chunks().equals(part):
            return candidates, place + part.num_rows
    return None, 0


def _starts(part: pa.Table, log: pa.Table) -> list[int]:
    """Where in the log the first row of the part may be."""
    first = None
    for name in ("key", "timestamp"):
        if name in part.column_names and part[name][0].is_valid:
            same = pc.equal(log[name], part[name][0])
            first = same if first is None else pc.and_(first, same)
    last = log.num_rows - part.num_rows
    if first is None:
        return list(range(last + 1))
    places = np.flatnonzero(one_array(pc.fill_null(first, fill_value=False)).to_numpy(zero_copy_only=False))
    return [int(place) for place in places[places <= last]]


def _comparable(table: pa.Table) -> pa.Table:
    """A flat table in which equal bits are equal: floating point numbers as integers, so that NaN equals NaN."""
    table = table.combine_chunks()
    while any(pa.types.is_struct(column.type) for column in table.schema):
        # A struct's own nulls are kept as a column beside its fields, which flatten() merges them into.
        nulls = {f"{c.name} is null": table[c.name].is_null() for c in table.schema if pa.types.is_struct(c.type)}
        table = table.flatten()
        for name, mask in nulls.items():
            table = table.append_column(name, mask)
    arrays = [_bits(one_array(column)) for column in table.columns]
    return pa.table(arrays, names=table.column_names)


def _bits(array: pa.Array) -> pa.Array:
    if pa.types.is_floating(array.type):
        return array.view({16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[array.type.bit_width])
    return array
