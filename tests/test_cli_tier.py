"""`streamcore tier`: set, status, offload, verify, gc, prefetch, restore."""

from __future__ import annotations

from pathlib import Path

import pytest
from shell import Captured, Shell

import streamcore as sc


@pytest.fixture
def tier(tmp_path: Path) -> str:
    """The address of a folder."""
    return f"file://{tmp_path}/tier"


@pytest.fixture
def shell(tmp_path: Path, capsys: Captured, tier: str) -> Shell:
    """A store with a tier, and a tiered topic with some records."""
    shell = Shell(tmp_path / "store", capsys)
    shell("topic", "create", "clicks")
    assert shell("tier", "set", tier) == f"the tier is {tier}\n"
    shell("topic", "alter", "clicks", "--tier", "--local-retention-ms", "7d")
    with sc.open(shell.path, maintenance=False) as store:
        store.topic("clicks").append([b"%d" % n for n in range(1000)])
    return shell


def test_what_goes_there_is_shown_and_checked(shell: Shell, tier: str) -> None:
    [done] = shell.json("tier", "offload", "clicks", "--roll")
    assert (done["topic"], done["base_offset"], done["end_offset"], done["rows"]) == ("clicks", 0, 1000, 1000)
    assert "1 segments" in shell.err
    [row] = shell.json("tier", "status")
    assert (row["tier_start"], row["tier_end"], row["here_from"], row["end"]) == (0, 1000, 0, 1000)
    assert (row["objects"], row["records"], row["waiting"]) == (1, 1000, 0)
    assert tier in shell("tier", "status") + shell.err
    assert shell.json("tier", "verify") == []
    assert shell.json("tier", "gc", "--dry-run") == []
    assert shell.json("tier", "offload") == []
    shell("tier", "prefetch", "clicks", "--from", "10", "--to", "latest")
    assert "0 row groups" in shell.err  # all of it is here


def test_damage_is_named_and_the_status_is_1(shell: Shell, tmp_path: Path) -> None:
    shell("tier", "offload", "--roll")
    [path] = (tmp_path / "tier").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    for words in (("verify",), ("verify", "--sizes")):
        out = shell("tier", *words, "--output", "json", status=1)
        assert path.name in out
        assert "bytes, not" in out


def test_a_store_is_made_anew(shell: Shell, tier: str, tmp_path: Path, capsys: Captured) -> None:
    shell("topic", "create", "here")
    shell("tier", "offload", "--roll")
    again = Shell(tmp_path / "again", capsys)
    found = {row["topic"]: row for row in again.json("tier", "restore", tier)}
    assert found["clicks"]["records"] == 1000
    assert "without records, for they were not tiered: here" in again.err
    assert [row["records"] for row in again.json("topic", "list")] == [1000, 0]
    again("tier", "restore", tier, status=1)
    assert "is not empty" in again.err
    with sc.open(shell.path, maintenance=False) as store:
        store.topic("clicks").append([b"late"])
    shell("tier", "offload", "--roll", status=1)
    assert "restored from it since" in shell.err


def test_command_lines_that_make_no_sense_are_refused(shell: Shell, tmp_path: Path, capsys: Captured) -> None:
    shell("tier", "set", status=2)
    shell("tier", "set", "file:///x", "--none", status=2)
    shell("tier", "set", "s3://b/x", "--option", "region", status=2)
    shell("tier", "set", "--none", status=1)
    assert "is used by clicks" in shell.err
    bare = Shell(tmp_path / "bare", capsys)
    bare("topic", "create", "clicks")
    bare("tier", "status", status=1)
    assert "the store has no tier" in bare.err
    bare("topic", "alter", "clicks", "--tier", status=1)
    assert "the store has no tier" in bare.err
    bare("tier", "set", "s3://b/x", "--option", "secret_access_key=hidden", status=1)
    assert "is not kept" in bare.err


def test_the_status_says_where_a_table_is_and_how_far(shell: Shell, tier: str) -> None:
    pytest.importorskip("pyiceberg")
    shell("topic", "alter", "clicks", "--tier-iceberg")
    assert "not made yet" in shell("tier", "status") + shell.err
    shell("tier", "offload", "clicks", "--roll")
    [row] = shell.json("tier", "status")
    assert row["iceberg_end"] == row["tier_end"] == 1000
    said = shell("tier", "status") + shell.err
    assert f"Iceberg table {tier}/topics/clicks-" in said
    assert "version 1" in said
    shell("topic", "alter", "clicks", "--no-tier-iceberg")
    assert "Iceberg" not in shell("tier", "status") + shell.err
