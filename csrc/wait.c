/*
 * Waiting: for records of one or many topics, and for signals.
 *
 * Every topic's `state` file has a bell that rings with each append, and every signal is one. A wait remembers how
 * often its bells rang, looks at the ends of the logs and the counts of the signals, says that it sleeps, and sleeps
 * unless one of the bells rang since. A bell is a hint: who appended may have died before it rang, so every sleep is
 * bounded, and what counts is what is seen when looking.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"
#include "topic.h"

enum {
    SLICE_LIVE_NS = 1000 * 1000 * 1000, /* who rings may have died before it did */
    SLICE_READER_NS = 50 * 1000 * 1000, /* a reader: the last writer may have left, and then nobody rings */
    SLICE_POLL_NS = 20 * 1000 * 1000,   /* more bells than the system can wait for */
    SIGNAL_BYTES = 4096,
};

struct sc_signal {
    sc_bell *bell;
    bool mapped, writable;
};

/* ---- signals ------------------------------------------------------------------------------------------------ */

int sc_signal_new(sc_signal **out, sc_error *error)
{
    sc_signal *signal = calloc(1, sizeof *signal);
    sc_bell *bell = calloc(1, sizeof *bell);
    if (signal == NULL || bell == NULL) {
        free(signal);
        free(bell);
        return sc_fail_memory(error);
    }
    *signal = (sc_signal){.bell = bell, .writable = true};
    *out = signal;
    return SC_OK;
}

static int map_signal(sc_signal *signal, int fd, const char *path, sc_error *error)
{
    sc_file_stat stat;
    if (sc_os.stat(fd, &stat) != 0)
        return sc_fail_os(error, "cannot look at the signal of a store", path);
    if (stat.size < SIGNAL_BYTES && (!signal->writable || sc_os.allocate(fd, 0, SIGNAL_BYTES) != 0))
        return sc_fail_os(error, "cannot make room for the signal of a store", path);
    signal->bell = sc_os.map(fd, SIGNAL_BYTES, signal->writable);
    return signal->bell == NULL ? sc_fail_os(error, "cannot map the signal of a store", path) : SC_OK;
}

int sc_signal_open(const char *path, bool writable, sc_signal **out, sc_error *error)
{
    sc_signal *signal = calloc(1, sizeof *signal);
    if (signal == NULL)
        return sc_fail_memory(error);
    *signal = (sc_signal){.mapped = true, .writable = writable};
    int fd = sc_os.open(path, writable ? SC_OPEN_CREATE_OR_WRITE : SC_OPEN_READ);
    int code = fd < 0 ? sc_fail_os(error, "cannot open the signal of a store", path) : SC_OK;
    if (code == SC_OK)
        code = map_signal(signal, fd, path, error);
    if (fd >= 0)
        sc_os.close(fd);
    if (code != SC_OK) {
        free(signal);
        return code;
    }
    *out = signal;
    return SC_OK;
}

uint32_t sc_signal_count(const sc_signal *signal)
{
    return atomic_load(&signal->bell->count);
}

void sc_signal_raise(sc_signal *signal)
{
    if (signal->writable)
        sc_bell_ring(signal->bell, false);
}

void sc_signal_free(sc_signal *signal)
{
    if (signal == NULL)
        return;
    if (signal->mapped)
        sc_os.unmap(signal->bell, SIGNAL_BYTES);
    else
        free(signal->bell);
    free(signal);
}

/* ---- sleeping ------------------------------------------------------------------------------------------------ */

typedef struct sleep_plan {
    sc_wait_word words[SC_WAIT_WORDS_MAX];
    sc_bell *bells[SC_WAIT_WORDS_MAX]; /* those of the words, NULL where we may not write */
    int count;
    bool overfull;
    int64_t slice_ns;
} sleep_plan;

static void shorten(sleep_plan *plan, int64_t slice_ns)
{
    if (slice_ns < plan->slice_ns)
        plan->slice_ns = slice_ns;
}

static void add_bell(sleep_plan *plan, sc_bell *bell, bool writable, uint32_t expected)
{
    if (!writable)
        shorten(plan, SLICE_READER_NS);
    if (plan->count == SC_WAIT_WORDS_MAX) {
        plan->overfull = true;
        return;
    }
    plan->bells[plan->count] = writable ? bell : NULL;
    plan->words[plan->count++] = (sc_wait_word){(uint32_t *)&bell->count, expected};
}

static void add_topic(sleep_plan *plan, sc_topic *topic)
{
    if (topic->state.data == NULL || !sc_state_is_live(&topic->state, 0)) {
        shorten(plan, SLICE_READER_NS);
        return;
    }
    sc_bell *bell = &sc_state_header_of(&topic->state)->bell;
    if (!topic->writable && sc_state_announce_reader(&topic->state))
        shorten(plan, 2 * SC_READERS_LOOK_NS);
    add_bell(plan, bell, topic->writable, atomic_load_explicit(&bell->count, memory_order_acquire));
}

