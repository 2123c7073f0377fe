#include "check.h"
#include "memory_batch.h"
#include "plain_topic.h"
#include "random_array.h"

static const sc_column all_columns[SC_COLUMNS] = {
    {.column = 0}, {.column = 1}, {.column = 2}, {.column = 3}, {.column = 4}};
enum { ROWS = 50 };

static struct ArrowArray export_columns(const sc_batch *batch, const sc_column *columns, int64_t count)
{
    struct ArrowArray array;
    sc_error error;
    int64_t exported = 0;
    CHECK_OK(sc_batch_export(batch, columns, count, &exported, &array, &error), error);
    CHECK(exported >= 0);
    return array;
}

static int export_code(const sc_batch *batch)
{
    struct ArrowArray array;
    sc_error error;
    int64_t exported = 0;
    int code = sc_batch_export(batch, all_columns, SC_COLUMNS, &exported, &array, &error);
    if (code == SC_OK)
        array.release(&array);
    return code;
}

static struct ArrowSchema *struct_value(void)
{
    return schema_new("+s", "value", 2, schema_new("i", "number", 0),
                      schema_new("+s", "inner", 2, schema_new("u", "text", 0), schema_new("n", "nothing", 0)));
}

static void test_the_buffers_lie_in_the_message_and_are_aligned(void)
{
    sc_layout *layout = plain_layout(1);
    memory_batch written;
    random_seed(1);
    struct ArrowArray *value = random_array(layout, layout->columns[SC_COLUMN_VALUE], ROWS);
    memory_batch_write(layout, &(sc_batch_input){.count = ROWS, .value = value}, 7, &written);
    struct ArrowArray array = export_columns(&written.batch, all_columns, SC_COLUMNS);
    CHECK_EQ(array.length, ROWS);
    CHECK_EQ(array.null_count, 0);
    CHECK_EQ(array.n_children, SC_COLUMNS);
    for (int i = 0; i < SC_COLUMNS; i++)
        for (int64_t k = 0; k < array.children[i]->n_buffers; k++) {
            const uint8_t *buffer = array.children[i]->buffers[k];
            CHECK(buffer == NULL ||
                  (buffer >= written.message && buffer <= written.message + written.batch.message_size));
            CHECK_EQ((uintptr_t)buffer % SC_ALIGNMENT, 0);
        }
    for (int64_t i = 0; i < ROWS; i++)
        CHECK_EQ(((const int64_t *)array.children[0]->buffers[1])[i], 7 + i);
    array.release(&array);
    CHECK(array.release == NULL);
    random_array_free(value);
    memory_batch_free(&written);
    sc_layout_free(layout);
}

static void test_a_part_of_the_rows_is_a_slice(void)
{
    sc_layout *layout = layout_of(struct_value(), 1);
    memory_batch written;
    random_seed(2);
    struct ArrowArray *value = random_array(layout, layout->columns[SC_COLUMN_VALUE], ROWS);
    memory_batch_write(layout, &(sc_batch_input){.count = ROWS, .value = value}, 0, &written);
    for (int64_t first = 0; first < ROWS; first += 7)
        for (int64_t count = 0; count <= ROWS - first; count += 5) {
            sc_batch part = written.batch;
            part.first_row = first;
            part.row_count = count;
            struct ArrowArray array = export_columns(&part, all_columns, SC_COLUMNS);
            CHECK_EQ(array.length, count);
            for (int64_t i = 0; i < count; i++)
                CHECK(same_value(layout, layout->columns[SC_COLUMN_VALUE], value, first + i, array.children[3], i));
            array.release(&array);
        }
    random_array_free(value);
    memory_batch_free(&written);
    sc_layout_free(layout);
}

