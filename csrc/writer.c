/* The active segment as a place to write to: mapped, with disk space reserved ahead; sealed when it is full, and
 * followed by a new one. */
#include "append.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"

enum {
    ALLOCATION_FIRST = 64 << 10,
    ALLOCATION_STEP_MAX = 64 << 20,
    ALLOCATION_BURST = 16, /* large appends reserve room for as many of their like */
    DESCRIPTORS_MAX = 256,
    POPULATE_WINDOW_MIN = 64 << 10,
    POPULATE_WINDOW_MAX = 4 << 20,
    POPULATE_WINDOW_DURABLE = 1 << 20,
};
#define END_MARKER ((uint64_t)SC_CONTINUATION)

static atomic_int kept_descriptors; /* of all writers of the process: thousands of partitions must not exhaust them */

/* Gives up the writer's descriptor, and keeps `fd` in its place unless many are kept already. */
static void keep_descriptor(sc_writer *writer, int fd)
{
    if (writer->fd >= 0) {
        sc_os.close(writer->fd);
        atomic_fetch_sub(&kept_descriptors, 1);
    }
    writer->fd = -1;
    if (fd < 0)
        return;
    if (atomic_fetch_add(&kept_descriptors, 1) < DESCRIPTORS_MAX) {
        writer->fd = fd;
        return;
    }
    atomic_fetch_sub(&kept_descriptors, 1);
    sc_os.close(fd);
}

void sc_writer_close(sc_writer *writer)
{
    if (writer->data != NULL) {
        sc_os.unmap(writer->data, (size_t)writer->size);
        keep_descriptor(writer, -1);
    }
    *writer = (sc_writer){.fd = -1};
}

int sc_append_segment_path(const sc_partition *partition, int64_t base_offset, const char *ending, char *path,
                           sc_error *error)
{
    int length = snprintf(path, SC_PATH_MAX, "%s/%u/%020lld.arrows%s", partition->topic->path,
                          (unsigned)partition->number, (long long)base_offset, ending);
    return length < SC_PATH_MAX ? SC_OK : sc_fail(error, SC_INVALID, "the path of the store is too long");
}

/* Maps the active segment for writing up to `needed` and a whole segment's size, beyond the end of the file: growing
 * the file later needs no new mapping. */
int sc_append_open_writer(sc_append_state *self, int64_t needed, sc_error *error)
{
    sc_writer *writer = &self->partition->writer;
    if (writer->data != NULL && writer->base_offset == self->tail.segment_base &&
        writer->file_number == self->tail.file_number && writer->size >= needed)
        return SC_OK;
    sc_writer_close(writer);
    char path[SC_PATH_MAX];
    int code = sc_append_segment_path(self->partition, self->tail.segment_base, "", path, error);
    if (code != SC_OK)
        return code;
    int64_t size = needed > self->settings.segment_bytes ? needed : self->settings.segment_bytes;
    size = sc_round_up(size > self->tail.allocated ? size : self->tail.allocated, ALLOCATION_FIRST);
    int fd = sc_os.open(path, SC_OPEN_WRITE);
    if (fd < 0)
        return sc_fail_os(error, "cannot open the active segment", path);
    uint8_t *data = sc_os.map(fd, (size_t)size, true);
    if (data == NULL) {
        code = sc_fail_os(error, "cannot map the active segment", path);
        sc_os.close(fd);
        return code;
    }
    *writer = (sc_writer){.data = data,
                          .fd = -1,
                          .size = size,
                          .base_offset = self->tail.segment_base,
                          .file_number = self->tail.file_number,
                          .populated = self->tail.end_position};
    keep_descriptor(writer, fd);
    return SC_OK;
}

/* How large to make a file of `old` bytes that must have `needed`: doubling from 64 KiB, by at most 64 MiB. Each time
 * costs the kernel some milliseconds at the first pages behind the old end of the file, so large appends reserve much
 * at once. */
