/* Files and folders as the tests look at them and damage them, with plain system calls: never through os.c. */
#ifndef STREAMCORE_TESTS_DISK_H
#define STREAMCORE_TESTS_DISK_H

#include "batch.h"

enum { FOLDER_MAX = 160, FILE_MAX = 256 };

/* A new folder in $TMPDIR, and its end with all that is in it. */
void folder_make(char path[FOLDER_MAX]);
void folder_remove(const char *path);
void folder_copy(const char *from, const char *to);
/* Names, sizes, times of change and checksums of all files under a folder, as text; free it. */
char *folder_snapshot(const char *path);

void segment_file(char file[FILE_MAX], const char *topic, uint32_t partition, int64_t base_offset);
void index_file(char file[FILE_MAX], const char *topic, uint32_t partition, int64_t base_offset);
bool file_exists(const char *file);
int64_t file_size(const char *file);
uint8_t *file_read(const char *file, int64_t *size);               /* free it */
void file_write(const char *file, const void *data, int64_t size); /* all of it, made when absent */
void file_write_at(const char *file, const void *data, int64_t size, int64_t position);
void file_flip(const char *file, int64_t position); /* one bit */
void file_zero(const char *file, int64_t position, int64_t size);
void file_truncate(const char *file, int64_t size);

typedef struct found_batch {
    int64_t position;
    sc_header header;
} found_batch;

/* The batches of a segment file that have records, in order, up to the first thing that is not a good one; their
 * number. */
int found_batches(const char *file, found_batch *batches, int max);
/* The position behind the last good batch, with or without records. */
int64_t found_end(const char *file);

#endif
