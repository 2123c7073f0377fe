"""`streamcore topic`: what is created, shown, altered and deleted."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shell import Captured, Shell

import streamcore as sc


@pytest.fixture
def shell(tmp_path: Path, capsys: Captured) -> Shell:
    return Shell(tmp_path / "store", capsys)


def test_every_setting_of_a_topic_can_be_given(shell: Shell) -> None:
    words = "--partitions 3 --retention-ms 7d --retention-bytes 1.5GB --cleanup compact --compression lz4 "
    words += "--timestamp-type append --segment-bytes 64MiB --segment-ms 12h --max-record-bytes 1MiB --durability disk "
    words += "--producer-expiry-ms 1d --delete-retention-ms 2h --min-compaction-lag-ms 90s"
    assert shell("topic", "create", "clicks", *words.split()) == "created topic clicks (3 partitions, plain)\n"
    described = shell.json("topic", "describe", "clicks")
    assert described["settings"] == {
        "retention_ms": 7 * 86_400_000,
        "retention_bytes": 1_500_000_000,
        "cleanup": "compact",
        "compression": "lz4",
        "timestamp_type": "append",
        "segment_bytes": 64 << 20,
        "segment_ms": 12 * 3_600_000,
        "max_record_bytes": 1 << 20,
        "durability": "disk",
        "producer_expiry_ms": 86_400_000,
        "delete_retention_ms": 2 * 3_600_000,
        "min_compaction_lag_ms": 90_000,
        "tier": False,
        "local_retention_ms": None,
        "local_retention_bytes": None,
        "tier_key_filter": False,
        "tier_iceberg": False,
    }
    assert [part["partition"] for part in described["partitions"]] == [0, 1, 2]


def test_a_schema_is_written_in_words_or_taken_from_a_file(shell: Shell, tmp_path: Path) -> None:
    shell("topic", "create", "words", "--schema", "symbol:string!, price:decimal(12,4), at:timestamp")
    schema = pa.schema([("a", pa.int32()), ("b", pa.list_(pa.string()))])
    pq.write_table(schema.empty_table(), tmp_path / "s.parquet")
    with pa.OSFile(str(tmp_path / "s.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(schema.empty_table())
    (tmp_path / "s.json").write_text('{"a": "int32", "b": "list<string>"}')
    for ending in ("parquet", "arrow", "json"):
        shell("topic", "create", ending, "--schema", str(tmp_path / f"s.{ending}"))
    with sc.open(shell.path, mode="r") as store:
        assert store.topic("words").schema == pa.schema(
            [
                pa.field("symbol", pa.string(), nullable=False),
                ("price", pa.decimal128(12, 4)),
                ("at", pa.timestamp("ms", "UTC")),
            ]
        )
        for ending in ("parquet", "arrow", "json"):
            found = store.topic(ending).schema
            assert found is not None
            assert [field.type for field in found] == [field.type for field in schema]


@pytest.mark.parametrize("schema", ["no-such-file", "a:quaternion", "a"])
def test_a_schema_that_is_none_is_refused(shell: Shell, schema: str) -> None:
    shell("topic", "create", "x", "--schema", schema, status=2 if ":" not in schema else 1)
    assert schema.split(":")[-1] in shell.err


def test_a_topic_is_created_once(shell: Shell) -> None:
    shell("topic", "create", "clicks")
    assert shell("topic", "create", "clicks", status=1) == ""
    assert shell.err == "error: topic 'clicks' exists already\n"


def test_topics_are_listed_with_what_is_in_them(shell: Shell) -> None:
    with sc.open(shell.path) as store:
        store.create_topic("b", partitions=2).append([b"x"] * 10)
        store.create_topic("a", schema=pa.schema([("n", pa.int64())]))
    listed = shell.json("topic", "list")
    assert [(row["topic"], row["kind"], row["partitions"], row["records"]) for row in listed] == [
        ("a", "typed", 1, 0),
        ("b", "plain", 2, 10),
    ]
    table = shell("topic", "list")
    assert [line.split()[0] for line in table.splitlines() if line.strip()][-2:] == ["a", "b"]


def test_a_store_without_topics_says_how_to_make_one(shell: Shell) -> None:
    sc.open(shell.path).close()
    assert shell("topic", "list") == ""
    assert "streamcore topic create" in shell.err


def test_a_topic_is_described_with_offsets_sizes_and_files(shell: Shell) -> None:
    with sc.open(shell.path) as store:
        store.create_topic("t", partitions=2, schema=pa.schema([("n", pa.int64())])).append([{"n": 1}] * 5, partition=1)
    described = shell.json("topic", "describe", "t")
    assert described["schema"] == [{"column": "n", "type": "int64", "nullable": True}]
    assert [(part["start"], part["end"], part["records"]) for part in described["partitions"]] == [(0, 0, 0), (0, 5, 5)]
    [file] = [file for file in described["segments"] if file["records"]]
    assert (file["partition"], file["base"], file["end"]) == (1, 0, 5)
    assert Path(file["path"]).exists()
    text = shell("topic", "describe", "t", "--segments")
    for expected in ("retention_ms", "durable", "int64", "00000000000000000000.arrows"):
        assert expected in text


def test_records_are_counted_as_a_reader_sees_them(shell: Shell) -> None:
    with sc.open(shell.path) as store:
        topic = store.create_topic("t", partitions=2)
        topic.append([b"x"] * 3, partition=0)
        with store.transaction("a") as transaction:
            transaction.append("t", [b"x"] * 2, partition=0)
        gone = store.transaction("a")
        gone.append("t", [b"x"] * 5, partition=0)
        gone.abort()
        topic.append([b"x"] * 4, partition=1)
        topic.delete_records({1: 1})
        table = store.create_topic("table", cleanup="compact")
        for _ in range(3):
            table.append([b"x"], keys=[b"k"])
        table.roll()
        table.compact()
        open_one = store.transaction("b")
        open_one.append("t", [b"x"], partition=1)
        listed = {row["topic"]: row["records"] for row in shell.json("topic", "list")}
        assert listed == {"t": 5 + 3, "table": 1}
        described = shell.json("topic", "describe", "t")["partitions"]
        assert [(part["start"], part["end"], part["records"]) for part in described] == [(0, 12, 5), (1, 5, 3)]
        open_one.commit()
        assert shell.json("topic", "describe", "t")["partitions"][1]["records"] == 4


def test_settings_are_changed_and_unset(shell: Shell) -> None:
    shell("topic", "create", "t", "--retention-ms", "1h", "--retention-bytes", "1MB")
    shell("topic", "alter", "t", "--retention-ms", "none", "--compression", "zstd", "--partitions", "4")
    described = shell.json("topic", "describe", "t")
    assert described["settings"]["retention_ms"] is None
    assert described["settings"]["retention_bytes"] == 1_000_000
    assert described["settings"]["compression"] == "zstd"
    assert len(described["partitions"]) == 4


def test_a_schema_gains_columns(shell: Shell) -> None:
    shell("topic", "create", "t", "--schema", "a:int64")
    shell("topic", "alter", "t", "--schema", "a:int64,b:string")
    assert [column["column"] for column in shell.json("topic", "describe", "t")["schema"]] == ["a", "b"]
    shell("topic", "alter", "t", "--schema", "a:string", status=1)
    assert "a" in shell.err


def test_altering_nothing_makes_no_sense(shell: Shell) -> None:
    shell("topic", "create", "t")
    shell("topic", "alter", "t", status=2)


def test_deleting_needs_an_answer(shell: Shell) -> None:
    shell("topic", "create", "t")
    shell("topic", "delete", "t", status=2)
    assert "--yes" in shell.err
    assert "t" in shell("topic", "list", "-o", "csv")
    assert shell("topic", "delete", "t", "--yes") == "deleted topic t (0 records)\n"
    assert shell.json("topic", "list") == []
