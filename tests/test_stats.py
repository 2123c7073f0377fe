"""Figures of a store say what is there and what was done, also to Prometheus."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamcore as sc
from streamcore.stats import Histogram


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sc.Store]:
    with sc.open(tmp_path / "store", maintenance=False) as store:
        yield store


def test_stats_count_what_the_log_holds_and_what_was_done(store: sc.Store) -> None:
    topic = store.create_topic("clicks", partitions=2, segment_bytes=64 << 10)
    for _ in range(3):
        topic.append([b"x" * 1000] * 50, partition=0)
    topic.append([b"y"] * 10, partition=1)
    topic.flush()
    list(topic.scan())
    [found] = store.stats().topics
    assert (found.topic, found.partitions, found.records, found.appends) == ("clicks", 2, 160, 4)
    assert found.segments == len(topic.segments()) == 4
    assert found.bytes == sum(part.size_bytes for part in topic.partitions)
    assert (found.unflushed, found.undecided, found.end_offsets) == (0, 0, 160)
    assert found.appended_records == 160
    assert found.appended_bytes > 150_000
    assert found.scanned_records == 160
    assert found.scanned_bytes == found.appended_bytes == found.verified_bytes
    assert found.records_of_append.count == 4
    assert found.records_of_append.counts[6] == 3  # 32 to 63
    assert found.records_of_append.quantile(0.5) == 64
    assert found.flush_seconds.count >= 2
    assert found.flush_seconds.total is not None
    assert found.flush_seconds.total > 0


def test_records_of_an_open_transaction_are_undecided(store: sc.Store) -> None:
    topic = store.create_topic("t")
    topic.append([b"plain"])
    with store.transaction("one") as transaction:
        transaction.append(topic, [b"a", b"b"])
        topic.append([b"behind it"])
        assert store.stats().topics[0].undecided == 3
    assert store.stats().topics[0].undecided == 0


def test_stats_show_groups_with_their_lag(store: sc.Store) -> None:
    topic = store.create_topic("clicks")
    topic.append([b"x"] * 10)
    with store.consumer("clicks", group="billing") as consumer:
        assert len(consumer.poll(max_records=4)) == 4
        consumer.commit()
        [group] = store.stats().groups
        assert (group.group, group.members, group.lag) == ("billing", 1, 6)
    assert store.stats().groups[0].members == 0


def test_stats_show_what_maintenance_did(store: sc.Store) -> None:
    assert store.stats().maintenance == ()
    store.maintain(["retention", "groups"])
    assert [(task.task, task.runs, task.errors) for task in store.stats().maintenance] == [
        ("groups", 1, 0),
        ("retention", 1, 0),
    ]


def test_a_store_that_is_only_read_has_stats(store: sc.Store) -> None:
    store.create_topic("clicks").append([b"x"])
    store.maintain()
    with sc.open(store.path, mode="r") as reader:
        stats = reader.stats()
        assert stats.topics[0].records == 1
        assert stats.topics[0].appends == 0
        assert len(stats.maintenance) == 6
        assert json.loads(json.dumps(stats.as_dict()))["topics"][0]["topic"] == "clicks"


def test_a_histogram_without_values_has_no_quantiles() -> None:
    assert Histogram((1.0, float("inf")), (0, 0)).quantile(0.5) is None


def test_prometheus_reads_the_figures(store: sc.Store) -> None:
    pytest.importorskip("prometheus_client")
    from streamcore import prometheus

    topic = store.create_topic("clicks")
    topic.append([b"x"] * 10)
    topic.flush()
    store.maintain()
    with store.consumer("clicks", group="billing") as consumer:
        consumer.poll(max_records=4)
        consumer.commit()
        with prometheus.serve(store, port=0) as endpoint:
            url = f"http://127.0.0.1:{endpoint.port}/metrics"
            text = urllib.request.urlopen(url, timeout=20).read().decode()
    lines = text.splitlines()
    assert 'streamcore_topic_records{topic="clicks"} 10.0' in lines
    assert 'streamcore_topic_appended_records_total{topic="clicks"} 10.0' in lines
    assert 'streamcore_group_lag{group="billing"} 6.0' in lines
    assert 'streamcore_topic_flush_seconds_bucket{le="+Inf",topic="clicks"} 1.0' in lines
    assert 'streamcore_topic_records_of_append_count{topic="clicks"} 1.0' in lines
    assert 'streamcore_maintenance_runs_total{task="retention"} 1.0' in lines
