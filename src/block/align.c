/* SPDX-License-Identifier: MIT */
/*
 * block/align.c - the door of leaves and filters that want aligned requests (O_DIRECT, block devices, a write log)
 *
 * Aligned requests pass. Unaligned ones take a fiber and a bounce buffer. A write that covers part of a block reads the
 * block, changes it, writes it back; meanwhile no other write may touch the block, or it would be overwritten with
 * what was read before. Aligned writes do not lock anything as long as no such thing goes on: the first
 * read-modify-write raises n->serialising, which sends all writes to the range lock, and waits (grace) for those that
 * were already on their way.
 *
 * Memory:  one bounce buffer of at most BOUNCE_LEN for each fiber of the leaf; short ones out of the queue's pool, which the
 *          engine may have registered.
 */
#include "base/iov.h"
#include "block/block.h"
#include "block/event.h"

#include <errno.h>
#include <string.h>

#define BOUNCE_LEN MiB(1)

/* For our own requests, which are aligned and hold the lock they need: straight to the driver. */
static int leaf_io(struct fiber *f, struct node *n, enum req_op op, uint64_t off, uint64_t len,
		   const struct iovec *iov, unsigned nr_iov, uint32_t flags)
{
	struct req r;

	req_init(&r, fiber_queue(f), op, off, len, iov, nr_iov, flags | REQ_ALIGNED | REQ_META, NULL);
	return node_submit_wait(f, n, &r);
}

static void *bounce_get(struct fiber *f, const struct node *n, uint64_t len)
{
	return aio_bounce_get(fiber_queue(f), len, MAX(n->align, n->mem_align));
}

static int bounce_read(struct fiber *f, struct node *n, struct req *r)
{
	uint64_t first = align_down(r->off, n->align), end = align_up(r->off + r->len, n->align);
	uint64_t step = MIN(end - first, BOUNCE_LEN);
	void *buf = bounce_get(f, n, step);
	int ret = 0;

	if (!buf)
		return -ENOMEM;
	node_event(f, n, req_event(r));
	for (uint64_t pos = first; ret == 0 && pos < end; pos += step) {
		struct iovec iov = { buf, MIN(step, end - pos) };
		uint64_t from = MAX(pos, r->off), to = MIN(pos + iov.iov_len, r->off + r->len);

		ret = leaf_io(f, n, REQ_READ, pos, iov.iov_len, &iov, 1, 0);
		if (ret == 0)
			iov_from_buf(r->iov, r->nr_iov, from - r->off, (char *)buf + (from - pos), to - from);
	}
	aio_bounce_put(fiber_queue(f), buf);
	return ret;
}

/* One bounce buffer full: [pos, pos + len) aligned; the guest's part of it is [from, to). */
static int rmw_step(struct fiber *f, struct node *n, const struct req *r, void *buf, uint64_t pos, uint64_t len)
{
	uint64_t from = MAX(pos, r->off), to = MIN(pos + len, r->off + r->len);
	struct iovec iov = { buf, n->align };
	int ret = 0;

	if (from > pos) {
		node_event(f, n, EVENT_PWRITEV_RMW_HEAD);
		ret = leaf_io(f, n, REQ_READ, pos, n->align, &iov, 1, 0);
		node_event(f, n, EVENT_PWRITEV_RMW_AFTER_HEAD);
	}
	if (ret == 0 && to < pos + len && (from == pos || len > n->align)) {
		iov.iov_base = (char *)buf + len - n->align;
		node_event(f, n, EVENT_PWRITEV_RMW_TAIL);
		ret = leaf_io(f, n, REQ_READ, pos + len - n->align, n->align, &iov, 1, 0);
		node_event(f, n, EVENT_PWRITEV_RMW_AFTER_TAIL);
	}
	if (ret < 0)
		return ret;
	if (r->op == REQ_ZERO)
		memset((char *)buf + (from - pos), 0, to - from);
	else
		iov_to_buf(r->iov, r->nr_iov, from - r->off, (char *)buf + (from - pos), to - from);
	iov = (struct iovec){ buf, len };
	return leaf_io(f, n, REQ_WRITE, pos, len, &iov, 1, r->flags & REQ_FUA);
}

static int bounce_write(struct fiber *f, struct node *n, struct req *r)
{
	uint64_t first = align_down(r->off, n->align), end = align_up(r->off + r->len, n->align);
	uint64_t step = MIN(end - first, BOUNCE_LEN);
	void *buf = bounce_get(f, n, step);
	int ret = 0;

	if (!buf)
		return -ENOMEM;
	for (uint64_t pos = first; ret == 0 && pos < end; pos += step)
		ret = rmw_step(f, n, r, buf, pos, MIN(step, end - pos));
	aio_bounce_put(fiber_queue(f), buf);
	return ret;
}

static void serialising_begin(struct fiber *f, struct node *n)
{
	/* Whoever comes second waits here until the first one's grace period is over. */
	fiber_lock(f, &n->serial_mutex);
	if (!atomic_fetch_add(&n->serialising, 1))
		node_grace(f, n);
	fiber_unlock(&n->serial_mutex);
}

static bool in_file_aligned(const struct node *n, const struct req *r)
{
	return is_aligned(r->off | r->len, n->align);
}

/* Writes and zeroes on the home queue, under the range lock. */
static int serial_write(struct fiber *f, struct node *n, struct req *r)
{
	bool rmw = !in_file_aligned(n, r);
	uint64_t first = align_down(r->off, n->align);
	struct range range;
	int ret;

	node_event(f, n, req_event(r));
	if (rmw)
		serialising_begin(f, n);
	range_lock(f, &n->ranges, &range, first, align_up(r->off + r->len, n->align) - first);
	if (rmw || (r->op == REQ_WRITE && !iov_is_aligned(r->iov, r->nr_iov, n->mem_align)))
		ret = bounce_write(f, n, r);
	else
		ret = leaf_io(f, n, r->op, r->off, r->len, r->iov, r->nr_iov, r->flags & (REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK));
	range_unlock(&n->ranges, &range);
	if (rmw)
		atomic_fetch_sub(&n->serialising, 1);
	return ret;
}

/* What is not a multiple of the block keeps its content: discards are advice. */
static bool discard_shrink(const struct node *n, struct req *r)
{
	uint64_t first = align_up(r->off, n->align), end = align_down(r->off + r->len, n->align);

	if (first >= end)
		return false;
	r->off = first;
	r->len = end - first;
	return true;
}

void align_submit(struct node *n, struct req *r)
{
	bool changes = r->op == REQ_WRITE || r->op == REQ_ZERO;

	if (r->op == REQ_FLUSH || (r->flags & REQ_ALIGNED)) {
		n->drv->submit(n, r);
		return;
	}
	if (r->op == REQ_DISCARD) {
		if (discard_shrink(n, r))
			n->drv->submit(n, r);
		else
			req_done(r, 0);
		return;
	}
	if (unlikely(!in_file_aligned(n, r) || (r->iov && !iov_is_aligned(r->iov, r->nr_iov, n->mem_align)))) {
		cold_start(n, r, changes ? serial_write : bounce_read, changes);
		return;
	}
	if (!changes) {
		n->drv->submit(n, r);
		return;
	}
	/*
	 * Any queue. Pairs with node_grace() after the increment: we see it, or home waits for us; and the acquire with
	 * the decrement: what was written under the lock comes before what we write.
	 */
	if (unlikely(atomic_load_explicit(&n->serialising, memory_order_acquire))) {
		cold_start(n, r, serial_write, true);
	} else {
		hot_count(n, r);
		n->drv->submit(n, r);
	}
}
