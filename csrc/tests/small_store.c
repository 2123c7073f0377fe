#include "small_store.h"

#include <sys/stat.h>

#include "check.h"

void topic_folder(char folder[FILE_MAX], const char *path, int topic)
{
    CHECK(snprintf(folder, FILE_MAX, "%s/topics/topic-%d", path, topic) < FILE_MAX);
}

void store_make(char path[FOLDER_MAX])
{
    char folder[FILE_MAX];
    folder_make(path);
    snprintf(folder, sizeof folder, "%s/topics", path);
    CHECK(mkdir(folder, 0777) == 0);
    for (int i = 0; i < STORE_TOPICS; i++) {
        topic_folder(folder, path, i);
        CHECK(mkdir(folder, 0777) == 0);
    }
}

int store_try_open(const char *path, int64_t area, int64_t segment_bytes, small_store *store, sc_error *error)
{
    char folder[FILE_MAX];
    *store = (small_store){0};
    int code = sc_journal_open(path, area, &store->journal, error);
    for (int i = 0; i < STORE_TOPICS && code == SC_OK; i++) {
        topic_folder(folder, path, i);
        code = topic_try_open(folder, true, segment_bytes, &store->topics[i], error);
        if (code == SC_OK)
            code = sc_topic_use_journal(store->topics[i], store->journal, error);
    }
    if (code != SC_OK)
        store_abandon(store);
    return code;
}

small_store store_open(const char *path, int64_t area)
{
    small_store store;
    sc_error error;
    CHECK_OK(store_try_open(path, area, 256 << 10, &store, &error), error);
    return store;
}

void store_close(small_store *store)
{
    sc_error error;
    for (int i = 0; i < STORE_TOPICS; i++)
        topic_close(store->topics[i]);
    CHECK_OK(sc_journal_close(store->journal, &error), error);
    sc_journal_release(store->journal);
}

void store_abandon(small_store *store)
{
    for (int i = 0; i < STORE_TOPICS; i++)
        if (store->topics[i] != NULL)
            topic_abandon(store->topics[i]);
    sc_journal_release(store->journal);
}

void store_lose_power(const char *path)
{
    char folder[FILE_MAX], state[FILE_MAX + 8];
    for (int i = 0; i < STORE_TOPICS; i++) {
        topic_folder(folder, path, i);
        snprintf(state, sizeof state, "%s/state", folder);
        if (file_exists(state))
            pretend_power_loss(folder);
    }
}

static sc_partition_info info_of(const small_store *store, int log)
{
    sc_partition_info info;
    sc_error error;
    CHECK_OK(sc_partition_describe(topic_of(store, log), (uint32_t)log % STORE_PARTITIONS, false, &info, &error),
             error);
    return info;
}

int64_t durable_of_log(const small_store *store, int log)
{
    return info_of(store, log).durable_offset;
}

int64_t end_of_log(const small_store *store, int log)
{
    return info_of(store, log).end_offset;
}

int store_try_append(small_store *store, uint32_t logs, int64_t count, sc_error *error)
{
    sc_durable_target targets[STORE_LOGS];
    int64_t target_count = 0;
    for (int log = 0; log < STORE_LOGS; log++) {
        if ((logs >> log & 1) == 0)
            continue;
        uint32_t partition = (uint32_t)log % STORE_PARTITIONS;
        sc_partition_info info;
        int code = SC_CONFLICT;
        for (int tries = 0; tries < 2 && code == SC_CONFLICT;
             tries++) { /* the append of one that died may come to light */
            code = sc_partition_describe(topic_of(store, log), partition, false, &info, error);
            if (code == SC_OK)
                code = try_append(topic_of(store, log), partition, info.end_offset, count, count, false, error);
        }
        if (code != SC_OK)
            return code;
        targets[target_count++] = (sc_durable_target){topic_of(store, log), partition, info.end_offset + count};
    }
    return sc_wait_durable(targets, target_count, error);
}

void store_append(small_store *store, uint32_t logs, int64_t count)
{
    sc_error error;
    CHECK_OK(store_try_append(store, logs, count, &error), error);
}

void store_check(small_store *store, const int64_t *least)
{
    for (int log = 0; log < STORE_LOGS; log++) {
        int64_t end = end_of_log(store, log);
        CHECK(least == NULL || end >= least[log]);
        check_records(topic_of(store, log), (uint32_t)log % STORE_PARTITIONS, 0, end);
    }
}
