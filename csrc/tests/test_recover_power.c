/* What is found again after the machine went down: what was synced, a prefix of the rest, and nothing that was never
 * so. */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "os.h"
#include "plain_topic.h"
#include "random_array.h"

static char path[FOLDER_MAX], file[FILE_MAX];
static found_batch batches[128];

/* `synced` batches of ten records, a flush, then `unsynced` ones; not closed. */
static void make_log(int synced, int unsynced, int64_t segment_bytes)
{
    sc_error error;
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, segment_bytes);
    for (int64_t i = 0; i < synced + unsynced; i++) {
        append_records(topic, 0, i * 10, 10);
        if (i + 1 == synced)
            CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    }
    topic_abandon(topic);
    segment_file(file, path, 0, 0);
    found_batches(file, batches, 128);
}

static void damage(int number)
{
    file_flip(file, batches[number].position + batches[number].header.total_size - 100);
}

static void test_damage_in_what_was_not_synced_cuts_the_log_there(void)
{
    for (int number = 4; number < 8; number++) {
        make_log(4, 4, 256 << 10);
        damage(number);
        pretend_power_loss(path);
        sc_topic *reader = topic_open(path, false); /* judges alike, and repairs nothing */
        CHECK_EQ(end_of(reader, 0), number * 10);
        check_records(reader, 0, 0, number * 10);
        topic_close(reader);
        check_log(path, number * 10);
        folder_remove(path);
    }
}

static void test_damage_below_what_a_later_batch_says_was_durable_stays(void)
{
    for (int number = 0; number < 4; number++) {
        make_log(4, 4, 256 << 10);
        damage(number);
        pretend_power_loss(path);
        sc_topic *topic = topic_open(path, true);
        sc_error error;
        int64_t next;
        CHECK_EQ(end_of(topic, 0), 80);
        CHECK_EQ(try_read(topic, 0, 0, 80, &next, &error), SC_CORRUPT);
        CHECK_EQ(error.offset, number * 10);
        check_records(topic, 0, number * 10 + 10, 80);
        topic_close(topic);
        folder_remove(path);
    }
}

/* The last batches of a log: nothing good follows, but their own headers say what had been synced before them. */
static void test_damage_to_the_last_durable_batches_is_not_taken_for_a_torn_end(void)
{
    for (int boot = 0; boot < 2; boot++) {
        make_log(4, 1, 256 << 10);
        for (int number = 2; number <= 4; number++)
            damage(number);
        if (boot == 1)
            pretend_power_loss(path);
        sc_topic *topic = topic_open(path, true);
        sc_error error;
        int64_t next;
        CHECK_EQ(end_of(topic, 0), 40);
        CHECK_EQ(try_read(topic, 0, 0, 40, &next, &error), SC_CORRUPT);
        CHECK_EQ(next, 20);
        append_records(topic, 0, 40, 10);
        check_records(topic, 0, 40, 50);
        topic_close(topic);
        folder_remove(path);
    }
}

static void test_sectors_that_never_reached_the_drive_cut_the_log_there(void)
{
    for (int number = 4; number < 8; number++) {
        make_log(4, 4, 256 << 10);
        file_zero(file, (batches[number].position + 511) / 512 * 512, 512);
        pretend_power_loss(path);
        check_log(path, number * 10);
        folder_remove(path);
    }
}

static void test_an_append_of_several_batches_is_whole_or_gone(void)
{
    for (int lost = 0; lost < 5; lost++) {
        sc_error error;
        folder_make(path);
        sc_topic *topic = topic_open(path, true);
        append_records(topic, 0, 0, 10);
        CHECK_OK(try_append(topic, 0, 10, 50, 10, false, &error), error);
        append_records(topic, 0, 60, 10);
        topic_abandon(topic);
        segment_file(file, path, 0, 0);
        CHECK_EQ(found_batches(file, batches, 128), 7);
        damage(1 + lost);
        pretend_power_loss(path);
        check_log(path, 10);
        folder_remove(path);
    }
}

