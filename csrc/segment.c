#include "segment.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"

sc_segment *sc_segment_new(const char *folder, int64_t base_offset)
{
    sc_segment *segment = calloc(1, sizeof *segment);
    if (segment == NULL)
        return NULL;
    size_t size = strlen(folder) + sizeof "/00000000000000000000.arrows";
    segment->path = malloc(size);
    if (segment->path == NULL) {
        free(segment);
        return NULL;
    }
    snprintf(segment->path, size, "%s/%020lld.arrows", folder, (long long)base_offset);
    segment->base_offset = base_offset;
    atomic_init(&segment->references, 1);
    pthread_mutex_init(&segment->mutex, NULL);
    return segment;
}

void sc_segment_retain(sc_segment *segment)
{
    atomic_fetch_add_explicit(&segment->references, 1, memory_order_relaxed);
}

void sc_segment_release(sc_segment *segment)
{
    if (segment == NULL || atomic_fetch_sub_explicit(&segment->references, 1, memory_order_acq_rel) != 1)
        return;
    sc_mapping_release(segment->mapping);
    pthread_mutex_destroy(&segment->mutex);
    free(segment->entries);
    free(segment->aborted.items);
    free(segment->path);
    free(segment);
}

const char *sc_segment_name(const sc_segment *segment)
{
    const char *name = segment->path + strlen(segment->path);
    for (int slashes = 0; name > segment->path && slashes < 3; name--)
        slashes += name[-1] == '/';
    return *name == '/' ? name + 1 : name;
}

/* ---- mapping ----------------------------------------------------------------------------------------------- */

struct recognition {
    const sc_mapping *mapping;
    int64_t file_size;
    const sc_layout *layouts, *found;
    uint32_t partition;
};

static bool is_message_of(const struct recognition *self, const sc_layout *layout)
{
    char digits[11];
    int64_t size = layout->schema_message_size, at = layout->partition_digits_at;
    const uint8_t *data = self->mapping->data;
    snprintf(digits, sizeof digits, "%010u", (unsigned)self->partition);
    return size <= self->file_size && memcmp(data, layout->schema_message, (size_t)at) == 0 &&
           (memcmp(data + at, digits, 10) == 0 || SC_CONTROL(segment_of_another_partition_read)) &&
           memcmp(data + at + 10, layout->schema_message + at + 10, (size_t)(size - at - 10)) == 0;
}

static void recognize(void *context)
{
    struct recognition *self = context;
    for (const sc_layout *layout = self->layouts; layout != NULL && self->found == NULL; layout = layout->next)
        if (is_message_of(self, layout))
            self->found = layout;
}

static int fail_replaced(const sc_segment *segment, sc_error *error)
{
    return sc_fail_at(error, SC_STALE, segment->path, segment->base_offset, -1, "another file has the segment's name");
}

static int map_file(sc_segment *segment, int64_t size, const sc_layout *layouts, uint32_t partition, sc_error *error)
{
    sc_mapping *mapping;
    int64_t file_size;
    int code = sc_mapping_open_with(segment->path, segment->runs, partition, segment->base_offset, size, &mapping,
                                    &file_size, error);
    if (code != SC_OK)
        return code;
    if (segment->inode != 0 && mapping->inode != segment->inode && !SC_CONTROL(replaced_file_not_noticed)) {
        sc_mapping_release(mapping);
        return fail_replaced(segment, error);
    }
    struct recognition self = {.mapping = mapping, .file_size = file_size, .layouts = layouts, .partition = partition};
    bool readable = mapping->size == 0 || sc_os_read_mapped(mapping->data, (size_t)mapping->size, recognize, &self);
    if (!readable || self.found == NULL) {
        sc_mapping_release(mapping);
        return !readable ? sc_segment_fail_unreadable(segment, segment->base_offset, 0, error)
                         : sc_fail_at(error, SC_FORMAT, segment->path, segment->base_offset, 0,
                                      "the segment does not begin with a schema of this topic");
    }
    sc_mapping_release(segment->mapping);
    segment->mapping = mapping;
    segment->inode = mapping->inode;
    segment->may_grow = size > 0;
    if (segment->layout == NULL) { /* it stays the same: others read it without the mutex */
        segment->layout = self.found;
        segment->first_position = self.found->schema_message_size;
    }
    return SC_OK;
}

