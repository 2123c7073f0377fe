/*
 * Finding the end of a log in the log itself.
 *
 * Every batch header carries the partition's durable offset of its time. The last header's tells how far the log was
 * surely on the drive, so only what lies behind that is read and checked: about a second of appends, whatever the
 * log's length. Then, batch by batch:
 *
 *   good, and at the expected offset   it stays
 *   anything else                      the log ends here when nothing good follows; otherwise it depends
 *
 * When the last header, or a good batch behind the damage, says that the log was durable beyond it, the damaged bytes
 * had been synced: that is corruption, which stays where it is and is reported by who reads it. So it is when the
 * machine has not gone down since they were written, for then the page cache had them whole; only an append of several
 * batches that was in flight may lack the opening of its first one. Else the machine lost power before they were
 * synced, in whatever order the drive chose: the log is cut there, and what follows it goes too, and is synced away
 * before anything takes its place: what was cut must not come back behind later appends.
 *
 * An append of several batches is flagged so that it is kept whole or not at all. Behind damage that stays, the next
 * append begins a new segment.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "os.h"
#include "topic.h"

typedef struct recovery {
    sc_partition *partition;
    bool repair;
    sc_tail *tail;
    sc_segment **segments; /* a snapshot, retained */
    int64_t count;
    bool doubted;                        /* a sync of it failed under this kernel */
    bool same_boot;                      /* the machine has not gone down since the log was last looked after */
    int64_t noted_durable;               /* as a header says, also one that is cut: what it says was so */
    int64_t durable_offset;              /* everything below it had been synced, or is deleted */
    int64_t start_offset;                /* as far as the log itself says */
    int64_t last_segment, last_position; /* where the last header is that says it; -1: there is none */
    bool removed;                        /* files */
    bool stale;                          /* an object of the snapshot was of a file that had been replaced */
    sc_error *error;
} recovery;

/* A place in the log. */
typedef struct place {
    int64_t segment, position, offset;
    int64_t stable_offset; /* as the batch before this place says; -1: none was seen */
    bool in_append;        /* the batch before this place belongs to an append that goes on */
    int64_t append_position, append_offset, append_stable_offset;
    bool behind_damage; /* nothing good was found yet behind a damaged place */
    int64_t damage_position, damage_offset;
    bool sealed;
    bool damaged; /* damage was seen in this segment, and stays */
    int64_t file_size;
} place;

static int map_segment(recovery *self, int64_t number, bool active, sc_mapping **mapping, sc_error *error)
{
    int code = sc_partition_map_found(self->partition, self->segments[number], active, mapping, error);
    self->stale = self->stale || code == SC_STALE;
    return code;
}

/* Of the file that the object is bound to. */
static int file_size_of(recovery *self, sc_segment *segment, int64_t *size)
{
    sc_file_stat stat = {0};
    int fd = sc_os.open(segment->path, SC_OPEN_READ);
    int code = fd < 0 || sc_os.stat(fd, &stat) != 0 ? sc_fail_os(self->error, "cannot look at a segment", segment->path)
                                                    : SC_OK;
    if (fd >= 0)
        sc_os.close(fd);
    if (code == SC_OK && !sc_segment_is_of(segment, &stat)) { /* its size says nothing of what is mapped */
        sc_partition_forget(self->partition, segment->base_offset);
        self->stale = true;
        return sc_fail(self->error, SC_STALE, "segment %lld was replaced", (long long)segment->base_offset);
    }
    int64_t runs_end = sc_runs_end(segment->runs, self->partition->number, segment->base_offset, stat.size);
    *size = stat.size > runs_end ? stat.size : runs_end;
    return code;
}

/* Maps a segment, and says how far it may be read: a mapping may reach beyond the end of its file. */
static int map_whole(recovery *self, int64_t number, sc_mapping **mapping, int64_t *size)
{
    int code = map_segment(self, number, number == self->count - 1, mapping, self->error);
    if (code != SC_OK)
        return code;
    code = file_size_of(self, self->segments[number], size);
    if (code != SC_OK)
        sc_mapping_release(*mapping);
    return code;
}

