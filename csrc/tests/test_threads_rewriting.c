/* Everything at once in one process: appends and rolls, scans, waits and looks beside consolidation, compaction and
 * retention; durable appends beside checkpoints of the journal; a send buffer beside rewriting. Meant to be run under
 * -fsanitize=thread as well, which a race put in on purpose shows to be at work. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "key_map.h"
#include "plain_topic.h"
#include "send_batch.h"
#include "send_buffer.h"
#include "small_store.h"

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN true
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN true
#endif
#endif
#ifndef UNDER_TSAN
#define UNDER_TSAN false
#endif

enum { SEGMENT = 32 << 10, APPENDS = 250, EACH = 7, DENSE = 0, COMPACTED = 1, KEPT = 600, THREADS_MAX = 16 };
static char path[FOLDER_MAX];
static sc_topic *topics[2], *reader; /* two handles that write: they exclude each other as two processes do */
static atomic_bool done;
static atomic_long replaced, removed;

typedef void *(*work)(void *);

/* Runs the first `writers` of the threads to their end, and tells the others then. */
static void run_threads(const work *functions, int count, int writers)
{
    pthread_t threads[THREADS_MAX];
    CHECK(count <= THREADS_MAX);
    atomic_store(&done, false);
    for (int i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], NULL, functions[i], (void *)(intptr_t)i) == 0);
    for (int i = 0; i < count; i++) {
        if (i == writers)
            atomic_store(&done, true);
        pthread_join(threads[i], NULL);
    }
}

/* ---- rewriting ---------------------------------------------------------------------------------------------- */

/* Whether compaction drops a record of COMPACTED: by an entry of the map for its key that no record has. */
static bool is_dropped(int64_t offset)
{
    uint8_t key[VALUE_MAX];
    return offset % 3 == 0 && key_of(COMPACTED, offset, key) >= 0;
}

/* Writer i appends to partition i, through both handles in turn. */
static void *append_and_roll(void *argument)
{
    uint32_t partition = (uint32_t)(intptr_t)argument;
    for (int64_t i = 0; i < APPENDS; i++) {
        sc_error error;
        int64_t base;
        CHECK_OK(try_append(topics[i % 2], partition, i * EACH, EACH, 3, i % 50 == 7, &error), error);
        if (i % 20 == 19)
            CHECK_OK(sc_partition_roll(topics[i / 20 % 2], partition, &base, &error), error);
    }
    return NULL;
}

static int rewrite(sc_topic *topic, uint32_t partition, int64_t base, sc_key_map *map, sc_error *error)
{
    sc_rewrite *self;
    sc_rewrite_report report;
    int64_t dropped, oldest;
    int code = sc_rewrite_open(topic, partition, base, &self, error);
    if (code != SC_OK)
        return code;
    if (map != NULL)
        code = sc_rewrite_mark(self, map, INT64_MIN, 0, 0, &dropped, &oldest, error);
    if (code == SC_OK)
        code = sc_rewrite_plain(self, 4 << 10, NULL, NULL, error);
    if (code == SC_OK)
        code = sc_rewrite_commit(self, &report, error);
    if (code == SC_OK && report.replaced)
        atomic_fetch_add(&replaced, 1);
    sc_rewrite_free(self);
    return code;
}

/* Each sealed segment of a partition once more; what others replace or delete at this moment is left alone. */
static void rewrite_all(sc_topic *topic, uint32_t partition, sc_key_map *map)
{
    sc_segment_info info;
    sc_error error;
    for (int64_t n = 0; sc_partition_segment(topic, partition, n, &info, &error) == SC_OK; n++)
        if (info.sealed) {
            int code = rewrite(topic, partition, info.base_offset, map, &error);
            if (code != SC_OK && code != SC_RANGE && code != SC_CONFLICT)
                check_error(__FILE__, __LINE__, "rewrite", &error);
        }
}

static void *consolidate_for_ever(void *argument)
{
    while (!atomic_load(&done))
        rewrite_all(topics[(intptr_t)argument % 2], DENSE, NULL);
    return NULL;
}

