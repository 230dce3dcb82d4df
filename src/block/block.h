/* SPDX-License-Identifier: MIT */
/*
 * block/block.h - what the files of the corridor share among themselves
 */
#ifndef VARVE_BLOCK_BLOCK_H
#define VARVE_BLOCK_BLOCK_H

#include "block/node.h"

/* node.c: the slot of the queue that runs now; it must have been attached. */
static inline struct node_slot *node_slot(struct node *n, const struct queue *q)
{
	struct node_slot *s = atomic_load_explicit(&n->slots[queue_id(q)], memory_order_relaxed);

	assert(s && "queue was not attached to this node");
	return s;
}

/*
 * node.c: what ends a request that came in by the door of the node in its last hop; and what does if it is counted as
 * I/O under a mapping of that node, too, by phase.
 */
void entry_done(struct req *r, int ret);
extern void (*const entry_hot_done[2])(struct req *r, int ret);

/* grace.c: ends the count of hot_count() for a request that did not come in by the node's door; by phase. */
extern void (*const hot_done[2])(struct req *r, int ret);
/* The last one of a phase has ended, and home waits for it. */
void grace_last(struct node_slot *s);

/*
 * Counts the request as I/O under a mapping of its node. The count ends with it: the phase it began in is known by the
 * function that its hop then calls. A request that has just come in by this node's door has a hop already.
 */
static inline void hot_count(struct node *n, struct req *r)
{
	struct node_slot *s = node_slot(n, r->q);
	struct hop *h = &r->hops[r->depth];
	unsigned phase = s->phase;

	s->nr_hot++;
	s->hot[phase]++;
	if (likely(r->depth) && likely(h[-1].done == entry_done) && likely(h[-1].node == n)) {
		h[-1].done = entry_hot_done[phase];
		return;
	}
	h->node = n;
	h->done = hot_done[phase];
	h->off = r->off;
	r->depth++;
}

/* Takes one request out of the count of a phase. */
static inline void hot_end(struct node_slot *s, unsigned phase)
{
	if (!--s->hot[phase] && unlikely(s->grace_reply != NULL) && phase != s->phase)
		grace_last(s);
}

/* Counted, and sent to child. */
static inline void hot_forward(struct node *n, struct req *r, struct node *child, uint64_t child_off)
{
	hot_count(n, r);
	r->at = child;
	r->off = child_off;
	child->submit(child, r);
}

/* map_io.c: entry of all format nodes; and of those whose file holds the disk as it is. */
void map_submit(struct node *n, struct req *r);
void through_submit(struct node *n, struct req *r);

/*
 * cold.c: runs fn on a fiber of the node's home queue (home) or of the request's own; what it returns ends the
 * request, COLD_RETRY sends it through n->submit once more, with REQ_REPAIRED set.
 */
#define COLD_RETRY 1
typedef int cold_fn(struct fiber *f, struct node *n, struct req *r);
void cold_start(struct node *n, struct req *r, cold_fn *fn, bool home);

/* cold_read.c, cold_write.c, cold_pack.c, cold_unmap.c: what is done there for formats. */
cold_fn cold_read, cold_unpack, cold_write, cold_pack, cold_unmap, cold_flush, cold_damage;
/* What a request fails with that met e, an ERROR, on its way. */
int damage_met(struct fiber *f, struct node *n, uint64_t off, uint64_t len, const struct extent *e, bool write);
/* Reads [off, off + len) as the guest sees it, piece by piece. */
int read_pieces(struct fiber *f, struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, unsigned nr_iov);
/* Writes with the clusters concerned locked by the caller. */
int write_locked(struct fiber *f, struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
		 unsigned nr_iov);
/*
 * cold_unmap.c: zeroes, also behind the end of the disk: what shall be there when it gets longer. The tables for it are
 * there already.
 */
