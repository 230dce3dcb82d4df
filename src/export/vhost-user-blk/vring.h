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

#include "export/vhost-user-blk/vring_split.h"

/* ---- for vring_*() below ---- */

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
