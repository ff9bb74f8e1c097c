/* Read a request, pool its bags. */
#include "fast_lane/fast_path.h"

#include <stdlib.h>

#include "arithmetic/combine.h"
#include "fast_lane/form.h"

/* Understand the request whose JSON is [json, tensors) and whose tensors end at `end`. Returns 0
 * where Python has to understand it, or to say what is wrong. */
static int read_request(const fast_path_t *path, const char *json, const char *tensors,
                        const char *end, fast_request_t *request) {
    int64_t numbers[5] = {-1, -1, -1, -1, -1};
    const char *rest = NULL;
    int form = 0;
    for (; form < 4; form++) {
        rest = form_scan(path->requests[form], json, tensors, numbers);
        if (rest != NULL) break;
    }
    if (rest == NULL) return 0;
    while (rest < tensors && *rest == ' ') rest++; /* padding aligns the tensors */
    const int wide = form & 1;
    const int64_t ids = numbers[0], id_bytes = numbers[1], tables = numbers[2];
    const int64_t samples = numbers[3], bag_bytes = numbers[4];
    if (rest != tensors || id_bytes <= 0 || bag_bytes <= 0 ||
        id_bytes + bag_bytes != end - tensors || ids * (wide ? 8 : 4) != id_bytes ||
        tables != path->count || samples > path->max_batch || tables * samples * 4 != bag_bytes ||
        (uintptr_t)tensors % (wide ? 8 : 4) != 0)
        return 0;
    *request = (fast_request_t){.values = {tensors, ids, wide},
                                .lengths = (const int32_t *)(const void *)(tensors + id_bytes),
                                .samples = samples,
                                .float16 = form >> 1};
    return 1;
}

int fast_path_read(const fast_path_t *path, const char *text, const char *end, int64_t announced,
                   fast_request_t *request) {
    int64_t numbers[3] = {-1, -1, -1}; /* bytes of the JSON, of the body, milliseconds left */
    if (announced > 0) {               /* the head is read already */
        const int fits =
            announced < end - text && read_request(path, text, text + announced, end, request);
        request->body = text;
        request->end = end;
        return fits;
    }
    const char *body = form_scan(path->heads[0], text, end, numbers);
    if (body == NULL) body = form_scan(path->heads[1], text, end, numbers);
    if (body == NULL || numbers[1] > end - body || numbers[1] > path->max_body || numbers[0] < 0 ||
        numbers[0] > numbers[1] || numbers[2] < 1 || numbers[2] > path->longest_ms)
        return 0;
    const int fits = read_request(path, body, body + numbers[0], body + numbers[1], request);
    request->body = body;
    request->end = body + numbers[1];
    return fits;
}

/* Whether float16 holds all of them; otherwise the answer is in float32. */
static int fit_float16(const float *floats, int64_t size) {
    for (int64_t i = 0; i < size; i++)
        if (!(floats[i] > -65520.0f && floats[i] < 65520.0f)) return 0;
    return 1;
}

int64_t fast_path_pool(const fast_path_t *path, fast_request_t *request, fault_t *fault) {
    const bags_t bags = {request->lengths, path->count, request->samples, NULL};
    const int64_t needed = packed_size(path->slices, &bags);
    request->partial = malloc((sizeof(float) + sizeof(uint16_t)) * (size_t)(needed + 1));
    if (request->partial == NULL) return -1;
    request->float16_partial = (uint16_t *)(request->partial + needed);
    const int64_t written =
        pool(path->slices, &request->values, NULL, &bags, request->partial, 0, NULL, 1, fault);
    request->float16 = request->float16 && fit_float16(request->partial, written);
    if (request->float16) to_float16(request->partial, request->float16_partial, written);
    return written;
}
