/* SPDX-License-Identifier: MIT */
/*
 * api/export.c - serving an image to virtual machines
 *
 * Owns:    struct varve_export: one started server and the uses of image and queues it stands for.
 */
#include "api/api.h"
#include "block/policy.h"

#include <stdlib.h>

#include "export/vhost-user-blk/export.h"

#define EXPORT_QUEUES_MAX 64

struct varve_export {
	struct vublk *vublk;
	struct varve_image *image;
	struct varve_queue *control;
	unsigned nr_queues;
	struct varve_queue *queues[];
};

static int check_queues(const struct varve_image *image, const struct varve_queue *control,
			struct varve_queue *const *queues, unsigned nr_queues, struct varve_error *err)
{
	if (!nr_queues || nr_queues > EXPORT_QUEUES_MAX)
		return varve_error_set(err, -EINVAL, "export: %u queues given, 1 .. %u are possible", nr_queues,
				       EXPORT_QUEUES_MAX);
	if (!control->has_thread)
		return varve_error_set(err, -EINVAL, "export: the control queue has no thread of its own");
	for (unsigned i = 0; i < nr_queues; i++) {
		if (!queues[i]->has_thread)
			return varve_error_set(err, -EINVAL, "export: queue %u has no thread of its own", i);
	}
	if (!image->home->has_thread)
		return varve_error_set(err, -EINVAL,
				       "export: %s must be opened with a home queue that has a thread of its own",
				       node_name(image->top));
	return 0;
}

int varve_export_vhost_user_blk(struct varve_export **ret_export, struct varve_image *image,
				const struct varve_vhost_user_blk_options *opts, struct varve_queue *control,
				struct varve_queue *const *queues, unsigned nr_queues, struct varve_error *err)
{
	struct queue *inner[EXPORT_QUEUES_MAX];
	struct varve_export *e;
	int ret;

	if (!ret_export || !image || !opts || !control || !queues)
		return varve_error_set(err, -EINVAL, "export: image, options, queues and a place for it are needed");
	if (!opts->socket_path || !*opts->socket_path)
		return varve_error_set(err, -EINVAL, "export: no socket path");
	ret = check_queues(image, control, queues, nr_queues, err);
	if (ret < 0)
		return ret;
	if (opts->writable && !varve_image_writable(image))
		return varve_error_set(err, -EACCES, "export: %s is open read-only and cannot be served writable",
				       node_name(image->top));
	e = calloc(1, sizeof(*e) + nr_queues * sizeof(e->queues[0]));
	if (!e)
		return varve_error_errno(err, -ENOMEM, "export");
	e->image = image;
	e->control = control;
	e->nr_queues = nr_queues;
	for (unsigned i = 0; i < nr_queues; i++) {
		e->queues[i] = queues[i];
		inner[i] = queues[i]->q;
	}
	ret = vublk_start(&e->vublk, image->top, opts, control->q, inner, nr_queues, err);
	if (ret < 0) {
		free(e);
		return ret;
	}
	atomic_fetch_add(&image->users, 1);
	atomic_fetch_add(&control->users, 1);
	for (unsigned i = 0; i < nr_queues; i++)
		atomic_fetch_add(&queues[i]->users, 1);
	*ret_export = e;
	return 0;
}

int varve_export_stop(struct varve_export *e, struct varve_error *err)
{
	int ret = 0;

	if (!e)
		return 0;
	policy_failing_begin(e->image->top); /* it waits for its requests; those of a stopped image would not end */
	vublk_stop(e->vublk);
	/* What the guest wrote and did not flush is worth a flush all the same; its error is the caller's to know. */
	if (varve_image_writable(e->image))
		ret = varve_image_flush(e->image, err);
	policy_failing_end(e->image->top);
	for (unsigned i = 0; i < e->nr_queues; i++)
		atomic_fetch_sub(&e->queues[i]->users, 1);
	atomic_fetch_sub(&e->control->users, 1);
	atomic_fetch_sub(&e->image->users, 1);
	free(e);
	return ret;
}
