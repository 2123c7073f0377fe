/*
 * Where a batch is, and who holds it:
 *
 *   open list    records are added to it; oldest first, and so in the order in which linger_ms ends
 *   ready        closed to records, in the order in which they were closed
 *   held         of a lane, behind a batch that is tried again
 *   retries      will be tried again at a time of their own
 *   the worker   while it appends, and while its caller sees to it
 *   unsynced     in the log, not durable yet: one sync serves all batches of a partition that lie here
 *   told         the worker's caller is to be told
 *   spare        empty, memory for the next one
 *
 * All but `spare` are also in the list of unfinished batches, by number: a flush waits until its oldest is a newer one.
 * The lists are behind the mutex; `unsynced` and `told` belong to the worker alone.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include "control.h"
#include "error.h"
#include "os.h"
#include "send_batch.h"

enum {
    NEWS_NS = 100 * 1000 * 1000,   /* how late the caller hears of appends */
    SPARE_NS = 1000 * 1000 * 1000, /* how long memory is kept when there is nothing to do */
    UNSYNCED_BYTES_MAX = 8 << 20,  /* appended before a sync */
};

/* For how many ticks of the processor's counter a time is good: less than 0.1 ms at the rates that there are, 1 to 5
 * GHz and 24 MHz to 1 GHz. */
#if defined(__x86_64__)
enum { CLOCK_TICKS = 100000 };
#elif defined(__aarch64__)
enum { CLOCK_TICKS = 2000 };
#else
enum { CLOCK_TICKS = 0 };
#endif

typedef struct batch_queue {
    sc_send_batch *first, *last;
} batch_queue;

struct sc_send_lane {
    sc_send_topic *topic;
    uint32_t partition;
    int32_t next_sequence;
    int64_t retrying; /* batches that are tried again */
    sc_send_batch *open;
    batch_queue held;
};

struct sc_send_topic {
    sc_send_buffer *buffer;
    sc_topic *topic;
    void *context;
    sc_send_plan plan;
    sc_send_lane **lanes;
    uint32_t sticky;
    atomic_bool appended;
    sc_send_topic *next;
};

struct sc_send_buffer {
    pthread_mutex_t mutex;
    sc_send_options options;
    uint32_t fork_generation;
    int64_t producer_id;
    int16_t epoch;
    sc_send_topic *topics;
    sc_send_room room;
    batch_queue spare, ready, retries;
    int64_t spare_bytes;
    sc_send_batch *oldest, *newest; /* unfinished */
    sc_send_batch *oldest_open, *newest_open;
    int64_t unfinished;
    int64_t next_number, flush_number; /* batches up to flush_number are due */
    uint64_t clock_ticks;              /* when clock_ms was read */
    int64_t clock_ms;
    int64_t starving; /* threads that wait for room */
    bool closing;
    bool sleeping;   /* the worker waits for work_word to change */
    int64_t waiters; /* for finished_word */
    _Atomic uint32_t work_word, finished_word;
    atomic_bool room_asked;
    /* the worker's own */
    batch_queue unsynced, told;
    int64_t unsynced_bytes, news_ns;
    bool news, room_news;
    sc_send_batch *left;
};

/* ---- queues ------------------------------------------------------------------------------------------------ */

static void push(batch_queue *queue, sc_send_batch *batch)
{
    batch->next = NULL;
    if (queue->last != NULL)
        queue->last->next = batch;
    else
        queue->first = batch;
    queue->last = batch;
}

static sc_send_batch *pop(batch_queue *queue)
{
    sc_send_batch *batch = queue->first;
    if (batch == NULL)
        return NULL;
    queue->first = batch->next;
    if (queue->first == NULL)
        queue->last = NULL;
    batch->next = NULL;
    return batch;
}

/* Puts all of `from` before what is in `to`. */
static void prepend(batch_queue *to, batch_queue *from)
{
    if (from->first == NULL)
        return;
    from->last->next = to->first;
    if (to->last == NULL)
        to->last = from->last;
    to->first = from->first;
    *from = (batch_queue){0};
}

static void link_unfinished(sc_send_buffer *self, sc_send_batch *batch)
{
    batch->older = self->newest;
    batch->newer = NULL;
    if (self->newest != NULL)
        self->newest->newer = batch;
    else
        self->oldest = batch;
    self->newest = batch;
    self->unfinished++;
}

