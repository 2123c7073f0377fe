/* Sealed segments replaced by others of their names: what everybody sees before, meanwhile and after, and after
 * crashes. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "encode.h"
#include "faults.h"
#include "key_map.h"
#include "os.h"
#include "plain_topic.h"
#include "producer_state.h"

enum { SEGMENT = 256 << 10, COUNT = 600, BATCHES_MAX = 1024 };
static char path[FOLDER_MAX], file[FILE_MAX];
static found_batch batches[BATCHES_MAX];
static const uint8_t secret[16] = "0123456789abcdef";

/* Segments of single records, and one that is active and empty behind them. */
static sc_topic *make_log(int64_t count)
{
    sc_error error;
    int64_t base;
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int64_t i = 0; i < count; i++)
        append_records(topic, 0, i, 1);
    CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
    return topic;
}

static int64_t base_of(sc_topic *topic, int64_t n)
{
    sc_segment_info info;
    sc_error error;
    return sc_partition_segment(topic, 0, n, &info, &error) == SC_OK ? info.base_offset : -1;
}

static int64_t rows_of(sc_topic *topic, int64_t n)
{
    sc_segment_info info;
    sc_error error;
    CHECK_OK(sc_partition_segment(topic, 0, n, &info, &error), error);
    return info.count;
}

static int consolidate(sc_topic *topic, int64_t base, sc_rewrite_report *report, sc_error *error)
{
    sc_rewrite *rewrite;
    int code = sc_rewrite_open(topic, 0, base, &rewrite, error);
    if (code != SC_OK)
        return code;
    code = sc_rewrite_plain(rewrite, 32 << 10, NULL, NULL, error);
    if (code == SC_OK)
        code = sc_rewrite_commit(rewrite, report, error);
    sc_rewrite_free(rewrite);
    return code;
}

static void consolidate_all(sc_topic *topic)
{
    sc_rewrite_report report;
    sc_error error;
    for (int64_t n = 0; base_of(topic, n + 1) >= 0; n++)
        CHECK_OK(consolidate(topic, base_of(topic, n), &report, &error), error);
}

static int64_t count_of(sc_topic *topic, int64_t start, int64_t end)
{
    sc_range range = {0, start, end};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    sc_error error;
    int64_t count;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    CHECK_OK(sc_scan_count(scan, &count, &error), error);
    sc_scan_free(scan);
    return count;
}

static void on_problem(void *context, const sc_error *problem)
{
    (void)context;
    check_error(__FILE__, __LINE__, "verify", problem);
}

static void check_sound(sc_topic *topic)
{
    sc_error error;
    CHECK_OK(sc_partition_verify(topic, 0, on_problem, NULL, NULL, &error), error);
}

/* ---- consolidation ------------------------------------------------------------------------------------------ */

static void test_records_offsets_and_times_stay_in_fewer_bytes_and_batches(void)
{
    sc_topic *topic = make_log(COUNT), *other = topic_open_with(path, true, SEGMENT);
    sc_rewrite_report report;
    sc_error error;
    check_records(other, 0, 0, COUNT);
    segment_file(file, path, 0, 0);
    int before = found_batches(file, batches, BATCHES_MAX);
    int64_t size = file_size(file);
    CHECK_OK(consolidate(topic, 0, &report, &error), error);
    CHECK(report.replaced);
    CHECK_EQ(report.rows_before, report.rows_after);
    CHECK_EQ(report.batches_before, before);
    CHECK_EQ(report.bytes_before, size);
    CHECK_EQ(report.bytes_after, file_size(file));
    CHECK(report.bytes_after * 4 < size);
    CHECK_EQ(found_batches(file, batches, BATCHES_MAX), report.batches_after);
    CHECK(report.batches_after < 4);
    consolidate_all(topic);
    check_records(topic, 0, 0, COUNT);
    check_records(other, 0, 0, COUNT);
    CHECK_EQ(count_of(other, 3, COUNT), COUNT - 3);
    check_sound(other);
    append_records(topic, 0, COUNT, 10);
    topic_close(other);
    topic_close(topic);
    check_log(path, COUNT + 10);
    folder_remove(path);
}

static void test_the_active_segment_is_left_alone(void)
{
    sc_topic *topic = make_log(COUNT);
    sc_rewrite_report report;
    sc_error error;
    CHECK_EQ(consolidate(topic, COUNT, &report, &error), SC_RANGE);
    CHECK_EQ(consolidate(topic, 7, &report, &error), SC_RANGE);
    topic_close(topic);
    folder_remove(path);
}

