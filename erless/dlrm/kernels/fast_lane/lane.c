/* The fast lane (erless/serve/protocol/fast_lane.py) of a sparse function: a gateway's request in, its answer out,
 * without a Python object in between. What does not fit a form byte for byte is left to Python. */
#include <stdlib.h>

#include "kernels.h"

/* The request whose JSON is [json, tensors), whose tensors end at `end`. Returns 0 where it is for
 * Python to understand, or to say what is wrong. */
static int read_ask(const lane_t *lane, const char *json, const char *tensors, const char *end,
                    ask_t *ask) {
    int64_t numbers[5];
    int form = 0;
    const char *rest = form_scan(lane->asks[form], json, tensors, numbers);
    while (rest == NULL && ++form < 4)
        rest = form_scan(lane->asks[form], json, tensors, numbers);
    if (rest == NULL) return 0;
    while (rest < tensors && *rest == ' ') rest++; /* padding aligns the tensors */
    const int64_t wide = form & 1, id_bytes = numbers[1], bag_bytes = numbers[4];
    *ask = (ask_t){.values = {tensors, numbers[0], (int)wide},
                   .lengths = (const int32_t *)(tensors + id_bytes),
                   .samples = numbers[3],
                   .half = form >> 1};
    return rest == tensors && id_bytes + bag_bytes == end - tensors &&
           numbers[0] * (wide ? 8 : 4) == id_bytes && numbers[2] == lane->count &&
           lane->count * ask->samples * 4 == bag_bytes && ask->samples <= lane->max_batch &&
           id_bytes && bag_bytes && (uintptr_t)tensors % (wide ? 8 : 4) == 0;
}

int lane_read(const lane_t *lane, const char *text, const char *end, int64_t announced,
              ask_t *ask) {
    int64_t numbers[3]; /* bytes of the JSON, of the body, milliseconds left */
    if (announced > 0) { /* the head is read already */
        const int fits =
            announced < end - text && read_ask(lane, text, text + announced, end, ask);
        ask->body = text;
        ask->end = end;
        return fits;
    }
    const char *body = form_scan(lane->heads[0], text, end, numbers);
    if (body == NULL) body = form_scan(lane->heads[1], text, end, numbers);
    if (body == NULL || numbers[1] > end - body || numbers[1] > lane->max_body ||
        numbers[0] > numbers[1] || numbers[2] < 1 || numbers[2] > lane->longest_ms)
        return 0;
    const int fits = read_ask(lane, body, body + numbers[0], body + numbers[1], ask);
    ask->body = body;
    ask->end = body + numbers[1];
    return fits;
}

int64_t lane_pool(const lane_t *lane, ask_t *ask, fault_t *fault) {
    int64_t needed = 0;
    for (int64_t s = 0; s < lane->count; s++)
        for (int64_t b = 0; b < ask->samples; b++)
            if (ask->lengths[s * ask->samples + b]) needed += lane->slices[s].dim;
    ask->partial = malloc((sizeof(float) + sizeof(uint16_t)) * (size_t)(needed + 1));
    if (ask->partial == NULL) return -1;
    ask->halves = (uint16_t *)(ask->partial + needed);
    const int64_t written = pool(lane->slices, lane->count, &ask->values, NULL, ask->lengths,
                                 ask->samples, ask->partial, 0, NULL, 1, fault);
    for (int64_t i = 0; ask->half && i < written; i++) /* beyond float16: the sums as they are */
        ask->half = ask->partial[i] > -65520.0f && ask->partial[i] < 65520.0f;
    if (ask->half) to_half(ask->partial, ask->halves, written);
    return written;
}
