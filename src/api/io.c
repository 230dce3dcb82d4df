/* SPDX-License-Identifier: MIT */
/*
 * api/io.c - synchronous requests: one fiber, one request after the other
 *
 * Assumes: a length that fits the image was checked here, so that the words name image and place.
 */
#include "api/api.h"

/* Requests are cut into pieces of this length, so that a caller's length never meets a limit further down. */
#define IO_PIECE MiB(256)

struct io_args {
	struct node *top;
	enum req_op op;
	uint32_t flags;
	uint64_t off, len;
	uint8_t *buf; /* read, write */
};

static const char *const op_names[REQ_OPS] = {
	[REQ_READ] = "read",	   [REQ_WRITE] = "write",	[REQ_FLUSH] = "flush",
	[REQ_DISCARD] = "discard", [REQ_ZERO] = "write of zeroes",
};

int api_check_request(const struct varve_image *image, enum req_op op, uint64_t off, uint64_t len,
		      struct varve_error *err)
{
	uint64_t disk_len;

	if (!image)
		return varve_error_set(err, -EINVAL, "%s: the image is missing", op_names[op]);
	disk_len = node_len(image->top);
	if (image->top->flags & NODE_NO_IO)
		return varve_error_set(err, -EINVAL, "%s: opened for information only", node_name(image->top));
	if (op != REQ_READ && op != REQ_FLUSH && !(image->top->flags & NODE_WRITABLE))
		return varve_error_set(err, -EACCES, "%s: %s: the image is open read-only", node_name(image->top),
				       op_names[op]);
	if (off > disk_len || len > disk_len - off)
		return varve_error_set(err, -EINVAL,
				       "%s: %s of %llu bytes at offset %llu does not fit the image of %llu bytes",
				       node_name(image->top), op_names[op], (unsigned long long)len,
				       (unsigned long long)off, (unsigned long long)disk_len);
	return 0;
}

/* A request that a fiber waits for. It goes through the door of the disk, as the requests of exports do. */
struct io_req {
	struct req r;
	struct fiber *f;
	bool finished;
	int ret;
};

static void io_done(struct req *r, int ret)
{
	struct io_req *io = container_of(r, struct io_req, r);

	io->ret = ret;
	io->finished = true;
	fiber_wake(io->f);
}

static int io_wait(struct io_req *io, struct node *top)
{
	node_submit(top, &io->r);
	while (!io->finished)
		fiber_wait(io->f);
	return io->ret;
}

static int io_fiber(struct fiber *f, void *arg)
{
	struct io_args *a = arg;
	int ret;

	do {
		uint64_t piece = MIN(a->len, IO_PIECE);
		struct iovec v = { .iov_base = a->buf, .iov_len = piece };
		struct io_req io = { .f = f };

		req_init(&io.r, fiber_queue(f), a->op, a->off, piece, a->buf ? &v : NULL, a->buf ? 1 : 0, a->flags,
			 io_done);
		ret = io_wait(&io, a->top);
		if (ret < 0)
			return ret;
		a->off += piece;
		a->len -= piece;
		if (a->buf)
			a->buf += piece;
	} while (a->len);
	return 0;
}

static int io_call(struct varve_image *image, struct io_args *a, struct varve_error *err)
{
	uint64_t off = a->off, len = a->len;
	int ret = api_check_request(image, a->op, off, len, err);

	if (ret < 0)
		return ret;
	if (len == 0 && a->op != REQ_FLUSH)
		return 0;
	a->top = image->top;
	ret = api_call(image, io_fiber, a);
	if (ret < 0 && a->op == REQ_FLUSH)
		return varve_error_errno(err, ret, "%s: flush", node_name(image->top));
	if (ret < 0)
		return varve_error_errno(err, ret, "%s: %s of %llu bytes at offset %llu", node_name(image->top),
					 op_names[a->op], (unsigned long long)len, (unsigned long long)off);
	return 0;
}

int varve_image_read(struct varve_image *image, uint64_t off, void *buf, size_t len, struct varve_error *err)
{
	struct io_args a = { .op = REQ_READ, .off = off, .len = len, .buf = buf };

	return io_call(image, &a, err);
}

int varve_image_write(struct varve_image *image, uint64_t off, const void *buf, size_t len, unsigned flags,
		      struct varve_error *err)
{
	/* The engine's vectors are not const; a write only reads from them. */
	struct io_args a = { .op = REQ_WRITE, .off = off, .len = len, .buf = (uint8_t *)(uintptr_t)buf };

	if (flags & ~(VARVE_REQ_FUA | VARVE_REQ_COMPRESS))
		return varve_error_set(err, -EINVAL, "%s: write: unknown flags 0x%x", node_name(image->top), flags);
	a.flags = (flags & VARVE_REQ_FUA ? REQ_FUA : 0) | (flags & VARVE_REQ_COMPRESS ? REQ_COMPRESS : 0);
	return io_call(image, &a, err);
}

int varve_image_flush(struct varve_image *image, struct varve_error *err)
{
	struct io_args a = { .op = REQ_FLUSH };

	return io_call(image, &a, err);
}

int varve_image_try_flush(struct varve_image *image, struct varve_error *err)
{
	struct io_args a = { .op = REQ_FLUSH, .flags = REQ_NO_STOP };

	return io_call(image, &a, err);
}

int varve_image_discard(struct varve_image *image, uint64_t off, uint64_t len, struct varve_error *err)
{
	struct io_args a = { .op = REQ_DISCARD, .off = off, .len = len };

	return io_call(image, &a, err);
}

int varve_image_write_zeroes(struct varve_image *image, uint64_t off, uint64_t len, unsigned flags,
			     struct varve_error *err)
{
	struct io_args a = { .op = REQ_ZERO, .off = off, .len = len };

	if (flags & ~(VARVE_REQ_FUA | VARVE_REQ_MAY_UNMAP | VARVE_REQ_NO_FALLBACK))
		return varve_error_set(err, -EINVAL, "%s: write of zeroes: unknown flags 0x%x", node_name(image->top),
				       flags);
	a.flags = (flags & VARVE_REQ_FUA ? REQ_FUA : 0) | (flags & VARVE_REQ_MAY_UNMAP ? REQ_MAY_UNMAP : 0) |
		  (flags & VARVE_REQ_NO_FALLBACK ? REQ_NO_FALLBACK : 0);
	return io_call(image, &a, err);
}
