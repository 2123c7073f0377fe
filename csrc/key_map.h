/*
 * The greatest offset at which each key was seen, in memory of a fixed size. Internal.
 *
 * An entry has 24 bytes: 128 bits of SipHash-2-4 of the key, under a secret that is drawn anew for each map, and the
 * offset. Two keys share a digest with a probability of 2^-128, whoever chose them: with 2^32 keys that is 2^-65 for
 * the whole map, far less than that of a memory error which no checksum sees. Keys need not be compared, nor kept.
 */
#ifndef STREAMCORE_KEY_MAP_H
#define STREAMCORE_KEY_MAP_H

#include "streamcore.h"

typedef struct sc_key_entry {
    uint64_t digest[2];
    int64_t offset; /* -1: free */
} sc_key_entry;

/* SipHash-2-4 with 128 bits. */
void sc_key_digest(const uint64_t secret[2], const uint8_t *data, int64_t size, uint64_t digest[2]);

struct sc_key_map {
    uint64_t secret[2];
    sc_key_entry *entries;
    int64_t capacity, capacity_max; /* it begins small: few keys shall stay in the processor's cache */
    int64_t count;
};

enum { SC_KEY_BLOCK = 16 }; /* keys whose entries are fetched from memory side by side */

/* The digest of a key; its entry is on its way from memory then. */
void sc_key_map_prepare(const sc_key_map *map, const uint8_t *key, int64_t size, uint64_t digest[2]);
bool sc_key_map_put_digest(sc_key_map *map, const uint64_t digest[2], int64_t offset);
int64_t sc_key_map_get_digest(const sc_key_map *map, const uint64_t digest[2]);

#endif
