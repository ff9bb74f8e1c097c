/* A query on rows that lie on a disk. */
#include "disk/lookup.h"

#include <stdlib.h>

#include "arithmetic/index.h"

/* ---- caches ---- */

int disk_open_caches(disk_t *disk, int64_t cache_bytes) {
    double total = 0;
    for (int64_t s = 0; s < disk->count; s++) total += (double)disk->extents[s].bytes;
    for (int64_t s = 0; s < disk->count; s++) {
        int c = 0;
        while (c < disk->cache_count && disk->caches[c].row_bytes != disk->slices[s].row_bytes) c++;
        disk->cache_of[s] = c;
        if (c < disk->cache_count) continue;
        double mine = 0;
        for (int64_t other = s; other < disk->count; other++)
            if (disk->slices[other].row_bytes == disk->slices[s].row_bytes)
                mine += (double)disk->extents[other].bytes;
        const int64_t bytes = total > 0 ? (int64_t)((double)cache_bytes * (mine / total)) : 0;
        if (!row_cache_open(&disk->caches[c], bytes, disk->slices[s].row_bytes)) return 0;
        disk->cache_count++;
    }
    return 1;
}

void disk_close_caches(disk_t *disk) {
    for (int64_t c = 0; c < disk->cache_count; c++) row_cache_close(&disk->caches[c]);
}

static uint64_t key_of(int64_t s, int64_t local) {
    return (uint64_t)s << 47 | (uint64_t)local;
}

static int64_t slice_of(uint64_t key) {
    return (int64_t)(key >> 47);
}

static int64_t local_of(uint64_t key) {
    return (int64_t)(key & (((uint64_t)1 << 47) - 1));
}

/* ---- rows that the cache does not have ---- */

typedef struct {
    uint64_t key;
    int64_t place; /* among the query's ids */
} miss_t;

/* Sort by key, a byte at a time; `spare` has as many. Returns which of the two is in order. */
static miss_t *sort_misses(miss_t *misses, miss_t *spare, int64_t count) {
    uint64_t differ = 0;
    for (int64_t i = 1; i < count; i++) differ |= misses[i].key ^ misses[0].key;
    for (int shift = 0; shift < 64; shift += 8) {
        int64_t begins[257] = {0};
        if ((differ >> shift & 0xff) == 0) continue;
        for (int64_t i = 0; i < count; i++) begins[(misses[i].key >> shift & 0xff) + 1]++;
        for (int byte = 0; byte < 256; byte++) begins[byte + 1] += begins[byte];
        for (int64_t i = 0; i < count; i++)
            spare[begins[misses[i].key >> shift & 0xff]++] = misses[i];
        miss_t *sorted = spare;
        spare = misses;
        misses = sorted;
    }
    return misses;
}

/* The row in memory that was added as `id`; NULL: none was. */
static const uint8_t *added_row(const slice_t *slice, int64_t id) {
    if (slice->patch == NULL || id < slice->indexed || id >= slice->table_rows) return NULL;
    return patch_added_row(slice->patch, id);
}

/* Turn the `n` ids of slice s, from `begin` on, into keys; rows that lie in memory are found at
 * once. Returns the first id that is no row, or -1. */
static int64_t find_slice_keys(const ask_t *ask, int64_t s, int64_t begin, int64_t n,
                               uint64_t *keys, const uint8_t **rows) {
    const slice_t *slice = &ask->slices[s];
    const ids_t *values = &ask->values;
    const int replacing = slice->patch && slice->patch->replacing;
    for (int64_t done = 0; done < n; done++) {
        const int64_t at = begin + done;
        const ids_t ids = {(const char *)values->data + (size_t)at * id_width(values), n - done,
                           values->wide};
        int64_t *locals = (int64_t *)(keys + at), absent = 0;
        const int64_t bad = index_find(slice->blocks, slice->indexed, &ids, locals, &absent);
        const int64_t known = bad < 0 ? n - done : bad;
        for (int64_t i = 0; i < known; i++) {
            const int64_t local = locals[i];
            /* a damaged index must not become a wild read */
            if ((uint64_t)local >= (uint64_t)slice->stored) return done + i;
            keys[at + i] = key_of(s, local);
            if (replacing && patch_replaces(slice->patch, local))
                rows[at + i] = patch_stored_row(slice->patch, local);
        }
        if (bad < 0) break;
        done += bad; /* no stored row: perhaps an added one */
        rows[begin + done] = added_row(slice, id_at(values, begin + done));
        if (rows[begin + done] == NULL) return done;
        keys[begin + done] = key_of(s, 0);
    }
    return -1;
}