static void *compact_for_ever(void *unused)
{
    static const uint8_t secret[16] = "0123456789abcdef";
    uint8_t key[VALUE_MAX];
    sc_key_map *map;
    sc_error error;
    CHECK_OK(sc_key_map_new(0, secret, &map, &error), error);
    for (int64_t offset = 0; offset < APPENDS * EACH; offset++)
        if (is_dropped(offset))
            CHECK(sc_key_map_put(map, key, key_of(COMPACTED, offset, key), INT64_MAX / 2));
    while (!atomic_load(&done))
        rewrite_all(topics[1], COMPACTED, map);
    rewrite_all(topics[1], COMPACTED, map);
    sc_key_map_free(map);
    return unused;
}

static void *retain_for_ever(void *unused)
{
    while (!atomic_load(&done)) {
        int64_t end = end_of(topics[0], DENSE);
        sc_removal removal;
        sc_error error;
        if (end > KEPT)
            CHECK_OK(sc_partition_delete_before(topics[0], DENSE, end - KEPT, &removal, &error), error);
        if (end > KEPT)
            atomic_fetch_add(&removed, removal.segments);
        usleep(1000);
    }
    return unused;
}

/* Reads what is there; what is deleted meanwhile is told. */
static void *scan_for_ever(void *argument)
{
    sc_topic *topic = (intptr_t)argument % 2 ? reader : topics[0];
    do {
        sc_partition_info info;
        sc_error error;
        int64_t next;
        CHECK_OK(sc_partition_describe(topic, DENSE, true, &info, &error), error);
        int code = try_read(topic, DENSE, info.start_offset, info.end_offset, &next, &error);
        if (code != SC_RANGE) {
            CHECK_OK(code, error);
            CHECK_EQ(next, info.end_offset);
        }
    } while (!atomic_load(&done));
    return NULL;
}

/* Each record of a batch of COMPACTED is right, and what is missing is what compaction drops. *next: behind the last
 * one.
 */
static void check_compacted(const sc_batch *batch, int64_t *next)
{
    sc_rows rows;
    sc_error error;
    uint8_t wanted[VALUE_MAX];
    CHECK_OK(sc_batch_rows(batch, &rows, &error), error);
    for (int64_t row = batch->first_row; row < batch->first_row + batch->row_count; row++, ++*next) {
        for (; *next < rows.offsets[row]; ++*next)
            CHECK(is_dropped(*next));
        CHECK_EQ(rows.offsets[row], *next);
        int64_t size = value_of(COMPACTED, *next, wanted);
        CHECK_EQ(rows.value_ends[row + 1] - rows.value_ends[row], size < 0 ? 0 : size);
        CHECK(size <= 0 || memcmp(rows.values + rows.value_ends[row], wanted, (size_t)size) == 0);
    }
}

static void read_compacted(sc_topic *topic)
{
    int64_t next = 0, end = end_of(topic, COMPACTED);
    sc_range range = {COMPACTED, 0, end};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    sc_batch batch;
    sc_error error;
    int code;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    while ((code = sc_scan_next(scan, &batch, &error)) == SC_OK)
        check_compacted(&batch, &next);
    if (code != SC_END)
        check_error(__FILE__, __LINE__, "sc_scan_next", &error);
    for (; next < end; next++)
        CHECK(is_dropped(next));
    sc_scan_free(scan);
}

static void *scan_compacted_for_ever(void *argument)
{
    while (!atomic_load(&done))
        read_compacted((intptr_t)argument % 2 ? reader : topics[1]);
    return NULL;
}

static void *wait_and_look(void *unused)
{
    const uint32_t partitions[] = {DENSE, COMPACTED};
    int64_t offsets[] = {0, 0};
    while (!atomic_load(&done)) {
        sc_error error;
        uint32_t rewrites;
        int code = sc_topic_wait(reader, partitions, offsets, 2, false, 20, &error);
        CHECK(code == SC_OK || code == SC_END);
        for (int i = 0; i < 2; i++) {
            offsets[i] = end_of(reader, partitions[i]);
            CHECK_OK(sc_partition_rewrites(reader, partitions[i], &rewrites, &error), error);
        }
        CHECK_OK(sc_topic_flush(topics[0], &error), error);
    }
    return unused;
}

static void on_problem(void *context, const sc_error *problem)
{
    (void)context;
    check_error(__FILE__, __LINE__, "verify", problem);
}