static void test_a_column_inside_null_structs_is_null_too(void)
{
    sc_layout *layout = layout_of(struct_value(), 1);
    memory_batch written;
    static const sc_column path[] = {{.column = 3, .depth = 2, .path = {1, 0}}};
    uint8_t outer_bits[] = {0x7d, 0xff}, inner_bits[] = {0xef, 0xff}, text_bits[] = {0xfe, 0xff};
    int32_t ends[11] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    int32_t numbers[10] = {0};
    struct ArrowArray number = {.length = 10, .n_buffers = 2, .buffers = (const void *[]){NULL, numbers}};
    struct ArrowArray text = {
        .length = 10, .null_count = 1, .n_buffers = 3, .buffers = (const void *[]){text_bits, ends, "abcdefghij"}};
    struct ArrowArray nothing = {.length = 10, .null_count = 10};
    struct ArrowArray inner = {.length = 10,
                               .null_count = 1,
                               .n_buffers = 1,
                               .buffers = (const void *[]){inner_bits},
                               .n_children = 2,
                               .children = (struct ArrowArray *[]){&text, &nothing}};
    struct ArrowArray value = {.length = 10,
                               .null_count = 2,
                               .n_buffers = 1,
                               .buffers = (const void *[]){outer_bits},
                               .n_children = 2,
                               .children = (struct ArrowArray *[]){&number, &inner}};
    memory_batch_write(layout, &(sc_batch_input){.count = 10, .value = &value}, 0, &written);
    struct ArrowArray array = export_columns(&written.batch, path, 1);
    const uint8_t *validity = array.children[0]->buffers[0];
    CHECK_EQ(validity[0], 0x7d & 0xef & 0xfe);
    CHECK_EQ(validity[1] & 3, 3);
    CHECK_EQ(array.children[0]->null_count, -1);
    array.release(&array);
    memory_batch_free(&written);
    sc_layout_free(layout);
}

static void test_the_partition_is_a_column_of_its_own(void)
{
    sc_layout *layout = plain_layout(1);
    memory_batch written;
    static const sc_column columns[] = {{.column = SC_COLUMN_PARTITION}, {.column = 0}};
    memory_batch_write(layout, &(sc_batch_input){.count = ROWS, .timestamp = 1}, 0, &written);
    written.batch.first_row = 10;
    written.batch.row_count = 20;
    struct ArrowArray array = export_columns(&written.batch, columns, 2);
    CHECK_EQ(array.children[0]->length, 20);
    for (int i = 0; i < 20; i++)
        CHECK_EQ(((const int32_t *)array.children[0]->buffers[1])[i], 3);
    array.release(&array);
    memory_batch_free(&written);
    sc_layout_free(layout);
}

static void test_a_child_that_was_moved_out_keeps_the_mapping_alive(void)
{
    sc_layout *layout = plain_layout(1);
    memory_batch written;
    memory_batch_write(layout, &(sc_batch_input){.count = ROWS, .timestamp = 1}, 0, &written);
    struct ArrowArray array = export_columns(&written.batch, all_columns, SC_COLUMNS);
    struct ArrowArray moved = *array.children[0];
    array.children[0]->release = NULL;
    array.release(&array);
    CHECK_EQ(atomic_load(&written.mapping.references), 2);
    CHECK_EQ(((const int64_t *)moved.buffers[1])[ROWS - 1], ROWS - 1);
    moved.release(&moved);
    memory_batch_free(&written);
    sc_layout_free(layout);
}

/* ---- hostile messages: each has right checksums -------------------------------------------------------------------
 */

static uint8_t *metadata_of(memory_batch *written)
{
    return written->message + SC_OPENING_SIZE;
}

static void set_node(memory_batch *written, int64_t number, int64_t length, int64_t nulls)
{
    memcpy(metadata_of(written) + SC_METADATA_NODES + 16 * number, &(sc_node){length, nulls}, 16);
}

static void set_buffer(memory_batch *written, int64_t number, int64_t offset, int64_t length)
{
    int64_t nodes = written->batch.layout->field_count;
    memcpy(metadata_of(written) + sc_metadata_buffers_at(nodes) + 16 * number, &(sc_buffer){offset, length}, 16);
}

