/* SPDX-License-Identifier: MIT */
/*
 * vu_mem.h - the memory of the guest that we play: one memfd, seen as one or several regions
 *
 * Owns:    the memfd and our mapping of it.
 * Assumes: set up by one thread; afterwards any thread may translate, none may allocate.
 * Never:   frees a single allocation: a test takes what it needs and drops the whole memory.
 */
#ifndef VU_MEM_H
#define VU_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "vu_msg.h"

/* One region, as the back end is told of it. Lengths and offsets in bytes, page-aligned. */
struct vu_region {
	uint64_t guest_addr;
	uint64_t len;
	uint64_t file_off;	/* where it starts in the memfd and in our mapping */
	uint64_t taken;		/* bytes handed out by vu_mem_alloc() */
};

struct vu_mem {
	int fd;			/* -1: no memory */
	uint8_t *base;		/* our mapping of the whole memfd */
	uint64_t len;
	unsigned nr_regions;
	unsigned turn;		/* the region that serves the next allocation */
	struct vu_region region[VU_MAX_REGIONS];
};

/*
 * Make guest memory of at least len bytes in nr_regions (1 .. VU_MAX_REGIONS) regions of equal
 * size. Region 0 is at guest address 0; each further one is more than 4 GiB higher, with a hole
 * before it. In the memfd they follow each other, so all but the first have an mmap offset.
 */
int vu_mem_create(struct vu_mem *m, uint64_t len, unsigned nr_regions, struct vu_err *err);

/*
 * The same with a layout of the caller's: only guest_addr and len of regions[] are read. Regions
 * may touch each other in guest addresses; they may even overlap, for tests that misbehave.
 */
int vu_mem_create_at(struct vu_mem *m, const struct vu_region *regions, unsigned nr_regions,
		     struct vu_err *err);

/* Unmap and close. Does nothing for zeroed or freed memory whose fd is -1 or base is NULL. */
void vu_mem_free(struct vu_mem *m);

/*
 * Take len bytes aligned to align (a power of two up to 4096) and zeroed. With several regions
 * the allocations go round them, so that a request's parts lie in different ones. NULL when no
 * region has that much left. *ret_guest_addr (may be NULL): where the guest sees it.
 */
void *vu_mem_alloc(struct vu_mem *m, uint64_t len, uint64_t align, uint64_t *ret_guest_addr);

/*
 * Our pointer to guest address guest_addr, or NULL when the len bytes there are not all memory
 * that is contiguous for us (they may cross from a region into one that touches it).
 */
void *vu_mem_host(const struct vu_mem *m, uint64_t guest_addr, uint64_t len);

/* The guest address of p, which points into this memory. */
uint64_t vu_mem_guest(const struct vu_mem *m, const void *p);

#endif
