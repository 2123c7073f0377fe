/*
 * streamcore: a crash-safe, columnar event log in files that are Arrow IPC streams.
 *
 * This header is the manual of the C core. It knows bytes, files, offsets and locks; it knows no Python, no
 * policy and no network. docs/format.md describes the files byte by byte.
 *
 * CONCEPTS
 *   topic       a folder `<topic>-<id>` with a `state` file and one folder per partition
 *   partition   an ordered log: segment files, each named by the offset of its first record
 *   segment     an Arrow IPC stream: a schema message, then record batch messages, then zeros (live) or the
 *               end marker (sealed)
 *   batch       one record batch message whose body opens with the 128-byte batch header (batch.h)
 *   layout      a compiled schema: what the C code must know of an Arrow schema to write and read its batches
 *   scan        a bounded read of one or many partitions, batch by batch, without copying
 *
 * LIFETIME
 *   What a scan hands out points into the mapped segment and keeps that mapping alive by a reference count,
 *   past the scan, past the topic, past the deletion of the file. Nothing else keeps it alive: release it.
 *
 * THREADS
 *   Every function may be called from any thread on any object, except that one sc_scan belongs to one thread
 *   at a time. Appends to one partition exclude each other; scans take no lock that an append holds while it
 *   copies. sc_topic_close waits for the calls in flight and makes later ones return SC_CLOSED.
 *
 * PROCESSES
 *   Any number of processes may open one topic. Appends take a byte-range lock of the topic's `state` file (one
 *   byte per partition, F_OFD_SETLK), which the kernel drops when its holder dies, so a killed writer blocks
 *   nobody. The end offset is published in the mapped `state` file after the bytes. Who opens a topic for
 *   writing when nobody else has it open distrusts `state` and finds the end of each log in the log itself, on
 *   first use of each partition.
 *
 * FORK
 *   A handle belongs to the process that opened it. In a forked child every call returns SC_FORKED, and the
 *   descriptors that carry locks are closed there, so that a child cannot hold its parent's locks.
 *
 * FAILURE
 *   Functions return SC_OK, SC_END, or an error, and then fill `error`. A failed append has written nothing that
 *   anyone can see. After a failed sync the partition is poisoned: the kernel may have dropped the pages, so
 *   appends are refused (SC_POISONED) until every process has closed the topic and one has opened it again.
 */
#ifndef STREAMCORE_H
#define STREAMCORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arrow_abi.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SC_OK = 0,
    SC_END = 1,        /* a scan has no more batches; a wait timed out */
    SC_OS = -1,        /* a system call failed: error->number is errno, error->path the file */
    SC_CORRUPT = -2,   /* bytes are not what their checksum or the format says */
    SC_FORMAT = -3,    /* a segment of another format, topic or schema than the topic's */
    SC_RANGE = -4,     /* an offset outside the log: error->offset is the first, error->position the end of it */
    SC_TOO_LARGE = -5, /* a batch or record above its limit */
    SC_INVALID = -6,   /* an argument or an Arrow array that cannot be stored */
    SC_READ_ONLY = -7, /* the topic was opened for reading */
    SC_POISONED = -8,  /* a sync failed earlier: see FAILURE above */
    SC_CLOSED = -9,
    SC_FORKED = -10,
    SC_DELETED = -11,  /* the topic was deleted, perhaps by another process */
    SC_CONFLICT = -12, /* the end offset is not the expected one */
    SC_STALE = -13,    /* the topic's settings changed: read them again */
    SC_MEMORY = -14,
    SC_FENCED = -15,   /* the producer's epoch is over: a newer one has taken its place */
    SC_SEQUENCE = -16, /* the producer's records do not follow those before them, and repeat none of its last appends */
};

