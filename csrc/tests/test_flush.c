#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "check.h"
#include "os.h"
#include "plain_topic.h"

static char path[FOLDER_MAX];

/* ---- a trace of what is synced ------------------------------------------------------------------------------- */

enum { TRACES_MAX = 400, FDS_MAX = 1024 };

typedef struct trace {
    char file[FILE_MAX];
    int64_t end; /* of the batches that the file held when its sync began; 1 for a folder */
} trace;

static struct sc_os_table real;
static char name_of_fd[FDS_MAX][FILE_MAX];
static trace synced[TRACES_MAX];
static int synced_count;

static int tracing_open(const char *file, int how)
{
    int fd = real.open(file, how);
    if (fd >= 0 && fd < FDS_MAX)
        snprintf(name_of_fd[fd], FILE_MAX, "%s", file);
    return fd;
}

static int64_t end_of_file_data(const char *file)
{
    found_batch batches[300];
    int count = found_batches(file, batches, 300);
    return batches[count - 1].position + batches[count - 1].header.total_size;
}

static int tracing_sync_data(int fd)
{
    CHECK(synced_count < TRACES_MAX);
    trace *one = &synced[synced_count++];
    *one = (trace){.end = end_of_file_data(name_of_fd[fd])};
    snprintf(one->file, FILE_MAX, "%s", name_of_fd[fd]);
    return real.sync_data(fd);
}

static int tracing_sync(int fd)
{
    CHECK(synced_count < TRACES_MAX);
    trace *one = &synced[synced_count++];
    *one = (trace){.end = 1};
    snprintf(one->file, FILE_MAX, "%s", name_of_fd[fd]);
    return real.sync(fd);
}

static void trace_syncs(void)
{
    sc_os_reset();
    real = sc_os;
    synced_count = 0;
    sc_os.open = tracing_open;
    sc_os.sync_data = tracing_sync_data;
    sc_os.sync = tracing_sync;
}

/* The end of what was in a file at its last sync; 0: it was not synced. */
static int64_t synced_of(const char *file)
{
    int64_t most = 0;
    for (int i = 0; i < synced_count; i++)
        if (strcmp(synced[i].file, file) == 0 && synced[i].end > most)
            most = synced[i].end;
    return most;
}

static int64_t durable_of(sc_topic *topic)
{
    sc_partition_info info;
    sc_error error;
    CHECK_OK(sc_partition_describe(topic, 0, false, &info, &error), error);
    return info.durable_offset;
}

/* ---- tests ------------------------------------------------------------------------------------------------- */

static void test_a_flush_syncs_every_file_and_name(void)
{
    folder_make(path);
    char file[FILE_MAX], folder[FILE_MAX];
    sc_error error;
    segment_file(file, path, 0, 0);
    snprintf(folder, sizeof folder, "%s/0", path);
    sc_topic *topic = topic_open(path, true);
    trace_syncs();
    append_records(topic, 0, 0, 300);
    CHECK_EQ(synced_count, 0);
    CHECK_EQ(durable_of(topic), 0);
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    CHECK_EQ(durable_of(topic), 300);
    CHECK_EQ(synced_of(file), end_of_file_data(file));
    CHECK(synced_of(folder) > 0 && synced_of(path) > 0);
    trace_syncs();
    append_records(topic, 0, 300, 300);
    CHECK_OK(sc_topic_flush(topic, &error), error);
    CHECK_EQ(synced_of(file), end_of_file_data(file));
    CHECK_EQ(synced_of(folder), 0); /* the names are known already */
    trace_syncs();
    CHECK_OK(sc_topic_flush(topic, &error), error);
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    CHECK_EQ(synced_count, 0);
    sc_os_reset();
    topic_close(topic);
    folder_remove(path);
}

static void test_a_durable_append_is_synced_when_it_returns(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    char file[FILE_MAX];
    segment_file(file, path, 0, 0);
    for (int64_t i = 0; i < 5; i++) {
        trace_syncs();
        CHECK_OK(try_append(topic, 0, i * 50, 50, 10, true, &error), error);
        CHECK_EQ(durable_of(topic), i * 50 + 50);
        CHECK_EQ(synced_of(file), end_of_file_data(file));
    }
    sc_os_reset();
    topic_close(topic);
    folder_remove(path);
}

