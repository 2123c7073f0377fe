"""Each file call of each operation fails in turn, SQLite's included: an error that says why, and nothing is lost.

The operations are those of operations.py, in processes in front of whose libc stands system_calls.c. A child tries one
operation many times, each with a fresh copy of a store and another call that fails.

STREAMCORE_FAULTS: how many faults in all ("all": each call in each way, hours; the default takes about a minute).
"""

from __future__ import annotations

import collections
import contextlib
import errno
import gc
import json
import os
import random
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import streamcore as sc

from .forkserver import Channel, Child, ForkServer, fork_server
from .operations import OPERATIONS, Broken, Facts, check_facts, check_goes_on, expect, make_template
from .system_calls import Rule, SystemCalls, build_library, environment

FAULTS = os.environ.get("STREAMCORE_FAULTS", "500")
_SEED = int(os.environ.get("STREAMCORE_SEED", "1"))
_PER_CHILD = 60
_HANGS_AFTER_S = 60.0

# What each kind of call may say, in the words of system_calls.c. Locks: SQLite takes other errors for a lock held by
# others, and waits. One byte less, and one byte, are short calls.
_ERRORS = {
    "open": (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO, errno.ENOSPC, errno.EROFS, errno.EINTR, errno.ENOMEM),
    "read": (errno.EIO, errno.EINTR),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR),
    "sync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "sync_data": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "truncate": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "allocate": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR),
    "zero": (errno.ENOSPC, errno.EIO, errno.EINTR),
    "rename": (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS),
    "unlink": (errno.EIO, errno.EACCES, errno.EROFS),
    "mkdir": (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EDQUOT),
    "rmdir": (errno.EIO, errno.EACCES),
    "map": (errno.ENOMEM, errno.EIO, errno.EACCES),
    "stat": (errno.EIO, errno.ENOMEM),
    "lock": (errno.EIO,),
    "list": (errno.EMFILE, errno.EIO, errno.EACCES),
}
# Of a file that it may not write SQLite says that it is read-only, and of a lock that fails that others have it.
_SQLITE_SAYS = {errno.EACCES: {errno.EROFS}, errno.EIO: {errno.EBUSY}}
_SHORT = {"read": (1, 1 << 30), "write": (1, 1 << 30)}
_FROM_THEN_ON = {errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EROFS, errno.EDQUOT}


# ---- in the child ----------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of a fault: the exception's type, "nothing" for none; the errno; how many calls failed."""

    kind: str
    number: int
    fired: int


def count_calls(channel: Channel, template: str, folder: str, name: str) -> None:
    """Runs an operation without faults; says SEEN, and for each call its name, in their order."""
    path, log = Path(folder) / "clean", Path(folder) / "clean.log"
    shutil.copytree(template, path)
    calls = SystemCalls()
    facts = Facts()
    log.touch()
    calls.log(log)
    run_operation(calls, path, name, Rule("any", number=1 << 40), facts)
    calls.log(None)
    check_facts(path, facts)
    channel.send("SEEN", *(line.split(" ", 1)[0] for line in log.read_text().splitlines()))
    shutil.rmtree(path)


def run_operation(calls: SystemCalls, path: Path, name: str, rule: Rule, facts: Facts) -> Outcome:
    """Runs it under a rule, and then uses the same store on."""
    operation = OPERATIONS[name]
    if operation.opens:
        return _caught(calls, path, rule, lambda: operation.run(path, facts))
    store = sc.open(path, maintenance=False)
    outcome = _caught(calls, path, rule, lambda: operation.run(store, facts))
    try:
        check_goes_on(store)
    except sc.StorageError as error:  # a partition refuses appends, or a transaction, behind a failed sync
        expect(rule.action in ("fail", "skip") and outcome.fired, f"the store does not go on: {error}")
        expect("earlier sync" in str(error) or "poisoned" in str(error), f"the store does not go on: {error}")
    try:
        store.close()
    except sc.StorageError as error:
        expect("earlier sync" in str(error), f"the store does not close: {error}")
    return outcome


def _caught(calls: SystemCalls, path: Path, rule: Rule, run: object) -> Outcome:
    calls.root(path)
    calls.arm(rule)
    kind, number = "nothing", 0
    try:
        run()  # type: ignore[operator]
    except Broken:
        raise
    except sc.StreamcoreError as error:
        kind, number = type(error).__name__, _check_error(error, rule, path)
    finally:
        calls.disarm()
        calls.root(None)
    return Outcome(kind, number, calls.fired())


