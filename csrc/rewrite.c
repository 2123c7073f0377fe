/*
 * Replacing a sealed segment by another of its name: the same offsets in other batches, and perhaps fewer records.
 *
 *   1. `<base>.arrows.new` is written whole: schema message, batches, a control batch with what the dropped headers
 *      said of producers, the end marker; dated as the old file, and synced
 *   2. under the partition's lock: the old index is removed, and that is synced: the index of one file must not be
 *      taken for that of the other. Then the new file is renamed over the old one, and before and after that
 *      `rewrites` is counted up: every process forgets its segment objects before its next look
 *   3. the folder is synced, and a new index is written
 *
 * A crash leaves the old file or the new one, and perhaps a `.new` or no index, which costs nothing but time. Who has
 * the old file mapped keeps it. Only what cannot change any more is rewritten: below the durable offset and below the
 * first open transaction. A batch that does not match its checksum stops it.
 *
 * Offsets stay where they are: batches cover them without gaps, also where records are missing. Records of aborted
 * transactions are left out; those of committed ones become records like others; markers stay, byte by byte.
 */
#include "rewrite.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "encode.h"
#include "error.h"
#include "os.h"

#define END_MARKER ((uint64_t)SC_CONTINUATION)

/* ---- opening ----------------------------------------------------------------------------------------------- */

static int fail_unfit(sc_rewrite *self, int64_t base_offset, sc_error *error)
{
    sc_fail(error, SC_RANGE,
            "offset %lld does not begin a segment that is sealed, durable and without open transactions",
            (long long)base_offset);
    error->offset = self->tail.start_offset;
    error->position = self->tail.end_offset;
    return SC_RANGE;
}

/* A segment whose file was removed, because its records were deleted meanwhile. */
static bool is_deleted(sc_rewrite *self, int code, const sc_error *error, int64_t end_offset)
{
    return code == SC_OS && error->number == ENOENT && end_offset >= 0 &&
           sc_partition_is_deleted_below(self->partition, end_offset);
}

static int find_source(sc_rewrite *self, int64_t base_offset, sc_error *error)
{
    sc_partition *partition = self->partition;
    int code = sc_partition_tail(partition, &self->tail, error);
    if (code == SC_OK) /* what is decided by batches behind this segment must not be lost with the power */
        code = sc_partition_wait_durable(partition, self->tail.end_offset, error);
    if (code == SC_OK)
        code = sc_partition_tail(partition, &self->tail, error);
    if (code == SC_OK)
        code = sc_partition_open(partition, &self->tail, base_offset, &self->segment, &self->end_offset, &self->mapping,
                                 error);
    if (is_deleted(self, code, error, self->end_offset)) {
        (void)sc_partition_tail(partition, &self->tail, error);
        return fail_unfit(self, base_offset, error);
    }
    if (code != SC_OK)
        return code;
    if (self->segment == NULL || self->segment->base_offset != base_offset || self->end_offset < 0 ||
        self->end_offset > self->tail.durable_offset ||
        (self->end_offset > self->tail.stable_offset && !SC_CONTROL(undecided_segment_rewritten)))
        return fail_unfit(self, base_offset, error);
    return SC_OK;
}

static int open_inside(sc_rewrite *self, uint32_t number, int64_t base_offset, sc_error *error)
{
    if (!self->topic->writable)
        return sc_fail(error, SC_READ_ONLY, "the store was opened for reading");
    int code = sc_topic_partition(self->topic, number, &self->partition, error);
    if (code != SC_OK)
        return code;
    if (atomic_exchange(&self->partition->rewriting, true))
        return sc_fail(error, SC_CONFLICT, "partition %u is rewritten by another thread", (unsigned)number);
    self->holds_thread = true;
    code = sc_state_lock_rewriting(&self->topic->state, number, error);
    if (code != SC_OK)
        return code;
    self->holds_lock = true;
    code = find_source(self, base_offset, error);
    if (code != SC_OK)
        return code;
    snprintf(self->new_path, sizeof self->new_path, "%s.new", self->segment->path);
    sc_rewrite_rewind(self);
    return SC_OK;
}

void sc_rewrite_rewind(sc_rewrite *self)
{
    self->position = self->segment->first_position;
    self->offset = self->covered = self->segment->base_offset;
    self->row = self->rows_passed = 0;
    self->report = (sc_rewrite_report){
        .base_offset = self->segment->base_offset, .end_offset = self->end_offset, .bytes_before = self->mapping->size};
    self->stable_offset = self->stable_before = 0;
    self->has_producers = false;
}

