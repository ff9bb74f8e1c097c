/* Reads of many rows at once from files, by io_uring or by a pool of threads.
 *
 * Whoever wants rows submits a batch, and is told through a file descriptor when all of them are
 * there. In between, threads of the engine read whole blocks, hold them against their checksums,
 * and copy the rows out, so that neither the caller nor the interpreter waits. */
#ifndef ERLESS_ENGINE_H
#define ERLESS_ENGINE_H

#include <stdint.h>

enum { DISK_BLOCK = 4096 }; /* what is read at a time, and what has a checksum */
enum { ENGINE_AUTO, ENGINE_PREAD, ENGINE_URING };
enum { READ_FINE, READ_FAILED, READ_SHORT, READ_ALTERED };

/* Rows that follow each other in a file, from `begin` on. */
typedef struct {
    int fd;
    int64_t begin, bytes;
    const uint32_t *checksums; /* crc32c of each block, the last perhaps short; or NULL */
} extent_t;

/* A stretch of an extent, and where it shall be. */
typedef struct {
    int64_t at, bytes; /* from the extent's begin */
    uint8_t *to;
} stretch_t;

typedef struct batch batch_t;

/* One read: blocks of the file, and the stretches that lie within them. */
typedef struct read {
    const extent_t *extent;
    int64_t at, bytes; /* of the file, whole blocks */
    const stretch_t *stretches;
    int64_t count;
    batch_t *batch;
    struct read *next;
} read_t;

struct batch {
    read_t *reads;
    int64_t count;
    int64_t left; /* reads that are not done; the engine's */
    int fault;    /* READ_...: of the first that failed */
    int error;    /* errno of READ_FAILED */
    int64_t at;   /* where in its file */
    const extent_t *extent;
    int done;
    batch_t *next;
};

typedef struct engine engine_t;

typedef struct {
    int kind;             /* ENGINE_AUTO: io_uring where it works */
    int depth;            /* reads in flight: entries of the ring, or threads */
    int64_t buffer_bytes; /* most of one read, a multiple of DISK_BLOCK */
    int64_t most_waiting; /* reads that may wait, or be in flight; a batch alone may be larger */
} engine_options_t;

typedef struct {
    int64_t reads, bytes, faults, refused; /* so far */
    int64_t waiting;                       /* now, or in flight */
} engine_counts_t;

/* Start the engine. Returns NULL with `*error` (errno) where it cannot. */
engine_t *engine_open(const engine_options_t *options, int *error);

/* Stop it. No batch may be under way. */
void engine_close(engine_t *engine);

/* Which it became, and why not io_uring: 0 or its errno. */
int engine_kind(const engine_t *engine, int *refusal);

/* A file descriptor that becomes readable when a batch is done; read 8 bytes to reset it. */
int engine_event(const engine_t *engine);

/* Begin with a batch of at least one read. Returns 0 where too many wait already. */
int engine_submit(engine_t *engine, batch_t *batch);

/* Wait until the batch is done. */
void engine_wait(engine_t *engine, batch_t *batch);

/* Whether the batch is done. */
int engine_done(engine_t *engine, const batch_t *batch);

engine_counts_t engine_counts(engine_t *engine);

#endif