static void test_a_cut_takes_the_later_segments_with_it(void)
{
    make_log(5, 60, 32 << 10);
    damage(7);
    pretend_power_loss(path);
    check_log(path, 70);
    sc_topic *topic = topic_open(path, false);
    sc_segment_info info;
    sc_error error;
    CHECK_EQ(sc_partition_segment(topic, 0, 1, &info, &error), SC_END);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_lost_unsynced_middle_segment_cuts_the_log_before_it(void)
{
    make_log(2, 60, 16 << 10);
    sc_topic *topic = topic_open_with(path, false, 16 << 10);
    sc_segment_info info;
    sc_error error;
    CHECK_OK(sc_partition_segment(topic, 0, 1, &info, &error), error);
    topic_close(topic);
    CHECK(unlink(info.path) == 0);
    pretend_power_loss(path);
    topic = topic_open_with(path, true, 16 << 10);
    CHECK_EQ(end_of(topic, 0), info.base_offset);
    check_records(topic, 0, 0, info.base_offset);
    append_records(topic, 0, info.base_offset, 10);
    check_records(topic, 0, 0, info.base_offset + 10);
    topic_close(topic);
    folder_remove(path);
}

static void test_an_unsynced_segment_that_lost_its_schema_is_cut_with_its_batches(void)
{
    make_log(0, 5, 256 << 10);
    file_zero(file, 0, SCHEMA_SIZE);
    pretend_power_loss(path);
    check_log(path, 0);
    folder_remove(path);
}

static void test_a_synced_segment_that_lost_its_schema_stays(void)
{
    make_log(3, 3, 256 << 10);
    file_zero(file, 0, SCHEMA_SIZE);
    pretend_power_loss(path);
    sc_topic *topic = topic_open(path, true);
    sc_partition_info info;
    sc_error error;
    CHECK_EQ(sc_partition_describe(topic, 0, false, &info, &error), SC_FORMAT);
    topic_close(topic);
    CHECK(file_exists(file));
    folder_remove(path);
}

/* A note that the log was durable, at the end of a segment that was sealed since: it holds no record. */
static void test_a_torn_note_behind_the_records_of_a_sealed_segment_is_no_damage(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, 8 << 10);
    append_records(topic, 0, 0, 40);
    topic_close(topic);
    topic = topic_open_with(path, true, 8 << 10);
    append_records(topic, 0, 40, 60);
    topic_abandon(topic);
    segment_file(file, path, 0, 40);
    CHECK(file_exists(file));
    segment_file(file, path, 0, 0);
    CHECK_EQ(found_batches(file, batches, 128), 1);
    int64_t note = batches[0].position + batches[0].header.total_size;
    CHECK(found_end(file) > note);
    file_zero(file, note + 64, file_size(file) - note - 64);
    pretend_power_loss(path);
    for (int writable = 0; writable < 2; writable++) {
        topic = topic_open_with(path, writable != 0, 8 << 10);
        CHECK_EQ(end_of(topic, 0), 100);
        check_records(topic, 0, 0, 100);
        topic_close(topic);
    }
    CHECK_EQ(found_end(file), note);
    int64_t size;
    uint8_t *data = file_read(file, &size);
    for (int64_t i = note; i < size; i++)
        CHECK_EQ(data[i], 0); /* any Arrow reader sees the end of the stream here */
    free(data);
    folder_remove(path);
}

/* It takes no offset: the record behind it has the same one, and may be what is known of the place. */
static void test_a_torn_note_before_unsynced_records_cuts_the_log_there(void)
{
    for (int deleted = 0; deleted < 2; deleted++) { /* as well where nothing is left before it */
        folder_make(path);
        sc_topic *topic = topic_open(path, true);
        sc_error error;
        sc_removal removal;
        int64_t base, start = deleted ? 40 : 0;
        append_records(topic, 0, 0, 40);
        if (deleted)
            CHECK_OK(sc_partition_delete_before(topic, 0, 40, &removal, &error), error);
        else
            CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
        topic_close(topic);
        topic = topic_open(path, true);
        append_records(topic, 0, 40, 10);
        topic_abandon(topic);
        segment_file(file, path, 0, 40);
        CHECK(found_end(file) > SCHEMA_SIZE + 1024); /* the note, and the records */
        file_zero(file, SCHEMA_SIZE, 64);
        pretend_power_loss(path);
        for (int writable = 0; writable < 2; writable++) {
            topic = topic_open(path, writable != 0);
            CHECK_EQ(end_of(topic, 0), 40);
            check_records(topic, 0, start, 40);
            topic_close(topic);
        }
        if (!deleted)
            check_log(path, 40);
        folder_remove(path);
    }
}

static int64_t start_of(sc_topic *topic)
{
    sc_partition_info info;
    sc_error error;
    CHECK_OK(sc_partition_describe(topic, 0, false, &info, &error), error);
    return info.start_offset;
}

static int fail_sync(int fd)
{
    (void)fd;
    errno = EIO;
    return -1;
}

/* Deletes up to `offset`, and loses the power before it is synced: the note is on the drive, a batch before it is not.
 */
