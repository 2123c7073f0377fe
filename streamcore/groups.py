"""Consumer groups in the catalog: members, who reads which partition, committed offsets.

All of it is rows of the catalog, and every change is one transaction of it, so what a process that dies leaves behind
is whole. Two columns of `group_partitions` make rebalancing cooperative (KIP-429): `target` is the member that shall
read a partition, `owner` the one that does. A rebalance changes targets only. An owner that is no target any more gives
the partition up when it is done with it, and only then can the target take it. So a partition never has two owners, and
one that need not move is read on meanwhile.

A commit names the member and the generation that it knows. It counts for a partition that the member owns since that
generation or before, and is fenced otherwise.

Members are alive while they say so: by the monotonic clock, which all processes of a machine share, together with the
id of the running kernel. A wall clock that is set back or ahead kills nobody and keeps nobody alive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import fnmatch
import functools
import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from streamcore import _core
from streamcore.assignment import Key, assign
from streamcore.catalog import IS_COUNT, IS_PARTITION, IS_TIME
from streamcore.columns import microseconds
from streamcore.errors import CorruptionError, FencedError, GroupError, OffsetOutOfRangeError, StreamcoreError

if TYPE_CHECKING:
    from streamcore.catalog import Catalog
    from streamcore.store import Store
    from streamcore.topic import Topic

Place = int | datetime.datetime | Literal["earliest", "latest"]

OFFSETS_RETENTION_MS = 7 * 24 * 3600 * 1000  # as Apache Kafka's offsets.retention.minutes
OFFSETS_RETENTION_SETTING = "offsets_retention_ms"
_NAME_MAX = 255
_log = logging.getLogger("streamcore.groups")

TABLES = """
create table if not exists consumer_groups (
  name text primary key,
  generation integer not null,
  revision integer not null,
  layout text not null,
  emptied_ms integer
) without rowid;
create table if not exists group_members (
  group_name text not null references consumer_groups (name) on delete cascade,
  id text not null,
  instance text,
  subscription text not null,
  timeout_ms integer not null,
  beat_ms integer not null,
  boot text not null,
  pid integer not null,
  joined_ms integer not null,
  primary key (group_name, id)
) without rowid;
create table if not exists group_partitions (
  group_name text not null references consumer_groups (name) on delete cascade,
  topic_id text not null,
  partition integer not null,
  owner text,
  since integer not null,
  target text,
  added integer not null,
  primary key (group_name, topic_id, partition)
) without rowid;
create table if not exists group_offsets (
  group_name text not null references consumer_groups (name) on delete cascade,
  topic_id text not null references topics (id) on delete cascade,
  partition integer not null,
  position integer not null,
  metadata text not null,
  committed_ms integer not null,
  primary key (group_name, topic_id, partition)
) without rowid;
create table if not exists group_boot (boot text not null);
"""

_IS_NO_TOPIC = (
    "typeof(name) <> 'text' or length(name) not between 1 and 249 or name glob '*[^-a-zA-Z0-9._]*' "
    f"or name in ('.', '..') or typeof(partitions) <> 'integer' or partitions - 1 not {IS_PARTITION}"
)
SENSE = {
    "consumer_groups": f"generation {IS_COUNT} and revision {IS_COUNT} and json_type(layout) = 'object' "
    f"and coalesce(emptied_ms {IS_TIME}, true)",
    "group_members": f"timeout_ms {IS_COUNT} and json_type(subscription) = 'array' and json_array_length(subscription) "
    "and not exists (select 1 from json_each(subscription) where type <> 'text')",
    "group_partitions": f"partition {IS_PARTITION} and since {IS_COUNT}",
    "group_offsets": f"partition {IS_PARTITION} and position {IS_COUNT} and committed_ms {IS_TIME}",
}


@functools.cache
def boot_id() -> str:
    """Of the running kernel."""
    return _core.boot_id().hex()


class TopicPartition(NamedTuple):
    """A partition of a topic, by name; equal to the plain tuple."""

    topic: str
    partition: int


class CommittedOffset(int):
    """A committed offset: an int, the offset of the next record to read, that also has what was noted with it.

    metadata: the caller's text. timestamp: when it was committed, an aware datetime in UTC.
    """

    metadata: str
    timestamp: datetime.datetime

    def __new__(cls, offset: int, metadata: str, committed_ms: int) -> CommittedOffset:
        """Made by this module."""
        made = super().__new__(cls, offset)
        made.metadata = metadata
        made.timestamp = datetime.datetime.fromtimestamp(committed_ms / 1000, datetime.UTC)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return CommittedOffset, (int(self), self.metadata, round(self.timestamp.timestamp() * 1000))


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A member of a group at one moment.

    partitions: those that it reads. awaiting: those that it gets as soon as others gave them up. seen_ms: milliseconds
    since its last heartbeat.
    """

    id: str
    instance_id: str | None
    topics: tuple[str, ...]
    partitions: tuple[TopicPartition, ...]
    awaiting: tuple[TopicPartition, ...]
    timeout_ms: int
    seen_ms: int
    pid: int


