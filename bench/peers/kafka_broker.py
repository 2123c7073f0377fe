"""The real Apache Kafka of ../shared/peers, on a free port, with confluent-kafka as its client."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from pathlib import Path

from bench.rows import SHARED

SCRIPT = SHARED / "peers" / "kafka" / "kafka.sh"
CONSUME_AT_ONCE = 10_000
DEADLINE_S = 120.0


class Broker:
    """One broker in `folder`, started and stopped by the script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""

    @staticmethod
    def missing() -> str | None:
        """Why there can be no broker here; None when there can."""
        if not SCRIPT.exists():
            return "../shared/peers/kafka is not there"
        if not shutil.which("java") or not shutil.which("mvn"):
            return "java or mvn is not installed"
        if importlib.util.find_spec("confluent_kafka") is None:
            return "confluent-kafka is not installed"
        return None

    def start(self) -> None:
        command = ["bash", str(SCRIPT), "start", str(self.folder), str(_free_port_pair())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip()[-500:] or f"exit {done.returncode}")
        self.address = done.stdout.strip().splitlines()[-1]

    def stop(self) -> None:
        subprocess.run(["bash", str(SCRIPT), "stop", str(self.folder)], check=False, timeout=60)

    def cpu_seconds(self) -> float:
        """CPU that the broker has used so far."""
        fields = self._process_file("stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def rss_mb(self) -> float:
        for line in self._process_file("status").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
        return 0.0

    def create_topic(self, name: str, partitions: int = 1) -> None:
        from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

        admin = AdminClient({"bootstrap.servers": self.address})  # lives until the answer is there
        admin.create_topics([NewTopic(name, partitions, 1)])[name].result(30)

    def delete_topic(self, name: str) -> None:
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.address})
        admin.delete_topics([name])[name].result(30)

    def produce(
        self, topic: str, values: list[bytes], keys: list[bytes] | None = None, partitions: int | None = None
    ) -> None:
        """Sends all values, one a call, and waits until the broker has them; settings for throughput.

        With `partitions` they go there in turn, else where the client puts them.
        """
        from confluent_kafka import Producer

        settings = {
            "bootstrap.servers": self.address,
            "linger.ms": 20,
            "batch.size": 1 << 20,
            "acks": 1,
            "queue.buffering.max.messages": len(values) + 1,
            "queue.buffering.max.kbytes": 2_000_000,
        }
        producer = Producer(settings)
        if partitions is not None:
            for number, value in enumerate(values):
                producer.produce(topic, value, partition=number % partitions)
        elif keys is None:
            for value in values:
                producer.produce(topic, value)
        else:
            for value, key in zip(values, keys, strict=True):
                producer.produce(topic, value, key)
        if producer.flush(DEADLINE_S):
            raise RuntimeError(f"Kafka did not take all records in {DEADLINE_S} s")

    def consume(self, topic: str, count: int) -> tuple[int, float, float]:
        """Reads `count` records from the start: (records, seconds, CPU seconds of the broker).

        The clock starts when the client is connected and knows the log, before it fetches anything.
        """
        from confluent_kafka import Consumer, TopicPartition

        settings = {
            "bootstrap.servers": self.address,
            "group.id": "bench",
            "enable.auto.commit": False,
            "check.crcs": False,
            "fetch.wait.max.ms": 10,
            "fetch.message.max.bytes": 16 << 20,
            "queued.max.messages.kbytes": 2_000_000,
            "queued.min.messages": 10_000_000,  # else it stops fetching at 100,000, for fetch.queue.backoff.ms
            "fetch.queue.backoff.ms": 1,
        }
        consumer = Consumer(settings)
        try:
            consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)
            start, cpu = time.perf_counter(), self.cpu_seconds()
            consumer.assign([TopicPartition(topic, 0, 0)])
            seen = 0
            while seen < count:
                for message in consumer.consume(min(CONSUME_AT_ONCE, count - seen), timeout=10):
                    if message.error():
                        raise RuntimeError(str(message.error()))
                    message.value()
                    seen += 1
                if time.perf_counter() - start > DEADLINE_S:
                    raise RuntimeError(f"Kafka gave {seen} of {count} records in {DEADLINE_S} s")
            return seen, time.perf_counter() - start, self.cpu_seconds() - cpu
        finally:
            consumer.close()

    def _process_file(self, name: str) -> str:
        return Path("/proc", (self.folder / "pid").read_text().strip(), name).read_text()


def _free_port_pair() -> int:
    """A port that is free together with the next one, which the script takes for the controller."""
    for _ in range(50):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise RuntimeError("no two free ports in a row")