enum {
    SC_PATH_MAX = 1024,
    SC_PARTITIONS_MAX = 100000,
    SC_FIELDS_MAX = 4096, /* nodes of a schema, nested ones counted */
    SC_DEPTH_MAX = 64,    /* nesting of a schema */
    SC_ALIGNMENT = 64,    /* of batches, bodies and buffers in the file */
    SC_BATCH_ROWS_MAX = 1 << 28,
};
#define SC_BATCH_BYTES_MAX   ((int64_t)INT32_MAX - 4096)
#define SC_SEGMENT_BYTES_MAX ((int64_t)1 << 41) /* of a file, whatever a topic's segment_bytes: more is damage */

typedef struct sc_error {
    int code;
    int number;       /* errno, or 0 */
    int64_t offset;   /* record offset, or -1 */
    int64_t position; /* byte position in the file, or -1 */
    char path[SC_PATH_MAX];
    char message[256];
} sc_error;

typedef struct sc_layout sc_layout;
typedef struct sc_topic sc_topic;
typedef struct sc_scan sc_scan;
typedef struct sc_tally sc_tally;
typedef struct sc_mapping sc_mapping;
typedef struct sc_journal sc_journal;

/* ---- layouts ----------------------------------------------------------------------------------------------- */

/* Compiles a schema. `schema` is struct<offset, timestamp, key, value, headers> as in docs/format.md; `message` is
 * its encapsulated Arrow IPC schema message, a multiple of 64 bytes, in which the ten digits at
 * `partition_digits_at` are replaced by each partition's number. The layout copies what it needs. */
int sc_layout_new(const struct ArrowSchema *schema, const uint8_t *message, int64_t message_size,
                  int64_t partition_digits_at, uint32_t schema_version, sc_layout **layout, sc_error *error);
void sc_layout_free(sc_layout *layout);
/* True when the value column is plain binary: appends of sc_bytes are possible. */
bool sc_layout_is_plain(const sc_layout *layout);

/* ---- the journal of a store ---------------------------------------------------------------------------------- */

/* Opens the journal of the store in `folder`, whose topics are the folders in `folder`/topics, for writing. The first
 * process to do so writes what an earlier one left there into the segments: this must come before any topic of the
 * store is opened for writing. The file is made when it is needed first. `area`: its bytes for records, 0 for the
 * default. */
int sc_journal_open(const char *folder, int64_t area, sc_journal **journal, sc_error *error);
/* Syncs the segments whose records the journal holds. Call it now and then, so that little is left to do when it is
 * full. */
int sc_journal_checkpoint(sc_journal *journal, sc_error *error);
/* The same, and durably forgets the records. Rewriting does so before a segment file is replaced by another of its
 * name. */
int sc_journal_empty(sc_journal *journal, sc_error *error);
/* True when the journal was found damaged where it had been synced; `damage` says where. */
bool sc_journal_damage(const sc_journal *journal, sc_error *damage);
/* The last process empties it. Close the topics before. */
int sc_journal_close(sc_journal *journal, sc_error *error);
/* Topics that use it keep it. One that was not closed is left as by a process that dies. */
void sc_journal_release(sc_journal *journal);
void sc_journal_retain(sc_journal *journal);

/* ---- topics ------------------------------------------------------------------------------------------------ */

typedef struct sc_topic_settings {
    int64_t segment_bytes;    /* a segment is rolled before it would grow past this */
    int64_t segment_ms;       /* a segment older than this is rolled by the next append; 0: never */
    int64_t max_record_bytes; /* of key + value (plain) */
    uint32_t generation;      /* of these settings; an append with another one than the published gets SC_STALE */
    uint32_t partitions;
    int64_t producer_expiry_ms; /* a producer that is idle this long is forgotten; 0: 7 days */
} sc_topic_settings;

/* Opens the topic in the folder `path`. With `writable` the `state` file is made when absent. */
int sc_topic_open(const char *path, bool writable, const sc_topic_settings *settings, sc_topic **topic,
                  sc_error *error);
