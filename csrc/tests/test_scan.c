#include <unistd.h>

#include "check.h"
#include "plain_topic.h"

enum { SEGMENT = 64 << 10, END = 3000 };
static char path[FOLDER_MAX], file[FILE_MAX];

static sc_topic *make_topic(bool writable)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int64_t i = 0; i < END; i += 100) {
        append_records(topic, 0, i, 100);
        append_records(topic, 1, i, 100);
    }
    topic_close(topic);
    return topic_open_with(path, writable, SEGMENT);
}

static void drop_topic(sc_topic *topic)
{
    topic_close(topic);
    folder_remove(path);
}

static sc_scan *scan_of(sc_topic *topic, const sc_range *ranges, int64_t count, int64_t limit)
{
    sc_scan_options options = {.ranges = ranges,
                               .range_count = count,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = limit,
                               .verify = true};
    sc_scan *scan;
    sc_error error;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    return scan;
}

static void read_counters(sc_scan *scan, sc_scan_counters *counters)
{
    sc_tally *tally = sc_scan_tally(scan);
    sc_tally_read(tally, counters);
    sc_tally_release(tally);
}

static void test_every_range_gives_exactly_its_records(void)
{
    sc_topic *topic = make_topic(false);
    for (int64_t start = 0; start <= END; start += 371)
        for (int64_t end = start; end <= END; end += 459)
            check_records(topic, 0, start, end);
    check_records(topic, 1, 99, 101);
    drop_topic(topic);
}

static void test_ranges_follow_in_their_order_and_rows_stop_at_the_limit(void)
{
    sc_topic *topic = make_topic(false);
    static const sc_range ranges[] = {{1, 250, 450}, {0, 10, 10}, {0, 0, 150}};
    for (int64_t limit = -1; limit <= 400; limit += limit < 0 ? 1 : 49) {
        sc_scan *scan = scan_of(topic, ranges, 3, limit);
        sc_batch batch;
        sc_error error;
        int64_t rows = 0;
        int code;
        while ((code = sc_scan_next(scan, &batch, &error)) == SC_OK) {
            CHECK_EQ(batch.partition, rows < 200);
            CHECK_EQ(batch.base_offset + batch.first_row, rows < 200 ? 250 + rows : rows - 200);
            rows += batch.row_count;
        }
        CHECK_EQ(code, SC_END);
        CHECK_EQ(rows, limit < 0 || limit > 350 ? 350 : limit);
        CHECK_EQ(sc_scan_next(scan, &batch, &error), SC_END);
        sc_scan_free(scan);
    }
    drop_topic(topic);
}

static void test_ranges_outside_the_log_are_refused(void)
{
    sc_topic *topic = make_topic(false);
    static const sc_range wrong[] = {{0, -1, 5}, {0, 0, END + 1}, {0, END, END + 1}};
    sc_batch batch;
    sc_error error;
    for (int i = 0; i < 3; i++) {
        sc_scan *scan = scan_of(topic, &wrong[i], 1, -1);
        CHECK_EQ(sc_scan_next(scan, &batch, &error), SC_RANGE);
        sc_scan_free(scan);
    }
    sc_range unknown = {9, 0, 1};
    sc_scan *scan = scan_of(topic, &unknown, 1, -1);
    CHECK_EQ(sc_scan_next(scan, &batch, &error), SC_INVALID);
    sc_scan_free(scan);
    drop_topic(topic);
}

static void test_counting_agrees_with_reading_without_reading_records(void)
{
    sc_topic *topic = make_topic(true);
    for (int round = 0; round < 2; round++) /* without indexes, then with them */
        for (int64_t start = 0; start <= END; start += 411) {
            sc_range range = {0, start, END - start / 3 > start ? END - start / 3 : start};
            sc_scan *scan = scan_of(topic, &range, 1, -1);
            sc_error error;
            sc_scan_counters counters;
            int64_t count;
            CHECK_OK(sc_scan_count(scan, &count, &error), error);
            CHECK_EQ(count, range.end_offset - range.start_offset);
            read_counters(scan, &counters);
            CHECK_EQ(counters.bytes_verified, 0);
            sc_scan_free(scan);
        }
    drop_topic(topic);
}

