/* SPDX-License-Identifier: MIT */
/*
 * proto/file_slow.c - requests that take more than one operation, on a fiber
 *
 * Short transfers are continued, long requests cut, zeroes written where the file system cannot make them,
 * and a failed FUA write is taken apart to learn what failed.
 *
 * Owns:    the request from file_slow*() until req_done(). Its pieces live on the fiber's stack: nothing is
 *          allocated.
 * Assumes: every element of the request's vector is a multiple of n->mem_align, which is at least 512 where
 *          offsets must be aligned at all (file_align.c), so that SLOW_IOV elements hold an aligned piece.
 *          Fibers of level 0 wait for nothing but operations: whoever waits for these requests on a fiber
 *          is at a higher level.
 */
#include "proto/file.h"

#include <errno.h>
#include <fcntl.h>

#include "base/iov.h"

#define SLOW_IOV 128
static_assert(SLOW_IOV * 512 >= 65536, "one slice must reach the largest alignment, FILE_ALIGN_MAX");

/* What zeroes are written from. Never written to; not const, so that it takes no room in the library file. */
static uint8_t zeroes[65536] __attribute__((aligned(65536)));

/* ---- one operation, waited for ---- */

struct slow_op {
	struct aio_op op;
	struct fiber *f;
	int64_t res;
	bool done;
};

static void slow_op_done(struct aio_op *op, int64_t res)
{
	struct slow_op *s = container_of(op, struct slow_op, op);

	s->res = res;
	s->done = true;
	fiber_wake(s->f);
}

static int64_t slow_op(struct fiber *f, struct file *fl, enum aio_opcode opcode, uint32_t flags,
		       const struct iovec *iov, unsigned nr_iov, uint64_t off, uint64_t len)
{
	struct slow_op s = { .f = f };

	s.op.file = &fl->af;
	s.op.opcode = (uint8_t)opcode;
	s.op.flags = flags;
	s.op.iov = iov;
	s.op.nr_iov = nr_iov;
	s.op.off = off;
	s.op.len = len;
	s.op.done = slow_op_done;
	aio_submit(fiber_queue(f), &s.op);
	while (!s.done)
		fiber_wait(f);
	return s.res;
}

/* ---- read and write ---- */

/* The next piece of the request from byte pos: at most SLOW_IOV elements and AIO_LEN_MAX bytes, aligned. */
static unsigned slow_slice(struct node *n, struct req *r, uint64_t pos, struct iovec *part, size_t *ret_len)
{
	size_t wish = MIN(r->len - pos, AIO_LEN_MAX), len;
	unsigned nr = iov_slice(part, SLOW_IOV, r->iov, r->nr_iov, pos, wish, &len);

	if (pos + len < r->len && !is_aligned(len, n->align)) {
		wish = align_down(len, n->align);
		assert(wish);
		nr = iov_slice(part, SLOW_IOV, r->iov, r->nr_iov, pos, wish, &len);
	}
	*ret_len = len;
	return nr;
}

/* Everything from byte pos of the request; what lies beyond the end of the file reads as zeroes. */
static int slow_read(struct fiber *f, struct node *n, struct req *r, uint64_t pos)
{
	struct iovec part[SLOW_IOV];
	size_t len;

	while (pos < r->len) {
		/* After a transfer that stopped inside of a block: that block again. No further is the end of
		 * the file. */
		uint64_t from = align_down(pos, n->align);
		unsigned nr = slow_slice(n, r, from, part, &len);
		int64_t res = slow_op(f, node_state(n), AIO_READ, 0, part, nr, r->off + from, len);

		if (res < 0)
			return (int)res;
		if (from + (uint64_t)res <= pos)
			break;
		pos = from + (uint64_t)res;
	}
	iov_fill(r->iov, r->nr_iov, pos, 0, r->len - pos);
	return 0;
}

static int slow_write(struct fiber *f, struct node *n, struct req *r, uint64_t pos, uint32_t flags)
{
	struct iovec part[SLOW_IOV];
	size_t len;

	/* After a transfer that stopped inside of a block: that block again. */
	pos = align_down(pos, n->align);
	while (pos < r->len) {
		unsigned nr = slow_slice(n, r, pos, part, &len);
		int64_t res = slow_op(f, node_state(n), AIO_WRITE, flags, part, nr, r->off + pos, len);

		if (res < 0)
			return (int)res;
		file_grow(n, r->off + pos + (uint64_t)res);
		if ((size_t)res < len)
			res = (int64_t)align_down((uint64_t)res, n->align);
		/* Neither progress nor a reason: trying for ever would be worse than an error. */
		if (res == 0)
			return -EIO;
		pos += (uint64_t)res;
	}
	return 0;
}

