#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "disk.h"
#include "os.h"

static char path[FOLDER_MAX], file[FILE_MAX];

static int make_file(int64_t size)
{
    folder_make(path);
    snprintf(file, sizeof file, "%s/file", path);
    int fd = sc_os.open(file, SC_OPEN_CREATE);
    CHECK(fd >= 0);
    CHECK(size == 0 || sc_os.allocate(fd, 0, size) == 0);
    return fd;
}

static void drop_file(int fd)
{
    sc_os.close(fd);
    folder_remove(path);
}

static void test_files_are_opened_made_and_refused_as_asked(void)
{
    int fd = make_file(0);
    CHECK(sc_os.open(file, SC_OPEN_CREATE) < 0 && errno == EEXIST);
    int other = sc_os.open(file, SC_OPEN_READ);
    CHECK(other >= 0 && (fcntl(other, F_GETFL) & O_ACCMODE) == O_RDONLY && (fcntl(other, F_GETFD) & FD_CLOEXEC));
    sc_os.close(other);
    CHECK(unlink(file) == 0);
    CHECK(sc_os.open(file, SC_OPEN_WRITE) < 0 && errno == ENOENT);
    other = sc_os.open(file, SC_OPEN_CREATE_OR_WRITE);
    CHECK(other >= 0);
    sc_os.close(other);
    drop_file(fd);
}

static void test_allocated_space_reads_as_zeros_and_has_its_size(void)
{
    int fd = make_file(100000);
    sc_file_stat stat;
    CHECK(sc_os.stat(fd, &stat) == 0 && stat.size == 100000);
    CHECK(sc_os.allocate(fd, 0, 10) == 0);
    CHECK(sc_os.stat(fd, &stat) == 0 && stat.size == 100000);
    uint8_t data[100];
    CHECK(sc_os_read_whole(fd, data, 100, 99900) == 0);
    for (int i = 0; i < 100; i++)
        CHECK_EQ(data[i], 0);
    errno = 77;
    CHECK(sc_os_read_whole(fd, data, 100, 99901) != 0 && errno == 0);
    drop_file(fd);
}

static void test_zeroing_touches_its_range_only(void)
{
    int fd = make_file(0);
    uint8_t data[20000], found[20000];
    memset(data, 0xab, sizeof data);
    CHECK(sc_os_write_whole(fd, data, sizeof data, 0) == 0);
    uint8_t *mapped = sc_os.map(fd, sizeof data, false);
    CHECK(mapped != NULL && sc_os.zero(fd, 5001, 9999) == 0);
    CHECK(sc_os_read_whole(fd, found, sizeof found, 0) == 0);
    memset(data + 5001, 0, 9999);
    CHECK(memcmp(found, data, sizeof data) == 0);
    CHECK(memcmp(mapped, data, sizeof data) == 0);
    sc_os.unmap(mapped, sizeof data);
    drop_file(fd);
}

static int short_calls;
static ssize_t short_pread(int fd, void *data, size_t size, int64_t position)
{
    if (short_calls++ % 2 == 0) {
        errno = EINTR;
        return -1;
    }
    return pread(fd, data, size < 7 ? size : 7, (off_t)position);
}
static ssize_t short_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    if (short_calls++ % 2 == 0) {
        errno = EINTR;
        return -1;
    }
    return pwrite(fd, data, size < 5 ? size : 5, (off_t)position);
}

static void test_whole_reads_and_writes_go_on_after_interrupts_and_short_counts(void)
{
    int fd = make_file(0);
    uint8_t data[1000], found[1000];
    for (int i = 0; i < 1000; i++)
        data[i] = (uint8_t)(i * 7);
    sc_os.pread = short_pread;
    sc_os.pwrite = short_pwrite;
    CHECK(sc_os_write_whole(fd, data, sizeof data, 33) == 0);
    CHECK(sc_os_read_whole(fd, found, sizeof found, 33) == 0);
    sc_os_reset();
    CHECK(memcmp(data, found, sizeof data) == 0);
    drop_file(fd);
}

static void test_locks_exclude_other_descriptions_and_tell_their_kind(void)
{
    int first = make_file(0), second = sc_os.open(file, SC_OPEN_WRITE);
    CHECK_EQ(sc_os.is_locked(second, 5), SC_LOCK_NONE);
    CHECK(sc_os.lock(first, 5, SC_LOCK_SHARED, false) == 0);
    CHECK_EQ(sc_os.is_locked(second, 5), SC_LOCK_SHARED);
    CHECK_EQ(sc_os.is_locked(first, 5), SC_LOCK_NONE); /* one's own is no other's */
    CHECK(sc_os.lock(second, 5, SC_LOCK_SHARED, false) == 0);
    CHECK(sc_os.lock(second, 5, SC_LOCK_EXCLUSIVE, false) != 0);
    CHECK(sc_os.lock(first, 5, SC_LOCK_NONE, false) == 0);
    CHECK(sc_os.lock(second, 5, SC_LOCK_EXCLUSIVE, false) == 0);
    CHECK_EQ(sc_os.is_locked(first, 5), SC_LOCK_EXCLUSIVE);
    CHECK(sc_os.lock(first, 6, SC_LOCK_EXCLUSIVE, false) == 0);
    sc_os.close(second);
    CHECK(sc_os.lock(first, 5, SC_LOCK_EXCLUSIVE, false) == 0);
    drop_file(first);
}

