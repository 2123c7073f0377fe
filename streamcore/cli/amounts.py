"""Amounts on the command line: `7d`, `512MB`, `none`, and times such as `2026-01-01T12:00`."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import click

_MILLISECONDS = {"": 1, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_BYTES = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _BYTES |= {_letter: 1000**_power, f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}


class Amount(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click alone
    """A whole number with a unit, or `none`, which is the string that `unset` turns into None."""

    def __init__(self, name: str, units: dict[str, int], example: str) -> None:
        self.name = name
        self._units = units
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number in the smallest unit."""
        if isinstance(value, int) or value == "none":
            return value
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)", str(value).strip().lower())
        if match is None or match[2] not in self._units:
            self.fail(f"{value!r} is no {self.name}: write it as {self._example}", param, ctx)
        unit = self._units[match[2]]
        return round(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


DURATION = Amount("duration", _MILLISECONDS, "90s, 12h, 7d, or a number of milliseconds")
SIZE = Amount("size", _BYTES, "512MB, 1GiB, or a number of bytes")


def unset(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that were given: options left out are dropped, `none` becomes None."""
    return {name: None if value == "none" else value for name, value in settings.items() if value is not None}


def position(text: str) -> int | dt.datetime | str:
    """A place in a log: `earliest`, `latest`, an offset, or a time (ISO 8601; without a zone it is UTC)."""
    if text in ("earliest", "latest"):
        return text
    if text.isdigit():
        return int(text)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither earliest, latest, an offset nor a time such as 2026-01-01T12:00"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
