/* Producers and transactions: the table by itself, and in logs with rolls, crashes and lost hints. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "os.h"
#include "plain_topic.h"
#include "producing.h"
#include "random_array.h"
#include "topic.h"

static char path[FOLDER_MAX], file[FILE_MAX];

/* ---- the table ------------------------------------------------------------------------------------------------- */

static int check(const sc_producer_state *state, int64_t id, int16_t epoch, int32_t sequence, int64_t count,
                 int64_t *first_offset)
{
    sc_producer producer = {id, epoch, sequence};
    sc_producer_unit unit;
    bool duplicate;
    int code = sc_producer_state_check(state, &producer, count, false, &duplicate, &unit, &error);
    *first_offset = code == SC_OK && duplicate ? unit.first_offset : -1;
    return code;
}

static void test_the_last_five_appends_of_a_producer_are_known_again(void)
{
    sc_producer_state *state = sc_producer_state_new();
    int64_t first;
    for (int i = 0; i < 8; i++) {
        CHECK_OK(check(state, 7, 0, i * 10, 10, &first), error);
        CHECK_EQ(first, -1);
        CHECK_OK(add(state, 7, 0, i * 10, i * 100, 10, false), error);
    }
    for (int i = 3; i < 8; i++) {
        CHECK_OK(check(state, 7, 0, i * 10, 10, &first), error);
        CHECK_EQ(first, i * 100);
    }
    CHECK_EQ(check(state, 7, 0, 20, 10, &first), SC_SEQUENCE); /* too old */
    CHECK_EQ(check(state, 7, 0, 70, 9, &first), SC_SEQUENCE);  /* not the same one */
    CHECK_EQ(check(state, 7, 0, 81, 1, &first), SC_SEQUENCE);  /* a gap */
    CHECK_OK(check(state, 7, 0, 80, 1, &first), error);
    CHECK_EQ(first, -1);
    sc_producer_state_free(state);
}

static void test_a_lower_epoch_is_fenced_and_a_higher_one_begins_at_0(void)
{
    sc_producer_state *state = sc_producer_state_new();
    int64_t first;
    CHECK_OK(check(state, 7, 3, 1234, 1, &first), error); /* KIP-360: unknown, so any sequence */
    CHECK_OK(add(state, 7, 3, 1234, 0, 1, false), error);
    CHECK_EQ(check(state, 7, 2, 1235, 1, &first), SC_FENCED);
    CHECK_EQ(check(state, 7, 4, 1235, 1, &first), SC_SEQUENCE);
    CHECK_OK(check(state, 7, 4, 0, 1, &first), error);
    CHECK_OK(add(state, 7, 4, 0, 1, 1, false), error);
    CHECK_EQ(check(state, 7, 3, 1235, 1, &first), SC_FENCED);
    sc_producer_state_free(state);
}

static void test_sequences_wrap_to_0(void)
{
    sc_producer_state *state = sc_producer_state_new();
    int64_t first;
    CHECK_OK(add(state, 7, 0, INT32_MAX - 4, 0, 10, false), error);
    CHECK_OK(check(state, 7, 0, 5, 1, &first), error);
    CHECK_EQ(first, -1);
    CHECK_EQ(check(state, 7, 0, 6, 1, &first), SC_SEQUENCE);
    CHECK_OK(check(state, 7, 0, INT32_MAX - 4, 10, &first), error);
    CHECK_EQ(first, 0);
    sc_producer_state_free(state);
}

static void test_what_is_encoded_comes_back_and_damage_is_refused(void)
{
    sc_producer_state *state = sc_producer_state_new(), *copy = sc_producer_state_new();
    int64_t offset, first;
    for (int i = 1; i < 300; i++)
        CHECK_OK(add(state, i * 7919, (int16_t)(i % 5), i, i * 10, 10, i % 3 == 0), error);
    int64_t size = sc_producer_state_encoded_size(state);
    uint8_t *data = malloc((size_t)size);
    sc_producer_state_encode(state, data);
    CHECK_OK(sc_producer_state_decode(copy, data, size, &offset, &error), error);
    CHECK_EQ(offset, state->offset);
    CHECK_EQ(copy->open_count, state->open_count);
    CHECK_EQ(sc_producer_state_stable(copy, SC_NO_PRODUCER, 9999), 30);
    CHECK_EQ(sc_producer_state_stable(copy, 3 * 7919, 9999), 60);
    CHECK_OK(check(copy, 8 * 7919, 3, 8, 10, &first), error);
    CHECK_EQ(first, 80);
    for (int64_t i = 0; i < size; i += 3) {
        data[i] ^= 4;
        CHECK_EQ(sc_producer_state_decode(copy, data, size, &offset, &error), SC_CORRUPT);
        data[i] ^= 4;
    }
    for (int64_t cut = 0; cut < size; cut += 7)
        CHECK_EQ(sc_producer_state_decode(copy, data, cut, &offset, &error), SC_CORRUPT);
    free(data);
    sc_producer_state_free(state);
    sc_producer_state_free(copy);
}

