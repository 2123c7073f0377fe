/*
 * Group commit of a store: durable appends to many partitions, by whatever threads, share one sync of the journal.
 *
 * Who leads a partition's sync (flush.c), or waits for several partitions at once, comes here. Up to two may be at
 * work: one alone, or with a partition that no other wants, syncs the segment itself, as if there were no journal. Who
 * comes while two are at work leaves a request. Whoever is done hands the lead to the newest of these, which serves all
 * of them: a run of whole batches for each partition goes into the journal, one sync, and their ends are durable.
 *
 * A run goes into the journal only when this process knows where it begins: behind a batch that was durable before, in
 * the same segment. So the first sync in each segment is one of the segment and of its name, and a segment that a
 * record names can be missing later for one reason alone: somebody removed it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "error.h"
#include "journal.h"
#include "os.h"
#include "topic.h"

enum {
    LEADERS_MAX = 2,
    RUN_BYTES_MAX = 256 << 10, /* more is synced faster than copied */
    SCRATCH_KEPT_MAX = 8 << 20,
};
enum { TOLD_NOTHING, TOLD_DONE, TOLD_TO_LEAD };

typedef struct member {
    sc_partition *partition;
    sc_tail tail;
    sc_safe_end safe;
    int64_t size;          /* of the run that goes into the journal; 0: none does */
    int64_t last_position; /* of the run's last batch, in the segment */
    uint32_t last_crc;
    bool done;
    int code;
    sc_error *error; /* NULL when there was no memory for it */
} member;

/* ---- what goes into the journal ------------------------------------------------------------------------------- */

/* The last batch below the safe end: what a replay must find there. */
static bool find_anchor(member *self)
{
    sc_partition *partition = self->partition;
    sc_safe_end *safe = &self->safe;
    sc_segment *segment;
    sc_mapping *mapping;
    sc_error unused;
    int64_t next_base, offset, nothing = 0;
    if (safe->anchor_position > 0)
        return true;
    if (sc_partition_find(partition, &self->tail, safe->segment_base, &segment, &next_base, &unused) != SC_OK ||
        segment == NULL)
        return false;
    if (segment->base_offset == safe->segment_base &&
        sc_partition_map(partition, segment, &self->tail, &mapping, &unused) == SC_OK) {
        int64_t position = sc_segment_seek(segment, mapping, INT64_MAX, safe->position, &offset);
        while (position >= 0 && position < safe->position) {
            sc_look look = sc_segment_look(mapping, position, safe->position, false, &nothing);
            if (look.state != SC_BATCH_GOOD)
                break;
            if (position + look.header.total_size == safe->position) {
                safe->anchor_position = position;
                safe->anchor_crc = look.header.header_crc;
            }
            position += look.header.total_size;
        }
        sc_mapping_release(mapping);
    }
    sc_segment_release(segment);
    return safe->anchor_position > 0;
}

/* What of a partition is not durable, if the journal can take it. */
static void plan(member *self)
{
    sc_partition *partition = self->partition;
    sc_slot *slot = sc_state_slot(&partition->topic->state, partition->number);
    sc_error unused;
    atomic_store(&partition->unflushed, false);
    if (sc_partition_tail(partition, &self->tail, &unused) != SC_OK || atomic_load(&slot->poisoned) != 0)
        return; /* its own sync will say what is wrong */
    self->done = self->tail.durable_offset >= self->tail.end_offset;
    pthread_mutex_lock(&partition->sync_mutex);
    self->safe = partition->safe;
    pthread_mutex_unlock(&partition->sync_mutex);
    const sc_safe_end *safe = &self->safe;
    int64_t size = self->tail.end_position - safe->position;
    if (!self->done && safe->position > 0 && safe->segment_base == self->tail.segment_base &&
        safe->file_number == self->tail.file_number && !self->tail.sealed && size > 0 && size <= RUN_BYTES_MAX &&
        find_anchor(self))
        self->size = size;
}

struct copying {
    const uint8_t *from;
    uint8_t *to;
    int64_t size;
};

static void copy_run(void *context)
{
    struct copying *self = context;
    memcpy(self->to, self->from, (size_t)self->size);
}