/* ---- segments whose making a power loss interrupted --------------------------------------------------------- */

static bool could_become(const sc_layout *layout, uint32_t partition, const uint8_t *found, int64_t size)
{
    uint8_t *wanted = malloc((size_t)layout->schema_message_size);
    if (wanted == NULL)
        return false;
    sc_layout_schema_message(layout, partition, wanted);
    bool could = true, whole = size >= layout->schema_message_size;
    for (int64_t i = 0; could && i < layout->schema_message_size && i < size; i++) {
        could = found[i] == wanted[i] || found[i] == 0;
        whole = whole && found[i] == wanted[i];
    }
    free(wanted);
    return could && !whole;
}

/* Whether batches lie in the file that must not go: had the power been lost before this file was synced, no batch in it
 * could say that one was durable. */
static int holds_promised(recovery *self, const sc_segment *segment, bool *holds)
{
    sc_mapping *mapping;
    sc_header header;
    int64_t file_size;
    int code = sc_mapping_open_with(segment->path, segment->runs, self->partition->number, segment->base_offset, 0,
                                    &mapping, &file_size, self->error);
    *holds = false;
    if (code != SC_OK)
        return code;
    int64_t at = 0;
    while (!*holds && (at = sc_segment_find_good(mapping, at, file_size, &header)) >= 0)
        *holds = self->same_boot || header.durable_offset > segment->base_offset;
    sc_mapping_release(mapping);
    return at == SC_NOT_READABLE ? sc_segment_fail_unreadable(segment, segment->base_offset, -1, self->error) : SC_OK;
}

/* *unfinished: the file is empty, or begins with a part of the schema message and zeros, and holds nothing of worth. */
static int is_unfinished(recovery *self, sc_segment *segment, bool *unfinished)
{
    int64_t size, longest = 0;
    int code = file_size_of(self, segment, &size);
    *unfinished = code == SC_OK && size == 0;
    if (code != SC_OK || size == 0)
        return code;
    const sc_layout *layouts = atomic_load(&self->partition->topic->layouts), *layout;
    for (layout = layouts; layout != NULL; layout = layout->next)
        longest = layout->schema_message_size > longest ? layout->schema_message_size : longest;
    int64_t read = size < longest ? size : longest;
    uint8_t *found = malloc((size_t)read + 1);
    if (found == NULL)
        return sc_fail_memory(self->error);
    int fd = sc_os.open(segment->path, SC_OPEN_READ);
    if (fd < 0 || sc_os_read_whole(fd, found, (size_t)read, 0) != 0)
        code = sc_fail_os(self->error, "cannot read a segment", segment->path);
    for (layout = layouts; code == SC_OK && layout != NULL && !*unfinished; layout = layout->next)
        *unfinished = could_become(layout, self->partition->number, found, read);
    if (fd >= 0)
        sc_os.close(fd);
    free(found);
    bool holds = false;
    if (code == SC_OK && *unfinished)
        code = holds_promised(self, segment, &holds);
    *unfinished = *unfinished && (!holds || SC_CONTROL(synced_segment_removed));
    return code;
}

static int remove_segment(recovery *self, int64_t number)
{
    sc_segment *segment = self->segments[number];
    if (self->repair && !SC_CONTROL(lost_segment_kept) && sc_os.unlink(segment->path) != 0 && errno != ENOENT)
        return sc_fail_os(self->error, "cannot remove what a crash left", segment->path);
    if (self->repair)
        sc_index_remove(segment);
    self->removed = self->removed || self->repair;
    sc_segment_release(segment);
    self->count = number;
    sc_partition_drop_after(self->partition, number);
    return SC_OK;
}

/* ---- how far the log was durable ---------------------------------------------------------------------------- */

