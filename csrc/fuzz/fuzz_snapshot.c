/*
 * Bytes as the files that tell processes what others learnt: `.producers`, `.aborted` and `state`. The log beside them
 * is sound. What fails its checksum is not believed: every answer is then that of the log itself. What has been given
 * right checksums is a lie that nobody can see through; then records and offsets are right all the same, and nothing
 * else breaks.
 *
 * Options: 0: bits 0 and 1 the file (0 .producers, 1 .aborted, 2 state, 3 the first two), bit 2 checksums are mended,
 * bit 3 also what says which log the file is of, bit 4 the machine went down, bit 5 only
 * the table of `.producers` is decoded and used, bit 6 the first segment was rewritten; 1, 2: where the first of two
 * files ends.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "fuzz.h"
#include "producer_state.h"
#include "transaction_log.h"

enum { OFFSETS_MAX = 128, SNAPSHOT_HEADER = 64, ABORTED_HEADER = 32, ABORTED_ITEM = 24 };

/* What there is to ask of a log. */
typedef struct answers {
    int64_t end_offset, stable_offset;
    uint8_t all[OFFSETS_MAX], committed[OFFSETS_MAX];
} answers;

static char folder[FOLDER_MAX], path[FILE_MAX], masters[2][FILE_MAX];
static const char *master;
static answers truths[2], truth;

/* ---- asking ------------------------------------------------------------------------------------------------------ */

static void scan(sc_topic *topic, bool committed, int64_t end, uint8_t seen[OFFSETS_MAX])
{
    sc_range range = {0, 0, end};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true,
                               .committed = committed};
    sc_scan *self;
    sc_batch batch;
    sc_rows rows;
    sc_error error;
    int code;
    CHECK_OK(sc_scan_open(topic, &options, &self, &error), error);
    while ((code = sc_scan_next(self, &batch, &error)) == SC_OK) {
        CHECK_OK(sc_batch_rows(&batch, &rows, &error), error);
        for (int64_t row = batch.first_row; row < batch.first_row + batch.row_count; row++)
            seen[rows.offsets[row]]++;
    }
    if (code != SC_END)
        check_error(__FILE__, __LINE__, "sc_scan_next", &error);
    sc_scan_free(self);
}

static answers ask(sc_topic *topic)
{
    sc_partition_info info;
    sc_error error;
    answers found = {0};
    CHECK_OK(sc_partition_describe(topic, 0, true, &info, &error), error);
    CHECK(info.end_offset <= OFFSETS_MAX && info.stable_offset >= 0 && info.stable_offset <= info.end_offset);
    found.end_offset = info.end_offset;
    found.stable_offset = info.stable_offset;
    scan(topic, false, info.end_offset, found.all);
    scan(topic, true, info.stable_offset, found.committed);
    return found;
}

static void check_answers(sc_topic *topic, bool believed)
{
    answers found = ask(topic);
    CHECK_EQ(found.end_offset, truth.end_offset);
    CHECK(memcmp(found.all, truth.all, sizeof truth.all) == 0);
    if (believed)
        return;
    CHECK_EQ(found.stable_offset, truth.stable_offset);
    CHECK(memcmp(found.committed, truth.committed, sizeof truth.committed) == 0);
}

/* What producer 7 may do, which has appended sequences 0 to 9. */
static void check_producers(sc_topic *topic, bool believed)
{
    sc_error error;
    sc_open_transaction open[8];
    int64_t first, count, fresh = end_of(topic, 0);
    int again = log_produce(topic, (sc_producer){7, 0, 8}, false, 2, &first, &error);
    if (!believed) {
        CHECK_EQ(again, SC_OK);
        CHECK(first < fresh && truth.all[first] == 1);
        CHECK_EQ(end_of(topic, 0), fresh);
        CHECK_EQ(log_produce(topic, (sc_producer){7, 0, 12}, false, 2, &first, &error), SC_SEQUENCE);
        CHECK_EQ(log_produce(topic, (sc_producer){9, 1, 9}, true, 1, &first, &error), SC_FENCED);
    }
    CHECK_OK(sc_partition_open_transactions(topic, 0, open, 8, &count, &error), error);
    CHECK(believed || (count == 1 && open[0].producer_id == 8 && open[0].first_offset == truth.stable_offset));
    int code = log_produce(topic, (sc_producer){7, 0, 10}, false, 2, &first, &error);
    CHECK(code == SC_OK || believed);
    fresh = end_of(topic, 0);
    CHECK_OK(log_produce(topic, (sc_producer){SC_NO_PRODUCER, 0, 0}, false, 3, &first, &error), error);
    CHECK_EQ(first, fresh);
    for (int64_t id = 7; id <= 9; id++) {
        sc_marker marker = {.producer_id = id, .epoch = 30, .fence = true};
        code = sc_partition_append_marker(topic, 0, &marker, &first, &error);
        CHECK(code == SC_OK || believed);
    }
}