class Token(NamedTuple):
    """Who commits: a member, and the generation of the group that it knows."""

    member: str
    generation: int


Offsets = Mapping[Key, tuple[int, str]]  # (topic id, partition): (offset, metadata)


def check_group_name(name: Any) -> str:
    """1 to 255 characters, none of them a control character."""
    if not isinstance(name, str):
        raise TypeError(f"a group's name is a str, not {type(name).__name__}")
    if not 1 <= len(name) <= _NAME_MAX or not name.isprintable():
        shown = repr(name if len(name) <= 80 else name[:77] + "...")
        raise ValueError(f"{shown} is no name for a group: 1 to {_NAME_MAX} printable characters are allowed")
    return name


# ---- subscriptions ---------------------------------------------------------------------------------------------


def subscription_of(topics: Any) -> list[str]:
    """What a member asks for, as the catalog keeps it: names, globs (`clicks-*`), and patterns as `/…/`."""
    given = [topics] if isinstance(topics, (str, re.Pattern)) else topics
    if not isinstance(given, (list, tuple, set, frozenset)):
        raise TypeError(f"topics is {type(topics).__name__}; a name, a pattern or a list of these is needed")
    found = []
    for topic in given:
        if isinstance(topic, re.Pattern):
            found.append(f"/{topic.pattern}/")
        elif isinstance(topic, str):
            found.append(topic)
        else:
            raise TypeError(f"topics has {topic!r}; names, and compiled patterns, are needed")
    if not found:
        raise ValueError("topics is empty; at least one topic is needed")
    return sorted(set(found))


def is_pattern(wanted: str) -> bool:
    """Whether it may match several topics: none of these characters is allowed in a name."""
    return any(character in wanted for character in "*?[/")


def is_plural(subscription: list[str]) -> bool:
    """Whether it may be of several topics."""
    return len(subscription) > 1 or is_pattern(subscription[0])


def matching(subscription: list[str], names: Mapping[str, Any]) -> set[str]:
    """Those of the names that a subscription asks for."""
    found = {name for name in subscription if name in names}
    for wanted in subscription:
        if wanted.startswith("/"):
            expression = re.compile(wanted[1:-1])
            found |= {name for name in names if expression.fullmatch(name)}
        elif is_pattern(wanted):
            found |= {name for name in names if fnmatch.fnmatchcase(name, wanted)}
    return found


# ---- clocks ----------------------------------------------------------------------------------------------------


def monotonic_ms() -> int:
    """Milliseconds on the clock that all processes of this machine share; it never goes back while the kernel runs."""
    return time.monotonic_ns() // 1_000_000


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


# ---- rebalancing -----------------------------------------------------------------------------------------------