int sc_rewrite_open(sc_topic *topic, uint32_t partition, int64_t base_offset, sc_rewrite **out, sc_error *error)
{
    sc_rewrite *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sc_fail_memory(error);
    self->fd = -1;
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK) {
        free(self);
        return code;
    }
    self->topic = topic;
    atomic_fetch_add(&topic->references, 1);
    code = open_inside(self, partition, base_offset, error);
    sc_topic_leave(topic);
    if (code == SC_OK)
        *out = self;
    else
        sc_rewrite_free(self);
    return code;
}

static void discard(sc_rewrite *self)
{
    if (self->fd < 0)
        return;
    sc_os.close(self->fd);
    self->fd = -1;
    (void)sc_os.unlink(self->new_path);
}

void sc_rewrite_free(sc_rewrite *self)
{
    if (self == NULL)
        return;
    if (self->topic->fork_generation == sc_os_fork_generation()) {
        discard(self);
        if (self->holds_lock && self->topic->state.fd >= 0)
            sc_state_unlock_rewriting(&self->topic->state, self->partition->number);
        if (self->holds_thread)
            atomic_store(&self->partition->rewriting, false);
    }
    sc_mapping_release(self->mapping);
    sc_segment_release(self->segment);
    sc_topic_free(self->topic);
    free(self->aborts);
    free(self->keep);
    free(self->scratch);
    free(self);
}

/* ---- transactions ------------------------------------------------------------------------------------------ */

static int note_abort(sc_rewrite *self, const sc_header *header, sc_error *error)
{
    if ((self->abort_count & (self->abort_count - 1)) == 0) {
        size_t capacity = self->abort_count == 0 ? 1 : (size_t)self->abort_count * 2;
        sc_aborted *grown = realloc(self->aborts, capacity * sizeof *grown);
        if (grown == NULL)
            return sc_fail_memory(error);
        self->aborts = grown;
    }
    self->aborts[self->abort_count++] =
        (sc_aborted){header->producer_id, header->transaction_offset, header->base_offset};
    return SC_OK;
}

static int find_aborts_in(sc_rewrite *self, sc_segment *segment, int64_t end_position, sc_mapping *mapping,
                          sc_error *error)
{
    int64_t position = segment->first_position, unused = 0;
    int code = SC_OK;
    while (code == SC_OK) {
        sc_look look = sc_segment_look(mapping, position, end_position, false, &unused);
        if (look.state == SC_BATCH_BAD)
            return sc_segment_fail(segment, &look, -1, position, error);
        if (look.state != SC_BATCH_GOOD)
            return SC_OK;
        if ((look.header.flags & SC_FLAG_CONTROL) != 0 && look.header.control == SC_CONTROL_ABORT)
            code = note_abort(self, &look.header, error);
        position += look.header.total_size;
    }
    return code;
}

/* Transactions of this segment that were aborted: their markers may lie behind it. */
static int find_aborts(sc_rewrite *self, sc_error *error)
{
    sc_tail tail = self->tail;
    int code = SC_OK;
    self->aborts_known = true;
    for (int64_t offset = self->segment->base_offset; code == SC_OK && offset < self->tail.end_offset;) {
        sc_segment *segment;
        sc_mapping *mapping;
        int64_t next_base;
        code = sc_partition_open(self->partition, &tail, offset, &segment, &next_base, &mapping, error);
        if (segment == NULL)
            return code;
        if (code == SC_OK)
            code = find_aborts_in(self, segment, sc_tail_end_in(&tail, segment, mapping), mapping, error);
        else if (is_deleted(self, code, error, next_base))
            code = SC_OK; /* and so is this one: it takes nobody's place */
        sc_mapping_release(mapping);
        sc_segment_release(segment);
        offset = next_base < 0 ? self->tail.end_offset : next_base;
    }
    return code;
}

static int is_aborted(sc_rewrite *self, const sc_header *header, bool *aborted, sc_error *error)
{
    *aborted = false;
    if ((header->flags & SC_FLAG_TRANSACTIONAL) == 0)
        return SC_OK;
    int code = self->aborts_known ? SC_OK : find_aborts(self, error);
    for (int64_t i = 0; code == SC_OK && i < self->abort_count && !*aborted; i++)
        *aborted = self->aborts[i].producer_id == header->producer_id &&
                   header->base_offset >= self->aborts[i].first_offset &&
                   header->base_offset < self->aborts[i].marker_offset;
    return code;
}

