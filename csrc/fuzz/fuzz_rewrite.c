/*
 * Bytes as a sealed segment that is rewritten, as consolidation and compaction do it. What committed readers saw before
 * they see afterwards, but for rows that compaction drops; a rewriting that fails changes nothing.
 *
 * Options: 0: bits 0 and 1 the way (0 plain, 1 plain with compaction, 2 by Arrow arrays, 3 by arrays with the typed
 * layout), bit 2 leave the checksums, bit 3 no end marker, bit 4 keys of a part of the log alone; 1: bytes of a batch;
 * 2: entries of the map of keys; 3, 4: where that part begins.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "fuzz.h"

enum { SEGMENT = 128 << 10, ROWS_MAX = 1 << 16, LATER = 3 };

typedef struct row {
    int64_t offset, timestamp;
    uint32_t key, value; /* checksums; 0: null */
} row;

typedef struct content {
    row *rows;
    int64_t count;
    int code;
} content;

static char path[FOLDER_MAX];

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static uint32_t sum_of(const uint8_t *validity, const int32_t *ends, const uint8_t *bytes, int64_t at)
{
    if (validity != NULL && !(validity[at / 8] >> (at % 8) & 1))
        return 0;
    return ends == NULL ? 1 : sc_crc32c(1, bytes + ends[at], (size_t)(ends[at + 1] - ends[at])) | 1;
}

static int take_rows(content *found, const sc_batch *batch, sc_error *error)
{
    sc_rows rows;
    int code = batch->layout->plain ? sc_batch_rows(batch, &rows, error) : sc_batch_keys(batch, &rows, error);
    if (code != SC_OK)
        return code;
    for (int64_t at = batch->first_row; at < batch->first_row + batch->row_count; at++) {
        CHECK(found->count < ROWS_MAX);
        found->rows[found->count++] =
            (row){rows.offsets[at], rows.timestamps[at], sum_of(rows.key_validity, rows.key_ends, rows.keys, at),
                  sum_of(rows.value_validity, rows.value_ends, rows.values, at)};
    }
    return SC_OK;
}

/* What a committed reader sees, up to where it is stopped. */
static content read_committed(sc_topic *topic)
{
    sc_partition_info info;
    sc_error error;
    sc_scan *scan;
    sc_batch batch;
    content found = {.rows = malloc(ROWS_MAX * sizeof(row))};
    CHECK(found.rows != NULL);
    CHECK_OK(sc_partition_describe(topic, 0, false, &info, &error), error);
    sc_range range = {0, info.start_offset, info.stable_offset};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true,
                               .committed = true};
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    while ((found.code = sc_scan_next(scan, &batch, &error)) == SC_OK)
        if ((found.code = take_rows(&found, &batch, &error)) != SC_OK)
            break;
    sc_scan_free(scan);
    return found;
}

static void check_same(const content *before, const content *after)
{
    CHECK_EQ(after->code, before->code);
    CHECK_EQ(after->count, before->count);
    CHECK(memcmp(after->rows, before->rows, (size_t)after->count * sizeof(row)) == 0);
}

/* Every row that is left is one of before; a key's last row of the whole log is left, unless it is a tombstone. */
static void check_compacted(const content *before, const content *after, int64_t end)
{
    int64_t at = 0;
    CHECK_EQ(before->code, SC_END);
    CHECK_EQ(after->code, SC_END);
    for (int64_t i = 0; i < after->count; i++, at++) {
        while (at < before->count && memcmp(&before->rows[at], &after->rows[i], sizeof(row)) != 0)
            at++;
        CHECK(at < before->count);
    }
    at = 0;
    for (int64_t i = 0; i < before->count; i++) {
        const row *one = &before->rows[i];
        bool there = at < after->count && after->rows[at].offset == one->offset, newest = true;
        at += there;
        for (int64_t k = i + 1; k < before->count && k < i + 64; k++)
            newest = newest && before->rows[k].key != one->key;
        newest = newest && before->count < 64;
        CHECK(there || (one->key != 0 && !newest) || one->value == 0);
        CHECK(there || one->offset < end); /* the segment behind it was not rewritten */
    }
}

