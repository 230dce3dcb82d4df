/* SPDX-License-Identifier: MIT */
/*
 * blkload_hist.c - a histogram of durations
 *
 * Owns:    nothing.
 * Assumes: see blkload_hist.h.
 * Never:   allocates.
 */
#include "blkload_hist.h"

void hist_merge(struct hist *h, const struct hist *from)
{
	unsigned i;

	for (i = 0; i < HIST_BUCKETS; i++)
		h->bucket[i] += from->bucket[i];
	h->count += from->count;
	h->sum += from->sum;
	if (from->max > h->max)
		h->max = from->max;
}

/* The middle of a bucket. */
static uint64_t bucket_value(unsigned i)
{
	unsigned shift;
	uint64_t low;

	if (i < HIST_SUBS)
		return i;
	shift = i / HIST_SUBS - 1;
	low = (uint64_t)(HIST_SUBS + i % HIST_SUBS) << shift;
	return low + ((UINT64_C(1) << shift) >> 1);
}

uint64_t hist_percentile(const struct hist *h, unsigned per_10000)
{
	uint64_t rank, seen = 0, v;
	unsigned i;

	if (h->count == 0)
		return 0;
	rank = (uint64_t)(((unsigned __int128)h->count * per_10000 + 9999) / 10000);
	if (rank == 0)
		rank = 1;
	for (i = 0; i < HIST_BUCKETS; i++) {
		seen += h->bucket[i];
		if (seen >= rank) {
			v = bucket_value(i);
			return v < h->max ? v : h->max;
		}
	}
	return h->max;
}

uint64_t hist_mean(const struct hist *h)
{
	return h->count ? (uint64_t)(h->sum / h->count) : 0;
}
