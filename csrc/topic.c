#include "topic.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"

/* ---- opening and closing ----------------------------------------------------------------------------------- */

int sc_topic_open(const char *path, bool writable, const sc_topic_settings *settings, sc_topic **out, sc_error *error)
{
    sc_topic *topic = calloc(1, sizeof *topic);
    if (topic == NULL)
        return sc_fail_memory(error);
    topic->partitions = calloc(SC_PARTITIONS_MAX, sizeof *topic->partitions);
    int code = topic->partitions == NULL ? sc_fail_memory(error) : SC_OK;
    if (code == SC_OK && snprintf(topic->path, sizeof topic->path, "%s", path) >= (int)sizeof topic->path - 64)
        code = sc_fail(error, SC_INVALID, "the path of the store is longer than %d bytes", SC_PATH_MAX - 64);
    if (code == SC_OK)
        code = sc_state_open(&topic->state, path, writable, settings->partitions, settings->generation, error);
    if (code != SC_OK) {
        free((void *)topic->partitions);
        free(topic);
        return code;
    }
    topic->writable = writable;
    topic->settings = *settings;
    topic->fork_generation = sc_os_fork_generation();
    atomic_init(&topic->references, 1);
    pthread_mutex_init(&topic->mutex, NULL);
    pthread_cond_init(&topic->left, NULL);
    *out = topic;
    return SC_OK;
}

int sc_topic_enter(sc_topic *topic, sc_error *error)
{
    if (topic->fork_generation != sc_os_fork_generation() && !SC_CONTROL(fork_not_noticed))
        return sc_fail(error, SC_FORKED, "this store was opened before a fork: open it again in the child process");
    atomic_fetch_add(&topic->users, 1);
    if (!atomic_load(&topic->closing))
        return SC_OK;
    bool deleted = sc_topic_is_deleted(topic);
    sc_topic_leave(topic);
    return deleted ? sc_fail(error, SC_DELETED, "the topic was deleted")
                   : sc_fail(error, SC_CLOSED, "the topic is closed");
}

void sc_topic_leave(sc_topic *topic)
{
    if (atomic_fetch_sub(&topic->users, 1) != 1 || !atomic_load(&topic->closing))
        return;
    pthread_mutex_lock(&topic->mutex);
    pthread_cond_broadcast(&topic->left);
    pthread_mutex_unlock(&topic->mutex);
}

static int trim_partitions(sc_topic *topic, sc_error *error)
{
    int code = SC_OK;
    for (uint32_t i = 0; i < SC_PARTITIONS_MAX && i < topic->settings.partitions; i++) {
        sc_partition *partition = atomic_load(&topic->partitions[i]);
        if (partition == NULL || !atomic_load(&partition->touched))
            continue;
        sc_error one;
        int result = sc_partition_trim(partition, &one);
        if (result != SC_OK && code == SC_OK) {
            code = result;
            *error = one;
        }
    }
    return code;
}

int sc_topic_close(sc_topic *topic, sc_error *error)
{
    bool forked = topic->fork_generation != sc_os_fork_generation();
    if (forked) {
        topic->closed = true;
        atomic_store(&topic->closing, true);
        return SC_OK;
    }
    pthread_mutex_lock(&topic->mutex);
    bool first = !atomic_exchange(&topic->closing, true);
    if (first && topic->writable && !SC_CONTROL(closing_wakes_nobody))
        sc_state_wake(&topic->state);
    while (atomic_load(&topic->users) > 0 || (!first && !topic->closed))
        pthread_cond_wait(&topic->left, &topic->mutex);
    pthread_mutex_unlock(&topic->mutex);
    if (!first)
        return SC_OK;
    int code = topic->writable && !sc_topic_is_deleted(topic) ? trim_partitions(topic, error) : SC_OK;
    sc_state_unlock_all(&topic->state, false);
    pthread_mutex_lock(&topic->mutex);
    topic->closed = true;
    pthread_cond_broadcast(&topic->left);
    pthread_mutex_unlock(&topic->mutex);
    return code;
}

