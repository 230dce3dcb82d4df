/* SPDX-License-Identifier: MIT */
/*
 * tools/histogram.c - means and quantiles of a histogram
 *
 * Owns:    nothing.
 * Assumes: see histogram.h.
 * Never:   answers with a value outside of what was added.
 */
#include "histogram.h"

#include <math.h>

double histogram_mean(const struct histogram *h)
{
	return h->count ? (double)h->sum / (double)h->count : 0;
}

/* What a bucket stands for: its middle. */
static uint64_t bucket_middle(unsigned i)
{
	unsigned row = i / HISTOGRAM_ROW;

	if (row < 2)
		return i; /* the first two rows count every value by itself */
	row--;
	return ((uint64_t)(i - row * HISTOGRAM_ROW) << row) + (UINT64_C(1) << (row - 1));
}

uint64_t histogram_quantile(const struct histogram *h, double share)
{
	uint64_t rank = (uint64_t)ceil((double)h->count * share), seen = 0, v;

	if (h->count == 0)
		return 0;
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += h->bucket[i];
		if (seen && seen >= rank) {
			v = bucket_middle(i);
			return v < h->min ? h->min : v > h->max ? h->max : v;
		}
	}
	return h->max;
}
