/* SPDX-License-Identifier: MIT */
/*
 * vu_ring.h - the driver's side of a virtqueue, split or packed
 *
 * Owns:    the ring's three parts in guest memory, the indirect tables, the driver's own record
 *          of which descriptor is where, and the kick, call and error eventfds.
 * Assumes: one thread uses a ring; the back end is another process that may misbehave.
 * Never:   believes the device: every used element is checked against our own record, and a lie
 *          is reported as -EPROTO with the text in ring->err.
 *
 * All memory barriers of the front end are in vu_ring.c and vu_ring_packed.c.
 *
 * How it is used: vu_ring_add() as often as there are requests and room, one vu_ring_kick() for
 * all of them, then vu_ring_reap() and, when that brought nothing, vu_ring_wait().
 */
#ifndef VU_RING_H
#define VU_RING_H

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>

#include "vu_mem.h"
#include "vu_util.h"

/* How the segments of a request are laid out in descriptors. */
enum vu_indirect {
	VU_DIRECT,		/* a chain in the ring's own table */
	VU_INDIRECT,		/* one descriptor that points to a table */
	VU_INDIRECT_MIXED,	/* the two above in turn */
	VU_INDIRECT_TAIL,	/* first segment in the ring, chained to an indirect rest; the
				 * virtio specification has devices take it, not every one does */
};

/* A piece of a request in guest memory. Those the device writes come after those it reads. */
struct vu_seg {
	uint64_t guest_addr;
	uint32_t len;		/* bytes */
	bool dev_writes;
};

/* What the device has finished. */
struct vu_done {
	void *cookie;		/* as given to vu_ring_add() */
	uint32_t written;	/* bytes the device says that it wrote */
};

/* The driver's record of one descriptor. */
struct vu_slot {
	uint16_t next;		/* the next one of the same chain, or of the free list */
	uint16_t nr;		/* on the head of a chain in flight: its descriptors; else 0 */
	uint32_t writable;	/* on the head: bytes that the device may write */
	uint64_t seq;		/* on the head: requests that were added before it */
	void *cookie;
};

struct vu_ring {
	/* Set by vu_ring_init(); features may be changed until the first request. */
	unsigned index;			/* which queue of the device */
	uint16_t len;			/* descriptors, a power of two */
	uint16_t table_len;		/* descriptors in each indirect table */
	enum vu_indirect indirect;
	bool packed;			/* VIRTIO_F_RING_PACKED was negotiated; set by vu_ring_reset() */
	bool in_order;			/* VIRTIO_F_IN_ORDER was: the device must keep the order */
	bool event_idx;			/* VIRTIO_RING_F_EVENT_IDX was negotiated */
	bool spin;			/* vu_ring_wait() polls memory, the device needs no call */
	struct vring_desc *desc;	/* packed: len struct vring_packed_desc ... */
	struct vring_avail *avail;	/* ... our event structure ... */
	struct vring_used *used;	/* ... and the device's */
	struct vring_desc *tables;	/* one for each descriptor; NULL when table_len is 0 */
	uint64_t tables_guest_addr;
	int kick_fd, call_fd, err_fd;
	int peer_fd;			/* the connection: its end ends a wait; -1 for none */

	/* The using thread only. */
	struct vu_slot *slot;
	uint16_t free_head;
	uint16_t nr_free;
	uint16_t nr_chains;		/* requests in flight */
	uint16_t next_avail;		/* where the next request goes */
	uint16_t published;		/* what the device was told of */
	uint16_t last_used;		/* what we have reaped up to */
	bool avail_wrap, used_wrap;	/* packed: in which lap these two are */
	uint16_t *first;		/* packed: flags that make the batch visible; NULL: no batch */
	uint16_t first_flags;
	uint16_t shown;			/* packed: where the batch begins */
	bool shown_wrap;
	uint64_t nr_added;		/* since the last reset */
	uint64_t nr_done;
	uint64_t nr_kicks;		/* eventfd writes */
	uint64_t nr_kicks_spared;	/* ... the device said that it does not need */
	uint64_t nr_sleeps;		/* times vu_ring_wait() went to sleep */
	struct vu_err err;
};

/*
 * Lay a ring of len descriptors (a power of two up to 32768) into guest memory and make its
 * eventfds. table_len: descriptors of each indirect table, 0 when none will be used. The ring
 * starts empty with index 0; indirect is VU_DIRECT, event_idx and spin are false.
 * vu_ring_free() is safe afterwards even if this failed, and on a ring that is all zero.
 */
int vu_ring_init(struct vu_ring *r, struct vu_mem *mem, unsigned index, uint16_t len,
		 uint16_t table_len);

void vu_ring_free(struct vu_ring *r);

/* Bytes of guest memory that vu_ring_init() takes at most. */
uint64_t vu_ring_mem_len(uint16_t len, uint16_t table_len);

/*
 * Forget all requests and begin at index base, as a driver does after a device reset. The ring
 * must be stopped. Also brings a ring back in order that a test has scribbled over. Of a packed
 * ring base is a position: the place of a descriptor, and in bit 15 the wrap counter.
 */
void vu_ring_reset(struct vu_ring *r, uint16_t base);

/* An empty ring of the other kind, at its beginning. The ring must be stopped. */
void vu_ring_set_packed(struct vu_ring *r, bool packed);

/* What SET_VRING_BASE is to say: behind the last request reaped. */
uint32_t vu_ring_base(const struct vu_ring *r);

/* What GET_VRING_BASE has to answer when all requests that were shown are done. */
uint32_t vu_ring_end(const struct vu_ring *r);

/*
 * Put one request into the ring, not yet visible to the device. -ENOSPC: no descriptors free,
 * reap first. -E2BIG: more segments than the ring or an indirect table can ever hold.
 */
int vu_ring_add(struct vu_ring *r, const struct vu_seg *segs, unsigned nr_segs, void *cookie);

/* Show the device all that was added, and kick it if it wants to be kicked. */
int vu_ring_kick(struct vu_ring *r);

/* Take up to max finished requests. Returns how many, 0 for none, or -EPROTO. */
int vu_ring_reap(struct vu_ring *r, struct vu_done *done, unsigned max);

/*
 * Wait until vu_ring_reap() has something. -ETIMEDOUT at the deadline (vu_now_ns() time);
 * -EIO when the device signalled an error on its error eventfd; -ECONNRESET when the back end
 * closed the connection; -EINTR when a signal came.
 */
int vu_ring_wait(struct vu_ring *r, uint64_t deadline_ns);

/* For both kinds of ring: may the request of slot id be done now, with so many bytes written? */
int vu_ring_check_done(struct vu_ring *r, uint16_t id, uint32_t written);

#endif
