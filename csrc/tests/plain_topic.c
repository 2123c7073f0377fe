#include "plain_topic.h"

#include <stdarg.h>

#include "check.h"
#include "state.h"
#include "topic.h"

/* ---- schemas ----------------------------------------------------------------------------------------------- */

static void release_nothing(struct ArrowSchema *schema)
{
    schema->release = NULL;
}

struct ArrowSchema *schema_new(const char *format, const char *name, int children, ...)
{
    struct ArrowSchema *schema = calloc(1, sizeof *schema);
    CHECK(schema != NULL);
    *schema = (struct ArrowSchema){.format = format,
                                   .name = name,
                                   .flags = ARROW_FLAG_NULLABLE,
                                   .n_children = children,
                                   .release = release_nothing};
    schema->children = calloc((size_t)children + 1, sizeof *schema->children);
    CHECK(schema->children != NULL);
    va_list arguments;
    va_start(arguments, children);
    for (int i = 0; i < children; i++)
        schema->children[i] = va_arg(arguments, struct ArrowSchema *);
    va_end(arguments);
    return schema;
}

void schema_free(struct ArrowSchema *schema)
{
    for (int64_t i = 0; i < schema->n_children; i++)
        schema_free(schema->children[i]);
    free(schema->children);
    free(schema);
}

struct ArrowSchema *schema_of_topic(struct ArrowSchema *value)
{
    struct ArrowSchema *header = schema_new("+s", "item", 2, schema_new("u", "key", 0), schema_new("z", "value", 0));
    return schema_new("+s", "", 5, schema_new("l", "offset", 0), schema_new("tsm:UTC", "timestamp", 0),
                      schema_new("z", "key", 0), value, schema_new("+l", "headers", 1, header));
}

void schema_message(uint8_t message[SCHEMA_SIZE], uint32_t version)
{
    for (int i = 0; i < SCHEMA_SIZE; i++)
        message[i] = (uint8_t)(1 + i % 250);
    memcpy(message, &(uint32_t){SC_CONTINUATION}, 4);
    memcpy(message + 4, &(uint32_t){SCHEMA_SIZE - 8}, 4);
    memset(message + DIGITS_AT, '0', 10);
    message[DIGITS_AT + 20] = (uint8_t)version;
}

sc_layout *layout_of(struct ArrowSchema *value, uint32_t version)
{
    uint8_t message[SCHEMA_SIZE];
    sc_layout *layout;
    sc_error error;
    struct ArrowSchema *schema = schema_of_topic(value);
    schema_message(message, version);
    CHECK_OK(sc_layout_new(schema, message, SCHEMA_SIZE, DIGITS_AT, version, &layout, &error), error);
    schema_free(schema);
    return layout;
}

sc_layout *plain_layout(uint32_t version)
{
    return layout_of(schema_new("z", "value", 0), version);
}

/* ---- topics ------------------------------------------------------------------------------------------------ */

sc_topic_settings settings_of(int64_t segment_bytes)
{
    return (sc_topic_settings){
        .segment_bytes = segment_bytes, .max_record_bytes = 1 << 20, .generation = GENERATION, .partitions = 4};
}

int topic_try_open(const char *path, bool writable, int64_t segment_bytes, sc_topic **topic, sc_error *error)
{
    sc_topic_settings settings = settings_of(segment_bytes);
    int code = sc_topic_open(path, writable, &settings, topic, error);
    return code != SC_OK ? code : sc_topic_add_layout(*topic, plain_layout(1), error);
}

sc_topic *topic_open_with(const char *path, bool writable, int64_t segment_bytes)
{
    sc_topic *topic;
    sc_error error;
    CHECK_OK(topic_try_open(path, writable, segment_bytes, &topic, &error), error);
    return topic;
}

sc_topic *topic_open(const char *path, bool writable)
{
    return topic_open_with(path, writable, 256 << 10);
}

void topic_close(sc_topic *topic)
{
    sc_error error;
    CHECK_OK(sc_topic_close(topic, &error), error);
    sc_topic_free(topic);
}

void topic_abandon(sc_topic *topic)
{
    topic->closed = true;
    atomic_store(&topic->closing, true);
    sc_state_unlock_all(&topic->state, false);
    sc_topic_free(topic);
}

/* ---- records ----------------------------------------------------------------------------------------------- */

int64_t value_of(uint32_t partition, int64_t offset, uint8_t value[VALUE_MAX])
{
    if (offset % 17 == 13)
        return -1;
    int64_t size = offset % 19 == 3 ? 0 : 60 + offset % 50;
    for (int64_t i = 0; i < size; i++)
        value[i] = (uint8_t)(offset * 31 + i * (7 + partition) + partition);
    return size;
}

int64_t key_of(uint32_t partition, int64_t offset, uint8_t key[VALUE_MAX])
{
    return offset % 5 == 4 ? -1
                           : snprintf((char *)key, VALUE_MAX, "key-%u-%lld", (unsigned)partition, (long long)offset);
}

int64_t time_of(int64_t offset)
{
    return FIRST_TIME + offset * 10;
}

typedef struct made_batch {
    sc_bytes *keys, *values;
    int64_t *times;
    uint8_t *bytes;
} made_batch;

