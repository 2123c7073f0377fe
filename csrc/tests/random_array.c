#include "random_array.h"

#include "check.h"

static uint64_t random_state = 1;

void random_seed(uint64_t seed)
{
    random_state = seed * 2 + 1;
}

uint32_t random_below(uint32_t limit)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((random_state >> 33) % limit);
}

/* ---- making ------------------------------------------------------------------------------------------------ */

static void *filled(int64_t size)
{
    uint8_t *data = malloc((size_t)size + 1); /* not padded: a sanitizer shall see a read behind it */
    CHECK(data != NULL);
    for (int64_t i = 0; i < size; i++)
        data[i] = (uint8_t)random_below(256);
    return data;
}

static void make_ends(struct ArrowArray *array, int64_t rows, bool large, int64_t *values)
{
    int64_t end = random_below(5);
    array->buffers[1] = malloc((size_t)((rows + 1) * (large ? 8 : 4)));
    CHECK(array->buffers[1] != NULL);
    for (int64_t i = 0; i <= rows; i++) {
        if (large)
            ((int64_t *)(uintptr_t)array->buffers[1])[i] = end;
        else
            ((int32_t *)(uintptr_t)array->buffers[1])[i] = (int32_t)end;
        *values = end;
        end += random_below(4) == 0 ? 0 : random_below(6);
    }
}

static void make_views(struct ArrowArray *array, int64_t rows)
{
    enum { BUFFERS = 2, SIZE = 300 };
    int64_t *sizes = malloc(BUFFERS * sizeof *sizes);
    uint8_t *views = filled(rows * 16);
    CHECK(sizes != NULL);
    for (int i = 0; i < BUFFERS; i++) {
        sizes[i] = SIZE;
        array->buffers[2 + i] = filled(SIZE);
    }
    for (int64_t row = 0; row < rows; row++) {
        int32_t size = (int32_t)random_below(40), place[2] = {(int32_t)random_below(BUFFERS), 0};
        memcpy(views + row * 16, &size, 4);
        if (size <= 12) {
            memset(views + row * 16 + 4 + size, 0, (size_t)(12 - size));
            continue;
        }
        place[1] = (int32_t)random_below((uint32_t)(SIZE - size + 1));
        memcpy(views + row * 16 + 4, (const uint8_t *)array->buffers[2 + place[0]] + place[1], 4);
        memcpy(views + row * 16 + 8, place, 8);
    }
    array->buffers[1] = views;
    array->buffers[2 + BUFFERS] = sizes;
    array->n_buffers = 3 + BUFFERS;
}

static void make_nulls(struct ArrowArray *array, int64_t rows)
{
    array->null_count = 0;
    if (random_below(3) == 0)
        return;
    array->buffers[0] = filled((rows + 7) / 8);
    array->null_count = -1;
}

struct ArrowArray *random_array(const sc_layout *layout, int32_t index, int64_t length)
{
    const sc_field *field = &layout->fields[index];
    struct ArrowArray *array = calloc(1, sizeof *array);
    int64_t rows, values = 0;
    CHECK(array != NULL);
    array->offset = random_below(20);
    array->length = length;
    rows = array->offset + length;
    array->n_buffers = sc_kind_buffers(field->kind);
    array->buffers = calloc(8, sizeof *array->buffers);
    array->n_children = field->children;
    array->children = calloc((size_t)field->children + 1, sizeof *array->children);
    CHECK(array->buffers != NULL && array->children != NULL);
    if (field->kind == SC_KIND_NULL) {
        array->null_count = length;
        return array;
    }
    make_nulls(array, rows);
    int64_t child_rows = rows;
    if (field->kind == SC_KIND_BOOL)
        array->buffers[1] = filled((rows + 7) / 8);
    if (field->kind == SC_KIND_FIXED)
        array->buffers[1] = filled(rows * field->width);
    if (field->kind == SC_KIND_VIEW)
        make_views(array, rows);
    if (field->kind == SC_KIND_BINARY || field->kind == SC_KIND_LARGE_BINARY) {
        make_ends(array, rows, field->kind == SC_KIND_LARGE_BINARY, &values);
        array->buffers[2] = filled(values);
    }
    if (field->kind == SC_KIND_LIST || field->kind == SC_KIND_LARGE_LIST)
        make_ends(array, rows, field->kind == SC_KIND_LARGE_LIST, &child_rows);
    if (field->kind == SC_KIND_FIXED_LIST)
        child_rows = rows * field->width;
    for (int32_t i = 0, child = index + 1; i < field->children; i++, child = layout->fields[child].end)
        array->children[i] = random_array(layout, child, child_rows + random_below(3));
    return array;
}

