/*
 * Where a log begins. Deleting records raises the partition's start offset, in this order:
 *
 *   1. the new start is noted in the log: a batch without records, whose header has it, as every later header does
 *   2. the whole log is synced, that batch included: no power loss can cut it off again
 *   3. segments that lie wholly below are unlinked, oldest first, and the folder is synced
 *
 * A crash between 2 and 3 leaves files that nobody looks at; the next deletion removes them. Recovery takes the start
 * from the last header of the log that it keeps, or from the name of the first segment when that is higher.
 *
 * A log whose older records are elsewhere begins with a segment of a higher name. What was known there of producers is
 * its first batch, which the file has, durably, before it has that name.
 */
#include <errno.h>
#include <stdlib.h>

#include "control.h"
#include "error.h"
#include "os.h"
#include "topic.h"

/* Makes sure that the active segment can take the note, and that it holds no records when all of them go. */
static int prepare_active(sc_partition *partition, int64_t offset, sc_tail *tail, sc_error *error)
{
    bool has_records = tail->end_offset > tail->segment_base;
    if (tail->sealed || (has_records && offset == tail->end_offset))
        return sc_partition_roll_locked(partition, tail, error);
    return SC_OK;
}

static int raise_start(sc_partition *partition, int64_t offset, sc_tail *tail, bool *raised, sc_error *error)
{
    *raised = false;
    int code = sc_partition_locked_tail(partition, tail, error);
    if (code != SC_OK)
        return code;
    if (offset < 0 || offset > tail->end_offset) {
        sc_fail(error, SC_RANGE, "offset %lld: partition %u has %lld to %lld", (long long)offset,
                (unsigned)partition->number, (long long)tail->start_offset, (long long)tail->end_offset);
        error->offset = tail->start_offset;
        error->position = tail->end_offset;
        return SC_RANGE;
    }
    if (offset <= tail->start_offset)
        return SC_OK;
    code = prepare_active(partition, offset, tail, error);
    if (code != SC_OK)
        return code;
    int64_t before = tail->start_offset;
    tail->start_offset = offset;
    code = sc_partition_append_empty(partition, tail, error);
    if (code != SC_OK)
        tail->start_offset = before;
    *raised = code == SC_OK;
    return code;
}

/* Nothing that lies before the note may be lost with the power: the note would be cut with it. */
static int make_note_durable(sc_partition *partition, const sc_tail *tail, sc_error *error)
{
    atomic_store(&partition->touched, true);
    int code = sc_partition_wait_durable(partition, tail->end_offset, error);
    return code == SC_OK ? sc_partition_sync_active(partition, tail, error) : code;
}

static int remove_file(sc_segment *segment, sc_removal *removal, sc_error *error)
{
    sc_file_stat stat = {0};
    int fd = sc_os.open(segment->path, SC_OPEN_READ);
    if (fd >= 0) {
        (void)sc_os.stat(fd, &stat);
        sc_os.close(fd);
    }
    if (sc_os.unlink(segment->path) != 0)
        return errno == ENOENT ? SC_OK
                               : sc_fail_os(error, "cannot remove a segment whose records are deleted", segment->path);
    sc_index_remove(segment);
    removal->segments++;
    removal->bytes += stat.size;
    return SC_OK;
}

static int remove_below(sc_partition *partition, int64_t offset, sc_removal *removal, sc_error *error)
{
    sc_segment **segments;
    int64_t count;
    char folder[SC_PATH_MAX];
    int code = sc_partition_take_below(partition, offset, &segments, &count, error);
    for (int64_t i = 0; i < count; i++) {
        if (code == SC_OK)
            code = remove_file(segments[i], removal, error);
        sc_segment_release(segments[i]);
    }
    free((void *)segments);
    if (code == SC_OK && removal->segments > 0)
        code = sc_partition_folder(partition, folder, error);
    if (code == SC_OK && removal->segments > 0 && sc_os_sync_folder(folder) != 0)
        code = sc_fail_os(error, "cannot sync a partition's folder", folder);
    return code;
}

/* Leftovers of an earlier call are removed only when its note is durable for sure, so the note is synced again. */
static int has_leftovers(sc_partition *partition, const sc_tail *tail, bool *has, sc_error *error)
{
    sc_segment **segments;
    int64_t count;
    int code = sc_partition_take_below(partition, tail->start_offset, &segments, &count, error);
    *has = count > 0;
    for (int64_t i = 0; i < count; i++)
        sc_segment_release(segments[i]);
    free((void *)segments);
    return code;
}

static int lock_partition(sc_topic *topic, uint32_t number, sc_partition **partition, sc_error *error)
{
    if (!topic->writable)
        return sc_fail(error, SC_READ_ONLY, "the store was opened for reading");
    int code = sc_topic_partition(topic, number, partition, error);
    return code == SC_OK ? sc_partition_lock(*partition, error) : code;
}

