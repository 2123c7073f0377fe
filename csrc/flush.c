/*
 * Making the log durable, a partition by itself; commit.c lets many partitions share a sync. One sync at a time per
 * partition and process: who comes first leads, the others wait in a list (group commit). The end of the log is read
 * before a sync begins, so a sync covers what had been stored by then, whoever stored it. The leader whose sync is over
 * hands the lead to a waiter that came too late for it: the next sync begins at once, with all that was appended
 * meanwhile. Then it wakes those that are covered, each by a word of its own: woken together they would only queue at
 * one lock again. A sync that fails covers nobody and poisons the partition for every process: each waiter gets the
 * lead in turn, and finds that out.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"
#include "topic.h"

static int64_t page_ceiling(int64_t size)
{
    return (size + SC_PAGE - 1) / SC_PAGE * SC_PAGE;
}

int sc_partition_poison(sc_partition *partition, const char *what, const char *path, sc_error *error)
{
    int number = errno;
    if (!SC_CONTROL(failed_sync_retried))
        atomic_store(&sc_state_slot(&partition->topic->state, partition->number)->poisoned, number == 0 ? EIO : number);
    errno = number;
    return sc_fail_os(error, what, path);
}

int sc_partition_sync_folder(sc_partition *partition, const char *what, const char *path, sc_error *error)
{
    int fd = sc_os.open(path, SC_OPEN_READ);
    if (fd < 0)
        return sc_fail_os(error, what, path);
    int code = sc_os.sync(fd) == 0 ? SC_OK : sc_partition_poison(partition, what, path, error);
    sc_os.close(fd);
    return code;
}

/* The names of new segments, and of a new partition's folder, must last as long as what is in them. */
static int sync_names(sc_partition *partition, bool new_partition, sc_error *error)
{
    char folder[SC_PATH_MAX];
    int code = sc_partition_folder(partition, folder, error);
    if (code != SC_OK || SC_CONTROL(folder_not_synced))
        return code;
    code = sc_partition_sync_folder(partition, "cannot sync a partition's folder", folder, error);
    if (code == SC_OK && new_partition && !SC_CONTROL(topic_folder_not_synced))
        code = sc_partition_sync_folder(partition, "cannot sync a topic's folder", partition->topic->path, error);
    return code;
}

/* Covers what anybody stored, through whichever mapping or descriptor. A descriptor that is opened now is also told of
 * an earlier failure of writeback that nobody has been told of. */
static int sync_bytes(sc_partition *partition, const sc_segment *segment, sc_error *error)
{
    int fd = sc_os.open(segment->path, SC_OPEN_WRITE);
    if (fd < 0)
        return sc_fail_os(error, "cannot open a segment to sync it", segment->path);
    int64_t began = sc_os.monotonic_ns();
    int code = sc_os.sync_data(fd) == 0 ? SC_OK
                                        : sc_partition_poison(partition, "cannot sync a segment", segment->path, error);
    sc_counts_sync(&partition->counts, sc_os.monotonic_ns() - began);
    sc_os.close(fd);
    return code;
}

/* The same of records up to `end_offset`, unless they were deleted meanwhile, and the file with them: then *there is
 * false. */
static int sync_records(sc_partition *partition, const sc_segment *segment, int64_t end_offset, bool *there,
                        sc_error *error)
{
    int code = sync_bytes(partition, segment, error);
    *there = code != SC_OS || error->number != ENOENT || !sc_partition_is_deleted_below(partition, end_offset);
    return *there ? code : SC_OK;
}

/* Where the end marker of a sealed segment must be: behind its last batch of any kind; -1: it cannot be read. */
static int64_t find_marker(sc_mapping *mapping, int64_t position)
{
    int64_t nothing = 0;
    sc_look look = sc_segment_look(mapping, position, mapping->size, false, &nothing);
    while (look.state == SC_BATCH_GOOD && look.header.record_count == 0) {
        position += look.header.total_size;
        look = sc_segment_look(mapping, position, mapping->size, false, &nothing);
    }
    return look.state == SC_BATCH_MARKER ? position : -1;
}

/* Has the aborted transactions of a sealed segment noted beside it, while its headers are in the cache. */
static void note_aborted(sc_segment *segment, sc_mapping *mapping)
{
    sc_error unused;
    bool decided, aborted;
    (void)sc_segment_is_aborted(segment, mapping, mapping->size, true, true, SC_NO_PRODUCER, 0, &decided, &aborted,
                                &unused);
}