static void test_idle_producers_are_forgotten_and_those_with_open_transactions_are_not(void)
{
    sc_producer_state *state = sc_producer_state_new();
    for (int i = 1; i <= 1000; i++)
        CHECK_OK(add(state, i, 0, 0, i, 1, i % 100 == 0), error);
    sc_producer_state_expire(state, 1000 + 900);
    CHECK_EQ(state->count, 101 + 8); /* 900 to 1000, and 100, 200, … 800 */
    CHECK(sc_producer_state_find(state, 899) == NULL);
    CHECK(sc_producer_state_find(state, 900) != NULL);
    CHECK(sc_producer_state_find(state, 100)->open_offset == 100);
    sc_producer_state_free(state);
}

static void test_the_number_of_producers_is_bounded(void)
{
    sc_producer_state *state = sc_producer_state_new();
    for (int i = 1; i <= 3 * SC_PRODUCERS_MAX; i++)
        CHECK_OK(add(state, i, 0, 0, i, 1, i == 5), error);
    CHECK(state->count <= SC_PRODUCERS_MAX);
    CHECK(sc_producer_state_find(state, 5) != NULL);
    CHECK(sc_producer_state_find(state, 3 * SC_PRODUCERS_MAX) != NULL);
    sc_producer_state_free(state);
}

/* ---- in a log -------------------------------------------------------------------------------------------------- */

static void test_a_repeated_append_gets_its_old_offsets_in_any_process_and_after_any_end(void)
{
    for (int way = 0; way < 4; way++) {
        folder_make(path);
        sc_topic *topic = topic_open_with(path, true, 16 << 10);
        int64_t first, other;
        for (int i = 0; i < 60; i++) {
            CHECK_OK(produce(topic, (sc_producer){1, 0, i * 10}, false, 10, 3, &first), error);
            CHECK_EQ(first, i * 11);
            append_records(topic, 0, i * 11 + 10, 1);
        }
        sc_topic *second = topic_open_with(path, true, 16 << 10);
        CHECK_OK(produce(second, (sc_producer){1, 0, 590}, false, 10, 3, &other), error);
        CHECK_EQ(other, first);
        topic_close(second);
        if (way < 2)
            topic_close(topic);
        else
            topic_abandon(topic);
        snprintf(file, sizeof file, "%s/0/.producers", path);
        CHECK(way >= 2 || file_exists(file));
        if (way == 1)
            CHECK(unlink(file) == 0);
        if (way == 3)
            file_write(file, "damaged", 7);
        topic = topic_open_with(path, true, 16 << 10);
        for (int i = 55; i < 60; i++) {
            CHECK_OK(produce(topic, (sc_producer){1, 0, i * 10}, false, 10, 10, &other), error);
            CHECK_EQ(other, i * 11);
        }
        CHECK_EQ(produce(topic, (sc_producer){1, 0, 540}, false, 10, 10, &other), SC_SEQUENCE);
        CHECK_EQ(produce(topic, (sc_producer){1, 0, 601}, false, 10, 10, &other), SC_SEQUENCE);
        CHECK_EQ(end_of(topic, 0), 660);
        CHECK_OK(produce(topic, (sc_producer){1, 1, 0}, false, 10, 10, &other), error);
        CHECK_EQ(produce(topic, (sc_producer){1, 0, 600}, false, 10, 10, &other), SC_FENCED);
        topic_close(topic);
        folder_remove(path);
    }
}

