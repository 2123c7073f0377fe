"""The settings of a consumer, checked."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any, Literal

from streamcore import groups
from streamcore.columns import microseconds

Start = datetime.datetime | Literal["earliest", "latest"]
Isolation = Literal["committed", "uncommitted"]

_MEMBER_TIMEOUT_MS_MIN = 50


@dataclasses.dataclass(frozen=True, slots=True)
class ConsumerConfig:
    """What `Store.consumer` was asked for, apart from the topics and the callbacks."""

    group: str | None
    start: Start
    isolation: Isolation
    auto_commit: bool
    member_timeout_ms: int
    instance_id: str | None
    auto_commit_interval_ms: int

    def __post_init__(self) -> None:
        if self.group is not None:
            groups.check_group_name(self.group)
        if isinstance(self.start, datetime.datetime):
            microseconds(self.start, "start")
        elif self.start not in ("earliest", "latest"):
            raise ValueError(f"start is {self.start!r}; 'earliest', 'latest' or an aware datetime is allowed")
        if self.isolation not in ("committed", "uncommitted"):
            raise ValueError(f"isolation is {self.isolation!r}; 'committed' or 'uncommitted' is allowed")
        if not isinstance(self.auto_commit, bool):
            raise TypeError(f"auto_commit is {self.auto_commit!r}; a bool is needed")
        if self.group is None and (self.auto_commit or self.instance_id is not None):
            raise ValueError("auto_commit and instance_id need a group")
        _check_instance_id(self.instance_id)
        check_count("member_timeout_ms", self.member_timeout_ms)
        check_count("auto_commit_interval_ms", self.auto_commit_interval_ms)
        if self.member_timeout_ms < _MEMBER_TIMEOUT_MS_MIN:
            raise ValueError(
                f"member_timeout_ms is {self.member_timeout_ms}; {_MEMBER_TIMEOUT_MS_MIN} or more is allowed"
            )


def check_count(name: str, count: Any) -> None:
    """Raises TypeError and ValueError for what is no int of 1 or more."""
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name} is {count!r}; an int is needed")
    if count < 1:
        raise ValueError(f"{name} is {count}; 1 or more is allowed")


def _check_instance_id(given: Any) -> None:
    if given is not None and (not isinstance(given, str) or not given.isprintable() or not given):
        raise ValueError(f"instance_id is {given!r}; a str of printable characters is needed")
