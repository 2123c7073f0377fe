/* Several processes on one topic: fork without exec, the topic opened after the fork. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "os.h"
#include "plain_topic.h"
#include "random_array.h"
#include "topic.h"

static char path[FOLDER_MAX];

/* ---- children ---------------------------------------------------------------------------------------------- */

typedef struct child {
    pid_t pid;
    int from, to; /* pipes */
} child;

static int pipe_up[2], pipe_down[2];

/* The child talks to its parent with single bytes. */
static void tell(int fd)
{
    CHECK(write(fd, "x", 1) == 1);
}

static void hear(int fd)
{
    char byte;
    CHECK(read(fd, &byte, 1) == 1);
}

static void tell_parent(void)
{
    tell(pipe_up[1]);
}
static void hear_parent(void)
{
    hear(pipe_down[0]);
}

static child start(void (*run)(void))
{
    child made;
    CHECK(pipe(pipe_up) == 0 && pipe(pipe_down) == 0);
    fflush(NULL);
    made.pid = fork();
    CHECK(made.pid >= 0);
    if (made.pid == 0) {
#if defined(__linux__)
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves no children behind */
#endif
        run();
        _exit(0);
    }
    close(pipe_up[1]);
    close(pipe_down[0]);
    made.from = pipe_up[0];
    made.to = pipe_down[1];
    return made;
}

