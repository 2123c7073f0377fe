/*
 * One batch: an Arrow IPC record batch message whose body opens with the batch header. Internal.
 *
 *   position  0   u32  FFFFFFFF       } the opening: stored last, so that until then
 *             4   i32  metadata size m } every reader sees the end of the stream here
 *             8   m bytes of flatbuffer (metadata.h); 8 + m is a multiple of 64
 *         8 + m   128 bytes of batch header, below, which no Arrow buffer refers to
 *       136 + m   the buffers, each at a multiple of 64
 */
#ifndef STREAMCORE_BATCH_H
#define STREAMCORE_BATCH_H

#include <assert.h>

#include "layout.h"
#include "metadata.h"

enum {
    SC_FLAG_TRANSACTIONAL = 1 << 0,
    SC_FLAG_CONTROL = 1 << 1,
    SC_FLAG_LOG_APPEND_TIME = 1 << 2,
    SC_FLAG_CODEC_SHIFT = 3, /* two bits: SC_CODEC_* */
    SC_FLAG_CODEC = 3 << SC_FLAG_CODEC_SHIFT,
    SC_FLAG_HAS_HEADERS = 1 << 5,
    SC_FLAG_CONTINUED = 1 << 6, /* the next batch belongs to the same append: both or neither */
    SC_FLAG_SPARSE = 1 << 7, /* rewritten: offsets base to last are covered, and only those in the column are there */
    SC_FLAGS_KNOWN = (1 << 8) - 1,
};

/* What a batch with SC_FLAG_CONTROL, which has no rows, says. Markers take one offset, as in Apache Kafka. */
enum {
    SC_CONTROL_NONE = 0,
    SC_CONTROL_COMMIT = 1,    /* the producer's transaction that begins at transaction_offset is committed */
    SC_CONTROL_ABORT = 2,     /* ... is aborted: committed readers pass over its records */
    SC_CONTROL_PRODUCERS = 3, /* takes no offset: the body behind the header is a snapshot of producer state */
};

enum { SC_HEADER_SIZE = 128, SC_OPENING_SIZE = 8, SC_BATCH_VERSION = 1 };
#define SC_CONTINUATION 0xffffffffu

/* Little-endian on disk, at a multiple of 64. */
typedef struct sc_header {
    uint8_t magic[4]; /* "SCB1" */
    uint16_t version;
    uint16_t flags;
    uint32_t header_crc; /* CRC32C of the 8 bytes before this field, then of the 116 behind it */
    uint32_t body_crc;   /* CRC32C of the metadata, then of the body behind this header */
    int64_t total_size;  /* of the message, opening and metadata included: a multiple of 64 */
    int64_t base_offset;
    int64_t last_offset;
    int32_t record_count;
    int32_t metadata_size;
    int64_t min_timestamp; /* of the records, ms */
    int64_t max_timestamp;
    int64_t durable_offset; /* the partition's when this was written: all below it had been synced */
    int64_t producer_id;    /* -1: none */
    int16_t producer_epoch;
    uint16_t control; /* SC_CONTROL_* */
    int32_t base_sequence;
    int32_t leader_epoch;
    uint32_t schema_version;
    int64_t unstable_count;     /* offsets from the first open transaction to the end of this batch; 0: none is open */
    int64_t start_offset;       /* of the partition when this was written: records below it are deleted */
    int64_t transaction_offset; /* of a marker: the first offset of the transaction in this partition */
    uint8_t reserved[8];
} sc_header;
static_assert(sizeof(sc_header) == SC_HEADER_SIZE, "the header has 128 bytes");
static_assert(offsetof(sc_header, header_crc) == 8 && offsetof(sc_header, total_size) == 16 &&
                  offsetof(sc_header, record_count) == 40 && offsetof(sc_header, min_timestamp) == 48 &&
                  offsetof(sc_header, durable_offset) == 64 && offsetof(sc_header, base_sequence) == 84 &&
                  offsetof(sc_header, unstable_count) == 96 && offsetof(sc_header, reserved) == 120,
              "the header's fields lie where docs/format.md says");

enum sc_batch_state {
    SC_BATCH_GOOD,
    SC_BATCH_NONE,   /* zeros: the stream ends here */
    SC_BATCH_MARKER, /* the end marker of a sealed segment */
    SC_BATCH_BAD,    /* neither */
};

/* Looks at the message at `data`, of which `available` bytes may be read: its frame and the header's checksum, not the
 * body. On SC_BATCH_BAD `why` says what is wrong. */
enum sc_batch_state sc_batch_look(const uint8_t *data, int64_t available, sc_header *header, const char **why);
/* The checksum of the metadata and the body of a message that sc_batch_look found good. */
uint32_t sc_batch_checksum(const uint8_t *data, const sc_header *header);
/* Narrows first_row and row_count of a rewritten batch to the rows with start_offset <= offset < end_offset. */
int sc_batch_clip_to_offsets(sc_batch *batch, int64_t start_offset, int64_t end_offset, sc_error *error);
/* Whether its offsets ascend, inside what it covers. */
int sc_batch_check_offsets(const sc_batch *batch, sc_error *error);
void sc_header_seal(sc_header *header);
/* Its magic and checksum are right. */
bool sc_header_is_sound(const sc_header *header);
/* It is sound, but has a version or flags that we do not know. */
bool sc_header_is_newer(const sc_header *header);

static inline int64_t sc_align(int64_t size)
{
    return (size + SC_ALIGNMENT - 1) & ~(int64_t)(SC_ALIGNMENT - 1);
}

#endif
