/*
 * Files that change under somebody's feet: while a handle looks at a log, another one appends to its active segment,
 * seals, cuts and replaces it, between any two system calls of the first. What it knew of one file is not taken for
 * another.
 */
#include "check.h"
#include "os.h"
#include "plain_topic.h"

enum {
    SEGMENT = 256 << 10,
    IN_FIRST = 10, /* records: of producer 1, which aborts, and of 2, which commits, by turns */
    ABORT_AT = 10, /* the markers, in the second segment */
    COMMIT_AT = 11,
    END = 14,  /* behind two plain records */
    MORE = 60, /* plain records that come meanwhile, before the second segment is sealed and both are replaced */
    ALL_ROWS = IN_FIRST + 2,
    COMMITTED_ROWS = IN_FIRST / 2 + 2,
    PARTITION_LOCKS = 1 << 20,
};
static char path[FOLDER_MAX];

/* ---- something that happens at a system call ----------------------------------------------------------------- */

static struct os_hook {
    void (*happens)(void);
    int before_call; /* 1: before the next one */
    int calls, locks_held;
    bool happened, at_rename;
} hook;
static struct sc_os_table real;

static void at_call(void)
{
    if (hook.happens == NULL || ++hook.calls < hook.before_call || hook.locks_held > 0)
        return;
    void (*happens)(void) = hook.happens;
    hook.happens = NULL;
    hook.happened = true;
    happens();
}

static int hooked_open(const char *name, int how)
{
    at_call();
    return real.open(name, how);
}

static int hooked_stat(int fd, sc_file_stat *stat)
{
    at_call();
    return real.stat(fd, stat);
}

static void *hooked_map(int fd, size_t size, bool writable)
{
    at_call();
    return real.map(fd, size, writable);
}

static int hooked_close(int fd)
{
    at_call();
    return real.close(fd);
}

static int hooked_truncate(int fd, int64_t size)
{
    at_call();
    return real.truncate(fd, size);
}

static int hooked_sync_data(int fd)
{
    at_call();
    return real.sync_data(fd);
}

static int hooked_list(const char *name, sc_name_callback callback, void *context)
{
    at_call();
    return real.list(name, callback, context);
}

/* Nothing can happen while this thread keeps all others out. */
static int hooked_lock(int fd, int64_t byte, int kind, bool wait)
{
    int result = real.lock(fd, byte, kind, wait);
    if (hook.happens != NULL && byte >= PARTITION_LOCKS && byte < 2 * PARTITION_LOCKS && result == 0)
        hook.locks_held += kind == SC_LOCK_NONE ? -1 : 1;
    return result;
}

static int hooked_rename(const char *from, const char *to)
{
    int result = real.rename(from, to);
    size_t length = strlen(from);
    if (hook.at_rename && length > 4 && strcmp(from + length - 4, ".new") == 0)
        at_call();
    return result;
}

static void hook_calls(void (*happens)(void), int before_call)
{
    real = sc_os;
    sc_os.open = hooked_open;
    sc_os.stat = hooked_stat;
    sc_os.map = hooked_map;
    sc_os.close = hooked_close;
    sc_os.truncate = hooked_truncate;
    sc_os.sync_data = hooked_sync_data;
    sc_os.list = hooked_list;
    sc_os.lock = hooked_lock;
    hook = (struct os_hook){.happens = happens, .before_call = before_call};
}

/* Behind the renaming of a rewritten segment: nobody has been told of it yet. */
static void hook_renaming(void (*happens)(void))
{
    real = sc_os;
    sc_os.rename = hooked_rename;
    hook = (struct os_hook){.happens = happens, .before_call = 1, .at_rename = true};
}

/* False when it did not happen: there were fewer calls. */
static bool unhook(void)
{
    hook.happens = NULL;
    sc_os_reset();
    return hook.happened;
}

/* ---- the log ------------------------------------------------------------------------------------------------- */

static void append_one(sc_topic *topic, int64_t producer, int32_t sequence)
{
    int64_t first, end;
    sc_error error;
    sc_bytes value = {(const uint8_t *)"value", 5};
    sc_batch_input input = {.count = 1, .values = &value, .timestamp = FIRST_TIME};
    sc_append append = {.batches = &input,
                        .batch_count = 1,
                        .schema_version = 1,
                        .generation = GENERATION,
                        .expected_offset = -1,
                        .producer = {.id = producer, .sequence = sequence},
                        .transactional = producer != SC_NO_PRODUCER};
    CHECK_OK(sc_partition_append(topic, 0, &append, &first, &end, &error), error);
}

