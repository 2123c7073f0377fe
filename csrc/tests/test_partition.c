#include <unistd.h>

#include "check.h"
#include "plain_topic.h"

enum { SEGMENT = 64 << 10 };
static char path[FOLDER_MAX], file[FILE_MAX];

static void make_log(int64_t end)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int64_t i = 0; i < end; i += 100)
        append_records(topic, 0, i, 100);
    topic_close(topic);
}

static void test_segments_and_sizes_are_described_as_they_are(void)
{
    make_log(3000);
    for (int writable = 0; writable <= 1; writable++) {
        sc_topic *topic = topic_open_with(path, writable, SEGMENT);
        sc_partition_info info;
        sc_segment_info segment;
        sc_error error;
        int64_t n = 0, next = 0, bytes = 0, rows = 0;
        int code;
        for (; (code = sc_partition_segment(topic, 0, n, &segment, &error)) == SC_OK; n++) {
            CHECK_EQ(segment.base_offset, next);
            CHECK_EQ(segment.min_timestamp, time_of(next));
            next = segment.end_offset;
            CHECK_EQ(segment.max_timestamp, time_of(next - 1));
            rows += segment.count;
            bytes += segment.sealed ? file_size(segment.path) : found_end(segment.path);
        }
        CHECK_EQ(code, SC_END);
        CHECK_EQ(next, 3000);
        CHECK_EQ(rows, 3000);
        CHECK_OK(sc_partition_describe(topic, 0, true, &info, &error), error);
        CHECK_EQ(info.size_bytes, bytes);
        CHECK_EQ(info.start_offset, 0);
        CHECK_EQ(info.end_offset, 3000);
        CHECK_EQ(sc_partition_segment(topic, 0, -1, &segment, &error), SC_END);
        CHECK_EQ(sc_partition_segment(topic, 2, 0, &segment, &error), SC_END);
        topic_close(topic);
    }
    folder_remove(path);
}

static void test_files_of_other_names_are_not_segments(void)
{
    static const char *const names[] = {"00000000000000000000.arrows.tmp",
                                        "0000000000000000000.arrows",
                                        "000000000000000000000.arrows",
                                        "99999999999999999999.arrows",
                                        "-0000000000000000001.arrows",
                                        "0000000000000000000x.arrows",
                                        "00000000000000000000.arrow",
                                        ".arrows",
                                        "00000000000000000005"};
    make_log(300);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(file, sizeof file, "%s/0/%s", path, names[i]);
        file_write(file, "junk", 4);
    }
    check_log(path, 300);
    folder_remove(path);
}

/* The whole folder, with names, bytes and times, before and after everything that a reader can do. */
static void read_everything(void)
{
    sc_topic *topic = topic_open_with(path, false, SEGMENT);
    sc_partition_info info;
    sc_segment_info segment;
    sc_error error;
    int64_t next, count;
    (void)sc_partition_describe(topic, 0, true, &info, &error);
    for (int64_t n = 0; sc_partition_segment(topic, 0, n, &segment, &error) == SC_OK; n++)
        ;
    if (sc_partition_describe(topic, 0, true, &info, &error) == SC_OK) {
        (void)try_read(topic, 0, info.start_offset, info.end_offset, &next, &error);
        sc_range range = {0, info.start_offset, info.end_offset};
        sc_scan_options options = {.ranges = &range,
                                   .range_count = 1,
                                   .min_timestamp = time_of(1000),
                                   .max_timestamp = time_of(2000),
                                   .limit = -1,
                                   .verify = true};
        sc_scan *scan;
        CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
        (void)sc_scan_count(scan, &count, &error);
        sc_scan_free(scan);
    }
    uint32_t partition = 0;
    int64_t offset = INT64_MAX;
    (void)sc_topic_wait(topic, &partition, &offset, 1, false, 1, &error);
    (void)sc_topic_flush(topic, &error);
    topic_close(topic);
}

static void test_a_reader_writes_nothing_whatever_it_finds(void)
{
    for (int way = 0; way < 8; way++) {
        make_log(3000);
        char state[FILE_MAX];
        snprintf(state, sizeof state, "%s/state", path);
        segment_file(file, path, 0, 2900);
        int64_t last = 2900;
        while (!file_exists(file)) {
            last -= 100;
            segment_file(file, path, 0, last);
        }
        if (way == 1)
            file_truncate(file, file_size(file) - 5000); /* torn */
        if (way == 2)
            file_flip(file, 3000);
        if (way == 3)
            file_truncate(file, 0); /* unfinished */
        if (way == 4)
            CHECK(unlink(state) == 0);
        if (way == 5)
            pretend_power_loss(path);
        if (way == 6) {
            pretend_power_loss(path);
            file_flip(file, 3000);
        }
        if (way == 7) {
            index_file(file, path, 0, 0);
            CHECK(unlink(file) == 0);
        }
        char *before = folder_snapshot(path);
        read_everything();
        char *after = folder_snapshot(path);
        CHECK(strcmp(before, after) == 0);
        free(before);
        free(after);
        folder_remove(path);
    }
}

static void test_handles_of_one_process_share_the_log(void)
{
    folder_make(path);
    sc_topic *first = topic_open_with(path, true, SEGMENT), *second = topic_open_with(path, true, SEGMENT);
    sc_topic *reader = topic_open_with(path, false, SEGMENT);
    for (int64_t i = 0; i < 3000; i += 50) {
        append_records(i % 100 == 0 ? first : second, 0, i, 50);
        CHECK_EQ(end_of(reader, 0), i + 50);
    }
    check_records(first, 0, 0, 3000);
    check_records(second, 0, 0, 3000);
    check_records(reader, 0, 0, 3000);
    topic_close(first); /* cuts the active file under the others */
    append_records(second, 0, 3000, 500);
    check_records(reader, 0, 0, 3500);
    topic_close(second);
    check_records(reader, 0, 0, 3500); /* nobody publishes the end: it is found in the log */
    topic_close(reader);
    check_log(path, 3500);
    folder_remove(path);
}

static void test_partitions_are_independent(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int64_t i = 0; i < 1000; i += 100)
        for (uint32_t partition = 0; partition < 4; partition++)
            append_records(topic, partition, i, 100);
    segment_file(file, path, 1, 0);
    file_zero(file, 0, 512);
    topic_abandon(topic);
    topic = topic_open_with(path, true, SEGMENT);
    sc_error error;
    int64_t next;
    CHECK_EQ(try_read(topic, 1, 0, 1000, &next, &error), SC_FORMAT);
    CHECK(strcmp(error.path, file) == 0);
    for (uint32_t partition = 0; partition < 4; partition++)
        if (partition != 1)
            check_records(topic, partition, 0, 1000);
    append_records(topic, 3, 1000, 5);
    topic_close(topic);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_segments_and_sizes_are_described_as_they_are);
    RUN(test_files_of_other_names_are_not_segments);
    RUN(test_a_reader_writes_nothing_whatever_it_finds);
    RUN(test_handles_of_one_process_share_the_log);
    RUN(test_partitions_are_independent);
    return 0;
}
