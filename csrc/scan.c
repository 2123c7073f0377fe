/*
 * A bounded read. The scan stands on a message of a segment and moves forward; nothing is opened before it is needed,
 * and segments whose summary shows that they hold no wanted time are not opened at all.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"
#include "tally.h"
#include "topic.h"

struct sc_scan {
    sc_topic *topic;
    sc_range *ranges;
    sc_scan_options options;
    sc_tally *tally;
    int64_t verified; /* bytes, not in the tally yet */
    int64_t bytes;    /* of the batches that had wanted rows */
    int64_t left;     /* rows until the limit; -1: no limit */

    int64_t range; /* the one that we read; range_count: the end */
    sc_partition *partition;
    sc_tail tail;
    int64_t offset; /* the next wanted record */
    bool retried;   /* the segment object was thrown away once for this offset */

    sc_segment *segment; /* NULL: find it */
    sc_mapping *mapping;
    int64_t next_base, position, end_position;
    int64_t chain_offset; /* the offset that the batch at `position` must begin with */
};

int sc_scan_open(sc_topic *topic, const sc_scan_options *options, sc_scan **out, sc_error *error)
{
    sc_scan *scan = calloc(1, sizeof *scan);
    sc_range *ranges = calloc((size_t)options->range_count + 1, sizeof *ranges);
    sc_tally *tally = sc_tally_new();
    if (scan == NULL || ranges == NULL || tally == NULL) {
        sc_tally_release(tally);
        free(scan);
        free(ranges);
        return sc_fail_memory(error);
    }
    if (options->range_count > 0)
        memcpy(ranges, options->ranges, (size_t)options->range_count * sizeof *ranges);
    scan->topic = topic;
    scan->ranges = ranges;
    scan->tally = tally;
    scan->options = *options;
    scan->options.ranges = ranges;
    scan->left = options->limit;
    scan->range = -1;
    atomic_fetch_add(&topic->references, 1);
    *out = scan;
    return SC_OK;
}

static void leave_segment(sc_scan *scan)
{
    sc_mapping_release(scan->mapping);
    sc_segment_release(scan->segment);
    scan->mapping = NULL;
    scan->segment = NULL;
}

static void count_scan(sc_scan *scan)
{
    sc_scan_counters read;
    sc_tally_read(scan->tally, &read);
    atomic_fetch_add_explicit(&scan->topic->scanned_batches, read.batches, memory_order_relaxed);
    atomic_fetch_add_explicit(&scan->topic->scanned_rows, read.rows, memory_order_relaxed);
    atomic_fetch_add_explicit(&scan->topic->scanned_bytes, scan->bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&scan->topic->verified_bytes, read.bytes_verified, memory_order_relaxed);
}

void sc_scan_free(sc_scan *scan)
{
    if (scan == NULL)
        return;
    leave_segment(scan);
    count_scan(scan);
    sc_topic_free(scan->topic);
    sc_tally_release(scan->tally);
    free(scan->ranges);
    free(scan);
}

sc_tally *sc_scan_tally(sc_scan *scan)
{
    atomic_fetch_add(&scan->tally->references, 1);
    return scan->tally;
}

/* ---- damage ------------------------------------------------------------------------------------------------- */

/* The error for a break in the chain, with where the readable rest begins. */
static int fail_here(sc_scan *scan, sc_look look, sc_error *error)
{
    sc_header later;
    const sc_range *range = &scan->ranges[scan->range];
    if (look.state != SC_BATCH_BAD)
        look.why = "records are missing here";
    int code = sc_segment_fail(scan->segment, &look, scan->offset, scan->position, error);
    int64_t found =
        look.unreadable ? -1 : sc_segment_find_good(scan->mapping, scan->position, scan->end_position, &later);
    int64_t next = found >= 0 ? later.base_offset : scan->next_base;
    size_t used = strlen(error->message);
    if (next > scan->offset && next < range->end_offset)
        snprintf(error->message + used, sizeof error->message - used, "; the next readable record has offset %lld",
                 (long long)next);
    return code;
}

/* ---- moving ------------------------------------------------------------------------------------------------- */

static int fail_out_of_range(sc_scan *scan, const sc_tail *tail, int64_t from, int64_t to, sc_error *error)
{
    sc_fail(error, SC_RANGE, "offsets %lld to %lld: partition %u has %lld to %lld", (long long)from, (long long)to,
            (unsigned)scan->partition->number, (long long)tail->start_offset, (long long)tail->end_offset);
    error->offset = tail->start_offset;
    error->position = tail->end_offset;
    return SC_RANGE;
}

