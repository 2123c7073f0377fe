/* Bytes as the flatbuffer of a record batch message. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sc_metadata found;
    static volatile int64_t sum;
    if (!sc_metadata_read(data, (int64_t)size, &found))
        return 0;
    if (found.rows < 0 || found.body_length < 0 || found.codec < SC_CODEC_NONE || found.codec > SC_CODEC_ZSTD)
        __builtin_trap();
    for (int64_t i = 0; i < found.node_count; i++)
        sum += sc_metadata_node(&found, i).length & 1;
    for (int64_t i = 0; i < found.buffer_count; i++)
        sum += sc_metadata_buffer(&found, i).length & 1;
    for (int64_t i = 0; i < found.variadic_count; i++)
        sum += sc_metadata_variadic(&found, i) & 1;
    (void)sum;
    return 0;
}
