/*
 * Producer state and the log: catching up from batch headers, and the `.producers` file, a hint that saves walking the
 * log from its start. Everything here is done under the partition's lock.
 *
 * The file (docs/format.md):
 *
 *      0  8 bytes  "SCPRODF1"
 *      8  u32      CRC-32C of the partition's name (`<topic>-<id>/<partition>`), then of the 52 bytes behind this field
 *     12  u32      header CRC of the batch that ends at the end offset: the log is still the one that was read
 *     16  i64      end offset: all below it is in the state
 *     24  i64      base offset of that batch
 *     64  the state, encoded (producer_state.h)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"
#include "topic.h"

enum {
    SNAPSHOT_SIZE_MAX = 64 + SC_PRODUCER_HEADER_SIZE + SC_PRODUCERS_MAX * (int)sizeof(sc_producer_entry),
    SNAPSHOT_AFTER = 4096, /* batches: about as many headers as are walked in a millisecond */
    EXPIRE_EVERY_MS = 60000,
};
static const uint8_t snapshot_magic[8] = {'S', 'C', 'P', 'R', 'O', 'D', 'F', '1'};

typedef struct snapshot_header {
    uint8_t magic[8];
    uint32_t crc, batch_crc;
    int64_t end_offset, base_offset;
    uint8_t reserved[32];
} snapshot_header;
static_assert(sizeof(snapshot_header) == 64, "the header of a snapshot has 64 bytes");

/* ---- the file ------------------------------------------------------------------------------------------------ */

static int snapshot_path(const sc_partition *partition, const char *ending, char *path, sc_error *error)
{
    int length =
        snprintf(path, SC_PATH_MAX, "%s/%u/.producers%s", partition->topic->path, (unsigned)partition->number, ending);
    return length < SC_PATH_MAX ? SC_OK : sc_fail(error, SC_INVALID, "the path of the store is too long");
}

static uint32_t snapshot_crc(const sc_partition *partition, const snapshot_header *header)
{
    char name[SC_PATH_MAX];
    const char *folder = strrchr(partition->topic->path, '/');
    int length = snprintf(name, sizeof name, "%s/%u", folder == NULL ? partition->topic->path : folder + 1,
                          (unsigned)partition->number);
    uint32_t crc = sc_crc32c(0, name, length < (int)sizeof name ? (size_t)length : sizeof name - 1);
    return sc_crc32c(crc, (const uint8_t *)header + 12, sizeof *header - 12);
}

/* The batch that takes the offset before `offset`; false when it cannot be found. */
static bool find_batch_before(sc_partition *partition, const sc_tail *tail, int64_t offset, sc_header *header)
{
    sc_segment *segment;
    sc_mapping *mapping;
    sc_error unused;
    sc_tail now = *tail;
    int64_t next_base, at, nothing = 0;
    bool found = false;
    if (offset <= 0)
        return false;
    if (sc_partition_open(partition, &now, offset - 1, &segment, &next_base, &mapping, &unused) == SC_OK &&
        segment != NULL) {
        int64_t end = sc_tail_end_in(&now, segment, mapping);
        int64_t position = sc_segment_seek(segment, mapping, offset - 1, end, &at);
        while (at < offset && !found) {
            sc_look look = sc_segment_look(mapping, position, end, false, &nothing);
            if (look.state != SC_BATCH_GOOD || look.header.base_offset != at)
                break;
            found = look.header.last_offset == offset - 1 && look.header.base_offset < offset;
            *header = look.header;
            at = look.header.last_offset + 1;
            position += look.header.total_size;
        }
        sc_mapping_release(mapping);
    }
    sc_segment_release(segment);
    return found;
}

/* Whether the file was made from this log, as far as it is there now, and not before `least` was in it. */
static bool is_of_this_log(sc_partition *partition, const sc_tail *tail, const snapshot_header *header, int64_t least)
{
    sc_header batch;
    return memcmp(header->magic, snapshot_magic, sizeof snapshot_magic) == 0 &&
           snapshot_crc(partition, header) == header->crc && header->end_offset <= tail->end_offset &&
           header->end_offset >= least && find_batch_before(partition, tail, header->end_offset, &batch) &&
           ((batch.base_offset == header->base_offset && batch.header_crc == header->batch_crc) ||
            SC_CONTROL(snapshot_of_cut_log_believed));
}

