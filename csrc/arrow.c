/*
 * Batches out through the Arrow C data and C stream interfaces. The arrays' buffers are the mapped file.
 *
 * One block of memory holds all ArrowArray structs of a batch, their child lists and buffer lists. Every array in it
 * can be released on its own (the interface lets consumers move children out), so each counts as one reference to the
 * block, and the last one gives back the mapping.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "control.h"
#include "error.h"
#include "mapping.h"
#include "os.h"

enum { VIEW_BUFFERS = 4 }; /* validity, views, one variadic buffer, sizes; more for messages of other writers */

typedef struct block {
    atomic_int references;
    sc_mapping *mapping;
    struct ArrowArray *next_array;
    struct ArrowArray **next_child;
    const void **next_buffer;
    uint8_t *next_byte; /* values that do not lie in the file: merged validity, partition numbers, view sizes */
} block;

/* What is needed to turn one message into arrays. */
typedef struct exporter {
    const sc_batch *batch;
    const sc_layout *layout;
    sc_metadata metadata;
    const uint8_t *body;
    int64_t bytes; /* of the buffers handed out */
    block *block;
    int32_t *first_buffer; /* of each view node, when the message has other variadic counts than ours */
    const char *path;
    sc_error *error;
} exporter;

static int bad(exporter *self, const char *what)
{
    return sc_fail_at(self->error, SC_CORRUPT, "", self->batch->base_offset, self->batch->position, what);
}

/* ---- buffers ----------------------------------------------------------------------------------------------- */

/* The address of a buffer that must have at least `needed` bytes; an absent one is NULL when that is allowed. */
static int get_buffer(exporter *self, int64_t number, int64_t needed, bool optional, const void **out)
{
    if (number >= self->metadata.buffer_count)
        return bad(self, "the batch has too few buffers");
    sc_buffer buffer = sc_metadata_buffer(&self->metadata, number);
    if ((buffer.offset < 0 || buffer.length < 0 || buffer.offset > self->metadata.body_length - buffer.length ||
         buffer.offset % 8 != 0) &&
        !SC_CONTROL(stored_buffers_not_checked))
        return bad(self, "a buffer lies outside the batch");
    self->bytes += buffer.length;
    if (optional && buffer.length == 0) {
        *out = NULL;
        return SC_OK;
    }
    if (buffer.length < needed)
        return bad(self, "a buffer is shorter than its column");
    *out = self->body + buffer.offset;
    return SC_OK;
}

static int64_t buffer_length(const exporter *self, int64_t number)
{
    return sc_metadata_buffer(&self->metadata, number).length;
}

static int read_node(exporter *self, int32_t index, sc_node *node)
{
    if (index >= self->metadata.node_count)
        return bad(self, "the batch has too few columns");
    *node = sc_metadata_node(&self->metadata, index);
    if (node->length < 0 || node->length > SC_BATCH_BYTES_MAX || node->null_count < 0 ||
        node->null_count > node->length)
        return bad(self, "a column has an impossible length");
    return SC_OK;
}

/* Arrow's readers do not look at the validity of a column that has no nulls by its count, whatever lies there. So
 * neither do these: one batch has one reading. */
static int get_validity(exporter *self, const sc_field *field, const sc_node *node, const void **out)
{
    int code = get_buffer(self, field->buffer, (node->length + 7) / 8, true, out);
    if (code == SC_OK && node->null_count > 0 && *out == NULL)
        return bad(self, "a column has nulls but no validity");
    if (node->null_count == 0)
        *out = NULL;
    return code;
}

/* That of a whole column, which is as long as the batch. */
static int column_validity(exporter *self, int column, const void **out)
{
    int32_t index = self->layout->columns[column];
    sc_node node = {0};
    int code = read_node(self, index, &node);
    if (code == SC_OK && node.length != self->batch->record_count)
        return bad(self, "a column is not as long as the batch");
    return code != SC_OK ? code : get_validity(self, &self->layout->fields[index], &node, out);
}

