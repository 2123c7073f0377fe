"""What all commands share: where the store is, how results are printed, and options that mean the same everywhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

    from streamcore import Store

DEFAULT_STORE = "./streamcore-data"
INTERRUPTED = 130
FORMS = ("table", "json", "jsonl", "csv", "arrow", "parquet")

_Command = TypeVar("_Command", bound="Callable[..., Any]")


@dataclass(slots=True)
class Settings:
    """The global options: `path` of the store, and the output `form`, None where none was asked for."""

    path: str
    form: str | None = None

    def open(self, mode: Literal["r", "rw"] = "rw", *, create: bool = False) -> Store:
        """Open the store. It is made only by commands that put something into it: a typing error makes no store."""
        import logging

        import streamcore

        logging.basicConfig(format="%(levelname)s: %(message)s")  # warnings, on stderr
        if not create and not Path(self.path).is_dir():
            raise click.ClickException(
                f"there is no store at {self.path!r}: name one with --store, or make one with 'streamcore topic create'"
            )
        return streamcore.open(self.path, mode=mode)


pass_settings = click.make_pass_decorator(Settings)


def _keep_store(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Settings).path = value


def _keep_form(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Settings).form = value


def store_option(command: _Command) -> _Command:
    """Let a command take the global `--store` behind its name as well."""
    return click.option(
        "--store", metavar="DIR", expose_value=False, callback=_keep_store, help="The store's directory."
    )(command)


def output_option(command: _Command) -> _Command:
    """The option of commands that print a table of results."""
    return click.option(
        "--output",
        "-o",
        type=click.Choice(FORMS),
        metavar="FORMAT",
        expose_value=False,
        callback=_keep_form,
        help="How to print the result: table (default), json, jsonl, csv, arrow or parquet.",
    )(command)


def complete_topic(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The topics of the store that begin like this, for shells."""
    from click.shell_completion import CompletionItem

    del param
    path = ctx.find_root().params.get("path") or os.environ.get("STREAMCORE_STORE") or DEFAULT_STORE
    try:
        with Settings(path).open("r") as store:
            return [CompletionItem(topic.name) for topic in store.topics() if topic.name.startswith(incomplete)]
    except Exception:
        return []  # a completion has nowhere to complain to


def topic_argument(command: _Command) -> _Command:
    """The argument TOPIC, completed from the store."""
    return click.argument("topic", shell_complete=complete_topic)(command)
