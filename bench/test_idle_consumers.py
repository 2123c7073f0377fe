"""How much CPU do 1,000 consumers take that wait in one event loop?"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import streamcore as sc
from bench.contest import Contest
from bench.idle import TOPIC
from bench.sizes import Sizes

CONSUMERS = 1_000
KINDS = {"none": "no consumer", "alone": "1,000 consumers", "groups": "1,000 consumers in groups of their own"}
SECONDS = {"quick": 4.0, "standard": 10.0, "full": 20.0}  # members give a sign of life every 10/3 seconds
ALLOWED = 0.01  # "about 0": CPU seconds a second


def test_idle_consumers(contest: Callable[..., Contest], folder: Path, size: Sizes) -> None:
    question = contest("idle consumers in one event loop", unit="")
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}

    def measure() -> None:
        for turn in range(1 if size.name == "quick" else 3):
            for kind in KINDS:
                found[kind].append(idle(folder / f"{kind}-{turn}", kind, SECONDS[size.name]))
        for kind, name in KINDS.items():
            report(question, name, found[kind], due=kind != "none")

    question.once(measure)
    question.note("A process of its own, all its threads counted; `async for` over a topic that does not grow.")


def idle(place: Path, kind: str, seconds: float) -> dict[str, float]:
    with sc.open(place) as store:
        store.create_topic(TOPIC)
    command = [sys.executable, "-m", "bench.idle", str(place), kind, str(CONSUMERS), str(seconds)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, timeout=300)
    return dict(json.loads(done.stdout))


def report(question: Contest, name: str, turns: list[dict[str, float]], due: bool) -> None:
    used = statistics.median(turn["cpu_s"] / turn["wall_s"] for turn in turns)
    question.fact(f"{name}: CPU", 1000 * used, "ms a second")
    if not due:
        return
    question.at_most(f"{name}: ≈ 0 CPU", used, ALLOWED, "CPU seconds a second")
    for figure, label, unit in (
        ("threads", "Python threads of the process", ""),
        ("started_s", "to make them", "s"),
        ("memory_mb", "memory", "MB"),
        ("woken_ms", "from an append until all have read it", "ms"),
    ):
        question.fact(f"{name}: {label}", statistics.median(turn[figure] for turn in turns), unit)
