/* SPDX-License-Identifier: MIT */
/*
 * block/map_io.c - the hot path of every format: look up, send on
 *
 * Assumes: the format's map() is a pure look-up, safe on any attached queue. Where there is nothing to look up
 *          (n->through) nothing can be taken away either: such I/O is not counted for grace.c.
 * Never:   allocates, locks, waits, or moves guest data. What needs any of that goes to the cold path, which
 *          repairs the mapping and sends the request here again.
 */
#include "base/iov.h"
#include "block/block.h"
#include "block/copy_on_read.h"

static void go_cold(struct node *n, struct req *r, cold_fn *fn)
{
	node_slot(n, r->q)->nr_cold++;
	cold_start(n, r, fn, true);
}

/* *e: what map() answered. */
static __attribute__((noinline)) void read_mapped(struct node *n, struct req *r, struct extent *e)
{
	if (e->kind == EXTENT_ABSENT)
		chain_absent(n, r->off, e);
	if (unlikely(e->kind == EXTENT_UNLOADED)) {
		go_cold(n, r, cold_read);
		return;
	}
	if (unlikely(e->len < r->len)) {
		if (r->flags & REQ_SUB) /* a mapping changed meanwhile: pieces of pieces are read on a fiber */
			go_cold(n, r, cold_read);
		else
			split_start(n, r);
		return;
	}
	switch (e->kind) {
	case EXTENT_DATA:
		hot_forward(n, r, e->node, e->host_off);
		return;
	case EXTENT_ZERO:
		iov_fill(r->iov, r->nr_iov, 0, 0, r->len);
		req_done(r, 0);
		return;
	case EXTENT_PACKED:
		go_cold(n, r, cold_unpack);
		return;
	default:
		if (n->drv->damage)
			go_cold(n, r, cold_damage);
		else
			req_done(r, e->error ? e->error : -EIO);
	}
}

static void map_read(struct node *n, struct req *r)
{
	struct extent e;

	if (unlikely(n->cor) && !(r->flags & REQ_REPAIRED) && cor_wants(n, r)) {
		go_cold(n, r, cor_read);
		return;
	}
	n->drv->map(n, r->off, r->len, &e);
	read_mapped(n, r, &e);
}

static __attribute__((noinline)) void write_mapped(struct node *n, struct req *r, const struct extent *e)
{
	if (e->kind != EXTENT_DATA || !(e->flags & EXTENT_INPLACE)) {
		go_cold(n, r, cold_write);
		return;
	}
	if (e->len < r->len) {
		if (r->flags & REQ_SUB)
			go_cold(n, r, cold_write);
		else
			split_start(n, r);
		return;
	}
	hot_forward(n, r, e->node, e->host_off);
}

static void map_write(struct node *n, struct req *r)
{
	struct extent e;

	if (unlikely(n->flags & NODE_PROBED) && r->off < PROBE_LEN) {
		go_cold(n, r, guard_write);
		return;
	}
	if (unlikely(r->flags & REQ_COMPRESS)) {
		go_cold(n, r, cold_pack);
		return;
	}
	n->drv->map(n, r->off, r->len, &e);
	write_mapped(n, r, &e);
}

/* Discard and write-zeroes. Formats without a mapping of their own (raw) leave it to the file. */
static void map_unmap(struct node *n, struct req *r)
{
	struct extent e;

	if (n->drv->unlink) {
		go_cold(n, r, cold_unmap);
		return;
	}
	if (unlikely(n->flags & NODE_PROBED) && r->off < PROBE_LEN) {
		if (r->op == REQ_ZERO)
			go_cold(n, r, guard_write);
		else
			req_done(r, 0); /* a discarded first sector could read as anything: keep it */
		return;
	}
	n->drv->map(n, r->off, r->len, &e);
	if (e.kind != EXTENT_DATA || e.len < r->len) {
		req_done(r, e.error ? e.error : -EIO);
		return;
	}
	hot_forward(n, r, e.node, e.host_off);
}

static void map_flush(struct node *n, struct req *r)
{
	if (!(n->flags & NODE_WRITABLE))
		req_done(r, 0);
	else if (!n->drv->sync || n->drv->clean(n))
		flush_share(n->data ? n->data : n->file, r); /* clean: of metadata, all is durable */
	else
		go_cold(n, r, cold_flush);
}

static int cold_detour(struct fiber *f, struct node *n, struct req *r)
{
	return COLD_RETRY;
}

static __attribute__((noinline)) void submit_any(struct node *n, struct req *r)
{
	/* Before anything happens to it, so before it is acknowledged; a request that comes a second time is noted again, for nothing. */
	if (unlikely(n->flags & NODE_NOTES) && r->op != REQ_READ && r->op != REQ_FLUSH)
		n->drv->note_write(n, r->off, r->len);
	if (unlikely(n->flags & NODE_FORCE_COLD) && !(r->flags & REQ_REPAIRED)) {
		if (r->op == REQ_READ || r->op == REQ_FLUSH || !n->drv->alloc)
			go_cold(n, r, r->op != REQ_READ ? cold_detour : n->cor ? cor_read : cold_read);
		else if (r->op == REQ_WRITE)
			go_cold(n, r, r->flags & REQ_COMPRESS ? cold_pack : cold_write);
		else
			go_cold(n, r, cold_unmap);
		return;
	}
	switch (r->op) {
	case REQ_READ:
		map_read(n, r);
		break;
	case REQ_WRITE:
		map_write(n, r);
		break;
	case REQ_DISCARD:
	case REQ_ZERO:
		map_unmap(n, r);
		break;
	case REQ_FLUSH:
		map_flush(n, r);
		break;
	default:
		req_done(r, -EINVAL);
	}
}

/* One stretch of data, read or written in place: most requests are that, and are done with here. */
void map_submit(struct node *n, struct req *r)
{
	bool write = r->op == REQ_WRITE;
	struct extent e;

	if (unlikely(r->op > REQ_WRITE || n->cor || (n->flags & (NODE_FORCE_COLD | NODE_PROBED | NODE_NOTES)) ||
		     (r->flags & REQ_COMPRESS))) {
		submit_any(n, r);
		return;
	}
	n->drv->map(n, r->off, r->len, &e);
	if (likely(e.kind == EXTENT_DATA && e.len >= r->len && (!write || (e.flags & EXTENT_INPLACE))))
		hot_forward(n, r, e.node, e.host_off);
	else if (write)
		write_mapped(n, r, &e);
	else
		read_mapped(n, r, &e);
}

void through_submit(struct node *n, struct req *r)
{
	struct node *file = n->file;
	bool plain = r->op == REQ_READ || (r->op == REQ_WRITE && !(r->flags & REQ_COMPRESS) &&
					   (!(n->flags & NODE_PROBED) || r->off >= PROBE_LEN));

	if (unlikely(!plain)) {
		map_submit(n, r);
		return;
	}
	node_slot(n, r->q)->nr_hot++;
	r->at = file;
	r->off += n->through_off;
	file->submit(file, r);
}
