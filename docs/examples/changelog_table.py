"""A table as a log of its changes: balances of accounts, of which compaction keeps the latest.

python changelog_table.py
"""

from __future__ import annotations

import random
import tempfile

import streamcore as sc


def main(path: str) -> None:
    """Changes balances, reads them as a table, compacts, and reads them again."""
    chance = random.Random(3)
    with sc.open(path) as store:
        balances = store.create_topic("balances", cleanup="compact", segment_bytes=1 << 20)
        wanted: dict[bytes, bytes | None] = {}
        for _ in range(100):
            keys = [b"account %d" % chance.randrange(2_000) for _ in range(1_000)]
            values = [None if chance.random() < 0.02 else b"%d" % chance.randrange(100_000) for _ in keys]
            balances.append(values, keys=keys)
            wanted.update(zip(keys, values, strict=True))

        open_accounts = {key: value for key, value in wanted.items() if value is not None}
        before = balances.partitions[0].size_bytes
        for moment in ("before", "after"):
            table = balances.table()
            found = dict(zip(table.column("key").to_pylist(), table.column("value").to_pylist(), strict=True))
            assert found == open_accounts
            size = balances.partitions[0].size_bytes
            print(f"{moment} compaction: {len(found):,} open accounts in {size / 1e6:.1f} MB, "
                  f"{balances.scan().count():,} records")  # fmt: skip
            if moment == "before":
                balances.compact()
        print(f"{before / balances.partitions[0].size_bytes:.0f} times smaller")
        key = next(iter(open_accounts))
        latest = balances.latest(key)
        assert latest is not None
        print(f"{key.decode()} has {latest.value.decode()}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
