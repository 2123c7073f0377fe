"""Which test must catch which deliberate bug, and how that is tried.

csrc/control.h has the bugs of C, python_controls.py those of Python. A bug has one test here, the smallest that is
about it; others may catch it too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .python_controls import PYTHON_BUGS

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "controls"
HANG_S = 10.0
DEADLINE_S = 120.0
_FAULTS = "3000"  # of all operations: some are short writes to a segment
_SEED, _POINTS = "1", "60"  # of power losses: a recording, and moments of it
_BUG = re.compile(r"BUG\((\w+)\)\s*/\*(.*?)\*/", re.DOTALL)

# "flush::test_…" is of csrc/tests/test_flush.c, "tests/…::test_…" of pytest, "power::…" a workload of the power losses.
CAUGHT_BY = {
    # appends
    "acknowledge_before_sync": "flush::test_a_durable_append_is_synced_when_it_returns",
    "end_published_before_bytes": "append::test_a_large_append_whose_write_fails_is_not_there_and_is_cleared",
    "first_opening_not_last": "threads::test_a_live_file_never_shows_half_an_append",
    "expected_offset_ignored": "append::test_expected_generation_and_schema_are_checked",
    "unfinished_append_not_told": "processes::test_who_asks_for_the_end_is_told_of_what_the_dead_had_stored",
    "unfinished_append_left": "processes::test_an_append_that_was_killed_is_cleared_by_the_next_one",
    "space_not_reserved": "append::test_no_batch_lies_across_a_length_that_the_file_had",
    "roll_leaks_descriptor": "append::test_many_partitions_do_not_use_up_the_descriptors",
    "batch_across_old_length": "append::test_no_batch_lies_across_a_length_that_the_file_had",
    "short_write_believed": "os::test_whole_reads_and_writes_go_on_after_interrupts_and_short_counts",
    "deleted_topic_takes_appends": "topic::test_a_deleted_topic_refuses_appends_everywhere",
    # locks and published state
    "partition_not_locked": "processes::test_a_killed_process_gives_its_lock_back_at_once",
    "lock_outlives_its_process": "processes::test_a_child_does_not_inherit_locks",
    "fork_not_noticed": "processes::test_a_handle_from_before_a_fork_is_refused_and_harms_nobody",
    "stale_state_believed": "state::test_the_file_is_believed_only_while_a_writer_has_it_open",
    "new_state_not_synced": "state::test_a_new_state_file_is_synced_with_its_name",
    "tail_read_torn": "state::test_a_tail_is_not_torn_where_its_reader_is_interrupted",
    "boot_of_others_overwritten": (
        "recover_power::test_a_session_that_did_not_touch_a_partition_does_not_hide_the_power_loss"
    ),
    # syncs
    "folder_not_synced": "flush::test_a_flush_syncs_every_file_and_name",
    "topic_folder_not_synced": "flush::test_a_flush_syncs_every_file_and_name",
    "sealed_segment_not_synced": "flush::test_a_flush_after_a_roll_covers_all_of_the_sealed_segment",
    "failed_sync_retried": "flush::test_a_failed_sync_poisons_the_partition_until_all_have_closed",
    "durable_beyond_sync": "flush::test_all_that_come_while_a_sync_runs_share_the_next_one",
    "durable_though_poisoned": "flush::test_a_sync_that_overlapped_a_failed_one_promises_nothing",
    "note_promises_too_much": "recover_power::test_every_order_of_lost_sectors_leaves_a_prefix",
    "waiters_covered_too_early": "flush::test_the_next_sync_begins_before_the_covered_are_woken",
    "group_commit_forgets_waiter": "flush::test_all_that_come_while_a_sync_runs_share_the_next_one",
    "sealed_file_cut_too_far": "recover::test_a_log_that_was_never_closed_is_found_whole",
    "closed_file_cut_too_far": "recover::test_a_torn_end_is_cut_and_leaves_zeros",
    # recovery
    "tail_not_checked": "recover_power::test_damage_in_what_was_not_synced_cuts_the_log_there",
    "durable_offset_forgotten": "recover_power::test_damage_below_what_a_later_batch_says_was_durable_stays",
    "power_loss_not_noticed": "recover_power::test_sectors_that_never_reached_the_drive_cut_the_log_there",
    "damage_cut_as_torn_tail": "recover::test_damage_in_the_middle_stays_and_is_reported_with_its_place",
    "appended_behind_damage": "recover::test_an_append_behind_damage_begins_a_new_segment",
    "half_append_kept": "recover::test_part_of_an_append_of_several_batches_is_not_kept",
    "tail_not_cleared": "recover::test_a_torn_end_is_cut_and_leaves_zeros",
    "lost_start_kept": "recover_power::test_a_deletion_whose_note_was_lost_with_the_power_was_not_made",
    "cut_not_synced": "recover_power::test_what_was_cut_is_synced_away_before_the_log_goes_on",
    "lost_segment_kept": "recover_power::test_a_cut_takes_the_later_segments_with_it",
    "synced_segment_removed": "recover_power::test_a_synced_segment_that_lost_its_schema_stays",
    "stable_offset_of_recovery_wrong": (
        "producer_state::test_a_log_cut_by_power_loss_says_the_stable_offset_of_its_last_batch"
    ),
    # checksums, mapped reads, replaced files
    "batch_checksum_ignored": "verify::test_each_kind_of_damage_is_found_with_its_place",
    "header_checksum_ignored": "batch::test_flips_in_frame_and_header_are_detected_without_reading_the_body",
    "damage_verified_once": "segment::test_damage_is_found_each_time",
    "fault_not_caught": "segment::test_reads_behind_a_file_that_was_cut_are_errors",
    "mapping_not_retained": "arrow::test_a_child_that_was_moved_out_keeps_the_mapping_alive",
    "replaced_file_not_noticed": "replaced::test_so_does_a_handle_that_may_write",
    "segment_of_another_partition_read": "segment::test_a_segment_is_recognised_by_its_schema_and_partition",
    "rewrites_not_counted": "rewrite::test_a_process_that_knows_the_old_file_spoils_no_index",
    # the index
    "index_entry_believed": "index::test_an_entry_that_leads_too_far_is_found_out",
    "index_of_another_believed": "tests/test_scan.py::test_a_damaged_or_foreign_index_is_a_hint_and_no_more",
    "wrong_time_bound": "index::test_the_times_of_a_sealed_segment_are_those_of_all_its_batches",
    "old_index_kept": "rewrite::test_an_index_of_the_old_file_would_mislead",
    # the journal
    "journal_not_synced": "journal::test_many_partitions_of_many_topics_share_one_sync",
    "journal_name_not_synced": "journal::test_a_new_journal_has_its_name_on_the_drive_before_it_promises_anything",
    "journal_covers_poisoned": "journal::test_a_sync_of_the_journal_promises_nothing_of_a_partition_whose_own_failed",
    "checkpoint_syncs_nothing": "journal::test_a_checkpoint_syncs_each_segment_once",
    "failed_journal_sync_retried": "journal::test_a_failed_sync_of_the_journal_poisons_what_waited_and_is_not_repeated",
    "replay_skips_last_record": "journal::test_what_only_the_journal_had_comes_back",
    "replay_not_synced": "journal::test_what_was_replayed_is_synced_before_the_journal_is_emptied",
    "replay_without_anchor": "journal::test_damage_below_what_was_synced_is_reported_and_the_rest_comes_back",
    "emptied_journal_replayed": "journal::test_records_of_an_emptied_journal_do_not_count",
    # producers and transactions
    "duplicate_not_recognised": "producer_state::test_the_last_five_appends_of_a_producer_are_known_again",
    "sequence_gap_accepted": "producer_state::test_the_last_five_appends_of_a_producer_are_known_again",
    "fenced_producer_accepted": (
        "producer_state::test_a_fencing_marker_is_written_where_nothing_is_open_and_keeps_zombies_out"
    ),
    "snapshot_of_cut_log_believed": "producer_state::test_a_snapshot_of_a_log_that_was_cut_is_not_believed",
    "rewritten_producers_ignored": "producer_state::test_the_state_at_the_end_of_a_rewritten_segment_is_taken_over",
    "head_not_synced": "begin::test_what_a_log_begins_with_is_durable_before_the_log_is_there",
    "head_not_read": "begin::test_a_log_that_begins_elsewhere_knows_its_producers_after_any_end",
    "head_dropped_by_new_schema": ("begin::test_a_new_schema_before_the_first_record_keeps_what_a_log_begins_with"),
    "producers_beyond_offset": "begin::test_producers_as_of_an_offset_are_those_of_the_records_below_it",
    "producers_checksum_ignored": "producer_state::test_what_is_encoded_comes_back_and_damage_is_refused",
    "open_transaction_expires": (
        "producer_state::test_idle_producers_are_forgotten_and_those_with_open_transactions_are_not"
    ),
    "retry_takes_a_new_sequence": (
        "send_buffer::test_a_batch_that_is_tried_again_keeps_its_sequence_and_holds_up_its_partition_alone"
    ),
    "stable_beyond_open": "producer_state::test_an_open_transaction_holds_the_stable_offset_until_its_marker",
    "aborted_records_shown": "producer_state::test_logs_of_transactions_equal_a_model",
    "undecided_records_shown": (
        "producer_state::test_records_that_are_not_decided_are_hidden_also_beyond_the_stable_offset"
    ),
    "abort_marker_commits": "producer_state::test_logs_of_transactions_equal_a_model",
    "aborted_list_of_another_believed": (
        "producer_state::test_a_sealed_segment_gets_its_list_of_aborted_transactions_when_it_is_flushed"
    ),
    # retention, compaction, consolidation
    "unlinked_before_noted": "retain::test_no_file_goes_before_the_drive_has_the_new_start",
    "start_offset_forgotten": "retain::test_the_start_survives_a_process_that_dies",
    "deleted_records_read": "retain::test_a_log_begins_where_it_was_told_and_whole_segments_below_go",
    "newest_of_key_dropped": "tests/test_compaction.py::test_the_latest_record_of_each_key_stays_with_its_offset",
    "latest_put_of_key_kept": "rewrite::test_a_map_of_keys_has_the_greatest_offset_and_says_when_it_is_full",
    "older_of_key_kept": "tests/test_compaction.py::test_the_latest_record_of_each_key_stays_with_its_offset",
    "tombstone_dropped_too_early": (
        "tests/test_compaction.py::test_tombstones_stay_as_long_as_is_set_and_nothing_comes_back"
    ),
    "row_lost_at_batch_border": "rewrite::test_scans_of_sparse_batches_find_any_bounds",
    "rewritten_not_synced": (
        "rewrite::test_a_new_file_is_on_the_drive_before_it_takes_a_name_and_the_name_before_that_is_told"
    ),
    "rewritten_name_not_synced": (
        "rewrite::test_a_new_file_is_on_the_drive_before_it_takes_a_name_and_the_name_before_that_is_told"
    ),
    "undecided_segment_rewritten": "rewrite::test_aborted_records_go_committed_ones_stay_and_so_do_the_markers",
    "damage_rewritten": "rewrite::test_damage_stops_it_and_stays_where_it_is",
    "rewrite_undeletes": "rewrite::test_what_was_deleted_meanwhile_does_not_come_back",
    "dropped_producers_forgotten": "rewrite::test_what_dropped_headers_said_of_producers_is_kept_however_often",
    # waiting
    "wake_up_lost": "wait::test_what_comes_between_looking_and_sleeping_ends_the_sleep",
    "sleep_not_announced": "wait::test_an_append_makes_no_wake_up_call_when_nobody_sleeps",
    "bell_not_rung": "wait::test_a_reader_that_waits_is_woken_by_a_call",
    "closing_wakes_nobody": "wait::test_closing_one_of_several_topics_ends_a_wait",
    # Arrow
    "arrow_offsets_not_checked": "encode::test_offsets_that_go_back_or_begin_below_zero_are_refused",
    "arrow_views_not_checked": "encode::test_views_outside_their_buffers_are_refused",
    "arrow_shape_not_checked": "encode::test_arrays_of_another_shape_are_refused",
    "stored_buffers_not_checked": "arrow::test_metadata_that_lies_is_an_error",
    "metadata_not_checked": "metadata::test_every_truncation_is_refused_or_read_inside",
    "earlier_records_not_valid": "send_buffer::test_columns_hold_what_was_put_whatever_is_null",
    # Python
    "commits_run_ahead": "tests/test_groups.py::test_commits_are_where_the_next_member_goes_on",
    "groups_stay_ahead": (
        "tests/crash/test_power_loss.py::"
        "test_a_group_does_not_pass_over_what_comes_in_place_of_records_that_it_read_and_that_were_lost"
    ),
    "zombie_commits": "tests/test_groups.py::test_commits_of_a_partition_that_was_given_away_are_fenced",
    "two_owners": "tests/test_groups.py::test_a_partition_is_read_on_by_its_owner_until_it_gives_it_up",
    "heartbeats_lost": "tests/test_groups.py::test_a_slow_handler_keeps_its_membership",
    "partition_left_out": "tests/test_groups.py::test_assignments_are_even_and_move_no_more_than_they_must",
    "zombie_decides": "tests/test_transactions.py::test_the_first_call_of_a_zombie_is_fenced_already",
    "decision_not_finished": (
        "tests/test_transactions.py::test_what_was_decided_is_finished_by_who_opens_the_store_next"
    ),
    "decision_forgotten_too_early": (
        "tests/test_transactions.py::test_a_decision_is_kept_until_its_markers_are_durable"
    ),
    "offsets_without_their_transaction": (
        "tests/test_transactions.py::test_offsets_of_a_transaction_that_was_fenced_before_its_commit_are_not_stored"
    ),
    "lost_update_of_settings": (
        "tests/test_catalog.py::test_a_change_counts_only_on_top_of_the_generation_it_was_made_from"
    ),
    "deleted_topic_stays_in_the_catalog": "tests/test_store.py::test_deleting_a_topic_removes_its_files_and_its_name",
    "retention_takes_one_too_many": (
        "tests/test_retention.py::test_the_oldest_segments_go_until_what_is_left_is_just_enough"
    ),
}
# Each other kind of test has controls, too: bugs that it is there for.
OF_OTHER_KINDS = {
    "power::append": ["acknowledge_before_sync", "folder_not_synced", "power_loss_not_noticed", "tail_not_checked"],
    "power::roll": ["sealed_segment_not_synced"],
    "power::journal": ["journal_not_synced", "checkpoint_syncs_nothing"],
    "power::the first journal": ["journal_name_not_synced"],
    "power::deletion": ["start_offset_forgotten"],
    "power::consolidation": ["rewritten_not_synced"],
    "power::transactions": ["aborted_records_shown"],
    "tests/crash/test_kill.py::test_a_writer_that_dies_in_the_middle_of_storing_leaves_no_part_of_its_append": [
        "unfinished_append_left"
    ],
    "tests/crash/test_power_loss.py::test_a_gap_in_what_was_never_flushed_ends_the_log_after_a_power_loss": [
        "power_loss_not_noticed"
    ],
    "tests/crash/test_journal.py::test_all_that_was_acknowledged_is_there_after_a_loss_of_power": [
        "replay_skips_last_record"
    ],
    "tests/crash/test_full_disk.py::test_an_append_too_large_for_the_disk_fails_whole_and_a_smaller_one_works": [
        "space_not_reserved"
    ],
    (
        "tests/crash/test_failing_calls.py::"
        "test_each_failing_call_of_an_operation_is_an_error_that_says_why_and_nothing_is_lost[large appends]"
    ): ["short_write_believed"],
    "tests/crash/test_mapped_faults.py::test_appending_to_a_segment_that_was_cut_while_mapped_is_not_a_signal": [
        "fault_not_caught"
    ],
    "tests/crash/test_corruption.py::test_a_bad_batch_with_good_ones_behind_it_is_named_and_the_rest_is_readable": [
        "batch_checksum_ignored"
    ],
    "tests/crash/test_torn_tail.py::test_of_an_append_of_several_batches_all_go_when_one_is_torn_and_none_follow": [
        "half_append_kept"
    ],
}
CONTROLS = [*CAUGHT_BY.items(), *((bug, test) for test, of_it in OF_OTHER_KINDS.items() for bug in of_it)]
HANGS = {"group_commit_forgets_waiter"}  # the test never ends, and whoever runs it stops it

TABLE: list[str] = []  # what was found out, for the summary of the run


def bugs() -> dict[str, str]:
    """All bugs, with what goes wrong."""
    found = _BUG.findall((ROOT / "csrc" / "control.h").read_text())
    in_c = {name: " ".join(text.replace("\\", " ").split()) for name, text in found}
    return in_c | {name: (bug.__doc__ or "").rstrip(".") for name, bug in PYTHON_BUGS.items()}


def where(bug: str) -> str:
    """The files that have it."""
    if bug in PYTHON_BUGS:
        return "python_controls.py"
    use = f"SC_CONTROL({bug})"
    return ", ".join(path.name for path in sorted((ROOT / "csrc").glob("*.c")) if use in path.read_text())


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run of tests ended. code: as subprocess has it; None: it did not end, and was stopped."""

    code: int | None
    output: str
    seconds: float
    kind: str

    @property
    def passed(self) -> bool:
        """Every test did."""
        return self.code == 0

    @property
    def says(self) -> str:
        """Of a test that failed by what it checks: what it says. Empty when it passed, or fell over something else."""
        if self.code is None:
            return "it does not end"
        lines = self.output.splitlines()
        if self.kind == "C" and self.code == -signal.SIGABRT:
            return next((line.split(": failed: ")[1] for line in lines if ": failed: " in line), "SIGABRT")
        if self.kind == "C" and self.code in (-signal.SIGBUS, -signal.SIGSEGV):
            return signal.Signals(-self.code).name
        if self.kind == "pytest" and self.code == 1 and re.search(r"\b\d+ failed", self.output):
            return next((line[1:].strip() for line in lines if line.startswith("E  ")), "failed")
        if self.kind == "power" and self.code == 1 and "\nagain: " in self.output:
            return self.output.split("\n\nagain: ")[0].splitlines()[-1]
        return ""

    @property
    def skipped(self) -> str:
        """Why a test of pytest did not run here; empty when one did."""
        if self.kind != "pytest" or self.code != 0 or re.search(r"\b\d+ passed", self.output):
            return ""
        return next((line for line in self.output.splitlines() if line.startswith("SKIPPED")), "")


