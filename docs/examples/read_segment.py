"""Reads the records of a plain, uncompressed topic without streamcore and without an Arrow library.

It follows docs/format.md, section by section, and uses `struct` alone:

    python docs/examples/read_segment.py STORE/topics/<topic>-<id>/<partition>
    python docs/examples/read_segment.py STORE/topics/<topic>-<id>/<partition>/00000000000000000000.arrows

One JSON object per record goes to stdout. A file that does not follow the format ends it with a `FormatError`.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CONTINUATION = 0xFFFFFFFF
HEADER = struct.Struct("<4sHHIIqqqiiqqqqhHiiIqqq8s")  # the 128 bytes of a `Header`
FLAG_CONTROL = 1 << 1
FLAG_CODEC = 3 << 3
FLAG_SPARSE = 1 << 7
FLAGS_KNOWN = (1 << 8) - 1
NODES_AT, ROWS_AT, BODY_LENGTH_AT = 104, 64, 24
NODES, BUFFERS = 8, 19  # of a plain topic: offset, timestamp, key, value, headers, struct, its key, its value


class FormatError(Exception):
    """The bytes are not what docs/format.md says."""


class Header(NamedTuple):
    """A batch header."""

    magic: bytes
    version: int
    flags: int
    header_crc: int
    body_crc: int
    total_size: int
    base_offset: int
    last_offset: int
    record_count: int
    metadata_size: int
    min_timestamp: int
    max_timestamp: int
    durable_offset: int
    producer_id: int
    producer_epoch: int
    control: int
    base_sequence: int
    leader_epoch: int
    schema_version: int
    unstable_count: int
    start_offset: int
    transaction_offset: int
    reserved: bytes


class Row(NamedTuple):
    """A record."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