static void finish_mapped(sc_partition *partition, sc_segment *segment, sc_mapping *mapping, int64_t end_offset)
{
    sc_summary summary;
    sc_error unused;
    sc_file_stat stat;
    if (sc_partition_summarize(partition, segment, 0, end_offset, true, &summary, &unused) != SC_OK)
        return;
    if (summary.transactional)
        note_aborted(segment, mapping);
    int64_t marker = find_marker(mapping, summary.size);
    int fd = marker < 0 ? -1 : sc_os.open(segment->path, SC_OPEN_WRITE);
    if (fd < 0)
        return;
    int64_t size = page_ceiling(marker + SC_OPENING_SIZE);
    if (SC_CONTROL(sealed_file_cut_too_far))
        size -= SC_PAGE;
    if (sc_os.stat(fd, &stat) == 0 && stat.size > size && sc_segment_is_of(segment, &stat))
        (void)sc_os.truncate(fd, size);
    sc_os.close(fd);
}

/* A sealed segment is synced now: its index becomes final and its preallocated tail goes. Neither is needed for
 * anything but time and space, so failures are passed over. */
static void finish_sealed(sc_partition *partition, const sc_tail *tail, int64_t base_offset, int64_t end_offset)
{
    sc_tail now = *tail;
    sc_segment *segment;
    sc_mapping *mapping;
    sc_error unused;
    int64_t next_base;
    int code = sc_partition_open(partition, &now, base_offset, &segment, &next_base, &mapping, &unused);
    if (code == SC_OK && segment != NULL && segment->base_offset == base_offset && next_base == end_offset)
        finish_mapped(partition, segment, mapping, end_offset);
    sc_mapping_release(mapping);
    sc_segment_release(segment);
}

/* Keeps the index entries of the active segment, unless it was sealed meanwhile: then the file may be another one. */
static void save_index(sc_partition *partition, sc_segment *segment, const sc_tail *tail)
{
    sc_tail now;
    sc_error unused;
    if (sc_partition_tail(partition, &now, &unused) == SC_OK && now.segment_base == segment->base_offset)
        sc_index_save(segment, tail->end_position);
}

/* There is no segment for an offset. Had its records been deleted since the caller's tail was read, its file was
 * removed after a sync of all that lay before the note: moves to the records that are left. */
static int pass_deleted(sc_partition *partition, int64_t *offset, sc_error *error)
{
    sc_tail now;
    int code = sc_partition_tail(partition, &now, error);
    if (code == SC_OK && now.start_offset <= *offset)
        return sc_fail(error, SC_CORRUPT, "partition %u has no segment for offset %lld", (unsigned)partition->number,
                       (long long)*offset);
    *offset = now.start_offset;
    return code;
}

/* Begins with the last durable record: when its segment was sealed since, the marker is not synced nor the tail cut. */
static int sync_segments(sc_partition *partition, const sc_tail *tail, sc_error *error)
{
    int64_t offset = tail->durable_offset > tail->start_offset ? tail->durable_offset - 1 : tail->start_offset;
    bool new_names = false;
    while (offset < tail->end_offset) {
        sc_segment *segment;
        int64_t next_base;
        int code = sc_partition_find(partition, tail, offset, &segment, &next_base, error);
        if (code == SC_OK && segment == NULL)
            code = pass_deleted(partition, &offset, error);
        if (code != SC_OK)
            return code;
        if (segment == NULL)
            continue;
        bool active = next_base < 0, there;
        int64_t end_offset = active ? tail->end_offset : next_base;
        if (SC_CONTROL(sealed_segment_not_synced) && !active)
            there = true;
        else
            code = sync_records(partition, segment, end_offset, &there, error);
        new_names = new_names || (there && tail->durable_offset <= segment->base_offset);
        if (code == SC_OK && there && active)
            save_index(partition, segment, tail);
        else if (code == SC_OK && there)
            finish_sealed(partition, tail, segment->base_offset, next_base);
        sc_segment_release(segment);
        if (code != SC_OK)
            return code;
        offset = end_offset;
    }
    return new_names ? sync_names(partition, tail->durable_offset <= tail->start_offset, error) : SC_OK;
}

int sc_partition_sync_active(sc_partition *partition, const sc_tail *tail, sc_error *error)
{
    sc_segment *segment;
    int64_t next_base;
    bool there;
    int code = sc_partition_find(partition, tail, tail->segment_base, &segment, &next_base, error);
    if (code == SC_OK && segment != NULL)
        code = sync_records(partition, segment, tail->end_offset, &there, error);
    sc_segment_release(segment);
    return code == SC_OK ? sync_names(partition, true, error) : code;
}