/* From the mapping that it was stored through: its pages are there. */
static bool take_run(member *self, uint8_t *to)
{
    sc_partition *partition = self->partition;
    sc_writer *writer = &partition->writer;
    struct copying copying = {.to = to, .size = self->size};
    pthread_mutex_lock(&partition->append_mutex);
    bool taken = writer->data != NULL && writer->base_offset == self->safe.segment_base &&
                 writer->file_number == self->safe.file_number && writer->size >= self->tail.end_position;
    if (taken) {
        copying.from = writer->data + self->safe.position;
        taken = sc_os_read_mapped(writer->data, (size_t)writer->size, copy_run, &copying);
    }
    writer->window = 0; /* the next checkpoint writes every page that is mapped ahead, and has each mapped anew */
    writer->journaled = true;
    pthread_mutex_unlock(&partition->append_mutex);
    return taken;
}

/* Whole batches, from where the log was durable to its end. */
static bool check_run(member *self, const uint8_t *run)
{
    int64_t offset = self->safe.offset;
    for (int64_t at = 0; at < self->size;) {
        sc_header header;
        const char *why;
        if (sc_batch_look(run + at, self->size - at, &header, &why) != SC_BATCH_GOOD || header.base_offset != offset)
            return false;
        self->last_position = self->safe.position + at;
        self->last_crc = header.header_crc;
        offset = header.last_offset + 1;
        at += header.total_size;
    }
    return offset == self->tail.end_offset;
}

/* One record for the members [0, count), which are of one topic. Returns its size; 0: none of them can go. */
static int64_t lay_out(member *members, int64_t count, uint8_t *at)
{
    sc_journal_record *record = (sc_journal_record *)(void *)at;
    sc_journal_entry *entries = sc_journal_entries(record);
    int64_t place = (int64_t)(sizeof *record + (size_t)count * sizeof *entries);
    memset(at, 0, (size_t)place);
    for (int64_t i = 0; i < count; i++) {
        member *one = &members[i];
        if (one->size > 0 && !(take_run(one, at + place) && check_run(one, at + place)))
            one->size = 0;
        if (one->size == 0)
            continue;
        entries[record->entry_count++] = (sc_journal_entry){
            .partition = one->partition->number,
            .anchor_crc = one->safe.anchor_crc,
            .base_offset = one->safe.segment_base,
            .position = one->safe.position,
            .size = one->size,
            .place = place,
            .anchor_position = one->safe.anchor_position,
            .first_offset = one->safe.offset,
            .end_offset = one->tail.end_offset,
        };
        place += one->size;
    }
    if (record->entry_count == 0)
        return 0;
    record->size = sc_journal_page_ceiling(place);
    strcpy(record->name, members[0].partition->topic->name);
    return record->size;
}

static sc_journal_scratch *take_scratch(sc_journal *journal, int64_t size)
{
    sc_journal_scratch *scratch = atomic_exchange(&journal->scratch, NULL);
    if (scratch != NULL && scratch->size >= size)
        return scratch;
    if (scratch != NULL)
        free(scratch->data);
    free(scratch);
    scratch = malloc(sizeof *scratch);
    if (scratch == NULL)
        return NULL;
    scratch->size = (size + (1 << 20) - 1) >> 20 << 20;
    scratch->data = aligned_alloc(SC_JOURNAL_PAGE, (size_t)scratch->size);
    if (scratch->data == NULL) {
        free(scratch);
        return NULL;
    }
    memset(scratch->data, 0, (size_t)scratch->size); /* what lies between the batches is written too */
    return scratch;
}

static void give_scratch(sc_journal *journal, sc_journal_scratch *scratch)
{
    if (scratch->size <= SCRATCH_KEPT_MAX)
        scratch = atomic_exchange(&journal->scratch, scratch);
    if (scratch != NULL)
        free(scratch->data);
    free(scratch);
}

static int64_t same_topic(const member *members, int64_t count)
{
    int64_t same = 1;
    while (same < count && same < SC_JOURNAL_ENTRIES_MAX &&
           members[same].partition->topic == members[0].partition->topic)
        same++;
    return same;
}

static int64_t size_of_records(const member *members, int64_t count)
{
    int64_t total = 0;
    for (int64_t i = 0, same; i < count; i += same) {
        same = same_topic(members + i, count - i);
        int64_t size = (int64_t)(sizeof(sc_journal_record) + (size_t)same * sizeof(sc_journal_entry));
        for (int64_t k = i; k < i + same; k++)
            size += members[k].size;
        total += sc_journal_page_ceiling(size);
    }
    return total;
}