static int delete_inside(sc_topic *topic, uint32_t number, int64_t offset, sc_removal *removal, sc_error *error)
{
    sc_partition *partition;
    sc_tail tail;
    bool needed = false;
    int code = lock_partition(topic, number, &partition, error);
    if (code != SC_OK)
        return code;
    code = raise_start(partition, offset, &tail, &needed, error);
    sc_partition_unlock(partition);
    if (code != SC_OK)
        return code;
    removal->start_offset = tail.start_offset;
    if (!needed)
        code = has_leftovers(partition, &tail, &needed, error);
    if (SC_CONTROL(unlinked_before_noted) && code == SC_OK && needed)
        code = remove_below(partition, tail.start_offset, removal, error);
    if (code == SC_OK && needed)
        code = make_note_durable(partition, &tail, error);
    return code == SC_OK && needed ? remove_below(partition, tail.start_offset, removal, error) : code;
}

int sc_partition_delete_before(sc_topic *topic, uint32_t number, int64_t offset, sc_removal *removal, sc_error *error)
{
    *removal = (sc_removal){.start_offset = -1};
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    code = delete_inside(topic, number, offset, removal, error);
    sc_topic_leave(topic);
    return code;
}

/* ---- beginning elsewhere ----------------------------------------------------------------------------------- */

static int begin_inside(sc_topic *topic, uint32_t number, int64_t offset, uint32_t schema_version,
                        const sc_producer_state *producers, sc_error *error)
{
    sc_partition *partition;
    sc_tail tail;
    int code = lock_partition(topic, number, &partition, error);
    if (code != SC_OK)
        return code;
    code = sc_partition_locked_tail(partition, &tail, error);
    if (code == SC_OK && (tail.segment_base >= 0 || tail.end_offset != 0 || offset < 0)) {
        code = sc_fail(error, SC_RANGE, "partition %u has offsets %lld to %lld: it cannot begin at %lld",
                       (unsigned)number, (long long)tail.start_offset, (long long)tail.end_offset, (long long)offset);
        error->offset = tail.start_offset;
        error->position = tail.end_offset;
    }
    if (code == SC_OK) {
        tail.start_offset = tail.end_offset = tail.durable_offset = tail.stable_offset = offset;
        tail.schema_version = schema_version;
        tail.sealed = 1; /* there is nothing to seal */
        code = sc_partition_begin_segment(partition, &tail, producers, error);
    }
    if (code == SC_OK)
        code = sc_partition_append_empty(partition, &tail, error);
    sc_partition_unlock(partition);
    return code == SC_OK ? make_note_durable(partition, &tail, error) : code;
}

/* What was encoded elsewhere, as the beginning of a log at `offset`. */
static int take_producers(sc_producer_state *state, const uint8_t *data, int64_t size, int64_t offset, sc_error *error)
{
    int64_t as_of;
    int code = sc_producer_state_decode(state, data, size, &as_of, error);
    if (code == SC_OK && as_of > offset)
        code = sc_fail(error, SC_RANGE, "what is known of producers is as of offset %lld: the log begins at %lld",
                       (long long)as_of, (long long)offset);
    sc_producer_state_settle(state, INT64_MAX); /* what was open there is decided elsewhere */
    state->offset = offset;
    return code;
}

int sc_partition_begin(sc_topic *topic, uint32_t number, int64_t offset, uint32_t schema_version,
                       const uint8_t *producers, int64_t producers_size, sc_error *error)
{
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    sc_producer_state *state = sc_producer_state_new();
    code = state == NULL         ? sc_fail_memory(error)
           : producers_size == 0 ? SC_OK
                                 : take_producers(state, producers, producers_size, offset, error);
    if (code == SC_OK)
        code = begin_inside(topic, number, offset, schema_version, state->count == 0 ? NULL : state, error);
    sc_producer_state_free(state);
    sc_topic_leave(topic);
    return code;
}

/* ---- rolling ----------------------------------------------------------------------------------------------- */

static int roll_inside(sc_topic *topic, uint32_t number, int64_t *base_offset, sc_error *error)
{
    sc_partition *partition;
    sc_tail tail;
    int code = lock_partition(topic, number, &partition, error);
    if (code != SC_OK)
        return code;
    code = sc_partition_locked_tail(partition, &tail, error);
    int64_t before = tail.segment_base;
    bool must = code == SC_OK && before >= 0 && (tail.sealed || tail.end_offset > before);
    if (must)
        code = sc_partition_roll_locked(partition, &tail, error);
    sc_partition_unlock(partition);
    *base_offset = tail.segment_base;
    if (code != SC_OK || !must)
        return code;
    atomic_store(&partition->touched, true);
    code = sc_partition_wait_durable(partition, tail.end_offset, error);
    if (code == SC_OK)
        code = sc_partition_sync_active(partition, &tail, error);
    return code == SC_OK ? sc_partition_sync_sealed(partition, &tail, before, error) : code;
}

int sc_partition_roll(sc_topic *topic, uint32_t number, int64_t *base_offset, sc_error *error)
{
    *base_offset = -1;
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    code = roll_inside(topic, number, base_offset, error);
    sc_topic_leave(topic);
    return code;
}
