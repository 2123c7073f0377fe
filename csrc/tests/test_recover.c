/* What is found again after a process was killed, or a file damaged, while the machine stayed up. */
#include <errno.h>
#include <unistd.h>

#include "check.h"
#include "os.h"
#include "plain_topic.h"

static char path[FOLDER_MAX], file[FILE_MAX];
static found_batch batches[64];

/* A closed log of partition 0: `count` batches of ten records each, in one segment. */
static void make_noted_log(int count)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    for (int64_t i = 0; i < count; i++)
        append_records(topic, 0, i * 10, 10);
    topic_close(topic);
    segment_file(file, path, 0, 0);
    CHECK_EQ(found_batches(file, batches, 64), count);
}

/* As if it had not been noted when it was closed that all of it is durable. */
static void make_log(int count)
{
    make_noted_log(count);
    int64_t end = batches[count - 1].position + batches[count - 1].header.total_size;
    file_zero(file, end, file_size(file) - end);
}

static int64_t end_position(int count)
{
    return batches[count - 1].position + batches[count - 1].header.total_size;
}

/* ---- torn ends --------------------------------------------------------------------------------------------- */

static void test_a_file_cut_anywhere_is_cut_back_to_the_last_whole_batch(void)
{
    make_log(6);
    char copy[FOLDER_MAX];
    for (int64_t size = file_size(file); size > SCHEMA_SIZE; size -= 331) {
        folder_make(copy);
        folder_copy(path, copy);
        segment_file(file, copy, 0, 0);
        file_truncate(file, size);
        int whole = 0;
        while (whole < 6 && end_position(whole + 1) <= size)
            whole++;
        check_log(copy, whole * 10);
        folder_remove(copy);
    }
    folder_remove(path);
}

static void test_a_torn_end_is_cut_and_leaves_zeros(void)
{
    static const uint8_t garbage[] = "this is not the beginning of a batch, and nothing follows it";
    make_log(5);
    file_truncate(file, end_position(5) + 30000);
    file_write_at(file, garbage, sizeof garbage, end_position(5));
    file_write_at(file, garbage, sizeof garbage, end_position(5) + 20000);
    sc_topic *topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), 50);
    int64_t size;
    uint8_t *data = file_read(file, &size);
    for (int64_t i = end_position(5); i < size; i++)
        CHECK_EQ(data[i], 0);
    free(data);
    topic_close(topic);
    check_log(path, 50);
    folder_remove(path);
}

/* All of a batch but its opening: an append that was in flight. */
static void test_an_append_without_its_opening_never_was(void)
{
    make_log(5);
    file_zero(file, batches[4].position, SC_OPENING_SIZE);
    check_log(path, 40);
    folder_remove(path);
}

static void test_a_log_that_was_never_closed_is_found_whole(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    for (int64_t i = 0; i < 30; i++)
        append_records(topic, 0, i * 100, 100);
    topic_abandon(topic);
    check_log(path, 3000);
    folder_remove(path);
}

/* ---- several batches in one append ---------------------------------------------------------------------------- */

static void test_part_of_an_append_of_several_batches_is_not_kept(void)
{
    enum { BEFORE = 2, GROUP = 5 };
    for (int lost = 0; lost < GROUP; lost++)
        for (int way = 0; way < 2; way++) {
            folder_make(path);
            sc_topic *topic = topic_open(path, true);
            sc_error error;
            append_records(topic, 0, 0, 10);
            append_records(topic, 0, 10, 10);
            CHECK_OK(try_append(topic, 0, 20, 50, 10, false, &error), error);
            topic_abandon(topic);
            segment_file(file, path, 0, 0);
            CHECK_EQ(found_batches(file, batches, 64), BEFORE + GROUP);
            int64_t position = batches[BEFORE + lost].position;
            if (way == 0)
                file_truncate(file, position + 100);
            else
                file_zero(file, position, end_position(BEFORE + GROUP) - position);
            check_log(path, 20);
            folder_remove(path);
        }
}

