#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "os.h"
#include "plain_topic.h"
#include "state.h"

static char path[FOLDER_MAX], file[FILE_MAX];

static int try_open(sc_state *state, bool writable, uint32_t partitions, sc_error *error)
{
    return sc_state_open(state, path, writable, partitions, GENERATION, error);
}

static sc_state open_state(bool writable, uint32_t partitions)
{
    sc_state state;
    sc_error error;
    CHECK_OK(try_open(&state, writable, partitions, &error), error);
    return state;
}

static void make_folder(void)
{
    folder_make(path);
    snprintf(file, sizeof file, "%s/state", path);
}

static sc_tail tail_of(int64_t number)
{
    return (sc_tail){number, number, number, number, number, number, number, number, number, number, number, number};
}

/* ---- slots ------------------------------------------------------------------------------------------------- */

static void test_a_published_tail_is_read_by_everyone(void)
{
    make_folder();
    sc_state writer = open_state(true, 4), other = open_state(true, 4), reader = open_state(false, 4);
    sc_tail tail, wanted = tail_of(7);
    CHECK(!sc_slot_read(sc_state_slot(&writer, 2), &tail));
    sc_slot_publish(sc_state_slot(&writer, 2), &wanted);
    CHECK(sc_slot_read(sc_state_slot(&other, 2), &tail) && memcmp(&tail, &wanted, sizeof tail) == 0);
    CHECK(sc_slot_read(sc_state_slot(&reader, 2), &tail) && memcmp(&tail, &wanted, sizeof tail) == 0);
    CHECK(!sc_slot_read(sc_state_slot(&reader, 1), &tail));
    sc_state_close(&writer, false);
    sc_state_close(&other, false);
    sc_state_close(&reader, false);
    folder_remove(path);
}

static void test_the_version_never_becomes_that_of_an_unknown_log(void)
{
    make_folder();
    sc_state state = open_state(true, 1);
    sc_slot *slot = sc_state_slot(&state, 0);
    sc_tail tail;
    atomic_store(&slot->version, UINT32_MAX - 3);
    for (int64_t i = 0; i < 10; i++) {
        sc_tail wanted = tail_of(i);
        sc_slot_publish(slot, &wanted);
        CHECK(sc_slot_read(slot, &tail) && tail.end_offset == i);
    }
    sc_state_close(&state, false);
    folder_remove(path);
}

static sc_slot *shared_slot;
static atomic_bool stop;

static void *publish_for_ever(void *unused)
{
    for (int64_t i = 1; !atomic_load(&stop); i++) {
        sc_tail tail = tail_of(i);
        sc_slot_publish(shared_slot, &tail);
    }
    return unused;
}

static void test_a_tail_is_never_read_torn(void)
{
    make_folder();
    sc_state state = open_state(true, 1), other = open_state(true, 1);
    sc_tail tail;
    shared_slot = sc_state_slot(&state, 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, publish_for_ever, NULL) == 0);
    int64_t before = 0;
    for (int i = 0; i < 1000000;) {
        if (!sc_slot_read(sc_state_slot(&other, 0), &tail))
            continue;
        CHECK(tail.start_offset == tail.schema_version && tail.end_offset == tail.allocated &&
              tail.start_offset == tail.end_offset && tail.sealed == tail.segment_base);
        CHECK(tail.end_offset >= before);
        before = tail.end_offset;
        i++;
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    sc_state_close(&state, false);
    sc_state_close(&other, false);
    folder_remove(path);
}

static void publish_two_more(int number)
{
    static int64_t count;
    (void)number;
    for (int i = 0; i < 2; i++) {
        sc_tail tail = tail_of(++count);
        sc_slot_publish(shared_slot, &tail);
    }
}

/* However few processors there are: a timer stops the reader anywhere, and writes both copies. */
static void test_a_tail_is_not_torn_where_its_reader_is_interrupted(void)
{
    make_folder();
    sc_state state = open_state(true, 1);
    sc_tail tail;
    shared_slot = sc_state_slot(&state, 0);
    publish_two_more(0);
    struct sigaction action = {.sa_handler = publish_two_more}, before;
    struct itimerval often = {{0, 50}, {0, 50}}, never = {{0, 0}, {0, 0}};
    CHECK(sigaction(SIGALRM, &action, &before) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
    do {
        CHECK(sc_slot_read(shared_slot, &tail));
        CHECK(tail.start_offset == tail.schema_version && tail.end_offset == tail.allocated &&
              tail.start_offset == tail.end_offset && tail.sealed == tail.segment_base);
    } while (tail.end_offset < 4000);
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0 && sigaction(SIGALRM, &before, NULL) == 0);
    sc_state_close(&state, false);
    folder_remove(path);
}

/* ---- who may believe what ------------------------------------------------------------------------------------ */

static void test_the_file_is_believed_only_while_a_writer_has_it_open(void)
{
    make_folder();
    sc_state writer = open_state(true, 4), reader = open_state(false, 4);
    CHECK(sc_state_is_live(&writer, 0) && sc_state_is_live(&reader, 3));
    CHECK(!sc_state_is_live(&reader, 5000)); /* beyond the file */
    sc_state other = open_state(true, 4);
    sc_state_close(&writer, false);
    CHECK(sc_state_is_live(&reader, 0));
    sc_state_close(&other, false);
    CHECK(!sc_state_is_live(&reader, 0));
    sc_state_close(&reader, false);
    folder_remove(path);
}

