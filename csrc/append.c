/*
 * Appends. Small ones are laid out straight in the mapped active segment, large ones in memory from where one call
 * copies them; the page cache is one. The order makes them safe:
 *
 *   1. sizes are worked out and input is checked, without a lock
 *   2. lock; find the end of the log; roll when the segment is full, old, or of another schema
 *   3. reserve disk space: a full disk is an error here, and nothing is harmed. Before the file grows, a batch without
 *      records takes up what is left of it: no batch lies across a length that the file once had, so whoever has mapped
 *      it at that length finds whole batches up to its end
 *   4. store every batch but the eight bytes that open the first one
 *   5. store those, and publish the new end: now every reader sees all of it
 *   6. unlock; with durability, wait for the sync that covers it
 *
 * With a producer, the partition's producer state catches up with the log behind 2, and tells whether the append may be
 * made, or was made before. The marker that ends a transaction is an append of one batch without records.
 *
 * A process that dies between 3 and 5 leaves `dirty` set in the slot: the next one repairs before it appends.
 */
#include "append.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"

enum {
    WRITE_SIZE_MIN = 64 << 10,
    SCRATCH_GRAIN = 64 << 10,
    SCRATCH_KEPT_MAX = 32 << 20,
};

static int check_usable(sc_partition *partition, sc_error *error)
{
    sc_state *state = &partition->topic->state;
    int poisoned = atomic_load(&sc_state_slot(state, partition->number)->poisoned);
    if (atomic_load(&sc_state_header_of(state)->deleted) != 0 && !SC_CONTROL(deleted_topic_takes_appends))
        return sc_fail(error, SC_DELETED, "the topic was deleted");
    if (poisoned != 0) {
        errno = poisoned;
        sc_fail_os(error,
                   "an earlier sync of this partition failed: appends are refused until the store is opened anew",
                   state->path);
        return error->code = SC_POISONED;
    }
    return SC_OK;
}

int sc_append_check_slot(sc_append_state *self, sc_error *error)
{
    sc_state *state = &self->partition->topic->state;
    if (atomic_load(&sc_state_header_of(state)->deleted) == 0 &&
        atomic_load(&sc_state_header_of(state)->generation) != self->request->generation)
        return sc_fail(error, SC_STALE, "the topic's settings changed");
    return check_usable(self->partition, error);
}

int sc_append_find_end(sc_append_state *self, sc_error *error)
{
    bool known = sc_slot_read(self->slot, &self->tail);
    if (known && (atomic_load(&self->slot->dirty) == 0 || SC_CONTROL(unfinished_append_left)))
        return SC_OK;
    int64_t durable_offset = known ? self->tail.durable_offset : 0, file_number = known ? self->tail.file_number : 0;
    if (known) /* somebody died in the middle of an append: the writer's mapping may be of a file that is gone */
        sc_writer_close(&self->partition->writer);
    int code = sc_partition_recover(self->partition, true, &self->tail, error);
    if (code != SC_OK)
        return code;
    if (durable_offset > self->tail.durable_offset && durable_offset <= self->tail.end_offset)
        self->tail.durable_offset = durable_offset; /* what was synced stays so */
    self->tail.file_number = file_number + 1;
    sc_slot_publish(self->slot, &self->tail);
    atomic_store(&self->slot->dirty, 0);
    return SC_OK;
}

static int64_t unstable_count(int64_t end_offset, int64_t stable_offset)
{
    return end_offset > stable_offset ? end_offset - stable_offset : 0;
}

