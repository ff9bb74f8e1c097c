/* Rows on a disk: any queries against any slices, with any cache, compared with rows in memory. */
#include "disk/checksum.h"
#include "disk/lookup.h"
#include "tables.h"

#include <stdio.h>
#include <unistd.h>

typedef struct {
    int64_t count, rows[MOST_TABLES];
    slice_t slices[MOST_TABLES], on_disk[MOST_TABLES];
    extent_t extents[MOST_TABLES];
    row_cache_t caches[MOST_TABLES];
    int cache_of[MOST_TABLES];
    disk_t disk;
} shard_t;

static engine_t *engine; /* one for all inputs: its threads are slow to start */

/* Write the rows of slice s to a file of its own. */
static void put_on_disk(input_t *input, shard_t *shard, int64_t s) {
    const slice_t *slice = &shard->slices[s];
    const size_t bytes = (size_t)(slice->stored * slice->row_bytes);
    FILE *file = tmpfile();
    REQUIRE(file != NULL);
    const int64_t begin = any_byte(input) & 1 ? DISK_BLOCK : any_of(input, 0, 3 * DISK_BLOCK);
    REQUIRE(pwrite(fileno(file), slice->rows, bytes, begin) == (ssize_t)bytes);
    extent_t *extent = &shard->extents[s];
    *extent = (extent_t){.fd = dup(fileno(file)), .begin = begin, .bytes = (int64_t)bytes};
    fclose(file);
    if (begin % DISK_BLOCK == 0) {
        const size_t blocks = (bytes + DISK_BLOCK - 1) / DISK_BLOCK;
        uint32_t *sums = exactly(blocks * sizeof(*sums));
        for (size_t b = 0; b < blocks; b++) {
            const size_t left = bytes - b * DISK_BLOCK;
            sums[b] = crc32c(slice->rows + b * DISK_BLOCK, left < DISK_BLOCK ? left : DISK_BLOCK);
        }
        extent->checksums = sums;
    }
    shard->on_disk[s] = *slice;
    shard->on_disk[s].rows = NULL;
}

static void make_shard(input_t *input, shard_t *shard) {
    uint8_t stored[MOST_ROWS];
    *shard = (shard_t){.count = any_of(input, 1, MOST_TABLES)};
    for (int64_t s = 0; s < shard->count; s++) {
        const int64_t rows = shard->rows[s] = any_of(input, 1, MOST_ROWS);
        const uint8_t part = any_byte(input); /* 0: every row is stored */
        for (int64_t id = 0; id < rows; id++) stored[id] = part == 0 || id % part != 1;
        stored[0] = 1;
        shard->slices[s] =
            make_slice(input, s, rows, any_of(input, 1, 70), part ? stored : NULL, GROWN);
        put_on_disk(input, shard, s);
    }
    shard->disk = (disk_t){.slices = shard->on_disk,
                           .extents = shard->extents,
                           .cache_of = shard->cache_of,
                           .caches = shard->caches,
                           .count = shard->count,
                           .buffer_bytes = 4 * DISK_BLOCK,
                           .engine = engine};
    REQUIRE(disk_open_caches(&shard->disk, any_of(input, 0, 60000)));
}

static void check_query(input_t *input, shard_t *shard) {
    const query_t query = make_query(input, shard->count, shard->rows, 1);
    fault_t expected = {0}, fault = {0};
    const size_t floats = (size_t)packed_size(shard->slices, &query.bags);
    float *plain = exactly(sizeof(float) * floats), *read = exactly(sizeof(float) * floats);
    const int64_t written = pool(shard->slices, &query.values, query.weights, &query.bags, plain, 0,
                                 NULL, 1, &expected);
    const ask_t ask = {shard->on_disk, query.values, query.weights, query.bags, read, 0, NULL, 1};
    lookup_t *lookup;
    int64_t found = 0;
    const int outcome = disk_begin(&shard->disk, &ask, &lookup, &found, &fault);
    REQUIRE(outcome != DISK_BUSY);
    if (outcome == DISK_WAITS) {
        engine_wait(engine, &lookup->batch);
        REQUIRE(lookup->batch.fault == READ_FINE);
        found = disk_finish(&shard->disk, lookup, &fault);
        lookup_free(lookup);
    }
    REQUIRE(same_fault(&fault, &expected));
    if (!fault.kind) {
        REQUIRE(found == written);
        REQUIRE(memcmp(plain, read, sizeof(float) * (size_t)written) == 0);
    }
    free(plain);
    free(read);
    free_query(&query);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const engine_options_t options = {ENGINE_AUTO, 8, 4 * DISK_BLOCK, 1 << 20};
    int error;
    (void)argc;
    (void)argv;
    gather_choose();
    engine = engine_open(&options, &error);
    REQUIRE(engine != NULL);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input_t input = {data, data + size};
    shard_t shard;
    make_shard(&input, &shard);
    for (int64_t queries = any_of(&input, 1, 4); queries > 0; queries--)
        check_query(&input, &shard);
    disk_close_caches(&shard.disk);
    for (int64_t s = 0; s < shard.count; s++) {
        close(shard.extents[s].fd);
        free((void *)shard.extents[s].checksums);
        free_slice(&shard.slices[s]);
    }
    return 0;
}
