/* SPDX-License-Identifier: MIT */
/*
 * vu_raw.h - misbehaving on purpose: for tests of what a back end does with a hostile front end
 *
 * Owns:    nothing; works on the rings, the memory and the socket of a struct vu_front.
 * Assumes: the caller knows what he breaks. After poking into a ring, vu_ring_add() and
 *          vu_ring_reap() are out of step with it until vu_ring_reset().
 * Never:   checks an argument that the back end is supposed to check.
 *
 * What needs nothing from here: messages with any size or descriptors (vu_send_bytes() and
 * vu_send() on front->sock), messages in the wrong order (the steps of vu_front.h), regions that
 * touch or overlap (vu_mem_create_at()), requests with any segments or header (io->segs, io->hdr
 * between vu_io_*() and vu_blk_submit()), chains that mix directions (vu_ring_add()).
 *
 * A typical test: write descriptors, offer one, kick, and see what becomes of it.
 *
 *	vu_raw_desc(r, 0, addr, 16, VRING_DESC_F_NEXT, 0);	a chain that bites its tail
 *	vu_raw_offer(r, 0);
 *	vu_raw_kick(r);
 *	assert_int_equal(vu_raw_wait_broken(f, 0, 5000), VU_RAW_ERR_SIGNALLED);
 */
#ifndef VU_RAW_H
#define VU_RAW_H

#include <stdbool.h>
#include <stdint.h>

#include "vu_front.h"

/* Write descriptor i of the ring, or of any table in guest memory (little-endian is done here). */
void vu_raw_desc(struct vu_ring *r, unsigned i, uint64_t guest_addr, uint32_t len, uint16_t flags,
		 uint16_t next);
void vu_raw_table_desc(struct vring_desc *table, unsigned i, uint64_t guest_addr, uint32_t len,
		       uint16_t flags, uint16_t next);

/*
 * Write descriptor `at` of a packed ring, flags as given; the bits that make it available in the lap
 * in which the driver is are vu_raw_packed_lap(). Its flags are written last, with a barrier.
 */
void vu_raw_packed_desc(struct vu_ring *r, unsigned at, uint64_t guest_addr, uint32_t len,
			uint16_t id, uint16_t flags);
uint16_t vu_raw_packed_lap(const struct vu_ring *r);

/* What the device wrote over descriptor `at`: its flags. */
uint16_t vu_raw_packed_flags(const struct vu_ring *r, unsigned at);

/* Write entry `at` of the available ring; `at` is not reduced by the ring's length. */
void vu_raw_avail_entry(struct vu_ring *r, unsigned at, uint16_t head);

/* Set the available index to any value, with a release barrier before it. */
void vu_raw_avail_idx(struct vu_ring *r, uint16_t idx);

/* Both, as a driver would: head at the next place, then the index one further. */
void vu_raw_offer(struct vu_ring *r, uint16_t head);

/* Set the flags of the available ring; set the event index behind it. */
void vu_raw_avail_flags(struct vu_ring *r, uint16_t flags);
void vu_raw_used_event(struct vu_ring *r, uint16_t idx);

/* Write to the kick eventfd, wanted or not. */
int vu_raw_kick(struct vu_ring *r);

/* What the device wrote: its index, its flags, element `at` of its ring. */
uint16_t vu_raw_used_idx(const struct vu_ring *r);
uint16_t vu_raw_used_flags(const struct vu_ring *r);
struct vring_used_elem vu_raw_used_elem(const struct vu_ring *r, unsigned at);

/*
 * Wait until the used index is idx, asking the device for a call when it gets there. Errors that
 * it signals meanwhile do not end the wait; the end of the connection does, with -ECONNRESET.
 */
int vu_raw_wait_used(struct vu_ring *r, uint16_t idx, unsigned timeout_ms);

enum vu_raw_end {
	VU_RAW_NOTHING,		/* nothing happened in time */
	VU_RAW_ERR_SIGNALLED,	/* the error eventfd of the queue was signalled */
	VU_RAW_CLOSED,		/* the back end closed the connection */
};

/* Wait until the back end shows that it holds queue q, or the whole session, for broken. */
enum vu_raw_end vu_raw_wait_broken(struct vu_front *f, unsigned q, unsigned timeout_ms);

/* True when the error eventfd was signalled since the last look; takes the signal away. */
bool vu_raw_take_err(struct vu_ring *r);

/* Wait until the back end closes the connection; what it sends before that is thrown away. */
int vu_raw_wait_closed(struct vu_front *f, unsigned timeout_ms);

/* Shrink guest memory under the back end's mapping to len bytes. Our own mapping shrinks too. */
int vu_raw_shrink_memory(struct vu_front *f, uint64_t len);

#endif
