"""`python -m bench.report`: runs the benchmarks and writes docs/benchmarks.md with its plots.

With a JSON file of an earlier run it writes the report of that run. `--quick` takes a minute or two, `--full` goes to
10 GB and 10,000 partitions. What is said of a missed goal comes from bench/findings.toml, where whoever profiled it
wrote where the time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from bench.plots import plot_curve, plot_goals

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "latest.json"
PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"
FINDINGS = Path(__file__).with_name("findings.toml")

INTRODUCTION = """# Benchmarks

Written by `python -m bench.report`; do not edit. Every goal is a ratio measured inside one run: streamcore, its peers
and the raw limit take turns in every round, and the figure is the median of the rounds' ratios, with the lowest and the
highest beside it. Peers run in their best batched mode; how they are set is in `bench/peers/`. The input is {rows}, cut
into values, never one constant record. What every figure means is written at the head of the file in `bench/` that
measures it. CPU seconds are those of one round; the growth of the peak RSS counts mapped file pages as well.
"""


def main() -> None:
    options = parse_arguments()
    source = options.json or run_benchmarks(options.size)
    found = json.loads(Path(source).read_text())
    IMAGES.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(write_page(found), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description="Run the benchmarks, write docs/benchmarks.md."
    )
    parser.add_argument("json", nargs="?", help="a JSON file of an earlier run; without it the benchmarks run now")
    parser.add_argument(
        "--quick", dest="size", action="store_const", const="quick", help="small sizes: one or two minutes"
    )
    parser.add_argument("--full", dest="size", action="store_const", const="full", help="10 GB and 10,000 partitions")
    parser.set_defaults(size=os.environ.get("BENCH_SIZE", "standard"))
    return parser.parse_args()


def run_benchmarks(size: str) -> Path:
    """Runs `pytest bench/`; a benchmark that fails leaves the others in the report, and is named on the terminal."""
    RESULTS.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "bench", "-q", f"--benchmark-json={RESULTS}"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "BENCH_SIZE": size}, check=False)
    return RESULTS


def write_page(found: dict[str, Any]) -> str:
    entries = [entry["extra_info"] for entry in found["benchmarks"] if "question" in entry["extra_info"]]
    plot_goals(entries, IMAGES / "goals.png")
    parts = [INTRODUCTION.format(rows=found["streamcore"]["rows"]), describe_run(found), goal_table(entries)]
    parts.append("![Goals, measured against needed](images/goals.png)\n")
    parts.append(not_measured(found["streamcore"].get("not_measured", [])))
    parts.append(missed_goals(entries))
    parts.append(growth(entries))
    parts.append("## Every question\n")
    parts += [describe_question(entry) for entry in entries]
    return "\n".join(parts)


def describe_run(found: dict[str, Any]) -> str:
    machine = found["machine_info"]
    processor = machine.get("cpu", {})
    name = processor.get("brand_raw", machine.get("machine", "?"))
    count = processor.get("count", os.cpu_count())
    when = str(found["datetime"])[:16].replace("T", " ")
    size = found["streamcore"]["size"]
    busy = found["streamcore"].get("load")
    load = "" if busy is None else f"; load average of the minute before: {busy:.1f}"
    system = f"{machine.get('system', '')} {machine.get('release', '')}, Python {machine.get('python_version', '')}"
    return f"Machine: {name}, {count} cores, {system}. Run of {when} UTC, size `{size}`{load}.\n"


def goal_table(entries: list[dict[str, Any]]) -> str:
    lines = ["## Goals\n", "| question | goal | measured | lowest to highest | |", "|---|---|---|---|---|"]
    for entry in entries:
        for goal in entry["goals"]:
            spread = f"{goal['low']:.3g} to {goal['high']:.3g}" if goal["low"] is not None else ""
            verdict = "met" if goal["met"] else "not due: " + goal["later"] if goal["later"] else "**missed**"
            measured = f"{goal['measured']:.3g} {goal['unit']}"
            lines.append(f"| {entry['question']} | {goal['what']} | {measured} | {spread} | {verdict} |")
    return "\n".join(lines) + "\n"


def not_measured(benchmarks: list[dict[str, str]]) -> str:
    """What this run does not say, and why: a benchmark that failed must not vanish from the page."""
    lines = [f"- `{benchmark['name']}` {benchmark['outcome']}: {benchmark['why']}" for benchmark in benchmarks]
    return "\n".join(["## Not measured in this run\n", *lines]) + "\n" if lines else ""


def missed_goals(entries: list[dict[str, Any]]) -> str:
    """Where the time goes, for each missed goal; what nobody has profiled yet says so."""
    findings = tomllib.loads(FINDINGS.read_text(encoding="utf-8")) if FINDINGS.exists() else {}
    lines = ["## Where the time goes\n"]
    for entry in entries:
        missed = [goal for goal in entry["goals"] if not goal["met"]]
        if not missed:
            continue
        figures = "; ".join(f"{goal['what']}: {goal['measured']:.3g} {goal['unit']}" for goal in missed)
        lines.append(f"**{entry['question']}** ({figures}). {finding_of(entry, findings)}\n")
    if len(lines) == 1:
        lines.append("Every goal is met in this run.\n")
    return "\n".join(lines)


def finding_of(entry: dict[str, Any], findings: dict[str, str]) -> str:
    """What was found for the question: findings are named by how a question begins, without its sizes."""
    question = str(entry["question"])
    fitting = [name for name in findings if question.startswith(name)]
    return findings[max(fitting, key=len)] if fitting else "Not profiled yet."


def growth(entries: list[dict[str, Any]]) -> str:
    lines = ["## How costs grow\n"]
    for entry in entries:
        for curve in entry["curves"]:
            plot_curve(curve, IMAGES / f"{curve['name']}.png")
            lines.append(f"![{curve['title']}](images/{curve['name']}.png)")
    return "\n".join(lines) + "\n"


def describe_question(entry: dict[str, Any]) -> str:
    lines = [f"### {entry['question'][0].upper()}{entry['question'][1:]}\n"]
    if entry["contestants"]:
        lines += [f"| | {entry['unit']} | CPU s | peak RSS growth MB | disk bytes per unit |", "|---|---|---|---|---|"]
        lines += [describe_contestant(contestant) for contestant in entry["contestants"]]
        lines.append("")
    lines += [f"- {fact['name']}: {fact['value']:,.4g} {fact['unit']}".rstrip() for fact in entry["facts"]]
    for curve in entry["curves"]:
        lines += ["", *describe_curve(curve)]
    lines += ["", *entry["notes"], ""]
    return "\n".join(lines)


def describe_contestant(contestant: dict[str, Any]) -> str:
    memory = f"{contestant['grown_rss_mb']:,.0f}" if contestant["grown_rss_mb"] else ""
    disk = f"{contestant['disk_bytes'] / contestant['amount']:,.1f}" if contestant["disk_bytes"] else ""
    return f"| {contestant['name']} | {scaled(contestant['rate'])} | {contestant['cpu_s']:.3f} | {memory} | {disk} |"


def describe_curve(curve: dict[str, Any]) -> list[str]:
    names = list(curve["series"])
    places = sorted({point[0] for points in curve["series"].values() for point in points})
    lines = [f"| {curve['x']} | " + " | ".join(f"{name}, {curve['y']}" for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for place in places:
        values = [dict(map(tuple, curve["series"][name])).get(place) for name in names]
        cells = ["" if value is None else scaled(value) for value in values]
        lines.append(f"| {place:,.4g} | " + " | ".join(cells) + " |")
    return lines


def scaled(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


if __name__ == "__main__":
    main()
