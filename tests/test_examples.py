"""The examples in `--help`, which docs/cli.md repeats: each one runs as it stands there.

Examples that create what they use run one after the other in an empty folder. The others run in a copy of a folder
with the topics and files that they speak of. What follows a log for ever is interrupted when it has shown something.
`jq` and `journalctl` are stand-ins, so that it does not matter whether a machine has them, or what is in its journal.
"""

from __future__ import annotations

import contextlib
import gzip
import inspect
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamcore as sc
from streamcore.cli import cli
from streamcore.dead_letters import ATTEMPTS, ERROR, HEADERS, OFFSET, PARTITION

DEADLINE_S = 60
EMPTY = {"streamcore", "streamcore demo", "streamcore topic", "streamcore topic create", "streamcore ingest"}
SLOW = {"streamcore bench"}
ENDLESS = (" -f", "tail -F")

JQ = """\
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
text = ""
for line in sys.stdin:
    text += line
    try:
        found = json.loads(text)
    except ValueError:
        continue
    print(json.dumps(found[sys.argv[1].removeprefix(".")]), flush=True)
    text = ""
"""
JOURNALCTL = """\
print("2026-01-01T10:00:00+00:00 web-1 app[7]: started")
print("2026-01-01T10:00:01+00:00 web-1 app[7]: listening")
"""


def examples() -> Iterator[tuple[str, list[str]]]:
    """Each command with the examples in its help."""

    def below(name: str, command: click.Command) -> Iterator[tuple[str, list[str]]]:
        for part in inspect.cleandoc(command.help or "").split("\n\n"):
            if part.startswith("\b\n"):
                yield name, [line.strip() for line in part.splitlines()[2:]]
        if isinstance(command, click.Group):
            context = click.Context(command)
            for child in command.list_commands(context):
                found = command.get_command(context, child)
                assert found is not None
                yield from below(f"{name} {child}", found)

    return below("streamcore", cli)


