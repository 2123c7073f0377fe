#include <errno.h>
#include <fcntl.h>

#include "check.h"
#include "faults.h"
#include "os.h"
#include "plain_topic.h"

static char path[FOLDER_MAX];

static int append_with(sc_topic *topic, const sc_append *append, sc_error *error)
{
    int64_t first, end;
    return sc_partition_append(topic, 0, append, &first, &end, error);
}

static void test_records_come_back_as_they_were_appended(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    int64_t end = 0;
    for (int64_t count = 1; count < 120; count += 7, end = end + count - 7)
        append_records(topic, 0, end, count);
    append_records(topic, 2, 0, 33);
    CHECK_EQ(end_of(topic, 0), end);
    for (int64_t start = 0; start <= end; start += 13)
        check_records(topic, 0, start, end);
    check_records(topic, 2, 0, 33);
    check_records(topic, 1, 0, 0);
    topic_close(topic);
    check_log(path, end);
    folder_remove(path);
}

static void test_a_segment_is_rolled_before_it_grows_past_its_size(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, 64 << 10);
    for (int64_t i = 0; i < 40; i++)
        append_records(topic, 0, i * 100, 100);
    check_records(topic, 0, 0, 4000);
    topic_close(topic);
    topic = topic_open_with(path, false, 64 << 10);
    sc_segment_info info;
    sc_error error;
    int64_t n = 0, next = 0;
    for (; sc_partition_segment(topic, 0, n, &info, &error) == SC_OK; n++) {
        CHECK_EQ(info.base_offset, next);
        CHECK(file_size(info.path) <= 64 << 10);
        CHECK_EQ(info.sealed, info.end_offset != 4000);
        next = info.end_offset;
    }
    CHECK_EQ(next, 4000);
    CHECK(n >= 7);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_batch_above_the_segment_size_gets_a_segment_of_its_own(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, 8 << 10);
    append_records(topic, 0, 0, 10);
    append_records(topic, 0, 10, 500);
    append_records(topic, 0, 510, 10);
    check_records(topic, 0, 0, 520);
    topic_close(topic);
    char file[FILE_MAX];
    segment_file(file, path, 0, 10);
    CHECK(file_size(file) > 40 << 10);
    segment_file(file, path, 0, 510);
    CHECK(file_exists(file));
    check_log(path, 520);
    folder_remove(path);
}

static int64_t fake_now_ms;
static int64_t fake_now(void)
{
    return fake_now_ms;
}

static void test_an_old_segment_is_rolled_by_the_next_append(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    sc_topic_settings settings = settings_of(256 << 10);
    settings.segment_ms = 1000;
    CHECK_OK(sc_topic_alter(topic, &settings, true, &error), error);
    fake_now_ms = 5000000;
    sc_os.now_ms = fake_now;
    append_records(topic, 0, 0, 5);
    fake_now_ms += 999;
    append_records(topic, 0, 5, 5);
    fake_now_ms += 1;
    append_records(topic, 0, 10, 5);
    sc_os_reset();
    topic_close(topic);
    char file[FILE_MAX];
    segment_file(file, path, 0, 5);
    CHECK(!file_exists(file));
    segment_file(file, path, 0, 10);
    CHECK(file_exists(file));
    check_log(path, 15);
    folder_remove(path);
}