static void test_a_snapshot_of_a_log_that_was_cut_is_not_believed(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    int64_t first, other;
    for (int i = 0; i < 10; i++)
        CHECK_OK(produce(topic, (sc_producer){1, 0, i}, false, 1, 1, &first), error);
    topic_close(topic);
    segment_file(file, path, 0, 0);
    found_batch batches[64];
    CHECK_EQ(found_batches(file, batches, 64), 10);
    file_zero(file, batches[5].position, file_size(file) - batches[5].position);
    topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), 5);
    for (int i = 0; i < 5; i++) /* others, at the same offsets */
        CHECK_OK(produce(topic, (sc_producer){2, 0, i}, false, 1, 1, &first), error);
    topic_abandon(topic);
    topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), 10);
    CHECK_OK(produce(topic, (sc_producer){1, 0, 5}, false, 1, 1, &other), error);
    CHECK_EQ(other, 10); /* it was lost, so this is no repetition */
    topic_close(topic);
    folder_remove(path);
}

static void test_an_open_transaction_holds_the_stable_offset_until_its_marker(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    int64_t first;
    uint8_t seen[64] = {0};
    append_records(topic, 0, 0, 5);
    CHECK_EQ(info_of(topic).stable_offset, 5);
    CHECK_OK(produce(topic, (sc_producer){1, 0, 0}, true, 5, 2, &first), error);
    append_records(topic, 0, 10, 2);
    CHECK_OK(produce(topic, (sc_producer){2, 0, 0}, true, 3, 3, &first), error);
    CHECK_EQ(info_of(topic).stable_offset, 5);
    CHECK_EQ(scan(topic, true, seen), 5);
    CHECK_EQ(finish(topic, 2, 0, false), 15);
    CHECK_EQ(info_of(topic).stable_offset, 5);
    CHECK_EQ(finish(topic, 1, 0, true), 16);
    CHECK_EQ(info_of(topic).stable_offset, 17);
    CHECK_EQ(finish(topic, 1, 0, true), -1); /* once */
    CHECK_EQ(finish(topic, 1, 0, false), -1);
    CHECK_EQ(finish(topic, 99, 0, true), -1);
    CHECK_EQ(info_of(topic).end_offset, 17);
    memset(seen, 0, sizeof seen);
    CHECK_EQ(scan(topic, true, seen), 12);
    CHECK(seen[11] && !seen[12] && !seen[14]);
    CHECK_EQ(scan(topic, false, seen), 15);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_fencing_marker_is_written_where_nothing_is_open_and_keeps_zombies_out(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    int64_t offset, first;
    sc_marker marker = {.producer_id = 5, .epoch = 3, .fence = true};
    CHECK_OK(sc_partition_append_marker(topic, 0, &marker, &offset, &error), error);
    CHECK_EQ(offset, 0);
    CHECK_OK(sc_partition_append_marker(topic, 0, &marker, &offset, &error), error);
    CHECK_EQ(offset, -1);
    topic_close(topic);
    snprintf(file, sizeof file, "%s/0/.producers", path);
    CHECK(unlink(file) == 0);
    topic = topic_open(path, true);
    CHECK_EQ(info_of(topic).stable_offset, 1);
    CHECK_EQ(produce(topic, (sc_producer){5, 2, 0}, true, 1, 1, &first), SC_FENCED);
    CHECK_OK(produce(topic, (sc_producer){5, 3, 0}, true, 1, 1, &first), error);
    CHECK_EQ(produce(topic, (sc_producer){5, 3, 1}, false, 1, 1, &first), SC_INVALID);
    CHECK_EQ(produce(topic, (sc_producer){5, 4, 0}, true, 1, 1, &first), SC_INVALID);
    sc_open_transaction open[4];
    int64_t count;
    CHECK_OK(sc_partition_open_transactions(topic, 0, open, 4, &count, &error), error);
    CHECK_EQ(count, 1);
    CHECK(open[0].producer_id == 5 && open[0].epoch == 3 && open[0].first_offset == 1);
    CHECK_EQ(finish(topic, 5, 2, false), -1);
    CHECK_EQ(finish(topic, 5, 4, true), -1);
    CHECK_EQ(finish(topic, 5, 4, false), 2); /* of a lower epoch */
    CHECK_EQ(info_of(topic).stable_offset, 3);
    topic_close(topic);
    folder_remove(path);
}

static void test_bad_producers_are_refused(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    int64_t first;
    CHECK_EQ(produce(topic, (sc_producer){-1, 0, 0}, false, 1, 1, &first), SC_INVALID);
    CHECK_EQ(produce(topic, (sc_producer){1, -1, 0}, false, 1, 1, &first), SC_INVALID);
    CHECK_EQ(produce(topic, (sc_producer){1, 0, -1}, false, 1, 1, &first), SC_INVALID);
    CHECK_EQ(produce(topic, (sc_producer){0, 0, 0}, true, 1, 1, &first), SC_INVALID);
    sc_marker marker = {.producer_id = 0};
    CHECK_EQ(sc_partition_append_marker(topic, 0, &marker, &first, &error), SC_INVALID);
    CHECK_EQ(end_of(topic, 0), 0);
    topic_close(topic);
    folder_remove(path);
}

static void test_the_state_at_the_end_of_a_rewritten_segment_is_taken_over(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    append_records(topic, 0, 0, 10);
    topic_close(topic);
    sc_producer_state *state = sc_producer_state_new();
    CHECK_OK(add(state, 77, 2, 100, 0, 5, false), error);
    CHECK_OK(add(state, 78, 0, 0, 5, 5, true), error);
    CHECK_OK(add(state, 79, 5, 0, 5, 5, false), error);
    state->entries[0].seen_ms = sc_os.now_ms(); /* that of 79 is long over */
    sc_layout *layout = plain_layout(1);
    int64_t size = sc_producers_batch_size(layout, state), first;
    uint8_t *message = malloc((size_t)size);
    sc_placement placement = {.base_offset = 10, .durable_offset = 10, .unstable_count = 5};
    CHECK_OK(sc_producers_batch_write(layout, state, &placement, message, &error), error);
    segment_file(file, path, 0, 0);
    file_write_at(file, message, size, found_end(file));
    topic = topic_open(path, true);
    CHECK_EQ(info_of(topic).end_offset, 10);
    CHECK_EQ(info_of(topic).stable_offset, 5);
    CHECK_EQ(produce(topic, (sc_producer){77, 1, 0}, false, 5, 5, &first), SC_FENCED);
    CHECK_EQ(produce(topic, (sc_producer){77, 2, 106}, false, 5, 5, &first), SC_SEQUENCE);
    CHECK_OK(produce(topic, (sc_producer){77, 2, 100}, false, 5, 5, &first), error);
    CHECK_EQ(first, 0);
    CHECK_EQ(finish(topic, 78, 0, true), 10);
    CHECK_OK(produce(topic, (sc_producer){79, 0, 7}, false, 1, 1, &first), error);
    CHECK_EQ(info_of(topic).stable_offset, 12);
    check_records(topic, 0, 0, 10);
    topic_close(topic);
    free(message);
    sc_layout_free(layout);
    sc_producer_state_free(state);
    folder_remove(path);
}

static void test_records_that_are_not_decided_are_hidden_also_beyond_the_stable_offset(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    int64_t first, count;
    append_records(topic, 0, 0, 5);
    CHECK_OK(produce(topic, (sc_producer){1, 0, 0}, true, 5, 5, &first), error);
    append_records(topic, 0, 10, 3);
    sc_range range = {0, 0, 13};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .committed = true};
    sc_scan *found;
    CHECK_OK(sc_scan_open(topic, &options, &found, &error), error);
    CHECK_OK(sc_scan_count(found, &count, &error), error);
    CHECK_EQ(count, 8);
    sc_scan_free(found);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_sealed_segment_gets_its_list_of_aborted_transactions_when_it_is_flushed(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, 16 << 10);
    int64_t first;
    uint8_t seen[256] = {0};
    for (int i = 0; i < 12; i++) {
        CHECK_OK(produce(topic, (sc_producer){1, (int16_t)i, 0}, true, 20, 20, &first), error);
        finish(topic, 1, (int16_t)i, i % 2 == 0);
    }
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    snprintf(file, sizeof file, "%s/0/%020d.aborted", path, 0);
    CHECK(file_exists(file));
    int64_t size = file_size(file);
    for (int64_t at = 0; at < size; at++) { /* damaged, it is not believed */
        file_flip(file, at);
        topic_close(topic);
        topic = topic_open_with(path, false, 16 << 10);
        CHECK_EQ(scan(topic, true, seen), 120);
        topic_close(topic);
        file_flip(file, at);
        topic = topic_open_with(path, false, 16 << 10);
    }
    CHECK_EQ(scan(topic, true, seen), 120);
    topic_close(topic);
    folder_remove(path);
}