/* A segment was mapped for some other use while it was small, grew, and was sealed before the next flush. */
static void test_a_flush_after_a_roll_covers_all_of_the_sealed_segment(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_segment_info info;
    sc_error error;
    append_records(topic, 0, 0, 10);
    CHECK_OK(sc_partition_segment(topic, 0, 0, &info, &error), error);
    int64_t end = 10;
    char first[FILE_MAX], second[FILE_MAX];
    segment_file(first, path, 0, 0);
    for (int64_t base = 0; base == 0; end += 100) {
        append_records(topic, 0, end, 100);
        segment_file(second, path, 0, end);
        base = file_exists(second) ? end : 0;
    }
    trace_syncs();
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    CHECK_EQ(durable_of(topic), end);
    CHECK_EQ(synced_of(first), end_of_file_data(first));
    CHECK_EQ(synced_of(second), end_of_file_data(second));
    sc_os_reset();
    CHECK_OK(sc_partition_segment(topic, 0, 0, &info, &error), error);
    CHECK_EQ(info.end_offset, end - 100);
    CHECK_EQ(info.count, end - 100);
    topic_close(topic);
    folder_remove(path);
}

/* Two handles, as two processes, take turns in making segments: each must sync what the other one appended. */
static void test_a_flush_covers_segments_that_another_handle_made(void)
{
    folder_make(path);
    sc_topic *topics[] = {topic_open_with(path, true, 2 << 10), topic_open_with(path, true, 2 << 10)};
    sc_segment_info info;
    sc_error error;
    char file[FILE_MAX];
    int64_t end = 0;
    for (int i = 0; i < 10; i++, end += 10) /* the last one is of the handle that flushes */
        append_records(topics[i / 2 % 2], 0, end, 10);
    trace_syncs();
    CHECK_OK(sc_partition_flush(topics[0], 0, &error), error);
    sc_os_reset();
    for (int64_t n = 0, next = 0; next < end; n++, next = info.end_offset) {
        CHECK_OK(sc_partition_segment(topics[0], 0, n, &info, &error), error);
        CHECK_EQ(info.base_offset, next);
        segment_file(file, path, 0, next);
        CHECK_EQ(synced_of(file), end_of_file_data(file));
    }
    topic_close(topics[0]);
    topic_close(topics[1]);
    check_log(path, end);
    folder_remove(path);
}

/* A segment was small when it was mapped, and the batch that came was larger than a segment. */
static void test_a_batch_larger_than_its_mapping_is_found_and_synced(void)
{
    folder_make(path);
    enum { SEGMENT = 8 << 10 };
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    sc_error error;
    append_records(topic, 0, 0, 5);
    check_records(topic, 0, 0, 5);
    topic_close(topic);
    sc_topic *reader = topic_open_with(path, true, SEGMENT);
    check_records(reader, 0, 0, 5); /* maps 8 KiB */
    topic = topic_open_with(path, true, 1 << 20);
    append_records(topic, 0, 5, 1000);
    topic_close(topic);
    topic = topic_open_with(path, true, SEGMENT);
    append_records(topic, 0, 1005, 5); /* seals it */
    char file[FILE_MAX];
    segment_file(file, path, 0, 1005);
    CHECK(file_exists(file));
    sc_segment_info info;
    CHECK_OK(sc_partition_segment(reader, 0, 0, &info, &error), error);
    CHECK_EQ(info.end_offset, 1005);
    trace_syncs();
    CHECK_OK(sc_partition_flush(reader, 0, &error), error);
    sc_os_reset();
    segment_file(file, path, 0, 0);
    CHECK(synced_of(file) == 0 || synced_of(file) == end_of_file_data(file));
    check_records(reader, 0, 0, 1010);
    topic_close(topic);
    topic_close(reader);
    folder_remove(path);
}

static void check_sealed(const char *file)
{
    uint32_t marker[2];
    int64_t end = end_of_file_data(file), size;
    uint8_t *data = file_read(file, &size);
    CHECK_EQ(size, (end + SC_OPENING_SIZE + 4095) / 4096 * 4096);
    memcpy(marker, data + end, sizeof marker);
    CHECK(marker[0] == SC_CONTINUATION && marker[1] == 0);
    free(data);
}

/* Durable appends leave nothing to sync when a segment is sealed: its marker and its preallocated end must not be
 * forgotten for that. */
