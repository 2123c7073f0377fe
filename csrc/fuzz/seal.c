#include <string.h>

#include "fuzz.h"

int64_t fuzz_seal(uint8_t *data, int64_t size, bool force_sizes)
{
    uint32_t opening[2];
    sc_header header;
    if (size < SC_OPENING_SIZE)
        return 0;
    memcpy(opening, data, sizeof opening);
    int64_t header_at = SC_OPENING_SIZE + (int64_t)opening[1];
    if (opening[0] != SC_CONTINUATION || header_at % SC_ALIGNMENT != 0 || header_at + SC_HEADER_SIZE > size)
        return 0;
    memcpy(&header, data + header_at, sizeof header);
    header.metadata_size = (int32_t)opening[1];
    if (force_sizes) {
        header.total_size = size / SC_ALIGNMENT * SC_ALIGNMENT;
        header.last_offset = (int64_t)((uint64_t)header.base_offset + (uint64_t)header.record_count - 1);
    }
    bool whole = header.total_size >= header_at + SC_HEADER_SIZE && header.total_size <= size;
    if (whole)
        header.body_crc = sc_batch_checksum(data, &header);
    sc_header_seal(&header);
    memcpy(data + header_at, &header, sizeof header);
    return whole && header.total_size % SC_ALIGNMENT == 0 ? header.total_size : SC_ALIGNMENT;
}
