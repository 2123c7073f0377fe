"""Who reads which partition: a pure function from members and partitions to an assignment.

Sticky as in KIP-54 and KIP-429: loads differ by one at most where subscriptions allow it, and no partition changes its
member that need not.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping

Key = tuple[str, int]  # topic id, partition


def assign(
    subscriptions: Mapping[str, Collection[str]],
    partitions: Mapping[str, int],
    current: Mapping[Key, str],
    unsettled: Collection[Key] = (),
) -> dict[Key, str]:
    """The member of each partition that somebody subscribes to.

    subscriptions: the topic ids of each member. partitions: how many each topic has. current: the assignment so far,
    of which what is still possible is kept. unsettled: keys of `current` that nobody reads yet, so cheap to move.
    """
    wanted = {member: {topic for topic in topics if topic in partitions} for member, topics in subscriptions.items()}
    held: dict[str, list[Key]] = {member: [] for member in wanted}
    free: list[Key] = []
    for topic in sorted(set().union(*wanted.values())):
        for partition in range(partitions[topic]):
            member = current.get((topic, partition))
            if member is not None and topic in wanted.get(member, ()):
                held[member].append((topic, partition))
            else:
                free.append((topic, partition))
    for keys in held.values():
        keys.sort(key=lambda key: (key in unsettled, key))  # those at the end are the first to go
    if len({frozenset(topics) for topics in wanted.values()}) <= 1:
        _balance_alike(held, free, unsettled)
    else:
        _balance_unlike(held, free, wanted)
    return {key: member for member, keys in held.items() for key in keys}


def _balance_alike(held: dict[str, list[Key]], free: list[Key], unsettled: Collection[Key]) -> None:
    """All members want the same: each gets the same number, or one more, and who reads more already gets that one."""
    if not held:
        return
    share, more = divmod(sum(map(len, held.values())) + len(free), len(held))
    quotas = {}
    read = {member: sum(key not in unsettled for key in keys) for member, keys in held.items()}
    for place, member in enumerate(sorted(held, key=lambda member: (-read[member], -len(held[member]), member))):
        quotas[member] = share + (place < more)
        while len(held[member]) > quotas[member]:
            free.append(held[member].pop())
    room = [(len(keys), member) for member, keys in held.items() if len(keys) < quotas[member]]
    heapq.heapify(room)
    for key in sorted(free):
        load, member = heapq.heappop(room)
        held[member].append(key)
        if load + 1 < quotas[member]:
            heapq.heappush(room, (load + 1, member))


def _balance_unlike(held: dict[str, list[Key]], free: list[Key], wanted: Mapping[str, set[str]]) -> None:
    """Subscriptions differ: the least loaded member that wants a partition gets it, then loads are evened out."""
    readers: dict[str, list[str]] = {}
    for member, topics in wanted.items():
        for topic in topics:
            readers.setdefault(topic, []).append(member)

    def least(topic: str) -> str:
        return min(readers[topic], key=lambda member: (len(held[member]), member))

    for key in sorted(free, key=lambda key: (len(readers[key[0]]), key)):  # those with the fewest takers first
        held[least(key[0])].append(key)
    moved = True
    while moved:  # ends: each move makes the sum of the squares of the loads smaller
        moved = False
        for member in sorted(held, key=lambda member: (-len(held[member]), member)):
            for key in reversed(list(held[member])):
                other = least(key[0])
                if len(held[other]) <= len(held[member]) - 2:
                    held[member].remove(key)
                    held[other].append(key)
                    moved = True
