/*
 * The file calls of a process, recorded, made to fail, or its last: a library to preload.
 *
 * It stands in front of libc's functions, so it sees what Python, SQLite and the core do alike. Only files below a root
 * count. Three things can be asked for, by functions (ctypes.CDLL(None) finds them) or by environment variables:
 *
 * - a trace (SYSTEM_CALLS_TRACE): every change of files in the order in which they were made, as `struct event`, with
 *   the sectors of shared writable mappings that changed since the event before, and notes of the process's own;
 * - a log (SYSTEM_CALLS_LOG): a line "name path" for every call, to learn which there are;
 * - a rule (SYSTEM_CALLS_RULE): what the n-th call of a name, on a path with a given end or part, does instead.
 *
 * SYSTEM_CALLS_BOOT_ID names a file that is read in place of the kernel's boot id. Calls that change files in other
 * ways (writev, copy_file_range, link, mmap of a descriptor from elsewhere) are not seen: the store makes none of them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- what libc really does ------------------------------------------------------------------------------------- */

static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_pread64)(int, void *, size_t, off64_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate64)(int, off64_t);
static int (*real_fallocate64)(int, int, off64_t, off64_t);
static int (*real_posix_fallocate64)(int, off64_t, off64_t);
static int (*real_renameat)(int, const char *, int, const char *);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_mkdirat)(int, const char *, mode_t);
static void *(*real_mmap64)(void *, size_t, int, int, int, off64_t);
static int (*real_munmap)(void *, size_t);
static int (*real_fstat64)(int, struct stat64 *);
static int (*real_statx)(int, const char *, int, unsigned, struct statx *);
static int (*real_fcntl64)(int, int, ...);
static int (*real_flock)(int, int);
static DIR *(*real_opendir)(const char *);