static void test_sealed_segments_are_finished_whatever_was_durable_before(void)
{
    for (int durable = 0; durable <= 1; durable++) {
        folder_make(path);
        sc_topic *topic = topic_open_with(path, true, 100 << 10);
        sc_error error;
        char file[FILE_MAX];
        for (int64_t i = 0; i < 30; i++)
            CHECK_OK(try_append(topic, 0, i * 100, 100, 100, durable, &error), error);
        trace_syncs();
        CHECK_OK(sc_partition_flush(topic, 0, &error), error);
        sc_os_reset();
        sc_segment_info info;
        int64_t n = 0;
        for (; sc_partition_segment(topic, 0, n, &info, &error) == SC_OK && info.sealed; n++) {
            check_sealed(info.path);
            index_file(file, path, 0, info.base_offset);
            CHECK(file_exists(file));
        }
        CHECK(n >= 3);
        topic_close(topic);
        check_log(path, 3000);
        folder_remove(path);
    }
}

static void test_closing_gives_the_preallocated_end_back(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    char file[FILE_MAX];
    segment_file(file, path, 0, 0);
    append_records(topic, 0, 0, 10);
    CHECK(file_size(file) >= 64 << 10);
    topic_close(topic);
    CHECK_EQ(file_size(file), 4096);
    int64_t size;
    uint8_t *data = file_read(file, &size);
    int64_t end = found_end(file);
    CHECK(end > end_of_file_data(file)); /* it was noted that all is durable */
    CHECK(end + 8 <= size);
    for (int64_t i = end; i < size; i++)
        CHECK_EQ(data[i], 0);
    free(data);
    check_log(path, 10);
    folder_remove(path);
}

/* The number of batches without records, and what the last of them says. */
static int notes_of(const char *file, int64_t *durable_offset)
{
    int64_t size, position = SCHEMA_SIZE;
    uint8_t *data = file_read(file, &size);
    const char *why;
    sc_header header;
    int notes = 0;
    while (sc_batch_look(data + position, size - position, &header, &why) == SC_BATCH_GOOD) {
        if (header.record_count == 0) {
            notes++;
            *durable_offset = header.durable_offset;
        }
        position += header.total_size;
    }
    free(data);
    return notes;
}

static void test_a_log_that_rests_notes_once_that_it_is_durable(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true), *other = topic_open(path, true);
    sc_error error;
    char file[FILE_MAX];
    int64_t durable = 0;
    segment_file(file, path, 0, 0);
    append_records(topic, 0, 0, 10);
    append_records(other, 0, 10, 10);
    CHECK_OK(sc_topic_note_durable(topic, &error), error);
    CHECK_EQ(notes_of(file, &durable), 0); /* it is not durable yet */
    CHECK_OK(sc_topic_flush(topic, &error), error);
    CHECK_OK(sc_topic_flush(other, &error), error);
    CHECK_EQ(notes_of(file, &durable), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_OK(sc_topic_note_durable(topic, &error), error);
        CHECK_OK(sc_topic_note_durable(other, &error), error);
    }
    CHECK_EQ(notes_of(file, &durable), 1);
    CHECK_EQ(durable, 20);
    append_records(topic, 0, 20, 10);
    CHECK_OK(sc_topic_note_durable(topic, &error), error);
    CHECK_EQ(notes_of(file, &durable), 1);
    topic_close(topic);
    topic_close(other);
    CHECK_EQ(notes_of(file, &durable), 2);
    CHECK_EQ(durable, 30);
    for (int i = 0; i < 3; i++) { /* to look is not to append */
        topic = topic_open(path, true);
        CHECK_EQ(durable_of(topic), 30);
        check_records(topic, 0, 0, 30);
        topic_close(topic);
    }
    CHECK_EQ(notes_of(file, &durable), 2);
    check_log(path, 30);
    folder_remove(path);
}

/* The end of the log is so near the end of a page that eight zero bytes would not fit behind it. */
static void test_a_closed_file_always_ends_its_stream_inside_the_file(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    char file[FILE_MAX];
    segment_file(file, path, 0, 0);
    int64_t end = 0;
    do {
        append_records(topic, 0, end, 1);
        end++;
    } while (end_of_file_data(file) % 4096 != 0);
    topic_close(topic);
    CHECK(file_size(file) >= end_of_file_data(file) + 8);
    check_log(path, end);
    folder_remove(path);
}

/* ---- failed syncs ------------------------------------------------------------------------------------------ */

static int failing_sync_data(int fd)
{
    (void)fd;
    errno = EIO;
    return -1;
}

