/*
 * The `state` file of a topic: what processes that have the topic open tell each other. Internal.
 *
 * It is mapped by everyone, and believed only while somebody has the topic open for writing: the first to open it
 * wipes it. After a crash of all processes nothing in it is used but the boot id of each slot, which tells whether the
 * machine went down since that log was last looked after. It is kept per partition because a log is repaired on its
 * first use: a session that never touched a partition must not hide the power loss from the next one.
 *
 *      0  sc_state_header, 256 bytes
 *    256  sc_slot of partition 0, 256 bytes
 *    ...
 *
 * Locks (F_OFD_SETLK, one byte each): byte 0 is held shared by every writer while it has the topic open, and
 * exclusively while the file is wiped; byte 1 is held exclusively by who opens, so that a writer that dies before it
 * has wiped leaves the wiping to the next one; byte 2 is held shared by a reader that has waited, which cannot say in
 * the mapping that it sleeps; byte LOCK_PARTITION + p is held exclusively while the log of p changes, and byte
 * LOCK_REWRITING + p while segments of p are rewritten.
 *
 * A slot has two copies of the tail. Who holds the partition's lock fills the copy that is not current and then counts
 * `version` up, so a reader that finds the same version before and after has read a whole tail, and a writer that dies
 * in between leaves the old one in place.
 */
#ifndef STREAMCORE_STATE_H
#define STREAMCORE_STATE_H

#include <assert.h>
#include <stdatomic.h>

#include "os.h"
#include "streamcore.h"

/* A futex whose waker needs no system call when nobody sleeps. Who is about to sleep sets `asleep`; who wakes takes it
 * back and wakes all of them. A sleeper that dies leaves `asleep` set, which costs the next waker one call; a waker
 * that dies before its call leaves sleepers to the end of their slice (wait.c). */
typedef struct sc_bell {
    _Atomic uint32_t count; /* of the times that it rang */
    _Atomic uint32_t asleep;
} sc_bell;

static inline void sc_bell_ring(sc_bell *bell, bool anyway)
{
    atomic_fetch_add(&bell->count, 1); /* before the look at `asleep`: a sleeper does these two the other way round */
    if ((atomic_load(&bell->asleep) != 0 && atomic_exchange(&bell->asleep, 0) != 0) || anyway)
        sc_os.wake((uint32_t *)&bell->count);
}

typedef struct sc_state_header {
    uint8_t magic[8];            /* "SCSTATE1" */
    _Atomic uint32_t generation; /* of the topic's settings */
    _Atomic uint32_t deleted;
    sc_bell bell; /* rings with each append */
    uint32_t reserved[58];
} sc_state_header;
static_assert(sizeof(sc_state_header) == 256, "the state header has 256 bytes");

/* Where the log of a partition ends. */
typedef struct sc_tail {
    int64_t start_offset;
    int64_t end_offset;
    int64_t durable_offset;
    int64_t segment_base;   /* of the active segment; -1: there is none */
    int64_t end_position;   /* in the active segment */
    int64_t allocated;      /* bytes of its file that may be written */
    int64_t created_ms;     /* of the active segment */
    int64_t sealed;         /* 1: the active segment is sealed, and the next append makes a new one */
    int64_t schema_version; /* of the active segment */
    int64_t proven_offset;  /* the log itself says, in a batch header, that all below was durable */
    int64_t file_number;   /* counts the segments that were made: an empty one may be replaced by one of its name. Below
                            * 0: a   reader has found this tail itself (partition.c) */
    int64_t stable_offset; /* the first offset of an open transaction, or the end offset */
} sc_tail;
enum { SC_TAIL_WORDS = sizeof(sc_tail) / sizeof(int64_t) };

