"""An idempotent producer whose every append a test decides on: its id, epoch and sequence (KIP-98)."""

from __future__ import annotations

from typing import Any

import pytest

import streamcore as sc


class Sender:
    """A `streamcore.appender.Writer`."""

    def __init__(self, producer_id: int, epoch: int = 0) -> None:
        self.producer_id = producer_id
        self.epoch = epoch
        self._sequence = 0

    def send(self, topic: sc.Topic, sequence: int, values: list[bytes], partition: int = 0) -> tuple[int, int]:
        """Appends records; the offsets of the first and behind the last: old ones when they were there."""
        self._sequence = sequence
        [span] = topic.append_by(self, values, None, None, None, partition)
        return span.first_offset, span.end_offset

    def claim(self, topic: Any, partitions: list[int]) -> None:
        """Nothing is in a transaction."""

    def producer(self, topic: Any, partition: int) -> tuple[int, int, int, bool]:
        """For the headers."""
        return self.producer_id, self.epoch, self._sequence, False

    def appended(self, topic: Any, partition: int, count: int) -> None:
        """The test counts."""


def check_known(topic: sc.Topic, partition: int, sender: Sender, each: int, count: int) -> None:
    """Of `count` appends of `each` records the last five before the end are known, the next one follows, others do not.

    The sequences are the offsets. Appends what was lost with the machine, if anything was.
    """
    end = topic.partitions[partition].end_offset
    for number in range(count):
        first = number * each
        values = [b"sent again"] * each
        if first + each <= end - 5 * each:
            with pytest.raises(sc.SequenceError):
                sender.send(topic, first, values, partition)
        elif first + each <= end:
            assert sender.send(topic, first, values, partition) == (first, first + each)
        elif first > end > 0:  # who is not known may begin with any (KIP-360)
            with pytest.raises(sc.SequenceError):
                sender.send(topic, first, values, partition)
    assert topic.partitions[partition].end_offset == end
    assert sender.send(topic, end, [b"next"] * each, partition) == (end, end + each)
    assert topic.partitions[partition].end_offset == end + each
