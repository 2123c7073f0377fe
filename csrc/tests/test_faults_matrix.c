/*
 * Every system call of every operation of a topic fails in turn, in each way: once and from then on, with each errno,
 * and by halves. The operation succeeds, or says what failed of which file. Then, in the same handle and in one that is
 * opened anew: all that was acknowledged is there, nothing else is, and the log goes on; after a failed sync it refuses
 * appends until it is opened anew, and nobody asks for a second sync of that file. Nothing is left open or mapped.
 *
 * STREAMCORE_ALL_FAULTS=1 tries each pair of a call and a way to fail; otherwise a part of them, another for each call.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "key_map.h"
#include "os.h"
#include "plain_topic.h"
#include "topic.h"

enum { SEGMENT = 16 << 10, FLUSHED = 300, COUNT = 420, EACH = 10, ROWS_MAX = 64, BATCHES_MAX = 256 };
/* Partition 1: transactions of 10 records each and their markers. Producer 3's is open, behind it are 5 of nobody. */
enum { COMMITTED_ROWS = 20, OPEN_ROWS = 10, PLAIN_ROWS = 5, TRANSACTED_END = 48 };

static char home[FOLDER_MAX], path[FILE_MAX], template[FILE_MAX]; /* hints know the folder by its name */
static sc_topic *topic;                                           /* that the operation is done with; NULL: none */
static int64_t acknowledged, attempted;                           /* ends of partition 0 that may be found */
static int64_t start_least, start_most;                           /* and starts */
static int64_t committed_least, committed_most;                   /* rows of partition 1 that are seen */
static bool sparse;                                               /* some records of partition 0 were compacted away */
static const uint8_t secret[16] = "0123456789abcdef";

/* ---- what is expected ------------------------------------------------------------------------------------------ */

static int append_as(sc_topic *to, sc_producer producer, bool transactional, int64_t count, bool durable,
                     int64_t *first, sc_error *error)
{
    static const uint8_t text[100];
    sc_bytes values[ROWS_MAX];
    int64_t end;
    for (int64_t i = 0; i < count; i++)
        values[i] = (sc_bytes){text, sizeof text};
    sc_batch_input input = {.count = count, .values = values, .timestamp = FIRST_TIME};
    sc_append append = {.batches = &input,
                        .batch_count = 1,
                        .schema_version = 1,
                        .generation = GENERATION,
                        .expected_offset = -1,
                        .producer = producer,
                        .transactional = transactional,
                        .durable = durable};
    return sc_partition_append(to, 1, &append, first, &end, error);
}

static int end_transaction(int64_t id, bool commit, bool durable, sc_error *error)
{
    sc_marker marker = {.producer_id = id, .commit = commit, .durable = durable};
    int64_t offset;
    return sc_partition_append_marker(topic, 1, &marker, &offset, error);
}

static sc_scan_options options_of(const sc_range *range, bool committed)
{
    return (sc_scan_options){.ranges = range,
                             .range_count = 1,
                             .min_timestamp = INT64_MIN,
                             .max_timestamp = INT64_MAX,
                             .limit = -1,
                             .verify = true,
                             .committed = committed};
}

/* The rows of a range: by reading, and by counting. */
static int count_rows(sc_topic *of, sc_range range, bool committed, int64_t *read, int64_t *counted, sc_error *error)
{
    sc_scan_options options = options_of(&range, committed);
    sc_scan *scan;
    sc_batch batch;
    *read = 0;
    int code = sc_scan_open(of, &options, &scan, error);
    if (code != SC_OK)
        return code;
    while ((code = sc_scan_next(scan, &batch, error)) == SC_OK)
        *read += batch.row_count;
    sc_scan_free(scan);
    if (code != SC_END)
        return code;
    code = sc_scan_open(of, &options, &scan, error);
    if (code != SC_OK)
        return code;
    code = sc_scan_count(scan, counted, error);
    sc_scan_free(scan);
    return code;
}

static bool stays(int64_t offset)
{
    return offset % 3 == 0 || offset % 5 == 4; /* key_of: those have no key */
}

static int64_t rows_from(int64_t start, int64_t end)
{
    int64_t rows = 0;
    for (int64_t offset = start; offset < end; offset++)
        rows += stays(offset);
    return rows;
}

