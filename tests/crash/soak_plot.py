"""`python -m tests.crash.soak_plot figures.json image.png`: memory, descriptors, mappings and disk over a soak."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MIB = 1 << 20
PANELS = [
    ("anonymous", "anonymous memory, MiB", MIB),
    ("descriptors", "open descriptors", 1),
    ("mappings", "mappings", 1),
    ("threads", "threads", 1),
    ("bytes", "the store on the drive, MiB", MIB),
    ("files", "files of the store", 1),
]  # fmt: skip
_PARTS = {"catalog": "catalog.sqlite", "wal": "its write-ahead log", "journal": "journal"}


def plot(found: dict[str, Any], path: Path) -> None:
    """One panel for each kind of figure, a line for each process that lives from the beginning to the end."""
    figure, axes = plt.subplots(3, 2, figsize=(9, 8.5), sharex=True)
    for axis, (kind, title, unit) in zip(axes.flat, PANELS, strict=True):
        for name, points in found["points"].items():
            what, who = name.split(" of ", 1)
            if what == kind or (kind == "bytes" and what in _PARTS):
                label = _PARTS.get(what, "all of it" if kind == "bytes" else who)
                axis.plot([t / 60 for t, _ in points], [v / unit for _, v in points], linewidth=1, label=label)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("minutes", fontsize=8)
    axes[0, 0].legend(fontsize=6, ncols=3, loc="lower right")
    axes[2, 0].legend(fontsize=6, loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
