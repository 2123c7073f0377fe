/* Where a log begins: after deletions, in every process, after crashes at any step. */
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "os.h"
#include "plain_topic.h"

enum { SEGMENT = 64 << 10, COUNT = 3000, EACH = 50 };
static char path[FOLDER_MAX], file[FILE_MAX];

static sc_topic *make_log(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int64_t i = 0; i < COUNT; i += EACH)
        append_records(topic, 0, i, EACH);
    return topic;
}

static sc_partition_info describe(sc_topic *topic)
{
    sc_partition_info info;
    sc_error error;
    CHECK_OK(sc_partition_describe(topic, 0, true, &info, &error), error);
    return info;
}

static int64_t segment_count(sc_topic *topic)
{
    sc_segment_info info;
    sc_error error;
    int64_t count = 0;
    while (sc_partition_segment(topic, 0, count, &info, &error) == SC_OK)
        count++;
    return count;
}

static int64_t base_of(sc_topic *topic, int64_t n)
{
    sc_segment_info info;
    sc_error error;
    CHECK_OK(sc_partition_segment(topic, 0, n, &info, &error), error);
    return info.base_offset;
}

static sc_removal delete_before(sc_topic *topic, int64_t offset)
{
    sc_removal removal;
    sc_error error;
    CHECK_OK(sc_partition_delete_before(topic, 0, offset, &removal, &error), error);
    return removal;
}

static void check_range(sc_topic *topic, int64_t start, int64_t end)
{
    sc_partition_info info = describe(topic);
    sc_error error;
    int64_t next;
    CHECK_EQ(info.start_offset, start);
    CHECK_EQ(info.end_offset, end);
    check_records(topic, 0, start, end);
    if (start > 0) {
        CHECK_EQ(try_read(topic, 0, start - 1, end, &next, &error), SC_RANGE);
        CHECK_EQ(error.offset, start);
        CHECK_EQ(error.position, end);
    }
}

static void check_everywhere(int64_t start, int64_t end)
{
    sc_topic *topic = topic_open_with(path, false, SEGMENT);
    check_range(topic, start, end);
    topic_close(topic);
    topic = topic_open_with(path, true, SEGMENT);
    check_range(topic, start, end);
    append_records(topic, 0, end, 10);
    check_range(topic, start, end + 10);
    topic_close(topic);
    topic = topic_open_with(path, true, SEGMENT);
    check_range(topic, start, end + 10);
    topic_close(topic);
}

/* ---- the promise ------------------------------------------------------------------------------------------- */

static void test_a_log_begins_where_it_was_told_and_whole_segments_below_go(void)
{
    sc_topic *topic = make_log(), *other = topic_open_with(path, false, SEGMENT);
    int64_t before = segment_count(topic), base = base_of(topic, 3);
    int64_t bytes = describe(topic).size_bytes;
    check_range(other, 0, COUNT);
    sc_removal removal = delete_before(topic, base + 7);
    CHECK_EQ(removal.start_offset, base + 7);
    CHECK_EQ(removal.segments, 3);
    CHECK(removal.bytes > 2 * (SEGMENT - 16384) && describe(topic).size_bytes < bytes - removal.bytes + SEGMENT);
    CHECK_EQ(segment_count(topic), before - 3);
    check_range(topic, base + 7, COUNT);
    check_range(other, base + 7, COUNT);
    segment_file(file, path, 0, 0);
    CHECK(!file_exists(file));
    CHECK_EQ(delete_before(topic, base + 7).segments, 0);
    CHECK_EQ(delete_before(topic, 5).start_offset, base + 7);
    topic_close(other);
    topic_close(topic);
    check_everywhere(base + 7, COUNT);
    folder_remove(path);
}

static void test_the_start_survives_a_process_that_dies(void)
{
    sc_topic *topic = make_log();
    delete_before(topic, 1234);
    append_records(topic, 0, COUNT, 10);
    topic_abandon(topic);
    check_everywhere(1234, COUNT + 10);
    folder_remove(path);
}

