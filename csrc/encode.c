/*
 * Planning and writing walk the schema in the same order and take the same buffers, so one function per kind of node
 * does both: take() hands out the sizes while planning and the addresses while writing.
 *
 * Buffers that hold only zeros (the offsets and validity of a column that is absent) share one run of zeros at the
 * end of the body. The place that we write to is zero already, so it costs no stores, and so does padding.
 */
#include "encode.h"

#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"

enum { ZERO_RUN = -1, OFFSETS_BUFFER = 1 };

typedef struct rows {
    const struct ArrowArray *array;
    int64_t start, length; /* logical: the array's own offset is not in start */
} rows;

/* ---- bits -------------------------------------------------------------------------------------------------- */

static int64_t count_bits(const uint8_t *bits, int64_t at, int64_t length)
{
    int64_t count = 0;
    for (; length > 0 && at % 8 != 0; at++, length--)
        count += bits[at / 8] >> (at % 8) & 1;
    const uint8_t *bytes = bits + at / 8;
    for (; length >= 64; bytes += 8, length -= 64) {
        uint64_t word;
        memcpy(&word, bytes, sizeof word);
        count += __builtin_popcountll(word);
    }
    for (int64_t i = 0; i < length; i++)
        count += bytes[i / 8] >> (i % 8) & 1;
    return count;
}

/* Copies bits to the start of `to`; the bits behind the last one become zero. */
static void copy_bits(uint8_t *to, const uint8_t *bits, int64_t at, int64_t length)
{
    const uint8_t *from = bits + at / 8;
    int shift = (int)(at % 8);
    int64_t bytes = (length + 7) / 8;
    if (bytes == 0)
        return;
    if (shift == 0) {
        memcpy(to, from, (size_t)bytes);
    } else {
        int64_t source_bytes = (shift + length + 7) / 8;
        for (int64_t i = 0; i < bytes; i++) {
            unsigned low = from[i] >> shift;
            unsigned high = i + 1 < source_bytes ? (unsigned)from[i + 1] << (8 - shift) : 0;
            to[i] = (uint8_t)(low | high);
        }
    }
    if (length % 8 != 0)
        to[bytes - 1] &= (uint8_t)((1 << (length % 8)) - 1);
}

/* ---- buffers ----------------------------------------------------------------------------------------------- */

static uint8_t *take(sc_encoding *encoding, int64_t size)
{
    sc_buffer *buffer = &encoding->buffers[encoding->next_buffer++];
    if (encoding->body != NULL)
        return encoding->body + buffer->offset;
    *buffer = (sc_buffer){encoding->body_size, size};
    if (encoding->body_size <= SC_BATCH_BYTES_MAX) /* else the plan fails, and the sum shall not overflow */
        encoding->body_size += sc_align(size);
    return NULL;
}

static void take_zeros(sc_encoding *encoding, int64_t size)
{
    sc_buffer *buffer = &encoding->buffers[encoding->next_buffer++];
    if (encoding->body != NULL)
        return;
    *buffer = (sc_buffer){ZERO_RUN, size};
    if (size > encoding->zeros_size)
        encoding->zeros_size = size;
}

static void set_node(sc_encoding *encoding, const sc_field *field, int64_t length, int64_t nulls)
{
    encoding->nodes[field - encoding->layout->fields] = (sc_node){length, nulls};
}

/* ---- columns from Arrow arrays ----------------------------------------------------------------------------- */

/* What the C data interface leaves to its consumers to check is checked while planning. That buffers have the size
 * which lengths and offsets claim cannot be: it does not say how long they are. */
static int fail_shape(sc_error *error)
{
    return sc_fail(error, SC_INVALID, "an Arrow array does not have the shape of its type");
}

static bool is_aligned(const void *buffer, uintptr_t to)
{
    return (uintptr_t)buffer % to == 0;
}

/* Buffers that rows are read from are there, and offsets lie where their type may. */
static bool has_buffers(const sc_field *field, const struct ArrowArray *array)
{
    const void *values = array->n_buffers > 1 ? array->buffers[1] : NULL;
    const void *sizes = array->n_buffers > 3 ? array->buffers[array->n_buffers - 1] : NULL;
    switch (field->kind) {
    case SC_KIND_FIXED_LIST:
    case SC_KIND_STRUCT:
        return true;
    case SC_KIND_FIXED:
        return values != NULL || field->width == 0;
    case SC_KIND_BOOL:
        return values != NULL;
    case SC_KIND_VIEW:
        return values != NULL && is_aligned(values, 4) &&
               (array->n_buffers <= 3 || (sizes != NULL && is_aligned(sizes, 8)));
    default:
        return values != NULL &&
               is_aligned(values, field->kind == SC_KIND_LARGE_BINARY || field->kind == SC_KIND_LARGE_LIST ? 8 : 4);
    }
}

