/*
 * Records on their way to the log: what a producer was given, one at a time, becomes batches in Arrow's layout in
 * memory, and one worker thread appends them.
 *
 *   add    lays a record at the end of the open batch of its partition. Any thread; no system call but the clock's
 *   seal   a batch is due when it is full, when it is linger_ms old, when a flush asks for it, when memory runs out, or
 *          at the close. It is then closed to records, and the next one opens when there is a record for it
 *   append by the worker, batch by batch. Of one partition in order: a batch that must be tried again holds up those
 *          behind it, and nobody else
 *   finish the worker has told who wanted to know; the memory serves the next batch
 *
 * Memory: all that the batches hold, and what is kept for the next ones, stays below buffer_bytes; `add` then answers
 * SC_END. Policy (what is tried again, for how long, who is told) is the caller's.
 *
 * One mutex guards the whole; the worker holds it to take and to finish a batch, never while it appends.
 */
#ifndef STREAMCORE_SEND_BUFFER_H
#define STREAMCORE_SEND_BUFFER_H

#include "streamcore.h"

typedef struct sc_send_buffer sc_send_buffer;
typedef struct sc_send_topic sc_send_topic;
typedef struct sc_send_lane sc_send_lane;

enum {
    SC_SEND_BATCH_BYTES_MAX = 1 << 30,
    SC_SEND_BATCH_ROWS_MAX = 1 << 16,
    SC_SEND_RECORD_OVERHEAD = 24,  /* of a record in a batch, beside its bytes */
    SC_SEND_MEMORY_MIN = 16 << 10, /* what a batch of one record may take beside its bytes */
};

typedef struct sc_send_options {
    int64_t linger_ms, batch_bytes, buffer_bytes;
} sc_send_options;

/* What is known of a topic. */
typedef struct sc_send_plan {
    uint32_t partitions, schema_version, generation;
    int64_t max_record_bytes;
    bool native;          /* the worker appends its batches here; else they are handed to its caller */
    bool log_append_time; /* records take the time at which their batch is appended */
    bool durable;
    bool needs_key; /* records without a key are refused: the topic is compacted */
} sc_send_plan;

typedef struct sc_send_header {
    sc_bytes key, value;
} sc_send_header;

typedef struct sc_send_record {
    sc_bytes key, value;
    const sc_send_header *headers;
    int32_t header_count;
    bool has_timestamp; /* else the time is that of the call */
    int64_t timestamp;
    int64_t partition;    /* -1: by key, or without one the topic's partition of the moment (KIP-480) */
    void *object;         /* instead of a value: kept for whoever appends the batch, and freed by nobody here */
    int64_t object_bytes; /* what it takes, about */
    void *tag;            /* kept with the row, for whoever finishes the batch; NULL: none */
} sc_send_record;

/* Memory that grows. */
typedef struct sc_send_memory {
    uint8_t *data;
    int64_t capacity;
} sc_send_memory;

/* A column of bytes in Arrow's layout. Without `present` every row is null and nothing is stored. */
typedef struct sc_send_column {
    bool present;
    int64_t count, nulls, size;
    sc_send_memory validity, ends, data;
} sc_send_column;

typedef struct sc_send_tag {
    int64_t row;
    void *tag;
} sc_send_tag;

typedef struct sc_send_batch {
    sc_send_lane *lane;
    sc_send_topic *topic;
    uint32_t partition;
    int64_t number; /* counts batches in the order in which they were opened */
    int64_t count, bytes;
    int64_t opened_ns; /* monotonic */
    int32_t sequence;  /* of its first record; the same at each attempt */
    int64_t attempts;
    int64_t first_offset, end_offset; /* -1: it is not in the log, as far as is known */
    sc_error error;                   /* code SC_OK, or why the last attempt failed */

    sc_send_column key, value, header_key, header_value;
    sc_send_column headers; /* of which only validity and ends are used: ends into the two above */
    sc_send_memory timestamps, tags, objects;
    int64_t tag_count;
    bool has_objects;

    /* Internal. */
    struct sc_send_batch *next;          /* in ready, held, unsynced, told, or spare */
    struct sc_send_batch *older, *newer; /* in the list of unfinished ones */
    struct sc_send_batch *older_open, *newer_open;
    bool open, has_sequence, retrying;
    int64_t memory, object_bytes;
    int64_t retry_ns;
} sc_send_batch;

int sc_send_buffer_new(const sc_send_options *options, sc_send_buffer **buffer, sc_error *error);
/* With everything in it. Tags and objects of batches that are left must have been taken: see sc_send_buffer_take_left.
 */
