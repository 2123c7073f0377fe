"""Runs sessions under system_calls.c, a trace for each: `python -m <this module>`, started with the library preloaded.

The process imports everything once and forks each session, which says what it left to the next one.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from ..system_calls import Event, SystemCalls, environment, other_boot_id, read_trace
from .workloads import WORKLOADS, Memory, run_session


class Recorder:
    """The process that forks sessions, and its folder for stores and traces. A context manager."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env={**environment(library, folder / "nothing", boot_id=other_boot_id(folder)), "PYTHONSAFEPATH": "1",
                 "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def session(self, workload: str, store_path: Path, seed: str, memory: Memory) -> tuple[list[Event], Memory]:
        """Runs one; returns its trace, relative to the store's parent, and what it leaves to the next one."""
        trace, left = self.folder / "trace", self.folder / "memory"
        trace.unlink(missing_ok=True)
        left.write_bytes(pickle.dumps(memory))
        request = {"workload": workload, "store": str(store_path), "seed": seed, "trace": str(trace), "left": str(left)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer == "0\n", f"the session of {workload} failed: {answer!r}"
        return list(read_trace(trace)), pickle.loads(left.read_bytes())

    def run(self, workload: str, seed: str, root: Path, memory: Memory) -> list[Event]:
        """All sessions of a workload, one behind the other, in a store below `root`."""
        events = []
        for number in range(WORKLOADS[workload].sessions):
            trace, memory = self.session(workload, root / "store", f"{seed} {number}", memory)
            events += trace
        return events

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _run(request: dict[str, Any]) -> None:
    calls = SystemCalls()
    memory: Memory = pickle.loads(Path(request["left"]).read_bytes())
    store_path = Path(request["store"])
    calls.root(store_path.parent)
    calls.trace(request["trace"])
    run_session(request["workload"], store_path, request["seed"], calls.note, memory)
    calls.trace(None)
    Path(request["left"]).write_bytes(pickle.dumps(memory))


def _serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _run(json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    _serve()
