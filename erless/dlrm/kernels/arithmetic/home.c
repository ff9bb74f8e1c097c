/* Find and pool the rows that lie in the gateway's own process. */
#include "arithmetic/home.h"

#include <stdlib.h>

#include "arithmetic/index.h"
#include "arithmetic/platform.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

int64_t home_words(const slice_t *slice) {
    return blocks_for(slice->table_rows) * (INDEX_WORDS - 1);
}

int home_needs_words(const slice_t *slice) {
    return slice->blocks || slice->table_rows > slice->indexed;
}

/* The same where every row is stored that the slice has an index of. */
static void unpack_all(const slice_t *slice, word_t *words) {
    for (int64_t id = 0; id < slice->indexed; id += 64) {
        const int64_t left = slice->indexed - id;
        *words++ = (word_t){left < 64 ? ((uint64_t)1 << left) - 1 : ~(uint64_t)0, id - 1};
    }
}

int home_unpack(const slice_t *slice, word_t *words) {
    const int64_t count = blocks_for(slice->indexed), all = home_words(slice);
    for (int64_t w = 0; w < all; w++) words[w] = (word_t){0, -1};
    if (slice->blocks == NULL) {
        unpack_all(slice, words);
        return 1;
    }
    for (int64_t k = 0; k < count; k++) {
        const uint64_t *entry = slice->blocks + INDEX_WORDS * k;
        int64_t rank = (int64_t)(entry[0] >> 16);
        for (int lane = 1; lane < INDEX_WORDS; lane++) {
            *words++ = (word_t){entry[lane], rank - 1};
            rank += __builtin_popcountll(entry[lane]);
        }
        if (rank > slice->stored) return 0; /* a damaged index must not become a wild read */
    }
    return 1;
}

enum { AHEAD = 64 }; /* words prefetched ahead: other work has had the cache since the last query */

/* Where the ids of a table come from, and where they go. */
typedef struct {
    const void *ids;
    int64_t last;         /* place of the last id */
    const float *weights; /* or NULL, as the other two */
    const uint8_t **rows;
    float *kept_weights;
    void *away;
    float *away_weights;
} sides_t;

static ALWAYS_INLINE int64_t row_id(const void *ids, const int wide, int64_t i) {
    return wide ? ((const int64_t *)ids)[i] : ((const int32_t *)ids)[i];
}

/* Split one bag. Before it came `done` ids, of which `others` are away. Every store is
 * unconditional, so that telling what is at home costs no mispredicted branch. Returns how many
 * are at home. */
static ALWAYS_INLINE int64_t split_bag(const home_t *home, const sides_t *to, const int wide,
                                       const int shrink, int64_t done, int64_t others,
                                       int64_t size) {
    const int64_t row_bytes = home->slice.row_bytes;
    const uint8_t *const stored = home->slice.rows;
    const word_t *const words = home->words;
    const uint8_t **const rows = to->rows + (done - others);
    int64_t kept = 0;
    for (int64_t i = 0; i < size; i++) {
        const int64_t ahead = done + i + AHEAD < to->last ? done + i + AHEAD : to->last;
        __builtin_prefetch(words + ((uint64_t)row_id(to->ids, wide, ahead) >> 6));
        const int64_t id = row_id(to->ids, wide, done + i), other = others + i - kept;
        const word_t *word = words + ((uint64_t)id >> 6);
        const uint64_t upto = word->bits << (~id & 63); /* the id's own bit comes first */
        rows[kept] = stored + row_bytes * (word->last + __builtin_popcountll(upto));
        if (wide && !shrink) ((int64_t *)to->away)[other] = id;
        else ((int32_t *)to->away)[other] = (int32_t)id;
        if (to->weights)
            to->kept_weights[done - others + kept] = to->away_weights[other] =
                to->weights[done + i];
        kept += (int64_t)(upto >> 63);
    }
    return kept;
}

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,avx512vpopcntdq,popcnt,bmi,bmi2")))

/* The words of two ids, side by side. */
AVX512 static ALWAYS_INLINE __m256i two_words(const word_t *words, int64_t first, int64_t second) {
    const __m128i low = _mm_loadu_si128((const __m128i *)(const void *)(words + (first >> 6)));
    const __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(words + (second >> 6)));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

