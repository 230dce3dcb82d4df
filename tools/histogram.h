/* SPDX-License-Identifier: MIT */
/*
 * tools/histogram.h - a histogram of durations, each counted to within one percent
 *
 * Owns:    its counters, which are part of the struct: nothing is allocated.
 * Assumes: one thread adds; reading happens when it has stopped. All zero bytes is the empty histogram.
 * Never:   loses a value: every 64-bit number has a bucket.
 *
 * A value is filed under its highest bit and the HISTOGRAM_BITS bits behind it, so no bucket is wider than
 * 1 / 2^HISTOGRAM_BITS of the values in it. Smaller values have a bucket each.
 */
#ifndef VARVE_TOOLS_HISTOGRAM_H
#define VARVE_TOOLS_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_BITS 7
#define HISTOGRAM_ROW (1u << HISTOGRAM_BITS) /* buckets for each power of two */
#define HISTOGRAM_BUCKETS ((64 - HISTOGRAM_BITS + 1) * HISTOGRAM_ROW)

struct histogram {
	uint64_t count;
	uint64_t min, max; /* exact; min means nothing when empty */
	unsigned __int128 sum;
	uint64_t bucket[HISTOGRAM_BUCKETS];
};

static inline unsigned histogram_bucket(uint64_t v)
{
	unsigned row;

	if (v < HISTOGRAM_ROW)
		return (unsigned)v;
	row = 63u - HISTOGRAM_BITS - (unsigned)__builtin_clzll(v);
	/* The top bits, with the leading one, are HISTOGRAM_ROW .. 2 * HISTOGRAM_ROW - 1. */
	return row * HISTOGRAM_ROW + (unsigned)(v >> row);
}

static inline void histogram_add(struct histogram *h, uint64_t v)
{
	if (v < h->min || h->count == 0)
		h->min = v;
	if (v > h->max)
		h->max = v;
	h->count++;
	h->sum += v;
	h->bucket[histogram_bucket(v)]++;
}

double histogram_mean(const struct histogram *h);

/* The smallest value that at least this share (0 .. 1) of all values do not exceed. 0 when empty. */
uint64_t histogram_quantile(const struct histogram *h, double share);

#endif