static int next_range(sc_scan *scan, sc_error *error)
{
    while (++scan->range < scan->options.range_count) {
        const sc_range *range = &scan->ranges[scan->range];
        if (range->start_offset >= range->end_offset)
            continue;
        int code = sc_topic_partition(scan->topic, range->partition, &scan->partition, error);
        if (code == SC_OK)
            code = sc_partition_tail(scan->partition, &scan->tail, error);
        if (code != SC_OK)
            return code;
        if ((range->start_offset < scan->tail.start_offset && !SC_CONTROL(deleted_records_read)) ||
            range->end_offset > scan->tail.end_offset)
            return fail_out_of_range(scan, &scan->tail, range->start_offset, range->end_offset, error);
        scan->offset = range->start_offset;
        return SC_OK;
    }
    return SC_END;
}

static bool is_time_bounded(const sc_scan *scan)
{
    return scan->options.min_timestamp != INT64_MIN || scan->options.max_timestamp != INT64_MAX;
}

/* True when a sealed segment's summary shows that none of its records is wanted. */
static bool can_skip(sc_scan *scan)
{
    sc_summary summary;
    sc_error unused;
    if (scan->next_base < 0)
        return false;
    if (sc_partition_summarize(scan->partition, scan->segment, 0, scan->next_base, scan->topic->writable, &summary,
                               &unused) != SC_OK)
        return false;
    return summary.max_timestamp < scan->options.min_timestamp || summary.min_timestamp > scan->options.max_timestamp;
}

/* Passes over the segment that has the next wanted record, when none in it is wanted. */
static bool skip_segment(sc_scan *scan)
{
    sc_error unused;
    if (!is_time_bounded(scan) || sc_partition_find(scan->partition, &scan->tail, scan->offset, &scan->segment,
                                                    &scan->next_base, &unused) != SC_OK)
        return false;
    bool skips = scan->segment != NULL && can_skip(scan);
    if (skips)
        scan->offset = scan->next_base;
    leave_segment(scan);
    return skips;
}

static int enter_segment(sc_scan *scan, sc_error *error)
{
    if (skip_segment(scan))
        return SC_OK;
    int code = sc_partition_open(scan->partition, &scan->tail, scan->offset, &scan->segment, &scan->next_base,
                                 &scan->mapping, error);
    if (code == SC_OK && scan->segment == NULL)
        return sc_fail(error, SC_CORRUPT, "partition %u has no segment for offset %lld",
                       (unsigned)scan->partition->number, (long long)scan->offset);
    if (code != SC_OK) {
        if (scan->segment != NULL)
            error->offset = scan->offset;
        leave_segment(scan);
        return code;
    }
    scan->end_position = sc_tail_end_in(&scan->tail, scan->segment, scan->mapping);
    scan->position =
        sc_segment_seek(scan->segment, scan->mapping, scan->offset, scan->end_position, &scan->chain_offset);
    sc_tally_add(&scan->tally->segments, 1);
    return SC_OK;
}

/* A damaged place before the first wanted record is stepped over: who asks for what lies behind it shall get it. */
static int step_over_damage(sc_scan *scan, const sc_look *look, sc_error *error)
{
    sc_header later;
    if (scan->chain_offset < scan->offset && !look->unreadable) {
        int64_t found = sc_segment_find_good(scan->mapping, scan->position, scan->end_position, &later);
        if (found >= 0 && later.base_offset <= scan->offset) {
            scan->position = found;
            scan->chain_offset = later.base_offset;
            return SC_OK;
        }
    }
    return fail_here(scan, *look, error);
}

/* The segment's batches are over. Behind them the next segment must go on with the next offset. */
static int finish_segment(sc_scan *scan, const sc_look *look, sc_error *error)
{
    const sc_range *range = &scan->ranges[scan->range];
    int64_t must_reach = scan->next_base >= 0 ? scan->next_base : range->end_offset;
    if (scan->chain_offset >= must_reach) {
        leave_segment(scan);
        return SC_OK;
    }
    if (!scan->retried) { /* another process may have put a new file in the place of the one that we have mapped */
        scan->retried = true;
        sc_partition_forget(scan->partition, scan->segment->base_offset);
        leave_segment(scan);
        return SC_OK;
    }
    return step_over_damage(scan, look, error);
}