/* ---- the files --------------------------------------------------------------------------------------------------- */

static void remove_at_exit(void)
{
    folder_remove(folder);
}

static void hint_file(char file[FILE_MAX], const char *name)
{
    CHECK(snprintf(file, FILE_MAX, "%s/%s", path, name) < FILE_MAX);
}

static void remove_hint(const char *name)
{
    char file[FILE_MAX];
    hint_file(file, name);
    CHECK(unlink(file) == 0 || errno == ENOENT);
}

static void make_master(bool rewritten)
{
    CHECK(snprintf(masters[rewritten], FILE_MAX, "%s/master-%d", folder, rewritten) < FILE_MAX);
    CHECK(mkdir(path, 0777) == 0 && mkdir(masters[rewritten], 0777) == 0);
    transaction_log_make(path, rewritten); /* hints carry the folder's name */
    folder_copy(path, masters[rewritten]);
    remove_hint("0/.producers");
    remove_hint("0/00000000000000000000.aborted");
    sc_topic *topic = topic_open_with(path, false, TRANSACTION_LOG_SEGMENT);
    truths[rewritten] = ask(topic);
    topic_close(topic);
    folder_remove(path);
}

static void make_masters(void)
{
    folder_make(folder);
    CHECK(snprintf(path, sizeof path, "%s/topic", folder) < FILE_MAX);
    make_master(false);
    make_master(true);
    CHECK(mkdir(path, 0777) == 0);
    atexit(remove_at_exit);
}

static void put_crc(uint8_t *at, const char *name, const uint8_t *data, int64_t size)
{
    uint32_t crc = sc_crc32c(0, name, strlen(name));
    crc = sc_crc32c(crc, data, (size_t)size);
    memcpy(at, &crc, sizeof crc);
}

/* The header of `.producers` tells which batch was the last one: that of the master. */
static void mend_producers(uint8_t *data, int64_t size, bool of_this_log)
{
    char file[FILE_MAX];
    if (size < SNAPSHOT_HEADER + SC_PRODUCER_HEADER_SIZE)
        return;
    if (of_this_log) {
        int64_t master_size;
        CHECK(snprintf(file, sizeof file, "%s/0/.producers", master) < FILE_MAX);
        uint8_t *sound = file_read(file, &master_size);
        memcpy(data, sound, SNAPSHOT_HEADER);
        free(sound);
    }
    memcpy(data, "SCPRODF1", 8);
    put_crc(data + 8, "topic/0", data + 12, SNAPSHOT_HEADER - 12);
    uint8_t *state = data + SNAPSHOT_HEADER;
    int64_t entries = (size - SNAPSHOT_HEADER - SC_PRODUCER_HEADER_SIZE) / (int64_t)sizeof(sc_producer_entry);
    uint32_t count = (uint32_t)entries;
    int64_t state_size = SC_PRODUCER_HEADER_SIZE + entries * (int64_t)sizeof(sc_producer_entry);
    memcpy(state, "SCPRODU1", 8);
    if (of_this_log) {
        memcpy(state + 12, &count, sizeof count);
        memcpy(state + 24, &state_size, sizeof state_size);
    } else {
        memcpy(&state_size, state + 24, sizeof state_size);
    }
    if (state_size >= SC_PRODUCER_HEADER_SIZE && state_size <= size - SNAPSHOT_HEADER)
        put_crc(state + 8, "", state + 12, state_size - 12);
}

static void mend_aborted(uint8_t *data, int64_t size, bool of_this_log)
{
    char file[FILE_MAX];
    if (size < ABORTED_HEADER)
        return;
    CHECK(snprintf(file, sizeof file, "%s/0/00000000000000000000.aborted", master) < FILE_MAX);
    if (of_this_log && file_exists(file)) {
        int64_t master_size;
        uint32_t count = (uint32_t)((size - ABORTED_HEADER) / ABORTED_ITEM);
        uint8_t *sound = file_read(file, &master_size);
        memcpy(data + 16, sound + 16, 8); /* the place of the end marker */
        memcpy(data + 12, &count, sizeof count);
        free(sound);
    }
    memcpy(data, "SCABORT1", 8);
    put_crc(data + 8, "topic/0/00000000000000000000.arrows", data + 12, size - 12);
}