static void load_snapshot(sc_partition *partition, const sc_tail *tail, sc_producer_state *state)
{
    char path[SC_PATH_MAX];
    sc_error unused;
    sc_file_stat stat;
    snapshot_header header;
    int64_t offset;
    int fd = snapshot_path(partition, "", path, &unused) == SC_OK ? sc_os.open(path, SC_OPEN_READ) : -1;
    if (fd < 0)
        return;
    if (sc_os.stat(fd, &stat) == 0 && stat.size > (int64_t)sizeof header && stat.size <= SNAPSHOT_SIZE_MAX) {
        uint8_t *data = malloc((size_t)stat.size);
        if (data != NULL && sc_os_read_whole(fd, data, (size_t)stat.size, 0) == 0) {
            memcpy(&header, data, sizeof header);
            if (is_of_this_log(partition, tail, &header, state->offset) &&
                sc_producer_state_decode(state, data + sizeof header, stat.size - (int64_t)sizeof header, &offset,
                                         &unused) == SC_OK)
                state->offset = header.end_offset;
        }
        free(data);
    }
    sc_os.close(fd);
}

static bool write_snapshot(int fd, const snapshot_header *header, const sc_producer_state *state)
{
    int64_t size = (int64_t)sizeof *header + sc_producer_state_encoded_size(state);
    uint8_t *data = malloc((size_t)size);
    if (data == NULL)
        return false;
    memcpy(data, header, sizeof *header);
    sc_producer_state_encode(state, data + sizeof *header);
    bool written = sc_os_write_whole(fd, data, (size_t)size, 0) == 0;
    free(data);
    return written;
}

void sc_partition_save_producers(sc_partition *partition, const sc_tail *tail, bool now)
{
    char path[SC_PATH_MAX], temporary[SC_PATH_MAX];
    sc_error unused;
    sc_header batch;
    sc_producer_state *state = partition->producers;
    if (state == NULL || state->unsaved == 0 || (!now && state->unsaved < SNAPSHOT_AFTER) ||
        !find_batch_before(partition, tail, state->offset, &batch) ||
        snapshot_path(partition, "", path, &unused) != SC_OK ||
        snapshot_path(partition, ".tmp", temporary, &unused) != SC_OK)
        return;
    snapshot_header header = {
        .batch_crc = batch.header_crc, .end_offset = state->offset, .base_offset = batch.base_offset};
    memcpy(header.magic, snapshot_magic, sizeof header.magic);
    header.crc = snapshot_crc(partition, &header);
    (void)sc_os.unlink(temporary);
    int fd = sc_os.open(temporary, SC_OPEN_CREATE);
    if (fd < 0)
        return;
    bool written = write_snapshot(fd, &header, state);
    sc_os.close(fd);
    if (written && sc_os.rename(temporary, path) == 0)
        state->unsaved = 0;
    else
        (void)sc_os.unlink(temporary);
}

/* ---- batches of producer state --------------------------------------------------------------------------------- */

int64_t sc_producers_batch_size(const sc_layout *layout, const sc_producer_state *state)
{
    return sc_encoding_empty_size(layout) + sc_align(sc_producer_state_encoded_size(state));
}

int sc_producers_batch_write(const sc_layout *layout, const sc_producer_state *state, const sc_placement *placement,
                             uint8_t *at, sc_error *error)
{
    int64_t size = sc_producers_batch_size(layout, state);
    sc_encoding encoding = {0};
    sc_header header;
    sc_placement control = *placement;
    control.flags |= SC_FLAG_CONTROL;
    control.control = SC_CONTROL_PRODUCERS;
    int code = sc_encoding_plan_empty(&encoding, layout, size, error);
    if (code != SC_OK)
        return code;
    memset(at, 0, (size_t)size);
    sc_encoding_write(&encoding, at, &control);
    uint8_t *header_at = at + SC_OPENING_SIZE + encoding.metadata_size;
    sc_producer_state_encode(state, header_at + SC_HEADER_SIZE + SC_ALIGNMENT);
    memcpy(&header, header_at, sizeof header);
    header.body_crc = sc_batch_checksum(at, &header);
    sc_header_seal(&header);
    memcpy(header_at, &header, sizeof header);
    uint64_t opening = sc_encoding_opening(&encoding);
    memcpy(at, &opening, sizeof opening);
    sc_encoding_free(&encoding);
    return SC_OK;
}

/* ---- the log -------------------------------------------------------------------------------------------------- */

struct snapshot_search {
    const uint8_t *body;
    int64_t size;
    sc_producer_state *state;
    sc_error *error;
    int code;
};

