/* raw: what the machine itself allows, so that every goal of bench/ can be a ratio to it.
 *
 *   raw memory   bytes=N                                   copy, checksum and sum of a buffer that no cache holds
 *   raw append   file=F input=F batch=N total=N ...        appends of `batch` bytes: copied, checksummed, perhaps made durable
 *       way=mmap|populate|pwrite                           populate: mmap with MADV_POPULATE_WRITE `window` bytes ahead;
 *                                                          pwrite with a `window` writes zeros that far ahead
 *       space=fallocated|written|growing                   what the file holds before: unwritten extents, zeros on disk, nothing
 *       advice=none|huge|random                            madvise of the mapping: large folios, or single pages
 *       sync=none|fdatasync|msync|dsync  window=N          after each append; msync of its pages alone; dsync: RWF_DSYNC
 *       copy=fused|blocks|plain                            copy and CRC in one pass, block by block, or no CRC at all
 *   raw read     file=F                                    checksum and sum over a mapped file that is in the page cache
 *   raw spread   dir=D files=N bytes=N threads=N           `bytes` appended to each of N files, all made durable
 *   raw wake     rounds=N                                  one word from one process to another: spinning, and by futex
 *
 * Each command prints one JSON object. Times are CLOCK_MONOTONIC; latencies are per append, with everything that this append
 * caused (page faults, the populate call that it ran into, the sync). Linux only. bench/raw_limits.py compiles and calls it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define crc_word(crc, word) ((uint32_t)_mm_crc32_u64((crc), (word)))
#define crc_byte(crc, byte) _mm_crc32_u8((crc), (byte))
#define cpu_relax() _mm_pause()
#elif defined(__aarch64__)
#include <arm_acle.h>
#define crc_word(crc, word) __crc32cd((crc), (word))
#define crc_byte(crc, byte) __crc32cb((crc), (byte))
#define cpu_relax() __asm__ volatile("yield")
#else
#error "raw.c needs a CPU with a CRC32C instruction"
#endif

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum {
    LANE_BYTES = 256,          /* three lanes of this size side by side; longer ones defeat the CPU's prefetch: 7 GB/s, not 22 */
    COPY_BLOCK = 32 << 10,     /* copied and checksummed while it is in the first caches */
    PAGE_BYTES = 4096,
    FILES_MAX = 4096,
    THREADS_MAX = 256,
};

/* ---- small things ------------------------------------------------------------------------------------------------ */

