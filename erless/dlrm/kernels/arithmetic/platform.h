/* The processor: what the compiler may use in a function, and what this machine has.
 *
 * The code is compiled for any processor of its family. A function that is faster with more
 * instructions exists twice, and the choice is made when it runs. */
#ifndef ERLESS_PLATFORM_H
#define ERLESS_PLATFORM_H

#define ALWAYS_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#include <cpuid.h>

#define POPCNT __attribute__((target("popcnt,bmi,bmi2")))
#define HAS_POPCNT (__builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi2"))
#define AVX2 __attribute__((target("avx2")))
#define HAS_AVX2 __builtin_cpu_supports("avx2")

/* Whether the processor converts float16. Clang 14 does not know this name in
 * __builtin_cpu_supports, so the processor is asked. */
static inline int has_f16c(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#else
#define POPCNT
#define HAS_POPCNT 0
#define AVX2
#define HAS_AVX2 0
#endif

#endif
