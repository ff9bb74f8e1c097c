/* A split with homes, weighted tables among them: what is at home and what leaves add up. */
#include "routing.h"

/* Pool what leaves, plainly, and what is at home by the kernel; compare with the whole query. */
static void check_sums(const shards_t *made, const query_t *query, const splitted_t *result) {
    const int64_t tables = query->tables, most = MOST_SAMPLES * 40 * tables;
    const bags_t *bags = &query->bags;
    place_t places[MOST_TABLES];
    float *out = exactly(sizeof(float) * (size_t)most), sums[40];
    for (int64_t t = 0; t < tables; t++)
        places[t] = (place_t){40 * t, made->dims[t], made->poolings[t], 40 * tables};
    combine_begin(out, most, bags, places);
    REQUIRE(home_pool(made->homes, bags, &result->kept, out, places));
    int64_t at = 0;
    for (int64_t t = 0; t < tables; t++)
        for (int64_t b = 0; b < bags_of(bags, t); b++) {
            const float *row = out + b * 40 * tables + 40 * t;
            const int max = made->poolings[t] == MAX;
            for (int64_t c = 0; c < 40; c++) sums[c] = max && c < made->dims[t] ? -INFINITY : 0;
            for (int32_t i = 0; i < lengths_in(bags, t)[b]; i++, at++) {
                const int64_t id = id_at(&query->values, at);
                if (!at_home(made, t, id)) continue;
                const float weight = made->poolings[t] == WEIGHTED ? query->weights[at] : 1;
                for (int64_t c = 0; c < made->dims[t]; c++) {
                    const float x = element(t, id, c);
                    if (!max) sums[c] += weight * x;
                    else if (x > sums[c]) sums[c] = x;
                }
            }
            REQUIRE(memcmp(sums, row, sizeof(float) * (size_t)made->dims[t]) == 0);
        }
    free(out);
}

/* As many ids are at home or leave as there were. */
static void check_counts(const shards_t *made, const query_t *query, const splitted_t *result) {
    int64_t kept = 0, at = 0;
    for (int64_t t = 0; t < query->tables; t++)
        for (int64_t b = 0; b < bags_of(&query->bags, t); b++)
            for (int32_t i = 0; i < lengths_in(&query->bags, t)[b]; i++, at++)
                kept += at_home(made, t, id_at(&query->values, at));
    REQUIRE(result->kept.size == kept && result->away == query->values.size - kept);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    gather_choose();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input_t input = {data, data + size};
    shards_t made;
    splitted_t result;
    make_shards(&input, &made, 1);
    const query_t query = make_query(&input, made.routing.tables, made.rows, 1);
    if (split_query(&made, &query, &result)) {
        check_counts(&made, &query, &result);
        check_sums(&made, &query, &result);
    }
    free_split(&result);
    free_query(&query);
    free_shards(&made);
    return 0;
}
