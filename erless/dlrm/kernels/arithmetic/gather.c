/* Gather-pool of stored rows, and combine of partial sums. */
#include <math.h>
#include <stdlib.h>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define AHEAD POOL_AHEAD

enum { HEADER = 4 }; /* fp16 scale and bias in front of the codes of an int8 or int4 row */

/* One bag: `n` > 0 rows at `ptrs` (which goes on for AHEAD valid entries) -> out (dim). */
typedef void (*bag_fn)(const uint8_t *const *ptrs, const float *weights, int64_t n,
                       int64_t row_bytes, int64_t dim, float *out);

/* IEEE 754 binary16 -> binary32, in integer arithmetic: exact, for processors without it. */
static float half_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31;
    uint32_t fraction = half & 0x3ff, bits;
    float value;
    if (exponent == 31) bits = sign | 0x7f800000 | fraction << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | fraction << 13;
    else { /* subnormal: fraction * 2^-24 */
        value = (float)fraction * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, 4);
    return value;
}

/* binary32 -> binary16, round to nearest even. */
static uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    const float size = fabsf(value);
    if (size != size) return sign | 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 6.103515625e-5f) /* subnormal: let the addition round */
        return sign | (uint16_t)lrintf(size * 16777216.0f);
    bits &= 0x7fffffff;
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (uint16_t)((bits >> 13) - (112 << 10));
}

static ALWAYS_INLINE float load_float(const uint8_t *at) {
    float value;
    memcpy(&value, at, 4);
    return value;
}

static ALWAYS_INLINE float load_half(const uint8_t *at) {
    uint16_t bits;
    memcpy(&bits, at, 2);
    return half_to_float(bits);
}

/* Any processor, any dim. */
#define LANES 1
#define vec_t float
#define SUFFIX(name) name##_scalar
#define ZERO 0.0f
#define SPLAT(x) (x)
#define ADD(a, b) ((a) + (b))
#define MULADD(a, b, c) ((a) * (b) + (c))
#define MAXIMUM(a, b) ((a) > (b) ? (a) : (b))
#define STORE(p, v) (*(p) = (v))
#define LOAD_F32(p) load_float(p)
#define LOAD_F16(p) load_half(p)
#define LOAD_U8(p) ((float)*(p))
#define LOAD_LOW(p) ((float)(*(p) & 15))
#define LOAD_HIGH(p) ((float)(*(p) >> 4))
#define HALF(p) load_half(p)
#include "arithmetic/gather_lanes.h"

/* 4 lanes of whatever the processor has (SSE2, NEON): GCC's vector extension. */
typedef float lanes4_t __attribute__((vector_size(16)));

static ALWAYS_INLINE lanes4_t load_quad(const uint8_t *at) {
    lanes4_t value;
    memcpy(&value, at, 16);
    return value;
}

static ALWAYS_INLINE void store_quad(float *at, lanes4_t value) { memcpy(at, &value, 16); }

static ALWAYS_INLINE lanes4_t max_quad(lanes4_t a, lanes4_t b) {
    lanes4_t most;
    for (int i = 0; i < 4; i++) most[i] = a[i] > b[i] ? a[i] : b[i];
    return most;
}

#define LANES 4
#define vec_t lanes4_t
#define SUFFIX(name) name##_quad
#define ZERO (lanes4_t){0.0f, 0.0f, 0.0f, 0.0f}
#define SPLAT(x) (lanes4_t){(x), (x), (x), (x)}
#define ADD(a, b) ((a) + (b))
#define MULADD(a, b, c) ((a) * (b) + (c))
#define MAXIMUM(a, b) max_quad(a, b)
#define STORE(p, v) store_quad(p, v)
#define LOAD_F32(p) load_quad(p)
#define LOAD_F16(p) (lanes4_t){load_half(p), load_half((p) + 2), load_half((p) + 4), load_half((p) + 6)}
#define LOAD_U8(p) (lanes4_t){(p)[0], (p)[1], (p)[2], (p)[3]}
#define LOAD_LOW(p) (lanes4_t){(p)[0] & 15, (p)[1] & 15, (p)[2] & 15, (p)[3] & 15}
#define LOAD_HIGH(p) (lanes4_t){(p)[0] >> 4, (p)[1] >> 4, (p)[2] >> 4, (p)[3] >> 4}
#define HALF(p) load_half(p)
#include "arithmetic/gather_lanes.h"

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt")

static ALWAYS_INLINE float half_f16c(const uint8_t *at) {
    uint16_t bits;
    memcpy(&bits, at, 2);
    return _cvtsh_ss(bits);
}

