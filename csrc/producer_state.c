#include "producer_state.h"

#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"

enum { SLOTS_FIRST = 16 };
static const uint8_t encoded_magic[8] = {'S', 'C', 'P', 'R', 'O', 'D', 'U', '1'};

typedef struct encoded_header {
    uint8_t magic[8];
    uint32_t crc, count;
    int64_t offset, size;
} encoded_header;
static_assert(sizeof(encoded_header) == SC_PRODUCER_HEADER_SIZE, "the encoded header has 32 bytes");

sc_producer_state *sc_producer_state_new(void)
{
    sc_producer_state *state = calloc(1, sizeof *state);
    if (state != NULL)
        state->segment_base = -1;
    return state;
}

void sc_producer_state_free(sc_producer_state *state)
{
    if (state == NULL)
        return;
    free(state->entries);
    free(state->slots);
    free(state->open);
    free(state);
}

void sc_producer_state_reset(sc_producer_state *state, int64_t offset)
{
    if (state->slots != NULL)
        memset(state->slots, 0, (size_t)state->slot_count * sizeof *state->slots);
    state->count = state->open_count = state->unsaved = 0;
    state->offset = offset;
    state->segment_base = -1;
}

/* ---- the table --------------------------------------------------------------------------------------------- */

static uint64_t hash_of(int64_t id)
{
    uint64_t mixed = (uint64_t)id * UINT64_C(0x9e3779b97f4a7c15);
    return mixed ^ mixed >> 32;
}

/* The slot of an id, or the free one where it would be. */
static int64_t slot_of(const sc_producer_state *state, int64_t id)
{
    int64_t at = (int64_t)(hash_of(id) & (uint64_t)(state->slot_count - 1));
    while (state->slots[at] != 0 && state->entries[state->slots[at] - 1].id != id)
        at = (at + 1) & (state->slot_count - 1);
    return at;
}

static void fill_slots(sc_producer_state *state)
{
    memset(state->slots, 0, (size_t)state->slot_count * sizeof *state->slots);
    for (int64_t i = 0; i < state->count; i++)
        state->slots[slot_of(state, state->entries[i].id)] = (uint32_t)(i + 1);
}

static int grow(sc_producer_state *state, sc_error *error)
{
    int64_t capacity = state->capacity == 0 ? SLOTS_FIRST / 2 : state->capacity * 2;
    sc_producer_entry *entries = realloc(state->entries, (size_t)capacity * sizeof *entries);
    if (entries == NULL)
        return sc_fail_memory(error);
    state->entries = entries;
    uint32_t *slots = malloc((size_t)capacity * 2 * sizeof *slots);
    if (slots == NULL)
        return sc_fail_memory(error);
    free(state->slots);
    state->slots = slots;
    state->slot_count = capacity * 2;
    state->capacity = capacity;
    fill_slots(state);
    return SC_OK;
}

static sc_producer_entry *find(const sc_producer_state *state, int64_t id)
{
    uint32_t number = state->count == 0 ? 0 : state->slots[slot_of(state, id)];
    return number == 0 ? NULL : &state->entries[number - 1];
}

const sc_producer_entry *sc_producer_state_find(const sc_producer_state *state, int64_t id)
{
    return find(state, id);
}

/* Keeps those that `keep` wants, in their order. */
static void keep_seen_since(sc_producer_state *state, int64_t before_ms)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < state->count; i++)
        if ((state->entries[i].open_offset >= 0 && !SC_CONTROL(open_transaction_expires)) ||
            state->entries[i].seen_ms >= before_ms)
            state->entries[kept++] = state->entries[i];
    if (kept == state->count)
        return;
    state->count = kept;
    fill_slots(state);
}

