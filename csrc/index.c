/*
 * The `.index` file beside a segment: a hint. Losing or damaging it costs time, never data.
 *
 *      0  index_header, 64 bytes
 *     64  index_record, 32 bytes each, in any order and perhaps repeated: processes append them independently
 *
 * Every piece has a checksum of its own; what does not match is passed over.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"
#include "segment.h"

typedef struct index_header {
    uint8_t magic[8]; /* "SCINDEX1" */
    uint32_t crc;     /* CRC32C of the segment's name (sc_segment_name), then of the 52 bytes behind this field */
    uint32_t sealed;  /* bit 0: the summary below is final; bit 1: the segment has batches of transactions */
    int64_t base_offset, end_offset, size, count, min_timestamp, max_timestamp;
} index_header;
static_assert(sizeof(index_header) == 64, "the index header has 64 bytes");

typedef struct index_record {
    int64_t offset, position;
    int64_t reserved;
    uint32_t reserved_32;
    uint32_t crc; /* CRC32C of the 28 bytes before this field */
} index_record;
static_assert(sizeof(index_record) == 32, "an index record has 32 bytes");

enum { INDEX_SIZE_MAX = 64 << 20, INDEX_SEALED = 1, INDEX_TRANSACTIONAL = 2 };
static const uint8_t index_magic[8] = {'S', 'C', 'I', 'N', 'D', 'E', 'X', '1'};

static void index_path(const sc_segment *segment, char *path, size_t size, const char *ending)
{
    int stem = (int)(strlen(segment->path) - strlen(".arrows"));
    snprintf(path, size, "%.*s.index%s", stem, segment->path, ending);
}

static uint32_t header_crc(const sc_segment *segment, const index_header *header)
{
    const char *name = sc_segment_name(segment);
    return sc_crc32c(sc_crc32c(0, name, strlen(name)), (const uint8_t *)header + 12, sizeof *header - 12);
}

static uint32_t record_crc(const index_record *record)
{
    return sc_crc32c(0, record, offsetof(index_record, crc));
}

/* ---- loading ----------------------------------------------------------------------------------------------- */

static int by_position(const void *left, const void *right)
{
    int64_t a = ((const sc_index_entry *)left)->position, b = ((const sc_index_entry *)right)->position;
    return (a > b) - (a < b);
}

/* Sorts, and drops what repeats or contradicts what comes before it. */
static void tidy(sc_segment *segment)
{
    qsort(segment->entries, (size_t)segment->entry_count, sizeof *segment->entries, by_position);
    int64_t kept = 0;
    for (int64_t i = 0; i < segment->entry_count; i++) {
        const sc_index_entry *entry = &segment->entries[i];
        if (kept > 0 && (entry->position == segment->entries[kept - 1].position ||
                         entry->offset <= segment->entries[kept - 1].offset))
            continue;
        segment->entries[kept++] = *entry;
    }
    segment->entry_count = kept;
}

static void take_header(sc_segment *segment, const index_header *header)
{
    if (memcmp(header->magic, index_magic, sizeof index_magic) != 0 ||
        (header_crc(segment, header) != header->crc && !SC_CONTROL(index_of_another_believed)) ||
        header->base_offset != segment->base_offset ||
        (header->sealed & ~(uint32_t)INDEX_TRANSACTIONAL) != INDEX_SEALED)
        return;
    segment->has_summary = true;
    segment->summary =
        (sc_summary){header->end_offset,    header->size,          header->count,
                     header->min_timestamp, header->max_timestamp, (header->sealed & INDEX_TRANSACTIONAL) != 0};
}

static void take_records(sc_segment *segment, const index_record *records, int64_t count)
{
    sc_index_entry *grown =
        realloc(segment->entries, (size_t)(segment->entry_count + count) * sizeof *segment->entries);
    if (grown == NULL)
        return;
    segment->entries = grown;
    segment->entry_capacity = segment->entry_count + count;
    for (int64_t i = 0; i < count; i++) {
        const index_record *record = &records[i];
        if (record_crc(record) == record->crc && record->offset >= segment->base_offset && record->position > 0)
            segment->entries[segment->entry_count++] = (sc_index_entry){record->offset, record->position};
    }
    tidy(segment);
    segment->saved_entries = segment->entry_count;
}

