#include "hostile_arrow.h"

#include <stdlib.h>
#include <string.h>

enum {
    FIELDS_MAX = 300,
    DEPTH_MAX = SC_DEPTH_MAX + 2,
    ARRAYS_MAX = 400,
    MANY_CHILDREN = 4200,
    BUFFERS_MAX = 8,
    WRONG = 0xf0
};

typedef struct memory {
    struct memory *next;
    void *data;
} memory;
static memory *all_memory;

void *hostile_memory(size_t size)
{
    memory *kept = malloc(sizeof *kept);
    if (kept == NULL)
        abort();
    *kept = (memory){all_memory, calloc(1, size + (size == 0))};
    if (kept->data == NULL)
        abort();
    all_memory = kept;
    return kept->data;
}

void hostile_free(void)
{
    for (memory *next; all_memory != NULL; all_memory = next) {
        next = all_memory->next;
        free(all_memory->data);
        free(all_memory);
    }
}

uint8_t hostile_byte(hostile_input *input)
{
    return input->at < input->size ? input->data[input->at++] : 0;
}

int64_t hostile_number(hostile_input *input)
{
    static const int64_t numbers[] = {0,
                                      -1,
                                      1,
                                      7,
                                      64,
                                      4097,
                                      INT32_MAX,
                                      INT32_MIN,
                                      (int64_t)INT32_MAX + 1,
                                      (int64_t)UINT32_MAX + 1,
                                      SC_BATCH_ROWS_MAX,
                                      SC_BATCH_BYTES_MAX,
                                      INT64_C(1) << 40,
                                      INT64_C(1) << 58,
                                      INT64_C(1) << 60,
                                      INT64_C(1) << 61,
                                      INT64_C(1) << 62,
                                      INT64_MAX - 7,
                                      INT64_MAX,
                                      INT64_MIN};
    enum { COUNT = sizeof numbers / sizeof *numbers };
    uint8_t chosen = hostile_byte(input);
    return chosen < 200 ? numbers[chosen % COUNT] : numbers[chosen % COUNT] / 8 + (int8_t)hostile_byte(input);
}

/* ---- schemas ----------------------------------------------------------------------------------------------------- */

static const char *format_of(uint8_t choice)
{
    static const char *const sound[] = {"i",   "z",   "u",       "b",  "n",         "vz",   "vu",   "Z",
                                        "U",   "+s",  "+l",      "+L", "+w:2",      "+m",   "w:5",  "l",
                                        "c",   "S",   "tsm:UTC", "g",  "d:9,2",     "+w:0", "w:0",  "e",
                                        "tdD", "tin", "+s",      "+l", "d:9,2,256", "ttu",  "+w:3", "w:70000"};
    static const char *const wrong[] = {"",
                                        "t",
                                        "x",
                                        "w:",
                                        "w:-1",
                                        "w:99999999999999999999",
                                        "w:2147483647",
                                        "+w:2147483647",
                                        "+w:65536",
                                        "+w:-5",
                                        "d:",
                                        "d:10,2,7",
                                        "+ud:0,1",
                                        "+us:0",
                                        "+vl",
                                        "+r",
                                        "+",
                                        "+w:",
                                        "iffy",
                                        "ts",
                                        "zz",
                                        "v",
                                        "d:1,2,64trailing",
                                        "w:3x"};
    if (choice == 255)
        return NULL;
    if (choice < 200)
        return sound[choice % (sizeof sound / sizeof *sound)];
    return wrong[choice % (sizeof wrong / sizeof *wrong)];
}

static void release_schema(struct ArrowSchema *schema)
{
    schema->release = NULL;
}

static void wrong_children(hostile_input *input, struct ArrowSchema *schema)
{
    switch (hostile_byte(input) % 6) {
    case 0:
        schema->n_children = hostile_number(input);
        schema->children = NULL;
        break;
    case 1:
        if (schema->n_children > 0)
            schema->children[schema->n_children - 1] = NULL;
        break;
    case 2:
        schema->n_children = -1;
        break;
    case 3: /* many, of which one would be enough */
        schema->children = hostile_memory(MANY_CHILDREN * sizeof *schema->children);
        for (int i = 0; i < MANY_CHILDREN; i++)
            schema->children[i] = i == 0 ? hostile_schema(input, DEPTH_MAX + 1) : schema->children[0];
        schema->n_children = MANY_CHILDREN;
        break;
    case 4:
        schema->dictionary = hostile_schema(input, DEPTH_MAX + 1);
        break;
    default:
        schema->n_children -= schema->n_children > 0;
    }
}

