/* A sparse function's end of the fast lane: a gateway's request becomes its answer without a Python
 * object in between. What does not have its form byte for byte is left to Python. */
#ifndef ERLESS_FAST_PATH_H
#define ERLESS_FAST_PATH_H

#include "arithmetic/gather.h"

typedef struct {
    const slice_t *slices;
    int64_t count, max_batch, max_body, longest_ms;
    const char *heads[2];    /* of requests: without and with a trace */
    const char *requests[4]; /* JSON: int32 and int64 ids, answered in float32, then in float16 */
    const char
        *answers[4]; /* heads without and with the time since ready; JSON: float32, float16 */
} fast_path_t;

/* One request. `partial` is set by fast_path_pool; the caller frees it. */
typedef struct {
    ids_t values;
    const int32_t *lengths;
    int64_t samples;
    int float16; /* whether the answer is `float16_partial` */
    float *partial;
    uint16_t *float16_partial;
    const char *body, *end; /* of the request */
} fast_request_t;

/* Understand the request at `text`: with its head, or, where `announced` > 0 says how many bytes of
 * JSON there are, without. Returns 0 where it is not whole, or does not have the form. */
int fast_path_read(const fast_path_t *path, const char *text, const char *end, int64_t announced,
                   fast_request_t *request);

/* Pool what was asked. Returns the floats of the packed partial; -1 without memory. */
int64_t fast_path_pool(const fast_path_t *path, fast_request_t *request, fault_t *fault);

#endif
