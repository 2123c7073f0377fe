#include "journal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"
#include "state.h"

enum { ZEROS = 1 << 20, SPACE_TRIES = 8 };
#define COUNT_MAX (INT64_MAX / 2) /* of what only grows: no journal comes near, and nothing overflows */
static const uint8_t header_magic[8] = {'S', 'C', 'J', 'R', 'N', 'L', '0', '1'};
static const uint8_t record_magic[8] = {'S', 'C', 'J', 'R', 'E', 'C', '0', '1'};
static const uint8_t shared_magic[8] = {'S', 'C', 'J', 'S', 'T', 'A', 'T', '1'};

/* ---- headers and records ------------------------------------------------------------------------------------- */

void sc_journal_header_seal(sc_journal_header *header)
{
    memcpy(header->magic, header_magic, sizeof header_magic);
    header->version = SC_JOURNAL_VERSION;
    header->crc = sc_crc32c(0, &header->version, sizeof *header - offsetof(sc_journal_header, version));
}

static bool is_sound_header(const sc_journal_header *header, int copy)
{
    return memcmp(header->magic, header_magic, sizeof header_magic) == 0 && header->generation >= 0 &&
           header->generation % 2 == copy &&
           header->crc == sc_crc32c(0, &header->version, sizeof *header - offsetof(sc_journal_header, version));
}

int sc_journal_header_read(int fd, const char *path, sc_journal_header *header, sc_error *error)
{
    bool found = false;
    for (int copy = 0; copy < 2; copy++) {
        sc_journal_header read;
        if (sc_os_read_whole(fd, &read, sizeof read, (int64_t)copy * SC_JOURNAL_PAGE) != 0) {
            if (errno != 0)
                return sc_fail_os(error, "cannot read the journal", path);
            continue; /* the file is shorter than that */
        }
        if (!is_sound_header(&read, copy) || (found && read.generation < header->generation))
            continue;
        *header = read;
        found = true;
    }
    if (!found)
        return SC_END;
    if (header->version != SC_JOURNAL_VERSION)
        return sc_fail_at(error, SC_FORMAT, path, -1, 0,
                          "the journal has a version that this streamcore does not know");
    if (header->area < SC_JOURNAL_PAGE || header->area % SC_JOURNAL_PAGE != 0 || header->area > (1 << 30) ||
        header->start < header->area || header->start % header->area != 0 || header->start > COUNT_MAX ||
        header->generation > COUNT_MAX)
        return SC_END;
    return SC_OK;
}

uint32_t sc_journal_record_crc(const sc_journal_record *record)
{
    size_t from = offsetof(sc_journal_record, entry_count);
    return sc_crc32c(0, &record->entry_count, sizeof *record - from + record->entry_count * sizeof(sc_journal_entry));
}

static bool entries_make_sense(const sc_journal_record *record)
{
    const sc_journal_entry *entries = sc_journal_entries(record);
    int64_t place = (int64_t)(sizeof *record + record->entry_count * sizeof *entries);
    for (uint32_t i = 0; i < record->entry_count; i++) {
        const sc_journal_entry *entry = &entries[i];
        if (entry->place < place || entry->size <= 0 || entry->size > record->size - entry->place ||
            entry->place % SC_ALIGNMENT != 0 || entry->size % SC_ALIGNMENT != 0 || entry->position <= 0 ||
            entry->position % SC_ALIGNMENT != 0 || entry->position > INT64_MAX - entry->size ||
            entry->base_offset < 0 || entry->anchor_position <= 0 || entry->anchor_position >= entry->position ||
            entry->first_offset < entry->base_offset || entry->end_offset < entry->first_offset)
            return false;
        place = entry->place + entry->size;
    }
    return true;
}

/* Of one below the store's topics: it leads nowhere else. A topic's name may begin with a dot. */
static bool is_name_of_folder(const char *name)
{
    return name[0] != 0 && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strchr(name, '/') == NULL;
}

