"""What goes wrong between us and a real S3 server: what is tried again, what is not, and what is never taken for data.

A promise is a function of objects and the proxy before their server. The test keeps it; beside it the same promise is
asked of objects with a bug, one that the promise is about, which it must find.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamcore.errors import TierError
from streamcore.tier.objects import ConflictError, Objects, Transient
from streamcore.tier.remote import RemoteObjects

from .fault_proxy import Fault, FaultProxy
from .servers import Place, Server

Promise = Callable[[Callable[..., Objects], FaultProxy, Path], None]
Bug = Callable[[pytest.MonkeyPatch], None]
DATA = os.urandom(100_000)
LARGE_BYTES = 20 << 20
FOR_EVER = {"times": None}


# ---- bugs ----


def no_retries(patch: pytest.MonkeyPatch) -> None:
    """A call is tried once."""

    def once(self: Objects, what: str, path: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Transient as error:
            raise TierError(str(error), path, transient=True) from None

    patch.setattr(Objects, "_tried", once)


def no_deadline(patch: pytest.MonkeyPatch) -> None:
    """A call is tried until it succeeds."""

    def forever(self: Objects, what: str, path: str, function: Callable[[], Any]) -> Any:
        while True:
            with contextlib.suppress(Transient):
                return function()

    patch.setattr(Objects, "_tried", forever)


def all_is_retried(patch: pytest.MonkeyPatch) -> None:
    """Every failure is one that may pass."""
    patch.setattr(Objects, "_failed", lambda self, what, path, why, transient=False: Transient(why))


def all_conflicts_are_final(patch: pytest.MonkeyPatch) -> None:
    """What a server says of a conflict is that of somebody who was faster."""
    patch.setattr("streamcore.tier.remote._CODES_THAT_MAY_PASS", set())


def no_conditions(patch: pytest.MonkeyPatch) -> None:
    """A conditional put is a put."""
    patch.setattr(RemoteObjects, "_replace", lambda self, path, data, tag: self._put(path, data))


def lengths_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    """What came is taken for what was asked for."""

    def get(self: RemoteObjects, path: str) -> tuple[bytes, str]:
        import obstore

        found = obstore.get(self._store, path)
        data = b""
        with contextlib.suppress(obstore.exceptions.BaseError):
            for piece in found.stream(min_chunk_size=1):
                data += bytes(piece)
        return data, "tag"

    patch.setattr(RemoteObjects, "_get", get)
    patch.setattr(RemoteObjects, "_get_piece", lambda self, path, start, end, tag: get(self, path)[0][start:end])
    patch.setattr(Objects, "_whole_piece", lambda self, *what: self._get_piece(*what))
    patch.setattr(Objects, "_explain_short", lambda self, *what: None)


def parts_are_not_retried(patch: pytest.MonkeyPatch) -> None:
    """A part of a file that fails makes the whole be sent again."""
    made = RemoteObjects.__init__
    patch.setattr(
        RemoteObjects, "__init__", lambda self, url, retries, store, _: made(self, url, retries, store, store)
    )


def time_outs_are_long(patch: pytest.MonkeyPatch) -> None:
    """A request may take longer than the call that it is for."""
    patch.setattr("streamcore.tier.address.min", lambda first, *_: first, raising=False)


# ---- promises ----


def transient_failures_pass(make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path) -> None:
    """503 SlowDown and the like, and cut connections, for each of the calls."""
    objects = make()
    file = tmp_path / "file"
    file.write_bytes(DATA)
    tag = objects.create("there", DATA)
    calls: list[Callable[[], object]] = [
        lambda: objects.put("a", DATA),
        lambda: objects.put_file("a", file),
        lambda: objects.create(f"new-{len(proxy.requests)}", DATA),
        lambda: objects.replace("there", DATA, tag),
        lambda: objects.get("there"),
        lambda: objects.get_ranges("there", [(5, 50)]),
        lambda: list(objects.stream("there")),
        lambda: objects.head("there"),
        lambda: list(objects.listed("")),
        lambda: objects.delete("a"),
    ]
    faults: list[Callable[[], Fault]] = [
        lambda: Fault.status(503, "SlowDown", times=2),
        lambda: Fault.status(500, "InternalError"),
        lambda: Fault.status(429, "TooManyRequests"),
        lambda: Fault.status(408, "RequestTimeout"),
        lambda: Fault.cut_before(),
    ]
    for number, call in enumerate(calls):
        fault = proxy.add(faults[number % len(faults)]())
        retries = objects.counters.read()["retries"]
        call()
        assert fault.done == fault.times
        assert objects.counters.read()["retries"] == retries + fault.done
    assert objects.get("there")[0] == DATA


def lost_answers_are_asked_for_again(make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path) -> None:
    """The server did it; the answer was lost. What may be done twice is."""
    objects = make()
    for call in (
        lambda: objects.put("a", DATA),
        lambda: objects.get("a"),
        lambda: list(objects.listed("")),
        lambda: objects.delete("a"),
    ):
        fault = proxy.add(Fault.cut_after())
        call()
        assert fault.done == 1
    assert list(objects.listed("")) == []


def a_deadline_ends_it(make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path) -> None:
    """A server that is busy for long: the error says what and how often."""
    objects = make(deadline_s=0.3)
    proxy.add(Fault.status(503, "SlowDown", times=60))
    with pytest.raises(TierError, match=r"cannot put an object: 503 .*SlowDown.*; tried \d+ times \(s3://") as raised:
        objects.put("a", DATA)
    assert raised.value.transient
    assert proxy.count("PUT") == objects.counters.read()["retries"] + 1
    assert objects.counters.read()["failures"] == 1


def a_server_that_does_not_answer_is_not_waited_for(
    make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path
) -> None:
    """A request has a time-out, after which the call is tried again."""
    objects = make(timeout_s=0.3)
    objects.put("a", DATA)
    fault = proxy.add(Fault.delay(30, method="GET"))
    assert objects.get("a")[0] == DATA
    assert fault.done == 1


def the_time_out_is_no_longer_than_the_deadline(
    make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path
) -> None:
    """Nobody who asks for half a second waits for half a minute."""
    objects = make(deadline_s=0.5, timeout_s=20)
    proxy.add(Fault.delay(3))
    with pytest.raises(TierError, match="no answer in time; tried 1 times"):
        objects.get("a")


def what_stays_is_said_at_once(make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path) -> None:
    """Failures that no second attempt changes."""
    objects = make(deadline_s=2)
    for status, code in (
        (400, "InvalidRequest"),
        (401, "Unauthorized"),
        (403, "AccessDenied"),
        (403, "RequestTimeTooSkewed"),
        (403, "QuotaExceeded"),
        (405, "MethodNotAllowed"),
        (501, "NotImplemented"),
        (507, "InsufficientStorage"),
    ):
        proxy.clear()
        proxy.add(Fault.status(status, code, "why it is so", **FOR_EVER))
        with pytest.raises(TierError, match=f"{status} .*{code}: why it is so") as raised:
            objects.put("a", DATA)
        assert not raised.value.transient
        assert proxy.count() == 1
    assert objects.counters.read()["retries"] == 0


def a_conflict_that_nobody_won_is_tried_again(make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path) -> None:
    """S3 says 409 to a conditional put while another one is under way, whatever becomes of that."""
    objects = make()
    fault = proxy.add(Fault.status(409, "ConditionalRequestConflict", times=2))
    tag = objects.create("a", b"1")
    assert objects.get("a") == (b"1", tag)
    assert fault.done == 2


def a_lost_answer_to_a_conditional_put_is_a_conflict(
    make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path
) -> None:
    """The second attempt meets what the first one did; who asked reads back, and finds it."""
    objects = make()
    proxy.add(Fault.cut_after(method="PUT"))
    with pytest.raises(ConflictError):
        objects.create("a", b"1")
    data, tag = objects.get("a")
    assert data == b"1"
    proxy.add(Fault.cut_after(method="PUT"))
    with pytest.raises(ConflictError):
        objects.replace("a", b"2", tag)
    assert objects.get("a")[0] == b"2"


def a_late_put_does_not_undo_a_change(make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path) -> None:
    """A conditional put that was given up for lost arrives after others have gone on."""
    objects = make(timeout_s=0.3, deadline_s=0.3)
    tag = make().create("a", b"1")
    late = proxy.add(Fault.delay(1.0, method="PUT"))
    with pytest.raises(TierError):
        objects.replace("a", b"late", tag)
    assert late.done == 1
    make().replace("a", b"2", tag)
    ends = time.monotonic() + 20
    while not any(request.fault == "delay" for request in proxy.requests):
        assert time.monotonic() < ends
        time.sleep(0.01)
    assert make().get("a")[0] == b"2"


def half_of_an_object_is_never_data(make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path) -> None:
    """A connection that ends within a body, and a body that is shorter than what was asked for."""
    objects = make()
    objects.put("a", DATA)
    gets: list[tuple[Callable[[], bytes], bytes]] = [
        (lambda: objects.get("a")[0], DATA),
        (lambda: b"".join(objects.stream("a")), DATA),
        (lambda: bytes(objects.get_ranges("a", [(10, 5000)])[0]), DATA[10:5000]),
    ]
    for get, wanted in gets:
        fault = proxy.add(Fault.partial(1000, method="GET"))
        assert get() == wanted
        assert fault.done == 1
    for get, wanted in gets[1:]:  # of a whole object only its name and its manifest say how long it is
        fault = proxy.add(Fault.short(1000, method="GET"))
        assert get() == wanted
        assert fault.done == 1
    objects = make(deadline_s=0.3)
    proxy.add(Fault.partial(1000, method="GET", **FOR_EVER))
    for get, _ in gets:
        with pytest.raises(TierError, match="cut within the object"):
            get()


def a_stream_goes_on_after_a_failure(make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path) -> None:
    """One piece is fetched again, not the whole object."""
    objects = make()
    file = tmp_path / "large"
    file.write_bytes(os.urandom(LARGE_BYTES))
    objects.put_file("large", file)
    proxy.add(Fault.partial(100_000, method="GET", first=2))
    assert b"".join(objects.stream("large")) == file.read_bytes()
    assert proxy.count("GET") == 4
    assert proxy.counts()["GET"]["got"] == LARGE_BYTES + 100_000


def one_part_is_put_again(make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path) -> None:
    """A part that fails does not make the others be sent again."""
    objects = make()
    file = tmp_path / "large"
    file.write_bytes(os.urandom(LARGE_BYTES))
    proxy.add(Fault.status(503, "SlowDown", method="PUT", path="partNumber=2", times=2))
    proxy.add(Fault.cut_before(method="PUT", path="partNumber=3"))
    objects.put_file("large", file)
    assert objects.get("large")[0] == file.read_bytes()
    assert proxy.count("PUT", "partNumber=1") == 1


def a_lost_answer_to_the_last_request_of_a_large_put_is_no_failure(
    make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path
) -> None:
    """The upload is complete and gone for who completes it once more; it is then put again."""
    objects = make()
    file = tmp_path / "large"
    file.write_bytes(os.urandom(LARGE_BYTES))
    lost = proxy.add(Fault.cut_after(method="POST", path="uploadId"))
    gone = proxy.add(Fault.status(404, "NoSuchUpload", method="POST", path="uploadId"))
    objects.put_file("large", file)
    assert (lost.done, gone.done) == (1, 1)
    assert objects.get("large")[0] == file.read_bytes()


# ---- what keeps them, and what does not ----

PROMISES: list[tuple[Promise, Bug]] = [
    (transient_failures_pass, no_retries),
    (lost_answers_are_asked_for_again, no_retries),
    (a_deadline_ends_it, no_deadline),
    (a_server_that_does_not_answer_is_not_waited_for, no_retries),
    (what_stays_is_said_at_once, all_is_retried),
    (a_conflict_that_nobody_won_is_tried_again, all_conflicts_are_final),
    (a_lost_answer_to_a_conditional_put_is_a_conflict, no_conditions),
    (a_late_put_does_not_undo_a_change, no_conditions),
    (half_of_an_object_is_never_data, lengths_are_not_checked),
    (a_stream_goes_on_after_a_failure, no_retries),
    (one_part_is_put_again, parts_are_not_retried),
    (a_lost_answer_to_the_last_request_of_a_large_put_is_no_failure, all_conflicts_are_final),
    (the_time_out_is_no_longer_than_the_deadline, time_outs_are_long),
]
NAMES = [promise.__name__ for promise, _ in PROMISES]


@pytest.fixture
def make(faulty: Place, connected: Callable[..., Objects]) -> Callable[..., Objects]:
    """make(**options): objects in the same place each time."""
    return lambda **options: connected(faulty, **{"deadline_s": 10, **options})


@pytest.mark.parametrize("promise", [promise for promise, _ in PROMISES], ids=NAMES)
def test_of_faults(promise: Promise, make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path) -> None:
    promise(make, proxy, tmp_path)


@pytest.mark.parametrize(
    "promise",
    [the_time_out_is_no_longer_than_the_deadline, a_lost_answer_to_the_last_request_of_a_large_put_is_no_failure],
)
def test_of_faults_of_large_and_slow_requests(
    promise: Promise, make: Callable[..., Objects], proxy: FaultProxy, tmp_path: Path
) -> None:
    promise(make, proxy, tmp_path)


@pytest.mark.parametrize(("promise", "bug"), PROMISES, ids=NAMES)
def test_a_bug_is_found_by(
    promise: Promise,
    bug: Bug,
    make: Callable[..., Objects],
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, TierError, Transient)):
        promise(lambda **options: make(**{"deadline_s": 2, **options}), proxy, tmp_path)


# ---- the proxy itself ----


@pytest.fixture
def objects(make: Callable[..., Objects]) -> Iterator[Objects]:
    """The objects of an empty place behind the proxy."""
    return make()


def test_the_proxy_counts_requests_and_bytes(objects: Objects, proxy: FaultProxy) -> None:
    objects.put("a", DATA)
    objects.get("a")
    objects.get_ranges("a", [(0, 10)])
    objects.head("a")
    counts = proxy.counts()
    assert counts["PUT"] == {"requests": 1, "sent": len(DATA), "got": 0}
    assert counts["GET"] == {"requests": 2, "sent": 0, "got": len(DATA) + 10}
    assert counts["HEAD"] == {"requests": 1, "sent": 0, "got": 0}
    assert proxy.count("GET", "/a$") == 2


def test_the_proxy_makes_listings_stale(objects: Objects, proxy: FaultProxy) -> None:
    objects.put("a", b"1")
    assert len(list(objects.listed(""))) == 1
    objects.put("b", b"2")
    fault = proxy.add(Fault.stale(method="GET", path="list-type"))
    assert [found.path for found in objects.listed("")] == ["a"]
    assert fault.done == 1
    assert len(list(objects.listed(""))) == 2


def test_the_proxy_makes_bytes_wrong(objects: Objects, proxy: FaultProxy) -> None:
    objects.put("a", DATA)
    proxy.add(Fault.wrong(50_000, method="GET", first=2))
    assert objects.get("a")[0] == DATA
    changed = objects.get("a")[0]
    assert [at for at in range(len(DATA)) if changed[at] != DATA[at]] == [50_000]
    assert objects.get("a")[0] == DATA


def test_the_proxy_adds_latency_to_each_request(versitygw: Server, objects: Objects, proxy: FaultProxy) -> None:
    proxy.latency_s = 0.05
    begins = time.monotonic()
    objects.put("a", b"1")
    objects.get("a")
    assert time.monotonic() - begins >= 0.1
