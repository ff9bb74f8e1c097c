/* IEEE 754 binary16 in integer arithmetic: exact, and the same on every processor. */
#ifndef ERLESS_FLOAT16_H
#define ERLESS_FLOAT16_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "arithmetic/platform.h"

static inline float float16_to_float(uint16_t bits16) {
    const uint32_t sign = (uint32_t)(bits16 & 0x8000) << 16, exponent = bits16 >> 10 & 31;
    uint32_t fraction = bits16 & 0x3ff, bits;
    float value;
    if (exponent == 31) bits = sign | 0x7f800000 | fraction << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | fraction << 13;
    else { /* subnormal: fraction * 2^-24 */ value = (float)fraction * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, 4);
    return value;
}

/* Rounds to the nearest, ties to even. */
static inline uint16_t float_to_float16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    const float size = fabsf(value);
    if (size != size) return sign | 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 6.103515625e-5f) /* subnormal: let the addition round */
        return sign | (uint16_t)lrintf(size * 16777216.0f);
    bits &= 0x7fffffff;
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (uint16_t)((bits >> 13) - (112 << 10));
}

static ALWAYS_INLINE float load_float(const uint8_t *at) {
    float value;
    memcpy(&value, at, 4);
    return value;
}

static ALWAYS_INLINE float load_float16(const uint8_t *at) {
    uint16_t bits;
    memcpy(&bits, at, 2);
    return float16_to_float(bits);
}

#endif
