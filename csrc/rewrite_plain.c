/* Rewriting a plain segment without leaving C: rows of small batches are gathered where they lie, and added as large
 * ones. */
#include "rewrite.h"

#include <stdlib.h>

#include "control.h"
#include "error.h"
#include "os.h"

enum { PENDING_ROWS_MAX = 1 << 16, PROGRESS_BYTES = 4 << 20 };

typedef struct pending {
    sc_rewrite *rewrite;
    sc_bytes *keys, *values;
    int64_t *offsets, *timestamps;
    int64_t count, bytes, bytes_max;
    bool keyed;
    uint16_t flags;
    sc_rows rows; /* of the batch that is taken, from row `next` on */
    int64_t next;
} pending;

static int new_pending(sc_rewrite *rewrite, int64_t batch_bytes, pending *self, sc_error *error)
{
    const size_t rows = PENDING_ROWS_MAX;
    uint8_t *memory = malloc(rows * (2 * sizeof(sc_bytes) + 2 * sizeof(int64_t)));
    if (memory == NULL)
        return sc_fail_memory(error);
    *self = (pending){.rewrite = rewrite, .bytes_max = batch_bytes};
    self->keys = (sc_bytes *)(void *)memory;
    self->values = self->keys + rows;
    self->offsets = (int64_t *)(void *)(self->values + rows);
    self->timestamps = self->offsets + rows;
    return SC_OK;
}

static sc_bytes bytes_of(const uint8_t *validity, const int32_t *ends, const uint8_t *bytes, int64_t row)
{
    if (!sc_row_is_set(validity, row))
        return (sc_bytes){NULL, 0};
    return (sc_bytes){bytes + ends[row], ends[row + 1] - ends[row]};
}

static void take_rows(void *context)
{
    pending *self = context;
    const sc_rows *rows = &self->rows;
    for (; self->next < rows->count && self->count < PENDING_ROWS_MAX && self->bytes < self->bytes_max; self->next++) {
        if (!sc_rewrite_keeps(self->rewrite, self->next))
            continue;
        int64_t at = self->count++;
        self->keys[at] = bytes_of(rows->key_validity, rows->key_ends, rows->keys, self->next);
        self->values[at] = bytes_of(rows->value_validity, rows->value_ends, rows->values, self->next);
        self->offsets[at] = rows->offsets[self->next];
        self->timestamps[at] = rows->timestamps[self->next];
        self->keyed = self->keyed || self->keys[at].data != NULL;
        self->bytes += self->keys[at].size + self->values[at].size + 24;
    }
}

static int flush_pending(pending *self, int64_t last_offset, sc_error *error)
{
    if (self->count == 0)
        return SC_OK;
    sc_batch_input input = {.count = self->count,
                            .keys = self->keyed ? self->keys : NULL,
                            .values = self->values,
                            .timestamps = self->timestamps,
                            .offsets = self->offsets};
    int64_t last = self->offsets[self->count - 1];
    if (SC_CONTROL(row_lost_at_batch_border) && last_offset < 0 && self->count > 1)
        input.count--;
    int code = sc_rewrite_add(self->rewrite, &input, last_offset < 0 ? last : last_offset, self->flags, error);
    self->count = self->bytes = 0;
    self->keyed = false;
    return code;
}

static int take_batch(pending *self, const sc_batch *batch, sc_error *error)
{
    sc_rewrite *rewrite = self->rewrite;
    if (self->count > 0 && ((self->flags ^ batch->flags) & SC_FLAG_LOG_APPEND_TIME) != 0) {
        int code = flush_pending(self, -1, error);
        if (code != SC_OK)
            return code;
    }
    self->flags = batch->flags;
    self->next = 0;
    int code = sc_batch_rows(batch, &self->rows, error);
    while (code == SC_OK && self->next < self->rows.count) {
        if (!sc_os_read_mapped(rewrite->mapping->data, (size_t)rewrite->mapping->size, take_rows, self))
            return sc_segment_fail_unreadable(rewrite->segment, batch->base_offset, batch->position, error);
        if (self->count == PENDING_ROWS_MAX || self->bytes >= self->bytes_max)
            code = flush_pending(self, -1, error);
    }
    return code;
}

static int run_plain(pending *self, sc_progress_callback progress, void *context, sc_error *error)
{
    sc_rewrite *rewrite = self->rewrite;
    sc_batch batch;
    int64_t reported = rewrite->position;
    int code;
    while ((code = sc_rewrite_next(rewrite, &batch, error)) == SC_OK) {
        if ((batch.flags & SC_FLAG_CONTROL) != 0) {
            code = flush_pending(self, batch.base_offset - 1, error);
            if (code == SC_OK)
                code = sc_rewrite_copy(rewrite, &batch, error);
        } else if (batch.codec != SC_CODEC_NONE || batch.has_headers) {
            code = sc_fail(error, SC_INVALID, "a batch is compressed or has headers");
        } else {
            code = take_batch(self, &batch, error);
        }
        if (code != SC_OK)
            return code;
        if (rewrite->position - reported >= PROGRESS_BYTES) {
            if (progress != NULL && progress(context, rewrite->position - reported) != 0)
                return SC_END;
            reported = rewrite->position;
        }
    }
    if (code != SC_END)
        return code;
    if (progress != NULL && progress(context, rewrite->position - reported) != 0)
        return SC_END;
    return flush_pending(self, rewrite->end_offset - 1, error);
}

int sc_rewrite_plain(sc_rewrite *self, int64_t batch_bytes, sc_progress_callback progress, void *context,
                     sc_error *error)
{
    pending pending;
    int code = sc_topic_enter(self->topic, error);
    if (code != SC_OK)
        return code;
    sc_rewrite_rewind(self);
    code = new_pending(self, batch_bytes, &pending, error);
    if (code == SC_OK) {
        code = run_plain(&pending, progress, context, error);
        free(pending.keys);
    }
    sc_topic_leave(self->topic);
    return code;
}