static _Noreturn void die(const char *what) {
    fprintf(stderr, "raw: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static const char *option(int argc, char **argv, const char *name, const char *otherwise) {
    size_t length = strlen(name);
    for (int i = 2; i < argc; i++)
        if (strncmp(argv[i], name, length) == 0 && argv[i][length] == '=') return argv[i] + length + 1;
    if (otherwise) return otherwise;
    fprintf(stderr, "raw: option %s= is missing\n", name);
    exit(2);
}

static size_t option_number(int argc, char **argv, const char *name, const char *otherwise) {
    return (size_t)strtoull(option(argc, argv, name, otherwise), NULL, 10);
}

static int compare_ns(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static void print_latencies(int64_t *ns, size_t count) {
    double total_ns = 0;
    for (size_t i = 0; i < count; i++) total_ns += (double)ns[i];
    qsort(ns, count, sizeof *ns, compare_ns);
    printf("\"mean_us\": %.3f, ", total_ns / (double)count / 1e3);
    printf("\"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, \"worst_us\": %.3f", (double)ns[count / 2] / 1e3,
           (double)ns[count - 1 - count / 100] / 1e3, (double)ns[count - 1 - count / 1000] / 1e3,
           (double)ns[count - 1] / 1e3);
}

/* ---- CRC32C, three lanes at a time: the instruction takes three cycles but one can start each cycle ---------------- */

static uint32_t lane_shift[4][256]; /* the CRC register after LANE_BYTES zero bytes, by byte of the register */

static void crc_prepare(void) {
    for (int place = 0; place < 4; place++)
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = byte << (8 * place);
            for (int i = 0; i < LANE_BYTES / 8; i++) crc = crc_word(crc, 0);
            lane_shift[place][byte] = crc;
        }
}

static uint32_t crc_shift_lane(uint32_t crc) {
    return lane_shift[0][crc & 255] ^ lane_shift[1][crc >> 8 & 255] ^ lane_shift[2][crc >> 16 & 255] ^
           lane_shift[3][crc >> 24];
}

static uint64_t load_word(const uint8_t *from) {
    uint64_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

static uint32_t crc32c(uint32_t crc, const uint8_t *from, size_t length) {
    crc = ~crc;
    for (; length >= 3 * LANE_BYTES; from += 3 * LANE_BYTES, length -= 3 * LANE_BYTES) {
        uint32_t second = 0, third = 0;
        for (int i = 0; i < LANE_BYTES; i += 8) {
            crc = crc_word(crc, load_word(from + i));
            second = crc_word(second, load_word(from + LANE_BYTES + i));
            third = crc_word(third, load_word(from + 2 * LANE_BYTES + i));
        }
        crc = crc_shift_lane(crc_shift_lane(crc) ^ second) ^ third;
    }
    for (; length >= 8; from += 8, length -= 8) crc = crc_word(crc, load_word(from));
    for (; length; from++, length--) crc = crc_byte(crc, *from);
    return ~crc;
}

/* As a library would: copy a block, then checksum it while it is in the first caches. */
static uint32_t copy_then_checksum(uint8_t *to, const uint8_t *from, size_t length) {
    uint32_t crc = 0;
    for (size_t done = 0; done < length;) {
        size_t step = length - done < COPY_BLOCK ? length - done : COPY_BLOCK;
        crc = crc32c(crc, from + done, step);
        memcpy(to + done, from + done, step);
        done += step;
    }
    return crc;
}

/* The limit: each word is loaded once, goes through the CRC unit and is stored. */
static uint32_t copy_and_checksum(uint8_t *to, const uint8_t *from, size_t length) {
    const size_t stride = 3 * LANE_BYTES;
    uint32_t crc = ~0u;
    for (; length >= stride; from += stride, to += stride, length -= stride) {
        uint32_t second = 0, third = 0;
        for (int i = 0; i < LANE_BYTES; i += 8) {
            uint64_t word[3] = {load_word(from + i), load_word(from + LANE_BYTES + i), load_word(from + 2 * LANE_BYTES + i)};
            crc = crc_word(crc, word[0]);
            second = crc_word(second, word[1]);
            third = crc_word(third, word[2]);
            memcpy(to + i, &word[0], 8);
            memcpy(to + LANE_BYTES + i, &word[1], 8);
            memcpy(to + 2 * LANE_BYTES + i, &word[2], 8);
        }
        crc = crc_shift_lane(crc_shift_lane(crc) ^ second) ^ third;
    }
    crc = ~crc;
    if (length) memcpy(to, from, length);
    return crc32c(crc, from, length);
}

static uint64_t sum_words(const uint8_t *from, size_t length) {
    uint64_t sum[4] = {0, 0, 0, 0};
    for (size_t i = 0; i + 32 <= length; i += 32)
        for (size_t lane = 0; lane < 4; lane++) sum[lane] += load_word(from + i + 8 * lane);
    return sum[0] + sum[1] + sum[2] + sum[3];
}

/* ---- raw memory ----------------------------------------------------------------------------------------------------- */

static uint8_t *allocate_touched(size_t bytes) {
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) die("mmap");
    for (size_t i = 0; i + 8 <= bytes; i += 8) memcpy(memory + i, &i, 8);
    return memory;
}

static int command_memory(int argc, char **argv) {
    size_t bytes = option_number(argc, argv, "bytes", "268435456");
    uint8_t *from = allocate_touched(bytes), *to = allocate_touched(bytes);
    static const char *const names[] = {"copy", "crc", "sum", "copy_crc_blocks", "copy_crc_fused"};
    double best_gb_s[5] = {0};
    volatile uint64_t sink = 0;
    for (int round = 0; round < 5; round++) {
        for (int way = 0; way < 5; way++) {
            int64_t start = now_ns();
            if (way == 0) memcpy(to, from, bytes);
            if (way == 1) sink += crc32c(0, from, bytes);
            if (way == 2) sink += sum_words(from, bytes);
            if (way == 3) sink += copy_then_checksum(to, from, bytes);
            if (way == 4) sink += copy_and_checksum(to, from, bytes);
            double gb_s = (double)bytes / (double)(now_ns() - start);
            if (gb_s > best_gb_s[way]) best_gb_s[way] = gb_s;
        }
    }
    for (int way = 0; way < 5; way++) printf("%s\"%s_gb_s\": %.3f", way ? ", " : "{", names[way], best_gb_s[way]);
    printf("}\n");
    return 0;
}

/* ---- raw append ----------------------------------------------------------------------------------------------------- */

typedef struct {
    int fd;
    uint8_t *map;       /* NULL when appends go through pwrite */
    size_t file_bytes;
    size_t populated;   /* bytes of the mapping that have been populated */
    size_t window;      /* 0: not populated ahead */
    bool msync, fdatasync, dsync;
    enum { COPY_FUSED, COPY_BLOCKS, COPY_PLAIN } copy;
} appender_t;

static uint8_t *read_input(const char *path, size_t *length) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0) die(path);
    *length = (size_t)status.st_size;
    uint8_t *memory = malloc(*length);
    if (!memory) die("malloc");
    for (size_t done = 0; done < *length;) {
        ssize_t got = read(fd, memory + done, *length - done);
        if (got <= 0) die("read");
        done += (size_t)got;
    }
    close(fd);
    return memory;
}

