/* Lays records out as the body of one batch: first the plan (sizes), then the bytes. Internal. */
#ifndef STREAMCORE_ENCODE_H
#define STREAMCORE_ENCODE_H

#include "batch.h"

typedef struct sc_encoding {
    const sc_layout *layout;
    const sc_batch_input *input;
    int64_t max_record_bytes;
    int64_t total_size; /* of the message */
    int64_t min_timestamp, max_timestamp;
    uint16_t flags; /* codec and has-headers */

    int64_t metadata_size, body_size, zeros_size;
    int64_t padding; /* zeros at the end of the body that are not stored: the place is zero already */
    int32_t next_buffer;
    sc_node *nodes;
    sc_buffer *buffers;
    int64_t *variadic;
    int64_t variadic_count;
    sc_metadata message; /* of a compressed message that is taken over */
    uint8_t *body;       /* NULL while planning */
    int64_t base_offset; /* while writing */
    void *memory;
} sc_encoding;

/* What a writer adds to the header. */
typedef struct sc_placement {
    int64_t base_offset, durable_offset;
    int64_t covered; /* offsets, where they may be more than the rows: a rewritten batch; 0: as many as rows */
    int64_t start_offset, unstable_count;
    uint16_t flags;
    int16_t producer_epoch;
    int32_t base_sequence;
    int64_t producer_id; /* SC_NO_PRODUCER: the header has -1 in its three fields */
    uint16_t control;    /* SC_CONTROL_*; a marker takes an offset */
    int64_t transaction_offset;
} sc_placement;

/* Works out sizes and checks the input; reads it, writes nothing. */
int sc_encoding_plan(sc_encoding *encoding, const sc_layout *layout, const sc_batch_input *input,
                     int64_t max_record_bytes, sc_error *error);
/* Plans a batch without records that takes `size` bytes: at least sc_encoding_empty_size, and a multiple of 64. */
int sc_encoding_plan_empty(sc_encoding *encoding, const sc_layout *layout, int64_t size, sc_error *error);
int64_t sc_encoding_empty_size(const sc_layout *layout);
/* Writes all of the message but its opening to `at`, which holds total_size zero bytes. Cannot fail.
 * Of an empty batch only the first sc_encoding_empty_size bytes are touched. */
void sc_encoding_write(sc_encoding *encoding, uint8_t *at, const sc_placement *placement);
/* The eight bytes that open the message. */
uint64_t sc_encoding_opening(const sc_encoding *encoding);
void sc_encoding_free(sc_encoding *encoding);

#endif
