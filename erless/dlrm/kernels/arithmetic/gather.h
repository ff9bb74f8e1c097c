/* Gather-pool: the stored rows of each bag, added up or their maximum taken. */
#ifndef ERLESS_GATHER_H
#define ERLESS_GATHER_H

#include "arithmetic/ids.h"
#include "arithmetic/patch.h"

/* The numbers that erless/dlrm/embedding.py gives to precisions and poolings. */
enum { FP32 = 0, FP16 = 1, INT8 = 2, INT4 = 3 };
enum { SUM = 0, MAX = 1, WEIGHTED = 2, MEAN = 3 };

/* The rows of one table that one shard stores. */
typedef struct {
    const uint8_t *rows;
    const uint64_t *blocks; /* the index (index.h), or NULL: every row of it is stored */
    const patch_t *patch;   /* rows that stand in for stored ones, and added rows; or NULL */
    const uint64_t *fused; /* the index with the patch (patch_fuse), where it replaces rows of it */
    int64_t stored, table_rows, dim, row_bytes;
    int64_t
        indexed; /* the rows that the index is of: fewer than the table's where rows were added */
    int precision, pooling;
} slice_t;

/* Rows fetched ahead of the one being added: with 16 a query takes a seventh longer. */
enum { POOL_AHEAD = 32 };
#define MAX_DIM ((int64_t)1 << 24) /* a row's bytes fit 32 bits, also where they are multiplied */
#define MAX_PATCH_KEY ((int64_t)1 << 36) /* times a row's bytes it fits 63 bits */

int64_t stored_row_bytes(int precision, int64_t dim);

/* Choose among the instruction sets of this processor; call it once, before anything else.
 * Returns the name of the widest. */
const char *gather_choose(void);

/* Pool one bag of `n` > 0 rows at `rows` (which goes on for POOL_AHEAD valid entries) to `out`
 * (dim). `weights` is read where the slice pools by weighted sum. */
typedef void (*bag_fn)(const uint8_t *const *rows, const float *weights, int64_t n,
                       int64_t row_bytes, int64_t dim, float *out);
bag_fn bag_function(const slice_t *slice);

/* The function of an int4 slice gives the elements of even index, then those of odd index. This
 * puts them in order. */
void interleave(const float *parts, float *out, int64_t dim);

/* Pool the bags of as many slices as `bags` has tables. `out` is (samples, stride) with slice s at
 * its column, or packed: only the bags that are not empty, one after the other. Returns the floats
 * written when packed. */
int64_t pool(const slice_t *slices, const ids_t *values, const float *weights, const bags_t *bags,
             float *out, int64_t stride, const int64_t *columns, int packed, fault_t *fault);

/* The same, of rows that were found already: `rows` has one for each of the query's ids, and
 * POOL_AHEAD more. */
int64_t pool_rows(const slice_t *slices, const uint8_t *const *rows, const float *weights,
                  const bags_t *bags, float *out, int64_t stride, const int64_t *columns,
                  int packed, fault_t *fault);

/* Check that what pooling reads is there: lengths that fit the ids, weights where needed. */
int pool_fits(const slice_t *slices, int64_t ids, const float *weights, const bags_t *bags,
              fault_t *fault);

/* Name the bad id at `bad` of slice s, whose ids begin at `begin` of `values`. */
fault_t id_fault(const slice_t *slice, int64_t s, const ids_t *values, int64_t begin,
                 const int32_t *lengths, int64_t bad);

/* The ids of slice s. */
int64_t ids_in(const bags_t *bags, int64_t s);

/* The floats of the packed bags. */
int64_t packed_size(const slice_t *slices, const bags_t *bags);

#endif
