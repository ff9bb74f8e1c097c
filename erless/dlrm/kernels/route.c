/* Bucketize: one counting sort of a query's ids by shard, which keeps the order of bags. */
#include <stdlib.h>

#include "kernels.h"

enum { AHEAD = 24 }; /* routing bytes prefetched ahead; tables of 10^7 rows exceed the L2 cache */

/* The first id outside the table, as a fault. */
static void blame(const ids_t *values, const int32_t *lengths, int64_t samples, int64_t table,
                  int64_t begin, int64_t position, int kind, fault_t *fault) {
    int64_t sample = 0;
    while (sample < samples - 1 && begin + lengths[sample] <= position) begin += lengths[sample++];
    *fault = (fault_t){kind, table, sample, position, id_at(values, position)};
}

#define DEFINE_TABLE(NAME, ID, UNSIGNED)                                                         \
    /* Whether all ids are rows of a table of `rows`; no branch, so that it vectorises. */        \
    static int NAME##_fit(const ID *ids, int64_t size, int64_t rows) {                             \
        UNSIGNED most = 0;                                                                         \
        for (int64_t i = 0; i < size; i++) {                                                       \
            const UNSIGNED id = (UNSIGNED)ids[i];                                                  \
            most = id > most ? id : most;                                                          \
        }                                                                                          \
        return size == 0 || (uint64_t)most < (uint64_t)rows;                                       \
    }                                                                                              \
    /* The shard of each id of one bag, counted. Two counters break the dependency of one        \
     * increment on the last, since neighbours mostly go to the same shard. */                     \
    static void NAME##_count(const uint8_t *route, const ID *ids, int64_t size, int64_t ahead,     \
                             uint8_t *to, uint32_t *even, uint32_t *odd) {                         \
        int64_t i = 0;                                                                             \
        for (; i + 1 < size; i += 2) {                                                             \
            if (i + AHEAD + 1 < ahead) {                                                           \
                __builtin_prefetch(route + ids[i + AHEAD]);                                        \
                __builtin_prefetch(route + ids[i + AHEAD + 1]);                                    \
            }                                                                                      \
            const uint8_t a = route[ids[i]], b = route[ids[i + 1]];                                \
            to[i] = a;                                                                             \
            to[i + 1] = b;                                                                         \
            even[a]++;                                                                             \
            odd[b]++;                                                                              \
        }                                                                                          \
        if (i < size) even[to[i] = route[ids[i]]]++;                                               \
    }                                                                                              \
    static void NAME##_scatter(const uint8_t *to, const ID *ids, const float *weights,             \
                               int64_t size, int64_t *cursor, ID *out, float *weights_out) {       \
        if (weights == NULL) {                                                                     \
            for (int64_t i = 0; i < size; i++) out[cursor[to[i]]++] = ids[i];                      \
        } else {                                                                                   \
            for (int64_t i = 0; i < size; i++) {                                                   \
                const int64_t at = cursor[to[i]]++;                                                \
                out[at] = ids[i];                                                                  \
                weights_out[at] = weights[i];                                                      \
            }                                                                                      \
        }                                                                                          \
    }

DEFINE_TABLE(narrow, int32_t, uint32_t)
DEFINE_TABLE(wide, int64_t, uint64_t)

/* Count the ids of table t per bag and shard. Returns 0 when an id is bad (fault is filled in). */
static int count_table(const routing_t *routing, int64_t t, const ids_t *values,
                       const int32_t *lengths, int64_t samples, int64_t begin, int64_t size,
                       uint8_t *to, int32_t **lengths_of, int64_t *totals, fault_t *fault) {
    const uint8_t *table = routing->routes[t];
    const int32_t *narrow = (const int32_t *)values->data + begin;
    const int64_t *wide = (const int64_t *)values->data + begin;
    const int fit = values->wide ? wide_fit(wide, size, routing->rows[t])
                                 : narrow_fit(narrow, size, routing->rows[t]);
    if (!fit) {
        int64_t i = begin;
        while ((uint64_t)id_at(values, i) < (uint64_t)routing->rows[t]) i++;
        blame(values, lengths, samples, t, begin, i, FAULT_RANGE, fault);
        return 0;
    }
    uint32_t even[256] = {0}, odd[256] = {0}, before[256] = {0};
    int64_t holders[MAX_SHARDS], count = 0, done = 0, routed = 0;
    for (int64_t s = 0; s < routing->shards; s++)
        if (routing->slots[s * routing->tables + t] >= 0) holders[count++] = s;
    for (int64_t b = 0; b < samples; b++) {
        const int64_t length = lengths[b];
        if (values->wide)
            wide_count(table, wide + done, length, size - done, to + done, even, odd);
        else
            narrow_count(table, narrow + done, length, size - done, to + done, even, odd);
        done += length;
        for (int64_t h = 0; h < count; h++) {
            const int64_t s = holders[h];
            const uint32_t now = even[s] + odd[s];
            const int64_t row = routing->slots[s * routing->tables + t];
            lengths_of[s][row * samples + b] = (int32_t)(now - before[s]);
            before[s] = now;
        }
    }
    for (int64_t h = 0; h < count; h++) {
        totals[holders[h]] += before[holders[h]];
        routed += before[holders[h]];
    }
    if (routed == size) return 1;
    for (int64_t i = 0; i < size; i++) {
        const int64_t s = to[i];
        if (s < routing->shards && routing->slots[s * routing->tables + t] >= 0) continue;
        blame(values, lengths, samples, t, begin, begin + i, FAULT_ABSENT, fault);
        break;
    }
    return 0;
}

void route(const routing_t *routing, const ids_t *values, const float *weights,
           const int32_t *lengths, int64_t samples, void *values_out, float *weights_out,
           int32_t *lengths_out, int64_t *starts, fault_t *fault) {
    int64_t totals[256] = {0}, cursor[256] = {0}, begin = 0;
    int32_t *lengths_of[MAX_SHARDS];
    for (int64_t t = 0; t < routing->tables; t++)
        for (int64_t b = 0; b < samples; b++) {
            const int32_t length = lengths[t * samples + b];
            if (length < 0) {
                *fault = (fault_t){FAULT_LENGTH, t, b, begin, length};
                return;
            }
            begin += length;
        }
    if (begin != values->size) {
        *fault = (fault_t){FAULT_TOTAL, 0, 0, values->size, begin};
        return;
    }
    uint8_t *to = malloc((size_t)values->size + 1);
    if (to == NULL) {
        fault->kind = FAULT_MEMORY;
        return;
    }
    for (int64_t s = 0; s < routing->shards; s++) {
        lengths_of[s] = lengths_out;
        lengths_out += routing->widths[s] * samples;
    }
    begin = 0;
    for (int64_t t = 0; t < routing->tables; t++) {
        const int32_t *row = lengths + t * samples;
        int64_t size = 0;
        for (int64_t b = 0; b < samples; b++) size += row[b];
        if (!count_table(routing, t, values, row, samples, begin, size, to + begin, lengths_of,
                         totals, fault))
            goto done;
        begin += size;
    }
    starts[0] = 0;
    for (int64_t s = 0; s < routing->shards; s++) {
        cursor[s] = starts[s];
        starts[s + 1] = starts[s] + totals[s];
    }
    if (values->wide)
        wide_scatter(to, values->data, weights, values->size, cursor, values_out, weights_out);
    else
        narrow_scatter(to, values->data, weights, values->size, cursor, values_out, weights_out);
done:
    free(to);
}