/* A segment whose first append never came: what the last header says lies in the segment before. */
static void test_an_empty_last_segment_does_not_hide_an_open_transaction(void)
{
    for (int flushed = 0; flushed < 2; flushed++) {
        folder_make(path);
        sc_topic *topic = topic_open(path, true);
        int64_t first;
        append_records(topic, 0, 0, 5);
        CHECK_OK(produce(topic, (sc_producer){1, 0, 0}, true, 5, 5, &first), error);
        if (flushed == 1)
            topic_close(topic);
        else
            topic_abandon(topic);
        uint8_t schema[SCHEMA_SIZE];
        schema_message(schema, 1);
        segment_file(file, path, 0, 10);
        file_write(file, schema, SCHEMA_SIZE);
        for (int writable = 0; writable < 2; writable++) {
            topic = topic_open(path, writable);
            CHECK_EQ(info_of(topic).end_offset, 10);
            CHECK_EQ(info_of(topic).stable_offset, 5);
            topic_close(topic);
        }
        folder_remove(path);
    }
}

/* ---- a model --------------------------------------------------------------------------------------------------- */

enum { MODEL_MAX = 20000, MODEL_PRODUCERS = 6 };

typedef struct model {
    uint8_t visible[MODEL_MAX]; /* 0: marker or aborted, 1: committed, 2 + p: in the open transaction of p */
    uint8_t row[MODEL_MAX];
    int64_t end;
    int64_t open[MODEL_PRODUCERS]; /* first offset, or -1 */
    int32_t sequence[MODEL_PRODUCERS];
} model;

