/* Appends of producers, to partition 0 of a plain topic, and what is seen of them. A failure is in `error`. */
#ifndef STREAMCORE_TESTS_PRODUCING_H
#define STREAMCORE_TESTS_PRODUCING_H

#include "check.h"
#include "plain_topic.h"
#include "topic.h"

static sc_error error;

/* An append, to what is known of producers alone. */
static inline int add(sc_producer_state *state, int64_t id, int16_t epoch, int32_t sequence, int64_t offset,
                      int64_t count, bool transactional)
{
    sc_producer producer = {id, epoch, sequence};
    return sc_producer_state_add(state, &producer, offset, offset + count - 1, transactional, false, 1000 + offset,
                                 &error);
}

enum { ROWS_MAX = 64 };

static inline int produce(sc_topic *topic, sc_producer producer, bool transactional, int64_t count, int64_t each,
                          int64_t *first)
{
    static const uint8_t text[200];
    sc_bytes values[ROWS_MAX];
    sc_batch_input inputs[ROWS_MAX];
    int64_t batches = 0, end;
    for (int64_t i = 0; i < count; i++)
        values[i] = (sc_bytes){text, 100};
    for (int64_t at = 0; at < count; at += each)
        inputs[batches++] = (sc_batch_input){
            .count = count - at < each ? count - at : each, .values = values + at, .timestamp = FIRST_TIME};
    sc_append append = {.batches = inputs,
                        .batch_count = batches,
                        .schema_version = 1,
                        .generation = GENERATION,
                        .expected_offset = -1,
                        .producer = producer,
                        .transactional = transactional};
    return sc_partition_append(topic, 0, &append, first, &end, &error);
}

static inline int64_t finish(sc_topic *topic, int64_t id, int16_t epoch, bool commit)
{
    sc_marker marker = {.producer_id = id, .epoch = epoch, .commit = commit};
    int64_t offset;
    CHECK_OK(sc_partition_append_marker(topic, 0, &marker, &offset, &error), error);
    return offset;
}

static inline sc_partition_info info_of(sc_topic *topic)
{
    sc_partition_info info;
    CHECK_OK(sc_partition_describe(topic, 0, false, &info, &error), error);
    return info;
}

/* Which offsets a scan sees, as bits of `seen`; their number. */
static inline int64_t scan(sc_topic *topic, bool committed, uint8_t *seen)
{
    sc_partition_info info = info_of(topic);
    sc_range range = {0, info.start_offset, committed ? info.stable_offset : info.end_offset};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true,
                               .committed = committed};
    sc_scan *found;
    sc_batch batch;
    int64_t count = 0, counted;
    int code;
    CHECK_OK(sc_scan_open(topic, &options, &found, &error), error);
    while ((code = sc_scan_next(found, &batch, &error)) == SC_OK)
        for (int64_t i = 0; i < batch.row_count; i++, count++)
            seen[batch.base_offset + batch.first_row + i] = 1;
    CHECK_EQ(code, SC_END);
    sc_scan_free(found);
    CHECK_OK(sc_scan_open(topic, &options, &found, &error), error);
    CHECK_OK(sc_scan_count(found, &counted, &error), error);
    CHECK_EQ(counted, count);
    sc_scan_free(found);
    return count;
}

#endif
