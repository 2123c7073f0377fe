#include "check.h"
#include "memory_batch.h"
#include "plain_topic.h"
#include "random_array.h"

enum { MAX_RECORD = 1 << 20, BASE = 1000 };

/* A batch in memory, and the same as an array of all five columns. */
typedef struct written {
    memory_batch memory;
    sc_batch batch;
    struct ArrowArray array;
} written;

static void write_batch(const sc_layout *layout, const sc_batch_input *input, written *out)
{
    static const sc_column columns[SC_COLUMNS] = {
        {.column = 0}, {.column = 1}, {.column = 2}, {.column = 3}, {.column = 4}};
    sc_error error;
    int64_t exported = 0;
    memory_batch_write(layout, input, BASE, &out->memory);
    out->batch = out->memory.batch;
    CHECK_OK(sc_batch_export(&out->batch, columns, SC_COLUMNS, &exported, &out->array, &error), error);
}

static void written_free(written *out)
{
    out->array.release(&out->array);
    memory_batch_free(&out->memory);
}

static int plan_code(const sc_layout *layout, const sc_batch_input *input, int64_t max_record, sc_error *error)
{
    sc_encoding encoding;
    int code = sc_encoding_plan(&encoding, layout, input, max_record, error);
    if (code == SC_OK)
        sc_encoding_free(&encoding);
    return code;
}

/* ---- rows -------------------------------------------------------------------------------------------------- */

static void test_rows_of_bytes_come_back_with_nulls_and_empties(void)
{
    sc_layout *layout = plain_layout(1);
    static const sc_bytes keys[] = {{(const uint8_t *)"k0", 2}, {NULL, 0}, {(const uint8_t *)"", 0}};
    static const sc_bytes values[] = {{NULL, 0}, {(const uint8_t *)"value", 5}, {(const uint8_t *)"x", 1}};
    static const int64_t times[] = {5, -7, 3};
    written out;
    sc_rows rows;
    sc_error error;
    write_batch(layout, &(sc_batch_input){.count = 3, .keys = keys, .values = values, .timestamps = times}, &out);
    CHECK_OK(sc_batch_rows(&out.batch, &rows, &error), error);
    CHECK_EQ(rows.count, 3);
    CHECK_EQ(out.batch.min_timestamp, -7);
    CHECK_EQ(out.batch.max_timestamp, 5);
    CHECK_EQ(rows.key_validity[0], 5);
    CHECK_EQ(rows.value_validity[0], 6);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(rows.offsets[i], BASE + i);
        CHECK_EQ(rows.timestamps[i], times[i]);
        CHECK_EQ(rows.key_ends[i + 1] - rows.key_ends[i], keys[i].size);
        CHECK_EQ(rows.value_ends[i + 1] - rows.value_ends[i], values[i].size);
        CHECK(memcmp(rows.values + rows.value_ends[i], i == 1 ? "value" : "x", (size_t)values[i].size) == 0);
    }
    written_free(&out);
    sc_layout_free(layout);
}

static void test_columns_without_nulls_have_no_validity(void)
{
    sc_layout *layout = plain_layout(1);
    sc_bytes value = {(const uint8_t *)"v", 1};
    written out;
    sc_rows rows;
    sc_error error;
    write_batch(layout, &(sc_batch_input){.count = 1, .values = &value, .timestamp = 77}, &out);
    CHECK_OK(sc_batch_rows(&out.batch, &rows, &error), error);
    CHECK(rows.value_validity == NULL);
    CHECK_EQ(rows.timestamps[0], 77);
    CHECK_EQ(rows.key_validity[0] & 1, 0);
    written_free(&out);
    sc_layout_free(layout);
}

static void test_absent_columns_are_null_and_share_one_run_of_zeros(void)
{
    sc_layout *layout = plain_layout(1);
    written out;
    write_batch(layout, &(sc_batch_input){.count = 1000, .timestamp = 1}, &out);
    for (int column = SC_COLUMN_KEY; column <= SC_COLUMN_HEADERS; column++) {
        CHECK_EQ(out.array.children[column]->null_count, 1000);
        for (int i = 0; i < 125; i++)
            CHECK_EQ(((const uint8_t *)out.array.children[column]->buffers[0])[i], 0);
    }
    CHECK(out.array.children[SC_COLUMN_KEY]->buffers[1] == out.array.children[SC_COLUMN_VALUE]->buffers[1]);
    CHECK_EQ(out.batch.flags & SC_FLAG_HAS_HEADERS, 0);
    CHECK(out.batch.message_size < 1000 * 16 + 4096 + 1024);
    written_free(&out);
    sc_layout_free(layout);
}

