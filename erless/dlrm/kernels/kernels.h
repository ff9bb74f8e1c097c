/* The compiled arithmetic of erless: row index, bucketize, gather-pool, combine.
 *
 * index.c   row id -> local index, by rank over a bitmap
 * route.c   bucketize: ids of a query -> ids per shard
 * home.c    the ids of those rows that lie in the gateway itself
 * gather.c  gather-pool (gather_lanes.h once per instruction set), combine
 * form.c    text with numbers in it: compared, filled in
 * fast_path.c      a sparse function's fast lane: request in, answer out
 * shard_channel.c  the gateway's end of it: bucket in, request out; answer in, sums added
 * module.c  the Python binding; nothing below it touches Python, so all of it runs without the GIL
 *
 * No function here trusts an id: each is compared with its table before it becomes an address. A
 * function that meets a bad one fills in `fault_t`, and the caller names table, sample and value.
 */
#ifndef ERLESS_KERNELS_H
#define ERLESS_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__)
#define POPCNT __attribute__((target("popcnt,bmi,bmi2")))
#define HAS_POPCNT (__builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi2"))
#define AVX2 __attribute__((target("avx2")))
#define HAS_AVX2 __builtin_cpu_supports("avx2")
#else
#define POPCNT
#define HAS_POPCNT 0
#define AVX2
#define HAS_AVX2 0
#endif

/* Ids arrive as int32 or int64. */
typedef struct {
    const void *data;
    int64_t size;
    int wide; /* int64 */
} ids_t;

static inline int64_t id_at(const ids_t *ids, int64_t i) {
    return ids->wide ? ((const int64_t *)ids->data)[i] : ((const int32_t *)ids->data)[i];
}

static inline size_t id_width(const ids_t *ids) {
    return ids->wide ? sizeof(int64_t) : sizeof(int32_t);
}

enum { /* fault_t.kind */
    FAULT_NONE = 0,
    FAULT_RANGE,    /* the id is not a row of the table */
    FAULT_ABSENT,   /* it is a row, but not one stored here (routed nowhere) */
    FAULT_LENGTH,   /* a negative bag length */
    FAULT_TOTAL,    /* lengths do not sum to the number of ids; value is their sum */
    FAULT_MEMORY,
};

typedef struct {
    int kind;
    int64_t table;    /* row of `lengths` */
    int64_t sample;   /* column of `lengths` */
    int64_t position; /* index into `values` */
    int64_t value;    /* the id, length or sum that does not fit */
} fault_t;

/* Row index: blocks of 4 words, one per 192 rows of the table.
 *   word 0     rank << 16 | rows in words 1 and 2 << 8 | rows in word 1
 *   words 1-3  bitmap, 64 rows each; `rank` counts the stored rows before the block
 * 32 bytes per 192 rows: 0.167 byte per row, one cache line per look-up. blocks == NULL says that
 * every row is stored and local index = row id. */
enum { INDEX_WORDS = 4, INDEX_ROWS = 192 };

static ALWAYS_INLINE int64_t index_local(const uint64_t *blocks, uint64_t id) {
    const uint64_t word = id >> 6, block = word / 3, lane = word - 3 * block;
    const uint64_t *entry = blocks + INDEX_WORDS * block;
    const uint64_t bits = entry[1 + lane], bit = id & 63;
    if (!(bits >> bit & 1)) return -1;
    const uint64_t inside = (entry[0] & 0xffff) << 8 >> (8 * lane) & 0xff;
    return (int64_t)((entry[0] >> 16) + inside +
                     (uint64_t)__builtin_popcountll(bits & (((uint64_t)1 << bit) - 1)));
}

int64_t index_mark(uint64_t *blocks, int64_t rows, const ids_t *ids);
int64_t index_rank(uint64_t *blocks, int64_t count);
int64_t index_find(const uint64_t *blocks, int64_t rows, const ids_t *ids, int64_t *locals,
                   int64_t *absent);
int64_t pick_rows(const float *rows, int64_t size, int64_t dim, const uint8_t *routes, int shard,
                  const float *counts, float *out, double *sums, double *weight);

/* Gather-pool. Numbers as in erless/dlrm/embedding.py. */
enum { FP32 = 0, FP16 = 1, INT8 = 2, INT4 = 3 };
enum { SUM = 0, MAX = 1, WEIGHTED = 2, MEAN = 3 };

