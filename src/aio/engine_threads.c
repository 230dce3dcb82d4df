/* SPDX-License-Identifier: MIT */
/*
 * aio/engine_threads.c - the engine "threads": ordinary system calls on the worker pool
 *
 * Owns:    the operations submitted in this turn and not yet handed to the workers; reads answered at once.
 * Assumes: nothing of the kernel; this engine works everywhere.
 * Never:   waits on the queue's thread: what it tries there is RWF_NOWAIT.
 *
 * The workers get all operations of a turn under one lock; their completions travel as messages.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "aio/loop.h"
#include "base/error.h"

#define AT_ONCE_LEN (64 * 1024) /* longer copies keep the queue's thread from its other work */
#define SKIP_MAX 63

static void op_run(struct work *w)
{
	struct aio_op *op = container_of(w, struct aio_op, work);

	op->res = aio_op_blocking(op);
}

static void op_done(struct msg *m)
{
	struct aio_op *op = container_of(m, struct aio_op, work.done);

	op->q->nr_outside--;
	op->q->stats.aio_completed++;
	op->done(op, op->res);
}

static struct work *op_work(struct queue *q, struct aio_op *op)
{
	q->nr_outside++;
	op->work.run = op_run;
	op->work.q = q;
	op->work.done.run = op_done;
	return &op->work;
}

void aio_op_to_worker(struct queue *q, struct aio_op *op)
{
	worker_submit(op_work(q, op));
}

struct threads {
	struct queue *q;
	struct work *head, **tail; /* for the workers, at the end of the turn */
	unsigned nr;
	struct aio_op *hit, **hit_tail; /* reads done at once, to be told of in this turn */
	unsigned skip, penalty;		/* reads not to try at once, after a miss */
};

static int threads_attach(struct queue *q, void **ret_ctx, struct varve_error *err)
{
	struct threads *t = calloc(1, sizeof(*t));

	if (!t)
		return varve_error_set(err, -ENOMEM, "out of memory for the aio engine 'threads'");
	t->q = q;
	t->tail = &t->head;
	t->hit_tail = &t->hit;
	*ret_ctx = t;
	return 0;
}

static void threads_detach(struct queue *q, void *ctx)
{
	(void)q;
	free(ctx);
}

/*
 * A read of what is in the page cache needs no other thread: copying it costs less than waking one. Each miss
 * in a row doubles the number of reads that are not tried, so that a cold file does not pay for the question.
 * False: not done.
 */
static bool read_at_once(struct threads *t, struct aio_op *op)
{
	ssize_t n;

	if (op->opcode != AIO_READ || op->file->direct || op->len > AT_ONCE_LEN)
		return false;
	if (t->skip) {
		t->skip--;
		return false;
	}
	t->q->stats.syscalls++;
	n = preadv2(op->file->fd, op->iov, (int)op->nr_iov, (off_t)op->off, RWF_NOWAIT);
	/* A part of it, the end of the file, an error: left to a worker, which gives the whole answer. */
	if (n < 0 || (uint64_t)n != op->len) {
		t->penalty = MIN(2 * t->penalty + 1, SKIP_MAX);
		t->skip = t->penalty;
		return false;
	}
	t->penalty = 0;
	op->res = n;
	*t->hit_tail = op;
	t->hit_tail = &op->next;
	return true;
}

static void threads_submit(void *ctx, struct aio_op *op)
{
	struct threads *t = ctx;
	struct work *w;

	if (read_at_once(t, op))
		return;
	w = op_work(t->q, op);
	w->next = NULL;
	*t->tail = w;
	t->tail = &w->next;
	t->nr++;
}

static void threads_flush(void *ctx)
{
	struct threads *t = ctx;

	if (t->hit)
		loop_signal(t->q); /* submitted by a hook: the queue must not sleep now */
	if (!t->nr)
		return;
	worker_submit_all(t->head, t->tail, t->nr);
	t->head = NULL;
	t->tail = &t->head;
	t->nr = 0;
}

static unsigned threads_reap(void *ctx)
{
	struct threads *t = ctx;
	struct aio_op *op = t->hit;
	unsigned nr = 0;

	t->hit = NULL;
	t->hit_tail = &t->hit;
	while (op) {
		struct aio_op *next = op->next;

		t->q->stats.aio_completed++;
		op->done(op, op->res);
		op = next;
		nr++;
	}
	return nr;
}

const struct aio_engine aio_engine_threads = {
	.name = "threads",
	.attach = threads_attach,
	.detach = threads_detach,
	.submit = threads_submit,
	.flush = threads_flush,
	.reap = threads_reap,
};
