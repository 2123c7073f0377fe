/* What an append is made of, in three files: append.c (the order that makes it safe), writer.c (the active segment as a
 * place to write to, and new segments), marker.c (what ends a transaction). The caller holds the partition's lock.
 * Internal. */
#ifndef STREAMCORE_APPEND_H
#define STREAMCORE_APPEND_H

#include "encode.h"
#include "topic.h"

typedef struct sc_append_state {
    sc_partition *partition;
    const sc_append *request;
    const sc_layout *layout;
    sc_topic_settings settings;
    sc_slot *slot;
    sc_tail tail;
    sc_encoding *encodings;
    int64_t total_size, record_count; /* count of offsets, of a marker 1 */
    int64_t stable_offset;            /* when it is made */
    uint16_t control;                 /* of a marker */
    int64_t transaction_offset;       /* of a marker */
    const sc_producer_state *head;    /* what a new segment says of producers before its first record; NULL: nothing */
} sc_append_state;

static inline int64_t sc_round_up(int64_t size, int64_t to)
{
    return (size + to - 1) / to * to;
}

/* ---- writer.c ---- */

int sc_append_segment_path(const sc_partition *partition, int64_t base_offset, const char *ending, char *path,
                           sc_error *error);
/* Maps the active segment for writing up to `needed`, or beyond. */
int sc_append_open_writer(sc_append_state *self, int64_t needed, sc_error *error);
/* Reserves disk space up to `needed`, or more; just enough when more is too much. */
int sc_append_allocate(sc_append_state *self, int64_t needed, sc_error *error);
/* Maps pages ahead of the stores. */
void sc_append_populate(sc_append_state *self, int64_t end);
/* Stores through the writer's mapping; a page that cannot be had is an error and not a signal. */
int sc_append_store_guarded(sc_append_state *self, void (*store)(void *), void *context, sc_error *error);
/* Where the append will lie in the active segment. */
int64_t sc_append_place_of(const sc_append_state *self);
int sc_append_create_segment(sc_append_state *self, sc_error *error);
/* Writes the end marker: nothing is appended to this file again. */
int sc_append_seal_segment(sc_append_state *self, sc_error *error);
/* Rolls when it is time to, and makes the first segment. */
int sc_append_ensure_segment(sc_append_state *self, sc_error *error);

/* ---- append.c ---- */

/* Whether the partition may be appended to at all, and by who knows the topic's settings. */
int sc_append_check_slot(sc_append_state *self, sc_error *error);
/* Takes the tail, after repairs when somebody died in the middle of an append. */
int sc_append_find_end(sc_append_state *self, sc_error *error);
int sc_append_check_room(const sc_append_state *self, sc_error *error);
/* Stores the batches at the end of the log, which is known, and publishes them. */
int sc_append_write_locked(sc_append_state *self, sc_error *error);
/* After the lock is given up: notes that there is something to flush, and wakes who waits for it. */
void sc_append_tell(sc_partition *partition);

#endif