int sc_partition_sync_sealed(sc_partition *partition, const sc_tail *tail, int64_t base_offset, sc_error *error)
{
    sc_segment *segment;
    int64_t next_base;
    bool there = false;
    int code = sc_partition_find(partition, tail, base_offset, &segment, &next_base, error);
    if (code != SC_OK || segment == NULL)
        return code;
    if (next_base >= 0)
        code = sync_records(partition, segment, next_base, &there, error);
    if (code == SC_OK && there)
        finish_sealed(partition, tail, base_offset, next_base);
    sc_segment_release(segment);
    return code;
}

static int publish_durable(sc_partition *partition, int64_t durable_offset, sc_error *error)
{
    sc_slot *slot = sc_state_slot(&partition->topic->state, partition->number);
    sc_tail tail;
    int code = sc_partition_lock(partition, error);
    if (code != SC_OK)
        return code;
    /* the kernel may have told another process of a failure, and only that one */
    if ((atomic_load(&slot->poisoned) == 0 || SC_CONTROL(durable_though_poisoned)) && sc_slot_read(slot, &tail) &&
        tail.durable_offset < durable_offset) {
        tail.durable_offset = durable_offset;
        sc_slot_publish(slot, &tail);
        sc_partition_save_producers(partition, &tail, false);
    }
    partition->writer.window = 0;
    partition->writer.journaled = false;
    sc_partition_unlock(partition);
    return SC_OK;
}

/* The end of the active segment up to which it is synced: what comes later may go into the journal. */
static void note_safe_end(sc_partition *partition, const sc_tail *tail)
{
    if (tail->segment_base < 0 || tail->sealed)
        return;
    pthread_mutex_lock(&partition->sync_mutex);
    if (partition->safe.segment_base != tail->segment_base || partition->safe.file_number != tail->file_number ||
        partition->safe.position < tail->end_position)
        partition->safe = (sc_safe_end){.segment_base = tail->segment_base,
                                        .file_number = tail->file_number,
                                        .position = tail->end_position,
                                        .offset = tail->end_offset};
    pthread_mutex_unlock(&partition->sync_mutex);
}

int sc_partition_sync(sc_partition *partition, sc_error *error)
{
    sc_tail tail;
    sc_slot *slot = sc_state_slot(&partition->topic->state, partition->number);
    int poisoned = atomic_load(&slot->poisoned);
    if (poisoned != 0) {
        errno = poisoned;
        sc_fail_os(error, "an earlier sync of this partition failed", partition->topic->state.path);
        return error->code = SC_POISONED;
    }
    atomic_store(&partition->unflushed, false);
    int code = sc_partition_tail(partition, &tail, error);
    if (code == SC_OK && tail.durable_offset < tail.end_offset) {
        code = sync_segments(partition, &tail, error);
        if (SC_CONTROL(durable_beyond_sync))
            (void)sc_partition_tail(partition, &tail, error);
        if (code == SC_OK)
            code = publish_durable(partition, tail.end_offset, error);
        if (code == SC_OK)
            note_safe_end(partition, &tail);
    }
    if (code != SC_OK)
        atomic_store(&partition->unflushed, true);
    return code;
}

/* ---- group commit ------------------------------------------------------------------------------------------ */

enum { TOLD_NOTHING, TOLD_COVERED, TOLD_TO_LEAD };

/* True: the caller leads now, and must hand the lead on. False: a sync has covered `offset`. */
static bool wait_for_lead(sc_partition *partition, int64_t offset)
{
    sc_sync_waiter self = {.offset = offset};
    pthread_mutex_lock(&partition->sync_mutex);
    bool leads = !partition->syncing;
    partition->syncing = true;
    if (!leads) {
        self.next = partition->sync_waiters;
        partition->sync_waiters = &self;
    }
    pthread_mutex_unlock(&partition->sync_mutex);
    if (leads)
        return true;
    uint32_t told;
    while ((told = atomic_load_explicit(&self.told, memory_order_acquire)) == TOLD_NOTHING)
        sc_os.wait((uint32_t *)&self.told, TOLD_NOTHING, -1);
    return told == TOLD_TO_LEAD;
}

