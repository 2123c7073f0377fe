"""A proxy between us and an object store that makes things go wrong for chosen requests, and counts all of them.

    with FaultProxy(server.endpoint) as proxy:
        place = server.place("bucket", endpoint=proxy.endpoint)
        proxy.add(Fault.status(503, "SlowDown", method="PUT", path="manifest", times=3))

The Host header goes on as the client sent it, since it is signed. A fault takes the requests that fit it from its
`first`th on, `times` of them; of several that fit a request the one that was added first takes it.

versitygw 1.8 may answer a get with the bytes of one object and the ETag of the one that replaced it. `in_turn` lets one
request at a time through, so that its conditional puts can be relied on as S3's can.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import re
import socket
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

_PIECE_BYTES = 256 << 10
_NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_TIMEOUT_S = 60.0


class Request(NamedTuple):
    """What was asked, and what came of it. status: 0 where the connection was cut; sent, got: bytes of the bodies."""

    method: str
    target: str
    status: int
    sent: int
    got: int
    fault: str


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclasses.dataclass
class Fault:
    """What goes wrong for which requests.

    method, path: regular expressions; path is found in the path with its query. first: how many that fit go well
    before it, less one; times: None for ever.
    """

    kind: str
    method: str = ""
    path: str = ""
    first: int = 1
    times: int | None = 1
    seconds: float = 0.0
    count: int = 0
    answer: Answer | None = None
    seen: int = 0
    done: int = 0

    @classmethod
    def status(cls, status: int, code: str, message: str = "made by a test", **which: Any) -> Fault:
        """The server says no, in the words of S3; nothing reaches it."""
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
        return cls("status", answer=Answer(status, (("Content-Type", "application/xml"),), body), **which)

    @classmethod
    def delay(cls, seconds: float, **which: Any) -> Fault:
        """The request waits in the proxy, and goes on even when nobody waits for the answer any more."""
        return cls("delay", seconds=seconds, **which)

    @classmethod
    def cut_before(cls, **which: Any) -> Fault:
        """The connection ends before the server hears of it."""
        return cls("cut before", **which)

    @classmethod
    def cut_after(cls, **which: Any) -> Fault:
        """The server does it, and its answer is lost."""
        return cls("cut after", **which)

    @classmethod
    def partial(cls, count: int, **which: Any) -> Fault:
        """The connection ends after so many bytes of the answer's body; its headers promise all of it."""
        return cls("partial", count=count, **which)

    @classmethod
    def short(cls, count: int, **which: Any) -> Fault:
        """The answer's body is so many bytes, and its headers say the same."""
        return cls("short", count=count, **which)

    @classmethod
    def wrong(cls, at: int = 0, **which: Any) -> Fault:
        """One bit of the answer's body is another, that of byte `at`."""
        return cls("wrong", count=at, **which)

    @classmethod
    def stale(cls, **which: Any) -> Fault:
        """The answer to the same question that came first of all (of a listing, say) comes again."""
        return cls("stale", **which)

    def takes(self, method: str, target: str) -> bool:
        """Whether it is about this request, which counts as one that fits. One thread at a time."""
        if not (re.fullmatch(self.method or ".*", method) and re.search(self.path, target)):
            return False
        self.seen += 1
        if self.seen < self.first or (self.times is not None and self.done >= self.times):
            return False
        self.done += 1
        return True


class FaultProxy:
    """Listens on 127.0.0.1 at a free port until it is closed. latency_s: added to every request, may be changed."""

    def __init__(self, upstream: str, latency_s: float = 0.0, *, in_turn: bool = False, handler: Any = None) -> None:
        self.upstream = urllib.parse.urlsplit(upstream).netloc
        self.latency_s = latency_s
        self.closed = threading.Event()
        self.turn: contextlib.AbstractContextManager[object] = threading.Lock() if in_turn else contextlib.nullcontext()
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._faults: list[Fault] = []
        self._first_answers: dict[tuple[str, str], Answer] = {}
        self._server = _Server(("127.0.0.1", 0), handler or FaultProxyHandler)
        self._server.proxy = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="fault proxy", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends; connections are cut."""
        self.closed.set()
        self._server.shutdown()
        self._server.cut_all()
        self._server.server_close()
        self._thread.join()

    def add(self, fault: Fault) -> Fault:
        """Makes something go wrong from now on."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Nothing goes wrong any more, and nothing has been asked."""
        with self._lock:
            self._faults.clear()
            self._requests.clear()

    @property
    def requests(self) -> list[Request]:
        """What was asked so far, by the order of the answers."""
        with self._lock:
            return list(self._requests)

    def count(self, method: str = "", path: str = "") -> int:
        """How many requests fit regular expressions."""
        found = (
            re.fullmatch(method or ".*", request.method) and re.search(path, request.target)
            for request in self.requests
        )
        return sum(map(bool, found))

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each method the requests, and the bytes of bodies sent and got."""
        totals: dict[str, Counter[str]] = {}
        for request in self.requests:
            totals.setdefault(request.method, Counter()).update(requests=1, sent=request.sent, got=request.got)
        return {method: dict(total) for method, total in totals.items()}

    # ---- for its handlers ----

    def fault_for(self, method: str, target: str) -> Fault | None:
        """The fault of a request."""
        with self._lock:
            return next((fault for fault in self._faults if fault.takes(method, target)), None)

    def note(self, request: Request) -> None:
        """Counts a request."""
        with self._lock:
            self._requests.append(request)

    def remember(self, method: str, target: str, answer: Answer) -> None:
        """Keeps the first answer to a question."""
        with self._lock:
            self._first_answers.setdefault((method, target), answer)

    def first_answer(self, method: str, target: str) -> Answer | None:
        """The first answer to a question."""
        with self._lock:
            return self._first_answers.get((method, target))


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    proxy: FaultProxy

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what the tests are about."""


