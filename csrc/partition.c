#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"
#include "topic.h"

void sc_partition_free(sc_partition *partition)
{
    if (partition == NULL)
        return;
    sc_writer_close(&partition->writer);
    sc_producer_state_free(partition->producers);
    for (int64_t i = 0; i < partition->segment_count; i++)
        sc_segment_release(partition->segments[i]);
    free(partition->segments);
    pthread_mutex_destroy(&partition->append_mutex);
    pthread_mutex_destroy(&partition->list_mutex);
    pthread_mutex_destroy(&partition->sync_mutex);
    free(partition);
}

int sc_partition_folder(const sc_partition *partition, char *folder, sc_error *error)
{
    int length = snprintf(folder, SC_PATH_MAX, "%s/%u", partition->topic->path, (unsigned)partition->number);
    return length < SC_PATH_MAX ? SC_OK : sc_fail(error, SC_INVALID, "the path of the store is too long");
}

/* ---- locks and the tail ------------------------------------------------------------------------------------ */

int sc_partition_lock(sc_partition *partition, sc_error *error)
{
    pthread_mutex_lock(&partition->append_mutex);
    int code = sc_state_lock(&partition->topic->state, partition->number, error);
    if (code != SC_OK)
        pthread_mutex_unlock(&partition->append_mutex);
    return code;
}

void sc_partition_unlock(sc_partition *partition)
{
    sc_state_unlock(&partition->topic->state, partition->number);
    pthread_mutex_unlock(&partition->append_mutex);
}

static int recover_and_publish(sc_partition *partition, sc_slot *slot, sc_tail *tail, sc_error *error)
{
    int code = sc_partition_lock(partition, error);
    if (code != SC_OK)
        return code;
    if (!sc_slot_read(slot, tail)) { /* nobody else was faster */
        code = sc_partition_recover(partition, true, tail, error);
        if (code == SC_OK)
            sc_slot_publish(slot, tail);
    }
    sc_partition_unlock(partition);
    return code;
}

/* The tail that writers have published; false: there is none that can be believed. */
static bool published_tail(sc_partition *partition, sc_tail *tail)
{
    sc_state *state = &partition->topic->state;
    return sc_state_is_live(state, partition->number) && sc_slot_read(sc_state_slot(state, partition->number), tail);
}

/* The file number of a tail that a reader finds now: it tells how many segments had been replaced. */
static int64_t found_number(sc_partition *partition)
{
    sc_state *state = &partition->topic->state;
    if (!sc_state_has_slot(state, partition->number))
        return -1;
    return -1 - (int64_t)atomic_load(&sc_state_slot(state, partition->number)->rewrites);
}

int sc_partition_tail(sc_partition *partition, sc_tail *tail, sc_error *error)
{
    sc_state *state = &partition->topic->state;
    if (published_tail(partition, tail))
        return SC_OK;
    if (state->writable)
        return recover_and_publish(partition, sc_state_slot(state, partition->number), tail, error);
    sc_tail published;
    int64_t number = found_number(partition); /* before: what is replaced while we look makes the tail an old one */
    int code = sc_partition_recover(partition, false, tail, error);
    tail->file_number = number;
    if (!published_tail(partition, &published))
        return code;
    *tail =
        published; /* a writer came meanwhile: files may have grown, or been cut or replaced, while we looked at them */
    return SC_OK;
}

/* ---- the list of segments ---------------------------------------------------------------------------------- */

typedef struct name_list {
    int64_t *bases;
    int64_t count, capacity;
} name_list;

static int take_name(void *context, const char *name)
{
    name_list *list = context;
    int digits = 0;
    while (digits < 20 && isdigit((unsigned char)name[digits]))
        digits++;
    if (digits != 20 || strcmp(name + 20, ".arrows") != 0)
        return 0;
    errno = 0;
    long long base = strtoll(name, NULL, 10);
    if (errno != 0)
        return 0;
    if (list->count == list->capacity) {
        int64_t capacity = list->capacity == 0 ? 16 : list->capacity * 2;
        int64_t *grown = realloc(list->bases, (size_t)capacity * sizeof *grown);
        if (grown == NULL)
            return -1;
        list->bases = grown;
        list->capacity = capacity;
    }
    list->bases[list->count++] = base;
    return 0;
}