/* The bytes lie behind the first offsets of the columns, 64 zeros. */
static void take_producers(void *context)
{
    struct snapshot_search *self = context;
    int64_t unused;
    self->code = self->size < SC_ALIGNMENT ? SC_CORRUPT
                                           : sc_producer_state_decode(self->state, self->body + SC_ALIGNMENT,
                                                                      self->size - SC_ALIGNMENT, &unused, self->error);
}

/* A rewritten segment ends with what the headers said that are in it no more. One that is damaged is passed over. */
static int apply_producers(sc_producer_state *state, sc_mapping *mapping, int64_t position, const sc_header *header,
                           sc_error *error)
{
    int64_t at = position + SC_OPENING_SIZE + header->metadata_size + SC_HEADER_SIZE, nothing = 0;
    struct snapshot_search self = {
        .body = mapping->data + at, .size = position + header->total_size - at, .state = state, .error = error};
    sc_look look = sc_segment_look(mapping, position, mapping->size, true, &nothing);
    if (look.state != SC_BATCH_GOOD || !sc_os_read_mapped(self.body, (size_t)self.size, take_producers, &self))
        return SC_OK;
    return self.code == SC_MEMORY ? SC_MEMORY : SC_OK;
}

typedef struct walker {
    sc_partition *partition;
    sc_producer_state *state;
    sc_segment *segment;
    sc_mapping *mapping;
    int64_t position, end, offset;
    int64_t reached; /* where the segment's offsets end */
    int64_t now_ms;
    bool dated; /* batches are as old as their file, not learnt of now */
    bool continued, damaged;
    sc_error *error;
} walker;

static int take_batch(walker *self, const sc_header *header)
{
    sc_producer_state *state = self->state;
    int code = SC_OK;
    bool control = (header->flags & SC_FLAG_CONTROL) != 0;
    if (SC_CONTROL(rewritten_producers_ignored) && control && header->control == SC_CONTROL_PRODUCERS)
        code = SC_OK;
    else if (control && header->control == SC_CONTROL_PRODUCERS && header->base_offset >= state->offset)
        code = apply_producers(state, self->mapping, self->position, header, self->error);
    else if (header->last_offset >= state->offset)
        code = sc_producer_state_apply(state, header, self->continued, self->now_ms, self->error);
    if (code == SC_OK && self->damaged)
        sc_producer_state_settle(state, header->last_offset + 1 - header->unstable_count);
    self->continued = (header->flags & SC_FLAG_CONTINUED) != 0;
    self->position += header->total_size;
    self->offset = header->last_offset + 1;
    return code;
}

/* Takes over all batches from `position` on. Damage, and what says that it is of other offsets, is passed over: what it
 * said of producers is lost, and who reads the records is told of it. */
static int walk_batches(walker *self)
{
    int64_t nothing = 0;
    int code = SC_OK;
    while (code == SC_OK && self->position < self->end) {
        sc_look look = sc_segment_look(self->mapping, self->position, self->end, false, &nothing);
        if (look.state == SC_BATCH_GOOD && look.header.base_offset >= self->offset &&
            look.header.last_offset < self->reached) {
            code = take_batch(self, &look.header);
            continue;
        }
        if (look.state == SC_BATCH_MARKER || look.state == SC_BATCH_NONE)
            break;
        if (look.unreadable && self->offset < self->reached)
            return sc_segment_fail(self->segment, &look, self->offset, self->position, self->error);
        if (look.unreadable) /* the mapping is longer than the file */
            break;
        int64_t found = sc_segment_find_good(self->mapping, self->position, self->end, &look.header);
        if (found < 0)
            break;
        self->damaged = true;
        self->continued = false;
        self->position = found;
    }
    return code;
}

/* Where the batch of the state's offset begins: as remembered, if one is there, or by the index, which knows nothing of
 * what a segment may say before its first record. */
static void seek(walker *self)
{
    sc_producer_state *state = self->state;
    int64_t nothing = 0;
    self->position = state->position;
    self->offset = state->offset;
    if (state->segment_base == self->segment->base_offset) {
        sc_look look = sc_segment_look(self->mapping, state->position, self->end, false, &nothing);
        if (look.state == SC_BATCH_GOOD && look.header.base_offset == state->offset)
            return;
    } else if (state->offset == self->segment->base_offset) {
        self->position = self->segment->first_position;
        return;
    }
    self->position = sc_segment_seek(self->segment, self->mapping, state->offset, self->end, &self->offset);
}