static void make_batch(uint32_t partition, int64_t first, int64_t count, made_batch *made, sc_batch_input *input)
{
    *made = (made_batch){
        .keys = calloc((size_t)count, sizeof(sc_bytes)),
        .values = calloc((size_t)count, sizeof(sc_bytes)),
        .times = calloc((size_t)count, sizeof(int64_t)),
        .bytes = malloc((size_t)count * 2 * VALUE_MAX),
    };
    CHECK(made->keys != NULL && made->values != NULL && made->times != NULL && made->bytes != NULL);
    for (int64_t i = 0; i < count; i++) {
        uint8_t *key = made->bytes + 2 * i * VALUE_MAX, *value = key + VALUE_MAX;
        int64_t key_size = key_of(partition, first + i, key), value_size = value_of(partition, first + i, value);
        made->keys[i] = key_size < 0 ? (sc_bytes){NULL, 0} : (sc_bytes){key, key_size};
        made->values[i] = value_size < 0 ? (sc_bytes){NULL, 0} : (sc_bytes){value, value_size};
        made->times[i] = time_of(first + i);
    }
    *input = (sc_batch_input){.count = count, .keys = made->keys, .values = made->values, .timestamps = made->times};
}

int try_append(sc_topic *topic, uint32_t partition, int64_t first, int64_t count, int64_t each, bool durable,
               sc_error *error)
{
    enum { BATCHES_MAX = 64 };
    made_batch made[BATCHES_MAX];
    sc_batch_input inputs[BATCHES_MAX];
    int64_t batches = 0, first_offset = -1, end_offset = -1;
    for (int64_t at = 0; at < count; at += each, batches++) {
        CHECK(batches < BATCHES_MAX);
        make_batch(partition, first + at, count - at < each ? count - at : each, &made[batches], &inputs[batches]);
    }
    sc_append append = {.batches = inputs,
                        .batch_count = batches,
                        .schema_version = 1,
                        .generation = GENERATION,
                        .expected_offset = first,
                        .durable = durable};
    int code = sc_partition_append(topic, partition, &append, &first_offset, &end_offset, error);
    for (int64_t i = 0; i < batches; i++) {
        free(made[i].keys);
        free(made[i].values);
        free(made[i].times);
        free(made[i].bytes);
    }
    if (code == SC_OK) {
        CHECK_EQ(first_offset, first);
        CHECK_EQ(end_offset, first + count);
    }
    return code;
}

void append_records(sc_topic *topic, uint32_t partition, int64_t first, int64_t count)
{
    sc_error error;
    CHECK_OK(try_append(topic, partition, first, count, count, false, &error), error);
}

int64_t end_of(sc_topic *topic, uint32_t partition)
{
    sc_partition_info info;
    sc_error error;
    CHECK_OK(sc_partition_describe(topic, partition, false, &info, &error), error);
    return info.end_offset;
}

/* ---- reading ----------------------------------------------------------------------------------------------- */

static void check_bytes(const uint8_t *validity, const int32_t *ends, const uint8_t *bytes, int64_t row, int64_t size,
                        const uint8_t *wanted)
{
    bool valid = validity == NULL || (validity[row / 8] >> (row % 8) & 1);
    CHECK_EQ(valid, size >= 0);
    if (!valid)
        return;
    CHECK_EQ(ends[row + 1] - ends[row], size);
    CHECK(size == 0 || memcmp(bytes + ends[row], wanted, (size_t)size) == 0);
}

static int check_batch(const sc_batch *batch, int64_t *next, sc_error *error)
{
    sc_rows rows;
    uint8_t wanted[VALUE_MAX];
    int code = sc_batch_rows(batch, &rows, error);
    if (code != SC_OK)
        return code;
    CHECK_EQ(rows.count, batch->record_count);
    CHECK(batch->first_row >= 0 && batch->first_row + batch->row_count <= rows.count);
    for (int64_t row = batch->first_row; row < batch->first_row + batch->row_count; row++, ++*next) {
        CHECK_EQ(rows.offsets[row], *next);
        CHECK_EQ(rows.timestamps[row], time_of(*next));
        int64_t size = key_of(batch->partition, *next, wanted);
        check_bytes(rows.key_validity, rows.key_ends, rows.keys, row, size, wanted);
        size = value_of(batch->partition, *next, wanted);
        check_bytes(rows.value_validity, rows.value_ends, rows.values, row, size, wanted);
    }
    return SC_OK;
}

int try_read(sc_topic *topic, uint32_t partition, int64_t start, int64_t end, int64_t *next, sc_error *error)
{
    sc_range range = {partition, start, end};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    sc_batch batch;
    *next = start;
    int code = sc_scan_open(topic, &options, &scan, error);
    if (code != SC_OK)
        return code;
    while (code == SC_OK) {
        code = sc_scan_next(scan, &batch, error);
        if (code == SC_OK)
            code = check_batch(&batch, next, error);
    }
    sc_scan_free(scan);
    return code == SC_END ? SC_OK : code;
}

void check_records(sc_topic *topic, uint32_t partition, int64_t start, int64_t end)
{
    int64_t next;
    sc_error error;
    CHECK_OK(try_read(topic, partition, start, end, &next, &error), error);
    CHECK_EQ(next, end);
}

void check_log(const char *path, int64_t end)
{
    sc_topic *topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), end);
    check_records(topic, 0, 0, end);
    append_records(topic, 0, end, 10);
    check_records(topic, 0, 0, end + 10);
    topic_close(topic);
    topic = topic_open(path, false);
    check_records(topic, 0, 0, end + 10);
    topic_close(topic);
}

/* ---- power ------------------------------------------------------------------------------------------------- */

void pretend_power_loss(const char *path)
{
    char file[FILE_MAX];
    int64_t size;
    snprintf(file, sizeof file, "%s/state", path);
    uint8_t *data = file_read(file, &size);
    for (int64_t at = sizeof(sc_state_header); at + (int64_t)sizeof(sc_slot) <= size; at += sizeof(sc_slot))
        memset(data + at + offsetof(sc_slot, boot_id), 0xee, sizeof((sc_slot *)0)->boot_id);
    file_write_at(file, data, size, 0);
    free(data);
}
