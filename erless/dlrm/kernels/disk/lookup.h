/* A query on rows that lie on a disk: what the cache has, what has to be read, and the pooling. */
#ifndef ERLESS_LOOKUP_H
#define ERLESS_LOOKUP_H

#include "arithmetic/gather.h"
#include "disk/engine.h"
#include "disk/row_cache.h"

enum { MOST_SLICES = 1 << 14 };
#define MOST_DISK_ROWS ((int64_t)1 << 47)

/* A slice whose rows are in a file: `slice.rows` is NULL. */
typedef struct {
    slice_t *slices;
    extent_t *extents;
    int *cache_of; /* slices whose rows have as many bytes share a cache */
    row_cache_t *caches;
    int64_t count, cache_count;
    int64_t buffer_bytes; /* most of one read */
    engine_t *engine;
    int64_t hits, misses; /* gathers that the cache answered; rows that were read */
} disk_t;

/* Where a query's answer goes: the arguments of `pool`. They stay there until it is done. */
typedef struct {
    const slice_t *slices; /* the disk's, perhaps with rows that were changed or added in memory */
    ids_t values;
    const float *weights;
    bags_t bags;
    float *out;
    int64_t stride;
    const int64_t *columns;
    int packed;
} ask_t;

/* A query that waits for rows. */
typedef struct {
    batch_t batch;
    ask_t ask;
    const uint8_t **rows; /* of each id */
    uint64_t *keys;       /* of the rows that are read */
    stretch_t *stretches; /* likewise: where each is */
    uint8_t *scratch;     /* rows that are read, and those that the cache had */
    int64_t count;        /* of keys and stretches */
} lookup_t;

/* Have caches of `cache_bytes` together, shared out by the bytes of each slice. Returns 0 without
 * memory. */
int disk_open_caches(disk_t *disk, int64_t cache_bytes);
void disk_close_caches(disk_t *disk);

enum { DISK_ANSWERED, DISK_WAITS, DISK_BUSY, DISK_FAULT };

/* Begin with a query. DISK_ANSWERED: the cache had all, `*written` floats are there. DISK_WAITS:
 * `*lookup` waits for its batch. DISK_BUSY: too many reads wait. DISK_FAULT: `fault` says why. */
int disk_begin(disk_t *disk, const ask_t *ask, lookup_t **lookup, int64_t *written, fault_t *fault);

/* Pool the rows of a lookup whose batch is done without a fault, and keep them in the cache.
 * Returns the floats written. */
int64_t disk_finish(disk_t *disk, lookup_t *lookup, fault_t *fault);

void lookup_free(lookup_t *lookup);

#endif