static void find_real(void)
{
    static const struct {
        void *function;
        const char *name;
    } wanted[] = {
        {&real_openat, "openat64"},
        {&real_close, "close"},
        {&real_read, "read"},
        {&real_pread64, "pread64"},
        {&real_write, "write"},
        {&real_pwrite64, "pwrite64"},
        {&real_fsync, "fsync"},
        {&real_fdatasync, "fdatasync"},
        {&real_ftruncate64, "ftruncate64"},
        {&real_fallocate64, "fallocate64"},
        {&real_posix_fallocate64, "posix_fallocate64"},
        {&real_renameat, "renameat"},
        {&real_unlinkat, "unlinkat"},
        {&real_mkdirat, "mkdirat"},
        {&real_mmap64, "mmap64"},
        {&real_munmap, "munmap"},
        {&real_fstat64, "fstat64"},
        {&real_statx, "statx"},
        {&real_fcntl64, "fcntl64"},
        {&real_flock, "flock"},
        {&real_opendir, "opendir"},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        *(void **)wanted[i].function = dlsym(RTLD_NEXT, wanted[i].name);
}

/* ---- what is asked for ------------------------------------------------------------------------------------------ */

enum { DESCRIPTORS_MAX = 65536, MAPPINGS_MAX = 4096, SECTOR = 512 };
enum action { GO, FAIL, SHORT, SKIP, KILL_BEFORE, KILL_AFTER };
static const char *const action_names[] = {"go", "fail", "short", "skip", "kill-before", "kill-after"};

struct file {
    uint64_t inode;
    bool is_folder;
    char path[]; /* below the root; "" is the root */
};

struct mapping {
    uint8_t *address, *shadow;
    size_t size;
    int64_t position;
    uint64_t inode;
    int fd; /* of our own: its size says how far the mapping may be read */
};

static struct file *files[DESCRIPTORS_MAX];
static struct mapping mappings[MAPPINGS_MAX];
static int mapping_count;
static char root[PATH_MAX], boot_id[PATH_MAX];
static int trace_fd = -1, log_fd = -1;
static pthread_mutex_t lock;
static _Thread_local bool is_held; /* the lock, from `enter` to `leave` */
static bool is_ready;

static struct {
    char name[32], path[PATH_MAX];
    long number, seen, fired;
    int action, value;
    bool sticky, armed;
} rule;

/* ---- the trace -------------------------------------------------------------------------------------------------- */

enum kind {
    WRITE = 1,
    STORE,
    TRUNCATE,
    ALLOCATE,
    ZERO,
    SYNC,
    SYNC_DATA,
    SYNC_FOLDER,
    CREATE,
    RENAME,
    UNLINK,
    MKDIR,
    RMDIR,
    NOTE,
};

/* Followed by `path_size` bytes of a path below the root and `data_size` bytes. All in this machine's byte order. */
struct event {
    uint32_t kind, path_size;
    uint64_t inode;
    int64_t position, size;
    uint64_t data_size;
};

static void put(int fd, const void *data, size_t size)
{
    while (size > 0) {
        long done = syscall(SYS_write, fd, data, size);
        if (done <= 0) {
            static const char why[] = "system_calls: the trace cannot be written\n";
            (void)syscall(SYS_write, 2, why, sizeof why - 1);
            abort();
        }
        data = (const char *)data + done;
        size -= (size_t)done;
    }
}

static void record(enum kind kind, uint64_t inode, const char *path, int64_t position, int64_t size, const void *data,
                   size_t data_size)
{
    int number = errno;
    struct event event = {.kind = (uint32_t)kind,
                          .path_size = (uint32_t)strlen(path),
                          .inode = inode,
                          .position = position,
                          .size = size,
                          .data_size = data_size};
    if (trace_fd >= 0) {
        put(trace_fd, &event, sizeof event);
        put(trace_fd, path, event.path_size);
        put(trace_fd, data, data_size);
    }
    errno = number;
}

/* The part of a mapping that has a file behind it. */
static size_t readable_size(const struct mapping *mapping)
{
    struct stat64 st;
    if (real_fstat64(mapping->fd, &st) != 0 || st.st_size <= mapping->position)
        return 0;
    int64_t size = st.st_size - mapping->position;
    return size < (int64_t)mapping->size ? (size_t)size : mapping->size;
}

static void record_stores_of(struct mapping *mapping)
{
    size_t size = readable_size(mapping);
    for (size_t at = 0; at < size;) {
        size_t end = at;
        uint8_t now[SECTOR];
        while (end < size) { /* a run of sectors that changed */
            size_t part = size - end < SECTOR ? size - end : SECTOR;
            memcpy(now, mapping->address + end, part);
            if (memcmp(now, mapping->shadow + end, part) == 0)
                break;
            memcpy(mapping->shadow + end, now, part);
            end += part;
        }
        if (end > at)
            record(STORE, mapping->inode, "", mapping->position + (int64_t)at, (int64_t)(end - at),
                   mapping->shadow + at, end - at);
        at = end + SECTOR;
    }
}

static void record_stores(void)
{
    for (int i = 0; trace_fd >= 0 && i < mapping_count; i++)
        record_stores_of(&mappings[i]);
}

static void copy_to_shadows(uint64_t inode, const uint8_t *data, int64_t position, int64_t size)
{
    for (int i = 0; i < mapping_count; i++) {
        struct mapping *mapping = &mappings[i];
        int64_t low = position > mapping->position ? position : mapping->position;
        int64_t high = mapping->position + (int64_t)mapping->size;
        high = position + size < high ? position + size : high;
        if (mapping->inode == inode && low < high)
            memcpy(mapping->shadow + (low - mapping->position), data + (low - position), (size_t)(high - low));
    }
}

static void watch_mapping(void *address, size_t size, int fd, int64_t position, const struct file *file)
{
    if (trace_fd < 0 || file == NULL)
        return;
    if (mapping_count == MAPPINGS_MAX)
        abort();
    int own = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 1000);
    struct mapping mapping = {address, calloc(1, size), size, position, file->inode, own};
    memcpy(mapping.shadow, address, readable_size(&mapping));
    mappings[mapping_count++] = mapping;
}

static void forget_mapping(const void *address)
{
    for (int i = 0; i < mapping_count; i++) {
        if (mappings[i].address != address)
            continue;
        record_stores_of(&mappings[i]);
        free(mappings[i].shadow);
        syscall(SYS_close, mappings[i].fd);
        mappings[i--] = mappings[--mapping_count];
    }
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

#define PUBLIC __attribute__((visibility("default")))

/* Only what is below this folder counts; "" is nothing. */
PUBLIC void system_calls_root(const char *path)
{
    snprintf(root, sizeof root, "%s", path);
}

/* Records into a new file, which must not be below the root; NULL: no more. */
PUBLIC void system_calls_trace(const char *path)
{
    pthread_mutex_lock(&lock);
    if (trace_fd >= 0)
        syscall(SYS_close, trace_fd);
    trace_fd =
        path == NULL ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_CLOEXEC | O_APPEND, 0666);
    pthread_mutex_unlock(&lock);
}

