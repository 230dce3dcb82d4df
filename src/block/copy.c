/* SPDX-License-Identifier: MIT */
/*
 * block/copy.c - copying from disk to disk
 *
 * Where both maps say "plain data, in place, in a file", the file's driver is asked to copy without moving
 * bytes through this process. Everything else, and whatever the driver cannot do, is read and written as a
 * guest would.
 *
 * Owns:    the bounce buffer, and while it copies by the driver: the lock of both ranges, a place at both
 * doors. Assumes: a fiber of the home queue of both disks. Never:   goes around a filter, copy-on-read, or
 * the guard of a probed raw image.
 */
#include "block/copy.h"
#include "block/block.h"

#include <stdlib.h>

#define BOUNCE_LEN MiB(1)
#define OFFLOAD_LEN MiB(64) /* so much is locked at a time */
#define REFUSALS_MAX 3	    /* then the driver is not asked any more: these two files do not go together */
#define PROGRESS_NS 100000000

/* ---- by the driver ---- */

/* The format whose map tells the truth about what the top's reader sees; NULL: a filter may see it otherwise.
 */
static struct node *plain_format(struct node *top)
{
	return top->drv->kind == DRIVER_FORMAT && !top->cor ? top : NULL;
}

static bool is_plain(const struct extent *e, bool for_writing)
{
	return e->kind == EXTENT_DATA && e->node->drv->copy_range &&
	       (!for_writing || (e->flags & EXTENT_INPLACE));
}

/* The start of a raw image that was found by probing is written by requests only, which are looked at. */
static bool is_guarded(const struct node_copy *c)
{
	return (c->dst->flags & NODE_PROBED) && c->dst_off < PROBE_LEN;
}

/* Two ranges that others may lock, too, in the same order by everybody: no one waits for the other in a
 * circle. */
struct range_pair {
	struct node *node[2];
	struct range range[2];
	unsigned nr;
};

static void pair_lock(struct fiber *f, struct range_pair *p, struct node *a, uint64_t a_off, struct node *b,
		      uint64_t b_off, uint64_t len)
{
	if (a == b) { /* the clusters at their ends may be the same: one lock over both */
		uint64_t first = MIN(a_off, b_off);

		p->nr = 1;
		p->node[0] = a;
		clusters_lock(f, a, &p->range[0], first, MAX(a_off, b_off) + len - first);
		return;
	}
	p->nr = 2;
	p->node[0] = a < b ? a : b;
	p->node[1] = a < b ? b : a;
	for (unsigned i = 0; i < 2; i++)
		clusters_lock(f, p->node[i], &p->range[i], p->node[i] == a ? a_off : b_off, len);
}

static void pair_unlock(struct range_pair *p)
{
	while (p->nr--)
		range_unlock(&p->node[p->nr]->ranges, &p->range[p->nr]);
}

/* What the disk itself has there. What a backing image has may be read from there; nobody writes there. */
static int own_map(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *e)
{
	int ret = 0;

	n->drv->map(n, off, len, e);
	while (ret == 0 && e->kind == EXTENT_UNLOADED) {
		ret = n->drv->load(f, n, off);
		if (ret == 0)
			n->drv->map(n, off, len, e);
	}
	return ret;
}

/* With both ranges locked: what they are now cannot change under us. */
static int offload_locked(struct fiber *f, struct node_copy *c, uint64_t len, uint64_t *ret_len)
{
	struct extent from, to;
	struct range range;
	int ret = chain_map_loaded(f, c->src, c->src_off, len, &from);

	if (ret == 0)
		ret = own_map(f, c->dst, c->dst_off, from.len, &to);
	if (ret < 0)
		return ret;
	if (!is_plain(&from, false) || !is_plain(&to, true) ||
	    from.node->drv->copy_range != to.node->drv->copy_range)
		return -ENOTSUP;
	/* Others may be reading blocks of the file to change a part of them and write them back (align.c). */
	range_lock(f, &to.node->ranges, &range, to.host_off, to.len);
	if (c->dst->flags & NODE_NOTES)
		c->dst->drv->note_write(c->dst, c->dst_off, to.len);
	ret = to.node->drv->copy_range(f, from.node, from.host_off, to.node, to.host_off, to.len, ret_len);
	range_unlock(&to.node->ranges, &range);
	if (ret != -ENOTSUP)
		c->refusals = 0;
	else if (++c->refusals == REFUSALS_MAX)
		c->offload = false;
	return ret;
}

