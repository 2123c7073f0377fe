"""Tiered topics over real servers, and with what goes wrong on the way to them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import streamcore as sc
from streamcore.tier import documents

from .fault_proxy import Fault, FaultProxy
from .servers import Place
from .test_tiered_topic import fill, move

SEGMENT_BYTES = 64 << 10
KINDS = ["memory", "versitygw", "azurite", "fake_gcs", "minio"]


@contextlib.contextmanager
def opened(path: Path, place: Place, **options: object) -> Iterator[sc.Store]:
    """A store with its tier there; secrets are for this process alone."""
    given = {**place.options, **options}
    with sc.open(path, maintenance=False, tier=place.url, tier_options=given) as store:
        yield store


@contextlib.contextmanager
def going_wrong(proxy: FaultProxy, fault: Fault) -> Iterator[None]:
    """A fault for the length of a with block."""
    proxy.add(fault)
    try:
        yield
    finally:
        proxy.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_a_topic_goes_there_reads_from_there_and_comes_back(
    kind: str, make_place: Callable[[str], Place], store_path: Path, tmp_path: Path
) -> None:
    place = make_place(kind)
    with opened(store_path, place) as store:
        topic = store.create_topic("clicks", partitions=2, tier=True, segment_bytes=SEGMENT_BYTES)
        fill(topic)
        records = list(topic.scan())
        move(topic)
        assert topic.partitions[0].local_start_offset > 0
        assert list(topic.scan()) == records
        assert store.tier is not None
        assert store.tier.verify() == []
        assert store.tier.gc().objects == 0
        store.tier.back_up()
        topic.delete_records({0: 300, 1: 300})
        records = list(topic.scan())
    with sc.open_tier(place.url, place.options) as reader:
        assert list(reader.topic("clicks").scan()) == records
    sc.restore(place.url, tmp_path / "again", place.options)
    with sc.open(tmp_path / "again", maintenance=False, tier_options=place.options) as again:
        assert list(again.topic("clicks").scan()) == records
        fill(again.topic("clicks"), 200)
        again.topic("clicks").offload()
        assert again.topic("clicks").scan().count() == len(records) + 200
        again.delete_topic("clicks")


def test_polars_reads_the_objects_of_a_bucket(
    versitygw: object, make_place: Callable[[str], Place], store_path: Path
) -> None:
    polars = pytest.importorskip("polars")
    place = make_place("versitygw")
    with opened(store_path, place) as store:
        topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
        fill(topic)
        topic.offload()
        names = {"endpoint": "aws_endpoint_url", "access_key_id": "aws_access_key_id",
                 "secret_access_key": "aws_secret_access_key", "region": "aws_region"}  # fmt: skip
        options = {names[name]: str(value) for name, value in place.options.items() if name in names}
        frame = polars.scan_parquet(
            f"{place.url}/topics/*/*/*.parquet", storage_options={**options, "aws_allow_http": "true"}
        )
        assert frame.select(polars.len()).collect().item() == 2000
        assert (
            frame.filter(polars.col("offset") == 1234).collect()["value"][0]
            == next(iter(topic.scan(0, 1234, 1235))).value
        )


FAULTS = {
    "slow down": lambda: Fault.status(503, "SlowDown", times=3),
    "cut before": lambda: Fault.cut_before(times=2),
    "answers of puts are lost": lambda: Fault.cut_after(method="PUT", times=2),
    "the answer of a manifest's put is lost": lambda: Fault.cut_after(method="PUT", path="manifest.json"),
    "the answer of the store's put is lost": lambda: Fault.cut_after(method="PUT", path="store.json"),
    "partial bodies": lambda: Fault.partial(40, method="GET", path=r"\.parquet", times=2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_not_seen(fault: str, proxy: FaultProxy, faulty: Place, store_path: Path) -> None:
    with opened(store_path, faulty, cache_bytes=0) as store:
        topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
        fill(topic)
        records = list(topic.scan())
        one = FAULTS[fault]()
        with going_wrong(proxy, one):
            move(topic)
            assert list(topic.scan()) == records
        assert one.done > 0
        assert topic.partitions[0].local_start_offset > 0
        assert store.tier is not None
        assert store.tier.verify() == []


def test_a_control_that_takes_a_lost_answer_for_somebody_elses_change_fails(
    proxy: FaultProxy, faulty: Place, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = documents.load

    def forgetful(*arguments: object) -> object:
        found = load(*arguments)  # type: ignore[arg-type]
        return found and found._replace(content={**found.content, "nonce": "another"})

    with opened(store_path, faulty) as store:
        topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
        fill(topic)
        monkeypatch.setattr(documents, "load", forgetful)
        with going_wrong(proxy, Fault.cut_after(method="PUT", path="manifest.json")):
            done = topic.offload()
        assert sum(one.rows for one in done) < 2000  # it thinks that somebody else has put one there


def test_wrong_bytes_never_come_out_and_never_let_local_data_go(
    proxy: FaultProxy, faulty: Place, store_path: Path
) -> None:
    with opened(store_path, faulty, cache_bytes=0) as store:
        topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
        fill(topic)
        records = list(topic.scan())
        with going_wrong(proxy, Fault.wrong(60, method="GET", path=r"\.parquet", times=None)):
            topic.offload()
            with contextlib.suppress(sc.StreamcoreError):
                move(topic)
            assert topic.partitions[0].local_start_offset == 0
        move(topic)
        with going_wrong(proxy, Fault.wrong(60, method="GET", path=r"\.parquet", times=None)):
            with pytest.raises((sc.CorruptionError, sc.TierError)):
                list(topic.scan())
        store.close()
    with opened(store_path, faulty, cache_bytes=0) as again:
        assert list(again.topic("clicks").scan()) == records


def test_wrong_bytes_are_not_kept_in_the_cache(proxy: FaultProxy, faulty: Place, store_path: Path) -> None:
    with opened(store_path, faulty) as store:
        topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
        fill(topic)
        records = list(topic.scan())
        move(topic)
        with going_wrong(proxy, Fault.wrong(60, method="GET", path=r"\.parquet", times=None)):
            for _ in range(2):  # the end of an object, and, should that be whole, a row group
                with pytest.raises((sc.CorruptionError, sc.TierError)):
                    list(topic.scan())
        assert list(topic.scan()) == records


def test_a_bucket_that_is_full_or_silent_is_said_so_and_nothing_goes(
    proxy: FaultProxy, faulty: Place, store_path: Path
) -> None:
    with opened(store_path, faulty, deadline_s=1.0, timeout_s=0.5) as store:
        topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES, local_retention_bytes=1)
        fill(topic)
        for fault in (
            Fault.status(507, "InsufficientStorage", method="PUT", path=r"\.parquet", times=None),
            Fault.delay(2.0, method="PUT", path=r"\.parquet", times=None),
        ):
            with going_wrong(proxy, fault):
                [run] = store.maintain(["tier"]) or []
            assert run.error is not None
            assert "TierError" in run.error
            assert topic.partitions[0].local_start_offset == 0
        assert store.tier is not None
        assert store.tier.status().pending_bytes > 0
        [run] = store.maintain(["tier"]) or []
        assert run.error is None
        assert store.tier.status().pending_bytes == 0
        assert topic.scan().count() == 2000


def test_the_first_record_of_a_cold_position_takes_at_most_three_requests(
    proxy: FaultProxy, faulty: Place, store_path: Path
) -> None:
    with opened(store_path, faulty) as store:
        topic = store.create_topic("clicks", tier=True, segment_bytes=SEGMENT_BYTES)
        fill(topic)
        move(topic)
    with opened(store_path, faulty, cache_bytes=0) as store:
        before = proxy.count()
        assert next(iter(store.topic("clicks").scan(start=1234))).offset == 1234
        assert proxy.count() - before <= 3