def _topics_of(connection: sqlite3.Connection) -> dict[str, tuple[str, int]]:
    """The id and the number of partitions of each topic, by name. Raises CorruptionError for what is no topic."""
    rows = connection.execute(f"select id, name, partitions, {_IS_NO_TOPIC} from topics").fetchall()
    for _, name, _, wrong in rows:
        if wrong:
            raise CorruptionError(f"the catalog has a damaged topic {str(name)[:250]!r}")
    return {name: (id, count) for id, name, count, _ in rows}


def _layout_of(connection: sqlite3.Connection, group: str) -> tuple[dict[str, set[str]], dict[str, int]]:
    """The topic ids that each member subscribes to, and how many partitions each of those topics has."""
    topics = _topics_of(connection)
    matched: dict[str, set[str]] = {}
    wanted: dict[str, set[str]] = {}
    rows = connection.execute("select id, subscription from group_members where group_name = ?", (group,))
    for member, subscription in rows.fetchall():
        if subscription not in matched:
            try:
                matched[subscription] = matching(json.loads(subscription), topics)
            except re.error as error:  # which `subscribe` refuses
                raise CorruptionError(
                    f"group {group!r} has a member that asks for what is no pattern: {error}"
                ) from None
        wanted[member] = {topics[name][0] for name in matched[subscription]}
    counts = dict(topics.values())
    return wanted, {topic_id: counts[topic_id] for topic_id in sorted(set().union(*wanted.values()))}


def rebalance(connection: sqlite3.Connection, group: str) -> None:
    """Gives every partition that members ask for a target, and begins a new generation."""
    wanted, layout = _layout_of(connection, group)
    generation, old_layout = connection.execute(
        "select generation, layout from consumer_groups where name = ?", (group,)
    ).fetchone()
    before: dict[str, int] = json.loads(old_layout)
    current: dict[Key, str] = {}
    unsettled: set[Key] = set()
    rows: dict[Key, tuple[str | None, str | None]] = {}
    for topic_id, partition, owner, target in connection.execute(
        "select topic_id, partition, owner, target from group_partitions where group_name = ?", (group,)
    ):
        key = (topic_id, partition)
        rows[key] = (owner if owner in wanted else None, target)
        if owner in wanted:
            current[key] = owner
        elif target is not None:
            current[key] = target
            unsettled.add(key)
    targets = assign(wanted, layout, current, unsettled)
    _write_targets(connection, group, rows, targets, before)
    connection.execute(
        "update group_partitions set owner = null where group_name = ? and owner is not null and owner not in "
        "(select id from group_members where group_name = ?)",
        (group, group),
    )
    emptied = None if wanted else _wall_ms()
    connection.execute(
        "update consumer_groups set generation = ?, revision = revision + 1, layout = ?, emptied_ms = ? where name = ?",
        (generation + 1, json.dumps(layout if wanted else before), emptied, group),
    )
    _log.debug("group %s: generation %d, %d members, %d partitions", group, generation + 1, len(wanted), len(targets))


def _write_targets(
    connection: sqlite3.Connection,
    group: str,
    rows: Mapping[Key, tuple[str | None, str | None]],
    targets: Mapping[Key, str],
    before: Mapping[str, int],
) -> None:
    gone = [(group, *key) for key in rows if key not in targets]
    connection.executemany("delete from group_partitions where group_name = ? and topic_id = ? and partition = ?", gone)
    new = [
        (group, *key, target, 0 <= before.get(key[0], -1) <= key[1])
        for key, target in targets.items()
        if key not in rows
    ]
    connection.executemany("insert into group_partitions values (?, ?, ?, null, 0, ?, ?)", new)
    changed = [(target, group, *key) for key, target in targets.items() if key in rows and rows[key][1] != target]
    connection.executemany(
        "update group_partitions set target = ? where group_name = ? and topic_id = ? and partition = ?", changed
    )


def is_dead(beat_ms: int, timeout_ms: int, boot: str, now_ms: int) -> bool:
    """Whether a member with that last heartbeat is gone; one from before the machine started is."""
    return boot != boot_id() or not -timeout_ms <= now_ms - beat_ms <= timeout_ms