def _environment(bug: str | None, folder: str) -> dict[str, str]:
    ours = ("STREAMCORE_CONTROL", "STREAMCORE_PYTHON_CONTROL", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(BUILD / "python"), str(ROOT)]),
        "PYTHONSAFEPATH": "1",
        "TMPDIR": folder,
        "STREAMCORE_FAULTS": _FAULTS,
    }
    if bug is not None:
        environment["STREAMCORE_PYTHON_CONTROL" if bug in PYTHON_BUGS else "STREAMCORE_CONTROL"] = bug
    return environment


def kind_of(test: str) -> str:
    """What runs it."""
    return "pytest" if test.startswith("tests/") else "power" if test.startswith("power::") else "C"


def _command(kind: str, tests: list[str]) -> list[str]:
    if kind == "pytest":
        return [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *tests]
    program, names = tests[0].split("::")[0], [test.split("::")[1] for test in tests]
    if kind == "power":
        return [sys.executable, "-m", "tests.crash.power", names[0], _SEED, _POINTS]
    return [str(BUILD / "csrc" / "tests" / f"test_{program}"), *names]


def run(tests: list[str], bug: str | None = None, deadline_s: float = DEADLINE_S) -> Outcome:
    """Runs tests, all of one C program or all of pytest, in the build with deliberate bugs: with one, or none."""
    kind = kind_of(tests[0])
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="controls-", dir=memory if kind == "C" and memory.is_dir() else None)
    begun = time.monotonic()
    process = subprocess.Popen(
        _command(kind, tests),
        cwd=folder if kind == "power" else ROOT,  # where it keeps what breaks a promise
        env=_environment(bug, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it has forked ends with it
    )
    try:
        output = process.communicate(timeout=deadline_s)[0]
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        output, code = "", None
    finally:
        _end_group(process)
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(code, output, time.monotonic() - begun, kind)


def _end_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