static void unlink_unfinished(sc_send_buffer *self, sc_send_batch *batch)
{
    *(batch->older != NULL ? &batch->older->newer : &self->oldest) = batch->newer;
    *(batch->newer != NULL ? &batch->newer->older : &self->newest) = batch->older;
    self->unfinished--;
}

static void link_open(sc_send_buffer *self, sc_send_batch *batch)
{
    batch->open = true;
    batch->older_open = self->newest_open;
    batch->newer_open = NULL;
    if (self->newest_open != NULL)
        self->newest_open->newer_open = batch;
    else
        self->oldest_open = batch;
    self->newest_open = batch;
}

static void unlink_open(sc_send_buffer *self, sc_send_batch *batch)
{
    batch->open = false;
    *(batch->older_open != NULL ? &batch->older_open->newer_open : &self->oldest_open) = batch->newer_open;
    *(batch->newer_open != NULL ? &batch->newer_open->older_open : &self->newest_open) = batch->older_open;
    batch->lane->open = NULL;
}

/* ---- made and freed ---------------------------------------------------------------------------------------- */

int sc_send_buffer_new(const sc_send_options *options, sc_send_buffer **buffer, sc_error *error)
{
    sc_send_buffer *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sc_fail_memory(error);
    self->options = *options;
    self->room.limit = options->buffer_bytes;
    self->fork_generation = sc_os_fork_generation();
    self->next_number = 1;
    pthread_mutex_init(&self->mutex, NULL);
    *buffer = self;
    return SC_OK;
}

static void drop_spare(sc_send_buffer *self)
{
    for (sc_send_batch *batch; (batch = pop(&self->spare)) != NULL;)
        sc_send_batch_free(batch, &self->room);
    self->spare_bytes = 0;
}

static void topic_free(sc_send_topic *topic)
{
    for (uint32_t i = 0; i < topic->plan.partitions; i++)
        free(topic->lanes[i]);
    free((void *)topic->lanes);
    free(topic);
}

void sc_send_buffer_free(sc_send_buffer *self)
{
    if (self == NULL)
        return;
    for (sc_send_batch *batch = self->oldest, *newer; batch != NULL; batch = newer) {
        newer = batch->newer;
        sc_send_batch_free(batch, &self->room);
    }
    if (self->left != NULL)
        sc_send_batch_free(self->left, &self->room);
    drop_spare(self);
    for (sc_send_topic *topic = self->topics, *next; topic != NULL; topic = next) {
        next = topic->next;
        topic_free(topic);
    }
    if (!sc_send_buffer_is_forked(self))
        pthread_mutex_destroy(&self->mutex);
    free(self);
}

bool sc_send_buffer_is_forked(const sc_send_buffer *self)
{
    return self->fork_generation != sc_os_fork_generation();
}

void sc_send_buffer_identify(sc_send_buffer *self, int64_t producer_id, int16_t epoch)
{
    pthread_mutex_lock(&self->mutex);
    self->producer_id = producer_id;
    self->epoch = epoch;
    pthread_mutex_unlock(&self->mutex);
}

int64_t sc_send_buffer_producer_id(sc_send_buffer *self)
{
    pthread_mutex_lock(&self->mutex);
    int64_t id = self->producer_id;
    pthread_mutex_unlock(&self->mutex);
    return id;
}

int sc_send_buffer_add_topic(sc_send_buffer *self, sc_topic *topic, const sc_send_plan *plan, void *context,
                             sc_send_topic **added, sc_error *error)
{
    sc_send_topic *made = calloc(1, sizeof *made);
    sc_send_lane **lanes = calloc(plan->partitions, sizeof(sc_send_lane *));
    if (made == NULL || lanes == NULL) {
        free(made);
        free((void *)lanes);
        return sc_fail_memory(error);
    }
    made->buffer = self;
    made->topic = topic;
    made->context = context;
    made->plan = *plan;
    made->lanes = lanes;
    made->sticky =
        (uint32_t)sc_os.monotonic_ns() / 1000 % plan->partitions; /* producers do not all begin at the same one */
    pthread_mutex_lock(&self->mutex);
    made->next = self->topics;
    self->topics = made;
    pthread_mutex_unlock(&self->mutex);
    *added = made;
    return SC_OK;
}