static void test_one_at_a_time_rewrites_a_partition(void)
{
    sc_topic *topic = make_log(COUNT), *other = topic_open_with(path, true, SEGMENT);
    sc_rewrite *rewrite;
    sc_rewrite_report report;
    sc_error error;
    CHECK_OK(sc_rewrite_open(topic, 0, 0, &rewrite, &error), error);
    CHECK_EQ(consolidate(topic, 0, &report, &error), SC_CONFLICT);
    CHECK_EQ(consolidate(other, 0, &report, &error), SC_CONFLICT);
    sc_rewrite_free(rewrite);
    CHECK_OK(consolidate(other, 0, &report, &error), error);
    CHECK_OK(consolidate(topic, 0, &report, &error), error);
    check_records(topic, 0, 0, COUNT);
    topic_close(other);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_scan_goes_on_in_the_file_that_it_stands_on(void)
{
    sc_topic *topic = make_log(COUNT);
    sc_range range = {0, 0, COUNT};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    sc_batch batch;
    sc_error error;
    int64_t rows = 0;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    for (int i = 0; i < 5; i++, rows += batch.row_count)
        CHECK_OK(sc_scan_next(scan, &batch, &error), error);
    consolidate_all(topic);
    while (sc_scan_next(scan, &batch, &error) == SC_OK)
        rows += batch.row_count;
    CHECK_EQ(rows, COUNT);
    sc_scan_free(scan);
    topic_close(topic);
    folder_remove(path);
}

/* In a batch's metadata, or in what nothing but its checksum tells of. */
static void check_damage_stops_it(bool in_metadata)
{
    sc_topic *topic = make_log(COUNT);
    sc_rewrite_report report;
    sc_error error;
    segment_file(file, path, 0, 0);
    found_batches(file, batches, BATCHES_MAX);
    topic_close(topic);
    file_flip(file, batches[30].position + (in_metadata ? 64 : batches[30].header.total_size - 64));
    int64_t size;
    uint8_t *before = file_read(file, &size);
    topic = topic_open_with(path, true, SEGMENT);
    CHECK_EQ(consolidate(topic, 0, &report, &error), SC_CORRUPT);
    CHECK_EQ(error.offset, 30);
    int64_t after_size;
    uint8_t *after = file_read(file, &after_size);
    CHECK(size == after_size && memcmp(before, after, (size_t)size) == 0);
    free(before);
    free(after);
    topic_close(topic);
    folder_remove(path);
}

static void test_damage_stops_it_and_stays_where_it_is(void)
{
    check_damage_stops_it(true);
    check_damage_stops_it(false);
}

static void test_what_was_deleted_meanwhile_does_not_come_back(void)
{
    sc_topic *topic = make_log(COUNT);
    sc_rewrite *rewrite;
    sc_rewrite_report report;
    sc_removal removal;
    sc_error error;
    CHECK_OK(sc_rewrite_open(topic, 0, 0, &rewrite, &error), error);
    CHECK_OK(sc_rewrite_plain(rewrite, 32 << 10, NULL, NULL, &error), error);
    CHECK_OK(sc_partition_delete_before(topic, 0, COUNT, &removal, &error), error);
    CHECK_OK(sc_rewrite_commit(rewrite, &report, &error), error);
    CHECK(!report.replaced);
    sc_rewrite_free(rewrite);
    segment_file(file, path, 0, 0);
    CHECK(!file_exists(file));
    topic_close(topic);
    folder_remove(path);
}

/* ---- which rows stay ---------------------------------------------------------------------------------------- */

/* Keeps every third record: the others' keys are "seen again" later. */
static sc_topic *make_sparse(void)
{
    sc_topic *topic = make_log(COUNT);
    sc_key_map *map;
    sc_error error;
    uint8_t key[VALUE_MAX];
    CHECK_OK(sc_key_map_new(0, secret, &map, &error), error);
    for (int64_t i = 0; i < COUNT; i++) {
        int64_t size = key_of(0, i, key);
        if (size >= 0 && i % 3 != 0)
            CHECK(sc_key_map_put(map, key, size, COUNT + 1));
    }
    for (int64_t n = 0; base_of(topic, n + 1) >= 0; n++) {
        sc_rewrite *rewrite;
        sc_rewrite_report report;
        int64_t dropped, tombstone;
        CHECK_OK(sc_rewrite_open(topic, 0, base_of(topic, n), &rewrite, &error), error);
        CHECK_OK(sc_rewrite_mark(rewrite, map, 0, 0, 0, &dropped, &tombstone, &error), error);
        CHECK_OK(sc_rewrite_plain(rewrite, 2 << 10, NULL, NULL, &error), error);
        CHECK_OK(sc_rewrite_commit(rewrite, &report, &error), error);
        CHECK_EQ(report.rows_before - report.rows_after, dropped);
        sc_rewrite_free(rewrite);
    }
    sc_key_map_free(map);
    return topic;
}

static bool stays(int64_t offset)
{
    return offset % 3 == 0 || offset % 5 == 4; /* key_of: those have no key */
}

static void check_sparse(sc_topic *topic, int64_t start, int64_t end, int64_t limit)
{
    sc_range range = {0, start, end};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = limit,
                               .verify = true};
    sc_scan *scan;
    sc_batch batch;
    sc_rows rows;
    sc_error error;
    int64_t next = start, left = limit < 0 ? INT64_MAX : limit, expected = 0;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    while (sc_scan_next(scan, &batch, &error) == SC_OK) {
        CHECK(batch.row_count > 0);
        CHECK_OK(sc_batch_rows(&batch, &rows, &error), error);
        for (int64_t row = batch.first_row; row < batch.first_row + batch.row_count; row++, next++, left--) {
            while (!stays(next))
                next++;
            CHECK_EQ(rows.offsets[row], next);
            CHECK_EQ(rows.timestamps[row], time_of(next));
        }
    }
    sc_scan_free(scan);
    for (; left > 0 && next < end; next++)
        CHECK(!stays(next));
    for (int64_t i = start; i < end; i++)
        expected += stays(i);
    if (limit < 0)
        CHECK_EQ(count_of(topic, start, end), expected);
}

