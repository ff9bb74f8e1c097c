/* Gather-pool of stored rows. */
#include "arithmetic/gather.h"

#include <stdlib.h>

#include "arithmetic/float16.h"
#include "arithmetic/index.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define AHEAD POOL_AHEAD

enum { HEADER = 4 }; /* bytes of an int8 or int4 row before its codes: a float16 scale and bias */

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
#define LOAD_F16(p) load_float16(p)
#define LOAD_U8(p) ((float)*(p))
#define LOAD_LOW(p) ((float)(*(p) & 15))
#define LOAD_HIGH(p) ((float)(*(p) >> 4))
#define LOAD_ONE_F16(p) load_float16(p)
#include "arithmetic/gather_lanes.h"

/* 4 lanes of whatever the processor has (SSE2, NEON): GCC's vector extension. */
typedef float lanes4_t __attribute__((vector_size(16)));

static ALWAYS_INLINE lanes4_t load_quad(const uint8_t *at) {
    lanes4_t value;
    memcpy(&value, at, 16);
    return value;
}

static ALWAYS_INLINE void store_quad(float *at, lanes4_t value) {
    memcpy(at, &value, 16);
}

static ALWAYS_INLINE lanes4_t max_quad(lanes4_t a, lanes4_t b) {
    lanes4_t most;
    for (int i = 0; i < 4; i++) most[i] = a[i] > b[i] ? a[i] : b[i];
    return most;
}

#define LANES 4
#define vec_t lanes4_t
#define SUFFIX(name) name##_quad
#define ZERO (lanes4_t){0.0f, 0.0f, 0.0f, 0.0f}
#define SPLAT(x)           \
    (lanes4_t) {           \
        (x), (x), (x), (x) \
    }
#define ADD(a, b) ((a) + (b))
#define MULADD(a, b, c) ((a) * (b) + (c))
#define MAXIMUM(a, b) max_quad(a, b)
#define STORE(p, v) store_quad(p, v)
#define LOAD_F32(p) load_quad(p)
#define LOAD_F16(p)                                                                          \
    (lanes4_t) {                                                                             \
        load_float16(p), load_float16((p) + 2), load_float16((p) + 4), load_float16((p) + 6) \
    }
#define LOAD_U8(p)                     \
    (lanes4_t) {                       \
        (p)[0], (p)[1], (p)[2], (p)[3] \
    }
#define LOAD_LOW(p) (lanes4_t){(p)[0] & 15, (p)[1] & 15, (p)[2] & 15, (p)[3] & 15}
#define LOAD_HIGH(p) (lanes4_t){(p)[0] >> 4, (p)[1] >> 4, (p)[2] >> 4, (p)[3] >> 4}
#define LOAD_ONE_F16(p) load_float16(p)
#include "arithmetic/gather_lanes.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt")
#endif

static ALWAYS_INLINE float float16_f16c(const uint8_t *at) {
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
#define LOAD_LOW(p) \
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_and_si128(load_8(p), _mm_set1_epi8(15))))
#define LOAD_HIGH(p) _mm256_cvtepi32_ps(_mm256_srli_epi32(_mm256_cvtepu8_epi32(load_8(p)), 4))
#define LOAD_ONE_F16(p) float16_f16c(p)
#include "arithmetic/gather_lanes.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(                                                           \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt")
#endif

static ALWAYS_INLINE float float16_512(const uint8_t *at) {
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
#define LOAD_LOW(p) \
    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(load_16(p), _mm_set1_epi8(15))))
#define LOAD_HIGH(p) _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_cvtepu8_epi32(load_16(p)), 4))
#define LOAD_ONE_F16(p) float16_512(p)
#include "arithmetic/gather_lanes.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

