/* Tables, shards and queries made of the fuzzer's bytes, and the plain way to pool them.
 *
 * Elements and weights are small integers, so that every sum is exact in any order. */
#ifndef ERLESS_FUZZ_TABLES_H
#define ERLESS_FUZZ_TABLES_H

#include "arithmetic/float16.h"
#include "arithmetic/gather.h"
#include "arithmetic/index.h"
#include "input.h"

enum { MOST_TABLES = 4, MOST_ROWS = 400, MOST_SAMPLES = 4, MOST_BAG = 40 };

/* Element c of row `id` of table t, in a range that int4 holds. */
static inline float element(int64_t t, int64_t id, int64_t c) {
    return (float)((7 * t + 3 * id + 5 * c) % 16);
}

static inline void write_row(const slice_t *slice, uint8_t *to, int64_t t, int64_t id) {
    const uint16_t one = float_to_float16(1.0f);
    if (slice->precision == INT8 || slice->precision == INT4) memcpy(to, &one, 2);
    for (int64_t c = 0; c < slice->dim; c++) {
        const float value = element(t, id, c);
        const uint16_t half = float_to_float16(value);
        if (slice->precision == FP32) memcpy(to + 4 * c, &value, 4);
        else if (slice->precision == FP16) memcpy(to + 2 * c, &half, 2);
        else if (slice->precision == INT8) to[4 + c] = (uint8_t)value;
        else to[4 + c / 2] |= (uint8_t)((uint8_t)value << (c % 2 * 4));
    }
}

typedef struct {
    patch_t patch;
    uint8_t *rows;
} owned_patch_t;

/* Let some stored rows be replaced, and those behind the index be added: what was stored of them is
 * another row's, so that only the patch gives the right elements. */
static inline void make_patch(input_t *input, slice_t *slice, int64_t t, const uint8_t *stored) {
    const int64_t step = any_of(input, 1, 9);
    owned_patch_t *owned = exactly(sizeof(owned_patch_t));
    patch_t *patch = &owned->patch;
    int64_t local = 0, count = 0;
    int64_t *keys = exactly(sizeof(int64_t) * (size_t)slice->table_rows);
    for (int64_t id = 0; id < slice->table_rows; id++) {
        if (stored != NULL && !stored[id]) continue;
        if (id >= slice->indexed) keys[count++] = -1 - id;
        else if (id % step == 0) keys[count++] = local;
        local++;
    }
    owned->rows = exactly((size_t)(slice->table_rows * slice->row_bytes));
    REQUIRE(patch_open(patch, keys, count, slice->stored, slice->row_bytes));
    local = count = 0;
    for (int64_t id = 0; id < slice->table_rows; id++) {
        if (stored != NULL && !stored[id]) continue;
        const int64_t at = local++ * slice->row_bytes;
        uint8_t *row = owned->rows + id * slice->row_bytes;
        if (id < slice->indexed && id % step) continue;
        write_row(slice, row, t, id);
        patch_put(patch, keys[count++], row);
        if (id >= slice->indexed) continue;
        memset((uint8_t *)slice->rows + at, 0, (size_t)slice->row_bytes);
        write_row(slice, (uint8_t *)slice->rows + at, t, id + 1);
    }
    free(keys);
    slice->patch = patch;
}

/* What generations may have done to a slice. */
enum { AS_PACKED, CHANGED, GROWN };

/* A slice of table t that stores the rows of which `stored` is set, or all where it is NULL. Some
 * may be patched where it was CHANGED, and the last ones added where it has GROWN. */
static inline slice_t make_slice(input_t *input, int64_t t, int64_t rows, int64_t dim,
                                 const uint8_t *stored, int history) {
    slice_t slice = {.table_rows = rows, .dim = dim};
    const int is_patched = history != AS_PACKED && any_byte(input) & 1;
    slice.indexed = rows - (is_patched && history == GROWN ? any_of(input, 0, rows - 1) : 0);
    slice.precision = (int)any_of(input, FP32, INT4);
    slice.pooling = (int)any_of(input, SUM, MEAN);
    slice.row_bytes = stored_row_bytes(slice.precision, dim);
    for (int64_t id = 0; id < slice.indexed; id++) slice.stored += stored == NULL || stored[id];
    uint8_t *bytes = exactly((size_t)(slice.stored * slice.row_bytes)), *next = bytes;
    for (int64_t id = 0; id < slice.indexed; id++)
        if (stored == NULL || stored[id]) {
            write_row(&slice, next, t, id);
            next += slice.row_bytes;
        }
    slice.rows = bytes;
    if (stored != NULL) {
        uint64_t *blocks =
            exactly(sizeof(uint64_t) * INDEX_WORDS * (size_t)blocks_for(slice.indexed));
        for (int64_t id = 0; id < slice.indexed; id++)
            if (stored[id]) {
                const ids_t one = {&id, 1, 1};
                REQUIRE(index_mark(blocks, slice.indexed, &one) == -1);
            }
        REQUIRE(index_rank(blocks, blocks_for(slice.indexed)) == slice.stored);
        slice.blocks = blocks;
    }
    if (is_patched) make_patch(input, &slice, t, stored);
    return slice;
}