static void hostile(struct ArrowSchema *value, void (*change)(memory_batch *written))
{
    sc_layout *layout = layout_of(value, 1);
    memory_batch written;
    bool dense;
    sc_error error;
    random_seed(3);
    struct ArrowArray *array = random_array(layout, layout->columns[SC_COLUMN_VALUE], ROWS);
    memory_batch_write(layout, &(sc_batch_input){.count = ROWS, .value = array, .timestamp = 5}, 0, &written);
    CHECK_EQ(export_code(&written.batch), SC_OK);
    change(&written);
    memory_batch_reseal(&written);
    CHECK_EQ(export_code(&written.batch), SC_CORRUPT);
    (void)sc_batch_narrow_to_timestamps(&written.batch, 6, 7, &dense, &error);
    random_array_free(array);
    memory_batch_free(&written);
    sc_layout_free(layout);
}

static void set_longer_column(memory_batch *written)
{
    set_node(written, 0, ROWS + 1, 0);
}
static void set_shorter_column(memory_batch *written)
{
    set_node(written, 0, ROWS - 1, 0);
}
static void set_negative_length(memory_batch *written)
{
    set_node(written, 3, -1, 0);
}
static void set_huge_length(memory_batch *written)
{
    set_node(written, 3, INT64_MAX, 0);
}
static void set_more_nulls(memory_batch *written)
{
    set_node(written, 0, ROWS, ROWS + 1);
}
static void set_nulls_without_validity(memory_batch *written)
{
    set_node(written, 0, ROWS, 1);
}
static void set_buffer_behind(memory_batch *written)
{
    set_buffer(written, 1, written->header.total_size, ROWS * 8);
}
static void set_buffer_before(memory_batch *written)
{
    set_buffer(written, 1, -64, ROWS * 8);
}
static void set_buffer_unaligned(memory_batch *written)
{
    set_buffer(written, 1, 132, ROWS * 8);
}
static void set_buffer_huge(memory_batch *written)
{
    set_buffer(written, 1, 128, INT64_MAX);
}
static void set_buffer_short(memory_batch *written)
{
    set_buffer(written, 1, 128, ROWS * 8 - 1);
}

static void set_last_end(memory_batch *written)
{
    struct ArrowArray array = export_columns(&written->batch, all_columns, SC_COLUMNS);
    ((int32_t *)(uintptr_t)array.children[3]->buffers[1])[ROWS] = 1 << 20;
    array.release(&array);
}

static void set_first_end(memory_batch *written)
{
    struct ArrowArray array = export_columns(&written->batch, all_columns, SC_COLUMNS);
    ((int32_t *)(uintptr_t)array.children[3]->buffers[1])[0] = -8;
    array.release(&array);
}

static void set_rows(memory_batch *written)
{
    memcpy(metadata_of(written) + SC_METADATA_ROWS, &(int64_t){ROWS + 1}, 8);
}

static void set_body_length(memory_batch *written)
{
    memcpy(metadata_of(written) + SC_METADATA_BODY_LENGTH, &(int64_t){1 << 30}, 8);
}

static void test_metadata_that_lies_is_an_error(void)
{
    static void (*const changes[])(memory_batch *) = {set_longer_column, set_shorter_column, set_negative_length,
                                                      set_huge_length,   set_more_nulls,     set_nulls_without_validity,
                                                      set_buffer_behind, set_buffer_before,  set_buffer_unaligned,
                                                      set_buffer_huge,   set_buffer_short,   set_last_end,
                                                      set_first_end,     set_rows,           set_body_length};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++)
        hostile(schema_new("z", "value", 0), changes[i]);
}

static void set_short_list_child(memory_batch *written)
{
    set_node(written, 4, 0, 0);
}
static void set_short_struct_child(memory_batch *written)
{
    set_node(written, 4, ROWS - 1, 0);
}

static void test_children_shorter_than_their_parents_are_an_error(void)
{
    hostile(schema_new("+l", "value", 1, schema_new("i", "item", 0)), set_short_list_child);
    hostile(schema_new("+L", "value", 1, schema_new("i", "item", 0)), set_short_list_child);
    hostile(schema_new("+s", "value", 1, schema_new("i", "item", 0)), set_short_struct_child);
    hostile(schema_new("+w:3", "value", 1, schema_new("i", "item", 0)), set_short_struct_child);
}

