"""What every command keeps to: exit statuses, where output goes, help that teaches, quick start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import streamcore as sc
from streamcore.cli import cli, main

try:
    import duckdb  # noqa: F401

    SQL = [["sql", "select 1"]]
except ModuleNotFoundError:
    SQL = []

Captured = pytest.CaptureFixture[str]


def run(*arguments: str) -> int:
    """The exit status of a command line, run in this process."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code if isinstance(ended.value.code, int) else 0


def spawn(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command line run as a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMCORE_")} | settings
    return subprocess.run(
        [sys.executable, "-m", "streamcore", *arguments], capture_output=True, text=True, env=environment, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A store with one plain topic of 1,000 records."""
    path = tmp_path / "store"
    with sc.open(path) as store:
        store.create_topic("clicks", partitions=2).append([b"value %d" % number for number in range(1000)])
    return str(path)


def commands() -> list[tuple[str, ...]]:
    names: list[tuple[str, ...]] = []
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        names.append((name,))
        if isinstance(command, click.Group):
            names += [(name, inner) for inner in command.list_commands(context)]
    return names


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_has_help_with_examples(words: tuple[str, ...], capsys: Captured) -> None:
    assert run(*words, "--help") == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"streamcore {' '.join(words)}" in text
    assert "Usage: streamcore " + " ".join(words) in text


def test_help_lists_every_command_and_loads_none(capsys: Captured) -> None:
    code = (
        "import sys\n"
        "from streamcore.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'pyarrow', 'numpy', 'rich', 'duckdb', 'streamcore._core'} & set(sys.modules)\n"
        "print('LOADED', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout
    for name in ("demo", "topic", "ingest", "produce", "tail", "sql", "verify", "bench", "completion"):
        assert f"\n  {name} " in done.stdout


def test_the_version_is_shown(capsys: Captured) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"streamcore {sc.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tpic",), "There is no command 'tpic'. Did you mean 'topic'?"),
        (("topic", "create"), "Missing argument 'TOPIC'"),
        (("topic", "create", "x", "--retention-ms", "7 moons"), "is no duration: write it as 90s, 12h, 7d"),
        (("--output", "xml", "topic", "list"), "'xml' is not one of"),
        (("ingest", "--topic", "x"), "Missing argument 'FILE...'"),
        (("ingest", "f", "--topic", "x", "--key", "a", "--key-regex", "b"), "exclude each other"),
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_2(
    arguments: tuple[str, ...], message: str, capsys: Captured
) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_a_failure_is_one_line_on_stderr_and_1(folder: str, capsys: Captured) -> None:
    assert run("--store", folder, "tail", "click") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: there is no topic 'click'; did you mean 'clicks'?\n"


def test_a_missing_store_is_not_made_by_reading_it(tmp_path: Path, capsys: Captured) -> None:
    for words in (["topic", "list"], ["tail", "x"], *SQL, ["verify"], ["produce", "x"]):
        assert run("--store", str(tmp_path / "none"), *words) == 1
        assert "there is no store at" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_file_that_cannot_be_read_is_named(folder: str, capsys: Captured) -> None:
    assert run("--store", folder, "ingest", "no-such-file", "--topic", "x") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "no-such-file" in error
    assert error.count("\n") == 1


def test_a_traceback_is_shown_when_asked_for(folder: str) -> None:
    done = spawn("--store", folder, "tail", "none", STREAMCORE_TRACEBACK="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Traceback" not in spawn("--store", folder, "tail", "none").stderr


def test_the_store_is_named_before_or_behind_the_command_or_in_the_environment(folder: str, capsys: Captured) -> None:
    assert run("--store", folder, "topic", "list", "--output", "csv") == 0
    before = capsys.readouterr().out
    assert run("topic", "list", "--store", folder, "-o", "csv") == 0
    assert capsys.readouterr().out == before
    assert spawn("topic", "list", "-o", "csv", STREAMCORE_STORE=folder).stdout == before
    assert "clicks" in before


def test_a_reader_that_goes_away_ends_a_command_quietly(folder: str) -> None:
    words = ["--store", folder, "tail", "clicks", "--from", "earliest", "--format", "json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamcore", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 0
    process.stderr.close()


def test_no_colour_and_no_progress_bar_in_a_pipe(folder: str) -> None:
    for words in (["tail", "clicks"], ["topic", "list"], *SQL, ["verify"]):
        done = spawn("--store", folder, *words)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_complete_commands_and_topics(shell: str, folder: str, capsys: Captured) -> None:
    assert run("completion", shell) == 0
    assert "_STREAMCORE_COMPLETE" in capsys.readouterr().out
    words = {"COMP_WORDS": "streamcore tail cl", "COMP_CWORD": "2"}
    done = spawn(_STREAMCORE_COMPLETE="bash_complete", STREAMCORE_STORE=folder, **words)
    assert done.stdout.strip() == "plain,clicks"


def test_help_answers_quickly() -> None:
    """Not a benchmark: an order of magnitude above the goal, so that only a heavy import can fail it."""
    began = time.monotonic()
    assert spawn("--help").returncode == 0
    assert time.monotonic() - began < 5
