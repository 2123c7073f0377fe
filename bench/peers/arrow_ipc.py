"""pyarrow's own IPC: the stream writer to a file, and a file opened from a memory map."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa


def write_stream(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes the batches as an IPC stream; returns the rows."""
    rows = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def write_file(path: Path, table: pa.Table) -> None:
    """Writes an IPC file with the table's own batches."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch)


def open_mapped(path: Path) -> pa.Table:
    """The table of an IPC file, its buffers in the mapped file."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def copy_to_memory(table: pa.Table) -> pa.Table:
    """The same batches in memory of their own, with nothing mapped."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch)
    return pa.ipc.open_stream(sink.getvalue()).read_all()
