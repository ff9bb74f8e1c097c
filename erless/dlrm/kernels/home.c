/* Rows that lie in the gateway's own process: found while a query is split, pooled while what went
 * to shards is on its way. A row's address is all that is kept of its id in between. */
#include "kernels.h"

int home_unpack(const slice_t *slice, word_t *words) {
    const int64_t count = (slice->table_rows + INDEX_ROWS - 1) / INDEX_ROWS;
    for (int64_t k = 0; k < count; k++) {
        const uint64_t *entry = slice->blocks + INDEX_WORDS * k;
        int64_t rank = (int64_t)(entry[0] >> 16);
        for (int lane = 1; lane < INDEX_WORDS; lane++) {
            *words++ = (word_t){entry[lane], slice->rows + (rank - 1) * slice->row_bytes};
            rank += __builtin_popcountll(entry[lane]);
        }
        if (rank > slice->stored) return 0; /* a damaged index must not become a wild read */
    }
    return 1;
}

#define DEFINE_FIND(NAME, ID)                                                                    \
    /* Split one bag. Every store is unconditional, so that what is at home and what is not costs \
     * no mispredicted branch. Returns how many are away. */                                        \
    static ALWAYS_INLINE int64_t NAME##_bag(const home_t *home, const ID *ids,                      \
                                            const float *weights, int64_t size,                    \
                                            const uint8_t **rows, float *kept_weights, ID *away,   \
                                            float *away_weights) {                                 \
        const uint64_t row_bytes = (uint64_t)home->slice.row_bytes;                                \
        int64_t kept = 0;                                                                          \
        for (int64_t i = 0; i < size; i++) {                                                       \
            const word_t *word = home->words + ((uint64_t)ids[i] >> 6);                            \
            const uint64_t upto = word->bits << (~ids[i] & 63); /* the id's own bit comes first */ \
            rows[kept] = word->last + row_bytes * (uint64_t)__builtin_popcountll(upto);            \
            away[i - kept] = ids[i];                                                               \
            if (weights) kept_weights[kept] = away_weights[i - kept] = weights[i];                 \
            kept += (int64_t)(upto >> 63);                                                         \
        }                                                                                          \
        return size - kept;                                                                              \
    }                                                                                              \
    static ALWAYS_INLINE int64_t NAME##_any(const home_t *home, const ID *ids,                      \
                                            const float *weights, const int32_t *lengths,          \
                                            int64_t samples, int32_t *sizes, kept_t *kept,         \
                                            ID *away, float *away_weights, int32_t *away_sizes) {  \
        int64_t others = 0, done = 0;                                                              \
        for (int64_t b = 0; b < samples; b++) {                                                    \
            int64_t other = 0;                                                                     \
            if (home->words)                                                                       \
                other = NAME##_bag(home, ids + done, weights ? weights + done : NULL, lengths[b],  \
                                   kept->rows + kept->size,                                        \
                                   weights ? kept->weights + kept->size : NULL, away + others,     \
                                   weights ? away_weights + others : NULL);                        \
            else                                                                                   \
                for (int64_t i = 0; i < lengths[b]; i++) { /* every row is at home */              \
                    kept->rows[kept->size + i] = home->slice.rows +                                \
                        (uint64_t)home->slice.row_bytes * (uint64_t)ids[done + i];                 \
                    if (weights) kept->weights[kept->size + i] = weights[done + i];                \
                }                                                                                  \
            sizes[b] = (int32_t)(lengths[b] - other);                                              \
            away_sizes[b] = (int32_t)other;                                                        \
            kept->size += sizes[b];                                                                \
            others += other;                                                                       \
            done += lengths[b];                                                                    \
        }                                                                                          \
        return others;                                                                             \
    }                                                                                              \
    POPCNT static int64_t NAME##_fast(const home_t *home, const ID *ids, const float *weights,      \
                                      const int32_t *lengths, int64_t samples, int32_t *sizes,     \
                                      kept_t *kept, ID *away, float *away_weights,                 \
                                      int32_t *away_sizes) {                                       \
        return NAME##_any(home, ids, weights, lengths, samples, sizes, kept, away, away_weights,   \
                          away_sizes);                                                             \
    }                                                                                              \
    static int64_t NAME##_find(const home_t *home, const ID *ids, const float *weights,            \
                               const int32_t *lengths, int64_t samples, int32_t *sizes,            \
                               kept_t *kept, ID *away, float *away_weights,                        \
                               int32_t *away_sizes) {                                              \
        return HAS_POPCNT ? NAME##_fast(home, ids, weights, lengths, samples, sizes, kept, away,   \
                                        away_weights, away_sizes)                                  \
                          : NAME##_any(home, ids, weights, lengths, samples, sizes, kept, away,    \
                                       away_weights, away_sizes);                                  \
    }

DEFINE_FIND(narrow, int32_t)
DEFINE_FIND(wide, int64_t)

int64_t home_find(const home_t *home, const ids_t *values, int64_t begin, const float *weights,
                  const int32_t *lengths, int64_t samples, int32_t *sizes, kept_t *kept,
                  void *away, float *away_weights, int32_t *away_sizes) {
    if (values->wide)
        return wide_find(home, (const int64_t *)values->data + begin, weights, lengths, samples,
                         sizes, kept, away, away_weights, away_sizes);
    return narrow_find(home, (const int32_t *)values->data + begin, weights, lengths, samples,
                       sizes, kept, away, away_weights, away_sizes);
}
