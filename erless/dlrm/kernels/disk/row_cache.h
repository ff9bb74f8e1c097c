/* A bounded cache of rows that were read from a disk.
 *
 * Rows lie in sets of 8 (a row's set is the hash of its key), so a look-up touches one cache line
 * of keys. Each row has a heat of 0 to 3: 0 when it comes, 3 when it is asked for again. The row of
 * least heat makes room (re-reference interval prediction, Jaleel et al., ISCA 2010), so that rows
 * asked for once do not push out those asked for often. */
#ifndef ERLESS_ROW_CACHE_H
#define ERLESS_ROW_CACHE_H

#include <stdint.h>

enum { CACHE_WAYS = 8 };
#define MAX_CACHE_KEY (((uint64_t)1 << 62) - 2)

typedef struct {
    uint64_t *keys; /* (sets, CACHE_WAYS): heat << 62 | key + 1; 0: nothing */
    uint8_t *rows;  /* (sets, CACHE_WAYS, row_bytes) */
    uint64_t sets;
    int64_t row_bytes;
    int64_t bytes; /* of the mapping that both lie in */
} row_cache_t;

/* Have a cache of at most `bytes` (its keys count). Returns 0 without memory. Less than one set is
 * no cache: it never finds anything. */
int row_cache_open(row_cache_t *cache, int64_t bytes, int64_t row_bytes);
void row_cache_close(row_cache_t *cache);

static inline uint64_t row_cache_set(const row_cache_t *cache, uint64_t key) {
    const uint64_t hash = key * 0x9e3779b97f4a7c15u;
    return (uint64_t)(((unsigned __int128)(hash ^ hash >> 29) * cache->sets) >> 64);
}

/* The row of `key`, valid until the next row is put in; or NULL. */
const uint8_t *row_cache_find(row_cache_t *cache, uint64_t key);
void row_cache_put(row_cache_t *cache, uint64_t key, const uint8_t *row);

#endif
