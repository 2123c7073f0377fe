"""Plain lines: each is a value; key and timestamp are found in it by regular expressions or word numbers."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from streamcore.ingest.conversion import text_of
from streamcore.ingest.model import Block, IngestError, IngestOptions, Rows, named_group
from streamcore.ingest.source import split_lines
from streamcore.ingest.values import Clock, Misfits, too_large, without


class LineReader:
    """Reads blocks of lines for a plain topic. A line without a readable time is bad; one without a key has none."""

    max_record_bytes = 1 << 30

    def __init__(self, path: str, options: IngestOptions) -> None:
        self._path = path
        self._key = _pattern(options.key_regex, options.key, "key")
        self._time = _pattern(options.timestamp_regex, options.timestamp, "time")
        self._clock = Clock(path, options.timestamp_format)
        if options.value is not None:
            raise IngestError("--value needs fields, which lines do not have")

    def schema(self, sample: Block) -> pa.Schema | None:
        """Lines have no types."""
        raise IngestError(f"{self._path} is read as lines, which have no columns for a typed topic (see --format)")

    def use_schema(self, schema: pa.Schema) -> None:
        """Lines have no types."""
        raise IngestError(f"lines cannot go into a typed topic: {self._path} (see --format)")

    def read(self, block: Block) -> Rows:
        """The block's lines, with keys and timestamps."""
        assert isinstance(block.data, bytes)
        lines = split_lines(block.data)
        keys = None if self._key is None else pc.extract_regex(lines, self._key).field(0)
        if keys is not None:
            keys = pc.if_else(pc.greater(pc.binary_length(keys), 0), keys, pa.scalar(None, pa.binary()))
        misfits, times = Misfits(), None
        if self._time is not None:
            times = self._clock.read(text_of(pc.extract_regex(lines, self._time).field(0)))
            misfits.add("no timestamp", times.is_null())
        too_large(lines, keys, self.max_record_bytes, misfits)
        numbers = range(block.first_line, block.first_line + len(lines))
        return without(Rows(lines, keys, times), misfits, self._path, numbers, lines)


def _pattern(regex: str | None, word: str | None, name: str) -> str | None:
    """The expression that finds a field: the given one, or one for the word of that number."""
    if regex is not None:
        return named_group(regex, name)
    if word is None:
        return None
    if not word.isdigit() or int(word) < 1:
        raise IngestError(f"in lines a field is the number of a word, from 1, not {word!r}: or use --{name}-regex")
    return rf"^\s*(?:\S+\s+){{{int(word) - 1}}}(?P<{name}>\S+)"