static int check_shape(const sc_field *field, rows from, sc_error *error)
{
    const struct ArrowArray *array = from.array;
    int64_t rows_max = INT64_MAX / (field->width > 16 ? field->width : 16); /* so that the place of a row is a number */
    if (array == NULL || array->dictionary != NULL || array->n_children != field->children ||
        (field->children > 0 && array->children == NULL))
        return fail_shape(error);
    if (array->offset < 0 || array->length < 0 || array->length > rows_max ||
        array->offset > rows_max - array->length || from.start > array->length - from.length)
        return fail_shape(error);
    bool views = field->kind == SC_KIND_VIEW;
    if (views ? array->n_buffers < 2 || array->n_buffers > INT32_MAX : array->n_buffers != sc_kind_buffers(field->kind))
        return fail_shape(error);
    if (array->n_buffers > 0 &&
        (array->buffers == NULL || array->null_count < -1 || array->null_count > array->length ||
         (array->null_count > 0 && array->buffers[0] == NULL) || (from.length > 0 && !has_buffers(field, array))))
        return fail_shape(error);
    for (int32_t i = 0; i < field->children; i++)
        if (array->children[i] == NULL)
            return fail_shape(error);
    if (from.length > SC_BATCH_BYTES_MAX)
        return sc_fail(error, SC_TOO_LARGE, "a batch holds at most 2 GiB, and as many nested values");
    return SC_OK;
}

static int put_array(sc_encoding *encoding, const sc_field *field, rows from, sc_error *error);

static int64_t count_nulls(rows from)
{
    const uint8_t *validity = from.array->n_buffers > 0 ? from.array->buffers[0] : NULL;
    if (from.array->null_count == 0 || validity == NULL)
        return 0;
    return from.length - count_bits(validity, from.array->offset + from.start, from.length);
}

static void put_validity(sc_encoding *encoding, const sc_field *field, rows from)
{
    int64_t nulls;
    if (encoding->body == NULL) {
        nulls = count_nulls(from);
        set_node(encoding, field, from.length, nulls);
    } else {
        nulls = encoding->nodes[field - encoding->layout->fields].null_count;
    }
    uint8_t *to = take(encoding, nulls == 0 ? 0 : (from.length + 7) / 8);
    if (to != NULL && nulls != 0)
        copy_bits(to, from.array->buffers[0], from.array->offset + from.start, from.length);
}

#define DEFINE_OFFSETS(NAME, TYPE, UNSIGNED)                                                                           \
    /* The extent of the values of `from` and the longest of them; false when the offsets go back. */                  \
    static bool NAME##_extent(rows from, int64_t *low, int64_t *high, int64_t *longest)                                \
    {                                                                                                                  \
        *low = *high = *longest = 0;                                                                                   \
        if (from.length == 0)                                                                                          \
            return true;                                                                                               \
        const TYPE *ends = (const TYPE *)from.array->buffers[1] + from.array->offset + from.start;                     \
        TYPE wrong = ends[0], most = 0;                                                                                \
        for (int64_t i = 0; i < from.length; i++) {                                                                    \
            TYPE size = (TYPE)((UNSIGNED)ends[i + 1] - (UNSIGNED)ends[i]);                                             \
            wrong |= size;                                                                                             \
            most = size > most ? size : most;                                                                          \
        }                                                                                                              \
        *low = ends[0];                                                                                                \
        *high = ends[from.length];                                                                                     \
        *longest = most;                                                                                               \
        const TYPE *last = (const TYPE *)from.array->buffers[1] + from.array->offset + from.array->length;             \
        return wrong >= 0 && ends[0] >= 0 && ends[from.length] >= ends[0] && ends[from.length] <= *last;               \
    }                                                                                                                  \
    static void NAME##_rebase(uint8_t *to, rows from)                                                                  \
    {                                                                                                                  \
        TYPE *out = (TYPE *)(void *)to;                                                                                \
        if (from.length == 0)                                                                                          \
            return;                                                                                                    \
        const TYPE *ends = (const TYPE *)from.array->buffers[1] + from.array->offset + from.start;                     \
        for (int64_t i = 0; i <= from.length; i++)                                                                     \
            out[i] = (TYPE)(ends[i] - ends[0]);                                                                        \
    }