void sc_index_load(sc_segment *segment)
{
    if (segment->index_loaded)
        return;
    segment->index_loaded = true;
    sc_segment_bind(
        segment); /* first: who replaces the file removes its index before, so no new file has the old index */
    char path[SC_PATH_MAX + 16];
    index_path(segment, path, sizeof path, "");
    int fd = sc_os.open(path, SC_OPEN_READ);
    if (fd < 0)
        return;
    sc_file_stat stat;
    if (sc_os.stat(fd, &stat) == 0 && stat.size >= (int64_t)sizeof(index_header) && stat.size <= INDEX_SIZE_MAX) {
        uint8_t *data = malloc((size_t)stat.size);
        if (data != NULL && sc_os_read_whole(fd, data, (size_t)stat.size, 0) == 0) {
            take_header(segment, (const index_header *)(const void *)data);
            take_records(segment, (const index_record *)(const void *)(data + sizeof(index_header)),
                         (stat.size - (int64_t)sizeof(index_header)) / (int64_t)sizeof(index_record));
        }
        free(data);
    }
    sc_os.close(fd);
}

/* ---- saving ------------------------------------------------------------------------------------------------ */

static index_header make_header(const sc_segment *segment, const sc_summary *summary)
{
    index_header header = {.base_offset = segment->base_offset};
    memcpy(header.magic, index_magic, sizeof index_magic);
    if (summary != NULL) {
        header.sealed = INDEX_SEALED | (summary->transactional ? INDEX_TRANSACTIONAL : 0);
        header.end_offset = summary->end_offset;
        header.size = summary->size;
        header.count = summary->count;
        header.min_timestamp = summary->min_timestamp;
        header.max_timestamp = summary->max_timestamp;
    }
    header.crc = header_crc(segment, &header);
    return header;
}

static index_record make_record(const sc_index_entry *entry)
{
    index_record record = {.offset = entry->offset, .position = entry->position};
    record.crc = record_crc(&record);
    return record;
}

static void append_records(int fd, const sc_segment *segment, int64_t from, int64_t to)
{
    sc_file_stat stat;
    if (sc_os.stat(fd, &stat) != 0)
        return;
    int64_t at = stat.size;
    if (at < (int64_t)sizeof(index_header)) {
        index_header header = make_header(segment, NULL);
        if (sc_os_write_whole(fd, &header, sizeof header, 0) != 0)
            return;
        at = sizeof header;
    }
    at -= (at - (int64_t)sizeof(index_header)) % (int64_t)sizeof(index_record);
    index_record records[128];
    while (from < to) {
        int64_t part = to - from < 128 ? to - from : 128;
        for (int64_t i = 0; i < part; i++)
            records[i] = make_record(&segment->entries[from + i]);
        if (sc_os_write_whole(fd, records, (size_t)part * sizeof *records, at) != 0)
            return;
        from += part;
        at += part * (int64_t)sizeof *records;
    }
}

void sc_index_save(sc_segment *segment, int64_t end_position)
{
    pthread_mutex_lock(&segment->mutex);
    sc_index_load(segment);
    int64_t to = segment->saved_entries;
    while (to < segment->entry_count && segment->entries[to].position < end_position)
        to++;
    if (to > segment->saved_entries) {
        char path[SC_PATH_MAX + 16];
        index_path(segment, path, sizeof path, "");
        int fd = sc_os.open(path, SC_OPEN_CREATE_OR_WRITE);
        if (fd >= 0) {
            append_records(fd, segment, segment->saved_entries, to);
            sc_os.close(fd);
        }
        segment->saved_entries = to;
    }
    pthread_mutex_unlock(&segment->mutex);
}

