"""`python -m tests.crash.power TRACE POINT SEED` draws a state of a saved recording again, and says what is wrong.

`python -m tests.crash.power WORKLOAD SEED POINTS [LIVES]` records a workload and tries so many moments.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .simulation import Simulator, Trace


def main(source: str, point: str, seed: str, lives: str = "1") -> int:
    """0: nothing is wrong."""
    with Simulator(Path.cwd()) as simulator:
        if Path(source).exists():
            what = simulator.repeat(Trace.load(Path(source)), int(point), int(seed))
            print(what or "nothing is wrong")
            return int(what is not None)
        trace = simulator.record(source, point)
        for _ in range(int(lives) - 1):
            trace = simulator.record_another_life(trace, point)
        outcome = simulator.check(trace, int(seed), point)
        for broken in outcome.broken:
            print(broken)
        print(dict(outcome.states), f"{outcome.states.total()} states, {outcome.equal} equal, {outcome.seconds:.1f} s")
        return int(bool(outcome.broken))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
