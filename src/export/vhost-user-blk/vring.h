/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/vring.h - the device's side of a split virtqueue
 *
 * Owns:    the indices of one ring, and every memory barrier of the export.
 * Assumes: one thread uses a ring; the memory table does not change meanwhile.
 * Never:   believes what it reads: a word of guest memory is read once, into our memory, and checked there.
 *          What a ring must not contain is a fault: described in words, and the ring is used no more.
 *
 * The barriers, which no other file needs to know of:
 *   acquire of avail.idx	pairs with the driver's barrier before it moves that index: the entries and
 *				descriptors behind it are whole.
 *   release of used.idx	pairs with the driver's barrier after it read the index: data, status and used
 *				entries are whole.
 *   store used.idx, then load used_event (or avail.flags); the driver stores used_event, then loads
 *				used.idx: one of the two sees the other, so no sleeping driver is left
 *				without a call.
 *   store avail_event (or used.flags), then load avail.idx; the driver stores avail.idx, then loads
 *				avail_event: in the same way, no request is left without a kick.
 *   The last two need sequential consistency; they use such stores and loads rather than fences, because
 *   ThreadSanitizer understands these.
 */
#ifndef VARVE_VUBLK_VRING_H
#define VARVE_VUBLK_VRING_H

#include <sys/uio.h>

#include "export/vhost-user-blk/mem.h"

#define VRING_NUM_MAX 1024
#define VRING_CHAIN_LEN_MAX UINT32_MAX /* bytes of all buffers of one chain, as the specification has it */

/* Three addresses of the front end's process, as SET_VRING_ADDR gives them. */
struct vring_addr {
	uint64_t desc, avail, used;
};

struct vring {
	/* set by vring_open() */
	const struct gmem *mem;
	const uint8_t *desc; /* num descriptors of 16 bytes */
	uint16_t *avail;     /* flags, idx, ring[num], used_event */
	uint16_t *used;	     /* flags, idx, then num elements of 8 bytes, then avail_event */
	uint16_t num, mask;
	bool indirect, event_idx; /* negotiated */

	/* the thread that uses the ring */
	uint16_t next_avail; /* the next entry of the available ring that we look at */
	uint16_t avail_idx;  /* how far the driver is, as last read */
	uint16_t used_idx;   /* where the next used element goes */
	uint16_t published;  /* used_idx as the driver knows it */
	bool fresh;	     /* nothing was published yet: the driver is called whatever it asked for */
	unsigned region;     /* where the last buffer was: the next one is mostly there too */
	char fault[160];     /* why the ring is broken, for the log; empty: it is not */
};

/* The buffers of one chain, in the iovec array that was given: first those that the device reads. */
struct vring_chain {
	unsigned nr_out, nr_in;
	uint32_t out_len, in_len;
};

/* num is a power of two. Fails when a part is not wholly in one region, or misaligned. base: next_avail. */
int vring_open(struct vring *v, const struct gmem *mem, const struct vring_addr *addr, unsigned num,
	       uint16_t base, bool indirect, bool event_idx, struct varve_error *err);

/* The head of the next request: 1; no request: 0; a fault: -EPROTO. */
int vring_next(struct vring *v, uint16_t *ret_head);

/*
 * Collects the chain that begins at head in iov. A buffer that crosses from one memory region into another
 * takes an element for each. A fault (-EPROTO) if there are more than max, and if anything about the chain is
 * wrong.
 */
int vring_chain(struct vring *v, uint16_t head, struct iovec *iov, unsigned max,
		struct vring_chain *ret_chain);

/* The chain is done, which vring_publish() will show. written: bytes, from the first writable one on. */
void vring_push(struct vring *v, uint16_t head, uint32_t written);

/* Shows the driver what was pushed. True: it wants to be called. */
bool vring_publish(struct vring *v);

/* While the ring is being emptied anyway, the driver need not kick. */
void vring_kick_off(struct vring *v);

/* From now on it must. True: requests came meanwhile, go on without waiting for a kick. */
bool vring_kick_on(struct vring *v);

/* Marks the ring as faulty, with a reason; returns -EPROTO. */
int vring_fault(struct vring *v, const char *fmt, ...) __attribute__((cold, format(printf, 2, 3)));

#endif
