"""How fast is an SQL aggregate over a topic through DuckDB, against the same query over a pyarrow table in memory?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from bench.contest import Contest, Stopwatch
from bench.peers import arrow_ipc
from bench.sizes import Sizes
from bench.sql_access import TableInMemory, over_store, over_table
from bench.test_scan_arrow import filled_store

COUNTED = 'select count(*) as n, max("offset") as last, min("timestamp") as first'
QUERIES = {
    "all columns": f'{COUNTED}, sum(octet_length("value")) as bytes from clicks',
    "no value": f"{COUNTED} from clicks",
}


@pytest.mark.parametrize("name", QUERIES)
def test_sql_aggregate(contest: Callable[..., Contest], folder: Path, size: Sizes, name: str) -> None:
    question = contest(f"SQL aggregate over a topic through DuckDB ({name})")
    store, topic = filled_store(folder / "store", size.batches)
    table = arrow_ipc.copy_to_memory(topic.scan().to_arrow())
    in_memory = TableInMemory("clicks", table)
    text = QUERIES[name]
    answers: list[pa.Table] = []

    def contestant(query: Callable[[], pa.Table], rows: int) -> Callable[[Path, Stopwatch], float]:
        def run(_: Path, watch: Stopwatch) -> float:
            with watch:
                answers.append(query())
            return rows

        return run

    question.enter("streamcore", contestant(lambda: over_store(store, text), table.num_rows))
    question.enter("table in memory", contestant(lambda: in_memory.query(text), table.num_rows))
    question.enter(
        "table in memory, new connection", contestant(lambda: over_table("clicks", table, text), table.num_rows)
    )
    question.run(size.rounds)
    assert all(answer.to_pylist() == answers[0].to_pylist() for answer in answers)
    goal = "≥ 0.9 × the same query over a table in memory"
    question.faster(f"{goal}, in a connection at hand", "streamcore", "table in memory", 0.9)
    question.note(f"{table.num_rows:,} rows; the table in memory has the batches of the log.")
    in_memory.close()
    store.close()
