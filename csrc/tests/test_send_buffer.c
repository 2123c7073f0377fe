/* What is added comes out as batches, in order and once; memory stays bounded; retries hold up their partition alone.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"
#include "faults.h"
#include "os.h"
#include "plain_topic.h"
#include "send_batch.h"

enum { PARTITIONS = 4, FOR_EVER_MS = 3600 * 1000, MUCH = 64 << 20 };
static char path[FOLDER_MAX];
static sc_error error;

typedef struct sender {
    sc_topic *topic;
    sc_send_buffer *buffer;
    sc_send_topic *to;
} sender;

static sender open_sender(sc_send_options options, bool native, bool durable)
{
    sender self;
    sc_send_plan plan = {.partitions = PARTITIONS,
                         .schema_version = 1,
                         .generation = GENERATION,
                         .max_record_bytes = 1 << 20,
                         .native = native,
                         .durable = durable};
    folder_make(path);
    self.topic = topic_open(path, true);
    CHECK_OK(sc_send_buffer_new(&options, &self.buffer, &error), error);
    CHECK_OK(sc_send_buffer_add_topic(self.buffer, self.topic, &plan, NULL, &self.to, &error), error);
    return self;
}

static void close_sender(sender *self)
{
    sc_send_buffer_free(self->buffer);
    topic_close(self->topic);
    folder_remove(path);
}

static sc_bytes text(const char *string)
{
    return (sc_bytes){(const uint8_t *)string, string == NULL ? 0 : (int64_t)strlen(string)};
}

static int add(sender *self, int64_t partition, const char *key, const char *value)
{
    sc_send_record record = {.key = text(key), .value = text(value), .partition = partition};
    return sc_send_buffer_add(self->buffer, self->to, &record, &error);
}

static int add_size(sender *self, int64_t partition, int64_t size)
{
    static const uint8_t zeros[1 << 20];
    sc_send_record record = {.value = {zeros, size}, .partition = partition};
    return sc_send_buffer_add(self->buffer, self->to, &record, &error);
}

/* Works until nothing is left, finishing what is handed out. */
static void work_to_the_end(sender *self)
{
    bool closed = false;
    sc_send_buffer_close(self->buffer);
    while (!closed) {
        sc_send_batch *batch = sc_send_buffer_work(self->buffer, &closed);
        if (batch != NULL) {
            CHECK_OK(batch->error.code, batch->error);
            CHECK(batch->first_offset >= 0);
            sc_send_buffer_finish(self->buffer, batch);
        }
    }
    CHECK_EQ(sc_send_buffer_unfinished(self->buffer), 0);
}

static int64_t count_batches(uint32_t partition, found_batch *batches, int max)
{
    char file[FILE_MAX];
    segment_file(file, path, partition, 0);
    return file_exists(file) ? found_batches(file, batches, max) : 0;
}

/* ---- columns ----------------------------------------------------------------------------------------------- */

/* Rows of which each column has values, empties and nulls in every order, against the rows that they were made of. */
static void test_columns_hold_what_was_put_whatever_is_null(void)
{
    enum { ROWS = 41 };
    uint32_t chance = 7;
    for (int round = 0; round < 300; round++) {
        sc_send_room room = {.limit = MUCH};
        sc_send_batch *batch = sc_send_batch_new(&room);
        char stored[ROWS][2][8];
        bool null[ROWS][2];
        int rows = 1 + round % ROWS, rarely = 1 + round % 7;
        for (int i = 0; i < rows; i++) {
            sc_send_record record = {.partition = -1};
            sc_bytes *columns[2] = {&record.key, &record.value};
            for (int k = 0; k < 2; k++) {
                chance = chance * 1664525 + 1013904223;
                null[i][k] = (chance >> 16) % (uint32_t)rarely == 0;
                snprintf(stored[i][k], sizeof stored[i][k], "%.*s", (int)((chance >> 8) % 7), "abcdef");
                if (!null[i][k])
                    *columns[k] = text(stored[i][k]);
            }
            CHECK_EQ(sc_send_batch_reserve(batch, &room, &record), SC_OK);
            sc_send_batch_put(batch, &room, &record, i);
        }
        const sc_send_column *columns[2] = {&batch->key, &batch->value};
        for (int k = 0; k < 2; k++) {
            int64_t nulls = 0;
            for (int i = 0; i < rows; i++) {
                nulls += null[i][k];
                if (!columns[k]->present) {
                    CHECK(null[i][k]);
                    continue;
                }
                const int32_t *ends = (const int32_t *)(const void *)columns[k]->ends.data;
                CHECK_EQ(ends[i + 1] - ends[i], null[i][k] ? 0 : (int64_t)strlen(stored[i][k]));
                CHECK(ends[i + 1] == ends[i] ||
                      memcmp(columns[k]->data.data + ends[i], stored[i][k], strlen(stored[i][k])) == 0);
                CHECK(columns[k]->nulls == 0 || (columns[k]->validity.data[i / 8] >> (i % 8) & 1) == !null[i][k]);
            }
            CHECK(!columns[k]->present || columns[k]->nulls == nulls);
            CHECK_EQ(columns[k]->count, rows);
        }
        CHECK_EQ(room.used, batch->memory);
        sc_send_batch_free(batch, &room);
        CHECK_EQ(room.used, 0);
    }
}

