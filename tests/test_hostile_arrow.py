"""Arrow input that lies: a clear error that names what is wrong, and a log that is as it was. Each in a child process,
so that a crash is seen as one."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_arrays
import pyarrow as pa
import pytest

import streamcore as sc
from streamcore.ingest import IngestError, ingest

if not sys.platform.startswith("linux"):
    pytest.skip("the children bound their memory as only Linux does", allow_module_level=True)

ALLOWED = ("TypeError", "ValueError", "StreamcoreError")


def run(kind: str, folder: Path) -> list[dict[str, Any]]:
    """What the child said; fails when it did not come to its end, and says where that was."""
    done = subprocess.run(
        [sys.executable, hostile_arrays.__file__, kind, str(folder / "store")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"status {done.returncode} at {lines[-1:]}: {done.stderr[-800:]}"
    assert lines[-1] == {"done": True}
    return [line for line in lines if "outcome" in line or "values" in line]


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run("lies", tmp_path_factory.mktemp("lies"))


@pytest.mark.parametrize("name", hostile_arrays.LIES)
def test_an_array_that_lies_is_refused_with_what_is_wrong_and_the_log_stays_as_it_was(
    name: str, tries: list[dict[str, Any]]
) -> None:
    found = [line for line in tries if line["case"] == name]
    assert len(found) == 13
    for line in found:
        where = f"{name} as {line['way']}: {line}"
        assert line["outcome"] in ALLOWED or (name == "a producer that raises" and line["said"]), where
        assert not line["changed"], where
        assert len(line["said"]) > 15, where


def test_streams_that_break_are_refused_whole(tmp_path: Path) -> None:
    found = {line["case"]: line for line in run("streams", tmp_path)}
    assert set(found) == set(hostile_arrays.STREAMS)
    for name, line in found.items():
        assert not line["changed"], line
        assert line["outcome"] in (*ALLOWED, "OSError", "RuntimeError"), line
        assert line["said"], line
        if name == "an error with a message":
            assert "the drive is gone" in line["said"]


def test_control_sound_arrays_made_in_the_same_way_are_appended(tmp_path: Path) -> None:
    *lines, last = run("sound", tmp_path)
    assert [line["outcome"] for line in lines] == ["appended"] * len(hostile_arrays.SOUND)
    wanted = [value for _, values in hostile_arrays.SOUND.values() for value in values]
    assert [None if value is None else value.encode() for value in last["values"]] == wanted


def test_control_a_child_that_crashes_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import os, signal\nprint('{\"case\": 1}', flush=True)\nos.kill(os.getpid(), signal.SIGABRT)\n")
    monkeypatch.setattr(hostile_arrays, "__file__", str(broken))
    with pytest.raises(AssertionError, match="status -6 at"):
        run("lies", tmp_path)


def bad_offsets(kind: pa.DataType, *ends: int) -> pa.Array:
    offsets = struct.pack(f"<{len(ends)}i", *ends)
    return pa.Array.from_buffers(kind, len(ends) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(b"abcdef")])


@pytest.mark.parametrize(
    ("field", "make"),
    [
        (pa.field("s", pa.string()), lambda: bad_offsets(pa.string(), 0, 5, 2, 6)),
        (pa.field("s", pa.list_(pa.string())), lambda: lists_of(bad_offsets(pa.string(), 0, 5, 2, 6))),
        (pa.field("s", pa.list_(pa.int8())), lambda: lists_of(pa.array([1, 2, 3], pa.int8()), 0, 3, 1, 3)),
        (pa.field("s", pa.struct([("x", pa.string())])), lambda: struct_of(bad_offsets(pa.string(), 0, 5, 2, 6))),
        (
            pa.field("s", pa.list_(pa.int8(), 2)),
            lambda: pa.Array.from_buffers(
                pa.list_(pa.int8(), 2), 2, [None], offset=1 << 61, children=[pa.array([1] * 9, pa.int8())]
            ),
        ),
    ],
    ids=["text", "lists of text", "lists", "structs", "fixed lists"],
)
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_nested_columns_that_lie_are_refused(
    field: pa.Field, make: Callable[[], pa.Array], compression: str, make_topic: Callable[..., sc.Topic]
) -> None:
    topic = make_topic(2, schema=pa.schema([field]), compression=compression)
    for append in (
        lambda: topic.append_table(pa.Table.from_arrays([make()], names=["s"])),
        lambda: topic.append_table(pa.Table.from_arrays([make()], names=["s"]), partition=0),
    ):
        with pytest.raises(ValueError, match="column 's' is no sound Arrow array"):
            append()
    assert topic.scan().count() == 0


def lists_of(values: pa.Array, *ends: int) -> pa.Array:
    ends = ends or tuple(range(len(values) + 1))
    offsets = pa.py_buffer(struct.pack(f"<{len(ends)}i", *ends))
    return pa.Array.from_buffers(pa.list_(values.type), len(ends) - 1, [None, offsets], children=[values])


def struct_of(values: pa.Array) -> pa.Array:
    return pa.Array.from_buffers(pa.struct([("x", values.type)]), len(values), [None], children=[values])


def test_a_hostile_arrow_file_is_an_error_of_ingest(store: sc.Store, tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_arrays([bad_offsets(pa.binary(), 0, 5, 2, 6)], names=["value"])
    path = tmp_path / "bad.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises((IngestError, ValueError), match="sound"):
        ingest(store, "bad", str(path))
    assert all(topic.scan().count() == 0 for topic in store.topics())


def test_control_the_same_file_with_sound_offsets_is_ingested(store: sc.Store, tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_arrays([bad_offsets(pa.binary(), 0, 2, 5, 6)], names=["value"])
    path = tmp_path / "good.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    ingest(store, "good", str(path))
    assert [record.value for record in store.topic("good").scan()] == [b"ab", b"cde", b"f"]
