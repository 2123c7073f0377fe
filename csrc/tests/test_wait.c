/* Waits over topics and signals: what ends them, who pays for them, who dies in them. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "os.h"
#include "plain_topic.h"
#include "topic.h"

static char path[FOLDER_MAX];
static struct sc_os_table real;
static atomic_int wakes, sleeps;

static int counting_wake(uint32_t *word)
{
    atomic_fetch_add(&wakes, 1);
    return real.wake(word);
}

static int counting_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    atomic_fetch_add(&sleeps, 1);
    return real.wait(word, expected, timeout_ns);
}

static int counting_wait_any(const sc_wait_word *words, int count, int64_t timeout_ns)
{
    atomic_fetch_add(&sleeps, 1);
    return real.wait_any(words, count, timeout_ns);
}

static int no_wait_any(const sc_wait_word *words, int count, int64_t timeout_ns)
{
    (void)words, (void)count, (void)timeout_ns;
    errno = ENOSYS;
    return -1;
}

static void count_calls(void)
{
    real = sc_os;
    atomic_store(&wakes, 0);
    atomic_store(&sleeps, 0);
    sc_os.wake = counting_wake;
    sc_os.wait = counting_wait;
    sc_os.wait_any = counting_wait_any;
}

static void await_sleep(int count)
{
    for (int i = 0; atomic_load(&sleeps) < count; i++) {
        CHECK(i < 20000);
        usleep(1000);
    }
}

/* ---- a thread that waits ----------------------------------------------------------------------------------- */

enum { MANY = 140 };
static const uint32_t partition_0 = 0;

struct waiter {
    pthread_t thread;
    sc_wait waits[3];
    sc_watch watches[MANY];
    int64_t wait_count, watch_count, timeout_ms;
    int code;
};

static void *wait_for_it(void *argument)
{
    struct waiter *waiter = argument;
    sc_error error;
    waiter->code = sc_wait_many(waiter->waits, waiter->wait_count, waiter->watches, waiter->watch_count,
                                waiter->timeout_ms, &error);
    return NULL;
}

static void start(struct waiter *waiter)
{
    waiter->timeout_ms = -1;
    CHECK(pthread_create(&waiter->thread, NULL, wait_for_it, waiter) == 0);
}

static int end(struct waiter *waiter)
{
    pthread_join(waiter->thread, NULL);
    return waiter->code;
}

static const int64_t nothing_known = 0;

static sc_wait wait_on(sc_topic *topic, const int64_t *offset)
{
    return (sc_wait){topic, &partition_0, offset, 1, false};
}

static sc_signal *new_signal(void)
{
    sc_signal *signal;
    sc_error error;
    CHECK_OK(sc_signal_new(&signal, &error), error);
    return signal;
}

/* ---- signals ----------------------------------------------------------------------------------------------- */

static void test_a_signal_ends_a_wait_now_or_before_it_began(void)
{
    sc_signal *signal = new_signal();
    sc_error error;
    count_calls();
    struct waiter waiter = {.watches = {{signal, 0}}, .watch_count = 1};
    start(&waiter);
    await_sleep(1);
    sc_signal_raise(signal);
    CHECK_EQ(end(&waiter), SC_OK);
    sc_os_reset();
    CHECK_EQ(sc_signal_count(signal), 1);
    CHECK_EQ(sc_wait_many(NULL, 0, waiter.watches, 1, -1, &error), SC_OK);
    waiter.watches[0].seen = 1;
    CHECK_EQ(sc_wait_many(NULL, 0, waiter.watches, 1, 1, &error), SC_END);
    CHECK_EQ(sc_wait_many(NULL, 0, NULL, 0, 1, &error), SC_END);
    sc_signal_free(signal);
    sc_signal_free(NULL);
}

static void test_a_signal_in_a_file_is_seen_by_other_processes_and_not_written_by_readers(void)
{
    char file[FILE_MAX];
    sc_signal *signal, *reader, *none;
    sc_error error;
    folder_make(path);
    snprintf(file, sizeof file, "%s/signal", path);
    CHECK_EQ(sc_signal_open(file, false, &none, &error), SC_OS);
    CHECK_EQ(error.number, ENOENT);
    CHECK_OK(sc_signal_open(file, true, &signal, &error), error);
    CHECK_OK(sc_signal_open(file, false, &reader, &error), error);
    count_calls();
    struct waiter waiters[] = {{.watches = {{signal, 0}}, .watch_count = 1},
                               {.watches = {{reader, 0}}, .watch_count = 1}};
    start(&waiters[0]);
    start(&waiters[1]);
    await_sleep(2);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        sc_signal *own;
        if (sc_signal_open(file, true, &own, &error) != SC_OK)
            _exit(1);
        sc_signal_raise(own);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_EQ(end(&waiters[0]), SC_OK);
    CHECK_EQ(end(&waiters[1]), SC_OK);
    sc_os_reset();
    sc_signal_raise(reader);
    CHECK_EQ(sc_signal_count(signal), 1);
    sc_signal_free(signal);
    sc_signal_free(reader);
    file_truncate(file, 100);
    CHECK_EQ(sc_signal_open(file, false, &none, &error), SC_OS);
    folder_remove(path);
}