/* ---- reading the old segment ------------------------------------------------------------------------------- */

/* What is to be done with a batch; *found when the caller gets it. */
static int pass(sc_rewrite *self, const sc_header *header, bool *found, sc_error *error)
{
    bool control = (header->flags & SC_FLAG_CONTROL) != 0, aborted = false;
    *found = false;
    self->has_producers = self->has_producers || header->producer_id > 0 || header->control == SC_CONTROL_PRODUCERS;
    if (control && header->control == SC_CONTROL_PRODUCERS)
        return SC_OK;
    self->report.rows_before += header->record_count;
    self->report.batches_before += header->record_count > 0;
    int code = control ? SC_OK : is_aborted(self, header, &aborted, error);
    *found = code == SC_OK && !aborted && (header->record_count > 0 || control);
    return code;
}

/* How far everything was decided at the end of this batch, as its header says. */
static void note_stable(sc_rewrite *self, const sc_header *header)
{
    int64_t stable_offset = header->last_offset + 1 - header->unstable_count;
    self->at_marker = (header->flags & SC_FLAG_CONTROL) != 0;
    self->stable_before = self->stable_offset;
    if (stable_offset > self->stable_offset)
        self->stable_offset = stable_offset;
}

/* Whether the rows have the offsets that the headers say: what is wrong shall not be written as if it were right. Those
 * of compressed batches are made anew. */
static int check_offsets(sc_rewrite *self, const sc_batch *batch, sc_error *error)
{
    if (self->trusting || batch->record_count == 0 ||
        (batch->codec != SC_CODEC_NONE && (batch->flags & SC_FLAG_SPARSE) == 0))
        return SC_OK;
    int code = sc_batch_check_offsets(batch, error);
    if (code != SC_OK)
        snprintf(error->path, sizeof error->path, "%s", self->segment->path);
    return code;
}

static int next_inside(sc_rewrite *self, sc_batch *batch, sc_error *error)
{
    bool found = false;
    while (!found) {
        int64_t position = self->position, unused = 0;
        sc_look look = sc_segment_look(self->mapping, position, self->mapping->size,
                                       !self->trusting && !SC_CONTROL(damage_rewritten), &unused);
        bool over = look.state == SC_BATCH_NONE || look.state == SC_BATCH_MARKER;
        if (over && self->offset == self->end_offset)
            return SC_END;
        if (!sc_segment_goes_on(&look, self->offset, self->end_offset))
            return sc_segment_fail(self->segment, &look, self->offset, position, error);
        int code = pass(self, &look.header, &found, error);
        if (code != SC_OK)
            return code;
        self->position += look.header.total_size;
        self->offset = look.header.last_offset + 1;
        note_stable(self, &look.header);
        if (found)
            sc_segment_batch(self->segment, self->mapping, &look.header, position, self->partition->number, batch);
    }
    self->row = self->rows_passed;
    self->rows_passed += batch->record_count;
    return check_offsets(self, batch, error);
}

int sc_rewrite_next(sc_rewrite *self, sc_batch *batch, sc_error *error)
{
    int code = sc_topic_enter(self->topic, error);
    if (code != SC_OK)
        return code;
    code = next_inside(self, batch, error);
    sc_topic_leave(self->topic);
    return code;
}

int sc_rewrite_look(sc_rewrite *self, sc_rewrite_contents *contents, sc_error *error)
{
    sc_batch batch;
    int code;
    *contents = (sc_rewrite_contents){.plain = self->segment->layout->plain, .batch_bytes = 0};
    sc_rewrite_rewind(self);
    self->trusting = true;
    while ((code = sc_rewrite_next(self, &batch, error)) == SC_OK) {
        contents->compressed += batch.codec != SC_CODEC_NONE;
        contents->with_headers += batch.has_headers;
        contents->batches += batch.record_count > 0;
        contents->batch_bytes += batch.message_size;
        contents->rows += batch.record_count;
    }
    self->trusting = false;
    contents->aborted_rows = self->report.rows_before - self->rows_passed;
    sc_rewrite_rewind(self);
    return code == SC_END ? SC_OK : code;
}

