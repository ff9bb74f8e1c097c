/* Row id -> local index of the rows that a shard stores, by rank over a bitmap; and packing.
 *
 * The index consists of blocks of 4 words, one per 192 rows of the table:
 *
 *   word 0     rank << 16 | rows in words 1 and 2 << 8 | rows in word 1
 *   words 1-3  bitmap, 64 rows each; `rank` counts the stored rows before the block
 *
 * That is 32 bytes per 192 rows, 0.167 byte per row, and one cache line per look-up. Where `blocks`
 * is NULL every row is stored, and the local index is the row id. */
#ifndef ERLESS_INDEX_H
#define ERLESS_INDEX_H

#include "arithmetic/ids.h"
#include "arithmetic/platform.h"

enum { INDEX_WORDS = 4, INDEX_ROWS = 192 };
#define MAX_ROWS ((int64_t)1 << 47) /* of a table: a rank has 48 bits */

static inline int64_t blocks_for(int64_t rows) {
    return (rows + INDEX_ROWS - 1) / INDEX_ROWS;
}

/* The rank of a row in one block; -1 where its bit is clear. */
static ALWAYS_INLINE int64_t index_rank_in(const uint64_t *entry, uint64_t lane, uint64_t bit) {
    const uint64_t bits = entry[1 + lane];
    if (!(bits >> bit & 1)) return -1;
    const uint64_t inside = (entry[0] & 0xffff) << 8 >> (8 * lane) & 0xff;
    return (int64_t)((entry[0] >> 16) + inside +
                     (uint64_t)__builtin_popcountll(bits & (((uint64_t)1 << bit) - 1)));
}

static ALWAYS_INLINE int64_t index_local(const uint64_t *blocks, uint64_t id) {
    const uint64_t word = id >> 6, block = word / 3;
    return index_rank_in(blocks + INDEX_WORDS * block, word - 3 * block, id & 63);
}

/* Set the bit of each id. Returns the position of the first id outside the table, or -1. */
int64_t index_mark(uint64_t *blocks, int64_t rows, const ids_t *ids);

/* Fill in word 0 of each of `count` blocks. Returns how many rows are stored. */
int64_t index_rank(uint64_t *blocks, int64_t count);

/* locals[i] = local index of ids[i], or -1 where it is not stored here; *absent counts those.
 * Returns the position of the first id outside the table, or -1. */
int64_t index_find(const uint64_t *blocks, int64_t rows, const ids_t *ids, int64_t *locals,
                   int64_t *absent);

/* Copy the rows whose route is `shard`, of `size` rows of `dim` floats, to `out` (NULL: not
 * wanted), one after the other, and add (count + 1) * row to `sums` and count + 1 to `weight`. A
 * product of two floats is exact in double, so the sums are the same on every machine, with fused
 * multiply-add or without. Returns how many rows there were. */
int64_t pick_rows(const float *rows, int64_t size, int64_t dim, const uint8_t *routes, int shard,
                  const float *counts, float *out, double *sums, double *weight);

#endif