typedef struct {
    const uint8_t *rows;
    const uint64_t *blocks;
    int64_t stored, table_rows, dim, row_bytes;
    int precision, pooling;
} slice_t;

/* out: (samples, stride) with slice s at its column, or packed: only the bags that are not empty,
 * one after the other. Returns the floats written when packed. */
int64_t pool(const slice_t *slices, int64_t count, const ids_t *values, const float *weights,
             const int32_t *lengths, int64_t samples, float *out, int64_t stride,
             const int64_t *columns, int packed, fault_t *fault);

/* Bucketize. `routes[t]` has one byte per row of table t: the number of the shard that holds it. */
enum { MAX_SHARDS = 255, NO_SHARD = 255 };

/* A table's home is the shard that lies in the same process: its ids are looked up in its index
 * first, since most are there, and only the others are routed. Since this is done for every id,
 * the index is unpacked: 0.25 byte per row of the table, no division, addresses instead of ranks. */
typedef struct {
    uint64_t bits;       /* 64 rows: which are stored */
    const uint8_t *last; /* the last stored row before them; one row before the first: none is */
} word_t;

typedef struct {
    int64_t shard;       /* -1: this table has no home */
    const word_t *words; /* NULL: the home stores every row */
    slice_t slice;       /* the table's rows there */
} home_t;

/* What a query found at home: the rows' addresses, bag by bag. */
typedef struct {
    const uint8_t **rows; /* (size), and room for POOL_AHEAD more */
    float *weights;       /* (size) or NULL */
    int32_t *sizes;       /* (tables, samples): rows per bag */
    int64_t size;
} kept_t;
/* Rows fetched ahead of the one being added: with 16 a query takes a seventh longer. */
enum { POOL_AHEAD = 32 };

/* Fill in `words` (ceil(table rows / 192) * 3) from the slice's index. Returns 0 where that goes
 * beyond the stored rows. */
int home_unpack(const slice_t *slice, word_t *words);

/* Split table t's bags (`lengths` of them at `begin`): rows at home to `kept`, the other ids to
 * `away`, as int32 where `shrink`. Every id is a row of the table. Returns how many are away. */
int64_t home_find(const home_t *home, const ids_t *values, int64_t begin, int shrink,
                  const float *weights, const int32_t *lengths, int64_t samples, int32_t *sizes,
                  kept_t *kept, void *away, float *away_weights, int32_t *away_sizes);

typedef struct {
    int64_t tables, shards;
    int narrow;          /* all row ids fit int32, and leave as such */
    const home_t *homes; /* (tables) or NULL */
    const uint8_t **routes; /* (tables) */
    const int64_t *rows;    /* (tables) */
    const int32_t *slots;   /* (shards, tables): row of the shard's lengths, or -1: holds none */
    const int64_t *widths;  /* (shards): tables that the shard holds */
} routing_t;

/* What counting leaves to placing: the ids that have to be routed, in order. */
typedef struct {
    void *away;
    int wide;       /* they are int64 */
    float *weights; /* of each, or NULL */
    uint8_t *to;    /* the shard of each */
    int64_t size;
    int64_t *ends;  /* (tables): where the table's ids end in `away` */
    int32_t *bags;  /* (samples) of one table: ids per bag */
    int own_away, own_weights;
} split_t;

/* First pass. lengths_out: for each shard (widths[s], samples), one after the other. starts
 * (shards + 1): where each shard's ids will begin. kept: used with homes. split: zeroed; to be
 * closed in any case. Returns how many ids leave. */
int64_t route_count(const routing_t *routing, const ids_t *values, const float *weights,
                    const int32_t *lengths, int64_t samples, int32_t *lengths_out, int64_t *starts,
                    kept_t *kept, split_t *split, fault_t *fault);
/* Second pass: ids (int32 where `narrow`) and weights to their places, by shard. */
void route_place(const routing_t *routing, const split_t *split, const int64_t *starts,
                 void *values_out, float *weights_out);
void route_close(split_t *split);

/* One row per slice of a partial: where it goes in `out`. */
typedef struct {
    int64_t column, dim, pooling;
} place_t;