/* The words of the ids `first`, `first` + 2, + 4 and + 6 of eight, side by side. */
AVX512 static ALWAYS_INLINE __m512i four_words(const word_t *words, const void *ids, const int wide,
                                               int first) {
    const __m256i low = two_words(words, row_id(ids, wide, first), row_id(ids, wide, first + 2));
    const __m256i high =
        two_words(words, row_id(ids, wide, first + 4), row_id(ids, wide, first + 6));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

AVX512 static ALWAYS_INLINE __m256i eight_ids(const void *ids, const int wide) {
    return wide ? _mm512_cvtepi64_epi32(_mm512_loadu_si512(ids)) : _mm256_loadu_si256(ids);
}

/* The same for ids without weights that leave as int32, eight at a time. Words are loaded one by
 * one: gather instructions take 2.5 times as long (Zen 5). Writes up to 8 beyond what it keeps. */
AVX512 static ALWAYS_INLINE int64_t split_eights(const home_t *home, const sides_t *to,
                                                 const int wide, int64_t done, int64_t others,
                                                 int64_t size) {
    const __m512i row_bytes = _mm512_set1_epi64(home->slice.row_bytes);
    const __m512i stored_at = _mm512_set1_epi64((int64_t)(intptr_t)home->slice.rows);
    const __m256i low = _mm256_set1_epi32(63);
    const size_t width = wide ? sizeof(int64_t) : sizeof(int32_t);
    const char *ids = (const char *)to->ids + width * (size_t)done;
    const uint8_t **rows = to->rows + (done - others);
    int32_t *away = (int32_t *)to->away + others;
    int64_t last_ids[8] = {0};
    for (int64_t left = size; left > 0; left -= 8, ids += 8 * width) {
        const __mmask8 valid = left >= 8 ? 0xff : (__mmask8)((1 << left) - 1);
        if (left < 8) ids = memcpy(last_ids, ids, width * (size_t)left);
        const __m256i id = eight_ids(ids, wide);
        const __m512i even = four_words(home->words, ids, wide, 0);
        const __m512i odd = four_words(home->words, ids, wide, 1);
        const __m512i shift = _mm512_cvtepu32_epi64(_mm256_andnot_si256(id, low));
        const __m512i upto = _mm512_sllv_epi64(_mm512_unpacklo_epi64(even, odd), shift);
        const __m512i last = _mm512_unpackhi_epi64(even, odd);
        const __m512i local = _mm512_add_epi64(last, _mm512_popcnt_epi64(upto));
        const __m512i row = _mm512_add_epi64(stored_at, _mm512_mul_epu32(local, row_bytes));
        const __mmask8 stored = _mm512_movepi64_mask(upto) & valid, other = valid & ~stored;
        _mm512_storeu_si512((void *)rows, _mm512_maskz_compress_epi64(stored, row));
        _mm256_storeu_si256((__m256i *)(void *)away, _mm256_maskz_compress_epi32(other, id));
        rows += __builtin_popcount(stored);
        away += __builtin_popcount(other);
    }
    return rows - (to->rows + (done - others));
}

AVX512 static int64_t split_narrow_512(const home_t *home, const sides_t *to, int64_t done,
                                       int64_t others, int64_t size) {
    return split_eights(home, to, 0, done, others, size);
}

AVX512 static int64_t split_wide_512(const home_t *home, const sides_t *to, int64_t done,
                                     int64_t others, int64_t size) {
    return split_eights(home, to, 1, done, others, size);
}
#define HAS_AVX512                                                              \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && \
     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq"))
#else
#define HAS_AVX512 0
#define split_narrow_512(home, to, done, others, size) 0
#define split_wide_512(home, to, done, others, size) 0
#endif

static ALWAYS_INLINE int64_t split_bags(const home_t *home, const sides_t *to, const int wide,
                                        const int shrink, const int vectors, const int32_t *lengths,
                                        int64_t samples, int32_t *sizes, int32_t *away_sizes) {
    int64_t done = 0, others = 0;
    for (int64_t b = 0; b < samples; b++) {
        const int64_t size = lengths[b];
        int64_t kept = size;
        if (home->words && vectors)
            kept = wide ? split_wide_512(home, to, done, others, size)
                        : split_narrow_512(home, to, done, others, size);
        else if (home->words) kept = split_bag(home, to, wide, shrink, done, others, size);
        else
            for (int64_t i = done; i < done + size; i++) { /* every row is at home */
                to->rows[i] = home->slice.rows + home->slice.row_bytes * row_id(to->ids, wide, i);
                if (to->weights) to->kept_weights[i] = to->weights[i];
            }
        sizes[b] = (int32_t)kept;
        away_sizes[b] = (int32_t)(size - kept);
        done += size;
        others += size - kept;
    }
    return others;
}

#define DEFINE_SPLIT(NAME, TARGET)                                                             \
    TARGET static int64_t NAME(const home_t *home, const sides_t *to, int wide, int shrink,    \
                               const int32_t *lengths, int64_t samples, int32_t *sizes,        \
                               int32_t *away_sizes) {                                          \
        const int vectors = !to->weights && HAS_AVX512 && home->slice.stored <= UINT32_MAX;    \
        if (!wide && vectors)                                                                  \
            return split_bags(home, to, 0, 0, 1, lengths, samples, sizes, away_sizes);         \
        if (shrink && vectors)                                                                 \
            return split_bags(home, to, 1, 1, 1, lengths, samples, sizes, away_sizes);         \
        if (!wide) return split_bags(home, to, 0, 0, 0, lengths, samples, sizes, away_sizes);  \
        if (shrink) return split_bags(home, to, 1, 1, 0, lengths, samples, sizes, away_sizes); \
        return split_bags(home, to, 1, 0, 0, lengths, samples, sizes, away_sizes);             \
    }

DEFINE_SPLIT(split_any, )
DEFINE_SPLIT(split_fast, POPCNT)

int64_t home_find(const home_t *home, const ids_t *values, int64_t begin, int shrink,
                  const float *weights, const int32_t *lengths, int64_t samples, int32_t *sizes,
                  kept_t *kept, void *away, float *away_weights, int32_t *away_sizes) {
    int64_t ids = 0;
    for (int64_t b = 0; b < samples; b++) ids += lengths[b];
    const sides_t to = {(const char *)values->data + (size_t)begin * id_width(values),
                        ids - 1,
                        weights,
                        kept->rows + kept->size,
                        weights ? kept->weights + kept->size : NULL,
                        away,
                        away_weights};
    const int64_t others =
        HAS_POPCNT
            ? split_fast(home, &to, values->wide, shrink, lengths, samples, sizes, away_sizes)
            : split_any(home, &to, values->wide, shrink, lengths, samples, sizes, away_sizes);
    const uint8_t **const rows = kept->rows + kept->size;
    int64_t found = 0;
    for (int64_t b = 0; b < samples; b++) found += sizes[b];
    const patch_t *patch = home->slice.patch;
    if (patch && patch->replacing) patch_rows(patch, home->slice.rows, rows, found);
    kept->size += found;
    return others;
}

int home_pool(const home_t *homes, const bags_t *bags, const kept_t *kept, float *out,
              const place_t *places) {
    const uint8_t **rows = kept->rows;
    int64_t widest = 0, done = 0, tables = bags->tables;
    for (int64_t t = 0; t < tables; t++)
        if (homes[t].shard >= 0 && places[t].dim > widest) widest = places[t].dim;
    for (int64_t t = 0; t < tables; t++)
        if (homes[t].shard >= 0 && homes[t].slice.pooling == WEIGHTED && !kept->weights) return 0;
    float *sum = malloc(sizeof(float) * 2 * (size_t)(widest + 1)), *parts = sum + widest + 1;
    if (sum == NULL) return 0;
    for (int64_t i = 0; i < POOL_AHEAD; i++) rows[kept->size + i] = kept->size ? rows[0] : NULL;
    for (int64_t t = 0; t < tables; t++) {
        if (homes[t].shard < 0) continue;
        const slice_t *slice = &homes[t].slice;
        const bag_fn bag = bag_function(slice);
        const int32_t *sizes = kept->sizes + bags_before(bags, t);
        const int64_t count = bags_of(bags, t);
        for (int64_t b = 0; b < count; b++) {
            const int64_t size = sizes[b], split = slice->precision == INT4;
            if (size == 0) continue;
            bag(rows + done, kept->weights ? kept->weights + done : NULL, size, slice->row_bytes,
                slice->dim, split ? parts : sum);
            if (split) interleave(parts, sum, slice->dim);
            float *to = out + b * places[t].stride + places[t].column;
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
