"""Members of a consumer group, to be killed: what children of the fork server run."""

from __future__ import annotations

import os
import signal

import streamcore as sc

from .forkserver import Channel

TOPIC, GROUP = "clicks", "readers"
TIMEOUT_MS = 300


def read_and_commit(channel: Channel, store_path: str, results: str, *, early: bool, die_at: int) -> None:
    """Notes each record in a file of its own, then commits; says POLL and COMMIT before it begins with either.

    early: a bug, for a control: commits first. die_at: ends by SIGKILL between the two in that round; 0: never.
    """
    notes = os.open(results, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    channel.send("JOIN")
    with sc.open(store_path) as store:
        consumer = store.consumer(TOPIC, group=GROUP, member_timeout_ms=TIMEOUT_MS)
        rounds = 0
        while not channel.is_told_to_stop():
            channel.send("POLL")
            records = consumer.poll(20, 40)
            if not records:
                continue
            rounds += 1
            lines = b"".join(b"%d %d\n" % (record.partition, record.offset) for record in records)
            if not early:
                os.write(notes, lines)
            channel.send("COMMIT")
            try:
                consumer.commit()
            except sc.FencedError:
                channel.send("FENCED")
                continue
            if rounds == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if early:
                os.write(notes, lines)
        consumer.close()


def stay_until_killed(channel: Channel, store_path: str, instance: str | None) -> None:
    """Joins, takes what it gets, says which partitions, and waits."""
    store = sc.open(store_path)
    consumer = store.consumer(TOPIC, group=GROUP, member_timeout_ms=TIMEOUT_MS, instance_id=instance)
    told: list[int] = []
    while True:
        consumer.poll(10)
        now = [partition for _, partition in consumer.assignment]
        if now != told:
            told = now
            channel.send("HAS", *now)
        if channel.is_told_to_stop():
            consumer.close()
            return