static void test_scans_of_sparse_batches_find_any_bounds(void)
{
    sc_topic *topic = make_sparse();
    for (int round = 0; round < 2; round++) {
        check_sound(topic);
        for (int64_t start = 0; start <= COUNT; start += 7)
            for (int64_t end = start; end <= COUNT; end += 31)
                check_sparse(topic, start, end, -1);
        for (int64_t limit = 0; limit < 40; limit += 3)
            check_sparse(topic, 11, COUNT, limit);
        topic_close(topic);
        topic = topic_open_with(path, round == 0, SEGMENT);
    }
    topic_close(topic);
    folder_remove(path);
}

static void test_a_segment_may_lose_all_its_records(void)
{
    sc_topic *topic = make_log(COUNT);
    sc_rewrite *rewrite;
    sc_rewrite_report report;
    sc_error error;
    CHECK_OK(sc_rewrite_open(topic, 0, 0, &rewrite, &error), error);
    CHECK_OK(sc_rewrite_commit(rewrite, &report, &error), error); /* without a row */
    sc_rewrite_free(rewrite);
    CHECK_EQ(report.rows_after, 0);
    check_sound(topic);
    int64_t second = base_of(topic, 1);
    CHECK_EQ(count_of(topic, 0, COUNT), COUNT - second);
    check_records(topic, 0, second, COUNT);
    topic_close(topic);
    topic = topic_open_with(path, true, SEGMENT);
    CHECK_EQ(end_of(topic, 0), COUNT);
    CHECK_EQ(count_of(topic, 0, COUNT), COUNT - second);
    topic_close(topic);
    folder_remove(path);
}

/* ---- producers ----------------------------------------------------------------------------------------------- */

static sc_producer_entry last_snapshot(const char *name, int64_t id)
{
    int64_t size, end = found_end(name), at = SCHEMA_SIZE, last = -1, offset;
    uint8_t *data = file_read(name, &size);
    sc_header header;
    sc_error error;
    const char *why;
    for (; at < end; at += header.total_size) {
        CHECK_EQ(sc_batch_look(data + at, end - at, &header, &why), SC_BATCH_GOOD);
        if ((header.flags & SC_FLAG_CONTROL) != 0 && header.control == SC_CONTROL_PRODUCERS)
            last = at + SC_OPENING_SIZE + header.metadata_size + SC_HEADER_SIZE + SC_ALIGNMENT;
    }
    CHECK(last >= 0 && at == end);
    CHECK_EQ(header.control, SC_CONTROL_PRODUCERS); /* it is the last batch */
    sc_producer_state *state = sc_producer_state_new();
    CHECK_OK(sc_producer_state_decode(state, data + last, size - last, &offset, &error), error);
    const sc_producer_entry *entry = sc_producer_state_find(state, id);
    CHECK(entry != NULL && state->count == 1);
    sc_producer_entry found = *entry;
    sc_producer_state_free(state);
    free(data);
    return found;
}

static int append_as(sc_topic *topic, sc_producer producer, bool transactional, int64_t *first, sc_error *error)
{
    int64_t end;
    sc_bytes value = {(const uint8_t *)"value", 5};
    sc_batch_input input = {.count = 1, .values = &value, .timestamp = 1000};
    sc_append append = {.batches = &input,
                        .batch_count = 1,
                        .schema_version = 1,
                        .generation = GENERATION,
                        .expected_offset = -1,
                        .producer = producer,
                        .transactional = transactional};
    return sc_partition_append(topic, 0, &append, first, &end, error);
}

