"""Sealed segments replaced by others with the same offsets: the way through Arrow, and what limits all of it.

Plain segments are rewritten by the core alone. What is compressed, typed or has headers comes here: batches are read as
Arrow arrays, some rows are left out where that is wanted, and neighbours become one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from streamcore import _core
from streamcore.append import message_of
from streamcore.schema import SchemaVersion

BATCH_BYTES = 1 << 20
BATCH_ROWS = 1 << 16
_STOP_SLICE_S = 0.05
_COLUMNS: list[tuple[int, list[int]]] = [(number, []) for number in range(5)]

Stop = Callable[[], bool]
Keep = Callable[[_core.Batch, pa.RecordBatch], "np.ndarray[tuple[int], np.dtype[np.bool_]]"]


class Rewritten(NamedTuple):
    """A segment that was replaced: what its file, batches and records were before, and are after."""

    partition: int
    base_offset: int
    end_offset: int
    bytes_before: int
    bytes_after: int
    batches_before: int
    batches_after: int
    records_before: int
    records_after: int


class Pace:
    """Limits how fast segments are read, and says when to stop."""

    def __init__(self, bytes_per_second: float | None = None, stop: Stop | None = None) -> None:
        if bytes_per_second is not None and not bytes_per_second > 0:
            raise ValueError(f"bytes_per_second is {bytes_per_second!r}; a number above 0 or None is allowed")
        self._rate = bytes_per_second
        self._stop = stop or (lambda: False)
        self._began = time.monotonic()
        self._done = 0

    def stopped(self) -> bool:
        """Whether the work is to end here."""
        return self._stop()

    def passed(self, size: int) -> bool:
        """Called with the bytes that were read: waits as long as the limit wants, and returns `stopped()`."""
        self._done += size
        while not self._stop():
            ahead = 0.0 if self._rate is None else self._done / self._rate - (time.monotonic() - self._began)
            if ahead <= 0:
                return False
            time.sleep(min(ahead, _STOP_SLICE_S))
        return True


def arrow_of(rewrite: _core.Rewrite, batch: _core.Batch, versions: Mapping[int, SchemaVersion]) -> pa.RecordBatch:
    """All columns of the batch that a rewriting stands on."""
    version = versions[batch.schema_version]
    if batch.codec:
        return pa.ipc.read_record_batch(pa.py_buffer(batch.message), version.file)
    capsule = rewrite.export_batch(_core.Columns(_COLUMNS))
    return pa.RecordBatch._import_from_c_capsule(version.file.__arrow_c_schema__(), capsule)


def rewrite_arrow(
    rewrite: _core.Rewrite,
    versions: Mapping[int, SchemaVersion],
    compression: str,
    keep: Keep | None,
    end_offset: int,
    pace: Pace,
) -> bool:
    """Writes all of the new segment; False when it was stopped."""
    output = _Output(rewrite, compression)
    rewrite.rewind()
    while (batch := rewrite.next()) is not None:
        if batch.flags & _core.BATCH_MUST_COPY:
            output.flush(batch.base_offset - 1)
            rewrite.copy()
            continue
        made = arrow_of(rewrite, batch, versions)
        output.take(made if keep is None else made.filter(pa.array(keep(batch, made))), batch.flags)
        if pace.passed(made.nbytes):
            return False
    output.flush(end_offset - 1)
    return True


class _Output:
    """Rows on their way into batches of about 1 MiB."""

    def __init__(self, rewrite: _core.Rewrite, compression: str) -> None:
        self._rewrite = rewrite
        self._options = None if compression == "none" else pa.ipc.IpcWriteOptions(compression=compression)
        self._parts: list[pa.RecordBatch] = []
        self._rows = self._bytes = self._flags = 0

    def take(self, rows: pa.RecordBatch, flags: int) -> None:
        """Adds rows behind those that are there. `flags`: of their batch."""
        flags &= _core.FLAG_LOG_APPEND_TIME
        if flags != self._flags:
            self.flush(None)
            self._flags = flags
        if rows.num_rows == 0:
            return
        self._parts.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._bytes >= BATCH_BYTES or self._rows >= BATCH_ROWS:
            self.flush(None)

    def flush(self, last_offset: int | None) -> None:
        """Writes what there is, as a batch that covers the offsets up to `last_offset`, default its last row's."""
        if not self._parts:
            return
        [whole] = pa.Table.from_batches(self._parts).combine_chunks().to_batches()
        self._parts, self._rows, self._bytes = [], 0, 0
        offsets = whole.column(0).to_numpy()
        times = whole.column(1).view(pa.int64()).to_numpy()
        last = int(offsets[-1]) if last_offset is None else last_offset
        key, value, headers = (_unless_null(whole.column(i)) for i in (2, 3, 4))
        if self._options is None:
            self._rewrite.add(key, value, headers, times, offsets, last, self._flags)
            return
        message = message_of(whole, self._options)
        bounds = (int(times.min()), int(times.max()))
        self._rewrite.add_message(message, bounds, headers is not None, offsets, last, self._flags)


def _unless_null(array: pa.Array) -> pa.Array | None:
    return None if array.null_count == len(array) else array