/* ---- several topics ---------------------------------------------------------------------------------------- */

static void open_topics(sc_topic *topics[3], char folders[3][FOLDER_MAX])
{
    for (int i = 0; i < 3; i++) {
        folder_make(folders[i]);
        topics[i] = topic_open(folders[i], true);
    }
}

static void close_topics(sc_topic *topics[3], char folders[3][FOLDER_MAX])
{
    for (int i = 0; i < 3; i++) {
        topic_close(topics[i]);
        folder_remove(folders[i]);
    }
}

static void check_each_topic_ends_a_wait(int signals)
{
    static char folders[3][FOLDER_MAX];
    sc_topic *topics[3];
    sc_signal *signal = new_signal();
    open_topics(topics, folders);
    count_calls();
    if (signals < 0)
        real.wait_any = no_wait_any;
    for (int i = 0; i < 3; i++) {
        static int64_t known[3];
        struct waiter waiter = {.wait_count = 3, .watch_count = signals < 0 ? 1 : signals};
        for (int j = 0; j < 3; j++) {
            known[j] = end_of(topics[j], 0);
            waiter.waits[j] = wait_on(topics[j], &known[j]);
        }
        for (int j = 0; j < waiter.watch_count; j++)
            waiter.watches[j] = (sc_watch){signal, 0};
        int before = atomic_load(&sleeps);
        start(&waiter);
        await_sleep(before + 1);
        append_records(topics[i], 0, 0, 1);
        CHECK_EQ(end(&waiter), SC_OK);
    }
    sc_os_reset();
    close_topics(topics, folders);
    sc_signal_free(signal);
}

static void test_an_append_to_any_of_several_topics_ends_a_wait(void)
{
    check_each_topic_ends_a_wait(1);
}

static void test_more_bells_than_the_system_waits_for_are_looked_at_from_time_to_time(void)
{
    check_each_topic_ends_a_wait(SC_WAIT_WORDS_MAX);
    check_each_topic_ends_a_wait(MANY);
}

static void test_where_the_system_waits_for_one_word_all_are_looked_at_from_time_to_time(void)
{
    check_each_topic_ends_a_wait(-1);
}

static void test_closing_one_of_several_topics_ends_a_wait(void)
{
    static char folders[3][FOLDER_MAX];
    sc_topic *topics[3];
    sc_error error;
    open_topics(topics, folders);
    count_calls();
    struct waiter waiter = {.wait_count = 3};
    for (int j = 0; j < 3; j++)
        waiter.waits[j] = wait_on(topics[j], &nothing_known);
    start(&waiter);
    await_sleep(1);
    CHECK_OK(sc_topic_close(topics[1], &error), error);
    CHECK_EQ(end(&waiter), SC_CLOSED);
    CHECK(atomic_load(&wakes) > 0); /* and not because a sleep is bounded */
    CHECK_EQ(sc_wait_many(waiter.waits, 3, NULL, 0, -1, &error), SC_CLOSED);
    sc_os_reset();
    close_topics(topics, folders);
}

static void handle(int number)
{
    (void)number;
}

static void test_a_handled_signal_ends_a_wait_early(void)
{
    struct sigaction action = {.sa_handler = handle};
    sigaction(SIGUSR1, &action, NULL);
    sc_signal *signal = new_signal();
    count_calls();
    struct waiter waiter = {.watches = {{signal, 0}, {signal, 0}}, .watch_count = 2};
    start(&waiter);
    await_sleep(1);
    while (pthread_kill(waiter.thread, SIGUSR1) == 0 && pthread_tryjoin_np(waiter.thread, NULL) != 0)
        usleep(1000); /* the first may come before it sleeps */
    sc_os_reset();
    CHECK_EQ(waiter.code, SC_END);
    sc_signal_free(signal);
}

/* ---- who pays ---------------------------------------------------------------------------------------------- */

static void test_an_append_makes_no_wake_up_call_when_nobody_sleeps(void)
{
    folder_make(path);
    sc_topic *writer = topic_open(path, true), *other = topic_open(path, true);
    count_calls();
    append_records(writer, 0, 0, 1);
    CHECK_EQ(atomic_load(&wakes), 0);
    int64_t known = 1;
    struct waiter waiter = {.waits = {wait_on(other, &known)}, .wait_count = 1};
    start(&waiter);
    await_sleep(1);
    append_records(writer, 0, 1, 1);
    CHECK_EQ(end(&waiter), SC_OK);
    CHECK_EQ(atomic_load(&wakes), 1);
    append_records(writer, 0, 2, 1);
    CHECK_EQ(atomic_load(&wakes), 1);
    sc_os_reset();
    topic_close(writer);
    topic_close(other);
    folder_remove(path);
}

