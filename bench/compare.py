"""`python -m bench.compare COMMIT`: is this version slower than that one?

Both are installed into environments of their own, from clones of what is committed, and take turns round after round in
changing order (before, after, after, before), each time in a new process that times every path of `bench.paths`: the
same file for both. A path's figure is the median over the rounds of after ÷ before, with the quartiles; what is slower
by more than `--within` percent, and whose lower quartile says so too, is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Seconds = dict[str, float]


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="streamcore-compare-") as name:
        folder = Path(name)
        before, after = (
            install(commit, folder / part) for commit, part in ((options.commit, "before"), ("HEAD", "after"))
        )
        rounds = [take_turns(number, before, after, options.rounds) for number in range(options.rounds)]
    ratios = {path: [later[path] / earlier[path] for earlier, later in rounds] for path in rounds[0][0]}
    slower = print_table(ratios, options.within / 100)
    print(
        f"\n{options.rounds} rounds against {options.commit}: "
        + (", ".join(slower) + " slower" if slower else "none slower")
    )
    sys.exit(1 if slower else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description="Is this version slower than that one?"
    )
    parser.add_argument("commit", help="the version before: anything that git knows")
    parser.add_argument("--rounds", type=int, default=8, help="how often both take their turn (8)")
    parser.add_argument("--within", type=float, default=3, help="percent that a path may be slower (3)")
    return parser.parse_args()


def install(commit: str, folder: Path) -> Callable[[], Seconds]:
    """Installs a version; the answer times its paths once."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "source")], check=True)
    subprocess.run(["git", "checkout", "-q", commit], cwd=folder / "source", check=True)
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{folder / 'source'}[sql]"]
    print(f"installing {commit}", file=sys.stderr)
    subprocess.run(command, check=True)
    for needed in ("__init__.py", "paths.py", "rows.py"):
        (folder / "bench").mkdir(exist_ok=True)
        shutil.copy(ROOT / "bench" / needed, folder / "bench")
    if (ROOT.parent / "shared").is_dir():
        (folder.parent / "shared").unlink(missing_ok=True)
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")

    def time_paths() -> Seconds:
        done = subprocess.run([python, "-m", "bench.paths"], cwd=folder, check=True, stdout=subprocess.PIPE)
        return dict(json.loads(done.stdout))

    return time_paths


def take_turns(
    number: int, before: Callable[[], Seconds], after: Callable[[], Seconds], rounds: int
) -> tuple[Seconds, Seconds]:
    print(f"round {number + 1} of {rounds}", file=sys.stderr)
    if number % 2:
        later = after()
        return before(), later
    return before(), after()


def print_table(ratios: dict[str, list[float]], within: float) -> list[str]:
    """Prints after ÷ before of each path; those that are slower."""
    slower = []
    print(f"{'time, after ÷ before':40} {'median':>7} {'quartiles':>15}")
    for path, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4)
        is_slower = middle > 1 + within and low > 1
        print(f"{path:40} {middle:7.3f} {low:7.3f} {high:7.3f}{'  slower' if is_slower else ''}")
        if is_slower:
            slower.append(path)
    return slower


if __name__ == "__main__":
    main()
