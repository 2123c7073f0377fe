#include "faults.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

#include "os.h"

static struct sc_os_table real;
static atomic_int calls;
static int fail_at, fail_with;
static bool fail_sticky, fail_kills;
static atomic_bool failed;
static const char *failed_name = "nothing";

static bool fails(const char *name)
{
    int number = atomic_fetch_add(&calls, 1) + 1;
    if (number != fail_at && !(fail_sticky && number > fail_at))
        return false;
    if (fail_kills)
        raise(SIGKILL);
    if (!atomic_exchange(&failed, true))
        failed_name = name;
    errno = fail_with;
    return true;
}

static int faulty_open(const char *path, int how)
{
    return fails("open") ? -1 : real.open(path, how);
}

static int faulty_close(int fd)
{
    int result = real.close(fd); /* a close that fails has closed */
    return fails("close") ? -1 : result;
}

static int faulty_stat(int fd, sc_file_stat *stat)
{
    return fails("stat") ? -1 : real.stat(fd, stat);
}

static ssize_t faulty_pread(int fd, void *data, size_t size, int64_t position)
{
    return fails("pread") ? -1 : real.pread(fd, data, size, position);
}

/* A write that fails has written half. */
static ssize_t faulty_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    if (!fails("pwrite"))
        return real.pwrite(fd, data, size, position);
    int number = errno;
    (void)!real.pwrite(fd, data, size / 2, position);
    errno = number;
    return -1;
}

static int faulty_allocate(int fd, int64_t position, int64_t size)
{
    return fails("allocate") ? -1 : real.allocate(fd, position, size);
}

static int faulty_zero(int fd, int64_t position, int64_t size)
{
    return fails("zero") ? -1 : real.zero(fd, position, size);
}

static int faulty_truncate(int fd, int64_t size)
{
    return fails("truncate") ? -1 : real.truncate(fd, size);
}

static int faulty_set_modified(int fd, int64_t modified_ns)
{
    return fails("set_modified") ? -1 : real.set_modified(fd, modified_ns);
}

static int faulty_sync(int fd)
{
    return fails("sync") ? -1 : real.sync(fd);
}

static int faulty_sync_data(int fd)
{
    return fails("sync_data") ? -1 : real.sync_data(fd);
}

static void *faulty_map(int fd, size_t size, bool writable)
{
    return fails("map") ? NULL : real.map(fd, size, writable);
}

static void *faulty_map_copy(int fd, size_t file_size, size_t size)
{
    return fails("map_copy") ? NULL : real.map_copy(fd, file_size, size);
}

static int faulty_populate(void *address, size_t size)
{
    return fails("populate") ? -1 : real.populate(address, size);
}

static int faulty_rename(const char *from, const char *to)
{
    return fails("rename") ? -1 : real.rename(from, to);
}

static int faulty_unlink(const char *path)
{
    return fails("unlink") ? -1 : real.unlink(path);
}

static int faulty_mkdir(const char *path)
{
    return fails("mkdir") ? -1 : real.mkdir(path);
}

static int faulty_list(const char *path, sc_name_callback callback, void *context)
{
    return fails("list") ? -1 : real.list(path, callback, context);
}

static int faulty_lock(int fd, int64_t byte, int kind, bool wait)
{
    return kind != SC_LOCK_NONE && fails("lock") ? -1 : real.lock(fd, byte, kind, wait);
}

static int faulty_is_locked(int fd, int64_t byte)
{
    return fails("is_locked") ? -1 : real.is_locked(fd, byte);
}

void faults_arm(int number, int error_number, bool sticky)
{
    sc_os_reset();
    real = sc_os;
    fail_at = number;
    fail_with = error_number;
    fail_sticky = sticky;
    failed_name = "nothing";
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
