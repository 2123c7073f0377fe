"""Segment files as docs/format.md describes them, read without streamcore: the frames of their batches, and what any
Arrow reader sees of them."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pyarrow as pa

HEADER_SIZE = 128
HEADER = struct.Struct("<4sHHIIqqqiiqqqqhHiiIqqq8s")
_FIELDS = (
    "magic", "version", "flags", "header_crc", "body_crc", "total_size", "base_offset", "last_offset", "record_count",
    "metadata_size", "min_timestamp", "max_timestamp", "durable_offset", "producer_id", "producer_epoch", "control",
    "base_sequence", "leader_epoch", "schema_version", "unstable_count", "start_offset", "transaction_offset",
    "reserved",
)  # fmt: skip
assert HEADER.size == HEADER_SIZE


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where one batch lies in its file, and the numbers in its header."""

    position: int
    size: int
    metadata_size: int
    base_offset: int
    last_offset: int
    record_count: int
    durable_offset: int
    flags: int

    @property
    def header_position(self) -> int:
        """Of the batch header."""
        return self.position + 8 + self.metadata_size

    @property
    def body_position(self) -> int:
        """Of the buffers."""
        return self.header_position + HEADER_SIZE

    @property
    def end(self) -> int:
        """Of the byte behind it."""
        return self.position + self.size

    @property
    def end_offset(self) -> int:
        """Of the record behind it."""
        return self.last_offset + 1


_KEPT = [field.name for field in dataclasses.fields(Frame) if field.name in _FIELDS]


def schema_size(data: bytes) -> int:
    """The size of the schema message that begins a segment."""
    return 8 + int.from_bytes(data[4:8], "little")


def frames(path: Path) -> list[Frame]:
    """The batches of a segment file that have records, up to the end marker or to zeros."""
    return [frame for frame in all_frames(path) if frame.record_count > 0]


def forget_notes(path: Path) -> None:
    """Clears the batches without records at the end of a segment file: no note says any more how far it was durable."""
    for frame in reversed(all_frames(path)):
        if frame.record_count > 0:
            return
        overwrite(path, frame.position, bytes(frame.size))


def all_frames(path: Path) -> list[Frame]:
    """The batches of a segment file, also those without records, up to the end marker or to zeros."""
    data = path.read_bytes()
    found = []
    position = schema_size(data)
    while data[position : position + 4] == b"\xff\xff\xff\xff" and data[position + 4 : position + 8] != bytes(4):
        metadata_size = int.from_bytes(data[position + 4 : position + 8], "little")
        fields = header_fields(data, position + 8 + metadata_size)
        kept = {name: fields[name] for name in _KEPT}
        found.append(Frame(position=position, size=fields["total_size"], **kept))
        position += fields["total_size"]
    return found


def header_fields(data: bytes, position: int) -> dict[str, int]:
    """The fields of the batch header at a position."""
    values = HEADER.unpack_from(data, position)
    assert values[0] == b"SCB1", f"there is no batch header at {position}"
    return dict(zip(_FIELDS, values, strict=True))


def change_header(path: Path, frame: Frame, **changes: int) -> None:
    """Changes fields of a batch header and makes its checksum right again: what another version might write."""
    data = path.read_bytes()
    fields = header_fields(data, frame.header_position)
    packed = bytearray(HEADER.pack(*{**fields, **changes}.values()))
    packed[8:12] = crc32c(bytes(packed[:8] + packed[12:])).to_bytes(4, "little")
    overwrite(path, frame.header_position, bytes(packed))


def change_body(path: Path, frame: Frame, position: int, content: bytes) -> None:
    """Changes bytes of a batch and makes both checksums right again: a wrong record that no checksum shows."""
    overwrite(path, position, content)
    data = path.read_bytes()
    metadata = data[frame.position + 8 : frame.header_position]
    change_header(path, frame, body_crc=crc32c(metadata + data[frame.body_position : frame.end]))


def overwrite(path: Path, position: int, content: bytes) -> None:
    """Changes bytes in place."""
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


def flip(path: Path, position: int, mask: int = 0xFF) -> None:
    """Flips bits of one byte."""
    with path.open("r+b") as file:
        file.seek(position)
        old = file.read(1)[0]
        file.seek(position)
        file.write(bytes([old ^ mask]))


def crc32c(data: bytes) -> int:
    """CRC32C, slowly."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = [_table_entry(value) for value in range(256)]


# ---- files of a topic --------------------------------------------------------------------------------------------


def segment_paths(store_path: Path, topic_folder: str, partition: int = 0) -> list[Path]:
    """The segment files of a partition, oldest first."""
    return sorted((store_path / "topics" / topic_folder / str(partition)).glob("*.arrows"))


def only_folder(store_path: Path) -> str:
    """The folder of the store's only topic."""
    (folder,) = (store_path / "topics").iterdir()
    return folder.name


def only_segment(store_path: Path) -> Path:
    """The one file of the one partition of the one topic."""
    (path,) = segment_paths(store_path, only_folder(store_path))
    return path


def as_any_arrow_reader(paths: list[Path]) -> pa.Table | None:
    """The rows of some segments as pyarrow alone reads them; None when there are no files."""
    tables = []
    for path in paths:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            tables.append(reader.read_all().replace_schema_metadata(None))
    return pa.concat_tables(tables) if tables else None


def is_torn(path: Path) -> bool:
    """Whether bytes lie behind the end of the stream: those of an append that was never finished."""
    with path.open("rb") as file:
        pa.ipc.open_stream(file).read_all()
        rest = file.read()
    return rest.count(0) < len(rest)