static ALWAYS_INLINE __m128i load_8(const uint8_t *at) {
    return _mm_loadl_epi64((const __m128i *)at);
}

#define LANES 8
#define vec_t __m256
#define SUFFIX(name) name##_avx2
#define ZERO _mm256_setzero_ps()
#define SPLAT(x) _mm256_set1_ps(x)
#define ADD(a, b) _mm256_add_ps(a, b)
#define MULADD(a, b, c) _mm256_fmadd_ps(a, b, c)
#define MAXIMUM(a, b) _mm256_max_ps(a, b)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define LOAD_F32(p) _mm256_loadu_ps((const float *)(const void *)(p))
#define LOAD_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define LOAD_U8(p) _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8(p)))
#define LOAD_LOW(p)                                                                              \
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_and_si128(load_8(p), _mm_set1_epi8(15))))
#define LOAD_HIGH(p) _mm256_cvtepi32_ps(_mm256_srli_epi32(_mm256_cvtepu8_epi32(load_8(p)), 4))
#define HALF(p) half_f16c(p)
#include "arithmetic/gather_lanes.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt")

static ALWAYS_INLINE float half_512(const uint8_t *at) {
    uint16_t bits;
    memcpy(&bits, at, 2);
    return _cvtsh_ss(bits);
}

static ALWAYS_INLINE __m128i load_16(const uint8_t *at) {
    return _mm_loadu_si128((const __m128i *)at);
}

#define LANES 16
#define vec_t __m512
#define SUFFIX(name) name##_avx512
#define ZERO _mm512_setzero_ps()
#define SPLAT(x) _mm512_set1_ps(x)
#define ADD(a, b) _mm512_add_ps(a, b)
#define MULADD(a, b, c) _mm512_fmadd_ps(a, b, c)
#define MAXIMUM(a, b) _mm512_max_ps(a, b)
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define LOAD_F32(p) _mm512_loadu_ps((const void *)(p))
#define LOAD_F16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define LOAD_U8(p) _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_16(p)))
#define LOAD_LOW(p)                                                                              \
    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(load_16(p), _mm_set1_epi8(15))))
#define LOAD_HIGH(p) _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_cvtepu8_epi32(load_16(p)), 4))
#define HALF(p) half_512(p)
#include "arithmetic/gather_lanes.h"
#pragma GCC pop_options

#endif

/* The sets this processor has, widest first; the last fits any dim. */
static struct {
    int64_t lanes;
    const bag_fn (*bags)[3];
} sets[4];
static int set_count;

const char *gather_choose(void) {
    const char *name = "portable";
    set_count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c") && __builtin_cpu_supports("popcnt")) {
        name = "avx2";
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
            name = "avx512";
            sets[set_count].lanes = 16;
            sets[set_count++].bags = bags_avx512;
        }
        sets[set_count].lanes = 8;
        sets[set_count++].bags = bags_avx2;
    }
#endif
    sets[set_count].lanes = 4;
    sets[set_count++].bags = bags_quad;
    sets[set_count].lanes = 1;
    sets[set_count++].bags = bags_scalar;
    return name;
}

int64_t stored_row_bytes(int precision, int64_t dim) {
    switch (precision) {
        case FP32: return 4 * dim;
        case FP16: return 2 * dim;
        case INT8: return dim + 4;
        default: return (dim + 1) / 2 + 4;
    }
}

static bag_fn choose(const slice_t *slice) {
    const int64_t columns = slice->precision == INT4 && slice->dim > 1 ? slice->dim / 2 : slice->dim;
    const int mode = slice->pooling == MEAN ? SUM : slice->pooling;
    int set = 0;
    while (sets[set].lanes > columns) set++;
    return sets[set].bags[slice->precision][mode];
}

/* ptrs[i] = address of the stored row of ids[i]. Returns the first i that is not stored, or -1. */
static ALWAYS_INLINE int64_t locate(const slice_t *slice, const ids_t *ids, int64_t begin,
                                    int64_t n, const int wide, const uint8_t **ptrs) {
    const uint64_t rows = (uint64_t)slice->table_rows;
    const int64_t *const far = (const int64_t *)ids->data + begin;
    const int32_t *const near = (const int32_t *)ids->data + begin;
    for (int64_t i = 0; i < n; i++) {
        const uint64_t id = (uint64_t)(wide ? far[i] : near[i]);
        if (id >= rows) return i;
        if (slice->blocks && i + AHEAD < n) { /* an id that is no row is named when it comes */
            const uint64_t next = (uint64_t)(wide ? far[i + AHEAD] : near[i + AHEAD]);
            if (next < rows) __builtin_prefetch(slice->blocks + INDEX_WORDS * (next / INDEX_ROWS));
        }
        int64_t local = (int64_t)id;
        if (slice->blocks) {
            local = index_local(slice->blocks, id);
            /* a damaged index must not become a wild read */
            if ((uint64_t)local >= (uint64_t)slice->stored) return i;
        }
        ptrs[i] = slice->rows + local * slice->row_bytes;
    }
    return -1;
}

