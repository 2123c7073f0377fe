/*
 * Bytes as segment files behind a valid schema message: opened for reading, then for writing (which recovers them),
 * scanned, counted, verified, appended to (by nobody in particular, and by a producer in a transaction), closed and
 * opened again. Whatever is in the files, an append behind them that succeeded must be readable, and opening again must
 * find the same end.
 *
 * Options: 0: bit 0 the machine went down, bit 1 leave the checksums, bit 2 two segments, bit 3 the typed layout,
 * bit 4 no zeros behind the bytes, bit 5 the second segment is not behind a schema message, bit 6 producers,
 * bit 7 a sync of it failed;
 * 1, 2: where the first of two segments ends, in units of 64 bytes; 3, 4: the base offset of the second.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "fuzz.h"
#include "state.h"

enum { SEGMENT = 64 << 10 };
static char path[FOLDER_MAX];

static void remove_at_exit(void)
{
    folder_remove(path);
}

static void make_folder(void)
{
    char partition[FILE_MAX];
    folder_make(path);
    snprintf(partition, sizeof partition, "%s/0", path);
    CHECK(mkdir(partition, 0777) == 0);
    atexit(remove_at_exit);
}

static void empty_folder(void)
{
    char partition[FILE_MAX], state[FILE_MAX];
    snprintf(partition, sizeof partition, "%s/0", path);
    snprintf(state, sizeof state, "%s/state", path);
    folder_remove(partition);
    CHECK(mkdir(partition, 0777) == 0);
    (void)unlink(state);
}

static sc_topic *open_log(bool writable, bool typed)
{
    sc_topic_settings settings = settings_of(SEGMENT);
    sc_topic *topic;
    sc_error error;
    CHECK_OK(sc_topic_open(path, writable, &settings, &topic, &error), error);
    sc_topic_add_layout(topic, typed ? layout_of(schema_with_everything(), 1) : plain_layout(1), &error);
    return topic;
}

static void write_segment(int64_t base, const uint8_t *data, int64_t size, int64_t zeros, bool schema, bool seal)
{
    char file[FILE_MAX];
    uint8_t *bytes = calloc(1, (size_t)(SCHEMA_SIZE + size + zeros));
    CHECK(bytes != NULL);
    if (schema)
        schema_message(bytes, 1);
    if (size > 0)
        memcpy(bytes + SCHEMA_SIZE, data, (size_t)size);
    for (int64_t at = 0, step; seal && at < size; at += step) {
        step = fuzz_seal(bytes + SCHEMA_SIZE + at, size - at, false);
        step = step == 0 ? SC_ALIGNMENT : step;
    }
    segment_file(file, path, 0, base);
    file_write(file, bytes, SCHEMA_SIZE + size + zeros);
    free(bytes);
}

static void write_input(const uint8_t *options, const uint8_t *data, int64_t size)
{
    uint16_t numbers[2];
    bool seal = (options[0] & 2) == 0;
    int64_t zeros = options[0] & 16 ? 0 : 8192;
    memcpy(numbers, options + 1, sizeof numbers);
    int64_t first = options[0] & 4 ? (int64_t)numbers[0] * SC_ALIGNMENT : size;
    first = first < size ? first : size;
    write_segment(0, data, first, zeros, true, seal);
    if (options[0] & 4)
        write_segment(numbers[1] + 1, data + first, size - first, zeros, (options[0] & 32) == 0, seal);
}

/* What is not known to be durable is then written again. */
static void pretend_failed_sync(void)
{
    char file[FILE_MAX];
    uint32_t doubted = 1;
    CHECK(snprintf(file, sizeof file, "%s/state", path) < FILE_MAX);
    file_write_at(file, &doubted, sizeof doubted, sizeof(sc_state_header) + offsetof(sc_slot, doubted));
}

static void ignore_problem(void *context, const sc_error *problem)
{
    CHECK(problem->code < 0 && strlen(problem->message) > 0);
    ++*(int64_t *)context;
}

static sc_scan_options scan_options(const sc_range *range, bool committed)
{
    return (sc_scan_options){.ranges = range,
                             .range_count = 1,
                             .min_timestamp = INT64_MIN,
                             .max_timestamp = INT64_MAX,
                             .limit = -1,
                             .verify = true,
                             .committed = committed};
}

/* Headers alone, and reading, count the same. */
static void check_count(sc_topic *topic, const sc_range *range, bool committed, int64_t rows)
{
    sc_scan_options options = scan_options(range, committed);
    sc_scan *scan;
    sc_error error;
    int64_t counted;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    if (sc_scan_count(scan, &counted, &error) == SC_OK)
        CHECK_EQ(counted, rows);
    sc_scan_free(scan);
}

static void narrow(sc_batch batch)
{
    sc_error error;
    bool dense;
    int64_t middle = batch.min_timestamp / 2 + batch.max_timestamp / 2;
    int64_t first = batch.first_row, end = first + batch.row_count;
    if (batch.codec != SC_CODEC_NONE ||
        sc_batch_narrow_to_timestamps(&batch, middle, INT64_MAX, &dense, &error) != SC_OK)
        return;
    CHECK(batch.first_row >= first && batch.row_count >= 0 && batch.first_row + batch.row_count <= end);
}