def _check_error(error: BaseException, rule: Rule, path: Path) -> int:
    """An error that is documented, and says what failed. Its errno."""
    found: BaseException | None = error
    of_catalog = isinstance(error, sc.CorruptionError) and Path(error.path or "").name == "catalog.sqlite"
    if of_catalog and str(path) in str(error) and rule.value == errno.EIO:
        return errno.EIO  # SQLite takes some reads that fail for damage, and tells nobody which
    while found is not None and not isinstance(found, sc.StorageError):
        expect(
            isinstance(found, sc.TransactionError | sc.ProducerError | sc.FencedError),
            f"{type(found).__name__} is no answer to a failing call: {found}",
        )
        found = found.__cause__ or found.__context__
    expect(found is not None, f"nothing says why: {error!r}")
    assert isinstance(found, sc.StorageError)
    expect(found.path is not None and str(path) in str(found.path), f"no file is named: {found!r} {found.path}")
    in_result = "in the result" in found.message or " said: " in found.message
    by_sqlite = {errno.EIO, 0} | _SQLITE_SAYS.get(rule.value, set())
    expect(
        found.errno == rule.value or in_result or ("the catalog" in str(found) and found.errno in by_sqlite),
        f"the error is not {errno.errorcode.get(rule.value)}: {found!r}",
    )
    return found.errno or 0


def put_in_bug(bug: str) -> None:
    """Has this process append in a way that breaks a promise."""
    append = sc.Topic.append

    def careless(self: sc.Topic, *arguments: Any, **how: Any) -> Any:
        try:
            return append(self, *arguments, **how)
        except sc.StorageError as error:
            if bug == "errors as they come":
                raise OSError(error.errno, "as it came") from None
            if bug == "the wrong errno":
                raise sc.StorageError(errno.EBADMSG, error.message, error.path) from None
            return []  # "errors swallowed"

    sc.Topic.append = careless  # type: ignore[method-assign]


BUGS = ("errors swallowed", "errors as they come", "the wrong errno")


def try_faults(
    channel: Channel, template: str, folder: str, name: str, rules: list[list[object]], bug: str | None = None
) -> None:
    """Tries one operation under each of the rules. Says TRYING and then RESULT, or BROKEN with what was broken."""
    if bug is not None:
        put_in_bug(bug)
    calls = SystemCalls()
    for number, given in enumerate(rules):
        rule = Rule(*given)  # type: ignore[arg-type]
        path = Path(folder) / f"store-{number}"
        shutil.copytree(template, path)
        channel.send("TRYING", number)
        facts = Facts()
        try:
            outcome = run_operation(calls, path, name, rule, facts)
            gc.collect()
            left = open_below(path)
            expect(not left, f"left open: {left}")
            check_facts(path, facts)
            channel.send("RESULT", number, *outcome)
        except Exception as error:
            calls.disarm()
            calls.root(None)
            channel.send("BROKEN", number, json.dumps(f"{type(error).__name__}: {error}"))
            channel.send("TRACE", number, json.dumps(traceback.format_exc()[-3000:]))
        shutil.rmtree(path, ignore_errors=True)


def open_below(path: Path) -> list[str]:
    """Files of a folder that this process has open or mapped for writing."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            found += [str(target) for target in [link.readlink()] if str(path) in str(target)]
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return found + [line.split(None, 5)[-1] for line in maps.splitlines() if str(path) in line]


# ---- in the parent ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Forks children in front of whose calls the library stands."""
    folder = tmp_path_factory.mktemp("library")
    library = build_library(folder)
    with fork_server(environment(library, folder / "nothing")) as running:
        yield running


@pytest.fixture(scope="module")
def workplace() -> Iterator[Path]:
    """A folder in memory: thousands of stores are made and thrown away in it."""
    shm = Path("/dev/shm")
    folder = (shm if os.access(shm, os.W_OK) else Path("/tmp")) / f"streamcore-faults-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def template(workplace: Path) -> Path:
    path = workplace / "template"
    make_template(path)
    return path


def calls_of(caught: ForkServer, template: Path, folder: Path, name: str) -> list[str]:
    """The names of the calls of an operation without faults."""
    folder.mkdir()
    child = caught.start(count_calls, template=str(template), folder=str(folder), name=name)
    assert child.wait() == 0, child.failure()
    return child.said("SEEN")[0]


def rules_of(names: list[str]) -> list[Rule]:
    """Every call in every way."""
    rules = []
    for number, name in enumerate(names, 1):
        for value in _ERRORS[name]:
            rules.append(Rule("any", "", number, "fail", value))
            if value in _FROM_THEN_ON:
                rules.append(Rule("any", "", number, "fail", value, sticky=True))
        for value in _SHORT.get(name, ()):
            rules.append(Rule("any", "", number, "short", value))
    return rules


