/*
 * Plain topics for tests. Every record's content follows from its partition and offset, so that whoever reads a log can
 * tell whether each record is the one that was appended there.
 */
#ifndef STREAMCORE_TESTS_PLAIN_TOPIC_H
#define STREAMCORE_TESTS_PLAIN_TOPIC_H

#include "disk.h"

enum { SCHEMA_SIZE = 256, DIGITS_AT = 128, GENERATION = 1, PATH_MAX_OF_TESTS = 512, VALUE_MAX = 256 };
#define FIRST_TIME INT64_C(1700000000000)

/* Arrow schemas by hand. `schema_new` takes its children over; schema_free frees all. */
struct ArrowSchema *schema_new(const char *format, const char *name, int children, ...);
void schema_free(struct ArrowSchema *schema);
struct ArrowSchema *schema_of_topic(struct ArrowSchema *value);
/* A schema message as far as C looks at it: 64-byte multiple, ten digits, different for each version. */
void schema_message(uint8_t message[SCHEMA_SIZE], uint32_t version);
sc_layout *layout_of(struct ArrowSchema *value, uint32_t version); /* takes `value` */
sc_layout *plain_layout(uint32_t version);

sc_topic_settings settings_of(int64_t segment_bytes);
/* Opens with the plain layout of version 1, 4 partitions and segments of 256 KiB. */
sc_topic *topic_open(const char *path, bool writable);
sc_topic *topic_open_with(const char *path, bool writable, int64_t segment_bytes);
int topic_try_open(const char *path, bool writable, int64_t segment_bytes, sc_topic **topic, sc_error *error);
void topic_close(sc_topic *topic); /* and frees; a failure fails the test */
/* Leaves as a killed process would: nothing is flushed or cut, the locks go. */
void topic_abandon(sc_topic *topic);

/* The value of a record; its size, -1 for null. */
int64_t value_of(uint32_t partition, int64_t offset, uint8_t value[VALUE_MAX]);
int64_t key_of(uint32_t partition, int64_t offset, uint8_t key[VALUE_MAX]);
int64_t time_of(int64_t offset);

/* Appends records for offsets [first, first + count), in batches of `each`, as one append; the log must end at `first`.
 */
int try_append(sc_topic *topic, uint32_t partition, int64_t first, int64_t count, int64_t each, bool durable,
               sc_error *error);
void append_records(sc_topic *topic, uint32_t partition, int64_t first, int64_t count);
int64_t end_of(sc_topic *topic, uint32_t partition);

/* Reads [start, end) and checks each record. *next: behind the last one that was read. */
int try_read(sc_topic *topic, uint32_t partition, int64_t start, int64_t end, int64_t *next, sc_error *error);
void check_records(sc_topic *topic, uint32_t partition, int64_t start, int64_t end);
/* Opens the topic in `path`, checks that partition 0 holds exactly [0, end), appends behind it and closes. */
void check_log(const char *path, int64_t end);

/* The next to open the topic will believe that the machine went down. */
void pretend_power_loss(const char *path);

#endif