/* Reads partition 0 from some places on, which goes by the indexes. */
static int read_everything(sc_topic *of, sc_error *error)
{
    sc_partition_info info;
    int64_t next, read, counted;
    int code = sc_partition_describe(of, 0, true, &info, error);
    if (code != SC_OK)
        return code;
    CHECK(info.end_offset >= acknowledged && info.end_offset <= attempted);
    CHECK(info.start_offset >= start_least && info.start_offset <= start_most);
    for (int64_t start = info.start_offset; code == SC_OK && start < info.end_offset; start += 97) {
        if (!sparse) {
            code = try_read(of, 0, start, info.end_offset, &next, error);
            CHECK(code != SC_OK || next == info.end_offset);
        }
        if (code == SC_OK)
            code = count_rows(of, (sc_range){0, start, info.end_offset}, false, &read, &counted, error);
        if (code != SC_OK)
            return code;
        CHECK_EQ(read, counted);
        int64_t least = sparse ? rows_from(start, info.end_offset) : info.end_offset - start;
        CHECK(read >= least && read <= info.end_offset - start);
    }
    if (code == SC_OK)
        code = sc_partition_describe(of, 1, true, &info, error);
    if (code == SC_OK)
        code = count_rows(of, (sc_range){1, info.start_offset, info.stable_offset}, true, &read, &counted, error);
    if (code != SC_OK)
        return code;
    CHECK_EQ(read, counted);
    CHECK(read >= committed_least && read <= committed_most);
    return SC_OK;
}

static int summarize(sc_topic *of, sc_error *error)
{
    sc_segment_info segment;
    for (uint32_t partition = 0; partition < 2; partition++) {
        int64_t next = -1;
        int code = SC_OK;
        for (int64_t n = 0; (code = sc_partition_segment(of, partition, n, &segment, error)) == SC_OK; n++) {
            CHECK(next < 0 || segment.base_offset == next);
            next = segment.end_offset;
        }
        if (code != SC_END)
            return code;
        CHECK(partition > 0 || next < 0 || (next >= acknowledged && next <= attempted));
    }
    return SC_OK;
}

static int problem_count;
static void on_problem(void *context, const sc_error *problem)
{
    (void)context;
    problem_count++;
    if (problem->code != SC_OS)
        check_error(__FILE__, __LINE__, faults_name(), problem);
}

static int verify(sc_topic *of, sc_error *error)
{
    problem_count = 0;
    int code = SC_OK;
    for (uint32_t partition = 0; code == SC_OK && partition < 2; partition++)
        code = sc_partition_verify(of, partition, on_problem, NULL, NULL, error);
    return code;
}

static void check_everything(sc_topic *of)
{
    sc_error error;
    CHECK_OK(read_everything(of, &error), error);
    CHECK_OK(summarize(of, &error), error);
    CHECK_OK(verify(of, &error), error);
    CHECK_EQ(problem_count, 0);
}

/* ---- the log that everything is done to ------------------------------------------------------------------------ */

static void make_template(void)
{
    sc_error error;
    int64_t first;
    char folder[FILE_MAX];
    snprintf(folder, sizeof folder, "%s/made", home);
    CHECK(mkdir(folder, 0777) == 0);
    snprintf(template, sizeof template, "%s/made/log", home);
    CHECK(mkdir(template, 0777) == 0);
    topic = topic_open_with(template, true, SEGMENT);
    for (int64_t i = 0; i < FLUSHED; i += EACH)
        append_records(topic, 0, i, EACH);
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    for (int64_t i = FLUSHED; i < COUNT; i += EACH)
        append_records(topic, 0, i, EACH);
    for (int id = 1; id <= 4; id++) {
        int16_t epoch = 0;
        for (int i = 0; i < 2; i++)
            CHECK_OK(append_as(topic, (sc_producer){id, epoch, 5 * i}, true, 5, false, &first, &error), error);
        if (id != 3)
            CHECK_OK(end_transaction(id, id != 2, false, &error), error);
    }
    CHECK_OK(append_as(topic, (sc_producer){SC_NO_PRODUCER, 0, 0}, false, PLAIN_ROWS, false, &first, &error), error);
    CHECK_EQ(end_of(topic, 1), TRANSACTED_END);
    CHECK_OK(sc_partition_flush(topic, 1, &error), error);
    topic_abandon(topic);
    topic = NULL;
}

