"""What `Objects` promises, in each kind of place that there is: memory, a folder, and real servers."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from streamcore.errors import TierError
from streamcore.tier import folder as folder_module
from streamcore.tier import objects as objects_module
from streamcore.tier.address import connect
from streamcore.tier.objects import ConflictError, ObjectMissingError, Objects

from .conftest import BUCKET
from .servers import Place, Server

MakePlace = Callable[[str], Place]
Connected = Callable[..., Objects]
KINDS = ["memory", "folder", "versitygw", "minio", "azurite", "fake_gcs"]
SERVERS = KINDS[2:]
RACED = ["memory", "folder", "versitygw_in_turn", "minio", "azurite", "fake_gcs"]  # see fault_proxy
THREADS = 8
LARGE_BYTES = 20 << 20
ODD_NAMES = [
    *("a b", "a+b", "a%20b", "a%b", "a#b", "a?b=c", "a&b", "a=b/c=d", "a'b\"c", "a;b", "a:b", "a*b", "~", ".hidden"),
    *("ä€😀", "é", "e\N{COMBINING ACUTE ACCENT}", "x" * 200, "Upper/UPPER", "deep/" * 20 + "end"),
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of place."""
    return str(request.param)


@pytest.fixture
def place(kind: str, make_place: MakePlace) -> Place:
    """An empty place of this kind."""
    return make_place(kind)


@pytest.fixture
def objects(place: Place, connected: Connected) -> Objects:
    """The objects of an empty place."""
    return connected(place)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    """A server."""
    found: Server = request.getfixturevalue(request.param)
    return found


# ---- one at a time ----


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_what_was_put_comes_back(objects: Objects, size: int) -> None:
    data = os.urandom(size)
    tag = objects.put("topics/clicks", data)
    assert objects.get("topics/clicks") == (data, tag)
    assert b"".join(objects.stream("topics/clicks")) == data
    known = objects.head("topics/clicks")
    assert (known.path, known.size, known.tag) == ("topics/clicks", size, tag)
    assert abs(known.modified_ms - time.time() * 1000) < 3_600_000
    (listed,) = objects.listed("topics")
    assert (listed.path, listed.size) == ("topics/clicks", size)
    assert listed.tag.split("\n")[0].strip('"') == tag.split("\n")[0].strip('"')
    assert abs(listed.modified_ms - known.modified_ms) < 1000


def test_what_is_put_over_an_object_takes_its_place(objects: Objects) -> None:
    first = objects.put("a", b"first")
    second = objects.put("a", b"second, and longer")
    assert first != second
    assert objects.get("a") == (b"second, and longer", second)


def test_large_files_are_put_whole_and_streamed_in_pieces(objects: Objects, tmp_path: Path) -> None:
    data = os.urandom(LARGE_BYTES)
    file = tmp_path / "large"
    file.write_bytes(data)
    tag = objects.put_file("large", file)
    assert objects.head("large")[1:3] == (LARGE_BYTES, tag)
    pieces = list(objects.stream("large"))
    assert [len(piece) for piece in pieces] == [8 << 20, 8 << 20, 4 << 20]
    assert b"".join(pieces) == data == objects.get("large")[0]
    file.write_bytes(b"")
    objects.put_file("large", file)
    assert objects.get("large")[0] == b""


def test_an_object_that_changes_while_it_is_streamed_is_no_mixture(objects: Objects) -> None:
    objects.put("a", bytes(LARGE_BYTES))
    pieces = objects.stream("a")
    next(pieces)
    objects.put("a", bytes(LARGE_BYTES - 1) + b"1")
    with pytest.raises(ConflictError):
        for _ in range(3):  # one piece was fetched ahead
            next(pieces)


def test_ranges_come_back_in_the_order_and_length_that_was_asked_for(objects: Objects) -> None:
    data = os.urandom(1 << 20)
    objects.put("a", data)
    ranges = [(900_000, 900_100), (0, 1), (5, 5), (3, 70_000), (60_000, 200_000), (3, 70_000), (1_048_575, 1_048_576)]
    assert [bytes(part) for part in objects.get_ranges("a", ranges)] == [data[start:end] for start, end in ranges]
    assert objects.get_ranges("a", []) == []


