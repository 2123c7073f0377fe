#include "state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"

enum {
    LOCK_OPEN = 0,
    LOCK_OPENING = 1,
    LOCK_READERS = 2,
    LOCK_PARTITION = 1 << 20,
    LOCK_REWRITING = 1 << 21,
    PAGE = 4096
};
static const uint8_t unknown_boot[16];
static const uint8_t state_magic[8] = {'S', 'C', 'S', 'T', 'A', 'T', 'E', '1'};

static int64_t size_for(uint32_t partitions)
{
    int64_t size = (int64_t)sizeof(sc_state_header) + (int64_t)sizeof(sc_slot) * partitions;
    return (size + PAGE - 1) / PAGE * PAGE;
}

/* Maps through a descriptor of its own: a mapping keeps its open file alive, and that one's locks, in every forked
 * child and until it is unmapped. Locks must go with the last copy of `fd`. */
static int map_state(sc_state *state, sc_error *error)
{
    int fd = sc_os.open(state->path, state->writable ? SC_OPEN_WRITE : SC_OPEN_READ);
    if (fd < 0)
        return sc_fail_os(error, "cannot open the state of a topic", state->path);
    state->mapped = size_for(SC_PARTITIONS_MAX); /* beyond the end of the file: partitions may be added */
    state->data = sc_os.map(fd, (size_t)state->mapped, state->writable);
    int code = state->data == NULL ? sc_fail_os(error, "cannot map the state of a topic", state->path) : SC_OK;
    sc_os.close(fd); /* before the first lock: where locks belong to the process, closing drops them */
    return code;
}

int sc_state_grow(sc_state *state, uint32_t partitions, sc_error *error)
{
    int64_t size = size_for(partitions);
    if (!state->writable || size <= state->allocated)
        return SC_OK;
    if (sc_os.allocate(state->fd, 0, size) != 0)
        return sc_fail_os(error, "cannot make room for the state of a topic", state->path);
    state->allocated = size;
    return SC_OK;
}

/* We are alone: nothing in the file counts but the boot ids. All slots are wiped, also those beyond the partitions that
 * we know of. A file that was not there was never written under another kernel. */
static void wipe(sc_state *state, int64_t old_size, uint32_t generation)
{
    uint8_t boot_id[16], kept[16];
    sc_os_boot_id(boot_id);
    sc_state_header *header = sc_state_header_of(state);
    bool known = memcmp(header->magic, state_magic, sizeof state_magic) == 0;
    int64_t size = old_size > state->allocated ? old_size : state->allocated;
    size = size < state->mapped ? size : state->mapped;
    int64_t slots = (size - (int64_t)sizeof *header) / (int64_t)sizeof(sc_slot);
    memset(state->data, 0, sizeof *header);
    for (int64_t i = 0; i < slots; i++) {
        sc_slot *slot = sc_state_slot(state, (uint32_t)i);
        memcpy(kept, old_size == 0 || SC_CONTROL(boot_of_others_overwritten) ? boot_id : slot->boot_id, sizeof kept);
        uint32_t rewrites = atomic_load(&slot->rewrites);
        bool doubted = known && (atomic_load(&slot->poisoned) != 0 || atomic_load(&slot->doubted) != 0);
        memset((void *)slot, 0, sizeof *slot);
        if (known || old_size == 0)
            memcpy(slot->boot_id, kept, sizeof kept);
        atomic_store(&slot->rewrites, rewrites);
        atomic_store(&slot->doubted, doubted);
    }
    memcpy(header->magic, state_magic, sizeof state_magic);
    atomic_store(&header->generation, generation);
}

/* A new file must outlive the logs whose boot ids it holds: without it, their power loss would not be noticed. */
static int sync_new(const sc_state *state, const char *folder, sc_error *error)
{
    if (SC_CONTROL(new_state_not_synced))
        return SC_OK;
    if (sc_os.sync(state->fd) != 0 || sc_os_sync_folder(folder) != 0)
        return sc_fail_os(error, "cannot sync the state of a topic", state->path);
    return SC_OK;
}

/* Under LOCK_OPENING: takes LOCK_OPEN, and wipes the file when nobody else has it. */
static int join(sc_state *state, const char *folder, uint32_t partitions, uint32_t generation, sc_error *error)
{
    sc_file_stat stat;
    bool alone = sc_os.lock(state->fd, LOCK_OPEN, SC_LOCK_EXCLUSIVE, false) == 0;
    if (!alone && errno != EAGAIN && errno != EACCES)
        return sc_fail_os(error, "cannot lock a topic", state->path);
    if (sc_os.stat(state->fd, &stat) != 0)
        return sc_fail_os(error, "cannot look at the state of a topic", state->path);
    int code = sc_state_grow(state, partitions, error);
    if (code == SC_OK && alone) {
        wipe(state, stat.size, generation);
        code = stat.size == 0 ? sync_new(state, folder, error) : SC_OK;
    }
    if (code == SC_OK && sc_os.lock(state->fd, LOCK_OPEN, SC_LOCK_SHARED, true) != 0)
        code = sc_fail_os(error, "cannot lock a topic", state->path);
    return code;
}

