/* Random Arrow arrays of any compiled type, with slices and nulls everywhere, and the comparison of two by what they
 * mean. */
#ifndef STREAMCORE_TESTS_RANDOM_ARRAY_H
#define STREAMCORE_TESTS_RANDOM_ARRAY_H

#include "layout.h"

uint32_t random_below(uint32_t limit);
void random_seed(uint64_t seed);

/* An array of the layout's field `index` and what is below it; free it with random_array_free. */
struct ArrowArray *random_array(const sc_layout *layout, int32_t index, int64_t length);
void random_array_free(struct ArrowArray *array);

/* Whether row `left_row` of one array means the same as row `right_row` of another, by their own offsets. */
bool same_value(const sc_layout *layout, int32_t index, const struct ArrowArray *left, int64_t left_row,
                const struct ArrowArray *right, int64_t right_row);

#endif