int sc_send_topic_plan(sc_send_topic *topic, const sc_send_plan *plan, sc_error *error)
{
    int code = SC_OK;
    pthread_mutex_lock(&topic->buffer->mutex);
    uint32_t before = topic->plan.partitions;
    if (plan->partitions > before) {
        sc_send_lane **lanes = realloc((void *)topic->lanes, plan->partitions * sizeof(sc_send_lane *));
        if (lanes == NULL) {
            code = sc_fail_memory(error);
        } else {
            for (uint32_t i = before; i < plan->partitions; i++)
                lanes[i] = NULL;
            topic->lanes = lanes;
        }
    }
    if (code == SC_OK) {
        topic->plan = *plan;
        if (plan->partitions < before)
            topic->plan.partitions = before;
    }
    pthread_mutex_unlock(&topic->buffer->mutex);
    return code;
}

void *sc_send_topic_context(const sc_send_topic *topic)
{
    return topic->context;
}

bool sc_send_topic_take_appended(sc_send_topic *topic)
{
    return atomic_load(&topic->appended) && atomic_exchange(&topic->appended, false);
}

int32_t sc_send_topic_next_sequence(sc_send_topic *topic, uint32_t partition)
{
    int32_t sequence = 0;
    pthread_mutex_lock(&topic->buffer->mutex);
    if (partition < topic->plan.partitions && topic->lanes[partition] != NULL)
        sequence = topic->lanes[partition]->next_sequence;
    pthread_mutex_unlock(&topic->buffer->mutex);
    return sequence;
}

/* ---- adding ------------------------------------------------------------------------------------------------ */

/* With the mutex held; true: wake the worker when it is released. */
static bool rouse(sc_send_buffer *self)
{
    if (!self->sleeping)
        return false;
    self->sleeping = false;
    atomic_fetch_add(&self->work_word, 1);
    return true;
}

static void wake_worker(sc_send_buffer *self)
{
    sc_os.wake((uint32_t *)&self->work_word);
}

/* Closes a batch to records. */
static void seal(sc_send_buffer *self, sc_send_batch *batch)
{
    unlink_open(self, batch);
    push(&self->ready, batch);
}

static int lane_of(sc_send_topic *topic, uint32_t partition, sc_send_lane **lane, sc_error *error)
{
    *lane = topic->lanes[partition];
    if (*lane != NULL)
        return SC_OK;
    *lane = calloc(1, sizeof **lane);
    if (*lane == NULL)
        return sc_fail_memory(error);
    (*lane)->topic = topic;
    (*lane)->partition = partition;
    topic->lanes[partition] = *lane;
    return SC_OK;
}

static bool fits(const sc_send_buffer *self, const sc_send_batch *batch, int64_t bytes)
{
    return batch != NULL && batch->bytes + bytes <= self->options.batch_bytes && batch->count < SC_SEND_BATCH_ROWS_MAX;
}

/* The lane where a record goes. Without a key they stay in one partition until its batch is closed (KIP-480), then go
 * to the next one: in turn, where Kafka draws lots, so that none is left out. */
static int route(sc_send_buffer *self, sc_send_topic *topic, const sc_send_record *record, int64_t bytes,
                 sc_send_lane **lane, sc_error *error)
{
    uint32_t partitions = topic->plan.partitions;
    if (record->partition >= 0)
        return lane_of(topic, (uint32_t)record->partition, lane, error);
    if (partitions == 1)
        return lane_of(topic, 0, lane, error);
    if (record->key.data != NULL)
        return lane_of(topic, sc_partition_of_key(record->key.data, (size_t)record->key.size, partitions), lane, error);
    int code = lane_of(topic, topic->sticky, lane, error);
    if (code != SC_OK || fits(self, (*lane)->open, bytes))
        return code;
    if ((*lane)->open != NULL)
        seal(self, (*lane)->open);
    topic->sticky = (topic->sticky + 1) % partitions;
    return lane_of(topic, topic->sticky, lane, error);
}

