"""A store that is made anew from its tier knows the producers of what is in it: nothing is taken a second time."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc
from streamcore import _core, producer_ids, transactions
from streamcore.tier import keeping, manifest, offload, producers, restore

from .senders import Sender, check_known

EACH, DAY_MS = 10, 24 * 3600 * 1000


def send(topic: sc.Topic, sender: Sender, first: int, count: int, partition: int = 0) -> None:
    """`count` appends of EACH records, from append number `first` on, and the segment is sealed."""
    for number in range(first, first + count):
        sender.send(topic, number * EACH, [b"%d" % number] * EACH, partition)
    topic.roll()


def lose(store: sc.Store) -> None:
    """All that the tier does not have goes with the machine."""
    assert store.tier is not None
    store.tier.back_up()
    store.close()
    shutil.rmtree(store.path)


def restored(tier_path: Path, path: Path, **how: Any) -> sc.Store:
    """Made anew from the tier."""
    sc.restore(f"file://{tier_path}", path, **how)
    return sc.open(path, maintenance=False)


def snapshots(tier_path: Path) -> list[Path]:
    """The objects with what is known of producers."""
    return sorted(tier_path.glob("topics/*/*/*.producers"))


def documents(tier_path: Path) -> list[Path]:
    """The manifests."""
    return sorted(tier_path.glob("topics/*/*/manifest.json"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a manifest."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---- what is recognised ----------------------------------------------------------------------------------------------


def test_a_batch_that_is_in_the_tier_is_not_taken_a_second_time_after_the_machine_is_lost(
    store: sc.Store, tier_path: Path, tmp_path: Path
) -> None:
    topic = store.create_topic("clicks", partitions=2, tier=True)
    senders = [Sender(7), Sender(8, 3)]
    for partition, sender in enumerate(senders):
        send(topic, sender, 0, 12, partition)
    topic.offload()
    send(topic, senders[0], 12, 3, 0)
    send(topic, senders[1], 12, 1, 1)
    topic.offload()
    for partition, sender in enumerate(senders):
        send(topic, sender, 15 - 2 * partition, 4, partition)  # which the tier never gets
    assert senders[0].send(topic, 180, [b"again"] * EACH) == (180, 190)
    lose(store)
    with restored(tier_path, tmp_path / "again") as again:
        topic = again.topic("clicks")
        assert [part.end_offset for part in topic.partitions] == [150, 130]
        with pytest.raises(sc.FencedError):
            Sender(8, 2).send(topic, 130, [b"zombie"] * EACH, 1)
        for partition, sender in enumerate(senders):
            check_known(topic, partition, sender, EACH, 20)
        values = [record.value for record in topic.scan(1)]
        assert values[:130] == [b"%d" % number for number in range(13) for _ in range(EACH)]


def test_the_checks_above_find_a_restored_store_that_knows_nothing(
    store: sc.Store, tier_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = store.create_topic("clicks", tier=True)
    send(topic, Sender(7), 0, 12)
    topic.offload()
    lose(store)
    monkeypatch.setattr(restore, "_producers_of", lambda objects, row, manifest: b"")
    with restored(tier_path, tmp_path / "again") as again, pytest.raises(BaseException) as raised:
        check_known(again.topic("clicks"), 0, Sender(7), EACH, 12)
    assert raised.type in (AssertionError, pytest.fail.Exception)


def test_what_was_known_survives_any_end_of_the_restored_store_and_more_lost_machines(
    store: sc.Store, tier_path: Path, tmp_path: Path
) -> None:
    topic = store.create_topic("clicks", tier=True, segment_bytes=64 << 10)
    sender, other = Sender(7), Sender(9)
    send(topic, sender, 0, 12)
    other.send(topic, 0, [b"other"] * EACH)
    topic.roll()
    topic.offload()
    lose(store)
    end = 13 * EACH
    for number in range(3):
        path = tmp_path / f"again-{number}"
        with restored(tier_path, path) as again:
            topic = again.topic("clicks")
            assert other.send(topic, 0, [b"other"] * EACH) == (120, 130)
        for hint in path.glob("topics/*/*/.producers"):
            hint.unlink()
        with sc.open(path, maintenance=False) as again:
            topic = again.topic("clicks")
            assert sender.send(topic, 110, [b"again"] * EACH) == (110, 120)
            assert topic.append([b"somebody"])[0].first_offset == end
            topic.roll()
            topic.offload()
            topic.alter(local_retention_bytes=1)
            assert topic.cold is not None
            assert again.tier is not None
            keeping.apply_local_retention(topic, again.tier, topic.cold)
            topic.alter(local_retention_bytes=None)
            lose(again)
        end += 1
    with restored(tier_path, tmp_path / "last") as again:
        topic = again.topic("clicks")
        assert sender.send(topic, 110, [b"again"] * EACH) == (110, 120)
        with pytest.raises(sc.SequenceError):
            sender.send(topic, 130, [b"gap"] * EACH)
        assert sender.send(topic, 120, [b"next"] * EACH) == (end, end + EACH)


def test_new_ids_are_none_that_the_tier_has_though_the_copy_of_the_catalog_is_older(
    store: sc.Store, tier_path: Path, tmp_path: Path
) -> None:
    topic = store.create_topic("clicks", tier=True)
    assert store.tier is not None
    with store.producer() as first:
        first.send("clicks", b"first")
    topic.roll()
    topic.offload()
    store.tier.back_up()
    with store.producer() as second, store.producer() as third:
        second.send("clicks", b"second")
        second.flush()
        third.send("clicks", b"third")
    assert (first.producer_id, second.producer_id, third.producer_id) == (1, 2, 3)
    topic.roll()
    topic.offload()
    store.close()
    for number, skips in enumerate((True, False)):
        copy = tmp_path / f"tier-{number}"
        shutil.copytree(tier_path, copy)
        with pytest.MonkeyPatch.context() as patched:
            if not skips:  # the control: another one's id, and its record is taken for one that is there
                patched.setattr(producer_ids, "skip_to", lambda catalog, first: None)
            again = restored(copy, tmp_path / f"again-{number}")
        with again, again.producer() as new:
            new.send("clicks", b"new")
            new.flush()
            values = [record.value for record in again.topic("clicks").scan()]
            assert (new.producer_id == 4) is skips
            assert values == [b"first", b"second", b"third", b"new"][: 4 if skips else 3]


def test_transactional_ids_begin_anew_and_what_they_had_stays_fenced(
    store: sc.Store, tier_path: Path, tmp_path: Path
) -> None:
    topic = store.create_topic("clicks", tier=True)
    assert store.tier is not None
    with store.transaction("pay") as one:
        one.append("clicks", [b"1"])
    store.tier.back_up()  # which knows of this one alone
    for number in range(2, 6):
        with store.transaction("pay") as one:
            one.append("clicks", [b"%d" % number])
    old = one.producer_id, one.epoch
    topic.roll()
    topic.offload()
    open_one = store.transaction("pay")
    open_one.append("clicks", [b"lost"])
    store.tier.back_up()  # and now it is open, as far as the copy knows
    for folder in ("tier-1", "tier-2"):
        shutil.copytree(tier_path, tmp_path / folder)
    with restored(tmp_path / "tier-1", tmp_path / "again") as again:
        topic = again.topic("clicks")
        with pytest.raises(sc.FencedError):
            Sender(old[0], old[1] - 1).send(topic, 0, [b"zombie"])
        with again.transaction("pay") as new:
            new.append("clicks", [b"new"])
        assert new.producer_id != old[0]
        assert [record.value for record in topic.scan()] == [b"1", b"2", b"3", b"4", b"5", b"new"]
        assert topic.partitions[0].stable_offset == topic.partitions[0].end_offset
    with pytest.MonkeyPatch.context() as patched:  # the control: the copy is believed
        patched.setattr(transactions, "forget_machine", lambda catalog: None)
        with restored(tmp_path / "tier-2", tmp_path / "believed") as again:
            with again.transaction("pay") as new:
                new.append("clicks", [b"new"])
            assert new.producer_id == old[0]


def test_a_transaction_that_ends_behind_what_the_tier_has_is_not_open_in_the_restored_store(
    store: sc.Store, tier_path: Path, tmp_path: Path
) -> None:
    topic = store.create_topic("clicks", tier=True)
    with store.transaction("pay") as one:
        one.append("clicks", [b"1"])
        topic.roll()
        assert topic.offload() == []  # it is not decided
    [done] = topic.offload()
    assert done.end_offset == 1
    lose(store)
    with restored(tier_path, tmp_path / "again") as again:
        topic = again.topic("clicks")
        assert topic.open_transactions(0) == []
        assert topic.append([b"2"])[0].first_offset == 1
        assert topic.partitions[0].stable_offset == 2
        assert [record.value for record in topic.scan()] == [b"1", b"2"]


def test_fences_are_known_whose_markers_are_in_the_tier(store: sc.Store, tier_path: Path, tmp_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True)
    send(topic, Sender(7, 1), 0, 2)
    assert topic.end_transaction(0, 7, 5, commit=False, fence=True) == 20
    topic.append([b"behind"])
    topic.roll()
    topic.offload()
    lose(store)
    with restored(tier_path, tmp_path / "again") as again:
        for epoch in (1, 4):
            with pytest.raises(sc.FencedError):
                Sender(7, epoch).send(again.topic("clicks"), 20, [b"zombie"])
        assert Sender(7, 5).send(again.topic("clicks"), 0, [b"new"]) == (22, 23)


def test_consolidated_segments_tell_their_producers(store: sc.Store, tier_path: Path, tmp_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True)
    send(topic, Sender(7), 0, 12)
    Sender(8).send(topic, 0, [b"other"] * EACH)
    topic.roll()
    assert len(topic.consolidate()) == 1
    topic.offload()
    lose(store)
    with restored(tier_path, tmp_path / "again") as again:  # its first segment begins with what the tier knew
        topic = again.topic("clicks")
        send(topic, Sender(7), 12, 6)
        assert len(topic.consolidate()) == 1
    for hint in (tmp_path / "again").glob("topics/*/*/.producers"):
        hint.unlink()
    with sc.open(tmp_path / "again", maintenance=False) as again:
        topic = again.topic("clicks")
        assert Sender(8).send(topic, 0, [b"other"] * EACH) == (120, 130)
        assert Sender(7).send(topic, 170, [b"again"] * EACH) == (180, 190)
        topic.offload()
        lose(again)
    with restored(tier_path, tmp_path / "once-more") as again:
        topic = again.topic("clicks")
        assert Sender(8).send(topic, 0, [b"other"] * EACH) == (120, 130)
        assert Sender(7).send(topic, 170, [b"again"] * EACH) == (180, 190)


# ---- what it costs ---------------------------------------------------------------------------------------------------


def test_a_snapshot_has_160_bytes_for_each_producer_and_there_is_one_for_a_partition(
    store: sc.Store, tier_path: Path
) -> None:
    topic = store.create_topic("clicks", tier=True)
    topic.append([b"nobody"])
    topic.roll()
    topic.offload()
    assert snapshots(tier_path) == []
    for count in (10, 300):
        for number in range(1, count + 1):
            Sender(number).send(topic, 0, [b"x"])
        topic.roll()
        topic.offload()
        [found] = snapshots(tier_path)
        assert found.stat().st_size == 32 + 160 * count
        assert _core.look_at_producers(found.read_bytes()) == (topic.partitions[0].end_offset, count, count)
    assert store.tier is not None
    assert store.tier.gc(grace_s=0).objects == 0
    assert snapshots(tier_path) == [found]
    store.delete_topic("clicks")
    assert snapshots(tier_path) == []


def test_producers_that_were_idle_for_a_week_leave(store: sc.Store, tier_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True)
    for number, days in enumerate((9, 6, 8, 1)):
        Sender(1 + number).send(topic, 0, [b"x"])
        topic.roll()
        moment = time.time() - days * DAY_MS / 1000
        os.utime(topic.segments(0)[number].path, (moment, moment))
    topic.offload()
    [found] = snapshots(tier_path)
    assert _core.look_at_producers(found.read_bytes()) == (4, 2, 4)


def test_each_segment_is_looked_at_once_for_its_producers(
    store: sc.Store, tier_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []
    ask = sc.Topic.producers

    def asking(topic: sc.Topic, partition: int, offset: int, known_offset: int, known: bytes) -> bytes:
        asked.append((offset, known_offset, len(known)))
        return ask(topic, partition, offset, known_offset, known)

    monkeypatch.setattr(sc.Topic, "producers", asking)
    topic = store.create_topic("clicks", tier=True)
    topic.append([b"nobody"])
    topic.roll()
    topic.offload()
    for first in (0, 2, 4):
        send(topic, Sender(7), first, 1)
        send(topic, Sender(7), first + 1, 1)
        topic.offload()
    size = 32 + 160
    assert asked == [(1, -1, 0), (11, 1, 0)] + [(end, end - 10, size) for end in (21, 31, 41, 51, 61)]
    assert store.tier is not None
    got: list[str] = []
    get = store.tier.objects.get
    monkeypatch.setattr(store.tier.objects, "get", lambda path: (got.append(path.rpartition(".")[2]), get(path))[1])
    send(topic, Sender(7), 6, 1)
    send(topic, Sender(7), 7, 1)
    topic.offload()
    assert got == ["json", "producers"]


# ---- older manifests, damage -----------------------------------------------------------------------------------------


def test_a_manifest_of_a_version_that_kept_no_producers_is_read_and_the_next_segment_mends_it(
    store: sc.Store, tier_path: Path, tmp_path: Path
) -> None:
    topic = store.create_topic("clicks", tier=True)
    send(topic, Sender(7), 0, 12)
    topic.offload()
    [path] = documents(tier_path)

    def older(content: dict[str, Any]) -> None:
        del content["producers"]
        for entry in content["entries"]:
            del entry["segment_ms"]

    rewrite(path, older)
    for found in snapshots(tier_path):
        found.unlink()
    copy = tmp_path / "copy"
    shutil.copytree(tier_path, copy)
    with restored(copy, tmp_path / "again") as again:
        assert again.topic("clicks").scan().count() == 120
        assert Sender(7).send(again.topic("clicks"), 110, [b"again"] * EACH) == (120, 130)
    topic.append([b"somebody"])
    topic.roll()
    topic.offload()
    lose(store)
    with restored(tier_path, tmp_path / "mended") as again:
        assert Sender(7).send(again.topic("clicks"), 110, [b"again"] * EACH) == (110, 120)


@pytest.mark.parametrize("gone", [False, True])
def test_damage_is_found_and_mended_by_the_next_segment_and_no_store_begins_with_it(
    store: sc.Store, tier_path: Path, tmp_path: Path, gone: bool
) -> None:
    topic = store.create_topic("clicks", tier=True)
    assert store.tier is not None
    send(topic, Sender(7), 0, 12)
    topic.offload()
    store.tier.back_up()
    [found] = snapshots(tier_path)
    data = bytearray(found.read_bytes())
    data[100] ^= 1
    found.unlink() if gone else found.write_bytes(data)
    [problem] = store.tier.verify()
    assert (problem.offset, problem.path) == (120, f"file://{found}")
    assert len(store.tier.verify(read=False)) == gone
    copy = tmp_path / "copy"
    shutil.copytree(tier_path, copy)
    with pytest.raises(sc.CorruptionError, match="producers"):
        sc.restore(f"file://{copy}", tmp_path / "again")
    with pytest.raises(sc.StoreFormatError, match=r"no catalog\.sqlite"):
        sc.open(tmp_path / "again")
    with restored(copy, tmp_path / "without", without_producers=True) as again:
        assert again.topic("clicks").scan().count() == 120
    send(topic, Sender(7), 12, 1)
    topic.offload()
    assert store.tier.verify() == []
    lose(store)
    with restored(tier_path, tmp_path / "mended") as again:
        check_known(again.topic("clicks"), 0, Sender(7), EACH, 14)


def test_a_manifest_that_says_nonsense_of_producers_is_refused(store: sc.Store, tier_path: Path) -> None:
    topic = store.create_topic("clicks", tier=True)
    send(topic, Sender(7), 0, 12)
    topic.offload()
    [path] = documents(tier_path)
    content = json.loads(path.read_text())
    for field, value in (("offset", 121), ("offset", -1), ("name", "x"), ("name", ""), ("size", "1"), ("more", 1)):
        made = {**content, "producers": {**content["producers"], field: value}}
        with pytest.raises(sc.CorruptionError, match="makes no sense"):
            manifest.Manifest.of(made, "file:///x")
    made = json.loads(json.dumps(manifest.Manifest.of(content, "file:///x").as_content()))
    assert {name: content[name] for name in made} == made


def test_a_lost_race_leaves_the_winners_snapshot_alone(
    store: sc.Store, store_path: Path, tier_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = store.create_topic("clicks", tier=True)
    send(topic, Sender(7), 0, 12)
    note = offload._note

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(offload, "_note", note)
        with sc.open(store_path, maintenance=False) as other:
            other.topic("clicks").offload()
        return note(*arguments)

    monkeypatch.setattr(offload, "_note", overtaken)
    topic.offload()
    assert len(snapshots(tier_path)) == 2
    assert store.tier is not None
    assert store.tier.verify() == []
    assert store.tier.gc(grace_s=0).objects == 2
    assert len(snapshots(tier_path)) == 1
    assert store.tier.verify() == []


def test_a_snapshot_that_cannot_be_removed_stops_nothing(
    store: sc.Store, tier_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = store.create_topic("clicks", tier=True)
    send(topic, Sender(7), 0, 12)
    topic.offload()
    assert store.tier is not None

    def fails(path: str) -> None:
        raise sc.TierError("not now", path)

    with monkeypatch.context() as patched:
        patched.setattr(store.tier.objects, "delete", fails)
        send(topic, Sender(7), 12, 1)
        assert len(topic.offload()) == 1
    assert len(snapshots(tier_path)) == 2
    assert store.tier.gc(grace_s=0).objects == 1
    assert producers.load(store.tier.objects, str(snapshots(tier_path)[0].relative_to(tier_path)), _named(topic))


def _named(topic: sc.Topic) -> manifest.Snapshot:
    assert topic.cold is not None
    known = topic.cold.fresh(0)
    assert known is not None
    assert known.manifest.producers is not None
    return known.manifest.producers