static void expect_template(void)
{
    acknowledged = attempted = COUNT;
    start_least = start_most = 0;
    committed_least = committed_most = COMMITTED_ROWS / 2; /* up to the open transaction: producer 4's is behind it */
    sparse = false;
}

static void prepare_killed(void)
{
    folder_remove(path);
    CHECK(mkdir(path, 0777) == 0);
    folder_copy(template, path);
    expect_template();
}

static void prepare_without_hints(void)
{
    prepare_killed();
    for (uint32_t partition = 0; partition < 2; partition++) {
        char folder[FILE_MAX + 16], file[2 * FILE_MAX + 16];
        snprintf(folder, sizeof folder, "%s/%u", path, (unsigned)partition);
        DIR *listing = opendir(folder);
        for (struct dirent *entry; (entry = readdir(listing)) != NULL;) {
            snprintf(file, sizeof file, "%s/%s", folder, entry->d_name);
            if (strstr(entry->d_name, ".arrows") == NULL && entry->d_type == DT_REG)
                CHECK(unlink(file) == 0);
        }
        closedir(listing);
    }
}

static void prepare_power_loss(void)
{
    prepare_without_hints();
    pretend_power_loss(path);
}

/* The second batch of the last append is torn. */
static void prepare_torn(void)
{
    char file[FILE_MAX];
    found_batch batches[BATCHES_MAX];
    sc_error error;
    sc_segment_info info;
    prepare_killed();
    topic = topic_open_with(path, true, SEGMENT);
    CHECK_OK(try_append(topic, 0, COUNT, 12, 4, false, &error), error);
    CHECK_OK(sc_partition_segment(topic, 0, 0, &info, &error), error);
    topic_abandon(topic);
    topic = NULL;
    for (int64_t base = COUNT; base >= 0; base -= EACH) {
        segment_file(file, path, 0, base);
        if (file_exists(file))
            break;
    }
    int count = found_batches(file, batches, BATCHES_MAX);
    CHECK(count >= 3);
    file_flip(file, batches[count - 1].position + 900);
    pretend_power_loss(path);
}

static void prepare_nothing(void)
{
    folder_remove(path);
    CHECK(mkdir(path, 0777) == 0);
    acknowledged = attempted = start_least = start_most = committed_least = committed_most = 0;
    sparse = false;
}

static void open_it(void)
{
    topic = topic_open_with(path, true, SEGMENT);
    CHECK_EQ(end_of(topic, 0), acknowledged);
    (void)end_of(topic, 1);
}

/* ---- operations ------------------------------------------------------------------------------------------------ */

static int append(int64_t count, int64_t each, bool durable, sc_error *error)
{
    sc_partition_info info;
    int code = sc_partition_describe(topic, 0, false, &info, error);
    if (code != SC_OK)
        return code;
    int64_t end = info.end_offset;
    CHECK(end >= acknowledged && end <= attempted);
    if (attempted < end + count)
        attempted = end + count;
    code = try_append(topic, 0, end, count, each, durable, error);
    if (code == SC_OK)
        acknowledged = end + count;
    return code;
}

static int run_appends(sc_error *error)
{
    int code = SC_OK;
    for (int i = 0; code == SC_OK && i < 12; i++) /* over the end of a segment */
        code = append(11, 11, false, error);
    return code;
}

static int run_large_append(sc_error *error)
{
    return append(1000, 500, false, error);
}

static int run_durable_appends(sc_error *error)
{
    int code = append(11, 5, true, error);
    return code == SC_OK ? append(60, 20, true, error) : code;
}

static int run_flush(sc_error *error)
{
    return sc_topic_flush(topic, error);
}

static int run_roll(sc_error *error)
{
    int64_t base;
    int code = sc_partition_roll(topic, 0, &base, error);
    return code == SC_OK ? append(5, 5, true, error) : code;
}

static int run_close(sc_error *error)
{
    int code = sc_topic_close(topic, error);
    sc_topic_free(topic);
    topic = NULL;
    return code;
}

static int open_with(bool writable, sc_error *error)
{
    sc_topic *opened = NULL;
    int code = topic_try_open(path, writable, SEGMENT, &opened, error);
    topic = code == SC_OK ? opened : NULL;
    return code;
}