static void finish(child *ended, bool killed)
{
    int status;
    if (killed)
        CHECK(kill(ended->pid, SIGKILL) == 0);
    CHECK(waitpid(ended->pid, &status, 0) == ended->pid);
    CHECK(killed ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(ended->from);
    close(ended->to);
}

static void sleep_for_ever(void)
{
    for (;;)
        pause();
}

static void tell_and_sleep(void)
{
    tell_parent();
    sleep_for_ever();
}

/* ---- readers ------------------------------------------------------------------------------------------------ */

static sc_topic *only_reader;

static void make_a_log(void)
{
    sc_topic *topic = topic_open(path, true);
    append_records(topic, 0, 0, 100);
    topic_close(topic);
}

static void read_after_fork(void)
{
    sc_error error;
    int64_t next;
    CHECK_EQ(try_read(only_reader, 0, 0, 100, &next, &error), SC_FORKED);
}

/* Runs first: nothing was opened for writing in this process, so nothing else has set it up. */
static void test_a_process_that_only_reads_notices_forks_and_faults_too(void)
{
    folder_make(path);
    child other = start(make_a_log);
    finish(&other, false);
    only_reader = topic_open(path, false);
    check_records(only_reader, 0, 0, 100);
    other = start(read_after_fork);
    finish(&other, false);
    char file[FILE_MAX];
    sc_range range = {0, 0, 100};
    sc_scan_options options = {
        .ranges = &range, .range_count = 1, .min_timestamp = INT64_MIN, .max_timestamp = INT64_MAX, .limit = -1};
    sc_scan *scan;
    sc_batch batch;
    sc_rows rows;
    sc_error error;
    CHECK_OK(sc_scan_open(only_reader, &options, &scan, &error), error);
    CHECK_OK(sc_scan_next(scan, &batch, &error), error);
    segment_file(file, path, 0, 0);
    file_truncate(file, 0);
    CHECK_EQ(sc_batch_rows(&batch, &rows, &error), SC_OS);
    sc_scan_free(scan);
    topic_close(only_reader);
    folder_remove(path);
}

/* ---- locks ------------------------------------------------------------------------------------------------- */

static void append_by_turns(void)
{
    sc_topic *topic = topic_open(path, true);
    for (int64_t i = 50; i < 1000; i += 100) {
        hear_parent();
        append_records(topic, 0, i, 50);
        tell_parent();
    }
    hear_parent();
    topic_close(topic);
}

static void test_appends_of_two_processes_interleave_and_are_seen_at_once(void)
{
    folder_make(path);
    child other = start(append_by_turns);
    sc_topic *topic = topic_open(path, true), *reader = topic_open(path, false);
    for (int64_t i = 0; i < 1000; i += 100) {
        append_records(topic, 0, i, 50);
        tell(other.to);
        hear(other.from);
        CHECK_EQ(end_of(topic, 0), i + 100);
        check_records(topic, 0, i, i + 100);
        check_records(reader, 0, 0, i + 100);
    }
    tell(other.to);
    finish(&other, false);
    append_records(topic, 0, 1000, 10);
    topic_close(topic);
    topic_close(reader);
    check_log(path, 1010);
    folder_remove(path);
}

enum { APPENDERS = 3, APPENDS_EACH = 150 };
static int64_t appender;

/* Values name their writer and their number, so that what was appended can be told from what was not. */
static void append_numbered(void)
{
    sc_topic *topic = topic_open_with(path, true, 16 << 10);
    for (int64_t i = 0; i < APPENDS_EACH; i++) {
        int64_t numbers[3][2], first, end;
        sc_bytes values[3];
        for (int k = 0; k < 3; k++) {
            numbers[k][0] = appender;
            numbers[k][1] = i * 3 + k;
            values[k] = (sc_bytes){(const uint8_t *)numbers[k], sizeof numbers[k]};
        }
        sc_batch_input inputs[] = {{.count = 1, .values = values, .timestamp = 1},
                                   {.count = 2, .values = values + 1, .timestamp = 1}};
        sc_append append = {.batches = inputs,
                            .batch_count = 2,
                            .schema_version = 1,
                            .generation = GENERATION,
                            .expected_offset = -1,
                            .durable = i % 50 == 7};
        sc_error error;
        CHECK_OK(sc_partition_append(topic, 0, &append, &first, &end, &error), error);
        CHECK_EQ(end - first, 3);
    }
    topic_close(topic);
}

/* The numbers of each writer rise by one, and the three of an append lie together. */
static void check_numbered(int64_t end, int64_t *next_of)
{
    sc_topic *topic = topic_open_with(path, true, 16 << 10);
    sc_range range = {0, 0, end};
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
    int64_t seen = 0, owner = -1;
    int code;
    CHECK_EQ(end_of(topic, 0), end);
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    while ((code = sc_scan_next(scan, &batch, &error)) == SC_OK) {
        CHECK_OK(sc_batch_rows(&batch, &rows, &error), error);
        for (int64_t i = 0; i < rows.count; i++, seen++) {
            int64_t number[2];
            memcpy(number, rows.values + rows.value_ends[i], sizeof number);
            CHECK(number[0] >= 0 && number[0] < APPENDERS && number[1] == next_of[number[0]]++);
            CHECK(seen % 3 == 0 || number[0] == owner);
            owner = number[0];
        }
    }
    CHECK_EQ(code, SC_END);
    CHECK_EQ(seen, end);
    sc_scan_free(scan);
    topic_close(topic);
}

static void test_concurrent_appends_of_processes_lose_and_mix_nothing(void)
{
    folder_make(path);
    child children[APPENDERS];
    int64_t next_of[APPENDERS] = {0};
    for (appender = 0; appender < APPENDERS; appender++)
        children[appender] = start(append_numbered);
    for (int i = 0; i < APPENDERS; i++)
        finish(&children[i], false);
    check_numbered(APPENDERS * APPENDS_EACH * 3, next_of);
    folder_remove(path);
}

/* ---- writers that are killed -------------------------------------------------------------------------------- */

static void hold_the_lock(void)
{
    sc_topic *topic = topic_open(path, true);
    sc_partition *partition;
    sc_error error;
    append_records(topic, 0, 0, 10);
    CHECK_OK(sc_topic_partition(topic, 0, &partition, &error), error);
    CHECK_OK(sc_partition_lock(partition, &error), error);
    tell_parent();
    sleep_for_ever();
}

static void *append_behind_the_lock(void *topic)
{
    append_records(topic, 0, 10, 10);
    return NULL;
}

static void test_a_killed_process_gives_its_lock_back_at_once(void)
{
    folder_make(path);
    child holder = start(hold_the_lock);
    hear(holder.from);
    sc_topic *topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), 10);
    append_records(topic, 1, 0, 10); /* another partition is not locked */
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, append_behind_the_lock, topic) == 0);
    usleep(20 * 1000);
    CHECK_EQ(end_of(topic, 0), 10);
    finish(&holder, true);
    pthread_join(thread, NULL);
    check_records(topic, 0, 0, 20);
    topic_close(topic);
    folder_remove(path);
}

static int die_after;
static bool die_in_group;