static void write_zeros(int fd, size_t start, size_t end) {
    static const uint8_t zeros[1 << 20];
    for (size_t at = start; at < end; at += sizeof zeros) {
        size_t step = end - at < sizeof zeros ? end - at : sizeof zeros;
        if (pwrite(fd, zeros, step, (off_t)at) != (ssize_t)step) die("pwrite");
    }
}

static void prepare_space(int fd, size_t bytes, const char *space) {
    if (strcmp(space, "growing") != 0 && (errno = posix_fallocate(fd, 0, (off_t)bytes)) != 0) die("posix_fallocate");
    if (strcmp(space, "written") == 0) write_zeros(fd, 0, bytes);
    if (fsync(fd) != 0) die("fsync");
}

static void populate_ahead(appender_t *appender, size_t need) {
    if (need <= appender->populated) return;
    size_t end = need + appender->window;
    if (end > appender->file_bytes) end = appender->file_bytes;
    size_t start = appender->populated & ~(size_t)(PAGE_BYTES - 1);
    if (appender->map && madvise(appender->map + start, end - start, MADV_POPULATE_WRITE) != 0) die("madvise");
    if (!appender->map) write_zeros(appender->fd, need, end);
    appender->populated = end;
}

static uint32_t copy_batch(const appender_t *appender, uint8_t *to, const uint8_t *from, size_t batch) {
    if (appender->copy == COPY_FUSED) return copy_and_checksum(to, from, batch);
    if (appender->copy == COPY_BLOCKS) return copy_then_checksum(to, from, batch);
    memcpy(to, from, batch);
    return 0;
}

