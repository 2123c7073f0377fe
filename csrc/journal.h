/*
 * The journal of a store: what makes durable appends over many partitions share one sync. Internal.
 *
 * A durable append stores its batches in the segment, as every append does. When several partitions wait at once, the
 * bytes of all of them that are not durable yet are copied into one file, and one fdatasync of that file makes them so.
 * The segments are synced later (a checkpoint), and then the place in the journal may be used again. The first who
 * opens the store for writing writes what the journal holds into the segments before anybody looks for the end of a
 * log.
 *
 * Two files in the store's folder:
 *
 *   journal         two copies of the file header, a page each, then an area of records. Made by the first use.
 *   journal-state   what processes that have the store open tell each other, mapped by all; worthless when none has.
 *
 * The place of a record is a number that only grows (an LSN, counted in bytes): `start` of the header is at the
 * beginning of the area. Each record begins where the one before it ends, at a multiple of 4096, so that writing one
 * never touches a sector of another.
 *
 *      0  sc_journal_record, 512 bytes, with the name of one topic's folder
 *    512  its entries, 64 bytes each: a run of whole batches in one segment
 *         the batches of each entry, at multiples of 64. They have checksums of their own: the record has none for them
 *         anything, up to a multiple of 4096
 *
 * When the area is full the segments of all records are synced, and the other copy of the header is written, with a new
 * salt and a greater `start`: that empties the journal, for records count only with the salt of the header in force,
 * the sound one of the greatest generation. docs/decisions/0011 says why no record can overwrite anything newer.
 *
 * Locks (F_OFD_SETLK, one byte of `journal-state` each): 0 is held shared by every writer, and exclusively while the
 * journal is replayed or the store's last writer empties it; 1 by who opens; 2 while records are written; 3 while they
 * are synced; 4 while segments are.
 */
#ifndef STREAMCORE_JOURNAL_H
#define STREAMCORE_JOURNAL_H

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>

#include "streamcore.h"

enum {
    SC_JOURNAL_PAGE = 4096,
    SC_JOURNAL_AREA_AT = 2 * SC_JOURNAL_PAGE,
    SC_JOURNAL_AREA = 32 << 20,
    SC_JOURNAL_VERSION = 1,
    SC_JOURNAL_NAME_MAX = 256,
    SC_JOURNAL_ENTRIES_MAX = 4096, /* of one record */
};

typedef struct sc_journal_header {
    uint8_t magic[8]; /* "SCJRNL01" */
    uint32_t crc;     /* CRC32C of the 52 bytes behind this field */
    uint32_t version;
    int64_t generation; /* counts how often the journal was emptied; copy generation % 2 of the header has it */
    int64_t area;       /* bytes for records */
    int64_t start;      /* LSN of the first record: a multiple of the area, above 0 */
    uint64_t salt;      /* of the records that count */
    uint32_t first_crc; /* CRC32C of the 512 bytes at the place of that record when this was written */
    uint8_t reserved[12];
} sc_journal_header;
static_assert(sizeof(sc_journal_header) == 64, "the journal's header has 64 bytes");

typedef struct sc_journal_record {
    uint8_t magic[8]; /* "SCJREC01" */
    uint32_t crc;     /* CRC32C of what follows this field, entries included */
    uint32_t entry_count;
    int64_t lsn;
    int64_t size;         /* a multiple of 4096 */
    int64_t synced;       /* all records below it had been synced when this was written */
    int64_t checkpointed; /* the segments of all records below it had been */
    uint64_t salt;
    uint8_t boot_id[16]; /* of the kernel under which it was written */
    uint8_t reserved[184];
    char name[SC_JOURNAL_NAME_MAX]; /* of the topic's folder */
} sc_journal_record;
static_assert(sizeof(sc_journal_record) == 512 && offsetof(sc_journal_record, lsn) == 16 &&
                  offsetof(sc_journal_record, salt) == 48 && offsetof(sc_journal_record, name) == 256,
              "a record's fields lie where docs/format.md says");

typedef struct sc_journal_entry {
    uint32_t partition;
    uint32_t anchor_crc;     /* header CRC of the batch before the run */
    int64_t base_offset;     /* of the segment */
    int64_t position;        /* in the segment */
    int64_t size;            /* a multiple of 64 */
    int64_t place;           /* of the batches in the record */
    int64_t anchor_position; /* of the batch before the run, in the segment */
    int64_t first_offset, end_offset;
} sc_journal_entry;
static_assert(sizeof(sc_journal_entry) == 64, "an entry has 64 bytes");

/* In journal-state. LSNs: start <= checkpointed <= synced <= head <= start + area; all 0 before the file was opened. */
typedef struct sc_journal_shared {
    uint8_t magic[8]; /* "SCJSTAT1" */
    _Atomic int64_t start;
    _Atomic int64_t head;
    _Atomic int64_t synced;
    _Atomic int64_t checkpointed;
    _Atomic int64_t generation;
    _Atomic uint64_t salt;
    _Atomic int32_t failed;    /* errno of what failed: the journal is not used any more, nor emptied */
    _Atomic uint32_t emptying; /* 1: whoever did so may have died; the file's header tells */
} sc_journal_shared;

