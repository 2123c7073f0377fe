/*
 * Arrow schemas and arrays out of fuzz bytes, as a producer behind the C data interface could hand them over.
 *
 * A buffer has the size that lengths, offsets and types claim for it, to the byte: that the interface gives no way to
 * check. Everything else may be wrong: formats, numbers of children and buffers, lengths, offsets, null counts,
 * pointers that are NULL. A claim of more than HOSTILE_ROWS rows comes with NULL for its buffers.
 *
 * Zero bytes, which also stand for those behind the end of the input, make what is sound.
 */
#ifndef STREAMCORE_HOSTILE_ARROW_H
#define STREAMCORE_HOSTILE_ARROW_H

#include "layout.h"

enum { HOSTILE_ROWS = 4096 };

typedef struct hostile_input {
    const uint8_t *data;
    size_t size, at;
    int fields, arrays; /* made so far */
} hostile_input;

uint8_t hostile_byte(hostile_input *input);
/* A number as attackers choose them. */
int64_t hostile_number(hostile_input *input);

struct ArrowSchema *hostile_schema(hostile_input *input, int depth);
/* For the layout's field `index`; `rows`: how many a parent or the batch needs of it. */
struct ArrowArray *hostile_array(hostile_input *input, const sc_layout *layout, int32_t index, int64_t rows);

/* Memory of exactly `size` bytes, until hostile_free. */
void *hostile_memory(size_t size);
void hostile_free(void);

#endif