static void test_what_dropped_headers_said_of_producers_is_kept_however_often(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    sc_error error;
    int64_t first, base;
    for (int32_t i = 0; i < 9; i++) {
        CHECK_OK(append_as(topic, (sc_producer){7, 3, 20 + i}, false, &first, &error), error);
        if (i == 5) /* the last five lie in two segments */
            CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
    }
    CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
    segment_file(file, path, 0, 6);
    for (int round = 0; round < 3; round++) {
        sc_rewrite_report report;
        CHECK_OK(consolidate(topic, round == 1 ? 0 : 6, &report, &error), error);
        sc_producer_entry found = last_snapshot(file, 7);
        CHECK_EQ(found.epoch, 3);
        CHECK_EQ(found.open_offset, -1);
        CHECK_EQ(found.unit_count, 5);
        for (int i = 0; i < 5; i++) {
            CHECK_EQ(found.units[i].first_offset, 4 + i);
            CHECK_EQ(found.units[i].last_offset, 4 + i);
            CHECK_EQ(found.units[i].first_sequence, 24 + i);
        }
        check_sound(topic);
        CHECK_EQ(count_of(topic, 0, 9), 9);
    }
    topic_close(topic);
    char hint[FILE_MAX];
    snprintf(hint, sizeof hint, "%s/0/.producers", path);
    unlink(hint);
    topic = topic_open_with(path, true, SEGMENT); /* from the log alone: repetitions, gaps and epochs as before */
    CHECK_OK(append_as(topic, (sc_producer){7, 3, 24}, false, &first, &error), error);
    CHECK_EQ(first, 4);
    CHECK_EQ(append_as(topic, (sc_producer){7, 3, 30}, false, &first, &error), SC_SEQUENCE);
    CHECK_EQ(append_as(topic, (sc_producer){7, 2, 0}, false, &first, &error), SC_FENCED);
    CHECK_OK(append_as(topic, (sc_producer){7, 3, 29}, false, &first, &error), error);
    CHECK_EQ(first, 9);
    topic_close(topic);
    folder_remove(path);
}

/* ---- transactions --------------------------------------------------------------------------------------------- */

static int64_t count_committed(sc_topic *topic, int64_t end)
{
    sc_range range = {0, 0, end};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true,
                               .committed = true};
    sc_scan *scan;
    sc_batch batch;
    sc_error error;
    int64_t rows = 0, count;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    while (sc_scan_next(scan, &batch, &error) == SC_OK)
        rows += batch.row_count;
    sc_scan_free(scan);
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    CHECK_OK(sc_scan_count(scan, &count, &error), error);
    sc_scan_free(scan);
    CHECK_EQ(count, rows);
    return rows;
}

static void append_marker(sc_topic *topic, int64_t producer, bool commit)
{
    sc_marker marker = {.producer_id = producer, .commit = commit};
    sc_error error;
    int64_t offset;
    CHECK_OK(sc_partition_append_marker(topic, 0, &marker, &offset, &error), error);
    CHECK(offset >= 0);
}

static void roll(sc_topic *topic)
{
    sc_error error;
    int64_t base;
    CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
}

static void test_aborted_records_go_committed_ones_stay_and_so_do_the_markers(void)
{
    enum { RECORDS = 20 };
    static const uint16_t wanted[] = {SC_CONTROL_ABORT, SC_CONTROL_COMMIT, SC_CONTROL_PRODUCERS};
    sc_rewrite_report report;
    sc_error error;
    int64_t first;
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int32_t i = 0; i < RECORDS; i++)
        CHECK_OK(append_as(topic, (sc_producer){1 + i % 2, 0, i / 2}, true, &first, &error), error);
    roll(topic);
    CHECK_EQ(consolidate(topic, 0, &report, &error), SC_RANGE); /* transactions are open */
    append_marker(topic, 1, false);
    append_marker(topic, 2, true);
    roll(topic);
    segment_file(file, path, 0, 0);
    for (int round = 0; round < 2; round++) {
        CHECK_OK(consolidate(topic, 0, &report, &error), error);
        CHECK_OK(consolidate(topic, RECORDS, &report, &error), error);
        CHECK_EQ(count_of(topic, 0, RECORDS + 2), RECORDS / 2);
        CHECK_EQ(count_committed(topic, RECORDS + 2), RECORDS / 2);
        CHECK_EQ(end_of(topic, 0), RECORDS + 2);
        check_sound(topic);
        CHECK_EQ(found_batches(file, batches, BATCHES_MAX), 1);
        CHECK_EQ(batches[0].header.flags & SC_FLAG_TRANSACTIONAL, 0);
        CHECK_EQ(batches[0].header.last_offset, RECORDS - 1);
        CHECK_EQ(batches[0].header.unstable_count, RECORDS);
        char markers[FILE_MAX];
        segment_file(markers, path, 0, RECORDS);
        int64_t size, at = SCHEMA_SIZE;
        uint8_t *data = file_read(markers, &size);
        for (int i = 0; i < 3; i++) {
            sc_header header;
            const char *why;
            CHECK_EQ(sc_batch_look(data + at, size - at, &header, &why), SC_BATCH_GOOD);
            CHECK_EQ(header.control, wanted[i]);
            CHECK_EQ(header.base_offset, RECORDS + i);
            CHECK_EQ(header.transaction_offset, i == 1);
            at += header.total_size;
        }
        free(data);
    }
    topic_close(topic);
    folder_remove(path);
}

