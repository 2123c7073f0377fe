/* Markers, which end a transaction in a partition, and what is open there. A marker is a batch without records that
 * takes one offset; it is appended like any other. */
#include "append.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"

/* Of the active segment, or the newest when there is none. */
static const sc_layout *layout_of_markers(sc_topic *topic, const sc_tail *tail)
{
    const sc_layout *newest = NULL, *layout = atomic_load(&topic->layouts);
    if (tail->segment_base >= 0 && !tail->sealed)
        return sc_topic_layout(topic, (uint32_t)tail->schema_version);
    for (; layout != NULL; layout = layout->next)
        if (newest == NULL || layout->schema_version > newest->schema_version)
            newest = layout;
    return newest;
}

/* Whether there is something to end, or an epoch to fence; fills in what the marker says. */
static int plan_marker(sc_append_state *self, const sc_marker *marker, bool *needed, sc_error *error)
{
    sc_partition *partition = self->partition;
    int code = sc_partition_catch_up(partition, &self->tail, error);
    if (code != SC_OK)
        return code;
    const sc_producer_entry *entry = sc_producer_state_find(partition->producers, marker->producer_id);
    bool is_open = entry != NULL && entry->open_offset >= 0 &&
                   (marker->commit ? entry->epoch == marker->epoch : entry->epoch <= marker->epoch);
    bool fences = !marker->commit && marker->fence && (entry == NULL || entry->epoch < marker->epoch);
    *needed = is_open || fences;
    if (!*needed)
        return SC_OK;
    int64_t end_offset = self->tail.end_offset;
    self->control = marker->commit || SC_CONTROL(abort_marker_commits) ? SC_CONTROL_COMMIT : SC_CONTROL_ABORT;
    self->transaction_offset = is_open ? entry->open_offset : end_offset;
    self->record_count = 1;
    self->stable_offset = sc_producer_state_stable(partition->producers, marker->producer_id, end_offset + 1);
    self->layout = layout_of_markers(partition->topic, &self->tail);
    if (self->layout == NULL)
        return sc_fail(error, SC_STALE, "schema version %lld is not known", (long long)self->tail.schema_version);
    code = sc_encoding_plan_empty(self->encodings, self->layout, sc_encoding_empty_size(self->layout), error);
    self->total_size = self->encodings->total_size;
    self->encodings->min_timestamp = self->encodings->max_timestamp = sc_os.now_ms();
    return code;
}

static int append_marker_locked(sc_append_state *self, const sc_marker *marker, int64_t *offset, sc_error *error)
{
    bool needed = false;
    sc_error unused;
    int code = sc_append_check_slot(self, error);
    if (code == SC_OK)
        code = sc_append_find_end(self, error);
    if (code == SC_OK)
        code = plan_marker(self, marker, &needed, error);
    if (code != SC_OK || !needed)
        return code;
    int64_t end_offset = self->tail.end_offset;
    code = sc_append_check_room(self, error);
    if (code == SC_OK)
        code = sc_append_write_locked(self, error);
    if (code != SC_OK)
        return code;
    *offset = end_offset;
    (void)sc_producer_state_end(self->partition->producers, &self->request->producer, end_offset, sc_os.now_ms(),
                                &unused);
    return SC_OK;
}

static int marker_inside(sc_topic *topic, uint32_t number, const sc_marker *marker, int64_t *offset, sc_error *error)
{
    static const sc_batch_input nothing;
    sc_append request = {.batches = &nothing,
                         .batch_count = 1,
                         .expected_offset = -1,
                         .durable = marker->durable,
                         .producer = {.id = marker->producer_id, .epoch = marker->epoch, .sequence = -1}};
    sc_encoding encoding = {0};
    sc_append_state self = {.request = &request, .settings = sc_topic_settings_read(topic), .encodings = &encoding};
    if (!topic->writable)
        return sc_fail(error, SC_READ_ONLY, "the store was opened for reading");
    if (marker->producer_id <= 0 || marker->epoch < 0)
        return sc_fail(error, SC_INVALID, "producer %lld, epoch %d: ids begin at 1, epochs at 0",
                       (long long)marker->producer_id, (int)marker->epoch);
    int code = sc_topic_partition(topic, number, &self.partition, error);
    if (code != SC_OK)
        return code;
    self.slot = sc_state_slot(&topic->state, number);
    code = sc_partition_lock(self.partition, error);
    if (code != SC_OK)
        return code;
    request.generation = atomic_load(&sc_state_header_of(&topic->state)->generation); /* settings do not matter here */
    code = append_marker_locked(&self, marker, offset, error);
    sc_partition_unlock(self.partition);
    sc_encoding_free(&encoding);
    if (code != SC_OK)
        return code;
    if (*offset >= 0)
        sc_append_tell(self.partition);
    return marker->durable ? sc_partition_wait_durable(self.partition, self.tail.end_offset, error) : SC_OK;
}

int sc_partition_append_marker(sc_topic *topic, uint32_t number, const sc_marker *marker, int64_t *offset,
                               sc_error *error)
{
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    *offset = -1;
    code = marker_inside(topic, number, marker, offset, error);
    sc_topic_leave(topic);
    return code;
}

/* ---- what is open -------------------------------------------------------------------------------------------- */

static int open_inside(sc_topic *topic, uint32_t number, sc_open_transaction *transactions, int64_t max, int64_t *count,
                       sc_error *error)
{
    static const sc_append nothing;
    sc_append_state self = {.request = &nothing};
    if (!topic->writable)
        return sc_fail(error, SC_READ_ONLY, "the store was opened for reading");
    int code = sc_topic_partition(topic, number, &self.partition, error);
    if (code != SC_OK)
        return code;
    self.slot = sc_state_slot(&topic->state, number);
    code = sc_partition_lock(self.partition, error);
    if (code != SC_OK)
        return code;
    code = sc_append_find_end(&self, error);
    if (code == SC_OK && self.tail.stable_offset < self.tail.end_offset)
        code = sc_partition_catch_up(self.partition, &self.tail, error);
    const sc_producer_state *state = self.partition->producers;
    bool any = code == SC_OK && self.tail.stable_offset < self.tail.end_offset;
    for (int64_t i = 0; any && i < state->open_count && *count < max; i++) {
        const sc_producer_entry *entry = sc_producer_state_find(state, state->open[i]);
        transactions[(*count)++] = (sc_open_transaction){entry->id, entry->open_offset, entry->epoch};
    }
    sc_partition_unlock(self.partition);
    return code;
}

int sc_partition_open_transactions(sc_topic *topic, uint32_t number, sc_open_transaction *transactions, int64_t max,
                                   int64_t *count, sc_error *error)
{
    int code = sc_topic_enter(topic, error);
    if (code != SC_OK)
        return code;
    *count = 0;
    code = open_inside(topic, number, transactions, max, count, error);
    sc_topic_leave(topic);
    return code;
}