static int64_t grown_size(const sc_append_state *self, int64_t old, int64_t needed)
{
    int64_t burst = ALLOCATION_BURST * self->total_size;
    int64_t step = old > burst ? old : burst;
    step = step < ALLOCATION_FIRST ? ALLOCATION_FIRST : step > ALLOCATION_STEP_MAX ? ALLOCATION_STEP_MAX : step;
    int64_t wanted = sc_round_up(old + step > needed ? old + step : needed, SC_PAGE);
    int64_t limit = sc_round_up(self->settings.segment_bytes, SC_PAGE);
    return wanted > limit ? sc_round_up(needed > limit ? needed : limit, SC_PAGE) : wanted;
}

/* Reserves disk space up to `needed`, or more; just enough when more is too much. */
int sc_append_allocate(sc_append_state *self, int64_t needed, sc_error *error)
{
    int64_t old = self->tail.allocated;
    if (needed <= old)
        return SC_OK;
    int64_t wanted = grown_size(self, old, needed);
    char path[SC_PATH_MAX];
    int code = sc_append_segment_path(self->partition, self->tail.segment_base, "", path, error);
    if (code != SC_OK)
        return code;
    int fd = sc_os.open(path, SC_OPEN_WRITE);
    if (fd < 0)
        return sc_fail_os(error, "cannot open the active segment", path);
    int result = SC_CONTROL(space_not_reserved) ? sc_os.truncate(fd, wanted) : sc_os.allocate(fd, old, wanted - old);
    if (result != 0 && sc_round_up(needed, SC_PAGE) < wanted) {
        wanted = sc_round_up(needed, SC_PAGE);
        result = sc_os.allocate(fd, old, wanted - old);
    }
    if (result != 0)
        code = sc_fail_os(error, "cannot reserve disk space for an append", path);
    sc_os.close(fd);
    if (code == SC_OK)
        self->tail.allocated = wanted;
    return code;
}

/* Maps pages ahead of the stores, in a window that doubles while data streams in: it saves a page fault for each 4 KiB.
 * A sync makes the window small again, for it writes every page that was mapped so, also those that hold nothing yet.
 * Durable appends want that: where zeros were synced once, later syncs write data alone and no metadata. */
void sc_append_populate(sc_append_state *self, int64_t end)
{
    sc_writer *writer = &self->partition->writer;
    if (end <= writer->populated)
        return;
    if (self->request->durable && !writer->journaled)
        writer->window = POPULATE_WINDOW_DURABLE;
    else
        writer->window = writer->window == 0 ? POPULATE_WINDOW_MIN : writer->window * 2;
    if (writer->window > POPULATE_WINDOW_MAX)
        writer->window = POPULATE_WINDOW_MAX;
    int64_t from = writer->populated / SC_PAGE * SC_PAGE;
    int64_t to = sc_round_up(end + writer->window, SC_PAGE);
    if (to > self->tail.allocated)
        to = self->tail.allocated / SC_PAGE * SC_PAGE;
    if (to - from >= POPULATE_WINDOW_MIN)
        (void)sc_os.populate(writer->data + from, (size_t)(to - from));
    writer->populated = to > end ? to : end;
}

/* ---- new segments ------------------------------------------------------------------------------------------ */

/* The bytes of a new segment before its first record: its schema, and what it says of producers. */
static int64_t begin_size(const sc_append_state *self)
{
    const sc_layout *layout = self->layout;
    return layout->schema_message_size + (self->head == NULL ? 0 : sc_producers_batch_size(layout, self->head));
}

static int write_begin(const sc_append_state *self, uint8_t *at, sc_error *error)
{
    const sc_tail *tail = &self->tail;
    sc_placement placement = {
        .base_offset = tail->end_offset, .durable_offset = tail->durable_offset, .start_offset = tail->start_offset};
    sc_layout_schema_message(self->layout, self->partition->number, at);
    return self->head == NULL ? SC_OK
                              : sc_producers_batch_write(self->layout, self->head, &placement,
                                                         at + self->layout->schema_message_size, error);
}