static void test_a_schema_change_rolls_and_both_schemas_are_read(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    CHECK_OK(sc_topic_add_layout(topic, plain_layout(2), &error), error);
    append_records(topic, 0, 0, 20);
    sc_bytes values[] = {{(const uint8_t *)"new", 3}};
    sc_batch_input input = {.count = 1, .values = values, .timestamp = 1};
    sc_append append = {
        .batches = &input, .batch_count = 1, .schema_version = 2, .generation = GENERATION, .expected_offset = -1};
    CHECK_OK(append_with(topic, &append, &error), error);
    sc_segment_info info;
    CHECK_OK(sc_partition_segment(topic, 0, 1, &info, &error), error);
    CHECK_EQ(info.base_offset, 20);
    check_records(topic, 0, 0, 20);
    sc_range range = {0, 20, 21};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    sc_batch batch;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    CHECK_OK(sc_scan_next(scan, &batch, &error), error);
    CHECK_EQ(batch.schema_version, 2);
    sc_scan_free(scan);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_reader_without_the_schema_says_format_not_corrupt(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    append_records(topic, 0, 0, 20);
    topic_close(topic);
    sc_topic_settings settings = settings_of(256 << 10);
    sc_error error;
    sc_partition_info info;
    CHECK_OK(sc_topic_open(path, true, &settings, &topic, &error), error);
    CHECK_OK(sc_topic_add_layout(topic, plain_layout(9), &error), error);
    CHECK_EQ(sc_partition_describe(topic, 0, false, &info, &error), SC_FORMAT);
    CHECK(strstr(error.path, "00000000000000000000.arrows") != NULL);
    sc_topic_close(topic, &error);
    sc_topic_free(topic);
    check_log(path, 20);
    folder_remove(path);
}

static void test_expected_generation_and_schema_are_checked(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    append_records(topic, 0, 0, 20);
    CHECK_EQ(try_append(topic, 0, 19, 1, 1, false, &error), SC_CONFLICT);
    CHECK_EQ(try_append(topic, 0, 21, 1, 1, false, &error), SC_CONFLICT);
    sc_batch_input input = {.count = 1, .timestamp = 1};
    sc_append append = {
        .batches = &input, .batch_count = 1, .schema_version = 1, .generation = GENERATION + 1, .expected_offset = -1};
    CHECK_EQ(append_with(topic, &append, &error), SC_STALE);
    append.generation = GENERATION;
    append.schema_version = 7;
    CHECK_EQ(append_with(topic, &append, &error), SC_STALE);
    append.schema_version = 1;
    append.batch_count = 0;
    CHECK_EQ(append_with(topic, &append, &error), SC_INVALID);
    int64_t first, end;
    append.batch_count = 1;
    CHECK_EQ(sc_partition_append(topic, 4, &append, &first, &end, &error), SC_INVALID);
    CHECK_EQ(end_of(topic, 0), 20);
    topic_close(topic);
    check_log(path, 20);
    folder_remove(path);
}

static void test_a_refused_append_leaves_no_trace(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    append_records(topic, 0, 0, 20);
    char *before = folder_snapshot(path);
    sc_error error;
    sc_bytes row = {(const uint8_t *)before, (1 << 20) + 1};
    sc_batch_input inputs[] = {{.count = 1, .timestamp = 1}, {.count = 1, .values = &row}};
    sc_append append = {
        .batches = inputs, .batch_count = 2, .schema_version = 1, .generation = GENERATION, .expected_offset = -1};
    CHECK_EQ(append_with(topic, &append, &error), SC_TOO_LARGE);
    char *after = folder_snapshot(path);
    CHECK(strcmp(before, after) == 0);
    free(before);
    free(after);
    topic_close(topic);
    check_log(path, 20);
    folder_remove(path);
}

static void test_appends_to_a_read_only_topic_are_refused(void)
{
    folder_make(path);
    topic_close(topic_open(path, true));
    sc_topic *topic = topic_open(path, false);
    sc_error error;
    CHECK_EQ(try_append(topic, 0, 0, 1, 1, false, &error), SC_READ_ONLY);
    CHECK_EQ(sc_partition_flush(topic, 0, &error), SC_READ_ONLY);
    CHECK_EQ(sc_topic_mark_deleted(topic, &error), SC_READ_ONLY);
    topic_close(topic);
    folder_remove(path);
}

/* The stores of one append: only when the first opening is there does a reader see any of it. */
static void test_an_append_of_several_batches_is_one_append(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    CHECK_OK(try_append(topic, 0, 0, 100, 9, false, &error), error);
    check_records(topic, 0, 0, 100);
    topic_close(topic);
    char file[FILE_MAX];
    found_batch batches[20];
    segment_file(file, path, 0, 0);
    CHECK_EQ(found_batches(file, batches, 20), 12);
    for (int i = 0; i < 12; i++)
        CHECK_EQ((batches[i].header.flags & SC_FLAG_CONTINUED) != 0, i < 11);
    check_log(path, 100);
    folder_remove(path);
}

static void test_a_small_append_makes_hardly_a_system_call(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, 1 << 20);
    append_records(topic, 0, 0, 10);
    faults_arm(0, 0, false); /* counts */
    for (int64_t i = 10; i < 1010; i += 10)
        append_records(topic, 0, i, 10);
    faults_disarm();
    CHECK(faults_calls() >= 100); /* the lock of each */
    CHECK(faults_calls() < 150);
    topic_close(topic);
    folder_remove(path);
}

