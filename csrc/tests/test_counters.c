#include "check.h"
#include "counters.h"

static void test_a_value_falls_into_the_bucket_of_its_highest_bit(void)
{
    CHECK_EQ(sc_histogram_bucket(-5), 0);
    CHECK_EQ(sc_histogram_bucket(0), 0);
    CHECK_EQ(sc_histogram_bucket(1), 1);
    CHECK_EQ(sc_histogram_bucket(2), 2);
    CHECK_EQ(sc_histogram_bucket(3), 2);
    CHECK_EQ(sc_histogram_bucket(1000), 10);
    CHECK_EQ(sc_histogram_bucket(INT64_MAX), SC_HISTOGRAM_BUCKETS - 1);
}

static void test_counts_of_partitions_add_up(void)
{
    sc_partition_counts one = {0}, other = {0};
    sc_counters sum = {0};
    sc_counts_append(&one, 3, 1000);
    sc_counts_append(&one, 1, 700);
    sc_counts_append(&other, 1, 700);
    sc_counts_sync(&other, 5000000);
    sc_counts_add(&one, &sum);
    sc_counts_add(&other, &sum);
    CHECK_EQ(sum.appends, 3);
    CHECK_EQ(sum.records, 5);
    CHECK_EQ(sum.bytes, 2400);
    CHECK_EQ(sum.append_records[1], 2);
    CHECK_EQ(sum.append_records[2], 1);
    CHECK_EQ(sum.syncs, 1);
    CHECK_EQ(sum.sync_ns, 5000000);
    CHECK_EQ(sum.sync_us[13], 1); /* 4096 to 8191 microseconds */
}

int main(int argc, char **argv)
{
    RUN(test_a_value_falls_into_the_bucket_of_its_highest_bit);
    RUN(test_counts_of_partitions_add_up);
    return 0;
}