static void test_batches_outside_the_wanted_times_are_passed_over(void)
{
    sc_topic *topic = make_topic(true);
    sc_range range = {0, 0, END};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = time_of(1150),
                               .max_timestamp = time_of(1349),
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    sc_batch batch;
    sc_error error;
    sc_scan_counters counters;
    int64_t first = -1, rows = 0;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    while (sc_scan_next(scan, &batch, &error) == SC_OK) {
        first = first < 0 ? batch.base_offset : first;
        rows += batch.row_count;
    }
    CHECK_EQ(first, 1100);
    CHECK_EQ(rows, 300);
    read_counters(scan, &counters);
    CHECK_EQ(counters.batches, 3);
    CHECK(counters.segments <= 3);
    sc_scan_free(scan);
    drop_topic(topic);
}

static void test_a_batch_is_verified_once_per_process(void)
{
    sc_topic *topic = make_topic(true);
    sc_error failed;
    CHECK_OK(sc_partition_flush(topic, 0, &failed), failed);
    append_records(topic, 0, END,
                   1); /* its header says how far the log is durable: opening verifies only what follows */
    topic_close(topic);
    topic = topic_open_with(path, false, SEGMENT);
    sc_range range = {0, 0, END};
    int64_t verified[2];
    for (int round = 0; round < 2; round++) {
        sc_scan *scan = scan_of(topic, &range, 1, -1);
        sc_batch batch;
        sc_error error;
        sc_scan_counters counters;
        while (sc_scan_next(scan, &batch, &error) == SC_OK)
            ;
        read_counters(scan, &counters);
        CHECK_EQ(counters.rows, END);
        verified[round] = counters.bytes_verified;
        sc_scan_free(scan);
    }
    CHECK(verified[0] > END * 90);
    CHECK_EQ(verified[1], 0);
    drop_topic(topic);
}

static void test_without_verification_only_headers_are_judged(void)
{
    sc_topic *topic = make_topic(false);
    found_batch batches[4];
    segment_file(file, path, 0, 0);
    CHECK_EQ(found_batches(file, batches, 4), 4);
    file_flip(file, batches[1].position + batches[1].header.total_size - 100);
    sc_range range = {0, 0, END};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = false};
    sc_scan *scan;
    sc_batch batch;
    sc_error error;
    int64_t rows = 0, next;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    while (sc_scan_next(scan, &batch, &error) == SC_OK)
        rows += batch.row_count;
    CHECK_EQ(rows, END);
    sc_scan_free(scan);
    CHECK_EQ(try_read(topic, 0, 0, END, &next, &error), SC_CORRUPT);
    CHECK_EQ(error.offset, 100);
    drop_topic(topic);
}

static void test_what_a_scan_gave_outlives_scan_topic_and_file(void)
{
    sc_topic *topic = make_topic(false);
    static const sc_column columns[] = {{.column = 0}, {.column = 3}};
    sc_range range = {0, 100, 200};
    sc_scan *scan = scan_of(topic, &range, 1, -1);
    sc_batch batch;
    sc_error error;
    struct ArrowArray array;
    int64_t exported = 0;
    CHECK_OK(sc_scan_next(scan, &batch, &error), error);
    CHECK_OK(sc_batch_export(&batch, columns, 2, &exported, &array, &error), error);
    CHECK(exported > 0);
    sc_scan_free(scan);
    drop_topic(topic);
    for (int i = 0; i < 100; i++) {
        uint8_t value[VALUE_MAX];
        const int32_t *ends = array.children[1]->buffers[1];
        int64_t size = value_of(0, 100 + i, value);
        CHECK_EQ(((const int64_t *)array.children[0]->buffers[1])[array.children[0]->offset + i], 100 + i);
        CHECK(size < 0 || memcmp((const uint8_t *)array.children[1]->buffers[2] + ends[i], value, (size_t)size) == 0);
    }
    array.release(&array);
}

