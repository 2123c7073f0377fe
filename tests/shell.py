"""The command line, run in the process of the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamcore.cli import main

Captured = pytest.CaptureFixture[str]


class Shell:
    """Command lines over one store, run in this process."""

    def __init__(self, path: Path, capsys: Captured) -> None:
        self.path = path
        self._capsys = capsys
        self.err = ""

    def __call__(self, *arguments: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["--store", str(self.path), *arguments])
        captured = self._capsys.readouterr()
        self.err = captured.err
        assert (ended.value.code or 0) == status, captured.err
        return captured.out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--output", "json"))