@pytest.mark.parametrize("wanted", [(990, 1001), (2000, 2001)])
def test_a_range_beyond_the_end_is_an_error_at_once(objects: Objects, wanted: tuple[int, int]) -> None:
    objects.put("a", bytes(1000))
    with pytest.raises(TierError) as raised:
        objects.get_ranges("a", [(0, 10), wanted])
    assert not raised.value.transient
    assert objects.counters.read()["retries"] == 0


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_names(objects: Objects, name: str) -> None:
    objects.put(f"odd/{name}", name.encode())
    assert objects.get(f"odd/{name}")[0] == name.encode()
    assert [found.path for found in objects.listed("odd")] == [f"odd/{name}"]
    objects.delete(f"odd/{name}")
    assert list(objects.listed("odd")) == []


def test_a_listing_is_of_what_is_below_a_folder(objects: Objects) -> None:
    for path in ("a/1", "a/b/2", "ab/3", "c"):
        objects.put(path, path.encode())
    assert sorted(found.path for found in objects.listed("a")) == ["a/1", "a/b/2"]
    assert sorted(found.path for found in objects.listed("")) == ["a/1", "a/b/2", "ab/3", "c"]
    assert list(objects.listed("nothing")) == []


def test_what_is_not_there_is_missing_and_can_be_deleted(objects: Objects) -> None:
    objects.put("a/b", b"1")
    reads: list[Callable[[str], object]] = [
        objects.get,
        objects.head,
        lambda path: objects.get_ranges(path, [(0, 1)]),
        lambda path: list(objects.stream(path)),
    ]
    for path in ("nothing", "a", "a/b/c"):
        for read in reads:
            with pytest.raises(ObjectMissingError):
                read(path)
        objects.delete(path)
    objects.delete("a/b")
    with pytest.raises(ObjectMissingError):
        objects.get("a/b")


def test_what_was_asked_is_counted(objects: Objects) -> None:
    objects.put("a", bytes(100))
    objects.get("a")
    objects.get_ranges("a", [(0, 10), (20, 40)])
    list(objects.listed(""))
    objects.delete("a")
    counts = objects.counters.read()
    assert counts == {
        "gets": 2,
        "puts": 1,
        "lists": 1,
        "deletes": 1,
        "retries": 0,
        "failures": 0,
        "got": 140,
        "put": 100,
    }


# ---- changes that nobody else's are lost by ----


def test_an_object_is_created_once(objects: Objects) -> None:
    tag = objects.create("a", b"first")
    with pytest.raises(ConflictError):
        objects.create("a", b"second")
    assert objects.get("a") == (b"first", tag)


def test_an_object_is_replaced_only_by_who_has_seen_it(objects: Objects) -> None:
    first = objects.create("a", b"1")
    second = objects.replace("a", b"2", first)
    with pytest.raises(ConflictError):
        objects.replace("a", b"3", first)
    assert objects.get("a") == (b"2", second)
    assert objects.replace("a", b"4", objects.head("a").tag) not in (first, second)
    objects.delete("a")
    with pytest.raises(ConflictError):
        objects.replace("a", b"5", second)
    with pytest.raises(ObjectMissingError):
        objects.head("a")


def outcomes(change: Callable[[int], str]) -> list[int]:
    """Which of THREADS threads, which all begin at once, had no conflict."""
    at_once = threading.Barrier(THREADS)

    def attempt(number: int) -> bool:
        at_once.wait()
        try:
            change(number)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        return [number for number, won in enumerate(pool.map(attempt, range(THREADS))) if won]


@pytest.mark.parametrize("kind", RACED, indirect=True)
def test_of_eight_threads_that_create_an_object_one_does(objects: Objects) -> None:
    for round_ in range(3):
        (winner,) = outcomes(lambda number: objects.create(f"raced/{round_}", b"by %d" % number))  # noqa: B023
        assert objects.get(f"raced/{round_}")[0] == b"by %d" % winner


@pytest.mark.parametrize("kind", RACED, indirect=True)
def test_of_eight_threads_that_replace_an_object_one_does(objects: Objects) -> None:
    tag = objects.create("raced", b"at first")
    for round_ in range(3):
        (winner,) = outcomes(lambda number: objects.replace("raced", b"%d by %d" % (round_, number), tag))  # noqa: B023
        data, tag = objects.get("raced")
        assert data == b"%d by %d" % (round_, winner)


def increment(objects: Objects, times: int) -> None:
    """Adds one to the number in an object, so many times."""
    for _ in range(times):
        while True:
            data, tag = objects.get("number")
            try:
                objects.replace("number", b"%d" % (int(data) + 1), tag)
                break
            except ConflictError:
                pass


