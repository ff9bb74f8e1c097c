/* Rows that stand in for stored ones. */
#include "arithmetic/patch.h"

#include <stdlib.h>

#include "arithmetic/index.h"
#include "arithmetic/platform.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static int64_t words_for(int64_t places) {
    return (places + 63) >> 6;
}

/* Where the places of added rows begin. */
static int64_t added_at(const patch_t *patch) {
    return words_for(patch->stored) << 6;
}

static int64_t place_of(const patch_t *patch, int64_t key) {
    return key >= 0 ? key : added_at(patch) + (-1 - key - patch->first_added);
}

/* How many rows have a place before `place`. */
static ALWAYS_INLINE int64_t rank_of(const patch_t *patch, int64_t place) {
    const uint64_t before = patch->held[place >> 6] & (((uint64_t)1 << (place & 63)) - 1);
    return patch->ranks[place >> 6] + __builtin_popcountll(before);
}

const uint8_t *patch_stored_row(const patch_t *patch, int64_t local) {
    return patch->rows[rank_of(patch, local)];
}

const uint8_t *patch_added_row(const patch_t *patch, int64_t id) {
    const int64_t number = id - patch->first_added;
    if (number < 0 || number >= patch->added) return NULL;
    const int64_t place = added_at(patch) + number;
    return patch_replaces(patch, place) ? patch->rows[rank_of(patch, place)] : NULL;
}

static ALWAYS_INLINE int64_t local_of(const patch_t *patch, int64_t offset) {
    return (int64_t)(((uint64_t)offset >> patch->shift) * patch->inverse);
}

static ALWAYS_INLINE void replace_each(const patch_t *patch, const uint8_t *rows,
                                       const uint8_t **pointers, const int32_t *which,
                                       int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        const uint8_t **pointer = &pointers[which[k]];
        *pointer = patch->rows[rank_of(patch, local_of(patch, *pointer - rows))];
    }
}

#if defined(__x86_64__)
POPCNT static void replace_popcnt(const patch_t *patch, const uint8_t *rows,
                                  const uint8_t **pointers, const int32_t *which, int64_t count) {
    replace_each(patch, rows, pointers, which, count);
}
#endif

static void replace_some(const patch_t *patch, const uint8_t *rows, const uint8_t **pointers,
                         const int32_t *which, int64_t count) {
#if defined(__x86_64__)
    if (HAS_POPCNT) {
        replace_popcnt(patch, rows, pointers, which, count);
        return;
    }
#endif
    replace_each(patch, rows, pointers, which, count);
}

enum { BLOCK = 512 }; /* pointers at a time */

/* Which of the pointers from `begin` to `n` are to be replaced: their numbers go to `which`, stored
 * always, so that telling costs no mispredicted branch. Returns how many. */
static int64_t find_any(const patch_t *patch, const uint8_t *rows, const uint8_t *const *pointers,
                        int64_t begin, int64_t n, int32_t *which) {
    int64_t count = 0;
    for (int64_t i = begin; i < n; i++) {
        which[count] = (int32_t)i;
        count += patch_replaces(patch, local_of(patch, pointers[i] - rows));
    }
    return count;
}

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512dq,avx512vl")))
#define HAS_AVX512                                                              \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && \
     __builtin_cpu_supports("avx512vl"))

/* The low words of what eight offsets are without the trailing zeros of a row's bytes. */
AVX512 static inline __m256i odd_offsets(const uint8_t *const *pointers, __m512i base,
                                         __m128i shift) {
    const __m512i offsets = _mm512_sub_epi64(_mm512_loadu_si512((const void *)pointers), base);
    return _mm512_cvtepi64_epi32(_mm512_srl_epi64(offsets, shift));
}

/* The same, sixteen at a time: local indexes that fit 32 bits are known modulo 2^32. */
AVX512 static int64_t find_512(const patch_t *patch, const uint8_t *rows,
                               const uint8_t *const *pointers, int64_t n, int32_t *which) {
    const __m512i base = _mm512_set1_epi64((int64_t)(intptr_t)rows);
    const __m512i inverse = _mm512_set1_epi32((int32_t)patch->inverse);
    const __m512i first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low = _mm512_set1_epi32(31), one = _mm512_set1_epi32(1);
    const __m128i shift = _mm_cvtsi32_si128(patch->shift);
    int64_t i = 0, count = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512i odd =
            _mm512_inserti64x4(_mm512_castsi256_si512(odd_offsets(pointers + i, base, shift)),
                               odd_offsets(pointers + i + 8, base, shift), 1);
        const __m512i local = _mm512_mullo_epi32(odd, inverse);
        const __m512i words =
            _mm512_i32gather_epi32(_mm512_srli_epi32(local, 5), (const int *)patch->held, 4);
        const __m512i bits = _mm512_srlv_epi32(words, _mm512_and_si512(local, low));
        const __mmask16 replaced = _mm512_test_epi32_mask(bits, one);
        const __m512i numbers = _mm512_add_epi32(first, _mm512_set1_epi32((int32_t)i));
        _mm512_storeu_si512((void *)(which + count),
                            _mm512_maskz_compress_epi32(replaced, numbers));
        count += __builtin_popcount(replaced);
    }
    return count + find_any(patch, rows, pointers, i, n, which + count);
}
#else
#define HAS_AVX512 0
#define find_512(patch, rows, pointers, n, which) 0
#endif

