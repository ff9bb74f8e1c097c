/* Pools made-up rows at every precision, pooling and some dims, and prints what comes out. */
#include <stdio.h>

#include "arithmetic/gather.h"

enum { ROWS = 50, BAG = 37, LARGEST = 67 };

static uint8_t store[ROWS * LARGEST * 4];
static const uint8_t *rows[BAG + POOL_AHEAD];
static float weights[BAG], out[LARGEST + 1];

static uint32_t state = 1;

static uint32_t next(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static void fill(int precision, int64_t dim, int64_t row_bytes) {
    for (int row = 0; row < ROWS; row++) {
        uint8_t *at = store + row * row_bytes;
        for (int64_t i = 0; i < row_bytes; i++) at[i] = (uint8_t)next();
        if (precision == FP32) {
            for (int64_t i = 0; i < dim; i++) {
                const float value = (float)(next() % 2000) / 1000.0f - 1.0f;
                memcpy(at + 4 * i, &value, 4);
            }
            continue;
        }
        /* halves of modest size, normal and subnormal: no infinities, no NaN */
        for (int64_t i = 0; i < (precision == FP16 ? dim : 2); i++)
            at[2 * i + 1] = (uint8_t)(at[2 * i + 1] & 0xbf);
    }
}

int main(void) {
    const int64_t dims[] = {1, 2, 3, 4, 8, 15, 16, 32, 33, 64, LARGEST};
    fprintf(stderr, "%s\n", gather_choose());
    for (int precision = FP32; precision <= INT4; precision++)
        for (int pooling = SUM; pooling <= WEIGHTED; pooling++)
            for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
                const int64_t dim = dims[d], size = stored_row_bytes(precision, dim);
                const slice_t slice = {.rows = store, .stored = ROWS, .table_rows = ROWS, .dim = dim,
                                       .row_bytes = size, .indexed = ROWS,
                                       .precision = precision, .pooling = pooling};
                fill(precision, dim, size);
                for (int i = 0; i < BAG + POOL_AHEAD; i++) rows[i] = store + next() % ROWS * size;
                for (int i = 0; i < BAG; i++) weights[i] = (float)(next() % 100) / 50.0f;
                bag_function(&slice)(rows, weights, BAG, size, dim, out);
                printf("%d %d %d", precision, pooling, (int)dim);
                for (int64_t i = 0; i < dim; i++) printf(" %.9g", (double)out[i]);
                printf("\n");
            }
    return 0;
}
