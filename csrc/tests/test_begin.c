/* Producers as of an offset, and logs that begin there because their older records are elsewhere. */
#include <errno.h>
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

enum { ELSEWHERE = 5000, BOUNDARIES_MAX = 64 };

typedef struct known {
    int64_t offset; /* -1: nothing is known */
    uint8_t *data;  /* NULL: there is no producer */
    int64_t size;
} known;

static known known_at(sc_topic *topic, int64_t offset, known before)
{
    known found = {.offset = offset};
    CHECK_OK(sc_partition_producers(topic, 0, offset, before.offset, before.data, before.size, &found.data, &found.size,
                                    &error),
             error);
    return found;
}

static sc_producer_state *decoded(known of)
{
    int64_t offset;
    sc_producer_state *state = sc_producer_state_new();
    if (of.size > 0)
        CHECK_OK(sc_producer_state_decode(state, of.data, of.size, &offset, &error), error);
    return state;
}

/* But for the times, and the order. */
static void check_same(known a, known b)
{
    sc_producer_state *left = decoded(a), *right = decoded(b);
    CHECK_EQ(left->count, right->count);
    for (int64_t i = 0; i < left->count; i++) {
        sc_producer_entry one = left->entries[i];
        const sc_producer_entry *other = sc_producer_state_find(right, one.id);
        CHECK(other != NULL);
        one.seen_ms = other->seen_ms;
        CHECK(memcmp(&one, other, sizeof one) == 0);
    }
    sc_producer_state_free(left);
    sc_producer_state_free(right);
}

static void test_producers_as_of_an_offset_are_those_of_the_records_below_it(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        random_seed(seed);
        folder_make(path);
        sc_topic *topic = topic_open_with(path, true, 1 << 20);
        int64_t ends[BOUNDARIES_MAX], first, base;
        int32_t next[5] = {0};
        int16_t epochs[5] = {0};
        known at[BOUNDARIES_MAX], none = {.offset = -1};
        int count = 0;
        for (int i = 0; i < 200; i++) {
            uint32_t id = 1 + random_below(4), rows = 1 + random_below(20);
            if (random_below(10) == 0) {
                epochs[id]++;
                next[id] = 0;
            }
            bool transactional = random_below(5) == 0;
            CHECK_OK(produce(topic, (sc_producer){id, epochs[id], next[id]}, transactional, rows, 7, &first), error);
            next[id] += (int32_t)rows;
            if (transactional)
                finish(topic, id, epochs[id], random_below(2) == 0);
            if (random_below(8) == 0 && count < BOUNDARIES_MAX) {
                CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
                ends[count] = base;
                at[count++] = known_at(topic, base, none);
            }
        }
        sc_producers look;
        for (int way = 0; way < 3; way++) {
            for (int i = 0; i < count; i++) {
                known whole = known_at(topic, ends[i], none), on = known_at(topic, ends[i], i > 0 ? at[i - 1] : none);
                check_same(whole, at[i]);
                check_same(on, at[i]);
                CHECK_OK(sc_producers_look(whole.data, whole.size, &look, &error), error);
                CHECK_EQ(look.offset, ends[i]);
                CHECK(look.count > 0 && look.count <= 4 && look.greatest_id >= look.count);
                free(whole.data);
                free(on.data);
            }
            known out = {0};
            CHECK_EQ(sc_partition_producers(topic, 0, ends[1] + 1, -1, NULL, 0, &out.data, &out.size, &error),
                     SC_RANGE);
            CHECK_EQ(sc_partition_producers(topic, 0, ends[0], ends[1], at[1].data, at[1].size, &out.data, &out.size,
                                            &error),
                     SC_RANGE);
            if (way == 0)
                topic_abandon(topic);
            else
                topic_close(topic); /* with a snapshot as of its end */
            topic = topic_open_with(path, way == 0, 1 << 20);
        }
        topic_close(topic);
        for (int i = 0; i < count; i++)
            free(at[i].data);
        folder_remove(path);
    }
}

