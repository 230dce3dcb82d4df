/* SPDX-License-Identifier: MIT */
/*
 * api/export.c - serving an image to virtual machines
 *
 * Owns:    struct varve_export: one started server and the uses of image and queues it stands for.
 */
#include "api/api.h"
#include "block/policy.h"
#include "block/throttle.h"

#include <jansson.h>
#include <stdlib.h>

#include "export/vhost-user-blk/export.h"
#include "export/vhost-user-blk/memguard.h"

#define EXPORT_QUEUES_MAX 64

struct varve_export {
	struct vublk *vublk;
	struct varve_image *image;
	struct varve_queue *control;
	bool writable;
	bool paused; /* by whoever calls pause and resume, one at a time */
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
	if (opts->socket_fd <= 0 && (!opts->socket_path || !*opts->socket_path))
		return varve_error_set(err, -EINVAL, "export: no socket path");
	ret = check_queues(image, control, queues, nr_queues, err);
	if (ret < 0)
		return ret;
	if (opts->writable && !opts->paused && !varve_image_writable(image))
		return varve_error_set(err, -EACCES, "export: %s is open read-only and cannot be served writable",
				       node_name(image->top));
	e = calloc(1, sizeof(*e) + nr_queues * sizeof(e->queues[0]));
	if (!e)
		return varve_error_errno(err, -ENOMEM, "export");
	e->image = image;
	e->control = control;
	e->writable = opts->writable;
	e->paused = opts->paused;
	e->nr_queues = nr_queues;
	for (unsigned i = 0; i < nr_queues; i++) {
		e->queues[i] = queues[i];
		inner[i] = queues[i]->q;
	}
	memguard_keep_out(opts->own_sigbus);
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

void varve_export_pause(struct varve_export *e)
{
	vublk_pause(e->vublk);
	e->paused = true;
}

int varve_export_pause_unless_stopped(struct varve_export *e, struct varve_error *err)
{
	int ret = vublk_pause_unless_stopped(e->vublk);

	if (ret == -ETIMEDOUT)
		return varve_error_set(err, ret, "%s: requests in flight are not done after ten seconds: its storage does not answer",
				       node_name(e->image->top));
	if (ret < 0)
		return varve_error_errno(err, ret, "%s: an error has stopped it", node_name(e->image->top));
	e->paused = true;
	return 0;
}

void varve_export_resume(struct varve_export *e)
{
	if (e->writable && !varve_image_writable(e->image))
		return; /* a stand-in: what the guest writes would be refused */
	vublk_resume(e->vublk);
	e->paused = false;
}

int varve_export_set_image(struct varve_export *e, struct varve_image *image, struct varve_error *err)
{
	int ret;

	if (!image)
		return varve_error_set(err, -EINVAL, "%s: an export cannot be without an image", node_name(e->image->top));
	if (!e->paused)
		return varve_error_set(err, -EBUSY, "%s: the export must be paused before it gets another image",
				       node_name(e->image->top));
	if (image == e->image)
		return 0;
	ret = check_queues(image, e->control, e->queues, e->nr_queues, err);
	if (ret == 0)
		ret = vublk_set_node(e->vublk, image->top, err);
	if (ret < 0)
		return ret;
	atomic_fetch_add(&image->users, 1);
	atomic_fetch_sub(&e->image->users, 1);
	e->image = image;
	return 0;
}

bool varve_handle_sigbus(void *address)
{
	return memguard_fault(address);
}

/* ---- statistics ---- */

/* The time within which so many of the requests (a part of 10,000) were done: the end of their bucket. */
static uint64_t percentile(const struct blk_count *c, unsigned part)
{
	uint64_t nr = 0, all = 0, want;

	for (unsigned i = 0; i < BLK_LATENCY_BUCKETS; i++)
		all += c->latency[i];
	want = div_up(all * part, 10000);
	for (unsigned i = 0; i < BLK_LATENCY_BUCKETS; i++) {
		nr += c->latency[i];
		if (nr >= want)
			return MIN(blk_latency_end(i), c->max_ns);
	}
	return c->max_ns;
}

static json_t *number(uint64_t n)
{
	return json_integer((json_int_t)n);
}

static json_t *count_to_json(const struct blk_count *c)
{
	json_t *histogram = json_array(), *latency;

	for (unsigned i = 0; i < BLK_LATENCY_BUCKETS; i++) {
		if (c->latency[i])
			json_array_append_new(histogram, json_pack("[I, I]", (json_int_t)blk_latency_end(i),
								   (json_int_t)c->latency[i]));
	}
	latency = json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "mean", number(c->requests ? c->total_ns / c->requests : 0),
			    "p50", number(percentile(c, 5000)), "p90", number(percentile(c, 9000)), "p99",
			    number(percentile(c, 9900)), "p99.9", number(percentile(c, 9990)), "max", number(c->max_ns),
			    "histogram", histogram);
	return json_pack("{s:o, s:o, s:o, s:o}", "requests", number(c->requests), "bytes", number(c->bytes), "errors",
			 number(c->errors), "latency-ns", latency);
}

