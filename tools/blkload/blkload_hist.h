/* SPDX-License-Identifier: MIT */
/*
 * blkload_hist.h - a histogram of durations, exact to less than one percent
 *
 * Owns:    its counters, which are part of the struct: nothing is allocated.
 * Assumes: one thread adds; merging and reading happen when it has stopped.
 * Never:   loses a value: every 64-bit number has a bucket.
 *
 * Values below 128 have a bucket each; every further power of two is divided into 128 buckets of
 * equal width, so a bucket is at most 1/128 of its values wide.
 */
#ifndef BLKLOAD_HIST_H
#define BLKLOAD_HIST_H

#include <stdint.h>

#define HIST_SUB_BITS	7
#define HIST_SUBS	(1u << HIST_SUB_BITS)
#define HIST_BUCKETS	((64 - HIST_SUB_BITS + 1) * HIST_SUBS)

struct hist {
	uint64_t count;
	uint64_t max;			/* exact */
	unsigned __int128 sum;
	uint64_t bucket[HIST_BUCKETS];
};

static inline unsigned hist_bucket(uint64_t v)
{
	unsigned shift;

	if (v < HIST_SUBS)
		return (unsigned)v;
	shift = 63u - (unsigned)__builtin_clzll(v) - HIST_SUB_BITS;
	return (shift + 1) * HIST_SUBS + (unsigned)((v >> shift) - HIST_SUBS);
}

static inline void hist_add(struct hist *h, uint64_t v)
{
	h->bucket[hist_bucket(v)]++;
	h->count++;
	h->sum += v;
	if (v > h->max)
		h->max = v;
}

/* Add all values of from to h. */
void hist_merge(struct hist *h, const struct hist *from);

/* The smallest value that at least per_10000 ten-thousandths of all values do not exceed
 * (5000: the median), as exact as its bucket, never above the maximum. 0 when empty. */
uint64_t hist_percentile(const struct hist *h, unsigned per_10000);

uint64_t hist_mean(const struct hist *h);

#endif