/* The last header of a segment before a position. *found is its position; it stays when there is none. */
static int last_header_of(recovery *self, int64_t number, int64_t before, sc_header *header, int64_t *found)
{
    sc_segment *segment = self->segments[number];
    sc_mapping *mapping;
    int64_t end, offset, unused = 0;
    int code = map_whole(self, number, &mapping, &end);
    if (code != SC_OK)
        return code == SC_FORMAT || code == SC_CORRUPT ? SC_OK : code; /* whether it matters is seen in walking */
    end = before < end ? before : end;
    int64_t position = sc_segment_seek(segment, mapping, INT64_MAX, end, &offset);
    while (position >= 0 && position < end) {
        sc_look look = sc_segment_look(mapping, position, end, false, &unused);
        if (look.state != SC_BATCH_GOOD) { /* what is behind damage tells the most */
            position = look.unreadable ? SC_NOT_READABLE : sc_segment_find_good(mapping, position, end, &look.header);
            continue;
        }
        if (look.header.record_count > 0)
            sc_segment_note(segment, look.header.base_offset, position);
        *header = look.header;
        *found = position;
        position += look.header.total_size;
    }
    sc_mapping_release(mapping);
    return position == SC_NOT_READABLE ? sc_segment_fail_unreadable(segment, -1, -1, self->error) : SC_OK;
}

/* The last header before a place: *position is -1 when there is none. */
static int last_header_before(recovery *self, const place *end, sc_header *header, int64_t *segment, int64_t *position)
{
    int code = SC_OK;
    *position = -1;
    for (*segment = end->segment; code == SC_OK; --*segment) {
        code = last_header_of(self, *segment, *segment == end->segment ? end->position : INT64_MAX, header, position);
        if (*position >= 0 || *segment == 0)
            break;
    }
    return code;
}

/* As the headers before a place say: where the log begins, and what of it is looked at no more. */
static int find_durable(recovery *self, const place *end)
{
    sc_header header;
    int code = last_header_before(self, end, &header, &self->last_segment, &self->last_position);
    if (code != SC_OK)
        return code;
    bool found = self->last_position >= 0;
    if (found && header.durable_offset > self->noted_durable)
        self->noted_durable = header.durable_offset;
    self->start_offset = self->segments[0]->base_offset;
    if (found && header.start_offset > self->start_offset)
        self->start_offset = header.start_offset;
    self->durable_offset = self->noted_durable;
    if (self->durable_offset < self->start_offset) /* what is deleted, wholly or in part */
        self->durable_offset = self->start_offset;
    return SC_OK;
}

/* ---- judging damage ----------------------------------------------------------------------------------------- */

/* The first good batch behind a place: in its segment, or in a later one; *position is below 0 when there is none. What
 * cannot be read may be one: nothing may be cut then. */
static int find_later(recovery *self, const place *at, const sc_mapping *mapping, int64_t *segment, int64_t *position,
                      sc_header *header)
{
    *segment = at->segment;
    *position = at->position;
    do
        *position = sc_segment_find_good(mapping, *position, at->file_size, header);
    while (*position >= 0 && header->base_offset < at->offset);
    while (*position == SC_NOT_FOUND && ++*segment < self->count) {
        sc_mapping *next;
        int64_t end, nothing = 0;
        int code = map_whole(self, *segment, &next, &end);
        if (code == SC_FORMAT || code == SC_CORRUPT)
            continue;
        if (code != SC_OK)
            return code;
        int64_t first = self->segments[*segment]->first_position;
        sc_look look = sc_segment_look(next, first, end, true, &nothing);
        if (look.state == SC_BATCH_GOOD) {
            *position = first;
            *header = look.header;
        }
        sc_mapping_release(next);
        if (look.unreadable)
            return sc_segment_fail(self->segments[*segment], &look, -1, first, self->error);
    }
    return *position == SC_NOT_READABLE
               ? sc_segment_fail_unreadable(self->segments[at->segment], at->offset, at->position, self->error)
               : SC_OK;
}

struct unopened {
    const uint8_t *data;
    int64_t position, end, offset;
    bool found;
};

static void search_unopened(void *context)
{
    struct unopened *self = context;
    sc_header header;
    for (int64_t at = self->position + SC_ALIGNMENT; at + SC_HEADER_SIZE <= self->end && !self->found;
         at += SC_ALIGNMENT) {
        memcpy(&header, self->data + at, sizeof header);
        self->found = sc_header_is_sound(&header) && header.base_offset == self->offset &&
                      header.metadata_size == at - self->position - SC_OPENING_SIZE &&
                      (header.flags & SC_FLAG_CONTINUED) != 0;
    }
}