static int by_time(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

/* Forgets about half of all producers, those that are idle longest. */
static int forget_idle(sc_producer_state *state, sc_error *error)
{
    int64_t *times = malloc((size_t)state->count * sizeof *times);
    if (times == NULL)
        return sc_fail_memory(error);
    for (int64_t i = 0; i < state->count; i++)
        times[i] = state->entries[i].seen_ms;
    qsort(times, (size_t)state->count, sizeof *times, by_time);
    int64_t middle = times[state->count / 2];
    free(times);
    keep_seen_since(state, middle);
    if (state->count >= SC_PRODUCERS_MAX) /* all of one moment */
        keep_seen_since(state, middle + 1);
    return SC_OK;
}

static int find_or_add(sc_producer_state *state, int64_t id, int16_t epoch, sc_producer_entry **out, sc_error *error)
{
    int code = SC_OK;
    if ((*out = find(state, id)) != NULL)
        return SC_OK;
    if (state->count >= SC_PRODUCERS_MAX)
        code = forget_idle(state, error);
    if (code == SC_OK && state->count >= SC_PRODUCERS_MAX)
        code = sc_fail(error, SC_INVALID, "a partition has at most %d open transactions", SC_PRODUCERS_MAX);
    if (code == SC_OK && state->count == state->capacity)
        code = grow(state, error);
    if (code != SC_OK)
        return code;
    *out = &state->entries[state->count];
    **out = (sc_producer_entry){.id = id, .epoch = epoch, .open_offset = -1};
    state->slots[slot_of(state, id)] = (uint32_t)++state->count;
    return SC_OK;
}

/* ---- open transactions -------------------------------------------------------------------------------------- */

static int open_transaction(sc_producer_state *state, sc_producer_entry *entry, int64_t offset, sc_error *error)
{
    if (state->open_count == state->open_capacity) {
        int64_t capacity = state->open_capacity == 0 ? 8 : state->open_capacity * 2;
        int64_t *grown = realloc(state->open, (size_t)capacity * sizeof *grown);
        if (grown == NULL)
            return sc_fail_memory(error);
        state->open = grown;
        state->open_capacity = capacity;
    }
    state->open[state->open_count++] = entry->id;
    entry->open_offset = offset;
    return SC_OK;
}

static void close_transaction(sc_producer_state *state, sc_producer_entry *entry)
{
    for (int64_t i = 0; i < state->open_count; i++)
        if (state->open[i] == entry->id)
            state->open[i--] = state->open[--state->open_count];
    entry->open_offset = -1;
}

int64_t sc_producer_state_stable(const sc_producer_state *state, int64_t except, int64_t end_offset)
{
    int64_t first = end_offset;
    for (int64_t i = 0; i < state->open_count; i++) {
        const sc_producer_entry *entry = find(state, state->open[i]);
        if (entry->id != except && entry->open_offset < first)
            first = entry->open_offset;
    }
    return first;
}

void sc_producer_state_settle(sc_producer_state *state, int64_t stable_offset)
{
    for (int64_t i = state->open_count - 1; i >= 0; i--) {
        sc_producer_entry *entry = find(state, state->open[i]);
        if (entry->open_offset < stable_offset)
            close_transaction(state, entry);
    }
}

/* ---- checks -------------------------------------------------------------------------------------------------- */

static int check_sequence(const sc_producer_entry *entry, const sc_producer *producer, sc_error *error)
{
    int32_t next = 0;
    if (entry->unit_count > 0 && entry->epoch == producer->epoch) {
        const sc_producer_unit *last = &entry->units[entry->unit_count - 1];
        next = sc_sequence_after(last->first_sequence, last->last_offset - last->first_offset + 1);
    }
    if (producer->sequence == next || (producer->sequence > next && SC_CONTROL(sequence_gap_accepted)) ||
        SC_CONTROL(duplicate_not_recognised))
        return SC_OK;
    return sc_fail(
        error, SC_SEQUENCE,
        "sequence %d of producer %lld (epoch %d): %d comes next here, and this repeats none of its last %d appends",
        (int)producer->sequence, (long long)producer->id, (int)producer->epoch, (int)next, SC_PRODUCER_UNITS);
}

int sc_producer_state_check(const sc_producer_state *state, const sc_producer *producer, int64_t count,
                            bool transactional, bool *duplicate, sc_producer_unit *unit, sc_error *error)
{
    const sc_producer_entry *entry = find(state, producer->id);
    *duplicate = false;
    if (entry == NULL)
        return SC_OK;
    if (producer->epoch < entry->epoch && !SC_CONTROL(fenced_producer_accepted))
        return sc_fail(error, SC_FENCED, "producer %lld has epoch %d here by now: epoch %d is over",
                       (long long)producer->id, (int)entry->epoch, (int)producer->epoch);
    for (int i = 0; producer->epoch == entry->epoch && i < entry->unit_count; i++) {
        *unit = entry->units[i];
        if (unit->first_sequence == producer->sequence && unit->last_offset - unit->first_offset + 1 == count &&
            !SC_CONTROL(duplicate_not_recognised)) {
            *duplicate = true;
            return SC_OK;
        }
    }
    if (entry->open_offset >= 0 && (!transactional || producer->epoch != entry->epoch))
        return sc_fail(error, SC_INVALID, "producer %lld has an open transaction of epoch %d here: end it first",
                       (long long)producer->id, (int)entry->epoch);
    return check_sequence(entry, producer, error);
}

/* ---- taking batches over ------------------------------------------------------------------------------------- */

static void reach(sc_producer_state *state, int64_t offset)
{
    if (state->offset < offset)
        state->offset = offset;
    state->unsaved++;
}

static void remember(sc_producer_entry *entry, int32_t sequence, int64_t first_offset, int64_t last_offset,
                     bool continued)
{
    if (continued && entry->unit_count > 0) {
        entry->units[entry->unit_count - 1].last_offset = last_offset;
        return;
    }
    if (entry->unit_count == SC_PRODUCER_UNITS) {
        memmove(entry->units, entry->units + 1, (SC_PRODUCER_UNITS - 1) * sizeof *entry->units);
        entry->unit_count--;
    }
    entry->units[entry->unit_count++] = (sc_producer_unit){first_offset, last_offset, sequence, 0};
}

static void take_epoch(sc_producer_entry *entry, int16_t epoch)
{
    if (epoch <= entry->epoch)
        return;
    entry->epoch = epoch;
    entry->unit_count = 0;
    memset(entry->units, 0, sizeof entry->units);
}

int sc_producer_state_add(sc_producer_state *state, const sc_producer *producer, int64_t first_offset,
                          int64_t last_offset, bool transactional, bool continued, int64_t now_ms, sc_error *error)
{
    sc_producer_entry *entry;
    int code = find_or_add(state, producer->id, producer->epoch, &entry, error);
    if (code == SC_OK && transactional && entry->open_offset < 0)
        code = open_transaction(state, entry, first_offset, error);
    if (code != SC_OK)
        return code;
    take_epoch(entry, producer->epoch);
    if (producer->sequence >= 0)
        remember(entry, producer->sequence, first_offset, last_offset, continued);
    entry->seen_ms = now_ms;
    reach(state, last_offset + 1);
    return SC_OK;
}

int sc_producer_state_end(sc_producer_state *state, const sc_producer *producer, int64_t marker_offset, int64_t now_ms,
                          sc_error *error)
{
    sc_producer_entry *entry;
    int code = find_or_add(state, producer->id, producer->epoch, &entry, error);
    if (code != SC_OK)
        return code;
    take_epoch(entry, producer->epoch);
    close_transaction(state, entry);
    entry->seen_ms = now_ms;
    reach(state, marker_offset + 1);
    return SC_OK;
}

int sc_producer_state_apply(sc_producer_state *state, const sc_header *header, bool continued, int64_t now_ms,
                            sc_error *error)
{
    sc_producer producer = {header->producer_id, header->producer_epoch, header->base_sequence};
    bool control = (header->flags & SC_FLAG_CONTROL) != 0, transactional = (header->flags & SC_FLAG_TRANSACTIONAL) != 0;
    if (producer.id > 0 && control && (header->control == SC_CONTROL_COMMIT || header->control == SC_CONTROL_ABORT))
        return sc_producer_state_end(state, &producer, header->last_offset, now_ms, error);
    if (producer.id > 0 && !control)
        return sc_producer_state_add(state, &producer, header->base_offset, header->last_offset, transactional,
                                     continued, now_ms, error);
    reach(state, header->last_offset + 1);
    return SC_OK;
}

void sc_producer_state_expire(sc_producer_state *state, int64_t before_ms)
{
    keep_seen_since(state, before_ms);
}

/* ---- the encoded form ---------------------------------------------------------------------------------------- */

int64_t sc_producer_state_encoded_size(const sc_producer_state *state)
{
    return SC_PRODUCER_HEADER_SIZE + state->count * (int64_t)sizeof(sc_producer_entry);
}

static uint32_t crc_of(const uint8_t *data, int64_t size)
{
    return sc_crc32c(0, data + 12, (size_t)size - 12);
}

void sc_producer_state_encode(const sc_producer_state *state, uint8_t *at)
{
    encoded_header header = {
        .count = (uint32_t)state->count, .offset = state->offset, .size = sc_producer_state_encoded_size(state)};
    memcpy(header.magic, encoded_magic, sizeof header.magic);
    memcpy(at, &header, sizeof header);
    if (state->count > 0)
        memcpy(at + sizeof header, state->entries, (size_t)state->count * sizeof *state->entries);
    header.crc = crc_of(at, header.size);
    memcpy(at, &header, sizeof header);
}

static bool is_sound(const sc_producer_entry *entry)
{
    bool sound = entry->id > 0 && entry->open_offset >= -1 && entry->unit_count <= SC_PRODUCER_UNITS;
    for (int i = 0; sound && i < entry->unit_count; i++) {
        const sc_producer_unit *unit = &entry->units[i];
        sound = unit->first_sequence >= 0 && unit->first_offset >= 0 && unit->last_offset >= unit->first_offset &&
                unit->last_offset < INT64_MAX;
    }
    return sound;
}

static int take_entry(sc_producer_state *state, const sc_producer_entry *from, sc_error *error)
{
    sc_producer_entry *entry;
    int code = find_or_add(state, from->id, from->epoch, &entry, error);
    if (code != SC_OK)
        return code;
    close_transaction(state, entry);
    *entry = *from;
    entry->open_offset = -1;
    return from->open_offset < 0 ? SC_OK : open_transaction(state, entry, from->open_offset, error);
}

int sc_producer_state_decode(sc_producer_state *state, const uint8_t *data, int64_t size, int64_t *offset,
                             sc_error *error)
{
    encoded_header header = {0};
    if (size >= (int64_t)sizeof header)
        memcpy(&header, data, sizeof header);
    bool sound = memcmp(header.magic, encoded_magic, sizeof header.magic) == 0 && header.offset >= 0 &&
                 header.count <= SC_PRODUCERS_MAX && header.size <= size &&
                 header.size == SC_PRODUCER_HEADER_SIZE + (int64_t)header.count * (int64_t)sizeof(sc_producer_entry) &&
                 (crc_of(data, header.size) == header.crc || SC_CONTROL(producers_checksum_ignored));
    sc_producer_entry entry;
    for (uint32_t i = 0; sound && i < header.count; i++) {
        memcpy(&entry, data + sizeof header + i * sizeof entry, sizeof entry);
        sound = is_sound(&entry);
    }
    if (!sound)
        return sc_fail(error, SC_CORRUPT, "this is no sound state of producers");
    for (uint32_t i = 0; i < header.count; i++) {
        memcpy(&entry, data + sizeof header + i * sizeof entry, sizeof entry);
        int code = take_entry(state, &entry, error);
        if (code != SC_OK)
            return code;
    }
    *offset = header.offset;
    return SC_OK;
}
