/* Gather-pool: any query against any slices, compared with the plain way. */
#include "tables.h"

typedef struct {
    int64_t count, width;
    slice_t slices[MOST_TABLES];
    int64_t rows[MOST_TABLES], columns[MOST_TABLES];
    uint8_t stored[MOST_TABLES][MOST_ROWS];
} shard_t;

static void make_shard(input_t *input, shard_t *shard) {
    *shard = (shard_t){.count = any_of(input, 1, MOST_TABLES)};
    for (int64_t s = 0; s < shard->count; s++) {
        const int64_t rows = shard->rows[s] = any_of(input, 1, MOST_ROWS);
        const uint8_t part = any_byte(input); /* 0: every row is stored */
        for (int64_t id = 0; id < rows; id++) shard->stored[s][id] = part == 0 || id % part != 1;
        shard->slices[s] =
            make_slice(input, s, rows, any_of(input, 1, 70), part ? shard->stored[s] : NULL, GROWN);
        shard->columns[s] = shard->width;
        shard->width += shard->slices[s].dim;
    }
}

/* Whether the query is refused for the right reason: the first that there is. */
static void check_fault(const shard_t *shard, const query_t *query, const fault_t *fault) {
    for (int64_t s = 0; s < shard->count; s++)
        if (shard->slices[s].pooling == WEIGHTED && query->weights == NULL) {
            REQUIRE(fault->kind == FAULT_UNWEIGHTED && fault->table == s);
            return;
        }
    if (!query_is_whole(query)) {
        REQUIRE(fault->kind == FAULT_LENGTH || fault->kind == FAULT_TOTAL);
        return;
    }
    int64_t at = 0;
    for (int64_t s = 0; s < shard->count; s++)
        for (int64_t b = 0; b < bags_of(&query->bags, s); b++)
            for (int32_t i = 0; i < lengths_in(&query->bags, s)[b]; i++, at++) {
                const int64_t id = id_at(&query->values, at);
                const int outside = id < 0 || id >= shard->rows[s];
                if (!outside && shard->stored[s][id]) continue;
                REQUIRE(fault->kind == (outside ? FAULT_RANGE : FAULT_ABSENT));
                REQUIRE(fault->table == s && fault->sample == b && fault->position == at);
                REQUIRE(fault->value == id);
                return;
            }
    REQUIRE(fault->kind == FAULT_NONE);
}

static void check_sums(const shard_t *shard, const query_t *query, const float *packed,
                       const float *dense) {
    float sums[80];
    int64_t at = 0;
    for (int64_t s = 0; s < shard->count; s++)
        for (int64_t b = 0; b < bags_of(&query->bags, s); b++) {
            const slice_t *slice = &shard->slices[s];
            const int64_t size = lengths_in(&query->bags, s)[b];
            memset(sums, 0, sizeof(sums));
            if (size) {
                pool_plainly(query, s, at, size, slice->pooling, slice->dim, sums);
                REQUIRE(memcmp(sums, packed, sizeof(float) * (size_t)slice->dim) == 0);
                packed += slice->dim;
            }
            at += size;
            if (dense == NULL) continue;
            const float *row = dense + b * shard->width + shard->columns[s];
            REQUIRE(memcmp(sums, row, sizeof(float) * (size_t)slice->dim) == 0);
        }
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    gather_choose();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input_t input = {data, data + size};
    shard_t shard;
    make_shard(&input, &shard);
    const query_t query = make_query(&input, shard.count, shard.rows, 1);
    fault_t fault = {0}, again = {0};
    int64_t floats = 0;
    for (int64_t s = 0; s < shard.count; s++)
        for (int64_t b = 0; b < bags_of(&query.bags, s); b++)
            if (lengths_in(&query.bags, s)[b]) floats += shard.slices[s].dim;
    REQUIRE(packed_size(shard.slices, &query.bags) == floats);
    float *packed = exactly(sizeof(float) * (size_t)floats);
    float *dense = exactly(sizeof(float) * (size_t)(query.samples * shard.width));
    const int64_t written =
        pool(shard.slices, &query.values, query.weights, &query.bags, packed, 0, NULL, 1, &fault);
    check_fault(&shard, &query, &fault);
    if (query.bags.begins == NULL) {
        pool(shard.slices, &query.values, query.weights, &query.bags, dense, shard.width,
             shard.columns, 0, &again);
        REQUIRE(same_fault(&fault, &again));
    }
    if (!fault.kind) {
        REQUIRE(written == floats);
        check_sums(&shard, &query, packed, query.bags.begins ? NULL : dense);
    }
    free(packed);
    free(dense);
    free_query(&query);
    for (int64_t s = 0; s < shard.count; s++) free_slice(&shard.slices[s]);
    return 0;
}