static void lose_a_deletion(int synced, int64_t offset)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    sc_removal removal;
    sc_error error;
    for (int64_t i = 0; i < 80; i += 10) {
        append_records(topic, 0, i, 10);
        if (i / 10 + 1 == synced)
            CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    }
    sc_os.sync = fail_sync;
    sc_os.sync_data = fail_sync;
    CHECK(sc_partition_delete_before(topic, 0, offset, &removal, &error) != SC_OK);
    sc_os_reset();
    topic_abandon(topic);
    segment_file(file, path, 0, 0);
    CHECK_EQ(found_batches(file, batches, 128), 8);
    CHECK(found_end(file) > batches[7].position + batches[7].header.total_size);
    pretend_power_loss(path);
}

/* Were it believed, the log would begin there for who opens it first, and where it did for who does so next. */
static void test_a_deletion_whose_note_was_lost_with_the_power_was_not_made(void)
{
    for (int64_t offset = 15; offset < 80; offset += 20) {
        lose_a_deletion(4, offset);
        damage(7);
        for (int opened = 0; opened < 4; opened++) { /* who reads only judges alike */
            sc_topic *topic = topic_open(path, opened % 2 != 0);
            CHECK_EQ(start_of(topic), 0);
            CHECK_EQ(end_of(topic, 0), 70);
            check_records(topic, 0, 0, 70);
            topic_close(topic);
        }
        check_log(path, 70);
        folder_remove(path);
    }
}

/* What lies before such a note is looked at as if there had been none. */
static void test_damage_before_a_lost_note_cuts_the_log_as_well(void)
{
    lose_a_deletion(2, 60);
    damage(7);
    damage(3);
    check_log(path, 30);
    folder_remove(path);
    lose_a_deletion(2, 60); /* and what is deleted for good is not */
    damage(3);
    sc_topic *topic = topic_open(path, true);
    CHECK_EQ(start_of(topic), 60);
    CHECK_EQ(end_of(topic, 0), 80);
    check_records(topic, 0, 60, 80);
    topic_close(topic);
    folder_remove(path);
}

/* ---- who knows that the machine went down ----------------------------------------------------------------------- */

static void make_two_partitions(void)
{
    folder_make(path);
    sc_topic *topic = topic_open(path, true);
    for (int64_t i = 0; i < 5; i++) {
        append_records(topic, 0, i * 10, 10);
        append_records(topic, 1, i * 10, 10);
    }
    topic_abandon(topic);
    for (uint32_t partition = 0; partition < 2; partition++) {
        segment_file(file, path, partition, 0);
        found_batches(file, batches, 128);
        damage(3);
    }
    pretend_power_loss(path);
}

static void test_a_session_that_did_not_touch_a_partition_does_not_hide_the_power_loss(void)
{
    make_two_partitions();
    sc_topic *topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), 30);
    topic_close(topic);
    topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), 30);
    CHECK_EQ(end_of(topic, 1), 30);
    check_records(topic, 1, 0, 30);
    append_records(topic, 1, 30, 5);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_second_writer_knows_of_the_power_loss_too(void)
{
    make_two_partitions();
    sc_topic *first = topic_open(path, true), *second = topic_open(path, true);
    CHECK_EQ(end_of(second, 0), 30);
    CHECK_EQ(end_of(first, 0), 30);
    append_records(second, 0, 30, 5);
    check_records(first, 0, 0, 35);
    topic_close(first);
    CHECK_EQ(end_of(second, 1), 30);
    topic_close(second);
    folder_remove(path);
}

static void test_once_repaired_the_log_is_of_this_boot(void)
{
    make_two_partitions();
    sc_topic *topic = topic_open(path, true);
    for (int64_t i = 3; i < 6; i++)
        append_records(topic, 0, i * 10, 10);
    topic_abandon(topic);
    segment_file(file, path, 0, 0);
    CHECK_EQ(found_batches(file, batches, 128), 6);
    damage(4);
    topic = topic_open(path, true);
    CHECK_EQ(end_of(topic, 0), 60); /* damage, not a lost write: it stays */
    topic_close(topic);
    folder_remove(path);
}

/* ---- what was cut does not come back --------------------------------------------------------------------------- */

static struct sc_os_table real;
static int dirty_zeros, dirty_names;

static int tracing_zero(int fd, int64_t position, int64_t size)
{
    dirty_zeros = fd;
    return real.zero(fd, position, size);
}

static int tracing_unlink(const char *name)
{
    dirty_names++;
    return real.unlink(name);
}

