/* The counters of a scan, which outlive it. Internal. */
#ifndef STREAMCORE_TALLY_H
#define STREAMCORE_TALLY_H

#include <stdatomic.h>

#include "streamcore.h"

struct sc_tally {
    atomic_long references;
    atomic_llong segments, batches, rows, bytes_exported, bytes_verified;
};

sc_tally *sc_tally_new(void);
static inline void sc_tally_add(atomic_llong *counter, int64_t amount)
{
    atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

#endif
