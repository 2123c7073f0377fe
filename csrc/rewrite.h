/* A segment that is replaced: what is read of the old file, and how far the new one is. Internal. */
#ifndef STREAMCORE_REWRITE_H
#define STREAMCORE_REWRITE_H

#include "topic.h"

struct sc_rewrite {
    sc_topic *topic;
    sc_partition *partition;
    bool holds_thread, holds_lock; /* the right to rewrite, in this process and among processes */
    sc_tail tail;                  /* when it began */
    sc_segment *segment;
    sc_mapping *mapping;
    int64_t end_offset; /* of the segment */

    int64_t position, offset;             /* of the next batch of the old file */
    bool trusting;                        /* bodies are not checked: nothing is written */
    int64_t row, rows_passed;             /* rows before the current batch, and with it: aborted ones left out */
    bool has_producers;                   /* some header, or an earlier rewriting, speaks of one */
    int64_t stable_offset, stable_before; /* as the headers say up to the current batch, and before it */
    bool at_marker;
    sc_aborted *aborts;
    int64_t abort_count;
    bool aborts_known;
    uint8_t *keep; /* a bit for each row, set when it stays; NULL: all stay */
    int64_t keep_size;

    int fd; /* of the new file; -1: it was not begun */
    char new_path[SC_PATH_MAX + 8];
    int64_t out_position, covered; /* the new file covers the offsets below this */
    uint8_t *scratch;
    int64_t scratch_size;
    sc_rewrite_report report;
};

/* A bit of a validity buffer; NULL: all are set. */
static inline bool sc_row_is_set(const uint8_t *bits, int64_t at)
{
    return bits == NULL || (bits[at / 8] >> (at % 8) & 1);
}

#endif
