#include "disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "plain_topic.h"

void folder_make(char path[FOLDER_MAX])
{
    const char *parent = getenv("TMPDIR");
    int length = snprintf(path, FOLDER_MAX, "%s/streamcore-test-XXXXXX", parent != NULL ? parent : "/tmp");
    CHECK(length < FOLDER_MAX && mkdtemp(path) != NULL);
}

typedef void (*visit_function)(const char *path, const struct stat *st, void *context);

/* In the order of the names, folders behind what is in them. */
static void walk_folder(const char *path, visit_function visit, void *context)
{
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char inner[PATH_MAX_OF_TESTS];
        struct stat st;
        snprintf(inner, sizeof inner, "%s/%s", path, names[i]->d_name);
        if (strcmp(names[i]->d_name, ".") != 0 && strcmp(names[i]->d_name, "..") != 0 && lstat(inner, &st) == 0) {
            if (S_ISDIR(st.st_mode))
                walk_folder(inner, visit, context);
            visit(inner, &st, context);
        }
        free(names[i]);
    }
    if (count >= 0)
        free(names);
}

static void remove_one(const char *path, const struct stat *st, void *context)
{
    (void)context;
    CHECK((S_ISDIR(st->st_mode) ? rmdir(path) : unlink(path)) == 0);
}

void folder_remove(const char *path)
{
    walk_folder(path, remove_one, NULL);
    CHECK(rmdir(path) == 0);
}

struct copying {
    const char *from, *to;
    bool folders;
};

static void copy_one(const char *path, const struct stat *st, void *context)
{
    struct copying *copying = context;
    char target[PATH_MAX_OF_TESTS];
    snprintf(target, sizeof target, "%s%s", copying->to, path + strlen(copying->from));
    if (copying->folders != (bool)S_ISDIR(st->st_mode))
        return;
    if (copying->folders) { /* outer ones come later in the walk */
        for (char *at = target + strlen(copying->to) + 1; (at = strchr(at, '/')) != NULL; *at++ = '/') {
            *at = 0;
            (void)mkdir(target, 0777);
        }
        CHECK(mkdir(target, 0777) == 0 || errno == EEXIST);
        return;
    }
    int64_t size;
    uint8_t *data = file_read(path, &size);
    file_write(target, data, size);
    free(data);
}

void folder_copy(const char *from, const char *to)
{
    struct copying copying = {from, to, true};
    walk_folder(from, copy_one, &copying);
    copying.folders = false;
    walk_folder(from, copy_one, &copying);
}

struct snapshot {
    char *text;
    size_t used, capacity;
    const char *root;
};

static void describe_one(const char *path, const struct stat *st, void *context)
{
    struct snapshot *snapshot = context;
    uint32_t crc = 0;
    if (S_ISREG(st->st_mode)) {
        int64_t size;
        uint8_t *data = file_read(path, &size);
        crc = sc_crc32c(0, data, (size_t)size);
        free(data);
    }
    if (snapshot->capacity - snapshot->used < PATH_MAX_OF_TESTS + 128) {
        snapshot->capacity = snapshot->capacity * 2 + 16384;
        snapshot->text = realloc(snapshot->text, snapshot->capacity);
        CHECK(snapshot->text != NULL);
    }
    snapshot->used += (size_t)snprintf(snapshot->text + snapshot->used, snapshot->capacity - snapshot->used,
                                       "%s mode %o size %lld changed %lld.%09ld crc %08x\n",
                                       path + strlen(snapshot->root), (unsigned)st->st_mode, (long long)st->st_size,
                                       (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec, (unsigned)crc);
}

char *folder_snapshot(const char *path)
{
    struct snapshot snapshot = {.text = calloc(1, 1), .capacity = 1, .root = path};
    walk_folder(path, describe_one, &snapshot);
    return snapshot.text;
}

/* ---- files ------------------------------------------------------------------------------------------------- */

void segment_file(char file[FILE_MAX], const char *topic, uint32_t partition, int64_t base_offset)
{
    int length = snprintf(file, FILE_MAX, "%s/%u/%020lld.arrows", topic, (unsigned)partition, (long long)base_offset);
    CHECK(length < FILE_MAX);
}

void index_file(char file[FILE_MAX], const char *topic, uint32_t partition, int64_t base_offset)
{
    int length = snprintf(file, FILE_MAX, "%s/%u/%020lld.index", topic, (unsigned)partition, (long long)base_offset);
    CHECK(length < FILE_MAX);
}

bool file_exists(const char *file)
{
    return access(file, F_OK) == 0;
}

int64_t file_size(const char *file)
{
    struct stat st;
    CHECK(stat(file, &st) == 0);
    return st.st_size;
}

uint8_t *file_read(const char *file, int64_t *size)
{
    int fd = open(file, O_RDONLY);
    CHECK(fd >= 0);
    struct stat st;
    CHECK(fstat(fd, &st) == 0);
    *size = st.st_size;
    uint8_t *data = malloc((size_t)*size + 1);
    CHECK(data != NULL && pread(fd, data, (size_t)*size, 0) == (ssize_t)*size);
    close(fd);
    return data;
}

void file_write(const char *file, const void *data, int64_t size)
{
    int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    CHECK(fd >= 0 && pwrite(fd, data, (size_t)size, 0) == (ssize_t)size);
    close(fd);
}

void file_write_at(const char *file, const void *data, int64_t size, int64_t position)
{
    int fd = open(file, O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, data, (size_t)size, (off_t)position) == (ssize_t)size);
    close(fd);
}

void file_flip(const char *file, int64_t position)
{
    uint8_t byte = 0;
    int fd = open(file, O_RDWR);
    CHECK(fd >= 0 && pread(fd, &byte, 1, (off_t)position) == 1);
    byte ^= 0x10;
    CHECK(pwrite(fd, &byte, 1, (off_t)position) == 1);
    close(fd);
}

void file_zero(const char *file, int64_t position, int64_t size)
{
    uint8_t *zeros = calloc(1, (size_t)size);
    CHECK(zeros != NULL);
    file_write_at(file, zeros, size, position);
    free(zeros);
}

void file_truncate(const char *file, int64_t size)
{
    CHECK(truncate(file, (off_t)size) == 0);
}

int64_t found_end(const char *file)
{
    int64_t size, position = SCHEMA_SIZE;
    uint8_t *data = file_read(file, &size);
    const char *why;
    sc_header header;
    while (position < size && sc_batch_look(data + position, size - position, &header, &why) == SC_BATCH_GOOD)
        position += header.total_size;
    free(data);
    return position;
}

int found_batches(const char *file, found_batch *batches, int max)
{
    int64_t size, position = SCHEMA_SIZE;
    uint8_t *data = file_read(file, &size);
    const char *why;
    int count = 0;
    while (count < max && position < size &&
           sc_batch_look(data + position, size - position, &batches[count].header, &why) == SC_BATCH_GOOD) {
        batches[count].position = position;
        position += batches[count].header.total_size;
        count += batches[count].header.record_count > 0;
    }
    free(data);
    return count;
}
