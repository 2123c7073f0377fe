/* Each system call fails in turn, once or from then on: what was acknowledged is there, and nobody speaks of
 * corruption. */
#include <dirent.h>
#include <errno.h>

#include "check.h"
#include "faults.h"
#include "plain_topic.h"

enum { SEGMENT = 16 << 10 };
static char path[FOLDER_MAX];
static int64_t acknowledged, attempted;

static void check_code(int code, const sc_error *error)
{
    if (code != SC_OK && code != SC_OS && code != SC_POISONED)
        check_error(__FILE__, __LINE__, faults_name(), error);
}

static int open_descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (folder != NULL && readdir(folder) != NULL)
        count++;
    if (folder != NULL)
        closedir(folder);
    return count;
}

/* Appends when the end of the log is known. False: it is not. */
static bool append_some(sc_topic *topic, int64_t count, int64_t each, bool durable)
{
    sc_partition_info info;
    sc_error error;
    int code = sc_partition_describe(topic, 0, false, &info, &error);
    check_code(code, &error);
    if (code != SC_OK)
        return false;
    CHECK(info.end_offset >= acknowledged && info.end_offset <= attempted);
    int64_t end = info.end_offset;
    code = try_append(topic, 0, end, count, each, durable, &error);
    check_code(code, &error);
    if (code == SC_OK)
        acknowledged = end + count;
    if (attempted < end + count)
        attempted = end + count;
    if (code != SC_OK && !durable && sc_partition_describe(topic, 0, false, &info, &error) == SC_OK)
        CHECK_EQ(info.end_offset, end); /* an append that failed is not there */
    return true;
}

static void read_some(sc_topic *topic)
{
    sc_partition_info info;
    sc_segment_info segment;
    sc_error error;
    int64_t next;
    int code = sc_partition_describe(topic, 0, true, &info, &error);
    check_code(code, &error);
    if (code != SC_OK)
        return;
    CHECK(info.end_offset >= acknowledged);
    check_code(try_read(topic, 0, 0, info.end_offset, &next, &error), &error);
    for (int64_t n = 0; (code = sc_partition_segment(topic, 0, n, &segment, &error)) == SC_OK; n++)
        ;
    if (code != SC_END)
        check_code(code, &error);
}

static void close_it(sc_topic *topic)
{
    sc_error error;
    check_code(sc_topic_close(topic, &error), &error);
    sc_topic_free(topic);
}

static void run_scenario(void)
{
    sc_topic *topic, *reader;
    sc_error error;
    int code = topic_try_open(path, true, SEGMENT, &topic, &error);
    check_code(code, &error);
    if (code == SC_OK) {
        bool known = true;
        for (int i = 0; i < 5 && known; i++)
            known = append_some(topic, 40 + i, 15, i == 2);
        check_code(sc_partition_flush(topic, 0, &error), &error);
        known = known && append_some(topic, 900, 900, false); /* large: a write, and a segment of its own */
        known = known && append_some(topic, 30, 30, false);
        read_some(topic);
        close_it(topic);
    }
    code = topic_try_open(path, true, SEGMENT, &topic, &error);
    check_code(code, &error);
    if (code != SC_OK)
        return;
    append_some(topic, 60, 30, false);
    code = topic_try_open(path, false, SEGMENT, &reader, &error);
    check_code(code, &error);
    if (code == SC_OK) {
        read_some(reader);
        close_it(reader);
    }
    append_some(topic, 20, 20, true);
    close_it(topic);
}

/* Recovery with work to do: a torn end, a segment that was not finished, a power loss. */
static void run_recovery(void)
{
    sc_topic *topic;
    sc_error error;
    int code = topic_try_open(path, true, SEGMENT, &topic, &error);
    check_code(code, &error);
    if (code != SC_OK)
        return;
    read_some(topic);
    append_some(topic, 50, 25, true);
    close_it(topic);
}

static void prepare_nothing(void)
{
    acknowledged = attempted = 0;
}

static void prepare_torn(void)
{
    char file[FILE_MAX];
    found_batch batches[64];
    sc_error error;
    sc_segment_info info;
    sc_topic *topic = topic_open_with(path, true, SEGMENT);
    for (int64_t i = 0; i < 300; i += 30)
        append_records(topic, 0, i, 30);
    CHECK_OK(sc_partition_flush(topic, 0, &error), error);
    CHECK_OK(try_append(topic, 0, 300, 60, 20, false, &error), error);
    CHECK_OK(sc_partition_segment(topic, 0, 0, &info, &error), error);
    topic_abandon(topic);
    segment_file(file, path, 0, 300); /* where the last append lies, if it began a segment */
    if (!file_exists(file))
        for (int64_t base = 300; base >= 0 && !file_exists(file); base -= 30)
            segment_file(file, path, 0, base);
    int count = found_batches(file, batches, 64);
    file_flip(file, batches[count - 1].position + 1000); /* the last batch of the append of three */
    segment_file(file, path, 0, 360);
    file_write(file, "", 0);
    pretend_power_loss(path);
    acknowledged = attempted = 300;
}

static void check_survives(void (*prepare)(void), void (*run)(void), int error_number, bool sticky)
{
    for (int number = 1;; number++) {
        folder_make(path);
        prepare();
        int before = open_descriptors();
        faults_arm(number, error_number, sticky);
        run();
        bool failed = faults_disarm();
        CHECK_EQ(open_descriptors(), before);
        sc_topic *topic = topic_open_with(path, true, SEGMENT);
        int64_t end = end_of(topic, 0);
        CHECK(end >= acknowledged && end <= attempted);
        check_records(topic, 0, 0, end);
        append_records(topic, 0, end, 25);
        topic_close(topic);
        topic = topic_open_with(path, false, SEGMENT);
        check_records(topic, 0, 0, end + 25);
        topic_close(topic);
        folder_remove(path);
        if (!failed) {
            CHECK(number > 20);
            return;
        }
    }
}

static void test_any_call_that_fails_once_loses_nothing(void)
{
    check_survives(prepare_nothing, run_scenario, EIO, false);
    check_survives(prepare_nothing, run_scenario, EMFILE, false);
}

static void test_calls_that_fail_from_some_moment_on_lose_nothing(void)
{
    check_survives(prepare_nothing, run_scenario, ENOSPC, true);
}

static void test_any_call_that_fails_in_recovery_loses_nothing(void)
{
    check_survives(prepare_torn, run_recovery, EMFILE, false);
    check_survives(prepare_torn, run_recovery, EIO, true);
}

int main(int argc, char **argv)
{
    RUN(test_any_call_that_fails_once_loses_nothing);
    RUN(test_calls_that_fail_from_some_moment_on_lose_nothing);
    RUN(test_any_call_that_fails_in_recovery_loses_nothing);
    return 0;
}
