"""The catalog travels along: topics, settings, schemas and the offsets of groups, so that a store can be made anew."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from streamcore.errors import TierError
from streamcore.tier import documents
from streamcore.tier.documents import Content

if TYPE_CHECKING:
    from streamcore.store import Store
    from streamcore.tier.tier import Tier

INTERVAL_S = 60.0
FOLDER = "catalog"


def back_up(store: Store, tier: Tier, *, at_most_every_s: float = 0.0) -> bool:
    """Puts the catalog as it is now into the tier; False when it is there already, or was put there just now.

    Raises TierError, FencedError.
    """
    if time.monotonic() - tier.backed_up_s < at_most_every_s:
        return False
    data = _snapshot(store, tier.uploads)
    name = f"{xxhash.xxh3_128_hexdigest(data)}.sqlite"
    tier.backed_up_s = time.monotonic()
    if name == tier.backed_up:
        return False
    tier.claim(again=True)
    tier.objects.put(f"{FOLDER}/{name}", data)
    url = tier.objects.url_of(documents.STORE_PATH)
    before: list[str] = []

    def told(content: Content | None) -> Content | None:
        if content is None:
            raise TierError("the tier has forgotten whose it is", url)
        tier.check_owner(content, url)
        before[:] = [content["catalog"]["name"]] if content.get("catalog") else []
        about = {"name": name, "size": len(data), "written_ms": time.time_ns() // 1_000_000}
        return None if before == [name] else {**content, "catalog": about}

    documents.change(tier.objects, documents.STORE_PATH, told)
    tier.backed_up = name
    for old in before:
        if old != name:
            tier.objects.delete(f"{FOLDER}/{old}")
    return True


def _snapshot(store: Store, folder: Path) -> bytes:
    """The catalog at one moment, as a database of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"catalog-{os.getpid()}-{time.monotonic_ns()}.sqlite"
    try:
        store.catalog.copy_to(path)
        return path.read_bytes()
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