/* ---- arrays ------------------------------------------------------------------------------------------------ */

static void release_array(struct ArrowArray *array)
{
    for (int64_t i = 0; i < array->n_children; i++)
        if (array->children[i]->release != NULL)
            array->children[i]->release(array->children[i]);
    block *owner = array->private_data;
    array->release = NULL;
    if (atomic_fetch_sub_explicit(&owner->references, 1, memory_order_acq_rel) == 1) {
        sc_mapping_release(owner->mapping);
        free(owner);
    }
}

static struct ArrowArray *new_array(block *owner, int64_t length, int64_t buffers, int64_t children)
{
    struct ArrowArray *array = owner->next_array++;
    *array = (struct ArrowArray){
        .length = length,
        .n_buffers = buffers,
        .n_children = children,
        .buffers = owner->next_buffer,
        .children = children > 0 ? owner->next_child : NULL,
        .release = release_array,
        .private_data = owner,
    };
    owner->next_buffer += buffers;
    owner->next_child += children;
    atomic_fetch_add_explicit(&owner->references, 1, memory_order_relaxed);
    return array;
}

static int export_field(exporter *self, int32_t index, struct ArrowArray **out);

static int export_offsets(exporter *self, const sc_field *field, int64_t length, struct ArrowArray *array,
                          int64_t *last)
{
    bool large = field->kind == SC_KIND_LARGE_BINARY || field->kind == SC_KIND_LARGE_LIST;
    int width = large ? 8 : 4;
    const void **ends = &array->buffers[1];
    int code = get_buffer(self, field->buffer + 1, (length + 1) * width, length == 0, ends);
    *last = 0;
    if (code != SC_OK || *ends == NULL)
        return code;
    int64_t first = large ? ((const int64_t *)*ends)[0] : ((const int32_t *)*ends)[0];
    *last = large ? ((const int64_t *)*ends)[length] : ((const int32_t *)*ends)[length];
    return first >= 0 && first <= *last ? SC_OK : bad(self, "the offsets of a column go back");
}

static int export_views(exporter *self, const sc_field *field, int64_t length, struct ArrowArray *array)
{
    int code = get_buffer(self, field->buffer + 1, length * 16, false, &array->buffers[1]);
    if (code == SC_OK)
        code = get_buffer(self, field->buffer + 2, 0, false, &array->buffers[2]);
    if (code != SC_OK)
        return code;
    int64_t size = buffer_length(self, field->buffer + 2);
    memcpy(self->block->next_byte, &size, sizeof size);
    array->buffers[3] = self->block->next_byte;
    self->block->next_byte += sizeof size;
    return SC_OK;
}

static int export_children(exporter *self, int32_t index, struct ArrowArray *array, int64_t length)
{
    const sc_field *field = &self->layout->fields[index];
    int32_t child = index + 1;
    for (int32_t i = 0; i < field->children; i++) {
        array->children[i] = NULL;
        int code = export_field(self, child, &array->children[i]);
        if (code != SC_OK)
            return code;
        if (array->children[i]->length < length)
            return bad(self, "a nested column is shorter than its parent");
        child = self->layout->fields[child].end;
    }
    return SC_OK;
}

/* Those behind the validity. */
static int export_buffers(exporter *self, int32_t index, struct ArrowArray *array, int64_t length)
{
    const sc_field *field = &self->layout->fields[index];
    int64_t last, needed;
    int code;
    switch (field->kind) {
    case SC_KIND_NULL:
        return SC_OK;
    case SC_KIND_BOOL:
    case SC_KIND_FIXED:
        needed = field->kind == SC_KIND_BOOL ? (length + 7) / 8 : length * field->width;
        return get_buffer(self, field->buffer + 1, needed, false, &array->buffers[1]);
    case SC_KIND_BINARY:
    case SC_KIND_LARGE_BINARY:
        code = export_offsets(self, field, length, array, &last);
        return code != SC_OK ? code : get_buffer(self, field->buffer + 2, last, false, &array->buffers[2]);
    case SC_KIND_VIEW:
        return export_views(self, field, length, array);
    case SC_KIND_LIST:
    case SC_KIND_LARGE_LIST:
        code = export_offsets(self, field, length, array, &last);
        return code != SC_OK ? code : export_children(self, index, array, last);
    default:
        needed = field->kind == SC_KIND_FIXED_LIST ? length * field->width : length;
        return export_children(self, index, array, needed);
    }
}

