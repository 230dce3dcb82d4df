/* SPDX-License-Identifier: MIT */
/*
 * api/map.c - where things are (map), and whether they are as they should be (check)
 */
#include "api/api.h"

#include <string.h>

struct map_args {
	struct node *top;
	uint64_t off, len;
	struct extent extent;
	unsigned depth;
	bool present;
};

static int map_fiber(struct fiber *f, void *arg)
{
	struct map_args *a = arg;
	int ret;

	fiber_lock(f, &a->top->chain_mutex);
	ret = graph_map(f, a->top, a->off, a->len, &a->extent, &a->depth, &a->present);
	fiber_unlock(&a->top->chain_mutex);
	return ret;
}

int varve_image_map(struct varve_image *image, uint64_t off, uint64_t len, struct varve_extent *ret_extent,
		    struct varve_error *err)
{
	struct map_args a = { .top = image->top, .off = off, .len = len };
	const struct extent *e = &a.extent;
	int ret;

	ret = api_check_request(image, REQ_READ, off, len, err);
	if (ret < 0)
		return ret;
	if (len == 0)
		return varve_error_set(err, -EINVAL, "%s: map of nothing at offset %llu", node_name(image->top),
				       (unsigned long long)off);
	ret = api_call(image, map_fiber, &a);
	if (ret == 0 && e->kind == EXTENT_ERROR)
		ret = e->error;
	if (ret < 0)
		return varve_error_errno(err, ret, "%s: map at offset %llu", node_name(image->top),
					 (unsigned long long)off);
	memset(ret_extent, 0, sizeof(*ret_extent));
	ret_extent->start = off;
	ret_extent->length = e->len;
	ret_extent->depth = a.depth;
	ret_extent->present = a.present;
	ret_extent->compressed = e->kind == EXTENT_PACKED;
	ret_extent->data = e->kind == EXTENT_DATA || e->kind == EXTENT_PACKED ||
			   (e->kind == EXTENT_ZERO && (e->flags & EXTENT_MAPPED));
	ret_extent->zero = e->kind == EXTENT_ZERO || e->kind == EXTENT_ABSENT;
	ret_extent->has_offset = e->kind == EXTENT_DATA || (e->kind == EXTENT_ZERO && (e->flags & EXTENT_ALLOCATED));
	if (ret_extent->has_offset) {
		ret_extent->offset = e->host_off;
		ret_extent->file = node_name(e->node);
	}
	return 0;
}

struct check_args {
	struct node *top;
	struct check check;
	struct varve_error *err;
};

static int check_fiber(struct fiber *f, void *arg)
{
	struct check_args *a = arg;

	return a->top->drv->check(f, a->top, &a->check, a->err);
}

int varve_image_check(struct varve_image *image, struct varve_check_result *ret_result, varve_report_fn report,
		      varve_progress_fn progress, void *user_data, struct varve_error *err)
{
	struct varve_check_result result = { 0 };
	struct check_args a = {
		.top = image->top,
		.check = { .result = &result, .report = report, .progress = progress, .user_data = user_data },
		.err = err,
	};
	int ret;

	if (!image->top->drv->check)
		return varve_error_set(err, -ENOTSUP, "%s: images of format %s have nothing to check",
				       node_name(image->top), image->top->drv->name);
	ret = api_call(image, check_fiber, &a);
	if (ret < 0)
		return ret;
	*ret_result = result;
	return 0;
}