static sc_send_batch *take_spare(sc_send_buffer *self)
{
    sc_send_batch *batch = self->spare.first; /* the one used last: pushed to the front */
    if (batch == NULL)
        return NULL;
    (void)pop(&self->spare);
    self->spare_bytes -= batch->memory;
    return batch;
}

static sc_send_batch *open_batch(sc_send_buffer *self, sc_send_lane *lane)
{
    sc_send_batch *batch = take_spare(self);
    if (batch == NULL)
        batch = sc_send_batch_new(&self->room);
    if (batch == NULL)
        return NULL;
    sc_send_batch_clear(batch);
    batch->lane = lane;
    batch->topic = lane->topic;
    batch->partition = lane->partition;
    batch->opened_ns = sc_os.monotonic_ns();
    batch->number = self->next_number++;
    lane->open = batch;
    link_open(self, batch);
    link_unfinished(self, batch);
    return batch;
}

/* A batch that was opened for a record that it cannot hold. */
static void discard(sc_send_buffer *self, sc_send_batch *batch)
{
    unlink_open(self, batch);
    unlink_unfinished(self, batch);
    sc_send_batch_free(batch, &self->room);
}

/* A record without a key looks for changed settings itself: those of the open batch may be from before. */
static int check_keyless(const sc_send_topic *topic, sc_error *error)
{
    if (sc_topic_generation(topic->topic) != topic->plan.generation)
        return sc_fail(error, SC_STALE, "the topic's settings changed");
    return topic->plan.needs_key ? sc_fail(error, SC_INVALID, "a record has no key; the topic is compacted") : SC_OK;
}

static int check_record(const sc_send_buffer *self, const sc_send_topic *topic, const sc_send_record *record,
                        int64_t bytes, sc_error *error)
{
    int64_t most = topic->plan.max_record_bytes;
    int64_t longest = record->key.size > record->value.size ? record->key.size : record->value.size;
    for (int64_t i = 0; i < record->header_count; i++) {
        const sc_send_header *header = &record->headers[i];
        longest = header->key.size > longest ? header->key.size : longest;
        longest = header->value.size > longest ? header->value.size : longest;
    }
    if (longest > most)
        return sc_fail(error, SC_TOO_LARGE, "a record of %lld bytes is above max_record_bytes (%lld)",
                       (long long)longest, (long long)most);
    if (bytes > SC_BATCH_BYTES_MAX - (1 << 20))
        return sc_fail(error, SC_TOO_LARGE, "a record of %lld bytes is above what a batch holds (2 GiB)",
                       (long long)bytes);
    if (bytes + SC_SEND_MEMORY_MIN > self->options.buffer_bytes)
        return sc_fail(error, SC_TOO_LARGE,
                       "a record of %lld bytes does not fit into the producer's buffer_bytes (%lld)", (long long)bytes,
                       (long long)self->options.buffer_bytes);
    if (record->partition >= (int64_t)topic->plan.partitions)
        return sc_fail(error, SC_RANGE, "there are partitions 0 to %u", (unsigned)topic->plan.partitions - 1);
    return record->key.data == NULL ? check_keyless(topic, error) : SC_OK;
}

/* Reserves memory in the lane's open batch, or in a new one. */
static int find_place(sc_send_buffer *self, sc_send_lane *lane, const sc_send_record *record, int64_t bytes,
                      bool *rouses, sc_error *error)
{
    if (lane->open != NULL && !fits(self, lane->open, bytes)) {
        seal(self, lane->open);
        *rouses = true;
    }
    bool opened = lane->open == NULL;
    if (opened) {
        if (sc_topic_is_deleted(lane->topic->topic) ||
            sc_topic_generation(lane->topic->topic) != lane->topic->plan.generation)
            return sc_fail(error, SC_STALE, "the topic's settings changed");
        *rouses = *rouses || self->oldest_open == NULL;
    }
    int code = SC_END;
    if (!opened || open_batch(self, lane) != NULL)
        code = sc_send_batch_reserve(lane->open, &self->room, record);
    while (code == SC_END && self->spare.first != NULL) {
        sc_send_batch_free(take_spare(self), &self->room);
        if (lane->open != NULL || open_batch(self, lane) != NULL)
            code = sc_send_batch_reserve(lane->open, &self->room, record);
    }
    if (code != SC_OK && opened && lane->open != NULL)
        discard(self, lane->open);
    return code == SC_MEMORY ? sc_fail_memory(error) : code;
}