# ---- checksums ----


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    """CRC-32C (Castagnoli), of `data` behind what `crc` covers already."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# ---- columns: an Arrow buffer is an (offset, length) in the body ----


def _is_valid(validity: memoryview, row: int) -> bool:
    return len(validity) == 0 or bool(validity[row >> 3] >> (row & 7) & 1)


def _binary(buffers: list[memoryview], rows: int) -> list[bytes | None]:
    validity, ends, data = buffers
    bounds = struct.unpack_from(f"<{rows + 1}i", ends) if rows else ()
    return [bytes(data[bounds[i] : bounds[i + 1]]) if _is_valid(validity, i) else None for i in range(rows)]


def _headers(buffers: list[memoryview], rows: int, pairs: int) -> list[tuple[tuple[str, bytes | None], ...]]:
    """List validity and offsets, struct validity, then three buffers of `key` and three of `value`."""
    names, values = _binary(buffers[3:6], pairs), _binary(buffers[6:9], pairs)
    bounds = struct.unpack_from(f"<{rows + 1}i", buffers[1]) if rows else ()
    return [tuple((names[j].decode(), values[j]) for j in range(bounds[i], bounds[i + 1])) for i in range(rows)]


# ---- a batch ----


def _read_batch(data: memoryview, position: int) -> tuple[Header, list[Row]]:
    """The message at `position`: (its header, its records)."""
    (metadata_size,) = struct.unpack_from("<I", data, position + 4)
    body_at = position + 8 + metadata_size
    if (8 + metadata_size) % 64 or body_at + HEADER.size > len(data):
        raise FormatError(f"no batch at {position}")
    raw = data[body_at : body_at + HEADER.size]
    header = Header._make(HEADER.unpack(raw))
    if header.magic != b"SCB1" or crc32c(raw[12:], crc32c(raw[:8])) != header.header_crc:
        raise FormatError(f"the batch header at {position} is damaged")
    if header.version != 1 or header.flags & ~FLAGS_KNOWN:
        raise FormatError(f"the batch at {position} has version {header.version} and flags {header.flags:#x}")
    if header.metadata_size != metadata_size or position + header.total_size > len(data):
        raise FormatError(f"the batch at {position} contradicts itself")
    metadata, body = data[position + 8 : body_at], data[body_at : position + header.total_size]
    if crc32c(body[HEADER.size :], crc32c(metadata)) != header.body_crc:
        raise FormatError(f"the batch at {position} does not match its checksum")
    if header.flags & FLAG_CODEC:
        raise FormatError(f"the batch at {position} is compressed: this example does not read those")
    rows = [] if header.flags & FLAG_CONTROL else _read_rows(metadata, body, header.record_count)
    covered = range(header.base_offset, header.last_offset + 1)
    offsets = [row.offset for row in rows]
    dense = offsets == list(covered) or header.flags & FLAG_CONTROL
    sparse = header.flags & FLAG_SPARSE and offsets == sorted(set(offsets) & set(covered))
    if not dense and not sparse:
        raise FormatError(f"the batch at {position} has other offsets than its header")
    return header, rows


def _read_rows(metadata: memoryview, body: memoryview, records: int) -> list[Row]:
    """The flatbuffer by its fixed places, then the buffers that it names."""
    count = struct.unpack_from("<I", metadata, NODES_AT - 4)[0]
    buffers_at = NODES_AT + 16 * count + 8
    buffer_count = struct.unpack_from("<I", metadata, buffers_at - 4)[0]
    if (count, buffer_count) != (NODES, BUFFERS):
        raise FormatError("this is not a plain topic")
    (rows,) = struct.unpack_from("<q", metadata, ROWS_AT)
    (body_length,) = struct.unpack_from("<q", metadata, BODY_LENGTH_AT)
    if rows != records or body_length != len(body):
        raise FormatError("metadata and header of a batch differ")
    lengths = [struct.unpack_from("<q", metadata, NODES_AT + 16 * i)[0] for i in range(count)]
    places = [struct.unpack_from("<qq", metadata, buffers_at + 16 * i) for i in range(buffer_count)]
    buffers = [body[offset : offset + length] for offset, length in places]
    offsets = struct.unpack_from(f"<{rows}q", buffers[1])
    timestamps = struct.unpack_from(f"<{rows}q", buffers[3])
    keys, values = _binary(buffers[4:7], rows), _binary(buffers[7:10], rows)
    headers = _headers(buffers[10:19], rows, lengths[5])
    return [Row(*row) for row in zip(offsets, timestamps, keys, values, headers, strict=True)]


# ---- a segment, a partition ----


def read_segment(path: Path) -> Iterator[Row]:
    """The records of one segment file, oldest first."""
    for _, rows in read_batches(path):
        yield from rows


def read_batches(path: Path) -> Iterator[tuple[Header, list[Row]]]:
    """The batches of one segment file: (header, records)."""
    data = memoryview(path.read_bytes())
    continuation, size = struct.unpack_from("<II", data)
    if continuation != CONTINUATION or (8 + size) % 64 or 8 + size > len(data):
        raise FormatError(f"{path} does not begin with a schema message")
    position = 8 + size
    while position + 8 <= len(data):
        continuation, size = struct.unpack_from("<II", data, position)
        if size == 0 and continuation in (0, CONTINUATION):
            return  # zeros: the end so far; FFFFFFFF 00000000: the end of a sealed segment
        if continuation != CONTINUATION:
            raise FormatError(f"no Arrow message at {position} of {path}")
        header, rows = _read_batch(data, position)
        yield header, rows
        position += header.total_size


def read_partition(folder: Path) -> Iterator[Row]:
    """The records of one partition, oldest first. Batches cover all offsets, but records may be missing in them."""
    batches = [(path, *batch) for path in sorted(folder.glob("[0-9]" * 20 + ".arrows")) for batch in read_batches(path)]
    start = max((header.start_offset for _, header, _ in batches), default=0)
    end = None
    for path, header, rows in batches:
        if end is not None and header.base_offset != end and header.last_offset >= start:
            raise FormatError(f"records are missing before offset {header.base_offset} in {path}")
        end = header.last_offset + 1
        yield from (row for row in rows if row.offset >= start)


def _plain(value: object) -> object:
    """A value as JSON knows it: bytes as text, or {"base64": ...} where they are not UTF-8."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def main(path: Path) -> None:
    """Prints a partition, or one segment of it."""
    for row in read_partition(path) if path.is_dir() else read_segment(path):
        print(json.dumps({name: _plain(value) for name, value in row._asdict().items()}))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
