/* A log that has everything: producers, transactions that were committed, aborted and left open, a sealed segment. */
#ifndef STREAMCORE_TRANSACTION_LOG_H
#define STREAMCORE_TRANSACTION_LOG_H

#include "plain_topic.h"

enum { TRANSACTION_LOG_SEGMENT = 64 << 10 };

/* Appends `count` records of that value size as a producer would; first_offset: where. */
int log_produce(sc_topic *topic, sc_producer producer, bool transactional, int64_t count, int64_t *first_offset,
                sc_error *error);
/* Makes partition 0 of a topic in the empty folder `path`: two segments, the first one sealed and rewritten when
 * `rewritten`. Closes it, so that all hints are there. */
void transaction_log_make(const char *path, bool rewritten);

#endif
