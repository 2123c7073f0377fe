/*
 * The power goes at any system call while durable appends to eight partitions share the journal: in every state that
 * the drive may then be in, all that was acknowledged is there, and each log is a prefix of what was appended.
 *
 * The calls behind os.c are traced: what a file held when it was last synced, and whether its name was. At the chosen
 * call the store is copied as the page cache has it. A state of the drive has each sector of each file as it was synced
 * or as it is in that copy, each size and each name likewise.
 */
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "os.h"
#include "random_array.h"
#include "small_store.h"

enum { SECTOR = 512, FILES_MAX = 2048, FDS_MAX = 1024, AREA = 160 << 10, SEGMENT = 24 << 10 };
static char path[FOLDER_MAX], latest[FOLDER_MAX], crashed[FOLDER_MAX];

/* ---- the drive ------------------------------------------------------------------------------------------------- */

typedef struct traced_file {
    char name[FILE_MAX]; /* below the store */
    uint8_t *synced;     /* NULL: never */
    int64_t size;
    bool named; /* its folder was synced since it has this name */
    uint8_t *synced_at_crash;
    int64_t size_at_crash;
    bool named_at_crash;
} traced_file;

static struct sc_os_table real;
static traced_file files[FILES_MAX];
static int file_count;
static char name_of_fd[FDS_MAX][FILE_MAX];
static int calls_until_crash; /* 0: it was */
static int64_t acknowledged[STORE_LOGS], acknowledged_at_crash[STORE_LOGS], attempted[STORE_LOGS];
static bool journal_lies, segments_lie; /* controls: a sync that says that it has synced */

static traced_file *traced(const char *name)
{
    for (int i = 0; i < file_count; i++)
        if (strcmp(files[i].name, name) == 0)
            return &files[i];
    CHECK(file_count < FILES_MAX);
    files[file_count] = (traced_file){0};
    snprintf(files[file_count].name, FILE_MAX, "%s", name);
    return &files[file_count++];
}

static void copy_store(const char *from, const char *to)
{
    folder_remove(to);
    CHECK(mkdir(to, 0777) == 0);
    folder_copy(from, to);
}

/* The power goes before the call that comes now. */
static void count_call(void)
{
    if (calls_until_crash == 0 || --calls_until_crash > 0)
        return;
    struct sc_os_table table = sc_os;
    sc_os_reset();
    copy_store(path, latest);
    sc_os = table;
    for (int i = 0; i < file_count; i++) {
        files[i].named_at_crash = files[i].named;
        files[i].size_at_crash = files[i].size;
        if (files[i].synced != NULL) {
            files[i].synced_at_crash = malloc((size_t)files[i].size + 1);
            memcpy(files[i].synced_at_crash, files[i].synced, (size_t)files[i].size);
        }
    }
    memcpy(acknowledged_at_crash, acknowledged, sizeof acknowledged);
}

static const char *below_store(const char *name)
{
    size_t length = strlen(path);
    return strncmp(name, path, length) == 0 ? name + length : name;
}

static int traced_open(const char *name, int how)
{
    count_call();
    int fd = real.open(name, how);
    if (fd >= 0) {
        CHECK(fd < FDS_MAX);
        snprintf(name_of_fd[fd], FILE_MAX, "%s", below_store(name));
    }
    return fd;
}

static void take_synced(int fd)
{
    traced_file *file = traced(name_of_fd[fd]);
    char name[PATH_MAX_OF_TESTS];
    snprintf(name, sizeof name, "%s%s", path, file->name);
    free(file->synced);
    file->synced = file_read(name, &file->size);
}

static int traced_sync_data(int fd)
{
    count_call();
    bool segment = strstr(name_of_fd[fd], ".arrows") != NULL;
    if (!(segment ? segments_lie : journal_lies))
        take_synced(fd);
    return real.sync_data(fd);
}

static int traced_sync(int fd)
{
    count_call();
    struct stat st;
    CHECK(fstat(fd, &st) == 0);
    if (!S_ISDIR(st.st_mode))
        take_synced(fd);
    size_t length = strlen(name_of_fd[fd]);
    for (int i = 0; i < file_count && S_ISDIR(st.st_mode); i++)
        if (strncmp(files[i].name, name_of_fd[fd], length) == 0 && strchr(files[i].name + length + 1, '/') == NULL)
            files[i].named = true;
    return real.sync(fd);
}