#if defined(__x86_64__)
__attribute__((target("popcnt,bmi,bmi2"))) static int64_t
locate_popcnt(const slice_t *slice, const ids_t *ids, int64_t begin, int64_t n,
              const uint8_t **ptrs) {
    return ids->wide ? locate(slice, ids, begin, n, 1, ptrs)
                     : locate(slice, ids, begin, n, 0, ptrs);
}
#endif

static int64_t locate_any(const slice_t *slice, const ids_t *ids, int64_t begin, int64_t n,
                          const uint8_t **ptrs) {
    return ids->wide ? locate(slice, ids, begin, n, 1, ptrs)
                     : locate(slice, ids, begin, n, 0, ptrs);
}

static int64_t find_rows(const slice_t *slice, const ids_t *ids, int64_t begin, int64_t n,
                         const uint8_t **ptrs) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi2"))
        return locate_popcnt(slice, ids, begin, n, ptrs);
#endif
    return locate_any(slice, ids, begin, n, ptrs);
}

/* Even elements, then odd ones -> element by element. */
static void interleave(const float *parts, float *out, int64_t dim) {
    const float *even = parts, *odd = parts + (dim + 1) / 2;
    for (int64_t j = 0; j < dim / 2; j++) {
        out[2 * j] = even[j];
        out[2 * j + 1] = odd[j];
    }
    if (dim & 1) out[dim - 1] = even[dim / 2];
}

/* Check lengths; *most = the largest number of ids of one slice. */
static int check_lengths(const int32_t *lengths, int64_t count, int64_t samples, int64_t size,
                         int64_t *most, fault_t *fault) {
    int64_t total = 0;
    for (int64_t s = 0; s < count; s++) {
        const int64_t before = total;
        for (int64_t b = 0; b < samples; b++) {
            const int32_t length = lengths[s * samples + b];
            if (length < 0) {
                *fault = (fault_t){FAULT_LENGTH, s, b, total, length};
                return 0;
            }
            total += length;
        }
        if (total - before > *most) *most = total - before;
    }
    if (total != size) *fault = (fault_t){FAULT_TOTAL, 0, 0, size, total};
    return total == size;
}

int64_t pool(const slice_t *slices, int64_t count, const ids_t *values, const float *weights,
             const int32_t *lengths, int64_t samples, float *out, int64_t stride,
             const int64_t *columns, int packed, fault_t *fault) {
    int64_t most = 0, begin = 0, widest = 0;
    float *next = out;
    for (int64_t s = 0; s < count; s++) widest = slices[s].dim > widest ? slices[s].dim : widest;
    if (!check_lengths(lengths, count, samples, values->size, &most, fault)) return 0;
    const uint8_t **ptrs = malloc(sizeof(*ptrs) * (size_t)(most + AHEAD));
    float *parts = malloc(sizeof(*parts) * (size_t)(widest + 1));
    if (ptrs == NULL || parts == NULL) {
        free(ptrs);
        free(parts);
        fault->kind = FAULT_MEMORY;
        return 0;
    }
    for (int64_t s = 0; s < count; s++) {
        const slice_t *slice = &slices[s];
        const int32_t *row = lengths + s * samples;
        const bag_fn bag = choose(slice);
        int64_t n = 0, done = 0;
        for (int64_t b = 0; b < samples; b++) n += row[b];
        const int64_t bad = find_rows(slice, values, begin, n, ptrs);
        if (bad >= 0) {
            int64_t b = 0, end = row[0];
            while (end <= bad) end += row[++b];
            const int64_t id = id_at(values, begin + bad);
            const int kind =
                (uint64_t)id >= (uint64_t)slice->table_rows ? FAULT_RANGE : FAULT_ABSENT;
            *fault = (fault_t){kind, s, b, begin + bad, id};
            break;
        }
        for (int64_t i = 0; i < AHEAD; i++) ptrs[n + i] = slice->rows;
        for (int64_t b = 0; b < samples; b++) {
            float *at = packed ? next : out + b * stride + columns[s];
            if (row[b]) {
                const int split = slice->precision == INT4;
                bag(ptrs + done, weights ? weights + begin + done : NULL, row[b],
                    slice->row_bytes, slice->dim, split ? parts : at);
                if (split) interleave(parts, at, slice->dim);
            } else if (!packed) memset(at, 0, sizeof(float) * (size_t)slice->dim);
            if (row[b]) next += slice->dim;
            done += row[b];
        }
        begin += n;
    }
    free(parts);
    free(ptrs);
    return packed ? next - out : 0;
}

