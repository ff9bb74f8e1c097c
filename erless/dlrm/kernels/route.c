/* Bucketize: one counting sort of a query's ids by shard, which keeps the order of bags. */
#include <stdlib.h>

#include "kernels.h"

enum { AHEAD = 24 }; /* routing bytes prefetched ahead; tables of 10^7 rows exceed the L2 cache */

#if defined(__x86_64__)
#define POPCNT __attribute__((target("popcnt,bmi,bmi2")))
#define HAS_POPCNT (__builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi2"))
#else
#define POPCNT
#define HAS_POPCNT 0
#endif

/* What the first pass leaves to the second. Of a table without a home: every id, in `away`. */
typedef struct {
    void *kept;        /* local indexes at home, each table's from its first id's place on */
    float *kept_weights;
    void *away;        /* the other ids, in order */
    float *away_weights;
    uint8_t *to;       /* the shard of each */
    int64_t away_size;
    int64_t *at_home;  /* (tables): ids kept */
    int64_t *away_end; /* (tables): where the table's ids end in `away` */
} split_t;

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
    /* Split one bag of a table that has a home. Every store is unconditional, so that what is      \
     * at home and what is not costs no mispredicted branch. Returns how many are away. */         \
    static inline __attribute__((always_inline)) int64_t NAME##_split_any(                         \
        const word_t *words, const ID *ids, const float *weights, int64_t size, ID *kept,          \
        float *kept_weights, ID *away, float *away_weights) {                                      \
        int64_t home = 0, other = 0;                                                               \
        for (int64_t i = 0; i < size; i++) {                                                       \
            const word_t *word = words + ((uint64_t)ids[i] >> 6);                                  \
            const uint64_t below = ~(~(uint64_t)0 << (ids[i] & 63));                               \
            const int stored = (int)(word->bits >> (ids[i] & 63) & 1);                             \
            kept[home] = (ID)(word->rank + (uint64_t)__builtin_popcountll(word->bits & below));    \
            away[other] = ids[i];                                                                  \
            if (weights) kept_weights[home] = away_weights[other] = weights[i];                    \
            home += stored;                                                                        \
            other += !stored;                                                                      \
        }                                                                                          \
        return other;                                                                              \
    }                                                                                              \
    POPCNT static int64_t NAME##_split_fast(const word_t *words, const ID *ids,                     \
                                            const float *weights, int64_t size, ID *kept,          \
                                            float *kept_weights, ID *away, float *away_weights) {  \
        return NAME##_split_any(words, ids, weights, size, kept, kept_weights, away,              \
                                away_weights);                                                     \
    }                                                                                              \
    static int64_t NAME##_split(const home_t *home, const ID *ids, const float *weights,           \
                                int64_t size, ID *kept, float *kept_weights, ID *away,             \
                                float *away_weights) {                                             \
        if (home->words == NULL) {                                                                \
            memcpy(kept, ids, sizeof(ID) * (size_t)size);                                          \
            if (weights) memcpy(kept_weights, weights, sizeof(float) * (size_t)size);              \
            return 0;                                                                              \
        }                                                                                          \
        if (HAS_POPCNT)                                                                            \
            return NAME##_split_fast(home->words, ids, weights, size, kept, kept_weights, away,   \
                                     away_weights);                                                \
        return NAME##_split_any(home->words, ids, weights, size, kept, kept_weights, away,        \
                                away_weights);                                                     \
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

/* The ids of bag `b` of table t that are not at home (all, without a home): routed and counted. */
static void count_bag(const uint8_t *route, const ids_t *away, int64_t begin, int64_t size,
                      int64_t ahead, uint8_t *to, uint32_t *even, uint32_t *odd) {
    if (away->wide)
        wide_count(route, (const int64_t *)away->data + begin, size, ahead, to, even, odd);
    else narrow_count(route, (const int32_t *)away->data + begin, size, ahead, to, even, odd);
}

