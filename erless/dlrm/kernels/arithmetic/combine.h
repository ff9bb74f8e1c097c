/* Combine: the partials of all shards become pooled vectors. */
#ifndef ERLESS_COMBINE_H
#define ERLESS_COMBINE_H

#include <stdint.h>

/* Where a table's vectors go in a row of the result. */
typedef struct {
    int64_t column, dim, pooling;
} place_t;

/* `out` (samples, stride): sums start at 0, maxima at -inf. */
void combine_begin(float *out, int64_t stride, int64_t samples, const place_t *places,
                   int64_t count);

/* Add a partial of `count` tables, of float32 or float16 elements. Empty bags are absent where it
 * is packed, and zero otherwise; neither enters. */
void combine(float *out, int64_t stride, const void *partial, int float16, int packed,
             const int32_t *lengths, int64_t samples, const place_t *places, int64_t count);

/* Means are divided by the whole bag's length, once; the maximum of no row becomes 0. */
void combine_end(float *out, int64_t stride, const int32_t *lengths, int64_t samples,
                 const place_t *places, int64_t count);

/* The floats of the packed partial for `lengths` (count, samples). */
int64_t packed_floats(const int32_t *lengths, int64_t samples, const place_t *places,
                      int64_t count);

void to_float16(const float *from, uint16_t *to, int64_t size);

#endif
