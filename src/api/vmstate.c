/* SPDX-License-Identifier: MIT */
/*
 * api/vmstate.c - states of virtual machines for embedders
 *
 * Most calls touch the buffer at hand only, on the caller's thread; when it is full, or holds nothing of what is read, a
 * fiber of the image's home queue exchanges it.
 */
#include "api/api.h"
#include "job/vmstate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct varve_vmstate_writer {
	struct varve_image *image;
	struct vmstate_writer *w;
	void (*released)(void *user_data, void *buf, size_t length);
	void *user_data;
	int error; /* the first: every later call fails the same way */
};

struct varve_vmstate_reader {
	struct varve_image *image;
	struct vmstate_reader *r;
	uint64_t len;
};

struct vmstate_call {
	struct varve_image *image;
	struct vmstate_writer *w;
	struct vmstate_reader *r;
	struct snapshot_want want;
	struct snapshot_pick pick;
	unsigned depth;
	uint64_t off;
	char **ret_id;
	struct varve_error *err;
};

static int prefixed(struct vmstate_call *c, int ret)
{
	return ret < 0 ? varve_error_prefix(c->err, ret, "%s: ", node_name(c->image->top)) : 0;
}

static int check_depth(struct varve_image *image, unsigned *depth, struct varve_error *err)
{
	*depth = *depth ? *depth : VARVE_VMSTATE_DEPTH_DEFAULT;
	if (*depth < 2 || *depth > VARVE_VMSTATE_DEPTH_MAX)
		return varve_error_set(err, -EINVAL, "%s: %u buffers in flight are not 2 .. %d", node_name(image->top), *depth,
				       VARVE_VMSTATE_DEPTH_MAX);
	return 0;
}

/* ---- writing ---- */

static int write_open_fiber(struct fiber *f, void *arg)
{
	struct vmstate_call *c = arg;

	return vmstate_write_open(f, api_format_node(c->image), &c->want, c->depth, &c->w, c->err);
}

int varve_vmstate_write_open(struct varve_vmstate_writer **ret_writer, struct varve_image *image,
			     const struct varve_snapshot_options *opts, unsigned depth, struct varve_error *err)
{
	struct vmstate_call c = { .image = image, .depth = depth, .err = err };
	struct varve_vmstate_writer *writer;
	int ret = check_depth(image, &c.depth, err);

	if (ret == 0)
		ret = api_snapshot_want(image, opts, &c.want, err);
	if (ret < 0)
		return ret;
	writer = calloc(1, sizeof(*writer));
	if (!writer)
		return varve_error_errno(err, -ENOMEM, "%s", node_name(image->top));
	ret = prefixed(&c, api_call(image, write_open_fiber, &c));
	if (ret < 0) {
		free(writer);
		return ret;
	}
	writer->image = image;
	writer->w = c.w;
	atomic_fetch_add(&image->users, 1);
	*ret_writer = writer;
	return 0;
}

static int write_next_fiber(struct fiber *f, void *arg)
{
	struct vmstate_call *c = arg;

	return vmstate_write_next(f, c->w, c->err);
}

static int append(struct varve_vmstate_writer *writer, void *buf, size_t length, bool ref, bool give_back,
		  struct varve_error *err)
{
	struct vmstate_call c = { .image = writer->image, .w = writer->w, .err = err };
	int ret;

	if (writer->error)
		return varve_error_errno(err, writer->error, "%s: the state's stream has failed before",
					 node_name(writer->image->top));
	for (size_t pos = 0; pos < length;) {
		pos += vmstate_take(writer->w, (uint8_t *)buf + pos, length - pos, ref, give_back);
		if (!vmstate_full(writer->w))
			break;
		ret = prefixed(&c, api_call(writer->image, write_next_fiber, &c));
		api_send(writer->image);
		vmstate_release(writer->w, writer->released, writer->user_data);
		if (ret < 0) {
			writer->error = ret;
			return ret;
		}
	}
	return 0;
}

int varve_vmstate_write(struct varve_vmstate_writer *writer, const void *buf, size_t length, struct varve_error *err)
{
	return append(writer, (void *)buf, length, false, false, err);
}

int varve_vmstate_write_ref(struct varve_vmstate_writer *writer, void *buf, size_t length, bool give_back,
			    struct varve_error *err)
{
	return append(writer, buf, length, true, give_back, err);
}

void varve_vmstate_write_released(struct varve_vmstate_writer *writer,
				  void (*released)(void *user_data, void *buf, size_t length), void *user_data)
{
	writer->released = released;
	writer->user_data = user_data;
}

uint64_t varve_vmstate_write_position(const struct varve_vmstate_writer *writer)
{
	return vmstate_position(writer->w);
}

static void writer_free(struct varve_vmstate_writer *writer)
{
	vmstate_release(writer->w, writer->released, writer->user_data);
	vmstate_write_free(writer->w);
	atomic_fetch_sub(&writer->image->users, 1);
	free(writer);
}

static int write_close_fiber(struct fiber *f, void *arg)
{
	struct vmstate_call *c = arg;

	return vmstate_write_close(f, c->w, c->ret_id, c->err);
}

int varve_vmstate_write_close(struct varve_vmstate_writer *writer, char **ret_id, struct varve_error *err)
{
	struct vmstate_call c = { .image = writer->image, .w = writer->w, .ret_id = ret_id, .err = err };
	int ret = prefixed(&c, api_call(writer->image, write_close_fiber, &c));

	writer_free(writer);
	return ret;
}

