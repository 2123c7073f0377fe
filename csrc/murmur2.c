/* murmur2 (Austin Appleby, public domain), with the seed of Kafka's default partitioner (KIP-480 keeps it for keys). */
#include <string.h>

#include "streamcore.h"

uint32_t sc_murmur2(const void *data, size_t size)
{
    const uint32_t multiplier = 0x5bd1e995;
    const uint8_t *at = data;
    uint32_t hash = 0x9747b28cu ^ (uint32_t)size;
    for (; size >= 4; at += 4, size -= 4) {
        uint32_t word = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
        word *= multiplier;
        word ^= word >> 24;
        word *= multiplier;
        hash = hash * multiplier ^ word;
    }
    if (size == 3)
        hash ^= (uint32_t)at[2] << 16;
    if (size >= 2)
        hash ^= (uint32_t)at[1] << 8;
    if (size >= 1)
        hash = (hash ^ at[0]) * multiplier;
    hash ^= hash >> 13;
    hash *= multiplier;
    hash ^= hash >> 15;
    return hash;
}

uint32_t sc_partition_of_key(const void *data, size_t size, uint32_t partitions)
{
    return (sc_murmur2(data, size) & 0x7fffffff) % partitions;
}