static uint64_t ticks(void)
{
#if defined(__x86_64__)
    return __rdtsc();
#elif defined(__aarch64__)
    uint64_t value;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
    return value;
#else
    return 0;
#endif
}

/* Milliseconds since 1970, at most 0.1 ms old: reading the clock takes longer than all else that a record needs here. A
 * counter that jumps, or differs between cores, only has it read sooner. */
static int64_t recent_ms(sc_send_buffer *self)
{
    uint64_t now = ticks();
    if (now - self->clock_ticks >= CLOCK_TICKS || self->clock_ms == 0) {
        self->clock_ms = sc_os.now_ms();
        self->clock_ticks = now;
    }
    return self->clock_ms;
}

static int add_locked(sc_send_buffer *self, sc_send_topic *topic, const sc_send_record *record, bool *rouses,
                      sc_error *error)
{
    int64_t bytes = sc_send_record_bytes(record);
    sc_send_lane *lane;
    if (self->closing)
        return sc_fail(error, SC_CLOSED, "the producer is closed");
    int code = check_record(self, topic, record, bytes, error);
    if (code == SC_OK)
        code = route(self, topic, record, bytes, &lane, error);
    if (code == SC_OK)
        code = find_place(self, lane, record, bytes, rouses, error);
    if (code != SC_OK)
        return code;
    int64_t timestamp = record->timestamp;
    if (!record->has_timestamp && !topic->plan.log_append_time)
        timestamp = recent_ms(self);
    sc_send_batch_put(lane->open, &self->room, record, timestamp);
    if (lane->open->bytes >= self->options.batch_bytes) {
        seal(self, lane->open);
        *rouses = true;
    }
    return SC_OK;
}

int sc_send_buffer_add(sc_send_buffer *self, sc_send_topic *topic, const sc_send_record *record, sc_error *error)
{
    bool rouses = false;
    if (sc_send_buffer_is_forked(self))
        return sc_fail(error, SC_FORKED, "this producer was made before a fork: make another in the child process");
    pthread_mutex_lock(&self->mutex);
    int code = add_locked(self, topic, record, &rouses, error);
    rouses = rouses && rouse(self);
    pthread_mutex_unlock(&self->mutex);
    if (rouses)
        wake_worker(self);
    return code;
}

/* ---- waiting ----------------------------------------------------------------------------------------------- */

static int64_t end_of_wait(int64_t timeout_ms)
{
    return timeout_ms < 0 ? INT64_MAX : sc_os.monotonic_ns() + timeout_ms * 1000000;
}

/* With the mutex held, which it gives back meanwhile: waits until a batch is finished. False when the time is over. */
static bool wait_finished(sc_send_buffer *self, int64_t end_ns)
{
    int64_t left = end_ns == INT64_MAX ? -1 : end_ns - sc_os.monotonic_ns();
    if (end_ns != INT64_MAX && left <= 0)
        return false;
    uint32_t seen = atomic_load(&self->finished_word);
    self->waiters++;
    pthread_mutex_unlock(&self->mutex);
    sc_os.wait((uint32_t *)&self->finished_word, seen, left);
    pthread_mutex_lock(&self->mutex);
    self->waiters--;
    return true;
}

static bool wakes_waiters(sc_send_buffer *self)
{
    atomic_fetch_add(&self->finished_word, 1);
    return self->waiters > 0;
}

int sc_send_buffer_wait_room(sc_send_buffer *self, int64_t bytes, int64_t timeout_ms)
{
    int64_t end_ns = end_of_wait(timeout_ms);
    int code = SC_OK;
    pthread_mutex_lock(&self->mutex);
    self->starving++;
    if (rouse(self))
        wake_worker(self);
    while (code == SC_OK && self->room.limit - self->room.used + self->spare_bytes < bytes + SC_SEND_MEMORY_MIN) {
        if (self->closing)
            code = SC_CLOSED;
        else if (!wait_finished(self, end_ns))
            code = SC_END;
    }
    self->starving--;
    pthread_mutex_unlock(&self->mutex);
    return code;
}

