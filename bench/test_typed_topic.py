"""How fast is a typed topic: a 10-column table appended, and one column of it aggregated?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

import streamcore as sc
from bench import rows
from bench.contest import Contest, Stopwatch
from bench.peers import arrow_ipc
from bench.sizes import Sizes
from bench.sql_access import TableInMemory, over_store, over_table

PIECE_ROWS = 64 << 10
REPEATS = 3
FLAT = "select avg(magnitude) as a, max(magnitude) as m from quakes"
NESTED = 'select avg("value".magnitude) as a, max("value".magnitude) as m from quakes'


def test_append_typed(contest: Callable[..., Contest], size: Sizes) -> None:
    question = contest("typed topic: append a 10-column table")
    table = rows.typed_table(size.typed_rows)
    pieces = [table.slice(start, PIECE_ROWS) for start in range(0, table.num_rows, PIECE_ROWS)]

    def streamcore(folder: Path, watch: Stopwatch) -> float:
        store = sc.open(folder / "store")
        topic = store.create_topic("quakes", schema=rows.TYPED_SCHEMA)
        with watch:
            for piece in pieces:
                topic.append_table(piece)
        store.close()
        return float(table.num_rows)

    def pyarrow_stream(folder: Path, watch: Stopwatch) -> float:
        batches = [batch for piece in pieces for batch in piece.to_batches()]
        with watch:
            return arrow_ipc.write_stream(folder / "file", table.schema, batches)

    question.enter("streamcore", streamcore)
    question.enter("pyarrow stream", pyarrow_stream)
    question.run(size.rounds, memory_bytes=3 * table.nbytes)
    question.faster("≥ 2 × pyarrow's IPC stream writer", "streamcore", "pyarrow stream", 2)
    question.note(
        f"{table.num_rows:,} rows in pieces of {PIECE_ROWS:,}; streamcore stores offset and timestamp as well."
    )


def test_aggregate_one_column(contest: Callable[..., Contest], folder: Path, size: Sizes) -> None:
    question = contest("typed topic: aggregate one column")
    table = rows.typed_table(size.typed_rows)
    with sc.open(folder / "store") as store:
        topic = store.create_topic("quakes", schema=rows.TYPED_SCHEMA)
        for start in range(0, table.num_rows, PIECE_ROWS):
            topic.append_table(table.slice(start, PIECE_ROWS))
        flat = TableInMemory("quakes", table)
        nested = TableInMemory("quakes", arrow_ipc.copy_to_memory(topic.scan().to_arrow()))
        question.enter("streamcore", repeated(lambda: over_store(store, NESTED), table))
        question.enter("table in memory", repeated(lambda: flat.query(FLAT), table))
        question.enter("table in memory, new connection", repeated(lambda: over_table("quakes", table, FLAT), table))
        question.enter("table in memory, value as a struct", repeated(lambda: nested.query(NESTED), table))
        question.run(size.rounds)
        goal = "≥ 0.9 × DuckDB over the same table in memory, in a connection at hand"
        question.faster(goal, "streamcore", "table in memory", 0.9)
        count_bytes(question, topic, table)
        flat.close()
        nested.close()


def repeated(query: Callable[[], pa.Table], table: pa.Table) -> Callable[[Path, Stopwatch], float]:
    expected = over_table("quakes", table, FLAT).to_pylist()[0]["m"]

    def run(folder: Path, watch: Stopwatch) -> float:
        with watch:
            for _ in range(REPEATS):
                answer = query()
        assert answer.to_pylist()[0]["m"] == expected
        return float(REPEATS * table.num_rows)

    return run


def count_bytes(question: Contest, topic: sc.Topic, table: pa.Table) -> None:
    """How much of the file a scan of one column hands out; a goal of its own: that column's bytes and no more."""
    scan = topic.scan(columns=["value.magnitude"])
    scan.to_arrow()
    column_bytes = table.column("magnitude").nbytes
    question.fact("bytes of the column", column_bytes, "B")
    question.fact("bytes exported for it", scan.metrics.bytes_exported, "B")
    question.at_most("bytes exported ≤ 1.1 × bytes of the column", scan.metrics.bytes_exported / column_bytes, 1.1)
