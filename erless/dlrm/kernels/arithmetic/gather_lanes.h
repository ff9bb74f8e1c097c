/* The gather kernels for one instruction set. gather.c includes this once per set, after defining
 *   LANES, vec_t, SUFFIX(name)
 *   ZERO, SPLAT(x), ADD(a, b), MULADD(a, b, c) = a*b + c, MAXIMUM(a, b), STORE(p, v)
 *   LOAD_F32(p), LOAD_F16(p), LOAD_U8(p): LANES elements at any address, as floats
 *   LOAD_LOW(p), LOAD_HIGH(p): LANES bytes, their low or high nibbles, as floats
 *   LOAD_ONE_F16(p): one fp16 as float
 *
 * Columns go in blocks of up to 8 vectors that stay in registers over the whole bag. A last block
 * that would overrun the row is moved back so that it ends with it: it computes some columns
 * twice, to the same values. Dims below LANES are the business of a narrower set. */

/* Bring a row into the cache. */
static ALWAYS_INLINE void SUFFIX(fetch)(const uint8_t *row, int64_t row_bytes) {
    for (int64_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(row + at);
    __builtin_prefetch(row + row_bytes - 1);
}

/* Pool the columns [c, c + N*LANES) of one bag. Columns of int4 are bytes: of them, `part` 0 are
 * the low nibbles, `part` 1 the high ones. `ptrs` goes on for AHEAD entries past the end. */
static ALWAYS_INLINE void SUFFIX(block)(const int precision, const int mode, const int N,
                                        const int part, const uint8_t *const *ptrs,
                                        const float *weights, int64_t n, int64_t row_bytes,
                                        int64_t c, int ahead, float *out) {
    vec_t acc[8];
    float bias_sum = 0.0f;
#pragma GCC unroll 8
    for (int v = 0; v < N; v++) acc[v] = mode == MAX ? SPLAT(-__builtin_inff()) : ZERO;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *row = ptrs[i];
        if (ahead) SUFFIX(fetch)(ptrs[i + AHEAD], row_bytes);
        const float weight = mode == WEIGHTED ? weights[i] : 1.0f;
        vec_t factor = SPLAT(weight), shift = ZERO;
        if (precision == INT8 || precision == INT4) {
            const float scale = LOAD_ONE_F16(row), bias = LOAD_ONE_F16(row + 2);
            factor = SPLAT(mode == WEIGHTED ? weight * scale : scale);
            if (mode == MAX) shift = SPLAT(bias);
            else bias_sum += mode == WEIGHTED ? weight * bias : bias;
        }
#pragma GCC unroll 8
        for (int v = 0; v < N; v++) {
            const int64_t at = c + v * LANES;
            vec_t x;
            if (precision == FP32) x = LOAD_F32(row + 4 * at);
            else if (precision == FP16) x = LOAD_F16(row + 2 * at);
            else if (precision == INT8) x = LOAD_U8(row + HEADER + at);
            else x = part ? LOAD_HIGH(row + HEADER + at) : LOAD_LOW(row + HEADER + at);
            if (precision == INT8 || precision == INT4) {
                if (mode == MAX) acc[v] = MAXIMUM(acc[v], MULADD(x, factor, shift));
                else acc[v] = MULADD(x, factor, acc[v]);
            } else if (mode == MAX) acc[v] = MAXIMUM(acc[v], x);
            else if (mode == WEIGHTED) acc[v] = MULADD(x, factor, acc[v]);
            else acc[v] = ADD(acc[v], x);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < N; v++)
        STORE(out + v * LANES, mode == MAX ? acc[v] : ADD(acc[v], SPLAT(bias_sum)));
}

/* Pool all `columns` of one bag (int4: of one part), from the widest block to the narrowest. */
static ALWAYS_INLINE void SUFFIX(columns)(const int precision, const int mode, const int part,
                                          const uint8_t *const *ptrs, const float *weights,
                                          int64_t n, int64_t row_bytes, int64_t columns, int ahead,
                                          float *out) {
    int64_t c = 0;
#define BLOCK(N)                                                                             \
    SUFFIX(block)(precision, mode, N, part, ptrs, weights, n, row_bytes, c, ahead, out + c); \
    c += N * LANES
    while (c < columns) {
        const int64_t vectors = (columns - c) / LANES;
        if (vectors >= 8) {
            BLOCK(8);
        } else if (vectors >= 4) {
            BLOCK(4);
        } else if (vectors >= 2) {
            BLOCK(2);
        } else {
            if (vectors < 1) c = columns - LANES;
            BLOCK(1);
        }
        ahead = 0;
    }
#undef BLOCK
}

/* Of int4, `out` gets the elements of even index, then those of odd index. */
#define DEFINE_BAG(NAME, PRECISION, MODE)                                                      \
    static void SUFFIX(NAME)(const uint8_t *const *ptrs, const float *weights, int64_t n,      \
                             int64_t row_bytes, int64_t dim, float *out) {                     \
        if (PRECISION == INT4) {                                                               \
            const int64_t low = (dim + 1) / 2;                                                 \
            SUFFIX(columns)(PRECISION, MODE, 0, ptrs, weights, n, row_bytes, low, 1, out);     \
            if (dim > low)                                                                     \
                SUFFIX(columns)(PRECISION, MODE, 1, ptrs, weights, n, row_bytes, dim - low, 0, \
                                out + low);                                                    \
        } else SUFFIX(columns)(PRECISION, MODE, 0, ptrs, weights, n, row_bytes, dim, 1, out);  \
    }

DEFINE_BAG(f32_sum, FP32, SUM)
DEFINE_BAG(f32_max, FP32, MAX)
DEFINE_BAG(f32_weighted, FP32, WEIGHTED)
DEFINE_BAG(f16_sum, FP16, SUM)
DEFINE_BAG(f16_max, FP16, MAX)
DEFINE_BAG(f16_weighted, FP16, WEIGHTED)
DEFINE_BAG(i8_sum, INT8, SUM)
DEFINE_BAG(i8_max, INT8, MAX)
DEFINE_BAG(i8_weighted, INT8, WEIGHTED)
DEFINE_BAG(i4_sum, INT4, SUM)
DEFINE_BAG(i4_max, INT4, MAX)
DEFINE_BAG(i4_weighted, INT4, WEIGHTED)

static const bag_fn SUFFIX(bags)[4][3] = {
    {SUFFIX(f32_sum), SUFFIX(f32_max), SUFFIX(f32_weighted)},
    {SUFFIX(f16_sum), SUFFIX(f16_max), SUFFIX(f16_weighted)},
    {SUFFIX(i8_sum), SUFFIX(i8_max), SUFFIX(i8_weighted)},
    {SUFFIX(i4_sum), SUFFIX(i4_max), SUFFIX(i4_weighted)},
};

#undef DEFINE_BAG
#undef LANES
#undef SUFFIX
#undef ZERO
#undef SPLAT
#undef ADD
#undef MULADD
#undef MAXIMUM
#undef STORE
#undef LOAD_F32
#undef LOAD_F16
#undef LOAD_U8
#undef LOAD_LOW
#undef LOAD_HIGH
#undef LOAD_ONE_F16
#undef vec_t
