#include "batch.h"

#include <string.h>

#include "control.h"

static const uint8_t header_magic[4] = {'S', 'C', 'B', '1'};

static uint32_t header_checksum(const sc_header *header)
{
    const size_t at = offsetof(sc_header, header_crc), behind = at + sizeof header->header_crc;
    uint32_t crc = sc_crc32c(0, header, at);
    return sc_crc32c(crc, (const uint8_t *)header + behind, sizeof *header - behind);
}

void sc_header_seal(sc_header *header)
{
    memcpy(header->magic, header_magic, sizeof header_magic);
    header->version = SC_BATCH_VERSION;
    header->header_crc = header_checksum(header);
}

bool sc_header_is_sound(const sc_header *header)
{
    return memcmp(header->magic, header_magic, sizeof header_magic) == 0 &&
           (header_checksum(header) == header->header_crc || SC_CONTROL(header_checksum_ignored));
}

bool sc_header_is_newer(const sc_header *header)
{
    return sc_header_is_sound(header) &&
           (header->version != SC_BATCH_VERSION || (header->flags & ~SC_FLAGS_KNOWN) != 0);
}

/* Row i has offset base + i, unless the batch was rewritten; a marker takes an offset and has no row. */
static bool has_sound_count(const sc_header *header)
{
    int64_t offsets = header->last_offset - header->base_offset + 1;
    if ((header->flags & SC_FLAG_CONTROL) != 0)
        return header->record_count == 0 && offsets <= 1;
    if ((header->flags & SC_FLAG_SPARSE) != 0)
        return header->record_count <= offsets;
    return header->record_count == offsets;
}

static bool is_consistent(const sc_header *header, int64_t metadata_size)
{
    return header->metadata_size == metadata_size &&
           header->total_size >= SC_OPENING_SIZE + metadata_size + SC_HEADER_SIZE &&
           header->total_size % SC_ALIGNMENT == 0 && header->total_size <= SC_BATCH_BYTES_MAX &&
           header->base_offset >= 0 && header->record_count >= 0 && header->last_offset < INT64_MAX &&
           header->last_offset >= header->base_offset - (header->record_count == 0) && has_sound_count(header) &&
           header->unstable_count >= 0 && header->unstable_count <= header->last_offset + 1;
}

enum sc_batch_state sc_batch_look(const uint8_t *data, int64_t available, sc_header *header, const char **why)
{
    uint32_t opening[2];
    if (available < SC_OPENING_SIZE) {
        *why = "the file ends inside a message";
        return available == 0 ? SC_BATCH_NONE : SC_BATCH_BAD;
    }
    uint64_t word = __atomic_load_n((const uint64_t *)data, __ATOMIC_ACQUIRE); /* pairs with the writer's last store */
    memcpy(opening, &word, sizeof opening);
    if (opening[0] == 0 && opening[1] == 0)
        return SC_BATCH_NONE;
    if (opening[0] == SC_CONTINUATION && opening[1] == 0)
        return SC_BATCH_MARKER;
    int64_t metadata_size = opening[1];
    *why = "no Arrow message starts here";
    if (opening[0] != SC_CONTINUATION || (SC_OPENING_SIZE + metadata_size) % SC_ALIGNMENT != 0)
        return SC_BATCH_BAD;
    *why = "the file ends inside a batch";
    if (metadata_size > SC_BATCH_BYTES_MAX || SC_OPENING_SIZE + metadata_size + SC_HEADER_SIZE > available)
        return SC_BATCH_BAD;
    memcpy(header, data + SC_OPENING_SIZE + metadata_size, sizeof *header);
    *why = "the batch header is damaged";
    if (!sc_header_is_sound(header))
        return SC_BATCH_BAD;
    *why = "the batch has a format version or flags that this version does not know";
    if (header->version != SC_BATCH_VERSION || (header->flags & ~SC_FLAGS_KNOWN) != 0)
        return SC_BATCH_BAD;
    *why = "the batch header contradicts itself";
    if (!is_consistent(header, metadata_size))
        return SC_BATCH_BAD;
    *why = "the file ends inside a batch";
    if (header->total_size > available)
        return SC_BATCH_BAD;
    return SC_BATCH_GOOD;
}

uint32_t sc_batch_checksum(const uint8_t *data, const sc_header *header)
{
    const uint8_t *behind = data + SC_OPENING_SIZE + header->metadata_size + SC_HEADER_SIZE;
    uint32_t crc = sc_crc32c(0, data + SC_OPENING_SIZE, (size_t)header->metadata_size);
    return sc_crc32c(crc, behind, (size_t)(data + header->total_size - behind));
}
