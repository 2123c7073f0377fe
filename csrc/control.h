/*
 * Deliberate bugs: what tests are tested with. A build with STREAMCORE_CONTROLS has them all, and the environment
 * variable STREAMCORE_CONTROL names the one that a process shall have; tests/crash/controls.py says which test must
 * fail then. Any other build has none: SC_CONTROL is the constant false there, and its branch is not compiled.
 *
 * Nothing to do with control batches.
 */
#ifndef STREAMCORE_CONTROL_H
#define STREAMCORE_CONTROL_H

#include <stdbool.h>

/* Each with what goes wrong. */
#define SC_CONTROLS(BUG)                                                                                               \
    /* appends */                                                                                                      \
    BUG(acknowledge_before_sync)     /* a durable append returns before the sync that covers it */                     \
    BUG(end_published_before_bytes)  /* readers are told of a new end, then the bytes are stored */                    \
    BUG(first_opening_not_last)      /* a live file shows the first part of an append that goes on */                  \
    BUG(expected_offset_ignored)     /* an append is made whose caller expected another end of the log */              \
    BUG(unfinished_append_not_told)  /* what it has stored whole is found by the next append alone */                  \
    BUG(unfinished_append_left)      /* what a writer that died has half stored is appended over */                    \
    BUG(space_not_reserved)          /* a full disk is noticed by the stores, not before them */                       \
    BUG(roll_leaks_descriptor)       /* each new segment leaves a descriptor open */                                   \
    BUG(batch_across_old_length)     /* a batch lies across a length that the file once had */                         \
    BUG(short_write_believed)        /* a write that wrote a part counts as whole */                                   \
    BUG(deleted_topic_takes_appends) /* an append to a topic that another process has deleted is made */               \
    /* locks and published state */                                                                                    \
    BUG(partition_not_locked)       /* processes append to a partition at once */                                      \
    BUG(lock_outlives_its_process)  /* a forked child keeps the locks of its parent */                                 \
    BUG(fork_not_noticed)           /* a handle from before a fork is used in the child */                             \
    BUG(stale_state_believed)       /* the state file is believed when no writer has the topic open */                 \
    BUG(new_state_not_synced)       /* the file that tells of power losses may be lost with the power itself */        \
    BUG(tail_read_torn)             /* half of one tail, half of the next */                                           \
    BUG(boot_of_others_overwritten) /* a session that did not use a partition hides a power loss from the next */      \
    /* syncs */                                                                                                        \
    BUG(folder_not_synced)         /* the names of new segments are not made durable */                                \
    BUG(topic_folder_not_synced)   /* the folder of a new partition is not made durable in its topic */                \
    BUG(sealed_segment_not_synced) /* a flush behind a roll syncs the active segment alone */                          \
    BUG(failed_sync_retried)       /* a failed fsync leaves no trace: the next one is believed */                      \
    BUG(durable_beyond_sync)       /* what was appended while a sync ran is called durable */                          \
    BUG(durable_though_poisoned)   /* a sync that another process was told the failure of counts */                    \
    BUG(note_promises_too_much)    /* the log notes that it is durable to its end when it is not */                    \
    BUG(waiters_covered_too_early) /* a sync acknowledges appends that came too late for it */                         \
    BUG(sealed_file_cut_too_far)   /* the tail of a sealed segment is cut in the middle of its last page */            \
    BUG(closed_file_cut_too_far)   /* closing cuts the active segment in the middle of its last page */                \
    /* recovery */                                                                                                     \
    BUG(tail_not_checked)                /* recovery believes headers, and does not look at what they cover */         \
    BUG(durable_offset_forgotten)        /* headers do not say how far the log was durable */                          \
    BUG(power_loss_not_noticed)          /* lost sectors are taken for damage */                                       \
    BUG(damage_cut_as_torn_tail)         /* damage with good batches behind it ends the log */                         \
    BUG(appended_behind_damage)          /* an append goes into the file that has the damage before it */              \
    BUG(half_append_kept)                /* of an append of several batches the first ones stay */                     \
    BUG(tail_not_cleared)                /* what was cut is not zeroed, and comes back */                              \
    BUG(lost_start_kept)                 /* a deletion whose note was cut counts until the log is opened again */      \
    BUG(cut_not_synced)                  /* what was cut is zeroed, but that is not synced */                          \
    BUG(lost_segment_kept)               /* segments behind a cut are not removed */                                   \
    BUG(synced_segment_removed)          /* a segment whose schema was damaged is taken for an unfinished one */       \
    BUG(stable_offset_of_recovery_wrong) /* recovery takes all that it finds for decided */                            \
    /* checksums, mapped reads, replaced files */                                                                      \
    BUG(batch_checksum_ignored)            /* a body that does not match its checksum is good */                       \
    BUG(header_checksum_ignored)           /* a header that does not match its checksum is good */                     \
    BUG(damage_verified_once)              /* a batch that was found damaged is good the next time */                  \
    BUG(fault_not_caught)                  /* a read error on a mapped page ends the process */                        \
    BUG(mapping_not_retained)              /* arrays that were handed out do not keep their file mapped */             \
    BUG(replaced_file_not_noticed)         /* who knows the old file of a segment takes the new one for it */          \
    BUG(segment_of_another_partition_read) /* a segment that lies in the folder of another partition is read */        \
    BUG(rewrites_not_counted)              /* other processes are not told that a segment was replaced */              \
    /* the index */                                                                                                    \
    BUG(index_entry_believed)      /* an entry is not compared with the batch that it points to */                     \
    BUG(index_of_another_believed) /* the index of another segment, or a damaged one, is taken */                      \
    BUG(wrong_time_bound)          /* the latest time of a segment is that of its last batch */                        \
    BUG(old_index_kept)            /* a replaced segment keeps the index of the old one */                             \
    /* the journal */                                                                                                  \
    BUG(journal_not_synced)          /* what is in the journal alone is acknowledged before its sync */                \
    BUG(journal_name_not_synced)     /* the name of a new journal is not made durable */                               \
    BUG(journal_covers_poisoned)     /* a sync of the journal makes a partition durable whose own sync had failed */   \
    BUG(checkpoint_syncs_nothing)    /* the journal is emptied, and segments were not synced */                        \
    BUG(failed_journal_sync_retried) /* a failed sync of the journal leaves no trace */                                \
    BUG(replay_skips_last_record)    /* the last record of the journal is not written into its segments */             \
    BUG(replay_not_synced)           /* the journal is emptied before what was replayed is durable */                  \
    BUG(replay_without_anchor)       /* records are written into a file that is not the one they are of */             \
    BUG(emptied_journal_replayed)    /* records of before the journal was emptied count */                             \
    /* producers and transactions */                                                                                   \
    BUG(duplicate_not_recognised)         /* a repeated append is made a second time */                                \
    BUG(sequence_gap_accepted)            /* an append that comes too early is made */                                 \
    BUG(fenced_producer_accepted)         /* a zombie's append is made */                                              \
    BUG(snapshot_of_cut_log_believed)     /* sequences of records that a power loss took count */                      \
    BUG(rewritten_producers_ignored)      /* what a rewritten segment says of producers is not read */                 \
    BUG(head_not_synced)                  /* a segment that begins with producers has its name before it is durable */ \
    BUG(head_not_read)                    /* what a log begins with is not asked for before its first record */        \
    BUG(head_dropped_by_new_schema)       /* a segment of a new schema does not say what the old one began with */     \
    BUG(producers_beyond_offset)          /* producers as of an offset include what they appended behind it */         \
    BUG(open_transaction_expires)         /* a producer with an open transaction is forgotten when it is idle */       \
    BUG(retry_takes_a_new_sequence)       /* a batch that is tried again is another one to the log */                  \
    BUG(stable_beyond_open)               /* the last stable offset moves past an open transaction */                  \
    BUG(aborted_records_shown)            /* committed readers get what was aborted */                                 \
    BUG(undecided_records_shown)          /* committed readers get what is not decided */                              \
    BUG(abort_marker_commits)             /* the marker of an abort says commit */                                     \
    BUG(aborted_list_of_another_believed) /* the list of aborted transactions of another segment, or a damaged one, is \
                                             taken */                                                                  \
    /* retention, compaction, consolidation */                                                                         \
    BUG(unlinked_before_noted)  /* segments go before the raised start offset is durable */                            \
    BUG(start_offset_forgotten) /* headers do not say where the log begins */                                          \
    BUG(deleted_records_read)   /* a scan gets records below the start of the log, as long as their file is there */   \
    BUG(newest_of_key_dropped)  /* compaction drops a key's last record */                                             \
    BUG(older_of_key_kept)      /* compaction keeps a record that a later one replaced */                              \
    BUG(tombstone_dropped_too_early) /* compaction drops a tombstone before its time */                                \
    BUG(row_lost_at_batch_border)    /* consolidation loses the last row of each batch that it fills */                \
    BUG(rewritten_not_synced)        /* a new file takes its name before it is durable */                              \
    BUG(rewritten_name_not_synced)   /* a rewriting is told before the new name is durable */                          \
    BUG(undecided_segment_rewritten) /* a segment with an open transaction is rewritten */                             \
    BUG(damage_rewritten)            /* rewriting does not look at checksums, and gives damaged records new ones */    \
    BUG(rewrite_undeletes)           /* a segment whose records were deleted meanwhile is put back */                  \
    BUG(dropped_producers_forgotten) /* a rewritten segment does not say what its headers said of producers */         \
    BUG(producers_checksum_ignored)  /* what is kept of producers is believed, whatever its checksum says */           \
    BUG(latest_put_of_key_kept)      /* the map of keys has the offset that was put last, not the greatest */          \
    /* waiting */                                                                                                      \
    BUG(wake_up_lost)                /* what rang between looking and sleeping does not end the sleep */               \
    BUG(sleep_not_announced)         /* a sleeper does not say that it sleeps, so nobody wakes it */                   \
    BUG(bell_not_rung)               /* nobody wakes who sleeps */                                                     \
    BUG(closing_wakes_nobody)        /* who waits for a topic sleeps on when it is closed */                           \
    BUG(group_commit_forgets_waiter) /* who came too late for a sync is not told to lead the next */                   \
    /* Arrow */                                                                                                        \
    BUG(arrow_offsets_not_checked)  /* offsets that go back are believed */                                            \
    BUG(arrow_views_not_checked)    /* views that point outside their buffers are believed */                          \
    BUG(arrow_shape_not_checked)    /* an array of another type's shape is read */                                     \
    BUG(stored_buffers_not_checked) /* a buffer that lies outside its batch is exported */                             \
    BUG(metadata_not_checked)       /* places in a flatbuffer are believed */                                          \
    BUG(earlier_records_not_valid)  /* the first null of a sent batch makes records before it null */

#if defined(STREAMCORE_CONTROLS)

enum { SC_HAS_CONTROLS = 1 };
#define SC_CONTROL_ENTRY(name) sc_control_##name,
enum sc_control { SC_CONTROLS(SC_CONTROL_ENTRY) SC_CONTROLS_END };
#undef SC_CONTROL_ENTRY

bool sc_control_is_chosen(enum sc_control bug);
#define SC_CONTROL(name) sc_control_is_chosen(sc_control_##name)

#else

enum { SC_HAS_CONTROLS = 0 };
#define SC_CONTROL(name) false

#endif
#endif
