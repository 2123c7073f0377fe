"""How fast does a group read with 1, 2 and 4 members, threads and processes, against confluent-kafka's consumer?"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import streamcore as sc
from bench import rows
from bench.contest import Contest, Stopwatch
from bench.member import KafkaReader, Member, RemoteMember, StreamcoreMember, settle_all
from bench.peers.kafka_broker import Broker
from bench.sizes import Sizes

PARTITIONS = 4
MEMBERS = (1, 2, 4)
WAYS = {"poll": "poll", "iterate": "iteration", "arrow": "poll_arrow"}
TOPIC = "clicks"
GROUPS = (f"bench-{number}" for number in itertools.count())  # a new one each time: nothing is committed


def test_group_of_threads(contest: Callable[..., Contest], folder: Path, size: Sizes, kafka: Broker | str) -> None:
    question = contest("a group reads 4 partitions, members in threads (100 B)")
    store, _ = filled(folder / "store", rows.values(size.kafka_records, 100))

    def entrant(way: str, count: int) -> Callable[[Path, Stopwatch], float]:
        return together(lambda group: StreamcoreMember(store, TOPIC, group, way), count)

    for way, name in WAYS.items():
        for count in MEMBERS:
            question.enter(titled(name, count), entrant(way, count))
    if isinstance(kafka, str):
        question.absent("confluent-kafka", kafka)
    else:
        topic = fill_kafka(kafka, "group-threads", rows.values(size.kafka_records, 100))
        for count in MEMBERS:
            read = together(lambda group: KafkaReader(kafka.address, topic, group), count)
            question.enter(titled("confluent-kafka", count), with_broker(kafka, read))
    question.run(min(size.rounds, 3))
    report(question, list(WAYS.values()))
    question.note("Threads of one Python take turns: poll and iteration make an object of each record.")
    if not isinstance(kafka, str):
        kafka.delete_topic(topic)
    store.close()


def test_group_of_processes(contest: Callable[..., Contest], folder: Path, size: Sizes, kafka: Broker | str) -> None:
    question = contest("a group reads 4 partitions, members in processes (100 B)")
    store, _ = filled(folder / "store", rows.values(size.kafka_records, 100))
    store.close()

    def entrant(way: str, place: str, topic: str, count: int) -> Callable[[Path, Stopwatch], float]:
        return together(lambda group: RemoteMember(way, place, topic, group), count, in_one_process=False)

    for count in MEMBERS:
        question.enter(titled("poll", count), entrant("poll", str(folder / "store"), TOPIC, count))
    if isinstance(kafka, str):
        question.absent("confluent-kafka", kafka)
    else:
        topic = fill_kafka(kafka, "group-processes", rows.values(size.kafka_records, 100))
        for count in MEMBERS:
            read = entrant("kafka", kafka.address, topic, count)
            question.enter(titled("confluent-kafka", count), with_broker(kafka, read))
    question.run(2 if size.name == "quick" else min(size.rounds, 3))
    report(question, ["poll"])
    if not isinstance(kafka, str):
        kafka.delete_topic(topic)


def titled(name: str, members: int) -> str:
    return f"{name}, {members} member{'s' * (members > 1)}"


def filled(path: Path, values: list[bytes]) -> tuple[sc.Store, sc.Topic]:
    """1,000 records a call, the partitions in turn."""
    store = sc.open(path)
    topic = store.create_topic(TOPIC, partitions=PARTITIONS)
    for number, first in enumerate(range(0, len(values), 1_000)):
        topic.append(values[first : first + 1_000], partition=number % PARTITIONS)
    topic.scan().to_arrow()  # checksums are verified before the clock runs
    return store, topic


def fill_kafka(kafka: Broker, topic: str, values: list[bytes]) -> str:
    kafka.create_topic(topic, PARTITIONS)
    kafka.produce(topic, values, partitions=PARTITIONS)
    return topic


def together(
    make: Callable[[str], Member], count: int, in_one_process: bool = True
) -> Callable[[Path, Stopwatch], float]:
    def run(_: Path, watch: Stopwatch) -> float:
        group = next(GROUPS)
        with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
            members = [stack.enter_context(closing(make(group))) for _ in range(count)]
            settle_all(members, PARTITIONS // count)
            found = list(pool.map(lambda member: member.read_all(), members))
        cpu_s = [reading.cpu_s for reading in found]
        seconds = max(reading.end_s for reading in found) - min(reading.start_s for reading in found)
        watch.measured_elsewhere(seconds, max(cpu_s) if in_one_process else sum(cpu_s))
        return float(sum(reading.records for reading in found))

    return run


def with_broker(kafka: Broker, read: Callable[[Path, Stopwatch], float]) -> Callable[[Path, Stopwatch], float]:
    """Counts the broker's CPU as well."""

    def run(folder: Path, watch: Stopwatch) -> float:
        before = kafka.cpu_seconds()
        records = read(folder, watch)
        watch.add_cpu(kafka.cpu_seconds() - before)
        return records

    return run


def report(question: Contest, names: list[str]) -> None:
    for name in names:
        for count in MEMBERS:
            ours, theirs = titled(name, count), titled("confluent-kafka", count)
            if theirs in question.samples:
                question.fact(f"{ours}, against confluent-kafka", statistics.median(question.ratios(ours, theirs)), "×")
        for count in MEMBERS[1:]:
            ratio = statistics.median(question.ratios(titled(name, count), titled(name, 1)))
            question.fact(f"{titled(name, count)}, against one", ratio, "×")
    question.note("The clock starts when the members have their partitions; Kafka's CPU is that of the broker as well.")
    question.note("500 records a poll, 16 MiB a poll_arrow, Kafka's client 10,000; each value's length is read.")
