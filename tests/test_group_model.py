"""Groups against a plain model: members come, go, die, lag behind with what they know, and commit anyway.

The model knows each member's view: which partitions it believes to read, and since when. What the catalog says is
compared with it after each step.
"""

from __future__ import annotations

import dataclasses
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import streamcore as sc
from streamcore import groups
from streamcore.groups import Token

GROUP = "g"
Key = tuple[str, int]


@dataclasses.dataclass
class View:
    """What a member believes."""

    id: str
    topics: frozenset[str]
    instance: str | None = None
    generation: int = 0
    holds: set[Key] = dataclasses.field(default_factory=set)
    tokens: list[tuple[Token, set[Key]]] = dataclasses.field(default_factory=list)
    is_member: bool = True


class Groups(RuleBasedStateMachine):
    """Rules call what consumers call, in any order."""

    members = Bundle("members")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.store = sc.open(Path(self.folder.name) / "store")
        self.store.catalog.ensure_tables(groups.TABLES)
        self.views: list[View] = []
        self.committed: dict[Key, int] = {}
        self.turns: Counter[Key] = Counter()  # how often each partition was taken
        self.taken_at: dict[tuple[str, Key], int] = {}
        self.count = 0

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @initialize()
    def begin(self) -> None:
        ids = [uuid.UUID("a" * 32), uuid.UUID("b" * 32)]  # assignments go by ids: the same run shall be the same again
        with mock.patch("streamcore.store.uuid.uuid4", side_effect=ids):
            self.store.create_topic("a", partitions=3)
            self.store.create_topic("b", partitions=2)

    # ---- what happens ----

    def change(self) -> Any:
        return self.store.catalog.changing(durable=False)

    @rule(
        target=members,
        topics=st.sampled_from(["a", "b", "ab", "ab", "ab"]),
        instance=st.sampled_from([None, None, "i"]),
    )
    def join(self, topics: str, instance: str | None) -> View:
        self.count += 1
        view = View(f"m{self.count:03}", frozenset(topics), instance)
        before = self.owners()
        with self.change() as connection:
            groups.join(connection, GROUP, view.id, sorted(topics), 10**9, instance)
        for other in self.views:
            if instance is not None and other.instance == instance and other.is_member:
                other.is_member = False  # replaced: what it had is the new one's
                before = {key: view.id if owner == other.id else owner for key, owner in before.items()}
        self.views.append(view)
        self.check_moves(before)
        return view

    @rule(view=consumes(members), how=st.sampled_from(["leave", "die"]))
    def go(self, view: View, how: str) -> None:
        before = self.owners()
        with self.change() as connection:
            if how == "leave":
                assert groups.leave(connection, GROUP, view.id) == view.is_member
            else:
                connection.execute("update group_members set beat_ms = -3000000000 where id = ?", (view.id,))
                groups.look_after(connection, GROUP)
        was_member, view.is_member = view.is_member, False
        view.holds.clear()
        if was_member:
            self.check_moves({key: owner for key, owner in before.items() if owner != view.id})

    @rule(view=members)
    def sync(self, view: View) -> None:
        """What a consumer does between polls."""
        with self.store.catalog.reading() as connection:
            share = groups.share_of(connection, GROUP, view.id)
        assert (share is not None) == view.is_member
        if share is None:
            view.holds.clear()
            return
        view.generation = share.generation
        view.holds &= share.kept
        with self.change() as connection:
            groups.give_up(connection, GROUP, view.id)
            taken = groups.take(connection, GROUP, view.id)
        for key in taken:
            self.turns[key] += 1
        view.holds |= share.kept | set(taken)
        view.tokens.append((Token(view.id, view.generation), set(view.holds)))
        for key in view.holds:
            self.taken_at[view.id, key] = self.turns[key]

    @rule(view=members, old=st.integers(0, 3), which=st.integers(0, 7), offset=st.integers(0, 100))
    def commit(self, view: View, old: int, which: int, offset: int) -> None:
        """With what it knows now, or knew some syncs ago."""
        if not view.tokens:
            return
        token, keys = view.tokens[max(-len(view.tokens), -1 - old)]
        if not keys:
            return
        key = sorted(keys)[which % len(keys)]
        rows = self.rows()
        owner, since, _ = rows.get(key, (None, 0, None))
        allowed = view.is_member and owner == view.id and since <= token.generation
        try:
            with self.change() as connection:
                groups.apply_offsets(connection, GROUP, token, {key: (offset, "")})
        except sc.FencedError:
            assert not allowed
            return
        assert allowed
        assert key in view.holds or owner == view.id
        self.committed[key] = offset

    @rule(name=st.sampled_from("ab"), more=st.integers(1, 2))
    def add_partitions(self, name: str, more: int) -> None:
        topic = self.store.topic(name)
        if topic.partition_count < 8:
            before = self.owners()
            topic.add_partitions(topic.partition_count + more)
            with self.change() as connection:
                groups.look_after(connection, GROUP)
            if before:
                self.check_moves(before)

    @rule()
    def reset(self) -> None:
        if GROUP not in groups.group_names(self.store.catalog):
            return
        group = self.store.group(GROUP)
        if any(view.is_member for view in self.views):
            with pytest.raises(sc.GroupError):
                group.reset("a", "latest")
        else:
            topic = self.store.topic("a")
            group.reset("a", "latest")
            self.committed.update({(topic.id, partition): 0 for partition in range(topic.partition_count)})

    # ---- what must hold ----

    def rows(self) -> dict[Key, tuple[str | None, int, str | None]]:
        with self.store.catalog.reading() as connection:
            return {
                (topic_id, partition): (owner, since, target)
                for topic_id, partition, owner, since, target in connection.execute(
                    "select topic_id, partition, owner, since, target from group_partitions"
                )
            }

    def owners(self) -> dict[Key, str]:
        return {key: owner for key, (owner, _, _) in self.rows().items() if owner is not None}

    def check_moves(self, before: dict[Key, str]) -> None:
        """When all want the same, no more partitions than must be are taken from who reads them."""
        alive = [view for view in self.views if view.is_member]
        if not alive or len({view.topics for view in alive}) > 1:
            return
        rows = self.rows()
        ids = {view.id for view in alive}
        kept = {key: owner for key, owner in before.items() if owner in ids and key in rows}
        floor, more = divmod(len(rows), len(alive))
        room = [floor + 1] * more + [floor] * (len(alive) - more)
        held = sorted(Counter(kept.values()).values(), reverse=True)
        least = sum(max(0, count - most) for count, most in zip(held, room, strict=False))
        assert sum(rows[key][2] != owner for key, owner in kept.items()) == least

    @invariant()
    def everybody_believes_something_else(self) -> None:
        holding = Counter(key for view in self.views if view.is_member for key in view.holds)
        assert not holding or max(holding.values()) == 1

    @invariant()
    def targets_are_complete_and_even(self) -> None:
        alive = [view for view in self.views if view.is_member]
        rows = self.rows()
        topics = {topic.name: topic for topic in self.store.topics()}
        wanted = {name for view in alive for name in view.topics}
        assert set(rows) == {(topics[name].id, p) for name in wanted for p in range(topics[name].partition_count)}
        by_id = {view.id: view for view in alive}
        names = {topic.id: name for name, topic in topics.items()}
        assert all(names[key[0]] in by_id[target or ""].topics for key, (_, _, target) in rows.items())
        if len({view.topics for view in alive}) == 1:
            loads = Counter(target for _, _, target in rows.values())
            assert max(loads.values()) - min(loads[view.id] for view in alive) <= 1

    @invariant()
    def commits_are_those_that_were_allowed(self) -> None:
        with self.store.catalog.reading() as connection:
            found = {key: int(offset) for key, offset in groups.committed(connection, GROUP).items()}
        assert found == self.committed


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def without_fencing(patched: pytest.MonkeyPatch) -> None:
    def apply(connection: Any, group: str, token: Token, offsets: groups.Offsets) -> None:
        groups.write_offsets(connection, group, offsets)

    patched.setattr(groups, "apply_offsets", apply)


def taking_what_others_read(patched: pytest.MonkeyPatch) -> None:
    real = groups.take

    def take(connection: Any, group: str, member: str) -> Any:
        robbed = "update group_partitions set owner = null where target = ? and owner != ?"
        connection.execute(robbed, (member, member))
        return real(connection, group, member)

    patched.setattr(groups, "take", take)


def moving_for_nothing(patched: pytest.MonkeyPatch) -> None:
    real = groups.assign
    patched.setattr(groups, "assign", lambda wanted, layout, current, unsettled: real(wanted, layout, {}))


@pytest.mark.parametrize("bug", [without_fencing, taking_what_others_read, moving_for_nothing])
def test_the_model_catches_a_bug(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    chosen = settings(
        max_examples=3000,
        derandomize=True,
        stateful_step_count=40,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(Groups, settings=chosen)