/* Returns 0 without memory. */
int home_pool(const home_t *homes, int64_t tables, const kept_t *kept, int64_t samples, float *out,
              int64_t stride, const place_t *places) {
    const uint8_t **rows = kept->rows;
    int64_t widest = 0, done = 0;
    for (int64_t t = 0; t < tables; t++)
        if (homes[t].shard >= 0 && places[t].dim > widest) widest = places[t].dim;
    float *sum = malloc(sizeof(float) * 2 * (size_t)(widest + 1)), *parts = sum + widest + 1;
    if (sum == NULL) return 0;
    for (int64_t i = 0; i < AHEAD; i++) rows[kept->size + i] = kept->size ? rows[0] : NULL;
    for (int64_t t = 0; t < tables; t++) {
        if (homes[t].shard < 0) continue;
        const slice_t *slice = &homes[t].slice;
        const bag_fn bag = choose(slice);
        for (int64_t b = 0; b < samples; b++) {
            const int64_t size = kept->sizes[t * samples + b], split = slice->precision == INT4;
            if (size == 0) continue;
            bag(rows + done, kept->weights ? kept->weights + done : NULL, size, slice->row_bytes,
                slice->dim, split ? parts : sum);
            if (split) interleave(parts, sum, slice->dim);
            float *to = out + b * stride + places[t].column;
            if (slice->pooling == MAX)
                for (int64_t c = 0; c < slice->dim; c++) to[c] = sum[c] > to[c] ? sum[c] : to[c];
            else
                for (int64_t c = 0; c < slice->dim; c++) to[c] += sum[c];
            done += size;
        }
    }
    free(sum);
    return 1;
}

/* Sums start at 0, maxima at -inf. */
void combine_begin(float *out, int64_t stride, int64_t samples, const place_t *places,
                   int64_t count) {
    memset(out, 0, sizeof(float) * (size_t)(stride * samples));
    for (int64_t t = 0; t < count; t++)
        for (int64_t b = 0; places[t].pooling == MAX && b < samples; b++)
            for (int64_t c = 0; c < places[t].dim; c++)
                out[b * stride + places[t].column + c] = -INFINITY;
}

/* Partials of empty bags are not there, or are zero: neither enters. */
void combine(float *out, int64_t stride, const void *partial, int half, int packed,
             const int32_t *lengths, int64_t samples, const place_t *places, int64_t count) {
    const int64_t element = half ? 2 : 4;
    const uint8_t *next = partial;
    int64_t width = 0, column = 0;
    for (int64_t s = 0; s < count; s++) width += places[s].dim;
    for (int64_t s = 0; s < count; s++) {
        const int64_t dim = places[s].dim;
        for (int64_t b = 0; b < samples; b++) {
            if (lengths[s * samples + b] == 0) continue;
            float *to = out + b * stride + places[s].column;
            const uint8_t *from =
                packed ? next : (const uint8_t *)partial + element * (b * width + column);
            if (places[s].pooling == MAX)
                for (int64_t c = 0; c < dim; c++) {
                    const float x = half ? load_half(from + 2 * c) : load_float(from + 4 * c);
                    to[c] = x > to[c] ? x : to[c];
                }
            else if (half)
                for (int64_t c = 0; c < dim; c++) to[c] += load_half(from + 2 * c);
            else
                for (int64_t c = 0; c < dim; c++) to[c] += load_float(from + 4 * c);
            next += element * dim;
        }
        column += dim;
    }
}

/* Means are divided by the whole bag's length, once; the maximum of no row is 0. */
void combine_end(float *out, int64_t stride, const int32_t *lengths, int64_t samples,
                 const place_t *places, int64_t count) {
    for (int64_t t = 0; t < count; t++) {
        if (places[t].pooling != MEAN && places[t].pooling != MAX) continue;
        for (int64_t b = 0; b < samples; b++) {
            const int32_t length = lengths[t * samples + b];
            float *at = out + b * stride + places[t].column;
            if (places[t].pooling == MAX && length == 0)
                memset(at, 0, sizeof(float) * (size_t)places[t].dim);
            if (places[t].pooling == MEAN && length > 1)
                for (int64_t c = 0; c < places[t].dim; c++) at[c] /= (float)length;
        }
    }
}

void to_float16(const float *from, uint16_t *to, int64_t size) {
    for (int64_t i = 0; i < size; i++) to[i] = float_to_half(from[i]);
}