/* SC_END: nothing was promised, and each partition is to be synced by itself. */
static int write_runs(sc_journal *journal, member *members, int64_t count, sc_error *error)
{
    sc_journal_scratch *scratch = take_scratch(journal, size_of_records(members, count));
    if (scratch == NULL)
        return SC_END;
    int64_t used = 0, end = 0;
    for (int64_t i = 0, same; i < count; i += same) {
        same = same_topic(members + i, count - i);
        used += lay_out(members + i, same, scratch->data + used);
    }
    int code = used == 0 ? SC_END : sc_journal_write(journal, scratch->data, used, &end, error);
    give_scratch(journal, scratch);
    return code == SC_OK ? sc_journal_sync(journal, end, error) : code;
}

/* ---- what a sync of the journal means for a partition ----------------------------------------------------------- */

static void fail_member(member *self, int code, const sc_error *error)
{
    self->code = code;
    self->done = true;
    self->error = malloc(sizeof *self->error);
    if (self->error != NULL)
        *self->error = *error;
}

/* The run is durable: says so to everybody. */
static void publish(member *self)
{
    sc_partition *partition = self->partition;
    sc_slot *slot = sc_state_slot(&partition->topic->state, partition->number);
    if (atomic_load(&slot->poisoned) != 0 && !SC_CONTROL(journal_covers_poisoned))
        return; /* the kernel may have dropped what we copied only later: its own sync says what is wrong */
    sc_slot_raise_journaled(slot, self->tail.end_offset);
    pthread_mutex_lock(&partition->sync_mutex);
    sc_safe_end *safe = &partition->safe;
    if (safe->segment_base == self->safe.segment_base && safe->file_number == self->safe.file_number &&
        safe->position <= self->tail.end_position) {
        safe->position = self->tail.end_position;
        safe->offset = self->tail.end_offset;
        safe->anchor_position = self->last_position;
        safe->anchor_crc = self->last_crc;
    }
    pthread_mutex_unlock(&partition->sync_mutex);
    self->done = true;
}

/* Nobody knows what the drive has: what waited for this sync is refused from now on. */
static void poison(member *self, int code, const sc_error *error)
{
    sc_slot *slot = sc_state_slot(&self->partition->topic->state, self->partition->number);
    atomic_store(&slot->poisoned, error->number == 0 ? EIO : error->number);
    atomic_store(&self->partition->unflushed, true);
    fail_member(self, code, error);
}

static void sync_through_journal(sc_journal *journal, member *members, int64_t count)
{
    sc_error error;
    int64_t planned = 0;
    for (int64_t i = 0; i < count; i++) {
        plan(&members[i]);
        planned += members[i].size > 0;
    }
    if (planned < 2 || !sc_journal_is_usable(journal))
        return;
    int code = write_runs(journal, members, count, &error);
    if (code == SC_END)
        return;
    for (int64_t i = 0; i < count; i++) {
        if (members[i].size == 0)
            continue;
        if (code == SC_OK)
            publish(&members[i]);
        else
            poison(&members[i], code, &error);
    }
}

static int by_topic_and_number(const void *left, const void *right)
{
    const sc_partition *a = ((const member *)left)->partition, *b = ((const member *)right)->partition;
    if (a->topic != b->topic) {
        int order = strcmp(a->topic->name, b->topic->name);
        return order != 0 ? order : (uintptr_t)a->topic < (uintptr_t)b->topic ? -1 : 1;
    }
    return (a->number > b->number) - (a->number < b->number);
}

static member *find_member(member *members, int64_t count, sc_partition *partition)
{
    member key = {.partition = partition};
    return bsearch(&key, members, (size_t)count, sizeof *members, by_topic_and_number);
}

static void serve(sc_journal *journal, member *members, int64_t count)
{
    if (count > 1)
        sync_through_journal(journal, members, count);
    for (int64_t i = 0; i < count; i++) {
        sc_error error;
        int code = members[i].done ? SC_OK : sc_partition_sync(members[i].partition, &error);
        if (code != SC_OK)
            fail_member(&members[i], code, &error);
    }
}

/* ---- requests ------------------------------------------------------------------------------------------------- */