/* The stores of an append in flight: every batch is there, but the opening of the first one, which is stored last. */
static void test_an_append_of_several_batches_without_its_first_opening_never_was(void)
{
    for (int64_t count = 20; count <= 50; count += 10) {
        folder_make(path);
        sc_topic *topic = topic_open(path, true);
        sc_error error;
        append_records(topic, 0, 0, 20);
        CHECK_OK(try_append(topic, 0, 20, count, 10, false, &error), error);
        topic_abandon(topic);
        segment_file(file, path, 0, 0);
        found_batches(file, batches, 64);
        file_zero(file, batches[1].position, SC_OPENING_SIZE);
        check_log(path, 20);
        folder_remove(path);
    }
}

/* ---- damage ------------------------------------------------------------------------------------------------ */

static void test_the_last_batch_of_a_closed_log_is_never_a_torn_tail(void)
{
    for (int way = 0; way < 8; way++) {
        make_noted_log(5);
        if (way % 4 == 0)
            file_flip(file, batches[4].position + 8 + batches[4].header.metadata_size + 200); /* a value */
        else if (way % 4 == 1)
            file_flip(file, batches[4].position + 8 + batches[4].header.metadata_size); /* the header */
        else if (way % 4 == 2)
            file_zero(file, batches[4].position, 8);
        else
            file_zero(file, batches[3].position, batches[3].header.total_size + batches[4].header.total_size);
        if (way >= 4)
            pretend_power_loss(path);
        int64_t good = way % 4 == 3 ? 30 : 40, next;
        for (int writable = 0; writable <= 1; writable++) {
            sc_topic *topic = topic_open(path, writable);
            sc_error error;
            CHECK_EQ(end_of(topic, 0), 50);
            check_records(topic, 0, 0, good);
            CHECK_EQ(try_read(topic, 0, 0, 50, &next, &error), SC_CORRUPT);
            CHECK_EQ(error.offset, good);
            CHECK_EQ(error.position, batches[good / 10].position);
            if (writable) {
                append_records(topic, 0, 50, 10);
                check_records(topic, 0, 50, 60);
            }
            topic_close(topic);
        }
        folder_remove(path);
    }
}

static void test_damage_in_the_middle_stays_and_is_reported_with_its_place(void)
{
    make_log(8);
    sc_error error;
    int64_t next;
    file_flip(file, batches[3].position + batches[3].header.total_size - 200);
    for (int writable = 0; writable <= 1; writable++) {
        sc_topic *topic = topic_open(path, writable);
        CHECK_EQ(end_of(topic, 0), 80);
        CHECK_EQ(try_read(topic, 0, 0, 80, &next, &error), SC_CORRUPT);
        CHECK_EQ(next, 30);
        CHECK_EQ(error.offset, 30);
        CHECK_EQ(error.position, batches[3].position);
        CHECK(strcmp(error.path, file) == 0);
        CHECK(strstr(error.message, "next readable record has offset 40") != NULL);
        check_records(topic, 0, 0, 30);
        check_records(topic, 0, 40, 80);
        CHECK_EQ(try_read(topic, 0, 35, 80, &next, &error), SC_CORRUPT);
        CHECK_EQ(next, 35);
        if (writable)
            append_records(topic, 0, 80, 10);
        topic_close(topic);
    }
    sc_topic *topic = topic_open(path, true);
    check_records(topic, 0, 40, 90);
    topic_close(topic);
    folder_remove(path);
}

static void test_zeros_in_the_middle_are_damage_too(void)
{
    make_log(8);
    sc_error error;
    int64_t next;
    file_zero(file, batches[2].position + 64, batches[2].header.total_size - 64);
    sc_topic *topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), 80);
    CHECK_EQ(try_read(topic, 0, 0, 80, &next, &error), SC_CORRUPT);
    CHECK_EQ(error.offset, 20);
    check_records(topic, 0, 30, 80);
    topic_close(topic);
    folder_remove(path);
}

