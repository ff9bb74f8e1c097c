/* Bucketize a query. */
#include "arithmetic/route.h"

#include <stdlib.h>

#include "arithmetic/platform.h"

enum { AHEAD = 24 }; /* codes prefetched ahead; tables of 10^7 rows exceed the L2 cache */

/* Name the id at `position`, which is of table `table` and does not fit. */
static void blame(const ids_t *values, const int32_t *lengths, int64_t samples, int64_t table,
                  int64_t begin, int64_t position, int kind, fault_t *fault) {
    int64_t sample = 0;
    while (sample < samples - 1 && begin + lengths[sample] <= position) begin += lengths[sample++];
    *fault = (fault_t){kind, table, sample, position, id_at(values, position)};
}

/* The same for int32 and int64 ids. `fit` tells whether all ids are rows of a table of `rows`; it
 * has no branch, so that it vectorises, and an id below zero becomes one above LARGEST, which is no
 * row of any table. `route` writes the shard of each id; `scatter` puts ids and weights where their
 * shard's cursor stands. */
#define DEFINE_TABLE(NAME, ID, UNSIGNED, LARGEST)                                              \
    static ALWAYS_INLINE int NAME##_fit_any(const ID *ids, int64_t size, int64_t rows) {       \
        UNSIGNED most = 0;                                                                     \
        for (int64_t i = 0; i < size; i++) {                                                   \
            const UNSIGNED id = (UNSIGNED)ids[i];                                              \
            most = id > most ? id : most;                                                      \
        }                                                                                      \
        return size == 0 || ((uint64_t)most < (uint64_t)rows && most <= LARGEST);              \
    }                                                                                          \
    AVX2 static int NAME##_fit_fast(const ID *ids, int64_t size, int64_t rows) {               \
        return NAME##_fit_any(ids, size, rows);                                                \
    }                                                                                          \
    static int NAME##_fit(const ID *ids, int64_t size, int64_t rows) {                         \
        return HAS_AVX2 ? NAME##_fit_fast(ids, size, rows) : NAME##_fit_any(ids, size, rows);  \
    }                                                                                          \
    static ALWAYS_INLINE void NAME##_codes(const route_t *route, const ID *ids, int64_t size,  \
                                           const int bits, uint8_t *restrict to) {             \
        const uint8_t *const codes = route->codes;                                             \
        const int shift = bits == 8 ? 0 : bits == 4 ? 1 : bits == 2 ? 2 : 3;                   \
        uint8_t holders[MOST_HOLDERS];                                                         \
        memcpy(holders, route->holders, sizeof(holders));                                      \
        for (int64_t i = 0; i < size; i++) {                                                   \
            if (i + AHEAD < size) __builtin_prefetch(codes + (ids[i + AHEAD] >> shift));       \
            const unsigned code = codes[ids[i] >> shift];                                      \
            const unsigned place = code >> ((ids[i] & ((1 << shift) - 1)) * bits);             \
            to[i] = bits == 8 ? (uint8_t)code : holders[place & ((1u << bits) - 1)];           \
        }                                                                                      \
    }                                                                                          \
    static void NAME##_route(const route_t *route, const ID *ids, int64_t size, uint8_t *to) { \
        if (route->bits == 0) memset(to, route->holders[0], (size_t)size);                     \
        else if (route->bits == 1) NAME##_codes(route, ids, size, 1, to);                      \
        else if (route->bits == 2) NAME##_codes(route, ids, size, 2, to);                      \
        else if (route->bits == 4) NAME##_codes(route, ids, size, 4, to);                      \
        else NAME##_codes(route, ids, size, 8, to);                                            \
    }                                                                                          \
    static void NAME##_scatter(const uint8_t *to, const ID *ids, const float *weights,         \
                               int64_t size, int64_t *cursor, ID *out, float *weights_out) {   \
        if (weights == NULL) {                                                                 \
            for (int64_t i = 0; i < size; i++) out[cursor[to[i]]++] = ids[i];                  \
        } else {                                                                               \
            for (int64_t i = 0; i < size; i++) {                                               \
                const int64_t at = cursor[to[i]]++;                                            \
                out[at] = ids[i];                                                              \
                weights_out[at] = weights[i];                                                  \
            }                                                                                  \
        }                                                                                      \
    }

DEFINE_TABLE(narrow, int32_t, uint32_t, INT32_MAX)
DEFINE_TABLE(wide, int64_t, uint64_t, INT64_MAX)

