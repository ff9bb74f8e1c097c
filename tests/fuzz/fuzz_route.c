/* Bucketize: any query by any routing, compared with one shard after the other. */
#include "routing.h"

/* Shard s gets exactly those ids that are routed there, in order, and their weights. */
static void check_shard(const shards_t *made, const query_t *query, const splitted_t *result,
                        int64_t s, const int32_t *lengths) {
    const ids_t sent = {result->values, result->away, result->wide};
    int64_t at = result->starts[s], from = 0;
    for (int64_t t = 0; t < query->tables; t++) {
        const int32_t slot = made->slots[s * query->tables + t];
        for (int64_t b = 0; b < bags_of(&query->bags, t); b++) {
            int32_t count = 0;
            for (int32_t i = 0; i < lengths_in(&query->bags, t)[b]; i++, from++) {
                const int64_t id = id_at(&query->values, from);
                if (shard_of(made, t, id) != s) continue;
                REQUIRE(at < result->starts[s + 1] && id_at(&sent, at) == id);
                if (query->weights) REQUIRE(result->weights[at] == query->weights[from]);
                at++;
                count++;
            }
            REQUIRE(slot < 0 ? count == 0 : lengths[b] == count);
        }
        if (slot >= 0) lengths += bags_of(&query->bags, t);
    }
    REQUIRE(at == result->starts[s + 1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input_t input = {data, data + size};
    shards_t made;
    splitted_t result;
    make_shards(&input, &made, 0);
    const query_t query = make_query(&input, made.routing.tables, made.rows, 1);
    if (split_query(&made, &query, &result)) {
        const int32_t *lengths = result.lengths;
        for (int64_t s = 0; s < made.routing.shards; s++) {
            check_shard(&made, &query, &result, s, lengths);
            lengths += bags_of_shard(&made.routing, &query.bags, s);
        }
    }
    free_split(&result);
    free_query(&query);
    free_shards(&made);
    return 0;
}
