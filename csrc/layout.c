#include "layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "metadata.h"

int sc_kind_buffers(enum sc_kind kind)
{
    static const int counts[] = {
        [SC_KIND_NULL] = 0,         [SC_KIND_BOOL] = 2,   [SC_KIND_FIXED] = 2, [SC_KIND_BINARY] = 3,
        [SC_KIND_LARGE_BINARY] = 3, [SC_KIND_VIEW] = 2,   [SC_KIND_LIST] = 2,  [SC_KIND_LARGE_LIST] = 2,
        [SC_KIND_FIXED_LIST] = 1,   [SC_KIND_STRUCT] = 1,
    };
    return counts[kind];
}

/* A number at the end of a format string: digits alone, up to INT32_MAX. */
static bool read_width(const char *text, int32_t *width)
{
    int64_t value = 0;
    if (*text == 0)
        return false;
    for (; *text >= '0' && *text <= '9' && value <= INT32_MAX; text++)
        value = value * 10 + (*text - '0');
    *width = (int32_t)value;
    return *text == 0 && value <= INT32_MAX;
}

/* Bytes of "d:precision,scale[,bits]"; 0: it is none. */
static int32_t decimal_width(const char *format)
{
    int precision, scale, bits = 128, end = 0;
    if (sscanf(format, "d:%4d,%4d%n", &precision, &scale, &end) != 2)
        return 0;
    if (format[end] == ',' && !read_width(format + end + 1, &bits))
        return 0;
    if (format[end] != ',' && format[end] != 0)
        return 0;
    return bits == 32 || bits == 64 || bits == 128 || bits == 256 ? bits / 8 : 0;
}

/* Bytes per value of a primitive format string of the C data interface; 0: not one. */
static int32_t primitive_width(const char *format)
{
    static const struct {
        const char *format;
        int32_t width;
    } known[] = {{"c", 1},   {"C", 1},   {"s", 2},   {"S", 2},   {"e", 2},   {"i", 4},   {"I", 4},   {"f", 4},
                 {"l", 8},   {"L", 8},   {"g", 8},   {"tdD", 4}, {"tdm", 8}, {"tts", 4}, {"ttm", 4}, {"ttu", 8},
                 {"ttn", 8}, {"tDs", 8}, {"tDm", 8}, {"tDu", 8}, {"tDn", 8}, {"tiM", 4}, {"tiD", 8}, {"tin", 16}};
    if (format[0] == 'd')
        return decimal_width(format);
    if (format[0] == 't' && format[1] == 's') /* and a time zone */
        return format[2] != 0 && strchr("smun", format[2]) != NULL && format[3] == ':' ? 8 : 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(format, known[i].format) == 0)
            return known[i].width;
    return 0;
}

static int field_of_format(const char *format, sc_field *field)
{
    int32_t width;
    if ((field->width = primitive_width(format)) > 0)
        field->kind = SC_KIND_FIXED;
    else if (strcmp(format, "n") == 0)
        field->kind = SC_KIND_NULL;
    else if (strcmp(format, "b") == 0)
        field->kind = SC_KIND_BOOL;
    else if (strcmp(format, "z") == 0 || strcmp(format, "u") == 0)
        field->kind = SC_KIND_BINARY;
    else if (strcmp(format, "Z") == 0 || strcmp(format, "U") == 0)
        field->kind = SC_KIND_LARGE_BINARY;
    else if (strcmp(format, "vz") == 0 || strcmp(format, "vu") == 0)
        field->kind = SC_KIND_VIEW;
    else if (strcmp(format, "+l") == 0 || strcmp(format, "+m") == 0)
        field->kind = SC_KIND_LIST;
    else if (strcmp(format, "+L") == 0)
        field->kind = SC_KIND_LARGE_LIST;
    else if (strcmp(format, "+s") == 0)
        field->kind = SC_KIND_STRUCT;
    else if (strncmp(format, "w:", 2) == 0 && read_width(format + 2, &width))
        *field = (sc_field){.kind = SC_KIND_FIXED, .width = width};
    else if (strncmp(format, "+w:", 3) == 0 && read_width(format + 3, &width))
        *field = (sc_field){.kind = SC_KIND_FIXED_LIST, .width = width};
    else
        return SC_INVALID;
    return SC_OK;
}

/* Counts, and checks what the C data interface leaves unchecked. */
static int count_fields(const struct ArrowSchema *schema, int depth, int32_t *count, sc_error *error)
{
    if (schema == NULL || schema->format == NULL || schema->n_children < 0 ||
        (schema->n_children > 0 && schema->children == NULL))
        return sc_fail(error, SC_INVALID, "the schema lacks a field, or a field its format");
    if (depth > SC_DEPTH_MAX)
        return sc_fail(error, SC_INVALID, "the schema nests deeper than %d levels", SC_DEPTH_MAX);
    if (++*count > SC_FIELDS_MAX)
        return sc_fail(error, SC_INVALID, "the schema has more than %d fields", SC_FIELDS_MAX);
    for (int64_t i = 0; i < schema->n_children; i++) {
        int code = count_fields(schema->children[i], depth + 1, count, error);
        if (code != SC_OK)
            return code;
    }
    return SC_OK;
}

static int compile_field(sc_layout *layout, const struct ArrowSchema *schema, int64_t per_row, sc_error *error);

