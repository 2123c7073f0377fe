"""Random changes of all files of a real store: right records or a clear error, and never anything else.

What may be missing is what docs/durability.md says: the end of a log whose last batches are damaged. Longer, or with
other changes: STREAMCORE_HOSTILE_SEED=<number> STREAMCORE_HOSTILE_STORES=<how many>.
"""

from __future__ import annotations

import collections
import gc
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamcore as sc

from .forkserver import Channel, ForkServer
from .hostile import PARTITIONS, TOPIC, TYPED, Use, Values, bound_memory, column, make_store, values_of

if not sys.platform.startswith("linux"):
    pytest.skip("the children bound their memory as only Linux does", allow_module_level=True)

SEED = int(os.environ.get("STREAMCORE_HOSTILE_SEED", "1"))
STORES = int(os.environ.get("STREAMCORE_HOSTILE_STORES", "1000"))
CHILDREN = 4


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """With a store that nobody has open; in memory, where there is a file system there: syncs cost nothing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        make_store(Path(name) / "store")
        yield Path(name)


def mutate(store_path: Path, chance: random.Random) -> str:
    """One to three changes of one to three files; what was done, for the message of a failure."""
    files = sorted(path for path in store_path.rglob("*") if path.is_file())
    said = []
    for _ in range(chance.randint(1, 3)):
        path = chance.choice(files)
        if not path.exists():
            continue
        data = bytearray(path.read_bytes())
        kind = chance.choice(
            ["flip", "flip", "flip", "zeros", "cut", "grow", "insert", "swap", "double", "remove", "other"]
        )
        at = chance.randrange(len(data)) if data else 0
        size = min(len(data) - at, chance.choice([1, 8, 64, 512, 4096, 65536]))
        if kind == "flip" and data:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == "zeros":
            data[at : at + size] = bytes(size)
        elif kind == "cut":
            del data[at:]
        elif kind == "grow":
            data += chance.randbytes(chance.choice([1, 100, 5000]))
        elif kind == "insert":
            data[at:at] = chance.randbytes(chance.choice([1, 8, 64]))
        elif kind == "swap":
            to = chance.randrange(len(data)) if data else 0
            data[to : to + size] = data[at : at + size]
        elif kind == "double":
            data += bytes(data)
        elif kind == "other":
            data[:] = chance.choice([file for file in files if file.exists()]).read_bytes()
        said.append(f"{kind} {path.relative_to(store_path)} at {at} for {size}")
        if kind == "remove":
            path.unlink()
        else:
            path.write_bytes(bytes(data))
    return "; ".join(said)


def look(path: Path, mode: str) -> Use:
    """Reads all of it, and appends."""
    found = Use()
    opened: list[sc.Store] = []
    if not found.step("open", lambda: opened.append(sc.open(path, mode, maintenance=False))):  # type: ignore[arg-type]
        return found
    store = opened[0]
    for n in range(PARTITIONS):
        found.step(f"{TOPIC} {n}", lambda n=n: column(store.topic(TOPIC), n))  # type: ignore[misc]
    found.step(f"{TYPED} 0", lambda: column(store.topic(TYPED), 0))
    found.step("verify", lambda: [problem.message for problem in store.verify()])
    found.step("groups", lambda: [group.offsets() for group in store.groups()])
    if mode == "rw":
        found.step("append", lambda: store.topic(TOPIC).append([b"new"], partition=0) and None)
        found.step(f"{TOPIC} 0 then", lambda: column(store.topic(TOPIC), 0))
    found.step("close", store.close)
    return found


def judge(found: Use, wanted: Values, said: str, *, first_gone: bool) -> str:
    """What kind of outcome it is; fails for a wrong one. `first_gone`: a segment was taken away, as retention does."""
    outcome = "whole"
    for name, values in wanted.items():
        seen = found.values.get(name)
        if seen is None:
            assert name in found.errors or "open" in found.errors, said
            outcome = "error"
        elif seen != values:
            starts = range(len(values) - len(seen) + 1 if first_gone else 1)
            start = next((n for n in starts if seen == values[n : n + len(seen)]), 0)
            assert seen == values[start : start + len(seen)], f"{name} has wrong records after {said}"
            outcome = "shorter" if outcome == "whole" else outcome
    then = found.values.get(f"{TOPIC} 0 then")
    if then is not None and "append" not in found.errors and found.values.get(f"{TOPIC} 0") is not None:
        assert then == [*found.values[f"{TOPIC} 0"], b"new"], f"an append went wrong after {said}"
    return outcome


def check_mutated(channel: Channel, folder: str, seed: int, stores: int) -> None:
    """So many changed copies of the store."""
    bound_memory()
    source, copy = Path(folder) / "store", Path(folder) / f"copy-{seed}"
    with sc.open(source, "r") as store:
        wanted = values_of(store)
    for number in range(stores):
        chance = random.Random(f"{seed} {number}")
        shutil.rmtree(copy, ignore_errors=True)
        without = () if chance.random() < 0.2 else ("journal",)  # 32 MiB, made anew when it is needed
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*without))
        channel.send("AT", seed, number)
        said = mutate(copy, chance)
        first_gone = "remove" in said
        mode = chance.choice(["r", "rw"])
        if number % 10 == 0:
            gc.collect()  # stores and topics refer to each other, and Python does not see how much they have mapped
        channel.send("OUTCOME", judge(look(copy, mode), wanted, f"{mode} {said}", first_gone=first_gone))
    channel.send("END")


def test_a_store_whose_files_were_changed_gives_right_records_or_an_error(
    folder: Path, children: ForkServer, figures: collections.Counter[str]
) -> None:
    running = [
        children.start(check_mutated, folder=str(folder), seed=SEED * 100 + n, stores=STORES // CHILDREN)
        for n in range(CHILDREN)
    ]
    outcomes: collections.Counter[str] = collections.Counter()
    for child in running:
        child.read_until(lambda c=child: c.said("END") or c.at_end, deadline_s=60 + STORES)  # type: ignore[misc]
        assert child.wait() == 0, f"seed {child.said('AT')[-1]}: status {child.status}: {child.failure()}"
        outcomes.update(outcome for (outcome,) in child.said("OUTCOME"))
    assert outcomes.total() == STORES // CHILDREN * CHILDREN
    assert all(outcomes[kind] > STORES // 50 for kind in ("whole", "error")), outcomes
    figures.update({f"mutated stores: {kind}": count for kind, count in outcomes.items()})


@pytest.mark.parametrize("lie", ["a wrong record", "a record too many", "a record less", "silence"])
def test_control_a_wrong_outcome_is_caught(lie: str, folder: Path) -> None:
    with sc.open(folder / "store", "r") as store:
        wanted = values_of(store)
    found = Use()
    found.values.update({name: list(values) for name, values in wanted.items()})
    assert judge(found, wanted, "", first_gone=False) == "whole"
    seen = found.values[f"{TOPIC} 0"]
    if lie == "a wrong record":
        seen[5] = b"another"
    elif lie == "a record too many":
        seen.append(b"another")
    elif lie == "a record less":
        del seen[5]
    else:
        del found.values[f"{TOPIC} 0"]
    with pytest.raises(AssertionError):
        judge(found, wanted, "", first_gone=False)
