/* Durable appends to many partitions share one sync, and what is in the journal alone comes back. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "journal.h"
#include "os.h"
#include "small_store.h"
#include "topic.h"

enum { ALL = 0xff, AREA = 1 << 20 };
static char path[FOLDER_MAX], file[FILE_MAX];

static void journal_file(char name[FILE_MAX])
{
    snprintf(name, FILE_MAX, "%s/journal", path);
}

static void log_file(char name[FILE_MAX], int log)
{
    char folder[FILE_MAX];
    topic_folder(folder, path, log / STORE_PARTITIONS);
    CHECK(snprintf(name, FILE_MAX, "%.200s/%d/%020d.arrows", folder, log % STORE_PARTITIONS, 0) < FILE_MAX);
}

/* ---- counting syncs -------------------------------------------------------------------------------------------- */

static struct sc_os_table real;
static char name_of_fd[1024][FILE_MAX];
static pthread_mutex_t name_mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_int journal_syncs, segment_syncs, folder_syncs;

static int counting_open(const char *name, int how)
{
    int fd = real.open(name, how);
    pthread_mutex_lock(&name_mutex);
    if (fd >= 0 && fd < 1024)
        snprintf(name_of_fd[fd], FILE_MAX, "%s", name);
    pthread_mutex_unlock(&name_mutex);
    return fd;
}

static bool is_segment(int fd)
{
    pthread_mutex_lock(&name_mutex);
    bool segment = strstr(name_of_fd[fd], ".arrows") != NULL;
    pthread_mutex_unlock(&name_mutex);
    return segment;
}

static int counting_sync_data(int fd)
{
    bool segment = is_segment(fd);
    atomic_fetch_add(segment ? &segment_syncs : &journal_syncs, 1);
    return real.sync_data(fd);
}

static int counting_sync(int fd)
{
    atomic_fetch_add(&folder_syncs, 1);
    return real.sync(fd);
}

static void count_syncs(void)
{
    sc_os_reset();
    real = sc_os;
    journal_syncs = segment_syncs = folder_syncs = 0;
    sc_os.open = counting_open;
    sc_os.sync_data = counting_sync_data;
    sc_os.sync = counting_sync;
}

/* A store of which each log has twenty durable records, ten of them from the journal. */
static small_store make_store(int64_t area)
{
    store_make(path);
    small_store store = store_open(path, area);
    count_syncs(); /* so that the journal's descriptor is known */
    store_append(&store, ALL, 10);
    store_append(&store, ALL, 10);
    count_syncs();
    return store;
}

static void test_many_partitions_of_many_topics_share_one_sync(void)
{
    small_store store = make_store(AREA);
    store_append(&store, ALL, 10);
    CHECK_EQ(journal_syncs, 1);
    CHECK_EQ(segment_syncs, 0);
    for (int log = 0; log < STORE_LOGS; log++)
        CHECK_EQ(durable_of_log(&store, log), 30);
    store_append(&store, 0x11, 1);
    CHECK_EQ(journal_syncs, 2);
    CHECK_EQ(segment_syncs + folder_syncs, 0);
    sc_os_reset();
    store_check(&store, NULL);
    store_close(&store);
    folder_remove(path);
}

static void test_one_partition_syncs_its_segment_as_ever(void)
{
    small_store store = make_store(AREA);
    sc_error error;
    store_append(&store, 1, 10);
    CHECK_OK(try_append(store.topics[1], 2, 20, 5, 5, true, &error), error);
    CHECK_EQ(segment_syncs, 2);
    CHECK_EQ(journal_syncs, 0);
    sc_os_reset();
    store_close(&store);
    folder_remove(path);
}

static void test_the_first_sync_in_a_segment_syncs_its_name(void)
{
    store_make(path);
    small_store store = store_open(path, AREA);
    count_syncs();
    store_append(&store, ALL, 10);
    CHECK_EQ(segment_syncs, STORE_LOGS);
    CHECK_EQ(folder_syncs, 2 * STORE_LOGS);
    CHECK_EQ(journal_syncs, 0);
    sc_os_reset();
    store_close(&store);
    snprintf(file, sizeof file, "%s/journal", path);
    CHECK(!file_exists(file)); /* made by the first use */
    folder_remove(path);
}

static void test_segments_that_roll_between_syncs_are_synced_themselves(void)
{
    store_make(path);
    small_store store;
    sc_error error;
    int64_t least[STORE_LOGS];
    CHECK_OK(store_try_open(path, AREA, 8 << 10, &store, &error), error);
    for (int i = 0; i < 40; i++)
        store_append(&store, ALL, 10);
    for (int log = 0; log < STORE_LOGS; log++)
        least[log] = 400;
    store_abandon(&store);
    store_lose_power(path);
    CHECK_OK(store_try_open(path, AREA, 8 << 10, &store, &error), error);
    store_check(&store, least);
    store_close(&store);
    folder_remove(path);
}

