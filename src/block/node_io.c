/* SPDX-License-Identifier: MIT */
/*
 * block/node_io.c - I/O for code on a fiber: submit, wait, return the result
 *
 * Assumes: the fiber's queue is attached to the node. The request lies on the fiber's stack.
 */
#include "aio/perturb.h"
#include "base/iov.h"
#include "block/block.h"

struct waiting_req {
	struct fiber *f;
	bool finished;
	int ret;
};

static void wait_done(struct req *r, int ret)
{
	struct waiting_req *w = (struct waiting_req *)req_state(r);

	w->ret = ret;
	w->finished = true;
	fiber_wake(w->f);
}

int node_submit_wait(struct fiber *f, struct node *n, struct req *r)
{
	struct waiting_req w = { .f = f };

	/* The last hop is ours; it ends the request here instead of calling r->done. */
	r->at = n;
	req_set_state(r, (uintptr_t)&w);
	perturb(f);
	req_forward(r, n, r->off, wait_done);
	while (!w.finished)
		fiber_wait(f);
	perturb(f);
	return w.ret;
}

struct entering_req {
	struct req r;
	struct waiting_req w;
};

static void enter_done(struct req *r, int ret)
{
	struct entering_req *e = container_of(r, struct entering_req, r);

	e->w.ret = ret;
	e->w.finished = true;
	fiber_wake(e->w.f);
}

int node_enter_wait(struct fiber *f, struct node *n, enum req_op op, uint64_t off, void *buf, uint64_t len)
{
	struct entering_req e = { .w.f = f };
	struct iovec iov = { buf, len };

	req_init(&e.r, fiber_queue(f), op, off, len, buf ? &iov : NULL, buf ? 1 : 0, 0, enter_done);
	node_submit(n, &e.r);
	while (!e.w.finished)
		fiber_wait(f);
	perturb(f);
	return e.w.ret;
}

static int node_io(struct fiber *f, struct node *n, enum req_op op, uint64_t off, uint64_t len,
		   const struct iovec *iov, unsigned nr_iov, uint32_t flags)
{
	struct req r;

	if (!len)
		return 0;
	req_init(&r, fiber_queue(f), op, off, len, iov, nr_iov, flags, NULL);
	return node_submit_wait(f, n, &r);
}

int node_read(struct fiber *f, struct node *n, uint64_t off, void *buf, size_t len)
{
	struct iovec iov = { buf, len };

	return node_io(f, n, REQ_READ, off, len, &iov, 1, REQ_META);
}

int node_write(struct fiber *f, struct node *n, uint64_t off, const void *buf, size_t len)
{
	struct iovec iov = { (void *)buf, len };

	return node_io(f, n, REQ_WRITE, off, len, &iov, 1, REQ_META);
}

int node_readv(struct fiber *f, struct node *n, uint64_t off, const struct iovec *iov, unsigned nr_iov)
{
	return node_io(f, n, REQ_READ, off, iov_len(iov, nr_iov), iov, nr_iov, 0);
}

int node_writev(struct fiber *f, struct node *n, uint64_t off, const struct iovec *iov, unsigned nr_iov, uint32_t flags)
{
	return node_io(f, n, REQ_WRITE, off, iov_len(iov, nr_iov), iov, nr_iov, flags);
}

struct waiting_writes {
	struct fiber *f;
	unsigned in_flight;
	int error;
};

static void one_of_all_done(struct req *r, int ret)
{
	struct waiting_writes *w = (struct waiting_writes *)req_state(r);

	if (ret < 0 && !w->error)
		w->error = ret;
	if (--w->in_flight == 0)
		fiber_wake(w->f);
}

int node_write_all(struct fiber *f, struct node *n, struct node_write *writes, unsigned nr)
{
	struct waiting_writes w = { .f = f, .in_flight = nr };

	for (unsigned i = 0; i < nr; i++) {
		struct node_write *x = &writes[i];

		req_init(&x->r, fiber_queue(f), REQ_WRITE, x->off, x->len, x->iov, x->nr_iov, x->flags, NULL);
		x->r.at = n;
		req_set_state(&x->r, (uintptr_t)&w); /* the last hop is ours, as above */
		req_forward(&x->r, n, x->off, one_of_all_done);
	}
	while (w.in_flight)
		fiber_wait(f);
	perturb(f);
	return w.error;
}