/* ---- arrays ------------------------------------------------------------------------------------------------ */

static void check_column(const sc_layout *layout, int column, const struct ArrowArray *wanted, int64_t first,
                         const struct ArrowArray *found, int64_t count)
{
    CHECK_EQ(found->length, count);
    for (int64_t i = 0; i < count; i++)
        CHECK(same_value(layout, layout->columns[column], wanted, first + i, found, i));
}

/* Random arrays of the type for all three columns, with offsets of their own, and batches cut out of them. */
static void round_trip(sc_layout *layout, uint64_t seed)
{
    random_seed(seed);
    int64_t length = 1 + random_below(seed % 5 == 0 ? 600 : 40);
    struct ArrowArray *key = random_array(layout, layout->columns[SC_COLUMN_KEY], length);
    struct ArrowArray *value = random_array(layout, layout->columns[SC_COLUMN_VALUE], length);
    struct ArrowArray *headers = random_array(layout, layout->columns[SC_COLUMN_HEADERS], length);
    for (int part = 0; part < 4; part++) {
        int64_t first = random_below((uint32_t)length), count = 1 + random_below((uint32_t)(length - first));
        sc_batch_input input = {.count = count, .first_row = first, .key = key, .value = value, .headers = headers};
        written out;
        write_batch(layout, &input, &out);
        check_column(layout, SC_COLUMN_KEY, key, first, out.array.children[SC_COLUMN_KEY], count);
        check_column(layout, SC_COLUMN_VALUE, value, first, out.array.children[SC_COLUMN_VALUE], count);
        check_column(layout, SC_COLUMN_HEADERS, headers, first, out.array.children[SC_COLUMN_HEADERS], count);
        CHECK(out.batch.flags & SC_FLAG_HAS_HEADERS);
        written_free(&out);
    }
    random_array_free(key);
    random_array_free(value);
    random_array_free(headers);
    sc_layout_free(layout);
}

static struct ArrowSchema *nested_value(void)
{
    return schema_new(
        "+s", "value", 6, schema_new("i", "number", 0), schema_new("b", "truth", 0),
        schema_new("+l", "texts", 1, schema_new("vu", "item", 0)),
        schema_new("+w:3", "fixed", 1, schema_new("+L", "inner", 1, schema_new("Z", "item", 0))),
        schema_new("+s", "pair", 2, schema_new("n", "nothing", 0), schema_new("w:5", "five", 0)),
        schema_new("+m", "map", 1, schema_new("+s", "entries", 2, schema_new("u", "k", 0), schema_new("tin", "v", 0))));
}

static void test_sliced_arrays_of_every_type_come_back_equal(void)
{
    static const char *const formats[] = {"n",   "b",   "c", "s", "i", "l", "d:10,2",
                                          "w:7", "w:0", "z", "u", "Z", "U", "vz"};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        for (uint64_t seed = 0; seed < 12; seed++)
            round_trip(layout_of(schema_new(formats[i], "value", 0), 1), seed * 100 + i);
}

static void test_sliced_nested_arrays_come_back_equal(void)
{
    for (uint64_t seed = 0; seed < 60; seed++)
        round_trip(layout_of(nested_value(), 1), seed);
}

static void test_absent_nested_columns_are_valid_arrow(void)
{
    sc_layout *layout = layout_of(nested_value(), 1);
    written out;
    write_batch(layout, &(sc_batch_input){.count = 9, .timestamp = 1}, &out);
    const struct ArrowArray *value = out.array.children[SC_COLUMN_VALUE];
    CHECK_EQ(value->null_count, 9);
    for (int64_t i = 0; i < value->n_children; i++)
        CHECK_EQ(value->children[i]->length, 9);
    CHECK_EQ(value->children[3]->children[0]->length, 27);
    written_free(&out);
    sc_layout_free(layout);
}

/* ---- what is refused --------------------------------------------------------------------------------------- */