static void test_a_wait_beyond_the_end_of_a_log_is_refused(void)
{
    small_store store = make_store(AREA);
    sc_error error;
    sc_durable_target targets[] = {{store.topics[0], 0, 20}, {store.topics[0], 1, 21}};
    CHECK_EQ(sc_wait_durable(targets, 2, &error), SC_RANGE);
    CHECK_EQ(error.position, 20);
    CHECK_OK(sc_wait_durable(targets, 0, &error), error);
    sc_os_reset();
    store_close(&store);
    folder_remove(path);
}

static void test_a_topic_of_another_store_is_refused(void)
{
    char other[FOLDER_MAX];
    store_make(path);
    folder_make(other);
    sc_error error;
    small_store store = store_open(path, AREA);
    sc_topic *topic = topic_open(other, true);
    CHECK_EQ(sc_topic_use_journal(topic, store.journal, &error), SC_INVALID);
    topic_close(topic);
    store_close(&store);
    folder_remove(path);
    folder_remove(other);
}

/* ---- replay ----------------------------------------------------------------------------------------------------- */

/* What the drive had when the power went: the segments as their own syncs left them, ten records each. */
static void forget_unsynced(void)
{
    found_batch batches[8];
    for (int log = 0; log < STORE_LOGS; log++) {
        log_file(file, log);
        CHECK(found_batches(file, batches, 8) >= 2);
        file_zero(file, batches[1].position, file_size(file) - batches[1].position);
    }
    store_lose_power(path);
}

static void check_reopened(int64_t least)
{
    int64_t ends[STORE_LOGS];
    for (int log = 0; log < STORE_LOGS; log++)
        ends[log] = least;
    for (int i = 0; i < 2; i++) {
        small_store store = store_open(path, AREA);
        store_check(&store, ends);
        store_append(&store, ALL, 3);
        store_append(&store, ALL, 3);
        store_check(&store, NULL);
        store_close(&store);
    }
}

static void test_what_only_the_journal_had_comes_back(void)
{
    small_store store = make_store(AREA);
    store_append(&store, ALL, 10);
    sc_os_reset();
    store_abandon(&store);
    forget_unsynced();
    check_reopened(30);
    folder_remove(path);
}

static int unsynced_count;
static char unsynced[STORE_LOGS][FILE_MAX];

static ssize_t tracing_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    if (is_segment(fd)) {
        CHECK(unsynced_count < STORE_LOGS);
        snprintf(unsynced[unsynced_count++], FILE_MAX, "%s", name_of_fd[fd]);
    } else if (strstr(name_of_fd[fd], "/journal") != NULL && position < SC_JOURNAL_AREA_AT) {
        CHECK_EQ(unsynced_count, 0); /* no record counts any more: what they held is on the drive */
    }
    return real.pwrite(fd, data, size, position);
}

static int tracing_sync_data(int fd)
{
    for (int i = 0; i < unsynced_count; i++)
        if (strcmp(unsynced[i], name_of_fd[fd]) == 0)
            memmove(unsynced[i--], unsynced[--unsynced_count], FILE_MAX);
    return counting_sync_data(fd);
}

static void test_what_was_replayed_is_synced_before_the_journal_is_emptied(void)
{
    small_store store = make_store(AREA);
    sc_os_reset();
    store_abandon(&store);
    forget_unsynced();
    count_syncs();
    sc_os.pwrite = tracing_pwrite;
    sc_os.sync_data = tracing_sync_data;
    store = store_open(path, AREA);
    CHECK_EQ(segment_syncs, STORE_LOGS);
    CHECK_EQ(unsynced_count, 0);
    sc_os_reset();
    store_close(&store);
    folder_remove(path);
}

static sc_topic *open_reader(int topic)
{
    char folder[FILE_MAX];
    sc_error error;
    topic_folder(folder, path, topic);
    sc_topic *reader = topic_open(folder, false);
    CHECK_OK(sc_topic_read_journal(reader, path, &error), error);
    return reader;
}