void sc_index_seal(sc_segment *segment, const sc_summary *summary)
{
    char path[SC_PATH_MAX + 16], temporary[SC_PATH_MAX + 16];
    index_path(segment, path, sizeof path, "");
    index_path(segment, temporary, sizeof temporary, ".tmp");
    pthread_mutex_lock(&segment->mutex);
    sc_index_load(segment);
    sc_os.unlink(temporary);
    int fd = sc_os.open(temporary, SC_OPEN_CREATE);
    if (fd >= 0) {
        index_header header = make_header(segment, summary);
        bool written = sc_os_write_whole(fd, &header, sizeof header, 0) == 0;
        if (written)
            append_records(fd, segment, 0, segment->entry_count);
        sc_os.close(fd);
        if (!written || sc_os.rename(temporary, path) != 0)
            sc_os.unlink(temporary);
    }
    segment->saved_entries = segment->entry_count;
    segment->has_summary = true;
    segment->summary = *summary;
    pthread_mutex_unlock(&segment->mutex);
}

int sc_index_remove(sc_segment *segment)
{
    char path[SC_PATH_MAX + 16];
    index_path(segment, path, sizeof path, "");
    pthread_mutex_lock(&segment->mutex);
    int result = sc_os.unlink(path) == 0 || errno == ENOENT ? 0 : -1, number = errno;
    segment->entry_count = segment->saved_entries = 0;
    segment->has_summary = false;
    segment->index_loaded = true;
    sc_segment_forget_aborted(segment);
    pthread_mutex_unlock(&segment->mutex);
    errno = number;
    return result;
}

/* ---- rebuilding -------------------------------------------------------------------------------------------- */

static int summarize_headers(sc_segment *segment, sc_mapping *mapping, int64_t end_offset, sc_summary *summary,
                             sc_error *error)
{
    int64_t position = segment->first_position, offset = segment->base_offset, unused = 0;
    *summary = (sc_summary){.size = position, .min_timestamp = INT64_MAX, .max_timestamp = INT64_MIN};
    while (offset < end_offset) {
        sc_look look = sc_segment_look(mapping, position, mapping->size, false, &unused);
        if (!sc_segment_goes_on(&look, offset, end_offset))
            return sc_segment_fail(segment, &look, offset, position, error);
        if (look.header.record_count > 0)
            sc_segment_note(segment, offset, position);
        summary->count += look.header.record_count;
        summary->transactional |= (look.header.flags & SC_FLAG_TRANSACTIONAL) != 0;
        if (look.header.record_count > 0 && look.header.min_timestamp < summary->min_timestamp)
            summary->min_timestamp = look.header.min_timestamp;
        if (look.header.record_count > 0 &&
            (look.header.max_timestamp > summary->max_timestamp || SC_CONTROL(wrong_time_bound)))
            summary->max_timestamp = look.header.max_timestamp;
        position += look.header.total_size;
        offset = look.header.last_offset + 1;
        if (look.header.record_count > 0 || (look.header.flags & SC_FLAG_CONTROL) != 0)
            summary->size = position;
    }
    summary->end_offset = offset;
    return SC_OK;
}

int sc_segment_summarize(sc_segment *segment, int64_t size, const sc_layout *layouts, uint32_t partition,
                         int64_t end_offset, bool writable, sc_summary *summary, sc_error *error)
{
    pthread_mutex_lock(&segment->mutex);
    sc_index_load(segment);
    bool known = segment->has_summary && segment->summary.end_offset == end_offset;
    *summary = segment->summary;
    pthread_mutex_unlock(&segment->mutex);
    if (known)
        return SC_OK;
    sc_mapping *mapping;
    int code = sc_segment_map(segment, size, layouts, partition, &mapping, error);
    if (code != SC_OK)
        return code;
    code = summarize_headers(segment, mapping, end_offset, summary, error);
    if (code == SC_OK && writable)
        sc_index_seal(segment, summary);
    sc_mapping_release(mapping);
    return code;
}
