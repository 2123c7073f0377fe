"""Figures of a store for Prometheus (needs the extra `metrics`).

>>> import streamcore.prometheus
>>> endpoint = streamcore.prometheus.serve(store, port=9464)
>>> endpoint.close()
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from streamcore.stats import Histogram, StoreStats, TopicStats
    from streamcore.store import Store
    from streamcore.tier.status import TierStatus

_TOPIC_GAUGES = {
    "partitions": "Partitions of a topic.",
    "records": "Records in a topic.",
    "bytes": "Bytes of a topic's segment files.",
    "segments": "Segment files of a topic.",
    "unflushed": "Records that a loss of power would take.",
    "undecided": "Records behind the last stable offset.",
}
_TOPIC_COUNTERS = {
    "appends": "Appends by this process.",
    "appended_records": "Records appended by this process.",
    "appended_bytes": "Bytes that this process added to the log.",
    "scanned_batches": "Batches read by scans of this process.",
    "scanned_records": "Records read by scans of this process.",
    "scanned_bytes": "Bytes of the batches read by scans of this process.",
    "verified_bytes": "Bytes whose checksums this process verified.",
}
_TOPIC_HISTOGRAMS = {
    "records_of_append": "Records in an append.",
    "flush_seconds": "How long a sync of a segment took.",
}


class StoreCollector(Collector):
    """Collects `store.stats()` when it is asked to; register it where other metrics of the process are."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """All figures of the store, as they are now."""
        stats = self._store.stats()
        yield from _topic_metrics(stats.topics)
        yield from _group_metrics(stats)
        yield from _maintenance_metrics(stats)
        if stats.tier is not None:
            yield from _tier_metrics(stats.tier)


def _topic_metrics(topics: tuple[TopicStats, ...]) -> Iterator[Metric]:
    for name, text in _TOPIC_GAUGES.items():
        gauge = GaugeMetricFamily(f"streamcore_topic_{name}", text, labels=["topic"])
        for topic in topics:
            gauge.add_metric([topic.topic], getattr(topic, name))
        yield gauge
    for name, text in _TOPIC_COUNTERS.items():
        counter = CounterMetricFamily(f"streamcore_topic_{name}", text, labels=["topic"])
        for topic in topics:
            counter.add_metric([topic.topic], getattr(topic, name))
        yield counter
    for name, text in _TOPIC_HISTOGRAMS.items():
        histogram = HistogramMetricFamily(f"streamcore_topic_{name}", text, labels=["topic"])
        for topic in topics:
            found: Histogram = getattr(topic, name)
            histogram.add_metric([topic.topic], _buckets(found), found.total)
        yield histogram


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """As Prometheus counts: each bucket has all that is not above its bound."""
    names = ["+Inf" if bound == float("inf") else repr(float(bound)) for bound in histogram.bounds]
    return list(zip(names, map(float, itertools.accumulate(histogram.counts)), strict=True))


def _group_metrics(stats: StoreStats) -> Iterator[Metric]:
    for name, text in {
        "generation": "Counts rebalances of a group.",
        "members": "Members of a group.",
        "lag": "Records that a group has not committed yet.",
    }.items():
        gauge = GaugeMetricFamily(f"streamcore_group_{name}", text, labels=["group"])
        for group in stats.groups:
            gauge.add_metric([group.group], getattr(group, name))
        yield gauge


def _maintenance_metrics(stats: StoreStats) -> Iterator[Metric]:
    for name, text in {
        "runs": "Runs of a maintenance task, by any process.",
        "errors": "Runs of a maintenance task that failed.",
    }.items():
        counter = CounterMetricFamily(f"streamcore_maintenance_{name}", text, labels=["task"])
        for task in stats.maintenance:
            counter.add_metric([task.task], getattr(task, name))
        yield counter
    seconds = GaugeMetricFamily("streamcore_maintenance_last_seconds", "How long the last run took.", labels=["task"])
    for task in stats.maintenance:
        seconds.add_metric([task.task], task.last_seconds)
    yield seconds


def _tier_metrics(tier: TierStatus) -> Iterator[Metric]:
    for name, text in {
        "objects": "Objects in the tier.",
        "records": "Records in the tier.",
        "object_bytes": "Bytes of objects in the tier.",
        "pending_segments": "Sealed segments that are not in the tier yet.",
        "pending_bytes": "Bytes of sealed segments that are not in the tier yet.",
    }.items():
        gauge = GaugeMetricFamily(f"streamcore_tier_{name}", text, labels=["topic", "partition"])
        for one in tier.partitions:
            gauge.add_metric([one.topic, str(one.partition)], getattr(one, name))
        yield gauge
    requests = CounterMetricFamily(
        "streamcore_tier_requests", "Requests to the tier by this process; got and put are bytes.", labels=["request"]
    )
    for name, count in tier.requests.items():
        requests.add_metric([name], count)
    yield requests
    failing = GaugeMetricFamily("streamcore_tier_failing", "1: the last background work of this process failed.")
    failing.add_metric([], int(tier.last_error is not None))
    yield failing
    for name, text in {
        "partitions_behind": "Partitions whose Iceberg table does not name yet what is in the tier.",
        "failing": "1: the Iceberg table could not follow what is in the tier.",
    }.items():
        of_tables = GaugeMetricFamily(f"streamcore_tier_iceberg_{name}", text, labels=["topic"])
        for table in tier.tables:
            value = int(table.error is not None) if name == "failing" else table.partitions_behind
            of_tables.add_metric([table.topic], value)
        yield of_tables


class Endpoint:
    """A server of metrics in a thread of this process; a context manager."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stops it; safe to call twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def serve(store: Store, port: int = 9464, host: str = "127.0.0.1") -> Endpoint:
    """Serves the figures of a store at http://host:port/metrics; port 0: any that is free."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(store))
    return Endpoint(*start_http_server(port, addr=host, registry=registry))
