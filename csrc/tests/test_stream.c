#include "check.h"
#include "plain_topic.h"

enum { END = 500 };
static char path[FOLDER_MAX], file[FILE_MAX];

static sc_scan *make_scan(sc_topic **topic)
{
    folder_make(path);
    *topic = topic_open(path, true);
    for (int64_t i = 0; i < END; i += 50)
        append_records(*topic, 0, i, 50);
    sc_range range = {0, 25, END};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    sc_error error;
    CHECK_OK(sc_scan_open(*topic, &options, &scan, &error), error);
    return scan;
}

static struct ArrowArrayStream make_stream(sc_scan *scan, uint32_t version)
{
    static const sc_column columns[] = {{.column = 0}, {.column = SC_COLUMN_PARTITION}, {.column = 3}};
    static const char metadata[] = {1, 0, 0, 0, 1, 0, 0, 0, 'k', 2, 0, 0, 0, 'v', 'w'};
    struct ArrowSchema *schema = schema_new("+s", "", 3, schema_new("l", "offset", 0), schema_new("i", "partition", 0),
                                            schema_new("z", "value", 0));
    schema->metadata = metadata;
    struct ArrowArrayStream stream;
    sc_error error;
    CHECK_OK(sc_scan_export(scan, columns, 3, schema, version, &stream, &error), error);
    schema_free(schema);
    return stream;
}

static void test_a_stream_gives_its_schema_and_all_wanted_rows(void)
{
    sc_topic *topic;
    struct ArrowArrayStream stream = make_stream(make_scan(&topic), 1);
    struct ArrowSchema schema;
    CHECK_EQ(stream.get_schema(&stream, &schema), 0);
    CHECK_EQ(schema.n_children, 3);
    CHECK(strcmp(schema.children[2]->format, "z") == 0 && strcmp(schema.children[1]->name, "partition") == 0);
    CHECK(memcmp(schema.metadata + 13, "vw", 2) == 0);
    int64_t next = 25;
    for (;;) {
        struct ArrowArray array;
        CHECK_EQ(stream.get_next(&stream, &array), 0);
        if (array.release == NULL)
            break;
        for (int64_t i = 0; i < array.length; i++, next++)
            CHECK_EQ(((const int64_t *)array.children[0]->buffers[1])[array.children[0]->offset + i], next);
        array.release(&array);
    }
    CHECK_EQ(next, END);
    schema.release(&schema);
    stream.release(&stream);
    CHECK(stream.release == NULL);
    topic_close(topic);
    folder_remove(path);
}

static void test_damage_ends_the_stream_with_its_place(void)
{
    sc_topic *topic;
    sc_scan *scan = make_scan(&topic);
    found_batch batches[16];
    segment_file(file, path, 0, 0);
    CHECK_EQ(found_batches(file, batches, 16), 10);
    file_flip(file, batches[1].position + 2000);
    struct ArrowArrayStream stream = make_stream(scan, 1);
    struct ArrowArray array;
    CHECK_EQ(stream.get_next(&stream, &array), 0);
    array.release(&array);
    CHECK(stream.get_next(&stream, &array) != 0);
    CHECK(array.release == NULL);
    const char *message = stream.get_last_error(&stream);
    char place[64];
    snprintf(place, sizeof place, "offset 50, position %lld", (long long)batches[1].position);
    CHECK(strstr(message, file) != NULL && strstr(message, place) != NULL);
    stream.release(&stream);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_batch_of_another_schema_version_ends_the_stream(void)
{
    sc_topic *topic;
    struct ArrowArrayStream stream = make_stream(make_scan(&topic), 2);
    struct ArrowArray array;
    CHECK(stream.get_next(&stream, &array) != 0);
    CHECK(strstr(stream.get_last_error(&stream), "schema versions") != NULL);
    stream.release(&stream);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_stream_of_a_closed_topic_says_so(void)
{
    sc_topic *topic;
    struct ArrowArrayStream stream = make_stream(make_scan(&topic), 1);
    struct ArrowArray array, kept;
    CHECK_EQ(stream.get_next(&stream, &kept), 0);
    topic_close(topic);
    CHECK(stream.get_next(&stream, &array) != 0);
    CHECK(strstr(stream.get_last_error(&stream), "closed") != NULL);
    CHECK_EQ(((const int64_t *)kept.children[0]->buffers[1])[kept.children[0]->offset], 25);
    stream.release(&stream);
    kept.release(&kept);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_a_stream_gives_its_schema_and_all_wanted_rows);
    RUN(test_damage_ends_the_stream_with_its_place);
    RUN(test_a_batch_of_another_schema_version_ends_the_stream);
    RUN(test_a_stream_of_a_closed_topic_says_so);
    return 0;
}