/* Large appends take another way into the file than small ones. */
static void test_appends_of_every_size_follow_each_other(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, 1 << 20);
    sc_error error;
    int64_t end = 0;
    for (int64_t count = 1; count < 6000; count += count / 2 + 1)
        for (int64_t each = count; each > count / 40; each = each / 3) {
            CHECK_OK(try_append(topic, 0, end, count, each, false, &error), error);
            append_records(topic, 0, end + count, 1);
            end += count + 1;
        }
    check_records(topic, 0, 0, end);
    topic_close(topic);
    check_log(path, end);
    folder_remove(path);
}

static int64_t lengths[100];
static int length_count;
static int (*real_allocate)(int fd, int64_t position, int64_t size);
static int noting_allocate(int fd, int64_t position, int64_t size)
{
    CHECK(length_count < 100);
    lengths[length_count++] = position + size;
    return real_allocate(fd, position, size);
}

/* Whoever has mapped the live file at one of its lengths must find whole messages up to there. */
static void test_no_batch_lies_across_a_length_that_the_file_had(void)
{
    enum { SEGMENT = 4 << 20 };
    folder_make(path);
    real_allocate = sc_os.allocate;
    sc_os.allocate = noting_allocate;
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    length_count = 0;
    sc_error error;
    char file[FILE_MAX];
    segment_file(file, path, 0, 0);
    int64_t end = 0, count = 1, fillers = 0;
    while (end == 0 || file_size(file) < SEGMENT) {
        CHECK_OK(try_append(topic, 0, end, count, count / 3 + 1, false, &error), error);
        end += count;
        count = count * 7 % 2003;
    }
    CHECK(length_count >= 5);
    check_records(topic, 0, 0, end);
    int64_t size, position = SCHEMA_SIZE;
    uint8_t *data = file_read(file, &size);
    const char *why;
    sc_header header;
    while (sc_batch_look(data + position, size - position, &header, &why) == SC_BATCH_GOOD) {
        CHECK_EQ(sc_batch_checksum(data + position, &header), header.body_crc);
        for (int i = 0; i < length_count; i++)
            CHECK(lengths[i] <= position || lengths[i] >= position + header.total_size);
        fillers += header.record_count == 0;
        position += header.total_size;
    }
    CHECK(fillers >= 4);
    free(data);
    sc_os_reset();
    topic_close(topic);
    check_log(path, end);
    folder_remove(path);
}

static int64_t writes_left;
static ssize_t (*real_pwrite)(int fd, const void *data, size_t size, int64_t position);
static ssize_t failing_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    if (writes_left-- > 0)
        return real_pwrite(fd, data, size, position);
    (void)!real_pwrite(fd, data, size / 2, position);
    errno = EIO;
    return -1;
}

static void test_a_large_append_whose_write_fails_is_not_there_and_is_cleared(void)
{
    for (int way = 0; way < 3; way++) {
        folder_make(path);
        sc_topic *topic = topic_open_with(path, true, 4 << 20), *reader = topic_open_with(path, false, 4 << 20);
        sc_error error;
        append_records(topic, 0, 0, 2000);
        real_pwrite = sc_os.pwrite;
        sc_os.pwrite = failing_pwrite;
        writes_left = way;
        CHECK_EQ(try_append(topic, 0, 2000, 4000, 1000, false, &error), SC_OS);
        sc_os_reset();
        CHECK_EQ(end_of(reader, 0), 2000); /* first: the other handle repairs what it can */
        CHECK_EQ(end_of(topic, 0), 2000);
        check_records(reader, 0, 0, 2000);
        if (way == 0)
            append_records(topic, 0, 2000, 10); /* shorter than what was left there */
        if (way == 1)
            CHECK_OK(try_append(topic, 0, 2000, 4000, 1000, false, &error), error);
        int64_t end = end_of(topic, 0);
        check_records(reader, 0, 0, end);
        topic_close(topic);
        topic_close(reader);
        check_log(path, end);
        folder_remove(path);
    }
}

