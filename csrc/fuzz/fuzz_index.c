/*
 * Bytes as the index files of two segments, a sealed and an active one. The segments are sound: whatever the indexes
 * say, every read gives the right records.
 *
 * Options: 0: bit 0 give the entries right checksums, bit 1 only the first index; 1, 2: where the first index ends.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "fuzz.h"

enum { SEGMENT = 96 << 10, END = 1000, INDEX_HEADER = 64, INDEX_RECORD = 32 };
static char path[FOLDER_MAX], master[FOLDER_MAX];
static int64_t second_base;

static void remove_at_exit(void)
{
    folder_remove(path);
    folder_remove(master);
}

static void make_master(void)
{
    sc_error error;
    sc_segment_info info;
    folder_make(path);
    folder_make(master);
    sc_topic *topic = topic_open_with(master, true, SEGMENT);
    for (int64_t i = 0; i < END; i += 20)
        append_records(topic, 0, i, 20);
    CHECK_OK(sc_partition_segment(topic, 0, 1, &info, &error), error);
    second_base = info.base_offset;
    CHECK_EQ(sc_partition_segment(topic, 0, 2, &info, &error), SC_END);
    topic_close(topic);
    atexit(remove_at_exit);
}

static void write_index(int64_t base, const uint8_t *data, int64_t size, bool seal)
{
    char file[FILE_MAX];
    uint8_t *bytes = malloc((size_t)size + 1);
    CHECK(bytes != NULL);
    if (size > 0)
        memcpy(bytes, data, (size_t)size);
    for (int64_t at = INDEX_HEADER; seal && at + INDEX_RECORD <= size; at += INDEX_RECORD) {
        uint32_t crc = sc_crc32c(0, bytes + at, INDEX_RECORD - 4);
        memcpy(bytes + at + INDEX_RECORD - 4, &crc, 4);
    }
    index_file(file, path, 0, base);
    file_write(file, bytes, size);
    free(bytes);
}

static void check_reads(bool writable)
{
    sc_error error;
    sc_segment_info info;
    sc_topic *topic = topic_open_with(path, writable, SEGMENT);
    CHECK_EQ(end_of(topic, 0), END);
    for (int64_t start = 0; start < END; start += 331)
        check_records(topic, 0, start, start + 40 < END ? start + 40 : END);
    check_records(topic, 0, second_base - 5, second_base + 5);
    CHECK_OK(sc_partition_segment(topic, 0, 0, &info, &error), error);
    CHECK_EQ(info.end_offset, second_base);
    CHECK_EQ(info.count, second_base);
    check_records(topic, 0, 0, END);
    if (writable) {
        append_records(topic, 0, END, 20);
        CHECK_OK(sc_topic_flush(topic, &error), error);
        check_records(topic, 0, END - 10, END + 20);
    }
    topic_close(topic);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (path[0] == 0)
        make_master();
    if (size < FUZZ_OPTIONS || size > 64 << 10)
        return 0;
    uint16_t cut;
    memcpy(&cut, data + 1, sizeof cut);
    int64_t all = (int64_t)size - FUZZ_OPTIONS, first = data[0] & 2 || cut > all ? all : cut;
    folder_remove(path);
    CHECK(mkdir(path, 0777) == 0);
    folder_copy(master, path);
    write_index(0, data + FUZZ_OPTIONS, first, data[0] & 1);
    if ((data[0] & 2) == 0)
        write_index(second_base, data + FUZZ_OPTIONS + first, all - first, data[0] & 1);
    check_reads(false);
    check_reads(true);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    check_records(topic, 0, 0, END + 20);
    topic_close(topic);
    return 0;
}
