/* Appends, scans, flushes and rolls at once in one process. Meant to be run under -fsanitize=thread as well. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "plain_topic.h"

enum { SEGMENT = 32 << 10, WRITERS = 4, APPENDS_EACH = 120, EACH = 5, PARTITIONS = 2 };
static char path[FOLDER_MAX];
static sc_topic *topics[2], *reader;
static atomic_bool done;

/* Values say who wrote them, and which of his records they are. */
static void *append_own(void *argument)
{
    int64_t writer = (int64_t)(intptr_t)argument;
    sc_topic *topic = topics[writer % 2]; /* two handles: they exclude each other as two processes do */
    for (int64_t i = 0; i < APPENDS_EACH; i++) {
        int64_t numbers[EACH][2], first, end;
        sc_bytes values[EACH];
        for (int k = 0; k < EACH; k++) {
            numbers[k][0] = writer;
            numbers[k][1] = i * EACH + k;
            values[k] = (sc_bytes){(const uint8_t *)numbers[k], sizeof numbers[k]};
        }
        sc_batch_input inputs[] = {{.count = 2, .values = values, .timestamp = i},
                                   {.count = EACH - 2, .values = values + 2, .timestamp = i}};
        sc_append append = {.batches = inputs,
                            .batch_count = 2,
                            .schema_version = 1,
                            .generation = GENERATION,
                            .expected_offset = -1,
                            .durable = i % 40 == 3};
        sc_error error;
        CHECK_OK(sc_partition_append(topic, (uint32_t)(writer % PARTITIONS), &append, &first, &end, &error), error);
        CHECK_EQ(end - first, EACH);
    }
    return NULL;
}

/* Reads from the start to the present end; each writer's records are in their order, the five of an append together. */
static int64_t read_all(sc_topic *topic, uint32_t partition)
{
    sc_partition_info info;
    sc_error error;
    sc_scan *scan;
    sc_batch batch;
    sc_rows rows;
    int64_t next_of[WRITERS] = {0}, owner = -1, seen = 0;
    int code;
    CHECK_OK(sc_partition_describe(topic, partition, false, &info, &error), error);
    CHECK_EQ(info.end_offset % EACH, 0);
    sc_range range = {partition, 0, info.end_offset};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true};
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    while ((code = sc_scan_next(scan, &batch, &error)) == SC_OK) {
        CHECK_OK(sc_batch_rows(&batch, &rows, &error), error);
        for (int64_t i = batch.first_row; i < batch.first_row + batch.row_count; i++, seen++) {
            int64_t number[2];
            memcpy(number, rows.values + rows.value_ends[i], sizeof number);
            CHECK(number[0] >= 0 && number[0] < WRITERS && number[1] == next_of[number[0]]++);
            CHECK(seen % EACH == 0 || number[0] == owner);
            CHECK_EQ(rows.offsets[i], seen);
            owner = number[0];
        }
    }
    if (code != SC_END)
        check_error(__FILE__, __LINE__, "sc_scan_next", &error);
    CHECK_EQ(seen, info.end_offset);
    sc_scan_free(scan);
    return seen;
}

static void *scan_for_ever(void *unused)
{
    int64_t before[PARTITIONS] = {0};
    while (!atomic_load(&done))
        for (uint32_t partition = 0; partition < PARTITIONS; partition++) {
            int64_t seen = read_all(partition == 0 ? reader : topics[0], partition);
            CHECK(seen >= before[partition]);
            before[partition] = seen;
        }
    return unused;
}

static void *flush_for_ever(void *unused)
{
    sc_error error;
    while (!atomic_load(&done)) {
        CHECK_OK(sc_topic_flush(topics[1], &error), error);
        sc_segment_info info;
        for (int64_t n = 0; sc_partition_segment(topics[0], 1, n, &info, &error) == SC_OK; n++)
            ;
        CHECK_OK(sc_topic_flush(topics[0], &error), error);
        usleep(2000);
    }
    return unused;
}

static void *wait_for_all(void *unused)
{
    uint32_t partitions[] = {0, 1};
    int64_t offsets[] = {0, 0};
    sc_error error;
    int64_t all = WRITERS / PARTITIONS * APPENDS_EACH * EACH;
    while (offsets[0] < all || offsets[1] < all) {
        CHECK_OK(sc_topic_wait(topics[1], partitions, offsets, 2, false, 60000, &error), error);
        for (int i = 0; i < 2; i++)
            offsets[i] = end_of(topics[1], partitions[i]);
    }
    return unused;
}

