#include "metadata.h"

#include <string.h>

#include "control.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the log is little-endian, and so must the machine be"
#endif

enum { VERSION_V5 = 4, HEADER_RECORD_BATCH = 3, METHOD_BUFFER = 0 };
enum { CODEC_FLATBUFFER_LZ4_FRAME = 0, CODEC_FLATBUFFER_ZSTD = 1 };

static void put_u16(uint8_t *at, uint16_t value)
{
    memcpy(at, &value, sizeof value);
}
static void put_u32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof value);
}
static void put_i64(uint8_t *at, int64_t value)
{
    memcpy(at, &value, sizeof value);
}
static uint16_t get_u16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}
static uint32_t get_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}
static int64_t get_i64(const uint8_t *at)
{
    int64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

int64_t sc_metadata_size(int64_t nodes, int64_t buffers, int64_t variadic)
{
    int64_t size = sc_metadata_variadic_at(nodes, buffers) + 8 * variadic;
    return (size + 8 + SC_ALIGNMENT - 1) / SC_ALIGNMENT * SC_ALIGNMENT - 8;
}

static void put_vtable(uint8_t *at, int fields, const uint16_t *table)
{
    put_u16(at, (uint16_t)(4 + 2 * fields));
    for (int i = 0; i <= fields; i++)
        put_u16(at + 2 + 2 * i, table[i]);
}

void sc_metadata_write(uint8_t *at, int codec, int64_t nodes, int64_t buffers, int64_t variadic)
{
    enum { MESSAGE = 16, BATCH = 56, COMPRESSION = 92, NODES = 100 };
    int64_t buffers_at = sc_metadata_buffers_at(nodes) - 4;
    int64_t variadic_at = sc_metadata_variadic_at(nodes, buffers) - 4;
    memset(at, 0, (size_t)sc_metadata_size(nodes, buffers, variadic));

    put_u32(at, MESSAGE);
    put_vtable(at + 4, 4, (uint16_t[]){20, 16, 18, 4, 8}); /* size; version, header type, header, bodyLength */
    put_u32(at + MESSAGE, MESSAGE - 4);
    put_u32(at + MESSAGE + 4, BATCH - (MESSAGE + 4));
    put_u16(at + MESSAGE + 16, VERSION_V5);
    at[MESSAGE + 18] = HEADER_RECORD_BATCH;

    /* size; length, nodes, buffers, compression, variadicBufferCounts */
    put_vtable(at + 36, 5, (uint16_t[]){28, 8, 4, 16, codec == SC_CODEC_NONE ? 0 : 20, variadic == 0 ? 0 : 24});
    put_u32(at + BATCH, BATCH - 36);
    put_u32(at + BATCH + 4, NODES - (BATCH + 4));
    put_u32(at + BATCH + 16, (uint32_t)(buffers_at - (BATCH + 16)));
    put_u32(at + BATCH + 20, COMPRESSION - (BATCH + 20));
    put_u32(at + BATCH + 24, (uint32_t)(variadic_at - (BATCH + 24)));

    put_vtable(at + 84, 2, (uint16_t[]){6, 4, 5}); /* size; codec, method */
    put_u32(at + COMPRESSION, COMPRESSION - 84);
    at[COMPRESSION + 4] = codec == SC_CODEC_ZSTD ? CODEC_FLATBUFFER_ZSTD : CODEC_FLATBUFFER_LZ4_FRAME;
    at[COMPRESSION + 5] = METHOD_BUFFER;

    put_u32(at + NODES, (uint32_t)nodes);
    put_u32(at + buffers_at, (uint32_t)buffers);
    put_u32(at + variadic_at, (uint32_t)variadic);
    for (int64_t i = 0; i < variadic; i++)
        put_i64(at + variadic_at + 4 + 8 * i, 1);
}

/* ---- reading: every place is checked before it is used ------------------------------------------------------ */

typedef struct view {
    const uint8_t *data;
    int64_t size;
} view;

typedef struct table {
    int64_t at, size, vtable, vtable_size;
} table;

static bool inside(view in, int64_t at, int64_t size)
{
    return (at >= 0 && size >= 0 && at <= in.size - size) || SC_CONTROL(metadata_not_checked);
}

static bool read_table(view in, int64_t at, table *out)
{
    if (!inside(in, at, 4))
        return false;
    int32_t back;
    memcpy(&back, in.data + at, sizeof back);
    out->at = at;
    out->vtable = at - back;
    if (!inside(in, out->vtable, 4))
        return false;
    out->vtable_size = get_u16(in.data + out->vtable);
    out->size = get_u16(in.data + out->vtable + 2);
    return out->vtable_size >= 4 && inside(in, out->vtable, out->vtable_size) && out->size >= 4 &&
           inside(in, at, out->size);
}

/* The place of a field of `size` bytes; 0 when the table leaves it at its default; -1 when it lies outside. */
static int64_t field_at(view in, const table *of, int number, int64_t size)
{
    int64_t entry = 4 + 2 * (int64_t)number;
    if (entry + 2 > of->vtable_size)
        return 0;
    int64_t offset = get_u16(in.data + of->vtable + entry);
    if (offset == 0)
        return 0;
    return offset >= 4 && offset + size <= of->size ? of->at + offset : -1;
}

static bool read_child(view in, const table *of, int number, table *child, bool *present)
{
    int64_t at = field_at(in, of, number, 4);
    *present = at > 0;
    if (at <= 0)
        return at == 0;
    return read_table(in, at + get_u32(in.data + at), child);
}

static bool read_vector(view in, const table *of, int number, int64_t item, const uint8_t **items, int64_t *count)
{
    *items = NULL;
    *count = 0;
    int64_t at = field_at(in, of, number, 4);
    if (at <= 0)
        return at == 0;
    at += get_u32(in.data + at);
    if (!inside(in, at, 4))
        return false;
    *count = get_u32(in.data + at);
    *items = in.data + at + 4;
    return inside(in, at + 4, *count * item);
}

static bool read_i64(view in, const table *of, int number, int64_t *value)
{
    int64_t at = field_at(in, of, number, 8);
    *value = at > 0 ? get_i64(in.data + at) : 0;
    return at >= 0;
}

static bool read_u8(view in, const table *of, int number, uint8_t *value)
{
    int64_t at = field_at(in, of, number, 1);
    *value = at > 0 ? in.data[at] : 0;
    return at >= 0;
}

bool sc_metadata_read(const uint8_t *data, int64_t size, sc_metadata *out)
{
    view in = {data, size};
    table message, batch, compression;
    bool present;
    uint8_t type, codec, method;
    if (size < 8 || !read_table(in, get_u32(data), &message))
        return false;
    int64_t version_at = field_at(in, &message, 0, 2);
    if (version_at <= 0 || get_u16(data + version_at) != VERSION_V5)
        return false;
    if (!read_u8(in, &message, 1, &type) || type != HEADER_RECORD_BATCH)
        return false;
    if (!read_child(in, &message, 2, &batch, &present) || !present)
        return false;
    if (!read_i64(in, &message, 3, &out->body_length) || !read_i64(in, &batch, 0, &out->rows))
        return false;
    if (!read_vector(in, &batch, 1, 16, &out->nodes, &out->node_count) ||
        !read_vector(in, &batch, 2, 16, &out->buffers, &out->buffer_count) ||
        !read_vector(in, &batch, 4, 8, &out->variadic, &out->variadic_count))
        return false;
    out->codec = SC_CODEC_NONE;
    if (!read_child(in, &batch, 3, &compression, &present))
        return false;
    if (present) {
        if (!read_u8(in, &compression, 0, &codec) || !read_u8(in, &compression, 1, &method) ||
            codec > CODEC_FLATBUFFER_ZSTD || method != METHOD_BUFFER)
            return false;
        out->codec = codec == CODEC_FLATBUFFER_ZSTD ? SC_CODEC_ZSTD : SC_CODEC_LZ4;
    }
    return out->rows >= 0 && out->body_length >= 0;
}

sc_node sc_metadata_node(const sc_metadata *metadata, int64_t index)
{
    const uint8_t *at = metadata->nodes + 16 * index;
    return (sc_node){get_i64(at), get_i64(at + 8)};
}

sc_buffer sc_metadata_buffer(const sc_metadata *metadata, int64_t index)
{
    const uint8_t *at = metadata->buffers + 16 * index;
    return (sc_buffer){get_i64(at), get_i64(at + 8)};
}

int64_t sc_metadata_variadic(const sc_metadata *metadata, int64_t index)
{
    return get_i64(metadata->variadic + 8 * index);
}
