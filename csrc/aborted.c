#include "aborted.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"
#include "segment.h"

enum { ITEMS_MAX = 1 << 24 };
static const uint8_t file_magic[8] = {'S', 'C', 'A', 'B', 'O', 'R', 'T', '1'};

typedef struct file_header {
    uint8_t magic[8];
    uint32_t crc, count;
    int64_t end_position, stable_offset;
} file_header;
static_assert(sizeof(file_header) == 32 && sizeof(sc_aborted) == 24, "as the page on the format says");

static void aborted_path(const sc_segment *segment, char *path, size_t size, const char *ending)
{
    int stem = (int)(strlen(segment->path) - strlen(".arrows"));
    snprintf(path, size, "%.*s.aborted%s", stem, segment->path, ending);
}

static uint32_t crc_of(const sc_segment *segment, const file_header *header, const sc_aborted *items)
{
    const char *name = sc_segment_name(segment);
    uint32_t crc = sc_crc32c(0, name, strlen(name));
    crc = sc_crc32c(crc, (const uint8_t *)header + 12, sizeof *header - 12);
    return sc_crc32c(crc, items, (size_t)header->count * sizeof *items);
}

void sc_segment_forget_aborted(sc_segment *segment)
{
    char path[SC_PATH_MAX + 16];
    aborted_path(segment, path, sizeof path, "");
    (void)sc_os.unlink(path);
    free(segment->aborted.items);
    segment->aborted = (sc_aborted_list){0};
}

/* ---- the hint file ------------------------------------------------------------------------------------------- */

/* The file is of the segment as it is when its end marker is where the file says. */
static bool take_file(sc_segment *segment, sc_mapping *mapping, int64_t end, const uint8_t *data, int64_t size)
{
    file_header header;
    int64_t nothing = 0;
    memcpy(&header, data, sizeof header);
    const sc_aborted *items = (const sc_aborted *)(const void *)(data + sizeof header);
    if (memcmp(header.magic, file_magic, sizeof file_magic) != 0 ||
        size != (int64_t)sizeof header + (int64_t)header.count * (int64_t)sizeof *items ||
        (crc_of(segment, &header, items) != header.crc && !SC_CONTROL(aborted_list_of_another_believed)) ||
        header.end_position < segment->first_position || header.end_position % SC_ALIGNMENT != 0 ||
        sc_segment_look(mapping, header.end_position, end, false, &nothing).state != SC_BATCH_MARKER)
        return false;
    sc_aborted *copy = malloc((size_t)header.count * sizeof *items + 1);
    if (copy == NULL)
        return false;
    memcpy(copy, items, (size_t)header.count * sizeof *items);
    free(segment->aborted.items);
    segment->aborted = (sc_aborted_list){.items = copy,
                                         .count = header.count,
                                         .capacity = header.count,
                                         .position = header.end_position,
                                         .stable_offset = header.stable_offset,
                                         .damaged_offset = INT64_MAX,
                                         .sorted = true,
                                         .complete = true};
    return true;
}

static bool load(sc_segment *segment, sc_mapping *mapping, int64_t end)
{
    char path[SC_PATH_MAX + 16];
    sc_file_stat stat;
    bool taken = false;
    aborted_path(segment, path, sizeof path, "");
    int fd = sc_os.open(path, SC_OPEN_READ);
    if (fd < 0)
        return false;
    int64_t most = (int64_t)sizeof(file_header) + ITEMS_MAX * (int64_t)sizeof(sc_aborted);
    if (sc_os.stat(fd, &stat) == 0 && stat.size >= (int64_t)sizeof(file_header) && stat.size <= most) {
        uint8_t *data = malloc((size_t)stat.size);
        taken = data != NULL && sc_os_read_whole(fd, data, (size_t)stat.size, 0) == 0 &&
                take_file(segment, mapping, end, data, stat.size);
        free(data);
    }
    sc_os.close(fd);
    return taken;
}

static void save(const sc_segment *segment)
{
    char path[SC_PATH_MAX + 16], temporary[SC_PATH_MAX + 16];
    const sc_aborted_list *list = &segment->aborted;
    if (list->count > ITEMS_MAX || list->damaged_offset != INT64_MAX)
        return;
    file_header header = {
        .count = (uint32_t)list->count, .end_position = list->position, .stable_offset = list->stable_offset};
    memcpy(header.magic, file_magic, sizeof header.magic);
    header.crc = crc_of(segment, &header, list->items);
    aborted_path(segment, path, sizeof path, "");
    aborted_path(segment, temporary, sizeof temporary, ".tmp");
    (void)sc_os.unlink(temporary);
    int fd = sc_os.open(temporary, SC_OPEN_CREATE);
    if (fd < 0)
        return;
    bool written = sc_os_write_whole(fd, &header, sizeof header, 0) == 0 &&
                   (list->count == 0 ||
                    sc_os_write_whole(fd, list->items, (size_t)list->count * sizeof *list->items, sizeof header) == 0);
    sc_os.close(fd);
    if (!written || sc_os.rename(temporary, path) != 0)
        (void)sc_os.unlink(temporary);
}

