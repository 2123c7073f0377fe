#include "transaction_log.h"

#include "check.h"

enum { ROWS_MAX = 32 };

int log_produce(sc_topic *topic, sc_producer producer, bool transactional, int64_t count, int64_t *first_offset,
                sc_error *error)
{
    static const uint8_t text[100];
    sc_bytes values[ROWS_MAX], keys[ROWS_MAX];
    int64_t end;
    CHECK(count <= ROWS_MAX);
    for (int64_t i = 0; i < count; i++) {
        values[i] = (sc_bytes){i % 5 == 4 ? NULL : text, i % 5 == 4 ? 0 : 10 + 7 * i};
        keys[i] = (sc_bytes){i % 7 == 6 ? NULL : (const uint8_t *)"abcdefgh" + i % 3, i % 7 == 6 ? 0 : 3};
    }
    sc_batch_input input = {
        .count = count, .keys = keys, .values = values, .timestamp = FIRST_TIME + producer.sequence};
    sc_append append = {.batches = &input,
                        .batch_count = 1,
                        .schema_version = 1,
                        .generation = GENERATION,
                        .expected_offset = -1,
                        .producer = producer,
                        .transactional = transactional};
    return sc_partition_append(topic, 0, &append, first_offset, &end, error);
}

static void produce(sc_topic *topic, int64_t id, int16_t epoch, int32_t sequence, bool transactional, int64_t count)
{
    sc_error error;
    int64_t first;
    CHECK_OK(log_produce(topic, (sc_producer){id, epoch, sequence}, transactional, count, &first, &error), error);
}

static void finish(sc_topic *topic, int64_t id, int16_t epoch, bool commit)
{
    sc_marker marker = {.producer_id = id, .epoch = epoch, .commit = commit};
    sc_error error;
    int64_t offset;
    CHECK_OK(sc_partition_append_marker(topic, 0, &marker, &offset, &error), error);
}

static void make_sealed(sc_topic *topic)
{
    sc_error error;
    int64_t base;
    for (int32_t i = 0; i < 3; i++)
        produce(topic, 7, 0, i * 2, false, 2);
    produce(topic, 8, 0, 0, true, 3);
    produce(topic, 9, 0, 0, true, 4);
    finish(topic, 8, 0, true);
    finish(topic, 9, 0, false);
    produce(topic, 9, 1, 0, true, 5);
    produce(topic, SC_NO_PRODUCER, 0, 0, false, 8);
    finish(topic, 9, 1, true);
    CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
}

static void rewrite(sc_topic *topic)
{
    sc_rewrite *self;
    sc_rewrite_report report;
    sc_error error;
    CHECK_OK(sc_rewrite_open(topic, 0, 0, &self, &error), error);
    CHECK_OK(sc_rewrite_plain(self, 1 << 20, NULL, NULL, &error), error);
    CHECK_OK(sc_rewrite_commit(self, &report, &error), error);
    CHECK(report.replaced);
    sc_rewrite_free(self);
}

void transaction_log_make(const char *path, bool rewritten)
{
    sc_topic *topic = topic_open_with(path, true, TRANSACTION_LOG_SEGMENT);
    make_sealed(topic);
    if (rewritten)
        rewrite(topic);
    produce(topic, 7, 0, 6, false, 2);
    produce(topic, 9, 2, 0, true, 2);
    finish(topic, 9, 2, false);
    produce(topic, 8, 1, 0, true, 3); /* left open */
    produce(topic, 7, 0, 8, false, 2);
    topic_close(topic);
    topic = topic_open_with(path, true, TRANSACTION_LOG_SEGMENT);
    topic_close(topic);
}