/* The headers of the segment in between must not say that everything before them was decided. */
static void test_a_transaction_across_a_rewritten_segment_stays_aborted(void)
{
    sc_rewrite_report report;
    sc_error error;
    int64_t first;
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    CHECK_OK(append_as(topic, (sc_producer){1, 0, 0}, true, &first, &error), error);
    roll(topic);
    for (int32_t i = 0; i < 50; i++)
        CHECK_OK(append_as(topic, (sc_producer){2 + i % 2, 0, i / 2}, false, &first, &error), error);
    roll(topic);
    CHECK_OK(append_as(topic, (sc_producer){1, 0, 1}, true, &first, &error), error);
    append_marker(topic, 1, false);
    roll(topic);
    CHECK_EQ(count_committed(topic, 53), 50);
    CHECK_OK(consolidate(topic, 1, &report, &error), error);
    for (int round = 0; round < 3; round++) {
        CHECK_EQ(count_committed(topic, 53), 50);
        CHECK_EQ(count_of(topic, 0, 53), 52);
        sc_partition_info info;
        CHECK_OK(sc_partition_describe(topic, 0, false, &info, &error), error);
        CHECK_EQ(info.stable_offset, 53);
        topic_close(topic);
        if (round == 1)
            pretend_power_loss(path);
        char hint[FILE_MAX];
        snprintf(hint, sizeof hint, "%s/0/.producers", path);
        unlink(hint);
        topic = topic_open_with(path, true, SEGMENT);
    }
    CHECK_OK(append_as(topic, (sc_producer){1, 0, 2}, true, &first, &error), error);
    topic_close(topic);
    folder_remove(path);
}

/* ---- crashes -------------------------------------------------------------------------------------------------- */

/* Every system call of a rewriting fails once, and the process dies then: the segment is the old or the new one. */
static void test_an_interrupted_rewriting_leaves_the_old_or_the_new_segment(void)
{
    int kept = 0, replaced = 0;
    bool failed = true;
    for (int number = 1; failed; number++) {
        sc_topic *topic = make_log(COUNT);
        sc_rewrite_report report = {0};
        sc_error error;
        segment_file(file, path, 0, 0);
        int before = found_batches(file, batches, BATCHES_MAX);
        faults_arm(number, number % 2 == 0 ? ENOSPC : EIO, number % 3 == 0);
        int code = consolidate(topic, 0, &report, &error);
        failed = faults_disarm();
        int after = found_batches(file, batches, BATCHES_MAX);
        CHECK(after == before || after < 12);
        CHECK(code != SC_OK || after < 12);
        *(after == before ? &kept : &replaced) += 1;
        check_records(topic, 0, 0, COUNT);
        topic_abandon(topic);
        if (number % 4 == 0)
            pretend_power_loss(path);
        check_log(path, COUNT);
        topic = topic_open_with(path, true, SEGMENT);
        check_sound(topic);
        consolidate_all(topic);
        check_records(topic, 0, 0, COUNT + 10);
        topic_close(topic);
        char leftover[FILE_MAX + 8];
        snprintf(leftover, sizeof leftover, "%s.new", file);
        CHECK(!file_exists(leftover));
        folder_remove(path);
    }
    CHECK(kept > 10 && replaced > 3);
}

static struct sc_os_table real;
static int new_fd;
static bool new_is_dirty, name_is_dirty;

static int tracing_open(const char *name, int how)
{
    int fd = real.open(name, how);
    if (strstr(name, ".arrows.new") != NULL)
        new_fd = fd;
    return fd;
}

static ssize_t tracing_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    new_is_dirty = new_is_dirty || fd == new_fd;
    return real.pwrite(fd, data, size, position);
}

static int tracing_truncate(int fd, int64_t size)
{
    new_is_dirty = new_is_dirty || fd == new_fd;
    return real.truncate(fd, size);
}

static int tracing_sync(int fd)
{
    struct stat stat;
    CHECK_EQ(fstat(fd, &stat), 0);
    new_is_dirty = new_is_dirty && fd != new_fd;
    name_is_dirty = name_is_dirty && !S_ISDIR(stat.st_mode);
    return real.sync(fd);
}

