/* SPDX-License-Identifier: MIT */
/*
 * job/vmstate_write.c - a state is written: small records gather in large buffers
 *
 *     caller:  record record record ▶ [ buffer at hand ]
 *     home:                           [ in flight ] [ in flight ] ... ▶ disk
 *
 * Only the last buffer is not full, and it is written when the stream is closed. Records may be given by reference: then the
 * buffer's vector leads to the caller's memory, except where the file wants aligned memory and a copy is cheaper here than
 * below.
 *
 * Owns:    the buffers, and the draft of the snapshot until it is committed or aborted.
 * Never:   forgets an error: the first one ends the stream, whatever comes later.
 */
#include "job/vmstate.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAD_LEN 4096 /* the last buffer ends at a multiple, or at a cluster's end */

struct ref {
	void *buf;
	size_t len;
	bool give_back;
};

struct write_buf {
	struct vmstate_buf b;
	size_t fill;	 /* bytes of the stream in it */
	size_t mem_used; /* of these, copied into b.mem */
	struct ref *refs;
	unsigned nr_refs;
	bool refs_over; /* home: what they lead to is not needed any more */
};

struct vmstate_writer {
	struct node *n;
	struct snapshot_draft *draft; /* NULL: committed or aborted */
	struct vmstate_io io;
	unsigned depth;		       /* buffers in flight; one more is at hand */
	struct write_buf bufs[VMSTATE_DEPTH_MAX + 1];
	unsigned hand;		       /* which one; the next in the row is the oldest in flight */
	bool copy_refs;
	uint64_t pos;
	struct extent space; /* what is left of the space that the format gave last */
	int error;
	struct varve_error why;
};

/* ---- open, end ---- */

void vmstate_write_free(struct vmstate_writer *w)
{
	if (!w)
		return;
	for (unsigned i = 0; i <= w->depth; i++) {
		vmstate_buf_end(&w->bufs[i].b);
		free(w->bufs[i].refs);
	}
	vmstate_io_end(&w->io);
	free(w);
}

static struct vmstate_writer *writer_new(struct node *n, unsigned depth)
{
	struct vmstate_writer *w = calloc(1, sizeof(*w));
	struct node *leaf = n->file;
	int ret;

	if (!w)
		return NULL;
	while (leaf->file)
		leaf = leaf->file;
	w->n = n;
	w->depth = MAX(2u, MIN(depth, VMSTATE_DEPTH_MAX));
	w->copy_refs = leaf->mem_align > 1 || leaf->align > 1;
	ret = vmstate_io_init(&w->io, n->file);
	for (unsigned i = 0; i <= w->depth; i++) {
		if (ret == 0)
			ret = vmstate_buf_init(&w->bufs[i].b, &w->io);
		w->bufs[i].refs = w->copy_refs ? NULL : malloc(VMSTATE_IOV * sizeof(w->bufs[i].refs[0]));
		if (!w->copy_refs && !w->bufs[i].refs)
			ret = -ENOMEM;
	}
	if (ret == 0)
		return w;
	vmstate_write_free(w);
	return NULL;
}

int vmstate_write_open(struct fiber *f, struct node *n, const struct snapshot_want *want, unsigned depth,
		       struct vmstate_writer **ret, struct varve_error *err)
{
	struct vmstate_writer *w = writer_new(n, depth);
	int r;

	if (!w)
		return varve_error_set(err, -ENOMEM, "state: out of memory");
	r = n->drv->snapshot_create(f, n, want, &w->draft, err);
	if (r < 0) {
		vmstate_write_free(w);
		return r;
	}
	*ret = w;
	return 0;
}

/* ---- the caller's side ---- */

bool vmstate_full(const struct vmstate_writer *w)
{
	return w->bufs[w->hand].fill == VMSTATE_BUF_LEN;
}

uint64_t vmstate_position(const struct vmstate_writer *w)
{
	return w->pos;
}

static void take_copy(struct write_buf *wb, const void *buf, size_t len)
{
	struct vmstate_buf *b = &wb->b;
	uint8_t *to = b->mem + wb->mem_used;
	struct iovec *last = b->nr_iov ? &b->iov[b->nr_iov - 1] : NULL;

	memcpy(to, buf, len);
	wb->mem_used += len;
	if (last && (uint8_t *)last->iov_base + last->iov_len == to)
		last->iov_len += len;
	else
		b->iov[b->nr_iov++] = (struct iovec){ to, len };
}

static void give_pages_back(void *buf, size_t len)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t first = align_up((uintptr_t)buf, page), end = align_down((uintptr_t)buf + len, page);

	if (first < end)
		(void)madvise((void *)first, end - first, MADV_DONTNEED); /* memory that stays is no error */
}

