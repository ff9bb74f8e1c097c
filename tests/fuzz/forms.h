/* The forms of erless/serve/protocol/fast_lane.py, as tests/fuzz/test_fuzz.py checks. */
#ifndef ERLESS_FUZZ_FORMS_H
#define ERLESS_FUZZ_FORMS_H

#define HEAD(more)                                                                               \
    "POST /v2/models/shard/infer HTTP/1.1\r\nhost: %s\r\ncontent-type: application/octet-stream" \
    "\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\nerless-deadline-ms: "      \
    "%d\r\n" more "\r\n"
#define TENSOR(name, type, shape)                                        \
    "{\"name\":\"" name "\",\"datatype\":\"" type "\",\"shape\":[" shape \
    "],\"parameters\":{\"binary_data_size\":%d}}"
#define REQUEST(type, more) \
    "{\"inputs\":[" TENSOR("values", type, "%d") "," TENSOR("lengths", "INT32", "%d,%d")       \
    "],\"outputs\":[{\"name\":\"partial\",\"parameters\":{\"binary_data\":true}}]"             \
    ",\"parameters\":{\"packed\":true" more "}}"
#define ANSWER_HEAD(more)                                                                 \
    "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n" \
    "date: %s\r\ninference-header-content-length: %d\r\n" more "\r\n"
#define ANSWER(type)                                                                             \
    "{\"model_name\":\"shard\",\"model_version\":\"abababababab\",\"parameters\":{\"digest\":\"" \
    "abababababababababababababababababababababababababababababababab\"},\"outputs\":"           \
    "[" TENSOR("partial", type, "%d") "]}"

enum { HEADS = 0, REQUESTS = 2, ANSWERS = 6, ALL_FORMS = 10 };

static const char *const all_forms[ALL_FORMS] = {
    HEAD(""),
    HEAD("traceparent: %s\r\n"),
    REQUEST("INT32", ""),
    REQUEST("INT64", ""),
    REQUEST("INT32", ",\"half\":true"),
    REQUEST("INT64", ",\"half\":true"),
    ANSWER_HEAD(""),
    ANSWER_HEAD("erless-up-ms: %d\r\n"),
    ANSWER("FP32"),
    ANSWER("FP16"),
};

#endif