static void test_a_failed_sync_poisons_the_partition_until_all_have_closed(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true), *other = topic_open(path, true);
    sc_error error;
    append_records(topic, 0, 0, 20);
    append_records(topic, 1, 0, 20);
    sc_os.sync_data = failing_sync_data;
    CHECK_EQ(sc_partition_flush(topic, 0, &error), SC_OS);
    CHECK_EQ(error.number, EIO);
    CHECK(strstr(error.path, ".arrows") != NULL);
    sc_os_reset();
    CHECK_EQ(sc_partition_flush(topic, 0, &error), SC_POISONED); /* a failed sync is not retried */
    CHECK_EQ(try_append(topic, 0, 20, 5, 5, false, &error), SC_POISONED);
    CHECK_EQ(try_append(other, 0, 20, 5, 5, true, &error), SC_POISONED);
    CHECK_EQ(durable_of(topic), 0);
    check_records(topic, 0, 0, 20);
    check_records(other, 0, 0, 20);
    append_records(topic, 1, 20, 5);
    CHECK_OK(sc_partition_flush(topic, 1, &error), error);
    CHECK_EQ(sc_topic_close(topic, &error), SC_POISONED);
    sc_topic_free(topic);
    sc_topic *third = topic_open(path, true);
    CHECK_EQ(try_append(third, 0, 20, 5, 5, false, &error), SC_POISONED);
    topic_close(other);
    topic_close(third);
    check_log(path, 20);
    folder_remove(path);
}

static int64_t written_from, written_to; /* of segments, by pwrite */
static ssize_t noting_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    if (position < written_from)
        written_from = position;
    if (position + (int64_t)size > written_to)
        written_to = position + (int64_t)size;
    return pwrite(fd, data, size, position);
}

/* The kernel takes the pages of a sync that failed for clean: a later sync writes none of them. */
static void test_what_a_failed_sync_may_have_dropped_is_written_again_by_who_opens_the_log_next(void)
{
    for (int fails = 0; fails < 2; fails++) {
        char file[FILE_MAX];
        found_batch batches[4];
        sc_error error;
        folder_make(path);
        sc_topic *topic = topic_open(path, true);
        append_records(topic, 0, 0, 20);
        CHECK_OK(sc_partition_flush(topic, 0, &error), error);
        append_records(topic, 0, 20, 100);
        append_records(topic, 0, 120, 100);
        if (fails) {
            sc_os.sync_data = failing_sync_data;
            CHECK_EQ(sc_partition_flush(topic, 0, &error), SC_OS);
            sc_os_reset();
        }
        topic_abandon(topic);
        segment_file(file, path, 0, 0);
        CHECK_EQ(found_batches(file, batches, 4), 3);
        written_from = INT64_MAX;
        written_to = 0;
        sc_os.pwrite = noting_pwrite;
        topic = topic_open(path, true);
        CHECK_EQ(end_of(topic, 0), 220);
        CHECK(fails ? written_from <= batches[1].position && written_to >= found_end(file) : written_to == 0);
        CHECK_OK(sc_partition_flush(topic, 0, &error), error);
        sc_os_reset();
        topic_close(topic);
        check_log(path, 220);
        folder_remove(path);
    }
}

static void test_a_durable_append_whose_sync_fails_says_so(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    CHECK_OK(try_append(topic, 0, 0, 5, 5, true, &error), error);
    sc_os.sync_data = failing_sync_data;
    CHECK_EQ(try_append(topic, 0, 5, 5, 5, true, &error), SC_OS);
    sc_os_reset();
    CHECK_EQ(durable_of(topic), 5);
    CHECK_EQ(try_append(topic, 0, 10, 5, 5, true, &error), SC_POISONED);
    CHECK_EQ(sc_topic_close(topic, &error), SC_POISONED);
    sc_topic_free(topic);
    check_log(path, 10); /* not acknowledged, yet whole: the page cache has it */
    folder_remove(path);
}

/* Another process has been told of the failure while our sync succeeded: what it dropped is not durable. */
static sc_topic *poisoner;
static int poisoning_sync_data(int fd)
{
    sc_error error;
    sc_os.sync_data = failing_sync_data;
    CHECK_EQ(sc_partition_flush(poisoner, 0, &error), SC_OS);
    sc_os_reset();
    return sc_os.sync_data(fd);
}

static void test_a_sync_that_overlapped_a_failed_one_promises_nothing(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    poisoner = topic_open(path, true);
    append_records(topic, 0, 0, 20);
    sc_os.sync_data = poisoning_sync_data;
    CHECK_EQ(sc_partition_flush(topic, 0, &error), SC_POISONED);
    CHECK_EQ(durable_of(topic), 0);
    CHECK_EQ(sc_topic_close(topic, &error), SC_POISONED);
    sc_topic_free(topic);
    topic_close(poisoner);
    folder_remove(path);
}

