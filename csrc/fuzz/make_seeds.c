/* make_seeds FOLDER: writes a small corpus for each target into FOLDER/<target>, made by the writer itself. */
#include <errno.h>
#include <sys/stat.h>

#include "check.h"
#include "fuzz.h"
#include "memory_batch.h"
#include "random_array.h"

static const char *corpus;

static void write_seed(const char *target, const char *name, const uint8_t options[FUZZ_OPTIONS], const void *data,
                       int64_t size)
{
    char file[FILE_MAX];
    int64_t front = options == NULL ? 0 : FUZZ_OPTIONS;
    uint8_t *bytes = malloc((size_t)(front + size) + 1);
    CHECK(bytes != NULL);
    if (options != NULL)
        memcpy(bytes, options, FUZZ_OPTIONS);
    memcpy(bytes + front, data, (size_t)size);
    snprintf(file, sizeof file, "%s/%s/%s", corpus, target, name);
    file_write(file, bytes, front + size);
    free(bytes);
}

static void make_batches(void)
{
    for (int typed = 0; typed <= 1; typed++)
        for (int seed = 0; seed < 6; seed++) {
            uint8_t options[FUZZ_OPTIONS] = {(uint8_t)(typed | (seed % 2) * 4), (uint8_t)(seed % 3), 0, (uint8_t)seed};
            char name[40];
            memory_batch written;
            sc_layout *layout = typed ? layout_of(schema_with_everything(), 1) : plain_layout(1);
            random_seed((uint64_t)seed);
            int64_t rows = 1 + seed * 3;
            struct ArrowArray *key = random_array(layout, layout->columns[SC_COLUMN_KEY], rows);
            struct ArrowArray *value = random_array(layout, layout->columns[SC_COLUMN_VALUE], rows);
            struct ArrowArray *headers = random_array(layout, layout->columns[SC_COLUMN_HEADERS], rows);
            sc_batch_input input = {.count = rows,
                                    .key = seed % 3 == 0 ? NULL : key,
                                    .timestamp = seed,
                                    .value = seed == 5 ? NULL : value,
                                    .headers = seed % 2 == 0 ? NULL : headers};
            memory_batch_write(layout, &input, seed * 100, &written);
            snprintf(name, sizeof name, "%s-%d", typed ? "typed" : "plain", seed);
            write_seed("batch", name, options, written.message, written.header.total_size);
            snprintf(name, sizeof name, "%s-%d", typed ? "typed" : "plain", seed);
            write_seed("metadata", name, NULL, written.message + SC_OPENING_SIZE, written.header.metadata_size);
            memory_batch_free(&written);
            random_array_free(key);
            random_array_free(value);
            random_array_free(headers);
            sc_layout_free(layout);
        }
}

static void make_compressed_metadata(void)
{
    uint8_t data[2048];
    for (int codec = SC_CODEC_LZ4; codec <= SC_CODEC_ZSTD; codec++) {
        char name[40];
        CHECK(sc_metadata_size(8, 19, 2) <= (int64_t)sizeof data);
        sc_metadata_write(data, codec, 8, 19, 2);
        snprintf(name, sizeof name, "codec-%d", codec);
        write_seed("metadata", name, NULL, data, sc_metadata_size(8, 19, 2));
    }
}

static void make_segments(void)
{
    char path[FOLDER_MAX], file[FILE_MAX];
    sc_error error;
    found_batch batches[16];
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    append_records(topic, 0, 0, 3);
    append_records(topic, 0, 3, 1);
    CHECK_OK(try_append(topic, 0, 4, 6, 2, false, &error), error);
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    append_records(topic, 0, 10, 2);
    CHECK_OK(try_append(topic, 0, 12, 4, 2, false, &error), error);
    topic_close(topic);
    segment_file(file, path, 0, 0);
    int count = found_batches(file, batches, 16);
    int64_t size, end = batches[count - 1].position + batches[count - 1].header.total_size;
    uint8_t *data = file_read(file, &size);
    for (int flags = 0; flags < 32; flags += flags == 1 ? 3 : 1) {
        char name[40];
        int cut = flags % count;
        int64_t position = batches[cut].position - SCHEMA_SIZE, base = batches[cut].header.base_offset - 1;
        uint8_t options[FUZZ_OPTIONS] = {(uint8_t)(flags & ~8), (uint8_t)(position / 64), (uint8_t)(position / 64 >> 8),
                                         (uint8_t)base, (uint8_t)(base >> 8)};
        snprintf(name, sizeof name, "log-%02d", flags);
        write_seed("segment", name, options, data + SCHEMA_SIZE, end - SCHEMA_SIZE + (flags % 3) * 64);
    }
    uint8_t marker[64] = {0xff, 0xff, 0xff, 0xff}, options[FUZZ_OPTIONS] = {0};
    memcpy(data + end, marker, 8);
    write_seed("segment", "sealed", options, data + SCHEMA_SIZE, end - SCHEMA_SIZE + 64);
    write_seed("segment", "empty", options, marker, 0);
    free(data);
    folder_remove(path);
}

static void make_indexes(void)
{
    char path[FOLDER_MAX], file[FILE_MAX];
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, 96 << 10);
    for (int64_t i = 0; i < 1000; i += 20)
        append_records(topic, 0, i, 20);
    topic_close(topic);
    int64_t size;
    index_file(file, path, 0, 0);
    uint8_t *data = file_read(file, &size);
    for (int flags = 0; flags < 4; flags++) {
        char name[40];
        uint8_t options[FUZZ_OPTIONS] = {(uint8_t)flags, (uint8_t)size, (uint8_t)(size >> 8)};
        snprintf(name, sizeof name, "index-%d", flags);
        write_seed("index", name, options, data, size);
    }
    free(data);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    static const char *const targets[] = {"", "batch", "metadata", "segment", "index"};
    CHECK(argc == 2);
    corpus = argv[1];
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        char folder[FILE_MAX];
        snprintf(folder, sizeof folder, "%s/%s", corpus, targets[i]);
        CHECK(mkdir(folder, 0777) == 0 || errno == EEXIST);
    }
    make_batches();
    make_compressed_metadata();
    make_segments();
    make_indexes();
    return 0;
}
