"""Objects in S3, Google Cloud Storage, Azure Blob Storage or this process's memory, through obstore."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import obstore
from obstore import exceptions

from streamcore.tier.objects import Buffer, ConflictError, Info, ObjectMissingError, Objects, Retries, Transient

_PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 4
_PIECE_BYTES = 4 << 20
_NEAR_BYTES = 64 << 10  # ranges that are nearer to each other are one request
_STATUS = re.compile(r"status code: (\d{3})")
_MAY_PASS = {"408", "409", "425", "429"}  # of the 4xx
_CODE = re.compile(r"<Code>(\w+)</Code>")
_OF_THE_OBJECT = {"NoSuchKey", "BlobNotFound", "NoSuchVersion"}  # 404, and it is the object that is not there


class RemoteObjects(Objects):
    """Objects that obstore reaches. `store` is its object, which makes one attempt at a time."""

    def __init__(self, url: str, retries: Retries, store: Any) -> None:
        super().__init__(url, retries)
        self._store = store

    def _put(self, path: str, data: Buffer) -> str:
        with self._translated("put", path):
            return _tag_of(obstore.put(self._store, path, data, use_multipart=False))

    def _put_file(self, path: str, file: Path) -> str:
        with self._translated("put", path):
            return _tag_of(obstore.put(self._store, path, file, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE))

    def _replace(self, path: str, data: Buffer, tag: str | None) -> str:
        with self._translated("replace", path):
            mode: Any = "create" if tag is None else _version_of(tag)
            return _tag_of(obstore.put(self._store, path, data, mode=mode))

    def _get(self, path: str) -> tuple[bytes, str]:
        with self._translated("get", path):
            found = obstore.get(self._store, path)
            data = bytes(found.bytes())
            if len(data) != found.meta["size"]:
                raise Transient(f"{len(data)} bytes came of {found.meta['size']}")
            return data, _tag_of(found.meta)

    def _get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        with self._translated("get", path):
            found = obstore.get_ranges(self._store, path, starts=starts, ends=ends, coalesce=_NEAR_BYTES)
            return [memoryview(data) for data in found]

    def _stream(self, path: str) -> Iterator[Buffer]:
        with self._translated("get", path):
            found = obstore.get(self._store, path)

        def pieces() -> Iterator[Buffer]:
            with self._translated("get", path):
                for piece in found.stream(min_chunk_size=_PIECE_BYTES):
                    yield memoryview(piece)

        return pieces()

    def _head(self, path: str) -> Info:
        with self._translated("head", path):
            return _info_of(obstore.head(self._store, path))

    def _list(self, prefix: str) -> list[Info]:
        with self._translated("list", prefix):
            return [_info_of(meta) for chunk in obstore.list(self._store, prefix) for meta in chunk]

    def _delete(self, path: str) -> None:
        with self._translated("delete", path), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, path)

    @contextlib.contextmanager
    def _translated(self, what: str, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:  # which obstore's NotFoundError is
            code = _CODE.search(str(error))
            if code is not None and code[1] not in _OF_THE_OBJECT:
                raise self._failed(what, path, _said(error)) from None
            if what in ("put", "replace", "list"):
                raise self._failed(what, path, f"there is no such bucket or container: {_said(error)}") from None
            raise ObjectMissingError("there is no such object", self.url_of(path)) from None
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise ConflictError(f"somebody else was faster: {_said(error)}", self.url_of(path)) from None
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise self._failed(what, path, f"access is denied: {_said(error)}") from None
        except (exceptions.GenericError, exceptions.JoinError) as error:
            said = _said(error)
            status = _STATUS.search(said)
            if status is not None and status[1].startswith("4") and status[1] not in _MAY_PASS:
                raise self._failed(what, path, said) from None
            raise Transient(said) from None
        except exceptions.BaseError as error:
            raise self._failed(what, path, _said(error)) from None


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split("Debug source:")[0].split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + "…"


def _tag_of(meta: Any) -> str:
    """Both of what providers tell versions by, for that is what they want back."""
    return f"{meta['e_tag'] or ''}\n{meta['version'] or ''}"


def _version_of(tag: str) -> dict[str, str]:
    return {name: part for name, part in zip(("e_tag", "version"), tag.split("\n"), strict=True) if part}


def _info_of(meta: Any) -> Info:
    return Info(meta["path"], meta["size"], _tag_of(meta), int(meta["last_modified"].timestamp() * 1000))
