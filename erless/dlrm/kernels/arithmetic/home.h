/* Rows that lie in the gateway's own process: found while a query is split, pooled while what went
 * to shards is on its way. In between, a row's address is all that is kept of its id. */
#ifndef ERLESS_HOME_H
#define ERLESS_HOME_H

#include "arithmetic/combine.h"
#include "arithmetic/gather.h"

/* 64 rows of a table. The index is unpacked, because it is searched for every id: 0.25 byte per row
 * of the table, no division. */
typedef struct {
    uint64_t bits; /* which rows are stored */
    int64_t last;  /* local index of the last stored row before them; -1: none is */
} word_t;

/* A table's home is the shard that lies in the same process. Its index is searched first, since
 * most ids are there, and only the others are routed. */
typedef struct {
    int64_t shard;       /* -1: this table has no home */
    const word_t *words; /* NULL: the home stores every row */
    slice_t slice;       /* the table's rows there */
} home_t;

/* What a query found at home: the rows' addresses, bag by bag. */
typedef struct {
    const uint8_t **rows; /* (size), and room for POOL_AHEAD more */
    float *weights;       /* (size) or NULL */
    int32_t *sizes;       /* of all tables' bags: rows */
    int64_t size;
} kept_t;

/* Words of a table's unpacked index. */
int64_t home_words(const slice_t *slice);

/* Whether a table's words are needed: not where all its rows are stored at home. */
int home_needs_words(const slice_t *slice);

/* Fill in `words` from the slice's index. Returns 0 where that goes beyond the stored rows. */
int home_unpack(const slice_t *slice, word_t *words);

/* Split a table's bags (`lengths` of them, whose ids begin at `begin`): the addresses of rows at
 * home go to `kept`, the other ids to `away`, as int32 where `shrink`. Every id has to be a row of
 * the table; `away` and its weights have room for all ids and 8 more. Returns how many are away. */
int64_t home_find(const home_t *home, const ids_t *values, int64_t begin, int shrink,
                  const float *weights, const int32_t *lengths, int64_t samples, int32_t *sizes,
                  kept_t *kept, void *away, float *away_weights, int32_t *away_sizes);

/* Pool what was kept of the query with `bags`, and add it to `out`; `places` has one for each
 * table. Returns 0 without memory, or without the weights that a table needs. */
int home_pool(const home_t *homes, const bags_t *bags, const kept_t *kept, float *out,
              const place_t *places);

#endif
