/* The fast path (erless/serve/protocol/fast_lane.py) of a sparse function: a gateway's request in, its answer out,
 * without a Python object in between. What does not fit a form byte for byte is left to Python. */
#include <stdlib.h>

#include "kernels.h"

/* The request whose JSON is [json, tensors), whose tensors end at `end`. Returns 0 where it is for
 * Python to understand, or to say what is wrong. */
static int read_request(const fast_path_t *path, const char *json, const char *tensors, const char *end,
                    fast_request_t *request) {
    int64_t numbers[5];
    int form = 0;
    const char *rest = form_scan(path->requests[form], json, tensors, numbers);
    while (rest == NULL && ++form < 4)
        rest = form_scan(path->requests[form], json, tensors, numbers);
    if (rest == NULL) return 0;
    while (rest < tensors && *rest == ' ') rest++; /* padding aligns the tensors */
    const int64_t wide = form & 1, id_bytes = numbers[1], bag_bytes = numbers[4];
    *request = (fast_request_t){.values = {tensors, numbers[0], (int)wide},
                   .lengths = (const int32_t *)(tensors + id_bytes),
                   .samples = numbers[3],
                   .half = form >> 1};
    return rest == tensors && id_bytes + bag_bytes == end - tensors &&
           numbers[0] * (wide ? 8 : 4) == id_bytes && numbers[2] == path->count &&
           path->count * request->samples * 4 == bag_bytes && request->samples <= path->max_batch &&
           id_bytes && bag_bytes && (uintptr_t)tensors % (wide ? 8 : 4) == 0;
}

int fast_path_read(const fast_path_t *path, const char *text, const char *end, int64_t announced,
              fast_request_t *request) {
    int64_t numbers[3]; /* bytes of the JSON, of the body, milliseconds left */
    if (announced > 0) { /* the head is read already */
        const int fits =
            announced < end - text && read_request(path, text, text + announced, end, request);
        request->body = text;
        request->end = end;
        return fits;
    }
    const char *body = form_scan(path->heads[0], text, end, numbers);
    if (body == NULL) body = form_scan(path->heads[1], text, end, numbers);
    if (body == NULL || numbers[1] > end - body || numbers[1] > path->max_body ||
        numbers[0] > numbers[1] || numbers[2] < 1 || numbers[2] > path->longest_ms)
        return 0;
    const int fits = read_request(path, body, body + numbers[0], body + numbers[1], request);
    request->body = body;
    request->end = body + numbers[1];
    return fits;
}

int64_t fast_path_pool(const fast_path_t *path, fast_request_t *request, fault_t *fault) {
    int64_t needed = 0;
    for (int64_t s = 0; s < path->count; s++)
        for (int64_t b = 0; b < request->samples; b++)
            if (request->lengths[s * request->samples + b]) needed += path->slices[s].dim;
    request->partial = malloc((sizeof(float) + sizeof(uint16_t)) * (size_t)(needed + 1));
    if (request->partial == NULL) return -1;
    request->float16_partial = (uint16_t *)(request->partial + needed);
    const int64_t written = pool(path->slices, path->count, &request->values, NULL, request->lengths,
                                 request->samples, request->partial, 0, NULL, 1, fault);
    for (int64_t i = 0; request->half && i < written; i++) /* beyond float16: the sums as they are */
        request->half = request->partial[i] > -65520.0f && request->partial[i] < 65520.0f;
    if (request->half) to_float16(request->partial, request->float16_partial, written);
    return written;
}