/* The partitions of all requests, each once. NULL: no memory. */
static member *members_of(const sc_sync_request *requests, int64_t *count)
{
    int64_t wanted = 0, kept = 0;
    for (const sc_sync_request *request = requests; request != NULL; request = request->next)
        wanted += request->count;
    member *members = calloc((size_t)wanted, sizeof *members);
    if (members == NULL)
        return NULL;
    for (const sc_sync_request *request = requests; request != NULL; request = request->next)
        for (int64_t i = 0; i < request->count; i++)
            members[kept++].partition = request->partitions[i];
    qsort(members, (size_t)kept, sizeof *members, by_topic_and_number);
    *count = 0;
    for (int64_t i = 0; i < kept; i++)
        if (*count == 0 || members[*count - 1].partition != members[i].partition)
            members[(*count)++].partition = members[i].partition;
    return members;
}

static void answer(sc_sync_request *request, member *members, int64_t count)
{
    request->code = members == NULL ? sc_fail_memory(request->error) : SC_OK;
    for (int64_t i = 0; i < request->count && request->code == SC_OK; i++) {
        const member *one = find_member(members, count, request->partitions[i]);
        request->code = one->code;
        if (one->code != SC_OK && one->error != NULL)
            *request->error = *one->error;
        else if (one->code != SC_OK)
            request->code = sc_fail_memory(request->error);
    }
}

static void tell(sc_sync_request *request, uint32_t what)
{
    uint32_t *word = (uint32_t *)&request->told;
    atomic_store_explicit(&request->told, what, memory_order_release);
    sc_os.wake(word); /* the request may be gone by now, and then nobody sleeps there */
}

/* True: the caller leads, and `taken` are the requests that it has to serve besides its own. */
static bool wait_for_lead(sc_journal *journal, sc_sync_request *self, sc_sync_request **taken)
{
    pthread_mutex_lock(&journal->group_mutex);
    bool leads = journal->leaders < LEADERS_MAX;
    if (leads) {
        journal->leaders++;
    } else {
        self->next = journal->requests;
        journal->requests = self;
    }
    pthread_mutex_unlock(&journal->group_mutex);
    uint32_t told;
    while (!leads && (told = atomic_load_explicit(&self->told, memory_order_acquire)) != TOLD_DONE &&
           told != TOLD_TO_LEAD)
        sc_os.wait((uint32_t *)&self->told, TOLD_NOTHING, -1);
    if (!leads && told == TOLD_DONE)
        return false;
    pthread_mutex_lock(&journal->group_mutex);
    *taken = journal->requests;
    journal->requests = NULL;
    pthread_mutex_unlock(&journal->group_mutex);
    return true;
}

/* The next sync begins before those that this one served are woken. */
static void hand_lead_on(sc_journal *journal, sc_sync_request *taken)
{
    pthread_mutex_lock(&journal->group_mutex);
    sc_sync_request *leader = journal->requests, *next;
    if (leader != NULL)
        journal->requests = leader->next;
    else
        journal->leaders--;
    pthread_mutex_unlock(&journal->group_mutex);
    if (leader != NULL)
        tell(leader, TOLD_TO_LEAD);
    for (; taken != NULL; taken = next) {
        next = taken->next;
        tell(taken, TOLD_DONE);
    }
}

int sc_journal_sync_partitions(sc_journal *journal, sc_partition **partitions, int64_t count, sc_error *error)
{
    sc_sync_request self = {.partitions = partitions, .count = count, .error = error}, *taken = NULL;
    if (count == 0)
        return SC_OK;
    if (!wait_for_lead(journal, &self, &taken))
        return self.code;
    self.next = taken;
    int64_t member_count = 0;
    member *members = members_of(&self, &member_count);
    if (members != NULL)
        serve(journal, members, member_count);
    for (sc_sync_request *request = &self; request != NULL; request = request->next)
        answer(request, members, member_count);
    hand_lead_on(journal, taken);
    for (int64_t i = 0; members != NULL && i < member_count; i++)
        free(members[i].error);
    free(members);
    sc_error unused;
    if (sc_journal_is_filling(journal) &&
        !atomic_exchange(&journal->checkpointing, true)) { /* others go on meanwhile */
        (void)sc_journal_checkpoint(journal, &unused);
        atomic_store(&journal->checkpointing, false);
    }
    return self.code;
}
