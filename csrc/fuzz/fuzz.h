/*
 * What the fuzz targets share. An input is some option bytes, then the bytes under test. The targets abort when an
 * answer is wrong, not only when memory is touched that should not be.
 */
#ifndef STREAMCORE_FUZZ_H
#define STREAMCORE_FUZZ_H

#include "plain_topic.h"

enum { FUZZ_OPTIONS = 8 }; /* option bytes in front of every input but fuzz_metadata's */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A type with every kind of node in it. */
static inline struct ArrowSchema *schema_with_everything(void)
{
    return schema_new("+s", "value", 8, schema_new("i", "number", 0), schema_new("b", "truth", 0),
                      schema_new("n", "nothing", 0), schema_new("vu", "view", 0),
                      schema_new("+l", "list", 1, schema_new("Z", "item", 0)),
                      schema_new("+w:2", "fixed", 1, schema_new("s", "item", 0)),
                      schema_new("+L", "large", 1, schema_new("b", "item", 0)),
                      schema_new("+s", "pair", 2, schema_new("w:5", "five", 0), schema_new("u", "text", 0)));
}

/* Gives the message at `data` the checksums of its bytes, so that the fuzzer gets behind them. Its size; 0: it is none.
 */
int64_t fuzz_seal(uint8_t *data, int64_t size, bool force_sizes);

#endif
