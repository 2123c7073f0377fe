"""Controls: with each deliberate bug the test that is about it fails, and without any the same tests pass.

Needs the build with deliberate bugs; docs/contributing.md says how to make it.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from streamcore import _core

from . import controls
from .controls import CAUGHT_BY, HANG_S, HANGS, TABLE, Outcome, run


@pytest.fixture(scope="module")
def build() -> Path:
    """The build with deliberate bugs."""
    if not (controls.BUILD / "python").is_dir():
        pytest.skip("there is no build with deliberate bugs: docs/contributing.md says how to make it")
    return controls.BUILD


@pytest.fixture(scope="module")
def outcomes(build: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """A run of the test of each bug that is asked for, as many at a time as there are processors."""
    wanted = [
        item.callspec.params["bug"]
        for item in request.session.items
        if hasattr(item, "callspec") and item.function is test_the_bug_is_caught
    ]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield {bug: pool.submit(run, [CAUGHT_BY[bug]], bug, *([HANG_S] if bug in HANGS else [])) for bug in wanted}
    finally:
        pool.shutdown(cancel_futures=True)


def test_every_bug_has_a_test_that_must_catch_it() -> None:
    assert set(controls.bugs()) == set(CAUGHT_BY)
    assert [bug for bug in CAUGHT_BY if not controls.where(bug)] == []


def test_no_bug_is_in_what_is_installed() -> None:
    assert not _core.CONTROLS
    content = Path(_core.__file__).read_bytes()
    assert b"STREAMCORE_CONTROL" not in content
    assert [bug for bug in CAUGHT_BY if bug.encode() in content] == []


def test_a_bug_that_is_not_there_is_refused(build: Path) -> None:
    outcome = run([CAUGHT_BY["folder_not_synced"]], "no_such_bug")
    assert outcome.code == 2
    assert "no such bug" in outcome.output
    assert not outcome.says


def test_without_a_bug_the_same_tests_pass(build: Path) -> None:
    programs: dict[str, list[str]] = collections.defaultdict(list)
    for test in sorted(set(CAUGHT_BY.values())):
        programs["pytest" if test.startswith("tests/") else test.split("::")[0]].append(test)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ends = dict(zip(programs, pool.map(run, programs.values()), strict=True))
    assert {program: end.output for program, end in ends.items() if not end.passed} == {}


@pytest.mark.parametrize("bug", CAUGHT_BY)
def test_the_bug_is_caught(bug: str, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[bug].result()
    caught = outcome.says and (outcome.code is not None or bug in HANGS)
    how = outcome.says if caught else "NOT CAUGHT"
    TABLE.append(f"{bug:34} {controls.where(bug):28} {CAUGHT_BY[bug]}  {outcome.seconds:.1f} s  {how[:90]}")
    assert caught, f"{controls.bugs()[bug]}: not caught by {CAUGHT_BY[bug]}\n{outcome.output[-3000:]}"