EXAMPLES = dict(examples())


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which `streamcore` is this interpreter's `python -m streamcore`, and stand-ins for other programs."""
    folder = tmp_path_factory.mktemp("bin")
    streamcore = folder / "streamcore"
    streamcore.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m streamcore "$@"\n')
    streamcore.chmod(0o755)
    for name, code in (("jq", JQ), ("journalctl", JOURNALCTL)):
        (folder / name).write_text(f"#!{sys.executable}\n{code}")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that examples name, and no store."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "access.log").write_text('10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 7\n' * 3)
    (folder / "app.log").write_text("started\n")
    (folder / "quakes.csv").write_text("DateTime,Source,Magnitude\n2016/01/01 00:30:04.91,NC,2.5\n")
    (folder / "events").mkdir()
    for number in range(2):
        with gzip.open(folder / "events" / f"{number}.jsonl.gz", "wt") as file:
            file.write('{"user": {"id": "ada"}, "at": "2026-01-01T10:00:00Z"}\n')
    pq.write_table(pa.table({"fare": [1.5, 2.25], "stops": [3, 4]}), folder / "trips.parquet")
    (folder / ".config" / "fish" / "completions").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def furnished(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with a store that has the topics that examples speak of."""
    folder = tmp_path_factory.mktemp("furnished") / "folder"
    shutil.copytree(files, folder)
    with sc.open(folder / "streamcore-data") as store:
        clicks = store.create_topic("clicks", partitions=4)
        clicks.append([b'{"page": "/home"}'] * 5000, keys=[b"ada"] * 5000, partition=0)
        clicks.append([b'{"page": "/cart"}'] * 10, keys=[b"bob"] * 10)
        store.create_topic("web-access").append([b"GET /"])
        for name in ("greetings", "app"):
            store.create_topic(name)
        quakes = store.create_topic("quakes", schema=pa.schema([("magnitude", pa.float64()), ("place", pa.string())]))
        quakes.append([{"magnitude": 6.4, "place": "Ridgecrest"}])
        prices = [("symbol", pa.string()), ("price", pa.decimal128(12, 4)), ("at", pa.timestamp("ms", tz="UTC"))]
        schema = pa.schema([pa.field(name, kind, nullable=name != "symbol") for name, kind in prices])
        store.create_topic("prices", schema=schema)
        store.group("billing", create=True).reset("clicks", "earliest")
        dead, story = store.create_topic("clicks-dead", partitions=4), dict.fromkeys(HEADERS, b"clicks")
        story |= {ERROR: b"ValueError", PARTITION: b"0", OFFSET: b"7", ATTEMPTS: b"4"}
        for partition, count in ((0, 20), (2, 5)):
            dead.append([b"GET /"] * count, headers=[story] * count, partition=partition)
        store.create_topic("clicks-retry")
    return folder


def give_a_tier(folder: Path) -> None:
    """The store's tier is the folder `archive`, and has what is in `clicks`."""
    with sc.open(folder / "streamcore-data", tier=f"file://{folder}/archive") as store:
        assert store.tier is not None
        clicks = store.topic("clicks")
        clicks.alter(tier=True)
        clicks.roll()
        clicks.offload()
        store.tier.back_up()


def run(example: str, folder: Path, path: str) -> None:
    """Run an example in a shell whose user answers yes to every question, and interrupt it if it does not end."""
    shell = "zsh" if "completion zsh" in example else "bash"
    if shutil.which(shell) is None:
        shell, example = "bash", "streamcore completion zsh | grep compdef"
    options = (
        ["-f", "-c", f"autoload -U compinit; compinit -u; {example}"]
        if shell == "zsh"
        else ["-o", "pipefail", "-c", example]
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMCORE_")}
    environment |= {"PATH": path, "HOME": str(folder), "TMPDIR": str(folder)}
    keyboard, stdin = pty.openpty()
    os.write(keyboard, b"y\n")
    output = folder / "output"
    with output.open("wb") as printed:
        process = subprocess.Popen(
            [shell, *options], cwd=folder, env=environment, stdin=stdin, stdout=printed, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    os.close(stdin)
    try:
        if any(mark in example for mark in ENDLESS):
            wait_for_signs_of_life(process, output, folder)
            os.killpg(process.pid, signal.SIGINT)
            allowed = {0, 130, -signal.SIGINT}
        else:
            allowed = {0}
        status = process.wait(timeout=DEADLINE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(keyboard)
    said = output.read_text(errors="replace")
    assert status in allowed, f"{example}\nended with {status} and printed:\n{said}"
    assert "Traceback" not in said, f"{example}\nprinted:\n{said}"


def wait_for_signs_of_life(process: subprocess.Popen[bytes], output: Path, folder: Path) -> None:
    """Until something is printed, or has arrived in the topic that a log is followed into."""
    with sc.open(folder / "streamcore-data", mode="r") as store:
        names = {topic.name for topic in store.topics()}
        end = time.monotonic() + DEADLINE_S
        while not output.stat().st_size and not ("app" in names and store.topic("app").scan().count()):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < end, "it shows no sign of life"
            time.sleep(0.02)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in EXAMPLES])
def test_the_examples_of_a_command_run_as_they_stand_in_its_help(
    name: str, tools: str, files: Path, furnished: Path, tmp_path: Path
) -> None:
    if any(" sql " in example or " demo" in example for example in EXAMPLES[name]):
        pytest.importorskip("duckdb")
    for number, example in enumerate(EXAMPLES[name]):
        folder = tmp_path / ("folder" if name in EMPTY else str(number))
        if not folder.exists():
            shutil.copytree(files if name in EMPTY else furnished, folder)
            if name.startswith("streamcore tier") and name != "streamcore tier set":
                give_a_tier(folder)
        run(example, folder, tools)


def test_every_command_has_examples() -> None:
    assert {"streamcore", "streamcore tail", "streamcore topic alter"} < set(EXAMPLES)
    assert sum(map(len, EXAMPLES.values())) > 40
