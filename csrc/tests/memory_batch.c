#include "memory_batch.h"

#include "check.h"

static void look(memory_batch *out, const sc_layout *layout, int64_t size)
{
    const char *why;
    CHECK_EQ(sc_batch_look(out->message, size, &out->header, &why), SC_BATCH_GOOD);
    const sc_header *header = &out->header;
    out->batch = (sc_batch){.message = out->message,
                            .message_size = header->total_size,
                            .base_offset = header->base_offset,
                            .last_offset = header->last_offset,
                            .record_count = header->record_count,
                            .row_count = header->record_count,
                            .min_timestamp = header->min_timestamp,
                            .max_timestamp = header->max_timestamp,
                            .partition = 3,
                            .schema_version = header->schema_version,
                            .flags = header->flags,
                            .layout = layout,
                            .mapping = &out->mapping};
}

void memory_batch_write(const sc_layout *layout, const sc_batch_input *input, int64_t base_offset, memory_batch *out)
{
    sc_encoding encoding;
    sc_error error;
    sc_header header;
    const char *why;
    CHECK_OK(sc_encoding_plan(&encoding, layout, input, 1 << 20, &error), error);
    CHECK_EQ(encoding.total_size % SC_ALIGNMENT, 0);
    out->message = aligned_alloc(SC_ALIGNMENT, (size_t)encoding.total_size);
    CHECK(out->message != NULL);
    memset(out->message, 0, (size_t)encoding.total_size);
    sc_encoding_write(&encoding, out->message, &(sc_placement){.base_offset = base_offset, .durable_offset = 1});
    CHECK_EQ(sc_batch_look(out->message, encoding.total_size, &header, &why), SC_BATCH_NONE); /* no opening yet */
    memcpy(out->message, &(uint64_t){sc_encoding_opening(&encoding)}, 8);
    atomic_init(&out->mapping.references, 1);
    look(out, layout, encoding.total_size);
    CHECK_EQ(sc_batch_checksum(out->message, &out->header), out->header.body_crc);
    CHECK_EQ(out->header.total_size, encoding.total_size);
    CHECK_EQ(out->header.base_offset, base_offset);
    CHECK_EQ(out->header.last_offset, base_offset + input->count - 1);
    CHECK_EQ(out->header.durable_offset, 1);
    sc_encoding_free(&encoding);
}

void memory_batch_reseal(memory_batch *out)
{
    sc_header header;
    uint8_t *at = out->message + SC_OPENING_SIZE + out->header.metadata_size;
    memcpy(&header, at, sizeof header);
    header.body_crc = sc_batch_checksum(out->message, &out->header);
    sc_header_seal(&header);
    memcpy(at, &header, sizeof header);
    look(out, out->batch.layout, out->header.total_size);
}

void memory_batch_free(memory_batch *out)
{
    CHECK_EQ(atomic_load(&out->mapping.references), 1);
    free(out->message);
}