/* ---- the log ----------------------------------------------------------------------------------------------------- */

static void remove_at_exit(void)
{
    folder_remove(path);
}

static void empty_folder(void)
{
    char partition[FILE_MAX], state[FILE_MAX];
    snprintf(partition, sizeof partition, "%s/0", path);
    snprintf(state, sizeof state, "%s/state", path);
    if (path[0] == 0) {
        folder_make(path);
        atexit(remove_at_exit);
    } else {
        folder_remove(partition);
        (void)unlink(state);
    }
    snprintf(partition, sizeof partition, "%s/0", path);
    CHECK(mkdir(partition, 0777) == 0);
}

static sc_topic *open_log(bool typed)
{
    sc_topic_settings settings = settings_of(SEGMENT);
    sc_topic *topic;
    sc_error error;
    CHECK_OK(sc_topic_open(path, true, &settings, &topic, &error), error);
    CHECK_OK(sc_topic_add_layout(topic, typed ? layout_of(schema_with_everything(), 1) : plain_layout(1), &error),
             error);
    return topic;
}

/* The end of the chain of batches. */
static int64_t end_offset_of(const uint8_t *data, int64_t size, int64_t *end)
{
    sc_header header;
    const char *why;
    int64_t at = 0, offset = 0;
    while (sc_batch_look(data + at, size - at, &header, &why) == SC_BATCH_GOOD && header.base_offset == offset) {
        at += header.total_size;
        offset = header.last_offset + 1;
    }
    *end = at;
    return offset;
}

static int64_t write_log(const uint8_t *options, const uint8_t *data, int64_t size)
{
    char file[FILE_MAX];
    int64_t end, room = (SCHEMA_SIZE + size + 64 + 4095) / 4096 * 4096;
    uint8_t *bytes = aligned_alloc(4096, (size_t)room), *batches = bytes + SCHEMA_SIZE;
    CHECK(bytes != NULL);
    memset(bytes, 0, (size_t)room);
    schema_message(bytes, 1);
    memcpy(batches, data, (size_t)size);
    for (int64_t at = 0, step; (options[0] & 4) == 0 && at < size; at += step) {
        step = fuzz_seal(batches + at, size - at, false);
        step = step == 0 ? SC_ALIGNMENT : step;
    }
    int64_t offset = end_offset_of(batches, size, &end);
    if ((options[0] & 8) == 0) {
        memset(batches + end, 0, (size_t)(room - SCHEMA_SIZE - end));
        memcpy(batches + end, &(uint64_t){SC_CONTINUATION}, 8);
    }
    segment_file(file, path, 0, 0);
    file_write(file, bytes, room);
    memset(bytes, 0, (size_t)room);
    schema_message(bytes, 1);
    segment_file(file, path, 0, offset);
    if (offset > 0)
        file_write(file, bytes, 4096);
    free(bytes);
    return offset;
}

/* ---- rewriting --------------------------------------------------------------------------------------------------- */

static int compact(sc_rewrite *rewrite, const uint8_t *options, int64_t end, sc_error *error)
{
    static const uint8_t secret[16] = {1, 2, 3};
    sc_key_map *map;
    uint16_t from;
    int64_t full_at, dropped, oldest;
    memcpy(&from, options + 3, sizeof from);
    CHECK_OK(sc_key_map_new(options[2] == 0 ? 0 : options[2] * 24, secret, &map, error), *error);
    int code = sc_rewrite_collect(rewrite, map, options[0] & 16 ? from : 0, end, &full_at, error);
    int64_t to = code == SC_OK && full_at >= 0 ? full_at : end;
    if (code == SC_OK)
        code = sc_rewrite_mark(rewrite, map, FIRST_TIME, options[0] & 16 ? from : 0, to, &dropped, &oldest, error);
    sc_key_map_free(map);
    return code;
}