/* A line for each call; NULL: no more. */
PUBLIC void system_calls_log(const char *path)
{
    pthread_mutex_lock(&lock);
    if (log_fd >= 0)
        syscall(SYS_close, log_fd);
    log_fd =
        path == NULL ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_CLOEXEC | O_APPEND, 0666);
    pthread_mutex_unlock(&lock);
}

/* Puts a note into the trace: all that is stored before it stands before it. */
PUBLIC void system_calls_note(const void *data, size_t size)
{
    pthread_mutex_lock(&lock);
    record_stores();
    record(NOTE, 0, "", 0, (int64_t)size, data, size);
    pthread_mutex_unlock(&lock);
}

/*
 * The `number`-th call (1: the next) of `name` ("any": of any) on a path that contains `path` does `action`; with
 * `sticky` all of these behind it, too. "fail": it fails with errno `value`; "short": a read or write of `value` bytes
 * less, at least one; "skip": it says that it is done, and is not; "kill-before", "kill-after": the process ends.
 * Returns 0; -1: there is no such action.
 */
PUBLIC int system_calls_arm(const char *name, const char *path, long number, const char *action, int value, int sticky)
{
    int found = -1;
    for (int i = 0; i < (int)(sizeof action_names / sizeof *action_names); i++)
        found = strcmp(action_names[i], action) == 0 ? i : found;
    if (found < 0)
        return -1;
    pthread_mutex_lock(&lock);
    snprintf(rule.name, sizeof rule.name, "%s", name);
    snprintf(rule.path, sizeof rule.path, "%s", path);
    rule.number = number;
    rule.seen = rule.fired = 0;
    rule.action = found;
    rule.value = value;
    rule.sticky = sticky != 0;
    rule.armed = true;
    pthread_mutex_unlock(&lock);
    return 0;
}

PUBLIC void system_calls_disarm(void)
{
    rule.armed = false;
}

/* How many calls the rule was about since it was armed, and how often it did its action. */
PUBLIC long system_calls_seen(void)
{
    return rule.seen;
}

PUBLIC long system_calls_fired(void)
{
    return rule.fired;
}

/* NAME:PATH:NUMBER:ACTION:VALUE:once|sticky */
static void arm_from(const char *text)
{
    char name[32] = "", path[PATH_MAX] = "", action[16] = "", how[8] = "";
    long number = 0;
    int value = 0;
    if (sscanf(text, "%31[^:]:%4095[^:]:%ld:%15[^:]:%d:%7s", name, path, &number, action, &value, how) != 6 ||
        system_calls_arm(name, strcmp(path, "*") == 0 ? "" : path, number, action, value, how[0] == 's') != 0) {
        fprintf(stderr, "SYSTEM_CALLS_RULE is '%s'; NAME:PATH:NUMBER:ACTION:VALUE:once|sticky is needed\n", text);
        abort();
    }
}

static void make_lock(void)
{
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &kind);
}

/* A forked child is another process: it has a trace of its own if it asks for one. */
static void leave_to_parent(void)
{
    make_lock();
    trace_fd = -1;
    for (int i = 0; i < mapping_count; i++)
        syscall(SYS_close, mappings[i].fd);
    mapping_count = 0;
}

__attribute__((constructor)) static void begin(void)
{
    if (is_ready)
        return;
    find_real();
    make_lock();
    is_ready = true;
    pthread_atfork(NULL, NULL, leave_to_parent);
    const char *given = getenv("SYSTEM_CALLS_ROOT");
    system_calls_root(given != NULL ? given : "");
    if ((given = getenv("SYSTEM_CALLS_BOOT_ID")) != NULL)
        snprintf(boot_id, sizeof boot_id, "%s", given);
    if ((given = getenv("SYSTEM_CALLS_TRACE")) != NULL)
        system_calls_trace(given);
    if ((given = getenv("SYSTEM_CALLS_LOG")) != NULL)
        system_calls_log(given);
    if ((given = getenv("SYSTEM_CALLS_RULE")) != NULL)
        arm_from(given);
}

/* ---- which calls count --------------------------------------------------------------------------------------------
 */

static struct file *file_of(int fd)
{
    return fd >= 0 && fd < DESCRIPTORS_MAX ? files[fd] : NULL;
}

