"""Which partitions a consumer reads, and what happens when these become others.

Without a group it reads all that it asks for; in a group, what the group gives it. Either way the changes are made when
the consumer is asked for records next, in the caller's thread and under the consumer's lock, callbacks included.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from streamcore import _core, groups
from streamcore.assignment import Key
from streamcore.commits import Commits
from streamcore.consumer_config import ConsumerConfig
from streamcore.errors import FencedError, TopicNotFoundError
from streamcore.fetcher import Fetcher
from streamcore.groups import Place, TopicPartition
from streamcore.membership import Membership
from streamcore.positions import Positions

if TYPE_CHECKING:
    from streamcore.consumer import Consumer
    from streamcore.store import Store

Callback = Callable[["Consumer", list[TopicPartition]], None]

_READER_WAIT_MS = 500.0  # nobody signals to a store that was opened for reading that there are new partitions
_log = logging.getLogger("streamcore.consumer")


class Listener:
    """The callbacks of a consumer. Holds the consumer weakly: one that is dropped is to be collected at once."""

    def __init__(
        self,
        consumer: Consumer,
        positions: Positions,
        on_assigned: Callback | None,
        on_revoked: Callback | None,
        on_lost: Callback | None,
    ) -> None:
        self._consumer = weakref.ref(consumer)
        self._positions = positions
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._on_lost = on_lost

    def assigned(self, keys: Iterable[Key]) -> None:
        """They are read from now on."""
        self._tell(self._on_assigned, keys)

    def revoked(self, keys: Iterable[Key]) -> None:
        """They are given up next."""
        self._tell(self._on_revoked, keys)

    def lost(self, keys: Iterable[Key]) -> None:
        """They are another's already."""
        self._tell(self._on_lost, keys)

    def _tell(self, callback: Callback | None, keys: Iterable[Key]) -> None:
        consumer = self._consumer()
        if callback is not None and consumer is not None:
            callback(consumer, self._positions.named(keys))


class FullAssignment:
    """All partitions of all topics that a consumer without a group asks for."""

    def __init__(
        self,
        store: Store,
        subscription: list[str],
        config: ConsumerConfig,
        positions: Positions,
        fetcher: Fetcher,
        listener: Listener,
    ) -> None:
        self._store = store
        self._signal = store.consuming.signal
        self._subscription = subscription
        self._config = config
        self._positions = positions
        self._fetcher = fetcher
        self._listener = listener
        self._seen: int | None = None
        self._look_again = 0.0  # when a reader does, by the monotonic clock

    def begin(self) -> None:
        """There is nothing to wait for: all is assigned from the start."""

    def update(self) -> None:
        """Finds topics and partitions that are new."""
        due = self._store.mode == "r" and time.monotonic() >= self._look_again
        if due or self._seen != self._signal.count():
            self._look()

    def watches(self) -> list[tuple[_core.Signal, int]]:
        """The signals that end a wait, as they were when this last looked."""
        return [(self._signal, self._seen or 0)]

    def patience_ms(self, timeout_ms: float | None, *, watching: bool) -> float | None:
        """How long to wait at most before `update` looks again. `watching`: news would end the wait."""
        if watching and self._store.mode != "r":
            return timeout_ms
        return _READER_WAIT_MS if timeout_ms is None else min(timeout_ms, _READER_WAIT_MS)

    def _look(self) -> None:
        first = self._seen is None
        self._seen = self._signal.count()
        self._look_again = time.monotonic() + _READER_WAIT_MS / 1000
        patterns = [wanted for wanted in self._subscription if groups.is_pattern(wanted)]
        if patterns:
            known = {topic.name: topic for topic in self._store.topics()}
            found = [known[name] for name in groups.matching(patterns, known)]
        else:
            found = []
        found += [self._store.topic(name) for name in self._subscription if name not in patterns]
        new = {
            (topic.id, partition): topic
            for topic in found
            for partition in range(topic.partition_count)
            if (topic.id, partition) not in self._positions.offsets
        }
        added = []
        for (topic_id, partition), topic in new.items():
            start: Place = self._config.start if first else "earliest"
            try:
                position = groups.resolve_place(topic, partition, start, "start", self._config.isolation)
            except TopicNotFoundError:  # deleted just now: a pattern matches it no longer
                if topic.name in self._subscription:
                    raise
                continue
            self._positions.add(topic, partition, position)
            added.append((topic_id, partition))
        if added:
            self._fetcher.replan()
            self._listener.assigned(added)