static void test_a_batch_that_is_used_again_keeps_no_row(void)
{
    sc_send_room room = {.limit = MUCH};
    sc_send_batch *batch = sc_send_batch_new(&room);
    sc_send_header header = {text("h"), text(NULL)};
    sc_send_record full = {.key = text("k"), .value = text(NULL), .headers = &header, .header_count = 1, .tag = &room};
    sc_send_record bare = {.value = text("v")};
    CHECK_EQ(sc_send_batch_reserve(batch, &room, &full), SC_OK);
    sc_send_batch_put(batch, &room, &full, 1);
    int64_t memory = batch->memory;
    sc_send_batch_clear(batch);
    CHECK_EQ(sc_send_batch_reserve(batch, &room, &bare), SC_OK);
    sc_send_batch_put(batch, &room, &bare, 2);
    sc_send_arrays arrays;
    sc_batch_input input;
    sc_send_batch_input(batch, false, &arrays, &input);
    CHECK_EQ(input.count, 1);
    CHECK(input.key == NULL && input.headers == NULL && input.value->null_count == 0);
    CHECK_EQ(batch->tag_count, 0);
    CHECK_EQ(batch->memory, memory + 512); /* the value's ends and bytes */
    sc_send_batch_free(batch, &room);
}

/* ---- batches ----------------------------------------------------------------------------------------------- */

static void test_what_is_added_is_in_the_log_in_order(void)
{
    sender self = open_sender((sc_send_options){FOR_EVER_MS, 1000, MUCH}, true, false);
    char value[VALUE_MAX], key[VALUE_MAX];
    for (int64_t offset = 0; offset < 400; offset++) {
        sc_send_record record = {.partition = 1, .has_timestamp = true, .timestamp = time_of(offset)};
        int64_t size = value_of(1, offset, (uint8_t *)value);
        record.value = (sc_bytes){size < 0 ? NULL : (const uint8_t *)value, size < 0 ? 0 : size};
        size = key_of(1, offset, (uint8_t *)key);
        record.key = (sc_bytes){size < 0 ? NULL : (const uint8_t *)key, size < 0 ? 0 : size};
        CHECK_OK(sc_send_buffer_add(self.buffer, self.to, &record, &error), error);
    }
    work_to_the_end(&self);
    check_records(self.topic, 1, 0, 400);
    close_sender(&self);
}

static void test_batches_are_closed_by_bytes_and_carry_sequences_without_a_gap(void)
{
    found_batch found[16];
    sender self = open_sender((sc_send_options){FOR_EVER_MS, 1000, MUCH}, true, false);
    sc_send_buffer_identify(self.buffer, 77, 3);
    for (int i = 0; i < 10; i++)
        CHECK_OK(add_size(&self, 0, 300), error);
    CHECK_OK(add_size(&self, 0, 5000), error);
    CHECK_OK(add_size(&self, 0, 1), error);
    work_to_the_end(&self);
    static const int counts[] = {3, 3, 3, 1, 1, 1};
    CHECK_EQ(count_batches(0, found, 16), 6);
    for (int i = 0, sequence = 0; i < 6; sequence += counts[i++]) {
        CHECK_EQ(found[i].header.record_count, counts[i]);
        CHECK_EQ(found[i].header.producer_id, 77);
        CHECK_EQ(found[i].header.producer_epoch, 3);
        CHECK_EQ(found[i].header.base_sequence, sequence);
    }
    close_sender(&self);
}

