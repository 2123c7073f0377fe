#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#if defined(__APPLE__)
#define _DARWIN_C_SOURCE
#endif
#include "os.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "control.h"

#ifndef O_DIRECT
#define O_DIRECT 0
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; older kernels answer EINVAL, which the caller ignores */
#endif
#ifndef F_OFD_SETLK /* no open-file-description locks: locks of the process, one store handle per process */
#define F_OFD_SETLK  F_SETLK
#define F_OFD_SETLKW F_SETLKW
#define F_OFD_GETLK  F_GETLK
#endif

/* ---- files ------------------------------------------------------------------------------------------------- */

/* Not by fstat, where it can be helped: it asks for the times, and Linux gives a file whose times were asked for new
 * ones at its next change (multigrain timestamps, since 6.13), so that each sync of an append writes the inode too. */
static int type_of(int fd, mode_t *mode)
{
#if defined(STATX_TYPE)
    struct statx found;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_TYPE, &found) == 0) {
        *mode = found.stx_mode;
        return 0;
    }
    if (errno != ENOSYS && errno != EPERM) /* an old kernel, a sandbox */
        return -1;
#endif
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -1;
    *mode = st.st_mode;
    return 0;
}

/* What is opened is a file, or a folder to sync it. Reading from a pipe or a device could wait for ever; O_NONBLOCK
 * keeps opening one from waiting, and means nothing for files. */
static int refuse_unless_file(int fd)
{
    mode_t mode;
    int number = type_of(fd, &mode) != 0 ? errno : S_ISREG(mode) || S_ISDIR(mode) ? 0 : EINVAL;
    if (number == 0)
        return fd;
    close(fd);
    errno = number;
    return -1;
}

static int real_open(const char *path, int how)
{
    static const int flags[] = {
        [SC_OPEN_READ] = O_RDONLY,
        [SC_OPEN_WRITE] = O_RDWR,
        [SC_OPEN_CREATE] = O_RDWR | O_CREAT | O_EXCL,
        [SC_OPEN_CREATE_OR_WRITE] = O_RDWR | O_CREAT,
        [SC_OPEN_DIRECT] = O_RDWR | O_DIRECT,
    };
#if defined(__APPLE__)
    if (how == SC_OPEN_DIRECT) {
        errno = EINVAL;
        return -1;
    }
#endif
    int fd;
    do
        fd = open(path, flags[how] | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK, 0666);
    while (fd < 0 && errno == EINTR);
    return fd < 0 ? fd : refuse_unless_file(fd);
}

static int real_stat(int fd, sc_file_stat *out)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -1;
    if (S_ISDIR(st.st_mode)) {
        errno = EISDIR;
        return -1;
    }
#if defined(__APPLE__)
    const struct timespec *modified = &st.st_mtimespec;
#else
    const struct timespec *modified = &st.st_mtim;
#endif
    *out = (sc_file_stat){.size = st.st_size,
                          .device = (uint64_t)st.st_dev,
                          .inode = (uint64_t)st.st_ino,
                          .modified_ns = (int64_t)modified->tv_sec * 1000000000 + modified->tv_nsec};
    return 0;
}

static ssize_t real_pread(int fd, void *data, size_t size, int64_t position)
{
    return pread(fd, data, size, (off_t)position);
}

static ssize_t real_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    return pwrite(fd, data, size, (off_t)position);
}

static int real_allocate(int fd, int64_t position, int64_t size)
{
#if defined(__APPLE__)
    fstore_t store = {F_ALLOCATEALL, F_PEOFPOSMODE, 0, size, 0};
    if (fcntl(fd, F_PREALLOCATE, &store) != 0)
        return -1;
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -1;
    return st.st_size >= position + size ? 0 : ftruncate(fd, (off_t)(position + size));
#else
    int number;
    do
        number = posix_fallocate(fd, (off_t)position, (off_t)size);
    while (number == EINTR);
    if (number == 0)
        return 0;
    errno = number;
    return -1;
#endif
}

/* Punches nothing and changes no size: plain writes of zeros where something else stands. */
static int zero_by_writing(int fd, int64_t position, int64_t size)
{
    static const uint8_t zeros[65536];
    uint8_t found[65536];
    while (size > 0) {
        size_t part = size < (int64_t)sizeof zeros ? (size_t)size : sizeof zeros;
        if (sc_os_read_whole(fd, found, part, position) != 0)
            return -1;
        if (memcmp(found, zeros, part) != 0 && sc_os_write_whole(fd, zeros, part, position) != 0)
            return -1;
        position += (int64_t)part;
        size -= (int64_t)part;
    }
    return 0;
}