static int run_open(sc_error *error)
{
    int code = open_with(true, error);
    if (code == SC_OK)
        code = read_everything(topic, error);
    return code == SC_OK ? append(7, 7, true, error) : code;
}

static int run_open_for_reading(sc_error *error)
{
    int code = open_with(false, error);
    if (code == SC_OK)
        code = read_everything(topic, error);
    if (code == SC_OK)
        code = summarize(topic, error);
    return code;
}

static int run_read(sc_error *error)
{
    return read_everything(topic, error);
}

static int run_summarize(sc_error *error)
{
    return summarize(topic, error);
}

static int run_verify(sc_error *error)
{
    int code = verify(topic, error);
    return code;
}

static int delete_before(int64_t offset, sc_error *error)
{
    sc_removal removal;
    start_most = offset;
    int code = sc_partition_delete_before(topic, 0, offset, &removal, error);
    if (code == SC_OK)
        start_least = offset;
    return code;
}

static int run_delete_some(sc_error *error)
{
    return delete_before(FLUSHED / 2, error);
}

static int run_delete_all(sc_error *error)
{
    return delete_before(COUNT, error);
}

static int rewrite_segment(uint32_t partition, int64_t base, sc_key_map *map, sc_error *error)
{
    sc_rewrite *rewrite;
    sc_rewrite_contents contents;
    sc_rewrite_report report;
    int64_t dropped, tombstone, full_at;
    int code = sc_rewrite_open(topic, partition, base, &rewrite, error);
    if (code != SC_OK)
        return code;
    code = sc_rewrite_look(rewrite, &contents, error);
    if (code == SC_OK && map != NULL)
        code = sc_rewrite_collect(rewrite, map, 0, 0, &full_at, error);
    if (code == SC_OK && map != NULL)
        code = sc_rewrite_mark(rewrite, map, 0, 0, 0, &dropped, &tombstone, error);
    if (code == SC_OK)
        code = sc_rewrite_plain(rewrite, 4 << 10, NULL, NULL, error);
    if (code == SC_OK)
        code = sc_rewrite_commit(rewrite, &report, error);
    sc_rewrite_free(rewrite);
    return code;
}

/* The two oldest segments that may be. */
static int rewrite_some(uint32_t partition, sc_key_map *map, sc_error *error)
{
    sc_segment_info first, second;
    int code = sc_partition_segment(topic, partition, 0, &first, error);
    if (code == SC_OK)
        code = sc_partition_segment(topic, partition, 1, &second, error);
    if (code == SC_OK)
        code = rewrite_segment(partition, first.base_offset, map, error);
    if (code == SC_OK && partition == 0)
        code = rewrite_segment(partition, second.base_offset, map, error);
    return code;
}

static int run_consolidate(sc_error *error)
{
    return rewrite_some(0, NULL, error);
}

static int run_compact(sc_error *error)
{
    sc_key_map *map;
    uint8_t key[VALUE_MAX];
    CHECK_OK(sc_key_map_new(0, secret, &map, error), *error);
    for (int64_t i = 0; i < COUNT; i++) {
        int64_t size = key_of(0, i, key);
        if (size >= 0 && i % 3 != 0)
            CHECK(sc_key_map_put(map, key, size, COUNT + 1)); /* seen again behind the log */
    }
    sparse = true;
    int code = rewrite_some(0, map, error);
    sc_key_map_free(map);
    return code;
}

static int run_commit_marker(sc_error *error)
{
    committed_most = COMMITTED_ROWS + OPEN_ROWS + PLAIN_ROWS;
    int code = end_transaction(3, true, true, error);
    if (code == SC_OK)
        committed_least = committed_most;
    return code;
}

static int run_abort_marker(sc_error *error)
{
    committed_most = COMMITTED_ROWS + PLAIN_ROWS;
    int code = end_transaction(3, false, false, error);
    if (code == SC_OK)
        committed_least = committed_most;
    return code;
}

static int run_open_transactions(sc_error *error)
{
    sc_open_transaction open[8];
    int64_t count;
    int code = sc_partition_open_transactions(topic, 1, open, 8, &count, error);
    CHECK(code != SC_OK || (count == 1 && open[0].producer_id == 3 && open[0].first_offset == 22));
    return code;
}

