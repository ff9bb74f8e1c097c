/* The checks that pooling and routing share. */
#include "arithmetic/ids.h"

int lengths_fit(const int32_t *lengths, int64_t tables, int64_t samples, int64_t size,
                fault_t *fault) {
    int64_t total = 0;
    if (size > MAX_IDS) {
        *fault = (fault_t){FAULT_SIZE, 0, 0, 0, size};
        return 0;
    }
    for (int64_t t = 0; t < tables; t++)
        for (int64_t b = 0; b < samples; b++) {
            const int32_t length = lengths[t * samples + b];
            if (length < 0) {
                *fault = (fault_t){FAULT_LENGTH, t, b, total, length};
                return 0;
            }
            total += length;
        }
    if (total != size) *fault = (fault_t){FAULT_TOTAL, 0, 0, size, total};
    return total == size;
}
