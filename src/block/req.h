/* SPDX-License-Identifier: MIT */
/*
 * block/req.h - one guest request and its way through the layers
 *
 * A request is memory of its requester (an export's slot, an API slot, a fiber's stack). It goes down by
 * req_forward() and comes back by req_done(), which is called exactly once by whoever answers it, on the queue
 * where it was born (r->q). No layer allocates for it.
 */
#ifndef VARVE_BLOCK_REQ_H
#define VARVE_BLOCK_REQ_H

#include "aio/engine.h"
#include "aio/fiber.h"
#include "aio/queue.h"
#include "base/math.h"

struct node;
struct req;

enum req_op {
	REQ_READ, /* these two first: map_submit() */
	REQ_WRITE,
	REQ_FLUSH,
	REQ_DISCARD, /* contents undefined after, unless the format says zero */
	REQ_ZERO,
	REQ_OPS,
};

#define REQ_FUA (1u << 0)	/* write, zero: on stable storage, with its metadata, before it is done */
#define REQ_MAY_UNMAP (1u << 1) /* zero: space may be given back */
#define REQ_COMPRESS (1u << 2)	/* write: whole clusters may be stored compressed */
#define REQ_NO_FALLBACK (1u << 3) /* zero: -ENOTSUP, rather than written as bytes */
#define REQ_NO_STOP (1u << 4)	/* flush: werror= has no say; it neither waits nor makes others wait */
/* internal to block/ */
#define REQ_SUB (1u << 16)	/* a piece of a split request, from the queue's pool */
#define REQ_REPAIRED (1u << 17) /* has been through the cold path once */
#define REQ_ALIGNED (1u << 18)	/* leaf: aligned, and holds the range lock it needs */
#define REQ_META (1u << 19)	/* no guest's bytes: what it is for stands in the bits from REQ_EVENT_SHIFT on, or was told before */
#define REQ_EVENT_SHIFT 20	/* from there on two of enum event (block/event.h), of 6 bits each */

/* Layers one request may cross: export, filters, format, leaf. node_open() refuses deeper stacks. */
#define REQ_HOPS 12

struct hop {
	struct node *node;
	void (*done)(struct req *r, int ret); /* the layer's own completion; it calls req_done() to go on */
	uint64_t off;			      /* r->off as this layer saw it */
	uintptr_t state;		      /* the layer's own */
};

struct req {
	/* set by the requester */
	enum req_op op;
	uint32_t flags;
	uint64_t off, len;
	const struct iovec *iov; /* read, write: exactly len bytes; must live until done */
	unsigned nr_iov;
	struct queue *q;
	void (*done)(struct req *r, int ret); /* 0 or a negative errno */

	/* on the way */
	unsigned depth;
	struct hop hops[REQ_HOPS];
	struct node *at; /* node that handles it now */
	int ret;

	/* owned by the layer that handles it now */
	struct aio_op aio;	/* leaf */
	uint64_t leaf_state;	/* leaf: its own, from submit to completion */
	struct msg msg;		/* travelling between queues */
	struct fiber_job job;	/* cold path */
	TAILQ_ENTRY(req) parked;

	/* split.c */
	struct req *parent;
	unsigned nr_pending;
	uint64_t split_done; /* bytes of the request handed out so far */
};

TAILQ_HEAD(req_list, req);

/* Fills the fields of the requester; r needs no other preparation. */
static inline void req_init(struct req *r, struct queue *q, enum req_op op, uint64_t off, uint64_t len,
			    const struct iovec *iov, unsigned nr_iov, uint32_t flags,
			    void (*done)(struct req *r, int ret))
{
	r->op = op;
	r->flags = flags;
	r->off = off;
	r->len = len;
	r->iov = iov;
	r->nr_iov = nr_iov;
	r->q = q;
	r->done = done;
	r->depth = 0;
}

/* Answers the request: unwinds one hop, or hands it back to the requester. The caller must not touch r after. */
static inline void req_done(struct req *r, int ret)
{
	if (r->depth) {
		struct hop *h = &r->hops[--r->depth];

		r->off = h->off;
		r->at = h->node;
		h->done(r, ret);
		return;
	}
	r->done(r, ret);
}

/*
 * Sends r on to child, at child_off there. done == NULL: the layer wants nothing back. Otherwise done() is called
 * with r->off restored, r->hops[r->depth].state as left by req_forward_state(), and must end in req_done().
 */
void req_forward(struct req *r, struct node *child, uint64_t child_off, void (*done)(struct req *r, int ret));

/* The state that the layer wants to find again in its done(): call right before req_forward(). */
static inline void req_set_state(struct req *r, uintptr_t state)
{
	r->hops[r->depth].state = state;
}

static inline uintptr_t req_state(const struct req *r)
{
	return r->hops[r->depth].state;
}

#endif
