"""Appends records to a plain topic without streamcore and without an Arrow library.

It follows docs/format.md, section by section, and uses the standard library alone:

    printf 'one\\ntwo\\n' | python docs/examples/append_records.py STORE TOPIC PARTITION

Each line becomes a record without a key and headers. The store must be closed: it is locked meanwhile, and who opens it
next finds the longer log. Appends are not synced, and segments neither sealed nor rolled.
"""

from __future__ import annotations

import fcntl
import re
import sqlite3
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HEADER = struct.Struct("<4sHHIIqqqiiqqqqhHiiI32s")
CONTINUATION = 0xFFFFFFFF
NODES, BUFFERS = 8, 19  # of a plain topic
RESERVED = 64 << 10  # bytes of zeros behind the end, at least


class FormatError(Exception):
    """The files are not what docs/format.md says, or nothing that this example appends to."""


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C (Castagnoli), of `data` behind what `crc` covers already."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 64)


# ---- a batch ----


def _flatbuffer(body_size: int, rows: int, nodes: list[tuple[int, int]], buffers: list[tuple[int, int]]) -> bytes:
    """The Message of a record batch, at its fixed places."""
    buffers_at = 104 + 16 * len(nodes) + 4
    counts_at = buffers_at + 4 + 16 * len(buffers) + 4
    data = bytearray(-(-(counts_at + 4 + 8) // 64) * 64 - 8)
    struct.pack_into("<I6H", data, 0, 16, 12, 20, 16, 18, 4, 8)
    struct.pack_into("<iIqHB", data, 16, 12, 36, body_size, 4, 3)
    struct.pack_into("<7H", data, 36, 14, 28, 8, 4, 16, 0, 0)
    struct.pack_into("<iIqIII", data, 56, 20, 40, rows, buffers_at - 72, 16, counts_at - 80)
    struct.pack_into("<4HiBB", data, 84, 8, 6, 4, 5, 8, 0, 0)
    struct.pack_into("<I", data, 100, len(nodes))
    for i, node in enumerate(nodes):
        struct.pack_into("<qq", data, 104 + 16 * i, *node)
    struct.pack_into("<I", data, buffers_at, len(buffers))
    for i, buffer in enumerate(buffers):
        struct.pack_into("<qq", data, buffers_at + 4 + 16 * i, *buffer)
    return bytes(data)


def make_batch(values: Sequence[bytes | None], base: int, timestamp_ms: int, durable: int, version: int) -> bytes:
    """The whole message: opening, flatbuffer, batch header, buffers. The records have one time, no keys, no headers."""
    rows = len(values)
    ends = [0]
    for value in values:
        ends.append(ends[-1] + len(value or b""))
    nulls = sum(value is None for value in values)
    valid = sum((value is not None) << row for row, value in enumerate(values))
    parts = [
        b"",
        struct.pack(f"<{rows}q", *range(base, base + rows)),
        b"",
        struct.pack(f"<{rows}q", *[timestamp_ms] * rows),
        valid.to_bytes((rows + 7) // 8, "little") if nulls else b"",
        struct.pack(f"<{rows + 1}i", *ends),
        b"".join(value for value in values if value),
    ]
    body, places = b"", []
    for part in parts:
        places.append((HEADER.size + len(body), len(part)))
        body += _padded(part)
    bits, offsets = (rows + 7) // 8, 4 * (rows + 1)
    zeros = HEADER.size + len(body)  # one run, for all buffers of key and headers
    key = [(zeros, bits), (zeros, offsets), (zeros, 0)]
    headers = [(zeros, size) for size in (bits, offsets, 0, 0, 4, 0, 0, 4, 0)]
    body += _padded(bytes(offsets))
    nodes = [(rows, 0), (rows, 0), (rows, rows), (rows, nulls), (rows, rows), (0, 0), (0, 0), (0, 0)]
    metadata = _flatbuffer(HEADER.size + len(body), rows, nodes, [*places[:4], *key, *places[4:], *headers])
    total = 8 + len(metadata) + HEADER.size + len(body)

    def header(crc: int) -> bytes:
        return HEADER.pack(
            b"SCB1", 1, 0, crc, crc32c(body, crc32c(metadata)), total, base, base + rows - 1, rows, len(metadata),
            timestamp_ms, timestamp_ms, durable, -1, -1, 0, -1, 0, version, bytes(32),
        )  # fmt: skip

    bare = header(0)
    whole = header(crc32c(bare[12:], crc32c(bare[:8])))
    return struct.pack("<II", CONTINUATION, len(metadata)) + metadata + whole + body


# ---- a partition ----


def _end_of(data: bytes) -> tuple[int, int, int]:
    """(position, offset or -1 without records, durable offset) of the end of a segment that is not sealed."""
    position = 8 + int.from_bytes(data[4:8], "little")
    offset = durable = -1
    while data[position : position + 8].strip(b"\0"):
        metadata_size = int.from_bytes(data[position + 4 : position + 8], "little")
        if metadata_size == 0:
            raise FormatError("the last segment is sealed")
        fields = HEADER.unpack_from(data, position + 8 + metadata_size)
        offset, durable = fields[7] + 1, fields[12]
        position += fields[5]
    return position, offset, durable


def _new_segment(message: bytes, partition: int) -> bytes:
    """The schema message of a partition: the catalog has other digits in its place."""
    return re.sub(rb"\n\0\0\0[0-9]{10}\0", b"\n\0\0\0%010d\0" % partition, message, count=1)


def append(store: Path, topic: str, partition: int, values: Sequence[bytes | None]) -> tuple[int, int]:
    """Appends to a closed store; returns the first offset and the one behind the last."""
    with sqlite3.connect(store / "catalog.sqlite") as catalog:
        topic_id, folder_name = catalog.execute("select id, folder from topics where name = ?", (topic,)).fetchone()
        version, message = catalog.execute(
            "select version, schema from schemas where topic_id = ? order by version desc", (topic_id,)
        ).fetchone()
    catalog.close()
    folder = store / "topics" / folder_name
    with (folder / "state").open("r+b") as state:
        fcntl.lockf(state, fcntl.LOCK_EX | fcntl.LOCK_NB, 2)  # bytes 0 and 1: nobody has it open, or opens it
        (folder / str(partition)).mkdir(exist_ok=True)
        paths = sorted((folder / str(partition)).glob("[0-9]" * 20 + ".arrows"))
        path = paths[-1] if paths else folder / str(partition) / f"{0:020}.arrows"
        if not paths:
            path.write_bytes(_new_segment(message, partition))
        data = path.read_bytes()
        position, base, durable = _end_of(data)
        base = int(path.stem) if base < 0 else base
        batch = make_batch(values, base, time.time_ns() // 1_000_000, max(durable, 0), version)
        with path.open("r+b") as file:
            file.truncate(max(len(data), -(-(position + len(batch) + RESERVED) // 4096) * 4096))
            file.seek(position + 8)
            file.write(batch[8:])
            file.flush()
            file.seek(position)
            file.write(batch[:8])  # the opening, last
    return base, base + len(values)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    print(*append(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.stdin.buffer.read().splitlines()))
