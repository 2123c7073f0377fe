#include "faults.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os.h"

enum { FAILED_SYNCS_MAX = 64 };

static struct sc_os_table real;
static atomic_int calls;
static int fail_at, fail_with;
static bool fail_sticky, fail_kills;
static atomic_bool failed;
static const char *failed_name = "nothing";
static char failed_path[PATH_MAX];
static enum faults_how fail_how;
static ino_t failed_syncs[FAILED_SYNCS_MAX];
static int failed_sync_count, repeated_sync_count;

static void note_path(int fd, const char *path)
{
    char link[64];
    if (failed_path[0] != 0)
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = path == NULL ? readlink(link, failed_path, sizeof failed_path - 1) : -1;
    if (path != NULL)
        snprintf(failed_path, sizeof failed_path, "%s", path);
    else
        failed_path[size > 0 ? size : 0] = 0;
}

static bool is_counted(const char *name)
{
    return fail_how == FAULT_ERROR || strcmp(name, "pread") == 0 || strcmp(name, "pwrite") == 0;
}

static bool fails_at(const char *name, int fd, const char *path)
{
    if (!is_counted(name))
        return false;
    int number = atomic_fetch_add(&calls, 1) + 1;
    if (number != fail_at && !(fail_sticky && number > fail_at))
        return false;
    if (fail_kills)
        raise(SIGKILL);
    if (!atomic_exchange(&failed, true)) {
        failed_name = name;
        note_path(fd, path);
    }
    errno = fail_with;
    return true;
}

/* How much of it a call does that is short. */
static size_t short_of(size_t size)
{
    size_t part = fail_how == FAULT_ONE_LESS ? size - 1 : fail_how == FAULT_HALF ? size / 2 : 1;
    return part == 0 ? 1 : part;
}

static int faulty_open(const char *path, int how)
{
    return fails_at("open", -1, path) ? -1 : real.open(path, how);
}

static int faulty_close(int fd)
{
    int result = real.close(fd); /* a close that fails has closed */
    return fails_at("close", -1, "") ? -1 : result;
}

static int faulty_stat(int fd, sc_file_stat *stat)
{
    return fails_at("stat", fd, NULL) ? -1 : real.stat(fd, stat);
}

static ssize_t faulty_pread(int fd, void *data, size_t size, int64_t position)
{
    if (!fails_at("pread", fd, NULL))
        return real.pread(fd, data, size, position);
    return fail_how == FAULT_ERROR ? -1 : real.pread(fd, data, short_of(size), position);
}

/* A write that fails has written half. */
static ssize_t faulty_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    if (!fails_at("pwrite", fd, NULL))
        return real.pwrite(fd, data, size, position);
    if (fail_how != FAULT_ERROR)
        return real.pwrite(fd, data, short_of(size), position);
    int number = errno;
    (void)!real.pwrite(fd, data, size / 2, position);
    errno = number;
    return -1;
}

static int faulty_allocate(int fd, int64_t position, int64_t size)
{
    return fails_at("allocate", fd, NULL) ? -1 : real.allocate(fd, position, size);
}

static int faulty_zero(int fd, int64_t position, int64_t size)
{
    return fails_at("zero", fd, NULL) ? -1 : real.zero(fd, position, size);
}

static int faulty_truncate(int fd, int64_t size)
{
    return fails_at("truncate", fd, NULL) ? -1 : real.truncate(fd, size);
}

static int faulty_set_modified(int fd, int64_t modified_ns)
{
    return fails_at("set_modified", fd, NULL) ? -1 : real.set_modified(fd, modified_ns);
}

/* The second sync of a file whose first one failed says nothing about its bytes: nobody may ask for it. */
static int sync_and_note(const char *name, int fd, int (*sync)(int fd))
{
    struct stat st = {0};
    int got = fstat(fd, &st);
    bool fails = fails_at(name, fd, NULL);
    if (got != 0 || !S_ISREG(st.st_mode))
        return fails ? -1 : sync(fd);
    for (int i = 0; i < failed_sync_count; i++)
        repeated_sync_count += failed_syncs[i] == st.st_ino;
    if (!fails)
        return sync(fd);
    if (failed_sync_count < FAILED_SYNCS_MAX)
        failed_syncs[failed_sync_count++] = st.st_ino;
    errno = fail_with;
    return -1;
}