void sc_topic_free(sc_topic *topic)
{
    sc_error unused;
    if (topic == NULL || atomic_fetch_sub(&topic->references, 1) != 1)
        return;
    bool forked = topic->fork_generation != sc_os_fork_generation();
    if (!topic->closed)
        sc_topic_close(topic, &unused);
    for (uint32_t i = 0; i < topic->settings.partitions; i++)
        sc_partition_free(atomic_load(&topic->partitions[i]));
    free((void *)topic->partitions);
    sc_scratch_free(atomic_load(&topic->scratch));
    for (sc_layout *layout = atomic_load(&topic->layouts), *next; layout != NULL; layout = next) {
        next = layout->next;
        sc_layout_free(layout);
    }
    sc_state_close(&topic->state, forked);
    sc_journal_release(topic->journal);
    sc_runs_free(topic->runs);
    pthread_mutex_destroy(&topic->mutex);
    pthread_cond_destroy(&topic->left);
    free(topic);
}

/* ---- settings and schemas ---------------------------------------------------------------------------------- */

sc_topic_settings sc_topic_settings_read(sc_topic *topic)
{
    pthread_mutex_lock(&topic->mutex);
    sc_topic_settings settings = topic->settings;
    pthread_mutex_unlock(&topic->mutex);
    return settings;
}

int sc_topic_alter(sc_topic *topic, const sc_topic_settings *settings, bool publish, sc_error *error)
{
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    code = sc_state_grow(&topic->state, settings->partitions, error);
    if (code == SC_OK) {
        pthread_mutex_lock(&topic->mutex);
        topic->settings = *settings;
        pthread_mutex_unlock(&topic->mutex);
        if (publish && topic->writable)
            atomic_store(&sc_state_header_of(&topic->state)->generation, settings->generation);
    }
    sc_topic_leave(topic);
    return code;
}

uint32_t sc_topic_generation(sc_topic *topic)
{
    if (topic->state.data == NULL || !sc_state_is_live(&topic->state, 0))
        return topic->settings.generation;
    return atomic_load(&sc_state_header_of(&topic->state)->generation);
}

bool sc_topic_is_deleted(sc_topic *topic)
{
    return topic->state.data != NULL && sc_state_is_live(&topic->state, 0) &&
           atomic_load(&sc_state_header_of(&topic->state)->deleted) != 0;
}

int sc_topic_mark_deleted(sc_topic *topic, sc_error *error)
{
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    if (!topic->writable) {
        sc_topic_leave(topic);
        return sc_fail(error, SC_READ_ONLY, "the store was opened for reading");
    }
    atomic_store(&sc_state_header_of(&topic->state)->deleted, 1);
    sc_state_wake(&topic->state);
    sc_topic_leave(topic);
    return SC_OK;
}

int sc_topic_add_layout(sc_topic *topic, sc_layout *layout, sc_error *error)
{
    (void)error;
    pthread_mutex_lock(&topic->mutex);
    layout->next = atomic_load(&topic->layouts);
    atomic_store(&topic->layouts, layout);
    pthread_mutex_unlock(&topic->mutex);
    return SC_OK;
}

const sc_layout *sc_topic_layout(sc_topic *topic, uint32_t schema_version)
{
    const sc_layout *layout = atomic_load(&topic->layouts);
    while (layout != NULL && layout->schema_version != schema_version)
        layout = layout->next;
    return layout;
}

/* The name by which the journal of the store in `folder` knows the topic. */
static int name_topic(sc_topic *topic, const char *folder, sc_error *error)
{
    size_t root = strlen(folder);
    const char *name = topic->path + root + 8;
    if (strncmp(topic->path, folder, root) != 0 || strncmp(topic->path + root, "/topics/", 8) != 0 ||
        strchr(name, '/') != NULL || strlen(name) >= sizeof topic->name)
        return sc_fail(error, SC_INVALID, "the topic is none of the journal's store");
    snprintf(topic->name, sizeof topic->name, "%s", name);
    return SC_OK;
}

int sc_topic_read_journal(sc_topic *topic, const char *folder, sc_error *error)
{
    int code = name_topic(topic, folder, error);
    if (code != SC_OK || topic->writable)
        return code;
    return sc_journal_read_runs(folder, topic->name, &topic->runs, error);
}