/* Whether an append of several batches was in flight here: all of its first batch is there but the opening. */
static bool is_unopened_append(const place *at, const sc_mapping *mapping, int64_t end)
{
    struct unopened self = {.data = mapping->data, .position = at->position, .end = end, .offset = at->offset};
    return sc_os_read_mapped(mapping->data, (size_t)mapping->size, search_unopened, &self) && self.found;
}

/* Whether any good batch behind a place says that the log was durable beyond it: the next one may have been written
 * before the sync that the last one knows of. */
static int was_durable(recovery *self, const place *at, const sc_mapping *mapping, bool *durable)
{
    *durable = false;
    for (int64_t number = at->segment; number < self->count && !*durable; number++) {
        sc_mapping *other = NULL;
        sc_header header;
        int64_t end = at->file_size, position = at->position;
        int code = number > at->segment ? map_whole(self, number, &other, &end) : SC_OK;
        if (code == SC_FORMAT || code == SC_CORRUPT)
            continue;
        if (code != SC_OK)
            return code;
        const sc_mapping *looked_at = other == NULL ? mapping : other;
        position = other == NULL ? position : 0;
        while (!*durable && (position = sc_segment_find_good(looked_at, position, end, &header)) >= 0)
            *durable = header.durable_offset > at->offset;
        sc_mapping_release(other);
        if (position == SC_NOT_READABLE)
            return sc_segment_fail_unreadable(self->segments[number], at->offset, -1, self->error);
    }
    return SC_OK;
}

/* Whether the bytes at a place where the chain of batches breaks were lost with the power, and not damaged later.
 * `end`: where in this segment good batches follow; -1: they do not. */
static int is_lost(recovery *self, const place *at, const sc_mapping *mapping, const sc_look *look,
                   const sc_header *later, int64_t end, bool *lost)
{
    bool deleted = at->offset < self->start_offset && later->base_offset <= self->start_offset; /* all of it */
    bool durable = later->durable_offset > at->offset || self->noted_durable > at->offset || deleted;
    int code = SC_OK;
    if (!durable && !self->same_boot)
        code = was_durable(self, at, mapping, &durable);
    *lost = !durable &&
            (!self->same_boot || (look->state == SC_BATCH_NONE && end >= 0 && is_unopened_append(at, mapping, end)));
    *lost = *lost || SC_CONTROL(damage_cut_as_torn_tail);
    return code;
}

/* ---- walking ------------------------------------------------------------------------------------------------ */

static void pass(place *at, const sc_header *header)
{
    if (!at->in_append) { /* an append that is not whole, right behind damage: then nothing good follows the damage */
        at->append_position = at->behind_damage ? at->damage_position : at->position;
        at->append_offset = at->behind_damage ? at->damage_offset : at->offset;
        at->append_stable_offset = at->behind_damage ? -1 : at->stable_offset;
        at->behind_damage = false;
    }
    at->in_append = (header->flags & SC_FLAG_CONTINUED) != 0;
    at->position += header->total_size;
    at->offset = header->last_offset + 1;
    at->stable_offset = at->offset - header->unstable_count;
}

/* Over the last batches of a log, which were durable, and damaged since: by their headers alone. */
static int pass_damaged(recovery *self, place *at, sc_mapping *mapping, const sc_look *look)
{
    int64_t unused = 0;
    sc_look bare = sc_segment_look(mapping, at->position, at->file_size, false, &unused);
    if (bare.state != SC_BATCH_GOOD || bare.header.base_offset != at->offset)
        return sc_segment_fail(self->segments[at->segment], look, at->offset, at->position, self->error);
    pass(at, &bare.header);
    return SC_OK;
}

static int clear_tail(recovery *self, const place *at);

/* Behind the last record of a sealed segment a note was lost with the power in part, and the marker with it: zeros end
 * the stream as well. */
