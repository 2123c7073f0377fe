/*
 * One batch of a send buffer: Arrow columns that grow record by record.
 *
 * A record is put in two steps: first all memory that it needs is reserved, which may fail and changes no row; then it
 * is written, which cannot fail. A column that has only nulls so far stores nothing; its first value makes up for the
 * rows before it. Validity bits exist from the first null on.
 */
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "send_batch.h"

enum { MEMORY_FIRST = 256 };

static int64_t round_up(int64_t size, int64_t to)
{
    return (size + to - 1) / to * to;
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

static int grow(sc_send_batch *batch, sc_send_room *room, sc_send_memory *memory, int64_t needed)
{
    int64_t free_bytes = room->limit - room->used + memory->capacity;
    int64_t wanted = memory->capacity * 2 > needed ? memory->capacity * 2 : needed;
    wanted = round_up(wanted < MEMORY_FIRST ? MEMORY_FIRST : wanted, SC_ALIGNMENT);
    if (wanted > free_bytes)
        wanted = round_up(needed, SC_ALIGNMENT);
    if (wanted > free_bytes)
        return SC_END;
    uint8_t *data = realloc(memory->data, (size_t)wanted);
    if (data == NULL)
        return SC_MEMORY;
    room->used += wanted - memory->capacity;
    batch->memory += wanted - memory->capacity;
    *memory = (sc_send_memory){data, wanted};
    return SC_OK;
}

static inline int reserve(sc_send_batch *batch, sc_send_room *room, sc_send_memory *memory, int64_t needed)
{
    return needed <= memory->capacity ? SC_OK : grow(batch, room, memory, needed);
}

sc_send_batch *sc_send_batch_new(sc_send_room *room)
{
    if (room->limit - room->used < (int64_t)sizeof(sc_send_batch))
        return NULL;
    sc_send_batch *batch = calloc(1, sizeof *batch);
    if (batch == NULL)
        return NULL;
    batch->memory = sizeof *batch;
    room->used += batch->memory;
    return batch;
}

static void column_free(sc_send_column *column)
{
    free(column->validity.data);
    free(column->ends.data);
    free(column->data.data);
}

void sc_send_batch_free(sc_send_batch *batch, sc_send_room *room)
{
    room->used -= batch->memory;
    column_free(&batch->key);
    column_free(&batch->value);
    column_free(&batch->headers);
    column_free(&batch->header_key);
    column_free(&batch->header_value);
    free(batch->timestamps.data);
    free(batch->tags.data);
    free(batch->objects.data);
    free(batch);
}

static void column_clear(sc_send_column *column)
{
    column->present = false;
    column->count = column->nulls = column->size = 0;
}

void sc_send_batch_clear(sc_send_batch *batch)
{
    sc_send_batch kept = *batch;
    column_clear(&kept.key);
    column_clear(&kept.value);
    column_clear(&kept.headers);
    column_clear(&kept.header_key);
    column_clear(&kept.header_value);
    *batch = (sc_send_batch){
        .key = kept.key,
        .value = kept.value,
        .headers = kept.headers,
        .header_key = kept.header_key,
        .header_value = kept.header_value,
        .timestamps = kept.timestamps,
        .tags = kept.tags,
        .objects = kept.objects,
        .memory = kept.memory,
        .first_offset = -1,
        .end_offset = -1,
    };
}

/* ---- columns ----------------------------------------------------------------------------------------------- */

/* For `rows` more, with `size` bytes, some of them null or none. `stored`: also when all are null. */
static inline int column_reserve(sc_send_batch *batch, sc_send_room *room, sc_send_column *column, int64_t rows,
                                 int64_t size, bool nulls, bool stored)
{
    if (!column->present && nulls && !stored)
        return SC_OK;
    int code = reserve(batch, room, &column->ends, (column->count + rows + 1) * 4);
    if (code == SC_OK)
        code = reserve(batch, room, &column->data, column->size + size);
    if (code == SC_OK && (nulls || column->nulls > 0 || (!column->present && column->count > 0)))
        code = reserve(batch, room, &column->validity, (column->count + rows + 7) / 8);
    return code;
}

/* All rows so far are null, and are stored from now on. */
static void column_begin(sc_send_column *column)
{
    memset(column->ends.data, 0, (size_t)(column->count + 1) * 4);
    if (column->count > 0)
        memset(column->validity.data, 0, (size_t)(column->count + 7) / 8);
    column->nulls = column->count;
    column->present = true;
}

static void column_note_validity(sc_send_column *column, bool null)
{
    uint8_t *bits = column->validity.data;
    int64_t row = column->count;
    if (column->nulls == 0 && !SC_CONTROL(earlier_records_not_valid)) {
        memset(bits, 0xff, (size_t)(row / 8));
        if (row % 8 != 0)
            bits[row / 8] = (uint8_t)((1 << (row % 8)) - 1);
    }
    if (row % 8 == 0)
        bits[row / 8] = 0;
    if (null)
        column->nulls++;
    else
        bits[row / 8] |= (uint8_t)(1 << (row % 8));
}

/* A row that ends at `end`: of the column's bytes, or of the rows below a list. */
static inline void column_put_end(sc_send_column *column, int64_t end, bool null, bool stored)
{
    if (!column->present) {
        if (null && !stored) {
            column->count++;
            return;
        }
        column_begin(column);
    }
    if (null || column->nulls > 0)
        column_note_validity(column, null);
    ((int32_t *)(void *)column->ends.data)[++column->count] = (int32_t)end;
}

static inline void column_put(sc_send_column *column, sc_bytes bytes, bool stored)
{
    if (bytes.size > 0)
        memcpy(column->data.data + column->size, bytes.data, (size_t)bytes.size);
    column->size += bytes.size;
    column_put_end(column, column->size, bytes.data == NULL, stored);
}

/* ---- records ----------------------------------------------------------------------------------------------- */

static int reserve_headers(sc_send_batch *batch, sc_send_room *room, const sc_send_record *record)
{
    int64_t keys = 0, values = 0, count = record->header_count;
    bool nulls = false;
    for (int64_t i = 0; i < count; i++) {
        keys += record->headers[i].key.size;
        values += record->headers[i].value.size;
        nulls = nulls || record->headers[i].value.data == NULL;
    }
    int code = column_reserve(batch, room, &batch->headers, 1, 0, count == 0, false);
    if (code == SC_OK && count > 0)
        code = column_reserve(batch, room, &batch->header_key, count, keys, false, true);
    if (code == SC_OK && count > 0)
        code = column_reserve(batch, room, &batch->header_value, count, values, nulls, true);
    return code;
}

static int reserve_rest(sc_send_batch *batch, sc_send_room *room, const sc_send_record *record)
{
    int code = reserve_headers(batch, room, record);
    if (code == SC_OK && record->tag != NULL)
        code = reserve(batch, room, &batch->tags, (batch->tag_count + 1) * (int64_t)sizeof(sc_send_tag));
    if (code == SC_OK && record->object != NULL)
        code = reserve(batch, room, &batch->objects, (batch->count + 1) * (int64_t)sizeof(void *));
    if (code == SC_OK && room->limit - room->used < record->object_bytes)
        code = SC_END;
    return code;
}

int sc_send_batch_reserve(sc_send_batch *batch, sc_send_room *room, const sc_send_record *record)
{
    int code = reserve(batch, room, &batch->timestamps, (batch->count + 1) * 8);
    if (code == SC_OK)
        code = column_reserve(batch, room, &batch->value, 1, record->value.size, record->value.data == NULL, false);
    if (code == SC_OK)
        code = column_reserve(batch, room, &batch->key, 1, record->key.size, record->key.data == NULL, false);
    if (code == SC_OK &&
        (record->header_count > 0 || batch->headers.present || record->tag != NULL || record->object != NULL))
        code = reserve_rest(batch, room, record);
    return code;
}

static void put_rest(sc_send_batch *batch, sc_send_room *room, const sc_send_record *record)
{
    for (int64_t i = 0; i < record->header_count; i++) {
        column_put(&batch->header_key, record->headers[i].key, true);
        column_put(&batch->header_value, record->headers[i].value, true);
    }
    if (record->tag != NULL)
        ((sc_send_tag *)(void *)batch->tags.data)[batch->tag_count++] = (sc_send_tag){batch->count, record->tag};
    if (record->object != NULL) {
        ((void **)(void *)batch->objects.data)[batch->count] = record->object;
        batch->has_objects = true;
        batch->memory += record->object_bytes;
        batch->object_bytes += record->object_bytes;
        room->used += record->object_bytes;
    }
}

void sc_send_batch_put(sc_send_batch *batch, sc_send_room *room, const sc_send_record *record, int64_t timestamp)
{
    ((int64_t *)(void *)batch->timestamps.data)[batch->count] = timestamp;
    column_put(&batch->value, record->value, false);
    column_put(&batch->key, record->key, false);
    if (record->header_count > 0 || record->tag != NULL || record->object != NULL)
        put_rest(batch, room, record);
    column_put_end(&batch->headers, batch->header_key.count, record->header_count == 0, false);
    batch->count++;
    batch->bytes += sc_send_record_bytes(record);
}

void sc_send_batch_drop_objects(sc_send_batch *batch, sc_send_room *room)
{
    batch->memory -= batch->object_bytes;
    room->used -= batch->object_bytes;
    batch->object_bytes = 0;
}

/* ---- as Arrow arrays --------------------------------------------------------------------------------------- */

static void make_array(struct ArrowArray *array, const void **buffers, int64_t buffer_count, int64_t length,
                       int64_t nulls)
{
    *array = (struct ArrowArray){.length = length, .null_count = nulls, .n_buffers = buffer_count, .buffers = buffers};
}

static const struct ArrowArray *column_array(const sc_send_column *column, const void **buffers,
                                             struct ArrowArray *array)
{
    if (!column->present)
        return NULL;
    buffers[0] = column->nulls > 0 ? column->validity.data : NULL;
    buffers[1] = column->ends.data;
    buffers[2] = column->data.data;
    make_array(array, buffers, 3, column->count, column->nulls);
    return array;
}

void sc_send_batch_input(const sc_send_batch *batch, bool log_append_time, sc_send_arrays *arrays,
                         sc_batch_input *input)
{
    *input = (sc_batch_input){
        .count = batch->count,
        .key = column_array(&batch->key, arrays->buffers[0], &arrays->key),
        .value = column_array(&batch->value, arrays->buffers[1], &arrays->value),
        .timestamps = log_append_time ? NULL : (const int64_t *)(const void *)batch->timestamps.data,
    };
    if (!batch->headers.present)
        return;
    column_array(&batch->header_key, arrays->buffers[2], &arrays->header_key);
    column_array(&batch->header_value, arrays->buffers[3], &arrays->header_value);
    arrays->pair[0] = &arrays->header_key;
    arrays->pair[1] = &arrays->header_value;
    arrays->buffers[4][0] = NULL;
    make_array(&arrays->entry, arrays->buffers[4], 1, batch->header_key.count, 0);
    arrays->entry.n_children = 2;
    arrays->entry.children = arrays->pair;
    arrays->entries[0] = &arrays->entry;
    column_array(&batch->headers, arrays->buffers[5], &arrays->headers);
    arrays->headers.n_buffers = 2;
    arrays->headers.n_children = 1;
    arrays->headers.children = arrays->entries;
    input->headers = &arrays->headers;
}

const sc_send_tag *sc_send_batch_tags(const sc_send_batch *batch)
{
    return (const sc_send_tag *)(const void *)batch->tags.data;
}

void *const *sc_send_batch_objects(const sc_send_batch *batch)
{
    return batch->has_objects ? (void *const *)(const void *)batch->objects.data : NULL;
}