void patch_rows(const patch_t *patch, const uint8_t *rows, const uint8_t **pointers, int64_t n) {
    const int vectors = HAS_AVX512 && patch->stored <= UINT32_MAX;
    int32_t which[BLOCK + 16]; /* a vector is stored whole */
    for (; n > 0; pointers += BLOCK, n -= BLOCK) {
        const int64_t size = n < BLOCK ? n : BLOCK;
        const int64_t count = vectors ? find_512(patch, rows, pointers, size, which)
                                      : find_any(patch, rows, pointers, 0, size, which);
        replace_some(patch, rows, pointers, which, count);
    }
}

/* Inverse of an odd number modulo 2^64: each step of Newton's doubles the bits that are right. */
static uint64_t inverse_of(uint64_t odd) {
    uint64_t inverse = odd; /* right in three bits */
    for (int step = 0; step < 5; step++) inverse *= 2 - odd * inverse;
    return inverse;
}

int patch_open(patch_t *patch, const int64_t *keys, int64_t count, int64_t stored,
               int64_t row_bytes) {
    int64_t first = INT64_MAX, last = -1;
    for (int64_t i = 0; i < count; i++) {
        const int64_t id = -1 - keys[i];
        if (id >= 0 && id < first) first = id;
        if (id > last) last = id;
    }
    const int shift = __builtin_ctzll((uint64_t)row_bytes);
    *patch = (patch_t){.stored = stored, .shift = shift};
    patch->inverse = inverse_of((uint64_t)row_bytes >> shift);
    if (last >= 0) {
        patch->first_added = first;
        patch->added = last - first + 1;
    }
    const size_t words = (size_t)(words_for(stored) + words_for(patch->added) + 1);
    patch->held = calloc(words, sizeof(*patch->held));
    patch->ranks = malloc(words * sizeof(*patch->ranks));
    patch->rows = malloc((size_t)(count + 1) * sizeof(*patch->rows));
    if (patch->held == NULL || patch->ranks == NULL || patch->rows == NULL) {
        patch_close(patch);
        return 0;
    }
    for (int64_t i = 0; i < count; i++) {
        const int64_t place = place_of(patch, keys[i]);
        patch->held[place >> 6] |= (uint64_t)1 << (place & 63);
    }
    for (size_t word = 0; word < words; word++) {
        if ((int64_t)word == words_for(stored)) patch->replacing = patch->count;
        patch->ranks[word] = (uint32_t)patch->count;
        patch->count += __builtin_popcountll(patch->held[word]);
    }
    return 1;
}

/* The `n` <= 64 bits of `held` from `place` on. */
static uint64_t bits_from(const patch_t *patch, int64_t place, int n) {
    const uint64_t *word = patch->held + (place >> 6);
    const int low = place & 63;
    uint64_t bits = word[0] >> low;
    if (low + n > 64) bits |= word[1] << (64 - low);
    return n < 64 ? bits & (((uint64_t)1 << n) - 1) : bits;
}

/* The bits of `places` whose rows are replaced: `replaced` has one for each, the lowest first. */
static uint64_t spread(uint64_t replaced, uint64_t places) {
    uint64_t result = 0;
    for (; replaced; replaced >>= 1, places &= places - 1)
        if (replaced & 1) result |= places & -places;
    return result;
}

int patch_fuse(const patch_t *patch, const uint64_t *blocks, int64_t count, uint64_t *fused) {
    uint64_t rank = 0;
    for (int64_t k = 0; k < count; k++, blocks += INDEX_WORDS) {
        uint64_t *const stored = fused + 2 * INDEX_WORDS * k, *const replaced =
                                                                  stored + INDEX_WORDS;
        uint64_t sizes[INDEX_WORDS - 1];
        int64_t local = (int64_t)(blocks[0] >> 16);
        stored[0] = blocks[0];
        for (int lane = 0; lane < INDEX_WORDS - 1; lane++) {
            const uint64_t bits = stored[1 + lane] = blocks[1 + lane];
            const int n = __builtin_popcountll(bits);
            if (local + n > patch->stored) return 0;
            replaced[1 + lane] = spread(bits_from(patch, local, n), bits);
            sizes[lane] = (uint64_t)__builtin_popcountll(replaced[1 + lane]);
            local += n;
        }
        replaced[0] = rank << 16 | (sizes[0] + sizes[1]) << 8 | sizes[0];
        rank += sizes[0] + sizes[1] + sizes[2];
    }
    return 1;
}

void patch_put(patch_t *patch, int64_t key, const uint8_t *row) {
    patch->rows[rank_of(patch, place_of(patch, key))] = row;
}

void patch_close(patch_t *patch) {
    free(patch->held);
    free(patch->ranks);
    free((void *)patch->rows);
    *patch = (patch_t){0};
}
