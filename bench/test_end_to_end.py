"""How long does a record take from its sender to a consumer in another process, against Apache Kafka's?"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import streamcore as sc
from bench import rows
from bench.contest import Contest
from bench.peers.kafka_broker import Broker
from bench.peers.kafka_clients import produce_and_wait, prompt_producer
from bench.receiver import TOPIC
from bench.sizes import Sizes

GAP_S = 0.001  # between records, so that the receiver surely waits again
VALUE_BYTES = 100
WARM = 20  # records of each turn that do not count
SYNC = "Kafka's synchronous produce, no consumer"
KAFKA = "Kafka, produce with linger 0 to poll"
APPEND, SEND = "append to poll", "producer.send with linger 0 to poll"


class Route(NamedTuple):
    """How the receiver waits ("" for none), where it looks, and how a value is sent."""

    way: str
    place: str
    send: Callable[[bytes], object]


def test_latency_between_processes(
    contest: Callable[..., Contest], folder: Path, size: Sizes, kafka: Broker | str
) -> None:
    question = contest("latency from a sender to a consumer in another process", unit="")
    found: dict[str, list[list[float]]] = {}

    def measure() -> None:
        with sc.open(folder / "store") as store:
            topic = store.create_topic(TOPIC)
            topic.append([b"first"])
            with store.producer(linger_ms=0) as producer:
                routes = own_routes(str(folder / "store"), topic, producer)
                if isinstance(kafka, str):
                    question.absent("Kafka", kafka)
                else:
                    kafka.create_topic(TOPIC)
                    routes |= kafka_routes(kafka)
                for turn in range(min(size.rounds, 3)):
                    names = list(routes)
                    for name in names[turn:] + names[:turn]:
                        found.setdefault(name, []).append(latencies_us(routes[name], size.wakes // 2))
        if not isinstance(kafka, str):
            kafka.delete_topic(TOPIC)
        report(question, found)

    question.once(measure)


def own_routes(place: str, topic: sc.Topic, producer: sc.Producer) -> dict[str, Route]:
    def append(value: bytes) -> None:
        topic.append([value])

    def send(value: bytes) -> None:
        producer.send(TOPIC, value)

    return {
        f"{APPEND}, busy": Route("busy", place, append),
        f"{APPEND}, blocking": Route("block", place, append),
        f"{APPEND}, busy, store opened for reading": Route("busy-reader", place, append),
        "append to iteration, blocking": Route("iterate", place, append),
        f"{SEND}, busy": Route("busy", place, send),
        f"{SEND}, blocking": Route("block", place, send),
    }


def kafka_routes(kafka: Broker) -> dict[str, Route]:
    producer = prompt_producer(kafka.address)

    def produce(value: bytes) -> None:  # the answer is awaited before the next one, else they pile up
        produce_and_wait(producer, TOPIC, value)

    return {
        f"{KAFKA}, busy": Route("kafka-busy", kafka.address, produce),
        f"{KAFKA}, blocking": Route("kafka-block", kafka.address, produce),
        SYNC: Route("", kafka.address, produce),
    }


def latencies_us(route: Route, count: int) -> list[float]:
    """Sends values that begin with the time, and asks the receiver how old each was when it came."""
    values = [value[8:] for value in rows.values(WARM + count, VALUE_BYTES)]
    if not route.way:
        return call_us(route.send, values)[WARM:]
    command = [sys.executable, "-m", "bench.receiver", route.way, route.place, str(len(values))]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        call_us(route.send, values)
        came = list(json.loads(receiver.stdout.readline()))
    assert len(came) == len(values)
    return came[WARM:]


def call_us(send: Callable[[bytes], object], values: list[bytes]) -> list[float]:
    """Sends all, and says how long each call took."""
    taken = []
    for value in values:
        time.sleep(GAP_S)
        start = time.monotonic_ns()
        send(start.to_bytes(8, "little") + value)
        taken.append((time.monotonic_ns() - start) / 1000)
    return taken


def report(question: Contest, found: dict[str, list[list[float]]]) -> None:
    for name, turns in found.items():
        everything = sorted(value for turn in turns for value in turn)
        for label, part in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
            question.fact(f"{name}: {label}", everything[int(part * len(everything))], "µs")
    for ours in (APPEND, SEND):
        for way in ("busy", "blocking"):
            if SYNC not in found:
                break
            ratios = times_lower(found, f"{ours}, {way}", SYNC)
            question.at_least(f"{ours}, {way}: p50 ≥ 5 × lower than Kafka's synchronous produce", ratios, 5)
            ratios = times_lower(found, f"{ours}, {way}", f"{KAFKA}, {way}")
            question.fact(f"{ours}, {way}: p50 lower than Kafka's from produce to poll", ratios, "×")
    question.note("From before the call of the sender to the record as an object in the other process, both in Python.")
    question.note(f"{sum(map(len, next(iter(found.values()))))} records each, in turns, {1000 * GAP_S} ms apart.")
    question.note("Busy: the consumer polls with a timeout of 0; blocking: of a second. Kafka has acks=1 and no Nagle.")


def times_lower(found: dict[str, list[list[float]]], ours: str, theirs: str) -> float:
    """The median of the turns' ratios of p50."""
    pairs = zip(found[ours], found[theirs], strict=True)
    return statistics.median(statistics.median(slow) / statistics.median(fast) for fast, slow in pairs)