void sc_send_buffer_free(sc_send_buffer *buffer);
/* Whether it belongs to the parent of this process. */
bool sc_send_buffer_is_forked(const sc_send_buffer *buffer);
/* Who appends, stamped into the batches together with a sequence per partition (KIP-98). */
void sc_send_buffer_identify(sc_send_buffer *buffer, int64_t producer_id, int16_t epoch);
int64_t sc_send_buffer_producer_id(sc_send_buffer *buffer);

/* A topic to send to. It lives as long as the buffer, which borrows `topic`; `context` is the caller's. */
int sc_send_buffer_add_topic(sc_send_buffer *buffer, sc_topic *topic, const sc_send_plan *plan, void *context,
                             sc_send_topic **added, sc_error *error);
/* Takes a changed plan; the number of partitions only grows. */
int sc_send_topic_plan(sc_send_topic *topic, const sc_send_plan *plan, sc_error *error);
void *sc_send_topic_context(const sc_send_topic *topic);
/* True, once, when something was appended here since it was last asked. */
bool sc_send_topic_take_appended(sc_send_topic *topic);
int32_t sc_send_topic_next_sequence(sc_send_topic *topic, uint32_t partition);

/* SC_OK; SC_END: there is no room now; SC_STALE: the topic's settings changed, or it was deleted; SC_TOO_LARGE,
 * SC_RANGE (no such partition), SC_INVALID (no key where one is needed), SC_CLOSED, SC_FORKED, SC_MEMORY. Unless it is
 * SC_OK nothing was taken. */
int sc_send_buffer_add(sc_send_buffer *buffer, sc_send_topic *topic, const sc_send_record *record, sc_error *error);
/* Waits until there may be room for a record of `bytes`: SC_OK, SC_END when the time is over, SC_CLOSED. What is open
 * is due while somebody waits. */
int sc_send_buffer_wait_room(sc_send_buffer *buffer, int64_t bytes, int64_t timeout_ms);
/* Has the worker come back to its caller when a batch was finished: somebody who cannot block waits for room. */
void sc_send_buffer_ask_room(sc_send_buffer *buffer);

/* Makes everything that was added due; the number is for sc_send_buffer_wait_flushed. */
int64_t sc_send_buffer_flush(sc_send_buffer *buffer);
/* Waits until all batches up to that number are finished; false when the time is over. timeout_ms < 0: for ever. */
bool sc_send_buffer_wait_flushed(sc_send_buffer *buffer, int64_t number, int64_t timeout_ms);
/* No more records are taken, and everything is due. */
void sc_send_buffer_close(sc_send_buffer *buffer);
/* Bytes of memory that the batches hold, and kept for the next ones. */
int64_t sc_send_buffer_memory(sc_send_buffer *buffer);
/* Batches that are not finished. */
int64_t sc_send_buffer_unfinished(sc_send_buffer *buffer);

/* ---- the worker: one thread --------------------------------------------------------------------------------- */

/* Appends what is due and waits for more. Returns a batch that its caller must see to, or NULL from time to time when
 * something was appended, when somebody asked for room, and with *closed when all is done after the close.
 *   a batch with error.code SC_OK and first_offset >= 0 is in the log as was asked: its tags want to be told
 *   one with an error was tried: with first_offset >= 0 it is in the log, but not durable
 *   one with neither belongs to a topic that is not native
 * The caller then calls one of finish and retry. */
sc_send_batch *sc_send_buffer_work(sc_send_buffer *buffer, bool *closed);
/* Notes that the caller appended the batch by itself. */
void sc_send_batch_appended(sc_send_batch *batch, int64_t first_offset, int64_t end_offset);
/* The batch is done with, in the log or given up. */
void sc_send_buffer_finish(sc_send_buffer *buffer, sc_send_batch *batch);
/* The batch will be tried again, and those of its partition behind it wait. */
void sc_send_buffer_retry(sc_send_buffer *buffer, sc_send_batch *batch, int64_t delay_ms);
/* After the end of the worker: a batch that nobody appended, or NULL. It counts as finished, and is freed by the next
 * call. */
sc_send_batch *sc_send_buffer_take_left(sc_send_buffer *buffer);

/* The batch as an append takes it; the arrays live in `arrays`, the bytes in the batch. Not for objects. */
typedef struct sc_send_arrays {
    struct ArrowArray key, value, headers, entry, header_key, header_value;
    const void *buffers[6][3];
    struct ArrowArray *entries[1], *pair[2];
} sc_send_arrays;
void sc_send_batch_input(const sc_send_batch *batch, bool log_append_time, sc_send_arrays *arrays,
                         sc_batch_input *input);
const sc_send_tag *sc_send_batch_tags(const sc_send_batch *batch);
void *const *sc_send_batch_objects(const sc_send_batch *batch);
sc_producer sc_send_batch_producer(const sc_send_buffer *buffer, const sc_send_batch *batch);

#endif