/* Gives the topic a compiled schema; it then owns the layout, also on failure. Versions are added in any order. */
int sc_topic_add_layout(sc_topic *topic, sc_layout *layout, sc_error *error);
/* Durable appends to this topic share syncs with others of the store. Before the first append. */
int sc_topic_use_journal(sc_topic *topic, sc_journal *journal, sc_error *error);
/* For a topic that was opened for reading: takes into account what is only in the journal of the store in `folder`,
 * while nobody has opened that for writing since the machine went down. Before the first read. */
int sc_topic_read_journal(sc_topic *topic, const char *folder, sc_error *error);
/* Takes new settings, and publishes their generation to other processes when `publish`. */
int sc_topic_alter(sc_topic *topic, const sc_topic_settings *settings, bool publish, sc_error *error);
/* The generation that is published now: differs from the settings' when another process altered the topic. */
uint32_t sc_topic_generation(sc_topic *topic);
bool sc_topic_is_deleted(sc_topic *topic);
/* Tells every process that the topic is gone: their appends return SC_DELETED. */
int sc_topic_mark_deleted(sc_topic *topic, sc_error *error);
/* Flushes, trims the preallocated tails, writes indexes, gives up locks. Safe to call twice and from two threads. */
int sc_topic_close(sc_topic *topic, sc_error *error);
void sc_topic_free(sc_topic *topic);

/* ---- appends ----------------------------------------------------------------------------------------------- */

typedef struct sc_bytes {
    const uint8_t *data; /* NULL: null */
    int64_t size;
} sc_bytes;

/* Records of one batch. Each column comes as sc_bytes, as an Arrow array, or not at all (all null). */
typedef struct sc_batch_input {
    int64_t count;
    const sc_bytes *keys, *values;                  /* count of each, or NULL */
    const struct ArrowArray *key, *value, *headers; /* types as in the layout, or NULL */
    int64_t first_row;                              /* of this batch in the Arrow arrays */
    const int64_t *timestamps;                      /* count of ms since 1970, or NULL: `timestamp` for all */
    int64_t timestamp;
    const int64_t *offsets; /* of a batch that is rewritten: count of them, ascending; NULL: one after the other */
    const uint8_t *message; /* instead of all above: a compressed Arrow IPC record batch message of all columns */
    int64_t message_size;
    int64_t min_timestamp, max_timestamp; /* of `message` */
    bool has_headers;                     /* of `message` */
} sc_batch_input;

enum { SC_CODEC_NONE = 0, SC_CODEC_LZ4 = 1, SC_CODEC_ZSTD = 2 };
enum { SC_NO_PRODUCER = 0 }; /* ids begin at 1 */

/* Who appends, when that is to be told apart: Apache Kafka's idempotent producer (KIP-98). */
typedef struct sc_producer {
    int64_t id; /* SC_NO_PRODUCER: nobody in particular */
    int16_t epoch;
    int32_t sequence; /* of the first record; those of a producer in a partition count up from 0, and wrap */
} sc_producer;

typedef struct sc_append {
    const sc_batch_input *batches; /* appended together: all of them or none */
    int64_t batch_count;
    uint32_t schema_version;
    uint32_t generation;     /* of the settings that the caller knows */
    int64_t expected_offset; /* the append fails with SC_CONFLICT unless the log ends here; -1: anywhere */
    sc_producer producer;
    bool transactional;   /* part of the producer's open transaction in this partition, which it opens if need be */
    bool log_append_time; /* recorded in the batch flags: the times are the log's, not the producer's */
    bool durable;         /* return after the drive has it */
} sc_append;

/* With a producer: SC_FENCED, SC_SEQUENCE; an append that repeats one of the producer's last five in this partition,
 * whatever process made it, appends nothing and returns SC_OK and the old offsets. */
int sc_partition_append(sc_topic *topic, uint32_t partition, const sc_append *append, int64_t *first_offset,
                        int64_t *end_offset, sc_error *error);

/* What ends a transaction in one partition. The marker takes one offset and has no rows. */
typedef struct sc_marker {
    int64_t producer_id;
    int16_t epoch;
    bool commit; /* else abort */
    bool fence;  /* an abort marker is written also where nothing is open, unless the partition knows an epoch as high:
                  * lower  ones are refused from then on */
    bool durable;
} sc_marker;