/* The rows of a batch that lie in the range. Row i has offset base + i, unless the batch was rewritten. */
static int clip(const sc_scan *scan, int64_t from_offset, sc_batch *batch, sc_error *error)
{
    const sc_range *range = &scan->ranges[scan->range];
    int64_t end = range->end_offset < batch->last_offset + 1 ? range->end_offset : batch->last_offset + 1;
    bool whole = from_offset <= batch->base_offset && end > batch->last_offset;
    int code = SC_OK;
    if (!whole && (batch->flags & SC_FLAG_SPARSE) != 0) {
        code = sc_batch_clip_to_offsets(batch, from_offset, end, error);
    } else if (!whole) {
        batch->first_row = from_offset - batch->base_offset;
        batch->row_count = end - from_offset;
    }
    if (scan->left >= 0 && batch->row_count > scan->left)
        batch->row_count = scan->left;
    return code;
}

static bool is_wanted(const sc_scan *scan, const sc_header *header)
{
    return (header->flags & SC_FLAG_CONTROL) == 0 && header->record_count > 0 &&
           header->max_timestamp >= scan->options.min_timestamp && header->min_timestamp <= scan->options.max_timestamp;
}

/* Whether a batch of a transaction is none of what is wanted: its marker, which may lie in a later segment, aborts it,
 * or is not there yet. */
static int is_aborted(sc_scan *scan, const sc_header *header, bool *aborted, sc_error *error)
{
    sc_segment *segment = scan->segment, *found = NULL;
    sc_mapping *mapping = scan->mapping;
    int64_t next_base = scan->next_base, end = scan->end_position;
    bool decided = false;
    int code = SC_OK;
    for (;;) {
        code = sc_segment_is_aborted(segment, mapping, end, next_base >= 0, scan->topic->writable, header->producer_id,
                                     header->base_offset, &decided, aborted, error);
        if (found != NULL)
            sc_mapping_release(mapping);
        sc_segment_release(found);
        if (code != SC_OK || decided || next_base < 0)
            break;
        code = sc_partition_open(scan->partition, &scan->tail, next_base, &found, &next_base, &mapping, error);
        if (code == SC_OK && found == NULL)
            return sc_fail(error, SC_CORRUPT, "partition %u lacks a segment", (unsigned)scan->partition->number);
        if (code != SC_OK) {
            sc_segment_release(found);
            return code;
        }
        segment = found;
        end = sc_tail_end_in(&scan->tail, found, mapping);
    }
    *aborted = *aborted || (!decided && !SC_CONTROL(undecided_records_shown));
    return code;
}

/* Looks at the message that the scan stands on. *found is set when `batch` was filled. */
static int step(sc_scan *scan, sc_batch *batch, bool *found, sc_error *error)
{
    sc_look look = sc_segment_look(scan->mapping, scan->position, scan->end_position, false, &scan->verified);
    if (look.state == SC_BATCH_NONE || look.state == SC_BATCH_MARKER)
        return finish_segment(scan, &look, error);
    bool behind_records = scan->next_base >= 0 && scan->chain_offset >= scan->next_base;
    if (look.state == SC_BATCH_BAD && behind_records && !look.unreadable && !sc_header_is_newer(&look.header) &&
        !sc_state_is_same_boot(&scan->topic->state, scan->partition->number))
        return finish_segment(scan, &look,
                              error); /* a note that was lost with the power, and nobody has mended that yet */
    if (look.state == SC_BATCH_GOOD && behind_records && look.header.last_offset >= scan->next_base)
        return finish_segment(scan, &look, error); /* verify reports it */
    if (look.state == SC_BATCH_GOOD && look.header.base_offset != scan->chain_offset) {
        look.state = SC_BATCH_BAD;
        look.why = "a batch does not follow the one before it";
    }
    if (look.state == SC_BATCH_GOOD && scan->next_base >= 0 && look.header.last_offset >= scan->next_base) {
        look.state = SC_BATCH_BAD;
        look.why = sc_segment_too_far;
    }
    bool wanted =
        look.state == SC_BATCH_GOOD && look.header.last_offset >= scan->offset && is_wanted(scan, &look.header);
    if (wanted && scan->options.committed && (look.header.flags & SC_FLAG_TRANSACTIONAL) != 0) {
        bool aborted;
        int code = is_aborted(scan, &look.header, &aborted, error);
        if (code != SC_OK)
            return code;
        wanted = !aborted || SC_CONTROL(aborted_records_shown);
    }
    if (wanted && scan->options.verify)
        look = sc_segment_look(scan->mapping, scan->position, scan->end_position, true, &scan->verified);
    if (look.state != SC_BATCH_GOOD)
        return step_over_damage(scan, &look, error);
    int64_t position = scan->position, from_offset = scan->offset;
    if (look.header.record_count > 0)
        sc_segment_note(scan->segment, look.header.base_offset, position);
    scan->position += look.header.total_size;
    scan->chain_offset = look.header.last_offset + 1;
    if (look.header.last_offset < from_offset)
        return SC_OK;
    scan->offset = scan->chain_offset;
    scan->retried = false;
    if (!wanted)
        return SC_OK;
    sc_segment_batch(scan->segment, scan->mapping, &look.header, position, scan->partition->number, batch);
    int code = clip(scan, from_offset, batch, error);
    *found = code == SC_OK && batch->row_count > 0;
    return code;
}

