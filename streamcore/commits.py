"""The commits of one member: how far its group has come, written to the catalog, by hand or every few seconds."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcore import groups
from streamcore.assignment import Key
from streamcore.consumer_config import ConsumerConfig
from streamcore.errors import FencedError
from streamcore.fetcher import Fetcher
from streamcore.groups import CommittedOffset
from streamcore.membership import Membership
from streamcore.positions import Positions
from streamcore.transactions import OffsetsToCommit

if TYPE_CHECKING:
    from streamcore.store import Store
    from streamcore.topic import Topic

_log = logging.getLogger("streamcore.consumer")


class Commits:
    """What a member commits; used under the consumer's lock. `count`: how often it did."""

    def __init__(
        self, store: Store, member: Membership, positions: Positions, fetcher: Fetcher, config: ConsumerConfig
    ) -> None:
        self.count = 0
        self._store = store
        self._member = member
        self._positions = positions
        self._fetcher = fetcher
        self._auto_commit = config.auto_commit
        self._interval_s = config.auto_commit_interval_ms / 1000
        self._due_s = time.monotonic() + self._interval_s

    def write(self, offsets: dict[Key, tuple[int, str]]) -> None:
        """Stores offsets with their metadata. Raises FencedError for partitions that are another member's."""
        token = self._member.token
        with self._store.catalog.changing(durable=self._store.durability == "disk") as connection:
            groups.apply_offsets(connection, self._member.group, token, offsets)
        self.count += 1

    def apply(self, connection: sqlite3.Connection, commit: OffsetsToCommit) -> None:
        """Writes what `to_commit` gave, within a transaction of the catalog."""
        groups.apply_offsets(connection, commit.group, commit.member, commit.offsets)
        self.count += 1

    def to_commit(self) -> OffsetsToCommit:
        """The positions, and whose they are. Raises FencedError when the member was replaced."""
        return OffsetsToCommit(self._member.group, self._member.token, self.current(""))

    def current(self, metadata: str) -> dict[Key, tuple[int, str]]:
        """The positions, behind all records handed out so far."""
        self._fetcher.settle()
        return {key: (position, metadata) for key, position in self._positions.offsets.items()}

    def checked(self, offsets: Mapping[tuple[str, int], Any], metadata: str) -> dict[Key, tuple[int, str]]:
        """Offsets that the caller gave. Raises TypeError, and ValueError for those beyond the end."""
        if not isinstance(offsets, Mapping):
            raise TypeError(f"offsets is {type(offsets).__name__}; a mapping {{(topic, partition): offset}} is needed")
        found = {}
        for (name, partition), given in offsets.items():
            offset, text = given if isinstance(given, tuple) else (given, metadata)
            if not isinstance(offset, (int, np.integer)) or isinstance(offset, bool):
                raise TypeError(f"the offset of ({name!r}, {partition}) is {offset!r}; an int is needed")
            if not isinstance(text, str):
                raise TypeError(f"the metadata of ({name!r}, {partition}) is {text!r}; a str is needed")
            topic = self._topic(name, partition)
            start, _, end = topic.bounds([partition])[partition]
            if not 0 <= offset <= end:
                where = f"partition {partition} of {name!r} has offsets {start} to {end}"
                raise ValueError(f"offset {offset} cannot be committed: {where}")
            found[topic.id, partition] = (int(offset), text)
        return found

    def committed(self, name: str, partition: int) -> CommittedOffset | None:
        """What the group has committed of a partition."""
        topic = self._topic(name, partition)
        with self._store.catalog.reading() as connection:
            return groups.committed(connection, self._member.group).get((topic.id, partition))

    def _topic(self, name: Any, partition: Any) -> Topic:
        topic = self._positions.topic_named(name)
        if topic is None:
            topic = self._store.topic(name)
        topic.check_partition(partition)
        return topic

    # ---- automatic commits ----

    def plan(self) -> None:
        """The next automatic commit is an interval away; the membership's thread tells when."""
        self._due_s = time.monotonic() + self._interval_s
        if self._auto_commit:
            self._member.commit_at_s = self._due_s
            if self._interval_s < 1:
                self._store.consuming.heart.nudge()

    def commit_if_due(self) -> None:
        """The automatic commit, when its time has come."""
        if self._auto_commit and time.monotonic() >= self._due_s:
            self._commit_quietly(self.current(""))

    def commit_before_loss(self, owned: set[Key]) -> None:
        """The automatic commit of what is about to be given up, as far as it is still this member's."""
        if self._auto_commit:
            self._commit_quietly({key: offset for key, offset in self.current("").items() if key in owned})

    def commit_last(self, *, failed: bool) -> None:
        """The automatic commit of a member that leaves. `failed`: what was handed out last is not processed."""
        if not self._auto_commit:
            return
        offsets = self._fetcher.processed() if failed else self._positions.offsets
        try:
            self.write({key: (offset, "") for key, offset in offsets.items()})
        except FencedError as error:
            _log.warning("the last automatic commit came too late: %s", error)

    def _commit_quietly(self, offsets: dict[Key, tuple[int, str]]) -> None:
        """All of it was processed, as the next records are asked for."""
        try:
            self.write(offsets)
        except FencedError as error:
            _log.warning("an automatic commit came too late: %s", error)
        self.plan()