/* Ends the producer's transaction in this partition: a commit one of this very epoch, an abort one of this or a lower
 * epoch. Where there is none, that is no error: nothing is written, and *offset is -1. */
int sc_partition_append_marker(sc_topic *topic, uint32_t partition, const sc_marker *marker, int64_t *offset,
                               sc_error *error);

typedef struct sc_open_transaction {
    int64_t producer_id, first_offset;
    int16_t epoch;
} sc_open_transaction;

/* The open transactions of a partition, at most `max`; their number. */
int sc_partition_open_transactions(sc_topic *topic, uint32_t partition, sc_open_transaction *transactions, int64_t max,
                                   int64_t *count, sc_error *error);
typedef struct sc_durable_target {
    sc_topic *topic;
    uint32_t partition;
    int64_t offset;
} sc_durable_target;

/* Returns when each of the partitions is durable up to its offset, after one sync for all of them where there is a
 * journal. SC_RANGE: an offset is beyond the end of its log. */
int sc_wait_durable(const sc_durable_target *targets, int64_t count, sc_error *error);
/* Makes everything appended so far durable; concurrent callers share one sync. */
int sc_partition_flush(sc_topic *topic, uint32_t partition, sc_error *error);
/* Flushes every partition that this handle appended to since its last flush. */
int sc_topic_flush(sc_topic *topic, sc_error *error);
/* True, once, when recovery found data that may not be on the drive: a flush should follow soon. */
bool sc_topic_found_unflushed(sc_topic *topic);
/* Notes in the log of each partition that this handle appended to, where all of it is durable, that it is: what is
 * damaged later is then told from an append that was in flight. Closing does so too. For logs that rest: a note takes
 * some 700 bytes. */
int sc_topic_note_durable(sc_topic *topic, sc_error *error);

/* ---- retention --------------------------------------------------------------------------------------------- */

typedef struct sc_removal {
    int64_t start_offset;    /* of the log now */
    int64_t segments, bytes; /* that were removed */
} sc_removal;

/* Deletes the records below `offset`, durably: the log begins there from now on, and segments wholly below it are
 * removed. SC_RANGE when the log ends before it; nothing happens when it begins behind it. When all records go, so does
 * the active segment, behind which a new one is made: the end offset stays. Readers keep what they have mapped.
 * `removal` counts what was removed also when the call fails. */
int sc_partition_delete_before(sc_topic *topic, uint32_t partition, int64_t offset, sc_removal *removal,
                               sc_error *error);
/* Has a log that never had a record begin at an offset, durably: what lies before it is elsewhere. SC_RANGE when it has
 * a segment already. `producers`: what is known of them there, from sc_partition_producers (size 0: nothing), as of
 * this offset or a lower one; then appends that repeat one of there, or come from an epoch that is over, are told as
 * such. SC_CORRUPT when it is damaged: then nothing was done. */
int sc_partition_begin(sc_topic *topic, uint32_t partition, int64_t offset, uint32_t schema_version,
                       const uint8_t *producers, int64_t producers_size, sc_error *error);

/* What the records below `offset` say of producers, for a copy of the log elsewhere; docs/format.md has the bytes, 32
 * and 160 for each producer. A segment must end at `offset`, and all below be decided: else SC_RANGE. `known`: the same
 * as of `known_offset`, so that only what lies behind that is read (-1: nothing is known; size 0: there was no
 * producer). Those that were idle for producer_expiry_ms are left out. No lock is taken: nothing waits for this. *data:
 * free it; NULL when there is no producer. */
int sc_partition_producers(sc_topic *topic, uint32_t partition, int64_t offset, int64_t known_offset,
                           const uint8_t *known, int64_t known_size, uint8_t **data, int64_t *size, sc_error *error);

