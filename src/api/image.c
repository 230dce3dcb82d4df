/* SPDX-License-Identifier: MIT */
/*
 * api/image.c - images as the embedder sees them: open, close, attach queues
 *
 * Owns:    struct varve_image, and the private home queue of images opened without one.
 * Assumes: block/ opens the graph from a list of options; this file only writes that list.
 */
#include "api/api.h"
#include "block/policy.h"
#include "block/throttle.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"

const char *varve_version(void)
{
	return VARVE_VERSION;
}

int api_call(struct varve_image *image, int (*fn)(struct fiber *f, void *arg), void *arg)
{
	int ret;

	if (image->private_home)
		pthread_mutex_lock(&image->turn);
	ret = fiber_call(image->home->q, fn, arg);
	api_announce(image->home);
	if (image->private_home)
		pthread_mutex_unlock(&image->turn);
	return ret;
}

void api_send(struct varve_image *image)
{
	if (image->home->has_thread)
		return; /* it sends at the end of its turn */
	if (image->private_home)
		pthread_mutex_lock(&image->turn);
	queue_turn(image->home->q, 0);
	api_announce(image->home);
	if (image->private_home)
		pthread_mutex_unlock(&image->turn);
}

/* ---- opening ---- */

static int open_flags(const struct varve_open_options *oo, uint32_t *ret_flags, struct varve_error *err)
{
	static const struct {
		unsigned api;
		uint32_t node;
	} names[] = {
		{ VARVE_OPEN_WRITABLE, NODE_WRITABLE },	      { VARVE_OPEN_NO_BACKING, NODE_NO_BACKING | NODE_NO_DATA },
		{ VARVE_OPEN_FORCE_SHARE, NODE_FORCE_SHARE }, { VARVE_OPEN_NO_IO, NODE_NO_IO },
		{ VARVE_OPEN_CHECK, NODE_CHECK },	      { VARVE_OPEN_REPAIR, NODE_REPAIR },
		{ VARVE_OPEN_BITMAPS, NODE_BITMAPS },	      { VARVE_OPEN_NO_DATA_FILE, NODE_NO_DATA },
	};
	unsigned left = oo->flags & ~(VARVE_OPEN_IMAGE_OPTS | VARVE_OPEN_COPY_ON_READ | VARVE_OPEN_DATA_FILE);
	const char *cold = getenv("VARVE_FORCE_COLD"); /* a switch of the tests: see CONTRIBUTING.md */
	uint32_t flags = 0;
	int ret;

	if (oo->cache) {
		ret = cache_mode_parse(oo->cache, &flags, err);
		if (ret < 0)
			return ret;
	}
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (left & names[i].api)
			flags |= names[i].node;
		left &= ~names[i].api;
	}
	if (oo->flags & VARVE_OPEN_DATA_FILE)
		flags &= ~NODE_NO_DATA;
	if (left)
		return varve_error_set(err, -EINVAL, "unknown open flags 0x%x", left);
	if ((flags & NODE_REPAIR) && !(flags & NODE_WRITABLE))
		return varve_error_set(err, -EINVAL, "an image is repaired only when it is open for writing");
	if ((flags & NODE_BITMAPS) && !(flags & NODE_WRITABLE))
		return varve_error_set(err, -EINVAL, "bitmaps are changed only when the image is open for writing");
	if ((flags & NODE_WRITABLE) && (flags & NODE_FORCE_SHARE))
		return varve_error_set(err, -EINVAL, "an image cannot be shared by force and open for writing");
	if ((flags & NODE_WRITABLE) && (flags & (NODE_NO_IO | NODE_CHECK)))
		return varve_error_set(err, -EINVAL, "an image that is opened for information or to be checked cannot be open for writing");
	if (cold && strcmp(cold, "1") == 0)
		flags |= NODE_FORCE_COLD;
	*ret_flags = flags;
	return 0;
}

static int open_opts(const char *name, const struct varve_open_options *oo, struct opts *o, struct varve_error *err)
{
	int ret;

	if (oo->flags & VARVE_OPEN_IMAGE_OPTS) {
		if (oo->format)
			return varve_error_set(err, -EINVAL,
					       "image options carry the format as driver=; a format beside them is one too many");
		ret = opts_parse(o, name, err);
	} else {
		ret = opts_set(o, "filename", name, err);
		if (ret == 0 && oo->format)
			ret = opts_set(o, "format", oo->format, err);
	}
	if (ret == 0 && oo->state_dir)
		ret = opts_set(o, "state-dir", oo->state_dir, err);
	if (ret == 0 && (oo->flags & VARVE_OPEN_COPY_ON_READ))
		ret = opts_set(o, "copy-on-read", "on", err);
	return ret;
}

