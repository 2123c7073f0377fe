"""What the children do that are killed while they delete, compact and consolidate."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import streamcore as sc

from .forkserver import Channel

TOPIC = "rewritten"
KEYS = 40
SEGMENT_BYTES = 64 << 10


def value_of(offset: int, key: int) -> bytes:
    """The value of a record: it says what it is."""
    return b"%d %d " % (offset, key) * (1 + offset % 5)


def keys_of(seed: int, call: int) -> list[int]:
    """The keys of the records of a call."""
    chance = random.Random(f"{seed} {call}")
    return [chance.randrange(KEYS) for _ in range(chance.randint(1, 8))]


def rewrite_until_killed(channel: Channel, store_path: str, seed: int, first_call: int, bug: str | None = None) -> None:
    """Appends call after call, and deletes, rolls, compacts and consolidates in between.

    Says APPENDING, then APPENDED with the call and the end offset; DELETING and DELETED with an offset; DOING and DONE
    with what it does otherwise. `bug` "deletes files" removes the second segment, and "drops the newest" compacts as if
    the oldest record of each key were the latest one; each then ends.
    """
    chance = random.Random(f"{seed} {first_call}")
    store = sc.open(store_path)
    try:
        topic = store.topic(TOPIC)
    except sc.TopicNotFoundError:
        topic = store.create_topic(TOPIC, segment_bytes=SEGMENT_BYTES, cleanup="compact")
    for call in range(first_call, 1 << 30):
        keys = keys_of(seed, call)
        end = topic.partitions[0].end_offset
        channel.send("APPENDING", call, end)
        for i, key in enumerate(keys):
            topic.append([value_of(end + i, key)], keys=[b"%d" % key])
        channel.send("APPENDED", call, end + len(keys))
        what = chance.random()
        if what < 0.02:
            before = topic.partitions[0].start_offset + chance.randint(0, 60)
            before = min(before, topic.partitions[0].end_offset)
            channel.send("DELETING", before)
            topic.delete_records(before)
            channel.send("DELETED", before)
        elif what < 0.15:
            task = chance.choice(["roll", "compact", "consolidate", "compact", "flush"])
            channel.send("DOING", task)
            if task == "compact":
                topic.compact(memory_bytes=chance.choice([1536, 1 << 20]))
            else:
                getattr(topic, task)()
            channel.send("DONE", task)
        if bug is not None and len(topic.segments()) > 3:
            _break(topic, bug)
            channel.send("BROKEN")
            os.kill(os.getpid(), signal.SIGKILL)


def _break(topic: sc.Topic, bug: str) -> None:
    if bug == "deletes files":
        Path(topic.segments()[1].path).unlink()
        return
    for segment in topic.rewritable(0):
        rewrite = topic.open_rewrite(segment)
        assert rewrite is not None
        rewrite.commit()  # without the records
        rewrite.close()
