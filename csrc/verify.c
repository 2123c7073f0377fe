/* Reads every byte of a partition, trusting nothing that was learnt before, and reports all that is wrong. */
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "os.h"
#include "topic.h"

enum { PROGRESS_BYTES = 16 << 20 };

typedef struct verifier {
    sc_partition *partition;
    sc_tail tail;
    sc_problem_callback problem;
    sc_progress_callback progress;
    void *context;
    int64_t noted_start; /* the highest that a header of the log says; -1: no header was seen */
    int64_t unreported;  /* bytes read since the last progress */
    bool stopped;
} verifier;

static void report(verifier *self, const sc_segment *segment, int64_t offset, int64_t position, const char *what)
{
    sc_error problem;
    sc_fail_at(&problem, SC_CORRUPT, segment->path, offset, position, what);
    self->problem(self->context, &problem);
}

static void report_unreadable(verifier *self, const sc_segment *segment, int64_t offset, int64_t position)
{
    sc_error problem;
    sc_segment_fail_unreadable(segment, offset, position, &problem);
    self->problem(self->context, &problem);
}

static void advance(verifier *self, int64_t bytes, bool now)
{
    self->unreported += bytes;
    if (self->unreported < PROGRESS_BYTES && !now)
        return;
    if (self->progress != NULL && self->progress(self->context, self->unreported) != 0)
        self->stopped = true;
    self->unreported = 0;
}

struct structure_check {
    sc_batch batch;
    sc_error error;
    int code;
};

/* The Arrow structure of an uncompressed batch: every column where it should be; and its offsets, which are not
 * compressed in a rewritten one either. */
static void check_structure(void *context)
{
    struct structure_check *self = context;
    static const sc_column columns[SC_COLUMNS] = {{.column = SC_COLUMN_OFFSET},
                                                  {.column = SC_COLUMN_TIMESTAMP},
                                                  {.column = SC_COLUMN_KEY},
                                                  {.column = SC_COLUMN_VALUE},
                                                  {.column = SC_COLUMN_HEADERS}};
    struct ArrowArray array;
    int64_t unused = 0;
    self->code = SC_OK;
    if ((self->batch.flags & SC_FLAG_SPARSE) != 0 || self->batch.codec == SC_CODEC_NONE)
        self->code = sc_batch_check_offsets(&self->batch, &self->error);
    if (self->code != SC_OK || self->batch.codec != SC_CODEC_NONE)
        return;
    self->code = sc_batch_export(&self->batch, columns, SC_COLUMNS, &unused, &array, &self->error);
    if (self->code == SC_OK)
        array.release(&array);
}

static void verify_structure(verifier *self, const sc_segment *segment, sc_mapping *mapping, const sc_header *header,
                             int64_t position)
{
    if ((header->flags & SC_FLAG_CONTROL) != 0 || header->record_count == 0)
        return;
    struct structure_check check = {0};
    sc_segment_batch(segment, mapping, header, position, self->partition->number, &check.batch);
    if (!sc_os_read_mapped(mapping->data, (size_t)mapping->size, check_structure, &check))
        report_unreadable(self, segment, header->base_offset, position);
    else if (check.code != SC_OK)
        report(self, segment, header->base_offset, position, check.error.message);
}

/* One segment, from its first batch to `end_position`; it must hold every offset up to `end_offset`. */
static void verify_batches(verifier *self, const sc_segment *segment, sc_mapping *mapping, int64_t end_position,
                           int64_t end_offset)
{
    int64_t position = segment->first_position, offset = segment->base_offset, unused = 0;
    while (!self->stopped) {
        sc_look look = sc_segment_look(mapping, position, end_position, true, &unused);
        bool good = look.state == SC_BATCH_GOOD && look.header.base_offset == offset;
        if (good && look.header.last_offset >= end_offset) {
            report(self, segment, offset, position, sc_segment_too_far);
            return;
        }
        if (offset >= end_offset && !good)
            break;
        if (good) {
            verify_structure(self, segment, mapping, &look.header, position);
            if (look.header.start_offset > self->noted_start)
                self->noted_start = look.header.start_offset;
            position += look.header.total_size;
            offset = look.header.last_offset + 1;
            advance(self, look.header.total_size, false);
            continue;
        }
        if (look.unreadable) {
            report_unreadable(self, segment, offset, position);
            return;
        }
        const char *what = look.state == SC_BATCH_BAD    ? look.why
                           : look.state == SC_BATCH_GOOD ? "a batch does not follow the one before it"
                                                         : "records are missing here";
        report(self, segment, offset, position, what);
        sc_header later;
        int64_t found = sc_segment_find_good(mapping, position, end_position, &later);
        if (found < 0)
            return;
        advance(self, found - position, false);
        position = found;
        offset = later.base_offset;
    }
    sc_look behind = sc_segment_look(mapping, position, end_position, true, &unused);
    if (behind.unreadable && !self->stopped)
        report_unreadable(self, segment, offset, position);
    else if (behind.state == SC_BATCH_BAD && !self->stopped) /* any Arrow reader would stumble over it */
        report(self, segment, offset, position, "neither a batch nor the end of the stream is here");
}