static int real_zero(int fd, int64_t position, int64_t size)
{
#if defined(FALLOC_FL_ZERO_RANGE)
    int result;
    do
        result = fallocate(fd, FALLOC_FL_ZERO_RANGE, (off_t)position, (off_t)size);
    while (result != 0 && errno == EINTR);
    if (result == 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL))
        return result;
#endif
    return zero_by_writing(fd, position, size);
}

static int real_truncate(int fd, int64_t size)
{
    int result;
    do
        result = ftruncate(fd, (off_t)size);
    while (result != 0 && errno == EINTR);
    return result;
}

static int real_set_modified(int fd, int64_t modified_ns)
{
    struct timespec times[2] = {
        {.tv_nsec = UTIME_OMIT},
        {.tv_sec = (time_t)(modified_ns / 1000000000), .tv_nsec = (long)(modified_ns % 1000000000)}};
    return futimens(fd, times);
}

static int real_sync(int fd)
{
#if defined(__APPLE__)
    if (fcntl(fd, F_FULLFSYNC) == 0)
        return 0;
#endif
    int result;
    do
        result = fsync(fd);
    while (result != 0 && errno == EINTR);
    return result;
}

static int real_sync_data(int fd)
{
#if defined(__APPLE__)
    return real_sync(fd);
#else
    int result;
    do
        result = fdatasync(fd);
    while (result != 0 && errno == EINTR);
    return result;
#endif
}

static int real_mkdir(const char *path)
{
    return mkdir(path, 0777);
}

static int real_list(const char *path, sc_name_callback callback, void *context)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    DIR *folder = fdopendir(fd);
    if (folder == NULL) {
        close(fd);
        return -1;
    }
    int result = 0;
    errno = 0;
    for (struct dirent *entry; result == 0 && (entry = readdir(folder)) != NULL; errno = 0)
        if (entry->d_name[0] != '.')
            result = callback(context, entry->d_name);
    int number = result != 0 ? ENOMEM : errno;
    closedir(folder);
    errno = number;
    return number == 0 ? 0 : -1;
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

static void *real_map(int fd, size_t size, bool writable)
{
    void *address = mmap(NULL, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    return address == MAP_FAILED ? NULL : address;
}

static void *real_map_copy(int fd, size_t file_size, size_t size)
{
    uint8_t *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED)
        return NULL;
    if (file_size == 0 ||
        mmap(address, file_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) != MAP_FAILED)
        return address;
    int number = errno;
    munmap(address, size);
    errno = number;
    return NULL;
}

static int real_populate(void *address, size_t size)
{
    return madvise(address, size, MADV_POPULATE_WRITE);
}

/* ---- locks and waits --------------------------------------------------------------------------------------- */

static int real_lock(int fd, int64_t byte, int kind, bool wait)
{
    static const short types[] = {[SC_LOCK_NONE] = F_UNLCK, [SC_LOCK_SHARED] = F_RDLCK, [SC_LOCK_EXCLUSIVE] = F_WRLCK};
    struct flock lock = {.l_type = types[kind], .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};
    int result;
    do
        result = fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock);
    while (result != 0 && errno == EINTR);
    return result;
}

static int real_is_locked(int fd, int64_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0)
        return -1;
    return lock.l_type == F_UNLCK ? SC_LOCK_NONE : lock.l_type == F_RDLCK ? SC_LOCK_SHARED : SC_LOCK_EXCLUSIVE;
}

static int real_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
#if defined(__linux__)
    struct timespec limit = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    return (int)syscall(SYS_futex, word, FUTEX_WAIT, expected, timeout_ns < 0 ? NULL : &limit, NULL, 0);
#else
    (void)word, (void)expected;
    struct timespec pause = {.tv_nsec = timeout_ns >= 0 && timeout_ns < 1000000 ? (long)timeout_ns : 1000000};
    return nanosleep(&pause, NULL);
#endif
}

#if defined(__linux__)
#if !defined(SYS_futex_waitv)
#define SYS_futex_waitv 449 /* the same number on every architecture */
#endif
enum { WAITV_U32 = 2 };

