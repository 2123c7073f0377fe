/* The index is a hint: whatever is in it, or is not, reads are right. */
#include <errno.h>
#include <unistd.h>

#include "check.h"
#include "os.h"
#include "plain_topic.h"
#include "random_array.h"
#include "segment.h"

enum { SEGMENT = 200 << 10, END = 6000 };
static char path[FOLDER_MAX], file[FILE_MAX];

/* A closed log of several segments, each with an index of a few entries. */
static void make_log(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    sc_error error;
    for (int64_t i = 0; i < END; i += 100) {
        append_records(topic, 0, i, 100);
        if (i % 1000 == 0)
            CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    }
    topic_close(topic);
    index_file(file, path, 0, 0);
    CHECK(file_size(file) >= 64 + 2 * 32);
}

static int64_t count_in(sc_topic *topic, int64_t start, int64_t low, int64_t high)
{
    sc_range range = {0, start, END};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = time_of(low),
                               .max_timestamp = time_of(high) - 1,
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    sc_batch batch;
    sc_error error;
    bool dense;
    int64_t count = 0;
    int code;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    while ((code = sc_scan_next(scan, &batch, &error)) == SC_OK) {
        CHECK_OK(sc_batch_narrow_to_timestamps(&batch, options.min_timestamp, options.max_timestamp, &dense, &error),
                 error);
        CHECK(dense);
        count += batch.row_count;
    }
    CHECK_EQ(code, SC_END);
    sc_scan_free(scan);
    return count;
}

static void check_reads(bool writable)
{
    sc_topic *topic = topic_open_with(path, writable, SEGMENT);
    for (int64_t start = 0; start < END; start += 577)
        check_records(topic, 0, start, start + 577 < END ? start + 577 : END);
    CHECK_EQ(count_in(topic, 0, 1234, 4321), 4321 - 1234);
    CHECK_EQ(count_in(topic, 0, 0, END), END);
    sc_scan *scan;
    sc_range range = {0, 100, END};
    sc_scan_options options = {
        .ranges = &range, .range_count = 1, .min_timestamp = INT64_MIN, .max_timestamp = INT64_MAX, .limit = -1};
    sc_error error;
    int64_t count;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    CHECK_OK(sc_scan_count(scan, &count, &error), error);
    CHECK_EQ(count, END - 100);
    sc_scan_free(scan);
    topic_close(topic);
}

static void for_each_index(void (*change)(void))
{
    make_log();
    sc_topic *topic = topic_open_with(path, false, SEGMENT);
    sc_segment_info info;
    sc_error error;
    int64_t bases[32], count = 0;
    for (; sc_partition_segment(topic, 0, count, &info, &error) == SC_OK; count++)
        bases[count] = info.base_offset;
    CHECK(count >= 4);
    topic_close(topic);
    for (int64_t i = 0; i < count; i++) {
        index_file(file, path, 0, bases[i]);
        if (file_exists(file))
            change();
    }
    check_reads(false);
    check_reads(true);
    check_reads(true);
    folder_remove(path);
}

static void change_nothing(void)
{
}
static void remove_it(void)
{
    CHECK(unlink(file) == 0);
}
static void empty_it(void)
{
    file_truncate(file, 0);
}
static void cut_header(void)
{
    file_truncate(file, 40);
}
static void cut_record(void)
{
    file_truncate(file, 64 + 33);
}

static void flip_everywhere(void)
{
    int64_t size = file_size(file);
    for (int64_t i = 0; i < size; i += 5)
        file_flip(file, i);
}

static void fill_with_noise(void)
{
    uint8_t noise[5000];
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)random_below(256);
    file_write(file, noise, sizeof noise);
}

static void test_reads_are_right_with_any_index(void)
{
    for_each_index(change_nothing);
    for_each_index(remove_it);
    for_each_index(empty_it);
    for_each_index(cut_header);
    for_each_index(cut_record);
    for_each_index(flip_everywhere);
    for_each_index(fill_with_noise);
}

/* A record of the index file as index.c has it, with a right checksum: such an index lies on purpose, or is of another
 * file. */