static void test_logs_stay_right_while_all_that_changes_segments_is_at_work(void)
{
    static const work functions[] = {append_and_roll,         append_and_roll,        consolidate_for_ever,
                                     compact_for_ever,        retain_for_ever,        scan_for_ever,
                                     scan_for_ever,           wait_and_look,          consolidate_for_ever,
                                     scan_compacted_for_ever, scan_compacted_for_ever};
    sc_error error;
    folder_make(path);
    for (int i = 0; i < 2; i++)
        topics[i] = topic_open_with(path, true, SEGMENT);
    reader = topic_open_with(path, false, SEGMENT);
    atomic_store(&replaced, 0);
    run_threads(functions, sizeof functions / sizeof *functions, 2);
    CHECK(atomic_load(&replaced) > 0);
    CHECK(atomic_load(&removed) > 0);
    read_compacted(reader);
    for (uint32_t partition = 0; partition < 2; partition++)
        CHECK_OK(sc_partition_verify(topics[0], partition, on_problem, NULL, NULL, &error), error);
    topic_close(topics[0]);
    topic_close(topics[1]);
    topic_close(reader);
    folder_remove(path);
}

/* ---- the journal -------------------------------------------------------------------------------------------- */

enum { DURABLE_APPENDS = 25 };
static small_store store;

/* Writer i appends to logs i and i + STORE_PARTITIONS, and waits for both at once. */
static void *append_durably(void *argument)
{
    int log = (int)(intptr_t)argument;
    for (int64_t i = 0; i < DURABLE_APPENDS; i++)
        store_append(&store, 1U << log | 1U << (log + STORE_PARTITIONS), 1 + i % 5);
    return NULL;
}

static void *checkpoint_for_ever(void *unused)
{
    for (int64_t i = 0; !atomic_load(&done); i++) {
        sc_error error;
        CHECK_OK(i % 8 == 7 ? sc_journal_empty(store.journal, &error) : sc_journal_checkpoint(store.journal, &error),
                 error);
        usleep(2000);
    }
    return unused;
}

static void *roll_and_consolidate(void *unused)
{
    while (!atomic_load(&done))
        for (uint32_t log = 0; log < STORE_LOGS; log++) {
            sc_error error;
            int64_t base;
            sc_topic *topic = topic_of(&store, (int)log);
            CHECK_OK(sc_partition_roll(topic, log % STORE_PARTITIONS, &base, &error), error);
            rewrite_all(topic, log % STORE_PARTITIONS, NULL);
        }
    return unused;
}

static void test_durable_appends_share_the_journal_with_checkpoints_and_rewriting(void)
{
    static const work functions[] = {append_durably,      append_durably,       append_durably,     append_durably,
                                     checkpoint_for_ever, roll_and_consolidate, checkpoint_for_ever};
    store_make(path);
    store = store_open(path, 256 << 10);
    run_threads(functions, sizeof functions / sizeof *functions, 4);
    int64_t ends[STORE_LOGS];
    for (int log = 0; log < STORE_LOGS; log++) {
        ends[log] = end_of_log(&store, log);
        CHECK_EQ(durable_of_log(&store, log), ends[log]);
    }
    store_check(&store, ends);
    store_close(&store);
    folder_remove(path);
}

/* ---- the send buffer ---------------------------------------------------------------------------------------- */

enum { SENDERS = 3, SENT_EACH = 1500 };
static sc_send_buffer *buffer;
static sc_send_topic *sent_to;

/* Values say who sent them, and which of his records they are. */
static void *send_records(void *argument)
{
    int64_t number[2] = {(int64_t)(intptr_t)argument, 0};
    for (; number[1] < SENT_EACH; number[1]++) {
        sc_error error;
        sc_send_record record = {.value = {(const uint8_t *)number, sizeof number},
                                 .partition = number[0] % 2 ? DENSE : COMPACTED};
        int code;
        while ((code = sc_send_buffer_add(buffer, sent_to, &record, &error)) == SC_END) {
            code = sc_send_buffer_wait_room(buffer, sizeof number, 1000);
            CHECK(code == SC_OK || code == SC_END);
        }
        CHECK_OK(code, error);
        if (number[1] % 200 == 150)
            CHECK(sc_send_buffer_wait_flushed(buffer, sc_send_buffer_flush(buffer), -1));
    }
    return NULL;
}

