/* A topic and its partitions in memory. Internal. */
#ifndef STREAMCORE_TOPIC_H
#define STREAMCORE_TOPIC_H

#include <pthread.h>
#include <stdatomic.h>

#include "counters.h"
#include "encode.h"
#include "producer_state.h"
#include "journal.h"
#include "segment.h"
#include "state.h"

/* Where an append stores: the active segment mapped for writing. */
typedef struct sc_writer {
    uint8_t *data; /* NULL: none, and then there is no descriptor either */
    int fd;        /* -1: too many are open, it is opened when needed */
    int64_t size, base_offset;
    int64_t file_number; /* of the tail, when it was mapped */
    int64_t populated;   /* pages below this position are mapped already */
    int64_t window;      /* how far ahead to map next: grows while data streams in, shrinks with each sync */
    bool journaled;      /* the last sync was one of the journal */
} sc_writer;

/* How far a segment is known to be durable, in itself or in the journal. */
typedef struct sc_safe_end {
    int64_t segment_base, file_number; /* as in the tail */
    int64_t position;                  /* 0: not known */
    int64_t offset;
    int64_t anchor_position; /* of the last batch before it; 0: not looked up yet */
    uint32_t anchor_crc;     /* of that batch's header */
} sc_safe_end;

/* A thread that waits for a sync; it lies on that thread's stack. */
typedef struct sc_sync_waiter {
    struct sc_sync_waiter *next;
    int64_t offset;        /* everything below it must be durable */
    _Atomic uint32_t told; /* set once, when the waiter is out of the list (flush.c) */
} sc_sync_waiter;

typedef struct sc_partition {
    sc_topic *topic;
    uint32_t number;
    pthread_mutex_t append_mutex; /* one append, roll or repair at a time in this process; then the file lock */
    sc_writer writer;             /* behind append_mutex */
    sc_producer_state *producers; /* behind append_mutex; NULL: nobody has asked yet */
    pthread_mutex_t list_mutex;
    sc_segment **segments; /* oldest first; behind list_mutex */
    int64_t segment_count;
    bool listed;
    uint32_t rewrites;     /* of the slot, when the list was read; behind list_mutex */
    atomic_bool rewriting; /* a thread of this process rewrites a segment */
    pthread_mutex_t sync_mutex;
    bool syncing;                 /* somebody leads; behind sync_mutex */
    sc_sync_waiter *sync_waiters; /* newest first; behind sync_mutex */
    sc_safe_end safe;             /* behind sync_mutex */
    atomic_bool unflushed;        /* this handle appended, or recovered, since it last flushed */
    atomic_bool unnoted;          /* the log does not say yet that what this handle appended or recovered is durable */
    sc_partition_counts counts;
    atomic_bool touched; /* this handle appended or recovered: it flushes and trims when it closes */
} sc_partition;

/* Memory in which large batches are laid out: one piece is kept from append to append. */
typedef struct sc_scratch {
    int64_t size;
    uint8_t *data;
} sc_scratch;

struct sc_topic {
    atomic_long references;
    _Atomic(sc_scratch *) scratch; /* NULL: none, or in use */
    char path[SC_PATH_MAX];
    char name[SC_JOURNAL_NAME_MAX]; /* of the folder, in the journal */
    sc_journal *journal;            /* NULL: each partition is synced by itself */
    sc_run *runs;                   /* in the journal, which nobody has replayed; NULL: none, or opened for writing */
    bool writable;
    uint32_t fork_generation;
    atomic_long users;
    atomic_bool closing;
    atomic_bool found_unflushed; /* recovery found data that may not be on the drive, and nobody asked since */
    bool closed;
    pthread_mutex_t mutex; /* closing, settings, adding partitions and layouts */
    pthread_cond_t left;
    sc_topic_settings settings;
    sc_state state;
    _Atomic(sc_layout *) layouts; /* newest first; freed with the topic */
    _Atomic(sc_partition *) *partitions;
    _Atomic int64_t scanned_batches, scanned_rows, scanned_bytes, verified_bytes; /* of scans that have ended */
};