DEFINE_OFFSETS(offsets32, int32_t, uint32_t)
DEFINE_OFFSETS(offsets64, int64_t, uint64_t)

static int put_binary(sc_encoding *encoding, rows from, bool large, sc_error *error)
{
    int64_t low, high, longest;
    bool planning = encoding->body == NULL;
    if (planning) {
        bool sound =
            large ? offsets64_extent(from, &low, &high, &longest) : offsets32_extent(from, &low, &high, &longest);
        if (!sound && !SC_CONTROL(arrow_offsets_not_checked))
            return sc_fail(error, SC_INVALID, "an Arrow array has offsets that go back");
        if (high > low && from.array->buffers[2] == NULL)
            return fail_shape(error);
        if (longest > encoding->max_record_bytes)
            return sc_fail(error, SC_TOO_LARGE, "a value of %lld bytes is above max_record_bytes (%lld)",
                           (long long)longest, (long long)encoding->max_record_bytes);
    } else if (from.length == 0) {
        low = high = 0;
    } else {
        int64_t at = from.array->offset + from.start;
        low = large ? ((const int64_t *)from.array->buffers[1])[at] : ((const int32_t *)from.array->buffers[1])[at];
        at += from.length;
        high = large ? ((const int64_t *)from.array->buffers[1])[at] : ((const int32_t *)from.array->buffers[1])[at];
    }
    uint8_t *ends = take(encoding, (from.length + 1) * (large ? 8 : 4));
    uint8_t *bytes = take(encoding, high - low);
    if (planning)
        return SC_OK;
    if (large)
        offsets64_rebase(ends, from);
    else
        offsets32_rebase(ends, from);
    if (high > low)
        memcpy(bytes, (const uint8_t *)from.array->buffers[2] + low, (size_t)(high - low));
    return SC_OK;
}

typedef struct binary_view {
    int32_t size;
    union {
        uint8_t inlined[12];
        struct {
            uint8_t prefix[4];
            int32_t buffer, offset;
        } out;
    } as;
} binary_view;
static_assert(sizeof(binary_view) == 16, "an Arrow view has 16 bytes");

static bool is_valid(rows from, int64_t row)
{
    const uint8_t *validity = from.array->buffers[0];
    int64_t at = from.array->offset + from.start + row;
    return from.array->null_count == 0 || validity == NULL || (validity[at / 8] >> (at % 8) & 1);
}

/* Views are rewritten to point into one buffer that holds just what they show. */
static int put_views(sc_encoding *encoding, const sc_field *field, rows from, sc_error *error)
{
    const binary_view *views =
        from.length == 0 ? NULL : (const binary_view *)from.array->buffers[1] + from.array->offset + from.start;
    int64_t buffers = from.array->n_buffers - 3; /* validity, views, ..., sizes */
    const int64_t *sizes = buffers > 0 ? from.array->buffers[from.array->n_buffers - 1] : NULL;
    bool planning = encoding->body == NULL;
    int64_t total = 0;
    for (int64_t i = 0; planning && i < from.length; i++) {
        if (!is_valid(from, i) || (views[i].size >= 0 && views[i].size <= 12))
            continue;
        const binary_view *one = &views[i];
        if (one->size < 0 || one->as.out.buffer < 0 || one->as.out.buffer >= buffers || one->as.out.offset < 0 ||
            ((int64_t)one->as.out.offset + one->size > sizes[one->as.out.buffer] &&
             !SC_CONTROL(arrow_views_not_checked)) ||
            from.array->buffers[2 + one->as.out.buffer] == NULL)
            return sc_fail(error, SC_INVALID, "an Arrow view points outside its buffers");
        if (one->size > encoding->max_record_bytes)
            return sc_fail(error, SC_TOO_LARGE, "a value of %d bytes is above max_record_bytes (%lld)", one->size,
                           (long long)encoding->max_record_bytes);
        total += one->size;
    }
    if (total > INT32_MAX)
        return sc_fail(error, SC_TOO_LARGE, "a batch holds at most 2 GiB");
    uint8_t *to = take(encoding, from.length * 16);
    uint8_t *bytes = take(encoding, total);
    if (planning) {
        encoding->variadic[field->variadic] = 1;
        return SC_OK;
    }
    int32_t filled = 0;
    for (int64_t i = 0; i < from.length; i++) {
        binary_view one = {0};
        if (is_valid(from, i)) {
            one = views[i];
            if (one.size <= 12) {
                memset(one.as.inlined + one.size, 0, (size_t)(12 - one.size));
            } else {
                memcpy(bytes + filled, (const uint8_t *)from.array->buffers[2 + one.as.out.buffer] + one.as.out.offset,
                       (size_t)one.size);
                memcpy(one.as.out.prefix, bytes + filled, sizeof one.as.out.prefix); /* readers compare by it */
                one.as.out.buffer = 0;
                one.as.out.offset = filled;
                filled += one.size;
            }
        }
        memcpy(to + 16 * i, &one, sizeof one);
    }
    return SC_OK;
}