/* struct futex_waitv of the kernel, which older headers lack */
typedef struct waitv_word {
    uint64_t expected, address;
    uint32_t flags, reserved;
} waitv_word;
#endif

static int real_wait_any(const sc_wait_word *words, int count, int64_t timeout_ns)
{
#if defined(__linux__)
    waitv_word given[SC_WAIT_WORDS_MAX];
    struct timespec limit;
    for (int i = 0; i < count; i++)
        given[i] = (waitv_word){words[i].expected, (uint64_t)(uintptr_t)words[i].word, WAITV_U32, 0};
    clock_gettime(CLOCK_MONOTONIC, &limit); /* the limit is a moment here, not a span */
    limit.tv_sec += timeout_ns / 1000000000;
    limit.tv_nsec += timeout_ns % 1000000000;
    if (limit.tv_nsec >= 1000000000) {
        limit.tv_sec++;
        limit.tv_nsec -= 1000000000;
    }
    return (int)syscall(SYS_futex_waitv, given, count, 0, timeout_ns < 0 ? NULL : &limit, CLOCK_MONOTONIC);
#else
    (void)words, (void)count, (void)timeout_ns;
    errno = ENOSYS;
    return -1;
#endif
}

static int real_wake(uint32_t *word)
{
#if defined(__linux__)
    return (int)syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
#else
    (void)word;
    return 0;
#endif
}

static int64_t real_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t real_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static const struct sc_os_table real_table = {
    .open = real_open,
    .close = close,
    .stat = real_stat,
    .pread = real_pread,
    .pwrite = real_pwrite,
    .allocate = real_allocate,
    .zero = real_zero,
    .truncate = real_truncate,
    .set_modified = real_set_modified,
    .sync = real_sync,
    .sync_data = real_sync_data,
    .map = real_map,
    .map_copy = real_map_copy,
    .unmap = munmap,
    .populate = real_populate,
    .rename = rename,
    .unlink = unlink,
    .mkdir = real_mkdir,
    .list = real_list,
    .lock = real_lock,
    .is_locked = real_is_locked,
    .wait = real_wait,
    .wait_any = real_wait_any,
    .wake = real_wake,
    .now_ms = real_now_ms,
    .monotonic_ns = real_monotonic_ns,
};

struct sc_os_table sc_os = {
    .open = real_open,
    .close = close,
    .stat = real_stat,
    .pread = real_pread,
    .pwrite = real_pwrite,
    .allocate = real_allocate,
    .zero = real_zero,
    .truncate = real_truncate,
    .set_modified = real_set_modified,
    .sync = real_sync,
    .sync_data = real_sync_data,
    .map = real_map,
    .map_copy = real_map_copy,
    .unmap = munmap,
    .populate = real_populate,
    .rename = rename,
    .unlink = unlink,
    .mkdir = real_mkdir,
    .list = real_list,
    .lock = real_lock,
    .is_locked = real_is_locked,
    .wait = real_wait,
    .wait_any = real_wait_any,
    .wake = real_wake,
    .now_ms = real_now_ms,
    .monotonic_ns = real_monotonic_ns,
};

void sc_os_reset(void)
{
    sc_os = real_table;
}

/* ---- whole reads and writes -------------------------------------------------------------------------------- */

int sc_os_read_whole(int fd, void *data, size_t size, int64_t position)
{
    while (size > 0) {
        ssize_t got = sc_os.pread(fd, data, size, position);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            if (got == 0)
                errno = 0;
            return -1;
        }
        data = (uint8_t *)data + got;
        size -= (size_t)got;
        position += got;
    }
    return 0;
}

int sc_os_write_whole(int fd, const void *data, size_t size, int64_t position)
{
    while (size > 0) {
        ssize_t put = sc_os.pwrite(fd, data, size, position);
        if (put > 0 && SC_CONTROL(short_write_believed))
            return 0;
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            if (put == 0)
                errno = EIO;
            return -1;
        }
        data = (const uint8_t *)data + put;
        size -= (size_t)put;
        position += put;
    }
    return 0;
}

int sc_os_sync_folder(const char *path)
{
    int fd = sc_os.open(path, SC_OPEN_READ);
    if (fd < 0)
        return -1;
    int result = sc_os.sync(fd);
    int number = errno;
    sc_os.close(fd);
    errno = number;
    return result;
}

