"""Files into topics: lines, CSV, JSON lines, Parquet and Arrow files, in blocks, without a Python loop over rows.

    report = ingest(store, "access", "access.log", IngestOptions(key_regex=r"^(\\S+)"))

How a file goes through, and where to read on:

`source`    reads the file in blocks of whole lines (or record batches), hashes what it read, counts lines
`lines` `csv` `json_lines` `columnar`    turn a block into `Rows`: values, keys, timestamps and its bad rows
`times` `conversion`    text to timestamps and other types, whole columns at once, null for what does not fit
`journal`   remembers in the store how much of which file is in which topic, and finds the block of an interrupted run
`run`       puts these together

What is promised: a file is ingested once. Run again, it adds what was appended to the file since, or nothing; a file
whose ingested part has changed is refused. An interrupted run is continued, and the block that was in flight is not
lost and not doubled, whether or not it had reached the log (see `journal`).
"""

from __future__ import annotations

from streamcore.ingest.model import BadRow, IngestError, IngestOptions, IngestReport
from streamcore.ingest.run import ingest

__all__ = ["BadRow", "IngestError", "IngestOptions", "IngestReport", "ingest"]
