/* A segment file mapped for reading, shared by everything that points into it. Internal. */
#ifndef STREAMCORE_MAPPING_H
#define STREAMCORE_MAPPING_H

#include <stdatomic.h>

#include "streamcore.h"

struct sc_mapping {
    atomic_long references;
    const uint8_t *data;
    int64_t size;              /* mapped; the file may be shorter, and what lies behind its end is never touched */
    _Atomic int64_t file_size; /* of a sealed segment that was mapped beyond it while it was active; else `size` */
    bool copied;               /* with what the journal has for it: not the file's pages */
    uint64_t inode;            /* of the file, which may have another name by now, or none */
    atomic_bool began;         /* a batch was seen in it: it is not an empty segment that may be replaced */
    _Atomic uint8_t *verified; /* a bit for each 512 bytes: the batch that begins there matches its checksum */
};

/* Maps `size` bytes of the file at `path`, which may lie beyond its end. */
int sc_mapping_open(const char *path, int64_t size, sc_mapping **mapping, int64_t *file_size, sc_error *error);

struct sc_run;
/* The same of a segment for which the journal has runs that nobody has replayed yet: a copy that has them. */
int sc_mapping_open_with(const char *path, const struct sc_run *runs, uint32_t partition, int64_t base_offset,
                         int64_t size, sc_mapping **mapping, int64_t *file_size, sc_error *error);

/* How far the mapping of a sealed segment may be read. */
static inline int64_t sc_mapping_reach(const sc_mapping *mapping)
{
    return atomic_load_explicit(&mapping->file_size, memory_order_relaxed);
}

/* No two batches begin within 512 bytes: frame and header alone are 704. */
bool sc_mapping_is_verified(const sc_mapping *mapping, int64_t position);
void sc_mapping_set_verified(sc_mapping *mapping, int64_t position);

#endif
