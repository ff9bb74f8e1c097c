/* Write a request, add an answer. */
#include "fast_lane/shard_channel.h"

int64_t request_write(const shard_channel_t *channel, const bucket_t *bucket, int64_t left_ms,
                      const char *trace, char text[MOST_HEAD]) {
    const int64_t id_bytes = bucket->values.size * (int64_t)id_width(&bucket->values);
    const int64_t bag_bytes = channel->tables * bucket->samples * (int64_t)sizeof(int32_t);
    const int64_t numbers[] = {bucket->values.size, id_bytes, channel->tables, bucket->samples,
                               bag_bytes};
    char json[MOST_HEAD];
    const char *stop =
        form_fill(channel->requests[bucket->values.wide], json, json + MOST_HEAD, numbers, "");
    if (stop == NULL) return 0;
    const int64_t size = stop - json;
    /* Spaces behind the JSON align the tensors. Their number may take another digit to tell. */
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

/* The answer's JSON [json, stop): of float32, then of float16. Returns 0 where it is neither, or
 * has another size than the `floats` wanted and the `bytes` that came. */
static int partial_fits(const shard_channel_t *channel, const char *json, const char *stop,
                        int64_t floats, int64_t bytes, int *float16) {
    for (*float16 = 0; *float16 < 2; ++*float16) {
        int64_t numbers[2] = {-1, -1}; /* elements, bytes */
        if (form_scan(channel->answers[2 + *float16], json, stop, numbers) == stop)
            return numbers[0] == floats && numbers[1] == bytes &&
                   bytes == floats * (*float16 ? 2 : 4);
    }
    return 0;
}

int64_t answer_add(const shard_channel_t *channel, const bucket_t *bucket, const char **text,
                   const char *end, const char *room, int last, float *out) {
    int64_t sizes[3] = {0, 0, READY_LONG_AGO}; /* of the body, of the JSON, milliseconds */
    const char *json = form_scan(channel->answers[0], *text, end, sizes);
    int float16;
    if (json == NULL) json = form_scan(channel->answers[1], *text, end, sizes);
    else sizes[2] = READY_LONG_AGO;
    if (json == NULL || sizes[1] > sizes[0] || (last && sizes[0] < end - json))
        return ANSWER_GENERAL;
    if (sizes[0] > end - json) return sizes[0] > room - json ? ANSWER_GENERAL : ANSWER_INCOMPLETE;
    const char *partial = json + sizes[1];
    const bags_t bags = {bucket->lengths, channel->tables, bucket->samples, NULL};
    const int64_t floats = packed_floats(&bags, channel->places);
    if (!partial_fits(channel, json, partial, floats, sizes[0] - sizes[1], &float16))
        return ANSWER_GENERAL;
    combine(out, partial, float16, 1, &bags, channel->places);
    *text = json + sizes[0];
    return sizes[2];
}