static sc_placement placement_of(const sc_append_state *self, int64_t number, int64_t offset)
{
    bool last = number == self->request->batch_count - 1;
    const sc_producer *producer = &self->request->producer;
    int64_t end_offset = offset + (self->control != 0 ? 1 : self->encodings[number].input->count);
    return (sc_placement){
        .base_offset = offset,
        .durable_offset = SC_CONTROL(durable_offset_forgotten) ? 0 : self->tail.durable_offset,
        .start_offset = SC_CONTROL(start_offset_forgotten) ? 0 : self->tail.start_offset,
        .unstable_count = unstable_count(end_offset, self->stable_offset),
        .producer_id = producer->id,
        .producer_epoch = producer->epoch,
        .base_sequence =
            self->control != 0 ? -1 : sc_sequence_after(producer->sequence, offset - self->tail.end_offset),
        .control = self->control,
        .transaction_offset = self->transaction_offset,
        .flags = (uint16_t)((last ? 0 : SC_FLAG_CONTINUED) | (self->control != 0 ? SC_FLAG_CONTROL : 0) |
                            (self->request->transactional ? SC_FLAG_TRANSACTIONAL : 0) |
                            (self->request->log_append_time ? SC_FLAG_LOG_APPEND_TIME : 0)),
    };
}

static void store_opening(sc_append_state *self, int64_t position, const sc_encoding *encoding)
{
    uint64_t *at = (uint64_t *)(void *)(self->partition->writer.data + position);
    __atomic_store_n(at, sc_encoding_opening(encoding), __ATOMIC_RELEASE);
}

/* Lays out each batch where it will lie. */
static void store_batches(void *context)
{
    sc_append_state *self = context;
    int64_t position = self->tail.end_position, offset = self->tail.end_offset;
    for (int64_t i = 0; i < self->request->batch_count; i++) {
        sc_encoding *encoding = &self->encodings[i];
        sc_placement placement = placement_of(self, i, offset);
        sc_encoding_write(encoding, self->partition->writer.data + position, &placement);
        if (i > 0 || SC_CONTROL(first_opening_not_last))
            store_opening(self, position, encoding);
        position += encoding->total_size;
        offset += encoding->input->count;
    }
}

static void store_first_opening(void *context)
{
    sc_append_state *self = context;
    store_opening(self, self->tail.end_position, &self->encodings[0]);
}

/* ---- batches without records ------------------------------------------------------------------------------- */

struct filler {
    sc_append_state *state;
    sc_encoding encoding;
};

static void store_filler(void *context)
{
    struct filler *self = context;
    const sc_tail *tail = &self->state->tail;
    sc_placement placement = {.base_offset = tail->end_offset,
                              .durable_offset =
                                  SC_CONTROL(note_promises_too_much) ? tail->end_offset : tail->durable_offset,
                              .start_offset = SC_CONTROL(start_offset_forgotten) ? 0 : tail->start_offset,
                              .unstable_count = unstable_count(tail->end_offset, tail->stable_offset)};
    sc_encoding_write(&self->encoding, self->state->partition->writer.data + tail->end_position, &placement);
    store_opening(self->state, tail->end_position, &self->encoding);
}

/* Puts a batch without records at the end of the log, up to `end`. The segment is mapped, and marked dirty. */
static int fill_up_to(sc_append_state *self, int64_t end, sc_error *error)
{
    struct filler filler = {.state = self};
    int code = sc_encoding_plan_empty(&filler.encoding, self->layout, end - self->tail.end_position, error);
    if (code != SC_OK)
        return code;
    code = sc_append_store_guarded(self, store_filler, &filler, error);
    sc_encoding_free(&filler.encoding);
    if (code != SC_OK)
        return code;
    self->tail.end_position = end;
    self->tail.proven_offset = self->tail.durable_offset;
    if (self->partition->writer.populated < end)
        self->partition->writer.populated = end;
    return SC_OK;
}

int64_t sc_partition_reserve(const sc_partition *partition, const sc_tail *tail)
{
    const sc_layout *layout = sc_topic_layout(partition->topic, (uint32_t)tail->schema_version);
    return layout == NULL ? SC_OPENING_SIZE : sc_encoding_empty_size(layout);
}

