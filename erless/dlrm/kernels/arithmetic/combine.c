/* Combine: add up the partials of all shards. */
#include "arithmetic/combine.h"

#include "arithmetic/float16.h"
#include "arithmetic/gather.h"

void combine_begin(float *out, int64_t stride, int64_t samples, const place_t *places,
                   int64_t count) {
    memset(out, 0, sizeof(float) * (size_t)(stride * samples));
    for (int64_t t = 0; t < count; t++)
        for (int64_t b = 0; places[t].pooling == MAX && b < samples; b++)
            for (int64_t c = 0; c < places[t].dim; c++)
                out[b * stride + places[t].column + c] = -INFINITY;
}

void combine(float *out, int64_t stride, const void *partial, int float16, int packed,
             const int32_t *lengths, int64_t samples, const place_t *places, int64_t count) {
    const int64_t element = float16 ? 2 : 4;
    const uint8_t *next = partial;
    int64_t width = 0, column = 0;
    for (int64_t s = 0; s < count; s++) width += places[s].dim;
    for (int64_t s = 0; s < count; s++) {
        const int64_t dim = places[s].dim;
        for (int64_t b = 0; b < samples; b++) {
            if (lengths[s * samples + b] == 0) continue;
            float *to = out + b * stride + places[s].column;
            const uint8_t *from =
                packed ? next : (const uint8_t *)partial + element * (b * width + column);
            if (places[s].pooling == MAX)
                for (int64_t c = 0; c < dim; c++) {
                    const float x = float16 ? load_float16(from + 2 * c) : load_float(from + 4 * c);
                    to[c] = x > to[c] ? x : to[c];
                }
            else if (float16)
                for (int64_t c = 0; c < dim; c++) to[c] += load_float16(from + 2 * c);
            else
                for (int64_t c = 0; c < dim; c++) to[c] += load_float(from + 4 * c);
            next += element * dim;
        }
        column += dim;
    }
}

void combine_end(float *out, int64_t stride, const int32_t *lengths, int64_t samples,
                 const place_t *places, int64_t count) {
    for (int64_t t = 0; t < count; t++) {
        if (places[t].pooling != MEAN && places[t].pooling != MAX) continue;
        for (int64_t b = 0; b < samples; b++) {
            const int32_t length = lengths[t * samples + b];
            float *at = out + b * stride + places[t].column;
            if (places[t].pooling == MAX && length == 0)
                memset(at, 0, sizeof(float) * (size_t)places[t].dim);
            if (places[t].pooling == MEAN && length > 1)
                for (int64_t c = 0; c < places[t].dim; c++) at[c] /= (float)length;
        }
    }
}

void to_float16(const float *from, uint16_t *to, int64_t size) {
    for (int64_t i = 0; i < size; i++) to[i] = float_to_float16(from[i]);
}

int64_t packed_floats(const int32_t *lengths, int64_t samples, const place_t *places,
                      int64_t count) {
    int64_t floats = 0;
    for (int64_t t = 0; t < count; t++)
        for (int64_t b = 0; b < samples; b++)
            if (lengths[t * samples + b]) floats += places[t].dim;
    return floats;
}
