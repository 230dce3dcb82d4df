/* SPDX-License-Identifier: MIT */
/*
 * api/bitmap.c - persistent dirty bitmaps for embedders
 */
#include "api/api.h"
#include "block/bitmap.h"

#include <stdlib.h>

struct bitmap_call {
	struct node *n;
	struct bitmap_info *list;
	uint32_t nr;
	struct bitmap_change change;
	struct varve_error *err;
};

/* ---- list ---- */

static int list_fiber(struct fiber *f, void *arg)
{
	struct bitmap_call *c = arg;

	return c->n->drv->bitmap_list(f, c->n, &c->list, &c->nr, c->err);
}

int varve_bitmap_list(struct varve_image *image, struct varve_bitmap_info **ret_list, unsigned *ret_nr,
		      struct varve_error *err)
{
	struct bitmap_call c = { .n = api_format_node(image), .err = err };
	struct varve_bitmap_info *list;
	int ret;

	if (!c.n->drv->bitmap_list)
		return varve_error_set(err, -ENOTSUP, "%s: format %s has no bitmaps", node_name(image->top), c.n->drv->name);
	ret = api_call(image, list_fiber, &c);
	if (ret < 0)
		return varve_error_prefix(err, ret, "%s: ", node_name(image->top));
	list = calloc(c.nr + 1ull, sizeof(*list));
	for (uint32_t i = 0; i < c.nr; i++) {
		const struct bitmap_info *b = &c.list[i];

		if (list)
			list[i] = (struct varve_bitmap_info){ .name = b->name,
							      .granularity = b->granularity,
							      .enabled = b->enabled,
							      .inconsistent = b->inconsistent };
		else
			free(b->name);
	}
	free(c.list);
	if (!list)
		return varve_error_errno(err, -ENOMEM, "%s", node_name(image->top));
	*ret_list = list;
	*ret_nr = c.nr;
	return 0;
}

void varve_bitmap_list_free(struct varve_bitmap_info *list, unsigned nr)
{
	for (unsigned i = 0; list && i < nr; i++)
		free((char *)(uintptr_t)list[i].name);
	free(list);
}

/* ---- change ---- */

static int change_fiber(struct fiber *f, void *arg)
{
	struct bitmap_call *c = arg;

	return c->n->drv->bitmap_change(f, c->n, &c->change, c->err);
}

static int change(struct varve_image *image, struct bitmap_change change, struct varve_error *err)
{
	struct bitmap_call c = { .n = api_format_node(image), .change = change, .err = err };
	int ret;

	if (!change.name)
		return varve_error_set(err, -EINVAL, "%s: a bitmap needs a name", node_name(image->top));
	if (!c.n->drv->bitmap_change)
		return varve_error_set(err, -ENOTSUP, "%s: format %s has no bitmaps", node_name(image->top), c.n->drv->name);
	ret = api_call(image, change_fiber, &c);
	return ret < 0 ? varve_error_prefix(err, ret, "%s: ", node_name(image->top)) : 0;
}

int varve_bitmap_add(struct varve_image *image, const char *name, uint64_t granularity, unsigned flags,
		     struct varve_error *err)
{
	if (flags & ~VARVE_BITMAP_DISABLED)
		return varve_error_set(err, -EINVAL, "%s: unknown bitmap flags 0x%x", node_name(image->top), flags);
	return change(image,
		      (struct bitmap_change){ .action = BITMAP_ADD,
					      .name = name,
					      .granularity = granularity,
					      .disabled = flags & VARVE_BITMAP_DISABLED },
		      err);
}

int varve_bitmap_remove(struct varve_image *image, const char *name, struct varve_error *err)
{
	return change(image, (struct bitmap_change){ .action = BITMAP_REMOVE, .name = name }, err);
}

int varve_bitmap_clear(struct varve_image *image, const char *name, struct varve_error *err)
{
	return change(image, (struct bitmap_change){ .action = BITMAP_CLEAR, .name = name }, err);
}

int varve_bitmap_enable(struct varve_image *image, const char *name, bool enable, struct varve_error *err)
{
	return change(image, (struct bitmap_change){ .action = enable ? BITMAP_ENABLE : BITMAP_DISABLE, .name = name }, err);
}

int varve_bitmap_merge(struct varve_image *image, const char *name, struct varve_image *source, const char *source_name,
		       struct varve_error *err)
{
	struct node *n;

	if (!source || !source_name)
		return varve_error_set(err, -EINVAL, "%s: there is no bitmap to merge", node_name(image->top));
	n = api_format_node(source);
	if (!n->drv->bitmap_open)
		return varve_error_set(err, -ENOTSUP, "%s: format %s has no bitmaps", node_name(source->top), n->drv->name);
	if (source->home != image->home)
		return varve_error_set(err, -EINVAL, "%s and %s: bitmaps are merged when the images have the same home queue",
				       node_name(image->top), node_name(source->top));
	return change(image,
		      (struct bitmap_change){ .action = BITMAP_MERGE, .name = name, .source = n, .source_name = source_name }, err);
}
