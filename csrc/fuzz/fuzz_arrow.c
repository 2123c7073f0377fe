/*
 * Bytes as what comes in through the Arrow C data interface: a schema, and arrays for it (hostile_arrow.h says what may
 * be wrong with them). They are refused, or stored; and then every record that is read back is the one that came.
 *
 * Options: 0: bit 0 also key and headers have any type, bit 1 bytes as a compressed message instead, bit 2 the typed
 * layout for it; 1: rows; 2: first row, 3: bits of columns that are absent, 4: 255 a wild number of rows.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "encode.h"
#include "fuzz.h"
#include "hostile_arrow.h"
#include "mapping.h"
#include "random_array.h"

enum { RECORD_MAX = 1 << 20, WRITTEN_MAX = 8 << 20 };

static struct ArrowSchema *field_schema(const char *format, const char *name)
{
    struct ArrowSchema *schema = hostile_memory(sizeof *schema);
    *schema = (struct ArrowSchema){.format = format, .name = name, .flags = ARROW_FLAG_NULLABLE};
    return schema;
}

static struct ArrowSchema *topic_schema(hostile_input *input, bool all)
{
    struct ArrowSchema *root = field_schema("+s", "");
    root->children = hostile_memory(SC_COLUMNS * sizeof *root->children);
    root->n_children = SC_COLUMNS;
    root->children[SC_COLUMN_OFFSET] = field_schema("l", "offset");
    root->children[SC_COLUMN_TIMESTAMP] = field_schema("tsm:UTC", "timestamp");
    root->children[SC_COLUMN_KEY] = all ? hostile_schema(input, 1) : field_schema("z", "key");
    root->children[SC_COLUMN_VALUE] = hostile_schema(input, 1);
    root->children[SC_COLUMN_HEADERS] = all ? hostile_schema(input, 1) : field_schema("u", "headers");
    return root;
}

static sc_layout *make_layout(hostile_input *input, bool all)
{
    uint8_t message[SCHEMA_SIZE];
    sc_layout *layout = NULL;
    sc_error error;
    schema_message(message, 1);
    int code = sc_layout_new(topic_schema(input, all), message, SCHEMA_SIZE, DIGITS_AT, 1, &layout, &error);
    CHECK(code == SC_OK || (code == SC_INVALID && error.code == SC_INVALID && error.message[0] != 0));
    return code == SC_OK ? layout : NULL;
}

/* ---- reading back ------------------------------------------------------------------------------------------------ */

static void check_column(const sc_layout *layout, int column, const struct ArrowArray *given, int64_t first_row,
                         const struct ArrowArray *read, int64_t count)
{
    int32_t index = layout->columns[column];
    CHECK_EQ(read->length, count);
    for (int64_t row = 0; row < count && given != NULL; row++)
        CHECK(same_value(layout, index, given, first_row + row, read, row));
    if (given == NULL)
        CHECK_EQ(read->null_count, count);
}

static void check_read(const sc_batch *batch, const sc_batch_input *input)
{
    static const sc_column columns[] = {{.column = 0}, {.column = 1}, {.column = 2}, {.column = 3}, {.column = 4}};
    struct ArrowArray array;
    sc_error error;
    sc_rows rows;
    int64_t exported = 0;
    CHECK_OK(sc_batch_export(batch, columns, SC_COLUMNS, &exported, &array, &error), error);
    check_column(batch->layout, SC_COLUMN_KEY, input->key, input->first_row, array.children[2], input->count);
    check_column(batch->layout, SC_COLUMN_VALUE, input->value, input->first_row, array.children[3], input->count);
    check_column(batch->layout, SC_COLUMN_HEADERS, input->headers, input->first_row, array.children[4], input->count);
    array.release(&array);
    bool tells_tombstones = batch->layout->fields[batch->layout->columns[SC_COLUMN_VALUE]].kind != SC_KIND_NULL;
    CHECK_EQ(sc_batch_keys(batch, &rows, &error), tells_tombstones ? SC_OK : SC_INVALID);
    if (batch->layout->plain)
        CHECK_OK(sc_batch_rows(batch, &rows, &error), error);
}

