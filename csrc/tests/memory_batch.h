/* Batches in memory, written as an append would and looked at as a scan would. */
#ifndef STREAMCORE_TESTS_MEMORY_BATCH_H
#define STREAMCORE_TESTS_MEMORY_BATCH_H

#include "encode.h"
#include "mapping.h"

typedef struct memory_batch {
    uint8_t *message;
    sc_header header;
    sc_batch batch;     /* all rows wanted */
    sc_mapping mapping; /* of nothing: exports count references in it */
} memory_batch;

void memory_batch_write(const sc_layout *layout, const sc_batch_input *input, int64_t base_offset, memory_batch *out);
/* Corrects the checksums after the message was changed, and looks at it again. */
void memory_batch_reseal(memory_batch *out);
void memory_batch_free(memory_batch *out); /* checks that all exports were released */

#endif