static int put_list(sc_encoding *encoding, const sc_field *field, rows from, bool large, sc_error *error)
{
    int64_t low, high, longest;
    bool sound = large ? offsets64_extent(from, &low, &high, &longest) : offsets32_extent(from, &low, &high, &longest);
    if (!sound || high > from.array->children[0]->length)
        return sc_fail(error, SC_INVALID, "an Arrow list array has offsets that go back or beyond its values");
    uint8_t *ends = take(encoding, (from.length + 1) * (large ? 8 : 4));
    if (ends != NULL && large)
        offsets64_rebase(ends, from);
    else if (ends != NULL)
        offsets32_rebase(ends, from);
    return put_array(encoding, field + 1, (rows){from.array->children[0], low, high - low}, error);
}

static int put_struct(sc_encoding *encoding, const sc_field *field, rows from, sc_error *error)
{
    const sc_field *child = field + 1;
    for (int32_t i = 0; i < field->children; i++) {
        rows part = {from.array->children[i], from.array->offset + from.start, from.length};
        int code = put_array(encoding, child, part, error);
        if (code != SC_OK)
            return code;
        child = &encoding->layout->fields[child->end];
    }
    return SC_OK;
}

static int put_array(sc_encoding *encoding, const sc_field *field, rows from, sc_error *error)
{
    int code = encoding->body == NULL && !SC_CONTROL(arrow_shape_not_checked) ? check_shape(field, from, error) : SC_OK;
    if (code != SC_OK)
        return code;
    int64_t at = from.array->offset + from.start;
    if (field->kind == SC_KIND_NULL) {
        set_node(encoding, field, from.length, from.length);
        return SC_OK;
    }
    put_validity(encoding, field, from);
    uint8_t *to;
    switch (field->kind) {
    case SC_KIND_BOOL:
        to = take(encoding, (from.length + 7) / 8);
        if (to != NULL && from.length > 0)
            copy_bits(to, from.array->buffers[1], at, from.length);
        return SC_OK;
    case SC_KIND_FIXED:
        to = take(encoding, from.length * field->width);
        if (to != NULL && from.length * field->width > 0)
            memcpy(to, (const uint8_t *)from.array->buffers[1] + at * field->width,
                   (size_t)(from.length * field->width));
        return SC_OK;
    case SC_KIND_BINARY:
    case SC_KIND_LARGE_BINARY:
        return put_binary(encoding, from, field->kind == SC_KIND_LARGE_BINARY, error);
    case SC_KIND_VIEW:
        return put_views(encoding, field, from, error);
    case SC_KIND_LIST:
    case SC_KIND_LARGE_LIST:
        return put_list(encoding, field, from, field->kind == SC_KIND_LARGE_LIST, error);
    case SC_KIND_FIXED_LIST:
        return put_array(encoding, field + 1,
                         (rows){from.array->children[0], at * field->width, from.length * field->width}, error);
    default:
        return put_struct(encoding, field, from, error);
    }
}

/* ---- columns that are not there ---------------------------------------------------------------------------- */

