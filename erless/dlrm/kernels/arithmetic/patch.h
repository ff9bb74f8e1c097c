/* Rows that stand in for stored ones, or that the index does not know: what generations of a
 * release change (erless/dlrm/patches.py).
 *
 * Where a stored row lies is looked up as ever; then one bit tells whether it was replaced, and
 * only then is a hash table asked. Where the local index of a row is at hand that bit is the row's
 * own, an eighth of a byte for each stored row; where only its address is, it is one of a filter,
 * as large as the patch asks for: ten thousand rows take 128 KB. */
#ifndef ERLESS_PATCH_H
#define ERLESS_PATCH_H

#include <stdint.h>

typedef struct {
    int64_t key; /* PATCH_FREE, or a row's */
    const uint8_t *row;
} patch_slot_t;

typedef struct {
    int64_t count;     /* rows */
    int64_t replacing; /* those that stand in for stored ones */
    int filter_bits;   /* the filter has 1 << filter_bits bits, at least 64 */
    int slot_bits;     /* the table has 1 << slot_bits slots, at most half of them taken */
    int64_t row_bytes;
    uint64_t *replaced;  /* a bit for each stored row */
    uint32_t *filter;    /* a key whose bit is clear has no row here */
    patch_slot_t *slots; /* open addressing, the next slot follows */
} patch_t;

#define PATCH_FREE INT64_MIN
enum { PATCH_FILTER = 6 }; /* log2 of the filter's bits per row: one key of 64 is asked in vain */

/* The key of a stored row is where it lies, in bytes behind the first one. A row that the index
 * does not know has one that no distance between two addresses can be. */
static inline int64_t patch_key_added(int64_t id) {
    return -((int64_t)1 << 62) - id;
}

/* The row of `key`, or NULL. */
const uint8_t *patch_find(const patch_t *patch, int64_t key);

/* Let each of `n` pointers to rows stored at `rows` point to what stands in for that row. Pointers
 * to other rows stay. */
void patch_rows(const patch_t *patch, const uint8_t *rows, const uint8_t **pointers, int64_t n);

/* Whether a row stands in for the stored one of local index `local`. */
static inline int patch_replaces(const patch_t *patch, int64_t local) {
    return patch->replaced[local >> 6] >> (local & 63) & 1;
}

/* The same of pointers whose row was replaced: `count` of them, `which[k]` being their numbers. */
void patch_replace(const patch_t *patch, const uint8_t *rows, const uint8_t **pointers,
                   const int32_t *which, int64_t count);

/* Make room for `count` rows beside `stored` ones of `row_bytes`. Returns 0 without memory, and the
 * patch is closed. */
int patch_open(patch_t *patch, int64_t count, int64_t stored, int64_t row_bytes);

/* Let `row` be the row of `key`, in place of any before. There is room for it. */
void patch_add(patch_t *patch, int64_t key, const uint8_t *row);

void patch_close(patch_t *patch);

#endif
