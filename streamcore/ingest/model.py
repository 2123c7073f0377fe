"""What the parts of the ingest exchange: options, blocks, rows, bad rows, a report."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from streamcore.errors import StreamcoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

FORMATS = ("lines", "csv", "jsonl", "parquet", "arrow")

_ENDINGS = {
    "csv": "csv",
    "tsv": "csv",
    "json": "jsonl",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "pq": "parquet",
    "arrow": "arrow",
    "arrows": "arrow",
    "feather": "arrow",
    "ipc": "arrow",
}
_COMPRESSED = {"gz", "bz2", "zst", "lz4"}


class IngestError(StreamcoreError):
    """A file that cannot be ingested: it changed since the last run, lacks a field, or holds bad rows."""


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How to read a file, and what of it becomes key, timestamp and value.

    `key`, `timestamp` and `value` name fields (columns; for JSON also a path such as `user.id`; for lines the number
    of a word, from 1). `key_regex` and `timestamp_regex` find them in lines instead, by their first group.
    `timestamp_format` is a strptime format (with `%f` for fractions of a second), or `s`, `ms`, `us`, `ns` for numbers
    since 1970; without it common forms are recognised. Times without a zone are UTC.
    """

    format: str | None = None
    key: str | None = None
    key_regex: str | None = None
    timestamp: str | None = None
    timestamp_regex: str | None = None
    timestamp_format: str | None = None
    value: str | None = None
    typed: bool = False
    columns: tuple[tuple[str, str], ...] = ()  # types that override the inferred ones
    delimiter: str | None = None
    header: bool = True
    newlines_in_values: bool = False
    null_values: tuple[str, ...] = ("",)
    infer_rows: int | None = None
    partitions: int = 1
    force: bool = False
    stop_on_error: bool = False
    block_bytes: int = 16 << 20

    def meaning(self) -> dict[str, Any]:
        """The options that decide what the records are, as kept beside the progress of a file."""
        other = {"force", "stop_on_error", "block_bytes", "infer_rows", "partitions", "typed"}
        return {name: value for name, value in asdict(self).items() if name not in other}


def format_of(path: str) -> str:
    """The format that a file's name says, `lines` where it says nothing."""
    endings = path.lower().rsplit("/", 1)[-1].split(".")[1:]
    while endings and endings[-1] in _COMPRESSED:
        endings.pop()
    return _ENDINGS.get(endings[-1], "lines") if endings else "lines"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out: its `line` (from 1; in formats without lines the number of the row), why, its text."""

    path: str
    line: int
    message: str
    text: bytes

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a file: whole lines as bytes, or a table; positions are bytes or rows from the start of the file.

    `digest` is of the file up to `end`; `unterminated` says that its last line has no end.
    """

    start: int
    end: int
    first_line: int
    data: bytes | pa.Table
    digest: str = ""
    unterminated: bool = False


@dataclass(slots=True)
class Rows:
    """The records of a block: arrays of one length (`values` binary or struct), and the rows that were bad."""

    values: pa.Array
    keys: pa.Array | None = None
    timestamps: pa.Array | None = None
    bad: list[BadRow] = field(default_factory=list)


class Reader(Protocol):
    """Turns blocks of one format into rows."""

    max_record_bytes: int
    """What the topic takes: larger keys and values, together, are bad rows of a plain topic."""

    def schema(self, sample: Block) -> pa.Schema | None:
        """The value's schema for a typed topic, from a sample; None for a plain topic."""

    def use_schema(self, schema: pa.Schema) -> None:
        """Make values of this schema from now on: that of the topic."""

    def read(self, block: Block) -> Rows:
        """The rows of a block."""


@dataclass(slots=True)
class IngestReport:
    """What one file's ingest did. `status` is `ingested`, `resumed`, `extended` or `unchanged`."""

    path: str
    topic: str
    format: str
    status: str = "ingested"
    rows: int = 0
    bytes: int = 0
    bad_count: int = 0
    bad: list[BadRow] = field(default_factory=list)  # the first ones
    schema: pa.Schema | None = None
    seconds: float = 0.0


def named_group(pattern: str, name: str) -> str:
    """`pattern` with its first capturing group named `name`, or as a whole where it has none, for RE2."""
    try:
        groups = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    if groups.groupindex:
        return pattern
    if groups.groups == 0:
        return f"(?P<{name}>{pattern})"
    place = _first_group(pattern)
    return f"{pattern[:place]}(?P<{name}>{pattern[place + 1 :]}"


def _first_group(pattern: str) -> int:
    """Where the first capturing `(` of a valid expression is."""
    place, in_class = 0, False
    while place < len(pattern):
        character = pattern[place]
        if character == "\\":
            place += 1
        elif character == "[":
            in_class = True
        elif character == "]":
            in_class = False
        elif character == "(" and not in_class and pattern[place + 1 : place + 2] != "?":
            return place
        place += 1
    raise ValueError(f"{pattern!r} has no group")


def missing_field(name: str, known: Sequence[str], path: str) -> IngestError:
    """The error for a field that a file does not have."""
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return IngestError(f"{path} has no field {name!r}{hint} (fields: {', '.join(known) or 'none'})")