/* First pass over table t, whose `size` ids begin at `begin`. Returns 0 when an id is bad. */
static int split_table(const routing_t *routing, int64_t t, const ids_t *values,
                       const float *weights, const int32_t *lengths, int64_t samples,
                       int64_t begin, int64_t size, split_t *split, int32_t **lengths_of,
                       int64_t *totals, fault_t *fault) {
    const uint8_t *table = routing->routes[t];
    const home_t *home = routing->homes && routing->homes[t].shard >= 0 ? &routing->homes[t] : NULL;
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
    int64_t holders[MAX_SHARDS], count = 0, done = 0, routed = 0, kept = 0;
    const int64_t first = split->away_size;
    for (int64_t s = 0; s < routing->shards; s++)
        if (routing->slots[s * routing->tables + t] >= 0) holders[count++] = s;
    for (int64_t b = 0; b < samples; b++) {
        const int64_t length = lengths[b], at = split->away_size;
        int64_t away = length;
        if (home) {
            const float *w = weights ? weights + begin + done : NULL;
            float *kept_w = w ? split->kept_weights + begin + kept : NULL;
            float *away_w = w ? split->away_weights + at : NULL;
            away = values->wide ? wide_split(home, wide + done, w, length,
                                             (int64_t *)split->kept + begin + kept, kept_w,
                                             (int64_t *)split->away + at, away_w)
                                : narrow_split(home, narrow + done, w, length,
                                               (int32_t *)split->kept + begin + kept, kept_w,
                                               (int32_t *)split->away + at, away_w);
            kept += length - away;
            const ids_t ids = {split->away, 0, values->wide};
            count_bag(table, &ids, at, away, away, split->to + at, even, odd);
        } else
            count_bag(table, values, begin + done, length, size - done, split->to + at, even, odd);
        split->away_size += away;
        done += length;
        for (int64_t h = 0; h < count; h++) {
            const int64_t s = holders[h];
            const int64_t row = routing->slots[s * routing->tables + t];
            const uint32_t now = even[s] + odd[s];
            int32_t *cell = &lengths_of[s][row * samples + b];
            *cell = (int32_t)(now - before[s]);
            if (home && s == home->shard) *cell = (int32_t)(length - away);
            before[s] = now;
        }
    }
    /* routed home, yet not in its index: the two files contradict each other */
    const uint32_t astray = home ? before[home->shard] : 0;
    for (int64_t h = 0; h < count; h++) {
        totals[holders[h]] += before[holders[h]];
        routed += before[holders[h]];
    }
    if (home) totals[home->shard] += kept;
    split->at_home[t] = kept;
    split->away_end[t] = split->away_size;
    if (routed + kept == size && !astray) return 1;
    const ids_t all = {home ? split->away : values->data, 0, values->wide};
    for (int64_t i = first; i < split->away_size; i++) {
        const int64_t s = split->to[i];
        const int here = home && s == home->shard;
        if (s < routing->shards && routing->slots[s * routing->tables + t] >= 0 && !here) continue;
        int64_t place = begin + i - first;
        const int64_t id = id_at(&all, home ? i : place);
        while (id_at(values, place) != id) place++;
        blame(values, lengths, samples, t, begin, place, FAULT_ABSENT, fault);
        break;
    }
    return 0;
}

/* Sums of lengths, or a fault. */
static int check_lengths(const routing_t *routing, const ids_t *values, const int32_t *lengths,
                         int64_t samples, fault_t *fault) {
    int64_t begin = 0;
    for (int64_t t = 0; t < routing->tables; t++)
        for (int64_t b = 0; b < samples; b++) {
            const int32_t length = lengths[t * samples + b];
            if (length < 0) {
                *fault = (fault_t){FAULT_LENGTH, t, b, begin, length};
                return 0;
            }
            begin += length;
        }
    if (begin != values->size) *fault = (fault_t){FAULT_TOTAL, 0, 0, values->size, begin};
    return begin == values->size;
}