static int open_writable(sc_state *state, const char *folder, uint32_t partitions, uint32_t generation, sc_error *error)
{
    if (!(state->guarded = sc_os_guard_descriptor(state->fd)))
        return sc_fail(error, SC_INVALID, "too many topics are open in one process");
    if (sc_os.lock(state->fd, LOCK_OPENING, SC_LOCK_EXCLUSIVE, true) != 0)
        return sc_fail_os(error, "cannot lock a topic", state->path);
    int code = join(state, folder, partitions, generation, error);
    if (code == SC_OK && sc_os.lock(state->fd, LOCK_OPENING, SC_LOCK_NONE, false) != 0)
        code = sc_fail_os(error, "cannot unlock a topic", state->path);
    return code; /* after a failure the descriptor is closed, and its locks are gone */
}

int sc_state_open(sc_state *state, const char *folder, bool writable, uint32_t partitions, uint32_t generation,
                  sc_error *error)
{
    *state = (sc_state){.fd = -1, .writable = writable};
    if (snprintf(state->path, sizeof state->path, "%s/state", folder) >= (int)sizeof state->path)
        return sc_fail(error, SC_INVALID, "the path of the store is too long");
    state->fd = sc_os.open(state->path, writable ? SC_OPEN_CREATE_OR_WRITE : SC_OPEN_READ);
    if (state->fd < 0 && !writable && (errno == ENOENT || errno == EACCES))
        return SC_OK; /* a reader does without */
    if (state->fd < 0)
        return sc_fail_os(error, "cannot open the state of a topic", state->path);
    int code = map_state(state, error);
    if (code == SC_OK && writable)
        code = open_writable(state, folder, partitions, generation, error);
    if (code != SC_OK)
        sc_state_close(state, false);
    return code;
}

void sc_state_unlock_all(sc_state *state, bool forked)
{
    if (state->fd < 0)
        return;
    if (!forked) { /* in a forked child the descriptor was closed at the fork */
        if (state->guarded)
            sc_os_unguard_descriptor(state->fd);
        sc_os.close(state->fd);
    }
    state->fd = -1;
}

void sc_state_close(sc_state *state, bool forked)
{
    if (state->data != NULL)
        sc_os.unmap(state->data, (size_t)state->mapped);
    state->data = NULL;
    sc_state_unlock_all(state, forked && state->guarded);
}

bool sc_state_has_slot(const sc_state *state, uint32_t partition)
{
    sc_file_stat stat;
    if (state->writable || state->data == NULL)
        return state->data != NULL;
    return sc_os.stat(state->fd, &stat) == 0 && stat.size >= size_for(partition + 1);
}

bool sc_state_is_live(const sc_state *state, uint32_t partition)
{
    if (state->writable || (SC_CONTROL(stale_state_believed) && state->data != NULL))
        return true;
    /* held exclusively, it is being wiped */
    return state->data != NULL && sc_os.is_locked(state->fd, LOCK_OPEN) == SC_LOCK_SHARED &&
           sc_state_has_slot(state, partition);
}

bool sc_state_is_same_boot(const sc_state *state, uint32_t partition)
{
    uint8_t boot_id[16];
    if (state->data == NULL || SC_CONTROL(power_loss_not_noticed))
        return true;
    if (!sc_state_has_slot(state, partition))
        return false;
    sc_os_boot_id(boot_id);
    return memcmp(boot_id, unknown_boot, sizeof boot_id) == 0 || /* then nothing is cut that might be damage */
           memcmp(sc_state_slot(state, partition)->boot_id, boot_id, sizeof boot_id) == 0;
}

void sc_state_set_boot(sc_state *state, uint32_t partition)
{
    uint8_t boot_id[16];
    sc_os_boot_id(boot_id);
    if (memcmp(boot_id, unknown_boot, sizeof boot_id) != 0)
        memcpy(sc_state_slot(state, partition)->boot_id, boot_id, sizeof boot_id);
}

int sc_state_lock(sc_state *state, uint32_t partition, sc_error *error)
{
    if (SC_CONTROL(partition_not_locked))
        return SC_OK;
    if (sc_os.lock(state->fd, LOCK_PARTITION + (int64_t)partition, SC_LOCK_EXCLUSIVE, true) != 0)
        return sc_fail_os(error, "cannot lock a partition", state->path);
    return SC_OK;
}

bool sc_state_try_lock(sc_state *state, uint32_t partition)
{
    return sc_os.lock(state->fd, LOCK_PARTITION + (int64_t)partition, SC_LOCK_EXCLUSIVE, false) == 0;
}

