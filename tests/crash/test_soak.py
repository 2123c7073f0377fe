"""All that a store can do, at once and for long, under kills: nothing is lost or wrong, and nothing grows.

`STREAMCORE_SOAK_SECONDS` makes it longer; `python -m tests.crash.soak` shows figures as well.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from .flatness import Figures, slope
from .forkserver import ForkServer
from .soak import Plan, Soak

SECONDS = float(os.environ.get("STREAMCORE_SOAK_SECONDS", "20"))
SEED = int(os.environ.get("STREAMCORE_SOAK_SEED", "1"))
pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="figures of processes need Linux")


def test_a_mixed_load_under_kills_stays_right_and_flat(
    tmp_path: Path, children: ForkServer, figures: Counter[str]
) -> None:
    report = Soak(Plan(SECONDS, tmp_path / "soak", SEED)).run(children)
    assert report.growing == []
    for what in ("kills", "suspensions", "segments rolled, at least", "retention segments", "consolidation segments"):
        assert report.counts[what] > 0, what
        figures[f"soak: {what}"] += report.counts[what]
    assert len(report.growths) > 50


def test_the_check_for_growth_finds_descriptors_memory_and_mappings_that_are_kept(
    tmp_path: Path, children: ForkServer
) -> None:
    bugs = {"lists": "keeps descriptors", "tables": "keeps memory", "producer": "keeps mappings"}
    plan = Plan(12, tmp_path / "soak", SEED, roles=("lists", "tables", "producer", "maintenance"), bugs=bugs)
    report = Soak(plan).run(children)
    grown = {growth.name for growth in report.growing}
    assert report.counts["prolonged"] == 1
    assert grown >= {"descriptors of lists", "anonymous of tables", "mappings of producer"}
    sound = {
        f"{kind} of {role}" for kind in ("descriptors", "threads") for role in ("tables", "producer", "maintenance")
    }
    assert not grown & sound


@pytest.mark.parametrize(
    ("roles", "bugs", "said"),
    [
        (("lists", "scan"), {"lists": "writes a wrong byte"}, "wrong bytes in record"),
        (("lists", "scan"), {"lists": "skips a record"}, "comes behind"),
        (("lists", "scan"), {"lists": "acknowledges too much"}, "is lost|comes behind"),
        (("lists", "scan", "maintenance"), {"maintenance": "deletes early"}, "ago are gone"),
        (("producer", "exact", "audit"), {"audit": "goes back"}, "went back"),
    ],
)
def test_the_checks_of_the_load_find(
    roles: tuple[str, ...], bugs: dict[str, str], said: str, tmp_path: Path, children: ForkServer
) -> None:
    with pytest.raises(AssertionError, match=said):
        Soak(Plan(120, tmp_path / "soak", SEED, roles=roles, bugs=bugs)).run(children)


def test_what_goes_up_and_down_is_flat_and_a_slow_leak_is_not() -> None:
    figures = Figures()
    for second in range(600):
        figures.note(second, "bytes", "a log under retention", (20 << 20) + (second % 30) * (1 << 20))
        figures.note(second, "descriptors", "a cache that is filled", min(second, 60))
        figures.note(second, "descriptors", "a leak", 20 + second // 20)
    assert [growth.name for growth in figures.growths() if not growth.is_flat] == ["descriptors of a leak"]
    assert slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 7.0), (4.0, 100.0)]) == 2.0