static int write_new_segment(sc_append_state *self, const char *temporary, int64_t *allocated, sc_error *error)
{
    int64_t size = begin_size(self);
    uint8_t *message = aligned_alloc(SC_ALIGNMENT, (size_t)sc_align(size));
    if (message == NULL)
        return sc_fail_memory(error);
    int code = write_begin(self, message, error);
    if (code != SC_OK) {
        free(message);
        return code;
    }
    (void)sc_os.unlink(temporary);
    int fd = sc_os.open(temporary, SC_OPEN_CREATE);
    int64_t needed = size + self->total_size + sc_encoding_empty_size(self->layout);
    *allocated = grown_size(self, 0, needed);
    bool reserved = fd >= 0 && sc_os.allocate(fd, 0, *allocated) == 0;
    if (fd >= 0 && !reserved && sc_round_up(needed, SC_PAGE) < *allocated) {
        *allocated = sc_round_up(needed, SC_PAGE);
        reserved = sc_os.allocate(fd, 0, *allocated) == 0;
    }
    bool written = reserved && sc_os_write_whole(fd, message, (size_t)size, 0) == 0;
    if (written && self->head != NULL && !SC_CONTROL(head_not_synced)) /* nothing else says it */
        written = sc_os.sync(fd) == 0;
    if (!written)
        code = sc_fail_os(error, "cannot make a segment", temporary);
    if (fd >= 0 && !SC_CONTROL(roll_leaks_descriptor))
        sc_os.close(fd);
    free(message);
    return code;
}

static int make_folder(sc_append_state *self, sc_error *error)
{
    char folder[SC_PATH_MAX];
    int code = sc_partition_folder(self->partition, folder, error);
    if (code == SC_OK && sc_os.mkdir(folder) != 0 && errno != EEXIST)
        code = sc_fail_os(error, "cannot make a partition's folder", folder);
    return code;
}

/* The file appears under its name with its schema in it, and room for the append that needs it. It is synced by the
 * first flush: until then nothing that was promised depends on it. */
int sc_append_create_segment(sc_append_state *self, sc_error *error)
{
    char path[SC_PATH_MAX], temporary[SC_PATH_MAX];
    int64_t base_offset = self->tail.end_offset, allocated = 0;
    if (self->tail.segment_base == base_offset) { /* one without records gives way to this one, of its name */
        sc_writer_close(&self->partition->writer);
        sc_partition_forget(self->partition, base_offset);
        self->tail.segment_base = -1;
    }
    int code = make_folder(self, error);
    if (code == SC_OK)
        code = sc_append_segment_path(self->partition, base_offset, "", path, error);
    if (code == SC_OK)
        code = sc_append_segment_path(self->partition, base_offset, ".tmp", temporary, error);
    if (code == SC_OK)
        code = write_new_segment(self, temporary, &allocated, error);
    if (code == SC_OK && sc_os.rename(temporary, path) != 0)
        code = sc_fail_os(error, "cannot name a new segment", path);
    if (code != SC_OK) {
        (void)sc_os.unlink(temporary);
        return code;
    }
    code = sc_partition_add_segment(self->partition, self->tail.segment_base, base_offset, error);
    if (code != SC_OK)
        return code;
    self->tail.segment_base = base_offset;
    self->tail.end_position = begin_size(self);
    self->tail.allocated = allocated;
    self->tail.created_ms = sc_os.now_ms();
    self->tail.sealed = 0;
    self->tail.file_number++;
    self->tail.schema_version = self->layout->schema_version;
    sc_slot_publish(self->slot, &self->tail);
    return SC_OK;
}

/* Stores through the writer's mapping. A page that cannot be read in, or that somebody cut off the file, is an error
 * and not a signal. */
int sc_append_store_guarded(sc_append_state *self, void (*store)(void *), void *context, sc_error *error)
{
    sc_writer *writer = &self->partition->writer;
    char path[SC_PATH_MAX];
    if (sc_os_read_mapped(writer->data, (size_t)writer->size, store, context))
        return SC_OK;
    sc_writer_close(writer);
    int code = sc_append_segment_path(self->partition, self->tail.segment_base, "", path, error);
    errno = EIO;
    return code == SC_OK ? sc_fail_os(error, "cannot write to a segment that is mapped", path) : code;
}