static void tell(sc_sync_waiter *waiter, uint32_t what)
{
    uint32_t *word = (uint32_t *)&waiter->told;
    atomic_store_explicit(&waiter->told, what, memory_order_release);
    sc_os.wake(word); /* the waiter may be gone by now, and then nobody sleeps there */
}

/* Takes the waiters that are covered out of the list; oldest first. */
static sc_sync_waiter *take_covered(sc_partition *partition, int64_t durable_offset)
{
    sc_sync_waiter *covered = NULL, *waiter;
    for (sc_sync_waiter **link = &partition->sync_waiters; (waiter = *link) != NULL;) {
        if (waiter->offset > durable_offset && !SC_CONTROL(waiters_covered_too_early)) {
            link = &waiter->next;
            continue;
        }
        *link = waiter->next;
        waiter->next = covered;
        covered = waiter;
    }
    return covered;
}

/* The newest of those that still wait leads next: it is the likeliest not to sleep yet. */
static void hand_lead_on(sc_partition *partition, int64_t durable_offset)
{
    pthread_mutex_lock(&partition->sync_mutex);
    sc_sync_waiter *covered = take_covered(partition, durable_offset), *leader = partition->sync_waiters, *next;
    if (leader != NULL)
        partition->sync_waiters = leader->next;
    partition->syncing = leader != NULL;
    pthread_mutex_unlock(&partition->sync_mutex);
    if (leader != NULL && !SC_CONTROL(group_commit_forgets_waiter))
        tell(leader, TOLD_TO_LEAD);
    for (; covered != NULL; covered = next) {
        next = covered->next;
        tell(covered, TOLD_COVERED);
    }
}

/* *durable_offset: how far the log was durable when the caller last looked. */
static int sync_until(sc_partition *partition, int64_t offset, sc_journal *journal, int64_t *durable_offset,
                      sc_error *error)
{
    for (;;) {
        sc_tail tail;
        int code = sc_partition_tail(partition, &tail, error);
        if (code != SC_OK)
            return code;
        *durable_offset = tail.durable_offset;
        if (tail.durable_offset >= offset)
            return SC_OK;
        code = journal == NULL ? sc_partition_sync(partition, error)
                               : sc_journal_sync_partitions(journal, &partition, 1, error);
        if (code != SC_OK)
            return code;
    }
}

/* `journal`: NULL when nobody waits, and the segment is to be synced by itself. */
static int wait_durable(sc_partition *partition, int64_t offset, sc_journal *journal, sc_error *error)
{
    sc_tail tail;
    int code = sc_partition_tail(partition, &tail, error);
    if (code != SC_OK || tail.durable_offset >= offset || !wait_for_lead(partition, offset))
        return code;
    int64_t durable_offset = tail.durable_offset;
    code = sync_until(partition, offset, journal, &durable_offset, error);
    hand_lead_on(partition, durable_offset);
    return code;
}

int sc_partition_wait_durable(sc_partition *partition, int64_t offset, sc_error *error)
{
    return wait_durable(partition, offset, partition->topic->journal, error);
}

static int flush_inside(sc_topic *topic, uint32_t number, sc_error *error)
{
    sc_partition *partition;
    sc_tail tail;
    if (!topic->writable)
        return sc_fail(error, SC_READ_ONLY, "the store was opened for reading");
    int code = sc_topic_partition(topic, number, &partition, error);
    if (code == SC_OK)
        code = sc_partition_tail(partition, &tail, error);
    return code == SC_OK ? wait_durable(partition, tail.end_offset, NULL, error) : code;
}

int sc_partition_flush(sc_topic *topic, uint32_t number, sc_error *error)
{
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    code = flush_inside(topic, number, error);
    sc_topic_leave(topic);
    return code;
}

/* ---- many at once ------------------------------------------------------------------------------------------ */

/* The partitions whose logs are not durable up to the wanted offsets. */
static int find_undurable(const sc_durable_target *targets, int64_t count, sc_partition **partitions, int64_t *found,
                          sc_error *error)
{
    *found = 0;
    for (int64_t i = 0; i < count; i++) {
        sc_tail tail;
        if (!targets[i].topic->writable)
            return sc_fail(error, SC_READ_ONLY, "the store was opened for reading");
        int code = sc_topic_partition(targets[i].topic, targets[i].partition, &partitions[*found], error);
        if (code == SC_OK)
            code = sc_partition_tail(partitions[*found], &tail, error);
        if (code != SC_OK)
            return code;
        if (targets[i].offset > tail.end_offset) {
            code = sc_fail(error, SC_RANGE, "offset %lld: partition %u ends at %lld", (long long)targets[i].offset,
                           (unsigned)targets[i].partition, (long long)tail.end_offset);
            error->offset = tail.start_offset;
            error->position = tail.end_offset;
            return code;
        }
        *found += tail.durable_offset < targets[i].offset;
    }
    return SC_OK;
}