static void test_records_above_their_limit_are_refused_in_every_form(void)
{
    sc_layout *layout = plain_layout(1), *views = layout_of(schema_new("vz", "value", 0), 1);
    sc_error error;
    uint8_t bytes[100] = {0};
    sc_bytes row = {bytes, 100};
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 1, .values = &row}, 99, &error), SC_TOO_LARGE);
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 1, .values = &row}, 100, &error), SC_OK);
    int32_t ends[] = {0, 100};
    const void *buffers[] = {NULL, ends, bytes};
    struct ArrowArray array = {.length = 1, .n_buffers = 3, .buffers = buffers};
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 1, .value = &array}, 99, &error), SC_TOO_LARGE);
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 1, .value = &array}, 100, &error), SC_OK);
    int32_t view[4] = {100, 0, 0, 0};
    int64_t sizes[] = {100};
    const void *view_buffers[] = {NULL, view, bytes, sizes};
    struct ArrowArray view_array = {.length = 1, .n_buffers = 4, .buffers = view_buffers};
    CHECK_EQ(plan_code(views, &(sc_batch_input){.count = 1, .value = &view_array}, 99, &error), SC_TOO_LARGE);
    CHECK_EQ(plan_code(views, &(sc_batch_input){.count = 1, .value = &view_array}, 100, &error), SC_OK);
    sc_layout_free(layout);
    sc_layout_free(views);
}

static void test_offsets_that_go_back_or_begin_below_zero_are_refused(void)
{
    sc_layout *layout = plain_layout(1);
    sc_error error;
    static const int32_t wrong[][3] = {{0, 5, 4}, {5, 4, 5}, {-3, 0, 4}, {0, -1, 4}, {INT32_MIN, 0, 4}};
    uint8_t bytes[8] = {0};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const void *buffers[] = {NULL, wrong[i], bytes};
        struct ArrowArray array = {.length = 2, .n_buffers = 3, .buffers = buffers};
        CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 2, .key = &array}, MAX_RECORD, &error), SC_INVALID);
    }
    sc_layout_free(layout);
}

static void test_views_outside_their_buffers_are_refused(void)
{
    sc_layout *layout = layout_of(schema_new("vz", "value", 0), 1);
    sc_error error;
    static const int32_t wrong[][4] = {{-1, 0, 0, 0}, {13, 0, 1, 0},  {13, 0, -1, 0},
                                       {13, 0, 0, 8}, {13, 0, 0, -1}, {INT32_MAX, 0, 0, 0}};
    uint8_t bytes[20] = {0};
    int64_t sizes[] = {20};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const void *buffers[] = {NULL, wrong[i], bytes, sizes};
        struct ArrowArray array = {.length = 1, .n_buffers = 4, .buffers = buffers};
        CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 1, .value = &array}, INT32_MAX, &error), SC_INVALID);
    }
    sc_layout_free(layout);
}

static void test_arrays_of_another_shape_are_refused(void)
{
    sc_layout *layout = layout_of(nested_value(), 1);
    sc_error error;
    random_seed(5);
    struct ArrowArray *value = random_array(layout, layout->columns[SC_COLUMN_VALUE], 10);
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 10, .value = value}, MAX_RECORD, &error), SC_OK);
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 11, .value = value}, MAX_RECORD, &error), SC_INVALID);
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 1, .first_row = 10, .value = value}, MAX_RECORD, &error),
             SC_INVALID);
    value->n_children--;
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 10, .value = value}, MAX_RECORD, &error), SC_INVALID);
    value->n_children++;
    value->children[0]->length = 3;
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 10, .value = value}, MAX_RECORD, &error), SC_INVALID);
    value->children[0]->length = 100;
    int64_t kept = value->children[2]->children[0]->length;
    value->children[2]->children[0]->length = 0; /* lists that reach beyond their values */
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 10, .value = value}, MAX_RECORD, &error), SC_INVALID);
    value->children[2]->children[0]->length = kept;
    random_array_free(value);
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = 0}, MAX_RECORD, &error), SC_INVALID);
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = -1}, MAX_RECORD, &error), SC_INVALID);
    CHECK_EQ(plan_code(layout, &(sc_batch_input){.count = SC_BATCH_ROWS_MAX + 1}, MAX_RECORD, &error), SC_INVALID);
    sc_layout_free(layout);
}

static struct ArrowArray array_of(const void **buffers, int64_t count, int64_t length)
{
    return (struct ArrowArray){.length = length, .n_buffers = count, .buffers = buffers};
}

static int code_of(const sc_layout *layout, struct ArrowArray value, int64_t count)
{
    sc_error error;
    return plan_code(layout, &(sc_batch_input){.count = count, .value = &value}, MAX_RECORD, &error);
}

