"""Bytes that changed in a log: never a wrong record, but an error that names the place; the rest stays readable."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import streamcore as sc

from .logs import TOPIC, Log, make_log, values_of
from .segments import Frame, change_header, flip, frames, overwrite, schema_size, segment_paths

BAD_BYTES: dict[str, Callable[[Frame], int]] = {
    "continuation": lambda frame: frame.position + 1,
    "metadata size": lambda frame: frame.position + 4,
    "metadata": lambda frame: frame.position + 8 + frame.metadata_size // 2,
    "header": lambda frame: frame.header_position + 24,
    "header checksum": lambda frame: frame.header_position + 9,
    "header's reserve": lambda frame: frame.header_position + 120,
    "body checksum": lambda frame: frame.header_position + 13,
    "offsets": lambda frame: frame.body_position + 8,
    "values": lambda frame: frame.end - 300,
    "padding": lambda frame: frame.end - 1,
}
READS: dict[str, Callable[[sc.Scan], object]] = {
    "records": list,
    "to_arrow": lambda scan: scan.to_arrow(),
    "batches": lambda scan: list(scan.batches()),
    "to_polars": lambda scan: scan.to_polars(),
    "to_pandas": lambda scan: scan.to_pandas(),
}


@pytest.fixture
def log(store_path: Path) -> Log:
    """Thirty appends in one segment."""
    return make_log(store_path, 30, rows=10)


@pytest.fixture
def sealed_log(store_path: Path) -> Log:
    """A log of many segments, all but the last of them sealed."""
    log = make_log(store_path, 120, rows=5, value_bytes=500, segment_bytes=64 << 10)
    assert len(log.paths) >= 4
    return log


# ---- one bad batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("what", BAD_BYTES)
def test_a_bad_batch_with_good_ones_behind_it_is_named_and_the_rest_is_readable(what: str, mode: str, log: Log) -> None:
    path, frame = log.frames()[12]
    flip(path, BAD_BYTES[what](frame))
    with sc.open(log.store_path, mode) as store:
        topic = store.topic(TOPIC)
        for read in READS.values():
            with pytest.raises(sc.CorruptionError) as raised:
                read(topic.scan())
            found = raised.value
            assert (found.path, found.offset, found.position) == (str(path), frame.base_offset, frame.position)
            for part in (str(path), str(frame.base_offset), str(frame.position)):
                assert part in str(found)
        assert values_of(topic, end=frame.base_offset) == log.values[: frame.base_offset]
        assert values_of(topic, start=frame.end_offset) == log.values[frame.end_offset :]
        assert [record.value for record in topic.scan(start=frame.end_offset)] == log.values[frame.end_offset :]
        assert (topic.partitions[0].start_offset, topic.partitions[0].end_offset) == (0, len(log.values))
    assert log.problems(mode) == [(str(path), frame.base_offset, frame.position)]


def test_records_before_a_bad_batch_come_out_before_the_error(log: Log) -> None:
    path, frame = log.frames()[12]
    flip(path, frame.end - 300)
    seen = []
    with sc.open(log.store_path, "r") as store, pytest.raises(sc.CorruptionError):
        for record in store.topic(TOPIC).scan():
            seen.append(record.value)
    assert seen == log.values[: frame.base_offset]


def test_a_log_with_a_bad_batch_goes_on_and_keeps_the_bad_batch(log: Log) -> None:
    path, frame = log.frames()[12]
    flip(path, frame.end - 300)
    for n in range(3):
        with sc.open(log.store_path) as store:
            topic = store.topic(TOPIC)
            topic.append([b"more %d" % n])
            with pytest.raises(sc.CorruptionError):
                values_of(topic)
        log.values.append(b"more %d" % n)
        assert log.read("r", start=frame.end_offset) == log.values[frame.end_offset :]
    assert log.problems() == [(str(path), frame.base_offset, frame.position)]
    flip(path, frame.end - 300)
    log.check_sound(log.values)


def test_a_missing_batch_in_the_middle_is_named(log: Log) -> None:
    path, frame = log.frames()[12]
    overwrite(path, frame.position, bytes(frame.size))
    with pytest.raises(sc.CorruptionError) as raised:
        log.read("r")
    assert (raised.value.path, raised.value.offset) == (str(path), frame.base_offset)
    assert log.read("rw", start=frame.end_offset) == log.values[frame.end_offset :]
    assert log.problems() == [(str(path), frame.base_offset, frame.position)]


def test_a_batch_in_the_place_of_another_is_not_taken_for_it(log: Log) -> None:
    path, frame = log.frames()[12]
    other = log.frames()[20][1]
    assert other.size == frame.size
    overwrite(path, frame.position, path.read_bytes()[other.position : other.end])
    with pytest.raises(sc.CorruptionError) as raised:
        log.read("r")
    assert (raised.value.path, raised.value.offset) == (str(path), frame.base_offset)
    assert log.read("rw", start=frame.end_offset) == log.values[frame.end_offset :]
    assert log.problems() == [(str(path), frame.base_offset, frame.position)]


# ---- several ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_verify_reports_all_bad_batches_of_all_segments(mode: str, sealed_log: Log) -> None:
    chance = random.Random(3)
    every = sealed_log.frames()
    chosen = sorted(chance.sample(range(len(every) - 1), 12))
    for number in chosen:
        path, frame = every[number]
        flip(path, BAD_BYTES[chance.choice(list(BAD_BYTES))](frame))
    expected = [(str(every[n][0]), every[n][1].base_offset, every[n][1].position) for n in chosen]
    found = sealed_log.problems(mode)
    assert found[0] == expected[0]
    # of bad batches in a row the first is reported when the frame of the next cannot be found any more
    missing = [place for place in expected if place not in found]
    neighbours = [n for n in chosen if n - 1 in chosen]
    assert {(str(every[n][0]), every[n][1].base_offset, every[n][1].position) for n in neighbours} >= set(missing)
    assert set(found) <= set(expected)
    for number, (_, frame) in enumerate(every):
        if number not in chosen:
            values = sealed_log.values[frame.base_offset : frame.end_offset]
            assert sealed_log.read(mode, start=frame.base_offset, end=frame.end_offset) == values


# ---- any byte ---------------------------------------------------------------------------------------------------


def read_or_fail(log: Log, **scan: object) -> tuple[list[bytes], Exception | None]:
    """The values that come out, and the error that ends them."""
    seen: list[bytes] = []
    try:
        with sc.open(log.store_path, "r") as store:
            for batch in store.topic(TOPIC).scan(**scan).batches():
                seen += batch.column("value").to_pylist()
    except sc.StreamcoreError as error:
        return seen, error
    return seen, None


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_flipped_byte_anywhere_in_a_sealed_segment_is_an_error_and_never_a_wrong_record(
    compression: str, store_path: Path
) -> None:
    log = make_log(store_path, 120, rows=5, value_bytes=500, segment_bytes=64 << 10, compression=compression)
    chance = random.Random(compression)
    path = log.paths[1]
    first, last = frames(path)[0], frames(path)[-1]
    for _ in range(250):
        position = chance.randrange(path.stat().st_size)
        mask = chance.choice([1, 0x80, 0xFF, chance.randrange(1, 256)])
        flip(path, position, mask)
        seen, error = read_or_fail(log)
        assert seen == log.values[: len(seen)], f"a wrong record after byte {position} of {path} was flipped"
        where = f"after byte {position} of {path} was flipped"
        if position < first.position:  # in the schema, where another topic's id is not told from a damaged one
            assert isinstance(error, (sc.CorruptionError, sc.StoreFormatError)), f"{error!r} {where}"
            assert error.path == str(path)
        elif position < last.end + 8:
            assert isinstance(error, sc.CorruptionError), f"{error!r} {where}"
            assert error.path == str(path)
            assert len(seen) >= first.base_offset
        else:
            assert error is None, f"byte {position} of {path} is no record's, yet {error}"
        flip(path, position, mask)
    assert read_or_fail(log) == (log.values, None)


def test_control_the_flips_make_wrong_records_where_checksums_are_not_looked_at(sealed_log: Log) -> None:
    chance = random.Random(1)
    path = sealed_log.paths[1]
    wrong = 0
    for frame in chance.sample(frames(path), 10):
        flip(path, frame.end - 300)
        seen, error = read_or_fail(sealed_log, verify=False)
        wrong += error is None and seen != sealed_log.values
        flip(path, frame.end - 300)
    assert wrong == 10


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_flipped_byte_of_the_end_marker_is_found_by_verify(mode: str, sealed_log: Log) -> None:
    path = sealed_log.paths[1]
    end = frames(path)[-1].end
    assert path.read_bytes()[end : end + 8] == b"\xff\xff\xff\xff\0\0\0\0"
    flip(path, end + 5)
    with pytest.raises(pa.ArrowInvalid), pa.OSFile(str(path)) as file:
        pa.ipc.open_stream(file).read_all()
    with pytest.raises(sc.CorruptionError) as raised:
        sealed_log.read(mode)
    assert (raised.value.path, raised.value.position) == (str(path), end)
    assert sealed_log.read(mode, start=raised.value.offset) == sealed_log.values[raised.value.offset :]
    ((found, _, position),) = sealed_log.problems(mode)
    assert (found, position) == (str(path), end)


def test_a_flipped_byte_in_the_schema_of_a_segment_is_named(sealed_log: Log) -> None:
    path = sealed_log.paths[1]
    base = frames(path)[0].base_offset
    end = sealed_log.frames()[-1][1].base_offset
    for position in range(0, schema_size(path.read_bytes()), 37):
        flip(path, position, 0x40)
        with pytest.raises((sc.CorruptionError, sc.StoreFormatError)) as raised:
            sealed_log.read("r")
        assert raised.value.path == str(path)
        assert isinstance(raised.value, sc.StoreFormatError) or raised.value.offset == base
        assert sealed_log.read("r", end=base) == sealed_log.values[:base]
        assert sealed_log.read("r", start=end) == sealed_log.values[end:]
        assert sealed_log.problems() == [(str(path), base, 0)]
        flip(path, position, 0x40)
    sealed_log.check_sound(sealed_log.values)


# ---- segments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_missing_segment_in_the_middle_is_named_and_the_rest_is_readable(mode: str, sealed_log: Log) -> None:
    paths = sealed_log.paths
    start, end = frames(paths[1])[0].base_offset, frames(paths[2])[0].base_offset
    paths[1].unlink()
    with sc.open(sealed_log.store_path, mode) as store:
        topic = store.topic(TOPIC)
        with pytest.raises(sc.CorruptionError) as raised:
            topic.scan().to_arrow()
        assert raised.value.offset == start
        assert f"offset {end}" in str(raised.value), "it does not say where the rest begins"
        assert values_of(topic, end=start) == sealed_log.values[:start]
        assert values_of(topic, start=end) == sealed_log.values[end:]
    ((_, offset, _),) = sealed_log.problems(mode)
    assert offset == start


@pytest.mark.parametrize("cut", ["half", "nothing left", "end marker"])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_sealed_segment_that_was_cut_short_is_named_and_the_rest_is_readable(
    cut: str, mode: str, sealed_log: Log
) -> None:
    path = sealed_log.paths[1]
    batches = frames(path)
    size = {"half": batches[len(batches) // 2].body_position, "nothing left": 0, "end marker": batches[-1].end}[cut]
    os.truncate(path, size)
    if cut == "end marker":
        assert sealed_log.read(mode) == sealed_log.values
        return
    lost = batches[len(batches) // 2 if cut == "half" else 0]
    with sc.open(sealed_log.store_path, mode) as store:
        topic = store.topic(TOPIC)
        with pytest.raises(sc.CorruptionError) as raised:
            topic.scan().to_arrow()
        assert (raised.value.path, raised.value.offset) == (str(path), lost.base_offset)
        assert values_of(topic, end=lost.base_offset) == sealed_log.values[: lost.base_offset]
        end = batches[-1].end_offset
        assert values_of(topic, start=end) == sealed_log.values[end:]
    assert [problem[:2] for problem in sealed_log.problems(mode)] == [(str(path), lost.base_offset)]


def other_log(tmp_path: Path) -> Log:
    """A log of another topic with segments of the same offsets."""
    return make_log(tmp_path / "other", 120, rows=5, value_bytes=500, segment_bytes=64 << 10)


@pytest.mark.parametrize("place", ["middle", "last", "behind the end"])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_segment_of_another_topic_is_refused_and_named(
    place: str, mode: str, sealed_log: Log, tmp_path: Path
) -> None:
    paths = sealed_log.paths
    behind = paths[0].with_name(f"{len(sealed_log.values):020}.arrows")
    target = {"middle": paths[1], "last": paths[-1], "behind the end": behind}[place]
    shutil.copy(other_log(tmp_path).paths[1], target)
    with pytest.raises(sc.StoreFormatError, match=str(target)):
        sealed_log.read(mode)
    if place == "middle":
        end = frames(paths[2])[0].base_offset
        assert sealed_log.read(mode, start=end) == sealed_log.values[end:]
    assert [problem[0] for problem in sealed_log.problems(mode)] == [str(target)]
    assert target.exists()


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_segment_of_another_partition_is_refused_and_named(mode: str, store_path: Path) -> None:
    with sc.open(store_path) as store:
        topic = store.create_topic(TOPIC, partitions=2)
        for partition in range(2):
            topic.append([b"of %d" % partition], partition=partition)
        folder = topic.folder
    (source,), (target,) = (segment_paths(store_path, folder, partition) for partition in (0, 1))
    shutil.copy(source, target)
    with sc.open(store_path, mode) as store:
        topic = store.topic(TOPIC)
        with pytest.raises(sc.StoreFormatError, match=str(target)):
            topic.scan(partition=1).to_arrow()
        assert values_of(topic, partition=0) == [b"of 0"]
        assert [problem.path for problem in store.verify()] == [str(target)]


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("place", ["middle", "last"])
def test_a_segment_of_a_newer_format_is_refused_with_file_and_version(place: str, mode: str, sealed_log: Log) -> None:
    path = sealed_log.paths[1 if place == "middle" else -1]
    data = path.read_bytes()
    at = data.index(b"streamcore.format")
    value = data.index(b"\x01\x00\x00\x001", at - 64)  # a flatbuffer string of one byte: "1"
    overwrite(path, value + 4, b"7")
    size = path.stat().st_size
    with pytest.raises(sc.StoreFormatError, match=r"format 7") as raised:
        sealed_log.read(mode)
    assert str(path) in str(raised.value)
    assert [problem[0] for problem in sealed_log.problems(mode)] == [str(path)]
    assert path.stat().st_size == size


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize(("change", "value"), [("version", 2), ("flags", 1 << 12)])
@pytest.mark.parametrize("place", ["middle", "last"])
def test_a_batch_of_a_newer_format_is_an_error_and_is_not_cut(
    place: str, change: str, value: int, mode: str, log: Log
) -> None:
    path, frame = log.frames()[12 if place == "middle" else -1]
    change_header(path, frame, **{change: value})
    before = path.read_bytes()
    with pytest.raises(sc.StoreFormatError, match=f"version {value}|flags 0x{value:x}") as raised:
        log.read(mode)
    assert str(path) in str(raised.value)
    assert (raised.value.path, raised.value.offset) == (str(path), frame.base_offset)
    assert [problem[0] for problem in log.problems(mode)] == [str(path)]
    end = log.frames()[-1][1].end
    assert path.read_bytes()[:end] == before[:end], "a newer version's batch was cut"


@pytest.mark.parametrize("content", ["garbage", "text", "another Arrow stream"])
def test_a_file_that_is_no_segment_at_the_end_of_a_log_is_refused_and_kept(content: str, log: Log) -> None:
    target = log.path.with_name(f"{len(log.values):020}.arrows")
    if content == "another Arrow stream":
        with pa.OSFile(str(target), "wb") as file, pa.ipc.new_stream(file, pa.schema([("x", pa.int32())])) as writer:
            writer.write_table(pa.table({"x": pa.array([1, 2], pa.int32())}))
    else:
        target.write_bytes(random.Random(1).randbytes(9000) if content == "garbage" else b"notes\n" * 400)
    for mode in ("r", "rw"):
        with pytest.raises((sc.StoreFormatError, sc.CorruptionError), match=str(target)):
            log.read(mode)
        assert [problem[0] for problem in log.problems(mode)] == [str(target)]
    assert target.exists()
    target.unlink()
    log.check_sound(log.values)


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 20])
def test_an_empty_or_zero_filled_file_at_the_end_of_a_log_is_cleared_away(size: int, log: Log) -> None:
    log.path.with_name(f"{len(log.values):020}.arrows").write_bytes(bytes(size))
    log.check_sound(log.values)


def test_a_copy_of_a_segment_under_another_name_is_an_error(sealed_log: Log) -> None:
    paths = sealed_log.paths
    target = paths[0].with_name(f"{len(sealed_log.values):020}.arrows")
    shutil.copy(paths[0], target)
    data = target.read_bytes()
    for mode in ("r", "rw"):
        with pytest.raises(sc.StoreFormatError, match=str(target)):
            sealed_log.read(mode)
    assert [problem[0] for problem in sealed_log.problems()] == [str(target)]
    assert target.read_bytes() == data
    target.unlink()
    sealed_log.check_sound(sealed_log.values)


FOREIGN_NAMES = [
    "notes.txt", "00000000000000000000.arrows.bak", "00000000000000000000.arrows~", ".hidden", "5.arrows",
    "0000000000000000000x.arrows", "99999999999999999999.arrows", "00000000000000000010.arrows.tmp",
    "000000000000000000000.arrows", "-0000000000000000001.arrows", "00000000000000000003.ARROWS",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_foreign_files_in_the_folders_are_left_alone(kind: str, log: Log) -> None:
    places = [log.store_path, log.store_path / "topics", log.topic_path, log.path.parent]
    made = [place / name for place in places for name in FOREIGN_NAMES]
    made += [log.topic_path / "7"]
    if kind != "folder":  # an empty folder that is named like a topic's was left by one who died while he made a topic
        made += [log.store_path / "topics" / "unknown-0123456789abcdef"]
    for path in made:
        if kind == "file":
            path.write_bytes(b"foreign")
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("nowhere")
    log.check_sound(log.values)
    assert all(path.is_symlink() or path.exists() for path in made)


def test_a_folder_with_the_name_of_a_segment_is_an_error_that_names_it(log: Log) -> None:
    target = log.path.with_name(f"{len(log.values):020}.arrows")
    target.mkdir()
    for mode in ("r", "rw"):
        with pytest.raises(sc.StreamcoreError, match=str(target)):
            log.read(mode)