static void test_a_reader_sees_what_only_the_journal_has_and_goes_on_with_the_log(void)
{
    for (int shorter = 0; shorter < 2; shorter++) {
        small_store store = make_store(AREA);
        store_append(&store, ALL, 10);
        sc_os_reset();
        store_abandon(&store);
        forget_unsynced();
        if (shorter) {
            log_file(file, 1);
            file_truncate(file, found_end(file));
        }
        char *before = folder_snapshot(path);
        sc_topic *reader = open_reader(0), *stranger = open_reader(1);
        for (uint32_t partition = 0; partition < STORE_PARTITIONS; partition++) {
            CHECK_EQ(end_of(reader, partition), 30);
            check_records(reader, partition, 0, 30);
            CHECK_EQ(end_of(stranger, partition), 30);
        }
        char *after = folder_snapshot(path);
        CHECK(strcmp(before, after) == 0); /* not a byte was written */
        free(before);
        free(after);
        store = store_open(path, AREA);
        store_append(&store, ALL, 10);
        for (uint32_t partition = 0; partition < STORE_PARTITIONS; partition++) {
            CHECK_EQ(end_of(reader, partition), 40);
            check_records(reader, partition, 0, 40);
        }
        store_close(&store);
        check_records(reader, 1, 0, 40);
        topic_close(reader);
        topic_close(stranger);
        folder_remove(path);
    }
}

static void test_control_without_the_journal_it_does_not(void)
{
    small_store store = make_store(AREA);
    sc_os_reset();
    store_abandon(&store);
    forget_unsynced();
    journal_file(file);
    CHECK(unlink(file) == 0);
    store = store_open(path, AREA);
    for (int log = 0; log < STORE_LOGS; log++)
        CHECK_EQ(end_of_log(&store, log), 10);
    store_close(&store);
    folder_remove(path);
}

static void test_a_file_that_lost_its_length_gets_it_back(void)
{
    small_store store = make_store(AREA);
    sc_os_reset();
    store_abandon(&store);
    forget_unsynced();
    for (int log = 0; log < STORE_LOGS; log++) {
        found_batch batches[8];
        log_file(file, log);
        CHECK_EQ(found_batches(file, batches, 8), 1);
        file_truncate(file, batches[0].position + batches[0].header.total_size);
    }
    check_reopened(20);
    folder_remove(path);
}

static void test_a_process_that_dies_leaves_nothing_to_repair(void)
{
    small_store store = make_store(AREA);
    store_append(&store, ALL, 10);
    sc_os_reset();
    store_abandon(&store);
    check_reopened(30);
    folder_remove(path);
}

static void test_after_a_clean_close_there_is_nothing_to_replay(void)
{
    small_store store = make_store(AREA);
    sc_os_reset();
    store_close(&store);
    for (int log = 0; log < STORE_LOGS; log++) {
        log_file(file, log);
        CHECK(unlink(file) == 0); /* as retention does */
    }
    store = store_open(path, AREA);
    for (int log = 0; log < STORE_LOGS; log++)
        CHECK_EQ(end_of_log(&store, log), 0);
    store_close(&store);
    folder_remove(path);
}

static void test_deleted_segments_and_topics_stay_deleted(void)
{
    small_store store = make_store(AREA);
    char folder[FILE_MAX], gone[FILE_MAX];
    sc_os_reset();
    store_abandon(&store);
    log_file(file, 1);
    CHECK(unlink(file) == 0);
    topic_folder(folder, path, 1);
    snprintf(gone, sizeof gone, "%s/topics/.deleted", path);
    CHECK(rename(folder, gone) == 0);
    sc_journal *journal;
    sc_error error;
    CHECK_OK(sc_journal_open(path, AREA, &journal, &error), error);
    CHECK(!file_exists(file) && !file_exists(folder));
    CHECK_OK(sc_journal_close(journal, &error), error);
    sc_journal_release(journal);
    folder_remove(path);
}

/* A segment of other batches took the name: a rewritten one, or that of another life of the log. */
static void test_a_replaced_segment_keeps_what_it_has(void)
{
    for (int longer = 0; longer < 2; longer++) {
        small_store store = make_store(AREA);
        sc_error error;
        sc_os_reset();
        store_abandon(&store);
        char other[FOLDER_MAX], from[FILE_MAX];
        folder_make(other);
        sc_topic *topic = topic_open(other, true);
        CHECK_OK(try_append(topic, 0, 0, 5, 5, false, &error), error);
        if (longer)
            CHECK_OK(try_append(topic, 0, 5, 500, 100, false, &error), error);
        topic_close(topic);
        segment_file(from, other, 0, 0);
        int64_t size, after;
        uint8_t *data = file_read(from, &size), *found;
        log_file(file, 0);
        file_write(file, data, size);
        sc_journal *journal;
        CHECK_OK(sc_journal_open(path, AREA, &journal, &error), error);
        CHECK_OK(sc_journal_close(journal, &error), error);
        sc_journal_release(journal);
        found = file_read(file, &after);
        CHECK_EQ(after, size);
        CHECK(memcmp(found, data, (size_t)size) == 0);
        free(found);
        free(data);
        folder_remove(other);
        folder_remove(path);
    }
}