/* Whether the file must be mapped anew, or another one has its name. One that was mapped while it was active may have
 * been sealed at a size beyond that mapping, and one that was empty may have been replaced by another of its name. */
static int is_stale(sc_segment *segment, int64_t size, bool *stale, sc_error *error)
{
    sc_file_stat stat;
    *stale = true;
    if (segment->mapping == NULL || segment->mapping->size < size ||
        (segment->mapping->copied && segment->runs == NULL))
        return SC_OK;
    bool active = size > 0;
    *stale = false;
    if (active ? atomic_load_explicit(&segment->mapping->began, memory_order_relaxed) : !segment->may_grow)
        return SC_OK;
    int fd = sc_os.open(segment->path, SC_OPEN_READ);
    if (fd < 0 && errno == ENOENT)
        return SC_OK; /* gone: the mapping is what there is */
    int code =
        fd < 0 || sc_os.stat(fd, &stat) != 0 ? sc_fail_os(error, "cannot look at a segment", segment->path) : SC_OK;
    if (fd >= 0)
        sc_os.close(fd);
    if (code != SC_OK)
        return code;
    segment->may_grow = active;
    if (!active && !segment->mapping->copied && stat.size < segment->mapping->size)
        atomic_store_explicit(&segment->mapping->file_size, stat.size, memory_order_relaxed);
    *stale = stat.inode != segment->mapping->inode || (!active && stat.size > segment->mapping->size);
    return SC_OK;
}

int sc_segment_map(sc_segment *segment, int64_t size, const sc_layout *layouts, uint32_t partition,
                   sc_mapping **mapping, sc_error *error)
{
    pthread_mutex_lock(&segment->mutex);
    bool stale;
    int code = is_stale(segment, size, &stale, error);
    if (code == SC_OK && stale)
        code = map_file(segment, size, layouts, partition, error);
    if (code == SC_OK) {
        sc_mapping_retain(segment->mapping);
        *mapping = segment->mapping;
    }
    pthread_mutex_unlock(&segment->mutex);
    return code;
}

void sc_segment_bind(sc_segment *segment)
{
    sc_file_stat stat;
    if (segment->inode != 0)
        return;
    int fd = sc_os.open(segment->path, SC_OPEN_READ);
    if (fd >= 0 && sc_os.stat(fd, &stat) == 0)
        segment->inode = stat.inode;
    if (fd >= 0)
        sc_os.close(fd);
}

bool sc_segment_is_of(sc_segment *segment, const sc_file_stat *stat)
{
    pthread_mutex_lock(&segment->mutex);
    bool same = segment->inode == 0 || segment->inode == stat->inode;
    pthread_mutex_unlock(&segment->mutex);
    return same;
}

bool sc_segment_is_current(sc_segment *segment)
{
    sc_file_stat stat;
    int fd = sc_os.open(segment->path, SC_OPEN_READ);
    bool current = fd >= 0 && sc_os.stat(fd, &stat) == 0 && sc_segment_is_of(segment, &stat);
    if (fd >= 0)
        sc_os.close(fd);
    return current;
}

int64_t sc_segment_modified_ms(const sc_segment *segment)
{
    sc_file_stat stat;
    int fd = sc_os.open(segment->path, SC_OPEN_READ);
    bool known = fd >= 0 && sc_os.stat(fd, &stat) == 0;
    if (fd >= 0)
        sc_os.close(fd);
    return known ? stat.modified_ns / 1000000 : sc_os.now_ms();
}

/* ---- looking at batches ------------------------------------------------------------------------------------ */

const char sc_segment_too_far[] = "a batch has offsets of the next segment";
static const char unreadable[] = "the file cannot be read here (input/output error, or it was cut short)";

