/*
 * A compiled schema: for every node of the Arrow type tree its kind and its place in the message. Internal.
 *
 * Nodes are numbered in the order in which Arrow IPC writes them: depth first, parents before children. A node's
 * buffers follow each other; a view node has one variadic buffer when we wrote it.
 */
#ifndef STREAMCORE_LAYOUT_H
#define STREAMCORE_LAYOUT_H

#include "streamcore.h"

enum sc_kind {
    SC_KIND_NULL,         /* no buffers */
    SC_KIND_BOOL,         /* validity, bits */
    SC_KIND_FIXED,        /* validity, values of `width` bytes */
    SC_KIND_BINARY,       /* validity, int32 offsets, bytes */
    SC_KIND_LARGE_BINARY, /* validity, int64 offsets, bytes */
    SC_KIND_VIEW,         /* validity, 16-byte views, variadic bytes */
    SC_KIND_LIST,         /* validity, int32 offsets; one child. Maps too. */
    SC_KIND_LARGE_LIST,   /* validity, int64 offsets; one child */
    SC_KIND_FIXED_LIST,   /* validity; one child of `width` times the length */
    SC_KIND_STRUCT,       /* validity; children of the same length */
};

enum { SC_COLUMN_OFFSET, SC_COLUMN_TIMESTAMP, SC_COLUMN_KEY, SC_COLUMN_VALUE, SC_COLUMN_HEADERS, SC_COLUMNS };

typedef struct sc_field {
    enum sc_kind kind;
    int32_t width;
    int32_t buffer;   /* first buffer */
    int32_t variadic; /* place in variadicBufferCounts, of a view */
    int32_t children;
    int32_t end; /* the field behind this subtree: the next sibling */
} sc_field;

struct sc_layout {
    sc_field *fields; /* a field's index is its node number */
    int32_t field_count, buffer_count, variadic_count;
    int32_t columns[SC_COLUMNS];
    bool plain;
    uint32_t schema_version;
    uint8_t *schema_message;
    int64_t schema_message_size;
    int64_t partition_digits_at;
    uint8_t *metadata_template; /* of an uncompressed batch; see metadata.h */
    int64_t metadata_size;
    sc_layout *next; /* in the topic's list */
};

/* The number of buffers of a node, its variadic ones left out. */
int sc_kind_buffers(enum sc_kind kind);
/* The schema message of one partition: the layout's with the digits filled in. */
void sc_layout_schema_message(const sc_layout *layout, uint32_t partition, uint8_t *out);

#endif
