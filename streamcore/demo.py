"""A small clickstream for the tour, the benchmark and examples: seeded, so that it is the same every time.

Visitors come in sessions; a few pages get most of the visits (Zipf), sessions are short, most requests succeed.
"""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa

__all__ = ["clickstream"]

_PAGES = (  # by popularity
    *("/", "/search", "/product/lamp", "/product/desk", "/cart", "/product/chair", "/login", "/blog/lighting"),
    *("/product/kettle", "/checkout", "/product/mug", "/product/rug", "/help", "/product/clock", "/blog/small-rooms"),
    *("/product/shelf", "/product/vase", "/about", "/product/bed", "/blog/2025", "/imprint", "/jobs"),
)
_AGENTS = ("Firefox", "Chrome", "Safari", "Edge", "Googlebot")
_START = dt.datetime(2026, 3, 2, 6, 0, tzinfo=dt.UTC)
_DAY_MS = 86_400_000


def clickstream(rows: int, seed: int = 7) -> pa.Table:
    """`rows` page views of one day: at (time), visitor, page, status, duration_ms, agent, referrer (often null)."""
    random = np.random.default_rng(seed)
    views = random.geometric(0.18, size=rows)  # page views of each session
    session = np.repeat(np.arange(rows), views)[:rows]
    visitors = np.char.add("v", random.integers(1000, 1000 + max(10, rows // 12), size=rows).astype(str))
    starts = random.beta(2.2, 2.0, size=rows) * (_DAY_MS * 0.7)
    pauses = random.exponential(25_000.0, size=rows)
    since = np.cumsum(pauses)
    first = np.concatenate(([True], session[1:] != session[:-1]))
    at = starts[session] + since - since[np.maximum.accumulate(np.where(first, np.arange(rows), 0))]
    order = np.argsort(at, kind="stable")
    weights = 1.0 / np.arange(1, len(_PAGES) + 1) ** 1.1
    pages = random.choice(len(_PAGES), p=weights / weights.sum(), size=rows)
    status = random.choice([200, 301, 404, 500], p=[0.93, 0.03, 0.035, 0.005], size=rows)
    agents = random.choice(len(_AGENTS), p=[0.2, 0.45, 0.2, 0.1, 0.05], size=rows)
    referred = first & (random.random(rows) < 0.6)
    times = int(_START.timestamp() * 1000) + at[order].astype(np.int64)
    return pa.table(
        {
            "at": pa.array(times, pa.timestamp("ms", tz="UTC")),
            "visitor": pa.array(visitors[session][order]),
            "page": _chosen(_PAGES, pages[order]),
            "status": pa.array(status[order].astype(np.int16)),
            "duration_ms": pa.array(np.round(random.lognormal(3.4, 0.9, size=rows), 1)[order], pa.float32()),
            "agent": _chosen(_AGENTS, agents[order]),
            "referrer": pa.array(np.full(rows, "https://search.example/"), pa.string(), mask=~referred[order]),
        }
    )


def _chosen(names: tuple[str, ...], places: np.ndarray) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(places))
