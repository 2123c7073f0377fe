"""Children that may be killed, at the cost of a fork each.

A server process imports everything once, opens no store and starts no thread; each child is forked from it. Run as
`python -m <this module> <descriptor of a socket>`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

CHILD_FAILED = 70
DEADLINE_S = 30.0
_REQUEST_MAX = 1 << 16
_LINE_BUFFER = 4096


def is_readable(connection: socket.socket, timeout_s: float) -> bool:
    """Whether something comes within the time; of any descriptor, while `select` knows those below 1024."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


class Channel:
    """A child's end of the line to its parent. Writing blocks when the parent does not read: it is bounded."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, *words: object) -> None:
        """Sends a line; returns when the kernel has it, so that it outlives this process."""
        self._connection.sendall((" ".join(map(str, words)) + "\n").encode())

    def close(self) -> None:
        """Leaves the line: the parent sees its end when all copies are closed."""
        self._connection.close()

    def is_told_to_stop(self) -> bool:
        """Whether the parent wants no more."""
        return is_readable(self._connection, 0)

    def wait_to_be_told(self) -> None:
        """Waits until the parent says something, or for the end by a signal."""
        self._connection.recv(64)


class Child:
    """A forked process and what it has said."""

    def __init__(self, server: ForkServer, pid: int, connection: socket.socket) -> None:
        self._server = server
        self.pid = pid
        self._connection = connection
        self._buffer = b""
        self.lines: list[list[str]] = []
        self.bytes_read = 0
        self._at_end = False
        self.status: int | None = None

    def read(self, timeout_s: float) -> bool:
        """Reads what there is, or comes within the time; False when nothing came."""
        if self._at_end or not is_readable(self._connection, timeout_s):
            return False
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self._connection.recv(1 << 16)
        self._at_end = not data
        self.bytes_read += len(data)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.lines += [line.decode().split(" ") for line in lines]
        return bool(data)

    @property
    def at_end(self) -> bool:
        """Whether it has left the line, as one does that ends."""
        return self._at_end

    def read_until(self, condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        """Reads until the condition holds; fails when it does not in time, or when the child ends before."""
        end = time.monotonic() + deadline_s
        while not condition():
            left = end - time.monotonic()
            assert left > 0, f"the child did not get there in time; it said {self.lines[-5:]}"
            self.read(left)
            if self._at_end and not condition():
                self.wait()
                raise AssertionError(f"the child ended early, status {self.status}: {self.failure()}")

    def drain_for(self, duration_s: float) -> None:
        """Reads what comes during this time, so that the child does not have to wait for us."""
        end = time.monotonic() + duration_s
        while (left := end - time.monotonic()) > 0 and not self._at_end:
            self.read(left)

    def kill(self) -> int:
        """SIGKILL; returns the wait status, when the process and its locks are gone."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def tell(self) -> None:
        """Tells the child to go on, or to stop."""
        with contextlib.suppress(OSError):
            self._connection.send(b"now")

    def stop(self) -> int:
        """Tells the child to stop, and waits for its end."""
        self.tell()
        return self.wait()

    def wait(self) -> int:
        """Reads to the end of the line, and returns the wait status."""
        end = time.monotonic() + DEADLINE_S
        while not self._at_end:
            assert time.monotonic() < end, "the child did not end in time"
            self.read(0.5)
        self._connection.close()
        if self.status is None:
            self.status = self._server.reap(self.pid)
        return self.status

    def is_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status is not None and os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL

    def said(self, word: str) -> list[list[str]]:
        """The lines that begin with a word, without it."""
        return [line[1:] for line in self.lines if line[0] == word]

    def failure(self) -> str:
        """The traceback that the child sent, if it failed."""
        return "\n".join(json.loads(" ".join(words)) for words in self.said("FAILED"))


class ForkServer:
    """The parent's handle of the server process, which has this environment (None: the parent's)."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair()
        given = os.environ if environment is None else environment
        environment = {**given, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment
        )
        theirs.close()
        self._connection = ours
        self._replies = ours.makefile("r")
        self._children: dict[int, Child] = {}

    def start(self, function: Callable[..., None], **arguments: Any) -> Child:
        """Forks a child that calls function(channel, **arguments); the arguments go through JSON."""
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LINE_BUFFER)
        request = {"module": function.__module__, "name": function.__qualname__, "arguments": arguments}
        socket.send_fds(self._connection, [json.dumps(request).encode()], [theirs.fileno()])
        theirs.close()
        child = Child(self, int(self._replies.readline()), ours)
        self._children[child.pid] = child
        return child

    def reap(self, pid: int) -> int:
        """Waits for the end of a child and returns its status."""
        self._connection.sendall(json.dumps({"reap": pid}).encode())
        self._children.pop(pid, None)
        return int(self._replies.readline())

    def kill_all(self) -> None:
        """Ends the children that are left, after a test that failed."""
        for child in list(self._children.values()):
            child.kill()

    def close(self) -> None:
        """Ends the server and all children."""
        self.kill_all()
        self._replies.close()
        self._connection.close()
        self._process.wait()


@contextlib.contextmanager
def fork_server(environment: Mapping[str, str] | None = None) -> Iterator[ForkServer]:
    """A server for the length of a with block."""
    server = ForkServer(environment)
    try:
        yield server
    finally:
        server.close()


# ---- the server process ------------------------------------------------------------------------------------------


def _run_child(request: dict[str, Any], descriptor: int) -> None:
    """In the child: never returns."""
    code = CHILD_FAILED
    connection = socket.socket(fileno=descriptor)
    channel = Channel(connection)
    try:
        function = getattr(importlib.import_module(request["module"]), request["name"])
        function(channel, **request["arguments"])
        code = 0
    except BaseException:
        with contextlib.suppress(OSError):
            channel.send("FAILED", json.dumps(traceback.format_exc()))
    finally:
        os._exit(code)


def _serve(connection: socket.socket) -> None:
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, _REQUEST_MAX, 1)
        if not data:
            return
        request = json.loads(data)
        if "reap" in request:
            answer = os.waitpid(request["reap"], 0)[1]
        else:
            with contextlib.suppress(ImportError):
                importlib.import_module(request["module"])  # here, so that the next child has it already
            answer = os.fork()
            if answer == 0:
                connection.close()
                _run_child(request, descriptors[0])
            os.close(descriptors[0])
        connection.sendall(f"{answer}\n".encode())


def _import_everything() -> None:
    for name in ("numpy", "pyarrow.compute", "pyarrow.ipc", "sqlite3", "xxhash"):
        importlib.import_module(name)
    writers = importlib.import_module(f"{__package__}.writers")
    for path_name in writers.PATHS:  # what is imported at first use, pandas by pyarrow for one, is imported here
        writers.table_of(path_name, 0, 0).to_pylist()
    for name in writers.sc.__all__:
        getattr(writers.sc, name)


if __name__ == "__main__":
    _import_everything()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _serve(control)
