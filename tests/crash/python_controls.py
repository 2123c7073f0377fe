"""Deliberate bugs in Python, beside those of csrc/control.h: replaced functions, none of them in streamcore/ itself.

The build with deliberate bugs has this file as its sitecustomize.py, so it runs first in every process of Python that
has that build on its path: there the variable STREAMCORE_PYTHON_CONTROL names the bug of the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

PYTHON_BUGS: dict[str, Callable[[], None]] = {}


def _begin() -> None:
    # An editable install finds the package before the path is looked at.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
    if name := os.environ.get("STREAMCORE_PYTHON_CONTROL"):
        PYTHON_BUGS[name]()


if __name__ == "sitecustomize":
    _begin()