/* `per_row`: how many values of this field a row of the batch, or of the list around it, has. */
static int compile_children(sc_layout *layout, const struct ArrowSchema *schema, int32_t index, int64_t per_row,
                            sc_error *error)
{
    const sc_field *field = &layout->fields[index];
    int64_t below = per_row;
    if (field->kind == SC_KIND_LIST || field->kind == SC_KIND_LARGE_LIST)
        below = 1;
    if (field->kind == SC_KIND_FIXED_LIST)
        below = per_row * field->width;
    if (below > SC_BATCH_BYTES_MAX || (field->kind == SC_KIND_FIXED && per_row * field->width > SC_BATCH_BYTES_MAX))
        return sc_fail(error, SC_INVALID, "one value of the field %s is larger than a batch may be",
                       schema->name ? schema->name : "?");
    for (int64_t i = 0; i < schema->n_children; i++) {
        int code = compile_field(layout, schema->children[i], below, error);
        if (code != SC_OK)
            return code;
    }
    layout->fields[index].end = layout->field_count;
    return SC_OK;
}

static int compile_field(sc_layout *layout, const struct ArrowSchema *schema, int64_t per_row, sc_error *error)
{
    int32_t index = layout->field_count++;
    sc_field *field = &layout->fields[index];
    if (schema->dictionary != NULL || field_of_format(schema->format, field) != SC_OK)
        return sc_fail(error, SC_INVALID, "the field %s has the type '%s', which a topic cannot store",
                       schema->name ? schema->name : "?", schema->format);
    bool one_child =
        field->kind == SC_KIND_LIST || field->kind == SC_KIND_LARGE_LIST || field->kind == SC_KIND_FIXED_LIST;
    if (field->kind != SC_KIND_STRUCT && schema->n_children != one_child)
        return sc_fail(error, SC_INVALID, "the field %s has %lld children", schema->name ? schema->name : "?",
                       (long long)schema->n_children);
    field->buffer = layout->buffer_count;
    layout->buffer_count += sc_kind_buffers(field->kind);
    if (field->kind == SC_KIND_VIEW) {
        field->variadic = layout->variadic_count++;
        layout->buffer_count++;
    }
    field->children = (int32_t)schema->n_children;
    return compile_children(layout, schema, index, per_row, error);
}

static int compile_columns(sc_layout *layout, const struct ArrowSchema *schema, sc_error *error)
{
    if (schema->format == NULL || strcmp(schema->format, "+s") != 0 || schema->n_children != SC_COLUMNS ||
        schema->children == NULL)
        return sc_fail(error, SC_INVALID, "a topic's schema has the columns offset, timestamp, key, value, headers");
    int32_t count = 0;
    for (int i = 0; i < SC_COLUMNS; i++) {
        int code = count_fields(schema->children[i], 1, &count, error);
        if (code != SC_OK)
            return code;
    }
    layout->fields = calloc((size_t)count, sizeof *layout->fields);
    if (layout->fields == NULL)
        return sc_fail_memory(error);
    for (int i = 0; i < SC_COLUMNS; i++) {
        layout->columns[i] = layout->field_count;
        int code = compile_field(layout, schema->children[i], 1, error);
        if (code != SC_OK)
            return code;
    }
    const sc_field *offset = &layout->fields[layout->columns[SC_COLUMN_OFFSET]];
    const sc_field *timestamp = &layout->fields[layout->columns[SC_COLUMN_TIMESTAMP]];
    const sc_field *key = &layout->fields[layout->columns[SC_COLUMN_KEY]];
    if (offset->kind != SC_KIND_FIXED || offset->width != 8 || timestamp->kind != SC_KIND_FIXED ||
        timestamp->width != 8 || key->kind != SC_KIND_BINARY)
        return sc_fail(error, SC_INVALID, "offset and timestamp are 64-bit and key is binary");
    layout->plain = layout->fields[layout->columns[SC_COLUMN_VALUE]].kind == SC_KIND_BINARY;
    return SC_OK;
}

int sc_layout_new(const struct ArrowSchema *schema, const uint8_t *message, int64_t message_size,
                  int64_t partition_digits_at, uint32_t schema_version, sc_layout **out, sc_error *error)
{
    if (message_size % SC_ALIGNMENT != 0 || partition_digits_at < 8 || partition_digits_at + 10 > message_size)
        return sc_fail(error, SC_INVALID, "the schema message is not of the form that a segment needs");
    sc_layout *layout = calloc(1, sizeof *layout);
    if (layout == NULL)
        return sc_fail_memory(error);
    layout->schema_version = schema_version;
    layout->schema_message_size = message_size;
    layout->partition_digits_at = partition_digits_at;
    int code = compile_columns(layout, schema, error);
    if (code == SC_OK) {
        layout->metadata_size = sc_metadata_size(layout->field_count, layout->buffer_count, layout->variadic_count);
        layout->metadata_template = malloc((size_t)layout->metadata_size);
        layout->schema_message = malloc((size_t)message_size);
        if (layout->metadata_template == NULL || layout->schema_message == NULL)
            code = sc_fail_memory(error);
    }
    if (code != SC_OK) {
        sc_layout_free(layout);
        return code;
    }
    memcpy(layout->schema_message, message, (size_t)message_size);
    sc_metadata_write(layout->metadata_template, SC_CODEC_NONE, layout->field_count, layout->buffer_count,
                      layout->variadic_count);
    *out = layout;
    return SC_OK;
}

void sc_layout_free(sc_layout *layout)
{
    if (layout == NULL)
        return;
    free(layout->fields);
    free(layout->schema_message);
    free(layout->metadata_template);
    free(layout);
}

bool sc_layout_is_plain(const sc_layout *layout)
{
    return layout->plain;
}

void sc_layout_schema_message(const sc_layout *layout, uint32_t partition, uint8_t *out)
{
    char digits[11];
    snprintf(digits, sizeof digits, "%010u", (unsigned)partition);
    memcpy(out, layout->schema_message, (size_t)layout->schema_message_size);
    memcpy(out + layout->partition_digits_at, digits, 10);
}
