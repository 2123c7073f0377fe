"""The files of a table, as pyiceberg reads and writes them: through the tier, with its requests and retries."""

from __future__ import annotations

import collections
import io
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from pyiceberg.io import FileIO, InputFile, OutputFile

from streamcore.errors import CorruptionError
from streamcore.tier.objects import ObjectMissingError, Objects

_CACHE_BYTES = 32 << 20
_LISTED_MAX = 100_000  # data files, of some 300 bytes each


class Size(NamedTuple):
    """Of a data file."""

    rows: int
    size_bytes: int


class TierIO(FileIO):
    """How pyiceberg reads the objects of a tier: with our requests, credentials and retries. Any thread may use it.

    What never changes is kept in memory, up to some MiB.
    """

    def __init__(self, objects: Objects, address: str) -> None:
        super().__init__({})
        self.objects = objects
        self.address = address
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[str, bytes] = collections.OrderedDict()
        self._listed: collections.OrderedDict[str, Mapping[str, Size]] = collections.OrderedDict()

    def location_of(self, path: str) -> str:
        """The address of an object."""
        return f"{self.address}/{path}"

    def path_of(self, location: str) -> str:
        """The object at an address. Raises CorruptionError for one of another tier."""
        if not location.startswith(self.address + "/"):
            raise CorruptionError(f"the Iceberg table names {location}, which is not below {self.address}")
        return location.removeprefix(self.address + "/")

    def new_input(self, location: str) -> InputFile:
        return _Input(self, location)

    def new_output(self, location: str) -> OutputFile:
        raise NotImplementedError("an Iceberg table of a topic is written by streamcore alone")

    def delete(self, location: str | InputFile | OutputFile) -> None:
        raise NotImplementedError("an Iceberg table of a topic is written by streamcore alone")

    def read(self, path: str) -> bytes:
        """A file that never changes."""
        with self._lock:
            found = self._kept.get(path)
            if found is not None:
                self._kept.move_to_end(path)
                return found
        data, _ = self.objects.get(path)
        self._keep(path, data)
        return data

    def write(self, path: str, data: bytes) -> None:
        """A file that never changes."""
        self.objects.put(path, data)
        self._keep(path, data)

    def listed(self, manifest: str) -> Mapping[str, Size] | None:
        """The data files that a manifest is known to list, by their addresses; None: it was not looked at yet."""
        with self._lock:
            found = self._listed.get(manifest)
            if found is not None:
                self._listed.move_to_end(manifest)
            return found

    def note_listed(self, manifest: str, files: Mapping[str, Size]) -> None:
        """Remembers what a manifest lists, which takes longer to decode than to fetch."""
        with self._lock:
            self._listed[manifest] = files
            count = sum(map(len, self._listed.values()))
            while count > _LISTED_MAX and len(self._listed) > 1:
                count -= len(self._listed.popitem(last=False)[1])

    def _keep(self, path: str, data: bytes) -> None:
        with self._lock:
            self._kept[path] = data
            size = sum(map(len, self._kept.values()))
            while size > _CACHE_BYTES:
                size -= len(self._kept.popitem(last=False)[1])


class _Input(InputFile):
    def __init__(self, io_: TierIO, location: str) -> None:
        super().__init__(location)
        self._io = io_
        self._path = io_.path_of(location)

    def __len__(self) -> int:
        return self._io.objects.head(self._path).size

    def exists(self) -> bool:
        try:
            self._io.objects.head(self._path)
        except ObjectMissingError:
            return False
        return True

    def open(self, seekable: bool = True) -> Any:
        if self._path.endswith(".avro"):
            return io.BytesIO(self._io.read(self._path))
        if self._path.endswith(".parquet"):
            return io.BufferedReader(_Ranges(self._io.objects, self._path), 1 << 16)
        return io.BytesIO(self._io.objects.get(self._path)[0])


class _Ranges(io.RawIOBase):
    """An object of which only what is read is fetched."""

    def __init__(self, objects: Objects, path: str) -> None:
        self._objects = objects
        self._path = path
        self._size = objects.head(path).size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        [data] = self._objects.get_ranges(self._path, [(self._at, end)])
        buffer[: len(data)] = data
        self._at = end
        return len(data)


class Output(OutputFile):
    """A file in memory, which is put when it is whole."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.data = b""

    def __len__(self) -> int:
        return len(self.data)

    def exists(self) -> bool:
        return False

    def to_input_file(self) -> InputFile:
        raise NotImplementedError

    def create(self, overwrite: bool = False) -> Any:
        return _Written(self)


class _Written(io.BytesIO):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def close(self) -> None:
        if not self.closed:
            self._output.data = self.getvalue()
        super().close()
