"""SQL over topics: DuckDB reads the log in place, and reads only what a query asks for.

Each topic is a table named as the topic, with the columns `partition`, `offset`, `timestamp`, `key`, `value` and
`headers`; a typed topic's `value` is a struct, so `value.magnitude` is a column. What is pushed down, and how:

columns
    DuckDB asks a `TopicDataset` for the columns it needs and a `Scan` exports those alone. DuckDB does not look into
    structs, so a typed topic is offered with its fields side by side and a view builds `value` from the fields that
    the query mentions (found in DuckDB's own syntax tree). A query that uses `value` as a whole gets all of them.
bounds on partition, offset and timestamp
    DuckDB hands these over as a pyarrow `Expression`, which has no public structure. So the question is turned round:
    every segment is described by what is certain about its rows, and Arrow's own simplifier says for which segments
    the expression can still be true. The same question, bisected, gives the smallest range of offsets and timestamps,
    which the scan then applies exactly. What is not decided by the bounds is filtered row by row, by pyarrow.
conditions on key, value and fields
    stay in DuckDB, whose filters are faster than pyarrow's; the view hides these columns from its filter pushdown.

Checksums are of whole batches. So the first read of a batch in a process passes over all of its bytes, once; after
that a query touches the columns that it uses and nothing else. `QueryMetrics` counts both.

A query sees every topic up to its end at the moment of the query.

Where to read on: `engine` runs a statement; `sessions` keeps connections to DuckDB; `syntax` finds fields in it;
`tables` makes topics tables; `dataset` answers DuckDB's scans; `pruning` finds out what a filter leaves to read.
"""

from __future__ import annotations

from streamcore.sql.engine import QueryMetrics, query

__all__ = ["QueryMetrics", "query"]