static void test_a_scan_keeps_its_topic(void)
{
    sc_topic *topic = make_topic(false);
    sc_range range = {0, 0, END};
    sc_scan *scan = scan_of(topic, &range, 1, -1);
    sc_batch batch;
    sc_error error;
    CHECK_OK(sc_scan_next(scan, &batch, &error), error);
    sc_topic_free(topic);
    CHECK_OK(sc_scan_next(scan, &batch, &error), error);
    CHECK_EQ(batch.base_offset, 100);
    sc_scan_free(scan);
    folder_remove(path);
}

static void test_a_scan_goes_on_while_the_log_grows_and_rolls(void)
{
    sc_topic *topic = make_topic(true);
    sc_range range = {0, 0, END};
    sc_scan *scan = scan_of(topic, &range, 1, -1);
    sc_batch batch;
    sc_error error;
    int64_t next = 0, end = END;
    while (sc_scan_next(scan, &batch, &error) == SC_OK) {
        CHECK_EQ(batch.base_offset, next);
        next += batch.row_count;
        append_records(topic, 0, end, 50);
        end += 50;
    }
    CHECK_EQ(next, END);
    sc_scan_free(scan);
    check_records(topic, 0, 0, end);
    drop_topic(topic);
}

/* The file is cut under the mapping, by whom ever: an error, not a signal, whether or not the batch was verified
 * before. */
static void test_a_file_cut_under_its_mapping_is_an_error(void)
{
    for (int verified = 0; verified <= 1; verified++) {
        sc_topic *topic = make_topic(false);
        static const sc_column columns[] = {{.column = 0}, {.column = 1}, {.column = 2}, {.column = 3}, {.column = 4}};
        sc_error error;
        int64_t next, exported = 0;
        struct ArrowArray array;
        sc_rows rows;
        sc_batch batch;
        bool dense;
        if (verified)
            check_records(topic, 0, 0, END);
        else
            check_records(topic, 0, 0, 1);
        sc_range range = {0, 0, END};
        sc_scan *scan = scan_of(topic, &range, 1, -1);
        CHECK_OK(sc_scan_next(scan, &batch, &error), error);
        segment_file(file, path, 0, 0);
        file_truncate(file, 0);
        CHECK_EQ(sc_batch_export(&batch, columns, 5, &exported, &array, &error), SC_OS);
        CHECK_EQ(sc_batch_rows(&batch, &rows, &error), SC_OS);
        CHECK_EQ(sc_batch_narrow_to_timestamps(&batch, time_of(3), time_of(4), &dense, &error), SC_OS);
        CHECK_EQ(error.number, 5);
        CHECK_EQ(sc_scan_next(scan, &batch, &error), SC_OS);
        CHECK(strcmp(error.path, file) == 0);
        sc_scan_free(scan);
        CHECK(try_read(topic, 0, 0, END, &next, &error) == SC_OS);
        drop_topic(topic);
    }
}

int main(int argc, char **argv)
{
    RUN(test_every_range_gives_exactly_its_records);
    RUN(test_ranges_follow_in_their_order_and_rows_stop_at_the_limit);
    RUN(test_ranges_outside_the_log_are_refused);
    RUN(test_counting_agrees_with_reading_without_reading_records);
    RUN(test_batches_outside_the_wanted_times_are_passed_over);
    RUN(test_a_batch_is_verified_once_per_process);
    RUN(test_without_verification_only_headers_are_judged);
    RUN(test_what_a_scan_gave_outlives_scan_topic_and_file);
    RUN(test_a_scan_keeps_its_topic);
    RUN(test_a_scan_goes_on_while_the_log_grows_and_rolls);
    RUN(test_a_file_cut_under_its_mapping_is_an_error);
    return 0;
}
