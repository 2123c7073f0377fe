#include "mapping.h"

#include <stdlib.h>

#include "error.h"
#include "journal.h"
#include "os.h"

enum { VERIFIED_GRAIN = 512 };

struct storing {
    const sc_run *runs;
    uint32_t partition;
    int64_t base_offset;
    uint8_t *data;
    int64_t size;
};

static void store_runs(void *context)
{
    struct storing *self = context;
    sc_runs_store(self->runs, self->partition, self->base_offset, self->data, self->size);
}

/* A file that cannot be read there is seen by who reads the mapping. */
static void *map_with(int fd, struct storing *storing, int64_t file_size, int64_t size)
{
    storing->data = sc_os.map_copy(fd, (size_t)file_size, (size_t)size);
    storing->size = size;
    if (storing->data != NULL)
        (void)sc_os_read_mapped(storing->data, (size_t)size, store_runs, storing);
    return storing->data;
}

static int open_mapping(const char *path, struct storing *storing, int64_t size, sc_mapping **out, int64_t *file_size,
                        sc_error *error)
{
    sc_file_stat stat;
    int fd = sc_os.open(path, SC_OPEN_READ);
    if (fd < 0)
        return sc_fail_os(error, "cannot open a segment", path);
    if (sc_os.stat(fd, &stat) != 0) {
        int code = sc_fail_os(error, "cannot look at a segment", path);
        sc_os.close(fd);
        return code;
    }
    if (stat.size > SC_SEGMENT_BYTES_MAX) { /* of holes: reading it would not end */
        sc_os.close(fd);
        return sc_fail_at(error, SC_CORRUPT, path, -1, -1, "the file is larger than a segment can be");
    }
    int64_t runs_end =
        storing == NULL ? 0 : sc_runs_end(storing->runs, storing->partition, storing->base_offset, stat.size);
    *file_size = stat.size > runs_end ? stat.size : runs_end;
    if (size < *file_size)
        size = *file_size;
    sc_mapping *mapping = calloc(1, sizeof *mapping);
    if (mapping != NULL && (mapping->verified = calloc((size_t)(size / VERIFIED_GRAIN / 8 + 1), 1)) == NULL) {
        free(mapping);
        mapping = NULL;
    }
    void *data = NULL;
    if (mapping != NULL && size > 0)
        data = runs_end > 0 ? map_with(fd, storing, stat.size, size) : sc_os.map(fd, (size_t)size, false);
    int code = SC_OK;
    if (mapping == NULL)
        code = sc_fail_memory(error);
    else if (data == NULL && size > 0)
        code = sc_fail_os(error, "cannot map a segment", path);
    sc_os.close(fd);
    if (code != SC_OK) {
        if (mapping != NULL)
            free((void *)mapping->verified);
        free(mapping);
        return code;
    }
    mapping->data = data;
    mapping->size = size;
    atomic_init(&mapping->file_size, size);
    mapping->copied = runs_end > 0;
    mapping->inode = stat.inode;
    atomic_init(&mapping->references, 1);
    *out = mapping;
    return SC_OK;
}

int sc_mapping_open(const char *path, int64_t size, sc_mapping **mapping, int64_t *file_size, sc_error *error)
{
    return open_mapping(path, NULL, size, mapping, file_size, error);
}

int sc_mapping_open_with(const char *path, const sc_run *runs, uint32_t partition, int64_t base_offset, int64_t size,
                         sc_mapping **mapping, int64_t *file_size, sc_error *error)
{
    struct storing storing = {.runs = runs, .partition = partition, .base_offset = base_offset};
    return open_mapping(path, &storing, size, mapping, file_size, error);
}

void sc_mapping_retain(sc_mapping *mapping)
{
    atomic_fetch_add_explicit(&mapping->references, 1, memory_order_relaxed);
}

void sc_mapping_release(sc_mapping *mapping)
{
    if (mapping == NULL || atomic_fetch_sub_explicit(&mapping->references, 1, memory_order_acq_rel) != 1)
        return;
    if (mapping->data != NULL)
        sc_os.unmap((void *)(uintptr_t)mapping->data, (size_t)mapping->size);
    free((void *)mapping->verified);
    free(mapping);
}

bool sc_mapping_is_verified(const sc_mapping *mapping, int64_t position)
{
    int64_t grain = position / VERIFIED_GRAIN;
    return atomic_load_explicit(&mapping->verified[grain / 8], memory_order_relaxed) >> (grain % 8) & 1;
}

void sc_mapping_set_verified(sc_mapping *mapping, int64_t position)
{
    int64_t grain = position / VERIFIED_GRAIN;
    atomic_fetch_or_explicit(&mapping->verified[grain / 8], (uint8_t)(1 << (grain % 8)), memory_order_relaxed);
}
