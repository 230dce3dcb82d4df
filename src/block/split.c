/* SPDX-License-Identifier: MIT */
/*
 * block/split.c - a request that lies in several extents goes on in pieces
 *
 * Owns:    a pool of pieces for each queue, made when the queue is attached: nothing is allocated later.
 * Assumes: a piece never needs pieces itself (it takes the cold path instead), so pieces always come back, and a
 *          request that waits for one makes progress.
 */
#include "base/iov.h"
#include "block/block.h"

#include <stdlib.h>

#define SPLIT_POOL 256 /* pieces in flight for one queue */
#define SPLIT_IOV 32   /* memory segments in one piece; a piece that needs more becomes shorter */

struct piece {
	struct req r;
	struct piece *next;
	struct iovec iov[SPLIT_IOV];
};

struct split_pool {
	struct queue *q;
	struct piece *free;
	struct req_list waiting; /* requests that have more to hand out, but found no piece */
	struct msg resume;
	bool resuming;
	struct piece pieces[SPLIT_POOL];
};

static void split_go_on(struct req *r);

static void split_resume(struct msg *m)
{
	struct split_pool *p = container_of(m, struct split_pool, resume);
	struct req *r;

	p->resuming = false;
	while (p->free && (r = TAILQ_FIRST(&p->waiting))) {
		TAILQ_REMOVE(&p->waiting, r, parked);
		split_go_on(r);
	}
}

int split_pool_new(struct queue *q)
{
	struct split_pool *p = queue_slot_get(q, QUEUE_SLOT_BLOCK);

	if (p)
		return 0;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->q = q;
	p->resume.run = split_resume;
	TAILQ_INIT(&p->waiting);
	for (unsigned i = 0; i < SPLIT_POOL; i++) {
		p->pieces[i].next = p->free;
		p->free = &p->pieces[i];
	}
	queue_slot_set(q, QUEUE_SLOT_BLOCK, p, free);
	return 0;
}

/* The guard (or a piece) of the whole request is gone. */
static void split_drop(struct req *r)
{
	if (!--r->nr_pending)
		req_done(r, r->ret);
}

static void piece_done(struct req *sub, int ret)
{
	struct piece *piece = container_of(sub, struct piece, r);
	struct split_pool *p = queue_slot_get(sub->q, QUEUE_SLOT_BLOCK);
	struct req *parent = sub->parent;

	piece->next = p->free;
	p->free = piece;
	if (ret < 0 && !parent->ret) {
		parent->ret = ret;
		parent->split_done = parent->len; /* hand out nothing more */
	}
	if (unlikely(!TAILQ_EMPTY(&p->waiting)) && !p->resuming) {
		p->resuming = true;
		queue_later(p->q, &p->resume);
	}
	split_drop(parent);
}

/* How far from off on does one answer of the map hold? */
static uint64_t split_len(struct node *n, const struct req *r, uint64_t off, uint64_t len)
{
	struct extent e;

	if (r->op == REQ_READ)
		chain_map(n, off, len, &e);
	else
		n->drv->map(n, off, len, &e);
	return e.len;
}

static void split_go_on(struct req *r)
{
	struct split_pool *p = queue_slot_get(r->q, QUEUE_SLOT_BLOCK);
	struct node *n = r->at;

	while (r->split_done < r->len) {
		uint64_t pos = r->split_done, len = split_len(n, r, r->off + pos, r->len - pos);
		struct piece *piece = p->free;
		size_t got;
		unsigned nr;

		if (!piece) {
			TAILQ_INSERT_TAIL(&p->waiting, r, parked);
			return;
		}
		p->free = piece->next;
		nr = iov_slice(piece->iov, SPLIT_IOV, r->iov, r->nr_iov, pos, len, &got);
		req_init(&piece->r, r->q, r->op, r->off + pos, got, piece->iov, nr, r->flags | REQ_SUB, piece_done);
		piece->r.parent = r;
		piece->r.at = n;
		r->nr_pending++;
		r->split_done += got;
		n->submit(n, &piece->r);
	}
	split_drop(r);
}

void split_start(struct node *n, struct req *r)
{
	node_slot(n, r->q)->nr_split++;
	r->at = n;
	r->ret = 0;
	r->split_done = 0;
	r->nr_pending = 1; /* the guard: dropped when everything is handed out */
	split_go_on(r);
}