static int export_field(exporter *self, int32_t index, struct ArrowArray **out)
{
    const sc_field *field = &self->layout->fields[index];
    sc_node node;
    int code = read_node(self, index, &node);
    if (code != SC_OK)
        return code;
    int buffers = field->kind == SC_KIND_VIEW ? VIEW_BUFFERS : sc_kind_buffers(field->kind);
    struct ArrowArray *array = new_array(self->block, node.length, buffers, field->children);
    *out = array;
    array->null_count = node.null_count;
    for (int32_t i = 0; i < field->children; i++)
        array->children[i] = NULL;
    code = buffers == 0 ? SC_OK : get_validity(self, field, &node, &array->buffers[0]);
    return code != SC_OK ? code : export_buffers(self, index, array, node.length);
}

static int32_t child_of(const sc_layout *layout, int32_t index, int32_t number)
{
    assert(number >= 0 && number < layout->fields[index].children);
    for (index++; number > 0; number--)
        index = layout->fields[index].end;
    return index;
}

static int32_t field_of_column(const sc_layout *layout, const sc_column *column)
{
    int32_t index = layout->columns[column->column];
    for (int32_t level = 0; level < column->depth; level++)
        index = child_of(layout, index, column->path[level]);
    return index;
}

/* A column inside structs: where a struct is null, so is the column. */
static int merge_validity(exporter *self, const sc_column *column, struct ArrowArray *array)
{
    int32_t index = self->layout->columns[column->column];
    int64_t bytes = (array->length + 7) / 8;
    uint8_t *merged = NULL;
    if (array->n_buffers == 0) /* a column of the null type has no validity */
        return SC_OK;
    for (int32_t level = 0; level < column->depth; level++) {
        const sc_field *field = &self->layout->fields[index];
        const void *validity;
        sc_node node;
        int code = read_node(self, index, &node);
        if (code == SC_OK)
            code = get_validity(self, field, &node, &validity);
        if (code != SC_OK)
            return code;
        if (node.length != array->length)
            return bad(self, "a nested column is not as long as its parent");
        if (validity != NULL && merged == NULL) {
            merged = self->block->next_byte;
            self->block->next_byte += sc_align(bytes);
            if (array->buffers[0] == NULL)
                memset(merged, 0xff, (size_t)bytes);
            else
                memcpy(merged, array->buffers[0], (size_t)bytes);
        }
        for (int64_t i = 0; validity != NULL && i < bytes; i++)
            merged[i] &= ((const uint8_t *)validity)[i];
        index = child_of(self->layout, index, column->path[level]);
    }
    if (merged != NULL) {
        array->buffers[0] = merged;
        array->null_count = -1;
    }
    return SC_OK;
}

static int export_partition(exporter *self, struct ArrowArray **out)
{
    int64_t rows = self->batch->row_count;
    struct ArrowArray *array = new_array(self->block, rows, 2, 0);
    int32_t *numbers = (int32_t *)(void *)self->block->next_byte;
    self->block->next_byte += sc_align(rows * 4);
    for (int64_t i = 0; i < rows; i++)
        numbers[i] = (int32_t)self->batch->partition;
    array->buffers[0] = NULL;
    array->buffers[1] = numbers;
    *out = array;
    return SC_OK;
}

