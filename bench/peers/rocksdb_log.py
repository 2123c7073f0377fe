"""RocksDB through rocksdict: raw mode, one WriteBatch per append, no compression; with its log, and without.

Without the log the records live in the process until the next flush, so a crash of the process loses them: an easier
promise than the others give, shown because it is RocksDB's fastest mode.
"""

from __future__ import annotations

from pathlib import Path

from rocksdict import DBCompressionType, Options, Rdict, WriteBatch, WriteOptions


class RocksLog:
    disable_wal = False

    def __init__(self, folder: Path, capacity: int) -> None:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compression_type(DBCompressionType.none())
        options.set_write_buffer_size(256 << 20)
        options.set_max_write_buffer_number(4)
        self._write_options = WriteOptions()
        self._write_options.disable_wal = self.disable_wal  # type: ignore[assignment,method-assign]
        self._database = Rdict(str(folder), options)
        self._keys = [number.to_bytes(8, "big") for number in range(capacity)]

    def append(self, first: int, values: list[bytes]) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in zip(self._keys[first : first + len(values)], values, strict=True):
            batch.put(key, value)
        self._database.write(batch, write_opt=self._write_options)

    def touch_all(self) -> int:
        count = bytes_seen = 0
        for key, value in self._database.items():
            bytes_seen += len(key) + len(value)  # type: ignore[arg-type]
            count += 1
        assert bytes_seen > count
        return count

    def close(self) -> None:
        self._database.close()


class RocksLogWithoutWal(RocksLog):
    disable_wal = True
