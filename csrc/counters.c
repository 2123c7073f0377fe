#include "counters.h"

void sc_counts_append(sc_partition_counts *counts, int64_t records, int64_t bytes)
{
    sc_count(&counts->appends, 1);
    sc_count(&counts->records, records);
    sc_count(&counts->bytes, bytes);
    sc_count(&counts->append_records[sc_histogram_bucket(records)], 1);
}

void sc_counts_sync(sc_partition_counts *counts, int64_t elapsed_ns)
{
    sc_count(&counts->syncs, 1);
    sc_count(&counts->sync_ns, elapsed_ns);
    sc_count(&counts->sync_us[sc_histogram_bucket(elapsed_ns / 1000)], 1);
}

static int64_t read_count(const _Atomic int64_t *count)
{
    return atomic_load_explicit(count, memory_order_relaxed);
}

void sc_counts_add(const sc_partition_counts *counts, sc_counters *sum)
{
    sum->appends += read_count(&counts->appends);
    sum->records += read_count(&counts->records);
    sum->bytes += read_count(&counts->bytes);
    sum->syncs += read_count(&counts->syncs);
    sum->sync_ns += read_count(&counts->sync_ns);
    for (int i = 0; i < SC_HISTOGRAM_BUCKETS; i++) {
        sum->append_records[i] += read_count(&counts->append_records[i]);
        sum->sync_us[i] += read_count(&counts->sync_us[i]);
    }
}
