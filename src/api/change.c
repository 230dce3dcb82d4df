/* SPDX-License-Identifier: MIT */
/*
 * api/change.c - changing what an open image is: its length
 *
 * Assumes: formats make each change durable, or leave the image as it was. No request is under way meanwhile.
 */
#include "api/api.h"

static_assert((int)PREALLOC_METADATA == VARVE_PREALLOC_METADATA && (int)PREALLOC_FALLOC == VARVE_PREALLOC_FALLOC &&
		      (int)PREALLOC_FULL == VARVE_PREALLOC_FULL,
	      "the same list");

struct change {
	struct node *top;
	struct varve_error *err;
	int (*fn)(struct fiber *f, struct change *c);
	/* resize */
	uint64_t len;
	enum prealloc prealloc;
};

static int change_fiber(struct fiber *f, void *arg)
{
	struct change *c = arg;
	int ret;

	node_drain_begin(f, c->top);
	ret = c->fn(f, c);
	node_drain_end(c->top);
	return ret;
}

/* The words of what went wrong below say what; the name says where. */
static int change(struct varve_image *image, struct change *c)
{
	struct varve_error *err = c->err;
	int ret;

	c->top = image->top;
	if (!(c->top->flags & NODE_WRITABLE))
		return varve_error_set(err, -EACCES, "%s: the image is open read-only", node_name(c->top));
	if (c->top->flags & NODE_NO_IO)
		return varve_error_set(err, -EINVAL, "%s: opened for information only", node_name(c->top));
	ret = api_call(image, change_fiber, c);
	return ret < 0 ? varve_error_prefix(err, ret, "%s: ", node_name(c->top)) : ret;
}

/* ---- length ---- */

static int resize_fiber(struct fiber *f, struct change *c)
{
	return node_truncate(f, c->top, c->len, c->prealloc, c->err);
}

int varve_image_resize(struct varve_image *image, uint64_t len, enum varve_prealloc prealloc, unsigned flags,
		       struct varve_error *err)
{
	struct change c = { .err = err, .fn = resize_fiber, .len = len, .prealloc = (enum prealloc)prealloc };
	uint64_t old = node_len(image->top);

	if (flags & ~VARVE_RESIZE_SHRINK)
		return varve_error_set(err, -EINVAL, "%s: unknown resize flags 0x%x", node_name(image->top), flags);
	if ((unsigned)prealloc > VARVE_PREALLOC_FULL)
		return varve_error_set(err, -EINVAL, "%s: unknown preallocation %u", node_name(image->top), (unsigned)prealloc);
	if (len < old && !(flags & VARVE_RESIZE_SHRINK))
		return varve_error_set(err, -EINVAL,
				       "%s: a length of %llu bytes would cut off data (it has %llu), and shrinking was not asked for",
				       node_name(image->top), (unsigned long long)len, (unsigned long long)old);
	if (len <= old && prealloc != VARVE_PREALLOC_OFF)
		return varve_error_set(err, -EINVAL, "%s: preallocation is for new space, but the image does not get longer",
				       node_name(image->top));
	return change(image, &c);
}