static void test_the_start_survives_a_power_loss_right_after_the_deletion(void)
{
    sc_topic *topic = make_log();
    delete_before(topic, 1234);
    topic_abandon(topic);
    pretend_power_loss(path);
    check_everywhere(1234, COUNT);
    folder_remove(path);
}

static void test_the_end_survives_when_all_records_are_deleted(void)
{
    for (int abandoned = 0; abandoned < 2; abandoned++) {
        sc_topic *topic = make_log();
        CHECK_EQ(delete_before(topic, COUNT).start_offset, COUNT);
        CHECK_EQ(segment_count(topic), 1);
        CHECK_EQ(base_of(topic, 0), COUNT);
        if (abandoned)
            topic_abandon(topic);
        else
            topic_close(topic);
        check_everywhere(COUNT, COUNT);
        folder_remove(path);
    }
}

static void test_an_offset_behind_the_end_is_refused(void)
{
    sc_topic *topic = make_log();
    sc_removal removal;
    sc_error error;
    CHECK_EQ(sc_partition_delete_before(topic, 0, COUNT + 1, &removal, &error), SC_RANGE);
    CHECK_EQ(error.position, COUNT);
    CHECK_EQ(sc_partition_delete_before(topic, 0, -1, &removal, &error), SC_RANGE);
    CHECK_EQ(sc_partition_delete_before(topic, 1, 1, &removal, &error), SC_RANGE);
    CHECK_EQ(sc_partition_delete_before(topic, 1, 0, &removal, &error), SC_OK);
    check_range(topic, 0, COUNT);
    topic_close(topic);
    topic = topic_open_with(path, false, SEGMENT);
    CHECK_EQ(sc_partition_delete_before(topic, 0, 1, &removal, &error), SC_READ_ONLY);
    topic_close(topic);
    folder_remove(path);
}

static void test_a_scan_that_needs_a_removed_segment_learns_where_the_log_begins(void)
{
    sc_topic *topic = make_log(), *other = topic_open_with(path, true, SEGMENT);
    sc_range range = {0, 0, COUNT};
    sc_scan_options options = {.ranges = &range,
                               .range_count = 1,
                               .min_timestamp = INT64_MIN,
                               .max_timestamp = INT64_MAX,
                               .limit = -1,
                               .verify = true};
    sc_scan *scan;
    sc_batch batch;
    sc_error error;
    int code;
    CHECK_OK(sc_scan_open(other, &options, &scan, &error), error);
    CHECK_OK(sc_scan_next(scan, &batch, &error), error);
    delete_before(topic, 2000);
    while ((code = sc_scan_next(scan, &batch, &error)) == SC_OK)
        continue;
    CHECK_EQ(code, SC_RANGE);
    CHECK_EQ(error.offset, 2000);
    CHECK_EQ(error.position, COUNT);
    sc_scan_free(scan);
    topic_close(other);
    topic_close(topic);
    folder_remove(path);
}

/* ---- rolling ----------------------------------------------------------------------------------------------- */

static void test_rolling_seals_the_active_segment_once(void)
{
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    sc_error error;
    int64_t base;
    CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
    CHECK_EQ(base, -1);
    append_records(topic, 0, 0, 10);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(sc_partition_roll(topic, 0, &base, &error), error);
        CHECK_EQ(base, 10);
        CHECK_EQ(segment_count(topic), 2);
    }
    segment_file(file, path, 0, 0);
    CHECK(file_size(file) <= 8192); /* cut at once */
    append_records(topic, 0, 10, 10);
    CHECK_EQ(segment_count(topic), 2);
    topic_close(topic);
    check_everywhere(0, 20);
    folder_remove(path);
}

/* ---- crashes ----------------------------------------------------------------------------------------------- */