void sc_send_buffer_ask_room(sc_send_buffer *self)
{
    atomic_store(&self->room_asked, true);
    (void)sc_send_buffer_flush(self);
}

int64_t sc_send_buffer_flush(sc_send_buffer *self)
{
    pthread_mutex_lock(&self->mutex);
    int64_t number = self->next_number - 1;
    self->flush_number = number;
    bool wakes = rouse(self);
    pthread_mutex_unlock(&self->mutex);
    if (wakes)
        wake_worker(self);
    return number;
}

bool sc_send_buffer_wait_flushed(sc_send_buffer *self, int64_t number, int64_t timeout_ms)
{
    int64_t end_ns = end_of_wait(timeout_ms);
    bool done, waits = true;
    pthread_mutex_lock(&self->mutex);
    while (!(done = self->oldest == NULL || self->oldest->number > number) && waits)
        waits = wait_finished(self, end_ns);
    pthread_mutex_unlock(&self->mutex);
    return done;
}

void sc_send_buffer_close(sc_send_buffer *self)
{
    pthread_mutex_lock(&self->mutex);
    self->closing = true;
    bool wakes = rouse(self), waiters = wakes_waiters(self);
    pthread_mutex_unlock(&self->mutex);
    if (wakes)
        wake_worker(self);
    if (waiters)
        sc_os.wake((uint32_t *)&self->finished_word);
}

int64_t sc_send_buffer_memory(sc_send_buffer *self)
{
    pthread_mutex_lock(&self->mutex);
    int64_t used = self->room.used;
    pthread_mutex_unlock(&self->mutex);
    return used;
}

int64_t sc_send_buffer_unfinished(sc_send_buffer *self)
{
    pthread_mutex_lock(&self->mutex);
    int64_t count = self->unfinished;
    pthread_mutex_unlock(&self->mutex);
    return count;
}

/* ---- the worker -------------------------------------------------------------------------------------------- */

static int64_t due_ns(const sc_send_buffer *self, const sc_send_batch *batch)
{
    if (self->closing || self->starving > 0 || batch->number <= self->flush_number)
        return 0;
    return batch->opened_ns + self->options.linger_ms * 1000000;
}

static sc_send_batch *take_retry(sc_send_buffer *self, int64_t now)
{
    sc_send_batch *before = NULL;
    for (sc_send_batch *batch = self->retries.first; batch != NULL; before = batch, batch = batch->next) {
        if (batch->retry_ns > now)
            continue;
        *(before != NULL ? &before->next : &self->retries.first) = batch->next;
        if (self->retries.last == batch)
            self->retries.last = before;
        batch->next = NULL;
        return batch;
    }
    return NULL;
}

/* The next batch to append; its sequence is that of the first record behind those that are in the log. */
static sc_send_batch *take_due(sc_send_buffer *self)
{
    int64_t now = sc_os.monotonic_ns();
    pthread_mutex_lock(&self->mutex);
    while (self->oldest_open != NULL && due_ns(self, self->oldest_open) <= now)
        seal(self, self->oldest_open);
    sc_send_batch *batch = take_retry(self, now);
    while (batch == NULL && (batch = pop(&self->ready)) != NULL && batch->lane->retrying > 0) {
        push(&batch->lane->held, batch);
        batch = NULL;
    }
    if (batch != NULL && SC_CONTROL(retry_takes_a_new_sequence) && batch->has_sequence)
        batch->sequence += (int32_t)batch->count;
    if (batch != NULL && !batch->has_sequence) {
        batch->sequence = batch->lane->next_sequence;
        batch->has_sequence = true;
    }
    pthread_mutex_unlock(&self->mutex);
    return batch;
}

void sc_send_batch_appended(sc_send_batch *batch, int64_t first_offset, int64_t end_offset)
{
    sc_send_buffer *self = batch->topic->buffer;
    pthread_mutex_lock(&self->mutex);
    batch->first_offset = first_offset;
    batch->end_offset = end_offset;
    batch->lane->next_sequence = (int32_t)(((int64_t)batch->sequence + batch->count) & INT32_MAX);
    pthread_mutex_unlock(&self->mutex);
    atomic_store(&batch->topic->appended, true);
    self->news = true;
}

