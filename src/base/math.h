/* SPDX-License-Identifier: MIT */
/*
 * base/math.h - checked arithmetic and alignment
 *
 * u64_add() and u64_mul() report overflow: true means the result does not fit and *sum is unusable.
 * Every value that came from a file, a guest or a peer goes through them.
 */
#ifndef VARVE_BASE_MATH_H
#define VARVE_BASE_MATH_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KiB(n) ((uint64_t)(n) << 10)
#define MiB(n) ((uint64_t)(n) << 20)
#define GiB(n) ((uint64_t)(n) << 30)
#define TiB(n) ((uint64_t)(n) << 40)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* The largest length of anything: keeps off + len of checked values inside a signed 64-bit off_t. */
#define VARVE_LEN_MAX ((uint64_t)INT64_MAX)

static inline bool u64_add(uint64_t a, uint64_t b, uint64_t *ret_sum)
{
	return __builtin_add_overflow(a, b, ret_sum);
}

static inline bool u64_mul(uint64_t a, uint64_t b, uint64_t *ret_product)
{
	return __builtin_mul_overflow(a, b, ret_product);
}

static inline bool is_pow2(uint64_t x)
{
	return x && !(x & (x - 1));
}

/* align must be a power of two. */
static inline uint64_t align_down(uint64_t x, uint64_t align)
{
	return x & ~(align - 1);
}

/* align must be a power of two; x + align must not overflow (x <= VARVE_LEN_MAX is enough). */
static inline uint64_t align_up(uint64_t x, uint64_t align)
{
	return (x + align - 1) & ~(align - 1);
}

static inline bool is_aligned(uint64_t x, uint64_t align)
{
	return !(x & (align - 1));
}

static inline uint64_t div_up(uint64_t x, uint64_t by)
{
	return x / by + (x % by != 0);
}

/* Number of the lowest set bit of a power of two. */
static inline unsigned log2_u64(uint64_t x)
{
	assert(x);
	return 63 - (unsigned)__builtin_clzll(x);
}

#endif
