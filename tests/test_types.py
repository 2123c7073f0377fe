"""What type checkers see: complete stubs of the core, and a package whose users pass `mypy --strict`."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import streamcore as sc
from streamcore import config

pytest.importorskip("mypy")

PACKAGE = Path(sc.__file__).parent

PROGRAM = """
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import assert_type

import streamcore as sc

with sc.open("shop", mode="rw", durability="disk") as store:
    assert_type(store, sc.Store)
    topic = store.create_topic("clicks", partitions=4, segment_ms=60_000, compression="zstd", durability=None)
    assert_type(topic, sc.Topic)
    spans = topic.append([b"a", None], keys=[b"k", None], timestamps=datetime.now(UTC), durability="os")
    assert_type(spans, list[sc.Span])
    assert_type(spans[0].end_offset, int)
    assert_type(topic.config, sc.TopicConfig)
    assert_type(topic.partitions, tuple[sc.Partition, ...])
    scan = topic.scan(start={0: 5}, end="latest", columns=["value"], limit=3)
    assert_type(scan, sc.Scan)
    for record in scan:
        assert_type(record, sc.Record)
        assert_type(record.key, bytes | None)
        assert_type(record.timestamp, datetime)
    assert_type(scan.count(), int)
    assert_type(store.verify(), list[sc.Problem])
    topic.alter(retention_ms=5)

    store.create_topic("clicks", segment_byte=1)  # type: ignore[call-arg]
    store.create_topic("clicks", compression="gzip")  # type: ignore[arg-type]
    topic.alter(retention_ms="5")  # type: ignore[arg-type]
    topic.append([b"a"], durability="ram")  # type: ignore[arg-type]
    topic.scan(isolation="none")  # type: ignore[arg-type]
    sc.open("shop", mode="w")  # type: ignore[arg-type]
    record.key = b""  # type: ignore[misc]
    topic.produce()  # type: ignore[attr-defined]
"""


def run(command: list[str], folder: Path) -> str:
    """What a checker says, from a folder where no source lies; an editable install is shown to it by its path."""
    assert (PACKAGE / "py.typed").exists()
    environment = {**os.environ, "MYPY_CACHE_DIR": str(folder / "cache")}
    if PACKAGE.parent.name != "site-packages":
        environment["MYPYPATH"] = str(PACKAGE.parent)
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_program_passes_mypy_strict_and_its_mistakes_are_found(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    assert "no issues" in run(["mypy", "--strict", "program.py"], tmp_path)


def test_the_stub_of_the_core_says_all_that_is_there_and_nothing_else(tmp_path: Path) -> None:
    assert "no issues" in run(["mypy.stubtest", "streamcore._core"], tmp_path)


def test_keyword_arguments_of_topics_are_the_fields_of_their_settings() -> None:
    fields = [field.name for field in dataclasses.fields(sc.TopicConfig)]
    assert list(get_type_hints(config.TopicSettings)) == fields
