/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/vring_types.h - a virtqueue's state, and opening one; for vring*.[ch], all others include vring.h
 *
 * Owns:    see vring.h.
 * Assumes: see vring.h.
 */
#ifndef VARVE_VUBLK_VRING_TYPES_H
#define VARVE_VUBLK_VRING_TYPES_H

#include <sys/uio.h>

#include "export/vhost-user-blk/mem.h"
#include "export/vhost-user-blk/track.h"

#define VRING_CHAIN_LEN_MAX UINT32_MAX /* bytes of all buffers of one chain, as the specification has it */

/*
 * Three addresses of the front end's process, as SET_VRING_ADDR gives them. Of a packed ring: the
 * descriptors, the driver's event structure (avail), the device's (used).
 */
struct vring_addr {
	uint64_t desc, avail, used;
};

/* vring_opts.base of a packed ring that was never used: place 0, first lap. */
#define VRING_PACKED_BEGIN 0x80008000u

struct vring_opts {
	unsigned num; /* of a split ring a power of two */
	/*
	 * Of a split ring: the next available entry. Of a packed one: the next available descriptor, with the
	 * wrap counter as bit 15, and in the upper half the same of the next used one (0: not told, the
	 * same).
	 */
	uint32_t base;
	bool packed, indirect, event_idx; /* negotiated */
	void *inflight;			  /* the region that records requests, NULL: none */
};

/* What a packed ring keeps of a request, by slot. */
struct vring_packed_slot {
	uint16_t id;
	uint16_t nr;   /* descriptors of the ring */
	uint16_t last; /* the last of the nr numbers that it took from the free list; it is the first */
};

struct vring {
	/* set by vring_open() */
	const struct gmem *mem;
	uint8_t *desc;	 /* num descriptors of 16 bytes */
	uint16_t *avail; /* flags, idx, ring[num], used_event; packed: where and whether to call */
	uint16_t *used; /* flags, idx, num elements of 8 bytes, avail_event; packed: where and whether to kick
			 */
	uint16_t num, mask;
	bool packed, indirect, event_idx;

	/* the thread that uses the ring */
	uint16_t next_avail; /* the next entry or descriptor that we look at */
	uint16_t avail_idx;  /* split: how far the driver is, as last read */
	uint16_t used_idx;   /* where the next used element goes */
	uint16_t published;  /* used_idx as the driver knows it */
	bool fresh;	     /* nothing was published yet: the driver is called whatever it asked for */
	const struct gmem_region *near; /* where the last buffer was: the next one is mostly there too */

	/* packed */
	bool avail_wrap, used_wrap, published_wrap;
	uint16_t first_flags; /* of the first used descriptor of the batch: written last */
	uint16_t nr_batch;    /* requests in the batch */
	uint16_t nr_out;      /* descriptors taken and not given back */
	uint16_t free_head;
	uint16_t next[VRING_NUM_MAX]; /* the list of free slots */
	struct vring_packed_slot slot[VRING_NUM_MAX];

	struct track track;
	char fault[160]; /* why the ring is broken, for the log; empty: it is not */
};

/* The buffers of one chain, in the iovec array that was given: first those that the device reads. */
struct vring_chain {
	unsigned nr_out, nr_in;
	uint32_t out_len, in_len;
};

/* Bytes of the used ring, with what follows it; of a packed ring that is the device event structure. */
static inline uint64_t vring_used_len(unsigned num, bool packed)
{
	return packed ? 4 : 6 + 8 * (uint64_t)num;
}

/* Would the ring's parts be where they should? Fails when one is not wholly in one region, or misaligned. */
int vring_check(const struct gmem *mem, const struct vring_addr *addr, unsigned num, bool packed,
		struct varve_error *err);

/*
 * Fails as vring_check() does, and when the region of requests in flight is damaged or not this ring's.
 * Afterwards v->track.nr_redo requests wait for vring_redo().
 */
int vring_open(struct vring *v, const struct gmem *mem, const struct vring_addr *addr,
	       const struct vring_opts *opts, struct varve_error *err);

/* As vring_opts.base, for the next one to go on from here. */
uint32_t vring_base(const struct vring *v);

/* Marks the ring as faulty, with a reason; returns -EPROTO. */
int vring_fault(struct vring *v, const char *fmt, ...) __attribute__((cold, format(printf, 2, 3)));

#endif
