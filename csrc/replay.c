/*
 * Replay: what the journal holds is written into the segments before anybody looks for the end of a log.
 *
 * A run of batches is written only where the file is what it was copied from, and lacks it at most:
 *
 *   - the segment is there: its name was synced before its first run, so one that is missing was deleted since
 *   - the batch before the run is there, with the checksum that the entry names
 *   - every byte at its place is that of the run, or zero, or behind the end of the file: space ahead of a log is zero
 *
 * A file that was replaced by another of its name fails one of these, and keeps what it has. All runs that pass are
 * written, also where the bytes are there already: they may be so in the page cache alone, and after a failed sync the
 * kernel takes them for clean. Then the segments are synced, and the journal is emptied.
 *
 * A record that does not match its checksum was being written when the power went, when no later one says that it had
 * been synced. Otherwise it was damaged: the file is set aside for whoever wants to look at it, and the store says so.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "control.h"
#include "error.h"
#include "journal.h"
#include "os.h"

enum { COMPARED_BYTES = 64 << 10 };

typedef struct replay {
    sc_journal *journal;
    int fd;
    sc_journal_header header;
    uint8_t *area;
    const sc_journal_record **records; /* in their order */
    int64_t count, capacity;
    char (*paths)[SC_PATH_MAX]; /* of segments that were written to */
    int64_t path_count, path_capacity;
    sc_error *error;
} replay;

/* ---- finding the records ------------------------------------------------------------------------------------- */

static int add_record(replay *self, const sc_journal_record *record)
{
    if (self->count == self->capacity) {
        int64_t capacity = self->capacity == 0 ? 64 : self->capacity * 2;
        void *grown = realloc((void *)self->records, (size_t)capacity * sizeof *self->records);
        if (grown == NULL)
            return sc_fail_memory(self->error);
        self->records = grown;
        self->capacity = capacity;
    }
    self->records[self->count++] = record;
    return SC_OK;
}

/* Every record of this salt that lies where its LSN says; sound ones are stepped over whole: what looks like a record
 * inside one is somebody's data. */
static int find_records(replay *self)
{
    int64_t size = self->header.area;
    int code = SC_OK;
    for (int64_t at = 0; code == SC_OK && at < size;) {
        const sc_journal_record *record = (const sc_journal_record *)(const void *)(self->area + at);
        if (sc_journal_record_is_sound(record, size - at, self->header.salt, self->header.start + at)) {
            code = add_record(self, record);
            at += record->size;
        } else {
            at += SC_JOURNAL_PAGE;
        }
    }
    return code;
}

/* The batches of an entry follow each other from its first offset to its end. */
static bool is_whole_run(const sc_journal_record *record, const sc_journal_entry *entry)
{
    const uint8_t *data = (const uint8_t *)record + entry->place;
    int64_t offset = entry->first_offset;
    for (int64_t at = 0; at < entry->size;) {
        sc_header header;
        const char *why;
        if (sc_batch_look(data + at, entry->size - at, &header, &why) != SC_BATCH_GOOD ||
            header.base_offset != offset || sc_batch_checksum(data + at, &header) != header.body_crc)
            return false;
        at += header.total_size;
        offset = header.last_offset + 1;
    }
    return offset == entry->end_offset;
}

static bool is_whole(const sc_journal_record *record)
{
    for (uint32_t i = 0; i < record->entry_count; i++)
        if (!is_whole_run(record, &sc_journal_entries(record)[i]))
            return false;
    return true;
}

static void note_damage(replay *self, int64_t lsn)
{
    sc_journal *journal = self->journal;
    if (journal->damaged)
        return;
    journal->damaged = true;
    sc_fail_at(&journal->damage, SC_CORRUPT, journal->path, -1,
               lsn < 0 ? 0 : SC_JOURNAL_AREA_AT + lsn - self->header.start,
               "the journal is damaged: durable appends may be missing at the ends of logs");
}

/* Drops what no checkpoint needs, and what is not whole; finds out whether anything is missing that had been synced. */
static void judge_records(replay *self)
{
    int64_t checkpointed = self->header.start, synced = 0, kept = 0;
    for (int64_t i = 0; i < self->count; i++) {
        checkpointed = self->records[i]->checkpointed > checkpointed ? self->records[i]->checkpointed : checkpointed;
        synced = self->records[i]->synced > synced ? self->records[i]->synced : synced;
    }
    int64_t expected = checkpointed;
    for (int64_t i = 0; i < self->count; i++) {
        const sc_journal_record *record = self->records[i];
        if (record->lsn < checkpointed)
            continue;
        bool whole = is_whole(record);
        if (record->lsn > expected && expected < synced)
            note_damage(self, expected);
        if (!whole && record->lsn < synced)
            note_damage(self, record->lsn);
        if (whole)
            self->records[kept++] = record;
        expected = record->lsn + record->size;
    }
    if (expected < synced)
        note_damage(self, expected);
    if (SC_CONTROL(replay_skips_last_record) && kept > 0)
        kept--;
    self->count = kept;
}