/* Every system call of a deletion fails once, and the process dies then: the log begins at the old or the new start. */
static void test_an_interrupted_deletion_leaves_the_old_or_the_new_start(void)
{
    int old_starts = 0, new_starts = 0;
    bool failed = true;
    for (int number = 1; failed; number++) {
        sc_topic *topic = make_log();
        sc_removal removal;
        sc_error error;
        faults_arm(number, EIO, number % 2 == 0);
        int code = sc_partition_delete_before(topic, 0, 2000, &removal, &error);
        failed = faults_disarm();
        topic_abandon(topic);
        if (number % 3 == 0)
            pretend_power_loss(path);
        topic = topic_open_with(path, true, SEGMENT);
        int64_t start = describe(topic).start_offset;
        CHECK(start == 2000 || (start == 0 && code != SC_OK));
        *(start == 0 ? &old_starts : &new_starts) += 1;
        check_range(topic, start, COUNT);
        delete_before(topic, 2000); /* also what an earlier call has left */
        CHECK(base_of(topic, 1) > 2000);
        segment_file(file, path, 0, 0);
        CHECK(!file_exists(file));
        topic_close(topic);
        check_everywhere(2000, COUNT);
        folder_remove(path);
    }
    CHECK(old_starts > 0 && new_starts > 10);
}

static struct sc_os_table real;
static char drive[FOLDER_MAX]; /* as it is when the power goes: what was synced, and the names that are gone */
static bool names_go;

static int keeping_sync_data(int fd)
{
    if (!names_go) {
        folder_remove(drive);
        CHECK_EQ(mkdir(drive, 0777), 0);
        folder_copy(path, drive);
    }
    return real.sync_data(fd);
}

static int keeping_unlink(const char *name)
{
    char gone[FOLDER_MAX + FILE_MAX];
    if (strstr(name, ".arrows") != NULL && strncmp(name, path, strlen(path)) == 0) {
        names_go = true;
        snprintf(gone, sizeof gone, "%s%s", drive, name + strlen(path));
        CHECK_EQ(unlink(gone), 0);
    }
    return real.unlink(name);
}

static void test_no_file_goes_before_the_drive_has_the_new_start(void)
{
    sc_topic *topic = make_log();
    sc_error error;
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    folder_make(drive);
    folder_copy(path, drive);
    real = sc_os;
    names_go = false;
    sc_os.sync_data = keeping_sync_data;
    sc_os.unlink = keeping_unlink;
    delete_before(topic, 2000);
    sc_os_reset();
    CHECK(names_go);
    topic_close(topic);
    folder_remove(path);
    snprintf(path, sizeof path, "%s", drive);
    pretend_power_loss(path);
    check_everywhere(2000, COUNT);
    folder_remove(path);
}

static bool is_killed_before(int number)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        sc_topic *topic = topic_open_with(path, true, SEGMENT);
        append_records(topic, 0, COUNT, 10);
        faults_arm_kill(number);
        delete_before(topic, 2000);
        _exit(0);
    }
    CHECK(child > 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    return WIFSIGNALED(status);
}

static void test_a_process_that_is_killed_before_any_system_call_leaves_the_old_or_the_new_start(void)
{
    int old_starts = 0, new_starts = 0;
    bool killed = true;
    for (int number = 1; killed; number++) {
        topic_close(make_log());
        killed = is_killed_before(number);
        sc_topic *topic = topic_open_with(path, true, SEGMENT);
        int64_t start = describe(topic).start_offset;
        CHECK(start == 2000 || (start == 0 && killed));
        *(start == 0 ? &old_starts : &new_starts) += 1;
        check_range(topic, start, COUNT + 10);
        topic_close(topic);
        check_everywhere(start, COUNT + 10);
        topic = topic_open_with(path, true, SEGMENT);
        delete_before(topic, 2000);
        segment_file(file, path, 0, 0);
        CHECK(!file_exists(file));
        topic_close(topic);
        folder_remove(path);
    }
    CHECK(old_starts > 0 && new_starts > 10);
}

/* The control: files go before the log says where it begins, and not the oldest first. */
static void test_files_that_go_before_the_note_leave_a_hole(void)
{
    sc_topic *topic = make_log();
    int64_t second = base_of(topic, 1), next;
    sc_error error;
    topic_close(topic);
    segment_file(file, path, 0, second);
    CHECK_EQ(unlink(file), 0);
    topic = topic_open_with(path, true, SEGMENT);
    CHECK_EQ(describe(topic).start_offset, 0);
    CHECK_EQ(try_read(topic, 0, 0, COUNT, &next, &error), SC_CORRUPT);
    topic_close(topic);
    folder_remove(path);
}

