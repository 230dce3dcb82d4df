/* SPDX-License-Identifier: MIT */
/*
 * api/stream.c - the stream job for embedders
 *
 * Every call goes to a fiber of the image's home queue, where the job lives; so any thread may make it.
 */
#include "api/api.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "job/stream.h"

struct varve_stream {
	struct varve_image *image;
	struct stream_job *job;
};

struct stream_call {
	struct varve_stream *s;
	struct stream_options options;
	uint64_t value;
	int64_t timeout_ns;
	struct stream_status status;
	struct varve_error *err;
};

static int start_fiber(struct fiber *f, void *arg)
{
	struct stream_call *c = arg;

	return stream_start(f, c->s->image->top, &c->options, &c->s->job, c->err);
}

int varve_stream_start(struct varve_stream **ret_stream, struct varve_image *image, const struct varve_stream_options *opts,
		       struct varve_error *err)
{
	static const struct varve_stream_options defaults;
	const struct varve_stream_options *so = opts ? opts : &defaults;
	struct stream_call c = { .err = err };
	int ret;

	if (so->flags & ~(VARVE_STREAM_KEEP_LINK | VARVE_STREAM_IDLE))
		return varve_error_set(err, -EINVAL, "unknown stream flags 0x%x", so->flags);
	c.options = (struct stream_options){ .base = so->base,
					     .speed = so->speed,
					     .parallel = so->parallel,
					     .keep_link = so->flags & VARVE_STREAM_KEEP_LINK,
					     .idle = so->flags & VARVE_STREAM_IDLE };
	if (atomic_exchange(&image->streaming, true))
		return varve_error_set(err, -EBUSY, "%s: a stream runs already", node_name(image->top));
	c.s = calloc(1, sizeof(*c.s));
	if (c.s)
		c.s->image = image;
	ret = c.s ? api_call(image, start_fiber, &c) : varve_error_errno(err, -ENOMEM, "%s", node_name(image->top));
	if (ret < 0) {
		atomic_store(&image->streaming, false);
		free(c.s);
		return ret;
	}
	atomic_fetch_add(&image->users, 1);
	*ret_stream = c.s;
	return 0;
}

static int pause_fiber(struct fiber *f, void *arg)
{
	(void)f;
	stream_pause(((struct stream_call *)arg)->s->job);
	return 0;
}

static int resume_fiber(struct fiber *f, void *arg)
{
	(void)f;
	stream_resume(((struct stream_call *)arg)->s->job);
	return 0;
}

static int cancel_fiber(struct fiber *f, void *arg)
{
	(void)f;
	stream_cancel(((struct stream_call *)arg)->s->job);
	return 0;
}

static int speed_fiber(struct fiber *f, void *arg)
{
	struct stream_call *c = arg;

	(void)f;
	stream_set_speed(c->s->job, c->value);
	return 0;
}

static int status_fiber(struct fiber *f, void *arg)
{
	struct stream_call *c = arg;

	(void)f;
	stream_get_status(c->s->job, &c->status);
	return 0;
}

static int wait_fiber(struct fiber *f, void *arg)
{
	struct stream_call *c = arg;

	stream_wait(f, c->s->job, c->timeout_ns < 0 ? 0 : queue_now(fiber_queue(f)) + (uint64_t)c->timeout_ns);
	stream_get_status(c->s->job, &c->status);
	return 0;
}

static int free_fiber(struct fiber *f, void *arg)
{
	stream_free(f, ((struct stream_call *)arg)->s->job);
	return 0;
}

static void simple(struct varve_stream *s, int (*fn)(struct fiber *f, void *arg))
{
	struct stream_call c = { .s = s };

	api_call(s->image, fn, &c);
}

void varve_stream_pause(struct varve_stream *s)
{
	simple(s, pause_fiber);
}

void varve_stream_resume(struct varve_stream *s)
{
	simple(s, resume_fiber);
}

void varve_stream_cancel(struct varve_stream *s)
{
	simple(s, cancel_fiber);
}

void varve_stream_set_speed(struct varve_stream *s, uint64_t speed)
{
	struct stream_call c = { .s = s, .value = speed };

	api_call(s->image, speed_fiber, &c);
}

void varve_stream_status(struct varve_stream *s, struct varve_stream_status *ret)
{
	struct stream_call c = { .s = s };

	api_call(s->image, status_fiber, &c);
	*ret = (struct varve_stream_status){ .state = (enum varve_stream_state)c.status.state,
					     .done = c.status.done,
					     .total = c.status.total,
					     .copied = c.status.copied,
					     .result = c.status.error };
	/* The job lives as long as the stream does. */
	snprintf(ret->message, sizeof(ret->message), "%s", c.status.message);
}

int varve_stream_wait(struct varve_stream *s, int timeout_ms, struct varve_error *err)
{
	struct stream_call c = { .s = s, .timeout_ns = timeout_ms < 0 ? -1 : (int64_t)timeout_ms * 1000000 };

	api_call(s->image, wait_fiber, &c);
	if (c.status.state != STREAM_ENDED)
		return varve_error_set(err, -EAGAIN, "%s: the stream goes on", node_name(s->image->top));
	return c.status.error < 0 ? varve_error_set(err, c.status.error, "%s", c.status.message) : 0;
}

void varve_stream_free(struct varve_stream *s)
{
	if (!s)
		return;
	simple(s, free_fiber);
	atomic_store(&s->image->streaming, false);
	atomic_fetch_sub(&s->image->users, 1);
	free(s);
}