static void add_record(int64_t offset, int64_t position)
{
    uint8_t record[32] = {0};
    memcpy(record, &offset, 8);
    memcpy(record + 8, &position, 8);
    uint32_t crc = sc_crc32c(0, record, 28);
    memcpy(record + 28, &crc, 4);
    int64_t size;
    uint8_t *data = file_read(file, &size);
    data = realloc(data, (size_t)size + 32);
    CHECK(data != NULL);
    memcpy(data + size, record, 32);
    file_write(file, data, size + 32);
    free(data);
}

static void add_lies(void)
{
    add_record(10, SCHEMA_SIZE + 64);
    add_record(INT64_MAX, INT64_MAX);
    add_record(INT64_MAX - 1, INT64_MAX - 63);
    add_record(50, 1 << 20);
    add_record(150, 4096 + 1);
    for (int i = 0; i < 50; i++)
        add_record(random_below(END), random_below(SEGMENT) / 64 * 64);
}

static void test_entries_that_lie_are_found_out(void)
{
    for_each_index(add_lies);
}

/* An entry that leads beyond its offset: in its right place among the others, so that it is not sorted out. */
static void test_an_entry_that_leads_too_far_is_found_out(void)
{
    found_batch batches[8];
    make_log();
    segment_file(file, path, 0, 0);
    CHECK_EQ(found_batches(file, batches, 8), 8);
    index_file(file, path, 0, 0);
    file_truncate(file, 64); /* else the first entry behind it might be taken instead */
    add_record(batches[1].header.base_offset + 1, batches[6].position);
    check_reads(false);
    check_reads(true);
    folder_remove(path);
}

/* The same for the summary, but for what it promises of a sealed segment whose end it knows: that must be right. */
static void lie_about_another_end(void)
{
    int64_t size, numbers[6];
    uint8_t *data = file_read(file, &size);
    memcpy(numbers, data + 16, sizeof numbers);
    numbers[1] += 1;            /* end offset */
    numbers[2] = 64;            /* size */
    numbers[3] = 1;             /* count */
    numbers[4] = INT64_MAX / 2; /* the earliest time */
    numbers[5] = INT64_MAX / 2;
    memcpy(data + 12, &(uint32_t){1}, 4);
    memcpy(data + 16, numbers, sizeof numbers);
    uint32_t crc = sc_crc32c(0, data + 12, 52);
    memcpy(data + 8, &crc, 4);
    file_write(file, data, size);
    free(data);
}

static void test_a_summary_with_another_end_is_not_believed(void)
{
    for_each_index(lie_about_another_end);
}

static void test_a_writer_mends_the_index_and_a_reader_leaves_it(void)
{
    make_log();
    index_file(file, path, 0, 0);
    empty_it();
    check_reads(false);
    CHECK_EQ(file_size(file), 0);
    check_reads(true);
    CHECK(file_size(file) >= 64 + 32);
    folder_remove(path);
}

/* The latest record is neither in the last batch nor in the first, and the earliest not either. */
static void test_the_times_of_a_sealed_segment_are_those_of_all_its_batches(void)
{
    static const int64_t times[] = {500, 900, 100, 300};
    sc_error error;
    sc_segment_info info;
    int64_t first, end = 0, base;
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int i = 0; i < 4; i++) {
        sc_batch_input input = {.count = 1, .timestamps = &times[i]};
        sc_append append = {
            .batches = &input, .batch_count = 1, .schema_version = 1, .generation = GENERATION, .expected_offset = end};
        CHECK_OK(sc_partition_append(topic, 0, &append, &first, &end, &error), error);
    }
    CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
    CHECK_OK(sc_partition_segment(topic, 0, 0, &info, &error), error);
    CHECK(info.sealed);
    CHECK_EQ(info.min_timestamp, 100);
    CHECK_EQ(info.max_timestamp, 900);
    for (int writable = 1; writable >= 0; writable--) {
        for (int i = 0; i < 4; i++) {
            sc_range range = {0, 0, end};
            sc_scan_options options = {.ranges = &range,
                                       .range_count = 1,
                                       .min_timestamp = times[i],
                                       .max_timestamp = times[i],
                                       .limit = -1,
                                       .verify = true};
            sc_scan *scan;
            sc_batch batch;
            CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
            CHECK_OK(sc_scan_next(scan, &batch, &error), error);
            CHECK_EQ(batch.base_offset, i);
            CHECK_EQ(sc_scan_next(scan, &batch, &error), SC_END);
            sc_scan_free(scan);
        }
        topic_close(topic);
        topic = topic_open_with(path, false, SEGMENT); /* the index is read from its file */
    }
    topic_close(topic);
    folder_remove(path);
}

