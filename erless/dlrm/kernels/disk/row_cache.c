/* A bounded cache of rows. */
#include "disk/row_cache.h"

#include <string.h>
#include <sys/mman.h>

enum { HOTTEST = 3 };
#define KEY_BITS (((uint64_t)1 << 62) - 1)
#define ONE_HEAT ((uint64_t)1 << 62)

int row_cache_open(row_cache_t *cache, int64_t bytes, int64_t row_bytes) {
    const int64_t set_bytes = CACHE_WAYS * (row_bytes + (int64_t)sizeof(uint64_t));
    *cache = (row_cache_t){.row_bytes = row_bytes};
    if (bytes < set_bytes) return 1;
    const uint64_t sets = (uint64_t)(bytes / set_bytes);
    cache->bytes = (int64_t)sets * set_bytes;
    /* pages come when they are first written, so an idle function holds what it has read */
    void *pages = mmap(NULL, (size_t)cache->bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) return 0;
    cache->sets = sets;
    cache->keys = pages;
    cache->rows = (uint8_t *)pages + sets * CACHE_WAYS * sizeof(uint64_t);
    return 1;
}

void row_cache_close(row_cache_t *cache) {
    if (cache->keys) munmap(cache->keys, (size_t)cache->bytes);
    *cache = (row_cache_t){0};
}

static uint8_t *row_at(const row_cache_t *cache, uint64_t set, int way) {
    return cache->rows + ((int64_t)set * CACHE_WAYS + way) * cache->row_bytes;
}

const uint8_t *row_cache_find(row_cache_t *cache, uint64_t key) {
    if (cache->sets == 0) return NULL;
    const uint64_t set = row_cache_set(cache, key);
    uint64_t *keys = cache->keys + set * CACHE_WAYS;
    for (int way = 0; way < CACHE_WAYS; way++)
        if ((keys[way] & KEY_BITS) == key + 1) {
            keys[way] = (uint64_t)HOTTEST << 62 | (key + 1);
            return row_at(cache, set, way);
        }
    return NULL;
}

/* The way that makes room: an empty one, or the first of least heat; the others cool by that. */
static int victim(uint64_t *keys) {
    uint64_t least = HOTTEST;
    int chosen = 0;
    for (int way = 0; way < CACHE_WAYS; way++) {
        if (keys[way] == 0) return way;
        if (keys[way] >> 62 < least) {
            least = keys[way] >> 62;
            chosen = way;
        }
    }
    for (int way = 0; least && way < CACHE_WAYS; way++) keys[way] -= least * ONE_HEAT;
    return chosen;
}

void row_cache_put(row_cache_t *cache, uint64_t key, const uint8_t *row) {
    if (cache->sets == 0) return;
    const uint64_t set = row_cache_set(cache, key);
    uint64_t *keys = cache->keys + set * CACHE_WAYS;
    for (int way = 0; way < CACHE_WAYS; way++)
        if ((keys[way] & KEY_BITS) == key + 1) return; /* another query read it, too */
    const int way = victim(keys);
    keys[way] = key + 1;
    memcpy(row_at(cache, set, way), row, (size_t)cache->row_bytes);
}
