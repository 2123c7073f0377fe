#include "tally.h"

#include <stdlib.h>

sc_tally *sc_tally_new(void)
{
    sc_tally *tally = calloc(1, sizeof *tally);
    if (tally != NULL)
        atomic_init(&tally->references, 1);
    return tally;
}

void sc_tally_read(const sc_tally *tally, sc_scan_counters *counters)
{
    *counters = (sc_scan_counters){
        .segments = atomic_load(&tally->segments),
        .batches = atomic_load(&tally->batches),
        .rows = atomic_load(&tally->rows),
        .bytes_exported = atomic_load(&tally->bytes_exported),
        .bytes_verified = atomic_load(&tally->bytes_verified),
    };
}

void sc_tally_release(sc_tally *tally)
{
    if (tally != NULL && atomic_fetch_sub(&tally->references, 1) == 1)
        free(tally);
}