/* The first batches of the segment stayed, what follows them was rewritten. */
static void test_a_rewritten_segment_keeps_what_it_has(void)
{
    small_store store = make_store(AREA);
    sc_error error;
    sc_os_reset();
    store_abandon(&store);
    found_batch batches[4];
    log_file(file, 0);
    CHECK_EQ(found_batches(file, batches, 4), 2);
    int64_t at = batches[1].position, size, after;
    file_write_at(file, "rewritten", 9, at + 2000);
    uint8_t *data = file_read(file, &size), *found;
    sc_journal *journal;
    CHECK_OK(sc_journal_open(path, AREA, &journal, &error), error);
    CHECK_OK(sc_journal_close(journal, &error), error);
    sc_journal_release(journal);
    found = file_read(file, &after);
    CHECK(after == size && memcmp(found, data, (size_t)size) == 0);
    free(found);
    free(data);
    folder_remove(path);
}

/* Emptied, then the end of a log is cut away on purpose: the records of the journal would fit, but do not count. */
static bool comes_back(bool with_old_header)
{
    small_store store = make_store(AREA);
    sc_error error;
    int64_t size;
    sc_os_reset();
    journal_file(file);
    uint8_t *old = file_read(file, &size);
    CHECK_OK(sc_journal_empty(store.journal, &error), error);
    store_abandon(&store);
    uint8_t *now = file_read(file, &size);
    if (with_old_header)
        file_write_at(file, old, 2 * SC_JOURNAL_PAGE, 0);
    else
        CHECK(memcmp(old + 2 * SC_JOURNAL_PAGE, now + 2 * SC_JOURNAL_PAGE, (size_t)size - 2 * SC_JOURNAL_PAGE) == 0);
    free(old);
    free(now);
    forget_unsynced();
    store = store_open(path, AREA);
    int64_t end = end_of_log(&store, 0);
    store_close(&store);
    folder_remove(path);
    CHECK(end == 10 || end == 20);
    return end == 20;
}

static void test_records_of_an_emptied_journal_do_not_count(void)
{
    CHECK(!comes_back(false));
}

static void test_control_with_the_old_header_they_would(void)
{
    CHECK(comes_back(true));
}

/* ---- torn ends and damage -----------------------------------------------------------------------------------------
 */

/* The places of the records in the journal. */
static int find_records(int64_t places[16])
{
    int64_t size;
    int count = 0;
    journal_file(file);
    uint8_t *data = file_read(file, &size);
    for (int64_t at = SC_JOURNAL_AREA_AT; count < 16;) {
        const sc_journal_record *record = (const sc_journal_record *)(void *)(data + at);
        if (at >= size || memcmp(record->magic, "SCJREC01", 8) != 0)
            break;
        places[count++] = at;
        at += record->size;
    }
    free(data);
    return count;
}

/* Where a flipped bit matters: magic, LSN, an entry, a batch. */
static const int64_t spots[] = {3, 17, 520, 1500};

static sc_journal *reopen_journal(void)
{
    sc_journal *journal;
    sc_error error;
    CHECK_OK(sc_journal_open(path, AREA, &journal, &error), error);
    return journal;
}

static void leave_journal(sc_journal *journal)
{
    sc_error error;
    CHECK_OK(sc_journal_close(journal, &error), error);
    sc_journal_release(journal);
}

static void test_a_torn_record_at_the_end_was_in_flight(void)
{
    for (int i = 0; i < 4; i++) {
        int64_t places[16];
        sc_error damage;
        small_store store = make_store(AREA);
        store_append(&store, ALL, 10);
        sc_os_reset();
        store_abandon(&store);
        CHECK_EQ(find_records(places), 4); /* one for each topic, twice */
        journal_file(file);
        file_flip(file, places[2] + spots[i]);
        file_flip(file, places[3] + spots[i]);
        forget_unsynced();
        sc_journal *journal = reopen_journal();
        CHECK(!sc_journal_damage(journal, &damage));
        leave_journal(journal);
        check_reopened(20);
        folder_remove(path);
    }
}