static void test_producers_as_of_an_offset_wait_for_open_transactions_and_know_of_none(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    int64_t first, base;
    known none = {.offset = -1}, found;
    CHECK_OK(produce(topic, (sc_producer){1, 0, 0}, true, 5, 5, &first), error);
    CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
    CHECK_EQ(base, 5);
    CHECK_EQ(sc_partition_producers(topic, 0, 5, -1, NULL, 0, &found.data, &found.size, &error), SC_RANGE);
    CHECK_EQ(finish(topic, 1, 0, true), 5);
    found = known_at(topic, 5, none);
    sc_producer_state *state = decoded(found);
    CHECK_EQ(state->count, 1);
    CHECK_EQ(state->open_count, 0);
    CHECK_EQ(state->entries[0].units[0].last_offset, 4);
    sc_producer_state_free(state);
    free(found.data);
    topic_close(topic);
    folder_remove(path);
}

/* Producer 1 has appended 50 times ten records, producer 2 is in epoch 3; what is known of them at ELSEWHERE. */
static known make_elsewhere(void)
{
    sc_producer_state *state = sc_producer_state_new();
    for (int i = 0; i < 50; i++)
        CHECK_OK(add(state, 1, 0, i * 10, ELSEWHERE - 510 + i * 10, 10, false), error);
    CHECK_OK(add(state, 2, 3, 0, ELSEWHERE - 10, 10, true), error);
    for (int64_t i = 0; i < state->count; i++)
        state->entries[i].seen_ms = sc_os.now_ms();
    known made = {.size = sc_producer_state_encoded_size(state)};
    made.data = malloc((size_t)made.size);
    sc_producer_state_encode(state, made.data);
    sc_producer_state_free(state);
    return made;
}

static int begin(sc_topic *topic, known from)
{
    return sc_partition_begin(topic, 0, ELSEWHERE, 1, from.data, from.size, &error);
}

/* Nothing is appended by this. */
static void check_known(sc_topic *topic, int64_t end)
{
    int64_t first;
    for (int i = 45; i < 50; i++) {
        CHECK_OK(produce(topic, (sc_producer){1, 0, i * 10}, false, 10, 10, &first), error);
        CHECK_EQ(first, ELSEWHERE - 510 + i * 10);
    }
    CHECK_EQ(produce(topic, (sc_producer){1, 0, 440}, false, 10, 10, &first), SC_SEQUENCE); /* too old */
    CHECK_EQ(produce(topic, (sc_producer){1, 0, 510}, false, 10, 10, &first), SC_SEQUENCE); /* a gap */
    CHECK_EQ(produce(topic, (sc_producer){2, 2, 10}, false, 10, 10, &first), SC_FENCED);
    CHECK_EQ(end_of(topic, 0), end);
}

static void test_a_log_that_begins_elsewhere_knows_its_producers_after_any_end(void)
{
    known from = make_elsewhere();
    for (int way = 0; way < 4; way++) {
        folder_make(path);
        snprintf(file, sizeof file, "%s/0/.producers", path);
        sc_topic *topic = topic_open_with(path, true, 16 << 10);
        CHECK_OK(begin(topic, from), error);
        if (way > 0) {
            if (way == 1)
                topic_close(topic);
            else
                topic_abandon(topic);
            if (way == 3)
                pretend_power_loss(path);
            topic = topic_open_with(path, true, 16 << 10);
        }
        CHECK_EQ(info_of(topic).start_offset, ELSEWHERE);
        CHECK_EQ(info_of(topic).stable_offset, ELSEWHERE);
        check_known(topic, ELSEWHERE);
        int64_t first, end = ELSEWHERE;
        for (int i = 0; i < 30; i++, end += 2) {
            CHECK_OK(produce(topic, (sc_producer){3, 0, i}, false, 1, 1, &first), error);
            append_records(topic, 0, end + 1, 1);
        }
        check_known(topic, end);
        topic_abandon(topic);
        topic = topic_open_with(path, true, 16 << 10);
        check_known(topic, end);
        topic_close(topic);
        CHECK(unlink(file) == 0); /* the snapshot */
        topic = topic_open_with(path, true, 16 << 10);
        check_known(topic, end);
        CHECK_OK(produce(topic, (sc_producer){1, 0, 500}, false, 10, 10, &first), error);
        CHECK_EQ(first, end);
        check_records(topic, 0, ELSEWHERE + 1, ELSEWHERE + 2);
        int64_t base;
        known none = {.offset = -1}, on;
        CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
        on = known_at(topic, base, none);
        sc_producer_state *state = decoded(on);
        CHECK_EQ(state->count, 3);
        CHECK_EQ(sc_producer_state_find(state, 2)->epoch, 3);
        CHECK_EQ(sc_producer_state_find(state, 1)->units[4].first_offset, end);
        sc_producer_state_free(state);
        free(on.data);
        topic_close(topic);
        folder_remove(path);
    }
    free(from.data);
}