static json_t *queue_to_json(const struct vublk_queue_stats *q)
{
	static const char *const names[BLK_CLASSES] = { "read", "write", "flush", "discard", "write-zeroes", "other" };
	json_t *loop = json_pack("{s:o, s:o, s:o, s:o, s:b}", "turns", number(q->loop.turns), "sleeps", number(q->loop.waits),
				 "spins", number(q->loop.spins), "spins-paid", number(q->loop.spins_paid), "spinning",
				 q->loop.spinning);
	json_t *o = json_pack("{s:s, s:i, s:o, s:o, s:o}", "state",
			      q->broken ? "broken" : q->running ? "running" : "stopped", "breaks", (int)q->nr_breaks, "kicks",
			      number(q->nr_kicks), "calls", number(q->nr_calls), "loop", loop);

	for (unsigned i = 0; i < BLK_CLASSES; i++)
		json_object_set_new(o, names[i], count_to_json(&q->done.count[i]));
	return o;
}

int varve_export_stats(struct varve_export *e, char **ret_json, struct varve_error *err)
{
	struct vublk_stats *st = vublk_get_stats(e->vublk);
	json_t *queues = json_array(), *o = NULL;
	char *text = NULL;

	for (unsigned i = 0; st && i < st->nr_queues; i++)
		json_array_append_new(queues, queue_to_json(&st->queue[i]));
	if (st) {
		/* The path in the file system's encoding may be no UTF-8; then it is left out. */
		o = json_pack("{s:b, s:b, s:b, s:b, s:o, s:o, s:o, s:i, s:o}", "connected", st->connected, "paused",
			      st->paused, "write-cache", st->writeback, "memory-lost", st->memory_lost, "sessions",
			      number(st->nr_sessions), "features", number(st->features), "protocol-features",
			      number(st->protocol_features), "memory-regions", (int)st->nr_regions, "queues", queues);
		json_object_set_new(o, "socket", json_string(st->socket_path));
		text = json_dumps(o, JSON_COMPACT);
		json_decref(o);
	} else {
		json_decref(queues);
	}
	free(st);
	if (!text)
		return varve_error_errno(err, -ENOMEM, "statistics of an export");
	*ret_json = text;
	return 0;
}

int varve_export_socket(struct varve_export *e)
{
	return vublk_socket(e->vublk);
}

unsigned varve_export_descriptors_to_come(struct varve_export *e)
{
	return vublk_descriptors_to_come(e->vublk);
}

void varve_export_leave_socket(struct varve_export *e)
{
	vublk_leave_socket(e->vublk);
}

int varve_export_stop(struct varve_export *e, struct varve_error *err)
{
	int ret = 0;

	if (!e)
		return 0;
	throttle_pass_begin(e->image->top); /* what waits for its turn would hold us up */
	policy_failing_begin(e->image->top); /* it waits for its requests; those of a stopped image would not end */
	vublk_stop(e->vublk);
	/* What the guest wrote and did not flush is worth a flush all the same; its error is the caller's to know. */
	if (varve_image_writable(e->image))
		ret = varve_image_flush(e->image, err);
	policy_failing_end(e->image->top);
	throttle_pass_end(e->image->top);
	for (unsigned i = 0; i < e->nr_queues; i++)
		atomic_fetch_sub(&e->queues[i]->users, 1);
	atomic_fetch_sub(&e->control->users, 1);
	atomic_fetch_sub(&e->image->users, 1);
	free(e);
	return ret;
}
