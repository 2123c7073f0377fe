"""One file into one topic: open, resume, read, append, note, report."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from streamcore.errors import TopicNotFoundError
from streamcore.ingest.columnar import ColumnarReader, ColumnarSource
from streamcore.ingest.delimited import CsvReader
from streamcore.ingest.journal import Journal, already_appended, ends_of, new_progress
from streamcore.ingest.json_lines import JsonReader
from streamcore.ingest.lines import LineReader
from streamcore.ingest.model import (
    FORMATS,
    BadRow,
    Block,
    IngestError,
    IngestOptions,
    IngestReport,
    Reader,
    Rows,
    format_of,
)
from streamcore.ingest.source import STDIN, LineSource, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamcore import Store, Topic

Source = LineSource | ColumnarSource

_READERS = min(4, os.cpu_count() or 1)
_SAMPLE_BYTES = 64 << 20
_ROW_BYTES = 256  # assumed, to read enough for `infer_rows`
_BAD_KEPT = 100
_TIMESTAMP = pa.timestamp("ms", tz="UTC")


def ingest(
    store: Store,
    topic: str,
    path: str | os.PathLike[str],
    options: IngestOptions | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    on_bad: Callable[[BadRow], None] | None = None,
) -> IngestReport:
    """Append the records of a file (`-` is stdin) to a topic, which is made if it is not there; see the package.

    `progress(done, total)` is called after each block, in bytes or rows, with total None where it is not known;
    `on_bad` for every bad row. Raises `IngestError` for a file that cannot be ingested, `OSError` where it cannot be
    read, and whatever the append raises.
    """
    began = time.monotonic()
    options = options or IngestOptions()
    path = os.fspath(path)
    form = options.format or ("lines" if path == STDIN else format_of(path))
    if form not in FORMATS:
        raise ValueError(f"{form!r} is not a format: use one of {', '.join(FORMATS)}")
    options = dataclasses.replace(options, format=form)
    existing = _existing(store, topic)
    if existing is not None:
        _check_kind(existing, options)
        options = dataclasses.replace(options, typed=existing.schema is not None)
    report = IngestReport(path, topic, form)
    source = _source(path, form, options)
    try:
        run = _Run(store, topic, existing, source, options, report)
        run.to_end(progress, on_bad)
    finally:
        source.close()
    report.seconds = time.monotonic() - began
    return report


def _existing(store: Store, topic: str) -> Topic | None:
    try:
        return store.topic(topic)
    except TopicNotFoundError:
        return None


def _check_kind(topic: Topic, options: IngestOptions) -> None:
    if options.typed and topic.schema is None:
        raise IngestError(f"topic {topic.name!r} is plain: it cannot take typed values; use another topic for --typed")


def _source(path: str, form: str, options: IngestOptions) -> Source:
    if form in ("parquet", "arrow"):
        return ColumnarSource(path, form)
    return LineSource(path, options.block_bytes, newlines_in_values=options.newlines_in_values)


class _Run:
    """The ingest of one file. The topic, where it is not there yet, is made when there is something to append."""

    def __init__(
        self, store: Store, name: str, topic: Topic | None, source: Source, options: IngestOptions, report: IngestReport
    ) -> None:
        self._store = store
        self._name = name
        self._topic = topic
        self._options = options
        self._source = source
        self._report = report
        self._held: Block | None = None
        head = self._sample()
        self._reader = _reader(source, options, head)
        if topic is not None:
            self._reader.max_record_bytes = topic.config.max_record_bytes
            report.schema = topic.schema
        elif options.typed:
            report.schema = self._reader.schema(head)
        if report.schema is not None:
            self._reader.use_schema(report.schema)
        self._journal: Journal | None = None
        self._progress = new_progress(options)
        self._start_digest = source.digest if source.path != STDIN else ""

    def _sample(self) -> Block:
        """What types, and the names of columns, are told from: the start of the file, on stdin its first block."""
        source, options = self._source, self._options
        if isinstance(source, ColumnarSource):
            return Block(0, 0, 1, b"")
        if source.path == STDIN:
            self._held = next(source.blocks(), Block(0, 0, 1, b""))
            return self._held
        size = _SAMPLE_BYTES if options.typed and self._topic is None else 1 << 20
        if options.infer_rows is not None:
            size = options.infer_rows * _ROW_BYTES
        return sample(source.path, size, newlines_in_values=options.newlines_in_values)

    def to_end(
        self, progress: Callable[[int, int | None], None] | None, on_bad: Callable[[BadRow], None] | None
    ) -> None:
        """Ingest what is not ingested yet."""
        unsure = self._resume()
        for block, rows in self._read_ahead():
            self._report_bad(rows, on_bad)
            unsure = self._append(block, rows, unsure=unsure)
            if progress is not None:
                progress(block.end, self._source.size)
        self._finish()

    def _resume(self) -> bool:
        """Go to where an earlier run came; whether the block it was at may be in the topic."""
        if self._topic is None or self._source.path == STDIN:
            return False
        self._journal = Journal(self._store, self._topic, self._source.path)
        if self._options.force:
            self._journal.forget()
            return False
        noted = self._journal.load(self._options)
        if noted is None:
            return False
        self._source.skip(noted.position, noted.digest, unterminated=noted.unterminated)
        self._progress = noted
        self._report.status = "unchanged" if noted.complete else "resumed"
        return not noted.complete and noted.pending is not None

    def _blocks(self) -> Iterator[Block]:
        if self._held is not None and self._held.data:
            yield self._held
        pending = None if self._progress.complete else self._progress.pending
        yield from self._source.blocks(pending)

    def _read_ahead(self) -> Iterator[tuple[Block, Rows]]:
        """The blocks and their rows, in order. While one is appended, other threads make rows of the next ones.

        The first one is read alone: what it shows (the form of its times) holds for the others.
        """
        blocks = self._blocks()
        for block in itertools.islice(blocks, 1):
            yield block, self._read(block)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="streamcore-ingest") as pool:
            ahead: collections.deque[tuple[Block, Future[Rows]]] = collections.deque()
            for block in blocks:
                ahead.append((block, pool.submit(self._read, block)))
                if len(ahead) > _READERS:
                    done, rows = ahead.popleft()
                    yield done, rows.result()
            for done, rows in ahead:
                yield done, rows.result()

    def _read(self, block: Block) -> Rows:
        """The rows of a block, each with a timestamp."""
        rows = self._reader.read(block)
        noted = self._progress
        interrupted = not noted.complete and noted.pending == block.end
        now = noted.now_ms if interrupted else time.time_ns() // 1_000_000
        if rows.timestamps is None:
            rows.timestamps = pa.repeat(pa.scalar(now, _TIMESTAMP), len(rows.values))
        return rows

    def _report_bad(self, rows: Rows, on_bad: Callable[[BadRow], None] | None) -> None:
        report = self._report
        report.bad_count += len(rows.bad)
        report.bad += rows.bad[: _BAD_KEPT - len(report.bad)]
        if on_bad is not None:
            for bad in rows.bad:
                on_bad(bad)
        if rows.bad and self._options.stop_on_error:
            raise IngestError(f"{rows.bad[0]} (stopped before its block; {report.rows:,} rows were ingested)")

    def _open_topic(self) -> Topic:
        if self._topic is None:
            options = self._options
            schema = self._report.schema
            self._topic = self._store.create_topic(self._name, partitions=options.partitions, schema=schema)
            if self._source.path != STDIN:
                self._journal = Journal(self._store, self._topic, self._source.path)
        return self._topic

    def _append(self, block: Block, rows: Rows, *, unsure: bool) -> bool:
        """Append a block, having noted that it is being appended; whether the next one may be there already."""
        topic, noted = self._open_topic(), self._progress
        if noted.complete:
            self._report.status = "extended"
        missing = rows
        if not unsure:
            self._note(topic, block, rows)
        elif (done := already_appended(topic, rows, noted.ends)) is not None:
            missing = _those(rows, pc.invert(done))
        if len(missing.values):
            topic.append_table(_table(missing), partition=self._partition(topic, missing, block))
        topic.flush()
        noted.position, noted.digest, noted.pending = block.end, block.digest, None
        noted.unterminated = block.unterminated
        noted.rows += len(rows.values)
        self._report.rows += len(rows.values)
        self._report.bytes += block.end - block.start
        # Found whole: so may be the next one, where the drive lost the later notes together with its power.
        return unsure and not len(missing.values) and len(rows.values) > 0

    def _note(self, topic: Topic, block: Block, rows: Rows) -> None:
        """Note what is in the topic, and that this block is about to be."""
        if self._journal is None:
            return
        noted = self._progress
        if noted.position == 0:
            noted.digest = self._start_digest
        noted.complete, noted.pending, noted.ends = False, block.end, ends_of(topic)
        noted.now_ms = rows.timestamps[0].value if rows.timestamps is not None and len(rows.timestamps) else 0
        self._journal.save(noted)

    def _partition(self, topic: Topic, rows: Rows, block: Block) -> int | None:
        """Rows without keys go to one partition, the next one for each block; keys decide themselves."""
        if rows.keys is not None:
            return None
        return (block.start // max(1, self._options.block_bytes)) % len(topic.partitions)

    def _finish(self) -> None:
        self._open_topic()
        if self._journal is None or self._report.status == "unchanged":
            return
        self._progress.complete, self._progress.pending, self._progress.ends = True, None, {}
        if self._progress.position == 0:
            self._progress.digest = self._start_digest
        self._journal.save(self._progress)


def _reader(source: Source, options: IngestOptions, head: Block) -> Reader:
    if isinstance(source, ColumnarSource):
        return ColumnarReader(source.path, options, source.schema)
    if options.format == "csv":
        return CsvReader(source.path, options, head)
    if options.format == "jsonl":
        return JsonReader(source.path, options, head)
    return LineReader(source.path, options)


def _table(rows: Rows) -> pa.Table:
    columns = {"value": rows.values, "timestamp": rows.timestamps}
    if rows.keys is not None:
        columns["key"] = rows.keys
    return pa.table(columns)


def _those(rows: Rows, mask: pa.Array) -> Rows:
    return Rows(
        rows.values.filter(mask),
        None if rows.keys is None else rows.keys.filter(mask),
        None if rows.timestamps is None else rows.timestamps.filter(mask),
        rows.bad,
    )
