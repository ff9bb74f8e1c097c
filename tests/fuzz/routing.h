/* Tables, shards and homes made of the fuzzer's bytes. */
#ifndef ERLESS_FUZZ_ROUTING_H
#define ERLESS_FUZZ_ROUTING_H

#include "arithmetic/route.h"
#include "tables.h"

enum { MOST_SHARDS = 4, NOWHERE = 255 };

/* Shard 0 may be at home. What its slice of a table stores need not be what is routed there: such
 * rows are found at home whatever their route says. */
typedef struct {
    routing_t routing;
    int64_t rows[MOST_TABLES], dims[MOST_TABLES], widths[MOST_SHARDS], width;
    int poolings[MOST_TABLES];
    uint8_t *numbers[MOST_TABLES]; /* the shard that each row's route says, or NOWHERE */
    uint8_t *codes[MOST_TABLES], *stored[MOST_TABLES];
    route_t routes[MOST_TABLES];
    int32_t slots[MOST_SHARDS * MOST_TABLES];
    home_t homes[MOST_TABLES];
} shards_t;

/* Codes of 8 bits are shards, of fewer places among the shards that hold the table. */
static inline void make_route(input_t *input, shards_t *made, int64_t t) {
    static const int widths[] = {0, 1, 2, 4, 8};
    const int64_t tables = made->routing.tables, shards = made->routing.shards;
    const uint8_t seed = any_byte(input), nowhere = any_byte(input);
    route_t *route = &made->routes[t];
    int64_t count = 0;
    route->bits = widths[any_of(input, 0, 4)];
    memset(route->holders, NOWHERE, sizeof(route->holders));
    for (int64_t s = 0; route->bits < 8 && s < shards && count < 1 << route->bits; s++)
        if (made->slots[s * tables + t] >= 0) route->holders[count++] = (uint8_t)s;
    const size_t bits = (size_t)made->rows[t] * (size_t)route->bits;
    made->numbers[t] = exactly((size_t)made->rows[t]);
    route->codes = made->codes[t] = exactly((bits + 7) / 8);
    for (int64_t id = 0; id < made->rows[t]; id++) {
        uint8_t code = (uint8_t)((id * seed / 7) % shards);
        const int none = nowhere >= 128 && id % nowhere == 0;
        if (route->bits == 8 && (made->slots[code * tables + t] < 0 || none)) code = NOWHERE;
        code &= (uint8_t)((1 << route->bits) - 1);
        made->numbers[t][id] = route->bits == 8 ? code : route->holders[code];
        if (route->bits)
            made->codes[t][id * route->bits / 8] |= (uint8_t)(code << (id * route->bits % 8));
    }
}

static inline void make_home(input_t *input, shards_t *made, int64_t t) {
    home_t *home = &made->homes[t];
    const uint8_t choice = any_byte(input);
    home->shard = -1;
    if (choice & 1 || made->slots[t] < 0) return;
    uint8_t *stored = made->stored[t] = exactly((size_t)made->rows[t]);
    for (int64_t id = 0; id < made->rows[t]; id++)
        stored[id] = made->numbers[t][id] == 0 || choice & 2 || (choice & 8 && id % 3 == 0);
    const int64_t indexed = choice & 4 ? any_of(input, 1, made->rows[t]) : made->rows[t];
    home->slice = make_slice(input, t, indexed, made->dims[t], choice & 2 ? NULL : stored, CHANGED);
    home->slice.table_rows = made->rows[t]; /* those added are not at home */
    home->shard = 0;
    made->poolings[t] = home->slice.pooling;
    if (home_needs_words(&home->slice)) {
        home->words = exactly(sizeof(word_t) * (size_t)home_words(&home->slice));
        REQUIRE(home_unpack(&home->slice, (word_t *)home->words));
    }
}

static inline void make_shards(input_t *input, shards_t *made, int with_homes) {
    memset(made, 0, sizeof(*made));
    routing_t *routing = &made->routing;
    routing->tables = any_of(input, 1, MOST_TABLES);
    routing->shards = any_of(input, 1, MOST_SHARDS);
    routing->narrow = any_byte(input) & 1;
    for (int64_t s = 0; s < routing->shards; s++)
        for (int64_t t = 0; t < routing->tables; t++)
            made->slots[s * routing->tables + t] =
                any_byte(input) & 7 ? (int32_t)made->widths[s]++ : -1;
    for (int64_t s = 0; s < routing->shards; s++) made->width += made->widths[s];
    for (int64_t t = 0; t < routing->tables; t++) {
        made->rows[t] = any_of(input, 1, MOST_ROWS);
        made->dims[t] = any_of(input, 1, 40);
        made->poolings[t] = (int)any_of(input, SUM, MEAN);
        make_route(input, made, t);
        if (with_homes) make_home(input, made, t);
    }
    if (with_homes) routing->homes = made->homes;
    routing->routes = made->routes;
    routing->rows = made->rows;
    routing->slots = made->slots;
    routing->widths = made->widths;
}