/* What there is to say of a log apart from an append. */
static sc_append_state state_of(sc_partition *partition, const sc_tail *tail)
{
    return (sc_append_state){.partition = partition,
                             .settings = sc_topic_settings_read(partition->topic),
                             .slot = sc_state_slot(&partition->topic->state, partition->number),
                             .tail = *tail,
                             .layout = sc_topic_layout(partition->topic, (uint32_t)tail->schema_version)};
}

int sc_partition_append_empty(sc_partition *partition, sc_tail *tail, sc_error *error)
{
    sc_append_state self = state_of(partition, tail);
    if (self.layout == NULL)
        return sc_fail(error, SC_STALE, "schema version %lld is not known", (long long)tail->schema_version);
    int64_t size = sc_encoding_empty_size(self.layout), end = tail->end_position + size;
    if (end + size > tail->allocated && end <= tail->allocated) /* no batch lies across a length that the file had */
        end = tail->allocated / SC_ALIGNMENT * SC_ALIGNMENT;
    int code = sc_append_allocate(&self, end + size, error);
    if (code == SC_OK)
        code = sc_append_open_writer(&self, end + size, error);
    if (code != SC_OK)
        return code;
    atomic_store(&self.slot->dirty, 1);
    code = fill_up_to(&self, end, error);
    if (code != SC_OK)
        return code;
    sc_slot_publish(self.slot, &self.tail);
    atomic_store(&self.slot->dirty, 0);
    *tail = self.tail;
    return SC_OK;
}

void sc_partition_append_note(sc_partition *partition, sc_slot *slot, sc_tail *tail)
{
    sc_error unused;
    if (tail->segment_base < 0 || tail->sealed || tail->durable_offset < tail->end_offset ||
        tail->proven_offset >= tail->end_offset || atomic_load(&slot->poisoned) != 0 ||
        atomic_load(&slot->dirty) != 0 || tail->end_position + sc_partition_reserve(partition, tail) > tail->allocated)
        return;
    (void)sc_partition_append_empty(partition, tail, &unused);
}

int sc_partition_locked_tail(sc_partition *partition, sc_tail *tail, sc_error *error)
{
    sc_append_state self = {.partition = partition, .slot = sc_state_slot(&partition->topic->state, partition->number)};
    int code = check_usable(partition, error);
    if (code == SC_OK)
        code = sc_append_find_end(&self, error);
    *tail = self.tail;
    return code;
}

int sc_partition_roll_locked(sc_partition *partition, sc_tail *tail, sc_error *error)
{
    sc_append_state self = state_of(partition, tail);
    if (self.layout == NULL)
        return sc_fail(error, SC_STALE, "schema version %lld is not known", (long long)tail->schema_version);
    int code = tail->sealed ? SC_OK : sc_append_seal_segment(&self, error);
    if (code == SC_OK)
        code = sc_append_create_segment(&self, error);
    *tail = self.tail;
    return code;
}

int sc_partition_begin_segment(sc_partition *partition, sc_tail *tail, const sc_producer_state *head, sc_error *error)
{
    sc_append_state self = state_of(partition, tail);
    if (self.layout == NULL)
        return sc_fail(error, SC_STALE, "schema version %lld is not known", (long long)tail->schema_version);
    self.head = head;
    int code = sc_append_create_segment(&self, error);
    *tail = self.tail;
    return code;
}

/* ---- scratch ----------------------------------------------------------------------------------------------- */

void sc_scratch_free(sc_scratch *scratch)
{
    if (scratch != NULL)
        free(scratch->data);
    free(scratch);
}

static sc_scratch *take_scratch(sc_topic *topic, int64_t size)
{
    sc_scratch *scratch = atomic_exchange(&topic->scratch, NULL);
    if (scratch != NULL && scratch->size >= size)
        return scratch;
    sc_scratch_free(scratch);
    scratch = malloc(sizeof *scratch);
    if (scratch == NULL)
        return NULL;
    *scratch = (sc_scratch){.size = sc_round_up(size, SCRATCH_GRAIN)};
    scratch->data = aligned_alloc(SC_ALIGNMENT, (size_t)scratch->size);
    if (scratch->data != NULL)
        return scratch;
    free(scratch);
    return NULL;
}