/* A segment that never got a record makes way for one of the same name and another schema: who has mapped it already
 * must not store there, nor look there. */
static void test_an_empty_segment_that_another_handle_replaced_is_not_used(void)
{
    folder_make(path);
    sc_topic *one = topic_open(path, true), *two = topic_open(path, true), *reader = topic_open(path, false);
    sc_error error;
    CHECK_OK(sc_topic_add_layout(one, plain_layout(2), &error), error);
    CHECK_OK(sc_topic_add_layout(two, plain_layout(2), &error), error);
    CHECK_OK(sc_topic_add_layout(reader, plain_layout(2), &error), error);
    real_pwrite = sc_os.pwrite;
    sc_os.pwrite = failing_pwrite;
    writes_left = 1; /* that of the schema */
    CHECK_EQ(try_append(one, 0, 0, 4000, 1000, false, &error), SC_OS);
    sc_os_reset();
    CHECK_EQ(end_of(reader, 0), 0);
    sc_segment_info info;
    CHECK_OK(sc_partition_segment(reader, 0, 0, &info, &error), error);
    CHECK_OK(sc_partition_segment(one, 0, 0, &info, &error), error);
    static uint8_t large[100000];
    sc_bytes value = {large, 3};
    sc_batch_input input = {.count = 1, .values = &value, .timestamp = 1};
    sc_append append = {
        .batches = &input, .batch_count = 1, .schema_version = 2, .generation = GENERATION, .expected_offset = -1};
    CHECK_OK(append_with(two, &append, &error), error);
    sc_os.pwrite = failing_pwrite; /* so that the next one looks for the end of the log in the log */
    writes_left = 0;
    value.size = sizeof large;
    CHECK_EQ(append_with(two, &append, &error), SC_OS);
    sc_os_reset();
    value.size = 3;
    sc_topic *const by[] = {one, one, two};
    for (int i = 0; i < 3; i++)
        CHECK_OK(append_with(by[i], &append, &error), error);
    sc_topic *const all[] = {one, two, reader};
    for (int i = 0; i < 3; i++) {
        sc_range range = {0, 0, 4};
        sc_scan_options options = {.ranges = &range,
                                   .range_count = 1,
                                   .min_timestamp = INT64_MIN,
                                   .max_timestamp = INT64_MAX,
                                   .limit = -1,
                                   .verify = true};
        sc_scan *scan;
        int64_t count;
        CHECK_OK(sc_scan_open(all[i], &options, &scan, &error), error);
        CHECK_OK(sc_scan_count(scan, &count, &error), error);
        CHECK_EQ(count, 4);
        sc_scan_free(scan);
    }
    topic_close(one);
    topic_close(two);
    topic_close(reader);
    folder_remove(path);
}

/* By whom ever: an error, not a signal, and the topic can be closed. */
static void test_a_file_cut_under_the_writer_is_an_error(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    char file[FILE_MAX];
    append_records(topic, 0, 0, 10);
    append_records(topic, 1, 0, 10);
    segment_file(file, path, 0, 0);
    file_truncate(file, 0);
    CHECK_EQ(try_append(topic, 0, 10, 10, 10, false, &error), SC_OS);
    CHECK_EQ(error.number, EIO);
    append_records(topic, 1, 10, 10);
    (void)sc_topic_close(topic, &error);
    sc_topic_free(topic);
    topic = topic_open(path, true);
    check_records(topic, 1, 0, 20);
    topic_close(topic);
    folder_remove(path);
}

static int open_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 2000; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void test_many_partitions_do_not_use_up_the_descriptors(void)
{
    enum { PARTITIONS = 280 };
    folder_make(path);
    int before = open_descriptors();
    sc_topic *topic = topic_open_with(path, true, 1 << 20);
    sc_topic_settings settings = settings_of(1 << 20);
    sc_error error;
    settings.partitions = PARTITIONS;
    CHECK_OK(sc_topic_alter(topic, &settings, true, &error), error);
    for (uint32_t partition = 0; partition < PARTITIONS; partition++)
        append_records(topic, partition, 0, partition % 10 == 0 ? 800 : 2);
    CHECK(open_descriptors() <= before + 270);
    for (uint32_t partition = 0; partition < PARTITIONS; partition += 7)
        check_records(topic, partition, 0, partition % 10 == 0 ? 800 : 2);
    topic_close(topic);
    CHECK_EQ(open_descriptors(), before);
    folder_remove(path);
}

