"""Files in blocks of whole lines: read once, in order, in bounded memory, hashed and counted on the way."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from streamcore.ingest.model import Block, IngestError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINE_BYTES_MAX = 1 << 30
STDIN = "-"


class LineSource:
    """A text file, compressed or not (by its ending), or stdin (`-`), as blocks that end where lines end.

    `position`, `lines` and `digest` say what has been handed out or skipped so far, in (uncompressed) bytes.
    `size` is None where it is not known in advance.
    """

    def __init__(self, path: str, block_bytes: int, *, newlines_in_values: bool = False) -> None:
        self.path = path
        self.position = 0
        self.lines = 0
        self._block_bytes = block_bytes
        self._quoted = newlines_in_values
        self._hash = xxhash.xxh3_128()
        self._carry = b""
        self._file: Any = sys.stdin.buffer if path == STDIN else open_input(path)
        plain = path != STDIN and not isinstance(self._file, pa.CompressedInputStream)
        self.size = Path(path).stat().st_size if plain else None

    @property
    def digest(self) -> str:
        """The XXH3-128 of everything up to `position`."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file; stdin stays open."""
        if self.path != STDIN:
            self._file.close()

    def skip(self, position: int, digest: str, *, unterminated: bool) -> None:
        """Pass over what an earlier run ingested, checking that it still is what it was then."""
        while self.position < position:
            data = self._file.read(min(self._block_bytes, position - self.position))
            if not data:
                raise IngestError(
                    f"{self.path} is shorter than what was ingested of it ({position} bytes): use --force to ingest it"
                    " again from the start"
                )
            self._passed(data)
        if self.digest != digest:
            raise IngestError(
                f"the first {position} bytes of {self.path} have changed since they were ingested: use --force to"
                " ingest the file again from the start"
            )
        if unterminated:
            self._end_of_line()

    def _end_of_line(self) -> None:
        """Pass the end of a last line that had none when it was ingested."""
        data = self._file.read(2)
        end = next((end for end in (b"\r\n", b"\n") if data.startswith(end)), b"")
        if data and not end:
            raise IngestError(
                f"line {self.lines + 1} of {self.path} was not complete when it was ingested, and has grown since: use"
                " --force to ingest the file again from the start"
            )
        self._passed(data[: len(end)])
        self._carry = data[len(end) :]

    def blocks(self, first_end: int | None = None) -> Iterator[Block]:
        """The rest of the file. `first_end` is where the first block ends, if that is decided already."""
        end = first_end
        while (data := self._whole_lines(end)) is not None:
            start, first_line = self.position, self.lines + 1
            self._passed(data)
            yield Block(start, self.position, first_line, data, self.digest, not data.endswith(b"\n"))
            end = None

    def _passed(self, data: bytes) -> None:
        self._hash.update(data)
        self.position += len(data)
        self.lines += data.count(b"\n")

    def _whole_lines(self, end: int | None) -> bytes | None:
        """The next block's bytes: to `end`, or as many whole lines as fit; None at the end of the file."""
        want = self._block_bytes if end is None else end - self.position
        while True:
            data = self._fill(want)
            at_end = len(data) < want
            cut = len(data) if at_end or end is not None else _end_of_lines(data, quoted=self._quoted)
            if cut or at_end:
                self._carry = data[cut:]
                return data[:cut] or None
            want *= 2
            if want > _LINE_BYTES_MAX:
                raise IngestError(f"{self.path}: line {self.lines + 1} is longer than {_LINE_BYTES_MAX} bytes")

    def _fill(self, want: int) -> bytes:
        pieces, held = [self._carry], len(self._carry)
        self._carry = b""
        while held < want:
            piece = self._file.read(want - held)
            if not piece:
                break
            pieces.append(piece)
            held += len(piece)
        data = b"".join(pieces)
        if held > want:
            data, self._carry = data[:want], data[want:]
        return data


def open_input(path: str) -> Any:
    """A file opened for reading, decompressed as its ending says."""
    return pa.input_stream(path, compression="detect")


def sample(path: str, size: int, *, newlines_in_values: bool = False) -> Block:
    """The first whole lines of a file, about `size` bytes, to infer types from."""
    source = LineSource(path, size, newlines_in_values=newlines_in_values)
    try:
        return next(source.blocks(), Block(0, 0, 1, b""))
    finally:
        source.close()


def _end_of_lines(data: bytes, *, quoted: bool) -> int:
    """Where the last line of `data` that is whole ends; with `quoted`, an end of line within quotes is none."""
    cut = data.rfind(b"\n") + 1
    if not quoted:
        return cut
    while cut and data.count(b'"', 0, cut) % 2:
        cut = data.rfind(b"\n", 0, cut - 1) + 1
    return cut


def split_lines(data: bytes) -> pa.Array:
    """The lines of `data` as a binary array, without their ends (`\\n` or `\\r\\n`)."""
    if not data:
        return pa.array([], pa.binary())
    body = data[:-1] if data.endswith(b"\n") else data
    offsets = pa.py_buffer(struct.pack("=ii", 0, len(body)))
    whole = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(body)])
    lines = pc.split_pattern(whole, b"\n").flatten()
    if b"\r" in data:
        lines = pc.replace_substring_regex(lines, r"\r$", "")
    return lines