class GroupAssignment:
    """The partitions that a group gives a consumer. `rebalances`: how often they became others."""

    def __init__(
        self,
        store: Store,
        subscription: list[str],
        config: ConsumerConfig,
        positions: Positions,
        fetcher: Fetcher,
        listener: Listener,
        notify: Callable[[], None],
    ) -> None:
        assert config.group is not None
        timeout_ms, instance_id = config.member_timeout_ms, config.instance_id
        self._member = Membership(store, config.group, subscription, timeout_ms, instance_id, notify)
        self.commits = Commits(store, self._member, positions, fetcher, config)
        self.rebalances = 0
        self._store = store
        self._heart = store.consuming.heart
        self._config = config
        self._positions = positions
        self._fetcher = fetcher
        self._listener = listener

    @property
    def member_id(self) -> str:
        """The member's id; another one after it was lost."""
        return self._member.id

    def join(self) -> None:
        """Becomes a member of the group, and is kept alive as one."""
        self._member.join()
        self._heart.add(self._member)
        self.commits.plan()

    def begin(self) -> None:
        """The first assignment comes with the first call that needs one."""
        if not self._positions.offsets and (self._member.stale or self._member.lost):
            self._rebalance()

    def update(self) -> None:
        """Does what the group asks for, and an automatic commit: what was handed out before counts as processed."""
        if self._member.lost or self._member.stale:
            self._rebalance()
        self.commits.commit_if_due()

    def watches(self) -> list[tuple[_core.Signal, int]]:
        """None: changes of the group interrupt a wait through `notify`."""
        return []

    def patience_ms(self, timeout_ms: float | None, *, watching: bool) -> float | None:
        """As long as the caller wants to wait."""
        return timeout_ms

    def leave(self, *, failed: bool) -> None:
        """Commits if that is automatic, and leaves. `failed`: what was handed out last is not processed."""
        self._heart.remove(self._member)
        if self._store.closed or self._member.lost:
            return
        self.commits.commit_last(failed=failed)
        if self._positions.offsets:
            self._listener.revoked(list(self._positions.offsets))
        if self._member.instance is None:
            self._member.leave()

    def abandon(self) -> None:
        """Has another thread end the membership; called by the garbage collector, so it takes no lock."""
        self._heart.abandon(self._member)

    def _rebalance(self) -> None:
        member = self._member
        share = None if member.lost else member.share()
        if share is None:
            self._lose()
            share = member.share()
            if share is None:
                return  # lost again at once; the next call sees to it
        lost = self._positions.offsets.keys() - share.kept
        if lost:
            self._revoke(lost, share.lost)
        elif share.lost:
            member.give_up()
        adopted = share.kept - self._positions.offsets.keys()  # from the static member that this one replaced
        if share.ready or adopted:
            self._assign(adopted)

    def _lose(self) -> None:
        """The group has forgotten this member: what it read may be read by another one by now."""
        member = self._member
        _log.warning("a member of group %s was taken for dead: it joins anew", member.group)
        lost = list(self._positions.offsets)
        self._fetcher.lose_all()
        if member.is_replaced():
            raise FencedError(f"another member with the instance id {member.instance!r} is in group {member.group!r}")
        member.join()
        if lost:
            self._listener.lost(lost)

    def _revoke(self, lost: Iterable[Key], owned: set[Key]) -> None:
        lost = sorted(lost)
        self._fetcher.drop()
        self.rebalances += 1
        try:
            self.commits.commit_before_loss(owned)
            self._listener.revoked(lost)
        finally:
            self._positions.remove(lost)
            self._fetcher.replan()
            self._member.give_up()

    def _assign(self, adopted: set[Key]) -> None:
        taken, offsets = self._member.take()
        taken.update(dict.fromkeys(adopted, False))
        if not taken:
            return
        self.rebalances += 1
        self._fetcher.drop()
        for key, added in taken.items():
            topic = self._positions.topics.get(key[0]) or self._store.topic_with_id(key[0])
            if topic is None:  # deleted just now: the next rebalance takes it away
                continue
            start: Place = "earliest" if added else self._config.start
            try:
                topic.check_partition(key[1])  # which looks again, if it is news to this handle
                position = (
                    int(offsets[key])
                    if key in offsets
                    else groups.resolve_place(topic, key[1], start, "start", self._config.isolation)
                )
            except TopicNotFoundError:  # likewise
                continue
            self._positions.add(topic, key[1], position)
        self._fetcher.replan()
        self._listener.assigned(list(taken))