static int64_t allocated_at_most;
static int (*real_allocate)(int fd, int64_t position, int64_t size);
static int limited_allocate(int fd, int64_t position, int64_t size)
{
    if (position + size > allocated_at_most) {
        errno = ENOSPC;
        return -1;
    }
    return real_allocate(fd, position, size);
}

static void test_a_full_disk_fails_the_append_and_harms_nothing(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_error error = {0};
    append_records(topic, 0, 0, 20);
    real_allocate = sc_os.allocate;
    sc_os.allocate = limited_allocate;
    allocated_at_most = 100 << 10; /* not a doubling: the last bytes are found by asking for just enough */
    int64_t end = 20;
    int code;
    while ((code = try_append(topic, 0, end, 50, 50, false, &error)) == SC_OK)
        end += 50;
    CHECK_EQ(code, SC_OS);
    CHECK_EQ(error.number, ENOSPC);
    CHECK(end > 200);
    check_records(topic, 0, 0, end);
    CHECK_EQ(try_append(topic, 1, 0, 1, 1, false, &error), SC_OK);
    sc_os_reset();
    append_records(topic, 0, end, 50);
    check_records(topic, 0, 0, end + 50);
    topic_close(topic);
    check_log(path, end + 50);
    folder_remove(path);
}

static void test_the_last_offset_of_all_is_an_error(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    append_records(topic, 0, 0, 10);
    topic_close(topic);
    char from[FILE_MAX], to[FILE_MAX];
    segment_file(from, path, 0, 0);
    segment_file(to, path, 0, INT64_MAX - 10);
    found_batch batch;
    CHECK_EQ(found_batches(from, &batch, 1), 1);
    batch.header.base_offset = INT64_MAX - 10;
    batch.header.last_offset = INT64_MAX - 1;
    sc_header_seal(&batch.header);
    file_write_at(from, &batch.header, sizeof batch.header, batch.position + 8 + batch.header.metadata_size);
    int64_t end = batch.position + batch.header.total_size;
    file_zero(from, end, file_size(from) - end);
    CHECK(rename(from, to) == 0);
    topic = topic_open(path, true);
    sc_error error;
    CHECK_EQ(end_of(topic, 0), INT64_MAX);
    sc_batch_input input = {.count = 1, .timestamp = 1};
    sc_append append = {
        .batches = &input, .batch_count = 1, .schema_version = 1, .generation = GENERATION, .expected_offset = -1};
    CHECK_EQ(append_with(topic, &append, &error), SC_RANGE);
    CHECK_EQ(end_of(topic, 0), INT64_MAX);
    topic_close(topic);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_records_come_back_as_they_were_appended);
    RUN(test_a_segment_is_rolled_before_it_grows_past_its_size);
    RUN(test_a_batch_above_the_segment_size_gets_a_segment_of_its_own);
    RUN(test_an_old_segment_is_rolled_by_the_next_append);
    RUN(test_a_schema_change_rolls_and_both_schemas_are_read);
    RUN(test_a_reader_without_the_schema_says_format_not_corrupt);
    RUN(test_expected_generation_and_schema_are_checked);
    RUN(test_a_refused_append_leaves_no_trace);
    RUN(test_appends_to_a_read_only_topic_are_refused);
    RUN(test_an_append_of_several_batches_is_one_append);
    RUN(test_a_small_append_makes_hardly_a_system_call);
    RUN(test_appends_of_every_size_follow_each_other);
    RUN(test_no_batch_lies_across_a_length_that_the_file_had);
    RUN(test_a_large_append_whose_write_fails_is_not_there_and_is_cleared);
    RUN(test_an_empty_segment_that_another_handle_replaced_is_not_used);
    RUN(test_a_file_cut_under_the_writer_is_an_error);
    RUN(test_many_partitions_do_not_use_up_the_descriptors);
    RUN(test_a_full_disk_fails_the_append_and_harms_nothing);
    RUN(test_the_last_offset_of_all_is_an_error);
    return 0;
}