/* ---- writing the new one ------------------------------------------------------------------------------------ */

static int fail_write(sc_rewrite *self, sc_error *error)
{
    return sc_fail_os(error, "cannot write the segment that replaces another", self->new_path);
}

static int put_bytes(sc_rewrite *self, const void *data, int64_t size, sc_error *error)
{
    if (sc_os_write_whole(self->fd, data, (size_t)size, self->out_position) != 0)
        return fail_write(self, error);
    self->out_position += size;
    return SC_OK;
}

static int ensure_file(sc_rewrite *self, sc_error *error)
{
    const sc_layout *layout = self->segment->layout;
    if (self->fd >= 0)
        return SC_OK;
    (void)sc_os.unlink(self->new_path); /* of one who was interrupted */
    self->fd = sc_os.open(self->new_path, SC_OPEN_CREATE);
    if (self->fd < 0)
        return fail_write(self, error);
    uint8_t *message = malloc((size_t)layout->schema_message_size);
    if (message == NULL)
        return sc_fail_memory(error);
    sc_layout_schema_message(layout, self->partition->number, message);
    self->out_position = 0;
    int code = put_bytes(self, message, layout->schema_message_size, error);
    free(message);
    return code;
}

static int take_scratch(sc_rewrite *self, int64_t size, sc_error *error)
{
    if (size > self->scratch_size) {
        free(self->scratch);
        self->scratch_size = size * 5 / 4 / SC_PAGE * SC_PAGE + SC_PAGE;
        self->scratch = aligned_alloc(SC_ALIGNMENT, (size_t)self->scratch_size);
    }
    if (self->scratch == NULL) {
        self->scratch_size = 0;
        return sc_fail_memory(error);
    }
    memset(self->scratch, 0, (size_t)size);
    return SC_OK;
}

struct writing {
    sc_encoding *encoding;
    uint8_t *at;
    const sc_placement *placement;
};

/* What is copied may lie in the old file. */
static void write_encoding(void *context)
{
    struct writing *self = context;
    sc_encoding_write(self->encoding, self->at, self->placement);
}

/* A batch that covers the offsets up to `last_offset`. Its header says of open transactions what the old ones said:
 * whether one that reaches beyond this segment was aborted is searched behind it as before. Only a marker ends one, so
 * between markers the newest header that was read holds. */
static sc_placement placement_of(const sc_rewrite *self, int64_t last_offset, uint16_t flags)
{
    bool before_marker = self->at_marker && last_offset < self->offset - 1;
    int64_t stable_offset = before_marker ? self->stable_before : self->stable_offset;
    return (sc_placement){
        .base_offset = self->covered,
        .covered = last_offset - self->covered + 1,
        .durable_offset = self->tail.durable_offset,
        .start_offset = self->tail.start_offset,
        .unstable_count = last_offset + 1 > stable_offset ? last_offset + 1 - stable_offset : 0,
        .flags = flags,
    };
}

static int put_encoding(sc_rewrite *self, sc_encoding *encoding, int64_t last_offset, uint16_t flags, sc_error *error)
{
    sc_placement placement = placement_of(self, last_offset, flags);
    struct writing writing = {encoding, self->scratch, &placement};
    if (!sc_os_read_mapped(self->mapping->data, (size_t)self->mapping->size, write_encoding, &writing))
        return sc_segment_fail_unreadable(self->segment, self->covered, -1, error);
    uint64_t opening = sc_encoding_opening(encoding);
    memcpy(self->scratch, &opening, sizeof opening);
    self->covered = last_offset + 1;
    return put_bytes(self, self->scratch, encoding->total_size, error);
}

/* A batch without rows: it covers offsets whose records are not there. */
static int put_empty(sc_rewrite *self, int64_t last_offset, sc_error *error)
{
    sc_encoding encoding;
    int code = ensure_file(self, error);
    if (code == SC_OK)
        code = sc_encoding_plan_empty(&encoding, self->segment->layout, sc_encoding_empty_size(self->segment->layout),
                                      error);
    if (code != SC_OK)
        return code;
    code = take_scratch(self, encoding.total_size, error);
    if (code == SC_OK)
        code = put_encoding(self, &encoding, last_offset, 0, error);
    sc_encoding_free(&encoding);
    return code;
}