/* Leaves the log as an append does that is killed in the middle of its stores: `dirty`, and half the bytes. */
static void die_while_appending(void)
{
    sc_topic *topic = topic_open(path, true);
    sc_partition *partition;
    sc_error error;
    sc_tail tail;
    append_records(topic, 0, 10, 10);
    CHECK_OK(sc_topic_partition(topic, 0, &partition, &error), error);
    CHECK_OK(sc_partition_lock(partition, &error), error);
    sc_slot *slot = sc_state_slot(&topic->state, 0);
    CHECK(sc_slot_read(slot, &tail));
    atomic_store(&slot->dirty, 1);
    /* a whole append of which only the first opening is missing, or which is cut off */
    char file[FILE_MAX];
    int64_t size;
    found_batch batches[8];
    segment_file(file, path, 0, 0);
    CHECK_EQ(found_batches(file, batches, 8), 2);
    uint8_t *data = file_read(file, &size), *batch = data + batches[1].position;
    int64_t total = batches[1].header.total_size;
    batches[1].header.base_offset += 10;
    batches[1].header.last_offset += 10;
    batches[1].header.flags |= SC_FLAG_CONTINUED;
    sc_header_seal(&batches[1].header);
    memcpy(batch + SC_OPENING_SIZE + batches[1].header.metadata_size, &batches[1].header, SC_HEADER_SIZE);
    memcpy(partition->writer.data + tail.end_position + 8, batch + 8, (size_t)(die_in_group ? total - 8 : die_after));
    if (die_in_group) { /* the second batch of the append, whole */
        batches[1].header.base_offset += 10;
        batches[1].header.last_offset += 10;
        batches[1].header.flags &= (uint16_t)~SC_FLAG_CONTINUED;
        sc_header_seal(&batches[1].header);
        memcpy(batch + SC_OPENING_SIZE + batches[1].header.metadata_size, &batches[1].header, SC_HEADER_SIZE);
        memcpy(partition->writer.data + tail.end_position + total, batch, (size_t)total);
    }
    tell_parent();
    sleep_for_ever();
}

static void test_an_append_that_was_killed_is_cleared_by_the_next_one(void)
{
    for (int way = 0; way < 4; way++) {
        die_in_group = way == 3;
        die_after = way * 500;
        folder_make(path);
        sc_topic *topic = topic_open(path, true), *reader = topic_open(path, false);
        append_records(topic, 0, 0, 10);
        child victim = start(die_while_appending);
        hear(victim.from);
        finish(&victim, true);
        CHECK_EQ(end_of(reader, 0), 20);
        check_records(reader, 0, 0, 20);
        append_records(topic, 0, 20, 1); /* shorter than what was left there */
        append_records(topic, 0, 21, 10);
        check_records(reader, 0, 0, 31);
        topic_close(reader);
        topic_close(topic);
        check_log(path, 31);
        folder_remove(path);
    }
}

/* As who died behind the last store of an append, and before it said so. */
static void append_without_a_word(sc_topic *topic, int64_t first, int64_t count)
{
    char file[FILE_MAX];
    int64_t size, at = sizeof(sc_state_header);
    uint32_t dirty = 1;
    snprintf(file, sizeof file, "%s/state", path);
    uint8_t *before = file_read(file, &size);
    append_records(topic, 0, first, count);
    file_write_at(file, before + at, sizeof(sc_slot), at);
    file_write_at(file, &dirty, sizeof dirty, at + (int64_t)offsetof(sc_slot, dirty));
    free(before);
    topic_abandon(topic);
}

/* Else a writer that goes on where the log ended would write again what turns up behind that. */
static void test_who_asks_for_the_end_is_told_of_what_the_dead_had_stored(void)
{
    sc_partition *partition;
    sc_error error;
    folder_make(path);
    sc_topic *next = topic_open(path, true), *reader = topic_open(path, false), *holder = topic_open(path, true);
    sc_topic *dying = topic_open(path, true);
    append_records(dying, 0, 0, 10);
    append_without_a_word(dying, 10, 10);
    CHECK_OK(sc_topic_partition(holder, 0, &partition, &error), error);
    CHECK_OK(sc_partition_lock(partition, &error), error);
    CHECK_EQ(end_of(next, 0), 10); /* nobody waits for who has the lock */
    sc_partition_unlock(partition);
    CHECK_EQ(end_of(reader, 0), 10); /* who may not write repairs nothing */
    CHECK_EQ(end_of(next, 0), 20);
    CHECK_EQ(end_of(reader, 0), 20);
    check_records(reader, 0, 0, 20);
    append_records(next, 0, 20, 5);
    topic_close(holder);
    topic_close(reader);
    topic_close(next);
    check_log(path, 25);
    folder_remove(path);
}