static void give_scratch(sc_topic *topic, sc_scratch *scratch)
{
    if (scratch->size <= SCRATCH_KEPT_MAX)
        scratch = atomic_exchange(&topic->scratch, scratch);
    sc_scratch_free(scratch);
}

static int write_batch(sc_append_state *self, int fd, int64_t number, int64_t position, int64_t offset, sc_error *error)
{
    sc_encoding *encoding = &self->encodings[number];
    sc_placement placement = placement_of(self, number, offset);
    sc_scratch *scratch = take_scratch(self->partition->topic, encoding->total_size);
    if (scratch == NULL)
        return sc_fail_memory(error);
    memset(scratch->data, 0, (size_t)encoding->total_size);
    sc_encoding_write(encoding, scratch->data, &placement);
    uint64_t opening = sc_encoding_opening(encoding);
    memcpy(scratch->data, &opening, sizeof opening);
    int64_t from = number == 0 && !SC_CONTROL(first_opening_not_last) ? SC_OPENING_SIZE : 0;
    int code = SC_OK;
    if (sc_os_write_whole(fd, scratch->data + from, (size_t)(encoding->total_size - from), position + from) != 0)
        code = sc_fail_os(error, "cannot write to a segment", self->partition->topic->path);
    give_scratch(self->partition->topic, scratch);
    return code;
}

/* Lays out large batches in memory and has the kernel copy them: a page that is written whole needs no zeroing and no
 * page fault, which is worth more than the second copy from 64 KiB on (docs/decisions/0001-write-path.md). */
static int write_batches(sc_append_state *self, sc_error *error)
{
    char path[SC_PATH_MAX];
    int64_t position = self->tail.end_position, offset = self->tail.end_offset;
    int fd = self->partition->writer.fd;
    int code = sc_append_segment_path(self->partition, self->tail.segment_base, "", path, error);
    if (code == SC_OK && fd < 0 && (fd = sc_os.open(path, SC_OPEN_WRITE)) < 0)
        code = sc_fail_os(error, "cannot open the active segment", path);
    for (int64_t i = 0; code == SC_OK && i < self->request->batch_count; i++) {
        code = write_batch(self, fd, i, position, offset, error);
        position += self->encodings[i].total_size;
        offset += self->encodings[i].input->count;
    }
    if (fd >= 0 && fd != self->partition->writer.fd)
        sc_os.close(fd);
    return code;
}

static void note_batches(sc_append_state *self)
{
    sc_segment *segment;
    sc_error unused;
    int64_t next_base, position = self->tail.end_position, offset = self->tail.end_offset;
    if (sc_partition_find(self->partition, &self->tail, self->tail.segment_base, &segment, &next_base, &unused) !=
            SC_OK ||
        segment == NULL)
        return; /* the index is a hint */
    for (int64_t i = 0; i < self->request->batch_count; i++) {
        sc_segment_note(segment, offset, position);
        position += self->encodings[i].total_size;
        offset += self->encodings[i].input->count;
    }
    sc_segment_release(segment);
}

int sc_append_check_room(const sc_append_state *self, sc_error *error)
{
    if (self->record_count <= INT64_MAX - self->tail.end_offset)
        return SC_OK;
    return sc_fail(error, SC_RANGE, "the log ends at offset %lld: there are no more", (long long)self->tail.end_offset);
}

