/*
 * Bytes as the journal of a small store, whose segments lack what a sound journal has: opened by readers, then for
 * writing (which replays it), appended to, closed and opened again. What fails its checksums changes nothing: every log
 * is a prefix of what was appended, and no shorter than its segment. What was given right checksums may say anything;
 * then what was in the segments stays, readers and writers agree, and appends go on.
 *
 * Options: 0: bit 0 checksums are mended, bit 1 also salts and places of records, bit 2 the machine went down, bit 3
 * the bytes are `journal-state`, bit 4 the store is closed in between; 1: shortens the file.
 * Then both copies of the header, 64 bytes each, and the area for records, behind which zeros follow.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "fuzz.h"
#include "journal.h"
#include "small_journal.h"

static char folder[FOLDER_MAX], path[FILE_MAX], master[FILE_MAX];

static void remove_at_exit(void)
{
    folder_remove(folder);
}

static void make_master(void)
{
    char inner[FILE_MAX];
    folder_make(folder);
    CHECK(snprintf(path, sizeof path, "%s/store", folder) < FILE_MAX);
    CHECK(snprintf(master, sizeof master, "%s/master", folder) < FILE_MAX);
    CHECK(snprintf(inner, sizeof inner, "%s/topics", path) < FILE_MAX);
    CHECK(mkdir(path, 0777) == 0 && mkdir(inner, 0777) == 0 && mkdir(master, 0777) == 0);
    for (int i = 0; i < STORE_TOPICS; i++) {
        topic_folder(inner, path, i);
        CHECK(mkdir(inner, 0777) == 0);
    }
    small_journal_make(path);
    folder_copy(path, master);
    atexit(remove_at_exit);
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

static void mend_batches(uint8_t *record, int64_t size, const sc_journal_entry *entry)
{
    if (entry->place < 0 || entry->size < 0 || entry->place > size || entry->size > size - entry->place)
        return;
    for (int64_t at = 0, step; at < entry->size; at += step) {
        step = fuzz_seal(record + entry->place + at, entry->size - at, false);
        step = step == 0 ? SC_ALIGNMENT : step;
    }
}

static void mend_record(uint8_t *at, int64_t available, const sc_journal_header *header, int64_t place, bool places)
{
    sc_journal_record record;
    memcpy(&record, at, sizeof record);
    if (memcmp(record.magic, "SCJREC01", 8) != 0 || record.entry_count > SC_JOURNAL_ENTRIES_MAX ||
        (int64_t)(sizeof record + record.entry_count * sizeof(sc_journal_entry)) > available)
        return;
    if (places) {
        record.salt = header->salt;
        record.lsn = (int64_t)((uint64_t)header->start + (uint64_t)place);
        memcpy(at, &record, sizeof record);
    }
    for (uint32_t i = 0; i < record.entry_count; i++) {
        sc_journal_entry entry;
        memcpy(&entry, at + sizeof record + i * sizeof entry, sizeof entry);
        mend_batches(at, available, &entry);
    }
    record.crc = sc_journal_record_crc((const sc_journal_record *)(const void *)at);
    memcpy(at, &record, sizeof record);
}

static void mend(uint8_t *data, bool places)
{
    sc_journal_header headers[2];
    for (int copy = 0; copy < 2; copy++) {
        memcpy(&headers[copy], data + copy * SC_JOURNAL_PAGE, sizeof headers[copy]);
        sc_journal_header_seal(&headers[copy]);
        memcpy(data + copy * SC_JOURNAL_PAGE, &headers[copy], sizeof headers[copy]);
    }
    const sc_journal_header *newest = headers[1].generation > headers[0].generation ? &headers[1] : &headers[0];
    for (int64_t at = 0; at < JOURNAL_FUZZ_AREA; at += SC_JOURNAL_PAGE)
        mend_record(data + SC_JOURNAL_AREA_AT + at, JOURNAL_FUZZ_AREA - at, newest, at, places);
}

static void write_journal(const uint8_t *options, const uint8_t *data, int64_t size)
{
    char file[FILE_MAX];
    int64_t whole = SC_JOURNAL_AREA_AT + JOURNAL_FUZZ_AREA, area = size - 2 * JOURNAL_FUZZ_HEADER;
    uint8_t *bytes = aligned_alloc(SC_JOURNAL_PAGE, (size_t)whole);
    CHECK(bytes != NULL);
    memset(bytes, 0, (size_t)whole);
    for (int64_t copy = 0; copy < 2; copy++) {
        int64_t from = copy * JOURNAL_FUZZ_HEADER, left = size - from;
        if (left > 0)
            memcpy(bytes + copy * SC_JOURNAL_PAGE, data + from,
                   (size_t)(left < JOURNAL_FUZZ_HEADER ? left : JOURNAL_FUZZ_HEADER));
    }
    if (area > 0)
        memcpy(bytes + SC_JOURNAL_AREA_AT, data + 2 * JOURNAL_FUZZ_HEADER,
               (size_t)(area < JOURNAL_FUZZ_AREA ? area : JOURNAL_FUZZ_AREA));
    if (options[0] & 1)
        mend(bytes, options[0] & 2);
    CHECK(snprintf(file, sizeof file, "%s/journal", path) < FILE_MAX);
    (void)unlink(file);
    file_write(file, bytes, whole - options[1] * 509 % whole);
    free(bytes);
}

static void write_input(const uint8_t *options, const uint8_t *data, int64_t size)
{
    char file[FILE_MAX];
    if ((options[0] & 8) == 0) {
        write_journal(options, data, size);
        return;
    }
    CHECK(snprintf(file, sizeof file, "%s/journal-state", path) < FILE_MAX);
    (void)unlink(file);
    file_write(file, data, size);
}

/* ---- what became of it ------------------------------------------------------------------------------------------- */