static int move(sc_scan *scan, sc_batch *batch, sc_error *error)
{
    bool found = false;
    while (!found) {
        int code = SC_OK;
        bool in_range = scan->range >= 0 && scan->range < scan->options.range_count;
        if (scan->left == 0)
            return SC_END;
        if (!in_range || scan->offset >= scan->ranges[scan->range].end_offset) {
            leave_segment(scan);
            code = scan->range < scan->options.range_count ? next_range(scan, error) : SC_END;
        } else if (scan->segment == NULL) {
            code = enter_segment(scan, error);
        } else {
            code = step(scan, batch, &found, error);
        }
        if (code != SC_OK)
            return code;
    }
    sc_tally_add(&scan->tally->batches, 1);
    sc_tally_add(&scan->tally->rows, batch->row_count);
    sc_tally_add(&scan->tally->bytes_verified, scan->verified);
    scan->verified = 0;
    scan->bytes += batch->message_size;
    if (scan->left > 0)
        scan->left -= batch->row_count;
    return SC_OK;
}

static bool is_gone(sc_topic *topic)
{
    if (sc_topic_is_deleted(topic))
        return true;
    int fd = sc_os.open(topic->path, SC_OPEN_READ); /* a reader without live state sees it by the folder */
    if (fd >= 0)
        sc_os.close(fd);
    return fd < 0 && errno == ENOENT;
}

/* Missing files are no damage when the topic was deleted, or the records that were in them. */
static int explain(sc_scan *scan, int code, sc_error *error)
{
    sc_tail tail;
    sc_error unused;
    if (code != SC_OS && code != SC_CORRUPT && code != SC_RANGE)
        return code;
    if (is_gone(scan->topic))
        return sc_fail(error, SC_DELETED, "the topic was deleted");
    if (code != SC_RANGE && scan->partition != NULL && sc_partition_tail(scan->partition, &tail, &unused) == SC_OK &&
        tail.start_offset > scan->offset)
        return fail_out_of_range(scan, &tail, scan->offset, scan->ranges[scan->range].end_offset, error);
    return code;
}

int sc_scan_next(sc_scan *scan, sc_batch *batch, sc_error *error)
{
    int code = sc_topic_enter(scan->topic, error);
    if (code != SC_OK)
        return code;
    code = explain(scan, move(scan, batch, error), error);
    sc_topic_leave(scan->topic);
    return code;
}

/* ---- counting ----------------------------------------------------------------------------------------------- */

/* Counts a whole sealed segment from its summary, when all of it is wanted. */
static bool count_segment(sc_scan *scan, int64_t *count)
{
    const sc_range *range = &scan->ranges[scan->range];
    sc_summary summary;
    sc_error unused;
    int64_t next_base;
    sc_segment *segment;
    if (is_time_bounded(scan) || scan->left >= 0 || scan->segment != NULL ||
        sc_partition_find(scan->partition, &scan->tail, scan->offset, &segment, &next_base, &unused) != SC_OK)
        return false;
    bool whole =
        segment != NULL && next_base >= 0 && next_base <= range->end_offset && segment->base_offset == scan->offset &&
        sc_partition_summarize(scan->partition, segment, 0, next_base, scan->topic->writable, &summary, &unused) ==
            SC_OK &&
        !(scan->options.committed && summary.transactional);
    sc_segment_release(segment);
    if (whole) {
        *count += summary.count;
        scan->offset = next_base;
    }
    return whole;
}

static int count_inside(sc_scan *scan, int64_t *count, sc_error *error)
{
    sc_batch batch;
    scan->options.verify = false;
    for (;;) {
        bool in_range = scan->range >= 0 && scan->range < scan->options.range_count;
        if (in_range && scan->offset < scan->ranges[scan->range].end_offset && count_segment(scan, count))
            continue;
        int code = move(scan, &batch, error);
        if (code != SC_OK)
            return code == SC_END ? SC_OK : code;
        *count += batch.row_count;
    }
}

int sc_scan_count(sc_scan *scan, int64_t *count, sc_error *error)
{
    int code = sc_topic_enter(scan->topic, error);
    if (code != SC_OK)
        return code;
    *count = 0;
    code = explain(scan, count_inside(scan, count, error), error);
    sc_topic_leave(scan->topic);
    return code;
}