typedef struct sc_producers {
    int64_t offset, count;
    int64_t greatest_id; /* 0: there is none */
} sc_producers;

/* Looks at what sc_partition_producers gave. SC_CORRUPT. */
int sc_producers_look(const uint8_t *data, int64_t size, sc_producers *producers, sc_error *error);

/* Seals the active segment, if it has records, and makes a new one. *base_offset: of the segment that is active now,
 * -1: the log has none. */
int sc_partition_roll(sc_topic *topic, uint32_t partition, int64_t *base_offset, sc_error *error);

/* ---- looking ----------------------------------------------------------------------------------------------- */

typedef struct sc_partition_info {
    int64_t start_offset, end_offset, durable_offset;
    int64_t size_bytes;    /* of the segment files, preallocated space left out; -1 unless asked for */
    int64_t segment_count; /* -1 unless asked for */
    int64_t stable_offset; /* the last stable offset: below it every transaction is committed or aborted */
} sc_partition_info;

int sc_partition_describe(sc_topic *topic, uint32_t partition, bool with_size, sc_partition_info *info,
                          sc_error *error);

/* Changes whenever a segment of the partition is replaced by another, by whichever process: what was read while it
 * stayed the same is of one moment. */
int sc_partition_rewrites(sc_topic *topic, uint32_t partition, uint32_t *rewrites, sc_error *error);

typedef struct sc_segment_info {
    int64_t base_offset, end_offset;
    int64_t size_bytes;
    int64_t count;
    int64_t min_timestamp, max_timestamp; /* INT64_MAX, INT64_MIN when empty */
    bool sealed;
    char path[SC_PATH_MAX];
} sc_segment_info;

/* The n-th segment of a partition, oldest first; SC_END behind the last one. */
int sc_partition_segment(sc_topic *topic, uint32_t partition, int64_t n, sc_segment_info *info, sc_error *error);

enum { SC_HISTOGRAM_BUCKETS = 32 };

/* What was done through a handle since it was opened. Bucket i of a histogram counts values v with 2^(i-1) <= v < 2^i,
 * bucket 0 those below 1, and the last one also all that is greater. */
typedef struct sc_counters {
    int64_t appends, records, bytes; /* bytes of messages in the log */
    int64_t syncs, sync_ns;
    int64_t scanned_batches, scanned_rows,
        scanned_bytes;                            /* of scans that have ended: batches with wanted rows, whole */
    int64_t verified_bytes;                       /* whose checksums they were the first to verify */
    int64_t append_records[SC_HISTOGRAM_BUCKETS]; /* records of an append */
    int64_t sync_us[SC_HISTOGRAM_BUCKETS];        /* microseconds of a sync */
} sc_counters;

/* Also of a topic that is closed. */
void sc_topic_count(sc_topic *topic, sc_counters *counters);

/* One problem that sc_partition_verify found. */
typedef void (*sc_problem_callback)(void *context, const sc_error *problem);
typedef int (*sc_progress_callback)(void *context, int64_t bytes); /* non-zero stops */

/* Reads every byte of a partition and reports all that is wrong. Returns SC_OK also when there are problems. */
int sc_partition_verify(sc_topic *topic, uint32_t partition, sc_problem_callback problem, sc_progress_callback progress,
                        void *context, sc_error *error);

/* ---- waiting ----------------------------------------------------------------------------------------------- */

/* What interrupts waits: a count that anybody raises. One is of this process, or lies in a file that processes share.
 */
typedef struct sc_signal sc_signal;

int sc_signal_new(sc_signal **signal, sc_error *error);
/* The one in the file `path`, which is made when absent if `writable`. */
int sc_signal_open(const char *path, bool writable, sc_signal **signal, sc_error *error);
uint32_t sc_signal_count(const sc_signal *signal);
/* Counts up and wakes who watches. Nothing happens to one that was opened for reading. */
void sc_signal_raise(sc_signal *signal);
void sc_signal_free(sc_signal *signal); /* nobody may be watching any more */

