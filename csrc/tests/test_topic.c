#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "check.h"
#include "os.h"
#include "plain_topic.h"

static char path[FOLDER_MAX];

static void test_opening_what_is_not_there_is_an_error_and_reading_is_not(void)
{
    folder_make(path);
    char absent[FOLDER_MAX + 8];
    sc_topic *topic;
    sc_error error;
    snprintf(absent, sizeof absent, "%s/none", path);
    CHECK_EQ(topic_try_open(absent, true, 1 << 20, &topic, &error), SC_OS);
    CHECK_EQ(error.number, ENOENT);
    topic = topic_open(path, false); /* no state, no partitions */
    CHECK_EQ(end_of(topic, 3), 0);
    check_records(topic, 0, 0, 0);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_path_too_long_is_an_error(void)
{
    char name[SC_PATH_MAX * 2];
    sc_topic *topic;
    sc_error error;
    memset(name, 'a', sizeof name);
    name[0] = '/';
    for (size_t length = SC_PATH_MAX - 80; length < sizeof name; length += 37) {
        name[length] = 0;
        CHECK(topic_try_open(name, true, 1 << 20, &topic, &error) != SC_OK);
        name[length] = 'a';
    }
}

static void test_partitions_outside_the_topic_are_named(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_partition_info info;
    sc_error error;
    CHECK_EQ(sc_partition_describe(topic, 4, false, &info, &error), SC_INVALID);
    CHECK(strstr(error.message, "0 to 3") != NULL);
    CHECK_EQ(sc_partition_describe(topic, UINT32_MAX, false, &info, &error), SC_INVALID);
    topic_close(topic);
    folder_remove(path);
}

static void test_after_closing_every_call_says_closed(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    sc_partition_info info;
    sc_segment_info segment;
    int64_t next, offset = 0;
    uint32_t partition = 0;
    append_records(topic, 0, 0, 10);
    CHECK_OK(sc_topic_close(topic, &error), error);
    CHECK_OK(sc_topic_close(topic, &error), error);
    CHECK_EQ(try_append(topic, 0, 10, 1, 1, false, &error), SC_CLOSED);
    CHECK_EQ(try_read(topic, 0, 0, 10, &next, &error), SC_CLOSED);
    CHECK_EQ(sc_partition_flush(topic, 0, &error), SC_CLOSED);
    CHECK_EQ(sc_topic_flush(topic, &error), SC_CLOSED);
    CHECK_EQ(sc_partition_describe(topic, 0, true, &info, &error), SC_CLOSED);
    CHECK_EQ(sc_partition_segment(topic, 0, 0, &segment, &error), SC_CLOSED);
    CHECK_EQ(sc_topic_wait(topic, &partition, &offset, 1, false, 1000, &error), SC_CLOSED);
    CHECK_EQ(sc_partition_verify(topic, 0, NULL, NULL, NULL, &error), SC_CLOSED);
    CHECK_EQ(sc_topic_mark_deleted(topic, &error), SC_CLOSED);
    sc_topic_settings settings = settings_of(1 << 20);
    CHECK_EQ(sc_topic_alter(topic, &settings, true, &error), SC_CLOSED);
    sc_topic_free(topic);
    check_log(path, 10);
    folder_remove(path);
}

static void *close_it(void *topic)
{
    sc_error error;
    CHECK_OK(sc_topic_close(topic, &error), error);
    return NULL;
}

static atomic_long appended;
static void *append_until_closed(void *topic)
{
    sc_batch_input input = {.count = 1, .timestamp = 1};
    sc_append append = {
        .batches = &input, .batch_count = 1, .schema_version = 1, .generation = GENERATION, .expected_offset = -1};
    sc_error error;
    int64_t first, end;
    int code;
    while ((code = sc_partition_append(topic, 0, &append, &first, &end, &error)) == SC_OK)
        atomic_fetch_add(&appended, 1);
    CHECK_EQ(code, SC_CLOSED);
    return NULL;
}

static void test_closing_from_two_threads_waits_for_the_calls_in_flight(void)
{
    for (int round = 0; round < 10; round++) {
        folder_make(path);
        sc_topic *topic = topic_open(path, true);
        pthread_t threads[4];
        atomic_store(&appended, 0);
        for (int i = 0; i < 2; i++)
            CHECK(pthread_create(&threads[i], NULL, append_until_closed, topic) == 0);
        while (atomic_load(&appended) < 20)
            usleep(100);
        for (int i = 2; i < 4; i++)
            CHECK(pthread_create(&threads[i], NULL, close_it, topic) == 0);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
        sc_topic_free(topic);
        topic = topic_open(path, false);
        CHECK_EQ(end_of(topic, 0), atomic_load(&appended));
        topic_close(topic);
        folder_remove(path);
    }
}

static void test_settings_are_published_to_other_handles(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true), *other = topic_open(path, true), *reader = topic_open(path, false);
    sc_error error;
    sc_topic_settings settings = settings_of(1 << 20);
    settings.generation = 2;
    settings.partitions = 40;
    CHECK_OK(sc_topic_alter(topic, &settings, true, &error), error);
    CHECK_EQ(sc_topic_generation(other), 2);
    CHECK_EQ(sc_topic_generation(reader), 2);
    CHECK_EQ(try_append(other, 0, 0, 1, 1, false, &error), SC_STALE);
    CHECK_EQ(end_of(topic, 39), 0);
    sc_partition_info info;
    CHECK_EQ(sc_partition_describe(other, 39, false, &info, &error), SC_INVALID);
    CHECK_OK(sc_topic_alter(other, &settings, false, &error), error);
    CHECK_EQ(end_of(other, 39), 0);
    topic_close(topic);
    topic_close(other);
    CHECK_EQ(sc_topic_generation(reader), GENERATION); /* nobody is there to publish one */
    topic_close(reader);
    folder_remove(path);
}