static int tracing_unlink(const char *name)
{
    int result = real.unlink(name);
    name_is_dirty = name_is_dirty || (result == 0 && strstr(name, ".index") != NULL);
    return result;
}

static int tracing_rename(const char *from, const char *to)
{
    if (strstr(from, ".arrows.new") != NULL) {
        CHECK(!new_is_dirty);
        CHECK(!name_is_dirty); /* the old index is gone from the drive */
        name_is_dirty = true;
    }
    return real.rename(from, to);
}

static void test_a_new_file_is_on_the_drive_before_it_takes_a_name_and_the_name_before_that_is_told(void)
{
    sc_topic *topic = make_log(COUNT);
    sc_rewrite_report report;
    sc_error error;
    real = sc_os;
    new_fd = -1;
    new_is_dirty = name_is_dirty = false;
    sc_os.open = tracing_open;
    sc_os.pwrite = tracing_pwrite;
    sc_os.truncate = tracing_truncate;
    sc_os.sync = tracing_sync;
    sc_os.unlink = tracing_unlink;
    sc_os.rename = tracing_rename;
    CHECK_OK(consolidate(topic, 0, &report, &error), error);
    sc_os_reset();
    CHECK(report.replaced && new_fd >= 0);
    CHECK(!name_is_dirty);
    topic_close(topic);
    folder_remove(path);
}

/* A process that is killed before its n-th system call, for each n: forked from this one, which has no store open. */
static bool is_killed_before(int number, void (*work)(sc_topic *))
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        sc_topic *topic = topic_open_with(path, true, SEGMENT);
        check_records(topic, 0, 0, COUNT);
        faults_arm_kill(number);
        work(topic);
        _exit(0);
    }
    CHECK(child > 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    return WIFSIGNALED(status);
}

static void test_a_process_that_is_killed_before_any_system_call_leaves_the_old_or_the_new_segment(void)
{
    int kept = 0, replaced = 0;
    bool killed = true;
    for (int number = 1; killed; number++) {
        topic_close(make_log(COUNT));
        segment_file(file, path, 0, 0);
        int before = found_batches(file, batches, BATCHES_MAX);
        killed = is_killed_before(number, consolidate_all);
        int after = found_batches(file, batches, BATCHES_MAX);
        CHECK(after == before || (after < 12 && found_end(file) < file_size(file)));
        *(after == before ? &kept : &replaced) += 1;
        check_log(path, COUNT);
        sc_topic *topic = topic_open_with(path, true, SEGMENT);
        check_sound(topic);
        consolidate_all(topic);
        check_records(topic, 0, 0, COUNT + 10);
        topic_close(topic);
        folder_remove(path);
    }
    CHECK(kept > 10 && replaced > 10);
}

/* The control: the new segment is written over the old one, instead of beside it. */
static void rewrite_in_place(sc_topic *topic)
{
    sc_rewrite_report report;
    sc_error error;
    char copy[FOLDER_MAX], from[FILE_MAX];
    int64_t size;
    folder_make(copy);
    folder_copy(path, copy);
    sc_topic *other = topic_open_with(copy, true, SEGMENT);
    CHECK_OK(consolidate(other, 0, &report, &error), error);
    segment_file(from, copy, 0, 0);
    segment_file(file, path, 0, 0);
    uint8_t *data = file_read(from, &size);
    file_write_at(file, data, size / 2, 0);
    (void)topic;
    raise(SIGKILL);
}

static void count_problem(void *context, const sc_error *problem)
{
    (void)problem;
    ++*(int *)context;
}

static void test_a_segment_that_is_rewritten_in_place_would_be_a_mix(void)
{
    int problems = 0;
    sc_error error;
    topic_close(make_log(COUNT));
    CHECK(is_killed_before(1 << 30, rewrite_in_place));
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    CHECK_OK(sc_partition_verify(topic, 0, count_problem, NULL, &problems, &error), error);
    CHECK(problems > 0);
    topic_close(topic);
    folder_remove(path);
}

/* The index of the old file must not describe the new one. The control: here it does, and the count is wrong. */
static void test_an_index_of_the_old_file_would_mislead(void)
{
    sc_topic *topic = make_log(COUNT);
    char index[FILE_MAX];
    int64_t size;
    int64_t second = base_of(topic, 1);
    index_file(index, path, 0, 0);
    uint8_t *old = file_read(index, &size);
    sc_rewrite *rewrite;
    sc_rewrite_report report;
    sc_error error;
    CHECK_OK(sc_rewrite_open(topic, 0, 0, &rewrite, &error), error);
    CHECK_OK(sc_rewrite_commit(rewrite, &report, &error), error);
    sc_rewrite_free(rewrite);
    topic_close(topic);
    topic = topic_open_with(path, false, SEGMENT);
    CHECK_EQ(rows_of(topic, 0), 0);
    topic_close(topic);
    file_write(index, old, size);
    free(old);
    topic = topic_open_with(path, false, SEGMENT);
    CHECK_EQ(rows_of(topic, 0), second);
    topic_close(topic);
    folder_remove(path);
}