static int refused_opens;
static int (*real_open)(const char *name, int how);
static int refusing_open(const char *name, int how)
{
    if (strstr(name, ".index") == NULL)
        return real_open(name, how);
    refused_opens++;
    errno = EACCES;
    return -1;
}

static void test_an_index_that_cannot_be_opened_costs_only_time(void)
{
    make_log();
    real_open = sc_os.open;
    sc_os.open = refusing_open;
    check_reads(true);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int64_t i = END; i < END + 3000; i += 100)
        append_records(topic, 0, i, 100);
    topic_close(topic);
    sc_os_reset();
    CHECK(refused_opens > 0);
    topic = topic_open_with(path, true, SEGMENT);
    check_records(topic, 0, 0, END + 3000);
    topic_close(topic);
    folder_remove(path);
}

/* How many batch headers a seek to `offset` passes over, in one segment of `end` records, with its index or without. */
static int64_t batches_to(int64_t offset, int64_t end)
{
    char folder[FILE_MAX];
    snprintf(folder, sizeof folder, "%s/0", path);
    sc_segment *segment = sc_segment_new(folder, 0);
    sc_mapping *mapping;
    sc_error error;
    sc_layout *layout = plain_layout(1);
    CHECK(segment != NULL);
    CHECK_OK(sc_segment_map(segment, 0, layout, 0, &mapping, &error), error);
    int64_t unused = 0, passed = 0, at;
    int64_t position = sc_segment_seek(segment, mapping, offset, mapping->size, &at);
    for (;; passed++) {
        sc_look look = sc_segment_look(mapping, position, mapping->size, false, &unused);
        CHECK(look.state == SC_BATCH_GOOD);
        CHECK_EQ(look.header.base_offset, at);
        at += look.header.record_count;
        if (at > offset)
            break;
        position += look.header.total_size;
    }
    CHECK(at <= end);
    sc_mapping_release(mapping);
    sc_segment_release(segment);
    sc_layout_free(layout);
    return passed;
}

static void test_a_seek_passes_over_a_few_batches_however_long_the_log_is(void)
{
    enum { SHORT = 2000, LONG = 40000, BATCH = 20 };
    for (int64_t end = SHORT; end <= LONG; end *= LONG / SHORT) {
        folder_make(path);
        sc_topic *topic = topic_open_with(path, true, INT64_C(1) << 30);
        for (int64_t i = 0; i < end; i += BATCH)
            append_records(topic, 0, i, BATCH);
        topic_close(topic);
        index_file(file, path, 0, 0);
        int64_t most = SC_INDEX_SPACING / 704 + 1; /* the smallest batch */
        for (int64_t offset = 0; offset < end; offset += 97)
            CHECK(batches_to(offset, end) <= most);
        CHECK(unlink(file) == 0);
        CHECK(batches_to(end - 1, end) >= end / BATCH - 1); /* control: it is the index that saves them */
        folder_remove(path);
    }
}

int main(int argc, char **argv)
{
    RUN(test_reads_are_right_with_any_index);
    RUN(test_entries_that_lie_are_found_out);
    RUN(test_an_entry_that_leads_too_far_is_found_out);
    RUN(test_the_times_of_a_sealed_segment_are_those_of_all_its_batches);
    RUN(test_a_summary_with_another_end_is_not_believed);
    RUN(test_a_writer_mends_the_index_and_a_reader_leaves_it);
    RUN(test_an_index_that_cannot_be_opened_costs_only_time);
    RUN(test_a_seek_passes_over_a_few_batches_however_long_the_log_is);
    return 0;
}