static int export_column(exporter *self, const sc_column *column, struct ArrowArray **out)
{
    const sc_batch *batch = self->batch;
    if (column->column == SC_COLUMN_PARTITION)
        return export_partition(self, out);
    int code = export_field(self, field_of_column(self->layout, column), out);
    if (code != SC_OK)
        return code;
    struct ArrowArray *array = *out;
    if (array->length != batch->record_count)
        return bad(self, "a column is not as long as the batch");
    if (column->depth > 0) {
        code = merge_validity(self, column, array);
        if (code != SC_OK)
            return code;
    }
    if (batch->row_count != batch->record_count) {
        array->offset = batch->first_row;
        array->length = batch->row_count;
        if (array->null_count != 0 && self->layout->fields[field_of_column(self->layout, column)].kind == SC_KIND_NULL)
            array->null_count = array->length;
        else if (array->null_count != 0)
            array->null_count = -1;
    }
    return SC_OK;
}

/* ---- one batch --------------------------------------------------------------------------------------------- */

typedef struct needs {
    int64_t arrays, children, buffers, bytes;
} needs;

static needs count_needs(const sc_batch *batch, const sc_column *columns, int64_t column_count)
{
    needs total = {.arrays = 1, .children = column_count, .buffers = 1};
    const sc_layout *layout = batch->layout;
    for (int64_t i = 0; i < column_count; i++) {
        if (columns[i].column == SC_COLUMN_PARTITION) {
            total.arrays++;
            total.buffers += 2;
            total.bytes += sc_align(batch->row_count * 4);
            continue;
        }
        int32_t from = field_of_column(layout, &columns[i]);
        for (int32_t index = from; index < layout->fields[from].end; index++) {
            bool view = layout->fields[index].kind == SC_KIND_VIEW;
            total.arrays++;
            total.children += layout->fields[index].children;
            total.buffers += view ? VIEW_BUFFERS : sc_kind_buffers(layout->fields[index].kind);
            total.bytes += view ? SC_ALIGNMENT : 0;
        }
        total.bytes += columns[i].depth > 0 ? sc_align((batch->record_count + 7) / 8) : 0;
    }
    return total;
}

static block *new_block(const sc_batch *batch, needs need)
{
    size_t head = (size_t)sc_align(sizeof(block));
    size_t arrays = (size_t)need.arrays * sizeof(struct ArrowArray);
    size_t children = (size_t)need.children * sizeof(void *), buffers = (size_t)need.buffers * sizeof(void *);
    size_t lists = (size_t)sc_align((int64_t)(head + arrays + children + buffers));
    uint8_t *memory = malloc(lists + (size_t)need.bytes + SC_ALIGNMENT);
    if (memory == NULL)
        return NULL;
    block *self = (block *)(void *)memory;
    atomic_init(&self->references, 0);
    self->mapping = batch->mapping;
    if (!SC_CONTROL(mapping_not_retained))
        sc_mapping_retain(batch->mapping);
    self->next_array = (struct ArrowArray *)(void *)(memory + head);
    self->next_child = (struct ArrowArray **)(void *)(memory + head + arrays);
    self->next_buffer = (const void **)(void *)(memory + head + arrays + children);
    self->next_byte = memory + lists;
    return self;
}

static int open_message(exporter *self)
{
    const sc_batch *batch = self->batch;
    uint32_t metadata_size;
    memcpy(&metadata_size, batch->message + 4, sizeof metadata_size);
    if (!sc_metadata_read(batch->message + SC_OPENING_SIZE, metadata_size, &self->metadata) ||
        self->metadata.body_length > batch->message_size - SC_OPENING_SIZE - metadata_size ||
        self->metadata.rows != batch->record_count)
        return bad(self, "the batch's Arrow metadata is not valid");
    if (self->metadata.codec != SC_CODEC_NONE)
        return sc_fail(self->error, SC_INVALID, "a compressed batch cannot be read in place");
    if (self->metadata.node_count != batch->layout->field_count ||
        self->metadata.buffer_count != batch->layout->buffer_count)
        return bad(self, "the batch does not have the columns of its schema");
    self->body = batch->message + SC_OPENING_SIZE + metadata_size;
    return SC_OK;
}