/* A repetition of what was appended long ago, and what follows it. */
static int run_producer(sc_error *error)
{
    int64_t first = -1;
    int code = append_as(topic, (sc_producer){1, 0, 5}, true, 5, false, &first, error);
    CHECK(code != SC_OK || first == 5);
    if (code == SC_OK)
        code = append_as(topic, (sc_producer){4, 0, 0}, true, 5, true, &first, error);
    CHECK(code != SC_OK || first == 32);
    return code;
}

static int run_alter(sc_error *error)
{
    sc_topic_settings settings = settings_of(SEGMENT);
    settings.partitions = 300;
    return sc_topic_alter(topic, &settings, false, error);
}

static int run_note(sc_error *error)
{
    int code = sc_topic_flush(topic, error);
    return code == SC_OK ? sc_topic_note_durable(topic, error) : code;
}

static int run_signal(sc_error *error)
{
    char file[FILE_MAX + 16];
    sc_signal *signal;
    snprintf(file, sizeof file, "%s/signal", path);
    int code = sc_signal_open(file, true, &signal, error);
    if (code == SC_OK)
        sc_signal_free(signal);
    return code;
}

typedef struct operation {
    const char *name;
    void (*prepare)(void);
    void (*begin)(void); /* NULL: the operation opens the log itself */
    int (*run)(sc_error *error);
    int least_calls;
    bool names_may_fail; /* a folder is synced for what costs nothing but space or time */
} operation;

static const operation operations[] = {
    {"open a new log", prepare_nothing, NULL, run_open, 20, false},
    {"open after a crash", prepare_killed, NULL, run_open, 20, false},
    {"open after a power loss", prepare_power_loss, NULL, run_open, 20, false},
    {"open a torn log", prepare_torn, NULL, run_open, 20, false},
    {"open for reading", prepare_without_hints, NULL, run_open_for_reading, 15, false},
    {"small appends", prepare_killed, open_it, run_appends, 8, false},
    {"a large append", prepare_killed, open_it, run_large_append, 8, false},
    {"durable appends", prepare_killed, open_it, run_durable_appends, 8, false},
    {"a flush", prepare_without_hints, open_it, run_flush, 10, false},
    {"a roll", prepare_killed, open_it, run_roll, 15, false},
    {"closing", prepare_without_hints, open_it, run_close, 10, false},
    {"notes", prepare_without_hints, open_it, run_note, 10, false},
    {"reading", prepare_without_hints, open_it, run_read, 10, false},
    {"segments", prepare_without_hints, open_it, run_summarize, 10, false},
    {"verifying", prepare_without_hints, open_it, run_verify, 4, false},
    {"deleting some", prepare_without_hints, open_it, run_delete_some, 15, true},
    {"deleting all", prepare_without_hints, open_it, run_delete_all, 15, true},
    {"consolidation", prepare_without_hints, open_it, run_consolidate, 20, true},
    {"compaction", prepare_without_hints, open_it, run_compact, 20, true},
    {"a commit marker", prepare_without_hints, open_it, run_commit_marker, 2, false},
    {"an abort marker", prepare_without_hints, open_it, run_abort_marker, 2, false},
    {"open transactions", prepare_without_hints, open_it, run_open_transactions, 2, false},
    {"a producer", prepare_without_hints, open_it, run_producer, 2, false},
    {"a producer with a snapshot", prepare_killed, open_it, run_producer, 2, false},
    {"more partitions", prepare_killed, open_it, run_alter, 1, false},
    {"a signal", prepare_killed, open_it, run_signal, 2, false},
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

/* ---- ways to fail ---------------------------------------------------------------------------------------------- */

typedef struct way {
    const char *name;
    int number;
    enum faults_how how;
    bool sticky;
} way;

static const way ways[] = {
    {"EIO", EIO, FAULT_ERROR, false},          {"EIO from then on", EIO, FAULT_ERROR, true},
    {"ENOSPC", ENOSPC, FAULT_ERROR, false},    {"ENOSPC from then on", ENOSPC, FAULT_ERROR, true},
    {"EDQUOT", EDQUOT, FAULT_ERROR, false},    {"EINTR", EINTR, FAULT_ERROR, false},
    {"EMFILE", EMFILE, FAULT_ERROR, false},    {"EMFILE from then on", EMFILE, FAULT_ERROR, true},
    {"ENFILE", ENFILE, FAULT_ERROR, false},    {"ENOMEM", ENOMEM, FAULT_ERROR, false},
    {"EACCES", EACCES, FAULT_ERROR, false},    {"EROFS from then on", EROFS, FAULT_ERROR, true},
    {"a byte less", 0, FAULT_ONE_LESS, false}, {"halves", 0, FAULT_HALF, true},
    {"a byte", 0, FAULT_ONE_BYTE, false},
};
enum { WAYS = sizeof ways / sizeof *ways, EACH_WAY = 7, MANY_CALLS = 100 };

static bool all_faults;
static int calls_of_operation;
static int64_t faults_tried, outcomes_good, outcomes_bad, outcomes_poisoned;

/* Descriptors and mappings of files in the folder. */
static int left_open(void)
{
    int count = 0;
    char line[1024], link[512], file[FILE_MAX + 64];
    DIR *folder = opendir("/proc/self/fd");
    if (folder == NULL)
        return 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        snprintf(file, sizeof file, "/proc/self/fd/%s", entry->d_name);
        ssize_t size = readlink(file, link, sizeof link - 1);
        link[size > 0 ? size : 0] = 0;
        count += strstr(link, path) != NULL;
    }
    closedir(folder);
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL)
        count += strstr(line, path) != NULL;
    if (maps != NULL)
        fclose(maps);
    return count;
}