static int64_t stable_of(const model *self)
{
    int64_t first = self->end;
    for (int p = 0; p < MODEL_PRODUCERS; p++)
        if (self->open[p] >= 0 && self->open[p] < first)
            first = self->open[p];
    return first;
}

static void check_model(const model *self, sc_topic *topic)
{
    static uint8_t seen[MODEL_MAX];
    sc_partition_info info = info_of(topic);
    CHECK_EQ(info.end_offset, self->end);
    CHECK_EQ(info.stable_offset, stable_of(self));
    for (int committed = 0; committed < 2; committed++) {
        memset(seen, 0, sizeof seen);
        scan(topic, committed, seen);
        for (int64_t i = 0; i < self->end; i++) {
            bool wanted = committed ? i < info.stable_offset && self->visible[i] == 1 : self->row[i];
            if (seen[i] != wanted)
                fprintf(stderr, "offset %lld, committed %d\n", (long long)i, committed);
            CHECK_EQ(seen[i], wanted);
        }
    }
}

static void step(model *self, sc_topic *topic)
{
    int p = (int)random_below(MODEL_PRODUCERS);
    int64_t count = 1 + random_below(20), first;
    if (random_below(4) == 0) {
        append_records(topic, 0, self->end, count);
        memset(self->visible + self->end, 1, (size_t)count);
    } else if (random_below(4) != 0 || self->open[p] < 0) {
        CHECK_OK(produce(topic, (sc_producer){p + 1, 0, self->sequence[p]}, true, count, 1 + random_below(20), &first),
                 error);
        CHECK_EQ(first, self->end);
        self->open[p] = self->open[p] < 0 ? self->end : self->open[p];
        memset(self->visible + self->end, 2 + p, (size_t)count);
        self->sequence[p] += (int32_t)count;
    } else {
        bool commit = random_below(2) == 0;
        CHECK_EQ(finish(topic, p + 1, 0, commit), self->end);
        for (int64_t i = self->open[p]; i < self->end; i++)
            if (self->visible[i] == 2 + p)
                self->visible[i] = commit;
        self->open[p] = -1;
        self->visible[self->end] = 0;
        self->row[self->end++] = 0;
        return;
    }
    memset(self->row + self->end, 1, (size_t)count);
    self->end += count;
}