/* ---- reads that a broken drive or a file cut short may stop ----------------------------------------------------- */

typedef struct guarded {
    exporter self;
    int code;
    const sc_column *columns; /* of an export */
    int64_t column_count;
    struct ArrowArray *array;
    sc_rows *rows;        /* of rows */
    const int64_t *times; /* of narrowing */
    int64_t min_timestamp, max_timestamp, first, last, wanted;
    sc_rows *copy; /* of copying */
    void *memory;
    int64_t size;
} guarded;

static int run_guarded(guarded *call, void (*function)(void *))
{
    const sc_batch *batch = call->self.batch;
    if (sc_os_read_mapped(batch->message, (size_t)batch->message_size, function, call))
        return call->code;
    sc_fail_at(call->self.error, SC_OS, "", batch->base_offset, batch->position,
               "the file cannot be read here (input/output error, or it was cut short)");
    call->self.error->number = EIO;
    return SC_OS;
}

static void export_batch(void *context)
{
    guarded *call = context;
    exporter *self = &call->self;
    call->code = open_message(self);
    if (call->code != SC_OK)
        return;
    self->block = new_block(self->batch, count_needs(self->batch, call->columns, call->column_count));
    if (self->block == NULL) {
        call->code = sc_fail_memory(self->error);
        return;
    }
    struct ArrowArray *root = new_array(self->block, self->batch->row_count, 1, call->column_count);
    root->buffers[0] = NULL;
    root->null_count = 0;
    for (int64_t i = 0; i < call->column_count; i++)
        root->children[i] = NULL;
    for (int64_t i = 0; call->code == SC_OK && i < call->column_count; i++)
        call->code = export_column(self, &call->columns[i], &root->children[i]);
    *call->array = *root;
}

int sc_batch_export(const sc_batch *batch, const sc_column *columns, int64_t column_count, int64_t *bytes_exported,
                    struct ArrowArray *out, sc_error *error)
{
    struct ArrowArray array;
    guarded call = {.self = {.batch = batch, .layout = batch->layout, .error = error},
                    .columns = columns,
                    .column_count = column_count,
                    .array = &array};
    int code = run_guarded(&call, export_batch);
    if (code != SC_OK) {
        if (call.self.block != NULL) {
            sc_mapping_release(call.self.block->mapping);
            free(call.self.block);
        }
        return code;
    }
    *bytes_exported += call.self.bytes;
    *out = array;
    return SC_OK;
}

/* ---- plain rows -------------------------------------------------------------------------------------------- */

/* Whether `count` + 1 offsets are not negative and never step back; without a branch, so that it is vectorised. */
static bool ends_ascend(const int32_t *ends, int64_t count)
{
    uint32_t signs = (uint32_t)ends[0];
    for (int64_t i = 0; i < count; i++)
        signs |= (uint32_t)ends[i + 1] | ((uint32_t)ends[i + 1] - (uint32_t)ends[i]);
    return signs >> 31 == 0;
}

static int read_binary(exporter *self, int column, const uint8_t **validity, const int32_t **ends,
                       const uint8_t **bytes, int64_t *size)
{
    const sc_field *field = &self->layout->fields[self->layout->columns[column]];
    int64_t count = self->batch->record_count;
    const void *buffers[3];
    int code = column_validity(self, column, &buffers[0]);
    if (code == SC_OK)
        code = get_buffer(self, field->buffer + 1, (count + 1) * 4, false, &buffers[1]);
    if (code == SC_OK)
        code = get_buffer(self, field->buffer + 2, 0, false, &buffers[2]);
    if (code != SC_OK)
        return code;
    *validity = buffers[0];
    *ends = buffers[1];
    *bytes = buffers[2];
    *size = buffer_length(self, field->buffer + 2);
    if (!ends_ascend(*ends, count))
        return bad(self, "the offsets of a column go back");
    return (*ends)[count] <= *size ? SC_OK : bad(self, "the offsets of a column reach outside it");
}