/* A thread that waits for a sync of some partitions; it lies on that thread's stack. */
typedef struct sc_sync_request {
    struct sc_sync_request *next;
    struct sc_partition **partitions;
    int64_t count;
    int code;
    sc_error *error;
    _Atomic uint32_t told;
} sc_sync_request;

struct sc_journal {
    atomic_long references;
    char path[SC_PATH_MAX]; /* of the file */
    char state_path[SC_PATH_MAX];
    char folder[SC_PATH_MAX]; /* of the store */
    uint32_t fork_generation;
    uint8_t boot_id[16];
    int state_fd;
    bool guarded;
    sc_journal_shared *shared;
    _Atomic int64_t area;        /* wanted when the file is made; then that of the file */
    pthread_mutex_t write_mutex; /* each before the lock of its kind */
    pthread_mutex_t sync_mutex;
    pthread_mutex_t checkpoint_mutex;
    _Atomic int fd; /* -1: not opened yet; set behind write_mutex */
    int direct_fd;  /* for records; -1: not opened yet, or they go through the page cache. Behind write_mutex */
    bool no_direct;
    _Atomic(struct sc_journal_scratch *) scratch;
    bool damaged; /* found when it was opened; then `damage` says what */
    sc_error damage;
    atomic_bool closed;
    /* group commit (commit.c) */
    pthread_mutex_t group_mutex;
    int leaders;
    atomic_bool checkpointing; /* one of those that led */
    sc_sync_request *requests; /* newest first */
};

/* Records laid out for sc_journal_write: headers, entries and batches; what depends on their place is filled in there.
 */
typedef struct sc_journal_scratch {
    int64_t size, used;
    uint8_t *data;
} sc_journal_scratch;

/* True unless something failed before: then every partition is synced by itself. */
bool sc_journal_is_usable(const sc_journal *journal);
/* Writes records one behind the other; *end is the LSN that a sync must reach. SC_END: they do not fit, or the journal
 * cannot be used, and nothing was promised. */
int sc_journal_write(sc_journal *journal, uint8_t *records, int64_t size, int64_t *end, sc_error *error);
/* Returns when all records below `end` are on the drive; whoever comes meanwhile, from whichever process, shares the
 * next sync. Never repeated after a failure. */
int sc_journal_sync(sc_journal *journal, int64_t end, sc_error *error);
/* Half of the area waits for a checkpoint. */
bool sc_journal_is_filling(const sc_journal *journal);

/* Locks by number, as above; the mutex of that kind first. */
int sc_journal_lock(sc_journal *journal, int number, sc_error *error);
void sc_journal_unlock(sc_journal *journal, int number);
enum { SC_JOURNAL_LIVE, SC_JOURNAL_OPENING, SC_JOURNAL_WRITE, SC_JOURNAL_SYNC, SC_JOURNAL_CHECKPOINT };

static inline int64_t sc_journal_page_ceiling(int64_t size)
{
    return (size + SC_JOURNAL_PAGE - 1) / SC_JOURNAL_PAGE * SC_JOURNAL_PAGE;
}
void sc_journal_header_seal(sc_journal_header *header);
/* The header in force; SC_END: neither copy is sound. */
int sc_journal_header_read(int fd, const char *path, sc_journal_header *header, sc_error *error);
/* The checksum of a record and its entries. */
uint32_t sc_journal_record_crc(const sc_journal_record *record);
/* It is a record of that LSN and salt, makes sense, and matches its checksum; `available` bytes may be read. */
bool sc_journal_record_is_sound(const sc_journal_record *record, int64_t available, uint64_t salt, int64_t lsn);
static inline sc_journal_entry *sc_journal_entries(const sc_journal_record *record)
{
    return (sc_journal_entry *)(uintptr_t)(record + 1);
}
/* The file of an entry's segment; false: the path is too long. */
bool sc_journal_segment_path(const sc_journal *journal, const char *name, const sc_journal_entry *entry,
                             char path[SC_PATH_MAX]);

/* ---- replay.c ---- */

/* Writes what the file holds into the segments, syncs them, and empties the file. The caller is alone. */
int sc_journal_replay(sc_journal *journal, sc_error *error);
/* Empties the file: writes the other copy of its header, with a new salt. */
int sc_journal_write_header(int fd, const char *path, sc_journal_header *header, sc_error *error);

/* A run of batches that a segment may lack. */
typedef struct sc_run {
    struct sc_run *next; /* in the order of the journal */
    sc_journal_entry entry;
    uint8_t data[];
} sc_run;

/* For a reader: the runs of one topic that nobody has replayed yet, NULL when there are none. */
int sc_journal_read_runs(const char *folder, const char *name, sc_run **runs, sc_error *error);
void sc_runs_free(sc_run *runs);
/* Where a segment file of that size ends with the runs that may be stored into it; 0: there are none. */
int64_t sc_runs_end(const sc_run *runs, uint32_t partition, int64_t base_offset, int64_t file_size);
/* Stores into a copy of a segment of `size` bytes what it lacks, as a replay would. */
void sc_runs_store(const sc_run *runs, uint32_t partition, int64_t base_offset, uint8_t *data, int64_t size);

/* ---- commit.c ---- */

/* Makes all that the partitions hold durable, together with what other threads ask for at the same time. */
int sc_journal_sync_partitions(sc_journal *journal, struct sc_partition **partitions, int64_t count, sc_error *error);

#endif