static uint32_t append_one(appender_t *appender, size_t at, const uint8_t *from, size_t batch) {
    uint32_t crc = 0;
    if (appender->window) populate_ahead(appender, at + batch);
    if (appender->map) {
        crc = copy_batch(appender, appender->map + at, from, batch);
    } else {
        if (appender->copy != COPY_PLAIN) crc = crc32c(0, from, batch);
        struct iovec piece = {(void *)from, batch};
        if (pwritev2(appender->fd, &piece, 1, (off_t)at, appender->dsync ? RWF_DSYNC : 0) != (ssize_t)batch) die("pwritev2");
    }
    if (appender->fdatasync && fdatasync(appender->fd) != 0) die("fdatasync");
    if (appender->msync) {
        size_t start = at & ~(size_t)(PAGE_BYTES - 1);
        if (msync(appender->map + start, at + batch - start, MS_SYNC) != 0) die("msync");
    }
    return crc;
}

static void advise(const appender_t *appender, const char *advice) {
    int advice_number = strcmp(advice, "huge") == 0 ? MADV_HUGEPAGE : strcmp(advice, "random") == 0 ? MADV_RANDOM : -1;
    if (advice_number >= 0 && madvise(appender->map, appender->file_bytes, advice_number) != 0) die("madvise");
}

static appender_t open_appender(int argc, char **argv, size_t total) {
    const char *way = option(argc, argv, "way", "populate"), *sync = option(argc, argv, "sync", "none");
    appender_t appender = {.file_bytes = total};
    appender.fd = open(option(argc, argv, "file", NULL), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (appender.fd < 0) die("open");
    prepare_space(appender.fd, total, option(argc, argv, "space", "fallocated"));
    if (strcmp(way, "pwrite") != 0) {
        appender.map = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_SHARED, appender.fd, 0);
        if (appender.map == MAP_FAILED) die("mmap");
        advise(&appender, option(argc, argv, "advice", "none"));
    }
    if (strcmp(way, "mmap") != 0)
        appender.window = option_number(argc, argv, "window", strcmp(way, "populate") == 0 ? "1048576" : "0");
    appender.dsync = strcmp(sync, "dsync") == 0;
    appender.fdatasync = strcmp(sync, "fdatasync") == 0;
    appender.msync = strcmp(sync, "msync") == 0;
    const char *copy = option(argc, argv, "copy", "fused");
    appender.copy = strcmp(copy, "fused") == 0 ? COPY_FUSED : strcmp(copy, "blocks") == 0 ? COPY_BLOCKS : COPY_PLAIN;
    return appender;
}

static int command_append(int argc, char **argv) {
    size_t batch = option_number(argc, argv, "batch", NULL), total = option_number(argc, argv, "total", NULL);
    size_t count = total / batch, length;
    uint8_t *input = read_input(option(argc, argv, "input", NULL), &length);
    if (length < batch || count == 0) die("input or total smaller than a batch");
    appender_t appender = open_appender(argc, argv, count * batch);
    int64_t *latency_ns = malloc(count * sizeof *latency_ns);
    if (!latency_ns) die("malloc");
    memset(latency_ns, 0, count * sizeof *latency_ns);
    uint32_t crc = 0;
    size_t from = 0;
    double cpu = cpu_seconds();
    int64_t start = now_ns(), last = start;
    for (size_t i = 0; i < count; i++) {
        crc ^= append_one(&appender, i * batch, input + from, batch);
        from = from + 2 * batch <= length ? from + batch : 0;
        int64_t now = now_ns();
        latency_ns[i] = now - last;
        last = now;
    }
    double seconds = (double)(last - start) / 1e9;
    printf("{\"appends\": %zu, \"bytes\": %zu, \"seconds\": %.6f, \"cpu_s\": %.6f, \"gb_s\": %.4f, \"crc\": %" PRIu32 ", ", count,
           count * batch, seconds, cpu_seconds() - cpu, (double)(count * batch) / seconds / 1e9, crc);
    print_latencies(latency_ns, count);
    printf("}\n");
    return 0;
}

/* ---- raw read ------------------------------------------------------------------------------------------------------- */