static int read_fixed(exporter *self, int column, const int64_t **values)
{
    const sc_field *field = &self->layout->fields[self->layout->columns[column]];
    const void *found = NULL;
    int code = get_buffer(self, field->buffer + 1, self->batch->record_count * 8, false, &found);
    *values = found;
    return code;
}

static void read_rows(void *context)
{
    guarded *call = context;
    exporter *self = &call->self;
    sc_rows *rows = call->rows;
    int code = open_message(self);
    if (code == SC_OK)
        code = read_fixed(self, SC_COLUMN_OFFSET, &rows->offsets);
    if (code == SC_OK)
        code = read_fixed(self, SC_COLUMN_TIMESTAMP, &rows->timestamps);
    if (code == SC_OK)
        code = read_binary(self, SC_COLUMN_KEY, &rows->key_validity, &rows->key_ends, &rows->keys, &rows->keys_size);
    if (code == SC_OK)
        code = read_binary(self, SC_COLUMN_VALUE, &rows->value_validity, &rows->value_ends, &rows->values,
                           &rows->values_size);
    rows->count = self->batch->record_count;
    call->code = code;
}

static void read_keys(void *context)
{
    guarded *call = context;
    exporter *self = &call->self;
    sc_rows *rows = call->rows;
    const sc_field *value = &self->layout->fields[self->layout->columns[SC_COLUMN_VALUE]];
    const void *validity = NULL;
    int code = value->kind == SC_KIND_NULL /* it has no buffers: what lies in their place is of the next column */
                   ? sc_fail(self->error, SC_INVALID, "values of the null type do not say which are tombstones")
                   : open_message(self);
    if (code == SC_OK)
        code = read_fixed(self, SC_COLUMN_OFFSET, &rows->offsets);
    if (code == SC_OK)
        code = read_fixed(self, SC_COLUMN_TIMESTAMP, &rows->timestamps);
    if (code == SC_OK)
        code = read_binary(self, SC_COLUMN_KEY, &rows->key_validity, &rows->key_ends, &rows->keys, &rows->keys_size);
    if (code == SC_OK)
        code = column_validity(self, SC_COLUMN_VALUE, &validity);
    rows->value_validity = validity;
    rows->count = self->batch->record_count;
    call->code = code;
}

int sc_batch_keys(const sc_batch *batch, sc_rows *rows, sc_error *error)
{
    guarded call = {.self = {.batch = batch, .layout = batch->layout, .error = error}, .rows = rows};
    *rows = (sc_rows){0};
    return run_guarded(&call, read_keys);
}

int sc_batch_rows(const sc_batch *batch, sc_rows *rows, sc_error *error)
{
    guarded call = {.self = {.batch = batch, .layout = batch->layout, .error = error}, .rows = rows};
    if (!batch->layout->plain)
        return sc_fail(error, SC_INVALID, "the values of a typed topic are not bytes");
    return run_guarded(&call, read_rows);
}

enum { COPIED_ROWS_MAX = 1024, COPIED_BYTES_MAX = 64 << 10 };

static int64_t bytes_of_rows(const sc_rows *rows, int64_t first, int64_t end)
{
    return (int64_t)rows->key_ends[end] - rows->key_ends[first] + rows->value_ends[end] - rows->value_ends[first];
}

/* Which rows fit, and what memory they need. */
static void plan_copy(void *context)
{
    guarded *call = context;
    const sc_rows *rows = call->rows;
    int64_t low = call->wanted, high = call->last;
    if (high > low + COPIED_ROWS_MAX)
        high = low + COPIED_ROWS_MAX;
    low++; /* at least one row */
    while (low < high) {
        int64_t middle = high - (high - low) / 2;
        if (bytes_of_rows(rows, call->first, middle) <= COPIED_BYTES_MAX)
            low = middle;
        else
            high = middle - 1;
    }
    call->last = low;
    call->wanted = bytes_of_rows(rows, call->first, low);
    call->size = (low - call->first) * 24 + 2 * 8 + 2 * 8 + (low - call->first) / 4 + call->wanted;
    call->code = call->wanted >= 0 ? SC_OK : bad(&call->self, "the offsets of a column go back");
}

