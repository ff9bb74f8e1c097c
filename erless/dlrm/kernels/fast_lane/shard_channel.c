/* The fast path, the gateway's end: a shard's bucket becomes a request, its answer is added up. */
#include "kernels.h"

int64_t request_write(const shard_channel_t *channel, const bucket_t *bucket, int64_t left_ms, const char *trace,
                  char text[MOST_HEAD]) {
    const int64_t id_bytes = bucket->values.size * (int64_t)id_width(&bucket->values);
    const int64_t bag_bytes = channel->tables * bucket->samples * (int64_t)sizeof(int32_t);
    const int64_t numbers[] = {bucket->values.size, id_bytes, channel->tables, bucket->samples,
                               bag_bytes};
    char json[MOST_HEAD];
    const char *stop =
        form_fill(channel->requests[bucket->values.wide], json, json + MOST_HEAD, numbers, "");
    if (stop == NULL) return 0;
    const int64_t size = stop - json;
    /* spaces behind the JSON align the tensors; they may take another digit to tell */
    for (int64_t pad = 0; pad < 4 * ALIGNMENT;) {
        const int64_t sizes[] = {size + pad, size + pad + id_bytes + bag_bytes, left_ms};
        char *at = form_fill(channel->heads[trace != NULL], text, text + MOST_HEAD, sizes, trace);
        if (at == NULL || size + pad > text + MOST_HEAD - at) return 0;
        const int64_t off = (at - text + size + pad) % ALIGNMENT;
        if (off) {
            pad += ALIGNMENT - off;
            continue;
        }
        memcpy(at, json, (size_t)size);
        memset(at + size, ' ', (size_t)pad);
        return at - text + size + pad;
    }
    return 0;
}

/* Floats of the packed partial. */
static int64_t wanted(const shard_channel_t *channel, const bucket_t *bucket) {
    int64_t floats = 0;
    for (int64_t s = 0; s < channel->tables; s++)
        for (int64_t b = 0; b < bucket->samples; b++)
            if (bucket->lengths[s * bucket->samples + b]) floats += channel->places[s].dim;
    return floats;
}

int64_t answer_add(const shard_channel_t *channel, const bucket_t *bucket, const char **text, const char *end,
                 const char *room, int last, float *out, int64_t stride) {
    int64_t sizes[3] = {0, 0, READY_LONG_AGO}, numbers[2]; /* of the body, of the JSON, ms since ready */
    const char *json = form_scan(channel->answers[0], *text, end, sizes), *partial = NULL;
    if (json == NULL) json = form_scan(channel->answers[1], *text, end, sizes);
    else sizes[2] = READY_LONG_AGO;
    if (json == NULL || sizes[1] > sizes[0] || (last && sizes[0] < end - json))
        return ANSWER_GENERAL;
    if (sizes[0] > end - json) return sizes[0] > room - json ? ANSWER_GENERAL : ANSWER_INCOMPLETE;
    end = json + sizes[0];
    int half = 0;
    for (; half < 2 && partial == NULL; half++)
        partial = form_scan(channel->answers[2 + half], json, json + sizes[1], numbers);
    half--;
    if (partial != json + sizes[1] || numbers[0] != wanted(channel, bucket) ||
        numbers[1] != numbers[0] * (half ? 2 : 4) || numbers[1] != end - partial)
        return ANSWER_GENERAL;
    combine(out, stride, partial, half, 1, bucket->lengths, bucket->samples, channel->places,
            channel->tables);
    *text = end;
    return sizes[2];
}
