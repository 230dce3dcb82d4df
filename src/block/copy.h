/* SPDX-License-Identifier: MIT */
/*
 * block/copy.h - copying from disk to disk, by the kernel or server where both sides allow
 */
#ifndef VARVE_BLOCK_COPY_H
#define VARVE_BLOCK_COPY_H

#include "block/node.h"

struct node_copy {
	struct node *src, *dst; /* tops of two graphs (or one); both of the same home queue */
	uint64_t src_off, dst_off, len;
	bool offload; /* false: read and write only */
	unsigned refusals;
	varve_progress_fn progress;
	void *user_data;

	uint64_t offloaded; /* out: bytes that did not pass through this process */
};

/*
 * On a fiber of the home queue. Ranges of one disk must not overlap. Bounds were checked. Where the source
 * reads as zeroes, zeroes are written. On failure the part before is copied. What is copied is stable after a
 * flush of dst (with cache=writethrough when this returns).
 */
int node_copy(struct fiber *f, struct node_copy *c);

#endif
