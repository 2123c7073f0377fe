"""The part of Google's XML API that fake-gcs-server lacks: puts, conditions, uploads in parts, and what is missing.

obstore writes through the XML API. This stands in front of fake-gcs-server, passes on what that knows, and says the
rest in the words of its JSON API, which does the same to the same objects.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

from .fault_proxy import Answer, FaultProxy, FaultProxyHandler

_CODES = {404: "NoSuchBucket", 412: "PreconditionFailed"}


class GoogleXml(FaultProxy):
    """Listens on 127.0.0.1 at a free port until it is closed."""

    def __init__(self, upstream: str) -> None:
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._numbers = itertools.count(1)
        self._uploads_lock = threading.Lock()
        super().__init__(upstream, handler=_Handler)

    def begin_upload(self) -> str:
        """The id of a new upload in parts."""
        with self._uploads_lock:
            upload = f"upload-{next(self._numbers)}"
            self._uploads[upload] = {}
            return upload

    def parts_of(self, upload: str) -> dict[int, bytes] | None:
        """The parts of an upload that goes on."""
        with self._uploads_lock:
            return self._uploads.get(upload)

    def end_upload(self, upload: str) -> None:
        """There is no such upload any more."""
        with self._uploads_lock:
            self._uploads.pop(upload, None)


class _Handler(FaultProxyHandler):
    """One connection of a client."""

    def _relay(self, body: Iterator[bytes], length: int) -> None:
        path, _, query = self.path.partition("?")
        bucket, _, name = path.lstrip("/").partition("/")
        asked = urllib.parse.parse_qs(query, keep_blank_values=True)
        if self.command == "GET" and not self._is_as_wanted(bucket, name):
            return self._no(412)
        if self.command in ("GET", "HEAD"):
            return self._look(bucket, name, body, length)
        data = b"".join(body)
        if "uploads" in asked or "uploadId" in asked:
            return self._upload(bucket, name, asked, data)
        if self.command == "PUT" and name:
            return self._put(bucket, name, data)
        return super()._relay(iter([data]), length)

    def _is_as_wanted(self, bucket: str, name: str) -> bool:
        wanted = self.headers.get("if-match")
        status, said = self._json("GET", f"/storage/v1/b/{bucket}/o/{name.replace('/', '%2F')}") if wanted else (0, {})
        return status != 200 or _quoted(said["etag"]) == wanted

    def _look(self, bucket: str, name: str, body: Iterator[bytes], length: int) -> None:
        answer = self._asked(body, length)
        if answer.status in (404, 500) and self.command == "GET":
            answer.read()
            is_there = self._json("GET", f"/storage/v1/b/{bucket}")[0] == 200
            return self._no(404, "NoSuchKey" if is_there else "NoSuchBucket")
        return self._pass_on(answer)

    def _put(self, bucket: str, name: str, data: bytes, wrap: str = "") -> None:
        query = {"uploadType": "media", "name": urllib.parse.unquote(name)}
        if (generation := self.headers.get("x-goog-if-generation-match")) is not None:
            query["ifGenerationMatch"] = generation
        status, made = self._json("POST", f"/upload/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(query)}", data)
        if status != 200:
            return self._no(status)
        headers = (("ETag", _quoted(made["etag"])), ("x-goog-generation", made["generation"]))
        return self._say(Answer(200, headers, wrap.format(_quoted(made["etag"])).encode()))

    def _upload(self, bucket: str, name: str, asked: dict[str, list[str]], data: bytes) -> None:
        proxy: Any = self.server.proxy
        if "uploads" in asked:
            if self._json("GET", f"/storage/v1/b/{bucket}")[0] != 200:
                return self._no(404)
            begun = f"<UploadId>{proxy.begin_upload()}</UploadId>"
            return self._xml(200, f"<InitiateMultipartUploadResult>{begun}</InitiateMultipartUploadResult>")
        upload = asked["uploadId"][0]
        parts = proxy.parts_of(upload)
        if parts is None:
            return self._no(404, "NoSuchUpload")
        if self.command == "PUT":
            parts[int(asked["partNumber"][0])] = data
            return self._say(Answer(200, (("ETag", f'"{len(data)}"'),), b""))
        proxy.end_upload(upload)
        if self.command == "DELETE":
            return self._say(Answer(204, (), b""))
        whole = b"".join(parts[int(number)] for number in re.findall(rb"<PartNumber>(\d+)<", data))
        wrap = "<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>"
        return self._put(bucket, name, whole, wrap)

    # ---- the other API, and answers ----

    def _json(self, method: str, target: str, data: bytes = b"") -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)
        try:
            connection.request(method, target, data, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            said = answer.read()
            return answer.status, json.loads(said) if answer.status == 200 else {}
        finally:
            connection.close()

    def _no(self, status: int, code: str = "") -> None:
        self._xml(status, f"<Error><Code>{code or _CODES.get(status, 'Failed')}</Code></Error>")

    def _xml(self, status: int, text: str) -> None:
        self._say(Answer(status, (("Content-Type", "application/xml"),), f'<?xml version="1.0"?>{text}'.encode()))


def _quoted(e_tag: str) -> str:
    return f'"{e_tag.strip(chr(34))}"'