/* The path of a name below the root; false when it is elsewhere. */
static bool below_root(int folder, const char *name, char below[PATH_MAX])
{
    char whole[PATH_MAX * 2];
    size_t length = strlen(root);
    if (!is_ready)
        begin();
    if (length == 0 || name == NULL)
        return false;
    const struct file *inside = file_of(folder);
    if (name[0] == '/')
        snprintf(whole, sizeof whole, "%s", name);
    else if (folder != AT_FDCWD && inside != NULL)
        snprintf(whole, sizeof whole, "%s/%s%s%s", root, inside->path, inside->path[0] != 0 ? "/" : "", name);
    else if (folder == AT_FDCWD && syscall(SYS_getcwd, whole, (long)PATH_MAX) > 0)
        snprintf(whole + strlen(whole), sizeof whole - strlen(whole), "/%s", name);
    else
        return false;
    if (strncmp(whole, root, length) != 0 || (whole[length] != '/' && whole[length] != 0))
        return false;
    const char *rest = whole + length;
    while (*rest == '/')
        rest++;
    snprintf(below, PATH_MAX, "%s", rest);
    for (size_t size = strlen(below); size > 0 && below[size - 1] == '/'; size--)
        below[size - 1] = 0;
    return true;
}

static void end_process(void)
{
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;)
        syscall(SYS_pause);
}

/* Before a call that counts. The lock is held until `leave` while there is a trace: the trace's order is the calls'. */
static enum action enter(const char *name, const char *path)
{
    int number = errno;
    enum action action = GO;
    pthread_mutex_lock(&lock);
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%s %s\n", name, path);
        put(log_fd, line, (size_t)size);
    }
    record_stores();
    if (rule.armed && (strcmp(rule.name, "any") == 0 || strcmp(rule.name, name) == 0) &&
        strstr(path, rule.path) != NULL) {
        rule.seen++;
        if (rule.seen == rule.number || (rule.sticky && rule.seen > rule.number)) {
            rule.fired++;
            action = rule.action;
        }
    }
    if (action == KILL_BEFORE)
        end_process();
    is_held = trace_fd >= 0;
    if (!is_held)
        pthread_mutex_unlock(&lock);
    errno = action == FAIL ? rule.value : number;
    return action;
}

static void leave(enum action action)
{
    int number = errno;
    if (action == KILL_AFTER)
        end_process();
    if (is_held)
        pthread_mutex_unlock(&lock);
    is_held = false;
    errno = number;
}

static bool exists(int folder, const char *name)
{
    return syscall(SYS_faccessat, folder, name, F_OK) == 0;
}

/* ---- descriptors --------------------------------------------------------------------------------------------------
 */

static void remember(int fd, const char *below)
{
    struct stat64 st;
    if (fd < 0 || fd >= DESCRIPTORS_MAX || real_fstat64(fd, &st) != 0)
        return;
    struct file *file = malloc(sizeof *file + strlen(below) + 1);
    file->inode = st.st_ino;
    file->is_folder = S_ISDIR(st.st_mode);
    strcpy(file->path, below);
    free(files[fd]);
    files[fd] = file;
}

static int open_below(int folder, const char *name, const char *below, int flags, mode_t mode)
{
    bool was_there = exists(folder, name); /* before `enter`, which sets the errno of a call that fails */
    enum action action = enter("open", below);
    int fd = action == FAIL ? -1 : real_openat(folder, name, flags, mode);
    if (fd >= 0) {
        remember(fd, below);
        if (files[fd] != NULL && !was_there)
            record(CREATE, files[fd]->inode, below, 0, 0, NULL, 0);
        else if (files[fd] != NULL && (flags & O_TRUNC) != 0)
            record(TRUNCATE, files[fd]->inode, below, 0, 0, NULL, 0);
    }
    leave(action);
    return fd;
}

static int open_any(int folder, const char *name, int flags, mode_t mode)
{
    char below[PATH_MAX];
    if (below_root(folder, name, below))
        return open_below(folder, name, below, flags, mode);
    if (boot_id[0] != 0 && name != NULL && strcmp(name, "/proc/sys/kernel/random/boot_id") == 0)
        name = boot_id;
    return real_openat(folder, name, flags, mode);
}