static void test_the_log_of_a_killed_only_writer_is_found_whole(void)
{
    for (int way = 0; way < 4; way++) {
        die_in_group = way == 3;
        die_after = way * 500;
        folder_make(path);
        sc_topic *topic = topic_open(path, true);
        append_records(topic, 0, 0, 10);
        topic_close(topic);
        child victim = start(die_while_appending);
        hear(victim.from);
        finish(&victim, true);
        check_log(path, 20);
        folder_remove(path);
    }
}

/* Appends for ever, and says after each append how far it got. */
static void append_until_killed(void)
{
    sc_topic *topic = topic_open_with(path, true, 24 << 10);
    int64_t end = end_of(topic, 0);
    random_seed((uint64_t)end);
    for (;;) {
        bool large = random_below(6) == 0; /* written by another path than small ones */
        int64_t count = large ? 600 + random_below(600) : 1 + random_below(60),
                each = count / 50 + 1 + random_below(40);
        sc_error error;
        CHECK_OK(try_append(topic, 0, end, count, each, random_below(10) == 0, &error), error);
        end += count;
        CHECK(write(pipe_up[1], &end, sizeof end) == sizeof end);
    }
}

static void test_killed_at_any_moment_every_acknowledged_append_is_there(void)
{
    folder_make(path);
    int64_t end = 0;
    for (int round = 0; round < 40; round++) {
        child victim = start(append_until_killed);
        int64_t acknowledged = end, one;
        for (int i = 0; i < 1 + round % 7; i++)
            CHECK(read(victim.from, &acknowledged, sizeof acknowledged) == sizeof acknowledged);
        nanosleep(&(struct timespec){.tv_nsec = (round * 37 % 23) * 50000}, NULL);
        CHECK(kill(victim.pid, SIGKILL) == 0);
        while (read(victim.from, &one, sizeof one) == sizeof one)
            acknowledged = one;
        waitpid(victim.pid, NULL, 0);
        close(victim.from);
        close(victim.to);
        sc_topic *topic = topic_open_with(path, round % 2 == 0, 24 << 10);
        end = end_of(topic, 0);
        CHECK(end >= acknowledged);
        check_records(topic, 0, acknowledged > 1000 ? acknowledged - 1000 : 0, end);
        topic_close(topic);
    }
    sc_topic *topic = topic_open_with(path, true, 24 << 10);
    check_records(topic, 0, 0, end);
    topic_close(topic);
    folder_remove(path);
}

/* ---- waiting across processes --------------------------------------------------------------------------------- */

static void append_when_told(void)
{
    sc_topic *topic = topic_open(path, true);
    for (int64_t i = 0; i < 3; i++) {
        hear_parent();
        append_records(topic, 0, i, 1);
    }
    hear_parent();
    topic_close(topic);
}

static void test_a_waiter_is_woken_by_another_process(void)
{
    folder_make(path);
    child other = start(append_when_told);
    sc_topic *writer = topic_open(path, true), *reader = topic_open(path, false);
    uint32_t partition = 0;
    sc_error error;
    for (int64_t i = 0; i < 3; i++) {
        CHECK_EQ(sc_topic_wait(writer, &partition, &i, 1, false, 5, &error), SC_END);
        tell(other.to);
        CHECK_OK(sc_topic_wait(i % 2 == 0 ? writer : reader, &partition, &i, 1, false, -1, &error), error);
        CHECK_EQ(end_of(reader, 0), i + 1);
    }
    tell(other.to);
    finish(&other, false);
    topic_close(writer);
    topic_close(reader);
    folder_remove(path);
}

/* ---- forks ------------------------------------------------------------------------------------------------- */

static sc_topic *forked_topic, *forked_reader;
static sc_scan *forked_scan;

static void use_after_fork(void)
{
    sc_topic *both[] = {forked_topic, forked_reader};
    for (int i = 0; i < 2; i++) {
        sc_partition_info info;
        sc_segment_info segment;
        sc_error error;
        int64_t next, offset = 0;
        uint32_t partition = 0;
        CHECK_EQ(try_append(both[i], 0, 10, 1, 1, false, &error), SC_FORKED);
        CHECK(strstr(error.message, "fork") != NULL);
        CHECK_EQ(try_read(both[i], 0, 0, 10, &next, &error), SC_FORKED);
        CHECK_EQ(sc_partition_describe(both[i], 0, false, &info, &error), SC_FORKED);
        CHECK_EQ(sc_partition_segment(both[i], 0, 0, &segment, &error), SC_FORKED);
        CHECK_EQ(sc_partition_flush(both[i], 0, &error), SC_FORKED);
        CHECK_EQ(sc_topic_flush(both[i], &error), SC_FORKED);
        CHECK_EQ(sc_topic_wait(both[i], &partition, &offset, 1, false, 0, &error), SC_FORKED);
    }
    sc_batch batch;
    sc_error error;
    CHECK_EQ(sc_scan_next(forked_scan, &batch, &error), SC_FORKED);
    sc_scan_free(forked_scan);
    topic_close(forked_topic);
    topic_close(forked_reader);
    sc_topic *own = topic_open(path, true);
    check_records(own, 0, 0, 10);
    append_records(own, 0, 10, 10);
    tell_parent();
    hear_parent();
    topic_close(own);
}