typedef struct sc_slot {
    _Atomic uint32_t version; /* 0: nobody has looked at the log yet; copy version % 2 is current */
    _Atomic uint32_t dirty;   /* not 0 while the log is being changed */
    _Atomic int32_t poisoned; /* errno of a failed sync */
    uint32_t reserved_32;
    uint8_t boot_id[16];       /* of the kernel under which the end of this log was last found; survives the wipe */
    _Atomic uint32_t rewrites; /* changes before and after a sealed segment is replaced by another; survives the wipe */
    _Atomic uint32_t doubted;  /* not 0: a sync failed, and the log was not repaired since; survives the wipe */
    uint32_t reserved[4];
    _Atomic int64_t journaled_offset; /* all below it is durable, in the journal if not in the segments */
    _Atomic int64_t tails[2][SC_TAIL_WORDS];
} sc_slot;
static_assert(sizeof(sc_slot) == 256 && offsetof(sc_slot, journaled_offset) == 56, "a slot has 256 bytes");

typedef struct sc_state {
    int fd;
    bool writable;
    bool guarded;
    atomic_bool reader_waits;          /* when last looked at */
    _Atomic int64_t readers_looked_ns; /* for, by the monotonic clock */
    uint8_t *data;                     /* NULL: there is no state file */
    int64_t mapped, allocated;
    char path[SC_PATH_MAX];
} sc_state;

int sc_state_open(sc_state *state, const char *folder, bool writable, uint32_t partitions, uint32_t generation,
                  sc_error *error);
/* Makes room for more partitions. */
int sc_state_grow(sc_state *state, uint32_t partitions, sc_error *error);
void sc_state_close(sc_state *state, bool forked);
/* Gives up the locks, and keeps the mapping. */
void sc_state_unlock_all(sc_state *state, bool forked);

static inline sc_state_header *sc_state_header_of(const sc_state *state)
{
    return (sc_state_header *)(void *)state->data;
}
static inline sc_slot *sc_state_slot(const sc_state *state, uint32_t partition)
{
    return (sc_slot *)(void *)(state->data + sizeof(sc_state_header) + sizeof(sc_slot) * (size_t)partition);
}
/* True when the partition's slot can be believed: a writer has the topic open. */
bool sc_state_is_live(const sc_state *state, uint32_t partition);
/* True when there is a slot to look at, whether its tail can be believed or not. */
bool sc_state_has_slot(const sc_state *state, uint32_t partition);
/* True when the kernel runs since before the last writer of this log: the page cache is whole. Without a state file
 * nothing speaks for a power loss. */
bool sc_state_is_same_boot(const sc_state *state, uint32_t partition);
/* The log is repaired under this kernel. The caller holds the partition's lock. */
void sc_state_set_boot(sc_state *state, uint32_t partition);
int sc_state_lock(sc_state *state, uint32_t partition, sc_error *error);
bool sc_state_try_lock(sc_state *state, uint32_t partition); /* false: somebody has it */
void sc_state_unlock(sc_state *state, uint32_t partition);
/* The right to rewrite segments of a partition, which one process has at a time. SC_CONFLICT: another one has it. */
int sc_state_lock_rewriting(sc_state *state, uint32_t partition, sc_error *error);
void sc_state_unlock_rewriting(sc_state *state, uint32_t partition);

/* False when nobody has looked at the log yet. */
bool sc_slot_read(sc_slot *slot, sc_tail *tail);
/* All below `offset` is durable through the journal: no lock is needed for saying so. */
void sc_slot_raise_journaled(sc_slot *slot, int64_t offset);
/* Marks a partition as one of which a sync failed, in a topic that this process may not have open. */
void sc_state_poison(const char *folder, uint32_t partition, int number);
/* The caller holds the partition's lock. */
void sc_slot_publish(sc_slot *slot, const sc_tail *tail);
/* Wakes who waits for the topic: without a system call, but for one in a millisecond, when nobody does. */
void sc_state_wake(sc_state *state);
/* A reader is about to wait: writers that look from SC_READERS_LOOK_NS on will wake it. True the first time. */
bool sc_state_announce_reader(sc_state *state);
enum { SC_READERS_LOOK_NS = 1000 * 1000 };

#endif
