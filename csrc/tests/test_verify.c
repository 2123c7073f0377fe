#include <unistd.h>

#include "check.h"
#include "mapping.h"
#include "memory_batch.h"
#include "plain_topic.h"

enum { SEGMENT = 64 << 10, END = 3000, PROBLEMS_MAX = 20 };
static char path[FOLDER_MAX], file[FILE_MAX];
static found_batch batches[64];
static sc_error problems[PROBLEMS_MAX];
static int problem_count;
static int64_t bytes_reported;

static void take_problem(void *context, const sc_error *problem)
{
    CHECK(context == problems && problem_count < PROBLEMS_MAX);
    problems[problem_count++] = *problem;
}

static int take_progress(void *context, int64_t bytes)
{
    CHECK(context == problems && bytes >= 0);
    bytes_reported += bytes;
    return 0;
}

static int verify(bool writable)
{
    sc_topic *topic = topic_open_with(path, writable, SEGMENT);
    sc_error error;
    problem_count = 0;
    bytes_reported = 0;
    CHECK_OK(sc_partition_verify(topic, 0, take_problem, take_progress, problems, &error), error);
    topic_close(topic);
    return problem_count;
}

/* A log of several segments, all of it durable; the batches of its second segment. */
static void make_log(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    sc_segment_info info;
    sc_error error;
    for (int64_t i = 0; i < END; i += 100)
        append_records(topic, 0, i, 100);
    CHECK_OK(sc_partition_segment(topic, 0, 1, &info, &error), error);
    topic_close(topic);
    segment_file(file, path, 0, info.base_offset);
    CHECK(found_batches(file, batches, 64) >= 4);
}

static void check_problem(int number, int64_t offset, int64_t position, const char *what)
{
    CHECK(strcmp(problems[number].path, file) == 0);
    CHECK_EQ(problems[number].offset, offset);
    CHECK_EQ(problems[number].position, position);
    CHECK_EQ(problems[number].code, SC_CORRUPT);
    CHECK(strstr(problems[number].message, what) != NULL);
}

static void test_a_sound_log_has_no_problem_and_every_byte_is_read(void)
{
    make_log();
    CHECK_EQ(verify(true), 0);
    int64_t all = bytes_reported;
    CHECK(all > END * 100);
    CHECK_EQ(verify(false), 0);
    CHECK_EQ(bytes_reported, all);
    folder_remove(path);
}

static void test_each_kind_of_damage_is_found_with_its_place(void)
{
    for (int64_t at = 0; at < 4000; at += 111) { /* any byte of a batch */
        make_log();
        file_flip(file, batches[2].position + at);
        CHECK_EQ(verify(at % 2 == 0), 1);
        check_problem(0, batches[2].header.base_offset, batches[2].position, "");
        folder_remove(path);
    }
}

static void test_several_problems_are_all_found(void)
{
    make_log();
    file_flip(file, batches[0].position + 900);
    file_zero(file, batches[2].position, batches[2].header.total_size);
    CHECK_EQ(verify(false), 2);
    check_problem(0, batches[0].header.base_offset, batches[0].position, "checksum");
    check_problem(1, batches[2].header.base_offset, batches[2].position, "records are missing here");
    folder_remove(path);
}

static void test_missing_and_cut_segments_are_found(void)
{
    make_log();
    char first[FILE_MAX];
    found_batch before[64];
    segment_file(first, path, 0, 0);
    int count = found_batches(first, before, 64);
    CHECK(unlink(file) == 0);
    CHECK_EQ(verify(false), 1);
    snprintf(file, sizeof file, "%s", first);
    check_problem(0, batches[0].header.base_offset, before[count - 1].position + before[count - 1].header.total_size,
                  "records are missing here");
    folder_remove(path);

    make_log();
    file_truncate(file, batches[1].position + 100);
    CHECK_EQ(verify(false), 1);
    check_problem(0, batches[1].header.base_offset, batches[1].position, "ends inside a batch");
    folder_remove(path);
}