static const void *copy_block(uint8_t **to, const void *from, int64_t size)
{
    void *made = memcpy(*to, from, (size_t)size);
    *to += size;
    return made;
}

/* The ends stay as they are, so the copied bytes are addressed as if those before them were there, too. */
static void copy_bytes(uint8_t **to, const uint8_t *bytes, const int32_t *ends, int64_t count, const uint8_t **copy)
{
    *copy = *to - ends[0];
    copy_block(to, bytes + ends[0], (int64_t)ends[count] - ends[0]);
}

static void copy_rows(void *context)
{
    guarded *call = context;
    const sc_rows *rows = call->rows;
    sc_rows *copy = call->copy;
    uint8_t *to = call->memory;
    int64_t first = call->first, count = call->last - call->first;
    *copy = (sc_rows){.count = count, .keys_size = rows->keys_size, .values_size = rows->values_size};
    copy->offsets = copy_block(&to, rows->offsets + first, count * 8);
    copy->timestamps = copy_block(&to, rows->timestamps + first, count * 8);
    copy->key_ends = copy_block(&to, rows->key_ends + first, (count + 1) * 4);
    copy->value_ends = copy_block(&to, rows->value_ends + first, (count + 1) * 4);
    if (rows->key_validity != NULL)
        copy->key_validity = copy_block(&to, rows->key_validity + first / 8, (count + 7) / 8);
    if (rows->value_validity != NULL)
        copy->value_validity = copy_block(&to, rows->value_validity + first / 8, (count + 7) / 8);
    if (!ends_ascend(copy->key_ends, count) || !ends_ascend(copy->value_ends, count) ||
        copy->key_ends[count] > rows->keys_size || copy->value_ends[count] > rows->values_size ||
        bytes_of_rows(copy, 0, count) > call->wanted) { /* another process has changed them since they were looked at */
        call->code = bad(&call->self, "the offsets of a column go back");
        return;
    }
    copy_bytes(&to, rows->keys, copy->key_ends, count, &copy->keys);
    copy_bytes(&to, rows->values, copy->value_ends, count, &copy->values);
    call->code = SC_OK;
}

int sc_rows_copy(const sc_batch *batch, const sc_rows *rows, int64_t first, int64_t *end, sc_rows *copy, void **memory,
                 sc_error *error)
{
    sc_rows from = *rows;
    guarded call = {.self = {.batch = batch, .error = error},
                    .rows = &from,
                    .copy = copy,
                    .first = first / 8 * 8,
                    .wanted = first,
                    .last = *end};
    int code = run_guarded(&call, plan_copy);
    if (code != SC_OK)
        return code;
    void *grown = realloc(*memory, (size_t)call.size);
    if (grown == NULL)
        return sc_fail_memory(error);
    *memory = call.memory = grown;
    code = run_guarded(&call, copy_rows);
    *end = call.last;
    return code;
}

/* ---- offsets of rewritten batches ---------------------------------------------------------------------------- */

