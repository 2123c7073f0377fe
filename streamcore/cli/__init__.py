"""The command line: `streamcore`, one module per command, imported when the command is used.

Only click is imported here: `streamcore --help` answers without loading the log, pyarrow or rich. What every command
keeps to: data on stdout, everything else (progress, notes, errors) on stderr; exit status 0, 1 for a failure and 2 for
a command line that makes no sense; one line `error: ...` instead of a traceback (`STREAMCORE_TRACEBACK=1` shows it);
a reader that closes the pipe ends a command quietly; ^C ends it with status 130.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from streamcore.cli.settings import DEFAULT_STORE, FORMS, INTERRUPTED, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cli", "main"]

# Name: (module, what the list of commands says). The modules stay unloaded until a command is used.
_COMMANDS = {
    "demo": ("demo", "A ten-second tour in a temporary store."),
    "topic": ("topic", "Create, list, describe, alter and delete topics."),
    "ingest": ("ingest", "Load files into a topic: lines, CSV, JSON lines, Parquet, Arrow."),
    "produce": ("produce", "Append lines from stdin as they come."),
    "tail": ("tail", "Print the last records of a topic, and follow it."),
    "groups": ("groups", "List, describe, reset and delete consumer groups."),
    "dlq": ("dlq", "List, show and replay records that could not be processed."),
    "sql": ("sql", "Query topics with SQL."),
    "stats": ("stats", "What a store holds and what goes on in it."),
    "tier": ("tier", "Old segments in an object store: set up, look, offload, restore."),
    "maintain": ("maintain", "Do the background work of a store."),
    "verify": ("verify", "Check every byte of a store."),
    "bench": ("bench", "Measure this machine, in ten seconds."),
    "completion": ("completion", "Print a shell completion script."),
}


class _LazyGroup(click.Group):
    """A group that knows its commands' names and imports the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which a newcomer meets them."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"streamcore.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a name that is none."""
        name = str(args[0])
        if name not in _COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, _COMMANDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table above."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from streamcore import __version__

        click.echo(f"streamcore {__version__}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--store",
    "path",
    metavar="DIR",
    envvar="STREAMCORE_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    help="The store's directory; also $STREAMCORE_STORE.",
)
@click.option(
    "--output",
    "form",
    metavar="FORMAT",
    type=click.Choice(FORMS),
    help="How results are printed: table (default), json, jsonl, csv, arrow or parquet.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context, path: str, form: str | None) -> None:
    """streamcore is an event log in a directory: topics that programs append to, read as records, tables or SQL.

    A store is a directory. A topic is a named log in it, split into partitions; each record has an offset, a timestamp,
    a key and a value. Plain topics hold bytes, typed topics hold columns.

    \b
    Start here:
      streamcore demo                                       # a tour, in a store that is thrown away
      streamcore topic create clicks --partitions 4
      echo 'ada /home' | streamcore produce clicks --key-separator ' '
      streamcore tail clicks -f
      streamcore ingest access.log --topic access --key-regex '^(\\S+)'
      streamcore sql 'select text(key) as who, count(*) from access group by all order by 2 desc limit 10'
    """
    ctx.obj = Settings(path=path, form=form)
    if os.environ.get("NO_COLOR"):  # rich looks at it, click does not
        ctx.color = False


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point: run the command line and exit with its status."""
    sys.exit(_status(args))


def _status(args: Sequence[str] | None) -> int:
    """Run a command line; its exit status."""
    try:
        result = cli.main(args=None if args is None else list(args), prog_name="streamcore", standalone_mode=False)
        _flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        return error.exit_code
    except BrokenPipeError:
        return _pipe_closed()
    except Exception as error:
        if os.environ.get("STREAMCORE_TRACEBACK"):
            raise
        if _is_closed_pipe(error):
            return _pipe_closed()
        click.echo(f"error: {explained(error)}", err=True)
        return 1


def _flush() -> None:
    """Bring a closed pipe to light while it can still be caught."""
    sys.stdout.flush()


def _is_closed_pipe(error: BaseException) -> bool:
    """Whether an error, or what it was made of, is a reader that went away."""
    seen: Any = error
    while seen is not None:
        if isinstance(seen, BrokenPipeError) or (isinstance(seen, OSError) and seen.errno == 32):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _pipe_closed() -> int:
    """The reader has seen enough (`| head`): end quietly, and keep the interpreter from complaining at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def explained(error: Exception) -> str:
    """An error in one line, with its kind where the text alone would not say what happened."""
    text = " ".join(str(error).split()) or type(error).__name__
    modules = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError) and error.strerror and modules == "builtins":
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    expected = isinstance(error, OSError | ValueError | TypeError | LookupError) and not isinstance(error, KeyError)
    if expected or modules in ("streamcore", "duckdb", "_duckdb", "pyarrow"):
        return text
    return f"{type(error).__name__}: {text} (STREAMCORE_TRACEBACK=1 shows where)"
