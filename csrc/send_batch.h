/* The columns of one batch of a send buffer, and the memory that they take. Internal. */
#ifndef STREAMCORE_SEND_BATCH_H
#define STREAMCORE_SEND_BATCH_H

#include "send_buffer.h"

/* Bytes of memory in use, and how many are allowed. */
typedef struct sc_send_room {
    int64_t used, limit;
} sc_send_room;

/* What a record counts in a batch. */
static inline int64_t sc_send_record_bytes(const sc_send_record *record)
{
    int64_t bytes = record->key.size + record->value.size + record->object_bytes + SC_SEND_RECORD_OVERHEAD;
    for (int64_t i = 0; i < record->header_count; i++)
        bytes += record->headers[i].key.size + record->headers[i].value.size + 16;
    return bytes;
}

/* An empty batch; NULL when there is no room. */
sc_send_batch *sc_send_batch_new(sc_send_room *room);
void sc_send_batch_free(sc_send_batch *batch, sc_send_room *room);
/* Makes it empty, and keeps its memory. */
void sc_send_batch_clear(sc_send_batch *batch);
/* Memory for one more record: SC_OK, SC_END when there is no room, SC_MEMORY. */
int sc_send_batch_reserve(sc_send_batch *batch, sc_send_room *room, const sc_send_record *record);
/* Writes the record for which memory was reserved. */
void sc_send_batch_put(sc_send_batch *batch, sc_send_room *room, const sc_send_record *record, int64_t timestamp);
/* Counts the objects' memory no more: they are gone. */
void sc_send_batch_drop_objects(sc_send_batch *batch, sc_send_room *room);

#endif
