/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/track.h - one ring's requests, recorded where they outlive this process
 *
 * Owns:    what a region of the in-flight area says of a ring.
 * Assumes: the ring's thread; one process uses a region at a time. Its end, however sudden, leaves the stores
 *          it has made in the order in which it made them: so only the compiler is kept from changing it.
 * Never:   reads the region while the ring runs: the front end can write there. What we need of it is kept
 *          here too, and what a process before us left is checked once, when the ring starts.
 *
 * The order of stores, and what a process that ends in between leaves:
 *   taking	"in flight" is set before the request has any effect. Before that it is available still.
 *   giving back	the used ring shows it, then "in flight" is cleared, then the index says that this
 *		batch is done with. Ended in between, the list of the last batch (split) or the older one of
 *		the two free lists (packed) tells what to clear.
 *
 * docs/spec/vhost-user.md, "Requests in flight".
 */
#ifndef VARVE_VUBLK_TRACK_H
#define VARVE_VUBLK_TRACK_H

#include <stdbool.h>

#include "base/math.h"
#include "export/vhost-user-blk/inflight.h"

#define VRING_NUM_MAX 1024

struct track {
	/* at most one of them is set; neither: nothing is recorded */
	struct inflight_split_region *split;
	struct inflight_packed_region *packed;
	uint64_t counter;
	uint16_t last_batch_head; /* split */
	uint16_t nr_batch;	  /* requests pushed, not yet published */
	uint16_t batch[VRING_NUM_MAX];

	bool resumed; /* a process before us used the region: it may have died before it called the driver */
	uint16_t nr_redo; /* requests that it had in flight, in the order in which it took them */
	uint16_t redo[VRING_NUM_MAX];
};

/* The stores before are made before those after. */
static inline void track_order(void)
{
	__asm__ volatile("" ::: "memory");
}

/* ---- split ---- */

/*
 * ring_used_idx: as the used ring has it. If there were requests in flight, or there could have been, sets
 * *next_avail to what follows the last one that was taken.
 */
int track_open_split(struct track *t, void *region, unsigned num, uint16_t ring_used_idx,
		     uint16_t *next_avail, struct varve_error *err);

static inline void track_take_split(struct track *t, uint16_t head)
{
	struct inflight_split_desc *d = &t->split->desc[head];

	d->counter = t->counter++;
	track_order();
	d->inflight = 1;
	track_order();
}

static inline void track_push_split(struct track *t, uint16_t head)
{
	t->split->desc[head].next = t->last_batch_head;
	track_order();
	t->split->last_batch_head = t->last_batch_head = head;
	t->batch[t->nr_batch++ % VRING_NUM_MAX] = head;
}

/* The used ring's index is used_idx now. */
void track_published_split(struct track *t, uint16_t used_idx);

/* ---- packed ---- */

struct vring;

/*
 * Sets the ring's positions and its list of free slots from the region, and makes the requests that were in
 * flight known by slot; or makes a fresh region from the ring.
 */
int track_open_packed(struct track *t, void *region, struct vring *v, struct varve_error *err);

/* The request of a slot was taken; its descriptors are recorded, and the ring's list of free slots goes on.
 */
void track_take_packed(struct track *t, const struct vring *v, uint16_t slot);

static inline void track_push_packed(struct track *t, uint16_t slot)
{
	t->batch[t->nr_batch++ % VRING_NUM_MAX] = slot;
}

/* Before and after the store that shows the batch. */
void track_publish_packed(struct track *t, struct vring *v);
void track_published_packed(struct track *t, const struct vring *v);

#endif