/*
 * A FUA write failed with error. Was it the write or the sync after it? A failed write is the guest's to
 * repeat; a failed sync has used up the kernel's report about writes that others believe to be in the page
 * cache, and every later flush must fail for it (proto/file_doubt.h). The same write without the sync tells:
 * it goes through if only the sync was at fault.
 */
static int slow_fua(struct fiber *f, struct node *n, struct req *r, int error)
{
	struct file *fl = node_state(n);
	int ret = slow_write(f, n, r, 0, 0);

	if (ret < 0)
		return ret;
	/* It was not acknowledged, but whoever repeats it, successfully, must not find us in doubt still. */
	file_wrote(fl, r, false);
	return doubt_sync_failed(fl->doubt, error);
}

static int slow_write_all(struct fiber *f, struct node *n, struct req *r, uint64_t pos)
{
	struct file *fl = node_state(n);
	bool fua = file_is_fua(fl, r);
	int ret = slow_write(f, n, r, pos, fua ? AIO_FUA : 0);

	if (ret < 0)
		return fua ? slow_fua(f, n, r, ret) : ret;
	return file_wrote(fl, r, fua);
}

/* ---- zeroes ---- */

static int write_zeroes(struct fiber *f, struct node *n, uint64_t off, uint64_t len)
{
	struct iovec part[SLOW_IOV];
	uint64_t end = off + len;

	while (off < end) {
		uint64_t want = MIN(end - off, SLOW_IOV * sizeof(zeroes)), left = want;
		unsigned nr = 0;
		int64_t res;

		for (; left; left -= part[nr++].iov_len)
			part[nr] = (struct iovec){ zeroes, MIN(left, sizeof(zeroes)) };
		res = slow_op(f, node_state(n), AIO_WRITE, 0, part, nr, off, want);
		if (res < 0)
			return (int)res;
		file_grow(n, off + (uint64_t)res);
		if ((uint64_t)res < want)
			res = (int64_t)align_down((uint64_t)res, n->align);
		if (res == 0)
			return -EIO;
		off += (uint64_t)res;
	}
	return 0;
}

/* [*off, end) by the file system or device, as far as it can: *off is where it could not. */
static int make_zeroes(struct fiber *f, struct file *fl, uint64_t *off, uint64_t end, uint32_t flags)
{
	_Atomic bool *cannot = &fl->no_zero[!!(flags & AIO_MAY_UNMAP)];

	while (*off < end && !atomic_load_explicit(cannot, memory_order_relaxed)) {
		uint64_t part = MIN(end - *off, AIO_LEN_MAX);
		int64_t res = slow_op(f, fl, AIO_ZERO, flags, NULL, 0, *off, part);

		if (file_is_unsupported(res))
			atomic_store_explicit(cannot, true, memory_order_relaxed);
		else if (res < 0)
			return (int)res;
		else
			*off += part;
	}
	return 0;
}

struct hollow {
	int fd;
	uint64_t off, len;
};

static int allocate_mode(const struct hollow *h, int mode)
{
	int ret;

	do {
		ret = fallocate(h->fd, mode, (off_t)h->off, (off_t)h->len) < 0 ? -errno : 0;
	} while (ret == -EINTR);
	return file_is_unsupported(ret) ? -ENOTSUP : ret;
}

/* A hole, and space for it: zeroes at every moment, as after one step. */
static int hollow_work(void *arg)
{
	const struct hollow *h = arg;
	int ret = allocate_mode(h, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);

	return ret < 0 ? ret : allocate_mode(h, 0);
}

/*
 * For who would not have zeroes written: tmpfs, NFS and others cannot make them in one step. (On a device a
 * hole may be anything.)
 */
static int zero_by_hole(struct fiber *f, struct file *fl, uint64_t off, uint64_t end)
{
	struct hollow h = { fl->af.fd, off, end - off };

	if (fl->af.is_blockdev || fl->af.fd < 0)
		return -ENOTSUP;
	return fiber_work(f, hollow_work, &h);
}

/*
 * Whole blocks: as holes if that is allowed, else in place, else written; where that is not wanted, in two
 * steps.
 */