/* Waits for some partition p of the `count` listed to have an end offset (`stable`: a last stable offset) above
 * offsets[p's place]. */
typedef struct sc_wait {
    sc_topic *topic;
    const uint32_t *partitions;
    const int64_t *offsets;
    int64_t count;
    bool stable;
} sc_wait;

/* Waits for the count of a signal to be another one than `seen`. */
typedef struct sc_watch {
    const sc_signal *signal;
    uint32_t seen;
} sc_watch;

/* Returns SC_OK when any of the waits or watches is over, SC_END when the time is over or a signal handler ran, an
 * error when one of the topics is closed or deleted. Uses no CPU while it waits, except where words are more than the
 * system can wait for at once (128; one on Linux before 5.16): then it looks 50 times a second. timeout_ms < 0: for
 * ever. */
int sc_wait_many(const sc_wait *waits, int64_t wait_count, const sc_watch *watches, int64_t watch_count,
                 int64_t timeout_ms, sc_error *error);
/* The same for one topic. */
int sc_topic_wait(sc_topic *topic, const uint32_t *partitions, const int64_t *offsets, int64_t count, bool stable,
                  int64_t timeout_ms, sc_error *error);

/* ---- scans ------------------------------------------------------------------------------------------------- */

typedef struct sc_range {
    uint32_t partition;
    int64_t start_offset, end_offset; /* must lie inside the log */
} sc_range;

/* One output column: a top-level column of the layout and a path of child numbers into it. */
typedef struct sc_column {
    int32_t column; /* 0 offset, 1 timestamp, 2 key, 3 value, 4 headers, or SC_COLUMN_PARTITION */
    int32_t depth;
    int32_t path[SC_DEPTH_MAX];
} sc_column;
enum { SC_COLUMN_PARTITION = -1 };

typedef struct sc_scan_counters {
    int64_t segments, batches, rows, bytes_exported, bytes_verified;
} sc_scan_counters;

typedef struct sc_scan_options {
    const sc_range *ranges;
    int64_t range_count;
    int64_t min_timestamp, max_timestamp; /* inclusive; batches that cannot hold such rows are passed over */
    int64_t limit;                        /* rows at most; -1: all */
    bool verify;
    bool committed; /* pass over batches of aborted transactions; ranges should end at the last stable offset */
} sc_scan_options;

/* A batch that a scan stands on: rows [first_row, first_row + row_count) of it are wanted. */
typedef struct sc_batch {
    const uint8_t *message; /* the whole encapsulated message in the mapped file */
    int64_t message_size;
    int64_t position;
    int64_t base_offset, last_offset;
    int64_t record_count, first_row, row_count;
    int64_t min_timestamp, max_timestamp;
    uint32_t partition, schema_version;
    uint16_t flags;
    int codec;
    bool has_headers;
    const sc_layout *layout;
    sc_mapping *mapping; /* borrowed: retain it to keep `message` */
} sc_batch;

/* The scan keeps its own reference to the topic. */
int sc_scan_open(sc_topic *topic, const sc_scan_options *options, sc_scan **scan, sc_error *error);
/* Moves to the next batch that has wanted rows. `batch` is valid until the next call. */
int sc_scan_next(sc_scan *scan, sc_batch *batch, sc_error *error);
/* The rows in the ranges, from batch headers alone. Moves the scan to its end. */
int sc_scan_count(sc_scan *scan, int64_t *count, sc_error *error);
void sc_scan_free(sc_scan *scan);
/* What a scan has read so far, also while a stream owns the scan. Read by other threads it may lag. */
sc_tally *sc_scan_tally(sc_scan *scan); /* retained for the caller */
void sc_tally_read(const sc_tally *tally, sc_scan_counters *counters);
void sc_tally_release(sc_tally *tally);

/* Narrows row_count and first_row to the smallest run with all rows whose timestamp lies in [min, max]. `dense` is set
 * when every row of that run does. The batch must not be compressed. */