static int tracing_sync(int fd)
{
    struct stat st;
    CHECK(fstat(fd, &st) == 0);
    if (S_ISDIR(st.st_mode))
        dirty_names = 0;
    else if (dirty_zeros == fd)
        dirty_zeros = -1;
    return real.sync(fd);
}

static void test_what_was_cut_is_synced_away_before_the_log_goes_on(void)
{
    make_log(5, 60, 32 << 10);
    damage(7);
    pretend_power_loss(path);
    sc_topic *topic = topic_open_with(path, true, 32 << 10);
    sc_os_reset();
    real = sc_os;
    dirty_zeros = -1;
    dirty_names = 0;
    sc_os.zero = tracing_zero;
    sc_os.unlink = tracing_unlink;
    sc_os.sync = tracing_sync;
    CHECK_EQ(end_of(topic, 0), 70);
    sc_os_reset();
    CHECK_EQ(dirty_zeros, -1);
    CHECK_EQ(dirty_names, 0);
    topic_close(topic);
    folder_remove(path);
}

/* The index of a sealed segment survived, the segment's end did not, and the new records end at the same offset. */
static void test_a_summary_of_records_that_were_cut_is_not_believed(void)
{
    enum { SEGMENT = 8 << 10 };
    sc_error error;
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int64_t i = 0; i < 12; i++)
        append_records(topic, 0, i * 10, 10);
    sc_segment_info info;
    CHECK_OK(sc_partition_segment(topic, 0, 0, &info, &error), error); /* writes the index of the sealed segment */
    CHECK(info.sealed);
    topic_abandon(topic);
    index_file(file, path, 0, 0);
    CHECK(file_exists(file));
    segment_file(file, path, 0, 0);
    CHECK(found_batches(file, batches, 128) >= 3);
    damage(1);
    pretend_power_loss(path);
    topic = topic_open_with(path, true, SEGMENT);
    CHECK_EQ(end_of(topic, 0), 10);
    int64_t times[10], first, end = 10;
    for (int64_t i = 0; i < 10; i++)
        times[i] = FIRST_TIME + 1000000000 + i;
    for (; end < 10 + 12 * 10;) {
        sc_batch_input input = {.count = 10, .timestamps = times};
        sc_append append = {
            .batches = &input, .batch_count = 1, .schema_version = 1, .generation = GENERATION, .expected_offset = end};
        if (end == info.end_offset) { /* roll exactly where the lost records ended */
            sc_topic_settings settings = settings_of(1 << 10);
            CHECK_OK(sc_topic_alter(topic, &settings, false, &error), error);
        }
        CHECK_OK(sc_partition_append(topic, 0, &append, &first, &end, &error), error);
    }
    sc_range range = {0, 0, end};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = FIRST_TIME + 1000000000,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    int64_t count;
    CHECK_OK(sc_scan_open(topic, &options, &scan, &error), error);
    CHECK_OK(sc_scan_count(scan, &count, &error), error);
    CHECK_EQ(count, end - 10);
    sc_scan_free(scan);
    topic_close(topic);
    folder_remove(path);
}

/* ---- every state that a drive may be left in --------------------------------------------------------------------- */

enum { SECTOR = 512 };

/* One file as the drive may have it: each sector as it was synced or as it was last written, the size likewise. */
static void mix_file(const char *synced, const char *latest, const char *out)
{
    int64_t old_size = 0, new_size;
    uint8_t *old = file_exists(synced) ? file_read(synced, &old_size) : calloc(1, 1);
    uint8_t *data = file_read(latest, &new_size);
    uint32_t style = random_below(4);
    for (int64_t at = 0; at < new_size; at += SECTOR) {
        int64_t size = new_size - at < SECTOR ? new_size - at : SECTOR;
        bool lost = style == 0 ? false : style == 1 ? random_below(2) == 0 : random_below(40) == 0;
        for (int64_t i = at; lost && i < at + size; i++)
            data[i] = i < old_size ? old[i] : 0;
    }
    bool small = random_below(4) == 0 && old_size < new_size;
    file_write(out, data, small ? old_size : new_size);
    free(old);
    free(data);
}

struct mixing {
    const char *synced, *latest, *out;
};

static int mix_one(void *context, const char *name)
{
    struct mixing *mixing = context;
    char synced[FILE_MAX * 2], latest[FILE_MAX * 2], out[FILE_MAX * 2];
    snprintf(synced, sizeof synced, "%s/0/%s", mixing->synced, name);
    snprintf(latest, sizeof latest, "%s/0/%s", mixing->latest, name);
    snprintf(out, sizeof out, "%s/0/%s", mixing->out, name);
    if (file_exists(synced) || random_below(8) != 0)
        mix_file(synced, latest, out);
    return 0;
}