/* Second pass: everything to its place, table by table. */
static void place(const routing_t *routing, const ids_t *values, const float *weights,
                  const int32_t *lengths, int64_t samples, const split_t *split, int64_t *cursor,
                  void *values_out, float *weights_out) {
    const size_t width = values->wide ? sizeof(int64_t) : sizeof(int32_t);
    int64_t begin = 0, at = 0;
    for (int64_t t = 0; t < routing->tables; t++) {
        if (routing->homes && routing->homes[t].shard >= 0) {
            int64_t *to = &cursor[routing->homes[t].shard];
            const size_t kept = (size_t)split->at_home[t];
            memcpy((char *)values_out + width * (size_t)*to,
                   (const char *)split->kept + width * (size_t)begin, width * kept);
            if (weights)
                memcpy(weights_out + *to, split->kept_weights + begin, sizeof(float) * kept);
            *to += split->at_home[t];
        }
        const float *w = weights ? split->away_weights + at : NULL;
        const int64_t size = split->away_end[t] - at;
        if (values->wide)
            wide_scatter(split->to + at, (const int64_t *)split->away + at, w, size, cursor,
                         values_out, weights_out);
        else
            narrow_scatter(split->to + at, (const int32_t *)split->away + at, w, size, cursor,
                           values_out, weights_out);
        at = split->away_end[t];
        for (int64_t b = 0; b < samples; b++) begin += lengths[t * samples + b];
    }
}

/* Buffers of a split; without homes the ids are read where they are. Returns 0 without memory. */
static int open_split(split_t *split, const routing_t *routing, const ids_t *values,
                      const float *weights) {
    const size_t n = (size_t)values->size + 1;
    const size_t width = values->wide ? sizeof(int64_t) : sizeof(int32_t);
    split->to = malloc(n);
    split->at_home = calloc(2 * (size_t)routing->tables + 1, sizeof(int64_t));
    if (!split->to || !split->at_home) return 0;
    split->away_end = split->at_home + routing->tables;
    if (!routing->homes) return 1;
    split->kept = malloc(n * width);
    split->away = malloc(n * width);
    if (weights) {
        split->kept_weights = malloc(n * sizeof(float));
        split->away_weights = malloc(n * sizeof(float));
    }
    return split->kept && split->away &&
           (!weights || (split->kept_weights && split->away_weights));
}

static void close_split(split_t *split, int with_homes) {
    free(split->to);
    free(split->at_home);
    if (!with_homes) return;
    free(split->kept);
    free(split->away);
    free(split->kept_weights);
    free(split->away_weights);
}

void route(const routing_t *routing, const ids_t *values, const float *weights,
           const int32_t *lengths, int64_t samples, void *values_out, float *weights_out,
           int32_t *lengths_out, int64_t *starts, fault_t *fault) {
    int64_t totals[256] = {0}, cursor[256] = {0}, begin = 0;
    int32_t *lengths_of[MAX_SHARDS];
    split_t split = {0};
    if (!check_lengths(routing, values, lengths, samples, fault)) return;
    if (!open_split(&split, routing, values, weights)) {
        fault->kind = FAULT_MEMORY;
        goto done;
    }
    for (int64_t s = 0; s < routing->shards; s++) {
        lengths_of[s] = lengths_out;
        lengths_out += routing->widths[s] * samples;
    }
    for (int64_t t = 0; t < routing->tables; t++) {
        const int32_t *row = lengths + t * samples;
        const int64_t first = split.away_size;
        int64_t size = 0;
        for (int64_t b = 0; b < samples; b++) size += row[b];
        if (!split_table(routing, t, values, weights, row, samples, begin, size, &split,
                         lengths_of, totals, fault))
            goto done;
        if (routing->homes && routing->homes[t].shard < 0) { /* all of it is away */
            const size_t width = values->wide ? sizeof(int64_t) : sizeof(int32_t);
            memcpy((char *)split.away + width * (size_t)first,
                   (const char *)values->data + width * (size_t)begin, width * (size_t)size);
            if (weights)
                memcpy(split.away_weights + first, weights + begin, sizeof(float) * (size_t)size);
        }
        begin += size;
    }
    starts[0] = 0;
    for (int64_t s = 0; s < routing->shards; s++) {
        cursor[s] = starts[s];
        starts[s + 1] = starts[s] + totals[s];
    }
    if (!routing->homes) { /* read only from here on */
        split.away = (void *)values->data;
        split.away_weights = (float *)weights;
    }
    place(routing, values, weights, lengths, samples, &split, cursor, values_out, weights_out);
done:
    close_split(&split, routing->homes != NULL);
}