/* Who summed the old file up before it was replaced does not write that down behind the new one's back. */
static void test_a_process_that_knows_the_old_file_spoils_no_index(void)
{
    sc_topic *topic = make_log(COUNT), *other = topic_open_with(path, true, SEGMENT);
    char index[FILE_MAX];
    sc_rewrite *rewrite;
    sc_rewrite_report report;
    sc_error error;
    int64_t second = base_of(topic, 1);
    index_file(index, path, 0, 0);
    unlink(index);
    check_records(other, 0, 0, COUNT); /* the old file is mapped there, and not summed up */
    CHECK_OK(sc_rewrite_open(topic, 0, 0, &rewrite, &error), error);
    CHECK_OK(sc_rewrite_commit(rewrite, &report, &error), error);
    sc_rewrite_free(rewrite);
    CHECK_EQ(rows_of(other, 0), 0);
    CHECK_EQ(base_of(other, 1), second);
    topic_close(other);
    topic_close(topic);
    topic = topic_open_with(path, false, SEGMENT);
    CHECK_EQ(rows_of(topic, 0), 0);
    topic_close(topic);
    folder_remove(path);
}

/* ---- threads ------------------------------------------------------------------------------------------------- */

enum { THREAD_RECORDS = 3000, ROLL_EVERY = 250 };

static struct {
    sc_topic *topic, *other;
    atomic_bool done;
    atomic_int rewritten, reads;
} shared;

static void *append_in_thread(void *unused)
{
    for (int64_t i = 0; i < THREAD_RECORDS; i++) {
        append_records(shared.topic, 0, i, 1);
        if (i % ROLL_EVERY == ROLL_EVERY - 1)
            roll(shared.topic);
    }
    atomic_store(&shared.done, true);
    return unused;
}

static void *rewrite_in_thread(void *unused)
{
    bool last = false;
    while (!last) {
        last = atomic_load(&shared.done);
        for (int64_t n = 0, base; (base = base_of(shared.other, n)) >= 0; n++) {
            sc_rewrite_report report;
            sc_error error;
            int code = consolidate(shared.other, base, &report, &error);
            if (code != SC_RANGE)
                CHECK_OK(code, error);
            atomic_fetch_add(&shared.rewritten, code == SC_OK);
        }
    }
    return unused;
}

static void *delete_in_thread(void *unused)
{
    for (int64_t before = 0; !atomic_load(&shared.done);) {
        sc_removal removal;
        sc_error error;
        int64_t end = end_of(shared.topic, 0);
        if (end / 2 < before + 100)
            continue;
        before = end / 2;
        CHECK_OK(sc_partition_delete_before(shared.topic, 0, before, &removal, &error), error);
    }
    return unused;
}

/* All of the log, from where it begins now: each record is what it must be, or it was deleted meanwhile. */
static void *read_in_thread(void *topic)
{
    bool last = false;
    while (!last) {
        sc_partition_info info;
        sc_error error;
        int64_t next;
        last = atomic_load(&shared.done);
        CHECK_OK(sc_partition_describe(topic, 0, false, &info, &error), error);
        int code = try_read(topic, 0, info.start_offset, info.end_offset, &next, &error);
        if (code != SC_RANGE)
            CHECK_OK(code, error);
        if (code == SC_OK)
            CHECK_EQ(next, info.end_offset);
        atomic_fetch_add(&shared.reads, 1);
    }
    return NULL;
}

static void test_threads_append_rewrite_delete_and_read_at_once(void)
{
    pthread_t threads[5];
    folder_make(path);
    shared.topic = topic_open_with(path, true, SEGMENT);
    shared.other = topic_open_with(path, true, SEGMENT);
    pthread_create(&threads[0], NULL, append_in_thread, NULL);
    pthread_create(&threads[1], NULL, rewrite_in_thread, NULL);
    pthread_create(&threads[2], NULL, delete_in_thread, NULL);
    pthread_create(&threads[3], NULL, read_in_thread, shared.topic);
    pthread_create(&threads[4], NULL, read_in_thread, shared.other);
    for (int i = 0; i < 5; i++)
        pthread_join(threads[i], NULL);
    CHECK(atomic_load(&shared.rewritten) > 0 && atomic_load(&shared.reads) > 0);
    CHECK_EQ(end_of(shared.other, 0), THREAD_RECORDS);
    check_sound(shared.other);
    topic_close(shared.other);
    topic_close(shared.topic);
    sc_topic *topic = topic_open_with(path, false, SEGMENT);
    sc_partition_info info;
    sc_error error;
    CHECK_OK(sc_partition_describe(topic, 0, false, &info, &error), error);
    check_records(topic, 0, info.start_offset, THREAD_RECORDS);
    topic_close(topic);
    folder_remove(path);
}

