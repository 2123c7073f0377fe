#include <unistd.h>

#include "check.h"
#include "plain_topic.h"
#include "segment.h"

static char path[FOLDER_MAX], file[FILE_MAX];
static found_batch batches[64];
static int batch_count;
static sc_layout *layout;

static sc_segment *make_segment(void)
{
    char folder[FILE_MAX];
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    for (int64_t i = 0; i < 1500; i += 100)
        append_records(topic, 0, i, 100);
    topic_close(topic);
    segment_file(file, path, 0, 0);
    batch_count = found_batches(file, batches, 64);
    CHECK_EQ(batch_count, 15);
    layout = plain_layout(1);
    snprintf(folder, sizeof folder, "%s/0", path);
    sc_segment *segment = sc_segment_new(folder, 0);
    CHECK(segment != NULL && strcmp(segment->path, file) == 0);
    return segment;
}

static void drop_segment(sc_segment *segment)
{
    sc_segment_release(segment);
    sc_layout_free(layout);
    folder_remove(path);
}

static sc_mapping *map(sc_segment *segment, int64_t size)
{
    sc_mapping *mapping;
    sc_error error;
    CHECK_OK(sc_segment_map(segment, size, layout, 0, &mapping, &error), error);
    return mapping;
}

static void test_a_segment_is_recognised_by_its_schema_and_partition(void)
{
    sc_segment *segment = make_segment();
    sc_mapping *mapping;
    sc_error error;
    CHECK_EQ(sc_segment_map(segment, 0, layout, 1, &mapping, &error), SC_FORMAT);
    sc_layout *other = plain_layout(2);
    CHECK_EQ(sc_segment_map(segment, 0, other, 0, &mapping, &error), SC_FORMAT);
    CHECK(strcmp(error.path, file) == 0);
    other->next = layout;
    CHECK_OK(sc_segment_map(segment, 0, other, 0, &mapping, &error), error);
    CHECK(segment->layout == layout);
    CHECK_EQ(segment->first_position, SCHEMA_SIZE);
    sc_mapping_release(mapping);
    sc_layout_free(other);
    drop_segment(segment);
}

static void test_files_too_short_for_a_schema_are_no_segments(void)
{
    sc_segment *segment = make_segment();
    sc_mapping *mapping;
    sc_error error;
    for (int64_t size = SCHEMA_SIZE - 1; size >= 0; size -= 51) {
        file_truncate(file, size);
        CHECK_EQ(sc_segment_map(segment, 0, layout, 0, &mapping, &error), SC_FORMAT);
        CHECK_EQ(sc_segment_map(segment, 1 << 20, layout, 0, &mapping, &error), SC_FORMAT);
    }
    CHECK(unlink(file) == 0);
    CHECK_EQ(sc_segment_map(segment, 0, layout, 0, &mapping, &error), SC_OS);
    drop_segment(segment);
}

static void test_looking_verifies_once(void)
{
    sc_segment *segment = make_segment();
    sc_mapping *mapping = map(segment, 0);
    int64_t verified = 0;
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < batch_count; i++) {
            sc_look look = sc_segment_look(mapping, batches[i].position, mapping->size, true, &verified);
            CHECK_EQ(look.state, SC_BATCH_GOOD);
            CHECK_EQ(look.header.base_offset, i * 100);
        }
    CHECK_EQ(verified, batches[batch_count - 1].position + batches[batch_count - 1].header.total_size - SCHEMA_SIZE);
    sc_mapping_release(mapping);
    drop_segment(segment);
}

static void test_damage_is_found_each_time(void)
{
    sc_segment *segment = make_segment();
    sc_mapping *mapping = map(segment, 0);
    int64_t verified = 0;
    file_flip(file, batches[1].position + batches[1].header.total_size - 100);
    for (int round = 0; round < 3; round++)
        CHECK_EQ(sc_segment_look(mapping, batches[1].position, mapping->size, true, &verified).state, SC_BATCH_BAD);
    CHECK_EQ(verified, 0);
    sc_mapping_release(mapping);
    drop_segment(segment);
}