static int walk_segment(walker *self, const sc_tail *tail, int64_t next_base)
{
    bool active = next_base < 0;
    int code = SC_OK;
    if (self->dated)
        self->now_ms = sc_segment_modified_ms(self->segment);
    self->reached = active ? tail->end_offset : next_base;
    if (self->mapping != NULL) {
        self->end = sc_tail_end_in(tail, self->segment, self->mapping);
        seek(self);
        code = walk_batches(self);
    } else { /* who reads it is told */
        self->damaged = true;
        self->position = 0;
    }
    self->state->segment_base = self->segment->base_offset;
    self->state->position = self->position;
    if (code == SC_OK && self->state->offset < self->reached)
        self->state->offset = self->reached;
    return code;
}

/* What is known without walking: as of the log's start, or later. */
static int begin(sc_partition *partition, const sc_tail *tail, sc_producer_state *state, sc_error *error)
{
    sc_segment *segment = NULL;
    int64_t next_base;
    int code = SC_OK;
    sc_producer_state_reset(state, tail->start_offset);
    if (tail->segment_base >= 0)
        code = sc_partition_find(partition, tail, tail->start_offset, &segment, &next_base, error);
    if (segment != NULL)
        state->offset = segment->base_offset;
    sc_segment_release(segment);
    if (code == SC_OK)
        load_snapshot(partition, tail, state);
    return code;
}

static int ensure_begun(sc_partition *partition, const sc_tail *tail, sc_error *error)
{
    if (partition->producers == NULL && (partition->producers = sc_producer_state_new()) == NULL)
        return sc_fail_memory(error);
    int code = begin(partition, tail, partition->producers, error);
    if (code != SC_OK) {
        sc_producer_state_free(partition->producers);
        partition->producers = NULL;
    }
    return code;
}

static void expire(sc_partition *partition, int64_t now_ms)
{
    sc_producer_state *state = partition->producers;
    if (now_ms < state->expiry_ms && state->expiry_ms - now_ms <= EXPIRE_EVERY_MS)
        return;
    state->expiry_ms = now_ms + EXPIRE_EVERY_MS;
    int64_t expiry_ms = sc_topic_settings_read(partition->topic).producer_expiry_ms;
    sc_producer_state_expire(state, now_ms - (expiry_ms > 0 ? expiry_ms : SC_PRODUCER_EXPIRY_MS));
}

/* Takes over the segment of the state's offset, or of the log's start when that is higher. */
static int walk_next(walker *self, sc_tail *tail, int64_t *reached)
{
    sc_producer_state *state = self->state;
    int64_t next_base, offset = state->offset > tail->start_offset ? state->offset : tail->start_offset;
    int code =
        sc_partition_open(self->partition, tail, offset, &self->segment, &next_base, &self->mapping, self->error);
    *reached = next_base < 0 ? tail->end_offset : next_base;
    if (code == SC_OK && self->segment == NULL)
        code = sc_fail(self->error, SC_CORRUPT, "partition %u has no segment for offset %lld",
                       (unsigned)self->partition->number, (long long)offset);
    else if (self->segment != NULL && code != SC_OS) /* of what may be read later, nothing may be missed now */
        code = walk_segment(self, tail, next_base);
    sc_mapping_release(self->mapping);
    sc_segment_release(self->segment);
    self->segment = NULL;
    self->mapping = NULL;
    return code;
}

/* Whether the log begins with a segment without records: what that says of producers is all there is. */
static bool is_head(const sc_producer_state *state, const sc_tail *tail)
{
    return tail->segment_base >= 0 && state->offset == tail->segment_base && state->segment_base < 0 &&
           !SC_CONTROL(head_not_read);
}

int sc_partition_catch_up(sc_partition *partition, const sc_tail *tail, sc_error *error)
{
    walker self = {.partition = partition, .now_ms = sc_os.now_ms(), .error = error};
    sc_tail now = *tail; /* and so it stays, under the lock */
    int64_t reached;
    int code = SC_OK;
    if (partition->producers == NULL || partition->producers->offset > tail->end_offset)
        code = ensure_begun(partition, tail, error);
    self.state = partition->producers;
    while (code == SC_OK && (self.state->offset < tail->end_offset || is_head(self.state, tail))) {
        if (tail->start_offset >= tail->end_offset && !is_head(self.state, tail))
            break;
        code = walk_next(&self, &now, &reached);
    }
    if (code == SC_OK)
        expire(partition, self.now_ms);
    return code;
}