/* Stores the batches at the end of the log, which is known, and publishes them. */
int sc_append_write_locked(sc_append_state *self, sc_error *error)
{
    int code = sc_append_ensure_segment(self, error);
    if (code != SC_OK)
        return code;
    int64_t place = sc_append_place_of(self), end = place + self->total_size,
            reserve = sc_encoding_empty_size(self->layout);
    code = sc_append_allocate(self, end + reserve, error);
    if (code == SC_OK)
        code = sc_append_open_writer(self, end + reserve, error);
    if (code != SC_OK)
        return code;
    atomic_store(&self->slot->dirty, 1); /* stays so when a write fails: the next append then clears what is there */
    if (place > self->tail.end_position)
        code = fill_up_to(self, place, error);
    if (code != SC_OK)
        return code;
    if (SC_CONTROL(end_published_before_bytes)) {
        sc_tail early = self->tail;
        early.end_position = end;
        early.end_offset += self->record_count;
        sc_slot_publish(self->slot, &early);
    }
    if (self->total_size >= WRITE_SIZE_MIN) {
        code = write_batches(self, error);
    } else {
        sc_append_populate(self, end);
        code = sc_append_store_guarded(self, store_batches, self, error);
    }
    if (code == SC_OK)
        code = sc_append_store_guarded(self, store_first_opening, self, error);
    if (code != SC_OK)
        return code;
    note_batches(self);
    sc_counts_append(&self->partition->counts, self->record_count, self->total_size);
    self->tail.end_position = end;
    self->tail.end_offset += self->record_count;
    self->tail.proven_offset = self->tail.durable_offset;
    self->tail.stable_offset = self->stable_offset;
    sc_slot_publish(self->slot, &self->tail);
    atomic_store(&self->slot->dirty, 0);
    return SC_OK;
}

/* ---- producers ----------------------------------------------------------------------------------------------- */

/* Whether the producer may append now. When it has appended just this before, *end_offset is where that ends; else -1.
 */
static int check_producer(sc_append_state *self, int64_t *end_offset, sc_error *error)
{
    const sc_append *request = self->request;
    sc_producer_unit unit;
    bool duplicate;
    int code = sc_partition_catch_up(self->partition, &self->tail, error);
    if (code == SC_OK)
        code = sc_producer_state_check(self->partition->producers, &request->producer, self->record_count,
                                       request->transactional, &duplicate, &unit, error);
    if (code == SC_OK)
        *end_offset = duplicate ? unit.last_offset + 1 : -1;
    return code;
}

/* The log has grown from `old_end` by this append. A failure leaves the state behind, and it catches up when it is
 * needed. */
static void note_producer(sc_append_state *self, int64_t old_end)
{
    sc_producer_state *state = self->partition->producers;
    const sc_producer *producer = &self->request->producer;
    sc_error unused;
    if (state == NULL || state->offset != old_end)
        return;
    if (producer->id == SC_NO_PRODUCER)
        state->offset = self->tail.end_offset;
    else
        (void)sc_producer_state_add(state, producer, old_end, self->tail.end_offset - 1, self->request->transactional,
                                    false, sc_os.now_ms(), &unused);
    state->segment_base = self->tail.segment_base;
    state->position = self->tail.end_position;
}

/* *repeated_end: -1, or where the records end that this append repeats. */
static int append_locked(sc_append_state *self, int64_t *repeated_end, sc_error *error)
{
    const sc_append *request = self->request;
    int code = sc_append_check_slot(self, error);
    if (code == SC_OK)
        code = sc_append_find_end(self, error);
    if (code == SC_OK && request->producer.id != SC_NO_PRODUCER)
        code = check_producer(self, repeated_end, error);
    if (code != SC_OK || *repeated_end >= 0)
        return code;
    if (request->expected_offset >= 0 && request->expected_offset != self->tail.end_offset &&
        !SC_CONTROL(expected_offset_ignored))
        return sc_fail(error, SC_CONFLICT, "the log ends at offset %lld", (long long)self->tail.end_offset);
    code = sc_append_check_room(self, error);
    if (code != SC_OK)
        return code;
    int64_t old_end = self->tail.end_offset;
    bool all_decided = self->tail.stable_offset == old_end && !request->transactional;
    all_decided = all_decided || SC_CONTROL(stable_beyond_open);
    self->stable_offset = all_decided ? old_end + self->record_count : self->tail.stable_offset;
    code = sc_append_write_locked(self, error);
    if (code == SC_OK)
        note_producer(self, old_end);
    return code;
}