bool sc_journal_record_is_sound(const sc_journal_record *record, int64_t available, uint64_t salt, int64_t lsn)
{
    if (memcmp(record->magic, record_magic, sizeof record_magic) != 0 || record->salt != salt ||
        record->size < SC_JOURNAL_PAGE || record->size % SC_JOURNAL_PAGE != 0 || record->size > available ||
        record->lsn != lsn)
        return false;
    if (record->entry_count == 0 || record->entry_count > SC_JOURNAL_ENTRIES_MAX ||
        (int64_t)(sizeof *record + record->entry_count * sizeof(sc_journal_entry)) > record->size)
        return false;
    return record->crc == sc_journal_record_crc(record) && memchr(record->name, 0, sizeof record->name) != NULL &&
           is_name_of_folder(record->name) && entries_make_sense(record);
}

bool sc_journal_segment_path(const sc_journal *journal, const char *name, const sc_journal_entry *entry,
                             char path[SC_PATH_MAX])
{
    return snprintf(path, SC_PATH_MAX, "%s/topics/%s/%u/%020lld.arrows", journal->folder, name,
                    (unsigned)entry->partition, (long long)entry->base_offset) < SC_PATH_MAX;
}

/* ---- locks --------------------------------------------------------------------------------------------------- */

static pthread_mutex_t *mutex_of(sc_journal *journal, int number)
{
    return number == SC_JOURNAL_WRITE        ? &journal->write_mutex
           : number == SC_JOURNAL_SYNC       ? &journal->sync_mutex
           : number == SC_JOURNAL_CHECKPOINT ? &journal->checkpoint_mutex
                                             : NULL;
}

int sc_journal_lock(sc_journal *journal, int number, sc_error *error)
{
    pthread_mutex_t *mutex = mutex_of(journal, number);
    pthread_mutex_lock(mutex);
    if (sc_os.lock(journal->state_fd, number, SC_LOCK_EXCLUSIVE, true) == 0)
        return SC_OK;
    pthread_mutex_unlock(mutex);
    return sc_fail_os(error, "cannot lock the journal", journal->state_path);
}

void sc_journal_unlock(sc_journal *journal, int number)
{
    int result = sc_os.lock(journal->state_fd, number, SC_LOCK_NONE, false);
    assert(result == 0);
    (void)result;
    pthread_mutex_unlock(mutex_of(journal, number));
}

/* ---- the file ------------------------------------------------------------------------------------------------ */

int sc_journal_write_header(int fd, const char *path, sc_journal_header *header, sc_error *error)
{
    uint8_t first[512] = {0};
    if (sc_os_read_whole(fd, first, sizeof first, SC_JOURNAL_AREA_AT) != 0)
        return sc_fail_os(error, "cannot read the journal", path);
    header->first_crc = sc_crc32c(0, first, sizeof first);
    header->salt = sc_os_random();
    sc_journal_header_seal(header);
    if (sc_os_write_whole(fd, header, sizeof *header, header->generation % 2 * SC_JOURNAL_PAGE) != 0)
        return sc_fail_os(error, "cannot write the journal", path);
    return sc_os.sync_data(fd) == 0 ? SC_OK : sc_fail_os(error, "cannot sync the journal", path);
}

/* Zeros are written, not only reserved: later syncs then write data and no metadata. */
static int fill_with_zeros(int fd, int64_t size)
{
    uint8_t *zeros = calloc(1, ZEROS);
    int result = zeros == NULL ? -1 : sc_os.allocate(fd, 0, size);
    for (int64_t at = 0; result == 0 && at < size; at += ZEROS)
        result = sc_os_write_whole(fd, zeros, (size_t)(size - at < ZEROS ? size - at : ZEROS), at);
    free(zeros);
    return result;
}