static void write_input(const uint8_t *options, const uint8_t *data, int64_t size)
{
    static const char *const names[] = {"0/.producers", "0/00000000000000000000.aborted", "state"};
    char file[FILE_MAX];
    uint16_t cut;
    memcpy(&cut, options + 1, sizeof cut);
    int which = options[0] & 3;
    int64_t first = which == 3 && cut < size ? cut : size;
    for (int part = 0; part < (which == 3 ? 2 : 1); part++) {
        int64_t from = part == 0 ? 0 : first, length = part == 0 ? first : size - first;
        uint8_t *bytes = malloc((size_t)length + 1);
        CHECK(bytes != NULL);
        memcpy(bytes, data + from, (size_t)length);
        int kind = which == 3 ? part : which;
        if (kind == 0 && options[0] & 4)
            mend_producers(bytes, length, options[0] & 8);
        if (kind == 1 && options[0] & 4)
            mend_aborted(bytes, length, options[0] & 8);
        hint_file(file, names[kind]);
        (void)unlink(file);
        file_write(file, bytes, length);
        free(bytes);
    }
}

/* ---- the table by itself ------------------------------------------------------------------------------------------
 */

static void use_table(sc_producer_state *state)
{
    sc_producer_unit unit;
    sc_error error;
    bool duplicate;
    int64_t stable = sc_producer_state_stable(state, SC_NO_PRODUCER, 1000);
    CHECK(stable >= 0 && stable <= 1000 && state->open_count <= state->count);
    for (int64_t i = 0; i < state->count && i < 64; i++) {
        sc_producer producer = {state->entries[i].id, state->entries[i].epoch, (int32_t)(i & 7)};
        (void)sc_producer_state_check(state, &producer, 3, i % 2 == 0, &duplicate, &unit, &error);
        CHECK_OK(sc_producer_state_add(state, &producer, 100 + i, 102 + i, i % 3 == 0, i % 5 == 0, i, &error), error);
        CHECK(sc_producer_state_find(state, producer.id) != NULL);
        if (i % 4 == 0)
            CHECK_OK(sc_producer_state_end(state, &producer, 103 + i, i, &error), error);
    }
    sc_producer_state_settle(state, 50);
    CHECK(sc_producer_state_stable(state, SC_NO_PRODUCER, 1000) >= 50);
    sc_producer_state_expire(state, 1000);
    CHECK_EQ(state->count, state->open_count);
}

static void check_table(const uint8_t *data, int64_t size, bool mend)
{
    sc_producer_state *state = sc_producer_state_new(), *again = sc_producer_state_new();
    sc_error error;
    int64_t offset, padded = SNAPSHOT_HEADER + size;
    uint8_t *bytes = calloc(1, (size_t)padded + 1);
    CHECK(state != NULL && again != NULL && bytes != NULL);
    memcpy(bytes + SNAPSHOT_HEADER, data, (size_t)size);
    if (mend)
        mend_producers(bytes, padded, false);
    int code = sc_producer_state_decode(state, bytes + SNAPSHOT_HEADER, size, &offset, &error);
    CHECK(code == SC_OK || (code == SC_CORRUPT && state->count == 0));
    if (code == SC_OK) {
        uint8_t crc[4];
        int64_t checked;
        memcpy(&checked, bytes + SNAPSHOT_HEADER + 24, sizeof checked);
        put_crc(crc, "", bytes + SNAPSHOT_HEADER + 12, checked - 12);
        CHECK(memcmp(crc, bytes + SNAPSHOT_HEADER + 8, sizeof crc) == 0); /* nothing else is believed */
        int64_t encoded = sc_producer_state_encoded_size(state);
        uint8_t *copy = malloc((size_t)encoded);
        CHECK(copy != NULL && offset >= 0);
        sc_producer_state_encode(state, copy);
        CHECK_OK(sc_producer_state_decode(again, copy, encoded, &offset, &error), error);
        CHECK(again->count == state->count && again->open_count == state->open_count);
        use_table(again);
        free(copy);
    }
    sc_producer_state_free(state);
    sc_producer_state_free(again);
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (path[0] == 0)
        make_masters();
    if (size < FUZZ_OPTIONS)
        return 0;
    if (data[0] & 32) {
        check_table(data + FUZZ_OPTIONS, (int64_t)size - FUZZ_OPTIONS, data[0] & 4);
        return 0;
    }
    master = masters[data[0] >> 6 & 1];
    truth = truths[data[0] >> 6 & 1];
    folder_remove(path);
    CHECK(mkdir(path, 0777) == 0);
    folder_copy(master, path);
    write_input(data, data + FUZZ_OPTIONS, (int64_t)size - FUZZ_OPTIONS);
    bool state = (data[0] & 3) == 2, believed = !state && data[0] & 4;
    if (data[0] & 16 && !state)
        pretend_power_loss(path);
    sc_topic *topic = topic_open_with(path, false, TRANSACTION_LOG_SEGMENT);
    check_answers(topic, believed);
    topic_close(topic);
    topic = topic_open_with(path, true, TRANSACTION_LOG_SEGMENT);
    check_answers(topic, believed);
    check_producers(topic, believed);
    topic_close(topic);
    topic = topic_open_with(path, true, TRANSACTION_LOG_SEGMENT);
    (void)ask(topic);
    topic_close(topic);
    return 0;
}
