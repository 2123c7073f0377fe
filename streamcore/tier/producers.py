"""What the tier knows of a partition's producers, as of the end of what it has of it (KIP-98, KIP-405).

Each producer's epoch and its last five appends, as the core encodes them: 160 bytes for each, 32 besides. A store that
is made anew from the tier begins with it, so a batch that is in the tier is not taken a second time. It is an object
beside those of the records, which goes there behind them and before the manifest that names both, and is replaced
with each segment; where there is no producer there is no object.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING

import xxhash

from streamcore import _core
from streamcore.errors import CorruptionError, TierError
from streamcore.tier.manifest import Manifest, Snapshot
from streamcore.tier.objects import ObjectMissingError, Objects

if TYPE_CHECKING:
    from streamcore.tier.log import TierLog
    from streamcore.tier.tier import Tier
    from streamcore.topic import Topic

_log = logging.getLogger("streamcore.tier")


class Snapshots:
    """Snapshots of a partition's producers, one for each segment that goes to the tier."""

    def __init__(self, topic: Topic, tier: Tier, log: TierLog, partition: int) -> None:
        self._topic = topic
        self._tier = tier
        self._log = log
        self._partition = partition
        self._last: tuple[Snapshot, bytes] | None = None  # that was put there

    def put(self, offset: int, manifest: Manifest | None) -> Snapshot:
        """Puts what is known as of an offset, where a segment ends, there. Raises TierError."""
        known_offset, known = self._known(None if manifest is None else manifest.producers)
        data = self._topic.producers(self._partition, offset, known_offset, known)
        made = Snapshot(offset, "", 0, "")
        if data:
            digest = xxhash.xxh3_128_hexdigest(data)
            made = Snapshot(offset, f"{offset:020d}-{digest}-{secrets.token_hex(4)}.producers", len(data), digest)
            path = self._log.path_of(self._partition, made.name)
            self._tier.objects.put(path, data)
            size = self._tier.objects.head(path).size
            if size != made.size:
                url = self._tier.objects.url_of(path)
                raise TierError(f"the object has {size} bytes, of {made.size} that were put", url)
        self._last = made, data
        return made

    def _known(self, before: Snapshot | None) -> tuple[int, bytes]:
        """What the tier has already: so that the segments from there on are all that is looked at."""
        if before is None:  # by a version that did not keep it
            return -1, b""
        if not before.name:
            return before.offset, b""
        if self._last is not None and self._last[0] == before:
            return before.offset, self._last[1]
        try:
            return before.offset, load(self._tier.objects, self._log.path_of(self._partition, before.name), before)
        except CorruptionError as error:  # as far as what is here tells it, then
            _log.warning("%s/%d: %s", self._topic.name, self._partition, error)
            return -1, b""

    def forget(self, replaced: Snapshot | None) -> None:
        """Removes what no manifest names any more. What cannot be removed now goes with `gc`."""
        if replaced is None or not replaced.name:
            return
        try:
            self._tier.objects.delete(self._log.path_of(self._partition, replaced.name))
        except TierError as error:
            _log.info("%s/%d: %s stays for now: %s", self._topic.name, self._partition, replaced.name, error)


def load(objects: Objects, path: str, snapshot: Snapshot) -> bytes:
    """What was put there. Raises CorruptionError where it is gone or damaged, TierError."""
    url = objects.url_of(path)
    try:
        data, _ = objects.get(path)
    except ObjectMissingError:
        raise CorruptionError("what is known of producers is gone", url) from None
    if len(data) != snapshot.size or xxhash.xxh3_128_hexdigest(data) != snapshot.digest:
        raise CorruptionError("what is known of producers is not what was put there", url)
    try:
        _core.look_at_producers(data)
    except CorruptionError as error:
        raise CorruptionError(error.message, url) from None
    return data


def problem_of(objects: Objects, path: str, snapshot: Snapshot, *, read: bool) -> str | None:
    """What is wrong with a snapshot, by its bytes or, without `read`, its size; None: nothing. Raises TierError."""
    if not snapshot.name:
        return None
    try:
        if read:
            load(objects, path, snapshot)
            return None
        size = objects.head(path).size
    except CorruptionError as error:
        return error.message
    except ObjectMissingError:
        return "what is known of producers is gone"
    return None if size == snapshot.size else f"the object {snapshot.name} has {size} bytes, not {snapshot.size}"