static void put_absent(sc_encoding *encoding, const sc_field *field, int64_t length)
{
    set_node(encoding, field, length, length);
    if (field->kind == SC_KIND_NULL)
        return;
    take_zeros(encoding, length == 0 ? 0 : (length + 7) / 8);
    switch (field->kind) {
    case SC_KIND_BOOL:
        take_zeros(encoding, (length + 7) / 8);
        break;
    case SC_KIND_FIXED:
        take_zeros(encoding, length * field->width);
        break;
    case SC_KIND_BINARY:
    case SC_KIND_LARGE_BINARY:
        take_zeros(encoding, (length + 1) * (field->kind == SC_KIND_BINARY ? 4 : 8));
        take_zeros(encoding, 0);
        break;
    case SC_KIND_VIEW:
        take_zeros(encoding, length * 16);
        take_zeros(encoding, 0);
        if (encoding->body == NULL)
            encoding->variadic[field->variadic] = 1;
        break;
    case SC_KIND_LIST:
    case SC_KIND_LARGE_LIST:
        take_zeros(encoding, (length + 1) * (field->kind == SC_KIND_LIST ? 4 : 8));
        put_absent(encoding, field + 1, 0);
        break;
    case SC_KIND_FIXED_LIST:
        put_absent(encoding, field + 1, length * field->width);
        break;
    default:
        for (const sc_field *child = field + 1, *end = &encoding->layout->fields[field->end]; child < end;
             child = &encoding->layout->fields[child->end])
            put_absent(encoding, child, length);
    }
}

/* ---- columns from bytes ------------------------------------------------------------------------------------ */

static int plan_bytes(sc_encoding *encoding, const sc_field *field, const sc_bytes *bytes, sc_error *error)
{
    int64_t count = encoding->input->count, total = 0, nulls = 0, longest = 0;
    for (int64_t i = 0; i < count; i++) {
        total += bytes[i].size;
        nulls += bytes[i].data == NULL;
        longest = bytes[i].size > longest ? bytes[i].size : longest;
    }
    if (longest > encoding->max_record_bytes)
        return sc_fail(error, SC_TOO_LARGE, "a record of %lld bytes is above max_record_bytes (%lld)",
                       (long long)longest, (long long)encoding->max_record_bytes);
    if (total > SC_BATCH_BYTES_MAX)
        return sc_fail(error, SC_TOO_LARGE, "%lld bytes in one batch: it holds at most 2 GiB", (long long)total);
    set_node(encoding, field, count, nulls);
    take(encoding, nulls == 0 ? 0 : (count + 7) / 8);
    take(encoding, (count + 1) * 4);
    take(encoding, total);
    return SC_OK;
}

static void write_bytes(sc_encoding *encoding, const sc_field *field, const sc_bytes *bytes)
{
    int64_t count = encoding->input->count;
    int64_t nulls = encoding->nodes[field - encoding->layout->fields].null_count;
    uint8_t *validity = take(encoding, 0);
    int32_t *ends = (int32_t *)(void *)take(encoding, 0);
    uint8_t *data = take(encoding, 0);
    int32_t end = 0;
    for (int64_t i = 0; i < count; i++) {
        if (bytes[i].size > 0)
            memcpy(data + end, bytes[i].data, (size_t)bytes[i].size);
        end += (int32_t)bytes[i].size;
        ends[i + 1] = end;
    }
    for (int64_t i = 0; nulls > 0 && i < count; i++)
        if (bytes[i].data != NULL)
            validity[i / 8] |= (uint8_t)(1 << (i % 8));
}

static int put_column(sc_encoding *encoding, int column, const sc_bytes *bytes, const struct ArrowArray *array,
                      sc_error *error)
{
    const sc_field *field = &encoding->layout->fields[encoding->layout->columns[column]];
    if (array != NULL)
        return put_array(encoding, field, (rows){array, encoding->input->first_row, encoding->input->count}, error);
    if (bytes == NULL) {
        put_absent(encoding, field, encoding->input->count);
        return SC_OK;
    }
    if (encoding->body == NULL)
        return plan_bytes(encoding, field, bytes, error);
    write_bytes(encoding, field, bytes);
    return SC_OK;
}

/* ---- the two columns that we make -------------------------------------------------------------------------- */

static void put_offsets(sc_encoding *encoding)
{
    int64_t count = encoding->input->count;
    set_node(encoding, &encoding->layout->fields[encoding->layout->columns[SC_COLUMN_OFFSET]], count, 0);
    take(encoding, 0);
    int64_t *to = (int64_t *)(void *)take(encoding, count * 8);
    if (to == NULL)
        return;
    if (encoding->input->offsets != NULL)
        memcpy(to, encoding->input->offsets, (size_t)count * 8);
    else
        for (int64_t i = 0; i < count; i++)
            to[i] = encoding->base_offset + i;
}