static void test_a_handle_from_before_a_fork_is_refused_and_harms_nobody(void)
{
    folder_make(path);
    forked_topic = topic_open(path, true);
    forked_reader = topic_open(path, false);
    append_records(forked_topic, 0, 0, 10);
    sc_range range = {0, 0, 10};
    sc_scan_options options = {
        .ranges = &range, .range_count = 1, .min_timestamp = INT64_MIN, .max_timestamp = INT64_MAX, .limit = -1};
    sc_error error;
    CHECK_OK(sc_scan_open(forked_topic, &options, &forked_scan, &error), error);
    child other = start(use_after_fork);
    hear(other.from);
    check_records(forked_topic, 0, 0, 20);
    append_records(forked_topic, 0, 20, 10); /* the child gave up no lock of ours */
    tell(other.to);
    finish(&other, false);
    sc_topic *reader = topic_open(path, false);
    CHECK_EQ(end_of(reader, 0), 30);
    topic_close(reader);
    sc_scan_free(forked_scan);
    topic_close(forked_topic);
    topic_close(forked_reader);
    check_log(path, 30);
    folder_remove(path);
}

/* A child that lives on, and never heard of us, must not keep our locks. */
static void test_a_child_does_not_inherit_locks(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_partition *partition;
    sc_error error;
    append_records(topic, 0, 0, 10);
    CHECK_OK(sc_topic_partition(topic, 0, &partition, &error), error);
    CHECK_OK(sc_partition_lock(partition, &error), error);
    child other = start(tell_and_sleep);
    hear(other.from);
    sc_partition_unlock(partition);
    topic_close(topic);
    topic = topic_open(path, false);
    CHECK(!sc_state_is_live(&topic->state, 0));
    topic_close(topic);
    check_log(path, 10);
    finish(&other, true);
    folder_remove(path);
}

/* ---- closing ------------------------------------------------------------------------------------------------ */

static int cut_and_die(int fd, int64_t size)
{
    CHECK(ftruncate(fd, (off_t)size) == 0);
    raise(SIGKILL);
    return -1;
}

static void append_and_die_while_closing(void)
{
    sc_topic *topic = topic_open(path, true);
    append_records(topic, 0, 0, 100);
    sc_os.truncate = cut_and_die;
    topic_close(topic);
}

static void test_killed_while_it_cuts_the_preallocated_end_a_writer_harms_no_other(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    child other = start(append_and_die_while_closing);
    char nothing;
    CHECK(read(other.from, &nothing, 1) == 0); /* it is dead */
    finish(&other, true);
    append_records(topic, 0, 100, 300);
    check_records(topic, 0, 0, 400);
    topic_close(topic);
    check_log(path, 400);
}

int main(int argc, char **argv)
{
    RUN(test_a_process_that_only_reads_notices_forks_and_faults_too);
    RUN(test_appends_of_two_processes_interleave_and_are_seen_at_once);
    RUN(test_concurrent_appends_of_processes_lose_and_mix_nothing);
    RUN(test_a_killed_process_gives_its_lock_back_at_once);
    RUN(test_an_append_that_was_killed_is_cleared_by_the_next_one);
    RUN(test_who_asks_for_the_end_is_told_of_what_the_dead_had_stored);
    RUN(test_the_log_of_a_killed_only_writer_is_found_whole);
    RUN(test_killed_while_it_cuts_the_preallocated_end_a_writer_harms_no_other);
    RUN(test_killed_at_any_moment_every_acknowledged_append_is_there);
    RUN(test_a_waiter_is_woken_by_another_process);
    RUN(test_a_handle_from_before_a_fork_is_refused_and_harms_nobody);
    RUN(test_a_child_does_not_inherit_locks);
    return 0;
}