void random_array_free(struct ArrowArray *array)
{
    for (int64_t i = 0; i < array->n_children; i++)
        random_array_free(array->children[i]);
    for (int64_t i = 0; i < array->n_buffers; i++)
        free((void *)(uintptr_t)array->buffers[i]);
    free(array->buffers);
    free(array->children);
    free(array);
}

/* ---- comparing --------------------------------------------------------------------------------------------- */

static bool is_null(const struct ArrowArray *array, int64_t row)
{
    const uint8_t *bits = array->n_buffers > 0 ? array->buffers[0] : NULL;
    int64_t at = array->offset + row;
    return array->null_count != 0 && bits != NULL && !(bits[at / 8] >> (at % 8) & 1);
}

/* Where a row of an array with offsets begins and ends. */
static void extent(const struct ArrowArray *array, bool large, int64_t row, int64_t *from, int64_t *to)
{
    int64_t at = array->offset + row;
    *from = large ? ((const int64_t *)array->buffers[1])[at] : ((const int32_t *)array->buffers[1])[at];
    *to = large ? ((const int64_t *)array->buffers[1])[at + 1] : ((const int32_t *)array->buffers[1])[at + 1];
}

static const uint8_t *view_at(const struct ArrowArray *array, int64_t row, int32_t *size)
{
    const uint8_t *view = (const uint8_t *)array->buffers[1] + (array->offset + row) * 16;
    int32_t place[2];
    memcpy(size, view, 4);
    memcpy(place, view + 8, 8);
    return *size <= 12 ? view + 4 : (const uint8_t *)array->buffers[2 + place[0]] + place[1];
}

static bool same_children(const sc_layout *layout, int32_t child, const struct ArrowArray *left, int64_t left_from,
                          int64_t left_to, const struct ArrowArray *right, int64_t right_from, int64_t right_to)
{
    if (left_to - left_from != right_to - right_from)
        return false;
    for (int64_t i = 0; i < left_to - left_from; i++)
        if (!same_value(layout, child, left, left_from + i, right, right_from + i))
            return false;
    return true;
}

static bool same_bytes(const struct ArrowArray *left, int64_t left_row, const struct ArrowArray *right,
                       int64_t right_row, const sc_field *field)
{
    int64_t from[2], to[2];
    int32_t sizes[2];
    if (field->kind == SC_KIND_VIEW) {
        const uint8_t *a = view_at(left, left_row, &sizes[0]), *b = view_at(right, right_row, &sizes[1]);
        return sizes[0] == sizes[1] && memcmp(a, b, (size_t)sizes[0]) == 0;
    }
    bool large = field->kind == SC_KIND_LARGE_BINARY;
    extent(left, large, left_row, &from[0], &to[0]);
    extent(right, large, right_row, &from[1], &to[1]);
    return to[0] - from[0] == to[1] - from[1] &&
           (to[0] == from[0] || memcmp((const uint8_t *)left->buffers[2] + from[0],
                                       (const uint8_t *)right->buffers[2] + from[1], (size_t)(to[0] - from[0])) == 0);
}

bool same_value(const sc_layout *layout, int32_t index, const struct ArrowArray *left, int64_t left_row,
                const struct ArrowArray *right, int64_t right_row)
{
    const sc_field *field = &layout->fields[index];
    int64_t a = left->offset + left_row, b = right->offset + right_row, from[2], to[2], width = field->width;
    if (field->kind == SC_KIND_NULL)
        return true;
    if (is_null(left, left_row) || is_null(right, right_row))
        return is_null(left, left_row) == is_null(right, right_row);
    switch (field->kind) {
    case SC_KIND_BOOL:
        return (((const uint8_t *)left->buffers[1])[a / 8] >> (a % 8) & 1) ==
               (((const uint8_t *)right->buffers[1])[b / 8] >> (b % 8) & 1);
    case SC_KIND_FIXED:
        return width == 0 || memcmp((const uint8_t *)left->buffers[1] + a * width,
                                    (const uint8_t *)right->buffers[1] + b * width, (size_t)width) == 0;
    case SC_KIND_LIST:
    case SC_KIND_LARGE_LIST:
        extent(left, field->kind == SC_KIND_LARGE_LIST, left_row, &from[0], &to[0]);
        extent(right, field->kind == SC_KIND_LARGE_LIST, right_row, &from[1], &to[1]);
        return same_children(layout, index + 1, left->children[0], from[0], to[0], right->children[0], from[1], to[1]);
    case SC_KIND_FIXED_LIST:
        return same_children(layout, index + 1, left->children[0], a * width, (a + 1) * width, right->children[0],
                             b * width, (b + 1) * width);
    case SC_KIND_STRUCT:
        for (int32_t i = 0, child = index + 1; i < field->children; i++, child = layout->fields[child].end)
            if (!same_value(layout, child, left->children[i], a, right->children[i], b))
                return false;
        return true;
    default:
        return same_bytes(left, left_row, right, right_row, field);
    }
}