class FaultProxyHandler(http.server.BaseHTTPRequestHandler):
    """One connection of a client, and one to the server behind it."""

    protocol_version = "HTTP/1.1"
    server: _Server
    _behind: http.client.HTTPConnection | None = None
    _WITHOUT_BODY: ClassVar = {204, 304}

    def handle(self) -> None:
        try:
            super().handle()
        finally:
            if self._behind is not None:
                self._behind.close()

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""

    def _handle(self) -> None:
        proxy = self.server.proxy
        self._fault = proxy.fault_for(self.command, self.path)
        self._sent = int(self.headers.get("content-length") or 0)
        self._noted = False
        if proxy.latency_s:
            proxy.closed.wait(proxy.latency_s)
        try:
            if self._fault is None:
                with proxy.turn:
                    self._relay(self._body(), self._sent)
            else:
                self._spoil(self._fault, b"".join(self._body()))
        except (OSError, http.client.HTTPException):  # one of both sides went away
            self._cut()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _handle  # noqa: N815

    def _spoil(self, fault: Fault, body: bytes) -> None:
        proxy, kind = self.server.proxy, fault.kind
        if kind == "delay":
            proxy.closed.wait(fault.seconds)
            return self._relay(iter([body]), len(body))
        if kind == "status":
            assert fault.answer is not None
            return self._say(fault.answer)
        if kind == "cut before":
            return self._cut()
        if kind == "stale" and (earlier := proxy.first_answer(self.command, self.path)) is not None:
            return self._say(earlier)
        with proxy.turn:
            answer = self._asked(iter([body]), len(body))
            whole = Answer(answer.status, tuple(answer.getheaders()), answer.read())
        if kind == "cut after":
            return self._cut()
        if kind == "short":
            return self._say(whole._replace(body=whole.body[: fault.count]))
        if kind == "wrong":
            changed = bytearray(whole.body)
            changed[fault.count] ^= 1
            return self._say(whole._replace(body=bytes(changed)))
        if kind == "partial":
            self._begin(whole.status, whole.headers, len(whole.body), got=min(fault.count, len(whole.body)))
            self.wfile.write(whole.body[: fault.count])
            return self._cut()
        return self._say(whole)

    def _note(self, status: int, got: int) -> None:
        """Before the answer, so that who has it finds it counted."""
        if not self._noted:
            self._noted = True
            kind = self._fault.kind if self._fault else ""
            self.server.proxy.note(Request(self.command, self.path, status, self._sent, got, kind))

    # ---- requests ----

    def _body(self) -> Iterator[bytes]:
        length = self._sent
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        while length > 0:
            piece = self.rfile.read(min(length, _PIECE_BYTES))
            if not piece:
                raise ConnectionError("the client went away")
            length -= len(piece)
            yield piece

    def _asked(self, body: Iterator[bytes], length: int) -> http.client.HTTPResponse:
        """Passes a request on. What the server does with it is not known when that fails, so it is not tried again."""
        if self._behind is None:
            self._behind = http.client.HTTPConnection(self.server.proxy.upstream, timeout=_TIMEOUT_S)
            self._behind.connect()
            self._behind.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        behind = self._behind
        behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _NOT_PASSED_ON:
                behind.putheader(name, value)
        if length or "content-length" in self.headers:
            behind.putheader("Content-Length", str(length))
        behind.endheaders()
        for piece in body:
            behind.send(piece)
        return behind.getresponse()

    # ---- answers ----

    def _relay(self, body: Iterator[bytes], length: int) -> None:
        self._pass_on(self._asked(body, length))

    def _pass_on(self, answer: http.client.HTTPResponse) -> None:
        headers = tuple(answer.getheaders())
        if self.command == "HEAD":
            size = answer.getheader("content-length")
            answer.read()
            return self._begin(answer.status, headers, None if size is None else int(size), got=0)
        listing = self.command == "GET" and re.search("list-type|comp=list", self.path)
        if listing or answer.length is None:  # chunked
            whole = Answer(answer.status, headers, answer.read())
            if listing:
                self.server.proxy.remember(self.command, self.path, whole)
            return self._say(whole)
        self._begin(answer.status, headers, answer.length, got=answer.length)
        while piece := answer.read1(_PIECE_BYTES):
            self.wfile.write(piece)
        answer.read()
        return None

    def _say(self, answer: Answer) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        self._begin(answer.status, answer.headers, len(answer.body), got=len(body))
        self.wfile.write(body)

    def _begin(self, status: int, headers: tuple[tuple[str, str], ...], size: int | None, *, got: int) -> None:
        self._note(status, got)
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _NOT_PASSED_ON:
                self.send_header(name, value)
        if size is not None and status not in self._WITHOUT_BODY:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def _cut(self) -> None:
        self._note(0, 0)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        if self._behind is not None:  # an answer may be left in it
            self._behind.close()