static void check_error_of(const way *tried, int code, const sc_error *error)
{
    if (code == SC_CONFLICT && tried->number == EACCES && strcmp(faults_name(), "lock") == 0)
        return; /* so a lock says that another one has it */
    bool known =
        code == SC_OK || code == SC_OS || code == SC_POISONED || (code == SC_MEMORY && tried->number == ENOMEM);
    if (!known || (code != SC_OK && tried->how != FAULT_ERROR && tried->number == 0))
        check_error(__FILE__, __LINE__, faults_name(), error);
    if (code == SC_OK || code == SC_MEMORY)
        return;
    if (error->number != tried->number || strstr(error->path, path) == NULL)
        check_error(__FILE__, __LINE__, "errno and file of the error", error);
}

static bool is_sync_of_log(void)
{
    const char *ending = strrchr(faults_path(), '.');
    return strncmp(faults_name(), "sync", 4) == 0 && (ending == NULL || strcmp(ending, ".arrows") == 0);
}

/* In the handle that has seen it all. Syncs that failed make the log refuse appends, if they were of the log. */
static void check_goes_on(const operation *tried, int outcome)
{
    sc_error error;
    if (!topic->writable) {
        check_everything(topic);
        return;
    }
    int64_t first;
    int code = append(5, 5, false, &error);
    int other = append_as(topic, (sc_producer){SC_NO_PRODUCER, 0, 0}, false, 1, false, &first, &error);
    bool refused = code == SC_POISONED || other == SC_POISONED;
    CHECK(code == SC_OK || code == SC_POISONED);
    CHECK(other == SC_OK || other == SC_POISONED);
    CHECK(!refused || is_sync_of_log());
    CHECK(refused || outcome == SC_OK || !is_sync_of_log() ||
          (tried->names_may_fail && strstr(faults_path(), ".arrows") == NULL));
    bool open = committed_least == COMMITTED_ROWS / 2; /* perhaps: then it is not seen yet */
    committed_least += other == SC_OK && !open;
    committed_most += other == SC_OK && !(open && committed_most == committed_least);
    check_everything(topic);
    code = sc_topic_flush(topic, &error);
    CHECK(code == SC_OK || (refused && code == SC_POISONED));
    outcomes_poisoned += refused;
}

static void check_reopened(void)
{
    sc_error error;
    topic = topic_open_with(path, true, SEGMENT);
    check_everything(topic);
    int64_t end = end_of(topic, 0);
    acknowledged = attempted = end;
    CHECK_OK(append(9, 9, true, &error), error);
    check_everything(topic);
    topic_close(topic);
    topic = topic_open_with(path, false, SEGMENT);
    check_everything(topic);
    topic_close(topic);
    topic = NULL;
}

