"""The documentation does what it says: its code runs, its commands answer as shown, its links lead somewhere."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType

import pyarrow as pa
import pytest
from pages import FENCE, PAGES, ROOT, blocks_of, environment_with_command, name_of, run_page

import streamcore as sc

_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_SOURCE = re.compile(r"`(?P<path>(?:csrc|streamcore|docs|bench|tests)/[\w./-]+\.(?:c|h|py|pyx|pxd|md|sh))`")
_ELSEWHERE = {"docs/archive.md"}  # tests/tier/test_archive_page.py runs it
RUNNABLE = [
    page
    for page in PAGES
    if name_of(page) not in _ELSEWHERE and any(block.language in ("python", "console") for block in blocks_of(page))
]


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_the_code_of_a_page_runs_and_shows_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    run_page(page, environment_with_command(tmp_path / "bin"))


# ---- the examples of the file format ----


def module_of(name: str) -> ModuleType:
    """A program of docs/examples as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The reader."""
    return module_of("read_segment")


@pytest.fixture
def mixed_topic(tmp_path: Path) -> Iterator[sc.Topic]:
    """A plain topic of several segments, with all that a record may have, still open for writing."""
    random = Random(7)
    with sc.open(tmp_path / "store") as store:
        topic = store.create_topic("mixed", segment_bytes=64 << 10)
        for size in (1, 2, 63, 64, 65, 500):
            values = [random.choice([None, b"", random.randbytes(random.randrange(300))]) for _ in range(size)]
            keys = [random.choice([None, b"", random.randbytes(5)]) for _ in range(size)]
            times = [random.randrange(-(1 << 40), 1 << 41) for _ in range(size)]
            pairs = [None, {}, {"a": b"1"}, [("twice", b""), ("twice", None), ("\u00fc", b"\xff")]]
            topic.append(values)
            topic.append(values, keys=keys, timestamps=times)
            topic.append(values, keys=keys, headers=[random.choice(pairs) for _ in range(size)])
        topic.append_table(pa.table({"value": [b"x" * 100] * 70_000}))  # an append of two batches
        yield topic


def folder_of(topic: sc.Topic) -> Path:
    return Path(topic.segments()[0].path).parent


def test_the_example_reader_agrees_with_the_library(example: ModuleType, mixed_topic: sc.Topic) -> None:
    mixed_topic.append([b"after the long append"])
    segments = [segment for segment in mixed_topic.segments() if segment.size_bytes < 1 << 20]
    assert len(segments) >= 4
    assert not segments[-1].sealed
    for segment in segments:
        wanted = mixed_topic.scan(start=segment.base_offset, end=segment.end_offset)
        rows = [(row.offset, row.timestamp_ms, row.key, row.value, row.headers) for row in wanted]
        assert rows == list(example.read_segment(Path(segment.path)))


def test_the_example_reader_needs_the_standard_library_alone(tmp_path: Path) -> None:
    with sc.open(tmp_path / "store") as store:
        topic = store.create_topic("clicks", segment_bytes=64 << 10)
        for number in range(40):
            topic.append([b"%d" % number, None, b"\xff" * 3000], keys=[b"k", None, b""], timestamps=number)
        folder = folder_of(topic)
        assert len(topic.segments()) > 1
        command = [sys.executable, "-I", "-S", str(ROOT / "docs" / "examples" / "read_segment.py"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        printed = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["offset"] for row in printed] == [record.offset for record in topic.scan()]
        assert printed[3] == {"offset": 3, "timestamp_ms": 1, "key": "k", "value": "1", "headers": []}
        assert base64.b64decode(printed[5]["value"]["base64"]) == b"\xff" * 3000


@pytest.mark.parametrize("place", [0, 6, 700, 768 + 100, 768 + 576, 768 + 576 + 6, 768 + 576 + 64, 768 + 704 + 5])
def test_the_example_reader_notices_a_changed_byte(example: ModuleType, tmp_path: Path, place: int) -> None:
    with sc.open(tmp_path / "store") as store:
        topic = store.create_topic("clicks")
        topic.append([b"/home"] * 20)
        copy = tmp_path / Path(topic.segments()[0].path).name
        data = bytearray(Path(topic.segments()[0].path).read_bytes())
    data[place] ^= 4
    copy.write_bytes(data)
    if 8 <= place < 768:  # the schema message: the example does not compare it
        assert len(list(example.read_segment(copy))) == 20
    else:
        with pytest.raises(example.FormatError):
            list(example.read_segment(copy))


def test_the_example_reader_refuses_what_it_does_not_know(example: ModuleType, tmp_path: Path) -> None:
    with sc.open(tmp_path / "store") as store:
        packed = store.create_topic("packed", compression="zstd")
        packed.append([b"x" * 1000])
        typed = store.create_topic("typed", schema=pa.schema([("a", pa.int64())]))
        typed.append([{"a": 1}])
        for topic, why in ((packed, "compressed"), (typed, "not a plain topic")):
            with pytest.raises(example.FormatError, match=why):
                list(example.read_partition(folder_of(topic)))


APPENDED: list[list[bytes | None]] = [[b"one", None, b"", b"\0" * 100], [b"x" * 70_000], [None] * 9, [b"last"]]


def test_the_library_goes_on_behind_what_the_example_writer_appended(tmp_path: Path, example: ModuleType) -> None:
    writer = module_of("append_records")
    with sc.open(tmp_path / "store") as store:
        store.create_topic("clicks", partitions=3).append([b"first", None], keys=[b"k", None], partition=1)
    wanted = {1: [b"first", None], 2: []}
    for values in APPENDED:
        for partition, known in wanted.items():
            first = len(known)
            known += values
            assert writer.append(tmp_path / "store", "clicks", partition, values) == (first, len(known))
    for mode in ("r", "rw"):
        with sc.open(tmp_path / "store", mode=mode) as store:
            topic = store.topic("clicks")
            assert {p: [record.value for record in topic.scan(p)] for p in wanted} == wanted
            assert {p: topic.scan(p).to_arrow()["value"].to_pylist() for p in wanted} == wanted
            assert store.verify() == []
    with sc.open(tmp_path / "store") as store:
        topic = store.topic("clicks")
        for partition, known in wanted.items():
            assert topic.append([b"ours"], partition=partition) == [sc.Span(partition, len(known), len(known) + 1)]
            path = Path(next(s.path for s in topic.segments() if s.partition == partition))
            assert [row.value for row in example.read_segment(path)] == [*known, b"ours"]
            with path.open("rb") as file:
                assert pa.ipc.open_stream(file).read_all()["value"].to_pylist() == [*known, b"ours"]
        with pytest.raises(OSError, match="(?i)resource temporarily unavailable"):
            writer.append(tmp_path / "store", "clicks", 1, [b"the store is open"])


def test_the_example_writer_makes_the_bytes_that_the_library_makes(tmp_path: Path) -> None:
    writer = module_of("append_records")
    with sc.open(tmp_path / "store") as store:
        topic = store.create_topic("clicks")
        for number, values in enumerate(APPENDED):
            topic.append(values, timestamps=number, durability="disk")
        data = Path(topic.segments()[0].path).read_bytes()
    position, offset = 768, 0
    for number, values in enumerate(APPENDED):
        batch = writer.make_batch(values, offset, number, offset, 1)
        if data[position : position + len(batch)] != batch:  # a batch without records fills the file before it grows
            position += int.from_bytes(data[position + 576 + 16 : position + 576 + 24], "little")
        assert data[position : position + len(batch)] == batch
        position += len(batch)
        offset += len(values)


# ---- pages that are written by scripts ----


@pytest.mark.parametrize("script", ["generate_api.py", "generate_cli.py"])
def test_generated_pages_are_fresh(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ---- links ----


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = 0
        while (unique := f"{anchor}-{number}" if number else anchor) in anchors:
            number += 1
        anchors.add(unique)
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for found in _LINK.finditer(text):
        target, _, anchor = found["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name_of(page)} links to {target}, which is not there"
        assert not anchor or anchor in anchors_of(file), f"{name_of(page)} links to {target}#{anchor}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_source_files_that_a_page_names_are_there(page: Path) -> None:
    named = [found["path"] for found in _SOURCE.finditer(page.read_text(encoding="utf-8"))]
    assert [path for path in named if not (ROOT / path).exists()] == []
