/* The gateway's end of the fast lane: a shard's bucket becomes a request, and the answer's sums are
 * added up. */
#ifndef ERLESS_SHARD_CHANNEL_H
#define ERLESS_SHARD_CHANNEL_H

#include "arithmetic/combine.h"
#include "arithmetic/ids.h"
#include "fast_lane/form.h"

/* A remote shard, as the gateway talks to it. */
typedef struct {
    const char *heads[2];    /* of requests: without and with a trace */
    const char *requests[2]; /* JSON: int32 and int64 ids */
    const char *answers[4];  /* as fast_path_t; the last is empty where float16 is not wanted */
    const place_t *places;   /* (tables) where its partial goes */
    int64_t tables;
} shard_channel_t;

/* What a shard gets of a query. */
typedef struct {
    ids_t values;
    const int32_t *lengths; /* (tables, samples) */
    int64_t samples;
} bucket_t;

enum { ALIGNMENT = 16 }; /* of the tensors, from the message's first byte */

/* Write head and JSON of the request for `bucket`. Returns their bytes; 0 where they do not fit. */
int64_t request_write(const shard_channel_t *channel, const bucket_t *bucket, int64_t left_ms,
                      const char *trace, char text[MOST_HEAD]);

enum { ANSWER_GENERAL = -2, ANSWER_INCOMPLETE = -1, READY_LONG_AGO = INT32_MAX };

/* Add the answer at `*text`, of which there is what lies before `end`, to `out`, and move `*text`
 * behind it. Returns the milliseconds for which the shard has been ready (READY_LONG_AGO: it does
 * not say). With nothing added or moved it returns ANSWER_INCOMPLETE, where the rest is to come and
 * has room before `room`, or ANSWER_GENERAL, where the answer does not have the form or is not the
 * answer to what was asked. `last`: no other answer may follow. */
int64_t answer_add(const shard_channel_t *channel, const bucket_t *bucket, const char **text,
                   const char *end, const char *room, int last, float *out);

#endif