@pytest.mark.parametrize("kind", RACED, indirect=True)
def test_no_change_is_lost_among_threads(objects: Objects) -> None:
    objects.create("number", b"0")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: increment(objects, 5), range(4)))
    assert objects.get("number")[0] == b"20"


# ---- places that cannot be used ----


def failures(objects: Objects, tmp_path: Path) -> Iterator[TierError]:
    """What each call but head says, which gets no reason from a server."""
    file = tmp_path / "file"
    file.write_bytes(b"1")
    calls: list[Callable[[], object]] = [
        lambda: objects.put("a", b"1"),
        lambda: objects.put_file("a", file),
        lambda: objects.create("a", b"1"),
        lambda: objects.replace("a", b"1", '"tag"\n1'),
        lambda: objects.get("a"),
        lambda: objects.get_ranges("a", [(0, 1)]),
        lambda: list(objects.listed("")),
    ]
    for call in calls:
        with pytest.raises(TierError) as raised:
            call()
        yield raised.value


def test_a_bucket_that_is_not_there_is_named_as_the_reason(
    server: Server, connected: Connected, tmp_path: Path
) -> None:
    objects = connected(server.place("no-such-bucket"))
    for error in failures(objects, tmp_path):
        assert type(error) is TierError
        assert not error.transient
        assert "no such bucket" in str(error)
    assert objects.counters.read()["retries"] == 0


@pytest.mark.parametrize(
    ("kind", "option", "secret"),
    [
        ("versitygw", "secret_access_key", "not-the-secret"),
        ("minio", "secret_access_key", "not-the-secret"),
        ("azurite", "account_key", "bm90LXRoZS1zZWNyZXQ="),
    ],
)
def test_wrong_credentials_are_named_as_the_reason_and_never_shown(
    kind: str, option: str, secret: str, request: pytest.FixtureRequest, connected: Connected, tmp_path: Path
) -> None:
    server: Server = request.getfixturevalue(kind)
    objects = connected(server.place(BUCKET, "denied"), **{option: secret})
    for error in failures(objects, tmp_path):
        assert "access is denied" in str(error)
        assert not error.transient
        assert secret not in str(error)
    assert objects.counters.read()["retries"] == 0


def nowhere(server: Server) -> Place:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return server.place(BUCKET, endpoint=f"http://127.0.0.1:{port}")


def test_an_address_where_nobody_is_fails_when_the_deadline_is_over(server: Server, connected: Connected) -> None:
    objects = connected(nowhere(server), deadline_s=0.4)
    with pytest.raises(TierError, match=r"Connection refused; tried \d+ times") as raised:
        objects.get("a")
    assert raised.value.transient
    counts = objects.counters.read()
    assert counts["retries"] >= 1
    assert counts["failures"] == 1


@pytest.mark.parametrize("option", [{"endpoint": "https://"}, {"allow_http": False, "endpoint": "HTTP://"}])
def test_a_mistaken_protocol_is_an_error_at_once(
    versitygw: Server, connected: Connected, option: dict[str, object]
) -> None:
    place = versitygw.place(BUCKET)
    given = {**option, "endpoint": str(option["endpoint"]) + versitygw.endpoint.removeprefix("http://")}
    objects = connected(place, **given)
    with pytest.raises(TierError, match=r"TLS|allow_http") as raised:
        objects.get("a")
    assert not raised.value.transient


def test_closing_ends_a_pause_between_attempts(
    versitygw: Server, connected: Connected, wait_until: Callable[..., None]
) -> None:
    objects = connected(nowhere(versitygw), deadline_s=3600)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(objects.get, "a")
        wait_until(lambda: objects.counters.read()["retries"] >= 2)
        objects.close()
        with pytest.raises(TierError, match="tried"):
            call.result(timeout=30)


def test_errors_survive_the_way_to_another_process(objects: Objects) -> None:
    with pytest.raises(ObjectMissingError) as raised:
        objects.get("a")
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (type(copy), str(copy), copy.url) == (ObjectMissingError, str(raised.value), objects.url_of("a"))


# ---- a folder ----

_PUTS = """
import sys
from pathlib import Path
from streamcore.tier.address import connect
objects = connect(sys.argv[1])
objects.put_file("a/object", Path(sys.argv[2]))
"""
_INCREMENTS = """
import sys
from tests.tier.test_objects import increment
from streamcore.tier.address import connect
increment(connect(sys.argv[1]), int(sys.argv[2]))
"""