static void test_a_deleted_topic_refuses_appends_everywhere(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true), *other = topic_open(path, true), *reader = topic_open(path, false);
    sc_error error;
    append_records(other, 0, 0, 5);
    CHECK_OK(sc_topic_mark_deleted(topic, &error), error);
    CHECK(sc_topic_is_deleted(other) && sc_topic_is_deleted(reader));
    CHECK_EQ(try_append(other, 0, 5, 1, 1, false, &error), SC_DELETED);
    int64_t offset = 5;
    uint32_t partition = 0;
    CHECK_EQ(sc_topic_wait(other, &partition, &offset, 1, false, -1, &error), SC_DELETED);
    CHECK_EQ(sc_topic_wait(reader, &partition, &offset, 1, false, -1, &error), SC_DELETED);
    topic_close(topic);
    topic_close(other);
    topic_close(reader);
    folder_remove(path);
}

static void test_too_many_topics_are_refused_and_not_left_half_open(void)
{
    enum { GUARDS = 4096, FIRST = 1 << 20 };
    folder_make(path);
    int made = 0;
    while (made <= GUARDS && sc_os_guard_descriptor(FIRST + made))
        made++;
    sc_topic *topic;
    sc_error error;
    CHECK_EQ(topic_try_open(path, true, 1 << 20, &topic, &error), SC_INVALID);
    while (made > 0)
        sc_os_unguard_descriptor(FIRST + --made);
    check_log(path, 0);
    folder_remove(path);
}

/* ---- waiting ----------------------------------------------------------------------------------------------- */