static void lose_hints(void)
{
    char command[FILE_MAX];
    static const char *const endings[] = {".producers", "*.aborted", "*.index"};
    snprintf(command, sizeof command, "rm -f %s/0/%s", path, endings[random_below(3)]);
    CHECK(system(command) == 0);
}

static void test_logs_of_transactions_equal_a_model(void)
{
    for (uint64_t seed = 1; seed <= 12; seed++) {
        static model self;
        memset(&self, 0, sizeof self);
        memset(self.open, 0xff, sizeof self.open);
        random_seed(seed);
        folder_make(path);
        sc_topic *topic = topic_open_with(path, true, 24 << 10);
        for (int i = 0; i < 600; i++) {
            step(&self, topic);
            if (i % 40 != 39)
                continue;
            if (random_below(3) == 0)
                CHECK_OK(sc_partition_flush(topic, 0, &error), error);
            if (random_below(2) == 0)
                topic_close(topic);
            else
                topic_abandon(topic);
            if (random_below(2) == 0)
                lose_hints();
            sc_topic *reader = topic_open_with(path, false, 24 << 10);
            check_model(&self, reader);
            topic_close(reader);
            topic = topic_open_with(path, true, 24 << 10);
            check_model(&self, topic);
        }
        check_model(&self, topic);
        topic_close(topic);
        folder_remove(path);
    }
}

/* ---- power and faults ------------------------------------------------------------------------------------------ */

/* A log in which two transactions overlap, one batch or marker at a time; where it ends, and is stable, before each. */
enum { STEPS = 8 };

static void make_overlapping(int64_t ends[STEPS], int64_t stable[STEPS])
{
    static const sc_producer producers[STEPS] = {{1, 0, 0}, {2, 0, 0}, {0}, {1, 0, 0}, {1, 0, 2}, {0}, {2, 0, 0}, {0}};
    int64_t first;
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    append_records(topic, 0, 0, 4);
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    for (int i = 0; i < STEPS; i++) {
        ends[i] = info_of(topic).end_offset;
        stable[i] = info_of(topic).stable_offset;
        if (i == 3 || i == 6)
            CHECK_EQ(finish(topic, producers[i].id, 0, true), ends[i]);
        else
            CHECK_OK(produce(topic, producers[i], producers[i].id != 0, 2, 1, &first), error);
    }
    topic_abandon(topic);
}

static void test_a_log_cut_by_power_loss_says_the_stable_offset_of_its_last_batch(void)
{
    for (int lost = 0; lost < STEPS; lost++) {
        int64_t ends[STEPS], stable[STEPS];
        found_batch batches[32];
        make_overlapping(ends, stable);
        segment_file(file, path, 0, 0);
        int found = found_batches(file, batches, 32), at = 0;
        while (at < found && batches[at].header.base_offset < ends[lost])
            at++;
        int64_t position = lost == 3 || lost == 6 ? batches[at - 1].position + batches[at - 1].header.total_size + 600
                                                  : batches[at].position + batches[at].header.total_size - 100;
        file_flip(file, position);
        pretend_power_loss(path);
        sc_topic *topic = topic_open(path, true);
        CHECK_EQ(info_of(topic).end_offset, ends[lost]);
        CHECK_EQ(info_of(topic).stable_offset, stable[lost]);
        sc_open_transaction open[4];
        int64_t count;
        CHECK_OK(sc_partition_open_transactions(topic, 0, open, 4, &count, &error), error);
        for (int64_t i = 0; i < count; i++)
            CHECK(finish(topic, open[i].producer_id, open[i].epoch, false) >= 0);
        CHECK_EQ(info_of(topic).stable_offset, info_of(topic).end_offset);
        topic_close(topic);
        folder_remove(path);
    }
}

/* The file as it was flushed and as it is at the end, mixed sector by sector: any of them may have reached the drive.
 */