def look_after(connection: sqlite3.Connection, group: str) -> bool:
    """Removes dead members and takes notice of new and removed partitions; True when that changed something."""
    dead = _dead(connection, group)
    for member in dead:
        _log.warning("group %s: member %s is gone: it sent no heartbeat for too long", group, member)
        connection.execute("delete from group_members where group_name = ? and id = ?", (group, member))
    if not dead and not _is_outdated(connection, group):
        return False
    rebalance(connection, group)
    return True


def needs_care(connection: sqlite3.Connection, group: str) -> bool:
    """Whether `look_after` would change something."""
    return bool(_dead(connection, group)) or _is_outdated(connection, group)


def _dead(connection: sqlite3.Connection, group: str) -> list[str]:
    now = monotonic_ms()
    rows = connection.execute("select id, beat_ms, timeout_ms, boot from group_members where group_name = ?", (group,))
    return [id for id, beat_ms, timeout_ms, boot in rows.fetchall() if is_dead(beat_ms, timeout_ms, boot, now)]


def _is_outdated(connection: sqlite3.Connection, group: str) -> bool:
    wanted, layout = _layout_of(connection, group)
    row = connection.execute("select layout from consumer_groups where name = ?", (group,)).fetchone()
    return row is not None and bool(wanted) and json.loads(row[0]) != layout


# ---- what members do -------------------------------------------------------------------------------------------


def join(
    connection: sqlite3.Connection,
    group: str,
    member: str,
    subscription: list[str],
    timeout_ms: int,
    instance: str | None = None,
) -> None:
    """Makes a member, and a group when there is none. One with the instance id of another takes its place (KIP-345)."""
    asked = json.dumps(subscription)
    connection.execute("insert or ignore into consumer_groups values (?, 0, 0, '{}', ?)", (group, _wall_ms()))
    look_after(connection, group)
    old = None
    if instance is not None:
        old = connection.execute(
            "select id, subscription from group_members where group_name = ? and instance = ?", (group, instance)
        ).fetchone()
    if old is not None:
        connection.execute("delete from group_members where group_name = ? and id = ?", (group, old[0]))
        for column in ("owner", "target"):
            connection.execute(
                f"update group_partitions set {column} = ? where group_name = ? and {column} = ?",
                (member, group, old[0]),
            )
    connection.execute(
        "insert into group_members values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (group, member, instance, asked, timeout_ms, monotonic_ms(), boot_id(), os.getpid(), _wall_ms()),
    )
    if old is None or old[1] != asked:
        rebalance(connection, group)
    else:
        _touch(connection, group)


def leave(connection: sqlite3.Connection, group: str, member: str) -> bool:
    """Removes a member; what it read is free at once. False when it was gone already."""
    if not _delete_member(connection, group, member):
        return False
    rebalance(connection, group)
    return True


def _delete_member(connection: sqlite3.Connection, group: str, member: str) -> bool:
    return connection.execute("delete from group_members where group_name = ? and id = ?", (group, member)).rowcount > 0


def beat(connection: sqlite3.Connection, group: str, member: str) -> bool:
    """Says that a member lives; False when the group has forgotten it."""
    changed = connection.execute(
        "update group_members set beat_ms = ?, boot = ? where group_name = ? and id = ?",
        (monotonic_ms(), boot_id(), group, member),
    )
    return changed.rowcount > 0


def _touch(connection: sqlite3.Connection, group: str) -> None:
    connection.execute("update consumer_groups set revision = revision + 1 where name = ?", (group,))


class Share(NamedTuple):
    """What a group says to a member: `kept` it owns and keeps, `lost` it must give up, `ready` it may take now."""

    generation: int
    revision: int
    kept: set[Key]
    lost: set[Key]
    ready: set[Key]


