/* io_uring by its raw system calls: reads into buffers that the kernel knows.
 *
 * Only what the engine needs of it: one thread submits and waits. */
#ifndef ERLESS_URING_H
#define ERLESS_URING_H

#include <stdint.h>

typedef struct {
    int fd;
    unsigned entries;
    unsigned *sq_tail, *sq_mask, *cq_head, *cq_tail, *cq_mask;
    void *sqes, *cqes, *rings;
    int64_t rings_bytes, sqes_bytes;
    unsigned unsubmitted;
    int fixed; /* whether the buffers are registered */
} uring_t;

/* Open a ring for `entries` reads into `buffers` (entries, buffer_bytes). Call it from the thread
 * that will use it. Returns 0, or the error: ENOSYS without io_uring, EPERM where it is forbidden.
 */
int uring_open(uring_t *ring, unsigned entries, uint8_t *buffers, int64_t buffer_bytes);
void uring_close(uring_t *ring);

/* Put a read into buffer `slot` in the queue. There are at most `entries` until they are reaped. */
void uring_read(uring_t *ring, int fd, int64_t at, uint8_t *to, int64_t bytes, unsigned slot);

/* Submit what is queued, and wait for `wanted` answers or `timeout_us`. Returns 0 or the error. */
int uring_wait(uring_t *ring, unsigned wanted, int64_t timeout_us);

/* Take one answer: its slot and result (bytes, or -errno). Returns 0 where there is none. */
int uring_reap(uring_t *ring, unsigned *slot, int *result);

#endif