static int make_file(sc_journal *journal, sc_error *error)
{
    char temporary[SC_PATH_MAX + 8];
    snprintf(temporary, sizeof temporary, "%s.tmp", journal->path);
    (void)sc_os.unlink(temporary);
    int fd = sc_os.open(temporary, SC_OPEN_CREATE);
    sc_journal_header header = {
        .generation = 0, .area = atomic_load(&journal->area), .start = atomic_load(&journal->area)};
    int code = SC_OK;
    if (fd < 0 || fill_with_zeros(fd, SC_JOURNAL_AREA_AT + atomic_load(&journal->area)) != 0)
        code = sc_fail_os(error, "cannot make the journal", temporary);
    if (code == SC_OK)
        code = sc_journal_write_header(fd, temporary, &header, error);
    if (code == SC_OK && (sc_os.sync(fd) != 0 || sc_os.rename(temporary, journal->path) != 0 ||
                          (!SC_CONTROL(journal_name_not_synced) && sc_os_sync_folder(journal->folder) != 0)))
        code = sc_fail_os(error, "cannot make the journal", journal->path);
    if (fd >= 0)
        sc_os.close(fd);
    if (code != SC_OK)
        (void)sc_os.unlink(temporary);
    return code;
}

/* Takes from the file what counts now, when the process that emptied it may have died before it said so. The caller
 * holds the lock for writing. */
static int adopt(sc_journal *journal, int fd, sc_error *error)
{
    sc_journal_header header;
    int code = sc_journal_header_read(fd, journal->path, &header, error);
    if (code == SC_END)
        return sc_fail_at(error, SC_CORRUPT, journal->path, -1, 0, "the journal's header does not match its checksum");
    if (code != SC_OK)
        return code;
    sc_journal_shared *shared = journal->shared;
    if (atomic_load(&shared->head) == 0 || header.generation != atomic_load(&shared->generation)) {
        atomic_store(&shared->salt, header.salt);
        atomic_store(&shared->generation, header.generation);
        atomic_store(&shared->start, header.start);
        atomic_store(&shared->checkpointed, header.start);
        atomic_store(&shared->synced, header.start);
        atomic_store(&shared->head, header.start);
    }
    atomic_store(&shared->emptying, 0);
    atomic_store(&journal->area, header.area);
    return SC_OK;
}

/* The descriptor of the file, which is made when absent. The caller holds the lock for writing. */
static int open_file(sc_journal *journal, sc_error *error)
{
    int fd = atomic_load(&journal->fd), code = SC_OK;
    bool known = fd >= 0;
    if (!known) {
        fd = sc_os.open(journal->path, SC_OPEN_WRITE);
        if (fd < 0 && errno == ENOENT) {
            code = make_file(journal, error);
            fd = code == SC_OK ? sc_os.open(journal->path, SC_OPEN_WRITE) : -1;
        }
        if (code == SC_OK && fd < 0)
            code = sc_fail_os(error, "cannot open the journal", journal->path);
    }
    if (code == SC_OK && (!known || atomic_load(&journal->shared->emptying) != 0))
        code = adopt(journal, fd, error);
    if (code == SC_OK)
        atomic_store(&journal->fd, fd);
    else if (fd >= 0 && !known)
        sc_os.close(fd);
    return code;
}

/* ---- opening and closing ------------------------------------------------------------------------------------- */

static int map_shared(sc_journal *journal, sc_error *error)
{
    int fd = sc_os.open(journal->state_path, SC_OPEN_WRITE); /* of its own, as state.c says */
    if (fd < 0)
        return sc_fail_os(error, "cannot open the state of the journal", journal->state_path);
    int code = sc_os.allocate(fd, 0, SC_JOURNAL_PAGE) == 0
                   ? SC_OK
                   : sc_fail_os(error, "cannot make room for the state of the journal", journal->state_path);
    if (code == SC_OK && (journal->shared = sc_os.map(fd, SC_JOURNAL_PAGE, true)) == NULL)
        code = sc_fail_os(error, "cannot map the state of the journal", journal->state_path);
    sc_os.close(fd);
    return code;
}

static int lock_byte(sc_journal *journal, int64_t byte, int kind, sc_error *error)
{
    return sc_os.lock(journal->state_fd, byte, kind, true) == 0
               ? SC_OK
               : sc_fail_os(error, "cannot lock the journal", journal->state_path);
}