/* ---- the append, from outside -------------------------------------------------------------------------------- */

static int plan_batches(sc_append_state *self, sc_error *error)
{
    const sc_append *request = self->request;
    self->encodings = calloc((size_t)request->batch_count, sizeof *self->encodings);
    if (self->encodings == NULL)
        return sc_fail_memory(error);
    for (int64_t i = 0; i < request->batch_count; i++) {
        int code = sc_encoding_plan(&self->encodings[i], self->layout, &request->batches[i],
                                    self->settings.max_record_bytes, error);
        if (code != SC_OK)
            return code;
        self->total_size += self->encodings[i].total_size;
        self->record_count += request->batches[i].count;
    }
    return SC_OK;
}

void sc_append_tell(sc_partition *partition)
{
    atomic_store_explicit(&partition->touched, true, memory_order_relaxed);
    atomic_store_explicit(&partition->unflushed, true, memory_order_relaxed);
    atomic_store_explicit(&partition->unnoted, true, memory_order_relaxed);
    sc_state_wake(&partition->topic->state);
}

static int append_inside(sc_topic *topic, uint32_t number, const sc_append *request, int64_t *first_offset,
                         int64_t *end_offset, sc_error *error)
{
    sc_append_state self = {.request = request, .settings = sc_topic_settings_read(topic)};
    int64_t repeated_end = -1;
    if (!topic->writable)
        return sc_fail(error, SC_READ_ONLY, "the store was opened for reading");
    if (request->batch_count <= 0)
        return sc_fail(error, SC_INVALID, "an append has at least one batch");
    if (request->producer.id < 0 ||
        (request->producer.id != SC_NO_PRODUCER && (request->producer.epoch < 0 || request->producer.sequence < 0)))
        return sc_fail(error, SC_INVALID, "producer %lld, epoch %d, sequence %d: none may be below 0",
                       (long long)request->producer.id, (int)request->producer.epoch, (int)request->producer.sequence);
    if (request->transactional && request->producer.id == SC_NO_PRODUCER)
        return sc_fail(error, SC_INVALID, "an append of a transaction needs a producer");
    self.layout = sc_topic_layout(topic, request->schema_version);
    if (self.layout == NULL)
        return sc_fail(error, SC_STALE, "schema version %u is not known", (unsigned)request->schema_version);
    int code = sc_topic_partition(topic, number, &self.partition, error);
    if (code != SC_OK)
        return code;
    self.slot = sc_state_slot(&topic->state, number);
    code = plan_batches(&self, error);
    if (code == SC_OK)
        code = sc_partition_lock(self.partition, error);
    if (code == SC_OK) {
        code = append_locked(&self, &repeated_end, error);
        sc_partition_unlock(self.partition);
    }
    for (int64_t i = 0; self.encodings != NULL && i < request->batch_count; i++)
        sc_encoding_free(&self.encodings[i]);
    free(self.encodings);
    if (code != SC_OK)
        return code;
    *end_offset = repeated_end >= 0 ? repeated_end : self.tail.end_offset;
    *first_offset = *end_offset - self.record_count;
    if (repeated_end < 0)
        sc_append_tell(self.partition);
    if (SC_CONTROL(acknowledge_before_sync))
        return SC_OK;
    return request->durable ? sc_partition_wait_durable(self.partition, *end_offset, error) : SC_OK;
}

int sc_partition_append(sc_topic *topic, uint32_t number, const sc_append *request, int64_t *first_offset,
                        int64_t *end_offset, sc_error *error)
{
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    code = append_inside(topic, number, request, first_offset, end_offset, error);
    sc_topic_leave(topic);
    return code;
}