def share_of(connection: sqlite3.Connection, group: str, member: str) -> Share | None:
    """What a member has and shall have; None when the group has forgotten it."""
    row = connection.execute(
        "select generation, revision from consumer_groups join group_members on group_name = name "
        "where name = ? and id = ?",
        (group, member),
    ).fetchone()
    if row is None:
        return None
    share = Share(row[0], row[1], set(), set(), set())
    for topic_id, partition, owner, target in connection.execute(
        "select topic_id, partition, owner, target from group_partitions where group_name = ? and ? in (owner, target)",
        (group, member),
    ):
        if owner == member:
            (share.kept if target == member else share.lost).add((topic_id, partition))
        elif owner is None:
            share.ready.add((topic_id, partition))
    return share


def give_up(connection: sqlite3.Connection, group: str, member: str) -> None:
    """Frees the partitions that a member owns and shall not have."""
    freed = connection.execute(
        "update group_partitions set owner = null where group_name = ? and owner = ? and target is not ?",
        (group, member, member),
    )
    if freed.rowcount:
        _touch(connection, group)


def take(connection: sqlite3.Connection, group: str, member: str) -> dict[Key, bool]:
    """Makes a member the owner of the free partitions that it shall have. True: added to a topic already being read."""
    taken = connection.execute(
        "select topic_id, partition, added from group_partitions where group_name = ? and target = ? and owner is null",
        (group, member),
    ).fetchall()
    connection.execute(
        "update group_partitions set owner = ?, since = (select generation from consumer_groups where name = ?) "
        "where group_name = ? and target = ? and owner is null",
        (member, group, group, member),
    )
    return {(topic_id, partition): bool(added) for topic_id, partition, added in taken}


# ---- offsets ---------------------------------------------------------------------------------------------------


def committed(connection: sqlite3.Connection, group: str) -> dict[Key, CommittedOffset]:
    """All committed offsets of a group."""
    rows = connection.execute(
        "select topic_id, partition, position, metadata, committed_ms from group_offsets where group_name = ?", (group,)
    )
    return {(topic_id, partition): CommittedOffset(*rest) for topic_id, partition, *rest in rows}


def apply_offsets(connection: sqlite3.Connection, group: str, token: Token, offsets: Offsets) -> None:
    """Commits offsets of a member within a transaction of the catalog that the caller has begun.

    Raises FencedError, and has changed nothing, unless the member owns each of the partitions since the generation of
    its token or before.
    """
    member, generation = token
    known = connection.execute(
        "select 1 from group_members where group_name = ? and id = ?", (group, member)
    ).fetchone()
    if known is None:
        raise FencedError(f"member {member} is not in group {group!r} any more: it was taken for dead, or replaced")
    owned = {
        (topic_id, partition): since
        for topic_id, partition, since in connection.execute(
            "select topic_id, partition, since from group_partitions where group_name = ? and owner = ?",
            (group, member),
        )
    }
    for key in offsets:
        since = owned.get(key)
        if since is None or since > generation:
            raise FencedError(
                f"partition {key[1]} of topic {_name_of(connection, key[0])!r} is not read by member {member} of group "
                f"{group!r} in generation {generation}: it was given to another member"
            )
    write_offsets(connection, group, offsets)


def write_offsets(connection: sqlite3.Connection, group: str, offsets: Offsets) -> None:
    """Stores offsets, whoever reads the partitions."""
    now = _wall_ms()
    rows = [(group, *key, offset, metadata, now) for key, (offset, metadata) in offsets.items()]
    connection.executemany("insert or replace into group_offsets values (?, ?, ?, ?, ?, ?)", rows)