int sc_batch_narrow_to_timestamps(sc_batch *batch, int64_t min_timestamp, int64_t max_timestamp, bool *dense,
                                  sc_error *error);

void sc_mapping_retain(sc_mapping *mapping);
void sc_mapping_release(sc_mapping *mapping);

/* The wanted rows as an Arrow struct array whose buffers lie in the mapped file. Not for compressed batches. */
int sc_batch_export(const sc_batch *batch, const sc_column *columns, int64_t column_count, int64_t *bytes_exported,
                    struct ArrowArray *array, sc_error *error);
/* The rest of a scan as an Arrow C stream; the stream owns the scan, also on failure. `schema` is that of the columns
 * and is copied. A compressed batch or one of another schema version than `schema_version` ends it with an error. */
int sc_scan_export(sc_scan *scan, const sc_column *columns, int64_t column_count, const struct ArrowSchema *schema,
                   uint32_t schema_version, struct ArrowArrayStream *stream, sc_error *error);

/* Plain access to the rows of an uncompressed batch. Pointers lie in the mapped file. */
typedef struct sc_rows {
    int64_t count;
    const int64_t *offsets, *timestamps;
    const uint8_t *key_validity, *value_validity; /* NULL: no nulls */
    const int32_t *key_ends, *value_ends;         /* Arrow offsets: row i is bytes [ends[i], ends[i + 1]) */
    const uint8_t *keys, *values;
    int64_t keys_size, values_size; /* every end was checked to lie within */
} sc_rows;
/* All but the values: of them, which are null. */
int sc_batch_keys(const sc_batch *batch, sc_rows *rows, sc_error *error);
/* SC_INVALID when value is not binary. */
int sc_batch_rows(const sc_batch *batch, sc_rows *rows, sc_error *error);
/* Copies rows from `first` on, up to *end, which is lowered to what fits into about 64 KiB: what lies in a mapped file
 * may become unreadable at any time. Row r is row r - first / 8 * 8 of `copy`, whose ends are those of the file, and
 * which points into *memory; that was NULL or made by an earlier call, and the caller frees it. */
int sc_rows_copy(const sc_batch *batch, const sc_rows *rows, int64_t first, int64_t *end, sc_rows *copy, void **memory,
                 sc_error *error);

/* ---- rewriting sealed segments ------------------------------------------------------------------------------ */

typedef struct sc_rewrite sc_rewrite;
typedef struct sc_key_map sc_key_map;

typedef struct sc_rewrite_report {
    int64_t base_offset, end_offset;
    int64_t bytes_before, bytes_after; /* of the files */
    int64_t batches_before, batches_after, rows_before, rows_after;
    bool replaced; /* false: the records were deleted meanwhile */
} sc_rewrite_report;

/* What a segment holds by its batch headers, of aborted transactions apart. */
typedef struct sc_rewrite_contents {
    bool plain; /* values are binary */
    int64_t batches, batch_bytes, rows;
    int64_t aborted_rows;
    int64_t compressed, with_headers; /* batches that are, or may have */
} sc_rewrite_contents;

/* Begins to replace the segment with this base offset, which must be sealed and below any open transaction, by one with
 * the same offsets in other batches, and perhaps fewer records. SC_CONFLICT: a segment of this partition is being
 * replaced. SC_RANGE: it is none of those, any more or yet. One thread at a time. The order of a call: sc_rewrite_look,
 * sc_rewrite_collect and sc_rewrite_mark as wanted; then either sc_rewrite_plain, or sc_rewrite_next with
 * sc_rewrite_add and sc_rewrite_copy; then sc_rewrite_commit; always sc_rewrite_free, which leaves the old segment when
 * nothing was committed. */
int sc_rewrite_open(sc_topic *topic, uint32_t partition, int64_t base_offset, sc_rewrite **rewrite, sc_error *error);
void sc_rewrite_free(sc_rewrite *rewrite);
int sc_rewrite_look(sc_rewrite *rewrite, sc_rewrite_contents *contents, sc_error *error);
void sc_rewrite_rewind(sc_rewrite *rewrite);
/* The next batch of the old segment, checked; SC_END behind the last one. Batches of aborted transactions are left out.
 * One with SC_BATCH_MUST_COPY has no rows and goes to sc_rewrite_copy, behind what was added of the batches before it.
 */