static void test_a_log_that_begins_elsewhere_without_its_producers_takes_all_again(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    int64_t first;
    known none = {.offset = -1};
    CHECK_OK(begin(topic, none), error);
    CHECK_OK(produce(topic, (sc_producer){1, 0, 490}, false, 10, 10, &first), error);
    CHECK_EQ(first, ELSEWHERE);
    topic_close(topic);
    folder_remove(path);
}

static void test_producers_that_are_damaged_or_of_a_later_offset_begin_no_log(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    known from = make_elsewhere();
    sc_producers look;
    from.data[100] ^= 1;
    CHECK_EQ(begin(topic, from), SC_CORRUPT);
    CHECK_EQ(sc_producers_look(from.data, from.size, &look, &error), SC_CORRUPT);
    from.data[100] ^= 1;
    CHECK_EQ(sc_partition_begin(topic, 0, ELSEWHERE - 1, 1, from.data, from.size, &error), SC_RANGE);
    CHECK_EQ(end_of(topic, 0), 0);
    CHECK_OK(begin(topic, from), error);
    check_known(topic, ELSEWHERE);
    topic_close(topic);
    free(from.data);
    folder_remove(path);
}

static int produce_in(sc_topic *topic, uint32_t version)
{
    static const sc_bytes value = {(const uint8_t *)"new", 3};
    sc_batch_input input = {.count = 1, .values = &value, .timestamp = FIRST_TIME};
    sc_append append = {.batches = &input,
                        .batch_count = 1,
                        .schema_version = version,
                        .generation = GENERATION,
                        .expected_offset = -1};
    int64_t first, end;
    return sc_partition_append(topic, 0, &append, &first, &end, &error);
}

static void test_a_new_schema_before_the_first_record_keeps_what_a_log_begins_with(void)
{
    known from = make_elsewhere();
    for (int way = 0; way < 2; way++) {
        folder_make(path);
        sc_topic *topic = topic_open(path, true);
        CHECK_OK(sc_topic_add_layout(topic, plain_layout(2), &error), error);
        CHECK_OK(begin(topic, from), error);
        if (way == 0)
            check_known(topic, ELSEWHERE);
        CHECK_OK(produce_in(topic, 2), error);
        check_known(topic, ELSEWHERE + 1);
        topic_abandon(topic);
        topic = topic_open(path, true);
        CHECK_OK(sc_topic_add_layout(topic, plain_layout(2), &error), error);
        check_known(topic, ELSEWHERE + 1);
        topic_close(topic);
        folder_remove(path);
    }
    free(from.data);
}