#define MODE_OF(flags)                                                                                                 \
    mode_t mode = 0;                                                                                                   \
    if (((flags) & (O_CREAT | __O_TMPFILE)) != 0) {                                                                    \
        va_list arguments;                                                                                             \
        va_start(arguments, flags);                                                                                    \
        mode = va_arg(arguments, mode_t);                                                                              \
        va_end(arguments);                                                                                             \
    }

PUBLIC int open64(const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_any(AT_FDCWD, name, flags, mode);
}

PUBLIC int open(const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_any(AT_FDCWD, name, flags, mode);
}

PUBLIC int openat64(int folder, const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_any(folder, name, flags, mode);
}

PUBLIC int openat(int folder, const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_any(folder, name, flags, mode);
}

PUBLIC int close(int fd)
{
    struct file *file = file_of(fd);
    if (file == NULL)
        return is_ready ? real_close(fd) : (int)syscall(SYS_close, fd);
    files[fd] = NULL;
    free(file);
    return real_close(fd);
}

PUBLIC DIR *opendir(const char *name)
{
    char below[PATH_MAX];
    if (!below_root(AT_FDCWD, name, below))
        return real_opendir(name);
    enum action action = enter("list", below);
    DIR *made = action == FAIL ? NULL : real_opendir(name);
    leave(action);
    return made;
}

/* ---- bytes --------------------------------------------------------------------------------------------------------
 */

/* `size`, or less of it where the call is to be short. */
static size_t allowed(enum action action, size_t size)
{
    size_t less = action == SHORT ? (size_t)rule.value : 0;
    return less == 0 ? size : less < size ? size - less : size > 0 ? 1 : 0;
}

PUBLIC ssize_t read(int fd, void *data, size_t size)
{
    const struct file *file = file_of(fd);
    if (file == NULL)
        return is_ready ? real_read(fd, data, size) : syscall(SYS_read, fd, data, size);
    enum action action = enter("read", file->path);
    ssize_t done = action == FAIL ? -1 : real_read(fd, data, allowed(action, size));
    leave(action);
    return done;
}

PUBLIC ssize_t pread64(int fd, void *data, size_t size, off64_t position)
{
    const struct file *file = file_of(fd);
    if (file == NULL)
        return real_pread64(fd, data, size, position);
    enum action action = enter("read", file->path);
    ssize_t done = action == FAIL ? -1 : real_pread64(fd, data, allowed(action, size), position);
    leave(action);
    return done;
}

PUBLIC ssize_t pread(int fd, void *data, size_t size, off_t position)
{
    return pread64(fd, data, size, position);
}

static void record_write(const struct file *file, const void *data, int64_t position, ssize_t size)
{
    if (size <= 0 || trace_fd < 0)
        return;
    record(WRITE, file->inode, file->path, position, size, data, (size_t)size);
    copy_to_shadows(file->inode, data, position, size);
}

PUBLIC ssize_t write(int fd, const void *data, size_t size)
{
    const struct file *file = file_of(fd);
    if (file == NULL)
        return is_ready ? real_write(fd, data, size) : syscall(SYS_write, fd, data, size);
    enum action action = enter("write", file->path);
    ssize_t done = action == FAIL ? -1 : action == SKIP ? (ssize_t)size : real_write(fd, data, allowed(action, size));
    if (action != SKIP)
        record_write(file, data, done > 0 ? syscall(SYS_lseek, fd, 0, SEEK_CUR) - done : 0, done);
    leave(action);
    return done;
}

PUBLIC ssize_t pwrite64(int fd, const void *data, size_t size, off64_t position)
{
    const struct file *file = file_of(fd);
    if (file == NULL)
        return real_pwrite64(fd, data, size, position);
    enum action action = enter("write", file->path);
    ssize_t done = action == FAIL   ? -1
                   : action == SKIP ? (ssize_t)size
                                    : real_pwrite64(fd, data, allowed(action, size), position);
    if (action != SKIP)
        record_write(file, data, position, done);
    leave(action);
    return done;
}

PUBLIC ssize_t pwrite(int fd, const void *data, size_t size, off_t position)
{
    return pwrite64(fd, data, size, position);
}

/* ---- what reaches the drive ---------------------------------------------------------------------------------------
 */

static int sync_any(int fd, const char *name, enum kind kind, int (*real)(int))
{
    const struct file *file = file_of(fd);
    if (file == NULL)
        return real(fd);
    enum action action = enter(name, file->path);
    int done = action == FAIL ? -1 : action == SKIP ? 0 : real(fd);
    if (done == 0 && action != SKIP)
        record(file->is_folder ? SYNC_FOLDER : kind, file->inode, file->path, 0, 0, NULL, 0);
    leave(action);
    return done;
}