/* Records, keys for compaction and Arrow arrays of one batch have to say the same, whatever it says. */
static void test_a_column_without_nulls_by_its_count_has_none(void)
{
    enum { VALUE_NODE = 3 };
    sc_layout *layout = plain_layout(1);
    memory_batch written;
    sc_rows rows;
    sc_error error;
    sc_bytes values[ROWS] = {[1] = {(const uint8_t *)"abc", 3}};
    memory_batch_write(layout, &(sc_batch_input){.count = ROWS, .values = values}, 0, &written);
    for (int nulls = ROWS - 1; nulls >= 0; nulls -= ROWS - 1) {
        set_node(&written, VALUE_NODE, ROWS, nulls);
        memory_batch_reseal(&written);
        CHECK_OK(sc_batch_rows(&written.batch, &rows, &error), error);
        CHECK_EQ(rows.value_validity != NULL, nulls > 0);
        CHECK_OK(sc_batch_keys(&written.batch, &rows, &error), error);
        CHECK_EQ(rows.value_validity != NULL, nulls > 0);
        struct ArrowArray array = export_columns(&written.batch, all_columns, SC_COLUMNS);
        CHECK_EQ(array.children[VALUE_NODE]->buffers[0] != NULL, nulls > 0);
        array.release(&array);
    }
    memory_batch_free(&written);
    sc_layout_free(layout);
}

static void test_rows_check_every_end(void)
{
    for (int64_t row = 0; row <= ROWS; row++) {
        sc_layout *layout = plain_layout(1);
        memory_batch written;
        sc_rows rows;
        sc_error error;
        sc_bytes values[ROWS];
        for (int64_t i = 0; i < ROWS; i++)
            values[i] = (sc_bytes){(const uint8_t *)"abc", 3};
        memory_batch_write(layout, &(sc_batch_input){.count = ROWS, .values = values}, 0, &written);
        CHECK_OK(sc_batch_rows(&written.batch, &rows, &error), error);
        ((int32_t *)(uintptr_t)rows.value_ends)[row] = row % 2 == 0 ? 4000 : -1;
        memory_batch_reseal(&written);
        CHECK_EQ(sc_batch_rows(&written.batch, &rows, &error), SC_CORRUPT);
        memory_batch_free(&written);
        sc_layout_free(layout);
    }
}

static void check_copied_bytes(const uint8_t *validity, const int32_t *ends, const uint8_t *bytes, int64_t row,
                               const uint8_t *copied_validity, const int32_t *copied_ends, const uint8_t *copied_bytes,
                               int64_t copied_row)
{
    int64_t size = ends[row + 1] - ends[row];
    CHECK_EQ(copied_validity == NULL, validity == NULL);
    CHECK(validity == NULL ||
          (validity[row / 8] >> (row % 8) & 1) == (copied_validity[copied_row / 8] >> (copied_row % 8) & 1));
    CHECK_EQ(copied_ends[copied_row + 1] - copied_ends[copied_row], size);
    CHECK(size == 0 || memcmp(copied_bytes + copied_ends[copied_row], bytes + ends[row], (size_t)size) == 0);
}