static int zero_blocks(struct fiber *f, struct node *n, uint64_t off, uint64_t end, uint32_t flags,
		       bool fallback)
{
	struct file *fl = node_state(n);
	int ret = flags & AIO_MAY_UNMAP ? make_zeroes(f, fl, &off, end, AIO_MAY_UNMAP) : 0;

	if (!ret)
		ret = make_zeroes(f, fl, &off, end, 0);
	if (ret < 0)
		return ret;
	if (fallback || off == end)
		return write_zeroes(f, n, off, end - off);
	/* Who would give space back is not to be given more. */
	return flags & AIO_MAY_UNMAP ? -ENOTSUP : zero_by_hole(f, fl, off, end);
}

/*
 * A file system may make zeroes beyond the end of the file without moving the end. Writing the last of them
 * does, and unlike ftruncate() it cannot cut off what another queue appends meanwhile.
 */
static int zero_extend(struct fiber *f, struct node *n, uint64_t end)
{
	if (end <= node_len(n))
		return 0;
	return write_zeroes(f, n, end - n->align, n->align);
}

int file_sync_now(struct fiber *f, struct file *fl)
{
	uint64_t ticket = doubt_sync_begin(fl->doubt);
	int64_t ret = slow_op(f, fl, AIO_FLUSH, 0, NULL, 0, 0, 0);

	return ret < 0 ? doubt_sync_failed(fl->doubt, (int)ret) : doubt_sync_ok(fl->doubt, ticket);
}

static int slow_zero(struct fiber *f, struct node *n, struct req *r)
{
	struct file *fl = node_state(n);
	uint64_t end = r->off + r->len;
	uint64_t from = MIN(align_up(r->off, fl->block_len), end),
		 to = MAX(align_down(end, fl->block_len), from);
	uint32_t flags = r->flags & REQ_MAY_UNMAP ? AIO_MAY_UNMAP : 0;
	int64_t ret;

	ret = write_zeroes(f, n, r->off, from - r->off);
	if (!ret)
		ret = zero_blocks(f, n, from, to, flags, !(r->flags & REQ_NO_FALLBACK));
	if (!ret)
		ret = write_zeroes(f, n, to, end - to);
	if (!ret)
		ret = zero_extend(f, n, end);
	if (!ret)
		ret = file_wrote(fl, r, false);
	if (!ret && file_is_fua(fl, r))
		ret = file_sync_now(f, fl);
	return (int)ret;
}

/* The whole blocks inside of the range; the rest of the advice is not worth a write. */
static int slow_discard(struct fiber *f, struct node *n, struct req *r)
{
	struct file *fl = node_state(n);
	uint64_t off = align_up(r->off, fl->block_len), end = align_down(r->off + r->len, fl->block_len);

	while (off < end) {
		uint64_t part = MIN(end - off, AIO_LEN_MAX);
		int64_t res = slow_op(f, fl, AIO_DISCARD, 0, NULL, 0, off, part);

		if (file_is_unsupported(res)) {
			atomic_store_explicit(&fl->no_discard, true, memory_order_relaxed);
			return 0;
		}
		if (res < 0)
			return (int)res;
		off += part;
	}
	return 0;
}

/* ---- entry ---- */

static void slow_run(struct fiber *f, struct fiber_job *job)
{
	struct req *r = container_of(job, struct req, job);
	struct node *n = r->at;
	int64_t start = r->aio.res; /* byte to go on from, or the errno of a FUA write */
	int ret = -ENOTSUP;

	switch (r->op) {
	case REQ_READ:
		ret = slow_read(f, n, r, (uint64_t)start);
		break;
	case REQ_WRITE:
		ret = start < 0 ? slow_fua(f, n, r, (int)start) : slow_write_all(f, n, r, (uint64_t)start);
		break;
	case REQ_ZERO:
		ret = slow_zero(f, n, r);
		break;
	case REQ_DISCARD:
		ret = slow_discard(f, n, r);
		break;
	case REQ_FLUSH:
	case REQ_OPS:
		break;
	}
	req_done(r, ret);
}

static void slow_start(struct node *n, struct req *r, int64_t start)
{
	r->at = n;
	r->aio.res = start;
	r->job.run = slow_run;
	fiber_start(r->q, &r->job, 0);
}

void file_slow(struct node *n, struct req *r)
{
	slow_start(n, r, 0);
}

void file_slow_rest(struct node *n, struct req *r, uint64_t pos)
{
	slow_start(n, r, (int64_t)pos);
}

void file_slow_fua(struct node *n, struct req *r, int error)
{
	slow_start(n, r, error);
}
