/* The checks that pooling and routing share. */
#include "arithmetic/ids.h"

int lengths_fit(const bags_t *bags, int64_t size, fault_t *fault) {
    int64_t total = 0;
    if (size > MAX_IDS) {
        *fault = (fault_t){FAULT_SIZE, 0, 0, 0, size};
        return 0;
    }
    for (int64_t t = 0; t < bags->tables; t++) {
        const int32_t *lengths = lengths_in(bags, t);
        const int64_t count = bags_of(bags, t);
        for (int64_t b = 0; b < count; b++) {
            if (lengths[b] < 0) {
                *fault = (fault_t){FAULT_LENGTH, t, b, total, lengths[b]};
                return 0;
            }
            total += lengths[b];
        }
    }
    if (total != size) *fault = (fault_t){FAULT_TOTAL, 0, 0, size, total};
    return total == size;
}
