/*
 * Bytes as one batch message: it is looked at, exported and narrowed as a scan does it, and every byte that the result
 * promises is read.
 *
 * Options: 0: bit 0 the typed layout, bit 1 leave the checksums, bit 2 sizes of the header as the input's;
 * 1, 2: the first wanted row, 3, 4: how many.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "mapping.h"

static volatile uint64_t sink;

static void touch(const void *buffer, int64_t size)
{
    const uint8_t *bytes = buffer;
    uint64_t sum = 0;
    for (int64_t i = 0; i < size; i++)
        sum += bytes[i];
    sink += sum;
}

static int64_t end_at(const void *ends, bool large, int64_t row)
{
    return large ? ((const int64_t *)ends)[row] : ((const int32_t *)ends)[row];
}

/* All that a consumer may read of an array without judging single offsets and views: the last one of `whole` is
 * checked. */
static void touch_array(const sc_layout *layout, int32_t index, const struct ArrowArray *array, bool whole)
{
    const sc_field *field = &layout->fields[index];
    int64_t rows = array->offset + array->length;
    bool large = field->kind == SC_KIND_LARGE_BINARY || field->kind == SC_KIND_LARGE_LIST;
    bool ends = large || field->kind == SC_KIND_BINARY || field->kind == SC_KIND_LIST;
    if (array->n_buffers > 0 && array->buffers[0] != NULL)
        touch(array->buffers[0], (rows + 7) / 8);
    if (field->kind == SC_KIND_BOOL)
        touch(array->buffers[1], (rows + 7) / 8);
    if (field->kind == SC_KIND_FIXED)
        touch(array->buffers[1], rows * field->width);
    if (field->kind == SC_KIND_VIEW) {
        touch(array->buffers[1], rows * 16);
        touch(array->buffers[2], ((const int64_t *)array->buffers[3])[0]);
    }
    if (ends && array->buffers[1] != NULL) {
        int64_t first = end_at(array->buffers[1], large, 0);
        touch(array->buffers[1], (rows + 1) * (large ? 8 : 4));
        if (field->children == 0 && whole && rows > 0)
            touch((const uint8_t *)array->buffers[2] + first, end_at(array->buffers[1], large, rows) - first);
    }
    for (int32_t i = 0, child = index + 1; i < field->children; i++, child = layout->fields[child].end)
        touch_array(layout, child, array->children[i], true);
}

static void export_all(const sc_batch *batch)
{
    static const sc_column columns[] = {{.column = 0}, {.column = 1}, {.column = 2},
                                        {.column = 3}, {.column = 4}, {.column = SC_COLUMN_PARTITION}};
    static const sc_column nested[] = {{.column = 3, .depth = 1, .path = {0}},
                                       {.column = 3, .depth = 1, .path = {2}},
                                       {.column = 3, .depth = 1, .path = {4}},
                                       {.column = 3, .depth = 2, .path = {7, 1}}};
    struct ArrowArray array;
    sc_error error;
    int64_t exported = 0;
    const sc_layout *layout = batch->layout;
    if (sc_batch_export(batch, columns, 6, &exported, &array, &error) == SC_OK) {
        for (int i = 0; i < SC_COLUMNS; i++)
            touch_array(layout, layout->columns[i], array.children[i], batch->row_count == batch->record_count);
        touch(array.children[5]->buffers[1], batch->row_count * 4);
        array.release(&array);
    }
    if (!layout->plain && sc_batch_export(batch, nested, 4, &exported, &array, &error) == SC_OK) {
        for (int i = 0; i < 4; i++)
            if (array.children[i]->n_buffers > 0 && array.children[i]->buffers[0] != NULL)
                touch(array.children[i]->buffers[0], (array.children[i]->offset + array.children[i]->length + 7) / 8);
        array.release(&array);
    }
}