static void test_records_without_a_key_change_the_partition_with_the_batch(void)
{
    sender self = open_sender((sc_send_options){FOR_EVER_MS, 1000, MUCH}, true, false);
    for (int i = 0; i < 3 * 2 * PARTITIONS; i++)
        CHECK_OK(add_size(&self, -1, 300), error);
    work_to_the_end(&self);
    for (uint32_t p = 0; p < PARTITIONS; p++)
        CHECK_EQ(end_of(self.topic, p), 6);
    close_sender(&self);
}

static void test_what_cannot_be_taken_is_refused_and_changes_nothing(void)
{
    sender self = open_sender((sc_send_options){FOR_EVER_MS, 1000, 100000}, true, false);
    int64_t before = sc_send_buffer_memory(self.buffer);
    CHECK_EQ(add_size(&self, PARTITIONS, 1), SC_RANGE);
    CHECK_EQ(add_size(&self, 0, 90000), SC_TOO_LARGE);
    sc_send_plan plan = {.partitions = PARTITIONS,
                         .schema_version = 1,
                         .generation = GENERATION,
                         .max_record_bytes = 10,
                         .native = true};
    CHECK_OK(sc_send_topic_plan(self.to, &plan, &error), error);
    CHECK_EQ(add_size(&self, 0, 11), SC_TOO_LARGE);
    plan.needs_key = true;
    CHECK_OK(sc_send_topic_plan(self.to, &plan, &error), error);
    CHECK_EQ(add(&self, 0, NULL, "x"), SC_INVALID);
    plan.generation++;
    CHECK_OK(sc_send_topic_plan(self.to, &plan, &error), error);
    CHECK_EQ(add_size(&self, 0, 1), SC_STALE);
    CHECK_EQ(sc_send_buffer_memory(self.buffer), before);
    CHECK_EQ(sc_send_buffer_unfinished(self.buffer), 0);
    sc_send_buffer_close(self.buffer);
    CHECK_EQ(add_size(&self, 0, 1), SC_CLOSED);
    close_sender(&self);
}

static void test_a_record_without_a_key_sees_changed_settings_while_a_batch_is_open(void)
{
    sender self = open_sender((sc_send_options){FOR_EVER_MS, 1000, 100000}, true, false);
    CHECK_EQ(add(&self, 0, NULL, "opens the batch"), SC_OK);
    sc_send_plan plan = {.partitions = PARTITIONS,
                         .schema_version = 1,
                         .generation = GENERATION + 1,
                         .max_record_bytes = 1000,
                         .native = true};
    CHECK_OK(sc_send_topic_plan(self.to, &plan, &error), error);
    CHECK_EQ(add(&self, 0, NULL, "x"), SC_STALE);
    CHECK_EQ(add(&self, 0, "key", "x"), SC_OK);
    close_sender(&self);
}

static void test_memory_stays_below_its_bound_and_room_comes_with_work(void)
{
    sender self = open_sender((sc_send_options){FOR_EVER_MS, 10000, 100000}, true, false);
    int64_t taken = 0;
    for (int round = 0; round < 5; round++) {
        while (add(&self, taken % PARTITIONS, taken % 3 ? "key" : NULL, "some value") == SC_OK) {
            taken++;
            CHECK(sc_send_buffer_memory(self.buffer) <= 100000);
        }
        CHECK_EQ(sc_send_buffer_wait_room(self.buffer, 50000, 0), SC_END);
        int64_t number = sc_send_buffer_flush(self.buffer);
        CHECK(!sc_send_buffer_wait_flushed(self.buffer, number, 0));
        for (bool closed; !sc_send_buffer_wait_flushed(self.buffer, number, 0);)
            CHECK(sc_send_buffer_work(self.buffer, &closed) == NULL && !closed); /* with the news of appends */
        CHECK_EQ(sc_send_buffer_wait_room(self.buffer, 50000, 0), SC_OK);
    }
    CHECK(taken > 3000);
    work_to_the_end(&self);
    close_sender(&self);
}

/* ---- failures ---------------------------------------------------------------------------------------------- */

static sc_send_batch *work_once(sender *self)
{
    bool closed;
    sc_send_batch *batch;
    while ((batch = sc_send_buffer_work(self->buffer, &closed)) == NULL)
        CHECK(!closed);
    return batch;
}