static int mend_sealed(recovery *self, const place *at, const sc_look *look)
{
    bool torn = look->state == SC_BATCH_BAD && !look->unreadable && !sc_header_is_newer(&look->header) &&
                !(sc_header_is_sound(&look->header) && look->header.control != SC_CONTROL_NONE);
    return torn && self->repair && !self->same_boot ? clear_tail(self, at) : SC_OK;
}

/* Walks one segment from `at` to its end; *cut is set when the log ends here, whatever follows. */
static int walk_segment(recovery *self, place *at, sc_mapping *mapping, bool *cut)
{
    sc_segment *segment = self->segments[at->segment];
    bool last = at->segment == self->count - 1;
    int64_t next_base = last ? INT64_MAX : self->segments[at->segment + 1]->base_offset, unused = 0;
    for (;;) {
        sc_look look = sc_segment_look(mapping, at->position, at->file_size, !SC_CONTROL(tail_not_checked), &unused);
        if (look.unreadable)
            return sc_segment_fail(segment, &look, at->offset, at->position, self->error);
        if (look.state == SC_BATCH_GOOD && look.header.base_offset == at->offset &&
            look.header.last_offset < next_base) {
            if (look.header.record_count > 0)
                sc_segment_note(segment, at->offset, at->position);
            pass(at, &look.header);
            continue;
        }
        if (look.state == SC_BATCH_GOOD && look.header.base_offset < segment->base_offset)
            return sc_fail_at(self->error, SC_FORMAT, segment->path, look.header.base_offset, at->position,
                              "the segment has records from before its name: it was renamed or copied");
        at->sealed = look.state == SC_BATCH_MARKER;
        if (at->sealed && (last || at->offset == next_base))
            return SC_OK;
        if (!last && at->offset == next_base)
            return mend_sealed(self, at, &look); /* the marker was lost, the records were not */
        int64_t later_segment, later_position;
        sc_header later;
        int code = find_later(self, at, mapping, &later_segment, &later_position, &later);
        if (code != SC_OK)
            return code;
        bool followed = later_position >= 0;
        if (!followed && at->offset < self->durable_offset) {
            at->damaged = true;
            code = pass_damaged(self, at, mapping, &look);
            if (code != SC_OK)
                return code;
            continue;
        }
        bool lost = !followed;
        if (followed)
            code = is_lost(self, at, mapping, &look, &later, later_segment == at->segment ? later_position : -1, &lost);
        if (code != SC_OK)
            return code;
        if (lost) {
            if (sc_header_is_newer(&look.header)) /* not ours to judge, and not ours to cut */
                return sc_segment_fail(segment, &look, at->offset, at->position, self->error);
            *cut = true;
            return SC_OK;
        }
        at->in_append = false;
        if (later_segment != at->segment)
            return SC_OK; /* damaged up to the end of this segment: readers will say so */
        if (!at->behind_damage) {
            at->damage_position = at->position;
            at->damage_offset = at->offset;
        }
        at->behind_damage = at->damaged = true;
        at->position = later_position;
        at->offset = later.base_offset;
    }
}

/* The stable offset where the walk has seen no batch before the end: the batch that ends there says it. */
static int find_stable(recovery *self, place *at)
{
    sc_header header;
    int64_t segment, position;
    int code = last_header_before(self, at, &header, &segment, &position);
    at->stable_offset = position >= 0 ? header.last_offset + 1 - header.unstable_count : at->offset;
    return code;
}

static int64_t segment_of(const recovery *self, int64_t offset)
{
    int64_t number = self->count - 1;
    while (number > 0 && self->segments[number]->base_offset > offset)
        number--;
    return number;
}

/* After a power loss a segment that was never synced may be unfinished while a later one is not: both are gone. */
static int remove_lost_segments(recovery *self)
{
    int64_t number = segment_of(self, self->durable_offset);
    bool lost = false;
    int code = SC_OK;
    for (; code == SC_OK && !self->same_boot && number < self->count && !lost; number += !lost)
        if (self->segments[number]->base_offset >= self->durable_offset)
            code = is_unfinished(self, self->segments[number], &lost);
    while (code == SC_OK && lost && self->count > number)
        code = remove_segment(self, self->count - 1);
    return code;
}