static void test_damage_below_what_was_synced_is_reported_and_the_rest_comes_back(void)
{
    for (int i = 0; i < 4; i++) {
        int64_t places[16];
        sc_error damage;
        small_store store = make_store(AREA);
        store_append(&store, ALL, 10); /* knows that the first one was synced */
        sc_os_reset();
        store_abandon(&store);
        CHECK_EQ(find_records(places), 4);
        journal_file(file);
        file_flip(file, places[0] + spots[i]); /* of topic 0 */
        forget_unsynced();
        sc_journal *journal = reopen_journal();
        CHECK(sc_journal_damage(journal, &damage));
        CHECK_EQ(damage.position, places[0]);
        journal_file(file);
        CHECK(!file_exists(file));
        leave_journal(journal);
        store = store_open(path, AREA);
        for (int log = 0; log < STORE_LOGS; log++)
            CHECK_EQ(end_of_log(&store, log), log < STORE_PARTITIONS ? 10 : 30);
        store_check(&store, NULL);
        store_close(&store);
        folder_remove(path);
    }
}

static void test_a_journal_without_a_header_is_reported(void)
{
    sc_error damage;
    small_store store = make_store(AREA);
    sc_os_reset();
    store_abandon(&store);
    journal_file(file);
    file_flip(file, 20);
    sc_journal *journal = reopen_journal();
    CHECK(sc_journal_damage(journal, &damage));
    leave_journal(journal);
    check_reopened(20);
    folder_remove(path);
}

static void test_garbage_in_the_place_of_the_journal_harms_nothing(void)
{
    static const int64_t sizes[] = {0, 1, 63, 64, 4096, 9000, SC_JOURNAL_AREA_AT + AREA};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        small_store store = make_store(AREA);
        sc_os_reset();
        store_abandon(&store);
        journal_file(file);
        uint8_t *garbage = malloc((size_t)sizes[i] + 1);
        for (int64_t at = 0; at < sizes[i]; at++)
            garbage[at] = (uint8_t)(at * 31 + at / 256);
        file_write(file, garbage, sizes[i]);
        free(garbage);
        leave_journal(reopen_journal());
        check_reopened(20);
        folder_remove(path);
    }
}

static void test_a_newer_journal_is_refused(void)
{
    small_store store = make_store(AREA);
    sc_journal_header header;
    sc_journal *journal;
    sc_error error;
    sc_os_reset();
    store_abandon(&store);
    journal_file(file);
    int fd = sc_os.open(file, SC_OPEN_WRITE);
    CHECK_OK(sc_journal_header_read(fd, file, &header, &error), error);
    header.version = 2;
    header.crc = sc_crc32c(0, &header.version, sizeof header - offsetof(sc_journal_header, version));
    CHECK(sc_os_write_whole(fd, &header, sizeof header, header.generation % 2 * SC_JOURNAL_PAGE) == 0);
    sc_os.close(fd);
    CHECK_EQ(sc_journal_open(path, AREA, &journal, &error), SC_FORMAT);
    CHECK(file_exists(file));
    folder_remove(path);
}

/* ---- a full journal ---------------------------------------------------------------------------------------------- */

static void test_a_full_journal_is_emptied_and_goes_on(void)
{
    enum { SMALL = 96 << 10, ROUNDS = 30 };
    int64_t least[STORE_LOGS];
    small_store store = make_store(SMALL);
    for (int i = 0; i < ROUNDS; i++)
        store_append(&store, ALL, 10);
    CHECK(journal_syncs > ROUNDS && segment_syncs >= STORE_LOGS && segment_syncs < ROUNDS * STORE_LOGS);
    sc_os_reset();
    journal_file(file);
    CHECK_EQ(file_size(file), SC_JOURNAL_AREA_AT + SMALL);
    store_abandon(&store);
    for (int log = 0; log < STORE_LOGS; log++)
        least[log] = 20 + 10 * ROUNDS;
    store = store_open(path, SMALL);
    store_check(&store, least);
    store_close(&store);
    folder_remove(path);
}

static void test_what_does_not_fit_is_synced_without_it(void)
{
    small_store store = make_store(16 << 10);
    store_append(&store, ALL, 100);
    CHECK_EQ(segment_syncs, STORE_LOGS);
    for (int log = 0; log < STORE_LOGS; log++)
        CHECK_EQ(durable_of_log(&store, log), 120);
    sc_os_reset();
    store_close(&store);
    folder_remove(path);
}

static void test_a_checkpoint_syncs_each_segment_once(void)
{
    small_store store = make_store(AREA);
    sc_error error;
    for (int i = 0; i < 5; i++)
        store_append(&store, ALL, 10);
    CHECK_EQ(segment_syncs, 0);
    CHECK_OK(sc_journal_checkpoint(store.journal, &error), error);
    CHECK_EQ(segment_syncs, STORE_LOGS);
    CHECK_OK(sc_journal_checkpoint(store.journal, &error), error);
    CHECK_EQ(segment_syncs, STORE_LOGS);
    sc_os_reset();
    store_close(&store);
    folder_remove(path);
}

