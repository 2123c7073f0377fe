"""Small JSON objects that several machines change: each change replaces just the one that it was made from.

A document carries a nonce of whoever wrote it. An answer can be lost behind a put that was done; the next attempt then
finds a document that is not the one it was made from, and knows by the nonce that it is its own.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from streamcore.errors import CorruptionError, StoreFormatError
from streamcore.tier.objects import ConflictError, ObjectMissingError, Objects

FORMAT = 1
STORE_PATH = "store.json"
_ATTEMPTS = 100
Content = dict[str, Any]


class Document(NamedTuple):
    """What a document says, and the tag of the object that it is."""

    content: Content
    tag: str


def load(objects: Objects, path: str) -> Document | None:
    """A document; None when there is none. Raises CorruptionError, StoreFormatError, TierError."""
    try:
        data, tag = objects.get(path)
    except ObjectMissingError:
        return None
    return Document(parsed(data, objects.url_of(path)), tag)


def parsed(data: bytes, url: str) -> Content:
    """The content of a document of a format that this version knows."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise CorruptionError(f"the document is no JSON: {error}", url) from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CorruptionError("the document does not say its format", url)
    if content["format"] != FORMAT:
        raise StoreFormatError(f"the document has format {content['format']}; this version reads {FORMAT}", url)
    return content


def change(objects: Objects, path: str, change_: Callable[[Content | None], Content | None],
           known: Document | None = None) -> Document | None:  # fmt: skip
    """Replaces a document by what `change_` makes of it, anew whenever somebody else was faster; None: no change.

    known: what it was when it was read last, which saves reading it. Returns what is there in the end.
    """
    found = known or load(objects, path)
    for _ in range(_ATTEMPTS):
        content = change_(None if found is None else found.content)
        if content is None:
            return found
        made = {"format": FORMAT, **content, "nonce": secrets.token_hex(8)}
        data = json.dumps(made, separators=(",", ":")).encode()
        try:
            tag = objects.create(path, data) if found is None else objects.replace(path, data, found.tag)
            return Document(made, tag)
        except ConflictError:
            found = load(objects, path)
            if found is not None and found.content.get("nonce") == made["nonce"]:
                return found
    raise ConflictError("the document is changed by others all the time", objects.url_of(path))