static int faulty_sync(int fd)
{
    return sync_and_note("sync", fd, real.sync);
}

static int faulty_sync_data(int fd)
{
    return sync_and_note("sync_data", fd, real.sync_data);
}

static void *faulty_map(int fd, size_t size, bool writable)
{
    return fails_at("map", fd, NULL) ? NULL : real.map(fd, size, writable);
}

static void *faulty_map_copy(int fd, size_t file_size, size_t size)
{
    return fails_at("map_copy", fd, NULL) ? NULL : real.map_copy(fd, file_size, size);
}

static int faulty_populate(void *address, size_t size)
{
    return fails_at("populate", -1, "") ? -1 : real.populate(address, size);
}

static int faulty_rename(const char *from, const char *to)
{
    return fails_at("rename", -1, to) ? -1 : real.rename(from, to);
}

static int faulty_unlink(const char *path)
{
    return fails_at("unlink", -1, path) ? -1 : real.unlink(path);
}

static int faulty_mkdir(const char *path)
{
    return fails_at("mkdir", -1, path) ? -1 : real.mkdir(path);
}

static int faulty_list(const char *path, sc_name_callback callback, void *context)
{
    return fails_at("list", -1, path) ? -1 : real.list(path, callback, context);
}

static int faulty_lock(int fd, int64_t byte, int kind, bool wait)
{
    return kind != SC_LOCK_NONE && fails_at("lock", fd, NULL) ? -1 : real.lock(fd, byte, kind, wait);
}

static int faulty_is_locked(int fd, int64_t byte)
{
    return fails_at("is_locked", fd, NULL) ? -1 : real.is_locked(fd, byte);
}

void faults_arm(int number, int error_number, bool sticky)
{
    sc_os_reset();
    real = sc_os;
    fail_at = number;
    fail_with = error_number;
    fail_sticky = sticky;
    fail_kills = false;
    fail_how = FAULT_ERROR;
    failed_name = "nothing";
    failed_path[0] = 0;
    failed_sync_count = repeated_sync_count = 0;
    atomic_store(&calls, 0);
    atomic_store(&failed, false);
    sc_os.open = faulty_open;
    sc_os.close = faulty_close;
    sc_os.stat = faulty_stat;
    sc_os.pread = faulty_pread;
    sc_os.pwrite = faulty_pwrite;
    sc_os.allocate = faulty_allocate;
    sc_os.zero = faulty_zero;
    sc_os.truncate = faulty_truncate;
    sc_os.set_modified = faulty_set_modified;
    sc_os.sync = faulty_sync;
    sc_os.sync_data = faulty_sync_data;
    sc_os.map = faulty_map;
    sc_os.map_copy = faulty_map_copy;
    sc_os.populate = faulty_populate;
    sc_os.rename = faulty_rename;
    sc_os.unlink = faulty_unlink;
    sc_os.mkdir = faulty_mkdir;
    sc_os.list = faulty_list;
    sc_os.lock = faulty_lock;
    sc_os.is_locked = faulty_is_locked;
}

void faults_arm_kill(int number)
{
    faults_arm(number, EIO, false);
    fail_kills = true;
}

void faults_arm_short(int number, enum faults_how how, bool sticky)
{
    faults_arm(number, 0, sticky);
    fail_how = how;
}

void faults_pause(void)
{
    fail_at = 0;
    fail_sticky = false;
}

int faults_repeated_syncs(void)
{
    return repeated_sync_count;
}

bool faults_failed(void)
{
    return atomic_load(&failed);
}

const char *faults_path(void)
{
    return failed_path;
}

bool faults_disarm(void)
{
    sc_os_reset();
    return atomic_load(&failed);
}

int faults_calls(void)
{
    return atomic_load(&calls);
}

const char *faults_name(void)
{
    return failed_name;
}
