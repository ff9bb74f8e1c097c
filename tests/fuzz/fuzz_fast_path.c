/* A sparse function's end of the fast lane: any request, and requests whose numbers lie. */
#include "fast_lane/fast_path.h"

#include "fast_lane/form.h"
#include "forms.h"
#include "tables.h"

enum { FIELDS = 5, ROOM = 1 << 16 };

/* Write a request that is right but for numbers that the fuzzer changes. Returns its end. */
static char *write_request(input_t *input, const query_t *query, char *out, int64_t *announced) {
    const uint8_t flags = any_byte(input);
    const int64_t id_bytes = query->values.size * (int64_t)id_width(&query->values);
    const int64_t bags = query->tables * query->samples;
    int64_t numbers[FIELDS] = {query->values.size, id_bytes, query->tables, query->samples,
                               4 * bags};
    if (flags & 1) numbers[any_of(input, 0, FIELDS - 1)] = any_bits(input, flags & 2 ? 4 : 1);
    char json[MOST_HEAD];
    const char *form = all_forms[REQUESTS + query->values.wide + (flags & 4 ? 2 : 0)];
    char *json_end = form_fill(form, json, json + MOST_HEAD, numbers, "");
    REQUIRE(json_end != NULL);
    const int64_t pad = flags & 8 ? any_of(input, 0, 40) : 0, size = json_end - json + pad;
    int64_t sizes[3] = {size, size + id_bytes + 4 * bags, any_of(input, 0, 9999)};
    if (flags & 16) sizes[any_of(input, 0, 2)] = any_bits(input, 4);
    if (flags & 32) *announced = size;
    else out = form_fill(all_forms[HEADS + (flags >> 7)], out, out + MOST_HEAD, sizes, "x");
    memcpy(out, json, (size_t)(json_end - json));
    memset(out + (json_end - json), ' ', (size_t)pad);
    memcpy(out + size, query->values.data, (size_t)id_bytes);
    memcpy(out + size + id_bytes, query->lengths, 4 * (size_t)bags);
    return out + size + id_bytes + 4 * bags;
}

/* Answer the request; what is beyond it must not be read. */
static void answer(const fast_path_t *path, const char *from, const char *to, int64_t announced,
                   int64_t shift) {
    const size_t size = (size_t)(to - from);
    char *memory = exactly(size + (size_t)shift), *text = memory + shift;
    memcpy(text, from, size);
    fast_request_t request = {0};
    fault_t fault = {0};
    if (fast_path_read(path, text, text + size, announced, &request)) {
        REQUIRE(text <= request.body && request.body <= request.end);
        REQUIRE(request.end <= text + size);
        const int64_t floats = fast_path_pool(path, &request, &fault);
        for (int64_t s = 0; s < path->count; s++)
            REQUIRE(path->slices[s].pooling != WEIGHTED || fault.kind == FAULT_UNWEIGHTED);
        if (!fault.kind) {
            float sum = 0;
            for (int64_t i = 0; i < floats; i++)
                sum += request.float16 ? request.float16_partial[i] : request.partial[i];
            REQUIRE(sum >= 0);
        }
        free(request.partial);
    }
    free(memory);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    gather_choose();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char text[ROOM];
    input_t input = {data, data + size};
    slice_t slices[2];
    int64_t rows[2], announced = 0;
    for (int64_t s = 0; s < 2; s++) {
        rows[s] = any_of(&input, 1, 40);
        slices[s] = make_slice(&input, s, rows[s], any_of(&input, 1, 20), NULL, GROWN);
    }
    fast_path_t path = {slices, 2, 3, ROOM, 9000, {0}, {0}, {0}};
    memcpy(path.heads, all_forms + HEADS, sizeof(path.heads));
    memcpy(path.requests, all_forms + REQUESTS, sizeof(path.requests));
    memcpy(path.answers, all_forms + ANSWERS, sizeof(path.answers));
    const uint8_t flags = any_byte(&input);
    if (flags & 1) {
        const int64_t told = any_of(&input, 0, 400);
        answer(&path, (const char *)input.next, (const char *)input.end, flags & 2 ? told : 0, 0);
    } else {
        const query_t query = make_query(&input, 2, rows, 0);
        char *end = write_request(&input, &query, text, &announced);
        const int64_t cut = flags & 4 ? any_of(&input, 0, end - text) : 0;
        if (flags & 8) text[any_of(&input, 0, end - text - 1)] ^= (char)any_byte(&input);
        answer(&path, text, end - cut, announced, flags >> 5);
        free_query(&query);
    }
    for (int64_t s = 0; s < 2; s++) free_slice(&slices[s]);
    return 0;
}
