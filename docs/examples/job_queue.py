"""A job queue: three worker processes share the jobs of a topic. One is killed, and the others take over what it had.

python job_queue.py [DIRECTORY [JOBS]]
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing as mp
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection

import streamcore as sc

PARTITIONS = 6
WORKERS = 3


def work(path: str, name: str, end: Connection) -> None:
    """Takes jobs until the other end of the pipe is closed.

    A commit follows the results: a job may be done twice, never not at all.
    """
    with sc.open(path) as store:
        results = store.topic("results")
        with store.consumer("jobs", group="workers", member_timeout_ms=1_000) as consumer:
            while not end.poll():
                jobs = consumer.poll(timeout_ms=100, max_records=20)
                digests = [hashlib.sha256(job.value).digest() for job in jobs]
                if jobs:
                    results.append(
                        digests, keys=[job.key for job in jobs], headers=[{"worker": name.encode()}] * len(jobs)
                    )
                    with contextlib.suppress(sc.FencedError):  # it was too slow, and others do these again
                        consumer.commit()


def workers_of(results: sc.Topic) -> Counter[str]:
    """How many results each worker has written."""
    return Counter(dict(record.headers)["worker"].decode() for record in results.scan())


def main(path: str, jobs: int) -> None:
    """Appends the jobs, has them done, and shows who did how many."""
    with sc.open(path) as store:
        queue = store.create_topic("jobs", partitions=PARTITIONS)
        results = store.create_topic("results")
        queue.append([b"job %d" % n for n in range(jobs)], keys=[b"%d" % n for n in range(jobs)])

        context = mp.get_context("spawn")
        end, ours = context.Pipe(duplex=False)  # not an Event, whose lock a killed worker may hold
        names = [f"worker {n}" for n in range(WORKERS)]
        workers = [context.Process(target=work, args=(path, name, end)) for name in names]
        for worker in workers:
            worker.start()
        while not (at_work := workers_of(results)):
            time.sleep(0.01)
        killed = min(at_work)
        workers[names.index(killed)].kill()
        while sum(store.group("workers").offsets().values()) < jobs:  # all partitions, from their beginning
            time.sleep(0.01)
        ours.close()
        for worker in workers:
            worker.join()

        done = list(results.scan())
        by_worker = workers_of(results)
        for name in names:
            print(f"{name}: {by_worker[name]:6,} jobs{' (killed)' if name == killed else ''}")
        print(f"{jobs:,} jobs, {len({record.key for record in done}):,} of them done, {len(done) - jobs:,} done again")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else folder, int(sys.argv[2]) if len(sys.argv) > 2 else 5_000)