int sc_rewrite_next(sc_rewrite *rewrite, sc_batch *batch, sc_error *error);
enum { SC_BATCH_MUST_COPY = 1 << 1 }; /* in sc_batch.flags */
/* Adds a batch of rows with `input->offsets`, which covers the offsets behind the batch before it up to `last_offset`.
 * `flags`: of the batches that the rows come from, all with the same bit 2 (log append time). */
int sc_rewrite_add(sc_rewrite *rewrite, const sc_batch_input *input, int64_t last_offset, uint16_t flags,
                   sc_error *error);
int sc_rewrite_copy(sc_rewrite *rewrite, const sc_batch *batch, sc_error *error);
/* Does it all for a plain segment without compressed batches or headers: batches of about `batch_bytes`, of the rows
 * that sc_rewrite_mark marked, or of all. SC_END: `progress`, told the bytes read, stopped it. */
int sc_rewrite_plain(sc_rewrite *rewrite, int64_t batch_bytes, sc_progress_callback progress, void *context,
                     sc_error *error);
/* Puts the new segment in the place of the old one, durably. */
int sc_rewrite_commit(sc_rewrite *rewrite, sc_rewrite_report *report, sc_error *error);

/* Puts the keys of records with from_offset <= offset < end_offset into the map. *full_at: the offset of the first one
 * that found no room, where it stopped; -1: there was room. Not for compressed batches. */
int sc_rewrite_collect(sc_rewrite *rewrite, sc_key_map *map, int64_t from_offset, int64_t end_offset, int64_t *full_at,
                       sc_error *error);
/* Marks the rows that stay: those without a key, and those at or behind the offset that the map has for their key, but
 * for tombstones of a time below `tombstones_before` whose keys were collected: from_offset <= offset < end_offset. No
 * older record of such a key is left, when all segments before this one were rewritten by the same map. *dropped: how
 * many rows do not stay, aborted ones counted. *oldest_tombstone: the least timestamp of tombstones that stay, or
 * INT64_MAX. Not for compressed batches. */
int sc_rewrite_mark(sc_rewrite *rewrite, sc_key_map *map, int64_t tombstones_before, int64_t from_offset,
                    int64_t end_offset, int64_t *dropped, int64_t *oldest_tombstone, sc_error *error);
/* Whether a row of the current batch stays. */
bool sc_rewrite_keeps(const sc_rewrite *rewrite, int64_t row);

/* The greatest offset of each key. memory_bytes: of all entries, 24 each, at most three in four used, and half as much
 * again while it grows to that; 0: as much as it takes. `secret`: random. */
int sc_key_map_new(int64_t memory_bytes, const uint8_t secret[16], sc_key_map **map, sc_error *error);
void sc_key_map_free(sc_key_map *map);
void sc_key_map_clear(sc_key_map *map);
/* False when there is no room for another key. */
bool sc_key_map_put(sc_key_map *map, const uint8_t *key, int64_t size, int64_t offset);
/* The offset of a key; -1: the map does not have it. */
int64_t sc_key_map_get(const sc_key_map *map, const uint8_t *key, int64_t size);
int64_t sc_key_map_count(const sc_key_map *map);

/* ---- leaves ------------------------------------------------------------------------------------------------ */

uint32_t sc_crc32c(uint32_t crc, const void *data, size_t size);
/* murmur2 as in Kafka's org.apache.kafka.common.utils.Utils, seed 0x9747b28c. */
uint32_t sc_murmur2(const void *data, size_t size);
/* Kafka's default partition of a key. */
uint32_t sc_partition_of_key(const void *data, size_t size, uint32_t partitions);

#ifdef __cplusplus
}
#endif
#endif