static int walk(recovery *self, place *at)
{
    bool cut = false;
    int64_t first = segment_of(self, self->durable_offset);
    if (first > 0 && !self->same_boot && self->segments[first]->base_offset >= self->durable_offset)
        first--; /* what ends it may have been lost, though its records were durable */
    for (int64_t number = first; number < self->count && !cut; number++) {
        sc_segment *segment = self->segments[number];
        sc_mapping *mapping;
        int code = map_segment(self, number, number == self->count - 1, &mapping, self->error);
        if (code == SC_FORMAT && number < self->count - 1)
            continue; /* no crash does this, and it does not move the end of the log: readers will say so */
        if (code != SC_OK)
            return code;
        *at = (place){.segment = number, .stable_offset = -1};
        code = file_size_of(self, segment, &at->file_size);
        if (code == SC_OK) { /* before what is durable: a note without records may lie at that very offset */
            at->position = sc_segment_seek(segment, mapping, self->durable_offset - 1, at->file_size, &at->offset);
            code = walk_segment(self, at, mapping, &cut);
        }
        sc_mapping_release(mapping);
        if (code != SC_OK)
            return code;
    }
    if (cut && at->behind_damage) { /* what follows the damage was lost, so it ends the log */
        at->position = at->damage_position;
        at->offset = at->damage_offset;
        at->stable_offset = -1;
    }
    if (at->in_append && !SC_CONTROL(half_append_kept)) {
        at->position = at->append_position;
        at->offset = at->append_offset;
        at->stable_offset = at->append_stable_offset;
        at->sealed = false;
    }
    return at->stable_offset < 0 ? find_stable(self, at) : SC_OK;
}

/* ---- repair ------------------------------------------------------------------------------------------------- */

struct zero_check {
    const uint8_t *data;
    int64_t size;
    bool zero;
};

static void check_zero(void *context)
{
    struct zero_check *self = context;
    uint8_t any = 0;
    for (int64_t i = 0; i < self->size && any == 0; i += SC_PAGE)
        for (int64_t k = i; k < i + SC_PAGE && k < self->size; k++)
            any |= self->data[k];
    self->zero = any == 0;
}

/* Makes everything behind the end of the log zero again: appends count on it. */
static int clear_tail(recovery *self, const place *at)
{
    sc_segment *segment = self->segments[at->segment];
    sc_mapping *mapping;
    int code = map_segment(self, at->segment, true, &mapping, self->error);
    if (code != SC_OK)
        return code;
    struct zero_check check = {mapping->data + at->position, at->file_size - at->position, true};
    bool readable = check.size <= 0 || sc_os_read_mapped(check.data, (size_t)check.size, check_zero, &check);
    if ((!readable || !check.zero || self->doubted) && !SC_CONTROL(tail_not_cleared)) {
        int fd = sc_os.open(segment->path, SC_OPEN_WRITE);
        if (fd < 0 || sc_os.zero(fd, at->position, at->file_size - at->position) != 0)
            code = sc_fail_os(self->error, "cannot clear what a crash left", segment->path);
        else if (!SC_CONTROL(cut_not_synced) &&
                 sc_os.sync(fd) != 0) /* the zeros are there, and nobody would sync them again */
            code = sc_partition_poison(self->partition, "cannot sync what was cleared", segment->path, self->error);
        if (fd >= 0)
            sc_os.close(fd);
    }
    sc_mapping_release(mapping);
    return code;
}

static int write_range_again(recovery *self, const sc_segment *segment, int64_t from, int64_t to)
{
    enum { CHUNK = 64 << 10 };
    uint8_t *data = malloc(CHUNK);
    if (data == NULL)
        return sc_fail_memory(self->error);
    int fd = sc_os.open(segment->path, SC_OPEN_WRITE), code = SC_OK;
    for (int64_t at = from; fd >= 0 && code == SC_OK && at < to; at += CHUNK) {
        size_t size = to - at < CHUNK ? (size_t)(to - at) : CHUNK;
        if (sc_os_read_whole(fd, data, size, at) != 0 || sc_os_write_whole(fd, data, size, at) != 0)
            code = sc_fail_os(self->error, "cannot write again what a failed sync may have dropped", segment->path);
    }
    if (fd < 0)
        code = sc_fail_os(self->error, "cannot open a segment", segment->path);
    else
        sc_os.close(fd);
    free(data);
    return code;
}