/* ---- writing them into the segments --------------------------------------------------------------------------- */

/* Whether the batch that the run follows is there. */
static int find_anchor(replay *self, int fd, const char *path, const sc_journal_entry *entry, bool *found)
{
    uint8_t opening[SC_OPENING_SIZE];
    uint32_t continuation, metadata_size;
    sc_header header;
    *found = false;
    if (sc_os_read_whole(fd, opening, sizeof opening, entry->anchor_position) != 0)
        return errno == 0 ? SC_OK : sc_fail_os(self->error, "cannot read a segment", path);
    memcpy(&continuation, opening, 4);
    memcpy(&metadata_size, opening + 4, 4);
    if (continuation != SC_CONTINUATION || metadata_size > INT32_MAX)
        return SC_OK;
    if (sc_os_read_whole(fd, &header, sizeof header, entry->anchor_position + SC_OPENING_SIZE + metadata_size) != 0)
        return errno == 0 ? SC_OK : sc_fail_os(self->error, "cannot read a segment", path);
    *found = sc_header_is_sound(&header) && header.header_crc == entry->anchor_crc &&
             entry->anchor_position + header.total_size == entry->position;
    return SC_OK;
}

/* Whether each byte of the file at the run's place is that of the run, or nothing. */
static int find_place(replay *self, int fd, const char *path, const sc_journal_entry *entry, const uint8_t *run,
                      bool *free_place)
{
    static _Thread_local uint8_t there[COMPARED_BYTES];
    sc_file_stat stat;
    *free_place = false;
    if (sc_os.stat(fd, &stat) != 0)
        return sc_fail_os(self->error, "cannot look at a segment", path);
    int64_t end = stat.size < entry->position + entry->size ? stat.size : entry->position + entry->size;
    for (int64_t at = entry->position; at < end;) {
        int64_t size = end - at < COMPARED_BYTES ? end - at : COMPARED_BYTES;
        if (sc_os_read_whole(fd, there, (size_t)size, at) != 0)
            return sc_fail_os(self->error, "cannot read a segment", path);
        for (int64_t i = 0; i < size; i++)
            if (there[i] != 0 && there[i] != run[at - entry->position + i])
                return SC_OK;
        at += size;
    }
    *free_place = true;
    return SC_OK;
}

static int add_path(replay *self, const char *path)
{
    if (self->path_count == self->path_capacity) {
        int64_t capacity = self->path_capacity == 0 ? 64 : self->path_capacity * 2;
        void *grown = realloc(self->paths, (size_t)capacity * sizeof *self->paths);
        if (grown == NULL)
            return sc_fail_memory(self->error);
        self->paths = grown;
        self->path_capacity = capacity;
    }
    snprintf(self->paths[self->path_count++], SC_PATH_MAX, "%s", path);
    return SC_OK;
}

static int write_run(replay *self, const sc_journal_record *record, const sc_journal_entry *entry)
{
    char path[SC_PATH_MAX];
    const uint8_t *run = (const uint8_t *)record + entry->place;
    if (!sc_journal_segment_path(self->journal, record->name, entry, path))
        return sc_fail(self->error, SC_INVALID, "the path of the store is too long");
    int fd = sc_os.open(path, SC_OPEN_WRITE);
    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR ? SC_OK : sc_fail_os(self->error, "cannot open a segment", path);
    bool fits;
    int code = find_anchor(self, fd, path, entry, &fits);
    if (code == SC_OK && (fits || SC_CONTROL(replay_without_anchor)))
        code = find_place(self, fd, path, entry, run, &fits);
    if (code == SC_OK && fits) {
        code = add_path(self, path);
        if (code == SC_OK && sc_os_write_whole(fd, run, (size_t)entry->size, entry->position) != 0)
            code = sc_fail_os(self->error, "cannot write to a segment", path);
    }
    sc_os.close(fd);
    return code;
}

static int by_path(const void *left, const void *right)
{
    return strcmp(left, right);
}