/* Reads what can be read of [start, end), up to damage; the rows that were read. */
static int64_t read_range(sc_topic *topic, int64_t start, int64_t end, bool committed, sc_error *error)
{
    static const sc_column columns[SC_COLUMNS] = {
        {.column = 0}, {.column = 1}, {.column = 2}, {.column = 3}, {.column = 4}};
    sc_range range = {0, start, end};
    sc_scan_options options = scan_options(&range, committed);
    sc_scan *scan;
    sc_batch batch;
    sc_rows rows;
    int64_t count = 0, exported = 0, next = start;
    int code;
    CHECK_OK(sc_scan_open(topic, &options, &scan, error), *error);
    while ((code = sc_scan_next(scan, &batch, error)) == SC_OK) {
        struct ArrowArray array;
        CHECK(batch.row_count > 0 && batch.first_row >= 0 && batch.first_row + batch.row_count <= batch.record_count);
        bool sparse = batch.flags & SC_FLAG_SPARSE;
        CHECK((sparse ? batch.last_offset : batch.base_offset + batch.first_row) >= next);
        next = sparse ? batch.last_offset + 1 : batch.base_offset + batch.first_row + batch.row_count;
        CHECK(next <= end || (sparse && batch.base_offset < end));
        if (sc_batch_export(&batch, columns, SC_COLUMNS, &exported, &array, error) == SC_OK)
            array.release(&array);
        (void)sc_batch_rows(&batch, &rows, error);
        narrow(batch);
        count += batch.row_count;
    }
    sc_scan_free(scan);
    if (code == SC_END)
        check_count(topic, &range, committed, count);
    error->code = code == SC_END ? SC_OK : code;
    return count;
}

static int look_around(sc_topic *topic, sc_partition_info *info)
{
    sc_error error;
    sc_segment_info segment;
    int64_t problems = 0;
    int code = sc_partition_describe(topic, 0, true, info, &error);
    if (code != SC_OK) {
        CHECK(code == SC_CORRUPT || code == SC_FORMAT);
        return code;
    }
    CHECK(info->start_offset >= 0 && info->end_offset >= info->start_offset);
    CHECK(info->durable_offset <= info->end_offset);
    CHECK(info->stable_offset >= 0 && info->stable_offset <= info->end_offset);
    for (int64_t n = 0; sc_partition_segment(topic, 0, n, &segment, &error) == SC_OK; n++)
        CHECK(n < 4);
    (void)read_range(topic, info->start_offset, info->stable_offset, true, &error);
    (void)read_range(topic, info->start_offset, info->end_offset, false, &error);
    bool damaged = error.code != SC_OK;
    CHECK_OK(sc_partition_verify(topic, 0, ignore_problem, NULL, &problems, &error), error);
    CHECK(problems > 0 || !damaged); /* verify finds what stops a scan */
    return SC_OK;
}

static int append_three(sc_topic *topic, int64_t *end, sc_error *error)
{
    sc_batch_input inputs[] = {{.count = 1, .timestamp = 1}, {.count = 2, .timestamp = 2}};
    sc_append append = {
        .batches = inputs, .batch_count = 2, .schema_version = 1, .generation = GENERATION, .expected_offset = -1};
    int64_t first;
    return sc_partition_append(topic, 0, &append, &first, end, error);
}

/* What the log says of producers is taken over at the first one: it may refuse, and nothing more. */
static int64_t append_transaction(sc_topic *topic, int64_t end)
{
    sc_batch_input input = {.count = 2, .timestamp = 3};
    sc_append append = {.batches = &input,
                        .batch_count = 1,
                        .schema_version = 1,
                        .generation = GENERATION,
                        .expected_offset = -1,
                        .producer = {9, 3, 0},
                        .transactional = true};
    sc_marker marker = {.producer_id = 9, .epoch = 3, .commit = true};
    sc_error error;
    int64_t first, marked;
    int code = end > INT64_MAX - 16 ? SC_RANGE : sc_partition_append(topic, 0, &append, &first, &end, &error);
    if (code != SC_OK) {
        CHECK(code == SC_FENCED || code == SC_SEQUENCE || code == SC_INVALID || code == SC_RANGE);
        return end;
    }
    CHECK_OK(sc_partition_append_marker(topic, 0, &marker, &marked, &error), error);
    CHECK_EQ(marked, end);
    CHECK_EQ(read_range(topic, first, end, false, &error), first + 2 == end ? 2 : 0);
    return end + 1;
}

static void check_writing(bool typed, bool producers)
{
    sc_partition_info info, again;
    sc_error error;
    int64_t end = 0, last = 0;
    sc_topic *topic = open_log(true, typed);
    int code = look_around(topic, &info);
    if (code != SC_OK) {
        CHECK(append_three(topic, &end, &error) != SC_OK);
        topic_close(topic);
        return;
    }
    code = append_three(topic, &end, &error);
    CHECK(code == SC_OK || (code == SC_RANGE && info.end_offset > INT64_MAX - 3));
    if (code == SC_OK) {
        CHECK_EQ(end, info.end_offset + 3);
        CHECK_EQ(read_range(topic, end - 3, end, false, &error), 3);
        last = producers ? append_transaction(topic, end) : end;
    }
    topic_close(topic);
    topic = open_log(true, typed);
    CHECK_EQ(look_around(topic, &again), SC_OK);
    CHECK_EQ(again.end_offset, code == SC_OK ? last : info.end_offset);
    if (code == SC_OK)
        CHECK_EQ(read_range(topic, end - 3, end, false, &error), 3);
    topic_close(topic);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sc_partition_info info;
    if (path[0] == 0)
        make_folder();
    if (size < FUZZ_OPTIONS || size > 256 << 10)
        return 0;
    empty_folder();
    topic_close(open_log(true, false)); /* makes the state file */
    write_input(data, data + FUZZ_OPTIONS, (int64_t)size - FUZZ_OPTIONS);
    if (data[0] & 1)
        pretend_power_loss(path);
    if (data[0] & 128)
        pretend_failed_sync();
    bool typed = data[0] & 8;
    sc_topic *reader = open_log(false, typed);
    (void)look_around(reader, &info);
    topic_close(reader);
    check_writing(typed, data[0] & 64);
    return 0;
}