static inline void free_slice(const slice_t *slice) {
    if (slice->patch) {
        owned_patch_t *owned = (owned_patch_t *)(void *)slice->patch;
        patch_close(&owned->patch);
        free(owned->rows);
        free(owned);
    }
    free((void *)slice->rows);
    free((void *)slice->blocks);
}

typedef struct {
    int64_t tables, samples; /* samples: unless `bags` begin where they like */
    bags_t bags;
    int32_t *lengths;
    ids_t values;
    float *weights; /* or NULL */
} query_t;

/* Let each table have a number of bags of its own. */
static inline void make_ragged(input_t *input, bags_t *bags) {
    int64_t *begins = exactly(sizeof(int64_t) * (size_t)(bags->tables + 1));
    begins[0] = 0;
    for (int64_t t = 0; t < bags->tables; t++)
        begins[t + 1] = begins[t] + any_of(input, 0, MOST_SAMPLES);
    bags->begins = begins;
}

/* A query of tables of so many rows: mostly one that fits. */
static inline query_t make_query(input_t *input, int64_t tables, const int64_t *rows, int ragged) {
    query_t query = {.tables = tables, .samples = any_of(input, 0, MOST_SAMPLES)};
    const uint8_t flags = any_byte(input);
    const int wide = flags & 1;
    int64_t size = 0, at = 0;
    query.bags = (bags_t){.tables = tables, .samples = query.samples};
    if (ragged && flags & 4) make_ragged(input, &query.bags);
    const int64_t count = bags_before(&query.bags, tables);
    query.bags.lengths = query.lengths = exactly(sizeof(int32_t) * (size_t)count);
    for (int64_t k = 0; k < count; k++)
        size += query.lengths[k] = (int32_t)any_of(input, 0, MOST_BAG);
    char *data = exactly((size_t)size * (wide ? 8 : 4));
    if (flags & 2) query.weights = exactly(sizeof(float) * (size_t)size);
    for (int64_t k = 0, t = 0; k < count; k++) {
        while (k >= bags_before(&query.bags, t + 1)) t++;
        for (int32_t i = 0; i < query.lengths[k]; i++, at++) {
            const int64_t id = any_id(input, rows[t], wide);
            if (wide) ((int64_t *)(void *)data)[at] = id;
            else ((int32_t *)(void *)data)[at] = (int32_t)id;
            if (query.weights) query.weights[at] = (float)any_of(input, 0, 3);
        }
    }
    if (flags >= 250 && count) /* a length that does not fit */
        query.lengths[any_of(input, 0, count - 1)] = (int32_t)any_bits(input, 4);
    query.values = (ids_t){data, size, wide};
    return query;
}

static inline void free_query(const query_t *query) {
    free(query->lengths);
    free((void *)query->bags.begins);
    free((void *)query->values.data);
    free(query->weights);
}

/* Whether lengths are at least zero and sum to the number of ids. */
static inline int query_is_whole(const query_t *query) {
    int64_t total = 0;
    for (int64_t k = 0; k < bags_before(&query->bags, query->tables); k++) {
        if (query->lengths[k] < 0) return 0;
        total += query->lengths[k];
    }
    return total == query->values.size;
}

/* Pool the bag of table t whose `size` ids begin at `begin`, the plain way. */
static inline void pool_plainly(const query_t *query, int64_t t, int64_t begin, int64_t size,
                                int pooling, int64_t dim, float *out) {
    for (int64_t c = 0; c < dim; c++) {
        float sum = 0, most = -INFINITY;
        for (int64_t i = begin; i < begin + size; i++) {
            const float x = element(t, id_at(&query->values, i), c);
            sum += pooling == WEIGHTED ? query->weights[i] * x : x;
            most = x > most ? x : most;
        }
        out[c] = pooling == MAX ? most : sum;
    }
}

/* Whether two faults are one. What is between their fields does not count. */
static inline int same_fault(const fault_t *a, const fault_t *b) {
    return a->kind == b->kind && a->table == b->table && a->sample == b->sample &&
           a->position == b->position && a->value == b->value;
}

#endif