static int sync_paths(replay *self)
{
    int code = SC_OK;
    if (self->path_count > 0)
        qsort(self->paths, (size_t)self->path_count, sizeof *self->paths, by_path);
    for (int64_t i = 0; code == SC_OK && i < self->path_count; i++) {
        if (i > 0 && strcmp(self->paths[i], self->paths[i - 1]) == 0)
            continue;
        int fd = sc_os.open(self->paths[i], SC_OPEN_WRITE);
        if (fd < 0 || sc_os.sync_data(fd) != 0)
            code = sc_fail_os(self->error, "cannot sync a segment", self->paths[i]);
        if (fd >= 0)
            sc_os.close(fd);
    }
    return code;
}

/* ---- the file ------------------------------------------------------------------------------------------------- */

/* A damaged journal keeps its bytes under another name; the next use makes a new one. */
static int set_aside(replay *self)
{
    char aside[SC_PATH_MAX + 16];
    snprintf(aside, sizeof aside, "%s.damaged", self->journal->path);
    if (sc_os.rename(self->journal->path, aside) != 0 || sc_os_sync_folder(self->journal->folder) != 0)
        return sc_fail_os(self->error, "cannot set a damaged journal aside", self->journal->path);
    return SC_OK;
}

static int read_area(replay *self)
{
    const char *path = self->journal->path;
    sc_file_stat stat;
    if (sc_os.stat(self->fd, &stat) != 0)
        return sc_fail_os(self->error, "cannot look at the journal", path);
    if (stat.size < SC_JOURNAL_AREA_AT + self->header.area)
        return SC_END;
    self->area = aligned_alloc(SC_ALIGNMENT, (size_t)self->header.area);
    if (self->area == NULL)
        return sc_fail_memory(self->error);
    return sc_os_read_whole(self->fd, self->area, (size_t)self->header.area, SC_JOURNAL_AREA_AT) == 0
               ? SC_OK
               : sc_fail_os(self->error, "cannot read the journal", path);
}

/* Since the journal was last emptied nothing was written: not even the place of the first record changed. */
static int is_empty(replay *self, bool *empty)
{
    uint8_t first[512];
    const sc_journal_header *header = &self->header;
    *empty = false;
    if (sc_os_read_whole(self->fd, first, sizeof first, SC_JOURNAL_AREA_AT) != 0)
        return errno == 0 ? SC_OK : sc_fail_os(self->error, "cannot read the journal", self->journal->path);
    *empty = sc_crc32c(0, first, sizeof first) == header->first_crc;
    return SC_OK;
}

static int replay_records(replay *self)
{
    int code = find_records(self);
    if (code != SC_OK)
        return code;
    judge_records(self);
    for (int64_t i = 0; code == SC_OK && i < self->count; i++)
        for (uint32_t k = 0; code == SC_OK && k < self->records[i]->entry_count; k++)
            code = write_run(self, self->records[i], &sc_journal_entries(self->records[i])[k]);
    if (code == SC_OK && !SC_CONTROL(replay_not_synced))
        code = sync_paths(self);
    if (code != SC_OK)
        return code;
    if (self->journal->damaged)
        return set_aside(self);
    self->header.generation++;
    self->header.start += self->header.area;
    return sc_journal_write_header(self->fd, self->journal->path, &self->header, self->error);
}

static int replay_file(replay *self)
{
    bool empty = false;
    int code = sc_journal_header_read(self->fd, self->journal->path, &self->header, self->error);
    if (code == SC_OK)
        code = is_empty(self, &empty);
    if (code != SC_OK && code != SC_END)
        return code;
    if (empty)
        return SC_OK;
    if (code == SC_OK)
        code = read_area(self);
    if (code == SC_END) {
        note_damage(self, -1);
        return set_aside(self);
    }
    return code == SC_OK ? replay_records(self) : code;
}

int sc_journal_replay(sc_journal *journal, sc_error *error)
{
    replay self = {.journal = journal, .error = error};
    self.fd = sc_os.open(journal->path, SC_OPEN_WRITE);
    if (self.fd < 0)
        return errno == ENOENT ? SC_OK : sc_fail_os(error, "cannot open the journal", journal->path);
    int code = replay_file(&self);
    sc_os.close(self.fd);
    free(self.area);
    free((void *)self.records);
    free(self.paths);
    return code;
}

/* ---- readers, before anybody has replayed --------------------------------------------------------------------------
 */