def recover_offsets(store: Store) -> int:
    """Brings groups back that are ahead of their logs; called when a store is opened for writing, before all else.

    A loss of power may take records that were read already, and leave the commit behind them: the group would pass over
    the records that come in their place. So the first one that opens the store under a kernel holds all offsets against
    the logs. Returns how many it brought back.
    """
    with store.catalog.reading() as connection:
        if connection.execute("select boot from group_boot").fetchone() == (boot_id(),):
            return 0
        rows = connection.execute("select group_name, topic_id, partition, position from group_offsets").fetchall()
    behind = []
    for group, topic_id, partition, position in rows:
        topic = store.topic_by_id(topic_id)
        if topic is None or partition >= topic.partition_count:
            continue
        try:
            end = topic.bounds([partition], "uncommitted")[partition][2]
        except StreamcoreError as error:  # a damaged partition must not keep a store from being opened
            _log.warning("group %r cannot be held against its log: %s", group, error)
            continue
        if position > end:
            _log.warning(
                "group %r goes back from %d to %d in partition %d of %s: the power failed before what it had read was "
                "on the drive", group, position, end, partition, topic.name,
            )  # fmt: skip
            behind.append((end, group, topic_id, partition, position))
    with store.catalog.changing() as connection:
        connection.executemany(
            "update group_offsets set position = ? "
            "where group_name = ? and topic_id = ? and partition = ? and position = ?",
            behind,
        )
        connection.execute("delete from group_boot")
        connection.execute("insert into group_boot values (?)", (boot_id(),))
    return len(behind)


def _name_of(connection: sqlite3.Connection, topic_id: str) -> str:
    row = connection.execute("select name from topics where id = ?", (topic_id,)).fetchone()
    return topic_id if row is None else str(row[0])


def expire_offsets(catalog: Catalog, retention_ms: int | None = None) -> int:
    """Removes groups, with their offsets, that have had no member for longer than `retention_ms`; how many.

    retention_ms: by default the store's setting `offsets_retention_ms`, by default 7 days. A group that was made by a
    reset counts from its last commit. Never removes a group with living members.
    """
    if retention_ms is None:
        setting = catalog.setting(OFFSETS_RETENTION_SETTING)
        retention_ms = OFFSETS_RETENTION_MS if setting is None else int(setting)
    catalog.ensure_tables(TABLES, SENSE)
    expired = 0
    with catalog.changing(durable=False) as connection:
        for (name,) in connection.execute("select name from consumer_groups").fetchall():
            look_after(connection, name)
            latest = connection.execute(
                "select max(emptied_ms, coalesce(max(committed_ms), 0)) from consumer_groups "
                "left join group_offsets on group_name = name where name = ? and emptied_ms is not null "
                "group by name",
                (name,),
            ).fetchone()
            if latest is not None and _wall_ms() - latest[0] > retention_ms:
                connection.execute("delete from consumer_groups where name = ?", (name,))
                _log.info("group %s: its offsets expired", name)
                expired += 1
    return expired


# ---- places in a log -------------------------------------------------------------------------------------------


def resolve_place(
    topic: Topic, partition: int, place: Any, name: str, isolation: Literal["committed", "uncommitted"] = "committed"
) -> int:
    """The offset that an offset, an aware datetime (the first record not older), "earliest" or "latest" means."""
    start, latest, end = topic.bounds([partition], isolation)[partition]
    if place == "earliest":
        return start
    if isinstance(place, str) and place == "latest":
        return latest
    if isinstance(place, datetime.datetime):
        microseconds(place, name)
        scan = topic.scan(partition=partition, start=place, columns=["offset"], isolation=isolation)
        found = next(iter(scan.batches()), None)
        return latest if found is None else int(found.column(0)[0].as_py())
    if isinstance(place, str):
        raise ValueError(f"{name} is {place!r}; an offset, an aware datetime, 'earliest' or 'latest' is allowed")
    if not isinstance(place, (int, np.integer)) or isinstance(place, bool):
        raise TypeError(
            f"{name} is {type(place).__name__}; an offset, an aware datetime, 'earliest' or 'latest' is needed"
        )
    if not start <= place <= end:
        raise OffsetOutOfRangeError(
            f"{name} is offset {place}; partition {partition} of {topic.name!r} has offsets {start} to {end}",
            start,
            end,
        )
    return int(place)