static void test_a_batch_that_is_tried_again_keeps_its_sequence_and_holds_up_its_partition_alone(void)
{
    sender self = open_sender((sc_send_options){0, 1000, MUCH}, false, false);
    CHECK_OK(add(&self, 0, NULL, "first"), error);
    sc_send_batch *first = work_once(&self);
    CHECK_EQ(first->first_offset, -1);
    CHECK_OK(first->error.code, first->error);
    sc_send_buffer_retry(self.buffer, first, 1);
    CHECK_OK(add(&self, 0, NULL, "second"), error);
    CHECK_OK(add(&self, 1, NULL, "other"), error);
    bool seen_other = false;
    for (int tries = 0; tries < 20 || !seen_other; tries++) {
        sc_send_batch *batch = work_once(&self);
        if (batch->partition == 1) {
            seen_other = true;
            sc_send_batch_appended(batch, 0, 1);
            sc_send_buffer_finish(self.buffer, batch);
            continue;
        }
        CHECK(batch == first);
        CHECK_EQ(batch->sequence, 0);
        sc_send_buffer_retry(self.buffer, batch, 1);
    }
    first = work_once(&self);
    sc_send_batch_appended(first, 0, 1);
    sc_send_buffer_finish(self.buffer, first);
    sc_send_batch *second = work_once(&self);
    CHECK_EQ(second->sequence, 1);
    sc_send_buffer_finish(self.buffer, second); /* given up */
    CHECK_EQ(sc_send_topic_next_sequence(self.to, 0), 1);
    close_sender(&self);
}

static void test_a_sync_that_fails_leaves_a_batch_in_the_log_which_is_not_appended_again(void)
{
    found_batch found[4];
    bool closed, failed = false;
    sender self = open_sender((sc_send_options){0, 1000, MUCH}, true, true);
    sc_send_record before = {.value = text("before"), .partition = 2, .tag = &self};
    CHECK_OK(sc_send_buffer_add(self.buffer, self.to, &before, &error), error);
    sc_send_buffer_finish(self.buffer, work_once(&self));
    CHECK_EQ(end_of(self.topic, 2), 1);
    CHECK_OK(add(&self, 2, NULL, "v"), error);
    for (int number = 1; !failed; number++) { /* the append fails as often as it has calls, then the sync */
        faults_arm(number, EMFILE, true);
        sc_send_batch *batch = sc_send_buffer_work(self.buffer, &closed);
        CHECK(faults_disarm() && batch != NULL);
        CHECK(batch->error.code == SC_OS || batch->error.code == SC_POISONED);
        CHECK_EQ(batch->sequence, 1);
        failed = batch->first_offset == 1;
        CHECK(failed || batch->first_offset == -1);
        sc_send_buffer_retry(self.buffer, batch, 0);
    }
    CHECK_EQ(sc_send_topic_next_sequence(self.to, 2), 2);
    sc_send_buffer_close(self.buffer);
    for (closed = false; !closed;) {
        sc_send_batch *batch = sc_send_buffer_work(self.buffer, &closed);
        if (batch != NULL) { /* a sync that failed may have poisoned the partition */
            CHECK_EQ(batch->error.code, SC_POISONED);
            sc_send_buffer_finish(self.buffer, batch);
        }
    }
    CHECK_EQ(count_batches(2, found, 4), 2);
    CHECK_EQ(end_of(self.topic, 2), 2);
    close_sender(&self);
}

static void test_what_nobody_appended_is_given_back_at_the_end(void)
{
    sender self = open_sender((sc_send_options){FOR_EVER_MS, 1000, MUCH}, true, false);
    for (int p = 0; p < PARTITIONS; p++) {
        sc_send_record record = {.value = text("v"), .partition = p, .tag = &self};
        CHECK_OK(sc_send_buffer_add(self.buffer, self.to, &record, &error), error);
    }
    int left = 0;
    for (const sc_send_batch *batch; (batch = sc_send_buffer_take_left(self.buffer)) != NULL; left++)
        CHECK(batch->tag_count == 1 && sc_send_batch_tags(batch)[0].tag == &self);
    CHECK_EQ(left, PARTITIONS);
    close_sender(&self);
}

/* ---- threads ----------------------------------------------------------------------------------------------- */

enum { SENDERS = 4, RECORDS_EACH = 4000 };

typedef struct sending {
    sender *sender;
    int64_t number;
} sending;