sc_producer sc_send_batch_producer(const sc_send_buffer *self, const sc_send_batch *batch)
{
    return (sc_producer){.id = self->producer_id, .epoch = self->epoch, .sequence = batch->sequence};
}

static int append(sc_send_buffer *self, const sc_send_plan *plan, sc_send_batch *batch)
{
    sc_send_arrays arrays;
    sc_batch_input input;
    int64_t first, end;
    sc_send_batch_input(batch, plan->log_append_time, &arrays, &input);
    input.timestamp = plan->log_append_time ? sc_os.now_ms() : 0;
    sc_append request = {
        .batches = &input,
        .batch_count = 1,
        .schema_version = plan->schema_version,
        .generation = plan->generation,
        .expected_offset = -1,
        .log_append_time = plan->log_append_time,
        .producer = sc_send_batch_producer(self, batch),
    };
    int code = sc_partition_append(batch->topic->topic, batch->partition, &request, &first, &end, &batch->error);
    if (code == SC_OK)
        sc_send_batch_appended(batch, first, end);
    return code;
}

/* True: the caller is to see to it. */
static bool attempt(sc_send_buffer *self, sc_send_batch *batch)
{
    pthread_mutex_lock(&self->mutex);
    sc_send_plan plan = batch->topic->plan;
    pthread_mutex_unlock(&self->mutex);
    batch->error.code = SC_OK;
    batch->attempts++;
    if (batch->first_offset < 0 && (!plan.native || append(self, &plan, batch) != SC_OK))
        return true;
    if (plan.durable) {
        push(&self->unsynced, batch);
        self->unsynced_bytes += batch->bytes;
        return false;
    }
    if (batch->tag_count > 0 || batch->has_objects)
        return true;
    sc_send_buffer_finish(self, batch);
    return false;
}

/* One sync for all of them, where the store has a journal. False: one of them failed, and nobody knows yet which. */
static bool sync_together(const batch_queue *queue)
{
    int64_t count = 0;
    sc_error unused;
    for (const sc_send_batch *batch = queue->first; batch != NULL; batch = batch->next)
        count++;
    sc_durable_target *targets = malloc((size_t)(count + 1) * sizeof *targets);
    if (targets == NULL)
        return false;
    count = 0;
    for (const sc_send_batch *batch = queue->first; batch != NULL; batch = batch->next)
        targets[count++] = (sc_durable_target){batch->topic->topic, batch->partition, batch->end_offset};
    bool durable = sc_wait_durable(targets, count, &unused) == SC_OK;
    free(targets);
    return durable;
}

/* One sync for all batches, or else one for each partition that has some here. */
static void sync_all(sc_send_buffer *self)
{
    batch_queue synced = self->unsynced;
    bool durable = sync_together(&synced);
    self->unsynced = (batch_queue){0};
    self->unsynced_bytes = 0;
    while (synced.first != NULL) {
        sc_send_batch *batch = pop(&synced);
        batch_queue others = {0};
        int code = durable ? SC_OK : sc_partition_flush(batch->topic->topic, batch->partition, &batch->error);
        sc_error error = batch->error;
        sc_send_lane *lane = batch->lane;
        for (; batch != NULL; batch = pop(&synced)) {
            if (batch->lane != lane) {
                push(&others, batch);
                continue;
            }
            if (code != SC_OK)
                batch->error = error;
            if (code != SC_OK || batch->tag_count > 0 || batch->has_objects)
                push(&self->told, batch);
            else
                sc_send_buffer_finish(self, batch);
        }
        synced = others;
    }
}

static void wait_for_work(sc_send_buffer *self)
{
    int64_t now = sc_os.monotonic_ns(), wake_ns = INT64_MAX;
    pthread_mutex_lock(&self->mutex);
    if (self->oldest_open != NULL)
        wake_ns = due_ns(self, self->oldest_open);
    for (sc_send_batch *batch = self->retries.first; batch != NULL; batch = batch->next)
        wake_ns = batch->retry_ns < wake_ns ? batch->retry_ns : wake_ns;
    if (self->news && self->news_ns + NEWS_NS < wake_ns)
        wake_ns = self->news_ns + NEWS_NS;
    bool idle = self->unfinished == 0 && self->spare.first != NULL;
    if (idle && now + SPARE_NS < wake_ns)
        wake_ns = now + SPARE_NS;
    uint32_t seen = atomic_load(&self->work_word);
    bool waits = self->ready.first == NULL && wake_ns > now && !(self->closing && self->unfinished == 0);
    self->sleeping = waits;
    pthread_mutex_unlock(&self->mutex);
    if (!waits)
        return;
    sc_os.wait((uint32_t *)&self->work_word, seen, wake_ns == INT64_MAX ? -1 : wake_ns - now);
    pthread_mutex_lock(&self->mutex);
    self->sleeping = false;
    if (idle && self->unfinished == 0 && sc_os.monotonic_ns() - now >= SPARE_NS)
        drop_spare(self);
    pthread_mutex_unlock(&self->mutex);
}