static int command_read(int argc, char **argv) {
    const char *path = option(argc, argv, "file", NULL);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0) die(path);
    size_t bytes = (size_t)status.st_size;
    volatile uint64_t sink = 0;
    int64_t start = now_ns();
    uint8_t *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) die("mmap");
    sink += crc32c(0, map, bytes);
    int64_t first = now_ns();
    sink += crc32c(0, map, bytes);
    int64_t second = now_ns();
    sink += sum_words(map, bytes);
    int64_t third = now_ns();
    printf("{\"bytes\": %zu, \"crc_first_gb_s\": %.3f, \"crc_gb_s\": %.3f, \"sum_gb_s\": %.3f}\n", bytes,
           (double)bytes / (double)(first - start), (double)bytes / (double)(second - first),
           (double)bytes / (double)(third - second));
    return 0;
}

/* ---- raw spread ----------------------------------------------------------------------------------------------------- */

typedef struct {
    int *fds;
    size_t first, end;
} share_t;

static void *sync_share(void *argument) {
    share_t *share = argument;
    for (size_t i = share->first; i < share->end; i++)
        if (fdatasync(share->fds[i]) != 0) die("fdatasync");
    return NULL;
}

static void write_each(int *fds, size_t files, size_t bytes, off_t at) {
    static uint8_t block[1 << 20];
    memset(block, (int)(at / (off_t)bytes) + 1, bytes);
    for (size_t i = 0; i < files; i++)
        if (pwrite(fds[i], block, bytes, at) != (ssize_t)bytes) die("pwrite");
}

static void sync_with_threads(int *fds, size_t files, size_t threads) {
    pthread_t ids[THREADS_MAX];
    share_t shares[THREADS_MAX];
    for (size_t i = 0; i < threads; i++) {
        shares[i] = (share_t){fds, files * i / threads, files * (i + 1) / threads};
        if (pthread_create(&ids[i], NULL, sync_share, &shares[i]) != 0) die("pthread_create");
    }
    for (size_t i = 0; i < threads; i++) pthread_join(ids[i], NULL);
}

static void open_spread(const char *dir, int *fds, size_t files, size_t bytes) {
    char path[4096];
    for (size_t i = 0; i < files; i++) {
        snprintf(path, sizeof path, "%s/spread-%zu", dir, i);
        fds[i] = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fds[i] < 0) die(path);
        if ((errno = posix_fallocate(fds[i], 0, (off_t)bytes)) != 0) die("posix_fallocate");
        if (fsync(fds[i]) != 0) die("fsync");
        unlink(path);
    }
}

static int command_spread(int argc, char **argv) {
    const char *dir = option(argc, argv, "dir", NULL);
    size_t files = option_number(argc, argv, "files", "100"), bytes = option_number(argc, argv, "bytes", "4096");
    size_t threads = option_number(argc, argv, "threads", "16"), rounds = option_number(argc, argv, "rounds", "15");
    static int fds[FILES_MAX], shared[1], written[1];
    static const char *const names[] = {"one_by_one", "threads", "syncfs", "shared_file", "one_file", "journal", "one_written"};
    if (files > FILES_MAX || threads > THREADS_MAX || rounds > 100 || files * bytes > 1 << 20) die("too large");
    open_spread(dir, fds, files, 3 * rounds * bytes);
    open_spread(dir, shared, 1, 2 * rounds * files * bytes);
    open_spread(dir, written, 1, 2 * rounds * files * bytes); /* as a journal: its space was written before */
    write_zeros(written[0], 0, 2 * rounds * files * bytes);
    if (fsync(written[0]) != 0) die("fsync");
    printf("{\"files\": %zu, \"bytes\": %zu", files, bytes);
    int64_t ns[7][100];
    for (size_t round = 0; round < rounds; round++)
        for (size_t way = 0; way < 7; way++) {
            off_t at = (off_t)((round * 3 + way) * bytes);
            int64_t start = now_ns();
            if (way < 3) write_each(fds, files, bytes, at);
            if (way == 0) sync_with_threads(fds, files, 1);
            if (way == 1) sync_with_threads(fds, files, threads);
            if (way == 2 && syncfs(fds[0]) != 0) die("syncfs");
            if (way == 3) write_each(shared, 1, files * bytes, (off_t)(2 * round * files * bytes));
            if (way == 4) write_each(shared, 1, bytes, (off_t)((2 * round + 1) * files * bytes));
            if (way == 5) write_each(written, 1, files * bytes, (off_t)(2 * round * files * bytes));
            if (way == 6) write_each(written, 1, bytes, (off_t)((2 * round + 1) * files * bytes));
            if (way >= 3 && fdatasync(way < 5 ? shared[0] : written[0]) != 0) die("fdatasync");
            ns[way][round] = now_ns() - start;
        }
    for (size_t way = 0; way < 7; way++) {
        printf(", \"%s\": {", names[way]);
        print_latencies(ns[way], rounds);
        printf("}");
    }
    printf("}\n");
    return 0;
}

