"""Deliberate bugs in Python, beside those of csrc/control.h: functions replaced from here, none in streamcore/ itself.

The build with deliberate bugs has this file as its sitecustomize.py. So it runs first in every Python process that has
that build on its path, and there the variable STREAMCORE_PYTHON_CONTROL names the bug of the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

PYTHON_BUGS: dict[str, Callable[[], None]] = {}


def _bug(put_in: Callable[[], None]) -> Callable[[], None]:
    PYTHON_BUGS[put_in.__name__] = put_in
    return put_in


# ---- groups and their offsets ----------------------------------------------------------------------------------


@_bug
def commits_run_ahead() -> None:
    """A committed offset is one beyond what was processed."""
    from streamcore import groups

    write = groups.write_offsets

    def write_more(connection: Any, group: str, offsets: Any) -> None:
        write(connection, group, {key: (offset + 1, text) for key, (offset, text) in offsets.items()})

    groups.write_offsets = write_more


@_bug
def groups_stay_ahead() -> None:
    """After a loss of power a group stays where it was, although its log ends before that."""
    from streamcore import groups

    groups.recover_offsets = lambda _: 0


@_bug
def zombie_commits() -> None:
    """A commit counts also of a partition that was given to another member."""
    from streamcore import groups

    def apply_any(connection: Any, group: str, _: Any, offsets: Any) -> None:
        groups.write_offsets(connection, group, offsets)

    groups.apply_offsets = apply_any


@_bug
def two_owners() -> None:
    """A member takes its partitions although others have not given them up."""
    from streamcore import groups

    take = groups.take

    def take_all(connection: Any, group: str, member: str) -> Any:
        connection.execute(
            "update group_partitions set owner = null where group_name = ? and target = ? and owner is not target",
            (group, member),
        )
        return take(connection, group, member)

    share_of = groups.share_of

    def share_of_all(connection: Any, group: str, member: str) -> Any:
        share = share_of(connection, group, member)
        if share is None:
            return None
        rows = connection.execute(
            "select topic_id, partition from group_partitions where group_name = ? and target = ? and owner is not ?",
            (group, member, member),
        )
        return share._replace(ready={tuple(row) for row in rows})

    groups.take, groups.share_of = take_all, share_of_all


@_bug
def heartbeats_lost() -> None:
    """Members say that they live, and nobody writes it down."""
    from streamcore import groups

    def beat_into_the_air(*_: Any) -> bool:
        return True

    groups.beat = beat_into_the_air


@_bug
def partition_left_out() -> None:
    """An assignment gives the last partition to nobody."""
    from streamcore import assignment, groups

    assign = assignment.assign

    def assign_fewer(*arguments: Any) -> Any:
        found = assign(*arguments)
        return {key: found[key] for key in sorted(found)[:-1]} if len(found) > 1 else found

    assignment.assign = groups.assign = assign_fewer


# ---- transactions ----------------------------------------------------------------------------------------------


@_bug
def zombie_decides() -> None:
    """A transaction that was fenced may claim, commit and abort."""
    from streamcore.transactions import Coordinator

    def check_nothing(*_: Any) -> None:
        return None

    Coordinator._check = staticmethod(check_nothing)


@_bug
def decision_not_finished() -> None:
    """What was decided and has no markers is left so by who opens the store next."""
    from streamcore.transactions import Coordinator

    def finish_nothing(*_: Any) -> None:
        return None

    Coordinator._finish_decision = finish_nothing


@_bug
def decision_forgotten_too_early() -> None:
    """A decision goes when its markers are written, not when they are durable."""
    from streamcore.transactions import Coordinator

    def is_durable(*_: Any) -> bool:
        return True

    Coordinator._is_durable = is_durable


@_bug
def offsets_without_their_transaction() -> None:
    """Consumer offsets are committed by a change of the catalog of their own, before the decision."""
    from streamcore.transactions import Coordinator

    decide = Coordinator.decide

    def decide_apart(self: Any, name: str, producer_id: int, epoch: int, places: Any, offsets: Any, **how: Any) -> None:
        with self._store.catalog.changing() as connection:
            for source, given in offsets:
                source.apply_offsets(connection, given)
        decide(self, name, producer_id, epoch, places, [], **how)

    Coordinator.decide = decide_apart


# ---- the catalog, retention ------------------------------------------------------------------------------------


@_bug
def lost_update_of_settings() -> None:
    """Settings are written over those that another process has changed meanwhile."""
    import dataclasses

    from streamcore.catalog import Catalog

    change = Catalog.change_topic

    def change_anyway(self: Any, row: Any) -> bool:
        found = self.topic_by_id(row.id)
        return change(self, dataclasses.replace(row, generation=found.generation + 1))

    Catalog.change_topic = change_anyway


@_bug
def deleted_topic_stays_in_the_catalog() -> None:
    """A topic's files go, its name does not."""
    from streamcore.catalog import Catalog

    def remove_nothing(*_: Any) -> bool:
        return True

    Catalog.remove_topic = remove_nothing


@_bug
def retention_takes_one_too_many() -> None:
    """Retention by size removes a segment more than is surplus."""
    from streamcore import retention

    find = retention.end_of_surplus

    def find_more(held: Any, retention_bytes: int | None) -> int:
        end = find(held, retention_bytes)
        later = [segment.end_offset for segment in held[:-1] if segment.end_offset > end]
        return end if retention_bytes is None or not later else later[0]

    retention.end_of_surplus = find_more


def _begin() -> None:
    # An editable install finds the package before the path is looked at.
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if "ScikitBuildRedirectingFinder" not in (type(finder).__name__, getattr(finder, "__name__", ""))
    ]
    if name := os.environ.get("STREAMCORE_PYTHON_CONTROL"):
        PYTHON_BUGS[name]()


if __name__ == "sitecustomize":
    _begin()
