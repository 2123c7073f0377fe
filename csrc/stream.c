/* A scan as an Arrow C stream. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "layout.h"
#include "tally.h"

typedef struct stream_state {
    sc_scan *scan;
    sc_column *columns;
    int64_t column_count;
    uint32_t schema_version;
    struct ArrowSchema schema;
    sc_tally *tally;
    char message[SC_PATH_MAX + 400];
} stream_state;

/* ---- copying a schema --------------------------------------------------------------------------------------- */

static void release_schema(struct ArrowSchema *schema)
{
    for (int64_t i = 0; schema->children != NULL && i < schema->n_children; i++) {
        if (schema->children[i] != NULL && schema->children[i]->release != NULL)
            schema->children[i]->release(schema->children[i]);
        free(schema->children[i]);
    }
    free(schema->children);
    free((void *)(uintptr_t)schema->format);
    free((void *)(uintptr_t)schema->name);
    free((void *)(uintptr_t)schema->metadata);
    schema->release = NULL;
}

/* Metadata of the C data interface: int32 pairs, then for each an int32 length and bytes, twice. */
static size_t metadata_size(const char *metadata)
{
    int32_t pairs, length;
    size_t size = sizeof pairs;
    memcpy(&pairs, metadata, sizeof pairs);
    for (int64_t i = 0; i < 2 * (int64_t)pairs; i++) {
        memcpy(&length, metadata + size, sizeof length);
        size += sizeof length + (size_t)length;
    }
    return size;
}

static char *copy_of(const char *from, size_t size)
{
    char *to = malloc(size);
    if (to != NULL)
        memcpy(to, from, size);
    return to;
}

static bool copy_schema(const struct ArrowSchema *from, struct ArrowSchema *to)
{
    *to = (struct ArrowSchema){.flags = from->flags, .n_children = from->n_children, .release = release_schema};
    to->format = copy_of(from->format, strlen(from->format) + 1);
    to->name = from->name == NULL ? NULL : copy_of(from->name, strlen(from->name) + 1);
    to->metadata = from->metadata == NULL ? NULL : copy_of(from->metadata, metadata_size(from->metadata));
    to->children = from->n_children == 0 ? NULL : calloc((size_t)from->n_children, sizeof *to->children);
    bool whole = to->format != NULL && (from->name == NULL || to->name != NULL) &&
                 (from->metadata == NULL || to->metadata != NULL) && (from->n_children == 0 || to->children != NULL);
    for (int64_t i = 0; whole && i < from->n_children; i++) {
        to->children[i] = calloc(1, sizeof **to->children);
        whole = to->children[i] != NULL && copy_schema(from->children[i], to->children[i]);
    }
    if (!whole && to->release != NULL)
        release_schema(to);
    return whole;
}

/* ---- the stream --------------------------------------------------------------------------------------------- */

static int fail_stream(stream_state *self, const sc_error *error)
{
    int used = snprintf(self->message, sizeof self->message, "%s", error->message);
    if (error->path[0] != 0)
        used += snprintf(self->message + used, sizeof self->message - (size_t)used, " (%s", error->path);
    if (error->path[0] != 0 && error->offset >= 0)
        used += snprintf(self->message + used, sizeof self->message - (size_t)used, ", offset %lld, position %lld",
                         (long long)error->offset, (long long)error->position);
    if (error->path[0] != 0)
        snprintf(self->message + used, sizeof self->message - (size_t)used, ")");
    return error->number != 0 ? error->number : EIO;
}

static int stream_get_schema(struct ArrowArrayStream *stream, struct ArrowSchema *out)
{
    stream_state *self = stream->private_data;
    return copy_schema(&self->schema, out) ? 0 : ENOMEM;
}

static int stream_get_next(struct ArrowArrayStream *stream, struct ArrowArray *out)
{
    stream_state *self = stream->private_data;
    sc_batch batch;
    sc_error error;
    int64_t exported = 0;
    int code = sc_scan_next(self->scan, &batch, &error);
    *out = (struct ArrowArray){0};
    if (code == SC_END)
        return 0;
    if (code == SC_OK && batch.schema_version != self->schema_version)
        code = sc_fail(&error, SC_INVALID, "the log has batches of several schema versions");
    if (code == SC_OK)
        code = sc_batch_export(&batch, self->columns, self->column_count, &exported, out, &error);
    sc_tally_add(&self->tally->bytes_exported, exported);
    return code == SC_OK ? 0 : fail_stream(self, &error);
}

static const char *stream_get_last_error(struct ArrowArrayStream *stream)
{
    return ((stream_state *)stream->private_data)->message;
}

static void stream_release(struct ArrowArrayStream *stream)
{
    stream_state *self = stream->private_data;
    if (self->schema.release != NULL)
        self->schema.release(&self->schema);
    sc_scan_free(self->scan);
    sc_tally_release(self->tally);
    free(self->columns);
    free(self);
    stream->release = NULL;
}

int sc_scan_export(sc_scan *scan, const sc_column *columns, int64_t column_count, const struct ArrowSchema *schema,
                   uint32_t schema_version, struct ArrowArrayStream *stream, sc_error *error)
{
    stream_state *self = calloc(1, sizeof *self);
    sc_column *copied = self == NULL ? NULL : malloc((size_t)(column_count + 1) * sizeof *copied);
    if (copied == NULL || !copy_schema(schema, &self->schema)) {
        free(copied);
        free(self);
        sc_scan_free(scan);
        return sc_fail_memory(error);
    }
    memcpy(copied, columns, (size_t)column_count * sizeof *copied);
    self->scan = scan;
    self->tally = sc_scan_tally(scan);
    self->columns = copied;
    self->column_count = column_count;
    self->schema_version = schema_version;
    *stream =
        (struct ArrowArrayStream){stream_get_schema, stream_get_next, stream_get_last_error, stream_release, self};
    return SC_OK;
}
