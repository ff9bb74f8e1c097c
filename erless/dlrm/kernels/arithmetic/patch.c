/* Rows that stand in for stored ones. */
#include "arithmetic/patch.h"

#include <stdlib.h>

static int bits_for(int64_t count) {
    int bits = 6;
    while (((int64_t)1 << bits) < count) bits++;
    return bits;
}

/* The slot of `key`: its own, or the free one where it would go. */
static patch_slot_t *slot_of(const patch_t *patch, int64_t key) {
    const uint64_t mask = ((uint64_t)1 << patch->slot_bits) - 1;
    uint64_t at = patch_hash(key) >> (64 - patch->slot_bits);
    while (patch->slots[at].key != PATCH_FREE && patch->slots[at].key != key) at = (at + 1) & mask;
    return &patch->slots[at];
}

const uint8_t *patch_find(const patch_t *patch, int64_t key) {
    return slot_of(patch, key)->row;
}

int patch_open(patch_t *patch, int64_t count) {
    *patch = (patch_t){0};
    patch->slot_bits = bits_for(2 * count);
    patch->filter_bits = bits_for(count << PATCH_FILTER);
    const size_t slots = (size_t)1 << patch->slot_bits;
    patch->slots = malloc(slots * sizeof(*patch->slots));
    patch->filter = calloc((size_t)1 << (patch->filter_bits - 6), sizeof(*patch->filter));
    if (patch->slots == NULL || patch->filter == NULL) {
        patch_close(patch);
        return 0;
    }
    for (size_t s = 0; s < slots; s++) patch->slots[s] = (patch_slot_t){PATCH_FREE, NULL};
    return 1;
}

void patch_add(patch_t *patch, int64_t key, const uint8_t *row) {
    patch_slot_t *slot = slot_of(patch, key);
    const uint64_t bit = patch_hash(key) >> (64 - patch->filter_bits);
    patch->count += slot->key == PATCH_FREE;
    *slot = (patch_slot_t){key, row};
    patch->filter[bit >> 6] |= (uint64_t)1 << (bit & 63);
}

void patch_close(patch_t *patch) {
    free(patch->filter);
    free(patch->slots);
    *patch = (patch_t){0};
}
