"""The errors of streamcore. Wrong types and values of arguments are TypeError and ValueError."""

from __future__ import annotations

import os
from typing import Any, NamedTuple


class StreamcoreError(Exception):
    """Base of all errors of streamcore."""


class StorageError(StreamcoreError, OSError):
    """The file system or the drive said no: `errno`, `filename`.

    A partition whose sync failed refuses appends until the store is opened anew: what a failed fsync left in the page
    cache is unknown (see PostgreSQL's "fsync-gate"), so it is never retried.
    """

    def __init__(self, errno: int, message: str, path: str | None = None) -> None:
        text = os.strerror(errno) if errno else "input/output error"
        self.message = message
        OSError.__init__(self, errno, f"{message}: {text}", path)

    def __reduce__(self) -> Any:
        return type(self), (self.errno or 0, self.message, self.filename)

    @property
    def path(self) -> str | None:
        """The file that the error is about."""
        return self.filename  # type: ignore[no-any-return]


class CorruptionError(StreamcoreError):
    """Stored bytes are not what their checksum or the format says.

    `path` names the file, `offset` the first record that cannot be read, `position` the byte in the file.
    """

    def __init__(self, message: str, path: str | None = None, offset: int | None = None, position: int | None = None):
        self.message = message
        self.path = path
        self.offset = offset
        self.position = position
        where = [f"file {path}"] if path else []
        where += [f"offset {offset}"] if offset is not None else []
        where += [f"position {position}"] if position is not None else []
        super().__init__(f"{message} ({', '.join(where)})" if where else message)

    def __reduce__(self) -> Any:
        return type(self), (self.message, self.path, self.offset, self.position)


class StoreFormatError(StreamcoreError):
    """A store or file is of a format that this version cannot read, or belongs elsewhere: `path`, when it is a file.

    `offset` and `position` name the first record and the byte, when it is a batch in a file that is ours.
    """

    def __init__(
        self, message: str, path: str | None = None, offset: int | None = None, position: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset
        self.position = position


class TopicExistsError(StreamcoreError):
    """A topic of this name exists already."""


class TopicNotFoundError(StreamcoreError, LookupError):
    """There is no topic of this name, or it was deleted."""


class OffsetOutOfRangeError(StreamcoreError, IndexError):
    """An offset outside the log, which reaches from `earliest` up to, but not including, `latest`."""

    def __init__(self, message: str, earliest: int, latest: int) -> None:
        super().__init__(message)
        self.earliest = earliest
        self.latest = latest

    def __reduce__(self) -> Any:
        return type(self), (*self.args, self.earliest, self.latest)


class RecordTooLargeError(StreamcoreError):
    """A record above the topic's `max_record_bytes`, or a batch above 2 GiB."""


class StoreReadOnlyError(StreamcoreError):
    """The store was opened with mode "r"."""


class FencedError(StreamcoreError):
    """A newer producer or group member has taken this one's place (KIP-98)."""


class SequenceError(StreamcoreError):
    """An idempotent producer's records do not follow those before them, and repeat none of its last five (KIP-98)."""


class GroupError(StreamcoreError):
    """A consumer group does not allow this now."""


class TransactionError(StreamcoreError):
    """A transaction does not allow this now."""


class TierError(StreamcoreError):
    """The object store of a tier said no, did not answer in time, or has something else than was put there: `url`.

    `transient`: it was tried until the deadline, and may go another time.
    """

    def __init__(self, message: str, url: str, transient: bool = False) -> None:
        super().__init__(f"{message} ({url})")
        self.message = message
        self.url = url
        self.transient = transient

    def __reduce__(self) -> Any:
        return type(self), (self.message, self.url, self.transient)


class BufferFullError(StreamcoreError):
    """A producer's `buffer_bytes` are in use: for longer than `max_block_ms`, or the caller chose not to wait."""


class Lost(NamedTuple):
    """How many records of a partition were given up."""

    topic: str
    partition: int
    records: int


class ProducerError(StreamcoreError):
    """Records that were sent without `on_delivery` could not be appended, or an `on_delivery` raised.

    `lost` tells of which partitions how many; `__cause__` is the first error. Raised once, by the next send, flush or
    close.
    """

    def __init__(self, message: str, lost: tuple[Lost, ...] = ()) -> None:
        super().__init__(message)
        self.lost = lost

    def __reduce__(self) -> Any:
        return type(self), (*self.args, self.lost)