static int keep_runs(replay *self, const char *name, sc_run ***last)
{
    for (int64_t i = 0; i < self->count; i++) {
        const sc_journal_record *record = self->records[i];
        for (uint32_t k = 0; strcmp(record->name, name) == 0 && k < record->entry_count; k++) {
            const sc_journal_entry *entry = &sc_journal_entries(record)[k];
            sc_run *run = malloc(sizeof *run + (size_t)entry->size);
            if (run == NULL)
                return sc_fail_memory(self->error);
            run->next = NULL;
            run->entry = *entry;
            memcpy(run->data, (const uint8_t *)record + entry->place, (size_t)entry->size);
            **last = run;
            *last = &run->next;
        }
    }
    return SC_OK;
}

/* Some writer has the store open, and has replayed. */
static bool is_live(const char *folder)
{
    char path[SC_PATH_MAX];
    if (snprintf(path, sizeof path, "%s/journal-state", folder) >= (int)sizeof path)
        return false;
    int fd = sc_os.open(path, SC_OPEN_READ);
    bool live = fd >= 0 && sc_os.is_locked(fd, SC_JOURNAL_LIVE) == SC_LOCK_SHARED;
    if (fd >= 0)
        sc_os.close(fd);
    return live;
}

static int read_runs(replay *self, const char *name, sc_run **runs)
{
    bool empty = false;
    sc_run **last = runs;
    int code = sc_journal_header_read(self->fd, self->journal->path, &self->header, self->error);
    if (code == SC_OK)
        code = is_empty(self, &empty);
    if (code == SC_OK && !empty)
        code = read_area(self);
    if (code == SC_OK && !empty)
        code = find_records(self);
    if (code == SC_END || empty)
        return SC_OK; /* who opens the store for writing will say that it is damaged */
    if (code != SC_OK)
        return code;
    judge_records(self);
    return keep_runs(self, name, &last);
}

int sc_journal_read_runs(const char *folder, const char *name, sc_run **runs, sc_error *error)
{
    *runs = NULL;
    if (is_live(folder))
        return SC_OK;
    sc_journal *journal = calloc(1, sizeof *journal); /* for the names of its files */
    if (journal == NULL)
        return sc_fail_memory(error);
    replay self = {.journal = journal, .error = error};
    int code = SC_OK;
    if (snprintf(journal->path, sizeof journal->path, "%s/journal", folder) >= (int)sizeof journal->path)
        code = sc_fail(error, SC_INVALID, "the path of the store is too long");
    self.fd = code == SC_OK ? sc_os.open(journal->path, SC_OPEN_READ) : -1;
    if (code == SC_OK && self.fd < 0 && errno != ENOENT)
        code = sc_fail_os(error, "cannot open the journal", journal->path);
    if (self.fd >= 0) {
        code = read_runs(&self, name, runs);
        sc_os.close(self.fd);
    }
    free(self.area);
    free((void *)self.records);
    free(journal);
    if (code != SC_OK) {
        sc_runs_free(*runs);
        *runs = NULL;
    }
    return code;
}

void sc_runs_free(sc_run *runs)
{
    for (sc_run *next; runs != NULL; runs = next) {
        next = runs->next;
        free(runs);
    }
}

static bool is_run_of(const sc_run *run, uint32_t partition, int64_t base_offset)
{
    return run->entry.partition == partition && run->entry.base_offset == base_offset;
}

int64_t sc_runs_end(const sc_run *runs, uint32_t partition, int64_t base_offset, int64_t file_size)
{
    int64_t reached = file_size;
    bool any = false;
    for (; runs != NULL; runs = runs->next) {
        if (!is_run_of(runs, partition, base_offset) || runs->entry.position > reached)
            continue; /* it follows a batch that ends where it begins: that cannot lie there */
        any = true;
        if (runs->entry.position + runs->entry.size > reached)
            reached = runs->entry.position + runs->entry.size;
    }
    return any ? reached : 0;
}

static bool fits(const sc_run *run, const uint8_t *data)
{
    const sc_journal_entry *entry = &run->entry;
    sc_header header;
    const char *why;
    if (sc_batch_look(data + entry->anchor_position, entry->position - entry->anchor_position, &header, &why) !=
            SC_BATCH_GOOD ||
        header.header_crc != entry->anchor_crc || entry->anchor_position + header.total_size != entry->position)
        return false;
    for (int64_t i = 0; i < entry->size; i++)
        if (data[entry->position + i] != 0 && data[entry->position + i] != run->data[i])
            return false;
    return true;
}

void sc_runs_store(const sc_run *runs, uint32_t partition, int64_t base_offset, uint8_t *data, int64_t size)
{
    for (; runs != NULL; runs = runs->next)
        if (is_run_of(runs, partition, base_offset) && runs->entry.position + runs->entry.size <= size &&
            fits(runs, data))
            memcpy(data + runs->entry.position, runs->data, (size_t)runs->entry.size);
}