struct open_args {
	const char *name;
	struct opts *opts;
	uint32_t flags;
	const char *aio;
	struct node *top;
	struct varve_error *err;
};

/* Only the format's own changes: nobody else may write what bitmaps would have to note. A format without bitmaps has nothing to note. */
static void leave_disk(struct node *top)
{
	struct node *disk = top;

	while (disk->drv->kind == DRIVER_FILTER)
		disk = disk->file;
	for (struct node *n = top; disk->drv->bitmap_change && n; n = n != disk ? n->file : NULL)
		n->flags &= ~NODE_WRITABLE;
}

static int open_fiber(struct fiber *f, void *arg)
{
	struct open_args *a = arg;

	int ret = graph_open_aio(f, a->opts, a->flags, a->aio, &a->top, a->err);

	if (ret == 0 && (a->flags & NODE_BITMAPS))
		leave_disk(a->top);
	if (ret < 0 && a->err && !strstr(a->err->message, a->name))
		varve_error_prefix(a->err, ret, "%s: ", a->name);
	return ret;
}

int varve_image_open(struct varve_image **ret_image, const char *name, const struct varve_open_options *opts,
		     struct varve_error *err)
{
	static const struct varve_open_options defaults;
	const struct varve_open_options *oo = opts ? opts : &defaults;
	struct open_args a = { .name = name, .err = err };
	struct varve_image *image;
	int ret;

	if (!ret_image || !name)
		return varve_error_set(err, -EINVAL, "varve_image_open: no name, or no place for the image");
	if (*name == '\0')
		return varve_error_set(err, -EINVAL, "the name of the image is empty");
	ret = open_flags(oo, &a.flags, err);
	if (ret < 0)
		return ret;
	a.aio = oo->aio;
	image = calloc(1, sizeof(*image));
	a.opts = opts_new();
	if (!image || !a.opts) {
		ret = varve_error_errno(err, -ENOMEM, "%s", name);
		goto fail;
	}
	ret = open_opts(name, oo, a.opts, err);
	if (ret < 0)
		goto fail;
	image->home = oo->home;
	if (!image->home) {
		ret = api_private_queue(&image->home, err);
		if (ret < 0)
			goto fail;
		image->private_home = true;
	}
	pthread_mutex_init(&image->turn, NULL);
	ret = api_call(image, open_fiber, &a);
	if (ret < 0) {
		pthread_mutex_destroy(&image->turn);
		goto fail;
	}
	opts_free(a.opts);
	image->top = a.top;
	atomic_fetch_add(&image->home->users, 1);
	*ret_image = image;
	return 0;

fail:
	if (image && image->private_home)
		varve_queue_free(image->home);
	opts_free(a.opts);
	free(image);
	return ret;
}

/* ---- closing ---- */

struct close_args {
	struct node *top;
	struct varve_error *err;
};

static int close_fiber(struct fiber *f, void *arg)
{
	struct close_args *a = arg;

	return graph_close(f, a->top, a->err);
}

int varve_image_close(struct varve_image *image, struct varve_error *err)
{
	struct close_args a = { .err = err };
	struct policy_state stopped;
	char name[512];
	unsigned users;
	int ret;

	if (!image)
		return 0;
	users = atomic_load(&image->users);
	if (users)
		return varve_error_set(err, -EBUSY,
				       "%s: %u attached queues or exports still use the image; it stays open",
				       node_name(image->top), users);
	stopped.nr_parked = 0;
	policy_get_state(image->top, &stopped);
	policy_failing_begin(image->top); /* what waits would wait for ever */
	throttle_pass_begin(image->top);
	if (!image->home->has_thread)
		api_finish(image->home, image);
	a.top = image->top;
	snprintf(name, sizeof(name), "%s", node_name(image->top));
	ret = api_call(image, close_fiber, &a);
	if (ret == 0 && stopped.nr_parked)
		ret = varve_error_set(err, stopped.error ? stopped.error : -EIO,
				      "%s: closed while it was stopped (%s): %llu requests that waited, %llu bytes, "
				      "have failed and may not be on the disk",
				      name, strerror(stopped.error ? -stopped.error : EIO),
				      (unsigned long long)stopped.nr_parked,
				      (unsigned long long)stopped.parked_bytes);
	atomic_fetch_sub(&image->home->users, 1);
	if (image->private_home)
		varve_queue_free(image->home);
	pthread_mutex_destroy(&image->turn);
	free(image);
	return ret;
}

static int leave_error_fiber(struct fiber *f, void *arg)
{
	struct node *top = arg;

	(void)f;
	top->unserved = true;
	return 0;
}

void varve_image_leave_flush_error(struct varve_image *image)
{
	(void)api_call(image, leave_error_fiber, image->top);
}

