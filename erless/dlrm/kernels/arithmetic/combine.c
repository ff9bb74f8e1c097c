/* Combine: add up the partials of all shards. */
#include "arithmetic/combine.h"

#include "arithmetic/float16.h"
#include "arithmetic/gather.h"

void combine_begin(float *out, int64_t size, const bags_t *bags, const place_t *places) {
    memset(out, 0, sizeof(float) * (size_t)size);
    for (int64_t t = 0; t < bags->tables; t++) {
        const place_t *place = &places[t];
        if (place->pooling != MAX) continue;
        for (int64_t b = 0, count = bags_of(bags, t); b < count; b++)
            for (int64_t c = 0; c < place->dim; c++)
                out[place->column + b * place->stride + c] = -INFINITY;
    }
}

void combine(float *out, const void *partial, int float16, int packed, const bags_t *bags,
             const place_t *places) {
    const int64_t element = float16 ? 2 : 4;
    const uint8_t *next = partial;
    int64_t width = 0, column = 0;
    for (int64_t s = 0; s < bags->tables && !packed; s++) width += places[s].dim;
    for (int64_t s = 0; s < bags->tables; s++) {
        const int32_t *lengths = lengths_in(bags, s);
        const int64_t dim = places[s].dim, count = bags_of(bags, s);
        for (int64_t b = 0; b < count; b++) {
            if (lengths[b] == 0) continue;
            float *to = out + places[s].column + b * places[s].stride;
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
        if (!packed) column += dim;
    }
}

void combine_end(float *out, const bags_t *bags, const place_t *places) {
    for (int64_t t = 0; t < bags->tables; t++) {
        if (places[t].pooling != MEAN && places[t].pooling != MAX) continue;
        const int32_t *lengths = lengths_in(bags, t);
        for (int64_t b = 0, count = bags_of(bags, t); b < count; b++) {
            float *at = out + places[t].column + b * places[t].stride;
            if (places[t].pooling == MAX && lengths[b] == 0)
                memset(at, 0, sizeof(float) * (size_t)places[t].dim);
            if (places[t].pooling == MEAN && lengths[b] > 1)
                for (int64_t c = 0; c < places[t].dim; c++) at[c] /= (float)lengths[b];
        }
    }
}

void to_float16(const float *from, uint16_t *to, int64_t size) {
    for (int64_t i = 0; i < size; i++) to[i] = float_to_float16(from[i]);
}

int64_t packed_floats(const bags_t *bags, const place_t *places) {
    int64_t floats = 0;
    for (int64_t t = 0; t < bags->tables; t++) {
        const int32_t *lengths = lengths_in(bags, t);
        for (int64_t b = 0, count = bags_of(bags, t); b < count; b++)
            if (lengths[b]) floats += places[t].dim;
    }
    return floats;
}