/* ---- as of an offset ------------------------------------------------------------------------------------------ */

static int fail_not_there(sc_partition *partition, int64_t offset, const sc_tail *tail, sc_error *error)
{
    sc_fail(error, SC_RANGE, "partition %u has no segment that ends at offset %lld with all below it decided",
            (unsigned)partition->number, (long long)offset);
    error->offset = tail->start_offset;
    error->position = tail->end_offset;
    return SC_RANGE;
}

static int walk_up_to(sc_partition *partition, sc_producer_state *state, int64_t offset, int64_t known_offset,
                      const uint8_t *known, int64_t known_size, sc_error *error)
{
    walker self = {.partition = partition, .state = state, .dated = true, .error = error};
    sc_tail tail;
    int64_t reached = offset, unused;
    int code = sc_partition_tail(partition, &tail, error);
    if (code != SC_OK)
        return code;
    if (offset < tail.start_offset || offset > tail.stable_offset)
        return fail_not_there(partition, offset, &tail, error);
    sc_tail now = tail;
    if (!SC_CONTROL(producers_beyond_offset))
        tail.end_offset = offset; /* a snapshot of later ones is of no use */
    if (known_offset < 0)
        code = begin(partition, &tail, state, error);
    else if (known_size > 0)
        code = sc_producer_state_decode(state, known, known_size, &unused, error);
    if (known_offset >= 0)
        state->offset = known_offset;
    if (code == SC_OK && known_offset >= 0 && known_offset < tail.start_offset) /* what lay between is gone */
        load_snapshot(partition, &tail, state);
    if (code == SC_OK && state->offset > offset && !SC_CONTROL(producers_beyond_offset))
        return fail_not_there(partition, offset, &now, error);
    while (code == SC_OK && state->offset < offset && reached <= offset)
        code = walk_next(&self, &now, &reached);
    if (code == SC_OK && reached > offset && !SC_CONTROL(producers_beyond_offset))
        return fail_not_there(partition, offset, &now, error);
    return code;
}

static int producers_inside(sc_topic *topic, uint32_t number, int64_t offset, sc_producer_state *state,
                            int64_t known_offset, const uint8_t *known, int64_t known_size, sc_error *error)
{
    sc_partition *partition;
    int code = sc_topic_partition(topic, number, &partition, error);
    if (code == SC_OK)
        code = walk_up_to(partition, state, offset, known_offset, known, known_size, error);
    if (code != SC_OK)
        return code;
    int64_t expiry_ms = sc_topic_settings_read(topic).producer_expiry_ms;
    sc_producer_state_settle(state, INT64_MAX); /* all is decided, if by markers behind the offset */
    sc_producer_state_expire(state, sc_os.now_ms() - (expiry_ms > 0 ? expiry_ms : SC_PRODUCER_EXPIRY_MS));
    state->offset = offset;
    return SC_OK;
}

int sc_partition_producers(sc_topic *topic, uint32_t number, int64_t offset, int64_t known_offset, const uint8_t *known,
                           int64_t known_size, uint8_t **data, int64_t *size, sc_error *error)
{
    *data = NULL;
    *size = 0;
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    sc_producer_state *state = sc_producer_state_new();
    code = state == NULL ? sc_fail_memory(error)
                         : producers_inside(topic, number, offset, state, known_offset, known, known_size, error);
    if (code == SC_OK && state->count > 0) {
        *size = sc_producer_state_encoded_size(state);
        *data = malloc((size_t)*size);
        if (*data == NULL)
            code = sc_fail_memory(error);
        else
            sc_producer_state_encode(state, *data);
    }
    sc_producer_state_free(state);
    sc_topic_leave(topic);
    return code;
}

int sc_producers_look(const uint8_t *data, int64_t size, sc_producers *producers, sc_error *error)
{
    sc_producer_state *state = sc_producer_state_new();
    *producers = (sc_producers){0};
    if (state == NULL)
        return sc_fail_memory(error);
    int code = sc_producer_state_decode(state, data, size, &producers->offset, error);
    for (int64_t i = 0; code == SC_OK && i < state->count; i++)
        if (state->entries[i].id > producers->greatest_id)
            producers->greatest_id = state->entries[i].id;
    producers->count = state->count;
    sc_producer_state_free(state);
    return code;
}
