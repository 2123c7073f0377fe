/*
 * Every system call of the project, behind one table of functions.
 *
 * The rest of the C code calls sc_os.open(...) and the like. Tests replace entries to make calls fail, to count
 * them, or to lose power; they restore the table with sc_os_reset. Functions return -1 or NULL and set errno.
 */
#ifndef STREAMCORE_OS_H
#define STREAMCORE_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { SC_LOCK_NONE, SC_LOCK_SHARED, SC_LOCK_EXCLUSIVE };
enum {
    SC_OPEN_READ,
    SC_OPEN_WRITE,
    SC_OPEN_CREATE, /* fails when it exists */
    SC_OPEN_CREATE_OR_WRITE,
    SC_OPEN_DIRECT, /* for writing past the page cache, whole pages from whole pages; EINVAL where that is not possible
                     */
};

typedef struct sc_file_stat {
    int64_t size;
    uint64_t device, inode;
    int64_t modified_ns; /* since 1970 */
} sc_file_stat;

/* A word to sleep on, and the value that it has as far as the sleeper knows. */
typedef struct sc_wait_word {
    uint32_t *word;
    uint32_t expected;
} sc_wait_word;
enum { SC_WAIT_WORDS_MAX = 128 }; /* of one wait_any: the limit of Linux (FUTEX_WAITV_MAX) */

typedef int (*sc_name_callback)(void *context, const char *name);

struct sc_os_table {
    /* A file, or a folder for syncing it. A symbolic link at the end of the path is an error (ELOOP), for writes
     * through it would leave the store, and so is a pipe, a socket or a device (EINVAL). */
    int (*open)(const char *path, int how);
    int (*close)(int fd);
    int (*stat)(int fd, sc_file_stat *stat);
    ssize_t (*pread)(int fd, void *data, size_t size, int64_t position);
    ssize_t (*pwrite)(int fd, const void *data, size_t size, int64_t position);
    /* Reserves blocks for the range and grows the file to its end: a full disk is an error here, not later. */
    int (*allocate)(int fd, int64_t position, int64_t size);
    /* Makes the range read as zeros, and keeps its blocks. */
    int (*zero)(int fd, int64_t position, int64_t size);
    int (*truncate)(int fd, int64_t size);
    /* Dates a file. */
    int (*set_modified)(int fd, int64_t modified_ns);
    int (*sync)(int fd);
    /* Writes all of a file's bytes, and what is needed to find them again, to the drive: not its times. */
    int (*sync_data)(int fd);
    void *(*map)(int fd, size_t size, bool writable);
    /* A copy of the file's first `file_size` bytes that changes with nobody, and zeros up to `size`: pages of one's
     * own, once they are written to. */
    void *(*map_copy)(int fd, size_t file_size, size_t size);
    int (*unmap)(void *address, size_t size);
    /* Maps the pages of a range for writing ahead of use: a hint that may fail. */
    int (*populate)(void *address, size_t size);
    int (*rename)(const char *from, const char *to);
    int (*unlink)(const char *path);
    int (*mkdir)(const char *path);
    /* Calls back with each name in a folder that does not begin with a dot. A symbolic link is no folder (ENOTDIR). */
    int (*list)(const char *path, sc_name_callback callback, void *context);
    /* Locks one byte of a file for this open file description; the kernel drops it when the last copy is closed. */
    int (*lock)(int fd, int64_t byte, int kind, bool wait);
    /* The kind of lock that another open file description holds there, SC_LOCK_NONE when there is none. */
    int (*is_locked)(int fd, int64_t byte);
    /* Sleeps while *word == expected, at most timeout_ns (-1: no limit); spurious returns are allowed. */
    int (*wait)(uint32_t *word, uint32_t expected, int64_t timeout_ns);
    /* The same for several words: sleeps while each of them is as expected. ENOSYS where the system has no such call
     * (Linux before 5.16): the caller then looks for itself from time to time. */
    int (*wait_any)(const sc_wait_word *words, int count, int64_t timeout_ns);
    int (*wake)(uint32_t *word);
    int64_t (*now_ms)(void);
    int64_t (*monotonic_ns)(void);
};

extern struct sc_os_table sc_os;
void sc_os_reset(void);

/* Identifies the running kernel, so that a power loss can be told from a crash of the process; zeros: unknown. */
void sc_os_boot_id(uint8_t id[16]);
/* A number that nobody guesses. */
uint64_t sc_os_random(void);

/* Counts forks: a handle whose number differs from this belongs to a parent process. */
uint32_t sc_os_fork_generation(void);
/* A descriptor that carries locks: closed in forked children. False when the table of these is full. */
bool sc_os_guard_descriptor(int fd);
void sc_os_unguard_descriptor(int fd);

/* Runs function(argument), which reads the mapped range; false when the file could not be read there (SIGBUS). */
bool sc_os_read_mapped(const void *address, size_t size, void (*function)(void *), void *argument);

/* Reads or writes all of it, through EINTR and short counts. A read past the end fails with errno 0. */
int sc_os_read_whole(int fd, void *data, size_t size, int64_t position);
int sc_os_write_whole(int fd, const void *data, size_t size, int64_t position);
/* fsync of a folder, so that what was created, renamed or removed in it stays so. */
int sc_os_sync_folder(const char *path);

#endif