static void *send_own(void *argument)
{
    sending *self = argument;
    sc_error mine;
    for (int64_t i = 0; i < RECORDS_EACH; i++) {
        int64_t content[2] = {self->number, i};
        sc_send_record record = {.value = {(const uint8_t *)content, sizeof content},
                                 .partition = self->number % 2,
                                 .tag = i % 5 == 0 ? self : NULL};
        int code;
        while ((code = sc_send_buffer_add(self->sender->buffer, self->sender->to, &record, &mine)) == SC_END)
            CHECK_EQ(sc_send_buffer_wait_room(self->sender->buffer, 64, -1), SC_OK);
        CHECK_OK(code, mine);
        if (i % 1000 == 999)
            CHECK(sc_send_buffer_wait_flushed(self->sender->buffer, sc_send_buffer_flush(self->sender->buffer), -1));
    }
    return NULL;
}

static void *work_for_all(void *argument)
{
    sender *self = argument;
    bool closed = false;
    int64_t tags = 0;
    while (!closed) {
        sc_send_batch *batch = sc_send_buffer_work(self->buffer, &closed);
        if (batch == NULL)
            continue;
        CHECK_OK(batch->error.code, batch->error);
        tags += batch->tag_count;
        sc_send_buffer_finish(self->buffer, batch);
    }
    CHECK_EQ(tags, SENDERS * (RECORDS_EACH / 5));
    return NULL;
}

static void test_threads_add_while_one_appends_and_nothing_is_lost_or_moved(void)
{
    sender self = open_sender((sc_send_options){1, 2000, 60000}, true, false);
    pthread_t senders[SENDERS], worker;
    sending sendings[SENDERS];
    CHECK_EQ(pthread_create(&worker, NULL, work_for_all, &self), 0);
    for (int i = 0; i < SENDERS; i++) {
        sendings[i] = (sending){&self, i};
        CHECK_EQ(pthread_create(&senders[i], NULL, send_own, &sendings[i]), 0);
    }
    for (int i = 0; i < SENDERS; i++)
        CHECK_EQ(pthread_join(senders[i], NULL), 0);
    sc_send_buffer_close(self.buffer);
    CHECK_EQ(pthread_join(worker, NULL), 0);
    CHECK(sc_send_buffer_memory(self.buffer) <= 60000);
    int64_t next[SENDERS] = {0};
    for (uint32_t p = 0; p < 2; p++) {
        sc_range range = {p, 0, end_of(self.topic, p)};
        sc_scan_options options = {.ranges = &range,
                                   .range_count = 1,
                                   .min_timestamp = INT64_MIN,
                                   .max_timestamp = INT64_MAX,
                                   .limit = -1,
                                   .verify = true};
        sc_scan *scan;
        sc_batch batch;
        sc_rows rows;
        int code;
        CHECK_OK(sc_scan_open(self.topic, &options, &scan, &error), error);
        while ((code = sc_scan_next(scan, &batch, &error)) == SC_OK) {
            CHECK_OK(sc_batch_rows(&batch, &rows, &error), error);
            for (int64_t i = 0; i < rows.count; i++) {
                int64_t content[2];
                memcpy(content, rows.values + rows.value_ends[i], sizeof content);
                CHECK_EQ(content[1], next[content[0]]++);
            }
        }
        CHECK_EQ(code, SC_END);
        sc_scan_free(scan);
    }
    for (int i = 0; i < SENDERS; i++)
        CHECK_EQ(next[i], RECORDS_EACH);
    close_sender(&self);
}

int main(int argc, char **argv)
{
    RUN(test_columns_hold_what_was_put_whatever_is_null);
    RUN(test_a_batch_that_is_used_again_keeps_no_row);
    RUN(test_what_is_added_is_in_the_log_in_order);
    RUN(test_batches_are_closed_by_bytes_and_carry_sequences_without_a_gap);
    RUN(test_records_without_a_key_change_the_partition_with_the_batch);
    RUN(test_what_cannot_be_taken_is_refused_and_changes_nothing);
    RUN(test_a_record_without_a_key_sees_changed_settings_while_a_batch_is_open);
    RUN(test_memory_stays_below_its_bound_and_room_comes_with_work);
    RUN(test_a_batch_that_is_tried_again_keeps_its_sequence_and_holds_up_its_partition_alone);
    RUN(test_a_sync_that_fails_leaves_a_batch_in_the_log_which_is_not_appended_again);
    RUN(test_what_nobody_appended_is_given_back_at_the_end);
    RUN(test_threads_add_while_one_appends_and_nothing_is_lost_or_moved);
    return 0;
}