static void append_marker(sc_topic *topic, int64_t producer, bool commit, int64_t wanted)
{
    sc_marker marker = {.producer_id = producer, .commit = commit};
    sc_error error;
    int64_t offset;
    CHECK_OK(sc_partition_append_marker(topic, 0, &marker, &offset, &error), error);
    CHECK_EQ(offset, wanted);
}

static int64_t roll(sc_topic *topic)
{
    sc_error error;
    int64_t base;
    CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
    return base;
}

static void consolidate(sc_topic *topic, int64_t base)
{
    sc_rewrite *rewrite;
    sc_rewrite_report report;
    sc_error error;
    CHECK_OK(sc_rewrite_open(topic, 0, base, &rewrite, &error), error);
    CHECK_OK(sc_rewrite_plain(rewrite, 32 << 10, NULL, NULL, &error), error);
    CHECK_OK(sc_rewrite_commit(rewrite, &report, &error), error);
    CHECK(report.replaced);
    sc_rewrite_free(rewrite);
}

static sc_topic *make_log(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int i = 0; i < IN_FIRST; i++)
        append_one(topic, 1 + i % 2, i / 2);
    CHECK_EQ(roll(topic), ABORT_AT);
    append_marker(topic, 1, false, ABORT_AT);
    append_marker(topic, 2, true, COMMIT_AT);
    for (int i = COMMIT_AT + 1; i < END; i++)
        append_one(topic, SC_NO_PRODUCER, 0);
    CHECK_EQ(end_of(topic, 0), END);
    return topic;
}

/* The active segment becomes a sealed one, and both sealed ones become other files: one batch lies where many lay. */
static void replace_all(sc_topic *topic)
{
    for (int i = 0; i < MORE; i++)
        append_one(topic, SC_NO_PRODUCER, 0);
    roll(topic);
    consolidate(topic, ABORT_AT);
    consolidate(topic, 0);
    append_one(topic, SC_NO_PRODUCER, 0);
}

static sc_topic *writer;

static void writer_replaces_all(void)
{
    replace_all(writer);
}

static void writer_comes_and_stays(void)
{
    writer = topic_open_with(path, true, SEGMENT);
    replace_all(writer);
}

static void writer_comes_and_goes(void)
{
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    replace_all(topic);
    topic_close(topic);
}

/* ---- looking at it ------------------------------------------------------------------------------------------- */

static int64_t rows_of(sc_topic *topic, int64_t end, bool committed, int64_t min_timestamp)
{
    sc_range range = {0, 0, end};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = min_timestamp,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true,
                               .committed = committed};
    sc_scan *scan;
    sc_batch batch;
    sc_error error;
    int64_t rows = 0, next = 0;
    int code;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    while ((code = sc_scan_next(scan, &batch, &error)) == SC_OK) {
        CHECK(batch.base_offset >= next);
        next = batch.last_offset + 1;
        rows += batch.row_count;
    }
    if (code != SC_END)
        CHECK_OK(code, error);
    sc_scan_free(scan);
    return rows;
}

/* Records of aborted transactions are gone from the new files. */
static void read_all(sc_topic *topic)
{
    int64_t rows = rows_of(topic, END, false, INT64_MIN);
    CHECK(rows == ALL_ROWS || rows == COMMITTED_ROWS);
}

static void read_committed(sc_topic *topic)
{
    CHECK_EQ(rows_of(topic, END, true, INT64_MIN), COMMITTED_ROWS);
}

static void read_from_a_time_on(sc_topic *topic)
{
    CHECK_EQ(rows_of(topic, END, true, FIRST_TIME), COMMITTED_ROWS);
    CHECK_EQ(rows_of(topic, END, true, FIRST_TIME + 1), 0);
}

static void count_committed(sc_topic *topic)
{
    sc_range range = {0, 0, END};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .committed = true};
    sc_scan *scan;
    sc_error error;
    int64_t count;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    CHECK_OK(sc_scan_count(scan, &count, &error), error);
    sc_scan_free(scan);
    CHECK_EQ(count, COMMITTED_ROWS);
}

static void on_problem(void *context, const sc_error *problem)
{
    (void)context;
    check_error(__FILE__, __LINE__, "verify", problem);
}

static void verify(sc_topic *topic)
{
    sc_error error;
    CHECK_OK(sc_partition_verify(topic, 0, on_problem, NULL, NULL, &error), error);
}

static void look_at_segments(sc_topic *topic)
{
    sc_segment_info info;
    sc_error error;
    int64_t next = 0;
    bool sealed = true;
    int code;
    for (int64_t n = 0; (code = sc_partition_segment(topic, 0, n, &info, &error)) == SC_OK; n++) {
        CHECK(sealed ? info.base_offset == next : info.base_offset > next); /* the active one was sealed since */
        sealed = info.sealed;
        next = info.end_offset;
        if (!sealed && info.base_offset == ABORT_AT)
            CHECK_EQ(info.end_offset, END);
    }
    if (code != SC_END)
        CHECK_OK(code, error);
    CHECK(next >= END && next <= END + MORE + 1);
}