int sc_topic_enter(sc_topic *topic, sc_error *error);
void sc_topic_leave(sc_topic *topic);
sc_topic_settings sc_topic_settings_read(sc_topic *topic);
int sc_topic_partition(sc_topic *topic, uint32_t number, sc_partition **partition, sc_error *error);
const sc_layout *sc_topic_layout(sc_topic *topic, uint32_t schema_version);

/* ---- partition.c: the segments of a partition and their order ---- */

void sc_partition_free(sc_partition *partition);
int sc_partition_folder(const sc_partition *partition, char *folder, sc_error *error);
/* Takes, and gives back, the right to change the log: the mutex, then the lock that other processes see. */
int sc_partition_lock(sc_partition *partition, sc_error *error);
void sc_partition_unlock(sc_partition *partition);
/* Where the log ends now; looks at the log itself when nobody has published it. */
int sc_partition_tail(sc_partition *partition, sc_tail *tail, sc_error *error);
/* Reads the folder again. */
int sc_partition_list(sc_partition *partition, sc_error *error);
/* The segment that holds `offset` when the log has it, and the base of the one behind it (-1: it is the last), retained
 * for the caller; NULL when every segment begins behind `offset`. */
int sc_partition_find(sc_partition *partition, const sc_tail *tail, int64_t offset, sc_segment **segment,
                      int64_t *next_base, sc_error *error);
/* Maps a segment: the active one as far as it may grow, so that one mapping serves its life. SC_STALE: the tail, or the
 * segment object, is not of the file that has the name now; then a new tail, and sc_partition_find, give what is. */
int sc_partition_map(sc_partition *partition, sc_segment *segment, const sc_tail *tail, sc_mapping **mapping,
                     sc_error *error);
/* The same of a segment that was found in the folder, and not by a tail. */
int sc_partition_map_found(sc_partition *partition, sc_segment *segment, bool active, sc_mapping **mapping,
                           sc_error *error);
/* Finds the segment that holds `offset` and maps it, until both fit; the tail becomes a newer one when it must.
 * *segment is as sc_partition_find says, also when it cannot be mapped. */
int sc_partition_open(sc_partition *partition, sc_tail *tail, int64_t offset, sc_segment **segment, int64_t *next_base,
                      sc_mapping **mapping, sc_error *error);
/* Where the batches end in the mapping of a segment, at the latest. */
static inline int64_t sc_tail_end_in(const sc_tail *tail, const sc_segment *segment, const sc_mapping *mapping)
{
    return segment->base_offset == tail->segment_base ? tail->end_position : sc_mapping_reach(mapping);
}
/* As sc_segment_summarize of a sealed segment, or with `size` of the active one. `mend`: keeps what was learnt in the
 * index. SC_STALE: as sc_partition_map. */
int sc_partition_summarize(sc_partition *partition, sc_segment *segment, int64_t size, int64_t end_offset, bool mend,
                           sc_summary *summary, sc_error *error);
/* Forgets a segment object, so that the file of that name is opened anew. */
void sc_partition_forget(sc_partition *partition, int64_t base_offset);
int sc_partition_add_segment(sc_partition *partition, int64_t previous_base, int64_t base_offset, sc_error *error);
void sc_partition_drop_after(sc_partition *partition, int64_t count);
/* Takes the segments that lie wholly below `offset`, but never the last one, out of the list, which is read anew. They
 * are retained for the caller, who frees the array. */
int sc_partition_take_below(sc_partition *partition, int64_t offset, sc_segment ***segments, int64_t *count,
                            sc_error *error);
/* Whether the records up to `end_offset` were deleted since: then a file that is missing is no damage. */
bool sc_partition_is_deleted_below(sc_partition *partition, int64_t end_offset);

/* ---- recover.c ---- */