/* Turn ids into keys: `keys[i]` is that of the query's i-th id, `rows[i]` where its row lies in
 * memory, if it was changed. Returns 0 with a fault. */
static int find_keys(const ask_t *ask, uint64_t *keys, const uint8_t **rows, fault_t *fault) {
    const ids_t *values = &ask->values;
    int64_t begin = 0;
    if (!pool_fits(ask->slices, values->size, ask->weights, &ask->bags, fault)) return 0;
    for (int64_t s = 0; s < ask->bags.tables; s++) {
        const slice_t *slice = &ask->slices[s];
        const int64_t n = ids_in(&ask->bags, s);
        const int64_t bad = find_slice_keys(ask, s, begin, n, keys, rows);
        if (bad >= 0) {
            *fault = id_fault(slice, s, values, begin, lengths_in(&ask->bags, s), bad);
            return 0;
        }
        begin += n;
    }
    return 1;
}

enum { CACHE_AHEAD = 16 };

/* Look every row up that was not found yet. Those that are not there are listed. Returns how many.
 */
static int64_t find_cached(disk_t *disk, const uint64_t *keys, int64_t n, const uint8_t **rows,
                           miss_t *misses) {
    int64_t missed = 0;
    for (int64_t i = 0; i < n; i++) {
        if (i + CACHE_AHEAD < n) {
            const uint64_t next = keys[i + CACHE_AHEAD];
            const row_cache_t *cache = &disk->caches[disk->cache_of[slice_of(next)]];
            if (cache->sets)
                __builtin_prefetch(cache->keys + CACHE_WAYS * row_cache_set(cache, next), 1);
        }
        if (rows[i] != NULL) continue;
        rows[i] = row_cache_find(&disk->caches[disk->cache_of[slice_of(keys[i])]], keys[i]);
        if (rows[i] == NULL) misses[missed++] = (miss_t){keys[i], i};
    }
    return missed;
}

/* Copy what the cache had: other queries change it while this one waits. Returns the end. */
static uint8_t *keep_cached(const disk_t *disk, const uint64_t *keys, int64_t n,
                            const uint8_t **rows, uint8_t *to) {
    for (int64_t i = 0; i < n; i++)
        if (rows[i] != NULL) {
            const size_t bytes = (size_t)disk->slices[slice_of(keys[i])].row_bytes;
            rows[i] = memcpy(to, rows[i], bytes);
            to += bytes;
        }
    return to;
}

/* List the distinct rows of the sorted misses, and where each shall be. */
static void list_rows(const disk_t *disk, const miss_t *misses, int64_t missed, uint8_t *to,
                      lookup_t *lookup) {
    int64_t count = 0;
    for (int64_t i = 0; i < missed; i++) {
        const uint64_t key = misses[i].key;
        if (i == 0 || key != misses[i - 1].key) {
            const int64_t bytes = disk->slices[slice_of(key)].row_bytes;
            lookup->keys[count] = key;
            lookup->stretches[count++] = (stretch_t){local_of(key) * bytes, bytes, to};
            to += bytes;
        }
        lookup->rows[misses[i].place] = lookup->stretches[count - 1].to;
    }
    lookup->count = count;
}