static void describe(sc_topic *topic)
{
    sc_partition_info info;
    sc_error error;
    CHECK_OK(sc_partition_describe(topic, 0, true, &info, &error), error);
    CHECK(info.end_offset >= END && info.end_offset <= END + MORE + 1);
    CHECK_EQ(info.stable_offset, info.end_offset);
}

static void (*const looks[])(sc_topic *) = {
    read_all, read_committed, read_from_a_time_on, count_committed, verify, look_at_segments, describe};
enum { LOOKS = sizeof looks / sizeof *looks };

static void look_every_way(sc_topic *topic)
{
    for (int i = 0; i < LOOKS; i++)
        looks[i](topic);
}

/* ---- tests --------------------------------------------------------------------------------------------------- */

/* The handle's first look, or one with all that it knows from an earlier one. */
static int sweep(void (*look)(sc_topic *), bool writable, bool knows, void (*happens)(void))
{
    bool live = happens == writer_replaces_all, happened = true;
    int call = 0;
    while (happened) {
        writer = make_log();
        if (!live) {
            topic_close(writer);
            writer = NULL;
        }
        sc_topic *topic = topic_open_with(path, writable, SEGMENT);
        if (knows)
            look_every_way(topic);
        hook_calls(happens, ++call);
        look(topic);
        happened = unhook();
        look_every_way(topic);
        topic_close(topic);
        if (writer != NULL)
            topic_close(writer);
        topic = topic_open_with(path, false, SEGMENT);
        look_every_way(topic);
        topic_close(topic);
        folder_remove(path);
    }
    return call - 1;
}

static void test_a_reader_finds_all_records_whenever_segments_are_sealed_and_replaced(void)
{
    int calls = 0;
    for (int i = 0; i < LOOKS; i++)
        for (int knows = 0; knows < 2; knows++)
            calls += sweep(looks[i], false, knows, writer_replaces_all);
    CHECK(calls > 100);
}

static void test_so_does_a_handle_that_may_write(void)
{
    int calls = 0;
    for (int i = 0; i < LOOKS; i++)
        for (int knows = 0; knows < 2; knows++)
            calls += sweep(looks[i], true, knows, writer_replaces_all);
    CHECK(calls > 30);
}

static void test_so_does_a_reader_that_finds_the_end_of_the_log_itself_while_a_writer_comes(void)
{
    int calls = 0;
    for (int i = 0; i < LOOKS; i++)
        calls += sweep(looks[i], false, false, writer_comes_and_stays) +
                 sweep(looks[i], false, false, writer_comes_and_goes);
    CHECK(calls > 100);
}

static void make_one_batch_of_them(void)
{
    append_records(writer, 0, 2, 200);
    CHECK_EQ(roll(writer), 202);
    consolidate(writer, 0);
}

static void writer_replaces_and_deletes(void)
{
    sc_removal removal;
    sc_error error;
    replace_all(writer);
    CHECK_OK(sc_partition_delete_before(writer, 0, END + MORE, &removal, &error), error);
    CHECK(removal.segments >= 2);
}

/* Who comes too late for a record is told so, however he knew of it. */
static void test_a_reader_is_told_of_deleted_records_whenever_they_go(void)
{
    int reads = 0, refusals = 0;
    for (int call = 1, happened = true; happened; call++) {
        sc_range range = {0, 0, END};
        sc_scan_options options = {.ranges = &range,
                                   .range_count = 1,
                                   .min_timestamp = INT64_MIN,
                                   .max_timestamp = INT64_MAX,
                                   .limit = -1,
                                   .verify = true,
                                   .committed = call % 2 != 0};
        sc_scan *scan;
        sc_batch batch;
        sc_error error;
        int code;
        writer = make_log();
        sc_topic *topic = topic_open_with(path, false, SEGMENT);
        hook_calls(writer_replaces_and_deletes, call);
        CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
        while ((code = sc_scan_next(scan, &batch, &error)) == SC_OK)
            ;
        happened = unhook();
        if (code != SC_END && code != SC_RANGE)
            CHECK_OK(code, error);
        reads += code == SC_END;
        refusals += code == SC_RANGE;
        sc_scan_free(scan);
        topic_close(topic);
        topic_close(writer);
        folder_remove(path);
    }
    CHECK(reads > 0 && refusals > 0);
}