static int wait_inside(const sc_durable_target *targets, int64_t count, sc_error *error)
{
    sc_partition **partitions = malloc((size_t)count * sizeof(sc_partition *));
    if (partitions == NULL)
        return sc_fail_memory(error);
    int64_t found;
    sc_journal *journal = targets[0].topic->journal;
    for (int64_t i = 0; i < count; i++)
        journal = targets[i].topic->journal == journal ? journal : NULL;
    int code = find_undurable(targets, count, partitions, &found, error);
    if (code == SC_OK && found > 1 && journal != NULL)
        code = sc_journal_sync_partitions(journal, partitions, found, error);
    for (int64_t i = 0; code == SC_OK && i < count; i++) {
        code = sc_topic_partition(targets[i].topic, targets[i].partition, &partitions[0], error);
        if (code == SC_OK)
            code = sc_partition_wait_durable(partitions[0], targets[i].offset, error);
    }
    free((void *)partitions);
    return code;
}

int sc_wait_durable(const sc_durable_target *targets, int64_t count, sc_error *error)
{
    int64_t entered = 0;
    int code = SC_OK;
    while (entered < count && (code = sc_topic_enter(targets[entered].topic, error)) == SC_OK)
        entered++;
    if (code == SC_OK && count > 0)
        code = wait_inside(targets, count, error);
    while (entered > 0)
        sc_topic_leave(targets[--entered].topic);
    return code;
}

/* ---- closing, and notes that the log is durable ------------------------------------------------------------ */

/* Cuts the active segment behind its end. Room for a batch without records stays: the next append may need it, and
 * until then readers of any kind see the end of the stream there. The new size is published before the cut: who is
 * killed in between leaves a file that is longer than it must be, never one that others store behind the end of. */
static int cut_tail(sc_partition *partition, sc_slot *slot, sc_tail *tail, sc_error *error)
{
    int64_t size = page_ceiling(tail->end_position + sc_partition_reserve(partition, tail)), next_base;
    sc_segment *segment;
    int code = sc_partition_find(partition, tail, tail->segment_base, &segment, &next_base, error);
    if (code != SC_OK || segment == NULL || size >= tail->allocated) {
        sc_segment_release(segment);
        return code;
    }
    if (SC_CONTROL(closed_file_cut_too_far))
        size = tail->end_position / SC_PAGE * SC_PAGE;
    tail->allocated = size;
    sc_slot_publish(slot, tail);
    int fd = sc_os.open(segment->path, SC_OPEN_WRITE);
    if (fd < 0 || sc_os.truncate(fd, size) != 0)
        code = sc_fail_os(error, "cannot give back the preallocated end of a segment", segment->path);
    if (fd >= 0)
        sc_os.close(fd);
    sc_segment_release(segment);
    return code;
}

int sc_partition_trim(sc_partition *partition, sc_error *error)
{
    sc_slot *slot = sc_state_slot(&partition->topic->state, partition->number);
    sc_tail tail;
    int code = sc_partition_tail(partition, &tail, error);
    if (code == SC_OK)
        code = wait_durable(partition, tail.end_offset, NULL, error);
    if (code == SC_OK)
        code = sc_partition_lock(partition, error);
    if (code != SC_OK)
        return code;
    sc_writer_close(&partition->writer);
    if (sc_slot_read(slot, &tail) && atomic_load(&slot->dirty) == 0 && tail.segment_base >= 0 && !tail.sealed) {
        sc_partition_append_note(partition, slot, &tail);
        sc_writer_close(&partition->writer);
        sc_partition_save_producers(partition, &tail, true);
        code = cut_tail(partition, slot, &tail, error);
    }
    sc_partition_unlock(partition);
    return code;
}

int sc_partition_note_durable(sc_partition *partition, sc_error *error)
{
    sc_slot *slot = sc_state_slot(&partition->topic->state, partition->number);
    sc_tail tail;
    int code = sc_partition_lock(partition, error);
    if (code != SC_OK)
        return code;
    if (sc_slot_read(slot, &tail))
        sc_partition_append_note(partition, slot, &tail);
    sc_partition_unlock(partition);
    return SC_OK;
}
