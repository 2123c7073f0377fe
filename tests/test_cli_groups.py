"""`streamcore groups`, `streamcore dlq`, `streamcore tail --group`."""

from __future__ import annotations

from pathlib import Path

import pytest
from shell import Captured, Shell

import streamcore as sc


@pytest.fixture
def shell(tmp_path: Path, capsys: Captured) -> Shell:
    with sc.open(tmp_path / "store") as store:
        topic = store.create_topic("clicks", partitions=2)
        for partition in (0, 1):
            topic.append([b"%d" % n for n in range(10)], partition=partition, timestamps=[1000 * n for n in range(10)])
    return Shell(tmp_path / "store", capsys)


def test_tail_as_a_member_prints_each_record_once_and_commits(shell: Shell) -> None:
    assert shell("groups", "list") == ""
    assert "no groups yet" in shell.err
    first = shell("tail", "clicks", "--group", "g", "-n", "7", "--format", "value").split()
    rest = shell("tail", "clicks", "--group", "g", "--format", "value").split()
    assert sorted(first + rest, key=int) == sorted([str(n) for n in range(10)] * 2, key=int)
    assert len(first) == 7
    assert shell("tail", "clicks", "--group", "g") == ""
    assert shell.json("groups", "list") == [
        {"group": "g", "state": "empty", "members": 0, "topics": ["clicks"], "lag": 0}
    ]


def test_tail_of_a_new_group_begins_where_it_is_told(shell: Shell) -> None:
    assert shell("tail", "clicks", "--group", "late", "--from", "latest") == ""
    printed = shell("tail", "clicks", "--group", "timed", "--from", "1970-01-01T00:00:08", "--format", "value")
    assert sorted(printed.split()) == ["8", "8", "9", "9"]
    shell("tail", "clicks", "--group", "g", "--partition", "0", status=2)
    shell("tail", "clicks", "--group", "g", "--from", "5", status=2)
    assert "groups reset" in shell.err


def test_groups_are_described_reset_and_deleted(shell: Shell) -> None:
    shell("tail", "clicks", "--group", "g", "-n", "12")
    described = shell.json("groups", "describe", "g")
    assert [(row["committed"], row["end"], row["lag"]) for row in described] == [(10, 10, 0), (2, 10, 8)]
    assert "g: empty, generation" in shell("groups", "describe", "g")
    shell("groups", "describe", "g", "--members")
    assert "has no members" in shell.err
    rows = shell.json("groups", "reset", "g", "clicks", "--shift", "-1")
    assert [row["committed"] for row in rows] == [9, 1]
    rows = shell.json("groups", "reset", "g", "clicks", "--to", "1970-01-01T00:00:04", "--partition", "1")
    assert rows == [{"topic": "clicks", "partition": 1, "committed": 4}]
    shell("groups", "reset", "g", "clicks", status=2)
    shell("groups", "reset", "new", "clicks", "--to", "latest", status=1)
    assert "there is no group 'new'" in shell.err
    shell("groups", "reset", "new", "clicks", "--to", "latest", "--create")
    assert shell("groups", "delete", "g") == "deleted group g\n"
    assert [row["group"] for row in shell.json("groups", "list")] == ["new"]


def test_a_group_with_members_is_shown_and_not_changed(shell: Shell) -> None:
    with sc.open(shell.path) as store, store.consumer("clicks", group="g", instance_id="one") as consumer:
        consumer.poll(0)
        (row,) = shell.json("groups", "describe", "g", "--members")
        assert (row["member"], row["instance"]) == (consumer.member_id, "one")
        assert row["partitions"] == "clicks:0, clicks:1"
        assert {row["member"] for row in shell.json("groups", "describe", "g")} == {consumer.member_id}
        for words in (["reset", "g", "clicks", "--to", "latest"], ["delete", "g"]):
            shell("groups", *words, status=1)
            assert "while it has members" in shell.err
        assert shell("tail", "clicks", "--group", "g") == ""
        assert "other members of group g" in shell.err


def test_dead_letters_are_listed_shown_and_replayed(shell: Shell) -> None:
    shell("dlq", "list")
    assert "no dead letters" in shell.err

    def handle(record: sc.Record) -> None:
        if record.value in (b"3", b"7"):
            raise ValueError(f"no {record.value.decode()}")

    with sc.open(shell.path) as store, store.consumer("clicks") as consumer:
        consumer.process(handle, retries=0, dead_letter="clicks-dead", timeout_ms=50)
    (row,) = shell.json("dlq", "list")
    assert (row["topic"], row["records"], row["from"], row["last_error"]) == ("clicks-dead", 4, "clicks", "ValueError")
    rows = shell.json("dlq", "show", "clicks-dead")
    assert [(row["place"], row["from"], row["value"]) for row in rows] == [
        ("0:0", "clicks:0:3", "3"),
        ("0:1", "clicks:0:7", "7"),
        ("1:0", "clicks:1:3", "3"),
        ("1:1", "clicks:1:7", "7"),
    ]
    assert rows[0]["message"] == "no 3"
    assert len(shell.json("dlq", "show", "clicks-dead", "-n", "1")) == 1
    shell("dlq", "show", "clicks-dead", "--error", "KeyError")
    assert "no dead letters" in shell.err
    shell("dlq", "replay", "clicks-dead", status=2)
    shell("dlq", "replay", "clicks-dead", "--offset", "5:5", status=1)
    assert "no dead letter at 5:5" in shell.err
    assert shell("dlq", "replay", "clicks-dead", "--offset", "1:0") == "replayed 1 record of clicks-dead\n"
    assert shell("dlq", "replay", "clicks-dead", "--all") == "replayed 4 records of clicks-dead\n"
    with sc.open(shell.path, mode="r") as store:
        assert store.topic("clicks").scan().count() == 25