static int write_abort_fiber(struct fiber *f, void *arg)
{
	struct vmstate_call *c = arg;

	vmstate_write_abort(f, c->w);
	return 0;
}

void varve_vmstate_write_abort(struct varve_vmstate_writer *writer)
{
	struct vmstate_call c;

	if (!writer)
		return;
	c = (struct vmstate_call){ .image = writer->image, .w = writer->w };
	api_call(writer->image, write_abort_fiber, &c);
	writer_free(writer);
}

/* ---- reading ---- */

static int read_open_fiber(struct fiber *f, void *arg)
{
	struct vmstate_call *c = arg;

	return vmstate_read_open(f, api_format_node(c->image), &c->pick, c->depth, &c->r, &c->off, c->err);
}

int varve_vmstate_read_open(struct varve_vmstate_reader **ret_reader, struct varve_image *image, const char *id,
			    const char *name, unsigned depth, uint64_t *ret_length, struct varve_error *err)
{
	struct vmstate_call c = { .image = image, .pick = { .id = id, .name = name }, .depth = depth, .err = err };
	struct varve_vmstate_reader *reader;
	int ret = check_depth(image, &c.depth, err);

	if (ret == 0 && !api_format_node(image)->drv->snapshot_state_open)
		ret = api_no_snapshots(image, err);
	if (ret < 0)
		return ret;
	reader = calloc(1, sizeof(*reader));
	if (!reader)
		return varve_error_errno(err, -ENOMEM, "%s", node_name(image->top));
	ret = prefixed(&c, api_call(image, read_open_fiber, &c));
	if (ret < 0) {
		free(reader);
		return ret;
	}
	*reader = (struct varve_vmstate_reader){ image, c.r, c.off };
	atomic_fetch_add(&image->users, 1);
	if (ret_length)
		*ret_length = c.off;
	*ret_reader = reader;
	return 0;
}

static int read_seek_fiber(struct fiber *f, void *arg)
{
	struct vmstate_call *c = arg;

	return vmstate_read_seek(f, c->r, c->off, c->err);
}

int64_t varve_vmstate_read_ref(struct varve_vmstate_reader *reader, uint64_t offset, const void **ret_buf,
			       struct varve_error *err)
{
	struct vmstate_call c = { .image = reader->image, .r = reader->r, .off = offset, .err = err };
	size_t len;
	int ret;

	if (offset >= reader->len)
		return 0;
	len = vmstate_peek(reader->r, offset, ret_buf);
	if (len)
		return (int64_t)len;
	ret = prefixed(&c, api_call(reader->image, read_seek_fiber, &c));
	api_send(reader->image);
	return ret < 0 ? ret : (int64_t)vmstate_peek(reader->r, offset, ret_buf);
}

int64_t varve_vmstate_read(struct varve_vmstate_reader *reader, uint64_t offset, void *buf, size_t length,
			   struct varve_error *err)
{
	size_t done = 0;

	length = MIN(length, (size_t)INT64_MAX);
	while (done < length) {
		const void *from;
		int64_t n = varve_vmstate_read_ref(reader, offset + done, &from, err);
		size_t part = n > 0 ? MIN((size_t)n, length - done) : 0;

		if (n < 0)
			return n;
		if (n == 0)
			break;
		memcpy((uint8_t *)buf + done, from, part);
		done += part;
	}
	return (int64_t)done;
}

static int read_close_fiber(struct fiber *f, void *arg)
{
	struct vmstate_call *c = arg;

	vmstate_read_close(f, c->r);
	return 0;
}

void varve_vmstate_read_close(struct varve_vmstate_reader *reader)
{
	struct vmstate_call c;

	if (!reader)
		return;
	c = (struct vmstate_call){ .image = reader->image, .r = reader->r };
	api_call(reader->image, read_close_fiber, &c);
	atomic_fetch_sub(&reader->image->users, 1);
	free(reader);
}

/* ---- the area behind the disk ---- */

struct area_call {
	struct node *n;
	uint64_t off;
	void *buf;
	size_t len;
};

static int area_read_fiber(struct fiber *f, void *arg)
{
	struct area_call *c = arg;

	return c->n->drv->state_area_read(f, c->n, c->off, c->buf, c->len);
}

static int area_write_fiber(struct fiber *f, void *arg)
{
	struct area_call *c = arg;

	return c->n->drv->state_area_write(f, c->n, c->off, c->buf, c->len);
}

static int area(struct varve_image *image, bool write, uint64_t offset, void *buf, size_t length, struct varve_error *err)
{
	struct area_call c = { api_format_node(image), offset, buf, length };
	int ret;

	if (write ? !c.n->drv->state_area_write : !c.n->drv->state_area_read)
		return varve_error_set(err, -ENOTSUP, "%s: format %s has no area for a machine's state",
				       node_name(image->top), c.n->drv->name);
	ret = api_call(image, write ? area_write_fiber : area_read_fiber, &c);
	return ret < 0 ? varve_error_errno(err, ret, "%s: %s %zu bytes at %llu of the area for a machine's state",
					   node_name(image->top), write ? "write" : "read", length,
					   (unsigned long long)offset) :
			 0;
}

int varve_state_area_read(struct varve_image *image, uint64_t offset, void *buf, size_t length, struct varve_error *err)
{
	return area(image, false, offset, buf, length, err);
}

int varve_state_area_write(struct varve_image *image, uint64_t offset, const void *buf, size_t length,
			   struct varve_error *err)
{
	return area(image, true, offset, (void *)buf, length, err);
}