/* Make reads of the listed rows; those whose blocks touch share one. */
static void list_reads(const disk_t *disk, lookup_t *lookup) {
    batch_t *batch = &lookup->batch;
    for (int64_t i = 0; i < lookup->count; i++) {
        const stretch_t *stretch = &lookup->stretches[i];
        const extent_t *extent = &disk->extents[slice_of(lookup->keys[i])];
        const int64_t begin = extent->begin + stretch->at, end = begin + stretch->bytes;
        const int64_t first = begin - begin % DISK_BLOCK;
        const int64_t past = (end + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK;
        read_t *read = batch->count ? &batch->reads[batch->count - 1] : NULL;
        if (read != NULL && read->extent == extent && first <= read->at + read->bytes &&
            past - read->at <= disk->buffer_bytes) {
            read->bytes = past - read->at;
            read->count++;
            continue;
        }
        batch->reads[batch->count++] =
            (read_t){extent, first, past - first, stretch, 1, NULL, NULL};
    }
}

/* ---- a query ---- */

void lookup_free(lookup_t *lookup) {
    if (lookup == NULL) return;
    free(lookup->batch.reads);
    free(lookup->rows);
    free(lookup->keys);
    free(lookup->stretches);
    free(lookup->scratch);
    free(lookup);
}

/* Have a lookup of the rows that were missed. Returns NULL without memory. */
static lookup_t *plan_lookup(const disk_t *disk, const ask_t *ask, const uint64_t *keys,
                             const uint8_t **rows, const miss_t *misses, int64_t missed) {
    lookup_t *lookup = calloc(1, sizeof(*lookup));
    size_t bytes = 0;
    if (lookup == NULL) return NULL;
    for (int64_t i = 0; i < ask->values.size; i++)
        bytes += (size_t)disk->slices[slice_of(keys[i])].row_bytes;
    lookup->ask = *ask;
    lookup->keys = malloc((size_t)missed * sizeof(*lookup->keys));
    lookup->stretches = malloc((size_t)missed * sizeof(*lookup->stretches));
    lookup->batch.reads = malloc((size_t)missed * sizeof(*lookup->batch.reads));
    lookup->scratch = malloc(bytes);
    if (!lookup->keys || !lookup->stretches || !lookup->batch.reads || !lookup->scratch) {
        lookup_free(lookup);
        return NULL;
    }
    lookup->rows = rows;
    uint8_t *end = keep_cached(disk, keys, ask->values.size, rows, lookup->scratch);
    list_rows(disk, misses, missed, end, lookup);
    list_reads(disk, lookup);
    return lookup;
}

static int64_t pool_ask(const ask_t *ask, const uint8_t **rows, fault_t *fault) {
    for (int64_t i = 0; i < POOL_AHEAD; i++)
        rows[ask->values.size + i] = ask->values.size ? rows[0] : NULL;
    return pool_rows(ask->slices, rows, ask->weights, &ask->bags, ask->out, ask->stride,
                     ask->columns, ask->packed, fault);
}

int disk_begin(disk_t *disk, const ask_t *ask, lookup_t **lookup, int64_t *written,
               fault_t *fault) {
    const size_t n = (size_t)ask->values.size;
    uint64_t *keys = malloc((n + 1) * sizeof(*keys));
    miss_t *misses = malloc((2 * n + 1) * sizeof(*misses));
    const uint8_t **rows = calloc(n + POOL_AHEAD, sizeof(*rows));
    int outcome = DISK_FAULT;
    *lookup = NULL;
    if (!keys || !misses || !rows) fault->kind = FAULT_MEMORY;
    else if (find_keys(ask, keys, rows, fault)) {
        const int64_t missed = find_cached(disk, keys, (int64_t)n, rows, misses);
        if (missed == 0) {
            *written = pool_ask(ask, rows, fault);
            outcome = fault->kind ? DISK_FAULT : DISK_ANSWERED;
        } else {
            const miss_t *sorted = sort_misses(misses, misses + n, missed);
            *lookup = plan_lookup(disk, ask, keys, rows, sorted, missed);
            if (*lookup == NULL) fault->kind = FAULT_MEMORY;
            else outcome = engine_submit(disk->engine, &(*lookup)->batch) ? DISK_WAITS : DISK_BUSY;
        }
        if (outcome < DISK_BUSY) disk->hits += (int64_t)n - missed;
    }
    free(keys);
    free(misses);
    if (*lookup == NULL) free(rows);
    if (outcome == DISK_BUSY) {
        lookup_free(*lookup);
        *lookup = NULL;
    }
    return outcome;
}

int64_t disk_finish(disk_t *disk, lookup_t *lookup, fault_t *fault) {
    for (int64_t i = 0; i < lookup->count; i++) {
        const uint64_t key = lookup->keys[i];
        row_cache_put(&disk->caches[disk->cache_of[slice_of(key)]], key, lookup->stretches[i].to);
    }
    disk->misses += lookup->count;
    return pool_ask(&lookup->ask, lookup->rows, fault);
}