# ---- groups as users see them ----------------------------------------------------------------------------------


class Group:
    """A consumer group of a store; made by `Store.group` and `Store.groups`. It looks at the catalog with each call."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name

    def __repr__(self) -> str:
        return f"<Group {self.name!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Group) and (other.name, other._store) == (self.name, self._store)

    def __hash__(self) -> int:
        return hash(self.name)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with reading(self._store.catalog) as connection:
            if connection is None or not _exists(connection, self.name):
                raise GroupError(missing(self.name, [] if connection is None else _names(connection)))
            yield connection

    @property
    def generation(self) -> int:
        """Counts the rebalances of the group."""
        with self._reading() as connection:
            return int(self._column(connection, "generation"))

    @property
    def state(self) -> str:
        """ "empty" without members, "rebalancing" while partitions are between two members, or "stable"."""
        with self._reading() as connection:
            members = connection.execute("select count(*) from group_members where group_name = ?", (self.name,))
            moving = connection.execute(
                "select count(*) from group_partitions where group_name = ? and owner is not target", (self.name,)
            )
            if members.fetchone()[0] == 0:
                return "empty"
            return "rebalancing" if moving.fetchone()[0] else "stable"

    def _column(self, connection: sqlite3.Connection, column: str) -> Any:
        return connection.execute(f"select {column} from consumer_groups where name = ?", (self.name,)).fetchone()[0]

    def members(self) -> list[Member]:
        """The members, oldest first."""
        with self._reading() as connection:
            names = {topic_id: name for name, (topic_id, _) in _topics_of(connection).items()}
            now = monotonic_ms()
            rows = connection.execute(
                "select id, instance, subscription, timeout_ms, beat_ms, pid from group_members where group_name = ? "
                "order by joined_ms, id",
                (self.name,),
            ).fetchall()
            parts = connection.execute(
                "select topic_id, partition, owner, target from group_partitions where group_name = ?", (self.name,)
            ).fetchall()
        found = []
        for id, instance, subscription, timeout_ms, beat_ms, pid in rows:
            owned = [TopicPartition(names.get(t, t), p) for t, p, owner, _ in parts if owner == id]
            due = [TopicPartition(names.get(t, t), p) for t, p, owner, goal in parts if goal == id and owner != id]
            topics = tuple(json.loads(subscription))
            seen = max(0, now - beat_ms)
            found.append(Member(id, instance, topics, tuple(sorted(owned)), tuple(sorted(due)), timeout_ms, seen, pid))
        return found

    def offsets(self) -> dict[TopicPartition, CommittedOffset]:
        """The committed offsets: of each partition the offset of the next record to read."""
        with self._reading() as connection:
            names = {topic_id: name for name, (topic_id, _) in _topics_of(connection).items()}
            found = committed(connection, self.name)
        return {TopicPartition(names[t], p): offset for (t, p), offset in sorted(found.items()) if t in names}

    def lag(self) -> dict[TopicPartition, int]:
        """How many offsets lie between what is committed and the end, for each partition with a committed offset."""
        ends: dict[str, dict[int, tuple[int, int, int]]] = {}
        found = {}
        for key, offset in self.offsets().items():
            if key.topic not in ends:
                topic = self._store.topic(key.topic)
                ends[key.topic] = topic.bounds(range(topic.partition_count))
            if key.partition not in ends[key.topic]:
                gone = f"group {self.name!r} has committed an offset of {key.topic} {key.partition}, which is not there"
                raise CorruptionError(gone, str(self._store.catalog.path))
            found[key] = max(0, ends[key.topic][key.partition][2] - offset)
        return found

    def reset(
        self, topic: str, to: Place | None = None, partition: int | None = None, *, shift: int | None = None
    ) -> dict[TopicPartition, int]:
        """Sets the committed offsets of a topic, or of one partition of it, and returns them.

        to: an offset, an aware datetime (the first record that is not older), "earliest" or "latest". Or, instead,
        shift: by so many records ahead, or back when negative, from what is committed, as far as the log reaches.

        Raises GroupError while the group has members, OffsetOutOfRangeError for an offset outside the log.
        """
        if (to is None) == (shift is None):
            raise ValueError("reset needs either `to` or `shift`")
        if shift is not None and (not isinstance(shift, int) or isinstance(shift, bool)):
            raise TypeError(f"shift is {shift!r}; an int is needed")
        found = self._store.topic(topic)
        partitions = range(found.partition_count) if partition is None else [found.check_partition(partition)]
        with self._reading() as connection:
            known = committed(connection, self.name)
        offsets: dict[Key, tuple[int, str]] = {}
        for number in partitions:
            if shift is None:
                place = resolve_place(found, number, to, "to")
            else:
                start, _, end = found.bounds([number])[number]
                place = min(max(known.get((found.id, number), start) + shift, start), end)
            offsets[found.id, number] = (place, "")
        with self._changing_without_members("reset") as connection:
            write_offsets(connection, self.name, offsets)
        return {TopicPartition(topic, number): offset for (_, number), (offset, _) in offsets.items()}

    def delete(self) -> None:
        """Forgets the group and its offsets. Raises GroupError while it has members."""
        with self._changing_without_members("deleted") as connection:
            connection.execute("delete from consumer_groups where name = ?", (self.name,))

    @contextlib.contextmanager
    def _changing_without_members(self, what: str) -> Iterator[sqlite3.Connection]:
        catalog = self._store.catalog
        catalog.ensure_tables(TABLES, SENSE)
        with catalog.changing() as connection:
            if not _exists(connection, self.name):
                raise GroupError(missing(self.name, _names(connection)))
            look_after(connection, self.name)
            members = connection.execute(
                "select id, pid from group_members where group_name = ?", (self.name,)
            ).fetchall()
            if members:
                processes = ", ".join(sorted({str(pid) for _, pid in members}))
                raise GroupError(
                    f"group {self.name!r} cannot be {what} while it has members: it has {len(members)}, in process "
                    f"{processes}; close them first (one that was killed is forgotten after its member_timeout_ms)"
                )
            yield connection


@contextlib.contextmanager
def reading(catalog: Catalog) -> Iterator[sqlite3.Connection | None]:
    """The catalog at one moment, for queries about groups; None when it knows nothing of groups yet."""
    catalog.check_tables(TABLES, SENSE)
    with catalog.at_one_moment() as connection:
        known = connection.execute("select 1 from sqlite_schema where name = 'group_offsets'").fetchone()
        yield connection if known else None


def _names(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("select name from consumer_groups order by name")]


def group_names(catalog: Catalog) -> list[str]:
    """The names of all groups."""
    with reading(catalog) as connection:
        return [] if connection is None else _names(connection)


def make_group(catalog: Catalog, name: str) -> None:
    """Makes a group without members, when there is none of that name."""
    catalog.ensure_tables(TABLES, SENSE)
    with catalog.changing() as connection:
        connection.execute("insert or ignore into consumer_groups values (?, 0, 0, '{}', ?)", (name, _wall_ms()))


def _exists(connection: sqlite3.Connection, name: str) -> bool:
    return connection.execute("select 1 from consumer_groups where name = ?", (name,)).fetchone() is not None


def missing(name: str, names: list[str]) -> str:
    """What to say of a group that is not there."""
    close = difflib.get_close_matches(name, names, 3)
    if close:
        return f"there is no group {name!r}; did you mean {' or '.join(map(repr, close))}?"
    return f"there is no group {name!r}; there are {', '.join(map(repr, names[:20])) or 'none'}"


def check_topics(store: Store, subscription: list[str]) -> None:
    """Raises TopicNotFoundError for a name that is no topic; a pattern may match one later."""
    for wanted in subscription:
        if is_pattern(wanted):
            if wanted.startswith("/"):
                re.compile(wanted[1:-1])
        else:
            store.topic(wanted)