/* ---- failures -----------------------------------------------------------------------------------------------------
 */

static bool fails_for_segments;

static int failing_sync_data(int fd)
{
    bool segment = is_segment(fd);
    if (segment != fails_for_segments)
        return counting_sync_data(fd);
    atomic_fetch_add(segment ? &segment_syncs : &journal_syncs, 1);
    errno = EIO;
    return -1;
}

static void test_a_failed_sync_of_the_journal_poisons_what_waited_and_is_not_repeated(void)
{
    small_store store = make_store(AREA);
    sc_error error;
    fails_for_segments = false;
    sc_os.sync_data = failing_sync_data;
    CHECK_EQ(store_try_append(&store, 0x0f, 5, &error), SC_OS);
    CHECK_EQ(error.number, EIO);
    CHECK(strstr(error.path, "journal") != NULL);
    sc_os.sync_data = counting_sync_data;
    for (int log = 0; log < STORE_PARTITIONS; log++) {
        CHECK_EQ(durable_of_log(&store, log), 20);
        CHECK_EQ(try_append(store.topics[0], (uint32_t)log, 25, 5, 5, false, &error), SC_POISONED);
    }
    CHECK_EQ(store_try_append(&store, 0x03, 5, &error), SC_POISONED);
    CHECK_EQ(journal_syncs, 1);
    store_append(&store, 0xf0, 5); /* these did not wait for it: each is synced by itself from now on */
    CHECK_EQ(journal_syncs, 1);
    CHECK_EQ(segment_syncs, STORE_PARTITIONS);
    sc_os_reset();
    store_abandon(&store);
    check_reopened(20);
    folder_remove(path);
}

static sc_slot *told_of_failure;

/* While the journal is synced, another process is told that the sync of a segment failed. */
static int sync_data_meanwhile_poisoned(int fd)
{
    if (!is_segment(fd))
        atomic_store(&told_of_failure->poisoned, EIO);
    return counting_sync_data(fd);
}

static void test_a_sync_of_the_journal_promises_nothing_of_a_partition_whose_own_failed(void)
{
    small_store store = make_store(AREA);
    sc_error error;
    told_of_failure = sc_state_slot(&store.topics[0]->state, 1);
    sc_os.sync_data = sync_data_meanwhile_poisoned;
    CHECK_EQ(store_try_append(&store, 0x0f, 5, &error), SC_POISONED);
    CHECK_EQ(journal_syncs, 1);
    for (int log = 0; log < STORE_PARTITIONS; log++)
        CHECK_EQ(durable_of_log(&store, log), log == 1 ? 20 : 25);
    sc_os_reset();
    store_abandon(&store);
    check_reopened(20);
    folder_remove(path);
}

static bool name_is_dirty;

static int tracing_rename(const char *from, const char *to)
{
    name_is_dirty = name_is_dirty || strcmp(to + strlen(to) - strlen("/journal"), "/journal") == 0;
    return real.rename(from, to);
}

static int tracing_sync(int fd)
{
    name_is_dirty = name_is_dirty && strcmp(name_of_fd[fd], path) != 0;
    return real.sync(fd);
}

static int sync_data_behind_the_name(int fd)
{
    if (is_segment(fd))
        return real.sync_data(fd);
    CHECK(strstr(name_of_fd[fd], ".tmp") != NULL || !name_is_dirty);
    return counting_sync_data(fd);
}

static void test_a_new_journal_has_its_name_on_the_drive_before_it_promises_anything(void)
{
    store_make(path);
    small_store store = store_open(path, AREA);
    count_syncs();
    name_is_dirty = false;
    sc_os.rename = tracing_rename;
    sc_os.sync = tracing_sync;
    sc_os.sync_data = sync_data_behind_the_name;
    store_append(&store, ALL, 10);
    store_append(&store, ALL, 10);
    CHECK(journal_syncs >= 2); /* its header's, and that of the records */
    CHECK(!name_is_dirty);
    sc_os_reset();
    store_close(&store);
    folder_remove(path);
}