struct inspection {
    sc_look look;
    const uint8_t *data;
    int64_t available;
    bool verify;
};

static void inspect(void *context)
{
    struct inspection *self = context;
    self->look.state = sc_batch_look(self->data, self->available, &self->look.header, &self->look.why);
    if (self->look.state == SC_BATCH_GOOD && self->verify && !SC_CONTROL(batch_checksum_ignored) &&
        sc_batch_checksum(self->data, &self->look.header) != self->look.header.body_crc) {
        self->look.state = SC_BATCH_BAD;
        self->look.why = "the batch does not match its checksum";
    }
}

sc_look sc_segment_look(sc_mapping *mapping, int64_t position, int64_t end, bool verify, int64_t *bytes_verified)
{
    end = end < mapping->size ? end : mapping->size;
    struct inspection self = {
        .look = {.state = SC_BATCH_NONE, .why = "the file ends here"},
        .available = end - position,
    };
    if (position >= end)
        return self.look;
    self.data = mapping->data + position;
    self.verify = verify && !sc_mapping_is_verified(mapping, position);
    if (!sc_os_read_mapped(self.data, (size_t)(mapping->size - position), inspect, &self)) {
        self.look.state = SC_BATCH_BAD;
        self.look.why = unreadable;
        self.look.unreadable = true;
        return self.look;
    }
    if (self.look.state == SC_BATCH_GOOD && !atomic_load_explicit(&mapping->began, memory_order_relaxed))
        atomic_store_explicit(&mapping->began, true, memory_order_relaxed);
    if (self.verify && SC_CONTROL(damage_verified_once))
        sc_mapping_set_verified(mapping, position);
    if (self.verify && self.look.state == SC_BATCH_GOOD) {
        sc_mapping_set_verified(mapping, position);
        *bytes_verified += self.look.header.total_size;
    }
    return self.look;
}

bool sc_segment_goes_on(sc_look *look, int64_t offset, int64_t end_offset)
{
    bool follows = look->state == SC_BATCH_GOOD && look->header.base_offset == offset;
    if (follows && look->header.last_offset < end_offset)
        return true;
    if (follows)
        look->why = sc_segment_too_far;
    else if (look->state != SC_BATCH_BAD)
        look->why = "records are missing here";
    return false;
}

void sc_segment_batch(const sc_segment *segment, sc_mapping *mapping, const sc_header *header, int64_t position,
                      uint32_t partition, sc_batch *batch)
{
    *batch = (sc_batch){
        .message = mapping->data + position,
        .message_size = header->total_size,
        .position = position,
        .base_offset = header->base_offset,
        .last_offset = header->last_offset,
        .record_count = header->record_count,
        .row_count = header->record_count,
        .min_timestamp = header->min_timestamp,
        .max_timestamp = header->max_timestamp,
        .partition = partition,
        .schema_version = header->schema_version,
        .flags = header->flags,
        .codec = (header->flags & SC_FLAG_CODEC) >> SC_FLAG_CODEC_SHIFT,
        .has_headers = (header->flags & SC_FLAG_HAS_HEADERS) != 0,
        .layout = segment->layout,
        .mapping = mapping,
    };
}

struct search {
    const uint8_t *data;
    int64_t position, end;
    sc_header header;
    bool found;
};

static void search_good(void *context)
{
    struct search *self = context;
    const char *why;
    if (sc_batch_look(self->data + self->position, self->end - self->position, &self->header, &why) == SC_BATCH_GOOD)
        self->position += self->header.total_size;
    else
        self->position += SC_ALIGNMENT;
    for (; self->position < self->end; self->position += SC_ALIGNMENT) {
        const uint8_t *at = self->data + self->position;
        uint32_t opening;
        memcpy(&opening, at, sizeof opening);
        if (opening != SC_CONTINUATION)
            continue;
        if (sc_batch_look(at, self->end - self->position, &self->header, &why) == SC_BATCH_GOOD &&
            sc_batch_checksum(at, &self->header) == self->header.body_crc) {
            self->found = true;
            return;
        }
    }
}

