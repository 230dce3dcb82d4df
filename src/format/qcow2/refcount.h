/* SPDX-License-Identifier: MIT */
/*
 * qcow2/refcount.h - what refcount.c and refcount_grow.c share
 */
#ifndef VARVE_QCOW2_REFCOUNT_H
#define VARVE_QCOW2_REFCOUNT_H

#include "format/cache.h"
#include "format/qcow2/qcow2.h"

struct refcounts {
	struct cache *cache; /* of refcount blocks; "table" is the index of a block in the refcount table */
	struct fiber_mutex grow; /* who makes blocks or moves the table */
	/*
	 * Durable when all blocks are reachable on disk: counts in a block mean nothing before. Whoever
	 * counts gets a mark that is not older.
	 */
	order_mark linked;
	/* Clusters below the frontier that are being made into blocks and tables; their counts may not be set
	 * yet. */
	uint64_t reserved, reserved_end;
	uint64_t nr_half_done; /* changes of counts that failed, and could not be undone */
};

/* Counts in one block, or in one piece of it. */
static inline uint64_t block_counts(const struct qcow2 *q)
{
	return ((uint64_t)q->cluster_len * 8) >> q->h.refcount_order;
}

static inline uint64_t piece_counts(const struct qcow2 *q)
{
	return ((uint64_t)q->refcounts->cache->piece_len * 8) >> q->h.refcount_order;
}

#endif
