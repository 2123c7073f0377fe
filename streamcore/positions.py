"""The positions of a consumer: in each partition that it reads, the offset of the next record that it hands out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from streamcore.assignment import Key
from streamcore.groups import TopicPartition

if TYPE_CHECKING:
    from streamcore.consumer_config import Isolation
    from streamcore.topic import Topic


class Positions:
    """What a consumer reads, and how far it is; used under the consumer's lock.

    topics: by id, those with a partition that is or was read. offsets: {(topic id, partition): position}; what is in it
    is assigned. paused: what is handed out no more for the time being, and may be assigned or not.
    """

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.offsets: dict[Key, int] = {}
        self.paused: set[Key] = set()

    def add(self, topic: Topic, partition: int, offset: int) -> None:
        """From now on the partition is read."""
        self.topics[topic.id] = topic
        self.offsets[topic.id, partition] = offset

    def remove(self, keys: Iterable[Key]) -> None:
        """They are read no more, nor paused."""
        for key in keys:
            self.offsets.pop(key, None)
            self.paused.discard(key)

    def forget_topic(self, topic_id: str) -> None:
        """The topic was deleted."""
        for key in [key for key in self.offsets if key[0] == topic_id]:
            del self.offsets[key]
        del self.topics[topic_id]

    def active(self) -> dict[str, list[int]]:
        """The partitions that are not paused, by topic id; topics by name, also those whose partitions all are."""
        found: dict[str, list[int]] = {}
        for topic_id, partition in sorted(self.offsets, key=lambda key: (self.topics[key[0]].name, *key)):
            partitions = found.setdefault(topic_id, [])
            if (topic_id, partition) not in self.paused:
                partitions.append(partition)
        return found

    # ---- by the names of topics ----

    def topic_named(self, name: str) -> Topic | None:
        """The topic of this name, if it is read."""
        return next((topic for topic in self.topics.values() if topic.name == name), None)

    def key_of(self, topic: str, partition: int) -> Key:
        """The key of an assigned partition. Raises ValueError for others."""
        for topic_id, known in self.topics.items():
            if known.name == topic and (topic_id, partition) in self.offsets:
                return topic_id, partition
        assigned = ", ".join(f"({name!r}, {number})" for name, number in self.named(self.offsets)[:20]) or "none"
        raise ValueError(
            f"partition {partition!r} of topic {topic!r} is not read by this consumer; it reads {assigned}"
        )

    def chosen(self, topic: str | None, partition: int | None) -> set[Key]:
        """The key of a partition, those of a topic, or all. Raises ValueError where none is assigned."""
        if topic is None:
            return set(self.offsets)
        if partition is not None:
            return {self.key_of(topic, partition)}
        found = {key for key in self.offsets if self.topics[key[0]].name == topic}
        if not found:
            raise ValueError(f"no partition of topic {topic!r} is read by this consumer")
        return found

    def named(self, keys: Iterable[Key]) -> list[TopicPartition]:
        """The keys with names for ids, in order."""
        return sorted(
            TopicPartition(self.topics[topic_id].name if topic_id in self.topics else topic_id, partition)
            for topic_id, partition in keys
        )

    def lag(self, isolation: Isolation) -> dict[TopicPartition, int]:
        """How many offsets lie between the position and what can be read, for each assigned partition."""
        found = {}
        for topic_id in {topic_id for topic_id, _ in self.offsets}:
            topic = self.topics[topic_id]
            partitions = [partition for other, partition in self.offsets if other == topic_id]
            for partition, (_, readable, _) in topic.bounds(partitions, isolation).items():
                behind = readable - self.offsets[topic_id, partition]
                found[TopicPartition(topic.name, partition)] = max(0, behind)
        return dict(sorted(found.items()))
