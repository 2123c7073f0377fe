"""The plots of docs/benchmarks.md: goals as bars around the line that they must pass, and the curves of growth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MET, MISSED, LATER = "#2a7f62", "#c0392b", "#9aa0a6"


def plot_goals(entries: list[dict[str, Any]], path: Path) -> None:
    """One bar per goal: how far beyond the goal (right of 1) or short of it (left)."""
    goals = [(entry["question"], goal) for entry in entries for goal in entry["goals"]]
    labels = [_short(f"{question}: {goal['what']}") for question, goal in goals]
    scores = [max(_score(goal), 0.02) for _, goal in goals]
    colours = [MET if goal["met"] else LATER if goal["later"] else MISSED for _, goal in goals]
    figure, axes = plt.subplots(figsize=(9, 0.27 * len(goals) + 1))
    axes.barh(range(len(goals)), [score - 1 for score in scores], left=1, color=colours)
    axes.set_yticks(range(len(goals)), labels, fontsize=6.5)
    axes.scatter(scores, range(len(goals)), color=colours, s=14)  # a bar close to 1 is too thin to see
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("measured against goal (right of 1: met)", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    _save(figure, path)


def plot_curve(curve: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5.2, 3.2))
    for name, points in curve["series"].items():
        axes.plot([point[0] for point in points], [point[1] for point in points], marker="o", markersize=3, label=name)
    if "x" in curve["logarithmic"]:
        axes.set_xscale("log")
    if "y" in curve["logarithmic"]:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(curve["title"], fontsize=9)
    axes.set_xlabel(curve["x"], fontsize=8)
    axes.set_ylabel(curve["y"], fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    _save(figure, path)


def _score(goal: dict[str, Any]) -> float:
    measured, needed = float(goal["measured"]), float(goal["needed"])
    return measured / needed if goal["sense"] == ">=" else needed / max(measured, 1e-9)


def _short(text: str) -> str:
    return text if len(text) <= 95 else text[:92] + "..."


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)
