/* SPDX-License-Identifier: MIT */
/*
 * block/range.h - ranges of a node that fibers have locked against each other
 *
 * Whoever changes the mapping of clusters, or reads to write back (copy on write, unaligned writes), locks the
 * range; overlapping lockers wait in order of arrival. Home queue only; the lock lives on the fiber's stack.
 */
#ifndef VARVE_BLOCK_RANGE_H
#define VARVE_BLOCK_RANGE_H

#include "aio/fiber.h"

struct range {
	uint64_t off, end;
	TAILQ_ENTRY(range) link;
	struct waitlist waiting;
};

struct ranges {
	TAILQ_HEAD(range_list, range) list;
};

void ranges_init(struct ranges *rs);

/* Locks [off, off + len); len > 0, the end does not overflow. */
void range_lock(struct fiber *f, struct ranges *rs, struct range *r, uint64_t off, uint64_t len);
void range_unlock(struct ranges *rs, struct range *r);
bool ranges_overlap(const struct ranges *rs, uint64_t off, uint64_t len);

#endif
