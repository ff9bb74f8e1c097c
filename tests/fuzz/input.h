/* The fuzzer's bytes, taken as numbers. When they run out, all numbers are 0. */
#ifndef ERLESS_FUZZ_INPUT_H
#define ERLESS_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const uint8_t *next, *end;
} input_t;

static inline uint8_t any_byte(input_t *input) {
    return input->next < input->end ? *input->next++ : 0;
}

static inline int64_t any_bits(input_t *input, int bytes) {
    uint64_t bits = 0;
    for (int k = 0; k < bytes; k++) bits = bits << 8 | any_byte(input);
    return (int64_t)bits;
}

/* One of low … high. */
static inline int64_t any_of(input_t *input, int64_t low, int64_t high) {
    return low + (int64_t)((uint64_t)any_bits(input, 2) % (uint64_t)(high - low + 1));
}

/* Mostly one of 0 … limit - 1, sometimes a number at a limit of its type, or any number. */
static inline int64_t any_id(input_t *input, int64_t limit, int wide) {
    static const int64_t limits[] = {INT32_MIN, INT32_MAX, INT64_MIN, INT64_MAX, -1, UINT32_MAX};
    const uint8_t choice = any_byte(input);
    if (choice < 240) return any_of(input, 0, limit - 1);
    const int64_t number = choice < 246 ? limits[choice - 240] : any_bits(input, 8);
    return wide ? number : (int32_t)number;
}

/* Memory of exactly this size, so that the sanitizer sees the first byte beyond it. */
static inline void *exactly(size_t bytes) {
    void *memory = calloc(bytes ? bytes : 1, 1);
    if (memory == NULL) abort();
    return memory;
}

#define REQUIRE(condition)                  \
    do {                                    \
        if (!(condition)) __builtin_trap(); \
    } while (0)

#endif