static int add_inside(sc_rewrite *self, const sc_batch_input *input, int64_t last_offset, uint16_t flags,
                      sc_error *error)
{
    sc_encoding encoding;
    sc_batch_input copy = *input;
    int64_t first = input->offsets[0], last = input->offsets[input->count - 1];
    if (first < self->covered || last > last_offset || last_offset >= self->end_offset)
        return sc_fail(error, SC_INVALID, "rows of offsets %lld to %lld do not follow offset %lld", (long long)first,
                       (long long)last, (long long)self->covered);
    if (last_offset - self->covered + 1 == input->count)
        copy.offsets = NULL;
    int code = ensure_file(self, error);
    if (code == SC_OK)
        code = sc_encoding_plan(&encoding, self->segment->layout, &copy, INT64_MAX, error);
    if (code != SC_OK)
        return code;
    code = take_scratch(self, encoding.total_size, error);
    if (code == SC_OK)
        code = put_encoding(self, &encoding, last_offset, flags & SC_FLAG_LOG_APPEND_TIME, error);
    sc_encoding_free(&encoding);
    self->report.rows_after += input->count;
    self->report.batches_after++;
    return code;
}

int sc_rewrite_add(sc_rewrite *self, const sc_batch_input *input, int64_t last_offset, uint16_t flags, sc_error *error)
{
    int code = sc_topic_enter(self->topic, error);
    if (code != SC_OK)
        return code;
    code = add_inside(self, input, last_offset, flags, error);
    sc_topic_leave(self->topic);
    return code;
}

struct copying {
    const uint8_t *from;
    uint8_t *to;
    size_t size;
};

static void copy_message(void *context)
{
    struct copying *self = context;
    memcpy(self->to, self->from, self->size);
}

static int copy_inside(sc_rewrite *self, const sc_batch *batch, sc_error *error)
{
    int code = ensure_file(self, error);
    if (code == SC_OK && self->covered < batch->base_offset)
        code = put_empty(self, batch->base_offset - 1, error);
    if (code == SC_OK)
        code = take_scratch(self, batch->message_size, error);
    if (code != SC_OK)
        return code;
    struct copying copying = {batch->message, self->scratch, (size_t)batch->message_size};
    if (!sc_os_read_mapped(self->mapping->data, (size_t)self->mapping->size, copy_message, &copying))
        return sc_segment_fail_unreadable(self->segment, batch->base_offset, batch->position, error);
    self->covered = batch->last_offset + 1;
    return put_bytes(self, self->scratch, batch->message_size, error);
}

int sc_rewrite_copy(sc_rewrite *self, const sc_batch *batch, sc_error *error)
{
    int code = sc_topic_enter(self->topic, error);
    if (code != SC_OK)
        return code;
    code = copy_inside(self, batch, error);
    sc_topic_leave(self->topic);
    return code;
}

/* ---- producers ------------------------------------------------------------------------------------------------ */

struct snapshot {
    const uint8_t *data;
    int64_t size;
    sc_producer_state *state;
    int code;
    sc_error *error;
};

static void take_snapshot(void *context)
{
    struct snapshot *self = context;
    int64_t unused;
    self->code = sc_producer_state_decode(self->state, self->data, self->size, &unused, self->error);
}

static int take_producers(sc_producer_state *state, const sc_segment *segment, sc_mapping *mapping, int64_t position,
                          const sc_header *header, sc_error *error)
{
    int64_t at = position + sc_encoding_empty_size(segment->layout), unused = 0;
    struct snapshot snapshot = {mapping->data + at, position + header->total_size - at, state, SC_OK, error};
    sc_look look = sc_segment_look(mapping, position, mapping->size, true, &unused);
    if (look.unreadable)
        return sc_segment_fail(segment, &look, header->base_offset, position, error);
    if (look.state != SC_BATCH_GOOD || snapshot.size < 0 ||
        !sc_os_read_mapped(mapping->data, (size_t)mapping->size, take_snapshot, &snapshot))
        return sc_fail_at(error, SC_CORRUPT, segment->path, header->base_offset, position,
                          "what is kept of producers cannot be read");
    return snapshot.code;
}

/* Takes over what the headers of a segment say of producers, which has the offsets up to `end_offset`. Damage is passed
 * over, as it is by who appends. */