/* ---- walking -------------------------------------------------------------------------------------------------- */

static int add(sc_aborted_list *list, const sc_header *header, sc_error *error)
{
    if (list->count == list->capacity) {
        int64_t capacity = list->capacity == 0 ? 8 : list->capacity * 2;
        sc_aborted *grown = realloc(list->items, (size_t)capacity * sizeof *grown);
        if (grown == NULL)
            return sc_fail_memory(error);
        list->items = grown;
        list->capacity = capacity;
    }
    list->items[list->count++] = (sc_aborted){header->producer_id, header->transaction_offset, header->base_offset};
    list->sorted = false;
    return SC_OK;
}

static int pass(sc_aborted_list *list, const sc_header *header, sc_error *error)
{
    bool control = (header->flags & SC_FLAG_CONTROL) != 0;
    int64_t stable_offset = header->last_offset + 1 - header->unstable_count;
    int code = SC_OK;
    if (control && header->control == SC_CONTROL_ABORT && header->transaction_offset < header->base_offset)
        code = add(list, header, error);
    if (code == SC_OK && stable_offset > list->stable_offset)
        list->stable_offset = stable_offset;
    return code;
}

/* Takes over the markers up to position `end`. */
static int walk(sc_segment *segment, sc_mapping *mapping, int64_t end, sc_error *error)
{
    sc_aborted_list *list = &segment->aborted;
    int64_t nothing = 0;
    int code = SC_OK;
    while (code == SC_OK && list->position < end && !list->complete) {
        sc_look look = sc_segment_look(mapping, list->position, end, false, &nothing);
        if (look.state == SC_BATCH_GOOD) {
            code = pass(list, &look.header, error);
            if (code == SC_OK)
                list->position += look.header.total_size;
            continue;
        }
        list->complete = look.state == SC_BATCH_MARKER;
        if (look.state != SC_BATCH_BAD)
            break;
        list->unreadable = list->unreadable || look.unreadable;
        if (list->stable_offset < list->damaged_offset)
            list->damaged_offset = list->stable_offset;
        list->damaged_end = INT64_MAX;
        int64_t found =
            look.unreadable ? SC_NOT_READABLE : sc_segment_find_good(mapping, list->position, end, &look.header);
        if (found < 0)
            break;
        list->position = found;
        list->damaged_end = look.header.base_offset;
    }
    return code;
}

/* ---- asking --------------------------------------------------------------------------------------------------- */

static int by_producer(const void *left, const void *right)
{
    const sc_aborted *a = left, *b = right;
    if (a->producer_id != b->producer_id)
        return a->producer_id < b->producer_id ? -1 : 1;
    return (a->first_offset > b->first_offset) - (a->first_offset < b->first_offset);
}

/* Whether one of the transactions that the segment's markers abort has this record. */
static bool is_listed(sc_aborted_list *list, int64_t producer_id, int64_t offset)
{
    if (!list->sorted && list->count > 0)
        qsort(list->items, (size_t)list->count, sizeof *list->items, by_producer);
    list->sorted = true;
    int64_t low = 0, high = list->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const sc_aborted *item = &list->items[middle];
        if (item->producer_id < producer_id || (item->producer_id == producer_id && item->first_offset <= offset))
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 && list->items[low - 1].producer_id == producer_id && offset < list->items[low - 1].marker_offset;
}

static int learn(sc_segment *segment, sc_mapping *mapping, int64_t end, bool sealed, bool writable, sc_error *error)
{
    sc_aborted_list *list = &segment->aborted;
    if (list->complete || list->position >= end)
        return SC_OK;
    if (list->position == 0 && sealed && load(segment, mapping, end))
        return SC_OK;
    if (list->position == 0) {
        list->position = segment->first_position;
        list->damaged_offset = INT64_MAX;
    }
    int code = walk(segment, mapping, end, error);
    if (code == SC_OK && list->complete && sealed && writable) {
        (void)is_listed(list, 0, 0); /* sorts */
        save(segment);
    }
    return code;
}

int sc_segment_is_aborted(sc_segment *segment, sc_mapping *mapping, int64_t end, bool sealed, bool writable,
                          int64_t producer_id, int64_t offset, bool *decided, bool *aborted, sc_error *error)
{
    pthread_mutex_lock(&segment->mutex);
    sc_aborted_list *list = &segment->aborted;
    int code = learn(segment, mapping, end, sealed, writable, error);
    *aborted = *decided = false;
    if (code == SC_OK) {
        *aborted = is_listed(list, producer_id, offset);
        *decided = *aborted || list->stable_offset > offset;
        bool unknown = !*aborted && list->damaged_offset <= offset && offset < list->damaged_end;
        if (unknown && list->unreadable)
            code = sc_segment_fail_unreadable(segment, offset, list->position, error);
        else if (unknown)
            code = sc_fail_at(error, SC_CORRUPT, segment->path, offset, -1,
                              "whether the transaction was committed cannot be told: batches behind it are damaged");
    }
    pthread_mutex_unlock(&segment->mutex);
    return code;
}