/* ---- group commit ------------------------------------------------------------------------------------------ */

enum { APPENDERS = 8 };
static sc_topic *shared_topic;
static atomic_int sync_calls, waiting, started;
static int codes[APPENDERS];
static void (*at_sync)(int number); /* told that the number-th sync begins; the first is 1 */
static int failing_sync;            /* the sync that fails; 0: none */
static int opens_that_fail;
static bool hold_back;
static atomic_int wakes;
static _Thread_local int led; /* the sync that this thread did last */

static void await_at_least(atomic_int *counter, int value)
{
    for (int i = 0; atomic_load(counter) < value && i < 10000; i++)
        usleep(1000);
    CHECK(atomic_load(counter) >= value);
}

static int counting_sync_data(int fd)
{
    led = atomic_fetch_add(&sync_calls, 1) + 1;
    if (at_sync != NULL)
        at_sync(led);
    return led == failing_sync ? failing_sync_data(fd) : real.sync_data(fd);
}

static int counting_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    atomic_fetch_add(&waiting, 1);
    return real.wait(word, expected, timeout_ns);
}

/* With `hold_back`, whoever led the second sync wakes one thread, and the others only when the third sync has begun. */
static int counting_wake(uint32_t *word)
{
    if (hold_back && led == 2 && atomic_fetch_add(&wakes, 1) > 0)
        await_at_least(&sync_calls, 3);
    return real.wake(word);
}

static int failing_open(const char *file, int how)
{
    if (opens_that_fail == 0 || how != SC_OPEN_WRITE || strstr(file, ".arrows") == NULL)
        return real.open(file, how);
    opens_that_fail--;
    errno = EMFILE;
    return -1;
}

static void *append_one(void *number)
{
    sc_batch_input input = {.count = 1, .timestamp = 1};
    sc_append append = {.batches = &input,
                        .batch_count = 1,
                        .schema_version = 1,
                        .generation = GENERATION,
                        .expected_offset = -1,
                        .durable = true};
    sc_error error;
    int64_t first, end;
    int code = sc_partition_append(shared_topic, 0, &append, &first, &end, &error);
    CHECK(code != SC_OK || durable_of(shared_topic) >= end);
    codes[(int *)number - codes] = code;
    return NULL;
}

static pthread_t threads[APPENDERS];

static void start_appenders(int count)
{
    for (int i = atomic_load(&started); count > 0; i++, count--) {
        atomic_store(&started, i + 1);
        CHECK(pthread_create(&threads[i], NULL, append_one, &codes[i]) == 0);
    }
}

/* One append begins, and `at`, which each sync calls before the drive is asked, starts more. Returns how many ended
 * with `code`. */
static int appends_that_end(int code, void (*at)(int number), int failing)
{
    folder_make(path);
    shared_topic = topic_open(path, true);
    sc_os_reset();
    real = sc_os;
    atomic_store(&sync_calls, 0);
    atomic_store(&waiting, 0);
    atomic_store(&started, 0);
    at_sync = at;
    failing_sync = failing;
    sc_os.sync_data = counting_sync_data;
    sc_os.wait = counting_wait;
    sc_os.wake = counting_wake;
    sc_os.open = failing_open;
    start_appenders(1);
    int found = 0;
    for (int i = 0; i < atomic_load(&started); i++) {
        pthread_join(threads[i], NULL);
        found += codes[i] == code;
    }
    return found;
}

static void close_shared(int code)
{
    sc_error error;
    sc_os_reset();
    CHECK_EQ(sc_topic_close(shared_topic, &error), code);
    sc_topic_free(shared_topic);
    folder_remove(path);
}

static void others_come_in_the_first(int number)
{
    if (number != 1)
        return;
    start_appenders(APPENDERS - 1);
    await_at_least(&waiting, APPENDERS - 1);
}

static void the_first_does_not_cover_the_others(int number)
{
    if (number == 2)
        CHECK_EQ(durable_of(shared_topic), 1);
    others_come_in_the_first(number);
}

static void test_all_that_come_while_a_sync_runs_share_the_next_one(void)
{
    CHECK_EQ(appends_that_end(SC_OK, the_first_does_not_cover_the_others, 0), APPENDERS);
    CHECK_EQ(atomic_load(&sync_calls), 2);
    close_shared(SC_OK);
}