/* Copies *ret_len > 0 bytes, or -ENOTSUP: not here, or not now. */
static int offload(struct fiber *f, struct node_copy *c, uint64_t *ret_len)
{
	uint64_t len = MIN(c->len, OFFLOAD_LEN);
	struct node *src = plain_format(c->src), *dst = plain_format(c->dst);
	struct queue *q = fiber_queue(f);
	struct range_pair pair;
	int ret = -ENOTSUP;

	if (!src || !dst || is_guarded(c))
		return ret;
	pair_lock(f, &pair, src, c->src_off, dst, c->dst_off, len);
	/* As a guest's request does: whoever drains the disk waits for us; while he has it, requests wait for
	 * him. */
	if (node_hold(src, q)) {
		if (node_hold(dst, q)) {
			ret = offload_locked(f, c, len, ret_len);
			node_release(dst, q);
		}
		node_release(src, q);
	}
	pair_unlock(&pair);
	return ret;
}

/* ---- by reading and writing ---- */

static int bounce(struct fiber *f, const struct node_copy *c, void *buf, uint64_t *ret_len)
{
	struct node *src = plain_format(c->src);
	struct extent e = { .kind = EXTENT_DATA, .len = c->len };
	int ret = 0;

	if (src)
		ret = chain_map_loaded(f, src, c->src_off, c->len, &e);
	if (ret < 0)
		return ret;
	if (e.kind == EXTENT_ZERO) {
		ret = node_enter_wait(f, c->dst, REQ_ZERO, c->dst_off, NULL, e.len);
	} else {
		e.len = MIN(e.len, BOUNCE_LEN);
		if (is_guarded(c)) /* no further than it must be: the rest may go by the driver */
			e.len = MIN(e.len, PROBE_LEN - c->dst_off);
		ret = node_enter_wait(f, c->src, REQ_READ, c->src_off, buf, e.len);
		if (ret == 0)
			ret = node_enter_wait(f, c->dst, REQ_WRITE, c->dst_off, buf, e.len);
	}
	*ret_len = e.len;
	return ret;
}

/* ---- the whole ---- */

/* The rest of *c, which moves on with each step. */
static int copy_all(struct fiber *f, struct node_copy *c, void *buf)
{
	uint64_t total = c->len, told = queue_now(fiber_queue(f)), step;

	for (; c->len; c->src_off += step, c->dst_off += step, c->len -= step) {
		int ret = node_ending(c->dst) ? -ECANCELED : c->offload ? offload(f, c, &step) : -ENOTSUP;

		if (ret == 0)
			c->offloaded += step;
		else if (ret == -ENOTSUP)
			ret = bounce(f, c, buf, &step);
		if (ret < 0)
			return ret;
		if (c->progress && queue_now(fiber_queue(f)) - told >= PROGRESS_NS) {
			told = queue_now(fiber_queue(f));
			c->progress(c->user_data, total - c->len + step, total);
		}
	}
	if (c->progress)
		c->progress(c->user_data, total, total);
	return 0;
}

int node_copy(struct fiber *f, struct node_copy *c)
{
	void *buf;
	int ret;

	assert(c->src->home == c->dst->home && fiber_queue(f) == c->src->home);
	c->offloaded = 0;
	if (posix_memalign(&buf, 65536, BOUNCE_LEN))
		return -ENOMEM;
	ret = copy_all(f, c, buf);
	free(buf);
	/* What went through the door is stable already; what the driver copied is not. */
	if (ret == 0 && c->offloaded && (c->dst->flags & NODE_WRITETHROUGH))
		ret = node_enter_wait(f, c->dst, REQ_FLUSH, 0, NULL, 0);
	return ret;
}
