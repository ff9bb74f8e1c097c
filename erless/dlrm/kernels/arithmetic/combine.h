/* Combine: the partials of all shards become pooled vectors. */
#ifndef ERLESS_COMBINE_H
#define ERLESS_COMBINE_H

#include "arithmetic/ids.h"

/* Where a table's vectors go in the result: that of bag b to column + b * stride. */
typedef struct {
    int64_t column, dim, pooling, stride;
} place_t;

/* `out` has `size` floats: sums start at 0, maxima at -inf. There is a place for each table of
 * `bags`, whose lengths are not read. */
void combine_begin(float *out, int64_t size, const bags_t *bags, const place_t *places);

/* Add a partial, of float32 or float16 elements. Empty bags are absent where it is packed, and zero
 * otherwise; neither enters. One that is not packed has as many bags of each table. */
void combine(float *out, const void *partial, int float16, int packed, const bags_t *bags,
             const place_t *places);

/* Means are divided by the whole bag's length, once; the maximum of no row becomes 0. */
void combine_end(float *out, const bags_t *bags, const place_t *places);

/* The floats of the packed partial for `bags`. */
int64_t packed_floats(const bags_t *bags, const place_t *places);

void to_float16(const float *from, uint16_t *to, int64_t size);

#endif