/* Behind a sync that failed the kernel may take pages for clean that the drive has not: no later sync would write them.
 * Those of what is not known to be durable are written again, so that the next one does. */
static int write_again(recovery *self, const place *at)
{
    int code = SC_OK;
    for (int64_t number = segment_of(self, self->durable_offset); code == SC_OK && number <= at->segment; number++) {
        sc_segment *segment = self->segments[number];
        sc_mapping *mapping;
        int64_t size, offset, from = 0;
        code = map_whole(self, number, &mapping, &size);
        if (code != SC_OK)
            return code;
        if (segment->base_offset < self->durable_offset)
            from = sc_segment_seek(segment, mapping, self->durable_offset, size, &offset) / SC_PAGE * SC_PAGE;
        sc_mapping_release(mapping);
        code = write_range_again(self, segment, from, number == at->segment && !at->sealed ? at->position : size);
    }
    return code;
}

/* A segment that goes on, or goes on again, has no final index. One of records that were cut would mislead. */
static void drop_summary(recovery *self, sc_segment *segment)
{
    pthread_mutex_lock(&segment->mutex);
    sc_index_load(segment);
    bool has_summary = segment->has_summary;
    pthread_mutex_unlock(&segment->mutex);
    if (!has_summary)
        return;
    sc_index_remove(segment);
    self->removed = true;
}

/* The names of removed files must be gone before others take their place. */
static int sync_removals(recovery *self)
{
    char folder[SC_PATH_MAX];
    if (!self->removed)
        return SC_OK;
    int code = sc_partition_folder(self->partition, folder, self->error);
    return code == SC_OK
               ? sc_partition_sync_folder(self->partition, "cannot sync a partition's folder", folder, self->error)
               : code;
}

/* Where all records were deleted none of an open transaction is left, and perhaps nothing that names its producer. */
static int64_t stable_of(const recovery *self, const place *at)
{
    bool undecided = at->stable_offset < at->offset && self->start_offset < at->offset;
    return undecided && !SC_CONTROL(stable_offset_of_recovery_wrong) ? at->stable_offset : at->offset;
}

/* Nothing is appended behind damage to the same file: what is damaged may say that it reaches as far as that. */
static bool ends_here(const recovery *self, const place *at)
{
    return at->sealed || (at->damaged && at->offset > self->segments[at->segment]->base_offset &&
                          !SC_CONTROL(appended_behind_damage));
}

static int settle(recovery *self, const place *at)
{
    int code = SC_OK;
    while (code == SC_OK && self->count > at->segment + 1)
        code = remove_segment(self, self->count - 1);
    if (code == SC_OK && self->doubted)
        code = write_again(self, at);
    if (code == SC_OK && self->repair && !at->sealed)
        code = clear_tail(self, at);
    if (code == SC_OK && self->repair && !at->sealed)
        drop_summary(self, self->segments[at->segment]);
    *self->tail = (sc_tail){
        .start_offset = self->start_offset < at->offset ? self->start_offset : at->offset,
        .end_offset = at->offset,
        .durable_offset = self->durable_offset < at->offset ? self->durable_offset : at->offset,
        .segment_base = self->segments[at->segment]->base_offset,
        .end_position = at->position,
        .allocated = at->file_size,
        .created_ms = sc_os.now_ms(),
        .sealed = ends_here(self, at),
        .schema_version = self->segments[at->segment]->layout->schema_version,
        .proven_offset = self->durable_offset < at->offset ? self->durable_offset : at->offset,
        .stable_offset = stable_of(self, at),
    };
    return code;
}