static void test_arrays_whose_numbers_cannot_be_are_refused(void)
{
    static const int32_t ends[] = {0, 2, 4, 6};
    static const int64_t wrong[] = {-1, INT64_MIN, INT64_MAX, INT64_MAX / 2, INT64_C(1) << 60};
    sc_layout *layout = plain_layout(1);
    const void *buffers[3] = {NULL, ends, "abcdef"};
    CHECK_EQ(code_of(layout, array_of(buffers, 3, 3), 3), SC_OK);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct ArrowArray value = array_of(buffers, 3, 3);
        value.offset = wrong[i];
        CHECK_EQ(code_of(layout, value, 3), SC_INVALID);
        value = array_of(buffers, 3, wrong[i]);
        CHECK_EQ(code_of(layout, value, 3), SC_INVALID);
        value = array_of(buffers, 3, 3);
        value.null_count = wrong[i];
        CHECK_EQ(code_of(layout, value, 3), wrong[i] == -1 ? SC_OK : SC_INVALID);
        value = array_of(buffers, wrong[i], 3);
        CHECK_EQ(code_of(layout, value, 3), SC_INVALID);
    }
    sc_layout_free(layout);
}

static void test_buffers_that_are_not_there_or_lie_askew_are_refused(void)
{
    static const int32_t ends[] = {0, 2, 4, 6}, beyond[] = {0, 4, 2, 3};
    static uint8_t askew[20];
    sc_layout *layout = plain_layout(1);
    const void *buffers[3] = {NULL, NULL, "abcdef"};
    CHECK_EQ(code_of(layout, array_of(NULL, 3, 3), 3), SC_INVALID);
    CHECK_EQ(code_of(layout, array_of(buffers, 3, 3), 3), SC_INVALID);
    buffers[1] = ends;
    struct ArrowArray value = array_of(buffers, 3, 3);
    value.null_count = 1;
    CHECK_EQ(code_of(layout, value, 3), SC_INVALID); /* nulls, and no validity */
    value = array_of(buffers, 3, 3);
    value.dictionary = &value;
    CHECK_EQ(code_of(layout, value, 3), SC_INVALID);
    buffers[2] = NULL;
    CHECK_EQ(code_of(layout, array_of(buffers, 3, 3), 3), SC_INVALID);
    buffers[2] = "abcdef";
    buffers[1] = beyond; /* the first row reaches behind what the last offset claims */
    CHECK_EQ(code_of(layout, array_of(buffers, 3, 3), 1), SC_INVALID);
    buffers[1] = askew + 1;
    CHECK_EQ(code_of(layout, array_of(buffers, 3, 3), 3), SC_INVALID);
    sc_layout_free(layout);
}

static void test_views_that_are_copied_get_the_prefix_of_their_bytes(void)
{
    static const char text[] = "a text of more than twelve bytes";
    struct {
        int32_t size;
        char prefix[4];
        int32_t buffer, offset;
    } view = {20, {'l', 'i', 'e', 's'}, 0, 2};
    const int64_t sizes[] = {sizeof text};
    const void *buffers[4] = {NULL, &view, text, sizes};
    struct ArrowArray value = array_of(buffers, 4, 1);
    sc_layout *layout = layout_of(schema_new("vu", "value", 0), 1);
    written out;
    write_batch(layout, &(sc_batch_input){.count = 1, .value = &value}, &out);
    const uint8_t *stored = out.array.children[SC_COLUMN_VALUE]->buffers[1];
    CHECK(memcmp(stored + 4, text + 2, 4) == 0);
    written_free(&out);
    sc_layout_free(layout);
}

static void test_nested_values_that_take_no_bytes_are_bounded_too(void)
{
    static const int64_t ends[] = {0, INT64_C(1) << 40};
    const void *buffers[2] = {NULL, ends};
    struct ArrowArray nothing = {.length = INT64_C(1) << 40, .null_count = INT64_C(1) << 40}, *child = &nothing;
    struct ArrowArray value = array_of(buffers, 2, 1);
    value.n_children = 1;
    value.children = &child;
    sc_layout *layout = layout_of(schema_new("+L", "value", 1, schema_new("n", "item", 0)), 1);
    CHECK_EQ(code_of(layout, value, 1), SC_TOO_LARGE); /* no reader would take the batch */
    sc_layout_free(layout);
}

/* ---- messages that are compressed already ------------------------------------------------------------------ */

/* The message of an encoded batch, said to be compressed: its buffers are opaque to C. */
static uint8_t *compressed_message(const sc_layout *layout, int64_t count, int64_t *size)
{
    written out;
    write_batch(layout, &(sc_batch_input){.count = count, .timestamp = 1}, &out);
    *size = out.batch.message_size;
    uint8_t *message = malloc((size_t)*size);
    CHECK(message != NULL);
    memcpy(message, out.batch.message, (size_t)*size);
    uint16_t compression_field = 20;
    memcpy(message + 8 + 36 + 2 + 2 * 4, &compression_field, 2); /* the vtable of the record batch: metadata.h */
    written_free(&out);
    return message;
}