static int replay(sc_producer_state *state, const sc_segment *segment, sc_mapping *mapping, int64_t end_offset,
                  sc_error *error)
{
    int64_t position = segment->first_position, offset = segment->base_offset, unused = 0;
    int64_t now_ms = sc_segment_modified_ms(segment);
    bool continued = false;
    int code = SC_OK;
    while (code == SC_OK) {
        sc_look look = sc_segment_look(mapping, position, mapping->size, false, &unused);
        if (look.state != SC_BATCH_GOOD) {
            if (look.unreadable && offset < end_offset)
                return sc_segment_fail(segment, &look, offset, position, error);
            position = look.state != SC_BATCH_BAD
                           ? SC_NOT_FOUND
                           : sc_segment_find_good(mapping, position, mapping->size, &look.header);
            continued = false;
            if (position < 0)
                return SC_OK;
            continue;
        }
        if ((look.header.flags & SC_FLAG_CONTROL) != 0 && look.header.control == SC_CONTROL_PRODUCERS)
            code = take_producers(state, segment, mapping, position, &look.header, error);
        else
            code = sc_producer_state_apply(state, &look.header, continued, now_ms, error);
        continued = (look.header.flags & SC_FLAG_CONTINUED) != 0;
        position += look.header.total_size;
        offset = look.header.last_offset + 1;
    }
    return code;
}

static int replay_before(sc_rewrite *self, sc_producer_state *state, sc_error *error)
{
    sc_tail tail = self->tail;
    int code = SC_OK;
    for (int64_t offset = self->tail.start_offset; code == SC_OK && offset < self->segment->base_offset;) {
        sc_segment *segment;
        sc_mapping *mapping;
        int64_t next_base;
        code = sc_partition_open(self->partition, &tail, offset, &segment, &next_base, &mapping, error);
        if (segment == NULL)
            return code;
        if (code == SC_OK)
            code = replay(state, segment, mapping, next_base, error);
        else if (code == SC_FORMAT || code == SC_CORRUPT || is_deleted(self, code, error, next_base))
            code = SC_OK;
        sc_mapping_release(mapping);
        sc_segment_release(segment);
        offset = next_base < 0 ? self->segment->base_offset : next_base;
    }
    return code;
}

/* The state at the end of this segment, of the producers that it speaks of. Those of before are marked by times below
 * 0. */
static int find_producers(sc_rewrite *self, sc_producer_state *state, sc_error *error)
{
    int code = replay_before(self, state, error);
    for (int64_t i = 0; i < state->count; i++)
        state->entries[i].seen_ms = ~state->entries[i].seen_ms;
    if (code == SC_OK)
        code = replay(state, self->segment, self->mapping, self->end_offset, error);
    sc_producer_state_expire(state, 0);
    for (int64_t i = 0; i < state->count; i++)
        if (state->entries[i].seen_ms < 0)
            state->entries[i].seen_ms = ~state->entries[i].seen_ms;
    state->offset = self->end_offset;
    return code;
}

static int put_producers(sc_rewrite *self, sc_error *error)
{
    sc_producer_state *state = sc_producer_state_new();
    if (state == NULL)
        return sc_fail_memory(error);
    int code = find_producers(self, state, error);
    int64_t size = sc_producers_batch_size(self->segment->layout, state);
    if (code == SC_OK && size > SC_BATCH_BYTES_MAX)
        code = sc_fail(error, SC_TOO_LARGE, "the state of %lld producers is too large for a batch",
                       (long long)state->count);
    if (code == SC_OK)
        code = take_scratch(self, size, error);
    if (code == SC_OK) {
        sc_placement placement = placement_of(self, self->end_offset - 1, 0);
        code = sc_producers_batch_write(self->segment->layout, state, &placement, self->scratch, error);
    }
    if (code == SC_OK)
        code = put_bytes(self, self->scratch, size, error);
    sc_producer_state_free(state);
    return code;
}

/* ---- taking its place --------------------------------------------------------------------------------------- */