/* Under the lock for opening: the first one replays what an earlier session left. */
static int join(sc_journal *journal, sc_error *error)
{
    bool alone = sc_os.lock(journal->state_fd, SC_JOURNAL_LIVE, SC_LOCK_EXCLUSIVE, false) == 0;
    if (!alone && errno != EAGAIN && errno != EACCES)
        return sc_fail_os(error, "cannot lock the journal", journal->state_path);
    int code = SC_OK;
    if (alone) {
        memset((void *)journal->shared, 0, sizeof *journal->shared);
        memcpy(journal->shared->magic, shared_magic, sizeof shared_magic);
        code = sc_journal_replay(journal, error);
    }
    return code == SC_OK ? lock_byte(journal, SC_JOURNAL_LIVE, SC_LOCK_SHARED, error) : code;
}

static int open_state(sc_journal *journal, sc_error *error)
{
    journal->state_fd = sc_os.open(journal->state_path, SC_OPEN_CREATE_OR_WRITE);
    if (journal->state_fd < 0)
        return sc_fail_os(error, "cannot open the state of the journal", journal->state_path);
    int code = map_shared(journal, error);
    if (code == SC_OK && !(journal->guarded = sc_os_guard_descriptor(journal->state_fd)))
        code = sc_fail(error, SC_INVALID, "too many stores are open in one process");
    if (code == SC_OK)
        code = lock_byte(journal, SC_JOURNAL_OPENING, SC_LOCK_EXCLUSIVE, error);
    if (code == SC_OK)
        code = join(journal, error);
    if (code == SC_OK)
        code = lock_byte(journal, SC_JOURNAL_OPENING, SC_LOCK_NONE, error);
    return code; /* after a failure the descriptor is closed, and its locks are gone */
}

static void close_state(sc_journal *journal)
{
    bool forked = journal->fork_generation != sc_os_fork_generation();
    int fd = atomic_exchange(&journal->fd, -1);
    if (fd >= 0)
        sc_os.close(fd);
    if (journal->direct_fd >= 0)
        sc_os.close(journal->direct_fd);
    journal->direct_fd = -1;
    if (journal->state_fd >= 0 && !(forked && journal->guarded)) { /* a forked child has closed what was guarded */
        if (journal->guarded)
            sc_os_unguard_descriptor(journal->state_fd);
        sc_os.close(journal->state_fd);
    }
    journal->state_fd = -1;
}

int sc_journal_open(const char *folder, int64_t area, sc_journal **out, sc_error *error)
{
    sc_journal *journal = calloc(1, sizeof *journal);
    if (journal == NULL)
        return sc_fail_memory(error);
    atomic_init(&journal->area, area == 0 ? SC_JOURNAL_AREA : sc_journal_page_ceiling(area));
    journal->state_fd = journal->direct_fd = -1;
    atomic_init(&journal->fd, -1);
    atomic_init(&journal->references, 1);
    journal->fork_generation = sc_os_fork_generation();
    sc_os_boot_id(journal->boot_id);
    pthread_mutex_init(&journal->write_mutex, NULL);
    pthread_mutex_init(&journal->sync_mutex, NULL);
    pthread_mutex_init(&journal->checkpoint_mutex, NULL);
    pthread_mutex_init(&journal->group_mutex, NULL);
    int code = SC_OK;
    if (snprintf(journal->folder, sizeof journal->folder, "%s", folder) >= (int)sizeof journal->folder - 64)
        code = sc_fail(error, SC_INVALID, "the path of the store is longer than %d bytes", SC_PATH_MAX - 64);
    if (code == SC_OK) {
        snprintf(journal->path, sizeof journal->path, "%.*s/journal", SC_PATH_MAX - 64, folder);
        snprintf(journal->state_path, sizeof journal->state_path, "%.*s/journal-state", SC_PATH_MAX - 64, folder);
        code = open_state(journal, error);
    }
    if (code != SC_OK) {
        close_state(journal);
        journal->closed = true;
        sc_journal_release(journal);
        return code;
    }
    *out = journal;
    return SC_OK;
}

void sc_journal_retain(sc_journal *journal)
{
    atomic_fetch_add(&journal->references, 1);
}

