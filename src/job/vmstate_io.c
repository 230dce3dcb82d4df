/* SPDX-License-Identifier: MIT */
/*
 * job/vmstate_io.c - pieces: requests that are in flight while the fiber that sent them has gone on
 *
 * Owns:    the pieces of one stream, so many that a fragmented file cannot ask for more memory.
 * Assumes: fibers of the home queue. Whoever ends a stream has waited for all of its buffers.
 */
#include "job/vmstate.h"

#include <stdlib.h>

#include "base/iov.h"

int vmstate_io_init(struct vmstate_io *io, struct node *file)
{
	*io = (struct vmstate_io){ .file = file };
	io->pieces = calloc(VMSTATE_PIECES, sizeof(io->pieces[0]));
	if (!io->pieces)
		return -ENOMEM;
	for (unsigned i = 0; i < VMSTATE_PIECES; i++) {
		io->pieces[i].next = io->free;
		io->free = &io->pieces[i];
	}
	return 0;
}

void vmstate_io_end(struct vmstate_io *io)
{
	free(io->pieces);
	io->pieces = io->free = NULL;
}

int vmstate_buf_init(struct vmstate_buf *b, struct vmstate_io *io)
{
	*b = (struct vmstate_buf){ .io = io };
	b->mem = aligned_alloc(4096, VMSTATE_BUF_LEN);
	b->iov = malloc(VMSTATE_IOV * sizeof(b->iov[0]));
	return b->mem && b->iov ? 0 : -ENOMEM;
}

void vmstate_buf_end(struct vmstate_buf *b)
{
	free(b->mem);
	free(b->iov);
}

static void piece_done(struct req *r, int ret)
{
	struct vmstate_piece *p = container_of(r, struct vmstate_piece, r);
	struct vmstate_buf *b = p->buf;

	if (ret < 0 && !b->error)
		b->error = ret;
	b->in_flight--;
	free(p->iov);
	p->next = b->io->free;
	b->io->free = p;
	waitlist_wake_all(&b->io->waiting);
}

int vmstate_send(struct fiber *f, struct vmstate_buf *b, enum req_op op, uint64_t pos, uint64_t len, uint64_t off)
{
	struct vmstate_io *io = b->io;
	const struct iovec *iov = b->iov;
	unsigned nr = b->nr_iov;
	struct vmstate_piece *p;
	size_t got;

	while (!io->free)
		waitlist_wait(f, &io->waiting);
	p = io->free;
	p->iov = NULL;
	if (pos || len != iov_len(iov, nr)) {
		p->iov = malloc(nr * sizeof(iov[0]));
		if (!p->iov)
			return -ENOMEM;
		nr = iov_slice(p->iov, nr, iov, nr, pos, len, &got);
		assert(got == len);
		iov = p->iov;
	}
	io->free = p->next;
	p->buf = b;
	b->in_flight++;
	req_init(&p->r, fiber_queue(f), op, off, len, iov, nr, 0, piece_done);
	p->r.at = io->file;
	req_forward(&p->r, io->file, off, NULL);
	return 0;
}

void vmstate_wait(struct fiber *f, struct vmstate_buf *b)
{
	while (b->in_flight)
		waitlist_wait(f, &b->io->waiting);
}
