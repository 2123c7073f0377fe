#include "check.h"
#include "memory_batch.h"
#include "plain_topic.h"

static memory_batch written;
static sc_layout *layout;

static void make_batch(int64_t count)
{
    enum { MAX = 40 };
    static uint8_t bytes[MAX][VALUE_MAX];
    sc_bytes values[MAX];
    for (int64_t i = 0; i < count; i++)
        values[i] = (sc_bytes){bytes[i], value_of(0, i, bytes[i]) < 0 ? 0 : value_of(0, i, bytes[i])};
    layout = plain_layout(1);
    memory_batch_write(layout, &(sc_batch_input){.count = count, .values = values, .timestamp = 5}, 100, &written);
}

static void drop_batch(void)
{
    memory_batch_free(&written);
    sc_layout_free(layout);
}

static enum sc_batch_state look_at(const uint8_t *data, int64_t available, sc_header *header)
{
    const char *why = "";
    enum sc_batch_state state = sc_batch_look(data, available, header, &why);
    CHECK(state != SC_BATCH_BAD || strlen(why) > 0);
    return state;
}

/* As a reader that verifies would judge it. */
static bool is_accepted(const uint8_t *data, int64_t available)
{
    sc_header header;
    return look_at(data, available, &header) == SC_BATCH_GOOD && sc_batch_checksum(data, &header) == header.body_crc;
}

static void test_every_single_bit_flip_is_detected(void)
{
    make_batch(5);
    CHECK(is_accepted(written.message, written.header.total_size));
    for (int64_t bit = 0; bit < 8 * written.header.total_size; bit++) {
        written.message[bit / 8] ^= (uint8_t)(1 << (bit % 8));
        if (is_accepted(written.message, written.header.total_size)) {
            fprintf(stderr, "bit %lld\n", (long long)bit);
            CHECK(false);
        }
        written.message[bit / 8] ^= (uint8_t)(1 << (bit % 8));
    }
    drop_batch();
}

static void test_flips_in_frame_and_header_are_detected_without_reading_the_body(void)
{
    make_batch(5);
    sc_header header;
    int64_t header_at = SC_OPENING_SIZE + written.header.metadata_size;
    for (int64_t bit = 0; bit < 8 * (header_at + SC_HEADER_SIZE); bit++) {
        if (bit >= 8 * SC_OPENING_SIZE && bit < 8 * header_at)
            continue; /* the flatbuffer is under the body's checksum */
        written.message[bit / 8] ^= (uint8_t)(1 << (bit % 8));
        CHECK(look_at(written.message, written.header.total_size, &header) != SC_BATCH_GOOD);
        written.message[bit / 8] ^= (uint8_t)(1 << (bit % 8));
    }
    drop_batch();
}

/* The copies have their exact size on the heap, so that a sanitizer sees a read behind them. */
static void test_a_message_cut_short_is_bad(void)
{
    make_batch(5);
    sc_header header;
    for (int64_t size = 1; size < written.header.total_size; size += size < 800 ? 1 : 37) {
        uint8_t *part = malloc((size_t)size);
        CHECK(part != NULL);
        memcpy(part, written.message, (size_t)size);
        CHECK_EQ(look_at(part, size, &header), SC_BATCH_BAD);
        free(part);
    }
    drop_batch();
}

static void test_zeros_the_marker_and_nothing_are_no_batches(void)
{
    static const uint64_t zeros[32], marker[1] = {SC_CONTINUATION}, half[1] = {(uint64_t)1 << 40};
    sc_header header;
    CHECK_EQ(look_at((const uint8_t *)zeros, 0, &header), SC_BATCH_NONE);
    CHECK_EQ(look_at((const uint8_t *)zeros, 8, &header), SC_BATCH_NONE);
    CHECK_EQ(look_at((const uint8_t *)zeros, sizeof zeros, &header), SC_BATCH_NONE);
    CHECK_EQ(look_at((const uint8_t *)marker, 8, &header), SC_BATCH_MARKER);
    CHECK_EQ(look_at((const uint8_t *)half, 8, &header), SC_BATCH_BAD);
    CHECK_EQ(look_at((const uint8_t *)zeros, 7, &header), SC_BATCH_BAD);
}

static void change_header(void (*change)(sc_header *header), enum sc_batch_state wanted)
{
    make_batch(5);
    sc_header header, found;
    uint8_t *at = written.message + SC_OPENING_SIZE + written.header.metadata_size;
    memcpy(&header, at, sizeof header);
    change(&header);
    uint16_t version = header.version;
    sc_header_seal(&header);
    if (version != SC_BATCH_VERSION) {
        header.version = version;
        header.header_crc = sc_crc32c(sc_crc32c(0, &header, 8), (uint8_t *)&header + 12, sizeof header - 12);
    }
    memcpy(at, &header, sizeof header);
    CHECK_EQ(look_at(written.message, written.header.total_size, &found), wanted);
    drop_batch();
}