int sc_journal_close(sc_journal *journal, sc_error *error)
{
    if (journal->closed)
        return SC_OK;
    int code = SC_OK;
    sc_journal_shared *shared = journal->shared;
    if (journal->fork_generation == sc_os_fork_generation() && sc_journal_is_usable(journal) &&
        sc_os.lock(journal->state_fd, SC_JOURNAL_OPENING, SC_LOCK_EXCLUSIVE, false) == 0 &&
        sc_os.lock(journal->state_fd, SC_JOURNAL_LIVE, SC_LOCK_EXCLUSIVE, false) == 0 && /* we are the last one */
        atomic_load(&shared->head) > 0)
        code = sc_journal_empty(journal, error);
    journal->closed = true;
    close_state(journal);
    return code;
}

void sc_journal_release(sc_journal *journal)
{
    if (journal == NULL || atomic_fetch_sub(&journal->references, 1) != 1)
        return;
    if (!journal->closed) /* as a process that dies: what the file holds is replayed by the next one */
        close_state(journal);
    if (journal->shared != NULL)
        sc_os.unmap((void *)journal->shared, SC_JOURNAL_PAGE);
    sc_journal_scratch *scratch = atomic_load(&journal->scratch);
    if (scratch != NULL)
        free(scratch->data);
    free(scratch);
    pthread_mutex_destroy(&journal->write_mutex);
    pthread_mutex_destroy(&journal->sync_mutex);
    pthread_mutex_destroy(&journal->checkpoint_mutex);
    pthread_mutex_destroy(&journal->group_mutex);
    free(journal);
}

bool sc_journal_damage(const sc_journal *journal, sc_error *damage)
{
    if (journal->damaged)
        *damage = journal->damage;
    return journal->damaged;
}