/* The log looks as if it ended there; but what follows was acknowledged, and the machine never went down. */
static void test_a_zeroed_opening_in_the_middle_does_not_end_the_log(void)
{
    for (int number = 0; number < 7; number++)
        for (int64_t size = SC_OPENING_SIZE; size <= 1024; size *= 128) {
            make_log(8);
            sc_error error;
            int64_t next;
            file_zero(file, batches[number].position, size);
            sc_topic *topic = topic_open(path, true);
            CHECK_EQ(end_of(topic, 0), 80);
            CHECK_EQ(try_read(topic, 0, 0, 80, &next, &error), SC_CORRUPT);
            CHECK_EQ(error.offset, number * 10);
            check_records(topic, 0, number * 10 + 10, 80);
            topic_close(topic);
            folder_remove(path);
        }
}

/* A value that is itself a piece of a log: what it holds must not be taken for records of this one. */
static void test_a_batch_inside_a_damaged_value_is_not_a_record(void)
{
    make_log(3);
    int64_t size, first, end;
    uint8_t *data = file_read(file, &size);
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    sc_bytes value = {data + batches[2].position, end_position(3) - batches[2].position};
    sc_batch_input input = {.count = 1, .values = &value, .timestamp = 1};
    sc_append append = {
        .batches = &input, .batch_count = 1, .schema_version = 1, .generation = GENERATION, .expected_offset = 30};
    CHECK_OK(sc_partition_append(topic, 0, &append, &first, &end, &error), error);
    append_records(topic, 0, 31, 9);
    append_records(topic, 0, 40, 10);
    topic_close(topic);
    CHECK_EQ(found_batches(file, batches, 64), 6);
    file_flip(file, batches[3].position + 100); /* its metadata */
    topic = topic_open(path, true);
    int64_t next;
    CHECK_EQ(end_of(topic, 0), 50);
    CHECK_EQ(try_read(topic, 0, 0, 50, &next, &error), SC_CORRUPT);
    CHECK_EQ(next, 30);
    CHECK(strstr(error.message, "next readable record has offset 31") != NULL);
    check_records(topic, 0, 31, 50);
    topic_close(topic);
    free(data);
    folder_remove(path);
}

/* A header may say that its batch reaches as far as the file will: what is appended must not come to lie in it. */
static void test_an_append_behind_damage_begins_a_new_segment(void)
{
    make_log(8);
    int64_t size, still;
    char next[FILE_MAX];
    sc_header lying = batches[3].header;
    lying.total_size = 64 << 10;
    sc_header_seal(&lying);
    file_write_at(file, &lying, sizeof lying, batches[3].position + SC_OPENING_SIZE + lying.metadata_size);
    sc_topic *topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), 80);
    uint8_t *before = file_read(file, &size);
    for (int64_t end = 80; end < 200; end += 10)
        append_records(topic, 0, end, 10);
    segment_file(next, path, 0, 80);
    CHECK(access(next, F_OK) == 0);
    check_records(topic, 0, 40, 200);
    topic_close(topic);
    uint8_t *after = file_read(file, &still);
    CHECK(still == size && memcmp(before, after, (size_t)size) == 0);
    free(before);
    free(after);
    topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), 200);
    check_records(topic, 0, 40, 200);
    topic_close(topic);
    folder_remove(path);
}

static void count_problem(void *context, const sc_error *problem)
{
    CHECK(strstr(problem->message, "of the next segment") != NULL);
    ++*(int64_t *)context;
}

/* Each offset is read from the segment of its name, and once. */
static void test_offsets_of_the_next_segment_are_passed_over_and_reported(void)
{
    make_log(8);
    int64_t size, problems = 0, rest = batches[4].position, schema = batches[0].position;
    char next[FILE_MAX];
    sc_error error;
    uint8_t *data = file_read(file, &size);
    memmove(data + schema, data + rest, (size_t)(size - rest));
    segment_file(next, path, 0, 40);
    file_write(next, data, schema + size - rest);
    free(data);
    for (int writable = 0; writable <= 1; writable++) {
        sc_topic *topic = topic_open(path, writable);
        CHECK_EQ(end_of(topic, 0), 80);
        check_records(topic, 0, 0, 80);
        CHECK_OK(sc_partition_verify(topic, 0, count_problem, NULL, &problems, &error), error);
        CHECK_EQ(problems, writable + 1);
        topic_close(topic);
    }
    folder_remove(path);
}

