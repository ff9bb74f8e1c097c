/* Rows that stand in for stored ones, or that the index does not know: what generations of a
 * release change (erless/dlrm/patches.py).
 *
 * Where a stored row lies is looked up as ever; then one bit tells whether it was replaced, and
 * only then is it looked for: the rows of the patch lie in the order of their places, and the
 * number of one is that of the bits before its own. That takes an eighth and a sixteenth of a byte
 * for each stored row and nothing is searched.
 *
 * Where only a row's address is at hand, its local index is (address - first row) / bytes of a row.
 * The division leaves no rest, so that it is a shift and a multiplication with the inverse of the
 * odd part modulo 2^64 (Granlund and Montgomery 1994, section 9). */
#ifndef ERLESS_PATCH_H
#define ERLESS_PATCH_H

#include <stdint.h>

typedef struct {
    int64_t count;              /* rows */
    int64_t replacing;          /* those that stand in for stored ones */
    int64_t stored;             /* their places are those of the stored rows */
    int64_t first_added, added; /* ids from the first added one on; their places come behind */
    int shift;                  /* trailing zeros of a row's bytes */
    uint64_t inverse;           /* of what is left of them */
    uint64_t *held;             /* a bit for each place */
    uint32_t *ranks;            /* the rows before each word of `held` */
    const uint8_t **rows;       /* in the order of their places */
} patch_t;

/* Whether a row stands in for the stored one of local index `local`. */
static inline int patch_replaces(const patch_t *patch, int64_t local) {
    return patch->held[local >> 6] >> (local & 63) & 1;
}

/* The row that stands in for that of local index `local`, which is replaced. */
const uint8_t *patch_stored_row(const patch_t *patch, int64_t local);

/* The row that was added as `id`, or NULL. */
const uint8_t *patch_added_row(const patch_t *patch, int64_t id);

/* An index with a patch: each block of 192 rows is followed by one of those that are replaced, so
 * that the line of the cache that tells where a row is stored tells as well whether a row stands in
 * for it, and which. `fused` has room for twice the words of `count` blocks. Returns 0 where the
 * index goes beyond the stored rows. */
int patch_fuse(const patch_t *patch, const uint64_t *blocks, int64_t count, uint64_t *fused);

/* Let each of `n` pointers to rows stored at `rows` point to what stands in for that row. */
void patch_rows(const patch_t *patch, const uint8_t *rows, const uint8_t **pointers, int64_t n);

/* Make a patch of `count` rows beside `stored` ones of `row_bytes`. `keys[i]` is the local index of
 * a row, or -1 - its id where it is not stored; the last of several for a key holds. Its rows are
 * put in with `patch_put`. Returns 0 without memory, and the patch is closed. */
int patch_open(patch_t *patch, const int64_t *keys, int64_t count, int64_t stored,
               int64_t row_bytes);

/* Let `row` be the row of `key`, which is one of those that the patch was made with. */
void patch_put(patch_t *patch, int64_t key, const uint8_t *row);

void patch_close(patch_t *patch);

#endif