PUBLIC int fsync(int fd)
{
    return sync_any(fd, "sync", SYNC, real_fsync);
}

PUBLIC int fdatasync(int fd)
{
    return sync_any(fd, "sync_data", SYNC_DATA, real_fdatasync);
}

/* ---- sizes --------------------------------------------------------------------------------------------------------
 */

PUBLIC int ftruncate64(int fd, off64_t size)
{
    const struct file *file = file_of(fd);
    if (file == NULL)
        return real_ftruncate64(fd, size);
    enum action action = enter("truncate", file->path);
    int done = action == FAIL ? -1 : action == SKIP ? 0 : real_ftruncate64(fd, size);
    if (done == 0 && action != SKIP)
        record(TRUNCATE, file->inode, file->path, 0, size, NULL, 0);
    leave(action);
    return done;
}

PUBLIC int ftruncate(int fd, off_t size)
{
    return ftruncate64(fd, size);
}

PUBLIC int fallocate64(int fd, int mode, off64_t position, off64_t size)
{
    const struct file *file = file_of(fd);
    if (file == NULL)
        return real_fallocate64(fd, mode, position, size);
    bool zeroes = (mode & (FALLOC_FL_ZERO_RANGE | FALLOC_FL_PUNCH_HOLE)) != 0;
    enum action action = enter(zeroes ? "zero" : "allocate", file->path);
    int done = action == FAIL ? -1 : action == SKIP ? 0 : real_fallocate64(fd, mode, position, size);
    if (done == 0 && action != SKIP)
        record(zeroes ? ZERO : ALLOCATE, file->inode, file->path, position, size, NULL, 0);
    leave(action);
    return done;
}

PUBLIC int fallocate(int fd, int mode, off_t position, off_t size)
{
    return fallocate64(fd, mode, position, size);
}

PUBLIC int posix_fallocate64(int fd, off64_t position, off64_t size)
{
    const struct file *file = file_of(fd);
    if (file == NULL)
        return real_posix_fallocate64(fd, position, size);
    enum action action = enter("allocate", file->path);
    int failure = action == FAIL ? rule.value : action == SKIP ? 0 : real_posix_fallocate64(fd, position, size);
    if (failure == 0 && action != SKIP)
        record(ALLOCATE, file->inode, file->path, position, size, NULL, 0);
    leave(action);
    return failure;
}

PUBLIC int posix_fallocate(int fd, off_t position, off_t size)
{
    return posix_fallocate64(fd, position, size);
}

/* ---- names --------------------------------------------------------------------------------------------------------
 */

PUBLIC int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    char old[PATH_MAX], new[PATH_MAX];
    if (!below_root(from_folder, from, old) || !below_root(to_folder, to, new))
        return real_renameat(from_folder, from, to_folder, to);
    enum action action = enter("rename", old);
    int done = action == FAIL ? -1 : action == SKIP ? 0 : real_renameat(from_folder, from, to_folder, to);
    if (done == 0 && action != SKIP)
        record(RENAME, 0, old, 0, 0, new, strlen(new));
    leave(action);
    return done;
}

