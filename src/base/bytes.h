/* SPDX-License-Identifier: MIT */
/*
 * base/bytes.h - big and little endian integers as they lie on disk
 *
 * Byte-array structs: they never pad, never misalign, and cannot be used as a number by mistake.
 */
#ifndef VARVE_BASE_BYTES_H
#define VARVE_BASE_BYTES_H

#include <stdint.h>

typedef struct { uint8_t b[2]; } be16;
typedef struct { uint8_t b[4]; } be32;
typedef struct { uint8_t b[8]; } be64;
typedef struct { uint8_t b[2]; } le16;
typedef struct { uint8_t b[4]; } le32;
typedef struct { uint8_t b[8]; } le64;

static inline uint16_t be16_get(be16 v)
{
	return (uint16_t)(v.b[0] << 8 | v.b[1]);
}

static inline uint32_t be32_get(be32 v)
{
	uint32_t x;

	__builtin_memcpy(&x, v.b, sizeof(x));
	return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? __builtin_bswap32(x) : x;
}

static inline uint64_t be64_get(be64 v)
{
	uint64_t x;

	__builtin_memcpy(&x, v.b, sizeof(x));
	return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? __builtin_bswap64(x) : x;
}

static inline be16 be16_put(uint16_t x)
{
	return (be16){ { (uint8_t)(x >> 8), (uint8_t)x } };
}

static inline be32 be32_put(uint32_t x)
{
	be32 v;

	x = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? __builtin_bswap32(x) : x;
	__builtin_memcpy(v.b, &x, sizeof(x));
	return v;
}

static inline be64 be64_put(uint64_t x)
{
	be64 v;

	x = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? __builtin_bswap64(x) : x;
	__builtin_memcpy(v.b, &x, sizeof(x));
	return v;
}

static inline uint16_t le16_get(le16 v)
{
	return (uint16_t)(v.b[1] << 8 | v.b[0]);
}

static inline uint32_t le32_get(le32 v)
{
	uint32_t x;

	__builtin_memcpy(&x, v.b, sizeof(x));
	return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? __builtin_bswap32(x) : x;
}

static inline uint64_t le64_get(le64 v)
{
	uint64_t x;

	__builtin_memcpy(&x, v.b, sizeof(x));
	return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? __builtin_bswap64(x) : x;
}

static inline le16 le16_put(uint16_t x)
{
	return (le16){ { (uint8_t)x, (uint8_t)(x >> 8) } };
}

static inline le32 le32_put(uint32_t x)
{
	le32 v;

	x = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? __builtin_bswap32(x) : x;
	__builtin_memcpy(v.b, &x, sizeof(x));
	return v;
}

static inline le64 le64_put(uint64_t x)
{
	le64 v;

	x = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? __builtin_bswap64(x) : x;
	__builtin_memcpy(v.b, &x, sizeof(x));
	return v;
}

#endif