def started(program: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A Python program of its own, in the repository."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(root)!r})\n{program}", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_process_that_is_killed_while_it_puts_into_a_folder_leaves_no_half_object(
    make_place: MakePlace,
    connected: Connected,
    tmp_path: Path,
    wait_until: Callable[..., None],
    before: bytes | None,
) -> None:
    place = make_place("folder")
    objects = connected(place)
    if before is not None:
        objects.put("a/object", before)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = started(_PUTS, place.url, pipe)
    with pipe.open("wb") as source:
        source.write(bytes(5 << 20))  # more than a piece
        source.flush()
        wait_until(lambda: any(found.stat().st_size for found in tmp_path.glob("objects/a/*.tmp~*")))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert [found.path for found in objects.listed("")] == ([] if before is None else ["a/object"])
    if before is not None:
        assert objects.get("a/object")[0] == before
    objects.put("a/object", b"after")
    assert objects.get("a/object")[0] == b"after"
    assert objects.sweep(3600) == 0
    assert objects.sweep(-1) == 1
    assert [found.name for found in tmp_path.glob("objects/a/*")] == ["object"]


def test_no_change_is_lost_among_processes_in_a_folder(make_place: MakePlace, connected: Connected) -> None:
    place = make_place("folder")
    objects = connected(place)
    objects.create("number", b"0")
    processes = [started(_INCREMENTS, place.url, 50) for _ in range(2)]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    assert objects.get("number")[0] == b"100"


def tags_of_many_replaced(folder: Path) -> list[str]:
    """The tags of objects of one size, each put in the place of the one before as fast as that goes."""
    objects = connect(f"file://{folder}")
    tags = [objects.put("a", b"0")]
    for number in range(300):
        tags.append(objects.replace("a", b"%d" % (number % 10), tags[-1]))
    return tags


def test_a_tag_in_a_folder_never_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # as on a drive that is fast
    tags = tags_of_many_replaced(tmp_path / "objects")
    assert len(set(tags)) == len(tags)


def test_a_folder_that_cannot_be_listed_is_not_empty(
    make_place: MakePlace, connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = connected(make_place("folder"))
    objects.put("a/b", b"1")

    def denied(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(TierError, match="Permission denied"):
        list(objects.listed(""))


# ---- bugs that these tests find ----


def test_the_tests_find_a_condition_that_is_left_out(
    make_place: MakePlace, connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("memory", "folder"):
        objects = connected(make_place(kind))
        monkeypatch.setattr(type(objects), "_replace", lambda self, path, data, tag: self._put(path, data))
        for promise in (
            test_an_object_is_created_once,
            test_an_object_is_replaced_only_by_who_has_seen_it,
            test_of_eight_threads_that_create_an_object_one_does,
        ):
            with pytest.raises((pytest.fail.Exception, ValueError)):
                promise(objects)
            objects.delete("a")


def test_the_tests_find_a_folder_whose_times_are_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_date", lambda descriptor, replaced: os.utime(descriptor, ns=(10**18, 10**18)))
    with pytest.raises((AssertionError, ConflictError)):
        test_a_tag_in_a_folder_never_comes_again(tmp_path, monkeypatch)


def test_the_tests_find_a_stream_that_mixes_two_objects(
    make_place: MakePlace, connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = connected(make_place("folder"))
    monkeypatch.setattr(folder_module, "_tag_of", lambda status: "always the same")
    with pytest.raises((pytest.fail.Exception, StopIteration)):
        test_an_object_that_changes_while_it_is_streamed_is_no_mixture(objects)


def test_the_tests_find_a_put_that_writes_in_place(
    make_place: MakePlace,
    connected: Connected,
    tmp_path: Path,
    wait_until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folder_module, "_TEMPORARY", "nothing that a name has")  # such a file is taken for an object
    bug = "from streamcore.tier import folder; folder._TEMPORARY = '.tmp~'\n"
    monkeypatch.setattr(sys.modules[__name__], "_PUTS", bug + _PUTS)
    with pytest.raises(AssertionError):
        test_a_process_that_is_killed_while_it_puts_into_a_folder_leaves_no_half_object(
            make_place, connected, tmp_path, wait_until, None
        )


def test_the_tests_find_calls_that_are_not_counted(
    make_place: MakePlace, connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = connected(make_place("memory"))
    monkeypatch.setattr(objects_module.Counters, "add", lambda self, **counts: None)
    with pytest.raises(AssertionError):
        test_what_was_asked_is_counted(objects)