/* Finds the end of the log in the log. With `repair`, under the partition's lock, also cuts what a crash left. Without,
 * a writer may come meanwhile, and then the result is worth nothing (sc_partition_tail). */
int sc_partition_recover(sc_partition *partition, bool repair, sc_tail *tail, sc_error *error);

/* ---- catch_up.c ---- */

/* Brings the partition's producer state up to the end of the log. The caller holds the partition's lock. */
int sc_partition_catch_up(sc_partition *partition, const sc_tail *tail, sc_error *error);
/* Saves the producer state, if there is much to save, or with `now` if there is anything: a hint. The caller holds the
 * partition's lock. */
void sc_partition_save_producers(sc_partition *partition, const sc_tail *tail, bool now);

/* For who rewrites segments: the size of a SC_CONTROL_PRODUCERS batch with this state, and the whole message, opening
 * included, written to `at`. `placement` says its offsets; it should carry the unstable count that the last header had.
 */
int64_t sc_producers_batch_size(const sc_layout *layout, const sc_producer_state *state);
int sc_producers_batch_write(const sc_layout *layout, const sc_producer_state *state, const sc_placement *placement,
                             uint8_t *at, sc_error *error);

/* ---- flush.c ---- */

/* A sync has failed, errno says why: appends are refused from now on, in every process. SC_OS. */
int sc_partition_poison(sc_partition *partition, const char *what, const char *path, sc_error *error);
/* A folder that cannot be opened was not synced: that can be done later. A sync that fails poisons the partition. */
int sc_partition_sync_folder(sc_partition *partition, const char *what, const char *path, sc_error *error);
/* Syncs the segments, and publishes how far the log is durable. */
int sc_partition_sync(sc_partition *partition, sc_error *error);
/* Returns when everything below `offset` is durable; together with other partitions when there is a journal. */
int sc_partition_wait_durable(sc_partition *partition, int64_t offset, sc_error *error);
/* Syncs the active segment and the names in the folder, also when all of the log is durable. */
int sc_partition_sync_active(sc_partition *partition, const sc_tail *tail, sc_error *error);
/* Syncs a sealed segment that nothing was appended behind yet, and finishes it as the next flush would. */
int sc_partition_sync_sealed(sc_partition *partition, const sc_tail *tail, int64_t base_offset, sc_error *error);
/* At the end of a handle's use: flushes, and gives preallocated space back. */
int sc_partition_trim(sc_partition *partition, sc_error *error);
/* When all of the log is durable, notes that in the log. */
int sc_partition_note_durable(sc_partition *partition, sc_error *error);

/* ---- append.c ---- */

void sc_writer_close(sc_writer *writer);
/* Notes at the end of the log, in a batch without records, that all of it is durable, if it is and the log does not say
 * so: what is damaged later is then no torn tail. The caller holds the partition's lock. Failures are passed over. */
void sc_partition_append_note(sc_partition *partition, sc_slot *slot, sc_tail *tail);
/* Puts a batch without records at the end of the log, whose header has the tail's offsets. The active segment is there
 * and not sealed; the caller holds the lock. */
int sc_partition_append_empty(sc_partition *partition, sc_tail *tail, sc_error *error);
/* Where the log ends, repaired first when a writer died in an append. The caller holds the lock. */
int sc_partition_locked_tail(sc_partition *partition, sc_tail *tail, sc_error *error);
/* Seals the active segment and makes a new one. The active one has records; the caller holds the lock. */
int sc_partition_roll_locked(sc_partition *partition, sc_tail *tail, sc_error *error);
/* Makes the first segment, which says of producers what `head` does (NULL: nothing). The caller holds the lock. */
int sc_partition_begin_segment(sc_partition *partition, sc_tail *tail, const sc_producer_state *head, sc_error *error);
/* The bytes that stay free behind the end of a live log, for a batch without records. */
int64_t sc_partition_reserve(const sc_partition *partition, const sc_tail *tail);
void sc_scratch_free(sc_scratch *scratch);

#endif