static void test_a_failed_checkpoint_poisons_the_partition_and_keeps_the_journal(void)
{
    small_store store = make_store(AREA);
    sc_error error;
    fails_for_segments = true;
    sc_os.sync_data = failing_sync_data;
    CHECK_EQ(sc_journal_checkpoint(store.journal, &error), SC_OS);
    CHECK_EQ(segment_syncs, 1);
    sc_os.sync_data = counting_sync_data;
    CHECK_OK(sc_journal_checkpoint(store.journal, &error), error); /* does nothing any more */
    CHECK_EQ(segment_syncs, 1);
    CHECK_EQ(try_append(store.topics[0], 0, 20, 5, 5, false, &error), SC_POISONED);
    store_append(&store, 0xfe, 5);
    CHECK_EQ(journal_syncs, 0);
    sc_os_reset();
    store_abandon(&store);
    check_reopened(20);
    folder_remove(path);
}

static int64_t acknowledged[STORE_LOGS];

static void check_code(int code, const sc_error *error)
{
    if (code != SC_OK && code != SC_OS && code != SC_POISONED)
        check_error(__FILE__, __LINE__, faults_name(), error);
}

static void append_and_note(small_store *store, int64_t count)
{
    sc_error error;
    int64_t ends[STORE_LOGS] = {0};
    for (int log = 0; log < STORE_LOGS; log++) {
        sc_partition_info info;
        int code = sc_partition_describe(topic_of(store, log), (uint32_t)log % STORE_PARTITIONS, false, &info, &error);
        check_code(code, &error);
        if (code != SC_OK)
            return;
        ends[log] = info.end_offset + count;
    }
    int code = store_try_append(store, ALL, count, &error);
    check_code(code, &error);
    if (code == SC_OK)
        memcpy(acknowledged, ends, sizeof ends);
}

/* Opens, which may have to replay, uses the journal until it is full, and closes. */
static void run_scenario(void)
{
    small_store store;
    sc_error error;
    int code = store_try_open(path, 96 << 10, 256 << 10, &store, &error);
    check_code(code, &error);
    if (code != SC_OK)
        return;
    for (int i = 0; i < 8; i++)
        append_and_note(&store, 6);
    check_code(sc_journal_checkpoint(store.journal, &error), &error);
    append_and_note(&store, 6);
    check_code(sc_journal_empty(store.journal, &error), &error);
    append_and_note(&store, 6);
    for (int i = 0; i < STORE_TOPICS; i++) {
        check_code(sc_topic_close(store.topics[i], &error), &error);
        sc_topic_free(store.topics[i]);
    }
    check_code(sc_journal_close(store.journal, &error), &error);
    sc_journal_release(store.journal);
}

/* With `lost`, the power was lost before: there is something to replay. */
static void check_survives(int error_number, bool sticky, bool lost, int every)
{
    int step = every;
    for (int number = 1 + error_number % every;; number += step) {
        if (lost) {
            small_store store = make_store(AREA);
            sc_os_reset();
            store_abandon(&store);
            forget_unsynced();
        } else {
            store_make(path);
        }
        for (int log = 0; log < STORE_LOGS; log++)
            acknowledged[log] = lost ? 20 : 0;
        faults_arm(number, error_number, sticky);
        run_scenario();
        CHECK_EQ(faults_repeated_syncs(), 0);
        bool failed = faults_disarm();
        small_store store = store_open(path, AREA);
        store_check(&store, acknowledged);
        store_append(&store, ALL, 5);
        store_append(&store, ALL, 5);
        store_check(&store, NULL);
        store_close(&store);
        folder_remove(path);
        if (!failed) {
            CHECK(number > 100);
            return;
        }
        step = number < 400 ? every : every + number % 5;
    }
}

static void test_any_call_that_fails_once_loses_nothing(void)
{
    check_survives(EIO, false, false, 1);
    const int others[] = {ENOSPC, EDQUOT, EINTR, EMFILE, ENFILE, ENOMEM, EACCES};
    for (int i = 0; i < 7; i++)
        check_survives(others[i], false, false, 9);
}

static void test_calls_that_fail_from_some_moment_on_lose_nothing(void)
{
    check_survives(ENOSPC, true, false, 1);
    check_survives(EIO, true, false, 9);
    check_survives(EROFS, true, false, 9);
}

static void test_any_call_that_fails_in_a_replay_loses_nothing(void)
{
    check_survives(EIO, false, true, 1);
    check_survives(EMFILE, true, true, 1);
    check_survives(ENOSPC, false, true, 9);
    check_survives(ENOSPC, true, true, 9);
    check_survives(EINTR, false, true, 9);
}

/* ---- threads ------------------------------------------------------------------------------------------------------
 */

enum { APPENDERS = 16, EACH = 40 };
static small_store shared_store;