static void *deliver(void *unused)
{
    bool closed = false;
    while (!closed) {
        sc_send_batch *batch = sc_send_buffer_work(buffer, &closed);
        if (batch != NULL) {
            CHECK_OK(batch->error.code, batch->error);
            sc_send_buffer_finish(buffer, batch);
        }
    }
    return unused;
}

static void *roll_rewrite_and_watch(void *unused)
{
    while (!atomic_load(&done)) {
        for (uint32_t partition = 0; partition < 2; partition++) {
            sc_error error;
            int64_t base;
            CHECK_OK(sc_partition_roll(topics[1], partition, &base, &error), error);
            rewrite_all(topics[1], partition, NULL);
        }
        CHECK(sc_send_buffer_memory(buffer) >= 0 && sc_send_buffer_unfinished(buffer) >= 0);
        sc_send_topic_take_appended(sent_to);
    }
    return unused;
}

static void check_sent(uint32_t partition, int64_t next_of[SENDERS])
{
    sc_range range = {partition, 0, end_of(topics[1], partition)};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    sc_batch batch;
    sc_rows rows;
    sc_error error;
    CHECK_OK(sc_scan_open(topics[1], &options, &scan, &error), error);
    while (sc_scan_next(scan, &batch, &error) == SC_OK) {
        CHECK_OK(sc_batch_rows(&batch, &rows, &error), error);
        for (int64_t row = batch.first_row; row < batch.first_row + batch.row_count; row++) {
            int64_t number[2];
            memcpy(number, rows.values + rows.value_ends[row], sizeof number);
            CHECK(number[0] >= 0 && number[0] < SENDERS);
            CHECK_EQ(number[1], next_of[number[0]]++);
        }
    }
    sc_scan_free(scan);
}

static void test_a_send_buffer_delivers_in_order_while_its_logs_are_rewritten(void)
{
    static const work functions[] = {send_records, send_records, send_records, roll_rewrite_and_watch};
    sc_send_options options = {.linger_ms = 1, .batch_bytes = 2048, .buffer_bytes = 64 << 10};
    sc_send_plan plan = {
        .partitions = 4, .schema_version = 1, .generation = GENERATION, .max_record_bytes = 1 << 20, .native = true};
    int64_t next_of[SENDERS] = {0};
    pthread_t worker;
    sc_error error;
    folder_make(path);
    for (int i = 0; i < 2; i++)
        topics[i] = topic_open_with(path, true, SEGMENT);
    CHECK_OK(sc_send_buffer_new(&options, &buffer, &error), error);
    CHECK_OK(sc_send_buffer_add_topic(buffer, topics[0], &plan, NULL, &sent_to, &error), error);
    CHECK(pthread_create(&worker, NULL, deliver, NULL) == 0);
    run_threads(functions, SENDERS + 1, SENDERS);
    sc_send_buffer_close(buffer);
    pthread_join(worker, NULL);
    CHECK_EQ(sc_send_buffer_unfinished(buffer), 0);
    check_sent(DENSE, next_of);
    check_sent(COMPACTED, next_of);
    for (int i = 0; i < SENDERS; i++)
        CHECK_EQ(next_of[i], SENT_EACH);
    sc_send_buffer_free(buffer);
    topic_close(topics[0]);
    topic_close(topics[1]);
    folder_remove(path);
}

/* ---- the control -------------------------------------------------------------------------------------------- */

static int64_t racy;

static void *count_without_a_lock(void *unused)
{
    for (int i = 0; i < 1000; i++)
        racy++;
    return unused;
}

/* In a child of its own: ThreadSanitizer ends it with a status that says so. */
static void test_control_a_race_is_reported(void)
{
    if (!UNDER_TSAN)
        return;
    int status;
    pid_t child = fork();
    if (child == 0) {
        pthread_t threads[2];
        close(STDERR_FILENO);
        for (int i = 0; i < 2; i++)
            pthread_create(&threads[i], NULL, count_without_a_lock, NULL);
        for (int i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
        exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 66);
}

int main(int argc, char **argv)
{
    RUN(test_control_a_race_is_reported);
    RUN(test_logs_stay_right_while_all_that_changes_segments_is_at_work);
    RUN(test_durable_appends_share_the_journal_with_checkpoints_and_rewriting);
    RUN(test_a_send_buffer_delivers_in_order_while_its_logs_are_rewritten);
    return 0;
}
