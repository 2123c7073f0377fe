/* make_seeds FOLDER: writes a small corpus for each target into FOLDER/<target>, made by the writer itself. */
#include <errno.h>
#include <sys/stat.h>

#include "check.h"
#include "fuzz.h"
#include "journal.h"
#include "memory_batch.h"
#include "random_array.h"
#include "send_batch.h"
#include "small_journal.h"
#include "transaction_log.h"

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
            uint8_t as_message[FUZZ_OPTIONS] = {(uint8_t)(2 | typed * 4), (uint8_t)(rows - 1), (uint8_t)seed};
            write_seed("arrow", name, as_message, written.message, written.header.total_size);
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
    for (int flags = 0; flags < 256; flags += flags == 1 ? 3 : flags == 31 ? 97 : flags >= 128 ? 17 : 1) {
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

/* A day of events as an application keeps them: JSON with a key and headers, a few to a batch. */
static void append_events(sc_topic *topic, int batches)
{
    sc_send_room room = {.limit = 1 << 20};
    sc_send_batch *batch = sc_send_batch_new(&room);
    sc_send_arrays arrays;
    sc_batch_input input;
    sc_error error;
    int64_t first, end;
    CHECK(batch != NULL);
    random_seed(11);
    for (int i = 0; i < batches; i++) {
        char keys[8][24], values[8][160];
        sc_send_header headers[2] = {{{(const uint8_t *)"content-type", 12}, {(const uint8_t *)"application/json", 16}},
                                     {{(const uint8_t *)"trace", 5}, {NULL, 0}}};
        sc_send_batch_clear(batch);
        for (int row = 0; row < 1 + i % 6; row++) {
            int key = snprintf(keys[row], sizeof keys[row], "us7000%04x", random_below(60));
            int value = snprintf(values[row], sizeof values[row],
                                 "{\"magnitude\":%u.%u,\"depth_km\":%u,\"place\":\"%u km SSW of Town %u\",\"felt\":%s}",
                                 random_below(8), random_below(10), random_below(700), random_below(200),
                                 random_below(40), random_below(3) == 0 ? "true" : "null");
            sc_send_record record = {.key = {(uint8_t *)keys[row], key},
                                     .value = {random_below(9) == 0 ? NULL : (uint8_t *)values[row], value},
                                     .headers = headers,
                                     .header_count = (int32_t)random_below(3)};
            record.value.size = record.value.data == NULL ? 0 : value;
            CHECK(sc_send_batch_reserve(batch, &room, &record) == SC_OK);
            sc_send_batch_put(batch, &room, &record, FIRST_TIME + i * 1000 + row * 7);
        }
        sc_send_batch_input(batch, false, &arrays, &input);
        sc_append append = {.batches = &input,
                            .batch_count = 1,
                            .schema_version = 1,
                            .generation = GENERATION,
                            .expected_offset = -1,
                            .durable = i == batches / 2};
        CHECK_OK(sc_partition_append(topic, 0, &append, &first, &end, &error), error);
    }
    sc_send_batch_free(batch, &room);
}

static void make_events(void)
{
    for (int batches = 2; batches <= 6; batches += 2) {
        char path[FOLDER_MAX], file[FILE_MAX], name[40];
        int64_t size;
        folder_make(path);
        sc_topic *topic = topic_open(path, true);
        append_events(topic, batches);
        topic_close(topic);
        segment_file(file, path, 0, 0);
        int64_t end = found_end(file);
        uint8_t *data = file_read(file, &size), options[FUZZ_OPTIONS] = {(uint8_t)(batches == 4 ? 65 : 64)};
        snprintf(name, sizeof name, "events-%d", batches);
        write_seed("segment", name, options, data + SCHEMA_SIZE, end - SCHEMA_SIZE);
        options[0] = (uint8_t)(batches / 2 % 3);
        write_seed("rewrite", name, options, data + SCHEMA_SIZE, end - SCHEMA_SIZE);
        free(data);
        folder_remove(path);
    }
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

/* Random choices, few of which are flaws. */
static void make_arrows(void)
{
    for (int seed = 0; seed < 24; seed++) {
        uint8_t options[FUZZ_OPTIONS] = {(uint8_t)(seed % 4 == 3), (uint8_t)seed, (uint8_t)(seed / 2), 0}, data[600];
        char name[40];
        random_seed((uint64_t)seed);
        for (size_t i = 0; i < sizeof data; i++)
            data[i] = (uint8_t)random_below(seed % 2 == 0 ? 200 : 242);
        snprintf(name, sizeof name, "arrow-%02d", seed);
        write_seed("arrow", name, options, data, 40 + 20 * seed);
    }
}

static void make_snapshots_of(bool rewritten)
{
    static const char *const names[] = {"0/.producers", "0/00000000000000000000.aborted", "state"};
    char folder[FOLDER_MAX], path[FILE_MAX], files[3][FILE_MAX], name[40];
    uint8_t *data[3];
    int64_t sizes[3] = {0, 0, 0};
    folder_make(folder);
    CHECK(snprintf(path, sizeof path, "%s/topic", folder) < FILE_MAX && mkdir(path, 0777) == 0);
    transaction_log_make(path, rewritten);
    for (int i = 0; i < 3; i++) {
        CHECK(snprintf(files[i], FILE_MAX, "%s/%s", path, names[i]) < FILE_MAX);
        data[i] = file_exists(files[i]) ? file_read(files[i], &sizes[i]) : calloc(1, 1);
        CHECK(data[i] != NULL);
    }
    uint8_t *both = malloc((size_t)(sizes[0] + sizes[1]) + 1);
    CHECK(both != NULL);
    memcpy(both, data[0], (size_t)sizes[0]);
    memcpy(both + sizes[0], data[1], (size_t)sizes[1]);
    for (int flags = 0; flags < 32; flags++) {
        int kind = flags & 3;
        uint8_t options[FUZZ_OPTIONS] = {(uint8_t)(flags | rewritten << 6), (uint8_t)sizes[0],
                                         (uint8_t)(sizes[0] >> 8)};
        snprintf(name, sizeof name, "snapshot-%d-%02d", rewritten, flags);
        write_seed("snapshot", name, options, kind == 3 ? both : data[kind],
                   kind == 3   ? sizes[0] + sizes[1]
                   : kind == 2 ? 1024
                               : sizes[kind]);
        options[0] |= 32;
        snprintf(name, sizeof name, "table-%d-%02d", rewritten, flags);
        if (kind == 0)
            write_seed("snapshot", name, options, data[0] + 64, sizes[0] - 64);
    }
    for (int i = 0; i < 3; i++)
        free(data[i]);
    free(both);
    folder_remove(folder);
}

static void make_journals(void)
{
    char path[FOLDER_MAX], file[FILE_MAX], name[40];
    int64_t size, end = SC_JOURNAL_AREA_AT;
    store_make(path);
    small_journal_make(path);
    CHECK(snprintf(file, sizeof file, "%s/journal", path) < FILE_MAX);
    uint8_t *data = file_read(file, &size);
    for (int64_t i = 0; i < size; i++)
        end = data[i] != 0 && i > end ? i + 1 : end;
    uint8_t *input = malloc((size_t)size);
    CHECK(input != NULL);
    memcpy(input, data, JOURNAL_FUZZ_HEADER);
    memcpy(input + JOURNAL_FUZZ_HEADER, data + SC_JOURNAL_PAGE, JOURNAL_FUZZ_HEADER);
    memcpy(input + 2 * JOURNAL_FUZZ_HEADER, data + SC_JOURNAL_AREA_AT, (size_t)(end - SC_JOURNAL_AREA_AT));
    for (int flags = 0; flags < 32; flags++) {
        uint8_t options[FUZZ_OPTIONS] = {(uint8_t)flags, 0};
        snprintf(name, sizeof name, "journal-%02d", flags);
        write_seed("journal", name, options, input,
                   (flags & 8) != 0 ? 128 : 2 * JOURNAL_FUZZ_HEADER + (end - SC_JOURNAL_AREA_AT));
    }
    free(input);
    free(data);
    folder_remove(path);
}

/* The first segment of a log with transactions, as it was written and rewritten. */
static void make_rewrites(void)
{
    for (int rewritten = 0; rewritten < 2; rewritten++) {
        char path[FOLDER_MAX], file[FILE_MAX], name[40];
        int64_t size;
        folder_make(path);
        transaction_log_make(path, rewritten);
        segment_file(file, path, 0, 0);
        int64_t end = found_end(file);
        uint8_t *data = file_read(file, &size);
        for (int flags = 0; flags < 32; flags++) {
            uint8_t options[FUZZ_OPTIONS] = {(uint8_t)flags, (uint8_t)(flags * 3), (uint8_t)(flags % 5 == 4 ? 70 : 0),
                                             4};
            snprintf(name, sizeof name, "rewrite-%d-%02d", rewritten, flags);
            write_seed("rewrite", name, options, data + SCHEMA_SIZE, end - SCHEMA_SIZE);
            options[0] = (uint8_t)((flags & 3) | (flags & 4 ? 64 : 0));
            if (flags < 8)
                write_seed("segment", name, options, data + SCHEMA_SIZE, end - SCHEMA_SIZE + 64);
        }
        free(data);
        folder_remove(path);
    }
}

static void make_steps(void)
{
    for (int seed = 0; seed < 8; seed++) {
        uint8_t options[FUZZ_OPTIONS] = {(uint8_t)(seed % 2 == 0 ? 0 : 40 * seed), 40}, data[900];
        char name[40];
        random_seed((uint64_t)seed);
        for (size_t i = 0; i < sizeof data; i++)
            data[i] = (uint8_t)random_below(seed < 4 ? 12 + 40 * (uint32_t)seed : 256);
        snprintf(name, sizeof name, "random-%d", seed);
        write_seed("records", name, options, data, sizeof data);
        write_seed("key_map", name, options, data, sizeof data);
    }
}

int main(int argc, char **argv)
{
    static const char *const targets[] = {"",         "batch",   "metadata", "segment", "index",  "arrow",
                                          "snapshot", "journal", "rewrite",  "records", "key_map"};
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
    make_events();
    make_indexes();
    make_arrows();
    make_snapshots_of(false);
    make_snapshots_of(true);
    make_journals();
    make_rewrites();
    make_steps();
    return 0;
}