/* SC_STALE: the tail is not of the files that are there now. */
static int verify_segment(verifier *self, sc_segment *segment, int64_t next_base)
{
    bool active = next_base < 0;
    sc_mapping *mapping = NULL, *known;
    sc_error problem;
    int64_t file_size;
    int code = sc_mapping_open_with(segment->path, segment->runs, self->partition->number, segment->base_offset, 0,
                                    &mapping, &file_size, &problem); /* a fresh one: nothing is verified in it */
    if (code == SC_OK) /* behind it: what fits the tail now did so before */
        code = sc_partition_map(self->partition, segment, &self->tail, &known, &problem);
    if (code == SC_OK)
        sc_mapping_release(known);
    else
        sc_mapping_release(mapping);
    if (code == SC_STALE)
        return code;
    if (code != SC_OK) {
        if (active || !sc_partition_is_deleted_below(self->partition, next_base))
            self->problem(self->context, &problem);
        return SC_OK;
    }
    advance(self, segment->first_position, false);
    verify_batches(self, segment, mapping, active ? self->tail.end_position : file_size,
                   active ? self->tail.end_offset : next_base);
    sc_mapping_release(mapping);
    return SC_OK;
}

/* Where a log begins is noted in it before files go. */
static void verify_start(verifier *self, int64_t start_offset, const char *path)
{
    sc_error problem;
    if (self->stopped || self->noted_start < 0 || self->noted_start >= start_offset)
        return;
    sc_fail_at(&problem, SC_CORRUPT, path, self->noted_start, -1,
               "the segments with the first offsets are missing, and were not deleted");
    self->problem(self->context, &problem);
}

static int verify_inside(verifier *self, sc_topic *topic, uint32_t number, sc_error *error)
{
    int64_t end_offset = -1, start_offset = 0;
    char first_path[SC_PATH_MAX] = "";
    int code = sc_topic_partition(topic, number, &self->partition, error);
    if (code == SC_OK) {
        sc_error problem;
        int found = sc_partition_tail(self->partition, &self->tail, &problem);
        if (found == SC_FORMAT || found == SC_CORRUPT) {
            self->problem(self->context, &problem);
            return SC_OK;
        }
        if (found != SC_OK)
            *error = problem;
        code = found;
        end_offset = self->tail.end_offset;
        start_offset = self->tail.start_offset;
    }
    /* a segment that begins at the end has no records, but may have the note of where the log begins */
    for (int64_t offset = start_offset; code == SC_OK && offset <= end_offset && !self->stopped;) {
        sc_segment *segment;
        int64_t next_base;
        code = sc_partition_find(self->partition, &self->tail, offset, &segment, &next_base, error);
        if (code != SC_OK || segment == NULL)
            break;
        if (first_path[0] == 0)
            snprintf(first_path, sizeof first_path, "%s", segment->path);
        code = verify_segment(self, segment, next_base);
        sc_segment_release(segment);
        if (code == SC_STALE)
            code = sc_partition_tail(self->partition, &self->tail, error);
        else
            offset = next_base < 0 ? end_offset + 1 : next_base;
    }
    if (code == SC_OK)
        verify_start(self, start_offset, first_path);
    advance(self, 0, true);
    return code;
}

int sc_partition_verify(sc_topic *topic, uint32_t number, sc_problem_callback problem, sc_progress_callback progress,
                        void *context, sc_error *error)
{
    verifier self = {.problem = problem, .progress = progress, .context = context, .noted_start = -1};
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    code = verify_inside(&self, topic, number, error);
    sc_topic_leave(topic);
    return code;
}