static void test_a_log_begins_with_more_producers_than_a_segment_has_bytes(void)
{
    enum { MANY = 20000 };
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, 64 << 10);
    sc_producer_state *state = sc_producer_state_new();
    for (int i = 1; i <= MANY; i++)
        CHECK_OK(add(state, i, 1, 0, i, 1, false), error);
    for (int64_t i = 0; i < state->count; i++)
        state->entries[i].seen_ms = sc_os.now_ms();
    known from = {.size = sc_producer_state_encoded_size(state)};
    CHECK_EQ(from.size, SC_PRODUCER_HEADER_SIZE + 160 * MANY);
    from.data = malloc((size_t)from.size);
    sc_producer_state_encode(state, from.data);
    CHECK_OK(sc_partition_begin(topic, 0, MANY + 1, 1, from.data, from.size, &error), error);
    int64_t first;
    for (int64_t i = 0; i < 300; i++)
        append_records(topic, 0, MANY + 1 + i * 10, 10);
    topic_abandon(topic);
    topic = topic_open_with(path, true, 64 << 10);
    CHECK_OK(produce(topic, (sc_producer){MANY, 1, 0}, false, 1, 1, &first), error);
    CHECK_EQ(first, MANY);
    CHECK_EQ(produce(topic, (sc_producer){7, 0, 0}, false, 1, 1, &first), SC_FENCED);
    check_records(topic, 0, MANY + 1, MANY + 3001);
    topic_close(topic);
    sc_producer_state_free(state);
    free(from.data);
    folder_remove(path);
}

static bool is_killed_beginning(known from, int number)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        sc_topic *topic = topic_open(path, true);
        faults_arm_kill(number);
        (void)begin(topic, from);
        _exit(0);
    }
    CHECK(child > 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    return WIFSIGNALED(status);
}

static void test_a_process_that_is_killed_while_a_log_begins_leaves_none_or_one_that_knows_its_producers(void)
{
    known from = make_elsewhere();
    int without = 0, with = 0;
    bool killed = true;
    for (int number = 1; killed; number++) {
        folder_make(path);
        killed = is_killed_beginning(from, number);
        sc_topic *topic = topic_open(path, true);
        int64_t end = end_of(topic, 0);
        CHECK(end == ELSEWHERE || (end == 0 && killed));
        *(end == 0 ? &without : &with) += 1;
        if (end == 0)
            CHECK_OK(begin(topic, from), error);
        check_known(topic, ELSEWHERE);
        topic_close(topic);
        folder_remove(path);
    }
    CHECK(without > 3 && with > 3);
    free(from.data);
}

static struct sc_os_table real;
static int unsynced; /* the file that was written to since its last sync; -1: none */
static bool named_too_early;

static ssize_t watched_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    unsynced = fd;
    return real.pwrite(fd, data, size, position);
}

static int watched_sync(int fd)
{
    int result = real.sync(fd);
    if (fd == unsynced)
        unsynced = -1;
    return result;
}

static int watched_rename(const char *from, const char *to)
{
    if (strstr(to, ".arrows") != NULL && unsynced >= 0)
        named_too_early = true;
    return real.rename(from, to);
}

/* Else the power could be lost between the two, and what was known of producers with it: the log would go on. */
static void test_what_a_log_begins_with_is_durable_before_the_log_is_there(void)
{
    known from = make_elsewhere();
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    real = sc_os;
    unsynced = -1;
    named_too_early = false;
    sc_os.pwrite = watched_pwrite;
    sc_os.sync = watched_sync;
    sc_os.rename = watched_rename;
    int code = begin(topic, from);
    sc_os_reset();
    CHECK_OK(code, error);
    CHECK(!named_too_early);
    topic_close(topic);
    free(from.data);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_producers_as_of_an_offset_are_those_of_the_records_below_it);
    RUN(test_producers_as_of_an_offset_wait_for_open_transactions_and_know_of_none);
    RUN(test_a_log_that_begins_elsewhere_knows_its_producers_after_any_end);
    RUN(test_a_log_that_begins_elsewhere_without_its_producers_takes_all_again);
    RUN(test_producers_that_are_damaged_or_of_a_later_offset_begin_no_log);
    RUN(test_a_new_schema_before_the_first_record_keeps_what_a_log_begins_with);
    RUN(test_a_log_begins_with_more_producers_than_a_segment_has_bytes);
    RUN(test_a_process_that_is_killed_while_a_log_begins_leaves_none_or_one_that_knows_its_producers);
    RUN(test_what_a_log_begins_with_is_durable_before_the_log_is_there);
    return 0;
}
