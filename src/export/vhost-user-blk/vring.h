/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/vring.h - the device's side of a virtqueue, split or packed
 *
 * Owns:    the indices of one ring, and every memory barrier between us and the driver.
 * Assumes: one thread uses a ring; the memory table does not change meanwhile.
 * Never:   believes what it reads: a word of guest memory is read once, into our memory, and checked there.
 *          What a ring must not contain is a fault: described in words, and the ring is used no more.
 *
 * A request is known by its slot, a number below the size of the ring: of a split ring the descriptor at its
 * head, of a packed one a number that is given out here, because the driver may use any id.
 *
 * The barriers, which no other file needs to know of:
 *   acquire of avail.idx	pairs with the driver's barrier before it moves that index: the entries and
 *				descriptors behind it are whole. Packed: of the first descriptor's flags.
 *   release of used.idx	pairs with the driver's barrier after it read the index: data, status and used
 *				entries are whole. Packed: of the flags of the first one of a batch.
 *   store used.idx, then load used_event (or avail.flags); the driver stores used_event, then loads
 *				used.idx: one of the two sees the other, so no sleeping driver is left
 *				without a call. Packed: flags, and the driver's event structure.
 *   store avail_event (or used.flags), then load avail.idx; the driver stores avail.idx, then loads
 *				avail_event: in the same way, no request is left without a kick. Packed: our
 *				event structure, and the flags of the next descriptor.
 *   The last two need sequential consistency; they use such stores and loads rather than fences, because
 *   ThreadSanitizer understands these.
 */
#ifndef VARVE_VUBLK_VRING_H
#define VARVE_VUBLK_VRING_H

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
	unsigned region;     /* where the last buffer was: the next one is mostly there too */

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

/* ---- for vring_*() below ---- */

int split_next(struct vring *v, uint16_t *ret_slot);
int split_chain(struct vring *v, uint16_t head, struct iovec *iov, unsigned max,
		struct vring_chain *ret_chain);
void split_push(struct vring *v, uint16_t head, uint32_t written);
bool split_publish(struct vring *v);
void split_kick_off(struct vring *v);
bool split_kick_on(struct vring *v);

int packed_next(struct vring *v, uint16_t *ret_slot);
int packed_chain(struct vring *v, uint16_t slot, struct iovec *iov, unsigned max,
		 struct vring_chain *ret_chain);
int packed_redo(struct vring *v, uint16_t slot, struct iovec *iov, unsigned max,
		struct vring_chain *ret_chain);
void packed_push(struct vring *v, uint16_t slot, uint32_t written);
bool packed_publish(struct vring *v);
void packed_kick_off(struct vring *v);
bool packed_kick_on(struct vring *v);

/* ---- taking ---- */

/* The slot of the next request: 1; no request: 0; a fault: -EPROTO. */
static inline int vring_next(struct vring *v, uint16_t *ret_slot)
{
	return v->packed ? packed_next(v, ret_slot) : split_next(v, ret_slot);
}

/*
 * Collects the chain of a slot that vring_next() gave in iov. A buffer that crosses from one memory region
 * into another takes an element for each. A fault (-EPROTO) if there are more than max, and if anything about
 * the chain is wrong.
 */
static inline int vring_chain(struct vring *v, uint16_t slot, struct iovec *iov, unsigned max,
			      struct vring_chain *ret_chain)
{
	return v->packed ? packed_chain(v, slot, iov, max, ret_chain)
			 : split_chain(v, slot, iov, max, ret_chain);
}

/* The same for one of v->track.redo[], which was in flight when the process before us ended. */
static inline int vring_redo(struct vring *v, uint16_t slot, struct iovec *iov, unsigned max,
			     struct vring_chain *ret_chain)
{
	return v->packed ? packed_redo(v, slot, iov, max, ret_chain)
			 : split_chain(v, slot, iov, max, ret_chain);
}

/* ---- giving back ---- */

/* The chain is done, which vring_publish() will show. written: bytes, from the first writable one on. */
static inline void vring_push(struct vring *v, uint16_t slot, uint32_t written)
{
	if (v->packed)
		packed_push(v, slot, written);
	else
		split_push(v, slot, written);
}

/* Shows the driver what was pushed. True: it wants to be called. */
static inline bool vring_publish(struct vring *v)
{
	return v->packed ? packed_publish(v) : split_publish(v);
}

/* While the ring is being emptied anyway, the driver need not kick. */
static inline void vring_kick_off(struct vring *v)
{
	if (v->packed)
		packed_kick_off(v);
	else
		split_kick_off(v);
}

/* From now on it must. True: requests came meanwhile, go on without waiting for a kick. */
static inline bool vring_kick_on(struct vring *v)
{
	return v->packed ? packed_kick_on(v) : split_kick_on(v);
}

#endif