/* Files may vanish in any order when the machine goes down while they are removed. */
static void test_a_hole_below_the_start_is_no_damage(void)
{
    sc_topic *topic = make_log();
    char kept[FOLDER_MAX];
    int64_t second = base_of(topic, 1);
    topic_close(topic);
    folder_make(kept);
    folder_copy(path, kept);
    topic = topic_open_with(path, true, SEGMENT);
    delete_before(topic, 2000);
    topic_close(topic);
    char from[FILE_MAX];
    int64_t size;
    segment_file(from, kept, 0, 0); /* the first is back, the second is not */
    segment_file(file, path, 0, 0);
    uint8_t *data = file_read(from, &size);
    file_write(file, data, size);
    free(data);
    segment_file(file, path, 0, second);
    CHECK(!file_exists(file));
    check_everywhere(2000, COUNT);
    folder_remove(path);
    folder_remove(kept);
}

/* The control of the tests above: what they see is the note, and not the names of files. */
static void test_without_its_note_a_log_begins_at_its_first_segment(void)
{
    sc_topic *topic = make_log();
    int64_t base = base_of(topic, 2);
    delete_before(topic, base + 7);
    int64_t last = base_of(topic, segment_count(topic) - 1);
    topic_abandon(topic);
    segment_file(file, path, 0, last);
    found_batch batches[512];
    int count = found_batches(file, batches, 512);
    int64_t end = batches[count - 1].position + batches[count - 1].header.total_size;
    file_zero(file, end, file_size(file) - end);
    topic = topic_open_with(path, true, SEGMENT);
    check_range(topic, base, COUNT);
    topic_close(topic);
    folder_remove(path);
}

static int begin(sc_topic *topic, int64_t offset, sc_error *error)
{
    return sc_partition_begin(topic, 0, offset, 1, NULL, 0, error);
}

static void test_a_log_that_never_had_a_record_begins_where_it_is_told_for_good(void)
{
    sc_error error;
    folder_make(path);
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    CHECK_EQ(begin(topic, -1, &error), SC_RANGE);
    CHECK_OK(begin(topic, 5000, &error), error);
    CHECK_EQ(begin(topic, 6000, &error), SC_RANGE);
    CHECK_EQ(error.offset, 5000);
    check_range(topic, 5000, 5000);
    topic_abandon(topic); /* as if the process had died */
    check_everywhere(5000, 5000);
    topic = topic_open_with(path, false, SEGMENT);
    CHECK_EQ(begin(topic, 1, &error), SC_READ_ONLY);
    topic_close(topic);
    topic = topic_open_with(path, true, SEGMENT);
    int64_t end = describe(topic).end_offset;
    append_records(topic, 0, end, EACH);
    check_range(topic, 5000, end + EACH);
    topic_close(topic);
    check_everywhere(5000, end + EACH);
    folder_remove(path);
    topic = make_log();
    CHECK_EQ(begin(topic, COUNT, &error), SC_RANGE);
    check_range(topic, 0, COUNT);
    topic_close(topic);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_a_log_begins_where_it_was_told_and_whole_segments_below_go);
    RUN(test_the_start_survives_a_process_that_dies);
    RUN(test_the_start_survives_a_power_loss_right_after_the_deletion);
    RUN(test_the_end_survives_when_all_records_are_deleted);
    RUN(test_an_offset_behind_the_end_is_refused);
    RUN(test_a_scan_that_needs_a_removed_segment_learns_where_the_log_begins);
    RUN(test_rolling_seals_the_active_segment_once);
    RUN(test_an_interrupted_deletion_leaves_the_old_or_the_new_start);
    RUN(test_no_file_goes_before_the_drive_has_the_new_start);
    RUN(test_a_process_that_is_killed_before_any_system_call_leaves_the_old_or_the_new_start);
    RUN(test_files_that_go_before_the_note_leave_a_hole);
    RUN(test_a_hole_below_the_start_is_no_damage);
    RUN(test_without_its_note_a_log_begins_at_its_first_segment);
    RUN(test_a_log_that_never_had_a_record_begins_where_it_is_told_for_good);
    return 0;
}