/* False: the operation has fewer calls. */
static bool survives(const operation *tried, const way *how, int number)
{
    sc_error error;
    tried->prepare();
    if (tried->begin != NULL)
        tried->begin();
    if (how->how == FAULT_ERROR)
        faults_arm(number, how->number, how->sticky);
    else
        faults_arm_short(number, how->how, how->sticky);
    int code = tried->run(&error);
    faults_pause();
    bool failed = faults_failed();
    calls_of_operation = number == 0 ? faults_calls() : calls_of_operation;
    if (!failed && code != SC_OK)
        check_error(__FILE__, __LINE__, tried->name, &error);
    check_error_of(how, code, &error);
    if (topic != NULL)
        check_goes_on(tried, code);
    CHECK_EQ(faults_repeated_syncs(), 0);
    faults_disarm();
    if (topic != NULL && number % 2 == 0) {
        topic_abandon(topic);
    } else if (topic != NULL) {
        int closed = sc_topic_close(topic, &error);
        CHECK(closed == SC_OK || closed == SC_POISONED);
        sc_topic_free(topic);
    }
    topic = NULL;
    CHECK_EQ(left_open(), 0);
    check_reopened();
    CHECK_EQ(left_open(), 0);
    faults_tried += failed;
    *(code == SC_OK ? &outcomes_good : &outcomes_bad) += failed;
    return failed;
}

static char holed[FILE_MAX]; /* the file with the bad page; "": none */
static int bad_page;
static const char *now_trying;
static int now_number, now_way;
static void tell_where(void)
{
    if (holed[0] != 0)
        fprintf(stderr, "  in %s, page %d of %s\n", now_trying, bad_page, holed);
    else
        fprintf(stderr, "  in %s, call %d fails: %s (%s of %s)\n", now_trying, now_number, ways[now_way].name,
                faults_name(), faults_path());
}

static void begin_matrix(void)
{
    all_faults = getenv("STREAMCORE_ALL_FAULTS") != NULL;
    folder_make(home);
    snprintf(path, sizeof path, "%s/log", home);
    CHECK(mkdir(path, 0777) == 0);
    make_template();
    outcomes_good = outcomes_bad = 0;
}

static void test_operations_survive_each_failing_call(void)
{
    const char *chosen = getenv("STREAMCORE_FAULTS_OF");
    begin_matrix();
    for (int i = 0; i < OPERATIONS; i++) {
        if (chosen != NULL && strstr(operations[i].name, chosen) == NULL)
            continue;
        int64_t before = faults_tried;
        now_trying = operations[i].name;
        now_number = 0; /* nothing fails */
        CHECK(!survives(&operations[i], &ways[0], now_number));
        CHECK(calls_of_operation >= operations[i].least_calls);
        for (now_way = 0; now_way < WAYS; now_way++) {
            int step = all_faults ? 1 : (now_way < 2 ? 1 : EACH_WAY) * (1 + calls_of_operation / MANY_CALLS);
            for (now_number = 1 + (now_way + i) % step; survives(&operations[i], &ways[now_way], now_number);
                 now_number += step)
                ;
        }
        printf("  %s: %d calls, %lld faults\n", operations[i].name, calls_of_operation,
               (long long)(faults_tried - before));
        fflush(stdout);
    }
    printf("  %lld faults: %lld operations did it all the same, %lld failed, of which %lld poisoned the partition\n",
           (long long)faults_tried, (long long)outcomes_good, (long long)outcomes_bad, (long long)outcomes_poisoned);
    folder_remove(home);
}

/* ---- damage, and files that cannot be opened just now ------------------------------------------------------------ */

/* The end of a segment was damaged, and good batches follow in later ones: that is reported by who reads it, and
 * nothing is cut. */
static void prepare_damaged(void)
{
    char file[FILE_MAX];
    found_batch batches[BATCHES_MAX];
    prepare_without_hints();
    segment_file(file, path, 0, FLUSHED);
    for (int64_t base = FLUSHED; !file_exists(file); base += EACH)
        segment_file(file, path, 0, base);
    int count = found_batches(file, batches, BATCHES_MAX);
    CHECK(count > 2);
    for (int i = 1; i < count; i++)
        file_flip(file, batches[i].position + 900);
}