size_t vmstate_take(struct vmstate_writer *w, void *buf, size_t len, bool ref, bool give_back)
{
	struct write_buf *wb = &w->bufs[w->hand];

	len = MIN(len, VMSTATE_BUF_LEN - wb->fill);
	/* Two elements are left for copies: the one after a reference, and the padding at the end. */
	if (ref && !w->copy_refs && wb->b.nr_iov + 3 <= VMSTATE_IOV) {
		wb->b.iov[wb->b.nr_iov++] = (struct iovec){ buf, len };
		wb->refs[wb->nr_refs++] = (struct ref){ buf, len, give_back };
	} else {
		take_copy(wb, buf, len);
		if (give_back)
			give_pages_back(buf, len);
	}
	wb->fill += len;
	w->pos += len;
	return len;
}

/* refs_over changes inside calls that take a fiber, while the caller waits: no look at what home is at work with. */
void vmstate_release(struct vmstate_writer *w, void (*released)(void *user_data, void *buf, size_t len), void *user_data)
{
	for (unsigned i = 0; i <= w->depth; i++) {
		struct write_buf *wb = &w->bufs[(w->hand + 1 + i) % (w->depth + 1)];

		if (!wb->refs_over)
			continue;
		for (unsigned k = 0; k < wb->nr_refs; k++) {
			if (wb->refs[k].give_back)
				give_pages_back(wb->refs[k].buf, wb->refs[k].len);
			if (released)
				released(user_data, wb->refs[k].buf, wb->refs[k].len);
		}
		wb->nr_refs = 0;
		wb->refs_over = false;
	}
}

/* ---- home ---- */

static int failed(struct vmstate_writer *w, int error, const char *what)
{
	if (!w->error) {
		w->error = error;
		varve_error_errno(&w->why, error, "%s", what);
	}
	return w->error;
}

static int tell(const struct vmstate_writer *w, struct varve_error *err)
{
	return varve_error_set(err, w->error, "%s", w->why.message);
}

/* Nothing of the buffer is in flight: what it was used for is over. Its refs are told by the caller's thread. */
static void buf_reset(struct vmstate_writer *w, struct write_buf *wb)
{
	if (wb->b.error)
		failed(w, wb->b.error, "writing the state");
	wb->b.error = 0;
	wb->b.nr_iov = 0;
	wb->fill = wb->mem_used = 0;
	wb->refs_over = true;
}

static int send_buf(struct fiber *f, struct vmstate_writer *w, struct write_buf *wb)
{
	for (uint64_t pos = 0, part; pos < wb->fill; pos += part) {
		int ret = 0;

		if (!w->space.len)
			ret = w->n->drv->snapshot_space(f, w->n, w->draft, wb->fill - pos, &w->space);
		if (ret < 0)
			return failed(w, ret, "space for the state");
		part = MIN(w->space.len, wb->fill - pos);
		ret = vmstate_send(f, &wb->b, REQ_WRITE, pos, part, w->space.host_off);
		if (ret < 0)
			return failed(w, ret, "writing the state");
		w->space.host_off += part;
		w->space.len -= part;
	}
	return 0;
}

int vmstate_write_next(struct fiber *f, struct vmstate_writer *w, struct varve_error *err)
{
	struct write_buf *next = &w->bufs[(w->hand + 1) % (w->depth + 1)];

	if (!w->error)
		(void)send_buf(f, w, &w->bufs[w->hand]);
	vmstate_wait(f, &next->b);
	buf_reset(w, next);
	for (unsigned i = 0; i <= w->depth; i++) { /* errors that are known already need not wait for their turn */
		if (w->bufs[i].b.error)
			failed(w, w->bufs[i].b.error, "writing the state");
	}
	w->hand = (w->hand + 1) % (w->depth + 1);
	return w->error ? tell(w, err) : 0;
}

static void wait_all(struct fiber *f, struct vmstate_writer *w)
{
	for (unsigned i = 0; i <= w->depth; i++) {
		vmstate_wait(f, &w->bufs[i].b);
		buf_reset(w, &w->bufs[i]);
	}
}

void vmstate_write_abort(struct fiber *f, struct vmstate_writer *w)
{
	wait_all(f, w);
	if (w->draft)
		w->n->drv->snapshot_abort(f, w->n, w->draft);
	w->draft = NULL;
}

int vmstate_write_close(struct fiber *f, struct vmstate_writer *w, char **ret_id, struct varve_error *err)
{
	static const uint8_t zeroes[PAD_LEN];
	struct write_buf *wb = &w->bufs[w->hand];
	size_t pad = align_up(wb->fill, MIN(PAD_LEN, (size_t)w->n->cluster_len)) - wb->fill;
	int ret;

	if (pad) {
		take_copy(wb, zeroes, pad);
		wb->fill += pad;
	}
	if (!w->error)
		(void)send_buf(f, w, wb);
	wait_all(f, w);
	if (w->error) {
		vmstate_write_abort(f, w);
		return tell(w, err);
	}
	ret = w->n->drv->snapshot_commit(f, w->n, w->draft, w->pos, ret_id, err);
	w->draft = NULL;
	return ret;
}
