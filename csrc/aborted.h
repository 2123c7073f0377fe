/*
 * Which transactional batches of a segment are aborted. Internal.
 *
 * Only a scan of committed records that meets a transactional batch asks. The markers of a segment, as far as they
 * abort, are then collected in one walk over its headers, once per process; of a sealed segment they are kept in a hint
 * file beside it. A batch header says how far everything was decided when it was written, so the search for a batch's
 * marker ends soon behind the end of its transaction.
 *
 * The file `<base offset>.aborted`:
 *
 *      0  8 bytes  "SCABORT1"
 *      8  u32      CRC-32C of the segment's name (`<topic>-<id>/<partition>/<base offset>.arrows`), then of all behind
 *                  this field
 *     12  u32      number of entries
 *     16  i64      position of the end marker in the segment
 *     24  i64      stable offset at the end of the segment
 *     32  24 bytes of each entry: i64 producer id, i64 first offset of the transaction, i64 offset of the marker;
 * sorted
 */
#ifndef STREAMCORE_ABORTED_H
#define STREAMCORE_ABORTED_H

#include "streamcore.h"

typedef struct sc_aborted {
    int64_t producer_id;
    int64_t first_offset, marker_offset;
} sc_aborted;

/* What was learnt of a segment; behind its mutex. */
typedef struct sc_aborted_list {
    sc_aborted *items;
    int64_t count, capacity;
    int64_t position;      /* walked up to here; 0: not yet */
    int64_t stable_offset; /* as the last header says: all below it is decided */
    /* A damaged place: of offsets [damaged_offset, damaged_end) the marker may be missing. */
    int64_t damaged_offset, damaged_end;
    bool unreadable;       /* it cannot be read: the place may be sound */
    bool sorted, complete; /* complete: up to the end marker */
} sc_aborted_list;

struct sc_segment;

/* What is known of the producer's transaction at `offset` from the segment's batches below position `end`. *decided: it
 * is over, or *aborted is known. `sealed`: nothing is appended to it any more; then `writable` also keeps a hint file.
 */
int sc_segment_is_aborted(struct sc_segment *segment, sc_mapping *mapping, int64_t end, bool sealed, bool writable,
                          int64_t producer_id, int64_t offset, bool *decided, bool *aborted, sc_error *error);
/* Removes the hint file, and forgets what was learnt. The caller holds the segment's mutex. */
void sc_segment_forget_aborted(struct sc_segment *segment);

#endif
