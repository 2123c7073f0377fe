#include "mapping.h"

#include <stdlib.h>

#include "error.h"
#include "os.h"

enum { VERIFIED_GRAIN = 512 };

int sc_mapping_open(const char *path, int64_t size, sc_mapping **out, int64_t *file_size, sc_error *error)
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
    *file_size = stat.size;
    if (size < stat.size)
        size = stat.size;
    sc_mapping *mapping = calloc(1, sizeof *mapping);
    if (mapping != NULL && (mapping->verified = calloc((size_t)(size / VERIFIED_GRAIN / 8 + 1), 1)) == NULL) {
        free(mapping);
        mapping = NULL;
    }
    void *data = mapping == NULL || size == 0 ? NULL : sc_os.map(fd, (size_t)size, false);
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
    mapping->inode = stat.inode;
    atomic_init(&mapping->references, 1);
    *out = mapping;
    return SC_OK;
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
