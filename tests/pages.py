"""The pages of the documentation, and how their code is run.

In a page, blocks run in their order, in an empty folder and one namespace per page:

    ```python            runs; in `expression  # → text` the value's repr must be the text, `...` standing for anything
    ```console           each line `$ command` runs in a shell; the lines below it must be what it prints
    ```python norun      (or any other language) is only shown
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPTIONAL = {"duckdb", "polars", "pandas", "nanoarrow", "fsspec", "obstore"}
COMMAND_TIMEOUT_S = 60
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    body: str
    line: int  # of its first line in the page, from 1


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        info = found["info"].split()
        if info and "norun" not in info:
            yield Block(info[0], found["body"], text.count("\n", 0, found.start("body")) + 1)


def matches(wanted: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(wanted + "\n", got + "\n", doctest.ELLIPSIS)


# ---- python ----


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    """Runs a block, statement by statement; the value of an expression with an arrow behind it is compared."""
    lines = block.body.splitlines()
    compared = 0
    for node in ast.parse(block.body).body:
        arrow = lines[node.end_lineno - 1].partition("# → ")[2].strip()
        where = f"{name_of(page)}:{block.line + node.lineno - 1}"
        ast.increment_lineno(node, block.line - 1)
        if arrow and isinstance(node, ast.Expr):
            compared += 1
            value = eval(compile(ast.Expression(node.value), where, "eval"), namespace)
            assert matches(arrow, repr(value)), f"{where}: the value is {value!r}"
        else:
            exec(compile(ast.Module([node], []), where, "exec"), namespace)
    arrows = block.body.count("# → ")
    assert compared == arrows, f"{name_of(page)}:{block.line}: arrows stand behind expressions that are not indented"


# ---- commands ----


def commands_of(block: Block) -> Iterator[tuple[str, list[str]]]:
    """The commands of a block, each with the lines that it prints; `> ` goes on with a command."""
    command, printed = "", []
    for line in block.body.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, printed
            command, printed = line[2:], []
        elif line.startswith("> ") and not printed:
            command += "\n" + line[2:]
        else:
            printed.append(line)
    if command:
        yield command, printed


def tidy(lines: list[str]) -> str:
    """Lines without spaces at their ends, and without empty ones around them."""
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def run_console(block: Block, page: Path, environment: dict[str, str]) -> None:
    for command, printed in commands_of(block):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        got, wanted = tidy(done.stdout.splitlines()), tidy(printed)
        where = f"{name_of(page)}:{block.line}: $ {command}\n"
        assert done.returncode == 0 or wanted, f"{where}ended with {done.returncode} and printed:\n{got}"
        assert not wanted or matches(wanted, got), f"{where}printed:\n{got}"


# ---- a page ----


def run_page(page: Path, environment: dict[str, str]) -> None:
    """Runs all blocks of a page in this folder. Skips the test when a library that it shows is not there."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        try:
            if block.language == "python":
                run_python(block, page, namespace)
            elif block.language == "console":
                if " sql " in block.body:
                    pytest.importorskip("duckdb")
                run_console(block, page, environment)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            pytest.skip(f"{name_of(page)} needs {error.name}")


def environment_with_command(folder: Path) -> dict[str, str]:
    """The environment of commands: `streamcore`, in an empty folder, is this interpreter's `python -m streamcore`."""
    folder.mkdir()
    command = folder / "streamcore"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m streamcore "$@"\n')
    command.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STREAMCORE_")}
    return kept | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1", "TZ": "UTC"}