static inline void free_shards(const shards_t *made) {
    for (int64_t t = 0; t < made->routing.tables; t++) {
        free(made->numbers[t]);
        free(made->codes[t]);
        free(made->stored[t]);
        if (made->routing.homes == NULL || made->homes[t].shard < 0) continue;
        free((void *)made->homes[t].words);
        free_slice(&made->homes[t].slice);
    }
}

static inline int at_home(const shards_t *made, int64_t t, int64_t id) {
    const home_t *home = &made->homes[t];
    if (!made->routing.homes || home->shard < 0 || id >= home->slice.indexed) return 0;
    return home->slice.blocks == NULL || made->stored[t][id];
}

/* Where row `id` of table t is: a shard, NOWHERE, or 0 where it is at home. */
static inline int64_t shard_of(const shards_t *made, int64_t t, int64_t id) {
    const int64_t shard = made->numbers[t][id];
    if (at_home(made, t, id)) return 0;
    return shard == 0 && made->routing.homes && made->homes[t].shard >= 0 ? NOWHERE : shard;
}

/* Whether the query is refused for the right reason. Returns whether it is refused. */
static inline int check_fault(const shards_t *made, const query_t *query, const fault_t *fault) {
    for (int64_t t = 0; made->routing.homes && t < query->tables; t++)
        if (made->homes[t].shard >= 0 && made->poolings[t] == WEIGHTED && !query->weights) {
            REQUIRE(fault->kind == FAULT_UNWEIGHTED && fault->table == t);
            return 1;
        }
    if (!query_is_whole(query)) {
        REQUIRE(fault->kind == FAULT_LENGTH || fault->kind == FAULT_TOTAL);
        return 1;
    }
    const bags_t bags = query->bags;
    int64_t begin = 0;
    for (int64_t t = 0; t < query->tables; t++) {
        int64_t size = 0, absent = -1;
        for (int64_t b = 0; b < bags_of(&bags, t); b++) size += lengths_in(&bags, t)[b];
        for (int64_t at = begin; at < begin + size; at++) {
            const int64_t id = id_at(&query->values, at);
            if (id < 0 || id >= made->rows[t]) {
                REQUIRE(fault->kind == FAULT_RANGE && fault->table == t && fault->value == id);
                REQUIRE(fault->position == at);
                return 1;
            }
            if (absent < 0 && shard_of(made, t, id) == NOWHERE) absent = id;
        }
        if (absent >= 0) {
            REQUIRE(fault->kind == FAULT_ABSENT && fault->table == t && fault->value == absent);
            return 1;
        }
        begin += size;
    }
    REQUIRE(fault->kind == FAULT_NONE);
    return 0;
}

/* A query, split. */
typedef struct {
    int64_t *starts, away;
    int32_t *lengths;
    void *values;
    float *weights;
    kept_t kept;
    int wide;
} splitted_t;

static inline int split_query(const shards_t *made, const query_t *query, splitted_t *result) {
    const routing_t *routing = &made->routing;
    const size_t size = (size_t)query->values.size;
    split_t split = {0};
    fault_t fault = {0};
    *result = (splitted_t){0};
    const bags_t bags = query->bags;
    int64_t sent = 0;
    for (int64_t s = 0; s < routing->shards; s++) sent += bags_of_shard(routing, &bags, s);
    result->starts = exactly(sizeof(int64_t) * (size_t)(routing->shards + 1));
    result->lengths = exactly(sizeof(int32_t) * (size_t)sent);
    if (routing->homes) {
        result->kept.rows = exactly(sizeof(uint8_t *) * (size + POOL_AHEAD));
        result->kept.sizes = exactly(sizeof(int32_t) * (size_t)bags_before(&bags, bags.tables));
        if (query->weights) result->kept.weights = exactly(sizeof(float) * (size + 1));
    }
    result->away = route_count(routing, &query->values, query->weights, &bags, result->lengths,
                               result->starts, &result->kept, &split, &fault);
    const int refused = check_fault(made, query, &fault);
    if (!refused) {
        result->wide = split.wide;
        result->values = exactly((size_t)result->away * (split.wide ? 8 : 4));
        if (query->weights) result->weights = exactly(sizeof(float) * (size_t)result->away);
        route_place(routing, &split, result->starts, result->values, result->weights);
    }
    route_close(&split);
    return !refused;
}

static inline void free_split(splitted_t *result) {
    free(result->starts);
    free(result->lengths);
    free(result->values);
    free(result->weights);
    free(result->kept.rows);
    free(result->kept.sizes);
    free(result->kept.weights);
}

#endif