struct ArrowSchema *hostile_schema(hostile_input *input, int depth)
{
    bool leaf = ++input->fields > FIELDS_MAX || depth > DEPTH_MAX;
    struct ArrowSchema *schema = hostile_memory(sizeof *schema);
    *schema = (struct ArrowSchema){.format = format_of(leaf ? 0 : hostile_byte(input)),
                                   .name = "name",
                                   .flags = ARROW_FLAG_NULLABLE,
                                   .release = release_schema};
    const char *format = schema->format == NULL ? "" : schema->format;
    if (strcmp(format, "+s") == 0)
        schema->n_children = hostile_byte(input) % 4;
    else if (format[0] == '+')
        schema->n_children = 1;
    schema->children = hostile_memory((size_t)schema->n_children * sizeof *schema->children);
    for (int64_t i = 0; i < schema->n_children; i++)
        schema->children[i] = hostile_schema(input, depth + 1);
    uint8_t flaw = hostile_byte(input);
    if (flaw == WRONG)
        schema->name = NULL;
    if (flaw > WRONG)
        wrong_children(input, schema);
    return schema;
}

/* ---- arrays ------------------------------------------------------------------------------------------------------ */

static int64_t rows_of(const struct ArrowArray *array)
{
    int64_t rows;
    bool wrong = array->offset < 0 || array->length < 0 || __builtin_add_overflow(array->offset, array->length, &rows);
    return wrong || rows > HOSTILE_ROWS ? -1 : rows;
}

static void *filled(hostile_input *input, int64_t size)
{
    uint8_t *data = hostile_memory((size_t)size), seed = hostile_byte(input);
    for (int64_t i = 0; i < size; i++)
        data[i] = (uint8_t)(seed + i * 37);
    return data;
}

/* Ends that ascend, or do not. *last: what the claim is that lies below them; -1: too much to be there. */
static void *make_ends(hostile_input *input, int64_t rows, bool large, int64_t *last)
{
    uint8_t *ends = hostile_memory((size_t)(rows + 1) * (large ? 8 : 4));
    uint8_t step = hostile_byte(input);
    int64_t value = step > WRONG ? hostile_number(input) : step / 16, wrong_at = -1, wrong = 0;
    if (hostile_byte(input) > WRONG) {
        wrong_at = hostile_byte(input) % (rows + 1);
        wrong = hostile_number(input);
    }
    for (int64_t row = 0; row <= rows; row++) {
        int64_t end = row == wrong_at ? wrong : value;
        int32_t end32 = (int32_t)end;
        memcpy(ends + row * (large ? 8 : 4), large ? (void *)&end : (void *)&end32, large ? 8 : 4);
        *last = large ? end : end32;
        value = (int64_t)((uint64_t)value + (step + (uint64_t)row) % 4);
    }
    if (*last > HOSTILE_ROWS)
        *last = -1;
    else if (*last < 0)
        *last = 0;
    return ends;
}

/* A view into `count` buffers of `size` bytes; a sound one unless a byte of the input says otherwise. */
static void make_view(hostile_input *input, uint8_t *view, int count, const int64_t *sizes, const void *const *buffers)
{
    uint8_t kind = hostile_byte(input);
    int32_t size = kind % 13, place[2] = {0, 0};
    if (count > 0 && kind >= 128) {
        place[0] = kind % count;
        size = (int32_t)(sizes[place[0]] - hostile_byte(input) % 4);
    }
    memcpy(view, &size, 4);
    if (size > 12) {
        memcpy(view + 4, buffers[place[0]], 4);
        memcpy(view + 8, place, 8);
    }
    if (kind > WRONG) {
        int32_t wrong = (int32_t)hostile_number(input);
        memcpy(view + 4 * (hostile_byte(input) % 4), &wrong, 4);
    }
}

static void make_views(hostile_input *input, struct ArrowArray *array, int64_t rows)
{
    int count = hostile_byte(input) % 3;
    int64_t *sizes = hostile_memory((size_t)count * sizeof *sizes);
    uint8_t *views = hostile_memory((size_t)rows * 16);
    for (int i = 0; i < count; i++) {
        sizes[i] = 20 + hostile_byte(input) % 40;
        array->buffers[2 + i] = filled(input, sizes[i]);
    }
    for (int64_t row = 0; row < rows; row++)
        make_view(input, views + 16 * row, count, sizes, array->buffers + 2);
    array->buffers[1] = views;
    array->buffers[2 + count] = sizes;
    array->n_buffers = 3 + count;
    uint8_t flaw = hostile_byte(input);
    if (count > 0 && flaw == WRONG)
        array->buffers[2] = NULL;
    if (count > 0 && flaw == WRONG + 1)
        sizes[0] = -sizes[0];
    if (flaw == WRONG + 2)
        array->buffers[2 + count] = NULL;
}