static int add_exported(sc_rewrite *rewrite, const sc_batch *batch, sc_error *error)
{
    static const sc_column columns[] = {{.column = 2}, {.column = 3}, {.column = 4}};
    struct ArrowArray array;
    sc_rows rows;
    int64_t bytes = 0;
    int code = sc_batch_keys(batch, &rows, error);
    if (code == SC_OK)
        code = sc_batch_export(batch, columns, 3, &bytes, &array, error);
    if (code != SC_OK)
        return code;
    sc_batch_input input = {.count = rows.count,
                            .key = array.children[0],
                            .value = array.children[1],
                            .headers = array.children[2],
                            .timestamps = rows.timestamps,
                            .offsets = rows.offsets};
    code = sc_rewrite_add(rewrite, &input, batch->last_offset, batch->flags, error);
    array.release(&array);
    return code;
}

static int run(sc_rewrite *rewrite, const uint8_t *options, int64_t end, sc_error *error)
{
    sc_rewrite_contents contents;
    sc_batch batch;
    int way = options[0] & 3;
    int code = sc_rewrite_look(rewrite, &contents, error);
    if (code == SC_OK && way == 1)
        code = compact(rewrite, options, end, error);
    if (code == SC_OK && way < 2)
        return sc_rewrite_plain(rewrite, 100 + 64 * options[1], NULL, NULL, error);
    while (code == SC_OK && (code = sc_rewrite_next(rewrite, &batch, error)) == SC_OK)
        code = (batch.flags & SC_BATCH_MUST_COPY) != 0 ? sc_rewrite_copy(rewrite, &batch, error)
                                                       : add_exported(rewrite, &batch, error);
    return code == SC_END ? SC_OK : code;
}

/* Whether the segment was replaced. */
static bool rewrite(sc_topic *topic, const uint8_t *options, int64_t end)
{
    sc_rewrite *self;
    sc_rewrite_report report = {0};
    sc_error error;
    int code = sc_rewrite_open(topic, 0, 0, &self, &error);
    if (code != SC_OK) {
        CHECK(code == SC_RANGE || code == SC_CORRUPT || code == SC_FORMAT);
        return false;
    }
    code = run(self, options, end, &error);
    if (code == SC_OK)
        code = sc_rewrite_commit(self, &report, &error);
    if (code != SC_OK && code != SC_CORRUPT && code != SC_FORMAT && code != SC_INVALID && code != SC_TOO_LARGE)
        check_error(__FILE__, __LINE__, "rewriting", &error);
    CHECK(report.replaced == (code == SC_OK));
    sc_rewrite_free(self);
    return code == SC_OK;
}

static bool append_later(sc_topic *topic)
{
    sc_batch_input input = {.count = LATER, .timestamp = 1};
    sc_append append = {
        .batches = &input, .batch_count = 1, .schema_version = 1, .generation = GENERATION, .expected_offset = -1};
    sc_error error;
    int64_t first, end;
    return sc_partition_append(topic, 0, &append, &first, &end, &error) == SC_OK;
}

static void rewrite_and_compare(sc_topic *topic, const uint8_t *options, int64_t end)
{
    sc_error error;
    bool typed = (options[0] & 3) == 3;
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    content before = read_committed(topic);
    bool replaced = rewrite(topic, options, end);
    content after = read_committed(topic);
    if (replaced && (options[0] & 3) == 1)
        check_compacted(&before, &after, end);
    else
        check_same(&before, &after);
    free(before.rows);
    topic_close(topic);
    topic = open_log(typed);
    content again = read_committed(topic);
    check_same(&after, &again);
    free(after.rows);
    free(again.rows);
    topic_close(topic);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < FUZZ_OPTIONS || size > SEGMENT - 8192)
        return 0;
    empty_folder();
    int64_t end = write_log(data, data + FUZZ_OPTIONS, (int64_t)size - FUZZ_OPTIONS);
    sc_topic *topic = open_log((data[0] & 3) == 3);
    if (end > 0 && end < INT32_MAX && append_later(topic))
        rewrite_and_compare(topic, data, end);
    else
        topic_close(topic);
    return 0;
}
