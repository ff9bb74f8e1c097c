/* Row id -> local index by rank over a bitmap: layout in kernels.h. */
#include "kernels.h"

/* Set the bit of each id. Returns the position of the first id outside the table, or -1. */
int64_t index_mark(uint64_t *blocks, int64_t rows, const ids_t *ids) {
    for (int64_t i = 0; i < ids->size; i++) {
        const uint64_t id = (uint64_t)id_at(ids, i);
        if (id >= (uint64_t)rows) return i;
        const uint64_t word = id >> 6, block = word / 3;
        blocks[INDEX_WORDS * block + 1 + (word - 3 * block)] |= (uint64_t)1 << (id & 63);
    }
    return -1;
}

/* Fill in word 0 of each block. Returns how many rows are stored. */
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

/* locals[i] = local index of ids[i], or -1 where it is not stored here; *absent counts those.
 * Returns the position of the first id outside the table, or -1. */
int64_t index_find(const uint64_t *blocks, int64_t rows, const ids_t *ids, int64_t *locals,
                   int64_t *absent) {
    int64_t missing = 0;
    for (int64_t i = 0; i < ids->size; i++) {
        const int64_t id = id_at(ids, i);
        if ((uint64_t)id >= (uint64_t)rows) return i;
        locals[i] = blocks ? index_local(blocks, (uint64_t)id) : id;
        missing += locals[i] < 0;
    }
    *absent = missing;
    return -1;
}

void index_unpack(const uint64_t *blocks, int64_t count, word_t *words) {
    for (int64_t k = 0; k < count; k++) {
        uint64_t rank = blocks[INDEX_WORDS * k] >> 16;
        for (int lane = 0; lane < INDEX_WORDS - 1; lane++) {
            const uint64_t bits = blocks[INDEX_WORDS * k + 1 + lane];
            *words++ = (word_t){bits, rank};
            rank += (uint64_t)__builtin_popcountll(bits);
        }
    }
}
