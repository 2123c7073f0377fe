/*
 * A mutator for libFuzzer that knows where the headers are: in kilobytes of records a blind one seldom meets them. Half
 * of the time a header of the input is changed in place, and else anything.
 */
#include <stdint.h>
#include <string.h>

#include "fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);

typedef struct known {
    const char *magic;
    size_t size;
} known;

static size_t region_at(const uint8_t *data, size_t left)
{
    static const known headers[] = {{"SCB1", 128}, {"SCJREC01", 640}, {"SCJRNL01", 64}};
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++)
        if (left >= headers[i].size && memcmp(data, headers[i].magic, strlen(headers[i].magic)) == 0)
            return headers[i].size;
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
    size_t count = 0, wanted = seed >> 1;
    for (size_t at = FUZZ_OPTIONS; seed % 2 == 0 && at < size; at += 8)
        count += region_at(data + at, size - at) != 0;
    if (count == 0)
        return LLVMFuzzerMutate(data, size, max_size);
    wanted %= count;
    for (size_t at = FUZZ_OPTIONS; at < size; at += 8) {
        size_t region = region_at(data + at, size - at);
        if (region != 0 && wanted-- == 0)
            (void)LLVMFuzzerMutate(data + at + 4, region - 4, region - 4);
    }
    if (wanted % 4 == 0) /* and what it is good for */
        (void)LLVMFuzzerMutate(data, FUZZ_OPTIONS, FUZZ_OPTIONS);
    return size;
}