static void test_the_first_writer_wipes_all_slots_and_the_second_none(void)
{
    make_folder();
    sc_state state = open_state(true, 100);
    sc_tail tail = tail_of(3);
    for (uint32_t i = 0; i < 100; i++)
        sc_slot_publish(sc_state_slot(&state, i), &tail);
    atomic_store(&sc_state_slot(&state, 1)->poisoned, 5);
    sc_state_close(&state, false);
    state = open_state(true, 2); /* knows of two partitions only */
    sc_state other = open_state(true, 100);
    for (uint32_t i = 0; i < 100; i++)
        CHECK(!sc_slot_read(sc_state_slot(&other, i), &tail));
    CHECK_EQ(atomic_load(&sc_state_slot(&other, 1)->poisoned), 0);
    tail = tail_of(4);
    sc_slot_publish(sc_state_slot(&state, 1), &tail);
    sc_state third = open_state(true, 2);
    CHECK(sc_slot_read(sc_state_slot(&third, 1), &tail) && tail.end_offset == 4);
    sc_state_close(&state, false);
    sc_state_close(&other, false);
    sc_state_close(&third, false);
    folder_remove(path);
}

static void test_the_boot_of_each_partition_survives_the_wipe(void)
{
    make_folder();
    sc_state state = open_state(true, 40);
    for (uint32_t i = 0; i < 40; i++)
        CHECK(sc_state_is_same_boot(&state, i));
    sc_state_close(&state, false);
    pretend_power_loss(path);
    for (int round = 0; round < 2; round++) {
        state = open_state(true, 40);
        for (uint32_t i = 0; i < 40; i++)
            CHECK_EQ(sc_state_is_same_boot(&state, i), round == 1 && i == 33);
        sc_state_set_boot(&state, 33);
        sc_state_close(&state, false);
    }
    file_zero(file, 0, 8); /* not a state file: nothing in it is known */
    state = open_state(true, 40);
    CHECK(!sc_state_is_same_boot(&state, 33));
    sc_state_close(&state, false);
    folder_remove(path);
}

static int syncs;
static int (*real_sync)(int fd);
static int counting_sync(int fd)
{
    syncs++;
    return real_sync(fd);
}

/* Else a power loss could take it and leave the log: then nothing would tell that there was a power loss. */
static void test_a_new_state_file_is_synced_with_its_name(void)
{
    make_folder();
    real_sync = sc_os.sync;
    sc_os.sync = counting_sync;
    for (int round = 0; round < 2; round++) {
        sc_state state = open_state(true, 1);
        sc_state_close(&state, false);
        CHECK_EQ(syncs, 2);
    }
    sc_os_reset();
    folder_remove(path);
}

static void test_growing_makes_room_for_more_partitions(void)
{
    make_folder();
    sc_state state = open_state(true, 1), reader = open_state(false, 1);
    sc_error error;
    sc_tail tail = tail_of(8);
    CHECK(!sc_state_is_live(&reader, 999));
    CHECK_OK(sc_state_grow(&state, 1000, &error), error);
    sc_slot_publish(sc_state_slot(&state, 999), &tail);
    CHECK(sc_state_is_live(&reader, 999) && sc_slot_read(sc_state_slot(&reader, 999), &tail) && tail.end_offset == 8);
    sc_state_close(&state, false);
    sc_state_close(&reader, false);
    folder_remove(path);
}

/* ---- an opener that dies ------------------------------------------------------------------------------------- */

static int (*real_lock)(int fd, int64_t byte, int kind, bool wait);
static int ready_pipe[2];

/* Stops for ever once the exclusive lock is taken and nothing was wiped yet. */
static int stopping_lock(int fd, int64_t byte, int kind, bool wait)
{
    int result = real_lock(fd, byte, kind, wait);
    if (byte == 0 && kind == SC_LOCK_EXCLUSIVE && result == 0) {
        CHECK(write(ready_pipe[1], "x", 1) == 1);
        for (;;)
            pause();
    }
    return result;
}

static sc_state late_states[2];

static void *open_late(void *state)
{
    sc_error error;
    CHECK_OK(try_open(state, true, 4, &error), error);
    return NULL;
}

static void test_a_writer_that_dies_before_it_wiped_leaves_that_to_the_next(void)
{
    make_folder();
    sc_state state = open_state(true, 4), reader = open_state(false, 4);
    sc_tail tail = tail_of(99);
    sc_slot_publish(sc_state_slot(&state, 0), &tail);
    sc_state_close(&state, false);
    CHECK(pipe(ready_pipe) == 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        real_lock = sc_os.lock;
        sc_os.lock = stopping_lock;
        open_state(true, 4);
        _exit(1);
    }
    char byte;
    CHECK(read(ready_pipe[0], &byte, 1) == 1);
    CHECK(!sc_state_is_live(&reader, 0)); /* it is not wiped yet */
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, open_late, &late_states[i]) == 0);
    usleep(20 * 1000); /* they wait for the one that will die; the test is right, if weaker, when they do not yet */
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) {
        CHECK(!sc_slot_read(sc_state_slot(&late_states[i], 0), &tail));
        sc_state_close(&late_states[i], false);
    }
    sc_state_close(&reader, false);
    close(ready_pipe[0]);
    close(ready_pipe[1]);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_a_published_tail_is_read_by_everyone);
    RUN(test_the_version_never_becomes_that_of_an_unknown_log);
    RUN(test_a_tail_is_never_read_torn);
    RUN(test_a_tail_is_not_torn_where_its_reader_is_interrupted);
    RUN(test_the_file_is_believed_only_while_a_writer_has_it_open);
    RUN(test_the_first_writer_wipes_all_slots_and_the_second_none);
    RUN(test_the_boot_of_each_partition_survives_the_wipe);
    RUN(test_a_new_state_file_is_synced_with_its_name);
    RUN(test_growing_makes_room_for_more_partitions);
    RUN(test_a_writer_that_dies_before_it_wiped_leaves_that_to_the_next);
    return 0;
}
