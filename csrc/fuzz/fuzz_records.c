/*
 * Bytes as records with keys, values and headers, which a send buffer's batch gathers, an append encodes and a reader
 * takes out again: each is the one that was put in. Memory stays below the limit, and what finds no room is not in.
 *
 * Options: 0, 1: the limit of memory in units of 64 bytes.
 * Then records: a byte (bit 0 no key, bit 1 no value, bit 2 a tag, bits 3 to 5 headers, bit 6 the batch is read and
 * used again), sizes of key and value, a byte of time; for each header a byte (bit 0 no value) and two sizes. Bytes of
 * keys and values are those that follow the sizes.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "encode.h"
#include "fuzz.h"
#include "memory_batch.h"
#include "send_batch.h"

enum { RECORDS_MAX = 512, HEADERS_MAX = 7 };

typedef struct made_record {
    sc_send_record record;
    sc_send_header headers[HEADERS_MAX];
    int64_t timestamp;
} made_record;

typedef struct reader {
    const uint8_t *data;
    size_t size, at;
} reader;

static sc_layout *layout;

static uint8_t next(reader *from)
{
    return from->at < from->size ? from->data[from->at++] : 0;
}

/* At most what is left; an absent one has no bytes. */
static sc_bytes take(reader *from, int64_t size, bool absent)
{
    int64_t left = (int64_t)(from->size - from->at);
    sc_bytes bytes = {from->data + from->at, size < left ? size : left};
    if (absent)
        return (sc_bytes){NULL, 0};
    from->at += (size_t)bytes.size;
    return bytes;
}

static uint8_t make_record(reader *from, made_record *made)
{
    uint8_t kind = next(from), key = next(from), value = next(from);
    made->timestamp = next(from) - 100;
    made->record = (sc_send_record){.key = take(from, key, kind & 1), .value = take(from, value * 3, kind & 2)};
    made->record.tag = kind & 4 ? made : NULL;
    made->record.header_count = kind >> 3 & 7;
    made->record.headers = made->headers;
    for (int32_t i = 0; i < made->record.header_count; i++) {
        uint8_t what = next(from), key_size = next(from), value_size = next(from);
        made->headers[i].key = take(from, key_size % 32, false);
        made->headers[i].value = take(from, value_size, what & 1);
    }
    return kind;
}

/* ---- reading back ------------------------------------------------------------------------------------------------ */

static void check_bytes(const struct ArrowArray *array, int64_t row, sc_bytes wanted)
{
    const uint8_t *validity = array->buffers[0];
    const int32_t *ends = array->buffers[1];
    bool valid = validity == NULL || (validity[row / 8] >> (row % 8) & 1);
    CHECK_EQ(valid, wanted.data != NULL);
    CHECK_EQ(ends[row + 1] - ends[row], wanted.size);
    CHECK(wanted.size == 0 ||
          memcmp((const uint8_t *)array->buffers[2] + ends[row], wanted.data, (size_t)wanted.size) == 0);
}

static void check_headers(const struct ArrowArray *headers, const made_record *made, int64_t count)
{
    const int32_t *ends = headers->buffers[1];
    const struct ArrowArray *entries = headers->children[0];
    for (int64_t row = 0; row < count; row++) {
        const sc_send_record *record = &made[row].record;
        CHECK_EQ(ends[row + 1] - ends[row], record->header_count);
        for (int32_t i = 0; i < record->header_count; i++) {
            check_bytes(entries->children[0], ends[row] + i, record->headers[i].key);
            check_bytes(entries->children[1], ends[row] + i, record->headers[i].value);
        }
    }
}

static void check_batch(const sc_batch *batch, const made_record *made)
{
    static const sc_column columns[] = {{.column = 1}, {.column = 2}, {.column = 3}, {.column = 4}};
    struct ArrowArray array;
    sc_error error;
    int64_t bytes = 0;
    CHECK_OK(sc_batch_export(batch, columns, 4, &bytes, &array, &error), error);
    for (int64_t row = 0; row < batch->record_count; row++) {
        CHECK_EQ(((const int64_t *)array.children[0]->buffers[1])[row], made[row].timestamp);
        check_bytes(array.children[1], row, made[row].record.key);
        check_bytes(array.children[2], row, made[row].record.value);
    }
    check_headers(array.children[3], made, batch->record_count);
    array.release(&array);
}

/* As an append and a scan do it. */
static void encode_and_check(const sc_send_batch *from, const made_record *made)
{
    sc_send_arrays arrays;
    sc_batch_input input;
    memory_batch written;
    if (from->count == 0)
        return;
    sc_send_batch_input(from, false, &arrays, &input);
    memory_batch_write(layout, &input, 1000, &written);
    CHECK_EQ(written.batch.record_count, from->count);
    check_batch(&written.batch, made);
    memory_batch_free(&written);
    const sc_send_tag *tags = sc_send_batch_tags(from);
    for (int64_t row = 0, tag = 0; row < from->count; row++)
        if (made[row].record.tag != NULL) {
            CHECK(tag < from->tag_count && tags[tag].row == row && tags[tag].tag == made[row].record.tag);
            tag++;
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static made_record made[RECORDS_MAX];
    uint16_t limit;
    if (layout == NULL)
        layout = plain_layout(1);
    if (size < FUZZ_OPTIONS)
        return 0;
    memcpy(&limit, data, sizeof limit);
    reader from = {.data = data, .size = size, .at = FUZZ_OPTIONS};
    sc_send_room room = {.limit = (int64_t)limit * 64};
    sc_send_batch *batch = sc_send_batch_new(&room);
    while (batch != NULL && from.at < size) {
        if (batch->count == RECORDS_MAX)
            break;
        made_record *one = &made[batch->count];
        uint8_t kind = make_record(&from, one);
        int code = sc_send_batch_reserve(batch, &room, &one->record);
        CHECK(code == SC_OK || code == SC_END);
        CHECK(room.used <= room.limit && room.used == batch->memory);
        if (code == SC_OK)
            sc_send_batch_put(batch, &room, &one->record, one->timestamp);
        if (code == SC_END || kind & 64) {
            encode_and_check(batch, made);
            sc_send_batch_clear(batch);
        }
    }
    if (batch != NULL) {
        encode_and_check(batch, made);
        sc_send_batch_free(batch, &room);
    }
    CHECK_EQ(room.used, 0);
    return 0;
}