/* The end of the log in the old file is a place inside the first batch of the new one. */
static void test_the_end_of_the_old_file_is_no_place_in_the_new_one(void)
{
    enum { BEFORE_OPENING_THE_FILE = 3 };
    for (int call = 1, happened = true; happened; call++) {
        folder_make(path);
        writer = topic_open_with(path, true, SEGMENT);
        append_records(writer, 0, 0, 1);
        append_records(writer, 0, 1, 1);
        sc_topic *topic = topic_open_with(path, true, SEGMENT);
        hook_calls(make_one_batch_of_them, call);
        check_records(topic, 0, 0, 2);
        happened = unhook();
        CHECK(happened || call > BEFORE_OPENING_THE_FILE);
        topic_close(topic);
        topic_close(writer);
        folder_remove(path);
    }
}

static sc_topic *late;
static int64_t wanted_rows;

static void late_reader_reads(void)
{
    CHECK_EQ(rows_of(late, END + MORE, true, INT64_MIN), wanted_rows);
    CHECK_EQ(rows_of(late, END + MORE, true, FIRST_TIME), wanted_rows);
    verify(late);
    int64_t base = -1;
    sc_segment_info info;
    sc_error error;
    for (int64_t n = 0; sc_partition_segment(late, 0, n, &info, &error) == SC_OK; n++) {
        CHECK(info.base_offset > base);
        base = info.base_offset;
    }
}

/* What was learnt of markers in a file that was active does not go on in the middle of another. */
static void test_between_the_renaming_and_the_word_of_it_readers_mix_no_two_files(void)
{
    sc_topic *topic = make_log();
    late = topic_open_with(path, false, SEGMENT);
    append_one(topic, 3,
               0); /* at END, and the next: one is decided soon, the other one late, both in the next segment */
    append_one(topic, 4, 0);
    roll(topic);
    append_marker(topic, 3, true, END + 2);
    append_one(topic, SC_NO_PRODUCER, 0);
    CHECK_EQ(rows_of(late, END + 4, true, INT64_MIN), COMMITTED_ROWS + 2);
    for (int i = 0; i < MORE - 7; i++)
        append_one(topic, SC_NO_PRODUCER, 0);
    append_marker(topic, 4, true, END + MORE - 3);
    CHECK_EQ(roll(topic), END + MORE - 2);
    append_one(topic, SC_NO_PRODUCER, 0);
    append_one(topic, SC_NO_PRODUCER, 0);
    wanted_rows = COMMITTED_ROWS + 2 + 1 + MORE - 7 + 2;
    hook_renaming(late_reader_reads);
    consolidate(topic, END + 2);
    CHECK(unhook());
    late_reader_reads();
    topic_close(late);
    topic_close(topic);
    folder_remove(path);
}

/* ---- flushing ------------------------------------------------------------------------------------------------ */

static void flush(sc_topic *topic)
{
    sc_error error;
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
}

static void roll_and_flush(sc_topic *topic)
{
    append_one(topic, SC_NO_PRODUCER, 0);
    roll(topic);
}

static void sweep_flushing(void (*flushes)(sc_topic *), void (*happens)(void))
{
    bool happened = true, deletes = happens == writer_replaces_and_deletes;
    for (int call = 1; happened; call++) {
        writer = make_log();
        sc_topic *topic = topic_open_with(path, true, SEGMENT);
        hook_calls(happens, call);
        flushes(topic);
        happened = unhook();
        verify(topic);
        topic_close(topic);
        verify(writer);
        topic_close(writer);
        topic = topic_open_with(path, true, SEGMENT);
        verify(topic);
        if (!deletes)
            read_committed(topic);
        topic_close(topic);
        folder_remove(path);
    }
}

/* Another handle syncs, finishes and cuts a segment that is replaced meanwhile: the new one stays whole. */
static void test_who_flushes_harms_no_segment_that_was_replaced(void)
{
    sweep_flushing(flush, writer_replaces_all);
    sweep_flushing(roll_and_flush, writer_replaces_all);
}

static void test_who_flushes_misses_no_segment_that_was_deleted(void)
{
    sweep_flushing(flush, writer_replaces_and_deletes);
    sweep_flushing(roll_and_flush, writer_replaces_and_deletes);
}

int main(int argc, char **argv)
{
    RUN(test_the_end_of_the_old_file_is_no_place_in_the_new_one);
    RUN(test_a_reader_finds_all_records_whenever_segments_are_sealed_and_replaced);
    RUN(test_so_does_a_handle_that_may_write);
    RUN(test_a_reader_is_told_of_deleted_records_whenever_they_go);
    RUN(test_so_does_a_reader_that_finds_the_end_of_the_log_itself_while_a_writer_comes);
    RUN(test_between_the_renaming_and_the_word_of_it_readers_mix_no_two_files);
    RUN(test_who_flushes_harms_no_segment_that_was_replaced);
    RUN(test_who_flushes_misses_no_segment_that_was_deleted);
    return 0;
}