/* They are never compressed: in a batch that is, -1 stands before them. */
static int find_offsets(exporter *self, const int64_t **offsets)
{
    const sc_batch *batch = self->batch;
    uint32_t metadata_size;
    const void *found = NULL;
    int64_t uncompressed, size = batch->record_count * 8;
    memcpy(&metadata_size, batch->message + 4, sizeof metadata_size);
    if (!sc_metadata_read(batch->message + SC_OPENING_SIZE, metadata_size, &self->metadata) ||
        self->metadata.body_length > batch->message_size - SC_OPENING_SIZE - metadata_size)
        return bad(self, "the batch's Arrow metadata is not valid");
    self->body = batch->message + SC_OPENING_SIZE + metadata_size;
    bool compressed = self->metadata.codec != SC_CODEC_NONE;
    int32_t buffer = self->layout->fields[self->layout->columns[SC_COLUMN_OFFSET]].buffer + 1;
    int code = get_buffer(self, buffer, size + (compressed ? 8 : 0), false, &found);
    if (code != SC_OK)
        return code;
    memcpy(&uncompressed, found, compressed ? sizeof uncompressed : 0);
    if (compressed && uncompressed != -1)
        return bad(self, "the offsets of a rewritten batch are compressed");
    *offsets = (const int64_t *)found + (compressed ? 1 : 0);
    return SC_OK;
}

static int64_t rows_below(const int64_t *offsets, int64_t count, int64_t offset)
{
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (offsets[middle] < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void clip_offsets(void *context)
{
    guarded *call = context;
    const int64_t *offsets;
    call->code = find_offsets(&call->self, &offsets);
    if (call->code != SC_OK)
        return;
    call->first = rows_below(offsets, call->self.batch->record_count, call->min_timestamp);
    call->last = rows_below(offsets, call->self.batch->record_count, call->max_timestamp);
}

int sc_batch_clip_to_offsets(sc_batch *batch, int64_t start_offset, int64_t end_offset, sc_error *error)
{
    guarded call = {.self = {.batch = batch, .layout = batch->layout, .error = error},
                    .min_timestamp = start_offset,
                    .max_timestamp = end_offset};
    int code = run_guarded(&call, clip_offsets);
    if (code != SC_OK)
        return code;
    batch->first_row = call.first;
    batch->row_count = call.last - call.first;
    return SC_OK;
}

static void check_offsets(void *context)
{
    guarded *call = context;
    const sc_batch *batch = call->self.batch;
    const int64_t *offsets;
    int64_t before = batch->base_offset - 1;
    call->code = find_offsets(&call->self, &offsets);
    for (int64_t i = 0; call->code == SC_OK && i < batch->record_count; before = offsets[i++])
        if (offsets[i] <= before || offsets[i] > batch->last_offset)
            call->code = bad(&call->self, "the offsets of the records are not those that the batch covers");
}

int sc_batch_check_offsets(const sc_batch *batch, sc_error *error)
{
    guarded call = {.self = {.batch = batch, .layout = batch->layout, .error = error}};
    return run_guarded(&call, check_offsets);
}

static void find_times(void *context)
{
    guarded *call = context;
    const sc_batch *batch = call->self.batch;
    call->code = open_message(&call->self);
    if (call->code == SC_OK)
        call->code = read_fixed(&call->self, SC_COLUMN_TIMESTAMP, &call->times);
    for (int64_t i = batch->first_row; call->code == SC_OK && i < batch->first_row + batch->row_count; i++) {
        if (call->times[i] < call->min_timestamp || call->times[i] > call->max_timestamp)
            continue;
        call->first = call->first < 0 ? i : call->first;
        call->last = i;
        call->wanted++;
    }
}

int sc_batch_narrow_to_timestamps(sc_batch *batch, int64_t min_timestamp, int64_t max_timestamp, bool *dense,
                                  sc_error *error)
{
    *dense = true;
    if (batch->min_timestamp >= min_timestamp && batch->max_timestamp <= max_timestamp)
        return SC_OK;
    guarded call = {.self = {.batch = batch, .layout = batch->layout, .error = error},
                    .first = -1,
                    .last = -1,
                    .min_timestamp = min_timestamp,
                    .max_timestamp = max_timestamp};
    int code = run_guarded(&call, find_times);
    if (code != SC_OK)
        return code;
    batch->first_row = call.first < 0 ? batch->first_row : call.first;
    batch->row_count = call.first < 0 ? 0 : call.last - call.first + 1;
    *dense = batch->row_count == call.wanted;
    return SC_OK;
}
