"""Every operation on a disk that is full, and under limits of the process: a clear error, or done; and it goes on."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc

from .forkserver import Channel, ForkServer
from .mounts import Mount
from .operations import OPERATIONS, Facts, check_facts, check_goes_on, expect, make_template

SIZE_MIB = 64
_READS_ONLY = {"opening it for reading", "consuming", "verifying", "looking"}


def why_of(error: BaseException) -> sc.StorageError:
    """The StorageError that an error is, or that it came of."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, sc.StorageError):
        expect(
            isinstance(found, sc.TransactionError | sc.ProducerError),
            f"{type(found).__name__} is no answer to a disk that is full: {found}",
        )
        found = found.__cause__ or found.__context__
    expect(found is not None, f"nothing says why: {error!r}")
    assert isinstance(found, sc.StorageError)
    return found


def fill(path: Path, left: int) -> list[Path]:
    """Takes all the room but some bytes, and all that is left in pieces; the files that do."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size >= 512:
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC, error  # noqa: PT017
            size //= 2
        file.truncate(max(0, file.tell() - left))
        os.fsync(file.fileno())
    return [ballast]


def use_when_full(channel: Channel, template: str, store_path: str, name: str, left: int, durability: Any) -> None:
    """Does an operation on a full disk, then again when there is room. Says FULL with what came of it."""
    path, operation, facts = Path(store_path), OPERATIONS[name], Facts()
    shutil.copytree(template, path)
    store = None if operation.opens else sc.open(path, durability=durability, maintenance=False)
    ballast = fill(path.parent, left)
    outcome = "nothing"
    try:
        operation.run(path if store is None else store, facts)
    except sc.StreamcoreError as error:
        why = why_of(error)
        in_result = "in the result" in why.message or " said: " in why.message
        expect(why.errno == errno.ENOSPC or (in_result and "No space" in str(why)), f"the error is {why!r}")
        outcome = type(error).__name__
    for file in ballast:
        file.unlink()
    if store is not None:
        check_goes_on(store)
        store.close()
    check_facts(path, facts)
    again = Facts("again")
    if store is None:
        operation.run(path, again)
    else:
        with sc.open(path, durability=durability, maintenance=False) as store:
            operation.run(store, again)
    channel.send("FULL", outcome)
    shutil.rmtree(path)


@pytest.fixture(scope="module", params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A file system of 64 MiB."""
    made = Mount(tmp_path_factory.mktemp("mounts") / "mounted", request.param, SIZE_MIB)
    try:
        yield made
    finally:
        made.unmount()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store"
    make_template(path)
    return path


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_a_full_disk_says_so_or_is_done_and_works_when_there_is_room(
    name: str, small: Mount, template: Path, children: ForkServer, figures: collections.Counter[str]
) -> None:
    durability = "disk" if len(name) % 2 else "os"
    outcomes = []
    for left in (0, 20 << 10, 150 << 10):
        (small.path / "ballast").unlink(missing_ok=True)  # of one that failed
        shutil.rmtree(small.path / "store", ignore_errors=True)
        child = children.start(
            use_when_full, template=str(template), store_path=str(small.path / "store"), name=name, left=left,
            durability=durability,
        )  # fmt: skip
        status = child.wait()
        assert status == 0, f"{left} bytes left: {child.failure()}"
        outcomes.append(child.said("FULL")[0][0])
        figures[f"operations on a full disk: {outcomes[-1]}"] += 1
    if name in _READS_ONLY:
        assert set(outcomes) == {"nothing"}


# ---- limits of the process ---------------------------------------------------------------------------------------


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder where a sync costs nothing."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else tmp_path))
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """A soft limit, for a while."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def next_descriptor() -> int:
    """One more than the highest that is open."""
    return max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1


def mapped_bytes() -> int:
    """What RLIMIT_AS counts."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


LIMITS = {
    "descriptors": (resource.RLIMIT_NOFILE, next_descriptor, (0, 2, 7), errno.EMFILE),
    "file size": (resource.RLIMIT_FSIZE, lambda: 0, (4096, 70_000), errno.EFBIG),
    "memory": (resource.RLIMIT_AS, mapped_bytes, (24 << 20, 64 << 20), errno.ENOMEM),
}


def use_under_limits(channel: Channel, template: str, store_path: str, limit: str, names: list[str]) -> None:
    """Does operations under a limit, then without it. Says LIMITED with what came of each."""
    kind, base, values, number = LIMITS[limit]
    for name in names:
        for value in (None, *values):  # first without a limit: it imports what it needs
            channel.send("TRYING", json.dumps([name, value]))
            path, operation, facts = Path(store_path), OPERATIONS[name], Facts()
            shutil.copytree(template, path)
            store = None if operation.opens else sc.open(path, maintenance=False)
            outcome = "nothing"
            with contextlib.nullcontext() if value is None else limited(kind, base() + value):
                try:
                    operation.run(path if store is None else store, facts)
                except MemoryError:
                    expect(limit == "memory", "there was memory")
                    outcome = "MemoryError"
                except sc.StreamcoreError as error:
                    why = why_of(error)
                    loose = "in the result" in why.message or " said: " in why.message or "the catalog" in why.message
                    expect(why.errno == number or loose, f"the error is {why!r}")
                    outcome = type(error).__name__
            if store is not None:
                check_goes_on(store)
                store.close()
            check_facts(path, facts)
            channel.send("LIMITED", outcome)
            shutil.rmtree(path)


@pytest.mark.parametrize("limit", LIMITS)
def test_an_operation_under_a_limit_of_the_process_says_so_or_is_done_and_works_without_it(
    limit: str, template: Path, in_memory: Path, children: ForkServer, figures: collections.Counter[str]
) -> None:
    for name in OPERATIONS:
        child = children.start(
            use_under_limits, template=str(template), store_path=str(in_memory / "store"), limit=limit, names=[name]
        )
        status = child.wait()
        assert status == 0, f"{child.said('TRYING')[-1:]}: status {status}: {child.failure()}"
        for (outcome,) in child.said("LIMITED"):
            figures[f"operations under a limit of {limit}: {outcome}"] += 1