/* ---- maps of keys ------------------------------------------------------------------------------------------- */

static void test_a_map_of_keys_has_the_greatest_offset_and_says_when_it_is_full(void)
{
    sc_key_map *map;
    sc_error error;
    char key[32];
    CHECK_OK(sc_key_map_new(64 * 24, secret, &map, &error), error);
    int64_t taken = 0;
    for (;; taken++) {
        int size = snprintf(key, sizeof key, "key %d", (int)taken);
        if (!sc_key_map_put(map, (const uint8_t *)key, size, taken))
            break;
    }
    CHECK_EQ(taken, 48);
    CHECK_EQ(sc_key_map_count(map), 48);
    CHECK(sc_key_map_put(map, (const uint8_t *)"key 5", 5, 100)); /* one that it knows */
    CHECK(sc_key_map_put(map, (const uint8_t *)"key 5", 5, 50));
    CHECK_EQ(sc_key_map_get(map, (const uint8_t *)"key 5", 5), 100);
    CHECK_EQ(sc_key_map_get(map, (const uint8_t *)"key 6", 5), 6);
    CHECK_EQ(sc_key_map_get(map, (const uint8_t *)"nobody", 6), -1);
    sc_key_map_clear(map);
    CHECK_EQ(sc_key_map_get(map, (const uint8_t *)"key 6", 5), -1);
    sc_key_map_free(map);
    CHECK_OK(sc_key_map_new(0, secret, &map, &error), error);
    for (int64_t i = 0; i < 10000; i++)
        CHECK(sc_key_map_put(map, (const uint8_t *)&i, i % 9, i));
    CHECK_EQ(sc_key_map_get(map, (const uint8_t *)"", 0), 9999);
    sc_key_map_free(map);
}

/* The first vectors of the reference implementation: messages 00 01 02 ... under the key 00 01 ... 0f. */
static void test_digests_are_those_of_siphash(void)
{
    static const uint8_t wanted[3][16] = {
        {0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93},
        {0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45},
        {0x81, 0x77, 0x22, 0x8d, 0xa4, 0xa4, 0x5d, 0xc7, 0xfc, 0xa3, 0x8b, 0xde, 0xf6, 0x0a, 0xff, 0xe4},
    };
    uint64_t key[2], digest[2];
    uint8_t bytes[16];
    for (int i = 0; i < 16; i++)
        bytes[i] = (uint8_t)i;
    memcpy(key, bytes, sizeof key);
    for (int size = 0; size < 3; size++) {
        sc_key_digest(key, bytes, size, digest);
        CHECK(memcmp(digest, wanted[size], 16) == 0);
    }
}

int main(int argc, char **argv)
{
    RUN(test_records_offsets_and_times_stay_in_fewer_bytes_and_batches);
    RUN(test_the_active_segment_is_left_alone);
    RUN(test_one_at_a_time_rewrites_a_partition);
    RUN(test_a_scan_goes_on_in_the_file_that_it_stands_on);
    RUN(test_damage_stops_it_and_stays_where_it_is);
    RUN(test_what_was_deleted_meanwhile_does_not_come_back);
    RUN(test_scans_of_sparse_batches_find_any_bounds);
    RUN(test_a_segment_may_lose_all_its_records);
    RUN(test_what_dropped_headers_said_of_producers_is_kept_however_often);
    RUN(test_aborted_records_go_committed_ones_stay_and_so_do_the_markers);
    RUN(test_a_transaction_across_a_rewritten_segment_stays_aborted);
    RUN(test_an_interrupted_rewriting_leaves_the_old_or_the_new_segment);
    RUN(test_a_new_file_is_on_the_drive_before_it_takes_a_name_and_the_name_before_that_is_told);
    RUN(test_a_process_that_is_killed_before_any_system_call_leaves_the_old_or_the_new_segment);
    RUN(test_a_segment_that_is_rewritten_in_place_would_be_a_mix);
    RUN(test_an_index_of_the_old_file_would_mislead);
    RUN(test_a_process_that_knows_the_old_file_spoils_no_index);
    RUN(test_threads_append_rewrite_delete_and_read_at_once);
    RUN(test_a_map_of_keys_has_the_greatest_offset_and_says_when_it_is_full);
    RUN(test_digests_are_those_of_siphash);
    return 0;
}