int sc_topic_use_journal(sc_topic *topic, sc_journal *journal, sc_error *error)
{
    int code = name_topic(topic, journal->folder, error);
    if (code != SC_OK)
        return code;
    sc_journal_retain(journal);
    topic->journal = journal;
    return SC_OK;
}

/* ---- partitions -------------------------------------------------------------------------------------------- */

static sc_partition *new_partition(sc_topic *topic, uint32_t number)
{
    sc_partition *partition = calloc(1, sizeof *partition);
    if (partition == NULL)
        return NULL;
    partition->topic = topic;
    partition->number = number;
    partition->writer.fd = -1;
    pthread_mutex_init(&partition->append_mutex, NULL);
    pthread_mutex_init(&partition->list_mutex, NULL);
    pthread_mutex_init(&partition->sync_mutex, NULL);
    return partition;
}

int sc_topic_partition(sc_topic *topic, uint32_t number, sc_partition **out, sc_error *error)
{
    sc_partition *partition = number < SC_PARTITIONS_MAX ? atomic_load(&topic->partitions[number]) : NULL;
    int code = SC_OK;
    if (partition == NULL) {
        pthread_mutex_lock(&topic->mutex);
        if (number >= topic->settings.partitions)
            code = sc_fail(error, SC_INVALID, "partition %u: the topic has partitions 0 to %u", (unsigned)number,
                           (unsigned)topic->settings.partitions - 1);
        else if ((partition = atomic_load(&topic->partitions[number])) == NULL) {
            partition = new_partition(topic, number);
            if (partition == NULL)
                code = sc_fail_memory(error);
            atomic_store(&topic->partitions[number], partition);
        }
        pthread_mutex_unlock(&topic->mutex);
    }
    *out = partition;
    return code;
}

int sc_topic_flush(sc_topic *topic, sc_error *error)
{
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    uint32_t partitions = sc_topic_settings_read(topic).partitions;
    for (uint32_t i = 0; i < partitions; i++) {
        sc_partition *partition = atomic_load(&topic->partitions[i]);
        sc_error one;
        /* not only what is unflushed: a sync that somebody else has begun must have ended */
        if (partition == NULL || !atomic_load(&partition->touched) || sc_topic_is_deleted(topic))
            continue;
        int result = sc_partition_flush(topic, i, &one);
        if (result != SC_OK && code == SC_OK) {
            code = result;
            *error = one;
        }
    }
    sc_topic_leave(topic);
    return code;
}

bool sc_topic_found_unflushed(sc_topic *topic)
{
    return atomic_load_explicit(&topic->found_unflushed, memory_order_relaxed) &&
           atomic_exchange(&topic->found_unflushed, false);
}

int sc_topic_note_durable(sc_topic *topic, sc_error *error)
{
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    uint32_t partitions = sc_topic_settings_read(topic).partitions;
    for (uint32_t i = 0; i < partitions && code == SC_OK; i++) {
        sc_partition *partition = atomic_load(&topic->partitions[i]);
        if (partition != NULL && !atomic_load(&partition->unflushed) && atomic_exchange(&partition->unnoted, false) &&
            !sc_topic_is_deleted(topic))
            code = sc_partition_note_durable(partition, error);
    }
    sc_topic_leave(topic);
    return code;
}

void sc_topic_count(sc_topic *topic, sc_counters *counters)
{
    *counters = (sc_counters){
        .scanned_batches = atomic_load_explicit(&topic->scanned_batches, memory_order_relaxed),
        .scanned_rows = atomic_load_explicit(&topic->scanned_rows, memory_order_relaxed),
        .scanned_bytes = atomic_load_explicit(&topic->scanned_bytes, memory_order_relaxed),
        .verified_bytes = atomic_load_explicit(&topic->verified_bytes, memory_order_relaxed),
    };
    uint32_t partitions = sc_topic_settings_read(topic).partitions;
    for (uint32_t i = 0; i < partitions; i++) {
        const sc_partition *partition = atomic_load(&topic->partitions[i]);
        if (partition != NULL)
            sc_counts_add(&partition->counts, counters);
    }
}