static void make_segments(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, 16 << 10);
    for (int64_t i = 0; i < 40; i++)
        append_records(topic, 0, i * 20, 20);
    topic_close(topic);
}

static int64_t base_of(int64_t n)
{
    sc_segment_info info;
    sc_error error;
    sc_topic *topic = topic_open_with(path, false, 16 << 10);
    CHECK_OK(sc_partition_segment(topic, 0, n, &info, &error), error);
    topic_close(topic);
    return info.base_offset;
}

static void test_damage_in_a_sealed_segment_stays_and_the_next_one_is_read(void)
{
    make_segments();
    sc_error error;
    int64_t next, second = base_of(1), third = base_of(2);
    segment_file(file, path, 0, second);
    int count = found_batches(file, batches, 64);
    file_flip(file, batches[count - 1].position + 900); /* the last batch: nothing good follows in this file */
    sc_topic *topic = topic_open_with(path, true, 16 << 10);
    CHECK_EQ(try_read(topic, 0, 0, 800, &next, &error), SC_CORRUPT);
    CHECK_EQ(next, batches[count - 1].header.base_offset);
    CHECK_EQ(error.position, batches[count - 1].position);
    CHECK_EQ(end_of(topic, 0), 800);
    check_records(topic, 0, third, 800);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_missing_middle_segment_is_reported_and_not_made_up(void)
{
    make_segments();
    sc_error error;
    int64_t next, second = base_of(1), third = base_of(2);
    segment_file(file, path, 0, second);
    CHECK(unlink(file) == 0);
    for (int writable = 1; writable >= 0; writable--) {
        sc_topic *topic = topic_open_with(path, writable, 16 << 10);
        CHECK_EQ(end_of(topic, 0), 800);
        CHECK_EQ(try_read(topic, 0, 0, 800, &next, &error), SC_CORRUPT);
        CHECK_EQ(next, second);
        CHECK_EQ(error.offset, second);
        check_records(topic, 0, third, 800);
        topic_close(topic);
    }
    folder_remove(path);
}

static void test_missing_first_segments_move_the_start(void)
{
    make_segments();
    int64_t second = base_of(1);
    segment_file(file, path, 0, 0);
    CHECK(unlink(file) == 0);
    sc_topic *topic = topic_open_with(path, true, 16 << 10);
    sc_partition_info info;
    sc_error error;
    int64_t next;
    CHECK_OK(sc_partition_describe(topic, 0, false, &info, &error), error);
    CHECK_EQ(info.start_offset, second);
    CHECK_EQ(info.end_offset, 800);
    CHECK_EQ(try_read(topic, 0, 0, 800, &next, &error), SC_RANGE);
    check_records(topic, 0, second, 800);
    topic_close(topic);
    folder_remove(path);
}

/* ---- segments whose making was interrupted ------------------------------------------------------------------- */

static void test_an_unfinished_new_segment_is_removed(void)
{
    uint8_t schema[SCHEMA_SIZE];
    static const uint8_t zeros[65536];
    schema_message(schema, 1);
    for (int way = 0; way < 5; way++) {
        make_log(3);
        segment_file(file, path, 0, 30);
        if (way == 0)
            file_write(file, "", 0);
        if (way >= 1)
            file_write(file, zeros, sizeof zeros);
        if (way == 2)
            file_write_at(file, schema, SCHEMA_SIZE / 2, 0);
        if (way == 3)
            file_write_at(file, schema + SCHEMA_SIZE / 2, SCHEMA_SIZE / 2, SCHEMA_SIZE / 2);
        if (way == 4)
            file_truncate(file, 100);
        check_log(path, 30);
        folder_remove(path);
    }
}

static void test_a_whole_new_segment_without_records_is_used(void)
{
    make_log(3);
    uint8_t schema[SCHEMA_SIZE];
    schema_message(schema, 1);
    segment_file(file, path, 0, 30);
    file_write(file, schema, SCHEMA_SIZE);
    check_log(path, 30);
    CHECK_EQ(found_batches(file, batches, 64), 1);
    folder_remove(path);
}

static void test_an_interrupted_first_segment_leaves_an_empty_log(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    append_records(topic, 0, 0, 1);
    topic_close(topic);
    segment_file(file, path, 0, 0);
    file_truncate(file, 0);
    check_log(path, 0);
    folder_remove(path);
}

static void test_a_segment_file_from_a_temporary_name_is_not_a_segment(void)
{
    make_log(3);
    char temporary[FILE_MAX + 8];
    segment_file(file, path, 0, 30);
    snprintf(temporary, sizeof temporary, "%s.tmp", file);
    file_write(temporary, "x", 1);
    segment_file(file, path, 0, 77);
    file[strlen(file) - 1] = 'x';
    file_write(file, "y", 1);
    check_log(path, 30);
    folder_remove(path);
}

/* The first page of a segment with many records was lost to a bad drive. The file must not be taken for a new one. */
static void test_a_segment_whose_schema_was_zeroed_is_not_thrown_away(void)
{
    make_log(5);
    sc_error error;
    sc_partition_info info;
    file_zero(file, 0, SCHEMA_SIZE);
    sc_topic *topic = topic_open(path, true);
    CHECK_EQ(sc_partition_describe(topic, 0, false, &info, &error), SC_FORMAT);
    CHECK_EQ(try_append(topic, 0, 0, 1, 1, false, &error), SC_FORMAT);
    topic_close(topic);
    CHECK(file_exists(file));
    uint8_t schema[SCHEMA_SIZE];
    schema_message(schema, 1);
    file_write_at(file, schema, SCHEMA_SIZE, 0);
    check_log(path, 50);
    folder_remove(path);
}

/* ---- sealed or not ------------------------------------------------------------------------------------------ */

static void test_a_lost_end_marker_loses_no_record(void)
{
    make_segments();
    int64_t second = base_of(1);
    segment_file(file, path, 0, 0);
    int count = found_batches(file, batches, 64);
    int64_t end = batches[count - 1].position + batches[count - 1].header.total_size;
    file_zero(file, end, SC_OPENING_SIZE);
    sc_topic *topic = topic_open_with(path, true, 16 << 10);
    check_records(topic, 0, 0, 800);
    CHECK_EQ(batches[count - 1].header.last_offset + 1, second);
    topic_close(topic);
    file_truncate(file, end);
    topic = topic_open_with(path, true, 16 << 10);
    check_records(topic, 0, 0, 800);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_log_that_ends_in_a_sealed_segment_goes_on_in_a_new_one(void)
{
    make_log(3);
    uint64_t marker = SC_CONTINUATION;
    file_truncate(file, end_position(3) + 4096);
    file_write_at(file, &marker, 8, end_position(3));
    check_log(path, 30);
    CHECK_EQ(found_batches(file, batches, 64), 3);
    segment_file(file, path, 0, 30);
    CHECK_EQ(found_batches(file, batches, 64), 1);
    folder_remove(path);
}

/* ---- the state file ---------------------------------------------------------------------------------------- */

static void test_the_state_file_may_be_missing_or_garbage(void)
{
    for (int way = 0; way < 4; way++) {
        make_log(5);
        char state[FILE_MAX];
        snprintf(state, sizeof state, "%s/state", path);
        int64_t size = file_size(state);
        if (way == 0)
            CHECK(unlink(state) == 0);
        if (way == 1)
            file_truncate(state, 0);
        if (way == 2)
            file_truncate(state, 100);
        if (way == 3)
            for (int64_t i = 0; i < size; i += 3)
                file_flip(state, i);
        sc_topic *topic = topic_open(path, false);
        check_records(topic, 0, 0, 50);
        topic_close(topic);
        check_log(path, 50);
        folder_remove(path);
    }
}

static void test_damage_without_a_state_file_is_corruption_and_nothing_is_cut(void)
{
    make_log(5);
    sc_error error;
    int64_t next;
    char state[FILE_MAX];
    snprintf(state, sizeof state, "%s/state", path);
    file_flip(file, batches[1].position + 900);
    CHECK(unlink(state) == 0);
    for (int i = 0; i < 2; i++) { /* the first opening makes a state file: the second must judge alike */
        sc_topic *topic = topic_open(path, true);
        if (i == 1) {
            CHECK_EQ(end_of(topic, 0), 50);
            CHECK_EQ(try_read(topic, 0, 0, 50, &next, &error), SC_CORRUPT);
            check_records(topic, 0, 20, 50);
        }
        topic_close(topic);
    }
    folder_remove(path);
}

/* ---- no guesses from errors ----------------------------------------------------------------------------------- */

static int64_t failing_number;
static int (*real_open)(const char *file, int how);
static int failing_open(const char *name, int how)
{
    if (strstr(name, ".arrows") != NULL && failing_number-- == 0) {
        errno = EMFILE;
        return -1;
    }
    return real_open(name, how);
}

/* A segment that cannot be looked at is not an empty one: the log would end before it, and be written over. */
static void test_a_segment_that_cannot_be_opened_does_not_shorten_the_log(void)
{
    make_log(5);
    sc_error error;
    sc_partition_info info;
    real_open = sc_os.open;
    int failures = 0;
    for (int64_t number = 0;; number++) {
        sc_topic *topic = topic_open(path, true);
        failing_number = number;
        sc_os.open = failing_open;
        int code = sc_partition_describe(topic, 0, false, &info, &error);
        sc_os_reset();
        CHECK(code == SC_OK ? info.end_offset == 50 : error.number == EMFILE);
        failures += code != SC_OK;
        check_records(topic, 0, 0, 50);
        topic_abandon(topic);
        if (failing_number >= 0)
            break;
    }
    CHECK(failures >= 3);
    check_log(path, 50);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_a_file_cut_anywhere_is_cut_back_to_the_last_whole_batch);
    RUN(test_a_torn_end_is_cut_and_leaves_zeros);
    RUN(test_an_append_without_its_opening_never_was);
    RUN(test_a_log_that_was_never_closed_is_found_whole);
    RUN(test_part_of_an_append_of_several_batches_is_not_kept);
    RUN(test_an_append_of_several_batches_without_its_first_opening_never_was);
    RUN(test_the_last_batch_of_a_closed_log_is_never_a_torn_tail);
    RUN(test_damage_in_the_middle_stays_and_is_reported_with_its_place);
    RUN(test_zeros_in_the_middle_are_damage_too);
    RUN(test_a_zeroed_opening_in_the_middle_does_not_end_the_log);
    RUN(test_a_batch_inside_a_damaged_value_is_not_a_record);
    RUN(test_an_append_behind_damage_begins_a_new_segment);
    RUN(test_offsets_of_the_next_segment_are_passed_over_and_reported);
    RUN(test_damage_in_a_sealed_segment_stays_and_the_next_one_is_read);
    RUN(test_a_missing_middle_segment_is_reported_and_not_made_up);
    RUN(test_missing_first_segments_move_the_start);
    RUN(test_an_unfinished_new_segment_is_removed);
    RUN(test_a_whole_new_segment_without_records_is_used);
    RUN(test_an_interrupted_first_segment_leaves_an_empty_log);
    RUN(test_a_segment_file_from_a_temporary_name_is_not_a_segment);
    RUN(test_a_segment_whose_schema_was_zeroed_is_not_thrown_away);
    RUN(test_a_lost_end_marker_loses_no_record);
    RUN(test_a_log_that_ends_in_a_sealed_segment_goes_on_in_a_new_one);
    RUN(test_the_state_file_may_be_missing_or_garbage);
    RUN(test_damage_without_a_state_file_is_corruption_and_nothing_is_cut);
    RUN(test_a_segment_that_cannot_be_opened_does_not_shorten_the_log);
    return 0;
}