static int by_base(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static sc_segment *known_segment(sc_partition *partition, int64_t base_offset)
{
    int64_t low = 0, high = partition->segment_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (partition->segments[middle]->base_offset < base_offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < partition->segment_count && partition->segments[low]->base_offset == base_offset
               ? partition->segments[low]
               : NULL;
}

static int take_list(sc_partition *partition, const name_list *list, const char *folder, sc_error *error)
{
    sc_segment **segments = malloc((size_t)(list->count + 1) * sizeof *segments);
    if (segments == NULL)
        return sc_fail_memory(error);
    for (int64_t i = 0; i < list->count; i++) {
        sc_segment *segment = known_segment(partition, list->bases[i]);
        if (segment != NULL)
            sc_segment_retain(segment);
        else if ((segment = sc_segment_new(folder, list->bases[i])) == NULL) {
            while (i-- > 0)
                sc_segment_release(segments[i]);
            free(segments);
            return sc_fail_memory(error);
        } else {
            segment->runs = partition->topic->runs;
        }
        segments[i] = segment;
    }
    for (int64_t i = 0; i < partition->segment_count; i++)
        sc_segment_release(partition->segments[i]);
    free(partition->segments);
    partition->segments = segments;
    partition->segment_count = list->count;
    partition->listed = true;
    return SC_OK;
}

/* Where another process, or another part of this one, has replaced segments by others of their names. */
static void forget_rewritten(sc_partition *partition)
{
    sc_state *state = &partition->topic->state;
    if (!sc_state_has_slot(state, partition->number))
        return;
    uint32_t rewrites = atomic_load(&sc_state_slot(state, partition->number)->rewrites);
    if (rewrites == partition->rewrites)
        return;
    partition->rewrites = rewrites;
    for (int64_t i = 0; i < partition->segment_count; i++)
        sc_segment_release(partition->segments[i]);
    partition->segment_count = 0;
    partition->listed = false;
}

static int list_locked(sc_partition *partition, sc_error *error)
{
    char folder[SC_PATH_MAX];
    name_list list = {0};
    forget_rewritten(partition);
    int code = sc_partition_folder(partition, folder, error);
    if (code == SC_OK && sc_os.list(folder, take_name, &list) != 0 && errno != ENOENT)
        code = sc_fail_os(error, "cannot list a partition's segments", folder);
    if (code == SC_OK) {
        if (list.count > 0)
            qsort(list.bases, (size_t)list.count, sizeof *list.bases, by_base);
        code = take_list(partition, &list, folder, error);
    }
    free(list.bases);
    return code;
}

int sc_partition_list(sc_partition *partition, sc_error *error)
{
    pthread_mutex_lock(&partition->list_mutex);
    int code = list_locked(partition, error);
    pthread_mutex_unlock(&partition->list_mutex);
    return code;
}

int sc_partition_add_segment(sc_partition *partition, int64_t previous_base, int64_t base_offset, sc_error *error)
{
    char folder[SC_PATH_MAX];
    int code = sc_partition_folder(partition, folder, error);
    if (code != SC_OK)
        return code;
    pthread_mutex_lock(&partition->list_mutex);
    int64_t last = partition->segment_count > 0 ? partition->segments[partition->segment_count - 1]->base_offset : -1;
    if (!partition->listed || last != previous_base) { /* other processes have made segments that we do not know */
        code = list_locked(partition, error);
    } else if (known_segment(partition, base_offset) == NULL) {
        sc_segment **grown =
            realloc(partition->segments, (size_t)(partition->segment_count + 1) * sizeof *partition->segments);
        sc_segment *segment = grown == NULL ? NULL : sc_segment_new(folder, base_offset);
        if (grown != NULL)
            partition->segments = grown;
        if (segment == NULL)
            code = sc_fail_memory(error);
        else
            partition->segments[partition->segment_count++] = segment;
    }
    pthread_mutex_unlock(&partition->list_mutex);
    return code;
}

/* Takes an object whose file lost its name out of the list, unless another one is there already. */
static void forget_object(sc_partition *partition, const sc_segment *segment)
{
    pthread_mutex_lock(&partition->list_mutex);
    bool listed = known_segment(partition, segment->base_offset) == segment;
    pthread_mutex_unlock(&partition->list_mutex);
    if (listed)
        sc_partition_forget(partition, segment->base_offset);
}

static int map_up_to(sc_partition *partition, sc_segment *segment, int64_t size, sc_mapping **mapping, sc_error *error)
{
    if (segment->runs != NULL && sc_state_is_live(&partition->topic->state, partition->number)) {
        pthread_mutex_lock(&segment->mutex);
        segment->runs = NULL; /* a writer has replayed: the file has them, and goes on */
        pthread_mutex_unlock(&segment->mutex);
    }
    int code =
        sc_segment_map(segment, size, atomic_load(&partition->topic->layouts), partition->number, mapping, error);
    if (code == SC_STALE)
        forget_object(partition, segment);
    return code;
}

int sc_partition_map_found(sc_partition *partition, sc_segment *segment, bool active, sc_mapping **mapping,
                           sc_error *error)
{
    int64_t size = active ? sc_topic_settings_read(partition->topic).segment_bytes : 0;
    return map_up_to(partition, segment, size, mapping, error);
}

/* What a tail says of its active segment is true of one file. Only a sealed segment is replaced, and its successor is
 * published before: so while the log goes on in the same segment, what was mapped before is that file. When no writer
 * has the topic open, one may have come and gone: it has counted what it replaced. */
static bool is_still_active(sc_partition *partition, const sc_tail *tail)
{
    sc_state *state = &partition->topic->state;
    sc_tail now;
    if (published_tail(partition, &now))
        return now.segment_base == tail->segment_base;
    return state->writable || !sc_state_has_slot(state, partition->number) ||
           tail->file_number == found_number(partition);
}

int sc_partition_map(sc_partition *partition, sc_segment *segment, const sc_tail *tail, sc_mapping **mapping,
                     sc_error *error)
{
    if (segment->base_offset != tail->segment_base)
        return map_up_to(partition, segment, 0, mapping, error);
    int64_t size = sc_topic_settings_read(partition->topic).segment_bytes;
    int code = map_up_to(partition, segment, size > tail->allocated ? size : tail->allocated, mapping, error);
    if (code != SC_OK || is_still_active(partition, tail))
        return code;
    sc_mapping_release(*mapping);
    *mapping = NULL;
    return sc_fail_at(error, SC_STALE, segment->path, segment->base_offset, -1,
                      "the segment is not the active one any more");
}

int sc_partition_open(sc_partition *partition, sc_tail *tail, int64_t offset, sc_segment **segment, int64_t *next_base,
                      sc_mapping **mapping, sc_error *error)
{
    *mapping = NULL;
    for (;;) {
        int code = sc_partition_find(partition, tail, offset, segment, next_base, error);
        if (code != SC_OK || *segment == NULL)
            return code;
        code = sc_partition_map(partition, *segment, tail, mapping, error);
        if (code != SC_STALE)
            return code;
        sc_segment_release(*segment);
        *segment = NULL;
        code = sc_partition_tail(partition, tail, error);
        if (code != SC_OK)
            return code;
    }
}

void sc_partition_forget(sc_partition *partition, int64_t base_offset)
{
    pthread_mutex_lock(&partition->list_mutex);
    int64_t kept = 0;
    for (int64_t i = 0; i < partition->segment_count; i++) {
        if (partition->segments[i]->base_offset == base_offset)
            sc_segment_release(partition->segments[i]);
        else
            partition->segments[kept++] = partition->segments[i];
    }
    partition->segment_count = kept;
    partition->listed = false;
    pthread_mutex_unlock(&partition->list_mutex);
}

void sc_partition_drop_after(sc_partition *partition, int64_t count)
{
    pthread_mutex_lock(&partition->list_mutex);
    while (partition->segment_count > count)
        sc_segment_release(partition->segments[--partition->segment_count]);
    pthread_mutex_unlock(&partition->list_mutex);
}

/* The segments that lie wholly below an offset; never the last one. */
static int64_t count_below(const sc_partition *partition, int64_t offset)
{
    int64_t low = 0, high = partition->segment_count == 0 ? 0 : partition->segment_count - 1;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (partition->segments[middle + 1]->base_offset <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void close_gap(sc_partition *partition, int64_t count)
{
    partition->segment_count -= count;
    memmove(partition->segments, partition->segments + count,
            (size_t)partition->segment_count * sizeof *partition->segments);
}

/* Whoever removed them, no new scan needs them, and their mappings would keep disk space. */
static void drop_below(sc_partition *partition, int64_t offset)
{
    int64_t count = count_below(partition, offset);
    for (int64_t i = 0; i < count; i++)
        sc_segment_release(partition->segments[i]);
    if (count > 0)
        close_gap(partition, count);
}

int sc_partition_take_below(sc_partition *partition, int64_t offset, sc_segment ***out, int64_t *out_count,
                            sc_error *error)
{
    *out = NULL;
    *out_count = 0;
    pthread_mutex_lock(&partition->list_mutex);
    int code = list_locked(partition, error);
    int64_t count = code == SC_OK ? count_below(partition, offset) : 0;
    if (count > 0 && (*out = malloc((size_t)count * sizeof **out)) == NULL)
        code = sc_fail_memory(error);
    if (code == SC_OK && count > 0) {
        memcpy(*out, partition->segments, (size_t)count * sizeof **out);
        *out_count = count;
        close_gap(partition, count);
    }
    pthread_mutex_unlock(&partition->list_mutex);
    return code;
}

bool sc_partition_is_deleted_below(sc_partition *partition, int64_t end_offset)
{
    sc_tail tail;
    sc_error unused;
    return sc_partition_tail(partition, &tail, &unused) == SC_OK && tail.start_offset >= end_offset;
}

static bool list_is_current(const sc_partition *partition, const sc_tail *tail)
{
    if (!partition->listed)
        return false;
    if (tail->segment_base < 0)
        return true;
    return partition->segment_count > 0 &&
           partition->segments[partition->segment_count - 1]->base_offset >= tail->segment_base;
}

int sc_partition_find(sc_partition *partition, const sc_tail *tail, int64_t offset, sc_segment **out,
                      int64_t *next_base, sc_error *error)
{
    int code = SC_OK;
    *out = NULL;
    *next_base = -1;
    pthread_mutex_lock(&partition->list_mutex);
    forget_rewritten(partition);
    if (!list_is_current(partition, tail))
        code = list_locked(partition, error);
    drop_below(partition, tail->start_offset);
    int64_t low = 0, high = partition->segment_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (partition->segments[middle]->base_offset <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (code == SC_OK && low > 0) {
        *out = partition->segments[low - 1];
        sc_segment_retain(*out);
        if (low < partition->segment_count && (*out)->base_offset != tail->segment_base)
            *next_base = partition->segments[low]->base_offset;
    }
    pthread_mutex_unlock(&partition->list_mutex);
    return code;
}

/* ---- looking ----------------------------------------------------------------------------------------------- */

/* Under the lock, because a segment may be replaced meanwhile: the summary of one must not become that of the other. */
static void mend_index(sc_partition *partition, sc_segment *segment, const sc_summary *summary)
{
    sc_error unused;
    pthread_mutex_lock(&segment->mutex);
    bool known = segment->has_summary && segment->summary.end_offset == summary->end_offset;
    pthread_mutex_unlock(&segment->mutex);
    if (known || sc_partition_lock(partition, &unused) != SC_OK)
        return;
    if (sc_segment_is_current(segment))
        sc_index_seal(segment, summary);
    sc_partition_unlock(partition);
}

int sc_partition_summarize(sc_partition *partition, sc_segment *segment, int64_t size, int64_t end_offset, bool mend,
                           sc_summary *summary, sc_error *error)
{
    int code = sc_segment_summarize(segment, size, atomic_load(&partition->topic->layouts), partition->number,
                                    end_offset, false, summary, error);
    if (code == SC_STALE)
        forget_object(partition, segment);
    if (code == SC_OK && mend)
        mend_index(partition, segment, summary);
    return code;
}

static int segment_info(sc_partition *partition, const sc_tail *tail, sc_segment *segment, int64_t next_base,
                        sc_segment_info *info, sc_error *error)
{
    sc_summary summary;
    bool active = next_base < 0;
    sc_topic *topic = partition->topic;
    if (active) { /* else its end is known from its file */
        sc_mapping *mapping;
        int code = sc_partition_map(partition, segment, tail, &mapping, error);
        if (code != SC_OK)
            return code;
        sc_mapping_release(mapping);
    }
    int code =
        sc_partition_summarize(partition, segment, active ? tail->end_position : 0,
                               active ? tail->end_offset : next_base, topic->writable && !active, &summary, error);
    if (code != SC_OK)
        return code;
    *info = (sc_segment_info){
        .base_offset = segment->base_offset,
        .end_offset = summary.end_offset,
        .size_bytes = summary.size,
        .count = summary.count,
        .min_timestamp = summary.min_timestamp,
        .max_timestamp = summary.max_timestamp,
        .sealed = !active || tail->sealed,
    };
    snprintf(info->path, sizeof info->path, "%s", segment->path);
    return SC_OK;
}

/* SC_STALE: the segment was replaced meanwhile. */
static int look_at_segment(sc_partition *partition, int64_t n, sc_segment_info *info, sc_error *error)
{
    sc_tail tail;
    sc_segment *segment;
    int64_t next_base;
    int code = sc_partition_tail(partition, &tail, error);
    if (code == SC_OK)
        code = sc_partition_find(partition, &tail, INT64_MAX, &segment, &next_base, error);
    if (code != SC_OK)
        return code;
    sc_segment_release(segment);
    pthread_mutex_lock(&partition->list_mutex);
    bool found = n >= 0 && n < partition->segment_count;
    int64_t base = found ? partition->segments[n]->base_offset : 0;
    pthread_mutex_unlock(&partition->list_mutex);
    if (!found || base > tail.segment_base)
        return SC_END;
    code = sc_partition_find(partition, &tail, base, &segment, &next_base, error);
    if (code != SC_OK || segment == NULL)
        return code != SC_OK ? code : SC_END;
    code = segment_info(partition, &tail, segment, next_base, info, error);
    sc_segment_release(segment);
    return code;
}

static int segment_inside(sc_partition *partition, int64_t n, sc_segment_info *info, sc_error *error)
{
    int code;
    do
        code = look_at_segment(partition, n, info, error);
    while (code == SC_STALE);
    return code;
}

int sc_partition_segment(sc_topic *topic, uint32_t number, int64_t n, sc_segment_info *info, sc_error *error)
{
    sc_partition *partition;
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    code = sc_topic_partition(topic, number, &partition, error);
    if (code == SC_OK)
        code = segment_inside(partition, n, info, error);
    sc_topic_leave(topic);
    return code;
}

/* The bytes of sealed segments are their files' sizes; of the active one, what is written. */
static int measure(sc_partition *partition, const sc_tail *tail, sc_partition_info *info, sc_error *error)
{
    info->size_bytes = tail->segment_base < 0 ? 0 : tail->end_position;
    info->segment_count = tail->segment_base >= 0;
    for (int64_t offset = tail->start_offset; offset < tail->segment_base;) {
        sc_segment *segment;
        int64_t next_base;
        sc_file_stat stat = {0};
        int code = sc_partition_find(partition, tail, offset, &segment, &next_base, error);
        if (code != SC_OK || segment == NULL)
            return code;
        int fd = sc_os.open(segment->path, SC_OPEN_READ);
        if (fd < 0 ? errno != ENOENT : sc_os.stat(fd, &stat) != 0)
            code = sc_fail_os(error, "cannot look at a segment", segment->path);
        if (fd >= 0)
            sc_os.close(fd);
        sc_segment_release(segment);
        if (code != SC_OK)
            return code;
        info->size_bytes += stat.size;
        info->segment_count++;
        offset = next_base < 0 ? tail->segment_base : next_base;
    }
    return SC_OK;
}

int sc_partition_rewrites(sc_topic *topic, uint32_t number, uint32_t *rewrites, sc_error *error)
{
    sc_partition *partition;
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    code = sc_topic_partition(topic, number, &partition, error);
    if (code == SC_OK) {
        sc_state *state = &topic->state;
        *rewrites = sc_state_has_slot(state, number) ? atomic_load(&sc_state_slot(state, number)->rewrites) : 0;
    }
    sc_topic_leave(topic);
    return code;
}

/* What a writer had stored whole when it died counts: who takes the lock next finds it. So does who asks where the log
 * ends, or would be told of an end that moves later, although nobody is there any more who appends. Waits for nobody.
 */
static void settle_what_the_dead_left(sc_partition *partition)
{
    sc_state *state = &partition->topic->state;
    sc_tail tail;
    sc_error unused;
    if (!state->writable || !published_tail(partition, &tail) || SC_CONTROL(unfinished_append_not_told) ||
        atomic_load(&sc_state_slot(state, partition->number)->dirty) == 0)
        return;
    if (pthread_mutex_trylock(&partition->append_mutex) != 0)
        return;
    if (sc_state_try_lock(state, partition->number)) {
        (void)sc_partition_locked_tail(partition, &tail, &unused); /* what fails here is told to who appends next */
        sc_state_unlock(state, partition->number);
    }
    pthread_mutex_unlock(&partition->append_mutex);
}

int sc_partition_describe(sc_topic *topic, uint32_t number, bool with_size, sc_partition_info *info, sc_error *error)
{
    sc_partition *partition;
    sc_tail tail;
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    code = sc_topic_partition(topic, number, &partition, error);
    if (code == SC_OK) {
        settle_what_the_dead_left(partition);
        code = sc_partition_tail(partition, &tail, error);
    }
    if (code == SC_OK) {
        bool deleted = tail.stable_offset < tail.start_offset; /* records of an open transaction were */
        *info = (sc_partition_info){
            .start_offset = tail.start_offset,
            .end_offset = tail.end_offset,
            .durable_offset = tail.durable_offset,
            .size_bytes = -1,
            .segment_count = -1,
            .stable_offset = deleted ? tail.start_offset : tail.stable_offset,
        };
        if (with_size)
            code = measure(partition, &tail, info, error);
    }
    sc_topic_leave(topic);
    return code;
}