static void test_the_next_good_batch_is_found_behind_damage(void)
{
    sc_segment *segment = make_segment();
    sc_mapping *mapping = map(segment, 0);
    sc_header header;
    CHECK_EQ(sc_segment_find_good(mapping, batches[0].position, mapping->size, &header), batches[1].position);
    file_flip(file, batches[1].position + 3000);
    file_flip(file, batches[2].position + 4);
    file_zero(file, batches[3].position, 2000);
    CHECK_EQ(sc_segment_find_good(mapping, batches[1].position, mapping->size, &header), batches[4].position);
    CHECK_EQ(header.base_offset, 400);
    int64_t behind = sc_segment_find_good(mapping, batches[14].position, mapping->size, &header);
    CHECK(behind > batches[14].position);
    CHECK_EQ(header.record_count, 0); /* what closing noted */
    CHECK_EQ(sc_segment_find_good(mapping, behind, mapping->size, &header), -1);
    CHECK_EQ(sc_segment_find_good(mapping, batches[3].position, batches[4].position + 100, &header), -1);
    sc_mapping_release(mapping);
    drop_segment(segment);
}

static void test_a_seek_goes_near_its_offset_by_the_index(void)
{
    sc_segment *segment = make_segment();
    sc_mapping *mapping = map(segment, 0);
    for (int64_t offset = 0; offset < 1500; offset += 30) {
        int64_t found;
        int64_t position = sc_segment_seek(segment, mapping, offset, mapping->size, &found);
        CHECK(found <= offset);
        CHECK_EQ(position, batches[found / 100].position);
        CHECK(batches[offset / 100].position - position <= SC_INDEX_SPACING + 20000);
    }
    CHECK(segment->entry_count >= 2);
    sc_mapping_release(mapping);
    drop_segment(segment);
}

/* The file is cut while it is mapped: reading behind its end is SIGBUS. */
static void test_reads_behind_a_file_that_was_cut_are_errors(void)
{
    sc_segment *segment = make_segment();
    sc_mapping *mapping = map(segment, 0);
    sc_header header;
    int64_t verified = 0;
    CHECK_EQ(sc_segment_look(mapping, batches[10].position, mapping->size, false, &verified).state, SC_BATCH_GOOD);
    file_truncate(file, batches[5].position / 4096 * 4096);
    sc_look look = sc_segment_look(mapping, batches[10].position, mapping->size, true, &verified);
    CHECK(look.state == SC_BATCH_BAD && look.unreadable);
    sc_error error;
    CHECK_EQ(sc_segment_fail(segment, &look, 1000, batches[10].position, &error), SC_OS);
    CHECK(strcmp(error.path, file) == 0);
    CHECK_EQ(sc_segment_find_good(mapping, batches[4].position, mapping->size, &header), SC_NOT_READABLE);
    CHECK_EQ(sc_segment_look(mapping, batches[1].position, mapping->size, true, &verified).state, SC_BATCH_GOOD);
    sc_mapping_release(mapping);
    drop_segment(segment);
}

static void test_a_mapping_outlives_its_file_and_segment(void)
{
    sc_segment *segment = make_segment();
    sc_mapping *mapping = map(segment, 1 << 20);
    CHECK(mapping->size >= 1 << 20);
    CHECK(unlink(file) == 0);
    drop_segment(segment);
    int64_t verified = 0;
    CHECK_EQ(sc_segment_look(mapping, batches[14].position, mapping->size, true, &verified).state, SC_BATCH_GOOD);
    sc_mapping_release(mapping);
}

int main(int argc, char **argv)
{
    RUN(test_a_segment_is_recognised_by_its_schema_and_partition);
    RUN(test_files_too_short_for_a_schema_are_no_segments);
    RUN(test_looking_verifies_once);
    RUN(test_damage_is_found_each_time);
    RUN(test_the_next_good_batch_is_found_behind_damage);
    RUN(test_a_seek_goes_near_its_offset_by_the_index);
    RUN(test_reads_behind_a_file_that_was_cut_are_errors);
    RUN(test_a_mapping_outlives_its_file_and_segment);
    return 0;
}