/* The instruction sets of this processor, widest first. The last fits any dim. */
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
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() &&
        __builtin_cpu_supports("popcnt")) {
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

bag_fn bag_function(const slice_t *slice) {
    const int64_t columns =
        slice->precision == INT4 && slice->dim > 1 ? slice->dim / 2 : slice->dim;
    const int mode = slice->pooling == MEAN ? SUM : slice->pooling;
    int set = 0;
    while (sets[set].lanes > columns) set++;
    return sets[set].bags[slice->precision][mode];
}

static int is_patched(const slice_t *slice) {
    return slice->patch && slice->patch->replacing;
}

static ALWAYS_INLINE int64_t id_of(const ids_t *ids, const int wide, int64_t at) {
    return wide ? ((const int64_t *)ids->data)[at] : ((const int32_t *)ids->data)[at];
}

/* Set ptrs[i] to the address of the row of ids[i]; `which` has room for `n` numbers where the index
 * is `fused` with the patch. Returns the first i that is not stored, or -1. */
static ALWAYS_INLINE int64_t locate(const slice_t *slice, const ids_t *ids, int64_t begin,
                                    int64_t n, const int wide, const int fused,
                                    const uint8_t **ptrs, int32_t *which) {
    const uint64_t rows = (uint64_t)slice->indexed;
    const uint64_t *const blocks = fused ? slice->fused : slice->blocks;
    const uint64_t words = fused ? 2 * INDEX_WORDS : INDEX_WORDS;
    int64_t count = 0, i = 0;
    for (; i < n; i++) {
        const uint64_t id = (uint64_t)id_of(ids, wide, begin + i);
        if (id >= rows) break;
        if (blocks && i + AHEAD < n) { /* an id that is no row is named when it comes */
            const uint64_t next = (uint64_t)id_of(ids, wide, begin + i + AHEAD);
            if (next < rows) __builtin_prefetch(blocks + words * (next / INDEX_ROWS));
        }
        int64_t local = (int64_t)id;
        if (blocks) {
            const uint64_t word = id >> 6, block = word / 3, lane = word - 3 * block;
            const uint64_t *entry = blocks + words * block;
            local = index_rank_in(entry, lane, id & 63);
            /* a damaged index must not become a wild read */
            if ((uint64_t)local >= (uint64_t)slice->stored) break;
            if (fused) { /* stored always: telling costs no mispredicted branch */
                which[count] = (int32_t)i;
                count += (int64_t)(entry[INDEX_WORDS + 1 + lane] >> (id & 63) & 1);
            }
        }
        ptrs[i] = slice->rows + local * slice->row_bytes;
    }
    for (int64_t k = 0; k < count; k++) {
        const uint64_t id = (uint64_t)id_of(ids, wide, begin + which[k]);
        const uint64_t word = id >> 6, block = word / 3;
        const uint64_t *entry = blocks + words * block + INDEX_WORDS;
        ptrs[which[k]] = slice->patch->rows[index_rank_in(entry, word - 3 * block, id & 63)];
    }
    return i < n ? i : -1;
}

static ALWAYS_INLINE int64_t locate_each(const slice_t *slice, const ids_t *ids, int64_t begin,
                                         int64_t n, const uint8_t **ptrs, int32_t *which) {
    if (slice->fused)
        return ids->wide ? locate(slice, ids, begin, n, 1, 1, ptrs, which)
                         : locate(slice, ids, begin, n, 0, 1, ptrs, which);
    return ids->wide ? locate(slice, ids, begin, n, 1, 0, ptrs, which)
                     : locate(slice, ids, begin, n, 0, 0, ptrs, which);
}

#if defined(__x86_64__)
POPCNT static int64_t locate_popcnt(const slice_t *slice, const ids_t *ids, int64_t begin,
                                    int64_t n, const uint8_t **ptrs, int32_t *which) {
    return locate_each(slice, ids, begin, n, ptrs, which);
}
#endif

static int64_t locate_any(const slice_t *slice, const ids_t *ids, int64_t begin, int64_t n,
                          const uint8_t **ptrs, int32_t *which) {
    return locate_each(slice, ids, begin, n, ptrs, which);
}

static int64_t locate_some(const slice_t *slice, const ids_t *ids, int64_t begin, int64_t n,
                           const uint8_t **ptrs, int32_t *which) {
#if defined(__x86_64__)
    if (HAS_POPCNT) return locate_popcnt(slice, ids, begin, n, ptrs, which);
#endif
    return locate_any(slice, ids, begin, n, ptrs, which);
}

/* The same where a generation has changed or added rows; `which` has room for `n` numbers where it
 * has changed some. */
static int64_t find_rows(const slice_t *slice, const ids_t *ids, int64_t begin, int64_t n,
                         const uint8_t **ptrs, int32_t *which) {
    const int apart = is_patched(slice) && !slice->fused;
    for (int64_t done = 0; done < n; done++) {
        const int64_t bad = locate_some(slice, ids, begin + done, n - done, ptrs + done, which);
        if (apart) patch_rows(slice->patch, slice->rows, ptrs + done, bad < 0 ? n - done : bad);
        if (bad < 0) break;
        done += bad; /* no stored row: perhaps an added one */
        const int64_t id = id_at(ids, begin + done);
        if (slice->patch == NULL || id < slice->indexed || id >= slice->table_rows) return done;
        ptrs[done] = patch_added_row(slice->patch, id);
        if (ptrs[done] == NULL) return done;
    }
    return -1;
}

void interleave(const float *parts, float *out, int64_t dim) {
    const float *even = parts, *odd = parts + (dim + 1) / 2;
    for (int64_t j = 0; j < dim / 2; j++) {
        out[2 * j] = even[j];
        out[2 * j + 1] = odd[j];
    }
    if (dim & 1) out[dim - 1] = even[dim / 2];
}

int pool_fits(const slice_t *slices, int64_t ids, const float *weights, const bags_t *bags,
              fault_t *fault) {
    for (int64_t s = 0; s < bags->tables; s++)
        if (slices[s].pooling == WEIGHTED && weights == NULL) {
            *fault = (fault_t){FAULT_UNWEIGHTED, s, 0, 0, 0};
            return 0;
        }
    return lengths_fit(bags, ids, fault);
}

int64_t ids_in(const bags_t *bags, int64_t s) {
    const int32_t *lengths = lengths_in(bags, s);
    const int64_t count = bags_of(bags, s);
    int64_t sum = 0;
    for (int64_t b = 0; b < count; b++) sum += lengths[b];
    return sum;
}

fault_t id_fault(const slice_t *slice, int64_t s, const ids_t *values, int64_t begin,
                 const int32_t *lengths, int64_t bad) {
    int64_t sample = 0, end = lengths[0];
    while (end <= bad) end += lengths[++sample];
    const int64_t id = id_at(values, begin + bad);
    const int kind = (uint64_t)id >= (uint64_t)slice->table_rows ? FAULT_RANGE : FAULT_ABSENT;
    return (fault_t){kind, s, sample, begin + bad, id};
}

/* Pool the bags of one slice, whose rows are at `rows`, to `out`, a bag every `stride` floats; or
 * packed. Returns the floats written when packed. */
static int64_t pool_slice(const slice_t *slice, const uint8_t *const *rows, const float *weights,
                          const int32_t *lengths, int64_t samples, float *out, int64_t stride,
                          int packed, float *parts) {
    const bag_fn bag = bag_function(slice);
    const int in_parts = slice->precision == INT4;
    float *next = out;
    int64_t done = 0;
    for (int64_t b = 0; b < samples; b++) {
        float *to = packed ? next : out + b * stride;
        if (lengths[b]) {
            bag(rows + done, weights ? weights + done : NULL, lengths[b], slice->row_bytes,
                slice->dim, in_parts ? parts : to);
            if (in_parts) interleave(parts, to, slice->dim);
            next += slice->dim;
        } else if (!packed) memset(to, 0, sizeof(float) * (size_t)slice->dim);
        done += lengths[b];
    }
    return packed ? next - out : 0;
}

int64_t packed_size(const slice_t *slices, const bags_t *bags) {
    int64_t floats = 0;
    for (int64_t s = 0; s < bags->tables; s++) {
        const int32_t *lengths = lengths_in(bags, s);
        const int64_t count = bags_of(bags, s);
        for (int64_t b = 0; b < count; b++)
            if (lengths[b]) floats += slices[s].dim;
    }
    return floats;
}

/* Where a query's vectors go, one slice after the other. */
typedef struct {
    float *out, *parts; /* `parts`: the widest vector, not in order */
    const int64_t *columns;
    int64_t stride, written;
    int packed;
} target_t;

static float *parts_for(const slice_t *slices, int64_t count) {
    int64_t widest = 0;
    for (int64_t s = 0; s < count; s++) widest = slices[s].dim > widest ? slices[s].dim : widest;
    return malloc(sizeof(float) * (size_t)(widest + 1));
}

static void pool_into(target_t *target, const slice_t *slice, int64_t s, const bags_t *bags,
                      const uint8_t *const *rows, const float *weights) {
    float *to = target->packed ? target->out + target->written : target->out + target->columns[s];
    target->written += pool_slice(slice, rows, weights, lengths_in(bags, s), bags_of(bags, s), to,
                                  target->stride, target->packed, target->parts);
}

int64_t pool(const slice_t *slices, const ids_t *values, const float *weights, const bags_t *bags,
             float *out, int64_t stride, const int64_t *columns, int packed, fault_t *fault) {
    const int64_t count = bags->tables;
    int64_t most = 0, begin = 0, patched = 0;
    if (!pool_fits(slices, values->size, weights, bags, fault)) return 0;
    for (int64_t s = 0; s < count; s++) {
        const int64_t size = ids_in(bags, s);
        most = size > most ? size : most;
        patched |= slices[s].fused != NULL;
    }
    const size_t room = (size_t)(most + AHEAD), numbers = patched ? (size_t)most : 0;
    const uint8_t **rows = malloc(sizeof(*rows) * room + sizeof(int32_t) * numbers);
    int32_t *which = rows && patched ? (int32_t *)(void *)(rows + room) : NULL;
    target_t target = {out, parts_for(slices, count), columns, stride, 0, packed};
    if (rows == NULL || target.parts == NULL) fault->kind = FAULT_MEMORY;
    for (int64_t s = 0; s < count && !fault->kind; s++) {
        const slice_t *slice = &slices[s];
        const int64_t n = ids_in(bags, s), bad = find_rows(slice, values, begin, n, rows, which);
        if (bad >= 0) {
            *fault = id_fault(slice, s, values, begin, lengths_in(bags, s), bad);
            break;
        }
        for (int64_t i = 0; i < AHEAD; i++) rows[n + i] = slice->rows;
        pool_into(&target, slice, s, bags, rows, weights ? weights + begin : NULL);
        begin += n;
    }
    free(target.parts);
    free(rows);
    return target.written;
}

int64_t pool_rows(const slice_t *slices, const uint8_t *const *rows, const float *weights,
                  const bags_t *bags, float *out, int64_t stride, const int64_t *columns,
                  int packed, fault_t *fault) {
    target_t target = {out, parts_for(slices, bags->tables), columns, stride, 0, packed};
    int64_t begin = 0;
    if (target.parts == NULL) fault->kind = FAULT_MEMORY;
    for (int64_t s = 0; s < bags->tables && !fault->kind; s++) {
        pool_into(&target, &slices[s], s, bags, rows + begin, weights ? weights + begin : NULL);
        begin += ids_in(bags, s);
    }
    free(target.parts);
    return target.written;
}
