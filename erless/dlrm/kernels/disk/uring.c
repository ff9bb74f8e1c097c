/* io_uring by its raw system calls. */
#include "disk/uring.h"

#include <errno.h>
#include <string.h>

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Newer than the headers of the oldest systems that we compile on (include/uapi/linux/io_uring.h).
 */
enum { SINGLE_ISSUER = 1 << 12, DEFER_TASKRUN = 1 << 13 };

static int setup(unsigned entries, struct io_uring_params *params) {
    return (int)syscall(__NR_io_uring_setup, entries, params);
}

/* Map the rings into memory. Returns 0 or the error. */
static int map_rings(uring_t *ring, const struct io_uring_params *params) {
    const int64_t sq = params->sq_off.array + params->sq_entries * (int64_t)sizeof(unsigned);
    const int64_t cq =
        params->cq_off.cqes + params->cq_entries * (int64_t)sizeof(struct io_uring_cqe);
    ring->rings_bytes = sq > cq ? sq : cq;
    ring->sqes_bytes = params->sq_entries * (int64_t)sizeof(struct io_uring_sqe);
    ring->rings = mmap(NULL, (size_t)ring->rings_bytes, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
    if (ring->rings == MAP_FAILED) {
        ring->rings = NULL;
        return errno;
    }
    ring->sqes = mmap(NULL, (size_t)ring->sqes_bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
    if (ring->sqes == MAP_FAILED) {
        ring->sqes = NULL;
        return errno;
    }
    char *base = ring->rings;
    ring->sq_tail = (unsigned *)(void *)(base + params->sq_off.tail);
    ring->sq_mask = (unsigned *)(void *)(base + params->sq_off.ring_mask);
    ring->cq_head = (unsigned *)(void *)(base + params->cq_off.head);
    ring->cq_tail = (unsigned *)(void *)(base + params->cq_off.tail);
    ring->cq_mask = (unsigned *)(void *)(base + params->cq_off.ring_mask);
    ring->cqes = base + params->cq_off.cqes;
    unsigned *array = (unsigned *)(void *)(base + params->sq_off.array);
    for (unsigned i = 0; i < params->sq_entries; i++) array[i] = i;
    return 0;
}

/* Let the kernel know the buffers, so that it does not pin their pages at each read. It may refuse
 * (RLIMIT_MEMLOCK): then they are passed as they are. */
static int register_buffers(int fd, unsigned count, uint8_t *buffers, int64_t buffer_bytes) {
    struct iovec *vectors = malloc(count * sizeof(*vectors));
    if (vectors == NULL) return 0;
    for (unsigned i = 0; i < count; i++)
        vectors[i] = (struct iovec){buffers + i * buffer_bytes, (size_t)buffer_bytes};
    const long done = syscall(__NR_io_uring_register, fd, IORING_REGISTER_BUFFERS, vectors, count);
    free(vectors);
    return done == 0;
}

int uring_open(uring_t *ring, unsigned entries, uint8_t *buffers, int64_t buffer_bytes) {
    struct io_uring_params params = {.flags = SINGLE_ISSUER | DEFER_TASKRUN};
    *ring = (uring_t){.entries = entries, .fd = -1};
    ring->fd = setup(entries, &params);
    if (ring->fd < 0 && errno == EINVAL) { /* a kernel before 6.1 */
        params = (struct io_uring_params){0};
        ring->fd = setup(entries, &params);
    }
    if (ring->fd < 0) return errno;
    int error = ENOSYS; /* before 5.11: no time limit for a wait */
    if (params.features & IORING_FEAT_EXT_ARG && params.features & IORING_FEAT_SINGLE_MMAP)
        error = map_rings(ring, &params);
    if (error) uring_close(ring);
    else ring->fixed = register_buffers(ring->fd, entries, buffers, buffer_bytes);
    return error;
}

void uring_close(uring_t *ring) {
    if (ring->sqes) munmap(ring->sqes, (size_t)ring->sqes_bytes);
    if (ring->rings) munmap(ring->rings, (size_t)ring->rings_bytes);
    if (ring->fd >= 0) close(ring->fd);
    *ring = (uring_t){.fd = -1};
}

void uring_read(uring_t *ring, int fd, int64_t at, uint8_t *to, int64_t bytes, unsigned slot) {
    const unsigned tail = *ring->sq_tail;
    struct io_uring_sqe *sqe = (struct io_uring_sqe *)ring->sqes + (tail & *ring->sq_mask);
    memset(sqe, 0, sizeof(*sqe));
    sqe->opcode = ring->fixed ? IORING_OP_READ_FIXED : IORING_OP_READ;
    sqe->fd = fd;
    sqe->off = (uint64_t)at;
    sqe->addr = (uint64_t)(uintptr_t)to;
    sqe->len = (uint32_t)bytes;
    sqe->buf_index = ring->fixed ? (uint16_t)slot : 0;
    sqe->user_data = slot;
    __atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
    ring->unsubmitted++;
}

int uring_wait(uring_t *ring, unsigned wanted, int64_t timeout_us) {
    struct __kernel_timespec time = {timeout_us / 1000000, timeout_us % 1000000 * 1000};
    struct io_uring_getevents_arg arg = {
        .sigmask_sz = _NSIG / 8,
        .ts = (uint64_t)(uintptr_t)&time,
    };
    const long done = syscall(__NR_io_uring_enter, ring->fd, ring->unsubmitted, wanted,
                              IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof(arg));
    if (done >= 0) {
        ring->unsubmitted -= (unsigned)done;
        return 0;
    }
    /* the time is up, or the kernel is short of something for now: what was queued stays so */
    if (errno == ETIME || errno == EINTR || errno == EAGAIN || errno == EBUSY) return 0;
    return errno;
}

int uring_reap(uring_t *ring, unsigned *slot, int *result) {
    const unsigned head = *ring->cq_head;
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) return 0;
    const struct io_uring_cqe *cqe =
        (const struct io_uring_cqe *)ring->cqes + (head & *ring->cq_mask);
    *slot = (unsigned)cqe->user_data;
    *result = cqe->res;
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return 1;
}

#else
int uring_open(uring_t *ring, unsigned entries, uint8_t *buffers, int64_t buffer_bytes) {
    (void)entries, (void)buffers, (void)buffer_bytes;
    *ring = (uring_t){.fd = -1};
    return ENOSYS;
}
void uring_close(uring_t *ring) {
    (void)ring;
}
void uring_read(uring_t *ring, int fd, int64_t at, uint8_t *to, int64_t bytes, unsigned slot) {
    (void)ring, (void)fd, (void)at, (void)to, (void)bytes, (void)slot;
}
int uring_wait(uring_t *ring, unsigned wanted, int64_t timeout_us) {
    (void)ring, (void)wanted, (void)timeout_us;
    return ENOSYS;
}
int uring_reap(uring_t *ring, unsigned *slot, int *result) {
    (void)ring, (void)slot, (void)result;
    return 0;
}
#endif