/* The buffers of `rows` rows. *below: rows that the children should have. */
static void make_buffers(hostile_input *input, const sc_field *field, struct ArrowArray *array, int64_t rows,
                         int64_t *below)
{
    int64_t last;
    bool large = field->kind == SC_KIND_LARGE_BINARY || field->kind == SC_KIND_LARGE_LIST;
    if (field->kind != SC_KIND_NULL && hostile_byte(input) % 2 == 1)
        array->buffers[0] = filled(input, (rows + 7) / 8);
    array->null_count = field->kind == SC_KIND_NULL ? array->length : array->buffers[0] == NULL ? 0 : -1;
    *below = rows;
    switch (field->kind) {
    case SC_KIND_BOOL:
        array->buffers[1] = filled(input, (rows + 7) / 8);
        break;
    case SC_KIND_FIXED:
        array->buffers[1] = rows * field->width > 1 << 20 ? NULL : filled(input, rows * field->width);
        break;
    case SC_KIND_VIEW:
        make_views(input, array, rows);
        break;
    case SC_KIND_BINARY:
    case SC_KIND_LARGE_BINARY:
        array->buffers[1] = make_ends(input, rows, large, &last);
        array->buffers[2] = last < 0 ? NULL : filled(input, last);
        break;
    case SC_KIND_LIST:
    case SC_KIND_LARGE_LIST:
        array->buffers[1] = make_ends(input, rows, large, below);
        break;
    case SC_KIND_FIXED_LIST:
        *below = rows * field->width;
        break;
    default:
        break;
    }
}

static void spoil(hostile_input *input, const sc_field *field, struct ArrowArray *array)
{
    uint8_t which = hostile_byte(input), flaw = hostile_byte(input) % 9;
    if (flaw == 0) {
        array->n_buffers = hostile_number(input);
        if (array->n_buffers > BUFFERS_MAX)
            array->buffers = NULL;
    } else if (flaw == 1) {
        array->buffers[which % BUFFERS_MAX] = NULL;
    } else if (flaw == 2) {
        array->buffers = NULL;
    } else if (flaw == 3) {
        array->null_count = hostile_number(input);
    } else if (flaw == 4) {
        array->n_children = hostile_number(input);
        array->children = array->n_children > 0 ? NULL : array->children;
    } else if (flaw == 5) {
        array->children = NULL;
    } else if (flaw == 6 && array->n_children > 0) {
        array->children[which % array->n_children] = NULL;
    } else if (flaw == 7) {
        array->dictionary = hostile_memory(sizeof *array->dictionary);
    } else if (array->buffers[1] != NULL &&
               field->width <= 16) { /* not where its type may lie; the claimed bytes are there all the same */
        uint8_t *moved = hostile_memory(HOSTILE_ROWS * 16 + 1);
        array->buffers[1] = moved + 1;
    }
}

static void release_array(struct ArrowArray *array)
{
    array->release = NULL;
}

struct ArrowArray *hostile_array(hostile_input *input, const sc_layout *layout, int32_t index, int64_t rows)
{
    const sc_field *field = &layout->fields[index];
    struct ArrowArray *array = hostile_memory(sizeof *array);
    uint8_t shape = hostile_byte(input);
    int64_t below;
    array->offset = shape % 8;
    array->length = (rows < HOSTILE_ROWS ? rows : HOSTILE_ROWS - 8) + shape % 3;
    if (shape > WRONG)
        *(shape % 2 == 0 ? &array->offset : &array->length) = hostile_number(input);
    array->n_buffers = sc_kind_buffers(field->kind);
    array->buffers = hostile_memory(BUFFERS_MAX * sizeof *array->buffers);
    array->release = release_array;
    int64_t there = ++input->arrays > ARRAYS_MAX ? -1 : rows_of(array);
    make_buffers(input, field, array, there < 0 ? 0 : there, &below);
    if (there < 0)
        memset((void *)array->buffers, 0, BUFFERS_MAX * sizeof *array->buffers);
    array->n_children = field->children;
    array->children = hostile_memory((size_t)field->children * sizeof *array->children);
    for (int32_t i = 0, child = index + 1; i < field->children; i++, child = layout->fields[child].end)
        array->children[i] = hostile_array(input, layout, child, below < 0 ? HOSTILE_ROWS : below);
    if (hostile_byte(input) > WRONG)
        spoil(input, field, array);
    if (array->buffers != NULL) { /* as many as are claimed */
        int64_t count = array->n_buffers < 0 ? 0 : array->n_buffers;
        const void **exact = hostile_memory((size_t)count * sizeof *exact);
        if (count > 0)
            memcpy((void *)exact, (const void *)array->buffers, (size_t)count * sizeof *exact);
        array->buffers = exact;
    }
    return array;
}
