"""Objects in S3, Google Cloud Storage, Azure Blob Storage or this process's memory, through obstore."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import obstore
from obstore import exceptions

from streamcore.tier.objects import Buffer, ConflictError, Info, ObjectMissingError, Objects, Retries, Transient

_PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 4
_MAY_PASS = {408, 425, 429}  # of 4xx
_STAYS = {501, 505, 507}  # of 5xx: not implemented, not that HTTP, and no room
# What a server means is in its code: a 409 is a race that nobody has won yet, one that was lost, or a bucket that goes.
_CODES_THAT_MAY_PASS = {"ConditionalRequestConflict", "OperationAborted", "NoSuchUpload", "InvalidBlockList"}
_CODES_OF_NO_PLACE = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"}
_CODES_OF_NO_OBJECT = {"NoSuchKey", "BlobNotFound", "NoSuchVersion"}
_STATUS = re.compile(r"status code: (\d{3})( [A-Za-z][A-Za-z ]*)?")
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_MESSAGE = re.compile(r"<Message>\s*(.*?)\s*</Message>|\"message\":\s*\"(.*?)\"", re.DOTALL)
_CAUSE = re.compile(r'(?:message|error): "([^"]+)"')
_CAUSES = {
    "TimedOut": "no answer in time",
    "IncompleteMessage": "the connection was cut",
    "IncompleteBody": "the connection was cut within the object",
    "InvalidCertificate": "the server's certificate is not one that is trusted",
    "InvalidContentType": "the server does not speak TLS; is it http://?",
    "BadScheme": "http:// needs the option allow_http",
    "BareRedirect": "the bucket is in another region",
}
_MISTAKES = {"InvalidCertificate", "InvalidContentType", "BadScheme", "BareRedirect"}  # which stay
_LONGEST_TEXT = 300


class RemoteObjects(Objects):
    """Objects that obstore reaches.

    store: its object, which makes one attempt at a time. part_store: one that tries again by itself, for the parts of
    a large file: one of a hundred that fails does not make the others be sent again.
    """

    def __init__(self, url: str, retries: Retries, store: Any, part_store: Any) -> None:
        super().__init__(url, retries)
        self._store = store
        self._part_store = part_store

    def _put(self, path: str, data: Buffer) -> str:
        with self._translated("put", path):
            return _tag_of(obstore.put(self._store, path, data, use_multipart=False))

    def _put_file(self, path: str, file: Path) -> str:
        store = self._store if file.stat().st_size <= _PART_BYTES else self._part_store
        with self._translated("put", path):
            return _tag_of(obstore.put(store, path, file, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE))

    def _replace(self, path: str, data: Buffer, tag: str | None) -> str:
        mode: Any = "create" if tag is None else _version_of(tag)
        with self._translated("create" if tag is None else "replace", path):
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
            # Joining them is not left to obstore, which panics where the object ends within what it joined.
            found = obstore.get_ranges(self._store, path, starts=starts, ends=ends, coalesce=0)
            return [memoryview(data) for data in found]

    def _get_piece(self, path: str, start: int, end: int, tag: str) -> Buffer:
        options: Any = {"range": (start, end), "if_match": _version_of(tag).get("e_tag")}
        with self._translated("get", path):
            return memoryview(obstore.get(self._store, path, options=options).bytes())

    def _head(self, path: str) -> Info:
        with self._translated("head", path):
            return _info_of(obstore.head(self._store, path))

    def _list(self, prefix: str) -> list[Info]:
        with self._translated("list", prefix):
            return [_info_of(meta) for chunk in obstore.list(self._store, prefix) for meta in chunk]

    def _delete(self, path: str) -> None:
        with contextlib.suppress(ObjectMissingError), self._translated("delete", path):
            obstore.delete(self._store, path)

    def _sweep(self, grace_s: float) -> int:
        return 0

    # ---- failures ----

    @contextlib.contextmanager
    def _translated(self, what: str, path: str) -> Iterator[None]:
        try:
            yield
        except (exceptions.BaseError, FileNotFoundError) as error:  # the latter is obstore's NotFoundError
            raise self._failure(what, path, error, _said_by(error)) from None

    def _failure(self, what: str, path: str, error: Exception, said: _Said) -> Exception:
        changes = what in ("create", "replace")
        if said.code in _CODES_THAT_MAY_PASS:
            return Transient(said.text)
        if said.code in _CODES_OF_NO_PLACE or (said.status == 404 and what in ("put", "create", "list")):
            return self._failed(what, path, f"there is no such bucket or container: {said.text}")
        if isinstance(error, FileNotFoundError) and not changes:
            if said.code and said.code not in _CODES_OF_NO_OBJECT:
                return self._failed(what, path, said.text)
            return ObjectMissingError("there is no such object", self.url_of(path))
        if isinstance(error, (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError)):
            if changes or (what == "get" and said.status != 409):
                return ConflictError(f"somebody else was faster: {said.text}", self.url_of(path))
            return self._failed(what, path, said.text)
        if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)) or (
            said.status in (401, 403)
        ):
            return self._failed(what, path, f"access is denied: {said.text}")
        if isinstance(error, (exceptions.GenericError, exceptions.JoinError)) and said.may_pass:
            return Transient(said.text)
        return self._failed(what, path, said.text)


class _Said(NamedTuple):
    """What is known of a failure. status: 0 where no server answered; code: the server's own, or nothing."""

    status: int
    code: str
    text: str
    may_pass: bool


def _said_by(error: Exception) -> _Said:
    message, _, source = str(error).partition("Debug source:")
    found = _STATUS.search(message)
    if found is None:
        name = next((name for name in _CAUSES if name in source), "")
        cause = _CAUSES.get(name) or (match[1] if (match := _CAUSE.search(source)) else None)
        text = cause or re.sub(r"\?\S*", "?…", message)  # a query may have a signature
        return _Said(0, "", _short(text or type(error).__name__), name not in _MISTAKES)
    status, code, words = int(found[1]), _CODE.search(message), _MESSAGE.search(message)
    parts = [f"{status}{(found[2] or '').rstrip()}", code[1] if code else "", (words[1] or words[2]) if words else ""]
    may_pass = status in _MAY_PASS or (status >= 500 and status not in _STAYS)
    return _Said(status, code[1] if code else "", _short(": ".join(filter(None, parts))), may_pass)


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST_TEXT else words[:_LONGEST_TEXT] + "…"


def _tag_of(meta: Any) -> str:
    """Both of what providers tell versions by, for that is what they want back."""
    e_tag = meta["e_tag"] or ""
    if e_tag.startswith("0x"):  # Azure leaves the quotes out in listings, and wants them back
        e_tag = f'"{e_tag}"'
    return f"{e_tag}\n{meta['version'] or ''}"


def _version_of(tag: str) -> dict[str, str]:
    return {name: part for name, part in zip(("e_tag", "version"), tag.split("\n"), strict=True) if part}


def _info_of(meta: Any) -> Info:
    return Info(meta["path"], meta["size"], _tag_of(meta), int(meta["last_modified"].timestamp() * 1000))