static void read_it(void *argument)
{
    volatile const uint8_t *data = argument;
    volatile uint8_t sum = 0;
    for (int i = 0; i < 3 * 4096; i += 512)
        sum += data[i];
    (void)sum;
}

static void read_twice(void *argument)
{
    uint8_t *data = argument;
    CHECK(!sc_os_read_mapped(data, 3 * 4096, read_it, data)); /* the inner one catches its own */
    read_it(argument);
}

static void test_a_read_behind_the_end_of_a_mapped_file_is_reported(void)
{
    (void)sc_os_fork_generation();
    int fd = make_file(4 * 4096);
    uint8_t *data = sc_os.map(fd, 4 * 4096, false);
    CHECK(sc_os_read_mapped(data, 3 * 4096, read_it, data));
    CHECK(sc_os.truncate(fd, 4096) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(!sc_os_read_mapped(data, 3 * 4096, read_it, data));
    CHECK(!sc_os_read_mapped(data, 3 * 4096, read_twice, data));
    CHECK(sc_os.truncate(fd, 4 * 4096) == 0);
    CHECK(sc_os_read_mapped(data, 3 * 4096, read_it, data));
    sc_os.unmap(data, 4 * 4096);
    drop_file(fd);
}

static void test_a_fault_that_is_not_ours_ends_the_process_as_before(void)
{
    (void)sc_os_fork_generation();
    int fd = make_file(4096);
    uint8_t *data = sc_os.map(fd, 4096, false);
    CHECK(sc_os.truncate(fd, 0) == 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        fclose(stderr); /* a sanitizer would tell of it */
        volatile uint8_t byte = *(volatile uint8_t *)data;
        _exit(byte);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && !(WIFEXITED(status) && WEXITSTATUS(status) == 0));
    sc_os.unmap(data, 4096);
    drop_file(fd);
}

static void test_forks_are_counted_and_guarded_descriptors_closed(void)
{
    uint32_t before = sc_os_fork_generation();
    int guarded = make_file(0), plain = sc_os.open(file, SC_OPEN_READ);
    CHECK(sc_os_guard_descriptor(guarded));
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        bool good = sc_os_fork_generation() != before && fcntl(guarded, F_GETFD) < 0 && fcntl(plain, F_GETFD) >= 0;
        _exit(good ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_EQ(sc_os_fork_generation(), before);
    CHECK(fcntl(guarded, F_GETFD) >= 0);
    sc_os_unguard_descriptor(guarded);
    sc_os.close(plain);
    drop_file(guarded);
}

static void test_waits_end_by_time_or_when_the_word_has_changed(void)
{
    static uint32_t word = 5;
    int64_t start = sc_os.monotonic_ns();
    sc_os.wait(&word, 4, -1); /* would sleep for ever on 5 */
    sc_os.wait(&word, 5, 20 * 1000 * 1000);
    CHECK(sc_os.monotonic_ns() - start < INT64_C(10000000000));
}

static void test_the_boot_id_is_stable_and_known(void)
{
    uint8_t first[16], second[16], zeros[16] = {0};
    sc_os_boot_id(first);
    sc_os_boot_id(second);
    CHECK(memcmp(first, second, 16) == 0);
#if defined(__linux__)
    CHECK(memcmp(first, zeros, 16) != 0);
#endif
    (void)zeros;
}

int main(int argc, char **argv)
{
    RUN(test_files_are_opened_made_and_refused_as_asked);
    RUN(test_allocated_space_reads_as_zeros_and_has_its_size);
    RUN(test_zeroing_touches_its_range_only);
    RUN(test_whole_reads_and_writes_go_on_after_interrupts_and_short_counts);
    RUN(test_locks_exclude_other_descriptions_and_tell_their_kind);
    RUN(test_a_read_behind_the_end_of_a_mapped_file_is_reported);
    RUN(test_a_fault_that_is_not_ours_ends_the_process_as_before);
    RUN(test_forks_are_counted_and_guarded_descriptors_closed);
    RUN(test_waits_end_by_time_or_when_the_word_has_changed);
    RUN(test_the_boot_id_is_stable_and_known);
    return 0;
}
