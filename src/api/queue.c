/* SPDX-License-Identifier: MIT */
/*
 * api/queue.c - queues as the embedder sees them: asynchronous requests in, completions out
 *
 * Owns:    the request slots of a queue. A slot is free, in flight or done; varve_queue_reap() frees it, so that
 *          `depth` bounds requests and unread completions together and nothing is allocated per request.
 * Assumes: one thread runs a queue without thread: it submits, reaps, and makes the synchronous calls of images
 *          whose home the queue is.
 */
#include "api/api.h"

#include <stdlib.h>
#include <time.h>

#include "aio/engine.h"
#include "base/iov.h"
#include "base/math.h"

static int queue_make(struct varve_queue **ret, const struct queue_opts *qopts, unsigned depth, struct varve_error *err)
{
	struct varve_queue *vq = calloc(1, sizeof(*vq));
	int r;

	if (!vq)
		return varve_error_errno(err, -ENOMEM, "queue");
	STAILQ_INIT(&vq->free);
	STAILQ_INIT(&vq->done);
	vq->has_thread = qopts->own_thread;
	vq->one_thread = qopts->one_thread;
	vq->depth = depth;
	if (depth) {
		vq->slots = calloc(depth, sizeof(*vq->slots));
		if (!vq->slots) {
			free(vq);
			return varve_error_errno(err, -ENOMEM, "queue with %u requests", depth);
		}
		for (unsigned i = 0; i < depth; i++) {
			vq->slots[i].queue = vq;
			STAILQ_INSERT_TAIL(&vq->free, &vq->slots[i], link);
		}
	}
	r = queue_new(&vq->q, qopts, err);
	if (r < 0) {
		free(vq->slots);
		free(vq);
		return r;
	}
	*ret = vq;
	return 0;
}

int varve_queue_new(struct varve_queue **ret_queue, const struct varve_queue_options *opts, struct varve_error *err)
{
	const unsigned known = VARVE_QUEUE_THREAD | VARVE_QUEUE_ADAPTIVE | VARVE_QUEUE_ONE_THREAD;
	unsigned flags = opts ? opts->flags : 0;
	unsigned depth = opts && opts->depth ? opts->depth : API_DEPTH_DEFAULT;
	struct queue_opts qopts = { .name = opts ? opts->name : NULL,
				    .own_thread = flags & VARVE_QUEUE_THREAD,
				    .one_thread = flags & VARVE_QUEUE_ONE_THREAD,
				    .cpus = opts ? opts->cpus : NULL,
				    .poll_ns = opts ? opts->poll_us * UINT64_C(1000) : 0,
				    .poll_adaptive = flags & VARVE_QUEUE_ADAPTIVE };

	if (!ret_queue)
		return varve_error_set(err, -EINVAL, "varve_queue_new: no place for the queue");
	if (flags & ~known)
		return varve_error_set(err, -EINVAL, "queue: unknown flags 0x%x", flags & ~known);
	if (qopts.own_thread && qopts.one_thread)
		return varve_error_set(err, -EINVAL, "queue: it has a thread of its own, or the caller's, not both");
	if (!qopts.own_thread && (qopts.cpus || qopts.poll_ns || qopts.poll_adaptive))
		return varve_error_set(err, -EINVAL, "queue: processors and polling are for queues with a thread");
	if (qopts.poll_adaptive && !qopts.poll_ns)
		return varve_error_set(err, -EINVAL, "queue: adaptive polling without a longest time (poll_us)");
	if (qopts.poll_ns > API_POLL_NS_MAX)
		return varve_error_set(err, -EINVAL, "queue: polling for more than a second is not possible");
	if (depth > API_DEPTH_MAX)
		return varve_error_set(err, -EINVAL, "queue: depth %u is not 1 .. %u", depth, API_DEPTH_MAX);
	return queue_make(ret_queue, &qopts, qopts.own_thread ? 0 : depth, err);
}

int api_private_queue(struct varve_queue **ret, struct varve_error *err)
{
	const struct queue_opts qopts = { .name = NULL };

	return queue_make(ret, &qopts, 0, err);
}