#if defined(__APPLE__)
static bool read_boot_id(char text[37])
{
    size_t size = 37;
    return sysctlbyname("kern.bootsessionuuid", text, &size, NULL, 0) == 0 && size >= 36;
}
#elif defined(__linux__)
static bool read_boot_id(char text[37])
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t got = read(fd, text, 36);
    close(fd);
    return got == 36;
}
#else
static bool read_boot_id(char text[37])
{
    (void)text;
    return false;
}
#endif

void sc_os_boot_id(uint8_t id[16])
{
    char text[37] = {0};
    memset(id, 0, 16);
    if (!read_boot_id(text))
        return;
    for (int at = 0, digit = 0; at < 36 && digit < 32; at++) {
        if (text[at] == '-')
            continue;
        int value = text[at] <= '9' ? text[at] - '0' : (text[at] | 32) - 'a' + 10;
        id[digit / 2] = (uint8_t)(id[digit / 2] << 4 | value);
        digit++;
    }
}

uint64_t sc_os_random(void)
{
    uint64_t number = 0;
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, &number, sizeof number) != (ssize_t)sizeof number) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        number = (uint64_t)now.tv_nsec * UINT64_C(0x9e3779b97f4a7c15) ^ (uint64_t)now.tv_sec << 20 ^ (uint64_t)getpid();
    }
    if (fd >= 0)
        close(fd);
    return number;
}

/* ---- forks ------------------------------------------------------------------------------------------------- */

enum { GUARDED_MAX = 4096 };
static atomic_uint fork_count;
static atomic_int guarded[GUARDED_MAX]; /* descriptor + 1; 0: free */
static pthread_once_t process_once = PTHREAD_ONCE_INIT;

static void after_fork_in_child(void)
{
    atomic_fetch_add(&fork_count, 1);
    for (int i = 0; i < GUARDED_MAX; i++) {
        int fd = atomic_exchange(&guarded[i], 0) - 1;
        if (fd >= 0 && !SC_CONTROL(lock_outlives_its_process))
            close(fd);
    }
}

/* ---- faults in mapped files -------------------------------------------------------------------------------- */

struct fault_frame {
    sigjmp_buf jump;
    const uint8_t *low, *high;
};
static _Thread_local struct fault_frame *volatile fault_frame;
static struct sigaction previous_action;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    struct fault_frame *frame = fault_frame;
    const uint8_t *at = info->si_addr;
    if (frame != NULL && at >= frame->low && at < frame->high)
        siglongjmp(frame->jump, 1);
    if (previous_action.sa_flags & SA_SIGINFO) {
        previous_action.sa_sigaction(number, info, context);
    } else if (previous_action.sa_handler == SIG_DFL || previous_action.sa_handler == SIG_IGN) {
        signal(number, SIG_DFL); /* the access is tried again, and now ends the process as it would without us */
    } else {
        previous_action.sa_handler(number);
    }
}

static void set_up_process(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_action);
}

uint32_t sc_os_fork_generation(void)
{
    pthread_once(&process_once, set_up_process); /* every handle asks, also a read-only one, which guards nothing */
    return atomic_load_explicit(&fork_count, memory_order_relaxed);
}

bool sc_os_guard_descriptor(int fd)
{
    pthread_once(&process_once, set_up_process);
    for (int i = 0; i < GUARDED_MAX; i++) {
        int expected = 0;
        if (atomic_compare_exchange_strong(&guarded[i], &expected, fd + 1))
            return true;
    }
    return false;
}

void sc_os_unguard_descriptor(int fd)
{
    for (int i = 0; i < GUARDED_MAX; i++) {
        int expected = fd + 1;
        if (atomic_compare_exchange_strong(&guarded[i], &expected, 0))
            return;
    }
}

bool sc_os_read_mapped(const void *address, size_t size, void (*function)(void *), void *argument)
{
    struct fault_frame frame = {.low = address, .high = (const uint8_t *)address + size};
    struct fault_frame *outer = fault_frame;
    if (sigsetjmp(frame.jump, 0) != 0) {
        fault_frame = outer;
        return false;
    }
    if (!SC_CONTROL(fault_not_caught))
        fault_frame = &frame;
    function(argument);
    fault_frame = outer;
    return true;
}