int64_t sc_segment_find_good(const sc_mapping *mapping, int64_t position, int64_t end, sc_header *header)
{
    end = end < mapping->size ? end : mapping->size;
    struct search self = {.data = mapping->data, .position = sc_align(position), .end = end};
    if (self.position >= end)
        return SC_NOT_FOUND;
    if (!sc_os_read_mapped(mapping->data, (size_t)mapping->size, search_good, &self))
        return SC_NOT_READABLE;
    *header = self.header;
    return self.found ? self.position : SC_NOT_FOUND;
}

int sc_segment_fail_unreadable(const sc_segment *segment, int64_t offset, int64_t position, sc_error *error)
{
    sc_look look = {.state = SC_BATCH_BAD, .why = unreadable, .unreadable = true};
    return sc_segment_fail(segment, &look, offset, position, error);
}

int sc_segment_fail(const sc_segment *segment, const sc_look *look, int64_t offset, int64_t position, sc_error *error)
{
    sc_fail_at(error, SC_CORRUPT, segment->path, offset, position, look->why);
    if (sc_header_is_newer(&look->header)) {
        error->code = SC_FORMAT;
        snprintf(error->message, sizeof error->message,
                 "the batch has format version %u and flags 0x%x; this version of streamcore knows version %u and "
                 "flags 0x%x",
                 (unsigned)look->header.version, (unsigned)look->header.flags, (unsigned)SC_BATCH_VERSION,
                 (unsigned)SC_FLAGS_KNOWN);
    }
    if (look->unreadable) {
        error->code = SC_OS;
        error->number = 5; /* EIO */
    }
    return error->code;
}

/* ---- seeking ----------------------------------------------------------------------------------------------- */

void sc_segment_note(sc_segment *segment, int64_t offset, int64_t position)
{
    pthread_mutex_lock(&segment->mutex);
    int64_t count = segment->entry_count;
    bool far = count == 0 || position - SC_INDEX_SPACING >= segment->entries[count - 1].position;
    far = far && offset >= segment->base_offset && (count == 0 || offset > segment->entries[count - 1].offset);
    if (far && count == segment->entry_capacity) {
        int64_t capacity = count == 0 ? 16 : count * 2;
        sc_index_entry *grown = realloc(segment->entries, (size_t)capacity * sizeof *grown);
        far = grown != NULL;
        if (far) {
            segment->entries = grown;
            segment->entry_capacity = capacity;
        }
    }
    if (far)
        segment->entries[segment->entry_count++] = (sc_index_entry){offset, position};
    pthread_mutex_unlock(&segment->mutex);
}

static sc_index_entry nearest_entry(sc_segment *segment, int64_t offset, int64_t end)
{
    sc_index_entry found = {segment->base_offset, segment->first_position};
    pthread_mutex_lock(&segment->mutex);
    sc_index_load(segment);
    int64_t low = 0, high = segment->entry_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (segment->entries[middle].offset <= offset && segment->entries[middle].position < end)
            low = middle + 1;
        else
            high = middle;
    }
    if (low > 0)
        found = segment->entries[low - 1];
    pthread_mutex_unlock(&segment->mutex);
    return found;
}

int64_t sc_segment_seek(sc_segment *segment, sc_mapping *mapping, int64_t offset, int64_t end, int64_t *batch_offset)
{
    int64_t unused = 0;
    sc_index_entry entry = nearest_entry(segment, offset, end);
    if (entry.position > segment->first_position && entry.position % SC_ALIGNMENT == 0) {
        sc_look look = sc_segment_look(mapping, entry.position, end, false, &unused);
        if ((look.state == SC_BATCH_GOOD && look.header.base_offset == entry.offset) ||
            SC_CONTROL(index_entry_believed)) {
            *batch_offset = entry.offset;
            return entry.position;
        }
        pthread_mutex_lock(&segment->mutex);
        segment->entry_count = segment->saved_entries = 0; /* the index lies: do without it */
        pthread_mutex_unlock(&segment->mutex);
    }
    *batch_offset = segment->base_offset;
    return segment->first_position;
}