static void read_rows(const sc_batch *batch)
{
    sc_rows rows;
    sc_error error;
    if (sc_batch_rows(batch, &rows, &error) != SC_OK)
        return;
    touch(rows.offsets, rows.count * 8);
    touch(rows.timestamps, rows.count * 8);
    if (rows.key_validity != NULL)
        touch(rows.key_validity, (rows.count + 7) / 8);
    if (rows.value_validity != NULL)
        touch(rows.value_validity, (rows.count + 7) / 8);
    for (int64_t i = 0; i < rows.count; i++) {
        touch(rows.keys + rows.key_ends[i], rows.key_ends[i + 1] - rows.key_ends[i]);
        touch(rows.values + rows.value_ends[i], rows.value_ends[i + 1] - rows.value_ends[i]);
    }
    void *memory = NULL;
    sc_rows copy;
    for (int64_t first = batch->first_row, end; first < rows.count; first = end) {
        end = rows.count;
        if (sc_rows_copy(batch, &rows, first, &end, &copy, &memory, &error) != SC_OK || end <= first)
            __builtin_trap();
        int64_t last = end - 1 - first / 8 * 8;
        touch(copy.offsets, (last + 1) * 8);
        touch(copy.keys + copy.key_ends[0], copy.key_ends[last + 1] - copy.key_ends[0]);
        touch(copy.values + copy.value_ends[0], copy.value_ends[last + 1] - copy.value_ends[0]);
    }
    free(memory);
}

/* As a rewriting and a scan of a rewritten segment read it. */
static void read_keys_and_offsets(const sc_batch *whole)
{
    sc_rows rows;
    sc_error error;
    sc_batch batch = *whole;
    if (sc_batch_keys(&batch, &rows, &error) == SC_OK && rows.count > 0) {
        touch(rows.offsets, rows.count * 8);
        touch(rows.keys + rows.key_ends[0], rows.key_ends[rows.count] - rows.key_ends[0]);
        if (rows.value_validity != NULL)
            touch(rows.value_validity, (rows.count + 7) / 8);
    }
    bool sound = sc_batch_check_offsets(&batch, &error) == SC_OK;
    int64_t middle = batch.base_offset + (batch.last_offset - batch.base_offset) / 2;
    if (sc_batch_clip_to_offsets(&batch, middle, batch.last_offset + 1, &error) != SC_OK)
        return;
    if (batch.first_row < 0 || batch.row_count < 0 || batch.first_row + batch.row_count > batch.record_count)
        __builtin_trap();
    if (sound && batch.row_count == 0 && middle == batch.base_offset && batch.record_count > 0)
        __builtin_trap();
}

static void use_batch(const sc_header *header, const uint8_t *message, const sc_layout *layout, const uint8_t *options)
{
    sc_mapping mapping = {0};
    sc_error error;
    bool dense;
    uint16_t numbers[2];
    memcpy(numbers, options + 1, sizeof numbers);
    atomic_init(&mapping.references, 1);
    sc_batch batch = {.message = message,
                      .message_size = header->total_size,
                      .base_offset = header->base_offset,
                      .last_offset = header->last_offset,
                      .record_count = header->record_count,
                      .min_timestamp = header->min_timestamp,
                      .max_timestamp = header->max_timestamp,
                      .flags = header->flags,
                      .layout = layout,
                      .mapping = &mapping};
    batch.first_row = header->record_count > 0 ? numbers[0] % header->record_count : 0;
    batch.row_count = numbers[1] % (header->record_count - batch.first_row + 1);
    if (numbers[0] == 0)
        batch.row_count = header->record_count;
    if (header->record_count > 1 << 20)
        return; /* the rows of a partition column are made: bounded by the batch, but not here */
    export_all(&batch);
    read_rows(&batch);
    read_keys_and_offsets(&batch);
    (void)sc_batch_narrow_to_timestamps(&batch, header->min_timestamp / 2, header->max_timestamp / 2, &dense, &error);
    if (batch.first_row < 0 || batch.row_count < 0 || batch.first_row + batch.row_count > batch.record_count)
        __builtin_trap();
    export_all(&batch);
    if (atomic_load(&mapping.references) != 1)
        __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static sc_layout *layouts[2];
    if (layouts[0] == NULL) {
        layouts[0] = plain_layout(1);
        layouts[1] = layout_of(schema_with_everything(), 1);
    }
    if (size < FUZZ_OPTIONS)
        return 0;
    sc_header header;
    const char *why;
    void *message;
    const uint8_t *options = data;
    size -= FUZZ_OPTIONS;
    if (posix_memalign(&message, SC_ALIGNMENT, size + (size == 0)) != 0)
        return 0;
    memcpy(message, data + FUZZ_OPTIONS, size);
    if ((options[0] & 2) == 0)
        fuzz_seal(message, (int64_t)size, options[0] & 4);
    if (sc_batch_look(message, (int64_t)size, &header, &why) == SC_BATCH_GOOD)
        use_batch(&header, message, layouts[options[0] & 1], options);
    free(message);
    return 0;
}