int zero_range(struct fiber *f, struct node *n, uint64_t off, uint64_t len);
/* The same with the clusters concerned locked by the caller. */
int zero_range_locked(struct fiber *f, struct node *n, uint64_t off, uint64_t len);
/* The disk, which is drained, holds nothing any more, durably: what it reads is its backing image's, or zeroes. */
int make_empty(struct fiber *f, struct node *n);
/* chain_map() after all tables it needs are in memory. */
int chain_map_loaded(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *e);
/* The clusters that [off, off + len) touches, locked. */
void clusters_lock(struct fiber *f, struct node *n, struct range *range, uint64_t off, uint64_t len);

/* guard.c: a raw image that was found by probing. Bytes at the start of a file that formats are recognised by. */
#define PROBE_LEN 2048
cold_fn guard_write;

/*
 * flush.c: sends the flush r, whose r->at has asked for it, to n; flushes that come while one is on its way there wait
 * for it to end, and then share the next.
 */
void flush_share(struct node *n, struct req *r);
void flush_rounds_init(struct flush_rounds *fr, struct node *n);

/*
 * policy.c, for node.c: a request that comes in (false: it waits), and one that failed (true: taken, it will be sent
 * again). The lock keeps slots from going while messages are sent to them.
 */
bool policy_enter(struct node *n, struct node_slot *s, struct req *r);
bool policy_takes(struct node *n, struct req *r, int ret);
void policy_restart(struct node *n, struct node_slot *s);
void policy_lock(struct node *n);
void policy_unlock(struct node *n);
void policy_free(struct node *n);
/* node.c: any thread, under policy_lock(): policy_restart() on the slot's queue. */
void node_slot_restart(struct node_slot *s);

/*
 * throttle.c, for node.c: may a request come in now? False: it waits, and node_admitted() lets it in. Of a slot: what its
 * timer calls.
 */
bool throttle_admit(struct throttle *t, struct node_slot *s, struct req *r);
void throttle_fired(struct timer *timer);
void throttle_free(struct node *n);
void node_admitted(struct node *n, struct node_slot *s, struct req *r);

/* split.c */
void split_start(struct node *n, struct req *r);
int split_pool_new(struct queue *q);

/*
 * chain.c: like map(), but down the chain of backing files: never answers ABSENT. UNLOADED names the node to load.
 * chain_absent(): for n itself that was asked, and *ret is its answer, which is ABSENT.
 */
void chain_map(struct node *n, uint64_t off, uint64_t len, struct extent *ret);
void chain_absent(struct node *n, uint64_t off, struct extent *ret);
struct chain_cache *chain_cache_new(struct node *n);
void chain_cache_free(struct chain_cache *c);

/* align.c: entry of leaves that want aligned requests. */
void align_submit(struct node *n, struct req *r);

/* graph.c: a node and what is below it in its own file, not its backing chain. */
void stack_close(struct fiber *f, struct node *n);

/* graph.c: a file beside that of n, which is being opened, by the options of its own: it takes the engine that n takes. */
int graph_open_beside(struct fiber *f, const struct node *n, struct opts *o, uint32_t flags, struct node **ret,
		      struct varve_error *err);
bool opts_name_a_file(struct opts *o);

/* data_file.c: is the file of both the same? Of a's data and b's, or one's data and the other's file: which data node is it? */
bool node_same_file(const struct node *a, const struct node *b);
const struct node *node_shared_data(const struct node *a, const struct node *b);

/* node_io.c: one request through the door of the disk, as a guest's; waits. */
int node_enter_wait(struct fiber *f, struct node *n, enum req_op op, uint64_t off, void *buf, uint64_t len);

/* node.c */
struct node *node_new(const struct driver *drv, const char *name, struct node *file, uint32_t flags,
		      struct queue *home);
void node_set_submit(struct node *n); /* after the driver's open() */
/*
 * A fiber that works at n without a request, between these two: drain waits for it. False: n is drained, send a request.
 */
bool node_hold(struct node *n, const struct queue *q);
void node_release(struct node *n, const struct queue *q);
void node_free(struct node *n);	      /* this node only; the driver has closed it */

#endif
