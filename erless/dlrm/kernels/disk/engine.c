/* Reads of many rows at once from files. */
#include "disk/engine.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "disk/checksum.h"
#include "disk/uring.h"

enum { MOST_THREADS = 64, NAP_US = 500 };

struct engine {
    engine_options_t options;
    int kind, refusal, event, stopping, starting;
    pthread_mutex_t lock;
    pthread_cond_t work, done; /* there is a read; a batch is done, or a thread has started */
    read_t *first, *last;
    engine_counts_t counts;
    uint8_t *buffers; /* (depth, buffer_bytes) */
    pthread_t threads[MOST_THREADS];
    int thread_count;
};

/* ---- a read is done ---- */

/* Read again, as often as it takes, what came short or was interrupted. Returns the bytes, or
 * -errno. */
static int64_t read_again(const read_t *read, uint8_t *buffer) {
    int64_t got = 0;
    while (got < read->bytes) {
        const int64_t from = got - got % DISK_BLOCK; /* where a direct read may begin */
        const ssize_t more =
            pread(read->extent->fd, buffer + from, (size_t)(read->bytes - from), read->at + from);
        if (more < 0 && errno == EINTR) continue;
        if (more < 0) return -errno;
        if (from + more <= got) break; /* the end of the file */
        got = from + more;
    }
    return got;
}

/* How far the extent goes in the blocks of this read: bytes that have to be there. */
static int64_t needed(const read_t *read) {
    const int64_t end = read->extent->begin + read->extent->bytes;
    return end < read->at + read->bytes ? end - read->at : read->bytes;
}

/* Whether all blocks are those that were packed. */
static int blocks_fit(const read_t *read, const uint8_t *buffer) {
    const extent_t *extent = read->extent;
    if (extent->checksums == NULL) return 1;
    const int64_t begin = read->at - extent->begin; /* a multiple of a block */
    for (int64_t at = begin; at < begin + read->bytes && at < extent->bytes; at += DISK_BLOCK) {
        const int64_t left = extent->bytes - at;
        const size_t size = (size_t)(left < DISK_BLOCK ? left : DISK_BLOCK);
        if (crc32c(buffer + (at - begin), size) != extent->checksums[at / DISK_BLOCK]) return 0;
    }
    return 1;
}

/* Judge what came, and hand its rows out. Returns READ_... */
static int take_read(const read_t *read, uint8_t *buffer, int64_t got, int *error) {
    if (got == -EINTR || got == -EAGAIN || (got >= 0 && got < needed(read)))
        got = read_again(read, buffer);
    if (got < 0) {
        *error = (int)-got;
        return READ_FAILED;
    }
    if (got < needed(read)) return READ_SHORT;
    if (!blocks_fit(read, buffer)) return READ_ALTERED;
    for (int64_t i = 0; i < read->count; i++) {
        const stretch_t *stretch = &read->stretches[i];
        const uint8_t *from = buffer + (read->extent->begin + stretch->at - read->at);
        memcpy(stretch->to, from, (size_t)stretch->bytes);
    }
    return READ_FINE;
}

/* Count a read that is done; its batch may be done with it. */
static void finish_read(engine_t *engine, const read_t *read, int fault, int error) {
    const uint64_t one = 1;
    batch_t *batch = read->batch;
    pthread_mutex_lock(&engine->lock);
    engine->counts.reads++;
    engine->counts.bytes += read->bytes;
    engine->counts.waiting--;
    if (fault) engine->counts.faults++;
    if (fault && !batch->fault) {
        batch->fault = fault;
        batch->error = error;
        batch->at = read->at;
        batch->extent = read->extent;
    }
    const int last = --batch->left == 0;
    if (last) {
        batch->done = 1;
        pthread_cond_broadcast(&engine->done);
    }
    pthread_mutex_unlock(&engine->lock);
    /* the batch may be gone by now. A full counter means that a wake-up is under way already. */
    if (last && write(engine->event, &one, sizeof(one)) < 0) return;
}

static void complete(engine_t *engine, const read_t *read, uint8_t *buffer, int64_t got) {
    int error = 0;
    const int fault = take_read(read, buffer, got, &error);
    finish_read(engine, read, fault, error);
}

/* ---- threads ---- */

/* The next read; the lock is held, and there is one. */
static read_t *next_read(engine_t *engine) {
    read_t *read = engine->first;
    engine->first = read->next;
    if (engine->first == NULL) engine->last = NULL;
    return read;
}