void varve_queue_free(struct varve_queue *vq)
{
	if (!vq)
		return;
	/* The embedder closes its images first: a queue freed under one would leave it with a dangling home. */
	assert(atomic_load(&vq->users) == 0);
	queue_free(vq->q);
	free(vq->slots);
	free(vq);
}

int varve_queue_fd(struct varve_queue *vq)
{
	if (vq->has_thread || vq->one_thread)
		return -EINVAL;
	return queue_poll_fd(vq->q);
}

/* ---- memory ---- */

struct memory_args {
	void *base;
	size_t len;
	bool add;
};

static int memory_fiber(struct fiber *f, void *arg)
{
	const struct memory_args *a = arg;

	if (a->add)
		aio_memory_add(fiber_queue(f), a->base, a->len, true); /* the caller knows what it costs */
	else
		aio_memory_del(fiber_queue(f), a->base, a->len);
	return 0;
}

static int memory_call(struct varve_queue *vq, struct memory_args *a)
{
	int ret = fiber_call(vq->q, memory_fiber, a);

	api_announce(vq);
	return ret;
}

int varve_queue_add_memory(struct varve_queue *vq, void *base, size_t len, struct varve_error *err)
{
	struct memory_args a = { .base = base, .len = len, .add = true };

	if (!vq || !base || !len || (uintptr_t)base + len < len)
		return varve_error_set(err, -EINVAL, "varve_queue_add_memory: no queue, or no memory");
	return memory_call(vq, &a);
}

void varve_queue_remove_memory(struct varve_queue *vq, void *base, size_t len)
{
	struct memory_args a = { .base = base, .len = len };

	if (vq)
		memory_call(vq, &a);
}

/* ---- submitting ---- */

static void slot_done(struct req *r, int ret)
{
	struct api_slot *s = container_of(r, struct api_slot, req);
	struct varve_queue *vq = s->queue;

	s->result = ret;
	s->image = NULL;
	STAILQ_INSERT_TAIL(&vq->done, s, link);
}

/*
 * The loop knows nothing of completions that nobody has read: they came while a synchronous call ran the queue, at
 * once in submit, or were more than the caller of reap took. A kick is free unless somebody polls.
 */
void api_announce(struct varve_queue *vq)
{
	if (!vq->has_thread && !STAILQ_EMPTY(&vq->done))
		queue_kick(vq->q);
}

/* Takes a slot for a request that fits the image. NULL with *ret_error set. */
static struct api_slot *slot_take(struct varve_queue *vq, struct varve_image *image, enum req_op op, uint64_t off,
				  uint64_t len, void *user_data, int *ret_error)
{
	struct api_slot *s;

	if (!vq || !image || !vq->depth || !atomic_load(&image->top->slots[queue_id(vq->q)])) {
		*ret_error = -EINVAL;
		return NULL;
	}
	*ret_error = api_check_request(image, op, off, len, NULL);
	if (*ret_error < 0)
		return NULL;
	s = STAILQ_FIRST(&vq->free);
	if (!s) {
		*ret_error = -EAGAIN;
		return NULL;
	}
	STAILQ_REMOVE_HEAD(&vq->free, link);
	s->image = image;
	s->user_data = user_data;
	return s;
}

static int slot_submit(struct varve_queue *vq, struct varve_image *image, enum req_op op, const struct iovec *iov,
		       int nr_iov, uint64_t off, uint64_t len, uint32_t flags, void *user_data)
{
	struct api_slot *s;
	int ret;

	s = slot_take(vq, image, op, off, len, user_data, &ret);
	if (!s)
		return ret;
	req_init(&s->req, vq->q, op, off, len, iov, (unsigned)nr_iov, flags, slot_done);
	if (len == 0 && op != REQ_FLUSH)
		slot_done(&s->req, 0);
	else
		node_submit(image->top, &s->req);
	api_announce(vq);
	return 0;
}

/* The bytes of a vector, or a negative errno. */
static int vector_len(const struct iovec *iov, int nr_iov, uint64_t *ret_len)
{
	uint64_t sum = 0;

	if (nr_iov < 0 || nr_iov > API_IOV_MAX || (nr_iov && !iov))
		return -EINVAL;
	for (int i = 0; i < nr_iov; i++) {
		if (u64_add(sum, iov[i].iov_len, &sum))
			return -EINVAL;
	}
	*ret_len = sum;
	return 0;
}