static void test_waiting_ends_by_time_and_at_once_when_records_are_there(void)
{
    folder_make(path);
    sc_topic *writer = topic_open(path, true), *reader = topic_open(path, false);
    sc_topic *both[] = {writer, reader};
    append_records(writer, 1, 0, 5);
    for (int i = 0; i < 2; i++) {
        sc_error error;
        uint32_t partitions[] = {0, 1};
        int64_t offsets[] = {0, 4}, start = sc_os.monotonic_ns();
        CHECK_OK(sc_topic_wait(both[i], partitions, offsets, 2, false, -1, &error), error);
        CHECK_OK(sc_topic_wait(both[i], partitions, offsets, 2, false, INT64_MAX, &error), error);
        CHECK_OK(sc_topic_wait(both[i], partitions, offsets, 2, false, 0, &error), error);
        offsets[1] = 5;
        CHECK_EQ(sc_topic_wait(both[i], partitions, offsets, 2, false, 0, &error), SC_END);
        CHECK_EQ(sc_topic_wait(both[i], partitions, offsets, 2, false, 30, &error), SC_END);
        int64_t took = sc_os.monotonic_ns() - start;
        CHECK(took >= 30 * 1000000 && took < INT64_C(20000000000));
    }
    topic_close(reader);
    topic_close(writer);
    folder_remove(path);
}

static atomic_int waiting;
struct waiter {
    sc_topic *topic;
    int64_t offset;
    int code;
};

static void *wait_for_it(void *argument)
{
    struct waiter *waiter = argument;
    uint32_t partition = 0;
    sc_error error;
    atomic_fetch_add(&waiting, 1);
    waiter->code = sc_topic_wait(waiter->topic, &partition, &waiter->offset, 1, false, -1, &error);
    return NULL;
}

static void start_waiters(struct waiter *waiters, pthread_t *threads, int count)
{
    atomic_store(&waiting, 0);
    for (int i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], NULL, wait_for_it, &waiters[i]) == 0);
    while (atomic_load(&waiting) < count)
        usleep(100);
}

static void test_waiters_are_woken_by_appends_and_by_closing(void)
{
    folder_make(path);
    sc_topic *writer = topic_open(path, true), *other = topic_open(path, true), *reader = topic_open(path, false);
    struct waiter waiters[] = {{writer, 0, 9}, {other, 0, 9}, {reader, 0, 9}};
    pthread_t threads[3];
    start_waiters(waiters, threads, 3);
    append_records(writer, 0, 0, 1);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQ(waiters[i].code, SC_OK);
        waiters[i].offset = 1;
    }
    start_waiters(waiters, threads, 3);
    sc_error error;
    for (int i = 0; i < 3; i++) {
        CHECK_OK(sc_topic_close(waiters[i].topic, &error), error);
        pthread_join(threads[i], NULL);
        CHECK_EQ(waiters[i].code, SC_CLOSED);
        sc_topic_free(waiters[i].topic);
    }
    folder_remove(path);
}

/* Whoever appended was killed between publishing the records and waking those who wait. */
static int no_wake(uint32_t *word)
{
    (void)word;
    return 0;
}

static void test_a_lost_wake_up_delays_a_waiter_only_a_little(void)
{
    folder_make(path);
    sc_topic *writer = topic_open(path, true), *other = topic_open(path, true);
    struct waiter waiter = {other, 0, 9};
    pthread_t thread;
    sc_os.wake = no_wake; /* before there is a thread that could see the table change */
    start_waiters(&waiter, &thread, 1);
    usleep(30 * 1000);
    append_records(writer, 0, 0, 1);
    pthread_join(thread, NULL);
    sc_os_reset();
    CHECK_EQ(waiter.code, SC_OK);
    topic_close(writer);
    topic_close(other);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_opening_what_is_not_there_is_an_error_and_reading_is_not);
    RUN(test_a_path_too_long_is_an_error);
    RUN(test_partitions_outside_the_topic_are_named);
    RUN(test_after_closing_every_call_says_closed);
    RUN(test_closing_from_two_threads_waits_for_the_calls_in_flight);
    RUN(test_settings_are_published_to_other_handles);
    RUN(test_a_deleted_topic_refuses_appends_everywhere);
    RUN(test_too_many_topics_are_refused_and_not_left_half_open);
    RUN(test_waiting_ends_by_time_and_at_once_when_records_are_there);
    RUN(test_waiters_are_woken_by_appends_and_by_closing);
    RUN(test_a_lost_wake_up_delays_a_waiter_only_a_little);
    return 0;
}
