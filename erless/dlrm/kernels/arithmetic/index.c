/* Build and search the row index. */
#include "arithmetic/index.h"

int64_t index_mark(uint64_t *blocks, int64_t rows, const ids_t *ids) {
    for (int64_t i = 0; i < ids->size; i++) {
        const uint64_t id = (uint64_t)id_at(ids, i);
        if (id >= (uint64_t)rows) return i;
        const uint64_t word = id >> 6, block = word / 3;
        blocks[INDEX_WORDS * block + 1 + (word - 3 * block)] |= (uint64_t)1 << (id & 63);
    }
    return -1;
}

int64_t index_rank(uint64_t *blocks, int64_t count) {
    uint64_t rank = 0;
    for (int64_t b = 0; b < count; b++) {
        uint64_t *entry = blocks + INDEX_WORDS * b;
        const uint64_t first = (uint64_t)__builtin_popcountll(entry[1]);
        const uint64_t second = first + (uint64_t)__builtin_popcountll(entry[2]);
        entry[0] = rank << 16 | second << 8 | first;
        rank += second + (uint64_t)__builtin_popcountll(entry[3]);
    }
    return (int64_t)rank;
}

/* Look-ups ahead whose block is fetched: an index of 10^7 rows exceeds the L2 cache. */
enum { AHEAD = 16 };

static ALWAYS_INLINE int64_t find(const uint64_t *blocks, int64_t rows, const ids_t *ids,
                                  const int wide, int64_t *locals, int64_t *absent) {
    const int64_t *const far = ids->data;
    const int32_t *const near = ids->data;
    int64_t missing = 0;
    for (int64_t i = 0; i < ids->size; i++) {
        const int64_t id = wide ? far[i] : near[i];
        if ((uint64_t)id >= (uint64_t)rows) return i;
        if (blocks == NULL) {
            locals[i] = id;
            continue;
        }
        if (i + AHEAD < ids->size) {
            const int64_t next = wide ? far[i + AHEAD] : near[i + AHEAD];
            /* an id that is no row is only named when its turn comes; its address is not used */
            if ((uint64_t)next < (uint64_t)rows)
                __builtin_prefetch(blocks + INDEX_WORDS * ((uint64_t)next / INDEX_ROWS));
        }
        locals[i] = index_local(blocks, (uint64_t)id);
        missing += locals[i] < 0;
    }
    *absent = missing;
    return -1;
}

#if defined(__x86_64__)
POPCNT static int64_t find_popcnt(const uint64_t *blocks, int64_t rows, const ids_t *ids,
                                  int64_t *locals, int64_t *absent) {
    return ids->wide ? find(blocks, rows, ids, 1, locals, absent)
                     : find(blocks, rows, ids, 0, locals, absent);
}
#endif

int64_t index_find(const uint64_t *blocks, int64_t rows, const ids_t *ids, int64_t *locals,
                   int64_t *absent) {
#if defined(__x86_64__)
    if (HAS_POPCNT) return find_popcnt(blocks, rows, ids, locals, absent);
#endif
    return ids->wide ? find(blocks, rows, ids, 1, locals, absent)
                     : find(blocks, rows, ids, 0, locals, absent);
}

int64_t pick_rows(const float *rows, int64_t size, int64_t dim, const uint8_t *routes, int shard,
                  const float *counts, float *out, double *sums, double *weight) {
    int64_t picked = 0;
    double total = 0;
    for (int64_t i = 0; i < size; i++) {
        if (routes[i] != shard) continue;
        const float *row = rows + i * dim;
        const double factor = (double)(counts[i] + 1.0f);
        if (out) memcpy(out + picked * dim, row, (size_t)dim * sizeof(float));
        for (int64_t j = 0; j < dim; j++) sums[j] += factor * (double)row[j];
        total += factor;
        picked++;
    }
    *weight += total;
    return picked;
}