int varve_submit_readv(struct varve_queue *vq, struct varve_image *image, const struct iovec *iov, int nr_iov,
		       uint64_t off, void *user_data)
{
	uint64_t len;
	int ret = vector_len(iov, nr_iov, &len);

	if (ret < 0)
		return ret;
	return slot_submit(vq, image, REQ_READ, iov, nr_iov, off, len, 0, user_data);
}

int varve_submit_writev(struct varve_queue *vq, struct varve_image *image, const struct iovec *iov, int nr_iov,
			uint64_t off, unsigned flags, void *user_data)
{
	uint64_t len;
	int ret = vector_len(iov, nr_iov, &len);

	if (ret < 0)
		return ret;
	if (flags & ~(VARVE_REQ_FUA | VARVE_REQ_COMPRESS))
		return -EINVAL;
	return slot_submit(vq, image, REQ_WRITE, iov, nr_iov, off, len, (flags & VARVE_REQ_FUA ? REQ_FUA : 0) | (flags & VARVE_REQ_COMPRESS ? REQ_COMPRESS : 0),
			   user_data);
}

int varve_submit_flush(struct varve_queue *vq, struct varve_image *image, void *user_data)
{
	return slot_submit(vq, image, REQ_FLUSH, NULL, 0, 0, 0, 0, user_data);
}

int varve_submit_discard(struct varve_queue *vq, struct varve_image *image, uint64_t off, uint64_t len,
			 void *user_data)
{
	return slot_submit(vq, image, REQ_DISCARD, NULL, 0, off, len, 0, user_data);
}

int varve_submit_write_zeroes(struct varve_queue *vq, struct varve_image *image, uint64_t off, uint64_t len,
			      unsigned flags, void *user_data)
{
	uint32_t req_flags = 0;

	if (flags & ~(VARVE_REQ_FUA | VARVE_REQ_MAY_UNMAP | VARVE_REQ_NO_FALLBACK))
		return -EINVAL;
	if (flags & VARVE_REQ_FUA)
		req_flags |= REQ_FUA;
	if (flags & VARVE_REQ_MAY_UNMAP)
		req_flags |= REQ_MAY_UNMAP;
	if (flags & VARVE_REQ_NO_FALLBACK)
		req_flags |= REQ_NO_FALLBACK;
	return slot_submit(vq, image, REQ_ZERO, NULL, 0, off, len, req_flags, user_data);
}

/* ---- completions ---- */

static int collect(struct varve_queue *vq, struct varve_completion *completions, int max)
{
	struct api_slot *s;
	int n = 0;

	while (n < max && (s = STAILQ_FIRST(&vq->done))) {
		STAILQ_REMOVE_HEAD(&vq->done, link);
		completions[n].user_data = s->user_data;
		completions[n].result = s->result;
		STAILQ_INSERT_HEAD(&vq->free, s, link);
		n++;
	}
	return n;
}

static int64_t monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int varve_queue_reap(struct varve_queue *vq, struct varve_completion *completions, int max, int timeout_ms)
{
	int64_t deadline = 0, left = timeout_ms < 0 ? -1 : (int64_t)timeout_ms * 1000000;
	int n;

	if (!vq || vq->has_thread || !completions || max <= 0)
		return -EINVAL;
	if (timeout_ms > 0)
		deadline = monotonic_ns() + left;
	for (;;) {
		/* Unread completions keep the turn from waiting, not from submitting. */
		queue_turn(vq->q, STAILQ_EMPTY(&vq->done) ? left : 0);
		n = collect(vq, completions, max);
		if (n || timeout_ms == 0)
			break;
		/* The turn ended for something else: a message, a request of another queue. */
		if (timeout_ms > 0 && (left = deadline - monotonic_ns()) <= 0)
			break;
	}
	api_announce(vq);
	return n;
}

static bool has_in_flight(const struct varve_queue *vq, const struct varve_image *image)
{
	for (unsigned i = 0; i < vq->depth; i++) {
		if (vq->slots[i].image == image)
			return true;
	}
	return false;
}

void api_finish(struct varve_queue *vq, struct varve_image *image)
{
	while (has_in_flight(vq, image))
		queue_turn(vq->q, -1);
	api_announce(vq);
}
