/* CRC-32C by the processor's instruction where it has one, by a table elsewhere. */
#include "disk/checksum.h"

#include <string.h>

enum { POLYNOMIAL = 0x82f63b78 }; /* of Castagnoli, reflected */

static uint32_t table[256];

__attribute__((constructor)) static void fill_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? (uint32_t)POLYNOMIAL : 0);
        table[byte] = crc;
    }
}

static uint32_t crc_bytes(uint32_t crc, const uint8_t *data, size_t size) {
    for (size_t i = 0; i < size; i++) crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
    return crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>

#define CRC_TARGET __attribute__((target("sse4.2")))
#define HAS_CRC __builtin_cpu_supports("sse4.2")
#define CRC_WORD(crc, word) ((uint32_t)_mm_crc32_u64(crc, word))
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

#define CRC_TARGET
#define HAS_CRC (getauxval(AT_HWCAP) >> 7 & 1) /* HWCAP_CRC32 */
#define CRC_WORD(crc, word) crc_word(crc, word)
static inline uint32_t crc_word(uint32_t crc, uint64_t word) {
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    return crc;
}
#endif

#if defined(CRC_TARGET)
enum { LANE = 1024 }; /* bytes of each of four strings that the processor works on at once */

static uint32_t zeros[4][256]; /* what LANE zero bytes make of each byte of a CRC */

__attribute__((constructor)) static void fill_zeros(void) {
    static const uint8_t nothing[LANE];
    fill_table();
    for (int place = 0; place < 4; place++)
        for (uint32_t byte = 0; byte < 256; byte++)
            zeros[place][byte] = crc_bytes(byte << (8 * place), nothing, LANE);
}

/* The CRC register after LANE zero bytes: a CRC is linear, so strings that follow each other are
 * worked on apart and put together with this. */
static uint32_t shift_lane(uint32_t crc) {
    return zeros[0][crc & 0xff] ^ zeros[1][crc >> 8 & 0xff] ^ zeros[2][crc >> 16 & 0xff] ^
           zeros[3][crc >> 24];
}

static inline uint64_t word_at(const uint8_t *data) {
    uint64_t word;
    memcpy(&word, data, 8);
    return word;
}

CRC_TARGET static uint32_t crc_words(uint32_t crc, const uint8_t *data, size_t size) {
    for (; size >= 4 * LANE; data += 4 * LANE, size -= 4 * LANE) {
        uint32_t a = crc, b = 0, c = 0, d = 0; /* an instruction takes 3 cycles, one begins each */
        for (int at = 0; at < LANE; at += 8) {
            a = CRC_WORD(a, word_at(data + at));
            b = CRC_WORD(b, word_at(data + LANE + at));
            c = CRC_WORD(c, word_at(data + 2 * LANE + at));
            d = CRC_WORD(d, word_at(data + 3 * LANE + at));
        }
        crc = shift_lane(shift_lane(shift_lane(a) ^ b) ^ c) ^ d;
    }
    for (; size >= 8; data += 8, size -= 8) crc = CRC_WORD(crc, word_at(data));
    return crc_bytes(crc, data, size);
}
#endif

uint32_t crc32c(const uint8_t *data, size_t size) {
#if defined(CRC_TARGET)
    if (HAS_CRC) return ~crc_words(~0u, data, size);
#endif
    return ~crc_bytes(~0u, data, size);
}