void varve_image_cancel(struct varve_image *image)
{
	/* The stack of an open image stays what it is: nothing is followed here that could go away. */
	for (struct node *n = image->top; n; n = n->file)
		atomic_store_explicit(&n->ending, true, memory_order_relaxed);
}

/* ---- further queues ---- */

struct attach_args {
	struct node *top;
	struct queue *q;
	struct varve_error *err;
};

static int attach_fiber(struct fiber *f, void *arg)
{
	struct attach_args *a = arg;

	return node_attach(a->top, a->q, a->err);
}

static int detach_fiber(struct fiber *f, void *arg)
{
	struct attach_args *a = arg;

	node_detach(f, a->top, a->q);
	return 0;
}

static bool is_attached(const struct varve_image *image, const struct varve_queue *vq)
{
	return atomic_load(&image->top->slots[queue_id(vq->q)]) != NULL;
}

int varve_image_attach(struct varve_image *image, struct varve_queue *vq, struct varve_error *err)
{
	struct attach_args a = { .err = err };
	bool hold;
	int ret;

	if (!image || !vq)
		return varve_error_set(err, -EINVAL, "varve_image_attach: the image or the queue is missing");
	a.top = image->top;
	a.q = vq->q;
	if (is_attached(image, vq))
		return varve_error_set(err, -EEXIST, "%s: queue %s is attached already", node_name(image->top),
				       queue_name(vq->q));
	if (image->private_home)
		return varve_error_set(err, -EINVAL,
				       "%s: further queues need an image that was opened with a home queue",
				       node_name(image->top));
	/* A stream that ends closes images of the chain: not meanwhile. (It cannot where home does not run: this is its thread, or it has none.) */
	hold = image->home->has_thread && !queue_is_mine(image->home->q);
	if (hold)
		api_call(image, node_chain_hold, a.top);
	ret = fiber_call(vq->q, attach_fiber, &a);
	if (hold)
		api_call(image, node_chain_let_go, a.top);
	api_announce(vq);
	if (ret < 0)
		return ret;
	atomic_fetch_add(&vq->users, 1);
	atomic_fetch_add(&image->users, 1);
	return 0;
}

void varve_image_detach(struct varve_image *image, struct varve_queue *vq)
{
	struct attach_args a = { 0 };

	if (!image || !vq)
		return;
	a.top = image->top;
	a.q = vq->q;
	if (vq == image->home || !is_attached(image, vq))
		return;
	throttle_pass_begin(image->top);
	policy_failing_begin(image->top); /* of requests that wait until the image is resumed, nobody would see the end */
	if (!vq->has_thread)
		api_finish(vq, image);
	policy_failing_end(image->top);
	throttle_pass_end(image->top);
	api_call(image, detach_fiber, &a);
	atomic_fetch_sub(&vq->users, 1);
	atomic_fetch_sub(&image->users, 1);
}

/* ---- flush errors ---- */

struct acknowledge {
	struct node *top;
	uint64_t bytes;
	unsigned nr; /* files that had an error */
};

static bool acknowledge_leaf(struct node *leaf, void *arg)
{
	struct acknowledge *a = arg;

	if (leaf->drv->acknowledge && leaf->drv->acknowledge(leaf, &a->bytes) < 0)
		a->nr++;
	return true;
}

static int acknowledge_fiber(struct fiber *f, void *arg)
{
	struct acknowledge *a = arg;

	(void)f;
	graph_each_leaf(a->top, acknowledge_leaf, a);
	return 0;
}

int varve_image_acknowledge_flush_error(struct varve_image *image, uint64_t *ret_bytes, struct varve_error *err)
{
	struct acknowledge a = { .top = image->top };
	int ret;

	ret = api_call(image, acknowledge_fiber, &a);
	if (ret < 0)
		return varve_error_errno(err, ret, "%s: acknowledging flush errors", node_name(image->top));
	if (ret_bytes)
		*ret_bytes = a.bytes;
	return (int)a.nr;
}

/* ---- stopped images ---- */

int varve_image_resume(struct varve_image *image)
{
	return policy_resume(image->top);
}

void varve_image_set_waiting(struct varve_image *image, bool on)
{
	if (image->reports == !on)
		return;
	image->reports = !on;
	if (on)
		policy_failing_end(image->top);
	else
		policy_failing_begin(image->top);
}

/* ---- what an image says of itself ---- */

uint64_t varve_image_length(const struct varve_image *image)
{
	return node_len(image->top);
}

bool varve_image_writable(const struct varve_image *image)
{
	return image->top->flags & NODE_WRITABLE;
}

const char *varve_image_format(const struct varve_image *image)
{
	return image->top->drv->name;
}