static void test_any_sectors_that_reached_the_drive_give_a_prefix_with_its_own_stable_offset(void)
{
    enum { SECTOR = 512, EVENTS = 40, TRIALS = 250 };
    static model self;
    static int64_t stable_at[MODEL_MAX];
    memset(&self, 0, sizeof self);
    memset(self.open, 0xff, sizeof self.open);
    memset(stable_at, 0xff, sizeof stable_at);
    random_seed(77);
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    int64_t flushed = 0, sizes[2];
    uint8_t *states[2];
    segment_file(file, path, 0, 0);
    for (int i = 0; i < EVENTS; i++) {
        step(&self, topic);
        stable_at[self.end] = stable_of(&self);
        if (i == EVENTS / 3) {
            CHECK_OK(sc_partition_flush(topic, 0, &error), error);
            states[0] = file_read(file, &sizes[0]);
            flushed = self.end;
        }
    }
    topic_abandon(topic);
    states[1] = file_read(file, &sizes[1]);
    uint8_t *mixed = malloc((size_t)sizes[1]);
    for (int trial = 0; trial < TRIALS; trial++) {
        uint32_t percent = 50 + random_below(50);
        for (int64_t at = 0; at < sizes[1]; at += SECTOR) {
            bool is_new = at + SECTOR > sizes[0] || random_below(100) < percent;
            memcpy(mixed + at, states[is_new] + at, SECTOR);
        }
        file_write(file, mixed, sizes[1]);
        pretend_power_loss(path);
        topic = topic_open(path, true);
        sc_partition_info info = info_of(topic);
        CHECK(info.end_offset >= flushed && stable_at[info.end_offset] >= 0);
        CHECK_EQ(info.stable_offset, stable_at[info.end_offset]);
        for (int p = 0; p < MODEL_PRODUCERS; p++) /* whatever was open there can be ended */
            (void)finish(topic, p + 1, 0, false);
        CHECK_EQ(info_of(topic).stable_offset, info_of(topic).end_offset);
        topic_abandon(topic);
    }
    free(mixed);
    free(states[0]);
    free(states[1]);
    folder_remove(path);
}

static void test_a_marker_that_a_failing_call_stopped_can_be_written_again(void)
{
    for (int number = 1; number < 60; number++) {
        folder_make(path);
        sc_topic *topic = topic_open(path, true);
        int64_t first, offset = -1;
        uint8_t seen[64] = {0};
        CHECK_OK(produce(topic, (sc_producer){1, 0, 0}, true, 4, 4, &first), error);
        sc_marker marker = {.producer_id = 1, .epoch = 0, .commit = true, .durable = true};
        faults_arm(number, ENOSPC, false);
        int code = sc_partition_append_marker(topic, 0, &marker, &offset, &error);
        bool failed = faults_disarm();
        if (code != SC_OK && error.code != SC_POISONED)
            (void)sc_partition_append_marker(topic, 0, &marker, &offset, &error);
        topic_abandon(topic);
        topic = topic_open(path, true);
        (void)finish(topic, 1, 0, true);
        CHECK_EQ(info_of(topic).stable_offset, 5);
        CHECK_EQ(scan(topic, true, seen), 4);
        topic_close(topic);
        folder_remove(path);
        if (!failed)
            break;
    }
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

enum { WRITERS = 3, READERS = 2, TRANSACTIONS = 60 };
static sc_topic *shared;
static atomic_int writers_left;

/* Each transaction knows how it will end: its values begin with 1 when it is committed. */
static void *write_transactions(void *argument)
{
    int64_t id = (int64_t)(intptr_t)argument;
    uint8_t text[100] = {0};
    sc_error own;
    for (int16_t epoch = 0; epoch < TRANSACTIONS; epoch++) {
        text[0] = epoch % 3 != 0;
        sc_bytes value = {text, sizeof text};
        sc_batch_input input = {.count = 1, .values = &value, .timestamp = FIRST_TIME};
        sc_append append = {.batches = &input,
                            .batch_count = 1,
                            .schema_version = 1,
                            .generation = GENERATION,
                            .expected_offset = -1,
                            .producer = {id, epoch, 0},
                            .transactional = true};
        int64_t first, end, offset;
        for (; append.producer.sequence < 4; append.producer.sequence++)
            CHECK_OK(sc_partition_append(shared, 0, &append, &first, &end, &own), own);
        sc_marker marker = {.producer_id = id, .epoch = epoch, .commit = text[0] == 1};
        CHECK_OK(sc_partition_append_marker(shared, 0, &marker, &offset, &own), own);
    }
    atomic_fetch_sub(&writers_left, 1);
    return NULL;
}

static int64_t read_committed(sc_error *own)
{
    sc_partition_info info;
    sc_scan *found;
    sc_batch batch;
    sc_rows rows;
    int64_t count = 0;
    CHECK_OK(sc_partition_describe(shared, 0, false, &info, own), *own);
    sc_range range = {0, 0, info.stable_offset};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true,
                               .committed = true};
    CHECK_OK(sc_scan_open(shared, &options, &found, own), *own);
    int code;
    for (; (code = sc_scan_next(found, &batch, own)) == SC_OK; count += batch.row_count) {
        CHECK_OK(sc_batch_rows(&batch, &rows, own), *own);
        for (int64_t row = 0; row < rows.count; row++)
            CHECK_EQ(rows.values[rows.value_ends[row]], 1);
    }
    if (code != SC_END)
        check_error(__FILE__, __LINE__, "sc_scan_next", own);
    sc_scan_free(found);
    return count;
}