static void put_timestamps(sc_encoding *encoding)
{
    const sc_batch_input *input = encoding->input;
    set_node(encoding, &encoding->layout->fields[encoding->layout->columns[SC_COLUMN_TIMESTAMP]], input->count, 0);
    take(encoding, 0);
    int64_t *to = (int64_t *)(void *)take(encoding, input->count * 8);
    if (to == NULL)
        return;
    if (input->timestamps != NULL)
        memcpy(to, input->timestamps, (size_t)input->count * 8);
    else
        for (int64_t i = 0; i < input->count; i++)
            to[i] = input->timestamp;
}

static void find_times(sc_encoding *encoding)
{
    const sc_batch_input *input = encoding->input;
    encoding->min_timestamp = encoding->max_timestamp = input->timestamp;
    if (input->timestamps == NULL)
        return;
    int64_t low = INT64_MAX, high = INT64_MIN;
    for (int64_t i = 0; i < input->count; i++) {
        low = input->timestamps[i] < low ? input->timestamps[i] : low;
        high = input->timestamps[i] > high ? input->timestamps[i] : high;
    }
    encoding->min_timestamp = low;
    encoding->max_timestamp = high;
}

static int put_columns(sc_encoding *encoding, sc_error *error)
{
    const sc_batch_input *input = encoding->input;
    encoding->next_buffer = 0;
    put_offsets(encoding);
    put_timestamps(encoding);
    int code = put_column(encoding, SC_COLUMN_KEY, input->keys, input->key, error);
    if (code == SC_OK)
        code = put_column(encoding, SC_COLUMN_VALUE, input->values, input->value, error);
    if (code == SC_OK)
        code = put_column(encoding, SC_COLUMN_HEADERS, NULL, input->headers, error);
    return code;
}

/* ---- a message that is compressed already ------------------------------------------------------------------ */

static int plan_message(sc_encoding *encoding, sc_error *error)
{
    const sc_batch_input *input = encoding->input;
    sc_metadata *message = &encoding->message;
    uint32_t opening[2];
    if (input->message_size >= SC_OPENING_SIZE)
        memcpy(opening, input->message, sizeof opening);
    if (input->message_size < SC_OPENING_SIZE || opening[1] > input->message_size - SC_OPENING_SIZE ||
        !sc_metadata_read(input->message + SC_OPENING_SIZE, opening[1], message) ||
        message->body_length > input->message_size - SC_OPENING_SIZE - opening[1] || message->rows != input->count ||
        message->node_count != encoding->layout->field_count)
        return sc_fail(error, SC_INVALID, "a compressed message does not fit the topic's schema");
    return SC_OK;
}

static int plan_message_buffers(sc_encoding *encoding, sc_error *error)
{
    const sc_metadata *message = &encoding->message;
    for (int64_t i = 0; i < message->node_count; i++)
        encoding->nodes[i] = sc_metadata_node(message, i);
    for (int64_t i = 0; i < message->variadic_count; i++)
        encoding->variadic[i] = sc_metadata_variadic(message, i);
    encoding->next_buffer = 0;
    for (int64_t i = 0; i < message->buffer_count; i++) {
        sc_buffer buffer = sc_metadata_buffer(message, i);
        if (buffer.offset < 0 || buffer.length < 0 || buffer.offset > message->body_length - buffer.length)
            return sc_fail(error, SC_INVALID, "a compressed message has a buffer outside its body");
        take(encoding,
             i == OFFSETS_BUFFER && encoding->input->offsets != NULL ? 8 + 8 * encoding->input->count : buffer.length);
    }
    encoding->min_timestamp = encoding->input->min_timestamp;
    encoding->max_timestamp = encoding->input->max_timestamp;
    return SC_OK;
}

/* The offsets of a batch that is rewritten stay uncompressed, as Arrow allows for each buffer: a scan looks for its
 * bounds in them. */
static void write_plain_offsets(sc_encoding *encoding)
{
    static const int64_t uncompressed = -1;
    uint8_t *to = encoding->body + encoding->buffers[OFFSETS_BUFFER].offset;
    memcpy(to, &uncompressed, sizeof uncompressed);
    memcpy(to + sizeof uncompressed, encoding->input->offsets, (size_t)encoding->input->count * 8);
}