static void *append_durably(void *number)
{
    int log = (int)((intptr_t)number % STORE_LOGS);
    for (int i = 0; i < EACH; i++) {
        sc_batch_input input = {.count = 1, .timestamp = 1};
        sc_append append = {.batches = &input,
                            .batch_count = 1,
                            .schema_version = 1,
                            .generation = GENERATION,
                            .expected_offset = -1,
                            .durable = true};
        sc_error error;
        int64_t first, end;
        CHECK_OK(sc_partition_append(topic_of(&shared_store, log), (uint32_t)log % STORE_PARTITIONS, &append, &first,
                                     &end, &error),
                 error);
        CHECK(durable_of_log(&shared_store, log) >= end);
    }
    return NULL;
}

static atomic_int sync_calls, waiting;

/* The first two, which are of one partition each, last until all others wait. */
static int slow_sync_data(int fd)
{
    bool early = atomic_fetch_add(&sync_calls, 1) < 2;
    for (int i = 0; early && atomic_load(&waiting) < APPENDERS - 2; i++) {
        CHECK(i < 10000);
        usleep(1000);
    }
    return counting_sync_data(fd);
}

static int counting_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    atomic_fetch_add(&waiting, 1);
    return real.wait(word, expected, timeout_ns);
}

static void test_threads_on_many_partitions_share_syncs(void)
{
    pthread_t threads[APPENDERS];
    shared_store = make_store(AREA);
    sync_calls = waiting = 0;
    sc_os.sync_data = slow_sync_data;
    sc_os.wait = counting_wait;
    for (intptr_t i = 0; i < APPENDERS; i++)
        CHECK(pthread_create(&threads[i], NULL, append_durably, (void *)i) == 0);
    for (int i = 0; i < APPENDERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(journal_syncs > 0);
    CHECK(journal_syncs + segment_syncs < APPENDERS * EACH);
    sc_os_reset();
    for (int log = 0; log < STORE_LOGS; log++)
        CHECK_EQ(durable_of_log(&shared_store, log), 20 + APPENDERS / STORE_LOGS * EACH);
    store_close(&shared_store);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_many_partitions_of_many_topics_share_one_sync);
    RUN(test_one_partition_syncs_its_segment_as_ever);
    RUN(test_the_first_sync_in_a_segment_syncs_its_name);
    RUN(test_segments_that_roll_between_syncs_are_synced_themselves);
    RUN(test_a_wait_beyond_the_end_of_a_log_is_refused);
    RUN(test_a_topic_of_another_store_is_refused);
    RUN(test_what_only_the_journal_had_comes_back);
    RUN(test_what_was_replayed_is_synced_before_the_journal_is_emptied);
    RUN(test_a_reader_sees_what_only_the_journal_has_and_goes_on_with_the_log);
    RUN(test_control_without_the_journal_it_does_not);
    RUN(test_a_file_that_lost_its_length_gets_it_back);
    RUN(test_a_process_that_dies_leaves_nothing_to_repair);
    RUN(test_after_a_clean_close_there_is_nothing_to_replay);
    RUN(test_deleted_segments_and_topics_stay_deleted);
    RUN(test_a_replaced_segment_keeps_what_it_has);
    RUN(test_a_rewritten_segment_keeps_what_it_has);
    RUN(test_records_of_an_emptied_journal_do_not_count);
    RUN(test_control_with_the_old_header_they_would);
    RUN(test_a_torn_record_at_the_end_was_in_flight);
    RUN(test_damage_below_what_was_synced_is_reported_and_the_rest_comes_back);
    RUN(test_a_journal_without_a_header_is_reported);
    RUN(test_garbage_in_the_place_of_the_journal_harms_nothing);
    RUN(test_a_newer_journal_is_refused);
    RUN(test_a_full_journal_is_emptied_and_goes_on);
    RUN(test_what_does_not_fit_is_synced_without_it);
    RUN(test_a_checkpoint_syncs_each_segment_once);
    RUN(test_a_failed_sync_of_the_journal_poisons_what_waited_and_is_not_repeated);
    RUN(test_a_sync_of_the_journal_promises_nothing_of_a_partition_whose_own_failed);
    RUN(test_a_new_journal_has_its_name_on_the_drive_before_it_promises_anything);
    RUN(test_a_failed_checkpoint_poisons_the_partition_and_keeps_the_journal);
    RUN(test_any_call_that_fails_once_loses_nothing);
    RUN(test_calls_that_fail_from_some_moment_on_lose_nothing);
    RUN(test_any_call_that_fails_in_a_replay_loses_nothing);
    RUN(test_threads_on_many_partitions_share_syncs);
    return 0;
}