static void *read_transactions(void *argument)
{
    sc_error own;
    int64_t before = 0;
    while (atomic_load(&writers_left) > 0) {
        int64_t count = read_committed(&own);
        CHECK(count >= before);
        before = count;
    }
    return argument;
}

static void test_threads_that_read_while_transactions_end_see_only_what_is_committed(void)
{
    pthread_t threads[WRITERS + READERS];
    folder_make(path);
    shared = topic_open_with(path, true, 32 << 10);
    atomic_store(&writers_left, WRITERS);
    for (int64_t i = 0; i < WRITERS + READERS; i++)
        CHECK(pthread_create(&threads[i], NULL, i < WRITERS ? write_transactions : read_transactions,
                             (void *)(intptr_t)(i + 1)) == 0);
    for (int i = 0; i < WRITERS + READERS; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQ(read_committed(&error), (int64_t)WRITERS * 4 * (TRANSACTIONS - (TRANSACTIONS + 2) / 3));
    topic_close(shared);
    folder_remove(path);
}

/* ---- waiting --------------------------------------------------------------------------------------------------- */

static void test_a_wait_for_stable_records_ends_with_the_marker(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    int64_t first, known = 0;
    uint32_t partition = 0;
    CHECK_OK(produce(topic, (sc_producer){1, 0, 0}, true, 4, 4, &first), error);
    CHECK_OK(sc_topic_wait(topic, &partition, &known, 1, false, 0, &error), error);
    CHECK_EQ(sc_topic_wait(topic, &partition, &known, 1, true, 0, &error), SC_END);
    CHECK_EQ(finish(topic, 1, 0, false), 4);
    CHECK_OK(sc_topic_wait(topic, &partition, &known, 1, true, 0, &error), error);
    topic_close(topic);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_the_last_five_appends_of_a_producer_are_known_again);
    RUN(test_a_lower_epoch_is_fenced_and_a_higher_one_begins_at_0);
    RUN(test_sequences_wrap_to_0);
    RUN(test_what_is_encoded_comes_back_and_damage_is_refused);
    RUN(test_idle_producers_are_forgotten_and_those_with_open_transactions_are_not);
    RUN(test_the_number_of_producers_is_bounded);
    RUN(test_a_repeated_append_gets_its_old_offsets_in_any_process_and_after_any_end);
    RUN(test_a_snapshot_of_a_log_that_was_cut_is_not_believed);
    RUN(test_an_open_transaction_holds_the_stable_offset_until_its_marker);
    RUN(test_a_fencing_marker_is_written_where_nothing_is_open_and_keeps_zombies_out);
    RUN(test_bad_producers_are_refused);
    RUN(test_the_state_at_the_end_of_a_rewritten_segment_is_taken_over);
    RUN(test_records_that_are_not_decided_are_hidden_also_beyond_the_stable_offset);
    RUN(test_a_sealed_segment_gets_its_list_of_aborted_transactions_when_it_is_flushed);
    RUN(test_an_empty_last_segment_does_not_hide_an_open_transaction);
    RUN(test_logs_of_transactions_equal_a_model);
    RUN(test_a_log_cut_by_power_loss_says_the_stable_offset_of_its_last_batch);
    RUN(test_any_sectors_that_reached_the_drive_give_a_prefix_with_its_own_stable_offset);
    RUN(test_a_marker_that_a_failing_call_stopped_can_be_written_again);
    RUN(test_threads_that_read_while_transactions_end_see_only_what_is_committed);
    RUN(test_a_wait_for_stable_records_ends_with_the_marker);
    return 0;
}