static void test_what_cannot_be_opened_now_is_not_taken_for_missing(void)
{
    sc_error error;
    begin_matrix();
    now_trying = "opening a damaged log";
    bool failed = true;
    for (now_number = 1; failed; now_number++) {
        prepare_damaged();
        faults_arm(now_number, now_number % 2 == 0 ? EMFILE : EIO, now_number % 3 == 0);
        int code = open_with(true, &error);
        if (code == SC_OK) {
            sc_partition_info info;
            code = sc_partition_describe(topic, 0, false, &info, &error);
            CHECK(code != SC_OK || info.end_offset == COUNT);
        }
        failed = faults_disarm();
        check_error_of(&(way){.number = now_number % 2 == 0 ? EMFILE : EIO}, code, &error);
        if (topic != NULL)
            topic_abandon(topic);
        topic = topic_open_with(path, true, SEGMENT);
        CHECK_EQ(end_of(topic, 0), COUNT);
        topic_close(topic);
        topic = NULL;
    }
    CHECK(now_number > 20);
    folder_remove(home);
}

/* ---- pages that cannot be read ---------------------------------------------------------------------------------- */

static int empty_fd, holes_made;

/* Accesses of the page behind the end of a file raise SIGBUS, as those of a page do that the drive cannot read. */
static void *map_with_hole(int fd, size_t size, bool writable)
{
    char link[64], found[FILE_MAX + 64];
    struct stat st;
    uint8_t *address = mmap(NULL, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, found, sizeof found - 1);
    found[length > 0 ? length : 0] = 0;
    if (strcmp(found, holed) == 0 && fstat(fd, &st) == 0 && (bad_page + 1) * (int64_t)SC_PAGE <= st.st_size) {
        CHECK(mmap(address + bad_page * (int64_t)SC_PAGE, SC_PAGE, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                   MAP_SHARED | MAP_FIXED, empty_fd, 0) != MAP_FAILED);
        holes_made++;
    }
    return address;
}

static void check_hole_of(int code, const sc_error *error)
{
    bool said = code == SC_OK || ((code == SC_OS || code == SC_POISONED) && error->number == EIO &&
                                  (code == SC_POISONED || strcmp(error->path, holed) == 0));
    if (!said)
        check_error(__FILE__, __LINE__, "a page that cannot be read", error);
}

static void survive_hole(const operation *tried)
{
    sc_error error;
    tried->prepare();
    if (tried->begin != NULL)
        tried->begin();
    sc_os.map = map_with_hole;
    int code = tried->run(&error);
    check_hole_of(code, &error);
    outcomes_bad += code != SC_OK;
    if (topic != NULL) {
        code = sc_topic_close(topic, &error);
        check_hole_of(code, &error);
        sc_topic_free(topic);
        topic = NULL;
    }
    sc_os_reset();
    CHECK_EQ(left_open(), 0);
    check_reopened();
}

static void test_pages_that_cannot_be_read_are_errors_and_lose_nothing(void)
{
    char empty[FILE_MAX + 16];
    begin_matrix();
    snprintf(empty, sizeof empty, "%s/empty", home);
    file_write(empty, "", 0);
    empty_fd = open(empty, O_RDWR);
    CHECK(empty_fd >= 0);
    for (int i = 0; i < OPERATIONS; i++) {
        now_trying = operations[i].name;
        if (operations[i].prepare == prepare_nothing)
            continue;
        for (uint32_t partition = 0; partition < 2; partition++)
            for (int64_t base = 0; base < COUNT; base++) {
                segment_file(holed, template, partition, base);
                if (!file_exists(holed) || (!all_faults && partition == 0 && base > 0 && base < FLUSHED - 60))
                    continue;
                segment_file(holed, path, partition, base);
                for (bad_page = 0; bad_page < 5; bad_page++)
                    survive_hole(&operations[i]);
            }
    }
    printf("  %d bad pages, %lld operations failed\n", holes_made, (long long)outcomes_bad);
    fflush(stdout);
    CHECK(holes_made > 300 && outcomes_bad > 50);
    close(empty_fd);
    folder_remove(home);
}

int main(int argc, char **argv)
{
    check_on_failure(tell_where);
    RUN(test_operations_survive_each_failing_call);
    RUN(test_what_cannot_be_opened_now_is_not_taken_for_missing);
    RUN(test_pages_that_cannot_be_read_are_errors_and_lose_nothing);
    return 0;
}
