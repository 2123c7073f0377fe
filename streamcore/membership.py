"""What a process does for its members of consumer groups: heartbeats, and noticing that a group changed.

One thread per store serves all its consumers, so that a slow handler keeps no heartbeat back. It sleeps on the store's
signal (a mapped file that every change of a group raises) and does no more than mark a membership as stale or lost:
what follows, callbacks included, is done by the consumer in its own thread when it is asked for records next.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from streamcore import _core, groups
from streamcore.assignment import Key
from streamcore.errors import FencedError, StreamcoreError

if TYPE_CHECKING:
    from streamcore.store import Store

_BEATS_PER_TIMEOUT = 3  # as Apache Kafka's session.timeout.ms and heartbeat.interval.ms
_log = logging.getLogger("streamcore.groups")


class Membership:
    """One consumer's place in a group. `stale`: the group changed; `lost`: it has forgotten this member."""

    def __init__(
        self,
        store: Store,
        group: str,
        subscription: list[str],
        timeout_ms: int,
        instance: str | None,
        notify: Callable[[], None],
    ) -> None:
        self._store = store
        self.group = group
        self.instance = instance
        self._subscription = subscription
        self.timeout_ms = timeout_ms
        self.notify = notify
        self.id = ""
        self.generation = 0
        self.revision = -1
        self.stale = True
        self.lost = False
        self.commit_at_s = math.inf  # when the consumer wants to be told, by time.monotonic()

    def join(self) -> None:
        """Becomes a member, under a new id."""
        name = self.instance or "member"
        self.id = f"{name}-{uuid.uuid4().hex[:12]}"
        self.stale, self.lost = True, False
        catalog = self._store.catalog
        catalog.ensure_tables(groups.TABLES, groups.SENSE)
        with catalog.changing(durable=False) as connection:
            groups.join(connection, self.group, self.id, self._subscription, self.timeout_ms, self.instance)
        self._store.consuming.signal.set()

    def leave(self) -> None:
        """Ends the membership; its partitions are free at once."""
        with self._store.catalog.changing(durable=False) as connection:
            left = groups.leave(connection, self.group, self.id)
        if left:
            self._store.consuming.signal.set()

    def share(self) -> groups.Share | None:
        """What this member has and shall have. None: the group has forgotten it."""
        self.stale = False  # before the look: what changes behind it makes it stale again
        with self._store.catalog.reading() as connection:
            share = groups.share_of(connection, self.group, self.id)
        if share is not None:
            self.revision = share.revision
            self.generation = share.generation
        return share

    def give_up(self) -> None:
        """Frees what this member shall not have any more."""
        with self._store.catalog.changing(durable=False) as connection:
            groups.give_up(connection, self.group, self.id)
        self._store.consuming.signal.set()

    def take(self) -> tuple[dict[Key, bool], dict[Key, groups.CommittedOffset]]:
        """Takes what is free and its own; also all committed offsets of the group."""
        with self._store.catalog.changing(durable=False) as connection:
            taken = groups.take(connection, self.group, self.id)
            return taken, groups.committed(connection, self.group)

    def is_replaced(self) -> bool:
        """Whether another member has this one's instance id."""
        if self.instance is None:
            return False
        with self._store.catalog.reading() as connection:
            row = connection.execute(
                "select 1 from group_members where group_name = ? and instance = ? and id != ?",
                (self.group, self.instance, self.id),
            ).fetchone()
        return row is not None

    @property
    def token(self) -> groups.Token:
        """Who this is to a commit."""
        if self.lost:
            raise FencedError(
                f"member {self.id} is not in group {self.group!r} any more: it was taken for dead, or replaced"
            )
        return groups.Token(self.id, self.generation)


class Heart:
    """The thread of a store that keeps its memberships alive; begins with the first one."""

    def __init__(self, store: Store, signal: _core.Signal) -> None:
        self._store = weakref.ref(store)
        self._shared = signal
        self._own = _core.Signal()
        self._lock = threading.Lock()
        self._members: set[Membership] = set()
        self._abandoned: list[Membership] = []
        self._stopping = False
        self._thread: threading.Thread | None = None

    def add(self, member: Membership) -> None:
        """Keeps a membership alive from now on."""
        with self._lock:
            self._members.add(member)
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="streamcore-groups", daemon=True)
                self._thread.start()
        self._own.set()

    def remove(self, member: Membership) -> None:
        """Sends no more heartbeats for it."""
        with self._lock:
            self._members.discard(member)

    def nudge(self) -> None:
        """Has the thread look at what is due."""
        self._own.set()

    def abandon(self, member: Membership) -> None:
        """Has the thread end the membership of a consumer that was dropped without being closed."""
        self._abandoned.append(member)  # takes no lock: called by the garbage collector, at any place
        self._own.set()

    def stop(self) -> None:
        """Ends the thread."""
        with self._lock:
            self._stopping = True
            thread = self._thread
        self._own.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        next_beat_s = time.monotonic()
        seen, own = self._shared.count(), self._own.count()
        while not self._stopping:
            with self._lock:
                members = list(self._members)
            now_s = time.monotonic()
            beat = now_s >= next_beat_s
            if not self._serve(members, beat):
                return
            next_beat_s = min(math.inf if beat else next_beat_s, now_s + self._interval_s(members))
            wake_s = min([next_beat_s, *(member.commit_at_s for member in members)])
            left_ms = max(0.0, (wake_s - time.monotonic()) * 1000) if members else None
            del members
            _core.wait_many([], [(self._shared, seen), (self._own, own)], left_ms)
            seen, own = self._shared.count(), self._own.count()

    @staticmethod
    def _interval_s(members: list[Membership]) -> float:
        return min((member.timeout_ms for member in members), default=60_000) / 1000 / _BEATS_PER_TIMEOUT

    def _serve(self, members: list[Membership], beat: bool) -> bool:
        """One round; False when the store is gone."""
        store = self._store()
        if store is None or store.closed:
            return False
        try:
            while self._abandoned:
                gone = self._abandoned.pop()
                self.remove(gone)
                if gone.instance is None:
                    gone.leave()
            if beat and members:
                self._beat(store, members)
            self._look(store, members)
            for member in members:
                if member.commit_at_s <= time.monotonic():
                    member.commit_at_s = math.inf
                    member.notify()
        except (StreamcoreError, OSError, sqlite3.Error) as error:
            if not store.closed:
                _log.warning("heartbeats of %s failed, and are tried again: %s", store.path, error)
        return True

    def _beat(self, store: Store, members: list[Membership]) -> None:
        """All in one transaction, which need not survive a loss of power: nor do the members."""
        lost = []
        with store.catalog.changing(durable=False) as connection:
            for member in members:
                if not member.lost and not groups.beat(connection, member.group, member.id):
                    lost.append((member, member.id))
        for member, id in lost:
            if id == member.id:  # it may have joined anew meanwhile
                member.lost = True
                member.notify()

    def _look(self, store: Store, members: list[Membership]) -> None:
        """Marks the memberships whose group changed; brings groups up to date with time and with topics."""
        if not members:
            return
        names = {member.group for member in members}
        with store.catalog.reading() as connection:
            neglected = [name for name in names if groups.needs_care(connection, name)]
        if neglected:
            with store.catalog.changing(durable=False) as connection:
                for name in neglected:
                    groups.look_after(connection, name)
            self._shared.set()
        with store.catalog.reading() as connection:
            revisions = dict(connection.execute("select name, revision from consumer_groups"))
        for member in members:
            if revisions.get(member.group) != member.revision and not member.stale:
                member.stale = True
                member.notify()