static void test_a_compressed_message_is_taken_over_whole(void)
{
    sc_layout *layout = plain_layout(1);
    int64_t size;
    uint8_t *message = compressed_message(layout, 50, &size);
    sc_batch_input input = {.count = 50,
                            .message = message,
                            .message_size = size,
                            .min_timestamp = 3,
                            .max_timestamp = 9,
                            .has_headers = true};
    sc_encoding encoding;
    sc_error error;
    sc_metadata before, after;
    CHECK_OK(sc_encoding_plan(&encoding, layout, &input, MAX_RECORD, &error), error);
    uint8_t *out = calloc(1, (size_t)encoding.total_size);
    CHECK(out != NULL);
    sc_encoding_write(&encoding, out, &(sc_placement){.base_offset = 5});
    CHECK_EQ(encoding.flags, SC_CODEC_LZ4 << SC_FLAG_CODEC_SHIFT | SC_FLAG_HAS_HEADERS);
    CHECK(sc_metadata_read(message + 8, size - 8, &before));
    CHECK(sc_metadata_read(out + 8, encoding.metadata_size, &after));
    CHECK_EQ(after.codec, SC_CODEC_LZ4);
    for (int64_t i = 0; i < before.buffer_count; i++) {
        sc_buffer from = sc_metadata_buffer(&before, i), to = sc_metadata_buffer(&after, i);
        CHECK_EQ(from.length, to.length);
        CHECK_EQ(to.offset % SC_ALIGNMENT, 0);
        CHECK(memcmp(message + 8 + encoding.metadata_size + from.offset, out + 8 + encoding.metadata_size + to.offset,
                     (size_t)from.length) == 0);
    }
    sc_encoding_free(&encoding);
    free(out);
    free(message);
    sc_layout_free(layout);
}

static void test_a_cut_or_foreign_message_is_refused_and_read_inside(void)
{
    sc_layout *layout = plain_layout(1);
    sc_error error;
    int64_t size;
    uint8_t *message = compressed_message(layout, 50, &size);
    for (int64_t cut = 0; cut < size; cut += cut < 700 ? 1 : 64) {
        uint8_t *part = malloc((size_t)cut + (cut == 0));
        CHECK(part != NULL);
        memcpy(part, message, (size_t)cut);
        sc_batch_input input = {.count = 50, .message = part, .message_size = cut};
        CHECK_EQ(plan_code(layout, &input, MAX_RECORD, &error), SC_INVALID);
        free(part);
    }
    sc_batch_input input = {.count = 49, .message = message, .message_size = size};
    CHECK_EQ(plan_code(layout, &input, MAX_RECORD, &error), SC_INVALID);
    sc_layout *other = layout_of(nested_value(), 1);
    input.count = 50;
    CHECK_EQ(plan_code(other, &input, MAX_RECORD, &error), SC_INVALID);
    CHECK_EQ(plan_code(layout, &input, MAX_RECORD, &error), SC_OK);
    sc_layout_free(other);
    free(message);
    sc_layout_free(layout);
}

int main(int argc, char **argv)
{
    RUN(test_rows_of_bytes_come_back_with_nulls_and_empties);
    RUN(test_columns_without_nulls_have_no_validity);
    RUN(test_absent_columns_are_null_and_share_one_run_of_zeros);
    RUN(test_sliced_arrays_of_every_type_come_back_equal);
    RUN(test_sliced_nested_arrays_come_back_equal);
    RUN(test_absent_nested_columns_are_valid_arrow);
    RUN(test_records_above_their_limit_are_refused_in_every_form);
    RUN(test_offsets_that_go_back_or_begin_below_zero_are_refused);
    RUN(test_views_outside_their_buffers_are_refused);
    RUN(test_arrays_of_another_shape_are_refused);
    RUN(test_arrays_whose_numbers_cannot_be_are_refused);
    RUN(test_buffers_that_are_not_there_or_lie_askew_are_refused);
    RUN(test_views_that_are_copied_get_the_prefix_of_their_bytes);
    RUN(test_nested_values_that_take_no_bytes_are_bounded_too);
    RUN(test_a_compressed_message_is_taken_over_whole);
    RUN(test_a_cut_or_foreign_message_is_refused_and_read_inside);
    return 0;
}