/* Whatever is asked for, it comes in parts of bounded size, each with at least one row. */
static void test_rows_are_copied_part_by_part_as_they_are(void)
{
    enum { MANY = 3000 };
    sc_layout *layout = plain_layout(1);
    memory_batch written;
    sc_rows rows, copy;
    sc_error error;
    void *memory = NULL;
    random_seed(9);
    struct ArrowArray *key = random_array(layout, layout->columns[SC_COLUMN_KEY], MANY);
    sc_bytes *values = calloc(MANY, sizeof *values);
    uint8_t *bytes = calloc(1, 100000);
    CHECK(values != NULL && bytes != NULL);
    for (int i = 0; i < MANY; i++)
        values[i] = (sc_bytes){bytes, i % 500 == 499 ? 90000 : (int64_t)random_below(50)};
    memory_batch_write(layout, &(sc_batch_input){.count = MANY, .key = key, .values = values}, 0, &written);
    CHECK_OK(sc_batch_rows(&written.batch, &rows, &error), error);
    int64_t parts = 0;
    for (int64_t start = 0; start < MANY; start += 701)
        for (int64_t first = start, end = MANY; first < MANY; first = end, end = MANY, parts++) {
            CHECK_OK(sc_rows_copy(&written.batch, &rows, first, &end, &copy, &memory, &error), error);
            CHECK(end > first && end <= MANY);
            for (int64_t row = first; row < end; row++) {
                int64_t at = row - first / 8 * 8;
                CHECK_EQ(copy.offsets[at], rows.offsets[row]);
                CHECK_EQ(copy.timestamps[at], rows.timestamps[row]);
                check_copied_bytes(rows.key_validity, rows.key_ends, rows.keys, row, copy.key_validity, copy.key_ends,
                                   copy.keys, at);
                check_copied_bytes(rows.value_validity, rows.value_ends, rows.values, row, copy.value_validity,
                                   copy.value_ends, copy.values, at);
            }
        }
    CHECK(parts > 20);
    free(memory);
    free(bytes);
    free(values);
    random_array_free(key);
    memory_batch_free(&written);
    sc_layout_free(layout);
}

static void test_rows_of_a_typed_batch_are_refused(void)
{
    sc_layout *layout = layout_of(struct_value(), 1);
    memory_batch written;
    sc_rows rows;
    sc_error error;
    memory_batch_write(layout, &(sc_batch_input){.count = ROWS, .timestamp = 1}, 0, &written);
    CHECK_EQ(sc_batch_rows(&written.batch, &rows, &error), SC_INVALID);
    memory_batch_free(&written);
    sc_layout_free(layout);
}

/* ---- times ------------------------------------------------------------------------------------------------- */

static void test_narrowing_finds_the_run_with_all_wanted_times(void)
{
    sc_layout *layout = plain_layout(1);
    static const int64_t times[] = {5, 1, 9, 3, 7, 3, 8, 2};
    enum { COUNT = 8 };
    memory_batch written;
    sc_error error;
    memory_batch_write(layout, &(sc_batch_input){.count = COUNT, .timestamps = times}, 0, &written);
    for (int64_t low = 0; low <= 10; low++)
        for (int64_t high = low; high <= 10; high++) {
            sc_batch batch = written.batch;
            bool dense;
            int64_t first = -1, last = -1, wanted = 0;
            for (int64_t i = 0; i < COUNT; i++)
                if (times[i] >= low && times[i] <= high) {
                    first = first < 0 ? i : first;
                    last = i;
                    wanted++;
                }
            CHECK_OK(sc_batch_narrow_to_timestamps(&batch, low, high, &dense, &error), error);
            CHECK_EQ(batch.row_count, wanted == 0 ? 0 : last - first + 1);
            CHECK(wanted == 0 || batch.first_row == first);
            CHECK_EQ(dense, batch.row_count == wanted);
        }
    memory_batch_free(&written);
    sc_layout_free(layout);
}

int main(int argc, char **argv)
{
    RUN(test_the_buffers_lie_in_the_message_and_are_aligned);
    RUN(test_a_part_of_the_rows_is_a_slice);
    RUN(test_a_column_inside_null_structs_is_null_too);
    RUN(test_the_partition_is_a_column_of_its_own);
    RUN(test_a_child_that_was_moved_out_keeps_the_mapping_alive);
    RUN(test_metadata_that_lies_is_an_error);
    RUN(test_children_shorter_than_their_parents_are_an_error);
    RUN(test_a_column_without_nulls_by_its_count_has_none);
    RUN(test_rows_check_every_end);
    RUN(test_rows_are_copied_part_by_part_as_they_are);
    RUN(test_rows_of_a_typed_batch_are_refused);
    RUN(test_narrowing_finds_the_run_with_all_wanted_times);
    return 0;
}
