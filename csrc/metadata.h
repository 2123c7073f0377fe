/*
 * The flatbuffer of an Arrow record batch message (format/Message.fbs of Apache Arrow). Internal.
 *
 * We write it at fixed places, so that one copy of a template and a few stores make a batch's metadata:
 *
 *      0  u32  root: 16                        84  u16[4]  vtable of BodyCompression
 *      4  u16[6] vtable of Message             92  BodyCompression: i32 vtable, i8 codec, i8 method
 *     16  Message: i32 vtable, u32 header,    100  u32 number of nodes, then at 104 {i64 length, i64 nulls} of each
 *         i64 bodyLength (24), i16 version,     q  = 104 + 16 nodes: u32 padding, u32 number of buffers,
 *         u8 header type                           then {i64 offset, i64 length} of each
 *     36  u16[7] vtable of RecordBatch          r  = q + 8 + 16 buffers: u32 padding, u32 number of variadic counts,
 *     56  RecordBatch: i32 vtable, u32 nodes,      then i64 of each
 *         i64 length (64), u32 buffers,
 *         u32 compression, u32 variadic counts
 *
 * padded so that the message's prefix of 8 bytes and this are a multiple of 64. We read any valid flatbuffer.
 */
#ifndef STREAMCORE_METADATA_H
#define STREAMCORE_METADATA_H

#include "streamcore.h"

typedef struct sc_node {
    int64_t length, null_count;
} sc_node;

typedef struct sc_buffer {
    int64_t offset, length; /* in the body */
} sc_buffer;

enum { SC_METADATA_BODY_LENGTH = 24, SC_METADATA_ROWS = 64, SC_METADATA_NODES = 104 };

int64_t sc_metadata_size(int64_t nodes, int64_t buffers, int64_t variadic);
/* Writes sc_metadata_size bytes with all numbers zero, and each variadic count 1. */
void sc_metadata_write(uint8_t *at, int codec, int64_t nodes, int64_t buffers, int64_t variadic);
static inline int64_t sc_metadata_buffers_at(int64_t nodes)
{
    return SC_METADATA_NODES + 16 * nodes + 8;
}
static inline int64_t sc_metadata_variadic_at(int64_t nodes, int64_t buffers)
{
    return sc_metadata_buffers_at(nodes) + 16 * buffers + 8;
}

/* What a message says; the pointers lie in it and may be unaligned. */
typedef struct sc_metadata {
    int64_t rows, body_length;
    int codec;
    int64_t node_count, buffer_count, variadic_count;
    const uint8_t *nodes, *buffers, *variadic;
} sc_metadata;

/* False when it is not a record batch of metadata version 5, or reaches outside `size`. */
bool sc_metadata_read(const uint8_t *data, int64_t size, sc_metadata *metadata);
sc_node sc_metadata_node(const sc_metadata *metadata, int64_t index);
sc_buffer sc_metadata_buffer(const sc_metadata *metadata, int64_t index);
int64_t sc_metadata_variadic(const sc_metadata *metadata, int64_t index);

#endif
