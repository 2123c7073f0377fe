/*
 * What a handle did since it was opened: counts of each partition, which sc_topic_count adds up. Internal.
 *
 * Every count has one writer at a time (who holds the partition's append mutex, or leads its sync), so adding is a load
 * and a store: no locked instruction in an append. Readers may lag.
 */
#ifndef STREAMCORE_COUNTERS_H
#define STREAMCORE_COUNTERS_H

#include <stdatomic.h>

#include "streamcore.h"

typedef struct sc_partition_counts {
    _Atomic int64_t appends, records, bytes;
    _Atomic int64_t syncs, sync_ns;
    _Atomic int64_t append_records[SC_HISTOGRAM_BUCKETS], sync_us[SC_HISTOGRAM_BUCKETS];
} sc_partition_counts;

static inline void sc_count(_Atomic int64_t *count, int64_t more)
{
    int64_t now = atomic_load_explicit(count, memory_order_relaxed);
    atomic_store_explicit(count, now + more, memory_order_relaxed);
}

/* Bucket i counts the values below 2^i that no bucket before it counts; the last one also what is greater. */
static inline int sc_histogram_bucket(int64_t value)
{
    int bits = value <= 0 ? 0 : 64 - __builtin_clzll((unsigned long long)value);
    return bits < SC_HISTOGRAM_BUCKETS ? bits : SC_HISTOGRAM_BUCKETS - 1;
}

void sc_counts_append(sc_partition_counts *counts, int64_t records, int64_t bytes);
void sc_counts_sync(sc_partition_counts *counts, int64_t elapsed_ns);
void sc_counts_add(const sc_partition_counts *counts, sc_counters *sum);

#endif