int node_flush(struct fiber *f, struct node *n)
{
	struct entering_req e = { .w.f = f };

	req_init(&e.r, fiber_queue(f), REQ_FLUSH, 0, 0, NULL, 0, REQ_META, enter_done);
	e.r.at = n;
	flush_share(n, &e.r);
	while (!e.w.finished)
		fiber_wait(f);
	perturb(f);
	return e.w.ret;
}

int node_discard(struct fiber *f, struct node *n, uint64_t off, uint64_t len)
{
	return node_io(f, n, REQ_DISCARD, off, len, NULL, 0, 0);
}

int node_zero(struct fiber *f, struct node *n, uint64_t off, uint64_t len, uint32_t flags)
{
	return node_io(f, n, REQ_ZERO, off, len, NULL, 0, flags);
}

/* Lengths belong to the leaf: filters in between do not change them. */
static struct node *leaf_below(struct node *n)
{
	while (n->drv->kind != DRIVER_LEAF)
		n = n->file;
	return n;
}

int64_t node_file_len(struct fiber *f, struct node *n)
{
	n = leaf_below(n);
	return n->drv->get_len ? n->drv->get_len(f, n) : (int64_t)node_len(n);
}

/* Where n begins in its leaf. */
static uint64_t begins_at(const struct node *n)
{
	uint64_t off = 0;

	for (; n->drv->kind != DRIVER_LEAF; n = n->file)
		off += n->through_off;
	return off;
}

/* The leaf is longer now, so that n is at least len long. */
static int tell_longer(struct node *n, const struct node *leaf, uint64_t len)
{
	int ret = 0;

	for (; ret == 0 && n != leaf; n = n->file) {
		atomic_store(&n->len, node_len(leaf) - begins_at(n));
		if (n->drv->length_set)
			ret = n->drv->length_set(n, len, true);
		len += n->through_off;
	}
	return ret;
}

int node_extend(struct fiber *f, struct node *n, uint64_t len)
{
	struct node *leaf = leaf_below(n);
	int ret = leaf->drv->extend ? leaf->drv->extend(f, leaf, begins_at(n) + len) : -ENOTSUP;

	return ret < 0 ? ret : tell_longer(n, leaf, len);
}

int node_allocate(struct fiber *f, struct node *n, uint64_t off, uint64_t len)
{
	struct node *leaf = leaf_below(n);
	uint64_t before = node_len(leaf);
	int ret = leaf->drv->allocate ? leaf->drv->allocate(f, leaf, begins_at(n) + off, len) : 0;

	return ret < 0 || node_len(leaf) == before ? ret : tell_longer(n, leaf, off + len);
}

void node_watch_len(struct node *n, struct len_watch *w)
{
	assert(queue_is_mine(n->home));
	TAILQ_INSERT_TAIL(&n->len_watches, w, link);
}

void node_unwatch_len(struct node *n, struct len_watch *w)
{
	assert(queue_is_mine(n->home));
	TAILQ_REMOVE(&n->len_watches, w, link);
}

static void len_changed(struct node *n)
{
	struct len_watch *w;

	TAILQ_FOREACH(w, &n->len_watches, link)
		w->changed(w);
}

int node_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc, struct varve_error *err)
{
	int ret;

	if (n->drv->kind == DRIVER_FILTER) {
		ret = node_truncate(f, n->file, len, prealloc, err);
		if (ret == 0)
			atomic_store(&n->len, node_len(n->file));
		if (ret == 0 && n->drv->length_set) {
			ret = n->drv->length_set(n, len, false);
			if (ret < 0)
				varve_error_errno(err, ret, "%s: driver %s", node_name(n), n->drv->name);
		}
		if (ret == 0)
			len_changed(n);
		return ret;
	}
	if (!n->drv->truncate)
		return varve_error_set(err, -ENOTSUP, "%s: driver %s cannot change its length", node_name(n),
				       n->drv->name);
	n->truncating++;
	if (n->noted_len && len < atomic_load_explicit(n->noted_len, memory_order_acquire))
		atomic_store_explicit(n->noted_len, len, memory_order_release);
	ret = n->drv->truncate(f, n, len, prealloc, err);
	n->truncating--;
	if (ret == 0)
		len_changed(n);
	return ret;
}
