/* SPDX-License-Identifier: MIT */
/*
 * job/vmstate_read.c - a state is read, at any place; ahead of who reads on and on
 *
 * The state is looked at in blocks of the buffers' length. One buffer is at hand for the caller; the others hold, or are
 * being filled with, the blocks that come next.
 *
 * Owns:    the buffers and the format's handle on the state.
 * Never:   hands out bytes of a block whose reading failed.
 */
#include "job/vmstate.h"

#include <stdlib.h>
#include <string.h>

#define NO_BLOCK UINT64_MAX

struct read_buf {
	struct vmstate_buf b;
	uint64_t block; /* NO_BLOCK: empty */
};

struct vmstate_reader {
	struct node *n;
	struct snapshot_state *st;
	uint64_t len;
	struct vmstate_io io;
	unsigned depth; /* buffers read ahead; one more is at hand */
	struct read_buf bufs[VMSTATE_DEPTH_MAX + 1];
	unsigned hand;
	uint64_t last; /* block that was asked for last */
};

void vmstate_read_close(struct fiber *f, struct vmstate_reader *r)
{
	if (!r)
		return;
	for (unsigned i = 0; i <= r->depth; i++) {
		vmstate_wait(f, &r->bufs[i].b);
		vmstate_buf_end(&r->bufs[i].b);
	}
	vmstate_io_end(&r->io);
	if (r->st)
		r->n->drv->snapshot_state_close(r->st);
	free(r);
}

int vmstate_read_open(struct fiber *f, struct node *n, const struct snapshot_pick *pick, unsigned depth,
		      struct vmstate_reader **ret, uint64_t *ret_len, struct varve_error *err)
{
	struct vmstate_reader *r = calloc(1, sizeof(*r));
	int error;

	if (!r)
		return varve_error_set(err, -ENOMEM, "state: out of memory");
	r->n = n;
	r->depth = MAX(2u, MIN(depth, VMSTATE_DEPTH_MAX));
	r->last = NO_BLOCK;
	error = vmstate_io_init(&r->io, n->file);
	for (unsigned i = 0; i <= r->depth; i++) {
		if (error == 0)
			error = vmstate_buf_init(&r->bufs[i].b, &r->io);
		r->bufs[i].block = NO_BLOCK;
	}
	if (error < 0)
		varve_error_errno(err, error, "state");
	else
		error = n->drv->snapshot_state_open(f, n, pick, &r->st, &r->len, err);
	if (error < 0) {
		vmstate_read_close(f, r);
		return error;
	}
	*ret = r;
	*ret_len = r->len;
	return 0;
}

size_t vmstate_peek(struct vmstate_reader *r, uint64_t off, const void **ret)
{
	const struct read_buf *rb = &r->bufs[r->hand];
	uint64_t in_block = off % VMSTATE_BUF_LEN;

	if (off >= r->len || rb->block != off / VMSTATE_BUF_LEN)
		return 0;
	*ret = rb->b.mem + in_block;
	return MIN(VMSTATE_BUF_LEN - in_block, r->len - off);
}

/* Sends for a block. What fails at once fails when the block is asked for. */
static void fetch(struct fiber *f, struct vmstate_reader *r, struct read_buf *rb, uint64_t block)
{
	uint64_t off = block * VMSTATE_BUF_LEN, len = MIN(VMSTATE_BUF_LEN, r->len - off);

	rb->block = block;
	rb->b.error = 0;
	/* Whole sectors: what stands behind the state's end in its cluster is nobody's business, but may be read. */
	rb->b.iov[0] = (struct iovec){ rb->b.mem, align_up(len, MIN(4096u, r->n->cluster_len)) };
	rb->b.nr_iov = 1;
	for (uint64_t pos = 0, part; pos < len && !rb->b.error; pos += part) {
		struct extent e;

		r->n->drv->snapshot_state_map(f, r->n, r->st, off + pos, len - pos, &e);
		part = e.len;
		if (e.kind == EXTENT_ZERO) {
			memset(rb->b.mem + pos, 0, part);
		} else if (e.kind == EXTENT_DATA) {
			uint64_t whole = pos + part == len ? rb->b.iov[0].iov_len - pos : part;
			uint64_t there = node_len(r->io.file) - MIN(e.host_off, node_len(r->io.file));
			int error;

			whole = MIN(whole, MAX(part, there)); /* the file may end where the state does */
			error = vmstate_send(f, &rb->b, REQ_READ, pos, whole, e.host_off);
			if (error < 0)
				rb->b.error = error;
		} else {
			rb->b.error = e.error ? e.error : -EIO;
		}
	}
}

static struct read_buf *find(struct vmstate_reader *r, uint64_t block)
{
	for (unsigned i = 0; i <= r->depth; i++) {
		if (r->bufs[i].block == block)
			return &r->bufs[i];
	}
	return NULL;
}

/* A buffer that holds nothing of [first, first + depth], the blocks that are wanted. */
static struct read_buf *find_free(struct vmstate_reader *r, uint64_t first)
{
	for (unsigned i = 0; i <= r->depth; i++) {
		struct read_buf *rb = &r->bufs[i];

		if (!rb->b.in_flight && (rb->block == NO_BLOCK || rb->block < first || rb->block - first > r->depth))
			return rb;
	}
	return NULL;
}

/* What comes behind `block`, if whoever reads goes on and on. */
static void fetch_ahead(struct fiber *f, struct vmstate_reader *r, uint64_t block)
{
	for (uint64_t next = block + 1; next <= block + r->depth && next * VMSTATE_BUF_LEN < r->len; next++) {
		struct read_buf *rb = find(r, next) ? NULL : find_free(r, block);

		if (rb)
			fetch(f, r, rb, next);
	}
}

int vmstate_read_seek(struct fiber *f, struct vmstate_reader *r, uint64_t off, struct varve_error *err)
{
	uint64_t block = off / VMSTATE_BUF_LEN;
	struct read_buf *rb = find(r, block);
	int error;

	while (!rb) {
		rb = find_free(r, block);
		if (rb)
			fetch(f, r, rb, block);
		else /* all are being filled with what was wanted before */
			waitlist_wait(f, &r->io.waiting);
	}
	if (r->last == NO_BLOCK ? block == 0 : block == r->last + 1)
		fetch_ahead(f, r, block);
	r->last = block;
	vmstate_wait(f, &rb->b);
	error = rb->b.error;
	if (error < 0) {
		rb->block = NO_BLOCK;
		return varve_error_errno(err, error, "cannot read the state at offset %llu", (unsigned long long)off);
	}
	r->hand = (unsigned)(rb - r->bufs);
	return 0;
}