static void test_a_reader_that_waits_is_woken_by_a_call(void)
{
    folder_make(path);
    sc_topic *writer = topic_open(path, true), *reader = topic_open(path, false);
    count_calls();
    int64_t known = 0;
    for (int round = 0; round < 3; round++) {
        struct waiter waiter = {.waits = {wait_on(reader, &known)}, .wait_count = 1};
        int before = atomic_load(&sleeps);
        start(&waiter);
        await_sleep(before + 1);
        usleep(2000); /* writers may ask once in a millisecond */
        append_records(writer, 0, known, 1);
        CHECK_EQ(end(&waiter), SC_OK);
        known++;
        CHECK_EQ(atomic_load(&wakes), round + 1);
    }
    sc_os_reset();
    topic_close(reader);
    topic_close(writer);
    folder_remove(path);
}

static void wait_for_ever(void)
{
#if defined(__linux__)
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    sc_topic *topic = topic_open(path, true);
    sc_error error;
    sc_wait wait = wait_on(topic, &(int64_t){INT64_MAX});
    sc_wait_many(&wait, 1, NULL, 0, -1, &error);
    _exit(1);
}

static void test_a_waiter_that_was_killed_costs_one_call_and_harms_no_other(void)
{
    folder_make(path);
    sc_topic *writer = topic_open(path, true);
    sc_bell *bell = &sc_state_header_of(&writer->state)->bell;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        wait_for_ever();
    for (int i = 0; atomic_load(&bell->asleep) == 0; i++) {
        CHECK(i < 20000);
        usleep(1000);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    count_calls();
    int64_t known = 0;
    struct waiter waiter = {.waits = {wait_on(writer, &known)}, .wait_count = 1};
    start(&waiter);
    await_sleep(1);
    append_records(writer, 0, 0, 1);
    CHECK_EQ(end(&waiter), SC_OK);
    for (int i = 1; i < 10; i++)
        append_records(writer, 0, i, 1);
    CHECK_EQ(atomic_load(&wakes), 1);
    sc_os_reset();
    topic_close(writer);
    folder_remove(path);
}

static sc_topic *appended_to;
static int clock_calls;

/* The clock is asked when a wait begins, and then between looking and sleeping. */
static int64_t clock_that_appends(void)
{
    if (++clock_calls == 2)
        append_records(appended_to, 0, 0, 1);
    return real.monotonic_ns();
}

static int wait_that_must_not_sleep(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    CHECK(__atomic_load_n(word, __ATOMIC_SEQ_CST) != expected);
    return counting_wait(word, expected, timeout_ns);
}

static void test_what_comes_between_looking_and_sleeping_ends_the_sleep(void)
{
    folder_make(path);
    sc_topic *writer = topic_open(path, true), *other = topic_open(path, true);
    sc_error error;
    sc_wait wait = wait_on(other, &nothing_known);
    append_records(writer, 1, 0, 1); /* from now on whether a reader waits is known for a while */
    count_calls();
    appended_to = writer;
    clock_calls = 0;
    sc_os.monotonic_ns = clock_that_appends;
    sc_os.wait = wait_that_must_not_sleep;
    CHECK_OK(sc_wait_many(&wait, 1, NULL, 0, 20000, &error), error);
    sc_os_reset();
    CHECK_EQ(atomic_load(&sleeps), 1);
    topic_close(writer);
    topic_close(other);
    folder_remove(path);
}

static void *append_thousands(void *argument)
{
    for (int i = 0; i < 3000; i++)
        append_records(argument, 0, i, 1);
    return NULL;
}

static void test_no_wake_up_is_lost_between_looking_and_sleeping(void)
{
    folder_make(path);
    sc_topic *writer = topic_open(path, true), *other = topic_open(path, true);
    pthread_t thread;
    sc_error error;
    int64_t known = 0;
    count_calls();
    CHECK(pthread_create(&thread, NULL, append_thousands, writer) == 0);
    while (known < 3000) {
        sc_wait wait = wait_on(other, &known);
        int64_t start_ns = sc_os.monotonic_ns();
        CHECK_OK(sc_wait_many(&wait, 1, NULL, 0, -1, &error), error);
        CHECK(sc_os.monotonic_ns() - start_ns < INT64_C(20000000000));
        known = end_of(other, 0);
    }
    pthread_join(thread, NULL);
    sc_os_reset();
    topic_close(writer);
    topic_close(other);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_a_signal_ends_a_wait_now_or_before_it_began);
    RUN(test_a_signal_in_a_file_is_seen_by_other_processes_and_not_written_by_readers);
    RUN(test_an_append_to_any_of_several_topics_ends_a_wait);
    RUN(test_more_bells_than_the_system_waits_for_are_looked_at_from_time_to_time);
    RUN(test_where_the_system_waits_for_one_word_all_are_looked_at_from_time_to_time);
    RUN(test_closing_one_of_several_topics_ends_a_wait);
    RUN(test_a_handled_signal_ends_a_wait_early);
    RUN(test_an_append_makes_no_wake_up_call_when_nobody_sleeps);
    RUN(test_a_reader_that_waits_is_woken_by_a_call);
    RUN(test_a_waiter_that_was_killed_costs_one_call_and_harms_no_other);
    RUN(test_what_comes_between_looking_and_sleeping_ends_the_sleep);
    RUN(test_no_wake_up_is_lost_between_looking_and_sleeping);
    return 0;
}