static void check_crashed(const char *crashed, int64_t durable, int64_t latest, int64_t segment_bytes)
{
    sc_topic *topic = topic_open_with(crashed, true, segment_bytes);
    int64_t end = end_of(topic, 0);
    CHECK(end >= durable && end <= latest);
    check_records(topic, 0, 0, end);
    append_records(topic, 0, end, 25);
    check_records(topic, 0, 0, end + 25);
    topic_close(topic);
    topic = topic_open_with(crashed, false, segment_bytes);
    check_records(topic, 0, 0, end + 25);
    topic_close(topic);
}

static void test_every_order_of_lost_sectors_leaves_a_prefix(void)
{
    char synced[FOLDER_MAX], crashed[FOLDER_MAX], partition[FILE_MAX];
    for (uint64_t seed = 0; seed < 150; seed++) {
        random_seed(seed);
        sc_error error;
        int64_t end = 0, durable = 0;
        int64_t segment_bytes = seed % 3 == 0 ? 1 << 20 : 16 << 10; /* files that grow, or logs that roll */
        folder_make(path);
        folder_make(synced);
        folder_make(crashed);
        sc_topic *topic = topic_open_with(path, true, segment_bytes);
        int flush_after = (int)random_below(14);
        for (int i = 0; i < 18; i++) {
            int64_t count = random_below(8) == 0 ? 700 : 1 + random_below(60), each = count / 50 + 1 + random_below(30);
            CHECK_OK(try_append(topic, 0, end, count, each, false, &error), error);
            end += count;
            if (i == flush_after || (i > flush_after && i < 14 && random_below(4) == 0)) {
                CHECK_OK(sc_partition_flush(topic, 0, &error), error);
                folder_remove(synced);
                CHECK(mkdir(synced, 0777) == 0);
                folder_copy(path, synced);
                durable = end;
            }
        }
        topic_abandon(topic);
        snprintf(partition, sizeof partition, "%s/state", crashed);
        snprintf(file, sizeof file, "%s/state", path);
        int64_t size;
        uint8_t *state = file_read(file, &size);
        file_write(partition, state, size);
        free(state);
        snprintf(partition, sizeof partition, "%s/0", crashed);
        CHECK(mkdir(partition, 0777) == 0);
        snprintf(partition, sizeof partition, "%s/0", path);
        struct mixing mixing = {synced, path, crashed};
        CHECK(sc_os.list(partition, mix_one, &mixing) == 0);
        pretend_power_loss(crashed);
        check_crashed(crashed, durable, end, segment_bytes);
        folder_remove(path);
        folder_remove(synced);
        folder_remove(crashed);
    }
}

int main(int argc, char **argv)
{
    RUN(test_damage_in_what_was_not_synced_cuts_the_log_there);
    RUN(test_damage_below_what_a_later_batch_says_was_durable_stays);
    RUN(test_damage_to_the_last_durable_batches_is_not_taken_for_a_torn_end);
    RUN(test_sectors_that_never_reached_the_drive_cut_the_log_there);
    RUN(test_an_append_of_several_batches_is_whole_or_gone);
    RUN(test_a_cut_takes_the_later_segments_with_it);
    RUN(test_a_lost_unsynced_middle_segment_cuts_the_log_before_it);
    RUN(test_an_unsynced_segment_that_lost_its_schema_is_cut_with_its_batches);
    RUN(test_a_synced_segment_that_lost_its_schema_stays);
    RUN(test_a_torn_note_before_unsynced_records_cuts_the_log_there);
    RUN(test_a_torn_note_behind_the_records_of_a_sealed_segment_is_no_damage);
    RUN(test_a_deletion_whose_note_was_lost_with_the_power_was_not_made);
    RUN(test_damage_before_a_lost_note_cuts_the_log_as_well);
    RUN(test_a_session_that_did_not_touch_a_partition_does_not_hide_the_power_loss);
    RUN(test_a_second_writer_knows_of_the_power_loss_too);
    RUN(test_once_repaired_the_log_is_of_this_boot);
    RUN(test_what_was_cut_is_synced_away_before_the_log_goes_on);
    RUN(test_a_summary_of_records_that_were_cut_is_not_believed);
    RUN(test_every_order_of_lost_sectors_leaves_a_prefix);
    return 0;
}