static int traced_rename(const char *from, const char *to)
{
    count_call();
    traced_file *old = traced(below_store(from)), *new = traced(below_store(to));
    free(new->synced);
    new->synced = old->synced;
    new->size = old->size;
    new->named = false;
    old->synced = NULL;
    old->size = 0;
    return real.rename(from, to);
}

static ssize_t traced_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    count_call();
    return real.pwrite(fd, data, size, position);
}

static int traced_allocate(int fd, int64_t position, int64_t size)
{
    count_call();
    return real.allocate(fd, position, size);
}

static int traced_lock(int fd, int64_t byte, int kind, bool wait)
{
    count_call();
    return real.lock(fd, byte, kind, wait);
}

static void trace(int calls)
{
    sc_os_reset();
    real = sc_os;
    for (int i = 0; i < file_count; i++) {
        free(files[i].synced);
        free(files[i].synced_at_crash);
    }
    file_count = 0;
    calls_until_crash = calls;
    memset(acknowledged, 0, sizeof acknowledged);
    memset(acknowledged_at_crash, 0, sizeof acknowledged_at_crash);
    memset(attempted, 0, sizeof attempted);
    sc_os.open = traced_open;
    sc_os.sync_data = traced_sync_data;
    sc_os.sync = traced_sync;
    sc_os.rename = traced_rename;
    sc_os.pwrite = traced_pwrite;
    sc_os.allocate = traced_allocate;
    sc_os.lock = traced_lock;
}

/* ---- its states ------------------------------------------------------------------------------------------------ */

static void mix_file(const traced_file *file, uint32_t style)
{
    char from[PATH_MAX_OF_TESTS], to[PATH_MAX_OF_TESTS];
    snprintf(from, sizeof from, "%s%s", latest, file->name);
    snprintf(to, sizeof to, "%s%s", crashed, file->name);
    if (strstr(file->name, "state") != NULL || !file_exists(from))
        return;
    if (!file->named_at_crash && random_below(2) == 0) {
        CHECK(unlink(to) == 0);
        return;
    }
    int64_t size, old_size = file->synced_at_crash == NULL ? 0 : file->size_at_crash;
    uint8_t *data = file_read(from, &size);
    for (int64_t at = 0; at < size; at += SECTOR) {
        bool lost = style == 0 ? true : style == 1 ? random_below(2) == 0 : random_below(30) == 0;
        for (int64_t i = at; lost && i < at + SECTOR && i < size; i++)
            data[i] = i < old_size ? file->synced_at_crash[i] : 0;
    }
    bool shorter = random_below(3) == 0 && old_size < size;
    file_write(to, data, shorter ? old_size : size);
    free(data);
}

/* Returns false when the state breaks the promise. */
static bool check_state(void)
{
    small_store store;
    sc_error error;
    store_lose_power(crashed);
    if (store_try_open(crashed, AREA, SEGMENT, &store, &error) != SC_OK)
        return false;
    bool kept = !sc_journal_damage(store.journal, &error);
    for (int log = 0; log < STORE_LOGS; log++) {
        sc_partition_info info;
        int64_t next;
        uint32_t partition = (uint32_t)log % STORE_PARTITIONS;
        if (sc_partition_describe(topic_of(&store, log), partition, false, &info, &error) != SC_OK) {
            kept = false;
            continue;
        }
        kept = kept && info.end_offset >= acknowledged_at_crash[log] && info.end_offset <= attempted[log] &&
               try_read(topic_of(&store, log), partition, 0, info.end_offset, &next, &error) == SC_OK &&
               next == info.end_offset;
    }
    if (!kept) {
        store_abandon(&store);
        return false;
    }
    for (int i = 0; i < 3; i++) /* and the logs go on, with the journal */
        store_append(&store, 0xff, 4);
    store_abandon(&store);
    CHECK_OK(store_try_open(crashed, AREA, SEGMENT, &store, &error), error);
    store_check(&store, acknowledged_at_crash);
    store_close(&store);
    return true;
}

