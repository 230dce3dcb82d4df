/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/stats.h - what a virtqueue has done: requests, bytes, errors, and how long they took
 *
 * Owns:    nothing; the numbers lie in the ring.
 * Assumes: one thread counts; any thread reads, and may find the numbers of one request half counted.
 * Never:   asks the clock: times are those of the queue's turns.
 *
 * Latencies are kept in buckets of a quarter of an octave, so that a percentile is right to about 20 %.
 */
#ifndef VARVE_VUBLK_STATS_H
#define VARVE_VUBLK_STATS_H

#include <stdint.h>

#include "base/math.h"

enum blk_class { BLK_READS, BLK_WRITES, BLK_FLUSHES, BLK_DISCARDS, BLK_ZEROES, BLK_OTHERS, BLK_CLASSES };

#define BLK_LATENCY_UNIT_BITS 10 /* below about a microsecond all is the same */
#define BLK_LATENCY_BUCKETS 104	 /* up to a minute; the last one has no end */

struct blk_count {
	uint64_t requests, bytes, errors; /* bytes: of those without error */
	uint64_t total_ns, max_ns;
	uint64_t latency[BLK_LATENCY_BUCKETS];
};

struct blk_stats {
	struct blk_count count[BLK_CLASSES];
};

static inline unsigned blk_latency_bucket(uint64_t ns)
{
	uint64_t v = ns >> BLK_LATENCY_UNIT_BITS;
	unsigned octave, bucket;

	if (v < 4)
		return (unsigned)v;
	octave = log2_u64(v);
	bucket = 4 * (octave - 1) + (unsigned)(v >> (octave - 2) & 3);
	return MIN(bucket, BLK_LATENCY_BUCKETS - 1u);
}

/* The first nanosecond behind a bucket; of the last one, too, although it has no end. */
static inline uint64_t blk_latency_end(unsigned bucket)
{
	uint64_t octave;

	bucket++;
	if (bucket <= 4)
		return (uint64_t)bucket << BLK_LATENCY_UNIT_BITS;
	octave = bucket / 4 + 1;
	return (4 + (uint64_t)(bucket & 3)) << (octave - 2 + BLK_LATENCY_UNIT_BITS);
}

/* One writer: a plain addition that a reader on another thread sees whole. */
static inline void blk_stat_add(uint64_t *n, uint64_t by)
{
	__atomic_store_n(n, *n + by, __ATOMIC_RELAXED);
}

static inline void blk_count_add(struct blk_count *c, uint64_t bytes, bool error, uint64_t ns)
{
	blk_stat_add(&c->requests, 1);
	if (unlikely(error))
		blk_stat_add(&c->errors, 1);
	else
		blk_stat_add(&c->bytes, bytes);
	blk_stat_add(&c->total_ns, ns);
	if (unlikely(ns > c->max_ns))
		__atomic_store_n(&c->max_ns, ns, __ATOMIC_RELAXED);
	blk_stat_add(&c->latency[blk_latency_bucket(ns)], 1);
}

/* Any thread. */
static inline void blk_stats_read(const struct blk_stats *s, struct blk_stats *ret)
{
	const uint64_t *from = (const uint64_t *)s;
	uint64_t *to = (uint64_t *)ret;

	for (unsigned i = 0; i < sizeof(*s) / sizeof(*from); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

#endif