/* ---- raw wake ------------------------------------------------------------------------------------------------------- */

typedef struct {
    _Alignas(64) _Atomic uint32_t ball;  /* odd: the child's turn; even: the parent's */
    _Alignas(64) _Atomic int64_t sent_ns;
    _Alignas(64) int64_t seen_ns[1 << 16];
} court_t;

static void wait_for(court_t *court, uint32_t value, bool spin) {
    for (;;) {
        uint32_t now = atomic_load_explicit(&court->ball, memory_order_acquire);
        if (now == value) return;
        if (spin)
            cpu_relax();
        else
            syscall(SYS_futex, &court->ball, FUTEX_WAIT, now, NULL, NULL, 0);
    }
}

static void throw_ball(court_t *court, uint32_t value, bool spin) {
    atomic_store_explicit(&court->sent_ns, now_ns(), memory_order_relaxed);
    atomic_store_explicit(&court->ball, value, memory_order_release);
    if (!spin) syscall(SYS_futex, &court->ball, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void measure_wakes(court_t *court, size_t rounds, bool spin) {
    atomic_store(&court->ball, 0);
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint32_t i = 0; i < rounds; i++) {
            wait_for(court, 2 * i + 1, spin);
            court->seen_ns[i] = now_ns() - atomic_load_explicit(&court->sent_ns, memory_order_relaxed);
            atomic_store_explicit(&court->ball, 2 * i + 2, memory_order_release);
            if (!spin) syscall(SYS_futex, &court->ball, FUTEX_WAKE, 1, NULL, NULL, 0);
        }
        _exit(0);
    }
    for (uint32_t i = 0; i < rounds; i++) {
        wait_for(court, 2 * i, spin);
        nanosleep(&(struct timespec){0, spin ? 1000 : 200000}, NULL); /* the other side is surely waiting */
        throw_ball(court, 2 * i + 1, spin);
    }
    waitpid(child, NULL, 0);
    print_latencies(court->seen_ns, rounds);
}

static int command_wake(int argc, char **argv) {
    size_t rounds = option_number(argc, argv, "rounds", "2000");
    if (rounds > 1 << 16) die("too many rounds");
    court_t *court = mmap(NULL, sizeof *court, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (court == MAP_FAILED) die("mmap");
    printf("{\"spin\": {");
    fflush(stdout);
    measure_wakes(court, rounds, true);
    printf("}, \"futex\": {");
    fflush(stdout);
    measure_wakes(court, rounds, false);
    printf("}}\n");
    return 0;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(int, char **);
    } commands[] = {{"memory", command_memory}, {"append", command_append}, {"read", command_read},
                    {"spread", command_spread}, {"wake", command_wake}};
    crc_prepare();
    if (crc32c(0, (const uint8_t *)"123456789", 9) != 0xE3069283u) return 3;
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc, argv);
    fprintf(stderr, "usage: raw memory|append|read|spread|wake NAME=VALUE ...\n");
    return 2;
}
