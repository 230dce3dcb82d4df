/* SPDX-License-Identifier: MIT */
/*
 * aio/engine.c - which engines there are, and which ones a queue has
 *
 * Owns:    the list of engines that users may name; the contexts of a queue's engines.
 * Assumes: the queue's thread, except for aio_engine_choose().
 */
#include <errno.h>
#include <string.h>

#include "aio/loop.h"
#include "base/error.h"
#include "base/log.h"
#include "base/words.h"

/* In the order of AIO_ENGINE_WORDS. sim has no files that a user could name. */
static const struct aio_engine *const engines[] = {
	&aio_engine_uring,		 &aio_engine_native,	   &aio_engine_posix,
	&aio_engine_threads,		 &aio_engine_uring_sqpoll, &aio_engine_uring_pinned,
	&aio_engine_uring_sqpoll_pinned, &aio_engine_uring_iopoll, &aio_engine_uring_iopoll_pinned,
};

static const struct aio_engine *best(bool direct)
{
	const struct aio_engine *engine = &aio_engine_uring;
	int ret = uring_works();

	if (ret == 0)
		return engine;
	engine = direct && native_works() ? &aio_engine_native : &aio_engine_threads;
	log_info("io_uring cannot be used here (%s): aio=%s is taken", strerror(-ret), engine->name);
	return engine;
}

const struct aio_engine *aio_engine_choose(const char *name, bool direct, struct varve_error *err)
{
	int i = name ? words_find(AIO_ENGINE_WORDS, name) : -1;
	const struct aio_engine *engine = i >= 0 ? engines[i] : name ? NULL : best(direct);

	assert(!name || !engine || !strcmp(name, engine->name));
	if (!engine) {
		varve_error_set(err, -EINVAL,
				"unknown aio engine '%.200s': it is one of io_uring, native, posix, threads "
				"(and io_uring+sqpoll, +pinned, +sqpoll+pinned, +iopoll, +iopoll+pinned)",
				name);
		return NULL;
	}
	if (engine == &aio_engine_native && !direct) {
		varve_error_set(err, -EINVAL,
				"aio=native needs cache.direct=on (cache mode none or directsync): Linux AIO "
				"silently blocks on cached files; use aio=io_uring or aio=threads with the "
				"cache");
		return NULL;
	}
	log_debug("aio engine %s (%s, %s)", engine->name, name ? "as asked" : "the best that works here",
		  direct ? "direct" : "cached");
	return engine;
}

int aio_attach(struct queue *q, const struct aio_engine *engine, struct varve_error *err)
{
	void *ctx = NULL;
	int ret;

	assert(queue_is_mine(q));
	for (unsigned i = 0; i < q->nr_engines; i++) {
		if (q->engines[i].engine == engine)
			return 0;
	}
	assert(q->nr_engines < QUEUE_ENGINES);
	ret = engine->attach(q, &ctx, err);
	if (ret < 0)
		return ret;
	q->engines[q->nr_engines].engine = engine;
	q->engines[q->nr_engines].ctx = ctx;
	q->nr_engines++;
	for (unsigned i = 0; i < q->nr_memory && engine->memory_add; i++)
		engine->memory_add(ctx, &q->memory[i]);
	return 0;
}

void aio_submit(struct queue *q, struct aio_op *op)
{
	unsigned i = 0;

	assert(queue_is_mine(q));
	assert(op->nr_iov <= AIO_IOV_MAX && op->len <= AIO_LEN_MAX && op->off <= VARVE_LEN_MAX - AIO_LEN_MAX);
	while (unlikely(q->engines[i].engine != op->file->engine)) {
		i++;
		assert(i < q->nr_engines && "aio_submit() on a queue without aio_attach()");
	}
	op->q = q;
	op->next = NULL;
	if (op->file->at_once && aio_at_once(q, op)) {
		q->stats.aio_submitted++;
		return;
	}
	q->stats.aio_submitted++;
	q->engines[i].engine->submit(q->engines[i].ctx, op);
}

void engines_flush(struct queue *q)
{
	for (unsigned i = 0; i < q->nr_engines; i++) {
		if (q->engines[i].engine->flush)
			q->engines[i].engine->flush(q->engines[i].ctx);
	}
}

bool engines_reap(struct queue *q)
{
	unsigned n = 0;

	for (unsigned i = 0; i < q->nr_engines; i++) {
		if (q->engines[i].engine->reap)
			n += q->engines[i].engine->reap(q->engines[i].ctx);
	}
	return n;
}

void engines_detach(struct queue *q)
{
	assert(q->stats.aio_submitted == q->stats.aio_completed && "queue ended with I/O in flight");
	while (q->nr_engines) {
		q->nr_engines--;
		q->engines[q->nr_engines].engine->detach(q, q->engines[q->nr_engines].ctx);
	}
}