/* ---- what happens before ----------------------------------------------------------------------------------------- */

static void append_and_note(small_store *store, uint32_t logs, int64_t count)
{
    int64_t ends[STORE_LOGS];
    for (int log = 0; log < STORE_LOGS; log++) {
        ends[log] = end_of_log(store, log) + ((logs >> log & 1) != 0 ? count : 0);
        if (calls_until_crash > 0)
            attempted[log] = ends[log];
    }
    store_append(store, logs, count);
    for (int log = 0; log < STORE_LOGS; log++)
        if ((logs >> log & 1) != 0)
            acknowledged[log] = ends[log];
}

/* Appends that fill the journal several times, and roll segments; some are durable at once, some only later. */
static void run_scenario(void)
{
    sc_error error;
    small_store store;
    CHECK_OK(store_try_open(path, AREA, SEGMENT, &store, &error), error);
    for (int i = 0; i < 60 && calls_until_crash > 0; i++) {
        uint32_t logs = 1 + random_below(255), what = random_below(20);
        if (what == 0)
            CHECK_OK(sc_journal_checkpoint(store.journal, &error), error);
        if (what == 1)
            CHECK_OK(sc_journal_empty(store.journal, &error), error);
        if (what == 2) {
            store_close(&store);
            CHECK_OK(store_try_open(path, AREA, SEGMENT, &store, &error), error);
        }
        if (what == 3) { /* as a process that dies: the next one replays */
            store_abandon(&store);
            CHECK_OK(store_try_open(path, AREA, SEGMENT, &store, &error), error);
        }
        append_and_note(&store, what < 16 ? 0xff : logs, 1 + random_below(20));
    }
    store_abandon(&store);
}

static int broken_states(int scenarios, int states, void (*spoil)(void))
{
    int broken = 0;
    for (int seed = 0; seed < scenarios; seed++) {
        random_seed((uint64_t)seed);
        store_make(path);
        folder_make(latest);
        folder_make(crashed);
        trace(1 + (int)random_below(seed % 3 == 0 ? 3000 : 1500));
        run_scenario();
        bool went = calls_until_crash == 0;
        sc_os_reset();
        for (int state = 0; went && state < states; state++) {
            copy_store(latest, crashed);
            uint32_t style = random_below(3);
            for (int i = 0; i < file_count; i++)
                mix_file(&files[i], style);
            if (spoil != NULL)
                spoil();
            if (check_state())
                continue;
            broken++;
            if (spoil == NULL && !journal_lies && !segments_lie) {
                fprintf(stderr, "seed %d, state %d\n", seed, state);
                CHECK(false);
            }
        }
        folder_remove(path);
        folder_remove(latest);
        folder_remove(crashed);
    }
    return broken;
}

static void test_in_every_state_all_that_was_acknowledged_is_there(void)
{
    const char *more = getenv("STREAMCORE_SCENARIOS");
    CHECK_EQ(broken_states(more != NULL ? atoi(more) : 100, 12, NULL), 0);
}

static void test_control_a_journal_whose_syncs_do_nothing_is_caught(void)
{
    journal_lies = true;
    CHECK(broken_states(8, 12, NULL) > 0);
    journal_lies = false;
}

static void test_control_a_checkpoint_that_syncs_nothing_is_caught(void)
{
    segments_lie = true;
    CHECK(broken_states(8, 12, NULL) > 0);
    segments_lie = false;
}

static void remove_journal(void)
{
    char journal[FILE_MAX];
    snprintf(journal, sizeof journal, "%s/journal", crashed);
    (void)unlink(journal);
}

static void test_control_a_store_that_is_not_replayed_is_caught(void)
{
    CHECK(broken_states(8, 12, remove_journal) > 0);
}

int main(int argc, char **argv)
{
    RUN(test_in_every_state_all_that_was_acknowledged_is_there);
    RUN(test_control_a_journal_whose_syncs_do_nothing_is_caught);
    RUN(test_control_a_checkpoint_that_syncs_nothing_is_caught);
    RUN(test_control_a_store_that_is_not_replayed_is_caught);
    return 0;
}
