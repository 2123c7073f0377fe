"""Controls: with each deliberate bug the test that is about it fails, and without any the same tests pass.

Needs the build with deliberate bugs; docs/contributing.md says how to make it.
"""

from __future__ import annotations

import collections
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from streamcore import _core

from . import controls
from .controls import CAUGHT_BY, CONTROLS, HANG_S, HANGS, TABLE, Outcome, kind_of, run


@pytest.fixture(scope="module")
def build() -> Path:
    """The build with deliberate bugs."""
    if not (controls.BUILD / "python").is_dir():
        pytest.skip("there is no build with deliberate bugs: docs/contributing.md says how to make it")
    return controls.BUILD


Pair = tuple[str, str]  # a bug, a test


@pytest.fixture(scope="module")
def outcomes(build: Path, request: pytest.FixtureRequest) -> Iterator[dict[Pair, Future[Outcome]]]:
    """A run of each test with each bug that is asked for, as many at a time as there are processors."""
    wanted: list[Pair] = [
        (item.callspec.params["bug"], item.callspec.params["test"])
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_the_bug_is_caught"
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {(bug, test): pool.submit(run, [test], bug, *([HANG_S] if bug in HANGS else [])) for bug, test in wanted}
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


def test_no_package_can_be_built_with_them(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("there is no cmake")
    command = [cmake, "-S", str(controls.ROOT), "-B", str(tmp_path), "-DSKBUILD=2", "-DSTREAMCORE_CONTROLS=ON"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no package may have them" in " ".join(done.stderr.split())


def test_without_a_bug_the_same_tests_pass(build: Path) -> None:
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for test in sorted({test for _, test in CONTROLS}):
        groups[{"pytest": "pytest", "power": test, "C": test.split("::")[0]}[kind_of(test)]].append(test)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ends = dict(
            zip(groups, pool.map(run, groups.values(), itertools.repeat(None), itertools.repeat(600.0)), strict=True)
        )
    assert {group: end.output for group, end in ends.items() if not end.passed} == {}


@pytest.mark.parametrize(
    ("bug", "test"),
    CONTROLS,
    ids=[
        bug if test == CAUGHT_BY[bug] else f"{bug} {test.split('::')[0].rpartition('/')[2]}" for bug, test in CONTROLS
    ],
)
def test_the_bug_is_caught(bug: str, test: str, outcomes: dict[Pair, Future[Outcome]]) -> None:
    outcome = outcomes[bug, test].result()
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    caught = outcome.says and (outcome.code is not None or bug in HANGS)
    how = outcome.says if caught else "NOT CAUGHT"
    TABLE.append(f"{bug:34} {controls.where(bug):28} {test}  {outcome.seconds:.1f} s  {how[:90]}")
    assert caught, f"{controls.bugs()[bug]}: not caught by {test}\n{outcome.output[-3000:]}"
