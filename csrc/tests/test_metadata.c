#include "check.h"
#include "metadata.h"

enum { NODES = 7, BUFFERS = 15, VARIADIC = 2 };

static uint8_t *write_example(int codec, int64_t variadic, int64_t *size)
{
    *size = sc_metadata_size(NODES, BUFFERS, variadic);
    uint8_t *data = malloc((size_t)*size);
    CHECK(data != NULL);
    sc_metadata_write(data, codec, NODES, BUFFERS, variadic);
    int64_t body_length = 123456, rows = 42;
    memcpy(data + SC_METADATA_BODY_LENGTH, &body_length, 8);
    memcpy(data + SC_METADATA_ROWS, &rows, 8);
    for (int64_t i = 0; i < NODES; i++)
        memcpy(data + SC_METADATA_NODES + 16 * i, &(sc_node){100 + i, i}, sizeof(sc_node));
    for (int64_t i = 0; i < BUFFERS; i++)
        memcpy(data + sc_metadata_buffers_at(NODES) + 16 * i, &(sc_buffer){64 * i, 9 * i}, sizeof(sc_buffer));
    return data;
}

static void test_what_is_written_is_read_for_every_codec(void)
{
    for (int codec = SC_CODEC_NONE; codec <= SC_CODEC_ZSTD; codec++)
        for (int64_t variadic = 0; variadic <= VARIADIC; variadic += VARIADIC) {
            int64_t size;
            sc_metadata found;
            uint8_t *data = write_example(codec, variadic, &size);
            CHECK_EQ((size + 8) % SC_ALIGNMENT, 0);
            CHECK(sc_metadata_read(data, size, &found));
            CHECK_EQ(found.rows, 42);
            CHECK_EQ(found.body_length, 123456);
            CHECK_EQ(found.codec, codec);
            CHECK_EQ(found.node_count, NODES);
            CHECK_EQ(found.buffer_count, BUFFERS);
            CHECK_EQ(found.variadic_count, variadic);
            for (int64_t i = 0; i < NODES; i++)
                CHECK(sc_metadata_node(&found, i).length == 100 + i && sc_metadata_node(&found, i).null_count == i);
            for (int64_t i = 0; i < BUFFERS; i++)
                CHECK(sc_metadata_buffer(&found, i).offset == 64 * i && sc_metadata_buffer(&found, i).length == 9 * i);
            for (int64_t i = 0; i < variadic; i++)
                CHECK_EQ(sc_metadata_variadic(&found, i), 1);
            free(data);
        }
}

/* Tables in another order and with shorter vtables than ours, as other flatbuffer writers leave them. */
static void test_a_message_of_another_writer_is_read(void)
{
    /* Message at 32: vtable {12, 24; version 6, type 5, header 8, length 16}; RecordBatch at 80 with no compression */
    uint8_t data[256] = {0};
    uint32_t root = 32;
    uint16_t message_table[6] = {12, 24, 6, 5, 8, 16};
    uint16_t batch_table[5] = {10, 24, 16, 4, 8}; /* length, nodes, buffers; nothing behind */
    memcpy(data, &root, 4);
    memcpy(data + 20, message_table, sizeof message_table);
    memcpy(data + 32, &(int32_t){12}, 4);
    data[32 + 5] = 3;
    memcpy(data + 32 + 6, &(int16_t){4}, 2);
    memcpy(data + 32 + 8, &(uint32_t){80 - 40}, 4);
    memcpy(data + 32 + 16, &(int64_t){640}, 8);
    memcpy(data + 64, batch_table, sizeof batch_table);
    memcpy(data + 80, &(int32_t){16}, 4);
    memcpy(data + 84, &(uint32_t){120 - 84}, 4);
    memcpy(data + 88, &(uint32_t){160 - 88}, 4);
    memcpy(data + 96, &(int64_t){5}, 8);
    memcpy(data + 120, &(uint32_t){1}, 4);
    memcpy(data + 124, &(sc_node){5, 1}, 16);
    memcpy(data + 160, &(uint32_t){2}, 4);
    memcpy(data + 164, &(sc_buffer){0, 1}, 16);
    memcpy(data + 180, &(sc_buffer){64, 40}, 16);
    sc_metadata found;
    CHECK(sc_metadata_read(data, sizeof data, &found));
    CHECK_EQ(found.rows, 5);
    CHECK_EQ(found.body_length, 640);
    CHECK_EQ(found.node_count, 1);
    CHECK_EQ(sc_metadata_node(&found, 0).null_count, 1);
    CHECK_EQ(found.buffer_count, 2);
    CHECK_EQ(sc_metadata_buffer(&found, 1).length, 40);
    CHECK_EQ(found.variadic_count, 0);
    CHECK_EQ(found.codec, SC_CODEC_NONE);
}

static void read_everything(const uint8_t *data, int64_t size)
{
    sc_metadata found;
    volatile int64_t sum = 0;
    if (!sc_metadata_read(data, size, &found))
        return;
    for (int64_t i = 0; i < found.node_count; i++)
        sum += sc_metadata_node(&found, i).length & 1;
    for (int64_t i = 0; i < found.buffer_count; i++)
        sum += sc_metadata_buffer(&found, i).length & 1;
    for (int64_t i = 0; i < found.variadic_count; i++)
        sum += sc_metadata_variadic(&found, i) & 1;
    (void)sum;
}

/* The copies have their exact size on the heap, so that a sanitizer sees a read behind them. */
static void test_every_truncation_is_refused_or_read_inside(void)
{
    int64_t size;
    uint8_t *data = write_example(SC_CODEC_ZSTD, VARIADIC, &size);
    for (int64_t cut = 0; cut < size; cut++) {
        uint8_t *part = malloc((size_t)cut + (cut == 0));
        CHECK(part != NULL);
        memcpy(part, data, (size_t)cut);
        read_everything(part, cut);
        free(part);
    }
    free(data);
}

static void test_every_changed_byte_is_refused_or_read_inside(void)
{
    static const uint8_t changes[] = {0x00, 0x01, 0x7f, 0x80, 0xff, 0x04};
    int64_t size;
    uint8_t *data = write_example(SC_CODEC_LZ4, VARIADIC, &size);
    for (int64_t i = 0; i < size; i++) {
        uint8_t kept = data[i];
        for (size_t k = 0; k < sizeof changes; k++) {
            data[i] = changes[k];
            read_everything(data, size);
        }
        data[i] = kept;
    }
    free(data);
}

static void test_other_messages_and_versions_are_refused(void)
{
    int64_t size;
    sc_metadata found;
    uint8_t *data = write_example(SC_CODEC_NONE, 0, &size);
    enum { VERSION_AT = 32, TYPE_AT = 34 };
    data[VERSION_AT] = 3; /* V4: other buffers for unions */
    CHECK(!sc_metadata_read(data, size, &found));
    data[VERSION_AT] = 4;
    data[TYPE_AT] = 2; /* a dictionary batch */
    CHECK(!sc_metadata_read(data, size, &found));
    data[TYPE_AT] = 3;
    CHECK(sc_metadata_read(data, size, &found));
    int64_t negative = -1;
    memcpy(data + SC_METADATA_ROWS, &negative, 8);
    CHECK(!sc_metadata_read(data, size, &found));
    free(data);
}

int main(int argc, char **argv)
{
    RUN(test_what_is_written_is_read_for_every_codec);
    RUN(test_a_message_of_another_writer_is_read);
    RUN(test_every_truncation_is_refused_or_read_inside);
    RUN(test_every_changed_byte_is_refused_or_read_inside);
    RUN(test_other_messages_and_versions_are_refused);
    return 0;
}