def watch(child: Child, rules: list[Rule], names: list[str], what: str, figures: collections.Counter[str]) -> list[str]:
    """Waits for a child that tries rules; what was broken."""
    tried = 0
    while not child.at_end:
        if not child.read(_HANGS_AFTER_S):
            if child.at_end:
                break
            child.kill()
            return [f"{what}: hangs: {_tell(rules[int(child.said('TRYING')[-1][0])], names)}"]
    child.wait()
    broken = []
    traces = {words[0]: json.loads(" ".join(words[1:])) for words in child.said("TRACE")}
    for number, *words in child.said("BROKEN"):
        told = _tell(rules[int(number)], names)
        broken.append(f"{what}: {told}: {json.loads(' '.join(words))}\n{traces.get(number, '')}")
    for _, kind, _, fired in child.said("RESULT"):
        tried += int(fired) > 0
        figures[f"failing calls: {kind}"] += int(fired) > 0
    figures["failing calls"] += tried
    if child.status != 0:
        last = child.said("TRYING")[-1:] or [["0"]]
        told = _tell(rules[int(last[0][0])], names)
        broken.append(f"{what}: ends with status {child.status}: {told}: {child.failure()}")
    return broken


def _tell(rule: Rule, names: list[str]) -> str:
    return f"{names[rule.number - 1]} (call {rule.number}) {rule}"


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_failing_call_of_an_operation_is_an_error_that_says_why_and_nothing_is_lost(
    name: str, caught: ForkServer, template: Path, workplace: Path, figures: collections.Counter[str]
) -> None:
    folder = workplace / f"{name.replace(' ', '-')}"
    names = calls_of(caught, template, folder, name)
    rules = rules_of(names)
    figures["calls that can fail"] += len(names)
    if FAULTS != "all":
        chance = random.Random(f"{_SEED} {name}")
        rules = chance.sample(rules, min(len(rules), max(8, int(FAULTS) // len(OPERATIONS))))
    broken = []
    for start in range(0, len(rules), _PER_CHILD):
        part = rules[start : start + _PER_CHILD]
        child = caught.start(
            try_faults, template=str(template), folder=str(folder), name=name, rules=[list(rule) for rule in part]
        )
        broken += watch(child, part, names, name, figures)
    assert not broken, "\n".join([f"{len(broken)} of {len(rules)} faults broke a promise:", *broken[:20]])


# What failed once, or is too rare among all calls to be left to chance.
_SINGLE = {
    "making topics": [
        Rule("sync_data", "catalog.sqlite-wal", 1),
        Rule("write", "catalog.sqlite-wal", 1, "fail", errno.ENOSPC),
        Rule("write", "catalog.sqlite-wal", 3, "fail", errno.ENOSPC, sticky=True),
    ],
    "altering topics": [Rule("sync_data", "catalog.sqlite-wal", 1), Rule("list", "topics", 1)],
    "deleting a topic": [
        Rule("rename", "topics", 1, "fail", errno.EACCES),
        Rule("stat", ".deleted-", 1),
        Rule("unlink", ".deleted-", 1, sticky=True),
    ],
    "opening a store": [
        Rule("open", "catalog.sqlite", 1, "fail", errno.EACCES),
        Rule("lock", "catalog.sqlite", 5, sticky=True),
        Rule("list", "topics", 2, "fail", errno.EMFILE),
        Rule("list", "topics", 3, "fail", errno.EIO),
    ],
    "durable appends": [
        Rule("sync_data", ".arrows", 1),
        Rule("sync_data", "journal", 1),
        Rule("write", "journal", 1, "fail", errno.ENOSPC),
        Rule("open", "journal", 1, "fail", errno.EMFILE, sticky=True),
    ],
    "consolidation": [Rule("unlink", ".index", 1), Rule("rename", ".new", 1), Rule("lock", "state", 1)],
    "maintenance": [Rule("stat", "maintenance.lock", 1), Rule("lock", "maintenance.lock", 1)],
    "making a store": [Rule("any", "", 1, "fail", errno.EMFILE, sticky=True), Rule("open", "", 1, sticky=True)],
    "transactions": [Rule("sync_data", "catalog.sqlite-wal", n) for n in (1, 2, 3)],
}


@pytest.mark.parametrize("name", _SINGLE)
def test_certain_failing_calls_of_an_operation_lose_nothing(
    name: str, caught: ForkServer, template: Path, workplace: Path, figures: collections.Counter[str]
) -> None:
    folder = workplace / f"single-{name.replace(' ', '-')}"
    folder.mkdir()
    rules = _SINGLE[name]
    child = caught.start(
        try_faults, template=str(template), folder=str(folder), name=name, rules=[list(rule) for rule in rules]
    )
    names = [rule.name for rule in rules for _ in range(rule.number)] + [""] * 99
    assert watch(child, rules, names, name, figures) == []


@pytest.mark.parametrize("bug", BUGS)
def test_the_checks_above_notice(bug: str, caught: ForkServer, template: Path, workplace: Path) -> None:
    folder = workplace / f"control-{BUGS.index(bug)}"
    folder.mkdir()
    rules = [Rule("allocate", ".arrows", number, "fail", errno.ENOSPC, sticky=True) for number in (1, 2, 3)]
    child = caught.start(
        try_faults, template=str(template), folder=str(folder), name="small appends",
        rules=[list(rule) for rule in rules], bug=bug,
    )  # fmt: skip
    assert watch(child, rules, ["allocate"] * 3, bug, collections.Counter())