static void change_nothing(sc_header *header)
{
    (void)header;
}
static void set_unknown_flag(sc_header *header)
{
    header->flags |= 1 << 9;
}
static void set_later_version(sc_header *header)
{
    header->version = 2;
}
static void set_negative_base(sc_header *header)
{
    header->base_offset = -1;
}
static void set_last_before_base(sc_header *header)
{
    header->last_offset = header->base_offset - 1;
}
static void set_last_offset_of_all(sc_header *header)
{
    header->last_offset = INT64_MAX;
}
static void set_too_many_records(sc_header *header)
{
    header->record_count++;
}
static void set_negative_records(sc_header *header)
{
    header->record_count = -1;
}
static void set_gaps(sc_header *header)
{
    header->last_offset += 1000;
}
static void set_no_records(sc_header *header)
{
    header->record_count = 0;
}
static void set_rewritten_with_gaps(sc_header *header)
{
    header->flags |= SC_FLAG_SPARSE;
    set_gaps(header);
}
static void set_rewritten_with_nothing_left(sc_header *header)
{
    header->flags |= SC_FLAG_SPARSE;
    set_no_records(header);
}
static void set_rewritten_with_too_many(sc_header *header)
{
    header->flags |= SC_FLAG_SPARSE;
    set_too_many_records(header);
}
static void set_marker(sc_header *header)
{
    header->flags |= SC_FLAG_CONTROL;
    header->last_offset = header->base_offset;
    set_no_records(header);
}
static void set_marker_of_two_offsets(sc_header *header)
{
    set_marker(header);
    header->last_offset++;
}
static void set_longer(sc_header *header)
{
    header->total_size += SC_ALIGNMENT;
}
static void set_uneven(sc_header *header)
{
    header->total_size -= 8;
}
static void set_tiny(sc_header *header)
{
    header->total_size = SC_ALIGNMENT;
}
static void set_huge(sc_header *header)
{
    header->total_size = INT64_MAX - 63;
}
static void set_other_metadata(sc_header *header)
{
    header->metadata_size -= SC_ALIGNMENT;
}

static void set_open_from_before_the_log(sc_header *header)
{
    header->unstable_count = header->last_offset + 2;
}
static void set_negative_unstable(sc_header *header)
{
    header->unstable_count = INT64_MIN;
}

static void test_headers_with_a_checksum_that_make_no_sense_are_bad(void)
{
    change_header(change_nothing, SC_BATCH_GOOD);
    change_header(set_no_records, SC_BATCH_BAD); /* and yet it covers offsets */
    change_header(set_rewritten_with_gaps, SC_BATCH_GOOD);
    change_header(set_rewritten_with_nothing_left, SC_BATCH_GOOD);
    change_header(set_rewritten_with_too_many, SC_BATCH_BAD);
    change_header(set_marker, SC_BATCH_GOOD);
    change_header(set_marker_of_two_offsets, SC_BATCH_BAD);
    change_header(set_unknown_flag, SC_BATCH_BAD);
    change_header(set_later_version, SC_BATCH_BAD);
    change_header(set_negative_base, SC_BATCH_BAD);
    change_header(set_last_before_base, SC_BATCH_BAD);
    change_header(set_last_offset_of_all, SC_BATCH_BAD);
    change_header(set_too_many_records, SC_BATCH_BAD);
    change_header(set_negative_records, SC_BATCH_BAD);
    change_header(set_gaps, SC_BATCH_BAD); /* a reader would take rows that are not there */
    change_header(set_longer, SC_BATCH_BAD);
    change_header(set_uneven, SC_BATCH_BAD);
    change_header(set_tiny, SC_BATCH_BAD);
    change_header(set_huge, SC_BATCH_BAD);
    change_header(set_other_metadata, SC_BATCH_BAD);
    change_header(set_open_from_before_the_log, SC_BATCH_BAD);
    change_header(set_negative_unstable, SC_BATCH_BAD);
}

int main(int argc, char **argv)
{
    RUN(test_every_single_bit_flip_is_detected);
    RUN(test_flips_in_frame_and_header_are_detected_without_reading_the_body);
    RUN(test_a_message_cut_short_is_bad);
    RUN(test_zeros_the_marker_and_nothing_are_no_batches);
    RUN(test_headers_with_a_checksum_that_make_no_sense_are_bad);
    return 0;
}