static void store_end_marker(void *context)
{
    sc_append_state *self = context;
    uint64_t *at = (uint64_t *)(void *)(self->partition->writer.data + self->tail.end_position);
    __atomic_store_n(at, END_MARKER, __ATOMIC_RELEASE);
}

/* Writes the end marker: nothing is appended to this file again. A flush syncs it and cuts its tail. */
int sc_append_seal_segment(sc_append_state *self, sc_error *error)
{
    int64_t end = self->tail.end_position;
    int code = sc_append_allocate(self, end + SC_OPENING_SIZE, error);
    if (code == SC_OK)
        code = sc_append_open_writer(self, end + SC_OPENING_SIZE, error);
    if (code != SC_OK)
        return code;
    code = sc_append_store_guarded(self, store_end_marker, self, error);
    if (code != SC_OK)
        return code;
    self->tail.sealed = 1;
    sc_slot_publish(self->slot, &self->tail);
    sc_writer_close(&self->partition->writer);
    return SC_OK;
}

/* Where the append will lie in the active segment: at its end, or behind the old end of the file when that must grow.
 */
int64_t sc_append_place_of(const sc_append_state *self)
{
    const sc_tail *tail = &self->tail;
    int64_t reserve = sc_encoding_empty_size(self->layout), old_end = tail->allocated / SC_ALIGNMENT * SC_ALIGNMENT;
    bool fits =
        tail->end_position + self->total_size + reserve <= tail->allocated || SC_CONTROL(batch_across_old_length);
    return fits || old_end - tail->end_position < reserve ? tail->end_position : old_end;
}

static bool must_roll(const sc_append_state *self)
{
    const sc_tail *tail = &self->tail;
    bool empty = tail->end_offset == tail->segment_base;
    if (tail->schema_version != self->layout->schema_version)
        return true;
    if (empty)
        return false;
    int64_t end = sc_append_place_of(self) + self->total_size;
    return end + sc_encoding_empty_size(self->layout) > self->settings.segment_bytes ||
           (self->settings.segment_ms > 0 && sc_os.now_ms() - tail->created_ms >= self->settings.segment_ms);
}

/* Whether the active segment says something of producers before its first record. */
static int has_head(sc_append_state *self, bool *has, sc_error *error)
{
    sc_segment *segment;
    sc_mapping *mapping;
    int64_t next_base, unused = 0;
    int code =
        sc_partition_open(self->partition, &self->tail, self->tail.end_offset, &segment, &next_base, &mapping, error);
    *has = false;
    if (code == SC_OK && segment != NULL) {
        sc_look look = sc_segment_look(mapping, segment->first_position, self->tail.end_position, false, &unused);
        *has = look.state == SC_BATCH_GOOD && look.header.control == SC_CONTROL_PRODUCERS;
        sc_mapping_release(mapping);
    }
    sc_segment_release(segment);
    return code;
}

/* A segment of another schema that has no records yet is replaced by one of the same name, which goes on saying what
 * that one said of producers. */
static int replace_segment(sc_append_state *self, sc_error *error)
{
    bool has;
    int code = has_head(self, &has, error);
    if (code == SC_OK && has)
        code = sc_partition_catch_up(self->partition, &self->tail, error);
    if (code != SC_OK)
        return code;
    self->head = has && !SC_CONTROL(head_dropped_by_new_schema) ? self->partition->producers : NULL;
    code = sc_append_create_segment(self, error);
    self->head = NULL;
    return code;
}

int sc_append_ensure_segment(sc_append_state *self, sc_error *error)
{
    sc_tail *tail = &self->tail;
    int code = SC_OK;
    if (tail->segment_base >= 0 && !tail->sealed && must_roll(self)) {
        if (tail->end_offset == tail->segment_base)
            return replace_segment(self, error);
        code = sc_append_seal_segment(self, error);
    }
    if (code == SC_OK && (tail->segment_base < 0 || tail->sealed))
        code = sc_append_create_segment(self, error);
    return code;
}
