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

/* Where the ids of a table go. */
typedef struct {
    const void *ids;
    const float *weights; /* or NULL, as the other two */
    const uint8_t **rows;
    float *kept_weights;
    void *away;
    float *away_weights;
} sides_t;

static ALWAYS_INLINE int64_t row_id(const void *ids, const int wide, int64_t i) {
    return wide ? ((const int64_t *)ids)[i] : ((const int32_t *)ids)[i];
}

/* Split one bag: `done` ids were seen before, of which `others` are away. Every store is
 * unconditional, so that what is at home and what is not costs no mispredicted branch. Returns how
 * many are at home. */
static ALWAYS_INLINE int64_t split_bag(const home_t *home, const sides_t *to, const int wide,
                                       const int shrink, int64_t done, int64_t others,
                                       int64_t size) {
    const uint64_t row_bytes = (uint64_t)home->slice.row_bytes;
    const word_t *const words = home->words;
    const uint8_t **const rows = to->rows + (done - others);
    int64_t kept = 0;
    for (int64_t i = 0; i < size; i++) {
        const int64_t id = row_id(to->ids, wide, done + i), other = others + i - kept;
        const word_t *word = words + ((uint64_t)id >> 6);
        const uint64_t upto = word->bits << (~id & 63); /* the id's own bit comes first */
        rows[kept] = word->last + row_bytes * (uint64_t)__builtin_popcountll(upto);
        if (wide && !shrink) ((int64_t *)to->away)[other] = id;
        else ((int32_t *)to->away)[other] = (int32_t)id;
        if (to->weights)
            to->kept_weights[done - others + kept] = to->away_weights[other] =
                to->weights[done + i];
        kept += (int64_t)(upto >> 63);
    }
    return kept;
}

static ALWAYS_INLINE int64_t split_bags(const home_t *home, const sides_t *to, const int wide,
                                        const int shrink, const int32_t *lengths, int64_t samples,
                                        int32_t *sizes, int32_t *away_sizes) {
    int64_t done = 0, others = 0;
    for (int64_t b = 0; b < samples; b++) {
        const int64_t size = lengths[b];
        int64_t kept = size;
        if (home->words) kept = split_bag(home, to, wide, shrink, done, others, size);
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

#define DEFINE_SPLIT(NAME, TARGET)                                                               \
    TARGET static int64_t NAME(const home_t *home, const sides_t *to, int wide, int shrink,        \
                               const int32_t *lengths, int64_t samples, int32_t *sizes,            \
                               int32_t *away_sizes) {                                              \
        if (!wide) return split_bags(home, to, 0, 0, lengths, samples, sizes, away_sizes);         \
        if (shrink) return split_bags(home, to, 1, 1, lengths, samples, sizes, away_sizes);        \
        return split_bags(home, to, 1, 0, lengths, samples, sizes, away_sizes);                    \
    }

DEFINE_SPLIT(split_any, )
DEFINE_SPLIT(split_fast, POPCNT)

int64_t home_find(const home_t *home, const ids_t *values, int64_t begin, int shrink,
                  const float *weights, const int32_t *lengths, int64_t samples, int32_t *sizes,
                  kept_t *kept, void *away, float *away_weights, int32_t *away_sizes) {
    const sides_t to = {(const char *)values->data + (size_t)begin * id_width(values),
                        weights,
                        kept->rows + kept->size,
                        weights ? kept->weights + kept->size : NULL,
                        away,
                        away_weights};
    const int64_t others =
        HAS_POPCNT
            ? split_fast(home, &to, values->wide, shrink, lengths, samples, sizes, away_sizes)
            : split_any(home, &to, values->wide, shrink, lengths, samples, sizes, away_sizes);
    for (int64_t b = 0; b < samples; b++) kept->size += sizes[b];
    return others;
}
