#include "key_map.h"

#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"

enum { CAPACITY_MIN = 64 };
#define CAPACITY_LIMIT ((int64_t)1 << 32)

/* ---- SipHash-2-4 with 128 bits (Aumasson, Bernstein) ------------------------------------------------------------ */

#define ROTATE(x, bits) ((x) << (bits) | (x) >> (64 - (bits)))
#define SIP_ROUND                                                                                                      \
    do {                                                                                                               \
        v0 += v1;                                                                                                      \
        v1 = ROTATE(v1, 13) ^ v0;                                                                                      \
        v0 = ROTATE(v0, 32);                                                                                           \
        v2 += v3;                                                                                                      \
        v3 = ROTATE(v3, 16) ^ v2;                                                                                      \
        v0 += v3;                                                                                                      \
        v3 = ROTATE(v3, 21) ^ v0;                                                                                      \
        v2 += v1;                                                                                                      \
        v1 = ROTATE(v1, 17) ^ v2;                                                                                      \
        v2 = ROTATE(v2, 32);                                                                                           \
    } while (0)

void sc_key_digest(const uint64_t secret[2], const uint8_t *data, int64_t size, uint64_t digest[2])
{
    uint64_t v0 = UINT64_C(0x736f6d6570736575) ^ secret[0], v1 = UINT64_C(0x646f72616e646f6d) ^ secret[1] ^ 0xee;
    uint64_t v2 = UINT64_C(0x6c7967656e657261) ^ secret[0], v3 = UINT64_C(0x7465646279746573) ^ secret[1];
    uint64_t word, last = (uint64_t)size << 56;
    int64_t whole = size / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8) {
        memcpy(&word, data + i, sizeof word);
        v3 ^= word;
        SIP_ROUND;
        SIP_ROUND;
        v0 ^= word;
    }
    for (int64_t i = whole; i < size; i++)
        last |= (uint64_t)data[i] << (8 * (i - whole));
    v3 ^= last;
    SIP_ROUND;
    SIP_ROUND;
    v0 ^= last;
    v2 ^= 0xee;
    for (int i = 0; i < 4; i++)
        SIP_ROUND;
    digest[0] = v0 ^ v1 ^ v2 ^ v3;
    v1 ^= 0xdd;
    for (int i = 0; i < 4; i++)
        SIP_ROUND;
    digest[1] = v0 ^ v1 ^ v2 ^ v3;
}

/* ---- the map ------------------------------------------------------------------------------------------------ */

static sc_key_entry *new_entries(int64_t capacity)
{
    sc_key_entry *entries = malloc((size_t)capacity * sizeof *entries);
    for (int64_t i = 0; entries != NULL && i < capacity; i++)
        entries[i].offset = -1;
    return entries;
}

int sc_key_map_new(int64_t memory_bytes, const uint8_t secret[16], sc_key_map **out, sc_error *error)
{
    sc_key_map *map = calloc(1, sizeof *map);
    if (map == NULL || (map->entries = new_entries(CAPACITY_MIN)) == NULL) {
        free(map);
        return sc_fail_memory(error);
    }
    memcpy(map->secret, secret, sizeof map->secret);
    map->capacity = CAPACITY_MIN;
    map->capacity_max = memory_bytes <= 0 ? CAPACITY_LIMIT : memory_bytes / (int64_t)sizeof(sc_key_entry);
    if (map->capacity_max < CAPACITY_MIN)
        map->capacity_max = CAPACITY_MIN;
    *out = map;
    return SC_OK;
}

void sc_key_map_free(sc_key_map *map)
{
    if (map != NULL)
        free(map->entries);
    free(map);
}

void sc_key_map_clear(sc_key_map *map)
{
    for (int64_t i = 0; i < map->capacity; i++)
        map->entries[i].offset = -1;
    map->count = 0;
}

/* Where to look first: the digest as a fraction of the capacity, which need not be a power of two. */
static int64_t place_of(const sc_key_map *map, const uint64_t digest[2])
{
    return (int64_t)((digest[0] >> 32) * (uint64_t)map->capacity >> 32);
}

static sc_key_entry *find(const sc_key_map *map, const uint64_t digest[2])
{
    for (int64_t at = place_of(map, digest);; at = at + 1 == map->capacity ? 0 : at + 1) {
        sc_key_entry *entry = &map->entries[at];
        if (entry->offset < 0 || (entry->digest[0] == digest[0] && entry->digest[1] == digest[1]))
            return entry;
    }
}

static bool grow(sc_key_map *map)
{
    sc_key_map larger = *map;
    larger.capacity = map->capacity * 2 < map->capacity_max ? map->capacity * 2 : map->capacity_max;
    larger.entries = larger.capacity == map->capacity ? NULL : new_entries(larger.capacity);
    if (larger.entries == NULL)
        return false;
    for (int64_t i = 0; i < map->capacity; i++)
        if (map->entries[i].offset >= 0)
            *find(&larger, map->entries[i].digest) = map->entries[i];
    free(map->entries);
    *map = larger;
    return true;
}

void sc_key_map_prepare(const sc_key_map *map, const uint8_t *key, int64_t size, uint64_t digest[2])
{
    sc_key_digest(map->secret, key, size, digest);
    __builtin_prefetch(&map->entries[place_of(map, digest)]);
}

bool sc_key_map_put_digest(sc_key_map *map, const uint64_t digest[2], int64_t offset)
{
    sc_key_entry *entry = find(map, digest);
    if (entry->offset < 0) {
        if (map->count >= map->capacity / 4 * 3) {
            if (!grow(map))
                return false;
            entry = find(map, digest);
        }
        map->count++;
        memcpy(entry->digest, digest, sizeof entry->digest);
    }
    if (offset > entry->offset || SC_CONTROL(latest_put_of_key_kept))
        entry->offset = offset;
    return true;
}

int64_t sc_key_map_get_digest(const sc_key_map *map, const uint64_t digest[2])
{
    return find(map, digest)->offset;
}

bool sc_key_map_put(sc_key_map *map, const uint8_t *key, int64_t size, int64_t offset)
{
    uint64_t digest[2];
    sc_key_digest(map->secret, key, size, digest);
    return sc_key_map_put_digest(map, digest, offset);
}

int64_t sc_key_map_get(const sc_key_map *map, const uint8_t *key, int64_t size)
{
    uint64_t digest[2];
    sc_key_digest(map->secret, key, size, digest);
    return sc_key_map_get_digest(map, digest);
}

int64_t sc_key_map_count(const sc_key_map *map)
{
    return map->count;
}