void sc_state_unlock(sc_state *state, uint32_t partition)
{
    int result = sc_os.lock(state->fd, LOCK_PARTITION + (int64_t)partition, SC_LOCK_NONE, false);
    assert(result == 0);
    (void)result;
}

int sc_state_lock_rewriting(sc_state *state, uint32_t partition, sc_error *error)
{
    if (sc_os.lock(state->fd, LOCK_REWRITING + (int64_t)partition, SC_LOCK_EXCLUSIVE, false) == 0)
        return SC_OK;
    if (errno == EAGAIN || errno == EACCES)
        return sc_fail(error, SC_CONFLICT, "partition %u is rewritten by another process", (unsigned)partition);
    return sc_fail_os(error, "cannot lock a partition for rewriting", state->path);
}

void sc_state_unlock_rewriting(sc_state *state, uint32_t partition)
{
    (void)sc_os.lock(state->fd, LOCK_REWRITING + (int64_t)partition, SC_LOCK_NONE, false);
}

bool sc_slot_read(sc_slot *slot, sc_tail *tail)
{
    int64_t words[SC_TAIL_WORDS];
    for (;;) {
        uint32_t version = atomic_load_explicit(&slot->version, memory_order_acquire);
        if (version == 0)
            return false;
        for (int i = 0; i < SC_TAIL_WORDS; i++)
            words[i] = atomic_load_explicit(&slot->tails[version % 2][i], memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&slot->version, memory_order_relaxed) == version || SC_CONTROL(tail_read_torn))
            break;
    }
    memcpy(tail, words, sizeof *tail);
    int64_t journaled = atomic_load_explicit(&slot->journaled_offset, memory_order_acquire);
    journaled = journaled < tail->end_offset ? journaled : tail->end_offset;
    if (journaled > tail->durable_offset)
        tail->durable_offset = journaled;
    return true;
}

void sc_slot_raise_journaled(sc_slot *slot, int64_t offset)
{
    int64_t known = atomic_load(&slot->journaled_offset);
    while (known < offset && !atomic_compare_exchange_weak(&slot->journaled_offset, &known, offset))
        ;
}

void sc_state_poison(const char *folder, uint32_t partition, int number)
{
    char path[SC_PATH_MAX];
    int32_t poisoned = number == 0 ? EIO : number;
    if (snprintf(path, sizeof path, "%s/state", folder) >= (int)sizeof path)
        return;
    int fd = sc_os.open(path, SC_OPEN_WRITE);
    if (fd < 0)
        return; /* nobody has the topic open, or it is gone */
    int64_t at = (int64_t)(sizeof(sc_state_header) + sizeof(sc_slot) * (size_t)partition + offsetof(sc_slot, poisoned));
    (void)sc_os_write_whole(fd, &poisoned, sizeof poisoned, at);
    sc_os.close(fd);
}

void sc_slot_publish(sc_slot *slot, const sc_tail *tail)
{
    int64_t words[SC_TAIL_WORDS];
    memcpy(words, tail, sizeof words);
    uint32_t version = atomic_load_explicit(&slot->version, memory_order_relaxed) + 1;
    if (version == 0)
        version = 2;
    atomic_thread_fence(memory_order_release); /* who sees a store below also sees the version before it */
    for (int i = 0; i < SC_TAIL_WORDS; i++)
        atomic_store_explicit(&slot->tails[version % 2][i], words[i], memory_order_relaxed);
    atomic_store_explicit(&slot->version, version, memory_order_release);
}

bool sc_state_announce_reader(sc_state *state)
{
    if (atomic_load(&state->reader_waits) || state->fd < 0)
        return false;
    return sc_os.lock(state->fd, LOCK_READERS, SC_LOCK_SHARED, false) == 0 &&
           !atomic_exchange(&state->reader_waits, true);
}

/* Asking for the lock takes longer than an append may: once in a while is enough, as readers allow for that. */
static bool reader_waits(sc_state *state)
{
    int64_t now = sc_os.monotonic_ns();
    if (now - atomic_load_explicit(&state->readers_looked_ns, memory_order_relaxed) >= SC_READERS_LOOK_NS) {
        atomic_store_explicit(&state->readers_looked_ns, now, memory_order_relaxed);
        atomic_store_explicit(&state->reader_waits, sc_os.is_locked(state->fd, LOCK_READERS) == SC_LOCK_SHARED,
                              memory_order_relaxed);
    }
    return atomic_load_explicit(&state->reader_waits, memory_order_relaxed);
}

void sc_state_wake(sc_state *state)
{
    if (!SC_CONTROL(bell_not_rung))
        sc_bell_ring(&sc_state_header_of(state)->bell, reader_waits(state));
}
