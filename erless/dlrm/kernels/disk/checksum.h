/* CRC-32C (Castagnoli, RFC 3720 appendix B.4): what tells whether a block read from a disk is the
 * one that was packed. */
#ifndef ERLESS_CHECKSUM_H
#define ERLESS_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c(const uint8_t *data, size_t size);

#endif
