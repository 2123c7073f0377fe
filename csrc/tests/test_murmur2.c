#include "check.h"

static int32_t murmur2(const char *text)
{
    return (int32_t)sc_murmur2(text, strlen(text));
}

/* From org.apache.kafka.common.utils.UtilsTest.testMurmur2. */
static void test_the_values_that_kafka_tests_for(void)
{
    CHECK_EQ(murmur2("21"), -973932308);
    CHECK_EQ(murmur2("foobar"), -790332482);
    CHECK_EQ(murmur2("a-little-bit-long-string"), -985981536);
    CHECK_EQ(murmur2("a-little-bit-longer-string"), -1486304829);
    CHECK_EQ(murmur2("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8"), -58897971);
    CHECK_EQ(murmur2("abc"), 479470107);
}

static void test_a_key_goes_where_the_masked_hash_says(void)
{
    CHECK_EQ(sc_partition_of_key("21", 2, 7), (-973932308 & 0x7fffffff) % 7);
    CHECK_EQ(sc_partition_of_key("abc", 3, 12), 479470107 % 12);
    CHECK_EQ(sc_partition_of_key("abc", 3, 1), 0);
    CHECK(sc_partition_of_key("", 0, 5) < 5);
}

static void test_the_hash_does_not_depend_on_alignment(void)
{
    char text[64];
    for (int from = 0; from < 8; from++) {
        memcpy(text + from, "a-little-bit-longer-string", 26);
        CHECK_EQ((int32_t)sc_murmur2(text + from, 26), -1486304829);
    }
}

int main(int argc, char **argv)
{
    RUN(test_the_values_that_kafka_tests_for);
    RUN(test_a_key_goes_where_the_masked_hash_says);
    RUN(test_the_hash_does_not_depend_on_alignment);
    return 0;
}