static int finish_file(sc_rewrite *self, sc_error *error)
{
    uint64_t marker = END_MARKER;
    sc_file_stat stat;
    sc_batch unread;
    int64_t end = self->end_offset - 1;
    int code = ensure_file(self, error);
    while (code == SC_OK && self->offset < self->end_offset)
        code = next_inside(self, &unread, error);
    if (code == SC_END)
        code = SC_OK;
    if (code == SC_OK && self->covered <= end)
        code = put_empty(self, end, error);
    if (code == SC_OK && self->has_producers && !SC_CONTROL(dropped_producers_forgotten))
        code = put_producers(self, error);
    if (code == SC_OK)
        code = put_bytes(self, &marker, sizeof marker, error);
    if (code != SC_OK)
        return code;
    self->report.bytes_after = (self->out_position + SC_PAGE - 1) / SC_PAGE * SC_PAGE;
    if (sc_os.truncate(self->fd, self->report.bytes_after) != 0)
        return fail_write(self, error);
    int old = sc_os.open(self->segment->path, SC_OPEN_READ);
    if (old >= 0 && sc_os.stat(old, &stat) == 0) {
        self->report.bytes_before = stat.size;
        (void)sc_os.set_modified(self->fd, stat.modified_ns); /* retention may go by it */
    }
    if (old >= 0)
        sc_os.close(old);
    if (SC_CONTROL(rewritten_not_synced))
        return SC_OK;
    return sc_os.sync(self->fd) == 0 ? SC_OK : fail_write(self, error);
}

/* Under the lock. Nothing is replaced that was deleted meanwhile. */
static int take_place(sc_rewrite *self, sc_error *error)
{
    sc_tail tail;
    char folder[SC_PATH_MAX];
    int code = sc_partition_locked_tail(self->partition, &tail, error);
    if (code == SC_OK)
        code = sc_partition_folder(self->partition, folder, error);
    if (code != SC_OK || (tail.start_offset >= self->end_offset && !SC_CONTROL(rewrite_undeletes)))
        return code;
    if (!SC_CONTROL(old_index_kept) && sc_index_remove(self->segment) != 0)
        return sc_fail_os(error, "cannot remove the index of a segment that is replaced", self->segment->path);
    if (sc_os_sync_folder(folder) != 0)
        return sc_fail_os(error, "cannot sync a partition's folder", folder);
    _Atomic uint32_t *rewrites = &sc_state_slot(&self->topic->state, self->partition->number)->rewrites, uncounted = 0;
    if (SC_CONTROL(rewrites_not_counted))
        rewrites = &uncounted;
    atomic_fetch_add(rewrites, 1); /* who dies behind the renaming has told of it; who looked before it is told again */
    if (sc_os.rename(self->new_path, self->segment->path) != 0)
        return sc_fail_os(error, "cannot put a segment in the place of another", self->segment->path);
    atomic_fetch_add(rewrites, 1);
    sc_os.close(self->fd);
    self->fd = -1;
    self->report.replaced = true;
    return SC_OK;
}

static int settle(sc_rewrite *self, sc_error *error)
{
    sc_segment *segment;
    sc_summary summary;
    sc_error unused;
    char folder[SC_PATH_MAX];
    int64_t next_base;
    int code = sc_partition_folder(self->partition, folder, error);
    if (code == SC_OK && !SC_CONTROL(rewritten_name_not_synced) && sc_os_sync_folder(folder) != 0)
        code = sc_fail_os(error, "cannot sync a partition's folder", folder);
    if (code != SC_OK || sc_partition_find(self->partition, &self->tail, self->segment->base_offset, &segment,
                                           &next_base, &unused) != SC_OK)
        return code;
    if (segment != NULL && segment->base_offset == self->segment->base_offset && next_base >= 0)
        (void)sc_partition_summarize(self->partition, segment, 0, next_base, true, &summary, &unused);
    sc_segment_release(segment);
    return SC_OK;
}

static int commit_inside(sc_rewrite *self, sc_error *error)
{
    int code = finish_file(self, error);
    if (code == SC_OK && self->topic->journal != NULL)
        code = sc_journal_empty(self->topic->journal, error); /* no record in it may be of the file that goes */
    if (code == SC_OK)
        code = sc_partition_lock(self->partition, error);
    if (code != SC_OK)
        return code;
    code = take_place(self, error);
    sc_partition_unlock(self->partition);
    return code == SC_OK && self->report.replaced ? settle(self, error) : code;
}

int sc_rewrite_commit(sc_rewrite *self, sc_rewrite_report *report, sc_error *error)
{
    int code = sc_topic_enter(self->topic, error);
    if (code != SC_OK)
        return code;
    code = commit_inside(self, error);
    discard(self);
    *report = self->report;
    sc_topic_leave(self->topic);
    return code;
}