/* Deleting records notes where the log begins; who removes files does not. */
static void test_first_segments_that_nobody_deleted_are_missed(void)
{
    make_log();
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    sc_removal removal;
    sc_error error;
    sc_segment_info info;
    CHECK_OK(sc_partition_delete_before(topic, 0, batches[0].header.base_offset, &removal, &error), error);
    CHECK_EQ(removal.segments, 1);
    CHECK_OK(sc_partition_segment(topic, 0, 1, &info, &error), error);
    topic_close(topic);
    CHECK_EQ(verify(false), 0);
    CHECK(unlink(file) == 0);
    segment_file(file, path, 0, info.base_offset);
    for (int writable = 0; writable < 2; writable++) {
        CHECK_EQ(verify(writable), 1);
        check_problem(0, batches[0].header.base_offset, -1, "were not deleted");
    }
    topic = topic_open_with(path, true, SEGMENT);
    CHECK_OK(sc_partition_delete_before(topic, 0, END, &removal, &error),
             error); /* all of them: the note is all there is */
    topic_close(topic);
    CHECK_EQ(verify(false), 0);
    folder_remove(path);
}

static void test_a_segment_of_another_schema_is_found(void)
{
    make_log();
    file_flip(file, 33);
    CHECK_EQ(verify(false), 1);
    CHECK_EQ(problems[0].code, SC_FORMAT);
    CHECK(strcmp(problems[0].path, file) == 0);
    folder_remove(path);
}

/* All checksums are right, yet no Arrow reader could use the batch: a writer's bug. */
static void test_a_batch_with_wrong_structure_is_found(void)
{
    make_log();
    int64_t size;
    uint8_t *data = file_read(file, &size);
    uint8_t *message = data + batches[1].position;
    int64_t header_at = SC_OPENING_SIZE + batches[1].header.metadata_size;
    memcpy(message + SC_OPENING_SIZE + SC_METADATA_NODES, &(sc_node){50, 0}, sizeof(sc_node));
    batches[1].header.body_crc = sc_batch_checksum(message, &batches[1].header);
    sc_header_seal(&batches[1].header);
    memcpy(message + header_at, &batches[1].header, SC_HEADER_SIZE);
    file_write(file, data, size);
    free(data);
    CHECK_EQ(verify(false), 1);
    check_problem(0, batches[1].header.base_offset, batches[1].position, "");
    folder_remove(path);
}

static void test_what_was_verified_before_is_verified_again(void)
{
    make_log();
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    sc_error error;
    check_records(topic, 0, 0, END);
    file_flip(file, batches[1].position + 2000);
    check_records(topic, 0, 0, batches[1].header.base_offset);
    problem_count = 0;
    CHECK_OK(sc_partition_verify(topic, 0, take_problem, NULL, problems, &error), error);
    CHECK_EQ(problem_count, 1);
    topic_close(topic);
    folder_remove(path);
}

static int stop_at_once(void *context, int64_t bytes)
{
    (void)context, (void)bytes;
    return 1;
}

static void test_progress_can_stop_it(void)
{
    make_log();
    sc_topic *topic = topic_open_with(path, false, SEGMENT);
    sc_error error;
    CHECK_OK(sc_partition_verify(topic, 0, take_problem, stop_at_once, problems, &error), error);
    topic_close(topic);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_a_sound_log_has_no_problem_and_every_byte_is_read);
    RUN(test_each_kind_of_damage_is_found_with_its_place);
    RUN(test_several_problems_are_all_found);
    RUN(test_missing_and_cut_segments_are_found);
    RUN(test_first_segments_that_nobody_deleted_are_missed);
    RUN(test_a_segment_of_another_schema_is_found);
    RUN(test_a_batch_with_wrong_structure_is_found);
    RUN(test_what_was_verified_before_is_verified_again);
    RUN(test_progress_can_stop_it);
    return 0;
}