static uint8_t *write_message(sc_encoding *encoding, sc_header *header)
{
    const char *why;
    uint8_t *message = aligned_alloc(SC_ALIGNMENT, (size_t)encoding->total_size);
    CHECK(message != NULL);
    memset(message, 0, (size_t)encoding->total_size);
    sc_encoding_write(encoding, message, &(sc_placement){.base_offset = 5});
    memcpy(message, &(uint64_t){sc_encoding_opening(encoding)}, 8);
    CHECK_EQ(sc_batch_look(message, encoding->total_size, header, &why), SC_BATCH_GOOD);
    CHECK_EQ(sc_batch_checksum(message, header), header->body_crc);
    return message;
}

static void store(const sc_layout *layout, const sc_batch_input *input)
{
    sc_encoding encoding;
    sc_error error;
    sc_header header;
    int code = sc_encoding_plan(&encoding, layout, input, RECORD_MAX, &error);
    if (code != SC_OK) {
        CHECK(code == SC_INVALID || code == SC_TOO_LARGE);
        CHECK(error.code == code && error.message[0] != 0);
        return;
    }
    CHECK(encoding.total_size > 0 && encoding.total_size <= SC_BATCH_BYTES_MAX);
    if (encoding.total_size <= WRITTEN_MAX) {
        sc_mapping mapping = {0};
        atomic_init(&mapping.references, 1);
        uint8_t *message = write_message(&encoding, &header);
        sc_batch batch = {.message = message,
                          .message_size = header.total_size,
                          .base_offset = header.base_offset,
                          .last_offset = header.last_offset,
                          .record_count = header.record_count,
                          .row_count = header.record_count,
                          .layout = layout,
                          .mapping = &mapping};
        if (input->message == NULL)
            check_read(&batch, input);
        else if (input->offsets != NULL && encoding.message.buffer_count > 1)
            (void)sc_batch_check_offsets(&batch, &error);
        CHECK_EQ(atomic_load(&mapping.references), 1);
        free(message);
    }
    sc_encoding_free(&encoding);
}

static void store_arrays(hostile_input *input, const uint8_t *options)
{
    sc_layout *layout = make_layout(input, options[0] & 1);
    if (layout == NULL)
        return;
    int64_t first_row = options[2] % 4, count = 1 + options[1] % 16, least = first_row + count;
    struct ArrowArray *arrays[SC_COLUMNS] = {0};
    for (int column = SC_COLUMN_KEY; column <= SC_COLUMN_HEADERS; column++)
        if ((options[3] >> column & 1) == 0)
            arrays[column] = hostile_array(input, layout, layout->columns[column], least);
    if (options[4] == 255)
        count = hostile_number(input);
    store(layout, &(sc_batch_input){.count = count,
                                    .first_row = first_row,
                                    .key = arrays[SC_COLUMN_KEY],
                                    .value = arrays[SC_COLUMN_VALUE],
                                    .headers = arrays[SC_COLUMN_HEADERS]});
    sc_layout_free(layout);
}

static void store_message(const uint8_t *data, size_t size, const uint8_t *options)
{
    static sc_layout *layouts[2];
    int64_t offsets[256];
    if (layouts[0] == NULL) {
        layouts[0] = plain_layout(1);
        layouts[1] = layout_of(schema_with_everything(), 1);
    }
    for (int i = 0; i < 256; i++)
        offsets[i] = 5 + i;
    uint8_t *message = hostile_memory(size);
    if (size > 0)
        memcpy(message, data, size);
    store(layouts[options[0] >> 2 & 1], &(sc_batch_input){.count = 1 + options[1],
                                                          .message = message,
                                                          .message_size = (int64_t)size,
                                                          .offsets = options[2] & 1 ? offsets : NULL});
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < FUZZ_OPTIONS)
        return 0;
    hostile_input input = {.data = data + FUZZ_OPTIONS, .size = size - FUZZ_OPTIONS};
    if (data[0] & 2)
        store_message(input.data, input.size, data);
    else
        store_arrays(&input, data);
    hostile_free();
    return 0;
}
