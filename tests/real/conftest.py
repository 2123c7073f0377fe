"""Tests on real input, which lies beside the repository in ../shared/data; skipped where that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import streamcore as sc

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real input."""
    if not DATA.is_dir():
        pytest.skip(f"the real input is not there: {DATA}")
    return DATA


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sc.Store]:
    """A store for the tests of one module."""
    with sc.open(tmp_path_factory.mktemp("real") / "store") as opened:
        yield opened