void combine(float *out, int64_t stride, const void *partial, int half, int packed,
             const int32_t *lengths, int64_t samples, const place_t *places, int64_t count);
void combine_begin(float *out, int64_t stride, int64_t samples, const place_t *places,
                   int64_t count);
void combine_end(float *out, int64_t stride, const int32_t *lengths, int64_t samples,
                 const place_t *places, int64_t count);
/* Pool what was kept, and add it to `out` (samples, stride); places has one row per table. */
int home_pool(const home_t *homes, int64_t tables, const kept_t *kept, int64_t samples, float *out,
              int64_t stride, const place_t *places);
void to_float16(const float *from, uint16_t *to, int64_t size);

/* Forms: text in which %d is a number of 1 to 10 digits, %s is what stands until the line ends, and
 * %% is %.
 * form_check: whether it is one, of at most `numbers` numbers.
 * form_scan: where `text` goes on behind `form`, or NULL where it differs; words are skipped.
 * form_fill: the end of what was written to `out`, or NULL where it does not fit. */
int form_check(const char *form, int numbers);
const char *form_scan(const char *form, const char *text, const char *end, int64_t *numbers);
char *form_fill(const char *form, char *out, const char *end, const int64_t *numbers,
                const char *word);

typedef struct {
    const slice_t *slices;
    int64_t count, max_batch, max_body, longest_ms;
    const char *heads[2];   /* of requests: without and with a trace */
    const char *requests[4];    /* JSON: int32 and int64 ids, answered by floats, then by float16_partial */
    const char *answers[4]; /* heads: without and with the time since ready; JSON: floats, float16_partial */
} fast_path_t;

/* One request: `partial`, which is the caller's to free, is set by fast_path_pool. */
typedef struct {
    ids_t values;
    const int32_t *lengths;
    int64_t samples;
    int half; /* whether the answer is in `float16_partial` */
    float *partial;
    uint16_t *float16_partial;
    const char *body, *end; /* of the request */
} fast_request_t;

/* Understand the request at `text`: with its head, or (announced > 0: bytes of JSON) without.
 * Returns 0 where it is not whole, or not in the lane. */
int fast_path_read(const fast_path_t *path, const char *text, const char *end, int64_t announced,
              fast_request_t *request);
/* Returns the floats of the packed partial; -1 without memory. */
int64_t fast_path_pool(const fast_path_t *path, fast_request_t *request, fault_t *fault);

/* A remote shard, as the gateway talks to it. */
typedef struct {
    const char *heads[2];   /* of requests: without and with a trace */
    const char *requests[2];    /* JSON: int32 and int64 ids */
    const char *answers[4]; /* as fast_path_t; the last is empty where float16_partial are not wanted */
    const place_t *places;  /* (tables) where its partial goes */
    int64_t tables;
} shard_channel_t;

/* What a shard gets of a query. */
typedef struct {
    ids_t values;
    const int32_t *lengths; /* (tables, samples) */
    int64_t samples;
} bucket_t;

enum { MOST_HEAD = 1024, ALIGNMENT = 16 }; /* bytes of a message before its tensors */
/* Head and JSON of the request for `bucket`, which align what follows. Returns their bytes, or 0
 * where they do not fit. */
int64_t request_write(const shard_channel_t *channel, const bucket_t *bucket, int64_t left_ms, const char *trace,
                  char text[MOST_HEAD]);

enum { ANSWER_GENERAL = -2, ANSWER_INCOMPLETE = -1, READY_LONG_AGO = INT32_MAX };
/* Add the answer at `*text`, of which there is what lies before `end`, to `out`, and move `*text`
 * behind it. Returns the milliseconds for which the shard has been ready (READY_LONG_AGO: for long), or,
 * with nothing added or moved, ANSWER_INCOMPLETE: the rest of it, which is to come, has room; ANSWER_GENERAL:
 * it is not in the lane, or not the answer to what was asked. `last`: no other answer may follow. */
int64_t answer_add(const shard_channel_t *channel, const bucket_t *bucket, const char **text, const char *end,
                 const char *room, int last, float *out, int64_t stride);

int64_t stored_row_bytes(int precision, int64_t dim);
const char *gather_choose(void); /* once, before anything else; says which instruction set */

#endif
