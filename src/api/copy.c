/* SPDX-License-Identifier: MIT */
/*
 * api/copy.c - copying between images
 */
#include "api/api.h"
#include "block/copy.h"

static int copy_fiber(struct fiber *f, void *arg)
{
	return node_copy(f, arg);
}

static int copy_check(const struct varve_image *dst, uint64_t dst_off, const struct varve_image *src,
		      uint64_t src_off, uint64_t len, unsigned flags, struct varve_error *err)
{
	int ret;

	if (flags & ~VARVE_COPY_NO_OFFLOAD)
		return varve_error_set(err, -EINVAL, "copy: unknown flags 0x%x", flags);
	if (src->home != dst->home)
		return varve_error_set(err, -EINVAL,
				       "%s and %s: images are copied when they have the same home queue",
				       node_name(src->top), node_name(dst->top));
	ret = api_check_request(src, REQ_READ, src_off, len, err);
	if (ret == 0)
		ret = api_check_request(dst, REQ_WRITE, dst_off, len, err);
	if (ret == 0 && src->top == dst->top && src_off < dst_off + len && dst_off < src_off + len && len)
		ret = varve_error_set(err, -EINVAL,
				      "%s: copy of %llu bytes from offset %llu to %llu: they overlap",
				      node_name(src->top), (unsigned long long)len,
				      (unsigned long long)src_off, (unsigned long long)dst_off);
	return ret;
}

int varve_image_copy(struct varve_image *dst, uint64_t dst_off, struct varve_image *src, uint64_t src_off,
		     uint64_t len, unsigned flags, uint64_t *ret_offloaded, varve_progress_fn progress,
		     void *user_data, struct varve_error *err)
{
	struct node_copy c = { .src_off = src_off,
			       .dst_off = dst_off,
			       .len = len,
			       .progress = progress,
			       .user_data = user_data,
			       .offload = !(flags & VARVE_COPY_NO_OFFLOAD) };
	int ret;

	if (!dst || !src)
		return varve_error_set(err, -EINVAL, "varve_image_copy: an image is missing");
	ret = copy_check(dst, dst_off, src, src_off, len, flags, err);
	if (ret < 0)
		return ret;
	c.src = src->top;
	c.dst = dst->top;
	ret = api_call(dst, copy_fiber, &c);
	if (ret_offloaded)
		*ret_offloaded = c.offloaded;
	/* c stands where it stopped. */
	if (ret < 0)
		return varve_error_errno(err, ret, "copy of %s at offset %llu to %s at offset %llu",
					 node_name(c.src), (unsigned long long)c.src_off, node_name(c.dst),
					 (unsigned long long)c.dst_off);
	return 0;
}