/* The end of a log; -1: a batch that was believed says of the log what is not so, and that is told. */
static int64_t end_if_sound(sc_topic *topic, int log, bool believed)
{
    sc_partition_info info;
    sc_error error;
    int code = sc_partition_describe(topic, (uint32_t)log % STORE_PARTITIONS, false, &info, &error);
    CHECK(code == SC_OK || (believed && (code == SC_CORRUPT || code == SC_FORMAT)));
    return code == SC_OK ? info.end_offset : -1;
}

/* The records below `end` are there; a batch that was believed may say that the first ones are deleted. */
static void check_prefix(sc_topic *topic, int log, int64_t end, bool believed)
{
    sc_partition_info info;
    sc_error error;
    uint32_t partition = (uint32_t)log % STORE_PARTITIONS;
    CHECK_OK(sc_partition_describe(topic, partition, false, &info, &error), error);
    CHECK(info.start_offset == 0 || believed);
    if (info.start_offset < end)
        check_records(topic, partition, info.start_offset, end);
}

static void read_as_reader(bool believed, int64_t ends[STORE_LOGS])
{
    char inner[FILE_MAX];
    sc_error error;
    sc_topic *topics[STORE_TOPICS];
    for (int i = 0; i < STORE_TOPICS; i++) {
        topic_folder(inner, path, i);
        topics[i] = topic_open(inner, false);
        CHECK_OK(sc_topic_read_journal(topics[i], path, &error), error);
    }
    for (int log = 0; log < STORE_LOGS; log += log % 2 == 0 ? 1 : 3) {
        ends[log] = end_if_sound(topics[log / STORE_PARTITIONS], log, believed);
        if (ends[log] >= 0)
            check_prefix(topics[log / STORE_PARTITIONS], log, JOURNAL_IN_SEGMENTS, believed);
    }
    for (int i = 0; i < STORE_TOPICS; i++)
        topic_close(topics[i]);
}

static void check_logs(small_store *store, bool believed, const int64_t *ends)
{
    for (int log = 0; log < STORE_LOGS; log += log % 2 == 0 ? 1 : 3) {
        int64_t end = end_if_sound(topic_of(store, log), log, believed);
        CHECK_EQ(end, ends[log]);
        if (end < 0)
            continue;
        CHECK(end >= JOURNAL_IN_SEGMENTS && (believed || end <= JOURNAL_IN_ALL));
        check_prefix(topic_of(store, log), log, believed ? JOURNAL_IN_SEGMENTS : end, believed);
    }
}

/* Appends to every log that can take it, and finds the records again. */
static void append_to_all(small_store *store, bool believed)
{
    sc_error error;
    for (int log = 0; log < STORE_LOGS; log += log % 2 == 0 ? 1 : 3) {
        int64_t end = end_if_sound(topic_of(store, log), log, believed);
        uint32_t partition = (uint32_t)log % STORE_PARTITIONS;
        if (end < 0 || end > 1 << 30) /* as a lie said */
            continue;
        CHECK_OK(try_append(topic_of(store, log), partition, end, 2, 2, true, &error), error);
        check_records(topic_of(store, log), partition, end, end + 2);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int64_t ends[STORE_LOGS];
    small_store store;
    sc_error error;
    if (path[0] == 0)
        make_master();
    if (size < FUZZ_OPTIONS)
        return 0;
    bool believed = (data[0] & 9) == 1;
    folder_remove(path);
    CHECK(mkdir(path, 0777) == 0);
    folder_copy(master, path);
    write_input(data, data + FUZZ_OPTIONS, (int64_t)size - FUZZ_OPTIONS);
    if (data[0] & 4)
        store_lose_power(path);
    read_as_reader(believed, ends);
    int code = store_try_open(path, JOURNAL_FUZZ_AREA, 256 << 10, &store, &error);
    if (code != SC_OK && code != SC_FORMAT)
        check_error(__FILE__, __LINE__, "opening the store", &error);
    if (code != SC_OK)
        return 0;
    check_logs(&store, believed, ends);
    append_to_all(&store, believed);
    for (int log = 0; log < STORE_LOGS; log += log % 2 == 0 ? 1 : 3)
        ends[log] = end_if_sound(topic_of(&store, log), log, believed);
    if (data[0] & 16)
        store_close(&store);
    else
        store_abandon(&store);
    CHECK_OK(store_try_open(path, JOURNAL_FUZZ_AREA, 256 << 10, &store, &error), error);
    for (int log = 0; log < STORE_LOGS; log += log % 2 == 0 ? 1 : 3)
        CHECK_EQ(end_if_sound(topic_of(&store, log), log, believed), ends[log]);
    store_close(&store);
    return 0;
}
