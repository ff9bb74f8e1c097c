/* Rows that stand in for stored ones. */
#include "arithmetic/patch.h"

#include <stdlib.h>

#include "arithmetic/platform.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { FILTER_WORD = 5 }; /* log2 of the bits of a word of the filter */

static ALWAYS_INLINE uint64_t slot_hash(int64_t key) {
    return (uint64_t)key * 0x9e3779b97f4a7c15u;
}

/* 32 bits, so that a vector takes sixteen of them. Rows mostly begin at multiples of four. */
static ALWAYS_INLINE uint32_t filter_hash(int64_t key) {
    return (uint32_t)((uint64_t)key >> 2) * 0x9e3779b1u;
}

static int bits_for(int64_t count) {
    int bits = 6;
    while (((int64_t)1 << bits) < count) bits++;
    return bits;
}

/* The slot of `key`: its own, or the free one where it would go. */
static patch_slot_t *slot_of(const patch_t *patch, int64_t key) {
    const uint64_t mask = ((uint64_t)1 << patch->slot_bits) - 1;
    uint64_t at = slot_hash(key) >> (64 - patch->slot_bits);
    while (patch->slots[at].key != PATCH_FREE && patch->slots[at].key != key) at = (at + 1) & mask;
    return &patch->slots[at];
}

const uint8_t *patch_find(const patch_t *patch, int64_t key) {
    return slot_of(patch, key)->row;
}

enum { BLOCK = 512, AHEAD = 4 }; /* pointers at a time; slots fetched ahead */

/* Look up those of some pointers that a bit lets through. Nothing is decided before all are known,
 * so that few branches are mispredicted. */
void patch_replace(const patch_t *patch, const uint8_t *rows, const uint8_t **pointers,
                   const int32_t *maybe, int64_t count) {
    const int shift = 64 - patch->slot_bits;
    for (int64_t k = 0; k < count; k++) {
        if (k + AHEAD < count) {
            const int64_t next = pointers[maybe[k + AHEAD]] - rows;
            __builtin_prefetch(&patch->slots[slot_hash(next) >> shift]);
        }
        const uint8_t **pointer = &pointers[maybe[k]];
        const uint8_t *row = patch_find(patch, *pointer - rows);
        if (row) *pointer = row;
    }
}

/* Which of `n` pointers the filter lets through: their numbers go to `maybe`. Returns how many. */
static int64_t filter_any(const patch_t *patch, const uint8_t *rows, const uint8_t *const *pointers,
                          int64_t begin, int64_t n, int32_t *maybe) {
    const int shift = 32 - patch->filter_bits;
    int64_t count = 0;
    for (int64_t i = begin; i < n; i++) {
        const uint32_t bit = filter_hash(pointers[i] - rows) >> shift;
        maybe[count] = (int32_t)i;
        count += patch->filter[bit >> FILTER_WORD] >> (bit & 31) & 1;
    }
    return count;
}

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512dq,avx512vl")))
#define HAS_AVX512                                                              \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && \
     __builtin_cpu_supports("avx512vl"))

/* The low words of a quarter of the offsets of eight pointers. */
AVX512 static inline __m256i quarter_offsets(const uint8_t *const *pointers, __m512i base) {
    const __m512i offsets = _mm512_sub_epi64(_mm512_loadu_si512((const void *)pointers), base);
    return _mm512_cvtepi64_epi32(_mm512_srli_epi64(offsets, 2));
}

/* The same, sixteen at a time. */
AVX512 static int64_t filter_512(const patch_t *patch, const uint8_t *rows,
                                 const uint8_t *const *pointers, int64_t n, int32_t *maybe) {
    const __m512i base = _mm512_set1_epi64((int64_t)(intptr_t)rows);
    const __m512i factor = _mm512_set1_epi32((int32_t)0x9e3779b1u), low = _mm512_set1_epi32(31);
    const __m512i first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m128i shift = _mm_cvtsi32_si128(32 - patch->filter_bits);
    int64_t i = 0, count = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512i keys =
            _mm512_inserti64x4(_mm512_castsi256_si512(quarter_offsets(pointers + i, base)),
                               quarter_offsets(pointers + i + 8, base), 1);
        const __m512i bit = _mm512_srl_epi32(_mm512_mullo_epi32(keys, factor), shift);
        const __m512i at = _mm512_srli_epi32(bit, FILTER_WORD);
        const __m512i words = _mm512_i32gather_epi32(at, (const int *)patch->filter, 4);
        const __m512i shifted = _mm512_srlv_epi32(words, _mm512_and_si512(bit, low));
        const __mmask16 through = _mm512_test_epi32_mask(shifted, _mm512_set1_epi32(1));
        const __m512i numbers = _mm512_add_epi32(first, _mm512_set1_epi32((int32_t)i));
        _mm512_storeu_si512((void *)(maybe + count), _mm512_maskz_compress_epi32(through, numbers));
        count += __builtin_popcount(through);
    }
    return count + filter_any(patch, rows, pointers, i, n, maybe + count);
}
#else
#define HAS_AVX512 0
#define filter_512(patch, rows, pointers, n, maybe) 0
#endif

void patch_rows(const patch_t *patch, const uint8_t *rows, const uint8_t **pointers, int64_t n) {
    int32_t maybe[BLOCK + 16]; /* a vector is stored whole */
    for (; n > 0; pointers += BLOCK, n -= BLOCK) {
        const int64_t size = n < BLOCK ? n : BLOCK;
        const int64_t count = HAS_AVX512 ? filter_512(patch, rows, pointers, size, maybe)
                                         : filter_any(patch, rows, pointers, 0, size, maybe);
        patch_replace(patch, rows, pointers, maybe, count);
    }
}

int patch_open(patch_t *patch, int64_t count, int64_t stored, int64_t row_bytes) {
    *patch = (patch_t){.row_bytes = row_bytes};
    patch->slot_bits = bits_for(2 * count);
    patch->filter_bits = bits_for(count << PATCH_FILTER);
    if (patch->filter_bits > 31) patch->filter_bits = 31;
    const size_t slots = (size_t)1 << patch->slot_bits;
    patch->slots = malloc(slots * sizeof(*patch->slots));
    patch->filter = calloc((size_t)1 << (patch->filter_bits - FILTER_WORD), sizeof(*patch->filter));
    patch->replaced = calloc((size_t)(stored >> 6) + 1, sizeof(*patch->replaced));
    if (patch->slots == NULL || patch->filter == NULL || patch->replaced == NULL) {
        patch_close(patch);
        return 0;
    }
    for (size_t s = 0; s < slots; s++) patch->slots[s] = (patch_slot_t){PATCH_FREE, NULL};
    return 1;
}

void patch_add(patch_t *patch, int64_t key, const uint8_t *row) {
    patch_slot_t *slot = slot_of(patch, key);
    const uint32_t bit = filter_hash(key) >> (32 - patch->filter_bits);
    patch->count += slot->key == PATCH_FREE;
    if (key >= 0) {
        const int64_t local = key / patch->row_bytes;
        patch->replacing += slot->key == PATCH_FREE;
        patch->replaced[local >> 6] |= (uint64_t)1 << (local & 63);
    }
    *slot = (patch_slot_t){key, row};
    patch->filter[bit >> FILTER_WORD] |= (uint32_t)1 << (bit & 31);
}

void patch_close(patch_t *patch) {
    free(patch->replaced);
    free(patch->filter);
    free(patch->slots);
    *patch = (patch_t){0};
}