static void test_concurrent_appends_scans_and_flushes_agree(void)
{
    folder_make(path);
    for (int i = 0; i < 2; i++)
        topics[i] = topic_open_with(path, true, SEGMENT);
    reader = topic_open_with(path, false, SEGMENT);
    pthread_t writers[WRITERS], others[3];
    static void *(*const functions[])(void *) = {scan_for_ever, flush_for_ever, wait_for_all};
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&others[i], NULL, functions[i], NULL) == 0);
    for (int i = 0; i < WRITERS; i++)
        CHECK(pthread_create(&writers[i], NULL, append_own, (void *)(intptr_t)i) == 0);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    atomic_store(&done, true);
    for (int i = 0; i < 3; i++)
        pthread_join(others[i], NULL);
    for (uint32_t partition = 0; partition < PARTITIONS; partition++)
        CHECK_EQ(read_all(reader, partition), WRITERS / PARTITIONS * APPENDS_EACH * EACH);
    topic_close(topics[0]);
    topic_close(topics[1]);
    topic_close(reader);
    topics[0] = topic_open_with(path, true, SEGMENT);
    for (uint32_t partition = 0; partition < PARTITIONS; partition++)
        CHECK_EQ(read_all(topics[0], partition), WRITERS / PARTITIONS * APPENDS_EACH * EACH);
    topic_close(topics[0]);
    folder_remove(path);
}

/* ---- a reader that knows nothing of us ------------------------------------------------------------------------- */

enum { LIVE_SEGMENT = 32 << 20, LARGE_APPENDS = 300, SMALL_APPENDS = 6000 };

/* Looks at the bytes of the growing file alone: once a message has its opening, all of it is there, and all that was
 * appended with it. */
static void *read_foreign(void *argument)
{
    const uint8_t *data = argument;
    int64_t position = SCHEMA_SIZE, whole = 0;
    for (;;) {
        bool last = atomic_load(&done);
        sc_header header;
        const char *why;
        enum sc_batch_state state = sc_batch_look(data + position, LIVE_SEGMENT - position, &header, &why);
        if (state == SC_BATCH_NONE) {
            CHECK(whole % 3 == 0); /* between appends, not inside one */
            if (last)
                return NULL;
            continue;
        }
        CHECK_EQ(state, SC_BATCH_GOOD);
        CHECK_EQ(sc_batch_checksum(data + position, &header), header.body_crc);
        position += header.total_size;
        if (header.record_count == 0) /* fills the file before it grows */
            continue;
        CHECK_EQ((header.flags & SC_FLAG_CONTINUED) != 0, whole % 3 != 2);
        whole++;
    }
}

static void test_a_live_file_never_shows_half_an_append(void)
{
    for (int large = 0; large <= 1; large++) {
        folder_make(path);
        sc_topic *topic = topic_open_with(path, true, LIVE_SEGMENT);
        sc_error error;
        char file[FILE_MAX];
        int64_t count = large ? 600 : 6, end = count, appends = 1;
        CHECK_OK(try_append(topic, 0, 0, count, count / 3, false, &error), error);
        segment_file(file, path, 0, 0);
        int fd = open(file, O_RDONLY);
        void *data = mmap(NULL, LIVE_SEGMENT, PROT_READ, MAP_SHARED, fd, 0);
        CHECK(fd >= 0 && data != MAP_FAILED);
        atomic_store(&done, false);
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, read_foreign, data) == 0);
        for (; appends < (large ? LARGE_APPENDS : SMALL_APPENDS); appends++, end += count)
            CHECK_OK(try_append(topic, 0, end, count, count / 3, false, &error), error);
        atomic_store(&done, true);
        pthread_join(thread, NULL);
        munmap(data, LIVE_SEGMENT);
        close(fd);
        topic_close(topic);
        check_log(path, end);
        folder_remove(path);
    }
}

int main(int argc, char **argv)
{
    RUN(test_concurrent_appends_scans_and_flushes_agree);
    RUN(test_a_live_file_never_shows_half_an_append);
    return 0;
}
