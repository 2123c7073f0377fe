/* A store for tests of the journal: two plain topics of four partitions each, which use it. */
#ifndef STREAMCORE_TESTS_SMALL_STORE_H
#define STREAMCORE_TESTS_SMALL_STORE_H

#include "plain_topic.h"

enum { STORE_TOPICS = 2, STORE_PARTITIONS = 4, STORE_LOGS = STORE_TOPICS * STORE_PARTITIONS };

typedef struct small_store {
    sc_journal *journal;
    sc_topic *topics[STORE_TOPICS];
} small_store;

void store_make(char path[FOLDER_MAX]); /* the folders */
int store_try_open(const char *path, int64_t area, int64_t segment_bytes, small_store *store, sc_error *error);
small_store store_open(const char *path, int64_t area);
void store_close(small_store *store);
/* Leaves as a killed process would. */
void store_abandon(small_store *store);
void store_lose_power(const char *path);
void topic_folder(char folder[FILE_MAX], const char *path, int topic);

/* Log 0 to 7: topic log / 4, partition log % 4. */
static inline sc_topic *topic_of(const small_store *store, int log)
{
    return store->topics[log / STORE_PARTITIONS];
}
int64_t durable_of_log(const small_store *store, int log);
int64_t end_of_log(const small_store *store, int log);
/* Appends `count` records to each log of the mask, and then waits for all of them at once. */
int store_try_append(small_store *store, uint32_t logs, int64_t count, sc_error *error);
void store_append(small_store *store, uint32_t logs, int64_t count);
/* Each log holds what was appended, up to its end, which is at least `least`[log]; NULL: no matter. */
void store_check(small_store *store, const int64_t *least);

#endif
