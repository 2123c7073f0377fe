/*
 * What a partition knows of its producers: epochs, the last batches, open transactions. Internal.
 *
 * The table is a pure function of the log: sc_producer_state_apply takes one batch header after the other. Rules as in
 * Apache Kafka's ProducerStateManager: idempotence and transactions are KIP-98, an unknown producer may begin with any
 * sequence (KIP-360), the last five appends of a producer can be repeated. Where Kafka counts batches, this counts
 * appends: several batches that were appended together are repeated together.
 *
 * Times are those of this machine's clock when the table learnt of a batch, not the records': a replay of old records
 * must not make their producer look idle.
 *
 * Encoded (sc_producer_state_encode), in the `.producers` file and in control batches of rewritten segments:
 *
 *      0  8 bytes  "SCPRODU1"
 *      8  u32      CRC-32C of all that follows this field
 *     12  u32      number of producers
 *     16  i64      offset: all below it in the log is in here
 *     24  i64      size of all of it, 32 + 160 for each producer
 *     32  sc_producer_entry of each producer, 160 bytes
 */
#ifndef STREAMCORE_PRODUCER_STATE_H
#define STREAMCORE_PRODUCER_STATE_H

#include "batch.h"

enum {
    SC_PRODUCER_UNITS = 5,        /* appends that are remembered of each producer */
    SC_PRODUCERS_MAX = 100000,    /* of one partition; beyond it those that are idle longest are forgotten */
    SC_PRODUCER_HEADER_SIZE = 32, /* of the encoded form */
};
#define SC_PRODUCER_EXPIRY_MS (INT64_C(7) * 24 * 60 * 60 * 1000) /* Kafka's transactional.id.expiration.ms */

/* One append: its offsets, and the sequence of its first record. */
typedef struct sc_producer_unit {
    int64_t first_offset, last_offset;
    int32_t first_sequence;
    int32_t reserved;
} sc_producer_unit;

typedef struct sc_producer_entry {
    int64_t id;
    int64_t open_offset; /* the first offset of its open transaction; -1: it has none */
    int64_t seen_ms;     /* when the last batch or marker was learnt of */
    int16_t epoch;
    uint16_t unit_count;
    uint32_t reserved_32;
    sc_producer_unit units[SC_PRODUCER_UNITS]; /* of this epoch, oldest first */
    int64_t reserved;
} sc_producer_entry;
static_assert(sizeof(sc_producer_entry) == 160, "an encoded producer has 160 bytes");

typedef struct sc_producer_state {
    int64_t offset; /* everything below it is in the table */
    sc_producer_entry *entries;
    int64_t count, capacity;
    uint32_t *slots; /* open addressing by id: number of an entry + 1, or 0 */
    int64_t slot_count;
    int64_t *open; /* ids of producers with an open transaction, in no order */
    int64_t open_count, open_capacity;
    int64_t unsaved;                /* batches that were applied since it was last saved */
    int64_t expiry_ms;              /* next time to look for idle producers */
    int64_t segment_base, position; /* where the batch of `offset` begins, perhaps */
} sc_producer_state;

/* NULL: no memory. */
sc_producer_state *sc_producer_state_new(void);
void sc_producer_state_free(sc_producer_state *state);
/* Forgets all, and begins anew at `offset`. */
void sc_producer_state_reset(sc_producer_state *state, int64_t offset);
const sc_producer_entry *sc_producer_state_find(const sc_producer_state *state, int64_t id);

/* What becomes of an append of `count` records, before it is made: SC_OK, SC_FENCED (its epoch is over), SC_SEQUENCE
 * (it leaves a gap, or is a repetition of one that is too old), SC_INVALID (mixed with an open transaction).
 * *duplicate: it is in the log already, at *unit. */
int sc_producer_state_check(const sc_producer_state *state, const sc_producer *producer, int64_t count,
                            bool transactional, bool *duplicate, sc_producer_unit *unit, sc_error *error);
/* Takes an append over that was made at [first_offset, last_offset]; the table then reaches behind it. `continued`: it
 * belongs to the same append as the batch before it. */
int sc_producer_state_add(sc_producer_state *state, const sc_producer *producer, int64_t first_offset,
                          int64_t last_offset, bool transactional, bool continued, int64_t now_ms, sc_error *error);
/* Takes a marker over: ends the transaction, and fences epochs below the marker's. */
int sc_producer_state_end(sc_producer_state *state, const sc_producer *producer, int64_t marker_offset, int64_t now_ms,
                          sc_error *error);
/* Takes a batch over, of any kind but SC_CONTROL_PRODUCERS. */
int sc_producer_state_apply(sc_producer_state *state, const sc_header *header, bool continued, int64_t now_ms,
                            sc_error *error);
/* A header says that no transaction is open from before `stable_offset`: ends those whose markers were damaged. */
void sc_producer_state_settle(sc_producer_state *state, int64_t stable_offset);
/* The first offset of an open transaction of others than `except` (SC_NO_PRODUCER: of all), or `end_offset`. */
int64_t sc_producer_state_stable(const sc_producer_state *state, int64_t except, int64_t end_offset);
/* Forgets producers without an open transaction that were not seen since `before_ms`. */
void sc_producer_state_expire(sc_producer_state *state, int64_t before_ms);

int64_t sc_producer_state_encoded_size(const sc_producer_state *state);
void sc_producer_state_encode(const sc_producer_state *state, uint8_t *at);
/* Puts what was encoded into the table, in place of what it says of the same producers. SC_CORRUPT: nothing was taken.
 */
int sc_producer_state_decode(sc_producer_state *state, const uint8_t *data, int64_t size, int64_t *offset,
                             sc_error *error);

/* Sequences count records, and begin anew at 0 behind the greatest one. */
static inline int32_t sc_sequence_after(int32_t sequence, int64_t count)
{
    return (int32_t)(((int64_t)sequence + count) & INT32_MAX);
}

#endif