/* Whether the header is cut that says where the log begins: a deletion was on its way, and is not. */
static bool lost_its_start(const recovery *self, const place *end)
{
    return self->last_position >= 0 &&
           (self->last_segment > end->segment ||
            (self->last_segment == end->segment && self->last_position >= end->position)) &&
           self->start_offset > self->segments[0]->base_offset;
}

/* Walks the log to its end; again when what it took for deleted is not. */
static int find_end(recovery *self, place *at)
{
    int code;
    *at = (place){.segment = self->count - 1, .position = INT64_MAX};
    do {
        code = find_durable(self, at);
        if (code == SC_OK)
            code = remove_lost_segments(self);
        if (code == SC_OK && self->count > 0)
            code = walk(self, at);
    } while (code == SC_OK && self->count > 0 && lost_its_start(self, at) && !SC_CONTROL(lost_start_kept));
    return code;
}

static int recover_listed(recovery *self)
{
    int64_t emptied_at = 0;
    int code = SC_OK;
    bool unfinished = true;
    place at = {0};
    while (code == SC_OK && self->count > 0 && unfinished) {
        emptied_at = self->segments[self->count - 1]->base_offset;
        code = is_unfinished(self, self->segments[self->count - 1], &unfinished);
        if (code == SC_OK && unfinished)
            code = remove_segment(self, self->count - 1);
    }
    if (code == SC_OK && self->count > 0) {
        emptied_at = self->segments[0]->base_offset;
        code = find_end(self, &at);
    }
    if (code != SC_OK)
        return code;
    if (self->count == 0) {
        *self->tail = (sc_tail){.start_offset = emptied_at,
                                .end_offset = emptied_at,
                                .durable_offset = emptied_at,
                                .stable_offset = emptied_at,
                                .segment_base = -1};
        return sync_removals(self);
    }
    code = settle(self, &at);
    return code == SC_OK ? sync_removals(self) : code;
}

static int take_snapshot(recovery *self)
{
    sc_partition *partition = self->partition;
    pthread_mutex_lock(&partition->list_mutex);
    self->segments = malloc((size_t)(partition->segment_count + 1) * sizeof *self->segments);
    for (int64_t i = 0; self->segments != NULL && i < partition->segment_count; i++) {
        self->segments[i] = partition->segments[i];
        sc_segment_retain(self->segments[i]);
        self->count = i + 1;
    }
    pthread_mutex_unlock(&partition->list_mutex);
    return self->segments == NULL ? sc_fail_memory(self->error) : SC_OK;
}

static int recover_once(recovery *self)
{
    int code = sc_partition_list(self->partition, self->error);
    if (code == SC_OK)
        code = take_snapshot(self);
    if (code == SC_OK)
        code = recover_listed(self);
    for (int64_t i = 0; i < self->count; i++)
        sc_segment_release(self->segments[i]);
    free(self->segments);
    return code;
}

int sc_partition_recover(sc_partition *partition, bool repair, sc_tail *tail, sc_error *error)
{
    sc_state *state = &partition->topic->state;
    bool same_boot = sc_state_is_same_boot(state, partition->number), stale;
    _Atomic uint32_t *doubted = repair ? &sc_state_slot(state, partition->number)->doubted : NULL;
    int code;
    if (repair)
        sc_partition_drop_after(partition,
                                0); /* what is to be cut is judged by the files that are there, not by older ones */
    do {
        recovery self = {.partition = partition,
                         .repair = repair,
                         .tail = tail,
                         .doubted = repair && same_boot && atomic_load(doubted) != 0,
                         .same_boot = same_boot,
                         .error = error};
        code = recover_once(&self);
        stale = self.stale; /* then it is out of the list */
    } while (stale);
    if (code == SC_OK && repair)
        sc_state_set_boot(state, partition->number);
    if (code == SC_OK && repair)
        atomic_store(doubted, 0);
    if (code == SC_OK && repair && tail->durable_offset < tail->end_offset) {
        /* what was found is made durable by the next flush, at the latest at closing, as if we had appended it */
        atomic_store(&partition->touched, true);
        atomic_store(&partition->unflushed, true);
        atomic_store(&partition->unnoted, true);
        atomic_store(&partition->topic->found_unflushed, true);
    }
    return code;
}
