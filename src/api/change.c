/* SPDX-License-Identifier: MIT */
/*
 * api/change.c - changing what an open image is: its length, its backing file, its options, whether it holds anything
 *
 * Assumes: formats make each change durable, or leave the image as it was. No request is under way meanwhile.
 */
#include "api/api.h"
#include "block/block.h"

#include <stdlib.h>
#include <string.h>

static_assert((int)PREALLOC_METADATA == VARVE_PREALLOC_METADATA && (int)PREALLOC_FALLOC == VARVE_PREALLOC_FALLOC &&
		      (int)PREALLOC_FULL == VARVE_PREALLOC_FULL,
	      "the same list");

struct change {
	struct node *top;
	struct varve_error *err;
	int (*fn)(struct fiber *f, struct change *c);
	bool keeps_bitmaps; /* they stay true although it is not noted there what is done */
	/* resize */
	uint64_t len;
	enum prealloc prealloc;
	/* set_backing; NULL: none */
	const char *name, *format;
	/* amend */
	struct opts *opts;
	varve_progress_fn progress;
	void *user_data;
};

static int change_fiber(struct fiber *f, void *arg)
{
	struct change *c = arg;
	int ret;

	node_change_begin(f, c->top);
	ret = c->fn(f, c);
	node_change_end(c->top);
	return ret;
}

/* The words of what went wrong below say what; the name says where. */
static int change(struct varve_image *image, struct change *c)
{
	struct varve_error *err = c->err;
	int ret;

	c->top = image->top;
	if (!(c->top->flags & (c->keeps_bitmaps ? NODE_WRITABLE | NODE_BITMAPS : NODE_WRITABLE)))
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
	struct change c = { .err = err, .fn = resize_fiber, .keeps_bitmaps = true, .len = len, .prealloc = (enum prealloc)prealloc };
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

/* ---- backing file ---- */

static struct node *disk_of(struct node *top)
{
	while (top->drv->kind == DRIVER_FILTER)
		top = top->file;
	return top;
}

static int set_backing_fiber(struct fiber *f, struct change *c)
{
	struct node *disk = disk_of(c->top);
	char *name = c->name ? strdup(c->name) : NULL, *format = c->name ? strdup(c->format) : NULL;
	int ret;

	if (!name != !c->name || !format != !c->name)
		ret = varve_error_errno(c->err, -ENOMEM, "backing file name");
	else
		ret = disk->drv->set_backing(f, disk, name, format, true, c->err);
	if (ret < 0) {
		free(name);
		free(format);
		return ret;
	}
	free(disk->backing_name);
	free(disk->backing_format);
	disk->backing_name = name;
	disk->backing_format = format;
	return 0;
}

int varve_image_set_backing(struct varve_image *image, const char *name, const char *format, struct varve_error *err)
{
	struct change c = { .err = err, .fn = set_backing_fiber, .keeps_bitmaps = true };
	struct node *disk = disk_of(image->top);

	if (!disk->drv->set_backing)
		return varve_error_set(err, -ENOTSUP, "%s: images of format %s have no backing file", node_name(disk),
				       disk->drv->name);
	if (name && *name) {
		if (!format || !*format)
			return varve_error_set(err, -EINVAL, "%s: the format of the backing file %s is not given; it is never guessed",
					       node_name(disk), name);
		if (!driver_find(format) || driver_find(format)->kind != DRIVER_FORMAT)
			return varve_error_set(err, -EINVAL, "%s: unknown backing format '%s'", node_name(disk), format);
		if (api_is_own_backing(disk, name))
			return varve_error_set(err, -EINVAL, "%s: the image would be its own backing file (%.500s)", node_name(disk), name);
		c.name = name;
		c.format = format;
	}
	return change(image, &c);
}

/* ---- options ---- */

static int amend_fiber(struct fiber *f, struct change *c)
{
	struct node *disk = disk_of(c->top);

	return disk->drv->amend(f, disk, c->opts, c->progress, c->user_data, c->err);
}

int varve_image_amend(struct varve_image *image, const char *options, varve_progress_fn progress, void *user_data,
		      struct varve_error *err)
{
	struct change c = { .err = err, .fn = amend_fiber, .keeps_bitmaps = true, .progress = progress, .user_data = user_data };
	struct node *disk = disk_of(image->top);
	int ret;

	if (!disk->drv->amend)
		return varve_error_set(err, -ENOTSUP, "%s: the options of a %s image cannot be changed", node_name(disk),
				       disk->drv->name);
	c.opts = opts_new();
	if (!c.opts)
		return varve_error_errno(err, -ENOMEM, "%s", node_name(disk));
	ret = opts_parse(c.opts, options ? options : "", err);
	ret = ret < 0 ? varve_error_prefix(err, ret, "%s: ", node_name(disk)) : change(image, &c);
	opts_free(c.opts);
	return ret;
}

/* ---- contents ---- */

static int make_empty_fiber(struct fiber *f, struct change *c)
{
	struct node *disk = disk_of(c->top);
	int ret = make_empty(f, disk);

	if (ret == -ENOTSUP)
		return varve_error_set(c->err, ret, "an image of format %s cannot be emptied", disk->drv->name);
	return ret < 0 ? varve_error_errno(c->err, ret, "the image cannot be emptied") : 0;
}

int varve_image_make_empty(struct varve_image *image, struct varve_error *err)
{
	struct change c = { .err = err, .fn = make_empty_fiber };
	struct node *disk = disk_of(image->top);

	if (!disk->drv->unlink)
		return varve_error_set(err, -ENOTSUP, "%s: an image of format %s cannot be emptied", node_name(disk),
				       disk->drv->name);
	return change(image, &c);
}