bool sc_journal_is_usable(const sc_journal *journal)
{
    return !journal->closed && atomic_load(&journal->shared->failed) == 0;
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

static void fail_for_all(sc_journal *journal, int number)
{
    int none = 0;
    atomic_compare_exchange_strong(&journal->shared->failed, &none, number == 0 ? EIO : number);
}

/* Fills in what depends on the place. Returns the LSN behind the last record. */
static int64_t place_records(sc_journal *journal, uint8_t *records, int64_t size, int64_t lsn)
{
    sc_journal_shared *shared = journal->shared;
    for (int64_t at = 0; at < size;) {
        sc_journal_record *record = (sc_journal_record *)(void *)(records + at);
        memcpy(record->magic, record_magic, sizeof record_magic);
        record->lsn = lsn + at;
        record->synced = atomic_load(&shared->synced);
        record->checkpointed = atomic_load(&shared->checkpointed);
        record->salt = atomic_load(&shared->salt);
        memcpy(record->boot_id, journal->boot_id, sizeof record->boot_id);
        record->crc = sc_journal_record_crc(record);
        at += record->size;
    }
    return lsn + size;
}

/* Past the page cache: that saves a copy and the search for dirty pages, a third of the time for a hundred partitions.
 */
static int write_records(sc_journal *journal, const uint8_t *records, int64_t size, int64_t position)
{
    if (journal->direct_fd < 0 && !journal->no_direct)
        journal->direct_fd = sc_os.open(journal->path, SC_OPEN_DIRECT);
    if (journal->direct_fd >= 0 && sc_os_write_whole(journal->direct_fd, records, (size_t)size, position) == 0)
        return 0;
    if (journal->direct_fd >= 0 && errno != EINVAL)
        return -1;
    if (journal->direct_fd >= 0)
        sc_os.close(journal->direct_fd);
    journal->direct_fd = -1;
    journal->no_direct = true;
    return sc_os_write_whole(atomic_load(&journal->fd), records, (size_t)size, position);
}

/* *full: there is no room until the journal is emptied. */
static int write_locked(sc_journal *journal, uint8_t *records, int64_t size, bool *full, int64_t *end, sc_error *error)
{
    sc_journal_shared *shared = journal->shared;
    *full = false;
    int code = open_file(journal, error);
    if (code != SC_OK)
        return code;
    int64_t start = atomic_load(&shared->start), lsn = atomic_load(&shared->head);
    if (size > atomic_load(&journal->area) / 2)
        return SC_END;
    *full = lsn + size > start + atomic_load(&journal->area);
    if (*full)
        return SC_OK;
    *end = place_records(journal, records, size, lsn);
    if (write_records(journal, records, size, SC_JOURNAL_AREA_AT + lsn - start) != 0) {
        code = sc_fail_os(error, "cannot write to the journal", journal->path);
        fail_for_all(journal, error->number);
        return code;
    }
    atomic_store(&shared->head, *end);
    return SC_OK;
}

int sc_journal_write(sc_journal *journal, uint8_t *records, int64_t size, int64_t *end, sc_error *error)
{
    for (int tries = 0; tries < SPACE_TRIES; tries++) {
        bool full = false;
        if (!sc_journal_is_usable(journal) || sc_journal_lock(journal, SC_JOURNAL_WRITE, error) != SC_OK)
            return SC_END;
        int code = sc_journal_is_usable(journal) ? write_locked(journal, records, size, &full, end, error) : SC_END;
        sc_journal_unlock(journal, SC_JOURNAL_WRITE);
        if (code != SC_OK)
            return SC_END; /* nothing was promised: each partition can be synced by itself */
        if (!full)
            return SC_OK;
        if (sc_journal_empty(journal, error) != SC_OK)
            return SC_END;
    }
    return SC_END;
}

int sc_journal_sync(sc_journal *journal, int64_t end, sc_error *error)
{
    sc_journal_shared *shared = journal->shared;
    int code = sc_journal_lock(journal, SC_JOURNAL_SYNC, error);
    if (code != SC_OK)
        return code;
    int failed = atomic_load(&shared->failed);
    if (failed != 0) {
        errno = failed;
        code = sc_fail_os(error, "an earlier sync of the journal failed", journal->path);
    } else if (atomic_load(&shared->synced) < end) {
        int64_t head = atomic_load(&shared->head); /* before the sync: what is written meanwhile may not be in it */
        int fd = atomic_load(&journal->fd);
        if (SC_CONTROL(journal_not_synced) || sc_os.sync_data(fd) == 0) {
            atomic_store(&shared->synced, head);
        } else {
            code = sc_fail_os(error, "cannot sync the journal", journal->path);
            if (!SC_CONTROL(failed_journal_sync_retried))
                fail_for_all(journal, error->number);
        }
    }
    sc_journal_unlock(journal, SC_JOURNAL_SYNC);
    return code;
}

bool sc_journal_is_filling(const sc_journal *journal)
{
    const sc_journal_shared *shared = journal->shared;
    return atomic_load(&shared->head) - atomic_load(&shared->checkpointed) > atomic_load(&journal->area) / 2;
}

/* ---- checkpoints --------------------------------------------------------------------------------------------- */

/* Segments that records name. */
typedef struct segment_set {
    struct named_segment {
        char name[SC_JOURNAL_NAME_MAX];
        sc_journal_entry entry;
    } *items;
    int64_t count, capacity;
} segment_set;

static int by_segment(const void *left, const void *right)
{
    const struct named_segment *a = left, *b = right;
    int order = strcmp(a->name, b->name);
    if (order == 0)
        order = (a->entry.partition > b->entry.partition) - (a->entry.partition < b->entry.partition);
    return order != 0 ? order
                      : (a->entry.base_offset > b->entry.base_offset) - (a->entry.base_offset < b->entry.base_offset);
}

static void remove_doubles(segment_set *set)
{
    int64_t kept = 0;
    if (set->count > 0)
        qsort(set->items, (size_t)set->count, sizeof *set->items, by_segment);
    for (int64_t i = 0; i < set->count; i++)
        if (kept == 0 || by_segment(&set->items[kept - 1], &set->items[i]) != 0)
            set->items[kept++] = set->items[i];
    set->count = kept;
}

static int add_segments(segment_set *set, const sc_journal_record *record, sc_error *error)
{
    if (set->count + record->entry_count > set->capacity)
        remove_doubles(set);
    if (set->count + record->entry_count > set->capacity) {
        int64_t capacity = (set->count + record->entry_count) * 2;
        struct named_segment *grown = realloc(set->items, (size_t)capacity * sizeof *grown);
        if (grown == NULL)
            return sc_fail_memory(error);
        set->items = grown;
        set->capacity = capacity;
    }
    for (uint32_t i = 0; i < record->entry_count; i++) {
        struct named_segment *item = &set->items[set->count++];
        memcpy(item->name, record->name, sizeof item->name);
        item->entry = sc_journal_entries(record)[i];
    }
    return SC_OK;
}

/* A record's header and entries, from the file. *record: memory that grows. */
static int read_record(sc_journal *journal, int64_t lsn, sc_journal_record **record, sc_error *error)
{
    sc_journal_record head;
    int64_t at = lsn - atomic_load(&journal->shared->start), left = atomic_load(&journal->area) - at,
            position = SC_JOURNAL_AREA_AT + at;
    int fd = atomic_load(&journal->fd);
    if (sc_os_read_whole(fd, &head, sizeof head, position) != 0)
        return sc_fail_os(error, "cannot read the journal", journal->path);
    if (memcmp(head.magic, record_magic, sizeof record_magic) != 0 || head.lsn != lsn ||
        head.entry_count > SC_JOURNAL_ENTRIES_MAX)
        return SC_END;
    size_t size = sizeof head + head.entry_count * sizeof(sc_journal_entry);
    sc_journal_record *grown = (int64_t)size > left ? NULL : realloc(*record, size);
    if (grown == NULL)
        return (int64_t)size > left ? SC_END : sc_fail_memory(error);
    *record = grown;
    if (sc_os_read_whole(fd, grown, size, position) != 0)
        return sc_fail_os(error, "cannot read the journal", journal->path);
    return sc_journal_record_is_sound(grown, left, atomic_load(&journal->shared->salt), lsn) ? SC_OK : SC_END;
}

static int list_segments(sc_journal *journal, int64_t from, int64_t to, segment_set *set, sc_error *error)
{
    sc_journal_record *record = NULL;
    int code = SC_OK;
    for (int64_t lsn = from; code == SC_OK && lsn < to;) {
        code = read_record(journal, lsn, &record, error);
        if (code == SC_END)
            code = sc_fail_at(error, SC_CORRUPT, journal->path, -1,
                              SC_JOURNAL_AREA_AT + lsn - atomic_load(&journal->shared->start),
                              "a record of the journal does not match its checksum");
        if (code == SC_OK)
            code = add_segments(set, record, error);
        if (code == SC_OK)
            lsn += record->size;
    }
    free(record);
    remove_doubles(set);
    return code;
}

static int sync_segment(sc_journal *journal, const struct named_segment *item, sc_error *error)
{
    char path[SC_PATH_MAX], folder[SC_PATH_MAX];
    if (!sc_journal_segment_path(journal, item->name, &item->entry, path))
        return sc_fail(error, SC_INVALID, "the path of the store is too long");
    int fd = sc_os.open(path, SC_OPEN_WRITE);
    if (fd < 0)
        return errno == ENOENT ? SC_OK /* deleted since, with its topic or by retention */
                               : sc_fail_os(error, "cannot open a segment to sync it", path);
    int code = sc_os.sync_data(fd) == 0 ? SC_OK : sc_fail_os(error, "cannot sync a segment", path);
    sc_os.close(fd);
    if (code != SC_OK) { /* the journal still has what the kernel may have dropped, the partition's readers do not */
        int number = error->number;
        if (snprintf(folder, sizeof folder, "%s/topics/%s", journal->folder, item->name) < (int)sizeof folder)
            sc_state_poison(folder, item->entry.partition, number);
        fail_for_all(journal, number);
    }
    return code;
}

/* The caller holds the lock for checkpoints. Syncs the segments of all records below `to`. */
static int checkpoint_locked(sc_journal *journal, int64_t to, sc_error *error)
{
    sc_journal_shared *shared = journal->shared;
    int64_t from = atomic_load(&shared->checkpointed);
    segment_set set = {0};
    if (from >= to || atomic_load(&shared->failed) != 0)
        return SC_OK;
    int code = list_segments(journal, from, to, &set, error);
    for (int64_t i = 0; code == SC_OK && i < set.count && !SC_CONTROL(checkpoint_syncs_nothing); i++)
        code = sync_segment(journal, &set.items[i], error);
    free(set.items);
    if (code == SC_OK)
        atomic_store(&shared->checkpointed, to);
    else if (code == SC_CORRUPT)
        fail_for_all(journal, EIO);
    return code;
}

static int enter(const sc_journal *journal, sc_error *error)
{
    if (journal->fork_generation != sc_os_fork_generation())
        return sc_fail(error, SC_FORKED, "this store was opened before a fork: open it again in the child process");
    return SC_OK;
}

/* The file is open when there is something to do; another process may have made it. */
static int prepare(sc_journal *journal, sc_error *error)
{
    if (atomic_load(&journal->fd) >= 0 && atomic_load(&journal->shared->emptying) == 0)
        return SC_OK;
    int code = sc_journal_lock(journal, SC_JOURNAL_WRITE, error);
    if (code != SC_OK)
        return code;
    code = open_file(journal, error);
    sc_journal_unlock(journal, SC_JOURNAL_WRITE);
    return code;
}

int sc_journal_checkpoint(sc_journal *journal, sc_error *error)
{
    sc_journal_shared *shared = journal->shared;
    int code = enter(journal, error);
    if (code != SC_OK || journal->closed || atomic_load(&shared->checkpointed) >= atomic_load(&shared->synced))
        return code;
    code = prepare(journal, error);
    if (code == SC_OK)
        code = sc_journal_lock(journal, SC_JOURNAL_CHECKPOINT, error);
    if (code != SC_OK)
        return code;
    code = checkpoint_locked(journal, atomic_load(&shared->synced), error);
    sc_journal_unlock(journal, SC_JOURNAL_CHECKPOINT);
    return code;
}

/* ---- emptying ------------------------------------------------------------------------------------------------ */

/* Under all locks: what was written is in segments that are synced, so no record is needed any more. */
static int empty_locked(sc_journal *journal, sc_error *error)
{
    sc_journal_shared *shared = journal->shared;
    sc_journal_header header;
    int64_t head = atomic_load(&shared->head);
    int failed = atomic_load(&shared->failed);
    if (failed != 0) {
        errno = failed;
        return sc_fail_os(error, "an earlier sync of the journal failed", journal->path);
    }
    if (head == 0)
        return SC_OK;
    int code = checkpoint_locked(journal, head, error);
    if (code == SC_OK)
        code = sc_journal_header_read(atomic_load(&journal->fd), journal->path, &header, error);
    if (code != SC_OK)
        return code == SC_END ? sc_fail_at(error, SC_CORRUPT, journal->path, -1, 0, "the journal's header is damaged")
                              : code;
    if (header.start == head)
        return SC_OK; /* nothing was written since it was last emptied */
    header.generation++;
    header.start += header.area;
    atomic_store(&shared->emptying, 1);
    if (!SC_CONTROL(emptied_journal_replayed))
        code = sc_journal_write_header(atomic_load(&journal->fd), journal->path, &header, error);
    if (code != SC_OK) {
        fail_for_all(journal, error->number);
        return code;
    }
    return adopt(journal, atomic_load(&journal->fd), error);
}

int sc_journal_empty(sc_journal *journal, sc_error *error)
{
    int code = enter(journal, error);
    if (code != SC_OK || atomic_load(&journal->shared->head) == 0)
        return code;
    code = prepare(journal, error);
    if (code == SC_OK)
        code = sc_journal_lock(journal, SC_JOURNAL_CHECKPOINT, error);
    if (code != SC_OK)
        return code;
    code = sc_journal_lock(journal, SC_JOURNAL_WRITE, error);
    if (code == SC_OK) {
        code = sc_journal_lock(journal, SC_JOURNAL_SYNC, error);
        if (code == SC_OK) {
            code = empty_locked(journal, error);
            sc_journal_unlock(journal, SC_JOURNAL_SYNC);
        }
        sc_journal_unlock(journal, SC_JOURNAL_WRITE);
    }
    sc_journal_unlock(journal, SC_JOURNAL_CHECKPOINT);
    return code;
}