static void *run_pread(void *argument) {
    engine_t *engine = argument;
    pthread_mutex_lock(&engine->lock);
    uint8_t *buffer = engine->buffers + engine->starting++ * engine->options.buffer_bytes;
    for (;;) {
        while (engine->first == NULL && !engine->stopping)
            pthread_cond_wait(&engine->work, &engine->lock);
        if (engine->first == NULL) break;
        const read_t *read = next_read(engine);
        pthread_mutex_unlock(&engine->lock);
        complete(engine, read, buffer, read_again(read, buffer));
        pthread_mutex_lock(&engine->lock);
    }
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

/* The ring's reads, by the slot of their buffer. */
typedef struct {
    uring_t ring;
    const read_t **reads; /* (depth) */
    unsigned *free;       /* (depth): slots that are not in use */
    unsigned free_count, depth;
} slots_t;

/* Queue as many reads as there are slots for; wait for work where there is none at all. Returns
 * whether others wait, or -1: stop. */
static int queue_reads(engine_t *engine, slots_t *slots) {
    pthread_mutex_lock(&engine->lock);
    while (engine->first == NULL && slots->free_count == slots->depth && !engine->stopping)
        pthread_cond_wait(&engine->work, &engine->lock);
    const int stop = engine->first == NULL && slots->free_count == slots->depth;
    while (engine->first != NULL && slots->free_count > 0) {
        const read_t *read = next_read(engine);
        const unsigned slot = slots->free[--slots->free_count];
        slots->reads[slot] = read;
        uring_read(&slots->ring, read->extent->fd, read->at,
                   engine->buffers + slot * engine->options.buffer_bytes, read->bytes, slot);
    }
    const int more = engine->first != NULL;
    pthread_mutex_unlock(&engine->lock);
    return stop ? -1 : more;
}

/* Take every answer that has come. */
static void reap_reads(engine_t *engine, slots_t *slots) {
    unsigned slot;
    int result;
    while (uring_reap(&slots->ring, &slot, &result)) {
        uint8_t *buffer = engine->buffers + slot * engine->options.buffer_bytes;
        const read_t *read = slots->reads[slot];
        complete(engine, read, buffer, result);
        slots->reads[slot] = NULL;
        slots->free[slots->free_count++] = slot;
    }
}

/* The ring refuses to go on: read what it has, and all that comes, by pread. */
static void serve_without_ring(engine_t *engine, slots_t *slots) {
    uring_close(&slots->ring); /* waits for what is in flight: nobody writes to the buffers now */
    for (unsigned slot = 0; slot < slots->depth; slot++)
        if (slots->reads[slot] != NULL) {
            uint8_t *buffer = engine->buffers + slot * engine->options.buffer_bytes;
            complete(engine, slots->reads[slot], buffer, -EAGAIN);
        }
    pthread_mutex_lock(&engine->lock);
    engine->kind = ENGINE_PREAD;
    engine->starting = 0;
    pthread_mutex_unlock(&engine->lock);
    run_pread(engine);
}

/* Reads that are worth waking up for: all that is asked for is needed anyway, so not each alone.
 * Whoever comes in between waits NAP_US at most. */
static unsigned worth_waking(const slots_t *slots, int more) {
    const unsigned in_flight = slots->depth - slots->free_count;
    if (more) return in_flight < 16 ? in_flight : in_flight / 4 < 16 ? 16 : in_flight / 4;
    return 1 + in_flight / 4;
}

static int open_slots(engine_t *engine, slots_t *slots) {
    slots->depth = (unsigned)engine->options.depth;
    slots->reads = calloc(slots->depth, sizeof(*slots->reads));
    slots->free = calloc(slots->depth, sizeof(*slots->free));
    if (slots->reads == NULL || slots->free == NULL) return ENOMEM;
    for (unsigned slot = 0; slot < slots->depth; slot++) slots->free[slot] = slot;
    slots->free_count = slots->depth;
    return uring_open(&slots->ring, slots->depth, engine->buffers, engine->options.buffer_bytes);
}

static void *run_uring(void *argument) {
    engine_t *engine = argument;
    slots_t slots = {.ring = {.fd = -1}};
    const int error = open_slots(engine, &slots);
    pthread_mutex_lock(&engine->lock);
    engine->refusal = error;
    engine->starting = 1;
    pthread_cond_broadcast(&engine->done);
    pthread_mutex_unlock(&engine->lock);
    while (!error) {
        const int more = queue_reads(engine, &slots);
        if (more < 0) break;
        if (uring_wait(&slots.ring, worth_waking(&slots, more), NAP_US)) {
            reap_reads(engine, &slots);
            serve_without_ring(engine, &slots);
            break;
        }
        reap_reads(engine, &slots);
    }
    uring_close(&slots.ring);
    free(slots.reads);
    free(slots.free);
    return NULL;
}

/* ---- from outside ---- */

/* Start `count` threads, which take no signals: those are the interpreter's. Returns the error. */
static int start_threads(engine_t *engine, void *(*run)(void *), int count) {
    sigset_t all, before;
    int error = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (!error && engine->thread_count < count) {
        error = pthread_create(&engine->threads[engine->thread_count], NULL, run, engine);
        if (!error) engine->thread_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return engine->thread_count > 0 ? 0 : error;
}

/* Start the thread of the ring and hear whether it has one. Returns the error. */
static int start_uring(engine_t *engine) {
    const int error = start_threads(engine, run_uring, 1);
    if (error) return error;
    pthread_mutex_lock(&engine->lock);
    while (!engine->starting) pthread_cond_wait(&engine->done, &engine->lock);
    pthread_mutex_unlock(&engine->lock);
    engine->starting = 0;
    if (engine->refusal == 0) return 0;
    pthread_join(engine->threads[0], NULL);
    engine->thread_count = 0;
    return engine->refusal;
}

static int start(engine_t *engine) {
    engine_options_t *options = &engine->options;
    const size_t bytes = (size_t)(options->depth * options->buffer_bytes);
    engine->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (engine->event < 0) return errno;
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return errno;
    engine->buffers = pages;
    engine->kind = ENGINE_URING;
    int error = ENOSYS;
    if (options->kind != ENGINE_PREAD) error = start_uring(engine);
    if (!error || options->kind == ENGINE_URING) return error;
    engine->kind = ENGINE_PREAD;
    const int threads = options->depth < MOST_THREADS ? options->depth : MOST_THREADS;
    return start_threads(engine, run_pread, threads);
}

engine_t *engine_open(const engine_options_t *options, int *error) {
    engine_t *engine = calloc(1, sizeof(*engine));
    *error = ENOMEM;
    if (engine == NULL) return NULL;
    engine->options = *options;
    engine->event = -1;
    pthread_mutex_init(&engine->lock, NULL);
    pthread_cond_init(&engine->work, NULL);
    pthread_cond_init(&engine->done, NULL);
    *error = start(engine);
    if (*error == 0) return engine;
    engine_close(engine);
    return NULL;
}

void engine_close(engine_t *engine) {
    const engine_options_t *options = &engine->options;
    pthread_mutex_lock(&engine->lock);
    engine->stopping = 1;
    pthread_cond_broadcast(&engine->work);
    pthread_mutex_unlock(&engine->lock);
    for (int i = 0; i < engine->thread_count; i++) pthread_join(engine->threads[i], NULL);
    if (engine->buffers) munmap(engine->buffers, (size_t)(options->depth * options->buffer_bytes));
    if (engine->event >= 0) close(engine->event);
    pthread_cond_destroy(&engine->work);
    pthread_cond_destroy(&engine->done);
    pthread_mutex_destroy(&engine->lock);
    free(engine);
}

int engine_kind(const engine_t *engine, int *refusal) {
    *refusal = engine->refusal;
    return engine->kind;
}

int engine_event(const engine_t *engine) {
    return engine->event;
}

int engine_submit(engine_t *engine, batch_t *batch) {
    engine_counts_t *counts = &engine->counts;
    pthread_mutex_lock(&engine->lock);
    const int64_t most = engine->options.most_waiting;
    const int taken = counts->waiting == 0 || counts->waiting + batch->count <= most;
    if (taken) {
        for (int64_t i = 0; i < batch->count; i++) {
            batch->reads[i].batch = batch;
            batch->reads[i].next = i + 1 < batch->count ? &batch->reads[i + 1] : NULL;
        }
        batch->left = batch->count;
        if (engine->last) engine->last->next = batch->reads;
        else engine->first = batch->reads;
        engine->last = &batch->reads[batch->count - 1];
        counts->waiting += batch->count;
        if (batch->count == 1) pthread_cond_signal(&engine->work);
        else pthread_cond_broadcast(&engine->work);
    } else counts->refused++;
    pthread_mutex_unlock(&engine->lock);
    return taken;
}

void engine_wait(engine_t *engine, batch_t *batch) {
    pthread_mutex_lock(&engine->lock);
    while (!batch->done) pthread_cond_wait(&engine->done, &engine->lock);
    pthread_mutex_unlock(&engine->lock);
}

int engine_done(engine_t *engine, const batch_t *batch) {
    pthread_mutex_lock(&engine->lock);
    const int done = batch->done;
    pthread_mutex_unlock(&engine->lock);
    return done;
}

engine_counts_t engine_counts(engine_t *engine) {
    pthread_mutex_lock(&engine->lock);
    const engine_counts_t counts = engine->counts;
    pthread_mutex_unlock(&engine->lock);
    return counts;
}
