/* Which rows of a segment stay when it is compacted: one pass collects the last offset of each key, another marks. */
#include "rewrite.h"

#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "key_map.h"
#include "os.h"

bool sc_rewrite_keeps(const sc_rewrite *self, int64_t row)
{
    int64_t at = self->row + row;
    return self->keep == NULL || (self->keep[at / 8] >> (at % 8) & 1);
}

static int grow_keep(sc_rewrite *self, int64_t rows, sc_error *error)
{
    int64_t needed = (self->row + rows + 7) / 8;
    if (needed <= self->keep_size)
        return SC_OK;
    int64_t size = needed * 2 > 4096 ? needed * 2 : 4096;
    uint8_t *grown = realloc(self->keep, (size_t)size);
    if (grown == NULL)
        return sc_fail_memory(error);
    memset(grown + self->keep_size, 0, (size_t)(size - self->keep_size));
    self->keep = grown;
    self->keep_size = size;
    return SC_OK;
}

struct keys {
    sc_rewrite *rewrite;
    sc_key_map *map;
    sc_rows rows;
    int64_t tombstones_before, dropped, oldest_tombstone, from_offset, end_offset, full_at;
};

/* Digests of the keys of up to SC_KEY_BLOCK rows from `first` on; those without a key have none. */
static int64_t prepare_block(const struct keys *self, int64_t first, uint64_t digests[SC_KEY_BLOCK][2])
{
    const sc_rows *rows = &self->rows;
    int64_t end = first + SC_KEY_BLOCK < rows->count ? first + SC_KEY_BLOCK : rows->count;
    for (int64_t i = first; i < end; i++)
        if (sc_row_is_set(rows->key_validity, i))
            sc_key_map_prepare(self->map, rows->keys + rows->key_ends[i], rows->key_ends[i + 1] - rows->key_ends[i],
                               digests[i - first]);
    return end;
}

static void mark_row(struct keys *self, int64_t row, const uint64_t digest[2])
{
    const sc_rows *rows = &self->rows;
    int64_t offset = rows->offsets[row], time = rows->timestamps[row], at = self->rewrite->row + row;
    bool keyed = sc_row_is_set(rows->key_validity, row), tombstone = keyed && !sc_row_is_set(rows->value_validity, row);
    bool stale = keyed && sc_key_map_get_digest(self->map, digest) > offset;
    if (SC_CONTROL(newest_of_key_dropped))
        stale = keyed && sc_key_map_get_digest(self->map, digest) == offset;
    if (SC_CONTROL(older_of_key_kept))
        stale = keyed && sc_key_map_get_digest(self->map, digest) > offset + 1;
    bool spent = tombstone && (time < self->tombstones_before || SC_CONTROL(tombstone_dropped_too_early)) &&
                 offset >= self->from_offset && offset < self->end_offset;
    if (stale || spent) {
        self->dropped++;
        return;
    }
    self->rewrite->keep[at / 8] |= (uint8_t)(1 << (at % 8));
    if (tombstone && time < self->oldest_tombstone)
        self->oldest_tombstone = time;
}

static void mark_rows(void *context)
{
    struct keys *self = context;
    uint64_t digests[SC_KEY_BLOCK][2];
    for (int64_t first = 0, end; first < self->rows.count; first = end) {
        end = prepare_block(self, first, digests);
        for (int64_t i = first; i < end; i++)
            mark_row(self, i, digests[i - first]);
    }
}

int sc_rewrite_mark(sc_rewrite *self, sc_key_map *map, int64_t tombstones_before, int64_t from_offset,
                    int64_t end_offset, int64_t *dropped, int64_t *oldest_tombstone, sc_error *error)
{
    sc_batch batch;
    struct keys keys = {.rewrite = self,
                        .map = map,
                        .tombstones_before = tombstones_before,
                        .from_offset = from_offset,
                        .end_offset = end_offset,
                        .oldest_tombstone = INT64_MAX};
    int code;
    sc_rewrite_rewind(self);
    free(self->keep);
    self->keep = NULL;
    self->keep_size = 0;
    while ((code = sc_rewrite_next(self, &batch, error)) == SC_OK) {
        code = batch.record_count == 0 ? SC_OK : sc_batch_keys(&batch, &keys.rows, error);
        if (code == SC_OK)
            code = grow_keep(self, batch.record_count, error);
        if (code != SC_OK)
            return code;
        if (batch.record_count > 0 &&
            !sc_os_read_mapped(self->mapping->data, (size_t)self->mapping->size, mark_rows, &keys))
            return sc_segment_fail_unreadable(self->segment, batch.base_offset, batch.position, error);
    }
    *oldest_tombstone = keys.oldest_tombstone;
    *dropped = keys.dropped + self->report.rows_before - self->rows_passed; /* those of aborted transactions */
    sc_rewrite_rewind(self);
    return code == SC_END ? SC_OK : code;
}

static void collect_rows(void *context)
{
    struct keys *self = context;
    const sc_rows *rows = &self->rows;
    uint64_t digests[SC_KEY_BLOCK][2];
    for (int64_t first = 0, end; first < rows->count && self->full_at < 0; first = end) {
        end = prepare_block(self, first, digests);
        for (int64_t i = first; i < end && self->full_at < 0; i++) {
            bool wanted = rows->offsets[i] >= self->from_offset && rows->offsets[i] < self->end_offset;
            if (wanted && sc_row_is_set(rows->key_validity, i) &&
                !sc_key_map_put_digest(self->map, digests[i - first], rows->offsets[i]))
                self->full_at = rows->offsets[i];
        }
    }
}

int sc_rewrite_collect(sc_rewrite *self, sc_key_map *map, int64_t from_offset, int64_t end_offset, int64_t *full_at,
                       sc_error *error)
{
    sc_batch batch;
    struct keys keys = {
        .rewrite = self, .map = map, .from_offset = from_offset, .end_offset = end_offset, .full_at = -1};
    int code = SC_OK;
    sc_rewrite_rewind(self);
    while (keys.full_at < 0 && (code = sc_rewrite_next(self, &batch, error)) == SC_OK) {
        if (batch.record_count == 0 || batch.last_offset < from_offset)
            continue;
        code = sc_batch_keys(&batch, &keys.rows, error);
        if (code != SC_OK)
            return code;
        if (!sc_os_read_mapped(self->mapping->data, (size_t)self->mapping->size, collect_rows, &keys))
            return sc_segment_fail_unreadable(self->segment, batch.base_offset, batch.position, error);
    }
    *full_at = keys.full_at;
    sc_rewrite_rewind(self);
    return code == SC_END ? SC_OK : code;
}
