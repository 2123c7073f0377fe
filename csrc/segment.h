/*
 * One segment: a file `<base offset, 20 digits>.arrows`, mapped for reading when first needed. Internal.
 *
 * A sc_segment is shared by the partition's list and the scans that stand on it, by reference count. What it learns
 * (index entries, verified batches, a summary) it keeps behind its own mutex.
 *
 * It is bound to one file, not to the name: to the inode that had the name when it was first mapped, or when its index
 * was first read. Another file may take that name, and then positions, summary and aborted transactions of the one do
 * not fit the other: the object stays with its file, and who must map it anew gets SC_STALE and looks for another
 * object.
 */
#ifndef STREAMCORE_SEGMENT_H
#define STREAMCORE_SEGMENT_H

#include <pthread.h>
#include <stdatomic.h>

#include "aborted.h"
#include "batch.h"
#include "mapping.h"
#include "os.h"

enum { SC_PAGE = 4096, SC_INDEX_SPACING = 64 * 1024 };

typedef struct sc_index_entry {
    int64_t offset; /* the base offset of the batch at `position` */
    int64_t position;
} sc_index_entry;

typedef struct sc_summary {
    int64_t end_offset;
    int64_t size; /* bytes up to the end of the last batch that says something: it has records, or is a control batch */
    int64_t count, min_timestamp, max_timestamp;
    bool transactional; /* it has batches of transactions, which may be aborted */
} sc_summary;

typedef struct sc_segment {
    atomic_long references;
    int64_t base_offset;
    char *path;
    pthread_mutex_t mutex;
    sc_mapping *mapping; /* NULL until used */
    uint64_t inode;      /* of its file; 0: not bound yet */
    bool may_grow;       /* it was mapped while it was the active segment */
    _Atomic(const struct sc_run *)
        runs; /* of the topic, in the journal: for a reader that comes before a replay; NULL: none */
    const sc_layout *layout;
    int64_t first_position; /* of the first batch */
    sc_index_entry *entries;
    int64_t entry_count, entry_capacity, saved_entries;
    bool index_loaded, has_summary;
    sc_summary summary; /* of a sealed segment */
    sc_aborted_list aborted;
} sc_segment;

sc_segment *sc_segment_new(const char *folder, int64_t base_offset);
void sc_segment_retain(sc_segment *segment);
void sc_segment_release(sc_segment *segment);

/* Maps at least `size` bytes of the file, 0: all of a sealed one, and recognises its schema among `layouts`. SC_FORMAT:
 * not one of them. SC_STALE: another file has the name by now. The mapping is retained for the caller. */
int sc_segment_map(sc_segment *segment, int64_t size, const sc_layout *layouts, uint32_t partition,
                   sc_mapping **mapping, sc_error *error);

/* Binds the object to the file that has its name now, unless it is bound. The caller holds the mutex. */
void sc_segment_bind(sc_segment *segment);
/* Whether the file to which it is bound, if it is, still has its name: it may have been replaced. */
bool sc_segment_is_current(sc_segment *segment);
/* When the file was changed last, in ms since 1970; now, if it cannot be looked at. */
int64_t sc_segment_modified_ms(const sc_segment *segment);
bool sc_segment_is_of(sc_segment *segment, const sc_file_stat *stat);

/* What a look at one message gives, the file's read errors included. */
typedef struct sc_look {
    enum sc_batch_state state;
    sc_header header;
    const char *why;
    bool unreadable; /* the file could not be read there */
} sc_look;

/* What is wrong with a batch whose last offset is not below the next segment's name. */
extern const char sc_segment_too_far[];
/* Whether the batch there begins at `offset` and ends below `end_offset`; look->why says why not. */
bool sc_segment_goes_on(sc_look *look, int64_t offset, int64_t end_offset);

/* Looks at the message at `position`, no further than `end`; with `verify` at its body too, once per process. */
sc_look sc_segment_look(sc_mapping *mapping, int64_t position, int64_t end, bool verify, int64_t *bytes_verified);
/* A message that sc_segment_look found good, as a batch of which all rows are wanted. The mapping is borrowed. */
void sc_segment_batch(const sc_segment *segment, sc_mapping *mapping, const sc_header *header, int64_t position,
                      uint32_t partition, sc_batch *batch);
/* The position of the next good batch behind `position` with a sound body. A damaged batch whose header is good is
 * stepped over whole: what looks like a batch inside it is somebody's data. */
enum { SC_NOT_FOUND = -1, SC_NOT_READABLE = -2 };
int64_t sc_segment_find_good(const sc_mapping *mapping, int64_t position, int64_t end, sc_header *header);
/* A corrupt or unreadable place as an error. */
int sc_segment_fail(const sc_segment *segment, const sc_look *look, int64_t offset, int64_t position, sc_error *error);
int sc_segment_fail_unreadable(const sc_segment *segment, int64_t offset, int64_t position, sc_error *error);

/* Where to begin to look for `offset`: a batch at or before it. */
int64_t sc_segment_seek(sc_segment *segment, sc_mapping *mapping, int64_t offset, int64_t end, int64_t *batch_offset);
/* Remembers where a batch lies, when no batch near it is remembered. */
void sc_segment_note(sc_segment *segment, int64_t offset, int64_t position);

/* `<topic>-<id>/<partition>/<base offset>.arrows`: a hint that came from elsewhere is not believed. */
const char *sc_segment_name(const sc_segment *segment);

/* ---- index.c: the `.index` file, a hint ---- */

/* Reads the file once, and keeps what its checksums vouch for. The caller holds the mutex. */
void sc_index_load(sc_segment *segment);
/* Appends the entries that are below `end_position` and not saved yet. A failure costs only time later. */
void sc_index_save(sc_segment *segment, int64_t end_position);
/* Writes the whole index of a sealed segment, with its summary. */
void sc_index_seal(sc_segment *segment, const sc_summary *summary);
/* Removes the file, and forgets what was learnt, when the segment was cut: a summary of other records would mislead. */
int sc_index_remove(sc_segment *segment);
/* The summary of a segment of at least `size` bytes: from the index of a sealed one, or from the batch headers.
 * `writable`: also mend the index. SC_STALE: as sc_segment_map. */
int sc_segment_summarize(sc_segment *segment, int64_t size, const sc_layout *layouts, uint32_t partition,
                         int64_t end_offset, bool writable, sc_summary *summary, sc_error *error);

#endif