/* Copy those ids of table t, which begin at `begin`, that are not at home to `away`. */
static void keep_away(const routing_t *routing, int64_t t, const ids_t *values,
                      const float *weights, const int32_t *lengths, int64_t samples, int64_t begin,
                      int64_t size, split_t *split, int32_t *sizes, kept_t *kept) {
    const size_t width = split->wide ? sizeof(int64_t) : sizeof(int32_t);
    const float *own = weights ? weights + begin : NULL;
    void *to = (char *)split->away + width * (size_t)split->size;
    float *weights_to = weights ? split->weights + split->size : NULL;
    if (routing->homes && routing->homes[t].shard >= 0) {
        split->size += home_find(&routing->homes[t], values, begin, !split->wide, own, lengths,
                                 samples, sizes, kept, to, weights_to, split->bags);
        return;
    }
    memcpy(split->bags, lengths, sizeof(int32_t) * (size_t)samples);
    split->size += size;
    if (split->away == values->data) return; /* the query's own ids */
    if (values->wide == split->wide)
        memcpy(to, (const char *)values->data + width * (size_t)begin, width * (size_t)size);
    else
        for (int64_t i = 0; i < size; i++)
            ((int32_t *)to)[i] = (int32_t)((const int64_t *)values->data)[begin + i];
    if (weights_to) memcpy(weights_to, own, sizeof(float) * (size_t)size);
}

/* Count the ids of each of table t's bags in each shard, where `lengths_of` that shard stands, and
 * in all. Returns how many ids have a shard. Two counters break the dependency of one increment on
 * the last, since neighbours mostly go to the same shard. */
static int64_t count_bags(const routing_t *routing, int64_t t, int64_t samples, int64_t first,
                          const split_t *split, int32_t **lengths_of, int64_t *totals) {
    uint32_t even[256] = {0}, odd[256] = {0}, before[256] = {0};
    int64_t holders[MAX_SHARDS], count = 0, routed = 0;
    const uint8_t *to = split->to + first;
    const int64_t home = routing->homes ? routing->homes[t].shard : -1;
    for (int64_t s = 0; s < routing->shards; s++)
        if (routing->slots[s * routing->tables + t] >= 0) holders[count++] = s;
    for (int64_t b = 0; b < samples; b++) {
        const int64_t size = split->bags[b];
        int64_t i = 0;
        for (; i + 1 < size; i += 2) {
            even[to[i]]++;
            odd[to[i + 1]]++;
        }
        if (i < size) even[to[i]]++;
        to += size;
        for (int64_t h = 0; h < count; h++) {
            const int64_t s = holders[h];
            const uint32_t now = even[s] + odd[s];
            lengths_of[s][b] = (int32_t)(now - before[s]);
            before[s] = now;
        }
    }
    for (int64_t h = 0; h < count; h++) {
        totals[holders[h]] += before[holders[h]];
        lengths_of[holders[h]] += samples;
        /* an id that is routed home, yet is not in its index, has no shard: two files contradict */
        if (holders[h] != home) routed += before[holders[h]];
    }
    return routed;
}

/* Name table t's first id that no shard but its home holds. */
static void blame_absent(const routing_t *routing, int64_t t, const ids_t *values,
                         const int32_t *lengths, int64_t samples, int64_t begin, int64_t first,
                         const split_t *split, fault_t *fault) {
    const int64_t home = routing->homes ? routing->homes[t].shard : -1;
    const ids_t away = {split->away, split->size, split->wide};
    for (int64_t i = first; i < split->size; i++) {
        const int64_t s = split->to[i];
        if (s < routing->shards && s != home && routing->slots[s * routing->tables + t] >= 0)
            continue;
        int64_t place = begin;
        while (id_at(values, place) != id_at(&away, i)) place++;
        blame(values, lengths, samples, t, begin, place, FAULT_ABSENT, fault);
        return;
    }
}

/* Count table t, whose `size` ids begin at `begin`. Returns 0 where an id is bad. */
static int split_table(const routing_t *routing, int64_t t, const ids_t *values,
                       const float *weights, const bags_t *bags, int64_t begin, int64_t size,
                       split_t *split, kept_t *kept, int32_t **lengths_of, int64_t *totals,
                       fault_t *fault) {
    const int32_t *lengths = lengths_in(bags, t);
    const int64_t samples = bags_of(bags, t);
    int32_t *sizes = kept->sizes ? kept->sizes + bags_before(bags, t) : NULL;
    const int32_t *narrow = (const int32_t *)values->data + begin;
    const int64_t *wide = (const int64_t *)values->data + begin;
    const int64_t first = split->size;
    if (!(values->wide ? wide_fit(wide, size, routing->rows[t])
                       : narrow_fit(narrow, size, routing->rows[t]))) {
        int64_t i = begin;
        while ((uint64_t)id_at(values, i) < (uint64_t)routing->rows[t]) i++;
        blame(values, lengths, samples, t, begin, i, FAULT_RANGE, fault);
        return 0;
    }
    keep_away(routing, t, values, weights, lengths, samples, begin, size, split, sizes, kept);
    const int64_t away = split->size - first;
    if (split->wide)
        wide_route(&routing->routes[t], (const int64_t *)split->away + first, away,
                   split->to + first);
    else
        narrow_route(&routing->routes[t], (const int32_t *)split->away + first, away,
                     split->to + first);
    split->ends[t] = split->size;
    if (count_bags(routing, t, samples, first, split, lengths_of, totals) == away) return 1;
    blame_absent(routing, t, values, lengths, samples, begin, first, split, fault);
    return 0;
}