static void write_message_buffers(sc_encoding *encoding)
{
    const uint8_t *opening = encoding->input->message;
    uint32_t metadata_size;
    memcpy(&metadata_size, opening + 4, sizeof metadata_size);
    const uint8_t *body = opening + SC_OPENING_SIZE + metadata_size;
    for (int64_t i = 0; i < encoding->message.buffer_count; i++) {
        sc_buffer from = sc_metadata_buffer(&encoding->message, i);
        if (i == OFFSETS_BUFFER && encoding->input->offsets != NULL)
            write_plain_offsets(encoding);
        else if (from.length > 0)
            memcpy(encoding->body + encoding->buffers[i].offset, body + from.offset, (size_t)from.length);
    }
}

/* ---- the whole --------------------------------------------------------------------------------------------- */

static int plan_columns(sc_encoding *encoding, sc_error *error)
{
    find_times(encoding);
    int code = put_columns(encoding, error);
    for (int32_t i = 0; i < encoding->next_buffer; i++)
        if (encoding->buffers[i].offset == ZERO_RUN)
            encoding->buffers[i].offset = encoding->body_size;
    encoding->body_size += sc_align(encoding->zeros_size);
    for (int32_t i = 0; code == SC_OK && i < encoding->layout->field_count; i++)
        if (encoding->nodes[i].length > SC_BATCH_BYTES_MAX) /* of values that take no bytes */
            code = sc_fail(error, SC_TOO_LARGE, "a batch holds at most 2 GiB, and as many nested values");
    return code;
}

static int plan(sc_encoding *encoding, const sc_layout *layout, const sc_batch_input *input, int64_t max_record_bytes,
                sc_error *error)
{
    *encoding = (sc_encoding){.layout = layout, .input = input, .max_record_bytes = max_record_bytes};
    int code = input->message != NULL ? plan_message(encoding, error) : SC_OK;
    if (code != SC_OK)
        return code;
    int64_t buffers = input->message != NULL ? encoding->message.buffer_count : layout->buffer_count;
    encoding->variadic_count = input->message != NULL ? encoding->message.variadic_count : layout->variadic_count;
    size_t nodes_size = (size_t)layout->field_count * sizeof(sc_node);
    size_t buffers_size = (size_t)buffers * sizeof(sc_buffer);
    encoding->memory = calloc(1, nodes_size + buffers_size + (size_t)encoding->variadic_count * sizeof(int64_t));
    if (encoding->memory == NULL)
        return sc_fail_memory(error);
    encoding->nodes = encoding->memory;
    encoding->buffers = (sc_buffer *)(void *)((uint8_t *)encoding->memory + nodes_size);
    encoding->variadic = (int64_t *)(void *)((uint8_t *)encoding->memory + nodes_size + buffers_size);
    encoding->metadata_size = sc_metadata_size(layout->field_count, buffers, encoding->variadic_count);
    encoding->body_size = SC_HEADER_SIZE;
    code = input->message != NULL ? plan_message_buffers(encoding, error) : plan_columns(encoding, error);
    encoding->total_size = SC_OPENING_SIZE + encoding->metadata_size + encoding->body_size;
    if (code == SC_OK && encoding->total_size > SC_BATCH_BYTES_MAX)
        code = sc_fail(error, SC_TOO_LARGE, "%lld bytes in one batch: it holds at most 2 GiB",
                       (long long)encoding->total_size);
    bool has_headers = input->message != NULL ? input->has_headers : input->headers != NULL;
    int codec = input->message != NULL ? encoding->message.codec : SC_CODEC_NONE;
    encoding->flags = (uint16_t)(codec << SC_FLAG_CODEC_SHIFT | (has_headers ? SC_FLAG_HAS_HEADERS : 0));
    if (code != SC_OK)
        sc_encoding_free(encoding);
    return code;
}

int sc_encoding_plan(sc_encoding *encoding, const sc_layout *layout, const sc_batch_input *input,
                     int64_t max_record_bytes, sc_error *error)
{
    if (input->count <= 0 || input->count > SC_BATCH_ROWS_MAX)
        return sc_fail(error, SC_INVALID, "a batch has 1 to %d rows, not %lld", SC_BATCH_ROWS_MAX,
                       (long long)input->count);
    return plan(encoding, layout, input, max_record_bytes, error);
}

int64_t sc_encoding_empty_size(const sc_layout *layout)
{
    return SC_OPENING_SIZE + layout->metadata_size + SC_HEADER_SIZE +
           SC_ALIGNMENT; /* the first offset of each column */
}

