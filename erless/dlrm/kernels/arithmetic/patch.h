/* Rows that stand in for stored ones, or that the index does not know: what generations of a
 * release change (erless/dlrm/patches.py).
 *
 * Where a stored row lies is looked up as ever; then one bit of a filter tells whether it may have
 * been replaced, and only then is a hash table asked. Filter and table are as large as the patch
 * asks for, not as the table of the model: ten thousand rows take 20 KB of filter. */
#ifndef ERLESS_PATCH_H
#define ERLESS_PATCH_H

#include <stdint.h>

#include "arithmetic/platform.h"

typedef struct {
    int64_t key; /* PATCH_FREE, or a row's */
    const uint8_t *row;
} patch_slot_t;

typedef struct {
    int64_t count;       /* rows */
    int filter_bits;     /* the filter has 1 << filter_bits bits, at least 64 */
    int slot_bits;       /* the table has 1 << slot_bits slots, at most half of them taken */
    uint64_t *filter;    /* a key whose bit is clear has no row here */
    patch_slot_t *slots; /* open addressing, the next slot follows */
} patch_t;

#define PATCH_FREE INT64_MIN
enum { PATCH_FILTER = 4 }; /* log2 of the filter's bits per row: one key of 16 is asked in vain */

/* The key of a stored row is where it lies, in bytes behind the first one; of a row that the index
 * does not know, -1 - its id. */
static inline int64_t patch_key_added(int64_t id) {
    return -1 - id;
}

static ALWAYS_INLINE uint64_t patch_hash(int64_t key) {
    return (uint64_t)key * 0x9e3779b97f4a7c15u;
}

/* Whether `key` may have a row here. */
static ALWAYS_INLINE int patch_maybe(const patch_t *patch, uint64_t hash) {
    const uint64_t bit = hash >> (64 - patch->filter_bits);
    return (int)(patch->filter[bit >> 6] >> (bit & 63) & 1);
}

/* The row of `key`, or NULL. */
const uint8_t *patch_find(const patch_t *patch, int64_t key);

/* The row that stands in for the row at `stored` of those stored at `rows`; or that itself. */
static ALWAYS_INLINE const uint8_t *patched(const patch_t *patch, const uint8_t *rows,
                                            const uint8_t *stored) {
    const int64_t key = stored - rows;
    if (!patch_maybe(patch, patch_hash(key))) return stored;
    const uint8_t *row = patch_find(patch, key);
    return row ? row : stored;
}

/* Make room for `count` rows. Returns 0 without memory, and the patch is closed. */
int patch_open(patch_t *patch, int64_t count);

/* Let `row` be the row of `key`, in place of any before. There is room for it. */
void patch_add(patch_t *patch, int64_t key, const uint8_t *row);

void patch_close(patch_t *patch);

#endif