static bool is_over(sc_send_buffer *self)
{
    pthread_mutex_lock(&self->mutex);
    bool over = self->closing && self->unfinished == 0;
    pthread_mutex_unlock(&self->mutex);
    return over;
}

/* Whether the caller waits to hear something. */
static bool has_news(sc_send_buffer *self)
{
    if (self->room_news && atomic_exchange(&self->room_asked, false)) {
        self->room_news = false;
        return true;
    }
    return self->news && sc_os.monotonic_ns() - self->news_ns >= NEWS_NS;
}

static void note_told(sc_send_buffer *self)
{
    self->news = false;
    self->news_ns = sc_os.monotonic_ns();
}

sc_send_batch *sc_send_buffer_work(sc_send_buffer *self, bool *closed)
{
    *closed = false;
    for (;;) {
        sc_send_batch *batch = pop(&self->told);
        if (batch == NULL && has_news(self)) {
            note_told(self);
            return NULL;
        }
        if (batch != NULL || ((batch = take_due(self)) != NULL && attempt(self, batch)))
            return batch;
        bool rests = batch == NULL;
        if (self->unsynced.first != NULL && (rests || self->unsynced_bytes >= UNSYNCED_BYTES_MAX)) {
            sync_all(self);
        } else if (rests && is_over(self)) {
            note_told(self);
            *closed = true;
            return NULL;
        } else if (rests) {
            wait_for_work(self);
        }
    }
}

/* With the mutex held. */
static void keep_or_free(sc_send_buffer *self, sc_send_batch *batch)
{
    sc_send_batch_drop_objects(batch, &self->room);
    if (self->starving > 0 && self->spare.first != NULL) {
        sc_send_batch_free(batch, &self->room);
        return;
    }
    batch->next = self->spare.first; /* to the front: it is in the cache */
    self->spare.first = batch;
    if (self->spare.last == NULL)
        self->spare.last = batch;
    self->spare_bytes += batch->memory;
}

void sc_send_buffer_finish(sc_send_buffer *self, sc_send_batch *batch)
{
    pthread_mutex_lock(&self->mutex);
    unlink_unfinished(self, batch);
    sc_send_lane *lane = batch->lane;
    if (batch->retrying && --lane->retrying == 0)
        prepend(&self->ready, &lane->held);
    keep_or_free(self, batch);
    bool wakes = wakes_waiters(self);
    pthread_mutex_unlock(&self->mutex);
    self->room_news = true;
    if (wakes)
        sc_os.wake((uint32_t *)&self->finished_word);
}

void sc_send_buffer_retry(sc_send_buffer *self, sc_send_batch *batch, int64_t delay_ms)
{
    pthread_mutex_lock(&self->mutex);
    if (!batch->retrying)
        batch->lane->retrying++;
    batch->retrying = true;
    batch->retry_ns = sc_os.monotonic_ns() + delay_ms * 1000000;
    push(&self->retries, batch);
    pthread_mutex_unlock(&self->mutex);
}

sc_send_batch *sc_send_buffer_take_left(sc_send_buffer *self)
{
    pthread_mutex_lock(&self->mutex);
    if (self->left != NULL)
        sc_send_batch_free(self->left, &self->room);
    self->left = self->oldest;
    if (self->left != NULL)
        unlink_unfinished(self, self->left);
    bool wakes = wakes_waiters(self);
    pthread_mutex_unlock(&self->mutex);
    if (wakes)
        sc_os.wake((uint32_t *)&self->finished_word);
    return self->left;
}