int sc_encoding_plan_empty(sc_encoding *encoding, const sc_layout *layout, int64_t size, sc_error *error)
{
    static const sc_batch_input nothing;
    assert(size >= sc_encoding_empty_size(layout) && size % SC_ALIGNMENT == 0);
    if (size > SC_BATCH_BYTES_MAX)
        return sc_fail(error, SC_TOO_LARGE, "%lld bytes in one batch: it holds at most 2 GiB", (long long)size);
    int code = plan(encoding, layout, &nothing, 0, error);
    if (code != SC_OK)
        return code;
    encoding->padding = size - encoding->total_size;
    encoding->body_size += encoding->padding;
    encoding->total_size = size;
    return SC_OK;
}

static void write_metadata(const sc_encoding *encoding, uint8_t *at)
{
    const sc_layout *layout = encoding->layout;
    int64_t nodes = layout->field_count;
    int64_t buffers = layout->buffer_count;
    if (encoding->input->message == NULL) {
        memcpy(at, layout->metadata_template, (size_t)layout->metadata_size);
    } else {
        buffers = encoding->message.buffer_count;
        sc_metadata_write(at, encoding->message.codec, nodes, buffers, encoding->variadic_count);
        memcpy(at + sc_metadata_variadic_at(nodes, buffers), encoding->variadic, (size_t)encoding->variadic_count * 8);
    }
    memcpy(at + SC_METADATA_BODY_LENGTH, &encoding->body_size, 8);
    memcpy(at + SC_METADATA_ROWS, &encoding->input->count, 8);
    memcpy(at + SC_METADATA_NODES, encoding->nodes, (size_t)nodes * sizeof(sc_node));
    memcpy(at + sc_metadata_buffers_at(nodes), encoding->buffers, (size_t)buffers * sizeof(sc_buffer));
}

static uint32_t checksum(const sc_encoding *encoding, const uint8_t *at, const sc_header *header)
{
    static const uint8_t zeros[4096];
    sc_header stored = *header;
    stored.total_size -= encoding->padding;
    uint32_t crc = sc_batch_checksum(at, &stored);
    for (int64_t left = encoding->padding; left > 0; left -= (int64_t)sizeof zeros)
        crc = sc_crc32c(crc, zeros, left < (int64_t)sizeof zeros ? (size_t)left : sizeof zeros);
    return crc;
}

void sc_encoding_write(sc_encoding *encoding, uint8_t *at, const sc_placement *placement)
{
    sc_error unused;
    encoding->base_offset = placement->base_offset;
    encoding->body = at + SC_OPENING_SIZE + encoding->metadata_size;
    if (encoding->input->message != NULL)
        write_message_buffers(encoding);
    else
        (void)put_columns(encoding, &unused);
    write_metadata(encoding, at + SC_OPENING_SIZE);
    bool has_producer = placement->producer_id != SC_NO_PRODUCER;
    bool is_marker = placement->control == SC_CONTROL_COMMIT || placement->control == SC_CONTROL_ABORT;
    int64_t covered = placement->covered > 0 ? placement->covered : encoding->input->count + (is_marker ? 1 : 0);
    bool sparse = covered != encoding->input->count && placement->control == SC_CONTROL_NONE;
    sc_header header = {
        .flags = (uint16_t)(encoding->flags | placement->flags | (sparse ? SC_FLAG_SPARSE : 0)),
        .total_size = encoding->total_size,
        .base_offset = placement->base_offset,
        .last_offset = placement->base_offset + covered - 1,
        .record_count = (int32_t)encoding->input->count,
        .metadata_size = (int32_t)encoding->metadata_size,
        .min_timestamp = encoding->min_timestamp,
        .max_timestamp = encoding->max_timestamp,
        .durable_offset = placement->durable_offset,
        .producer_id = has_producer ? placement->producer_id : -1,
        .producer_epoch = has_producer ? placement->producer_epoch : -1,
        .base_sequence = has_producer ? placement->base_sequence : -1,
        .schema_version = encoding->layout->schema_version,
        .unstable_count = placement->unstable_count,
        .start_offset = placement->start_offset,
        .control = placement->control,
        .transaction_offset = placement->transaction_offset,
    };
    header.body_crc = checksum(encoding, at, &header);
    sc_header_seal(&header);
    memcpy(encoding->body, &header, sizeof header);
}

uint64_t sc_encoding_opening(const sc_encoding *encoding)
{
    return SC_CONTINUATION | (uint64_t)encoding->metadata_size << 32;
}

void sc_encoding_free(sc_encoding *encoding)
{
    free(encoding->memory);
    encoding->memory = NULL;
}