PUBLIC int rename(const char *from, const char *to)
{
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

static int unlink_any(int folder, const char *name, int flags)
{
    char below[PATH_MAX];
    bool is_folder = (flags & AT_REMOVEDIR) != 0;
    if (!below_root(folder, name, below))
        return real_unlinkat(folder, name, flags);
    enum action action = enter(is_folder ? "rmdir" : "unlink", below);
    int done = action == FAIL ? -1 : action == SKIP ? 0 : real_unlinkat(folder, name, flags);
    if (done == 0 && action != SKIP)
        record(is_folder ? RMDIR : UNLINK, 0, below, 0, 0, NULL, 0);
    leave(action);
    return done;
}

PUBLIC int unlinkat(int folder, const char *name, int flags)
{
    return unlink_any(folder, name, flags);
}

PUBLIC int unlink(const char *name)
{
    return unlink_any(AT_FDCWD, name, 0);
}

PUBLIC int rmdir(const char *name)
{
    return unlink_any(AT_FDCWD, name, AT_REMOVEDIR);
}

PUBLIC int mkdirat(int folder, const char *name, mode_t mode)
{
    char below[PATH_MAX];
    if (!below_root(folder, name, below))
        return real_mkdirat(folder, name, mode);
    enum action action = enter("mkdir", below);
    int done = action == FAIL ? -1 : action == SKIP ? 0 : real_mkdirat(folder, name, mode);
    if (done == 0 && action != SKIP)
        record(MKDIR, 0, below, 0, 0, NULL, 0);
    leave(action);
    return done;
}

PUBLIC int mkdir(const char *name, mode_t mode)
{
    return mkdirat(AT_FDCWD, name, mode);
}

/* ---- mappings -----------------------------------------------------------------------------------------------------
 */

PUBLIC void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t position)
{
    const struct file *file = (flags & MAP_ANONYMOUS) != 0 ? NULL : file_of(fd);
    if (file == NULL)
        return is_ready ? real_mmap64(address, size, protection, flags, fd, position)
                        : (void *)syscall(SYS_mmap, address, size, protection, flags, fd, position);
    enum action action = enter("map", file->path);
    void *made = action == FAIL ? MAP_FAILED : real_mmap64(address, size, protection, flags, fd, position);
    if (made != MAP_FAILED && (protection & PROT_WRITE) != 0 && (flags & MAP_SHARED) != 0)
        watch_mapping(made, size, fd, position, file);
    leave(action);
    return made;
}

PUBLIC void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t position)
{
    return mmap64(address, size, protection, flags, fd, position);
}

PUBLIC int munmap(void *address, size_t size)
{
    if (!is_ready)
        return (int)syscall(SYS_munmap, address, size);
    if (trace_fd >= 0) {
        pthread_mutex_lock(&lock);
        forget_mapping(address);
        pthread_mutex_unlock(&lock);
    }
    return real_munmap(address, size);
}

/* ---- the rest: fails, and changes no file -------------------------------------------------------------------------
 */

PUBLIC int fstat64(int fd, struct stat64 *out)
{
    const struct file *file = file_of(fd);
    if (file == NULL)
        return is_ready ? real_fstat64(fd, out) : (int)syscall(SYS_fstat, fd, out);
    enum action action = enter("stat", file->path);
    int done = action == FAIL ? -1 : real_fstat64(fd, out);
    leave(action);
    return done;
}

PUBLIC int fstat(int fd, struct stat *out)
{
    return fstat64(fd, (struct stat64 *)out);
}

PUBLIC int statx(int folder, const char *path, int flags, unsigned wanted, struct statx *out)
{
    const struct file *file = path != NULL && path[0] == 0 ? file_of(folder) : NULL;
    if (file == NULL)
        return is_ready ? real_statx(folder, path, flags, wanted, out)
                        : (int)syscall(SYS_statx, folder, path, flags, wanted, out);
    enum action action = enter("stat", file->path);
    int done = action == FAIL ? -1 : real_statx(folder, path, flags, wanted, out);
    leave(action);
    return done;
}

/* Locks wait: what is traced goes on meanwhile. */
static enum action enter_lock(const char *path)
{
    enum action action = enter("lock", path);
    if (is_held)
        pthread_mutex_unlock(&lock);
    is_held = false;
    return action;
}

PUBLIC int fcntl64(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    const struct file *file = file_of(fd);
    bool locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
    if (file == NULL || !locks || ((const struct flock *)argument)->l_type == F_UNLCK)
        return is_ready ? real_fcntl64(fd, command, argument) : (int)syscall(SYS_fcntl, fd, command, argument);
    enum action action = enter_lock(file->path);
    int done = action == FAIL ? -1 : real_fcntl64(fd, command, argument);
    leave(action);
    return done;
}

PUBLIC int fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return fcntl64(fd, command, argument);
}

PUBLIC int flock(int fd, int operation)
{
    const struct file *file = file_of(fd);
    if (file == NULL || (operation & LOCK_UN) != 0)
        return real_flock(fd, operation);
    enum action action = enter_lock(file->path);
    int done = action == FAIL ? -1 : real_flock(fd, operation);
    leave(action);
    return done;
}

/* SQLite sleeps for ten seconds when what failed looks like the work of others; nothing changes meanwhile. */
PUBLIC int usleep(useconds_t us)
{
    bool in_vain = rule.armed && rule.sticky && rule.fired > 0;
    if (in_vain && us > 100)
        us = 100;
    return nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000}, NULL);
}
