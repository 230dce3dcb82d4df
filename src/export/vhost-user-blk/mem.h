/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/mem.h - the guest's memory, as the front end shares it
 *
 * Owns:    the mappings. The descriptors stay the caller's, who closes them after gmem_map().
 * Assumes: a table changes only while no ring runs, so that any thread may translate without a lock.
 * Never:   translates a range that is not wholly inside what was mapped; no address is computed from two
 *          numbers of the front end or the guest without a check for overflow.
 */
#ifndef VARVE_VUBLK_MEM_H
#define VARVE_VUBLK_MEM_H

#include "aio/engine.h"
#include "base/error.h"
#include "base/math.h"
#include "export/vhost-user-blk/msg.h"

struct gmem_region {
	uint64_t guest_addr; /* as in descriptors */
	uint64_t user_addr;  /* as in SET_VRING_ADDR */
	uint64_t len;	     /* > 0; neither guest_addr + len nor user_addr + len overflows */
	uint8_t *host;	     /* where we see it */
	void *map;	     /* what to unmap: host's surroundings, in whole pages of the file */
	size_t map_len;
	bool huge; /* of hugetlbfs: never swapped, and all there from the beginning, mostly */
};

struct gmem {
	unsigned nr_regions;
	struct gmem_region region[UMSG_REGIONS_MAX];
};

/*
 * Maps a table of nr regions (at most UMSG_REGIONS_MAX), region i from fds[i]. On failure nothing stays
 * mapped and *m is untouched. A region must lie inside its file; regions may touch, not overlap.
 */
int gmem_map(struct gmem *m, const struct umsg_region *regions, const int *fds, unsigned nr,
	     struct varve_error *err);

void gmem_unmap(struct gmem *m);

/*
 * On q's thread, while a ring runs there: requests will go to this memory, and come from it. What the engine makes of
 * it is the user's choice (aio=io_uring+pinned).
 */
void gmem_announce(const struct gmem *m, struct queue *q);
void gmem_forget(const struct gmem *m, struct queue *q);

/* Our pointer to len > 0 bytes at a front-end address, if one region has them all; else NULL. */
void *gmem_by_user(const struct gmem *m, uint64_t user_addr, uint64_t len);

/* True if the region holds guest_addr; *ret_off is the distance from its start. */
static inline bool gmem_region_has(const struct gmem_region *r, uint64_t guest_addr, uint64_t *ret_off)
{
	*ret_off = guest_addr - r->guest_addr; /* wraps to something large below the region */
	return *ret_off < r->len;
}

/* The region that holds guest_addr, or NULL. */
static inline const struct gmem_region *gmem_region_at(const struct gmem *m, uint64_t guest_addr,
						       uint64_t *ret_off)
{
	for (unsigned i = 0; i < m->nr_regions; i++) {
		if (gmem_region_has(&m->region[i], guest_addr, ret_off))
			return &m->region[i];
	}
	return NULL;
}

#endif
