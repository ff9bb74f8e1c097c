/* The gateway's end of the fast lane: requests of any bucket, and answers whose numbers lie. */
#include "fast_lane/shard_channel.h"

#include "forms.h"
#include "tables.h"

enum { STRIDE = 40, ROOM = 1 << 16 };

/* What was written is whole, aligned, and says the bucket's sizes. */
static void ask(input_t *input, const shard_channel_t *channel, const bucket_t *bucket) {
    char text[MOST_HEAD], word[64];
    const size_t size = (size_t)any_of(input, 0, sizeof(word) - 1);
    memset(word, 'x', size);
    word[size] = 0;
    const char *trace = any_byte(input) & 1 ? word : NULL;
    int64_t sizes[3], numbers[5];
    const int64_t written = request_write(channel, bucket, any_bits(input, 3), trace, text);
    REQUIRE(written > 0 && written <= MOST_HEAD && written % ALIGNMENT == 0);
    const char *json = form_scan(channel->heads[trace != NULL], text, text + written, sizes);
    REQUIRE(json != NULL && sizes[0] == text + written - json);
    const char *stop =
        form_scan(channel->requests[bucket->values.wide], json, text + written, numbers);
    REQUIRE(stop != NULL && numbers[0] == bucket->values.size && numbers[3] == bucket->samples);
    REQUIRE(sizes[1] == sizes[0] + numbers[1] + numbers[4]);
}

/* Write an answer that is right but for numbers that the fuzzer changes. Returns its end. */
static char *write_answer(input_t *input, int64_t floats, char *out) {
    const uint8_t flags = any_byte(input);
    const int64_t width = flags & 1 ? 2 : 4;
    int64_t numbers[2] = {floats, floats * width};
    if (flags & 2) numbers[any_of(input, 0, 1)] = any_bits(input, flags & 4 ? 4 : 1);
    char json[MOST_HEAD];
    const char *form = all_forms[ANSWERS + 2 + (flags & 1)];
    const char *json_end = form_fill(form, json, json + MOST_HEAD, numbers, "");
    REQUIRE(json_end != NULL);
    int64_t sizes[3] = {json_end - json + floats * width, json_end - json, any_bits(input, 2)};
    if (flags & 8) sizes[any_of(input, 0, 1)] = any_bits(input, flags & 16 ? 4 : 1);
    out = form_fill(all_forms[ANSWERS + (flags >> 7)], out, out + MOST_HEAD, sizes, "now");
    memcpy(out, json, (size_t)(json_end - json));
    out += json_end - json;
    for (int64_t i = 0; i < floats * width; i++) *out++ = (char)any_byte(input);
    return out;
}

/* Take the answer in. What is not taken leaves everything as it was. */
static void add(input_t *input, const shard_channel_t *channel, const bucket_t *bucket,
                const char *from, const char *to) {
    const int64_t samples = bucket->samples, size = to - from, more = any_of(input, 0, 8);
    char *memory = exactly((size_t)(size + more));
    float *out = exactly(sizeof(float) * (size_t)(samples * STRIDE));
    memcpy(memory, from, (size_t)size);
    const int last = any_byte(input) & 1;
    const char *text = memory, *end = memory + any_of(input, 0, size + more);
    const int64_t outcome =
        answer_add(channel, bucket, &text, end, memory + size + more, last, out);
    REQUIRE(outcome >= ANSWER_GENERAL && outcome <= UINT32_MAX * (int64_t)10);
    REQUIRE(memory <= text && text <= end);
    if (outcome < 0) {
        REQUIRE(text == memory);
        for (int64_t i = 0; i < samples * STRIDE; i++) REQUIRE(out[i] == 0);
    }
    free(out);
    free(memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char answer[ROOM];
    static const char *const plain = /* a channel's head has its address instead of a word */
        "POST /v2/models/shard/infer HTTP/1.1\r\nhost: h:1\r\ncontent-type: "
        "application/octet-stream\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\n"
        "erless-deadline-ms: %d\r\n";
    static char heads[2][MOST_HEAD];
    strcpy(stpcpy(heads[0], plain), "\r\n");
    strcpy(stpcpy(heads[1], plain), "traceparent: %s\r\n\r\n");
    input_t input = {data, data + size};
    const uint8_t flags = any_byte(&input);
    const int64_t tables = any_of(&input, 1, 3), rows[3] = {100, 100, 100};
    place_t places[3];
    for (int64_t t = 0; t < tables; t++) {
        places[t].dim = any_of(&input, 1, STRIDE);
        places[t].column = any_of(&input, 0, STRIDE - places[t].dim);
        places[t].pooling = any_of(&input, SUM, MEAN);
        places[t].stride = STRIDE;
    }
    shard_channel_t channel = {.heads = {heads[0], heads[1]}, .places = places, .tables = tables};
    memcpy(channel.requests, all_forms + REQUESTS + (flags & 1 ? 2 : 0), sizeof(channel.requests));
    memcpy(channel.answers, all_forms + ANSWERS, sizeof(channel.answers));
    if (!(flags & 1)) channel.answers[3] = "";
    const query_t query = make_query(&input, tables, rows, 0);
    const bucket_t bucket = {query.values, query.lengths, query.samples};
    ask(&input, &channel, &bucket);
    if (flags & 2) {
        add(&input, &channel, &bucket, (const char *)input.next, (const char *)input.end);
    } else {
        const int64_t floats = packed_floats(&query.bags, places);
        char *end = write_answer(&input, floats, answer);
        if (flags & 4) answer[any_of(&input, 0, end - answer - 1)] ^= (char)any_byte(&input);
        add(&input, &channel, &bucket, answer, end);
    }
    free_query(&query);
    return 0;
}