static void test_a_failed_sync_fails_all_that_wait_for_it_and_is_not_repeated(void)
{
    CHECK_EQ(appends_that_end(SC_POISONED, others_come_in_the_first, 2), APPENDERS - 2);
    CHECK_EQ(atomic_load(&sync_calls), 2);
    CHECK_EQ(codes[0], SC_OK);
    CHECK_EQ(durable_of(shared_topic), 1);
    close_shared(SC_POISONED);
}

static pthread_t flusher;

static void *flush_all(void *unused)
{
    sc_error error;
    CHECK_OK(sc_topic_flush(shared_topic, &error), error);
    CHECK_EQ(durable_of(shared_topic), 1);
    return unused;
}

static void a_flush_comes_in_the_first(int number)
{
    if (number != 1)
        return;
    CHECK(pthread_create(&flusher, NULL, flush_all, NULL) == 0);
    await_at_least(&waiting, 1);
}

static void test_a_flush_waits_for_the_sync_that_somebody_else_has_begun(void)
{
    CHECK_EQ(appends_that_end(SC_OK, a_flush_comes_in_the_first, 0), 1);
    pthread_join(flusher, NULL);
    CHECK_EQ(atomic_load(&sync_calls), 1);
    close_shared(SC_OK);
}

static void next_open_fails(int number)
{
    others_come_in_the_first(number);
    opens_that_fail = number == 1;
}

/* The drive was not asked, so nothing is poisoned: who led has the error, and the next one leads. */
static void test_a_sync_that_could_not_begin_fails_its_leader_alone(void)
{
    CHECK_EQ(appends_that_end(SC_OS, next_open_fails, 0), 1);
    CHECK_EQ(atomic_load(&sync_calls), 2);
    CHECK_EQ(durable_of(shared_topic), APPENDERS);
    close_shared(SC_OK);
}

static void two_groups_come(int number)
{
    if (number > 2)
        return;
    start_appenders(number == 1 ? 3 : 2);
    await_at_least(&waiting, number == 1 ? 3 : 5);
}

static void test_the_next_sync_begins_before_the_covered_are_woken(void)
{
    hold_back = true;
    CHECK_EQ(appends_that_end(SC_OK, two_groups_come, 0), 6);
    hold_back = false;
    CHECK_EQ(atomic_load(&sync_calls), 3);
    CHECK_EQ(atomic_load(&wakes), 3);
    close_shared(SC_OK);
}

/* Two handles, as two processes. */
static void test_what_another_handle_synced_is_not_synced_again(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true), *other = topic_open(path, true);
    sc_error error;
    append_records(topic, 0, 0, 10);
    CHECK_OK(try_append(other, 0, 10, 10, 10, true, &error), error);
    trace_syncs();
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    CHECK_EQ(synced_count, 0);
    sc_os_reset();
    CHECK_EQ(durable_of(topic), 20);
    topic_close(topic);
    topic_close(other);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_a_flush_syncs_every_file_and_name);
    RUN(test_a_durable_append_is_synced_when_it_returns);
    RUN(test_a_flush_after_a_roll_covers_all_of_the_sealed_segment);
    RUN(test_a_flush_covers_segments_that_another_handle_made);
    RUN(test_a_batch_larger_than_its_mapping_is_found_and_synced);
    RUN(test_sealed_segments_are_finished_whatever_was_durable_before);
    RUN(test_closing_gives_the_preallocated_end_back);
    RUN(test_a_log_that_rests_notes_once_that_it_is_durable);
    RUN(test_a_closed_file_always_ends_its_stream_inside_the_file);
    RUN(test_a_failed_sync_poisons_the_partition_until_all_have_closed);
    RUN(test_what_a_failed_sync_may_have_dropped_is_written_again_by_who_opens_the_log_next);
    RUN(test_a_durable_append_whose_sync_fails_says_so);
    RUN(test_a_sync_that_overlapped_a_failed_one_promises_nothing);
    RUN(test_all_that_come_while_a_sync_runs_share_the_next_one);
    RUN(test_a_failed_sync_fails_all_that_wait_for_it_and_is_not_repeated);
    RUN(test_a_flush_waits_for_the_sync_that_somebody_else_has_begun);
    RUN(test_a_sync_that_could_not_begin_fails_its_leader_alone);
    RUN(test_the_next_sync_begins_before_the_covered_are_woken);
    RUN(test_what_another_handle_synced_is_not_synced_again);
    return 0;
}
