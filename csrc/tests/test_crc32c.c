#include "check.h"

int sc_crc32c_ways(void);
uint32_t sc_crc32c_by(int way, uint32_t crc, const void *data, size_t size);

enum { PORTABLE = 0 };

static void test_known_vectors_of_rfc_3720(void)
{
    uint8_t data[32];
    memset(data, 0, sizeof data);
    CHECK_EQ(sc_crc32c(0, data, sizeof data), 0x8a9136aa);
    memset(data, 0xff, sizeof data);
    CHECK_EQ(sc_crc32c(0, data, sizeof data), 0x62a8ab43);
    for (int i = 0; i < 32; i++)
        data[i] = (uint8_t)i;
    CHECK_EQ(sc_crc32c(0, data, sizeof data), 0x46dd794e);
    for (int i = 0; i < 32; i++)
        data[i] = (uint8_t)(31 - i);
    CHECK_EQ(sc_crc32c(0, data, sizeof data), 0x113fdb5c);
    static const uint8_t read_command[48] = {0x01, 0xc0, 0, 0, 0, 0, 0,    0, 0,    0, 0, 0,    0, 0, 0, 0,
                                             0x14, 0,    0, 0, 0, 0, 0x04, 0, 0,    0, 0, 0x14, 0, 0, 0, 0x18,
                                             0x28, 0,    0, 0, 0, 0, 0,    0, 0x02, 0, 0, 0,    0, 0, 0, 0};
    CHECK_EQ(sc_crc32c(0, read_command, sizeof read_command), 0xd9963a56);
    CHECK_EQ(sc_crc32c(0, "123456789", 9), 0xe3069283);
    CHECK_EQ(sc_crc32c(0, "", 0), 0);
}

/* One bit at a time: shares nothing with the code under test. */
static uint32_t crc_by_bits(uint32_t crc, const uint8_t *data, size_t size)
{
    crc = ~crc;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

enum { LARGE = 3 * 4096 * 2 + 3 * 256 * 3 + 77 };
static uint8_t noise[LARGE + 64];

static void make_noise(void)
{
    uint32_t state = 1;
    for (size_t i = 0; i < sizeof noise; i++) {
        state = state * 1664525 + 1013904223;
        noise[i] = (uint8_t)(state >> 24);
    }
}

static void test_every_way_agrees_with_the_portable_one_at_all_lengths_and_alignments(void)
{
    make_noise();
    for (int way = PORTABLE + 1; way < sc_crc32c_ways(); way++) {
        for (size_t length = 0; length < 1700; length++)
            for (size_t from = 0; from < 9; from++)
                CHECK_EQ(sc_crc32c_by(way, 7, noise + from, length), sc_crc32c_by(PORTABLE, 7, noise + from, length));
        for (size_t length = 1700; length <= LARGE; length += 97)
            for (size_t from = 0; from < 64; from += 21)
                CHECK_EQ(sc_crc32c_by(way, ~0u, noise + from, length),
                         sc_crc32c_by(PORTABLE, ~0u, noise + from, length));
        for (size_t length = 1024; length < 1024 + 3 * 256; length++)
            for (size_t from = 0; from < 64; from++)
                CHECK_EQ(sc_crc32c_by(way, 0, noise + from, length), sc_crc32c_by(PORTABLE, 0, noise + from, length));
    }
}

static void test_the_way_that_is_taken_agrees_with_all(void)
{
    make_noise();
    CHECK(sc_crc32c_ways() >= 1);
    for (int way = PORTABLE; way < sc_crc32c_ways(); way++)
        CHECK_EQ(sc_crc32c(1, noise, LARGE), sc_crc32c_by(way, 1, noise, LARGE));
}

static void test_the_portable_code_agrees_with_bitwise_division(void)
{
    make_noise();
    CHECK(sc_crc32c_ways() >= 1);
    for (size_t length = 0; length < 300; length++)
        CHECK_EQ(sc_crc32c_by(PORTABLE, 3, noise + length % 8, length), crc_by_bits(3, noise + length % 8, length));
    CHECK_EQ(sc_crc32c_by(PORTABLE, 0, noise, LARGE), crc_by_bits(0, noise, LARGE));
}

static void test_a_sum_continues_where_another_ended(void)
{
    make_noise();
    uint32_t whole = sc_crc32c(0, noise, LARGE);
    for (int way = PORTABLE; way < sc_crc32c_ways(); way++)
        for (size_t cut = 0; cut <= LARGE; cut += 1 + cut / 7)
            CHECK_EQ(sc_crc32c_by(way, sc_crc32c_by(way, 0, noise, cut), noise + cut, LARGE - cut), whole);
}

int main(int argc, char **argv)
{
    RUN(test_known_vectors_of_rfc_3720);
    RUN(test_every_way_agrees_with_the_portable_one_at_all_lengths_and_alignments);
    RUN(test_the_way_that_is_taken_agrees_with_all);
    RUN(test_the_portable_code_agrees_with_bitwise_division);
    RUN(test_a_sum_continues_where_another_ended);
    return 0;
}