/* Before anything is looked at: what rings from here on ends the sleep. */
static void plan_sleep(sleep_plan *plan, const sc_wait *waits, int64_t wait_count, const sc_watch *watches,
                       int64_t watch_count)
{
    plan->count = 0;
    plan->overfull = false;
    plan->slice_ns = SLICE_LIVE_NS;
    for (int64_t i = 0; i < watch_count; i++) /* first: signals are what is never left out */
        add_bell(plan, watches[i].signal->bell, watches[i].signal->writable, watches[i].seen);
    for (int64_t i = 0; i < wait_count; i++)
        add_topic(plan, waits[i].topic);
}

/* False when a signal handler ran. */
static bool sleep_by(const sleep_plan *plan, int64_t left_ns)
{
    static uint32_t nothing;
    int64_t limit = left_ns < plan->slice_ns ? left_ns : plan->slice_ns;
    int64_t poll = limit < SLICE_POLL_NS ? limit : SLICE_POLL_NS;
    int result;
    for (int i = 0; i < plan->count; i++)
        if (plan->bells[i] != NULL && !SC_CONTROL(sleep_not_announced))
            atomic_store(&plan->bells[i]->asleep, 1);
    if (plan->count == 0)
        result = sc_os.wait(&nothing, 0, limit);
    else if (plan->count == 1)
        result = sc_os.wait(plan->words[0].word, plan->words[0].expected, limit);
    else if (plan->overfull)
        result = sc_os.wait_any(plan->words, plan->count, poll);
    else
        result = sc_os.wait_any(plan->words, plan->count, limit);
    if (result < 0 && errno == ENOSYS) /* the last word: of a topic, if there is one */
        result = sc_os.wait(plan->words[plan->count - 1].word, plan->words[plan->count - 1].expected, poll);
    return result >= 0 || errno != EINTR;
}

/* ---- looking ------------------------------------------------------------------------------------------------- */

static int look_at_topic(const sc_wait *wait, bool *over, sc_error *error)
{
    for (int64_t i = 0; i < wait->count && !*over; i++) {
        sc_partition *partition;
        sc_tail tail;
        int code = sc_topic_partition(wait->topic, wait->partitions[i], &partition, error);
        if (code == SC_OK)
            code = sc_partition_tail(partition, &tail, error);
        if (code != SC_OK)
            return code;
        *over = (wait->stable ? tail.stable_offset : tail.end_offset) > wait->offsets[i];
    }
    if (*over)
        return SC_OK;
    if (sc_topic_is_deleted(wait->topic))
        return sc_fail(error, SC_DELETED, "the topic was deleted");
    if (atomic_load(&wait->topic->closing))
        return sc_fail(error, SC_CLOSED, "the topic was closed");
    return SC_OK;
}

static int look(const sc_wait *waits, int64_t wait_count, const sc_watch *watches, int64_t watch_count, bool *over,
                sc_error *error)
{
    *over = false;
    for (int64_t i = 0; i < watch_count && !*over; i++)
        *over = sc_signal_count(watches[i].signal) != watches[i].seen;
    int code = SC_OK;
    for (int64_t i = 0; i < wait_count && code == SC_OK && !*over; i++)
        code = look_at_topic(&waits[i], over, error);
    return code;
}

static int wait_inside(const sc_wait *waits, int64_t wait_count, const sc_watch *watches, int64_t watch_count,
                       int64_t timeout_ms, sc_error *error)
{
    int64_t now = sc_os.monotonic_ns();
    int64_t deadline = timeout_ms < 0 || timeout_ms > (INT64_MAX - now) / 1000000 ? -1 : now + timeout_ms * 1000000;
    sleep_plan plan;
    for (;;) {
        bool over;
        plan_sleep(&plan, waits, wait_count, watches, watch_count);
        int code = look(waits, wait_count, watches, watch_count, &over, error);
        if (code != SC_OK || over)
            return code;
        int64_t left = deadline < 0 ? INT64_MAX : deadline - sc_os.monotonic_ns();
        if (SC_CONTROL(wake_up_lost))
            plan_sleep(&plan, waits, wait_count, watches, watch_count);
        if (left <= 0 || !sleep_by(&plan, left))
            return SC_END;
    }
}

int sc_wait_many(const sc_wait *waits, int64_t wait_count, const sc_watch *watches, int64_t watch_count,
                 int64_t timeout_ms, sc_error *error)
{
    int code = SC_OK;
    int64_t entered = 0;
    while (entered < wait_count && (code = sc_topic_enter(waits[entered].topic, error)) == SC_OK)
        entered++;
    if (code == SC_OK)
        code = wait_inside(waits, wait_count, watches, watch_count, timeout_ms, error);
    while (entered > 0)
        sc_topic_leave(waits[--entered].topic);
    return code;
}

int sc_topic_wait(sc_topic *topic, const uint32_t *partitions, const int64_t *offsets, int64_t count, bool stable,
                  int64_t timeout_ms, sc_error *error)
{
    sc_wait wait = {topic, partitions, offsets, count, stable};
    return sc_wait_many(&wait, 1, NULL, 0, timeout_ms, error);
}
