/* Bucketize: one counting sort of a query's ids by shard, which keeps the order of bags. Ids whose
 * rows lie in this process do not take part (home.h). */
#ifndef ERLESS_ROUTE_H
#define ERLESS_ROUTE_H

#include "arithmetic/home.h"

enum {
    MAX_SHARDS = 255, /* a row's shard has at most one byte; 255 says that no shard holds it */
    MOST_HOLDERS = 16 /* of one table, where codes have fewer than 8 bits */
};

/* The shard of each row of a table, as a code of `bits`: 8, the number of the shard; 1, 2 or 4, its
 * place in `holders`; 0, every row is in holders[0]. A byte has the codes of several rows, that of
 * the lowest row in its lowest bits (erless/specs/routes.py). */
typedef struct {
    const uint8_t *codes;
    int bits;
    uint8_t holders[MOST_HOLDERS]; /* 255 behind the last */
} route_t;

typedef struct {
    int64_t tables, shards;
    int narrow;            /* whether all row ids fit int32, and leave as such */
    const home_t *homes;   /* (tables) or NULL */
    const route_t *routes; /* (tables): beside a home, of the rows that are not there */
    const int64_t *rows;   /* (tables) */
    const int32_t *slots;  /* (shards, tables): row of the shard's lengths, or -1: holds none */
    const int64_t *widths; /* (shards): tables that the shard holds */
} routing_t;

/* What counting leaves to placing: the ids that have to be routed, in order. */
typedef struct {
    void *away;
    int wide;       /* whether they are int64 */
    float *weights; /* of each, or NULL */
    uint8_t *to;    /* the shard of each */
    int64_t size;
    int64_t *ends; /* (tables): where the table's ids end in `away` */
    int32_t *bags; /* of one table: ids per bag */
    int own_away, own_weights;
} split_t;

/* Bags of all tables that the shard holds. */
int64_t bags_of_shard(const routing_t *routing, const bags_t *bags, int64_t shard);

/* The first pass counts. `lengths_out` gets for each shard the lengths of its tables' bags, one
 * after the other; `starts` (shards + 1) where each shard's ids will begin; `kept` what is at home,
 * where there are homes. `split` comes zeroed and is to be closed in any case. Returns how many ids
 * leave; a query that does not fit is described by `fault`. */
int64_t route_count(const routing_t *routing, const ids_t *values, const float *weights,
                    const bags_t *bags, int32_t *lengths_out, int64_t *starts, kept_t *kept,
                    split_t *split, fault_t *fault);

/* The second pass places: ids (int32 unless `split->wide`) and weights, by shard. */
void route_place(const routing_t *routing, const split_t *split, const int64_t *starts,
                 void *values_out, float *weights_out);

void route_close(split_t *split);

#endif