/* What routing reads must be there: lengths that fit the ids, and weights where a table needs them
 * at home. */
static int query_fits(const routing_t *routing, const ids_t *values, const float *weights,
                      const bags_t *bags, fault_t *fault) {
    for (int64_t t = 0; routing->homes && t < routing->tables; t++) {
        const home_t *home = &routing->homes[t];
        if (home->shard >= 0 && home->slice.pooling == WEIGHTED && weights == NULL) {
            *fault = (fault_t){FAULT_UNWEIGHTED, t, 0, 0, 0};
            return 0;
        }
    }
    return lengths_fit(bags, values->size, fault);
}

/* Make the buffers of a split. Ids that leave as they came are read where they are. Returns 0
 * without memory. */
static int open_split(split_t *split, const routing_t *routing, const ids_t *values,
                      const float *weights, const bags_t *bags) {
    int64_t most = 0;
    for (int64_t t = 0; t < bags->tables; t++)
        if (bags_of(bags, t) > most) most = bags_of(bags, t);
    const size_t n = (size_t)values->size + 8; /* home_find writes beyond its end */
    split->wide = values->wide && !routing->narrow;
    const int as_they_are = !routing->homes && split->wide == values->wide;
    split->own_away = !as_they_are;
    split->own_weights = !as_they_are && weights;
    split->to = malloc(n);
    split->ends = malloc(sizeof(int64_t) * (size_t)(routing->tables + 1));
    split->bags = malloc(sizeof(int32_t) * (size_t)(most + 1));
    split->away = as_they_are ? (void *)values->data : malloc(n * sizeof(int64_t));
    split->weights = (float *)weights;
    if (split->own_weights) split->weights = malloc(n * sizeof(float));
    return split->to && split->ends && split->bags && split->away && (!weights || split->weights);
}

void route_close(split_t *split) {
    free(split->to);
    free(split->ends);
    free(split->bags);
    if (split->own_away) free(split->away);
    if (split->own_weights) free(split->weights);
}

int64_t bags_of_shard(const routing_t *routing, const bags_t *bags, int64_t shard) {
    int64_t count = 0;
    if (bags->begins == NULL) return routing->widths[shard] * bags->samples;
    for (int64_t t = 0; t < routing->tables; t++)
        if (routing->slots[shard * routing->tables + t] >= 0) count += bags_of(bags, t);
    return count;
}

int64_t route_count(const routing_t *routing, const ids_t *values, const float *weights,
                    const bags_t *bags, int32_t *lengths_out, int64_t *starts, kept_t *kept,
                    split_t *split, fault_t *fault) {
    int64_t totals[256] = {0}, begin = 0;
    int32_t *lengths_of[MAX_SHARDS];
    if (!query_fits(routing, values, weights, bags, fault)) return 0;
    if (!open_split(split, routing, values, weights, bags)) {
        fault->kind = FAULT_MEMORY;
        return 0;
    }
    for (int64_t s = 0; s < routing->shards; s++) {
        lengths_of[s] = lengths_out;
        lengths_out += bags_of_shard(routing, bags, s);
    }
    for (int64_t t = 0; t < routing->tables; t++) {
        const int32_t *row = lengths_in(bags, t);
        const int64_t samples = bags_of(bags, t);
        int64_t size = 0;
        for (int64_t b = 0; b < samples; b++) size += row[b];
        if (!split_table(routing, t, values, weights, bags, begin, size, split, kept, lengths_of,
                         totals, fault))
            return 0;
        begin += size;
    }
    starts[0] = 0;
    for (int64_t s = 0; s < routing->shards; s++) starts[s + 1] = starts[s] + totals[s];
    return starts[routing->shards];
}

void route_place(const routing_t *routing, const split_t *split, const int64_t *starts,
                 void *values_out, float *weights_out) {
    int64_t cursor[256] = {0}, at = 0;
    for (int64_t s = 0; s < routing->shards; s++) cursor[s] = starts[s];
    for (int64_t t = 0; t < routing->tables; t++) {
        const float *w = split->weights ? split->weights + at : NULL;
        const int64_t size = split->ends[t] - at;
        if (split->wide)
            wide_scatter(split->to + at, (const int64_t *)split->away + at, w, size, cursor,
                         values_out, weights_out);
        else
            narrow_scatter(split->to + at, (const int32_t *)split->away + at, w, size, cursor,
                           values_out, weights_out);
        at = split->ends[t];
    }
}
